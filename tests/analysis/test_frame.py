"""Runs and metric lines as DataFrames: a row for each, whatever became of it."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from analysis.frame import metrics, runs
from hybrid.cost import run_cost
from hybrid.spec import ConfigError
from sweeps.identity import run_id
from sweeps.index import Index
from sweeps.store import Candidate, Cell, Request, Store, StoreError, Tuning


def row_of(frame: Any, **where: Any) -> Any:
    for name, value in where.items():
        frame = frame[frame[name] == value]
    (row,) = frame.to_dict("records")
    return row


def edit(store: Store, identity: str, **changes: Any) -> None:
    """Change a record behind the store's back."""
    path = store.record_path(identity)
    record = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(record | changes))


def test_every_cell_of_a_request_is_a_row_in_its_order(demo: Any) -> None:
    (request,) = demo.store.requests()
    frame = runs(demo.store, request)
    assert frame["name"].tolist() == [cell.name for cell in request.cells]
    assert frame["run_id"].tolist() == [cell.run_id for cell in request.cells]
    assert frame["status"].value_counts().to_dict() == {"done": 22, "diverged": 1, "failed": 1, "new": 1}
    assert frame[frame["status"] == "failed"]["note"].tolist() == ["oom: out of memory"]
    assert frame[frame["status"] == "new"]["steps"].isna().all()
    pair = frame[frame["row"] == "attention first"]
    assert pair["steps_to_threshold"].tolist() == [340, 360, 420, 380, 400]
    assert pair["seed"].tolist() == [1, 2, 3, 4, 5]
    assert row_of(frame, row="no attention", seed=5)["reason"] == "loss is nan"
    assert runs(demo.store.root, "demo").equals(frame)


def test_every_run_of_a_store_is_a_row_with_what_it_cost(text: Any) -> None:
    frame = runs(str(text.store.root))
    assert frame["run_id"].tolist() == sorted(text.store.run_ids())
    spec = text.spec("AAAA", 1, probe=False)
    row = row_of(frame, run_id=run_id(spec))
    assert row["val_loss_nats"] == 1.5012
    assert row["cost.total_params"] == asdict(run_cost(spec))["total_params"]
    assert row["provenance.host"] == "here"
    assert row["layout"] == "AAAA"
    assert row["device_hours"] == row["own_device_hours"] == row["wall_s"] / 3600


def test_settings_that_differ_are_columns_and_no_others(text: Any) -> None:
    spec = replace(text.spec("AMA", 7, lr=0.004, probe=False), batch_tokens=8192)
    text.record(spec, val_loss_nats=1.0)
    frame = runs(text.store)
    assert [name for name in frame.columns if name.startswith("spec.")] == [
        "spec.batch_tokens",
        "spec.data_seed",
        "spec.init_seed",
        "spec.model.attention.head_dim",
        "spec.model.attention.n_heads",
        "spec.model.attention.n_kv_heads",
        "spec.model.mamba2.a_init_max",
        "spec.model.mamba2.a_init_min",
        "spec.model.mamba2.d_conv",
        "spec.model.mamba2.d_ssm",
        "spec.model.mamba2.d_state",
        "spec.model.mamba2.dt_init_max",
        "spec.model.mamba2.dt_init_min",
        "spec.model.mamba2.head_dim",
        "spec.model.mamba2.n_groups",
        "spec.optim.lr",
    ]
    row = row_of(frame, run_id=run_id(spec))
    assert (row["spec.batch_tokens"], row["spec.optim.lr"], row["layout"]) == (8192, 0.004, "AMA")
    assert row["spec.model.mamba2.d_state"] == 16
    assert math.isnan(row_of(frame, layout="AAAA", **{"spec.init_seed": 1})["spec.model.mamba2.d_state"])


def test_settings_that_differ_between_blocks_are_listed(book: Any) -> None:
    spec = book.spec("MM", 1)
    first, second = spec.model.blocks
    wide = replace(second, mixer=replace(second.mixer, d_state=32))
    book.record(replace(spec, model=replace(spec.model, blocks=(first, wide))))
    book.record(spec)
    assert sorted(runs(book.store)["spec.model.mamba2.d_state"].tolist(), key=str) == [16, "[16, 32]"]


def test_axes_of_a_request_are_columns(book: Any) -> None:
    for lr in (0.1, 0.2):
        book.losses("llama", "A", [lr], lr=lr, **{"optim.lr": lr})
    book.request()
    frame = runs(book.store, "demo")
    assert frame["axes.optim.lr"].tolist() == [0.1, 0.2]
    assert frame["spec.optim.lr"].tolist() == [0.1, 0.2]


def test_cells_that_wait_for_their_tuning_are_rows_without_a_run(book: Any) -> None:
    specs = {lr: book.spec("A", 1001, lr=lr, probe=False) for lr in (0.1, 0.2)}
    tried = tuple(
        Cell(name=f"t{lr}", row="llama", axes={}, seed=1001, run_id=run_id(spec), tuned={"optim.lr": lr})
        for lr, spec in specs.items()
    )
    finals = {lr: book.spec("A", 1, lr=lr, probe=False) for lr in specs}
    candidates = tuple(Candidate(values={"optim.lr": lr}, run_id=run_id(spec)) for lr, spec in finals.items())
    cell = Cell(name="llama/s1", row="llama", axes={}, seed=1, run_id=None, candidates=candidates)
    tuning = Tuning(settings={"optim.lr": (0.1, 0.2)}, per="row", metric="val_loss_nats", cells=tried)
    request = Request(sweep="own", overrides=(), created_at="", report={}, cells=(cell,), tuning=(tuning,))
    book.store.publish_request(request)
    row = row_of(runs(book.store, request), name="llama/s1")
    assert (row["run_id"], row["status"]) == (None, "untuned")
    for lr, spec in specs.items():
        book.record(spec, val_loss_nats=lr)
    book.record(finals[0.1], val_loss_nats=1.25)
    row = row_of(runs(book.store, request), name="llama/s1")
    assert (row["status"], row["tuned.optim.lr"], row["val_loss_nats"]) == ("done", 0.1, 1.25)


def test_device_hours_count_every_device_and_tell_the_trunk_apart(text: Any) -> None:
    identity = run_id(text.spec("AAAA", 1, probe=False))
    record = text.store.record(identity)
    parts = {"exec": {"nodes": 2, "gpus_per_node": 4}, "trunk": {"id": "x", "step": 5, "attempt": 1, "wall_s": 900.0}}
    edit(text.store, identity, provenance=record["provenance"] | parts, metrics=record["metrics"] | {"wall_s": 3600.0})
    row = row_of(runs(text.store), run_id=identity)
    assert (row["device_hours"], row["own_device_hours"]) == (8.0, 6.0)


def test_evaluations_are_columns_called_by_kind_and_settings(text: Any) -> None:
    identity = run_id(text.spec("AAAA", 1, probe=False))
    for eval_id, spec, loss in (
        ("e1", {"kind": "nll", "max_examples": None}, 2.5),
        ("e2", {"kind": "nll", "max_examples": 8}, 2.25),
    ):
        record = {"schema": 1, "run_id": identity, "eval": spec, "metrics": {"loss_nats": loss}, "provenance": {}}
        text.store.publish_eval_record(identity, eval_id, record)
    frame = runs(text.store)
    row = row_of(frame, run_id=identity)
    assert (row["eval.nll.loss_nats"], row["eval.nll(max_examples=8).loss_nats"]) == (2.5, 2.25)
    assert frame["eval.nll.loss_nats"].notna().sum() == 1


# --- bad input ----------------------------------------------------------------------------------


def test_an_empty_store_is_an_empty_frame(book: Any) -> None:
    assert runs(book.store).empty
    assert runs(book.store).columns.tolist()[:3] == ["run_id", "status", "note"]
    assert metrics(book.store).empty


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a directory"):
        runs(tmp_path / "none")


def test_a_request_that_is_not_there_lists_those_that_are(demo: Any) -> None:
    with pytest.raises(ConfigError, match=r"request = dmo.*did you mean demo"):
        runs(demo.store, "dmo")


def test_requests_of_one_name_are_told_apart_by_their_overrides(book: Any) -> None:
    for seeds in (1, 2):
        for seed in range(seeds):
            book.cell(book.spec("A", seed), "llama", seed)
        book.request(overrides=(f"sweep.seeds={seeds}",))
    assert len(runs(book.store, "demo", ["sweep.seeds=2"])) == 2
    with pytest.raises(ConfigError, match=r"sweep\.seeds=1\n.*sweep\.seeds=2"):
        runs(book.store, "demo")


@pytest.mark.parametrize("change", [{"schema": 2}, {"metrics": None}])
def test_records_that_cannot_be_read_are_rows_that_say_so(text: Any, change: dict[str, Any]) -> None:
    (request,) = text.store.requests()
    identity = run_id(text.spec("AAAA", 2, probe=False))
    if change.get("schema"):
        edit(text.store, identity, **change)
    else:
        text.store.record_path(identity).write_text("{")
    for frame in (runs(text.store), runs(text.store, request)):
        assert len(frame) == 9
        row = row_of(frame, run_id=identity)
        assert row["status"] == "damaged"
        assert ("schema 2" if change.get("schema") else "damaged") in row["note"]
        assert math.isnan(row["val_loss_nats"])
        assert row["layout"] == "AAAA"  # from its spec.json


def test_a_metric_that_is_nan_is_noted(text: Any) -> None:
    identity = text.record(text.spec("AAAA", 9, probe=False), val_loss_nats=math.nan)
    row = row_of(runs(text.store), run_id=identity)
    assert math.isnan(row["val_loss_nats"])
    assert row["note"] == "val_bits_per_byte is NaN; val_loss_nats is NaN"
    assert row_of(runs(text.store), run_id=run_id(text.spec("AAAA", 1, probe=False)))["note"] == ""


def test_a_spec_of_another_revision_keeps_its_row(text: Any) -> None:
    identity = run_id(text.spec("AAAA", 1, probe=False))
    spec = text.store.spec(identity)
    spec["model"]["blocks"][0]["mixer"]["revision"] = 9
    edit(text.store, identity, spec=spec)
    row = row_of(runs(text.store), run_id=identity)
    assert math.isnan(row["layout"])
    assert row["val_loss_nats"] == 1.5012


def test_a_store_of_a_newer_format_is_refused(book: Any) -> None:
    (book.store.root / "format.json").write_text('{"format": 9}')
    with pytest.raises(StoreError, match="format 9"):
        runs(book.store)


# --- metric lines -------------------------------------------------------------------------------


def test_metric_lines_are_those_of_the_store(text: Any) -> None:
    (request,) = text.store.requests()
    frame = metrics(text.store, request)
    assert frame.columns.tolist() == ["run_id", "step", "tokens", "val_loss_nats"]
    for cell in request.cells:
        mine = frame[frame["run_id"] == cell.run_id]
        expected = text.store.metrics(cell.run_id)
        assert mine["step"].tolist() == [line["step"] for line in expected]
        assert mine["val_loss_nats"].tolist() == [line["val_loss_nats"] for line in expected]
    assert list(frame["run_id"].cat.categories) == [cell.run_id for cell in request.cells]
    assert frame["step"].dtype.kind == "i"
    assert metrics(text.store, "demo_text").equals(frame)


def test_metric_lines_of_running_and_failed_runs_are_there_too(book: Any) -> None:
    spec = book.spec("A", 1)
    book.fail(spec)
    path = book.store.attempt_dir(run_id(spec), 1) / "metrics.jsonl"
    path.write_text('{"step": 5, "train_loss_nats": 2.5}\n{"step": 10, "train_lo')
    frame = metrics(book.store)
    assert frame.to_dict("records") == [{"run_id": run_id(spec), "step": 5, "train_loss_nats": 2.5}]


def test_some_metrics_of_some_runs(text: Any) -> None:
    identity = run_id(text.spec("AAAA", 2, probe=False))
    frame = metrics(Index(text.store), [identity], ["val_loss_nats"])
    assert frame.columns.tolist() == ["run_id", "step", "val_loss_nats"]
    assert set(frame["run_id"]) == {identity}
    with pytest.raises(ConfigError, match=r"metric = val_los: .*did you mean val_loss_nats"):
        metrics(text.store, [identity], ["val_los"])


def test_lines_that_cannot_be_read_are_named_and_the_others_given(text: Any) -> None:
    identity = run_id(text.spec("AAAA", 2, probe=False))
    (text.store.attempt_dir(identity, 1) / "metrics.jsonl").write_bytes(b"\xff")
    frame = metrics(text.store)
    assert identity not in set(frame["run_id"])
    assert list(frame.attrs["problems"]) == [identity]
