"""Byte-level language modelling on the standard library: its packed documents, cut into windows.

Shapes: N tokens, V vocabulary.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.packed import PackedData, TokenStream
from hybrid.data.shards import BOS, EOS, Shards


@final
class StdlibData(PackedData):
    """Windows of both splits of the library."""

    def __init__(self, shards: Shards, seq_len: int) -> None:
        """Raises ConfigError if a split is shorter than one window."""
        super().__init__(TokenStream([shards.training]), TokenStream([shards.validation]), seq_len)

    @staticmethod
    def larger_validation() -> str:
        return "a larger data.val_percent may do"

    @property
    def tokenizer(self) -> str:
        return "bytes"

    @property
    def bos(self) -> int:
        return BOS

    @property
    def eos(self) -> int:
        return EOS

    @property
    def token_bytes_V(self) -> NDArray[np.int64]:
        return np.array([1] * BOS + [0, 0], dtype=np.int64)

    def encode(self, text: bytes) -> NDArray[np.int64]:
        return np.frombuffer(text, dtype=np.uint8).astype(np.int64)

    def decode(self, tokens: NDArray[np.int64]) -> bytes:
        return tokens[tokens < BOS].astype(np.uint8).tobytes()
