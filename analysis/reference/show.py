"""Findings as text, Markdown or JSON."""

import json
import string
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

from analysis.reference.compare import COLUMNS, Comparison
from analysis.reference.findings import Compared, Conventions, Findings
from analysis.render import markdown
from analysis.tables import Column, Table, Value

RULE: Final = "A cell agrees if its computed value lies within half a unit of the last digit that is printed."
AGREES: Final = "agrees"
_CONVENTIONS: Final = "What the full convention changes: training FLOPs of a token at 8K context"
_HEAD: Final = "head: that of the output layer alone, as a share of what the paper counts; the paper leaves it out."


def as_json(findings: Findings) -> str:
    """[{table, row, column, printed, computed, digits, agrees, reason}], every compared cell; numbers in full."""
    cells = [
        {
            "table": cell.table,
            "row": cell.row,
            "column": cell.column,
            "printed": _number(Fraction(cell.printed)),
            "computed": _number(cell.computed),
            "digits": cell.digits,
            "agrees": cell.agrees,
            "reason": cell.reason,
        }
        for compared in findings.compared
        for cell in compared.cells
    ]
    return json.dumps(cells, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_text(findings: Findings, *, everything: bool, bold: Callable[[str], str]) -> str:
    """A line a table, then the cells that do not agree (or all), then conventions and noise where there are any."""
    parts = ["\n".join([f"Printed cells of {_short(findings.source)} beside what our specs cost.", RULE])]
    parts.append("\n".join(_summary(findings)))
    for compared in findings.compared:
        cells = _shown(compared, everything)
        if cells:
            parts.append("\n".join([bold(_title(compared)), *_cell_lines(cells)]))
    if findings.conventions:
        rows = [[column.header for column in _CONVENTION_COLUMNS]]
        rows += [[column.fmt(column.value(row)) for column in _CONVENTION_COLUMNS] for row in findings.conventions]
        parts.append("\n".join([bold(_CONVENTIONS), *_aligned(rows, left=2), f"  {_HEAD}"]))
    if findings.noise:
        parts.append("\n".join(_noise_lines(findings)))
    return "\n\n".join(parts) + "\n"


def as_markdown(findings: Findings, *, everything: bool) -> str:
    """The same in Markdown, the reason in a column of its own."""
    tables: list[Table[Comparison] | Table[Conventions]] = []
    for compared in findings.compared:
        cells = _shown(compared, everything)
        if cells:
            tables.append(
                Table(
                    name=f"table{compared.table.number}",
                    title=_title(compared),
                    columns=_CELL_COLUMNS,
                    rows=cells,
                    caption=(),
                    footnotes=(),
                )
            )
    if findings.conventions:
        tables.append(
            Table(
                name="conventions",
                title=_CONVENTIONS,
                columns=_CONVENTION_COLUMNS,
                rows=findings.conventions,
                caption=(_HEAD,),
                footnotes=(),
            )
        )
    head = [f"Printed cells of {_short(findings.source)} beside what our specs cost. {RULE}", ""]
    summary = [*(f"- {' '.join(line.split())}" for line in [*_summary(findings)[1:], *_noise_lines(findings)]), ""]
    return "\n".join([*head, *summary, *(markdown(table) for table in tables)])


# --- parts --------------------------------------------------------------------------------------


def _shown(compared: Compared, everything: bool) -> tuple[Comparison, ...]:
    return tuple(cell for cell in compared.cells if everything or not cell.agrees)


def _short(source: str) -> str:
    return source.partition(",")[0]


def _title(compared: Compared) -> str:
    table = compared.table
    return f"Table {table.number} ({table.version}): {table.title}: {_agreeing([compared])} cells agree"


def _agreeing(compared: Sequence[Compared]) -> str:
    return f"{sum(c.n_agreeing for c in compared)} of {sum(len(c.cells) for c in compared)}"


def _summary(findings: Findings) -> list[str]:
    """A line a table, in the order of their numbers, v1 before v3; the missing ones in their places."""
    lines = [
        (compared.table.version, number_of(compared.table.number), f"{_agreeing([compared])}", compared.table.title)
        for compared in findings.compared
    ]
    # Whatever is missing here is of v3: v1 is here as a whole.
    lines += [("v3", number_of(number), "-", why) for number, why in findings.not_here.items()]
    rows = [["table", "", "cells that agree", ""]]
    rows += [[f"Table {number}", version, agree, title] for version, (_, number), agree, title in sorted(lines)]
    if len(findings.compared) > 1:
        rows.append(["all", "", _agreeing(findings.compared), ""])
    return _aligned(rows, left=4)


def number_of(number: str) -> tuple[int, str]:
    """What sorts a table among others: 14/15 comes after 12."""
    return int(number.partition("/")[0]), number


def _cell_lines(cells: Sequence[Comparison]) -> list[str]:
    """The cells, those with a reason marked by a letter, and the reasons under their letters."""
    reasons = list(dict.fromkeys(cell.reason for cell in cells if cell.reason_known))
    letters = dict(zip(reasons, _letters(len(reasons)), strict=True))
    rows = [["row", "column", "printed", "computed", ""]]
    rows += [
        [
            cell.row,
            COLUMNS[cell.column].header,
            _printed(cell),
            _computed(cell),
            AGREES if cell.agrees else letters.get(cell.reason, cell.reason or ""),
        ]
        for cell in cells
    ]
    return [*_aligned(rows, left=2, last_left=True), *(f"  {letters[reason]}: {reason}" for reason in reasons)]


def _letters(count: int) -> list[str]:
    alphabet = string.ascii_lowercase
    return [(alphabet[i // 26 - 1] if i >= 26 else "") + alphabet[i % 26] for i in range(count)]


def _noise_lines(findings: Findings) -> list[str]:
    return [
        f"Noise between rows of Table {n.table} ({n.scale}) that are one model by symmetry: standard deviation "
        f"{n.sd_nats:.4f} nats, {n.dof} degrees of freedom ({sum(len(m.names) for m in n.models)} rows, "
        f"{len(n.models)} models)"
        for n in findings.noise
    ]


def _flops(row: Conventions, convention: str) -> str:
    per_token = row.paper_train_flops_per_token if convention == "paper" else row.full_train_flops_per_token
    return f"{float(per_token):.4e}".replace("e+0", "e").replace("e+", "e")


def _printed(cell: Comparison) -> str:
    return f"{Decimal(cell.printed):.{cell.digits}f}"


def _computed(cell: Comparison) -> str:
    return f"{float(cell.computed):.8g}"


def _number(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


def _aligned(rows: Sequence[Sequence[str]], *, left: int, last_left: bool = False) -> list[str]:
    """Lines with two blanks between columns: the first `left` flush left (and the last, if so), the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if i < left or (last_left and i == len(row) - 1) else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


_CELL_COLUMNS: Final = (
    Column[Comparison](key="row", header="row", value=lambda cell: cell.row, fmt=str),
    Column[Comparison](key="column", header="column", value=lambda cell: COLUMNS[cell.column].header, fmt=str),
    Column[Comparison](key="printed", header="printed", value=lambda cell: _printed(cell), fmt=str),
    Column[Comparison](key="computed", header="computed", value=lambda cell: _computed(cell), fmt=str),
    Column[Comparison](
        key="reason", header="why not", value=lambda cell: AGREES if cell.agrees else cell.reason, fmt=str
    ),
)


def _share(value: Value) -> str:
    return f"{value:.0%}" if isinstance(value, float) else str(value)


def _ratio(value: Value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


_CONVENTION_COLUMNS: Final = (
    Column[Conventions](key="scale", header="scale", value=lambda row: row.scale, fmt=str),
    Column[Conventions](key="model", header="model", value=lambda row: row.model, fmt=str),
    Column[Conventions](key="paper", header="paper", value=lambda row: _flops(row, "paper"), fmt=str),
    Column[Conventions](key="full", header="full", value=lambda row: _flops(row, "full"), fmt=str),
    Column[Conventions](key="full_to_paper", header="full / paper", value=lambda row: row.full_to_paper, fmt=_ratio),
    Column[Conventions](key="head_to_paper", header="head / paper", value=lambda row: row.head_to_paper, fmt=_share),
)
