import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.__main__ import main
from sweeps.mirror import mirror
from sweeps.store import RECORD_SCHEMA, Cell, Request, Store
from tests.sweeps.conftest import wait_for

loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def run_id(store: Store, resolve: Callable) -> str:
    run_id = store.publish_spec(resolve("model.depth=2").run)
    cells = (
        Cell(name="1:12/lr=0.001/s1", row="1:12", axes={"optim.lr": 0.001}, seed=1, run_id=run_id),
        Cell(name="no attention/s1", row="no attention", axes={}, seed=1, run_id="0123456789ab"),
    )
    store.publish_request(Request(sweep="demo", overrides=(), created_at="2026-01-01", report={}, cells=cells))
    return run_id


def train(store: Store, run_id: str, *lines: object, ended: str | None = "preempted") -> Path:
    attempt = store.claim(run_id, store.last_attempt(run_id))
    assert attempt is not None
    (attempt.directory / "job.json").write_text(json.dumps({"started_at": "2026-01-01T00:00:00+00:00"}))
    path = attempt.directory / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if ended is not None:
        (attempt.directory / "error.json").write_text(json.dumps({"class": ended, "message": ""}))
    return path


def line(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "train_loss_nats": loss, "wall_s": step / 10}


def finish(store: Store, run_id: str) -> None:
    store.run_dir(run_id).mkdir(parents=True, exist_ok=True)
    record = {"schema": RECORD_SCHEMA, "run_id": run_id, "status": "done", "metrics": {}}
    assert store.publish_record(run_id, record)


def points(to: Path, tag: str = "train_loss_nats") -> list[tuple[str, int, float]]:
    """(directory, step, value) of every point in all event files, as TensorBoard's own loader reads them."""
    found = []
    for path in sorted(to.rglob("events.out.tfevents.*")):
        for event in loader.LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == tag:
                    directory = str(path.parent.relative_to(to))
                    found.append((directory, event.step, round(value.simple_value, 3)))
    return sorted(found)


ROW = "1:12/lr=0.001/s1"


def test_a_run_is_a_directory_of_its_row_and_seed_with_its_metrics_by_step(
    store: Store, run_id: str, tmp_path: Path
) -> None:
    train(store, run_id, line(10, 3.0), {**line(20, 2.5), "val_loss_nats": 2.75})
    to = tmp_path / "board"
    assert main(["mirror", "demo", "--to", str(to), "--store", str(store.root)]) == 0
    assert points(to) == [(ROW, 10, 3.0), (ROW, 20, 2.5)]
    assert points(to, "val_loss_nats") == [(ROW, 20, 2.75)]
    [path] = (to / ROW).iterdir()
    texts = [v for e in loader.LegacyEventFileLoader(str(path)).Load() for v in e.summary.value if v.HasField("tensor")]
    assert [v.tag for v in texts] == ["config/text_summary"]
    assert texts[0].metadata.plugin_data.plugin_name == "text"
    assert "| model.d_model |" in texts[0].tensor.string_val[0].decode()


def test_no_point_is_written_twice_by_a_second_call_or_a_resumed_attempt(
    store: Store, run_id: str, tmp_path: Path
) -> None:
    to = tmp_path / "board"

    def again() -> None:
        assert mirror(store, "demo", to, follow=False, every_s=1) == 0

    train(store, run_id, line(10, 3.0), line(20, 2.5), line(30, 2.25))
    again()
    again()
    train(store, run_id, {"resumed_at_step": 20, "of_attempt": 1}, line(30, 2.25), line(40, 2.125))
    again()
    assert points(to) == [(ROW, 10, 3.0), (ROW, 20, 2.5), (ROW, 30, 2.25), (ROW, 40, 2.125)]
    files = list((to / ROW).iterdir())
    assert len(files) == 2, "a call without anything new makes no file"


def test_what_a_killed_mirror_left_half_written_is_written_again(store: Store, run_id: str, tmp_path: Path) -> None:
    to = tmp_path / "board"
    train(store, run_id, line(10, 3.0), line(20, 2.5))
    mirror(store, "demo", to, follow=False, every_s=1)
    [path] = (to / ROW).iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    mirror(store, "demo", to, follow=False, every_s=1)
    assert points(to) == [(ROW, 10, 3.0), (ROW, 20, 2.5)]


def test_following_writes_what_comes_until_all_runs_have_ended(store: Store, run_id: str, tmp_path: Path) -> None:
    to = tmp_path / "board"
    path = train(store, run_id, line(10, 3.0), ended=None)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(mirror(store, "demo", to, follow=True, every_s=0.05)))
    thread.start()
    wait_for(lambda: len(points(to)) == 1)
    with open(path, "a") as file:
        file.write(json.dumps(line(20, 2.5)) + "\n" + json.dumps(line(30, 2.0))[:9])
    wait_for(lambda: len(points(to)) == 2)
    finish(store, run_id)
    finish(store, "0123456789ab")
    thread.join(20)
    assert codes == [0]
    assert points(to) == [(ROW, 10, 3.0), (ROW, 20, 2.5)]


def test_a_second_mirror_into_the_same_directory_is_refused(
    store: Store, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    to = tmp_path / "board"
    to.mkdir()
    with open(to / ".mirror.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["mirror", "demo", "--to", str(to), "--store", str(store.root)]) == 2
    assert "another mirror" in capsys.readouterr().err
    assert main(["mirror", "dema", "--to", str(to), "--store", str(store.root)]) == 2
    assert "did you mean demo" in capsys.readouterr().err
    assert run_id


def test_names_stay_inside_the_directory(store: Store, tmp_path: Path, run_id: str) -> None:
    cells = tuple(
        Cell(name=name, row=name, axes={}, seed=1, run_id=id_)
        for name, id_ in (("../../a b", run_id), ("../../a_b", "0123456789ab"))
    )
    store.publish_request(Request(sweep="odd", overrides=(), created_at="2026-01-01", report={}, cells=cells))
    for id_ in (run_id, "0123456789ab"):
        train(store, id_, line(10, 3.0))
    to = tmp_path / "deep" / "er" / "board"
    mirror(store, "odd", to, follow=False, every_s=1)
    assert sorted(directory for directory, *_ in points(to)) == ["_/_/a_b", "_/_/a_b-0123456789ab"]
    assert set(tmp_path.iterdir()) == {tmp_path / "deep", store.root}


def test_without_tensorboard_the_command_names_what_would_do(store: Store, run_id: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tensorboard'] = None; from sweeps.__main__ import main;"
        f"sys.exit(main(['mirror', 'demo', '--to', {str(tmp_path / 'to')!r}, '--store', {str(store.root)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install -e '.[tensorboard]'" in done.stderr
    assert not (tmp_path / "to").exists()
    assert run_id
