"""Causal depthwise convolution over time, alone or followed by SiLU as in Mamba.

Done as `taps` shifted multiply-adds in (batch, length, channel) order: on the CPU several times faster than
`conv1d`, which needs the channels before the length and treats each as a convolution of its own.

Shapes: B batch, L length, C channels, T taps (d_conv). Tap T - 1 meets the present position, tap 0 the
oldest.
"""

from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid.ops.fused_conv import fused_causal_conv, takes
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.precision import compute_dtype


def causal_conv_naive(x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, *, state_BTC: Tensor | None = None) -> Tensor:
    """The reference, through `conv1d`; `state_BTC` are the T - 1 inputs before x (zeros unless given)."""
    taps = weight_CT.shape[1]
    if state_BTC is None:
        state_BTC = x_BLC.new_zeros(x_BLC.shape[0], taps - 1, x_BLC.shape[2])
    past_BCL = torch.cat((state_BTC, x_BLC), dim=1).transpose(1, 2)
    return F.conv1d(past_BCL, weight_CT.unsqueeze(1), bias_C, groups=x_BLC.shape[2]).transpose(1, 2)


def causal_conv_silu_naive(
    x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, *, state_BTC: Tensor | None = None
) -> Tensor:
    """SiLU of `causal_conv_naive`."""
    return F.silu(causal_conv_naive(x_BLC, weight_CT, bias_C, state_BTC=state_BTC))


def causal_conv(x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, *, kernels: Kernels = TORCH) -> Tensor:
    """The causal convolution, from a past of zeros; differentiable once.

    Computed in float32 at least, in the dtype of x at the end.
    """
    if _is_fused(x_BLC, weight_CT, kernels):
        return fused_causal_conv(x_BLC, weight_CT, bias_C, silu=False)
    dtype = compute_dtype(x_BLC.dtype)
    y_BLC: Tensor = _CausalConv.apply(x_BLC.to(dtype), weight_CT.to(dtype), bias_C.to(dtype))
    return y_BLC.to(x_BLC.dtype)


def causal_conv_silu(x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, *, kernels: Kernels = TORCH) -> Tensor:
    """SiLU of the causal convolution, from a past of zeros; differentiable once.

    Computed in float32 at least, in the dtype of x at the end.
    """
    if _is_fused(x_BLC, weight_CT, kernels):
        return fused_causal_conv(x_BLC, weight_CT, bias_C, silu=True)
    dtype = compute_dtype(x_BLC.dtype)
    y_BLC: Tensor = _CausalConvSilu.apply(x_BLC.to(dtype), weight_CT.to(dtype), bias_C.to(dtype))
    return y_BLC.to(x_BLC.dtype)


def causal_conv_step(
    x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, state_BTC: Tensor, *, kernels: Kernels = TORCH
) -> tuple[Tensor, Tensor]:
    """Continue after the T - 1 inputs in `state_BTC`: outputs for x, and the state after it."""
    past_BLC, state_BTC = _continued(x_BLC, weight_CT, state_BTC)
    if _is_one_position(x_BLC, past_BLC, weight_CT, kernels):
        return _at_the_last(past_BLC, weight_CT, bias_C), state_BTC
    return causal_conv(past_BLC, weight_CT, bias_C, kernels=kernels)[:, weight_CT.shape[1] - 1 :], state_BTC


def causal_conv_silu_step(
    x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, state_BTC: Tensor, *, kernels: Kernels = TORCH
) -> tuple[Tensor, Tensor]:
    """`causal_conv_step` with SiLU."""
    past_BLC, state_BTC = _continued(x_BLC, weight_CT, state_BTC)
    if _is_one_position(x_BLC, past_BLC, weight_CT, kernels):
        return F.silu(_at_the_last(past_BLC, weight_CT, bias_C)), state_BTC
    return causal_conv_silu(past_BLC, weight_CT, bias_C, kernels=kernels)[:, weight_CT.shape[1] - 1 :], state_BTC


def _is_fused(x_BLC: Tensor, weight_CT: Tensor, kernels: Kernels) -> bool:
    match kernels.conv:
        case "causal_conv1d":
            return takes(x_BLC, weight_CT)
        case "torch":
            return False
        case _:
            assert_never(kernels.conv)


def _is_one_position(x_BLC: Tensor, past_BLC: Tensor, weight_CT: Tensor, kernels: Kernels) -> bool:
    """Whether it is a step of decoding that PyTorch takes, in the dtype that it computes in."""
    plain = x_BLC.shape[1] == 1 and not torch.is_grad_enabled() and x_BLC.dtype == compute_dtype(x_BLC.dtype)
    return plain and not _is_fused(past_BLC, weight_CT, kernels)


def _at_the_last(past_BTC: Tensor, weight_CT: Tensor, bias_C: Tensor) -> Tensor:
    """The convolution at the last of T positions alone, (B, 1, C): the same sum in the same order."""
    taps, weight_TC = weight_CT.shape[1], weight_CT.to(past_BTC.dtype).t().contiguous()
    conv_B1C = torch.addcmul(bias_C.to(past_BTC.dtype), past_BTC[:, -1:], weight_TC[-1])
    for tap in range(taps - 2, -1, -1):
        conv_B1C.addcmul_(past_BTC[:, tap : tap + 1], weight_TC[tap])
    return conv_B1C


def _continued(x_BLC: Tensor, weight_CT: Tensor, state_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs from the state's first on, and the state after them."""
    past_BLC = torch.cat((state_BTC.to(x_BLC.dtype), x_BLC), dim=1)
    return past_BLC, past_BLC[:, past_BLC.shape[1] - (weight_CT.shape[1] - 1) :].to(state_BTC.dtype)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor) -> Tensor:
        weight_TC = weight_CT.t().contiguous()
        ctx.save_for_backward(x_BLC, weight_TC)
        return _convolved(x_BLC, weight_TC, bias_C)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BLC, weight_TC = ctx.saved_tensors  # type: ignore[attr-defined]
        return _conv_grads(dy_BLC, x_BLC, weight_TC)


class _CausalConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor) -> Tensor:
        weight_TC = weight_CT.t().contiguous()
        conv_BLC = _convolved(x_BLC, weight_TC, bias_C)
        ctx.save_for_backward(x_BLC, weight_TC, conv_BLC)
        return F.silu(conv_BLC)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BLC, weight_TC, conv_BLC = ctx.saved_tensors  # type: ignore[attr-defined]
        return _conv_grads(torch.ops.aten.silu_backward(dy_BLC, conv_BLC), x_BLC, weight_TC)


def _convolved(x_BLC: Tensor, weight_TC: Tensor, bias_C: Tensor) -> Tensor:
    length, taps = x_BLC.shape[1], weight_TC.shape[0]
    conv_BLC = torch.addcmul(bias_C, x_BLC, weight_TC[-1])
    for shift in range(1, min(taps, length)):
        conv_BLC[:, shift:].addcmul_(x_BLC[:, : length - shift], weight_TC[taps - 1 - shift])
    return conv_BLC


def _conv_grads(dconv_BLC: Tensor, x_BLC: Tensor, weight_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, of the weight (C, T) and of the bias."""
    length, taps = x_BLC.shape[1], weight_TC.shape[0]
    dx_BLC = dconv_BLC * weight_TC[-1]
    dweight_TC = torch.zeros_like(weight_TC)
    torch.sum(dconv_BLC * x_BLC, (0, 1), out=dweight_TC[-1])
    for shift in range(1, min(taps, length)):
        later_BLC, earlier_BLC = dconv_BLC[:, shift:], x_BLC[:, : length - shift]
        dx_BLC[:, : length - shift].addcmul_(later_BLC, weight_TC[taps - 1 - shift])
        torch.sum(later_BLC * earlier_BLC, (0, 1), out=dweight_TC[taps - 1 - shift])
    return dx_BLC, dweight_TC.t(), dconv_BLC.sum((0, 1))
