"""Differential Mamba (Schneider et al. 2025, arXiv 2507.06204): the difference of two Mamba-2 mixers.

Shapes: B batch, L length, D d_model.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from hybrid.init import Initializer
from hybrid.mixers.base import Mixer
from hybrid.mixers.diff_lambda import lambda_init
from hybrid.mixers.mamba2 import Mamba2, Mamba2State
from hybrid.norm import RMSNorm
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.precision import compute_dtype
from hybrid.spec import DiffMambaSpec


@final
@dataclass(frozen=True, kw_only=True)
class DiffMambaState:
    """The states of the two mixers."""

    first: Mamba2State
    second: Mamba2State


@final
class DiffMamba(Mixer[DiffMambaState]):
    """mamba1(x) - lambda mamba2(x), each with its output projection, and then the norm of the spec.

    lambda = sigmoid(sum of lambda_q) + lambda_init, as in the authors' code (github.com/NadavSc/Diff-Mamba,
    `DiffMamba2`), where lambda_q (D) is drawn from normal(0, 1): its sum has a standard deviation of sqrt(D), so that
    lambda starts at lambda_init or at lambda_init + 1, by chance, with no gradient. Ours is drawn from normal(0, 0.1),
    as the vectors of the Differential Transformer are.
    """

    def __init__(
        self, spec: DiffMambaSpec, d_model: int, *, norm_eps: float, ssd_chunk: int, kernels: Kernels = TORCH
    ) -> None:
        super().__init__()
        self.lambda_init = lambda_init(spec.depth)
        self.mamba1 = Mamba2(spec.mamba, d_model, norm_eps=norm_eps, ssd_chunk=ssd_chunk, kernels=kernels)
        self.mamba2 = Mamba2(spec.mamba, d_model, norm_eps=norm_eps, ssd_chunk=ssd_chunk, kernels=kernels)
        self.lambda_q = nn.Parameter(torch.empty(d_model))
        self.norm = RMSNorm(d_model, norm_eps) if spec.norm == "output" else None

    def init_weights(self, init: Initializer) -> None:
        self.mamba1.init_weights(init)
        self.mamba2.init_weights(init)
        init.normal(self.lambda_q, 0.1)
        if self.norm is not None:
            init.constant(self.norm.weight, 1.0)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._difference(self.mamba1(x_BLD), self.mamba2(x_BLD))

    def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> DiffMambaState:
        return DiffMambaState(
            first=self.mamba1.init_state(batch_size, max_seq_len, device, dtype),
            second=self.mamba2.init_state(batch_size, max_seq_len, device, dtype),
        )

    def step(self, x_BLD: Tensor, state: DiffMambaState) -> tuple[Tensor, DiffMambaState]:
        first_BLD, first = self.mamba1.step(x_BLD, state.first)
        second_BLD, second = self.mamba2.step(x_BLD, state.second)
        return self._difference(first_BLD, second_BLD), DiffMambaState(first=first, second=second)

    def _difference(self, first_BLD: Tensor, second_BLD: Tensor) -> Tensor:
        lambda_q_D = self.lambda_q.to(compute_dtype(self.lambda_q.dtype))
        y_BLD = first_BLD - (torch.sigmoid(lambda_q_D.sum()) + self.lambda_init) * second_BLD
        if self.norm is None:
            return y_BLD
        normed_BLD: Tensor = self.norm(y_BLD)
        return normed_BLD * (1.0 - self.lambda_init)
