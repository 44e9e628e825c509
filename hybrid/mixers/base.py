"""The contract of a mixer: what a block may ask of the layer that mixes along the sequence.

Shapes: B batch, L length, D d_model.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from hybrid.init import Initializer

State = TypeVar("State")


class Mixer(nn.Module, ABC, Generic[State]):
    """Causal map of sequences, computed at once (`forward`) or in pieces (`step`): over any partition, the same.

    A state is a frozen dataclass of tensors and whole numbers, bounded in size when it is made. `step`
    may write into the tensors of the state that it is given: go on with the one that it returns.
    """

    @abstractmethod
    def init_weights(self, init: Initializer) -> None:
        """Set every parameter of this mixer."""

    @abstractmethod
    def forward(self, x_BLD: Tensor) -> Tensor:
        """The outputs at all positions of a whole sequence: (B, L, D)."""

    @abstractmethod
    def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> State:
        """The state before the first position; `max_seq_len` is all that will ever be stepped through."""

    @abstractmethod
    def step(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        """The outputs at the next L >= 1 positions, and the state after them."""


def state_bytes(state: Any) -> int:
    """Bytes of all tensors of a state, as allocated, through nested dataclasses and tuples."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, tuple):
        return sum(state_bytes(item) for item in state)
    if dataclasses.is_dataclass(state):
        return sum(state_bytes(getattr(state, field.name)) for field in dataclasses.fields(state))
    return 0
