"""Figures of any request, by what its runs have recorded: each kind makes a `Picture`, or says what is missing."""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, final

from analysis import stats
from analysis.claims.parts import TRAINING_MEMORY, TRAINING_SPEED
from analysis.claims.source import device_of
from analysis.claims.unequal import Timed, unequal_twins
from analysis.figures.numbers import (
    FRONT_WORDS,
    MOST_DOTS,
    OVERLAP_LINE,
    TRAIN_LOSS,
    Curve,
    Metrics,
    curves,
    finals,
    left_out_line,
    machines_line,
    not_drawn_line,
    over_seeds,
    pareto_front,
    quality_better,
    quality_label,
    survivals,
    tradeoffs,
)
from analysis.figures.picture import (
    MOST_LINES,
    Axis,
    Better,
    HeatMap,
    Interval,
    Intervals,
    Line,
    Lines,
    Picture,
    Point,
    Points,
    Rule,
)
from analysis.figures.recorded import (
    DECODE_SPEED,
    GIVEN_BY,
    NEEDLE_ACCURACY,
    POSITION_LOSSES,
    POSITIONS,
    WEIGHT_BLOCKS,
    WEIGHTS,
    Series,
    decode_speeds,
    needle_of,
    series_of,
)
from analysis.load import CellResult, Group, Results
from analysis.reference.compare import EQUAL_FLOPS, value_of
from analysis.tables import VAL_LOSS, metric_header, metric_of, report_caption, settings_line, title_of
from analysis.tables.probe import SOLVED
from analysis.tables.words import count, listed
from hybrid.cost import paper_block_cache_bytes, run_cost
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError, ModelSpec

BAND: Final = "Mean over the seeds of a row; the band is from the least to the greatest."
INTERVAL: Final = "the mean with its 95% interval, computed as in the table"
FRONT: Final = f"On the grey steps: {FRONT_WORDS}."
MIB: Final = 2**20
_PLACED: Final = re.compile(r"(?P<ratio>\d+:\d+) (?:at (?P<at>\d+)|(?P<where>[a-z]+))")
_WHERE: Final = ("front", "cluster", "scatter", "middle", "sandwich", "end")


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a figure is asked for with: a metric, the axis of cost, the rows (patterns, as in a shell; none: all)."""

    metric: str | None = None
    cost: str | None = None
    rows: tuple[str, ...] = ()

    def wanted(self, results: Results) -> Callable[[Group], bool]:
        """Raises ConfigError for a pattern that no row of the results fits."""
        labels = [group.label for group in results.groups]
        chosen = set(chosen_rows(labels, self.rows))
        return lambda group: group.label in chosen


Reader = Callable[[Sequence[str]], Metrics]
Maker = Callable[[Results, Reader, Asked], Picture]


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
    panels: Sequence[object],
    widths: tuple[float, ...] = (1.0,),
) -> Picture:
    """With the title and the caption that every figure of the request has."""
    caption = (*report_caption(results), settings_line(results), *how_to_read)
    return Picture(
        name=name,
        title=title_of(results),
        caption=tuple(filter(None, caption)),
        panels=tuple(panels),  # type: ignore[arg-type]
        widths=widths,
    )


def _nothing(results: Results, what: str, metric: str | None = None) -> ConfigError:
    """Why there is nothing to draw: no run has a result yet, or what would record it."""
    where = " ".join(("request =", results.sweep or "latest", *results.overrides))
    if not any(group.done for group in results.groups):
        return ConfigError(f"{where}: no run is done yet, so there is nothing to draw")
    return ConfigError(f"{where}: no run has recorded {what}; {GIVEN_BY[metric] if metric else 'there is no picture'}")


# --- losses -------------------------------------------------------------------------------------


def curves_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Loss against training tokens; beside it the final loss of each row with its interval."""
    wanted = asked.wanted(results)
    found = curves(results, read, wanted)
    if found is None:
        raise _nothing(results, "a loss while it trained")
    words = "validation" if found.metric == VAL_LOSS else "training"
    final_metric = VAL_LOSS if any(group.numbers(VAL_LOSS) for group in results.groups) else TRAIN_LOSS
    pooling = stats.pool([group.numbers(final_metric) for group in results.groups])
    drawn = {look for look, _, _ in found.rows}
    rows = [
        _interval(f"{group.label} (n = {len(group.numbers(final_metric))})", look, group.numbers(final_metric), pooling)
        for look, group in enumerate(results.groups)
        if wanted(group) and (look in drawn or not group.numbers(VAL_LOSS))
    ][:MOST_LINES]
    lines = Lines(
        x=Axis(label="training tokens", format="tokens"),
        y=Axis(label=f"{words} loss (nats per token)", shown=found.shown),
        lines=tuple(_line(look, group.label, curve) for look, group, curve in found.rows),
        names="beside",
        points=max(len(curve.x) for _, _, curve in found.rows) <= 8,
    )
    finals_panel = Intervals(x=Axis(label=f"final {metric_header(final_metric)}"), rows=tuple(rows))
    how = [
        f"Left: {BAND[0].lower()}{BAND[1:]}" if found.several_seeds else "",
        f"Right: a dot a seed; {INTERVAL}."
        if any(row.low is not None for row in rows)
        else "One seed a row: no interval.",
        left_out_line(results),
        not_drawn_line(found.not_drawn),
    ]
    return picture(results, "curves", how, (lines, finals_panel), widths=(1.6, 1.0))


def survival_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Share of seeds that have not solved the task yet against training steps: Kaplan-Meier steps, a line a row."""
    found = survivals(results, asked.wanted(results))
    if not results.is_probe:
        raise ConfigError(
            f"--kind survival: {results.sweep} is no probe: its runs have no stop rule; expected another kind"
        )
    if not found:
        raise _nothing(results, "when it solved its task")
    lines = [
        Line(
            label=one.label,
            look=one.look,
            n=one.n,
            x=one.times,
            y=one.shares,
            marks=one.censored,
            note=one.note,
        )
        for one in found[:MOST_LINES]
    ]
    how = [
        "Kaplan-Meier over seeds; | marks seeds unsolved when their run ended (censored).",
        "Lines are drawn a point or two apart so that equal ones can be told apart." if len(lines) > 1 else "",
        not_drawn_line(len(found) - MOST_LINES),
        _no_result_line(results),
    ]
    panel = Lines(
        x=Axis(label="training steps", format="whole"),
        y=Axis(label="seeds not yet solved", format="percent", shown=(0.0, 1.0)),
        lines=tuple(lines),
        names="legend",
        steps=True,
    )
    return picture(results, "survival", how, (panel,))


def final_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Every seed, the mean of a row, and its interval as the table has it; the best row at the top."""
    metric = metric_of(results, asked.metric)
    if metric == SOLVED:
        raise ConfigError(
            "--kind final: seeds solved have no spread between seeds; expected --metric with it, or survival"
        )
    rows, not_drawn = finals(results, metric, asked.wanted(results))
    if not rows:
        raise _nothing(results, f"a finite {metric}")
    how = [
        f"A dot a seed; {INTERVAL}."
        if any(row.mean.low is not None for row in rows)
        else "One seed a row: no interval.",
        "Intervals that overlap may still be told apart, and the other way round: see the table's marks."
        if any(row.mean.low is not None for row in rows)
        else "",
        left_out_line(results),
        not_drawn_line(not_drawn),
    ]
    panel = Intervals(
        x=Axis(label=f"final {metric_header(metric)}", better=quality_better(metric)),
        rows=tuple(
            Interval(
                label=f"{row.label} (n = {row.mean.n})",
                look=row.look,
                n=row.mean.n,
                mean=row.mean.mean,
                low=row.mean.low,
                high=row.mean.high,
                values=row.values,
            )
            for row in rows
        ),
    )
    return picture(results, "final", how, (panel,))


# --- against cost -------------------------------------------------------------------------------


def pareto_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Quality against one measure of cost or speed, with the Pareto front."""
    metric = metric_of(results, asked.metric)
    better = quality_better(metric)
    if better is None:
        raise ConfigError(f"--metric {metric}: which way is good is not known, so that there is no front")
    choices = {choice.axis.name: choice for choice in tradeoffs(results, metric, asked.wanted(results))}
    if not choices:
        if not any(group.numbers(metric) for group in results.groups):
            raise _nothing(results, f"a finite {metric}")
        raise ConfigError(
            f"request = {results.sweep}: no two rows with a result differ in what they cost or how fast they are: "
            "expected --kind final"
        )
    if asked.cost is not None and asked.cost not in choices:
        raise ConfigError(
            f"--cost {asked.cost}: rows do not differ in it, or it is not recorded{did_you_mean(asked.cost, choices)}"
        )
    chosen = choices[asked.cost] if asked.cost is not None else next(iter(choices.values()))
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
        f"{FRONT} {OVERLAP_LINE}",
        f"Bars: 95% intervals, as in the table; n = {_range([point.n for point in panel.points])} seeds a row."
        if bars
        else "One seed a row: no interval.",
        f"Of the rows off the line only the best are drawn, {MOST_DOTS} in all." if chosen.not_drawn else "",
        machines_line(results) if chosen.axis.is_measured else "",
        _no_result_line(results),
    ]
    return picture(results, "pareto", how, (panel,))


def quality_throughput_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Quality against decoding speed, averaged over the lengths measured; rows of one kind are joined (Figure 1b)."""
    metric = metric_of(results, asked.metric)
    better = quality_better(metric)
    wanted = asked.wanted(results)
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
        raise _nothing(results, f"{metric} and a decoding speed", DECODE_SPEED)
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
    how = [
        f"{FRONT} {OVERLAP_LINE}",
        "Vertical bars: 95% intervals, as in the table; horizontal ones: from the slowest seed to the fastest."
        if any(point.low is not None for point in shown)
        else "One seed a row: no interval.",
        unequal_line([timed for group in results.groups if (timed := _timed(group)) is not None]),
        machines_line(results),
        _no_result_line(results),
    ]
    return picture(
        results, "quality-throughput", how, (quality_throughput_panel(shown, quality_label(metric), better),)
    )


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


# --- by length ----------------------------------------------------------------------------------


def throughput_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Decoding speed against the total length (Figure 3a)."""
    wanted = asked.wanted(results)
    found = _by_place(results, wanted, decode_speeds)
    if not found:
        raise _nothing(results, "a decoding speed by length", DECODE_SPEED)
    lines = tuple(_line(look, group.label, curve) for look, group, curve in found[:MOST_LINES])
    timed = [one for group in results.groups if (one := _timed(group)) is not None]
    how = [
        _band_line([curve for _, _, curve in found]),
        unequal_line(timed),
        machines_line(results),
        not_drawn_line(len(found) - MOST_LINES),
        _without_line(results, wanted, [group for _, group, _ in found], "decoding speed"),
    ]
    return picture(results, "throughput", how, (throughput_panel(lines),))


def throughput_panel(lines: Sequence[Line]) -> Lines:
    return Lines(
        x=Axis(label="total length (tokens)", format="whole", log=True, powers=True),
        y=Axis(label="decoding tokens/s", format="number", log=True, better="higher"),
        lines=tuple(lines),
        points=True,
    )


def unequal_line(timed: Sequence[Timed]) -> str:
    """What a reader must know of throughputs that compare implementations; empty where none is found out."""
    twins = unequal_twins(timed)
    if twins is None:
        return ""
    return f"Throughputs are those of the implementations measured, which are unequal: {twins}."


def cache_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Decoding cache against the length, by the formulas of `hybrid.cost` (Figure 3b): needs no finished run."""
    wanted = asked.wanted(results)
    specs = [(look, g.label, g.specs[0]) for look, g in enumerate(results.groups) if g.specs and wanted(g)]
    if not specs:
        raise ConfigError(f"request = {results.sweep}: no run has been tried yet, so its models are not known")
    usual = max(spec.seq_len for _, _, spec in specs)
    lengths = [usual * 2**i // 4 for i in range(5) if usual * 2**i // 4 >= 1]
    lines = [cache_line(look, label, spec.model, lengths) for look, label, spec in specs]
    alike, shown = _merged(lines)
    how = [
        "Computed from the models, in the paper's convention: one sequence, bf16.",
        alike,
        not_drawn_line(len(shown) - MOST_LINES),
    ]
    rules = (Rule(value=usual, label="training length"),) if len({spec.seq_len for _, _, spec in specs}) == 1 else ()
    return picture(results, "cache", how, (cache_panel(shown[:MOST_LINES], rules),))


def cache_line(look: int, label: str, model: ModelSpec, lengths: Sequence[int]) -> Line:
    n_bytes = [
        sum(paper_block_cache_bytes(block, model.d_model, model.meta_tokens + length) for block in model.blocks)
        for length in lengths
    ]
    return Line(label=label, look=look, n=1, x=tuple(map(float, lengths)), y=tuple(n / MIB for n in n_bytes))


def cache_panel(lines: Sequence[Line], rules: tuple[Rule, ...] = ()) -> Lines:
    return Lines(
        x=Axis(label="length (tokens)", format="whole", log=True, powers=True),
        y=Axis(label="cache of a sequence (MiB)", log=True, better="lower"),
        lines=tuple(lines),
        points=True,
        upright=rules,
    )


def _merged(lines: Sequence[Line]) -> tuple[str, list[Line]]:
    """Of rows with one and the same line only the first is drawn: what to say of it, and those."""
    kept: dict[tuple[float, ...], Line] = {}
    same: dict[str, list[str]] = {}
    for line in lines:
        if line.y in kept:
            same.setdefault(kept[line.y].label, []).append(line.label)
        else:
            kept[line.y] = line
    words = "; ".join(f"{first} stands for {listed(others)} too" for first, others in same.items())
    return (f"Rows with one and the same line: {words}." if words else ""), list(kept.values())


def position_loss_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Loss against the position in a long document (Figure 3c)."""
    wanted = asked.wanted(results)
    found = _by_place(results, wanted, lambda cell: series_of(cell, POSITIONS, POSITION_LOSSES))
    if not found:
        raise _nothing(results, "losses by position", POSITION_LOSSES)
    lines = tuple(_line(look, group.label, curve) for look, group, curve in found[:MOST_LINES])
    how = [
        _band_line([curve for _, _, curve in found]),
        not_drawn_line(len(found) - MOST_LINES),
        _without_line(results, wanted, [group for _, group, _ in found], "loss by position"),
    ]
    panel = Lines(
        x=Axis(label="position (tokens)", format="whole"),
        y=Axis(label="loss (nats per token)", better="lower"),
        lines=lines,
        upright=_training_length(results),
    )
    return picture(results, "position-loss", how, (panel,))


def needle_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Needles found by depth and length, a heat map a row (Figure 4)."""
    wanted = asked.wanted(results)
    maps = []
    for group in results.groups:
        grids = [grid for cell in group.done if (grid := needle_of(cell)) is not None] if wanted(group) else []
        if not grids:
            continue
        same = [grid for grid in grids if (grid.lengths, grid.depths) == (grids[0].lengths, grids[0].depths)]
        maps.append(
            (
                group,
                HeatMap(
                    title=f"{group.label} (n = {len(same)})",
                    x=Axis(label="context length (tokens)", format="whole"),
                    y=Axis(label="depth of the needle (%)"),
                    at_x=same[0].lengths,
                    at_y=same[0].depths,
                    values=tuple(
                        tuple(_mean([grid.accuracy[i][j] for grid in same]) for j in range(len(same[0].lengths)))
                        for i in range(len(same[0].depths))
                    ),
                    colour=Axis(label="needles found (%)", better="higher"),
                    low=0.0,
                    high=100.0,
                    upright=_training_length(results),
                ),
            )
        )
    if not maps:
        raise _nothing(results, "needles found", NEEDLE_ACCURACY)
    shown = maps[:12]
    several = max(len(group.done) for group, _ in shown) > 1
    how = [
        "Mean over the seeds of a row." if several else "One seed a row.",
        "Crossed out: not recorded." if any(v is None for _, m in shown for row in m.values for v in row) else "",
        f"{len(maps) - 12} more rows are not drawn: choose with --rows." if len(maps) > 12 else "",
        _without_line(results, wanted, [group for group, _ in maps], "needles"),
    ]
    widths = (1.0,) * (1 if len(shown) == 1 else 2 if len(shown) in (2, 4) else 3)
    return picture(results, "needle", how, tuple(one for _, one in shown), widths=widths)


def weights_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Attention's weight in every gated intra-hybrid block, by layer (Figure 8)."""
    wanted = asked.wanted(results)
    found = _by_place(results, wanted, lambda cell: series_of(cell, WEIGHT_BLOCKS, WEIGHTS))
    if not found:
        raise _nothing(results, "the weights of its modules", WEIGHTS)
    lines = tuple(_line(look, group.label, curve) for look, group, curve in found[:MOST_LINES])
    how = [
        "The gate g of a block, a mean over held-out tokens: attention's weight, Mamba's being 1 - g.",
        _band_line([curve for _, _, curve in found]),
        not_drawn_line(len(found) - MOST_LINES),
        _without_line(results, wanted, [group for _, group, _ in found], "weights: only gated blocks have any"),
    ]
    panel = Lines(
        x=Axis(label="layer", format="whole"),
        y=Axis(label="attention's weight", shown=(0.0, 1.0)),
        lines=lines,
        points=True,
        ticks=tuple((x, f"{x:.0f}") for x in sorted({x for line in lines for x in line.x})),
        across=(Rule(value=0.5, label="equal"),),
    )
    return picture(results, "weights", how, (panel,))


# --- training cost ------------------------------------------------------------------------------


def training_cost_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """FLOPs of a sample, training speed, peak memory (Figure 2): what is measured, of one kind of device alone."""
    wanted = asked.wanted(results)
    groups = [(look, group) for look, group in enumerate(results.groups) if wanted(group) and group.specs][:MOST_LINES]
    done = [cell for _, group in groups for cell in group.done]
    if not done:
        raise _nothing(results, "what training takes")
    device, n_there = Counter(map(device_of, done)).most_common(1)[0]
    panels = [flops_panel([(look, group.label, group.specs[0]) for look, group in groups])]
    measured: tuple[tuple[str, str, Axis], ...] = (
        (str(TRAINING_SPEED.recorded), "training tokens/s", Axis(label="training tokens/s", better="higher")),
        (
            str(TRAINING_MEMORY.recorded),
            "peak memory",
            Axis(label="peak memory (bytes)", format="bytes", better="lower"),
        ),
    )
    missing = []
    for key, words, axis in measured:
        values = [[v for c in group.done if device_of(c) == device and (v := _taken(c, key))] for _, group in groups]
        pooling = stats.pool(values)
        if any(values):
            rows = [
                _interval(f"{group.label} (n = {len(found)})", look, found, pooling)
                for (look, group), found in zip(groups, values, strict=True)
            ]
            panels.append(Intervals(x=axis, rows=tuple(rows)))
        else:
            missing.append(words)
    others = len(done) - n_there
    how = [
        "FLOPs follow from the models: paper convention, embedding and head excluded.",
        f"Measured on {device}; a dot a run, the mean with its 95% interval." if len(missing) < len(measured) else "",
        f"Not recorded: {' and '.join(missing)}." if missing else "",
        f"Not drawn: {count(others, 'run')} on other devices, which do not compare." if others else "",
        _no_result_line(results),
    ]
    return picture(results, "training-cost", how, panels, widths=(1.0,) * len(panels))


def flops_panel(models: Sequence[tuple[int, str, object]]) -> Intervals:
    rows = []
    for look, label, spec in models:
        flops = float(run_cost(spec).paper_train_flops_per_sample)  # type: ignore[arg-type]
        rows.append(Interval(label=label, look=look, n=1, mean=flops, low=None, high=None, values=()))
    return Intervals(x=Axis(label="training FLOPs of a sample", format="flops", better="lower"), rows=tuple(rows))


def _taken(cell: CellResult, key: str) -> float | None:
    value = cell.metrics.get(key, cell.provenance.get(key))
    return float(value) if isinstance(value, int | float) and 0 < value < float("inf") else None


# --- placements and dimensions ------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Placed:
    """A value of a row named as `1:12 at 7` or `1:3 front`: its ratio, and where its blocks of the first kind are."""

    ratio: str
    at: int | None
    where: str | None
    mean: float
    low: float | None
    high: float | None
    n: int


def placed(row: str, mean: stats.Estimate) -> Placed | None:
    match = _PLACED.fullmatch(row)
    if match is None:
        return None
    return Placed(
        ratio=match["ratio"],
        at=int(match["at"]) if match["at"] else None,
        where=match["where"],
        mean=mean.mean,
        low=mean.low,
        high=mean.high,
        n=mean.n,
    )


def positions_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Quality by where blocks stand: one block at each position; several in front, in the middle, at the end."""
    metric, found = _estimates(results, asked)
    rows = [one for group, mean in found if (one := placed(group.row, mean)) is not None]
    if not rows:
        raise ConfigError(
            f"--kind positions: no row of {results.sweep} is named as those of the sweep placement are, "
            "such as `1:12 at 7` or `1:3 front`"
        )
    panels = positions_panels(rows, quality_label(metric), quality_better(metric), size="")
    how = [_estimates_line([mean for _, mean in found]), left_out_line(results)]
    return picture(results, "positions", how, panels, widths=(1.0,) * len(panels))


def positions_panels(
    rows: Sequence[Placed],
    label: str,
    better: Better | None,
    *,
    size: str,
    noise: float | None = None,
    across: tuple[Rule, ...] = (),
) -> list[Lines]:
    """A panel for rows with one block at a position, and one for rows with several; those of which there are any."""
    panels = []
    single = sorted((row for row in rows if row.at is not None), key=lambda row: row.at or 0)
    several = [row for row in rows if row.where is not None]
    prefix = f"{size}: " if size else ""
    y = Axis(label=label, better=better)
    if single:
        lines = []
        for look, ratio in enumerate(dict.fromkeys(row.ratio for row in single)):
            mine = [row for row in single if row.ratio == ratio]
            lines.append(_placed_line(look, ratio, [float(row.at or 0) for row in mine], mine))
        panels.append(
            Lines(
                title=f"{prefix}one block, by its position" if size or several else "",
                x=Axis(label="position of the block", format="whole"),
                y=y,
                lines=tuple(lines),
                points=True,
                spread="bars",
                names="ends" if len(lines) > 1 else "beside",
                ticks=tuple((float(at), str(at)) for at in sorted({row.at or 0 for row in single})),
                across=across,
                noise=noise,
            )
        )
    if several:
        names = sorted({str(row.where) for row in several}, key=lambda w: _WHERE.index(w) if w in _WHERE else 99)
        lines = []
        for look, ratio in enumerate(dict.fromkeys(row.ratio for row in several)):
            mine = sorted((row for row in several if row.ratio == ratio), key=lambda row: names.index(str(row.where)))
            lines.append(_placed_line(look + 1, ratio, [float(names.index(str(row.where))) for row in mine], mine))
        panels.append(
            Lines(
                title=f"{prefix}several blocks, by ratio" if size or single else "",
                x=Axis(label="placement"),
                y=y,
                lines=tuple(lines),
                points=True,
                spread="bars",
                ticks=tuple((float(i), name) for i, name in enumerate(names)),
                across=across,
                noise=noise,
            )
        )
    return panels


def _placed_line(look: int, ratio: str, x: Sequence[float], rows: Sequence[Placed]) -> Line:
    bars = all(row.low is not None for row in rows)
    return Line(
        label=ratio,
        look=look,
        n=max(row.n for row in rows),
        x=tuple(x),
        y=tuple(row.mean for row in rows),
        low=tuple(row.low or 0.0 for row in rows) if bars else (),
        high=tuple(row.high or 0.0 for row in rows) if bars else (),
    )


def dimensions_picture(results: Results, read: Reader, asked: Asked) -> Picture:
    """Quality by how much of the width of intra-hybrid blocks is attention's."""
    metric, found = _estimates(results, asked)
    shares = []
    for group, mean in found:
        try:
            spec = group.specs[0]
            cost = run_cost(spec)
            d_qk, d_ssm = (float(value_of(key, spec, cost)) for key in ("d_trans", "d_mamba"))
        except ConfigError as error:
            raise ConfigError(f"--kind dimensions: row {group.label}: {'; '.join(error.problems)}") from None
        shares.append((group.row, d_qk / (d_qk + d_ssm), mean))
    panel = dimensions_panel(shares, quality_label(metric), quality_better(metric), title="")
    how = [DIMENSIONS_LINE, _estimates_line([mean for _, mean in found]), left_out_line(results)]
    return picture(results, "dimensions", how, (panel,))


DIMENSIONS_LINE: Final = (
    "Attention's share: of its query-key width and Mamba's width before expansion, together. "
    "0:1 is Mamba alone, 1:0 attention alone."
)


def dimensions_panel(
    shares: Sequence[tuple[str, float, stats.Estimate]],
    label: str,
    better: Better | None,
    *,
    title: str,
    noise: float | None = None,
) -> Lines:
    ordered = sorted(shares, key=lambda one: one[1])
    rows = [
        Placed(ratio=name, at=None, where=None, mean=mean.mean, low=mean.low, high=mean.high, n=mean.n)
        for name, _, mean in ordered
    ]
    return Lines(
        title=title,
        x=Axis(label="attention's share of the width, and the ratio"),
        y=Axis(label=label, better=better),
        lines=(_placed_line(0, "", [share for _, share, _ in ordered], rows),),
        points=True,
        spread="bars",
        names="beside",
        ticks=tuple((share, f"{100 * share:.0f}%\n{name}") for name, share, _ in ordered),
        noise=noise,
    )


def _estimates(results: Results, asked: Asked) -> tuple[str, list[tuple[Group, stats.Estimate]]]:
    """The metric, and its mean with the interval of each wanted row that has any."""
    metric, wanted = metric_of(results, asked.metric), asked.wanted(results)
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    means = [(group, stats.estimate(group.numbers(metric), pooling)) for group in results.groups if wanted(group)]
    found = [(group, mean) for group, mean in means if mean is not None]
    if not found:
        raise _nothing(results, f"a finite {metric}")
    return metric, found


def _estimates_line(means: Sequence[stats.Estimate]) -> str:
    if all(mean.low is None for mean in means):
        return "One seed a row: no interval."
    return f"Means with 95% intervals, computed as in the table; n = {_range([mean.n for mean in means])} seeds a row."


# --- kinds --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Kind:
    what: str
    make: Maker


KINDS: Final[Mapping[str, Kind]] = {
    "curves": Kind(what="loss against training tokens, and the final loss", make=curves_picture),
    "survival": Kind(what="seeds not yet solved against steps (probes)", make=survival_picture),
    "final": Kind(what="a final metric with intervals, a row a line", make=final_picture),
    "pareto": Kind(what="quality against cost or speed, with the front", make=pareto_picture),
    "quality-throughput": Kind(what="quality against decoding speed", make=quality_throughput_picture),
    "training-cost": Kind(what="FLOPs, training speed, memory", make=training_cost_picture),
    "throughput": Kind(what="decoding speed against the length", make=throughput_picture),
    "cache": Kind(what="decoding cache against the length", make=cache_picture),
    "position-loss": Kind(what="loss against the position", make=position_loss_picture),
    "needle": Kind(what="needles found, by depth and length", make=needle_picture),
    "weights": Kind(what="attention's weight by layer (gated blocks)", make=weights_picture),
    "positions": Kind(what="quality by where blocks stand", make=positions_picture),
    "dimensions": Kind(what="quality by attention's share of the width", make=dimensions_picture),
}


def default_kind(results: Results) -> str:
    """What the sweep's report asks for, else survival for probes and curves for others. Raises ConfigError."""
    asked = results.report.get("figure")
    if asked in (None, True):
        return "survival" if results.is_probe else "curves"
    if asked not in KINDS:
        raise ConfigError(f"sweep.report.figure = {asked}: expected the kind of a figure{did_you_mean(asked, KINDS)}")
    return str(asked)


# --- parts --------------------------------------------------------------------------------------


def _line(look: int, label: str, curve: Curve) -> Line:
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


def _interval(label: str, look: int, values: Sequence[float], pooling: stats.Pooling) -> Interval:
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


def _by_place(
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


def _timed(group: Group) -> Timed | None:
    runs = [found for cell in group.done if (found := decode_speeds(cell))]
    if not runs or not group.specs:
        return None
    shared = set(runs[0].x).intersection(*(run.x for run in runs[1:]))
    speeds = {int(x): fmean(dict(zip(run.x, run.y, strict=True))[x] for run in runs) for x in sorted(shared)}
    return Timed(name=group.label, label=group.label, model=group.specs[0].model, tokens_per_s=speeds)


def _training_length(results: Results) -> tuple[Rule, ...]:
    lengths = {spec.seq_len for spec in results.specs}
    return (Rule(value=lengths.pop(), label="training length"),) if len(lengths) == 1 else ()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _band_line(found: Sequence[Curve]) -> str:
    counts = sorted({curve.n for curve in found})
    if counts == [1]:
        return "One seed a row: no spread."
    return f"{BAND} n = {_range(counts)} seeds a row."


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _no_result_line(results: Results) -> str:
    """Runs that are not done; of a probe, diverged ones count, so that only those without a result are missing."""
    missing = sum(not cell.final for cell in results.cells)
    if not results.is_probe:
        return left_out_line(results)
    return f"Not drawn: {count(missing, 'run')} without a result yet." if missing else ""


def _without_line(results: Results, wanted: Callable[[Group], bool], drawn: Sequence[Group], what: str) -> str:
    there = {id(group) for group in drawn}
    missing = [group.label for group in results.groups if wanted(group) and id(group) not in there]
    return f"Not drawn, without {what}: {listed(missing)}." if missing else ""
