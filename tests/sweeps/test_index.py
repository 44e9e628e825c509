"""The index says what the tree says, whatever happened to either."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.decode import encode
from hybrid.spec import ConfigError
from sweeps import columns, index
from sweeps.cells import CellRun, expand
from sweeps.columns import ABSENT, DamagedColumnsError, concatenate, from_rows, read_columns, write_columns
from sweeps.compose import Composer
from sweeps.identity import run_id as identify
from sweeps.index import Index, records_for
from sweeps.store import RECORD_SCHEMA, Store, StoreError, make_dir

HOUR_NS = 3600 * 10**9


def said(ask: Callable[[str], Any], run_id: str) -> Any:
    """The answer, or what is raised instead."""
    try:
        return ask(run_id)
    except StoreError as error:
        return str(error)


@cache
def nine_runs() -> tuple[CellRun, ...]:
    """Composed once: no test changes them."""
    with Composer() as composer:
        arguments = ("optim.lr=1e-3,2e-3,3e-3", "init_seed=1,2,3")
        return tuple(expand(arguments, composer, stdlib_fingerprint=lambda: "0" * 16).runs)


class Kept:
    """A store of nine runs, of which those are finished that a test finishes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.runs = nine_runs()
        self.ids = [identify(run.resolved.run) for run in self.runs]
        store.prepare()

    def finish(self, *numbers: int, status: str = "done", **metrics: Any) -> None:
        for i in numbers:
            spec = self.runs[i].resolved.run
            record = {
                "schema": RECORD_SCHEMA,
                "run_id": self.store.publish_spec(spec),
                "status": status,
                "spec": encode(spec),
                "cost": {"total_params": 10**20 + i} if i else {},
                "metrics": {"steps": spec.train_steps, "val_loss_nats": 2.0 + i, "wall_s": 1.5, **metrics},
                "provenance": {"host": "here", "exec": {"device": "cpu"}, "trunk": None},
            }
            assert self.store.publish_record(self.ids[i], record)

    def lines(self, i: int, lines: Sequence[dict[str, Any]], number: int = 1) -> None:
        directory = self.store.attempt_dir(self.ids[i], number)
        make_dir(directory)
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def evaluate(self, i: int, eval_id: str = "e1", **metrics: Any) -> None:
        record = {"schema": 1, "run_id": self.ids[i], "eval": {"kind": "nll"}, "metrics": metrics, "provenance": {}}
        assert self.store.publish_eval_record(self.ids[i], eval_id, record)

    def age(self) -> None:
        """As if all had happened an hour ago."""
        for path in [self.store.root, *self.store.root.rglob("*")]:
            told = path.stat()
            os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns - HOUR_NS))

    def check(self) -> Index:
        """A new index, that says what the store says."""
        found = Index(self.store)
        for run_id in self.ids:
            assert found.status(run_id) == self.store.status(run_id)
            assert said(found.record, run_id) == said(self.store.record, run_id)
            assert found.spec(run_id) == self.store.spec(run_id)
            assert said(found.run_spec, run_id) == said(self.store.run_spec, run_id)
            if found.status(run_id) in ("done", "diverged"):
                assert list(found.eval_records(run_id).items()) == list(self.store.eval_records(run_id).items())
            assert found.metrics(run_id) == self.store.metrics(run_id)
        return found


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(Store(tmp_path / "store"))


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that refreshes have looked into."""
    seen: list[str] = []
    look = index._look

    def count(store: Store, run_id: str, path: str) -> Any:
        seen.append(run_id)
        return look(store, run_id, path)

    monkeypatch.setattr(index, "_look", count)
    return seen


# --- columns ------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False), st.integers(2**52, 2**65), st.none())
VALUES = st.one_of(
    NUMBERS, st.booleans(), st.sampled_from(["", "é", "a b"]), st.lists(NUMBERS, max_size=2), st.just({"a": 1})
)
ROWS = st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), max_size=6)
NUMBER_ROWS = st.lists(st.dictionaries(st.sampled_from("ab"), NUMBERS, max_size=2), max_size=6)


def as_rows(table: columns.Table) -> list[dict[str, Any]]:
    kept = [(key[0], table.values(key)) for key in table.columns]
    return [{key: values[i] for key, values in kept if values[i] is not ABSENT} for i in range(table.n_rows)]


def typed(rows: Sequence[dict[str, Any]]) -> str:
    """1 and 1.0 and True are told apart."""
    return json.dumps(rows, sort_keys=True)


@settings(deadline=None)
@given(parts=st.lists(st.one_of(ROWS, NUMBER_ROWS), max_size=3), data=st.data())
def test_columns_give_back_what_was_put_in(
    parts: list[list[dict[str, Any]]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [row for part in parts for row in part]
    table = concatenate([from_rows(part) for part in parts])
    assert typed(as_rows(table)) == typed(rows)
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
    taken = table.take(order)
    assert typed(as_rows(taken)) == typed([rows[i] for i in order])
    path = tmp_path_factory.mktemp("columns") / "file"
    write_columns(path, "1", {"facts": 1}, taken)
    facts, again = read_columns(path, "1")
    assert facts == {"facts": 1}
    assert typed(as_rows(again)) == typed([rows[i] for i in order])


def test_nan_and_infinities_come_back_and_count_as_they_are() -> None:
    table = from_rows([{"x": math.nan}, {"x": math.inf}, {"x": None}, {}, {"x": 3}])
    values = table.values(("x",))
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, None, ABSENT, 3]
    floats = table.columns["x",].floats()  # type: ignore[union-attr]
    assert [math.isnan(x) for x in floats] == [True, False, True, True, False]


def test_some_columns_of_a_file_are_read_alone(tmp_path: Path) -> None:
    write_columns(tmp_path / "f", "1", None, from_rows([{"a": 1, "b": "x"}, {"a": 2}]))
    _, table = read_columns(tmp_path / "f", "1", {("a",)})
    assert list(table.columns) == [("a",)]
    assert table.values(("a",)) == [1, 2]


def test_a_file_with_any_byte_changed_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_columns(path, "1", None, from_rows([{"a": i, "b": f"text {i}", "c": i / 3} for i in range(8)]))
    content = path.read_bytes()
    for at in range(0, len(content), 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        with pytest.raises(DamagedColumnsError):
            read_columns(path, "1")


# --- what it says -------------------------------------------------------------------------------


def test_an_index_reads_as_the_store_does(kept: Kept) -> None:
    kept.finish(0, 1, 2, train_loss_nats=math.inf, note="a text", solved=None)
    kept.finish(3, status="diverged", reason="loss is nan")
    kept.store.publish_spec(kept.runs[4].resolved.run)
    kept.store.claim(kept.ids[4], 0)
    for i in (0, 3, 4):
        kept.lines(i, [{"step": 5 * n, "train_loss_nats": 1 / n, "lr": 0.1} for n in range(1, 4)])
    first = kept.check()
    assert first.final == tuple(sorted(kept.ids[:4]))
    assert first.unfinished == (kept.ids[4],)
    kept.check()  # from the file


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_many_records_are_put_into_columns_part_by_part(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(index, "_ROWS_A_TABLE", at_once)
    kept.finish(4, 0, 7)
    kept.check()
    kept.finish(8, 2, 1, note="others have none")
    kept.check()


def test_specs_are_decoded_as_they_were(kept: Kept) -> None:
    kept.finish(0, 1, 2)
    kept.store.publish_spec(kept.runs[3].resolved.run)
    found = kept.check()
    for i in range(4):
        assert found.run_spec(kept.ids[i]) == kept.runs[i].resolved.run
    assert found.run_spec(kept.ids[5]) is None
    assert found.run_spec(kept.ids[0]).model is found.run_spec(kept.ids[1]).model  # type: ignore[union-attr]


def test_a_spec_of_another_revision_is_an_error_not_a_guess(kept: Kept) -> None:
    kept.finish(0)
    path = kept.store.record_path(kept.ids[0])
    record = json.loads(path.read_text())
    record["spec"]["optim"]["revision"] = 2
    path.write_text(json.dumps(record))
    found = Index(kept.store)
    with pytest.raises(ConfigError, match="revision"):
        found.run_spec(kept.ids[0])


def test_evaluations_are_found_whenever_they_come(kept: Kept) -> None:
    kept.finish(0, 1)
    kept.age()
    assert kept.check().eval_records(kept.ids[0]) == {}
    kept.evaluate(0, "e1", loss_nats=2.5)
    kept.age()
    assert kept.check().eval_record(kept.ids[0], "e1") == kept.store.eval_record(kept.ids[0], "e1")
    make_dir(kept.store.eval_record_path(kept.ids[0], "e2").parent)
    kept.age()
    assert set(kept.check().eval_records(kept.ids[0])) == {"e1"}
    kept.evaluate(0, "e2", accuracy=0.5)  # which changes the directory of neither the run nor its evaluations
    assert kept.check().eval_record(kept.ids[0], "e2") == kept.store.eval_record(kept.ids[0], "e2")
    assert kept.check().eval_records(kept.ids[1]) == {}


# --- what it looks at ---------------------------------------------------------------------------


def test_a_refresh_looks_only_at_runs_that_are_not_final(kept: Kept, looked: list[str]) -> None:
    kept.finish(0, 1, 2)
    kept.evaluate(1, loss_nats=2.0)
    kept.store.publish_spec(kept.runs[3].resolved.run)
    kept.age()
    kept.check()
    assert sorted(looked) == sorted(kept.ids[:4])
    looked.clear()
    kept.check()
    assert looked == [kept.ids[3]]
    kept.finish(4)
    looked.clear()
    kept.check()
    assert sorted(looked) == sorted([kept.ids[3], kept.ids[4]])


def test_what_has_just_happened_is_looked_at_again(kept: Kept, looked: list[str]) -> None:
    """The clock of a file system may stand still while another change is made."""
    kept.finish(0)
    kept.check()
    looked.clear()
    kept.check()
    assert looked == [kept.ids[0]]


@pytest.mark.parametrize("how", ["run", "record", "replaced", "in a refreshed index"])
def test_a_run_that_is_moved_away_is_gone(kept: Kept, tmp_path: Path, how: str) -> None:
    kept.finish(0, 1, 2)
    kept.age()
    before = kept.check()
    if how == "record":
        kept.store.record_path(kept.ids[1]).rename(tmp_path / "away")
    else:
        kept.store.run_dir(kept.ids[1]).rename(tmp_path / "away")
    if how == "replaced":
        kept.finish(1, val_loss_nats=7.5)
        kept.age()
    if how == "in a refreshed index":
        before.refresh()
        assert before.final == tuple(sorted([kept.ids[0], kept.ids[2]]))
        assert before.status(kept.ids[1]) == "new"
    found = kept.check()
    record = found.record(kept.ids[1])
    assert record is None if how != "replaced" else record["metrics"]["val_loss_nats"] == 7.5  # type: ignore[index]


def test_few_runs_of_a_large_store_are_read_without_a_look_at_all_the_others(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.finish(*range(9))
    assert records_for(kept.store, 9) is kept.store
    monkeypatch.setattr(index, "FEWEST_RUNS", 2)
    assert records_for(kept.store, 1) is kept.store
    assert isinstance(records_for(kept.store, 2), Index)
    monkeypatch.setattr(index, "_LOOK_PER_READ", 0.5)
    found = [isinstance(records_for(kept.store, n), Index) for n in range(2, 9)]
    assert found == sorted(found)  # from some number on
    assert (found[0], found[-1]) == (False, True)
    assert records_for(Store(kept.store.root / "none"), 1) is not None


# --- what may be wrong --------------------------------------------------------------------------


def wreck(path: Path, how: str) -> None:
    match how:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-3])
        case "flipped":
            content = bytearray(path.read_bytes())
            content[-5] ^= 1
            path.write_bytes(content)
        case "another schema":
            path.write_bytes(path.read_bytes().replace(f" {index._SCHEMA} ".encode(), b" 0.1 ", 1))
        case "a header longer than any memory":
            first, rest = path.read_bytes().split(b"\n", 1)
            *words, _, checksum = first.split()
            path.write_bytes(b" ".join([*words, b"9" * 18, checksum]) + b"\n" + rest)
        case "garbage":
            path.write_bytes(bytes(range(256)) * 40)
        case "a directory":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize(
    "how",
    [
        *("missing", "empty", "cut", "flipped", "garbage"),
        *("another schema", "a header longer than any memory", "a directory"),
    ],
)
def test_an_index_in_any_state_is_made_again(kept: Kept, how: str, looked: list[str]) -> None:
    kept.finish(0, 1)
    kept.lines(0, [{"step": 1, "lr": 0.5}])
    kept.age()
    kept.check().metric_lines(kept.ids[:2])
    metrics = kept.store.root / "index.metrics" / kept.ids[0][:2]
    for path in (kept.store.root / "index.runs", metrics):
        wreck(path, how)
    looked.clear()
    counts, table, problems = kept.check().metric_lines(kept.ids[:2])
    assert counts == {kept.ids[0]: 1, kept.ids[1]: 0}
    assert table.values(("lr",)) == [0.5]
    assert problems == {}
    assert sorted(looked) == sorted(kept.ids[:2])
    looked.clear()
    if how != "a directory":
        kept.check()
        assert looked == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "run_id": "x", "status": "done", "metrics": {}}']
)
def test_a_record_that_cannot_be_read_is_damaged_and_stays_visible(kept: Kept, content: str) -> None:
    kept.finish(0, 1)
    path = kept.store.record_path(kept.ids[1])
    path.unlink()
    path.write_text(content)
    kept.age()
    found = kept.check()
    assert found.status(kept.ids[1]) == "damaged"
    assert found.unfinished == (kept.ids[1],)
    path.unlink()
    kept.finish(1)
    assert kept.check().status(kept.ids[1]) == "done"


def test_an_empty_store_has_an_empty_index_and_no_file(tmp_path: Path) -> None:
    found = Index(Store(tmp_path / "none"))
    assert (found.final, found.unfinished, found.table.n_rows) == ((), (), 0)
    assert found.status("0" * 12) == "new"
    assert found.record("0" * 12) is None
    assert found.metric_lines([])[1].n_rows == 0
    assert not (tmp_path / "none").exists()


def test_a_store_of_a_newer_format_is_not_read(kept: Kept) -> None:
    (kept.store.root / "format.json").write_text('{"format": 9}')
    with pytest.raises(StoreError, match="format 9"):
        Index(kept.store)


def test_strangers_in_the_tree_are_passed_over(kept: Kept) -> None:
    kept.finish(0)
    shard = kept.store.run_dir(kept.ids[0]).parent
    (shard / "notes.txt").write_text("mine")
    shutil.copytree(kept.store.run_dir(kept.ids[0]), shard / f"{kept.ids[0]}.old")
    (kept.store.root / "runs" / "README").write_text("ours")
    assert kept.check().final == (kept.ids[0],)


# --- where it cannot be written -----------------------------------------------------------------


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Nothing can be written below these: root may write whatever its permissions are."""
    shut: list[Path] = []
    replace, made = os.replace, index.make_dir

    def closed(path: Path) -> bool:
        return any(path.is_relative_to(place) for place in shut)

    def no_replace(source: Path, target: Path) -> None:
        if closed(Path(target)):
            raise PermissionError(13, "Permission denied", str(target))
        replace(source, target)

    def no_dir(path: Path) -> None:
        if closed(path) and not path.is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        made(path)

    monkeypatch.setattr(os, "replace", no_replace)
    monkeypatch.setattr(index, "make_dir", no_dir)
    return shut.append


def test_who_may_only_read_keeps_an_index_of_their_own(
    kept: Kept, read_only: Callable[[Path], None], looked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept.finish(0, 1)
    kept.lines(0, [{"step": 1, "lr": 0.5}])
    kept.age()
    before = sorted(kept.store.root.rglob("*"))
    read_only(kept.store.root)
    kept.check().metric_lines(kept.ids[:2])
    assert sorted(kept.store.root.rglob("*")) == before
    assert list((tmp_path / "cache").rglob("index.runs"))
    looked.clear()
    kept.check()
    assert looked == []
    read_only(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    assert kept.check().metric_lines(kept.ids[:2])[1].values(("lr",)) == [0.5]
    assert not list((tmp_path / "cache").rglob("index.*"))


def test_a_disk_that_is_full_leaves_nothing_behind(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.finish(0)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    kept.check()
    assert not list(kept.store.root.glob(".index*"))
    assert not list(kept.store.root.glob("index*"))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_killed_while_it_writes_it_leaves_a_store_that_works(kept: Kept, after: int) -> None:
    kept.finish(0, 1)
    kept.age()
    kept.check()
    kept.finish(2)
    code = f"""
import os, sys
from pathlib import Path
from sweeps import columns
from sweeps.index import Index
from sweeps.store import Store
replace = os.replace
os.replace = lambda *a: os.kill(os.getpid(), 9) if {after} == 0 else replace(*a)
if {after}:
    real = columns.json.dumps
    calls = iter(range(99))
    columns.json.dumps = lambda value: os.kill(os.getpid(), 9) if next(calls) == {after} else real(value)
Index(Store(Path({str(kept.store.root)!r})))
"""
    repo = Path(__file__).resolve().parent.parent.parent
    killed = subprocess.run([sys.executable, "-c", code], cwd=repo, env={**os.environ, "PYTHONPATH": str(repo)})
    assert killed.returncode == -9
    assert kept.check().final == tuple(sorted(kept.ids[:3]))


def test_writers_at_once_leave_a_whole_index(kept: Kept) -> None:
    kept.finish(*range(9))
    for i in range(9):
        kept.lines(i, [{"step": n, "lr": i + n / 10} for n in range(20)])
    code = f"""
from pathlib import Path
from sweeps.index import Index
from sweeps.store import Store
for _ in range(15):
    found = Index(Store(Path({str(kept.store.root)!r})))
    assert len(found.final) == 9
    counts, lines, problems = found.metric_lines(found.final)
    assert lines.n_rows == 180 and not problems, problems
"""
    repo = Path(__file__).resolve().parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=repo, env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    kept.check()
    read_columns(kept.store.root / "index.runs", index._SCHEMA)
    assert not list(kept.store.root.rglob(".*"))


# --- metric lines -------------------------------------------------------------------------------


def lines_of(
    found: Index, run_ids: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    counts, table, problems = found.metric_lines(run_ids, names)
    assert not problems
    rows = iter(as_rows(table))
    return {run_id: [next(rows) for _ in range(n)] for run_id, n in counts.items()}


def test_metric_lines_are_those_of_the_store_in_the_order_asked_for(kept: Kept) -> None:
    kept.finish(0, 1, 2, 3)
    kept.lines(0, [{"step": 1, "lr": 0.5}, {"step": 2, "lr": 1, "solved": True}])
    kept.lines(1, [{"step": 1, "val_loss_nats": None}, {"step": 2, "val_loss_nats": 2.5}])
    kept.lines(3, [{"step": 7, "lr": 0.25}])
    kept.store.publish_spec(kept.runs[4].resolved.run)
    kept.store.claim(kept.ids[4], 0)
    kept.lines(4, [{"step": 3, "lr": 2.0}])
    kept.age()
    expected = {run_id: kept.store.metrics(run_id) for run_id in kept.ids[:5]}
    for order in (kept.ids[:5], kept.ids[4::-1], [kept.ids[3], kept.ids[0]], kept.ids[:1], [kept.ids[8]]):
        for _ in range(2):
            got = lines_of(Index(kept.store), order)
            assert list(got) == order
            assert typed([got[run_id] for run_id in order]) == typed([expected.get(run_id, []) for run_id in order])
            metrics = Index(kept.store).metrics_of(order)
            assert typed([metrics(run_id) for run_id in order]) == typed([expected.get(run_id, []) for run_id in order])
            assert metrics("0" * 12) == []
    only = lines_of(Index(kept.store), kept.ids[:2], ["lr"])
    assert only == {kept.ids[0]: [{"lr": 0.5}, {"lr": 1}], kept.ids[1]: [{}, {}]}


def test_kept_metric_lines_are_not_read_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.finish(0, 1)
    kept.lines(0, [{"step": 1, "lr": 0.5}])
    kept.lines(1, [{"step": 1, "lr": 0.25}])
    first = lines_of(Index(kept.store), kept.ids[:2], ["lr"])
    kept.evaluate(0, loss_nats=1.0)  # says nothing about them
    found = Index(kept.store)
    monkeypatch.setattr(Store, "metrics", None)
    assert lines_of(found, kept.ids[:2], ["lr"]) == first
    assert lines_of(found, kept.ids[:1]) == {kept.ids[0]: [{"step": 1, "lr": 0.5}]}


def test_metric_lines_of_many_runs_are_read_by_several_processes(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.finish(*range(9))
    for i in range(9):
        kept.lines(i, [{"step": n, "lr": i + n / 10} for n in range(5)])
    kept.age()
    expected = {run_id: kept.store.metrics(run_id) for run_id in kept.ids}
    monkeypatch.setattr(index, "_MANY_RUNS", 9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    found = Index(kept.store)
    here: list[str] = []
    read = Index.metrics
    monkeypatch.setattr(Index, "metrics", lambda self, run_id: here.append(run_id) or read(self, run_id))
    assert lines_of(found, kept.ids) == expected
    shards = len({run_id[:2] for run_id in kept.ids})
    assert 0 < len(here) < 9
    assert len({run_id[:2] for run_id in here}) == len(range(0, shards, 3))


@pytest.mark.parametrize("how", ["does nothing", "cannot begin"])
def test_what_a_helping_process_leaves_undone_is_done_here(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    kept.finish(*range(9))
    kept.lines(8, [{"step": 1, "lr": 0.5}])
    monkeypatch.setattr(index, "_MANY_RUNS", 9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    if how == "does nothing":
        monkeypatch.setattr(sys, "executable", "/bin/true")
    else:
        monkeypatch.setattr(index, "_ROOT", Path("/nowhere"))
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert lines_of(Index(kept.store), kept.ids)[kept.ids[8]] == [{"step": 1, "lr": 0.5}]


def test_metric_lines_of_a_run_that_was_trained_again_are_the_new_ones(kept: Kept, tmp_path: Path) -> None:
    kept.finish(0)
    kept.lines(0, [{"step": 1, "lr": 0.5}])
    kept.age()
    lines_of(Index(kept.store), kept.ids[:1])
    kept.store.run_dir(kept.ids[0]).rename(tmp_path / "away")
    kept.finish(0)
    kept.lines(0, [{"step": 1, "lr": 0.125}])
    kept.age()
    assert lines_of(Index(kept.store), kept.ids[:1]) == {kept.ids[0]: [{"step": 1, "lr": 0.125}]}


def test_metric_lines_that_cannot_be_read_are_told_and_the_others_given(kept: Kept) -> None:
    kept.finish(0, 1, 2)
    kept.lines(0, [{"step": 1, "lr": 0.5}])
    kept.lines(1, [{"lr": 0.5}])
    kept.lines(2, [])
    (kept.store.attempt_dir(kept.ids[2], 1) / "metrics.jsonl").write_bytes(b"\xff\xfe")
    counts, table, problems = Index(kept.store).metric_lines(kept.ids[:3])
    assert counts == {kept.ids[0]: 1}
    assert table.n_rows == 1
    assert sorted(problems) == sorted(kept.ids[1:3])


def test_a_refresh_of_what_has_not_changed_writes_nothing(kept: Kept) -> None:
    kept.finish(0, 1)
    kept.age()
    kept.check()
    path = kept.store.root / "index.runs"
    before = path.stat().st_ino, path.stat().st_mtime_ns
    time.sleep(0.01)
    kept.check()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_a_run_that_may_not_be_read_is_not_passed_over(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.finish(0, 1)

    def closed(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "_look", closed)
    assert Index(kept.store).unfinished == tuple(sorted(kept.ids[:2]))


def test_a_store_that_cannot_be_listed_is_an_error(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.finish(0)

    def closed(path: Path | str) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(index, "_listed", closed)
    with pytest.raises(StoreError, match=r"runs: cannot be listed \(Permission denied\)"):
        Index(kept.store)
