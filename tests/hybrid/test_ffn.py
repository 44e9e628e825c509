"""Feed-forward networks beside their formulas, written token by token, and beside transformers' DeepSeek-V3."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.ffn import Moe, Relu2, Swiglu, build_ffn
from hybrid.init import Initializer
from hybrid.spec import FfnSpec, MoeSpec, Relu2Spec, SwigluSpec

D_MODEL = 12
SPECS: list[FfnSpec] = [
    SwigluSpec(d_ffn=10),
    Relu2Spec(d_ffn=10),
    MoeSpec(d_ffn=10, n_experts=5, top_k=2, n_shared=1, bias_step=1e-3),
]
MOES = [
    MoeSpec(d_ffn=6, n_experts=4, top_k=1, n_shared=1, bias_step=1e-3),
    MoeSpec(d_ffn=6, n_experts=5, top_k=2, n_shared=0, bias_step=1e-3),
    MoeSpec(d_ffn=6, n_experts=4, top_k=4, n_shared=2, bias_step=1e-3),
    MoeSpec(d_ffn=6, n_experts=40, top_k=3, n_shared=1, bias_step=1e-3),
]


def built(spec: FfnSpec, std: float = 0.5) -> nn.Module:
    ffn = build_ffn(spec, D_MODEL)
    ffn.init_weights(Initializer(ffn, 1, std=std, residual_std=std))
    return ffn


def moe(spec: MoeSpec, std: float = 0.5) -> Moe:
    made = built(spec, std)
    assert isinstance(made, Moe)
    return made


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (gate_up @ x).chunk(2)
    return down @ (F.silu(gate) * up)


def naive_moe(ffn: Moe, x_BLD: Tensor) -> tuple[Tensor, list[int]]:
    """One token after the other, one expert after the other."""
    spec, outputs, loads = ffn.spec, [], [0] * ffn.spec.n_experts
    for x in x_BLD.flatten(0, 1):
        scores = torch.sigmoid(ffn.router.weight @ x)
        biased = (scores.detach() + ffn.expert_bias).tolist()
        ranked = sorted(range(spec.n_experts), key=biased.__getitem__, reverse=True)
        chosen = ranked[: spec.top_k]
        total = sum((scores[e] for e in chosen), torch.zeros(())) if spec.top_k > 1 else torch.ones(())
        y = torch.zeros_like(x)
        for expert in chosen:
            loads[expert] += 1
            y = y + scores[expert] / total * swiglu(x, ffn.experts_gate_up[expert], ffn.experts_down[expert])
        if ffn.shared is not None:
            y = y + swiglu(x, ffn.shared.gate_up_proj.weight, ffn.shared.down_proj.weight)
        outputs.append(y)
    return torch.stack(outputs).view_as(x_BLD), loads


def gradients(y: Tensor, x: Tensor, ffn: nn.Module) -> dict[str, Tensor]:
    """Of a sum that weighs every element of the output differently."""
    names = ["x", *(name for name, _ in ffn.named_parameters())]
    weighted = (y * noise(*y.shape, seed=5).to(y)).sum()
    return dict(zip(names, torch.autograd.grad(weighted, [x, *ffn.parameters()]), strict=True))


@pytest.mark.parametrize("spec", MOES)
def test_moe_equals_one_token_after_the_other(spec: MoeSpec) -> None:
    ffn = moe(spec).double()
    with torch.no_grad():
        ffn.expert_bias.copy_(0.3 * noise(spec.n_experts, seed=2))
    x = noise(2, 9, D_MODEL).double().requires_grad_()
    y, load = ffn(x)
    expected, loads = naive_moe(ffn, x)
    assert load.tolist() == loads
    assert not load.requires_grad
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    theirs = gradients(expected, x, ffn)
    for name, grad in gradients(y, x, ffn).items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-11, atol=1e-13, msg=lambda text, name=name: name + text)


def test_relu2_and_swiglu_equal_their_formulas() -> None:
    x = noise(2, 3, D_MODEL).double()
    relu2, glu = built(SPECS[1]).double(), built(SPECS[0]).double()
    assert isinstance(relu2, Relu2)
    assert isinstance(glu, Swiglu)
    squares = torch.relu(x @ relu2.up_proj.weight.T) ** 2
    torch.testing.assert_close(relu2(x), squares @ relu2.down_proj.weight.T)
    gate, up = x @ glu.gate_up_proj.weight[:10].T, x @ glu.gate_up_proj.weight[10:].T
    torch.testing.assert_close(glu(x), (gate * torch.sigmoid(gate) * up) @ glu.down_proj.weight.T)


def test_no_token_is_dropped_however_skewed_the_load() -> None:
    spec = MOES[0]
    ffn = moe(spec)
    with torch.no_grad():
        ffn.expert_bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    x = noise(2, 9, D_MODEL)
    y, load = ffn(x)
    assert load.tolist() == [0, 18, 0, 0]
    torch.testing.assert_close(y, naive_moe(ffn, x)[0])


def test_experts_without_tokens_have_a_gradient_of_zero() -> None:
    ffn = moe(MOES[0])
    with torch.no_grad():
        ffn.expert_bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    ffn(noise(1, 7, D_MODEL))[0].square().sum().backward()
    for parameter in (ffn.experts_gate_up, ffn.experts_down):
        assert parameter.grad is not None
        assert [bool(grad.any()) for grad in parameter.grad] == [False, True, False, False]


def test_a_single_chosen_score_is_not_normalised_so_that_the_router_learns() -> None:
    """Normalised, the one score would be 1 whatever the router says."""
    spec = replace(MOES[0], n_shared=0)
    ffn = moe(spec).double()
    x = noise(1, 9, D_MODEL).double()
    y, _ = ffn(x)
    y.square().sum().backward()
    grad = ffn.router.weight.grad
    assert grad is not None
    assert float(grad.abs().max()) > 1e-3
    # The output is the score times the expert's own: the score is read off it.
    token = x[0, 0]
    score, expert = torch.sigmoid(ffn.router.weight @ token).max(0)
    alone = swiglu(token, ffn.experts_gate_up[expert], ffn.experts_down[expert])
    torch.testing.assert_close(y[0, 0], score * alone, rtol=1e-12, atol=1e-14)
    assert 0.1 < score.item() < 0.99


def test_several_chosen_scores_sum_to_one() -> None:
    """With all experts alike, the weighted mean of their outputs is the output of any."""
    ffn = moe(replace(MOES[1], top_k=3)).double()
    with torch.no_grad():
        ffn.experts_gate_up.copy_(ffn.experts_gate_up[:1].expand_as(ffn.experts_gate_up))
        ffn.experts_down.copy_(ffn.experts_down[:1].expand_as(ffn.experts_down))
    x = noise(1, 4, D_MODEL).double()
    alone = torch.stack([swiglu(token, ffn.experts_gate_up[0], ffn.experts_down[0]) for token in x[0]])
    torch.testing.assert_close(ffn(x)[0][0], alone, rtol=1e-12, atol=1e-14)


def test_scores_that_vanish_are_no_division_by_zero() -> None:
    ffn = moe(MOES[1])
    with torch.no_grad():
        ffn.router.weight.fill_(-1e3)
    y, _ = ffn(torch.ones(1, 3, D_MODEL))
    y.sum().backward()
    assert bool(y.isfinite().all())
    assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in ffn.parameters())


def test_the_bias_changes_who_is_chosen_and_never_the_weights() -> None:
    ffn = moe(replace(MOES[2], top_k=2)).double()
    x = noise(1, 1, D_MODEL).double()
    scores = torch.sigmoid(ffn.router.weight @ x[0, 0])
    last, second_last = (int(expert) for expert in scores.argsort()[:2])
    with torch.no_grad():
        ffn.expert_bias[[last, second_last]] += 5.0
    y, load = ffn(x)
    assert {expert for expert, count in enumerate(load.tolist()) if count} == {last, second_last}
    expected, _ = naive_moe(ffn, x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)


def test_balancing_moves_every_bias_one_step_towards_the_mean_load() -> None:
    ffn = moe(MOES[0])
    ffn.balance(torch.tensor([10, 4, 7, 7]))
    assert ffn.expert_bias.tolist() == pytest.approx([-1e-3, 1e-3, 0.0, 0.0])
    ffn.balance(torch.tensor([10.0, 4.0, 6.0, 7.0]))
    assert ffn.expert_bias.tolist() == pytest.approx([-2e-3, 2e-3, 1e-3, -1e-3])
    assert ffn.expert_bias.dtype == torch.float32


def test_a_skewed_router_becomes_balanced() -> None:
    spec = MoeSpec(d_ffn=4, n_experts=8, top_k=2, n_shared=0, bias_step=2e-3)
    ffn = moe(spec, std=0.1)
    x = noise(4, 64, D_MODEL) + 1.0
    with torch.no_grad():  # every token has the same favourites
        ffn.router.weight += 0.1 * noise(spec.n_experts, 1, seed=3)
    ratios = []
    for _ in range(400):
        load = ffn(x)[1].double()
        ratios.append(float(load.max() / load.mean()))
        ffn.balance(load)
    assert ratios[0] > 3.0
    assert max(ratios[-20:]) < 1.2


def test_the_bias_is_saved_and_is_no_parameter() -> None:
    ffn = moe(MOES[0])
    assert "expert_bias" in ffn.state_dict()
    assert "expert_bias" not in dict(ffn.named_parameters())
    assert not ffn.expert_bias.requires_grad


def test_initial_weights_set_the_bias_of_a_module_that_was_only_planned() -> None:
    with torch.device("meta"):
        ffn = Moe(MOES[0], D_MODEL)
    ffn.to_empty(device="cpu")
    ffn.expert_bias.fill_(7.0)
    ffn.init_weights(Initializer(ffn, 1, std=0.5, residual_std=0.5))
    expected = moe(MOES[0]).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ffn.state_dict().items())


def test_routing_is_in_float32_whatever_autocast_says() -> None:
    ffn = moe(MOES[3])
    x = noise(2, 50, D_MODEL)
    _, full = ffn(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, half = ffn(x)
    assert torch.equal(full, half)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert ffn.router.weight.grad is not None
    assert ffn.router.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_twice_is_the_same_to_the_last_bit_and_deterministic(spec: FfnSpec) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            ffn, x = built(spec), noise(3, 40, D_MODEL).requires_grad_()
            y = ffn(x)
            results.append(gradients(y[0] if isinstance(y, tuple) else y, x, ffn))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(grad, results[1][name]) for name, grad in results[0].items())


@pytest.mark.parametrize("spec", SPECS)
def test_a_position_depends_on_itself_alone(spec: FfnSpec) -> None:
    ffn = built(spec).double()
    x = noise(1, 6, D_MODEL).double().requires_grad_()
    y = ffn(x)
    y = y[0] if isinstance(y, tuple) else y
    (grad,) = torch.autograd.grad(y[0, 3].sum(), x)
    assert [bool(row.any()) for row in grad[0]] == [False, False, False, True, False, False]


@pytest.mark.parametrize("spec", SPECS)
def test_half_precision_gives_its_own_dtype(spec: FfnSpec) -> None:
    y = built(spec).bfloat16()(noise(2, 5, D_MODEL).bfloat16())
    y = y[0] if isinstance(y, tuple) else y
    assert y.dtype == torch.bfloat16
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("top_k", [1, 3])
def test_moe_equals_deepseek_v3_of_transformers(top_k: int) -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    spec = MoeSpec(d_ffn=6, n_experts=8, top_k=top_k, n_shared=2, bias_step=1e-3)
    ours = moe(spec)
    with torch.no_grad():
        ours.expert_bias.copy_(0.3 * noise(8, seed=2))
    theirs = DeepseekV3MoE(
        DeepseekV3Config(
            hidden_size=D_MODEL,
            moe_intermediate_size=spec.d_ffn,
            n_routed_experts=spec.n_experts,
            num_experts_per_tok=top_k,
            n_shared_experts=spec.n_shared,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=1.0,
            norm_topk_prob=top_k > 1,
        )
    )
    assert ours.shared is not None
    gate, up = ours.shared.gate_up_proj.weight.chunk(2)
    theirs.load_state_dict(
        {
            "gate.weight": ours.router.weight,
            "gate.e_score_correction_bias": ours.expert_bias,
            "experts.gate_up_proj": ours.experts_gate_up,
            "experts.down_proj": ours.experts_down,
            "shared_experts.gate_proj.weight": gate,
            "shared_experts.up_proj.weight": up,
            "shared_experts.down_proj.weight": ours.shared.down_proj.weight,
        }
    )
    x = noise(2, 30, D_MODEL)
    torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-5, atol=1e-6)
