"""Train what several runs share, one attempt for each stretch of points."""

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from hybrid import outside
from sweeps.stopping import StopFlag
from sweeps.store import Attempt, Store, now, publish
from sweeps.trunks import TrunkJob, first_stretch, missing_points, trunk_description
from sweeps.worker.attempts import (
    Log,
    Observer,
    Progress,
    describe_job,
    interruptions,
    keep_to_one_source,
    make_attempt,
)
from sweeps.worker.claims import take_next
from sweeps.worker.ranks import Follower, begin_together, follow, follow_data, lead

if TYPE_CHECKING:
    from hybrid.train.parallel import Ranks


def _follow_trunk(store: Store, job: TrunkJob, told: Mapping[str, Any], stop: StopFlag, ranks: "Ranks") -> None:
    from hybrid.train.checkpoint import CheckpointStore
    from hybrid.train.loop import Interrupted, train_trunk

    data = follow_data(store, job.run, job.execution, told)
    trunk = job.trunk_id
    checkpoints = CheckpointStore(store.trunk_checkpoints_dir(trunk), attempt=told["attempt"], run_id=trunk)
    with contextlib.suppress(Interrupted):
        train_trunk(
            job.run,
            ranks.execution(job.execution),
            data=data,
            checkpoints=checkpoints,
            observer=Follower(stop),
            points=tuple(told["points"]),
            saved=lambda _step, _wall_s: None,
            ranks=ranks,
        )


def run_trunk(
    store: Store,
    job: TrunkJob,
    *,
    stop: StopFlag,
    progress: Progress,
    own_process: bool = False,
    submission: int | None = None,
    ranks: "Ranks | None" = None,
) -> Literal["done", "diverged"]:
    """Train the trunk until its missing points are there, or it diverges. One attempt for each stretch of points.

    Raises as `run_one`.
    """
    if ranks is not None and not ranks.is_first:
        status = follow(ranks, "trunk", lambda told: _follow_trunk(store, job, told, stop, ranks))
    else:
        status = lead(ranks, lambda: _run_trunk(store, job, stop, progress, own_process, submission, ranks))
    return "done" if status == "done" else "diverged"


def _run_trunk(
    store: Store,
    job: TrunkJob,
    stop: StopFlag,
    progress: Progress,
    own_process: bool,
    submission: int | None,
    ranks: "Ranks | None",
) -> Literal["done", "diverged"]:
    store.publish_trunk(job.trunk_id, trunk_description(job.run))
    attempts = store.trunk_attempts(job.trunk_id)

    def finished() -> bool:
        return not missing_points(store, job.trunk_id, job.points)

    while True:
        attempt = take_next(attempts, "trunk", finished, job.execution.lease_s, stop)
        if attempt is None:
            diverged_at = store.trunk_diverged_at(job.trunk_id)
            return "done" if diverged_at is None or diverged_at >= job.points[-1] else "diverged"
        points = first_stretch(store, job.trunk_id, missing_points(store, job.trunk_id, job.points))
        if not points:  # made by another since the last look: the next one finds it finished
            attempt.directory.rmdir()
            continue
        status = _attempt_at_trunk(store, job, points, attempt, stop, progress, own_process, submission, ranks)
        if status == "diverged":
            return "diverged"


def _attempt_at_trunk(
    store: Store,
    job: TrunkJob,
    points: tuple[int, ...],
    attempt: Attempt,
    stop: StopFlag,
    progress: Progress,
    own_process: bool,
    submission: int | None,
    ranks: "Ranks | None",
) -> str:
    attempts = store.trunk_attempts(job.trunk_id)
    return make_attempt(
        attempts,
        attempt,
        "trunk",
        describe_job(job.execution, submission) | {"points": points, "branches": job.branches},
        job.execution,
        lambda: attempts.last() > attempt.number,
        lambda observer, log: _train_trunk(store, job, points, attempt, observer, log, ranks),
        stop,
        progress,
        own_process,
        ranks,
    )


def _train_trunk(
    store: Store,
    job: TrunkJob,
    points: tuple[int, ...],
    attempt: Attempt,
    observer: Observer,
    log: Log,
    ranks: "Ranks | None",
) -> str:
    from hybrid.data import open_data
    from hybrid.train.checkpoint import CheckpointStore
    from hybrid.train.loop import train_trunk

    trunk, run, attempts = job.trunk_id, job.run, store.trunk_attempts(job.trunk_id)
    outside.load(job.execution.mixers)
    keep_to_one_source(attempts, "trunk", run, attempt)
    data = open_data(run.data, run.seq_len, store.data_root)
    checkpoints = CheckpointStore(store.trunk_checkpoints_dir(trunk), attempt=attempt.number, run_id=trunk, log=log)

    def saved(step: int, wall_s: float) -> None:
        store.publish_point(trunk, step, {"attempt": attempt.number, "wall_s": wall_s, "at": now()})
        log(f"branches can start at step {step}")

    with interruptions(attempts, "trunk"):
        outcome = train_trunk(
            run,
            begin_together(ranks, run, job.execution, attempt, log, points),
            data=data,
            checkpoints=checkpoints,
            observer=observer,
            points=points,
            saved=saved,
            ranks=ranks,
        )
    if outcome.status == "diverged":
        store.publish_divergence(trunk, outcome.step, {"attempt": attempt.number, "reason": outcome.reason})
    ending = {"status": outcome.status, "step": outcome.step, "reason": outcome.reason, "at": now()}
    publish(attempt.directory / "end.json", json.dumps(ending) + "\n")
    with contextlib.suppress(OSError):
        checkpoints.clear(at_most=outcome.step)
    return outcome.status
