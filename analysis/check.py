"""Whether tables that were committed are those that come out now."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from analysis.render import FORMATS, SUFFIXES, render
from analysis.tables.table import Table
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

# What the tables of a request are called.
NAMES: Final = ("table", "comparisons", "differences")
_IN_FULL: Final = re.compile(r"(-?\d+\.\d{7,}(?:e[+-]?\d+)?)")
_ROUNDING: Final = 1e-9


def table_files(tables: Sequence[Table[Any]]) -> dict[str, str]:
    """The files that tables are written to, by name; in CSV a file holds one table, else all."""
    return {
        f"{batch[0].name}{SUFFIXES[form]}": render(batch, form)
        for form in FORMATS
        for batch in ([(table,) for table in tables] if form == "csv" else [tables])
    }


def differences(files: Mapping[str, str], paths: Sequence[Path]) -> str:
    """What would change in committed files, as a unified diff; empty if nothing would.

    A directory stands for all tables in it. Raises ConfigError where there is nothing to compare with.
    """
    parts: list[str] = []
    for path, text in _expected(files, paths):
        try:
            committed = path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            raise ConfigError(f"--check {path}: no such file") from None
        except UnicodeDecodeError:
            raise ConfigError(f"--check {path}: expected a table as text in UTF-8") from None
        parts += _diff(path, committed, text)
    return "".join(parts)


def _expected(files: Mapping[str, str], paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        if path.is_dir():
            # Figures may lie beside the tables; a table that does not come out any more is a difference too.
            found = [one for one in sorted(path.iterdir()) if one.stem in NAMES and one.suffix in SUFFIXES.values()]
            if not found:
                raise ConfigError(f"--check {path}: holds no table; expected one of {', '.join(files)}")
            yield from ((one, files.get(one.name, "")) for one in found)
        elif path.name in files:
            yield path, files[path.name]
        else:
            raise ConfigError(f"--check {path}: not a name that --out gives{did_you_mean(path.name, files)}")


def _diff(path: Path, committed: str, text: str) -> list[str]:
    before, after = committed.splitlines(keepends=True), text.splitlines(keepends=True)
    if len(before) == len(after):
        after = [old if _is_same(old, new) else new for old, new in zip(before, after, strict=True)]
    lines = difflib.unified_diff(before, after, str(path), "as it comes out now")
    return [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines]


def _is_same(old: str, new: str) -> bool:
    """Whether two lines are equal but for the last digits of unrounded numbers, which differ between machines."""
    olds, news = _IN_FULL.split(old), _IN_FULL.split(new)
    return (
        olds[::2] == news[::2]
        and len(olds) == len(news)
        and all(
            math.isclose(float(a), float(b), rel_tol=_ROUNDING) for a, b in zip(olds[1::2], news[1::2], strict=True)
        )
    )
