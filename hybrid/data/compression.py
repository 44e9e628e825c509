"""Compression, after MAD (Poli et al. 2024, arXiv 2403.17844, and its code, athms/mad-lab), for language models.

    input   x3 x1 x7  c  c q1 q2 q3
    target   -  -  -  -  - x3 x1 x7

The published task is an autoencoder's: random tokens and a compression token are read, what the model has at the last
position is the code, and an MLP of two layers decodes every token from the code and its position's sinusoidal encoding.
A language model has no such decoder, so here it is its own: after the compression token, which is repeated to the
length, a symbol for each place asks for the token that stood there. That departs in what counts:

* Nothing has to pass through one position. What is small is what the model carries past the compression tokens: the
  state of a recurrent mixer, or the keys that a window still holds. Full attention looks back at the tokens
  themselves, so that for it this is no compression but a copy, and its score says nothing of the published one.
* The compression token is not to be reconstructed (it is the same in every sequence), and so not scored.
* Training sequences are endless, not 12,800.

Shapes: B sequences, L positions, N tokens to compress, W uniform numbers a sequence.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.base import NOT_SCORED, Batch
from hybrid.data.synthetic import SyntheticData, whole
from hybrid.probes import check_compression
from hybrid.spec import CompressionSpec


@final
class CompressionData(SyntheticData):
    """The sequences of a `CompressionSpec`."""

    def __init__(self, spec: CompressionSpec, seq_len: int) -> None:
        """Raises ConfigError if there are too few symbols or positions."""
        check_compression(spec, seq_len)
        self._spec, self._seq_len = spec, seq_len
        super().__init__(spec.n_compressed)

    def _made(self, u_BW: NDArray[np.float64], *, held_out: bool) -> Batch:
        n, n_symbols = self._spec.n_compressed, self._spec.n_symbols
        token_BN = whole(u_BW[:, :n], n_symbols)
        inputs_BL = np.full((len(u_BW), self._seq_len), n_symbols, dtype=np.int64)
        inputs_BL[:, :n] = token_BN
        inputs_BL[:, -n:] = n_symbols + 1 + np.arange(n)
        targets_BL = np.full_like(inputs_BL, NOT_SCORED)
        targets_BL[:, -n:] = token_BN
        source_BL = np.full_like(inputs_BL, NOT_SCORED)
        source_BL[:, -n:] = np.arange(n)
        return Batch(inputs_BL=inputs_BL, targets_BL=targets_BL, source_BL=source_BL)
