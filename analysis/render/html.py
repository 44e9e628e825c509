"""HTML: a fragment with no script and no style of its own, for a page to style and sort.

Every cell of a number says it in full: `data-value` and, of an estimate, `data-low`, `data-high` and `data-n`. Columns
are named by `data-key`, and `data-differs` is on those that are not the same in all rows.
"""

import html as _html
import math
from typing import Any, Final

from analysis import stats
from analysis.contrasts import Mark
from analysis.render.text import group_sizes, header_of, numeric, one_line, texts
from analysis.tables.table import Column, Shift, Table, Value

_SIGNS: Final[dict[Mark, tuple[str, str]]] = {
    "equivalent": ("≈", "equivalent to the best"),
    "undecided": ("?", "undecided against the best"),
}


def html(table: Table[Any]) -> str:
    """A `section`: heading, table, notes."""
    right, words = numeric(table), texts(table)
    differs = [len({line[i] for line in words}) > 1 for i in range(len(table.columns))]
    head = "".join(
        _head(column, is_number, is_differing)
        for column, is_number, is_differing in zip(table.columns, right, differs, strict=True)
    )
    lines = [
        f'<section class="table" data-name="{escape(table.name)}">',
        f"<h3>{escape(table.title)}</h3>",
        '<div class="scroll" tabindex="0">',
        "<table>",
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
    ]
    for values, line, marks, size in zip(table.values, words, table.marks, group_sizes(table), strict=True):
        cells = "".join(map(_cell, values, line, marks, right))
        begins = ' class="group"' if table.grouped and size > 0 else ""
        lines.append(f"<tr{begins}>{cells}</tr>")
    lines += ["</tbody>", "</table>", "</div>"]
    if table.caption or table.footnotes:
        lines.append('<ul class="notes">')
        lines += [f"<li>{escape(text)}</li>" for text in table.caption]
        lines += [f'<li class="footnote">{escape(text)}</li>' for text in table.footnotes]
        lines.append("</ul>")
    return "\n".join([*lines, "</section>", ""])


def escape(text: str) -> str:
    """Text that is nothing but text, between tags and within quotation marks."""
    return _html.escape(one_line(text), quote=True)


def _head(column: Column[Any], is_number: bool, differs: bool) -> str:
    attributes = f' data-key="{escape(column.key)}"'
    attributes += f' data-better="{column.better}"' if column.better else ""
    attributes += " data-differs" if differs else ""
    attributes += ' class="number"' if is_number else ""
    return f'<th scope="col"{attributes}>{escape(header_of(column))}</th>'


def _cell(value: Value, text: str, mark: Mark | None, is_number: bool) -> str:
    attributes = "".join(f' data-{name}="{number!r}"' for name, number in _numbers(value).items())
    classes = [*(["number"] if is_number else []), *([mark] if mark else [])]
    attributes += f' class="{" ".join(classes)}"' if classes else ""
    words = escape(text)
    if mark == "best":
        words = f"<strong>{words}</strong>"
    elif mark is not None:
        sign, meaning = _SIGNS[mark]
        words = f'{words} <sup title="{meaning}">{sign}</sup>'
    return f"<td{attributes}>{words}</td>"


def _numbers(value: Value) -> dict[str, int | float]:
    """What a cell is sorted by, and what bounds it."""
    match value:
        case stats.Estimate(mean=mean, low=low, high=high, n=n):
            found = {"value": mean, "low": low, "high": high, "n": n}
        case stats.Proportion(k=k, n=n, low=low, high=high):
            found = {"value": k / n if n else None, "low": low, "high": high, "n": n}
        case stats.CensoredMedian(time=time, low=low, high=high, last=last, n=n):
            found = {"value": last if time is None else time, "low": low, "high": high, "n": n}
        case stats.MedianRange(median=median, low=low, high=high, n=n):
            found = {"value": median, "low": low, "high": high, "n": n}
        case Shift(value=value) | (int() | float() as value):
            found = {"value": value}
        case _:
            found = {}
    return {name: number for name, number in found.items() if number is not None and math.isfinite(number)}
