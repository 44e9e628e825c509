import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybrid.data.needle import NeedleData
from hybrid.data.shards import Shards
from hybrid.data.stdlib import StdlibData
from hybrid.evals import needle
from hybrid.evals.needle import LetterNeedles, NeedleGrid, TextNeedles, evaluate_needle
from hybrid.model import LanguageModel
from hybrid.spec import AttentionSpec, BlockSpec, ConfigError, Mamba2Spec, ModelSpec, NeedleSpec, RopeSpec

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
    text = data.validation_text()
    needles = TextNeedles(data, text, seed=1)
    trial = needles.trial(0)
    for length in LENGTHS:
        for depth in DEPTHS:
            prompt = needles.prompt(0, length, depth)
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
    text = data.validation_text()
    one, same, other = (TextNeedles(data, text, seed) for seed in (1, 1, 2))
    many = [one.trial(i) for i in range(30)]
    assert [same.trial(i).digits for i in (2, 1, 0)] == [many[i].digits for i in (2, 1, 0)]
    assert len({t.digits for t in many}) == 30
    assert len({data.decode(t.question) for t in many}) > 10
    assert other.trial(0).digits != many[0].digits


@pytest.mark.parametrize("batch_tokens", [1, 500, 10**6])
def test_what_is_found_does_not_depend_on_the_batches(
    data: StdlibData, model: LanguageModel, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    """The answers are those that the model gives one by one, without a cache."""
    said: dict[bytes, bytes] = {}
    answers, batches = needle._answers, []

    def listening(model: LanguageModel, prompt_BL: np.ndarray, *rest: Any) -> np.ndarray:
        found = answers(model, prompt_BL, *rest)
        batches.append(len(found))
        said.update((row.tobytes(), new.tobytes()) for row, new in zip(prompt_BL, found, strict=True))
        return found

    monkeypatch.setattr(needle, "_answers", listening)
    built, needles = model.double().train(), TextNeedles(data, data.validation_text(), seed=1)
    grid = evaluate_needle(
        built, needles, lengths=LENGTHS, depths_percent=DEPTHS, trials=3, new_tokens=6, batch_tokens=batch_tokens
    )
    assert built.training
    assert max(batches) == {1: 1, 500: 3, 10**6: 9}[batch_tokens]
    assert sum(batches) == len(LENGTHS) * len(DEPTHS) * 3
    for row, depth in zip(grid.found, DEPTHS, strict=True):
        for k, length in zip(row, LENGTHS, strict=True):
            right = 0
            for trial in range(3):
                prompt = needles.prompt(trial, length, depth)
                greedy = np.array(one_by_one(built, prompt, 6))
                assert said[prompt.tobytes()] == greedy.tobytes()
                right += needles.is_right(trial, greedy)
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

        def read(_: object, prompt_BL: np.ndarray, *__: object, wrong: bool = wrong) -> np.ndarray:
            numbers = [data.decode(row).split(b" number is: ")[1][:7] for row in prompt_BL]
            words = [b" it is " + (number[:-1] + b"x" if wrong else number) + b" I think" for number in numbers]
            return np.stack([data.encode(text) for text in words])

        monkeypatch.setattr(needle, "_answers", read)
        needles = TextNeedles(data, data.validation_text(), seed=1)
        grid = evaluate_needle(
            model, needles, lengths=LENGTHS, depths_percent=DEPTHS, trials=4, new_tokens=20, batch_tokens=1000
        )
        assert grid.found == ((0 if wrong else 4,) * 2,) * 3


def test_a_toy_prompt_has_what_it_asks_for_at_its_depth() -> None:
    source = NeedleData(NeedleSpec(n_needles=4, n_digits=3), 80)
    needles = LetterNeedles(source, seed=1)
    for length in (60, 200):
        for depth in (0, 50, 100):
            for trial in range(5):
                prompt = bytes(needles.prompt(trial, length, depth).astype(np.uint8))
                assert len(prompt) == length
                answer = source.answer(1, trial)
                whole = prompt[-1:] + answer + b";"
                assert prompt.count(whole) == 1
                assert prompt.count(b";") == len(re.findall(rb"[A-Z]", prompt)) - 1 == 4
                before = len(re.findall(rb"[A-Z]\d{3};|[a-z]", prompt[: prompt.index(whole)]))
                n_units = length - 1 - 4 * 5 + 3
                assert before == round(n_units * depth / 100)
                assert needles.is_right(trial, np.frombuffer(answer + b";A", np.uint8).astype(np.int64))
                assert not needles.is_right(trial, np.frombuffer(b"x" + answer, np.uint8).astype(np.int64))


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
            TextNeedles(data, data.validation_text(), seed=1),
            lengths=(length,),
            depths_percent=(0,),
            trials=1,
            new_tokens=1,
            batch_tokens=1,
        )


def test_a_toy_length_that_does_not_fit_is_refused() -> None:
    source = NeedleData(NeedleSpec(n_needles=4, n_digits=3), 80)
    assert len(source.prompt(1, 0, 21, 0)) == 21
    with pytest.raises(ConfigError, match="lengths = 20: expected at least 21"):
        source.prompt(1, 0, 20, 0)
