"""What was predicted of runs beside what came of them."""

from collections.abc import Collection
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sweeps.plan import Plan, PlannedCell, device_unit
from sweeps.speed import ranks_of
from sweeps.store import Store, StoreError
from sweeps.text import hours_text, size_text, table


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What the runs of one label turned out to need; None where their records do not say.

    Hours are of all devices of a run.
    """

    memory_bytes: int | None
    hours: float | None


def outcome_text(plan: Plan, run_ids: Collection[str], store: Store) -> str | None:
    """A line for each row of these runs: memory and hours as planned before they began, and as their records have them.

    None where no record has anything to compare.
    """
    rows: dict[str, list[PlannedCell]] = {}
    for cell in plan.cells:
        if cell.same_as is None and cell.run.run_id in run_ids:
            rows.setdefault(cell.label, []).append(cell)
    found = {label: _measured(cells, store) for label, cells in rows.items()}
    planned = {label: cells[0].hours(cells[0].spec.train_steps) for label, cells in rows.items()}
    with_memory = any(measured.memory_bytes is not None for measured in found.values())
    with_hours = any(found[label].hours is not None and planned[label] is not None for label in rows)
    if not with_memory and not with_hours:
        return None
    unit = device_unit(next(iter(rows.values()))[0].shape.device)
    header = ["done just now"]
    header += ["peak memory", "predicted"] if with_memory else []
    header += [f"{unit} of a run", "planned"] if with_hours else []
    lines = []
    for label, measured in found.items():
        line = [label]
        if with_memory:
            predicted = rows[label][0].shape.memory.total_bytes
            line += ["-" if measured.memory_bytes is None else size_text(measured.memory_bytes), size_text(predicted)]
        if with_hours:
            line += [hours_text(measured.hours), hours_text(planned[label])]
        lines.append(line)
    return table(header, lines)


def _measured(cells: list[PlannedCell], store: Store) -> _Measured:
    peaks: list[int] = []
    hours: list[float] = []
    for cell in cells:
        try:
            record: dict[str, Any] | None = store.record(cell.run.run_id)
        except StoreError:
            continue
        if record is None:
            continue
        peak, speed = record["provenance"].get("peak_memory_bytes"), record["metrics"].get("tokens_per_s")
        if peak is not None:
            peaks.append(peak)
        if speed:
            hours.append(ranks_of(cell.run.resolved.execution) * cell.spec.train_tokens / speed / 3600)
    return _Measured(memory_bytes=max(peaks, default=None), hours=fmean(hours) if hours else None)
