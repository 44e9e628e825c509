from dataclasses import replace
from typing import Any

import pytest

from analysis import stats
from analysis.load import Results, find_request, load
from analysis.tables import Table, build_tables, estimate_table, probe_table, show, survival
from hybrid.spec import BlockSpec, ConfigError, OutsideSpec


def results_of(book: Any, sweep: str = "demo", *overrides: str) -> Results:
    return load(book.store, find_request(book.store.requests(), sweep, overrides))


def column(table: Table[Any], key: str) -> list[Any]:
    (found,) = [c for c in table.columns if c.key == key]
    return [found.value(row) for row in table.rows]


def keys(table: Table[Any]) -> list[str]:
    return [c.key for c in table.columns]


def test_every_expected_row_is_in_the_table_whatever_became_of_it(demo: Any) -> None:
    table = probe_table(results_of(demo))
    assert column(table, "row") == [
        "attention first",
        "attention second",
        "attention last",
        "no attention",
        "attention only",
    ]
    assert column(table, "notes") == ["", "", "", "1 diverged, 1 not started", "1 failed"]
    assert "5 rows, 25 runs: 22 done, 1 not started, 1 diverged, 1 failed. Seeds 1 to 5 in every row." in table.caption


def test_a_request_of_which_nothing_ran_yet_is_a_table_too(book: Any) -> None:
    book.losses("llama", "A", [])
    book.cell(book.spec("AM", 1), "inter", 1)
    book.request()
    (table,) = build_tables(results_of(book))
    assert column(table, "notes") == ["1 not started"]
    assert column(table, "val_loss_nats") == [None]


def test_the_layout_of_a_failed_run_is_known_from_its_spec(book: Any) -> None:
    book.probe("solved", "AM", [100])
    book.cell(book.spec("MA", 1), "broken", 1)
    book.fail(book.spec("MA", 1))
    book.request()
    assert column(probe_table(results_of(book)), "layout") == ["AM", "MA"]


def test_a_run_of_a_users_own_mixer_that_has_no_result_has_a_line_without_its_cost(book: Any) -> None:
    unknown = BlockSpec(mixer=OutsideSpec(name="nobody's", version=1, settings=()), ffn=None)
    spec = replace(book.spec("AM", 1), model=replace(book.spec("AM", 1).model, blocks=(unknown,)))
    book.store.publish_spec(spec)
    book.cell(spec, "mine", 1)
    book.probe("a", "AM", [100])
    book.probe("b", "MM", [100])
    book.request()
    table, *_ = build_tables(results_of(book))
    assert column(table, "layout") == ["X", "AM", "MM"]
    assert column(table, "non_embedding_params")[0] is None


def test_diverged_runs_count_as_unsolved(demo: Any) -> None:
    solved = column(probe_table(results_of(demo)), "solved")
    assert [(cell.k, cell.n) for cell in solved] == [(5, 5), (5, 5), (2, 5), (0, 4), (4, 4)]


def test_a_diverged_run_is_censored_at_the_last_step_it_was_allowed(demo: Any) -> None:
    curve = survival(results_of(demo).groups[3])
    assert curve is not None
    assert curve.censored == (1200, 1200, 1200, 1200)


def test_median_steps_are_censored(demo: Any) -> None:
    medians = column(probe_table(results_of(demo)), "steps_to_threshold")
    assert [median.time for median in medians] == [380, 340, None, None, 320]
    assert [show(median) for median in medians[2:4]] == [">1200 [880, >1200]", ">1200"]


def test_spent_flops_are_those_of_the_tokens_that_were_trained_on(demo: Any) -> None:
    results = results_of(demo)
    spent = column(probe_table(results), "mean_spent_paper_train_flops")
    whole = results.groups[0].cost("paper_train_flops")
    assert whole is not None
    assert spent[0] == pytest.approx(whole * 380 / 1200)


def test_comparisons_are_every_pair_with_holm_over_all(demo: Any) -> None:
    _, comparisons = build_tables(results_of(demo))
    p_values = column(comparisons, "p")
    assert len(p_values) == 10
    assert p_values[2] == pytest.approx(stats.fisher_exact(5, 5, 0, 4))
    assert column(comparisons, "p_holm") == pytest.approx(stats.holm(p_values))


def test_a_row_without_results_is_compared_with_nothing(book: Any) -> None:
    book.probe("a", "AM", [100, 200])
    book.probe("b", "MA", [None, None])
    book.probe("c", "MM", [], spare=2)
    book.request()
    _, comparisons = build_tables(results_of(book))
    assert [p is None for p in column(comparisons, "p")] == [False, True, True]
    assert column(comparisons, "p_holm")[0] == column(comparisons, "p")[0]


def test_rows_that_are_the_same_runs_are_not_compared(book: Any) -> None:
    book.probe("a", "AM", [100, 200])
    for seed in (1, 2):
        book.cell(book.spec("AM", seed), "the same in other words", seed)
    book.request()
    _, comparisons = build_tables(results_of(book))
    assert column(comparisons, "p") == [None]
    assert comparisons.footnotes == ("Rows that share runs are not compared.",)


def test_a_run_asked_for_twice_in_a_row_counts_once(book: Any) -> None:
    book.probe("a", "AM", [100, 200])
    book.cell(book.spec("AM", 1), "a", 3)
    book.request()
    (table,) = build_tables(results_of(book))
    assert column(table, "solved")[0].n == 2
    assert column(table, "notes") == ["1 asked for twice"]


def test_the_reports_title_caption_and_row_header_are_in_the_table(demo: Any) -> None:
    table = probe_table(results_of(demo))
    assert table.title == "Where to put one attention block: associative recall"
    assert table.caption[0] == "A synthetic analogue of the paper's placement finding, not a test of it."
    assert table.columns[0].header == "placement"


def test_an_equal_learning_rate_is_in_the_caption(demo: Any) -> None:
    table = probe_table(results_of(demo))
    assert "lr" not in keys(table)
    assert any("learning rate 0.002" in line for line in table.caption)


def test_a_learning_rate_that_differs_between_rows_is_a_column(book: Any) -> None:
    book.probe("a", "AM", [100], lr=0.001)
    book.probe("b", "MA", [100], lr=0.002)
    book.request()
    table = probe_table(results_of(book))
    assert column(table, "lr") == [0.001, 0.002]
    assert not any("learning rate" in line for line in table.caption)


def test_a_setting_that_an_axis_shows_is_not_a_second_column(book: Any) -> None:
    for lr in (0.001, 0.002):
        book.losses("llama", "A", [1.5], lr=lr, **{"optim.lr": lr})
    book.request()
    (table,) = build_tables(results_of(book))
    assert keys(table)[0] == "optim.lr"
    assert "lr" not in keys(table)
    assert "row" not in keys(table)


def test_a_setting_that_differs_and_that_no_column_shows_is_named(book: Any) -> None:
    for row, decay in (("with", 0.1), ("without", 0.0)):
        spec = book.spec("AM", 1, probe=False)
        spec = replace(spec, optim=replace(spec.optim, weight_decay=decay))
        book.cell(spec, row, 1, {})
        book.record(spec, val_loss_nats=1.5)
    book.request()
    (table,) = build_tables(results_of(book))
    assert "Rows differ too in optim.weight_decay (0.1, 0)." in table.footnotes
    for decay in (0.1, 0.0):
        spec = book.spec("AM", 1, probe=False)
        book.cell(replace(spec, optim=replace(spec.optim, weight_decay=decay)), "a", 1, {"optim.weight_decay": decay})
    book.request("axis")
    (table,) = build_tables(results_of(book, "axis"))
    assert "optim.weight_decay" in keys(table)
    assert not any("differ too" in note for note in table.footnotes)


def test_what_does_not_differ_is_in_the_caption(book: Any) -> None:
    for lr in (0.001, 0.002):
        book.losses("llama", "AAM", [1.5], lr=lr, **{"optim.lr": lr})
    book.request()
    (table,) = build_tables(results_of(book))
    assert not {"layout", "non_embedding_params", "paper_train_flops", "train_tokens"} & set(keys(table))
    assert any(line.startswith("Layout AAM.") for line in table.caption)
    assert any("4.92M training tokens" in line for line in table.caption)


def test_parameter_mismatch_is_stated(book: Any) -> None:
    book.losses("a", "M" * 9 + "A", [1.5])
    book.losses("b", "M" * 10, [1.5])
    book.request()
    results = results_of(book)
    (table,) = build_tables(results)
    a, b = column(table, "non_embedding_params")
    assert f"Parameters (without embedding) matched within {100 * (b / a - 1):.1f}%." in table.caption


def test_rows_far_apart_in_parameters_are_not_called_matched(demo: Any) -> None:
    assert any("not matched: they differ by 42.0%" in line for line in probe_table(results_of(demo)).caption)


def test_losses_are_means_with_pooled_intervals_and_diverged_runs_left_out(text: Any) -> None:
    table = estimate_table(results_of(text, "demo_text"), "val_loss_nats")
    samples = [[1.5012, 1.5071, 1.4983], [1.4876, 1.4912, 1.4893], [1.4701, 1.4766]]
    pooling = stats.pool(samples)
    assert pooling.used
    assert column(table, "val_loss_nats") == [stats.estimate(sample, pooling) for sample in samples]
    assert column(table, "n") == [3, 3, 2]
    assert column(table, "notes") == ["", "", "1 diverged"]
    assert any("pooled over rows, 0.0037 (5 degrees of freedom)" in line for line in table.caption)
    assert any("Diverged runs" in note for note in table.footnotes)


def test_bits_per_byte_are_nats_over_ln_2_for_bytes(text: Any) -> None:
    table = estimate_table(results_of(text, "demo_text"), "val_loss_nats")
    assert column(table, "val_bits_per_byte")[2] == pytest.approx(1.47335 / 0.6931471805599453)


def test_one_seed_a_row_has_no_interval(book: Any) -> None:
    book.losses("a", "AM", [1.5])
    book.losses("b", "MM", [1.6])
    book.request()
    (table,) = build_tables(results_of(book))
    assert [show(value) for value in column(table, "val_loss_nats")] == ["1.5000", "1.6000"]
    assert "One seed a row: no interval." in table.caption


def test_another_metric_can_be_asked_for(text: Any) -> None:
    (table,) = build_tables(results_of(text, "demo_text"), "tokens_per_s")
    assert column(table, "tokens_per_s")[0].mean == 200_000
    assert keys(table).count("tokens_per_s") == 1


def test_an_unknown_metric_lists_those_there_are(text: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean val_loss_nats"):
        build_tables(results_of(text, "demo_text"), "val_loss")


def test_rounding_follows_the_interval() -> None:
    assert show(stats.Estimate(mean=2.73456, half=0.0026, sd=0.1, n=3)) == "2.7346 ± 0.0026"
    assert show(stats.Estimate(mean=1234.5, half=120.0, sd=1.0, n=3)) == "1234 ± 120"
    assert show(stats.Estimate(mean=1.5, half=0.0, sd=0.0, n=3)) == "1.5000 ± 0.0000"


def test_a_damaged_record_is_a_line_of_the_table_and_not_the_end_of_it(demo: Any) -> None:
    request = find_request(demo.store.requests(), "demo", ())
    demo.store.record_path(request.cells[0].run_id).write_text('{"schema": 1, "stat')
    table = probe_table(load(demo.store, request))
    assert column(table, "notes")[0] == "1 damaged"
    assert column(table, "solved")[0].n == 4


def test_a_spec_of_another_revision_is_said_and_not_guessed(book: Any) -> None:
    book.probe("a", "AM", [100])
    request = book.request()
    path = book.store.record_path(request.cells[0].run_id)
    path.write_text(path.read_text().replace('"kind": "mamba2"', '"kind": "mamba2", "revision": 99'))
    (table,) = build_tables(results_of(book), "val_accuracy")
    assert any("cannot read" in note for note in table.footnotes)


def test_requests_are_found_by_their_overrides_in_any_order(book: Any) -> None:
    book.probe("a", "AM", [100])
    book.request(overrides=("x=1", "y=2"))
    book.probe("a", "MA", [100])
    book.request(overrides=("x=2",))
    requests = book.store.requests()
    assert find_request(requests, "demo", ["y=2", "x=1"]).overrides == ("x=1", "y=2")
    with pytest.raises(ConfigError, match=r"(?s)2 requests.*demo x=1 y=2.*demo x=2"):
        find_request(requests, "demo", [])
    with pytest.raises(ConfigError, match=r"(?s)never asked for.*demo x=2"):
        find_request(requests, "demo", ["x=3"])


def test_the_request_without_overrides_is_meant_if_none_are_given(book: Any) -> None:
    book.probe("a", "AM", [100])
    book.request(overrides=("x=1",))
    book.probe("a", "MA", [100])
    book.request()
    assert find_request(book.store.requests(), "demo", []).overrides == ()


def test_the_newest_of_equal_requests_is_meant(book: Any) -> None:
    book.probe("old", "AM", [100])
    book.request(created_at="2026-11-19T10:00:00+00:00")
    book.probe("new", "MA", [100])
    book.request(created_at="2026-11-20T10:00:00+00:00")
    assert find_request(book.store.requests(), "demo", []).cells[0].row == "new"


def test_latest_is_the_newest_request_of_all(book: Any) -> None:
    book.probe("a", "AM", [100])
    book.request("one", created_at="2026-11-20T10:00:00+00:00")
    book.probe("a", "MA", [100])
    book.request("two", overrides=("x=1",), created_at="2026-11-20T11:00:00+00:00")
    assert find_request(book.store.requests(), "latest", []).sweep == "two"


def test_a_misspelt_sweep_is_told_the_nearest(demo: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean demo"):
        find_request(demo.store.requests(), "dmeo", [])
