"""Two trained models on the same questions: accuracies, and what differs, question by question.

Read from `evals=[fewshot]` records, which keep every answer. What is compared are these two models: what training them
with other seeds would change is not in it.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, final

from analysis.stats import LEVEL, holm, mcnemar_exact
from analysis.tables.table import Column, Table, Value
from hybrid.answers import unpacked
from hybrid.cost import layout_of
from hybrid.spec import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sweeps.store import Store

RESAMPLES: Final = 10_000
_SEED: Final = 1

ABOUT: Final = """\
Compare two runs by the questions that both were asked (evals=[fewshot]).

A line a task: how many each answered rightly, the difference with a 95% interval by resampling questions, how many one
alone did, McNemar's exact test over these, and Holm's correction over the tasks. Tasks are compared where prompts,
shots, choices and what counts as right are the same. The mean is over benchmarks, as in the record.
"""

EXAMPLES: Final = """\
examples:
  python run.py -m model=inter,mamba mode=eval evals=[fewshot]    ask them first
  python -m analysis compare fb69 2726                            two runs, by the beginnings of their ids
  python -m analysis compare fb69 2726 --format csv

exit codes: 0 done; 2 there is no such run, or nothing that both were asked; 1 anything else.
"""


@final
@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a run answered to a task: `right` by question, as `metric` counts it."""

    task: str
    benchmark: str
    shots: int
    metric: str
    questions: str
    right: tuple[bool, ...]

    @property
    def asked(self) -> tuple[str, int, str, str]:
        return self.task, self.shots, self.metric, self.questions


@final
@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two runs on a task, or on the mean of benchmarks, which has no test; percentages, the second less the first."""

    name: str
    shots: int | None
    metric: str | None
    n: int
    first: float
    second: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float | None
    adjusted_p: float | None = None


def answers_of(store: "Store", run_id: str) -> list[Answers]:
    """Of all few-shot evaluations of a run. Raises ConfigError where a record's answers are not whole."""
    found: dict[Answers, None] = {}
    for id_, record in store.eval_records(run_id).items():
        if record.get("eval", {}).get("kind") != "fewshot":
            continue
        try:
            found |= dict.fromkeys(_answers(record["metrics"]["tasks"]))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{store.eval_record_path(run_id, id_)}: {error!r}: expected answers by task") from error
    return list(found)


def _answers(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[Answers]:
    for name, task in tasks.items():
        yield Answers(
            task=name,
            benchmark=task["benchmark"],
            shots=task["shots"],
            metric=task["metric"],
            questions=task["questions"],
            right=unpacked(task["right"][task["metric"]], task["n"]),
        )


def pair(first: Sequence[Answers], second: Sequence[Answers]) -> list[tuple[Answers, Answers]]:
    """What both were asked, in the order of the first."""
    others = {answers.asked: answers for answers in second}
    return [(answers, others[answers.asked]) for answers in first if answers.asked in others]


def compared(pairs: Sequence[tuple[Answers, Answers]]) -> list[Paired]:
    """A line a task, and where several benchmarks are asked one for their mean."""
    import numpy as np

    generator = np.random.Generator(np.random.Philox(_SEED))
    lines: list[Paired] = []
    resampled: list[NDArray[np.float64]] = []
    for one, other in pairs:
        only_first = sum(a and not b for a, b in zip(one.right, other.right, strict=True))
        only_second = sum(b and not a for a, b in zip(one.right, other.right, strict=True))
        n = len(one.right)
        resampled.append(_differences(generator, only_first, only_second, n))
        low, high = _interval(resampled[-1])
        lines.append(
            Paired(
                name=one.task,
                shots=one.shots,
                metric=one.metric,
                n=n,
                first=100 * sum(one.right) / n,
                second=100 * sum(other.right) / n,
                low=low,
                high=high,
                only_first=only_first,
                only_second=only_second,
                p=mcnemar_exact(only_first, only_second),
            )
        )
    adjusted = holm([line.p for line in lines if line.p is not None])
    lines = [replace(line, adjusted_p=p) for line, p in zip(lines, adjusted, strict=True)]
    benchmarks = list(dict.fromkeys(one.benchmark for one, _ in pairs))
    if len(benchmarks) == 1:
        return lines
    members = [[i for i, (one, _) in enumerate(pairs) if one.benchmark == name] for name in benchmarks]
    low, high = _interval(np.mean([np.mean([resampled[i] for i in rows], axis=0) for rows in members], axis=0))
    mean = Paired(
        name=f"mean of {len(benchmarks)} benchmarks",
        shots=None,
        metric=None,
        n=sum(line.n for line in lines),
        first=fmean(fmean(lines[i].first for i in rows) for rows in members),
        second=fmean(fmean(lines[i].second for i in rows) for rows in members),
        low=low,
        high=high,
        only_first=sum(line.only_first for line in lines),
        only_second=sum(line.only_second for line in lines),
        p=None,
    )
    return [*lines, mean]


def _differences(generator: "np.random.Generator", only_first: int, only_second: int, n: int) -> "NDArray[np.float64]":
    """The difference in percent over questions drawn with replacement, both answers together, (RESAMPLES,).

    All that counts of a draw is how many of its questions one alone answered rightly.
    """
    shares = [only_first / n, only_second / n, (n - only_first - only_second) / n]
    drawn_R3 = generator.multinomial(n, shares, size=RESAMPLES)
    differences: NDArray[np.float64] = 100 * (drawn_R3[:, 1] - drawn_R3[:, 0]) / n
    return differences


def _interval(values: "NDArray[np.float64]") -> tuple[float, float]:
    import numpy as np

    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


# --- the command --------------------------------------------------------------------------------


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("first", metavar="RUN", help="its id, or as much of it as tells it apart")
    command.add_argument("second", metavar="RUN", help="the other's")
    command.add_argument(
        "--store", metavar="DIR", type=Path, help="where the results are (default: $HYBRID_STORE, else ./store)"
    )


def comparison(store: "Store", first: str, second: str) -> Table[Paired]:
    """Raises ConfigError where there is no such run, or nothing that both were asked."""
    ids = [store.find(prefix) for prefix in (first, second)]
    if ids[0] == ids[1]:
        raise ConfigError(f"{first}, {second} = {ids[0]} both: expected two runs")
    answers = [answers_of(store, run_id) for run_id in ids]
    silent = [run_id for run_id, found in zip(ids, answers, strict=True) if not found]
    if silent:
        raise ConfigError(
            [
                f"run {run_id}: no few-shot evaluation is recorded: mode=eval evals=[fewshot] makes one"
                for run_id in silent
            ]
        )
    pairs = pair(*answers)
    asked = {one.asked for one, _ in pairs}
    left_out = list(dict.fromkeys(one.task for found in answers for one in found if one.asked not in asked))
    if not pairs:
        raise ConfigError(
            f"runs {' and '.join(ids)}: no task was asked of both with the same questions, shots and metric "
            f"(asked: {', '.join(left_out)})"
        )
    names = [f"{run_id} ({_layout(store, run_id)})" for run_id in ids]
    notes = [f"Not asked of both in the same way, and so left out: {', '.join(left_out)}."] if left_out else []
    return Table(
        name="compare",
        title="Two runs on the same questions",
        columns=COLUMNS,
        rows=tuple(compared(pairs)),
        caption=(f"1st: {names[0]}. 2nd: {names[1]}.",),
        footnotes=(
            *notes,
            f"95% intervals by resampling questions, both answers together ({RESAMPLES:,} times); p of McNemar's exact "
            "test over the questions that one alone answered rightly, and with Holm's correction over the tasks.",
            "Of these two trained models alone: what other seeds would change is not in it.",
        ),
    )


def _layout(store: "Store", run_id: str) -> str:
    spec = store.run_spec(run_id)
    return "unknown" if spec is None else layout_of(spec.model)


def _percent(value: Value) -> str:
    return f"{value:.1f}"


def _signed(value: Value) -> str:
    return f"{value:+.1f}"


def _p(value: Value) -> str:
    return f"{value:.2g}"


COLUMNS: Final[tuple[Column[Paired], ...]] = (
    Column(key="task", header="task", value=lambda row: row.name, fmt=str),
    Column(key="shots", header="shots", value=lambda row: row.shots, fmt=str),
    Column(key="metric", header="metric", value=lambda row: row.metric, fmt=str),
    Column(key="n", header="questions", value=lambda row: row.n, fmt=str),
    Column(key="first_accuracy_percent", header="1st %", value=lambda row: row.first, fmt=_percent),
    Column(key="second_accuracy_percent", header="2nd %", value=lambda row: row.second, fmt=_percent),
    Column(key="difference_percent", header="2nd - 1st", value=lambda row: row.second - row.first, fmt=_signed),
    Column(key="difference_percent_low", header="95% from", value=lambda row: row.low, fmt=_signed),
    Column(key="difference_percent_high", header="to", value=lambda row: row.high, fmt=_signed),
    Column(key="only_first", header="1st alone right", value=lambda row: row.only_first, fmt=str),
    Column(key="only_second", header="2nd alone right", value=lambda row: row.only_second, fmt=str),
    Column(key="mcnemar_p", header="p", value=lambda row: row.p, fmt=_p),
    Column(key="mcnemar_p_holm", header="p, Holm", value=lambda row: row.adjusted_p, fmt=_p),
)
