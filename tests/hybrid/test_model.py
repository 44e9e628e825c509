"""The language model as a whole: stepping, initial weights, counts, losses, memory savers."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.data import NOT_SCORED
from hybrid.mixers import state_bytes
from hybrid.model import LanguageModel, scored_loss
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    ModelSpec,
    MoeSpec,
    RopeSpec,
    SwigluSpec,
)

ATTENTION = AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=4, rope=RopeSpec(theta=10_000.0, scaling=None))
MAMBA = Mamba2Spec(
    d_ssm=24,
    head_dim=6,
    d_state=5,
    n_groups=1,
    d_conv=4,
    a_init_min=0.01,
    a_init_max=2.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)
SWIGLU = SwigluSpec(d_ffn=20)
HYBRID = ModelSpec(
    d_model=12,
    vocab_size=17,
    tie_embeddings=True,
    norm_eps=1e-5,
    init_std=0.3,
    blocks=(
        BlockSpec(mixer=MAMBA, ffn=SWIGLU),
        BlockSpec(mixer=ATTENTION, ffn=None),
        BlockSpec(mixer=MAMBA, ffn=None),
    ),
)
MOE = MoeSpec(d_ffn=6, n_experts=5, top_k=2, n_shared=1, bias_step=0.01)
INTRA = IntraSpec(
    attention=ATTENTION,
    mamba=replace(MAMBA, d_ssm=16, head_dim=4, gate_norm="none"),
    norm="group",
    scalar="gate",
    fusion="add",
    value="shared",
    output="joint",
    lambda_depth=None,
    attention_multiplier=1.0,
    mamba_multiplier=1.0,
)
BORROWER = replace(ATTENTION, borrows_kv=True)
EVERYTHING = replace(
    HYBRID,
    blocks=(
        BlockSpec(mixer=MAMBA, ffn=MOE),
        BlockSpec(mixer=ATTENTION, ffn=SWIGLU, tie="shared"),
        BlockSpec(mixer=BORROWER, ffn=MOE),
        BlockSpec(mixer=INTRA, ffn=None),
        BlockSpec(mixer=ATTENTION, ffn=SWIGLU, tie="shared"),
        BlockSpec(mixer=BORROWER, ffn=None),
    ),
    meta_tokens=3,
    embedding_multiplier=2.0,
    residual_multiplier=0.5,
    logit_multiplier=0.25,
)


def built(spec: ModelSpec = HYBRID, *, seed: int = 1, activation_checkpointing: bool = False) -> LanguageModel:
    model = LanguageModel(spec, ssd_chunk=4, activation_checkpointing=activation_checkpointing)
    model.init_weights(seed)
    return model


def tokens(length: int = 11, vocab: int = 17) -> Tensor:
    return torch.randint(vocab, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", [HYBRID, EVERYTHING], ids=["hybrid", "everything"])
@settings(max_examples=20, deadline=None)
@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_model_step_over_any_partition_equals_forward(spec: ModelSpec, pieces: list[int], seed: int) -> None:
    model = built(spec, seed=seed).double()
    text = tokens(sum(pieces))
    with torch.no_grad():
        state = model.init_state(2, sum(pieces))
        outputs: list[Tensor] = []
        for piece in text.split(pieces, dim=1):
            logits, state = model.step(piece, state)
            outputs.append(logits)
        torch.testing.assert_close(torch.cat(outputs, 1), model(text), rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", [HYBRID, EVERYTHING], ids=["hybrid", "everything"])
def test_model_gradient_reaches_no_later_token(spec: ModelSpec) -> None:
    model = built(spec).double()
    text = torch.arange(11)[None]
    (dembedding,) = torch.autograd.grad(F.normalize(model(text)[0, 5, :3], dim=0).sum(), model.embedding)
    # Token t stands at position t alone; the head reads rows 0 to 2.
    assert dembedding[6:].abs().max() == 0
    assert dembedding[5].abs().max() > 0


def test_initial_weights_are_a_function_of_seed_and_name() -> None:
    one, same, other = (dict(built(seed=seed).named_parameters()) for seed in (1, 1, 2))
    for name, parameter in one.items():
        assert torch.equal(parameter, same[name]), name
    drawn = {name for name, parameter in one.items() if not torch.equal(parameter, other[name])}
    constant = {"final_norm.weight", "blocks.0.ffn_norm.weight"}
    constant |= {f"blocks.{i}.mixer_norm.weight" for i in range(3)}
    constant |= {f"blocks.{i}.mixer.{name}" for i in (0, 2) for name in ("conv_bias", "D", "norm.weight")}
    assert drawn == set(one) - constant


def test_initial_weights_do_not_depend_on_the_other_blocks() -> None:
    # Same number of residual writes, so that the same tensors have the same scale.
    swapped = replace(HYBRID, blocks=(HYBRID.blocks[0], replace(HYBRID.blocks[2]), HYBRID.blocks[2]))
    one, other = dict(built().named_parameters()), dict(built(swapped).named_parameters())
    shared = [name for name in one if name in other and not name.startswith("blocks.1.")]
    assert len(shared) > 20
    assert all(torch.equal(one[name], other[name]) for name in shared)


def test_initialising_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = built().embedding.detach().clone()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    assert torch.equal(built().embedding, first)


def test_residual_writes_start_smaller_by_the_root_of_their_number() -> None:
    spec = replace(
        HYBRID, d_model=64, init_std=0.02, blocks=tuple(replace(b, ffn=SwigluSpec(d_ffn=256)) for b in HYBRID.blocks)
    )
    spread = {name: float(p.detach().std()) for name, p in built(spec).applied_blocks()[1].named_parameters()}
    assert spread["ffn.gate_up_proj.weight"] == pytest.approx(0.02, rel=0.05)
    assert spread["ffn.down_proj.weight"] == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert spread["mixer.out_proj.weight"] == pytest.approx(0.02 / math.sqrt(6), rel=0.1)


@pytest.mark.parametrize("spec", [HYBRID, EVERYTHING], ids=["hybrid", "everything"])
def test_model_built_on_meta_and_emptied_equals_model_built_on_cpu(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = LanguageModel(spec, ssd_chunk=4)
        assert model(torch.zeros(2, 9, dtype=torch.int64)).shape == (2, 9, 17)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().fill_(math.nan)
    model.init_weights(1)
    assert torch.equal(model(tokens()), built(spec)(tokens()))


def test_parameter_counts_equal_literal_arithmetic() -> None:
    mamba = 12 * (2 * 24 + 2 * 5 + 4) + (24 + 2 * 5) * 5 + 3 * 4 + 24 + 24 * 12
    attention = 12 * 4 * (2 * 4 + 2 * 2)
    expected = 2 * mamba + attention + 3 * 12 * 20 + 4 * 12 + 12 + 17 * 12
    assert sum(p.numel() for p in built().parameters()) == expected
    assert sum(p.numel() for p in built(replace(HYBRID, tie_embeddings=False)).parameters()) == expected + 17 * 12


def test_parameter_counts_at_the_papers_1b_widths() -> None:
    ffn = SwigluSpec(d_ffn=8192)
    attention = replace(ATTENTION, n_heads=32, n_kv_heads=8, head_dim=64)
    mamba = replace(MAMBA, d_ssm=4096, head_dim=64, d_state=128)
    blocks = (BlockSpec(mixer=attention, ffn=ffn), *(BlockSpec(mixer=mamba, ffn=ffn),) * 12)
    with torch.device("meta"):
        model = LanguageModel(replace(HYBRID, d_model=2048, vocab_size=128_256, blocks=blocks))
    attention_params = 2048 * 64 * (2 * 32 + 2 * 8)
    mamba_params = 2048 * (2 * 4096 + 2 * 128 + 64) + (4096 + 2 * 128) * 5 + 3 * 64 + 4096 + 4096 * 2048
    ffn_and_norms = 13 * (3 * 2048 * 8192 + 2 * 2048) + 2048
    expected = attention_params + 12 * mamba_params + ffn_and_norms + 128_256 * 2048
    assert sum(p.numel() for p in model.parameters()) == expected


def test_model_state_bytes_are_the_sum_over_blocks() -> None:
    state = built().init_state(3, 10)
    mamba = 3 * (3 * (24 + 2 * 5) * 4 + 24 * 5 * 4)
    attention = 3 * 10 * 2 * 2 * 4 * 4
    assert state_bytes(state) == 2 * mamba + attention


@pytest.mark.parametrize("spec", [HYBRID, EVERYTHING], ids=["hybrid", "everything"])
def test_weights_survive_a_state_dict(spec: ModelSpec) -> None:
    model, other = built(spec, seed=1), built(spec, seed=2)
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.linspace(-1, 1, len(buffer)).roll(len(name)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens()), other(tokens()))
    held = [*model.named_parameters(), *model.named_buffers()]
    assert sorted(model.state_dict()) == sorted(name for name, _ in held)
    assert len(held) == len(set(held))


@pytest.mark.parametrize("spec", [HYBRID, EVERYTHING], ids=["hybrid", "everything"])
def test_logits_at_scored_positions_are_those_of_all_positions(spec: ModelSpec) -> None:
    model = built(spec).double()
    mask = torch.zeros(2, 11, dtype=torch.bool)
    mask[0, 3] = mask[1, [4, 10]] = True
    torch.testing.assert_close(model(tokens(), mask), model(tokens())[mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", [HYBRID, EVERYTHING], ids=["hybrid", "everything"])
def test_activation_checkpointing_changes_no_bit_and_counts_no_load_twice(spec: ModelSpec) -> None:
    plain, saving = built(spec), built(spec, activation_checkpointing=True)
    for model in (plain, saving):
        model.train()
        model(tokens()).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert torch.equal(one.grad, other.grad), name
    assert torch.equal(plain.expert_loads(), saving.expert_loads())


@pytest.mark.parametrize("spec", [HYBRID, EVERYTHING], ids=["hybrid", "everything"])
def test_bfloat16_autocast_trains_on_finite_gradients(spec: ModelSpec) -> None:
    model = built(spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens())
        loss, _, _ = scored_loss(logits, tokens())
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_two_runs_give_the_same_bits() -> None:
    results: list[list[Tensor]] = []
    for _ in range(2):
        model = built()
        model(tokens()).square().sum().backward()
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_scored_loss_counts_scored_positions_only() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[1, NOT_SCORED, 3, NOT_SCORED], [NOT_SCORED, NOT_SCORED, 0, 4]])
    targets[0, 0] = logits[0, 0].argmax()
    loss, n_scored, n_correct = scored_loss(logits, targets)
    mask = targets != NOT_SCORED
    log_probs = logits.log_softmax(-1)[mask].gather(-1, targets[mask, None])
    assert float(loss) == pytest.approx(-float(log_probs.sum()), rel=1e-12)
    assert int(n_scored) == 4
    assert int(n_correct) == int((logits.argmax(-1) == targets)[mask].sum()) >= 1


def test_scored_loss_of_nothing_scored_is_zero() -> None:
    loss, n_scored, n_correct = scored_loss(torch.randn(3, 5), torch.full((3,), NOT_SCORED))
    assert (float(loss), int(n_scored), int(n_correct)) == (0.0, 0, 0)
    loss, n_scored, n_correct = scored_loss(torch.empty(0, 5), torch.empty(0, dtype=torch.int64))
    assert (float(loss), int(n_scored), int(n_correct)) == (0.0, 0, 0)


def test_bfloat16_logits_are_scored_in_float32() -> None:
    logits = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.zeros(64, dtype=torch.int64)
    loss, _, _ = scored_loss(logits, targets)
    expected, _, _ = scored_loss(logits.float(), targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_one_training_run_reduces_the_loss() -> None:
    model = built(replace(HYBRID, init_std=0.05))
    text = tokens(12)
    losses: list[float] = []
    for _ in range(40):
        loss, n_scored, _ = scored_loss(model(text[:, :-1]), text[:, 1:])
        gradients = torch.autograd.grad(loss / n_scored, tuple(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 5e-3 * gradient.sign()
        losses.append(float(loss.detach() / n_scored))
    assert losses[0] == pytest.approx(math.log(17), abs=0.2)
    assert losses[-1] < 1.2


# --- tied blocks --------------------------------------------------------------------------------


def tied(tie: str | None, *, ffn: SwigluSpec | MoeSpec | None = SWIGLU) -> ModelSpec:
    """The first and the third block alike."""
    attention, mamba = (
        BlockSpec(mixer=ATTENTION, ffn=ffn, tie=tie),
        BlockSpec(mixer=MAMBA, ffn=None),
    )
    return replace(HYBRID, blocks=(attention, mamba, attention))


def test_tied_blocks_are_untied_ones_of_equal_weights_whose_gradients_add() -> None:
    one, two = built(tied("t")).double(), built(tied(None)).double()
    assert {name.split(".")[1] for name in one.state_dict() if name.startswith("blocks.")} == {"0", "1"}
    weights = dict(one.named_parameters())
    two.load_state_dict({name: weights[name.replace("blocks.2.", "blocks.0.")] for name in two.state_dict()})
    for model in (one, two):
        model(tokens()).square().sum().backward()
    assert torch.equal(one(tokens()), two(tokens()))
    apart = {name: parameter.grad for name, parameter in two.named_parameters()}
    for name, parameter in one.named_parameters():
        expected, again = apart[name], apart.get(name.replace("blocks.0.", "blocks.2."))
        assert expected is not None
        if name.startswith("blocks.0.") and again is not None:
            expected = expected + again
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)


def test_tied_blocks_have_one_row_of_expert_loads() -> None:
    model = built(tied("t", ffn=MOE)).train()
    model(tokens())
    assert model.expert_loads().shape == (1, 5)
    assert model.expert_loads().sum() == 2 * tokens().numel() * 2


def test_tied_blocks_have_states_of_their_own() -> None:
    assert state_bytes(built(tied("t")).init_state(2, 10)) == state_bytes(built(tied(None)).init_state(2, 10))


# --- meta tokens and multipliers ----------------------------------------------------------------


def test_meta_tokens_are_tokens_of_their_own_at_which_nothing_is_predicted() -> None:
    spec = replace(EVERYTHING, embedding_multiplier=1.0)
    meta, plain = built(spec).double(), built(replace(spec, meta_tokens=0, vocab_size=17 + 3)).double()
    weights = dict(meta.named_parameters())
    embedding = torch.cat((weights["embedding"], weights.pop("meta_tokens")))
    plain.load_state_dict({**weights, **dict(meta.named_buffers()), "embedding": embedding})
    prefixed = torch.cat((torch.arange(17, 20).expand(2, -1), tokens()), dim=1)
    torch.testing.assert_close(meta(tokens()), plain(prefixed)[:, 3:, :17], rtol=0, atol=1e-12)


def test_meta_tokens_take_room_in_the_caches() -> None:
    extra = state_bytes(built(replace(HYBRID, meta_tokens=3)).init_state(2, 10)) - state_bytes(
        built().init_state(2, 10)
    )
    assert extra == 2 * 3 * (2 + 2) * 4 * 4


def test_multipliers_are_factors_of_embedding_residual_writes_and_logits() -> None:
    spec = replace(HYBRID, tie_embeddings=False)
    model, plain = (
        built(replace(spec, embedding_multiplier=3.0, residual_multiplier=0.22, logit_multiplier=0.125)).double(),
        built(spec).double(),
    )
    scaled = {name: weight.detach().clone() for name, weight in plain.named_parameters()}
    scaled["embedding"] *= 3.0
    scaled["head"] *= 0.125
    for name, weight in scaled.items():
        if name.endswith(("out_proj.weight", "down_proj.weight")):
            weight *= 0.22
    expected = built(spec).double()
    expected.load_state_dict(scaled)
    torch.testing.assert_close(model(tokens()), expected(tokens()), rtol=0, atol=1e-12)
    assert (model(tokens()) - plain(tokens())).abs().max() > 0.1


# --- borrowed keys and values -------------------------------------------------------------------


@pytest.mark.parametrize("mixer", [ATTENTION, replace(INTRA, value="separate")], ids=["attention", "intra"])
def test_a_borrower_attends_to_the_keys_and_values_of_the_nearest_lender(mixer: MixerSpec) -> None:
    # The lender writes nothing into the stream, so that the borrower's input is its own: the borrower then equals a
    # block that makes the same keys and values itself.
    def spec(*, borrows: bool) -> ModelSpec:
        match mixer:
            case IntraSpec():
                second: MixerSpec = replace(mixer, attention=replace(mixer.attention, borrows_kv=borrows))
            case AttentionSpec():
                second = replace(mixer, borrows_kv=borrows)
            case _:
                raise AssertionError
        blocks = (ATTENTION, mixer, MAMBA, second)
        return replace(HYBRID, blocks=tuple(BlockSpec(mixer=block, ffn=None) for block in blocks))

    borrower, owner = built(spec(borrows=True)).double(), built(spec(borrows=False)).double()
    weights = {name: weight.detach().clone() for name, weight in borrower.named_parameters()}
    for name in ("blocks.1.mixer.out_proj.weight", "blocks.2.mixer.out_proj.weight"):
        weights[name].zero_()
    borrower.load_state_dict(weights)
    qkv = "mixer.qkv_proj.weight" if isinstance(mixer, AttentionSpec) else "mixer.attention.qkv_proj.weight"
    weights[f"blocks.3.{qkv}"] = torch.cat((weights[f"blocks.3.{qkv}"], weights[f"blocks.1.{qkv}"][16:]))
    owner.load_state_dict(weights)
    torch.testing.assert_close(borrower(tokens()), owner(tokens()), rtol=0, atol=1e-12)
    (dlender,) = torch.autograd.grad(
        borrower(tokens()).square().sum(), dict(borrower.named_parameters())[f"blocks.1.{qkv}"]
    )
    assert dlender[:16].abs().max() == 0
    assert dlender[16:].abs().max() > 0


def test_a_borrower_holds_no_keys_and_values() -> None:
    blocks = tuple(BlockSpec(mixer=mixer, ffn=None) for mixer in (ATTENTION, BORROWER))
    state = built(replace(HYBRID, blocks=blocks)).init_state(2, 10)
    assert state_bytes(state) == 2 * 10 * (2 + 2) * 4 * 4


# --- experts ------------------------------------------------------------------------------------


def test_expert_loads_are_counted_in_training_until_the_experts_are_balanced() -> None:
    model = built(EVERYTHING)
    assert torch.equal(model.expert_loads(), torch.zeros(2, 5))
    model.eval()
    model(tokens())
    assert torch.equal(model.expert_loads(), torch.zeros(2, 5))
    model.train()
    model(tokens())
    model(tokens())
    n_tokens = 2 * 2 * (11 + 3)
    assert model.expert_loads().sum(1).tolist() == [2 * n_tokens] * 2
    loads = model.expert_loads()
    model.balance_experts()
    assert torch.equal(model.expert_loads(), torch.zeros(2, 5))
    biases = torch.stack([buffer for _, buffer in model.named_buffers()])
    torch.testing.assert_close(biases, 0.01 * torch.sign(loads.mean(1, keepdim=True) - loads), rtol=0, atol=1e-7)
    model.balance_experts()
    assert torch.equal(biases, torch.stack([buffer for _, buffer in model.named_buffers()]))


def test_a_model_without_experts_has_no_loads() -> None:
    model = built()
    model(tokens())
    assert model.expert_loads().numel() == 0
    model.balance_experts()


def test_initial_weights_of_a_tensor_are_those_of_its_name_in_any_model() -> None:
    # EVERYTHING backwards has other blocks at every position; what has the same name and shape there is drawn alike.
    names = dict(built(replace(EVERYTHING, meta_tokens=0)).named_parameters())
    shared = {name: weight for name, weight in built(EVERYTHING).named_parameters() if name in names}
    assert len(shared) == len(names) == len(dict(built(EVERYTHING).named_parameters())) - 1
    assert all(torch.equal(weight, names[name]) for name, weight in shared.items())
