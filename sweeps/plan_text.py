"""A plan for people: a line a row of cells that differ in nothing but their seed, totals, and what they can show."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from hybrid.layout import compact
from sweeps.evidence import Evidence, Row, Separation, rows_of
from sweeps.guards import beyond_limits, too_large, too_large_text
from sweeps.identity import short_keys, show_value
from sweeps.plan import Hours, Ledger, Plan, PlannedCell, Total, device_unit, ledger, one_models
from sweeps.plan_settings import PlanSettings
from sweeps.text import amount, hours_text, size_text, table
from sweeps.tune import UNTUNED

_LONGEST_LAYOUT = 36


def as_text(
    plan: Plan, settings: PlanSettings, shown: Sequence[Evidence] = (), *, title: str, brief: bool = False
) -> str:
    """The plan as a table, the totals, what goes beyond the limits, and what the results could show.

    `brief`, for those who are about to run it, leaves out what only explains.
    """
    rows = rows_of(plan)
    totals = ledger(plan)
    large = {
        id(cell.shape)
        for found in too_large(plan, settings)
        for cell in found.cells
        if cell.shape.peak_memory_bytes > found.limit.n_bytes  # not so where only a value yet to be tuned is too large
    }
    columns, common = _fitting(_columns(plan, settings, large), rows)
    header = [column.header for column in columns]
    lines = [[column.cell(row) for column in columns] for row in rows]
    parts = [
        title,
        "",
        table(header, lines),
        *([f"every row: {'; '.join(common)}"] if common else []),
        "",
        *_symmetries(plan),
        *(f"warning: {warning}" for warning in plan.warnings),
        _sentence(plan, totals),
        *_ledger(totals, settings),
        *_limits(plan, settings, totals),
        *_all_evidence(shown, settings),
        *([] if brief else ["", _small_print(plan, header)]),
    ]
    return "\n".join(parts)


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A column of the table; `common` words what all rows have alike, which is then said once, below. None: it stays a
    column."""

    header: str
    cell: Callable[[Row], str]
    common: str | None


_NOTHING = "-"
_UNKNOWN = "?"


def _fitting(columns: Sequence[_Column], rows: Sequence[Row]) -> tuple[list[_Column], list[str]]:
    """The columns in which rows differ, and words for those in which they do not; what no row has is left out."""
    kept, common = [], []
    for column in columns:
        values = {column.cell(row) for row in rows}
        if values == {_NOTHING}:
            continue
        if len(rows) > 1 and len(values) == 1 and column.common is not None:
            value = values.pop()
            common += [column.common.format(value)] if value != _UNKNOWN else []
        else:
            kept.append(column)
    return kept, common


def _columns(plan: Plan, settings: PlanSettings, large: set[int]) -> list[_Column]:
    """All columns that there are for this plan."""
    sparse = any(cell.cost.active_params < cell.cost.non_embedding_params for cell in plan.cells)
    active = [_column("active", lambda cell: amount(cell.cost.active_params), "{} active")] if sparse else []
    return [
        _Column(header="cells", cell=lambda row: row.label, common=None),
        _Column(header="id", cell=_id, common=None),
        _Column(header="runs", cell=_runs, common="{} runs"),
        _Column(header="status", cell=_status, common="{}"),
        _Column(header="tuned", cell=_tuned, common="{}"),
        _column("layout", _layout, "layout {}"),
        _column("params", lambda cell: amount(cell.cost.non_embedding_params), "{} parameters"),
        *active,
        _column("vs ref", _mismatch, "{} against the reference"),
        _column("matched", _matched_sizes, "{}"),
        _column("total", lambda cell: amount(cell.cost.total_params), "{} in total"),
        _column("tokens", lambda cell: amount(cell.spec.train_tokens), "{} tokens"),
        _column("steps", lambda cell: str(cell.spec.train_steps), "{} steps"),
        _column("FLOPs", lambda cell: f"{cell.cost.paper_train_flops:.3g}", "{} FLOPs"),
        _column("vs budget", _budget_mismatch, "{} against the budget"),
        _column("cache", lambda cell: amount(cell.cost.paper_cache_bytes, binary=True) + "B", "{} of cache"),
        _column("memory", lambda cell: _memory(cell, large), "{} of memory"),
        _column("disk", lambda cell: size_text(cell.shape.disk_bytes), "{} of disk"),
        *_hours_columns(plan, settings),
    ]


def _column(header: str, of: Callable[[PlannedCell], str], common: str) -> _Column:
    """A column of what all cells of a row have alike."""
    return _Column(header=header, cell=lambda row: of(row.cells[0]), common=common)


def _id(row: Row) -> str:
    """The run's id where the row is one run."""
    run_id = row.cells[0].run.cell.run_id
    return _NOTHING if row.seeds > 1 or run_id is None else run_id


def _runs(row: Row) -> str:
    return _NOTHING if row.seeds == 1 else str(row.seeds)


def _status(row: Row) -> str:
    statuses = Counter("same run" if cell.same_as else cell.status for cell in row.cells)
    return ", ".join(f"{count} {status}" if len(statuses) > 1 else status for status, count in statuses.items())


def _tuned(row: Row) -> str:
    """The values that tuning chose for the row."""
    tuned = {} if row.cells[0].run.is_tuning else row.cells[0].run.cell.tuned
    shorts = short_keys(list(tuned))
    return ", ".join(f"{shorts[key]}={show_value(value)}" for key, value in tuned.items()) or _NOTHING


def _layout(cell: PlannedCell) -> str:
    text = compact(cell.layout)
    return text if len(text) <= _LONGEST_LAYOUT else text[: _LONGEST_LAYOUT - 4] + " ..."


def _mismatch(cell: PlannedCell) -> str:
    fraction = cell.run.resolved.param_mismatch
    return _NOTHING if fraction is None else f"{100 * fraction:+.1f}%"


def _matched_sizes(cell: PlannedCell) -> str:
    """The widths that were worked out to match the reference's parameters."""
    return ", ".join(f"{name} {size}" for name, size in cell.run.resolved.matched_sizes) or _NOTHING


def _budget_mismatch(cell: PlannedCell) -> str:
    budget = cell.run.resolved.budget
    return _NOTHING if budget is None else f"{100 * budget.mismatch:+.3f}%"


def _memory(cell: PlannedCell, large: set[int]) -> str:
    return size_text(cell.shape.peak_memory_bytes) + ("!" if id(cell.shape) in large else "")


def _hours_columns(plan: Plan, settings: PlanSettings) -> list[_Column]:
    """A column for each kind of hours that there are, and their price."""
    units = list(dict.fromkeys(device_unit(cell.shape.device) for cell in plan.cells))
    columns = [_column(unit.removesuffix("ours"), partial(_hours_of, unit=unit), f"{{}} {unit}") for unit in units]
    if settings.price is not None:
        columns.append(_column("price", partial(_price_of, price=settings.price), "price {}"))
    return columns


def _hours_of(cell: PlannedCell, unit: str) -> str:
    return hours_text(cell.hours(cell.spec.train_steps)) if device_unit(cell.shape.device) == unit else _NOTHING


def _price_of(cell: PlannedCell, price: float) -> str:
    hours = cell.hours(cell.spec.train_steps)
    return _UNKNOWN if hours is None else _money(hours * price)


def _money(amount_of_it: float) -> str:
    return f"{amount_of_it:.0f}" if amount_of_it >= 100 else f"{amount_of_it:.3g}"


# --- totals -------------------------------------------------------------------------------------


def _symmetries(plan: Plan) -> list[str]:
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


def _sentence(plan: Plan, totals: Ledger) -> str:
    tuning, shared = sum(cell.run.is_tuning for cell in plan.cells), totals.shared.runs
    cells = len(plan.cells) - tuning
    runs = len(plan.cells) - shared
    flops = totals.asked.paper_train_flops - totals.shared.paper_train_flops
    sharing = f" ({shared} shared)" if shared else ""
    first = f", after {tuning} tuning runs" if tuning else ""
    return (
        f"{cells} cell{'s' * (cells != 1)} asked for{first}: {runs} run{'s' * (runs != 1)}{sharing}, "
        f"{flops:.3g} FLOPs; "
        f"{totals.finished.runs} finished; to be run: {totals.to_pay.runs}, {totals.to_pay.paper_train_flops:.3g} FLOPs"
    )


def _ledger(totals: Ledger, settings: PlanSettings) -> list[str]:
    """From what was asked for to what is to be paid, a line for each thing that is not paid (again)."""
    deductions = {
        "- the same run as another cell": totals.shared,
        "- finished": totals.finished,
        "- damaged": totals.damaged,
        "- in checkpoints of unfinished runs": totals.begun,
        "- done in trunks": totals.in_trunks,
        "- shared by trunks": totals.trunks,
    }
    rows = {"asked for": totals.asked, "  for tuning": totals.tuning}
    rows |= {name: total for name, total in deductions.items() if total.train_tokens}
    rows |= {"to be paid": totals.to_pay, "  for tuning, to be paid": totals.tuning_to_pay}
    rows = {name: total for name, total in rows.items() if total.train_tokens}
    if list(rows) == ["asked for", "to be paid"]:
        del rows["asked for"]
    units = list(totals.asked.hours)
    priced = settings.price is not None
    header = ["", "runs", "FLOPs", "tokens", *units, *(["price"] if priced else [])]
    lines = []
    for name, total in rows.items():
        hours = [_hours(total.hours.get(unit)) for unit in units]
        price = [_price(total, settings.price)] if settings.price is not None else []
        runs = str(total.runs) if total.runs else _NOTHING
        lines.append([name, runs, f"{total.paper_train_flops:.3g}", amount(total.train_tokens), *hours, *price])
    disk = (
        [f"disk: up to {size_text(totals.disk_bytes)}, if all run at once; {size_text(totals.kept_bytes)} stay"]
        if totals.to_pay.runs
        else []
    )
    return ["", table(header, lines), *disk]


def _hours(hours: Hours | None) -> str:
    if hours is None:
        return _NOTHING
    if not hours.unknown:
        return hours_text(hours.known)
    return _UNKNOWN if hours.known <= 0 else f"{hours_text(hours.known)} + ?"


def _price(total: Total, price: float | None) -> str:
    known = math.fsum(hours.known for hours in total.hours.values())
    unknown = any(hours.unknown for hours in total.hours.values())
    if price is None or (unknown and known <= 0):
        return _UNKNOWN
    return _money(known * price) + (" + ?" if unknown else "")


def _limits(plan: Plan, settings: PlanSettings, totals: Ledger) -> list[str]:
    """What goes beyond the limits, and what does not fit where nobody said that it has to."""
    beyond = beyond_limits(plan, settings, totals)
    notes = [too_large_text(found) for found in too_large(plan, settings) if not found.limit.binds]
    lines = [f"note: {note}" for note in notes]
    if beyond:
        lines.append(
            "beyond the limits, and started all the same, as plan.yes is set:"
            if settings.yes
            else "beyond the limits; mode=run does not start it, unless plan.yes=true:"
        )
        lines += [f"  {problem}" for problem in beyond]
    return ["", *lines] if lines else []


# --- what it can show ---------------------------------------------------------------------------


def _all_evidence(shown: Sequence[Evidence], settings: PlanSettings) -> list[str]:
    """What can be told apart; groups of rows of which the same is to be said are named together."""
    said: dict[tuple[str, ...], list[Evidence]] = {}
    for found in shown:
        said.setdefault(tuple(_evidence(found, settings)), []).append(found)
    if len(said) <= 1:
        return [line for lines in said for line in lines]
    return [
        line
        for lines, group in said.items()
        for line in ("", f"of {_listed([row.label for found in group for row in found.rows])}:", *lines[1:])
    ]


def _evidence(shown: Evidence, settings: PlanSettings) -> list[str]:
    if shown.not_the_loss is not None:
        return ["", f"what can be told apart is not said here, as the loss is not what counts: {shown.not_the_loss}"]
    separation = [] if shown.separation is None else [_separation(shown.separation)]
    if shown.noise is None:
        return ["", f"what can be told apart is unknown: {shown.unknown}", *separation]
    noise = shown.noise
    lines = [
        "",
        f"noise between seeds: standard deviation {noise.sd_nats:.2g} nats, degrees of freedom: {noise.dof} "
        f"({noise.source})",
    ]
    if shown.is_given:
        lines.append(f"as given, wherever it was measured; these runs: {_trained_on(shown.rows)}")
    if shown.detectable:
        any_pair = f"any of {shown.pairs} pairs"
        header = ["seeds a row", "two rows", *([any_pair] if shown.pairs > 1 else [])]
        rows = []
        for found in shown.detectable:
            nats = [found.two_rows_nats, *([found.any_pair_nats] if shown.pairs > 1 else [])]
            asked = " (asked for)" if found.seeds == shown.seeds else ""
            rows.append([f"{found.seeds}{asked}", *map(_nats, nats)])
        lines += [
            f"the smallest difference in loss, in nats, that is found with probability {settings.power:g} at an error "
            f"of {settings.alpha:g} (two-sided t test{'; all pairs: Bonferroni' if shown.pairs > 1 else ''}):",
            table(header, rows),
        ]
    return [*lines, *separation]


def _trained_on(rows: Sequence[Row]) -> str:
    """Tokens and batch of the rows."""
    specs = [row.cells[0].spec for row in rows]
    tokens = sorted({spec.train_tokens for spec in specs})
    lengths = amount(tokens[0]) + (f" to {amount(tokens[-1])}" if len(tokens) > 1 else "")
    batches = " or ".join(dict.fromkeys(amount(spec.batch_tokens) for spec in specs))
    return f"{lengths} tokens, {batches} a batch"


def _nats(nats: float) -> str:
    return f"{nats:.2g}" if math.isfinite(nats) else _NOTHING


def _separation(found: Separation) -> str:
    first, second = (f"'{row.label}'" for row in found.rows)
    difference = ""
    if found.difference_nats is not None:
        where = " in the finished runs" if found.observed else ""
        difference = f", {found.difference_nats:.3g} nats apart{where}"
    head = f"to separate {first} and {second}{difference}"
    if found.obstacle is not None:
        return f"{head}: {found.obstacle}"
    units = list(dict.fromkeys(device_unit(row.cells[0].shape.device) for row in found.rows))
    unit = units[0] if len(units) == 1 else "device-hours"
    seeds = f"{found.seeds} seed{'s' * (found.seeds != 1)} a row"
    if not found.runs:
        return f"{head}: {seeds}, and as many are finished"
    hours = "nobody knows how many" if found.hours is None else hours_text(found.hours)
    return f"{head}: {seeds}; not finished of these: {found.runs}, which take {hours} {unit}"


# --- small print --------------------------------------------------------------------------------


def _small_print(plan: Plan, columns: Iterable[str]) -> str:
    """What the columns mean, and where the numbers are from."""
    named = {
        "params": "without embedding and head",
        "active": "those that one token meets",
        "vs ref": "their difference from the reference depth of attention blocks",
    }
    there = list(columns)
    lines = ["; ".join(f"{name}: {text}" for name, text in named.items() if name in there)]
    lines += ["FLOPs and cache: the paper's convention, a run, a sequence", _memory_source(plan)]
    lines += _budgets(plan)
    lines += _speed_sources(plan)
    if any(_cost_depends_on_tuning(cell) for cell in plan.cells):
        lines.append(f"{UNTUNED}: costs are those with the middle values; with others they differ")
    return "\n".join(line for line in lines if line)


def _cost_depends_on_tuning(cell: PlannedCell) -> bool:
    runs = [candidate.resolved.run for candidate in cell.run.candidates if cell.status == UNTUNED]
    return len({(id(run.model), run.train_tokens, run.batch_tokens, run.seq_len) for run in runs}) > 1


def _memory_source(plan: Plan) -> str:
    checkpointing = {cell.run.resolved.execution.activation_checkpointing for cell in plan.cells}
    how = "with or without" if len(checkpointing) > 1 else "with" if checkpointing.pop() else "without"
    text = f"memory: peak of training, as predicted {how} activation checkpointing, as exec says"
    measured = [
        cell.shape.speed.peak_memory_bytes / cell.shape.memory.total_bytes
        for cell in plan.cells
        if cell.shape.speed.peak_memory_bytes is not None
    ]
    if measured:
        most = f" to {max(measured):.2f}" if len(set(measured)) > 1 else ""
        text += f", or as measured, {min(measured):.2f}{most} of it"
    if any(cell.run.resolved.execution.kernels == "auto" for cell in plan.cells):
        text += ", with all fused kernels installed"
    return text + "; disk: up to three checkpoints while a run lasts, and its weights"


def _budgets(plan: Plan) -> list[str]:
    """What `vs budget` compares with; budgets of one sort in one line."""
    targets: dict[tuple[str, str], dict[str, None]] = {}
    for cell in plan.cells:
        budget = cell.run.resolved.budget
        if budget is not None:
            found = targets.setdefault((budget.source, budget.convention), {})
            found.setdefault(f"{budget.target_flops:.4g}")
    return [
        f"vs budget: what whole batches leave of {source}: {', '.join(found)} FLOPs in the {convention} convention"
        for (source, convention), found in targets.items()
    ]


def _speed_sources(plan: Plan) -> list[str]:
    """How fast the device is, by whom, and for which rows, where not all are known alike."""
    labels: dict[tuple[str, str], dict[str, None]] = {}
    for cell in plan.cells:
        speed, unit = cell.shape.speed, device_unit(cell.shape.device)
        text = _MEASURED.get(speed.source, speed.text)
        labels.setdefault((unit, text), {}).setdefault(cell.label)
    lines = []
    for (unit, text), found in labels.items():
        of = "" if len(labels) == 1 else f" of {_listed(list(found))}"
        lines.append(f"{unit}{of}: {text}")
    return [*lines, "hours are of training steps alone: starting, validation and checkpoints come on top"]


_MEASURED = {"runs": "as finished runs measured it", "preflight": "as preflight measured it"}
_MOST_LISTED = 4


def _listed(labels: Sequence[str]) -> str:
    more = len(labels) - _MOST_LISTED
    return ", ".join(f"'{label}'" for label in labels[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
