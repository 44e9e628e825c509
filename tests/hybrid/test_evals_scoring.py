import random
from dataclasses import replace

import pytest
import torch

from hybrid.evals import scoring
from hybrid.evals.scoring import Continuation, Prompt, Score, Scorer
from hybrid.generate import generate

from .few_shot_tasks import small_model, stdlib_data

BOS, EOS = 256, 257


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(model=small_model(), vocab_size=258, max_length=64, batch_tokens=1 << 12)


def continuations(seed: int, n: int = 16, *, preamble: tuple[int, ...] = ()) -> list[Continuation]:
    """Of contexts of many lengths, some too long, some with several continuations of different lengths."""
    chance = random.Random(seed)
    found = []
    for _ in range(n):
        context = (BOS, *preamble, *(chance.randrange(256) for _ in range(chance.randrange(80))))
        for _ in range(chance.choice((1, 1, 4))):
            tokens = tuple(chance.randrange(256) for _ in range(chance.randrange(1, 70)))
            found.append(Continuation(context=context, tokens=tokens))
    return found


def directly(scorer: Scorer, one: Continuation) -> Score:
    """By one forward pass over all of it, cut off on the left."""
    n = len(one.tokens)
    whole = torch.tensor([*one.context, *one.tokens])[-max(scorer.max_length, n) - 1 :]
    with torch.no_grad():
        logits_SV = scorer.model(whole[None, :-1])[0, -n:]
    targets_S = whole[-n:]
    likelihood = logits_SV.log_softmax(-1).gather(1, targets_S[:, None]).double().sum()
    greedy = logits_SV[:, : scorer.vocab_size].argmax(-1) == targets_S
    return Score(log_likelihood_nats=float(likelihood), is_greedy=bool(greedy.all()))


def agree(found: list[Score], expected: list[Score]) -> None:
    assert [one.is_greedy for one in found] == [one.is_greedy for one in expected]
    assert [one.log_likelihood_nats for one in found] == pytest.approx(
        [one.log_likelihood_nats for one in expected], abs=1e-5, rel=1e-6
    )


@pytest.mark.parametrize("preamble", [(), tuple(range(97, 97 + 26)) * 2])
def test_scores_are_those_of_a_forward_pass_over_each_alone(scorer: Scorer, preamble: tuple[int, ...]) -> None:
    asked = continuations(1, preamble=preamble)
    agree(scorer.scores(asked), [directly(scorer, one) for one in asked])


def test_what_greedy_decoding_gives_is_greedy(scorer: Scorer) -> None:
    context = (BOS, 97, 98, 99)
    said = generate(scorer.model, torch.tensor([context]), 5, temperature=0.0, vocab_size=scorer.vocab_size)
    likeliest = tuple(said[0].tolist())
    other = (*likeliest[:-1], (likeliest[-1] + 1) % 256)
    found = scorer.scores([Continuation(context=context, tokens=tokens) for tokens in (likeliest, other)])
    assert [one.is_greedy for one in found] == [True, False]


@pytest.mark.parametrize("batch_tokens", [1, 200, 1 << 14])
def test_batches_change_no_score_and_keep_the_order(scorer: Scorer, batch_tokens: int) -> None:
    asked = continuations(2)
    agree(replace(scorer, batch_tokens=batch_tokens).scores(asked), scorer.scores(asked[::-1])[::-1])


def test_few_logits_at_once_change_no_score(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = continuations(3, n=10)
    expected = scorer.scores(asked)
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 1)
    agree(scorer.scores(asked), expected)


def test_what_continuations_share_is_read_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that go through the model: a context, and four endings, each with the context's last token."""
    read: list[int] = []
    step = type(scorer.model).step

    def counting(self, tokens_BL, state, **options):  # type: ignore[no-untyped-def]
        read.append(tokens_BL.numel())
        return step(self, tokens_BL, state, **options)

    monkeypatch.setattr(type(scorer.model), "step", counting)
    context = (BOS, *range(40))
    endings = [Continuation(context=context, tokens=(i, i, i)) for i in range(4)]
    scorer.scores([*endings, *endings])
    assert read == [40, 4 * 3]


def test_of_a_context_that_is_too_long_the_end_is_read(scorer: Scorer) -> None:
    long = Continuation(context=(BOS, *range(200)), tokens=(1, 2, 3))
    short = Continuation(context=tuple(range(200 - 62, 200)), tokens=(1, 2, 3))
    assert scorer.scores([long]) == scorer.scores([short])
    agree(scorer.scores([long]), [directly(scorer, long)])


def test_a_continuation_longer_than_the_model_is_scored_whole(scorer: Scorer) -> None:
    long = Continuation(context=(BOS, 1, 2), tokens=tuple(range(100)))
    agree(scorer.scores([long]), [directly(scorer, long)])


def test_a_run_in_bfloat16_is_scored_as_its_own_forward_pass_would(scorer: Scorer) -> None:
    asked, half = continuations(5, n=6), replace(scorer, dtype="bfloat16")
    found = half.scores(asked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = [directly(scorer, one) for one in asked]
    for one, other, full in zip(found, expected, scorer.scores(asked), strict=True):
        # Rounding is another one where states are kept; it is as large as that of the pass itself.
        assert one.log_likelihood_nats == pytest.approx(other.log_likelihood_nats, rel=0.02, abs=0.2)
        assert one != full
    assert answers(half, prompts(5, n=2)) != []


def test_the_models_mode_is_afterwards_as_it_was(scorer: Scorer) -> None:
    for mode in (True, False):
        scorer.model.train(mode)
        scorer.scores(continuations(4, n=2))
        assert scorer.model.training is mode


def prompts(seed: int, n: int = 6, **settings: object) -> list[Prompt]:
    chance = random.Random(seed)
    made = Prompt(context=(), max_new_tokens=9, stops=())
    return [
        replace(made, context=(BOS, *(chance.randrange(97, 123) for _ in range(chance.randrange(30)))), **settings)  # type: ignore[arg-type]
        for _ in range(n)
    ]


def answers(scorer: Scorer, asked: list[Prompt], eos: int = EOS) -> list[bytes]:
    return scorer.answers(asked, lambda tokens: bytes(token for token in tokens if token < 256), eos=eos)


def alone(scorer: Scorer, prompt: Prompt) -> bytes:
    room = scorer.max_length - prompt.max_new_tokens
    tokens = torch.tensor([prompt.context[-room:]])
    said = generate(scorer.model, tokens, prompt.max_new_tokens, temperature=0.0, vocab_size=scorer.vocab_size)[0]
    return bytes(token for token in said.tolist() if token < 256)


def test_answers_of_prompts_of_many_lengths_are_those_of_each_alone(scorer: Scorer) -> None:
    asked = [*prompts(1), *prompts(2, max_new_tokens=15), Prompt(context=(BOS,) * 90, max_new_tokens=7, stops=())]
    expected = [alone(scorer, prompt) for prompt in asked]
    assert len(set(expected)) > 5
    for batch_tokens in (100, 1 << 14):
        assert answers(replace(scorer, batch_tokens=batch_tokens), asked) == expected


def test_an_answer_ends_before_the_first_of_its_stops(scorer: Scorer) -> None:
    asked = prompts(3)
    whole = [alone(scorer, prompt) for prompt in asked]
    stops = [(said[4:6], said[2:3], b"") for said in whole]
    found = answers(scorer, [replace(prompt, stops=stop) for prompt, stop in zip(asked, stops, strict=True)])
    for said, full, stop in zip(found, whole, stops, strict=True):
        assert said == full[: min(full.find(one) for one in stop if one)]


def test_an_answer_ends_with_eos(scorer: Scorer) -> None:
    asked = prompts(4)
    whole = [alone(scorer, prompt) for prompt in asked]
    eos = whole[0][3]
    for said, full in zip(answers(scorer, asked, eos=eos), whole, strict=True):
        assert said == (full[: full.index(eos)] if eos in full else full)


def test_decoding_of_the_data_is_by_single_tokens() -> None:
    """What stops are looked for in."""
    import numpy as np

    data = stdlib_data()
    assert data.decode(np.array([104, 256, 105])) == b"".join(data.decode(np.array([t])) for t in (104, 256, 105))
