"""What every figure of a request is made with: its results, what is asked of them, and the words around it."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Final, final

from analysis import stats
from analysis.figures.numbers import FRONT_WORDS, Curve, Metrics, left_out_line, over_seeds
from analysis.figures.picture import Interval, Line, Panel, Picture, Points, Rule
from analysis.figures.recorded import Series
from analysis.load import CellResult, Group, Results
from analysis.tables import metric_header, metric_of, report_caption, settings_line, title_of
from analysis.tables.captions import missing_notes
from analysis.tables.probe import SOLVED
from analysis.tables.words import count, listed
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

BAND: Final = "Mean over the seeds of a row; the band is from the least to the greatest."
INTERVAL: Final = "the mean with its 95% interval, computed as in the table"


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a figure is asked for with: a metric, the axis of cost, the rows (patterns, as in a shell; none: all)."""

    metric: str | None = None
    cost: str | None = None
    rows: tuple[str, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class Ours:
    """What a figure of a request is made of. `read` gives a reader of the metric lines of runs."""

    results: Results
    read: Callable[[Sequence[str]], Metrics]
    asked: Asked

    @cached_property
    def wanted(self) -> Callable[[Group], bool]:
        """Which rows are asked for. Raises ConfigError for a pattern that none of them fits."""
        chosen = set(chosen_rows([group.label for group in self.results.groups], self.asked.rows))
        return lambda group: group.label in chosen


def chosen_rows(labels: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The labels that fit one of the patterns, in their order; all without patterns. Raises ConfigError."""
    unknown = [p for p in patterns if p not in labels and not any(fnmatch.fnmatchcase(label, p) for label in labels)]
    if unknown:
        raise ConfigError(
            [f"--rows {pattern}: no row is called so{did_you_mean(pattern, labels)}" for pattern in unknown]
        )
    return [
        label
        for label in labels
        if not patterns or any(label == pattern or fnmatch.fnmatchcase(label, pattern) for pattern in patterns)
    ]


def picture(
    results: Results,
    name: str,
    how_to_read: Sequence[str],
    panels: Sequence[Panel],
    widths: tuple[float, ...] = (1.0,),
) -> Picture:
    """With the title and the caption that every figure of the request has."""
    caption = (*report_caption(results), settings_line(results), *how_to_read)
    return Picture(
        name=name,
        title=title_of(results),
        caption=tuple(filter(None, caption)),
        panels=tuple(panels),
        widths=widths,
    )


def front_line(panel: Points) -> str:
    """What the front is."""
    if len(panel.front) == 1:
        best = panel.points[panel.front[0]]
        name = best.label if best.family == best.label else f"{best.family} {best.label}"
        return f"On the Pareto front is {name} alone: no row is better in either of the two, by their means."
    return f"On the grey steps: {FRONT_WORDS}."


def nothing_to_draw(results: Results, what: str, given_by: str = "") -> ConfigError:
    """That no run has a result yet; or else that none has recorded it, and what would."""
    request = f"request = {' '.join((results.sweep, *results.overrides)).strip()}"
    if not any(group.done for group in results.groups):
        return ConfigError(f"{request}: no run is done yet, so there is nothing to draw")
    return ConfigError(f"{request}: no run has recorded {what}{'; ' if given_by else ''}{given_by}")


def line_of(look: int, label: str, curve: Curve) -> Line:
    several = curve.n > 1
    return Line(
        label=label,
        look=look,
        n=curve.n,
        x=curve.x,
        y=curve.mean,
        low=curve.low if several else (),
        high=curve.high if several else (),
        note=f"n = {curve.n}",
    )


def interval_of(label: str, look: int, values: Sequence[float], pooling: stats.Pooling) -> Interval:
    mean = stats.estimate(values, pooling)
    return Interval(
        label=label,
        look=look,
        n=len(values),
        mean=None if mean is None else mean.mean,
        low=None if mean is None else mean.low,
        high=None if mean is None else mean.high,
        values=tuple(values),
    )


def by_place(
    results: Results, wanted: Callable[[Group], bool], series: Callable[[CellResult], Series | None]
) -> list[tuple[int, Group, Curve]]:
    """What rows recorded by length, position or layer: mean and range over seeds, where all of a row's runs have it."""
    found = []
    for look, group in enumerate(results.groups):
        runs = [dict(zip(s.x, s.y, strict=True)) for cell in group.done if (s := series(cell))] if wanted(group) else []
        if runs:
            shared = sorted(set(runs[0]).intersection(*runs[1:]))
            curve = over_seeds(shared, [[run[x] for x in shared] for run in runs])
            if curve is not None:
                found.append((look, group, curve))
    return found


def training_length(results: Results) -> tuple[Rule, ...]:
    lengths = {spec.seq_len for spec in results.specs}
    return (Rule(value=lengths.pop(), label="training length"),) if len(lengths) == 1 else ()


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def band_line(found: Sequence[Curve]) -> str:
    counts = sorted({curve.n for curve in found})
    if counts == [1]:
        return "One seed a row: no spread."
    return f"{BAND} n = {range_text(counts)} seeds a row."


def range_text(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def no_result_line(results: Results) -> str:
    """Runs that are not done; of a probe, diverged ones count, so that only those without a result are missing."""
    missing = sum(not cell.final for cell in results.cells)
    if not results.is_probe:
        return left_out_line(results)
    return f"Not drawn: {count(missing, 'run')} without a result yet." if missing else ""


def missing_lines(ours: Ours, metric: str, drawn: Sequence[str]) -> list[str]:
    """What of the request is in no mean: runs, by how they ended, and rows that have no value at all."""
    results = ours.results
    rows = [group.label for group in results.groups if ours.wanted(group) and group.label not in drawn]
    return [
        no_result_line(results),
        *(missing_notes(results, metric, metric_header(metric)) if metric != SOLVED else []),
        f"Rows without a value, which are not drawn: {listed(rows)}." if rows else "",
    ]


def without_line(results: Results, wanted: Callable[[Group], bool], drawn: Sequence[Group], what: str) -> str:
    there = {id(group) for group in drawn}
    missing = [group.label for group in results.groups if wanted(group) and id(group) not in there]
    return f"Not drawn, as they have no {what}: {listed(missing)}." if missing else ""


def estimates_of(ours: Ours) -> tuple[str, list[tuple[Group, stats.Estimate]]]:
    """The metric, and its mean with the interval of each wanted row that has any."""
    results = ours.results
    metric, wanted = metric_of(results, ours.asked.metric), ours.wanted
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    means = [(group, stats.estimate(group.numbers(metric), pooling)) for group in results.groups if wanted(group)]
    found = [(group, mean) for group, mean in means if mean is not None]
    if not found:
        raise nothing_to_draw(results, f"a finite {metric}")
    return metric, found


def estimates_line(means: Sequence[stats.Estimate]) -> str:
    if all(mean.low is None for mean in means):
        return "One seed a row: no interval."
    return (
        f"Means with 95% intervals, computed as in the table; n = {range_text([mean.n for mean in means])} seeds a row."
    )
