"""Paired comparisons by question."""

from collections.abc import Sequence
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from analysis.questions import Answers, compared, pair
from analysis.stats import mcnemar_exact


def answers(task: str, right: Sequence[bool], *, benchmark: str = "b", questions: str = "q", shots: int = 0) -> Answers:
    return Answers(
        task=task, benchmark=benchmark, shots=shots, metric="acc", questions=questions, right=tuple(map(bool, right))
    )


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemars_p_is_that_of_a_binomial_test(only_first: int, only_second: int) -> None:
    n = only_first + only_second
    expected = binomtest(only_first, n, 0.5).pvalue if n else 1.0
    assert mcnemar_exact(only_first, only_second) == pytest.approx(expected, rel=1e-12)


def test_it_is_exact_for_thousands_of_questions() -> None:
    assert mcnemar_exact(2400, 2600) == pytest.approx(binomtest(2400, 5000, 0.5).pvalue, rel=1e-9)


def test_only_what_both_were_asked_alike_is_paired() -> None:
    first = [answers("a", [1]), answers("b", [1]), answers("c", [1]), answers("d", [1])]
    second = [answers("b", [0], questions="other"), answers("a", [0]), answers("c", [0], shots=5)]
    assert pair(first, second) == [(first[0], second[1])]


def test_a_line_counts_which_alone_is_right_and_says_how_sure_it_is() -> None:
    first, second = [1] * 10 + [0] * 10 + [1] * 2 + [0] * 18, [1] * 10 + [0] * 10 + [0] * 2 + [1] * 18
    (line,) = compared([(answers("a", first), answers("a", second))])
    assert (line.n, line.only_first, line.only_second) == (40, 2, 18)
    assert (line.first, line.second) == (30.0, 70.0)
    assert line.p == line.adjusted_p == mcnemar_exact(2, 18)
    # As the normal approximation has it: the standard deviation of a difference of paired proportions.
    half = 1.96 * 100 * ((20 - 16**2 / 40) ** 0.5) / 40
    assert (line.low, line.high) == (pytest.approx(40 - half, abs=2), pytest.approx(40 + half, abs=2))
    assert compared([(answers("a", first), answers("a", second))]) == [line]


def test_equal_answers_differ_by_nothing() -> None:
    (line,) = compared([(answers("a", [1, 0, 1]), answers("a", [1, 0, 1]))])
    assert (line.low, line.high, line.p) == (0.0, 0.0, 1.0)


def test_the_mean_is_over_benchmarks_and_tests_are_corrected_for_their_number() -> None:
    chosen = {"easy": ("arc", [1, 1, 0, 0], [1, 1, 1, 1]), "hard": ("arc", [0, 0], [0, 1]), "c": ("c", [1], [0])}
    pairs = [
        (answers(task, first, benchmark=of), answers(task, second, benchmark=of))
        for task, (of, first, second) in chosen.items()
    ]
    *lines, mean = compared(pairs)
    assert mean.name == "mean of 2 benchmarks"
    assert mean.first == pytest.approx(fmean([fmean([50, 0]), 100]))
    assert mean.second == pytest.approx(fmean([fmean([100, 50]), 0]))
    assert mean.low < mean.second - mean.first < mean.high
    assert mean.p is None
    assert [line.adjusted_p for line in lines] == [1.0, 1.0, 1.0]
    assert [line.p for line in lines] == [0.5, 1.0, 1.0]
