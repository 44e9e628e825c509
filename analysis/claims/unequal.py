"""Throughputs that compare implementations: models that should be as fast as each other, and are not.

What a model may reach is the roofline of an H200 in the middle of generation, from the prompt on, as the paper's
Table 13 was measured.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from hybrid.spec import ModelSpec

if TYPE_CHECKING:
    from hybrid.decode_cost import DecodeCost

IMPLEMENTATION_FACTOR: Final = 2.0
_BATCH: Final = 4  # sequences decoded at once in Table 13
_PROMPT: Final = 512
_EQUAL_ALLOWANCE: Final = math.log(1.1)
_EQUAL_CACHE: Final = 1.5


@final
@dataclass(frozen=True, kw_only=True)
class Timed:
    """A model and its measured tokens a second by total length; `name` says which row of what it is."""

    name: str
    label: str
    model: ModelSpec
    tokens_per_s: Mapping[int, float]


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
