"""A projection without bias whose weights are not drawn when it is built."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
class Linear(nn.Module):
    """x W^T with W (d_out, d_in). `nn.Linear` would draw a W from the global random state, to be overwritten."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)
