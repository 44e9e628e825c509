"""Causal grouped-query attention with rotary positions and a static cache.

Shapes: B batch, L length, S positions in the cache, D d_model, H query heads, J key-value heads, P head_dim.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.init import Initializer
from hybrid.linear import Linear
from hybrid.mixers.base import Mixer
from hybrid.ops.rope import apply_rope, rope_tables
from hybrid.spec import AttentionSpec


@final
@dataclass(frozen=True, kw_only=True)
class AttentionState:
    """Keys and values of the first `position` positions, in tensors for all that will come; written in place."""

    k_BJSP: Tensor
    v_BJSP: Tensor
    position: int


@final
class Attention(Mixer[AttentionState]):
    """Grouped-query attention; one projection makes queries, keys and values, in that order."""

    def __init__(self, spec: AttentionSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.qkv_proj = Linear(d_model, (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim)
        self.out_proj = Linear(spec.n_heads * spec.head_dim, d_model)

    def init_weights(self, init: Initializer) -> None:
        init.matrix(self.qkv_proj.weight)
        init.residual(self.out_proj.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BHLP, k_BJLP, v_BJLP = self._qkv(x_BLD, start=0)
        y_BHLP = F.scaled_dot_product_attention(q_BHLP, k_BJLP, v_BJLP, is_causal=True, enable_gqa=self._grouped)
        return self._out(y_BHLP)

    def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> AttentionState:
        shape = (batch_size, self.spec.n_kv_heads, max_seq_len, self.spec.head_dim)
        return AttentionState(
            k_BJSP=torch.zeros(shape, device=device, dtype=dtype),
            v_BJSP=torch.zeros(shape, device=device, dtype=dtype),
            position=0,
        )

    def step(self, x_BLD: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        start, length = state.position, x_BLD.shape[1]
        end = start + length
        if end > state.k_BJSP.shape[2]:
            raise ValueError(f"step to position {end}: the state was made for {state.k_BJSP.shape[2]} positions")
        q_BHLP, k_BJLP, v_BJLP = self._qkv(x_BLD, start=start)
        state.k_BJSP[:, :, start:end] = k_BJLP
        state.v_BJSP[:, :, start:end] = v_BJLP
        visible_LS = None
        if length > 1 and start > 0:
            visible_LS = torch.ones(length, end, dtype=torch.bool, device=x_BLD.device).tril_(start)
        y_BHLP = F.scaled_dot_product_attention(
            q_BHLP,
            state.k_BJSP[:, :, :end].to(q_BHLP.dtype),
            state.v_BJSP[:, :, :end].to(q_BHLP.dtype),
            attn_mask=visible_LS,
            is_causal=length > 1 and start == 0,
            enable_gqa=self._grouped,
        )
        return self._out(y_BHLP), replace(state, position=end)

    @property
    def _grouped(self) -> bool:
        return self.spec.n_kv_heads != self.spec.n_heads

    def _qkv(self, x_BLD: Tensor, *, start: int) -> tuple[Tensor, Tensor, Tensor]:
        n_heads, n_kv_heads = self.spec.n_heads, self.spec.n_kv_heads
        qkv_BLMP = self.qkv_proj(x_BLD).unflatten(-1, (-1, self.spec.head_dim))
        qk_BLMP, v_BLJP = qkv_BLMP.split((n_heads + n_kv_heads, n_kv_heads), dim=2)
        if self.spec.rope is not None:
            cos_L1F, sin_L1F = rope_tables(
                self.spec.rope, self.spec.head_dim, x_BLD.shape[1], start=start, device=x_BLD.device
            )
            qk_BLMP = apply_rope(qk_BLMP, cos_L1F, sin_L1F)
        q_BLHP, k_BLJP = qk_BLMP.split((n_heads, n_kv_heads), dim=2)
        return q_BLHP.transpose(1, 2), k_BLJP.transpose(1, 2), v_BLJP.transpose(1, 2)

    def _out(self, y_BHLP: Tensor) -> Tensor:
        out_BLD: Tensor = self.out_proj(y_BHLP.transpose(1, 2).flatten(2))
        return out_BLD
