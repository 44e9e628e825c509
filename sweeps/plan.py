"""Cells against the store: what is done, what is missing, and what the missing ones cost."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from hybrid.cost import Cost, layout_of, run_cost
from hybrid.decode_cost import A100_80GB_SXM, H100_SXM, H200_SXM, decode_cost, roofline
from hybrid.equivalence import EquivalenceClass, equivalence_classes
from hybrid.layout import compact
from hybrid.spec import ModelSpec, RunSpec
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


def one_models(plan: Sequence[PlannedCell]) -> tuple[EquivalenceClass, ...]:
    """Labels of cells whose runs differ in nothing but their seeds and a symmetry of their models.

    Of cells with one and the same model the first one's label stands for all.
    """
    alike: dict[tuple[Any, ...], dict[ModelSpec, str]] = {}
    for cell in plan:
        spec = cell.run.resolved.run
        rest = tuple(getattr(spec, field.name) for field in fields(RunSpec) if field.name not in _NOT_COMPARED)
        alike.setdefault(rest, {}).setdefault(spec.model, _label(cell))
    return tuple(
        found
        for models in alike.values()
        if len(models) > 1
        for found in equivalence_classes({label: model for model, label in models.items()})
    )


_NOT_COMPARED = ("model", "init_seed", "data_seed")


def _label(cell: PlannedCell) -> str:
    """What cells that differ in nothing but their seed are called together."""
    return (cell.run.cell.name.rpartition("/")[0] if cell.run.cell.seed is not None else cell.run.cell.name) or "run"


def as_json(plan: Sequence[PlannedCell]) -> str:
    """The plan as a JSON list, one object a cell, in full precision; FLOPs are exact integers.

    `train_flops` is in the paper's convention, `full_train_flops` in the full one. `one_model_with` names the first
    cells, without their seed, whose model is the same by symmetry, and `symmetry` says why. `decode_bf16` is
    one decoding step: FLOPs, bytes read, and the time that the larger of the two takes at a device's published rates.
    """
    first_and_reason = {
        label: (found.names[0], reason)
        for found in one_models(plan)
        for label, reason in zip(found.names[1:], found.reasons, strict=True)
    }
    return json.dumps([_object(cell, *first_and_reason.get(_label(cell), (None, None))) for cell in plan], indent=1)


def _object(cell: PlannedCell, one_model_with: str | None, symmetry: str | None) -> dict[str, Any]:
    spec, cost = cell.run.resolved.run, cell.cost
    return {
        "name": cell.run.cell.name,
        "run_id": cell.run.cell.run_id,
        "status": cell.status,
        "same_as": cell.same_as,
        "one_model_with": one_model_with,
        "symmetry": symmetry,
        "row": cell.run.cell.row,
        "axes": dict(cell.run.cell.axes),
        "seed": cell.run.cell.seed,
        "layout": cell.layout,
        "depth": len(cell.layout),
        "non_embedding_params": cost.non_embedding_params,
        "active_params": cost.active_params,
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
        "decode_bf16": _decode(spec.model, spec.seq_len),
    }


@lru_cache(maxsize=1024)
def _decode(model: ModelSpec, length: int) -> dict[str, Any]:
    """What making one token at the last of `length` positions costs in bf16, and its least time on each device."""
    cost = decode_cost(model, batch=1, length=length, element_bytes=2)
    return {
        "batch": 1,
        "length": length,
        **asdict(cost),
        "roofline_s": {device.name: roofline(cost, device).time_s for device in (A100_80GB_SXM, H100_SXM, H200_SXM)},
    }


def as_text(plan: Sequence[PlannedCell], *, title: str) -> str:
    """The plan for people: one line a row of cells that differ in nothing but their seed, then totals."""
    groups: dict[tuple[Any, ...], list[PlannedCell]] = {}
    for cell in plan:
        key = (_label(cell), cell.layout, cell.cost, cell.run.resolved.run.train_tokens)
        groups.setdefault(key, []).append(cell)
    sparse = any(cell.cost.active_params < cell.cost.non_embedding_params for cell in plan)
    params = ["params", "active"] if sparse else ["params"]
    header = ["cells", "runs", "status", "layout", *params, "vs ref", "total", "tokens", "steps", "FLOPs", "cache"]
    small_print = _SMALL_PRINT + (" active: parameters that one token meets." if sparse else "")
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
                *(amount(n) for n in (cost.non_embedding_params, cost.active_params)[: len(params)]),
                _percent(cells[0].run.resolved.param_mismatch),
                amount(cost.total_params),
                amount(tokens),
                str(spec.train_steps),
                f"{cost.paper_train_flops:.3g}",
                amount(cost.paper_cache_bytes, binary=True) + "B",
            ]
        )
    return "\n".join([title, "", table(header, rows), "", *_symmetries(plan), _totals(plan), small_print])


def _symmetries(plan: Sequence[PlannedCell]) -> list[str]:
    """A line for each class of cells that are one model: their results differ by chance alone."""
    lines = []
    for found in one_models(plan):
        first, *others = (f"'{name}'" for name in found.names)
        if len(set(found.reasons)) == 1:
            lines.append(f"one model by symmetry: {', '.join([first, *others])} ({found.reasons[0]})")
        else:
            given = ", ".join(f"{name} ({reason})" for name, reason in zip(others, found.reasons, strict=True))
            lines.append(f"one model by symmetry: {first}, {given}")
    return lines


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
