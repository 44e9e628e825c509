"""Causal attention through flash-attn, and windows with a sink through PyTorch's FlexAttention.

The fused paths of `hybrid.ops.attention`. flash-attn (Dao 2023, arXiv 2307.08691) has causal attention and plain
windows; a sink beside the window is a mask that FlexAttention (Dong et al. 2024, arXiv 2412.05496) makes a kernel of.

Shapes: B batch, L length, H query heads, J key heads, G value heads (J divides G divides H), P head_dim, V value
head_dim.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from hybrid.ops.kernels import Kernels
from hybrid.ops.precision import without_autocast
from hybrid.ops.window import repeat_heads
from hybrid.spec import WindowSpec

_HALF = (torch.bfloat16, torch.float16)
_FLASH_ATTN_WIDEST_HEAD = 256
_FLEX_NARROWEST_HEAD = 16


def fused_attention(
    q_BHLP: Tensor,
    k_BJLP: Tensor,
    v_BGLV: Tensor,
    *,
    window: WindowSpec | None,
    scale: float | None,
    kernels: Kernels,
) -> Tensor | None:
    """`hybrid.ops.attention.attention` by the fused kernel that takes these tensors: (B, H, L, V), or None.

    Under autocast computed and returned in its dtype, as by PyTorch's own attention.
    """
    length, device = q_BHLP.shape[2], q_BHLP.device.type
    if (kernels.attention == "sdpa" and kernels.window == "blocked") or k_BJLP.shape[2] != length:
        return None
    if window is not None and length <= window.size + window.sink:
        window = None  # it hides nothing
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q_BHLP.dtype
    path = _path((q_BHLP.shape[3], v_BGLV.shape[3]), window, dtype, kernels)
    if path is None:
        return None
    q_BHLP, k_BJLP, v_BGLV = q_BHLP.to(dtype), k_BJLP.to(dtype), v_BGLV.to(dtype)
    k_BGLP = repeat_heads(k_BJLP, v_BGLV.shape[1])
    with without_autocast(q_BHLP):
        if path == "flash_attn":
            return flash_attention(q_BHLP, k_BGLP, v_BGLV, size=None if window is None else window.size, scale=scale)
        assert window is not None
        return flex_window_attention(q_BHLP, k_BGLP, v_BGLV, window=window, scale=scale)


def _path(
    head_dims: tuple[int, int], window: WindowSpec | None, dtype: torch.dtype, kernels: Kernels
) -> Literal["flash_attn", "flex"] | None:
    flash_attn = kernels.attention == "flash_attn" and dtype in _HALF and max(head_dims) <= _FLASH_ATTN_WIDEST_HEAD
    if flash_attn and (window is None or window.sink == 0):
        return "flash_attn"
    flex = kernels.window == "flex" and dtype != torch.float64 and min(head_dims) >= _FLEX_NARROWEST_HEAD
    return "flex" if flex and window is not None else None


def flash_attention(q_BHLP: Tensor, k_BGLP: Tensor, v_BGLV: Tensor, *, size: int | None, scale: float | None) -> Tensor:
    """Causal attention through flash-attn, in half precision; with `size`, to that many keys up to a query's own.

    It knows one width of heads. Where queries and values differ, the narrower are padded with zeros: these add
    nothing to a score, and make outputs that are cut off.
    """
    head_dim, value_head_dim = q_BHLP.shape[3], v_BGLV.shape[3]
    width = max(head_dim, value_head_dim)
    y_BLHP: Tensor = import_module("flash_attn").flash_attn_func(
        _padded(q_BHLP, width).transpose(1, 2),
        _padded(k_BGLP, width).transpose(1, 2),
        _padded(v_BGLV, width).transpose(1, 2),
        softmax_scale=head_dim**-0.5 if scale is None else scale,
        causal=True,
        # How far a query sees to the left and to the right of itself; -1 is without limit.
        window_size=(-1, -1) if size is None else (size - 1, 0),
    )
    return y_BLHP.transpose(1, 2)[..., :value_head_dim]


def _padded(x_BHLP: Tensor, width: int) -> Tensor:
    missing = width - x_BHLP.shape[3]
    return F.pad(x_BHLP, (0, missing)) if missing else x_BHLP


def flex_window_attention(
    q_BHLP: Tensor, k_BGLP: Tensor, v_BGLV: Tensor, *, window: WindowSpec, scale: float | None
) -> Tensor:
    """Attention to a window and a sink through FlexAttention, compiled at a process's first call."""
    y_BHLV: Tensor = _compiled_flex_attention()(
        q_BHLP,
        k_BGLP,
        v_BGLV,
        block_mask=block_mask(q_BHLP.shape[2], window, q_BHLP.device),
        scale=scale,
        enable_gqa=k_BGLP.shape[1] != q_BHLP.shape[1],
    )
    return y_BHLV


def mask_mod(window: WindowSpec) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`hybrid.ops.window.visible` of a whole sequence as FlexAttention wants it: a function of positions."""
    size, sink = window.size, window.sink

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((key > query - size) | (key < sink))

    return seen


@lru_cache(maxsize=16)
def block_mask(length: int, window: WindowSpec, device: torch.device) -> BlockMask:
    """Which blocks of keys each block of queries meets; the same for all batches and heads."""
    # Evaluation may be the first to ask, and tensors born in inference mode could not be used in training.
    with torch.inference_mode(False), torch.no_grad():
        return create_block_mask(mask_mod(window), None, None, length, length, device=device)


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled
