"""The contract of a mixer: what a block may ask of the layer that mixes along the sequence.

Shapes: B batch, L length, D d_model; S positions, J key heads, G value heads, P head_dim, V value head_dim.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, final

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


@final
@dataclass(frozen=True, kw_only=True)
class KeysValues:
    """What the queries of a whole sequence, or of one step, were compared with; good until the next step.

    The queries are those of the last positions. In a step by one position under a window, the order is any.
    """

    k_BJSP: Tensor
    v_BGSV: Tensor


class KvMixer(Mixer[State]):
    """A mixer with attention in it, whose keys and values a later block may borrow (`AttentionSpec.borrows_kv`).

    `lent` is what an earlier block returned for the same positions. It is used if and only if the spec borrows; the
    keys and values returned are those that were used. A borrower's spec has its lender's key and value heads, rope
    and window.
    """

    @abstractmethod
    def forward_kv(self, x_BLD: Tensor, lent: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """`forward`, borrowing and lending."""

    @abstractmethod
    def step_kv(self, x_BLD: Tensor, state: State, lent: KeysValues | None) -> tuple[Tensor, State, KeysValues]:
        """`step`, borrowing and lending."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.forward_kv(x_BLD, None)[0]

    def step(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        y_BLD, state, _ = self.step_kv(x_BLD, state, None)
        return y_BLD, state


def state_bytes(state: Any) -> int:
    """Bytes of all tensors of a state, as allocated, through nested dataclasses and tuples."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, tuple):
        return sum(state_bytes(item) for item in state)
    if dataclasses.is_dataclass(state):
        return sum(state_bytes(getattr(state, field.name)) for field in dataclasses.fields(state))
    return 0


def rows_of_state(state: State, rows: Tensor) -> State:
    """A state of its own for each of `rows`, (B,), numbers of sequences of another state, each as often as it is there.

    What is given stays as it is, and may be stepped on by itself. In every tensor of a state the sequences come first.
    """
    return cast(State, _rows_of(state, rows))


def _rows_of(state: Any, rows: Tensor) -> Any:
    if isinstance(state, Tensor):
        return state.index_select(0, rows)
    if isinstance(state, tuple):
        return tuple(_rows_of(item, rows) for item in state)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return dataclasses.replace(
            state, **{field.name: _rows_of(getattr(state, field.name), rows) for field in dataclasses.fields(state)}
        )
    return state
