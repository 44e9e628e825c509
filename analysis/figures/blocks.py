"""What blocks do and where they stand: weights of their modules, positions, dimension ratios."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from analysis import stats
from analysis.figures.numbers import left_out_line, not_drawn_line, quality_better, quality_label
from analysis.figures.ours import (
    Ours,
    band_line,
    by_place,
    estimates_line,
    estimates_of,
    line_of,
    nothing_to_draw,
    picture,
    without_line,
)
from analysis.figures.picture import MOST_LINES, Axis, Better, Line, Lines, Picture, Rule
from analysis.figures.recorded import GIVEN_BY, WEIGHT_BLOCKS, WEIGHTS, series_of
from analysis.reference.compare import value_of
from hybrid.cost import run_cost
from hybrid.spec import ConfigError

_PLACED: Final = re.compile(r"(?P<ratio>\d+:\d+) (?:at (?P<at>\d+)|(?P<where>[a-z]+))")
_WHERE: Final = ("front", "cluster", "scatter", "middle", "sandwich", "end")


def weights_picture(ours: Ours) -> Picture:
    """Attention's weight in every gated intra-hybrid block, by layer (Figure 8)."""
    results = ours.results
    wanted = ours.wanted
    found = by_place(results, wanted, lambda cell: series_of(cell, WEIGHT_BLOCKS, WEIGHTS))
    if not found:
        raise nothing_to_draw(results, "the weights of its modules", GIVEN_BY[WEIGHTS])
    lines = tuple(line_of(look, group.label, curve) for look, group, curve in found[:MOST_LINES])
    how = [
        "The gate g of a block, a mean over held-out tokens: attention's weight, Mamba's being 1 - g.",
        band_line([curve for _, _, curve in found]),
        not_drawn_line(len(found) - MOST_LINES),
        without_line(results, wanted, [group for _, group, _ in found], "recorded weights of modules"),
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


def positions_picture(ours: Ours) -> Picture:
    """Quality by where blocks stand: one block at each position; several in front, in the middle, at the end."""
    results = ours.results
    metric, found = estimates_of(ours)
    rows = [one for group, mean in found if (one := placed(group.row, mean)) is not None]
    if not rows:
        raise ConfigError(
            f"--kind positions: no row of {results.sweep} is named as those of the sweep placement are, "
            "such as `1:12 at 7` or `1:3 front`"
        )
    panels = positions_panels(rows, quality_label(metric), quality_better(metric), size="")
    how = [estimates_line([mean for _, mean in found]), left_out_line(results)]
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


def dimensions_picture(ours: Ours) -> Picture:
    """Quality by how much of the width of intra-hybrid blocks is attention's."""
    results = ours.results
    metric, found = estimates_of(ours)
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
    how = [DIMENSIONS_LINE, estimates_line([mean for _, mean in found]), left_out_line(results)]
    return picture(results, "dimensions", how, (panel,))


DIMENSIONS_LINE: Final = (
    "Attention's share: of its query-key width and Mamba's width before expansion, together; beside the points, the "
    "ratio of the two. 0:1 is Mamba alone, 1:0 attention alone."
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
    line = _placed_line(0, "", [share for _, share, _ in ordered], rows)
    return Lines(
        title=title,
        x=Axis(label="attention's share of the width", format="percent", shown=(0.0, 1.0)),
        y=Axis(label=label, better=better),
        lines=(replace(line, names=tuple(name for name, _, _ in ordered)),),
        points=True,
        spread="bars",
        names="beside",
        noise=noise,
    )
