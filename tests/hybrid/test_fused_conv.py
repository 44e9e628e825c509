"""What is handed to causal-conv1d, with a stand-in that refuses what the package refuses and answers by `conv1d`."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.ops import fused_conv
from hybrid.ops.conv import causal_conv, causal_conv_silu


def causal_conv1d_fn(x_BCL: Tensor, weight_CT: Tensor, bias_C: Tensor, *, activation: str | None) -> Tensor:
    """The package's checks of a channel-last input (1.7.0, csrc/causal_conv1d.cpp), then the reference."""
    channels, taps = weight_CT.shape
    assert x_BCL.dtype in (torch.float32, torch.float16, torch.bfloat16)
    assert bias_C.dtype == weight_CT.dtype
    assert 2 <= taps <= 4
    assert x_BCL.stride(1) == 1
    assert x_BCL.stride(2) > 1
    assert channels % 8 == x_BCL.stride(0) % 8 == x_BCL.stride(2) % 8 == x_BCL.storage_offset() % 8 == 0
    padded_BCL = F.pad(x_BCL.to(weight_CT.dtype), (taps - 1, 0))
    y_BCL = F.conv1d(padded_BCL, weight_CT.unsqueeze(1), bias_C, groups=channels)
    return (y_BCL if activation is None else F.silu(y_BCL)).to(x_BCL.dtype)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn)
    monkeypatch.setattr(fused_conv, "_package", lambda: package)


def tensors(taps: int, channels: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(channels, taps, generator=generator, requires_grad=True),
        torch.randn(channels, generator=generator, requires_grad=True),
    )


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("taps", [2, 4])
# Out of wider rows, as a mixer's projection gives it: aligned, and by either stride or start not.
@pytest.mark.parametrize(("width", "start"), [(16, 0), (40, 8), (40, 3), (37, 8)])
@pytest.mark.parametrize(("batch", "length"), [(2, 9), (1, 1), (1, 5)])
def test_values_and_gradients_equal_pytorchs(
    silu: bool, taps: int, width: int, start: int, batch: int, length: int
) -> None:
    weight, bias = tensors(taps)
    rows = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(2), requires_grad=True)
    x = rows[..., start : start + 16]
    assert fused_conv.takes(x, weight)
    got = fused_conv.fused_causal_conv(x, weight, bias, silu=silu)
    wanted = (causal_conv_silu if silu else causal_conv)(x, weight, bias)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    dy = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
    for one, other in zip(
        torch.autograd.grad(got, (rows, weight, bias), dy),
        torch.autograd.grad(wanted, (rows, weight, bias), dy),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_half_precision_meets_float32_weights_and_stays_half() -> None:
    weight, bias = tensors(4)
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    got = fused_conv.fused_causal_conv(x, weight, bias, silu=True)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, causal_conv_silu(x, weight, bias), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "taps", "channels"),
    [(torch.float64, 4, 16), (torch.float32, 1, 16), (torch.float32, 5, 16), (torch.float32, 4, 12)],
)
def test_what_the_package_has_no_kernel_for_is_not_taken(dtype: torch.dtype, taps: int, channels: int) -> None:
    weight, _ = tensors(taps, channels)
    assert not fused_conv.takes(torch.zeros(1, 3, channels, dtype=dtype), weight)
