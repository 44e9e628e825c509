"""Tables of architectures by tasks, and the tests behind them."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from analysis import stats
from analysis.__main__ import main
from analysis.figures.losses import survival_picture
from analysis.figures.ours import Asked, Ours
from analysis.figures.picture import Lines
from analysis.load import load
from analysis.races import Race, any_differs, log_rank_scores, sooner
from analysis.render import FORMATS
from analysis.tables import Table, build_tables
from hybrid.spec import ConfigError, InContextRecallSpec, RecallSpec
from tests.book import MAX_STEPS

TASKS = {
    "recall": RecallSpec(n_symbols=64, n_pairs=8, power=0.01),
    "in_context": InContextRecallSpec(n_symbols=64, n_noise_symbols=0, noise_fraction=0.0, train_on="answers"),
}


def fill(book: Any, steps: dict[tuple[str, str], list[int | None]]) -> Any:
    """Runs of rows (by their layout) on tasks, by the steps that each seed took; None is unsolved."""
    for (layout, task), reached in steps.items():
        for seed, step in enumerate(reached, start=1):
            spec = replace(book.spec(layout, seed), data=TASKS[task])
            book.cell(spec, layout, seed, {"data": task})
            accuracy = 0.95 if step else 0.2 + seed / 100
            book.record(
                spec, steps=step or MAX_STEPS, solved=step is not None, steps_to_threshold=step, val_accuracy=accuracy
            )
    book.request("probes", report={"title": "Probes", "across": "data"})
    return book


@pytest.fixture
def probes(book: Any) -> Any:
    return fill(
        book,
        {
            ("MA", "recall"): [100, 120, 140, 160, 180],
            ("MA", "in_context"): [60, 60, 80, 80, 100],
            ("AM", "recall"): [None, 900, None, None, 1000],
            ("AM", "in_context"): [None] * 5,
            ("AA", "recall"): [400, 420, 440, None, 500],
            ("AA", "in_context"): [300, 320, None, 340, 360],
        },
    )


def results_of(book: Any) -> Any:
    return load(book.store, book.store.newest_request())


def texts(table: Table[Any]) -> list[list[str]]:
    return [
        ["–" if value is None else column.fmt(value) for column, value in zip(table.columns, values, strict=True)]
        for values in table.values
    ]


def test_tasks_stand_side_by_side_and_measures_below_each_other(probes: Any) -> None:
    table, pairs, tasks = build_tables(results_of(probes))
    assert [column.header for column in table.columns] == ["row", "measure", "recall", "in_context"]
    assert texts(table)[3:6] == [
        ["AM", "accuracy %", "24 [21, 95]", "23 [21, 25]"],
        ["AM", "solved", "2/5 [5%, 85%]", "0/5 [0%, 52%]"],
        ["AM", "median steps", f">{MAX_STEPS} [900, >{MAX_STEPS}]", f">{MAX_STEPS}"],
    ]
    assert [row[0] for row in texts(table)] == ["MA"] * 3 + ["AM"] * 3 + ["AA"] * 3
    assert any("recall: recall of 8 pairs over 64 symbols; in_context: in-context" in line for line in table.caption)
    assert any("which of 5 holds the median of all seeds with 93.8%" in line for line in table.caption)
    assert table.footnotes == ()
    assert len(pairs.rows) == 3
    assert [row[:2] for row in texts(tasks)] == [["recall", "11/15"], ["in_context", "9/15"]]


def test_rows_are_told_apart_over_tasks_in_which_one_is_always_sooner(probes: Any) -> None:
    _, pairs, tasks = build_tables(results_of(probes))
    found = {(row.first, row.second): row for row in pairs.rows}
    assert found["MA", "AM"].p < 0.001
    assert found["MA", "AM"].p_holm < 0.001
    assert (found["MA", "AM"].first_solved, found["MA", "AM"].second_solved) == ("10/10", "2/10")
    assert all(task.p_holm < 0.01 for task in tasks.rows)


def test_against_compares_with_one_row_and_another_layout_is_the_long_one(probes: Any) -> None:
    results = results_of(probes)
    _, pairs, _ = build_tables(results, against="AA")
    assert [(row.first, row.second) for row in pairs.rows] == [("MA", "AA"), ("AM", "AA")]
    with pytest.raises(ConfigError, match=r"--against BB: there is no such row"):
        build_tables(results, against="BB")
    assert len(build_tables(results, layout="plain")[0].rows) == 6


def test_what_is_missing_is_shown(book: Any) -> None:
    spec = replace(book.spec("AM", 1), data=TASKS["in_context"])
    book.cell(spec, "AM", 1, {"data": "in_context"})
    fill(book, {("AM", "recall"): [200], ("MA", "recall"): [100], ("MA", "in_context"): [100]})
    table, pairs, tasks = build_tables(results_of(book))
    assert [column.header for column in table.columns][2:] == ["in_context", "recall"]
    assert texts(table)[:4] == [
        ["AM", "accuracy %", "–", "95"],
        ["AM", "solved", "–", "1/1 [3%, 100%]"],
        ["AM", "median steps", "–", "200 [200, >200]"],
        ["AM", "notes", "1 not started", ""],
    ]
    assert any("Not all runs have a result yet" in note for note in table.footnotes)
    assert [row.p for row in pairs.rows] == [1.0]
    assert [row.p for row in tasks.rows] == [None, 1.0]


def test_rows_that_are_the_same_runs_are_not_compared(book: Any) -> None:
    for task in TASKS:
        for seed in (1, 2):
            book.cell(replace(book.spec("MA", seed), data=TASKS[task]), "the same", seed, {"data": task})
    fill(book, {(row, task): [100, 200] for row in ("MA", "AM") for task in TASKS})
    _, pairs, tasks = build_tables(results_of(book))
    assert [(row.first, row.second) for row in pairs.rows if row.p is None] == [("the same", "MA")]
    assert pairs.footnotes == ("Rows that share runs are not compared.",)
    assert [task.p for task in tasks.rows] == [None, None]


def test_the_recall_evaluation_is_the_accuracy_where_every_run_has_it(probes: Any) -> None:
    results = results_of(probes)
    cells = [cell for group in results.groups for cell in group.cells]
    for i, cell in enumerate(cells):
        if i == len(cells) - 1:
            assert "the validation at the end of the run" in " ".join(build_tables(results_of(probes))[0].caption)
        metrics = {"recall_accuracy_percent": 50.0 + i}
        record = {"schema": 1, "run_id": cell.run_id, "eval": {"kind": "recall"}, "metrics": metrics}
        probes.store.publish_eval_record(cell.run_id, "0" * 12, record)
    table = build_tables(results_of(probes))[0]
    assert texts(table)[0] == ["MA", "accuracy %", "52 [50, 54]", "57 [55, 59]"]
    assert any("(the recall evaluation)" in line for line in table.caption)


def test_the_figure_has_a_panel_a_task_and_a_row_looks_alike_in_all(book: Any) -> None:
    fill(
        book,
        {
            ("MA", "recall"): [100, 120],
            ("MA", "in_context"): [60, 80],
            ("AM", "in_context"): [None, 900],
            ("AA", "recall"): [400, None],
            ("AA", "in_context"): [300, None],
        },
    )
    ours = Ours(results=results_of(book), read=lambda _: book.store.metrics, asked=Asked())
    panels = [panel for panel in survival_picture(ours).panels if isinstance(panel, Lines)]
    assert [panel.title for panel in panels] == ["recall", "in_context"]
    first, second = ({line.label: line for line in panel.lines} for panel in panels)
    assert list(first) == ["MA", "AA"]
    assert list(second) == ["MA", "AM", "AA"]
    assert all(first[row].look == second[row].look for row in first)
    assert len({line.look for line in second.values()}) == 3
    assert second["AM"].x == (0.0, 900.0, float(MAX_STEPS))
    assert second["AM"].y == (1.0, 0.5, 0.5)


def test_one_task_alone_is_the_usual_table(book: Any) -> None:
    fill(book, {("MA", "recall"): [100, 120], ("AM", "recall"): [None, 900]})
    table, _ = build_tables(results_of(book))
    assert [column.key for column in table.columns][:1] == ["row"]
    assert "solved" in [column.key for column in table.columns]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_it(probes: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "probes", "--store", str(probes.store.root), "--format", name]) == 0
    printed = capsys.readouterr().out
    assert "in_context" in printed.replace("\\_", "_")
    assert printed.count("median") >= 3


def test_log_rank_scores_are_observed_less_expected() -> None:
    """By hand: at 1 of 4 at risk, at 2 of 3, at 3 of 2."""
    first, second = log_rank_scores([Race(times=(1, 3), events=(True, True)), Race(times=(2, 4), events=(True, False))])
    hazards = list(itertools.accumulate([1 / 4, 1 / 3, 1 / 2]))
    assert first == pytest.approx([1 - hazards[0], 1 - hazards[2]])
    assert second == pytest.approx([1 - hazards[1], -hazards[2]])
    assert math.fsum([*first, *second]) == pytest.approx(0, abs=1e-12)


def test_the_p_of_two_rows_in_one_task_is_the_share_of_ways_to_deal_them_out() -> None:
    first, second = Race(times=(1, 2, 3), events=(True,) * 3), Race(times=(4, 5, 6), events=(True, True, False))
    scores = [score for row in log_rank_scores([first, second]) for score in row]
    observed = abs(math.fsum(scores[:3]))
    ways = [abs(math.fsum(chosen)) for chosen in itertools.combinations(scores, 3)]
    exact = sum(way >= observed - 1e-9 for way in ways) / len(ways)
    found = sooner([(first, second)])
    assert found is not None
    assert abs(found - exact) < 5 * math.sqrt(exact / 20_000)


def test_tasks_in_which_rows_go_different_ways_cancel_and_equal_rows_are_not_told_apart() -> None:
    early, late = Race(times=(1, 2, 3, 4), events=(True,) * 4), Race(times=(5, 6, 7, 8), events=(True,) * 4)
    one_way, both_ways = sooner([(early, late)] * 3), sooner([(early, late), (late, early)])
    assert one_way is not None
    assert one_way < 0.001
    assert both_ways == 1.0
    assert sooner([(early, early)]) == 1.0
    assert sooner([(early, Race(times=(), events=()))]) is None
    assert any_differs([early]) is None
    assert any_differs([early, early, early]) == 1.0


def test_a_p_is_as_small_as_it_says_no_more_often_than_it_should() -> None:
    """Of rows that are alike by construction, 5% are told apart at 5%: 5 standard deviations of 200 tries."""
    import numpy as np

    random = np.random.default_rng(0)
    told = 0
    for _ in range(200):
        steps = random.integers(1, 30, size=20)
        races = [
            Race(times=tuple(map(float, np.minimum(part, 20))), events=tuple((part < 20).tolist()))
            for part in np.split(steps, 4)
        ]
        p = sooner([(races[0], races[1]), (races[2], races[3])])
        assert p is not None
        told += p <= 0.05
    assert told / 200 < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 200)


def test_a_range_of_one_value_is_no_interval() -> None:
    assert stats.median_range([]) is None
    assert stats.median_range([3.0]) == stats.MedianRange(median=3.0, low=None, high=None, n=1)
    assert stats.median_range([3.0, 1.0, 2.0]) == stats.MedianRange(median=2.0, low=1.0, high=3.0, n=3)
