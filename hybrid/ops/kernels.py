"""Which implementation each operation takes: plain PyTorch, or kernels of a GPU package that is installed."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The implementation of each operation that has several."""

    ssd: Literal["torch", "triton"]
    conv: Literal["torch", "causal_conv1d"]
    attention: Literal["sdpa", "flash_attn"]
    window: Literal["blocked", "flex"]


TORCH = Kernels(ssd="torch", conv="torch", attention="sdpa", window="blocked")
