"""Causal depthwise convolution over time, followed by SiLU: Mamba's short convolution.

Done as `taps` shifted multiply-adds in (batch, length, channel) order: on the CPU several times faster than
`conv1d`, which needs the channels before the length and treats each as a convolution of its own.

Shapes: B batch, L length, C channels, T taps (d_conv). Tap T - 1 meets the present position, tap 0 the
oldest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid.ops.precision import compute_dtype


def causal_conv_silu_naive(
    x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, *, state_BTC: Tensor | None = None
) -> Tensor:
    """The reference, through `conv1d`; `state_BTC` are the T - 1 inputs before x (zeros unless given)."""
    taps = weight_CT.shape[1]
    if state_BTC is None:
        state_BTC = x_BLC.new_zeros(x_BLC.shape[0], taps - 1, x_BLC.shape[2])
    past_BCL = torch.cat((state_BTC, x_BLC), dim=1).transpose(1, 2)
    return F.silu(F.conv1d(past_BCL, weight_CT.unsqueeze(1), bias_C, groups=x_BLC.shape[2])).transpose(1, 2)


def causal_conv_silu(x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor) -> Tensor:
    """SiLU of the causal convolution, from a past of zeros; differentiable once.

    Computed in float32 at least, in the dtype of x at the end.
    """
    dtype = compute_dtype(x_BLC.dtype)
    y_BLC: Tensor = _CausalConvSilu.apply(x_BLC.to(dtype), weight_CT.to(dtype), bias_C.to(dtype))
    return y_BLC.to(x_BLC.dtype)


def causal_conv_silu_step(x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor, state_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """Continue after the T - 1 inputs in `state_BTC`: outputs for x, and the state after it."""
    taps = weight_CT.shape[1]
    past_BLC = torch.cat((state_BTC.to(x_BLC.dtype), x_BLC), dim=1)
    y_BLC = causal_conv_silu(past_BLC, weight_CT, bias_C)[:, taps - 1 :]
    return y_BLC, past_BLC[:, past_BLC.shape[1] - (taps - 1) :].to(state_BTC.dtype)


class _CausalConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_BLC: Tensor, weight_CT: Tensor, bias_C: Tensor) -> Tensor:
        length, taps = x_BLC.shape[1], weight_CT.shape[1]
        weight_TC = weight_CT.t().contiguous()
        conv_BLC = torch.addcmul(bias_C, x_BLC, weight_TC[-1])
        for shift in range(1, min(taps, length)):
            conv_BLC[:, shift:].addcmul_(x_BLC[:, : length - shift], weight_TC[taps - 1 - shift])
        ctx.save_for_backward(x_BLC, weight_TC, conv_BLC)
        return F.silu(conv_BLC)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BLC, weight_TC, conv_BLC = ctx.saved_tensors  # type: ignore[attr-defined]
        length, taps = x_BLC.shape[1], weight_TC.shape[0]
        dconv_BLC = torch.ops.aten.silu_backward(dy_BLC, conv_BLC)
        dx_BLC = dconv_BLC * weight_TC[-1]
        dweight_TC = torch.zeros_like(weight_TC)
        torch.sum(dconv_BLC * x_BLC, (0, 1), out=dweight_TC[-1])
        for shift in range(1, min(taps, length)):
            later_BLC, earlier_BLC = dconv_BLC[:, shift:], x_BLC[:, : length - shift]
            dx_BLC[:, : length - shift].addcmul_(later_BLC, weight_TC[taps - 1 - shift])
            torch.sum(later_BLC * earlier_BLC, (0, 1), out=dweight_TC[taps - 1 - shift])
        return dx_BLC, dweight_TC.t(), dconv_BLC.sum((0, 1))
