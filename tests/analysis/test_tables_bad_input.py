"""What tables say of stores that are empty, damaged, or full of names that are markup."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.load import Results, find_request, load
from analysis.render import render
from analysis.tables import build_tables
from sweeps.store import Store

SCRIPT = "<script>alert('1')</script>"
NASTY = [
    "</td></table>" + SCRIPT,
    '" onmouseover="alert(1)',
    r"50% & \input{/etc/passwd} $x$ #1_2^3 ~",
    "\x1b[31mred\x07",
]


def tables(store: Path, *arguments: str) -> int:
    return main(["tables", *arguments, "--store", str(store)])


def results_of(book: Any) -> Results:
    return load(book.store, find_request(book.store.requests(), "demo", ()))


def test_an_empty_store_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path / "store").prepare()
    assert tables(tmp_path / "store", "demo") == 2
    assert "no request yet; run a sweep first" in capsys.readouterr().err


def test_a_sweep_that_was_never_run_lists_those_that_were(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables(demo.store.root, "table3") == 2
    error = capsys.readouterr().err
    assert "request = table3: no such request in the store" in error
    assert "demo" in error
    assert "tables table3 --source paper" in error


def test_several_requests_of_one_name_are_listed(book: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in ("1", "2"):
        book.losses("a", "A" * int(lr), [1.5])
        book.request(overrides=(f"optim.lr={lr}",))
    assert tables(book.store.root, "demo") == 2
    assert "2 requests of this name are stored" in (error := capsys.readouterr().err)
    assert "  demo optim.lr=1\n  demo optim.lr=2" in error


def test_a_damaged_request_is_named_where_none_fits(book: Any, capsys: pytest.CaptureFixture[str]) -> None:
    book.losses("a", "A", [1.5])
    book.request()
    (path,) = map(Path, book.store.request_files())
    path.write_text(path.read_text()[:40])
    assert tables(book.store.root, "demo") == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"report": "hello"}, "report = 'hello': expected settings, such as a title"),
        ({"report": {"caption": 5}}, "report.caption = 5: expected a text, or a list of them"),
        ({"report": {"metric": ["a", {}]}}, "report.metric = ['a', {}]: expected a text"),
        ({"overrides": "seed=1"}, "overrides = 'seed=1': expected a list of texts"),
        ({"sweep": ["demo"]}, "sweep = ['demo']: expected a text"),
        ({"cells": [{"name": "a"}]}, "cells[0]: "),
        ({"cells": ["a"]}, "cells[0]: "),
        ({"cells": 7}, "not iterable"),
    ],
)
@pytest.mark.parametrize("name", ["demo", "latest"])
def test_a_request_with_a_wrong_field_is_one_line_that_names_file_and_field(
    book: Any, name: str, change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    book.losses("a", "A", [1.5])
    book.request("another")
    book.losses("a", "AA", [1.5])
    book.request()
    path = next(path for path in map(Path, book.store.request_files()) if path.parent.name == "demo")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert tables(book.store.root, name) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {path}: damaged (")
    assert said in error
    assert tables(book.store.root, "another") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("run_id", "../../etc"), ("run_id", 5), ("axes", [1]), ("seed", "1"), ("row", None), ("name", 3), ("tuned", "x")],
)
def test_a_cell_with_a_wrong_field_is_named_by_its_number(
    book: Any, field: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    book.losses("a", "A", [1.5, 1.6])
    book.request()
    (path,) = map(Path, book.store.request_files())
    request = json.loads(path.read_text())
    request["cells"][1][field] = value
    path.write_text(json.dumps(request))
    assert tables(book.store.root, "demo") == 2
    assert f"{path}: damaged (cells[1]: {field} = {value!r}: expected " in capsys.readouterr().err


def test_a_record_of_another_schema_is_a_line_and_a_note(text: Any, capsys: pytest.CaptureFixture[str]) -> None:
    request = find_request(text.store.requests(), "demo_text", ())
    path = text.store.record_path(request.cells[0].run_id)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    assert tables(text.store.root, "demo_text") == 0
    out = capsys.readouterr().out
    assert "| 1 damaged " in out
    assert "note: Unreadable:" in out
    assert "schema 2, this version reads schema 1" in out


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "0" * 12),
        ("status", "happy"),
        ("status", ["done"]),
        ("metrics", [1]),
        ("metrics", None),
        ("attempt", "first"),
        ("cost", [1]),
        ("cost", {"non_embedding_params": "many"}),
        ("provenance", None),
        ("provenance", {"host": {"name": "here"}}),
        ("provenance", {"exec": "gpu"}),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_a_record_with_a_wrong_field_is_damaged_and_the_field_is_named(
    book: Any, field: str, value: Any, many: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeps.index.FEWEST_RUNS", 1 if many else 1000)
    book.losses("a", "A", [1.5, 1.6])
    book.losses("b", "AA", [1.4, 1.5])
    request = book.request()
    path = book.store.record_path(request.cells[0].run_id)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert tables(book.store.root, "demo") == 0
    printed = capsys.readouterr()
    assert "| 1 damaged " in printed.out
    assert f"Unreadable: {path}: damaged ({field}" in printed.out.replace("\\", "")
    assert printed.err == ""
    out = book.store.root.parent / "report.html"
    assert main(["report", "--claims", "none", "--out", str(out), "--store", str(book.store.root)]) == 0


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "\ufeff{}", '{"schema": 1e999}'])
def test_a_record_that_no_reader_gets_through_is_damaged(
    book: Any, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    book.losses("a", "A", [1.5, 1.6])
    book.store.record_path(book.request().cells[0].run_id).write_text(content)
    assert tables(book.store.root, "demo") == 0
    assert "1 damaged" in capsys.readouterr().out


def test_an_evaluation_with_a_wrong_field_is_left_out(book: Any, capsys: pytest.CaptureFixture[str]) -> None:
    book.losses("a", "A", [1.5, 1.6])
    run_id = book.request().cells[0].run_id
    for i, change in enumerate(({"metrics": [1]}, {"eval": 3}, {"eval": {"kind": []}}, {"run_id": "x"})):
        record = {"schema": 1, "run_id": run_id, "eval": {"kind": "nll"}, "metrics": {"loss_nats": 1.0}} | change
        book.store.publish_eval_record(run_id, str(i) * 12, record)
    assert tables(book.store.root, "demo", "--metric", "loss_nats") == 2
    assert "metric = loss_nats: no run of this request has it" in capsys.readouterr().err


def test_many_unreadable_records_are_counted(book: Any) -> None:
    for seed in range(1, 7):
        spec = book.spec("A", seed, probe=False)
        book.cell(spec, "a", seed)
        book.record(spec, val_loss_nats=1.5)
    request = book.request()
    for cell in request.cells[1:]:
        book.store.record_path(cell.run_id).write_text("{")
    (table,) = build_tables(results_of(book))
    assert sum(note.startswith("Unreadable: ") for note in table.footnotes) == 3
    assert "2 more records cannot be read." in table.footnotes


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "much", True, 1e308, 10**400])
def test_a_metric_that_is_no_number_is_in_no_mean_and_is_named(book: Any, value: Any) -> None:
    for seed, loss in enumerate([1.5, 1.7, value], start=1):
        spec = book.spec("A", seed, probe=False)
        book.cell(spec, "a", seed)
        book.record(spec, loss_of_mine=loss)
    book.request()
    (table,) = build_tables(results_of(book), "loss_of_mine")
    (column,) = [c for c in table.columns if c.key == "loss_of_mine"]
    estimate: Any = column.value(table.rows[0])
    assert (estimate.mean, estimate.n) == (1.6, 2)
    assert "1 run is done without a finite loss_of_mine, and in no mean: a/s3." in table.footnotes
    for form in ("json", "html", "csv", "latex", "markdown"):
        assert "nan" not in render([table], form).lower().replace("nan</", "")


def test_one_seed_has_no_spread_in_any_format(book: Any) -> None:
    book.losses("a", "A", [1.5])
    book.losses("b", "M", [1.6])
    book.request()
    made = build_tables(results_of(book), against="a")
    assert "±" not in render(made[:1], "markdown").split("\n\n")[1]
    (table, differences) = json.loads(render(made, "json"))["tables"]
    assert table["rows"][0]["val_loss_nats"] | {"mean": 0} == {
        "mean": 0,
        "half": None,
        "sd": None,
        "n": 1,
        "low": None,
        "high": None,
    }
    assert (differences["rows"][0]["p"], differences["rows"][0]["finding"]) == (None, "undecided")


def test_a_metric_nobody_recorded_lists_those_that_are(text: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables(text.store.root, "demo_text", "--metric", "val_loss") == 2
    error = capsys.readouterr().err
    assert "did you mean val_loss_nats?" in error
    assert "tokens_per_s" in error


# --- names that are markup ----------------------------------------------------------------------


class Tags(HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def nasty(book: Any) -> Any:
    for name, layout in zip(NASTY, ("A", "M", "AM", "MA"), strict=True):
        book.losses(name, layout, [1.5, 1.6], **{SCRIPT: name})
    book.request(report={"title": SCRIPT, "caption": [SCRIPT, "&amp; <b>"], "row_header": SCRIPT})
    return book


def test_no_name_becomes_a_tag_or_an_attribute(nasty: Any) -> None:
    page = Tags()
    results = results_of(nasty)
    page.feed(render(build_tables(results, against=results.groups[1].label), "html"))
    allowed = {"section", "h3", "div", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong", "sup"}
    assert {tag for tag, _ in page.tags} <= allowed
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert SCRIPT in "".join(page.text)
    assert NASTY[1] in page.text


def test_no_name_becomes_a_command_of_latex(nasty: Any) -> None:
    text = render(build_tables(results_of(nasty)), "latex")
    assert r"\input" not in text
    assert r"50\% \& \textbackslash{}input\{/etc/passwd\} \$x\$ \#1\_2\textasciicircum{}3" in text


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_no_name_commands_a_terminal(nasty: Any, form: Any) -> None:
    text = render(build_tables(results_of(nasty)), form)
    assert "\x1b" not in text
    assert "\x07" not in text


def test_markdown_shows_tags_as_text(nasty: Any) -> None:
    assert "<script" not in render(build_tables(results_of(nasty)), "markdown").replace(r"\<", "")
