"""One contract over every mixer: step equals forward, causality, states, parameter counts, initial values."""

import io
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid import outside
from hybrid.cost import block_state_bytes, mixer_params
from hybrid.decode import canonical_json, decode, encode
from hybrid.init import Initializer
from hybrid.mixers import KvMixer, Mixer, build_mixer, rows_of_state, state_bytes
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    DiffAttentionSpec,
    DiffMambaSpec,
    IntraSpec,
    Llama3RopeScalingSpec,
    Mamba2Spec,
    MixerSpec,
    OutsideSetting,
    OutsideSpec,
    RopeSpec,
    ShortConvSpec,
    WindowSpec,
)

CPU = torch.device("cpu")
D_MODEL = 12
ROPE = RopeSpec(theta=10_000.0, scaling=None)
LLAMA3_ROPE = RopeSpec(
    theta=500_000.0,
    scaling=Llama3RopeScalingSpec(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq_len=64),
)
OUTSIDE_FILE = Path(__file__).parent.parent / "outside" / "moving_average.py"


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


ATTENTION = AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=6, rope=ROPE)
GROUPED = AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=4, rope=LLAMA3_ROPE)
DIFF = DiffAttentionSpec(n_heads=2, n_kv_heads=2, head_dim=4, rope=ROPE, depth=2, norm="head", fusion="diff")
INTRA = IntraSpec(
    # Two value heads for one key head, so that the width of all heads is Mamba's whether or not values are shared.
    attention=AttentionSpec(n_heads=4, n_kv_heads=1, head_dim=4, rope=ROPE, value_head_dim=6, n_value_heads=2),
    mamba=mamba2(),
    norm="group",
    scalar="none",
    fusion="diff",
    value="separate",
    output="separate",
    lambda_depth=None,
    attention_multiplier=1.0,
    mamba_multiplier=1.0,
)


def windowed(spec: AttentionSpec, size: int, sink: int) -> AttentionSpec:
    return replace(spec, window=WindowSpec(size=size, sink=sink))


def axes(**changes: Any) -> dict[str, Any]:
    """Changes of a spec, whose literal types products of texts do not have."""
    return changes


def intra_forms() -> dict[str, IntraSpec]:
    """Every setting of the intra-hybrid block's five axes that means something."""
    forms: dict[str, IntraSpec] = {}
    for norm, scalar, fusion, value, output in itertools.product(
        ("group", "none"),
        ("none", "scale", "diff_t", "gate"),
        ("add", "diff", "concat"),
        ("separate", "shared"),
        ("joint", "separate"),
    ):
        if (fusion, output) == ("concat", "separate"):
            continue
        forms[f"intra_{norm}_{scalar}_{fusion}_{value}_{output}"] = replace(
            INTRA,
            **axes(norm=norm, scalar=scalar, fusion=fusion, value=value, output=output),
            lambda_depth=3 if scalar == "diff_t" else None,
        )
    return forms


SPECS: dict[str, MixerSpec] = {
    "attention": ATTENTION,
    "attention_grouped": GROUPED,
    "attention_nope": AttentionSpec(n_heads=3, n_kv_heads=1, head_dim=5, rope=None),
    "attention_scaled": replace(GROUPED, softmax_scale=0.1),
    "attention_wide_values": replace(GROUPED, value_head_dim=6),
    "attention_narrow_values": replace(GROUPED, value_head_dim=3),
    "attention_more_values": replace(GROUPED, n_kv_heads=1, n_value_heads=2, value_head_dim=5),
    "attention_every_value": replace(GROUPED, n_value_heads=4),
    "attention_convolved": replace(GROUPED, qkv_conv=3),
    "attention_convolved_by_one_tap": replace(ATTENTION, qkv_conv=1),
    **{
        f"window_{size}_{sink}": windowed(GROUPED, size, sink) for size, sink in itertools.product((1, 2, 3), (0, 1, 3))
    },
    "window_beyond_the_sequence": windowed(ATTENTION, 100, 5),
    "window_nope": windowed(replace(GROUPED, rope=None), 3, 1),
    "window_of_everything": windowed(
        replace(GROUPED, n_kv_heads=1, n_value_heads=2, value_head_dim=5, qkv_conv=4, softmax_scale=0.4), 2, 1
    ),
    "borrower": replace(GROUPED, borrows_kv=True),
    "borrower_window": windowed(replace(GROUPED, borrows_kv=True), 2, 1),
    "borrower_of_everything": windowed(
        replace(GROUPED, n_kv_heads=1, n_value_heads=2, value_head_dim=5, qkv_conv=4, borrows_kv=True), 3, 2
    ),
    "borrower_intra": replace(INTRA, attention=replace(INTRA.attention, borrows_kv=True)),
    "mamba2": mamba2(),
    "mamba2_grouped": mamba2(n_groups=2),
    "mamba2_forgetful": mamba2(a_max=20_000.0),
    "mamba2_no_memory_in_conv": mamba2(d_conv=1),
    "mamba2_grouped_norm": replace(mamba2(n_groups=2), gate_norm="grouped"),
    "mamba2_no_norm": replace(mamba2(), gate_norm="none"),
    **{
        f"diff_attention_{norm}_{fusion}": replace(DIFF, **axes(norm=norm, fusion=fusion))
        for norm, fusion in itertools.product(("head", "none"), ("diff", "add"))
    },
    "diff_attention_grouped": replace(DIFF, n_heads=4, rope=LLAMA3_ROPE),
    "diff_attention_nope": replace(DIFF, n_kv_heads=1, rope=None, head_dim=3),
    "diff_mamba_output": DiffMambaSpec(mamba=mamba2(), depth=2, norm="output"),
    "diff_mamba_none": DiffMambaSpec(mamba=replace(mamba2(), gate_norm="none"), depth=1, norm="none"),
    **intra_forms(),
    "intra_multiplied": replace(INTRA, attention_multiplier=0.5, mamba_multiplier=2.0),
    "intra_window": replace(INTRA, attention=windowed(INTRA.attention, 2, 1)),
    "intra_convolved_and_shared": replace(INTRA, attention=replace(INTRA.attention, qkv_conv=3), value="shared"),
    "short_conv": ShortConvSpec(d_conv=4),
    "short_conv_one_tap": ShortConvSpec(d_conv=1),
    "outside": OutsideSpec(name="moving_average", version=1, settings=(OutsideSetting(name="d_inner", value="10"),)),
}
every_mixer = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


@final
@dataclass(frozen=True, kw_only=True)
class PairState:
    lender: Any
    borrower: Any


@final
class Pair(Mixer[PairState]):
    """A borrower behind its lender, as in two residual blocks, where its inputs are normalised."""

    def __init__(self, lender: KvMixer[Any], borrower: KvMixer[Any]) -> None:
        super().__init__()
        self.lender, self.borrower = lender, borrower

    def init_weights(self, init: Initializer) -> None:
        self.lender.init_weights(init)
        self.borrower.init_weights(init)

    def forward(self, x_BLD: Tensor) -> Tensor:
        lent_BLD, lent = self.lender.forward_kv(x_BLD, None)
        y_BLD, _ = self.borrower.forward_kv(F.rms_norm(x_BLD + lent_BLD, (D_MODEL,)), lent)
        return lent_BLD + y_BLD

    def init_state(self, batch_size: int, max_seq_len: int, device: torch.device, dtype: torch.dtype) -> PairState:
        lender, borrower = (
            mixer.init_state(batch_size, max_seq_len, device, dtype) for mixer in (self.lender, self.borrower)
        )
        return PairState(lender=lender, borrower=borrower)

    def step(self, x_BLD: Tensor, state: PairState) -> tuple[Tensor, PairState]:
        lent_BLD, lender, lent = self.lender.step_kv(x_BLD, state.lender, None)
        y_BLD, borrower, _ = self.borrower.step_kv(F.rms_norm(x_BLD + lent_BLD, (D_MODEL,)), state.borrower, lent)
        return lent_BLD + y_BLD, PairState(lender=lender, borrower=borrower)


def lender_of(spec: MixerSpec) -> MixerSpec | None:
    """The spec of a block that a borrower can borrow from."""
    match spec:
        case AttentionSpec(borrows_kv=True):
            return replace(spec, borrows_kv=False)
        case IntraSpec(attention=AttentionSpec(borrows_kv=True) as attention):
            return replace(spec, attention=replace(attention, borrows_kv=False))
        case _:
            return None


def module_of(spec: MixerSpec) -> Mixer[Any]:
    """The mixer, or a borrower with its lender; parameters not set."""
    outside.load([str(OUTSIDE_FILE)])
    mixer = build_mixer(spec, D_MODEL, norm_eps=1e-5, ssd_chunk=4)
    lending = lender_of(spec)
    if lending is None:
        return mixer
    lender = build_mixer(lending, D_MODEL, norm_eps=1e-5, ssd_chunk=4)
    assert isinstance(lender, KvMixer)
    assert isinstance(mixer, KvMixer)
    return Pair(lender, mixer)


def built(spec: MixerSpec, dtype: torch.dtype = torch.float64) -> Mixer[Any]:
    """A mixer whose every parameter is away from its initial value, so that none is without effect.

    In any dtype it is the same one, rounded: its weights are drawn in float64.
    """
    mixer = module_of(spec)
    mixer.init_weights(Initializer(mixer, 1, std=0.5, residual_std=0.5))
    mixer.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return mixer.to(dtype)


def inputs(length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, length, D_MODEL, dtype=torch.float64, generator=generator).to(dtype)


def stepped(mixer: Mixer[Any], x: Tensor, pieces: list[int], max_seq_len: int) -> Tensor:
    state = mixer.init_state(x.shape[0], max_seq_len, x.device, x.dtype)
    outputs: list[Tensor] = []
    for piece in torch.split(x, pieces, dim=1):
        y, state = mixer.step(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def leaves_of(mixer: Mixer[Any], x: Tensor) -> dict[str, Tensor]:
    """All that outputs depend on: the inputs, and every parameter."""
    return {"x": x, **dict(mixer.named_parameters())}


def weighed(y: Tensor) -> Tensor:
    """A sum of the outputs with weights of both signs, which are the same in any dtype."""
    weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return (y * weights.to(y)).sum()


def gradients(y: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the weighed sum of the outputs."""
    return dict(zip(leaves, torch.autograd.grad(weighed(y), tuple(leaves.values())), strict=True))


def gradient_distances(
    got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], leaves: Mapping[str, Tensor], floor: float = 1e-3
) -> dict[str, float]:
    """How far each gradient is from the one wanted, relative to that one's norm: no leaf hides behind another.

    A gradient weighs its norm times its leaf's, which has no unit. Those below `floor` of the weightiest are measured
    as if they were that heavy: what cancellation leaves of them is mostly rounding.
    """
    norms = {name: float(leaf.detach().double().norm()) for name, leaf in leaves.items()}
    wanted = {name: gradient.double() for name, gradient in wanted.items()}
    least = floor * max(float(gradient.norm()) * norms[name] for name, gradient in wanted.items())
    return {
        name: float((got[name].double() - gradient).norm()) / max(float(gradient.norm()), least / norms[name])
        for name, gradient in wanted.items()
    }


def test_every_member_of_the_union_is_here() -> None:
    assert {type(spec) for spec in SPECS.values()} == set(get_args(MixerSpec))


def test_a_gradient_that_is_wrong_for_one_parameter_alone_is_far_away() -> None:
    # In one norm over all, a doubled small one would be lost.
    leaves = {"matrix": torch.ones(60, 60), "lambda": torch.ones(4)}
    right = {"matrix": torch.full((60, 60), 100.0), "lambda": torch.full((4,), 2e3)}
    wrong = {**right, "lambda": 2 * right["lambda"]}
    assert gradient_distances(right, right, leaves) == {"matrix": 0.0, "lambda": 0.0}
    assert gradient_distances(wrong, right, leaves) == {"matrix": 0.0, "lambda": pytest.approx(1.0)}
    # A hundredth of the floor: of a thousandth of 6000 * 60, divided by the leaf's norm.
    tiny = {**right, "lambda": torch.full((4,), 0.9)}
    assert gradient_distances({**tiny, "lambda": 2 * tiny["lambda"]}, tiny, leaves)["lambda"] == pytest.approx(0.01)


@every_mixer
def test_a_spec_survives_the_round_trip_through_canonical_json(spec: MixerSpec) -> None:
    block = BlockSpec(mixer=spec, ffn=None)
    text = canonical_json(block)
    # As JSON writes it, with its keys in another order.
    again = decode(BlockSpec, dict(reversed(json.loads(text).items())))
    assert again == block
    # repr, unlike equality and with it the cache of canonical_json, tells 1 from 1.0.
    assert repr(again) == repr(block)
    assert json.dumps(encode(again), sort_keys=True, separators=(",", ":")) == text


@every_mixer
def test_a_saved_mixer_loads_into_a_new_one_bit_by_bit(spec: MixerSpec) -> None:
    mixer, fresh = built(spec), module_of(spec).double()
    with torch.no_grad():
        for tensor in (*fresh.parameters(), *fresh.buffers()):
            tensor.fill_(math.nan)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(inputs(7)), mixer(inputs(7)))


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
def test_rows_of_a_state_go_on_by_themselves(spec: MixerSpec) -> None:
    mixer = built(spec)
    x, rows = inputs(9), torch.tensor([1, 0, 1])
    with torch.no_grad():
        _, state = mixer.step(x[:, :5], mixer.init_state(2, 9, x.device, x.dtype))
        taken = rows_of_state(state, rows)
        # A step writes into the state that it is given: into none that was taken from it, or that it was taken from.
        mixer.step(torch.zeros_like(x[rows, 5:]), rows_of_state(state, rows))
        got, _ = mixer.step(x[rows, 5:], taken)
        own, _ = mixer.step(x[:, 5:], state)
        torch.testing.assert_close(got, mixer(x)[rows, 5:], rtol=0, atol=1e-10)
        torch.testing.assert_close(own, mixer(x)[:, 5:], rtol=0, atol=1e-10)


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
def test_gradients_of_inputs_and_of_every_parameter_equal_finite_differences(spec: MixerSpec) -> None:
    mixer, x = built(spec), inputs(6).requires_grad_()
    leaves, generator = leaves_of(mixer, x), torch.Generator().manual_seed(5)
    exact = gradients(mixer(x), leaves)
    step, wrong = 1e-5, {}
    for name, leaf in leaves.items():
        direction = torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator)
        value, sums = leaf.detach().clone(), []
        with torch.no_grad():
            for there in (value + step * direction, value - step * direction):
                leaf.copy_(there)
                sums.append(float(weighed(mixer(x))))
            leaf.copy_(value)
        found, expected = (sums[0] - sums[1]) / (2 * step), float((exact[name] * direction).sum())
        # Beside the gradient's norm, which is what its product with such a direction is expected to be.
        if not abs(found - expected) < 1e-6 * float(exact[name].norm()):
            wrong[name] = (found, expected)
    assert not wrong


@every_mixer
def test_bfloat16_autocast_is_near_float32_in_values_and_gradients(spec: MixerSpec) -> None:
    mixer, x = built(spec, torch.float32), inputs(11, torch.float32).requires_grad_()
    leaves = leaves_of(mixer, x)
    plain = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
    assert float((y.float() - plain).detach().norm() / plain.detach().norm()) < 0.05
    distances = gradient_distances(gradients(y.float(), leaves), gradients(plain, leaves), leaves)
    # Eight bits of mantissa, through as many as two mixers: far from a wrong sign, and from a factor left out.
    assert max(distances.values()) < 0.15, distances


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
        mixer = module_of(spec)
        y = mixer(torch.empty(2, 9, D_MODEL))
    assert y.is_meta
    assert y.shape == (2, 9, D_MODEL)


@every_mixer
def test_parameters_and_state_bytes_are_those_of_the_cost(spec: MixerSpec) -> None:
    mixer, specs = module_of(spec), [spec]
    if (lending := lender_of(spec)) is not None:
        specs.append(lending)
    assert sum(p.numel() for p in mixer.parameters()) == sum(mixer_params(one, D_MODEL) for one in specs)
    for length in (1, 3, 10):
        state = mixer.init_state(3, length, CPU, torch.bfloat16)
        blocks = [BlockSpec(mixer=one, ffn=None) for one in specs]
        assert state_bytes(state) == 3 * sum(block_state_bytes(block, D_MODEL, length, 2) for block in blocks)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_grouped_query_attention_equals_attention_with_repeated_heads(n_kv_heads: int) -> None:
    n_heads, head_dim = 4, 4
    grouped = built(AttentionSpec(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, rope=ROPE))
    full = built(AttentionSpec(n_heads=n_heads, n_kv_heads=n_heads, head_dim=head_dim, rope=ROPE))
    weights = dict(grouped.named_parameters())
    qkv = weights["qkv_proj.weight"].view(-1, head_dim, D_MODEL)
    q, k, v = torch.split(qkv, [n_heads, n_kv_heads, n_kv_heads])
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


@pytest.mark.parametrize(
    "name", ["window_3_1", "window_of_everything", "borrower_of_everything", "diff_attention_grouped"]
)
def test_pieces_of_several_blocks_and_single_steps_equal_forward(name: str) -> None:
    # The kernels work in blocks of 32 and 64 positions: pieces that end beside, at and beyond them.
    pieces = [1, 40, 1, 1, 33, 64, 1, 2, 70, 1, 1, 1, 1]
    mixer, x = built(SPECS[name]), inputs(sum(pieces))
    with torch.no_grad():
        torch.testing.assert_close(stepped(mixer, x, pieces, sum(pieces)), mixer(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [(1, 0), (3, 2), (4, 0), (512, 64)])
def test_a_window_as_long_as_the_sequence_changes_nothing_and_a_shorter_one_does(window: tuple[int, int]) -> None:
    x, plain, limited = inputs(9), built(GROUPED), built(windowed(GROUPED, *window))
    same = [
        torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(plain(x)[0], limited(x)[0], strict=True)
    ]
    assert same == [position < sum(window) for position in range(9)]


@pytest.mark.parametrize("name", ["attention", "window_3_1", "borrower_window", "diff_attention_head_diff"])
def test_stepping_beyond_the_room_in_the_cache_is_refused(name: str) -> None:
    mixer = built(SPECS[name])
    _, state = mixer.step(inputs(3), mixer.init_state(2, 4, CPU, torch.float64))
    with pytest.raises(ValueError, match="step to position 5: the state was made for 4 positions"):
        mixer.step(inputs(2), state)


@pytest.mark.parametrize(("max_seq_len", "held"), [(1, 1), (2, 2), (5, 5), (6, 5), (1000, 5)])
def test_a_windows_state_is_its_size_and_its_sink(max_seq_len: int, held: int) -> None:
    state = built(windowed(GROUPED, 3, 2)).init_state(3, max_seq_len, CPU, torch.bfloat16)
    assert state_bytes(state) == 3 * held * 2 * 2 * 4 * 2


def test_a_borrowers_state_holds_no_keys_or_values() -> None:
    borrower = build_mixer(replace(GROUPED, borrows_kv=True), D_MODEL, norm_eps=1e-5, ssd_chunk=4)
    assert state_bytes(borrower.init_state(3, 10, CPU, torch.bfloat16)) == 0
    borrower = build_mixer(replace(GROUPED, borrows_kv=True, qkv_conv=4), D_MODEL, norm_eps=1e-5, ssd_chunk=4)
    assert state_bytes(borrower.init_state(3, 10, CPU, torch.bfloat16)) == 3 * 3 * 16 * 2


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
