"""Feed-forward networks.

Shapes: B batch, L length, D d_model, F d_ffn.
"""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.init import Initializer
from hybrid.linear import Linear
from hybrid.spec import SwigluSpec


@final
class Swiglu(nn.Module):
    """W_down (silu(W_gate x) * W_up x), Shazeer 2020; gate and up are one projection, in that order."""

    def __init__(self, spec: SwigluSpec, d_model: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(d_model, 2 * spec.d_ffn)
        self.down_proj = Linear(spec.d_ffn, d_model)

    def init_weights(self, init: Initializer) -> None:
        init.matrix(self.gate_up_proj.weight)
        init.residual(self.down_proj.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        gate_BLF, up_BLF = self.gate_up_proj(x_BLD).chunk(2, dim=-1)
        y_BLD: Tensor = self.down_proj(F.silu(gate_BLF) * up_BLF)
        return y_BLD
