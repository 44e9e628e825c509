"""What conf/ may say, and how that becomes a run: user-facing settings to `RunSpec` and `ExecSpec`.

A configuration speaks in ratios, fractions and "60B"; a run holds whole numbers. This file is the only
place where the first becomes the second.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, TypeVar, assert_never, cast

from hybrid import outside
from hybrid.budget import parse_count, shown_count, tokens_of_flops, whole_batches
from hybrid.cost import full_train_flops_per_sample, paper_train_flops_per_sample
from hybrid.decode import decode
from hybrid.manifest import check_corpus, corpus_settings
from hybrid.model_config import ModelConfig
from hybrid.model_resolve import ResolvedModel, attention_in, resolve_model
from hybrid.probes import check_probe
from hybrid.spec import (
    AdamWSpec,
    ConfigError,
    CorpusSpec,
    DataSpec,
    ExecSpec,
    HubSpec,
    ModelSpec,
    RunSpec,
    StdlibSpec,
    StopSpec,
    TrapezoidSpec,
)

R = TypeVar("R")
Count = Any  # a whole number as users write it: 2048, 6e10, "60B"

# Settings that say where and how, not what: they never reach a RunSpec, and the command line's entry points own them.
SURROUNDINGS = ("mode", "request", "evals", "eval", "generate", "plan", "store", "sweep", "hydra", "notify")
OF_LAUNCHERS = ("wait",)
"""Settings of `exec` that say nothing of how a run is carried out."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The `schedule` settings: lengths in tokens, or as fractions of the training where the tokens are null."""

    kind: Literal["trapezoid"]
    warmup_tokens: Count
    cooldown_tokens: Count
    warmup_fraction: float
    cooldown_fraction: float


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """The `budget` settings: `tokens`, or `flops`, or the FLOPs that the model named by `match` spends on
    `match_tokens` in sequences of `match_seq_len`; `scale_tokens` stand in for tokens that are null."""

    tokens: Count
    scale_tokens: Count
    flops: Count
    match: str | None
    match_tokens: Count
    match_seq_len: int | None
    convention: Literal["paper", "full"]
    max_mismatch: float


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """The `stop` settings; `every_tokens` is rounded to whole batches."""

    metric: Literal["accuracy"]
    threshold: float
    every_tokens: Count
    examples: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run's configuration may say, surroundings apart."""

    scale: str
    model: Any
    data: Any
    optim: AdamWSpec
    schedule: ScheduleConfig
    budget: BudgetConfig
    stop: StopConfig | None
    seq_len: int
    batch_tokens: Count
    dtype: Literal["float32", "bfloat16"]
    init_seed: int
    data_seed: int
    exec: ExecSpec


@dataclass(frozen=True, kw_only=True)
class FlopsBudget:
    """Training FLOPs that were asked for, where they come from, and what whole batches leave of them.

    `target_flops` is rounded to a whole number; `mismatch` is the relative difference of what the run spends.
    """

    target_flops: int
    convention: Literal["paper", "full"]
    source: str
    mismatch: float


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A configuration, read: the run, how to carry it out, and how well its parameters and FLOPs match.

    `param_mismatch` is the relative difference of the blocks' parameters from those of the reference depth of
    attention blocks; None where nothing was matched. `matched_sizes` are widths that were worked out to match, such as
    d_ffn. `budget` is None where tokens were given.
    """

    run: RunSpec
    execution: ExecSpec
    param_mismatch: float | None
    matched_sizes: tuple[tuple[str, int], ...]
    budget: FlopsBudget | None


Fingerprints = Callable[[], str]
References = Callable[[str], Mapping[str, Any]]


def read_config(
    config: Mapping[str, Any], *, stdlib_fingerprint: Fingerprints, reference: References | None = None
) -> Resolved:
    """Decode a composed configuration and resolve it into whole numbers.

    `stdlib_fingerprint` is asked only where the data is the standard library and names no fingerprint, `reference` for
    the configuration of the model that `budget.match` names, all else being equal. Raises ConfigError with every
    problem found, each with its path.
    """
    settings = {key: value for key, value in config.items() if key not in SURROUNDINGS}
    if isinstance(settings.get("exec"), Mapping):
        settings["exec"] = {key: value for key, value in settings["exec"].items() if key not in OF_LAUNCHERS}
    collect = _Collector()
    typed = collect(lambda: decode(Config, settings))
    model_text = json.dumps(settings.get("model"), sort_keys=True, default=repr)
    collect(lambda: _model_config(model_text))
    collect.stop_if_any()
    outside.load(typed.exec.mixers)
    data = collect(lambda: read_data(typed.data, stdlib_fingerprint))
    batch_tokens = collect(lambda: parse_count(typed.batch_tokens, "batch_tokens"))
    collect(lambda: _check_scalars(typed))
    collect(lambda: _check_budget(typed.budget))
    model = collect(lambda: _resolved_model(model_text, 0 if data is None else data.vocab_size))
    collect.stop_if_any()
    collect(lambda: _check_windows(model.spec, typed.seq_len))
    collect(lambda: _check_data(data, typed.seq_len))
    collect(lambda: _check_execution(typed.exec))

    def length() -> tuple[tuple[int, TrapezoidSpec, StopSpec | None], FlopsBudget | None]:
        _check_batch(batch_tokens, typed.seq_len)
        _check_ranks(batch_tokens // typed.seq_len, typed.exec)
        tokens, budget = _tokens(typed, model.spec, data.vocab_size, batch_tokens, reference)
        return _length(typed, tokens, batch_tokens), budget

    found = collect(length)
    collect.stop_if_any()
    (train_tokens, schedule, stop), budget = found
    run = RunSpec(
        model=model.spec,
        data=data,
        optim=typed.optim,
        schedule=schedule,
        stop=stop,
        train_tokens=train_tokens,
        batch_tokens=batch_tokens,
        seq_len=typed.seq_len,
        dtype=typed.dtype,
        init_seed=typed.init_seed,
        data_seed=typed.data_seed,
    )
    return Resolved(
        run=run,
        execution=typed.exec,
        param_mismatch=model.param_mismatch,
        matched_sizes=model.matched_sizes,
        budget=budget,
    )


@lru_cache(maxsize=4096)
def _model_config(text: str) -> ModelConfig:
    """The model settings of a JSON text: the cells of a sweep differ in their seeds more than in their models."""
    return decode(ModelConfig, json.loads(text), "model")


@lru_cache(maxsize=4096)
def _resolved_model(text: str, data_vocab_size: int) -> ResolvedModel:
    return resolve_model(_model_config(text), data_vocab_size)


class _Collector:
    """Runs steps and keeps what each has to complain of, so that all of it is said at once.

    What a failed step returns is not to be used: `stop_if_any` comes before the first use.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, step: Callable[[], R]) -> R:
        try:
            return step()
        except ConfigError as error:
            self.problems.extend(error.problems)
            return cast(R, None)

    def stop_if_any(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)


def _check_scalars(config: Config) -> None:
    optim, schedule, problems = config.optim, config.schedule, []
    if optim.lr <= 0:
        problems.append(f"optim.lr = {optim.lr}: expected a number above 0")
    if optim.grad_clip <= 0:
        problems.append(f"optim.grad_clip = {optim.grad_clip}: expected a number above 0")
    if optim.eps <= 0:
        problems.append(f"optim.eps = {optim.eps}: expected a number above 0")
    if optim.weight_decay < 0:
        problems.append(f"optim.weight_decay = {optim.weight_decay}: expected 0 or more")
    for where, beta in (("optim.beta1", optim.beta1), ("optim.beta2", optim.beta2)):
        if not 0 <= beta < 1:
            problems.append(f"{where} = {beta}: expected a number from 0 to below 1")
    for where, fraction in (("warmup", schedule.warmup_fraction), ("cooldown", schedule.cooldown_fraction)):
        if not 0 <= fraction <= 1:
            problems.append(f"schedule.{where}_fraction = {fraction}: expected a number from 0 to 1")
    if config.seq_len < 2:
        problems.append(f"seq_len = {config.seq_len}: expected at least 2 tokens")
    for where, seed in (("init_seed", config.init_seed), ("data_seed", config.data_seed)):
        if not 0 <= seed < 2**32:
            problems.append(f"{where} = {seed}: expected a whole number from 0 to 2**32 - 1")
    if problems:
        raise ConfigError(problems)


def read_data(value: object, stdlib_fingerprint: Fingerprints, where: str = "data") -> DataSpec:
    """The `data` settings; the standard library without a fingerprint is this Python's own. Raises ConfigError."""
    if isinstance(value, Mapping) and value.get("kind") == StdlibSpec.kind and value.get("fingerprint", "") is None:
        value = {**value, "fingerprint": stdlib_fingerprint()}
    if isinstance(value, Mapping) and value.get("kind") == CorpusSpec.kind:
        value = corpus_settings(value, where)
    return cast(DataSpec, decode(cast(Any, DataSpec), value, where))


def _check_windows(model: ModelSpec, seq_len: int) -> None:
    """Raises ConfigError for a window that never closes in training: at this length nothing would be windowed."""
    for block in model.blocks:
        attention = attention_in(block.mixer)
        window = None if attention is None else attention.window
        room = seq_len + model.meta_tokens
        meta = f" and {model.meta_tokens} meta tokens" if model.meta_tokens else ""
        sink = 0 if window is None else window.sink
        nearest = f"nearest size: {room - sink - 1}" if room - sink > 1 else f"sink at most {max(0, room - 2)}"
        if window is not None and window.size + window.sink >= room:
            raise ConfigError(
                f"model.window.size, sink = {window.size}, {window.sink}: together they hold all of a sequence of "
                f"seq_len = {seq_len}{meta}; expected less ({nearest})"
            )


def _check_data(data: DataSpec, seq_len: int) -> None:
    match data:
        case StdlibSpec():
            if not re.fullmatch(r"[0-9a-f]{16}", data.fingerprint):
                raise ConfigError(
                    f"data.fingerprint = {data.fingerprint!r}: expected 16 hex digits, "
                    "or null for this Python's own library"
                )
            if not 0 < data.val_percent < 100:
                raise ConfigError(f"data.val_percent = {data.val_percent}: expected a number above 0 and below 100")
        case HubSpec() | CorpusSpec():
            check_corpus(data)
        case _:
            check_probe(data, seq_len)


def _check_budget(budget: BudgetConfig) -> None:
    """Raises ConfigError for numbers that cannot be read, and for more than one budget at once."""
    counts = {name: getattr(budget, name) for name in ("tokens", "scale_tokens", "flops", "match_tokens")}
    problems = []
    for name, value in counts.items():
        if value is not None or name == "scale_tokens":
            try:
                parse_count(value, f"budget.{name}")
            except ConfigError as error:
                problems += error.problems
    given = {name: getattr(budget, name) for name in ("tokens", "flops", "match") if getattr(budget, name) is not None}
    if len(given) > 1:
        values = ", ".join(f"{name} = {_shown(value)}" for name, value in given.items())
        problems.append(f"budget: {values}: expected one of them, and null for the others")
    for name in ("match_tokens", "match_seq_len"):
        value = getattr(budget, name)
        if value is not None and budget.match is None:
            problems.append(f"budget.{name} = {value}: expected a budget.match, such as llama, or null")
    if budget.match_seq_len is not None and budget.match_seq_len < 2:
        problems.append(f"budget.match_seq_len = {budget.match_seq_len}: expected at least 2 tokens, or null")
    if budget.match == "":
        problems.append("budget.match = '': expected the name of a model= choice, such as llama")
    if budget.max_mismatch < 0:
        problems.append(f"budget.max_mismatch = {budget.max_mismatch}: expected a fraction of 0 or more")
    if problems:
        raise ConfigError(problems)


def _tokens(
    config: Config, model: ModelSpec, data_vocab_size: int, batch_tokens: int, reference: References | None
) -> tuple[int, FlopsBudget | None]:
    """The tokens that the budget comes to: as given, or in whole batches the nearest to the FLOPs that were given."""
    budget, seq_len = config.budget, config.seq_len
    if budget.flops is None and budget.match is None:
        name = "scale_tokens" if budget.tokens is None else "tokens"
        tokens = parse_count(getattr(budget, name), f"budget.{name}")
        if tokens < batch_tokens:
            raise ConfigError(f"budget.{name} = {tokens}: expected at least one batch of {batch_tokens} tokens")
        return tokens, None
    if budget.match is None:
        target, source = Fraction(parse_count(budget.flops, "budget.flops")), "budget.flops"
        where = f"budget.flops = {_shown(budget.flops)}"
    else:
        given = config.budget.scale_tokens if budget.match_tokens is None else budget.match_tokens
        match_tokens = parse_count(given, "budget.match_tokens")
        other = _reference_model(config, budget.match, data_vocab_size, reference)
        length = budget.match_seq_len or seq_len
        flops = _flops_per_sample(other, length, budget.convention)
        target, source = Fraction(flops * match_tokens, length), f"{budget.match} at {match_tokens:,} tokens"
        where = f"budget.match = {budget.match} at {match_tokens} tokens, {float(target):.4g} FLOPs"
    flops_per_sample = _flops_per_sample(model, seq_len, budget.convention)
    if flops_per_sample == 0:
        raise ConfigError(f"{where}: in the {budget.convention} convention this model costs nothing; expected tokens")
    one_batch = Fraction(flops_per_sample * batch_tokens, seq_len)
    if target < one_batch:
        raise ConfigError(
            f"{where}: expected at least one batch of {batch_tokens} tokens, {float(one_batch):.4g} FLOPs"
        )
    tokens = tokens_of_flops(target, flops_per_sample, seq_len, batch_tokens)
    mismatch = float(one_batch * (tokens // batch_tokens) / target - 1)
    if abs(mismatch) > budget.max_mismatch:
        raise ConfigError(
            f"{where}: the nearest whole batches, {tokens // batch_tokens} of {batch_tokens} tokens, are "
            f"{mismatch:+.1%} off; expected a smaller batch_tokens, or budget.max_mismatch="
            f"{math.ceil(1000 * abs(mismatch)) / 1000:g}"
        )
    return tokens, FlopsBudget(
        target_flops=round(target), convention=budget.convention, source=source, mismatch=mismatch
    )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else shown_count(value)


def _flops_per_sample(model: ModelSpec, seq_len: int, convention: Literal["paper", "full"]) -> int:
    match convention:
        case "paper":
            return paper_train_flops_per_sample(model, seq_len)
        case "full":
            return full_train_flops_per_sample(model, seq_len)
        case _ as never:
            assert_never(never)


def _reference_model(config: Config, name: str, data_vocab_size: int, reference: References | None) -> ModelSpec:
    """The model that `budget.match` names. Raises ConfigError where there is none at this scale."""
    if reference is None:
        raise ConfigError(f"budget.match = {name}: expected null: there are no other models to choose from here")
    try:
        text = json.dumps(reference(name).get("model"), sort_keys=True, default=repr)
        return _resolved_model(text, data_vocab_size).spec
    except ConfigError as error:
        raise ConfigError(
            [f"budget.match = {name}, at scale {config.scale}: {problem}" for problem in error.problems]
        ) from None


def _check_batch(batch_tokens: int, seq_len: int) -> None:
    if batch_tokens % seq_len:
        nearest = max(whole_batches(batch_tokens, seq_len), seq_len)
        raise ConfigError(
            f"batch_tokens = {batch_tokens}: expected a multiple of seq_len = {seq_len} (nearest: {nearest})"
        )


def _check_ranks(batch_size: int, execution: ExecSpec) -> None:
    ranks = execution.nodes * execution.gpus_per_node
    if ranks > batch_size:
        raise ConfigError(
            f"exec.nodes, exec.gpus_per_node = {execution.nodes}, {execution.gpus_per_node}: expected at most one rank "
            f"for each of the {batch_size} sequences of a batch"
        )


def _length(config: Config, tokens: int, batch_tokens: int) -> tuple[int, TrapezoidSpec, StopSpec | None]:
    """Training length, schedule and stop rule in whole batches of tokens."""
    train_tokens = whole_batches(tokens, batch_tokens)
    schedule = config.schedule

    def part(name: str, given: Count, fraction: float) -> int:
        wanted = fraction * train_tokens if given is None else parse_count_or_zero(given, f"schedule.{name}_tokens")
        return whole_batches(round(wanted), batch_tokens)

    warmup = part("warmup", schedule.warmup_tokens, schedule.warmup_fraction)
    cooldown = part("cooldown", schedule.cooldown_tokens, schedule.cooldown_fraction)
    both_fractions = schedule.warmup_tokens is None and schedule.cooldown_tokens is None
    if both_fractions and schedule.warmup_fraction + schedule.cooldown_fraction <= 1:
        cooldown = min(cooldown, train_tokens - warmup)  # both may have been rounded up
    if warmup + cooldown > train_tokens:
        raise ConfigError(
            f"schedule: warmup_tokens of {warmup} and cooldown_tokens of {cooldown}: expected together at most the "
            f"{train_tokens} tokens of the training; give smaller ones, or null for fractions of it"
        )
    return train_tokens, TrapezoidSpec(warmup_tokens=warmup, cooldown_tokens=cooldown), _stop(config.stop, batch_tokens)


def parse_count_or_zero(value: object, where: str) -> int:
    """Like `parse_count`, with 0 allowed."""
    return 0 if value == 0 and not isinstance(value, bool) else parse_count(value, where)


def _stop(stop: StopConfig | None, batch_tokens: int) -> StopSpec | None:
    if stop is None:
        return None
    problems = []
    if not 0 < stop.threshold <= 1:
        problems.append(f"stop.threshold = {stop.threshold}: expected an accuracy above 0 and up to 1")
    if stop.examples < 1:
        problems.append(f"stop.examples = {stop.examples}: expected at least 1")
    if problems:
        raise ConfigError(problems)
    every = whole_batches(parse_count(stop.every_tokens, "stop.every_tokens"), batch_tokens)
    return StopSpec(
        metric=stop.metric, threshold=stop.threshold, every_tokens=max(every, batch_tokens), examples=stop.examples
    )


def _check_execution(execution: ExecSpec) -> None:
    problems = []
    for field in dataclasses.fields(execution):
        value = getattr(execution, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            problems.append(f"exec.{field.name} = {value}: expected a number above 0")
    if execution.kernels == "fused" and execution.device == "cpu":
        problems.append("exec.kernels = fused: expected a CUDA device (exec=gpu, after make install-cuda), or auto")
    if execution.heartbeat_s * 3 > execution.lease_s:
        problems.append(
            f"exec.lease_s = {execution.lease_s}: expected at least three heartbeats of {execution.heartbeat_s} s, "
            "so that a slow disk does not look like a dead run"
        )
    if problems:
        raise ConfigError(problems)
