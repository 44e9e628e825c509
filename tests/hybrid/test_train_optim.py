import math
from dataclasses import replace

import pytest
import torch

from hybrid.model import LanguageModel
from hybrid.spec import (
    AdamWSpec,
    AttentionSpec,
    BlockSpec,
    DiffAttentionSpec,
    DiffMambaSpec,
    IntraSpec,
    Mamba2Spec,
    ModelSpec,
    MoeSpec,
    Relu2Spec,
    RopeSpec,
    ShortConvSpec,
    SwigluSpec,
)
from hybrid.train.optim import build_optimizer, clip_gradients, global_norm, gradients, parameter_groups

ADAMW = AdamWSpec(lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=1.0)
MAMBA = Mamba2Spec(
    d_ssm=16,
    head_dim=4,
    d_state=4,
    n_groups=1,
    d_conv=4,
    a_init_min=1.0,
    a_init_max=16.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)


def model(*, tie_embeddings: bool = True) -> LanguageModel:
    attention = AttentionSpec(n_heads=2, n_kv_heads=1, head_dim=4, rope=None)
    built = LanguageModel(
        ModelSpec(
            d_model=8,
            vocab_size=12,
            tie_embeddings=tie_embeddings,
            norm_eps=1e-5,
            init_std=0.02,
            blocks=(
                BlockSpec(mixer=attention, ffn=SwigluSpec(d_ffn=16)),
                BlockSpec(mixer=MAMBA, ffn=None),
            ),
        )
    )
    built.init_weights(1)
    return built


def every_kind() -> LanguageModel:
    """Everything that may be in a model, but for outside mixers."""
    scaling = RopeSpec(theta=10_000.0, scaling=None)
    attention = AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=4, rope=scaling, qkv_conv=3)
    mamba = replace(MAMBA, d_ssm=8)
    intra = IntraSpec(
        attention=replace(attention, qkv_conv=None),
        mamba=mamba,
        norm="group",
        scalar="gate",
        fusion="add",
        value="separate",
        output="separate",
        lambda_depth=1,
        attention_multiplier=1.0,
        mamba_multiplier=1.0,
    )
    mixers = (
        attention,
        MAMBA,
        DiffAttentionSpec(n_heads=1, n_kv_heads=1, head_dim=4, rope=scaling, depth=1, norm="head", fusion="diff"),
        DiffMambaSpec(mamba=MAMBA, depth=2, norm="output"),
        *(replace(intra, scalar=scalar) for scalar in ("none", "scale", "diff_t", "gate")),
        ShortConvSpec(d_conv=3),
    )
    ffns = (
        SwigluSpec(d_ffn=16),
        Relu2Spec(d_ffn=16),
        MoeSpec(d_ffn=4, n_experts=3, top_k=1, n_shared=1, bias_step=1e-3),
    )
    blocks = tuple(BlockSpec(mixer=mixer, ffn=ffns[i % 3]) for i, mixer in enumerate(mixers))
    built = LanguageModel(
        ModelSpec(
            d_model=8,
            vocab_size=12,
            tie_embeddings=False,
            norm_eps=1e-5,
            init_std=0.02,
            blocks=(*blocks, *(replace(block, tie="end") for block in blocks[-1:] * 2)),
            meta_tokens=2,
        )
    )
    built.init_weights(1)
    return built


def test_of_every_kind_of_block_it_is_the_matrices_that_decay() -> None:
    built = every_kind()
    decayed = {id(parameter) for parameter in parameter_groups(built)["decay"]}
    last = {True: set[str](), False: set[str]()}
    for name, parameter in built.named_parameters():
        parent, _, own = name.rpartition(".")
        last[id(parameter) in decayed].add(parent.rpartition(".")[2] + "." + own if own == "weight" else own)
    assert last[True] == {
        *("embedding", "head", "meta_tokens", "router.weight", "experts_gate_up", "experts_down", "gate_proj.weight"),
        *("qkv_proj.weight", "in_proj.weight", "out_proj.weight", "mamba_out_proj.weight"),
        *("attention_out_proj.weight", "gate_up_proj.weight", "up_proj.weight", "down_proj.weight"),
    }
    assert last[False] == {
        *("mixer_norm.weight", "ffn_norm.weight", "final_norm.weight", "norm.weight"),
        *("attention_norm.weight", "mamba_norm.weight"),
        *("conv_weight", "conv_bias", "dt_bias", "A_log", "D"),
        *("q1", "k1", "q2", "k2", "lambda_q", "attention_scale", "mamba_scale"),
    }


def test_experts_biases_are_not_for_the_optimiser() -> None:
    built = every_kind()
    optimized = {id(parameter) for group in parameter_groups(built).values() for parameter in group}
    buffers = dict(built.named_buffers())
    assert {name.rpartition(".")[2] for name in buffers} == {"expert_bias"}
    assert not optimized & {id(buffer) for buffer in buffers.values()}
    assert len(optimized) == sum(len(group) for group in parameter_groups(built).values())


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_the_groups_hold_every_parameter_once(tie_embeddings: bool) -> None:
    built = model(tie_embeddings=tie_embeddings)
    grouped = [id(parameter) for group in parameter_groups(built).values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in built.parameters())


def test_projections_and_embeddings_decay_and_nothing_else_does() -> None:
    built = model(tie_embeddings=False)
    decayed = {id(parameter) for parameter in parameter_groups(built)["decay"]}
    names = {name for name, parameter in built.named_parameters() if id(parameter) in decayed}
    rest = {name.rpartition(".")[2] for name, parameter in built.named_parameters() if id(parameter) not in decayed}
    assert {"embedding", "head"} <= names
    assert all(name in ("embedding", "head") or "_proj" in name or ".ffn." in name for name in names)
    assert rest == {"weight", "conv_weight", "conv_bias", "dt_bias", "A_log", "D"}
    assert all("norm" in name for name, _ in built.named_parameters() if name.endswith("weight") and name not in names
               and not name.endswith("conv_weight"))  # fmt: skip


def test_without_gradient_a_step_shrinks_the_decay_group_alone() -> None:
    built = model()
    optimizer = build_optimizer(ADAMW, built)
    before = [parameter.detach().clone() for parameter in built.parameters()]
    for parameter in built.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {id(parameter) for parameter in parameter_groups(built)["decay"]}
    for parameter, old in zip(built.parameters(), before, strict=True):
        factor = 1 - ADAMW.lr * ADAMW.weight_decay if id(parameter) in decayed else 1.0
        torch.testing.assert_close(parameter.detach(), old * factor, rtol=1e-6, atol=0.0)


def test_a_step_is_adamw_written_out() -> None:
    built = model()
    optimizer = build_optimizer(ADAMW, built)
    parameter = built.embedding
    expected = parameter.detach().double()
    first, second = torch.zeros_like(expected), torch.zeros_like(expected)
    generator = torch.Generator().manual_seed(3)
    for step in (1, 2, 3):
        grad = torch.randn(parameter.shape, generator=generator)
        parameter.grad = grad
        optimizer.step()
        first = ADAMW.beta1 * first + (1 - ADAMW.beta1) * grad
        second = ADAMW.beta2 * second + (1 - ADAMW.beta2) * grad.double() ** 2
        direction = (first / (1 - ADAMW.beta1**step)) / ((second / (1 - ADAMW.beta2**step)).sqrt() + ADAMW.eps)
        expected = expected * (1 - ADAMW.lr * ADAMW.weight_decay) - ADAMW.lr * direction
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-7)


def test_clipping_gives_the_wanted_norm_and_keeps_the_direction() -> None:
    grads = [torch.full((3, 4), 2.0, dtype=torch.float64), torch.full((5,), -1.0, dtype=torch.float64)]
    before = torch.cat([grad.flatten() for grad in grads])
    norm = float(global_norm(grads))
    assert norm == pytest.approx(math.sqrt(3 * 4 * 4 + 5), rel=1e-12)
    clip_gradients(grads, norm, 0.5)
    after = torch.cat([grad.flatten() for grad in grads])
    assert float(global_norm(grads)) == pytest.approx(0.5, rel=1e-12)
    torch.testing.assert_close(after, before * (0.5 / norm), rtol=1e-12, atol=0.0)


def test_short_gradients_keep_every_bit() -> None:
    grads = [torch.tensor([0.3, -0.1])]
    clip_gradients(grads, float(global_norm(grads)), 1.0)
    assert torch.equal(grads[0], torch.tensor([0.3, -0.1]))


def test_parameters_without_gradient_are_left_out() -> None:
    built = model()
    built.embedding.grad = torch.ones_like(built.embedding)
    assert len(gradients(list(built.parameters()))) == 1
