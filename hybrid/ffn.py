"""Feed-forward networks.

Shapes: B batch, L length, D d_model; of experts: T tokens, K chosen for a token, N = T K, E routed experts.
"""

from typing import Any, assert_never, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.init import Initializer
from hybrid.linear import Linear
from hybrid.ops.precision import compute_dtype, without_autocast
from hybrid.ops.swiglu import experts_swiglu, relu2, swiglu
from hybrid.spec import FfnSpec, MoeSpec, Relu2Spec, SwigluSpec


@final
class Swiglu(nn.Module):
    """W_down (silu(W_gate x) * W_up x), Shazeer 2020; gate and up are one projection, in that order."""

    def __init__(self, spec: SwigluSpec, d_model: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(d_model, 2 * spec.d_ffn)
        self.down_proj = Linear(spec.d_ffn, d_model)

    def init_weights(self, init: Initializer) -> None:
        init.matrix(self.gate_up_proj.weight)
        init.residual(self.down_proj.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return swiglu(x_BLD, self.gate_up_proj.weight, self.down_proj.weight)


@final
class Relu2(nn.Module):
    """W_down relu(W_up x)^2, So et al. 2021."""

    def __init__(self, spec: Relu2Spec, d_model: int) -> None:
        super().__init__()
        self.up_proj = Linear(d_model, spec.d_ffn)
        self.down_proj = Linear(spec.d_ffn, d_model)

    def init_weights(self, init: Initializer) -> None:
        init.matrix(self.up_proj.weight)
        init.residual(self.down_proj.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return relu2(x_BLD, self.up_proj.weight, self.down_proj.weight)


@final
class Moe(nn.Module):
    """Shared experts, which see every token, plus the best of the routed ones; no token is dropped.

    `expert_bias` has a part in the choice of experts alone. It is a buffer: `balance` moves it, no gradient does.
    """

    expert_bias: Tensor

    def __init__(self, spec: MoeSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.router = Linear(d_model, spec.n_experts)
        self.experts_gate_up = nn.Parameter(torch.empty(spec.n_experts, 2 * spec.d_ffn, d_model))
        self.experts_down = nn.Parameter(torch.empty(spec.n_experts, d_model, spec.d_ffn))
        self.shared = Swiglu(SwigluSpec(d_ffn=spec.n_shared * spec.d_ffn), d_model) if spec.n_shared else None
        self.register_buffer("expert_bias", torch.zeros(spec.n_experts, dtype=torch.float32))

    def init_weights(self, init: Initializer) -> None:
        init.matrix(self.router.weight)
        init.matrix(self.experts_gate_up)
        init.residual(self.experts_down)
        init.constant(self.expert_bias, 0.0)
        if self.shared is not None:
            self.shared.init_weights(init)

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs, and how many tokens each routed expert was given: (E,), whole numbers."""
        x_TD = x_BLD.flatten(0, -2)
        chosen_TK, weight_TK = self._route(x_TD)
        chosen_N = chosen_TK.flatten()
        load_E = chosen_N.new_zeros(self.spec.n_experts).scatter_add_(0, chosen_N, torch.ones_like(chosen_N))
        order_N = chosen_N.argsort(stable=True)
        place_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))

        sorted_ND = _Pick.apply(x_TD, order_N // self.spec.top_k, place_N)
        counts = self._counts(load_E, len(order_N))
        y_ND = experts_swiglu(sorted_ND, self.experts_gate_up, self.experts_down, counts)
        y_TKD = _Pick.apply(y_ND, place_N, order_N).unflatten(0, (-1, self.spec.top_k))
        # The sum is made in the weights' precision, then in that of the experts.
        y_BLD = (y_TKD * weight_TK.unsqueeze(-1)).sum(1).to(y_ND.dtype).view(x_BLD.shape)
        return (y_BLD if self.shared is None else y_BLD + self.shared(x_BLD)), load_E

    @torch.no_grad()
    def balance(self, load_E: Tensor) -> None:
        """Move every expert's bias by one step towards the mean load (Wang et al. 2024, Algorithm 1)."""
        load_E = load_E.to(self.expert_bias)
        self.expert_bias += self.spec.bias_step * torch.sign(load_E.mean() - load_E)

    def _route(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen experts and their weights, of which only the latter have a gradient."""
        dtype = compute_dtype(x_TD.dtype)
        with without_autocast(x_TD):
            score_TE = F.linear(x_TD.to(dtype), self.router.weight.to(dtype)).sigmoid()
        chosen_TK = (score_TE.detach() + self.expert_bias).topk(self.spec.top_k, dim=-1).indices
        weight_TK = score_TE.gather(1, chosen_TK)
        if self.spec.top_k > 1:  # divided by itself, a single score would be 1, and the router without a gradient
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + torch.finfo(dtype).tiny)
        return chosen_TK, weight_TK

    def _counts(self, load_E: Tensor, n: int) -> list[int]:
        """The loads as numbers; on the meta device, where there are none, even ones: the same sum of work."""
        if load_E.is_meta:
            even, left = divmod(n, self.spec.n_experts)
            return [even + (expert < left) for expert in range(self.spec.n_experts)]
        counts: list[int] = load_E.tolist()
        return counts


Ffn = Swiglu | Relu2 | Moe


def build_ffn(spec: FfnSpec, d_model: int) -> Ffn:
    """The module of a spec, its parameters not yet set."""
    match spec:
        case SwigluSpec():
            return Swiglu(spec, d_model)
        case Relu2Spec():
            return Relu2(spec, d_model)
        case MoeSpec():
            return Moe(spec, d_model)
        case _:
            assert_never(spec)


@final
class _Pick(torch.autograd.Function):
    """Rows in another order, each of them the same number of times.

    `index_N` says which row stands where, `place_N` where the copies of row 0 stand, then those of row 1, and so on.
    The gradient is picked too, not scattered: so its sums have one order, and it takes half the time.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, index_N: Tensor, place_N: Tensor) -> Tensor:
        ctx.save_for_backward(place_N)
        ctx.n_rows = len(x_TD)
        return x_TD.index_select(0, index_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place_N,) = ctx.saved_tensors
        grad_ND = grads[0].index_select(0, place_N)
        one_each = len(grad_ND) == ctx.n_rows
        return (grad_ND if one_each else grad_ND.view(ctx.n_rows, -1, grad_ND.shape[1]).sum(1)), None, None
