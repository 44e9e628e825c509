"""Plain text for people at a terminal: aligned tables, short numbers, durations."""

import re
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces: numbers to the right, the rest to the left."""
    columns = list(zip(header, *rows, strict=True))
    right = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-|\?|[+-]?[0-9.]+(e[+-]?[0-9]+)?[A-Za-z%]*!?", text) is not None


def count(number: int, noun: str) -> str:
    """1 run, 2 runs; of "process", 2 processes."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"


def amount(number: float, *, binary: bool = False) -> str:
    """A number with a unit of 1000 (K, M, B, T), or of 1024 (Ki, Mi, Gi) for bytes: three digits."""
    step, units = (1024, ["", "Ki", "Mi", "Gi", "Ti"]) if binary else (1000, ["", "K", "M", "B", "T"])
    value, index = float(number), 0
    while abs(value if binary else float(f"{value:.3g}")) >= step and index < len(units) - 1:
        value, index = value / step, index + 1
    return (f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}") + units[index]


def duration(seconds: float) -> str:
    """A time such as 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size_text(n_bytes: int) -> str:
    """Bytes in three digits and a unit of 1000: 79.6GB."""
    value, unit = float(n_bytes), "B"
    for larger in ("KB", "MB", "GB", "TB", "PB"):
        if float(f"{value:.3g}") < 1000:
            break
        value, unit = value / 1000, larger
    return (f"{value:.3g}" if value < 1000 else f"{value:.0f}") + unit


def hours_text(hours: float | None) -> str:
    """Hours in three digits, such as 0.0123, 4.5, 1880; "?" where nobody knows them."""
    if hours is None:
        return "?"
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.3g}" if hours >= 1e-4 or hours == 0 else f"{hours:.1e}"
