"""A sweep on the cluster whose runs stand where a test wants them: see told_mixer.py."""

import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.store import Store
from sweeps.submissions import Submissions
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.sweep import Sweep, assert_whole, undisturbed

MIXER = Path(__file__).with_name("told_mixer.py")
STEP_TOKENS = 64
PATIENCE_S = 150.0

TINY = (
    "data=recall",
    "data.n_symbols=16",
    "data.n_pairs=2",
    "model.mixers=[outside,attention]",
    "model.ratio=1:1",
    "model.depth=2",
    "model.d_model=16",
    "model.attention.n_heads=2",
    "model.attention.head_dim=8",
    "model.outside={name: told, version: 1, settings: {}}",
    "model.ffn=null",
    "seq_len=16",
    f"batch_tokens={STEP_TOKENS}",
    f"exec.mixers=[{MIXER}]",
    "exec.heartbeat_s=0.5",
    "exec.lease_s=4",
    "exec.log_every_steps=1",
    "exec.checkpoint_every_s=1",
)
"""A step takes 3 ms, or 100 ms more where the run is told to be slow."""


def tiny_sweep(store: Store, name: str, *overrides: str, runs: int, steps: int = 400) -> Sweep:
    """So many seeds of one row."""
    asked = (f"sweep.name={name}", "sweep.rows={told: {}}", f"sweep.seeds={runs}")
    return Sweep(store=store, overrides=(*TINY, *asked, f"budget.tokens={steps * STEP_TOKENS}", *overrides), name=name)


@dataclass(frozen=True, kw_only=True)
class ToldSweep:
    """Run i is task i of a submission of all; of a later one, task i is the i-th of those that were missing."""

    cluster: Cluster
    directory: Path
    sweep: Sweep
    name: str = "faults"

    @classmethod
    def of(
        cls, cluster: Cluster, directory: Path, *overrides: str, runs: int, store: Path | None = None, steps: int = 400
    ) -> "ToldSweep":
        sweep = tiny_sweep(Store(store or directory / "store"), cls.name, *overrides, runs=runs, steps=steps)
        return cls(cluster=cluster, directory=directory, sweep=sweep)

    @property
    def store(self) -> Store:
        return self.sweep.store

    @property
    def run_ids(self) -> list[str]:
        return self.sweep.run_ids

    def tell(self, what: str, *tasks: int) -> None:
        """From its next step on; no tasks: all. "" is nothing in particular."""
        told = self.directory / "told"
        told.mkdir(exist_ok=True)
        for task in tasks or range(25):
            # At once: a run reads it between any two bytes.
            new = told / f".{task}"
            new.write_text(what)
            new.replace(told / f"{task}")

    def submit(self, *settings: str, code: int = 0) -> str:
        """Submit what is missing; gives what was said."""
        return self.sweep.submit(*self.settings(*settings), code=code)

    def settings(self, *more: str) -> tuple[str, ...]:
        """What lets its tasks be told."""
        return f'hydra.launcher.setup=["export TOLD={self.directory}/told/$SLURM_ARRAY_TASK_ID"]', *more

    def start(self, *settings: str) -> None:
        """Submit it, slow, and wait until every run is in the middle of things, with a checkpoint."""
        self.tell("slow")
        self.submit(*settings)
        for run in range(len(self.run_ids)):
            self.wait_for_steps(run, 1)
        wait_until(self.all_saved, "checkpoints", PATIENCE_S, self.sweep.explain)

    def all_saved(self) -> bool:
        return all(self.store.checkpoint_step(run_id) > 0 for run_id in self.run_ids)

    def wait_for_steps(self, run: int, attempt: int, steps: int = 3) -> None:
        def made() -> bool:
            return len(self.store.attempts(self.run_ids[run]).metrics(attempt)[1]) >= steps

        wait_until(made, f"attempt {attempt} at run {run} to make steps", PATIENCE_S, self.sweep.explain)

    def job(self, run: int, submission: int = 0) -> str:
        """The run's task, as Slurm's commands call it."""
        one = Submissions(self.store).all()[submission]
        index = next(index for index, item in one.items() if item.run_id == self.run_ids[run])
        return f"{one.job_id}_{index}"

    def facts(self, run: int, attempt: int = 1) -> dict[str, Any]:
        """The attempt's job.json."""
        found = self.store.job(self.run_ids[run], attempt)
        assert found is not None
        return found

    def node(self, run: int, attempt: int = 1) -> str:
        return str(self.facts(run, attempt)["slurm"]["node"])

    def pids(self, run: int, attempt: int = 1) -> list[int]:
        """All that the run's job runs: srun, and the step's processes."""
        wanted = f"SLURM_JOB_ID={self.facts(run, attempt)['slurm']['job_id']}".encode()
        found = []
        for pid in self.cluster.job_pids():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def errors(self, attempt: int = 1) -> list[str | None]:
        """The class of each run's attempt, None where it has not ended without a result."""
        found = (self.store.error(run_id, attempt) for run_id in self.run_ids)
        return [None if error is None else str(error["class"]) for error in found]

    def wait_for_errors(self, classes: Sequence[str | None], attempt: int = 1) -> None:
        wait_until(
            lambda: self.errors(attempt) == list(classes),
            f"attempts {attempt} to end as {classes}",
            PATIENCE_S,
            lambda: f"{self.errors(attempt)}\n{self.sweep.explain()}",
        )

    def wait_for_states(self, job_id: str, *states: str, or_more: bool = False) -> None:
        """Slurm's own, one for each time that the job was started; `or_more`: of the first there may be more."""

        def found() -> list[str]:
            return [state.split()[0] for (state,) in self.cluster.history(job_id, "State")]

        def as_expected() -> bool:
            more = len(found()) - len(states) if or_more else 0
            return found() == [states[0]] * more + list(states)

        def explain() -> str:
            return f"it says {found()}\n{self.cluster.explain()}"

        wait_until(as_expected, f"Slurm to say {states} of {job_id}", PATIENCE_S, explain)

    def wait_until_over(self, *runs: int) -> None:
        """Until Slurm has these tasks no more: for a while after their end it is completing them."""
        jobs = {self.job(run) for run in runs}
        wait_until(lambda: jobs.isdisjoint(self.queue()), f"{jobs} to be over", PATIENCE_S, self.cluster.explain)

    def starts(self, run: int, attempt: int) -> int:
        """The step at which an attempt went on; 0 where it began."""
        start, _ = self.store.attempts(self.run_ids[run]).metrics(attempt)
        return 0 if start is None else start.step

    def queue(self) -> list[str]:
        """Ids of all its tasks that are not over."""
        ids = ",".join(self.sweep.job_ids())
        command = ["squeue", "-h", "-r", "-o", "%i", "-j", ids]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split() if ids else []

    def finish(self, patience_s: float = PATIENCE_S) -> None:
        """Let all go on, and see that nothing is missing, to the last bit."""
        self.tell("")
        self.sweep.wait(patience_s)
        self.assert_whole()

    def assert_whole(self) -> None:
        """Of every run one record, equal losses, and no task left behind."""
        assert_whole(self.sweep, undisturbed(self.sweep, self.directory))
        wait_until(lambda: not self.queue(), "no task to be left", 60, self.cluster.explain)
