"""Mamba-2 (Dao & Gu 2024, section 7): projections, a short convolution, the SSD recurrence, a gated norm.

Shapes: B batch, L length, D d_model, I d_ssm (= H P), H heads, P head_dim, G groups, N d_state,
C = I + 2 G N convolved channels, T taps (d_conv), K = G N.
"""

import math
from dataclasses import dataclass
from typing import assert_never, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.init import Initializer
from hybrid.linear import Linear
from hybrid.mixers.base import Mixer
from hybrid.norm import GatedRMSNorm
from hybrid.ops.conv import causal_conv_silu, causal_conv_silu_step
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.precision import compute_dtype
from hybrid.ops.ssd import ssd
from hybrid.spec import Mamba2Spec


@final
@dataclass(frozen=True, kw_only=True)
class Mamba2State:
    """The last T - 1 inputs of the convolution, and the recurrent state (float32 at least)."""

    conv_BTC: Tensor
    ssm_BHPN: Tensor


@final
class Mamba2(Mixer[Mamba2State]):
    """The Mamba-2 mixer; one projection makes z, x, B, C and dt, in that order.

    Without `own_values` it makes no x: what the convolution takes in its place is given to `mix` and `step_mix`.
    Without `output` there is no output projection, and those two are all there is.
    """

    def __init__(
        self,
        spec: Mamba2Spec,
        d_model: int,
        *,
        norm_eps: float,
        ssd_chunk: int,
        output: bool = True,
        own_values: bool = True,
        kernels: Kernels = TORCH,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.ssd_chunk = ssd_chunk
        self.own_values = own_values
        self.kernels = kernels
        self.d_bc = spec.n_groups * spec.d_state
        self.d_conv_channels = spec.d_ssm + 2 * self.d_bc
        self.d_projected = self.d_conv_channels if own_values else 2 * self.d_bc
        self.in_proj = Linear(d_model, spec.d_ssm + self.d_projected + spec.n_heads)
        self.conv_weight = nn.Parameter(torch.empty(self.d_conv_channels, spec.d_conv))
        self.conv_bias = nn.Parameter(torch.empty(self.d_conv_channels))
        self.dt_bias = nn.Parameter(torch.empty(spec.n_heads))
        self.A_log = nn.Parameter(torch.empty(spec.n_heads))
        self.D = nn.Parameter(torch.empty(spec.n_heads))
        self.norm = _gated_norm(spec, norm_eps)
        self.out_proj = Linear(spec.d_ssm, d_model) if output else None

    def init_weights(self, init: Initializer) -> None:
        spec = self.spec
        bound = 1.0 / math.sqrt(spec.d_conv)
        init.matrix(self.in_proj.weight)
        init.uniform(self.conv_weight, -bound, bound)
        init.constant(self.conv_bias, 0.0)
        init.log_uniform_inverse_softplus(self.dt_bias, spec.dt_init_min, spec.dt_init_max)
        init.log_uniform_argument(self.A_log, spec.a_init_min, spec.a_init_max)
        init.constant(self.D, 1.0)
        if self.norm is not None:
            init.constant(self.norm.weight, 1.0)
        if self.out_proj is not None:
            init.residual(self.out_proj.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._out(self.mix(x_BLD))

    def mix(self, x_BLD: Tensor, values_BLI: Tensor | None = None) -> Tensor:
        """`forward` before the output projection: gated, and normalised as the spec says."""
        z_BLI, xBC_BLC, dt_BLH = self._project(x_BLD, values_BLI)
        xBC_BLC = causal_conv_silu(xBC_BLC, self.conv_weight, self.conv_bias, kernels=self.kernels)
        y_BLI, _ = self._scan(xBC_BLC, dt_BLH, None)
        return self._gate(y_BLI, z_BLI)

    def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> Mamba2State:
        del max_seq_len  # the state has one size at every length
        spec = self.spec
        conv_shape = (batch_size, spec.d_conv - 1, self.d_conv_channels)
        ssm_shape = (batch_size, spec.n_heads, spec.head_dim, spec.d_state)
        return Mamba2State(
            conv_BTC=torch.zeros(conv_shape, device=device, dtype=dtype),
            ssm_BHPN=torch.zeros(ssm_shape, device=device, dtype=compute_dtype(dtype)),
        )

    def step(self, x_BLD: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        y_BLI, state = self.step_mix(x_BLD, state)
        return self._out(y_BLI), state

    def step_mix(
        self, x_BLD: Tensor, state: Mamba2State, values_BLI: Tensor | None = None
    ) -> tuple[Tensor, Mamba2State]:
        """`mix` on the next positions after `state`."""
        z_BLI, xBC_BLC, dt_BLH = self._project(x_BLD, values_BLI)
        xBC_BLC, conv_BTC = causal_conv_silu_step(
            xBC_BLC, self.conv_weight, self.conv_bias, state.conv_BTC, kernels=self.kernels
        )
        y_BLI, ssm_BHPN = self._scan(xBC_BLC, dt_BLH, state.ssm_BHPN)
        assert ssm_BHPN is not None
        return self._gate(y_BLI, z_BLI), Mamba2State(conv_BTC=conv_BTC, ssm_BHPN=ssm_BHPN)

    def _project(self, x_BLD: Tensor, values_BLI: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if (values_BLI is None) != self.own_values:
            raise TypeError(f"values_BLI: expected {'none' if self.own_values else 'a tensor'}: {self.own_values=}")
        z_BLI, xBC_BLC, dt_BLH = self.in_proj(x_BLD).split(
            (self.spec.d_ssm, self.d_projected, self.spec.n_heads), dim=-1
        )
        if values_BLI is not None:
            xBC_BLC = torch.cat((values_BLI, xBC_BLC), dim=-1)
        return z_BLI, xBC_BLC, dt_BLH

    def _gate(self, y_BLI: Tensor, z_BLI: Tensor) -> Tensor:
        if self.norm is None:
            dtype = compute_dtype(y_BLI.dtype)
            return (y_BLI.to(dtype) * F.silu(z_BLI.to(dtype))).to(y_BLI.dtype)
        normed_BLI: Tensor = self.norm(y_BLI, z_BLI)
        return normed_BLI

    def _out(self, y_BLI: Tensor) -> Tensor:
        if self.out_proj is None:
            raise TypeError("this Mamba2 was built without an output projection: it has mix and step_mix only")
        out_BLD: Tensor = self.out_proj(y_BLI)
        return out_BLD

    def _scan(self, xBC_BLC: Tensor, dt_BLH: Tensor, initial_state_BHPN: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The recurrence and the skip D x: (B, L, I), and the final state where one was given."""
        x_BLI, B_BLK, C_BLK = xBC_BLC.split((self.spec.d_ssm, self.d_bc, self.d_bc), dim=-1)
        x_BLHP = x_BLI.unflatten(-1, (self.spec.n_heads, self.spec.head_dim))
        # Step sizes and decays keep float32 under autocast: errors in them are raised to the power of the length.
        dt_BLH = F.softplus(dt_BLH.to(compute_dtype(dt_BLH.dtype)) + self.dt_bias)
        y_BLHP, final_BHPN = ssd(
            x_BLHP,
            dt_BLH,
            -torch.exp(self.A_log),
            B_BLK.unflatten(-1, (self.spec.n_groups, self.spec.d_state)),
            C_BLK.unflatten(-1, (self.spec.n_groups, self.spec.d_state)),
            chunk=self.ssd_chunk,
            initial_state_BHPN=initial_state_BHPN,
            return_state=initial_state_BHPN is not None,
            kernels=self.kernels,
        )
        return (y_BLHP + x_BLHP * self.D.unsqueeze(-1)).flatten(2), final_BHPN


def _gated_norm(spec: Mamba2Spec, eps: float) -> GatedRMSNorm | None:
    match spec.gate_norm:
        case "rms":
            return GatedRMSNorm(spec.d_ssm, eps)
        case "grouped":
            return GatedRMSNorm(spec.d_ssm, eps, n_groups=spec.n_groups)
        case "none":
            return None
        case _:
            assert_never(spec.gate_norm)
