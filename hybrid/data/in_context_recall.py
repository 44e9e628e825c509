"""In-context recall, plain and noisy (MAD: Poli et al. 2024, arXiv 2403.17844, and its code, athms/mad-lab).

    input   k3 v8 k1 v9 n4 n2 k3 v8 k1 v9             n: noise, in the noisy variant
    target   -  -  -  -  -  - v8  - v9  -

Pairs of a key and a value, drawn evenly and with replacement; in one sequence a key has one value, and different keys
may have the same. A pair is replaced by two symbols of noise with a probability. The last pair asks for a key that
was there, drawn evenly from those. Predicted is the value of every key that was there before.

As published (`multi_query`), but for this: the published training predicts every token of 12,800 sequences again and
again, where ours are endless and scored as `train_on` says; the last value is an input too, at which nothing is
predicted, so that a sequence is `seq_len` long and not one less; the one pair that is never noise is never the last,
which is none anyway.

Shapes: B sequences, L positions, P pairs, K keys, W uniform numbers a sequence.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.base import NOT_SCORED, Batch
from hybrid.data.synthetic import SyntheticData, chosen, parts_of, whole
from hybrid.probes import check_in_context_recall
from hybrid.spec import InContextRecallSpec


@final
class InContextRecallData(SyntheticData):
    """The sequences of an `InContextRecallSpec`."""

    def __init__(self, spec: InContextRecallSpec, seq_len: int) -> None:
        """Raises ConfigError if there are too few symbols or positions."""
        check_in_context_recall(spec, seq_len)
        self._spec, self._n_pairs = spec, seq_len // 2
        self._n_words = spec.n_symbols - spec.n_noise_symbols
        self._n_keys = self._n_words // 2
        drawn = self._n_pairs - 1
        self._parts = (drawn, self._n_keys, drawn, 2 * drawn, 1, 1)
        super().__init__(sum(self._parts))

    def _made(self, u_BW: NDArray[np.float64], *, held_out: bool) -> Batch:
        key_u, value_u, is_noise_u, noise_u, kept_u, asked_u = parts_of(u_BW, self._parts)
        count, drawn = len(u_BW), self._n_pairs - 1
        key_BP = whole(key_u, self._n_keys)
        is_noise_BP = is_noise_u < self._spec.noise_fraction
        np.put_along_axis(is_noise_BP, whole(kept_u, drawn), False, axis=1)

        is_there_BK = np.zeros((count, self._n_keys), dtype=bool)
        rows_B1 = np.arange(count)[:, None]
        there = ~is_noise_BP
        is_there_BK[np.broadcast_to(rows_B1, key_BP.shape)[there], key_BP[there]] = True
        key_BP = np.concatenate([key_BP, chosen(asked_u[:, 0], is_there_BK)[:, None]], axis=1)
        is_noise_BP = np.concatenate([is_noise_BP, np.zeros((count, 1), dtype=bool)], axis=1)
        value_of_BK = self._n_keys + whole(value_u, self._n_words - self._n_keys)
        value_BP = np.take_along_axis(value_of_BK, key_BP, axis=1)
        before_BP = _last_before(key_BP, is_noise_BP)

        inputs_BL = np.stack([key_BP, value_BP], axis=2).reshape(count, -1)
        noise_BL = self._n_words + whole(noise_u, self._spec.n_noise_symbols)
        at_noise_BL = np.repeat(is_noise_BP[:, :-1], 2, axis=1)
        inputs_BL[:, :-2][at_noise_BL] = noise_BL[at_noise_BL]
        targets_BL = np.full_like(inputs_BL, NOT_SCORED)
        if self._spec.train_on == "all" and not held_out:
            targets_BL[:, :-1] = inputs_BL[:, 1:]
        else:
            targets_BL[:, ::2] = np.where(before_BP >= 0, value_BP, NOT_SCORED)
        source_BL = np.full_like(inputs_BL, NOT_SCORED)
        source_BL[:, ::2] = np.where(before_BP >= 0, 2 * before_BP + 1, NOT_SCORED)
        return Batch(inputs_BL=inputs_BL, targets_BL=targets_BL, source_BL=source_BL)


def _last_before(key_BP: NDArray[np.int64], is_noise_BP: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The pair that had a pair's key the last time before; -1 where none had, and of noise."""
    numbers_P = np.arange(key_BP.shape[1])
    same_BPP = (key_BP[:, :, None] == key_BP[:, None, :]) & ~is_noise_BP[:, :, None] & ~is_noise_BP[:, None, :]
    earlier_PP = numbers_P[:, None] > numbers_P[None, :]
    return np.asarray(np.where(same_BPP & earlier_PP, numbers_P, -1).max(axis=2))
