"""The decision rule: what one difference shows, what several do together, and how often that is wrong."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import stats
from analysis.decide import (
    Decision,
    Difference,
    Evidence,
    adjusted,
    all_of,
    any_of,
    decide,
    evidence_of,
    seeds_to_decide,
    verdict_of,
    verdicts,
)

SD = 0.0026
PAIR = Difference(estimate=0.0, std_error=SD * math.sqrt(2), df=7, n_a=1, n_b=1, unit="nats")


def of(estimate: float, **changes: object) -> Decision:
    return decide(replace(PAIR, estimate=estimate, **changes), margin=0.005)  # type: ignore[arg-type]


def test_the_interval_at_the_level_decides_what_holds_and_what_fails() -> None:
    half = stats.t_quantile(7) * SD * math.sqrt(2)
    assert half == pytest.approx(0.0087, abs=5e-5)
    assert [of(sign * size * half).verdict for sign in (-1, 1) for size in (0.99, 1.01)] == [
        "undecided",
        "holds",
        "undecided",
        "fails",
    ]
    decision = of(-0.012)
    assert decision.low == pytest.approx(-0.012 - half)
    assert decision.high == pytest.approx(-0.012 + half)


@given(
    estimate=st.floats(-0.1, 0.1),
    std_error=st.floats(1e-4, 0.05),
    df=st.none() | st.integers(1, 50),
    margin=st.floats(1e-4, 0.05),
)
def test_verdict_and_intervals_say_the_same(estimate: float, std_error: float, df: int | None, margin: float) -> None:
    difference = replace(PAIR, estimate=estimate, std_error=std_error, df=df)
    decision = decide(difference, margin=margin, seeds=False)
    wide = decide(difference, margin=margin, level=0.90, seeds=False)
    assert decision.low is not None
    assert decision.high is not None
    assert wide.low is not None
    assert wide.high is not None
    if decision.verdict == "holds":
        assert decision.high <= 1e-12
    elif decision.verdict == "fails":
        assert decision.low >= -1e-12
    else:
        assert decision.low <= 1e-12
        assert decision.high >= -1e-12
        inside = -margin <= wide.low and wide.high <= margin
        near = min(abs(wide.low + margin), abs(wide.high - margin)) < 1e-9
        assert near or (decision.verdict == "equivalent") == inside


@given(estimate=st.floats(-0.05, 0.05))
def test_a_claim_of_more_is_a_claim_of_less_turned_round(estimate: float) -> None:
    less = decide(replace(PAIR, estimate=estimate), margin=0.005, seeds=False)
    more = decide(replace(PAIR, estimate=-estimate), margin=0.005, direction="greater", seeds=False)
    assert (less.verdict, less.p) == (more.verdict, more.p)


def test_equivalence_needs_less_noise_than_the_margin() -> None:
    assert of(0.0).verdict == "undecided"
    assert of(0.0, std_error=0.001).verdict == "equivalent"
    assert of(0.004, std_error=0.001).verdict == "fails"  # told from zero, though within the margin


def test_one_seed_without_noise_from_elsewhere_decides_nothing() -> None:
    decision = of(-1.0, std_error=None, df=None)
    assert (decision.verdict, decision.low, decision.p, decision.seeds_needed) == ("undecided", None, None, None)


def test_no_spread_at_all_decides_everything_but_a_tie() -> None:
    assert of(-0.1, std_error=0.0).verdict == "holds"
    assert of(0.1, std_error=0.0).verdict == "fails"
    assert of(0.0, std_error=0.0).verdict == "equivalent"


def test_seeds_needed_are_enough_and_no_fewer_are() -> None:
    rng = random.Random(1)
    decision = of(-0.006)
    assert decision.verdict == "undecided"
    n = decision.seeds_needed
    assert n is not None
    assert n > 1

    def found(seeds: int) -> float:
        """How often a true difference of 0.006 is found: spread as stated, its estimate from 7 + 2 (n - 1) others."""
        df, hits = 7 + 2 * (seeds - 1), 0
        for _ in range(2000):
            std_error = SD * math.sqrt(2 / seeds)
            estimate = rng.gauss(-0.006, std_error)
            spread = math.sqrt(rng.gammavariate(df / 2, 2.0) / df)
            hits += abs(estimate) > stats.t_quantile(df) * std_error * spread
        return hits / 2000

    assert found(n) > 0.77
    assert found(n - 1) < 0.80


def test_more_comparisons_need_more_seeds() -> None:
    few = seeds_to_decide(replace(PAIR, estimate=0.01), margin=0.005)
    many = seeds_to_decide(replace(PAIR, estimate=0.01), margin=0.005, comparisons=23)
    assert few is not None
    assert many is not None
    assert few < many


def test_a_difference_of_nothing_is_decided_by_showing_equivalence() -> None:
    assert seeds_to_decide(PAIR, margin=0.005) is not None
    assert seeds_to_decide(PAIR, margin=1e-7) is None


# --- several ------------------------------------------------------------------------------------

SHOWN = Evidence(holds=0.001, fails=0.999, equivalent=0.9)
OPEN = Evidence(holds=0.3, fails=0.7, equivalent=0.4)
AGAINST = Evidence(holds=0.999, fails=0.001, equivalent=0.9)
SAME = Evidence(holds=0.5, fails=0.5, equivalent=0.001)


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([SHOWN, SHOWN], "holds"),
        ([SHOWN, OPEN], "undecided"),
        ([SHOWN, AGAINST], "fails"),
        ([OPEN, AGAINST], "fails"),
        ([SHOWN, SAME], "equivalent"),
        ([OPEN] * 30 + [replace(AGAINST, fails=0.002)], "undecided"),
    ],
)
def test_a_conjunction_holds_if_all_parts_do_and_fails_if_any_does(parts: list[Evidence], verdict: str) -> None:
    assert verdict_of(all_of(parts)) == verdict


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([SHOWN, AGAINST], "holds"),
        ([OPEN, AGAINST], "undecided"),
        ([AGAINST, AGAINST], "fails"),
        ([SAME, SAME], "equivalent"),
        ([replace(SHOWN, holds=0.02), OPEN], "undecided"),
    ],
)
def test_a_disjunction_holds_if_any_part_does_and_fails_if_all_do(parts: list[Evidence], verdict: str) -> None:
    assert verdict_of(any_of(parts)) == verdict


def test_claims_judged_together_need_more_than_one_alone() -> None:
    borderline = replace(SHOWN, holds=0.02)
    assert verdict_of(borderline) == "holds"
    assert verdicts([borderline]) == ("holds",)
    assert verdicts([borderline, OPEN]) == ("undecided", "undecided")
    assert verdicts([SHOWN, borderline]) == ("holds", "holds")  # Holm: the second is alone with what is left


def test_adjusting_never_makes_evidence_stronger() -> None:
    claims = [SHOWN, OPEN, AGAINST, SAME]
    for before, after in zip(claims, adjusted(claims), strict=True):
        assert after.holds >= before.holds
        assert after.fails >= before.fails
        assert after.equivalent >= before.equivalent


def test_any_false_holds_among_twenty_true_nulls_is_as_rare_as_stated() -> None:
    rng = random.Random(2)
    wrong = 0
    for _ in range(800):
        sd = SD * math.sqrt(rng.gammavariate(3.5, 2.0) / 7)  # one estimate of the noise for all, as in the paper
        claims = [
            evidence_of(
                replace(PAIR, estimate=rng.gauss(0, SD * math.sqrt(2)), std_error=sd * math.sqrt(2)), margin=0.005
            )
            for _ in range(20)
        ]
        wrong += "holds" in verdicts(claims)
    # Allowed: 2.5%, that is 20 of 800; 35 would be three standard deviations more.
    assert wrong <= 34
