"""Each kind of panel, drawn."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, assert_never

from analysis.figures.axes import TALL_IN, axis_label, few_ticks, set_format, set_scales, thin_out
from analysis.figures.labels import Box, beside_with_room, within
from analysis.figures.looks import LEGEND_PT, clean, figure_of_axes, ink, look, text_size, wrapped
from analysis.figures.picture import MOST_NAMED, HeatMap, Interval, Intervals, Line, Lines, Panel, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE_HEIGHT: Final = 1.35
_GREY: Final = "#666666"
_GRID: Final = "#dddddd"
_RULE: Final[dict[str, Any]] = {"linewidth": 1.0, "linestyle": (0, (3, 2)), "zorder": 3}
_OFFSET_POINTS: Final = 2.0
MOST_AT_ENDS: Final = 12
_NAME_IN: Final = 1.6
_NOISE_PLACES: Final = tuple((x, at_top) for x in (0.95, 0.05, 0.72, 0.28) for at_top in (True, False))


def named_alike(left: Panel, right: Panel) -> bool:
    """Whether the rows of both are the same ones, so that their names need to stand only once."""
    if not isinstance(left, Intervals) or not isinstance(right, Intervals):
        return False
    return [row.label for row in left.rows] == [row.label for row in right.rows]


def draw_panel(axes: "Axes", panel: Panel, after: list[Callable[[], None]], room_in: float, *, named: bool) -> Any:
    """Draw the panel; what has to wait until the axes have their place is put `after`. `room_in` is about how wide the
    axes will be, `named` that its rows have their names to the left of it. Gives a heat map's mesh.
    """
    axes.set_axisbelow(True)
    if panel.title:
        title = wrapped(figure_of_axes(axes), clean(panel.title), 3.2, 8)
        axes.set_title(title, loc="left", fontsize=8, fontweight="bold")
    match panel:
        case Lines():
            _draw_lines(axes, panel, after, room_in)
        case Intervals():
            _draw_intervals(axes, panel, named, room_in)
        case Points():
            _draw_points(axes, panel, after, room_in)
        case HeatMap():
            return _draw_heat_map(axes, panel, room_in)
        case _ as never:
            assert_never(never)
    return None


def _draw_lines(axes: "Axes", panel: Lines, after: list[Callable[[], None]], room_in: float) -> None:
    from matplotlib.transforms import ScaledTranslation

    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    for i, line in enumerate(panel.lines):
        colour, dashes, marker = look(line.look)
        style: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.4}
        if panel.steps:
            # A little apart, so that equal ones can be told apart.
            shift = ((len(panel.lines) - 1) / 2 - i) * min(_OFFSET_POINTS, 12 / len(panel.lines))
            moved = axes.transData + ScaledTranslation(0, shift / 72, axes.figure.dpi_scale_trans)
            axes.step(line.x, line.y, where="post", transform=moved, **style)
            if line.marks:
                places, heights = zip(*line.marks, strict=True)
                axes.plot(
                    places,
                    heights,
                    linestyle="none",
                    marker="|",
                    markersize=8,
                    markeredgewidth=1.5,
                    color=colour,
                    transform=moved,
                    clip_on=False,
                )
            continue
        if panel.points or len(line.x) == 1:
            style |= {"marker": marker, "markersize": 4}
        bars = panel.spread == "bars" or len(line.x) == 1
        if line.low and not bars:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
        if line.low and bars:
            below = [y - low for y, low in zip(line.y, line.low, strict=True)]
            above = [high - y for y, high in zip(line.y, line.high, strict=True)]
            axes.errorbar(line.x, line.y, yerr=(below, above), capsize=2.5, elinewidth=1, **style)
        else:
            axes.plot(line.x, line.y, **style)
    set_scales(axes, panel.x, panel.y, panel, room_in)
    if panel.ticks:
        axes.set_xticks([x for x, _ in panel.ticks], [clean(text) for _, text in panel.ticks])
        after.append(lambda: thin_out(axes))
    for rule in panel.across:
        axes.axhline(rule.value, color=_GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    _draw_upright(axes, panel)
    named = list(panel.lines) if panel.names == "ends" and not in_legend(panel) else []
    _name_ends(axes, panel, named, after)
    for line in panel.lines:
        if line.names:
            after.append(partial(_name_numbers, axes, line))
    if panel.noise is not None:
        drawn = [list(zip(line.x, line.y, strict=True)) for line in panel.lines]
        noise = panel.noise
        after.append(lambda: _draw_noise(axes, noise, drawn))


def _draw_upright(axes: "Axes", panel: Lines | HeatMap) -> None:
    for rule in panel.upright:
        if isinstance(panel, HeatMap):
            axes.axvline(rule.value, color="white", linewidth=1.6, zorder=3)  # seen on light and on dark
        axes.axvline(rule.value, color="black" if isinstance(panel, HeatMap) else _GREY, **_RULE)
        if not isinstance(panel, HeatMap):
            axes.text(
                rule.value,
                1.0,
                rule.label,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=7,
                color=_GREY,
            )


def _name_ends(axes: "Axes", panel: Lines, lines: Sequence[Line], after: list[Callable[[], None]]) -> None:
    """Names to the right of the axes, level with the ends of their lines or as near as they can be."""
    noted = len({line.note for line in lines}) > 1
    entries: list[tuple[str, str, float, float]] = []
    for line in lines:
        label = f"{line.label} ({line.note})" if noted and line.note else line.label
        entries.append((label, ink(look(line.look)[0]), line.x[-1], line.y[-1]))
    entries += [(rule.label, _GREY, math.inf, rule.value) for rule in panel.across if rule.label]
    if not entries:
        return
    texts = [
        axes.annotate(
            wrapped(figure_of_axes(axes), clean(label), 1.5, LEGEND_PT),
            (1.0, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            fontsize=LEGEND_PT,
            color=colour,
            annotation_clip=False,
        )
        for label, colour, _, y in entries
    ]

    def place() -> None:
        figure = figure_of_axes(axes)
        box = axes.get_window_extent()
        one = _LINE_HEIGHT * LEGEND_PT * figure.dpi / 72 * max(text.get_text().count("\n") + 1 for text in texts)
        wanted = [float(axes.transData.transform((axes.get_xlim()[0], y))[1]) for *_, y in entries]
        wanted = [min(max(place, box.y0), box.y1) for place in wanted]
        for text, (_, _, x, _), level, at in zip(
            texts, entries, within(wanted, one, box.y0, box.y1), wanted, strict=True
        ):
            shift = (level - at) * 72 / figure.dpi
            text.xyann = (12, shift)
            end = box.x1 if math.isinf(x) else float(axes.transData.transform((x, axes.get_ylim()[0]))[0])
            if abs(shift) > 1.5 or end < box.x0 + 0.9 * box.width:
                _leader(figure, (end + 4, at), (box.x1 + 10 * figure.dpi / 72, level))

    after.append(place)


def _name_numbers(axes: "Axes", line: Line) -> None:
    """Each number's own name beside it, off the line and its bars."""
    xy = list(zip(line.x, line.y, strict=True))
    places = [(float(x), float(y)) for x, y in map(axes.transData.transform, xy)]
    per_pt = axes.figure.dpi / 72
    taken = [Box(x - 4 * per_pt, y - 4 * per_pt, x + 4 * per_pt, y + 4 * per_pt) for x, y in places]
    taken += _along(places, per_pt)
    for x, low, high in zip(line.x, line.low, line.high, strict=False):
        taken += _along([tuple(map(float, axes.transData.transform((x, y)))) for y in (low, high)], per_pt)
    colour = ink(look(line.look)[0])
    wanted = [(place, (clean(name), colour), True) for place, name in zip(places, line.names, strict=True)]
    _put_names(axes, xy, wanted, taken)


def _leader(figure: "Figure", start: tuple[float, float], end: tuple[float, float]) -> None:
    """A hair line between two places of the canvas."""
    from matplotlib.lines import Line2D

    (x0, y0), (x1, y1) = figure.transFigure.inverted().transform((start, end))
    figure.add_artist(
        Line2D((x0, x1), (y0, y1), transform=figure.transFigure, color="#999999", linewidth=0.5, zorder=2)
    )


def _draw_noise(axes: "Axes", gap: float, lines: Sequence[Sequence[tuple[float, float]]]) -> None:
    """A bar as long as the gap that chance alone may make, where it covers least of the lines."""
    low, high = axes.get_ylim()
    to_axes = (axes.transData - axes.transAxes).transform
    seen = [point for line in lines for point in _along([tuple(map(float, to_axes(xy))) for xy in line], 0.004)]
    length = gap / (high - low)

    def around(place: tuple[float, bool]) -> Box:
        x, at_top = place
        bottom = 0.95 - length if at_top else 0.05
        left, right = (x - 0.24, x + 0.03) if x > 0.5 else (x - 0.03, x + 0.24)
        return Box(left, bottom - 0.03, right, bottom + length + 0.03)

    x, at_top = min(_NOISE_PLACES, key=lambda place: sum(around(place).overlap(box) > 0 for box in seen))
    start = high - 0.05 * (high - low) - gap if at_top else low + 0.05 * (high - low)
    across = axes.get_yaxis_transform()
    axes.errorbar(
        [x], [start + gap / 2], yerr=gap / 2, transform=across, color=_GREY, capsize=3, elinewidth=1.2, fmt="none"
    )
    axes.text(
        x + (-0.025 if x > 0.5 else 0.025),
        start + gap / 2,
        "by chance",
        transform=across,
        ha="right" if x > 0.5 else "left",
        va="center",
        fontsize=7,
        color=_GREY,
    )
    axes.set_ylim(low, high)


def _draw_intervals(axes: "Axes", panel: Intervals, named: bool, room_in: float) -> None:
    """A line a row from the top: every seed, the mean, and the interval where there is one."""
    for i, row in enumerate(panel.rows):
        _draw_interval(axes, i, row)
    labels = [wrapped(figure_of_axes(axes), clean(row.label), _NAME_IN, 7.5) for row in panel.rows]
    axes.set_yticks(range(len(labels)), [""] * len(labels) if named else labels)
    for text, row in zip(axes.get_yticklabels(), panel.rows, strict=True):
        text.set_color(ink(look(row.look)[0]))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    few_ticks(axes, panel.x)
    set_format(axes.xaxis, panel.x)
    axes.set_xlabel(axis_label(axes, panel.x, room_in))


def _draw_interval(axes: "Axes", i: int, row: Interval) -> None:
    colour, dashes, marker = look(row.look)
    if row.mean is None:
        axes.text(0.5, i, "no result", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=7)
        return
    if len(row.values) > 1:
        axes.plot(row.values, [i + 0.24] * len(row.values), "o", color=colour, markersize=2.4, alpha=0.6)
    half = None if row.low is None or row.high is None else [[row.mean - row.low], [row.high - row.mean]]
    bar = axes.errorbar(row.mean, i, xerr=half, fmt=marker, color=colour, markersize=4, capsize=2.5, linewidth=1.3)
    for line in bar.lines[2]:
        line.set_linestyle(dashes)


def _draw_points(axes: "Axes", panel: Points, after: list[Callable[[], None]], room_in: float) -> None:
    axes.grid(color=_GRID, linewidth=0.6)
    many = len(panel.points) > MOST_NAMED
    front = [(panel.points[i].x, panel.points[i].y) for i in panel.front]
    if len(front) > 1:
        xs, ys = zip(*front, strict=True)
        # Who asks for the cost of one has to take its quality until the next one can be had.
        where: Any = "post" if panel.x.better == "lower" else "pre"
        axes.step(xs, ys, where=where, color="#cccccc", linewidth=3, zorder=1, solid_joinstyle="round")
    for places in panel.joined:
        if len(places) > 1:
            colour, dashes, _ = look(panel.points[places[0]].look)
            mine = [panel.points[i] for i in places]
            axes.plot([p.x for p in mine], [p.y for p in mine], color=colour, linestyle=dashes, linewidth=1, zorder=2)
    on_front = set(panel.front)
    for i, point in enumerate(panel.points):
        colour, _, marker = look(point.look)
        if many and i not in on_front:
            axes.plot(point.x, point.y, marker="o", color="#999999", markersize=2.5, zorder=2)
            continue
        if point.low is not None and point.high is not None:
            bars = [[point.y - point.low], [point.high - point.y]]
            axes.errorbar(point.x, point.y, yerr=bars, color=colour, elinewidth=0.8, capsize=2, fmt="none", zorder=2)
        if point.x_low is not None and point.x_high is not None:
            bars = [[point.x - point.x_low], [point.x_high - point.x]]
            axes.errorbar(point.x, point.y, xerr=bars, color=colour, elinewidth=0.8, capsize=2, fmt="none", zorder=2)
        axes.plot(
            point.x,
            point.y,
            marker=marker,
            color=colour,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            zorder=3,
        )
    set_scales(axes, panel.x, panel.y, panel, room_in)
    after.append(lambda: _name_points(axes, panel))


def _name_points(axes: "Axes", panel: Points) -> None:
    """Names beside points, so that they cover nothing; of very many points, those on the front alone.

    A name that has no room is left out, unless it is on the front.
    """
    named = list(panel.front if len(panel.points) > MOST_NAMED else range(len(panel.points)))
    data, per_pt = axes.transData, axes.figure.dpi / 72
    transformed = (data.transform((point.x, point.y)) for point in panel.points)
    places = [(float(x), float(y)) for x, y in transformed]
    taken = [Box(x - 4 * per_pt, y - 4 * per_pt, x + 4 * per_pt, y + 4 * per_pt) for x, y in places]
    for point, (x, _) in zip(panel.points, places, strict=True):
        if point.low is not None and point.high is not None:
            ends = [float(data.transform((point.x, value))[1]) for value in (point.low, point.high)]
            taken.append(Box(x - per_pt, min(ends), x + per_pt, max(ends)))
    for line in panel.joined:
        taken += _along([places[i] for i in line], per_pt)
    taken += _along(_stairs([places[i] for i in panel.front], panel.x.better == "lower"), 1.5 * per_pt)
    joined = [[(panel.points[i].x, panel.points[i].y) for i in line] for line in panel.joined]
    if panel.noise is not None:
        _draw_noise(axes, panel.noise, joined)
    wanted = [
        (places[i], (clean(panel.points[i].label), ink(look(panel.points[i].look)[0])), i in panel.front) for i in named
    ]
    _put_names(axes, [(panel.points[i].x, panel.points[i].y) for i in named], wanted, taken)


def _put_names(
    axes: "Axes",
    xy: Sequence[tuple[float, float]],
    wanted: Sequence[tuple[tuple[float, float], tuple[str, str], bool]],
    taken: Sequence[Box],
) -> None:
    """Names in their colours beside numbers: where these are on the canvas, and whether the name is needed."""
    figure = figure_of_axes(axes)
    per_pt, size = figure.dpi / 72, 7.0
    labels = [wrapped(figure, name, 1.4, size) for _, (name, _), _ in wanted]
    asked = [
        (place, text_size(figure, label, size), needed)
        for (place, _, needed), label in zip(wanted, labels, strict=True)
    ]
    box = axes.get_window_extent()
    bounds = Box(box.x0, box.y0, box.x1, box.y1)
    boxes = beside_with_room(asked, taken, bounds, 5 * per_pt)
    for (place, (_, colour), _), label, at, where in zip(wanted, labels, xy, boxes, strict=True):
        if where is None:
            continue
        x, y = (where.left + where.right) / 2, (where.bottom + where.top) / 2
        near_x, near_y = min(max(place[0], where.left), where.right), min(max(place[1], where.bottom), where.top)
        if math.hypot(near_x - place[0], near_y - place[1]) > 9 * per_pt:
            _leader(figure, place, (near_x, near_y))
        axes.annotate(
            label,
            at,
            xytext=((x - place[0]) / per_pt, (y - place[1]) / per_pt),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=colour,
            annotation_clip=False,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4},  # over bars, under points
            zorder=2.6,
        )


def _stairs(places: Sequence[tuple[float, ...]], later: bool) -> list[tuple[float, ...]]:
    """The corners of steps through these places; `later`: each holds until the next."""
    corners: list[tuple[float, ...]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        corners += [(x0, y0), (x1, y0) if later else (x0, y1), (x1, y1)]
    return corners


def _along(places: Sequence[tuple[float, ...]], half: float) -> list[Box]:
    """Small boxes along a line of straight parts."""
    boxes = [Box(x - half, y - half, x + half, y + half) for x, y in places[:1]]
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        n = max(2, int(math.hypot(x1 - x0, y1 - y0) / (6 * half)))
        for k in range(n + 1):
            x, y = x0 + (x1 - x0) * k / n, y0 + (y1 - y0) * k / n
            boxes.append(Box(x - half, y - half, x + half, y + half))
    return boxes


def _draw_heat_map(axes: "Axes", panel: HeatMap, room_in: float) -> Any:
    from matplotlib.patches import Rectangle

    values = [[math.nan if value is None else value for value in row] for row in panel.values]
    x_edges, y_edges = _edges(panel.at_x), _edges(panel.at_y)
    # Cividis goes from dark to light for every kind of eye, and in grey.
    mesh = axes.pcolormesh(x_edges, y_edges, values, cmap="cividis", vmin=panel.low, vmax=panel.high)
    for i, row in enumerate(panel.values):
        for j, value in enumerate(row):
            if value is None:
                corner = (x_edges[j], y_edges[i])
                size = x_edges[j + 1] - x_edges[j], y_edges[i + 1] - y_edges[i]
                axes.add_patch(Rectangle(corner, *size, fill=False, hatch="xxx", edgecolor="#999999", linewidth=0))
    axes.set_ylim(y_edges[-1], y_edges[0])
    axes.set_xlim(x_edges[0], x_edges[-1])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_yticks([panel.at_y[i] for i in sorted({0, len(panel.at_y) // 2, len(panel.at_y) - 1})])
    set_format(axes.xaxis, panel.x)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(axis_label(axes, panel.x, room_in))
    axes.set_ylabel(axis_label(axes, panel.y, TALL_IN))
    _draw_upright(axes, panel)
    return mesh


def _edges(centres: Sequence[float]) -> list[float]:
    """The borders of cells around these centres."""
    if len(centres) == 1:
        return [centres[0] - 0.5, centres[0] + 0.5]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
    return [2 * centres[0] - middles[0], *middles, 2 * centres[-1] - middles[-1]]


def in_legend(panel: Lines) -> bool:
    return panel.names == "legend" or (panel.names == "ends" and len(panel.lines) > MOST_AT_ENDS)
