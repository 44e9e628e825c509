"""Initial weights: every tensor drawn from a generator of its own, seeded by the run's seed and the tensor's name.

So the order in which modules are defined or initialised never matters, two models share the initial values
of the tensors that they share by name, and the global random state is neither read nor moved.
"""

import hashlib
import math

import torch
from torch import Tensor, nn


class Initializer:
    """Draws the initial values of one model's parameters, in place, on the CPU in float32 whatever their device.

    Matrices are normal(0, `std`); those that write into the residual stream normal(0, `residual_std`).
    """

    def __init__(self, model: nn.Module, seed: int, *, std: float, residual_std: float) -> None:
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self._seed = seed
        self.std = std
        self.residual_std = residual_std

    def matrix(self, parameter: Tensor) -> None:
        """normal(0, std)."""
        self.normal(parameter, self.std)

    def residual(self, parameter: Tensor) -> None:
        """normal(0, residual_std), for a projection whose output is added to the residual stream."""
        self.normal(parameter, self.residual_std)

    def normal(self, parameter: Tensor, std: float) -> None:
        """normal(0, std) with a standard deviation of the parameter's own."""
        value = torch.empty(parameter.shape).normal_(0.0, std, generator=self._generator(parameter))
        self._set(parameter, value)

    def uniform(self, parameter: Tensor, low: float, high: float) -> None:
        """Uniform in [low, high]."""
        self._set(parameter, self._uniform(parameter, low, high))

    def log_uniform_inverse_softplus(self, parameter: Tensor, low: float, high: float) -> None:
        """The x for which softplus(x) is log-uniform in [low, high]."""
        value = self._uniform(parameter, math.log(low), math.log(high)).double().exp()
        self._set(parameter, value + torch.log(-torch.expm1(-value)))

    def log_uniform_argument(self, parameter: Tensor, low: float, high: float) -> None:
        """The logarithm of a number uniform in [low, high]."""
        self._set(parameter, self._uniform(parameter, low, high).log())

    def constant(self, parameter: Tensor, value: float) -> None:
        """One value everywhere."""
        with torch.no_grad():
            parameter.fill_(value)

    def _uniform(self, parameter: Tensor, low: float, high: float) -> Tensor:
        return torch.empty(parameter.shape).uniform_(low, high, generator=self._generator(parameter))

    def _generator(self, parameter: Tensor) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}:{self._names[parameter]}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    @staticmethod
    def _set(parameter: Tensor, value: Tensor) -> None:
        with torch.no_grad():
            parameter.copy_(value)
