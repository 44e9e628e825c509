"""Curves at equal FLOPs with their optima, and the lines N_opt(C) and D_opt(C) of all groups in one."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from analysis.figures.draw import save, style
from analysis.figures.looks import COLOURS, DASHES
from analysis.scaling.isoflop import IsoFlop
from analysis.scaling.law import Array
from analysis.scaling.points import si
from analysis.scaling.study import NAMES, Isoflop, Parametric, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FORMATS: Final = ("png", "svg", "pdf")
_PANELS_A_ROW: Final = 4
_BAND: Final = 0.16
_GRID: Final = "#dddddd"
_MOST_NAMED: Final = 8
_LETTERS_AN_INCH: Final = 14


def write_figures(study: "Study[Isoflop] | Study[Parametric]", directory: Path, name: str | None = None) -> list[Path]:
    """`name`.png, .svg and .pdf; the same to the last byte for the same study."""
    isoflop = isinstance(study.groups[0], Isoflop)
    with style():
        figure = _isoflop_figure(study) if isoflop else _parametric_figure(study)
        return save(figure, directory / (name or ("isoflop" if isoflop else "parametric")), FORMATS)


def _isoflop_figure(study: "Study[Isoflop] | Study[Parametric]") -> "Figure":
    from matplotlib.figure import Figure

    groups = [group for group in study.groups if isinstance(group, Isoflop)]
    columns = min(_PANELS_A_ROW, max(2, len(groups)))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(3.1 * columns + 0.6, 2.9 * rows + 4.1), layout="constrained")
    upper, lower = _halves(figure, 2.9 * rows, 3.4)
    panels = upper.subplots(rows, columns, squeeze=False, sharey=True)
    for panel in panels.flat[len(groups) :]:
        panel.set_visible(False)
    for i, (group, panel) in enumerate(zip(groups, panels.flat, strict=False)):
        _curves(panel, group.fit)
        panel.set_title(group.name, loc="left", fontsize=10, color=_look(i)[0], fontweight="bold")
        panel.set_xlabel("parameters N")
    for row in panels:
        row[0].set_ylabel("loss (nats per token)")
    _lines(lower.subplots(1, 2), study)
    source = f"{study.points.source}. {study.points.costs}."
    how = (
        "Filled: the minimum counts, with D/N below it; open: it does not, as no larger (or smaller) size is worse. "
        f"Bands: {study.settings.level:.0%} by simulated noise."
    )
    _caption(figure, "Compute-optimal sizes at equal FLOPs", source, how)
    return figure


def _curves(axes: "Axes", fit: IsoFlop) -> None:
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(fit.curves)))
    for curve, losses, optimum, shade in zip(fit.curves, fit.losses, fit.budgets, shades, strict=True):
        axes.plot(np.exp(curve.log_n), losses, "o", color=shade, markersize=3.5)
        if len(losses) >= 3:
            at = np.linspace(curve.log_n[0], curve.log_n[-1], 120)
            axes.plot(np.exp(at), _curve(curve.log_n, losses, at, fit), color=shade, linewidth=1.3)
        filled = shade if optimum.interior else "white"
        axes.plot(optimum.n_opt, optimum.loss, "D", color=shade, markerfacecolor=filled, markersize=5.5, zorder=4)
        label = f"{optimum.d_opt / optimum.n_opt:.0f}" if optimum.interior else ""
        axes.annotate(
            label, (optimum.n_opt, optimum.loss), textcoords="offset points", xytext=(0, -12), ha="center", fontsize=7.5
        )
        axes.plot(
            [], [], "o-", color=shade, markersize=3.5, linewidth=1.3, label=f"{curve.flops:.2g}".replace("e+", "e")
        )
    if len(fit.curves) <= _MOST_NAMED:
        axes.legend(fontsize=6.5, title="FLOPs", title_fontsize=6.5, loc="best", handlelength=1.2, labelspacing=0.25)
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.08)
    _plain_sizes(axes)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)


def _curve(log_n: Array, losses: Array, at: Array, fit: IsoFlop) -> Array:
    if fit.options.method == "akima":
        return np.asarray(Akima1DInterpolator(log_n, losses)(at))
    inside = np.abs(log_n - log_n[int(losses.argmin())]) <= math.log(fit.options.window) + 1e-9
    chosen = inside if inside.sum() >= 3 else np.ones(len(losses), dtype=bool)
    centre = log_n[chosen].mean()
    return np.asarray(np.polyval(np.polyfit(log_n[chosen] - centre, losses[chosen], 2), at - centre))


def _lines(axes: "Sequence[Axes]", study: "Study[Isoflop] | Study[Parametric]") -> None:
    """N_opt and D_opt over C, with a band; of optima at budgets the points too."""
    groups: Sequence[Isoflop | Parametric] = study.groups
    for i, group in enumerate(groups):
        colour, dashes = _look(i)
        slope = "" if group.slope is None else f" a = {group.slope:.3f}"
        interval = group.slope_interval
        text = f"{group.name}:{slope}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")
        for panel, which in zip(axes, "nd", strict=True):
            drawn = _isoflop_line(group, which) if isinstance(group, Isoflop) else _parametric_line(group, which)
            label = text if which == "n" else group.name
            if drawn is None:
                panel.plot([], [], color=colour, linestyle=dashes, label=f"{group.name}: no exponent")
            else:
                c, middle, band = drawn
                if band is not None:
                    panel.fill_between(c, band[0], band[1], color=colour, alpha=_BAND, linewidth=0)
                panel.plot(c, middle, color=colour, linestyle=dashes, linewidth=1.8, label=label)
            if isinstance(group, Isoflop):
                for optimum in group.fit.budgets:
                    value = optimum.n_opt if which == "n" else optimum.d_opt
                    face = colour if optimum.interior else "white"
                    panel.plot(optimum.flops, value, "o", color=colour, markerfacecolor=face, markersize=4.5)
    for panel, label in zip(axes, ("compute-optimal parameters N", "compute-optimal tokens D"), strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        _plain_sizes(panel, axis="x", text=_power)
        panel.set_xlabel("training FLOPs C")
        panel.set_ylabel(label)
        panel.grid(color=_GRID, linewidth=0.7, which="major")
        _plain_sizes(panel, axis="y")
    axes[0].legend(fontsize=8, handlelength=3.2)


def _isoflop_line(group: Isoflop, which: str) -> tuple[Array, Array, tuple[Array, Array] | None] | None:
    line = group.fit.n if which == "n" else group.fit.d
    if line is None:
        return None
    flops = [optimum.flops for optimum in group.fit.budgets]
    c = np.geomspace(min(flops) / 1.3, max(flops) * 1.3, 60)
    return c, line.value(c), line.band(c, group.settings.level) if len(line.slopes) else None


def _parametric_line(group: Parametric, which: str) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """With C = k N D, k being the mean of the points."""
    flops = np.array([point.c for point in group.points])
    k = float(np.exp(np.mean([math.log(point.c / (point.n * point.d)) for point in group.points])))
    c = np.geomspace(flops.min(), flops.max(), 60)
    values = np.array([[group.values[name] for name in NAMES]])
    middle = _optimal(values, c / k, which)[0]
    if not len(group.draws):
        return c, middle, None
    drawn = _optimal(group.draws, c / k, which)
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    low, high = np.quantile(drawn, [(1 - group.settings.level) / 2, (1 + group.settings.level) / 2], axis=0)
    return c, middle, (low, high)


def _optimal(laws: Array, nd: Array, which: str) -> Array:
    """N_opt, or D_opt, where N D = `nd`, (R, points), for rows of `NAMES`."""
    a, b, alpha, beta = (laws[:, NAMES.index(name), None] for name in ("A", "B", "alpha", "beta"))
    with np.errstate(all="ignore"):
        log_n = (np.log(alpha * a / (beta * b)) + beta * np.log(nd)) / (alpha + beta)
        return np.asarray(np.exp(log_n if which == "n" else np.log(nd) - log_n))


def _parametric_figure(study: "Study[Isoflop] | Study[Parametric]") -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    upper, lower = _halves(figure, 1.0, 1.15)
    residuals, fitted = upper.subplots(1, 2)
    for i, group in enumerate(study.groups):
        if not isinstance(group, Parametric):
            continue
        colour, _ = _look(i)
        flops = [point.c for point in group.points]
        losses = np.array([point.loss for point in group.points])
        residuals.plot(flops, group.fit.residuals, "o", color=colour, markersize=4, alpha=0.8)
        fitted.plot(losses / np.exp(group.fit.residuals), losses, "o", color=colour, markersize=4, alpha=0.8)
    residuals.set_xscale("log")
    _plain_sizes(residuals, text=_power)
    residuals.axhline(0, color="#444444", linewidth=0.8)
    residuals.set_xlabel("training FLOPs C")
    residuals.set_ylabel("log loss less log law")
    low, high = fitted.get_xlim()
    fitted.plot([low, high], [low, high], color="#444444", linewidth=0.8)
    fitted.set_xlabel("loss of the law (nats per token)")
    fitted.set_ylabel("loss measured")
    for panel in (residuals, fitted):
        panel.grid(color=_GRID, linewidth=0.7)
    _lines(lower.subplots(1, 2), study)
    _caption(
        figure,
        f"L(N, D) = E + A/N^α + B/D^β by {study.settings.estimator}",
        f"{study.points.source}. {study.points.costs}.",
        f"Lines where C is as many times N D as in the points' mean. Bands: {study.settings.level:.0%} of resamples.",
    )
    return figure


def _halves(figure: "Figure", upper: float, lower: float) -> "tuple[SubFigure, SubFigure]":
    found: Any = figure.subfigures(2, 1, height_ratios=[upper, lower])
    return found[0], found[1]


def _look(i: int) -> tuple[str, Any]:
    return COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]


def _power(value: float) -> str:
    return f"{value:.0e}".replace("e+", "e")


def _plain_sizes(axes: "Axes", axis: str = "x", text: Callable[[float], str] = si) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    chosen.set_minor_formatter(NullFormatter())


def _caption(figure: "Figure", title: str, *lines: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    wide = int(_LETTERS_AN_INCH * figure.get_figwidth())
    wrapped = [part for line in lines for part in textwrap.wrap(line, wide)]
    figure.supxlabel("\n".join(wrapped), x=0.01, ha="left", fontsize=7.5, color="#444444")
