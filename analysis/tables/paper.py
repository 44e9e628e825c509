"""The paper's tables in the paper's layout: from the store, from the printed numbers, or both.

A dash is for what nobody has measured, or prints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal, assert_never, final

from analysis import stats
from analysis.contrasts import Mark, rank
from analysis.load import CellResult, Group, Results, axis_text
from analysis.reference.compare import COLUMNS, value_of
from analysis.reference.printed import read_printed
from analysis.tables.captions import around, interval_lines, missing_notes, title_of
from analysis.tables.columns import notes_columns
from analysis.tables.differences import mark_notes, mark_of
from analysis.tables.layouts import MEASURED, POSITIONS, WORDS, Layout, Printed, layout_named, printed_rows
from analysis.tables.table import Column, Shift, Table, Value, unmarked
from analysis.tables.words import VAL_LOSS, metric_header, show
from hybrid.cost import Cost, layout_of, run_cost
from hybrid.spec import ConfigError, HubSpec, RunSpec

Side = Literal["ours", "paper", "ours - paper"]
# Overrides that leave every run what it is.
_HARMLESS: Final = ("scale", "sweep.seeds", "sweep.only")


@final
@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of such a table: what it is called, whose numbers it has, and where they are from."""

    name: str
    axes: Mapping[str, object]
    scale: str
    side: Side
    group: Group | None
    printed: Printed | None


def printed_table(sweep: str, overrides: Sequence[str] = ()) -> Table[Line]:
    """What the paper prints, and nothing else. Raises ConfigError for overrides that no printed row has."""
    rows = printed_rows(sweep)
    wanted = _only_scale(overrides)
    shown = [one for one in rows if wanted is None or one.scale == wanted]
    if not shown:
        scales = dict.fromkeys(one.scale for one in rows)
        raise ConfigError(f"scale={wanted}: the paper prints no row of {sweep} at it; expected {' or '.join(scales)}")
    lines = tuple(_line("paper", printed=one) for one in shown)
    return Table(
        name="table",
        title=_printed_title(shown),
        columns=tuple(_columns(layout_named(sweep), lines, {})),
        rows=lines,
        caption=(_source_line(), "One run a row is printed: there is no interval, and nothing is in bold."),
        footnotes=tuple(_printed_notes(shown)),
        grouped=_sizes_differ(lines),
    )


def reference_table(sweep: str, overrides: Sequence[str], missing: str) -> Table[Line]:
    """The printed numbers below dashes for ours, of which the store has none; `missing` says so."""
    only_printed = printed_table(sweep, [text for text in overrides if text.startswith("scale=")])
    lines = tuple(line for paper in only_printed.rows for line in (_line("ours", printed=paper.printed), paper))
    return Table(
        name="table",
        title=only_printed.title,
        columns=tuple(_columns(layout_named(sweep), lines, {})),
        rows=lines,
        caption=(_source_line(),),
        footnotes=(missing, *only_printed.footnotes),
        grouped=True,
    )


def paper_table(results: Results, *, reference: bool, margin: float = 0.0) -> Table[Line]:
    """The results of a request in the paper's layout; with the printed numbers below ours, if asked for.

    Raises ConfigError where its sweep is no table of the paper.
    """
    layout = layout_named(results.sweep)
    given = dict(text.split("=", 1) for text in results.overrides if "=" in text)
    scale_of = {id(group): str(group.axes.get("scale", given.get("scale", layout.scale))) for group in results.groups}
    scales = tuple(dict.fromkeys(scale.lower() for scale in scale_of.values()))
    every = printed_rows(results.sweep)
    comparable = any(one.scale in scales for one in every)
    rows = tuple(one for one in every if one.scale in (scales if comparable else (layout.scale,)))
    lines: list[Line] = []
    found: set[int] = set()
    for group in results.groups:
        scale = scale_of[id(group)].lower()
        printed = next((one for one in rows if one.fits(group, given, scale if comparable else one.scale)), None)
        lines.append(_line("ours", group=group, printed=printed, scale=scale))
        if reference and printed is not None:
            found.add(id(printed))
            lines += _beside(group, printed, comparable)
    if reference:
        for printed in rows:
            if id(printed) not in found:
                lines += [_line("ours", printed=printed), _line("paper", printed=printed)]
    standings, notes = _standings(results, layout, margin)
    columns = _columns(layout, lines, standings)
    own = _own_loss(results, margin)
    if own is not None:
        column, own_notes = own
        columns.append(column)
        notes += own_notes
    columns.append(Column[Line](key="n", header="n", value=_n, fmt=str))
    columns += [_of_group(column) for column in notes_columns(results)]
    if reference:
        notes += _reference_notes(lines, rows, given, None if comparable else " and ".join(scales))
    caption, around_notes = around(results)
    return Table(
        name="table",
        title=title_of(results),
        columns=tuple(columns),
        rows=tuple(lines),
        caption=(*caption, *([_source_line()] if reference else []), *_intervals(results, layout)),
        footnotes=(*around_notes, *notes),
        grouped=reference,
    )


def _line(side: Side, *, group: Group | None = None, printed: Printed | None = None, scale: str = "") -> Line:
    if group is not None:
        return Line(name=group.row, axes=group.axes, scale=scale, side=side, group=group, printed=printed)
    assert printed is not None
    place = printed.place
    return Line(name=place.row, axes=dict(place.axes), scale=printed.scale, side=side, group=None, printed=printed)


def _beside(group: Group, printed: Printed, comparable: bool) -> list[Line]:
    lines = [_line("paper", group=group, printed=printed, scale=printed.scale)]
    if comparable and any(cell.spec is not None for cell in group.cells):
        lines.append(_line("ours - paper", group=group, printed=printed, scale=printed.scale))
    return lines


# --- columns ------------------------------------------------------------------------------------


def _columns(layout: Layout, lines: Sequence[Line], ours: Mapping[str, "_Standing"]) -> list[Column[Line]]:
    columns = []
    if _sizes_differ(lines) and not any("scale" in line.axes for line in lines):
        columns.append(Column[Line](key="scale", header="size", value=lambda line: line.scale.upper(), fmt=str))
    columns.append(Column[Line](key="row", header=layout.row_header, value=lambda line: line.name, fmt=str))
    axes = dict.fromkeys(axis for line in lines for axis in line.axes)
    for axis in axes:
        if len({axis_text(line.axes.get(axis)) for line in lines}) > 1:
            columns.append(Column[Line](key=axis, header=axis.rpartition(".")[2], value=_axis(axis), fmt=show))
    if len({line.side for line in lines}) > 1:
        columns.append(Column[Line](key="source", header="source", value=lambda line: line.side, fmt=str))
    columns += [_column(key, ours) for key in layout.columns]
    return columns


@final
@dataclass(frozen=True, kw_only=True)
class _Standing:
    """How our rows stand in a measured column, and the spread that they share."""

    mark: Callable[[Group], Mark | None]
    pooling: stats.Pooling


def _column(key: str, ours: Mapping[str, _Standing]) -> Column[Line]:
    if key in MEASURED:
        measured = MEASURED[key]
        return Column[Line](
            key=key,
            header=measured.header,
            value=_measured_value(key, ours[key].pooling if key in ours else None),
            fmt=_digits(measured.digits),
            better=measured.better,
            mark=_line_mark(ours[key].mark) if key in ours else unmarked,
        )
    if key in COLUMNS:
        column = COLUMNS[key]
        return Column[Line](key=key, header=column.header, value=_derived_value(key), fmt=_digits(column.digits))
    return Column[Line](key=key, header=WORDS[key], value=_words(key), fmt=str)


def _line_mark(mark: Callable[[Group], Mark | None]) -> Callable[[Line], Mark | None]:
    return lambda line: mark(line.group) if line.side == "ours" and line.group is not None else None


def _digits(digits: int) -> Callable[[Value], str]:
    def fmt(value: Value) -> str:
        match value:
            case stats.Estimate(mean=mean, half=None):
                return f"{mean:.{digits}f}"
            case Shift(value=shift):
                text = f"{shift:+.{digits}f}"
                return text if float(text) else f"{0:.{digits}f}"
            case int() | float() if value and abs(value) < 0.5 * 10**-digits:  # a toy, in the paper's units
                return f"{value:.3g}"
            case int() | float():
                return f"{value:.{digits}f}"
            case _:
                return show(value)

    return fmt


def _axis(axis: str) -> Callable[[Line], Value]:
    def value(line: Line) -> Value:
        given = line.axes.get(axis)
        return given if isinstance(given, int | float) and not isinstance(given, bool) else axis_text(given)

    return value


def _derived_value(key: str) -> Callable[[Line], Value]:
    def value(line: Line) -> Value:
        printed = _printed_number(line, key)
        match line.side:
            case "paper":
                return None if printed is None else float(printed)
            case "ours":
                return None if line.group is None else _derived(key, line.group)
            case "ours - paper":
                ours = None if line.group is None else _derived(key, line.group)
                return None if ours is None or printed is None else Shift(value=ours - float(printed))
            case _ as never:
                assert_never(never)

    return value


def _derived(key: str, group: Group) -> float | None:
    """What the cost of the group's runs says; None before the first is tried, and where there is none of it."""
    spec = next((cell.spec for cell in group.cells if cell.spec is not None), None)
    if spec is None:
        return None
    try:
        value = float(value_of(key, spec, _cost(spec)))
    except ConfigError:
        return None
    # The paper prints a dash for a kind of block that a model has none of.
    return None if value == 0 and key.startswith("n_") else value


@lru_cache(maxsize=1024)
def _cost(spec: RunSpec) -> Cost:
    return run_cost(spec)


def _measured_value(key: str, pooling: stats.Pooling | None) -> Callable[[Line], Value]:
    def value(line: Line) -> Value:
        printed = _printed_number(line, key)
        match line.side:
            case "paper":
                return None if printed is None else stats.Estimate(mean=float(printed), half=None, sd=None, n=1)
            case "ours":
                return None if line.group is None else _estimate(key, line.group, pooling)
            case "ours - paper":
                ours = None if line.group is None else _estimate(key, line.group, pooling)
                return None if ours is None or printed is None else Shift(value=ours.mean - float(printed))
            case _ as never:
                assert_never(never)

    return value


def _words(key: str) -> Callable[[Line], Value]:
    def value(line: Line) -> Value:
        if line.side == "ours - paper":
            return None
        if line.side == "ours" and key in POSITIONS:
            spec = None if line.group is None else next((c.spec for c in line.group.cells if c.spec is not None), None)
            return None if spec is None else _positions(spec, POSITIONS[key])
        found = None if line.printed is None else line.printed.row.get(key)
        return None if found is None else str(found)

    return value


def _positions(spec: RunSpec, letter: str) -> str:
    return ",".join(str(i) for i, mixer in enumerate(layout_of(spec.model), start=1) if mixer == letter)


def _printed_number(line: Line, key: str) -> Decimal | int | None:
    return None if line.printed is None else line.printed.number(key)


def _n(line: Line) -> Value:
    match line.side:
        case "ours":
            return None if line.group is None else len(line.group.done)
        case "paper":
            return 1
        case "ours - paper":
            return None
        case _ as never:
            assert_never(never)


def _of_group(column: Column[Group]) -> Column[Line]:
    """A column of our runs' own, empty in the paper's lines."""

    def value(line: Line) -> Value:
        return column.value(line.group) if line.side == "ours" and line.group is not None else None

    return Column[Line](key=column.key, header=column.header, value=value, fmt=column.fmt)


# --- our numbers --------------------------------------------------------------------------------


def _on_dclm(spec: RunSpec) -> bool:
    """Whether its validation loss is what the paper prints as DCLM NLL."""
    return isinstance(spec.data, HubSpec) and "dclm" in spec.data.name.lower()


def _speaks_of(key: str, cell: CellResult) -> bool:
    """Whether the run's metric is what the column is about: a validation loss is of the run's own data."""
    return key != "dclm" or (cell.spec is not None and _on_dclm(cell.spec))


def _estimate(key: str, group: Group, pooling: stats.Pooling | None) -> stats.Estimate | None:
    if not all(_speaks_of(key, cell) for cell in group.done):
        return None
    return stats.estimate(group.numbers(MEASURED[key].metric), pooling)


def _standings(results: Results, layout: Layout, margin: float) -> tuple[dict[str, _Standing], list[str]]:
    """How the rows stand in each measured column that has numbers, and the notes on it."""
    standings: dict[str, _Standing] = {}
    notes: list[str] = []
    for key in layout.columns:
        if key in MEASURED and all(_speaks_of(key, cell) for group in results.groups for cell in group.done):
            metric, name = MEASURED[key].metric, MEASURED[key].header
            ranking = rank(results, metric, MEASURED[key].better, margin=margin)
            pooling = stats.pool([group.numbers(metric) for group in results.groups])
            standings[key] = _Standing(mark=mark_of(results, ranking), pooling=pooling)
            notes += mark_notes(results, ranking, name, margin=margin) + missing_notes(results, metric, name)
    return standings, notes


def _own_loss(results: Results, margin: float) -> tuple[Column[Line], list[str]] | None:
    """The validation loss on the data that our runs were trained on, where that is not the paper's."""
    done = [cell for group in results.groups for cell in group.done]
    if all(_speaks_of("dclm", cell) for cell in done) or all(cell.number(VAL_LOSS) is None for cell in done):
        return None
    pooling = stats.pool([group.numbers(VAL_LOSS) for group in results.groups])
    ranking = rank(results, VAL_LOSS, "lower", margin=margin)

    def value(line: Line) -> Value:
        if line.side != "ours" or line.group is None:
            return None
        return stats.estimate(line.group.numbers(VAL_LOSS), pooling)

    name = metric_header(VAL_LOSS)
    column = Column[Line](
        key=VAL_LOSS, header=name, value=value, fmt=show, better="lower", mark=_line_mark(mark_of(results, ranking))
    )
    return column, [
        *mark_notes(results, ranking, name, margin=margin),
        *missing_notes(results, VAL_LOSS, name),
        f"{name} is on the data that these runs were trained on, which is not the paper's.",
    ]


def _intervals(results: Results, layout: Layout) -> list[str]:
    """From what spread the intervals are, a line a measured column that has numbers."""
    lines: list[str] = []
    own = all(_speaks_of("dclm", cell) for group in results.groups for cell in group.done)
    for key in layout.columns:
        if key in MEASURED:
            name = MEASURED[key].header if key != "dclm" or own else metric_header(VAL_LOSS)
            metric = MEASURED[key].metric
            pooling = stats.pool([group.numbers(metric) for group in results.groups])
            said = interval_lines(results, metric, pooling, name)
            lines += [line if line.startswith(name) else f"{name}: {line[0].lower()}{line[1:]}" for line in said]
    return list(dict.fromkeys(lines))


# --- words --------------------------------------------------------------------------------------


def _source_line() -> str:
    return f"Printed: {read_printed().source.partition(',')[0]}."


def _printed_title(rows: Sequence[Printed]) -> str:
    tables = list({one.table.number: one.table for one in rows}.values())
    return "; ".join(f"Table {table.number} ({table.version}): {table.title}" for table in tables)


def _printed_notes(rows: Sequence[Printed]) -> list[str]:
    """What is doubtful of the numbers as we have them, and what versions differ in."""
    tables = {one.table.number: one.table for one in rows}.values()
    notes = [f"Table {table.number}: {_sentence(note)}" for table in tables for note in table.notes]
    for one in rows:
        notes += [f"{one.place.label}: {_sentence(flag)}" for flag in one.row.get("flags", ())]
    return notes


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _reference_notes(
    lines: Sequence[Line], rows: Sequence[Printed], given: Mapping[str, str], other_scale: str | None
) -> list[str]:
    """What keeps ours and the printed numbers apart; `other_scale` is ours, where nothing is printed at it."""
    notes = []
    if other_scale is not None:
        notes.append(
            f"Ours are models of scale {other_scale}, the paper's of {rows[0].scale.upper()}: no difference is taken."
        )
    others = [f"{key}={value}" for key, value in given.items() if key not in _HARMLESS]
    if other_scale is None and others:
        notes.append(f"Ours were asked for with {', '.join(others)}, which is part of the difference.")
    unprinted = [line.group.label for line in lines if line.group is not None and line.printed is None]
    if unprinted:
        notes.append(f"Not printed: {', '.join(unprinted)}.")
    return [*notes, *_printed_notes(rows)]


def _sizes_differ(lines: Sequence[Line]) -> bool:
    return len({line.scale for line in lines if line.side == "paper"}) > 1


def _only_scale(overrides: Sequence[str]) -> str | None:
    """The one override that printed rows know."""
    others = [text for text in overrides if not text.startswith("scale=")]
    if others:
        raise ConfigError(f"{others[0]}: expected no override but scale=SIZE with --source paper")
    return overrides[-1].partition("=")[2].lower() if overrides else None
