"""What a table says of values that tuning chose."""

from pathlib import Path
from typing import Any

import pytest

from analysis.figures.command import write_figure
from analysis.load import Results, load
from analysis.render import render
from analysis.tables import Table, build_tables
from hybrid.spec import RunSpec
from sweeps.identity import run_id
from sweeps.store import Candidate, Cell, Request, Tuning

LRS = (0.001, 0.003, 0.01)
LAYOUTS = {"llama": "AAA", "mamba": "MMM"}


@pytest.fixture
def tuned(book: Any) -> Any:
    """Write down a tuned request of two rows of two seeds and what its tuning runs came to; None: no result yet."""

    def make(tuning: dict[str, list[float | None]], per: Any = "row", probe: bool = False) -> Request:
        cells, tuning_cells = [], []
        for row, layout in LAYOUTS.items():
            for lr, loss in zip(LRS, tuning[row], strict=True):
                spec = book.spec(layout, 1001, lr=lr, probe=probe)
                tried = {"optim.lr": lr}
                name = f"{row}/tune/lr={lr}/s1001"
                tuning_cells.append(Cell(name=name, row=row, axes={}, seed=1001, run_id=run_id(spec), tuned=tried))
                if loss is not None:
                    book.record(spec, val_loss_nats=loss)
            for seed in (1, 2):
                ids = [(lr, run_id(book.spec(layout, seed, lr=lr, probe=probe))) for lr in LRS]
                candidates = tuple(Candidate(values={"optim.lr": lr}, run_id=found) for lr, found in ids)
                cell = Cell(name=f"{row}/s{seed}", row=row, axes={}, seed=seed, run_id=None, candidates=candidates)
                cells.append(cell)
        tunings = (Tuning(settings={"optim.lr": LRS}, per=per, metric="val_loss_nats", cells=tuple(tuning_cells)),)
        request = Request(
            sweep="own", overrides=(), created_at="2026-11-21", report={}, cells=tuple(cells), tuning=tunings
        )
        book.store.publish_request(request)
        return request

    return make


def final(book: Any, row: str, seed: int, lr: float) -> RunSpec:
    spec: RunSpec = book.spec(LAYOUTS[row], seed, lr=lr, probe=False)
    return spec


def column(table: Table[Any], key: str) -> list[Any]:
    (found,) = [c for c in table.columns if c.key == key]
    return [found.value(row) for row in table.rows]


def only_table(book: Any) -> tuple[Results, Table[Any]]:
    (request,) = book.store.requests()
    results = load(book.store, request)
    return results, build_tables(results)[0]


def test_the_chosen_value_is_a_column_and_tuning_runs_are_in_no_row(book: Any, tuned: Any) -> None:
    tuned({"llama": [3.0, 1.0, 2.0], "mamba": [2.0, 3.0, 1.0]})
    for seed in (1, 2):
        book.record(final(book, "llama", seed, 0.003), val_loss_nats=1.5)
        book.record(final(book, "mamba", seed, 0.01), val_loss_nats=1.6)
        book.record(final(book, "mamba", seed, 0.003), val_loss_nats=0.1)  # a candidate that was not chosen
    results, table = only_table(book)
    assert column(table, "row") == ["llama", "mamba"]
    assert column(table, "tuned.optim.lr") == [0.003, 0.01]
    assert [value.mean for value in column(table, "val_loss_nats")] == pytest.approx([1.5, 1.6])
    assert column(table, "n") == [2, 2]
    assert "lr" not in [c.key for c in table.columns]  # the same values again
    assert len(results.cells) == 4
    assert "2 rows, 4 runs: all done. Seeds 1, 2 in every row." in table.caption
    assert "lr (tuned)" in render((table,), "markdown")


def test_an_equal_choice_is_a_column_all_the_same(book: Any, tuned: Any) -> None:
    tuned({"llama": [3.0, 1.0, 2.0], "mamba": [2.0, 1.0, 3.0]})
    assert column(only_table(book)[1], "tuned.optim.lr") == [0.003, 0.003]


def test_the_caption_says_what_was_tried_and_what_it_cost_apart_from_the_rows(book: Any, tuned: Any) -> None:
    request = tuned({"llama": [3.0, 1.0, 2.0], "mamba": [2.0, 1.0, 3.0]})
    costs = [book.store.record(cell.run_id)["cost"]["paper_train_flops"] for cell in request.tuning[0].cells]
    (line,) = [line for line in only_table(book)[1].caption if line.startswith("Tuned: ")]
    assert line.startswith("Tuned: lr 0.001, 0.003, 0.01, each row its own choice, by val loss (nats) on 1 other seed ")
    assert "3 runs a row of 4.92M tokens" in line
    assert f"{sum(costs):.2e}".replace("e+", "e") + " FLOPs in all, counted nowhere else." in line


def test_a_choice_at_the_edge_is_a_note(book: Any, tuned: Any) -> None:
    tuned({"llama": [1.0, 2.0, 3.0], "mamba": [2.0, 1.0, 3.0]})
    notes = only_table(book)[1].footnotes
    assert "llama: lr = 0.001 is the smallest that was tried: widen the range." in notes
    assert not any(note.startswith("mamba: lr") for note in notes)


def test_a_row_that_is_not_tuned_yet_is_a_line_with_the_reason(book: Any, tuned: Any, tmp_path: Path) -> None:
    tuned({"llama": [3.0, 1.0, 2.0], "mamba": [2.0, 1.0, None]})
    book.record(final(book, "llama", 1, 0.003), val_loss_nats=1.5)
    results, table = only_table(book)
    assert column(table, "notes") == ["1 not started", "2 untuned"]
    assert column(table, "tuned.optim.lr") == [0.003, None]
    assert "mamba: untuned: 1 of 3 tuning runs have no result yet: 1 new." in table.footnotes
    assert "FLOPs in all so far" in " ".join(table.caption)
    book.curve(final(book, "llama", 1, 0.003), 1.5)
    assert write_figure(results, book.store.metrics, tmp_path)


def test_rows_that_are_not_tuned_share_no_run(book: Any, tuned: Any) -> None:
    tuned({"llama": [None] * 3, "mamba": [None] * 3}, probe=True)
    for layout in LAYOUTS.values():
        book.store.publish_spec(book.spec(layout, 1001, lr=0.001))
    results, _ = only_table(book)
    assert results.is_probe  # as the tuning runs are
    _, comparisons = build_tables(results)
    assert comparisons.footnotes == ()


def test_one_choice_for_all_rows_is_said_to_be_that(book: Any, tuned: Any) -> None:
    tuned({"llama": [3.0, 1.0, 2.0], "mamba": [2.0, 3.0, 1.0]}, per="sweep")
    _, table = only_table(book)
    assert column(table, "tuned.optim.lr") == [0.01, 0.01]
    assert any("one choice for all rows" in line for line in table.caption)
