"""Speeds that compare implementations, and not architectures: the one rule of tables, figures and claims.

Where a record has the share of its device's roofline that was reached (an evaluation of throughput), a comparison of
rows whose shares differ by more than `IMPLEMENTATION_FACTOR` is bound to their implementations.

Where there is none, as of the paper's numbers, those are found out that should be as fast as each other, and are not.
What a model may reach is then the roofline of an H200 in the middle of generation, from the prompt on, as the paper's
Table 13 was measured.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Final, final

from analysis.load import Group
from hybrid.spec import ModelSpec

if TYPE_CHECKING:
    from hybrid.decode_cost import DecodeCost

IMPLEMENTATION_FACTOR: Final = 2.0
_SPEED: Final = re.compile(r"((?:throughput\.)?(?:train|prefill|decode|largest_batch_decode))_tokens_per_s(_at_\d+)?")
_BATCH: Final = 4  # sequences decoded at once in Table 13
_PROMPT: Final = 512
_EQUAL_ALLOWANCE: Final = math.log(1.1)
_EQUAL_CACHE: Final = 1.5


@final
@dataclass(frozen=True, kw_only=True)
class Timed:
    """A model and its measured tokens a second by total length; `name` says which row of what it is.

    `roofline_fraction` is the share of its device's roofline, where it was recorded.
    """

    name: str
    label: str
    model: ModelSpec
    tokens_per_s: Mapping[int, float]
    roofline_fraction: Mapping[int, float] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class Bound:
    """Two rows of which one reaches more than `IMPLEMENTATION_FACTOR` times the other's share of its roofline."""

    what: str
    low: str
    low_fraction: float
    high: str
    high_fraction: float

    def __str__(self) -> str:
        return (
            f"implementation-bound: {self.what}, {self.low} reaches {100 * self.low_fraction:.2g}% of its roofline and "
            f"{self.high} {100 * self.high_fraction:.2g}%, {self.high_fraction / self.low_fraction:.1f} times as much"
        )


def implementation_bound(what: str, fractions: Mapping[str, float]) -> Bound | None:
    """The rows whose shares of the roofline differ most, if by more than `IMPLEMENTATION_FACTOR`; `what` was measured.

    By label; shares that are not above zero say nothing.
    """
    known = {label: share for label, share in fractions.items() if share > 0}
    if len(known) < 2:
        return None
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if known[high] <= IMPLEMENTATION_FACTOR * known[low]:
        return None
    return Bound(what=what, low=low, low_fraction=known[low], high=high, high_fraction=known[high])


def most_bound(rows: Sequence[Timed]) -> Bound | None:
    """Of all lengths, the comparison that is most bound to implementations; None where no share was recorded too."""
    lengths = sorted({length for row in rows for length in row.roofline_fraction})
    found = [
        implementation_bound(
            f"decoding to {_length(length)} tokens",
            {row.label: row.roofline_fraction[length] for row in rows if length in row.roofline_fraction},
        )
        for length in lengths
    ]
    return max((one for one in found if one), key=lambda one: one.high_fraction / one.low_fraction, default=None)


def fraction_of(metric: str) -> str | None:
    """The metric that says which share of the roofline a speed is; None of what is no such speed."""
    match = _SPEED.fullmatch(metric)
    return None if match is None else f"{match[1]}_roofline_fraction{match[2] or ''}"


def fractions_of(groups: Sequence[Group], metric: str) -> dict[str, float]:
    """By label the share of the roofline behind a speed, a mean over seeds; of rows that recorded it."""
    name = fraction_of(metric)
    found = {} if name is None else {group.label: group.numbers(name) for group in groups}
    return {label: fmean(numbers) for label, numbers in found.items() if numbers}


@final
@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two rows that are compared: what is measured, what is allowed, and the cache in the middle."""

    row: Timed
    tokens_per_s: float
    allowed_tokens_per_s: float
    cache_mib: float


@final
@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two rows of like caches that should be as fast as each other at `length`, and are not."""

    length: int
    slow: Side
    fast: Side

    def __str__(self) -> str:
        slow, fast = self.slow, self.fast
        return (
            f"{slow.row.label}, whose cache is {slow.cache_mib:{_mib(slow)}} MiB, is measured at "
            f"{slow.tokens_per_s:.0f} tokens/s at {_length(self.length)} and {fast.row.label}, with "
            f"{fast.cache_mib:{_mib(fast)}} MiB, at {fast.tokens_per_s:.0f}, "
            f"{fast.tokens_per_s / slow.tokens_per_s:.1f} times as fast; what they move and compute would allow "
            f"{fast.allowed_tokens_per_s / slow.allowed_tokens_per_s:.2f} times"
        )


def unequal_twins(rows: Sequence[Timed], allowed: Callable[[ModelSpec, int], float] | None = None) -> Twins | None:
    """Of all pairs of rows that should be as fast as each other, the one that is least so; None if none is so by more
    than `IMPLEMENTATION_FACTOR`."""
    allow = allowed or allowed_tokens_per_s
    worst: tuple[float, Twins] | None = None
    for length in sorted({length for row in rows for length in row.tokens_per_s}):
        sides = [
            Side(
                row=row,
                tokens_per_s=row.tokens_per_s[length],
                allowed_tokens_per_s=allow(row.model, length),
                cache_mib=_mib_of(_cache_bytes(row.model, length)),
            )
            for row in rows
            if length in row.tokens_per_s
        ]
        for slow, fast in itertools.permutations(sides, 2):
            measured = math.log(fast.tokens_per_s / slow.tokens_per_s)
            if _alike(slow, fast, length) and (worst is None or measured > worst[0]):
                worst = measured, Twins(length=length, slow=slow, fast=fast)
    return None if worst is None or math.exp(worst[0]) < IMPLEMENTATION_FACTOR else worst[1]


def _alike(a: Side, b: Side, length: int) -> bool:
    sizes = _cache_bytes(a.row.model, length), _cache_bytes(b.row.model, length)
    allowed = math.log(b.allowed_tokens_per_s / a.allowed_tokens_per_s)
    return abs(allowed) <= _EQUAL_ALLOWANCE and max(sizes) <= _EQUAL_CACHE * min(sizes)


def allowed_tokens_per_s(model: ModelSpec, length: int) -> float:
    """Tokens a second that the roofline of an H200 allows in the middle of generation, from the prompt on."""
    from hybrid.decode_cost import H200_SXM, roofline

    return _BATCH / roofline(_step(model, length), H200_SXM).time_s


def _step(model: ModelSpec, length: int) -> "DecodeCost":
    from hybrid.decode_cost import decode_cost

    return decode_cost(model, batch=_BATCH, length=(_PROMPT + length) // 2, element_bytes=2)


def _cache_bytes(model: ModelSpec, length: int) -> int:
    """In the middle of generation, in the paper's convention."""
    from hybrid.cost import paper_block_cache_bytes

    return sum(paper_block_cache_bytes(block, model.d_model, (_PROMPT + length) // 2) for block in model.blocks)


def _mib_of(n_bytes: int) -> float:
    mib = n_bytes / 2**20
    return round(mib, 1) if mib >= 1 else float(f"{mib:.2g}")


def _mib(side: Side) -> str:
    return ".0f" if side.cache_mib >= 10 else ".2g"


def _length(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"
