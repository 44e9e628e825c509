"""The norms against their formulas under autograd."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from hybrid.init import Initializer
from hybrid.mixers import Mamba2
from hybrid.norm import GatedRMSNorm, RMSNorm
from hybrid.spec import Mamba2Spec


def test_rms_norm_equals_formula_in_values_and_gradients() -> None:
    norm = RMSNorm(6, eps=1e-3).double()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    got = norm(x)
    expected = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-3) * norm.weight
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for one, other in zip(
        torch.autograd.grad(got, (x, norm.weight), dy),
        torch.autograd.grad(expected, (x, norm.weight), dy),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_groups", [1, 2, 3])
def test_gated_norm_gates_before_it_normalises_each_group(n_groups: int) -> None:
    norm = GatedRMSNorm(6, eps=1e-3, n_groups=n_groups).double()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    x, z = (torch.randn(2, 3, 6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    got = norm(x, z)
    groups = (x * F.silu(z)).chunk(n_groups, dim=-1)
    expected = torch.cat([F.rms_norm(group, group.shape[-1:], eps=1e-3) for group in groups], -1) * norm.weight
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn(got.shape, dtype=torch.float64, generator=generator)
    leaves = (x, z, norm.weight)
    for one, other in zip(torch.autograd.grad(got, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate_norm", ["rms", "grouped"])
def test_a_mamba_without_gate_norm_returns_what_the_others_normalise(gate_norm: Literal["rms", "grouped"]) -> None:
    spec = Mamba2Spec(
        d_ssm=8,
        head_dim=2,
        d_state=3,
        n_groups=2,
        d_conv=3,
        a_init_min=0.01,
        a_init_max=2.0,
        dt_init_min=0.001,
        dt_init_max=0.1,
        gate_norm=gate_norm,
    )
    normed = Mamba2(spec, 6, norm_eps=1e-3, ssd_chunk=4)
    normed.init_weights(Initializer(normed, 1, std=0.5, residual_std=0.5))
    plain = Mamba2(replace(spec, gate_norm="none"), 6, norm_eps=1e-3, ssd_chunk=4)
    plain.load_state_dict({k: v for k, v in normed.state_dict().items() if k != "norm.weight"})
    normed, plain = normed.double(), plain.double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n_parts = 2 if gate_norm == "grouped" else 1
    parts = plain.mix(x).chunk(n_parts, dim=-1)
    expected = torch.cat([F.rms_norm(part, part.shape[-1:], eps=1e-3) for part in parts], -1)
    torch.testing.assert_close(normed.mix(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (0, 6)])
def test_rms_norm_takes_any_leading_shape(shape: tuple[int, ...]) -> None:
    norm = RMSNorm(6, eps=1e-5)
    torch.nn.init.ones_(norm.weight)
    x = torch.ones(shape, requires_grad=True)
    norm(x).sum().backward()
    assert norm(x).shape == shape


def test_norm_backward_under_autocast_is_that_of_float32() -> None:
    norm = RMSNorm(32, eps=1e-5)
    torch.nn.init.ones_(norm.weight)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dy = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    (plain,) = torch.autograd.grad(norm(x), x, dy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (cast,) = torch.autograd.grad(norm(x), x, dy)
    assert torch.equal(plain, cast)
