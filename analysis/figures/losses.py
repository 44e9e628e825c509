"""Losses and other final metrics of a request; what a probe's seeds have solved."""

from dataclasses import replace
from typing import Final

from analysis import stats
from analysis.figures.numbers import (
    TRAIN_LOSS,
    Steps,
    curves,
    finals,
    left_out_line,
    not_drawn_line,
    quality_better,
    survivals,
)
from analysis.figures.ours import (
    BAND,
    INTERVAL,
    Ours,
    interval_of,
    line_of,
    missing_lines,
    no_result_line,
    nothing_to_draw,
    picture,
)
from analysis.figures.picture import MOST_LINES, Axis, Interval, Intervals, Line, Lines, Picture
from analysis.tables import VAL_LOSS, metric_header, metric_of
from analysis.tables.across import axis_across, rows_across, values_across
from analysis.tables.probe import SOLVED
from hybrid.spec import ConfigError

_PANELS_SIDE_BY_SIDE: Final = 2


def curves_picture(ours: Ours) -> Picture:
    """Loss against training tokens; beside it the final loss of each row with its interval."""
    results = ours.results
    wanted = ours.wanted
    found = curves(results, ours.read, wanted)
    if found is None:
        raise nothing_to_draw(results, "a loss while it trained")
    words = "validation" if found.metric == VAL_LOSS else "training"
    final_metric = VAL_LOSS if any(group.numbers(VAL_LOSS) for group in results.groups) else TRAIN_LOSS
    pooling = stats.pool([group.numbers(final_metric) for group in results.groups])
    drawn = {look for look, _, _ in found.rows}
    rows = [
        interval_of(
            f"{group.label} (n = {len(group.numbers(final_metric))})", look, group.numbers(final_metric), pooling
        )
        for look, group in enumerate(results.groups)
        if wanted(group) and (look in drawn or not group.numbers(VAL_LOSS))
    ][:MOST_LINES]
    lines = Lines(
        x=Axis(label="training tokens", format="tokens"),
        y=Axis(label=f"{words} loss (nats per token)", shown=found.shown),
        lines=tuple(line_of(look, group.label, curve) for look, group, curve in found.rows),
        names="beside",
        points=max(len(curve.x) for _, _, curve in found.rows) <= 8,
    )
    finals_panel = Intervals(x=Axis(label=f"final {metric_header(final_metric)}"), rows=tuple(rows))
    how = [
        f"Curves: {BAND[0].lower()}{BAND[1:]}" if found.several_seeds else "",
        f"Final losses: a dot a seed; {INTERVAL}."
        if any(row.low is not None for row in rows)
        else "One seed a row: no interval.",
        left_out_line(results),
        not_drawn_line(found.not_drawn),
    ]
    return picture(results, "curves", how, (lines, finals_panel), widths=(1.6, 1.0))


def survival_picture(ours: Ours) -> Picture:
    """Share of seeds that have not solved the task yet against training steps: Kaplan-Meier steps, a line a row."""
    results = ours.results
    axis = axis_across(results)
    found = {"": survivals(results, ours.wanted)} if axis is None else _survivals_across(ours, axis)
    if not results.is_probe:
        raise ConfigError(
            f"--kind survival: {results.sweep} is no probe: its runs have no stop rule; expected another kind"
        )
    most = max(map(len, found.values()), default=0)
    if not most:
        raise nothing_to_draw(results, "when it solved its task")
    how = [
        "Kaplan-Meier over seeds; | marks seeds unsolved when their run ended (censored).",
        "Lines are drawn a point or two apart so that equal ones can be told apart." if most > 1 else "",
        not_drawn_line(sum(max(0, len(rows) - MOST_LINES) for rows in found.values())),
        no_result_line(results),
    ]
    panels = [
        Lines(
            title=title,
            x=Axis(label="training steps", format="whole"),
            y=Axis(label="seeds not yet solved", format="percent", shown=(0.0, 1.0)),
            lines=tuple(_line(one) for one in rows[:MOST_LINES]),
            names="legend",
            steps=True,
        )
        for title, rows in found.items()
        if rows
    ]
    return picture(results, "survival", how, panels, widths=(1.0,) * min(len(panels), _PANELS_SIDE_BY_SIDE))


def _line(one: Steps) -> Line:
    return Line(label=one.label, look=one.look, n=one.n, x=one.times, y=one.shares, marks=one.censored, note=one.note)


def _survivals_across(ours: Ours, axis: str) -> dict[str, tuple[Steps, ...]]:
    """By the values of an axis; how many seeds solved each is for the table."""
    rows = rows_across(ours.results, axis)
    return {
        value: tuple(
            replace(one, label=row, look=look, note="")
            for look, (row, by_value) in enumerate(rows.items())
            if value in by_value
            for one in survivals(replace(ours.results, groups=(by_value[value],)), ours.wanted)
        )
        for value in values_across(ours.results, axis)
    }


def final_picture(ours: Ours) -> Picture:
    """Every seed, the mean of a row, and its interval as the table has it; the best row at the top."""
    results = ours.results
    metric = metric_of(results, ours.asked.metric)
    if metric == SOLVED:
        raise ConfigError(
            "--kind final: seeds solved have no spread between seeds; expected --metric with it, or survival"
        )
    every = finals(results, metric, ours.wanted)
    rows = every[:MOST_LINES]
    if not rows:
        raise nothing_to_draw(results, f"a finite {metric}")
    how = [
        f"A dot a seed; {INTERVAL}."
        if any(row.mean.low is not None for row in rows)
        else "One seed a row: no interval.",
        "Intervals that overlap may still be told apart, and the other way round: see the table's marks."
        if any(row.mean.low is not None for row in rows)
        else "",
        *missing_lines(ours, metric, [row.label for row in every]),
        not_drawn_line(len(every) - len(rows)),
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
