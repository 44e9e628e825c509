"""What depends on the length: speed and cache of decoding, losses by position, needles found."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Final

from analysis.claims.unequal import Timed, most_bound, unequal_twins
from analysis.figures.numbers import machines_line, not_drawn_line
from analysis.figures.ours import (
    Ours,
    band_line,
    by_place,
    line_of,
    mean_of,
    nothing_to_draw,
    picture,
    training_length,
    without_line,
)
from analysis.figures.picture import MOST_LINES, Axis, HeatMap, Line, Lines, Picture, Rule
from analysis.figures.recorded import (
    DECODE_SPEED,
    GIVEN_BY,
    NEEDLE_ACCURACY,
    POSITION_DOCUMENTS,
    POSITION_HIGHS,
    POSITION_LOSSES,
    POSITION_LOWS,
    POSITIONS,
    decode_fractions,
    decode_speeds,
    needle_of,
    series_of,
)
from analysis.load import CellResult, Group
from analysis.tables.words import count, listed
from hybrid.cost import paper_block_cache_bytes
from hybrid.spec import ConfigError, ModelSpec

MIB: Final = 2**20
MOST_MAPS: Final = 12


def throughput_picture(ours: Ours) -> Picture:
    """Decoding speed against the total length (Figure 3a)."""
    results = ours.results
    wanted = ours.wanted
    found = by_place(results, wanted, decode_speeds)
    if not found:
        raise nothing_to_draw(results, "a decoding speed by length", GIVEN_BY[DECODE_SPEED])
    lines = tuple(line_of(look, group.label, curve) for look, group, curve in found[:MOST_LINES])
    timed = [one for group in results.groups if (one := timed_of(group)) is not None]
    how = [
        band_line([curve for _, _, curve in found]),
        unequal_line(timed),
        machines_line(results),
        not_drawn_line(len(found) - MOST_LINES),
        without_line(results, wanted, [group for _, group, _ in found], "decoding speed recorded"),
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
    if any(one.roofline_fraction for one in timed):
        bound = most_bound(timed)
        words = "These throughputs compare implementations, not architectures; they are"
        return "" if bound is None else f"{words} {bound}."
    twins = unequal_twins(timed)
    if twins is None:
        return ""
    return f"Throughputs are those of the implementations measured, which are unequal: {twins}."


def cache_picture(ours: Ours) -> Picture:
    """Decoding cache against the length, by the formulas of `hybrid.cost` (Figure 3b): needs no finished run."""
    results = ours.results
    wanted = ours.wanted
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


def position_loss_picture(ours: Ours) -> Picture:
    """Loss against the position in a long document (Figure 3c)."""
    results = ours.results
    wanted = ours.wanted
    found = by_place(results, wanted, lambda cell: series_of(cell, POSITIONS, POSITION_LOSSES))
    if not found:
        raise nothing_to_draw(results, "losses by position", GIVEN_BY[POSITION_LOSSES])
    lines = tuple(_of_documents(line_of(look, group.label, curve), group) for look, group, curve in found[:MOST_LINES])
    alone = any(curve.n == 1 and line.low for (_, _, curve), line in zip(found, lines, strict=False))
    how = [
        "A single seed has the 95% interval by resampling documents as its band." if alone else "",
        band_line([curve for _, _, curve in found]) if not alone or any(curve.n > 1 for _, _, curve in found) else "",
        documents_line([cell for _, group, _ in found for cell in group.done]),
        not_drawn_line(len(found) - MOST_LINES),
        without_line(results, wanted, [group for _, group, _ in found], "loss by position recorded"),
    ]
    panel = Lines(
        x=Axis(label="position (tokens)", format="whole"),
        y=Axis(label="loss (nats per token)", better="lower"),
        lines=lines,
        upright=training_length(results),
    )
    return picture(results, "position-loss", how, (panel,))


def _of_documents(line: Line, group: Group) -> Line:
    """The line of a single seed with the interval over documents, where it was recorded of every bin."""
    (cell, *others) = [one for one in group.done if series_of(one, POSITIONS, POSITION_LOSSES)]
    low, high = (series_of(cell, POSITIONS, name) for name in (POSITION_LOWS, POSITION_HIGHS))
    if others or low is None or high is None:
        return line
    return replace(line, low=low.y, high=high.y)


def documents_line(cells: Sequence[CellResult]) -> str:
    """Over how many documents the losses are means; empty where runs differ in it, or do not say."""
    found = {cell.number(POSITION_DOCUMENTS) for cell in cells}
    n = found.pop() if len(found) == 1 else None
    return "" if n is None else f"Losses are means over {count(int(n), 'document')}, each read from its beginning."


def needle_picture(ours: Ours) -> Picture:
    """Needles found by depth and length, a heat map a row (Figure 4)."""
    results = ours.results
    wanted = ours.wanted
    maps, other_grids = [], 0
    for group in results.groups:
        grids = [grid for cell in group.done if (grid := needle_of(cell)) is not None] if wanted(group) else []
        if not grids:
            continue
        same = [grid for grid in grids if (grid.lengths, grid.depths) == (grids[0].lengths, grids[0].depths)]
        other_grids += len(grids) - len(same)
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
                        tuple(mean_of([grid.accuracy[i][j] for grid in same]) for j in range(len(same[0].lengths)))
                        for i in range(len(same[0].depths))
                    ),
                    colour=Axis(label="needles found (%)", better="higher"),
                    low=0.0,
                    high=100.0,
                    upright=tuple(rule for rule in training_length(results) if rule.value <= max(same[0].lengths)),
                ),
            )
        )
    if not maps:
        raise nothing_to_draw(results, "needles found", GIVEN_BY[NEEDLE_ACCURACY])
    shown = maps[:MOST_MAPS]
    several = max(len(group.done) for group, _ in shown) > 1
    how = [
        "Mean over the seeds of a row." if several else "One seed a row.",
        f"Not drawn: {count(other_grids, 'run')} with other lengths or depths." if other_grids else "",
        "Dashed: the training length." if any(one.upright for _, one in shown) else "",
        "Crossed out: not recorded." if any(v is None for _, m in shown for row in m.values for v in row) else "",
        f"{len(maps) - MOST_MAPS} more rows are not drawn: choose with --rows." if len(maps) > MOST_MAPS else "",
        without_line(results, wanted, [group for group, _ in maps], "needles recorded"),
    ]
    widths = (1.0,) * (1 if len(shown) == 1 else 2 if len(shown) in (2, 4) else 3)
    return picture(results, "needle", how, tuple(one for _, one in shown), widths=widths)


def timed_of(group: Group) -> Timed | None:
    runs = [found for cell in group.done if (found := decode_speeds(cell))]
    if not runs or not group.specs:
        return None
    shared = set(runs[0].x).intersection(*(run.x for run in runs[1:]))
    speeds = {int(x): fmean(dict(zip(run.x, run.y, strict=True))[x] for run in runs) for x in sorted(shared)}
    shares = [dict(zip(found.x, found.y, strict=True)) for cell in group.done if (found := decode_fractions(cell))]
    return Timed(
        name=group.label,
        label=group.label,
        model=group.specs[0].model,
        tokens_per_s=speeds,
        roofline_fraction={n: fmean(one[n] for one in shares) for n in speeds if all(n in one for one in shares)}
        if shares
        else {},
    )
