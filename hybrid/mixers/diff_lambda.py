"""The scalar of the Differential Transformer (Ye et al. 2024, arXiv 2410.05258, section 2.1).

Shapes: P head_dim.
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from hybrid.init import Initializer
from hybrid.ops.precision import compute_dtype


def lambda_init(depth: int) -> float:
    """0.8 - 0.6 exp(-0.3 (depth - 1)): 0.2 at depth 1, which is the first, towards 0.8."""
    return 0.8 - 0.6 * math.exp(-0.3 * (depth - 1))


@final
class DiffLambda(nn.Module):
    """lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init, of four learned vectors drawn from normal(0, 0.1)."""

    def __init__(self, head_dim: int, depth: int) -> None:
        super().__init__()
        self.init = lambda_init(depth)
        self.q1 = nn.Parameter(torch.empty(head_dim))
        self.k1 = nn.Parameter(torch.empty(head_dim))
        self.q2 = nn.Parameter(torch.empty(head_dim))
        self.k2 = nn.Parameter(torch.empty(head_dim))

    def init_weights(self, init: Initializer) -> None:
        for vector_P in (self.q1, self.k1, self.q2, self.k2):
            init.normal(vector_P, 0.1)

    def forward(self) -> Tensor:
        """A scalar, float32 at least."""
        dtype = compute_dtype(self.q1.dtype)
        first, second = ((q_P.to(dtype) * k_P.to(dtype)).sum() for q_P, k_P in ((self.q1, self.k1), (self.q2, self.k2)))
        return first.exp() - second.exp() + self.init
