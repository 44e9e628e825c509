"""A plan for machines: a JSON list, one object a cell, in full precision."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from hybrid.decode_cost import A100_80GB_SXM, H100_SXM, H200_SXM, decode_cost, roofline
from hybrid.spec import ModelSpec
from sweeps.plan import Plan, PlannedCell, ShapeCost, one_models
from sweeps.plan_settings import PlanSettings


def as_json(plan: Plan, settings: PlanSettings) -> str:
    """The plan as a JSON list, one object a cell; FLOPs, tokens and bytes are exact integers.

    `train_flops` is in the paper's convention, `full_train_flops` in the full one. `peak_memory_bytes` is what limits
    are held against: as measured where it was, else `predicted_memory_bytes`. These are less than the sum of
    `largest_of_each_part`, as not all parts are largest at one moment. `gpu_hours` are hours of one
    `device`, which may be a CPU, by the speed that `hours_source` says: null where nobody knows it. `own_steps` are to
    be trained for this cell, `trunk_steps` for the `trunk` that its run starts from, given at one of the cells that
    share it: the two sums are what is to be paid. `one_model_with` names the first cells, without their seed, whose
    model is the same by symmetry, and `symmetry` says why. `decode_bf16` is one decoding step: FLOPs, bytes read, and
    the time that the larger of the two takes at a device's published rates.
    """
    first_and_reason = {
        label: (found.names[0], reason)
        for found in one_models(plan)
        for label, reason in zip(found.names[1:], found.reasons, strict=True)
    }
    trunks = {id(trunk.branch): trunk.steps for trunk in plan.trunks}
    shapes: dict[int, dict[str, Any]] = {}
    lines = []
    for cell in plan.cells:
        if id(cell.shape) not in shapes:
            shapes[id(cell.shape)] = _shape(cell.shape, cell.run.resolved.execution.activation_checkpointing)
        one_model_with, symmetry = first_and_reason.get(cell.label, (None, None))
        trunk_steps = trunks.get(id(cell), 0)
        entry = _object(cell, one_model_with, symmetry, shapes[id(cell.shape)], trunk_steps, settings.price)
        lines.append(json.dumps(entry))
    return "[\n" + ",\n".join(lines) + "\n]"


def _object(
    cell: PlannedCell,
    one_model_with: str | None,
    symmetry: str | None,
    shape: Mapping[str, Any],
    trunk_steps: int,
    price: float | None,
) -> dict[str, Any]:
    spec, cost, resolved = cell.spec, cell.cost, cell.run.resolved
    hours = cell.hours(spec.train_steps)
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
        "tuning": cell.run.is_tuning,
        "tuned": dict(cell.run.cell.tuned),
        "layout": cell.layout,
        "depth": len(cell.layout),
        "d_model": spec.model.d_model,
        "matched_sizes": dict(resolved.matched_sizes),
        "non_embedding_params": cost.non_embedding_params,
        "active_params": cost.active_params,
        "total_params": cost.total_params,
        "param_mismatch": resolved.param_mismatch,
        "train_tokens": spec.train_tokens,
        "train_steps": spec.train_steps,
        "batch_tokens": spec.batch_tokens,
        "seq_len": spec.seq_len,
        "budget": None if resolved.budget is None else asdict(resolved.budget),
        "train_flops": cost.paper_train_flops,
        "train_flops_per_sample": cost.paper_train_flops_per_sample,
        "full_train_flops": cost.full_train_flops,
        "cache_bytes": cost.paper_cache_bytes,
        "decode_bf16": _decode(spec.model, spec.seq_len),
        **shape,
        "gpu_hours": hours,
        "price": None if hours is None or price is None else hours * price,
        "own_steps": cell.own_steps,
        "trunk": cell.trunk,
        "trunk_steps": trunk_steps,
    }


def _shape(shape: ShapeCost, with_checkpointing: bool) -> dict[str, Any]:
    """What all cells of one shape have alike."""
    with_it, without_it = shape.memory.total_bytes, shape.memory_switched.total_bytes
    if not with_checkpointing:
        with_it, without_it = without_it, with_it
    return {
        "peak_memory_bytes": shape.peak_memory_bytes,
        "predicted_memory_bytes": shape.memory.total_bytes,
        "largest_of_each_part": asdict(shape.memory),
        "predicted_memory_bytes_with_activation_checkpointing": with_it,
        "predicted_memory_bytes_without_activation_checkpointing": without_it,
        "measured_peak_memory_bytes": shape.speed.peak_memory_bytes,
        "checkpoint_bytes": shape.checkpoint_bytes,
        "final_weights_bytes": shape.weights_bytes,
        "disk_bytes": shape.disk_bytes,
        "device": shape.device.kind,
        "tokens_per_s": shape.speed.tokens_per_s,
        "hours_source": shape.speed.source,
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
