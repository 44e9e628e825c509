"""From an estimated difference to a verdict: what may be said at a stated level, and what may not.

A claim says that a difference lies on one side of zero. With a two-sided interval at `level` it *holds* where the whole
interval lies on that side and *fails* where it lies on the other. If neither, the two are *equivalent* where the
difference is shown to lie within a margin (two one-sided tests, Schuirmann 1987: the interval at 2 level - 1 lies in
it), and else it is *undecided*: not rejecting is not equality. A difference that is told from zero and yet within the
margin is called by its side; its p for equivalence says the rest.

Several comparisons make one claim by `all_of` or `any_of`. A conjunction is an intersection-union test: it holds if
every part does at the level itself, with nothing to correct; it fails if any part does, which is corrected for the
number of parts. Several claims are judged together by `verdicts`, after Holm: the probability that any false claim is
said to hold, whatever is true of the others and however they depend on each other, is at most (1 - level) / 2; likewise
that any true one is said to fail.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from analysis.stats import LEVEL, holm
from sweeps.power import MAX_SEEDS, Noise, seeds_to_separate

Verdict = Literal["holds", "fails", "equivalent", "undecided", "untestable"]
Direction = Literal["less", "greater"]
POWER: Final = 0.8
_KNOWN_DF: Final = 10_000  # as good as a known standard deviation


@dataclass(frozen=True, kw_only=True)
class Difference:
    """a minus b, the means of `n_a` and `n_b` runs.

    `df` are those of the standard error, None where the standard deviation is known. `std_error` is None where nothing
    is known of the spread: one seed a row, and no noise from elsewhere.
    """

    estimate: float
    std_error: float | None
    df: int | None
    n_a: int
    n_b: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """p values, small where there is evidence for what each is named after.

    One-sided, for what is claimed and for its contrary; of two one-sided tests for a difference within the margin.
    """

    holds: float
    fails: float
    equivalent: float


NO_EVIDENCE: Final = Evidence(holds=1.0, fails=1.0, equivalent=1.0)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """`low` and `high` bound the interval at the level, `p` is two-sided; None where nothing is known of the spread.

    `seeds_needed`, of an undecided one: runs a row that would decide with 80% power if the difference were what is
    estimated; None where `MAX_SEEDS` would not, or nothing is known of the spread.
    """

    verdict: Verdict
    low: float | None
    high: float | None
    p: float | None
    evidence: Evidence
    seeds_needed: int | None


def decide(
    difference: Difference,
    *,
    margin: float,
    level: float = LEVEL,
    direction: Direction = "less",
    comparisons: int = 1,
    seeds: bool = True,
) -> Decision:
    """What one difference shows of the claim that a is `direction` than b.

    `comparisons` divides the error among as many (Bonferroni), for the interval, the verdict and `seeds_needed` alike.
    Without `seeds` those needed are not worked out, which takes a few milliseconds.
    """
    evidence = evidence_of(difference, margin=margin, direction=direction)
    if difference.std_error is None:
        return Decision(verdict="undecided", low=None, high=None, p=None, evidence=evidence, seeds_needed=None)
    verdict = verdict_of(evidence, level=1 - (1 - level) / comparisons)
    half = difference.std_error * -_t_inverse(difference.df, (1 - level) / comparisons / 2)
    return Decision(
        verdict=verdict,
        low=difference.estimate - half,
        high=difference.estimate + half,
        p=min(1.0, 2 * min(evidence.holds, evidence.fails)),
        evidence=evidence,
        seeds_needed=(
            seeds_to_decide(difference, margin=margin, level=level, comparisons=comparisons)
            if seeds and verdict == "undecided"
            else None
        ),
    )


def evidence_of(difference: Difference, *, margin: float, direction: Direction = "less") -> Evidence:
    """The p values of Student's t (normal where the standard deviation is known)."""
    if difference.std_error is None:
        return NO_EVIDENCE
    claimed = -difference.estimate if direction == "less" else difference.estimate

    def upper(value: float) -> float:
        """The probability of as much or more than this above zero by chance."""
        if difference.std_error == 0:
            return 0.0 if value > 0 else 1.0
        return _t_cdf(difference.df, -value / (difference.std_error or 1.0))

    equivalent = max(upper(margin - difference.estimate), upper(margin + difference.estimate))
    return Evidence(holds=upper(claimed), fails=upper(-claimed), equivalent=equivalent)


def all_of(parts: Sequence[Evidence]) -> Evidence:
    """Evidence on a conjunction: all hold (the weakest counts); any fails, or any is no difference (Bonferroni)."""
    return Evidence(
        holds=max(part.holds for part in parts),
        fails=min(1.0, len(parts) * min(part.fails for part in parts)),
        equivalent=min(1.0, len(parts) * min(part.equivalent for part in parts)),
    )


def any_of(parts: Sequence[Evidence]) -> Evidence:
    """Evidence on a disjunction: any holds (Bonferroni); all fail, or all are no difference (the weakest counts)."""
    return Evidence(
        holds=min(1.0, len(parts) * min(part.holds for part in parts)),
        fails=max(part.fails for part in parts),
        equivalent=max(part.equivalent for part in parts),
    )


def verdict_of(evidence: Evidence, *, level: float = LEVEL) -> Verdict:
    """One claim alone, by the duality with the interval at `level`."""
    if evidence.holds <= (1 - level) / 2:
        return "holds"
    if evidence.fails <= (1 - level) / 2:
        return "fails"
    return "equivalent" if evidence.equivalent <= 1 - level else "undecided"


def adjusted(claims: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """Holm's adjustment over claims that are judged together, of each of the three kinds of evidence by itself."""
    return tuple(
        Evidence(holds=holds, fails=fails, equivalent=equivalent)
        for holds, fails, equivalent in zip(
            holm([claim.holds for claim in claims]),
            holm([claim.fails for claim in claims]),
            holm([claim.equivalent for claim in claims]),
            strict=True,
        )
    )


def verdicts(claims: Sequence[Evidence], *, level: float = LEVEL) -> tuple[Verdict, ...]:
    """The claims judged together."""
    return tuple(verdict_of(evidence, level=level) for evidence in adjusted(claims))


def seeds_to_decide(
    difference: Difference, *, margin: float, level: float = LEVEL, comparisons: int = 1, power: float = POWER
) -> int | None:
    """The fewest runs a row that would tell the difference from zero, or show it within the margin.

    Taken with this power, if both the difference and the spread are what they are estimated to be. None beyond
    `MAX_SEEDS`, and where nothing is known of the spread. Degrees of freedom that are not of these runs are kept.
    """
    if not difference.std_error:
        return None
    sd = difference.std_error / math.sqrt(1 / difference.n_a + 1 / difference.n_b)
    df = _KNOWN_DF if difference.df is None else max(0, difference.df - (difference.n_a + difference.n_b - 2))
    noise = Noise(sd_nats=sd, dof=df, source="")
    separated = seeds_to_separate(noise, difference.estimate, alpha=1 - level, power=power, comparisons=comparisons)
    shown_equal = _seeds_to_equate(noise, difference.estimate, margin, (1 - level) / comparisons, power)
    return min((n for n in (separated, shown_equal) if n is not None), default=None)


def _seeds_to_equate(noise: Noise, estimate: float, margin: float, alpha: float, power: float) -> int | None:
    """The fewest runs a row with which two one-sided tests succeed; the spread as if known, but for the critical t."""

    def enough(n_seeds: int) -> bool:
        df = noise.dof + 2 * (n_seeds - 1)
        if df < 1:
            return False
        std_error = noise.sd_nats * math.sqrt(2 / n_seeds)
        critical = _t_inverse(df, 1 - alpha)
        below = _t_cdf(None, (margin - estimate) / std_error - critical)
        return below + _t_cdf(None, (margin + estimate) / std_error - critical) - 1 >= power

    if abs(estimate) >= margin or not enough(MAX_SEEDS):
        return None
    too_few, sufficient = 0, MAX_SEEDS
    while sufficient - too_few > 1:
        middle = (too_few + sufficient) // 2
        too_few, sufficient = (too_few, middle) if enough(middle) else (middle, sufficient)
    return sufficient


def _t_cdf(df: int | None, value: float) -> float:
    from scipy.special import ndtr, stdtr

    return float(ndtr(value) if df is None else stdtr(df, value))


def _t_inverse(df: int | None, p: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(p) if df is None else stdtrit(df, p))
