"""GitHub Markdown, which reads as well in a terminal."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

from analysis.contrasts import Mark
from analysis.render.text import header_of, numeric, one_line, texts
from analysis.tables.table import Table

_MARKUP: Final = re.compile(r"[\\`*<|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|(?<=\])\(")
_OF_LINES: Final = re.compile(r"^[#>+-]")


def markdown(table: Table[Any]) -> str:
    """GitHub Markdown, padded so that it reads as well in a terminal; numbers flush right."""
    header = [_escaped(header_of(column)) for column in table.columns]
    body = [
        [_marked(_escaped(text), mark) for text, mark in zip(line, line_marks, strict=True)]
        for line, line_marks in zip(texts(table), table.marks, strict=True)
    ]
    right = numeric(table)
    widths = [max(3, *map(_width, cells)) for cells in zip(header, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (_pad(cell, width, to_right) for cell, width, to_right in zip(cells, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - to_right) + ":" * to_right for width, to_right in zip(widths, right, strict=True)]
    parts = [f"### {_escaped(table.title)}", "", line(header), line(rule), *map(line, body)]
    notes = [_escaped(text, starts_line=True) for text in table.caption]
    notes += [f"note: {_escaped(text)}" for text in table.footnotes]
    if notes:
        parts += ["", *(f"- {note}" for note in notes)]
    return "\n".join(parts) + "\n"


def _marked(text: str, mark: Mark | None) -> str:
    match mark:
        case "best":
            return f"**{text}**"
        case "equivalent":
            return f"{text} ≈"
        case "undecided":
            return f"{text} ?"
        case None:
            return text


def _escaped(text: str, *, starts_line: bool = False) -> str:
    r"""Escape what Markdown, GitHub's kind, would read as markup.

    A terminal reader is better off without needless backslashes, so `_` is escaped only at the edge of a word, `&`
    only where an entity begins, and `#`, `>`, `-`, `+` only where they begin a line.
    """
    escaped = _MARKUP.sub(r"\\\g<0>", one_line(text))
    return _OF_LINES.sub(r"\\\g<0>", escaped) if starts_line else escaped


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _pad(text: str, width: int, to_right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if to_right else text + space
