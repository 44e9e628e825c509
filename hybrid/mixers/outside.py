"""What a module from a user's own file has to keep, looked at once, before it is trained.

A mistake there would not stop a run: a parameter that nobody set is whatever was in memory, an output of another shape
is broadcast into the residual stream, and a wrong count of parameters is a wrong table.

Shapes: B batch, L length, D d_model.
"""

import torch
from torch import nn

from hybrid import outside
from hybrid.mixers.base import Mixer
from hybrid.spec import ConfigError, ModelSpec, OutsideSpec


def unset_outside_parameters(model: nn.Module, spec: ModelSpec) -> None:
    """Make the parameters of a model with outside mixers NaN, for `check_outside` to find those that stay so."""
    if any(isinstance(block.mixer, OutsideSpec) for block in spec.blocks):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))


def check_outside(name: str, mixer: Mixer[object], spec: OutsideSpec, d_model: int) -> None:
    """Raise ConfigError, all problems at once, where an initialised outside mixer is not what its file says."""
    where = f"model.outside = {spec.name} version {spec.version}"
    problems = [
        f"{where}: init_weights leaves {name}.{parameter} unset"
        for parameter, value in mixer.named_parameters()
        if not bool(value.isfinite().all())
    ]
    held, said = sum(p.numel() for p in mixer.parameters()), outside.params(spec, d_model)
    if held != said:
        problems.append(f"{where}: its params() says {said}, its module has {held}")
    if not problems:
        x_BLD = torch.zeros(1, 3, d_model, device=next(mixer.parameters(), torch.empty(0)).device)
        with torch.no_grad():
            found = tuple(mixer(x_BLD).shape)
        if found != tuple(x_BLD.shape):
            problems.append(f"{where}: forward of shape {tuple(x_BLD.shape)} returns {found}; expected the same shape")
    if problems:
        raise ConfigError(problems)
