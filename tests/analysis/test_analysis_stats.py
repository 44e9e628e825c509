import math
import random

import pytest
from scipy import stats as scipy_stats

from analysis import stats

# Freireich et al. 1963: weeks of remission of leukaemia patients on 6-MP (negative: censored) and on placebo.
SIX_MP = [6, 6, 6, -6, 7, -9, 10, -10, -11, 13, 16, -17, -19, -20, 22, 23, -25, -32, -32, -34, -35]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def km(weeks: list[int]) -> stats.SurvivalCurve:
    return stats.kaplan_meier([abs(week) for week in weeks], [week > 0 for week in weeks])


def test_fisher_gives_the_lady_tasting_tea() -> None:
    assert stats.fisher_exact(3, 4, 1, 4) == pytest.approx(34 / 70, rel=1e-14)
    assert stats.fisher_exact(4, 4, 0, 4) == pytest.approx(2 / 70, rel=1e-14)


def test_fisher_equals_scipy_on_all_small_tables() -> None:
    for n1 in range(1, 7):
        for n2 in range(1, 7):
            for k1 in range(n1 + 1):
                for k2 in range(n2 + 1):
                    expected = scipy_stats.fisher_exact([[k1, n1 - k1], [k2, n2 - k2]]).pvalue
                    assert stats.fisher_exact(k1, n1, k2, n2) == pytest.approx(expected, rel=1e-9)


def test_smallest_fisher_p_is_all_against_none() -> None:
    assert stats.smallest_fisher_p(3, 3) == pytest.approx(0.1)
    assert stats.smallest_fisher_p(5, 5) == pytest.approx(2 / 252)


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_holm_leaves_out_what_was_not_compared() -> None:
    assert stats.holm_of_known([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])
    assert stats.holm_of_known([None]) == [None]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 5, 0.0, 0.5218),
        (5, 5, 0.4782, 1.0),
        (3, 10, 0.0667, 0.6525),
        (81, 263, 0.2527, 0.3676),  # Newcombe 1998, table I
        (15, 148, 0.0578, 0.1617),
    ],
)
def test_clopper_pearson_gives_published_limits(k: int, n: int, low: float, high: float) -> None:
    interval = stats.clopper_pearson(k, n)
    assert interval.low == pytest.approx(low, abs=6e-5)
    assert interval.high == pytest.approx(high, abs=6e-5)


def test_no_seeds_have_no_binomial_interval() -> None:
    assert stats.clopper_pearson(0, 0) == stats.Proportion(k=0, n=0, low=None, high=None)


def test_kaplan_meier_gives_the_published_curve_of_6mp() -> None:
    curve = km(SIX_MP)
    published = [
        (6, 21, 3, 0.857, 0.0764),
        (7, 17, 1, 0.807, 0.0869),
        (10, 15, 1, 0.753, 0.0963),
        (13, 12, 1, 0.690, 0.1068),
        (16, 11, 1, 0.627, 0.1141),
        (22, 7, 1, 0.538, 0.1282),
        (23, 6, 1, 0.448, 0.1346),
    ]
    assert [(p.time, p.at_risk, p.events) for p in curve.points] == [row[:3] for row in published]
    for point, (_, _, _, survival, std_error) in zip(curve.points, published, strict=True):
        assert point.survival == pytest.approx(survival, abs=6e-4)
        assert point.std_error == pytest.approx(std_error, abs=6e-5)
    assert len(curve.censored) == 12
    assert curve.at(5) == 1.0
    assert curve.at(1000) == curve.points[-1].survival


def test_kaplan_meier_bands_equal_scipy() -> None:
    data = scipy_stats.CensoredData.right_censored([abs(w) for w in SIX_MP], [w < 0 for w in SIX_MP])
    survival = scipy_stats.ecdf(data).sf
    interval = survival.confidence_interval(method="log-log")
    for point in km(SIX_MP).points:
        assert point.survival == pytest.approx(float(survival.evaluate(point.time)))
        assert point.low == pytest.approx(float(interval.low.evaluate(point.time)))
        assert point.high == pytest.approx(float(interval.high.evaluate(point.time)))


def test_median_survival_of_6mp_is_23_weeks_from_13_to_not_reached() -> None:
    median = stats.median_time(km(SIX_MP))
    assert (median.time, median.low, median.high, median.last) == (23, 13, None, 35)


def test_median_survival_on_placebo_is_8_weeks() -> None:
    median = stats.median_time(km(PLACEBO))
    assert (median.time, median.low, median.high) == (8, 4, 11)


def test_median_is_not_reached_while_the_curve_stays_above_one_half() -> None:
    median = stats.median_time(stats.kaplan_meier([10, 20, 50, 50, 50], [True, True, False, False, False]))
    assert median.time is None
    assert median.last == 50


def test_median_is_reached_where_the_curve_is_exactly_one_half() -> None:
    assert stats.median_time(stats.kaplan_meier([10, 20, 50, 50], [True, True, False, False])).time == 20


def test_a_curve_without_events_stays_at_one() -> None:
    curve = stats.kaplan_meier([50, 50], [False, False])
    assert curve.points == ()
    assert stats.median_time(curve) == stats.CensoredMedian(time=None, low=None, high=None, last=50, n=2)


def test_kaplan_meier_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stats.kaplan_meier([], [])


def test_t_interval_equals_scipy() -> None:
    values = [2.735, 2.741, 2.728, 2.739]
    result = stats.estimate(values)
    assert result is not None
    low, high = scipy_stats.t.interval(0.95, 3, loc=result.mean, scale=scipy_stats.sem(values))
    assert (result.low, result.high) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_has_no_interval_even_with_a_pooled_spread() -> None:
    pooling = stats.pool([[1.0, 1.1, 0.9], [2.0, 2.1, 1.9], [3.0]])
    assert pooling.used
    result = stats.estimate([3.0], pooling)
    assert result == stats.Estimate(mean=3.0, half=None, sd=None, n=1)
    assert (result.low, result.high) == (None, None)


def test_no_values_have_no_estimate() -> None:
    assert stats.estimate([]) is None


def test_pooled_spread_is_the_residual_of_a_one_way_analysis() -> None:
    samples = [[1.0, 1.2, 1.4], [2.0, 2.3], [5.0]]
    pooling = stats.pool(samples)
    assert pooling.df == 3
    assert pooling.sd == pytest.approx(math.sqrt((0.04 + 0.04 + 2 * 0.15**2) / 3))
    pooled = stats.estimate(samples[0], pooling)
    assert pooled is not None
    assert pooled.half == pytest.approx(scipy_stats.t.ppf(0.975, 3) * pooling.sd / math.sqrt(3))


def test_rows_of_very_different_spread_are_not_pooled() -> None:
    pooling = stats.pool([[1.0, 1.001, 0.999], [2.0, 2.5, 1.5]])
    assert not pooling.used
    assert "4 times" in pooling.reason
    alone = stats.estimate([1.0, 1.001, 0.999], pooling)
    assert alone is not None
    assert alone.half == pytest.approx(scipy_stats.t.ppf(0.975, 2) * 0.001 / math.sqrt(3))


def test_brown_forsythe_refuses_to_pool_what_the_ratio_lets_pass() -> None:
    narrow = [math.sin(i) for i in range(40)]
    pooling = stats.pool([narrow, [3 * value for value in narrow]])
    assert not pooling.used
    assert "Brown-Forsythe" in pooling.reason


def test_bartlett_equals_scipy() -> None:
    draw = random.Random(4).gauss
    samples = [[draw(0, spread) for _ in range(size)] for spread, size in ((1, 3), (2, 5), (1.5, 4))]
    assert stats.bartlett(samples) == pytest.approx(scipy_stats.bartlett(*samples).pvalue)
    assert stats.bartlett([[1.0, 1.0], [1.0, 2.0]]) is None
    assert stats.bartlett([[1.0, 2.0], [1.0]]) is None


def test_a_ratio_that_so_few_seeds_often_show_is_no_reason_against_pooling() -> None:
    rows = [[0.0, 0.1, -0.1], [0.0, 0.42, -0.42], [0.0, 0.3, -0.3], [0.0, 0.25, -0.25], [0.0, 0.35, -0.35]]
    assert max(sd := [stats.standard_deviation(row) or 0.0 for row in rows]) / min(sd) > 4
    assert (stats.bartlett(rows) or 0.0) > 0.30
    assert stats.pool(rows).used


def test_equal_rows_of_three_seeds_are_mostly_pooled() -> None:
    draw = random.Random(5).gauss
    used = sum(stats.pool([[draw(0, 1) for _ in range(3)] for _ in range(5)]).used for _ in range(300))
    # By the ratio alone it was about half of them.
    assert used > 200


def test_two_seeds_a_row_are_pooled_on_an_assumption_that_is_stated() -> None:
    pooling = stats.pool([[1.0, 1.1], [2.0, 2.3]])
    assert pooling.used
    assert "assumed" in pooling.reason


def test_one_row_is_never_pooled() -> None:
    assert not stats.pool([[1.0, 1.1, 1.2], [3.0]]).used
    assert stats.pool([[1.0], [3.0]]) == stats.Pooling(sd=None, df=0, used=False, reason="no row has two seeds")


def test_brown_forsythe_equals_scipy() -> None:
    draw = random.Random(0).gauss
    samples = [[draw(0, spread) for _ in range(5)] for spread in (1, 1.5, 2)]
    expected = scipy_stats.levene(*samples, center="median").pvalue
    assert stats.brown_forsythe(samples) == pytest.approx(expected)


def test_brown_forsythe_says_nothing_of_runs_without_any_spread() -> None:
    assert stats.brown_forsythe([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]) is None
    assert stats.pool([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]).used
