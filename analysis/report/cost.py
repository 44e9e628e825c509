"""What a request was to cost, what was paid, and what is left to pay.

FLOPs are those of the tokens that were trained on; hours are of one device, a CPU or a GPU, from when an attempt began
until it ended.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, final

from analysis.load import CellResult, Results
from analysis.tables.table import Column, Table, Value
from analysis.tables.words import NAMES_SHOWN, count, number, show_flops, si
from sweeps.hours import S_AN_HOUR, attempt_hours, devices, record_hours
from sweeps.store import Attempts, Records, Store

_CONVENTIONS: Final = {"paper_train_flops": "FLOPs (paper)", "full_train_flops": "FLOPs (full)"}


@final
@dataclass(frozen=True, kw_only=True)
class _Planned:
    """What a run is to take; `hours_a_token`, in `unit`, by the finished runs of its row."""

    tokens: int
    cost: Mapping[str, float]
    unit: str | None
    hours_a_token: float | None


@final
class _Sum:
    """One line of the account. `unknown` counts the runs of which something is not known."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.runs = 0
        self.tokens = 0.0
        self.flops: dict[str, float] = {}
        self.hours: dict[str, float] = {}
        self.predicted: dict[str, float] = {}
        self.unpredicted = 0
        self.unknown = 0

    def add_hours(self, unit: str, hours: float | None) -> None:
        if hours is None:
            self.unknown += 1
        else:
            self.hours[unit] = self.hours.get(unit, 0.0) + hours


def cost_table(results: Results, source: Records, store: Store) -> Table[_Sum]:
    """A line each for what was asked for, what was paid and for what, and what is left to pay.

    `source` is the store, or its index.
    """
    plans = [(group, _plan_of(group.cells)) for group in results.groups]
    own = _once((cell, planned) for group, planned in plans for cell in group.cells)
    tuning = _once((cell, _plan_of([cell])) for one in results.tuning for cell in one.cells)
    asked = _Sum("asked for, in full")
    paid = _Sum("paid: runs with a result")
    tuned = _Sum("paid: tuning runs with a result")
    trunks = _Sum("paid: phases that several runs share")
    lost = _Sum("paid: attempts without a result so far")
    left = _Sum("left to pay: runs without a result")
    for runs, finished in ((own, paid), (tuning, tuned)):
        for cell, planned in runs:
            asked.runs += 1
            _add_planned(asked, planned)
            if cell.final:
                _add_paid(finished, cell)
            else:
                left.runs += 1
                _add_planned(left, planned)
                _add_predicted(left, planned)
            _add_attempts(lost, cell, _recorded_attempt(cell, source), store)
    phases = {str(cell.provenance["trunk"]["id"]) for cell, _ in own + tuning if cell.provenance.get("trunk")}
    for trunk in sorted(phases):
        _add_trunk(trunks, store.trunk_attempts(trunk))
    lines = [asked, paid, *(line for line in (tuned, trunks, lost, left) if line.runs)]
    untuned = sum(cell.run_id is None for cell in results.cells)
    return Table(
        name="cost",
        title="Plan and cost",
        columns=tuple(_columns(lines)),
        rows=tuple(lines),
        caption=(
            "Each run once, whichever cells ask for it. FLOPs are of training; the paper's convention leaves embedding "
            "and head out, the full one has what the reference code executes: they are not to be added or compared. "
            "Those of a phase that several runs share are counted in each of them, its hours once.",
            "Hours are of one device. Predicted: by the speed that was measured before the run (preflight), of runs "
            "without a result by that of the finished runs of its row.",
        ),
        footnotes=tuple(_notes(lines, untuned)),
    )


def _once(runs: Iterable[tuple[CellResult, _Planned | None]]) -> list[tuple[CellResult, _Planned | None]]:
    return list({cell.run_id: (cell, planned) for cell, planned in runs if cell.run_id is not None}.values())


def _add_planned(line: _Sum, planned: _Planned | None) -> None:
    if planned is None:
        line.unknown += 1
        return
    line.tokens += planned.tokens
    for key in _CONVENTIONS:
        line.flops[key] = line.flops.get(key, 0.0) + float(planned.cost.get(key) or 0.0)


def _add_paid(line: _Sum, cell: CellResult) -> None:
    line.runs += 1
    tokens = cell.number("tokens")
    if cell.spec is None or tokens is None:
        line.unknown += 1
    else:
        line.tokens += tokens
        for key in _CONVENTIONS:
            whole = float(cell.cost.get(key) or 0.0)
            line.flops[key] = line.flops.get(key, 0.0) + whole * tokens / cell.spec.train_tokens
    unit = device_unit(cell.provenance)
    line.add_hours(unit, device_hours(cell))
    speed = cell.provenance.get("preflight_tokens_per_s")
    if speed and tokens is not None:
        hours = tokens / float(speed) / S_AN_HOUR * devices(cell.provenance)
        line.predicted[unit] = line.predicted.get(unit, 0.0) + hours
    else:
        line.unpredicted += 1


def _add_predicted(line: _Sum, planned: _Planned | None) -> None:
    if planned is None or planned.hours_a_token is None or planned.unit is None:
        line.unpredicted += 1
        return
    line.predicted[planned.unit] = line.predicted.get(planned.unit, 0.0) + planned.hours_a_token * planned.tokens


def _plan_of(cells: Sequence[CellResult]) -> _Planned | None:
    """What each run of a row is to take, whose seeds change none of it; None where none of them was ever begun."""
    known = next((cell for cell in cells if cell.spec is not None and cell.cost), None)
    if known is None or known.spec is None:
        return None
    speeds = [
        (device_unit(cell.provenance), devices(cell.provenance) / speed / S_AN_HOUR)
        for cell in cells
        if cell.status == "done" and (speed := cell.number("tokens_per_s"))
    ]
    of_one_kind = len({unit for unit, _ in speeds}) == 1
    return _Planned(
        tokens=known.spec.train_tokens,
        cost=known.cost,
        unit=speeds[0][0] if of_one_kind else None,
        hours_a_token=fmean(hours for _, hours in speeds) if of_one_kind else None,
    )


def _recorded_attempt(cell: CellResult, source: Records) -> int | None:
    """The attempt that made the record, where there is one that can be read."""
    found = (source.record(cell.run_id) or {}).get("attempt") if cell.final and cell.run_id is not None else None
    return None if found is None else int(found)


def _add_attempts(line: _Sum, cell: CellResult, recorded: int | None, store: Store) -> None:
    """The attempts that did not make the record: where the first one made it there are none, and none is looked at."""
    if cell.run_id is None or recorded == 1:
        return
    attempts = store.attempts(cell.run_id)
    last = attempts.last()
    made_it = (recorded or last) if cell.final else None
    for number_ in range(1, last + 1):
        if number_ != made_it:
            line.runs += 1
            line.add_hours(device_unit(attempts.job(number_) or {}), attempt_hours(attempts, number_))


def _add_trunk(line: _Sum, attempts: Attempts) -> None:
    line.runs += 1
    for number_ in range(1, attempts.last() + 1):
        line.add_hours(device_unit(attempts.job(number_) or {}), attempt_hours(attempts, number_))


def device_hours(cell: CellResult) -> float | None:
    """Hours of all devices of the attempt that made the record; None where it does not say."""
    return record_hours({"metrics": cell.metrics, "provenance": cell.provenance})


def device_unit(facts: Mapping[str, Any]) -> str:
    """What an hour of the devices of a record, or of an attempt, is called."""
    execution = facts.get("exec") or {}
    device = str(execution.get("device") or facts.get("device") or "cpu")
    return "CPU-hours" if device.startswith("cpu") else "GPU-hours"


def _columns(lines: Sequence[_Sum]) -> Iterator[Column[_Sum]]:
    yield Column[_Sum](key="part", header="what", value=lambda line: line.part, fmt=str)
    yield Column[_Sum](key="runs", header="runs or attempts", value=lambda line: line.runs, fmt=lambda v: f"{v:,}")
    yield Column[_Sum](key="train_tokens", header="tokens", value=lambda line: line.tokens or None, fmt=si)
    for key, header in _CONVENTIONS.items():
        yield Column[_Sum](key=key, header=header, value=_of("flops", key), fmt=show_flops)
    for unit in sorted({unit for line in lines for unit in (*line.hours, *line.predicted)}):
        yield Column[_Sum](key=f"paid_{unit}", header=unit, value=_of("hours", unit), fmt=show_hours)
        yield Column[_Sum](
            key=f"predicted_{unit}", header=f"{unit} predicted", value=_of("predicted", unit), fmt=show_hours
        )


def _of(name: str, key: str) -> Callable[[_Sum], Value]:
    def value(line: _Sum) -> Value:
        found: Mapping[str, float] = getattr(line, name)
        return found.get(key)

    return value


def show_hours(value: Value) -> str:
    """Three digits, and few noughts."""
    hours = number(value)
    return f"{hours:,.0f}" if hours >= 99.95 else f"{hours:.3g}" if hours >= 1e-4 or hours == 0 else f"{hours:.1e}"


def _notes(lines: Sequence[_Sum], untuned: int) -> Iterator[str]:
    for line in lines:
        if line.unknown:
            noun = "attempt" if "attempts" in line.part else "run"
            yield f"{line.part}: of {count(line.unknown, noun)} something is not known, and not in the sums."
    silent = [line for line in lines if line.unpredicted]
    for line in silent[:NAMES_SHOWN]:
        yield f"{line.part}: nothing was predicted of {count(line.unpredicted, 'run')}."
    if untuned:
        yield f"{count(untuned, 'cell')} wait for tuning to choose their run, and are not counted."
