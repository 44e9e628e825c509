"""The probe of gated intra-hybrid blocks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hybrid.evals.module_weights import module_weights
from hybrid.mixers import Intra
from hybrid.model import LanguageModel
from hybrid.spec import AttentionSpec, BlockSpec, IntraSpec, Mamba2Spec, ModelSpec, MoeSpec

MAMBA = Mamba2Spec(
    d_ssm=8,
    head_dim=4,
    d_state=3,
    n_groups=1,
    d_conv=3,
    a_init_min=0.01,
    a_init_max=2.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)
GATED = IntraSpec(
    attention=AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=4, rope=None),
    mamba=MAMBA,
    norm="group",
    scalar="gate",
    fusion="add",
    value="separate",
    output="joint",
    lambda_depth=None,
    attention_multiplier=1.0,
    mamba_multiplier=1.0,
)
MOE = MoeSpec(d_ffn=4, n_experts=3, top_k=1, n_shared=1, bias_step=0.001)
SPEC = ModelSpec(
    d_model=8,
    vocab_size=11,
    tie_embeddings=True,
    norm_eps=1e-5,
    init_std=0.5,
    blocks=(
        BlockSpec(mixer=MAMBA, ffn=None),
        BlockSpec(mixer=GATED, ffn=MOE, tie="t"),
        BlockSpec(mixer=replace(GATED, scalar="none"), ffn=None),
        BlockSpec(mixer=GATED, ffn=MOE, tie="t"),
    ),
    meta_tokens=2,
)


def built(spec: ModelSpec = SPEC) -> LanguageModel:
    model = LanguageModel(spec, ssd_chunk=4)
    model.init_weights(1)
    return model


def tokens(length: int = 7) -> Tensor:
    return torch.randint(11, (3, length), generator=torch.Generator().manual_seed(0))


def test_weights_are_the_gates_of_each_blocks_input() -> None:
    model = built(replace(SPEC, meta_tokens=0))
    expected: list[Tensor] = []
    with torch.no_grad():
        x = torch.nn.functional.embedding(tokens(), model.embedding)
        for block in model.applied_blocks():
            if isinstance(block.mixer, Intra) and block.mixer.gate_proj is not None:
                expected.append(torch.sigmoid(block.mixer_norm(x) @ block.mixer.gate_proj.weight[0]))
            x, _, _ = block(x)
    got = module_weights(model, tokens())
    assert got.blocks == (2, 4)
    torch.testing.assert_close(got.weight_KBL, torch.stack(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(got.mean_KL, torch.stack(expected).mean(1), rtol=0, atol=1e-6)


def test_meta_tokens_are_read_but_not_reported() -> None:
    with_meta, without = (
        module_weights(built(), tokens()),
        module_weights(built(replace(SPEC, meta_tokens=0)), tokens()),
    )
    assert with_meta.weight_KBL.shape == without.weight_KBL.shape == (2, 3, 7)
    assert not torch.equal(with_meta.weight_KBL[1], without.weight_KBL[1])


@pytest.mark.parametrize("training", [True, False])
def test_the_probe_leaves_the_model_as_it_was(training: bool) -> None:
    model = built().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(tokens())
    model.balance_experts()
    before_again = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module_weights(model, tokens())
    assert model.training is training
    assert float(model.expert_loads().sum()) == 0
    assert all(torch.equal(tensor, before_again[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    model.load_state_dict(before)
    assert torch.equal(model(tokens()), logits)


def test_weights_do_not_depend_on_what_comes_later() -> None:
    full, part = module_weights(built(), tokens()), module_weights(built(), tokens()[:, :4])
    torch.testing.assert_close(full.weight_KBL[..., :4], part.weight_KBL, rtol=0, atol=1e-6)


def test_a_model_without_gates_is_refused() -> None:
    with pytest.raises(ValueError, match="no intra-hybrid block with scalar = gate"):
        module_weights(built(replace(SPEC, blocks=SPEC.blocks[:1])), tokens())
