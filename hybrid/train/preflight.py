"""Three steps of a run on random tokens, timed; and the memory that training takes.

No corpus is needed, and no checkpoint is made. A step is the training loop's own: from the same batches it leaves the
same weights to the bit (tests/sweeps/test_preflight.py), but of a batch of many microbatches only the first few are
gone through.

Shapes: B sequences, L positions.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
import torch

# The first model and the first optimiser would load these, and their memory would be taken for the training's.
import torch._dynamo
import torch._meta_registrations
from torch import Tensor

from hybrid.data import NOT_SCORED, Batch, DataSource, make_probe
from hybrid.evals.nll import autocast, batch_loss, evaluate_nll, evaluation_batch_size
from hybrid.model import LanguageModel
from hybrid.spec import ExecSpec, ProbeSpec, RunSpec
from hybrid.train.loop import VALIDATION_TOKENS, build_model, numerics
from hybrid.train.optim import build_optimizer, clip_gradients, global_norm, gradients
from hybrid.train.schedule import learning_rate

STEPS: Final = 3
"""The first of them warms up, and does not count: kernels are chosen and compiled, memory is had for the first time."""

MAX_MICROBATCHES: Final = 4
"""Of a batch, so many microbatches are gone through; two are enough for gradients to be added up as in training."""

_KIB: Final = 1024


@final
@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step that went through `sequences` of a batch: forward and backward, and then the update."""

    sequences: int
    forward_backward_s: float
    update_s: float

    def whole_s(self, batch_size: int) -> float:
        """Seconds of a step of `batch_size` sequences: forward and backward in proportion, and one update.

        The update, with the norm and the clipping of gradients, takes as long whatever the batch.
        """
        return self.forward_backward_s * batch_size / self.sequences + self.update_s


@final
@dataclass(frozen=True, kw_only=True)
class Timed:
    """The steps' times, the seconds that a validation at the end of the run would take, and the model after it all."""

    steps: Sequence[StepTime]
    validation_s: float
    model: LanguageModel


def tokens_per_s(run: RunSpec, steps: Sequence[StepTime]) -> float:
    """Of whole steps: the median of those after the first."""
    return run.batch_tokens / statistics.median(step.whole_s(run.batch_size) for step in steps[1:])


def measured_sequences(run: RunSpec, execution: ExecSpec) -> int:
    """Sequences that a step goes through here: the batch, or as many whole microbatches as are allowed."""
    return min(run.batch_size, MAX_MICROBATCHES * (execution.microbatch or run.batch_size))


def timed_steps(
    run: RunSpec,
    execution: ExecSpec,
    *,
    data: DataSource | None = None,
    n_steps: int = STEPS,
    done: Callable[[int, StepTime], None] = lambda _step, _time: None,
) -> Timed:
    """The times of `n_steps` steps, of which `done` is told, and of a validation.

    Of that, two batches are gone through, of which the second counts; where the data have fewer sequences than the
    training loop would read, it takes less. `data`: None is random tokens, whose drawing is not in the times, or for
    associative recall its own examples, of which few positions are scored. Raises
    ConfigError where there is no such device, or not the kernels that were asked for.
    """
    data = data or _data(run)
    with numerics(execution, run.init_seed):
        model = build_model(run, execution)
        model.train()
        optimizer = build_optimizer(run.optim, model)
        steps = []
        for step in range(n_steps):
            steps.append(_step(run, execution, model, optimizer, data, step))
            done(step, steps[-1])
        n_examples = max(1, VALIDATION_TOKENS // run.seq_len)
        batch_size = min(n_examples, evaluation_batch_size(execution, run.seq_len))
        batch_s = 0.0
        for _ in range(2):
            _wait_for(model.embedding.device)
            began_s = time.perf_counter()
            evaluate_nll(model, data, max_examples=batch_size, batch_size=batch_size, dtype=run.dtype)
            batch_s = time.perf_counter() - began_s
        return Timed(steps=steps, validation_s=batch_s * n_examples / batch_size, model=model)


def _step(
    run: RunSpec,
    execution: ExecSpec,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    data: DataSource,
    step: int,
) -> StepTime:
    """As in `hybrid.train.loop`, with the device waited for twice."""
    device, parameters = model.embedding.device, list(model.parameters())
    sequences = measured_sequences(run, execution)
    began_s = time.perf_counter()
    batch = data.train_batch(step, sequences, run.data_seed)
    if isinstance(data, RandomTokens):
        began_s = time.perf_counter()  # to draw them takes longer than to read a corpus
    n_scored = int((batch.targets_BL != NOT_SCORED).sum())
    optimizer.zero_grad(set_to_none=True)
    for part in _parts(batch, execution.microbatch or sequences):
        with autocast(run.dtype, device):
            sum_nats, _, _ = batch_loss(model, part, device)
        part_loss: Tensor = sum_nats / n_scored
        part_loss.backward()
    _wait_for(device)
    middle_s = time.perf_counter()
    norm = float(global_norm(gradients(parameters)))
    clip_gradients(gradients(parameters), norm, run.optim.grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(
            step,
            peak=run.optim.lr,
            schedule=run.schedule,
            train_tokens=run.train_tokens,
            batch_tokens=run.batch_tokens,
        )
    optimizer.step()
    model.balance_experts()
    _wait_for(device)
    return StepTime(sequences=sequences, forward_backward_s=middle_s - began_s, update_s=time.perf_counter() - middle_s)


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    for first in range(0, len(batch.inputs_BL), size):
        rows = slice(first, first + size)
        yield Batch(inputs_BL=batch.inputs_BL[rows], targets_BL=batch.targets_BL[rows])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _data(run: RunSpec) -> DataSource:
    if isinstance(run.data, ProbeSpec):
        return make_probe(run.data, run.seq_len)
    return RandomTokens(vocab_size=run.data.vocab_size, seq_len=run.seq_len)


@final
class RandomTokens(DataSource):
    """Tokens drawn evenly from a vocabulary, each to be predicted from those before it."""

    def __init__(self, *, vocab_size: int, seq_len: int) -> None:
        self._vocab_size, self._seq_len = vocab_size, seq_len

    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        return self._batch((data_seed, 1 + step), batch_size)

    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        for first in range(0, max_examples, batch_size):
            yield self._batch((0, 0, first), min(batch_size, max_examples - first))

    def _batch(self, seed: tuple[int, ...], batch_size: int) -> Batch:
        random = np.random.default_rng(seed)
        tokens_BL = random.integers(0, self._vocab_size, (batch_size, self._seq_len + 1), dtype=np.int64)
        # Copies, as PyTorch wants rows that lie side by side.
        return Batch(inputs_BL=tokens_BL[:, :-1].copy(), targets_BL=tokens_BL[:, 1:].copy())


# --- memory -------------------------------------------------------------------------------------


@final
class PeakMemory:
    """The most that a model's training holds, counted from here: make it before the model is built.

    On a GPU: what PyTorch's allocator gave out at most. On the CPU: by how much the process grew, pages of files left
    out (its libraries' code, which is read when first used, and shards of data). That is more than what training holds
    at one moment: the C library keeps some of what was given back to it, at toy scale a third to a half on top. What
    else the process does meanwhile counts too, and memory that it had to spare before does not, so that it should be a
    process of the run's own.
    """

    def __init__(self, execution: ExecSpec) -> None:
        self._cuda = execution.device if _is_cuda(execution.device) else None
        if self._cuda is not None:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(self._cuda)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten, where that is allowed
        self._before = _resident()

    def peak_bytes(self) -> int | None:
        """The peak since then; None where the system does not tell."""
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda)
        before, now = self._before, _resident()
        if before is None or now is None or now.peak <= before.peak:
            return None
        grown = now.peak - before.now - max(0, now.of_files - before.of_files)
        return grown if grown > 0 else None


def _is_cuda(device: str) -> bool:
    """Whether that is a GPU of this machine; one that there is not is for `build_model` to complain of."""
    kind, _, index = device.partition(":")
    return kind == "cuda" and torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()


@final
@dataclass(frozen=True, kw_only=True)
class _Resident:
    """Bytes of this process in memory: now, at most so far, and now of files."""

    now: int
    peak: int
    of_files: int


def _resident() -> _Resident | None:
    """None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        now, peak, of_files = (int(found[name][0]) * _KIB for name in ("VmRSS", "VmHWM", "RssFile"))
    except (OSError, LookupError, ValueError):
        return None
    return _Resident(now=now, peak=peak, of_files=of_files)
