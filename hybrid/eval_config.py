"""The `evals` and `eval` settings: which evaluations are asked for, and what each is of a run."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, assert_never, final

from hybrid.config import Fingerprints, read_data
from hybrid.decode import decode, did_you_mean
from hybrid.eval_spec import (
    SHORTEST_PROMPT,
    EvalSpec,
    FewShotEvalSpec,
    ModuleWeightsEvalSpec,
    NeedleEvalSpec,
    NllEvalSpec,
    PositionEvalSpec,
    RecallEvalSpec,
    Right,
    TaskEvalSpec,
    ThroughputEvalSpec,
    is_gated,
    problems_of,
    usual_evals,
)
from hybrid.spec import ConfigError, DataSpec, RunSpec
from hybrid.task_files import METRICS, NAME, LocalTask, harness_task_file, harness_tasks_dir, is_local, read_local_task

C = TypeVar("C")

_LENGTHS_BEYOND: Final = 3
"""Position-wise losses go to so many training lengths: the paper's 24K for 8K."""

_BINS: Final = 8
"""Bins, and steps of a needle's length, in a training length: the paper's 1K for 8K."""

_LENGTHS_OF_RECALL: Final = (1, 2, 4)
"""A synthetic task is tried at so many times its length in training."""
_TOTAL_LENGTHS: Final = (1, 2, 4, 8, 16)
_PROMPT: Final = 16
"""Decoding goes to so many quarters of a training length, from a 16th of it: the paper's 2K to 32K from 512, for 8K."""

_NEEDLE_ROOM: Final = 64
"""What the paper's prompts leave of whole steps: 960, 1984, ..., 16320 tokens."""


@final
@dataclass(frozen=True, kw_only=True)
class NllConfig:
    """The `eval.nll` settings; `sets` are other corpora by name, each what a file of conf/data/ says."""

    max_examples: int | None
    sets: Any


@final
@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """The `eval.position` settings; null lengths follow from the run's."""

    length: int | None
    bin: int | None
    documents: int
    texts: tuple[str, ...] | None


@final
@dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """The `eval.needle` settings; null lengths follow from the run's."""

    lengths: tuple[int, ...] | None
    depths: tuple[int, ...]
    trials: int
    new_tokens: int
    seed: int
    text: str | None


@final
@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """The `eval.recall` settings; null lengths follow from the run's, null items are the run's."""

    examples: int
    lengths: tuple[int, ...] | None
    items: tuple[int, ...] | None


@final
@dataclass(frozen=True, kw_only=True)
class ModuleWeightsConfig:
    """The `eval.module_weights` settings."""

    max_examples: int


@final
@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One of `eval.fewshot.tasks`: a name of the harness, or a local task's file."""

    task: str
    shots: int
    metric: Right
    benchmark: str | None = None


@final
@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """The `eval.fewshot` settings."""

    tasks: tuple[TaskConfig, ...]
    limit: int | None
    seed: int


@final
@dataclass(frozen=True, kw_only=True)
class ThroughputConfig:
    """The `eval.throughput` settings; null lengths follow from the run's, a null device from `exec.device`."""

    device: str | None
    lengths: tuple[int, ...] | None
    batch: int
    prompt: int | None
    max_batch: int | None
    warmup: int
    repeats: int


EvalConfig = (
    NllConfig | PositionConfig | NeedleConfig | RecallConfig | FewShotConfig | ModuleWeightsConfig | ThroughputConfig
)
KINDS: Final[Mapping[str, type[EvalConfig]]] = {
    "nll": NllConfig,
    "position": PositionConfig,
    "needle": NeedleConfig,
    "recall": RecallConfig,
    "fewshot": FewShotConfig,
    "module_weights": ModuleWeightsConfig,
    "throughput": ThroughputConfig,
}


@final
@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Which evaluations were asked for; None where none were named. `sets` are the other corpora of their losses.

    `texts` are the files that they read, as they were named, with the first 16 hex digits of the SHA-256 of each;
    `tasks` the local tasks, by the file that was named; `device` is that of the execution, on which speed is measured
    unless another is named.
    """

    asked: tuple[EvalConfig, ...] | None
    sets: Mapping[str, DataSpec] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, LocalTask] = field(default_factory=dict)
    device: str = "cpu"

    def of(self, run: RunSpec) -> tuple[EvalSpec, ...]:
        """The evaluations of a run, each once. Raises ConfigError with all that mean nothing for it."""
        if self.asked is None:
            return usual_evals(run)
        specs = list(dict.fromkeys(spec for config in self.asked for spec in self._specs(config, run)))
        problems = [problem for spec in specs for problem in problems_of(spec, run)]
        if problems:
            raise ConfigError(problems)
        return tuple(specs)

    def _specs(self, config: EvalConfig, run: RunSpec) -> list[EvalSpec]:
        match config:
            case NllConfig():
                names = config.sets or {}
                own = NllEvalSpec(max_examples=config.max_examples)
                return [
                    own,
                    *(
                        NllEvalSpec(max_examples=config.max_examples, name=name, data=self.sets[name])
                        for name in sorted(names)
                    ),
                ]
            case PositionConfig():
                return [_position(config, run.seq_len, self._digests(config.texts or ()))]
            case NeedleConfig():
                return [_needle(config, run.seq_len, self._digests(() if config.text is None else (config.text,)))]
            case RecallConfig():
                return [_recall(config, run.seq_len)]
            case FewShotConfig():
                tasks = tuple(self._task(task) for task in config.tasks)
                return [FewShotEvalSpec(tasks=tasks, limit=config.limit, seed=config.seed)]
            case ModuleWeightsConfig():
                # Of a sweep's rows, those that have gates are meant.
                return [ModuleWeightsEvalSpec(max_examples=config.max_examples)] if is_gated(run) else []
            case ThroughputConfig():
                return [_throughput(config, run.seq_len, self.device)]
            case _ as never:
                assert_never(never)

    def _task(self, config: TaskConfig) -> TaskEvalSpec:
        local = self.tasks.get(config.task)
        name = config.task if local is None else local.name
        return TaskEvalSpec(
            task=name,
            shots=config.shots,
            metric=config.metric,
            benchmark=name if config.benchmark is None else config.benchmark,
            files=() if local is None else self._digests(local.files),
        )

    def _digests(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.texts[path] for path in paths)


def _position(config: PositionConfig, seq_len: int, texts: tuple[str, ...]) -> PositionEvalSpec:
    """Raises ConfigError where bins do not fill the length."""
    width = max(1, seq_len // _BINS) if config.bin is None else config.bin
    length = _LENGTHS_BEYOND * seq_len // width * width if config.length is None else config.length
    if length % width:
        raise ConfigError(
            f"eval.position.length = {length}: expected a multiple of eval.position.bin = {width} "
            f"(nearest: {max(round(length / width), 1) * width})"
        )
    return PositionEvalSpec(length=length, bin=width, documents=config.documents, texts=texts)


def _needle(config: NeedleConfig, seq_len: int, texts: tuple[str, ...]) -> NeedleEvalSpec:
    if config.lengths is None:
        steps = (i * seq_len // _BINS - _NEEDLE_ROOM for i in range(1, 2 * _BINS + 1))
        lengths = tuple(length for length in steps if length >= SHORTEST_PROMPT)
        if not lengths:
            raise ConfigError(
                f"eval.needle.lengths = null: of seq_len = {seq_len}, twice of it less {_NEEDLE_ROOM} is below the "
                f"{SHORTEST_PROMPT} tokens that a needle takes; give lengths"
            )
    else:
        lengths = tuple(sorted(config.lengths))
    return NeedleEvalSpec(
        lengths=lengths,
        depths_percent=tuple(sorted(config.depths)),
        trials=config.trials,
        new_tokens=config.new_tokens,
        seed=config.seed,
        text=texts[0] if texts else None,
    )


def _recall(config: RecallConfig, seq_len: int) -> RecallEvalSpec:
    lengths = [times * seq_len for times in _LENGTHS_OF_RECALL] if config.lengths is None else config.lengths
    return RecallEvalSpec(
        examples=config.examples, lengths=tuple(sorted(lengths)), items=tuple(sorted(config.items or ()))
    )


def _throughput(config: ThroughputConfig, seq_len: int, device: str) -> ThroughputEvalSpec:
    """Raises ConfigError where the prompt is not shorter than the lengths."""
    lengths = config.lengths or tuple(max(2, quarters * seq_len // 4) for quarters in _TOTAL_LENGTHS)
    prompt = max(1, seq_len // _PROMPT) if config.prompt is None else config.prompt
    if prompt >= min(lengths):
        raise ConfigError(
            f"eval.throughput.prompt = {prompt}: expected fewer tokens than the least total length, {min(lengths)}"
        )
    return ThroughputEvalSpec(
        device=config.device or device.partition(":")[0],
        lengths=tuple(sorted(set(lengths))),
        batch=config.batch,
        prompt=prompt,
        max_batch=config.max_batch,
        warmup=config.warmup,
        repeats=config.repeats,
    )


# --- reading ------------------------------------------------------------------------------------


def read_evals(
    evals: object, sections: object, *, stdlib_fingerprint: Fingerprints, device: str = "cpu"
) -> EvalSettings:
    """Read the `evals` and `eval` settings, asked with an execution on `device`.

    Raises ConfigError with every problem, each with its path.
    """
    problems: list[str] = []
    if not isinstance(sections, Mapping) or set(sections) != set(KINDS):
        raise ConfigError(f"eval = {sections!r}: expected settings: {', '.join(KINDS)}")

    def keep(step: Callable[[], C]) -> C | None:
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    given = evals if isinstance(evals, list | tuple) else () if evals is None else (evals,)
    if evals is not None and not given:
        problems.append(f"evals = []: expected kinds of evaluation, or null for the usual ones ({', '.join(KINDS)})")
    configs = [keep(lambda entry=entry: _config(entry, sections)) for entry in given]  # type: ignore[misc]
    asked = tuple(config for config in configs if config is not None)
    sets: dict[str, DataSpec] = {}
    texts: dict[str, str] = {}
    tasks: dict[str, LocalTask] = {}
    for config in asked:
        keep(lambda config=config: _check(config))  # type: ignore[misc]
        for name, value in (config.sets or {}).items() if isinstance(config, NllConfig) else ():
            data = keep(lambda n=name, v=value: _read_set(n, v, stdlib_fingerprint))  # type: ignore[misc]
            if data is not None and sets.setdefault(name, data) != data:
                problems.append(f"eval.nll.sets.{name}: two corpora of this name: expected a name for each")
        for i, task in enumerate(config.tasks if isinstance(config, FewShotConfig) else ()):
            local = keep(lambda i=i, t=task: _find_task(t.task, f"eval.fewshot.tasks[{i}].task"))  # type: ignore[misc]
            if local is not None:
                tasks[task.task] = local
        problems += _local_problems(config, tasks) if isinstance(config, FewShotConfig) else []
        for where, path in _files(config, tasks):
            digest = keep(lambda w=where, p=path: text_digest(Path(p), w))  # type: ignore[misc]
            if digest is not None:
                texts[path] = digest
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return EvalSettings(asked=None if evals is None else asked, sets=sets, texts=texts, tasks=tasks, device=device)


def _config(entry: object, sections: Mapping[Any, Any]) -> EvalConfig:
    """One entry of `evals`: a kind's name, or settings that differ from its section's, with the kind."""
    own: Mapping[Any, Any] = entry if isinstance(entry, Mapping) else {"kind": entry}
    kind = own.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"evals = {kind!r}: unknown kind of evaluation{did_you_mean(kind, KINDS)}")
    section = sections[kind]
    if not isinstance(section, Mapping):
        raise ConfigError(f"eval.{kind} = {section!r}: expected settings")
    differing = {key: value for key, value in own.items() if key != "kind"}
    return decode(KINDS[str(kind)], {**section, **differing}, f"eval.{kind}")


def _check(config: EvalConfig) -> None:
    """Raises ConfigError for values that mean nothing, all of them at once."""
    match config:
        case NllConfig():
            problems = _least({"eval.nll.max_examples": (config.max_examples, 1)})
            if config.sets is not None and not isinstance(config.sets, Mapping):
                problems.append(f"eval.nll.sets = {config.sets!r}: expected names, each with what conf/data/ has")
        case PositionConfig():
            problems = _least(
                {
                    "eval.position.length": (config.length, 2),
                    "eval.position.bin": (config.bin, 1),
                    "eval.position.documents": (config.documents, 1),
                }
            )
            if config.texts == ():
                problems.append("eval.position.texts = []: expected files, or null for the run's own documents")
        case NeedleConfig():
            problems = _least(
                {
                    **{f"eval.needle.lengths[{i}]": (n, 2) for i, n in enumerate(config.lengths or ())},
                    "eval.needle.trials": (config.trials, 1),
                    "eval.needle.new_tokens": (config.new_tokens, 1),
                    "eval.needle.seed": (config.seed, 0),
                }
            )
            for name, values in (("lengths", config.lengths), ("depths", config.depths)):
                if values is not None and (not values or len(set(values)) < len(values)):
                    problems.append(f"eval.needle.{name} = {list(values)}: expected different numbers, at least one")
            if any(not 0 <= depth <= 100 for depth in config.depths):
                problems.append(f"eval.needle.depths = {list(config.depths)}: expected percent, from 0 to 100")
        case RecallConfig():
            listed = {"lengths": config.lengths, "items": config.items}
            problems = _least(
                {
                    "eval.recall.examples": (config.examples, 1),
                    **{
                        f"eval.recall.{name}[{i}]": (n, 2 if name == "lengths" else 1)
                        for name, values in listed.items()
                        for i, n in enumerate(values or ())
                    },
                }
            )
            for name, values in listed.items():
                if values is not None and (not values or len(set(values)) < len(values)):
                    problems.append(f"eval.recall.{name} = {list(values)}: expected different numbers, at least one")
        case FewShotConfig():
            problems = _least(
                {
                    "eval.fewshot.limit": (config.limit, 1),
                    "eval.fewshot.seed": (config.seed, 0),
                    **{f"eval.fewshot.tasks[{i}].shots": (task.shots, 0) for i, task in enumerate(config.tasks)},
                }
            )
            if not config.tasks:
                problems.append("eval.fewshot.tasks = []: expected tasks, at least one")
            problems += [
                f"eval.fewshot.tasks[{i}].benchmark = {task.benchmark!r}: expected a name: letters, digits, _ - ."
                for i, task in enumerate(config.tasks)
                if task.benchmark is not None and not NAME.fullmatch(task.benchmark)
            ]
        case ModuleWeightsConfig():
            problems = _least({"eval.module_weights.max_examples": (config.max_examples, 1)})
        case ThroughputConfig():
            problems = _least(
                {
                    **{f"eval.throughput.lengths[{i}]": (n, 2) for i, n in enumerate(config.lengths or ())},
                    "eval.throughput.batch": (config.batch, 1),
                    "eval.throughput.prompt": (config.prompt, 1),
                    "eval.throughput.max_batch": (config.max_batch, 1),
                    "eval.throughput.warmup": (config.warmup, 1),
                    "eval.throughput.repeats": (config.repeats, 1),
                }
            )
            if config.lengths is not None and (not config.lengths or len(set(config.lengths)) < len(config.lengths)):
                problems.append(
                    f"eval.throughput.lengths = {list(config.lengths)}: expected different numbers, at least one"
                )
            if config.device is not None and not re.fullmatch(r"[a-z][a-z0-9_.-]*", config.device):
                problems.append(
                    f"eval.throughput.device = {config.device!r}: expected cpu, cuda, a100, h100, h200, or a word of "
                    "small letters and digits for a machine"
                )
        case _ as never:
            assert_never(never)
    if problems:
        raise ConfigError(problems)


def _least(values: Mapping[str, tuple[int | None, int]]) -> list[str]:
    return [
        f"{where} = {value}: expected at least {least}"
        for where, (value, least) in values.items()
        if value is not None and value < least
    ]


def _read_set(name: object, value: object, stdlib_fingerprint: Fingerprints) -> DataSpec:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"eval.nll.sets.{name}: expected a name of small letters, digits and _, such as pg19")
    return read_data(value, stdlib_fingerprint, f"eval.nll.sets.{name}")


def _find_task(task: str, where: str) -> LocalTask | None:
    """The local task, if it is one; of the harness's own it is only asked whether it has them, where it can be."""
    if is_local(task):
        return read_local_task(task, where)
    if harness_tasks_dir() is not None:
        harness_task_file(task, where)
    return None


def _local_problems(config: FewShotConfig, tasks: Mapping[str, LocalTask]) -> list[str]:
    """What is asked of local tasks, and they do not have."""
    names = [tasks[task.task].name if task.task in tasks else task.task for task in config.tasks]
    problems = [
        f"eval.fewshot.tasks = {name}: twice; expected each once"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    for i, task in enumerate(config.tasks):
        local, where = tasks.get(task.task), f"eval.fewshot.tasks[{i}]"
        if local is None:
            continue
        if task.metric not in METRICS[local.output_type]:
            problems.append(
                f"{where}.metric = {task.metric}: {local.name} is answered by {local.output_type}: expected "
                f"{' or '.join(METRICS[local.output_type])}"
            )
        if task.shots > 0 and not local.has_shots:
            problems.append(
                f"{where}.shots = {task.shots}: {local.name} has no examples but its questions: expected a "
                "training_split or a fewshot_split in its file, or 0"
            )
    return problems


def _files(config: EvalConfig, tasks: Mapping[str, LocalTask]) -> list[tuple[str, str]]:
    match config:
        case PositionConfig():
            return [(f"eval.position.texts[{i}]", path) for i, path in enumerate(config.texts or ())]
        case NeedleConfig():
            return [] if config.text is None else [("eval.needle.text", config.text)]
        case FewShotConfig():
            local = (tasks[task.task] for task in config.tasks if task.task in tasks)
            return [("eval.fewshot.tasks", path) for task in local for path in task.files]
        case NllConfig() | RecallConfig() | ModuleWeightsConfig() | ThroughputConfig():
            return []
        case _ as never:
            assert_never(never)


def text_digest(path: Path, where: str) -> str:
    """The first 16 hex digits of the SHA-256 of a text's bytes. Raises ConfigError where there are none to read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where} = {path}: {error.strerror}: expected a file of text") from error
    if not content:
        raise ConfigError(f"{where} = {path}: is empty: expected a file of text")
    return hashlib.sha256(content).hexdigest()[:16]
