"""Estimates, intervals and tests over seeds.

Formulas are written out; only the inverse distribution functions come from scipy.special, which is imported
when called. Intervals are two-sided with `LEVEL` coverage. A quantity that the data cannot give is None, never
a guess: one seed has no interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

LEVEL = 0.95
MAX_SD_RATIO = 4.0
MIN_SPREAD_P = 0.10
MIN_RATIO_P = 0.30


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `n` seeds; `half` is half the width of its interval, None where there is none."""

    mean: float
    half: float | None
    sd: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Whether the seed spread was pooled over rows, what it is, and why.

    `sd` and `df` describe the pooled spread even when `used` is false; both are None / 0 if no row has two seeds.
    """

    sd: float | None
    df: int
    used: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """k of n, with its Clopper-Pearson interval (None if n = 0)."""

    k: int
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class SurvivalPoint:
    """The curve from `time` on; `low` and `high` are None where the log-log interval is undefined (0 or 1)."""

    time: float
    at_risk: int
    events: int
    survival: float
    std_error: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class SurvivalCurve:
    """Kaplan-Meier estimate: one point for each distinct event time, in order, and the censored times."""

    n: int
    points: tuple[SurvivalPoint, ...]
    censored: tuple[float, ...]
    last: float

    def at(self, time: float) -> float:
        value = 1.0
        for point in self.points:
            if point.time > time:
                break
            value = point.survival
        return value


@dataclass(frozen=True, kw_only=True)
class CensoredMedian:
    """The first time at which a survival curve is at or below one half.

    `time` is None if the curve stays above; the median is then known only to lie beyond `last`, the longest time
    observed. `low` and `high` are where the bounds of the interval cross one half (None: not within `last`).
    """

    time: float | None
    low: float | None
    high: float | None
    last: float
    n: int


@dataclass(frozen=True, kw_only=True)
class MedianRange:
    """The median of `n` values, and the least and greatest of them.

    From least to greatest is an interval of the median of all there could be, whatever their distribution, with a
    coverage of 1 - 2^(1 - n) at least: 93.8% of five values (Thompson 1936). None of a single value.
    """

    median: float
    low: float | None
    high: float | None
    n: int


def median_range(values: Sequence[float]) -> MedianRange | None:
    """None of no values."""
    if not values:
        return None
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return MedianRange(median=median(values), low=low, high=high, n=len(values))


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None below two values."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def t_quantile(df: int, level: float = LEVEL) -> float:
    """Two-sided critical value of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2))


def brown_forsythe(samples: Sequence[Sequence[float]]) -> float | None:
    """p of the Brown-Forsythe test of equal spread (Levene's test around the median).

    Rows of fewer than three values say nothing here and are left out; None if fewer than two rows remain or
    no value of any row differs from its median.
    """
    from scipy.special import fdtrc

    samples = [sample for sample in samples if len(sample) >= 3]
    if len(samples) < 2:
        return None
    centres = [median(sample) for sample in samples]
    deviations = [[abs(value - centre) for value in sample] for sample, centre in zip(samples, centres, strict=True)]
    means = [fmean(row) for row in deviations]
    total = sum(len(row) for row in deviations)
    grand = math.fsum(value for row in deviations for value in row) / total
    between = math.fsum(len(row) * (mean - grand) ** 2 for row, mean in zip(deviations, means, strict=True))
    within = math.fsum((value - mean) ** 2 for row, mean in zip(deviations, means, strict=True) for value in row)
    if within == 0.0:
        return None if between == 0.0 else 0.0
    df_between, df_within = len(samples) - 1, total - len(samples)
    return float(fdtrc(df_between, df_within, (between / df_between) / (within / df_within)))


def bartlett(samples: Sequence[Sequence[float]]) -> float | None:
    """p of Bartlett's test of equal spread (1937): sharp, and right for normal noise only.

    None if fewer than two rows have two values, or one of them has no spread at all.
    """
    from scipy.special import chdtrc

    rows = [sample for sample in samples if len(sample) >= 2]
    variances = [(standard_deviation(row) or 0.0) ** 2 for row in rows]
    if len(rows) < 2 or min(variances) == 0.0:
        return None
    dfs = [len(row) - 1 for row in rows]
    df = sum(dfs)
    pooled = math.fsum(f * v for f, v in zip(dfs, variances, strict=True)) / df
    statistic = df * math.log(pooled) - math.fsum(f * math.log(v) for f, v in zip(dfs, variances, strict=True))
    correction = 1 + (math.fsum(1 / f for f in dfs) - 1 / df) / (3 * (len(rows) - 1))
    return float(chdtrc(len(rows) - 1, statistic / correction))


def pool(samples: Sequence[Sequence[float]]) -> Pooling:
    """The seed spread of all rows together, and whether to use it.

    Rows of two values or more are pooled: variance = sum of squared deviations from each row's own mean over
    the sum of (n - 1). The pooled value is used if at least two rows can be pooled and neither check speaks
    against it: the Brown-Forsythe p is at least 0.10, and the largest row SD is at most 4 times the smallest, or no
    more than such rows often show (Bartlett's p is at least 0.30). The ratio is there because Brown-Forsythe has little
    power at three seeds; Bartlett's test because of five equal rows of three seeds every second set has such a ratio.
    All look only at rows of three values or more; where fewer than two rows have that many, equal spread is assumed,
    and the reason says so.
    """
    rows = [sample for sample in samples if len(sample) >= 2]
    df = sum(len(row) - 1 for row in rows)
    if not rows:
        return Pooling(sd=None, df=0, used=False, reason="no row has two seeds")
    squares = math.fsum((value - mean) ** 2 for row in rows for mean in [fmean(row)] for value in row)
    sd = math.sqrt(squares / df)
    if len(rows) == 1:
        return Pooling(sd=sd, df=df, used=False, reason="only one row has two seeds")
    spreads = [standard_deviation(row) or 0.0 for row in rows if len(row) >= 3]
    if len(spreads) < 2:
        return Pooling(sd=sd, df=df, used=True, reason="equal spread assumed: too few seeds to check it")
    usual = bartlett([row for row in rows if len(row) >= 3])
    if max(spreads) > MAX_SD_RATIO * min(spreads) and (usual is None or usual < MIN_RATIO_P):
        return Pooling(sd=sd, df=df, used=False, reason=f"row SDs differ by more than {MAX_SD_RATIO:g} times")
    p = brown_forsythe(rows)
    if p is not None and p < MIN_SPREAD_P:
        return Pooling(sd=sd, df=df, used=False, reason=f"row SDs differ (Brown-Forsythe p = {p:.2g})")
    checked = "no spread at all" if p is None else f"Brown-Forsythe p = {p:.2g}"
    return Pooling(sd=sd, df=df, used=True, reason=f"row SDs are compatible ({checked})")


def estimate(values: Sequence[float], pooling: Pooling | None = None) -> Estimate | None:
    """Mean with its t interval: from the pooled spread if `pooling.used`, else from these values alone.

    None without values; no interval for one value, whatever other rows say.
    """
    if not values:
        return None
    n, mean, sd = len(values), fmean(values), standard_deviation(values)
    half: float | None = None
    if sd is not None:
        if pooling is not None and pooling.used and pooling.sd is not None:
            half = t_quantile(pooling.df) * pooling.sd / math.sqrt(n)
        else:
            half = t_quantile(n - 1) * sd / math.sqrt(n)
    return Estimate(mean=mean, half=half, sd=sd, n=n)


def clopper_pearson(k: int, n: int, level: float = LEVEL) -> Proportion:
    """Exact binomial interval (Clopper & Pearson 1934): covers at least `level` for every n, so it is wide."""
    from scipy.special import betaincinv

    if n == 0:
        return Proportion(k=0, n=0, low=None, high=None)
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return Proportion(k=k, n=n, low=low, high=high)


def kaplan_meier(times: Sequence[float], events: Sequence[bool], level: float = LEVEL) -> SurvivalCurve:
    """Product-limit estimate with right censoring (Kaplan & Meier 1958).

    `events[i]` says whether time i is an event or the end of observation; a time censored at an event's time
    is still at risk there. Standard errors are Greenwood's; the pointwise intervals are set on log(-log S)
    (Kalbfleisch & Prentice 1980), which keeps them within 0 and 1.

    Raises ValueError if there is nothing to estimate from.
    """
    from scipy.special import ndtri

    if not times or len(times) != len(events):
        raise ValueError(f"times and events = {len(times)} and {len(events)} values: expected as many, at least one")
    z = float(ndtri(0.5 + level / 2))
    survival, greenwood = 1.0, 0.0
    points: list[SurvivalPoint] = []
    for time in sorted({t for t, event in zip(times, events, strict=True) if event}):
        at_risk = sum(t >= time for t in times)
        count = sum(event and t == time for t, event in zip(times, events, strict=True))
        survival *= (at_risk - count) / at_risk
        std_error = low = high = None
        if survival > 0.0:
            greenwood += count / (at_risk * (at_risk - count))
            std_error = survival * math.sqrt(greenwood)
            width = z * math.sqrt(greenwood) / abs(math.log(survival))
            low, high = survival ** math.exp(width), survival ** math.exp(-width)
        points.append(
            SurvivalPoint(
                time=time, at_risk=at_risk, events=count, survival=survival, std_error=std_error, low=low, high=high
            )
        )
    censored = tuple(sorted(t for t, event in zip(times, events, strict=True) if not event))
    return SurvivalCurve(n=len(times), points=tuple(points), censored=censored, last=max(times))


def median_time(curve: SurvivalCurve) -> CensoredMedian:
    """Median of a Kaplan-Meier curve, with the interval of Brookmeyer & Crowley (1982) on the log-log scale.

    Where the curve has reached zero its pointwise interval is undefined and bounds nothing.
    """
    half = 0.5 + 1e-12
    time = next((p.time for p in curve.points if p.survival <= half), None)
    low = next((p.time for p in curve.points if p.survival <= half or (p.low is not None and p.low <= half)), None)
    high = next((p.time for p in curve.points if p.high is not None and p.high <= half), None)
    return CensoredMedian(time=time, low=low, high=high, last=curve.last, n=curve.n)


def fisher_exact(k1: int, n1: int, k2: int, n2: int) -> float:
    """Two-sided p of Fisher's exact test for k1 of n1 against k2 of n2.

    Sums the hypergeometric probabilities of all tables with these margins that are no more probable than the one
    observed; weights are whole numbers, so that ties are exact.
    """
    k = k1 + k2
    weights = {i: math.comb(n1, i) * math.comb(n2, k - i) for i in range(max(0, k - n2), min(n1, k) + 1)}
    observed = weights[k1]
    return sum(weight for weight in weights.values() if weight <= observed) / math.comb(n1 + n2, k)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test (1947): of two answers to each question, how often one alone is right.

    Where the two are equally good each of these questions falls to either side with probability one half.
    """
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << n))


def smallest_fisher_p(n1: int, n2: int) -> float:
    """The least p that Fisher's test can give with these numbers of seeds: all of one row against none of the other."""
    return fisher_exact(n1, n1, 0, n2)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted by Holm's step-down method (1979), in the order given: they control the family-wise error."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, running)
    return adjusted


def holm_of_known(p_values: Sequence[float | None]) -> list[float | None]:
    """`holm` of those that there are; None stays, and is no comparison."""
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]
