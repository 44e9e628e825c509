"""Attention and Mamba-2 in one block, on the same input, fused by one of the ways of arXiv 2510.04800, section 3.2.

Shapes: B batch, L length, D d_model, I a module's width (attention's d_v, Mamba's d_ssm), J value heads, P their width,
K = J P.
"""

from dataclasses import dataclass
from typing import assert_never, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.init import Initializer
from hybrid.linear import Linear
from hybrid.mixers.attention import Attention, AttentionState
from hybrid.mixers.base import KeysValues, KvMixer
from hybrid.mixers.diff_lambda import DiffLambda
from hybrid.mixers.mamba2 import Mamba2, Mamba2State
from hybrid.norm import RMSNorm
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.precision import compute_dtype
from hybrid.spec import IntraSpec


@final
@dataclass(frozen=True, kw_only=True)
class IntraState:
    """The states of the two modules."""

    attention: AttentionState
    mamba: Mamba2State


@final
class Gate(nn.Module):
    """g = sigmoid(w . x) for each token: attention's weight, Mamba's being 1 - g."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, d_model))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, 1), float32 at least: in half precision 1 - g would have few digits."""
        logit_BL1 = F.linear(x_BLD, self.weight)
        return torch.sigmoid(logit_BL1.to(compute_dtype(logit_BL1.dtype)))


@final
class Intra(KvMixer[IntraState]):
    """W_out (a_ssm Norm(M_ssm(x)) (+) a_attn Norm(M_attn(x))), every part as `IntraSpec` says.

    `concat` puts Mamba's output first. Which of these settings make the same model: `hybrid.equivalence`.
    """

    def __init__(
        self, spec: IntraSpec, d_model: int, *, norm_eps: float, ssd_chunk: int, kernels: Kernels = TORCH
    ) -> None:
        super().__init__()
        self.spec = spec
        d_attention, d_ssm = spec.attention.d_v, spec.mamba.d_ssm
        self.attention = Attention(spec.attention, d_model, output=False, kernels=kernels)
        self.mamba = Mamba2(
            spec.mamba,
            d_model,
            norm_eps=norm_eps,
            ssd_chunk=ssd_chunk,
            output=False,
            own_values=spec.value == "separate",
            kernels=kernels,
        )
        grouped = spec.norm == "group"
        self.attention_norm = RMSNorm(d_attention, norm_eps) if grouped else None
        self.mamba_norm = RMSNorm(d_ssm, norm_eps) if grouped else None
        scaled = spec.scalar == "scale"
        self.attention_scale = nn.Parameter(torch.empty(d_attention)) if scaled else None
        self.mamba_scale = nn.Parameter(torch.empty(d_ssm)) if scaled else None
        self.attention_lambda = None
        if spec.scalar == "diff_t":
            assert spec.lambda_depth is not None
            self.attention_lambda = DiffLambda(spec.attention.head_dim, spec.lambda_depth)
        self.gate_proj = Gate(d_model) if spec.scalar == "gate" else None
        joint = spec.output == "joint"
        self.out_proj = Linear(d_ssm + d_attention if spec.fusion == "concat" else d_ssm, d_model) if joint else None
        self.mamba_out_proj = None if joint else Linear(d_ssm, d_model)
        self.attention_out_proj = None if joint else Linear(d_attention, d_model)

    def init_weights(self, init: Initializer) -> None:
        self.attention.init_weights(init)
        self.mamba.init_weights(init)
        for norm in (self.attention_norm, self.mamba_norm):
            if norm is not None:
                init.constant(norm.weight, 1.0)
        for scale_I in (self.attention_scale, self.mamba_scale):
            if scale_I is not None:
                init.constant(scale_I, 1.0)
        if self.attention_lambda is not None:
            self.attention_lambda.init_weights(init)
        if self.gate_proj is not None:
            init.matrix(self.gate_proj.weight)
        for proj in (self.out_proj, self.mamba_out_proj, self.attention_out_proj):
            if proj is not None:
                init.residual(proj.weight)

    def forward_kv(self, x_BLD: Tensor, lent: KeysValues | None) -> tuple[Tensor, KeysValues]:
        attention_BLI, used, values_BLK = self.attention.mix(x_BLD, lent)
        mamba_BLI = self.mamba.mix(x_BLD, self._shared_values(values_BLK))
        return self._fused(x_BLD, mamba_BLI, attention_BLI), used

    def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> IntraState:
        return IntraState(
            attention=self.attention.init_state(batch_size, max_seq_len, device, dtype),
            mamba=self.mamba.init_state(batch_size, max_seq_len, device, dtype),
        )

    def step_kv(
        self, x_BLD: Tensor, state: IntraState, lent: KeysValues | None
    ) -> tuple[Tensor, IntraState, KeysValues]:
        attention_BLI, attention, used, values_BLK = self.attention.step_mix(x_BLD, state.attention, lent)
        mamba_BLI, mamba = self.mamba.step_mix(x_BLD, state.mamba, self._shared_values(values_BLK))
        return self._fused(x_BLD, mamba_BLI, attention_BLI), IntraState(attention=attention, mamba=mamba), used

    def _shared_values(self, values_BLK: Tensor) -> Tensor | None:
        """What Mamba's convolution takes in place of values of its own: each value head once for every query head."""
        if self.spec.value == "separate":
            return None
        n_heads, n_v_heads = self.spec.attention.n_heads, self.spec.attention.n_v_heads
        values_BLJ1P = values_BLK.unflatten(-1, (n_v_heads, 1, self.spec.attention.v_head_dim))
        return values_BLJ1P.expand(-1, -1, -1, n_heads // n_v_heads, -1).flatten(2)

    def _fused(self, x_BLD: Tensor, mamba_BLI: Tensor, attention_BLI: Tensor) -> Tensor:
        """Norms, weights, fusion and output of the two modules, whose input was `x_BLD`."""
        if self.mamba_norm is not None and self.attention_norm is not None:
            mamba_BLI, attention_BLI = self.mamba_norm(mamba_BLI), self.attention_norm(attention_BLI)
        mamba_BLI, attention_BLI = self._weighted(x_BLD, mamba_BLI, attention_BLI)
        if self.mamba_out_proj is not None and self.attention_out_proj is not None:
            mamba_BLI, attention_BLI = self.mamba_out_proj(mamba_BLI), self.attention_out_proj(attention_BLI)
        match self.spec.fusion:
            case "add":
                y = mamba_BLI + attention_BLI
            case "diff":
                y = mamba_BLI - attention_BLI
            case "concat":
                y = torch.cat((mamba_BLI, attention_BLI), dim=-1)
            case _:
                assert_never(self.spec.fusion)
        return y if self.out_proj is None else self.out_proj(y)

    def _weighted(self, x_BLD: Tensor, mamba_BLI: Tensor, attention_BLI: Tensor) -> tuple[Tensor, Tensor]:
        """Mamba's and attention's outputs times their learned and their constant weights."""
        if self.mamba_scale is not None and self.attention_scale is not None:
            mamba_BLI, attention_BLI = mamba_BLI * self.mamba_scale, attention_BLI * self.attention_scale
        if self.attention_lambda is not None:
            attention_BLI = attention_BLI * self.attention_lambda()
        if self.gate_proj is not None:
            weight_BL1 = self.gate_proj(x_BLD)
            mamba_BLI = mamba_BLI * (1.0 - weight_BL1).to(mamba_BLI.dtype)
            attention_BLI = attention_BLI * weight_BL1.to(attention_BLI.dtype)
        if self.spec.mamba_multiplier != 1.0:
            mamba_BLI = mamba_BLI * self.spec.mamba_multiplier
        if self.spec.attention_multiplier != 1.0:
            attention_BLI = attention_BLI * self.spec.attention_multiplier
        return mamba_BLI, attention_BLI
