"""The causal depthwise convolution through the package causal-conv1d: the fused path of `hybrid.ops.conv`.

Shapes: B batch, L length, C channels, T taps (d_conv).
"""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

# Elements that the kernel reads at once.
_ALIGNMENT = 8


def takes(x_BLC: Tensor, weight_CT: Tensor) -> bool:
    """Whether the package has a kernel for this convolution."""
    channels, taps = weight_CT.shape
    return (
        x_BLC.dtype in (torch.bfloat16, torch.float16, torch.float32) and 2 <= taps <= 4 and channels % _ALIGNMENT == 0
    )


def fused_causal_conv(x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, *, silu: bool) -> Tensor:
    """`hybrid.ops.conv.causal_conv`, or with `silu` `causal_conv_silu`: summed in float32, in the dtype of x."""
    y_BCL: Tensor = _package().causal_conv1d_fn(
        _aligned(x_BLC).transpose(1, 2), weight_CT, bias_C, activation="silu" if silu else None
    )
    return y_BCL.transpose(1, 2)


def _aligned(x_BLC: Tensor) -> Tensor:
    """The same, with channels side by side and every row where the kernel can read it in whole vectors."""
    batch_stride, row_stride, channel_stride = x_BLC.stride()
    strides_fit = channel_stride == 1 and row_stride % _ALIGNMENT == 0 and batch_stride % _ALIGNMENT == 0
    if strides_fit and row_stride > 0 and x_BLC.storage_offset() % _ALIGNMENT == 0:
        return x_BLC
    # Not `contiguous`, which leaves the strides of dimensions of size 1 as they are.
    return x_BLC.clone(memory_format=torch.contiguous_format)


@cache
def _package() -> ModuleType:
    return import_module("causal_conv1d")
