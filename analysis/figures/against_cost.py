"""Quality of rows against what they cost, or how fast they are; what training takes."""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Final

from analysis import stats
from analysis.claims.parts import TRAINING_MEMORY, TRAINING_SPEED
from analysis.claims.source import device_of
from analysis.claims.unequal import fractions_of, implementation_bound
from analysis.figures.lengths import timed_of, unequal_line
from analysis.figures.numbers import (
    MOST_DOTS,
    OVERLAP_LINE,
    machines_line,
    pareto_front,
    quality_better,
    quality_label,
    tradeoffs,
)
from analysis.figures.ours import (
    Ours,
    front_line,
    interval_of,
    missing_lines,
    no_result_line,
    nothing_to_draw,
    picture,
    range_text,
)
from analysis.figures.picture import (
    MOST_LINES,
    MOST_NAMED,
    Axis,
    Better,
    Interval,
    Intervals,
    Panel,
    Picture,
    Point,
    Points,
)
from analysis.figures.recorded import DECODE_SPEED, GIVEN_BY, decode_speeds
from analysis.load import CellResult
from analysis.reference.compare import EQUAL_FLOPS
from analysis.tables import metric_of
from analysis.tables.probe import SOLVED
from analysis.tables.words import count
from hybrid.cost import run_cost
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError, RunSpec

_SURELY_NAMED: Final = 8


def pareto_picture(ours: Ours) -> Picture:
    """Quality against one measure of cost or speed, with the Pareto front."""
    results = ours.results
    metric = metric_of(results, ours.asked.metric)
    better = quality_better(metric)
    if better is None:
        raise ConfigError(f"--metric {metric}: which way is good is not known, so that there is no front")
    choices = {choice.axis.name: choice for choice in tradeoffs(results, metric, ours.wanted)}
    if not choices:
        if not any(group.numbers(metric) for group in results.groups):
            raise nothing_to_draw(results, f"a finite {metric}")
        raise ConfigError(
            f"request = {results.sweep}: no two rows with a result differ in what they cost or how fast they are: "
            "expected --kind final"
        )
    cost = ours.asked.cost or next(iter(choices))
    if cost not in choices:
        raise ConfigError(
            f"--cost {cost}: rows do not differ in it, or it is not recorded{did_you_mean(cost, choices)}"
        )
    chosen = choices[cost]
    label = quality_label(metric)
    panel = Points(
        x=Axis(label=chosen.axis.label, format=chosen.axis.format, better=chosen.axis.better),
        y=Axis(label=label, format="percent" if metric == SOLVED else "number", better=better),
        points=tuple(
            Point(label=p.label, family=p.label, look=p.look, n=p.n, x=p.x, y=p.y, low=p.low, high=p.high)
            for p in chosen.points
        ),
        front=chosen.front,
    )
    bars = any(point.low is not None for point in panel.points)
    how = [
        f"{front_line(panel)} {OVERLAP_LINE}",
        f"Bars: 95% intervals, as in the table; n = {range_text([point.n for point in panel.points])} seeds a row."
        if bars
        else "One seed a row: no interval.",
        _named_line(len(panel.points)),
        f"Of the rows off the line only the best are drawn, {MOST_DOTS} in all." if chosen.not_drawn else "",
        machines_line(results) if chosen.axis.is_measured else "",
        *missing_lines(ours, metric, [point.label for point in chosen.points]),
    ]
    return picture(results, "pareto", how, (panel,))


def _named_line(n: int) -> str:
    if n > MOST_NAMED:
        return "Rows off the front are grey dots, without their intervals and names."
    return "Names are left out where there is no room for them." if n > _SURELY_NAMED else ""


def quality_throughput_picture(ours: Ours) -> Picture:
    """Quality against decoding speed, averaged over the lengths measured; rows of one kind are joined (Figure 1b)."""
    results = ours.results
    metric = metric_of(results, ours.asked.metric)
    better = quality_better(metric)
    wanted = ours.wanted
    if better is None or metric == SOLVED:
        raise ConfigError(f"--metric {metric}: expected a metric of which less, or more, is better")
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    points = []
    for group in results.groups:
        speeds = [fmean(found.y) for cell in group.done if (found := decode_speeds(cell))] or group.numbers(
            DECODE_SPEED
        )
        mean = stats.estimate(group.numbers(metric), pooling)
        if mean is not None and speeds and wanted(group):
            points.append((group.label, mean, speeds))
    if not points:
        raise nothing_to_draw(results, f"{metric} and a decoding speed", GIVEN_BY[DECODE_SPEED])
    looks = family_looks([label for label, _, _ in points])
    shown = tuple(
        Point(
            label=within_family(label),
            family=family_of(label),
            look=looks[family_of(label)],
            n=mean.n,
            x=fmean(speeds),
            y=mean.mean,
            low=mean.low,
            high=mean.high,
            x_low=min(speeds) if len(speeds) > 1 else None,
            x_high=max(speeds) if len(speeds) > 1 else None,
        )
        for label, mean, speeds in points
    )
    panel = quality_throughput_panel(shown, quality_label(metric), better)
    how = [
        f"{front_line(panel)} {OVERLAP_LINE}",
        "Vertical bars: 95% intervals, as in the table; horizontal ones: from the slowest seed to the fastest."
        if any(point.low is not None for point in shown)
        else "One seed a row: no interval.",
        unequal_line([timed for group in results.groups if (timed := timed_of(group)) is not None]),
        machines_line(results),
        *missing_lines(ours, metric, [label for label, _, _ in points]),
    ]
    return picture(results, "quality-throughput", how, (panel,))


def quality_throughput_panel(points: Sequence[Point], label: str, better: Better, noise: float | None = None) -> Points:
    """The panel of Figure 1b, whoever's the numbers are."""
    front = pareto_front([(p.x, p.y) for p in points], x_better="higher", y_better=better)
    families = dict.fromkeys(point.family for point in points)
    return Points(
        x=Axis(label="decoding tokens/s, mean over total lengths", log=True, better="higher"),
        y=Axis(label=label, better=better),
        points=tuple(points),
        front=tuple(front),
        joined=tuple(tuple(i for i, point in enumerate(points) if point.family == family) for family in families),
        noise=noise,
    )


def family_of(label: str) -> str:
    """The kind of model that a row such as `Inter-H 1:5 equal FLOPs` is of."""
    return re.sub(r" \d+:\d+$", "", label.removesuffix(EQUAL_FLOPS))


def within_family(label: str) -> str:
    """What tells a row from others of its kind: its ratio, if it has one, else its name."""
    match = re.search(r" (\d+:\d+)$", label.removesuffix(EQUAL_FLOPS))
    return match[1] if match else label.removesuffix(EQUAL_FLOPS)


def family_looks(labels: Sequence[str]) -> dict[str, int]:
    return {family: i for i, family in enumerate(dict.fromkeys(map(family_of, labels)))}


def training_cost_picture(ours: Ours) -> Picture:
    """FLOPs of a sample, training speed, peak memory (Figure 2): what is measured, of one kind of device alone."""
    results = ours.results
    wanted = ours.wanted
    groups = [(look, group) for look, group in enumerate(results.groups) if wanted(group) and group.specs][:MOST_LINES]
    done = [cell for _, group in groups for cell in group.done]
    if not done:
        raise nothing_to_draw(results, "what training takes")
    device, n_there = Counter(map(device_of, done)).most_common(1)[0]
    panels: list[Panel] = [flops_panel([(look, group.label, group.specs[0]) for look, group in groups])]
    measured: tuple[tuple[str, str, Axis], ...] = (
        (str(TRAINING_SPEED.recorded), "training tokens/s", Axis(label="training tokens/s", better="higher")),
        (
            str(TRAINING_MEMORY.recorded),
            "peak memory",
            Axis(label="peak memory (bytes)", format="bytes", better="lower"),
        ),
    )
    missing, counts = [], []
    for key, words, axis in measured:
        values = [[v for c in group.done if device_of(c) == device and (v := _taken(c, key))] for _, group in groups]
        pooling = stats.pool(values)
        if any(values):
            counts += [len(found) for found in values]
            rows = [
                interval_of(group.label, look, found, pooling)
                for (look, group), found in zip(groups, values, strict=True)
            ]
            panels.append(Intervals(x=axis, rows=tuple(rows)))
        else:
            missing.append(words)
    others = len(done) - n_there
    bound = implementation_bound("training", fractions_of([group for _, group in groups], "train_tokens_per_s"))
    how = [
        "FLOPs follow from the models: paper convention, embedding and head excluded.",
        f"Measured on {device}: a dot a run, the mean with its 95% interval; n = {range_text(counts)}."
        if len(missing) < len(measured)
        else "",
        f"Not recorded: {' and '.join(missing)}." if missing else "",
        f"The speeds compare implementations, not architectures; they are {bound}." if bound else "",
        f"Not drawn: {count(others, 'run')} on other devices, which do not compare." if others else "",
        no_result_line(results),
    ]
    return picture(results, "training-cost", how, panels, widths=(1.0,) * len(panels))


def flops_panel(models: Sequence[tuple[int, str, RunSpec]]) -> Intervals:
    rows = []
    for look, label, spec in models:
        flops = float(run_cost(spec).paper_train_flops_per_sample)
        rows.append(Interval(label=label, look=look, n=1, mean=flops, low=None, high=None, values=()))
    return Intervals(x=Axis(label="training FLOPs of a sample", format="flops", better="lower"), rows=tuple(rows))


def _taken(cell: CellResult, key: str) -> float | None:
    value = cell.metrics.get(key, cell.provenance.get(key))
    return float(value) if isinstance(value, int | float) and 0 < value < float("inf") else None
