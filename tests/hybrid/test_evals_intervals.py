import numpy as np
import pytest

from analysis.stats import clopper_pearson
from hybrid.evals.intervals import RESAMPLES, binomial_interval, ratio_interval, resampled_ratios


@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (1, 100), (37, 100), (100, 100), (5, 500)]
)
def test_the_binomial_interval_is_clopper_and_pearsons(k: int, n: int) -> None:
    expected = clopper_pearson(k, n)
    assert binomial_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-11)


def test_resamples_are_the_same_at_every_call_whatever_the_sums() -> None:
    above, below = np.arange(1.0, 8.0), np.arange(2.0, 9.0)
    first = resampled_ratios(above, below)
    assert len(first) == RESAMPLES
    assert np.array_equal(first, resampled_ratios(above, below))
    assert np.allclose(resampled_ratios(3 * above, below), 3 * first)


def test_a_resample_draws_whole_documents_with_replacement() -> None:
    values = resampled_ratios(np.array([1.0, 30.0]), np.array([1.0, 10.0]))
    assert set(np.unique(values)) == {1.0, 31 / 11, 3.0}
    assert np.mean(values == 1.0) == pytest.approx(0.25, abs=0.04)


def test_what_has_nothing_below_is_left_out_and_one_document_has_no_interval() -> None:
    assert set(np.unique(resampled_ratios(np.array([0.0, 2.0]), np.array([0.0, 1.0])))) == {2.0}
    assert ratio_interval(np.array([2.0]), np.array([1.0])) is None


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(150):
        sample = random.normal(size=40)
        interval = ratio_interval(sample, np.ones(40))
        assert interval is not None
        covered += interval[0] <= 0.0 <= interval[1]
    # Of 150 at 95%, four standard deviations down.
    assert covered >= 132
