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

Shapes: B sequences, L positions, N pairs, K keys, V values, S query slots, W uniform numbers a sequence.
"""

from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.corpus import check_recall
from hybrid.data.base import NOT_SCORED, Batch
from hybrid.data.synthetic import SyntheticData, smallest
from hybrid.spec import RecallSpec

FILLER: Final = 0


@final
class RecallData(SyntheticData):
    """The sequences of a `RecallSpec`."""

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
        super().__init__(self._n_keys + self._n_values + n_slots)

    def _made(self, u_BW: NDArray[np.float64], *, held_out: bool) -> Batch:
        n, k, v, count = self._n_pairs, self._n_keys, self._n_values, len(u_BW)
        u_BS = u_BW[:, k + v : k + v + len(self._inverse_weight_S)]

        keys_BN = 1 + smallest(u_BW[:, :k], n)
        values_BN = self._first_value + smallest(u_BW[:, k : k + v], n)
        # Weighted draws without replacement, in order, are the first arrivals of exponential clocks with those rates.
        slots_BN = smallest(-np.log1p(-u_BS) * self._inverse_weight_S, n)

        inputs_BL = np.full((count, self._seq_len), FILLER, dtype=np.int64)
        targets_BL = np.full((count, self._seq_len), NOT_SCORED, dtype=np.int64)
        inputs_BL[:, 0 : 2 * n : 2] = keys_BN
        inputs_BL[:, 1 : 2 * n : 2] = values_BN
        positions_BN = 2 * n + 2 * slots_BN
        np.put_along_axis(inputs_BL, positions_BN, keys_BN, axis=1)
        np.put_along_axis(targets_BL, positions_BN, values_BN, axis=1)
        source_BL = np.full((count, self._seq_len), NOT_SCORED, dtype=np.int64)
        np.put_along_axis(source_BL, positions_BN, np.arange(1, 2 * n, 2)[None], axis=1)
        return Batch(inputs_BL=inputs_BL, targets_BL=targets_BL, source_BL=source_BL)
