"""What a plan says of a request's cells, and that it is what is then run."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hybrid.cost import run_cost
from hybrid.equivalence import CONCATENATION, SIGN
from hybrid.memory import checkpoint_bytes, final_weights_bytes, train_memory
from sweeps.launch import Asked
from sweeps.launch.inline import Inline
from sweeps.plan import Ledger, Plan, Total, ledger, make_plan
from sweeps.plan_json import as_json
from sweeps.plan_text import as_text
from sweeps.store import Store

from .conftest import TINY, Planned

TOY = ("scale=toy", "model=intra", "model.depth=2", "model.ratio=1:0")


def symmetries(planned: Planned) -> list[str]:
    lines = as_text(planned.plan, planned.settings, title="a plan").splitlines()
    return [line for line in lines if line.startswith("one model by symmetry")]


def objects(planned: Planned) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(as_json(planned.plan, planned.settings))
    return found


def header(planned: Planned) -> list[str]:
    return as_text(planned.plan, planned.settings, title="").split("\n")[2].split()


# --- rows that are one model --------------------------------------------------------------------


def test_rows_that_are_one_model_by_symmetry_are_named_with_the_reason(plan_of: Any) -> None:
    planned = plan_of(*TOY, "model.intra.output=joint", "model.intra.fusion=add,diff,concat")
    names = [cell.run.cell.name for cell in planned.plan.cells]
    assert symmetries(planned) == [f"one model by symmetry: '{names[0]}', '{names[1]}' ({SIGN})"]
    assert [(o["one_model_with"], o["symmetry"]) for o in objects(planned)] == [
        (None, None),
        (names[0], SIGN),
        (None, None),
    ]
    assert len(planned.plan.missing) == 3


def test_a_class_with_two_reasons_says_each(plan_of: Any) -> None:
    # A row for each of: add and diff with separate outputs, and concat, which has a joint one.
    rows = (
        "+sweep.rows.add={model.intra.fusion: add, model.intra.output: separate}",
        "+sweep.rows.diff={model.intra.fusion: diff, model.intra.output: separate}",
        "+sweep.rows.concat={model.intra.fusion: concat, model.intra.output: joint}",
    )
    planned = plan_of(*TOY, *rows)
    assert symmetries(planned) == [f"one model by symmetry: 'add', 'diff' ({SIGN}), 'concat' ({CONCATENATION})"]


def test_seeds_of_a_row_are_said_once_and_other_lengths_are_other_runs(plan_of: Any) -> None:
    planned = plan_of(*TOY, "model.intra.fusion=add,diff", "sweep.seeds=2", "budget.tokens=1M,2M")
    assert len(planned.plan.cells) == 8
    assert len(symmetries(planned)) == 2
    assert all("1 " not in line.split("(")[0] for line in symmetries(planned))
    pairs = {(o["name"], o["one_model_with"]) for o in objects(planned)}
    assert sum(other is not None for _, other in pairs) == 4


def test_one_run_under_two_names_is_no_symmetry(plan_of: Any) -> None:
    rows = ("+sweep.rows.a={model.intra.norm: group}", "+sweep.rows.b={model.intra.norm: group}")
    planned = plan_of(*TOY, *rows)
    assert [cell.same_as for cell in planned.plan.cells] == [None, "a"]
    assert symmetries(planned) == []
    assert all(o["one_model_with"] is None for o in objects(planned))


# --- a cell -------------------------------------------------------------------------------------


def test_active_parameters_are_shown_where_they_differ(plan_of: Any) -> None:
    dense, sparse = (plan_of(*TOY, *extra) for extra in ((), ("model.moe.every=1",)))
    assert "active" not in header(dense)
    assert "active" in header(sparse)
    (cell,) = objects(sparse)
    assert cell["active_params"] < cell["non_embedding_params"]


def test_a_cells_decoding_step_has_its_bytes_and_its_least_time_on_each_device(plan_of: Any) -> None:
    attention, mamba = (objects(plan_of("scale=1b", f"model={m}"))[0]["decode_bf16"] for m in ("llama", "mamba"))
    assert attention["kv_bytes"] > 0 == attention["state_bytes"]
    assert mamba["state_bytes"] > 0 == mamba["kv_bytes"]
    moved = attention["weight_bytes"] + attention["kv_bytes"]
    assert attention["roofline_s"]["H200 SXM"] == pytest.approx(moved / 4.8e12)


def test_json_has_every_number_in_full(plan_of: Any) -> None:
    planned = plan_of("+sweep=table2", "sweep.only=[Llama,Mamba equal FLOPs]", "plan.price=2.5")
    for entry, cell in zip(objects(planned), planned.plan.cells, strict=True):
        run, execution = cell.spec, cell.run.resolved.execution
        cost = run_cost(run)
        assert entry["train_flops"] == cost.paper_train_flops
        assert entry["full_train_flops"] == cost.full_train_flops
        assert entry["train_flops_per_sample"] * run.train_tokens == entry["train_flops"] * run.seq_len
        predicted = train_memory(run, execution).total_bytes
        assert entry["peak_memory_bytes"] == entry["predicted_memory_bytes"] == predicted
        assert entry["largest_of_each_part"]["optimizer_bytes"] == 8 * cost.total_params
        assert entry["disk_bytes"] == 3 * checkpoint_bytes(run) + final_weights_bytes(run)
        with_it = entry["predicted_memory_bytes_with_activation_checkpointing"]
        assert with_it == predicted < entry["predicted_memory_bytes_without_activation_checkpointing"]
        assert entry["gpu_hours"] == pytest.approx(cost.full_train_flops / (0.4 * 989.4e12) / 3600)
        assert entry["price"] == entry["gpu_hours"] * 2.5
        assert (entry["hours_source"], entry["device"]) == ("mfu", "h100")
        assert entry["own_steps"] == run.train_steps
    llama, mamba = objects(planned)
    assert llama["budget"] is None
    assert mamba["budget"]["target_flops"] == pytest.approx(llama["train_flops"], rel=1e-4)
    assert abs(mamba["budget"]["mismatch"]) < 1e-4


def test_hours_on_a_processor_that_nobody_measured_are_unknown(plan_of: Any) -> None:
    planned = plan_of(*TOY)
    (cell,) = objects(planned)
    assert (cell["gpu_hours"], cell["hours_source"], cell["device"]) == (None, "unknown", "cpu")
    text = as_text(planned.plan, planned.settings, title="")
    assert "CPU-hours: not measured: mode=preflight measures it" in text
    assert "GPU-hours" not in text


@pytest.mark.parametrize("request_text", ["table2", "table4", "table4 scale=toy", "demo", "table5", "swa", "isoflop"])
def test_the_table_of_a_shipped_sweep_is_no_wider_than_150_columns(plan_of: Any, request_text: str) -> None:
    planned = plan_of(*f"+sweep={request_text}".split())
    lines = as_text(planned.plan, planned.settings, title="").split("\n")
    end = next(i for i, line in enumerate(lines) if line.startswith("every row"))
    assert end > len({cell.label for cell in planned.plan.cells})
    assert max(map(len, lines[: end + 1])) <= 150


def test_what_all_rows_have_alike_is_said_once(plan_of: Any) -> None:
    alike, different = plan_of(*TOY, "optim.lr=1e-3,2e-3"), plan_of(*TOY, "budget.tokens=1M,2M")
    for planned, is_column in ((alike, False), (different, True)):
        text = as_text(planned.plan, planned.settings, title="")
        assert ("tokens" in header(planned)) == is_column
        assert bool(re.search(r"^every row: .*\b2M tokens; 977 steps;", text, re.MULTILINE)) != is_column
    assert "id" in header(alike)
    assert "id" not in header(plan_of(*TOY, "optim.lr=1e-3,2e-3", "sweep.seeds=2"))


# --- totals -------------------------------------------------------------------------------------


def assert_adds_up(plan: Plan) -> Ledger:
    """Asked for is what is shared, finished, damaged, begun, spared and to be paid, to the last FLOP."""
    totals = ledger(plan)
    parts = [totals.shared, totals.finished, totals.damaged, totals.begun, totals.in_trunks, totals.trunks]
    parts.append(totals.to_pay)
    assert all(part.train_tokens >= 0 for part in parts)
    for name in (f.name for f in fields(Total) if f.name != "hours"):
        assert sum(getattr(part, name) for part in parts) == getattr(totals.asked, name), name
    for unit, hours in totals.asked.hours.items():
        known = sum(part.hours[unit].known for part in parts if unit in part.hours)
        assert hours.known == pytest.approx(known)
    own = sum(cell.own_steps * cell.spec.batch_tokens for cell in plan.cells)
    assert totals.to_pay.train_tokens == own + sum(t.steps * t.branch.spec.batch_tokens for t in plan.trunks)
    return totals


def test_totals_are_sums_to_the_last_flop(plan_of: Any) -> None:
    planned = plan_of("+sweep=paper")
    totals = assert_adds_up(planned.plan)
    entries = objects(planned)
    ids = {entry["run_id"] for entry in entries}
    assert totals.asked.paper_train_flops == sum(entry["train_flops"] for entry in entries)
    assert totals.shared.runs == len(entries) - len(ids) > 0
    assert totals.to_pay.runs == len(ids)
    assert totals.trunks.paper_train_flops > 0
    paid = sum((e["own_steps"] + e["trunk_steps"]) * e["batch_tokens"] for e in entries)
    assert totals.to_pay.train_tokens == paid
    assert totals.to_pay.paper_train_flops == sum(
        (e["own_steps"] + e["trunk_steps"]) * e["batch_tokens"] // e["seq_len"] * e["train_flops_per_sample"]
        for e in entries
    )


def test_finished_and_damaged_runs_are_not_paid_again(plan_of: Any, finish: Any) -> None:
    arguments = (*TINY, "optim.lr=1e-3,2e-3,3e-3", "sweep.seeds=2")
    runs = plan_of(*arguments).plan.cells
    finish(runs[0].run, val_loss_nats=1.0)
    finish(runs[3].run, status="diverged")
    store = plan_of.store
    store.publish_spec(runs[4].spec)
    store.spec_path(runs[4].run.run_id).write_text("{}")
    planned = plan_of(*arguments)
    assert [cell.status for cell in planned.plan.cells] == ["done", "new", "new", "diverged", "damaged", "new"]
    totals = assert_adds_up(planned.plan)
    assert (totals.finished.runs, totals.damaged.runs, totals.to_pay.runs) == (2, 1, 3)
    text = as_text(planned.plan, planned.settings, title="")
    assert "6 cells asked for: 6 runs" in text
    assert "2 finished; to be run: 3" in text


def steps_made(store: Store, run_id: str) -> int:
    """The updates that a finished run made itself."""
    record, start = store.record(run_id), store.branched_from(run_id)
    assert record is not None
    return int(record["metrics"]["steps"]) - (0 if start is None else start.step)


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_never_differs_from_what_is_then_run(plan_of: Any, seed: int) -> None:
    """Random lengths, some trained before: ids, steps, tokens, FLOPs, and who makes each step."""
    draw = random.Random(seed)
    lengths = draw.sample([5, 8, 13, 20, 34, 55], k=3)
    tokens = ",".join(str(64 * steps) for steps in lengths)
    rows = "+sweep.rows={a:{optim.lr:1e-3},b:{optim.lr:2e-3},same as a:{optim.lr:0.001}}"
    arguments = (
        *TINY,
        rows,
        f"sweep.seeds={draw.choice([1, 2])}",
        f"budget.tokens={tokens}",
        f"schedule.warmup_tokens={64 * draw.choice([1, 2])}",
        f"exec.trunks={draw.choice(['true', 'true', 'false'])}",
    )
    store: Store = plan_of.store
    before = plan_of(*arguments).plan.missing
    Inline().launch([cell.run for cell in draw.sample(before, k=draw.choice([0, 1, 3]))], store, Asked(sweep="test"))
    made_before = {trunk.name: store.trunk_points(trunk.name) for trunk in trunk_dirs(store)}
    planned = plan_of(*arguments)
    assert_adds_up(planned.plan)
    ends = Inline().launch([cell.run for cell in planned.plan.startable], store, Asked(sweep="test"))
    assert {end.status for end in ends} <= {"done"}
    for entry, cell in zip(objects(planned), planned.plan.cells, strict=True):
        record = store.record(entry["run_id"])
        assert record is not None
        assert record["metrics"]["steps"] == entry["train_steps"]
        assert record["metrics"]["tokens"] == entry["train_tokens"]
        assert record["cost"]["paper_train_flops"] == entry["train_flops"]
        assert record["cost"]["full_train_flops"] == entry["full_train_flops"]
        if cell.is_missing:
            assert steps_made(store, entry["run_id"]) == entry["own_steps"]
    for trunk in planned.plan.trunks:
        reached = max(store.trunk_points(trunk.trunk_id))
        assert trunk.steps == reached - max(made_before.get(trunk.trunk_id, ()), default=0)
    assert {trunk.trunk_id for trunk in planned.plan.trunks} == {
        path.name for path in trunk_dirs(store) if store.trunk_points(path.name) != made_before.get(path.name, ())
    }
    again = plan_of(*arguments).plan
    assert again.missing == []
    assert assert_adds_up(again).to_pay.train_tokens == 0


def trunk_dirs(store: Store) -> list[Path]:
    return list((store.root / "trunks").glob("*/*"))


def test_a_run_that_has_begun_is_paid_from_its_checkpoint(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan_of(*TINY, "init_seed=1,2")
    begun, fresh = planned.plan.cells
    monkeypatch.setattr(plan_of.store, "checkpoint_step", lambda run_id: 40 * (run_id == begun.run.run_id))
    again = plan_of(*TINY, "init_seed=1,2").plan
    assert [cell.own_steps for cell in again.cells] == [60, 100]
    totals = assert_adds_up(again)
    assert totals.begun.train_tokens == 40 * 64
    assert totals.trunks.train_tokens == 0
    assert fresh.own_steps == 100


def test_cells_of_one_name_and_one_run_are_one_run(plan_of: Any) -> None:
    once = plan_of(*TINY)
    twice = make_plan([*once.expansion.runs, *once.expansion.runs], plan_of.store, once.settings)
    assert [cell.same_as for cell in twice.cells] == [None, once.plan.cells[0].run.cell.name]
    assert len(twice.missing) == 1
    assert assert_adds_up(twice).to_pay == ledger(once.plan).to_pay


def test_what_trunks_have_made_and_what_runs_share_are_two_lines(plan_of: Any) -> None:
    lengths = (*TINY, "budget.tokens=3200,4480", "schedule.warmup_tokens=64", "exec.trunks=true")
    more = (*TINY, "budget.tokens=3200,4480,6400,12800", "schedule.warmup_tokens=64", "exec.trunks=true")
    shared = assert_adds_up(plan_of(*lengths).plan)
    assert shared.in_trunks.train_tokens == 0 < shared.trunks.train_tokens
    Inline().launch([cell.run for cell in plan_of(*lengths).plan.startable], plan_of.store, Asked(sweep="test"))
    planned = plan_of(*more)
    totals = assert_adds_up(planned.plan)
    reached = max(max(plan_of.store.trunk_points(path.name)) for path in trunk_dirs(plan_of.store))
    assert totals.in_trunks.train_tokens == 64 * reached
    assert totals.trunks.train_tokens > 0
    text = as_text(planned.plan, planned.settings, title="")
    assert re.search(r"^- done in trunks .*\n- shared by trunks ", text, re.MULTILINE)


def test_hours_that_nobody_knows_are_never_none(plan_of: Any) -> None:
    planned = plan_of(*TINY, "budget.tokens=3200,4480", "schedule.warmup_tokens=64", "exec.trunks=true")
    text = as_text(planned.plan, planned.settings, title="")
    for line in ("asked for", "- shared by trunks", "to be paid"):
        assert re.search(rf"^{line} .* \?$", text, re.MULTILINE), text


def test_asking_a_store_costs_no_write(plan_of: Callable[..., Planned], tmp_path: Path) -> None:
    plan_of("+sweep=table4")
    assert not list(tmp_path.iterdir())


def test_make_plan_of_nothing_is_nothing(plan_of: Any) -> None:
    settings = plan_of(*TINY).settings
    assert ledger(make_plan([], plan_of.store, settings)).to_pay.runs == 0
