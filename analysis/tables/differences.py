"""What is said of the differences between rows: marks in a column, the notes under it, and a table of their own."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from analysis.contrasts import Better, Contrast, Mark, Ranking, blocks_of, contrasts, measured_on
from analysis.load import Group, Results
from analysis.tables.table import Column, Table
from analysis.tables.words import count, listed, metric_better, metric_header, show, show_p, show_p_value
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

_BLOCKS_SHOWN: Final = 8


def baselines(results: Results, against: str) -> tuple[tuple[tuple[Group, Group], ...], tuple[tuple[Group, ...], ...]]:
    """Each row with the one to compare it with, and the blocks of rows that share their noise.

    `against` is a row, at each point of the grid by itself, or the label of one line for all. Raises ConfigError where
    there is no such row, or no other.
    """
    line = next((group for group in results.groups if group.label == against), None)
    if line is None:
        blocks = blocks_of(results)
    else:
        on = measured_on(line)
        blocks = (tuple(g for g in results.groups if on is None or measured_on(g) in (on, None)),)
    pairs = []
    for block in blocks:
        base = line or next((group for group in block if group.row == against), None)
        if base is not None:
            pairs += [(group, base) for group in block if group is not base]
    if not pairs:
        known = dict.fromkeys([group.row for group in results.groups] + [group.label for group in results.groups])
        if against in known:
            where = f" at one {' and '.join(results.axes)}" if _gridded(results) else ""
            raise ConfigError(f"--against {against}: no other row on the same data to compare with it{where}")
        raise ConfigError(f"--against {against}: no such row in this request{did_you_mean(against, known)}")
    return tuple(pairs), blocks


def difference_table(results: Results, metric: str, against: str, *, margin: float = 0.0) -> Table[Contrast]:
    """Every row's mean minus that of the row to compare with, with intervals, tests, and what may be said."""
    pairs, blocks = baselines(results, against)
    made = contrasts(pairs, metric, blocks=blocks, margin=margin)
    better = metric_better(metric)
    tested = sum(contrast.p is not None for contrast in made)
    columns = [
        Column[Contrast](key="first", header="row", value=lambda c: c.first.label, fmt=str),
        Column[Contrast](key="second", header="minus", value=lambda c: c.second.label, fmt=str),
        Column[Contrast](key="difference", header=f"Δ {metric_header(metric)}", value=lambda c: c.estimate, fmt=show),
        Column[Contrast](key="seeds", header="seeds", value=lambda c: c.how, fmt=str),
        Column[Contrast](key="p", header="p", value=lambda c: c.p, fmt=show_p_value),
        Column[Contrast](key="p_holm", header="p (Holm)", value=lambda c: c.p_holm, fmt=show_p_value),
        Column[Contrast](key="finding", header="finding", value=_finding(better), fmt=str),
    ]
    if margin > 0:
        equivalence = Column[Contrast](
            key="p_equivalent", header="p (equivalent)", value=lambda c: c.p_equivalent, fmt=show_p_value
        )
        columns.insert(-1, equivalence)
    if any(contrast.seeds_needed is not None for contrast in made):
        needed = Column[Contrast](key="seeds_needed", header="seeds to decide", value=lambda c: c.seeds_needed, fmt=str)
        columns.append(needed)
    caption = [
        f"{metric_header(metric)}: difference of means with its 95% interval, which is not adjusted; "
        f"p two-sided, Holm over {count(tested, 'comparison')}.",
        *_how_lines(made),
    ]
    if margin > 0:
        caption.append(f"Equivalent: shown to lie within ±{margin:g} (two one-sided tests, Holm); else undecided.")
    footnotes = []
    if any(contrast.finding == "undecided" for contrast in made):
        footnotes.append("Undecided is not equal: these runs cannot tell.")
    if any(contrast.seeds_needed is not None for contrast in made):
        footnotes.append(
            "Seeds to decide: runs a row with which the test would succeed in 80% of cases, "
            "if difference and spread are what they seem."
        )
    if any(contrast.how == "one seed" or contrast.how.endswith("one seed") for contrast in made):
        footnotes.append("A row of one seed has no spread, and none is invented: its differences are not tested.")
    compared = {id(group) for pair in pairs for group in pair}
    left_out = [group.label for group in results.groups if id(group) not in compared]
    if left_out:
        footnotes.append(f"Not compared, for want of such a row on the same data: {listed(left_out)}.")
    return Table(
        name="differences",
        title=f"Differences from {against}",
        columns=tuple(columns),
        rows=made,
        caption=tuple(caption),
        footnotes=tuple(footnotes),
    )


def _finding(better: Better | None) -> Callable[[Contrast], str]:
    def finding(contrast: Contrast) -> str:
        match contrast.finding:
            case "untestable":
                return ""
            case "lower" | "higher" as side if better is not None:
                return f"{side}: {'better' if side == better else 'worse'}"
            case found:
                return found

    return finding


def _how_lines(made: Sequence[Contrast]) -> list[str]:
    """From which runs differences were taken, in words."""
    paired = [contrast for contrast in made if contrast.p is not None and contrast.paired]
    lines = []
    if paired:
        spreads = {_spread(contrast) for contrast in paired}
        if len(spreads) == 1:
            sd, df = spreads.pop()
            noise = f"SD {sd:.2g} ({count(df, 'degree')} of freedom)"
        else:
            noise = "of each two rows by themselves, where the spread of others is unlike theirs or their seeds are"
        lines.append(f"Pairs have one data seed. Their noise is what rows and seeds leave unexplained: {noise}.")
    if any(contrast.p is not None and not contrast.paired for contrast in made):
        lines.append("Unpaired where rows have no two data seeds in common: the noise between seeds counts in full.")
    return lines


def _spread(paired: Contrast) -> tuple[float, int]:
    difference = paired.difference
    if difference is None or difference.std_error is None or difference.df is None:
        raise ValueError("expected a contrast that was tested")
    return float(f"{difference.std_error * math.sqrt(difference.n_a / 2):.9g}"), difference.df


def mark_of(results: Results, ranking: Ranking) -> Callable[[Group], Mark | None]:
    """The mark of each group."""
    places = {id(group): place for place, group in enumerate(results.groups)}
    return lambda group: ranking.marks.get(places[id(group)])


def mark_notes(results: Results, ranking: Ranking, name: str, *, margin: float = 0.0) -> list[str]:
    """What bold, ≈ and ? mean in the column of this name, and for which rows; nothing where nothing was compared."""
    if ranking.spreadless:
        sizes = {n for c in ranking.contrasts if c.difference is not None for n in (c.difference.n_a, c.difference.n_b)}
        why = "One seed a row" if max(sizes, default=1) == 1 else "No spread between seeds is known"
        return [f"{why}: nothing can be told apart, so nothing is in bold ({name})."]
    marks = set(ranking.marks.values())
    tested = sum(contrast.p is not None for contrast in ranking.contrasts)
    where = (
        f" at the same {' and '.join(axis.rpartition('.')[2] for axis in results.axes)}" if _gridded(results) else ""
    )
    notes = []
    if "best" in marks:
        others = "every row that is not marked" if "equivalent" in marks else "every other row"
        notes.append(
            f"Bold: the best {name}, told apart from {others}{where} (two-sided t tests, "
            f"{_pairing(ranking.contrasts)}, Holm over {count(tested, 'comparison')}, 5%)."
        )
    if "equivalent" in marks:
        notes.append(f"≈: shown to be within ±{margin:g} of the best {name} (two one-sided tests, Holm, 5%).")
    if "undecided" in marks:
        notes += _undecided_notes(ranking, name)
    return notes


def _gridded(results: Results) -> bool:
    return results.several_rows and bool(results.axes)


def _undecided_notes(ranking: Ranking, name: str) -> list[str]:
    """A line a block: the best row, and those that cannot be told from it."""
    blocks: dict[int, list[Contrast]] = {}
    for contrast in ranking.undecided:
        blocks.setdefault(id(contrast.first), []).append(contrast)
    notes = []
    for undecided in blocks.values():
        rows = listed([_with_seeds(contrast) for contrast in undecided])
        notes.append(f"?: undecided against the best {name}, {undecided[0].first.label}: {rows}.")
        if len(notes) == _BLOCKS_SHOWN and len(blocks) > _BLOCKS_SHOWN:
            return [*notes, f"?: likewise at {len(blocks) - _BLOCKS_SHOWN} more points of the grid."]
    return notes


def _with_seeds(contrast: Contrast) -> str:
    facts = ["one seed" if contrast.p_holm is None else f"p {show_p(contrast.p_holm)}"]
    if contrast.seeds_needed is not None:
        facts.append(f"{contrast.seeds_needed} seeds a row would tell")
    return f"{contrast.second.label} ({', '.join(facts)})"


def _pairing(made: Sequence[Contrast]) -> str:
    tested = [contrast for contrast in made if contrast.p is not None]
    if all(contrast.paired for contrast in tested):
        return "paired on equal data seeds"
    return "paired where data seeds are equal" if any(contrast.paired for contrast in tested) else "unpaired"
