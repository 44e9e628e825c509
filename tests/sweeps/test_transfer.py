import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid.config import Resolved
from hybrid.decode import encode
from hybrid.spec import ConfigError, RunSpec
from sweeps.__main__ import main
from sweeps.notes import NoteBook, add_note, change_tags, notes_of
from sweeps.store import RECORD_SCHEMA, Cell, Request, Store, StoreError, this_process
from sweeps.transfer.archives import opened, write_archive
from sweeps.transfer.members import choose_all, members
from sweeps.transfer.merging import Merged, merge
from sweeps.trunks import branch_step, trunk_description, trunk_id


@pytest.fixture
def runs(tiny: Callable[..., Resolved]) -> list[RunSpec]:
    """Runs of one trunk, the shorter first."""
    base = tiny("schedule.warmup_tokens=640").run
    found = [replace(base, train_tokens=longer * base.train_tokens) for longer in (1, 2, 4)]
    assert len({trunk_id(run) for run in found}) == 1
    assert trunk_id(base) is not None
    return found


@pytest.fixture
def two(tmp_path: Path) -> tuple[Store, Store]:
    """A cluster's store and a laptop's."""
    found = Store(tmp_path / "cluster"), Store(tmp_path / "laptop")
    for store in found:
        store.prepare()
    return found


_COUNT = iter(range(10**6))


def attempt(
    store: Store,
    run_id: str,
    steps: Sequence[int],
    *,
    start: dict[str, Any] | None = None,
    error: str | None = "code",
    trunk: bool = False,
    job: dict[str, Any] | None = None,
) -> int:
    """An attempt elsewhere, whose losses are unlike those of any other."""
    attempts = store.trunk_attempts(run_id) if trunk else store.attempts(run_id)
    claimed = attempts.claim(attempts.last())
    assert claimed is not None
    mark = next(_COUNT)
    job = job or {**this_process(), "host": store.root.name, "pid": mark, "lease_s": 1}
    (claimed.directory / "job.json").write_text(json.dumps(job))
    lines = [] if start is None else [start]
    lines += [{"step": step, "train_loss_nats": mark + step / 1000, "wall_s": float(step)} for step in steps]
    (claimed.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (claimed.directory / "log.txt").write_text(f"{store.root.name} {mark}\n")
    if error is not None:
        (claimed.directory / "error.json").write_text(json.dumps({"class": error, "message": "died"}))
    return claimed.number


def finish(store: Store, run: RunSpec, number: int, **metrics: float) -> str:
    run_id = store.publish_spec(run)
    content = {
        "schema": RECORD_SCHEMA,
        "run_id": run_id,
        "status": "done",
        "attempt": number,
        "spec": encode(run),
        "cost": {},
        "metrics": {"steps": 100, "tokens": 6400, "wall_s": 1.0, "val_loss_nats": 2.0, **metrics},
        "provenance": {"command": [store.root.name]},
    }
    assert store.publish_record(run_id, content)
    return run_id


def ask(store: Store, *cells: tuple[str, str], sweep: str = "demo") -> Path:
    found = tuple(Cell(name=name, row=name, axes={}, seed=1, run_id=run) for name, run in cells)
    return store.publish_request(
        Request(sweep=sweep, overrides=(), created_at="2026-01-01T00:00:00+00:00", report={}, cells=found)
    )


def merged(into: Store, source: Store, *, weights: bool = True, points: bool = True) -> Merged:
    with opened(source.root, weights=weights, points=points, left=[]) as archive:
        return merge(into, archive)


def through_file(into: Store, source: Store, file: Path) -> Merged:
    write_archive(file, members(source, choose_all(weights=True, points=True), []), source="there")
    with opened(file, weights=True, points=True, left=[]) as archive:
        return merge(into, archive)


def contents(store: Store) -> dict[str, bytes]:
    return {str(p.relative_to(store.root)): p.read_bytes() for p in store.root.rglob("*") if p.is_file()}


def curves(store: Store) -> dict[str, Any]:
    return {run_id: store.metrics(run_id) for run_id in store.run_ids()}


def told(store: Store) -> dict[str, Any]:
    """What a store says, whatever its attempts are numbered."""
    said: dict[str, Any] = {"requests": sorted(Path(path).name for path in store.request_files())}
    for run_id in store.run_ids():
        record = store.record(run_id)
        attempts = store.attempts(run_id)
        jobs = {json.dumps(attempts.job(number)) for number in range(1, attempts.last() + 1)}
        said[run_id] = (None if record is None else {**record, "attempt": None}, jobs - {"null"})
        said[f"{run_id} curve"] = None if record is None else store.metrics(run_id)
        said[f"{run_id} weights"] = (
            None
            if record is None or not (path := store.weights_path(run_id, record["attempt"])).exists()
            else path.read_bytes()
        )
    subjects = sorted(NoteBook(store).subjects())
    said["notes"] = {s: (sorted(n.text for n in notes_of(store, s).notes), notes_of(store, s).tags) for s in subjects}
    return said


def weights(store: Store, run_id: str, number: int, content: bytes) -> None:
    path = store.weights_path(run_id, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("file", [None, "all.tar", "all.tar.gz"])
def test_all_that_a_store_holds_arrives_in_an_empty_one(
    two: tuple[Store, Store], runs: list[RunSpec], tmp_path: Path, file: str | None
) -> None:
    cluster, laptop = two
    run_id = cluster.publish_spec(runs[0])
    attempt(cluster, run_id, [10, 20, 30])
    second = attempt(cluster, run_id, [30, 40], start={"resumed_at_step": 20, "of_attempt": 1}, error=None)
    finish(cluster, runs[0], second)
    weights(cluster, run_id, second, b"w" * 3_000_000)
    assert cluster.publish_eval_record(
        run_id, "abcd1234", {"schema": 1, "run_id": run_id, "metrics": {"x": float("nan")}}
    )
    path = ask(cluster, ("a", run_id))
    os.utime(path, ns=(10**18, 10**18 + 123_456_000))
    add_note(cluster, [run_id], "text")
    change_tags(cluster, f"demo/{path.stem}", ["+paper"])
    cluster.publish_speed("0123456789ab", "cpu-runs", {"tokens_per_s": 1.0})
    (cluster.root / "diffs").mkdir()
    (cluster.root / "diffs" / "abcd.patch").write_text("diff")
    found = merged(laptop, cluster) if file is None else through_file(laptop, cluster, tmp_path / file)
    assert not found.conflicts
    assert told(laptop) == told(cluster)
    same = {name: text for name, text in contents(laptop).items() if Path(name).name != "imported.json"}
    assert same == contents(cluster)
    assert (laptop.root / path.relative_to(cluster.root)).stat().st_mtime_ns == pytest.approx(
        path.stat().st_mtime_ns, abs=1000
    )


def test_importing_again_changes_nothing_and_says_nothing(
    two: tuple[Store, Store], runs: list[RunSpec], tmp_path: Path
) -> None:
    cluster, laptop = two
    for store in two:
        attempt(store, store.publish_spec(runs[0]), [10])
        cluster.publish_speed("0123456789ab", "cpu-runs", {"tokens_per_s": 1.0})
    finish(cluster, runs[0], attempt(cluster, cluster.publish_spec(runs[0]), [10, 20], error=None))
    merged(laptop, cluster)
    before = contents(laptop)
    again = merged(laptop, cluster)
    again_from_file = through_file(laptop, cluster, tmp_path / "all.tar")
    assert not again.new
    assert not again_from_file.new
    assert not again.conflicts
    assert contents(laptop) == before


def test_attempts_of_both_stores_are_kept_and_the_records_curve_stays_its_own(
    two: tuple[Store, Store], runs: list[RunSpec]
) -> None:
    cluster, laptop = two
    run_id = laptop.publish_spec(runs[0])
    attempt(laptop, run_id, [10, 20])
    assert cluster.publish_spec(runs[0]) == run_id
    attempt(cluster, run_id, [10, 20, 30])
    second = attempt(cluster, run_id, [30, 40], start={"resumed_at_step": 20, "of_attempt": 1}, error=None)
    finish(cluster, runs[0], second)
    weights(cluster, run_id, second, b"the cluster's")
    merged(laptop, cluster)
    record = laptop.record(run_id)
    assert record is not None
    assert record["attempt"] == 3
    assert laptop.weights_path(run_id, 3).read_bytes() == b"the cluster's"
    assert [line["step"] for line in laptop.metrics(run_id)] == [10, 20, 30, 40]
    assert laptop.metrics(run_id) == cluster.metrics(run_id)
    # And back: what the cluster has already, it knows again.
    assert not merged(cluster, laptop).conflicts
    assert cluster.metrics(run_id) == laptop.metrics(run_id)
    assert cluster.last_attempt(run_id) == laptop.last_attempt(run_id) == 3
    assert not merged(laptop, cluster).new


def test_two_records_of_one_run_are_told_of_and_this_stores_own_stands(
    two: tuple[Store, Store], runs: list[RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, laptop = two
    for store, loss in ((cluster, 2.5), (laptop, 2.25)):
        run_id = store.publish_spec(runs[0])
        finish(store, runs[0], attempt(store, run_id, [10, 20], error=None), val_loss_nats=loss)
        weights(store, run_id, 1, store.root.name.encode())
    other = cluster.publish_spec(runs[1])
    attempt(cluster, other, [10])
    before = laptop.metrics(run_id)
    assert main(["import", str(cluster.root), "--weights", "--store", str(laptop.root)]) == 1
    said = capsys.readouterr().err
    assert f"conflict: run {run_id}" in said
    assert "val_loss_nats 2.25 here, 2.5 there" in said
    record = laptop.record(run_id)
    assert record is not None
    assert record["metrics"]["val_loss_nats"] == 2.25
    assert laptop.metrics(run_id) == before
    assert laptop.weights_path(run_id, 1).read_bytes() == b"laptop"
    assert not laptop.weights_path(run_id, 2).exists()
    assert laptop.last_attempt(run_id) == 2  # the other's history is kept
    error = laptop.error(run_id, 2)
    assert error is not None
    assert "another record stands here" in error["message"]
    assert laptop.status(other) == "failed"


def test_another_description_of_a_run_is_told_of_and_nothing_of_it_taken(
    two: tuple[Store, Store], runs: list[RunSpec]
) -> None:
    cluster, laptop = two
    run_id = cluster.publish_spec(runs[0])
    attempt(cluster, run_id, [10])
    cluster.spec_path(run_id).write_text("{}")
    found = merged(laptop, cluster)
    assert found.conflicts == [f"run {run_id}: the description of another; nothing of it was taken"]
    assert not laptop.run_dir(run_id).exists()


def test_a_run_under_way_here_is_left_alone(two: tuple[Store, Store], runs: list[RunSpec]) -> None:
    cluster, laptop = two
    run_id = laptop.publish_spec(runs[0])
    attempt(laptop, run_id, [10], error=None, job={**this_process(), "lease_s": 60})
    assert cluster.publish_spec(runs[0]) == run_id
    finish(cluster, runs[0], attempt(cluster, run_id, [10], error=None))
    found = merged(laptop, cluster)
    assert found.left == [f"run {run_id}: is under way here; import again once it has ended"]
    assert laptop.record(run_id) is None
    assert laptop.last_attempt(run_id) == 1
    (laptop.attempt_dir(run_id, 1) / "error.json").write_text(json.dumps({"class": "code", "message": "died"}))
    merged(laptop, cluster)
    assert laptop.status(run_id) == "done"


def test_an_attempt_under_way_there_is_not_taken_and_one_that_was_lost_is_no_live_one_here(
    two: tuple[Store, Store], runs: list[RunSpec]
) -> None:
    cluster, laptop = two
    live, lost = cluster.publish_spec(runs[0]), cluster.publish_spec(runs[1])
    attempt(cluster, live, [10], error="preempted")
    attempt(cluster, live, [20], error=None, job={**this_process(), "lease_s": 60})
    attempt(cluster, lost, [10], error=None, job={**this_process(), "pid_started": "1", "lease_s": 60})
    left: list[str] = []
    with opened(cluster.root, weights=False, points=False, left=left) as archive:
        merge(laptop, archive)
    assert left == [f"run {live}: its attempt 2, which somebody may be at just now"]
    assert laptop.last_attempt(live) == 1
    assert laptop.status(live) == "interrupted"
    assert laptop.status(lost) == "failed"


def test_a_trunks_attempts_are_renumbered_where_runs_name_them(two: tuple[Store, Store], runs: list[RunSpec]) -> None:
    cluster, laptop = two
    trunk, step = trunk_id(runs[0]), branch_step(runs[0])
    assert trunk is not None
    for store in two:
        store.publish_trunk(trunk, trunk_description(runs[0]))
    attempt(laptop, trunk, [10], trunk=True)
    attempt(cluster, trunk, [10, step], trunk=True)
    cluster.publish_point(trunk, step, {"attempt": 1, "wall_s": 1.0})
    run_id = cluster.publish_spec(runs[0])
    start = {"branched_at_step": step, "of_attempt": 1, "trunk": trunk, "wall_s": 1.0}
    finish(cluster, runs[0], attempt(cluster, run_id, [step + 1], start=start, error=None))
    found = merged(laptop, cluster)
    assert laptop.metrics(run_id) == cluster.metrics(run_id)
    assert [line["step"] for line in laptop.metrics(run_id)] == [10, step, step + 1]
    # The checkpoint would name an attempt that is another one here.
    assert laptop.trunk_points(trunk) == ()
    assert "this one's points stand" in found.left[0]


def test_branch_points_arrive_with_their_checkpoints_where_asked_for(
    two: tuple[Store, Store], runs: list[RunSpec]
) -> None:
    cluster, laptop = two
    trunk, step = trunk_id(runs[0]), branch_step(runs[0])
    assert trunk is not None
    cluster.publish_trunk(trunk, trunk_description(runs[0]))
    attempt(cluster, trunk, [step], trunk=True)
    cluster.publish_point(trunk, step, {"attempt": 1, "wall_s": 1.0})
    path = cluster.trunk_checkpoints_dir(trunk) / f"point{step:08d}.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a checkpoint")
    merged(laptop, cluster, points=False)
    assert laptop.trunk_points(trunk) == ()
    merged(laptop, cluster)
    assert laptop.trunk_points(trunk) == (step,)


def test_an_import_that_was_interrupted_anywhere_is_completed_by_another(
    two: tuple[Store, Store], runs: list[RunSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster, laptop = two
    run_id = laptop.publish_spec(runs[0])
    attempt(laptop, run_id, [10])
    cluster.publish_spec(runs[0])
    attempt(cluster, run_id, [10, 20])
    second = attempt(cluster, run_id, [30], start={"resumed_at_step": 20, "of_attempt": 1}, error=None)
    finish(cluster, runs[0], second)
    weights(cluster, run_id, second, b"w" * 1000)
    ask(cluster, ("a", run_id))
    link, wanted = os.link, None
    for allowed in range(100):
        half = Store(tmp_path / f"half{allowed}")
        shutil.copytree(laptop.root, half.root)
        left = allowed

        def interrupted(source: Any, to: Any) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            link(source, to)

        monkeypatch.setattr(os, "link", interrupted)
        ended = True
        try:
            merged(half, cluster)
        except KeyboardInterrupt:
            ended = False
        monkeypatch.setattr(os, "link", link)
        assert not list(half.root.rglob(".*"))
        merged(half, cluster)
        wanted = wanted or told(half)
        assert told(half) == wanted, allowed
        assert half.metrics(run_id) == cluster.metrics(run_id)
        if ended:
            break
    assert allowed > 10


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../outside",
        "runs/ab/../../../x",
        "runs/ab/abcdefabcdef/.hidden",
        "runs/ab/cdcdcdcdcdcd/spec.json",
    ],
)
def test_names_that_no_export_has_are_refused_before_anything_is_written(
    two: tuple[Store, Store], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "hostile.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    before = set(tmp_path.rglob("*"))
    assert main(["import", str(archive), "--store", str(two[1].root)]) == 2
    assert "is not the name of a file of a store" in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "hostile.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("runs/ab/abcdefabcdef/spec.json")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ConfigError, match="no plain file"), opened(archive, weights=True, points=True, left=[]):
        pass


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_torn_or_altered_archive_is_refused_wherever_it_was_cut(
    two: tuple[Store, Store], runs: list[RunSpec], tmp_path: Path, suffix: str
) -> None:
    cluster, laptop = two
    finish(cluster, runs[0], attempt(cluster, cluster.publish_spec(runs[0]), [10], error=None))
    whole = tmp_path / f"whole{suffix}"
    write_archive(whole, members(cluster, choose_all(weights=True, points=True), []), source="there")
    content = whole.read_bytes()
    before = contents(laptop)
    torn = tmp_path / f"torn{suffix}"
    last = len(content.rstrip(b"\0")) if suffix == ".tar" else len(content) - 200  # zeros
    for at in [0, 1, 511, 512, *range(1024, last, max(1, last // 40)), last - 1]:
        torn.write_bytes(content[:at])
        with pytest.raises(ConfigError), opened(torn, weights=True, points=True, left=[]) as archive:
            merge(laptop, archive)
    assert contents(laptop) == before
    if suffix == ".tar":
        at = content.index(b'"val_loss_nats"')
        torn.write_bytes(content[:at] + b"X" + content[at + 1 :])
        with (
            pytest.raises(ConfigError, match="not those of its manifest"),
            opened(torn, weights=True, points=True, left=[]),
        ):
            pass


def test_a_store_of_a_newer_format_is_refused(two: tuple[Store, Store], tmp_path: Path) -> None:
    cluster, laptop = two
    archive = tmp_path / "newer.tar"
    write_archive(archive, members(cluster, choose_all(weights=True, points=True), []), source="there")
    content = archive.read_bytes().replace(b'{"format": 1}', b'{"format": 2}')
    archive.write_bytes(content)
    (cluster.root / "format.json").write_text('{"format": 2}')
    for source in (archive, cluster.root):
        with pytest.raises(StoreError, match="reads format 1"), opened(source, weights=True, points=True, left=[]):
            pass
    assert set(contents(laptop)) == {"format.json"}


def test_an_export_by_name_takes_the_requests_runs_and_their_trunk_and_nothing_else(
    two: tuple[Store, Store], runs: list[RunSpec], tmp_path: Path
) -> None:
    cluster, laptop = two
    trunk = trunk_id(runs[0])
    assert trunk is not None
    cluster.publish_trunk(trunk, trunk_description(runs[0]))
    ids = [cluster.publish_spec(run) for run in runs]
    ask(cluster, ("a", ids[0]))
    ask(cluster, ("b", ids[1]), sweep="other")
    add_note(cluster, [ids[0]], "mine")
    add_note(cluster, [ids[1]], "another's")
    at = ["--store", str(cluster.root)]
    assert main(["export", "demo", str(tmp_path / "demo.tar.gz"), *at]) == 0
    assert main(["import", str(tmp_path / "demo.tar.gz"), "--store", str(laptop.root)]) == 0
    assert list(laptop.run_ids()) == [ids[0]]
    assert laptop.is_trunk(trunk)
    assert [request.sweep for request in laptop.requests()] == ["demo"]
    assert [note.text for event in NoteBook(laptop).subjects() for note in notes_of(laptop, event).notes] == ["mine"]
    assert main(["export", ids[1][:6], str(tmp_path / "one.tar"), *at]) == 0
    assert main(["import", str(tmp_path / "one.tar"), "--store", str(laptop.root)]) == 0
    assert sorted(laptop.run_ids()) == sorted(ids[:2])


def test_all_that_is_wrong_with_an_export_is_said_at_once_and_no_file_is_made(
    two: tuple[Store, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--store", str(two[0].root)]
    assert main(["export", str(tmp_path / "file.zip"), *at]) == 2
    said = capsys.readouterr().err
    assert "ends in .tar" in said
    assert "--all" in said
    (tmp_path / "there.tar").write_text("mine")
    assert main(["export", "--all", str(tmp_path / "there.tar"), *at]) == 2
    assert (tmp_path / "there.tar").read_text() == "mine"
    assert main(["export", "nothing", str(tmp_path / "new.tar"), *at]) == 2
    assert not (tmp_path / "new.tar").exists()


DEEDS = st.lists(
    st.tuples(st.sampled_from([0, 1]), st.sampled_from([0, 1]), st.sampled_from(["try", "resume", "finish"])),
    max_size=8,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds=DEEDS)
def test_merging_is_idempotent_and_commutative_but_for_whose_record_stands(
    runs: list[RunSpec], tmp_path_factory: pytest.TempPathFactory, deeds: list[tuple[int, int, str]]
) -> None:
    root = tmp_path_factory.mktemp("stores")
    sides = Store(root / "cluster"), Store(root / "laptop")
    for store in sides:
        store.prepare()
    for side, which, deed in deeds:
        store, run = sides[side], runs[which]
        run_id = store.publish_spec(run)
        if store.record(run_id) is not None:
            continue
        last = store.last_attempt(run_id)
        lines = store.metrics(run_id)
        start = {"resumed_at_step": lines[-1]["step"], "of_attempt": last} if lines and deed != "try" else None
        begin = lines[-1]["step"] if start else 0
        number = attempt(
            store, run_id, [begin + 10, begin + 20], start=start, error=None if deed == "finish" else "oom"
        )
        if deed == "finish":
            finish(store, run, number, val_loss_nats=float(side))
            weights(store, run_id, number, bytes([side]) * 10)
    ask(sides[0], *((f"r{i}", run_id) for i, run_id in enumerate(sides[0].run_ids())))
    both = {run_id for run_id in sides[0].run_ids() if sides[0].record(run_id) and sides[1].record(run_id)}
    one, other = Store(root / "one"), Store(root / "other")
    ways = ((one, sides), (other, sides[::-1]))
    for into, order in ways:
        shutil.copytree(order[0].root, into.root)
        assert {line.split()[1].rstrip(":") for line in merged(into, order[1]).conflicts} == both
        before = contents(into)
        for again in order:
            assert not merged(into, again).new
        assert contents(into) == before
        for run_id in into.run_ids():
            owner = next((store for store in order if store.record(run_id) is not None), None)
            if owner is not None:
                assert into.metrics(run_id) == owner.metrics(run_id)
    left, right = told(one), told(other)
    for run_id in both:
        assert left[run_id][1] == right[run_id][1]
        for key in (run_id, f"{run_id} curve", f"{run_id} weights"):
            del left[key], right[key]
    assert left == right


def test_a_table_over_the_merged_store_has_the_runs_of_both(
    two: tuple[Store, Store], runs: list[RunSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    from analysis.__main__ import main as analyse

    cluster, laptop = two
    ids = [(name, cluster.publish_spec(run)) for name, run in zip(("short", "long"), runs, strict=False)]
    for store in two:
        ask(store, *ids)
    finish(cluster, runs[0], 1, val_loss_nats=2.125)
    finish(laptop, runs[1], 1, val_loss_nats=1.875)
    assert not merged(laptop, cluster).conflicts
    assert analyse(["tables", "demo", "--store", str(laptop.root)]) == 0
    said = capsys.readouterr().out
    assert "2.125" in said
    assert "1.875" in said


def test_importing_into_a_directory_that_is_not_there_makes_a_store(
    two: tuple[Store, Store], runs: list[RunSpec], tmp_path: Path
) -> None:
    run_id = two[0].publish_spec(runs[0])
    assert main(["import", str(two[0].root), "--store", str(tmp_path / "new")]) == 0
    assert list(Store(tmp_path / "new").run_ids()) == [run_id]


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_archive_with_a_file_twice_or_after_its_manifest_is_refused(
    two: tuple[Store, Store], runs: list[RunSpec], tmp_path: Path, place: str
) -> None:
    run_id = two[0].publish_spec(runs[0])
    whole, altered = tmp_path / "whole.tar", tmp_path / "altered.tar"
    write_archive(whole, members(two[0], choose_all(weights=True, points=True), []), source="there")
    name = two[0].spec_path(run_id).relative_to(two[0].root).as_posix()
    more = tarfile.TarInfo(name if place == "first" else "runs/ab/abcdefabcdef/spec.json")
    with tarfile.open(whole) as old, tarfile.open(altered, "w") as new:
        found = [(info, old.extractfile(info)) for info in old]
        for info, content in [(more, None), *found] if place == "first" else [*found, (more, None)]:
            new.addfile(info, content)
    refused = pytest.raises(ConfigError, match=r"twice|after the manifest")
    with refused, opened(altered, weights=True, points=True, left=[]):
        pass
