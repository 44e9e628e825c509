"""A short causal depthwise convolution of the block's input, and nothing else: what it explains, attention does not.

Shapes: B batch, L length, D d_model, T taps (d_conv).
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from hybrid.init import Initializer
from hybrid.mixers.base import Mixer
from hybrid.ops.conv import causal_conv, causal_conv_step
from hybrid.spec import ShortConvSpec


@final
@dataclass(frozen=True, kw_only=True)
class ShortConvState:
    """The last T - 1 inputs."""

    conv_BTD: Tensor


@final
class ShortConv(Mixer[ShortConvState]):
    """Every channel by itself, with a bias and no activation."""

    def __init__(self, spec: ShortConvSpec, d_model: int) -> None:
        super().__init__()
        self.conv_weight = nn.Parameter(torch.empty(d_model, spec.d_conv))
        self.conv_bias = nn.Parameter(torch.empty(d_model))

    def init_weights(self, init: Initializer) -> None:
        bound = 1.0 / math.sqrt(self.conv_weight.shape[1])
        init.uniform(self.conv_weight, -bound, bound)
        init.constant(self.conv_bias, 0.0)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return causal_conv(x_BLD, self.conv_weight, self.conv_bias)

    def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> ShortConvState:
        del max_seq_len  # the state has one size at every length
        d_model, taps = self.conv_weight.shape
        return ShortConvState(conv_BTD=torch.zeros(batch_size, taps - 1, d_model, device=device, dtype=dtype))

    def step(self, x_BLD: Tensor, state: ShortConvState) -> tuple[Tensor, ShortConvState]:
        y_BLD, conv_BTD = causal_conv_step(x_BLD, self.conv_weight, self.conv_bias, state.conv_BTD)
        return y_BLD, ShortConvState(conv_BTD=conv_BTD)
