"""95% intervals of what evaluations record: means over documents, and proportions.

Shapes: D documents, R resamples.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.95
RESAMPLES: Final = 2000
_SEED: Final = 1
_NUMBERS_AT_ONCE: Final = 1 << 22
_HALVINGS: Final = 44


def resampled_ratios(above_D: NDArray[np.float64], below_D: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ratio of sums, sum(above) / sum(below), over documents that are drawn with replacement, as many as there are.

    (R,) in a fixed order: the same documents are drawn for every pair of sums over as many documents. A resample in
    which there is nothing below is left out.
    """
    above, below = np.empty(RESAMPLES), np.empty(RESAMPLES)
    n = len(above_D)
    generator = np.random.Generator(np.random.Philox(key=np.array([_SEED, n], dtype=np.uint64)))
    step = max(1, _NUMBERS_AT_ONCE // n)
    for first in range(0, RESAMPLES, step):
        drawn_RD = generator.integers(n, size=(min(step, RESAMPLES - first), n))
        above[first : first + step] = above_D[drawn_RD].sum(1)
        below[first : first + step] = below_D[drawn_RD].sum(1)
    some = below > 0
    return above[some] / below[some]


def percentile_interval(values_R: NDArray[np.float64]) -> tuple[float, float]:
    """The percentile interval of a bootstrap (Efron 1979). Of few documents it is too narrow: give their number too."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values_R, [tail, 100 - tail])
    return float(low), float(high)


def ratio_interval(above_D: NDArray[np.float64], below_D: NDArray[np.float64]) -> tuple[float, float] | None:
    """The interval of a ratio of sums over documents; None of a single one, which tells nothing of others."""
    return percentile_interval(resampled_ratios(above_D, below_D)) if len(above_D) > 1 else None


@lru_cache(maxsize=4096)
def binomial_interval(k: int, n: int) -> tuple[float, float]:
    """The exact interval of a proportion k / n (Clopper & Pearson 1934), n >= 1."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if k == 0 else _bisected(lambda p: _at_least(k, n, p) < tail)
    high = 1.0 if k == n else _bisected(lambda p: 1.0 - _at_least(k + 1, n, p) > tail)
    return low, high


def _at_least(k: int, n: int, p: float) -> float:
    """The probability of k successes or more in n trials, 0 < p < 1."""
    ways, log_p, log_q = _log_ways(n), math.log(p), math.log1p(-p)
    return math.fsum(math.exp(ways[i] + i * log_p + (n - i) * log_q) for i in range(k, n + 1))


@lru_cache(maxsize=16)
def _log_ways(n: int) -> tuple[float, ...]:
    """The logarithms of the binomial coefficients of n."""
    return tuple(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(n + 1))


def _bisected(too_small: Callable[[float], bool]) -> float:
    """Where a condition on numbers between 0 and 1 stops to hold."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return (low + high) / 2
