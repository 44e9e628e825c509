"""The shifted multiply-adds against conv1d, and step by step against at once."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.ops.conv import (
    causal_conv,
    causal_conv_naive,
    causal_conv_silu,
    causal_conv_silu_naive,
    causal_conv_silu_step,
    causal_conv_step,
)

Form = Callable[..., Tensor]
every_form = pytest.mark.parametrize("form", [causal_conv, causal_conv_silu])
NAIVE: dict[Form, Form] = {causal_conv: causal_conv_naive, causal_conv_silu: causal_conv_silu_naive}
STEP: dict[Form, Callable[..., tuple[Tensor, Tensor]]] = {
    causal_conv: causal_conv_step,
    causal_conv_silu: causal_conv_silu_step,
}


def operands(length: int, taps: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, length, 5), (5, taps), (5,))
    x, weight, bias = (torch.randn(s, dtype=torch.float64, generator=generator).to(dtype) for s in shapes)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@every_form
@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 12), taps=st.integers(1, 5))
def test_conv_equals_conv1d_in_values_and_gradients(form: Form, length: int, taps: int) -> None:
    leaves = operands(length, taps)
    expected, got = NAIVE[form](*leaves), form(*leaves)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for one, other in zip(torch.autograd.grad(got, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@every_form
@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.integers(1, 6), min_size=1, max_size=6), taps=st.integers(1, 5))
def test_conv_step_over_any_partition_equals_at_once(form: Form, pieces: list[int], taps: int) -> None:
    x, weight, bias = operands(sum(pieces), taps)
    state = x.new_zeros(2, taps - 1, 5)
    outputs: list[Tensor] = []
    for piece in x.split(pieces, dim=1):
        y, state = STEP[form](piece, weight, bias, state)
        assert state.shape == (2, taps - 1, 5)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), form(x, weight, bias), rtol=1e-12, atol=1e-12)


@every_form
def test_conv_reads_strided_inputs(form: Form) -> None:
    wide = torch.randn(2, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, weight, bias = operands(7, 4)
    view = wide[..., 3:8]
    assert torch.equal(form(view, weight, bias), form(view.contiguous(), weight, bias))


@every_form
@pytest.mark.parametrize("position", [0, 4])
def test_conv_is_exactly_causal(form: Form, position: int) -> None:
    x, weight, bias = operands(9, 4)
    (dx,) = torch.autograd.grad(form(x, weight, bias)[:, position].sum(), x)
    assert dx[:, position + 1 :].abs().max() == 0
    assert dx[:, position].abs().max() > 0


@every_form
def test_conv_of_bfloat16_is_the_float32_result_rounded(form: Form) -> None:
    x, weight, bias = operands(9, 4, torch.bfloat16)
    wanted = form(x.float(), weight.float(), bias.float()).bfloat16()
    assert torch.equal(form(x, weight, bias), wanted)
