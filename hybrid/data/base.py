"""What a training loop may ask of data.

Shapes: B sequences, L positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

NOT_SCORED: Final = -100


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Token ids and what should be predicted at each of their positions; NOT_SCORED where nothing should.

    A target belongs to the input at its own position: nobody has to shift anything. `document_BL` are numbers that tell
    the documents of the targets apart, in held-out text; None where every sequence is one. `source_BL` says at which
    position of the input the answer to a scored one stands, the last time before, NOT_SCORED elsewhere; None where
    that means nothing.
    """

    inputs_BL: NDArray[np.int64]
    targets_BL: NDArray[np.int64]
    document_BL: NDArray[np.int64] | None = None
    source_BL: NDArray[np.int64] | None = None


class DataSource(ABC):
    """Batches as pure functions: nothing is remembered between calls that could change what the next one returns."""

    @abstractmethod
    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        """The batch of the `step`-th training step, counted from 0.

        The i-th sequence of the training, i = step * batch_size + row, does not depend on how sequences are batched.
        """

    @abstractmethod
    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        """Held-out sequences: the same ones in the same order at every call, at most `max_examples` of them.

        Fewer examples are a prefix of more; the last batch may be smaller.
        """


class DocumentSource(DataSource):
    """Text of whole documents; those that are held out can be had whole.

    Shapes: V vocabulary, N tokens.
    """

    @property
    @abstractmethod
    def tokenizer(self) -> str:
        """What made the tokens: data are read alike if and only if this is equal."""

    @property
    @abstractmethod
    def bos(self) -> int:
        """The token that every document begins with."""

    @property
    @abstractmethod
    def eos(self) -> int:
        """The token that every document ends with."""

    @property
    @abstractmethod
    def token_bytes_V(self) -> NDArray[np.int64]:
        """How many bytes of text each token stands for: none for what marks borders."""

    @abstractmethod
    def validation_documents(self) -> Iterator[NDArray[np.int64]]:
        """The held-out documents, whole, with what marks their borders, in the order of the split."""

    @abstractmethod
    def validation_text(self) -> NDArray[np.integer]:
        """The held-out documents one after the other, as training would meet them: (N,), not to be changed."""

    @abstractmethod
    def encode(self, text: bytes) -> NDArray[np.int64]:
        """The tokens of another text, without borders: (N,)."""

    @abstractmethod
    def decode(self, tokens: NDArray[np.int64]) -> bytes:
        """The text that tokens stand for; nothing for borders."""
