"""The numbers of figures of a request: computed here once, for print and for the HTML report.

Imports neither matplotlib nor pandas.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, final

from analysis import stats
from analysis.claims.parts import MEAN_THROUGHPUT
from analysis.figures.picture import MOST_LINES, Better, Format
from analysis.load import Group, Results
from analysis.tables import VAL_LOSS, metric_header, solved, survival
from analysis.tables.columns import spent_flops
from analysis.tables.probe import SOLVED
from analysis.tables.words import count, metric_better

Metrics = Callable[[str], Sequence[Mapping[str, Any]]]

TRAIN_LOSS: Final = "train_loss_nats"
MOST_DOTS: Final = 400
MOST_POINTS: Final = 240
_MIN_VALIDATIONS: Final = 3
_SHOWN_FROM: Final = 0.15


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


@final
@dataclass(frozen=True, kw_only=True)
class Curves:
    """The loss of rows against training tokens; `shown` is its range after the fall at the beginning.

    `rows` are the places of the rows among those of the request, with their curves. `not_drawn` counts rows beyond
    the best.
    """

    metric: str
    rows: tuple[tuple[int, Group, Curve], ...]
    shown: tuple[float, float]
    not_drawn: int

    @property
    def several_seeds(self) -> bool:
        return max(curve.n for _, _, curve in self.rows) > 1


def curves(
    results: Results, metrics: Callable[[Sequence[str]], Metrics], wanted: Callable[[Group], bool] = lambda _: True
) -> Curves | None:
    """Of validation where every run was validated often enough, else of training; None where no run has any.

    `metrics` gives a reader of the metric lines of these runs.
    """
    every = [(look, group) for look, group in best_first(results, VAL_LOSS) if wanted(group)]
    shown = every[:MOST_LINES]
    ids = [cell.run_id for _, group in shown for cell in group.done if cell.run_id is not None]
    read = metrics(ids)
    lines = {run_id: read(run_id) for run_id in ids}
    validated = [sum(is_number(line.get(VAL_LOSS)) for line in of_run) for of_run in lines.values()]
    metric = VAL_LOSS if validated and min(validated) >= _MIN_VALIDATIONS else TRAIN_LOSS
    made = [(look, group, curve_of(group, lines, metric)) for look, group in sorted(shown, key=lambda pair: pair[0])]
    drawn = tuple((look, group, curve) for look, group, curve in made if curve is not None)
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
    return Curves(metric=metric, rows=drawn, shown=(min(seen), max(seen)), not_drawn=len(every) - len(shown))


def curve_of(group: Group, lines: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> Curve | None:
    """The curve of a row, thinned out evenly where it has very many positions; None where there is none."""
    runs = [
        {float(line["tokens"]): float(line[metric]) for line in lines[cell.run_id] if is_number(line.get(metric))}
        for cell in group.done
        if cell.run_id is not None
    ]
    runs = [run for run in runs if run]
    if not runs:
        return None
    shared = sorted(set(runs[0]).intersection(*runs[1:]))
    if len(shared) > MOST_POINTS:
        last = len(shared) - 1
        shared = [shared[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
    return over_seeds(shared, [[run[x] for x in shared] for run in runs])


def over_seeds(x: Sequence[float], runs: Sequence[Sequence[float]]) -> Curve | None:
    """Mean and range at each x of the values of each run there; None without any."""
    if not x or not runs:
        return None
    values = list(zip(*runs, strict=True))
    return Curve(
        x=tuple(x),
        mean=tuple(map(fmean, values)),
        low=tuple(map(min, values)),
        high=tuple(map(max, values)),
        n=len(runs),
    )


# --- survival -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Steps:
    """The share of seeds of a row that have not solved the task yet, from each time on."""

    look: int
    label: str
    times: tuple[float, ...]
    shares: tuple[float, ...]
    censored: tuple[tuple[float, float], ...]
    n: int
    note: str


def survivals(results: Results, wanted: Callable[[Group], bool] = lambda _: True) -> tuple[Steps, ...]:
    """Kaplan-Meier steps, a row each, from the start to the last step observed; rows without results are left out."""
    found = []
    for look, group in enumerate(results.groups):
        curve = survival(group) if wanted(group) else None
        if curve is None:
            continue
        times = [0.0, *(point.time for point in curve.points)]
        shares = [1.0, *(point.survival for point in curve.points)]
        if times[-1] < curve.last:
            times, shares = [*times, curve.last], [*shares, shares[-1]]
        proportion = solved(group)
        found.append(
            Steps(
                look=look,
                label=group.label,
                times=tuple(times),
                shares=tuple(shares),
                censored=tuple((time, curve.at(time)) for time in curve.censored),
                n=curve.n,
                note="" if proportion is None else f"{proportion.k}/{proportion.n} solved",
            )
        )
    return tuple(found)


# --- final values -------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class FinalValues:
    """A row's final values, and their mean with its interval as in the table."""

    look: int
    label: str
    mean: stats.Estimate
    values: tuple[float, ...]


def finals(results: Results, metric: str, wanted: Callable[[Group], bool] = lambda _: True) -> tuple[FinalValues, ...]:
    """The rows that have a value, the best first.

    The spread is pooled over every row of the request, as in its table, whichever are wanted.
    """
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    rows = []
    for look, group in best_first(results, metric):
        values = group.numbers(metric)
        mean = stats.estimate(values, pooling)
        if mean is not None and wanted(group):
            rows.append(FinalValues(look=look, label=group.label, mean=mean, values=tuple(values)))
    return tuple(rows)


# --- against cost -------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class CostAxis:
    """What quality may be set against. `name` is how a user asks for it."""

    key: str
    name: str
    label: str
    better: Better
    format: Format
    is_measured: bool = False


COST_AXES: Final = (
    CostAxis(
        key="paper_train_flops",
        name="flops",
        label="FLOPs spent on a run (paper convention)",
        better="lower",
        format="flops",
    ),
    CostAxis(
        key="tokens_per_s",
        name="train-speed",
        label="training tokens/s",
        better="higher",
        format="number",
        is_measured=True,
    ),
    CostAxis(
        key="wall_s", name="time", label="wall time of a run (s)", better="lower", format="number", is_measured=True
    ),
    CostAxis(
        key="non_embedding_params",
        name="params",
        label="parameters without embedding",
        better="lower",
        format="tokens",
    ),
    CostAxis(
        key="paper_cache_bytes",
        name="cache",
        label="cache (bytes, paper convention)",
        better="lower",
        format="bytes",
    ),
    CostAxis(
        key=str(MEAN_THROUGHPUT.recorded),
        name="decode-speed",
        label="decoding tokens/s",
        better="higher",
        format="number",
        is_measured=True,
    ),
)


@final
@dataclass(frozen=True, kw_only=True)
class Quality:
    """A row in both: its place on the axis, and its quality with the interval."""

    look: int
    label: str
    n: int
    x: float
    y: float
    low: float | None
    high: float | None


@final
@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """Quality against one axis: a point a row, and the places of those on the Pareto front, in the order of x.

    `not_drawn` counts rows off the front beyond the best.
    """

    axis: CostAxis
    points: tuple[Quality, ...]
    front: tuple[int, ...]
    not_drawn: int


def quality_better(metric: str) -> Better | None:
    """Which way is good; None where that is not known."""
    return "higher" if metric == SOLVED else metric_better(metric)


def quality_label(metric: str) -> str:
    return "share of seeds that solved the task" if metric == SOLVED else metric_header(metric)


def tradeoffs(results: Results, metric: str, wanted: Callable[[Group], bool] = lambda _: True) -> tuple[Tradeoff, ...]:
    """Quality against cost or speed, one for each axis on which rows differ; none where no way is known to be good."""
    better = quality_better(metric)
    if better is None:
        return ()
    quality = _quality(results, metric)
    made = (_tradeoff(results, axis, quality, better, wanted) for axis in COST_AXES)
    return tuple(one for one in made if one is not None)


def _quality(results: Results, metric: str) -> list[tuple[float, float | None, float | None, int] | None]:
    """Mean, interval and n of each row; None where there is no value."""
    if metric == SOLVED:
        found = [solved(group) for group in results.groups]
        return [None if p is None or not p.n else (p.k / p.n, p.low, p.high, p.n) for p in found]
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    means = [stats.estimate(group.numbers(metric), pooling) for group in results.groups]
    return [None if mean is None else (mean.mean, mean.low, mean.high, mean.n) for mean in means]


def _tradeoff(
    results: Results,
    axis: CostAxis,
    quality: Sequence[tuple[float, float | None, float | None, int] | None],
    better: Better,
    wanted: Callable[[Group], bool],
) -> Tradeoff | None:
    points = []
    for look, (group, found) in enumerate(zip(results.groups, quality, strict=True)):
        x = _place(results, axis, group) if wanted(group) else None
        if found is None or x is None:
            continue
        y, low, high, n = found
        points.append(
            Quality(
                look=look,
                label=group.label,
                n=n,
                x=rounded(x),
                y=rounded(y),
                low=None if low is None else rounded(low),
                high=None if high is None else rounded(high),
            )
        )
    if len({point.x for point in points}) < 2:
        return None
    front = pareto_front([(p.x, p.y) for p in points], x_better=axis.better, y_better=better)
    every = len(points)
    if len(points) > MOST_DOTS:
        sign = 1 if better == "lower" else -1
        on_front = set(front)
        order = sorted(range(len(points)), key=lambda i: (i not in on_front, sign * points[i].y))
        kept = sorted(order[: max(MOST_DOTS, len(front))])
        front = [kept.index(i) for i in front]
        points = [points[i] for i in kept]
    return Tradeoff(axis=axis, points=tuple(points), front=tuple(front), not_drawn=every - len(points))


def _place(results: Results, axis: CostAxis, group: Group) -> float | None:
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


# --- in words -----------------------------------------------------------------------------------


def best_first(results: Results, metric: str) -> list[tuple[int, Group]]:
    """The rows with their places, the best in the metric first, those without a value last; as they are where which
    way is good is not known."""
    better = metric_better(metric)
    sign = -1.0 if better == "higher" else 1.0

    def key(pair: tuple[int, Group]) -> float:
        values = pair[1].numbers(metric)
        return sign * fmean(values) if values else math.inf

    rows = list(enumerate(results.groups))
    return rows if better is None else sorted(rows, key=key)


def not_drawn_line(n: int) -> str:
    return f"Only the best {MOST_LINES} rows are drawn; {n:,} more are in the table." if n > 0 else ""


def machines_line(results: Results) -> str:
    """Where runs were made on machines of several kinds, their times do not compare."""
    machines = {(c.provenance.get("host"), c.provenance.get("device")) for c in results.cells if c.final}
    return "" if len(machines) < 2 else "The runs were made on several machines or devices: times do not compare."


def left_out_line(results: Results) -> str:
    left_out = sum(not cell.final or cell.diverged for cell in results.cells)
    return f"Not drawn: {count(left_out, 'run')} that diverged or have no result." if left_out else ""


FRONT_WORDS: Final = "rows to which no other is better in one of the two and as good in the other, by their means"
OVERLAP_LINE: Final = "Rows whose intervals overlap may not be told apart: see the table's marks."


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rounded(value: float) -> float:
    """Six digits, which are more than can be seen."""
    return float(f"{value:.6g}")
