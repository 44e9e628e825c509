"""What a comparison of two rows can show: the difference in mean loss that n seeds each would find, and the n for one.

The test is the two-sided t test of two means of n runs each, whose runs all have one standard deviation. What is known
of it from elsewhere, s0 with d0 degrees of freedom, is pooled with what the comparison itself tells, s1 with
d1 = 2 (n - 1):

    s^2 = (d0 s0^2 + d1 s1^2) / d,    d = d0 + d1,    T = (difference of the means) / (s sqrt(2 / n))

and rows differ where |T| > c, the critical value of Student's t with d degrees of freedom at alpha / comparisons
(Bonferroni). If the rows' true difference is D and the runs' true standard deviation sigma, T has the noncentral t
distribution with d degrees of freedom and noncentrality D / (sigma sqrt(2 / n)); power is the probability of |T| > c.
Here sigma is taken to be s0: it is the best guess, and a result is as uncertain as that. One seed a row is no obstacle
where d0 > 0. Rows need not share anything but sigma: pairing them on data seeds can only help.

s0 has to come from other runs than those compared: from the same ones it would be counted twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

MAX_SEEDS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far runs of one row, that differ in their seeds alone, lie apart: a standard deviation and its degrees of
    freedom. `source` says where it is from."""

    sd_nats: float
    dof: int
    source: str


def noise_of_records(losses_by_model: Sequence[Sequence[float]], source: str) -> Noise | None:
    """The spread of the losses of each model around their own mean, all models pooled; None without two of one model.

    Variances are weighted with their degrees of freedom. Losses that are not finite do not count.
    """
    groups = [[loss for loss in losses if math.isfinite(loss)] for losses in losses_by_model]
    groups = [losses for losses in groups if len(losses) >= 2]
    dof = sum(len(losses) - 1 for losses in groups)
    if not dof:
        return None
    means = [math.fsum(losses) / len(losses) for losses in groups]
    squares = math.fsum((loss - mean) ** 2 for losses, mean in zip(groups, means, strict=True) for loss in losses)
    return Noise(sd_nats=math.sqrt(squares / dof), dof=dof, source=source)


def power_of(noise: Noise, n_seeds: int, difference_nats: float, *, alpha: float, comparisons: int = 1) -> float:
    """The probability that the test finds a true difference of this size, in either direction.

    At no difference that is alpha / comparisons. 0 where there are no degrees of freedom: one seed, and no noise known.
    """
    _check(noise, n_seeds, alpha, comparisons)
    dof = noise.dof + 2 * (n_seeds - 1)
    if dof == 0:
        return 0.0
    if noise.sd_nats == 0:
        return alpha / comparisons if difference_nats == 0 else 1.0
    noncentrality = abs(difference_nats) / (noise.sd_nats * math.sqrt(2 / n_seeds))
    critical = _critical(dof, alpha / comparisons)
    return _exceeds(critical, dof, noncentrality) + _exceeds(critical, dof, -noncentrality)


def detectable_nats(noise: Noise, n_seeds: int, *, alpha: float, power: float, comparisons: int = 1) -> float:
    """The smallest true difference in mean loss that n seeds a row find with this power.

    `comparisons`: as many pairs of rows are tested, and one false difference among all of them has probability `alpha`
    at most. Infinite where there are no degrees of freedom; 0 where `power` is no more than alpha / comparisons.
    """
    _check(noise, n_seeds, alpha, comparisons)
    _check_power(power)
    dof = noise.dof + 2 * (n_seeds - 1)
    if dof == 0:
        return math.inf
    if noise.sd_nats == 0 or power <= alpha / comparisons:
        return 0.0
    critical = _critical(dof, alpha / comparisons)
    low, high = 0.0, 1.0
    while _exceeds(critical, dof, high) + _exceeds(critical, dof, -high) < power:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if _exceeds(critical, dof, middle) + _exceeds(critical, dof, -middle) < power:
            low = middle
        else:
            high = middle
    return high * noise.sd_nats * math.sqrt(2 / n_seeds)


def seeds_to_separate(
    noise: Noise, difference_nats: float, *, alpha: float, power: float, comparisons: int = 1
) -> int | None:
    """The fewest seeds a row with which a true difference of this size is found with this power.

    None where `MAX_SEEDS` are too few: rows so near each other are not told apart by seeds.
    """
    _check_power(power)

    def enough(n_seeds: int) -> bool:
        return power_of(noise, n_seeds, difference_nats, alpha=alpha, comparisons=comparisons) >= power

    if not enough(MAX_SEEDS):
        return None
    too_few, sufficient = 0, MAX_SEEDS
    while sufficient - too_few > 1:
        middle = (too_few + sufficient) // 2
        if enough(middle):
            sufficient = middle
        else:
            too_few = middle
    return sufficient


def _check(noise: Noise, n_seeds: int, alpha: float, comparisons: int) -> None:
    """Raises ValueError for what means nothing; what users type is checked where it is read."""
    if not (noise.sd_nats >= 0 and math.isfinite(noise.sd_nats) and noise.dof >= 0):
        raise ValueError(f"{noise}: expected a finite sd_nats and a dof of 0 or more")
    if n_seeds < 1 or comparisons < 1:
        raise ValueError(f"n_seeds = {n_seeds}, comparisons = {comparisons}: expected at least 1 of each")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha}: expected a probability above 0 and below 1")


def _check_power(power: float) -> None:
    if not 0 < power < 1:
        raise ValueError(f"power = {power}: expected a probability above 0 and below 1")


# --- noncentral t -------------------------------------------------------------------------------

# SciPy's own noncentral t gives NaN in tails that occur here, and can take minutes over one value. Where it gives a
# number, these integrals agree with it to 1e-10 (tests/sweeps/test_power.py).
_NODES: Final = 400
_NORMAL_RANGE: Final = 9.0
_MANY_DOF: Final = 100


def _critical(dof: int, alpha: float) -> float:
    from scipy.special import stdtrit

    return -float(stdtrit(dof, alpha / 2))


def _exceeds(critical: float, dof: int, noncentrality: float) -> float:
    """P((Z + noncentrality) / U > critical): Z standard normal, U^2 a chi-square over its degrees of freedom, `dof`.

    By Gauss and Legendre over the one of the two whose integrand is the smoother: with few degrees of freedom over Z,
    with many, when U keeps close to 1, over U.
    """
    import numpy as np
    from scipy.special import chdtr, chdtri, gammaln, ndtr

    def integral(low: float, high: float, integrand: Any) -> float:
        nodes, weights = _gauss_legendre()
        x = (high - low) / 2 * nodes + (high + low) / 2
        return float((high - low) / 2 * (weights * integrand(x)).sum())

    if dof < _MANY_DOF:
        low = max(-noncentrality, -_NORMAL_RANGE)
        if low >= _NORMAL_RANGE:
            return 0.0
        density = 1 / math.sqrt(2 * math.pi)
        return integral(
            low,
            _NORMAL_RANGE,
            lambda z: density * np.exp(-z * z / 2) * chdtr(dof, dof * ((z + noncentrality) / critical) ** 2),
        )
    log_density = dof / 2 * math.log(dof / 2) + math.log(2) - float(gammaln(dof / 2))
    return integral(
        math.sqrt(chdtri(dof, 1 - 1e-16) / dof),
        math.sqrt(chdtri(dof, 1e-18) / dof),
        lambda u: np.exp(log_density + (dof - 1) * np.log(u) - dof * u * u / 2) * ndtr(noncentrality - critical * u),
    )


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[Any, Any]:
    """Nodes and weights on [-1, 1]."""
    from numpy.polynomial.legendre import leggauss

    nodes, weights = leggauss(_NODES)
    return nodes, weights
