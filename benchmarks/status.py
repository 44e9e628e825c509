"""`python -m sweeps status NAME` over a store of 1,000 runs of which 300 are live, timed warm.

    python benchmarks/status.py [--rounds 5] [--store DIR] [--profile]

Live runs have a heartbeat, a job that tells of another host (so that nothing can be known of them at once), and a
metrics file of --lines lines; 500 are done, 150 have not begun, 50 have failed. Seconds are wall clock from the start
of the interpreter to its end. Where Slurm is on the PATH it is asked, as `status` asks it: the runs were submitted as
arrays of 250, whose ids no cluster knows.
"""

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

N_RUNS, N_LIVE, N_DONE, N_FAILED = 1000, 300, 500, 50
NAME = "bench"


def build(root: Path, n_lines: int) -> None:
    """A store of runs that nobody trains."""
    from hybrid.corpus import stdlib_fingerprint
    from hybrid.decode import encode
    from sweeps.cells import expand
    from sweeps.compose import Composer
    from sweeps.store import Store, this_process
    from sweeps.submissions import Answer, Intent, Item, Submissions

    store = Store(root)
    store.prepare()
    arguments = [
        f"optim.lr={','.join(f'{i}e-4' for i in range(1, 11))}",
        f"init_seed={','.join(map(str, range(1, N_RUNS // 10 + 1)))}",
    ]
    with Composer() as composer:
        expansion = expand(arguments, composer, stdlib_fingerprint=stdlib_fingerprint)
    runs = expansion.runs
    assert len(runs) == N_RUNS
    store.publish_request(replace(expansion.request, sweep=NAME))
    elsewhere = {**this_process(), "host": "gpu-node", "user": "ada", "lease_s": 60.0}
    submissions = Submissions(store)
    for number in range(1, 5):
        part = runs[(number - 1) * 250 : number * 250]
        items = tuple(
            (
                Item(
                    kind="run",
                    run_id=cell.run_id,
                    name=cell.cell.name,
                    row=cell.cell.row,
                    seed=cell.cell.seed,
                    predicted_hours=3.25,
                ),
            )
            for cell in part
        )
        intent = Intent(
            job_name=f"{NAME}-{number}",
            created_at="2026-11-21T00:00:00+00:00",
            owner=elsewhere,
            sweep=NAME,
            overrides=(),
            tasks=items,
            execution=encode(part[0].resolved.execution),
            resources={},
            snapshot=None,
            checkpoints="",
            data="",
        )
        submissions.publish(number, intent)
        submissions.publish_answer(number, Answer(job_id=str(number)))
    for i, cell in enumerate(runs):
        spec = cell.resolved.run
        run_id = store.publish_spec(spec)
        if i >= N_LIVE + N_DONE + N_FAILED:
            continue
        attempt = store.claim(run_id, 0)
        assert attempt is not None
        job = {
            **elsewhere,
            "started_at": "2026-11-21T00:00:00+00:00",
            "exec": encode(cell.resolved.execution),
            "slurm": {"array_job_id": "1", "array_task_id": i, "job_id": "1", "restart_count": 0, "node": "n1"},
        }
        (attempt.directory / "job.json").write_text(json.dumps(job))
        batch = spec.batch_tokens
        lines = [
            {
                "step": j,
                "tokens": j * batch,
                "train_loss_nats": 3.0 + 1 / j,
                "lr": 1e-3,
                "grad_norm": 1.0,
                "tokens_per_s": 123456.7,
                "wall_s": 10.0 * j,
            }
            for j in range(1, n_lines + 1)
        ]
        (attempt.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if i < N_LIVE:
            (attempt.directory / "heartbeat").write_text("7\n")
        elif i < N_LIVE + N_DONE:
            record = {
                "schema": 1,
                "run_id": run_id,
                "status": "done",
                "attempt": 1,
                "spec": encode(spec),
                "cost": {},
                "metrics": {
                    "steps": spec.train_steps,
                    "tokens": spec.train_tokens,
                    "train_loss_nats": 2.0,
                    "wall_s": 9.0,
                },
                "provenance": {"host": "gpu-node", "exec": job["exec"]},
            }
            (store.record_path(run_id)).write_text(json.dumps(record))
        else:
            error = {
                "class": "oom",
                "message": "OutOfMemoryError: CUDA out of memory",
                "at": "2026-11-21T00:10:00+00:00",
            }
            (attempt.directory / "error.json").write_text(json.dumps(error))


def once(root: Path, *arguments: str) -> tuple[float, float, str]:
    """Seconds of one command by the clock and of the processor, and what it printed.

    Every live run has given a sign of life since the last.
    """
    for path in root.glob("runs/*/*/attempts/*/heartbeat"):
        path.write_text(f"{time.monotonic_ns()}\n")
    command = [sys.executable, "-m", "sweeps", "status", *arguments, "--store", str(root)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--store", type=Path, help="built there, and kept; used as it is if it is there already")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = given.store or Path(directory) / "store"
        os.environ["XDG_CACHE_HOME"] = directory
        if not root.exists():
            build(root, given.lines)
        *_, text = once(root, NAME)
        print(text.splitlines()[0])
        for arguments in ((NAME,), (NAME, "--json"), ()):
            walls, processor, _ = zip(*(once(root, *arguments) for _ in range(given.rounds)), strict=True)
            shown = " ".join(("status", *arguments))
            print(
                f"{shown:24} {statistics.median(walls):.2f} s (median of {given.rounds}; {min(walls):.2f} at best), "
                f"of the processor {statistics.median(processor):.2f} s"
            )
        if given.profile:
            from sweeps.__main__ import main as command

            profile = cProfile.Profile()
            profile.enable()
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                command(["status", NAME, "--store", str(root)])
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)


if __name__ == "__main__":
    main()
