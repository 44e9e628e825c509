"""One figure a request: survival curves for probes, loss curves with a band over seeds for the rest.

matplotlib is imported when called. Colours are Okabe & Ito's, told apart by the colour-blind and, with the dash
patterns, in grey print. SVG output is the same to the last byte for the same results.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, Literal, final

from analysis import stats
from analysis.load import Group, Results
from analysis.tables import VAL_LOSS, metric_header, report_caption, settings_line, solved, survival, title_of
from hybrid.spec import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FigureKind = Literal["survival", "curves"]
Metrics = Callable[[str], Sequence[Mapping[str, Any]]]

# Okabe & Ito (2008), strongest contrast to white first; their yellow is left out: it vanishes in print.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES: Final[tuple[Any, ...]] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (7, 2, 1.5, 2, 1.5, 2)))
TRAIN_LOSS: Final = "train_loss_nats"
MIN_VALIDATIONS: Final = 3
LEGEND_ROWS: Final = 8
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "hybrid-ablations",
    "svg.fonttype": "none",
}
_OFFSET_POINTS: Final = 2.2
_WRAP: Final = 138
_SHOWN_FROM: Final = 0.15


@final
@dataclass(frozen=True, kw_only=True)
class _Curve:
    """Mean, least and greatest value over seeds at each number of tokens."""

    tokens: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


def kind_of(results: Results) -> FigureKind:
    """Raises ConfigError if the sweep's report asks for a figure that does not exist."""
    asked = results.report.get("figure")
    match asked:
        case None | True:
            return "survival" if results.is_probe else "curves"
        case "survival":
            return "survival"
        case "curves":
            return "curves"
        case _:
            raise ConfigError(f"sweep.report.figure = {asked}: expected survival or curves")


def write_figure(results: Results, metrics: Metrics, directory: Path) -> tuple[Path, ...]:
    """Draw the request's figure into `directory` as figure.png and figure.svg.

    `metrics` gives the metric lines of a run id. Raises ConfigError if there is nothing to draw yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(_STYLE):
        figure = survival_figure(results) if kind_of(results) == "survival" else curves_figure(results, metrics)
        directory.mkdir(parents=True, exist_ok=True)
        paths = directory / "figure.png", directory / "figure.svg"
        figure.savefig(paths[0], dpi=160, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
        pyplot.close(figure)
    return paths


def survival_figure(results: Results) -> "Figure":
    """Share of seeds that have not solved the task yet against training steps: Kaplan-Meier steps, a line a row."""
    from matplotlib.ticker import PercentFormatter
    from matplotlib.transforms import ScaledTranslation

    curves = [(group, curve) for group in results.groups if (curve := survival(group)) is not None]
    if not curves:
        raise ConfigError(f"request = {results.sweep}: no run has a result yet, so there is nothing to draw")
    figure, (axes,) = _new_figure(results, panels=1)
    end = max(curve.last for _, curve in curves)
    labels = []
    for i, (group, curve) in enumerate(curves):
        colour, dashes = _look(i)
        shift = ((len(curves) - 1) / 2 - i) * min(_OFFSET_POINTS, 14 / len(curves))
        moved = axes.transData + ScaledTranslation(0, shift / 72, figure.dpi_scale_trans)
        times = [0.0, *(point.time for point in curve.points)]
        shares = [1.0, *(point.survival for point in curve.points)]
        if times[-1] < curve.last:
            times, shares = [*times, curve.last], [*shares, shares[-1]]
        axes.step(times, shares, where="post", color=colour, linestyle=dashes, linewidth=2, transform=moved)
        if curve.censored:
            axes.plot(
                curve.censored,
                [curve.at(time) for time in curve.censored],
                linestyle="none",
                marker="|",
                markersize=11,
                markeredgewidth=2,
                color=colour,
                transform=moved,
                clip_on=False,
            )
        found = solved(group)
        count = f"{found.k}/{found.n} solved" if found is not None else ""
        labels.append((f"{group.label} ({count})", colour, dashes))
    axes.set_xlim(0, end * 1.01)
    axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.xaxis.set_major_formatter(_with_commas)
    axes.set_xlabel("training steps")
    axes.set_ylabel("seeds not yet solved")
    figure.legend(handles=_handles(labels), loc="outside right upper", handlelength=3.6, fontsize=9)
    _caption(
        figure,
        results,
        "Kaplan-Meier over seeds; | marks seeds unsolved when their run ended (censored). "
        "Lines are drawn a point or two apart so that equal ones can be told apart.",
    )
    return figure


def curves_figure(results: Results, metrics: Metrics) -> "Figure":
    """Loss against training tokens, mean and range over seeds; beside it the final loss with its interval."""
    lines = {
        cell.run_id: metrics(cell.run_id) for group in results.groups for cell in group.done if cell.run_id is not None
    }
    metric = VAL_LOSS if _validated(lines.values()) else TRAIN_LOSS
    curves = [(i, group, _curve(group, lines, metric)) for i, group in enumerate(results.groups)]
    drawn = [curve for _, _, curve in curves if curve is not None]
    if not drawn:
        raise ConfigError(f"request = {results.sweep}: no run is done yet, so there is nothing to draw")
    figure, (axes, beside) = _new_figure(results, panels=2)
    labels = []
    for i, group, curve in curves:
        if curve is None:
            continue
        colour, dashes = _look(i)
        if curve.n > 1:
            axes.fill_between(curve.tokens, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(curve.tokens, curve.mean, color=colour, linestyle=dashes, linewidth=1.8)
        labels.append((f"{group.label} (n = {curve.n})", colour, dashes))
    _zoom(axes, drawn)
    axes.xaxis.set_major_formatter(_with_suffix)
    axes.set_xlabel("training tokens")
    axes.set_ylabel(f"{'validation' if metric == VAL_LOSS else 'training'} loss (nats per token)")
    if len(labels) <= LEGEND_ROWS:
        axes.legend(handles=_handles(labels), loc="upper right", handlelength=3.6, fontsize=9)
    final = VAL_LOSS if any(group.numbers(VAL_LOSS) for group in results.groups) else TRAIN_LOSS
    _draw_estimates(beside, results, final)
    left_out = sum(not cell.final or cell.diverged for cell in results.cells)
    several = max(curve.n for curve in drawn) > 1
    lines_below = [
        "Left: mean over the seeds of a row; the band is from the least to the greatest." if several else "",
        "Right: a dot a seed; the mean with its 95% interval, computed as in the table." if several else "",
        f"Not drawn: runs that diverged or have no result ({left_out})." if left_out else "",
    ]
    _caption(figure, results, " ".join(filter(None, lines_below)))
    return figure


def _draw_estimates(axes: "Axes", results: Results, metric: str) -> None:
    """Final values, a line a row from the top: every seed, the mean, and the interval where there is one."""
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    for i, group in enumerate(results.groups):
        values, (colour, dashes) = group.numbers(metric), _look(i)
        mean = stats.estimate(values, pooling)
        if mean is None:
            axes.text(0.5, i, "no result", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=9)
            continue
        axes.plot(values, [i + 0.22] * len(values), "o", color=colour, markersize=3.5, alpha=0.6)
        bar = axes.errorbar(mean.mean, i, xerr=mean.half, fmt="s", color=colour, markersize=5, capsize=4, linewidth=1.8)
        for line in bar.lines[2]:
            line.set_linestyle(dashes)
    labels = [_plain("\n".join(textwrap.wrap(group.label, 26))) for group in results.groups]
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    for i, text in enumerate(axes.get_yticklabels()):
        text.set_color(_look(i)[0])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_xlabel(f"final {metric_header(metric)}")


def _validated(runs: Iterable[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether every run was validated often enough, while it trained, to draw a curve."""
    counts = [sum(line.get(VAL_LOSS) is not None for line in lines) for lines in runs]
    return bool(counts) and min(counts) >= MIN_VALIDATIONS


def _curve(group: Group, lines: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> _Curve | None:
    """The curve over the positions that all done runs of the group have; None if there is none."""
    runs = [
        {float(line["tokens"]): float(line[metric]) for line in lines[cell.run_id] if line.get(metric) is not None}
        for cell in group.done
        if cell.run_id is not None
    ]
    runs = [run for run in runs if run]
    if not runs:
        return None
    tokens = sorted(set(runs[0]).intersection(*runs[1:]))
    values = [[run[position] for run in runs] for position in tokens]
    if not tokens:
        return None
    return _Curve(
        tokens=tuple(tokens),
        mean=tuple(map(fmean, values)),
        low=tuple(map(min, values)),
        high=tuple(map(max, values)),
        n=len(runs),
    )


def _look(i: int) -> tuple[str, Any]:
    """Colour and dashes of line i: neighbours differ in both; all pairs are used before any repeats."""
    return COLOURS[i % len(COLOURS)], DASHES[(i + i // (len(COLOURS) * len(DASHES))) % len(DASHES)]


def _new_figure(results: Results, *, panels: int) -> "tuple[Figure, list[Axes]]":
    """The figure, then its axes, titled; the second panel is the narrower one."""
    from matplotlib import pyplot

    # Every row is named beside the curves, so that the figure grows with them.
    height = 4.8 + 0.4 * max(0, len(results.groups) - LEGEND_ROWS)
    ratios = [1.0] if panels == 1 else [1.7, 1.0]
    figure, grid = pyplot.subplots(
        1, panels, figsize=(9.5, height), layout="constrained", squeeze=False, gridspec_kw={"width_ratios": ratios}
    )
    figure.suptitle(
        _plain("\n".join(textwrap.wrap(title_of(results), 90))), x=0.01, ha="left", fontsize=11, fontweight="bold"
    )
    for axes in grid[0]:
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, list(grid[0])


def _handles(labels: Sequence[tuple[str, str, Any]]) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=2, label=_plain("\n".join(textwrap.wrap(label, 34))))
        for label, colour, dashes in labels
    ]


def _caption(figure: "Figure", results: Results, how_to_read: str) -> None:
    lines = [*report_caption(results), settings_line(results), how_to_read]
    wrapped = [part for line in lines if line for part in textwrap.wrap(line, _WRAP)]
    figure.supxlabel(_plain("\n".join(wrapped)), x=0.01, ha="left", fontsize=8, color="#444444")


def _zoom(axes: "Axes", curves: Sequence[_Curve]) -> None:
    """Leave the fall at the beginning out of the vertical range: it would flatten all that follows."""
    end = max(curve.tokens[-1] for curve in curves)
    seen = [
        value
        for curve in curves
        for token, low, high in zip(curve.tokens, curve.low, curve.high, strict=True)
        if token >= _SHOWN_FROM * end
        for value in (low, high)
    ]
    margin = 0.04 * (max(seen) - min(seen)) or 0.1
    axes.set_ylim(min(seen) - margin, max(seen) + margin)
    axes.set_xlim(0, end * 1.01)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _with_commas(value: float, _position: float) -> str:
    return f"{value:,.0f}"


def _with_suffix(value: float, _position: float) -> str:
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{suffix}"
    return f"{value:g}"
