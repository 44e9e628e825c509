"""Rows of plain values as columns, and a file of such columns that is read in milliseconds.

A value is whatever JSON can say, and comes back as it was: an int as an int, null as None, NaN as NaN, and what a row
does not have as not there. Columns of numbers are arrays; all others keep each distinct value once, as JSON.

    hybrid-ablations index <schema> <bytes of the header> <its CRC-32>     the first line of a file
    {"facts": ..., "rows": ..., "columns": [...]}                          the header: where each array lies
    arrays, each with its CRC-32 in the header

A file is written aside and renamed: it is whole, or it is not there. After a loss of power it may be neither, which its
checksums tell. numpy is imported when called.
"""

import contextlib
import json
import os
import socket
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAGIC: Final = "hybrid-ablations index"
_EXACT: Final = 1 << 53  # whole numbers up to it are floats without loss
_INT64: Final = 1 << 63
_NOT_THERE, _NULL, _FLOAT, _INT = range(4)  # what a row of a column of numbers has

ABSENT: Final = object()
"""In a column's values: the row does not have it."""

Key = tuple[str, ...]
"""What a column is called: the way to the value through the mappings that it was in."""


class DamagedColumnsError(ValueError):
    """The file is not what was written, or not of this schema."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Numbers:
    """A column of numbers and nulls; `states` say which, and which whole numbers of a float column were written so."""

    array: "NDArray[Any]"
    states: "NDArray[np.uint8]"

    def __len__(self) -> int:
        return len(self.array)

    @cached_property
    def values(self) -> list[Any]:
        values: list[Any] = self.array.tolist()
        plain = _INT if self.array.dtype.kind == "i" else _FLOAT
        for i in (self.states != plain).nonzero()[0].tolist():
            state = self.states[i]
            values[i] = ABSENT if state == _NOT_THERE else None if state == _NULL else int(values[i])
        return values

    def floats(self) -> "NDArray[np.float64]":
        """NaN where there is no number."""
        import numpy as np

        floats = self.array.astype(np.float64)
        floats[self.states < _FLOAT] = np.nan
        return floats

    def take(self, rows: "NDArray[np.intp]") -> "Numbers":
        return Numbers(array=self.array[rows], states=self.states[rows])


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Coded:
    """A column of any values: `codes` count into the distinct ones, whose JSON `ends` cut `text` into; -1: absent."""

    codes: "NDArray[np.int32]"
    ends: "NDArray[np.int64]"
    text: bytes

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def distinct(self) -> list[Any]:
        """Not to be changed: rows share them."""
        distinct: list[Any] = json.loads(b"[%b]" % b",".join(self.texts))
        return distinct

    @cached_property
    def texts(self) -> list[bytes]:
        ends = self.ends.tolist()
        return [self.text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    @property
    def values(self) -> list[Any]:
        # The last one is what code -1 finds.
        distinct = [*self.distinct, ABSENT]
        return [distinct[code] for code in self.codes.tolist()]

    def take(self, rows: "NDArray[np.intp]") -> "Coded":
        """Without the values that no row has any more."""
        import numpy as np

        codes = self.codes[rows]
        kept, renumbered = np.unique(codes, return_inverse=True)
        if len(kept) and kept[0] < 0:
            kept, renumbered = kept[1:], renumbered - 1
        if len(kept) == len(self.ends):
            return Coded(codes=codes, ends=self.ends, text=self.text)
        return _coded(renumbered.astype(np.int32), [self.texts[code] for code in kept.tolist()])


Column = Numbers | Coded


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Columns of the same length; a row need not have all of them."""

    n_rows: int
    columns: Mapping[Key, Column]

    def values(self, key: Key) -> list[Any]:
        """A column's values, ABSENT where the row has none."""
        column = self.columns.get(key)
        return [ABSENT] * self.n_rows if column is None else column.values

    def take(self, rows: "Sequence[int] | NDArray[np.integer[Any]]") -> "Table":
        """These rows, in this order."""
        import numpy as np

        at = np.asarray(rows, dtype=np.intp)
        return Table(n_rows=len(rows), columns={key: column.take(at) for key, column in self.columns.items()})


def from_rows(rows: Sequence[Mapping[Any, Any]]) -> Table:
    """The rows' keys are texts, or the tuples that columns are called by."""
    # Most rows have the same keys.
    keys = dict.fromkeys(key for kind in dict.fromkeys(map(tuple, rows)) for key in kind)
    return Table(
        n_rows=len(rows),
        columns={
            (key if isinstance(key, tuple) else (key,)): column_of([row.get(key, ABSENT) for row in rows])
            for key in keys
        },
    )


def column_of(values: Sequence[Any]) -> Column:
    """A column of these values, ABSENT among them."""
    import numpy as np

    types = set(map(type, values))
    if types == {float}:
        return Numbers(array=np.array(values, np.float64), states=np.full(len(values), _FLOAT, np.uint8))
    if types == {int} and min(values) >= -_INT64 and max(values) < _INT64:
        return Numbers(array=np.array(values, np.int64), states=np.full(len(values), _INT, np.uint8))
    if types & {int, float} and types <= {int, float, type(None), object}:
        ints = [value for value in values if type(value) is int]
        if float not in types and all(-_INT64 <= value < _INT64 for value in ints):
            return _numbers(values, np.dtype(np.int64))
        if float in types and all(-_EXACT <= value <= _EXACT for value in ints):
            return _numbers(values, np.dtype(np.float64))
    texts: dict[str, int] = {}
    codes = [-1 if value is ABSENT else texts.setdefault(json.dumps(value), len(texts)) for value in values]
    return _coded(np.array(codes, np.int32), [text.encode() for text in texts])


def _numbers(values: Sequence[Any], dtype: "np.dtype[Any]") -> Numbers:
    import numpy as np

    state_of = {float: _FLOAT, int: _INT, type(None): _NULL, object: _NOT_THERE}
    return Numbers(
        array=np.array([0 if value is None or value is ABSENT else value for value in values], dtype),
        states=np.array([state_of[type(value)] for value in values], np.uint8),
    )


def _coded(codes: "NDArray[np.int32]", texts: Sequence[bytes]) -> Coded:
    import numpy as np

    return Coded(codes=codes, ends=np.cumsum([len(text) for text in texts], dtype=np.int64), text=b"".join(texts))


def concatenate(tables: Sequence[Table]) -> Table:
    """The rows of all of them, one after the other."""
    keys = dict.fromkeys(key for table in tables for key in table.columns)
    return Table(
        n_rows=sum(table.n_rows for table in tables),
        columns={key: _joined([(table.n_rows, table.columns.get(key)) for table in tables]) for key in keys},
    )


def _joined(parts: Sequence[tuple[int, Column | None]]) -> Column:
    import numpy as np

    there = [part for _, part in parts if part is not None]
    if len(there) == len(parts) == 1:
        return there[0]
    if all(isinstance(part, Coded) for part in there):
        texts: dict[bytes, int] = {}
        codes = []
        for n, part in parts:
            if part is None:
                codes.append(np.full(n, -1, np.int32))
                continue
            assert isinstance(part, Coded)
            renumbered = np.array([texts.setdefault(text, len(texts)) for text in part.texts] + [-1], np.int32)
            codes.append(renumbered[part.codes])
        return _coded(np.concatenate(codes), list(texts))
    numbers = [part for part in there if isinstance(part, Numbers)]
    if len(numbers) == len(there) and len({part.array.dtype for part in numbers}) == 1:
        dtype = numbers[0].array.dtype
        gap = [
            part
            if isinstance(part, Numbers)
            else Numbers(array=np.zeros(n, dtype), states=np.full(n, _NOT_THERE, np.uint8))
            for n, part in parts
        ]
        return Numbers(
            array=np.concatenate([part.array for part in gap]), states=np.concatenate([part.states for part in gap])
        )
    return column_of([value for n, part in parts for value in ([ABSENT] * n if part is None else part.values)])


# --- files --------------------------------------------------------------------------------------


def write_columns(path: Path, schema: str, facts: Any, table: Table) -> None:
    """Replace the file. `facts`: plain data about it; `schema`: a word. Raises OSError."""
    blocks: list[bytes] = []
    described: list[dict[str, Any]] = []
    at = 0

    def block(content: bytes) -> list[int]:
        nonlocal at
        blocks.append(content)
        at += len(content)
        return [at - len(content), len(content), zlib.crc32(content)]

    for key, column in table.columns.items():
        match column:
            case Numbers():
                kind = "int" if column.array.dtype.kind == "i" else "float"
                entry: dict[str, Any] = {"key": key, "kind": kind, "array": block(column.array.tobytes())}
                # Most columns have one state throughout.
                first = int(column.states[0]) if len(column) else _FLOAT
                same = bool((column.states == first).all())
                entry["states"] = first if same else block(column.states.tobytes())
            case Coded():
                entry = {"key": key, "kind": "coded", "codes": block(column.codes.tobytes())}
                entry |= {"ends": block(column.ends.tobytes()), "text": block(column.text)}
        described.append(entry)
    header = json.dumps({"facts": facts, "rows": table.n_rows, "columns": described}).encode()
    first_line = f"{_MAGIC} {schema} {len(header)} {zlib.crc32(header)}\n".encode()
    # Under a name that `sweeps gc` knows for that of a killed writer's file.
    temporary = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        with open(temporary, "wb") as file:
            file.writelines([first_line, header, *blocks])
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_columns(path: Path, schema: str, only: Collection[Key] | None = None) -> tuple[Any, Table]:
    """The facts of a file and its columns, or `only` these. Raises DamagedColumnsError, OSError."""
    with open(path, "rb") as file:
        header, begin = _header(file, schema)

        def block(place: Sequence[int]) -> bytes:
            offset, length, checksum = place
            file.seek(begin + offset)
            content = file.read(length)
            if len(content) != length or zlib.crc32(content) != checksum:
                raise DamagedColumnsError(f"{path}: a checksum does not fit")
            return content

        try:
            n, columns = header["rows"], {}
            for entry in header["columns"]:
                key = tuple(entry["key"])
                if only is None or key in only:
                    columns[key] = _read_column(entry, n, block)
            return header["facts"], Table(n_rows=n, columns=columns)
        except (LookupError, TypeError, ValueError) as error:
            raise DamagedColumnsError(f"{path}: {error}") from error


def _read_column(entry: Mapping[str, Any], n: int, block: Any) -> Column:
    import numpy as np

    kind: Literal["int", "float", "coded"] = entry["kind"]
    column: Column
    match kind:
        case "coded":
            column = Coded(
                codes=np.frombuffer(block(entry["codes"]), np.int32),
                ends=np.frombuffer(block(entry["ends"]), np.int64),
                text=block(entry["text"]),
            )
        case _:
            states = entry["states"]
            column = Numbers(
                array=np.frombuffer(block(entry["array"]), np.int64 if kind == "int" else np.float64),
                states=np.full(n, states, np.uint8)
                if isinstance(states, int)
                else np.frombuffer(block(states), np.uint8),
            )
    if len(column) != n:
        raise DamagedColumnsError(f"{entry['key']}: {len(column)} rows, expected {n}")
    return column


def _header(file: BinaryIO, schema: str) -> tuple[dict[str, Any], int]:
    """The header, and where what follows it begins."""
    first = file.readline(200)
    words = first.decode("ascii", "replace").split()
    try:
        *magic, found, length, checksum = words
        text = file.read(min(int(length), os.fstat(file.fileno()).st_size))
        if " ".join(magic) != _MAGIC or found != schema or zlib.crc32(text) != int(checksum):
            raise ValueError(f"expected an index of schema {schema}")
        header = json.loads(text)
        return header, len(first) + len(text)
    except (ValueError, RecursionError) as error:
        raise DamagedColumnsError(f"{file.name}: {error}") from error
