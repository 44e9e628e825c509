"""One contract over every mixer: step equals forward, causality, states, parameter counts, initial values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.init import Initializer
from hybrid.mixers import Mixer, build_mixer, state_bytes
from hybrid.spec import AttentionSpec, Llama3RopeScalingSpec, Mamba2Spec, MixerSpec, RopeSpec

CPU = torch.device("cpu")
D_MODEL = 12
ROPE = RopeSpec(theta=10_000.0, scaling=None)
LLAMA3_ROPE = RopeSpec(
    theta=500_000.0,
    scaling=Llama3RopeScalingSpec(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq_len=64),
)


def mamba2(
    *, d_ssm: int = 24, head_dim: int = 6, d_state: int = 5, n_groups: int = 1, d_conv: int = 4, a_max: float = 2.0
) -> Mamba2Spec:
    return Mamba2Spec(
        d_ssm=d_ssm,
        head_dim=head_dim,
        d_state=d_state,
        n_groups=n_groups,
        d_conv=d_conv,
        a_init_min=0.01,
        a_init_max=a_max,
        dt_init_min=0.001,
        dt_init_max=0.1,
    )


SPECS: dict[str, MixerSpec] = {
    "attention": AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=6, rope=ROPE),
    "attention_grouped": AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=4, rope=LLAMA3_ROPE),
    "attention_nope": AttentionSpec(n_heads=3, n_kv_heads=1, head_dim=5, rope=None),
    "mamba2": mamba2(),
    "mamba2_grouped": mamba2(n_groups=2),
    "mamba2_forgetful": mamba2(a_max=20_000.0),
    "mamba2_no_memory_in_conv": mamba2(d_conv=1),
}
every_mixer = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def built(spec: MixerSpec, dtype: torch.dtype = torch.float64) -> Mixer:
    """A mixer whose every parameter is away from its initial value, so that none is without effect."""
    mixer = build_mixer(spec, D_MODEL, norm_eps=1e-5, ssd_chunk=4)
    mixer.init_weights(Initializer(mixer, 1, std=0.5, residual_std=0.5))
    mixer.to(dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=dtype, generator=generator))
    return mixer


def inputs(length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, length, D_MODEL, dtype=torch.float64, generator=generator).to(dtype)


def stepped(mixer: Mixer, x: Tensor, pieces: list[int], max_seq_len: int) -> Tensor:
    state = mixer.init_state(x.shape[0], max_seq_len, CPU, x.dtype)
    outputs: list[Tensor] = []
    for piece in x.split(pieces, dim=1):
        y, state = mixer.step(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


@every_mixer
@settings(max_examples=15, deadline=None)
@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=6), room=st.integers(0, 3))
def test_step_over_any_partition_equals_forward(spec: MixerSpec, pieces: list[int], room: int) -> None:
    mixer = built(spec)
    x = inputs(sum(pieces))
    with torch.no_grad():
        got = stepped(mixer, x, pieces, sum(pieces) + room)
        torch.testing.assert_close(got, mixer(x), rtol=0, atol=1e-10)


@every_mixer
@pytest.mark.parametrize("position", [0, 5, 10])
def test_gradients_of_future_inputs_are_exactly_zero(spec: MixerSpec, position: int) -> None:
    mixer = built(spec)
    x = inputs(11).requires_grad_()
    (dx,) = torch.autograd.grad(mixer(x)[:, position].sum(), x)
    assert torch.equal(dx[:, position + 1 :], torch.zeros_like(dx[:, position + 1 :]))
    assert dx[:, position].abs().max() > 0


@every_mixer
def test_every_parameter_has_a_gradient(spec: MixerSpec) -> None:
    mixer = built(spec)
    mixer(inputs(9)).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_mixer
def test_gradients_equal_finite_differences(spec: MixerSpec) -> None:
    mixer = built(spec)
    x = inputs(6)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad((mixer(leaf) * weights).sum(), leaf)
    with torch.no_grad():
        step = 1e-6
        change = ((mixer(x + step * direction) - mixer(x - step * direction)) * weights).sum() / (2 * step)
    assert float(change) == pytest.approx(float((dx * direction).sum()), rel=1e-6, abs=1e-7)


@every_mixer
def test_bfloat16_autocast_is_finite_and_near_float32(spec: MixerSpec) -> None:
    mixer = built(spec, torch.float32)
    x = inputs(11, torch.float32).requires_grad_()
    plain = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
    grads = torch.autograd.grad(y.float().sum(), (x, *mixer.parameters()))
    assert all(bool(g.isfinite().all()) for g in grads)
    assert float((y.float() - plain).detach().norm() / plain.detach().norm()) < 0.05


@every_mixer
def test_step_under_autocast_keeps_the_states_dtype(spec: MixerSpec) -> None:
    mixer = built(spec, torch.float32)
    state = mixer.init_state(2, 8, CPU, torch.bfloat16)
    before = state_bytes(state)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer.step(inputs(5, torch.float32), state)
        y, state = mixer.step(inputs(2, torch.float32), state)
    assert state_bytes(state) == before
    assert bool(y.isfinite().all())


@every_mixer
def test_meta_device_gives_shapes(spec: MixerSpec) -> None:
    with torch.device("meta"):
        mixer = build_mixer(spec, D_MODEL, norm_eps=1e-5, ssd_chunk=4)
        y = mixer(torch.empty(2, 9, D_MODEL))
    assert y.is_meta
    assert y.shape == (2, 9, D_MODEL)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_grouped_query_attention_equals_attention_with_repeated_heads(n_kv_heads: int) -> None:
    n_heads, head_dim = 4, 4
    grouped = built(AttentionSpec(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, rope=ROPE))
    full = built(AttentionSpec(n_heads=n_heads, n_kv_heads=n_heads, head_dim=head_dim, rope=ROPE))
    weights = dict(grouped.named_parameters())
    q, k, v = weights["qkv_proj.weight"].unflatten(0, (-1, head_dim)).split((n_heads, n_kv_heads, n_kv_heads))
    repeats = n_heads // n_kv_heads
    repeated = torch.cat((q, k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)))
    full.load_state_dict({"qkv_proj.weight": repeated.flatten(0, 1), "out_proj.weight": weights["out_proj.weight"]})
    torch.testing.assert_close(grouped(inputs(9)), full(inputs(9)), rtol=0, atol=1e-12)


def test_attention_without_rope_does_not_see_order_beyond_causality() -> None:
    x = inputs(5)
    swapped = x[:, [1, 0, 2, 3, 4]]
    nope = built(AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=6, rope=None))
    rope = built(AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=6, rope=ROPE))
    torch.testing.assert_close(nope(x)[:, 2:], nope(swapped)[:, 2:], rtol=0, atol=1e-12)
    assert not torch.allclose(rope(x)[:, 2:], rope(swapped)[:, 2:], rtol=0, atol=1e-3)


def test_stepping_beyond_the_room_in_the_cache_is_refused() -> None:
    mixer = built(SPECS["attention"])
    _, state = mixer.step(inputs(3), mixer.init_state(2, 4, CPU, torch.float64))
    with pytest.raises(ValueError, match="step to position 5: the state was made for 4 positions"):
        mixer.step(inputs(2), state)


def test_state_bytes_are_those_of_the_formulas() -> None:
    attention = AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=4, rope=ROPE)
    state = built(attention).init_state(3, 10, CPU, torch.bfloat16)
    assert state_bytes(state) == 3 * 10 * 2 * 2 * 4 * 2
    # The recurrent state is float32 even where the rest of the state is half precision.
    state = built(mamba2(n_groups=2)).init_state(3, 10, CPU, torch.bfloat16)
    assert state_bytes(state) == 3 * (3 * (24 + 2 * 2 * 5) * 2 + 24 * 5 * 4)


@pytest.mark.parametrize(
    ("spec", "d_model", "expected"),
    [
        (AttentionSpec(n_heads=32, n_kv_heads=8, head_dim=64, rope=ROPE), 2048, 2048 * 64 * (2 * 32 + 2 * 8)),
        (
            mamba2(d_ssm=4096, head_dim=64, d_state=128),
            2048,
            2048 * (2 * 4096 + 2 * 128 + 64) + (4096 + 2 * 128) * 5 + 3 * 64 + 4096 + 4096 * 2048,
        ),
        (
            mamba2(d_ssm=24, head_dim=6, d_state=5, n_groups=2, d_conv=3),
            12,
            12 * (2 * 24 + 2 * 2 * 5 + 4) + (24 + 2 * 2 * 5) * 4 + 3 * 4 + 24 + 24 * 12,
        ),
    ],
    ids=["attention_1b", "mamba2_1b", "mamba2_grouped"],
)
def test_parameter_count_is_the_formulas(spec: MixerSpec, d_model: int, expected: int) -> None:
    with torch.device("meta"):
        mixer = build_mixer(spec, d_model, norm_eps=1e-5, ssd_chunk=64)
    assert sum(p.numel() for p in mixer.parameters()) == expected


def test_mamba2_initial_step_sizes_and_decays_lie_in_their_ranges() -> None:
    mixer = build_mixer(mamba2(d_ssm=6000, head_dim=6), D_MODEL, norm_eps=1e-5, ssd_chunk=4)
    mixer.init_weights(Initializer(mixer, 1, std=0.02, residual_std=0.01))
    weights = {name: parameter.detach() for name, parameter in mixer.named_parameters()}
    dt = torch.nn.functional.softplus(weights["dt_bias"])
    assert 0.001 <= dt.min() * (1 + 1e-5) < 0.0011
    assert 0.09 < dt.max() <= 0.1 * (1 + 1e-5)
    # Log-uniform: half of the values lie below the geometric mean of the bounds.
    assert float(dt.median()) == pytest.approx(0.01, rel=0.2)
    a = weights["A_log"].exp()
    assert a.min() >= 0.0099
    assert a.max() <= 2.0001
    assert float(a.mean()) == pytest.approx(1.005, rel=0.1)
    bound = 1 / math.sqrt(4)
    assert 0.99 * bound < weights["conv_weight"].abs().max() <= bound
    assert float(weights["out_proj.weight"].std()) == pytest.approx(0.01, rel=0.05)
    assert float(weights["in_proj.weight"].std()) == pytest.approx(0.02, rel=0.05)
