"""What the formats for people have in common: the words in each cell, and which columns are of numbers."""

import unicodedata
from typing import Any, Final

from analysis.tables.table import Column, Table, Value

NOTHING: Final = "–"
ARROWS: Final = {"higher": "↑", "lower": "↓"}


def texts(table: Table[Any]) -> list[list[str]]:
    """The words of every cell."""
    return [
        [text_of(column, value) for column, value in zip(table.columns, values, strict=True)] for values in table.values
    ]


def text_of(column: Column[Any], value: Value) -> str:
    return NOTHING if value is None or value == "" else column.fmt(value)


def header_of(column: Column[Any]) -> str:
    """The words of a header, with an arrow in the direction that is good."""
    return f"{column.header} {ARROWS[column.better]}" if column.better else column.header


def numeric(table: Table[Any]) -> list[bool]:
    """Whether each column holds no words, and so goes flush right."""
    return [not any(isinstance(values[i], str) for values in table.values) for i in range(len(table.columns))]


def group_sizes(table: Table[Any]) -> list[int]:
    """For each row, how many belong to the group that begins there, 0 where none does; 1 in a table without groups."""
    firsts = [values[0] for values in table.values] if table.columns else []
    sizes: list[int] = []
    begin = 0
    for i, first in enumerate(firsts):
        if table.grouped and i > 0 and first == firsts[begin]:
            sizes.append(0)
            sizes[begin] += 1
        else:
            sizes.append(1)
            begin = i
    return sizes


def one_line(text: str) -> str:
    """Text without line breaks, and without what would command a terminal or break a file: control characters."""
    flat = " ".join(text.split())
    if flat.isprintable():
        return flat
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in flat)
