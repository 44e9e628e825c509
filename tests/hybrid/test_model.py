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
from hybrid.spec import AttentionSpec, BlockSpec, Mamba2Spec, ModelSpec, RopeSpec, SwigluSpec

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


def built(spec: ModelSpec = HYBRID, *, seed: int = 1, activation_checkpointing: bool = False) -> LanguageModel:
    model = LanguageModel(spec, ssd_chunk=4, activation_checkpointing=activation_checkpointing)
    model.init_weights(seed)
    return model


def tokens(length: int = 11, vocab: int = 17) -> Tensor:
    return torch.randint(vocab, (2, length), generator=torch.Generator().manual_seed(0))


@settings(max_examples=20, deadline=None)
@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_model_step_over_any_partition_equals_forward(pieces: list[int], seed: int) -> None:
    model = built(seed=seed).double()
    text = tokens(sum(pieces))
    with torch.no_grad():
        state = model.init_state(2, sum(pieces))
        outputs: list[Tensor] = []
        for piece in text.split(pieces, dim=1):
            logits, state = model.step(piece, state)
            outputs.append(logits)
        torch.testing.assert_close(torch.cat(outputs, 1), model(text), rtol=0, atol=1e-10)


def test_model_gradient_reaches_no_later_token() -> None:
    model = built().double()
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
    spread = {name: float(p.detach().std()) for name, p in built(spec).blocks[1].named_parameters()}
    assert spread["ffn.gate_up_proj.weight"] == pytest.approx(0.02, rel=0.05)
    assert spread["ffn.down_proj.weight"] == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert spread["mixer.out_proj.weight"] == pytest.approx(0.02 / math.sqrt(6), rel=0.1)


def test_model_built_on_meta_and_emptied_equals_model_built_on_cpu() -> None:
    with torch.device("meta"):
        model = LanguageModel(HYBRID, ssd_chunk=4)
        assert model(torch.zeros(2, 9, dtype=torch.int64)).shape == (2, 9, 17)
    model.to_empty(device="cpu")
    model.init_weights(1)
    assert torch.equal(model(tokens()), built()(tokens()))


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


def test_weights_survive_a_state_dict() -> None:
    model, other = built(seed=1), built(seed=2)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens()), other(tokens()))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_logits_at_scored_positions_are_those_of_all_positions() -> None:
    model = built().double()
    mask = torch.zeros(2, 11, dtype=torch.bool)
    mask[0, 3] = mask[1, [4, 10]] = True
    torch.testing.assert_close(model(tokens(), mask), model(tokens())[mask], rtol=0, atol=1e-12)


def test_activation_checkpointing_changes_no_bit() -> None:
    plain, saving = built(), built(activation_checkpointing=True)
    for model in (plain, saving):
        model(tokens()).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad), name


def test_bfloat16_autocast_trains_on_finite_gradients() -> None:
    model = built()
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
