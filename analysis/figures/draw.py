"""What figures look like: a `Picture` drawn by matplotlib, in the field's habit, for a paper.

matplotlib is imported when called. Colours are Okabe & Ito's, told apart by the colour-blind and, with dashes and
markers, in grey print. Files of the same picture are the same to the last byte.
"""

import itertools
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never

from analysis.figures.labels import Box, beside_with_room, within
from analysis.figures.picture import MOST_NAMED, Axis, HeatMap, Interval, Intervals, Line, Lines, Panel, Picture, Points
from analysis.render.latex import latex_text
from hybrid.spec import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

FORMATS: Final = ("png", "svg", "pdf", "json")
DEFAULT_FORMATS: Final = ("png", "svg")
DEFAULT_WIDTH: Final = 7.0
WIDTHS: Final = (2.0, 20.0)

# Okabe & Ito (2008), strongest contrast to white first; their yellow is left out: it vanishes in print.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES: Final[tuple[Any, ...]] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (7, 2, 1.5, 2, 1.5, 2)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib: the same letters on every machine
    "text.hinting": "none",  # widths are then the same at any resolution, and in every format
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a row's name may hold dollar signs
    "svg.hashsalt": "hybrid-ablations",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
}
_DPI: Final = 200
_TITLE_PT: Final = 9.0
_CAPTION_PT: Final = 7.0
_LEGEND_PT: Final = 7.5
_LINE_HEIGHT: Final = 1.35
_PAD_IN: Final = 0.06
_NARROW_IN: Final = 4.8
_GREY: Final = "#666666"
_GRID: Final = "#dddddd"
_RULE: Final[dict[str, Any]] = {"linewidth": 1.0, "linestyle": (0, (3, 2)), "zorder": 3}
_OFFSET_POINTS: Final = 2.0
_MOST_AT_ENDS: Final = 12
_ROW_IN: Final = 0.27
_NAME_IN: Final = 1.6
_NAME_LETTERS: Final = 24  # that surely go into a line so wide
_MOST_NOISE: Final = 0.6
_BESIDE_IN: Final = 0.8  # what ticks and labels take of a panel's width
_TALL_IN: Final = 2.4
_NOISE_PLACES: Final = tuple((x, at_top) for x in (0.95, 0.05, 0.72, 0.28) for at_top in (True, False))


def write(
    picture: Picture,
    directory: Path,
    *,
    name: str | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    width_in: float = DEFAULT_WIDTH,
    captioned: bool = True,
) -> tuple[Path, ...]:
    """Draw the picture into files `name`.png, .svg, .pdf, and its numbers into .json; gives where they are.

    Without `captioned`, title and caption go to `name`.tex instead, as a float for LaTeX. Raises ConfigError where the
    width has no room for the picture.
    """
    stem = name or picture.name
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    drawn = [form for form in formats if form != "json"]
    if drawn:
        paths += _drawn(picture, directory / stem, drawn, width_in, captioned)
    if "json" in formats:
        paths.append(directory / f"{stem}.json")
        paths[-1].write_text(as_json(picture), encoding="utf-8", errors="xmlcharrefreplace")
    if not captioned:
        paths.append(directory / f"{stem}.tex")
        paths[-1].write_text(as_float(picture, stem, width_in), encoding="utf-8", errors="xmlcharrefreplace")
    return tuple(paths)


def as_json(picture: Picture) -> str:
    """The numbers and words of the picture, unrounded."""
    return (
        json.dumps(
            asdict(picture) | {"panels": [{"kind": type(panel).__name__, **asdict(panel)} for panel in picture.panels]},
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        )
        .encode("utf-8", "replace")
        .decode()
        + "\n"
    )


def as_float(picture: Picture, stem: str, width_in: float) -> str:
    """A figure environment with the caption; \\includegraphics takes whichever format is there."""
    words = " ".join((f"{picture.title.rstrip('.')}.", *picture.caption))
    return (
        "\\begin{figure}\n  \\centering\n"
        f"  \\includegraphics[width={width_in:g}in]{{{stem}}}\n"
        f"  \\caption{{{latex_text(' '.join(words.split()))}}}\n"
        f"  \\label{{fig:{stem}}}\n"
        "\\end{figure}\n"
    )


def _drawn(picture: Picture, stem: Path, formats: Sequence[str], width_in: float, captioned: bool) -> list[Path]:
    metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    paths = [stem.with_name(f"{stem.name}.{form}") for form in formats]
    with _style(), warnings.catch_warnings():
        # A sign that the font has not is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("error", message="constrained_layout not applied")
        try:
            figure = _figure(picture, width_in, captioned)
        except UserWarning as warning:
            if "constrained_layout" not in str(warning):
                raise
            problem = f"--width {width_in:g}: too narrow for this figure; expected more inches"
            raise ConfigError(problem) from None
        for path, form in zip(paths, formats, strict=True):
            figure.savefig(path, dpi=_DPI, metadata=metadata[form])
    return paths


@contextmanager
def _style() -> Iterator[None]:
    """The same looks for everyone: a user's own settings of matplotlib change nothing."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


# --- the page -----------------------------------------------------------------------------------


def _figure(picture: Picture, width_in: float, captioned: bool) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = _columns(picture, width_in)
    rows = [picture.panels[i : i + columns] for i in range(0, len(picture.panels), columns)]
    heights = [max(_height(panel, width_in / columns) for panel in row) for row in rows]
    ratios = picture.widths if columns == len(picture.widths) else (1.0,) * columns
    figure = Figure(figsize=(width_in, sum(heights)))
    FigureCanvasAgg(figure)
    title = _title(figure, picture.title, width_in) if captioned else None
    legend = _legend(figure, picture, width_in)
    caption = _caption(figure, picture.caption, width_in) if captioned else None
    above, between, below = (_height_of(figure, artist) for artist in (title, legend, caption))
    total = sum(heights) + above + between + below
    figure.set_size_inches(width_in, total)
    top = total - above
    if title is not None:
        title.set_position((_PAD_IN / width_in, 1 - _PAD_IN / total))
    if legend is not None:
        legend.set_bbox_to_anchor((0, 0, 1, top / total), transform=figure.transFigure)
    if caption is not None:
        caption.set_position((_PAD_IN / width_in, (below - _PAD_IN) / total))
    rect = (0, below / total, 1, (top - between - below) / total)
    figure.set_layout_engine("constrained", w_pad=0.07, h_pad=0.05, wspace=0.03, hspace=0.03, rect=rect)
    grid = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={"width_ratios": ratios, "height_ratios": heights}
    )
    after: list[Callable[[], None]] = []
    meshes = []
    for number, (row, axes_of_row) in enumerate(zip(rows, grid, strict=True)):
        for i, (panel, axes) in enumerate(zip(row, axes_of_row, strict=False)):
            room_in = width_in * ratios[i] / sum(ratios) - _BESIDE_IN
            mesh = _draw(axes, panel, after, room_in, named=i > 0 and _named_alike(row[i - 1], panel))
            if mesh is not None:
                meshes.append((mesh, panel))
                if i:
                    axes.set_ylabel("")
                if number + 1 < len(rows) and i < len(rows[number + 1]):
                    axes.set_xlabel("")
        for axes in axes_of_row[len(row) :]:
            axes.set_axis_off()
    for mesh, panel in meshes[:1]:
        assert isinstance(panel, HeatMap)
        bar = figure.colorbar(mesh, ax=list(grid.flat), fraction=0.035, pad=0.015)
        bar.set_label(_with_arrow(panel.colour))
        bar.outline.set_visible(False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for place in after:
        place()
    return figure


def _columns(picture: Picture, width_in: float) -> int:
    """As many panels side by side as the picture wants, fewer where the page is narrow."""
    wanted = min(len(picture.widths), len(picture.panels))
    maps = all(isinstance(panel, HeatMap) for panel in picture.panels)
    return wanted if width_in >= _NARROW_IN else min(wanted, 2 if maps else 1)


def _height(panel: Panel, width_in: float) -> float:
    match panel:
        case Lines():
            entries = len(panel.lines) if panel.names == "ends" else 0
            return max(2.5, min(4.0, 0.55 * width_in), 0.16 * min(entries, _MOST_AT_ENDS) + 0.9)
        case Intervals():
            most_lines = max(math.ceil(len(row.label) / _NAME_LETTERS) for row in panel.rows)
            return max(1.5, max(_ROW_IN, 0.14 * most_lines) * len(panel.rows) + 0.7)
        case Points():
            return max(3.0, min(5.0, 0.6 * width_in))
        case HeatMap():
            return max(1.7, min(3.2, 0.62 * width_in))
        case _ as never:
            assert_never(never)


def _title(figure: "Figure", text: str, width_in: float) -> "Text":
    wrapped = _wrapped(figure, _clean(text), width_in - 2 * _PAD_IN, _TITLE_PT, "bold")
    return figure.text(0, 1, wrapped, fontsize=_TITLE_PT, fontweight="bold", ha="left", va="top", in_layout=False)


def _caption(figure: "Figure", sentences: Sequence[str], width_in: float) -> "Text | None":
    if not sentences:
        return None
    paragraphs = [_wrapped(figure, _clean(line), width_in - 2 * _PAD_IN, _CAPTION_PT) for line in sentences]
    return figure.text(
        0,
        0,
        "\n".join(paragraphs),
        fontsize=_CAPTION_PT,
        color="#444444",
        ha="left",
        va="top",
        linespacing=1.3,
        in_layout=False,
    )


def _legend(figure: "Figure", picture: Picture, width_in: float) -> Any:
    """Above the panels, in as many columns as there is room for; None where every line is named beside it."""
    from matplotlib.lines import Line2D

    handles: dict[str, Line2D] = {}
    for panel in picture.panels:
        if isinstance(panel, Lines) and _in_legend(panel):
            for line in panel.lines:
                colour, dashes, marker = _look(line.look)
                label = f"{line.label} ({line.note})" if line.note else line.label
                handles.setdefault(
                    label,
                    Line2D(
                        [], [], color=colour, linestyle=dashes, linewidth=1.6, marker=marker if panel.points else ""
                    ),
                )
        if isinstance(panel, Points):
            sizes = Counter(point.family for point in panel.points)
            for point in [point for point in panel.points if sizes[point.family] > 1]:
                colour, dashes, marker = _look(point.look)
                handles.setdefault(
                    point.family, Line2D([], [], color=colour, linestyle=dashes, linewidth=1.2, marker=marker)
                )
    if not handles:
        return None
    room = width_in - 2 * _PAD_IN
    labels = [_wrapped(figure, _clean(label), min(room, 2.6) - 0.5, _LEGEND_PT) for label in handles]
    widest = max(_width_in(figure, line, _LEGEND_PT) for label in labels for line in label.split("\n")) + 0.55
    legend = figure.legend(
        list(handles.values()),
        labels,
        loc="upper left",
        ncols=max(1, min(len(labels), int(room / widest))),
        fontsize=_LEGEND_PT,
        handlelength=3.2,
        columnspacing=1.2,
        borderaxespad=0.3,
        borderpad=0.2,
    )
    legend.set_in_layout(False)
    return legend


def _in_legend(panel: Lines) -> bool:
    return panel.names == "legend" or (panel.names == "ends" and len(panel.lines) > _MOST_AT_ENDS)


def _height_of(figure: "Figure", artist: Any) -> float:
    if artist is None:
        return _PAD_IN
    box = artist.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return float(box.height / figure.dpi) + 2 * _PAD_IN


# --- panels -------------------------------------------------------------------------------------


def _named_alike(left: Panel, right: Panel) -> bool:
    """Whether the rows of both are the same ones, so that their names need to stand only once."""
    if not isinstance(left, Intervals) or not isinstance(right, Intervals):
        return False
    return [row.label for row in left.rows] == [row.label for row in right.rows]


def _draw(axes: "Axes", panel: Panel, after: list[Callable[[], None]], room_in: float, *, named: bool) -> Any:
    """Draw the panel; what has to wait until the axes have their place is put `after`. `room_in` is about how wide the
    axes will be, `named` that its rows have their names to the left of it. Gives a heat map's mesh.
    """
    axes.set_axisbelow(True)
    if panel.title:
        title = _wrapped(axes.figure, _clean(panel.title), 3.2, 8)  # type: ignore[arg-type]
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
        colour, dashes, marker = _look(line.look)
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
    _scale(axes, panel.x, panel.y, panel, room_in)
    if panel.ticks:
        axes.set_xticks([x for x, _ in panel.ticks], [_clean(text) for _, text in panel.ticks])
        after.append(lambda: _thin_out(axes))
    for rule in panel.across:
        axes.axhline(rule.value, color=_GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    _draw_upright(axes, panel)
    named = list(panel.lines) if panel.names == "ends" and not _in_legend(panel) else []
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
        entries.append((label, _ink(_look(line.look)[0]), line.x[-1], line.y[-1]))
    entries += [(rule.label, _GREY, math.inf, rule.value) for rule in panel.across if rule.label]
    if not entries:
        return
    texts = [
        axes.annotate(
            _wrapped(axes.figure, _clean(label), 1.5, _LEGEND_PT),  # type: ignore[arg-type]
            (1.0, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            fontsize=_LEGEND_PT,
            color=colour,
            annotation_clip=False,
        )
        for label, colour, _, y in entries
    ]

    def place() -> None:
        figure = axes.figure
        box = axes.get_window_extent()
        one = _LINE_HEIGHT * _LEGEND_PT * figure.dpi / 72 * max(text.get_text().count("\n") + 1 for text in texts)
        wanted = [float(axes.transData.transform((axes.get_xlim()[0], y))[1]) for *_, y in entries]
        wanted = [min(max(place, box.y0), box.y1) for place in wanted]
        for text, (_, _, x, _), level, at in zip(
            texts, entries, within(wanted, one, box.y0, box.y1), wanted, strict=True
        ):
            shift = (level - at) * 72 / figure.dpi
            text.xyann = (12, shift)
            end = box.x1 if math.isinf(x) else float(axes.transData.transform((x, axes.get_ylim()[0]))[0])
            if abs(shift) > 1.5 or end < box.x0 + 0.9 * box.width:
                _leader(figure, (end + 4, at), (box.x1 + 10 * figure.dpi / 72, level))  # type: ignore[arg-type]

    after.append(place)


def _name_numbers(axes: "Axes", line: Line) -> None:
    """Each number's own name beside it, off the line and its bars."""
    xy = list(zip(line.x, line.y, strict=True))
    places = [tuple(map(float, axes.transData.transform(point))) for point in xy]
    per_pt = axes.figure.dpi / 72
    taken = [Box(x - 4 * per_pt, y - 4 * per_pt, x + 4 * per_pt, y + 4 * per_pt) for x, y in places]
    taken += _along(places, per_pt)
    for x, low, high in zip(line.x, line.low, line.high, strict=False):
        taken += _along([tuple(map(float, axes.transData.transform((x, y)))) for y in (low, high)], per_pt)
    colour = _ink(_look(line.look)[0])
    wanted = [(place, (_clean(name), colour), True) for place, name in zip(places, line.names, strict=True)]
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
    labels = [_wrapped(axes.figure, _clean(row.label), _NAME_IN, 7.5) for row in panel.rows]  # type: ignore[arg-type]
    axes.set_yticks(range(len(labels)), [""] * len(labels) if named else labels)
    for text, row in zip(axes.get_yticklabels(), panel.rows, strict=True):
        text.set_color(_ink(_look(row.look)[0]))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    _few_ticks(axes, panel.x)
    _format(axes.xaxis, panel.x)
    axes.set_xlabel(_axis_label(axes, panel.x, room_in))


def _draw_interval(axes: "Axes", i: int, row: Interval) -> None:
    colour, dashes, marker = _look(row.look)
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
            colour, dashes, _ = _look(panel.points[places[0]].look)
            mine = [panel.points[i] for i in places]
            axes.plot([p.x for p in mine], [p.y for p in mine], color=colour, linestyle=dashes, linewidth=1, zorder=2)
    on_front = set(panel.front)
    for i, point in enumerate(panel.points):
        colour, _, marker = _look(point.look)
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
    _scale(axes, panel.x, panel.y, panel, room_in)
    after.append(lambda: _name_points(axes, panel))


def _name_points(axes: "Axes", panel: Points) -> None:
    """Names beside points, so that they cover nothing; of very many points, those on the front alone.

    A name that has no room is left out, unless it is on the front.
    """
    named = list(panel.front if len(panel.points) > MOST_NAMED else range(len(panel.points)))
    data, per_pt = axes.transData, axes.figure.dpi / 72
    places = [tuple(map(float, data.transform((point.x, point.y)))) for point in panel.points]
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
        (places[i], (_clean(panel.points[i].label), _ink(_look(panel.points[i].look)[0])), i in panel.front)
        for i in named
    ]
    _put_names(axes, [(panel.points[i].x, panel.points[i].y) for i in named], wanted, taken)


def _put_names(
    axes: "Axes",
    xy: Sequence[tuple[float, float]],
    wanted: Sequence[tuple[tuple[float, ...], tuple[str, str], bool]],
    taken: Sequence[Box],
) -> None:
    """Names in their colours beside numbers: where these are on the canvas, and whether the name is needed."""
    figure = axes.figure
    per_pt, size = figure.dpi / 72, 7.0
    labels = [_wrapped(figure, name, 1.4, size) for _, (name, _), _ in wanted]  # type: ignore[arg-type]
    asked = [
        (place, _size(figure, label, size), needed)  # type: ignore[arg-type]
        for (place, _, needed), label in zip(wanted, labels, strict=True)
    ]
    box = axes.get_window_extent()
    bounds = Box(box.x0, box.y0, box.x1, box.y1)
    boxes = beside_with_room(asked, taken, bounds, 5 * per_pt)  # type: ignore[arg-type]
    for (place, (_, colour), _), label, at, where in zip(wanted, labels, xy, boxes, strict=True):
        if where is None:
            continue
        x, y = (where.left + where.right) / 2, (where.bottom + where.top) / 2
        near_x, near_y = min(max(place[0], where.left), where.right), min(max(place[1], where.bottom), where.top)
        if math.hypot(near_x - place[0], near_y - place[1]) > 9 * per_pt:
            _leader(figure, (place[0], place[1]), (near_x, near_y))  # type: ignore[arg-type]
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
    _format(axes.xaxis, panel.x)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(_axis_label(axes, panel.x, room_in))
    axes.set_ylabel(_axis_label(axes, panel.y, _TALL_IN))
    _draw_upright(axes, panel)
    return mesh


def _edges(centres: Sequence[float]) -> list[float]:
    """The borders of cells around these centres."""
    if len(centres) == 1:
        return [centres[0] - 0.5, centres[0] + 0.5]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
    return [2 * centres[0] - middles[0], *middles, 2 * centres[-1] - middles[-1]]


# --- axes ---------------------------------------------------------------------------------------


def _scale(axes: "Axes", x: Axis, y: Axis, panel: Lines | Points, room_in: float) -> None:
    xs, ys = _extent(panel)
    for axis, which, values in ((x, "x", xs), (y, "y", ys)):
        low, high = axis.shown or (min(values), max(values))
        if axis.log and low > 0:
            (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=2 if axis.powers else 10)
            pad = (high / low) ** 0.06 if high > low else 1.5
            limits = (low / pad, high * pad)
        else:
            if which == "y" and panel.noise is not None and panel.noise > _MOST_NOISE * (high - low):
                high += 1.25 * panel.noise  # room above all data for the bar of what chance does
            pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
            limits = (low - pad, high + pad)
            amount = which == "x" and isinstance(panel, Lines) and not panel.ticks and axis.shown is None
            if amount and 0 <= low <= 0.25 * high != 0:
                limits = (0.0, 1.01 * high)  # a time or an amount begins at nothing, if the numbers begin near it
        (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
        of = axes.xaxis if which == "x" else axes.yaxis
        if axis.log and low > 0:
            _log_ticks(of, axis, low, high, sorted(set(values)))
        _format(of, axis)
    axes.set_xlabel(_axis_label(axes, x, room_in))
    axes.set_ylabel(_axis_label(axes, y, _TALL_IN))


def _extent(panel: Lines | Points) -> tuple[list[float], list[float]]:
    if isinstance(panel, Points):
        xs = [v for p in panel.points for v in (p.x, p.x_low, p.x_high) if v is not None]
        return xs, [v for p in panel.points for v in (p.y, p.low, p.high) if v is not None]
    xs = [x for line in panel.lines for x in line.x]
    ys = [y for line in panel.lines for y in (*line.y, *line.low, *line.high)]
    return xs, [*ys, *(rule.value for rule in panel.across)]


def _log_ticks(of: Any, axis: Axis, low: float, high: float, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    of.set_minor_locator(NullLocator())
    if axis.powers and len(values) <= 8:
        of.set_major_locator(FixedLocator(list(values)))
        return
    decades = math.log10(high / low) if high > low else 1.0
    mantissas = (
        (1,) if decades > 3 else (1, 3) if decades > 1.6 else (1, 2, 5) if decades > 0.5 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    )
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    of.set_major_locator(FixedLocator([m * 10.0**e for e in exponents for m in mantissas]))


def _format(of: Any, axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, PercentFormatter, ScalarFormatter

    match axis.format:
        case "percent":
            of.set_major_formatter(PercentFormatter(xmax=1))
        case "tokens":
            of.set_major_formatter(FuncFormatter(_with_suffix))
        case "whole":
            of.set_major_formatter(FuncFormatter(_in_k if axis.powers else _with_commas))
        case "bytes":
            of.set_major_formatter(FuncFormatter(_in_bytes))
            _byte_ticks(of)
        case "flops":
            of.set_major_formatter(FuncFormatter(_with_exponent))
        case "number" if axis.log:
            of.set_major_formatter(FuncFormatter(_plain_number))
        case "number":
            formatter = ScalarFormatter(useOffset=False, useMathText=False)
            formatter.set_powerlimits((-5, 7))
            of.set_major_formatter(formatter)
        case _ as never:
            assert_never(never)


def _byte_ticks(of: Any) -> None:
    """Round numbers of the unit that is shown. The limits have to be there."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    low, high = of.get_view_interval()
    unit = next((factor for factor in (2**30, 2**20, 2**10) if high >= factor), 1)
    of.set_major_locator(
        FixedLocator([unit * tick for tick in MaxNLocator(nbins=4).tick_values(low / unit, high / unit)])
    )
    (of.axes.set_xlim if of.axis_name == "x" else of.axes.set_ylim)(low, high)


def _few_ticks(axes: "Axes", axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=3 if axis.format == "flops" else 4))


def _thin_out(axes: "Axes") -> None:
    """Leave names of ticks out where they would touch the one before."""
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    last: Bbox | None = None
    for text in sorted(axes.get_xticklabels(), key=lambda text: text.get_position()[0]):
        box = text.get_window_extent(renderer)
        if last is not None and box.x0 < last.x1 + 2:
            text.set_visible(False)
        else:
            last = box


def _axis_label(axes: "Axes", axis: Axis, room_in: float) -> str:
    return _wrapped(axes.figure, _clean(_with_arrow(axis)), max(1.0, room_in), 8)  # type: ignore[arg-type]


def _with_arrow(axis: Axis) -> str:
    arrow = {"lower": "\u00a0↓", "higher": "\u00a0↑", None: ""}[axis.better]
    return f"{axis.label}{arrow}"


def _with_commas(value: float, _position: float) -> str:
    return f"{value:,.0f}"


def _plain_number(value: float, _position: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _in_k(value: float, _position: float) -> str:
    return f"{value / 1024:g}K" if value >= 1024 and value % 512 == 0 else f"{value:,.0f}"


def _with_exponent(value: float, _position: float) -> str:
    if value <= 0:
        return "0"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _in_bytes(value: float, _position: float) -> str:
    for factor, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= factor:
            return f"{value / factor:.3g} {suffix}"
    return f"{value:g} B"


def _with_suffix(value: float, _position: float) -> str:
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.4g}{suffix}"
    return f"{value:g}"


# --- words and looks ----------------------------------------------------------------------------


def _look(i: int) -> tuple[str, Any, str]:
    """Colour, dashes and marker of line i: neighbours differ in all; all pairs are used before any repeats."""
    n = len(COLOURS)
    return COLOURS[i % n], DASHES[(i + i // (n * len(DASHES))) % len(DASHES)], MARKERS[i % len(MARKERS)]


def _ink(colour: str) -> str:
    """The colour dark enough for letters on white."""
    parts = [round(0.72 * int(colour[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#{:02x}{:02x}{:02x}".format(*parts)


def _clean(text: str) -> str:
    """Without what no font, or no XML, has a sign for."""
    return "".join(c if c.isprintable() or c in "\n\u00a0" else "\ufffd" for c in text)


def _wrapped(figure: "Figure", text: str, width_in: float, size: float, weight: str = "normal") -> str:
    """Broken into lines of at most this width as they are drawn, between words; a longer word is broken too."""
    lines: list[str] = []
    line = ""
    for word in _broken(figure, _words(text), width_in, size, weight):
        longer = f"{line} {word}" if line else word
        if line and _width_in(figure, longer, size, weight) > width_in:
            lines.append(line)
            longer = word
        line = longer
    return "\n".join([*lines, line])


def _words(text: str) -> list[str]:
    """What may stand on lines of its own: a no-break space holds two words together."""
    return [word for word in text.replace("\n", " ").split(" ") if word]


def _broken(figure: "Figure", words: Iterable[str], width_in: float, size: float, weight: str) -> Iterable[str]:
    for word in words:
        while len(word) > 8 and _width_in(figure, word, size, weight) > width_in:
            fits = max(8, int(len(word) * width_in / _width_in(figure, word, size, weight)) - 1)
            yield word[:fits]
            word = word[fits:]
        yield word


def _width_in(figure: "Figure", text: str, size: float, weight: str = "normal") -> float:
    from matplotlib.font_manager import FontProperties

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    properties = FontProperties(size=size, weight=weight)
    width, _, _ = renderer.get_text_width_height_descent(text, properties, False)
    return float(width) / figure.dpi


def _size(figure: "Figure", text: str, size: float) -> tuple[float, float]:
    """Width and height of lines of text, in pixels."""
    lines = text.split("\n")
    wide = max(_width_in(figure, line, size) for line in lines) * figure.dpi
    return wide, len(lines) * 1.2 * size * figure.dpi / 72
