"""Tables of architectures by tasks: the values of one axis side by side, for runs that race to a threshold.

A line is a measure of a row; what is tested is rows over all tasks, and each task over all rows.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, final

from analysis import stats
from analysis.load import Group, Results, axis_text
from analysis.races import DRAWS, any_differs, sooner
from analysis.tables.captions import around, title_of
from analysis.tables.probe import median_steps, race, share_a_run, solved, unfinished_notes
from analysis.tables.settings import SETTINGS
from analysis.tables.table import Column, Table, Value
from analysis.tables.words import count, show, show_p_value
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

_EVALUATED: Final = "recall_accuracy_percent"
_OF_THE_RUN: Final = "val_accuracy"
_DATA: Final = next(setting for setting in SETTINGS if setting.key == "data")
_NOTES: Final = "notes"


@final
@dataclass(frozen=True, kw_only=True)
class Line:
    """A measure of one row, by the values of the axis."""

    row: str
    measure: str
    values: dict[str, Value]


@final
@dataclass(frozen=True, kw_only=True)
class RowPair:
    """Two rows over all tasks; p is None where no task has runs of both."""

    first: str
    second: str
    first_solved: str
    second_solved: str
    p: float | None
    p_holm: float | None


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """A task over all rows."""

    name: str
    solved: str
    p: float | None
    p_holm: float | None


def axis_across(results: Results) -> str | None:
    """The axis that the report wants side by side; None where it has one value here, or the runs are no race."""
    asked = results.report.get("across")
    named = [str(asked)] if isinstance(asked, str) else []
    return next((axis for axis in named if axis in results.axes and results.is_probe), None)


def across_tables(
    results: Results, axis: str, against: str | None = None
) -> tuple[Table[Line], Table[RowPair], Table[Task]]:
    """The table, and what tells rows and tasks apart. Raises ConfigError where there is no row to compare with."""
    rows, tasks = rows_across(results, axis), values_across(results, axis)
    if against is not None and against not in rows:
        raise ConfigError(f"--against {against}: there is no such row{did_you_mean(against, rows)}")
    return _main(results, axis, rows, tasks), _pairs(rows, against), _differing(rows, tasks)


def values_across(results: Results, axis: str) -> list[str]:
    """The values of the axis, in the order of the request."""
    return list(dict.fromkeys(axis_text(group.axes.get(axis)) for group in results.groups))


def rows_across(results: Results, axis: str) -> dict[str, dict[str, Group]]:
    """The groups by what they are called without the axis, and by its value."""
    found: dict[str, dict[str, Group]] = {}
    for group in results.groups:
        others = [
            f"{name.rpartition('.')[2]}={axis_text(group.axes.get(name))}" for name in results.axes if name != axis
        ]
        name = " ".join([*([group.row] if results.several_rows or not others else []), *others]) or "all"
        found.setdefault(name, {})[axis_text(group.axes.get(axis))] = group
    return found


def _main(results: Results, axis: str, rows: dict[str, dict[str, Group]], tasks: list[str]) -> Table[Line]:
    evaluated = all(cell.number(_EVALUATED) is not None for group in results.groups for cell in group.done)
    measures: tuple[tuple[str, Callable[[Group], Value]], ...] = (
        ("accuracy %", lambda group: _accuracy(group, evaluated=evaluated)),
        ("solved", solved),
        ("median steps", median_steps),
        (_NOTES, Group.notes),
    )
    lines = tuple(
        Line(row=row, measure=name, values={task: value(group) for task, group in by_task.items()})
        for row, by_task in rows.items()
        for name, value in measures
        if name != _NOTES or any(group.notes() for group in by_task.values())
    )
    above, notes = around(results)
    n = min((len(group.final) for group in results.groups if group.final), default=0)
    told = f", which of {n} holds the median of all seeds with {100 * (1 - 0.5 ** (n - 1)):.1f}%" if n > 1 else ""
    where = (
        "held-out sequences that no run measured itself by (the recall evaluation)"
        if evaluated
        else "the validation at the end of the run"
    )
    caption = (
        *above,
        *_what_tasks_are(results, axis),
        f"accuracy %: of scored tokens of {where}, median over seeds with the range of them{told}. A run ends once it "
        "is solved, so that accuracies above the threshold say nothing of which is better.",
        "solved: seeds that reached the threshold, of those with a result, with the 95% Clopper-Pearson interval.",
        "median steps: Kaplan-Meier, unsolved seeds censored at the last step, with the 95% log-log interval; "
        ">n: not reached in n steps.",
    )
    return Table(
        name="table",
        title=title_of(results),
        columns=(
            Column[Line](
                key="row", header=str(results.report.get("row_header", "row")), value=lambda line: line.row, fmt=str
            ),
            Column[Line](key="measure", header="measure", value=lambda line: line.measure, fmt=str),
            *(Column[Line](key=task, header=task, value=_of_task(task), fmt=show) for task in tasks),
        ),
        rows=lines,
        caption=caption,
        footnotes=(*notes, *unfinished_notes(results)),
        grouped=True,
    )


def _what_tasks_are(results: Results, axis: str) -> list[str]:
    """What the names of data choices stand for."""
    if axis != _DATA.key:
        return []
    found = {axis_text(group.axes.get(axis)): _DATA.value(spec) for group in results.groups for spec in group.specs[:1]}
    return [f"{'; '.join(f'{name}: {told}' for name, told in found.items())}."] if found else []


def _of_task(task: str) -> Callable[[Line], Value]:
    return lambda line: line.values.get(task)


def _accuracy(group: Group, *, evaluated: bool) -> Value:
    values = group.numbers(_EVALUATED) if evaluated else [100 * value for value in group.numbers(_OF_THE_RUN)]
    return stats.median_range(values)


def _pairs(rows: dict[str, dict[str, Group]], against: str | None) -> Table[RowPair]:
    names = list(itertools.combinations(rows, 2)) if against is None else [(r, against) for r in rows if r != against]
    in_both = [[(rows[a][task], rows[b][task]) for task in rows[a] if task in rows[b]] for a, b in names]
    shared = [any(share_a_run(one, other) for one, other in groups) for groups in in_both]
    p_values = [
        None if twice else sooner([(race(one), race(other)) for one, other in groups])
        for groups, twice in zip(in_both, shared, strict=True)
    ]
    pairs = tuple(
        RowPair(
            first=a,
            second=b,
            first_solved=_total(rows[a].values()),
            second_solved=_total(rows[b].values()),
            p=p,
            p_holm=p_holm,
        )
        for (a, b), p, p_holm in zip(names, p_values, stats.holm_of_known(p_values), strict=True)
    )
    return Table(
        name="comparisons",
        title="Comparisons between rows, over all tasks",
        columns=(
            Column[RowPair](key="first", header="row", value=lambda c: c.first, fmt=str),
            Column[RowPair](key="second", header="against", value=lambda c: c.second, fmt=str),
            Column[RowPair](key="first_solved", header="solved", value=lambda c: c.first_solved, fmt=str),
            Column[RowPair](key="second_solved", header="solved (against)", value=lambda c: c.second_solved, fmt=str),
            Column[RowPair](key="p", header="p", value=lambda c: c.p, fmt=show_p_value),
            Column[RowPair](key="p_holm", header="p (Holm)", value=lambda c: c.p_holm, fmt=show_p_value),
        ),
        rows=pairs,
        caption=(
            "Log-rank test of the steps to the threshold, two-sided, stratified by task: runs change places within a "
            f"task alone ({DRAWS + 1:,} permutations); Holm over {count(len(pairs), 'pair')}.",
            "It weighs tasks by how many runs solve them, and says nothing where one row is sooner in one task and "
            "later in another. A large p does not show that two rows are equal.",
        ),
        footnotes=("Rows that share runs are not compared.",) if any(shared) else (),
    )


def _differing(rows: dict[str, dict[str, Group]], tasks: list[str]) -> Table[Task]:
    groups = {task: [by_task[task] for by_task in rows.values() if task in by_task] for task in tasks}
    p_values = [
        None
        if any(share_a_run(one, other) for one, other in itertools.combinations(groups[task], 2))
        else any_differs([race(group) for group in groups[task]])
        for task in tasks
    ]
    lines = tuple(
        Task(name=task, solved=_total(groups[task]), p=p, p_holm=p_holm)
        for task, p, p_holm in zip(tasks, p_values, stats.holm_of_known(p_values), strict=True)
    )
    return Table(
        name="tasks",
        title="Do rows differ in a task?",
        columns=(
            Column[Task](key="task", header="task", value=lambda t: t.name, fmt=str),
            Column[Task](key="solved", header="solved", value=lambda t: t.solved, fmt=str),
            Column[Task](key="p", header="p", value=lambda t: t.p, fmt=show_p_value),
            Column[Task](key="p_holm", header="p (Holm)", value=lambda t: t.p_holm, fmt=show_p_value),
        ),
        rows=lines,
        caption=(
            f"Log-rank test of all rows at once ({DRAWS + 1:,} permutations); Holm over {count(len(lines), 'task')}.",
        ),
        footnotes=(),
    )


def _total(groups: Iterable[Group]) -> str:
    found = [one for group in groups if (one := solved(group)) is not None]
    return f"{sum(one.k for one in found)}/{sum(one.n for one in found)}"
