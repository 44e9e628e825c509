"""Language modelling on packed documents: streams of tokens cut into windows.

Window i of a split holds tokens i * L to (i + 1) * L of its stream, the last being a target only; what follows the last
whole window is not read. Every target is scored, across the ends of documents too.

Shapes: B sequences, L positions, T = L + 1, N tokens, D documents.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.base import Batch, DocumentSource
from hybrid.spec import ConfigError

Tokens = NDArray[np.unsignedinteger[Any]]

# Second halves of Philox keys: training has its epoch there.
_VALIDATION_ORDER: Final = 2**64 - 1


@final
class TokenStream:
    """Arrays of tokens read as one, without joining them: a window may begin in one and end in a later one."""

    def __init__(self, parts: list[Tokens]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """`length` tokens from `start` on, all of which there are."""
        tokens_N = np.empty(length, dtype=np.int64)
        at, done = int(np.searchsorted(self._ends, start, side="right")), 0
        while done < length:
            within = start + done - (int(self._ends[at]) - len(self._parts[at]))
            piece = self._parts[at][within : within + length - done]
            tokens_N[done : done + len(piece)] = piece
            done += len(piece)
            at += 1
        return tokens_N

    def joined(self) -> Tokens:
        """All of it as one array, which is not to be changed."""
        return self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)

    def windows(self, start_B: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """The `length` tokens from each start on, (B, length)."""
        if len(self._parts) == 1:
            windows: NDArray[np.int64] = self._parts[0][start_B[:, None] + np.arange(length)].astype(np.int64)
            return windows
        return np.stack([self.read(int(start), length) for start in start_B])


class PackedData(DocumentSource):
    """Windows of both splits; the training windows are shuffled anew for each epoch."""

    def __init__(self, training: TokenStream, validation: TokenStream, seq_len: int) -> None:
        """Raises ConfigError if a split is shorter than one window."""
        shortest = min(len(training), len(validation))
        if shortest < seq_len + 1:
            raise ConfigError(
                f"seq_len = {seq_len}: expected at most {shortest - 1}, as the smaller split has {shortest} tokens; "
                f"{self.larger_validation()}"
            )
        self._training = training
        self._validation = validation
        self._seq_len = seq_len
        self._order_key: tuple[int, int] | None = None
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._validation_starts_D: NDArray[np.int64] | None = None

    @staticmethod
    @abstractmethod
    def larger_validation() -> str:
        """What a user may do about a split that is too small."""

    @property
    def train_windows(self) -> int:
        """Sequences in an epoch."""
        return (len(self._training) - 1) // self._seq_len

    @property
    def validation_windows(self) -> int:
        """Sequences in the validation split."""
        return (len(self._validation) - 1) // self._seq_len

    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        index_B = step * batch_size + np.arange(batch_size)
        epoch_B, within_B = np.divmod(index_B, self.train_windows)
        window_B = np.empty_like(index_B)
        for epoch in np.unique(epoch_B):
            here_B = epoch_B == epoch
            window_B[here_B] = self._epoch_order(data_seed, int(epoch))[within_B[here_B]]
        return self._windows(self._training, window_B)

    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        # Shuffled, so that the first examples are of many documents.
        order = _permutation((0, _VALIDATION_ORDER), self.validation_windows)[:max_examples]
        for first in range(0, len(order), batch_size):
            window_B = order[first : first + batch_size]
            batch = self._windows(self._validation, window_B)
            target_BL = window_B[:, None] * self._seq_len + np.arange(1, self._seq_len + 1)
            document_BL = np.searchsorted(self._starts(), target_BL, side="right")
            yield Batch(inputs_BL=batch.inputs_BL, targets_BL=batch.targets_BL, document_BL=document_BL)

    def validation_documents(self) -> Iterator[NDArray[np.int64]]:
        stops = [*self._starts()[1:].tolist(), len(self._validation)]
        for start, stop in zip(self._starts().tolist(), stops, strict=True):
            yield self._validation.read(start, stop - start)

    def validation_text(self) -> NDArray[np.integer]:
        return self._validation.joined()

    def _starts(self) -> NDArray[np.int64]:
        """Where the held-out documents begin; looked for once. No token of a text is bos."""
        if self._validation_starts_D is None:
            starts_D = np.flatnonzero(self._validation.joined() == self.bos)
            self._validation_starts_D = starts_D[::2] if self.bos == self.eos else starts_D
        return self._validation_starts_D

    def _epoch_order(self, data_seed: int, epoch: int) -> NDArray[np.int64]:
        """The order of the windows in an epoch; the latest one asked for is kept."""
        if self._order_key != (data_seed, epoch):
            self._order = _permutation((data_seed, epoch), self.train_windows)
            self._order_key = (data_seed, epoch)
        return self._order

    def _windows(self, stream: TokenStream, window_B: NDArray[np.int64]) -> Batch:
        tokens_BT = stream.windows(window_B * self._seq_len, self._seq_len + 1)
        return Batch(inputs_BL=tokens_BT[:, :-1], targets_BL=tokens_BT[:, 1:])


def _permutation(key: tuple[int, int], length: int) -> NDArray[np.int64]:
    philox = np.random.Philox(key=np.array(key, dtype=np.uint64))
    return np.random.Generator(philox).permutation(length)
