"""Differential attention (Ye et al. 2024, arXiv 2410.05258): the difference of two softmax maps over one value.

Heads are paired as in the authors' recommended code (github.com/microsoft/unilm, Diff-Transformer,
multihead_flashdiff_1.py): queries 2 h and 2 h + 1 are those of pair h, keys likewise, and pair h meets the pair
h // (n_heads / n_kv_heads) of keys, first with first and second with second. (In their multihead_diffattn.py single key
heads are repeated instead, so that under grouping both maps of a pair may meet one key.) transformers' DiffLlama pairs
head h with head h + n_heads: the same model, with the rows of its projections in another order.

Shapes: B batch, L length, S positions in the cache, D d_model, H pairs of query heads, J pairs of key heads,
P head_dim, V = 2 P.
"""

from dataclasses import dataclass
from typing import assert_never, final

import torch
from torch import Tensor

from hybrid.init import Initializer
from hybrid.linear import Linear
from hybrid.mixers.base import Mixer
from hybrid.mixers.diff_lambda import DiffLambda
from hybrid.norm import RMSNorm
from hybrid.ops.attention import diff_attention
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.rope import apply_rope, rope_tables
from hybrid.spec import DiffAttentionSpec


@final
@dataclass(frozen=True, kw_only=True)
class DiffAttentionState:
    """Keys (both of every pair) and values of the first `position` positions, written in place."""

    k_BJSP: Tensor
    v_BJSV: Tensor
    position: int


@final
class DiffAttention(Mixer[DiffAttentionState]):
    """Two attention maps a head, the second weighted by minus (or plus) lambda; every head normalised, or none.

    The norm's weight is one for all heads.
    """

    def __init__(self, spec: DiffAttentionSpec, d_model: int, *, norm_eps: float, kernels: Kernels = TORCH) -> None:
        super().__init__()
        self.spec = spec
        self.kernels = kernels
        self.d_q, self.d_k = 2 * spec.n_heads * spec.head_dim, 2 * spec.n_kv_heads * spec.head_dim
        self.qkv_proj = Linear(d_model, self.d_q + 2 * self.d_k)
        self.diff_lambda = DiffLambda(spec.head_dim, spec.depth)
        self.norm = RMSNorm(2 * spec.head_dim, norm_eps) if spec.norm == "head" else None
        self.out_proj = Linear(self.d_q, d_model)

    def init_weights(self, init: Initializer) -> None:
        init.matrix(self.qkv_proj.weight)
        self.diff_lambda.init_weights(init)
        if self.norm is not None:
            init.constant(self.norm.weight, 1.0)
        init.residual(self.out_proj.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._attend(*self._qkv(x_BLD, start=0))

    def init_state(
        self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype
    ) -> DiffAttentionState:
        n_kv_heads, head_dim = self.spec.n_kv_heads, self.spec.head_dim
        return DiffAttentionState(
            k_BJSP=torch.zeros(batch_size, 2 * n_kv_heads, max_seq_len, head_dim, device=device, dtype=dtype),
            v_BJSV=torch.zeros(batch_size, n_kv_heads, max_seq_len, 2 * head_dim, device=device, dtype=dtype),
            position=0,
        )

    def step(self, x_BLD: Tensor, state: DiffAttentionState) -> tuple[Tensor, DiffAttentionState]:
        start, end, n_slots = state.position, state.position + x_BLD.shape[1], state.k_BJSP.shape[2]
        if end > n_slots:
            raise ValueError(f"step to position {end}: the state was made for {n_slots} positions")
        q_BHLP, k_BJLP, v_BJLV = self._qkv(x_BLD, start=start)
        state.k_BJSP[:, :, start:end] = k_BJLP
        state.v_BJSV[:, :, start:end] = v_BJLV
        y_BLD = self._attend(
            q_BHLP, state.k_BJSP[:, :, :end].to(q_BHLP.dtype), state.v_BJSV[:, :, :end].to(q_BHLP.dtype)
        )
        return y_BLD, DiffAttentionState(k_BJSP=state.k_BJSP, v_BJSV=state.v_BJSV, position=end)

    def _qkv(self, x_BLD: Tensor, *, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 2 H, L, P), (B, 2 J, L, P), (B, J, L, V)."""
        spec = self.spec
        qk_BLC, v_BLC = self.qkv_proj(x_BLD).split((self.d_q + self.d_k, self.d_k), dim=-1)
        qk_BLMP = qk_BLC.unflatten(-1, (-1, spec.head_dim))
        if spec.rope is not None:
            cos_L1F, sin_L1F = rope_tables(spec.rope, spec.head_dim, x_BLD.shape[1], start=start, device=x_BLD.device)
            qk_BLMP = apply_rope(qk_BLMP, cos_L1F, sin_L1F)
        q_BHLP, k_BJLP = qk_BLMP.transpose(1, 2).split((2 * spec.n_heads, 2 * spec.n_kv_heads), dim=1)
        return q_BHLP, k_BJLP, v_BLC.unflatten(-1, (spec.n_kv_heads, -1)).transpose(1, 2)

    def _attend(self, q_BHLP: Tensor, k_BJSP: Tensor, v_BJSV: Tensor) -> Tensor:
        weight = self.diff_lambda()
        match self.spec.fusion:
            case "diff":
                weight = -weight
            case "add":
                pass
            case _ as never:
                assert_never(never)
        y_BLHV = diff_attention(q_BHLP, k_BJSP, v_BJSV, weight, kernels=self.kernels).transpose(1, 2)
        if self.norm is not None:
            y_BLHV = self.norm(y_BLHV) * (1.0 - self.diff_lambda.init)
        out_BLD: Tensor = self.out_proj(y_BLHV.flatten(2))
        return out_BLD
