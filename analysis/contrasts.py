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
from analysis.decide import Difference, Evidence, adjusted, evidence_of, seeds_to_decide
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

    @cached_property
    def run_ids(self) -> frozenset[str]:
        return frozenset(cell.run_id for cell in self.group.cells if cell.run_id is not None)


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
        half = None
        if self.difference.std_error is not None and self.difference.df is not None:
            half = stats.t_quantile(self.difference.df) * self.difference.std_error
        n = min(self.difference.n_a, self.difference.n_b)
        return stats.Estimate(mean=self.difference.estimate, half=half, sd=None, n=n)


def contrasts(
    pairs: Sequence[tuple[Group, Group]], metric: str, *, blocks: Sequence[Sequence[Group]], margin: float = 0.0
) -> tuple[Contrast, ...]:
    """One contrast a pair, judged together; equivalent where shown to lie within `margin`.

    `blocks` are the rows that share their noise: both of a pair are in one of them.
    """
    block_of = {}
    for groups in blocks:
        block = _Block(groups, metric)
        block_of.update({id(group): block for group in groups})
    return _judged([block_of[id(first)].contrast(first, second) for first, second in pairs], margin)


def measured_on(group: Group) -> object:
    """What two losses must have in common to be compared: the data, and how long its sequences are. None: not known."""
    spec = next(iter(group.specs), None)
    return None if spec is None else (spec.data, spec.seq_len)


def blocks_of(results: Results) -> tuple[tuple[Group, ...], ...]:
    """The rows that are compared with each other: of one sweep, on the same data in sequences of one length.

    If there are several, those at one point of the grid; of a grid alone, all its points.
    """
    of_sweeps = all("/" in group.row for group in results.groups)  # a sweep of sweeps names its rows after them
    found: dict[tuple[object, ...], dict[object, list[Group]]] = {}
    for group in results.groups:
        point = tuple(str(group.axes.get(axis)) for axis in results.axes) if results.several_rows else ()
        sweep = group.row.partition("/")[0] if of_sweeps else ""
        found.setdefault((sweep, point), {}).setdefault(measured_on(group), []).append(group)
    for blocks in found.values():
        # A row that was never tried stands with the others, wherever it will belong.
        if None in blocks and len(blocks) > 1:
            untried = blocks.pop(None)
            next(iter(blocks.values())).extend(untried)
    return tuple(tuple(block) for blocks in found.values() for block in blocks.values())


@final
@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Which rows are marked, by their place among the groups, and the contrasts with the best row of each block.

    `undecided` are those of them that tell neither worse nor equivalent. `spreadless`: no contrast has a spread, so
    that nothing can be told apart and nothing is marked.
    """

    marks: Mapping[int, Mark]
    contrasts: tuple[Contrast, ...]
    undecided: tuple[Contrast, ...]
    spreadless: bool


def rank(results: Results, metric: str, better: Better | None, *, margin: float = 0.0) -> Ranking:
    """Mark the best row of each block where it is told apart from all others but those shown to be equivalent to it.

    Which row is best was seen in the same numbers; as all others must be told from it, two-sided, the probability of a
    best row that is none stays below the level.
    """
    nothing = Ranking(marks={}, contrasts=(), undecided=(), spreadless=False)
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
        return replace(nothing, contrasts=made, spreadless=True)
    places = {id(group): place for place, group in enumerate(results.groups)}
    marks: dict[int, Mark] = {}
    unclear: list[Contrast] = []
    of_leader: dict[int, list[Contrast]] = {id(best): [] for best in leaders}
    for contrast in made:
        of_leader[id(contrast.first)].append(contrast)
    for best in leaders:
        mine = of_leader[id(best)]
        undecided = [c for c in mine if c.difference is not None and c.finding not in (better, "equivalent")]
        unclear += undecided
        marks |= {places[id(contrast.second)]: "undecided" for contrast in undecided}
        marks |= {places[id(contrast.second)]: "equivalent" for contrast in mine if contrast.finding == "equivalent"}
        if not undecided and any(contrast.finding == better for contrast in mine):
            same = [contrast.second for contrast in mine if contrast.difference is None]  # under another name
            marks |= {places[id(group)]: "best" for group in (best, *same)}
    return Ranking(marks=marks, contrasts=made, undecided=tuple(unclear), spreadless=False)


class _Block:
    """Rows that share their noise; what they have in common is worked out once."""

    def __init__(self, groups: Sequence[Group], metric: str) -> None:
        self._samples = {id(group): Sample(group=group, metric=metric) for group in groups}
        self._spreads: dict[tuple[int, ...], tuple[float, int] | None] = {}

    def contrast(self, first: Group, second: Group) -> Contrast:
        """Not judged yet."""
        a, b = self._samples[id(first)], self._samples[id(second)]
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
        if not a.run_ids.isdisjoint(b.run_ids):
            return replace(made, how="the same runs")
        common = tuple(seed for seed in a.by_seed if seed in b.by_seed)
        if len(common) >= 2:
            estimate = fmean(a.by_seed[seed] - b.by_seed[seed] for seed in common)
            sd, df = self._paired_spread(a, b, common)
            n = len(common)
            difference = _difference(a, b, estimate, (sd * math.sqrt(2 / n), df), n, n)
            return replace(made, difference=difference, how=f"{n} pairs", paired=True)
        sizes = len(a.values), len(b.values)
        estimate = fmean(a.values) - fmean(b.values)
        if min(sizes) < 2:
            difference = _difference(a, b, estimate, (0.0, 0), *sizes)
            return replace(made, difference=difference, how=_sizes(sizes, "one seed"))
        how = "unpaired: other seeds" if not common else "unpaired: one seed in common"
        difference = _difference(a, b, estimate, self._unpaired_error(a, b), *sizes)
        return replace(made, difference=difference, how=_sizes(sizes, how))

    def _paired_spread(self, a: Sample, b: Sample, seeds: tuple[int, ...]) -> tuple[float, int]:
        """The standard deviation of a run after the effects of rows and seeds, and its degrees of freedom.

        From every row of the block that has these seeds if they are alike in spread, with the seeds' effects and
        without (`stats.pool` judges; one wild row shows in the residuals of all), else from the two rows alone.
        """
        if seeds not in self._spreads:
            complete = [sample for sample in self._samples.values() if all(seed in sample.by_seed for seed in seeds)]
            rows = [[sample.by_seed[seed] for seed in seeds] for sample in complete]
            alike = stats.pool(rows).used and stats.pool(_residuals(rows)).used
            self._spreads[seeds] = _residual_spread(rows) if alike else None
        of_two = [[sample.by_seed[seed] for seed in seeds] for sample in (a, b)]
        return self._spreads[seeds] or _residual_spread(of_two)

    def _unpaired_error(self, a: Sample, b: Sample) -> tuple[float, int]:
        """Standard error and degrees of freedom: pooled over the rows, else Welch's with its fraction cut off."""
        n_a, n_b = len(a.values), len(b.values)
        if self._pooling.used and self._pooling.sd is not None:
            return self._pooling.sd * math.sqrt(1 / n_a + 1 / n_b), self._pooling.df
        parts = [(stats.standard_deviation(sample.values) or 0.0) ** 2 / len(sample.values) for sample in (a, b)]
        total = sum(parts)
        if total == 0.0:
            return 0.0, 0
        return math.sqrt(total), math.floor(total**2 / (parts[0] ** 2 / (n_a - 1) + parts[1] ** 2 / (n_b - 1)))

    @cached_property
    def _pooling(self) -> stats.Pooling:
        return stats.pool([sample.values for sample in self._samples.values()])


def _residuals(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    of_row = [fmean(row) for row in rows]
    of_seed = [fmean(values) for values in zip(*rows, strict=True)]
    grand = fmean(of_row)
    return [
        [value - mine - of_seed[j] + grand for j, value in enumerate(row)]
        for row, mine in zip(rows, of_row, strict=True)
    ]


def _residual_spread(rows: Sequence[Sequence[float]]) -> tuple[float, int]:
    df = (len(rows) - 1) * (len(rows[0]) - 1)
    return math.sqrt(math.fsum(value**2 for row in _residuals(rows) for value in row) / df), df


def _sizes(sizes: tuple[int, int], how: str) -> str:
    return f"{sizes[0]} and {sizes[1]}, {how}"


def _difference(a: Sample, b: Sample, estimate: float, error: tuple[float, int], n_a: int, n_b: int) -> Difference:
    """A spread of nothing, but for the rounding of sums, is none that is known: seeds do not move such a metric."""
    std_error, df = error
    known = std_error > _ROUNDING * max(map(abs, (*a.values, *b.values)))
    return Difference(
        estimate=estimate, std_error=std_error if known else None, df=df if known else None, n_a=n_a, n_b=n_b, unit=""
    )


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
    for contrast in made:
        if contrast.difference is not None and id(contrast) not in judged:
            judged[id(contrast)] = replace(contrast, finding="undecided")
    return tuple(judged.get(id(contrast), contrast) for contrast in made)
