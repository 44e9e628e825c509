"""What arXiv 2510.04800 prints, as data, and why some of its cells cannot come out.

`printed.json` holds the numbers in the order of the printed rows; a null is a dash or a blank, and `flags` say where
the extraction is in doubt or two versions differ. `reasons.json` holds, for printed cells that contradict the paper's
formulas, what is known of why. A reason is there only if it can be computed, and a test computes it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

PRINTED_FILE: Final = Path(__file__).parent / "printed.json"
REASONS_FILE: Final = Path(__file__).parent / "reasons.json"

PrintedRow = Mapping[str, Any]
CellName = tuple[str, str, str]  # table, row, column


@dataclass(frozen=True, kw_only=True)
class PrintedTable:
    """A printed table: its number in that version of the paper, and its rows, each column by name.

    Numbers are int or Decimal, never float: the digits are those that were typed.
    """

    number: str
    version: str
    title: str
    notes: tuple[str, ...]
    rows: tuple[PrintedRow, ...]


@dataclass(frozen=True, kw_only=True)
class Printed:
    """Everything that is printed; `not_here` says which tables are missing from the data, and why."""

    source: str
    tables: Mapping[str, PrintedTable]
    not_here: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why some cells cannot come out, and how that can be computed: the check is the tests' to read."""

    text: str
    check: Mapping[str, Any]
    cells: tuple[CellName, ...]


def read_printed() -> Printed:
    """The printed tables, by number."""
    content = json.loads(PRINTED_FILE.read_text(encoding="utf-8"), parse_float=Decimal)
    tables = [PrintedTable(**{**table, "notes": tuple(table["notes"])}) for table in content["tables"]]
    return Printed(
        source=content["source"],
        tables={table.number: table for table in tables},
        not_here=content["not_here"],
    )


def read_reasons() -> tuple[Reason, ...]:
    """Why some cells cannot come out."""
    content = json.loads(REASONS_FILE.read_text(encoding="utf-8"))
    return tuple(
        Reason(
            text=entry["reason"],
            check=entry["check"],
            cells=tuple((table, row, column) for table, row, columns in entry["cells"] for column in columns),
        )
        for entry in content["reasons"]
    )
