"""Differences between the rows of a request, and which row is best as far as its seeds can tell.

Two rows with data seeds in common are compared on those: the difference of each pair, whose noise is what is left of
their block after an effect of each row and one of each seed (a two-way layout, the classic of randomised blocks; with
two rows that is the paired t test). Rows without two seeds in common are compared unpaired, from the spread pooled over
rows, or by Welch's test where rows are too unlike to pool. One seed a row tells nothing: no spread is invented.

p values are two-sided and adjusted by Holm over all comparisons of a table; so are, apart, those of equivalence.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Final, Literal, final

from analysis import stats
from analysis.decide import Difference, Evidence, adjusted, decide, evidence_of, seeds_to_decide
from analysis.load import Group, Results

Better = Literal["lower", "higher"]
Mark = Literal["best", "equivalent", "undecided"]
Finding = Literal["lower", "higher", "equivalent", "undecided", "untestable"]

ALPHA: Final = 1 - stats.LEVEL
_ROUNDING: Final = 1e-12


@final
@dataclass(frozen=True, kw_only=True)
class Sample:
    """A row's values of one metric: all of them, and by data seed (a mean, where runs share one)."""

    group: Group
    metric: str

    @cached_property
    def values(self) -> tuple[float, ...]:
        return tuple(self.group.numbers(self.metric))

    @cached_property
    def by_seed(self) -> Mapping[int, float]:
        found: dict[int, list[float]] = {}
        for cell in self.group.done:
            value = cell.number(self.metric)
            seed = cell.seed if cell.spec is None else cell.spec.data_seed
            if value is not None and seed is not None:
                found.setdefault(seed, []).append(value)
        return {seed: fmean(values) for seed, values in found.items()}

    def shares_a_run(self, other: "Sample") -> bool:
        mine = {cell.run_id for cell in self.group.cells if cell.run_id is not None}
        return not mine.isdisjoint(cell.run_id for cell in other.group.cells)


@final
@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The first row's mean minus the second's.

    `difference` is None where a row has no value or both are the same runs, and has no standard error where the spread
    is not known; `how` says what it was taken from, or why it could not be. `p_holm`, `p_equivalent` and `finding` are
    within the family of contrasts that it was judged in, of which `comparisons` had a standard error.
    """

    first: Group
    second: Group
    difference: Difference | None
    how: str
    paired: bool
    p: float | None
    p_holm: float | None
    p_equivalent: float | None
    finding: Finding
    comparisons: int
    margin: float

    @cached_property
    def seeds_needed(self) -> int | None:
        """Runs a row that would decide what is undecided, with 80% power, were difference and spread as estimated."""
        if self.difference is None or self.finding != "undecided":
            return None
        return seeds_to_decide(self.difference, margin=self.margin, comparisons=self.comparisons)

    @property
    def estimate(self) -> stats.Estimate | None:
        """With its interval at the level, not adjusted for other comparisons."""
        if self.difference is None:
            return None
        low = decide(self.difference, margin=0.0).low
        half = None if low is None else self.difference.estimate - low
        n = min(self.difference.n_a, self.difference.n_b)
        return stats.Estimate(mean=self.difference.estimate, half=half, sd=None, n=n)


def contrasts(
    pairs: Sequence[tuple[Group, Group]], metric: str, *, blocks: Sequence[Sequence[Group]], margin: float = 0.0
) -> tuple[Contrast, ...]:
    """One contrast a pair, judged together; equivalent where shown to lie within `margin`.

    `blocks` are the rows that share their noise: both of a pair are in one of them.
    """
    found = []
    for first, second in pairs:
        block = next(block for block in blocks if any(group is first for group in block))
        found.append(_contrast(first, second, [Sample(group=group, metric=metric) for group in block], metric))
    return _judged(found, margin)


def blocks_of(results: Results) -> tuple[tuple[Group, ...], ...]:
    """The rows that are compared with each other: those at one point of the grid; of a grid alone, all points."""
    if not results.several_rows:
        return (results.groups,)
    found: dict[tuple[object, ...], list[Group]] = {}
    for group in results.groups:
        found.setdefault(tuple(str(group.axes.get(axis)) for axis in results.axes), []).append(group)
    return tuple(map(tuple, found.values()))


@final
@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Which rows are marked, by their place among the groups, and the contrasts with the best row of each block.

    `undecided` are those of them that tell neither worse nor equivalent. `single`: no row has two values, so that
    nothing can be told apart and nothing is marked.
    """

    marks: Mapping[int, Mark]
    contrasts: tuple[Contrast, ...]
    undecided: tuple[Contrast, ...]
    single: bool


def rank(results: Results, metric: str, better: Better | None, *, margin: float = 0.0) -> Ranking:
    """Mark the best row of each block where it is told apart from all others but those shown to be equivalent to it.

    Which row is best was seen in the same numbers; as all others must be told from it, two-sided, the probability of a
    best row that is none stays below the level.
    """
    nothing = Ranking(marks={}, contrasts=(), undecided=(), single=False)
    if better is None:
        return nothing
    blocks = blocks_of(results)
    pairs: list[tuple[Group, Group]] = []
    leaders: list[Group] = []
    for block in blocks:
        rows = [group for group in block if group.numbers(metric)]
        if len(rows) < 2:
            continue
        best = (min if better == "lower" else max)(rows, key=lambda group: fmean(group.numbers(metric)))
        leaders.append(best)
        pairs += [(best, group) for group in rows if group is not best]
    if not pairs:
        return nothing
    made = contrasts(pairs, metric, blocks=blocks, margin=margin)
    if all(contrast.difference is None or contrast.difference.std_error is None for contrast in made):
        return replace(nothing, contrasts=made, single=True)
    places = {id(group): place for place, group in enumerate(results.groups)}
    marks: dict[int, Mark] = {}
    unclear: list[Contrast] = []
    for best in leaders:
        mine = [contrast for contrast in made if contrast.first is best]
        undecided = [c for c in mine if c.difference is not None and c.finding not in (better, "equivalent")]
        unclear += undecided
        marks |= {places[id(contrast.second)]: "undecided" for contrast in undecided}
        marks |= {places[id(contrast.second)]: "equivalent" for contrast in mine if contrast.finding == "equivalent"}
        if not undecided and any(contrast.finding == better for contrast in mine):
            same = [contrast.second for contrast in mine if contrast.difference is None]  # under another name
            marks |= {places[id(group)]: "best" for group in (best, *same)}
    return Ranking(marks=marks, contrasts=made, undecided=tuple(unclear), single=False)


def _contrast(first: Group, second: Group, block: Sequence[Sample], metric: str) -> Contrast:
    a, b = Sample(group=first, metric=metric), Sample(group=second, metric=metric)
    made = Contrast(
        first=first,
        second=second,
        difference=None,
        how="",
        paired=False,
        p=None,
        p_holm=None,
        p_equivalent=None,
        finding="untestable",
        comparisons=0,
        margin=0.0,
    )
    if not a.values or not b.values:
        return replace(made, how="no value")
    if a.shares_a_run(b):
        return replace(made, how="the same runs")
    common = [seed for seed in a.by_seed if seed in b.by_seed]
    if len(common) >= 2:
        estimate = fmean(a.by_seed[seed] - b.by_seed[seed] for seed in common)
        sd, df = _paired_spread(a, b, common, block)
        n = len(common)
        difference = _difference(a, b, estimate, (sd * math.sqrt(2 / n), df), n, n)
        return replace(made, difference=difference, how=f"{n} pairs", paired=True)
    sizes = len(a.values), len(b.values)
    estimate = fmean(a.values) - fmean(b.values)
    if min(sizes) < 2:
        return replace(made, difference=_difference(a, b, estimate, (0.0, 0), *sizes), how=_sizes(sizes, "one seed"))
    how = "unpaired: other seeds" if not common else "unpaired: one seed in common"
    error = _unpaired_error(a, b, block)
    return replace(made, difference=_difference(a, b, estimate, error, *sizes), how=_sizes(sizes, how))


def _sizes(sizes: tuple[int, int], how: str) -> str:
    return f"{sizes[0]} and {sizes[1]}, {how}"


def _difference(a: Sample, b: Sample, estimate: float, error: tuple[float, int], n_a: int, n_b: int) -> Difference:
    """A spread of nothing, but for the rounding of sums, is none that is known: seeds do not move such a metric."""
    std_error, df = error
    known = std_error > _ROUNDING * max(map(abs, (*a.values, *b.values)))
    return Difference(
        estimate=estimate, std_error=std_error if known else None, df=df if known else None, n_a=n_a, n_b=n_b, unit=""
    )


def _paired_spread(a: Sample, b: Sample, seeds: Sequence[int], block: Sequence[Sample]) -> tuple[float, int]:
    """The standard deviation of a run after the effects of rows and seeds, and its degrees of freedom.

    From every row of the block that has these seeds if they are alike in spread, with the seeds' effects and without
    (`stats.pool` judges; one wild row shows in the residuals of all), else from the two rows alone.
    """
    complete = [sample for sample in block if all(seed in sample.by_seed for seed in seeds)]
    for samples in (complete, [a, b]):
        rows = [[sample.by_seed[seed] for seed in seeds] for sample in samples]
        residuals = _residuals(rows)
        if len(rows) == 2 or (stats.pool(rows).used and stats.pool(residuals).used):
            df = (len(rows) - 1) * (len(seeds) - 1)
            return math.sqrt(math.fsum(value**2 for row in residuals for value in row) / df), df
    raise AssertionError("the two rows are always left")


def _residuals(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    grand = fmean(fmean(row) for row in rows)
    of_seed = [fmean(row[j] for row in rows) for j in range(len(rows[0]))]
    return [[value - fmean(row) - of_seed[j] + grand for j, value in enumerate(row)] for row in rows]


def _unpaired_error(a: Sample, b: Sample, block: Sequence[Sample]) -> tuple[float, int]:
    """Standard error and degrees of freedom: pooled over the block's rows, else Welch's with its fraction cut off."""
    n_a, n_b = len(a.values), len(b.values)
    pooling = stats.pool([sample.values for sample in block])
    if pooling.used and pooling.sd is not None:
        return pooling.sd * math.sqrt(1 / n_a + 1 / n_b), pooling.df
    parts = [(stats.standard_deviation(sample.values) or 0.0) ** 2 / len(sample.values) for sample in (a, b)]
    total = sum(parts)
    if total == 0.0:
        return 0.0, 0
    return math.sqrt(total), math.floor(total**2 / (parts[0] ** 2 / (n_a - 1) + parts[1] ** 2 / (n_b - 1)))


def _judged(made: Sequence[Contrast], margin: float) -> tuple[Contrast, ...]:
    """The contrasts as one family: Holm over those that have a standard error."""
    evidence: list[Evidence] = []
    tested: list[Contrast] = []
    for contrast in made:
        if contrast.difference is not None and contrast.difference.std_error is not None:
            tested.append(contrast)
            evidence.append(evidence_of(contrast.difference, margin=margin))
    p_values = [min(1.0, 2 * min(one.holds, one.fails)) for one in evidence]
    judged: dict[int, Contrast] = {}
    for contrast, p, p_holm, together in zip(tested, p_values, stats.holm(p_values), adjusted(evidence), strict=True):
        difference = contrast.difference
        assert difference is not None
        finding: Finding = "undecided"
        if p_holm <= ALPHA:
            finding = "lower" if difference.estimate < 0 else "higher"
        elif together.equivalent <= ALPHA:
            finding = "equivalent"
        judged[id(contrast)] = replace(
            contrast,
            p=p,
            p_holm=p_holm,
            p_equivalent=together.equivalent if margin > 0 else None,
            finding=finding,
            comparisons=len(tested),
            margin=margin,
        )
    undecided = (
        replace(contrast, finding="undecided") if contrast.difference is not None else contrast for contrast in made
    )
    return tuple(judged.get(id(contrast), other) for contrast, other in zip(made, undecided, strict=True))
