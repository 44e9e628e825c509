"""The intra-hybrid block against its formula, on every axis."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hybrid.init import Initializer
from hybrid.mixers import build_mixer
from hybrid.mixers.diff_lambda import DiffLambda, lambda_init
from hybrid.mixers.intra import Intra
from hybrid.spec import AttentionSpec, IntraSpec, Mamba2Spec, RopeSpec, WindowSpec

D_MODEL = 12
ATTENTION = AttentionSpec(
    n_heads=4,
    n_kv_heads=2,
    head_dim=2,
    value_head_dim=4,
    rope=RopeSpec(theta=10_000.0, scaling=None),
)
MAMBA = Mamba2Spec(
    d_ssm=16,
    head_dim=4,
    d_state=3,
    n_groups=1,
    d_conv=3,
    a_init_min=0.01,
    a_init_max=2.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
    gate_norm="none",
)
PLAIN = IntraSpec(
    attention=ATTENTION,
    mamba=MAMBA,
    norm="none",
    scalar="none",
    fusion="add",
    value="separate",
    output="joint",
    lambda_depth=None,
    attention_multiplier=1.0,
    mamba_multiplier=1.0,
)
AXES = [
    replace(
        PLAIN,
        norm=norm,
        scalar=scalar,
        fusion=fusion,
        value=value,
        output=output,
        lambda_depth=3 if scalar == "diff_t" else None,
    )
    for norm, scalar, fusion, value, output in itertools.product(
        ("group", "none"),
        ("none", "scale", "diff_t", "gate"),
        ("add", "diff", "concat"),
        ("separate", "shared"),
        ("joint", "separate"),
    )
    if (fusion, output) != ("concat", "separate")
]
every_axis = pytest.mark.parametrize(
    "spec", AXES, ids=lambda s: "-".join((s.norm, s.scalar, s.fusion, s.value, s.output))
)


def built(spec: IntraSpec, seed: int = 1) -> Intra:
    """In float64, with all that starts at zero or one moved away from it."""
    mixer = build_mixer(spec, D_MODEL, norm_eps=1e-5, ssd_chunk=4)
    assert isinstance(mixer, Intra)
    mixer.init_weights(Initializer(mixer, seed, std=0.5, residual_std=0.5))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return mixer.double()


def inputs(length: int = 9) -> Tensor:
    return torch.randn(2, length, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def rms_normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def by_formula(mixer: Intra, spec: IntraSpec, x: Tensor) -> Tensor:
    """The definition of `IntraSpec`, of the two modules' outputs and the block's own weights."""
    w = dict(mixer.named_parameters())
    attention, _, values = mixer.attention.mix(x)
    shared = None
    if spec.value == "shared":
        shared = torch.cat([values[..., 4 * (h // 2) : 4 * (h // 2) + 4] for h in range(4)], dim=-1)
    mamba = mixer.mamba.mix(x, shared)
    if spec.norm == "group":
        attention = rms_normed(attention, w["attention_norm.weight"])
        mamba = rms_normed(mamba, w["mamba_norm.weight"])
    if spec.scalar == "scale":
        attention, mamba = attention * w["attention_scale"], mamba * w["mamba_scale"]
    elif spec.scalar == "diff_t":
        q1, k1, q2, k2 = (w[f"attention_lambda.{name}"] for name in ("q1", "k1", "q2", "k2"))
        attention = attention * ((q1 @ k1).exp() - (q2 @ k2).exp() + lambda_init(3))
    elif spec.scalar == "gate":
        g = 1 / (1 + torch.exp(-(x * w["gate_proj.weight"][0]).sum(-1, keepdim=True)))
        attention, mamba = g * attention, (1 - g) * mamba
    attention, mamba = spec.attention_multiplier * attention, spec.mamba_multiplier * mamba
    sign = -1 if spec.fusion == "diff" else 1
    if spec.output == "separate":
        return mamba @ w["mamba_out_proj.weight"].T + sign * (attention @ w["attention_out_proj.weight"].T)
    fused = torch.cat((mamba, attention), -1) if spec.fusion == "concat" else mamba + sign * attention
    return fused @ w["out_proj.weight"].T


@every_axis
def test_every_setting_equals_its_formula(spec: IntraSpec) -> None:
    mixer = built(spec)
    torch.testing.assert_close(mixer(inputs()), by_formula(mixer, spec, inputs()), rtol=0, atol=1e-12)


@every_axis
def test_step_over_a_partition_equals_forward_and_gradients_reach_every_parameter(spec: IntraSpec) -> None:
    mixer = built(spec)
    x = inputs()
    y = mixer(x)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in mixer.parameters())
    state = mixer.init_state(2, 9, torch.device("cpu"), torch.float64)
    outputs: list[Tensor] = []
    with torch.no_grad():
        for piece in x.split((1, 4, 1, 3), dim=1):
            out, state = mixer.step(piece, state)
            outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 1), y.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fusion", ["add", "diff", "concat"])
def test_multipliers_are_factors_of_each_modules_output(fusion: str) -> None:
    spec = replace(PLAIN, fusion=fusion, norm="group", scalar="scale", attention_multiplier=1.7, mamba_multiplier=0.3)
    mixer = built(spec)
    torch.testing.assert_close(mixer(inputs()), by_formula(mixer, spec, inputs()), rtol=0, atol=1e-12)


def test_shared_values_are_those_of_a_mamba_whose_x_rows_are_attentions_value_rows() -> None:
    shared, separate = built(replace(PLAIN, value="shared")), built(PLAIN, seed=2)
    weights = dict(shared.named_parameters())
    value_rows = weights["attention.qkv_proj.weight"][8 + 4 :].unflatten(0, (2, 4))
    z_rows, bc_dt_rows = weights["mamba.in_proj.weight"].split((16, 2 * 3 + 4))
    in_proj = torch.cat((z_rows, value_rows.repeat_interleave(2, 0).flatten(0, 1), bc_dt_rows))
    separate.load_state_dict({**weights, "mamba.in_proj.weight": in_proj})
    torch.testing.assert_close(shared(inputs()), separate(inputs()), rtol=0, atol=1e-12)


def test_shared_values_leave_mamba_no_projection_of_its_own() -> None:
    def rows(spec: IntraSpec) -> int:
        return len(built(spec).mamba.in_proj.weight)

    assert rows(PLAIN) == 2 * 16 + 2 * 3 + 4
    assert rows(replace(PLAIN, value="shared")) == 16 + 2 * 3 + 4


def test_a_gate_of_zero_weights_gives_either_module_half() -> None:
    gate = built(replace(PLAIN, scalar="gate")).gate_proj
    assert gate is not None
    weight = gate(inputs())
    assert weight.shape == (2, 9, 1)
    assert 0 < weight.min() < weight.max() < 1
    with torch.no_grad():
        gate.weight.zero_()
        assert torch.equal(gate(inputs()), torch.full((2, 9, 1), 0.5, dtype=torch.float64))


def test_parameter_names_are_those_of_the_settings() -> None:
    def own(spec: IntraSpec) -> set[str]:
        return {name for name in dict(built(spec).named_parameters()) if not name.startswith(("attention.", "mamba."))}

    assert own(PLAIN) == {"out_proj.weight"}
    assert own(replace(PLAIN, output="separate")) == {"mamba_out_proj.weight", "attention_out_proj.weight"}
    assert own(replace(PLAIN, scalar="gate")) == {"out_proj.weight", "gate_proj.weight"}
    assert own(replace(PLAIN, norm="group", scalar="scale", fusion="concat")) == {
        "out_proj.weight",
        "attention_norm.weight",
        "mamba_norm.weight",
        "attention_scale",
        "mamba_scale",
    }
    assert own(replace(PLAIN, scalar="diff_t", lambda_depth=1)) == {
        "out_proj.weight",
        *(f"attention_lambda.{name}" for name in ("q1", "k1", "q2", "k2")),
    }


def test_lambda_starts_near_its_depths_value_and_stays_float32() -> None:
    assert [round(lambda_init(depth), 4) for depth in (1, 2, 13)] == [0.2, 0.3555, 0.7836]
    scalar = DiffLambda(64, 5)
    scalar.init_weights(Initializer(scalar, 1, std=0.5, residual_std=0.5))
    vectors = torch.cat(list(scalar.parameters())).detach()
    assert float(vectors.std()) == pytest.approx(0.1, rel=0.1)
    assert float(scalar().detach()) == pytest.approx(lambda_init(5), abs=0.5)
    assert scalar.bfloat16()().dtype == torch.float32


def test_windowed_attention_inside_the_block_keeps_a_bounded_state() -> None:
    spec = replace(PLAIN, attention=replace(ATTENTION, window=WindowSpec(size=3, sink=1)))
    mixer, x = built(spec), inputs(13)
    state = mixer.init_state(2, 13, torch.device("cpu"), torch.float64)
    outputs: list[Tensor] = []
    with torch.no_grad():
        for piece in x.split((5, 1, 1, 6), dim=1):
            y, state = mixer.step(piece, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), mixer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scalar", ["none", "scale", "diff_t", "gate"])
@pytest.mark.parametrize("value", ["separate", "shared"])
def test_bfloat16_autocast_is_finite_and_near_float32(scalar: str, value: str) -> None:
    spec = replace(PLAIN, norm="group", scalar=scalar, value=value, lambda_depth=2 if scalar == "diff_t" else None)
    mixer = built(spec).float()
    x = inputs().float().requires_grad_()
    plain = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
    gradients = torch.autograd.grad(y.float().sum(), (x, *mixer.parameters()))
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert float((y.float() - plain).detach().norm() / plain.detach().norm()) < 0.05


def test_a_mamba_without_output_or_values_of_its_own_says_so() -> None:
    mixer = built(PLAIN)
    with pytest.raises(TypeError, match="without an output projection"):
        mixer.mamba(inputs())
    with pytest.raises(TypeError, match="values_BLI: expected none"):
        mixer.mamba.mix(inputs(), torch.zeros(2, 9, 16, dtype=torch.float64))
