"""A table as text: Markdown, LaTeX, CSV, JSON. All from the same `Table`; only the spelling differs.

Markdown and LaTeX show what a person reads; CSV and JSON carry the unrounded numbers, intervals in columns of
their own. The output depends on the table alone: no dates, no paths.
"""

import csv
import dataclasses
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final, Literal, assert_never

from analysis import stats
from analysis.tables import Column, Table, Value

Format = Literal["markdown", "csv", "latex", "json"]
FORMATS: Final[tuple[Format, ...]] = ("markdown", "csv", "latex", "json")
SUFFIXES: Final[dict[Format, str]] = {"markdown": ".md", "csv": ".csv", "latex": ".tex", "json": ".json"}

_ARROWS: Final = {"higher": "↑", "lower": "↓"}
_LATEX_ARROWS: Final = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
_NOTHING: Final = "–"
_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "±": r"$\pm$",
    "–": "--",
    "\n": " ",
}


def render(tables: Sequence[Table[Any]], form: Format) -> str:
    """The tables in one of the formats, ending in a newline; CSV holds the tables one after another."""
    match form:
        case "markdown":
            return "\n".join(markdown(table) for table in tables)
        case "latex":
            return "\n".join(latex(table) for table in tables)
        case "csv":
            return "\n".join(as_csv(table) for table in tables)
        case "json":
            return as_json(tables)
        case _ as never:
            assert_never(never)


def markdown(table: Table[Any]) -> str:
    """GitHub Markdown, padded so that it reads as well in a terminal; numbers flush right."""
    header = [_markdown_text(_header(column, _ARROWS)) for column in table.columns]
    body = [[_markdown_text(text) for text in line] for line in _texts(table)]
    right = _numeric(table)
    widths = [max(3, *(_width(line[i]) for line in [header, *body])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (_pad(cell, width, to_right) for cell, width, to_right in zip(cells, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - to_right) + ":" * to_right for width, to_right in zip(widths, right, strict=True)]
    parts = [f"### {_markdown_text(table.title)}", "", line(header), line(rule), *map(line, body)]
    notes = [_markdown_text(text, starts_line=True) for text in table.caption]
    notes += [f"note: {_markdown_text(text)}" for text in table.footnotes]
    if notes:
        parts += ["", *(f"- {note}" for note in notes)]
    return "\n".join(parts) + "\n"


def latex(table: Table[Any]) -> str:
    """A LaTeX `table` float; needs \\usepackage{booktabs}."""
    alignment = "".join("r" if to_right else "l" for to_right in _numeric(table))
    header = " & ".join(_latex_header(column) for column in table.columns)
    body = [" & ".join(map(latex_text, line)) + r" \\" for line in _texts(table)]
    notes = " ".join(map(latex_text, (*table.caption, *table.footnotes)))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}. {notes}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            rf"{header} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def as_csv(table: Table[Any]) -> str:
    """One header line, one line a row, numbers in full; a value with an interval spreads over several columns."""
    header: list[str] = []
    columns: list[list[list[Any]]] = []
    for column in table.columns:
        values = [column.value(row) for row in table.rows]
        parts = [_parts(column.key, value) for value in values if value is not None]
        names = list(parts[0]) if parts else [column.key]
        known = iter(parts)
        header += names
        columns.append([[""] * len(names) if value is None else list(next(known).values()) for value in values])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([cell for cells in line for cell in cells] for line in zip(*columns, strict=True))
    return buffer.getvalue()


def as_json(tables: Sequence[Table[Any]]) -> str:
    """{"tables": [{name, title, columns, rows, caption, footnotes}]}; a row maps column keys to values."""
    content = [
        {
            "name": table.name,
            "title": table.title,
            "columns": [{"key": c.key, "header": c.header, "better": c.better} for c in table.columns],
            "rows": [{c.key: _plain(c.value(row)) for c in table.columns} for row in table.rows],
            "caption": list(table.caption),
            "footnotes": list(table.footnotes),
        }
        for table in tables
    ]
    return json.dumps({"tables": content}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def latex_text(text: str) -> str:
    """Any text, escaped for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def _texts(table: Table[Any]) -> list[list[str]]:
    return [[_text(column, column.value(row)) for column in table.columns] for row in table.rows]


def _text(column: Column[Any], value: Value) -> str:
    return _NOTHING if value is None or value == "" else column.fmt(value)


def _header(column: Column[Any], arrows: dict[str, str]) -> str:
    return f"{column.header} {arrows[column.better]}" if column.better else column.header


def _latex_header(column: Column[Any]) -> str:
    arrow = f" {_LATEX_ARROWS[column.better]}" if column.better else ""
    return latex_text(column.header) + arrow


def _numeric(table: Table[Any]) -> list[bool]:
    return [not any(isinstance(column.value(row), str) for row in table.rows) for column in table.columns]


def _markdown_text(text: str, *, starts_line: bool = False) -> str:
    r"""Escape what Markdown, GitHub's kind, would read as markup.

    A terminal reader is better off without needless backslashes, so `_` is escaped only at the edge of a word, `&`
    only where an entity begins, and `#`, `>`, `-`, `+` only where they begin a line.
    """
    flat = " ".join(text.split())
    escaped = re.sub(r"[\\`*<|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|(?<=\])\(", r"\\\g<0>", flat)
    return re.sub(r"^[#>+-]", r"\\\g<0>", escaped) if starts_line else escaped


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _pad(text: str, width: int, to_right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if to_right else text + space


def _plain(value: Value) -> Any:
    if isinstance(value, stats.Estimate | stats.Proportion | stats.CensoredMedian):
        return dataclasses.asdict(value) | ({"low": value.low, "high": value.high})
    return value


def _parts(key: str, value: Value) -> dict[str, Any]:
    """What a value spreads over in a CSV file, by column name."""
    match value:
        case stats.Estimate():
            return {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high, f"{key}_sd": value.sd}
        case stats.Proportion():
            return {key: value.k, f"{key}_of": value.n, f"{key}_share_low": value.low, f"{key}_share_high": value.high}
        case stats.CensoredMedian():
            names = (f"median_{key}", f"median_{key}_low", f"median_{key}_high", f"last_{key}")
            return dict(zip(names, (value.time, value.low, value.high, value.last), strict=True))
        case _:
            return {key: value}
