"""Figures as data: what script.js draws. Every number in them is computed here."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, Literal, final

from analysis import stats
from analysis.load import Group, Results
from analysis.tables import VAL_LOSS, metric_header, solved, survival
from analysis.tables.columns import spent_flops
from analysis.tables.probe import SOLVED
from analysis.tables.words import count, metric_better, show

Metrics = Callable[[str], Sequence[Mapping[str, Any]]]
Better = Literal["lower", "higher"]

TRAIN_LOSS: Final = "train_loss_nats"
MOST_LINES: Final = 40
MOST_DOTS: Final = 400
MOST_POINTS: Final = 240
_MIN_VALIDATIONS: Final = 3
_SHOWN_FROM: Final = 0.15


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


# --- curves -------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean, least and greatest value over the seeds of a row, at the positions that all its done runs have."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


def _curves(results: Results, metrics: Callable[[Sequence[str]], Metrics]) -> Plot | None:
    """Loss against training tokens, of validation where every run was validated often enough."""
    shown = _best_first(results, VAL_LOSS)[:MOST_LINES]
    ids = [cell.run_id for _, group in shown for cell in group.done if cell.run_id is not None]
    read = metrics(ids)
    lines = {run_id: read(run_id) for run_id in ids}
    validated = [sum(line.get(VAL_LOSS) is not None for line in of_run) for of_run in lines.values()]
    metric = VAL_LOSS if validated and min(validated) >= _MIN_VALIDATIONS else TRAIN_LOSS
    made = [(look, group, curve_of(group, lines, metric)) for look, group in sorted(shown, key=lambda pair: pair[0])]
    drawn = [(look, group, curve) for look, group, curve in made if curve is not None]
    if not drawn:
        return None
    end = max(curve.x[-1] for _, _, curve in drawn)
    seen = [
        value
        for _, _, curve in drawn
        for x, low, high in zip(curve.x, curve.low, curve.high, strict=True)
        if x >= _SHOWN_FROM * end
        for value in (low, high)
    ]
    words = "validation" if metric == VAL_LOSS else "training"
    several = max(curve.n for _, _, curve in drawn) > 1
    caption = ["Mean over the seeds of a row; the band is from the least to the greatest." if several else ""]
    left_out = sum(not cell.final or cell.diverged for cell in results.cells)
    caption.append(f"Not drawn: {count(left_out, 'run')} that diverged or have no result." if left_out else "")
    caption.append(_left_out(len(results.groups) - len(shown)))
    return Plot(
        name="curves",
        title=f"{words.capitalize()} loss while training",
        caption=tuple(filter(None, caption)),
        data={
            "kind": "curves",
            "x": {"label": "training tokens", "format": "si"},
            "y": {"label": f"{words} loss (nats per token)", "format": "digits"},
            "shown": _rounded([min(seen), max(seen)]),
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
                for look, group, curve in drawn
            ],
        },
    )


def curve_of(group: Group, lines: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> Curve | None:
    """The curve of a row, thinned out evenly where it has very many positions; None where there is none."""
    runs = [
        {float(line["tokens"]): float(line[metric]) for line in lines[cell.run_id] if _is_number(line.get(metric))}
        for cell in group.done
        if cell.run_id is not None
    ]
    runs = [run for run in runs if run]
    if not runs:
        return None
    shared = sorted(set(runs[0]).intersection(*runs[1:]))
    if not shared:
        return None
    if len(shared) > MOST_POINTS:
        last = len(shared) - 1
        shared = [shared[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
    values = [[run[x] for run in runs] for x in shared]
    return Curve(
        x=tuple(shared),
        mean=tuple(map(fmean, values)),
        low=tuple(map(min, values)),
        high=tuple(map(max, values)),
        n=len(runs),
    )


def _survival(results: Results) -> Plot | None:
    """Share of seeds that have not solved the task yet against steps."""
    found = [(look, group, curve) for look, group in enumerate(results.groups) if (curve := survival(group))]
    if not found:
        return None
    series = []
    for look, group, curve in found[:MOST_LINES]:
        times = [0.0, *(point.time for point in curve.points)]
        shares = [1.0, *(point.survival for point in curve.points)]
        if times[-1] < curve.last:
            times, shares = [*times, curve.last], [*shares, shares[-1]]
        proportion = solved(group)
        series.append(
            {
                "label": group.label,
                "n": curve.n,
                "note": "" if proportion is None else f"{proportion.k}/{proportion.n} solved",
                "look": look,
                "x": _rounded(times),
                "y": _rounded(shares),
                "marks": _rounded(curve.censored),
            }
        )
    return Plot(
        name="survival",
        title="Seeds that have not solved the task yet",
        caption=tuple(
            filter(
                None,
                (
                    "Kaplan-Meier over seeds; | marks seeds unsolved when their run ended (censored).",
                    _left_out(len(found) - MOST_LINES),
                ),
            )
        ),
        data={
            "kind": "steps",
            "x": {"label": "training steps", "format": "whole"},
            "y": {"label": "seeds not yet solved", "format": "percent"},
            "shown": [0, 1],
            "series": series,
        },
    )


# --- final values -------------------------------------------------------------------------------


def _ranges(results: Results, metric: str) -> Plot | None:
    """Every seed, the mean of a row, and its interval as the table has it."""
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    rows = []
    for look, group in _best_first(results, metric)[:MOST_LINES]:
        values = group.numbers(metric)
        mean = stats.estimate(values, pooling)
        if mean is not None:
            rows.append(
                {
                    "label": group.label,
                    "look": look,
                    "n": mean.n,
                    "x": _rounded([mean.mean])[0],
                    "low": None if mean.low is None else _rounded([mean.low])[0],
                    "high": None if mean.high is None else _rounded([mean.high])[0],
                    "values": _rounded(values),
                    "text": show(mean),
                }
            )
    if len(rows) < 2:
        return None
    several = any(row["low"] is not None for row in rows)
    with_value = sum(bool(group.numbers(metric)) for group in results.groups)
    caption = [
        "A dot a seed; the square is the mean with its 95% interval, computed as in the table."
        if several
        else "One seed a row: no interval.",
        "Intervals that overlap may still be told apart, and the other way round: see the table's marks.",
        _left_out(with_value - len(rows)),
    ]
    return Plot(
        name="ranges",
        title=f"Final {metric_header(metric)}",
        caption=tuple(filter(None, caption)),
        data={"kind": "ranges", "x": {"label": metric_header(metric), "format": "digits"}, "rows": rows},
    )


# --- against cost -------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class _Axis:
    """What quality may be set against."""

    key: str
    label: str
    better: Better
    is_measured: bool = False


_AXES: Final = (
    _Axis(key="paper_train_flops", label="FLOPs spent on a run (paper convention)", better="lower"),
    _Axis(key="tokens_per_s", label="training tokens/s", better="higher", is_measured=True),
    _Axis(key="wall_s", label="wall time of a run (s)", better="lower", is_measured=True),
    _Axis(key="non_embedding_params", label="parameters without embedding", better="lower"),
    _Axis(key="paper_cache_bytes", label="cache (bytes, paper convention)", better="lower"),
)


def _against_cost(results: Results, metric: str) -> Plot | None:
    """Quality against cost or speed, a point a row, with the Pareto front of each; those that differ between rows."""
    better = "higher" if metric == SOLVED else metric_better(metric)
    if better is None:
        return None
    quality = _quality(results, metric)
    choices = [choice for axis in _AXES if (choice := _choice(results, axis, quality, better)) is not None]
    if not choices:
        return None
    machines = {(c.provenance.get("host"), c.provenance.get("device")) for c in results.cells if c.final}
    caption = [
        "On the line: rows to which no other is better in one of the two and as good in the other, by their means. "
        "Rows whose intervals overlap may not be told apart: see the table's marks.",
        f"Of the rows off the line only the best are drawn, {MOST_DOTS} in all."
        if len(results.groups) > MOST_DOTS
        else "",
        "" if len(machines) < 2 else "The runs were made on several machines or devices: times do not compare.",
    ]
    label = "share of seeds that solved the task" if metric == SOLVED else metric_header(metric)
    return Plot(
        name="pareto",
        title=f"{label[0].upper()}{label[1:]} against cost",
        caption=tuple(filter(None, caption)),
        data={
            "kind": "pareto",
            "y": {"label": label, "format": "percent" if metric == SOLVED else "digits", "better": better},
            "choices": choices,
        },
    )


def _quality(results: Results, metric: str) -> list[tuple[float, float | None, float | None, int] | None]:
    """Mean, interval and n of each row; None where there is no value."""
    if metric == SOLVED:
        found = [solved(group) for group in results.groups]
        return [None if p is None or not p.n else (p.k / p.n, p.low, p.high, p.n) for p in found]
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    means = [stats.estimate(group.numbers(metric), pooling) for group in results.groups]
    return [None if mean is None else (mean.mean, mean.low, mean.high, mean.n) for mean in means]


def _choice(
    results: Results,
    axis: _Axis,
    quality: Sequence[tuple[float, float | None, float | None, int] | None],
    better: Better,
) -> dict[str, Any] | None:
    points: list[dict[str, Any]] = []
    for look, (group, found) in enumerate(zip(results.groups, quality, strict=True)):
        x = _place(results, axis, group)
        if found is None or x is None:
            continue
        y, low, high, n = found
        bounds = [None if bound is None else _rounded([bound])[0] for bound in (low, high)]
        points.append(
            {"label": group.label, "look": look, "n": n, "x": _rounded([x])[0], "y": _rounded([y])[0]}
            | {"low": bounds[0], "high": bounds[1]}
        )
    if len({point["x"] for point in points}) < 2:
        return None
    front = pareto_front([(p["x"], p["y"]) for p in points], x_better=axis.better, y_better=better)
    if len(points) > MOST_DOTS:
        sign = 1 if better == "lower" else -1
        on_front = set(front)
        order = sorted(range(len(points)), key=lambda i: (i not in on_front, sign * points[i]["y"]))
        kept = sorted(order[: max(MOST_DOTS, len(front))])
        front = [kept.index(i) for i in front]
        points = [points[i] for i in kept]
    return {"key": axis.key, "label": axis.label, "better": axis.better, "points": points, "front": front}


def _place(results: Results, axis: _Axis, group: Group) -> float | None:
    """Where a row is on the axis. Runs that may stop early spend less than planned; the unsolved ones count too."""
    if axis.key == "paper_train_flops":
        spent = [spent_flops(cell) for cell in (group.final if results.is_probe else group.done)]
        known = [flops for flops in spent if flops is not None]
        return fmean(known) if known else group.cost(axis.key)
    values = group.numbers(axis.key)
    return (fmean(values) if values else None) if axis.is_measured else group.cost(axis.key)


def pareto_front(points: Sequence[tuple[float, float]], *, x_better: Better, y_better: Better) -> list[int]:
    """The places of the points that no other one dominates, in the order of their x.

    A point dominates another that is worse in one and no better in the other.
    """
    x_sign, y_sign = (1 if better == "lower" else -1 for better in (x_better, y_better))
    costs = [(x_sign * x, y_sign * y) for x, y in points]
    front: list[int] = []
    least = math.inf
    for _, places in itertools.groupby(sorted(range(len(costs)), key=lambda i: costs[i]), key=lambda i: costs[i][0]):
        alike = list(places)
        best = costs[alike[0]][1]
        if best < least:
            front += [i for i in alike if costs[i][1] == best]
            least = best
    return sorted(front, key=lambda i: points[i][0])


def _best_first(results: Results, metric: str) -> list[tuple[int, Group]]:
    """The rows with their places, the best in the metric first, those without a value last; as they are where which
    way is good is not known."""
    better = metric_better(metric)
    sign = -1.0 if better == "higher" else 1.0

    def key(pair: tuple[int, Group]) -> float:
        values = pair[1].numbers(metric)
        return sign * fmean(values) if values else math.inf

    rows = list(enumerate(results.groups))
    return rows if better is None else sorted(rows, key=key)


def _left_out(n: int) -> str:
    return f"Only the best {MOST_LINES} rows are drawn; {n:,} more are in the table." if n > 0 else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rounded(values: Sequence[float]) -> list[float]:
    """Six digits, which are more than can be seen."""
    return [float(f"{value:.6g}") for value in values]
