"""Near-duplicates between validation and training, exactly: by n-grams of tokens.

A validation document is a near-duplicate of a training document if the latter contains at least `max_overlap` of its
distinct n-grams: the containment of Broder (1997, "On the resemblance and containment of documents") over the 13-grams
with which Brown et al. (2020, "Language Models are Few-Shot Learners", App. C) looked for contamination. Against one
training document at a time: what is common in the corpus at large, such as a licence, counts only as far as one
document has it. A document shorter than n tokens is one n-gram of its own. N-grams are compared by 64-bit hashes.

Shapes: N tokens, G n-grams.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.packed import Tokens

Hashes = NDArray[np.uint64]

_BASE: Final = 0x9E3779B97F4A7C15
_PADDING: Final = np.uint64(0)
_BITS_A_GRAM: Final = 16
_FEWEST_BITS: Final = 16
_MOST_BITS: Final = 31
_BLOCK_TOKENS: Final = 1 << 16
"""So many are hashed at once: their arrays stay in a core's cache."""


@lru_cache(maxsize=1)
def _mixed_tokens(bits: int) -> Hashes:
    """A number without a pattern for each token of so many bits, by splitmix64's finaliser; none is the padding's 0."""
    mixed = (np.arange(1 << bits, dtype=np.uint64) + np.uint64(1)) * np.uint64(_BASE)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def gram_hashes(tokens_N: Tokens, n: int) -> Hashes:
    """A hash of the n tokens that begin at each position, (N - n + 1); of fewer than n, those with padding behind."""
    largest = int(tokens_N.max()) if len(tokens_N) else 0
    mixed = _mixed_tokens(max(16, largest.bit_length()))[tokens_N]
    if len(mixed) < n:
        mixed = np.concatenate([mixed, np.full(n - len(mixed), _PADDING)])
    # sum of mixed[i + j] * BASE ** (n - 1 - j), by doubling: a window of a + b is one of a, shifted, and one of b.
    power, power_length = mixed, 1
    found, found_length = None, 0
    rest = n
    while True:
        if rest & 1:
            found = power if found is None else _joined(found, found_length, power, power_length)
            found_length += power_length
        rest >>= 1
        if not rest:
            break
        power = _joined(power, power_length, power, power_length)
        power_length *= 2
    assert found is not None
    return found[: len(mixed) - n + 1]


def _joined(first: Hashes, first_length: int, second: Hashes, second_length: int) -> Hashes:
    length = min(len(first) - second_length, len(second) - first_length)
    joined = first[:length] * np.uint64(pow(_BASE, second_length, 1 << 64))
    joined += second[first_length : first_length + length]
    return joined


@final
class GramIndex:
    """The distinct n-grams of the validation documents, and which of these have each."""

    def __init__(self, grams: Hashes, starts: NDArray[np.int64], holders: NDArray[np.int64], n: int) -> None:
        self._grams = grams
        self._starts = starts
        self._holders = holders
        self._n = n
        bits = min(_MOST_BITS, max(_FEWEST_BITS, (len(grams) * _BITS_A_GRAM).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._seen = np.zeros(1 << bits, dtype=np.bool_)
        self._seen[grams >> self._shift] = True

    @classmethod
    def of(cls, documents: Iterator[Tokens], n: int) -> "tuple[GramIndex, NDArray[np.int64]]":
        """The index, and the number of distinct n-grams of each document (without bos and eos)."""
        per_document = [np.unique(gram_hashes(tokens, n)) for tokens in documents]
        counts = np.array([len(grams) for grams in per_document], dtype=np.int64)
        joined = np.concatenate(per_document) if per_document else np.empty(0, dtype=np.uint64)
        owners = np.repeat(np.arange(len(counts)), counts)
        order = np.argsort(joined, kind="stable")
        grams, starts = np.unique(joined[order], return_index=True)
        return cls(grams, np.append(starts, len(joined)), owners[order], n), counts

    @classmethod
    def load(cls, path: Path) -> "GramIndex":
        with np.load(path) as data:
            return cls(data["grams"], data["starts"], data["holders"], int(data["n"]))

    def save(self, file: Any) -> None:
        np.savez(file, grams=self._grams, starts=self._starts, holders=self._holders, n=np.array(self._n))

    def shared(
        self, tokens: Tokens, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """Of training documents in `tokens`: their numbers, validation documents, distinct n-grams that both have."""
        for first, last in _blocks(lengths):
            begin, end = int(starts[first]), int(starts[last - 1] + lengths[last - 1])
            hashes = gram_hashes(tokens[begin:end], self._n)
            at = np.flatnonzero(self._seen[hashes >> self._shift])
            place, hit = self._places(hashes[at])
            at, place = at[hit] + begin, place[hit]
            document = np.searchsorted(starts[first:last], at, side="right") - 1 + first
            inside = at + self._n <= starts[document] + lengths[document]
            document, place = document[inside], place[inside]
            # Those shorter than an n-gram, whose padding is not in `tokens`.
            short = np.flatnonzero(lengths[first:last] < self._n) + first
            if len(short):
                own = [gram_hashes(tokens[starts[i] : starts[i] + lengths[i]], self._n) for i in short]
                short_place, hit = self._places(np.concatenate(own))
                document, place = np.append(document, short[hit]), np.append(place, short_place[hit])
            if len(document):
                yield self._counted(document, place)

    def _places(self, hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each is among the n-grams, and whether it is one of them."""
        place = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
        return place, self._grams[place] == hashes

    def _counted(
        self, document: NDArray[np.int64], place: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        pairs = np.unique(document * len(self._grams) + place)
        document, place = np.divmod(pairs, len(self._grams))
        held = self._starts[place + 1] - self._starts[place]
        ends = np.cumsum(held)
        holders = self._holders[np.repeat(self._starts[place] - (ends - held), held) + np.arange(ends[-1])]
        n_holders = int(self._holders.max()) + 1
        both, shared = np.unique(np.repeat(document, held) * n_holders + holders, return_counts=True)
        return both // n_holders, both % n_holders, shared


def _blocks(lengths: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of whole documents."""
    first, size = 0, 0
    for at, length in enumerate(lengths):
        size += int(length)
        if size >= _BLOCK_TOKENS:
            yield first, at + 1
            first, size = at + 1, 0
    if first < len(lengths):
        yield first, len(lengths)
