"""What becomes of one run under what clusters do to jobs, compared with an undisturbed one."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sweeps.store import Store
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.sweep import Sweep, assert_whole, undisturbed

pytestmark = pytest.mark.slurm
PATIENCE_S = 120.0
MIXER = Path(__file__).with_name("told_mixer.py")

STEPS = 600
"""A tenth of a second each when told to be slow, some milliseconds otherwise."""
RUN = (
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
    "batch_tokens=64",
    f"budget.tokens={64 * STEPS}",
    f"exec.mixers=[{MIXER}]",
    "exec.heartbeat_s=0.3",
    "exec.lease_s=3",
    "exec.log_every_steps=1",
    "exec.checkpoint_every_s=2",
)


class Disturbed:
    """One run, submitted, that does as a file tells it."""

    def __init__(self, slurm: Cluster, directory: Path) -> None:
        self.slurm, self.directory = slurm, directory
        self.sweep = Sweep(store=Store(directory / "store"), overrides=RUN)

    @property
    def store(self) -> Store:
        return self.sweep.store

    @property
    def run_id(self) -> str:
        (run_id,) = self.sweep.run_ids
        return run_id

    @property
    def job_id(self) -> str:
        return f"{self.sweep.job_ids()[-1]}_0"

    def tell(self, what: str) -> None:
        """From its next step on; "" is nothing in particular."""
        (self.directory / "told").write_text(what)

    def submit(self, *settings: str) -> None:
        told = self.directory / "told"
        self.sweep.submit(f'hydra.launcher.setup=["export TOLD={told}"]', *settings)

    def start(self, *settings: str) -> None:
        """Submit it, and wait until it is in the middle of things."""
        self.tell("slow")
        self.submit(*settings)
        self.wait_for_steps(1, 5)

    def wait_for_steps(self, attempt: int, steps: int) -> None:
        def made() -> bool:
            return len(self.store.attempts(self.run_id).metrics(attempt)[1]) >= steps

        wait_until(made, f"attempt {attempt} to make {steps} steps", PATIENCE_S, self.sweep.explain)

    def error(self, attempt: int) -> dict[str, Any]:
        """How an attempt ended without a result, once it has."""
        attempts = self.store.attempts(self.run_id)
        wait_until(
            lambda: attempts.error(attempt) is not None, f"attempt {attempt} to end", PATIENCE_S, self.sweep.explain
        )
        return attempts.error(attempt) or {}

    def wait_for_states(self, *states: str) -> None:
        """Slurm's own, one for each time that the job was started."""

        def as_expected() -> bool:
            found = [state.split()[0] for (state,) in self.slurm.history(self.job_id, "State")]
            return found == list(states)

        wait_until(as_expected, f"Slurm to say {states}", PATIENCE_S, self.slurm.explain)

    def finish(self) -> None:
        """Let it go on, and see that nothing is missing, to the last bit."""
        self.tell("")
        self.sweep.wait(PATIENCE_S)
        assert_whole(self.sweep, undisturbed(self.sweep, self.directory))


@pytest.fixture
def run(slurm: Cluster, tmp_path: Path) -> Disturbed:
    return Disturbed(slurm, tmp_path)


def test_a_run_that_raises_fails_and_slurm_says_so_too(run: Disturbed) -> None:
    run.start()
    run.tell("raise")
    error = run.error(1)
    assert error["class"] == "code"
    assert "do_as_told" in error["traceback"]
    run.wait_for_states("FAILED")
    assert run.slurm.history(run.job_id, "ExitCode") == [("1:0",)]
    assert "code: RuntimeError: as it was told" in run.sweep.ask("show", run.run_id)


def test_a_run_that_is_killed_is_looked_into_and_goes_on_where_it_was(run: Disturbed) -> None:
    run.start()
    wait_until(lambda: run.store.checkpoint_step(run.run_id) > 0, "a checkpoint", PATIENCE_S)
    job = run.store.job(run.run_id, 1)
    assert job is not None
    assert job["slurm"]["array_task_id"] == 0
    assert job["slurm"]["node"] in run.slurm.nodes
    os.kill(job["pid"], signal.SIGKILL)
    run.wait_for_states("FAILED")
    assert run.store.status(run.run_id) == "lost"
    said = run.sweep.ask("show", run.run_id)
    assert "killed by signal 9 without a word" in said
    found = run.store.error(run.run_id, 1)
    assert found is not None
    assert (found["class"], found["job"]["signal"]) == ("unknown", 9)
    run.submit()
    run.finish()
    assert run.store.last_attempt(run.run_id) == 2


def test_ahead_of_its_time_limit_a_run_saves_is_queued_again_and_goes_on(run: Disturbed) -> None:
    run.tell("slow")
    run.submit("hydra.launcher.time=1", "hydra.launcher.grace_s=55")
    # Slurm looks for such jobs every 30 s: it may be at its first step.
    error = run.error(1)
    assert error["class"] == "timeout"
    assert "before its time limit" in error["message"]
    run.wait_for_steps(2, 1)
    run.finish()
    # On a machine that is slow today it may take more than two lives.
    run.wait_for_states(*["REQUEUED"] * (run.store.last_attempt(run.run_id) - 1), "COMPLETED")
    start, _ = run.store.attempts(run.run_id).metrics(2)
    assert start is not None
    assert start.step == error["stopped"]["step"]


def preempt(slurm: Cluster, node: str) -> None:
    """Have a more important job ask for all GPUs of a node."""
    slurm.submit(
        "--partition=high", f"--nodelist={node}", "--gres=gpu:4", "--output=/dev/null", "--time=1", "--wrap=sleep 3"
    )


def test_a_preempted_run_saves_is_queued_again_and_goes_on(run: Disturbed) -> None:
    run.start("hydra.launcher.sbatch={gres: 'gpu:4'}")
    preempt(run.slurm, run.slurm.job(run.job_id)["NodeList"])
    error = run.error(1)
    assert error["class"] == "preempted"
    assert "SIGUSR2" in error["message"]
    run.wait_for_steps(2, 1)
    run.finish()
    run.wait_for_states("REQUEUED", "COMPLETED")


def test_a_run_that_somebody_queues_again_saves_on_term_and_goes_on(run: Disturbed) -> None:
    run.start()
    run.slurm.run("scontrol", "requeue", run.job_id)
    error = run.error(1)
    assert error["class"] == "preempted"
    assert "SIGTERM" in error["message"]
    run.wait_for_steps(2, 1)
    run.finish()
    run.wait_for_states("REQUEUED", "COMPLETED")


def test_a_cancelled_run_saves_is_not_queued_again_and_goes_on_when_submitted_again(run: Disturbed) -> None:
    run.start()
    run.slurm.run("scancel", run.job_id)
    error = run.error(1)
    assert error["class"] == "cancelled"
    run.wait_for_states("CANCELLED")
    assert run.store.last_attempt(run.run_id) == 1
    run.submit()
    run.finish()
    start, _ = run.store.attempts(run.run_id).metrics(2)
    assert start is not None
    assert start.step == error["stopped"]["step"]


def test_a_finished_run_that_is_queued_again_does_nothing(run: Disturbed) -> None:
    run.submit()
    run.sweep.wait()
    before = run.store.record_path(run.run_id).read_bytes()
    run.wait_for_states("COMPLETED")
    run.slurm.run("scontrol", "requeue", run.job_id)
    run.wait_for_states("REQUEUED", "COMPLETED")
    assert run.store.last_attempt(run.run_id) == 1
    assert run.store.record_path(run.run_id).read_bytes() == before
    (printed,) = run.store.root.glob("submissions/*/*_0.out")
    assert "done before this" in printed.read_text()


def test_a_request_is_cancelled_by_name_and_retried_with_the_settings_that_it_had(run: Disturbed) -> None:
    run.start("hydra.launcher.sbatch={comment: told}")
    assert "1 task of the scheduler" in run.sweep.ask("cancel", "unnamed", "--yes")
    assert run.error(1)["class"] == "cancelled"
    run.wait_for_states("CANCELLED")
    said = run.sweep.ask("retry", "unnamed", "--class", "cancelled")
    assert "submitted" in said
    script = next(run.store.root.glob("submissions/00000002/script.sh")).read_text()
    assert "--comment=told" in script
    assert f"TOLD={run.directory / 'told'}" in script
    assert "nothing to try again" in run.sweep.ask("retry", "unnamed")
    run.finish()
    assert run.store.last_attempt(run.run_id) == 2


def test_what_ran_out_of_memory_is_submitted_again_with_half_the_microbatch(run: Disturbed) -> None:
    run.tell("oom")
    run.submit()
    assert run.error(1)["class"] == "oom"
    run.wait_for_states("FAILED")
    run.tell("")
    assert "microbatch 2" in run.sweep.ask("retry", "unnamed", "--class", "oom", "--wait")
    record = run.store.record(run.run_id)
    assert record is not None
    assert record["provenance"]["exec"]["microbatch"] == 2
