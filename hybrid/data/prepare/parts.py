"""The first pass: every unit of the sources is tokenised on its own, into a part.

    <work>/parts/<key>.tokens   documents (bos, tokens, eos) in the order of their hashes
    <work>/parts/<key>.npy      a row of INDEX for each
    <work>/parts/<key>.json     counts and sizes: written last, so that a part without it, or of other sizes, is redone

A document's hash is all that later decides its place: BLAKE2b over its UTF-8 text, keyed with the seed. The first half
orders documents, the second draws the validation split. Hence neither the order of files nor the number of processes
can be seen in what comes out, and equal texts are never on both sides of the split.
"""

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hybrid.data.packed import Tokens
from hybrid.data.prepare.sources import DamagedError, Document, Unit, read
from hybrid.data.prepare.tokenizer import TextTokenizer, TokenizerSpec, as_document
from hybrid.durable import make_dir, sync_dir

INDEX: Final = np.dtype([("place", "<u8"), ("draw", "<u8"), ("tokens", "<u8"), ("text_bytes", "<u8")])
WHOLE: Final = 1 << 64

_BATCH_BYTES: Final = 1 << 17
_BATCH_DOCUMENTS: Final = 1000
_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """What the tokens of a part depend on beside its unit. Of all documents, those in the first `fraction` of the order
    are tokenised; a `bad` document stops the unit or is left out."""

    tokenizer: TokenizerSpec
    text_column: str
    seed: int
    fraction: float
    bad: Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished part. `left_out` counts documents that were read and not tokenised, by the reason; `shown` are
    examples of the bad ones."""

    key: str
    documents: int
    tokens: int
    text_bytes: int
    left_out: dict[str, int]
    shown: tuple[str, ...]
    sizes: tuple[int, int]


def part_key(unit: Unit, settings: PartSettings) -> str:
    """Of a part's files: another one for another version of the source's file, and for other settings."""
    described = [
        asdict(unit),
        asdict(settings) | {"tokenizer": asdict(settings.tokenizer) | {"path": None, "name": None}},
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:20]


def part_paths(directory: Path, key: str) -> tuple[Path, Path]:
    """The tokens and their index."""
    return directory / f"{key}.tokens", directory / f"{key}.npy"


def finished_part(directory: Path, key: str) -> Part | None:
    """The part, if it is there and whole."""
    try:
        data = json.loads((directory / f"{key}.json").read_bytes())
        part = Part(**data | {"shown": tuple(data["shown"]), "sizes": tuple(data["sizes"])})
        whole = tuple(path.stat().st_size for path in part_paths(directory, key)) == part.sizes
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return part if whole and part.key == key else None


def make_part(unit: Unit, settings: PartSettings, tokenizer: TextTokenizer, directory: Path) -> Part:
    """Tokenise a unit. Raises DamagedError for a file, or a document of it, that cannot be read."""
    left_out: Counter[str] = Counter()
    shown: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    documents: list[NDArray[Any]] = []
    limit = round(settings.fraction * WHOLE)
    key = hashlib.blake2b(str(settings.seed).encode(), digest_size=16).digest()

    def wanted() -> Iterator[tuple[Document, bytes, int, int]]:
        for document in read(unit, settings.text_column):
            if document.problem is not None:
                if settings.bad == "stop":
                    raise DamagedError(
                        f"{document.where}: {document.problem}; --bad skip leaves such documents out, and counts them"
                    )
                left_out["bad"] += 1
                if len(shown) < _SHOWN:
                    shown.append(f"{document.where}: {document.problem}")
                continue
            content = document.text.encode("utf-8")
            if not content:
                left_out["empty"] += 1
                continue
            digest = hashlib.blake2b(content, digest_size=16, key=key).digest()
            place, draw = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
            if place >= limit:
                left_out["beyond the fraction"] += 1
                continue
            yield document, content, place, draw

    for batch in _batches(wanted()):
        for tokens, (_, content, place, draw) in zip(
            tokenizer.encode([item[0].text for item in batch]), batch, strict=True
        ):
            documents.append(as_document(tokens, settings.tokenizer))
            rows.append((place, draw, len(documents[-1]), len(content)))
    index = np.array(rows, dtype=INDEX)
    order = np.argsort(index, order=("place", "draw"), kind="stable")
    return _write(directory, part_key(unit, settings), index[order], [documents[at] for at in order], left_out, shown)


def _write(
    directory: Path,
    key: str,
    index: NDArray[Any],
    documents: list[NDArray[Any]],
    left_out: Counter[str],
    shown: list[str],
) -> Part:
    make_dir(directory)
    paths = part_paths(directory, key)
    with replacing(paths[0]) as file:
        for document in documents:
            file.write(document.data)
    with replacing(paths[1]) as file:
        np.save(file, index)
    part = Part(
        key=key,
        documents=len(index),
        tokens=int(index["tokens"].sum()),
        text_bytes=int(index["text_bytes"].sum()),
        left_out=dict(left_out),
        shown=tuple(shown),
        sizes=(paths[0].stat().st_size, paths[1].stat().st_size),
    )
    with replacing(directory / f"{key}.json", durable=False) as file:
        file.write(json.dumps(asdict(part)).encode())
    return part


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Any]:
    """A file that appears under its name whole, or not at all; if `durable`, after a loss of power too."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_dir(path.parent)


def _batches(
    documents: Iterable[tuple[Document, bytes, int, int]],
) -> Iterator[list[tuple[Document, bytes, int, int]]]:
    batch: list[tuple[Document, bytes, int, int]] = []
    size = 0
    for item in documents:
        batch.append(item)
        size += len(item[1])
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def open_index(directory: Path, key: str) -> NDArray[Any]:
    index: NDArray[Any] = np.load(part_paths(directory, key)[1])
    return index


def open_tokens(directory: Path, key: str, spec: TokenizerSpec) -> Tokens:
    path = part_paths(directory, key)[0]
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, dtype=spec.dtype)
    tokens: Tokens = np.memmap(path, dtype=spec.dtype, mode="r")
    return tokens
