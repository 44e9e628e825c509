"""What figures read that evaluations record: their names, in this one place, and which evaluation gives them.

A metric of an evaluation is read as `kind.name` (`analysis.load`), so that no two kinds are taken for one another.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from analysis.claims.parts import FRACTION, MEAN_THROUGHPUT, THROUGHPUT
from analysis.figures.numbers import is_number
from analysis.load import CellResult

WEIGHT_BLOCKS: Final = "module_weights.gated_blocks"
WEIGHTS: Final = "module_weights.attention_weight"
POSITIONS: Final = "position.positions"
POSITION_LOSSES: Final = "position.bin_loss_nats"
POSITION_LOWS: Final = "position.bin_loss_nats_low"
POSITION_HIGHS: Final = "position.bin_loss_nats_high"
POSITION_DOCUMENTS: Final = "position.n_documents"
NEEDLE_LENGTHS: Final = "needle.lengths"
NEEDLE_DEPTHS: Final = "needle.depths_percent"
NEEDLE_ACCURACY: Final = "needle.accuracy_percent"
DECODE_SPEED: Final = str(MEAN_THROUGHPUT.recorded)
_DECODE_SPEED_AT: Final = re.compile(re.escape(str(THROUGHPUT[2048].recorded)).replace("2048", r"(\d+)"))
_FRACTION_AT: Final = re.compile(re.escape(str(FRACTION[2048].recorded)).replace("2048", r"(\d+)"))

# What gives each: for the message of a figure without data.
GIVEN_BY: Final[Mapping[str, str]] = {
    WEIGHTS: "mode=eval records it of models with gated intra-hybrid blocks (model.intra.scalar=gate)",
    POSITION_LOSSES: f"mode=eval evals=[position] would (to record {POSITIONS}, {POSITION_LOSSES}); the paper's is of "
    "30 PG19 books unpacked, means over 1K positions, up to 24K",
    NEEDLE_ACCURACY: f"mode=eval evals=[needle] would (to record {NEEDLE_LENGTHS}, {NEEDLE_DEPTHS}, {NEEDLE_ACCURACY}, "
    "a row a depth); the paper's has lengths to 16K, 11 depths, 100 trials a cell",
    DECODE_SPEED: f"mode=eval evals=[throughput] would (to record {DECODE_SPEED} and {DECODE_SPEED}_at_<length>); the "
    "paper's is at batch 4, prompt 512, total lengths of 2K to 32K",
}
# By the kind of figure that cannot be without it.
NEEDED: Final[Mapping[str, str]] = {
    "quality-throughput": DECODE_SPEED,
    "throughput": DECODE_SPEED,
    "position-loss": POSITION_LOSSES,
    "needle": NEEDLE_ACCURACY,
    "weights": WEIGHTS,
}


@final
@dataclass(frozen=True, kw_only=True)
class Series:
    """A list that an evaluation of a run recorded, with the places that its numbers belong to."""

    x: tuple[float, ...]
    y: tuple[float, ...]


def series_of(cell: CellResult, places: str, values: str) -> Series | None:
    """None where the run has no such lists, or what is there are not as many finite numbers."""
    x, y = _numbers(cell.metrics.get(places)), _numbers(cell.metrics.get(values))
    return Series(x=x, y=y) if x and y and len(x) == len(y) else None


def decode_speeds(cell: CellResult) -> Series | None:
    """Tokens a second by total length; None where none is recorded."""
    return _by_length(cell, _DECODE_SPEED_AT)


def decode_fractions(cell: CellResult) -> Series | None:
    """The share of the roofline that decoding reached, by total length; None where none is recorded."""
    return _by_length(cell, _FRACTION_AT)


def _by_length(cell: CellResult, names: re.Pattern[str]) -> Series | None:
    found = sorted(
        (int(match[1]), float(value))
        for name, value in cell.metrics.items()
        if (match := names.fullmatch(name)) and is_number(value) and value > 0
    )
    return Series(x=tuple(x for x, _ in found), y=tuple(y for _, y in found)) if found else None


@final
@dataclass(frozen=True, kw_only=True)
class Needle:
    """Percent of needles that are found, by depth (of the context, in percent) and length."""

    lengths: tuple[float, ...]
    depths: tuple[float, ...]
    accuracy: tuple[tuple[float | None, ...], ...]


def needle_of(cell: CellResult) -> Needle | None:
    """None where the run has no such grid; a cell that is no finite number stays empty."""
    lengths, depths = _numbers(cell.metrics.get(NEEDLE_LENGTHS)), _numbers(cell.metrics.get(NEEDLE_DEPTHS))
    grid = cell.metrics.get(NEEDLE_ACCURACY)
    if not lengths or not depths or not isinstance(grid, list) or len(grid) != len(depths):
        return None
    if any(not isinstance(row, list) or len(row) != len(lengths) for row in grid):
        return None
    accuracy = tuple(tuple(float(value) if is_number(value) else None for value in row) for row in grid)
    return Needle(lengths=lengths, depths=depths, accuracy=accuracy)


def _numbers(value: Any) -> tuple[float, ...]:
    """A list of finite numbers; empty for anything else."""
    if not isinstance(value, list) or not all(is_number(item) for item in value):
        return ()
    return tuple(map(float, value))
