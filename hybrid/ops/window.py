"""Causal softmax attention that may be limited to a window and a sink: the reference, and the blocked form.

The L queries are those of the last L of the S keys' positions. Row i sees the keys i - size + 1 to i, and
the first `sink` keys. Keys that no query sees any more may be missing between the sink and the others.

Shapes: B batch, L queries, S keys, H query heads, J key heads, G value heads (J divides G divides H), P head_dim,
V value head_dim, X blocks of W queries (W the window's size), N = B X, K keys of a block (sink + 2 W).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.ops.precision import compute_dtype
from hybrid.spec import WindowSpec


def visible(n_queries: int, n_keys: int, window: WindowSpec | None, device: torch.device) -> Tensor:
    """Which keys each query sees: (L, S), boolean."""
    row_L1 = torch.arange(n_keys - n_queries, n_keys, device=device).unsqueeze(1)
    key_S = torch.arange(n_keys, device=device)
    causal_LS = key_S <= row_L1
    return causal_LS if window is None else causal_LS & _in_window(row_L1, key_S, window)


def _in_window(row: Tensor, key: Tensor, window: WindowSpec) -> Tensor:
    """Whether a key that is not after the row's own position is in its window or in the sink."""
    return (key > row - window.size) | (key < window.sink)


def attention_naive(
    q_BHLP: Tensor, k_BJSP: Tensor, v_BGSV: Tensor, *, window: WindowSpec | None = None, scale: float | None = None
) -> Tensor:
    """The reference: a masked softmax over all keys, in float32 at least. (B, H, L, V)."""
    dtype, n_heads, head_dim = compute_dtype(q_BHLP.dtype), q_BHLP.shape[1], q_BHLP.shape[3]
    k_BHSP, v_BHSV = (repeat_heads(x.to(dtype), n_heads) for x in (k_BJSP, v_BGSV))
    scores_BHLS = q_BHLP.to(dtype) @ k_BHSP.transpose(2, 3) * (head_dim**-0.5 if scale is None else scale)
    seen_LS = visible(q_BHLP.shape[2], k_BJSP.shape[2], window, q_BHLP.device)
    return (scores_BHLS.masked_fill(~seen_LS, -torch.inf).softmax(-1) @ v_BHSV).to(q_BHLP.dtype)


def windowed_sdpa(
    q_BHLP: Tensor, k_BJSP: Tensor, v_BGSV: Tensor, *, window: WindowSpec, scale: float | None = None
) -> Tensor:
    """A window through PyTorch's fused attention, on any device: (B, H, L, V).

    A whole sequence longer than sink + 2 W is cut into blocks of W queries, each against the sink, the block before
    its own and its own; anything else is one call with a mask.
    """
    n_heads, length, n_keys = q_BHLP.shape[1], q_BHLP.shape[2], k_BJSP.shape[2]
    # Fused kernels take heads in groups, or a mask, but not both.
    k_BHSP, v_BHSV = repeat_heads(k_BJSP, n_heads), repeat_heads(v_BGSV, n_heads)
    if length != n_keys or length <= window.sink + 2 * window.size:
        seen_LS = visible(length, n_keys, window, q_BHLP.device)
        return F.scaled_dot_product_attention(q_BHLP, k_BHSP, v_BHSV, attn_mask=seen_LS, scale=scale)
    n_blocks = -(-length // window.size)
    padding = n_blocks * window.size - length
    blocks = (n_blocks, window.size)
    q_NHWP = F.pad(q_BHLP, (0, 0, 0, padding)).unflatten(2, blocks).transpose(1, 2).flatten(0, 1)
    k_NHKP, v_NHKV = (_key_blocks(x, window, n_blocks, padding) for x in (k_BHSP, v_BHSV))
    seen_N1WK = _visible_in_blocks(window, n_blocks, q_BHLP.device).repeat(q_BHLP.shape[0], 1, 1).unsqueeze(1)
    y_NHWV = F.scaled_dot_product_attention(q_NHWP, k_NHKP, v_NHKV, attn_mask=seen_N1WK, scale=scale)
    return y_NHWV.unflatten(0, (-1, n_blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def _key_blocks(x_BHSP: Tensor, window: WindowSpec, n_blocks: int, padding: int) -> Tensor:
    """[sink | previous block | own block] for every block: (B * n_blocks, H, K, P)."""
    blocks_BHXWP = F.pad(x_BHSP, (0, 0, window.size, padding)).unflatten(2, (n_blocks + 1, window.size))
    sink_BHXSP = x_BHSP[:, :, None, : window.sink].expand(-1, -1, n_blocks, -1, -1)
    keys_BHXKP = torch.cat((sink_BHXSP, blocks_BHXWP[:, :, :-1], blocks_BHXWP[:, :, 1:]), dim=3)
    return keys_BHXKP.transpose(1, 2).flatten(0, 1)


def _visible_in_blocks(window: WindowSpec, n_blocks: int, device: torch.device) -> Tensor:
    """Which keys of its block each query sees: (n_blocks, W, K). A key of the sink counts once."""
    first_X11 = window.size * torch.arange(n_blocks, device=device)[:, None, None]
    row_XW1 = first_X11 + torch.arange(window.size, device=device)[:, None]
    near_X1K = first_X11 - window.size + torch.arange(2 * window.size, device=device)
    near_XWK = (near_X1K >= 0) & (near_X1K <= row_XW1) & (near_X1K > row_XW1 - window.size)
    sink_XWK = torch.arange(window.sink, device=device) <= row_XW1 - window.size
    return torch.cat((sink_XWK, near_XWK), dim=2)


def repeat_heads(x_BJSP: Tensor, n_heads: int) -> Tensor:
    """Keys or values once for every query head: (B, H, S, P)."""
    n_repeats = n_heads // x_BJSP.shape[1]
    return x_BJSP if n_repeats == 1 else x_BJSP.repeat_interleave(n_repeats, dim=1)
