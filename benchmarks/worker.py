"""What the worker itself costs a run: claim, lease, logs, provenance, record; in processes that train one run each.

    python benchmarks/worker.py [--runs 7] [--store DIR]

Counted is all the time of `run_one` but for that of training, model, data, checkpoints and final weights, and but for
imports, which are done before. The aim is below 0.2 s a run.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN = [
    "data=recall",
    "data.n_symbols=16",
    "data.n_pairs=2",
    "model.ratio=1:1",
    "model.depth=2",
    "model.d_model=16",
    "model.ffn=null",
    "model.attention.n_heads=2",
    "model.attention.head_dim=8",
    "model.mamba.d_ssm=32",
    "model.mamba.head_dim=8",
    "model.mamba.d_state=4",
    "seq_len=16",
    "batch_tokens=64",
    "budget.tokens=640",
]


def one(root: Path, seed: int) -> tuple[float, float]:
    """Train one run of ten steps in this process; seconds of the worker itself, and of all."""
    import torch
    import torch._dynamo  # the first optimiser loads it
    import torch._meta_registrations  # and the first model this

    import hybrid.data
    import hybrid.train.checkpoint
    import hybrid.train.loop
    import hybrid.train.preflight
    from hybrid.config import read_config
    from sweeps.compose import Composer
    from sweeps.stopping import StopFlag
    from sweeps.store import Store
    from sweeps.worker.runs import run_one

    torch.set_num_threads(1)
    with Composer() as composer:
        resolved = read_config(composer.compose([*RUN, f"init_seed={seed}"]), stdlib_fingerprint=str)
    inside = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                inside += time.perf_counter() - began

        return call

    for module, name in (
        (hybrid.train.loop, "train"),
        (hybrid.data, "open_data"),
        (hybrid.train.checkpoint, "save_final_weights"),
    ):
        setattr(module, name, timed(getattr(module, name)))
    store = Store(root)
    store.prepare()
    began = time.perf_counter()
    status = run_one(store, resolved.run, resolved.execution, stop=StopFlag(), progress=lambda *_: None)
    total = time.perf_counter() - began
    assert status == "done"
    return total - inside, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--store", type=Path, help="a directory on the file system that is to be measured")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seed is not None:
        print(*one(options.store, options.seed))
        return
    with tempfile.TemporaryDirectory(dir=options.store) as directory:
        measured = []
        for seed in range(1, options.runs + 1):
            command = [sys.executable, __file__, "--store", directory, "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            measured.append(tuple(map(float, done.stdout.split())))
    own, total = zip(*measured, strict=True)
    median_ms, all_ms = (1000 * statistics.median(seconds) for seconds in (own, total))
    spread = f"{1000 * min(own):.0f} to {1000 * max(own):.0f}"
    print(f"{options.runs} runs, a process each: the worker itself {median_ms:.0f} ms ({spread}) of {all_ms:.0f} ms")


if __name__ == "__main__":
    main()
