"""What seeds can show: exact power beside simulation, textbooks and SciPy's own noncentral t."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.power import (
    MAX_SEEDS,
    Noise,
    detectable_nats,
    noise_of_records,
    power_of,
    seeds_to_separate,
)

PAPER_1B = Noise(sd_nats=0.0026, dof=7, source="arXiv 2510.04800v3, Table 18")
NONE_KNOWN = Noise(sd_nats=1.0, dof=0, source="nothing but the comparison itself")

noises = st.builds(
    lambda sd, dof: Noise(sd_nats=sd, dof=dof, source="drawn"),
    st.floats(min_value=1e-4, max_value=1.0),
    st.integers(min_value=1, max_value=300),
)
seeds = st.integers(min_value=1, max_value=60)
alphas = st.sampled_from([0.1, 0.05, 0.01, 0.001])
powers = st.sampled_from([0.5, 0.8, 0.9, 0.99])


def simulated_power(noise: Noise, n_seeds: int, difference: float, alpha: float, comparisons: int) -> float:
    """How often the test as it is described rejects, from the runs themselves; the standard error is below 0.0013."""
    from scipy.stats import t

    random = np.random.default_rng(20251119)
    draws = 150_000
    known = noise.sd_nats**2 * random.chisquare(noise.dof, draws) if noise.dof else np.zeros(draws)
    a = random.normal(0.0, noise.sd_nats, (draws, n_seeds))
    b = random.normal(difference, noise.sd_nats, (draws, n_seeds))
    within = ((a - a.mean(1, keepdims=True)) ** 2).sum(1) + ((b - b.mean(1, keepdims=True)) ** 2).sum(1)
    dof = noise.dof + 2 * (n_seeds - 1)
    statistic = (b.mean(1) - a.mean(1)) / np.sqrt((known + within) / dof * 2 / n_seeds)
    return float((np.abs(statistic) > t.isf(alpha / comparisons / 2, dof)).mean())


@pytest.mark.parametrize(
    ("dof", "n_seeds", "difference", "comparisons"),
    [(7, 1, 2.0, 1), (7, 1, 4.6, 1), (7, 3, 2.5, 1), (7, 3, 3.5, 10), (2, 2, 3.0, 3), (0, 4, 2.0, 1), (150, 2, 2.0, 1)],
)
def test_the_power_is_that_of_the_test_simulated(dof: int, n_seeds: int, difference: float, comparisons: int) -> None:
    noise = Noise(sd_nats=1.0, dof=dof, source="")
    exact = power_of(noise, n_seeds, difference, alpha=0.05, comparisons=comparisons)
    simulated = simulated_power(noise, n_seeds, difference, 0.05, comparisons)
    assert 0.1 < exact < 0.95
    assert exact == pytest.approx(simulated, abs=5 * 0.0013)


@pytest.mark.parametrize(("effect", "n_each"), [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_the_sample_sizes_of_the_textbook(effect: float, n_each: int) -> None:
    """Cohen 1988, Statistical Power Analysis, small, medium and large d at 0.05 two-sided and 0.80: 393 (394 exactly),
    64, 26 a group."""
    assert seeds_to_separate(NONE_KNOWN, effect, alpha=0.05, power=0.8) == n_each


def test_the_integrals_agree_with_scipys_noncentral_t_where_that_gives_a_number() -> None:
    from scipy.stats import nct, t

    for dof in (3, 7, 15, 98, 99, 100, 101, 1000):
        for alpha in (0.2, 0.05, 0.001):
            for noncentrality in (0.1, 1.0, 2.8, 5.0):
                critical = t.isf(alpha / 2, dof)
                # One seed a row, so that the degrees of freedom are those known; D = noncentrality sigma sqrt(2).
                noise = Noise(sd_nats=1.0, dof=dof, source="")
                ours = power_of(noise, 1, noncentrality * math.sqrt(2), alpha=alpha)
                upper = nct.sf(critical, dof, noncentrality)
                lower = nct.sf(critical, dof, -noncentrality)
                assert ours == pytest.approx(upper + lower, abs=1e-9)


@given(noise=noises, n_seeds=seeds, alpha=alphas, comparisons=st.integers(min_value=1, max_value=200))
def test_at_no_difference_the_power_is_the_error_that_is_allowed(
    noise: Noise, n_seeds: int, alpha: float, comparisons: int
) -> None:
    found = power_of(noise, n_seeds, 0.0, alpha=alpha, comparisons=comparisons)
    assert found == pytest.approx(alpha / comparisons, rel=1e-6)


@given(noise=noises, n_seeds=seeds, alpha=alphas, power=powers, comparisons=st.sampled_from([1, 3, 66]))
def test_the_detectable_difference_is_found_with_the_power_that_was_asked(
    noise: Noise, n_seeds: int, alpha: float, power: float, comparisons: int
) -> None:
    difference = detectable_nats(noise, n_seeds, alpha=alpha, power=power, comparisons=comparisons)
    assert power_of(noise, n_seeds, difference, alpha=alpha, comparisons=comparisons) == pytest.approx(power, abs=1e-8)
    assert power_of(noise, n_seeds, -difference, alpha=alpha, comparisons=comparisons) == pytest.approx(power, abs=1e-8)


@given(noise=noises, n_seeds=seeds, alpha=alphas, power=powers)
def test_more_seeds_more_known_and_fewer_comparisons_find_less(
    noise: Noise, n_seeds: int, alpha: float, power: float
) -> None:
    here = detectable_nats(noise, n_seeds, alpha=alpha, power=power)
    assert detectable_nats(noise, n_seeds + 1, alpha=alpha, power=power) < here
    more_known = replace(noise, dof=noise.dof + 1)
    assert detectable_nats(more_known, n_seeds, alpha=alpha, power=power) < here * (1 + 1e-9)
    assert detectable_nats(noise, n_seeds, alpha=alpha, power=power, comparisons=2) > here


@given(
    noise=noises,
    n_seeds=st.integers(min_value=2, max_value=40),
    alpha=alphas,
    power=powers,
    share=st.floats(0.2, 0.999),
)
def test_the_seeds_are_the_fewest_and_a_smaller_difference_needs_no_fewer(
    noise: Noise, n_seeds: int, alpha: float, power: float, share: float
) -> None:
    difference = detectable_nats(noise, n_seeds, alpha=alpha, power=power)
    needed = seeds_to_separate(noise, difference * (1 + 1e-6), alpha=alpha, power=power)
    assert needed == n_seeds
    assert detectable_nats(noise, n_seeds - 1, alpha=alpha, power=power) > difference
    smaller = seeds_to_separate(noise, difference * share, alpha=alpha, power=power)
    assert smaller is not None
    assert smaller >= n_seeds


def test_rows_that_no_number_of_seeds_separates_have_none() -> None:
    assert seeds_to_separate(PAPER_1B, 0.0, alpha=0.05, power=0.8) is None
    at_most = detectable_nats(PAPER_1B, MAX_SEEDS, alpha=0.05, power=0.8)
    assert seeds_to_separate(PAPER_1B, at_most * 1.001, alpha=0.05, power=0.8) == pytest.approx(MAX_SEEDS, rel=0.01)
    assert seeds_to_separate(PAPER_1B, at_most * 0.999, alpha=0.05, power=0.8) is None


def test_one_seed_shows_nothing_where_no_noise_is_known() -> None:
    assert detectable_nats(NONE_KNOWN, 1, alpha=0.05, power=0.8) == math.inf
    assert power_of(NONE_KNOWN, 1, 100.0, alpha=0.05) == 0.0
    assert detectable_nats(NONE_KNOWN, 2, alpha=0.05, power=0.8) < math.inf


def test_without_noise_every_difference_shows() -> None:
    silent = Noise(sd_nats=0.0, dof=3, source="")
    assert detectable_nats(silent, 1, alpha=0.05, power=0.8) == 0.0
    assert seeds_to_separate(silent, 1e-9, alpha=0.05, power=0.8) == 1
    assert seeds_to_separate(silent, 0.0, alpha=0.05, power=0.8) is None


@pytest.mark.parametrize("dof", [1, 2, 7, 99, 100, 20_000])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 500])
def test_extremes_give_numbers(dof: int, alpha: float) -> None:
    """SciPy's noncentral t gives NaN in some of these."""
    noise = Noise(sd_nats=1.0, dof=dof, source="")
    found = [power_of(noise, 1, difference, alpha=alpha) for difference in (0.0, 1.0, 5.0, 20.0, 100.0, 1e4)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(alpha, rel=1e-5)
    assert math.isfinite(detectable_nats(noise, 1, alpha=alpha, power=0.8))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="n_seeds = 0"):
        detectable_nats(PAPER_1B, 0, alpha=0.05, power=0.8)
    with pytest.raises(ValueError, match="alpha = 5"):
        power_of(PAPER_1B, 1, 0.1, alpha=5)
    with pytest.raises(ValueError, match="power = 1"):
        seeds_to_separate(PAPER_1B, 0.1, alpha=0.05, power=1)
    with pytest.raises(ValueError, match="sd_nats"):
        power_of(replace(PAPER_1B, sd_nats=math.nan), 1, 0.1, alpha=0.05)


def test_noise_pools_the_spread_around_each_models_own_mean() -> None:
    noise = noise_of_records([[1.0, 3.0], [10.0, 10.0, 13.0], [5.0], []], "drawn")
    assert noise is not None
    assert noise.dof == 3
    assert noise.sd_nats == pytest.approx(math.sqrt((2.0 + 6.0) / 3))
    assert noise.source == "drawn"


def test_there_is_no_noise_without_two_runs_of_one_model() -> None:
    assert noise_of_records([[1.0], [2.0, math.nan], []], "drawn") is None


@given(st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=5), min_size=1, max_size=5), st.floats(-3, 3))
def test_how_far_models_lie_apart_is_no_noise(losses: list[list[float]], shift: float) -> None:
    before, after = (
        noise_of_records(groups, "")
        for groups in (losses, [[loss + i * shift for loss in group] for i, group in enumerate(losses)])
    )
    assert before is not None
    assert after is not None
    assert after.dof == before.dof
    assert after.sd_nats == pytest.approx(before.sd_nats, abs=1e-9)
