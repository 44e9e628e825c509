"""An example of a mixer from a user's own file: a learned exponential moving average, gated.

    y_t = W_out (silu(W_gate x_t) * m_t),   m_t = (1 - a) m_(t-1) + a W_in x_t,   a = sigmoid(a learned vector)

Shapes: B batch, L length, D d_model, F d_inner.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from hybrid.outside import OutsideMixer, Setting
from hybrid.spec import ConfigError


class MovingAverage(OutsideMixer):
    name = "moving_average"
    version = 1
    defaults: ClassVar[Mapping[str, Setting]] = {"d_inner": 64}

    def check(self, settings: Mapping[str, Setting], d_model: int) -> None:
        if int(settings["d_inner"]) < 1:
            raise ConfigError(f"model.outside.settings.d_inner = {settings['d_inner']}: expected at least 1")

    def params(self, settings: Mapping[str, Setting], d_model: int) -> int:
        d_inner = int(settings["d_inner"])
        return 3 * d_model * d_inner + d_inner

    def forward_flops(self, settings: Mapping[str, Setting], d_model: int, seq_len: int) -> int:
        return 6 * d_model * int(settings["d_inner"]) * seq_len

    def state_bytes(self, settings: Mapping[str, Setting], d_model: int, seq_len: int, element_bytes: int) -> int:
        return int(settings["d_inner"]) * element_bytes

    def build(self, settings: Mapping[str, Setting], d_model: int) -> Any:
        import torch
        import torch.nn.functional as F
        from torch import Tensor, nn

        from hybrid.init import Initializer
        from hybrid.linear import Linear
        from hybrid.mixers.base import Mixer

        class Module(Mixer[Tensor]):
            """Its state is the average after the last position, (B, F)."""

            def __init__(self, d_inner: int) -> None:
                super().__init__()
                self.in_proj = Linear(d_model, 2 * d_inner)
                self.rate = nn.Parameter(torch.empty(d_inner))
                self.out_proj = Linear(d_inner, d_model)

            def init_weights(self, init: Initializer) -> None:
                init.matrix(self.in_proj.weight)
                init.uniform(self.rate, -2.0, 2.0)
                init.residual(self.out_proj.weight)

            def forward(self, x_BLD: Tensor) -> Tensor:
                state = x_BLD.new_zeros(x_BLD.shape[0], self.rate.shape[0])
                return self.step(x_BLD, state)[0]

            def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> Tensor:
                return torch.zeros(batch_size, self.rate.shape[0], device=device, dtype=dtype)

            def step(self, x_BLD: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
                value_BLF, gate_BLF = self.in_proj(x_BLD).chunk(2, dim=-1)
                rate_F = torch.sigmoid(self.rate)
                average_BF, averages = state.to(value_BLF.dtype), []
                for t in range(x_BLD.shape[1]):
                    average_BF = torch.lerp(average_BF, value_BLF[:, t], rate_F.to(value_BLF.dtype))
                    averages.append(average_BF)
                mixed_BLF = torch.stack(averages, dim=1) * F.silu(gate_BLF)
                return self.out_proj(mixed_BLF), average_BF.to(state.dtype)

        return Module(int(settings["d_inner"]))
