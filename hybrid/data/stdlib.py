"""Byte-level language modelling on the standard library: packed documents cut into windows.

Window i of a split holds tokens i * L to (i + 1) * L of its stream, the last being a target only; what follows the last
whole window is not read. Every target is scored, across the ends of documents too.

Shapes: B sequences, L positions, T = L + 1, D documents, V vocabulary.
"""

from collections.abc import Iterator
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.base import Batch, DocumentSource
from hybrid.data.shards import BOS, Shards
from hybrid.spec import ConfigError

# Second halves of Philox keys: training has its epoch there.
_VALIDATION_ORDER: Final = 2**64 - 1


@final
class StdlibData(DocumentSource):
    """Windows of both splits; the training windows are shuffled anew for each epoch."""

    def __init__(self, shards: Shards, seq_len: int) -> None:
        """Raises ConfigError if a split is shorter than one window."""
        shortest = min(len(shards.training), len(shards.validation))
        if shortest < seq_len + 1:
            raise ConfigError(
                f"seq_len = {seq_len}: expected at most {shortest - 1}, as the smaller split has {shortest} tokens; "
                "a larger data.val_percent may do"
            )
        self._shards = shards
        self._seq_len = seq_len
        self._order_key: tuple[int, int] | None = None
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._validation_starts_D: NDArray[np.int64] | None = None

    @property
    def train_windows(self) -> int:
        """Sequences in an epoch."""
        return (len(self._shards.training) - 1) // self._seq_len

    @property
    def validation_windows(self) -> int:
        """Sequences in the validation split."""
        return (len(self._shards.validation) - 1) // self._seq_len

    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        index_B = step * batch_size + np.arange(batch_size)
        epoch_B, within_B = np.divmod(index_B, self.train_windows)
        window_B = np.empty_like(index_B)
        for epoch in np.unique(epoch_B):
            here_B = epoch_B == epoch
            window_B[here_B] = self._epoch_order(data_seed, int(epoch))[within_B[here_B]]
        return self._windows(self._shards.training, window_B)

    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        # Shuffled, so that the first examples are of many documents.
        order = _permutation((0, _VALIDATION_ORDER), self.validation_windows)[:max_examples]
        for first in range(0, len(order), batch_size):
            window_B = order[first : first + batch_size]
            batch = self._windows(self._shards.validation, window_B)
            target_BL = window_B[:, None] * self._seq_len + np.arange(1, self._seq_len + 1)
            document_BL = np.searchsorted(self._starts(), target_BL, side="right")
            yield Batch(inputs_BL=batch.inputs_BL, targets_BL=batch.targets_BL, document_BL=document_BL)

    @property
    def tokenizer(self) -> str:
        return "bytes"

    @property
    def bos(self) -> int:
        return BOS

    @property
    def token_bytes_V(self) -> NDArray[np.int64]:
        return np.array([1] * BOS + [0, 0], dtype=np.int64)

    def validation_documents(self) -> Iterator[NDArray[np.int64]]:
        for tokens in np.split(self._shards.validation, self._starts()):
            if len(tokens):
                yield tokens.astype(np.int64)

    def validation_text(self) -> NDArray[np.integer]:
        return self._shards.validation

    def encode(self, text: bytes) -> NDArray[np.int64]:
        return np.frombuffer(text, dtype=np.uint8).astype(np.int64)

    def decode(self, tokens: NDArray[np.int64]) -> bytes:
        return tokens[tokens < BOS].astype(np.uint8).tobytes()

    def _starts(self) -> NDArray[np.int64]:
        """Where the held-out documents begin; looked for once."""
        if self._validation_starts_D is None:
            self._validation_starts_D = np.flatnonzero(self._shards.validation == BOS)
        return self._validation_starts_D

    def _epoch_order(self, data_seed: int, epoch: int) -> NDArray[np.int64]:
        """The order of the windows in an epoch; the latest one asked for is kept."""
        if self._order_key != (data_seed, epoch):
            self._order = _permutation((data_seed, epoch), self.train_windows)
            self._order_key = (data_seed, epoch)
        return self._order

    def _windows(self, tokens: NDArray[np.uint16], window_B: NDArray[np.int64]) -> Batch:
        tokens_BT = tokens[window_B[:, None] * self._seq_len + np.arange(self._seq_len + 1)].astype(np.int64)
        return Batch(inputs_BL=tokens_BT[:, :-1], targets_BL=tokens_BT[:, 1:])


def _permutation(key: tuple[int, int], length: int) -> NDArray[np.int64]:
    philox = np.random.Philox(key=np.array(key, dtype=np.uint64))
    return np.random.Generator(philox).permutation(length)
