"""One contract over every renderer: nothing asked for is lost, nothing typed becomes markup, same in, same out."""

import csv
import io
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from analysis import stats
from analysis.render import FORMATS, Format, latex_text, render
from analysis.tables import Column, Table, show

NASTY = r"50% of_it & $x^2$ {a} #1 ~ \b | *c* <d> `e`"
Row = dict[str, Any]


def made_up(rows: tuple[Row, ...] | None = None) -> Table[Row]:
    usual: tuple[Row, ...] = (
        {"name": NASTY, "loss": stats.Estimate(mean=1.25, half=0.01, sd=0.008, n=5), "solved": None, "n": 5},
        {"name": "second", "loss": None, "solved": stats.clopper_pearson(2, 5), "n": 0},
        {"name": "", "loss": stats.Estimate(mean=1.5, half=None, sd=None, n=1), "solved": None, "n": 1},
    )
    return Table(
        name="table",
        title="A title & more",
        columns=(
            Column[Row](key="name", header="na|me", value=lambda row: row["name"], fmt=str),
            Column[Row](key="loss", header="loss_nats", value=lambda row: row["loss"], fmt=show, better="lower"),
            Column[Row](key="solved", header="solved", value=lambda row: row["solved"], fmt=show, better="higher"),
            Column[Row](key="n", header="n", value=lambda row: row["n"], fmt=str),
        ),
        rows=usual if rows is None else rows,
        caption=("# not a heading: 95%.",),
        footnotes=("a_footnote.",),
    )


def cells_of(line: str) -> list[str]:
    """The cells of a Markdown line, split where GitHub splits them."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("form", FORMATS)
def test_every_row_appears_and_output_is_repeatable(form: Format) -> None:
    text = render([made_up()], form)
    assert text == render([made_up()], form)
    assert text.endswith("\n")
    assert "second" in text
    assert "1.25" in text
    assert "1.5" in text


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_without_rows_is_rendered(form: Format) -> None:
    assert render([made_up(rows=())], form)


@pytest.mark.parametrize("form", ["markdown", "latex", "json", "html"])
def test_caption_and_footnotes_are_never_lost(form: Format) -> None:
    text = render([made_up()], form)
    assert "not a heading: 95" in text
    assert "footnote." in text


def test_markdown_keeps_columns_apart_whatever_names_hold() -> None:
    lines = [line for line in render([made_up()], "markdown").splitlines() if line.startswith("|")]
    assert [len(cells_of(line)) for line in lines] == [4] * 5
    assert len({len(line) for line in lines}) == 1
    unescaped = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cells_of(lines[2])[0])
    assert unescaped == NASTY
    assert cells_of(lines[2])[1] == "1.250 ± 0.010"


def test_markdown_escapes_what_would_be_markup() -> None:
    text = render([made_up()], "markdown")
    assert r"\*c\*" in text
    assert r"\<d>" in text
    assert r"- \# not a heading" in text
    assert "loss_nats" in text


def test_latex_escapes_every_special() -> None:
    assert latex_text(r"\{}$&%#_~^") == (r"\textbackslash{}\{\}\$\&\%\#\_\textasciitilde{}\textasciicircum{}")
    body = render([made_up()], "latex").split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert body.count(r"\\" + "\n") == 3
    assert all(len(re.findall(r"(?<!\\)&", line)) == 3 for line in body.strip().splitlines())
    assert not re.search(r"(?<!\\)[%#_]", body)


def test_csv_holds_whole_numbers_in_columns_of_their_own() -> None:
    rows = list(csv.DictReader(io.StringIO(render([made_up()], "csv"))))
    assert [row["name"] for row in rows] == [NASTY, "second", ""]
    assert float(rows[0]["loss_low"]) == pytest.approx(1.24)
    assert (rows[2]["loss_low"], rows[2]["loss_high"]) == ("", "")
    assert (rows[1]["solved"], rows[1]["solved_of"]) == ("2", "5")


def test_json_holds_whole_numbers() -> None:
    (table,) = json.loads(render([made_up()], "json"))["tables"]
    assert table["rows"][0]["name"] == NASTY
    assert table["rows"][0]["loss"]["high"] == pytest.approx(1.26)
    assert table["rows"][2]["loss"]["half"] is None
    assert [column["better"] for column in table["columns"]] == [None, "lower", "higher", None]


def marked() -> Table[Row]:
    """Two groups; a row of each mark, and one of none."""
    rows: tuple[Row, ...] = (
        {"group": "a", "loss": 1.0, "mark": "best"},
        {"group": "a", "loss": 1.1, "mark": "equivalent"},
        {"group": "b", "loss": 1.2, "mark": "undecided"},
        {"group": "a", "loss": 1.3, "mark": None},
    )
    return Table(
        name="table",
        title="Marks",
        columns=(
            Column[Row](key="group", header="group", value=lambda row: row["group"], fmt=str),
            Column[Row](
                key="loss", header="loss", value=lambda row: row["loss"], fmt=str, mark=lambda row: row["mark"]
            ),
        ),
        rows=rows,
        caption=(),
        footnotes=(),
        grouped=True,
    )


def test_every_format_tells_the_marks_apart() -> None:
    shown = {form: render([marked()], form) for form in FORMATS}
    assert re.findall(r"\| +(\S+(?: \S)?) \|$", shown["markdown"], re.MULTILINE)[2:] == [
        "**1.0**",
        "1.1 ≈",
        "1.2 ?",
        "1.3",
    ]
    assert [line["loss_mark"] for line in csv.DictReader(io.StringIO(shown["csv"]))] == [
        "best",
        "equivalent",
        "undecided",
        "",
    ]
    (table,) = json.loads(shown["json"])["tables"]
    assert [marks.get("loss") for marks in table["marks"]] == ["best", "equivalent", "undecided", None]
    assert re.findall(r"& (.*) \\\\", shown["latex"])[1:] == [
        r"\textbf{1.0}",
        r"1.1\,$^{\approx}$",
        r"1.2\,$^{?}$",
        "1.3",
    ]
    assert re.findall(r'class="number( \w+)?">(.*?)</td>', shown["html"]) == [
        (" best", "<strong>1.0</strong>"),
        (" equivalent", '1.1 <sup title="equivalent to the best">≈</sup>'),
        (" undecided", '1.2 <sup title="undecided against the best">?</sup>'),
        ("", "1.3"),
    ]


def test_latex_names_a_group_once_and_rules_it_off() -> None:
    body = render([marked()], "latex").split(r"\midrule", 1)[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [line.split(" & ")[0] for line in body] == [
        r"\multirow{2}{*}{a}",
        "",
        r"\midrule",
        "b",
        r"\midrule",
        "a",
    ]


def test_html_numbers_carry_their_values_in_full_for_sorting() -> None:
    text = render([made_up()], "html")
    assert 'data-value="1.25" data-low="1.24" data-high="1.26" data-n="5"' in text
    assert 'data-value="0.4"' in text
    assert text.count("<tr") == 4
    assert '<th scope="col" data-key="loss" data-better="lower" data-differs class="number">' in text


def test_html_is_one_well_formed_section() -> None:
    root = ElementTree.fromstring(render([made_up()], "html").replace(" data-differs", ""))
    assert root.tag == "section"
    assert root.findall(".//tbody/tr/td")[0].text == NASTY
    assert not root.findall(".//script")


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_control_characters_never_reach_a_reader(form: Format) -> None:
    rows: tuple[Row, ...] = ({"name": "a\x1b]0;b\x07\x00\u009b", "loss": None, "solved": None, "n": 0},)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", render([made_up(rows)], form))


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("--flag", "-{}-flag"),
        ("a–b", r"a\textendash{}b"),
        ("≈ ± Δ", r"$\approx$ $\pm$ $\Delta$"),
        ("naïve", "naïve"),
        ("中", "{[}U+4E2D{]}"),
        ("?`", r"?\textasciigrave{}"),
    ],
)
def test_latex_sets_what_it_can_and_numbers_the_rest(typed: str, shown: str) -> None:
    assert latex_text(typed) == shown
