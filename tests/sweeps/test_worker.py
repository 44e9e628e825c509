import contextlib
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from hybrid.config import Resolved
from hybrid.eval_spec import usual_evals
from hybrid.spec import ConfigError
from sweeps.identity import run_id
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Store, StoreError, publish, this_process
from sweeps.triage import classify
from sweeps.worker.claims import Busy, take
from sweeps.worker.evaluation import evaluate_one
from sweeps.worker.runs import run_one

from .conftest import REPO, TINY, wait_for

CLOCK = ("wall_s", "tokens_per_s")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def quiet(*_: Any) -> None:
    """Progress that nobody watches."""


def train(store: Store, resolved: Resolved, stop: StopFlag | None = None, progress: Callable[..., None] = quiet) -> str:
    return run_one(store, resolved.run, resolved.execution, stop=stop or StopFlag(), progress=progress)


def curve(store: Store, run: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in store.metrics(run)]


def results(store: Store, run: str) -> dict[str, Any]:
    record = store.record(run)
    assert record is not None
    return {key: value for key, value in record["metrics"].items() if key not in CLOCK}


def weights(store: Store, run: str) -> Path:
    record = store.record(run)
    assert record is not None
    return store.weights_path(run, record["attempt"])


def stop_at(step: int, stop: StopFlag) -> Callable[..., None]:
    def progress(now: int, *_: Any) -> None:
        if now >= step:
            stop("the test says so")

    return progress


def foreign(store: Store, run: str) -> Path:
    """An attempt of another host, of which only the counter can be seen."""
    attempt = store.claim(run, store.last_attempt(run))
    assert attempt is not None
    publish(attempt.directory / "job.json", json.dumps({**this_process(), "host": "elsewhere", "lease_s": 1}))
    (attempt.directory / "heartbeat").write_text("0\n")
    return attempt.directory


def test_a_finished_run_is_not_trained_again(store: Store, tiny) -> None:
    assert train(store, tiny()) == "done"
    run = run_id(tiny().run)
    before = store.record_path(run).read_bytes()
    assert train(store, tiny()) == "done"
    assert store.last_attempt(run) == 1
    assert store.record_path(run).read_bytes() == before


def test_a_finished_run_leaves_at_most_a_dozen_inodes(store: Store, tiny) -> None:
    train(store, tiny())
    evaluate_one(store, tiny().run, tiny().execution)
    directory = store.run_dir(run_id(tiny().run))
    assert len(list(directory.rglob("*"))) + 1 <= 12


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, tiny) -> None:
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    train(whole, tiny())
    for step in (13, 14, 57):
        stop = StopFlag()
        with pytest.raises(Stopped):
            train(pieces, tiny(), stop, stop_at(step, stop))
        assert pieces.status(run_id(tiny().run)) == "interrupted"
    train(pieces, tiny())
    run = run_id(tiny().run)
    assert pieces.last_attempt(run) == 4
    assert curve(pieces, run) == curve(whole, run)
    assert results(pieces, run) == results(whole, run)
    assert weights(whole, run).read_bytes() == weights(pieces, run).read_bytes()


def test_another_execution_of_the_same_run_has_the_same_id_and_nearly_the_same_curve(tmp_path: Path, tiny) -> None:
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    train(one, tiny())
    train(other, tiny("exec.microbatch=1"))
    run = run_id(tiny().run)
    a, b = load_file(weights(one, run)), load_file(weights(other, run))
    for name in a:
        assert a[name] == pytest.approx(b[name], abs=2e-3)


def test_of_two_processes_that_race_for_a_run_one_trains_and_the_other_leaves(tmp_path: Path, run_py, tiny) -> None:
    arguments = (*TINY, "budget.tokens=128000")
    processes = [run_py(*arguments) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1], errors
    assert sum("is being trained by" in error for error in errors) == 1
    store = Store(tmp_path / "store")
    run = run_id(tiny("budget.tokens=128000").run)
    assert store.status(run) == "done"
    assert store.last_attempt(run) == 1


def test_a_lease_that_stands_still_is_waited_out_and_then_taken_over(store: Store, tiny) -> None:
    run = store.publish_spec(tiny().run)
    foreign(store, run)
    assert store.status(run) == "running"
    began = time.monotonic()
    assert train(store, tiny()) == "done"
    assert time.monotonic() - began > 1.0
    assert store.last_attempt(run) == 2


def test_a_lease_that_moves_is_left_alone(store: Store, tiny) -> None:
    run = store.publish_spec(tiny().run)
    directory = foreign(store, run)
    ended = threading.Event()

    def beat() -> None:
        count = 1
        while not ended.wait(0.1):
            (directory / "heartbeat").write_text(f"{count}\n")
            count += 1

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(Busy, match="elsewhere"):
            train(store, tiny())
    finally:
        ended.set()
        thread.join()
    assert store.last_attempt(run) == 1


def test_an_owners_longer_lease_is_respected(store: Store, tiny) -> None:
    run = store.publish_spec(tiny().run)
    directory = foreign(store, run)
    job = json.loads((directory / "job.json").read_text())
    (directory / "job.json").write_text(json.dumps({**job, "lease_s": 3}))
    began = time.monotonic()
    assert take(store, run, 0.3, StopFlag()) is not None
    assert time.monotonic() - began > 3.0


def test_a_waiting_copy_sees_the_record_appear_and_leaves(store: Store, tiny) -> None:
    run = store.publish_spec(tiny().run)
    foreign(store, run)
    timer = threading.Timer(
        0.3, lambda: store.publish_record(run, {"schema": 1, "run_id": run, "status": "done", "metrics": {}})
    )
    timer.start()
    assert take(store, run, 60, StopFlag()) is None
    timer.join()
    assert store.last_attempt(run) == 1


def test_a_copy_that_lost_its_lease_stops_and_speaks_no_more_for_the_run(store: Store, tiny) -> None:
    longer = tiny("budget.tokens=640000")
    run = run_id(longer.run)

    def steal(step: int, *_: Any) -> None:
        if step == 50:
            (store.attempt_dir(run, 2)).mkdir()

    with pytest.raises(Busy):
        train(store, longer, progress=steal)
    assert store.error(run, 1) is None
    assert store.record(run) is None


def test_a_copy_that_is_late_leaves_the_winners_record_and_weights_alone(store: Store, tiny) -> None:
    """Both end at once: the other's record appears after the last look at it and before ours is published."""
    train(store, tiny())
    run = run_id(tiny().run)
    record, weights_before = store.record_path(run).read_bytes(), weights(store, run).read_bytes()
    other = tiny("exec.microbatch=1", "exec.heartbeat_s=30", "exec.lease_s=90")
    store.record_path(run).rename(store.run_dir(run) / "aside")

    def meanwhile(step: int, *_: Any) -> None:
        if step == other.run.train_steps:
            (store.run_dir(run) / "aside").rename(store.record_path(run))

    publish(store.attempt_dir(run, 1) / "error.json", json.dumps({"class": "unknown", "message": "let another try"}))
    assert train(store, other, progress=meanwhile) == "done"
    assert store.last_attempt(run) == 2
    assert store.record_path(run).read_bytes() == record
    assert weights(store, run).read_bytes() == weights_before
    assert [path.name for path in store.checkpoints_dir(run).iterdir()] == ["final-a001.safetensors"]


def test_a_copy_stops_when_another_has_recorded_the_run(store: Store, tiny) -> None:
    longer = tiny("budget.tokens=6400000")
    run = run_id(longer.run)

    def meanwhile(step: int, *_: Any) -> None:
        if step == 20:
            store.publish_record(run, {"schema": 1, "run_id": run, "status": "done", "metrics": {}, "attempt": 7})

    with pytest.raises(Busy):
        train(store, longer, progress=meanwhile)


def test_waiting_for_a_lease_ends_when_asked_to_stop(store: Store, tiny) -> None:
    run = store.publish_spec(tiny().run)
    foreign(store, run)
    stop = StopFlag()
    threading.Timer(0.3, lambda: stop("the test says so")).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        take(store, run, 60, stop)
    assert time.monotonic() - began < 30
    assert store.last_attempt(run) == 1


def test_a_failure_is_recorded_in_full_and_raised(store: Store, tiny) -> None:
    resolved = tiny("exec.device=cuda:99")
    with pytest.raises(ConfigError):
        train(store, resolved)
    run = run_id(resolved.run)
    error = store.error(run, 1)
    assert error is not None
    assert error["class"] == "code"
    assert "Traceback" in error["traceback"]
    assert "cuda:99" in (store.attempt_dir(run, 1) / "log.txt").read_text()
    assert store.status(run) == "failed"
    assert train(store, tiny()) == "done"  # the same run elsewhere, without its mistake


def test_a_loss_that_blows_up_is_a_result_and_is_not_run_again(store: Store, tiny) -> None:
    wild = tiny("optim.lr=1e9", "optim.weight_decay=0", "schedule.warmup_fraction=0")
    assert train(store, wild) == "diverged"
    assert store.status(run_id(wild.run)) == "diverged"
    assert train(store, wild) == "diverged"
    assert store.last_attempt(run_id(wild.run)) == 1


def test_an_evaluation_is_a_record_of_its_own_made_once(store: Store, tiny) -> None:
    train(store, tiny())
    run = run_id(tiny().run)
    before = store.record_path(run).read_bytes()
    (first,) = evaluate_one(store, tiny().run, tiny().execution)
    assert first["metrics"]["loss_nats"] > 0
    assert evaluate_one(store, tiny().run, tiny().execution, usual_evals(tiny().run)) == [first]
    assert evaluate_one(store, tiny().run, tiny().execution) == []
    assert store.record_path(run).read_bytes() == before


def test_a_gated_blocks_weights_are_recorded_by_block_and_position(store: Store, tiny) -> None:
    gated = tiny("model=intra", "model.intra.scalar=gate", "model.placement=end", "budget.tokens=640")
    train(store, gated)
    _, probe = evaluate_one(store, gated.run, gated.execution)
    assert probe["eval"]["kind"] == "module_weights"
    metrics = probe["metrics"]
    assert metrics["gated_blocks"] == [2]
    (by_position,) = metrics["attention_weight_by_position"]
    assert len(by_position) == gated.run.seq_len
    assert all(0 < weight < 1 for weight in by_position)
    assert metrics["attention_weight"] == pytest.approx([sum(by_position) / len(by_position)], abs=1e-5)


def test_a_users_mixer_is_trained_in_a_process_of_its_own_and_is_in_the_provenance(tmp_path: Path, run_py) -> None:
    source = REPO / "tests" / "outside" / "moving_average.py"
    arguments = (
        "-m",
        *(setting for setting in TINY if "ratio" not in setting),
        "budget.tokens=640",
        "init_seed=1",
        "model.mixers=[outside,attention]",
        "model.ratio=1:1",
        "model.outside={name:moving_average,version:1,settings:{d_inner:8}}",
        f"exec.mixers=[{source}]",
    )
    for mode in ("run", "eval"):
        process = run_py(*arguments, f"mode={mode}")
        _, err = process.communicate()
        assert process.returncode == 0, err
    store = Store(tmp_path / "store")
    (run,) = store.run_ids()
    record = store.record(run)
    assert record is not None
    assert record["status"] == "done"
    assert record["provenance"]["mixers"] == {
        "moving_average version 1": hashlib.sha256(source.read_bytes()).hexdigest()
    }
    changed = tmp_path / "changed.py"
    changed.write_text(source.read_text().replace("F.silu", "torch.sigmoid"))
    next((store.run_dir(run) / "evals").glob("*/record.json")).unlink()
    process = run_py(*arguments[:-1], f"exec.mixers=[{changed}]", "mode=eval")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "its file has changed since this run was trained" in err


def test_a_run_killed_outright_resumes_and_ends_like_one_that_was_not(tmp_path: Path, run_py, tiny) -> None:
    arguments = [*TINY, "budget.tokens=64000", "exec.checkpoint_every_s=0.05"]
    whole, killed = Store(tmp_path / "whole"), Store(tmp_path / "killed")
    longer = tiny("budget.tokens=64000")
    run = run_id(longer.run)
    train(whole, longer)
    checkpoints = killed.checkpoints_dir(run)
    for kills in (1, 2):
        process = run_py(*arguments, store=killed.root)
        seen = set(checkpoints.glob("*.ckpt"))
        wait_for(lambda seen=seen: set(checkpoints.glob("*.ckpt")) - seen)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert killed.status(run) == "lost"
        assert killed.last_attempt(run) == kills
    last = run_py(*arguments, store=killed.root)
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert out.startswith(f"{run} done: steps 1000")
    assert curve(killed, run) == curve(whole, run)
    assert results(killed, run) == results(whole, run)
    assert weights(killed, run).read_bytes() == weights(whole, run).read_bytes()


def test_terminated_it_saves_and_says_that_it_goes_on(tmp_path: Path, run_py, tiny) -> None:
    arguments = [*TINY, "budget.tokens=640000"]
    store = Store(tmp_path / "store")
    run = run_id(tiny("budget.tokens=640000").run)
    process = run_py(*arguments)
    wait_for(lambda: store.metrics(run))
    process.terminate()
    _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(store.checkpoints_dir(run).glob("*.ckpt"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB; chmod and quotas would not stop root."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(directory)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_fails_the_run_as_io_and_keeps_what_was_recorded(small_disk: Path, tiny) -> None:
    store = Store(small_disk / "store")
    store.prepare()
    train(store, tiny())
    finished = run_id(tiny().run)
    before = store.record_path(finished).read_bytes()
    (small_disk / "ballast").write_bytes(b"x" * 4096)
    fill(small_disk / "more")
    (small_disk / "ballast").unlink()
    other = tiny("init_seed=2")
    with pytest.raises(OSError, match="No space left"):
        train(store, other)
    assert store.record(run_id(other.run)) is None
    assert store.record_path(finished).read_bytes() == before
    (small_disk / "more").unlink()
    assert train(store, other) == "done"


def test_a_disk_that_fills_up_in_the_middle_ends_the_run_as_io_and_with_room_it_goes_on(
    small_disk: Path, tmp_path: Path, tiny
) -> None:
    resolved = tiny("exec.checkpoint_every_s=0.1", "exec.log_every_steps=1")
    run, store, whole = run_id(resolved.run), Store(small_disk / "store"), Store(tmp_path / "whole")
    for made in (store, whole):
        made.prepare()
    train(whole, resolved)

    def fill_up(step: int, *_: Any) -> None:
        if step == 40:
            (small_disk / "room for a word").write_bytes(b"x" * 8192)
            fill(small_disk / "more")
            (small_disk / "room for a word").unlink()

    with pytest.raises(OSError, match="No space left") as caught:
        train(store, resolved, progress=fill_up)
    assert classify(caught.value) == "io"
    error = store.error(run, 1)
    assert error is None or error["class"] == "io"
    (small_disk / "more").unlink()
    assert train(store, resolved) == "done"
    start, _ = store.attempts(run).metrics(2)
    assert start is not None
    assert start.step > 0
    assert curve(store, run) == curve(whole, run)
    assert results(store, run) == results(whole, run)


def test_a_store_that_is_moved_away_under_a_run_ends_it_without_a_record_and_moved_back_it_goes_on(
    store: Store, tmp_path: Path, tiny
) -> None:
    resolved = tiny("exec.checkpoint_every_s=0.02")
    away = tmp_path / "away"

    def move(step: int, *_: Any) -> None:
        if step == 40:
            store.root.rename(away)

    with pytest.raises((OSError, StoreError)) as caught:
        train(store, resolved, progress=move)
    assert classify(caught.value) == "io"
    assert not store.root.exists()
    away.rename(store.root)
    assert train(store, resolved) == "done"


def test_a_read_only_store_is_one_clear_message(small_disk: Path, run_py) -> None:
    Store(small_disk / "store").prepare()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    process = run_py(*TINY, store=small_disk / "store")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "read-only" in err
    assert "Traceback" not in err
