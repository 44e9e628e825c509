"""Fair tuning: what is asked for, what the records choose, and the whole way of a request that is tuned."""

import json
import math
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hybrid.config import read_config
from hybrid.spec import ConfigError
from sweeps.cells import CellRun, Expansion
from sweeps.compose import Composer
from sweeps.plan import make_plan
from sweeps.plan_settings import read_plan_settings
from sweeps.store import Candidate, Cell, Request, Store, Tuning
from sweeps.tune import Choice, Choices, choose, read_tune, settle, status_of

from .conftest import TINY, wait_for
from .test_sweep_end_to_end import attempts, python_m

BASE = (*(setting for setting in TINY if not setting.startswith("model.ratio")), "sweep.name=own")
ROWS = "+sweep.rows={first:{model.ratio:'1:1'},second:{model.ratio:'0:1'}}"
TUNE = "sweep.tune={optim.lr:[1e-3,3e-3,1e-2],per:row,at:{budget.tokens:640}}"
SWEEP = (*BASE, ROWS, "sweep.seeds=2")


def tuning_runs(expansion: Expansion) -> list[CellRun]:
    return [run for run in expansion.runs if run.is_tuning]


def final_cells(expansion: Expansion) -> list[CellRun]:
    return [run for run in expansion.runs if not run.is_tuning]


# --- what is asked for --------------------------------------------------------------------------


def test_every_row_tries_the_same_values_on_the_same_seeds(expand_request) -> None:
    expansion = expand_request(*SWEEP, "sweep.tune={optim.lr:[1e-2,1e-3],schedule.warmup_fraction:[0.1,0.2],seeds:2}")
    tried: dict[str, Counter[Any]] = {}
    for run in tuning_runs(expansion):
        spec = run.resolved.run
        key = (spec.optim.lr, spec.schedule.warmup_tokens, spec.init_seed, spec.data_seed)
        tried.setdefault(run.cell.row, Counter())[key] += 1
        assert dict(run.cell.tuned)["optim.lr"] == spec.optim.lr
    assert list(tried) == ["first", "second"]
    assert tried["first"] == tried["second"]
    assert len(tried["first"]) == 2 * 2 * 2
    assert {seeds for *_, seeds in tried["first"]} == {1001, 1002}


def test_tuning_runs_have_names_of_their_own_and_come_first(expand_request) -> None:
    names = [run.cell.name for run in expand_request(*SWEEP, "sweep.tune={optim.lr:[1e-3,3e-3]}").runs]
    assert names[:2] == ["first/tune/lr=0.001/s1001", "first/tune/lr=0.003/s1001"]
    assert names[4:] == ["first/s1", "first/s2", "second/s1", "second/s2"]
    (name, *_) = [run.cell.name for run in expand_request(*TINY, "sweep.tune={optim.lr:[1e-3,3e-3]}").runs]
    assert name == "tune/lr=0.001/s1001"


def test_a_cell_that_is_not_tuned_has_no_run_but_all_that_it_may_become(expand_request) -> None:
    plain = {run.cell.name: run.run_id for run in expand_request(*SWEEP, "optim.lr=1e-3,3e-3,1e-2").runs}
    for run in final_cells(expand_request(*SWEEP, TUNE)):
        assert run.is_untuned
        assert run.cell.run_id is None
        assert [candidate.values for candidate in run.cell.candidates] == [
            {"optim.lr": lr} for lr in (1e-3, 3e-3, 1e-2)
        ]
        row, seed = run.cell.name.split("/")
        expected = [plain[f"{row}/lr={lr}/{seed}"] for lr in ("0.001", "0.003", "0.01")]
        assert [candidate.run_id for candidate in run.cell.candidates] == expected
        assert run.resolved.run.optim.lr == 3e-3  # the middle stands in


def test_settings_of_tuning_runs_hold_in_them_alone_and_their_seeds_always(expand_request) -> None:
    expansion = expand_request(*SWEEP[:-1], "init_seed=5", "data_seed=6", TUNE)
    for run in tuning_runs(expansion):
        spec = run.resolved.run
        assert (spec.init_seed, spec.data_seed, spec.train_tokens) == (1001, 1001, 640)
    for run in final_cells(expansion):
        spec = run.resolved.run
        assert (spec.init_seed, spec.data_seed, spec.train_tokens) == (5, 6, 6400)


def test_tuning_runs_and_candidates_are_what_plain_hydra_composes(expand_request) -> None:
    expansion = expand_request(*SWEEP, TUNE)
    with Composer() as composer:
        for run in [*tuning_runs(expansion), *(c for cell in final_cells(expansion) for c in cell.candidates)]:
            plain = read_config(composer.compose(run.arguments), stdlib_fingerprint=lambda: "0123456789abcdef")
            assert plain.run == run.resolved.run, run.cell.name


def test_a_tuned_size_does_not_move_the_budget_that_is_matched(expand_request) -> None:
    free = [setting for setting in SWEEP if not setting.startswith(("model.d_model", "budget.tokens"))]
    match = ("budget.match=llama", "budget.match_tokens=64000", "sweep.tune={model.d_model:[16,32]}")
    (targets,) = {
        tuple(candidate.resolved.budget.target_flops for candidate in run.candidates if candidate.resolved.budget)
        for run in final_cells(expand_request(*free, *match))
    }
    assert len(targets) == 2
    assert len(set(targets)) == 1


@pytest.mark.parametrize(
    ("tune", "messages"),
    [
        ("3", ["sweep.tune = 3: expected settings with values to try"]),
        ("{}", ["expected at least one setting"]),
        ("{optim.lr:[1e-3]}", ["sweep.tune.optim.lr: [0.001]: expected at least two values"]),
        ("{optim.lr:1e-3}", ["sweep.tune.optim.lr = 0.001: expected a setting with a list"]),
        ("{optim.lr:[1e-3,0.001]}", ["0.001 is repeated"]),
        ("{batch_tokens:[64,'0.064K']}", ["'0.064K' is repeated (as 64)"]),
        ("{optim.lrr:[1e-3,1e-2]}", ["sweep.tune.optim.lrr", "unknown setting", "did you mean lr"]),
        ("{optim.lr:[1e-3,1e-2],at:{budgt.tokens:9}}", ["sweep.tune.at.budgt.tokens", "did you mean budget"]),
        ("{optim.lr:[1e-3,1e-2],at:{optim.lr:9}}", ["sweep.tune.at.optim.lr: expected a setting that is not tuned"]),
        ("{optim.lr:[1e-3,1e-2],per:rwo}", ["sweep.tune.per = 'rwo': expected row (each its own choice) or sweep"]),
        ("{optim.lr:[1e-3,1e-2],pre:row}", ["sweep.tune.pre", "did you mean per"]),
        ("{optim.lr:[1e-3,1e-2],metric:val_los}", ["sweep.tune.metric", "did you mean val_loss_nats"]),
        ("{optim.lr:[1e-3,1e-2],metric:steps_to_threshold}", ["there is no threshold"]),
        ("{optim.lr:[1e-3,1e-2],seeds:[7,7]}", ["sweep.tune.seeds = [7, 7]"]),
        ("{optim.lr:[1e-3,1e-2],seeds:[2,3,7]}", ["sweep.tune.seeds = [2,3,7]: 2 is a seed of the sweep itself"]),
        ("{optim.lr:[-1,1e-2]}", ["optim.lr = -1", "first/tune/lr=-1/s1001"]),
        ("{model.ratio:['1:1','1:2']}", ["sweep.tune.model.ratio: row first sets it"]),
        ("{model:[llama,mamba],model.ratio:['1:1','1:2']}", ["sweep.tune.model.ratio: row first sets it"]),
        ("{seq_len:[16,32]}", ["sweep.tune.seq_len: seq_len=16 on the command line sets it"]),
        ("{init_seed:[1,2]}", ["sweep.tune.init_seed: expected sweep.tune.seeds instead"]),
        ("{optim.lr:[1e-3,1e-2],at:{data_seed:3}}", ["sweep.tune.at.data_seed: expected sweep.tune.seeds instead"]),
        ("{mode:[plan,run]}", ["sweep.tune.mode: not a setting of a cell"]),
        ("{exec.threads:[1,2]}", ["expected values that make a difference"]),
        (
            "{optim.lr:[1e-3],per:rwo,seeds:0,metric:loss}",
            ["at least two values", "sweep.tune.per", "sweep.tune.seeds = 0", "sweep.tune.metric"],
        ),
    ],
)
def test_tuning_that_cannot_be_meant_is_said_all_at_once(expand_request, tune: str, messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_request(*SWEEP, f"sweep.tune={tune}")
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["optim.lr=1e-3,1e-2"], "on the command line sets it"),
        (["+sweep.grid={optim.lr:[1e-3,1e-2]}"], "the grid sets it"),
    ],
)
def test_what_is_tuned_is_set_by_nothing_else(expand_request, extra: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_request(*SWEEP, TUNE, *extra)


def test_what_a_sweep_sets_under_a_condition_is_not_tuned_either(expand_request) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup_tokens: sweep\.at\.scale=100m sets it"):
        expand_request("+sweep=isoflop", "sweep.tune={schedule.warmup_tokens:[1M,2M]}")


def test_a_sweep_without_tuning_is_what_it_was(expand_request) -> None:
    request = expand_request(*SWEEP).request
    assert request.tuning == ()
    assert all(cell.run_id is not None and not cell.tuned and not cell.candidates for cell in request.cells)


def test_a_sweep_of_sweeps_tunes_each_of_them(expand_request) -> None:
    tune = "sweep.tune={optim.lr:[1e-3,1e-2],per:sweep}"
    expansion = expand_request("+sweep=paper", "sweep.of=[table4]", "scale=toy", tune)
    alone = expand_request("+sweep=table4", "scale=toy", tune)
    assert [run.run_id for run in expansion.runs] == [run.run_id for run in alone.runs]
    (tuning,) = expansion.request.tuning
    assert {cell.row for cell in tuning.cells} == {cell.row for cell in expansion.request.cells}
    assert tuning.cells[0].name.startswith("table4/1:0/tune/")


# --- what the records choose --------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def tuned_request(
    settings: dict[str, tuple[Any, ...]],
    *,
    rows: Sequence[str] = ("a",),
    axes: Sequence[dict[str, Any]] = ({},),
    seeds: Sequence[int] = (1001,),
    per: Any = "row",
    metric: str = "val_loss_nats",
) -> Request:
    """A request of one final cell a row and point, whose ids say which cell and values they are."""
    tune = read_tune({key: list(values) for key, values in settings.items()}, {})
    assert tune is not None

    def identity(*parts: object) -> str:
        return "".join(f"{hash_of(part):04x}" for part in (*parts, "", "", "")[:3])

    def hash_of(part: object) -> int:
        return sum((i + 1) * ord(c) for i, c in enumerate(json.dumps(part, sort_keys=True))) % 65536

    cells, tuning = [], []
    for row in rows:
        for at in axes:
            candidates = [(tuned, identity([row, at], tuned, "final")) for tuned in tune.candidates]
            cell = Cell(name=f"{row}{at}", row=row, axes=at, seed=1, run_id=None)
            cells.append(replace(cell, candidates=tuple(Candidate(values=v, run_id=i) for v, i in candidates)))
            for seed in seeds:
                for tuned in tune.candidates:
                    name = f"{row}{at}/tune/{tuned}/s{seed}"
                    run = identity([row, at], tuned, seed)
                    tuning.append(Cell(name=name, row=row, axes=at, seed=seed, run_id=run, tuned=tuned))
    return Request(
        sweep="own",
        overrides=(),
        created_at="2026-11-21",
        report={},
        cells=tuple(cells),
        tuning=(Tuning(settings=tune.settings, per=per, metric=metric, cells=tuple(tuning)),),
    )


def record(store: Store, cell: Cell, result: float | str | None, metric: str = "val_loss_nats", **more: Any) -> None:
    """The record of a tuning run: its metric, or "diverged"."""
    assert cell.run_id is not None
    status = "diverged" if result == "diverged" else "done"
    metrics = {metric: None if status == "diverged" else result, **more}
    store.record_path(cell.run_id).parent.mkdir(parents=True, exist_ok=True)
    published = {"schema": 1, "run_id": cell.run_id, "status": status, "metrics": metrics}
    assert store.publish_record(cell.run_id, published)


def record_all(store: Store, request: Request, results: Sequence[Any], metric: str = "val_loss_nats") -> None:
    for cell, result in zip(request.tuning[0].cells, results, strict=True):
        record(store, cell, result, metric)


def only_choice(request: Request, store: Store) -> Choice:
    (choice,) = choose(request, store).all
    return choice


LRS = {"optim.lr": (1e-3, 3e-3, 1e-2)}


@pytest.mark.parametrize(
    ("results", "chosen"),
    [
        ([3.0, 1.0, 2.0], 3e-3),
        ([1.0, 3.0, 2.0], 1e-3),
        ([2.0, 1.0, 1.0], 3e-3),  # a tie goes to the smaller value
        ([math.nan, 3.0, 2.0], 1e-2),
        ([None, 3.0, "diverged"], 3e-3),
        (["diverged", None, "diverged"], 3e-3),  # a run without the metric has at least not diverged
        (["diverged", "diverged", 9.0], 1e-2),
    ],
)
def test_the_best_value_is_chosen(store: Store, results: list[Any], chosen: float) -> None:
    request = tuned_request(LRS)
    record_all(store, request, results)
    choice = only_choice(request, store)
    assert choice.values == {"optim.lr": chosen}
    (cell,) = settle(request, choose(request, store)).cells
    assert cell.run_id == {c.values["optim.lr"]: c.run_id for c in cell.candidates}[chosen]
    assert cell.tuned == {"optim.lr": chosen}


def test_the_choice_is_fewest_diverged_then_the_best_mean_then_the_smallest_value(tmp_path: Path) -> None:
    """Against a plain reckoning, for results at random, with ties."""
    chance = random.Random(5)
    for trial in range(40):
        store = Store(tmp_path / str(trial))
        store.prepare()
        request = tuned_request({"optim.lr": (1, 2), "batch_tokens": (3, 4)}, seeds=(1001, 1002, 1003))
        results = [chance.choice([1.0, 2.0, 3.0, 4.0, "diverged"]) for _ in request.tuning[0].cells]
        order = list(range(len(results)))
        chance.shuffle(order)
        for i in order:  # whichever ends first
            assert only_choice(request, store).values is None
            record(store, request.tuning[0].cells[i], results[i])
        by_values: dict[tuple[int, int], list[Any]] = {}
        for cell, result in zip(request.tuning[0].cells, results, strict=True):
            by_values.setdefault((cell.tuned["optim.lr"], cell.tuned["batch_tokens"]), []).append(result)

        def rank(values: tuple[int, int], by_values: dict[tuple[int, int], list[Any]] = by_values) -> tuple[Any, ...]:
            good = [result for result in by_values[values] if result != "diverged"]
            return len(by_values[values]) - len(good), fmean(good) if good else 0.0, values

        lr, batch = min(by_values, key=rank)
        assert only_choice(request, store).values == {"optim.lr": lr, "batch_tokens": batch}


def test_a_higher_accuracy_is_better(store: Store) -> None:
    request = tuned_request(LRS, metric="val_accuracy")
    record_all(store, request, [0.1, 0.2, 0.9], "val_accuracy")
    assert only_choice(request, store).values == {"optim.lr": 1e-2}


def test_unsolved_runs_are_told_apart_by_their_loss_and_that_is_said(store: Store) -> None:
    request = tuned_request(LRS, metric="steps_to_threshold")
    for cell, loss in zip(request.tuning[0].cells, [3.0, 1.0, 2.0], strict=True):
        record(store, cell, None, "steps_to_threshold", val_loss_nats=loss)
    choice = only_choice(request, store)
    assert choice.values == {"optim.lr": 3e-3}
    assert choice.warnings == ("a: no tuning run reached the threshold: chosen by the validation loss",)


def test_a_row_whose_tuning_runs_all_diverged_stays_untuned_for_good(store: Store) -> None:
    request = tuned_request(LRS, rows=("a", "b"))
    record_all(store, request, ["diverged"] * 3 + [3.0, 1.0, 2.0])
    choices = choose(request, store)
    a, b = settle(request, choices).cells
    assert (status_of(a, store), b.tuned) == ("untuned", {"optim.lr": 3e-3})
    assert choices.warnings == ["a: untuned: all 3 tuning runs diverged: try other values of optim.lr"]


def test_a_row_waits_for_all_of_its_own_tuning_runs_and_for_no_others(store: Store) -> None:
    request = tuned_request(LRS, rows=("a", "b"))
    cells = request.tuning[0].cells
    for cell, result in zip(cells[:-1], [1.0, 2.0, 3.0, 1.0, 2.0], strict=True):
        record(store, cell, result)
    attempt = store.claim(cells[-1].run_id or "", 0)
    assert attempt is not None
    (attempt.directory / "error.json").write_text('{"class": "oom", "message": "out of memory"}')
    choices = choose(request, store)
    assert [choice.values is None for choice in choices.all] == [False, True]
    assert choices.warnings == ["a: lr = 0.001 is the smallest that was tried: widen the range"]
    expected = f"b: untuned: 1 of 3 tuning runs have no result yet: 1 failed ({cells[-1].name})"
    assert choices.sentences == [*choices.warnings, expected]


def test_a_damaged_record_is_no_result(store: Store) -> None:
    request = tuned_request(LRS)
    record_all(store, request, [1.0, 2.0, 3.0])
    store.record_path(request.tuning[0].cells[0].run_id or "").write_text('{"schema": 1, "st')
    assert "1 damaged" in str(only_choice(request, store).reason)


def test_a_row_at_other_values_of_the_grid_has_a_choice_of_its_own(store: Store) -> None:
    request = tuned_request(LRS, axes=({"scale": "toy"}, {"scale": "1b"}))
    record_all(store, request, [1.0, 2.0, 3.0, 3.0, 2.0, 1.0])
    choices = choose(request, store)
    assert [choice.of for choice in choices.all] == ["a/scale=toy", "a/scale=1b"]
    assert [cell.tuned["optim.lr"] for cell in settle(request, choices).cells] == [1e-3, 1e-2]


def test_one_choice_for_a_sweep_is_the_best_mean_over_rows(store: Store) -> None:
    request = tuned_request(LRS, rows=("a", "b"), per="sweep")
    record_all(store, request, [1.0, 1.5, 9.0, 9.0, 1.5, 1.0])
    choice = only_choice(request, store)
    assert (choice.of, choice.values) == ("all 2 rows", {"optim.lr": 3e-3})
    assert {cell.tuned["optim.lr"] for cell in settle(request, choose(request, store)).cells} == {3e-3}


@pytest.mark.parametrize(
    ("results", "warnings"),
    [
        ([1.0, 2.0, 3.0], ("a: lr = 0.001 is the smallest that was tried: widen the range",)),
        ([3.0, 2.0, 1.0], ("a: lr = 0.01 is the largest that was tried: widen the range",)),
        ([2.0, 1.0, 2.0], ()),
    ],
)
def test_a_choice_at_the_edge_of_its_range_is_a_warning(store: Store, results: list[Any], warnings: Any) -> None:
    request = tuned_request({"optim.lr": (1e-2, 1e-3, 3e-3)})  # in whatever order they were typed
    record_all(store, request, results)
    assert only_choice(request, store).warnings == warnings


def test_what_has_no_order_has_no_edge_and_each_number_its_own(store: Store) -> None:
    request = tuned_request({"budget.tokens": ("2M", "500K", "1M"), "model.intra.fusion": ("add", "diff")})
    names = [(cell.tuned["budget.tokens"], cell.tuned["model.intra.fusion"]) for cell in request.tuning[0].cells]
    record_all(store, request, [0.0 if name == ("2M", "add") else 1.0 for name in names])
    assert only_choice(request, store).warnings == ("a: tokens = 2M is the largest that was tried: widen the range",)


# --- requests in the store ----------------------------------------------------------------------


def test_a_tuned_request_is_read_back_as_it_was_and_says_nothing_of_results(store: Store, expand_request) -> None:
    request = expand_request(*SWEEP, TUNE).request
    path = store.publish_request(request)
    assert store.requests() == [request]
    text = path.read_text()
    record_all(store, request, [1.0, 2.0, 3.0] * 2)
    assert store.publish_request(request) == path
    assert path.read_text() == text


OLD_NAME = "34bd5af04d18"
OLD = (
    '{"cells": [{"axes": {"optim.lr": 0.001}, "name": "a/lr=0.001/s1", "row": "a", "run_id": "0123456789ab", '
    '"seed": 1}], "created_at": "2026-11-20T10:00:00+00:00", "overrides": ["x=1"], "report": {"title": "T"}, '
    '"schema": 1, "sweep": "old"}\n'
)


def test_a_request_of_before_there_was_tuning_is_read_and_keeps_its_name(store: Store) -> None:
    path = store.requests_dir("old") / f"{OLD_NAME}.json"
    path.parent.mkdir(parents=True)
    path.write_text(OLD)
    (request,) = store.requests("old")
    assert request.tuning == ()
    assert settle(request, choose(request, store)) == request
    assert store.publish_request(request) == path
    assert path.read_text() == OLD
    path.unlink()
    store.publish_request(request)
    assert path.read_text() == OLD


# --- the whole way ------------------------------------------------------------------------------


def test_a_plan_counts_tuning_runs_and_shows_what_waits_for_them(tmp_path: Path, expand_request) -> None:
    store = Store(tmp_path / "store")
    expansion = expand_request(*SWEEP, TUNE)
    plan = make_plan(expansion.runs, store, read_plan_settings(expansion.config["plan"]))
    assert [(cell.label, cell.status) for cell in plan.cells if cell.run.cell.seed in (1, 1001)] == [
        *[("first/tune", "new")] * 3,
        *[("second/tune", "new")] * 3,
        ("first", "untuned"),
        ("second", "untuned"),
    ]
    assert len(plan.missing) == 6 + 4
    assert len(plan.startable) == 6


def test_plan_and_status_tell_a_tuned_request_as_json_and_text(tmp_path: Path, run_py) -> None:
    cells = json.loads(run_py("-m", *SWEEP, TUNE, "mode=plan", "plan.format=json").communicate()[0])
    assert [cell["tuning"] for cell in cells] == [True] * 6 + [False] * 4
    assert [cell["run_id"] is None for cell in cells] == [False] * 6 + [True] * 4
    assert {cell["status"] for cell in cells[6:]} == {"untuned"}
    assert cells[0]["tuned"] == {"optim.lr": 0.001}
    text, _ = run_py("-m", *SWEEP, TUNE, "mode=plan").communicate()
    assert "4 cells asked for, after 6 tuning runs: 10 runs" in text
    assert "for tuning" in text
    assert not (tmp_path / "store").exists()


def test_one_command_tunes_every_row_and_then_trains_it_and_the_next_trains_nothing(tmp_path: Path, run_py) -> None:
    store = Store(tmp_path / "store")
    grid = "+sweep.grid={batch_tokens:[64,128]}"
    arguments = ("-m", *(s for s in BASE if "batch_tokens" not in s), ROWS, grid, "sweep.seeds=1", TUNE)
    process = run_py(*arguments)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "4 of 4 cells finished" in err
    (request,) = store.requests()
    choices = choose(request, store)
    settled = settle(request, choices)
    ids = [cell.run_id for cell in (*request.tuning[0].cells, *settled.cells)]
    assert sorted(map(str, ids)) == sorted(store.run_ids())
    for cell in settled.cells:
        mine = [t for t in request.tuning[0].cells if (t.row, t.axes) == (cell.row, cell.axes)]
        losses = {t.tuned["optim.lr"]: loss(store, t) for t in mine}
        assert len(losses) == 3
        assert cell.tuned == {"optim.lr": min(losses, key=losses.__getitem__)}
        found = store.record(cell.run_id or "")
        assert found is not None
        assert found["spec"]["optim"]["lr"] == cell.tuned["optim.lr"]
        assert f"tuned: {cell.row}/batch_tokens={cell.axes['batch_tokens']}: lr = " in err
    for warning in choices.warnings:
        assert f"warning: {warning}" in err
    again = run_py(*arguments)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert "to be run: 0" in err
    assert set(attempts(store).values()) == {1}
    assert len(store.requests()) == 1
    table = python_m("analysis", "tables", "latest", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    assert "lr (tuned)" in table.stdout
    status = python_m("sweeps", "status", "own", cwd=tmp_path)
    assert "first/batch_tokens=64/tune/lr=0.003/s1001" in status.stdout
    assert "untuned" not in status.stdout


def loss(store: Store, cell: Cell) -> float:
    found = store.record(cell.run_id or "")
    assert found is not None
    return float(found["metrics"]["val_loss_nats"])


@pytest.mark.slow
def test_one_choice_for_all_rows_is_trained_in_all_of_them(tmp_path: Path, run_py) -> None:
    tune = TUNE.replace("per:row", "per:sweep")
    process = run_py("-m", *BASE, ROWS, "sweep.seeds=1", tune)
    _, err = process.communicate()
    assert process.returncode == 0, err
    store = Store(tmp_path / "store")
    (request,) = store.requests()
    cells = settle(request, choose(request, store)).cells
    assert len({json.dumps(cell.tuned) for cell in cells}) == 1
    assert {status_of(cell, store) for cell in cells} == {"done"}


def test_a_tuning_run_that_fails_leaves_its_row_untuned_and_named_and_the_others_go_on(tmp_path: Path, run_py) -> None:
    rows = "+sweep.rows={bad:{model.ratio:'1:1',exec.device:'cuda:99'},good:{model.ratio:'0:1'}}"
    process = run_py("-m", *BASE, rows, "sweep.seeds=1", TUNE)
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert "failed: bad/tune/lr=0.001/s1001" in err
    assert "warning: bad: untuned: 3 of 3 tuning runs have no result yet: 3 failed" in err
    assert "1 of 2 cells finished" in err
    assert "Traceback" not in err
    store = Store(tmp_path / "store")
    (request,) = store.requests()
    bad, good = settle(request, choose(request, store)).cells
    assert (status_of(bad, store), status_of(good, store)) == ("untuned", "done")
    table = python_m("analysis", "tables", "latest", cwd=tmp_path)
    assert "1 untuned" in table.stdout
    assert "bad: untuned: 3 of 3" in table.stdout
    evaluated = run_py("-m", *BASE, rows, "sweep.seeds=1", TUNE, "mode=eval")
    out, err = evaluated.communicate()
    assert evaluated.returncode == 1, err
    assert "bad/s1: expected a cell that is tuned" in err
    assert out.startswith("good/s1 ")


def test_a_value_that_diverges_is_never_chosen_and_a_row_of_them_is_untuned(run_py) -> None:
    rows = "+sweep.rows={wild:{model.ratio:'1:1',optim.eps:1e30,optim.weight_decay:1e9},calm:{model.ratio:'0:1'}}"
    tune = "sweep.tune={optim.lr:[1e-3,1e9],at:{budget.tokens:1920}}"
    process = run_py("-m", *BASE, rows, "sweep.seeds=1", tune)
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert "wild: untuned: all 2 tuning runs diverged" in err
    assert "tuned: calm: lr = 0.001" in err
    assert "1 of 2 cells finished" in err


@pytest.mark.slow
def test_a_tuned_sweep_that_is_killed_in_either_phase_goes_on_where_it_was(tmp_path: Path, run_py) -> None:
    store = Store(tmp_path / "store")
    tune = "sweep.tune={optim.lr:[1e-3,3e-3]}"
    arguments = ("-m", *BASE, ROWS, "sweep.seeds=1", tune, "exec.checkpoint_every_s=0.1")

    def recorded() -> dict[str, bytes]:
        paths = {run: store.record_path(run) for run in store.run_ids()}
        return {run: path.read_bytes() for run, path in paths.items() if path.exists()}

    def tuning_ids() -> set[str]:
        return {str(cell.run_id) for cell in store.requests()[0].tuning[0].cells}

    def in_phase_2() -> bool:
        return any(store.metrics(run) for run in set(store.run_ids()) - tuning_ids())

    for reached in (recorded, in_phase_2):
        process = run_py(*arguments)
        wait_for(reached)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        before = recorded()
    process = run_py(*arguments)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "2 of 2 cells finished" in err
    (request,) = store.requests()
    final = {str(cell.run_id) for cell in settle(request, choose(request, store)).cells}
    assert len(final) == 2
    assert set(store.run_ids()) == final | tuning_ids()
    assert len(before) >= 4
    assert {run: recorded()[run] for run in before} == before


def test_an_interrupt_while_rows_are_tuned_starts_nothing_else(tmp_path: Path, run_py) -> None:
    store = Store(tmp_path / "store")
    process = run_py("-m", *SWEEP, TUNE.replace("640", "6400000"))
    wait_for(lambda: sum(bool(store.metrics(run)) for run in store.run_ids()) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "0 of 4 cells finished" in err
    status = python_m("sweeps", "status", cwd=tmp_path)
    assert "4 untuned, tuning 0/6" in status.stdout


def test_choices_of_a_request_without_tuning_are_none(store: Store, expand_request: Callable[..., Expansion]) -> None:
    assert choose(expand_request(*SWEEP).request, store) == Choices()
