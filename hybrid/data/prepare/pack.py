"""The second pass: which documents are kept, and their tokens in the order of their hashes, in shards.

Every part is in that order already, so a shard reads each of them once from front to back.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.packed import Tokens
from hybrid.data.prepare.overlap import GramIndex
from hybrid.data.prepare.parts import INDEX, WHOLE, open_index, open_tokens, replacing
from hybrid.data.prepare.tokenizer import TokenizerSpec
from hybrid.manifest import ShardFile
from hybrid.spec import ConfigError

_BUFFER_BYTES: Final = 8 << 20

CHOSEN: Final = np.dtype(
    [("part", "<u4"), ("begin", "<u8"), ("tokens", "<u8"), ("text_bytes", "<u8"), ("place", "<u8")]
)
"""A chosen document: its part's number, where its tokens begin there and how many they are, and its hash."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The documents of each split, in order; `candidates` are tokens of all that could have been trained on."""

    training: NDArray[Any]
    validation: NDArray[Any]
    candidates: int


def choose(
    directory: Path,
    parts: Sequence[str],
    validation_parts: Sequence[str],
    *,
    tokens: int | None,
    val_tokens: int | None,
    val_percent: float,
) -> Choice:
    """The first documents by their hashes, until each split has its tokens; all of them where that is None.

    With `validation_parts` these are the validation split; else a document is held out if the second half of its hash
    falls into `val_percent`. Raises ConfigError if there are fewer than `tokens`, or a split is empty.
    """
    documents, draw = _documents(directory, parts, 0)
    if validation_parts:
        training, (validation, _) = documents, _documents(directory, validation_parts, len(parts))
    else:
        held_out = draw < np.uint64(min(round(WHOLE * val_percent / 100), WHOLE - 1))
        training, validation = documents[~held_out], documents[held_out]
    candidates = int(training["tokens"].sum())
    if tokens is not None and tokens > candidates:
        raise ConfigError(
            f"--tokens {tokens:,}: expected at most {candidates:,}, all that these sources have for training; leave "
            "--tokens out for all of it, give more sources, or a larger --fraction"
        )
    chosen = Choice(training=_until(training, tokens), validation=_until(validation, val_tokens), candidates=candidates)
    if not len(chosen.training):
        raise ConfigError(f"sources: expected documents to train on; of {len(documents)} documents none is left")
    if not len(chosen.validation):
        raise ConfigError(
            f"validation: expected at least one document; of {len(documents)} documents none is held out: give a "
            f"larger --val-percent than {val_percent:g}, or --validation SOURCE"
        )
    return chosen


def _documents(directory: Path, parts: Sequence[str], first: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """All documents of parts in the order of their hashes, and the second halves of these."""
    chosen, draws = [np.empty(0, dtype=CHOSEN)], [np.empty(0, dtype=INDEX["draw"])]
    for number, key in enumerate(parts, first):
        index = open_index(directory, key)
        rows = np.empty(len(index), dtype=CHOSEN)
        rows["part"], rows["begin"] = number, np.cumsum(index["tokens"]) - index["tokens"]
        for name in ("tokens", "text_bytes", "place"):
            rows[name] = index[name]
        chosen.append(rows)
        draws.append(index["draw"])
    joined, draw = np.concatenate(chosen), np.concatenate(draws)
    order = np.lexsort((draw, joined["place"]))
    return joined[order], draw[order]


def _until(documents: NDArray[Any], tokens: int | None) -> NDArray[Any]:
    if tokens is None:
        return documents
    return documents[: int(np.searchsorted(np.cumsum(documents["tokens"]), tokens)) + 1]


# --- near-duplicates ----------------------------------------------------------------------------


def validation_grams(
    directory: Path, parts: Sequence[str], validation: NDArray[Any], spec: TokenizerSpec, n: int
) -> tuple[GramIndex, NDArray[np.int64]]:
    """The n-grams of the validation documents, and how many distinct ones each has."""
    opened = {int(number): open_tokens(directory, parts[number], spec) for number in np.unique(validation["part"])}
    texts = (_tokens_of(opened[int(row["part"])], row)[1:-1] for row in validation)
    return GramIndex.of(texts, n)


def overlaps(
    grams: GramIndex, counts: NDArray[np.int64], tokens: Tokens, training: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """For each validation document the largest share of its n-grams in one of these training documents of a part, and
    the hash of that one."""
    best, whose = np.zeros(len(counts)), np.zeros(len(counts), dtype=np.uint64)
    # Without bos and eos, which every document has.
    starts = training["begin"].astype(np.int64) + 1
    lengths = training["tokens"].astype(np.int64) - 2
    for document, validation, shared in grams.shared(tokens, starts, lengths):
        share, place = shared / counts[validation], training["place"][document]
        order = np.lexsort((place, -share, validation))
        at, first = np.unique(validation[order], return_index=True)
        share, place = share[order][first], place[order][first]
        better = is_better(share, place, best[at], whose[at])
        best[at[better]], whose[at[better]] = share[better], place[better]
    return best, whose


def is_better(
    share: NDArray[np.float64], place: NDArray[np.uint64], best: NDArray[np.float64], whose: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Of equal shares the lowest hash, whatever the order in which documents are looked at."""
    better: NDArray[np.bool_] = (share > best) | ((share == best) & (share > 0) & (place < whose))
    return better


# --- shards -------------------------------------------------------------------------------------


def cut_into_shards(documents: NDArray[Any], shard_tokens: int) -> list[tuple[int, int]]:
    """Runs of whole documents of about `shard_tokens`."""
    if not len(documents):
        return []
    before = np.cumsum(documents["tokens"]) - documents["tokens"]
    firsts = np.unique(before // np.uint64(shard_tokens), return_index=True)[1]
    return [(int(a), int(b)) for a, b in zip(firsts, [*firsts[1:], len(documents)], strict=True)]


def write_shard(
    path: Path, receipt: Path, directory: Path, parts: Sequence[str], documents: NDArray[Any], spec: TokenizerSpec
) -> ShardFile:
    """Write the documents to `path`, then what became of it to `receipt`; a finished one is kept as it is."""
    contents = hashlib.sha256(documents.tobytes() + json.dumps(list(parts)).encode()).hexdigest()
    finished = _finished(path, receipt, contents)
    if finished is not None:
        return finished
    opened = {int(number): open_tokens(directory, parts[number], spec) for number in np.unique(documents["part"])}
    sha256, size = hashlib.sha256(), 0
    with replacing(path) as file:
        held: list[Tokens] = []
        held_bytes = 0
        for row in documents:
            held.append(_tokens_of(opened[int(row["part"])], row))
            held_bytes += held[-1].nbytes
            if held_bytes >= _BUFFER_BYTES:
                size += _flush(held, file, sha256)
                held, held_bytes = [], 0
        if held:
            size += _flush(held, file, sha256)
    shard = ShardFile(
        name=path.name,
        documents=len(documents),
        tokens=size // spec.token_bytes,
        size_bytes=size,
        sha256=sha256.hexdigest(),
    )
    with replacing(receipt) as file:
        file.write(json.dumps(asdict(shard) | {"contents": contents}).encode())
    return shard


def _finished(path: Path, receipt: Path, contents: str) -> ShardFile | None:
    try:
        data = json.loads(receipt.read_bytes())
        whole = data.pop("contents") == contents and path.stat().st_size == data["size_bytes"]
        return ShardFile(**data) if whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _flush(held: list[Tokens], file: Any, sha256: Any) -> int:
    block = np.concatenate(held).data
    sha256.update(block)
    file.write(block)
    return int(block.nbytes)


def _tokens_of(tokens: Tokens, row: Any) -> Tokens:
    begin = int(row["begin"])
    return tokens[begin : begin + int(row["tokens"])]
