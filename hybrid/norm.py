"""RMSNorm (Zhang & Sennrich 2019), plain and gated, each with its own backward: half the passes of autograd's.

Shapes: B batch, L length, D features, G groups of R features (D = G R).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid.ops.precision import compute_dtype, without_autocast


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32 at least."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model))

    def forward(self, x_BLD: Tensor) -> Tensor:
        dtype = compute_dtype(x_BLD.dtype)
        x, weight = x_BLD.to(dtype), self.weight.to(dtype)
        if torch.is_grad_enabled():
            y_BLD: Tensor = _RmsNorm.apply(x, weight, self.eps)
        else:  # as fast as it can be called: in decoding the call costs more than the sums
            y_BLD, _ = _rms_normed(x, weight, self.eps)
        return y_BLD.to(x_BLD.dtype)


class GatedRMSNorm(nn.Module):
    """RMSNorm of x * silu(z): gated before it is normalised, as in Mamba-2 (Dao & Gu 2024).

    With `n_groups` above 1 each of that many equal, consecutive parts has an RMS of its own; the weight is one vector
    either way.
    """

    def __init__(self, d_model: int, eps: float, *, n_groups: int = 1) -> None:
        super().__init__()
        self.eps = eps
        self.n_groups = n_groups
        self.weight = nn.Parameter(torch.empty(d_model))

    def forward(self, x_BLD: Tensor, z_BLD: Tensor) -> Tensor:
        dtype = compute_dtype(x_BLD.dtype)
        x, z, weight = x_BLD.to(dtype), z_BLD.to(dtype), self.weight.to(dtype)
        if self.n_groups > 1:
            x, z, weight = (t.unflatten(-1, (self.n_groups, -1)) for t in (x, z, weight))
        if torch.is_grad_enabled():
            y: Tensor = _GatedRmsNorm.apply(x, z, weight, self.eps)
        else:
            y, _ = _gated_rms_normed(x, z, weight, self.eps)
        return (y if self.n_groups == 1 else y.flatten(-2)).to(x_BLD.dtype)


def _inverse_rms(x_BLD: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps): (..., 1)."""
    norm = torch.linalg.vector_norm(x_BLD, dim=-1, keepdim=True)
    return norm.square_().div_(x_BLD.shape[-1]).add_(eps).rsqrt_()


def _rms_normed(x_BLD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised x, and what it was multiplied by: (..., 1)."""
    rrms_BL1 = _inverse_rms(x_BLD, eps)
    return (x_BLD * rrms_BL1).mul_(weight_D), rrms_BL1


def _gated_rms_normed(x_BLD: Tensor, z_BLD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    gated_BLD = F.silu(z_BLD).mul_(x_BLD)
    rrms_BL1 = _inverse_rms(gated_BLD, eps)
    return gated_BLD.mul_(rrms_BL1).mul_(weight_D), rrms_BL1


def _rms_norm_grads(dy_BLD: Tensor, x_BLD: Tensor, rrms_BL1: Tensor, weight_D: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight: with n = x rrms, dx = rrms (w dy - n mean(w dy n)).

    Either of (..., D) and (D), or of (..., G, R) and (G, R).
    """
    normed_BLD = x_BLD * rrms_BL1
    dyn_BLD = dy_BLD * normed_BLD
    dweight_D = dyn_BLD.flatten(0, -1 - weight_D.ndim).sum(0)
    if weight_D.ndim == 1:
        with without_autocast(dyn_BLD):
            mean_BL1 = (dyn_BLD @ weight_D).div_(-x_BLD.shape[-1]).unsqueeze(-1)
    else:
        mean_BL1 = (dyn_BLD * weight_D).sum(-1, keepdim=True).div_(-x_BLD.shape[-1])
    dx_BLD = torch.addcmul(dy_BLD * weight_D, normed_BLD, mean_BL1).mul_(rrms_BL1)
    return dx_BLD, dweight_D


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_BLD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        y_BLD, rrms_BL1 = _rms_normed(x_BLD, weight_D, eps)
        ctx.save_for_backward(x_BLD, weight_D, rrms_BL1)
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_BLD: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BLD, weight_D, rrms_BL1 = ctx.saved_tensors  # type: ignore[attr-defined]
        return *_rms_norm_grads(dy_BLD, x_BLD, rrms_BL1, weight_D), None


class _GatedRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x_BLD: Tensor, z_BLD: Tensor, weight_D: Tensor, eps: float
    ) -> Tensor:
        y_BLD, rrms_BL1 = _gated_rms_normed(x_BLD, z_BLD, weight_D, eps)
        ctx.save_for_backward(x_BLD, z_BLD, weight_D, rrms_BL1)
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BLD, z_BLD, weight_D, rrms_BL1 = ctx.saved_tensors  # type: ignore[attr-defined]
        # One exponential serves the gate and its slope: silu = z s, silu' = s + silu (1 - s), with s = sigmoid(z).
        sigmoid_BLD = torch.sigmoid(z_BLD)
        gate_BLD = z_BLD * sigmoid_BLD
        dgated_BLD, dweight_D = _rms_norm_grads(dy_BLD, x_BLD * gate_BLD, rrms_BL1, weight_D)
        slope_BLD = torch.addcmul(sigmoid_BLD, gate_BLD, 1.0 - sigmoid_BLD)
        return dgated_BLD * gate_BLD, slope_BLD.mul_(dgated_BLD).mul_(x_BLD), dweight_D, None
