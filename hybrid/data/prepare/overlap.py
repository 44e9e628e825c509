"""Near-duplicates between validation and training, exactly: by n-grams of tokens.

A validation document is a near-duplicate of a training document if the latter contains at least `max_overlap` of its
distinct n-grams: the containment of Broder (1997, "On the resemblance and containment of documents") over the 13-grams
with which Brown et al. (2020, "Language Models are Few-Shot Learners", App. C) looked for contamination. Against one
training document at a time: what is common in the corpus at large, such as a licence, counts only as far as one
document has it. A document shorter than n tokens is one n-gram of its own. N-grams are compared by 64-bit hashes.

Shapes: N tokens, G n-grams.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.packed import Tokens

Hashes = NDArray[np.uint64]

_BASE: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1
_PADDING: Final = np.uint64(0)
_BITS_A_GRAM: Final = 16
_FEWEST_BITS: Final = 16
_MOST_BITS: Final = 31
_BLOCK_TOKENS: Final = 1 << 20


def gram_hashes(tokens_N: Tokens, n: int) -> Hashes:
    """A hash of the n tokens that begin at each position, (N - n + 1); of fewer than n, those with padding behind."""
    # 0 is the padding; splitmix64's finaliser, so that the polynomial is over numbers without a pattern.
    mixed = tokens_N.astype(np.uint64) + np.uint64(1)
    mixed *= np.uint64(_BASE)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
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
    joined = first[:length] * np.uint64(pow(_BASE, second_length, 1 << 64) & _MASK)
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
    ) -> Iterator[tuple[int, Any, Any]]:
        """Of training documents in `tokens`: (its number, validation documents, distinct n-grams shared with each)."""
        for first, last in _blocks(lengths):
            begin, end = int(starts[first]), int(starts[last - 1] + lengths[last - 1])
            hashes = gram_hashes(tokens[begin:end], self._n)
            at = np.flatnonzero(self._seen[hashes >> self._shift])
            place = np.searchsorted(self._grams, hashes[at])
            place[place == len(self._grams)] = 0
            hit = self._grams[place] == hashes[at] if len(self._grams) else np.zeros(len(at), dtype=np.bool_)
            at, place = at[hit], place[hit]
            document = np.searchsorted(starts[first:last], at + begin, side="right") - 1 + first
            inside = at + begin + self._n <= starts[document] + lengths[document]
            document, place = document[inside], place[inside]
            short = np.flatnonzero(lengths[first:last] < self._n) + first
            for number in short:
                found = int(
                    np.searchsorted(self._grams, own := self._short(tokens, int(starts[number]), int(lengths[number])))
                )
                if found < len(self._grams) and self._grams[found] == own:
                    document, place = np.append(document, number), np.append(place, found)
            yield from self._counted(document, place)

    def _short(self, tokens: Tokens, start: int, length: int) -> np.uint64:
        own: np.uint64 = gram_hashes(tokens[start : start + length], self._n)[0]
        return own

    def _counted(self, document: NDArray[np.int64], place: NDArray[np.int64]) -> Iterator[tuple[int, Any, Any]]:
        if not len(document):
            return
        pairs = np.unique(np.stack([document, place]), axis=1)
        numbers, first = np.unique(pairs[0], return_index=True)
        for number, begin, end in zip(numbers, first, [*first[1:], pairs.shape[1]], strict=True):
            grams = pairs[1, begin:end]
            holders = np.concatenate([self._holders[self._starts[gram] : self._starts[gram + 1]] for gram in grams])
            validation, shared = np.unique(holders, return_counts=True)
            yield int(number), validation, shared


def _blocks(lengths: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of documents of some million tokens."""
    first, size = 0, 0
    for at, length in enumerate(lengths):
        size += int(length)
        if size >= _BLOCK_TOKENS:
            yield first, at + 1
            first, size = at + 1, 0
    if first < len(lengths):
        yield first, len(lengths)
