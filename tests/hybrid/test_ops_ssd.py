"""The chunked SSD against the loop that defines it, in values and in all gradients."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.ops import fused_ssd
from hybrid.ops import ssd as ssd_module
from hybrid.ops.kernels import TORCH
from hybrid.ops.ssd import LOG_DECAY_LIMIT, ssd, ssd_chunked, ssd_naive


@dataclass(frozen=True, kw_only=True)
class Problem:
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    initial: Tensor | None

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        return (self.x, self.dt, self.A, self.B, self.C)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.arguments if self.initial is None else (*self.arguments, self.initial)


def problem(
    *,
    batch: int = 2,
    length: int = 13,
    groups: int = 1,
    heads_per_group: int = 2,
    head_dim: int = 3,
    d_state: int = 4,
    decay: float = 1.0,
    initial: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    heads = groups * heads_per_group

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        values = low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)
        return values.to(dtype).requires_grad_()

    return Problem(
        x=normal(batch, length, heads, head_dim),
        dt=uniform(0.001, 1.0, batch, length, heads),
        A=uniform(-2.0 * decay, -0.01 * decay, heads),
        B=normal(batch, length, groups, d_state),
        C=normal(batch, length, groups, d_state),
        initial=normal(batch, heads, head_dim, d_state) if initial else None,
    )


def assert_agrees(
    p: Problem, *, chunk: int, return_state: bool = True, tolerance: float = 1e-10, decay_tolerance: float = 1e-10
) -> None:
    expected_y, expected_state = ssd_naive(*p.arguments, initial_state_BHPN=p.initial)
    y, state = ssd_chunked(*p.arguments, chunk=chunk, initial_state_BHPN=p.initial, return_state=return_state)
    torch.testing.assert_close(y, expected_y, rtol=tolerance, atol=tolerance)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype)
    dstate = torch.randn(expected_state.shape, dtype=torch.float64, generator=generator).to(y.dtype)
    if return_state:
        torch.testing.assert_close(state, expected_state, rtol=tolerance, atol=tolerance)
        expected = torch.autograd.grad((expected_y, expected_state), p.leaves, (dy, dstate))
        got = torch.autograd.grad((y, state), p.leaves, (dy, dstate))
    else:
        assert state is None
        expected = torch.autograd.grad(expected_y, p.leaves, dy)
        got = torch.autograd.grad(y, p.leaves, dy)
    for name, one, other in zip(("x", "dt", "A", "B", "C", "initial"), got, expected, strict=False):
        scale = 1.0 + other.abs().max()
        atol = decay_tolerance if name in ("dt", "A") else tolerance
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=atol, msg=lambda m, n=name: f"d{n}: {m}")


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    chunk=st.integers(1, 16),
    groups=st.integers(1, 3),
    heads_per_group=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    d_state=st.integers(1, 5),
    decay=st.sampled_from([0.01, 1.0, 30.0, 1000.0]),
    initial=st.booleans(),
    return_state=st.booleans(),
)
def test_chunked_equals_naive_in_values_and_gradients(
    length: int,
    chunk: int,
    groups: int,
    heads_per_group: int,
    head_dim: int,
    d_state: int,
    decay: float,
    initial: bool,
    return_state: bool,
) -> None:
    p = problem(
        length=length,
        groups=groups,
        heads_per_group=heads_per_group,
        head_dim=head_dim,
        d_state=d_state,
        decay=decay,
        initial=initial,
    )
    assert_agrees(p, chunk=chunk, return_state=return_state)


@pytest.mark.parametrize(("decay", "exact"), [(1.0, False), (100.0, True)])
def test_strong_decay_takes_the_exact_form_and_agrees_either_way(
    decay: float, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    add = ssd_module._add_exact_diagonal
    monkeypatch.setattr(ssd_module, "_add_exact_diagonal", lambda *a: (calls.append(1), add(*a)))
    assert_agrees(problem(length=40, decay=decay), chunk=16)
    assert bool(calls) is exact


def test_one_forgetful_chunk_of_many_agrees() -> None:
    p = problem(length=32, initial=True)
    with torch.no_grad():
        p.dt[1, 9] = 500.0
    assert_agrees(p, chunk=8)


def test_exact_form_in_blocks_of_chunks_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd_module, "_DECAY_BLOCK_ELEMENTS", 3 * 2 * 8 * 8)
    assert_agrees(problem(length=64, decay=1000.0), chunk=8)


@pytest.mark.parametrize("margin", [0.9, 0.999, 1.001, 10.0])
def test_float32_stays_accurate_up_to_the_limit_and_beyond(margin: float) -> None:
    p = problem(length=64, heads_per_group=1, dtype=torch.float32)
    with torch.no_grad():
        p.dt.fill_(1.0)
        p.A.fill_(margin * LOG_DECAY_LIMIT / 64)
    # The gradient of the decay is a difference of sums over the chunk that nearly cancel where decay is strong.
    assert_agrees(p, chunk=64, tolerance=2e-5, decay_tolerance=2e-4)


def test_half_precision_inputs_give_the_float32_result_rounded() -> None:
    p = problem(length=24, dtype=torch.bfloat16)
    y, state = ssd(*p.arguments, chunk=8)
    wanted, _ = ssd(*(t.float() for t in p.arguments), chunk=8)
    assert y.dtype == torch.bfloat16
    assert state is not None
    assert state.dtype == torch.float32
    torch.testing.assert_close(y, wanted.bfloat16(), rtol=0, atol=0)


def test_autocast_changes_no_bit_forward_or_backward() -> None:
    p = problem(length=24, dtype=torch.float32)
    plain, _ = ssd(*p.arguments, chunk=8)
    plain_grads = torch.autograd.grad(plain.sum(), p.leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = ssd(*p.arguments, chunk=8)
        grads = torch.autograd.grad(y.sum(), p.leaves)
    assert torch.equal(y, plain)
    assert all(torch.equal(one, other) for one, other in zip(grads, plain_grads, strict=True))


@pytest.mark.parametrize("decay", [1.0, 1000.0])
def test_future_inputs_have_gradients_of_exactly_zero(decay: float) -> None:
    p = problem(length=21, decay=decay)
    y, _ = ssd(*p.arguments, chunk=8)
    dx, ddt, dB, dC = torch.autograd.grad(y[:, 10].sum(), (p.x, p.dt, p.B, p.C))
    for gradient in (dx, ddt, dB, dC):
        assert gradient[:, 11:].abs().max() == 0
        assert gradient[:, 10].abs().max() > 0


def test_state_alone_can_be_differentiated() -> None:
    p = problem(length=20, initial=True)
    _, expected_state = ssd_naive(*p.arguments, initial_state_BHPN=p.initial)
    _, state = ssd(*p.arguments, chunk=8, initial_state_BHPN=p.initial)
    assert state is not None
    wanted = (p.x, p.dt, p.A, p.B, p.initial)
    for one, other in zip(
        torch.autograd.grad(state.sum(), wanted),
        torch.autograd.grad(expected_state.sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_saves_nothing_of_chunk_by_chunk_size() -> None:
    sizes: list[int] = []

    def record(t: Tensor) -> Tensor:
        sizes.append(t.numel())
        return t

    # Q = 64 is large against every other size, so that any (Q, Q) matrix would be the largest tensor.
    p = problem(batch=1, length=64, heads_per_group=2, head_dim=4, d_state=4)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        ssd(*p.arguments, chunk=64)
    assert sizes
    assert max(sizes) <= 64 * 2 * 4


def test_meta_tensors_give_shapes_without_values() -> None:
    p = problem(length=21, groups=2)
    y, state = ssd(*(t.detach().to("meta") for t in p.arguments), chunk=8)
    assert y.shape == p.x.shape
    assert state is not None
    assert state.shape == (2, 4, 3, 4)
    assert y.is_meta


TRITON = replace(TORCH, ssd="triton")


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that reached the fused path, in whose place PyTorch's own answers."""
    calls: list[torch.dtype] = []

    def record(x: Tensor, *others: Tensor, **settings: object) -> tuple[Tensor, Tensor | None]:
        calls.append(x.dtype)
        return ssd_chunked(x, *others, **settings)

    monkeypatch.setattr(fused_ssd, "fused_ssd", record)
    return calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fused_kernels_get_half_precision_and_torch_keeps_the_rest(
    dtype: torch.dtype, fused_calls: list[torch.dtype]
) -> None:
    p = problem(dtype=dtype)
    y, _ = ssd(*p.arguments, chunk=8, kernels=TRITON)
    assert fused_calls == ([dtype] if dtype.itemsize == 2 else [])
    assert torch.equal(y, ssd(*p.arguments, chunk=8)[0])


def test_fused_kernels_get_float32_where_its_products_may_be_tf32(fused_calls: list[torch.dtype]) -> None:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        ssd(*problem(dtype=torch.float32).arguments, chunk=8, kernels=TRITON)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert fused_calls == [torch.float32]


def test_nothing_is_fused_unless_asked_for(fused_calls: list[torch.dtype]) -> None:
    ssd(*problem(dtype=torch.bfloat16).arguments, chunk=8)
    assert fused_calls == []


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    heads_per_group=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    d_state=st.integers(1, 5),
    lies_as_after_a_chunk=st.booleans(),
)
def test_a_step_of_decoding_is_the_recurrence(
    groups: int, heads_per_group: int, head_dim: int, d_state: int, lies_as_after_a_chunk: bool
) -> None:
    p = problem(
        length=1,
        groups=groups,
        heads_per_group=heads_per_group,
        head_dim=head_dim,
        d_state=d_state,
        initial=True,
    )
    assert p.initial is not None
    expected_y, expected_state = ssd_naive(*p.arguments, initial_state_BHPN=p.initial)
    with torch.no_grad():
        initial = p.initial.detach().clone()
        if lies_as_after_a_chunk:
            initial = initial.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        y, state = ssd(*p.arguments, chunk=4, initial_state_BHPN=initial)
    torch.testing.assert_close(y, expected_y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, expected_state.detach(), rtol=1e-12, atol=1e-12)
