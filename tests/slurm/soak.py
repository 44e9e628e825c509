#!/usr/bin/env python3
"""A soak: tiny runs on a real cluster under random faults, submitted again as a cron job would, until all are recorded.

    python tests/slurm/soak.py                        200 runs; the cluster is brought up, if it does not run
    python tests/slurm/soak.py --runs 40 --seed 3     other faults, at other times

Runs are submitted as arrays of three kinds: a run a task, several runs a task, and with a throttle. Faults come at
random times from a seeded generator, on whatever runs then. In the end every run has to be recorded once, with the
losses that it has undisturbed, to the last bit. What was done and found is printed; any difference is an exit code
above 0.
"""

import argparse
import contextlib
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from sweeps.store import Store
from sweeps.submissions import Submissions
from tests.slurm.cluster import Cluster, ClusterError, Settings, wait_until
from tests.slurm.sweep import REPO, Sweep, differences, undisturbed
from tests.slurm.told import tiny_sweep

STEPS: Final = 100
"""A run takes 10 s, or more, after it has started: most of it asleep, and for faults to meet it."""

CHECKPOINT_S: Final = 4
CRON_S: Final = 20.0
FAULTS_UNTIL: Final = 0.7
"""Of the time that there is, unless told: what is left is for the last runs to come back."""
MOST_NODES_BROKEN: Final = 1

KINDS: Final = {
    "kill -9 of a worker": 4,
    "kill -9 of all of a task": 2,
    "scontrol requeue": 4,
    "preemption of a node": 3,
    "scancel": 3,
    "node crashes": 2,
    "node's daemon dies": 2,
    "controller restarts": 1,
    "slurmdbd restarts": 1,
}
"""How likely each is, in parts of all."""

INTERRUPTING: Final = frozenset(KINDS) - {"node's daemon dies", "controller restarts", "slurmdbd restarts"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the runs: a request with its own settings of the launcher."""

    sweep: Sweep
    settings: tuple[str, ...]

    def command(self) -> list[str]:
        return self.sweep.command(*self.settings)


@dataclass(kw_only=True)
class Hit:
    """A run that a fault met: the newest attempt at it by then, and how many steps that had told of."""

    run_id: str
    attempt: int
    lines: int
    recovered_s: float | None = None


@dataclass(kw_only=True)
class Fault:
    kind: str
    at_s: float
    where: str
    hits: list[Hit] = field(default_factory=list)


class Soak:
    """One soak, in a directory of its own; `run` gives what is wrong in the end."""

    def __init__(
        self,
        cluster: Cluster,
        directory: Path,
        *,
        runs: int,
        minutes: float,
        seed: int,
        every_s: float,
        fault_minutes: float | None = None,
    ) -> None:
        self.cluster, self.directory = cluster, directory
        self.store = Store(directory / "store")
        self.parts = parts(self.store, directory, runs)
        self.minutes, self.every_s = minutes, every_s
        self.fault_minutes = FAULTS_UNTIL * minutes if fault_minutes is None else fault_minutes
        self.random = random.Random(seed)
        self.faults: list[Fault] = []
        self.submitted = Counter[str]()
        self.status = ""
        self.wall_s = 0.0
        self._began = time.monotonic()
        self._broken: dict[str, float] = {}
        self._over = threading.Event()

    # --- what is done ---

    def run(self) -> list[str]:
        """Everything; what is wrong, a line each. Raises ClusterError where the cluster itself does not come back."""
        (self.directory / "told").write_text("slow")
        self._began = time.monotonic()
        self._submit()
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            self._disturb()
        finally:
            self.wall_s = self._now()
            self._over.set()
            watcher.join()
            for node in list(self._broken):
                self._mend(node)
        return self._problems()

    def _disturb(self) -> None:
        """Faults, mended nodes and submissions as they fall due, until all is recorded or the time is up."""
        end_s = 60 * self.minutes
        next_fault_s, next_cron_s = self._now() + self.every_s, self._now() + CRON_S
        while not self.is_done() and self._now() < end_s:
            for node, until_s in list(self._broken.items()):
                if self._now() > until_s:
                    self._mend(node)
            if next_fault_s < self._now() < 60 * self.fault_minutes:
                self._fault()
                next_fault_s = self._now() + self.random.expovariate(1 / self.every_s)
            if self._now() > next_cron_s:
                self._submit()
                next_cron_s = self._now() + CRON_S
            if not self.status and self._recorded() >= len(self.run_ids) // 2:
                self.status = self._ask_status()
            time.sleep(0.3)

    def _submit(self) -> None:
        """What a cron job does: every request again, whatever became of it."""
        for part in self.parts:
            if self.store.requests(part.sweep.name) and part.sweep.is_done():
                continue
            done = subprocess.run(part.command(), cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
            self.submitted["times"] += 1
            if done.returncode:
                self.submitted["refused"] += 1
                print(f"{self._now():6.0f} s  submit: {done.stderr.strip().splitlines()[-1][:150]}", flush=True)

    def _fault(self) -> None:
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        running = self._running()
        nodes = sorted(set(running.values()))
        if not running or (kind.startswith("node") and len(self._broken) >= MOST_NODES_BROKEN):
            return
        task, node = self.random.choice(sorted(running)), self.random.choice(nodes)
        of_node = [job for job, where in running.items() if where == node]
        do: Callable[[], object]
        match kind:
            case "kill -9 of a worker":
                where, met, do = task, [task], partial(self._kill_worker, task)
            case "kill -9 of all of a task":
                where, met, do = task, [task], partial(self._kill_task, task)
            case "scontrol requeue" | "scancel":
                where, met, do = task, [task], partial(self.cluster.run, *kind.split(), task)
            case "preemption of a node":
                where, met, do = node, of_node, partial(self._preempt, node)
            case "node crashes":
                where, met, do = node, of_node, partial(self.cluster.crash_node, node)
            case "node's daemon dies":
                where, met, do = node, of_node, partial(self.cluster.lose_daemon, node)
            case _:
                where, met, do = "", list(running), partial(self._restart, kind.split()[0])
        fault = Fault(kind=kind, at_s=self._now(), where=where, hits=self._hits(met))
        print(f"{fault.at_s:6.0f} s  {kind} {where} ({len(fault.hits)} runs)", flush=True)
        try:
            found = do()
        except ClusterError as error:  # the job had ended before
            print(f"          {str(error).splitlines()[-1]}", flush=True)
            return
        if kind.startswith("node"):
            self._broken[node] = self._now() + self.random.uniform(3, 45)
        if kind == "kill -9 of a worker":
            fault.hits = [hit for hit in fault.hits if hit.run_id == found]
        self.faults.append(fault)

    def _kill_worker(self, task: str) -> str:
        """Kill one run's process; gives the run."""
        for hit in self._hits([task]):
            job = self.store.job(hit.run_id, hit.attempt) if hit.attempt else None
            if job is not None and job["pid"] in self.cluster.job_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(job["pid"], signal.SIGKILL)
                    return hit.run_id
        raise ClusterError("none of its runs has begun")

    def _kill_task(self, task: str) -> None:
        raw_id = self.cluster.job(task)["JobId"]
        for pid in self.cluster.job_pids():
            with contextlib.suppress(OSError):
                if f"SLURM_JOB_ID={raw_id}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)

    def _preempt(self, node: str) -> None:
        options = ("-p", "high", "--exclusive", f"--nodelist={node}", "--time=1", "--output=/dev/null")
        self.cluster.submit(*options, "--wrap", "sleep 2")

    def _restart(self, daemon: str) -> None:
        self.cluster.lose_daemon("slurmctld" if daemon == "controller" else daemon)
        time.sleep(self.random.uniform(0, 8))
        self.cluster.up()

    def _mend(self, node: str) -> None:
        self.cluster.revive_node(node)
        del self._broken[node]

    # --- what there is ---

    @property
    def run_ids(self) -> list[str]:
        return [run_id for part in self.parts for run_id in part.sweep.run_ids]

    def is_done(self) -> bool:
        return all(part.sweep.is_done() for part in self.parts)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _recorded(self) -> int:
        return sum(self.store.record_path(run_id).exists() for run_id in self.run_ids)

    def _running(self) -> dict[str, str]:
        """The tasks that run, and where."""
        try:
            rows = self.cluster.run("squeue", "-h", "-r", "-t", "RUNNING", "-p", "main", "-o", "%i %N").splitlines()
        except ClusterError:
            return {}
        found = dict(row.split() for row in rows if len(row.split()) == 2)
        return {task: node for task, node in found.items() if node not in self._broken}

    def _hits(self, tasks: Iterable[str]) -> list[Hit]:
        """The runs of these tasks that are not recorded."""
        wanted, found = set(tasks), []
        for submission in Submissions(self.store).all():
            for index, item in submission.items():
                if submission.task_job_id(index) in wanted and not self.store.record_path(item.run_id).exists():
                    attempt = self.store.last_attempt(item.run_id)
                    lines = len(self.store.attempts(item.run_id).metrics(attempt)[1]) if attempt else 0
                    found.append(Hit(run_id=item.run_id, attempt=attempt, lines=lines))
        return found

    def _watch(self) -> None:
        """See each run that was met make its next step, or be recorded."""
        while not self._over.wait(0.5):
            self._look()
        self._look()

    def _look(self) -> None:
        for fault in list(self.faults):
            for hit in fault.hits:
                if hit.recovered_s is None and self._goes_on(hit, later=fault.kind in INTERRUPTING):
                    hit.recovered_s = self._now() - fault.at_s

    def _goes_on(self, hit: Hit, *, later: bool) -> bool:
        """Whether the run has made a step since: in a `later` attempt, where the fault ended the one that it met."""
        if self.store.record_path(hit.run_id).exists():
            return True
        newest = self.store.last_attempt(hit.run_id)
        if newest == 0 or (later and newest == hit.attempt):
            return False
        made = len(self.store.attempts(hit.run_id).metrics(newest)[1])
        return made > (hit.lines if newest == hit.attempt else 0)

    def _ask_status(self) -> str:
        base = [sys.executable, "-m", "sweeps", "status", "--store", str(self.store.root)]
        told = []
        busiest = max(self.parts, key=lambda part: part.sweep.statuses()["running"])
        for words in ([], [busiest.sweep.request.sweep]):
            done = subprocess.run([*base, *words], cwd=REPO, capture_output=True, text=True, timeout=60, check=False)
            told.append(f"$ python -m sweeps status {' '.join(words)}\n{done.stdout}{done.stderr}")
        return "\n".join(told)

    # --- what was found ---

    def _problems(self) -> list[str]:
        found: list[str] = []
        if not self.is_done():
            found.append(f"{len(self.run_ids) - self._recorded()} runs have no record after {self.wall_s:.0f} s")
        recorded = sorted(path.parent.name for path in self.store.root.glob("runs/*/*/record.json"))
        if recorded != sorted(set(self.run_ids)):
            found.append(f"{len(recorded)} records of {len(self.run_ids)} runs")
        for number, part in enumerate(self.parts):
            found += differences(part.sweep, undisturbed(part.sweep, self.directory / f"undisturbed-{number}"))
        jobs = {job for part in self.parts for job in part.sweep.job_ids()}
        try:
            wait_until(lambda: not jobs & self._queued(), "no task to be left", 90)
        except ClusterError:
            found.append(f"jobs are left over: {', '.join(sorted(jobs & self._queued()))}")
        return found

    def _queued(self) -> set[str]:
        return set(self.cluster.run("squeue", "-h", "-r", "-p", "main", "-o", "%F").split())

    def report(self, problems: Sequence[str]) -> str:
        """What was done and found, as text."""
        attempts, classes, made = Counter[int](), Counter[str](), 0
        for run_id in self.run_ids:
            last, record = self.store.last_attempt(run_id), self.store.record(run_id) or {}
            attempts[last] += 1
            for number in range(1, last + 1):
                error = self.store.error(run_id, number) or {"class": "without a word"}
                classes["with a result" if number == record.get("attempt") else error["class"]] += 1
                made += len(self.store.attempts(run_id).metrics(number)[1])
        needed = sum(len(self.store.metrics(run_id)) for run_id in self.run_ids)
        head = ("fault", "times", "runs met", "seconds to the next step: median", "longest", "not seen")
        rows = [head, *(self._row(kind) for kind in KINDS if any(f.kind == kind for f in self.faults))]
        total = [hit for fault in self.faults for hit in fault.hits]
        rows.append(("all", str(len(self.faults)), str(len(total)), *seconds(total)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        table = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        submissions = Submissions(self.store).all()
        lines = [
            table,
            "",
            f"{self._recorded()} of {len(self.run_ids)} runs recorded after {self.wall_s:.0f} s, "
            f"{len(submissions)} jobs of {sum(len(one.intent.tasks) for one in submissions)} tasks, "
            f"submitted {self.submitted['times']} times, {self.submitted['refused']} of them refused",
            f"attempts: {sum(n * k for n, k in attempts.items())}; runs by attempts: "
            f"{', '.join(f'{k} with {n}' for n, k in sorted(attempts.items()))}",
            "how attempts ended: "
            + ", ".join(
                f"{n} {'with a result, or taken over' if k == 'none' else k}" for k, n in classes.most_common()
            ),
            f"lines of metrics: {made} made, {needed} needed: {made / max(needed, 1) - 1:.0%} trained again",
            f"differences from undisturbed runs: {len(problems) or 'none'}",
            *problems[:20],
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _row(self, kind: str) -> tuple[str, ...]:
        faults = [fault for fault in self.faults if fault.kind == kind]
        hits = [hit for fault in faults for hit in fault.hits]
        return (kind, str(len(faults)), str(len(hits)), *seconds(hits))


def seconds(hits: Sequence[Hit]) -> tuple[str, str, str]:
    """Median and longest recovery, and how many were not seen to recover."""
    known = sorted(hit.recovered_s for hit in hits if hit.recovered_s is not None)
    if not known:
        return "-", "-", str(len(hits))
    return f"{statistics.median(known):.0f}", f"{known[-1]:.0f}", str(len(hits) - len(known))


def parts(store: Store, directory: Path, runs: int) -> list[Part]:
    """Two fifths of the runs a task each, two fifths packed by four, one fifth with a throttle."""
    packed = 2 * runs // 5
    counts = {"soak-single": runs - packed - runs // 5, "soak-packed": packed, "soak-throttled": runs // 5}
    more = {
        "soak-single": (),
        "soak-packed": ("hydra.launcher.runs_per_gpu=4",),
        "soak-throttled": ("hydra.launcher.throttle=4",),
    }
    saved = f"exec.checkpoint_every_s={CHECKPOINT_S}"
    told = f'hydra.launcher.setup=["export TOLD={directory}/told"]'
    return [
        Part(
            # Another rate makes them other runs.
            sweep=tiny_sweep(store, name, f"optim.lr={1 + place}e-3", saved, runs=count, steps=STEPS),
            settings=(told, *more[name]),
        )
        for place, (name, count) in enumerate(counts.items())
        if count
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=25.0, help="give up after so many")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--every", type=float, default=6.0, metavar="SECONDS", help="between faults, on average")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where all goes (default: a temporary directory)")
    given = parser.parse_args(arguments)
    if given.runs < 5 or not given.minutes > 0 or not given.every > 0 or not math.isfinite(given.minutes):
        parser.error("expected at least 5 runs, and minutes and seconds above 0")
    directory = Path(given.store or tempfile.mkdtemp(prefix="hybrid-soak-")).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "store").exists():
        parser.error(f"--store {directory}: there is a store already: expected none")
    cluster = Cluster()
    with cluster.use(Settings.read({}, Settings())):
        environment = cluster.environment()
        os.environ.clear()
        os.environ.update(environment)
        soak = Soak(cluster, directory, runs=given.runs, minutes=given.minutes, seed=given.seed, every_s=given.every)
        problems = soak.run()
    text = soak.report(problems)
    print(f"\n{text}\n\nstore: {directory}; a status from the middle: {directory / 'status.txt'}")
    (directory / "status.txt").write_text(soak.status)
    (directory / "report.txt").write_text(text + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
