"""How fast a model trains, reads and decodes on this machine, beside the rooflines of its device.

Decoding is measured as in arXiv 2510.04800 (Table 13): a batch of prompts goes on to a total length. Not every token of
it is generated: the time of a step grows with the position in a straight line at most, so its mean over the generation
is that of the step in the middle, and steps there are timed. Reading (prefill) is of as many tokens as the total
length, in the pieces in which `hybrid.generate` reads a prompt. Tokens are random: they change no time but for experts.

Every time is the median of repeats, after some that warm up and do not count, with quartiles; on a GPU the device is
waited for at both ends. It is wall time, so that what else the machine does is in it: the quartiles tell.

Peak rates are those of the datasheet where the device is a GPU that `hybrid.decode_cost` knows and the dtype its own;
else they are measured in the same process: a square matrix product, and a copy of an array too large for any cache.
Measured peaks are what these programs reach, so that a share a little above one is possible.

Shapes: B sequences, L positions.
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

import torch
from torch import Tensor

from hybrid.cost import block_params, distinct_blocks, model_state_bytes
from hybrid.decode_cost import A100_80GB_SXM, H100_SXM, H200_SXM, Roofline
from hybrid.evals.progress import progress
from hybrid.generate import pieces
from hybrid.memory import train_memory
from hybrid.model import LanguageModel, ModelState
from hybrid.roofline import Peaks, decode_work, prefill_work, train_work
from hybrid.spec import ConfigError, ExecSpec, ModelSpec, RunSpec
from hybrid.train.preflight import PeakMemory, timed_steps

Dtype = Literal["float32", "bfloat16"]

KNOWN_DEVICES: Final = (A100_80GB_SXM, H100_SXM, H200_SXM)
MEMORY_SHARE: Final = 0.8
"""Of the memory that is there, so much may be filled with weights and states; activations need the rest."""

_PEAK_REPEATS: Final = 15
_CPU_MATRIX, _GPU_MATRIX = 1536, 8192
_CPU_COPY_BYTES, _GPU_COPY_BYTES = 1 << 28, 1 << 31


@final
@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a repeat: the median and the quartiles of `n`."""

    median_s: float
    low_s: float
    high_s: float
    n: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        """Of one repeat all three are the same."""
        low, middle, high = (
            statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * list(seconds)
        )
        return cls(median_s=middle, low_s=low, high_s=high, n=len(seconds))


@final
@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often something is done: `warmup` times that do not count, then `counted`. `clock` gives seconds."""

    warmup: int
    counted: int
    clock: Callable[[], float] = time.perf_counter

    def times(self, task: Callable[[], object], wait: Callable[[], object] = lambda: None) -> Times:
        """The times of `task`; `wait` returns once the device has done all that it was given."""
        seconds = []
        for _ in range(self.warmup + self.counted):
            wait()
            began_s = self.clock()
            task()
            wait()
            seconds.append(self.clock() - began_s)
        return Times.of(seconds[self.warmup :])


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """Something that was timed, how many tokens it made or read, and the roofline of its work."""

    tokens: int
    times: Times
    roofline: Roofline

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.times.median_s

    @property
    def roofline_fraction(self) -> float:
        """The roofline's time over the measured one."""
        return self.roofline.time_s / self.times.median_s

    def metrics(self) -> dict[str, float]:
        """As a record has it."""
        return {
            "tokens_per_s": self.tokens_per_s,
            "s": self.times.median_s,
            "s_low": self.times.low_s,
            "s_high": self.times.high_s,
            "roofline_s": self.roofline.time_s,
            "roofline_fraction": self.roofline_fraction,
        }


# --- the device ---------------------------------------------------------------------------------


def waiter(device: torch.device) -> Callable[[], object]:
    """What waits for the device; nothing has to, on the CPU."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def peaks_of(device: torch.device, dtype: Dtype, clock: Callable[[], float] = time.perf_counter) -> Peaks:
    """The datasheet's peaks where it has them, else measured ones, by `clock`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known in KNOWN_DEVICES:
            if name in known.reported_names and dtype == known.dtype:
                return Peaks.published(known)
    return measured_peaks(device, dtype, clock)


def measured_peaks(device: torch.device, dtype: Dtype, clock: Callable[[], float] = time.perf_counter) -> Peaks:
    """The best of some matrix products in the dtype, and of some copies: bytes read and bytes written."""
    cpu, element = device.type == "cpu", getattr(torch, dtype)
    size = _CPU_MATRIX if cpu else _GPU_MATRIX
    a, b = (torch.randn(size, size, device=device, dtype=element) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(_CPU_COPY_BYTES if cpu else _GPU_COPY_BYTES, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    once, wait = Repeats(warmup=0, counted=1, clock=clock), waiter(device)

    def best_s(task: Callable[[], object]) -> float:
        # The best and not the median: what else the machine does is no property of the device.
        return min(once.times(task, wait).median_s for _ in range(_PEAK_REPEATS))

    with torch.no_grad():
        return Peaks(
            flops_per_s=2 * size**3 / best_s(lambda: torch.mm(a, b, out=product)),
            bytes_per_s=2 * source.numel() / best_s(lambda: target.copy_(source)),
            source=f"measured here: a {dtype} product of matrices of {size}, a copy of {source.numel() >> 20} MiB",
        )


def free_memory_bytes(device: torch.device) -> int | None:
    """What a GPU has free; None of others, which PyTorch does not tell."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


# --- what fits ----------------------------------------------------------------------------------


def inference_bytes(model: ModelSpec, *, batch: int, length: int, element_bytes: int) -> int:
    """Weights, states for `length` tokens and the logits of a step: what decoding holds for sure."""
    distinct = sum(block_params(block, model.d_model) for block in distinct_blocks(model.blocks))
    of_tokens = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    vectors = model.d_model * (1 + model.meta_tokens)  # the last norm, and what stands before every sequence
    states = model_state_bytes(model, length, element_bytes)
    return element_bytes * (distinct + of_tokens + vectors) + batch * (states + element_bytes * model.vocab_size)


def largest_batch(model: ModelSpec, *, length: int, element_bytes: int, memory_bytes: int, at_most: int) -> int:
    """The largest power of two, up to `at_most`, that fits; 0 where one sequence does not."""
    room = MEMORY_SHARE * memory_bytes
    batch = 0
    while (larger := max(1, 2 * batch)) <= at_most and room >= inference_bytes(
        model, batch=larger, length=length, element_bytes=element_bytes
    ):
        batch = larger
    return batch


# --- reading and decoding -----------------------------------------------------------------------


def prefill(model: LanguageModel, tokens_BL: Tensor, state: ModelState) -> ModelState:
    """The state after the tokens; the last logits are made too, as generation needs them."""
    for piece_BL in pieces(tokens_BL):
        _, state = model.step(piece_BL, state, last_only=True)
    return state


def random_tokens(model: LanguageModel, batch: int, length: int) -> Tensor:
    """(B, L), the same ones every time, on the model's device."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.spec.vocab_size, (batch, length), generator=generator).to(model.embedding.device)


def measure_prefill(model: LanguageModel, *, batch: int, length: int, repeats: Repeats, peaks: Peaks) -> Measured:
    """Reading prompts of `length` tokens with a model in the dtype of its parameters."""
    tokens_BL, wait = random_tokens(model, batch, length), waiter(model.embedding.device)
    with torch.no_grad():
        times = repeats.times(lambda: prefill(model, tokens_BL, model.init_state(batch, length)), wait)
    work = prefill_work(model.spec, batch=batch, length=length, element_bytes=model.embedding.element_size())
    return Measured(tokens=batch * length, times=times, roofline=work.roofline(peaks))


def measure_decoding(
    model: LanguageModel, *, batch: int, prompt: int, length: int, repeats: Repeats, peaks: Peaks
) -> Measured:
    """Steps in the middle of a generation from `prompt` tokens to `length`. Raises ConfigError where there are none."""
    if not 0 < prompt < length:
        raise ConfigError(f"prompt = {prompt}: expected fewer than the total length, {length}, and at least 1")
    n_steps = repeats.warmup + repeats.counted
    middle = (prompt + length) // 2
    begin = max(1, middle - n_steps // 2)
    tokens_BL, wait = random_tokens(model, batch, begin + n_steps), waiter(model.embedding.device)
    position = begin
    with torch.no_grad():
        state = prefill(model, tokens_BL[:, :begin], model.init_state(batch, max(length, begin + n_steps)))

        def step() -> None:
            nonlocal state, position
            logits_B1V, state = model.step(tokens_BL[:, position : position + 1], state)
            logits_B1V[:, 0].argmax(-1)  # a part of greedy generation
            position += 1

        times = repeats.times(step, wait)
    work = decode_work(model.spec, batch=batch, length=middle, element_bytes=model.embedding.element_size())
    return Measured(tokens=batch, times=times, roofline=work.roofline(peaks))


@final
@dataclass(frozen=True, kw_only=True)
class AtLength:
    """What was measured at a total length: `largest` is decoding at the largest batch, None where none was asked for
    or it is not larger."""

    batch: int
    prefill: Measured
    decode: Measured
    largest: Measured | None


def measure_inference(
    model: LanguageModel,
    *,
    lengths: Sequence[int],
    batch: int,
    prompt: int,
    repeats: Repeats,
    peaks: Peaks,
    max_batch: int | None,
    memory_bytes: int | None,
) -> dict[int, AtLength]:
    """Reading and decoding by total length. Of a larger batch than fits, ConfigError says how many sequences do.

    `memory_bytes` is what weights and states may have, None where nobody knows; with `max_batch`, decoding is measured
    at the largest batch up to that, too. The model's mode is afterwards as it was.
    """
    element_bytes, spec = model.embedding.element_size(), model.spec

    def fits(length: int, at_most: int) -> int:
        if memory_bytes is None:
            return at_most
        return largest_batch(
            spec, length=length, element_bytes=element_bytes, memory_bytes=memory_bytes, at_most=at_most
        )

    longest = max(lengths)
    needed = inference_bytes(spec, batch=batch, length=longest, element_bytes=element_bytes)
    if memory_bytes is not None and needed > MEMORY_SHARE * memory_bytes:
        raise ConfigError(
            f"eval.throughput.batch = {batch}: expected at most {fits(longest, batch)}, as weights and states of "
            f"{longest} tokens take {needed / 2**30:.3g} GiB, and {MEMORY_SHARE:.0%} of {memory_bytes / 2**30:.3g} GiB "
            "may be taken; or shorter lengths"
        )
    was_training = model.training
    model.eval()
    try:
        found = {}
        with progress("throughput", len(lengths), "lengths") as told:
            for length in lengths:
                decode = measure_decoding(
                    model, batch=batch, prompt=prompt, length=length, repeats=repeats, peaks=peaks
                )
                many = 0 if max_batch is None else fits(length, max_batch)
                largest = None
                if many > batch:
                    largest = measure_decoding(
                        model, batch=many, prompt=prompt, length=length, repeats=repeats, peaks=peaks
                    )
                found[length] = AtLength(
                    batch=batch,
                    prefill=measure_prefill(model, batch=batch, length=length, repeats=repeats, peaks=peaks),
                    decode=decode,
                    largest=largest,
                )
                told(1)
        return found
    finally:
        model.train(was_training)


# --- training -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Training:
    """Steps of training: of each, the tokens of a batch; MFU is of the full convention."""

    steps: Measured
    full_train_flops: int
    peak_memory_bytes: int | None
    predicted_memory_bytes: int
    peaks: Peaks

    @property
    def mfu_percent(self) -> float:
        return 100 * self.full_train_flops / self.steps.times.median_s / self.peaks.flops_per_s

    def metrics(self) -> dict[str, float | int | None]:
        """As a record has it, with `step_` before the seconds."""
        told = self.steps.metrics()
        return {
            "train_tokens_per_s": told.pop("tokens_per_s"),
            "train_mfu_percent": self.mfu_percent,
            "train_roofline_fraction": told.pop("roofline_fraction"),
            **{f"train_step_{name}": value for name, value in told.items()},
            "train_peak_memory_bytes": self.peak_memory_bytes,
            "train_predicted_memory_bytes": self.predicted_memory_bytes,
        }


def measure_training(run: RunSpec, execution: ExecSpec, *, repeats: Repeats, peaks: Peaks) -> Training:
    """Steps of the run on random tokens, with a model of its own (`hybrid.train.preflight`): the clock is that one's.

    Memory is that of a GPU: on the CPU it could be told of a process of its own alone, which the run's training was,
    and its record has it. Raises ConfigError where the memory of a GPU does not hold a step.
    """
    execution = replace(execution, nodes=1, gpus_per_node=1)
    memory = None if execution.device == "cpu" else PeakMemory(execution)
    try:
        timed = timed_steps(run, execution, n_steps=repeats.warmup + repeats.counted)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"exec.microbatch = {execution.microbatch}: expected fewer sequences at once: {error}"
        ) from error
    times = Times.of([step.whole_s(run.batch_size) for step in timed.steps[repeats.warmup :]])
    work = train_work(run, execution.microbatch)
    return Training(
        steps=Measured(tokens=run.batch_tokens, times=times, roofline=work.roofline(peaks)),
        full_train_flops=work.full_flops,
        peak_memory_bytes=None if memory is None else memory.peak_bytes(),
        predicted_memory_bytes=train_memory(run, execution).total_bytes,
        peaks=peaks,
    )


# --- a record -----------------------------------------------------------------------------------


def inference_metrics(found: Mapping[int, AtLength], prompt: int) -> dict[str, Any]:
    """As a record has it: pairs of length and value, means, and of decoding two numbers under `_at_<length>` too."""
    metrics: dict[str, Any] = {
        "lengths": list(found),
        "prompt": prompt,
        "batch": next(iter(found.values())).batch,
        "largest_batches": [None if at.largest is None else at.largest.tokens for at in found.values()],
    }
    measured: dict[str, list[Measured | None]] = {
        "prefill": [at.prefill for at in found.values()],
        "decode": [at.decode for at in found.values()],
        "largest_batch_decode": [at.largest for at in found.values()],
    }
    for what, by_length in measured.items():
        told = [None if one is None else one.metrics() for one in by_length]
        there = [one for one in told if one is not None]
        for name in there[0] if there else ():
            metrics[f"{what}_{name}_by_length"] = [
                [length, one[name]] for length, one in zip(found, told, strict=True) if one is not None
            ]
            if name in ("tokens_per_s", "roofline_fraction"):
                metrics[f"{what}_{name}"] = statistics.fmean(one[name] for one in there)
    for length, at in found.items():
        metrics[f"decode_tokens_per_s_at_{length}"] = at.decode.tokens_per_s
        metrics[f"decode_roofline_fraction_at_{length}"] = at.decode.roofline_fraction
    return metrics


def evaluate_throughput(
    model: LanguageModel,
    run: RunSpec,
    execution: ExecSpec,
    *,
    lengths: Sequence[int],
    batch: int,
    prompt: int,
    repeats: Repeats,
    max_batch: int | None,
    memory_bytes: int | None,
) -> dict[str, Any]:
    """What is measured of a run's model, as a record has it. It decodes with weights and states in the run's dtype.

    `memory_bytes` is what there is on a device of which PyTorch does not tell. Raises ConfigError for a prompt that is
    not shorter than the lengths, for a batch that does not fit.
    """
    device = model.embedding.device
    if not 0 < prompt < min(lengths):
        raise ConfigError(
            f"eval.throughput.prompt = {prompt}: expected fewer tokens than the least total length, {min(lengths)}"
        )
    decoder = model if run.dtype == "float32" else copy.deepcopy(model).to(getattr(torch, run.dtype))
    peaks = peaks_of(device, run.dtype)
    free = free_memory_bytes(device)
    found = measure_inference(
        decoder,
        lengths=lengths,
        batch=batch,
        prompt=prompt,
        repeats=repeats,
        peaks=peaks,
        max_batch=max_batch,
        memory_bytes=memory_bytes if free is None else free,
    )
    del decoder
    training = measure_training(run, execution, repeats=repeats, peaks=peaks)
    return {
        "dtype": run.dtype,
        "threads": torch.get_num_threads(),
        "warmup": repeats.warmup,
        "repeats": repeats.counted,
        "peak_flops_per_s": peaks.flops_per_s,
        "peak_bytes_per_s": peaks.bytes_per_s,
        "peaks_source": peaks.source,
        **training.metrics(),
        **inference_metrics(found, prompt),
    }
