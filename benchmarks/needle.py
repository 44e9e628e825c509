"""The needle grid of toy models in batches, beside one prompt at a time: seconds a prompt, in turns in one process.

    python benchmarks/needle.py [--models inter mamba llama] [--trials 4] [--rounds 3]

Models are of scale=toy with the weights that they begin with: what they answer does not matter to how long it takes.
The haystack is random bytes. A thread of PyTorch unless OMP_NUM_THREADS says otherwise; the load at the beginning and
the end is printed, and ratios of one round are of one moment.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

LENGTHS, DEPTHS, NEW_TOKENS = (128, 256, 448), (0, 50, 100), 20
BATCH_TOKENS = 1 << 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["inter", "mamba", "llama"])
    parser.add_argument("--trials", type=int, default=4, help="prompts of a cell that are given one at a time")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import numpy as np
    import torch

    from hybrid.config import read_config
    from hybrid.data.shards import Shards
    from hybrid.data.stdlib import StdlibData
    from hybrid.evals.needle import TextNeedles, evaluate_needle
    from hybrid.train.loop import build_model
    from sweeps.compose import Composer

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    text = np.random.default_rng(0).integers(0, 256, size=20_000).astype(np.uint16)
    data = StdlibData(Shards(directory=REPO, training=text, validation=text), 256)
    print(f"load {os.getloadavg()[0]:.1f}; lengths {LENGTHS}, depths {DEPTHS}, {NEW_TOKENS} new tokens")
    print("model   one at a time   in batches   ratio, median of rounds (least, most)")
    for name in options.models:
        with Composer() as composer:
            config = composer.compose([f"model={name}"])
        run = read_config(config, stdlib_fingerprint=lambda: "0" * 16)
        model = build_model(run.run, run.execution)
        model.init_weights(1)

        def seconds_a_prompt(trials: int, batch_tokens: int, model: object = model) -> float:
            needles = TextNeedles(data, text, seed=1)
            began = time.perf_counter()
            evaluate_needle(
                model,
                needles,
                lengths=LENGTHS,
                depths_percent=DEPTHS,
                trials=trials,
                new_tokens=NEW_TOKENS,
                batch_tokens=batch_tokens,
            )
            return (time.perf_counter() - began) / (trials * len(LENGTHS) * len(DEPTHS))

        rounds = []
        for _ in range(options.rounds):
            alone = seconds_a_prompt(options.trials, 1)
            # As many as fill batches: a grid has a hundred trials of a cell.
            rounds.append((alone, seconds_a_prompt(8 * options.trials, BATCH_TOKENS)))
        ratios = sorted(alone / together for alone, together in rounds)
        alone, together = (1e3 * statistics.median(column) for column in zip(*rounds, strict=True))
        shown = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f}, {ratios[-1]:.1f})"
        print(f"{name:<8}{alone:>10.1f} ms{together:>10.1f} ms   {shown}", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
