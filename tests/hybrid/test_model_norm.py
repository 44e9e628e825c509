"""The norms against their formulas under autograd."""

import pytest
import torch
import torch.nn.functional as F

from hybrid.norm import GatedRMSNorm, RMSNorm


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


def test_gated_norm_gates_before_it_normalises() -> None:
    norm = GatedRMSNorm(6, eps=1e-3).double()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    x, z = (torch.randn(2, 3, 6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    got = norm(x, z)
    expected = F.rms_norm(x * F.silu(z), (6,), norm.weight, eps=1e-3)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn(got.shape, dtype=torch.float64, generator=generator)
    leaves = (x, z, norm.weight)
    for one, other in zip(torch.autograd.grad(got, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


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
