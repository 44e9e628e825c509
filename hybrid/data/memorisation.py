"""Memorisation of fixed facts (MAD: Poli et al. 2024, arXiv 2403.17844, and its code, athms/mad-lab).

    input   k3  ? k1  ? k3  ?
    target   - v8  - v5  - v8

Keys drawn evenly, with replacement, each followed by a symbol that asks for its value. What the values are never stands
in the input: the map is one of chance, fixed by `map_seed`, and no two keys have one value. Held-out sequences ask for
the same facts. As published, but that our training sequences are endless, not 256, so that whole sequences cannot be
learnt by heart instead, and that the map comes from another generator.

Shapes: B sequences, L positions, F facts a sequence, K keys, W uniform numbers a sequence.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.base import NOT_SCORED, Batch
from hybrid.data.synthetic import FIXED, SyntheticData, whole
from hybrid.probes import check_memorisation
from hybrid.spec import MemorisationSpec


@final
class MemorisationData(SyntheticData):
    """The sequences of a `MemorisationSpec`."""

    def __init__(self, spec: MemorisationSpec, seq_len: int) -> None:
        """Raises ConfigError if there are too few symbols or positions."""
        check_memorisation(spec, seq_len)
        self._n_facts = seq_len // 2
        self._asks = spec.n_symbols - 1
        n_keys = self._asks // 2
        generator = np.random.Generator(np.random.Philox(key=np.array([spec.map_seed, FIXED], dtype=np.uint64)))
        self._value_of_K = n_keys + generator.permutation(self._asks - n_keys)[:n_keys]
        super().__init__(self._n_facts)

    def _made(self, u_BW: NDArray[np.float64], *, held_out: bool) -> Batch:
        key_BF = whole(u_BW[:, : self._n_facts], len(self._value_of_K))
        inputs_BL = np.full((len(u_BW), 2 * self._n_facts), self._asks, dtype=np.int64)
        inputs_BL[:, ::2] = key_BF
        targets_BL = np.full_like(inputs_BL, NOT_SCORED)
        targets_BL[:, 1::2] = self._value_of_K[key_BF]
        return Batch(inputs_BL=inputs_BL, targets_BL=targets_BL)
