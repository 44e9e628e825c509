"""Which blocks a hybrid has and in what order: ratio, placement and depth, or a pattern, to a layout string.

A layout is written with one letter a block (`LETTERS`), first block first. A model that mixes two kinds of block has a
ratio, as the paper writes them: of attention to Mamba, of intra-hybrid to Mamba, of global to windowed attention. 1:12
is one block of the first kind to twelve of the second, 1:0 the first kind only, 0:1 the second only. The placement says
where the blocks of the first kind stand. Positions count from 1.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from hybrid.spec import ConfigError

PlacementName = Literal["front", "middle", "end", "scatter", "cluster", "sandwich"]
Placement = PlacementName | tuple[int, ...]
PLACEMENT_NAMES: tuple[PlacementName, ...] = get_args(PlacementName)

BlockKind = Literal[
    "attention",
    "window",
    "mamba",
    "intra",
    "window_intra",
    "diff_attention",
    "diff_mamba",
    "short_conv",
    "outside",
]
LETTERS: dict[BlockKind, str] = {
    "attention": "A",
    "window": "W",
    "mamba": "M",
    "intra": "I",
    "window_intra": "J",
    "diff_attention": "D",
    "diff_mamba": "E",
    "short_conv": "C",
    "outside": "X",
}
"""What a block mixes with, as configurations name it, and its letter in a layout."""

KINDS: dict[str, BlockKind] = {letter: kind for kind, letter in LETTERS.items()}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Blocks of the first kind to blocks of the second."""

    first: int
    second: int

    def __str__(self) -> str:
        return f"{self.first}:{self.second}"


def parse_ratio(value: object, where: str = "ratio") -> Ratio:
    """Read a ratio however it arrived: "1:12", or the integer 72 that YAML 1.1 makes of a bare 1:12.

    YAML 1.1 reads `a:b` with b below 60 as the base-60 integer 60 a + b, so an integer n of at least 60
    means n // 60 : n % 60. Raises ConfigError for anything else, and for 0:0.
    """
    expected = "two whole numbers such as 1:12, 1:0 or 0:1"
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
        raise ConfigError(f"{where} = 0:0: nothing of either; expected {expected}")
    return Ratio(first=parts[0], second=parts[1])


def first_blocks(ratio: Ratio, depth: int) -> int:
    """How many of `depth` blocks are of the first kind: the ratio's share, rounded half up.

    A hybrid keeps at least one block of each kind. Raises ConfigError where `depth` cannot hold both.
    """
    if ratio.first == 0:
        return 0
    if ratio.second == 0:
        return depth
    if depth < 2:
        raise ConfigError(f"model.depth = {depth}: a hybrid of ratio {ratio} has at least 2 blocks")
    total = ratio.first + ratio.second
    share = (2 * depth * ratio.first + total) // (2 * total)
    return min(max(share, 1), depth - 1)


def scattered_positions(n: int, depth: int) -> tuple[int, ...]:
    """Evenly spread: the centre of each of `n` equal stretches of the depth."""
    return tuple((2 * i + 1) * depth // (2 * n) + 1 for i in range(n))


def clustered_positions(n: int, depth: int) -> tuple[int, ...]:
    """Consecutive, in the middle of the depth; where that is between two blocks, the later ones."""
    start = (depth - n + 1) // 2
    return tuple(range(start + 1, start + n + 1))


def sandwiched_positions(n: int, depth: int) -> tuple[int, ...]:
    """About a third at the beginning, as many at the end, the rest consecutive in the middle; one stands in the middle.

    The paper's (v3, Table 21): {1, 13}, {1, 7, 13} and {1, 2, 6, 7, 8, 12, 13} of 13 blocks.
    """
    at_each_end = (n + 1) // 3
    inner = clustered_positions(n - 2 * at_each_end, depth)
    return (*range(1, at_each_end + 1), *inner, *range(depth - at_each_end + 1, depth + 1))


def positions(n: int, depth: int, placement: Placement) -> tuple[int, ...]:
    """1-based positions of the `n` blocks of the first kind.

    `middle` and `scatter` spread them evenly; `front` is that with the first one moved to position 1, `end` with the
    last one moved to the last position (arXiv 2510.04800, section 4.2); `cluster` and `sandwich` are those of section
    4.6. Raises ConfigError for explicit positions that are out of range, repeated, or not `n` in number.
    """
    match placement:
        case "middle" | "scatter":
            return scattered_positions(n, depth)
        case "front":
            return (1, *scattered_positions(n, depth)[1:]) if n else ()
        case "end":
            return (*scattered_positions(n, depth)[:-1], depth) if n else ()
        case "cluster":
            return clustered_positions(n, depth)
        case "sandwich":
            return sandwiched_positions(n, depth)
        case tuple():
            return _explicit_positions(n, depth, placement)


def _explicit_positions(n: int, depth: int, placement: tuple[int, ...]) -> tuple[int, ...]:
    problems = []
    given = list(placement)
    outside = [p for p in placement if not 1 <= p <= depth]
    if outside:
        problems.append(f"model.placement = {given}: position {outside[0]} is outside the blocks 1 to {depth}")
    if len(set(placement)) != len(placement):
        problems.append(f"model.placement = {given}: a position is repeated")
    if len(placement) != n:
        problems.append(
            f"model.placement = {given}: expected {n} position{'s' * (n != 1)}, "
            f"one for each block of the ratio's first kind among the {depth}"
        )
    if problems:
        raise ConfigError(problems)
    return tuple(sorted(placement))


def layout(ratio: Ratio, depth: int, placement: Placement, *, letters: str = "AM") -> str:
    """The order of the blocks, one letter each, such as "MMMMMMAMMMMMM"; `letters` are the first and second kind's."""
    if depth < 1:
        raise ConfigError(f"model.depth = {depth}: expected at least 1 block")
    first = set(positions(first_blocks(ratio, depth), depth, placement))
    return "".join(letters[0] if i in first else letters[1] for i in range(1, depth + 1))


# --- patterns -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One block of a pattern; `bare` blocks have no feed-forward network."""

    letter: str
    bare: bool


_TOKEN = re.compile(r"\s*(?:([A-Z])(\.?)([1-9]\d{0,8})?|(\()|(\))([1-9]\d{0,8})?)")
_LONGEST = 10_000


def parse_pattern(text: object, where: str = "model.pattern") -> tuple[Slot, ...]:
    """Read a pattern such as "(M3 A)4 M2": letters of `LETTERS`, each with an optional count, and counted groups.

    A dot after a letter leaves that block without its feed-forward network: "M. A". Raises ConfigError.
    """
    known = ", ".join(f"{letter} {kind}" for kind, letter in LETTERS.items())
    expected = (
        f"expected block letters ({known}), each with . for no ffn and a count if wanted, such as (M3 A)4 or M.2 A"
    )
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where} = {text!r}: {expected}")
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    stack: list[list[Slot]] = [[]]
    at, rest = 0, text.rstrip()
    while at < len(rest):
        token = _TOKEN.match(rest, at)
        if token is None:
            raise ConfigError(f"{where} = {shown}: {rest[at:].split()[0]!r} is no block; {expected}")
        at = token.end()
        letter, dot, count, opening, closing, times = token.groups()
        if letter:
            if letter not in KINDS:
                raise ConfigError(f"{where} = {shown}: {letter} is no block; {expected}")
            stack[-1].extend([Slot(letter=letter, bare=bool(dot))] * min(int(count or 1), _LONGEST + 1))
        elif opening:
            stack.append([])
        elif closing and len(stack) > 1:
            group = stack.pop()
            stack[-1].extend(group * min(int(times or 1), _LONGEST + 1))
        else:
            raise ConfigError(f"{where} = {shown}: a bracket is closed that was not opened; {expected}")
        if len(stack[-1]) > _LONGEST:
            raise ConfigError(f"{where} = {shown}: expected at most {_LONGEST} blocks")
    if len(stack) > 1 or not stack[0]:
        raise ConfigError(
            f"{where} = {shown}: {'a bracket is not closed' if len(stack) > 1 else 'no blocks'}; {expected}"
        )
    return tuple(stack[0])


def repeated(pattern: tuple[Slot, ...], depth: int) -> tuple[Slot, ...]:
    """The pattern over and over, cut at `depth` blocks."""
    return tuple(pattern[i % len(pattern)] for i in range(depth))


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
