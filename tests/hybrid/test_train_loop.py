"""Runs of toy models, in float32: bit for bit where the order of sums is the same."""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data import NOT_SCORED, Batch, DataSource
from hybrid.data.recall import RecallData
from hybrid.data.shards import Shards
from hybrid.data.stdlib import StdlibData
from hybrid.model import LanguageModel
from hybrid.spec import (
    AdamWSpec,
    AttentionSpec,
    BlockSpec,
    ConfigError,
    ExecSpec,
    Mamba2Spec,
    ModelSpec,
    MoeSpec,
    RecallSpec,
    RopeSpec,
    RunSpec,
    StdlibSpec,
    StopSpec,
    SwigluSpec,
    TrapezoidSpec,
)
from hybrid.train.checkpoint import CheckpointStore
from hybrid.train.loop import (
    EXPLODED_STEPS,
    FINAL_LOSS_STEPS,
    VALIDATION_TOKENS,
    Interrupted,
    Origin,
    Outcome,
    build_model,
    train,
)

Kind = Literal["llama", "mamba", "hybrid", "experts"]
Corpus = Literal["recall", "text"]
Line = dict[str, float | int | str | bool]

STEPS, BATCH_SIZE, SEQ_LEN = 14, 4, 16
BATCH_TOKENS = BATCH_SIZE * SEQ_LEN
RECALL = RecallSpec(n_symbols=32, n_pairs=3, power=0.1)
TEXT = StdlibSpec(fingerprint="0" * 16, val_percent=5.0)
ATTENTION = AttentionSpec(n_heads=2, n_kv_heads=1, head_dim=8, rope=RopeSpec(theta=10_000.0, scaling=None))
MAMBA = Mamba2Spec(
    d_ssm=32,
    head_dim=8,
    d_state=4,
    n_groups=1,
    d_conv=4,
    a_init_min=1.0,
    a_init_max=16.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)
SWIGLU = SwigluSpec(d_ffn=24)
MOE = MoeSpec(d_ffn=12, n_experts=4, top_k=1, n_shared=1, bias_step=0.01)
BLOCKS: dict[Kind, tuple[BlockSpec, ...]] = {
    "llama": (BlockSpec(mixer=ATTENTION, ffn=SWIGLU), BlockSpec(mixer=ATTENTION, ffn=SWIGLU)),
    "mamba": (BlockSpec(mixer=MAMBA, ffn=SWIGLU), BlockSpec(mixer=MAMBA, ffn=SWIGLU)),
    "hybrid": (BlockSpec(mixer=MAMBA, ffn=SWIGLU), BlockSpec(mixer=ATTENTION, ffn=SWIGLU)),
    "experts": (
        BlockSpec(mixer=MAMBA, ffn=MOE),
        BlockSpec(mixer=ATTENTION, ffn=SWIGLU),
        BlockSpec(mixer=ATTENTION, ffn=replace(MOE, top_k=2)),
    ),
}
EXECUTION = ExecSpec(
    device="cpu",
    microbatch=None,
    threads=1,
    ssd_chunk=8,
    checkpoint_every_s=1e9,
    log_every_steps=4,
    eval_every_tokens=None,
    heartbeat_s=5.0,
    lease_s=60.0,
    activation_checkpointing=False,
    kernels="torch",
    mixers=(),
    trunks=True,
    nodes=1,
    gpus_per_node=1,
)


def run_of(kind: Kind = "hybrid", corpus: Corpus = "recall", steps: int = STEPS) -> RunSpec:
    data = RECALL if corpus == "recall" else TEXT
    return RunSpec(
        model=ModelSpec(
            d_model=16,
            vocab_size=data.vocab_size,
            tie_embeddings=True,
            norm_eps=1e-5,
            init_std=0.02,
            blocks=BLOCKS[kind],
        ),
        data=data,
        optim=AdamWSpec(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=1.0),
        schedule=TrapezoidSpec(warmup_tokens=3 * BATCH_TOKENS, cooldown_tokens=3 * BATCH_TOKENS),
        stop=None,
        train_tokens=steps * BATCH_TOKENS,
        batch_tokens=BATCH_TOKENS,
        seq_len=SEQ_LEN,
        dtype="float32",
        init_seed=1,
        data_seed=1,
    )


@cache
def data_of(spec: RunSpec) -> DataSource:
    if isinstance(spec.data, RecallSpec):
        return RecallData(spec.data, spec.seq_len)
    # Text-like: a few symbols over and over with noise, so that there is something to learn.
    random = np.random.default_rng(0)
    tokens = (np.arange(6000) ** 2 % 7 + 97 + (random.random(6000) < 0.1)).astype(np.uint16)
    return StdlibData(Shards(directory=Path("nowhere"), training=tokens[:5000], validation=tokens[5000:]), spec.seq_len)


class Crash(Exception):
    """A run that ends without warning."""


class Recorder:
    """Keeps the lines; asks to stop after some steps, and crashes after one."""

    def __init__(self, stop_at: int | None = None, crash_at: int | None = None) -> None:
        self.lines: list[Line] = []
        self.start_step = -1
        self.total_steps = -1
        self.origin: Origin | None = None
        self.step = 0
        self.ticks: list[tuple[int, float | None]] = []
        self.synced_lines: list[int] = []
        self._stop_at, self._crash_at = stop_at, crash_at

    def start(self, total_steps: int, origin: Origin | None) -> None:
        self.start_step, self.total_steps = 0 if origin is None else origin.step, total_steps
        self.origin = origin

    def metrics(self, line: Line) -> None:
        self.lines.append(line)

    def sync(self) -> None:
        self.synced_lines.append(len(self.lines))

    def tick(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        self.step = step
        self.ticks.append((step, loss))
        assert tokens_per_s > 0.0
        if step == self._crash_at:
            raise Crash

    def stop_requested(self) -> str | None:
        return "asked to" if self.step == self._stop_at else None


@dataclasses.dataclass(frozen=True)
class Result:
    """A run's end: its outcome, its lines without times, and all that its last checkpoint would hold."""

    outcome: Outcome
    lines: list[Line]
    state: dict[str, Any]


TIMES = ("wall_s", "tokens_per_s", "train_s", "line_s")


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMES}


def attempts(
    spec: RunSpec,
    directory: Path,
    recorders: list[Recorder],
    execution: ExecSpec = EXECUTION,
    data: DataSource | None = None,
) -> tuple[Outcome | None, list[Line]]:
    """Attempts one after the other, and their lines joined: each cut where the next one resumed."""
    outcome, lines = None, []
    for number, recorder in enumerate(recorders, start=1):
        store = CheckpointStore(directory, run_id="0123456789ab", attempt=number)
        try:
            outcome = train(spec, execution, data=data or data_of(spec), checkpoints=store, observer=recorder)
        except (Interrupted, Crash):
            outcome = None
        lines = [line for line in lines if int(line["step"]) <= recorder.start_step] + recorder.lines
    return outcome, lines


def finish(spec: RunSpec, directory: Path, recorders: list[Recorder], execution: ExecSpec = EXECUTION) -> Result:
    """The attempts, then one that is stopped at the last step, then one that only reports."""
    everything = [*recorders, Recorder(stop_at=spec.train_steps), Recorder()]
    outcome, lines = attempts(spec, directory, everything, execution)
    assert everything[-1].start_step == spec.train_steps
    assert outcome is not None
    latest = CheckpointStore(directory, run_id="0123456789ab", attempt=99).load_latest()
    assert latest is not None
    assert latest.step == spec.train_steps
    return Result(outcome=outcome, lines=[without_times(line) for line in lines], state=latest.state)


@cache
def uninterrupted(spec: RunSpec) -> Result:
    with TemporaryDirectory() as directory:
        return finish(spec, Path(directory), [])


def train_once(
    spec: RunSpec, execution: ExecSpec = EXECUTION, data: DataSource | None = None
) -> tuple[Outcome, list[Line]]:
    with TemporaryDirectory() as directory:
        outcome, lines = attempts(spec, Path(directory), [Recorder()], execution, data)
    assert outcome is not None
    return outcome, lines


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All that is in nested dicts and lists, with where it is."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def assert_equal_to_the_bit(one: Any, other: Any) -> None:
    ours, theirs = dict(leaves(one)), dict(leaves(other))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        if path.rpartition(".")[2] in TIMES:
            continue
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[path]), path
        else:
            assert value == theirs[path], path


def assert_same_result(one: Result, other: Result) -> None:
    assert_equal_to_the_bit(one.state, other.state)
    assert one.lines == other.lines
    assert without_times(one.outcome.metrics) == without_times(other.outcome.metrics)
    assert_equal_to_the_bit(one.outcome.model.state_dict(), other.outcome.model.state_dict())


@pytest.mark.parametrize("corpus", ["recall", "text"])
@pytest.mark.parametrize("kind", ["llama", "mamba", "hybrid", "experts"])
@settings(max_examples=4, deadline=None)
@given(stops=st.lists(st.integers(1, STEPS), min_size=1, max_size=3, unique=True).map(sorted))
def test_interrupted_anywhere_and_resumed_equals_uninterrupted(kind: Kind, corpus: Corpus, stops: list[int]) -> None:
    spec = run_of(kind, corpus)
    with TemporaryDirectory() as directory:
        recorders = [Recorder(stop_at=stop) for stop in stops]
        assert_same_result(finish(spec, Path(directory), recorders), uninterrupted(spec))
    assert [recorder.start_step for recorder in recorders] == [0, *stops[:-1]]


def test_a_crash_costs_the_steps_since_the_checkpoint_and_changes_nothing(tmp_path: Path) -> None:
    spec = run_of()
    recorders = [Recorder(stop_at=5), Recorder(crash_at=11), Recorder(crash_at=9)]
    assert_same_result(finish(spec, tmp_path, recorders), uninterrupted(spec))
    assert [recorder.start_step for recorder in recorders] == [0, 5, 5]


def test_a_torn_checkpoint_is_passed_over_and_changes_nothing(tmp_path: Path) -> None:
    spec = run_of()
    every_step = replace(EXECUTION, checkpoint_every_s=0.0)
    attempts(spec, tmp_path, [Recorder(stop_at=7)], every_step)
    newest = max(tmp_path.glob("*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    store = CheckpointStore(tmp_path, run_id="0123456789ab", attempt=2, log=[].append)
    resumed = Recorder(crash_at=8)
    with pytest.raises(Crash):
        train(spec, every_step, data=data_of(spec), checkpoints=store, observer=resumed)
    assert resumed.start_step == 6
    assert_same_result(finish(spec, tmp_path, [], every_step), since(7, uninterrupted(spec)))


def since(step: int, result: Result) -> Result:
    """The result with the lines of later steps alone."""
    return replace(result, lines=[line for line in result.lines if int(line["step"]) > step])


def test_the_observer_hears_of_every_step(tmp_path: Path) -> None:
    spec = run_of()
    first, second = Recorder(stop_at=6), Recorder()
    _, lines = attempts(spec, tmp_path, [first, second], replace(EXECUTION, log_every_steps=1))
    assert first.total_steps == second.total_steps == STEPS
    losses = [(line["step"], line["train_loss_nats"]) for line in lines if "train_loss_nats" in line]
    assert first.ticks + second.ticks == losses
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_run_twice_is_the_same_to_the_last_bit(dtype: Literal["float32", "bfloat16"], tmp_path: Path) -> None:
    spec = replace(run_of(), dtype=dtype)
    assert_same_result(finish(spec, tmp_path / "1", []), finish(spec, tmp_path / "2", [Recorder(stop_at=6)]))


def test_bfloat16_is_another_curve_over_float32_weights() -> None:
    half, _ = train_once(replace(run_of(), dtype="bfloat16"))
    full = uninterrupted(run_of()).outcome
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())
    assert half.metrics["train_loss_nats"] != full.metrics["train_loss_nats"]
    assert half.metrics["train_loss_nats"] == pytest.approx(full.metrics["train_loss_nats"], abs=0.02)


@pytest.mark.parametrize("change", ["init_seed", "data_seed"])
def test_another_seed_is_another_curve(change: str) -> None:
    other, _ = train_once(replace(run_of(), **{change: 2}))
    assert other.metrics["train_loss_nats"] != uninterrupted(run_of()).outcome.metrics["train_loss_nats"]


def test_pace_of_logging_validation_and_saving_changes_no_bit() -> None:
    spec = run_of()
    busy = replace(EXECUTION, log_every_steps=1, eval_every_tokens=2 * BATCH_TOKENS, checkpoint_every_s=0.0)
    outcome, lines = train_once(spec, busy)
    reference = uninterrupted(spec).outcome
    assert without_times(outcome.metrics) == without_times(reference.metrics)
    assert_equal_to_the_bit(outcome.model.state_dict(), reference.model.state_dict())
    assert [line["step"] for line in lines if "val_loss_nats" in line] == list(range(2, STEPS + 1, 2))


class Uneven(DataSource):
    """Targets masked so that sequences differ in how much is scored, one of them entirely."""

    def __init__(self, data: DataSource) -> None:
        self._data = data

    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        batch = self._data.train_batch(step, batch_size, data_seed)
        targets_BL = batch.targets_BL.copy()
        targets_BL[0] = NOT_SCORED
        targets_BL[1, 1:] = NOT_SCORED
        return Batch(inputs_BL=batch.inputs_BL, targets_BL=targets_BL)

    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        return self._data.validation_batches(batch_size, max_examples)


@pytest.mark.parametrize("microbatch", [1, 3])
@pytest.mark.parametrize("kind", ["hybrid", "experts"])
def test_microbatches_change_float_noise_only(kind: Kind, microbatch: int) -> None:
    spec = run_of(kind, "text", steps=6)
    every_step = replace(EXECUTION, log_every_steps=1)
    _, whole = train_once(spec, every_step, Uneven(data_of(spec)))
    _, parts = train_once(spec, replace(every_step, microbatch=microbatch), Uneven(data_of(spec)))
    for one, other in zip(whole, parts, strict=True):
        assert without_times(one) == pytest.approx(without_times(other), rel=2e-5)


def test_lines_are_means_since_the_line_before() -> None:
    spec = run_of()
    _, each = train_once(spec, replace(EXECUTION, log_every_steps=1))
    losses = [line["train_loss_nats"] for line in each if "train_loss_nats" in line]
    lines = [line for line in uninterrupted(spec).lines if "train_loss_nats" in line]
    assert [line["step"] for line in lines] == [4, 8, 12, 14]
    for line, first in zip(lines, (0, 4, 8, 12), strict=True):
        assert line["train_loss_nats"] == pytest.approx(np.mean(losses[first : int(line["step"])]), rel=1e-12)
    assert [line["tokens"] for line in lines] == [step * BATCH_TOKENS for step in (4, 8, 12, 14)]


def test_metrics_of_a_finished_run() -> None:
    outcome = uninterrupted(run_of()).outcome
    assert outcome.status == "done"
    assert list(outcome.metrics) == [
        "steps",
        "tokens",
        "train_loss_nats",
        "val_loss_nats",
        "val_accuracy",
        "val_bits_per_byte",
        "val_tokens",
        "expert_load_max",
        "solved",
        "steps_to_threshold",
        "wall_s",
        "tokens_per_s",
    ]
    assert outcome.metrics["steps"] == STEPS
    assert outcome.metrics["tokens"] == STEPS * BATCH_TOKENS
    assert outcome.metrics["val_tokens"] == VALIDATION_TOKENS // SEQ_LEN * RECALL.n_pairs
    assert outcome.metrics["expert_load_max"] is None
    assert outcome.metrics["solved"] is None
    assert outcome.metrics["steps_to_threshold"] is None
    assert not [line for line in uninterrupted(run_of()).lines if "expert_load_max" in line]


def test_wall_time_goes_on_after_a_resume(tmp_path: Path) -> None:
    spec = run_of()
    first, second = Recorder(stop_at=7), Recorder()
    outcome, _ = attempts(spec, tmp_path, [first, second], replace(EXECUTION, log_every_steps=1))
    times = [float(line["wall_s"]) for line in first.lines + second.lines if "wall_s" in line]
    assert times == sorted(times)
    assert len(times) == STEPS
    assert outcome is not None
    assert float(outcome.metrics["wall_s"] or 0.0) >= times[-1]


def test_training_lowers_the_loss() -> None:
    outcome, _ = train_once(run_of("hybrid", "text", steps=60))
    assert float(outcome.metrics["val_loss_nats"] or 9.9) < 2.5 < np.log(TEXT.vocab_size)


def test_a_stop_is_at_the_step_it_was_asked_after(tmp_path: Path) -> None:
    spec = run_of()
    store = CheckpointStore(tmp_path, run_id="0123456789ab", attempt=1)
    with pytest.raises(Interrupted, match="stopped at step 3: asked to") as caught:
        train(spec, EXECUTION, data=data_of(spec), checkpoints=store, observer=(recorder := Recorder(stop_at=3)))
    assert recorder.synced_lines == [len(recorder.lines)]
    assert (caught.value.reason, caught.value.step) == ("asked to", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step00000003-a001.ckpt"]


def first_move(spec: RunSpec, *, grad_clip: float, warmup_steps: int) -> tuple[float, float]:
    """How far one update moves the weights at a learning rate of 1 times the gradient, and the gradient's norm.

    With a huge eps, AdamW is plain descent.
    """
    spec = replace(
        spec,
        train_tokens=BATCH_TOKENS,
        optim=replace(spec.optim, eps=1e6, lr=1e6, beta1=0.0, weight_decay=0.0, grad_clip=grad_clip),
        schedule=TrapezoidSpec(warmup_tokens=warmup_steps * BATCH_TOKENS, cooldown_tokens=0),
    )
    outcome, lines = train_once(spec)
    before, after = build_model(spec, EXECUTION).parameters(), outcome.model.parameters()
    move = torch.cat([(a - b).detach().flatten() for a, b in zip(after, before, strict=True)])
    return float(move.norm()), float(lines[-1]["grad_norm"])


def test_gradients_are_clipped_before_the_update() -> None:
    moved, norm = first_move(run_of(), grad_clip=1e9, warmup_steps=0)
    clipped, norm_before_clipping = first_move(run_of(), grad_clip=1e-3, warmup_steps=0)
    assert moved == pytest.approx(norm, rel=1e-3)
    assert norm_before_clipping == norm > 0.01
    assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_an_update_has_the_learning_rate_of_the_schedule() -> None:
    moved, norm = first_move(run_of(), grad_clip=1e9, warmup_steps=4)
    assert moved == pytest.approx(norm / 4, rel=1e-3)
    rates = [line["lr"] for line in uninterrupted(run_of()).lines if "lr" in line]
    assert rates == pytest.approx([3e-3, 3e-3, 3e-3, 1e-3], rel=1e-12)


# --- diverging ----------------------------------------------------------------------------------


def test_an_absurd_learning_rate_ends_as_diverged() -> None:
    spec = run_of(steps=2 * EXPLODED_STEPS)
    outcome, lines = train_once(replace(spec, optim=replace(spec.optim, lr=1e6)))
    assert outcome.status == "diverged"
    steps = outcome.metrics["steps"]
    assert isinstance(steps, int)
    assert steps < spec.train_steps
    assert outcome.metrics["val_loss_nats"] is None
    assert f"step {steps + 1}" in str(outcome.metrics["reason"])
    assert lines[-1]["step"] == steps


def test_a_loss_that_stays_far_above_guessing_has_exploded() -> None:
    spec = run_of("llama", steps=2 * EXPLODED_STEPS)
    outcome, lines = train_once(
        replace(spec, optim=replace(spec.optim, lr=10.0)), replace(EXECUTION, log_every_steps=1)
    )
    assert outcome.status == "diverged"
    assert str(outcome.metrics["reason"]).startswith("the loss has been above 6.48")
    steps = int(outcome.metrics["steps"] or 0)
    assert EXPLODED_STEPS <= steps < spec.train_steps
    losses = [float(line["train_loss_nats"]) for line in lines]
    assert len(losses) == steps
    assert min(losses[-(EXPLODED_STEPS - 1) :]) > 6.48


def test_a_loss_that_is_not_finite_ends_as_diverged() -> None:
    spec = run_of()
    outcome, lines = train_once(replace(spec, optim=replace(spec.optim, lr=1e38)))
    assert outcome.status == "diverged"
    assert outcome.metrics["reason"] in (
        *("the loss of step 2 is nan", "the loss of step 2 is inf"),
        *("the gradient norm of step 2 is nan", "the gradient norm of step 2 is inf"),
    )
    assert [line["step"] for line in lines] == [1]
    assert np.isfinite(float(outcome.metrics["train_loss_nats"] or np.nan))


def test_a_large_initial_loss_is_no_explosion() -> None:
    spec = run_of(steps=EXPLODED_STEPS + 20)
    large = replace(spec, model=replace(spec.model, init_std=5.0), optim=replace(spec.optim, lr=1e-6))
    outcome, lines = train_once(large)
    assert min(float(line["train_loss_nats"]) for line in lines if "train_loss_nats" in line) > 3.0 + np.log(32)
    assert outcome.status == "done"


def test_the_training_loss_of_the_record_is_the_mean_of_the_last_steps() -> None:
    spec = run_of(steps=FINAL_LOSS_STEPS + 10)
    outcome, lines = train_once(spec, replace(EXECUTION, log_every_steps=1))
    losses = [float(line["train_loss_nats"]) for line in lines if "train_loss_nats" in line]
    assert outcome.metrics["train_loss_nats"] == pytest.approx(np.mean(losses[10:]), rel=1e-12)


# --- experts ------------------------------------------------------------------------------------


def biases(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("expert_bias")}
    assert found.keys() == {"blocks.0.ffn.expert_bias", "blocks.2.ffn.expert_bias"}
    return found


class Loads(Recorder):
    """Keeps what each step's batch gave the experts of each block, and the biases after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.loads: list[list[torch.Tensor]] = []
        self.biases: list[dict[str, torch.Tensor]] = []
        balance = LanguageModel.balance_experts

        def kept(model: LanguageModel) -> None:
            self.loads.append(list(model.expert_loads().clone()))
            balance(model)
            self.biases.append(biases(model))

        monkeypatch.setattr(LanguageModel, "balance_experts", kept)


@pytest.mark.parametrize("microbatch", [None, 1, 3])
def test_biases_move_once_a_step_by_the_load_of_the_whole_batch(
    microbatch: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = run_of("experts", "text", steps=8)
    recorder = Loads(monkeypatch)
    execution = replace(EXECUTION, microbatch=microbatch, activation_checkpointing=True)
    outcome, _ = attempts(spec, tmp_path, [recorder], execution, Uneven(data_of(spec)))
    assert outcome is not None
    expected = {name: torch.zeros(4) for name in biases(outcome.model)}
    assert len(recorder.loads) == 8
    for loads, after in zip(recorder.loads, recorder.biases, strict=True):
        for (name, bias), load, top_k in zip(expected.items(), loads, (1, 2), strict=True):
            assert load.sum() == top_k * BATCH_TOKENS
            bias += MOE.bias_step * torch.sign(load.mean() - load)
            assert torch.equal(after[name], bias)
    assert_equal_to_the_bit(biases(outcome.model), expected)  # the validation at the end moved nothing
    assert any(bias.any() for bias in expected.values())


def test_lines_and_record_say_how_even_the_experts_loads_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = run_of("experts", "text")
    recorder = Loads(monkeypatch)
    outcome, lines = attempts(spec, tmp_path, [recorder])
    assert outcome is not None
    shares = [[load / load.mean() for load in loads] for loads in recorder.loads]
    largest = [np.mean([float(share.max()) for share in step]) for step in shares]
    smallest = [np.mean([float(share.min()) for share in step]) for step in shares]
    lines = [line for line in lines if "expert_load_max" in line]
    assert [line["step"] for line in lines] == [4, 8, 12, 14]
    for line, first in zip(lines, (0, 4, 8, 12), strict=True):
        assert line["expert_load_max"] == pytest.approx(np.mean(largest[first : int(line["step"])]), rel=1e-6)
        assert line["expert_load_min"] == pytest.approx(np.mean(smallest[first : int(line["step"])]), rel=1e-6)
        assert float(line["expert_load_min"]) < 1.0 < float(line["expert_load_max"])
    assert outcome.metrics["expert_load_max"] == pytest.approx(np.mean(largest), rel=1e-6)


def test_training_balances_a_skewed_router(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every token prefers the first expert by as much as forty steps of its bias; nothing else balances the loads."""
    spec = run_of("experts", "text", steps=90)
    init_weights = LanguageModel.init_weights

    def skewed(model: LanguageModel, seed: int) -> None:
        init_weights(model, seed)
        for bias in (buffer for name, buffer in model.named_buffers() if name.endswith("expert_bias")):
            bias[0] += 0.4

    monkeypatch.setattr(LanguageModel, "init_weights", skewed)
    recorder = Loads(monkeypatch)
    attempts(spec, tmp_path, [recorder])
    first = [sum(step[block] for step in recorder.loads[:10]) for block in (0, 1)]
    last = [sum(step[block] for step in recorder.loads[-30:]) for block in (0, 1)]
    assert min(float(load.max() / load.mean()) for load in first) > 1.9
    assert max(float(load.max() / load.mean()) for load in last) < 1.5


def test_a_checkpoint_older_than_experts_is_read(tmp_path: Path) -> None:
    spec = run_of()
    store = CheckpointStore(tmp_path, run_id="0123456789ab", attempt=1)
    with pytest.raises(Interrupted):
        train(spec, EXECUTION, data=data_of(spec), checkpoints=store, observer=Recorder(stop_at=5))
    saved = store.load_latest()
    assert saved is not None
    older = {key: value for key, value in saved.state["progress"].items() if "expert" not in key}
    assert older.keys() < saved.state["progress"].keys()
    store.save({**saved.state, "progress": older}, 5)
    assert_same_result(since(5, finish(spec, tmp_path, [])), since(5, uninterrupted(spec)))


# --- the stop rule ------------------------------------------------------------------------------


def stopping(threshold: float) -> RunSpec:
    stop = StopSpec(metric="accuracy", threshold=threshold, every_tokens=3 * BATCH_TOKENS, examples=8)
    spec = run_of("llama", "text", steps=100)
    return replace(spec, stop=stop, schedule=TrapezoidSpec(warmup_tokens=0, cooldown_tokens=0))


def test_a_solved_run_stops_early() -> None:
    outcome, lines = train_once(stopping(0.3))
    steps = outcome.metrics["steps"]
    assert outcome.status == "done"
    assert outcome.metrics["solved"] is True
    assert isinstance(steps, int)
    assert steps == outcome.metrics["steps_to_threshold"] < 100
    accuracies = [float(line["val_accuracy"]) for line in lines if "val_accuracy" in line]
    assert [line["step"] for line in lines if "val_accuracy" in line] == list(range(3, steps + 1, 3))
    assert max(accuracies[:-1], default=0.0) < 0.3 <= accuracies[-1]
    assert max(int(line["step"]) for line in lines if "lr" in line) == steps


def test_a_run_that_never_reaches_the_threshold_is_censored() -> None:
    spec = replace(stopping(1.01), train_tokens=8 * BATCH_TOKENS)
    outcome, _ = train_once(spec)
    assert outcome.status == "done"
    assert outcome.metrics["solved"] is False
    assert outcome.metrics["steps_to_threshold"] is None
    assert outcome.metrics["steps"] == 8


def test_a_run_stopped_right_after_it_was_solved_is_solved_when_resumed(tmp_path: Path) -> None:
    alone, lines = train_once(stopping(0.3))
    steps = int(alone.metrics["steps"] or 0)
    recorders = [Recorder(stop_at=steps), Recorder()]
    resumed, joined = attempts(stopping(0.3), tmp_path, recorders)
    assert recorders[1].start_step == steps
    assert resumed is not None
    assert without_times(resumed.metrics) == without_times(alone.metrics)
    assert [without_times(line) for line in joined] == [without_times(line) for line in lines]


# --- the surroundings ---------------------------------------------------------------------------


def test_the_process_has_its_numerics_back() -> None:
    torch.manual_seed(17)
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    train_once(run_of(steps=2), replace(EXECUTION, threads=threads + 1))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_a_device_that_is_not_there_is_a_config_error(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"exec.device = {device}: expected a device of this machine: cpu"):
        build_model(run_of(), replace(EXECUTION, device=device))
