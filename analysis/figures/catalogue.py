"""The paper's figures by the names that a user may type: what each shows, and what of it is printed as numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

_NUMBER: Final = re.compile(r"(?:figure|fig)?[ ._-]*(\d+[a-z]?)")


@final
@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A figure of the paper: the sweep and kind that make it of our runs, and what is printed of it.

    `rows` are those of the sweep that the paper's figure shows. `printed` names the tables that have its numbers, empty
    where it is a picture alone.
    """

    what: str
    kind: str
    sweep: str
    printed: str
    rows: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


_FIVE: Final = ("Llama", "SWA", "Mamba", "Inter-H", "Intra-H")
_FIVE_AT_EQUAL_FLOPS: Final = ("Llama", "* equal FLOPs")

FIGURES: Final[Mapping[str, PaperFigure]] = {
    "fig1b": PaperFigure(
        what="quality against throughput, with the Pareto front",
        kind="quality-throughput",
        sweep="table9",
        printed="v3, Tables 9 and 13",
        rows=_FIVE_AT_EQUAL_FLOPS,
        also=("quality-throughput",),
    ),
    "fig2": PaperFigure(
        what="training cost: FLOPs, speed, memory",
        kind="training-cost",
        sweep="table2",
        printed="FLOPs, computed",
        rows=_FIVE,
        also=("training-cost",),
    ),
    "fig3a": PaperFigure(
        what="decoding throughput against the length",
        kind="throughput",
        sweep="table2",
        printed="v3, Table 13",
        rows=_FIVE,
        also=("throughput",),
    ),
    "fig3b": PaperFigure(
        what="decoding cache against the length",
        kind="cache",
        sweep="table2",
        printed="computed; v3, Table 9",
        rows=_FIVE,
        also=("cache",),
    ),
    "fig3c": PaperFigure(
        what="loss by position, to beyond the training length",
        kind="position-loss",
        sweep="table2",
        printed="",
        rows=_FIVE_AT_EQUAL_FLOPS,
        also=("position-loss",),
    ),
    "fig4": PaperFigure(
        what="needles found, by depth and length",
        kind="needle",
        sweep="table2",
        printed="",
        rows=_FIVE_AT_EQUAL_FLOPS,
        also=("needle",),
    ),
    "fig8": PaperFigure(
        what="attention's weight in gated blocks, by layer",
        kind="weights",
        sweep="table5",
        printed="",
        also=("weights",),
    ),
    "positions": PaperFigure(
        what="where attention stands among Mamba (beside Table 4)",
        kind="positions",
        sweep="placement",
        printed="v3, Table 17",
    ),
    "dimensions": PaperFigure(
        what="dimension ratio of intra-hybrid blocks (beside Table 5)",
        kind="dimensions",
        sweep="dims",
        printed="v3, Table 20",
    ),
    "intra-positions": PaperFigure(
        what="where intra-hybrid blocks stand (beside Table 5)",
        kind="positions",
        sweep="intra_placement",
        printed="v3, Table 21",
    ),
    "window-positions": PaperFigure(
        what="where global attention stands among windows",
        kind="positions",
        sweep="swa",
        printed="v3, Table 11",
    ),
}
ALL: Final = "all"
LIST: Final = "list"


def figure_called(name: str) -> str | None:
    """The figure that a user means: its name, another name of it, or its number in the paper; None if there is none."""
    plain = name.strip().lower().replace("_", "-")
    if plain in FIGURES:
        return plain
    number = _NUMBER.fullmatch(plain)
    if number is not None and f"fig{number[1]}" in FIGURES:
        return f"fig{number[1]}"
    return next((key for key, figure in FIGURES.items() if plain in figure.also), None)


def title_of_figure(name: str) -> str:
    """What the figure is about, with its number in the paper."""
    what = FIGURES[name].what
    number = f" (Figure {name.removeprefix('fig')})" if name.startswith("fig") else ""
    return f"{what[0].upper()}{what[1:]}{number}"


def names() -> tuple[str, ...]:
    """Every name that stands for a figure of the paper."""
    return tuple(name for key, figure in FIGURES.items() for name in (key, *figure.also))


def listing() -> str:
    """The figures, a line each, with what is printed of them."""
    rows = [
        (key, ", ".join(figure.also), figure.what, figure.printed or "not printed") for key, figure in FIGURES.items()
    ]
    header = ("figure", "also called", "what", "paper")
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(3)]
    lines = [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3])).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines) + "\n"
