"""Trunks and their branches: what is shared, what it costs, and that no bit of a branch shows it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.checkpoint_files import point_file, step_file
from hybrid.config import Resolved, read_config
from hybrid.spec import ConfigError, RunSpec, StopSpec, TrapezoidSpec
from hybrid.train.schedule import learning_rate
from sweeps.cells import CellRun
from sweeps.compose import Composer
from sweeps.identity import run_id
from sweeps.launch import Asked, End, Launcher, announce
from sweeps.launch.inline import Inline
from sweeps.launch.local import LocalProcesses
from sweeps.status import cells_text, diff_text, logs_text, show_text
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Cell, Request, Store, StoreError, publish, this_process
from sweeps.trunks import branch_step, missing_points, payment, trunk_description, trunk_id, trunk_jobs
from sweeps.worker.claims import Busy
from sweeps.worker.runs import run_one
from sweeps.worker.trunks import run_trunk

from .conftest import REPO, TINY, wait_for

STEP_TOKENS = 64
# Warmup 10 steps; lengths of 50, 100, 200 steps leave their trunk after 40, 80, 160.
SHARING = (*TINY, "schedule.warmup_tokens=640", "schedule.cooldown_fraction=0.2", "exec.log_every_steps=1")
LENGTHS = "budget.tokens=3200,6400,12800"
CLOCK = ("wall_s", "tokens_per_s")

Cells = Callable[..., list[CellRun]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture(autouse=True)
def short_validations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations take most of the time of runs this small; processes of their own are not reached."""
    if "run_py" not in request.fixturenames:
        monkeypatch.setattr("hybrid.train.loop.VALIDATION_TOKENS", 1024)


@pytest.fixture
def cells(expand_request) -> Cells:
    """The cells of the sharing runs with whatever else is asked; three lengths, unless lengths are given."""

    def expand(*overrides: str) -> list[CellRun]:
        lengths = [] if any(text.startswith("budget.tokens=") for text in overrides) else [LENGTHS]
        return list(expand_request(*SHARING, *lengths, *overrides).runs)

    return expand


@cache
def base() -> Resolved:
    """One of the sharing runs, for tests that change it."""
    with Composer() as composer:
        return read_config(composer.compose(SHARING), stdlib_fingerprint=lambda: "")


def of_steps(steps: int, *, warmup: int = 0, cooldown: int) -> RunSpec:
    schedule = TrapezoidSpec(warmup_tokens=warmup * STEP_TOKENS, cooldown_tokens=cooldown * STEP_TOKENS)
    return replace(base().run, train_tokens=steps * STEP_TOKENS, schedule=schedule)


def cell_of(run: RunSpec) -> CellRun:
    cell = Cell(name=run_id(run), row="", axes={}, seed=None, run_id=run_id(run))
    return CellRun(cell=cell, resolved=replace(base(), run=run), arguments=())


def missing(cells: Sequence[CellRun], store: Store) -> list[CellRun]:
    return [cell for cell in cells if store.record(cell.run_id) is None]


def launch(cells: Sequence[CellRun], store: Store) -> list[End]:
    return Inline().launch(missing(cells, store), store, Asked(sweep="test"))


def trunk_of(cells: Sequence[CellRun]) -> str:
    (found,) = {trunk_id(cell.resolved.run) for cell in cells}
    assert found is not None
    return found


def results(store: Store, run: str) -> dict[str, Any]:
    record = store.record(run)
    assert record is not None
    return {
        **{key: record[key] for key in ("run_id", "status", "spec", "cost")},
        **{key: value for key, value in record["metrics"].items() if key not in CLOCK},
    }


def curve(store: Store, run: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in store.metrics(run)]


def weights(store: Store, run: str) -> bytes:
    record = store.record(run)
    assert record is not None
    return store.weights_path(run, record["attempt"]).read_bytes()


def assert_as_alone(cells: Sequence[CellRun], shared: Store, alone: Store) -> None:
    for cell in cells:
        assert results(shared, cell.run_id) == results(alone, cell.run_id)
        assert curve(shared, cell.run_id) == curve(alone, cell.run_id)
        if results(alone, cell.run_id)["status"] == "done":
            assert weights(shared, cell.run_id) == weights(alone, cell.run_id)


def updates_made(store: Store) -> int:
    """All updates that any attempt at any run or trunk has made, from its lines, one for each."""
    files = [*(store.root / "runs").rglob("metrics.jsonl"), *(store.root / "trunks").rglob("metrics.jsonl")]
    return sum('"lr"' in line for file in files for line in file.read_text().splitlines())


def paid(cells: Sequence[CellRun], store: Store) -> int:
    found = payment(missing(cells, store), store)
    return sum(found.run_steps.values()) + sum(found.trunk_steps.values())


def fake_points(store: Store, trunk: str, *steps: int) -> None:
    """Points without a model in them, for what only looks at names."""
    store.trunk_checkpoints_dir(trunk).mkdir(parents=True, exist_ok=True)
    for step in steps:
        (store.trunk_checkpoints_dir(trunk) / point_file(step)).touch()
        store.publish_point(trunk, step, {})


def jobs_of(cells: Sequence[CellRun], store: Store) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Points and branches of each job, the branches by their lengths in steps."""
    lengths = {cell.run_id: str(cell.resolved.run.train_steps) for cell in cells}
    return [(job.points, tuple(lengths[run] for run in job.branches)) for job in trunk_jobs(cells, store)]


def quiet(*_: Any) -> None:
    """Progress that nobody watches."""


def stop_at(step: int, stop: StopFlag) -> Callable[..., None]:
    def progress(now: int, *_: Any) -> None:
        if now >= step:
            stop("the test says so")

    return progress


def foreign(store: Store, trunk: str, *points: int) -> Path:
    """An attempt at a trunk on another host, of which only the counter can be seen."""
    attempts = store.trunk_attempts(trunk)
    attempt = attempts.claim(attempts.last())
    assert attempt is not None
    job = {**this_process(), "host": "elsewhere", "lease_s": 1, "points": points, "branches": []}
    publish(attempt.directory / "job.json", json.dumps(job))
    (attempt.directory / "heartbeat").write_text("0\n")
    return attempt.directory


class Beating:
    """Keeps a foreign attempt's counter moving while it lasts."""

    def __init__(self, directory: Path) -> None:
        self._path, self._ended = directory / "heartbeat", threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def _beat(self) -> None:
        count = 1
        while not self._ended.wait(0.1):
            self._path.write_text(f"{count}\n")
            count += 1

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()


# --- what is shared -----------------------------------------------------------------------------


def test_runs_share_a_trunk_if_they_differ_in_nothing_but_their_length(cells: Cells) -> None:
    three = cells()
    trunk = trunk_of(three)
    assert [branch_step(cell.resolved.run) for cell in three] == [40, 80, 160]
    assert trunk_of(cells("schedule.cooldown_tokens=64,128")) == trunk
    for other in (
        "init_seed=7",
        "data_seed=7",
        "optim.lr=1e-2",
        "schedule.warmup_tokens=1280",
        "model.d_model=32",
        "dtype=bfloat16",
        "data.n_pairs=3",
        "batch_tokens=128",
        "seq_len=32",
    ):
        assert trunk_of(cells("budget.tokens=6400", other)) != trunk, other


def test_execution_is_no_part_of_a_trunk(cells: Cells) -> None:
    assert trunk_of(cells("exec.microbatch=1", "exec.threads=2")) == trunk_of(cells())


def test_a_trunks_id_is_that_of_no_run(cells: Cells) -> None:
    run = cells()[0].resolved.run
    without_length = replace(run, train_tokens=0, schedule=replace(run.schedule, cooldown_tokens=0))
    assert json.loads(trunk_description(run))["kind"] == "trunk"
    assert trunk_id(run) != run_id(without_length)


def test_a_run_with_a_stop_rule_shares_nothing(cells: Cells) -> None:
    run = cells()[0].resolved.run
    stop = StopSpec(metric="accuracy", threshold=0.9, every_tokens=640, examples=8)
    assert trunk_id(run) is not None
    assert trunk_id(replace(run, stop=stop)) is None


@settings(deadline=None)
@given(data=st.data())
def test_all_updates_before_the_branch_have_the_same_learning_rate_to_the_bit(data: st.DataObject) -> None:
    """Over any two runs of one trunk, the cooldown inside the warmup and lengths of no whole batches included."""
    batch = data.draw(st.integers(1, 1000))
    warmup = data.draw(st.integers(0, 20 * batch))
    pair = []
    for _ in range(2):
        train = data.draw(st.integers(batch, 60 * batch))
        schedule = TrapezoidSpec(warmup_tokens=warmup, cooldown_tokens=data.draw(st.integers(0, train)))
        pair.append(replace(base().run, train_tokens=train, batch_tokens=batch, schedule=schedule))
    if None in map(trunk_id, pair):
        return
    assert trunk_id(pair[0]) == trunk_id(pair[1])
    shared = min(map(branch_step, pair))
    assert 1 <= shared < min(run.train_steps for run in pair)
    one, other = (
        [
            learning_rate(step, peak=0.1, schedule=r.schedule, train_tokens=r.train_tokens, batch_tokens=batch)
            for step in range(shared)
        ]
        for r in pair
    )
    assert one == other


@pytest.mark.parametrize(
    ("steps", "warmup", "cooldown", "leaves_at"),
    [
        (10, 2, 3, 7),
        (10, 0, 0, 9),  # the last step is the run's own
        (10, 2, 8, None),  # no stable phase
        (10, 6, 8, None),  # the cooldown begins inside the warmup
        (1, 0, 0, None),
        (2, 0, 1, 1),
        (2, 0, 2, None),
    ],
)
def test_where_a_run_leaves_its_trunk(steps: int, warmup: int, cooldown: int, leaves_at: int | None) -> None:
    run = of_steps(steps, warmup=warmup, cooldown=cooldown)
    assert (None if trunk_id(run) is None else branch_step(run)) == leaves_at


# --- which trunks are trained, and what is paid -------------------------------------------------


def test_a_trunk_pays_from_two_runs_on(cells: Cells, store: Store) -> None:
    three = cells()
    assert jobs_of(three, store) == [((40, 80, 160), ("50", "100", "200"))]
    assert jobs_of(three[:1], store) == []
    assert jobs_of([three[0], three[0]], store) == []
    assert jobs_of(list(reversed(three)), store) == [((40, 80, 160), ("200", "100", "50"))]
    (job,) = trunk_jobs(three, store)
    assert job.run == three[2].resolved.run
    assert jobs_of(cells("exec.trunks=false"), store) == []
    assert jobs_of(cells("init_seed=1,2"), store) == [((40, 80, 160), ("50", "100", "200"))] * 2


def test_runs_that_leave_at_the_same_step_share_it(cells: Cells, store: Store) -> None:
    ends = [*cells("budget.tokens=6400"), *cells("budget.tokens=5760", "schedule.cooldown_tokens=640")]
    assert jobs_of(ends, store) == [((80,), ("100", "90"))]
    assert payment(ends, store).trunk_steps == {trunk_of(ends): 80}
    assert list(payment(ends, store).run_steps.values()) == [20, 10]


def test_points_that_are_there_are_not_made_again(cells: Cells, store: Store) -> None:
    three = cells()
    fake_points(store, trunk_of(three), 40)
    assert jobs_of(three, store) == [((80, 160), ("100", "200"))]
    found = payment(three, store)
    assert list(found.run_steps.values()) == [10, 20, 40]
    assert found.trunk_steps == {trunk_of(three): 120}
    fake_points(store, trunk_of(three), 80)
    assert jobs_of(three, store) == []  # the longest goes on by itself, at the same price
    assert list(payment(three, store).run_steps.values()) == [10, 20, 120]
    assert payment(three, store).trunk_steps == {}


def test_a_point_between_two_that_are_there_is_made_from_the_one_before(cells: Cells, store: Store) -> None:
    between = cells("budget.tokens=7680,8960,12800,25600,32000")  # leave at 96, 112, 160, 320, 400
    trunk = trunk_of(between)
    fake_points(store, trunk, 80, 200)
    assert jobs_of(between, store) == [((96, 112, 160, 320, 400), ("120", "140", "200", "400", "500"))]
    assert payment(between, store).trunk_steps == {trunk: (160 - 80) + (400 - 200)}
    assert jobs_of(between[:1] + between[3:], store) == [((320, 400), ("400", "500"))]
    assert payment(between[:1] + between[3:], store).run_steps[between[0].run_id] == 120 - 80


def test_a_point_whose_checkpoint_is_gone_is_not_there(cells: Cells, store: Store) -> None:
    three = cells()
    fake_points(store, trunk_of(three), 40, 80)
    (store.trunk_checkpoints_dir(trunk_of(three)) / point_file(40)).unlink()
    assert store.trunk_points(trunk_of(three)) == (80,)
    assert jobs_of(three[:2], store) == []


def test_what_an_interrupted_trunk_has_left_is_worth_going_on_from(cells: Cells, store: Store) -> None:
    three = cells()
    trunk = trunk_of(three)
    fake_points(store, trunk, 40, 80)
    (store.trunk_checkpoints_dir(trunk) / step_file(150, 1)).touch()
    assert jobs_of(three[2:], store) == [((160,), ("200",))]
    assert payment(three[2:], store).trunk_steps == {trunk: 10}
    (store.trunk_checkpoints_dir(trunk) / step_file(150, 1)).rename(
        store.trunk_checkpoints_dir(trunk) / step_file(170, 1)
    )
    assert jobs_of(three[2:], store) == []


def test_what_another_process_trains_just_now_is_worth_waiting_for(cells: Cells, store: Store) -> None:
    three = cells()
    foreign(store, trunk_of(three), 40, 80)
    assert jobs_of(three[1:2], store) == [((80,), ("100",))]
    assert jobs_of(three[2:], store) == []


def test_a_run_that_has_begun_goes_on_by_itself(cells: Cells, store: Store) -> None:
    three = cells()
    store.checkpoints_dir(three[2].run_id).mkdir(parents=True)
    (store.checkpoints_dir(three[2].run_id) / step_file(30, 1)).touch()
    assert jobs_of(three, store) == [((40, 80), ("50", "100"))]
    assert list(payment(three, store).run_steps.values()) == [10, 20, 170]


def test_a_trunk_that_diverged_is_not_asked_for_more(cells: Cells, store: Store) -> None:
    three = cells()
    fake_points(store, trunk_of(three), 60)
    store.publish_divergence(trunk_of(three), 60, {})
    assert jobs_of(three, store) == []
    assert jobs_of([*three, *cells("budget.tokens=3840")], store) == [((40, 48), ("50", "60"))]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(14, 120), min_size=1, max_size=6, unique=True),
    points=st.lists(st.integers(1, 110), max_size=3, unique=True),
    on_the_way=st.lists(st.integers(1, 110), max_size=2, unique=True),
)
def test_sharing_never_costs_more_than_training_alone(
    lengths: list[int], points: list[int], on_the_way: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    runs = [of_steps(n, cooldown=10) for n in lengths]
    cells = [cell_of(run) for run in runs]
    trunk = trunk_of(cells)
    fake_points(store, trunk, *points)
    for step in on_the_way:
        (store.trunk_checkpoints_dir(trunk) / step_file(step, 1)).touch()
    found = payment(cells, store)
    alone = [n - max((p for p in points if p <= branch_step(r)), default=0) for n, r in zip(lengths, runs, strict=True)]
    assert sum(found.run_steps.values()) + sum(found.trunk_steps.values()) <= sum(alone)
    assert all(steps >= 1 for steps in found.run_steps.values())
    jobs = trunk_jobs(cells, store)
    assert len(jobs) == len(found.trunk_steps) <= 1
    for job in jobs:
        assert not set(job.points) & set(points)
        assert {branch_step(run) for run in runs if run_id(run) in job.branches} == set(job.points)


# --- training -----------------------------------------------------------------------------------

VARIANTS = {
    "hybrid": (),
    "paces that fall on no branch": ("exec.log_every_steps=7", "exec.eval_every_tokens=1920", "exec.microbatch=3"),
    "experts": (
        "model.ffn={kind:swiglu,d_ffn:16}",
        "model.moe={every:1,n_experts:4,top_k:2,n_shared:1}",
        "exec.log_every_steps=9",
        "exec.microbatch=1",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_branches_are_the_runs_trained_alone(cells: Cells, tmp_path: Path, variant: str) -> None:
    shared, alone = Store(tmp_path / "shared"), Store(tmp_path / "alone")
    settings = (*VARIANTS[variant], "budget.tokens=1600,3200,4800")
    three, by_themselves = cells(*settings), cells(*settings, "exec.trunks=false")
    assert [cell.run_id for cell in three] == [cell.run_id for cell in by_themselves]
    assert [end.status for end in launch(three, shared)] == ["done"] * 3
    assert [end.status for end in launch(by_themselves, alone)] == ["done"] * 3
    assert_as_alone(three, shared, alone)
    assert not (alone.root / "trunks").exists()
    assert not list(alone.root.rglob("point*"))


def test_what_is_trained_is_what_was_to_be_paid(cells: Cells, store: Store) -> None:
    three = cells()
    assert paid(three, store) == 160 + 10 + 20 + 40
    launch(three, store)
    assert updates_made(store) == 160 + 10 + 20 + 40
    more = [*three, *cells("budget.tokens=9600,19200,25600")]
    to_pay = paid(more, store)
    assert to_pay == (120 - 80) + 30 + (320 - 160) + 60 + 80
    launch(more, store)
    assert updates_made(store) == 230 + to_pay
    assert paid(more, store) == 0


def test_a_record_says_what_the_trunk_has_paid_for(cells: Cells, store: Store) -> None:
    three = cells()
    launch(three, store)
    for cell, step in zip(three, (40, 80, 160), strict=True):
        record = store.record(cell.run_id)
        assert record is not None
        part = record["provenance"]["trunk"]
        assert (part["id"], part["step"], part["attempt"]) == (trunk_of(three), step, 1)
        assert 0 < part["wall_s"] < record["metrics"]["wall_s"]
    (single,) = cells("budget.tokens=6400", "init_seed=9")
    launch([single], store)
    record = store.record(single.run_id)
    assert record is not None
    assert record["provenance"]["trunk"] is None


def test_with_a_trunk_in_the_store_only_cooldowns_are_trained(cells: Cells, store: Store) -> None:
    three = cells()
    launch(three[:2], store)
    before = updates_made(store)
    launch(cells("schedule.cooldown_tokens=320", "budget.tokens=2880,5440"), store)
    assert updates_made(store) - before == 5 + 5
    assert store.trunk_attempts(trunk_of(three)).last() == 1


def test_a_trunk_extended_later_and_filled_in_between_changes_no_bit(cells: Cells, tmp_path: Path) -> None:
    shared, alone = Store(tmp_path / "shared"), Store(tmp_path / "alone")
    first, last, between = (cells(f"budget.tokens={lengths}") for lengths in ("1600,3200", "4800,6400", "2240,2560"))
    for some in (first, last, between):
        launch(some, shared)
    trunk = shared.trunk_attempts(trunk_of(first))
    assert trunk.last() == 3
    starts = [trunk.metrics(number)[0] for number in (1, 2, 3)]
    assert starts[0] is None
    assert [(start.step, start.attempt) for start in starts[1:] if start is not None] == [(40, 1), (20, 1)]
    # One asked for after the gap was filled in, whose lines come from the attempts before it.
    longest = cells("budget.tokens=8000,9600")
    launch(longest, shared)
    everything = [*first, *last, *between, *longest]
    launch(
        cells("exec.trunks=false", "budget.tokens=" + ",".join(str(c.resolved.run.train_tokens) for c in everything)),
        alone,
    )
    assert_as_alone(everything, shared, alone)


def test_a_stop_and_a_resume_of_trunk_and_branch_change_no_bit(cells: Cells, tmp_path: Path) -> None:
    shared, alone = Store(tmp_path / "shared"), Store(tmp_path / "alone")
    three = cells("exec.log_every_steps=7")
    launch(cells("exec.log_every_steps=7", "exec.trunks=false"), alone)
    for step in (13, 40, 41, 100):
        (job,) = trunk_jobs(three, shared)
        stop = StopFlag()
        with pytest.raises(Stopped):
            run_trunk(shared, job, stop=stop, progress=stop_at(step, stop))
        assert shared.trunk_status(job.trunk_id) == "interrupted"
    assert shared.trunk_points(trunk_of(three)) == (40, 80)
    longest = three[2].resolved
    (job,) = trunk_jobs(three[2:], shared)
    run_trunk(shared, job, stop=StopFlag(), progress=quiet)
    assert shared.trunk_status(job.trunk_id) == "done"
    for step in (165, 177):
        stop = StopFlag()
        with pytest.raises(Stopped):
            run_one(shared, longest.run, longest.execution, stop=stop, progress=stop_at(step, stop))
    assert [end.status for end in launch(three, shared)] == ["done"] * 3
    assert shared.last_attempt(three[2].run_id) == 3
    record = shared.record(three[2].run_id)
    assert record is not None
    assert record["provenance"]["trunk"]["step"] == 160
    assert_as_alone(three, shared, alone)


def test_a_finished_trunk_keeps_its_points_and_nothing_on_the_way(cells: Cells, store: Store) -> None:
    three = cells("exec.checkpoint_every_s=0.001")
    launch(three, store)
    names = sorted(path.name for path in store.trunk_checkpoints_dir(trunk_of(three)).iterdir())
    assert names == [point_file(step) for step in (40, 80, 160)]
    assert {path.name for path in store.trunk_dir(trunk_of(three)).iterdir()} == {"attempts", "points", "spec.json"}


def test_a_damaged_point_costs_time_and_no_bit(cells: Cells, tmp_path: Path) -> None:
    shared, alone = Store(tmp_path / "shared"), Store(tmp_path / "alone")
    three = cells()
    (job,) = trunk_jobs(three, shared)
    run_trunk(shared, job, stop=StopFlag(), progress=quiet)
    os.truncate(shared.trunk_checkpoints_dir(job.trunk_id) / point_file(80), 700)
    launch(three, shared)
    launch(cells("exec.trunks=false"), alone)
    assert_as_alone(three, shared, alone)
    start = shared.branched_from(three[1].run_id)
    assert start is not None
    assert start.step == 40
    assert "damaged" in (shared.attempt_dir(three[1].run_id, 1) / "log.txt").read_text()


# --- what goes wrong ----------------------------------------------------------------------------


def in_the_way(store: Store, trunk: str, step: int) -> Path:
    """A directory where a point's checkpoint is to be: no trunk can pass it."""
    path = store.trunk_checkpoints_dir(trunk) / point_file(step)
    path.mkdir(parents=True)
    return path


def test_a_trunk_that_fails_fails_its_branches_visibly_and_is_tried_again(cells: Cells, tmp_path: Path) -> None:
    store, alone = Store(tmp_path / "store"), Store(tmp_path / "alone")
    three = cells()
    trunk = trunk_of(three)
    obstacle = in_the_way(store, trunk, 80)
    ends = launch(three, store)
    assert [end.status for end in ends] == ["done", "failed", "failed"]  # the first was at its point
    for end in ends[1:]:
        assert trunk in end.message
        assert "directory" in end.message
        error = store.error(end.cell.run_id, 1)
        assert error is not None
        assert (error["class"], error["trunk"]) == ("io", trunk)
        assert error["message"].startswith(f"trunk {trunk}: IsADirectoryError")
        assert "Traceback" in error["traceback"]
        assert store.status(end.cell.run_id) == "failed"
    assert store.trunk_status(trunk) == "failed"
    request = Request(sweep="s", overrides=(), created_at="", report={}, cells=tuple(cell.cell for cell in three))
    assert f"io: trunk {trunk}: IsADirectoryError" in cells_text(store, request)
    assert f"trunk {trunk}: failed; points at steps: 40; this run leaves it at step 80" in show_text(
        store, three[1].run_id
    )
    obstacle.rmdir()
    assert [end.status for end in launch(three, store)] == ["done", "done"]
    assert store.trunk_attempts(trunk).last() == 2
    launch(cells("exec.trunks=false"), alone)
    assert_as_alone(three, store, alone)


def test_branches_of_a_trunk_that_diverges_are_what_they_would_be_alone(cells: Cells, tmp_path: Path) -> None:
    shared, alone = Store(tmp_path / "shared"), Store(tmp_path / "alone")
    wild = ("optim.lr=1e9", "optim.weight_decay=0", "exec.log_every_steps=10")
    assert [end.status for end in launch(cells(*wild, "exec.trunks=false"), alone)] == ["diverged"] * 3
    three = cells(*wild)
    trunk = trunk_of(three)
    assert [end.status for end in launch(three, shared)] == ["diverged"] * 3
    assert shared.trunk_status(trunk) == "diverged"
    assert shared.trunk_attempts(trunk).error(1) is None
    record = alone.record(three[0].run_id)
    assert record is not None
    assert shared.trunk_diverged_at(trunk) == record["metrics"]["steps"]
    assert_as_alone(three, shared, alone)
    assert trunk_jobs(cells(*wild, "budget.tokens=25600,12800"), shared) == ()


@pytest.mark.parametrize("launcher", [Inline(), LocalProcesses(1)], ids=["here", "pool"])
def test_branches_fail_as_their_trunk_did_this_time_not_an_earlier_one(
    launcher: Launcher, cells: Cells, store: Store
) -> None:
    three = cells()
    trunk = trunk_of(three)
    earlier = store.trunk_attempts(trunk).claim(0)
    assert earlier is not None
    publish(earlier.directory / "error.json", json.dumps({"class": "oom", "message": "out of memory, long ago"}))
    description = store.trunk_dir(trunk) / "spec.json"
    description.write_text("something else")  # so that no attempt is claimed
    ends = launcher.launch(three, store, Asked(sweep="test"))
    assert [end.status for end in ends] == ["failed"] * 3
    for end in ends:
        error = store.error(end.cell.run_id, 1)
        assert error is not None
        assert error["class"] == "io"
        assert str(description) in error["message"]
        assert "StoreError" in error["traceback"]


def test_points_that_another_makes_between_claim_and_plan_leave_nothing_to_do(
    cells: Cells, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = trunk_jobs(cells(), store)
    looks = 0

    def others_make_them(*arguments: Any) -> tuple[int, ...]:
        nonlocal looks
        looks += 1
        if looks == 3:  # before the claim, after it, and to plan the attempt
            fake_points(store, job.trunk_id, *job.points)
        return missing_points(*arguments)

    monkeypatch.setattr("sweeps.worker.trunks.missing_points", others_make_them)
    assert run_trunk(store, job, stop=StopFlag(), progress=quiet) == "done"
    assert looks > 3
    assert store.trunk_attempts(job.trunk_id).last() == 0


def test_an_interrupted_trunk_can_be_seen(cells: Cells, store: Store) -> None:
    three = cells()
    trunk = trunk_of(three)
    (job,) = trunk_jobs(three, store)
    announce(three, store)
    stop = StopFlag()
    with pytest.raises(Stopped):
        run_trunk(store, job, stop=stop, progress=stop_at(55, stop))
    request = Request(sweep="s", overrides=(), created_at="", report={}, cells=tuple(cell.cell for cell in three))
    text = cells_text(store, request)
    assert f"trunk {trunk}: interrupted at step 55 of 80" in text
    assert f"trunk {trunk}: interrupted at step 55 of 160" in text
    assert text.count(trunk) == 2  # the first run's point is there
    shown = show_text(store, trunk)
    for line in ("status: interrupted", "points at steps: 40", "checkpoints on the way at steps: 55"):
        assert f"\n{line}" in shown
    assert "\nspec.batch_tokens: 64\n" in shown
    assert f"made for the runs: {', '.join(cell.run_id for cell in three)}" in shown
    assert "cancelled: Stopped: stopped at step 55: the test says so" in shown
    assert "branches can start at step 40" in logs_text(store, trunk, None)
    assert logs_text(store, trunk, 1) == logs_text(store, trunk, None)
    with pytest.raises(ConfigError, match=f"trunk {trunk} has attempts 1 to 1"):
        logs_text(store, trunk, 2)
    with pytest.raises(ConfigError, match=f"{trunk}: is a trunk: expected a run"):
        diff_text(store, three[0].run_id, trunk)


def test_a_trunk_that_another_process_trains_is_left_alone(cells: Cells, store: Store) -> None:
    three = cells()
    trunk = trunk_of(three)
    (job,) = trunk_jobs(three, store)
    stop = StopFlag()
    with pytest.raises(Stopped):
        run_trunk(store, job, stop=stop, progress=stop_at(50, stop))
    with Beating(foreign(store, trunk, 80, 160)):
        ends = launch(three, store)
    assert [end.status for end in ends] == ["done", "busy", "busy"]
    assert f"its trunk {trunk} is busy: the trunk is being trained by elsewhere" in ends[1].message
    assert store.last_attempt(three[1].run_id) == 0
    assert store.trunk_attempts(trunk).last() == 2


def test_a_trunk_whose_owner_died_unseen_is_taken_over(cells: Cells, store: Store) -> None:
    three = cells()
    foreign(store, trunk_of(three), 40, 80, 160)
    assert [end.status for end in launch(three, store)] == ["done"] * 3
    assert store.trunk_attempts(trunk_of(three)).last() == 2


def test_a_trunk_that_lost_its_lease_stops(cells: Cells, store: Store) -> None:
    (job,) = trunk_jobs(cells("budget.tokens=64000,128000"), store)

    def steal(step: int, *_: Any) -> None:
        if step == 50:
            store.trunk_attempts(job.trunk_id).path(2).mkdir()

    with pytest.raises(Busy, match="the trunk is being trained"):
        run_trunk(store, job, stop=StopFlag(), progress=steal)
    assert store.trunk_attempts(job.trunk_id).error(1) is None


def test_two_runs_of_one_trunk_job_at_once_train_it_once(cells: Cells, store: Store) -> None:
    three = cells("budget.tokens=6400,64000")
    (job,) = trunk_jobs(three, store)
    outcomes: list[str] = []

    def second() -> None:
        try:
            outcomes.append(run_trunk(store, job, stop=StopFlag(), progress=quiet))
        except Busy:
            outcomes.append("busy")

    other = threading.Thread(target=second)

    def progress(step: int, *_: Any) -> None:
        if step == 5:
            other.start()

    run_trunk(store, job, stop=StopFlag(), progress=progress)
    other.join()
    assert outcomes == ["busy"]
    assert store.trunk_attempts(job.trunk_id).last() == 1


def test_the_trunks_id_is_not_taken_by_another(cells: Cells, store: Store) -> None:
    (job,) = trunk_jobs(cells(), store)
    store.publish_trunk(job.trunk_id, trunk_description(job.run))
    path = store.trunk_dir(job.trunk_id) / "spec.json"
    path.write_text(path.read_text().replace("0.95", "0.96"))
    with pytest.raises(StoreError, match="not the description of the trunk"):
        run_trunk(store, job, stop=StopFlag(), progress=quiet)


def test_a_branch_uses_its_mixers_file_as_its_trunk_did(store: Store, expand_request) -> None:
    source = REPO / "tests" / "outside" / "moving_average.py"
    arguments = [text for text in SHARING if "ratio" not in text]
    both = expand_request(
        *arguments,
        "budget.tokens=640,1280",
        "schedule.warmup_tokens=64",
        "model.mixers=[outside,attention]",
        "model.ratio=1:1",
        "model.outside={name:moving_average,version:1,settings:{d_inner:8}}",
        f"exec.mixers=[{source}]",
    ).runs
    (job,) = trunk_jobs(both, store)
    run_trunk(store, job, stop=StopFlag(), progress=quiet)
    sources = store.trunk_attempts(job.trunk_id).path(1) / "mixers.json"
    hashes = json.loads(sources.read_text())
    sources.write_text(json.dumps(dict.fromkeys(hashes, "0" * 64)))
    first, second = (cell.resolved for cell in both)
    with pytest.raises(StoreError, match="its file has changed since attempt 1 at this trunk was made"):
        run_one(store, first.run, first.execution, stop=StopFlag(), progress=quiet)
    sources.write_text(json.dumps(hashes))
    assert run_one(store, second.run, second.execution, stop=StopFlag(), progress=quiet) == "done"


def test_after_an_interrupt_nothing_more_is_begun_in_this_process(cells: Cells, store: Store) -> None:
    four = [*cells("budget.tokens=64000,128000"), *cells("budget.tokens=64000", "init_seed=2,3")]
    trunk = trunk_of(four[:2])

    def interrupt() -> None:
        wait_for(lambda: store.trunk_attempts(trunk).metrics(1)[1])
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ends = launch(four, store)
    thread.join()
    saved = store.trunk_saved_step(trunk)
    assert saved > 0
    held = f"not begun; its trunk {trunk} has saved step {saved}"
    assert [(end.status, end.message) for end in ends] == [("interrupted", held)] * 2 + [
        ("interrupted", "not begun")
    ] * 2
    assert store.trunk_status(trunk) == "interrupted"
    assert [store.last_attempt(cell.run_id) for cell in four] == [0] * 4


# --- as users give them -------------------------------------------------------------------------

SWEEP = ("-m", *SHARING, "exec.checkpoint_every_s=0.1")


def runs_of(store: Store) -> list[str]:
    return [run for run in store.run_ids() if store.record(run) is not None]


def test_a_pool_trains_trunks_once_and_names_them(tmp_path: Path, run_py, cells: Cells) -> None:
    store, alone = Store(tmp_path / "store"), Store(tmp_path / "alone")
    process = run_py(*SWEEP, LENGTHS, "init_seed=1,2")
    _, err = process.communicate()
    assert process.returncode == 0, err
    six = cells("init_seed=1,2")
    for trunk in {trunk_id(cell.resolved.run) for cell in six}:
        assert f"trunk {trunk}: done" in err
    assert "[8/8]" in err
    assert "6 of 6 cells finished" in err
    assert updates_made(store) == 2 * (160 + 10 + 20 + 40)
    launch(cells("init_seed=1,2", "exec.trunks=false"), alone)
    assert_as_alone(six, store, alone)
    again = run_py(*SWEEP, LENGTHS, "init_seed=1,2")
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert "trunk " not in err.partition("to be run: 0")[2]


@pytest.mark.slow
def test_sigkill_during_the_trunk_then_the_same_command_again(tmp_path: Path, run_py, cells: Cells) -> None:
    lengths = "budget.tokens=16000,32000"
    store, alone = Store(tmp_path / "store"), Store(tmp_path / "alone")
    three = cells(lengths)
    trunk = trunk_of(three)
    checkpoints = store.trunk_checkpoints_dir(trunk)
    for kills in (1, 2):
        process = run_py(*SWEEP, lengths)
        seen = {path.name for path in checkpoints.glob("*.ckpt")}
        wait_for(lambda seen=seen: {path.name for path in checkpoints.glob("*.ckpt")} - seen)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert store.trunk_attempts(trunk).last() >= kills
    process = run_py(*SWEEP, lengths)
    _, err = process.communicate()
    assert process.returncode == 0, err
    launch(cells(lengths, "exec.trunks=false"), alone)
    assert_as_alone(three, store, alone)


@pytest.mark.slow
def test_two_sweeps_at_once_train_their_trunk_once(tmp_path: Path, run_py, cells: Cells) -> None:
    store = Store(tmp_path / "store")
    both = [run_py(*SWEEP, f"budget.tokens={lengths}") for lengths in ("32000,64000", "32000,64000,96000")]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
    three = cells("budget.tokens=32000,64000,96000")
    assert [store.last_attempt(cell.run_id) for cell in three] == [1, 1, 1]
    # Who comes second may go on past the other's last point, or its one longer run does.
    alone = 500 + 1000 + 1500
    assert updates_made(store) == 100 + 200 + 300 + 1200 < alone


@pytest.mark.slow
def test_a_pool_fails_branches_with_their_trunk_and_goes_on_when_asked_again(
    tmp_path: Path, run_py, cells: Cells
) -> None:
    store = Store(tmp_path / "store")
    three = cells()
    trunk = trunk_of(three)
    obstacle = in_the_way(store, trunk, 40)
    process = run_py(*SWEEP, LENGTHS, "init_seed=1,5")
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert err.count(f"its trunk {trunk} failed") == 6  # as they end, and at the end
    assert "3 of 6 cells finished" in err
    assert [store.status(cell.run_id) for cell in three] == ["failed"] * 3
    obstacle.rmdir()
    process = run_py(*SWEEP, LENGTHS, "init_seed=1,5")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "6 of 6 cells finished" in err
    assert [store.last_attempt(cell.run_id) for cell in three] == [2] * 3


def test_a_trunk_killed_alone_fails_its_branches_and_goes_on_when_asked_again(
    tmp_path: Path, run_py, cells: Cells
) -> None:
    lengths = "budget.tokens=640000,1280000"
    store = Store(tmp_path / "store")
    both = cells(lengths)
    trunk = trunk_of(both)
    process = run_py(*SWEEP, lengths)
    wait_for(lambda: store.trunk_checkpoints(trunk))
    job = store.trunk_attempts(trunk).job(1)
    assert job is not None
    waiting = Request(sweep="s", overrides=(), created_at="", report={}, cells=tuple(cell.cell for cell in both))
    assert cells_text(store, waiting).count(f"waits for trunk {trunk}: at step ") == 2
    assert f"trunk {trunk}: running; points at steps: none" in show_text(store, both[0].run_id)
    os.kill(job["pid"], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert f"its trunk {trunk} failed: killed by signal 9" in err
    error = store.error(both[0].run_id, 1)
    assert error is not None
    assert (error["class"], error["trunk"]) == ("unknown", trunk)
    assert [job_.points for job_ in trunk_jobs(both, store)] == [(8000, 16000)]


def test_ctrl_c_saves_the_trunk_and_begins_no_branch(tmp_path: Path, run_py, cells: Cells) -> None:
    lengths = "budget.tokens=640000,1280000"
    store = Store(tmp_path / "store")
    both = cells(lengths)
    trunk = trunk_of(both)
    process = run_py(*SWEEP, lengths)
    wait_for(lambda: store.trunk_attempts(trunk).metrics(1)[1])
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    saved = store.trunk_checkpoints(trunk)[-1]
    assert f"trunk {trunk}: was interrupted: saved step {saved};" in err
    assert err.count(f": not begun; its trunk {trunk} has saved step {saved}") == 2
    assert store.trunk_status(trunk) == "interrupted"
    assert [store.status(cell.run_id) for cell in both] == ["new", "new"]
    command = [sys.executable, "-m", "sweeps", "show", trunk[:8], "--store", str(store.root)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=True).stdout
    assert f"trunk_id: {trunk}" in shown


def test_a_branch_begins_as_soon_as_its_point_is_there(tmp_path: Path, run_py, cells: Cells) -> None:
    lengths = "budget.tokens=6400,6400000"
    store = Store(tmp_path / "store")
    short, long = cells(lengths)
    process = run_py(*SWEEP, lengths, "hydra.launcher.workers=2")
    wait_for(lambda: store.record(short.run_id))
    assert store.trunk_status(trunk_of([short, long])) == "running"
    assert store.status(long.run_id) == "new"
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
