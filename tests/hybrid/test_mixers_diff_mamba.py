"""Differential Mamba against its definition."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hybrid.init import Initializer
from hybrid.mixers import build_mixer
from hybrid.mixers.diff_mamba import DiffMamba
from hybrid.mixers.mamba2 import Mamba2
from hybrid.spec import DiffMambaSpec, Mamba2Spec

D_MODEL = 12
MAMBA = Mamba2Spec(
    d_ssm=12,
    head_dim=4,
    d_state=3,
    n_groups=1,
    d_conv=3,
    a_init_min=0.01,
    a_init_max=2.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)
SPEC = DiffMambaSpec(mamba=MAMBA, depth=2, norm="output")
LAMBDA_INIT = 0.35550906759096927  # 0.8 - 0.6 exp(-0.3)
every_norm = pytest.mark.parametrize("norm", ["output", "none"])


def built(spec: DiffMambaSpec = SPEC, d_model: int = D_MODEL) -> DiffMamba:
    mixer = build_mixer(spec, d_model, norm_eps=1e-5, ssd_chunk=4)
    assert isinstance(mixer, DiffMamba)
    mixer.init_weights(Initializer(mixer, 1, std=0.5, residual_std=0.5))
    return mixer.double()


def inputs(length: int = 9) -> Tensor:
    return torch.randn(2, length, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@every_norm
def test_diff_mamba_is_the_normalised_difference_of_two_mambas(norm: str) -> None:
    mixer = built(replace(SPEC, norm=norm))
    weights = dict(mixer.named_parameters())
    each: list[Tensor] = []
    for name in ("mamba1", "mamba2"):
        alone = Mamba2(MAMBA, D_MODEL, norm_eps=1e-5, ssd_chunk=4).double()
        prefix = name + "."
        alone.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        each.append(alone(inputs()))
    scalar = 1 / (1 + torch.exp(-weights["lambda_q"].sum())) + LAMBDA_INIT
    expected = each[0] - scalar * each[1]
    if norm == "output":
        expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights["norm.weight"]
        expected = expected * (1 - LAMBDA_INIT)
    torch.testing.assert_close(mixer(inputs()), expected, rtol=0, atol=1e-12)


@every_norm
def test_diff_mamba_step_over_a_partition_equals_forward(norm: str) -> None:
    mixer = built(replace(SPEC, norm=norm))
    state = mixer.init_state(2, 9, torch.device("cpu"), torch.float64)
    outputs: list[Tensor] = []
    with torch.no_grad():
        for piece in inputs().split((1, 4, 1, 3), dim=1):
            y, state = mixer.step(piece, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), mixer(inputs()), rtol=0, atol=1e-12)


def test_the_two_mambas_start_apart_and_every_parameter_learns() -> None:
    mixer = built()
    assert not torch.equal(mixer.mamba1.in_proj.weight, mixer.mamba2.in_proj.weight)
    mixer(inputs()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in mixer.parameters())


def test_lambda_starts_where_its_sigmoid_has_a_slope() -> None:
    for d_model in (12, 1024):
        total = float(built(d_model=d_model).lambda_q.detach().sum())
        assert 1e-4 < torch.sigmoid(torch.tensor(total)) < 1 - 1e-4


def test_norm_none_has_one_parameter_vector_less() -> None:
    one, other = (set(dict(built(replace(SPEC, norm=norm)).named_parameters())) for norm in ("output", "none"))
    assert one - other == {"norm.weight"}


def test_bfloat16_autocast_is_finite_and_near_float32() -> None:
    mixer = built().float()
    x = inputs().float().requires_grad_()
    plain = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
    gradients = torch.autograd.grad(y.float().sum(), (x, *mixer.parameters()))
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert float((y.float() - plain).detach().norm() / plain.detach().norm()) < 0.05
