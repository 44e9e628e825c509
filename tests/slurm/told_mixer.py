"""A mixer that does, in the middle of training, what the file TOLD says: "slow" down, "raise", or run out of memory.

A run with it stands where a test wants it, and has the same losses whatever it was told on the way.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hybrid.outside import OutsideMixer, Setting


class Told(OutsideMixer):
    name = "told"
    version = 1
    defaults: ClassVar[Mapping[str, Setting]] = {}

    def params(self, settings: Mapping[str, Setting], d_model: int) -> int:
        return d_model * d_model

    def forward_flops(self, settings: Mapping[str, Setting], d_model: int, seq_len: int) -> int:
        return 2 * d_model * d_model * seq_len

    def state_bytes(self, settings: Mapping[str, Setting], d_model: int, seq_len: int, element_bytes: int) -> int:
        return element_bytes

    def build(self, settings: Mapping[str, Setting], d_model: int) -> Any:
        import torch
        from torch import Tensor

        from hybrid.init import Initializer
        from hybrid.linear import Linear
        from hybrid.mixers.base import Mixer

        class Module(Mixer[Tensor]):
            def __init__(self) -> None:
                super().__init__()
                self.proj = Linear(d_model, d_model)

            def init_weights(self, init: Initializer) -> None:
                init.matrix(self.proj.weight)

            def forward(self, x_BLD: Tensor) -> Tensor:
                do_as_told()
                y_BLD: Tensor = self.proj(x_BLD)
                return y_BLD

            def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> Tensor:
                return torch.zeros(batch_size, 1, device=device, dtype=dtype)

            def step(self, x_BLD: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
                return self.proj(x_BLD), state

        return Module()


def do_as_told() -> None:
    try:
        told = Path(os.environ.get("TOLD", "/nowhere")).read_text()
    except OSError:
        return
    match told:
        case "slow":
            time.sleep(0.1)
        case "raise":
            raise RuntimeError("as it was told")
        case "oom":
            raise MemoryError("as it was told")
