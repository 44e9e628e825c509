"""Our models as an `LM` of LM Evaluation Harness (Gao et al. 2024, github.com/EleutherAI/lm-evaluation-harness).

    lm = HarnessModel(scorer, data)
    lm_eval.simple_evaluate(lm, tasks=[...])       # the harness's own way, or

    evaluate_tasks(scorer, data, spec, read_file)  # what mode=eval does

Every context begins with bos, as every document in training did; an empty one is bos alone. The harness is an extra:
this file needs it to be imported.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import datasets
import lm_eval
import lm_eval.api.task
import numpy as np
import pyarrow
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hybrid.data import DocumentSource
from hybrid.eval_spec import FewShotEvalSpec, Right, TaskEvalSpec
from hybrid.evals.few_shot import FewShotResult, TaskResult
from hybrid.evals.progress import progress
from hybrid.evals.scoring import Continuation, Prompt, Scorer
from hybrid.spec import ConfigError
from hybrid.task_files import METRICS, harness_task_file, has_shots, parse_rows, parse_task

_MAX_NEW_TOKENS: Final = 256
_GREEDY: Final = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"})


@final
class HarnessModel(TemplateLM):
    """A model and the tokens of its data. What the harness asks at once is answered in batches.

    `n_cut` counts the requests so far of whose context the beginning was cut off, as it was too long.
    """

    def __init__(self, scorer: Scorer, data: DocumentSource, name: str = "fewshot") -> None:
        super().__init__()
        self._scorer = scorer
        self._data = data
        self._name = name
        self.n_cut = 0

    @property
    def eot_token_id(self) -> int:
        return self._data.eos

    @property
    def prefix_token_id(self) -> int:
        return self._data.bos

    @property
    def max_length(self) -> int:
        """Positions that a context and what follows it may have."""
        return self._scorer.max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """With bos at the front, unless `add_special_tokens` is false."""
        tokens: list[int] = self._data.encode(string.encode("utf-8")).tolist()
        return tokens if add_special_tokens is False else [self._data.bos, *tokens]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """In nats, and whether greedy decoding gives it. Raises ConfigError for what has no tokens."""
        if any(request.args[1] == "" for request in requests):
            raise ConfigError(f"{self._name}: a continuation is empty: expected text to be scored")
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        for (_, text), _, tokens in requests:
            if not tokens:
                raise ConfigError(f"{self._name}: {text!r} adds no token to its context: expected text to be scored")
        pairs = [Continuation(context=tuple(context), tokens=tuple(tokens)) for _, context, tokens in requests]
        self.n_cut += sum(len(pair.context) > self._scorer.room(pair) for pair in pairs)
        with progress(self._name, len(set(pairs)), "requests") as told:
            scores = self._scorer.scores(pairs, told)
        return [(score.log_likelihood_nats, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Of whole texts, in windows of the model's length: every token once, with as much before it as there is."""
        windows: list[Continuation] = []
        counts = []
        for request in requests:
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            pairs = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            own = [make_disjoint_window(pair) for pair in pairs]
            windows += [Continuation(context=tuple(context), tokens=tuple(scored)) for context, scored in own]
            counts.append(len(own))
        with progress(self._name, len(set(windows)), "requests") as told:
            scores = iter(self._scorer.scores(windows, told))
        return [math.fsum(next(scores).log_likelihood_nats for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """What greedy decoding says, up to the first of `until`, eos, or `max_gen_toks` tokens.

        Raises ConfigError where something else than greedy is asked for, or no room is left for the context.
        """
        prompts = [self._prompt(request.args[0], request.args[1]) for request in requests]
        self.n_cut += sum(len(prompt.context) > self._scorer.room(prompt) for prompt in prompts)
        with progress(self._name, len(prompts), "requests") as told:
            answers = self._scorer.answers(
                prompts, lambda tokens: self._data.decode(np.array(tokens)), eos=self._data.eos, progress=told
            )
        return [answer.decode("utf-8", "replace") for answer in answers]

    def _prompt(self, context: str, settings: Mapping[str, Any]) -> Prompt:
        unknown = sorted(set(settings) - _GREEDY)
        if unknown or settings.get("do_sample") or float(settings.get("temperature") or 0.0) > 0.0:
            raise ConfigError(
                f"{self._name}: generation_kwargs = {dict(settings)}: expected greedy decoding (until, max_gen_toks)"
            )
        max_new_tokens = int(settings.get("max_gen_toks", _MAX_NEW_TOKENS))
        if not 1 <= max_new_tokens < self.max_length:
            raise ConfigError(
                f"{self._name}: generation_kwargs.max_gen_toks = {max_new_tokens}: expected 1 to "
                f"{self.max_length - 1}, as the run's sequences have {self.max_length} tokens, the context among them"
            )
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else until
        return Prompt(
            context=tuple(self.tok_encode(context)),
            max_new_tokens=max_new_tokens,
            stops=tuple(stop.encode("utf-8") for stop in stops),
        )


def evaluate_tasks(
    scorer: Scorer, data: DocumentSource, spec: FewShotEvalSpec, read_file: Callable[[str], bytes]
) -> FewShotResult:
    """As `hybrid.evals.few_shot.evaluate_few_shot`, which says what it raises."""
    with _quiet():
        tasks = [_task(task, f"eval.fewshot.tasks[{i}]", spec.seed, read_file) for i, task in enumerate(spec.tasks)]
        results = [_answered(HarnessModel(scorer, data, task.task), task, it, spec.limit) for task, it in tasks]
    return FewShotResult(tasks=tuple(results), harness_version=lm_eval.__version__)


# --- tasks --------------------------------------------------------------------------------------


def _task(spec: TaskEvalSpec, where: str, seed: int, read_file: Callable[[str], bytes]) -> tuple[TaskEvalSpec, Task]:
    """A task that is ready to be asked. Raises ConfigError where it cannot be had, or not with so many shots."""
    task = _local_task(spec, where, read_file) if spec.files else _harness_task(spec, where)
    metrics = METRICS.get(task.OUTPUT_TYPE, ())
    if spec.metric not in metrics:
        expected = " or ".join(metrics) or "a task with right and wrong answers"
        raise ConfigError(
            f"{where}.metric = {spec.metric}: {spec.task} is answered by {task.OUTPUT_TYPE}: expected {expected}"
        )
    if spec.shots:
        _check_shots(spec, task, where)
    task.set_config(key="num_fewshot", value=spec.shots)
    task.set_fewshot_seed(seed=seed)
    return spec, task


def _harness_task(spec: TaskEvalSpec, where: str) -> Task:
    path = harness_task_file(spec.task, f"{where}.task")
    try:
        task: Task = TaskManager(include_defaults=False).load([str(path)])["tasks"][spec.task]
    except Exception as error:
        raise ConfigError(
            f"{where}.task = {spec.task}: its questions cannot be had: {_one_line(error)}; they come from the Hugging "
            "Face hub, or out of HF_HOME if they were fetched on a machine with a network; a task in files of your own "
            "needs neither"
        ) from error
    return task


def _local_task(spec: TaskEvalSpec, where: str, read_file: Callable[[str], bytes]) -> Task:
    file = parse_task(read_file(spec.files[0]), f"{where}.task = {spec.task}")
    splits = {}
    for (split, name), digest in zip(file.data.items(), spec.files[1:], strict=True):
        at = f"{where}.task = {spec.task}: {name}"
        rows = parse_rows(read_file(digest), at)
        try:
            splits[split] = datasets.Dataset.from_dict({field: [row[field] for row in rows] for field in rows[0]})
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            raise ConfigError(f"{at}: {_one_line(error)}: expected a field to be of one kind in all lines") from error
    settings = {
        key: value for key, value in file.settings.items() if not key.startswith(("dataset_", "metadata", "tag"))
    }
    try:
        task = ConfigurableTask(config={**settings, "custom_dataset": lambda: splits})
    except Exception as error:
        raise ConfigError(f"{where}.task = {spec.task}: {_one_line(error)}") from error
    if isinstance(metadata := file.settings.get("metadata"), dict):
        task.VERSION = metadata.get("version", task.VERSION)
    for number, document in enumerate(task.eval_docs, start=1):
        problem = _problem_of(task, document)
        if problem is not None:
            raise ConfigError(f"{where}.task = {spec.task}: question {number}: {problem}")
    return task


def _problem_of(task: Task, document: Mapping[str, Any]) -> str | None:
    """Why a question cannot be asked, or answered rightly."""
    try:
        text, target = task.doc_to_text(document), task.doc_to_target(document)
        choices = task.doc_to_choice(document) if task.OUTPUT_TYPE == "multiple_choice" else None
    except Exception as error:
        return _one_line(error)
    if choices is None:
        return None if isinstance(text, str) and target not in ("", []) else f"{target!r}: expected an answer"
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        return f"choices = {choices!r}: expected a list of texts, two at least"
    right = _gold(task, document, choices)
    return None if right and right <= set(range(len(choices))) else f"answer = {target!r}: expected one of the choices"


def _gold(task: Task, document: Mapping[str, Any], choices: Sequence[str]) -> set[int]:
    """The numbers of the right choices, as the harness reads them; below 0 what is none of them."""
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    golds = gold if isinstance(gold, list) else [gold]
    return {choices.index(one) if one in choices else one if isinstance(one, int) else -1 for one in golds}


def _check_shots(spec: TaskEvalSpec, task: Task, where: str) -> None:
    """Raises ConfigError where a question could be its own example, or there are too few."""
    config, examples = task.config, task.fewshot_cfg
    if not has_shots(
        test=config.test_split,
        validation=config.validation_split,
        training=config.training_split,
        shots=examples.split,
        samples=bool(examples.samples),
    ):
        raise ConfigError(
            f"{where}.shots = {spec.shots}: {spec.task} has no examples but its questions: expected 0, or a local task "
            "with a training_split or a fewshot_split"
        )
    left = len(task.sampler.fewshot_docs()) - (examples.split is not None and examples.split == config.test_split)
    if spec.shots > left:
        raise ConfigError(f"{where}.shots = {spec.shots}: {spec.task} has {left} examples: expected at most so many")


# --- answers ------------------------------------------------------------------------------------


def _answered(model: HarnessModel, spec: TaskEvalSpec, task: Task, limit: int | None) -> TaskResult:
    found = evaluate(model, {"tasks": {spec.task: task}}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples = found["samples"][spec.task]
    # Of several ways to read an answer off what was said, the first.
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    asked = json.dumps([[sample["arguments"], sample["target"]] for sample in samples], default=str)
    return TaskResult(
        spec=spec,
        version=None if task.VERSION is None else str(task.VERSION),
        questions=hashlib.sha256(asked.encode("utf-8")).hexdigest()[:16],
        right=_right(task, samples, spec.metric),
        n_cut=model.n_cut,
    )


def _right(task: Task, samples: Sequence[Mapping[str, Any]], metric: Right) -> dict[Right, tuple[bool, ...]]:
    """Whether each answer is right, by whatever can be called so."""
    if task.OUTPUT_TYPE == "multiple_choice" and task.config.process_results is None:
        return right_choices(
            [
                (choices, [answer[0] for answer in sample["filtered_resps"]], _gold(task, sample["doc"], choices))
                for sample in samples
                for choices in [task.doc_to_choice(sample["doc"])]
            ]
        )
    values = [sample.get(metric) for sample in samples]
    if not all(value in (0, 1) for value in values):
        raise ConfigError(f"{metric}: {task.config.task} does not say of each answer whether it is right")
    return {metric: tuple(bool(value) for value in values)}


def right_choices(
    questions: Sequence[tuple[Sequence[str], Sequence[float], set[int]]],
) -> dict[Right, tuple[bool, ...]]:
    """Whether the likeliest choice is a right one: by itself, per character, and per byte of its UTF-8.

    Of each question its choices, their log likelihoods, and the numbers of the right ones; of equals the first counts.
    """
    units: dict[Right, Callable[[str], int]] = {
        "acc": lambda _: 1,
        "acc_norm": len,
        "acc_bytes": lambda choice: len(choice.encode("utf-8")),
    }
    return {
        name: tuple(
            int(
                np.argmax([score / unit(choice) for choice, score in zip(choices, scores[: len(choices)], strict=True)])
            )
            in right
            for choices, scores, right in questions
        )
        for name, unit in units.items()
    }


# --- what is said -------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness's own bars and notes are not shown: what of them matters is checked here, and an error."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub")]
    levels, bar = [logger.level for logger in loggers], lm_eval.api.task.tqdm
    shows_bars = not datasets.utils.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = _without_bar
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        if shows_bars:
            datasets.utils.enable_progress_bars()


def _without_bar(items: Iterable[Any], total: int | None = None) -> Iterable[Any]:
    """Where the harness would show a bar."""
    del total
    return items


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
