"""Ranks of one run at work on a store: claimed by one, recorded by one, ended by all."""

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from hybrid.config import Resolved
from hybrid.spec import ConfigError
from sweeps.exits import EXIT_BUSY, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from sweeps.identity import run_id
from sweeps.launch import Asked, Launcher
from sweeps.launch.inline import Inline
from sweeps.launch.local import LocalProcesses
from sweeps.launch.processes import fork_server, unblock_signals
from sweeps.speed import measurements, ranks_of, shape_id
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Store
from sweeps.trunks import TrunkJob, trunk_id
from sweeps.worker.claims import Busy
from sweeps.worker.ranks import ranks_here
from sweeps.worker.runs import run_one
from sweeps.worker.trunks import run_trunk

from .conftest import TINY, Planner, wait_for

CLOCK = ("wall_s", "tokens_per_s")
TWO = "exec.gpus_per_node=2"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def _task(store: Store, work: TrunkJob | Resolved, rank: int, n: int, job: str, how: str) -> None:
    """The life of one task of a step, as srun would start it; `how` says what goes wrong."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]
    os.environ |= {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(n),
        "SLURM_LOCALID": str(rank),
        "SLURM_JOB_ID": job,
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    }
    stop = StopFlag()
    stop.install()
    unblock_signals()
    what, _, at = how.partition(" at ")

    def progress(step: int, *_: Any, **__: Any) -> None:
        if step == 20 and what == "the first raises":
            raise MemoryError("no memory left")

    from hybrid.train import loop

    made = loop._Training._update

    def update(self: Any, measured: Any) -> None:
        made(self, measured)
        if self.progress.step == 20 and rank == n - 1:
            if what == "the last raises":
                raise MemoryError("no memory left")
            if what == "the last is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "the last is asked to stop":
                os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(float(at or 0))

    loop._Training._update = update  # type: ignore[method-assign]
    execution = work.execution
    try:
        with ranks_here(execution) as ranks:
            assert ranks is not None
            if isinstance(work, TrunkJob):
                run_trunk(store, work, stop=stop, progress=progress, own_process=True, ranks=ranks)
            else:
                run_one(store, work.run, execution, stop=stop, progress=progress, own_process=True, ranks=ranks)
        code = EXIT_DONE
    except Busy:
        code = EXIT_BUSY
    except Stopped:
        code = EXIT_STOPPED
    except Exception:
        code = EXIT_FAILED
    sys.exit(code)


class Tasks:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.processes: list[Any] = []

    def start(self, work: TrunkJob | Resolved, n: int = 2, how: str = "nothing goes wrong") -> list[Any]:
        context, job = fork_server(), uuid.uuid4().hex
        tasks = [context.Process(target=_task, args=(self._store, work, rank, n, job, how)) for rank in range(n)]
        for task in tasks:
            task.start()
        self.processes += tasks
        return tasks

    def codes(self, work: TrunkJob | Resolved, n: int = 2, how: str = "nothing goes wrong") -> list[int | None]:
        return ended(self.start(work, n, how))


def ended(tasks: list[Any]) -> list[int | None]:
    for task in tasks:
        task.join(120)
    return [task.exitcode for task in tasks]


@pytest.fixture
def tasks(store: Store) -> Iterator[Tasks]:
    made = Tasks(store)
    yield made
    for process in made.processes:
        if process.is_alive():
            process.kill()
        process.join()


def curve(store: Store, run: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in store.metrics(run)]


def weights(store: Store, run: str) -> dict[str, Any]:
    record = store.record(run)
    assert record is not None
    return load_file(store.weights_path(run, record["attempt"]))


def assert_as_alone(store: Store, resolved: Resolved, directory: Path) -> None:
    """The run's curve and weights are those of one process, but for float noise, which 100 steps let grow."""
    alone, run = Store(directory), run_id(resolved.run)
    alone.prepare()
    run_one(alone, resolved.run, resolved.execution, stop=StopFlag(), progress=lambda *_: None)
    ours, theirs = curve(store, run), curve(alone, run)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-3)
    expected = weights(alone, run)
    for name, value in weights(store, run).items():
        assert value == pytest.approx(expected[name], abs=2e-3)


def test_two_ranks_claim_record_and_write_as_one(
    store: Store, tasks: Tasks, tiny: Callable[..., Resolved], tmp_path: Path
) -> None:
    resolved = tiny(TWO, "exec.checkpoint_every_s=0.05")
    run = run_id(resolved.run)
    assert tasks.codes(resolved) == [EXIT_DONE, EXIT_DONE]
    assert store.last_attempt(run) == 1
    record = store.record(run)
    assert record is not None
    assert record["provenance"]["exec"]["gpus_per_node"] == 2
    assert "2 ranks" in (store.attempts(run).path(1) / "log.txt").read_text()
    assert_as_alone(store, tiny(), tmp_path / "alone")
    before = store.record_path(run).read_bytes()
    assert tasks.codes(resolved) == [EXIT_DONE, EXIT_DONE], "nothing is to be done"
    assert store.record_path(run).read_bytes() == before
    assert store.last_attempt(run) == 1


def test_what_several_ranks_measured_is_theirs_together(
    store: Store, tasks: Tasks, tiny: Callable[..., Resolved]
) -> None:
    resolved = tiny(TWO)
    tasks.codes(resolved)
    (measured,) = measurements(store, shape_id(resolved.run, resolved.execution))
    record = store.record(run_id(resolved.run))
    assert record is not None
    assert measured.tokens_per_s == pytest.approx(record["metrics"]["tokens_per_s"])
    assert measured.beside is None
    assert measurements(store, shape_id(tiny().run, tiny().execution)) == []


@pytest.mark.parametrize("how", ["the last is asked to stop", "nothing goes wrong at 0.05"])
def test_a_stop_that_any_rank_sees_saves_once_and_ends_all_alike(
    how: str, store: Store, tasks: Tasks, tiny: Callable[..., Resolved], tmp_path: Path
) -> None:
    resolved = tiny(TWO, "exec.log_every_steps=1")
    run = run_id(resolved.run)
    started = tasks.start(resolved, how=how)
    if "nothing" in how:  # both are told, as Slurm does
        wait_for(lambda: len(curve(store, run)) > 3)
        for task in started:
            os.kill(task.pid, signal.SIGUSR2)
    assert ended(started) == [EXIT_STOPPED, EXIT_STOPPED]
    assert store.status(run) == "interrupted"
    error = store.attempts(run).error(1)
    assert error is not None
    assert "signal SIG" in error["message"]
    if "nothing" not in how:
        assert [path.name for path in store.checkpoints_dir(run).iterdir()] == ["step00000020-a001.ckpt"]
    assert tasks.codes(resolved, n=2) == [EXIT_DONE, EXIT_DONE]
    assert store.last_attempt(run) == 2
    assert_as_alone(store, tiny("exec.log_every_steps=1"), tmp_path / "alone")


@pytest.mark.parametrize(
    ("how", "codes", "rank", "error_class"),
    [
        ("the last raises", [EXIT_FAILED] * 3, 2, "oom"),
        ("the first raises", [EXIT_FAILED] * 3, None, "oom"),
        ("the last is killed", [EXIT_FAILED, EXIT_FAILED, -signal.SIGKILL], 2, "unknown"),
    ],
)
def test_a_rank_that_fails_ends_all_with_its_failure_recorded(
    how: str,
    codes: list[int],
    rank: int | None,
    error_class: str,
    store: Store,
    tasks: Tasks,
    tiny: Callable[..., Resolved],
    tmp_path: Path,
) -> None:
    resolved = tiny("exec.nodes=3")
    run = run_id(resolved.run)
    assert tasks.codes(resolved, n=3, how=how) == codes
    error = store.attempts(run).error(1)
    assert error is not None
    assert (error.get("rank"), error["class"]) == (rank, error_class)
    if how != "the last is killed":
        assert "MemoryError: no memory left" in error["message"]
        assert "raise MemoryError" in error["traceback"]
    assert store.status(run) == "failed"
    assert tasks.codes(resolved, n=3) == [EXIT_DONE] * 3
    assert_as_alone(store, tiny(), tmp_path / "alone")


def test_all_ranks_leave_a_run_that_another_process_trains(
    store: Store, tasks: Tasks, tiny: Callable[..., Resolved]
) -> None:
    resolved = tiny(TWO)
    run = store.publish_spec(resolved.run)
    first = tasks.start(resolved, how="nothing goes wrong at 0.05")
    wait_for(lambda: store.last_attempt(run) == 1 and (store.attempts(run).path(1) / "job.json").exists())
    assert tasks.codes(resolved) == [EXIT_BUSY, EXIT_BUSY]
    assert ended(first) == [EXIT_DONE, EXIT_DONE]
    assert store.last_attempt(run) == 1


def test_a_trunk_is_made_by_ranks_and_branched_from_by_ranks(
    store: Store, tasks: Tasks, tiny: Callable[..., Resolved], tmp_path: Path
) -> None:
    fixed = (TWO, "schedule.warmup_tokens=640", "schedule.cooldown_tokens=1280")
    resolved = tiny(*fixed)
    trunk = trunk_id(resolved.run)
    assert trunk is not None
    run = run_id(resolved.run)
    job = TrunkJob(trunk_id=trunk, run=resolved.run, execution=resolved.execution, points=(30, 80), branches=(run,))
    assert tasks.codes(job) == [EXIT_DONE, EXIT_DONE]
    assert store.trunk_points(trunk) == (30, 80)
    assert tasks.codes(resolved) == [EXIT_DONE, EXIT_DONE]
    branched = store.branched_from(run, 1)
    assert branched is not None
    assert branched.step == 80
    alone = tiny(*fixed[1:], "exec.trunks=false")
    reference = Store(tmp_path / "alone")
    reference.prepare()
    run_one(reference, alone.run, alone.execution, stop=StopFlag(), progress=lambda *_: None)
    for line, other in zip(curve(store, run), curve(reference, run), strict=True):
        assert line == pytest.approx(other, rel=1e-3)


def test_as_many_tasks_as_ranks_or_none_trains(store: Store, tasks: Tasks, tiny: Callable[..., Resolved]) -> None:
    resolved = tiny("exec.nodes=3")
    assert tasks.codes(resolved, n=2) == [EXIT_FAILED, EXIT_FAILED]
    assert store.last_attempt(run_id(resolved.run)) == 0


@pytest.mark.parametrize("launcher", [Inline(), LocalProcesses()])
def test_several_ranks_are_refused_where_they_cannot_be_started(launcher: Launcher, plan_of: Planner) -> None:
    cells = plan_of(*TINY, TWO).expansion.runs
    with pytest.raises(ConfigError, match=r"exec.nodes, exec.gpus_per_node = 1, 2: .*hydra/launcher=slurm"):
        launcher.launch(cells, plan_of.store, Asked(sweep="x"))


def test_preflight_refuses_several_ranks(plan_of: Planner) -> None:
    from sweeps.preflight import preflight

    with pytest.raises(ConfigError, match=r"preflight: expected exec.nodes=1 .*hydra/launcher=slurm"):
        preflight(plan_of(*TINY, TWO).expansion.runs, plan_of.store)


def test_hours_of_a_plan_count_every_device(plan_of: Planner) -> None:
    request = ("scale=1b", "model=llama", "exec=gpu", "plan.mfu=0.4")
    (one,) = plan_of(*request).plan.cells
    (many,) = plan_of(*request, "exec.nodes=2", "exec.gpus_per_node=4").plan.cells
    alone, together = one.hours(one.own_steps), many.hours(many.own_steps)
    assert alone is not None
    # By a share of the peak eight devices take an eighth of the time, so as many hours.
    assert together == pytest.approx(alone)
    assert one.shape.speed.tokens_per_s is not None
    assert many.shape.speed.tokens_per_s == pytest.approx(8 * one.shape.speed.tokens_per_s)
    assert "8 times" in many.shape.speed.text
    assert many.shape.memory.activation_bytes == one.shape.memory.activation_bytes  # of one microbatch of 1


def test_a_shape_is_known_by_its_ranks_only_where_they_are_several(tiny: Callable[..., Resolved]) -> None:
    def shape(*more: str) -> str:
        resolved = tiny(*more)
        return shape_id(resolved.run, resolved.execution)

    assert len({shape(), shape(TWO), shape("exec.nodes=2"), shape("exec.nodes=3")}) == 4
    # Four sequences: a rank's part is two.
    assert shape(TWO, "exec.microbatch=2") != shape(TWO, "exec.microbatch=1")
    assert ranks_of(tiny("exec.nodes=2", TWO).execution) == 4


def test_shapes_of_one_rank_keep_their_ids(tiny: Callable[..., Resolved]) -> None:
    assert shape_id(tiny().run, tiny().execution) == "e98119717195"
