import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import stats
from analysis.__main__ import main
from analysis.load import Results, find_request, load
from analysis.reference.compare import COLUMNS
from analysis.reference.printed import read_printed
from analysis.render import render
from analysis.tables import LAYOUTS, Table, build_tables
from analysis.tables.layouts import MEASURED, WORDS, printed_rows
from analysis.tables.paper import printed_table
from hybrid.spec import ConfigError, HubSpec

DCLM = HubSpec(
    name="mlfoundations/dclm-baseline-1.0",
    corpus_revision="main",
    tokenizer="meta-llama/Llama-3.2-1B",
    vocab_size=256,
)


def results_of(book: Any, sweep: str = "table4", *overrides: str) -> Results:
    return load(book.store, find_request(book.store.requests(), sweep, overrides))


def cells(table: Table[Any], key: str) -> list[str]:
    """The words of a column."""
    (column,) = [c for c in table.columns if c.key == key]
    values = [column.value(row) for row in table.rows]
    return ["–" if value is None else column.fmt(value) for value in values]


def dclm_runs(book: Any, row: str, layout: str, losses: list[float], **metrics: float) -> None:
    for seed, loss in enumerate(losses, start=1):
        spec = book.spec(layout, seed, probe=False)
        spec = replace(spec, data=DCLM, model=replace(spec.model, vocab_size=DCLM.vocab_size))
        book.cell(spec, row, seed)
        book.record(spec, val_loss_nats=loss, **metrics)


# --- the layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", LAYOUTS)
def test_every_printed_number_of_a_table_is_in_it(sweep: str) -> None:
    """Whatever is a number in the data is in the rendered table, in printed order, but for what names the row."""
    table = printed_table(sweep)
    printed = [row for number in LAYOUTS[sweep].printed for row in read_printed().tables[number].rows]
    assert len(table.rows) == len(printed)
    shown = {"len": "seq_len", "flops": "budget.flops"} if sweep in ("table12", "isoflop") else {}
    aliases = {"acc": "avg", "dclm_nll": "dclm", **({} if sweep != "isoflop" else shown)}
    columns = {column.key: column for column in table.columns}
    for line, row in zip(table.rows, printed, strict=True):
        for name, value in row.items():
            key = aliases.get(name, name)
            if value is None or isinstance(value, str | list | dict) or name in ("len", "sizes"):
                continue
            assert key in columns, (sweep, name)
            found = columns[key].value(line)
            assert float(str(getattr(found, "mean", found))) == float(value), (sweep, name)


@pytest.mark.parametrize("sweep", LAYOUTS)
def test_every_column_of_a_layout_is_known_and_printed(sweep: str) -> None:
    for key in LAYOUTS[sweep].columns:
        assert sum((key in MEASURED, key in COLUMNS, key in WORDS)) == 1, key
    assert all(any(value != "–" for value in cells(printed_table(sweep), key)) for key in LAYOUTS[sweep].columns)


def test_printed_rows_are_rows_of_our_sweeps(repo: Path) -> None:
    import yaml

    for sweep in LAYOUTS:
        rows = yaml.safe_load((repo / "conf" / "sweep" / f"{sweep}.yaml").read_text())["sweep"]["rows"]
        assert {one.place.row for one in printed_rows(sweep)} <= {str(name) for name in rows}, sweep


def test_table_5_has_the_losses_of_the_rows_it_names() -> None:
    """Its rows are named by hand: three that another table prints under names that follow from their properties."""
    of_5 = {one.place.row: one.number("dclm") for one in printed_rows("table5")}
    of_18 = {one.place.row: one.number("dclm") for one in printed_rows("variants") if one.scale == "1b"}
    shared = [row for row in of_5 if row in of_18]
    assert len(shared) == 9
    assert all(of_5[row] == of_18[row] for row in shared)


# --- the printed numbers alone ------------------------------------------------------------------


def test_table_4_comes_from_the_printed_numbers_without_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tables", "table4", "--source", "paper"]) == 0
    out = capsys.readouterr().out
    assert "| 1B   | 1:0   |       0.97 |        16 |     – |      2.750 |      2.875 |    52.0 |" in out
    assert "| 350M | 1:12  |       0.36 |         1 |    10 |      2.864 |      3.003 |    49.3 |" in out
    assert "reprints this row as 2.733" in out
    assert "**" not in out
    assert not (tmp_path / "store").exists()


def test_a_scale_chooses_the_printed_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "table4", "scale=350m", "--source", "paper", "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert [row["n_emb"] for row in table["rows"]] == [0.35, 0.35, 0.35, 0.34, 0.35, 0.36]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo"], "demo: expected a sweep that is a table of the paper"),
        (["tabel4"], "did you mean table4"),
        (["table4", "scale=toy"], "the paper prints no row of table4 at it; expected 1b or 350m"),
        (["table4", "model.d_model=3"], "expected no override but scale=SIZE"),
        (["table4", "--reference"], "--reference: --source paper has the printed numbers alone"),
        (["table4", "--margin", "0.1"], "--margin 0.1: --source paper"),
        (["table4", "--layout", "plain"], "--layout plain: --source paper"),
    ],
)
def test_what_the_paper_does_not_print_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tables", *arguments, "--source", "paper"]) == 2
    assert message in capsys.readouterr().err


def test_with_no_run_of_ours_the_reference_stands_below_dashes(
    tmp_path: Path, book: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for store, why in ((tmp_path / "none", "there is no store"), (book.store.root, "was never asked for")):
        assert main(["tables", "table4", "--reference", "--store", str(store)]) == 0
        out = capsys.readouterr().out
        lines = [line for line in out.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + 24
        assert [line.count(" – ") for line in lines[2:4]] == [6, 1]
        assert why in out
    assert not (tmp_path / "none").exists()


# --- ours ---------------------------------------------------------------------------------------


def test_a_sweep_that_is_a_table_of_the_paper_has_its_columns(book: Any) -> None:
    dclm_runs(book, "1:0", "AA", [2.741, 2.752, 2.748])
    dclm_runs(book, "1:1", "AM", [2.711, 2.722, 2.717])
    book.request("table4")
    (table,) = build_tables(results_of(book))
    assert [column.key for column in table.columns][:7] == ["row", "n_emb", "n_attn", "n_ssm", "dclm", "pg19", "avg"]
    assert cells(table, "n_attn") == ["2", "1"]
    assert cells(table, "n_ssm") == ["–", "1"]
    assert cells(table, "pg19") == ["–", "–"]
    assert cells(table, "dclm")[0].startswith("2.747")
    assert cells(table, "n") == ["3", "3"]
    (column,) = [c for c in table.columns if c.key == "dclm"]
    assert [column.mark(row) for row in table.rows] == [None, "best"]


def test_intervals_are_from_the_spread_pooled_over_rows_as_in_any_table(book: Any) -> None:
    losses = [2.741, 2.752, 2.748], [2.711, 2.722, 2.719]
    dclm_runs(book, "1:0", "AA", losses[0])
    dclm_runs(book, "1:1", "AM", losses[1])
    book.request("table4")
    (table,) = build_tables(results_of(book))
    (column,) = [c for c in table.columns if c.key == "dclm"]
    pooling = stats.pool(losses)
    assert pooling.used
    assert [column.value(row) for row in table.rows] == [stats.estimate(sample, pooling) for sample in losses]
    assert any("pooled over rows" in line for line in table.caption)


def test_a_loss_on_other_data_is_not_passed_off_as_the_papers(book: Any) -> None:
    book.losses("1:0", "AA", [1.5, 1.6])
    book.request("table4", overrides=("scale=toy",))
    (table,) = build_tables(results_of(book))
    assert cells(table, "dclm") == ["–"]
    assert cells(table, "val_loss_nats")[0].startswith("1.55")
    assert any("not the paper's" in note for note in table.footnotes)


def test_the_reference_stands_below_ours_with_the_difference(book: Any) -> None:
    dclm_runs(book, "1:0", "AA", [2.741, 2.752, 2.748], pg19_loss_nats=2.9)
    book.request("table4")
    (table,) = build_tables(results_of(book), reference=True)
    assert cells(table, "source")[:3] == ["ours", "paper", "ours - paper"]
    assert cells(table, "dclm")[1:3] == ["2.750", "-0.003"]
    assert cells(table, "pg19")[1:3] == ["2.875", "+0.025"]
    assert cells(table, "n_attn")[:3] == ["2", "16", "-14"]
    # The printed rows that were not asked for are there too.
    assert [(line.name, line.side) for line in table.rows[3:5]] == [("0:1", "ours"), ("0:1", "paper")]
    assert len(table.rows) == 3 + 2 * 5


def test_no_difference_is_taken_from_models_of_another_scale(book: Any) -> None:
    book.losses("1:0", "AA", [1.5, 1.6])
    book.request("table4", overrides=("scale=toy", "sweep.seeds=2"))
    (table,) = build_tables(results_of(book, "table4"), reference=True)
    assert "ours - paper" not in cells(table, "source")
    assert any("Ours are models of scale toy, the paper's of 1B" in note for note in table.footnotes)


def test_a_requests_scale_chooses_the_printed_rows_beside_it(book: Any) -> None:
    dclm_runs(book, "1:0", "AA", [2.9])
    book.request("table4", overrides=("scale=350m", "optim.lr=1"))
    (table,) = build_tables(results_of(book), reference=True)
    assert cells(table, "dclm")[:3] == ["2.900", "2.882", "+0.018"]
    assert any("asked for with optim.lr=1" in note for note in table.footnotes)


def test_rows_that_are_not_printed_are_named(book: Any) -> None:
    dclm_runs(book, "1:7", "AM", [2.9])
    book.request("table4")
    (table,) = build_tables(results_of(book), reference=True)
    assert "Not printed: 1:7." in table.footnotes


def test_rows_of_a_grid_find_their_printed_ones(book: Any) -> None:
    for scale, flops in (("1b", 2e19), ("1b", 4e20), ("350m", 2e19)):
        spec = replace(book.spec("AA", 1, probe=False, lr=flops), data=DCLM)
        spec = replace(spec, model=replace(spec.model, vocab_size=256, d_model=64 if scale == "1b" else 32))
        book.cell(spec, "Llama", 1, {"scale": scale, "budget.flops": f"{flops:.0e}"})
        book.record(spec, val_loss_nats=3.0)
    book.request("isoflop")
    (table,) = build_tables(results_of(book, "isoflop"), reference=True)
    beside = [cells(table, "dclm")[i + 1] for i, line in enumerate(table.rows) if line.side == "ours" and line.group]
    assert beside == ["3.261", "2.760", "3.155"]


def test_failed_runs_stay_in_the_papers_layout(book: Any) -> None:
    dclm_runs(book, "1:0", "AA", [2.741])
    book.cell(book.spec("MM", 1, probe=False), "0:1", 1)
    book.fail(book.spec("MM", 1, probe=False))
    book.request("table4")
    (table,) = build_tables(results_of(book))
    assert cells(table, "notes") == ["", "1 failed"]


def test_a_probe_keeps_its_own_layout(book: Any) -> None:
    book.probe("1:0", "AA", [100, 200])
    book.request("table4")
    (table,) = build_tables(results_of(book))
    assert "solved" in [column.key for column in table.columns]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "plain", "reference": True}, "--reference: table4 is shown in a layout of its own"),
        ({"layout": "paper", "metric": "wall_s"}, "--metric wall_s: the paper's layout"),
    ],
)
def test_options_that_do_not_go_together_are_refused(book: Any, options: dict[str, Any], message: str) -> None:
    dclm_runs(book, "1:0", "AA", [2.741])
    book.request("table4")
    with pytest.raises(ConfigError, match=message):
        build_tables(results_of(book), **options)
    assert build_tables(results_of(book), layout="plain")[0].columns[0].key == "row"


def test_evaluations_are_found_by_the_names_of_their_metrics(book: Any) -> None:
    dclm_runs(book, "1:0", "AA", [2.741])
    request = book.request("table4")
    run_id = request.cells[0].run_id
    for eval_id, kind, metrics in (
        ("a" * 12, "few_shot", {"lambada_accuracy_percent": 56.1, "few_shot_accuracy_percent": 52.0}),
        ("b" * 12, "pg19", {"pg19_loss_nats": 2.875, "val_loss_nats": 9.9}),
    ):
        record = {"schema": 1, "run_id": run_id, "eval": {"kind": kind}, "metrics": metrics}
        assert book.store.publish_eval_record(run_id, eval_id, record)
    results = results_of(book)
    (table,) = build_tables(results)
    assert (cells(table, "pg19"), cells(table, "avg")) == (["2.875"], ["52.0"])
    assert cells(table, "dclm") == ["2.741"]
    assert results.cells[0].number("few_shot.lambada_accuracy_percent") == 56.1


def test_a_name_that_two_evaluations_dispute_says_nothing(book: Any) -> None:
    dclm_runs(book, "1:0", "AA", [2.741])
    run_id = book.request("table4").cells[0].run_id
    for eval_id, value in (("a" * 12, 2.8), ("b" * 12, 2.9)):
        record = {"schema": 1, "run_id": run_id, "eval": {"kind": "pg19"}, "metrics": {"pg19_loss_nats": value}}
        book.store.publish_eval_record(run_id, eval_id, record)
    assert cells(build_tables(results_of(book))[0], "pg19") == ["–"]


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "json", "html"])
def test_every_format_has_every_layout(form: Any) -> None:
    for sweep in LAYOUTS:
        assert render([printed_table(sweep)], form)


def test_groups_of_sizes_are_multirow_in_latex() -> None:
    text = render([printed_table("table4")], "latex")
    assert r"\multirow{6}{*}{1B} & 1:0 & 0.97" in text
    assert r"\multirow{6}{*}{350M}" in text
    assert text.count(r"\midrule") == 2
