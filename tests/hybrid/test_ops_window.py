"""Every form of attention against a masked softmax: windows, sinks, grouped heads, wide values, two maps."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.ops import attention as attention_module
from hybrid.ops.attention import attention, diff_attention, diff_attention_naive, diff_attention_of_heads
from hybrid.ops.window import attention_naive, visible, windowed_sdpa
from hybrid.spec import WindowSpec

CPU = torch.device("cpu")
WINDOWS = [
    WindowSpec(size=1, sink=0),
    WindowSpec(size=1, sink=2),
    WindowSpec(size=3, sink=0),
    WindowSpec(size=3, sink=1),
    WindowSpec(size=4, sink=7),
    WindowSpec(size=32, sink=3),
    WindowSpec(size=40, sink=50),
    WindowSpec(size=150, sink=20),
    WindowSpec(size=1000, sink=0),
]


def operands(
    n_queries: int,
    n_keys: int,
    *,
    heads: tuple[int, int, int] = (2, 2, 2),
    widths: tuple[int, int] = (4, 4),
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as leaves; in memory, positions lie before heads, as a projection leaves them."""
    generator = torch.Generator().manual_seed(n_queries + n_keys)
    shapes = zip((n_queries, n_keys, n_keys), heads, (widths[0], *widths), strict=True)
    q, k, v = (torch.randn(2, *shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes)
    return q.transpose(1, 2).requires_grad_(), k.transpose(1, 2).requires_grad_(), v.transpose(1, 2).requires_grad_()


def assert_same(got: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    """Equal values and, for a random gradient of them, equal gradients."""
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    dy = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    for one, other in zip(torch.autograd.grad(got, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_row_sees_its_window_and_the_sink() -> None:
    seen = visible(7, 7, WindowSpec(size=2, sink=1), CPU)
    assert ["".join("x" if cell else "." for cell in row) for row in seen.tolist()] == [
        "x......",
        "xx.....",
        "xxx....",
        "x.xx...",
        "x..xx..",
        "x...xx.",
        "x....xx",
    ]
    assert int(visible(700, 700, WindowSpec(size=512, sink=64), CPU).sum(1).max()) == 512 + 64


@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: f"{w.size}+{w.sink}")
@pytest.mark.parametrize("length", [1, 2, 31, 33, 64, 65, 200])
@pytest.mark.parametrize("form", [attention, windowed_sdpa])
def test_window_equals_a_masked_softmax(form: Callable[..., Tensor], window: WindowSpec, length: int) -> None:
    leaves = operands(length, length)
    assert_same(form(*leaves, window=window), attention_naive(*leaves, window=window), leaves)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 90), sink=st.integers(0, 90), n_queries=st.integers(1, 150), n_past=st.integers(0, 120))
def test_window_after_a_past_equals_a_masked_softmax(size: int, sink: int, n_queries: int, n_past: int) -> None:
    window = WindowSpec(size=size, sink=sink)
    leaves = operands(n_queries, n_past + n_queries, heads=(4, 2, 2))
    for form in (attention, windowed_sdpa):
        assert_same(form(*leaves, window=window), attention_naive(*leaves, window=window), leaves)


def test_keys_that_no_query_sees_may_be_missing_behind_the_sink() -> None:
    window, n_queries = WindowSpec(size=5, sink=2), 40
    q, k, v = operands(n_queries, 70)
    kept = [*range(2), *range(70 - n_queries - 5 + 1, 70)]
    got = attention(q, k[:, :, kept], v[:, :, kept], window=window)
    torch.testing.assert_close(got, attention_naive(q, k, v, window=window), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [(4, 4, 4), (4, 2, 2), (4, 1, 1), (4, 1, 2), (4, 2, 4), (8, 2, 4), (6, 1, 3)])
@pytest.mark.parametrize("widths", [(4, 4), (4, 6), (6, 4)])
@pytest.mark.parametrize("window", [None, WindowSpec(size=20, sink=3)])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (1, 9), (70, 70), (35, 70)])
def test_any_heads_and_widths_equal_a_masked_softmax(
    heads: tuple[int, int, int], widths: tuple[int, int], window: WindowSpec | None, n_queries: int, n_keys: int
) -> None:
    leaves = operands(n_queries, n_keys, heads=heads, widths=widths)
    expected = attention_naive(*leaves, window=window, scale=0.3)
    assert_same(attention(*leaves, window=window, scale=0.3), expected, leaves)


@pytest.mark.parametrize("form", [diff_attention, diff_attention_of_heads])
@pytest.mark.parametrize("heads", [(2, 2, 1), (8, 4, 2), (6, 2, 1)])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (1, 9), (70, 70), (35, 70)])
def test_two_maps_equal_the_difference_of_masked_softmaxes(
    form: Callable[..., Tensor], heads: tuple[int, int, int], n_queries: int, n_keys: int
) -> None:
    leaves = (
        *operands(n_queries, n_keys, heads=heads, widths=(4, 8)),
        torch.tensor(-0.7, dtype=torch.float64, requires_grad=True),
    )
    assert_same(form(*leaves), diff_attention_naive(*leaves), leaves)


def test_naive_pairs_heads_and_groups_pairs() -> None:
    q, k, v = operands(5, 5, heads=(8, 4, 2), widths=(4, 8))
    weight = torch.tensor(-0.7, dtype=torch.float64)
    got = diff_attention_naive(q, k, v, weight)
    for pair in range(4):
        of_keys = pair // 2
        maps = [attention_naive(q[:, [2 * pair + m]], k[:, [2 * of_keys + m]], v[:, [of_keys]]) for m in range(2)]
        torch.testing.assert_close(got[:, [pair]], maps[0] - 0.7 * maps[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("elements", [1, 500, 20_000])
def test_how_many_heads_go_together_changes_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = operands(70, 70, heads=(6, 3, 3), widths=(4, 6))
    expected = attention_naive(*leaves, window=WindowSpec(size=9, sink=2))
    monkeypatch.setattr(attention_module, "_BLOCK_ELEMENTS", elements)
    assert_same(attention(*leaves, window=WindowSpec(size=9, sink=2)), expected, leaves)


@pytest.mark.parametrize("position", [0, 33, 69])
@pytest.mark.parametrize("form", [attention, windowed_sdpa])
def test_gradients_outside_the_window_are_exactly_zero(form: Callable[..., Tensor], position: int) -> None:
    window = WindowSpec(size=9, sink=2)
    leaves = operands(70, 70)
    _, dk, dv = torch.autograd.grad(form(*leaves, window=window)[:, :, position].square().sum(), leaves)
    hidden = ~visible(70, 70, window, CPU)[position]
    for gradient in (dk, dv):
        assert gradient[:, :, hidden].count_nonzero() == 0
    assert dv[:, :, ~hidden].count_nonzero() == dv[:, :, ~hidden].numel()


@pytest.mark.parametrize("window", [None, WindowSpec(size=9, sink=2)])
def test_half_precision_is_the_float32_result_rounded(window: WindowSpec | None) -> None:
    q, k, v = operands(70, 70, widths=(4, 6), dtype=torch.bfloat16)
    wanted = attention(q.float(), k.float(), v.float(), window=window).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention(q, k, v, window=window), wanted)


@pytest.mark.parametrize(("length", "n_keys"), [(11, 11), (12, 16)])
def test_meta_tensors_have_the_shape_and_the_products_of_the_blocked_form(length: int, n_keys: int) -> None:
    # Blocks of 4, a sink of 3: 11 positions are one call with a mask, 12 are three blocks of 3 + 8 keys.
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        q, k = torch.empty(2, 4, length, 6), torch.empty(2, 2, length, 6)
        y = attention(q, k, torch.empty(2, 2, length, 10), window=WindowSpec(size=4, sink=3))
    assert y.shape == (2, 4, length, 10)
    assert counter.get_total_flops() == 2 * (6 + 10) * 2 * 4 * length * min(n_keys, 11)
