"""Figures as JSON: what script.js draws. Their numbers are those of `analysis.figures.numbers`, to six digits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from analysis.figures.numbers import (
    FRONT_WORDS,
    MOST_DOTS,
    OVERLAP_LINE,
    Metrics,
    Tradeoff,
    curves,
    finals,
    left_out_line,
    machines_line,
    not_drawn_line,
    quality_better,
    quality_label,
    rounded,
    survivals,
    tradeoffs,
)
from analysis.figures.picture import MOST_LINES
from analysis.load import Results
from analysis.tables import VAL_LOSS, metric_header, show
from analysis.tables.probe import SOLVED


@final
@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure. `data` is JSON: its `kind`, and what that kind needs; `caption` whole sentences, one a line."""

    name: str
    title: str
    caption: tuple[str, ...]
    data: Mapping[str, Any]


def plots(results: Results, metric: str | None, metrics: Callable[[Sequence[str]], Metrics]) -> tuple[Plot, ...]:
    """The figures that a request has data for. `metrics` gives a reader of the metric lines of these runs."""
    found = []
    if results.is_probe:
        found.append(_survival(results))
    found.append(_curves(results, metrics))
    if metric is not None and metric != SOLVED:
        found += [_ranges(results, metric), _against_cost(results, metric)]
    elif results.is_probe:
        found.append(_against_cost(results, SOLVED))
    return tuple(plot for plot in found if plot is not None)


def _curves(results: Results, metrics: Callable[[Sequence[str]], Metrics]) -> Plot | None:
    found = curves(results, metrics)
    if found is None:
        return None
    words = "validation" if found.metric == VAL_LOSS else "training"
    several = "Mean over the seeds of a row; the band is from the least to the greatest."
    caption = [several if found.several_seeds else "", left_out_line(results), not_drawn_line(found.not_drawn)]
    return Plot(
        name="curves",
        title=f"{words.capitalize()} loss while training",
        caption=tuple(filter(None, caption)),
        data={
            "kind": "curves",
            "x": {"label": "training tokens", "format": "si"},
            "y": {"label": f"{words} loss (nats per token)", "format": "digits"},
            "shown": _rounded(found.shown),
            "series": [
                {
                    "label": group.label,
                    "n": curve.n,
                    "look": look,
                    "x": _rounded(curve.x),
                    "y": _rounded(curve.mean),
                    "low": _rounded(curve.low),
                    "high": _rounded(curve.high),
                }
                for look, group, curve in found.rows
            ],
        },
    )


def _survival(results: Results) -> Plot | None:
    """Share of seeds that have not solved the task yet against steps."""
    found = survivals(results)
    if not found:
        return None
    caption = (
        "Kaplan-Meier over seeds; | marks seeds unsolved when their run ended (censored).",
        not_drawn_line(len(found) - MOST_LINES),
    )
    return Plot(
        name="survival",
        title="Seeds that have not solved the task yet",
        caption=tuple(filter(None, caption)),
        data={
            "kind": "steps",
            "x": {"label": "training steps", "format": "whole"},
            "y": {"label": "seeds not yet solved", "format": "percent"},
            "shown": [0, 1],
            "series": [
                {
                    "label": one.label,
                    "n": one.n,
                    "note": one.note,
                    "look": one.look,
                    "x": _rounded(one.times),
                    "y": _rounded(one.shares),
                    "marks": _rounded([time for time, _ in one.censored]),
                }
                for one in found[:MOST_LINES]
            ],
        },
    )


def _ranges(results: Results, metric: str) -> Plot | None:
    """Every seed, the mean of a row, and its interval as the table has it."""
    every = finals(results, metric)
    rows = every[:MOST_LINES]
    if len(rows) < 2:
        return None
    caption = [
        "A dot a seed; the square is the mean with its 95% interval, computed as in the table."
        if any(row.mean.low is not None for row in rows)
        else "One seed a row: no interval.",
        "Intervals that overlap may still be told apart, and the other way round: see the table's marks.",
        not_drawn_line(len(every) - len(rows)),
    ]
    return Plot(
        name="ranges",
        title=f"Final {metric_header(metric)}",
        caption=tuple(filter(None, caption)),
        data={
            "kind": "ranges",
            "x": {"label": metric_header(metric), "format": "digits"},
            "rows": [
                {
                    "label": row.label,
                    "look": row.look,
                    "n": row.mean.n,
                    "x": rounded(row.mean.mean),
                    "low": None if row.mean.low is None else rounded(row.mean.low),
                    "high": None if row.mean.high is None else rounded(row.mean.high),
                    "values": _rounded(row.values),
                    "text": show(row.mean),
                }
                for row in rows
            ],
        },
    )


def _against_cost(results: Results, metric: str) -> Plot | None:
    """Quality against cost or speed, a point a row, with the Pareto front of each; those that differ between rows."""
    better, choices = quality_better(metric), tradeoffs(results, metric)
    if better is None or not choices:
        return None
    caption = [
        f"On the line: {FRONT_WORDS}. {OVERLAP_LINE}",
        f"Of the rows off the line only the best are drawn, {MOST_DOTS} in all."
        if len(results.groups) > MOST_DOTS
        else "",
        machines_line(results),
    ]
    label = quality_label(metric)
    return Plot(
        name="pareto",
        title=f"{label[0].upper()}{label[1:]} against cost",
        caption=tuple(filter(None, caption)),
        data={
            "kind": "pareto",
            "y": {"label": label, "format": "percent" if metric == SOLVED else "digits", "better": better},
            "choices": [_choice(choice) for choice in choices],
        },
    )


def _choice(choice: Tradeoff) -> dict[str, Any]:
    points = [
        {"label": p.label, "look": p.look, "n": p.n, "x": p.x, "y": p.y, "low": p.low, "high": p.high}
        for p in choice.points
    ]
    axis = choice.axis
    return {"key": axis.key, "label": axis.label, "better": axis.better, "points": points, "front": list(choice.front)}


def _rounded(values: Sequence[float]) -> list[float]:
    return [rounded(value) for value in values]
