"""Scales, ticks and labels of axes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, assert_never

from analysis.figures.looks import clean, figure_of_axes, wrapped
from analysis.figures.picture import Axis, Lines, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NOISE: Final = 0.6
TALL_IN: Final = 2.4


def set_scales(axes: "Axes", x: Axis, y: Axis, panel: Lines | Points, room_in: float) -> None:
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
        set_format(of, axis)
    axes.set_xlabel(axis_label(axes, x, room_in))
    axes.set_ylabel(axis_label(axes, y, TALL_IN))


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


def set_format(of: Any, axis: Axis) -> None:
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


def few_ticks(axes: "Axes", axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=3 if axis.format == "flops" else 4))


def thin_out(axes: "Axes") -> None:
    """Leave names of ticks out where they would touch the one before."""
    from matplotlib.transforms import Bbox

    last: Bbox | None = None
    for text in sorted(axes.get_xticklabels(), key=lambda text: text.get_position()[0]):
        box = text.get_window_extent()
        if last is not None and box.x0 < last.x1 + 2:
            text.set_visible(False)
        else:
            last = box


def axis_label(axes: "Axes", axis: Axis, room_in: float) -> str:
    return wrapped(figure_of_axes(axes), clean(with_arrow(axis)), max(1.0, room_in), 8)


def with_arrow(axis: Axis) -> str:
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
