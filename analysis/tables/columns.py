"""The columns that the table of any request may have: what its rows are, and what differs between them."""

from collections.abc import Callable
from statistics import fmean

from analysis.load import CellResult, Group, Results, axis_text
from analysis.tables.settings import SETTINGS, Setting
from analysis.tables.table import Column, Value
from analysis.tables.words import show, show_flops, show_layout, si
from sweeps.identity import short_keys


def row_columns(results: Results) -> list[Column[Group]]:
    columns = []
    if results.several_rows or not results.axes:
        header = str(results.report.get("row_header", "row"))
        columns.append(Column[Group](key="row", header=header, value=lambda group: group.row, fmt=str))
    short = [name.rpartition(".")[2] for name in results.axes]
    for name, last in zip(results.axes, short, strict=True):
        header = last if short.count(last) == 1 else name
        columns.append(Column[Group](key=name, header=header, value=_axis_value(name), fmt=show))
    return columns


def _axis_value(name: str) -> Callable[[Group], Value]:
    def value(group: Group) -> Value:
        given = group.axes.get(name)
        return given if isinstance(given, int | float) and not isinstance(given, bool) else axis_text(given)

    return value


def setting_columns(results: Results) -> list[Column[Group]]:
    """The settings that differ between rows and that no axis shows already."""
    columns = []
    for setting in SETTINGS:
        values = [{setting.value(spec) for spec in group.specs} for group in results.groups if group.specs]
        if len(set().union(*values)) < 2 or any(_shows(results, axis, setting) for axis in results.axes):
            continue
        if any(_shows_tuned(results, key, setting) for key in tuned_settings(results)):
            continue
        columns.append(
            Column[Group](key=setting.key, header=setting.header, value=_setting_value(setting), fmt=setting.text)
        )
    return columns


def _shows(results: Results, axis: str, setting: Setting) -> bool:
    return all(setting.value(spec) == group.axes.get(axis) for group in results.groups for spec in group.specs)


def _shows_tuned(results: Results, key: str, setting: Setting) -> bool:
    return all(setting.value(spec) == group.tuned.get(key) for group in results.groups for spec in group.specs)


def tuned_settings(results: Results) -> list[str]:
    return list(dict.fromkeys(key for tuning in results.tuning for key in tuning.settings))


def tuned_columns(results: Results) -> list[Column[Group]]:
    """What tuning chose for each row: always shown, as a reader cannot know it from the request."""
    shorts = short_keys(tuned_settings(results))
    return [
        Column[Group](key=f"tuned.{key}", header=f"{short} (tuned)", value=_tuned_value(key), fmt=show)
        for key, short in shorts.items()
    ]


def _tuned_value(key: str) -> Callable[[Group], Value]:
    def value(group: Group) -> Value:
        if key not in group.tuned:
            return None
        chosen = group.tuned[key]
        return chosen if isinstance(chosen, int | float) and not isinstance(chosen, bool) else axis_text(chosen)

    return value


def _setting_value(setting: Setting) -> Callable[[Group], Value]:
    def value(group: Group) -> Value:
        found = list(dict.fromkeys(setting.value(spec) for spec in group.specs))
        if len(found) == 1:
            return found[0]
        return ", ".join(setting.text(item) for item in found if item is not None) or None

    return value


def architecture_columns(results: Results, *, run_flops: bool) -> list[Column[Group]]:
    columns = [
        Column[Group](key="layout", header="layout", value=lambda group: group.layout(), fmt=show_layout),
        _cost_column("non_embedding_params", "N-emb params", si),
    ]
    if run_flops:
        columns.append(_cost_column("paper_train_flops", "train FLOPs", show_flops))
    return [column for column in columns if len(_known(results, column)) > 1]


def _cost_column(key: str, header: str, fmt: Callable[[Value], str]) -> Column[Group]:
    return Column[Group](key=key, header=header, value=lambda group: group.cost(key), fmt=fmt)


def mean_column(
    key: str, header: str, number: Callable[[CellResult], float | None], *, fmt: Callable[[Value], str], diverged: bool
) -> Column[Group]:
    """A plain mean over the runs with a result; `diverged` says whether those that diverged are among them."""

    def mean(group: Group) -> Value:
        runs = group.final if diverged else group.done
        values = [value for cell in runs if (value := number(cell)) is not None]
        return fmean(values) if values else None

    return Column[Group](key=f"mean_{key}", header=header, value=mean, fmt=fmt)


def notes_columns(results: Results) -> list[Column[Group]]:
    if not any(group.notes() for group in results.groups):
        return []
    return [Column[Group](key="notes", header="notes", value=lambda group: group.notes(), fmt=str)]


def _known(results: Results, column: Column[Group]) -> list[Value]:
    """The distinct values of a column, without the rows that have none yet."""
    values = (column.value(group) for group in results.groups)
    return list(dict.fromkeys(value for value in values if value is not None))


def spent_flops(cell: CellResult) -> float | None:
    """Training FLOPs of the tokens that were trained on, which a stop rule makes fewer than planned."""
    planned, tokens = cell.cost.get("paper_train_flops"), cell.number("tokens")
    if planned is None or tokens is None or cell.spec is None:
        return None
    return planned * tokens / cell.spec.train_tokens
