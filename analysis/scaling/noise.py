"""How far a run's loss lies from that of another seed: what simulated curves at equal FLOPs are drawn with.

The loss of a run is that of its size and budget, plus what its trunk's seeds and data add to all of its branches, plus
what is its own. Which is which shows only where a size has several trunks.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np

from analysis.scaling.law import P
from analysis.scaling.parametric import Fit
from analysis.scaling.points import Point, budgets_of, sizes_of

Source = Literal["seeds", "given", "residuals", "none"]
_NORMAL_MAD: Final = 1.4826
# A median absolute deviation knows as much of a normal's spread as a standard deviation of so many times the values.
_MAD_EFFICIENCY: Final = 0.37


@final
@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviations in nats. With `split` False only that of both together is known, as `own`. `df`: degrees of
    freedom of the estimate, None where it is taken as known."""

    shared: float
    own: float
    split: bool
    df: float | None
    source: Source
    text: str


SILENT: Final = Noise(shared=0.0, own=0.0, split=True, df=None, source="none", text="left out")


def noise_of(points: Sequence[Point], smooth: Fit | None, *, given: float | None, df: float | None = None) -> Noise:
    """As given, else from trunks that differ in their seeds, else from how far the points lie off a `smooth` law."""
    seeds = _between_seeds(points)
    if given is not None:
        known = "" if df is None else f", known by {df:g} degrees of freedom"
        return Noise(
            shared=0.0, own=given, split=False, df=df, source="given", text=f"{given:.2g} nats a run, as given{known}"
        )
    if seeds is not None:
        return seeds
    return _residual(points, smooth)


def _between_seeds(points: Sequence[Point]) -> Noise | None:
    """Components of variance of the trunks of one size (Henderson's first method), pooled over sizes."""
    budgets = budgets_of(points)
    if budgets is None:
        return None
    at = {i: b for b, members in enumerate(budgets) for i in members}
    between, between_df, within, within_df, harmonic = 0.0, 0, 0.0, 0, 0.0
    for members in sizes_of(points):
        by_trunk: dict[str, dict[int, float]] = defaultdict(dict)
        for i in members:
            by_trunk[points[i].trunk or f"point {i}"][at[i]] = points[i].loss
        columns = sorted(set.intersection(*(set(found) for found in by_trunk.values())))
        if len(by_trunk) < 2 or not columns:
            continue
        table = np.array([[found[column] for column in columns] for found in by_trunk.values()])
        rows, k = table.shape
        means = table.mean(axis=1)
        between += float(((means - means.mean()) ** 2).sum())
        between_df += rows - 1
        harmonic += (rows - 1) / k
        off = table - table.mean(axis=0) - means[:, None] + table.mean()
        within += float((off * off).sum())
        within_df += (rows - 1) * (k - 1)
    if not between_df:
        return None
    own = math.sqrt(within / within_df) if within_df else 0.0
    shared = math.sqrt(max(0.0, between / between_df - own * own * harmonic / between_df))
    text = (
        f"{math.hypot(shared, own):.2g} nats a run, between seeds: {shared:.2g} shared by a trunk's branches, "
        f"{own:.2g} a branch's own"
    )
    return Noise(shared=shared, own=own, split=True, df=float(between_df), source="seeds", text=text)


def _residual(points: Sequence[Point], smooth: Fit | None) -> Noise:
    """The spread of the points around L(N, D), from its median, which a few runs that went wrong do not move."""
    if smooth is None:
        return Noise(shared=0.0, own=0.0, split=False, df=None, source="none", text="unknown: too few points to see it")
    loss = np.array([point.loss for point in points])
    free = len(points) - P
    sd = _NORMAL_MAD * float(np.median(np.abs(smooth.residuals) * loss)) * math.sqrt(len(points) / free)
    return Noise(
        shared=0.0,
        own=sd,
        split=False,
        df=max(1.0, _MAD_EFFICIENCY * free),
        source="residuals",
        text=f"{sd:.2g} nats a run, from the residuals of L(N, D): what that law misses is in it",
    )
