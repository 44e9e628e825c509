"""CSV and JSON, for other programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from analysis import stats
from analysis.tables.table import Shift, Table, Value


def as_csv(table: Table[Any]) -> str:
    """One header line, one line a row, numbers in full; a value with an interval spreads over several columns."""
    header: list[str] = []
    columns: list[list[list[Any]]] = []
    for i, column in enumerate(table.columns):
        values = [line[i] for line in table.values]
        parts = [{} if value is None else _parts(column.key, value) for value in values]
        names = list(dict.fromkeys(name for part in parts for name in part)) or [column.key]
        header += names
        columns.append([["" if part.get(name) is None else part[name] for name in names] for part in parts])
        marks = [line[i] for line in table.marks]
        if any(marks):
            header.append(f"{column.key}_mark")
            columns.append([[mark or ""] for mark in marks])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([cell for cells in line for cell in cells] for line in zip(*columns, strict=True))
    return buffer.getvalue()


def as_json(tables: Sequence[Table[Any]]) -> str:
    """{"tables": [{name, title, columns, rows, marks, caption, footnotes}]}; a row maps column keys to values, and its
    marks those of them that are marked to best, equivalent or undecided."""
    content = [
        {
            "name": table.name,
            "title": table.title,
            "columns": [{"key": c.key, "header": c.header, "better": c.better} for c in table.columns],
            "rows": [
                {column.key: _plain(value) for column, value in zip(table.columns, values, strict=True)}
                for values in table.values
            ],
            "marks": [
                {column.key: mark for column, mark in zip(table.columns, marks, strict=True) if mark}
                for marks in table.marks
            ],
            "caption": list(table.caption),
            "footnotes": list(table.footnotes),
        }
        for table in tables
    ]
    return json.dumps({"tables": content}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Value) -> Any:
    if isinstance(value, stats.Estimate | stats.Proportion | stats.CensoredMedian | stats.MedianRange):
        return dataclasses.asdict(value) | ({"low": value.low, "high": value.high})
    return value.value if isinstance(value, Shift) else value


def _parts(key: str, value: Value) -> dict[str, Any]:
    """What a value spreads over in a CSV file, by column name."""
    match value:
        case stats.Estimate():
            parts = {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high, f"{key}_sd": value.sd}
            return parts | {f"{key}_n": value.n}
        case stats.Proportion():
            return {key: value.k, f"{key}_of": value.n, f"{key}_share_low": value.low, f"{key}_share_high": value.high}
        case stats.CensoredMedian():
            names = (f"median_{key}", f"median_{key}_low", f"median_{key}_high", f"last_{key}")
            return dict(zip(names, (value.time, value.low, value.high, value.last), strict=True))
        case stats.MedianRange():
            parts = {f"median_{key}": value.median, f"{key}_min": value.low, f"{key}_max": value.high}
            return parts | {f"{key}_n": value.n}
        case Shift(value=shift):
            return {key: shift}
        case _:
            return {key: value}
