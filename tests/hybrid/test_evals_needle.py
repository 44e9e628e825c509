from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid.data.shards import Shards
from hybrid.data.stdlib import StdlibData
from hybrid.evals import needle
from hybrid.evals.needle import NeedleGrid, evaluate_needle, prompt_of, trials_of
from hybrid.model import LanguageModel
from hybrid.spec import AttentionSpec, BlockSpec, ConfigError, Mamba2Spec, ModelSpec, RopeSpec

LENGTHS, DEPTHS = (128, 160), (0, 50, 100)


@pytest.fixture
def data() -> StdlibData:
    tokens = np.random.default_rng(0).integers(97, 123, size=400).astype(np.uint16)
    tokens[0] = 256
    return StdlibData(Shards(directory=Path("nowhere"), training=tokens, validation=tokens), 16)


@pytest.fixture
def model() -> LanguageModel:
    mamba = Mamba2Spec(
        d_ssm=16,
        head_dim=8,
        d_state=4,
        n_groups=1,
        d_conv=4,
        a_init_min=1.0,
        a_init_max=2.0,
        dt_init_min=0.01,
        dt_init_max=0.1,
    )
    attention = AttentionSpec(n_heads=2, n_kv_heads=1, head_dim=8, rope=RopeSpec(theta=1e4, scaling=None))
    blocks = (BlockSpec(mixer=mamba, ffn=None), BlockSpec(mixer=attention, ffn=None))
    spec = ModelSpec(d_model=16, vocab_size=260, tie_embeddings=True, norm_eps=1e-5, init_std=0.5, blocks=blocks)
    built = LanguageModel(spec)
    built.init_weights(1)
    return built


def test_a_prompt_is_as_the_paper_gives_it(data: StdlibData) -> None:
    (trial,) = trials_of(data, 1, seed=1)
    text = data.validation_text()
    for length in LENGTHS:
        for depth in DEPTHS:
            prompt = prompt_of(trial, text, data.bos, length, depth)
            assert len(prompt) == length
            assert prompt[0] == 256
            words = data.decode(prompt[1:]).decode()
            question = data.decode(trial.question).decode()
            assert question.startswith("\nThe special magic ")
            assert words.endswith(question)
            hay, digits = words[: -len(question)].split(question), trial.digits.decode()
            assert len(hay) == 2
            assert len(digits) == 7
            assert hay[1].startswith(f" {digits}.\n")
            n_hay = length - 1 - len(trial.needle) - len(trial.question)
            assert len(hay[0]) == round(n_hay * depth / 100)
            whole = hay[0] + hay[1].removeprefix(f" {digits}.\n")
            assert whole in data.decode(text.astype(np.int64)).decode()


def test_a_trial_is_a_function_of_its_number_and_the_seed(data: StdlibData) -> None:
    few, many = trials_of(data, 3, seed=1), trials_of(data, 30, seed=1)
    assert [t.digits for t in few] == [t.digits for t in many[:3]]
    assert len({t.digits for t in many}) == 30
    assert len({data.decode(t.question) for t in many}) > 10
    assert [t.digits for t in trials_of(data, 3, seed=2)] != [t.digits for t in few]


@pytest.mark.parametrize("batch_tokens", [1, 500, 10**6])
def test_what_is_found_does_not_depend_on_the_batches(
    data: StdlibData, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    """The model is given prompts, and the answers that a model of float64 gives one by one."""
    seen: dict[bytes, bytes] = {}
    answers = needle._answers
    batches = []

    def listening(
        model: LanguageModel, data: StdlibData, prompt_BL: np.ndarray, new_tokens: int, dtype: str
    ) -> list[bytes]:
        found = answers(model, data, prompt_BL, new_tokens, dtype)  # type: ignore[arg-type]
        batches.append(len(found))
        seen.update(zip((row.tobytes() for row in prompt_BL), found, strict=True))
        return found

    monkeypatch.setattr(needle, "_answers", listening)
    built = model.double().train()
    text = data.validation_text()
    grid = evaluate_needle(
        built,
        data,
        text,
        lengths=LENGTHS,
        depths_percent=DEPTHS,
        trials=3,
        new_tokens=6,
        seed=1,
        batch_tokens=batch_tokens,
    )
    assert built.training
    assert max(batches) == {1: 1, 500: 3, 10**6: 9}[batch_tokens]
    assert sum(batches) == len(LENGTHS) * len(DEPTHS) * 3
    for row, depth in zip(grid.found, DEPTHS, strict=True):
        for k, length in zip(row, LENGTHS, strict=True):
            right = 0
            for trial in trials_of(data, 3, seed=1):
                prompt = prompt_of(trial, text, data.bos, length, depth)
                greedy = one_by_one(built, prompt, 6)
                assert seen[prompt.tobytes()] == data.decode(np.array(greedy))
                right += trial.digits in data.decode(np.array(greedy))
            assert k == right


def one_by_one(model: LanguageModel, prompt: np.ndarray, n: int) -> list[int]:
    """Greedy tokens from whole forward passes, without a cache."""
    tokens = prompt.tolist()
    for _ in range(n):
        with torch.no_grad():
            logits = model.eval()(torch.tensor([tokens]))[0, -1, :258]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def test_an_answer_with_the_digits_in_it_counts(
    data: StdlibData, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone who reads the number off the prompt finds all; who says it with a mistake, none."""
    for wrong in (False, True):

        def read(*arguments: object, wrong: bool = wrong) -> list[bytes]:
            prompts = [data.decode(row) for row in arguments[2]]  # type: ignore[attr-defined]
            numbers = [prompt.split(b" number is: ")[1][:7] for prompt in prompts]
            return [b" it is " + (number[:-1] + b"x" if wrong else number) + b" I think" for number in numbers]

        monkeypatch.setattr(needle, "_answers", read)
        grid = evaluate_needle(
            model,
            data,
            data.validation_text(),
            lengths=LENGTHS,
            depths_percent=DEPTHS,
            trials=4,
            new_tokens=20,
            seed=1,
            batch_tokens=1000,
        )
        assert grid.found == ((0 if wrong else 4,) * 2,) * 3


def test_a_record_has_the_grid_with_exact_intervals() -> None:
    grid = NeedleGrid(lengths=(128, 256), depths_percent=(0, 100), trials=10, found=((10, 5), (0, 1)))
    metrics = grid.metrics()
    assert metrics["accuracy_percent"] == [[100.0, 50.0], [0.0, 10.0]]
    assert metrics["needle_accuracy_percent"] == 40.0
    assert metrics["accuracy_percent_low"][0] == pytest.approx([69.15, 18.71], abs=0.01)
    assert metrics["accuracy_percent_high"][1] == pytest.approx([30.85, 44.50], abs=0.01)


@pytest.mark.parametrize(("length", "message"), [(60, "expected at least"), (2000, "the haystack has 400 tokens")])
def test_a_length_that_does_not_fit_is_refused_before_anything_is_read(
    data: StdlibData, model: LanguageModel, length: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_needle(
            model,
            data,
            data.validation_text(),
            lengths=(length,),
            depths_percent=(0,),
            trials=1,
            new_tokens=1,
            seed=1,
            batch_tokens=1,
        )
