"""Cells against the store: what is done, what is missing, and what the missing ones cost."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.cost import Cost, layout_of, run_cost
from hybrid.layout import compact
from sweeps.cells import CellRun
from sweeps.store import Status, Store, StoreError, is_final
from sweeps.text import amount, table


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell with its status and its cost. `same_as` names the first cell of the request with the same run."""

    run: CellRun
    status: Status
    cost: Cost
    layout: str
    same_as: str | None


def make_plan(runs: Sequence[CellRun], store: Store) -> list[PlannedCell]:
    """Look every cell up in the store; one whose stored spec is not the cell's counts as damaged."""
    first: dict[str, str] = {}
    planned = []
    costs: dict[Any, Cost] = {}
    for run in runs:
        run_id, spec = run.cell.run_id, run.resolved.run
        key = (spec.model, spec.train_tokens, spec.seq_len)
        if key not in costs:
            costs[key] = run_cost(spec)
        same_as = first.setdefault(run_id, run.cell.name)
        planned.append(
            PlannedCell(
                run=run,
                status=_status(store, run),
                cost=costs[key],
                layout=layout_of(spec.model),
                same_as=None if same_as == run.cell.name else same_as,
            )
        )
    return planned


def _status(store: Store, run: CellRun) -> Status:
    try:
        store.check_spec(run.cell.run_id, run.resolved.run)
    except StoreError:
        return "damaged"
    return store.status(run.cell.run_id)


def missing(plan: Sequence[PlannedCell]) -> list[PlannedCell]:
    """The cells to be run: not final nor damaged, each run once."""
    return [cell for cell in plan if not is_final(cell.status) and cell.status != "damaged" and cell.same_as is None]


def as_json(plan: Sequence[PlannedCell]) -> str:
    """The plan as a JSON list, one object a cell, in full precision; FLOPs are exact integers.

    `train_flops` is in the paper's convention, `full_train_flops` in the full one.
    """
    return json.dumps([_object(cell) for cell in plan], indent=1)


def _object(cell: PlannedCell) -> dict[str, Any]:
    spec, cost = cell.run.resolved.run, cell.cost
    return {
        "name": cell.run.cell.name,
        "run_id": cell.run.cell.run_id,
        "status": cell.status,
        "same_as": cell.same_as,
        "row": cell.run.cell.row,
        "axes": dict(cell.run.cell.axes),
        "seed": cell.run.cell.seed,
        "layout": cell.layout,
        "depth": len(cell.layout),
        "non_embedding_params": cost.non_embedding_params,
        "total_params": cost.total_params,
        "param_mismatch": cell.run.resolved.param_mismatch,
        "train_tokens": spec.train_tokens,
        "train_steps": spec.train_steps,
        "batch_tokens": spec.batch_tokens,
        "seq_len": spec.seq_len,
        "train_flops": cost.paper_train_flops,
        "train_flops_per_sample": cost.paper_train_flops_per_sample,
        "full_train_flops": cost.full_train_flops,
        "cache_bytes": cost.paper_cache_bytes,
    }


def as_text(plan: Sequence[PlannedCell], *, title: str) -> str:
    """The plan for people: one line a row of cells that differ in nothing but their seed, then totals."""
    groups: dict[tuple[Any, ...], list[PlannedCell]] = {}
    for cell in plan:
        label = cell.run.cell.name.rpartition("/")[0] if cell.run.cell.seed is not None else cell.run.cell.name
        key = (label or "run", cell.layout, cell.cost, cell.run.resolved.run.train_tokens)
        groups.setdefault(key, []).append(cell)
    header = ["cells", "runs", "status", "layout", "params", "vs ref", "total", "tokens", "steps", "FLOPs", "cache"]
    rows = []
    for (label, layout, cost, tokens), cells in groups.items():
        spec = cells[0].run.resolved.run
        statuses = Counter("same run" if cell.same_as else cell.status for cell in cells)
        rows.append(
            [
                label,
                str(len({cell.run.cell.run_id for cell in cells})),
                ", ".join(f"{count} {status}" for status, count in statuses.items()),
                compact(layout),
                amount(cost.non_embedding_params),
                _percent(cells[0].run.resolved.param_mismatch),
                amount(cost.total_params),
                amount(tokens),
                str(spec.train_steps),
                f"{cost.paper_train_flops:.3g}",
                amount(cost.paper_cache_bytes, binary=True) + "B",
            ]
        )
    return "\n".join([title, "", table(header, rows), "", _totals(plan), _SMALL_PRINT])


_SMALL_PRINT = (
    "params: without embedding and head; vs ref: their difference from the reference depth of attention blocks; "
    "FLOPs and cache: the paper's convention, a run, a sequence."
)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:+.1f}%"


def _totals(plan: Sequence[PlannedCell]) -> str:
    todo = missing(plan)
    unique = {cell.run.cell.run_id: cell for cell in plan}

    def flops(cells: Sequence[PlannedCell]) -> str:
        return f"{sum(cell.cost.paper_train_flops for cell in cells):.3g}"

    shared = len(plan) - len(unique)
    finished = sum(is_final(cell.status) for cell in unique.values())
    sharing = f" ({shared} shared)" if shared else ""
    return (
        f"{len(plan)} cell{'s' * (len(plan) != 1)} asked for: {len(unique)} run{'s' * (len(unique) != 1)}{sharing}, "
        f"{flops(list(unique.values()))} FLOPs; {finished} finished; to be run: {len(todo)}, {flops(todo)} FLOPs"
    )
