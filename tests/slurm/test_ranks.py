"""Ranks of one run on two nodes of the cluster, started by srun as a task does."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from hybrid.config import Resolved
from hybrid.decode import encode
from sweeps.identity import run_id
from sweeps.stopping import StopFlag
from sweeps.store import Store
from sweeps.worker.runs import run_one
from tests.slurm.cluster import Cluster, wait_until

pytestmark = pytest.mark.slurm
PATIENCE_S = 180.0
REPO = Path(__file__).resolve().parent.parent.parent
CLOCK = ("wall_s", "tokens_per_s")

TASK = """
import json, os, sys
from pathlib import Path
from hybrid.decode import decode
from hybrid.spec import ExecSpec, RunSpec
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Store
from sweeps.exits import EXIT_STOPPED
from sweeps.worker.ranks import ranks_here
from sweeps.worker.runs import run_one

stop = StopFlag()
stop.install()
root, run_id, execution = sys.argv[1:]
store, execution = Store(Path(root)), decode(ExecSpec, json.loads(execution))
run = decode(RunSpec, store.spec(run_id))
print("rank", os.environ["SLURM_PROCID"], "on", os.environ["SLURMD_NODENAME"], os.getpid(), flush=True)
try:
    with ranks_here(execution) as ranks:
        status = run_one(store, run, execution, stop=stop, progress=lambda *_: None, ranks=ranks)
except Stopped as stopped:
    sys.exit(EXIT_STOPPED)
print(status, flush=True)
"""


def submit(slurm: Cluster, store: Store, resolved: Resolved) -> int:
    """One job of two tasks, on two nodes; what they print is in `out`."""
    store.prepare()
    store.publish_spec(resolved.run)
    Path("task.py").write_text(TASK)
    execution = json.dumps(encode(resolved.execution))
    Path("job").write_text(
        "#!/bin/bash\n"
        f"export PYTHONPATH={REPO} OMP_NUM_THREADS=1\n"
        # The first to end with 75 would have the others killed, on their way out, by the other setting.
        f"srun --kill-on-bad-exit=0 --wait=60 {sys.executable} task.py "
        f"{store.root} {run_id(resolved.run)} '{execution}'\n"
    )
    return slurm.submit("--nodes=2", "--ntasks-per-node=1", "--output=out", "--open-mode=append", "job")


def wait_for_end(slurm: Cluster, job: int) -> str:
    """Its state."""
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_until(lambda: slurm.job(job)["JobState"] in over, "the job to end", PATIENCE_S, slurm.explain)
    return slurm.job(job)["JobState"]


def wait_for_steps(store: Store, run: str, count: int) -> None:
    def steps() -> int:
        return max((int(line.get("step", 0)) for line in store.metrics(run)), default=0)

    wait_until(lambda: steps() >= count, f"{count} steps", PATIENCE_S)


def pids() -> dict[int, int]:
    """The process of each rank of the newest job."""
    words = [line.split() for line in Path("out").read_text().splitlines()]
    return {int(line[1]): int(line[4]) for line in words if line[:1] == ["rank"]}


def curve(store: Store, run: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in store.metrics(run)]


def weights(store: Store, run: str) -> dict[str, Any]:
    record = store.record(run)
    assert record is not None
    return load_file(store.weights_path(run, record["attempt"]))


@pytest.fixture
def two(resolve: Callable[..., Resolved]) -> Callable[..., Resolved]:
    """A run of 400 steps, on two nodes."""
    words: tuple[str, ...] = ("data=recall", "data.n_symbols=16", "data.n_pairs=2", "model.ratio=1:1", "model.depth=2")
    words += ("model.d_model=16", "model.attention.n_heads=2", "model.attention.head_dim=8", "model.mamba.d_ssm=32")
    words += ("model.mamba.head_dim=8", "model.mamba.d_state=4", "model.ffn=null", "seq_len=16", "batch_tokens=64")
    words += ("budget.tokens=25600", "exec.heartbeat_s=0.2", "exec.lease_s=2", "exec.log_every_steps=1")
    return lambda *more: resolve(*words, "exec.nodes=2", "optim.lr=1e-4", *more)


def assert_as_in_one_process(store: Store, resolved: Resolved, directory: Path) -> None:
    """In float32, so that 400 steps may let the last digits grow to the fourth."""
    alone, run = Store(directory), run_id(resolved.run)
    alone.prepare()
    run_one(alone, resolved.run, resolved.execution, stop=StopFlag(), progress=lambda *_: None)
    ours, theirs = curve(store, run), curve(alone, run)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-3)
    expected = weights(alone, run)
    for name, value in weights(store, run).items():
        assert value == pytest.approx(expected[name], abs=1e-4)


def test_two_tasks_on_two_nodes_train_as_one_process_does(
    slurm: Cluster, two: Callable[..., Resolved], tmp_path: Path
) -> None:
    store, run = Store(tmp_path / "store"), run_id(two().run)
    assert wait_for_end(slurm, submit(slurm, store, two())) == "COMPLETED"
    told = sorted(line.split()[:4] for line in Path("out").read_text().splitlines() if line.startswith("rank"))
    assert [line[1] for line in told] == ["0", "1"]
    assert len({line[3] for line in told}) == 2, "two nodes"
    assert Path("out").read_text().split().count("done") == 2
    assert store.last_attempt(run) == 1
    assert_as_in_one_process(store, two(), tmp_path / "alone")


def test_a_signal_to_all_tasks_saves_once_and_the_next_job_goes_on(
    slurm: Cluster, two: Callable[..., Resolved], tmp_path: Path
) -> None:
    store, run = Store(tmp_path / "store"), run_id(two().run)
    job = submit(slurm, store, two())
    wait_for_steps(store, run, 20)
    slurm.run("scancel", "--signal=USR2", str(job))
    assert wait_for_end(slurm, job) == "FAILED"  # 75: nobody asked for a requeue
    assert slurm.job(job)["ExitCode"] == "75:0"
    assert store.status(run) == "interrupted"
    assert wait_for_end(slurm, submit(slurm, store, two())) == "COMPLETED"
    assert store.last_attempt(run) == 2
    assert_as_in_one_process(store, two(), tmp_path / "alone")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_task_that_is_killed_ends_the_job_at_once_and_the_next_one_finishes(
    rank: int, slurm: Cluster, two: Callable[..., Resolved], tmp_path: Path
) -> None:
    resolved = two("exec.checkpoint_every_s=0.2")
    store, run = Store(tmp_path / "store"), run_id(resolved.run)
    job = submit(slurm, store, resolved)
    wait_for_steps(store, run, 20)
    os.kill(pids()[rank], signal.SIGKILL)
    assert wait_for_end(slurm, job) == "FAILED"
    if rank == 1:
        error = store.attempts(run).error(1)
        assert error is not None
        assert (error["class"], error["rank"]) == ("unknown", 1)
    assert wait_for_end(slurm, submit(slurm, store, resolved)) == "COMPLETED"
    assert store.last_attempt(run) == 2
    assert_as_in_one_process(store, resolved, tmp_path / "alone")
