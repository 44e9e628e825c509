"""Planning 1,000 cells beside plain Hydra's multirun of a no-op job over the same configs, in one interleaved run.

    python benchmarks/planning.py [--rounds 3] [--hydra-jobs 40]

CPU seconds (user + system) of the whole process tree. Ours plans all 1,000 cells, once with an empty store and once
with every cell done; Hydra runs `--hydra-jobs` of them, and its cost a job is the slope between that and a single
job, so that its start-up does not count against it.
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
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

RATIOS = ["1:1", "1:2", "1:3", "1:4", "1:5", "1:6", "1:7", "1:8", "1:9", "1:12"]
RATES = [f"{rate}e-4" for rate in range(1, 11)]


def grid(seeds: int) -> list[str]:
    """The arguments that ask for 10 x 10 x `seeds` cells, in the grammar that both understand."""
    return [
        f"model.ratio={','.join(RATIOS)}",
        f"optim.lr={','.join(RATES)}",
        f"init_seed={','.join(map(str, range(1, seeds + 1)))}",
    ]


def cpu_seconds(command: list[str]) -> tuple[float, str]:
    """User and system time of a command and all its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def ours(store: Path) -> tuple[float, list[dict[str, object]]]:
    """Plan the 1,000 cells against a store."""
    command = [sys.executable, "run.py", "-m", *grid(10), "mode=plan", "plan.format=json", f"store.root={store}"]
    seconds, printed = cpu_seconds(command)
    return seconds, json.loads(printed)


def hydra_multirun(jobs: int, out: Path) -> float:
    """Plain Hydra: its own sweeper and launcher, a job that does nothing."""
    seeds = ",".join(map(str, range(1, jobs + 1)))
    arguments = [
        f"init_seed={seeds}",
        "hydra/sweeper=basic",
        "hydra/launcher=basic",
        f"hydra.sweep.dir={out}",
        "hydra.sweep.subdir=${hydra.job.num}",
    ]
    return cpu_seconds([sys.executable, str(REPO / "benchmarks" / "noop.py"), "-m", *arguments])[0]


def fill(store_root: Path) -> None:
    """Record every one of the cells as done."""
    from hybrid.corpus import stdlib_fingerprint
    from sweeps.cells import expand
    from sweeps.compose import Composer
    from sweeps.store import Store

    store = Store(store_root)
    store.prepare()
    with Composer() as composer:
        runs = expand(grid(10), composer, stdlib_fingerprint=stdlib_fingerprint).runs
    for run in runs:
        run_id = store.publish_spec(run.resolved.run)
        metrics = {"steps": run.resolved.run.train_steps, "val_loss_nats": 2.0, "wall_s": 1.0}
        store.publish_record(
            run_id, {"schema": 1, "run_id": run_id, "status": "done", "metrics": metrics, "cost": {}, "provenance": {}}
        )


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--hydra-jobs", type=int, default=40, help="jobs that Hydra runs a round (default 40)")
    options = parser.parse_args()
    cold, warm, hydra_job = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        done_store = Path(scratch) / "done"
        fill(done_store)
        for round_number in range(options.rounds):
            seconds, cells = ours(Path(scratch) / "empty")
            assert len(cells) == 1000
            assert all(cell["status"] == "new" for cell in cells)
            cold.append(seconds)
            seconds, cells = ours(done_store)
            assert all(cell["status"] == "done" for cell in cells)
            warm.append(seconds)
            one = hydra_multirun(1, Path(scratch) / f"one{round_number}")
            many = hydra_multirun(options.hydra_jobs, Path(scratch) / f"many{round_number}")
            hydra_job.append((many - one) / (options.hydra_jobs - 1))
            print(
                f"round {round_number + 1}: cold {cold[-1]:.2f} s, all done {warm[-1]:.2f} s, "
                f"hydra {hydra_job[-1]:.3f} s a job",
                file=sys.stderr,
            )
    thousand = 1000 * statistics.median(hydra_job)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"CPU seconds, medians of {options.rounds}"
    )
    print(f"plain hydra -m, no-op job, 1,000 cells (from {options.hydra_jobs} a round): {thousand:.0f}")
    for name, times in (("plan, nothing done", cold), ("plan, all done", warm)):
        print(f"{name}, 1,000 cells: {statistics.median(times):.2f}; ratio {thousand / statistics.median(times):.0f}")


if __name__ == "__main__":
    main()
