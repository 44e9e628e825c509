"""Cached decoding on the CPU: ours beside transformers' Bamba of the same shape and weights, in turns in one process.

    python benchmarks/decode.py [--rounds 7] [--steps 32] [--models '1 of 6' Mamba2] [--profile]

Six layers, d_model 256, batch 4, prompt 64: one or two of the six are attention, the others Mamba-2. Its Bamba keeps no
cache without attention, so beside a pure Mamba-2, without ffn, stands its Mamba2. The weights are random; they are
carried over by `hybrid.exported`, as a file that transformers loads, and both are shown the same tokens, so that the
logits of every step are compared (relative to the largest), and the benchmark fails where they differ. A step is the
model's forward of one token a sequence from a cache: of transformers its forward loop, without its `generate`, which
does more. Time is CPU time of one thread unless OMP_NUM_THREADS says otherwise, then wall time; ratios are of one
round, in which the two take turns step by step.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here needs the network

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

BATCH, PROMPT = 4, 64
TOLERANCE = 1e-5
SHAPE = (
    "scale=toy",
    "model.depth=6",
    "model.d_model=256",
    "model.mamba.d_ssm=512",
    "model.mamba.head_dim=64",
    "model.mamba.d_state=64",
    "model.attention.n_heads=4",
    "model.attention.n_kv_heads=2",
    "model.attention.head_dim=64",
    "model.ffn.d_ffn=768",
    "model.max_param_mismatch=1",
)
MODELS = {
    "1 of 6": ("model=inter", "model.ratio=1:5"),
    "2 of 6": ("model=inter", "model.ratio=1:2"),
    "Mamba2": ("model=mamba", "model.ffn=null"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=32, help="tokens of a round, after the prompt")
    parser.add_argument("--profile", action="store_true", help="show where the time of our step goes")
    options = parser.parse_args()
    import torch

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    print(f"load {os.getloadavg()[0]:.1f}; {threads} thread(s), batch {BATCH}, prompt {PROMPT}, {options.steps} steps")
    print("model    layout    ours    Bamba's forward   ratio, median of rounds (least, most)   largest difference")
    for name in options.models:
        ours, theirs, layout = pair(MODELS[name])
        tokens_BL = torch.randint(258, (BATCH, PROMPT + options.steps), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            # The first round warms up, and compares.
            rounds = [round_of(ours, theirs, tokens_BL, clock) for _ in range(1 + options.rounds)]
            if options.profile:
                profile(ours, tokens_BL)
        difference = max(one[2] for one in rounds)
        if not difference < TOLERANCE:
            raise SystemExit(f"{name}: logits differ by {difference:.1e} of the largest: expected below {TOLERANCE}")
        ratios = sorted(theirs_s / ours_s for ours_s, theirs_s, _ in rounds[1:])
        ours_ms, theirs_ms = (1e3 * statistics.median(one[i] for one in rounds[1:]) for i in (0, 1))
        shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})"
        print(
            f"{name:<9}{layout:<9}{ours_ms:>5.2f} ms{theirs_ms:>13.2f} ms       {shown:<39}{difference:.0e}", flush=True
        )
    print(f"load {os.getloadavg()[0]:.1f}")


def pair(overrides: tuple[str, ...]) -> tuple[Any, Any, str]:
    """Our model, transformers' with its weights, and the layout."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from hybrid import exported
    from hybrid.config import read_config
    from hybrid.cost import layout_of
    from hybrid.train.loop import build_model
    from sweeps.compose import Composer

    disable_progress_bar()
    with Composer() as composer:
        config = composer.compose([*SHAPE, *overrides])
    resolved = read_config(config, stdlib_fingerprint=lambda: "0" * 16)
    model = build_model(resolved.run, resolved.execution)
    model.init_weights(1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.05, generator=generator))
    with tempfile.TemporaryDirectory() as directory:
        exported.write(resolved.run, model, Path(directory), exported.Tokens(bos=None, eos=None, files={}))
        theirs = AutoModelForCausalLM.from_pretrained(directory).eval()
    return model.eval(), theirs, layout_of(resolved.run.model)


def round_of(ours: Any, theirs: Any, tokens_BL: Any, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Seconds a step, ours and theirs, medians of turns; the largest difference of logits over the largest logit."""
    import torch

    prompt_BL = tokens_BL[:, :PROMPT]
    state = ours.init_state(BATCH, tokens_BL.shape[1])
    ours_B1V, state = ours.step(prompt_BL, state, last_only=True)
    said = theirs(prompt_BL, use_cache=True, logits_to_keep=1)
    is_bamba = "past_key_values" in said
    cache = "past_key_values" if is_bamba else "cache_params"
    differences, ours_s, theirs_s = [difference_of(ours_B1V, said.logits)], [], []
    for i in range(PROMPT, tokens_BL.shape[1]):
        token_B1 = tokens_BL[:, i : i + 1]
        # Its Bamba takes a token without a position for the first one.
        positions = {"position_ids": torch.tensor([[i]])} if is_bamba else {}
        began = clock()
        ours_B1V, state = ours.step(token_B1, state)
        middle = clock()
        said = theirs(token_B1, use_cache=True, **{cache: said[cache]}, **positions)
        theirs_s.append(clock() - middle)
        ours_s.append(middle - began)
        differences.append(difference_of(ours_B1V, said.logits))
    return statistics.median(ours_s), statistics.median(theirs_s), max(differences)


def difference_of(ours_B1V: Any, theirs_B1V: Any) -> float:
    return float((ours_B1V - theirs_B1V).abs().max() / theirs_B1V.abs().max())


def profile(model: Any, tokens_BL: Any) -> None:
    import torch

    state = model.init_state(BATCH, tokens_BL.shape[1])
    _, state = model.step(tokens_BL[:, :PROMPT], state, last_only=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for i in range(PROMPT, tokens_BL.shape[1]):
            _, state = model.step(tokens_BL[:, i : i + 1], state)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=40))


if __name__ == "__main__":
    main()
