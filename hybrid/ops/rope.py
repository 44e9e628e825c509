"""Rotary position embedding (Su et al. 2021), with Llama 3's rescaling of low frequencies.

The rotate-half convention of Llama checkpoints: component i of a head is paired with component
i + P / 2, and the pair is a complex number turned by position * frequency_i.

Shapes: B batch, L length, H heads, P head_dim, F = P / 2 frequencies.
"""

import functools
import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid.ops.precision import compute_dtype
from hybrid.spec import Llama3RopeScalingSpec, RopeSpec


def rope_frequencies(spec: RopeSpec, head_dim: int) -> Tensor:
    """Radians per position of each pair of components: (P / 2,), float64, on the CPU."""
    exponents_F = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    frequencies_F = spec.theta**-exponents_F
    return frequencies_F if spec.scaling is None else _llama3_scaled(frequencies_F, spec.scaling)


def _llama3_scaled(frequencies_F: Tensor, scaling: Llama3RopeScalingSpec) -> Tensor:
    """Slow the frequencies that do not complete enough turns in the original context.

    At least `high_freq_factor` turns: unchanged. At most `low_freq_factor`: divided by `factor`. Between: linear in
    the number of turns (Llama 3.1 reference code, `apply_scaling`).
    """
    turns_F = scaling.original_seq_len * frequencies_F / (2 * math.pi)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    kept_F = ((turns_F - scaling.low_freq_factor) / width).clamp(0.0, 1.0)
    return frequencies_F * (kept_F + (1.0 - kept_F) / scaling.factor)


def rope_tables(
    spec: RopeSpec, head_dim: int, length: int, *, start: int = 0, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions [start, start + length): each (L, 1, P / 2), float32."""
    end = start + length
    cos_LF, sin_LF = _cached_tables(spec, head_dim, 1 << max(end - 1, 0).bit_length(), device)
    return cos_LF[start:end, None, :], sin_LF[start:end, None, :]


@functools.lru_cache(maxsize=16)
def _cached_tables(spec: RopeSpec, head_dim: int, n_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # Leaving inference mode: a table first asked for by an evaluation may be wanted in training next.
    with torch.inference_mode(False):
        positions_L = torch.arange(n_positions, dtype=torch.float64, device="cpu")
        angles_LF = torch.outer(positions_L, rope_frequencies(spec, head_dim))
        return angles_LF.cos().float().to(device), angles_LF.sin().float().to(device)


def apply_rope(x_BLHP: Tensor, cos_L1F: Tensor, sin_L1F: Tensor) -> Tensor:
    """Turn every head at every position by its angles; computed in float32 at least, in the dtype of x at the end."""
    dtype = compute_dtype(x_BLHP.dtype)
    x, cos_L1F, sin_L1F = x_BLHP.to(dtype), cos_L1F.to(dtype), sin_L1F.to(dtype)
    if torch.is_grad_enabled():
        rotated_BLHP: Tensor = _Rotate.apply(x, cos_L1F, sin_L1F)
    else:
        rotated_BLHP = _rotated(x, cos_L1F, sin_L1F, sign=1)
    return rotated_BLHP.to(x_BLHP.dtype)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_BLHP: Tensor, cos_L1F: Tensor, sin_L1F: Tensor) -> Tensor:
        ctx.save_for_backward(cos_L1F, sin_L1F)
        return _rotated(x_BLHP, cos_L1F, sin_L1F, sign=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_BLHP: Tensor) -> tuple[Tensor, None, None]:
        cos_L1F, sin_L1F = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rotated(dy_BLHP, cos_L1F, sin_L1F, sign=-1), None, None


def _rotated(x_BLHP: Tensor, cos_L1F: Tensor, sin_L1F: Tensor, *, sign: int) -> Tensor:
    """The rotation (sign 1) or its inverse (sign -1), which is also its transpose."""
    real_BLHF, imag_BLHF = x_BLHP.chunk(2, dim=-1)
    out_BLHP = torch.empty_like(x_BLHP, memory_format=torch.contiguous_format)
    out_real_BLHF, out_imag_BLHF = out_BLHP.chunk(2, dim=-1)
    torch.mul(real_BLHF, cos_L1F, out=out_real_BLHF).addcmul_(imag_BLHF, sin_L1F, value=-sign)
    torch.mul(imag_BLHF, cos_L1F, out=out_imag_BLHF).addcmul_(real_BLHF, sin_L1F, value=sign)
    return out_BLHP
