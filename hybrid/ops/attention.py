"""Causal softmax attention and differential attention: which kernel does what, and our own for the CPU.

PyTorch's fused attention has no window, and on the CPU falls back to whole matrices where values are wider
than keys. Ours goes over blocks of rows, each with just the keys that it sees: two matrix products and a fused
softmax, computed again in the backward, so that nothing of size (L, S) is kept. Queries that share a key head are
rows of one product.

Shapes: B batch, L queries, S keys (the queries are at the last L of their positions), H query heads, J key heads,
G value heads (J divides G divides H), P head_dim, V value head_dim. Inside the kernel: M maps (2 in differential
attention), N heads of the whole batch, R query heads to each of them; of one block: Q queries, C = R Q rows, K keys.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid.ops.fused_attention import fused_attention
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.precision import compute_dtype, without_autocast
from hybrid.ops.window import repeat_heads, visible, windowed_sdpa
from hybrid.spec import WindowSpec

# Elements of a block's scores: about what stays in the cache of one core.
_BLOCK_ELEMENTS = 1 << 18


def attention(
    q_BHLP: Tensor,
    k_BJSP: Tensor,
    v_BGSV: Tensor,
    *,
    window: WindowSpec | None = None,
    scale: float | None = None,
    kernels: Kernels = TORCH,
) -> Tensor:
    """Causal attention: (B, H, L, V). Query head h meets key head h // (H / J) and value head h // (H / G).

    With a window, keys that no query sees any more may be missing between the sink and the others. `scale` is
    1 / sqrt(P) unless given.
    """
    fused_BHLV = fused_attention(q_BHLP, k_BJSP, v_BGSV, window=window, scale=scale, kernels=kernels)
    if fused_BHLV is not None:
        return fused_BHLV
    n_queries, n_keys = q_BHLP.shape[2], k_BJSP.shape[2]
    plain = k_BJSP.shape[1] == v_BGSV.shape[1] and k_BJSP.shape[3] == v_BGSV.shape[3]
    if q_BHLP.device.type == "cpu" and (window is not None or not plain):
        return _by_rows(q_BHLP, k_BJSP, v_BGSV, None, window=window, scale=scale)
    if window is not None:
        return windowed_sdpa(q_BHLP, k_BJSP, v_BGSV, window=window, scale=scale)
    if not plain:
        k_BJSP, v_BGSV = (repeat_heads(x, q_BHLP.shape[1]) for x in (k_BJSP, v_BGSV))
    whole = n_queries == n_keys
    return F.scaled_dot_product_attention(
        q_BHLP,
        k_BJSP,
        v_BGSV,
        attn_mask=None if whole or n_queries == 1 else visible(n_queries, n_keys, None, q_BHLP.device),
        is_causal=whole and n_queries > 1,
        scale=scale,
        enable_gqa=k_BJSP.shape[1] != q_BHLP.shape[1],
    )


def diff_attention_naive(
    q_BHLP: Tensor, k_BJSP: Tensor, v_BGSV: Tensor, weight: Tensor, *, scale: float | None = None
) -> Tensor:
    """The reference of `diff_attention`: two softmax maps, added, times the values."""
    n_heads = q_BHLP.shape[1] // 2
    q_BHMLP, k_BJMSP = q_BHLP.unflatten(1, (n_heads, 2)), k_BJSP.unflatten(1, (-1, 2))
    k_BHMSP = k_BJMSP.repeat_interleave(n_heads // k_BJMSP.shape[1], dim=1)
    scores_BHMLS = q_BHMLP @ k_BHMSP.transpose(-1, -2) * (q_BHLP.shape[-1] ** -0.5 if scale is None else scale)
    seen_LS = visible(q_BHLP.shape[2], k_BJSP.shape[2], None, q_BHLP.device)
    first_BHLS, second_BHLS = scores_BHMLS.masked_fill(~seen_LS, -torch.inf).softmax(-1).unbind(2)
    return (first_BHLS + weight * second_BHLS) @ repeat_heads(v_BGSV, n_heads)


def diff_attention(
    q_BHLP: Tensor,
    k_BJSP: Tensor,
    v_BGSV: Tensor,
    weight: Tensor,
    *,
    scale: float | None = None,
    kernels: Kernels = TORCH,
) -> Tensor:
    """(softmax(q1 k1^T) + weight softmax(q2 k2^T)) v: (B, H / 2, L, V), with `weight` a scalar tensor.

    Query heads 2 h and 2 h + 1 are q1 and q2 of pair h, key heads likewise; G = J / 2 values, one a pair of keys.
    """
    if q_BHLP.device.type == "cpu":
        return _by_rows(q_BHLP, k_BJSP, v_BGSV, weight, window=None, scale=scale)
    return diff_attention_of_heads(q_BHLP, k_BJSP, v_BGSV, weight, scale=scale, kernels=kernels)


def diff_attention_of_heads(
    q_BHLP: Tensor,
    k_BJSP: Tensor,
    v_BGSV: Tensor,
    weight: Tensor,
    *,
    scale: float | None = None,
    kernels: Kernels = TORCH,
) -> Tensor:
    """`diff_attention` with the maps as heads of their own over the same values: the way of other devices."""
    n_repeats = q_BHLP.shape[1] // k_BJSP.shape[1]
    q_BHLP = q_BHLP.unflatten(1, (-1, n_repeats, 2)).transpose(2, 3).flatten(1, 3)
    y_BHLV = attention(q_BHLP, k_BJSP, v_BGSV.repeat_interleave(2, dim=1), scale=scale, kernels=kernels)
    first_BJRLV, second_BJRLV = y_BHLV.unflatten(1, (-1, 2, n_repeats)).unbind(2)
    return (first_BJRLV + weight.to(y_BHLV.dtype) * second_BJRLV).flatten(1, 2)


def _by_rows(
    q_BHLP: Tensor,
    k_BJSP: Tensor,
    v_BGSV: Tensor,
    weight: Tensor | None,
    *,
    window: WindowSpec | None,
    scale: float | None,
) -> Tensor:
    """The sum over maps m of w_m softmax(scale q_m k_m^T) v with w_0 = 1, w_1 = weight: (B, H / M, L, V)."""
    dtype, n_maps = compute_dtype(q_BHLP.dtype), 1 if weight is None else 2
    n_keys = k_BJSP.shape[1] // n_maps
    q_BJRMLP = q_BHLP.to(dtype).unflatten(1, (n_keys, -1, n_maps))
    q_BJRMLP = q_BJRMLP * (q_BHLP.shape[-1] ** -0.5 if scale is None else scale)
    k_BJMSP, v_BGSV = k_BJSP.to(dtype).unflatten(1, (n_keys, n_maps)), v_BGSV.to(dtype)
    if weight is not None:
        weight = weight.to(dtype)
    if q_BHLP.shape[2] == 1 and window is None:
        return _one_query(q_BJRMLP.squeeze(4), k_BJMSP, v_BGSV, weight).to(q_BHLP.dtype)
    y_NRLV: Tensor = _RowBlocks.apply(
        q_BJRMLP.permute(3, 0, 1, 2, 4, 5).flatten(1, 2).contiguous(),
        k_BJMSP.permute(2, 0, 1, 3, 4).flatten(1, 2).contiguous(),
        v_BGSV.flatten(0, 1).contiguous(),
        weight,
        window,
    )
    return y_NRLV.view(q_BHLP.shape[0], -1, q_BHLP.shape[2], v_BGSV.shape[3]).to(q_BHLP.dtype)


def _one_query(q_BJRMP: Tensor, k_BJMSP: Tensor, v_BGSV: Tensor, weight: Tensor | None) -> Tensor:
    """One query a head, which sees all keys: (B, H / M, 1, V). Reads the cache where it lies."""
    with without_autocast(q_BJRMP):
        maps_BJMRS = (q_BJRMP.transpose(2, 3) @ k_BJMSP.transpose(3, 4)).softmax(-1)
        map_BJRS = maps_BJMRS[:, :, 0] if weight is None else maps_BJMRS[:, :, 0] + weight * maps_BJMRS[:, :, 1]
        y_BGRV = map_BJRS.flatten(1, 2).unflatten(1, (v_BGSV.shape[1], -1)) @ v_BGSV
    return y_BGRV.flatten(1, 2).unsqueeze(2)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Queries [first, last) against the keys [0, sink) and [low, high), for some of the key heads.

    `hidden` are (columns of the scores, which of them a row does not see).
    """

    heads: slice
    first: int
    last: int
    sink: int
    low: int
    high: int
    hidden: tuple[tuple[slice, Tensor], ...]

    def rows(self, x_NRLP: Tensor, heads: slice) -> Tensor:
        """(n, C, P)."""
        return x_NRLP[heads, :, self.first : self.last].flatten(1, 2)

    def set_rows(self, x_NRLP: Tensor, heads: slice, rows_NCP: Tensor) -> None:
        x_NRLP[heads, :, self.first : self.last] = rows_NCP.unflatten(1, (-1, self.last - self.first))

    def keys(self, x_NSP: Tensor, heads: slice) -> Tensor:
        """(n, K, P)."""
        near_NKP = x_NSP[heads, self.low : self.high]
        return near_NKP if self.sink == 0 else torch.cat((x_NSP[heads, : self.sink], near_NKP), dim=1)

    def add_to_keys(self, x_NSP: Tensor, heads: slice, a_NCK: Tensor, b_NCP: Tensor) -> None:
        """Add the product a^T b to the keys of this block."""
        near_NKP = x_NSP[heads, self.low : self.high]
        if self.sink == 0:
            near_NKP.baddbmm_(a_NCK.transpose(1, 2), b_NCP)
        else:
            product_NKP = torch.bmm(a_NCK.transpose(1, 2), b_NCP)
            x_NSP[heads, : self.sink] += product_NKP[:, : self.sink]
            near_NKP += product_NKP[:, self.sink :]

    def softmax(self, q_NCP: Tensor, k_NKP: Tensor) -> Tensor:
        """(n, C, K)."""
        scores_NCK = torch.bmm(q_NCP, k_NKP.transpose(1, 2))
        scores_NRQK = scores_NCK.unflatten(1, (-1, self.last - self.first))
        for columns, hidden_QK in self.hidden:
            scores_NRQK[..., columns].masked_fill_(hidden_QK, -torch.inf)
        return scores_NCK.softmax(-1)


def _blocks(n_heads: int, rows_per_query: int, n_queries: int, n_keys: int, window: WindowSpec | None) -> list[_Block]:
    """All the work, `rows_per_query` being the query heads of a key head."""
    # A block's keys are those that any of its rows sees: under a narrow window, wide blocks would be mostly masked.
    size = 64 if window is None or window.size > 128 else 32
    past = n_keys - n_queries
    later_QQ = torch.ones(size, size, dtype=torch.bool).triu_(1)
    blocks: list[_Block] = []
    for first in range(0, n_queries, size):
        last = min(first + size, n_queries)
        n_rows, high = last - first, past + last
        low = 0 if window is None else max(0, past + first - window.size + 1)
        sink = 0 if window is None else min(window.sink, low)
        width = sink + high - low
        hidden = [(slice(width - n_rows, width), later_QQ[:n_rows, :n_rows])]
        if window is not None and low < high - window.size:
            row_Q1 = torch.arange(past + first, high).unsqueeze(1)
            key_K = torch.arange(low, high - window.size)
            left_QK = (key_K <= row_Q1 - window.size) & (key_K >= window.sink)
            hidden.append((slice(sink, sink + high - window.size - low), left_QK))
        together = max(1, _BLOCK_ELEMENTS // (rows_per_query * n_rows * width))
        blocks += [
            _Block(
                heads=slice(head, min(head + together, n_heads)),
                first=first,
                last=last,
                sink=sink,
                low=low,
                high=high,
                hidden=tuple(hidden),
            )
            for head in range(0, n_heads, together)
        ]
    return blocks


class _RowBlocks(torch.autograd.Function):
    """Queries (M, N, R, L, P), scaled; keys (M, N, S, P); values (N U, S, V), U to a key head: (N U, R / U, L, V)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        q_MNRLP: Tensor,
        k_MNSP: Tensor,
        v_NSV: Tensor,
        weight: Tensor | None,
        window: WindowSpec | None,
    ) -> Tensor:
        _, n_heads, n_rows, n_queries, _ = q_MNRLP.shape
        n_values = v_NSV.shape[0] // n_heads
        blocks = _blocks(n_heads, n_rows, n_queries, k_MNSP.shape[2], window)
        ctx.save_for_backward(q_MNRLP, k_MNSP, v_NSV, weight)  # type: ignore[arg-type]
        ctx.blocks = blocks  # type: ignore[attr-defined]
        y_NRLV = q_MNRLP.new_empty(v_NSV.shape[0], n_rows // n_values, n_queries, v_NSV.shape[2])
        with without_autocast(q_MNRLP):
            for block in blocks:
                of_values = slice(block.heads.start * n_values, block.heads.stop * n_values)
                map_MNCK = [
                    block.softmax(block.rows(q_NRLP, block.heads), block.keys(k_NSP, block.heads))
                    for q_NRLP, k_NSP in zip(q_MNRLP, k_MNSP, strict=True)
                ]
                mixed_NCK = map_MNCK[0] if weight is None else map_MNCK[0].addcmul_(map_MNCK[1], weight)
                mixed_NCK = mixed_NCK.view(of_values.stop - of_values.start, -1, mixed_NCK.shape[2])
                block.set_rows(y_NRLV, of_values, torch.bmm(mixed_NCK, block.keys(v_NSV, of_values)))
        return y_NRLV

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, dy_NRLV: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q_MNRLP, k_MNSP, v_NSV, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        n_values = v_NSV.shape[0] // k_MNSP.shape[1]
        dq_MNRLP, dk_MNSP, dv_NSV = torch.empty_like(q_MNRLP), torch.zeros_like(k_MNSP), torch.zeros_like(v_NSV)
        dweight: Tensor | None = None if weight is None else torch.zeros_like(weight)
        with without_autocast(dy_NRLV):
            for block in ctx.blocks:  # type: ignore[attr-defined]
                heads = block.heads
                of_values = slice(heads.start * n_values, heads.stop * n_values)
                q_MNCP = [block.rows(q_NRLP, heads) for q_NRLP in q_MNRLP]
                k_MNKP = [block.keys(k_NSP, heads) for k_NSP in k_MNSP]
                map_MNCK = [block.softmax(q_NCP, k_NKP) for q_NCP, k_NKP in zip(q_MNCP, k_MNKP, strict=True)]
                mixed_NCK = map_MNCK[0] if weight is None else torch.addcmul(map_MNCK[0], map_MNCK[1], weight)
                dy_NCV = block.rows(dy_NRLV, of_values)
                by_value = (of_values.stop - of_values.start, -1, mixed_NCK.shape[2])
                block.add_to_keys(dv_NSV, of_values, mixed_NCK.view(by_value), dy_NCV)
                dmap_NCK = torch.bmm(dy_NCV, block.keys(v_NSV, of_values).transpose(1, 2)).view_as(mixed_NCK)
                for m, map_NCK in enumerate(map_MNCK):
                    # In one pass, p (dp - sum(p dp)): autograd's own backward of softmax, which has no public name.
                    dscores_NCK = torch.ops.aten._softmax_backward_data(dmap_NCK, map_NCK, -1, map_NCK.dtype)
                    if m == 1 and dweight is not None:
                        dscores_NCK.mul_(weight)
                        dweight += torch.dot(dmap_NCK.flatten(), map_NCK.flatten())
                    block.set_rows(dq_MNRLP[m], heads, torch.bmm(dscores_NCK, k_MNKP[m]))
                    block.add_to_keys(dk_MNSP[m], heads, dscores_NCK, q_MNCP[m])
        return dq_MNRLP, dk_MNSP, dv_NSV, dweight, None
