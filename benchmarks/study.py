"""Planning the whole study, ten thousand cells, and the cost of one spec; beside composing each cell with Hydra.

    python benchmarks/study.py [--rounds 3] [--hydra-cells 20]

Wall and CPU seconds of whole commands: `python -m sweeps plan +sweep=paper sweep.seeds=3`, and ten thousand cells over
ratios, learning rates and seeds. Hydra's side composes `--hydra-cells` of the study's cells in one process, interpreter
and imports not counted. The cost of a spec is that of a 3B hybrid with nothing cached.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

STUDY = ["+sweep=paper", "sweep.seeds=3"]
TEN_THOUSAND = [
    "model.ratio=1:1,1:2,1:3,1:4,1:5,1:6,1:7,1:8,1:9,1:12",
    f"optim.lr={','.join(f'{rate}e-4' for rate in range(1, 11))}",
    "sweep.seeds=100",
]


def planned(arguments: list[str], store: Path) -> tuple[float, float, int, int]:
    """Wall and CPU seconds of a plan, its cells, and its distinct runs."""
    command = [sys.executable, "-m", "sweeps", "plan", "--json", "--store", str(store), *arguments]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cells = json.loads(done.stdout)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall, cpu, len(cells), len({cell["run_id"] for cell in cells})


def hydra_seconds_a_cell(count: int) -> float:
    """Hydra's own composition of the study's cells, each by itself."""
    from sweeps.cells import expand
    from sweeps.compose import Composer

    with Composer() as composer:
        runs = expand(["+sweep=paper"], composer, stdlib_fingerprint=lambda: "0" * 16).runs
        chosen = runs[:: len(runs) // count][:count]
        began = time.monotonic()
        for run in chosen:
            composer.compose_by_hydra(run.arguments)
        return (time.monotonic() - began) / len(chosen)


def spec_cost_ms() -> float:
    """Milliseconds for the cost of one 3B hybrid, nothing cached."""
    from hybrid import cost
    from sweeps.cells import expand
    from sweeps.compose import Composer

    with Composer() as composer:
        (run,) = expand(["model=inter", "scale=3b"], composer, stdlib_fingerprint=lambda: "0" * 16).runs
    cached = [value for value in vars(cost).values() if callable(getattr(value, "cache_clear", None))]
    times = []
    for _ in range(200):
        for function in cached:
            function.cache_clear()
        began = time.perf_counter()
        cost.run_cost(run.resolved.run)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--hydra-cells", type=int, default=20, help="cells that Hydra composes a round (default 20)")
    options = parser.parse_args()
    study, many, by_hydra = [], [], []
    with tempfile.TemporaryDirectory() as store:
        for _ in range(options.rounds):
            study.append(planned(STUDY, Path(store)))
            many.append(planned(TEN_THOUSAND, Path(store)))
            by_hydra.append(hydra_seconds_a_cell(options.hydra_cells))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians of {options.rounds}"
    )
    each = statistics.median(by_hydra)
    for name, times in (("the whole study", study), ("ten thousand cells", many)):
        wall, cpu = (statistics.median(column) for column in list(zip(*times, strict=True))[:2])
        cells, runs = times[0][2:]
        print(
            f"{name}: {cells:,} cells, {runs:,} runs: {wall:.2f} s wall, {cpu:.2f} s CPU; "
            f"composing each with Hydra alone: {each * cells:.0f} s, {each * cells / cpu:.0f} times as long"
        )
    print(f"cost of one 3B spec, nothing cached: {spec_cost_ms():.3f} ms")


if __name__ == "__main__":
    main()
