"""What a plan says of models that are one by symmetry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.equivalence import CONCATENATION, SIGN
from sweeps.cells import Expansion
from sweeps.plan import PlannedCell, as_json, as_text, make_plan, missing
from sweeps.store import Store

TOY = ("scale=toy", "model=intra", "model.depth=2", "model.ratio=1:0")


@pytest.fixture
def plan_of(tmp_path: Path, expand_request: Callable[..., Expansion]) -> Callable[..., list[PlannedCell]]:
    """The plan of a command line against an empty store."""
    store = Store(tmp_path / "store")
    return lambda *arguments: make_plan(expand_request(*arguments).runs, store)


def symmetries(plan: list[PlannedCell]) -> list[str]:
    lines = as_text(plan, title="a plan").splitlines()
    return [line for line in lines if line.startswith("one model by symmetry")]


def objects(plan: list[PlannedCell]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(as_json(plan))
    return found


def test_rows_that_are_one_model_by_symmetry_are_named_with_the_reason(plan_of: Any) -> None:
    plan = plan_of(*TOY, "model.intra.output=joint", "model.intra.fusion=add,diff,concat")
    names = [cell.run.cell.name for cell in plan]
    assert symmetries(plan) == [f"one model by symmetry: '{names[0]}', '{names[1]}' ({SIGN})"]
    assert [(o["one_model_with"], o["symmetry"]) for o in objects(plan)] == [
        (None, None),
        (names[0], SIGN),
        (None, None),
    ]
    assert len(missing(plan)) == 3


def test_a_class_with_two_reasons_says_each(plan_of: Any) -> None:
    # A row for each of: add and diff with separate outputs, and concat, which has a joint one.
    rows = (
        "+sweep.rows.add={model.intra.fusion: add, model.intra.output: separate}",
        "+sweep.rows.diff={model.intra.fusion: diff, model.intra.output: separate}",
        "+sweep.rows.concat={model.intra.fusion: concat, model.intra.output: joint}",
    )
    plan = plan_of(*TOY, *rows)
    assert symmetries(plan) == [f"one model by symmetry: 'add', 'diff' ({SIGN}), 'concat' ({CONCATENATION})"]


def test_seeds_of_a_row_are_said_once_and_other_lengths_are_other_runs(plan_of: Any) -> None:
    plan = plan_of(*TOY, "model.intra.fusion=add,diff", "sweep.seeds=2", "budget.tokens=1M,2M")
    assert len(plan) == 8
    assert len(symmetries(plan)) == 2
    assert all("1 " not in line.split("(")[0] for line in symmetries(plan))
    pairs = {(o["name"], o["one_model_with"]) for o in objects(plan)}
    assert sum(other is not None for _, other in pairs) == 4


def test_one_run_under_two_names_is_no_symmetry(plan_of: Any) -> None:
    rows = ("+sweep.rows.a={model.intra.norm: group}", "+sweep.rows.b={model.intra.norm: group}")
    plan = plan_of(*TOY, *rows)
    assert [cell.same_as for cell in plan] == [None, "a"]
    assert symmetries(plan) == []
    assert all(o["one_model_with"] is None for o in objects(plan))


def test_active_parameters_are_shown_where_they_differ(plan_of: Any) -> None:
    dense, sparse = (plan_of(*TOY, *extra) for extra in ((), ("model.moe.every=1",)))
    assert "active" not in as_text(dense, title="").split("\n")[2].split()
    assert "active" in as_text(sparse, title="").split("\n")[2].split()
    (cell,) = objects(sparse)
    assert cell["active_params"] < cell["non_embedding_params"]


def test_a_cells_decoding_step_has_its_bytes_and_its_least_time_on_each_device(plan_of: Any) -> None:
    attention, mamba = (objects(plan_of("scale=1b", f"model={m}"))[0]["decode_bf16"] for m in ("llama", "mamba"))
    assert attention["kv_bytes"] > 0 == attention["state_bytes"]
    assert mamba["state_bytes"] > 0 == mamba["kv_bytes"]
    moved = attention["weight_bytes"] + attention["kv_bytes"]
    assert attention["roofline_s"]["H200 SXM"] == pytest.approx(moved / 4.8e12)
