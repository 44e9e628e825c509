"""A page: title, legend, panels and caption, each in a place of its own."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, assert_never

from analysis.figures.axes import with_arrow
from analysis.figures.looks import LEGEND_PT, clean, look, text_width_in, wrapped
from analysis.figures.panels import MOST_AT_ENDS, draw_panel, in_legend, named_alike
from analysis.figures.picture import HeatMap, Intervals, Lines, Panel, Picture, Points

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_TITLE_PT: Final = 9.0
_CAPTION_PT: Final = 7.0
_PAD_IN: Final = 0.06
_NARROW_IN: Final = 4.8
_ROW_IN: Final = 0.27
_NAME_LETTERS: Final = 24  # that surely go into a line so wide
_BESIDE_IN: Final = 0.8  # what ticks and labels take of a panel's width


def figure_of(picture: Picture, width_in: float, captioned: bool) -> "Figure":
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
            mesh = draw_panel(axes, panel, after, room_in, named=i > 0 and named_alike(row[i - 1], panel))
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
        bar.set_label(with_arrow(panel.colour))
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
            return max(2.5, min(4.0, 0.55 * width_in), 0.16 * min(entries, MOST_AT_ENDS) + 0.9)
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
    text = wrapped(figure, clean(text), width_in - 2 * _PAD_IN, _TITLE_PT, "bold")
    return figure.text(0, 1, text, fontsize=_TITLE_PT, fontweight="bold", ha="left", va="top", in_layout=False)


def _caption(figure: "Figure", sentences: Sequence[str], width_in: float) -> "Text | None":
    if not sentences:
        return None
    paragraphs = [wrapped(figure, clean(line), width_in - 2 * _PAD_IN, _CAPTION_PT) for line in sentences]
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
        if isinstance(panel, Lines) and in_legend(panel):
            for line in panel.lines:
                colour, dashes, marker = look(line.look)
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
                colour, dashes, marker = look(point.look)
                handles.setdefault(
                    point.family, Line2D([], [], color=colour, linestyle=dashes, linewidth=1.2, marker=marker)
                )
    if not handles:
        return None
    room = width_in - 2 * _PAD_IN
    labels = [wrapped(figure, clean(label), min(room, 2.6) - 0.5, LEGEND_PT) for label in handles]
    widest = max(text_width_in(figure, line, LEGEND_PT) for label in labels for line in label.split("\n")) + 0.55
    legend = figure.legend(
        list(handles.values()),
        labels,
        loc="upper left",
        ncols=max(1, min(len(labels), int(room / widest))),
        fontsize=LEGEND_PT,
        handlelength=3.2,
        columnspacing=1.2,
        borderaxespad=0.3,
        borderpad=0.2,
    )
    legend.set_in_layout(False)
    return legend


def _height_of(figure: "Figure", artist: Any) -> float:
    if artist is None:
        return _PAD_IN
    box = artist.get_window_extent()
    return float(box.height / figure.dpi) + 2 * _PAD_IN
