"""Few-shot evaluation through LM Evaluation Harness, on local tasks, with all sockets closed."""

import json
import math
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hybrid.evals
from hybrid.config import read_config
from hybrid.data import DocumentSource
from hybrid.data.corpora import CorpusData
from hybrid.data.prepare.tokenizer import choose_tokenizer
from hybrid.eval_config import read_evals
from hybrid.eval_spec import FewShotEvalSpec, TaskEvalSpec
from hybrid.evals.few_shot import PAPER_BENCHMARKS, FewShotResult, TaskResult, evaluate_few_shot
from hybrid.evals.intervals import binomial_interval
from hybrid.evals.scoring import Scorer
from hybrid.model import LanguageModel
from hybrid.spec import ConfigError, RunSpec
from hybrid.task_files import harness_task_file
from sweeps.compose import Composer

from .few_shot_tasks import ROWS, TASKS, small_model, stdlib_data, write_task
from .test_data_corpora import build, byte_level

FINGERPRINT = "0123456789abcdef"

pytest.importorskip("lm_eval", reason="the extra `fewshot` is not installed")


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise OSError("sockets are closed")

    for name in ("socket", "create_connection", "getaddrinfo", "socketpair"):
        monkeypatch.setattr(socket, name, closed)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return small_model()


@pytest.fixture
def data() -> DocumentSource:
    return stdlib_data()


def bpe_data(tmp_path: Path) -> CorpusData:
    """A corpus with a byte-level tokenizer of its own, some of whose tokens are several characters."""
    from tokenizers import pre_tokenizers, trainers

    tokenizer = byte_level()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 42, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["grün and green, one and two, the cat sat on the mat", "12 and 13 and 144"], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    chosen = choose_tokenizer(str(tmp_path / "tokenizer.json"), name=None, bos=None, eos=None)
    made = build(tmp_path / "data", tokenizer=chosen)
    return CorpusData(made.directory, made.manifest, 16)


def lm_of(model: LanguageModel, data: DocumentSource, max_length: int = 64) -> Any:
    from hybrid.evals.harness import HarnessModel

    scorer = Scorer(model=model, vocab_size=len(data.token_bytes_V), max_length=max_length, batch_tokens=1 << 12)
    return HarnessModel(scorer, data)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def losses(model: LanguageModel, context: Sequence[int], tokens: Sequence[int]) -> tuple[float, bool]:
    """The log likelihood of tokens after a context, and whether each is the likeliest, by one forward pass."""
    whole = torch.tensor([*context, *tokens])
    with torch.no_grad():
        logits_SV = model(whole[None, :-1])[0, len(context) - 1 :]
    targets_S = whole[len(context) :]
    likelihood = logits_SV.log_softmax(-1).gather(1, targets_S[:, None]).double().sum()
    return float(likelihood), bool((logits_SV.argmax(-1) == targets_S).all())


# --- the model as an LM -------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["bytes", "bpe"])
def test_log_likelihoods_are_those_of_a_forward_pass(tokens: str, tmp_path: Path) -> None:
    data = stdlib_data() if tokens == "bytes" else bpe_data(tmp_path)
    model = small_model(len(data.token_bytes_V))
    asked = [
        ("one and", " two"),
        ("one and", " the cat sat"),
        ("", "grün"),
        ("Δ 🙂 of", " 1"),
        ("the ", "mat"),
        (" ", "x"),
    ]
    found = lm_of(model, data).loglikelihood(requests("loglikelihood", *asked))

    def encoded(text: str) -> list[int]:
        return data.encode(text.encode()).tolist()

    for (context, text), (likelihood, greedy) in zip(asked, found, strict=True):
        # The harness moves the blanks at a context's end to what follows, and splits the tokens of both together.
        stripped = context.rstrip()
        before, whole = encoded(stripped), encoded(context + text)
        expected = losses(model, [data.bos, *before], whole[len(before) :])
        assert likelihood == pytest.approx(expected[0], abs=1e-5)
        assert greedy is expected[1]
    if tokens == "bpe":
        assert len(encoded("one and two")) < len("one and two")


def test_an_empty_context_is_bos_and_a_long_one_loses_its_left(model: LanguageModel, data: DocumentSource) -> None:
    long = "".join(chr(97 + i % 26) for i in range(100))
    asked = requests("loglikelihood", ("", "abc"), (long, "xyz"))
    found = lm_of(model, data, max_length=40).loglikelihood(asked)
    assert found[0][0] == pytest.approx(losses(model, [256], b"abc")[0], abs=1e-5)
    assert found[1][0] == pytest.approx(losses(model, long.encode()[-38:], b"xyz")[0], abs=1e-5)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 50])
def test_rolling_log_likelihoods_take_every_token_once(length: int, model: LanguageModel, data: DocumentSource) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(length))
    (found,) = lm_of(model, data, max_length=16).loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    tokens = [256, *text.encode()]
    expected = []
    for first in range(0, length, 16):
        last = min(first + 16, length)
        # Each window is as long as the model, the last too: it begins within the one before.
        begin = max(last - 16, 0)
        with torch.no_grad():
            logits_LV = model(torch.tensor([tokens[begin:last]]))[0].log_softmax(-1)
        expected += [float(logits_LV[i - begin, tokens[i + 1]]) for i in range(first, last)]
    assert len(expected) == length
    assert found == pytest.approx(math.fsum(expected), abs=1e-5)


def test_text_is_generated_greedily_up_to_a_stop(model: LanguageModel, data: DocumentSource) -> None:
    from hybrid.generate import generate

    lm = lm_of(model, data)
    said = generate(model, torch.tensor([[256, 97, 98]]), 8, temperature=0.0, vocab_size=258)[0]
    whole = data.decode(said.numpy()).decode("utf-8", "replace")
    assert lm.generate_until(requests("generate_until", ("ab", {"max_gen_toks": 8, "until": []}))) == [whole]
    stop = data.decode(said.numpy())[3:4].decode("latin-1")
    if stop.isascii():
        (found,) = lm.generate_until(requests("generate_until", ("ab", {"max_gen_toks": 8, "until": stop})))
        assert found == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gen_toks": 8, "do_sample": True}, "expected greedy decoding"),
        ({"max_gen_toks": 8, "temperature": 0.5}, "expected greedy decoding"),
        ({"max_gen_toks": 8, "num_beams": 4}, "expected greedy decoding"),
        ({"max_gen_toks": 64}, r"max_gen_toks = 64: expected 1 to 63, as the run's sequences have 64 tokens"),
        ({}, r"max_gen_toks = 256: expected 1 to 63"),
    ],
)
def test_what_is_not_greedy_or_leaves_no_room_is_refused(
    settings: dict[str, Any], message: str, model: LanguageModel, data: DocumentSource
) -> None:
    with pytest.raises(ConfigError, match=message):
        lm_of(model, data).generate_until(requests("generate_until", ("ab", settings)))


@pytest.mark.parametrize("pair", [("a", ""), ("", "")])
def test_a_continuation_without_tokens_is_refused(
    pair: tuple[str, str], model: LanguageModel, data: DocumentSource
) -> None:
    with pytest.raises(ConfigError, match="expected text to be scored"):
        lm_of(model, data).loglikelihood(requests("loglikelihood", pair))


# --- tasks --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    """The default configuration."""
    with Composer() as composer:
        return dict(composer.compose([]))


@pytest.fixture(scope="module")
def run(shipped: dict[str, Any]) -> RunSpec:
    return read_config(shipped, stdlib_fingerprint=lambda: FINGERPRINT).run


@pytest.fixture
def ask(
    shipped: dict[str, Any], run: RunSpec, model: LanguageModel, data: DocumentSource
) -> Callable[..., FewShotResult]:
    """The answers to tasks, given as `evals` gives them, from the files that were read then."""

    def answers(*tasks: dict[str, Any], length: int = 256, **settings: Any) -> FewShotResult:
        asked = [{"kind": "fewshot", "tasks": list(tasks), **settings}]
        evals = read_evals(asked, shipped["eval"], stdlib_fingerprint=lambda: FINGERPRINT)
        (spec,) = evals.of(run)
        assert isinstance(spec, FewShotEvalSpec)
        contents = {digest: Path(path).read_bytes() for path, digest in evals.texts.items()}
        return evaluate_few_shot(
            model, data, spec, read_file=contents.__getitem__, max_length=length, batch_tokens=1 << 12
        )

    return answers


def local(path: Path | str, metric: str = "acc", shots: int = 0, **more: Any) -> dict[str, Any]:
    return {"task": str(path), "shots": shots, "metric": metric, **more}


def test_accuracies_are_those_of_a_direct_computation(ask: Callable[..., FewShotResult], model: LanguageModel) -> None:
    (result,) = ask(local(TASKS / "python_lines.yaml", "acc_bytes")).tasks
    rows = [json.loads(line) for line in (TASKS / "python_lines.jsonl").read_text().splitlines()]
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for row in rows:
        context = row["question"].rstrip()
        blanks = row["question"][len(context) :]
        likelihoods = [
            losses(model, [256, *context.encode()], f"{blanks} {choice}".encode())[0] for choice in row["choices"]
        ]
        for name, lengths in (
            ("acc", [1] * 4),
            ("acc_norm", [len(choice) for choice in row["choices"]]),
            ("acc_bytes", [len(choice.encode()) for choice in row["choices"]]),
        ):
            best = np.argmax([value / length for value, length in zip(likelihoods, lengths, strict=True)])
            right[name].append(bool(best == row["answer"]))
    assert {name: list(values) for name, values in result.right.items()} == right
    assert result.accuracy == sum(right["acc_bytes"]) / 30


def test_accuracies_and_errors_are_those_of_the_harness(
    ask: Callable[..., FewShotResult], model: LanguageModel, data: DocumentSource, tmp_path: Path
) -> None:
    """Whose own way to the same questions is another one: its files, its loader, its sums."""
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")
    ]
    path = write_task(tmp_path, metric_list=metrics)
    found = ask(local(path, "acc_bytes")).metrics()["tasks"]["mine"]
    theirs = ConfigurableTask(
        config={
            **{k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("dataset")},
            "num_fewshot": 0,
            "custom_dataset": lambda: {
                "test": datasets.Dataset.from_json(str(tmp_path / "mine.jsonl"), cache_dir=str(tmp_path))
            },
        }
    )
    results = evaluate(lm_of(model, data, 256), {"tasks": {"mine": theirs}}, bootstrap_iters=100)["results"]["mine"]
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert found[f"{name}_percent"] == pytest.approx(100 * results[f"{name},none"])
    assert found["accuracy_percent_std_error"] == pytest.approx(100 * results["acc_bytes_stderr,none"])
    assert (found["accuracy_percent_low"], found["accuracy_percent_high"]) == pytest.approx(
        [100 * bound for bound in binomial_interval(round(9 * results["acc_bytes,none"]), 9)]
    )


def test_letters_of_several_bytes_tell_characters_from_bytes() -> None:
    from hybrid.evals.harness import right_choices

    choices = ["üüüü", "abcdef"]
    # Per character -1 and -0.9, per byte -0.5 and -0.9, by itself -4 and -5.4.
    assert right_choices([(choices, (-4.0, -5.4), {0})]) == {"acc": (True,), "acc_norm": (False,), "acc_bytes": (True,)}
    assert right_choices([(choices, (-4.0, -4.0), {1})])["acc"] == (False,)
    assert right_choices([(choices, (-4.0, -5.4), {0, 1})])["acc_norm"] == (True,)


def test_every_kind_of_task_is_answered(
    ask: Callable[..., FewShotResult], model: LanguageModel, data: DocumentSource
) -> None:
    result = ask(local(TASKS / "python_words.yaml", "exact_match"), local(TASKS / "python_endings.yaml", "acc"))
    words, endings = result.tasks
    rows = [json.loads(line) for line in (TASKS / "python_words.jsonl").read_text().splitlines()]
    assert endings.right["acc"] == tuple(
        losses(model, [256, *row["text"].encode()], row["rest"].encode())[1] for row in rows
    )
    said = lm_of(model, data, 256).generate_until(
        requests(
            "generate_until",
            *((row["text"], {"until": [" ", "\n", "(", ")", ":", ","], "max_gen_toks": 12}) for row in rows),
        )
    )
    assert words.right["exact_match"] == tuple(text == row["rest"] for text, row in zip(said, rows, strict=True))
    assert (words.n, words.version, result.harness_version) == (10, "1", "0.4.13")


def test_a_right_answer_is_right(
    ask: Callable[..., FewShotResult], model: LanguageModel, data: DocumentSource, tmp_path: Path
) -> None:
    """Questions whose answer is what this model says: all are right, of both kinds."""
    settings = {"until": [], "max_gen_toks": 3}
    texts = [f"{i} is" for i in range(20)]
    said = lm_of(model, data, 256).generate_until(requests("generate_until", *((text, settings) for text in texts)))
    plain = [(text, answer) for text, answer in zip(texts, said, strict=True) if answer.isascii() and len(answer) == 3]
    assert len(plain) >= 3
    rows = [{"question": text, "answer": answer} for text, answer in plain]
    kinds = {"generate_until": "exact_match", "loglikelihood": "acc"}
    for output_type, metric in kinds.items():
        path = write_task(
            tmp_path,
            rows,
            output_type=output_type,
            doc_to_choice=None,
            target_delimiter="",
            generation_kwargs=settings if metric == "exact_match" else None,
        )
        (result,) = ask(local(path, metric)).tasks
        assert result.right == {metric: (True,) * len(rows)}


def test_shots_are_examples_of_the_training_split_drawn_by_the_seed(
    ask: Callable[..., FewShotResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[str] = []
    from hybrid.evals.harness import HarnessModel

    spied = HarnessModel.loglikelihood

    def spy(self: Any, asked: Sequence[Any], disable_tqdm: bool = True) -> Any:
        contexts.extend(request.args[0] for request in asked)
        return spied(self, asked, disable_tqdm)

    monkeypatch.setattr(HarnessModel, "loglikelihood", spy)
    path = TASKS / "python_lines.yaml"
    results = [ask(local(path, shots=2), seed=seed, limit=3) for seed in (1, 1, 2)]
    shots = [json.loads(line) for line in (TASKS / "python_lines_shots.jsonl").read_text().splitlines()]
    told = [f"{shot['question']} {shot['choices'][shot['answer']]}\n\n" for shot in shots]
    asked = [json.loads(line)["question"] for line in (TASKS / "python_lines.jsonl").read_text().splitlines()[:3]]
    for context, question in zip(contexts[::4], asked * 3, strict=True):
        assert context.endswith(question)
        assert sum(example in context for example in told) == 2
    digests = [result.tasks[0].questions for result in results]
    assert digests[0] == digests[1] != digests[2]


def test_contexts_that_were_cut_are_counted(ask: Callable[..., FewShotResult]) -> None:
    rows = [json.loads(line) for line in (TASKS / "python_lines.jsonl").read_text().splitlines()]
    for length in (256, 60, 20):
        # bos and the delimiter come on top; the last token is not read.
        lengths = [len(f"{row['question']} {choice}".encode()) for row in rows for choice in row["choices"]]
        (result,) = ask(local(TASKS / "python_lines.yaml"), length=length).tasks
        assert result.n_cut == sum(n > length for n in lengths)
    (result,) = ask(local(TASKS / "python_words.yaml", "exact_match"), length=30).tasks
    words = [json.loads(line)["text"] for line in (TASKS / "python_words.jsonl").read_text().splitlines()]
    assert result.metrics()["requests_cut"] == sum(len(word) + 1 > 30 - 12 for word in words) > 0


def test_a_limit_takes_the_first_questions(ask: Callable[..., FewShotResult]) -> None:
    path = TASKS / "python_lines.yaml"
    few, all_ = (ask(local(path), limit=limit).tasks[0] for limit in (7, None))
    assert few.n == 7
    assert few.right["acc"] == all_.right["acc"][:7]
    assert few.questions != all_.questions


def test_nothing_is_printed_and_the_harness_is_left_as_it_was(
    ask: Callable[..., FewShotResult], capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    import lm_eval.api.task

    before = logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm
    ask(local(TASKS / "python_words.yaml", "exact_match"))
    assert (logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            [*ROWS, {"question": "x", "choices": ["a", "b"], "answer": 2}],
            {},
            r"question 10: answer = 2: expected one of",
        ),
        ([*ROWS, {"question": "x", "choices": ["a", ""], "answer": 0}], {}, r"question 10: choices = \['a', ''\]"),
        ([{**row, "choices": 1} for row in ROWS], {}, r"mine"),
        (
            [*ROWS, {"question": "x", "choices": "ab", "answer": 0}],
            {},
            r"mine.jsonl: .*expected a field to be of one kind",
        ),
        (ROWS, {"doc_to_text": "{{question.nothing.more}}"}, r"UndefinedError"),
        (ROWS, {"doc_to_target": "{{answer / 0}}"}, r"ZeroDivisionError"),
    ],
)
def test_questions_that_cannot_be_asked_are_named(
    rows: list[Any], changes: dict[str, Any], message: str, ask: Callable[..., FewShotResult], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"eval.fewshot.tasks\[0\].task = mine: .*" if message == "mine" else message
    ) as e:
        ask(local(write_task(tmp_path, rows, **changes)))
    assert len(e.value.problems) == 1


def test_more_shots_than_examples_are_refused(ask: Callable[..., FewShotResult]) -> None:
    with pytest.raises(ConfigError, match=r"shots = 5: python_lines has 4 examples: expected at most so many"):
        ask(local(TASKS / "python_lines.yaml", shots=5))


def test_questions_on_the_hub_are_not_there_without_a_network(
    ask: Callable[..., FewShotResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    # Read from the environment when they are imported; without it half a minute of trying again.
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"task = hellaswag: its questions cannot be had: .*Rowan/hellaswag"
    ) as caught:
        ask(local("hellaswag", "acc_bytes"))
    (problem,) = caught.value.problems
    assert "\n" not in problem
    assert "Hugging Face hub" in problem


def test_the_harnesss_own_tasks_are_asked_in_its_own_words(
    ask: Callable[..., FewShotResult], model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With questions of ours in the place of those on the hub, which cannot be reached from here."""
    import datasets

    answers = {"a": ["blue", "grün"], "b": ["wet", "a dry one"], "c": ["1", "2"]}
    piqa = [{"goal": goal, "sol1": one, "sol2": two, "label": 1} for goal, (one, two) in answers.items()]
    arc = [
        {"question": goal, "choices": {"text": texts, "label": ["A", "B"]}, "answerKey": "B"}
        for goal, texts in answers.items()
    ]
    given = {"baber/piqa": piqa, "allenai/ai2_arc": arc, "EleutherAI/wikitext_document_level": [{"page": "a b c"}]}

    def load_dataset(path: str, name: str | None = None) -> dict[str, datasets.Dataset]:
        del name  # which of ARC's two
        rows = datasets.Dataset.from_list(given[path])
        return {"train": rows, "validation": rows, "test": rows}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    results = ask(
        *(local(name, "acc_bytes") for name in ("piqa", "arc_challenge")), local("arc_easy", "acc_norm", shots=1)
    ).tasks
    expected = []
    for goal, texts in answers.items():
        context = [256, *f"Question: {goal}\nAnswer:".encode()]
        per_byte = [losses(model, context, f" {text}".encode())[0] / len(text.encode()) for text in texts]
        expected.append(per_byte[1] > per_byte[0])
    assert [result.right["acc_bytes"] for result in results[:2]] == [tuple(expected)] * 2
    assert [(result.n, result.version, result.n_cut) for result in results] == [(3, "1.0", 0)] * 3
    with pytest.raises(
        ConfigError, match=r"metric = exact_match: piqa is answered by multiple_choice: expected acc or"
    ):
        ask(local("piqa", "exact_match"))
    with pytest.raises(ConfigError, match=r"metric = acc: wikitext is answered by .*: expected a task with right and"):
        ask(local("wikitext", "acc"))


def test_the_shipped_tasks_are_the_harnesss_own() -> None:
    for name in ("lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "openbookqa"):
        assert f"task: {name}\n" in harness_task_file(name, "task").read_text()


def test_without_the_extra_it_is_said_how_to_get_it(
    ask: Callable[..., FewShotResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(hybrid.evals, "harness", raising=False)
    monkeypatch.setitem(sys.modules, "hybrid.evals.harness", None)
    with pytest.raises(ConfigError, match=r"needs LM Evaluation Harness, .*: pip install -e '.\[fewshot\]'"):
        ask(local(TASKS / "python_lines.yaml"))


# --- the record ---------------------------------------------------------------------------------


def result(task: str, benchmark: str, right: Sequence[bool]) -> TaskResult:
    spec = TaskEvalSpec(task=task, shots=0, metric="acc", benchmark=benchmark, files=())
    return TaskResult(spec=spec, version="1", questions="0" * 16, right={"acc": tuple(right)}, n_cut=0)


def test_the_average_is_over_benchmarks_with_arc_the_mean_of_two() -> None:
    tasks = {
        "lambada_openai": ("lambada", 4, 8),
        "hellaswag": ("hellaswag", 3, 10),
        "piqa": ("piqa", 6, 10),
        "arc_easy": ("arc", 5, 10),
        "arc_challenge": ("arc", 2, 20),
        "openbookqa": ("openbookqa", 1, 4),
    }
    results = tuple(result(name, of, [True] * k + [False] * (n - k)) for name, (of, k, n) in tasks.items())
    found = FewShotResult(tasks=results, harness_version="v").metrics()
    assert found["arc_accuracy_percent"] == pytest.approx(100 * (0.5 + 0.1) / 2)
    assert found["few_shot_accuracy_percent"] == pytest.approx(100 * (0.5 + 0.3 + 0.6 + 0.3 + 0.25) / 5)
    assert found["mean_accuracy_percent"] == found["few_shot_accuracy_percent"]
    variances = {name: k / n * (1 - k / n) / (n - 1) for name, (_, k, n) in tasks.items()}
    arc = (variances["arc_easy"] + variances["arc_challenge"]) / 4
    others = sum(variance for name, variance in variances.items() if not name.startswith("arc"))
    assert found["arc_accuracy_percent_std_error"] == pytest.approx(100 * math.sqrt(arc))
    assert found["few_shot_accuracy_percent_std_error"] == pytest.approx(100 * math.sqrt(others + arc) / 5)
    assert "few_shot_accuracy_percent" not in FewShotResult(tasks=results[:2], harness_version="v").metrics()
    assert {of for of, _, _ in tasks.values()} == PAPER_BENCHMARKS


def test_of_a_single_question_no_error_is_known() -> None:
    found = FewShotResult(tasks=(result("a", "a", [True]),), harness_version="v").metrics()
    assert found["a_accuracy_percent"] == 100.0
    assert found["a_accuracy_percent_std_error"] is None
    assert (found["a_accuracy_percent_low"], found["a_accuracy_percent_high"]) == (pytest.approx(2.5), 100.0)
