"""Generation: from states as from the whole sequence, and what is drawn as it was asked for."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid import generate as module
from hybrid.cost import model_state_bytes
from hybrid.generate import choose, generate, stream
from hybrid.mixers.base import state_bytes
from hybrid.model import LanguageModel, ModelState
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    DiffAttentionSpec,
    DiffMambaSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    ModelSpec,
    MoeSpec,
    RopeSpec,
    ShortConvSpec,
    SwigluSpec,
    WindowSpec,
)

VOCAB = 17
ATTENTION = AttentionSpec(n_heads=2, n_kv_heads=1, head_dim=8, rope=RopeSpec(theta=10_000.0, scaling=None))
MAMBA = Mamba2Spec(
    d_ssm=32,
    head_dim=8,
    d_state=4,
    n_groups=1,
    d_conv=4,
    a_init_min=1.0,
    a_init_max=16.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)
FFN = SwigluSpec(d_ffn=24)
HYBRID = ModelSpec(
    d_model=16,
    vocab_size=VOCAB,
    tie_embeddings=False,
    norm_eps=1e-5,
    init_std=0.3,  # large, so that what comes next depends on everything before
    blocks=(BlockSpec(mixer=MAMBA, ffn=FFN), BlockSpec(mixer=ATTENTION, ffn=FFN)),
)
WINDOW = replace(ATTENTION, window=WindowSpec(size=3, sink=2), qkv_conv=3)
INTRA = IntraSpec(
    attention=replace(ATTENTION, n_kv_heads=2, value_head_dim=16),
    mamba=MAMBA,
    norm="group",
    scalar="gate",
    fusion="diff",
    value="separate",
    output="separate",
    lambda_depth=None,
    attention_multiplier=1.0,
    mamba_multiplier=1.0,
)
MOE = MoeSpec(d_ffn=12, n_experts=4, top_k=2, n_shared=1, bias_step=0.01)


def blocks_of(*mixers: MixerSpec) -> tuple[BlockSpec, ...]:
    return tuple(BlockSpec(mixer=mixer, ffn=FFN) for mixer in mixers)


MODELS = {
    "attention": replace(HYBRID, blocks=blocks_of(ATTENTION, replace(ATTENTION, rope=None))),
    "window": replace(HYBRID, blocks=blocks_of(WINDOW, ATTENTION)),
    "mamba": replace(HYBRID, blocks=(BlockSpec(mixer=MAMBA, ffn=None),) * 2),
    "hybrid": HYBRID,
    "intra": replace(HYBRID, blocks=blocks_of(INTRA, MAMBA)),
    "diff": replace(
        HYBRID,
        blocks=blocks_of(
            DiffAttentionSpec(
                n_heads=2, n_kv_heads=1, head_dim=8, rope=ATTENTION.rope, depth=1, norm="head", fusion="diff"
            ),
            DiffMambaSpec(mamba=MAMBA, depth=2, norm="output"),
        ),
    ),
    "short_conv": replace(HYBRID, blocks=blocks_of(ShortConvSpec(d_conv=4), ATTENTION)),
    "experts": replace(HYBRID, blocks=tuple(BlockSpec(mixer=mixer, ffn=MOE) for mixer in (MAMBA, ATTENTION))),
    "meta tokens, borrowed keys and values, ties": replace(
        HYBRID,
        blocks=(
            *blocks_of(ATTENTION, replace(ATTENTION, borrows_kv=True)),
            *(BlockSpec(mixer=MAMBA, ffn=FFN, tie="twice"),) * 2,
        ),
        meta_tokens=3,
        residual_multiplier=0.7,
    ),
}


def model_of(spec: ModelSpec) -> LanguageModel:
    model = LanguageModel(spec, ssd_chunk=4)
    model.init_weights(1)
    return model


def prompt(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(0))


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("pieces", [1, 3, 1024])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_from_states_is_greedy_from_the_whole_sequence_each_time(
    name: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILL_POSITIONS", pieces)
    model = model_of(MODELS[name]).double().eval()
    tokens_BL = prompt()
    with torch.no_grad():
        for _ in range(12):
            tokens_BL = torch.cat((tokens_BL, model(tokens_BL)[:, -1:].argmax(-1)), dim=1)
    made_BN = generate(model, prompt(), 12, temperature=0.0)
    assert made_BN.tolist() == tokens_BL[:, 7:].tolist()
    assert len(set(made_BN[0].tolist())) > 2, "a test of one token repeated shows little"


def test_generating_counts_no_experts_loads() -> None:
    model = model_of(MODELS["experts"]).train()
    generate(model, prompt(), 5, temperature=1.0)
    assert not model.expert_loads().any()


def test_one_token_after_a_prompt_of_one() -> None:
    assert generate(model_of(HYBRID), prompt(3, 1), 1, temperature=1.0).shape == (3, 1)


def test_what_is_drawn_is_a_function_of_the_seed() -> None:
    model = model_of(HYBRID)
    torch.manual_seed(1)
    first = generate(model, prompt(), 20, temperature=1.0, seed=5)
    before = torch.get_rng_state()
    again = generate(model, prompt(), 20, temperature=1.0, seed=5)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, generate(model, prompt(), 20, temperature=1.0, seed=6))


def test_greedy_asks_for_no_seed() -> None:
    model = model_of(HYBRID)
    one, other = (generate(model, prompt(), 9, temperature=0.0, seed=seed) for seed in (1, 2))
    assert torch.equal(one, other)


def test_a_low_temperature_and_one_choice_are_greedy() -> None:
    model = model_of(HYBRID)
    greedy = generate(model, prompt(), 9, temperature=0.0)
    assert torch.equal(generate(model, prompt(), 9, temperature=1e-6), greedy)
    assert torch.equal(generate(model, prompt(), 9, temperature=1e-300), greedy)
    assert torch.equal(generate(model, prompt(), 9, temperature=5.0, top_k=1), greedy)
    assert torch.equal(generate(model, prompt(), 9, temperature=5.0, top_p=1e-9), greedy)


def test_the_stream_is_what_generate_gives_and_the_model_has_its_mode_back() -> None:
    model = model_of(HYBRID).train()
    tokens = list(stream(model, prompt(), 8, temperature=1.0))
    assert model.training
    assert torch.equal(torch.stack(tokens, dim=1), generate(model, prompt(), 8, temperature=1.0))
    abandoned = stream(model, prompt(), 8, temperature=1.0)
    next(abandoned)
    assert not model.training
    abandoned.close()
    assert model.training


def test_a_sequence_ends_with_a_stop_token_and_generation_with_the_last_sequence() -> None:
    model = model_of(HYBRID)
    free = generate(model, prompt(), 30, temperature=0.0)
    stop = int(free[0, 4])
    ends = [row.index(stop) if stop in row else 29 for row in free.tolist()]
    made = generate(model, prompt(), 30, temperature=0.0, stop_tokens=(stop,))
    assert made.shape[1] == max(ends) + 1
    for row, expected, end in zip(made.tolist(), free.tolist(), ends, strict=True):
        assert row == (expected[: end + 1] + [stop] * 30)[: len(row)]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 5.0}, {"temperature": 5.0, "top_k": 12}])
def test_tokens_that_the_data_do_not_have_are_never_chosen(settings: dict[str, Any]) -> None:
    """As if the model had no others: all else is as in a model of just the smaller vocabulary."""
    model, small = model_of(HYBRID), model_of(replace(HYBRID, vocab_size=5))
    weights = model.state_dict()
    small.load_state_dict(weights | {name: weights[name][:5] for name in ("embedding", "head")})
    prompt_BL = prompt() % 5
    assert int(generate(model, prompt_BL, 40, **settings).max()) >= 5
    made_BN = generate(model, prompt_BL, 40, **settings, vocab_size=5)
    assert torch.equal(made_BN, generate(small, prompt_BL, 40, **settings))


@pytest.mark.parametrize("name", MODELS)
def test_states_under_autocast_are_of_its_dtype_and_of_the_bytes_of_the_cost(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps, held = model_of(MODELS[name]), LanguageModel.step, []

    def watched(model: LanguageModel, tokens_BL: Tensor, state: ModelState, **options: bool) -> Any:
        held.append(state_bytes(state))
        logits_BLV, state = steps(model, tokens_BL, state, **options)
        held.append(state_bytes(state))
        return logits_BLV, state

    monkeypatch.setattr(LanguageModel, "step", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generate(model, prompt(), 6, temperature=0.0, state_dtype=torch.bfloat16)
    assert set(held) == {2 * model_state_bytes(model.spec, 7 + 6 - 1, 2)}


def test_reading_the_prompt_makes_logits_of_one_position_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PREFILL_POSITIONS", 3)
    made, logits = [], LanguageModel._logits

    def watched(model: LanguageModel, x: Tensor) -> Tensor:
        made.append(tuple(x.shape))
        return logits(model, x)

    monkeypatch.setattr(LanguageModel, "_logits", watched)
    generate(model_of(HYBRID), prompt(), 2, temperature=0.0)
    assert made == [(2, 1, 16)] * 4  # pieces of 3, 3 and 1, then a step


@pytest.mark.parametrize("name", MODELS)
def test_the_last_logits_alone_are_those_of_all_and_the_state_is_the_same(name: str) -> None:
    model = model_of(MODELS[name]).double().eval()
    with torch.no_grad():
        all_BLV, after = model.step(prompt(), model.init_state(2, 8))
        last_B1V, after_last = model.step(prompt(), model.init_state(2, 8), last_only=True)
        next_BLV, next_after_last_BLV = (model.step(prompt(2, 1), state)[0] for state in (after, after_last))
    torch.testing.assert_close(last_B1V, all_BLV[:, -1:])
    assert torch.equal(next_after_last_BLV, next_BLV)


# --- a draw -------------------------------------------------------------------------------------


LOGITS = torch.tensor([[0.1, 0.5, 0.2, 0.15, 0.05]]).log()


def draws(n: int = 4000, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Counter:
    tokens = choose(LOGITS.expand(n, -1), generator(), temperature=temperature, top_k=top_k, top_p=top_p)
    return Counter(tokens.tolist())


def assert_drawn(counts: Counter, probabilities: dict[int, float]) -> None:
    """Within four standard deviations, and nothing else."""
    n = counts.total()
    assert counts.keys() == probabilities.keys()
    for token, p in probabilities.items():
        assert abs(counts[token] - n * p) < 4 * (n * p * (1 - p)) ** 0.5 + 1e-9, token


def test_draws_follow_the_softmax() -> None:
    assert_drawn(draws(), {0: 0.1, 1: 0.5, 2: 0.2, 3: 0.15, 4: 0.05})


def test_temperature_divides_the_logits() -> None:
    powers = [p**0.5 for p in (0.1, 0.5, 0.2, 0.15, 0.05)]
    assert_drawn(draws(temperature=2.0), {token: power / sum(powers) for token, power in enumerate(powers)})


def test_top_k_keeps_the_k_best() -> None:
    assert_drawn(draws(top_k=2), {1: 5 / 7, 2: 2 / 7})
    assert_drawn(draws(top_k=99), {0: 0.1, 1: 0.5, 2: 0.2, 3: 0.15, 4: 0.05})


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.6, [1, 2]), (0.72, [1, 2, 3]), (0.86, [1, 2, 3, 0]), (1.0, [1, 2, 3, 0, 4])]
)
def test_top_p_keeps_the_fewest_that_have_it_together(top_p: float, kept: list[int]) -> None:
    p = LOGITS[0].exp().tolist()
    assert_drawn(draws(top_p=top_p), {token: p[token] / sum(p[other] for other in kept) for token in kept})


def test_top_p_is_of_what_top_k_left() -> None:
    # Of 0.5, 0.2 and 0.15 the best has 0.59: enough for 0.55, which it would not be of all.
    assert_drawn(draws(top_k=3, top_p=0.55), {1: 1.0})


def test_of_equals_the_lower_numbers_are_kept() -> None:
    tokens = choose(torch.zeros(500, 6), generator(), temperature=1.0, top_k=3)
    assert set(tokens.tolist()) == {0, 1, 2}
    assert choose(torch.zeros(2, 6), generator(), temperature=0.0).tolist() == [0, 0]


def test_a_token_that_cannot_be_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0]]).expand(500, -1)
    assert set(choose(logits, generator(), temperature=1.0).tolist()) == {1, 3}


def test_huge_logits_in_half_precision_are_drawn_from() -> None:
    logits = torch.tensor([[3e38, 3e38, -3e38]], dtype=torch.bfloat16).expand(200, -1)
    assert set(choose(logits, generator(), temperature=1e-3).tolist()) == {0, 1}
