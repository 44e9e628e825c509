"""Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927, section 3 and appendix).

    input   k1 v1 k2 v2  .  . k2  .  .  . k1  .          4 pairs of positions for pairs, then slots of two
    target   -  -  -  -  -  - v2  -  -  - v1  -

Distinct keys with distinct values come first; then each key is asked for again once, and its value is to be predicted
right there. Query slots start at even distances from the pairs; they are drawn without replacement with probability
proportional to gap ** (power - 1), gap = 1, 2, ... in slots, key 1 drawing first. This is the authors' `power_a`: small
values ask soon after the pairs, 1 anywhere. All other positions hold symbol 0, the filler, which is never a key: so in
the published experiments (`random_non_queries: False` in the configurations of the paper's figure 2, although their
generator's default is random symbols), and it keeps the task answerable: a random filler could bind a key anew.

Symbols: 0 filler; 1 to n_symbols // 2 - 1 keys; n_symbols // 2 to n_symbols - 1 values.

Shapes: B sequences, L positions, N pairs, K keys, V values, S query slots, W uniform numbers a sequence, C candidates.
"""

from collections.abc import Iterator
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.corpus import check_recall
from hybrid.data.base import NOT_SCORED, Batch, DataSource
from hybrid.spec import RecallSpec

FILLER: Final = 0

# Halves of Philox keys: streams of different purpose cannot meet, whatever the data seed.
_TRAINING: Final = 1
_VALIDATION: Final = 2
_NUMBERS_PER_COUNT: Final = 4  # Philox makes four 64-bit numbers at each value of its counter


@final
class RecallData(DataSource):
    """Endless sequences; the i-th of a stream is made from the i-th stretch of that stream's random numbers."""

    def __init__(self, spec: RecallSpec, seq_len: int) -> None:
        """Raises ConfigError if the pairs and their queries do not fit."""
        check_recall(spec, seq_len)
        self._n_pairs = spec.n_pairs
        self._seq_len = seq_len
        self._first_value = spec.n_symbols // 2
        self._n_keys = self._first_value - 1
        self._n_values = spec.n_symbols - self._first_value
        n_slots = (seq_len - 2 * spec.n_pairs) // 2
        self._inverse_weight_S = np.arange(1, n_slots + 1, dtype=np.float64) ** (1.0 - spec.power)
        numbers = self._n_keys + self._n_values + n_slots
        self._counts = -(-numbers // _NUMBERS_PER_COUNT)

    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        return self._examples((data_seed, _TRAINING), step * batch_size, batch_size)

    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        for first in range(0, max_examples, batch_size):
            yield self._examples((0, _VALIDATION), first, min(batch_size, max_examples - first))

    def _examples(self, stream: tuple[int, int], first: int, count: int) -> Batch:
        n, k, v = self._n_pairs, self._n_keys, self._n_values
        philox = np.random.Philox(key=np.array(stream, dtype=np.uint64), counter=first * self._counts)
        u_BW = np.random.Generator(philox).random((count, self._counts * _NUMBERS_PER_COUNT))
        u_BS = u_BW[:, k + v : k + v + len(self._inverse_weight_S)]

        keys_BN = 1 + _smallest(u_BW[:, :k], n)
        values_BN = self._first_value + _smallest(u_BW[:, k : k + v], n)
        # Weighted draws without replacement, in order, are the first arrivals of exponential clocks with those rates.
        slots_BN = _smallest(-np.log1p(-u_BS) * self._inverse_weight_S, n)

        inputs_BL = np.full((count, self._seq_len), FILLER, dtype=np.int64)
        targets_BL = np.full((count, self._seq_len), NOT_SCORED, dtype=np.int64)
        inputs_BL[:, 0 : 2 * n : 2] = keys_BN
        inputs_BL[:, 1 : 2 * n : 2] = values_BN
        positions_BN = 2 * n + 2 * slots_BN
        np.put_along_axis(inputs_BL, positions_BN, keys_BN, axis=1)
        np.put_along_axis(targets_BL, positions_BN, values_BN, axis=1)
        return Batch(inputs_BL=inputs_BL, targets_BL=targets_BL)


def _smallest(x_BC: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The indices of the `n` smallest of each row, in ascending order of the values."""
    candidates_BN = np.argpartition(x_BC, n - 1, axis=1)[:, :n]
    order_BN = np.argsort(np.take_along_axis(x_BC, candidates_BN, axis=1), axis=1)
    return np.take_along_axis(candidates_BN, order_BN, axis=1)
