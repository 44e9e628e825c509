"""Log likelihoods of multiple-choice questions in batches, what choices share read once, beside one request at a time.

    python benchmarks/fewshot.py [--models inter mamba llama] [--questions 48] [--rounds 3]

Models are of scale=toy with the weights that they begin with: what they answer does not matter to how long it takes.
Questions are random bytes with four choices each, about as long as ARC's, without shots and with five. One at a time is
a forward pass over context and choice for every request. A thread of PyTorch unless OMP_NUM_THREADS says otherwise;
ratios of CPU seconds of one round are of one moment, and the largest difference between the two ways is printed.
"""

import argparse
import os
import random
import statistics
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

BOS, VOCABULARY = 256, 258
BATCH_TOKENS = 1 << 14
# Bytes of a context, least and most, and of a choice.
LENGTHS = {"no shots": ((80, 220), (8, 40)), "five shots": ((900, 1300), (8, 40))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["inter", "mamba", "llama"])
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import torch

    from hybrid.config import read_config
    from hybrid.evals.scoring import Continuation, Scorer
    from hybrid.train.loop import build_model
    from sweeps.compose import Composer

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(f"load {os.getloadavg()[0]:.1f}; {options.questions} questions of 4 choices")
    print(
        "model   questions     one at a time   in batches   ratio, median of rounds (least, most)   differ by at most"
    )
    for name in options.models:
        with Composer() as composer:
            config = composer.compose([f"model={name}"])
        run = read_config(config, stdlib_fingerprint=lambda: "0" * 16)
        model = build_model(run.run, run.execution)
        model.init_weights(1)
        model.eval()
        scorer = Scorer(model=model, vocab_size=VOCABULARY, max_length=2048, batch_tokens=BATCH_TOKENS)
        for shots, (context, choice) in LENGTHS.items():
            chance = random.Random(1)

            def text(lengths: tuple[int, int], chance: random.Random = chance) -> tuple[int, ...]:
                return tuple(chance.randrange(256) for _ in range(chance.randint(*lengths)))

            contexts = [(BOS, *text(context)) for _ in range(options.questions)]
            asked = [Continuation(context=one, tokens=text(choice)) for one in contexts for _ in range(4)]
            rounds, difference = [], 0.0
            for _ in range(options.rounds):
                began = time.process_time()
                alone = []
                for one in asked:
                    whole = torch.tensor([*one.context, *one.tokens])
                    with torch.no_grad():
                        logits_SV = model(whole[None, :-1])[0, -len(one.tokens) :].log_softmax(-1)
                    targets_S1 = whole[-len(one.tokens) :, None]
                    alone.append(float(logits_SV.gather(1, targets_S1).double().sum()))
                middle = time.process_time()
                together = [score.log_likelihood_nats for score in scorer.scores(asked)]
                rounds.append((middle - began, time.process_time() - middle))
                difference = max(difference, *(abs(a - b) for a, b in zip(alone, together, strict=True)))
            ratios = sorted(one / other for one, other in rounds)
            one, other = (1e3 * statistics.median(column) / len(asked) for column in zip(*rounds, strict=True))
            shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})"
            print(
                f"{name:<8}{shots:<14}{one:>10.1f} ms{other:>10.1f} ms   {shown:<38} {difference:.0e} nats", flush=True
            )
    print(f"load {os.getloadavg()[0]:.1f}; milliseconds of CPU a request")


if __name__ == "__main__":
    main()
