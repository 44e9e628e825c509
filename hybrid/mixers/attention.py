"""Causal grouped-query attention with rotary positions, optional window and short convolution, and a static cache.

Shapes: B batch, L length, S positions in the cache, D d_model, H query heads, J key heads, G value heads, P head_dim,
V value head_dim; I = H V; K = G V; C channels of all projections, T taps of their convolution.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from hybrid.init import Initializer
from hybrid.linear import Linear
from hybrid.mixers.base import KeysValues, KvMixer
from hybrid.ops.attention import attention
from hybrid.ops.conv import causal_conv, causal_conv_step
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.rope import apply_rope, rope_tables
from hybrid.spec import AttentionSpec, WindowSpec


@final
@dataclass(frozen=True, kw_only=True)
class AttentionState:
    """Keys and values of the `position` positions so far, and the last T - 1 inputs of the convolution if there is one.

    Keys and values are written in place, into tensors for all that will come or, under a window, for the sink and the
    last `size` positions beyond it, in a ring. There are none where they are borrowed.
    """

    k_BJSP: Tensor
    v_BGSV: Tensor
    conv_BTC: Tensor | None
    position: int
    max_seq_len: int


@final
class Attention(KvMixer[AttentionState]):
    """Grouped-query attention; one projection makes queries, keys and values, in that order.

    Without `output` there is no output projection, and `mix` and `step_mix` are to be called.
    """

    def __init__(self, spec: AttentionSpec, d_model: int, *, output: bool = True, kernels: Kernels = TORCH) -> None:
        super().__init__()
        self.spec = spec
        self.kernels = kernels
        d_k, d_v = spec.n_kv_heads * spec.head_dim, spec.n_v_heads * spec.v_head_dim
        self.d_qkv = (spec.d_qk, 0, 0) if spec.borrows_kv else (spec.d_qk, d_k, d_v)
        self.qkv_proj = Linear(d_model, sum(self.d_qkv))
        taps = spec.qkv_conv
        self.conv_weight = None if taps is None else nn.Parameter(torch.empty(sum(self.d_qkv), taps))
        self.conv_bias = None if taps is None else nn.Parameter(torch.empty(sum(self.d_qkv)))
        self.out_proj = Linear(spec.d_v, d_model) if output else None

    def init_weights(self, init: Initializer) -> None:
        init.matrix(self.qkv_proj.weight)
        if self.conv_weight is not None and self.conv_bias is not None:
            bound = 1.0 / math.sqrt(self.conv_weight.shape[1])
            init.uniform(self.conv_weight, -bound, bound)
            init.constant(self.conv_bias, 0.0)
        if self.out_proj is not None:
            init.residual(self.out_proj.weight)

    def forward_kv(self, x_BLD: Tensor, lent: KeysValues | None) -> tuple[Tensor, KeysValues]:
        y_BLI, used, _ = self.mix(x_BLD, lent)
        return self._out(y_BLI), used

    def step_kv(
        self, x_BLD: Tensor, state: AttentionState, lent: KeysValues | None
    ) -> tuple[Tensor, AttentionState, KeysValues]:
        y_BLI, state, used, _ = self.step_mix(x_BLD, state, lent)
        return self._out(y_BLI), state, used

    def mix(self, x_BLD: Tensor, lent: KeysValues | None = None) -> tuple[Tensor, KeysValues, Tensor]:
        """What the heads return, before the output projection; the keys and values used; and the projected values.

        (B, L, I), ..., (B, L, K) before any convolution, of no width where they are borrowed.
        """
        qkv_BLC = self.qkv_proj(x_BLD)
        values_BLK = qkv_BLC[..., qkv_BLC.shape[-1] - self.d_qkv[2] :]
        if self.conv_weight is not None and self.conv_bias is not None:
            qkv_BLC = causal_conv(qkv_BLC, self.conv_weight, self.conv_bias, kernels=self.kernels)
        q_BHLP, made = self._heads(qkv_BLC, start=0)
        used = self._chosen(made, lent)
        return self._attend(q_BHLP, used), used, values_BLK

    def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> AttentionState:
        spec = self.spec
        n_positions = 0 if spec.borrows_kv else _n_slots(spec.window, max_seq_len)
        conv_BTC = None
        if spec.qkv_conv is not None:
            conv_BTC = torch.zeros(batch_size, spec.qkv_conv - 1, sum(self.d_qkv), device=device, dtype=dtype)
        return AttentionState(
            k_BJSP=torch.zeros(batch_size, spec.n_kv_heads, n_positions, spec.head_dim, device=device, dtype=dtype),
            v_BGSV=torch.zeros(batch_size, spec.n_v_heads, n_positions, spec.v_head_dim, device=device, dtype=dtype),
            conv_BTC=conv_BTC,
            position=0,
            max_seq_len=max_seq_len,
        )

    def step_mix(
        self, x_BLD: Tensor, state: AttentionState, lent: KeysValues | None = None
    ) -> tuple[Tensor, AttentionState, KeysValues, Tensor]:
        """`mix` at the next positions, and the state after them."""
        end = state.position + x_BLD.shape[1]
        if end > state.max_seq_len:
            raise ValueError(f"step to position {end}: the state was made for {state.max_seq_len} positions")
        qkv_BLC = self.qkv_proj(x_BLD)
        values_BLK = qkv_BLC[..., qkv_BLC.shape[-1] - self.d_qkv[2] :]
        conv_BTC = state.conv_BTC
        if self.conv_weight is not None and self.conv_bias is not None and conv_BTC is not None:
            qkv_BLC, conv_BTC = causal_conv_step(
                qkv_BLC, self.conv_weight, self.conv_bias, conv_BTC, kernels=self.kernels
            )
        q_BHLP, made = self._heads(qkv_BLC, start=state.position)
        if made is not None:
            k_BJSP = _remembered(state.k_BJSP, made.k_BJSP, state.position, self.spec.window)
            v_BGSV = _remembered(state.v_BGSV, made.v_BGSV, state.position, self.spec.window)
            made = KeysValues(k_BJSP=k_BJSP.to(q_BHLP.dtype), v_BGSV=v_BGSV.to(q_BHLP.dtype))
        used = self._chosen(made, lent)
        return self._attend(q_BHLP, used), replace(state, conv_BTC=conv_BTC, position=end), used, values_BLK

    def _heads(self, qkv_BLC: Tensor, *, start: int) -> tuple[Tensor, KeysValues | None]:
        """The queries, and the keys and values if they are this block's own."""
        spec, (d_q, d_k, d_v) = self.spec, self.d_qkv
        qk_BLC, v_BLK = qkv_BLC.split((d_q + d_k, d_v), dim=-1)
        qk_BLMP = qk_BLC.unflatten(-1, (-1, spec.head_dim))
        if spec.rope is not None:
            length = qkv_BLC.shape[1]
            cos_L1F, sin_L1F = rope_tables(spec.rope, spec.head_dim, length, start=start, device=qkv_BLC.device)
            qk_BLMP = apply_rope(qk_BLMP, cos_L1F, sin_L1F)
        qk_BMLP = qk_BLMP.transpose(1, 2)
        if spec.borrows_kv:
            return qk_BMLP, None
        q_BHLP, k_BJLP = qk_BMLP.split((spec.n_heads, spec.n_kv_heads), dim=1)
        v_BGLV = v_BLK.unflatten(-1, (-1, spec.v_head_dim)).transpose(1, 2)
        return q_BHLP, KeysValues(k_BJSP=k_BJLP, v_BGSV=v_BGLV)

    def _chosen(self, made: KeysValues | None, lent: KeysValues | None) -> KeysValues:
        if made is not None:
            return made
        if lent is None:
            raise ValueError("this attention borrows keys and values, and none were lent")
        return lent

    def _attend(self, q_BHLP: Tensor, used: KeysValues) -> Tensor:
        # One query sees all that is kept for it, in whatever order.
        window = self.spec.window if q_BHLP.shape[2] > 1 else None
        y_BHLV = attention(
            q_BHLP, used.k_BJSP, used.v_BGSV, window=window, scale=self.spec.softmax_scale, kernels=self.kernels
        )
        return y_BHLV.transpose(1, 2).flatten(2)

    def _out(self, y_BLI: Tensor) -> Tensor:
        assert self.out_proj is not None
        out_BLD: Tensor = self.out_proj(y_BLI)
        return out_BLD


def _n_slots(window: WindowSpec | None, max_seq_len: int) -> int:
    """Positions that a cache has room for."""
    return max_seq_len if window is None else min(max_seq_len, window.size + window.sink)


def _remembered(cache_BJSP: Tensor, new_BJLP: Tensor, start: int, window: WindowSpec | None) -> Tensor:
    """Write the positions from `start` on into the cache; all that their queries may see, in the cache's dtype.

    Where not all fit, the sink stays and the rest of the cache is a ring. What is returned for one position is then
    the cache as it lies; for more it is in order and longer than the cache, as each has a window of its own.
    """
    new_BJLP, end = new_BJLP.to(cache_BJSP.dtype), start + new_BJLP.shape[2]
    if window is None or end <= cache_BJSP.shape[2]:
        cache_BJSP[:, :, start:end] = new_BJLP
        return cache_BJSP[:, :, :end]
    size, sink, seen_BJSP = window.size, window.sink, cache_BJSP
    if end - start > 1:
        # The oldest position of a full ring is where the next one will be written.
        oldest = sink + (start - sink) % size if start >= sink + size else sink
        in_order = (slice(min(start, sink)), slice(oldest, min(start, sink + size)), slice(sink, oldest))
        seen_BJSP = torch.cat((*(cache_BJSP[:, :, kept] for kept in in_order), new_BJLP), dim=2)
    if start < sink:
        cache_BJSP[:, :, start:sink] = new_BJLP[:, :, : sink - start]
    first = max(start, sink, end - size)
    while first < end:
        slot = sink + (first - sink) % size
        run = min(end - first, sink + size - slot)
        cache_BJSP[:, :, slot : slot + run] = new_BJLP[:, :, first - start : first - start + run]
        first += run
    return seen_BJSP
