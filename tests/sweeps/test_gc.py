import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid.checkpoint_files import is_whole, point_file, step_file
from hybrid.config import Resolved
from hybrid.spec import RunSpec
from sweeps import gc
from sweeps.__main__ import main
from sweeps.gc import GcSettings, Proposal, propose, remove, survey
from sweeps.index import Index
from sweeps.notes import add_note, pin, unpin
from sweeps.store import RECORD_SCHEMA, Cell, Request, Store, this_process
from sweeps.submissions import Answer, Intent, Item, Submissions
from sweeps.trunks import branch_step, trunk_description, trunk_id

OLD_S = 7200.0
NOTHING_MORE = GcSettings()


@pytest.fixture(autouse=True)
def _own_observations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def runs(tiny: Callable[..., Resolved]) -> list[RunSpec]:
    """Runs of one trunk, the shorter first."""
    base = tiny("schedule.warmup_tokens=640").run
    found = [replace(base, train_tokens=longer * base.train_tokens) for longer in (1, 2, 4)]
    assert len({trunk_id(run) for run in found}) == 1
    assert trunk_id(base) is not None
    return found


def checkpoint(
    store: Store, owner: str, step: int, attempt: int = 1, *, trunk: bool = False, point: bool = False
) -> Path:
    """A checkpoint as training writes it."""
    torch = pytest.importorskip("torch")
    from hybrid.train.checkpoint import CheckpointStore

    directory = store.trunk_checkpoints_dir(owner) if trunk else store.checkpoints_dir(owner)
    apart = directory.parent / f"made-{step}-{attempt}"
    made = CheckpointStore(apart, run_id=owner, attempt=attempt)
    state = {"weights": torch.zeros(2000)}
    path = (made.save_point if point else made.save)(state, step)
    directory.mkdir(parents=True, exist_ok=True)
    os.rename(path, directory / path.name)
    apart.rmdir()
    return directory / path.name


def weights(store: Store, run_id: str, attempt: int = 1, size: int = 100_000) -> Path:
    path = store.weights_path(run_id, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"w" * size)
    return path


def aged(path: Path, by_s: float = OLD_S) -> Path:
    then = time.time() - by_s
    os.utime(path, (then, then))
    return path


def finish(store: Store, run: RunSpec, status: str = "done", attempt: int = 1) -> str:
    run_id = store.publish_spec(run)
    while store.last_attempt(run_id) < attempt:
        begin(store, run_id, ended=store.last_attempt(run_id) + 1 < attempt)
    content = {"schema": RECORD_SCHEMA, "run_id": run_id, "status": status, "attempt": attempt, "metrics": {}}
    assert store.publish_record(run_id, content)
    return run_id


def begin(store: Store, run_id: str, *, ended: bool = True, job: dict[str, Any] | None = None) -> int:
    """An attempt that this host saw die, unless another `job` is given."""
    attempt = store.claim(run_id, store.last_attempt(run_id))
    assert attempt is not None
    dead = {**this_process(), "pid_started": "1", "lease_s": 1}
    (attempt.directory / "job.json").write_text(json.dumps(job or dead))
    if ended and job is None:
        (attempt.directory / "error.json").write_text(json.dumps({"class": "code", "message": "died"}))
    return attempt.number


def alive() -> dict[str, Any]:
    return {**this_process(), "lease_s": 60}


def ask(store: Store, *runs: str, sweep: str = "demo") -> None:
    cells = tuple(Cell(name=run, row=run, axes={}, seed=1, run_id=run) for run in runs)
    store.publish_request(
        Request(sweep=sweep, overrides=(), created_at="2026-01-01T00:00:00+00:00", report={}, cells=cells)
    )


def submit(
    store: Store, item: Item, snapshot: str | None, job_id: str | None = "77", mixers: Sequence[str] = ()
) -> int:
    submissions = Submissions(store)
    intent = Intent(
        job_name="demo-1",
        created_at="2026-01-01T00:00:00+00:00",
        owner={},
        sweep="demo",
        overrides=(),
        tasks=((item,),),
        execution={"mixers": list(mixers)},
        resources={},
        snapshot=snapshot,
        checkpoints=str(store.checkpoints_root),
        data=str(store.data_root),
    )
    number = submissions.last() + 1
    assert submissions.publish(number, intent)
    submissions.publish_answer(number, Answer(job_id=job_id))
    return number


def item(run_id: str, kind: Any = "run", **more: Any) -> Item:
    return Item(kind=kind, run_id=run_id, name="a", row="a", seed=1, **more)


def snapshot(store: Store, name: str) -> Path:
    path = store.root / "snapshots" / name
    path.mkdir(parents=True)
    (path / "code.py").write_text("1")
    return aged(path)


def gone(store: Store, settings: GcSettings = NOTHING_MORE) -> set[Path]:
    return {removal.found.path for removal in propose(store, settings).all()}


def apply(store: Store, settings: GcSettings = NOTHING_MORE) -> Proposal:
    proposal = propose(store, settings)
    done = remove(store, proposal, settings)
    assert not done.problems
    return proposal


def tree(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def test_nothing_is_removed_unless_told_to(
    store: Store, runs: list[RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = finish(store, runs[0])
    path = checkpoint(store, run_id, 10)
    before = tree(store.root)
    assert main(["gc", "--store", str(store.root)]) == 0
    said = capsys.readouterr()
    assert str(path) in said.out
    assert "the run is finished" in said.out
    assert "nothing was removed" in said.err
    assert tree(store.root) == before
    assert main(["gc", "--apply", "--store", str(store.root)]) == 0
    assert tree(store.root) == before - {path, path.parent}


def test_a_finished_run_keeps_the_weights_of_its_record_and_no_checkpoints(store: Store, runs: list[RunSpec]) -> None:
    run_id = finish(store, runs[0], attempt=2)
    others = [checkpoint(store, run_id, 10), checkpoint(store, run_id, 20, 2), weights(store, run_id, 1)]
    kept = weights(store, run_id, 2)
    apply(store)
    assert kept.exists()
    assert not any(path.exists() for path in others)


def test_an_unfinished_run_keeps_its_last_two_whole_checkpoints(store: Store, runs: list[RunSpec]) -> None:
    run_id = store.publish_spec(runs[0])
    begin(store, run_id)
    paths = [checkpoint(store, run_id, step) for step in (10, 20, 30, 40)]
    apply(store)
    assert [path.exists() for path in paths] == [False, False, True, True]


@pytest.mark.parametrize("damage", ["cut short", "a bit turned over"])
def test_a_damaged_checkpoint_pushes_no_good_one_out(store: Store, runs: list[RunSpec], damage: str) -> None:
    run_id = store.publish_spec(runs[0])
    begin(store, run_id)
    paths = [checkpoint(store, run_id, step) for step in (10, 20, 30)]
    content = bytearray(paths[2].read_bytes())
    content[-1] ^= 1
    paths[2].write_bytes(content if damage != "cut short" else content[:-100])
    apply(store)
    assert all(path.exists() for path in paths)


def test_whole_is_what_training_wrote_and_nothing_else(store: Store) -> None:
    path = checkpoint(store, "0123456789ab", 10)
    assert is_whole(path)
    content = path.read_bytes()
    for at in (0, 100, 511, 512, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        assert not is_whole(path), at
    path.write_bytes(b"")
    assert not is_whole(path)


def test_nothing_goes_of_a_run_with_a_live_attempt(store: Store, runs: list[RunSpec]) -> None:
    run_id = store.publish_spec(runs[0])
    begin(store, run_id, job=alive())
    for step in (10, 20, 30):
        checkpoint(store, run_id, step)
    aged(checkpoint(store, run_id, 40).rename(store.checkpoints_dir(run_id) / ".step00000040-a001.tmp"))
    assert gone(store) == set()


def test_an_attempt_on_another_host_counts_as_alive_while_its_counter_is_there(
    store: Store, runs: list[RunSpec]
) -> None:
    run_id = store.publish_spec(runs[0])
    number = begin(store, run_id, job={**alive(), "host": "elsewhere"})
    heartbeat = store.attempt_dir(run_id, number) / "heartbeat"
    heartbeat.write_text("3\n")
    for step in (10, 20, 30):
        checkpoint(store, run_id, step)
    assert gone(store) == set()
    heartbeat.unlink()
    assert {path.name for path in gone(store)} == {step_file(10, 1)}


def test_an_attempt_whose_counter_stood_still_for_its_lease_is_lost_until_it_moves(
    store: Store, runs: list[RunSpec]
) -> None:
    run_id = store.publish_spec(runs[0])
    number = begin(store, run_id, job={**alive(), "host": "elsewhere", "lease_s": 0.2})
    heartbeat = store.attempt_dir(run_id, number) / "heartbeat"
    heartbeat.write_text("3\n")
    path = checkpoint(store, run_id, 10)
    for step in (20, 30):
        checkpoint(store, run_id, step)
    assert gone(store) == set()
    time.sleep(0.4)
    assert gone(store) == {path}
    proposal = propose(store, NOTHING_MORE)
    judged = gc.Judge(store, NOTHING_MORE, slurm=None, hashed=True)
    [removal] = proposal.all()
    assert judged.verdict(removal.found).why is not None
    heartbeat.write_text("4\n")
    assert judged.verdict(removal.found).why is None


def test_a_run_that_begins_between_the_scan_and_the_removal_loses_nothing(store: Store, runs: list[RunSpec]) -> None:
    run_id = store.publish_spec(runs[0])
    begin(store, run_id)
    paths = [checkpoint(store, run_id, step) for step in (10, 20, 30, 40)]
    proposal = propose(store, NOTHING_MORE)
    assert len(proposal.all()) == 2

    def begins(_: gc.Removal) -> None:
        if store.last_attempt(run_id) == 1:
            begin(store, run_id, job=alive())

    done = remove(store, proposal, NOTHING_MORE, about_to=begins)
    assert not done.removed
    assert len(done.changed) == 2
    assert all(path.exists() for path in paths)


def test_what_is_pinned_stays_and_goes_once_it_is_not(store: Store, runs: list[RunSpec]) -> None:
    run_id, other = finish(store, runs[0]), finish(store, runs[1])
    path, of_request = checkpoint(store, run_id, 10), checkpoint(store, other, 10)
    pin(store, [run_id])
    ask(store, other)
    assert gone(store) == {of_request}
    pin(store, [f"demo/{next((store.root / 'requests' / 'demo').iterdir()).stem}"])
    assert gone(store) == set()
    unpin(store, [run_id])
    assert gone(store) == {path}


def test_a_pin_between_the_scan_and_the_removal_counts(store: Store, runs: list[RunSpec]) -> None:
    run_id = finish(store, runs[0])
    path = checkpoint(store, run_id, 10)
    done = remove(store, propose(store, NOTHING_MORE), NOTHING_MORE, about_to=lambda _: pin(store, [run_id]))
    assert not done.removed
    assert path.exists()


def test_where_a_note_cannot_be_read_nothing_goes(store: Store, runs: list[RunSpec]) -> None:
    run_id = finish(store, runs[0])
    checkpoint(store, run_id, 10)
    add_note(store, [run_id], "fine")
    assert gone(store)
    (store.root / "notes" / "00000002.json").write_text("{")
    proposal = propose(store, NOTHING_MORE)
    assert not proposal.all()
    assert "may be a pin" in proposal.problems[0]


def test_checkpoints_of_runs_that_nobody_knows_go_once_they_are_old(store: Store, tmp_path: Path) -> None:
    old, young = (checkpoint(store, name, 10) for name in ("0123456789ab", "ba9876543210"))
    aged(old)
    assert gone(store) == {old}
    elsewhere = Store(store.root, checkpoints=tmp_path / "scratch")
    other = aged(checkpoint(elsewhere, "0123456789ab", 10))
    assert gone(elsewhere) == set()
    assert gone(elsewhere, GcSettings(unknown=True)) == {other}
    assert young.exists()


def test_what_killed_writers_left_goes_once_nothing_can_be_writing_it(store: Store, runs: list[RunSpec]) -> None:
    run_id = finish(store, runs[0])
    directory = store.checkpoints_dir(run_id)
    directory.mkdir(parents=True)
    names = [directory / ".step00000010-a001.tmp", store.run_dir(run_id) / ".record.json.host.12.345"]
    for path in names:
        path.write_text("half")
    assert gone(store) == set()
    for path in names:
        aged(path)
    assert gone(store) == set(names)


def test_ages_are_told_by_the_clock_of_the_file_system(
    store: Store, runs: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = finish(store, runs[0])
    path = store.run_dir(run_id) / ".record.json.host.12.345"
    path.write_text("half")
    ahead = time.time() + 10 * OLD_S
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert gone(store) == set()


def trunk_with_points(store: Store, runs: list[RunSpec]) -> tuple[str, list[Path]]:
    trunk = trunk_id(runs[0])
    assert trunk is not None
    store.publish_trunk(trunk, trunk_description(runs[0]))
    paths = []
    for run in runs[:2]:
        step = branch_step(run)
        paths.append(aged(checkpoint(store, trunk, step, trunk=True, point=True)))
        store.publish_point(trunk, step, {"attempt": 1, "wall_s": 1.0})
    assert [path.name for path in paths] == [point_file(branch_step(run)) for run in runs[:2]]
    return trunk, paths


def test_branch_points_go_only_when_asked_and_when_no_unfinished_run_starts_from_them(
    store: Store, runs: list[RunSpec]
) -> None:
    trunk, points = trunk_with_points(store, runs)
    asked = GcSettings(branch_points=True)
    first, second = finish(store, runs[0]), store.publish_spec(runs[1])
    ask(store, first, second)
    assert gone(store) == gone(store, asked) == set()
    finish(store, runs[1])
    assert gone(store) == set()
    assert gone(store, asked) == set(points)
    # A run that has not said yet what it is may start from any trunk.
    ask(store, "ffffffffffff", sweep="other")
    assert gone(store, asked) == set()
    (store.root / "requests" / "other" / "0123456789ab.json").write_text("{")  # nor does one that cannot be read
    for path in (store.root / "requests" / "other").glob("[!0]*.json"):
        path.rename(store.root / path.name)
    assert gone(store, asked) == set()
    third = store.publish_spec(runs[2])
    assert third != second
    (store.root / "requests" / "other").rename(store.root / "requests-aside")
    assert gone(store, asked) == set(points)
    submit(store, item(third, trunk_id=trunk), None)
    assert gone(store, asked) == set()


def test_a_branch_that_is_asked_for_between_the_scan_and_the_removal_keeps_the_points(
    store: Store, runs: list[RunSpec]
) -> None:
    _, points = trunk_with_points(store, runs)
    ask(store, finish(store, runs[0]))
    asked = GcSettings(branch_points=True)
    proposal = propose(store, asked)
    assert len(proposal.all()) == 2
    done = remove(store, proposal, asked, about_to=lambda _: ask(store, store.publish_spec(runs[2]), sweep="late"))
    assert not done.removed
    assert all(path.exists() for path in points)


def test_a_snapshot_stays_while_a_submission_that_runs_it_is_unfinished(store: Store, runs: list[RunSpec]) -> None:
    used, unused, young = (snapshot(store, name * 8) for name in ("ab", "cd", "ef"))
    aged(young, 10)
    run_id = store.publish_spec(runs[0])
    submit(store, item(run_id), used.name)
    assert gone(store) == {unused}
    finish(store, runs[0])
    assert gone(store) == {used, unused}
    submit(store, item("ffffffffffff"), str(used), job_id=None)  # the scheduler never took it
    assert gone(store) == {used, unused}
    apply(store)
    assert [path.exists() for path in (used, unused, young)] == [False, False, True]
    assert [path.name for path in (store.root / "snapshots").iterdir()] == [young.name]


def test_a_snapshot_stays_that_holds_the_mixer_of_a_run_that_may_be_tried_again(
    store: Store, runs: list[RunSpec]
) -> None:
    held, other = snapshot(store, "ab" * 8), snapshot(store, "cd" * 8)
    run_id = store.publish_spec(runs[0])
    ask(store, run_id)
    submit(store, item(run_id), other.name, job_id=None, mixers=[str(held / "mixers" / "0" / "mine.py")])
    assert gone(store) == {other}
    finish(store, runs[0])
    assert gone(store) == {held, other}


def test_a_snapshot_that_is_submitted_while_it_is_put_aside_is_put_back(
    store: Store, runs: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot(store, "ab" * 8)
    proposal = propose(store, NOTHING_MORE)
    rename = os.rename

    def submitted_then(source: Any, to: Any) -> None:
        rename(source, to)
        if Path(source) == path:
            submit(store, item(store.publish_spec(runs[0])), path.name)

    monkeypatch.setattr(os, "rename", submitted_then)
    done = remove(store, proposal, NOTHING_MORE)
    assert not done.removed
    assert (path / "code.py").exists()
    assert len(list(path.parent.iterdir())) == 1


def test_a_budget_takes_final_weights_of_diverged_runs_then_the_oldest_and_no_more_than_it_needs(
    store: Store, runs: list[RunSpec]
) -> None:
    oldest, diverged, newest = finish(store, runs[0]), finish(store, runs[1], "diverged"), finish(store, runs[2])
    paths = {run: weights(store, run) for run in (oldest, diverged, newest)}
    aged(paths[oldest], 3 * OLD_S)
    total = survey(store).total().n_bytes
    assert gone(store, GcSettings(max_bytes=total)) == set()
    assert gone(store, GcSettings(max_bytes=total - 1)) == {paths[diverged]}
    assert gone(store, GcSettings(max_bytes=total - 150_000)) == {paths[diverged], paths[oldest]}
    inodes = survey(store).total().inodes
    assert gone(store, GcSettings(max_inodes=inodes - 1)) == {paths[diverged]}


def test_a_budget_that_cannot_be_met_is_said_and_takes_neither_pinned_weights_nor_those_to_be_evaluated(
    store: Store, runs: list[RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    pinned, evaluated, free = (finish(store, run) for run in runs)
    paths = {run: weights(store, run) for run in (pinned, evaluated, free)}
    pin(store, [pinned])
    submit(store, item(evaluated, "eval"), None)
    proposal = propose(store, GcSettings(max_bytes=1000))
    assert {removal.found.path for removal in proposal.all()} == {paths[free]}
    assert proposal.shortfall.n_bytes > 0
    assert main(["gc", "--max-bytes", "1KB", "--store", str(store.root)]) == 1
    assert "too much, and nothing else may go" in capsys.readouterr().out
    assert main(["gc", "--max-bytes", "many", "--max-inodes", "some", "--store", str(store.root)]) == 2
    said = capsys.readouterr().err
    assert "--max-bytes" in said
    assert "--max-inodes" in said


def test_descriptions_records_attempts_requests_and_notes_are_never_up_for_removal(
    store: Store, runs: list[RunSpec]
) -> None:
    run_id = finish(store, runs[0], attempt=3)
    ask(store, run_id)
    add_note(store, [run_id], "text")
    for path in tree(store.root):
        aged(path)
    before = tree(store.root)
    apply(store, GcSettings(unknown=True, branch_points=True, max_bytes=1, max_inodes=1))
    assert tree(store.root) == before


def test_usage_counts_every_file_once(store: Store, runs: list[RunSpec], capsys: pytest.CaptureFixture[str]) -> None:
    run_id = finish(store, runs[0])
    checkpoint(store, run_id, 10)
    weights(store, run_id)
    snapshot(store, "ab" * 8)
    store.data_root.mkdir()
    (store.data_root / "train.bin").write_bytes(b"1" * 5000)
    found = survey(store)
    everything = tree(store.root)
    assert found.total().inodes + 2 == len(everything)  # but for the directories of all checkpoints and all data
    assert found.total().n_bytes + sum(
        path.stat().st_blocks * 512 for path in (store.data_root, store.checkpoints_root)
    ) == sum(path.stat().st_blocks * 512 for path in everything)
    assert found.usage["final weights"].inodes == found.usage["data"].inodes == 1
    assert main(["gc", "--usage", "--store", str(store.root)]) == 0
    assert "final weights" in capsys.readouterr().out


def test_the_index_is_counted_as_such_and_stays_but_for_what_a_killed_writer_left(
    store: Store, runs: list[RunSpec]
) -> None:
    index = Index(store)
    finish(store, runs[0])
    index.refresh()
    index.metric_lines(index.final)
    files = {path for path in tree(store.root) if path.name == "index.runs" or path.parent.name == "index.metrics"}
    assert len(files) == 2
    left = [path.with_name(f".{path.name}.there.1.2") for path in files]
    for path in left:
        path.write_bytes(b"half of it")
    for path in tree(store.root):
        aged(path)
    found = survey(store)
    assert found.usage["index"].inodes == len(files) + 1  # with the directory
    assert found.usage["other"].inodes == 1  # what says the store's format
    assert found.usage["temporaries"].inodes == len(left)
    assert gone(store, GcSettings(max_bytes=1, max_inodes=1)) == set(left)
    apply(store, GcSettings(max_bytes=1, max_inodes=1))
    assert all(path.exists() for path in files)
    assert Index(store).final == index.final
