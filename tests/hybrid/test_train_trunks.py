"""Trunks and branches of toy models, in float32: a branch is the run trained alone, to the last bit."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.spec import ExecSpec, RunSpec, TrapezoidSpec
from hybrid.train.checkpoint import Checkpoint, CheckpointStore
from hybrid.train.loop import EXPLODED_STEPS, Interrupted, Outcome, TrunkOutcome, train, train_trunk

from .test_train_loop import (
    BATCH_TOKENS,
    EXECUTION,
    Crash,
    Kind,
    Line,
    Recorder,
    Uneven,
    assert_equal_to_the_bit,
    data_of,
    run_of,
    stopping,
    without_times,
)

TRUNK, RUN = "ba5eba5eba5e", "0123456789ab"
COOLDOWN = 3
LENGTHS = (9, 11, 14)
POINTS = tuple(length - COOLDOWN for length in LENGTHS)
# Nothing falls on the steps where branches leave: lines every 4, validations every 5, two microbatches a step.
PACE = replace(EXECUTION, microbatch=2, eval_every_tokens=5 * BATCH_TOKENS)


class Trunk:
    """A trunk's checkpoints, its attempts' lines joined as the store joins them, and what was said of its points."""

    def __init__(self, directory: Path, spec: RunSpec, execution: ExecSpec = PACE) -> None:
        self.directory, self.spec, self.execution = directory, spec, execution
        self.lines: list[Line] = []
        self.saved: list[int] = []
        self.attempt = 0

    def train(self, points: tuple[int, ...], recorder: Recorder | None = None) -> TrunkOutcome | None:
        recorder = recorder or Recorder()
        self.attempt += 1
        try:
            return train_trunk(
                self.spec,
                self.execution,
                data=Uneven(data_of(self.spec)),
                checkpoints=CheckpointStore(self.directory, run_id=TRUNK, attempt=self.attempt),
                observer=recorder,
                points=points,
                saved=self._saved,
            )
        except (Interrupted, Crash):
            return None
        finally:
            self.lines = [line for line in self.lines if int(line["step"]) <= recorder.start_step] + recorder.lines

    def _saved(self, step: int, wall_s: float) -> None:
        self.saved.append(step)

    def point(self, step: int) -> Callable[[torch.device], Checkpoint | None]:
        reader = CheckpointStore(self.directory, run_id=TRUNK, attempt=0)
        return lambda device: reader.load_point(step, device)

    def state(self, step: int) -> dict[str, Any]:
        found = self.point(step)(torch.device("cpu"))
        assert found is not None
        assert found.owner == TRUNK
        return found.state


def run_to_the_end(
    spec: RunSpec, trunk: Trunk | None, step: int = 0, execution: ExecSpec = PACE
) -> tuple[Outcome, list[Line], dict[str, Any] | None]:
    """The outcome, the whole curve, and the state at the last step if it gets there: alone, or from a trunk's point."""
    with TemporaryDirectory() as directory:
        lines: list[Line] = [] if trunk is None else [line for line in trunk.lines if int(line["step"]) <= step]
        outcome = None
        for attempt, recorder in enumerate((Recorder(stop_at=spec.train_steps), Recorder()), start=1):
            store = CheckpointStore(Path(directory), run_id=RUN, attempt=attempt)
            try:
                outcome = train(
                    spec,
                    execution,
                    data=Uneven(data_of(spec)),
                    checkpoints=store,
                    observer=recorder,
                    start_from=None if trunk is None else trunk.point(step),
                )
            except Interrupted:
                assert recorder.start_step == step
            lines += recorder.lines
            if outcome is not None:
                break
        assert outcome is not None
        latest = CheckpointStore(Path(directory), run_id=RUN, attempt=9).load_latest()
    return outcome, [without_times(line) for line in lines], None if latest is None else latest.state


def of_length(steps: int, kind: Kind = "hybrid") -> RunSpec:
    return run_of(kind, "text", steps)


@cache
def alone(spec: RunSpec) -> tuple[Outcome, list[Line], dict[str, Any] | None]:
    return run_to_the_end(spec, None)


def assert_same_run(one: tuple[Outcome, list[Line], Any], other: tuple[Outcome, list[Line], Any]) -> None:
    assert one[0].status == other[0].status
    assert without_times(one[0].metrics) == without_times(other[0].metrics)
    assert_equal_to_the_bit(one[0].model.state_dict(), other[0].model.state_dict())
    assert one[1] == other[1]
    assert_equal_to_the_bit(one[2], other[2])


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory() as made:
        yield Path(made)


@pytest.mark.parametrize("kind", ["hybrid", "experts"])
@settings(max_examples=3, deadline=None)
@given(stops=st.lists(st.integers(1, max(POINTS)), max_size=3, unique=True).map(sorted))
def test_a_branch_is_the_run_alone_however_its_trunk_was_interrupted(kind: Kind, stops: list[int]) -> None:
    with TemporaryDirectory() as directory:
        trunk = Trunk(Path(directory), of_length(max(LENGTHS), kind))
        for stop in [*stops, None]:
            left = tuple(point for point in POINTS if point not in trunk.saved)
            outcome = trunk.train(left, Recorder(stop_at=stop)) if left else None
            assert outcome in (None, TrunkOutcome(status="done", step=max(POINTS), reason=None))
        assert trunk.saved == list(POINTS)
        for length, point in zip(LENGTHS, POINTS, strict=True):
            spec = of_length(length, kind)
            assert_same_run(run_to_the_end(spec, trunk, point), alone(spec))


def test_a_branch_from_an_earlier_point_is_the_run_alone_too(directory: Path) -> None:
    trunk = Trunk(directory, of_length(14))
    trunk.train((4, 6))
    for length, step in ((9, 4), (14, 4), (14, 6)):
        assert_same_run(run_to_the_end(of_length(length), trunk, step), alone(of_length(length)))


def test_a_trunk_that_crashed_goes_on_from_its_last_checkpoint_or_point(directory: Path) -> None:
    trunk = Trunk(directory, of_length(14))
    trunk.train((4, 11), Recorder(crash_at=7))
    assert trunk.saved == [4]
    second = Recorder(crash_at=9)
    trunk.train((11,), second)
    assert second.start_step == 4
    trunk.execution = replace(PACE, checkpoint_every_s=0.0)
    trunk.train((11,), Recorder(crash_at=9))
    third = Recorder()
    trunk.train((11,), third)
    assert third.start_step == 8
    assert_same_run(run_to_the_end(of_length(14), trunk, 11), alone(of_length(14)))


def test_a_trunk_is_extended_from_its_furthest_point_and_shortened_from_an_earlier_one(directory: Path) -> None:
    trunk = Trunk(directory, of_length(9))
    trunk.train((4, 6))
    trunk.spec = of_length(14)
    further, between = Recorder(), Recorder()
    trunk.train((8, 11), further)
    assert further.origin is not None
    assert (further.origin.owner, further.origin.step, further.origin.attempt) == (TRUNK, 6, 1)
    assert further.ticks[0][0] == 7
    lines = list(trunk.lines)
    trunk.train((5,), between)
    assert [step for step, _ in between.ticks] == [5]
    trunk.lines = lines  # those of the lineage to the last point
    assert_same_run(run_to_the_end(of_length(14), trunk, 11), alone(of_length(14)))
    assert_same_run(run_to_the_end(of_length(11), trunk, 5), alone(of_length(11)))


def test_points_that_are_there_are_said_again_and_stay(directory: Path) -> None:
    """As after a kill between the file and the word that it is there."""
    trunk = Trunk(directory, of_length(14))
    trunk.train((6,))
    before = trunk.state(6)
    again = Recorder()
    trunk.train((6, 8), again)
    assert again.start_step == 6
    assert trunk.saved == [6, 6, 8]
    assert_equal_to_the_bit(trunk.state(6), before)


def test_points_are_kept_and_checkpoints_on_the_way_are_not(directory: Path) -> None:
    trunk = Trunk(directory, of_length(14), replace(PACE, checkpoint_every_s=0.0))
    trunk.train(POINTS)
    names = sorted(path.name for path in directory.iterdir())
    assert names == [*(f"point{point:08d}.ckpt" for point in POINTS), "step00000010-a001.ckpt"]


def test_an_attempt_that_is_asked_to_stop_makes_no_point_any_more(directory: Path) -> None:
    trunk = Trunk(directory, of_length(14))
    recorder = Recorder(stop_at=6)
    assert trunk.train((6,), recorder) is None
    assert recorder.ticks[-1][0] == 6
    assert [path.name for path in directory.iterdir()] == ["step00000006-a001.ckpt"]
    assert trunk.saved == []
    resumed = Recorder()
    assert trunk.train((6,), resumed) is not None
    assert (resumed.start_step, trunk.saved) == (6, [6])


def test_wall_time_of_a_branch_goes_on_from_its_trunks(directory: Path) -> None:
    trunk = Trunk(directory, of_length(14))
    walls: dict[int, float] = {}
    train_trunk(
        trunk.spec,
        PACE,
        data=data_of(trunk.spec),
        checkpoints=CheckpointStore(directory, run_id=TRUNK, attempt=1),
        observer=Recorder(),
        points=(6, 11),
        saved=walls.__setitem__,
    )
    recorder = Recorder()
    with TemporaryDirectory() as own:
        outcome = train(
            trunk.spec,
            PACE,
            data=data_of(trunk.spec),
            checkpoints=CheckpointStore(Path(own), run_id=RUN, attempt=1),
            observer=recorder,
            start_from=trunk.point(11),
        )
    assert recorder.origin is not None
    assert recorder.origin.wall_s == walls[11] > walls[6] > 0.0
    assert float(outcome.metrics["wall_s"] or 0.0) > walls[11]


def test_a_runs_own_checkpoint_goes_before_the_trunks(directory: Path) -> None:
    trunk = Trunk(directory / "trunk", of_length(14))
    trunk.train((11,))
    own = Recorder()
    for attempt, recorder in enumerate((Recorder(stop_at=2), own), start=1):
        store = CheckpointStore(directory / "run", run_id=RUN, attempt=attempt)
        start_from = trunk.point(11) if recorder is own else None
        try:
            train(
                trunk.spec, PACE, data=data_of(trunk.spec), checkpoints=store, observer=recorder, start_from=start_from
            )
        except Interrupted:
            continue
    assert own.start_step == 2


# --- diverging ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [10.0, 1e6, 1e38])
def test_branches_of_a_trunk_that_diverges_diverge_as_they_would_alone(lr: float, directory: Path) -> None:
    """From where the trunk stopped, and from the latest point before."""
    longest = run_of("llama", steps=2 * EXPLODED_STEPS)
    longest = replace(longest, optim=replace(longest.optim, lr=lr))
    quiet = replace(PACE, eval_every_tokens=None)
    trunk = Trunk(directory, longest, quiet)
    outcome = trunk.train((1, 2 * EXPLODED_STEPS - 3))
    assert outcome is not None
    assert outcome.status == "diverged"
    assert outcome.step < 2 * EXPLODED_STEPS - 3
    by_itself = run_to_the_end(longest, None, execution=quiet)
    assert outcome.reason == by_itself[0].metrics["reason"]
    assert set(trunk.saved) == {1, outcome.step}
    for point in sorted(set(trunk.saved)):
        assert_same_run(run_to_the_end(longest, trunk, point, quiet), by_itself)


def test_a_trunk_that_diverges_at_its_first_step_leaves_nothing(directory: Path) -> None:
    spec = of_length(14)
    trunk = Trunk(directory, replace(spec, model=replace(spec.model, logit_multiplier=1e38)))
    outcome = trunk.train(POINTS)
    assert outcome is not None
    assert (outcome.status, outcome.step) == ("diverged", 0)
    assert trunk.saved == []


# --- what cannot be asked -----------------------------------------------------------------------


@pytest.mark.parametrize("points", [(), (0, 5), (5, 4), (5, 5), (14,), (13,)])
def test_points_that_no_branch_could_start_from_are_refused(points: tuple[int, ...], directory: Path) -> None:
    with pytest.raises(ValueError, match="points"):
        Trunk(directory, of_length(14)).train(points)


def test_without_a_cooldown_all_but_the_last_step_is_shared(directory: Path) -> None:
    schedule = TrapezoidSpec(warmup_tokens=2 * BATCH_TOKENS, cooldown_tokens=0)
    spec = replace(of_length(8), schedule=schedule)
    trunk = Trunk(directory, replace(of_length(10), schedule=schedule))
    trunk.train((7,))
    assert_same_run(run_to_the_end(spec, trunk, 7), run_to_the_end(spec, None))


def test_a_run_with_a_stop_rule_has_no_trunk(directory: Path) -> None:
    with pytest.raises(ValueError, match="stop rule"):
        Trunk(directory, stopping(0.3)).train((5,))
