"""Which documents are held out: whole clusters of near-duplicates, so that nothing held out was all but trained on.

Two documents are near-duplicates if their sets of runs of SHINGLE_WORDS words have a Jaccard similarity of
MIN_SIMILARITY or more; clusters are what such pairs connect. A tenth is low, so that a validation loss errs towards the
pessimistic; in CPython 3.11 it joins the code pages of `encodings` (70 of 729 files, in two clusters) and siblings such
as ntpath and posixpath, and licence headers do not chain: no other cluster has more than 24 files or 1 % of the bytes.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hybrid.corpus import Document
from hybrid.spec import ConfigError

SHINGLE_WORDS: Final = 5
MIN_SIMILARITY: Final = 0.1

_WORD = re.compile(rb"\w+")


def near_duplicate_clusters(contents: Sequence[bytes]) -> list[list[int]]:
    """All indices of `contents`, in clusters: each sorted, ordered by their first members. Exact, not sampled."""
    shingles = _shingles(contents)
    counts = np.array([len(ids) for ids in shingles])
    document_of = np.repeat(np.arange(len(contents)), counts)
    ids = np.concatenate(shingles) if shingles else np.empty(0, dtype=np.int64)

    # Inverted index: the documents that hold shingle s are holders[start[s] : start[s] + frequency[s]].
    holders = document_of[np.argsort(ids, kind="stable")]
    frequency = np.bincount(ids)
    start = np.cumsum(frequency) - frequency

    parent = list(range(len(contents)))
    for a, own in enumerate(shingles):
        shared = own[frequency[own] > 1]
        if not len(shared):
            continue
        lengths = frequency[shared]
        offsets = np.repeat(start[shared] - (np.cumsum(lengths) - lengths), lengths)
        common = np.bincount(holders[offsets + np.arange(lengths.sum())], minlength=len(contents))
        similar = common >= MIN_SIMILARITY * (counts + counts[a] - common)
        for b in np.flatnonzero(similar):
            low, high = sorted((_top(parent, a), _top(parent, int(b))))
            parent[high] = low

    members = defaultdict(list)
    for index in range(len(contents)):
        members[_top(parent, index)].append(index)
    return list(members.values())


def split(
    documents: Sequence[Document], clusters: Sequence[Sequence[int]], val_percent: float
) -> tuple[list[int], list[int]]:
    """Indices of the documents for training and for validation, each in a fixed shuffled order.

    Clusters are held out in an order of hashes of their first paths, which no seed changes, each that still fits into
    `val_percent` of the bytes: a cluster larger than that is always trained on. Raises ConfigError if none fits.
    """
    sizes = [sum(len(documents[index].content) for index in cluster) for cluster in clusters]
    total = sum(sizes)
    room = total * val_percent / 100
    held_out: set[int] = set()
    for at in sorted(range(len(clusters)), key=lambda at: _hash(b"split", documents[clusters[at][0]].path)):
        if sizes[at] <= room:
            held_out.update(clusters[at])
            room -= sizes[at]
    order = sorted(range(len(documents)), key=lambda index: _hash(b"order", documents[index].path))
    training = [index for index in order if index not in held_out]
    validation = [index for index in order if index in held_out]
    if not any(documents[index].content for index in validation):
        smallest = min((size for size in sizes if size), default=0)
        raise ConfigError(
            f"data.val_percent = {val_percent:g}: expected enough for a whole cluster of near-duplicates; "
            f"the smallest of the {len(clusters)} has {smallest} of the {total} bytes"
        )
    return training, validation


def _shingles(contents: Sequence[bytes]) -> list[NDArray[np.int64]]:
    """The distinct shingles of each document, numbered from 0 over all of them."""
    word_ids: dict[bytes, int] = {}
    hashed = []
    for content in contents:
        words = [word_ids.setdefault(word, len(word_ids) + 1) for word in _WORD.findall(content)]
        padded = np.array(words + [0] * (SHINGLE_WORDS - len(words)), dtype=np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(padded, SHINGLE_WORDS)
        value = np.zeros(len(windows), dtype=np.uint64)
        for column in windows.T:
            # Mixes 64 bits (the constants of splitmix64); words are numbered, so this is the same everywhere.
            value = (value ^ column) * np.uint64(0x9E3779B97F4A7C15)
            value ^= value >> np.uint64(31)
            value *= np.uint64(0xBF58476D1CE4E5B9)
            value ^= value >> np.uint64(29)
        hashed.append(np.unique(value))
    if not hashed:
        return []
    _, numbers = np.unique(np.concatenate(hashed), return_inverse=True)
    return np.split(numbers, np.cumsum([len(values) for values in hashed])[:-1])


def _top(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _hash(purpose: bytes, path: str) -> bytes:
    return hashlib.sha256(purpose + b"\0" + os.fsencode(path)).digest()
