"""Which blocks a hybrid has and in what order: ratio, placement and depth to a layout string.

A layout is written with one letter a block, first block first: `A` attention, `M` Mamba.
Ratios are attention to Mamba, as the paper writes them: 1:12 is one attention block to twelve Mamba
blocks, 1:0 all attention, 0:1 all Mamba. Positions count from 1.
"""

from dataclasses import dataclass
from typing import Literal

from hybrid.spec import ConfigError

PlacementName = Literal["front", "middle", "end"]
Placement = PlacementName | tuple[int, ...]

ATTENTION = "A"
MAMBA = "M"


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Attention blocks to Mamba blocks."""

    attention: int
    mamba: int

    def __str__(self) -> str:
        return f"{self.attention}:{self.mamba}"


def parse_ratio(value: object, where: str = "ratio") -> Ratio:
    """Read a ratio however it arrived: "1:12", or the integer 72 that YAML 1.1 makes of a bare 1:12.

    YAML 1.1 reads `a:b` with b below 60 as the base-60 integer 60 a + b, so an integer n of at least 60
    means n // 60 : n % 60. Raises ConfigError for anything else, and for 0:0.
    """
    expected = "two whole numbers, attention to Mamba, such as 1:12, 1:0 or 0:1"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 60:
        parts = divmod(value, 60)
    elif isinstance(value, str):
        left, colon, right = (part.strip() for part in value.partition(":"))
        if not (colon and left.isascii() and left.isdigit() and right.isascii() and right.isdigit()):
            raise ConfigError(f"{where} = {value!r}: expected {expected}")
        parts = int(left), int(right)
    else:
        raise ConfigError(f"{where} = {value!r}: expected {expected}")
    if parts == (0, 0):
        raise ConfigError(f"{where} = 0:0: no blocks at all; expected {expected}")
    return Ratio(attention=parts[0], mamba=parts[1])


def attention_blocks(ratio: Ratio, depth: int) -> int:
    """How many of `depth` blocks are attention: the ratio's share, rounded half up.

    A hybrid keeps at least one block of each kind. Raises ConfigError where `depth` cannot hold both.
    """
    if ratio.attention == 0:
        return 0
    if ratio.mamba == 0:
        return depth
    if depth < 2:
        raise ConfigError(f"model.depth = {depth}: a hybrid of ratio {ratio} has at least 2 blocks")
    total = ratio.attention + ratio.mamba
    share = (2 * depth * ratio.attention + total) // (2 * total)
    return min(max(share, 1), depth - 1)


def middle_positions(n_attention: int, depth: int) -> tuple[int, ...]:
    """Evenly spread: the centre of each of `n_attention` equal stretches of the depth."""
    return tuple((2 * i + 1) * depth // (2 * n_attention) + 1 for i in range(n_attention))


def attention_positions(n_attention: int, depth: int, placement: Placement) -> tuple[int, ...]:
    """1-based positions of the attention blocks.

    `middle` spreads them evenly; `front` is that with the first one moved to position 1, `end` with the
    last one moved to the last position (the paper's definitions, section 4.2). Raises ConfigError for explicit
    positions that are out of range, repeated, or not `n_attention` in number.
    """
    if isinstance(placement, str):
        spread = middle_positions(n_attention, depth)
        if placement == "middle" or not spread:
            return spread
        return (1, *spread[1:]) if placement == "front" else (*spread[:-1], depth)
    problems = []
    given = list(placement)
    outside = [p for p in placement if not 1 <= p <= depth]
    if outside:
        problems.append(f"model.placement = {given}: position {outside[0]} is outside the blocks 1 to {depth}")
    if len(set(placement)) != len(placement):
        problems.append(f"model.placement = {given}: a position is repeated")
    if len(placement) != n_attention:
        problems.append(
            f"model.placement = {given}: expected {n_attention} position{'s' * (n_attention != 1)}, "
            f"one for each attention block of the {depth}"
        )
    if problems:
        raise ConfigError(problems)
    return tuple(sorted(placement))


def layout(ratio: Ratio, depth: int, placement: Placement) -> str:
    """The order of the blocks, one letter each, such as "MMMMMMAMMMMMM"."""
    if depth < 1:
        raise ConfigError(f"model.depth = {depth}: expected at least 1 block")
    positions = set(attention_positions(attention_blocks(ratio, depth), depth, placement))
    return "".join(ATTENTION if i in positions else MAMBA for i in range(1, depth + 1))


def compact(pattern: str) -> str:
    """A layout with its repetitions counted: "MMMAMMM" is "M3 A M3", "MAMAMA" is "(MA)3". For people; not parsed
    back."""
    for period in range(2, len(pattern) // 2 + 1):
        unit, times = pattern[:period], len(pattern) // period
        if unit * times == pattern and len(set(unit)) > 1:
            return f"({compact(unit).replace(' ', '')}){times}"
    runs: list[tuple[str, int]] = []
    for letter in pattern:
        if runs and runs[-1][0] == letter:
            runs[-1] = (letter, runs[-1][1] + 1)
        else:
            runs.append((letter, 1))
    return " ".join(letter + (str(n) if n > 1 else "") for letter, n in runs)
