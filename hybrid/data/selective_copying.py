"""Selective copying (MAD: Poli et al. 2024, arXiv 2403.17844, and its code, athms/mad-lab; after Gu & Dao 2023).

    input    . x3  .  . x1 x7  . x3  >  .  .  .  .
    target   -  -  -  -  -  -  -  -  - x3 x1 x7 x3

Symbols drawn evenly, with blanks between them; after a symbol that asks for it, they are to be said in their order, at
a blank each. Every blank of the first part stands before one of the symbols, which is drawn evenly: the last symbol is
followed by no blank. As published, but that our training sequences are endless, not 12,800.

Shapes: B sequences, L positions, N symbols to copy, W uniform numbers a sequence.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.base import NOT_SCORED, Batch
from hybrid.data.synthetic import SyntheticData, parts_of, whole
from hybrid.probes import check_selective_copying
from hybrid.spec import SelectiveCopyingSpec


@final
class SelectiveCopyingData(SyntheticData):
    """The sequences of a `SelectiveCopyingSpec`."""

    def __init__(self, spec: SelectiveCopyingSpec, seq_len: int) -> None:
        """Raises ConfigError if there are too few symbols or positions."""
        check_selective_copying(spec, seq_len)
        self._seq_len, self._n = seq_len, spec.n_copied
        self._asks, self._blank = spec.n_symbols - 1, spec.n_symbols - 2
        self._parts = (self._n, seq_len - 2 * self._n - 1)
        super().__init__(sum(self._parts))

    def _made(self, u_BW: NDArray[np.float64], *, held_out: bool) -> Batch:
        symbol_u, blank_u = parts_of(u_BW, self._parts)
        count, n = len(u_BW), self._n
        symbol_BN = whole(symbol_u, self._blank)
        numbers_N = np.arange(n)
        blanks_BN = (whole(blank_u, n)[:, :, None] <= numbers_N).sum(1)
        place_BN = numbers_N + blanks_BN
        inputs_BL = np.full((count, self._seq_len), self._blank, dtype=np.int64)
        np.put_along_axis(inputs_BL, place_BN, symbol_BN, axis=1)
        inputs_BL[:, -n - 1] = self._asks
        targets_BL = np.full_like(inputs_BL, NOT_SCORED)
        targets_BL[:, -n:] = symbol_BN
        source_BL = np.full_like(inputs_BL, NOT_SCORED)
        source_BL[:, -n:] = place_BN
        return Batch(inputs_BL=inputs_BL, targets_BL=targets_BL, source_BL=source_BL)
