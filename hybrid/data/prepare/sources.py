"""Where documents come from: parquet and JSONL files, plain, .gz or .zst, here or at a URL that fsspec knows (hf://).

A file is cut into units that are read on their own: row groups of parquet, stretches of plain JSONL; a compressed file
is one unit. All that is remote is behind `_open`: what is read here and what is read there is the same code.
"""

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, assert_never

from hybrid.spec import ConfigError

Format = Literal["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]

UNITS: Final = 256
"""Files are cut so that all of the sources come to about so many units, within the two limits."""

_SMALLEST_UNIT: Final = 1 << 20
_LARGEST_UNIT: Final = 1 << 26

_SUFFIXES: Final[tuple[tuple[str, Format], ...]] = (
    (".parquet", "parquet"),
    (".jsonl", "jsonl"),
    (".json", "jsonl"),
    (".ndjson", "jsonl"),
    (".jsonl.gz", "jsonl.gz"),
    (".json.gz", "jsonl.gz"),
    (".jsonl.zst", "jsonl.zst"),
    (".json.zst", "jsonl.zst"),
    (".jsonl.zstd", "jsonl.zst"),
)
_CHUNK_BYTES: Final = 1 << 20
_ZSTD_LARGEST_WINDOW: Final = 1 << 31
_ROWS_A_BATCH: Final = 256


class DamagedError(Exception):
    """What is wrong with a file, or with a document in it; begins with where."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file, and what tells one version of it from another."""

    path: str
    format: Format
    size_bytes: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of a file: row groups of parquet, bytes of plain JSONL, or all of it, from `start` to before `stop`.

    `size_bytes` is about how much there is to read.
    """

    file: SourceFile
    start: int
    stop: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text, or what is wrong with it; `where` names its file and place."""

    where: str
    text: str
    problem: str | None = None


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """The files of paths, directories (searched through), globs and URLs, sorted, each once.

    Raises ConfigError for what matches nothing, or is of no known format.
    """
    found: dict[str, SourceFile] = {}
    problems: list[str] = []
    for source in sources:
        try:
            files = _remote_files(source) if is_remote(source) else _local_files(source)
        except ConfigError as error:
            problems += error.problems
            continue
        except Exception as error:
            if not is_remote(source) and not isinstance(error, OSError | ValueError):
                raise
            problems.append(f"source {source} = {type(error).__name__}, {reason(error)}: expected files to list")
            continue
        if not files:
            names = ", ".join(suffix for suffix, _ in _SUFFIXES)
            problems.append(
                f"source {source}: expected a file, directory, glob or URL with files of {names}; found none"
            )
        found |= {file.path: file for file in files}
    if problems:
        raise ConfigError(problems)
    return [found[path] for path in sorted(found)]


def is_remote(source: str) -> bool:
    return "://" in source


def unit_bytes(files: Sequence[SourceFile]) -> int:
    """What is read, tokenised and written at once, where a file can be cut: a power of two, so that it stays the same
    when a file among many changes."""
    share = sum(file.size_bytes for file in files) // UNITS
    return min(_LARGEST_UNIT, max(_SMALLEST_UNIT, 1 << share.bit_length()))


def cut(file: SourceFile, text_column: str, size: int) -> list[Unit]:
    """The units of a file, of about `size` bytes.

    Raises DamagedError if it cannot be read, ConfigError if it has no such column.
    """
    match file.format:
        case "parquet":
            return _cut_parquet(file, text_column, size)
        case "jsonl":
            starts = range(0, max(file.size_bytes, 1), size)
            stops = [min(at + size, file.size_bytes) for at in starts]
            return [
                Unit(file=file, start=at, stop=stop, size_bytes=stop - at)
                for at, stop in zip(starts, stops, strict=True)
            ]
        case "jsonl.gz" | "jsonl.zst":
            return [Unit(file=file, start=0, stop=file.size_bytes, size_bytes=file.size_bytes)]
        case _ as never:
            assert_never(never)


def read(unit: Unit, text_column: str) -> Iterator[Document]:
    """The documents of a unit, in order. Raises DamagedError if the file is, ConfigError if it has no such column."""
    if unit.file.format == "parquet":
        yield from _read_parquet(unit, text_column)
        return
    for where, line in _lines(unit):
        if not line.isspace() and line:
            yield _of_line(f"{unit.file.path}, {where}", line, text_column)


# --- files --------------------------------------------------------------------------------------


def _local_files(source: str) -> list[SourceFile]:
    path = Path(source)
    if path.is_dir():
        paths = [found for found in path.rglob("*") if _format(found.name) and not found.name.startswith(".")]
    elif path.is_file():
        paths = [path]
    else:
        paths = [found for found in map(Path, glob.glob(source, recursive=True)) if found.is_file()]
    return [_local_file(found) for found in paths]


def _local_file(path: Path) -> SourceFile:
    stat = path.stat()
    found = _known_format(str(path))
    return SourceFile(path=os.fspath(path), format=found, size_bytes=stat.st_size, version=str(stat.st_mtime_ns))


def _remote_files(source: str) -> list[SourceFile]:
    filesystem, path = _filesystem(source)
    entries: dict[str, dict[str, Any]] = filesystem.glob(path, detail=True)
    files = [(name, entry) for name, entry in entries.items() if entry["type"] == "file"]
    for name, entry in entries.items():
        if entry["type"] == "directory":
            files += [pair for pair in filesystem.find(name, detail=True).items() if _format(pair[0])]
    return [
        SourceFile(
            path=filesystem.unstrip_protocol(name),
            format=_known_format(name),
            size_bytes=int(entry["size"]),
            version=str(entry.get("blob_id") or entry.get("ETag") or entry.get("mtime") or entry["size"]),
        )
        for name, entry in files
    ]


def _filesystem(source: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise missing_extra(source, error) from error
    try:
        filesystem, path = url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"source {source} = {error}: expected a path, or a URL that fsspec can open") from error
    return filesystem, path


def missing_extra(what: str, error: ImportError) -> ConfigError:
    return ConfigError(f"{what}: needs {error.name}, which is not installed; pip install -e '.[data]'")


def _format(name: str) -> Format | None:
    lower = name.lower()
    return next((found for suffix, found in _SUFFIXES if lower.endswith(suffix)), None)


def _known_format(name: str) -> Format:
    found = _format(name)
    if found is None:
        names = ", ".join(suffix for suffix, _ in _SUFFIXES)
        raise ConfigError(f"source {name}: expected a file whose name ends with one of {names}")
    return found


@contextmanager
def _open(file: SourceFile) -> Iterator[Any]:
    """The bytes of a file. What goes wrong in reading them, here or inside, is a DamagedError that names it."""
    try:
        if is_remote(file.path):
            filesystem, path = _filesystem(file.path)
            with filesystem.open(path, "rb") as handle:
                yield handle
        else:
            with open(file.path, "rb") as handle:
                yield handle
    except (ConfigError, DamagedError):
        raise
    except Exception as error:
        # What fails on the way to a remote file is of many classes of several libraries.
        if not is_remote(file.path) and not isinstance(error, OSError | EOFError | zlib.error | ValueError):
            raise
        raise DamagedError(f"{file.path}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """One line of what went wrong."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


# --- parquet ------------------------------------------------------------------------------------


def _cut_parquet(file: SourceFile, text_column: str, wanted: int) -> list[Unit]:
    with _open(file) as handle:
        metadata = _parquet(handle, file).metadata
        column = _column_index(file, metadata, text_column)
        units: list[Unit] = []
        first, size = 0, 0
        for group in range(metadata.num_row_groups):
            size += metadata.row_group(group).column(column).total_uncompressed_size
            if size >= wanted or group == metadata.num_row_groups - 1:
                units.append(Unit(file=file, start=first, stop=group + 1, size_bytes=size))
                first, size = group + 1, 0
        return units


def _parquet(handle: Any, file: SourceFile) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise missing_extra(file.path, error) from error
    return ParquetFile(handle)


def _column_index(file: SourceFile, metadata: Any, text_column: str) -> int:
    columns = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    if text_column not in columns:
        raise ConfigError(
            f"--text-column {text_column}: expected one of the columns of {file.path}: {', '.join(sorted(columns))}"
        )
    return columns.index(text_column)


def _read_parquet(unit: Unit, text_column: str) -> Iterator[Document]:
    import pyarrow as pa

    with _open(unit.file) as handle:
        parquet = _parquet(handle, unit.file)
        _column_index(unit.file, parquet.metadata, text_column)
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.start))
        groups = list(range(unit.start, unit.stop))
        for batch in parquet.iter_batches(batch_size=_ROWS_A_BATCH, row_groups=groups, columns=[text_column]):
            column = batch.column(0)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                raise ConfigError(
                    f"--text-column {text_column}: expected a column of text; in {unit.file.path} it is {column.type}"
                )
            # As bytes: pyarrow gives what is no UTF-8 as text unchecked.
            for value in column.cast(pa.large_binary()).to_pylist():
                yield _decoded(f"{unit.file.path}, row {row}", value)
                row += 1


# --- JSONL --------------------------------------------------------------------------------------


def _of_line(where: str, line: bytes, text_column: str) -> Document:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Document(where=where, text="", problem=f"no UTF-8 ({error.reason})")
    except ValueError as error:
        return Document(where=where, text="", problem=f"no JSON ({error})")
    if not isinstance(row, dict):
        return Document(where=where, text="", problem="expected a JSON object in every line")
    if text_column not in row:
        columns = ", ".join(sorted(row))
        raise ConfigError(f"--text-column {text_column}: expected one of the fields at {where}: {columns}")
    text = row[text_column]
    if text is None:
        return Document(where=where, text="")
    if not isinstance(text, str):
        raise ConfigError(
            f"--text-column {text_column}: expected a field of text; at {where} it is {type(text).__name__}"
        )
    return Document(where=where, text=text, problem=None if _is_unicode(text) else "no Unicode (half a surrogate pair)")


def _decoded(where: str, value: bytes | None) -> Document:
    try:
        return Document(where=where, text="" if value is None else value.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Document(where=where, text="", problem=f"no UTF-8 ({error.reason})")


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _lines(unit: Unit) -> Iterator[tuple[str, bytes]]:
    """The lines of a unit, and where each is: those of a stretch of a file are those that begin in it."""
    with _open(unit.file) as handle:
        if unit.file.format == "jsonl":
            at = unit.start
            if at:  # a line that begins right here is one of this stretch
                handle.seek(at - 1)
                at += len(handle.readline()) - 1
            while at < unit.stop and (line := handle.readline()):
                yield f"byte {at}", line
                at += len(line)
            return
        chunks = _gunzip(handle) if unit.file.format == "jsonl.gz" else _unzstd(handle, unit.file)
        yield from ((f"line {number}", line) for number, line in enumerate(_split_lines(chunks), 1))


def _gunzip(handle: io.BufferedIOBase) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=handle) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _unzstd(handle: io.BufferedIOBase, file: SourceFile) -> Iterator[bytes]:
    """Frame by frame, as the library's stream reader takes a frame that is cut off for the end of the file."""
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra(file.path, error) from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_LARGEST_WINDOW)
    frame: Any = None
    try:
        while chunk := handle.read(_CHUNK_BYTES):
            while chunk:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise EOFError(f"cannot be decompressed ({error})") from error
    if frame is not None:
        raise EOFError("ends within a zstd frame: it was cut off")


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    for chunk in chunks:
        lines = chunk.split(b"\n")
        if len(lines) == 1:
            held.append(chunk)
            continue
        yield b"".join([*held, lines[0]])
        yield from lines[1:-1]
        held = [lines[-1]]
    if held and any(held):
        yield b"".join(held)
