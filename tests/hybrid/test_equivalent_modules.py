"""Settings of the intra-hybrid block that make the same model, shown on modules.

1. `diff` is `add` with the sign of attention's value projection flipped: attention is linear in its values, RMSNorm,
   scales and projections commute with the sign, a lambda or a gate passes it on, the initial values are symmetric
   about zero, and AdamW's update is odd in the gradient. To the bit, and for every learned scalar, the Diff-T one too.
   With shared values the sign would reach Mamba; but Mamba takes the values through its convolution alone, whose
   weights on them are flipped too, and are symmetric about zero themselves.
2. `concat` with a joint output is `add` with separate outputs: one product of a concatenation is a sum of two.
"""

import itertools
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from hybrid.model import LanguageModel, scored_loss
from hybrid.spec import AdamWSpec, AttentionSpec, BlockSpec, IntraSpec, Mamba2Spec, ModelSpec, RopeSpec, SwigluSpec
from hybrid.train.optim import build_optimizer, clip_gradients, global_norm, gradients

STEPS = 20
INTRA = IntraSpec(
    attention=AttentionSpec(
        n_heads=4, n_kv_heads=2, head_dim=2, value_head_dim=4, rope=RopeSpec(theta=10_000.0, scaling=None)
    ),
    mamba=Mamba2Spec(
        d_ssm=16,
        head_dim=4,
        d_state=3,
        n_groups=1,
        d_conv=3,
        a_init_min=0.01,
        a_init_max=2.0,
        dt_init_min=0.001,
        dt_init_max=0.1,
    ),
    norm="none",
    scalar="none",
    fusion="add",
    value="separate",
    output="joint",
    lambda_depth=None,
    attention_multiplier=1.0,
    mamba_multiplier=1.0,
)
ADAMW = AdamWSpec(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=1.0)
TOKENS = torch.randint(17, (STEPS, 2, 12), generator=torch.Generator().manual_seed(0))


def model(intra: IntraSpec) -> LanguageModel:
    blocks = (BlockSpec(mixer=intra, ffn=SwigluSpec(d_ffn=20)), BlockSpec(mixer=intra, ffn=None))
    spec = ModelSpec(d_model=12, vocab_size=17, tie_embeddings=True, norm_eps=1e-5, init_std=0.3, blocks=blocks)
    return built(spec)


def built(spec: ModelSpec) -> LanguageModel:
    result = LanguageModel(spec, ssd_chunk=4)
    result.init_weights(1)
    return result


def flipped(weights: dict[str, Tensor], *, convolution: bool = False) -> dict[str, Tensor]:
    """The sign of all that attention's values are made of; with `convolution`, that of Mamba's taps on them too."""
    result = {name: weight.clone() for name, weight in weights.items()}
    for name, weight in result.items():
        if name.endswith(("qkv_proj.weight", "attention.conv_bias")):
            weight[-8:] *= -1.0
        if convolution and name.endswith("mamba.conv_weight"):
            weight[:16] *= -1.0
    return result


def trained(language_model: LanguageModel) -> list[float]:
    """Losses of AdamW steps, as the training loop makes them, clipped."""
    optimizer = build_optimizer(ADAMW, language_model)
    losses: list[float] = []
    for text in TOKENS:
        optimizer.zero_grad()
        loss, n_scored, _ = scored_loss(language_model(text[:, :-1]), text[:, 1:])
        (loss / n_scored).backward()
        grads = gradients(list(language_model.parameters()))
        clip_gradients(grads, float(global_norm(grads)), ADAMW.grad_clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def weights_of(language_model: LanguageModel) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in language_model.state_dict().items()}


def assert_diff_is_add(intra: IntraSpec) -> None:
    """Equal losses at every step, and equal weights at the end up to the signs of the beginning."""
    shared = intra.value == "shared"
    add, diff = model(replace(intra, fusion="add")), model(replace(intra, fusion="diff"))
    diff.load_state_dict(flipped(weights_of(add), convolution=shared))
    add_losses, diff_losses = trained(add), trained(diff)
    assert add_losses == diff_losses
    assert add_losses[-1] != add_losses[0]
    expected = weights_of(add)
    for name, weight in flipped(weights_of(diff), convolution=shared).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize(
    ("scalar", "norm", "output"),
    list(itertools.product(("none", "scale", "diff_t", "gate"), ("group", "none"), ("joint", "separate"))),
)
def test_diff_with_flipped_values_is_add_to_the_bit_over_adamw_steps(scalar: str, norm: str, output: str) -> None:
    depth = 2 if scalar == "diff_t" else None
    assert_diff_is_add(replace(INTRA, scalar=scalar, norm=norm, output=output, lambda_depth=depth))


def test_diff_with_flipped_values_is_add_through_a_convolution_on_the_values() -> None:
    attention = replace(INTRA.attention, qkv_conv=3)
    assert_diff_is_add(replace(INTRA, attention=attention, norm="group"))


@pytest.mark.parametrize("scalar", ["none", "scale", "diff_t", "gate"])
def test_with_shared_values_flipping_the_values_alone_does_not_make_diff_add(scalar: str) -> None:
    depth = 2 if scalar == "diff_t" else None
    intra = replace(INTRA, value="shared", scalar=scalar, norm="group", lambda_depth=depth)
    add, diff = model(replace(intra, fusion="add")), model(replace(intra, fusion="diff"))
    diff.load_state_dict(flipped(weights_of(add)))
    assert abs(trained(add)[0] - trained(diff)[0]) > 1e-3


@pytest.mark.parametrize(
    ("scalar", "norm", "output"),
    [
        ("none", "group", "joint"),
        ("scale", "none", "separate"),
        ("diff_t", "group", "separate"),
        ("diff_t", "none", "joint"),
        ("gate", "none", "joint"),
    ],
)
def test_with_shared_values_flipping_the_values_and_their_taps_makes_diff_add(
    scalar: str, norm: str, output: str
) -> None:
    depth = 2 if scalar == "diff_t" else None
    assert_diff_is_add(replace(INTRA, value="shared", scalar=scalar, norm=norm, output=output, lambda_depth=depth))


def test_the_sign_of_borrowed_values_is_that_of_all_who_read_them() -> None:
    # An attention block that lends takes the sign back in its output projection; the borrowers change their fusion.
    def spec(fusion: Literal["add", "diff"]) -> ModelSpec:
        mixers = (INTRA.attention, replace(INTRA, fusion=fusion, attention=replace(INTRA.attention, borrows_kv=True)))
        return replace(model(INTRA).spec, blocks=tuple(BlockSpec(mixer=mixer, ffn=None) for mixer in mixers))

    add, diff = built(spec("add")), built(spec("diff"))
    weights = weights_of(add)
    for part in (weights["blocks.0.mixer.qkv_proj.weight"][-8:], weights["blocks.0.mixer.out_proj.weight"]):
        part *= -1.0
    diff.load_state_dict(weights)
    assert trained(built(spec("add"))) == trained(diff)


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("scalar", ["none", "scale", "diff_t", "gate"])
@pytest.mark.parametrize("value", ["separate", "shared"])
def test_concat_with_a_joint_output_is_add_with_separate_outputs(norm: str, scalar: str, value: str) -> None:
    depth = 2 if scalar == "diff_t" else None
    intra = replace(INTRA, norm=norm, scalar=scalar, value=value, lambda_depth=depth)
    concat = model(replace(intra, fusion="concat", output="joint")).double()
    add = model(replace(intra, fusion="add", output="separate")).double()
    weights = weights_of(concat)
    for name in [name for name in weights if name.endswith("mixer.out_proj.weight")]:
        joint = weights.pop(name)
        prefix = name.removesuffix("out_proj.weight")
        weights[f"{prefix}mamba_out_proj.weight"], weights[f"{prefix}attention_out_proj.weight"] = joint.split(16, 1)
    add.load_state_dict(weights)
    got, expected = concat(TOKENS[0]), add(TOKENS[0])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    got.backward(upstream)
    expected.backward(upstream)
    others = dict(add.named_parameters())
    for name, parameter in concat.named_parameters():
        if name.endswith("mixer.out_proj.weight"):
            prefix = name.removesuffix("out_proj.weight")
            parts = (others[f"{prefix}{module}_out_proj.weight"].grad for module in ("mamba", "attention"))
            other = torch.cat([part for part in parts if part is not None], 1)
        else:
            grad = others[name].grad
            assert grad is not None
            other = grad
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, other, rtol=1e-10, atol=1e-10)


def test_concat_and_separate_outputs_start_from_the_same_distribution() -> None:
    concat = model(replace(INTRA, fusion="concat", output="joint"))
    add = model(replace(INTRA, fusion="add", output="separate"))
    joint = [w.flatten() for name, w in weights_of(concat).items() if name.endswith("mixer.out_proj.weight")]
    apart = [w.flatten() for name, w in weights_of(add).items() if name.endswith("_out_proj.weight")]
    one, other = torch.cat(joint), torch.cat(apart)
    assert one.numel() == other.numel() == 2 * 32 * 12
    assert float(one.std()) == pytest.approx(float(other.std()), rel=0.1)
