import math
import random
from typing import Any

import pytest
from scipy import stats as scipy_stats

from analysis.contrasts import Contrast, _residuals, blocks_of, contrasts, rank
from analysis.load import CellResult, Group, Results, find_request, load
from sweeps.tune import Choices

VAL_LOSS = "val_loss_nats"


def results_of(book: Any) -> Results:
    return load(book.store, find_request(book.store.requests(), "demo", ()))


def against(results: Results, row: str, **options: Any) -> dict[str, Contrast]:
    (base,) = [group for group in results.groups if group.row == row]
    pairs = [(group, base) for group in results.groups if group is not base]
    made = contrasts(pairs, VAL_LOSS, blocks=blocks_of(results), **options)
    return {contrast.first.row: contrast for contrast in made}


def test_two_rows_with_equal_seeds_give_the_paired_t_test(book: Any) -> None:
    a, b = [1.50, 1.62, 1.41, 1.55], [1.45, 1.58, 1.39, 1.47]
    book.losses("a", "A", a)
    book.losses("b", "M", b)
    book.request()
    contrast = against(results_of(book), "b")["a"]
    expected = scipy_stats.ttest_rel(a, b)
    assert contrast.paired
    assert contrast.how == "4 pairs"
    assert contrast.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert contrast.estimate is not None
    assert (contrast.estimate.low, contrast.estimate.high) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )


def test_more_rows_give_the_residual_of_rows_and_seeds() -> None:
    """By hand: a two-way layout of three rows and three seeds, its residual sum of squares over four."""

    rows = [[1.0, 2.0, 3.1], [1.2, 2.1, 3.3], [0.9, 2.2, 3.0]]
    residuals = _residuals(rows)
    assert all(abs(sum(row)) < 1e-12 for row in residuals)
    assert all(abs(sum(column)) < 1e-12 for column in zip(*residuals, strict=True))
    total = sum((value - 18.8 / 9) ** 2 for row in rows for value in row)
    between_rows = 3 * sum((sum(row) / 3 - 18.8 / 9) ** 2 for row in rows)
    between_seeds = 3 * sum((sum(column) / 3 - 18.8 / 9) ** 2 for column in zip(*rows, strict=True))
    assert sum(value**2 for row in residuals for value in row) == pytest.approx(total - between_rows - between_seeds)


def test_a_block_of_rows_pools_their_residuals(book: Any) -> None:
    rows = {"a": [1.50, 1.62, 1.41], "b": [1.45, 1.58, 1.39], "c": [1.49, 1.57, 1.42]}
    for (row, losses), layout in zip(rows.items(), ("A", "M", "AM"), strict=True):
        book.losses(row, layout, losses)
    book.request()
    contrast = against(results_of(book), "b")["a"]
    assert contrast.difference is not None
    assert contrast.difference.df == 4

    sd = math.sqrt(sum(value**2 for row in _residuals(list(rows.values())) for value in row) / 4)
    assert contrast.difference.std_error == pytest.approx(sd * math.sqrt(2 / 3))


def test_a_row_of_wilder_residuals_is_not_pooled_with_the_others(book: Any) -> None:
    book.losses("a", "A", [1.50, 1.61, 1.40, 1.45, 1.48])
    book.losses("b", "M", [1.501, 1.612, 1.402, 1.449, 1.481])
    book.losses("c", "AM", [2.9, 1.1, 2.0, 0.5, 3.0])
    book.request()
    contrast = against(results_of(book), "b")["a"]
    assert contrast.difference is not None
    assert contrast.difference.df == 4
    expected = scipy_stats.ttest_rel([1.50, 1.61, 1.40, 1.45, 1.48], [1.501, 1.612, 1.402, 1.449, 1.481])
    assert contrast.p == pytest.approx(expected.pvalue)


def with_seeds(book: Any, row: str, layout: str, losses: dict[int, float]) -> None:
    for seed, loss in losses.items():
        spec = book.spec(layout, seed, probe=False)
        book.cell(spec, row, seed)
        book.record(spec, val_loss_nats=loss)


def test_rows_with_other_seeds_are_compared_unpaired_and_it_is_said(book: Any) -> None:
    a, b = [1.50, 1.62, 1.41], [1.45, 1.58, 1.39]
    with_seeds(book, "a", "A", dict(zip((1, 2, 3), a, strict=True)))
    with_seeds(book, "b", "M", dict(zip((4, 5, 6), b, strict=True)))
    book.request()
    contrast = against(results_of(book), "b")["a"]
    assert not contrast.paired
    assert contrast.how == "3 and 3, unpaired: other seeds"
    assert contrast.p == pytest.approx(scipy_stats.ttest_ind(a, b).pvalue)


def test_rows_with_some_seeds_in_common_are_paired_on_those(book: Any) -> None:
    with_seeds(book, "a", "A", {1: 1.50, 2: 1.62, 3: 1.41})
    with_seeds(book, "b", "M", {2: 1.58, 3: 1.39, 4: 9.9})
    book.request()
    contrast = against(results_of(book), "b")["a"]
    assert contrast.how == "2 pairs"
    assert contrast.difference is not None
    assert contrast.difference.estimate == pytest.approx(0.03)


def test_one_seed_a_row_has_a_difference_and_no_spread(book: Any) -> None:
    book.losses("a", "A", [1.5])
    book.losses("b", "M", [1.4])
    book.request()
    contrast = against(results_of(book), "b")["a"]
    assert contrast.estimate is not None
    assert contrast.estimate.mean == pytest.approx(0.1)
    assert contrast.estimate.half is None
    assert (contrast.p, contrast.p_holm, contrast.finding) == (None, None, "undecided")


def test_a_metric_that_seeds_do_not_move_has_no_spread_either(book: Any) -> None:
    book.losses("a", "A", [1.5, 1.5])
    book.losses("b", "M", [1.4, 1.4])
    book.request()
    assert against(results_of(book), "b")["a"].p is None


def test_rows_that_are_the_same_runs_or_have_none_are_not_compared(book: Any) -> None:
    book.losses("a", "A", [1.5, 1.6])
    for seed in (1, 2):
        book.cell(book.spec("A", seed, probe=False), "again", seed)
        book.cell(book.spec("M", seed, probe=False), "not run", seed)
    book.request()
    made = against(results_of(book), "a")
    assert {row: (contrast.how, contrast.finding) for row, contrast in made.items()} == {
        "again": ("the same runs", "untestable"),
        "not run": ("no value", "untestable"),
    }


def test_holm_is_over_the_comparisons_that_were_made(book: Any) -> None:
    rows = {"a": [1.50, 1.62, 1.41], "b": [1.45, 1.58, 1.39], "c": [1.49, 1.57, 1.42]}
    for (row, losses), layout in zip(rows.items(), ("A", "M", "AM"), strict=True):
        book.losses(row, layout, losses)
    book.losses("one seed", "MM", [1.3])
    book.request()
    made = against(results_of(book), "b")
    p = {row: made[row].p or 2.0 for row in "ac"}
    small, large = sorted(p.values())
    assert sorted(made[row].p_holm or 2.0 for row in "ac") == pytest.approx([2 * small, max(2 * small, large)])
    assert made["one seed"].p_holm is None


def test_a_difference_within_the_margin_is_equivalent_and_else_undecided(book: Any) -> None:
    book.losses("a", "A", [1.500, 1.601, 1.452, 1.553])
    book.losses("b", "M", [1.501, 1.600, 1.453, 1.552])
    book.request()
    assert against(results_of(book), "b")["a"].finding == "undecided"
    close = against(results_of(book), "b", margin=0.01)["a"]
    assert close.finding == "equivalent"
    assert close.p_equivalent is not None
    assert close.p_equivalent < 0.05
    undecided = against(results_of(book), "b", margin=0.0005)["a"]
    assert undecided.finding == "undecided"
    assert undecided.seeds_needed is not None
    assert undecided.seeds_needed > 4


def test_the_best_row_is_marked_only_if_it_is_told_from_all_others(book: Any) -> None:
    book.losses("worst", "AA", [1.80, 1.91, 1.70])
    book.losses("best", "A", [1.500, 1.601, 1.402])
    book.losses("second", "M", [1.601, 1.700, 1.502])
    book.request()
    results = results_of(book)
    ranking = rank(results, VAL_LOSS, "lower")
    assert ranking.marks == {1: "best"}
    assert rank(results, VAL_LOSS, "higher").marks == {0: "best"}
    assert rank(results, VAL_LOSS, None).marks == {}


def test_rows_that_are_not_told_from_the_best_leave_nothing_best(book: Any) -> None:
    book.losses("worst", "AA", [1.80, 1.91, 1.70])
    book.losses("low", "A", [1.500, 1.601, 1.402])
    book.losses("as low", "M", [1.501, 1.602, 1.401])
    book.request()
    results = results_of(book)
    assert rank(results, VAL_LOSS, "lower").marks == {2: "undecided"}
    ranking = rank(results, VAL_LOSS, "lower", margin=0.05)
    assert ranking.marks == {1: "best", 2: "equivalent"}


def test_one_seed_a_row_marks_nothing(book: Any) -> None:
    book.losses("a", "A", [1.5])
    book.losses("b", "M", [1.0])
    book.request()
    ranking = rank(results_of(book), VAL_LOSS, "lower")
    assert ranking.spreadless
    assert ranking.marks == {}


def test_rows_are_compared_at_one_point_of_the_grid(book: Any) -> None:
    for lr in (0.001, 0.002):
        book.losses("a", "A", [1.5, 1.6, 1.4], lr=lr, **{"optim.lr": lr})
        book.losses("b", "M", [1.2, 1.3, 1.1 + lr], lr=lr, **{"optim.lr": lr})
    book.request()
    results = results_of(book)
    assert [[group.row for group in block] for block in blocks_of(results)] == [["a", "b"], ["a", "b"]]
    assert {contrast.first.row for contrast in rank(results, VAL_LOSS, "lower").contrasts} == {"b"}


def test_of_two_equal_rows_one_is_seldom_called_best() -> None:
    """Two equal rows before three that are far worse, where the error is greatest: a best one in at most 5%."""
    draw = random.Random(1).gauss
    wrong = 0
    for _ in range(400):
        seeds = [draw(0, 1) for _ in range(3)]
        rows = [[(100 if row >= 2 else 0) + effect + draw(0, 1) for effect in seeds] for row in range(5)]
        wrong += "best" in rank(made_up(rows), VAL_LOSS, "lower").marks.values()
    # 5% of 400 is 20; as many as 34 are one chance in 600.
    assert wrong < 34


def test_rows_as_far_apart_as_the_margin_are_seldom_called_equivalent() -> None:
    draw = random.Random(2).gauss
    wrong = 0
    for _ in range(200):
        seeds = [draw(0, 1) for _ in range(4)]
        rows = [[mean + effect + draw(0, 1) for effect in seeds] for mean in (0, 3, 3)]
        made = rank(made_up(rows), VAL_LOSS, "lower", margin=3.0).contrasts
        wrong += any(c.finding == "equivalent" and "0" in (c.first.row, c.second.row) for c in made)
    # 5% of 200 is 10; as many as 20 are one chance in 400.
    assert wrong < 20


def made_up(rows: list[list[float]]) -> Results:
    """Results of runs that are nowhere: the values of each row by seed."""
    return Results(
        sweep="made up",
        overrides=(),
        report={},
        groups=tuple(
            Group(row=str(i), axes={}, label=str(i), cells=tuple(cell(i, seed, v) for seed, v in enumerate(row)))
            for i, row in enumerate(rows)
        ),
        axes=(),
        several_rows=True,
        tuning=(),
        choices=Choices(),
    )


def cell(row: int, seed: int, value: float) -> CellResult:
    return CellResult(
        name=f"{row}/s{seed}",
        row=str(row),
        axes={},
        seed=seed,
        run_id=f"{row}.{seed}",
        tuned={},
        status="done",
        spec=None,
        cost={},
        metrics={VAL_LOSS: value},
        provenance={},
    )
