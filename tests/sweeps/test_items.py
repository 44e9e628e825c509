"""An item of a task, carried out in this process as `sweeps.task` does it, under the variables that Slurm would set."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Resolved
from sweeps import in_slurm
from sweeps.exits import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from sweeps.identity import run_id
from sweeps.items import RESTARTS_IN_VAIN, carry_out, restarts_in_vain
from sweeps.stopping import StopFlag
from sweeps.store import Store, publish, this_process
from sweeps.submissions import Item
from sweeps.trunks import branch_step, trunk_id

SHORT = "budget.tokens=640"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture(autouse=True)
def life(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """This process is a job of Slurm's, in this life of it; there is no Slurm to ask."""
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "HYBRID_SUBMISSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(in_slurm, "ANSWER_WITHIN_S", 0.1)

    def begin(number: int) -> None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))

    begin(0)
    return begin


def item(store: Store, resolved: Resolved, kind: Any = "run", trunk: str | None = None) -> Item:
    run = store.publish_spec(resolved.run)
    return Item(kind=kind, run_id=run, name="cell", row="row", seed=1, trunk_id=trunk)


def carry(store: Store, item: Item, resolved: Resolved, stop: StopFlag | None = None, **more: Any) -> int:
    return carry_out(store, item, resolved.execution, stop=stop or StopFlag(), own_process=False, **more)


def attempt(store: Store, run: str, *, job_id: str = "7", restarts: int = 0, began: int = 0, **error: Any) -> Path:
    """An attempt by a job, that began at this step; it ended with this error, if one is given."""
    made = store.claim(run, store.last_attempt(run))
    assert made is not None
    slurm = {**(in_slurm.here() or {}), "job_id": job_id, "restart_count": restarts}
    job = {**this_process(), "host": "elsewhere", "lease_s": 1, "slurm": slurm}
    publish(made.directory / "job.json", json.dumps(job))
    (made.directory / "heartbeat").write_text("0\n")
    lines = [{"resumed_at_step": began, "of_attempt": made.number - 1}] if began else []
    (made.directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [*lines, {"step": began + 1}]))
    if error:
        publish(made.directory / "error.json", json.dumps({"message": "as it said", **error}))
    return made.directory


@contextmanager
def beating(directory: Path, beats: int) -> Iterator[None]:
    """Move a copy's counter so often, then let it stand still."""

    def beat() -> None:
        for count in range(1, beats + 1):
            time.sleep(0.1)
            (directory / "heartbeat").write_text(f"{count}\n")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_run_is_trained_and_its_record_names_the_job(store: Store, tiny, capfd: pytest.CaptureFixture[str]) -> None:
    one = item(store, tiny(SHORT))
    assert carry(store, one, tiny(SHORT), submission=4) == EXIT_DONE
    record = store.record(one.run_id)
    assert record is not None
    assert record["provenance"]["slurm"]["job_id"] == "7"
    assert record["provenance"]["slurm"]["submission"] == 4
    assert f"run cell {one.run_id}: done" in capfd.readouterr().err


def test_a_copy_that_this_job_left_alive_is_waited_for_and_then_the_run_is_trained(store: Store, tiny, life) -> None:
    one = item(store, tiny(SHORT))
    directory = attempt(store, one.run_id)
    life(1)
    with beating(directory, 15):
        assert carry(store, one, tiny(SHORT)) == EXIT_DONE
        assert (directory / "heartbeat").read_text() == "15\n"
    assert store.status(one.run_id) == "done"
    assert store.last_attempt(one.run_id) == 2


def test_a_copy_of_another_job_is_left_to_it_and_named(store: Store, tiny, capfd: pytest.CaptureFixture[str]) -> None:
    one = item(store, tiny(SHORT))
    with beating(attempt(store, one.run_id, job_id="8"), 10):
        assert carry(store, one, tiny(SHORT)) == EXIT_DONE
    assert "is being trained by job 8 on n1" in capfd.readouterr().err
    assert store.last_attempt(one.run_id) == 1


def test_told_to_stop_while_it_waits_for_its_earlier_life_it_stops(store: Store, tiny, life) -> None:
    one, stop = item(store, tiny(SHORT)), StopFlag()
    directory = attempt(store, one.run_id)
    life(1)
    threading.Timer(0.5, lambda: stop("the test says so")).start()
    with beating(directory, 10):
        assert carry(store, one, tiny(SHORT), stop) == EXIT_STOPPED
    assert store.last_attempt(one.run_id) == 1


def test_told_to_stop_before_it_began_it_claims_nothing(store: Store, tiny) -> None:
    one, stop = item(store, tiny(SHORT)), StopFlag()
    stop("the test says so")
    assert carry(store, one, tiny(SHORT), stop) == EXIT_STOPPED
    assert store.last_attempt(one.run_id) == 0


def test_a_description_that_is_gone_is_a_failure_in_one_line(
    store: Store, tiny, capfd: pytest.CaptureFixture[str]
) -> None:
    one = item(store, tiny(SHORT))
    store.spec_path(one.run_id).unlink()
    assert carry(store, one, tiny(SHORT)) == EXIT_FAILED
    said = capfd.readouterr().err
    assert "has the store been moved" in said
    assert "Traceback" not in said


# --- restarts in vain ---------------------------------------------------------------------------


def checkpoint(store: Store, run: str, step: int) -> None:
    directory = store.checkpoints_dir(run)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"step{step:08d}-a001.ckpt").write_bytes(b"")


@pytest.mark.parametrize(
    ("lives", "saved", "now", "expected"),
    [
        ([], 0, 4, 4),
        ([0, 0, 0], 0, 3, 3),
        ([0, 10, 20], 30, 3, 0),
        ([0, 10, 20], 20, 3, 1),
        ([0, 10, 10, 10], 10, 4, 3),
        ([0, 10, 10, 10], 10, 9, 8),
    ],
)
def test_restarts_in_vain_are_those_since_the_newest_checkpoint_was_made(
    store: Store, tiny, life, lives: list[int], saved: int, now: int, expected: int
) -> None:
    run = store.publish_spec(tiny().run)
    for number, began in enumerate(lives):
        attempt(store, run, restarts=number, began=began, **{"class": "preempted"})
    life(now)
    assert restarts_in_vain(store.attempts(run), saved) == expected


def test_what_other_jobs_did_before_does_not_count(store: Store, tiny) -> None:
    run = store.publish_spec(tiny().run)
    for number in range(9):
        attempt(store, run, job_id="6", restarts=number, **{"class": "preempted"})
    assert restarts_in_vain(store.attempts(run), 0) == 0


def test_after_five_restarts_in_vain_a_run_is_given_up_and_says_so(
    store: Store, tiny, life, capfd: pytest.CaptureFixture[str]
) -> None:
    one = item(store, tiny(SHORT))
    for number in range(RESTARTS_IN_VAIN):
        attempt(store, one.run_id, restarts=number, **{"class": "timeout"})
    life(RESTARTS_IN_VAIN)
    assert carry(store, one, tiny(SHORT)) == EXIT_FAILED
    error = store.error(one.run_id, RESTARTS_IN_VAIN + 1)
    assert error is not None
    assert error["class"] == "timeout"
    assert "no new checkpoint" in error["message"]
    assert "given up" in capfd.readouterr().err
    life(0)
    assert carry(store, one, tiny(SHORT)) == EXIT_DONE


# --- packs, trunks, evaluations -----------------------------------------------------------------


def test_what_failed_beside_others_is_not_tried_again_with_them(store: Store, tiny, life) -> None:
    one = item(store, tiny(SHORT))
    attempt(store, one.run_id, **{"class": "code"})
    life(1)
    assert carry(store, one, tiny(SHORT), again=False) == EXIT_FAILED
    assert store.last_attempt(one.run_id) == 1
    assert carry(store, one, tiny(SHORT)) == EXIT_DONE


def test_what_another_job_failed_at_is_tried_by_this_one(store: Store, tiny) -> None:
    one = item(store, tiny(SHORT))
    attempt(store, one.run_id, job_id="6", **{"class": "code"})
    assert carry(store, one, tiny(SHORT), again=False) == EXIT_DONE


TRAPEZOID = ("schedule=trapezoid", "schedule.warmup_tokens=640", "schedule.cooldown_fraction=0.5")


def trunk_attempt(store: Store, trunk: str, **error: Any) -> None:
    made = store.trunk_attempts(trunk).claim(0)
    assert made is not None
    publish(made.directory / "job.json", json.dumps({**this_process(), "lease_s": 1, "points": [], "branches": []}))
    publish(made.directory / "error.json", json.dumps(error))


def test_a_branch_fails_with_its_trunk_and_one_that_only_stopped_leaves_it_to_train_by_itself(
    store: Store, tiny
) -> None:
    resolved = tiny(*TRAPEZOID)
    trunk = trunk_id(resolved.run)
    assert trunk is not None
    assert branch_step(resolved.run) > 0
    waiting, free = item(store, resolved, trunk=trunk), item(store, resolved)
    trunk_attempt(store, trunk, **{"class": "oom", "message": "too large"})
    assert carry(store, waiting, resolved) == EXIT_FAILED
    error = store.error(waiting.run_id, 1)
    assert error is not None
    assert (error["class"], error["trunk"]) == ("oom", trunk)
    assert carry(store, free, resolved) == EXIT_DONE

    other = tiny(*TRAPEZOID, "init_seed=9")
    stopped = trunk_id(other.run)
    assert stopped is not None
    trunk_attempt(store, stopped, **{"class": "preempted", "message": "it goes on"})
    assert carry(store, item(store, other, trunk=stopped), other) == EXIT_DONE


def test_a_trunk_is_trained_to_its_points(store: Store, tiny) -> None:
    resolved = tiny(*TRAPEZOID)
    trunk, step = trunk_id(resolved.run), branch_step(resolved.run)
    run = store.publish_spec(resolved.run)
    one = Item(
        kind="trunk", run_id=run, name="trunk", row="row", seed=1, trunk_id=trunk, points=(step,), branches=(run,)
    )
    assert trunk is not None
    for _ in range(2):
        assert carry(store, one, resolved) == EXIT_DONE
    assert store.trunk_points(trunk) == (step,)
    assert store.trunk_attempts(trunk).last() == 1


def test_a_finished_run_is_evaluated_and_one_that_is_not_is_a_failure(store: Store, tiny) -> None:
    one = item(store, tiny(SHORT), "eval")
    assert carry(store, one, tiny(SHORT)) == EXIT_FAILED
    assert carry(store, item(store, tiny(SHORT)), tiny(SHORT)) == EXIT_DONE
    assert carry(store, one, tiny(SHORT)) == EXIT_DONE
    assert list((store.run_dir(run_id(tiny(SHORT).run)) / "evals").glob("*/record.json"))


def test_an_evaluation_stops_at_once_when_told_to(store: Store, tiny) -> None:
    stop = StopFlag()
    stop("the test says so")
    assert carry(store, item(store, tiny(SHORT), "eval"), tiny(SHORT), stop) == EXIT_STOPPED


def test_a_diverged_run_has_nothing_to_evaluate(store: Store, tiny) -> None:
    wild = tiny("optim.lr=1e9", "optim.weight_decay=0", "schedule.warmup_fraction=0")
    assert carry(store, item(store, wild), wild) == EXIT_DONE
    assert carry(store, item(store, wild, "eval"), wild) == EXIT_DONE
