"""SwiGLU and the squared ReLU between their two projections, with backwards of their own for the CPU.

Autograd would copy what it joins: the gradients of gate and up, of every expert's tokens and of every expert's
weights. Here each gradient is written once, where it belongs. Gate and up are two products, for passes over
contiguous rows are faster.

Shapes: B batch, L length, N tokens of all experts, C tokens of one, E experts, D d_model, F d_ffn, G = 2 F.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid.linear import product
from hybrid.ops.precision import without_autocast

# The floats that PyTorch's elementwise loops take at once, at most: a remainder has the scalar exponential, of other
# bits. In rows of whole such steps it is the same whether gate and up are halves of a row or rows of their own.
_STEP = 32


def swiglu_naive(x_BLD: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
    """W_down (silu(W_gate x) * W_up x), the formula: the reference, and the form wherever the other is not."""
    gate_BLF, up_BLF = product(x_BLD, gate_up_GD).chunk(2, dim=-1)
    return product(F.silu(gate_BLF) * up_BLF, down_DF)


def experts_swiglu_naive(x_ND: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, counts: list[int]) -> Tensor:
    """`swiglu_naive` with the weights of expert e at the next `counts[e]` tokens; some expert has tokens."""
    # unbind and not indexing: its backward fills the gradient of all experts once, not once for each.
    weights = zip(x_ND.split(counts), gate_up_EGD.unbind(), down_EDF.unbind(), strict=True)
    return torch.cat([swiglu_naive(x_CD, gate_up_GD, down_DF) for x_CD, gate_up_GD, down_DF in weights if len(x_CD)])


def swiglu(x_BLD: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
    """`swiglu_naive`; differentiable once.

    In float32 to the bit: on one thread always, on several where each has whole steps of the rows.
    """
    if not (_has_own_backward(x_BLD) and _is_whole_steps(down_DF)):
        return swiglu_naive(x_BLD, gate_up_GD, down_DF)
    x_ND = x_BLD.flatten(0, -2)
    y_ND: Tensor = _Swiglu.apply(x_ND, gate_up_GD.unsqueeze(0), down_DF.unsqueeze(0), [len(x_ND)])
    return y_ND.view(x_BLD.shape)


def experts_swiglu(x_ND: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, counts: list[int]) -> Tensor:
    """`experts_swiglu_naive`, with the promise of `swiglu`; differentiable once."""
    if not (_has_own_backward(x_ND) and _is_whole_steps(down_EDF)):
        return experts_swiglu_naive(x_ND, gate_up_EGD, down_EDF, counts)
    y_ND: Tensor = _Swiglu.apply(x_ND, gate_up_EGD, down_EDF, counts)
    return y_ND


def relu2_naive(x_BLD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """W_down relu(W_up x)^2, the formula: the reference, and the form wherever the other is not."""
    return F.linear(F.relu(F.linear(x_BLD, up_FD)).square(), down_DF)


def relu2(x_BLD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """`relu2_naive`, to the bit; differentiable once."""
    if not _has_own_backward(x_BLD):
        return relu2_naive(x_BLD, up_FD, down_DF)
    y_ND: Tensor = _Relu2.apply(x_BLD.flatten(0, -2), up_FD, down_DF)
    return y_ND.view(x_BLD.shape)


def _has_own_backward(x_BLD: Tensor) -> bool:
    """On the CPU, for a gradient, and where autocast leaves the dtype of the products to their operands."""
    return x_BLD.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _is_whole_steps(down_DF: Tensor) -> bool:
    return down_DF.shape[-1] % _STEP == 0


class _Swiglu(torch.autograd.Function):
    """Of experts at consecutive tokens. All products are into `out`, which autocast leaves alone in backward too."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_ND: Tensor,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        counts: list[int],
    ) -> Tensor:
        gate_EFD, up_EFD = gate_up_EGD.chunk(2, dim=1)
        gate_NF, up_NF, mixed_NF = (x_ND.new_empty(len(x_ND), down_EDF.shape[2]) for _ in range(3))
        y_ND = x_ND.new_empty(x_ND.shape)
        for e, c in _spans(counts):
            torch.mm(x_ND[c], gate_EFD[e].t(), out=gate_NF[c])
            torch.mm(x_ND[c], up_EFD[e].t(), out=up_NF[c])
            torch.ops.aten.silu.out(gate_NF[c], out=mixed_NF[c]).mul_(up_NF[c])
            torch.mm(mixed_NF[c], down_EDF[e].t(), out=y_ND[c])
        ctx.save_for_backward(x_ND, gate_up_EGD, down_EDF, gate_NF, up_NF, mixed_NF)
        ctx.counts = counts  # type: ignore[attr-defined]
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_ND, gate_up_EGD, down_EDF, gate_NF, up_NF, mixed_NF = ctx.saved_tensors  # type: ignore[attr-defined]
        dgate_NF, dup_NF, dx_ND = (torch.empty_like(of) for of in (gate_NF, up_NF, x_ND))
        dgate_up_EGD, ddown_EDF = torch.empty_like(gate_up_EGD), torch.empty_like(down_EDF)
        gate_EFD, up_EFD = gate_up_EGD.chunk(2, dim=1)
        dgate_EFD, dup_EFD = dgate_up_EGD.chunk(2, dim=1)
        for e, c in _spans(ctx.counts):  # type: ignore[attr-defined]
            torch.mm(dy_ND[c].t(), mixed_NF[c], out=ddown_EDF[e])
            dmixed_CF = torch.mm(dy_ND[c], down_EDF[e], out=dgate_NF[c])  # until it is the gradient of the gate
            torch.ops.aten.silu.out(gate_NF[c], out=dup_NF[c]).mul_(dmixed_CF)
            dmixed_CF.mul_(up_NF[c])
            torch.ops.aten.silu_backward.grad_input(dmixed_CF, gate_NF[c], grad_input=dmixed_CF)
            torch.mm(dgate_NF[c], gate_EFD[e], out=dx_ND[c]).addmm_(dup_NF[c], up_EFD[e])
            torch.mm(dgate_NF[c].t(), x_ND[c], out=dgate_EFD[e])
            torch.mm(dup_NF[c].t(), x_ND[c], out=dup_EFD[e])
        return dx_ND, dgate_up_EGD, ddown_EDF, None


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_ND: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        relu_NF = (x_ND @ up_FD.t()).relu_()
        square_NF = relu_NF.square()
        ctx.save_for_backward(x_ND, up_FD, down_DF, relu_NF, square_NF)
        return square_NF @ down_DF.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, dy_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_ND, up_FD, down_DF, relu_NF, square_NF = ctx.saved_tensors  # type: ignore[attr-defined]
        with without_autocast(dy_ND):
            dup_NF = (dy_ND @ down_DF).mul_(relu_NF).mul_(2)
            return dup_NF @ up_FD, dup_NF.t() @ x_ND, dy_ND.t() @ square_NF


def _spans(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """Each expert and its tokens; one without tokens too, whose products are zeros."""
    end = 0
    for expert, count in enumerate(counts):
        start, end = end, end + count
        yield expert, slice(start, end)
