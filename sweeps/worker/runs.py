"""Train one run, unless it is finished, and record it."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hybrid import outside
from hybrid.cost import run_cost
from hybrid.decode import encode
from hybrid.spec import ExecSpec, RunSpec
from sweeps.identity import run_id as identify
from sweeps.provenance import begin as begin_provenance
from sweeps.provenance import provenance
from sweeps.speed import prediction_text
from sweeps.stopping import StopFlag
from sweeps.store import RECORD_SCHEMA, Attempt, Store, now, publish
from sweeps.trunks import branch_step, trunk_id
from sweeps.worker.attempts import (
    Log,
    Observer,
    Progress,
    compare_with_attempts,
    describe_job,
    interruptions,
    keep_to_one_source,
    make_attempt,
)
from sweeps.worker.claims import check_there, take
from sweeps.worker.measuring import Measuring
from sweeps.worker.ranks import Follower, begin_together, follow, follow_data, lead

if TYPE_CHECKING:
    import torch

    from hybrid.train.checkpoint import Checkpoint
    from hybrid.train.parallel import Ranks


def run_one(
    store: Store,
    run: RunSpec,
    execution: ExecSpec,
    *,
    stop: StopFlag,
    progress: Progress,
    own_process: bool = False,
    submission: int | None = None,
    ranks: "Ranks | None" = None,
) -> str:
    """Train the run, unless it is finished, and record it; gives its status, "done" or "diverged".

    In a process of its own, all that it prints goes to the attempt's log. `submission` is that of a scheduler's job,
    which it is part of. Raises Busy where another copy is alive or has taken the run over, Stopped after saving when
    asked to stop, and whatever went wrong, after recording it in the attempt.

    Of several `ranks` all call this. The first claims the attempt and records, and it ends alike on all.
    """
    if ranks is not None and not ranks.is_first:
        return follow(ranks, "run", lambda told: _follow_run(store, run, execution, told, stop, ranks))
    return lead(ranks, lambda: _run_one(store, run, execution, stop, progress, own_process, submission, ranks))


def _run_one(
    store: Store,
    run: RunSpec,
    execution: ExecSpec,
    stop: StopFlag,
    progress: Progress,
    own_process: bool,
    submission: int | None,
    ranks: "Ranks | None",
) -> str:
    run_id = store.publish_spec(run)
    attempt = take(store, run_id, execution.lease_s, stop)
    if attempt is None:
        return _recorded_status(store, run_id)
    begin_provenance(store)
    job = describe_job(execution, submission)
    return make_attempt(
        store.attempts(run_id),
        attempt,
        "run",
        job,
        execution,
        lambda: store.last_attempt(run_id) > attempt.number or store.record_path(run_id).exists(),
        lambda observer, log: _train(store, run, execution, attempt, observer, log, job, own_process, ranks),
        stop,
        progress,
        own_process,
        ranks,
    )


def _recorded_status(store: Store, run_id: str) -> str:
    record = store.record(run_id)
    assert record is not None
    return str(record["status"])


def _train(
    store: Store,
    run: RunSpec,
    execution: ExecSpec,
    attempt: Attempt,
    observer: Observer,
    log: Log,
    job: Mapping[str, Any],
    own_process: bool,
    ranks: "Ranks | None",
) -> str:
    from hybrid.data import open_data
    from hybrid.train.checkpoint import CheckpointStore, save_final_weights
    from hybrid.train.loop import train

    run_id = attempt.of
    outside.load(execution.mixers)  # this process may not be the one that read the configuration
    keep_to_one_source(store.attempts(run_id), "run", run, attempt)
    data = open_data(run.data, run.seq_len, store.data_root)
    checkpoints = CheckpointStore(store.checkpoints_dir(run_id), attempt=attempt.number, run_id=run_id, log=log)

    def start_from(device: "torch.device") -> "Checkpoint | None":
        return _trunk_checkpoint(store, run, device, log) if execution.trunks else None

    measuring = Measuring(store, run, execution, own_process)
    with interruptions(store.attempts(run_id), "run"):
        outcome = train(
            run,
            begin_together(ranks, run, execution, attempt, log),
            data=data,
            checkpoints=checkpoints,
            observer=observer,
            start_from=start_from,
            ranks=ranks,
        )
    measured = measuring.facts()
    weights = store.weights_path(run_id, attempt.number)
    made: dict[str, Any] = {}
    if outcome.status == "done":
        check_there(attempt)
        made["weights_sha256"] = save_final_weights(weights, outcome.model)
    record = {
        "schema": RECORD_SCHEMA,
        "run_id": run_id,
        "status": outcome.status,
        "attempt": attempt.number,
        "spec": encode(run),
        "cost": asdict(run_cost(run)),
        "metrics": outcome.metrics,
        **made,
        "provenance": provenance(store, run, execution)
        | {"user": job["user"], "slurm": job["slurm"], "trunk": _trunk_part(store, attempt)}
        | {"started_at": job["started_at"], "finished_at": now()}
        | measured,
    }
    won = store.publish_record(run_id, record)
    # The run has its record now, whatever becomes of the files that it needed on the way.
    with contextlib.suppress(OSError):
        checkpoints.clear()
        if not won:
            weights.unlink(missing_ok=True)
    if won:
        if outcome.status == "done":
            measuring.publish(run_id, observer, log)
        log(prediction_text(record) or "nothing was measured")
        return outcome.status
    log("another copy recorded the run first; its record stands")
    return _recorded_status(store, run_id)


def _follow_run(
    store: Store, run: RunSpec, execution: ExecSpec, told: Mapping[str, Any], stop: StopFlag, ranks: "Ranks"
) -> None:
    from hybrid.train.checkpoint import CheckpointStore
    from hybrid.train.loop import Interrupted, train

    data = follow_data(store, run, execution, told)
    run_id = identify(run)
    checkpoints = CheckpointStore(store.checkpoints_dir(run_id), attempt=told["attempt"], run_id=run_id)
    with contextlib.suppress(Interrupted):  # the first says why
        train(run, ranks.execution(execution), data=data, checkpoints=checkpoints, observer=Follower(stop), ranks=ranks)


def _trunk_checkpoint(store: Store, run: RunSpec, device: "torch.device", log: Log) -> "Checkpoint | None":
    """The latest point of the run's trunk that is not after where the run leaves it; None where there is none."""
    from hybrid.train.checkpoint import CheckpointStore

    trunk = trunk_id(run)
    if trunk is None:
        return None
    attempts = store.trunk_attempts(trunk)
    checkpoints = CheckpointStore(store.trunk_checkpoints_dir(trunk), attempt=0, run_id=trunk, log=log)
    for step in reversed(store.trunk_points(trunk)):
        found = checkpoints.load_point(step, device) if step <= branch_step(run) else None
        if found is not None:
            compare_with_attempts(attempts, attempts.last(), "trunk", run)
            return found
    return None


def _trunk_part(store: Store, attempt: Attempt) -> dict[str, Any] | None:
    """What of the run its trunk paid for: `wall_s` is part of the run's metric of that name."""
    start = store.branched_from(attempt.of, attempt.number)
    if start is None:
        return None
    return {"id": start.trunk, "step": start.step, "attempt": start.attempt, "wall_s": start.wall_s}


def fail_branch(
    store: Store,
    run: RunSpec,
    execution: ExecSpec,
    trunk: str,
    failure: Mapping[str, Any],
    submission: int | None = None,
) -> None:
    """Record an attempt at a run that could not begin, because its trunk failed as `failure` says (an error.json).

    Does nothing where the run is finished, or another copy has it. Raises OSError, StoreError.
    """
    run_id = store.publish_spec(run)
    if store.status(run_id) not in ("new", "interrupted", "lost", "failed"):
        return
    attempt = store.claim(run_id, store.last_attempt(run_id))
    if attempt is None:
        return
    publish(attempt.directory / "job.json", json.dumps(describe_job(execution, submission)) + "\n")
    error = {
        "class": failure["class"],
        "message": f"trunk {trunk}: {failure['message']}",
        "trunk": trunk,
        "traceback": failure.get("traceback"),
        "at": now(),
    }
    publish(attempt.directory / "error.json", json.dumps(error) + "\n")
