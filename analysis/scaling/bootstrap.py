"""What is resampled, and intervals from what came of it.

Branches of one trunk have its seeds and data, so that trunks are resampled and not points: within each size, one fewer
than there are, which makes up for means of few (Rao & Wu 1988). Where a size has one trunk only, how far another would
lie from it cannot be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from analysis.scaling.law import Array
from analysis.scaling.points import Point, sizes_of, trunks_of

_FEWEST_DF: Final = 1.0


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is resampled: the points of each stratum's clusters, which are trunks if `by_trunk`, else single points.

    `trunks` says which trunk each point is of. `identified`: whether noise that a trunk's branches share can be seen.
    """

    text: str
    strata: tuple[tuple[tuple[int, ...], ...], ...]
    trunks: tuple[int, ...]
    identified: bool
    by_trunk: bool


def plan_of(points: Sequence[Point]) -> Plan:
    """By trunks where sizes have several, else by points."""
    names = trunks_of(points)
    n = len(points)
    single = tuple((i,) for i in range(n))
    if names is None:
        return Plan(
            text="points are resampled, each as a run of its own",
            strata=(single,),
            trunks=tuple(range(n)),
            identified=True,
            by_trunk=False,
        )
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    trunks = tuple(index[name] for name in names)
    strata = []
    for members in sizes_of(points):
        found: dict[int, list[int]] = {}
        for i in members:
            found.setdefault(trunks[i], []).append(i)
        strata.append(tuple(tuple(cluster) for cluster in found.values()))
    if len(index) == n:
        return Plan(
            text="points are resampled: each is a trunk of its own",
            strata=(single,),
            trunks=trunks,
            identified=True,
            by_trunk=False,
        )
    alone = sum(len(stratum) == 1 for stratum in strata)
    if alone == len(strata):
        return Plan(
            text="points are resampled, given their trunks",
            strata=(single,),
            trunks=trunks,
            identified=False,
            by_trunk=False,
        )
    rest = f"; {alone} of {len(strata)} sizes have one trunk, which stays" if alone else ""
    return Plan(
        text=f"{len(index)} trunks are resampled within their sizes{rest}",
        strata=tuple(strata),
        trunks=trunks,
        identified=not alone,
        by_trunk=True,
    )


def weights_of(plan: Plan, n: int, resamples: int, seed: int) -> Array:
    """How often each point counts, (R, n)."""
    rng = np.random.default_rng([seed, 7])
    weights = np.ones((resamples, n))
    for stratum in plan.strata:
        m = len(stratum)
        if m == 1:
            continue
        whole = len(plan.strata) == 1
        drawn = m if whole else m - 1
        counts = rng.multinomial(drawn, np.full(m, 1 / m), size=resamples) * (m / drawn)
        for j, cluster in enumerate(stratum):
            weights[:, cluster] = counts[:, j, None]
    return weights


def shared_noise(plan: Plan, sd: float, resamples: int, seed: int) -> Array:
    """Normal noise that all points of a trunk share, (R, n)."""
    rng = np.random.default_rng([seed, 8])
    drawn = rng.standard_normal((resamples, max(plan.trunks) + 1)) * sd
    return np.asarray(drawn[:, np.array(plan.trunks)])


def interval(draws: Array, weights: Array, plan: Plan, level: float) -> tuple[float, float]:
    """The percentile interval; for resampled trunks its distances from the median grow as Student's t does over the
    normal, with the degrees of freedom that Welch (1947) gives to a sum of variances that are each known from few."""
    low, middle, high = (float(q) for q in np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2]))
    df = degrees_of_freedom(draws, weights, plan)
    if df is None:
        return low, high
    factor = float(stdtrit(df, (1 + level) / 2)) / float(ndtri((1 + level) / 2))
    return middle + (low - middle) * factor, middle + (high - middle) * factor


def degrees_of_freedom(draws: Array, weights: Array, plan: Plan) -> float | None:
    """What each size's trunks add to the variance of the draws, by their regression on the weights, makes the degrees
    of freedom of the sum; None where points are resampled."""
    if not plan.by_trunk:
        return None
    clusters = [stratum for stratum in plan.strata if len(stratum) > 1]
    # One column less than a size has trunks: their weights have a fixed sum.
    columns = np.stack([weights[:, cluster[0]] for stratum in clusters for cluster in stratum[1:]], axis=1)
    centred = columns - columns.mean(axis=0)
    slopes = np.linalg.lstsq(centred, draws - draws.mean(), rcond=None)[0]
    parts, begin = [], 0
    for stratum in clusters:
        end = begin + len(stratum) - 1
        parts.append((float((centred[:, begin:end] @ slopes[begin:end]).var()), len(stratum) - 1))
        begin = end
    total = sum(part for part, _ in parts)
    return max(_FEWEST_DF, total**2 / max(1e-300, sum(part**2 / df for part, df in parts)))


def standard_error(draws: Array) -> float:
    """Half the width of the middle 68.3% of the draws: their standard deviation if they are normal, and one that a few
    that ran away do not move."""
    low, high = np.quantile(draws, [float(ndtr(-1.0)), float(ndtr(1.0))])
    return float(high - low) / 2
