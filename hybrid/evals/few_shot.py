"""Few-shot accuracy: tasks of LM Evaluation Harness, or local ones, and what a record says of them.

As in arXiv 2510.04800, where the harness is used too: LAMBADA by whether greedy decoding gives the word; of HellaSwag,
PIQA, ARC and OpenBookQA, the choice that is likeliest per byte of its UTF-8, which is the harness's `acc_bytes` (its
`acc_norm` divides by characters); the average is of the five, with ARC the mean of Easy and Challenge.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from hybrid.answers import packed
from hybrid.data import DocumentSource
from hybrid.eval_spec import FewShotEvalSpec, Right, TaskEvalSpec
from hybrid.evals.intervals import binomial_interval
from hybrid.evals.scoring import Scorer
from hybrid.model import LanguageModel
from hybrid.spec import ConfigError
from hybrid.task_files import missing_extra

PAPER_BENCHMARKS: Final = frozenset({"lambada", "hellaswag", "piqa", "arc", "openbookqa"})


@final
@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The answers to a task's questions, in their order, right or not, by everything that can be called right.

    `questions` are 16 hex digits of a SHA-256 over the prompts, with their shots, the choices and the right answers:
    where two results have it in common, their answers can be compared one by one. `version` is the task's own. Of
    `n_cut` requests, four to a question with four choices, the context was too long, and lost its beginning.
    """

    spec: TaskEvalSpec
    version: str | None
    questions: str
    right: Mapping[Right, tuple[bool, ...]]
    n_cut: int

    @property
    def n(self) -> int:
        return len(self.right[self.spec.metric])

    @property
    def accuracy(self) -> float:
        return sum(self.right[self.spec.metric]) / self.n

    @property
    def variance(self) -> float | None:
        """Of the accuracy, from the questions' own spread (n - 1), as the harness has it; None of a single question."""
        return self.accuracy * (1 - self.accuracy) / (self.n - 1) if self.n > 1 else None

    def interval(self, name: str) -> dict[str, float]:
        """The exact binomial 95% interval of the accuracy, which is called `name`."""
        low, high = binomial_interval(sum(self.right[self.spec.metric]), self.n)
        return {f"{name}_percent_low": 100 * low, f"{name}_percent_high": 100 * high}

    def metrics(self) -> dict[str, Any]:
        """As a record has it: percentages, with the exact binomial 95% interval and the standard error."""
        return {
            "shots": self.spec.shots,
            "metric": self.spec.metric,
            "benchmark": self.spec.benchmark,
            "version": self.version,
            "n": self.n,
            "requests_cut": self.n_cut,
            **_percent("accuracy", self.accuracy, self.variance),
            **self.interval("accuracy"),
            **{f"{name}_percent": 100 * sum(right) / self.n for name, right in self.right.items()},
            "questions": self.questions,
            "right": {name: packed(right) for name, right in self.right.items()},
        }


@final
@dataclass(frozen=True, kw_only=True)
class FewShotResult:
    """What a model answered, and the version of the harness that asked."""

    tasks: tuple[TaskResult, ...]
    harness_version: str

    def metrics(self) -> dict[str, Any]:
        """As a record has it. Of each benchmark, and over the benchmarks, the mean and its standard error.

        Errors are those of drawing the questions, task by task; what training with other seeds would change is not in
        them. The mean is called `few_shot_accuracy_percent` too where the benchmarks are the paper's five.
        """
        found: dict[str, Any] = {}
        means = []
        for name in dict.fromkeys(task.spec.benchmark for task in self.tasks):
            tasks = [task for task in self.tasks if task.spec.benchmark == name]
            means.append(_mean((task.accuracy, task.variance) for task in tasks))
            found |= _percent(f"{name}_accuracy", *means[-1])
            found |= tasks[0].interval(f"{name}_accuracy") if len(tasks) == 1 else {}
        overall = _mean(means)
        if {task.spec.benchmark for task in self.tasks} == PAPER_BENCHMARKS:
            found |= _percent("few_shot_accuracy", *overall)
        return {
            **_percent("mean_accuracy", *overall),
            **found,
            "tasks": {task.spec.task: task.metrics() for task in self.tasks},
            "harness_version": self.harness_version,
        }


def evaluate_few_shot(
    model: LanguageModel,
    data: DocumentSource,
    spec: FewShotEvalSpec,
    *,
    read_file: Callable[[str], bytes],
    max_length: int,
    batch_tokens: int,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> FewShotResult:
    """Have the model answer the tasks; `read_file` gives the files of local ones by their digests.

    Contexts are cut off on their left where they go beyond `max_length` tokens with what follows them, as the harness
    does. Raises ConfigError where the harness is not installed, or a task cannot be had, or does not fit.
    """
    try:
        from hybrid.evals import harness
    except ModuleNotFoundError as error:
        raise ConfigError(f"{missing_extra()} ({error})") from error
    scorer = Scorer(
        model=model,
        vocab_size=len(data.token_bytes_V),
        max_length=max_length,
        batch_tokens=batch_tokens,
        dtype=dtype,
    )
    return harness.evaluate_tasks(scorer, data, spec, read_file)


def _mean(parts: Iterable[tuple[float, float | None]]) -> tuple[float, float | None]:
    """The mean of independent numbers, and its variance; None where that of one is not known."""
    values, variances = zip(*parts, strict=True)
    known = [variance for variance in variances if variance is not None]
    variance = math.fsum(known) / len(known) ** 2 if len(known) == len(values) else None
    return math.fsum(values) / len(values), variance


def _percent(name: str, accuracy: float, variance: float | None) -> dict[str, float | None]:
    return {
        f"{name}_percent": 100 * accuracy,
        f"{name}_percent_std_error": None if variance is None else 100 * math.sqrt(variance),
    }
