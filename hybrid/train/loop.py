"""The training loop, one for every model.

At equal `ExecSpec`, on the CPU, a run is a function of its spec to the last bit: interrupted anywhere and resumed, or
logged, validated and saved at another pace, it has the same weights. Another `microbatch` or number of threads changes
the order of sums, hence the last digits; so does another number of ranks, which share each batch by sequences.

Runs that differ only in their length share every update before their cooldowns. `train_trunk` makes those updates once
and saves where each of the runs leaves; `train` goes on from there, to the same bits as from the beginning.

Shapes: B sequences, L positions.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Protocol, assert_never, final

import torch
from torch import Tensor, nn

from hybrid.data import NOT_SCORED, Batch, DataSource
from hybrid.evals.nll import NllResult, autocast, batch_loss, evaluate_nll, evaluation_batch_size
from hybrid.mixers.outside import check_outside, unset_outside_parameters
from hybrid.model import LanguageModel
from hybrid.ops.kernels import select
from hybrid.spec import ConfigError, ExecSpec, MoeSpec, OutsideSpec, RunSpec, StopSpec
from hybrid.train.checkpoint import Checkpoint, CheckpointStore, load_checkpoint
from hybrid.train.optim import build_optimizer, clip_gradients, global_norm, gradients
from hybrid.train.parallel import Ranks
from hybrid.train.schedule import learning_rate

FINAL_LOSS_STEPS: Final = 100
"""The training loss of a finished run is the mean over this many last updates (all, if there were fewer)."""

VALIDATION_TOKENS: Final = 65536
"""How much of the validation split a run's own validations read, the same for every run, so that a record is a function
of its spec; `mode=eval` reads all of it."""

EXPLODED_NATS: Final = 3.0
EXPLODED_STEPS: Final = 100
"""A loss has exploded once it was, for `EXPLODED_STEPS` steps in a row, more than `EXPLODED_NATS` above both that of
uniform guessing, ln(vocab_size), and that of the untrained model on the first batch. A model twenty times worse than
guessing for a hundred steps has lost what it knew; a spike that it recovers from does not count, and neither does a
large initial loss. Part of what a run is: changing either number changes which runs diverge."""


@final
@dataclass(frozen=True, kw_only=True)
class Origin:
    """The checkpoint that training goes on from: of the run or trunk `owner`, made by that one's `attempt`.

    `wall_s` is all the time that training up to it took.
    """

    owner: str
    step: int
    attempt: int
    wall_s: float


class Observer(Protocol):
    """Who is told of a run's progress, and may ask it to stop. Of several ranks each has its own; metrics and syncs are
    the first's alone, and all stop at the same step if one is asked to."""

    def start(self, total_steps: int, origin: Origin | None) -> None:
        """Once, before the first step; `origin` is None at the beginning of a run."""

    def metrics(self, line: dict[str, float | int | str | bool]) -> None:
        """A line of metrics; those after a checkpoint's step come again when the run is resumed from it."""

    def stop_requested(self) -> str | None:
        """Asked after every step; a reason makes the run save a checkpoint and raise `Interrupted`."""

    def tick(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        """After every step; `tokens_per_s` is the mean since the start or the resume."""

    def sync(self) -> None:
        """Before a checkpoint is written: the lines so far must outlive a loss of power as it will."""


class Interrupted(Exception):
    """The run stopped because it was asked to, and is saved at `step`."""

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(f"stopped at step {step}: {reason}")
        self.reason = reason
        self.step = step


StartFrom = Callable[[torch.device], Checkpoint | None]
"""Where a run that has no checkpoint of its own starts: a trunk's, or None, at the beginning."""


@final
@dataclass(frozen=True, kw_only=True)
class TrunkOutcome:
    """How a trunk's training ended, after how many updates; `reason` says why it diverged."""

    status: Literal["done", "diverged"]
    step: int
    reason: str | None


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, with the model as it then was: if diverged, before the update that was not made."""

    status: Literal["done", "diverged"]
    metrics: dict[str, float | int | bool | str | None]
    model: LanguageModel


def build_model(spec: RunSpec, execution: ExecSpec) -> LanguageModel:
    """The run's model with its initial weights, on the run's device.

    Raises ConfigError if there is no such device, or not the kernels that were asked for, and for a mixer from a
    user's file that is not what the file says.
    """
    device = _device(execution)
    kernels = select(execution.kernels, device)
    with torch.device("meta"):
        model = LanguageModel(
            spec.model,
            ssd_chunk=execution.ssd_chunk,
            kernels=kernels,
            activation_checkpointing=execution.activation_checkpointing,
        )
    model.to_empty(device=device)
    unset_outside_parameters(model, spec.model)
    model.init_weights(spec.init_seed)
    for i, block in enumerate(model.applied_blocks()):
        mixer = spec.model.blocks[i].mixer
        if isinstance(mixer, OutsideSpec):
            check_outside(f"blocks.{i}.mixer", block.mixer, mixer, spec.model.d_model)
    return model


def train(
    spec: RunSpec,
    execution: ExecSpec,
    *,
    data: DataSource,
    checkpoints: CheckpointStore,
    observer: Observer,
    start_from: StartFrom | None = None,
    ranks: Ranks | None = None,
) -> Outcome:
    """Train from the latest checkpoint, else from that of `start_from`, else from the beginning, to the end.

    Of several `ranks` all call this, and have the same outcome but for times; the first alone writes checkpoints, and
    says which one all go on from. A checkpoint does not tell how many ranks made it.

    `metrics` of the outcome: `steps` and `tokens` of the updates made; `train_loss_nats`, mean over the last
    `FINAL_LOSS_STEPS` updates (None if none was made); of the validation at the end, which reads at most
    `VALIDATION_TOKENS`: `val_loss_nats`, `val_accuracy`, `val_bits_per_byte` (None where tokens are not bytes) and
    `val_tokens` scored (all None, and 0, if diverged); `expert_load_max`, mean over the same updates as the loss (None
    without experts);
    `solved` (None without a stop rule) and `steps_to_threshold`; `wall_s`, all of it, that of attempts before a resume
    and of the trunk up to its checkpoint included, as if trained alone; `tokens_per_s` of the steps alone; and for a
    diverged run the `reason`.

    Metric lines hold means since the line before (`train_loss_nats`, `tokens_per_s`) and values of the line's step
    (`lr`, `grad_norm`, before clipping). Validation lines come where a validation during training is due; one comes
    at the end too, unless the run has a stop rule, whose examples are not those of the end.

    With experts, lines hold means of `expert_load_max` and `expert_load_min` too: how many tokens of a step's batch
    the most and the least used expert of a block was given, over the mean of the block's experts, averaged over the
    blocks. 1 is even.

    Raises Interrupted if the observer asked for it, after saving; OSError if a checkpoint cannot be written or read;
    RankLostError where another rank failed; ConfigError for more ranks than a batch has sequences.
    """
    with numerics(execution, spec.init_seed):
        return _Training(spec, execution, data, checkpoints, observer, ranks or Ranks.alone()).run(start_from)


def train_trunk(
    spec: RunSpec,
    execution: ExecSpec,
    *,
    data: DataSource,
    checkpoints: CheckpointStore,
    observer: Observer,
    points: Sequence[int],
    saved: Callable[[int, float], None],
    ranks: Ranks | None = None,
) -> TrunkOutcome:
    """Train what branches share, from the latest checkpoint not after the first of `points` to the last of them.

    `spec` is that of a branch whose cooldown begins at the last point or later; `points` are steps, ascending. At each
    a checkpoint is saved that is kept, after what else is due at that step, and `saved` is called (by the first of
    `ranks`) with the step and the wall time up to it. Lines are those of the run; there is no validation but those
    during training.

    A trunk that diverges saves such a checkpoint too, before the update that it does not make: a branch that starts
    there diverges at once, as it would have by itself.

    Raises as `train`.
    """
    if not points or list(points) != sorted(set(points)) or points[0] < 1 or points[-1] >= spec.train_steps:
        raise ValueError(f"points {points}: expected steps in order, from 1 to below {spec.train_steps}")
    if (spec.train_steps - points[-1] + 1) * spec.batch_tokens < spec.schedule.cooldown_tokens:
        raise ValueError(f"points {points}: expected none after the first update of the cooldown")
    if spec.stop is not None:
        raise ValueError("a run with a stop rule ends where its validation says, and shares nothing")
    with numerics(execution, spec.init_seed):
        return _Training(spec, execution, data, checkpoints, observer, ranks or Ranks.alone()).run_trunk(points, saved)


@final
@dataclass(kw_only=True)
class _Progress:
    """All that a checkpoint holds besides weights, optimiser and random state; changes with every step.

    What is counted since the last line of metrics is here too, so that a resumed run's lines are those of one that
    was not interrupted.
    """

    _DEQUES: ClassVar = ("last_losses_nats", "last_expert_loads_max")

    step: int = 0
    wall_s: float = 0.0
    train_s: float = 0.0
    first_loss_nats: float = math.nan
    last_losses_nats: deque[float] = field(default_factory=lambda: deque(maxlen=FINAL_LOSS_STEPS))
    last_expert_loads_max: deque[float] = field(default_factory=lambda: deque(maxlen=FINAL_LOSS_STEPS))
    exploded_steps: int = 0
    lr: float = 0.0
    grad_norm: float = 0.0
    line_steps: int = 0
    line_loss_nats: float = 0.0
    line_expert_load_max: float = 0.0
    line_expert_load_min: float = 0.0
    line_s: float = 0.0
    steps_to_threshold: int | None = None
    final: NllResult | None = None

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        lists = {name: list(getattr(self, name)) for name in self._DEQUES}
        return {**asdict(self), **lists}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "_Progress":
        """Fields younger than the checkpoint have the values of a beginning."""
        deques = {name: deque(state.get(name, ()), maxlen=FINAL_LOSS_STEPS) for name in cls._DEQUES}
        final_result = None if state["final"] is None else NllResult(**state["final"])
        return cls(**{**state, **deques, "final": final_result})


@final
@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is known of a step before its update; the loads are None without experts."""

    loss_nats: float
    grad_norm: float
    expert_load_max: float | None
    expert_load_min: float | None


@final
class _Training:
    """One attempt at a run."""

    def __init__(
        self,
        spec: RunSpec,
        execution: ExecSpec,
        data: DataSource,
        checkpoints: CheckpointStore,
        observer: Observer,
        ranks: Ranks,
    ) -> None:
        if ranks.world_size > spec.batch_size:
            raise ConfigError(
                f"exec.nodes, exec.gpus_per_node = {ranks.world_size} ranks: expected at most one for each of the "
                f"{spec.batch_size} sequences of a batch"
            )
        self.spec = spec
        self.ranks = ranks
        self.execution = execution
        self.data = data
        self.checkpoints = checkpoints
        self.observer = observer
        self.device = _device(execution)
        self.model = build_model(spec, execution)
        self.parameters: Sequence[nn.Parameter] = list(self.model.parameters())
        self.optimizer = build_optimizer(spec.optim, self.model)
        self.has_experts = any(isinstance(block.ffn, MoeSpec) for block in spec.model.blocks)
        self.progress = _Progress()
        self.began_s = time.monotonic()
        self.saved_s = self.began_s
        self.saved_step = 0
        self.start_step, self.before_s, self.before_train_s = 0, 0.0, 0.0

    def run(self, start_from: StartFrom | None) -> Outcome:
        """From the latest checkpoint to the end."""
        self._begin(self.spec.train_steps, at_most=None, start_from=start_from)
        # The end is when the final validation is there: its result is part of the last step's checkpoint.
        while self.progress.final is None:
            reason = self._step()
            if reason is not None:
                return self._diverged(reason)
            self._stop_or_save()
        return Outcome(status="done", metrics=self._metrics(), model=self.model)

    def run_trunk(self, points: Sequence[int], saved: Callable[[int, float], None]) -> TrunkOutcome:
        """From the latest checkpoint not after the first point to the last point."""
        progress = self._begin(points[-1], at_most=points[0], start_from=None)
        for point in points:
            while progress.step < point:
                reason = self._step()
                if reason is not None:
                    if progress.step:
                        self._stop_if_asked()
                        self._save_point(saved)
                    return TrunkOutcome(status="diverged", step=progress.step, reason=reason)
                if progress.step < point:
                    self._stop_or_save()
            # Who asks may be another attempt that has taken the trunk over: points are its to make now.
            self._stop_if_asked()
            self._save_point(saved)
        return TrunkOutcome(status="done", step=progress.step, reason=None)

    def _begin(self, total_steps: int, *, at_most: int | None, start_from: StartFrom | None) -> "_Progress":
        """Restore what there is to go on from, and say so."""
        latest = self._latest(at_most, start_from)
        if latest is not None:
            self._restore(latest)
        progress = self.progress
        self.saved_step = progress.step
        self.start_step, self.before_s, self.before_train_s = progress.step, progress.wall_s, progress.train_s
        origin = None
        if latest is not None:
            origin = Origin(owner=latest.owner, step=latest.step, attempt=latest.attempt, wall_s=progress.wall_s)
        self.observer.start(total_steps, origin)
        self.model.train()
        return progress

    def _latest(self, at_most: int | None, start_from: StartFrom | None) -> Checkpoint | None:
        """The checkpoint to go on from, the same for all ranks: the first one chooses."""
        if not self.ranks.is_first:
            path = self.ranks.told()
            return None if path is None else load_checkpoint(Path(path), self.device)
        latest = self.checkpoints.load_latest(self.device, at_most=at_most)
        if latest is None and start_from is not None:
            latest = start_from(self.device)
        self.ranks.told(None if latest is None else str(latest.path.absolute()))
        return latest

    def _step(self) -> str | None:
        """One update, with the validation and the line that are due after it; or why it is not made: a divergence."""
        progress = self.progress
        step_began_s = time.perf_counter()
        measured = self._forward_backward()
        reason = self._divergence(measured)
        if reason is not None:
            self._clock()
            return reason
        self._update(measured)
        seconds = time.perf_counter() - step_began_s
        progress.train_s += seconds
        progress.line_s += seconds

        self._clock()
        self._validate()
        if progress.step % self.execution.log_every_steps == 0 or progress.final is not None:
            self._line()
        trained = (progress.step - self.start_step) * self.spec.batch_tokens
        self.observer.tick(progress.step, measured.loss_nats, _rate(trained, progress.train_s - self.before_train_s))
        self._clock()
        return None

    def _stop_or_save(self) -> None:
        """Save and raise Interrupted if asked to stop; save if that is due."""
        if self._stop_if_asked() and self.progress.final is None:
            self._save()

    def _stop_if_asked(self) -> bool:
        """Whether a checkpoint is due, unless the run, on whatever rank, was asked to stop."""
        due = time.monotonic() - self.saved_s >= self.execution.checkpoint_every_s
        reason, due = self.ranks.agree(self.observer.stop_requested(), due)
        if reason is not None:
            if self.progress.step != self.saved_step:
                self._save()
            raise Interrupted(reason, self.progress.step)
        return due

    def _clock(self) -> None:
        self.progress.wall_s = self.before_s + time.monotonic() - self.began_s

    # --- a step ---------------------------------------------------------------------------------

    def _forward_backward(self) -> _Measured:
        """Loss in nats, a mean over the scored positions of the whole batch, the norm of its gradient, experts' loads.

        The one time in a step that the host waits for the device, but for routing tokens to experts. All of it is of
        the whole batch, whatever this rank's part of it.
        """
        batch = self.data.train_batch(self.progress.step, self.spec.batch_size, self.spec.data_seed)
        n_scored = int((batch.targets_BL != NOT_SCORED).sum())
        if n_scored == 0:
            raise ValueError(f"training batch {self.progress.step}: no position is scored, there is nothing to learn")
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        rows = self.ranks.part(self.spec.batch_size)
        own = Batch(inputs_BL=batch.inputs_BL[rows], targets_BL=batch.targets_BL[rows])
        for part in _microbatches(own, self.execution.microbatch, keep_unscored=self.has_experts):
            with autocast(self.spec.dtype, self.device):
                sum_nats, _, _ = batch_loss(self.model, part, self.device)
            part_loss: Tensor = sum_nats / n_scored
            part_loss.backward()
            loss += part_loss.detach()
        self.ranks.sum_([*gradients(self.parameters), loss])
        scalars = [loss, global_norm(gradients(self.parameters))]
        if self.has_experts:
            self.ranks.sum_(self.model.counted_loads())
            load_NE = self.model.expert_loads()
            load_NE = load_NE / load_NE.mean(1, keepdim=True)
            scalars += [load_NE.amax(1).mean(), load_NE.amin(1).mean()]
        # All go by the first's numbers: on another processor a norm may have other last digits.
        loss_nats, grad_norm, *loads = self.ranks.of_first(torch.stack(scalars).tolist())
        load_max, load_min = loads or (None, None)
        return _Measured(loss_nats=loss_nats, grad_norm=grad_norm, expert_load_max=load_max, expert_load_min=load_min)

    def _divergence(self, measured: _Measured) -> str | None:
        """Why the run has diverged, if it has, now that the next update's loss and gradient are known."""
        progress, step = self.progress, self.progress.step + 1
        loss_nats, grad_norm = measured.loss_nats, measured.grad_norm
        if not math.isfinite(loss_nats):
            return f"the loss of step {step} is {loss_nats}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm of step {step} is {grad_norm}"
        if progress.step == 0:
            progress.first_loss_nats = loss_nats
        limit_nats = max(math.log(self.spec.model.vocab_size), progress.first_loss_nats) + EXPLODED_NATS
        progress.exploded_steps = progress.exploded_steps + 1 if loss_nats > limit_nats else 0
        if progress.exploded_steps >= EXPLODED_STEPS:
            return (
                f"the loss has been above {limit_nats:.3f} nats for {EXPLODED_STEPS} steps, at step {step} {loss_nats}"
            )
        return None

    def _update(self, measured: _Measured) -> None:
        """Clip, step, balance the experts by the loads of the whole batch, and count what was done."""
        spec, progress = self.spec, self.progress
        clip_gradients(gradients(self.parameters), measured.grad_norm, spec.optim.grad_clip)
        progress.lr = learning_rate(
            progress.step,
            peak=spec.optim.lr,
            schedule=spec.schedule,
            train_tokens=spec.train_tokens,
            batch_tokens=spec.batch_tokens,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = progress.lr
        self.optimizer.step()
        self.model.balance_experts()
        progress.step += 1
        progress.grad_norm = measured.grad_norm
        progress.last_losses_nats.append(measured.loss_nats)
        progress.line_steps += 1
        progress.line_loss_nats += measured.loss_nats
        if measured.expert_load_max is not None and measured.expert_load_min is not None:
            progress.last_expert_loads_max.append(measured.expert_load_max)
            progress.line_expert_load_max += measured.expert_load_max
            progress.line_expert_load_min += measured.expert_load_min

    # --- validation and the stop rule -----------------------------------------------------------

    def _validate(self) -> None:
        """Validate if that is due after this step; at the end of the run, for its record."""
        spec, execution, progress = self.spec, self.execution, self.progress
        if spec.stop is not None and self._due(spec.stop.every_tokens):
            result = self._evaluate(spec.stop.examples)
            self._validation_line(result)
            if _measured(spec.stop, result) >= spec.stop.threshold:
                progress.steps_to_threshold = progress.step
        at_end = progress.step >= spec.train_steps or progress.steps_to_threshold is not None
        if at_end or (spec.stop is None and self._due(execution.eval_every_tokens)):
            result = self._evaluate(max(1, VALIDATION_TOKENS // spec.seq_len))
            if spec.stop is None:
                self._validation_line(result)
            if at_end:
                progress.final = result

    def _due(self, every_tokens: int | None) -> bool:
        """Whether this step's batch completed another `every_tokens`."""
        if every_tokens is None:
            return False
        tokens = self.progress.step * self.spec.batch_tokens
        return tokens // every_tokens > (tokens - self.spec.batch_tokens) // every_tokens

    def _evaluate(self, max_examples: int) -> NllResult:
        return evaluate_nll(
            self.model,
            self.data,
            max_examples=max_examples,
            batch_size=evaluation_batch_size(self.execution, self.spec.seq_len),
            dtype=self.spec.dtype,
            ranks=self.ranks,
        )

    # --- what is told and kept ------------------------------------------------------------------

    def _line(self) -> None:
        """Report the steps since the last line, and begin to count anew."""
        progress, batch_tokens = self.progress, self.spec.batch_tokens
        experts = {
            "expert_load_max": progress.line_expert_load_max / progress.line_steps,
            "expert_load_min": progress.line_expert_load_min / progress.line_steps,
        }
        self._tell(
            {
                "step": progress.step,
                "tokens": progress.step * batch_tokens,
                "train_loss_nats": progress.line_loss_nats / progress.line_steps,
                "lr": progress.lr,
                "grad_norm": progress.grad_norm,
                **(experts if self.has_experts else {}),
                "tokens_per_s": _rate(progress.line_steps * batch_tokens, progress.line_s),
                "wall_s": progress.wall_s,
            }
        )
        progress.line_steps, progress.line_loss_nats, progress.line_s = 0, 0.0, 0.0
        progress.line_expert_load_max, progress.line_expert_load_min = 0.0, 0.0

    def _validation_line(self, result: NllResult) -> None:
        self._tell(
            {
                "step": self.progress.step,
                "tokens": self.progress.step * self.spec.batch_tokens,
                "val_loss_nats": result.loss_nats,
                "val_accuracy": result.accuracy,
            }
        )

    def _tell(self, line: dict[str, float | int | str | bool]) -> None:
        if self.ranks.is_first:
            self.observer.metrics(line)

    def _diverged(self, reason: str) -> Outcome:
        if self.progress.line_steps:
            self._line()
        return Outcome(status="diverged", metrics={**self._metrics(), "reason": reason}, model=self.model)

    def _metrics(self) -> dict[str, float | int | bool | str | None]:
        progress, stop = self.progress, self.spec.stop
        losses, loads, validation = progress.last_losses_nats, progress.last_expert_loads_max, progress.final
        tokens = progress.step * self.spec.batch_tokens
        return {
            "steps": progress.step,
            "tokens": tokens,
            "train_loss_nats": math.fsum(losses) / len(losses) if losses else None,
            "val_loss_nats": None if validation is None else validation.loss_nats,
            "val_accuracy": None if validation is None else validation.accuracy,
            "val_bits_per_byte": None if validation is None else validation.bits_per_byte,
            "val_tokens": 0 if validation is None else validation.n_scored,
            "expert_load_max": math.fsum(loads) / len(loads) if loads else None,
            "solved": None if stop is None else progress.steps_to_threshold is not None,
            "steps_to_threshold": progress.steps_to_threshold,
            "wall_s": progress.wall_s,
            "tokens_per_s": _rate(tokens, progress.train_s),
        }

    def _save(self) -> None:
        if self.ranks.is_first:
            self.observer.sync()
            self.checkpoints.save(self._state(), self.progress.step)
        self.saved_s, self.saved_step = time.monotonic(), self.progress.step

    def _save_point(self, saved: Callable[[int, float], None]) -> None:
        if self.ranks.is_first:
            self.observer.sync()
            self.checkpoints.save_point(self._state(), self.progress.step)
            saved(self.progress.step, self.progress.wall_s)
        self.saved_s, self.saved_step = time.monotonic(), self.progress.step

    def _state(self) -> dict[str, Any]:
        """All that training goes on from."""
        cuda = self.device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            },
            "progress": self.progress.state(),
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["cpu"].cpu())
        if self.device.type == "cuda" and state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu(), self.device)
        self.progress = _Progress.from_state(state["progress"])


def _microbatches(batch: Batch, size: int | None, *, keep_unscored: bool) -> Iterator[Batch]:
    """The batch in parts of `size` sequences, without those that have nothing scored: they teach nothing.

    `keep_unscored`: all the same, for experts, whose loads are of the whole batch. Where nothing is scored at all, as
    can be in one rank's part, the first all the same: gradients of zero can be added up with the other ranks', none
    cannot.
    """
    if size is None or size >= len(batch.inputs_BL):
        yield batch
        return
    nothing = not (batch.targets_BL != NOT_SCORED).any()
    for first in range(0, len(batch.inputs_BL), size):
        targets_BL = batch.targets_BL[first : first + size]
        if keep_unscored or (targets_BL != NOT_SCORED).any() or (nothing and first == 0):
            yield Batch(inputs_BL=batch.inputs_BL[first : first + size], targets_BL=targets_BL)


def _measured(stop: StopSpec, result: NllResult) -> float:
    match stop.metric:
        case "accuracy":
            return result.accuracy
        case _ as never:
            assert_never(never)


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


def _device(execution: ExecSpec) -> torch.device:
    """Raises ConfigError if this machine has no such device."""
    problem = f"exec.device = {execution.device}: expected a device of this machine: cpu"
    if torch.cuda.is_available():
        problem += ", cuda" + "".join(f", cuda:{index}" for index in range(torch.cuda.device_count()))
    try:
        device = torch.device(execution.device)
    except RuntimeError:
        raise ConfigError(problem) from None
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(problem)
    return device


@contextmanager
def numerics(execution: ExecSpec, seed: int) -> Iterator[None]:
    """Threads, determinism and random state of a run; the process has its own back afterwards."""
    device = _device(execution)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.set_num_threads(execution.threads)
            if device.type == "cpu":
                torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
