"""Fused attention without a GPU: FlexAttention's mask and masked softmax, and what is handed to flash-attn."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from hybrid.ops import fused_attention as fused_module
from hybrid.ops.fused_attention import block_mask, fused_attention, mask_mod
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.ops.window import attention_naive, repeat_heads, visible
from hybrid.spec import WindowSpec

CPU = torch.device("cpu")
FLEX, FLASH = replace(TORCH, window="flex"), replace(TORCH, attention="flash_attn")
BOTH = replace(FLEX, attention="flash_attn")
SINK, NO_SINK = WindowSpec(size=40, sink=10), WindowSpec(size=40, sink=0)
# One block of 128; a window and a sink of whole blocks; one narrower than the other; no sink.
WINDOWS = [(7, 3, 2), (384, 128, 128), (300, 40, 10), (300, 10, 140), (513, 200, 0), (130, 1, 0)]


def qkv(
    length: int = 150,
    *,
    heads: tuple[int, int, int] = (4, 2, 2),
    dims: tuple[int, int] = (16, 16),
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads[0], dims[0]), (heads[1], dims[0]), (heads[2], dims[1]))
    return tuple(torch.randn(2, n, length, dim, generator=generator).to(dtype) for n, dim in shapes)


@pytest.mark.parametrize(("length", "size", "sink"), WINDOWS)
def test_flex_mask_is_the_window_and_the_sink(length: int, size: int, sink: int) -> None:
    window = WindowSpec(size=size, sink=sink)
    mask_LL = create_mask(mask_mod(window), None, None, length, length, device=CPU)[0, 0]
    assert torch.equal(mask_LL, visible(length, length, window, CPU))


@pytest.mark.parametrize(("length", "size", "sink"), WINDOWS)
def test_flex_blocks_are_those_in_which_something_is_seen(length: int, size: int, sink: int) -> None:
    window = WindowSpec(size=size, sink=sink)
    n_blocks = -(-length // 128)
    seen_LL = torch.zeros(n_blocks * 128, n_blocks * 128, dtype=torch.bool)
    seen_LL[:length, :length] = visible(length, length, window, CPU)
    seen_XX = seen_LL.view(n_blocks, 128, n_blocks, 128).any(3).any(1)
    assert torch.equal(block_mask(length, window, CPU).to_dense()[0, 0].bool(), seen_XX)


def test_a_block_mask_born_in_evaluation_serves_training() -> None:
    block_mask.cache_clear()
    with torch.inference_mode():
        mask = block_mask(300, SINK, CPU)
    assert not mask.kv_indices.is_inference()
    assert block_mask(300, WindowSpec(size=40, sink=10), CPU) is mask


@pytest.fixture
def traced_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention traced as for a GPU, and run by PyTorch's operations: no kernel is compiled."""
    torch.compiler.reset()
    compiled = torch.compile(fused_module.flex_attention, backend="eager")
    monkeypatch.setattr(fused_module, "_compiled_flex_attention", lambda: compiled)


@pytest.mark.usefixtures("traced_flex")
@pytest.mark.parametrize(("heads", "dims"), [((2, 2, 2), (16, 16)), ((4, 2, 2), (16, 24)), ((4, 1, 2), (24, 16))])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_flex_attention_equals_the_reference(
    heads: tuple[int, int, int], dims: tuple[int, int], scale: float | None
) -> None:
    q, k, v = qkv(heads=heads, dims=dims)
    for window in (SINK, NO_SINK, WindowSpec(size=64, sink=3)):
        got = fused_attention(q, k, v, window=window, scale=scale, kernels=FLEX)
        assert got is not None
        torch.testing.assert_close(got, attention_naive(q, k, v, window=window, scale=scale), rtol=0, atol=1e-5)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A stand-in for flash_attn 2.8 with its documented meaning; the shapes of the queries that it got."""
    calls: list[tuple[int, ...]] = []

    def flash_attn_func(
        q_BLHP: Tensor,
        k_BLJP: Tensor,
        v_BLJP: Tensor,
        *,
        softmax_scale: float,
        causal: bool,
        window_size: tuple[int, int],
    ) -> Tensor:
        assert q_BLHP.dtype in (torch.bfloat16, torch.float16)
        assert q_BLHP.shape[3] == k_BLJP.shape[3] == v_BLJP.shape[3] <= 256
        calls.append(tuple(q_BLHP.shape))
        n_heads, length = q_BLHP.shape[2], q_BLHP.shape[1]
        q, k, v = (repeat_heads(x.transpose(1, 2).double(), n_heads) for x in (q_BLHP, k_BLJP, v_BLJP))
        row_L1, key_L = torch.arange(length).unsqueeze(1), torch.arange(length)
        left, right = (length if w == -1 else w for w in window_size)
        seen_LL = (key_L >= row_L1 - left) & (key_L <= row_L1 + right)
        if causal:
            seen_LL &= key_L <= row_L1
        scores = (q @ k.transpose(2, 3) * softmax_scale).masked_fill(~seen_LL, -torch.inf)
        return (scores.softmax(-1) @ v).to(q_BLHP.dtype).transpose(1, 2)

    package = SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setattr(fused_module, "import_module", lambda name: {"flash_attn": package}[name])
    return calls


@pytest.mark.parametrize("window", [None, NO_SINK, WindowSpec(size=1, sink=0)])
@pytest.mark.parametrize(("heads", "dims"), [((2, 2, 2), (16, 16)), ((4, 1, 2), (12, 24)), ((4, 2, 2), (24, 8))])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_flash_attention_equals_the_reference(
    window: WindowSpec | None,
    heads: tuple[int, int, int],
    dims: tuple[int, int],
    scale: float | None,
    flash_attn: list[tuple[int, ...]],
) -> None:
    q, k, v = qkv(heads=heads, dims=dims, dtype=torch.bfloat16)
    got = fused_attention(q, k, v, window=window, scale=scale, kernels=FLASH)
    assert got is not None
    wanted = attention_naive(q, k, v, window=window, scale=scale)
    torch.testing.assert_close(got, wanted, rtol=2**-7, atol=2**-8)
    assert flash_attn == [(2, 150, heads[0], max(dims))]


def test_under_autocast_the_inputs_are_cast_as_for_pytorchs_own(flash_attn: list[tuple[int, ...]]) -> None:
    q, k, v = qkv()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fused_attention(q, k, v, window=None, scale=None, kernels=FLASH)
        own = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert len(flash_attn) == 1
    assert got is not None
    assert got.dtype == own.dtype == torch.bfloat16


def test_a_window_that_hides_nothing_is_plain_causal_attention(flash_attn: list[tuple[int, ...]]) -> None:
    q, k, v = qkv(50, dtype=torch.bfloat16)
    assert fused_attention(q, k, v, window=SINK, scale=None, kernels=BOTH) is not None
    assert len(flash_attn) == 1


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize(
    ("window", "dtype", "dims", "kernels"),
    [
        (None, torch.bfloat16, (16, 16), TORCH),
        (SINK, torch.bfloat16, (16, 16), TORCH),
        (None, torch.bfloat16, (16, 16), FLEX),
        (None, torch.float32, (16, 16), BOTH),
        (None, torch.bfloat16, (16, 264), BOTH),
        (SINK, torch.bfloat16, (16, 16), FLASH),
        (SINK, torch.float64, (16, 16), BOTH),
        (SINK, torch.float32, (8, 16), BOTH),
    ],
)
def test_what_no_fused_kernel_takes_is_left_to_pytorch(
    window: WindowSpec | None, dtype: torch.dtype, dims: tuple[int, int], kernels: Kernels
) -> None:
    q, k, v = qkv(dims=dims, dtype=dtype)
    assert fused_attention(q, k, v, window=window, scale=None, kernels=kernels) is None


@pytest.mark.usefixtures("flash_attn")
def test_part_of_a_sequence_is_left_to_pytorch() -> None:
    q, k, v = qkv(dtype=torch.bfloat16)
    assert fused_attention(q[:, :, -3:], k, v, window=None, scale=None, kernels=BOTH) is None
