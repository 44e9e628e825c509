"""Small sweeps on the cluster of the tests: submitted as a user would, and compared with undisturbed ones."""

import fcntl
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.store import Request, Store
from sweeps.submissions import Submissions
from tests.slurm.cluster import wait_until

REPO = Path(__file__).resolve().parent.parent.parent
SMALL = (
    "stop=null",
    "batch_tokens=256",
    "schedule.warmup_tokens=1024",
    "exec.checkpoint_every_s=2",
    "exec.heartbeat_s=1",
    "exec.lease_s=6",
    "exec.log_every_steps=5",
)
"""Of conf/sweep/demo.yaml: a step takes about 5 ms."""

STEP_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A request of a store, the newest of its `name` if it has one, with the words that ask for it."""

    store: Store
    overrides: tuple[str, ...]
    name: str | None = None

    def command(self, *more: str) -> list[str]:
        """The command that submits it."""
        words = ["-m", "sweeps", "submit", "--store", str(self.store.root), "--on", "slurm"]
        return [sys.executable, *words, *self.overrides, *more]

    def submit(self, *more: str, code: int = 0, timeout_s: float = 120) -> str:
        """Submit what is missing; gives what was said."""
        return ask(self.command(*more), code, timeout_s)

    def ask(self, *words: str, code: int = 0) -> str:
        """`python -m sweeps WORDS` on the store; gives what was said and printed."""
        return ask([sys.executable, "-m", "sweeps", words[0], "--store", str(self.store.root), *words[1:]], code)

    @property
    def request(self) -> Request:
        return self.store.requests(self.name)[-1]

    @property
    def run_ids(self) -> list[str]:
        return [cell.run_id for cell in self.request.cells if cell.run_id is not None]

    def job_ids(self) -> list[str]:
        """The (array) jobs that were submitted, oldest first."""
        return [job for job in (one.job_id for one in Submissions(self.store).all()) if job is not None]

    def statuses(self) -> Counter[str]:
        """How many runs have a record, or what else the store says of them."""
        return Counter(self.store.status(run_id) for run_id in self.run_ids)

    def wait(self, timeout_s: float = 120) -> None:
        """Until every run has a record."""
        wait_until(self.is_done, "all runs are recorded", timeout_s, lambda: self.explain())

    def is_done(self) -> bool:
        return all(self.store.record_path(run_id).exists() for run_id in self.run_ids)

    def explain(self) -> str:
        """The end of what jobs printed and attempts logged, for a test that fails."""
        files = [*self.store.root.glob("submissions/*/*.out"), *self.store.root.glob("runs/*/*/attempts/*/log.txt")]
        return "\n".join(f"--- {path}\n{path.read_text()[-2000:]}" for path in files)

    def attempts(self) -> dict[str, int]:
        """How many attempts were made at each run."""
        return {run_id: self.store.last_attempt(run_id) for run_id in self.run_ids}


def ask(command: Sequence[str], code: int = 0, timeout_s: float = 120) -> str:
    """Run a command from the repository; gives all that it said. Fails where its exit code is another."""
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=timeout_s, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}: {' '.join(command)}\n{said}"
    return said


ROWS = ("attention 2nd", "attention 3rd", "no attention")


def small_sweep(directory: Path, *overrides: str, rows: int = 3, steps: int = 40, seeds: int = 2) -> Sweep:
    """Some rows of the demo at so many steps and seeds, in a store of its own."""
    words = ("+sweep=demo", f"sweep.only=[{','.join(ROWS[:rows])}]", f"sweep.seeds={seeds}")
    length = f"budget.tokens={steps * STEP_TOKENS}"
    return Sweep(store=Store(directory / "store"), overrides=(*words, *SMALL, length, *overrides))


def losses(store: Store, run_id: str) -> list[tuple[int, float]]:
    """Steps with the training loss, of all attempts joined."""
    return [(line["step"], line["train_loss_nats"]) for line in store.metrics(run_id) if "train_loss_nats" in line]


def undisturbed(sweep: Sweep, directory: Path) -> Store:
    """A store in which the same runs were trained here, in one go; the tests of one session share it."""
    session = next((path for path in directory.parents if re.fullmatch(r"pytest-\d+", path.name)), directory)
    session.mkdir(parents=True, exist_ok=True)
    store = Store(session / "undisturbed")
    words = ["-m", "sweeps", "submit", "--store", str(store.root), "--on", "local"]
    with (session / "undisturbed.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if any(store.record(run_id) is None for run_id in sweep.run_ids):
            ask([sys.executable, *words, *sweep.overrides], timeout_s=600)
    return store


def assert_whole(sweep: Sweep, reference: Store) -> None:
    """Every run is recorded once, none is lost, and its losses and metrics are those of the undisturbed one."""
    assert differences(sweep, reference) == []
    recorded = {path.parent.name for path in sweep.store.root.glob("runs/*/*/record.json")}
    assert recorded == set(sweep.run_ids)


def differences(sweep: Sweep, reference: Store) -> list[str]:
    """Where the sweep's runs are not those of the reference, a line each; that one has no record, too."""
    found = []
    for run_id in sweep.run_ids:
        ours, theirs = sweep.store.record(run_id), record(reference, run_id)
        if ours is None:
            found.append(f"{run_id}: no record")
            continue
        if ours["status"] != theirs["status"]:
            found.append(f"{run_id}: {ours['status']}, undisturbed {theirs['status']}")
        for metric in ("steps", "tokens", "train_loss_nats", "val_loss_nats", "val_accuracy"):
            if ours["metrics"][metric] != theirs["metrics"][metric]:
                found.append(f"{run_id}: {metric} {ours['metrics'][metric]}, undisturbed {theirs['metrics'][metric]}")
        if losses(sweep.store, run_id) != losses(reference, run_id):
            found.append(f"{run_id}: another loss curve, of {len(losses(sweep.store, run_id))} lines")
    return found


def record(store: Store, run_id: str) -> Mapping[str, Any]:
    found = store.record(run_id)
    assert found is not None, f"{run_id} has no record"
    return found


def slurm_states(sweep: Sweep) -> list[str]:
    """Slurm's own states of all tasks that were submitted, by sacct."""
    command = ["sacct", "-n", "-X", "-P", "--format=State", "-j", ",".join(sweep.job_ids())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def error_classes(sweep: Sweep) -> Counter[str]:
    """The classes of all attempts that ended without a result."""
    found: Counter[str] = Counter()
    for path in sweep.store.root.glob("runs/*/*/attempts/*/*.json"):
        if path.name in ("error.json", "triage.json"):
            found[json.loads(path.read_text())["class"]] += 1
    return found
