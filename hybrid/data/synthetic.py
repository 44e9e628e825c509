"""Sequences that are made, not read: endless, each from random numbers of its own.

Shapes: B sequences, W uniform numbers a sequence, C candidates, N of them.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.base import Batch, DataSource

# Halves of Philox keys: streams of different purpose cannot meet, whatever the data seed.
_TRAINING: Final = 1
_VALIDATION: Final = 2
FIXED: Final = 3
"""The half of what all sequences have in common."""

_NUMBERS_PER_COUNT: Final = 4  # Philox makes four 64-bit numbers at each value of its counter


class SyntheticData(DataSource):
    """Endless sequences; the i-th of a stream is made from the i-th stretch of that stream's random numbers."""

    def __init__(self, numbers: int) -> None:
        """`numbers` is how many a sequence is made from, at most."""
        self._counts = -(-numbers // _NUMBERS_PER_COUNT)

    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        return self._made(self._drawn((data_seed, _TRAINING), step * batch_size, batch_size), held_out=False)

    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        for first in range(0, max_examples, batch_size):
            yield self.held_out(first, min(batch_size, max_examples - first))

    def held_out(self, first: int, count: int) -> Batch:
        """So many held-out sequences from the first of them on, counted from 0: those of `validation_batches`."""
        return self._made(self._drawn((0, _VALIDATION), first, count), held_out=True)

    @abstractmethod
    def _made(self, u_BW: NDArray[np.float64], *, held_out: bool) -> Batch:
        """The sequences that these numbers from 0 to below 1 stand for, each a function of its own row alone."""

    def _drawn(self, stream: tuple[int, int], first: int, count: int) -> NDArray[np.float64]:
        philox = np.random.Philox(key=np.array(stream, dtype=np.uint64), counter=first * self._counts)
        return np.random.Generator(philox).random((count, self._counts * _NUMBERS_PER_COUNT))


def parts_of(u_BW: NDArray[np.float64], sizes: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """The numbers of each row, so many for each purpose; what is left over is left out."""
    return np.split(u_BW, np.cumsum(sizes), axis=1)[: len(sizes)]


def whole(u: NDArray[np.float64], below: int) -> NDArray[np.int64]:
    """Whole numbers from 0 to below `below`, evenly."""
    return (u * below).astype(np.int64)


def smallest(x_BC: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The indices of the `n` smallest of each row, in ascending order of the values."""
    candidates_BN = np.argpartition(x_BC, n - 1, axis=-1)[..., :n]
    order_BN = np.argsort(np.take_along_axis(x_BC, candidates_BN, axis=-1), axis=-1)
    return np.take_along_axis(candidates_BN, order_BN, axis=-1)


def chosen(u_B: NDArray[np.float64], among_BC: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The index of one of the candidates of each row that are true, evenly; each row has some."""
    wanted_B = (u_B * among_BC.sum(1)).astype(np.int64)
    return np.asarray(np.argmax(np.cumsum(among_BC, axis=1) > wanted_B[:, None], axis=1))
