"""What a table says of differences: marks, notes, and the table of differences from one row."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.load import Results, find_request, load
from analysis.render import render
from analysis.tables import Table, build_tables
from hybrid.spec import BlockSpec, ConfigError, IntraSpec


def results_of(book: Any, sweep: str = "demo") -> Results:
    return load(book.store, find_request(book.store.requests(), sweep, ()))


def column(table: Table[Any], key: str) -> list[Any]:
    (found,) = [c for c in table.columns if c.key == key]
    return [found.value(row) for row in table.rows]


def marks(table: Table[Any], key: str) -> list[str | None]:
    (found,) = [c for c in table.columns if c.key == key]
    return [found.mark(row) for row in table.rows]


@pytest.fixture
def three(book: Any) -> Any:
    """Two rows that are as good, and one that is worse."""
    book.losses("worst", "AA", [1.80, 1.91, 1.70])
    book.losses("low", "A", [1.500, 1.603, 1.402])
    book.losses("as low", "M", [1.501, 1.602, 1.403])
    book.request()
    return book


def test_bold_is_the_best_row_told_apart_from_all_others_and_a_note_says_how(book: Any) -> None:
    book.losses("a", "AA", [1.80, 1.91, 1.70])
    book.losses("b", "A", [1.500, 1.603, 1.402])
    book.request()
    (table,) = build_tables(results_of(book))
    assert marks(table, "val_loss_nats") == [None, "best"]
    assert (
        "Bold: the best val loss (nats), told apart from every other row (two-sided t tests, "
        "paired on equal data seeds, Holm over 1 comparison, 5%)."
    ) in table.footnotes
    assert " **1.50 ± " in render([table], "markdown")
    assert r"\textbf{1.50 $\pm$ " in render([table], "latex")
    assert "<strong>1.50 ± " in render([table], "html")
    assert json.loads(render([table], "json"))["tables"][0]["marks"] == [{}, {"val_loss_nats": "best"}]
    assert ",val_loss_nats_mark," in render([table], "csv")


def test_rows_that_cannot_be_told_apart_are_called_undecided(three: Any) -> None:
    (table,) = build_tables(results_of(three))
    assert marks(table, "val_loss_nats") == [None, None, "undecided"]
    (note,) = [note for note in table.footnotes if note.startswith("?")]
    assert note.startswith("?: undecided against the best val loss (nats), low: as low (p ")
    assert "seeds a row would tell" in note
    assert not any(note.startswith("Bold") for note in table.footnotes)
    assert "**" not in render([table], "markdown")


def test_a_margin_makes_rows_equivalent_and_the_best_one_bold(three: Any) -> None:
    (table,) = build_tables(results_of(three), margin=0.05)
    assert marks(table, "val_loss_nats") == [None, "best", "equivalent"]
    assert any(note.startswith("≈: shown to be within ±0.05") for note in table.footnotes)


def test_one_seed_a_row_says_that_nothing_can_be_bold(book: Any) -> None:
    book.losses("a", "A", [1.5])
    book.losses("b", "M", [1.0])
    book.request()
    (table,) = build_tables(results_of(book))
    assert marks(table, "val_loss_nats") == [None, None]
    assert any("nothing is in bold" in note for note in table.footnotes)


def test_a_metric_that_seeds_do_not_move_has_nothing_in_bold(book: Any) -> None:
    book.losses("a", "A", [1.5, 1.5])
    book.losses("b", "M", [1.0, 1.0])
    book.request()
    (table,) = build_tables(results_of(book))
    assert marks(table, "val_loss_nats") == [None, None]
    assert any(note.startswith("No spread between seeds is known") for note in table.footnotes)


def test_a_metric_of_no_known_direction_marks_nothing(book: Any) -> None:
    for row, layout, value in (("a", "A", 1.0), ("b", "M", 2.0)):
        for seed in (1, 2, 3):
            spec = book.spec(layout, seed, probe=False)
            book.cell(spec, row, seed)
            book.record(spec, strange=value + seed / 100)
    book.request()
    (table,) = build_tables(results_of(book), "strange")
    assert marks(table, "strange") == [None, None]
    assert len(table.footnotes) == 0


def test_differences_are_from_the_row_that_is_named(three: Any) -> None:
    _, differences = build_tables(results_of(three), against="low", margin=0.05)
    assert column(differences, "first") == ["worst", "as low"]
    assert column(differences, "second") == ["low", "low"]
    assert column(differences, "seeds") == ["3 pairs", "3 pairs"]
    assert column(differences, "finding") == ["higher: worse", "equivalent"]
    assert column(differences, "difference")[0].mean == pytest.approx(0.3017, abs=1e-4)
    assert any("Holm over 2 comparisons" in line for line in differences.caption)


def test_differences_name_the_row_at_the_same_point_of_the_grid(book: Any) -> None:
    for lr in (0.001, 0.002):
        book.losses("a", "A", [1.5, 1.61], lr=lr, **{"optim.lr": lr})
        book.losses("b", "M", [1.2, 1.3], lr=lr, **{"optim.lr": lr})
    book.request()
    results = results_of(book)
    _, at_each = build_tables(results, against="a")
    assert list(zip(column(at_each, "first"), column(at_each, "second"), strict=True)) == [
        ("b lr=0.001", "a lr=0.001"),
        ("b lr=0.002", "a lr=0.002"),
    ]
    _, of_one = build_tables(results, against="a lr=0.002")
    assert column(of_one, "second") == ["a lr=0.002"] * 3


def test_rows_that_have_nothing_to_be_compared_with_are_named(book: Any) -> None:
    for row, length in (("a", 64), ("b", 64), ("short", 32)):
        for seed in (1, 2):
            layout = {"a": "A", "b": "M", "short": "A"}[row]
            spec = replace(book.spec(layout, seed, probe=False), seq_len=length)
            book.cell(spec, row, seed)
            book.record(spec, val_loss_nats=1.5 + seed / 100)
    book.request()
    _, differences = build_tables(results_of(book), against="a")
    assert column(differences, "first") == ["b"]
    assert "Not compared, for want of such a row on the same data: short." in differences.footnotes


def test_a_row_that_there_is_not_is_an_error_with_the_nearest(three: Any) -> None:
    with pytest.raises(ConfigError, match="--against wrost: no such row in this request; did you mean worst"):
        build_tables(results_of(three), against="wrost")


def test_one_row_has_nothing_to_be_compared_with(book: Any) -> None:
    book.losses("a", "A", [1.5, 1.6])
    book.request()
    with pytest.raises(ConfigError, match="no other row"):
        build_tables(results_of(book), against="a")


def test_a_probe_is_compared_with_one_row_only_if_asked_for(demo: Any) -> None:
    _, comparisons = build_tables(results_of(demo), against="no attention")
    assert column(comparisons, "second") == ["no attention"] * 4
    assert any("Holm over 4 pairs" in line for line in comparisons.caption)


def test_a_probe_has_a_best_row_only_where_fishers_test_tells_it(book: Any) -> None:
    book.probe("often", "AM", [100] * 8)
    book.probe("never", "MM", [None] * 8)
    book.request()
    assert marks(build_tables(results_of(book))[0], "solved") == ["best", None]
    book.probe("often", "AMM", [100] * 3)
    book.probe("never", "MMM", [None] * 3)
    book.request("few")
    assert marks(build_tables(results_of(book, "few"))[0], "solved") == [None, None]


def test_a_margin_means_nothing_for_seeds_solved(demo: Any) -> None:
    with pytest.raises(ConfigError, match=r"--margin 0\.1: this table counts seeds solved"):
        build_tables(results_of(demo), margin=0.1)


def test_differences_are_files_of_their_own(three: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["tables", "demo", "--store", str(three.store.root), "--against", "low", "--out", str(out)]
    assert main([*arguments, "--no-figure"]) == 0
    assert {path.name for path in out.iterdir()} >= {"table.csv", "differences.csv", "table.html"}


@pytest.mark.parametrize("margin", ["0", "-1", "nan", "inf", "much"])
def test_a_margin_that_is_none_is_refused(three: Any, margin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["tables", "demo", "--store", str(three.store.root), f"--margin={margin}"])
    assert end.value.code == 2
    assert "expected a number above 0" in capsys.readouterr().err


def test_losses_on_other_data_or_lengths_are_not_compared(book: Any) -> None:
    for row, length, losses in (("a", 64, [1.5, 1.6, 1.4]), ("b", 32, [1.1, 1.2, 1.0])):
        for seed, loss in enumerate(losses, start=1):
            spec = replace(book.spec("A", seed, probe=False), seq_len=length)
            book.cell(spec, row, seed)
            book.record(spec, val_loss_nats=loss)
    book.request()
    (table,) = build_tables(results_of(book))
    assert marks(table, "val_loss_nats") == [None, None]
    assert not any(note.startswith(("Bold", "?")) for note in table.footnotes)
    with pytest.raises(ConfigError, match="no other row on the same data"):
        build_tables(results_of(book), against="a")


def test_rows_of_one_model_by_symmetry_are_said_to_be_that(book: Any) -> None:
    """Attention and Mamba side by side: their difference is their sum with the sign of attention's values flipped."""
    layers = book.spec("AM", 1, probe=False).model.blocks
    for row, fusion in (("sum", "add"), ("difference", "diff")):
        for seed in (1, 2):
            spec = book.spec("A", seed, probe=False)
            attention = replace(layers[0].mixer, n_heads=4, head_dim=32)  # as wide as Mamba, to be added
            mixer = intra(attention, layers[1].mixer, fusion)
            spec = replace(spec, model=replace(spec.model, blocks=(BlockSpec(mixer=mixer, ffn=None),)))
            book.cell(spec, row, seed)
            book.record(spec, val_loss_nats=1.5 + seed / 100)
    book.losses("other", "A", [1.6, 1.7])
    book.request()
    (table,) = build_tables(results_of(book))
    (note,) = [note for note in table.footnotes if note.startswith("One model by symmetry")]
    assert "sum = difference (diff = add with the sign" in note


def intra(attention: Any, mamba: Any, fusion: Any) -> IntraSpec:
    return IntraSpec(
        attention=attention,
        mamba=mamba,
        norm="group",
        scalar="none",
        fusion=fusion,
        value="separate",
        output="joint",
        lambda_depth=None,
        attention_multiplier=1.0,
        mamba_multiplier=1.0,
    )
