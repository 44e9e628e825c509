"""Fuzzy in-context recall (MAD: Poli et al. 2024, arXiv 2403.17844, and its code, athms/mad-lab).

    input    .  .  . a3 a1 b7 a2 b5 b6 a3 a1 b7 b4 ...  a2 b5
    target   -  -  -  -  -  -  -  -  -  - b7  -  - ...  b5 b6

In-context recall with keys (a) and values (b) of several symbols: their sizes are drawn evenly from one to the largest,
then their symbols, all different, evenly. In one sequence a key has one value. The last pair asks for a key that was
there, drawn evenly from those. Predicted are all symbols of the value of every key that was there before. Held-out keys
are of the largest size. What is too short is padded at its beginning.

As published (`multi_query`), but for this: the published training predicts every token of 12,800 sequences again and
again, where ours are endless and scored as `train_on` says; the published code draws the last pair first and puts it
somewhere into the sequence; ours leaves the last pair the room of the longest that there can be.

Shapes: B sequences, L positions, T = L + 1, P pairs and a last one, M symbols of the longest, W uniform numbers.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.base import NOT_SCORED, Batch
from hybrid.data.synthetic import SyntheticData, chosen, parts_of, smallest, whole
from hybrid.probes import check_fuzzy_recall
from hybrid.spec import FuzzyRecallSpec


@final
class FuzzyRecallData(SyntheticData):
    """The sequences of a `FuzzyRecallSpec`."""

    def __init__(self, spec: FuzzyRecallSpec, seq_len: int) -> None:
        """Raises ConfigError if there are too few symbols or positions."""
        check_fuzzy_recall(spec, seq_len)
        self._spec, self._seq_len = spec, seq_len
        self._padding = spec.n_symbols - 1
        self._n_keys = self._padding // 2
        self._n_values = self._padding - self._n_keys
        self._longest = spec.key_size + spec.value_size
        self._n_pairs = (seq_len - self._longest) // 2
        self._parts = (
            *(self._n_pairs, self._n_pairs * self._n_keys),
            *(self._n_pairs, self._n_pairs * self._n_values),
            1,
        )
        super().__init__(sum(self._parts))

    def _made(self, u_BW: NDArray[np.float64], *, held_out: bool) -> Batch:
        key_size_u, key_u, value_size_u, value_u, asked_u = parts_of(u_BW, self._parts)
        spec, pairs = self._spec, self._n_pairs
        key_size_BP = np.full_like(key_size_u, spec.key_size, dtype=np.int64)
        if not held_out:
            key_size_BP = 1 + whole(key_size_u, spec.key_size)
        key_BPM = _motifs(key_u.reshape(-1, pairs, self._n_keys), key_size_BP, spec.key_size, 0)
        value_BPM = _motifs(
            value_u.reshape(-1, pairs, self._n_values),
            1 + whole(value_size_u, spec.value_size),
            spec.value_size,
            self._n_keys,
        )
        # A key's value is that of its first pair; how long pairs are, and so which there are, follows from it.
        same_BPP = (key_BPM[:, :, None] == key_BPM[:, None, :]).all(-1)
        first_BP = same_BPP.argmax(2)
        value_BPM = np.take_along_axis(value_BPM, first_BP[:, :, None], axis=1)
        pair_BPM = np.concatenate([key_BPM, value_BPM], axis=2)
        length_BP = (pair_BPM >= 0).sum(2)
        begins_BP = np.cumsum(length_BP, axis=1) - length_BP
        is_there_BP = begins_BP + self._longest <= self._seq_len - self._longest
        asked_B = chosen(asked_u[:, 0], is_there_BP & (first_BP == np.arange(pairs)))
        return self._laid_out(pair_BPM, is_there_BP, same_BPP, asked_B, held_out=held_out)

    def _laid_out(
        self,
        pair_BPM: NDArray[np.int64],
        is_there_BP: NDArray[np.bool_],
        same_BPP: NDArray[np.bool_],
        asked_B: NDArray[np.int64],
        *,
        held_out: bool,
    ) -> Batch:
        """The pairs that are there, then the one that is asked for, at the end of a padded sequence."""
        count, pairs = is_there_BP.shape
        rows_B, numbers_P = np.arange(count), np.arange(pairs)
        earlier_BPP = same_BPP & is_there_BP[:, None, :]
        before_BP = np.where(earlier_BPP & (numbers_P[:, None] > numbers_P), numbers_P, -1).max(2)
        last_B = np.where(earlier_BPP[rows_B, asked_B], numbers_P, -1).max(1)
        before_BP = np.concatenate([before_BP, last_B[:, None]], axis=1)
        pair_BPM = np.concatenate([pair_BPM, pair_BPM[rows_B, asked_B][:, None]], axis=1)
        is_there_BP = np.concatenate([is_there_BP, np.ones((count, 1), dtype=bool)], axis=1)

        used_BPM = (pair_BPM >= 0) & is_there_BP[:, :, None]
        used_BN = used_BPM.reshape(count, -1)
        n_BN = np.cumsum(used_BN, axis=1)
        place_BPM = (self._seq_len + n_BN - n_BN[:, -1:]).reshape(used_BPM.shape)
        is_value_M = np.arange(pair_BPM.shape[2]) >= self._spec.key_size
        answer_BPM = used_BPM & is_value_M & (before_BP >= 0)[:, :, None]
        source_BPM = np.take_along_axis(place_BPM, np.maximum(before_BP, 0)[:, :, None], axis=1)

        rows_BPM = np.broadcast_to(rows_B[:, None, None], used_BPM.shape)
        tokens_BT = np.full((count, self._seq_len + 1), self._padding, dtype=np.int64)
        tokens_BT[rows_BPM[used_BPM], place_BPM[used_BPM]] = pair_BPM[used_BPM]
        asks = rows_BPM[answer_BPM], place_BPM[answer_BPM] - 1
        targets_BL = np.full((count, self._seq_len), NOT_SCORED, dtype=np.int64)
        if self._spec.train_on == "all" and not held_out:
            targets_BL[:] = np.where(tokens_BT[:, 1:] == self._padding, NOT_SCORED, tokens_BT[:, 1:])
        else:
            targets_BL[asks] = pair_BPM[answer_BPM]
        source_BL = np.full((count, self._seq_len), NOT_SCORED, dtype=np.int64)
        source_BL[asks] = source_BPM[answer_BPM]
        return Batch(inputs_BL=tokens_BT[:, :-1], targets_BL=targets_BL, source_BL=source_BL)


def _motifs(
    u_BPC: NDArray[np.float64], size_BP: NDArray[np.int64], largest: int, first_symbol: int
) -> NDArray[np.int64]:
    """Different symbols, so many of each pair, in an order of their own; -1 in place of those that it does not have."""
    symbol_BPM = first_symbol + smallest(u_BPC, largest)
    return np.where(np.arange(largest) < size_BP[:, :, None], symbol_BPM, -1)
