"""Rotary embedding against complex multiplication, and Llama 3's rescaling by its published properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid.ops.rope import apply_rope, rope_frequencies, rope_tables
from hybrid.spec import Llama3RopeScalingSpec, RopeSpec

PLAIN = RopeSpec(theta=10_000.0, scaling=None)
SCALING = Llama3RopeScalingSpec(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq_len=8192)
LLAMA3 = RopeSpec(theta=500_000.0, scaling=SCALING)
CPU = torch.device("cpu")


@pytest.mark.parametrize("spec", [PLAIN, LLAMA3])
@pytest.mark.parametrize("start", [0, 5, 1000])
def test_rotation_equals_complex_multiplication(spec: RopeSpec, start: int) -> None:
    x = torch.randn(2, 7, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos, sin = rope_tables(spec, 16, 7, start=start, device=CPU)
    angles = torch.outer(torch.arange(start, start + 7, dtype=torch.float64), rope_frequencies(spec, 16))
    turned = torch.complex(x[..., :8], x[..., 8:]) * torch.exp(1j * angles)[:, None, :]
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    # The tables are float32: an angle's sine is known to half a unit in the last place.
    torch.testing.assert_close(apply_rope(x, cos, sin), expected, rtol=0, atol=5e-7)


def test_rotation_gradient_equals_numerical_gradient() -> None:
    x = torch.randn(1, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cos, sin = rope_tables(PLAIN, 4, 3, device=CPU)
    assert torch.autograd.gradcheck(lambda t: apply_rope(t, cos, sin), (x,))


def test_scores_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, dtype=torch.float64, generator=generator) for _ in range(2))

    def score(query_at: int, key_at: int) -> float:
        turned_q = apply_rope(q, *rope_tables(PLAIN, 16, 1, start=query_at, device=CPU))
        turned_k = apply_rope(k, *rope_tables(PLAIN, 16, 1, start=key_at, device=CPU))
        return float((turned_q * turned_k).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-6)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_tables_of_a_late_start_are_the_tail_of_the_tables_from_zero() -> None:
    cos, sin = rope_tables(LLAMA3, 8, 10, device=CPU)
    late_cos, late_sin = rope_tables(LLAMA3, 8, 3, start=7, device=CPU)
    assert torch.equal(late_cos, cos[7:])
    assert torch.equal(late_sin, sin[7:])


def test_tables_made_in_inference_mode_serve_training() -> None:
    spec = RopeSpec(theta=77.0, scaling=None)
    with torch.inference_mode():
        rope_tables(spec, 4, 3, device=CPU)
    x = torch.ones(1, 3, 1, 4, requires_grad=True)
    apply_rope(x, *rope_tables(spec, 4, 3, device=CPU)).sum().backward()
    assert x.grad is not None


def test_llama3_keeps_short_wavelengths_and_divides_long_ones() -> None:
    plain = rope_frequencies(RopeSpec(theta=LLAMA3.theta, scaling=None), 128)
    scaled = rope_frequencies(LLAMA3, 128)
    wavelengths = 2 * math.pi / plain
    short = wavelengths < SCALING.original_seq_len / SCALING.high_freq_factor
    long = wavelengths > SCALING.original_seq_len / SCALING.low_freq_factor
    between = ~short & ~long
    assert short.any()
    assert long.any()
    assert between.any()
    assert torch.equal(scaled[short], plain[short])
    torch.testing.assert_close(scaled[long], plain[long] / SCALING.factor, rtol=1e-15, atol=0)
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / SCALING.factor).all()


def test_llama3_mid_frequencies_follow_the_published_interpolation() -> None:
    plain = rope_frequencies(RopeSpec(theta=LLAMA3.theta, scaling=None), 128)
    for before, after in zip(plain.tolist(), rope_frequencies(LLAMA3, 128).tolist(), strict=True):
        turns = SCALING.original_seq_len / (2 * math.pi / before)
        if 1.0 < turns < 4.0:
            smooth = (turns - 1.0) / (4.0 - 1.0)
            assert after == pytest.approx((1 - smooth) * before / 32.0 + smooth * before, rel=1e-14)


@given(st.floats(100.0, 1e7), st.sampled_from([2, 8, 64, 128]))
def test_scaled_frequencies_still_fall(theta: float, head_dim: int) -> None:
    frequencies = rope_frequencies(RopeSpec(theta=theta, scaling=SCALING), head_dim)
    assert (frequencies.diff() < 0).all()
