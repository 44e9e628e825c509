"""Byte-level language modelling on the standard library: its packed documents, cut into windows."""

from typing import final

from hybrid.data.packed import PackedData, TokenStream
from hybrid.data.shards import Shards


@final
class StdlibData(PackedData):
    """Windows of both splits of the library."""

    def __init__(self, shards: Shards, seq_len: int) -> None:
        """Raises ConfigError if a split is shorter than one window."""
        super().__init__(TokenStream([shards.training]), TokenStream([shards.validation]), seq_len)

    @staticmethod
    def larger_validation() -> str:
        return "a larger data.val_percent may do"
