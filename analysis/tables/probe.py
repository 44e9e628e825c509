"""Tables of runs that race to a threshold: seeds solved, steps needed, what was spent, and exact tests between rows."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

from analysis import stats
from analysis.contrasts import Mark
from analysis.load import CellResult, Group, Results
from analysis.races import Race
from analysis.tables.captions import request_table
from analysis.tables.columns import (
    architecture_columns,
    mean_column,
    notes_columns,
    row_columns,
    setting_columns,
    spent_flops,
    tuned_columns,
)
from analysis.tables.differences import baselines
from analysis.tables.table import Column, Table, Value, unmarked
from analysis.tables.words import count, show, show_flops, show_p, show_p_value, si, three_digits

SOLVED: Final = "solved"
# Every pair of more rows is a table that nobody reads, and tests that find nothing after Holm.
MOST_COMPARED: Final = 60


@final
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Fisher's exact test between two rows; p is None if either has no result or they share a run."""

    first: Group
    second: Group
    p: float | None
    p_holm: float | None


def probe_table(results: Results) -> Table[Group]:
    """Seeds solved, median steps to the threshold and what was spent, a line a row."""
    mark = _mark_of(results)
    columns = (
        *row_columns(results),
        *tuned_columns(results),
        *setting_columns(results),
        *architecture_columns(results, run_flops=False),
        Column[Group](key=SOLVED, header="solved", value=solved, fmt=show, better="higher", mark=mark),
        Column[Group](key="steps_to_threshold", header="median steps", value=median_steps, fmt=show, better="lower"),
        mean_column("tokens", "tokens / run", lambda cell: cell.number("tokens"), fmt=si, diverged=True),
        mean_column("spent_paper_train_flops", "FLOPs / run", spent_flops, fmt=show_flops, diverged=True),
        mean_column("wall_s", "wall s / run", lambda cell: cell.number("wall_s"), fmt=three_digits, diverged=True),
        *notes_columns(results),
    )
    caption = [
        "solved: seeds that reached the threshold, of those with a result, with the 95% Clopper-Pearson interval.",
        "median steps: Kaplan-Meier, unsolved seeds censored at the last step, with the 95% log-log interval; "
        ">n: not reached in n steps.",
        "Tokens, FLOPs (paper convention, training) and wall time are what was spent, a mean over the runs.",
    ]
    footnotes = []
    if any(mark(group) for group in results.groups):
        footnotes.append("Bold: told apart from every other row (Fisher's exact test, Holm over every pair, 5%).")
    if len(results.groups) > MOST_COMPARED:
        footnotes.append(
            f"More than {MOST_COMPARED} rows are not compared pair by pair; --against ROW compares with one."
        )
    return request_table(results, columns, caption=caption, footnotes=[*footnotes, *unfinished_notes(results)])


def unfinished_notes(results: Results) -> list[str]:
    """What runs without a threshold to show for themselves do to the counts of those that are solved."""
    notes = []
    if any(cell.diverged for cell in results.cells):
        notes.append("A diverged run counts as unsolved, censored at the last step it was allowed.")
    if any(not cell.final for cell in results.cells):
        notes.append(
            "Not all runs have a result yet. Solved runs end sooner than unsolved ones: until all have, "
            "k/n leans towards solved."
        )
    return notes


def comparison_table(results: Results, against: str | None = None) -> Table[Comparison]:
    """Rows tested on solved against unsolved: every pair of them, or each with one; Holm over all that are tested.

    Raises ConfigError where there is no row of the name to compare with.
    """
    every = itertools.combinations(results.groups, 2)
    pairs = list(every if against is None else baselines(results, against)[0])
    rows = _compared(pairs)
    tested = [row.p for row in rows if row.p is not None]
    caption = [f"Fisher's exact test, two-sided, on solved against unsolved; Holm over {count(len(tested), 'pair')}."]
    sizes = [len(group.final) for group in results.groups if group.final]
    if len(sizes) >= 2:
        least = stats.smallest_fisher_p(*sorted(sizes)[-2:])
        after = show_p(min(1.0, len(tested) * least))
        caption.append(
            f"With {max(sizes)} seeds a row no p can fall below {show_p(least)} ({after} after Holm over so many); "
            "a large p does not show that two rows are equal."
        )
    shared = any(share_a_run(a, b) for a, b in pairs)
    return Table(
        name="comparisons",
        title="Comparisons between rows",
        columns=(
            Column[Comparison](key="first", header="row", value=lambda c: c.first.label, fmt=str),
            Column[Comparison](key="second", header="against", value=lambda c: c.second.label, fmt=str),
            Column[Comparison](key="first_solved", header="solved", value=lambda c: _k_of_n(c.first), fmt=str),
            Column[Comparison](
                key="second_solved", header="solved (against)", value=lambda c: _k_of_n(c.second), fmt=str
            ),
            Column[Comparison](key="p", header="p", value=lambda c: c.p, fmt=show_p_value),
            Column[Comparison](key="p_holm", header="p (Holm)", value=lambda c: c.p_holm, fmt=show_p_value),
        ),
        rows=tuple(rows),
        caption=tuple(caption),
        footnotes=("Rows that share runs are not compared.",) if shared else (),
    )


def _compared(pairs: Sequence[tuple[Group, Group]]) -> list[Comparison]:
    p_values = [_fisher(a, b) for a, b in pairs]
    return [
        Comparison(first=a, second=b, p=p, p_holm=p_holm)
        for (a, b), p, p_holm in zip(pairs, p_values, stats.holm_of_known(p_values), strict=True)
    ]


def _mark_of(results: Results) -> Callable[[Group], Mark | None]:
    """The row that solves most often, where Fisher's test tells it from every other; Holm over every pair of rows.

    A large p shows nothing, so that no row is called equivalent.
    """
    shares = {id(group): found.k / found.n for group in results.groups if (found := solved(group)) is not None}
    if not 2 <= len(shares) <= MOST_COMPARED:
        return unmarked
    best = max(shares, key=lambda key: shares[key])
    pairs = _compared(list(itertools.combinations(results.groups, 2)))
    mine = [pair for pair in pairs if best in (id(pair.first), id(pair.second)) and pair.p_holm is not None]
    told = bool(mine) and all(pair.p_holm is not None and pair.p_holm <= 1 - stats.LEVEL for pair in mine)
    return lambda group: "best" if told and id(group) == best else None


def solved(group: Group) -> stats.Proportion | None:
    """Seeds solved of those with a result; a diverged run is unsolved. None without results."""
    if not group.final:
        return None
    return stats.clopper_pearson(sum(_is_solved(cell) for cell in group.final), len(group.final))


def survival(group: Group) -> stats.SurvivalCurve | None:
    """Kaplan-Meier curve of the steps to the threshold; None without results.

    An unsolved run is censored at its last step. A diverged one will never solve the task within the steps it was
    allowed, so it is censored there and not where it broke off, which would take it out of the count.
    """
    found = race(group)
    return stats.kaplan_meier(found.times, found.events) if found.times else None


def race(group: Group) -> Race:
    """The steps of the runs with a result, as `survival` has them."""
    times, events = [], []
    for cell in group.final:
        steps = cell.number("steps_to_threshold") if _is_solved(cell) else cell.number("steps")
        if cell.diverged and cell.spec is not None:
            steps = float(cell.spec.train_steps)
        if steps is not None:
            times.append(steps)
            events.append(_is_solved(cell))
    return Race(times=tuple(times), events=tuple(events))


def _is_solved(cell: CellResult) -> bool:
    return not cell.diverged and cell.number("steps_to_threshold") is not None


def median_steps(group: Group) -> Value:
    curve = survival(group)
    return None if curve is None else stats.median_time(curve)


def share_a_run(a: Group, b: Group) -> bool:
    """Whether two rows have a run in common, so that they are no two samples."""
    of_a = {cell.run_id for cell in a.cells if cell.run_id is not None}
    return not of_a.isdisjoint(cell.run_id for cell in b.cells)


def _fisher(a: Group, b: Group) -> float | None:
    first, second = solved(a), solved(b)
    if first is None or second is None or share_a_run(a, b):
        return None
    return stats.fisher_exact(first.k, first.n, second.k, second.n)


def _k_of_n(group: Group) -> str | None:
    found = solved(group)
    return None if found is None else f"{found.k}/{found.n}"
