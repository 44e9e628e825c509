"""Execute one run, or one trunk: claim it, keep its lease, train, record. The same code under every launcher.

`run_one` and `run_trunk` are what a launcher calls, in a process of its own. What becomes of it is told by its exit
code too, so that a scheduler's own state is true.
"""

import codecs
import contextlib
import getpass
import json
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from hybrid import outside
from hybrid.cost import run_cost
from hybrid.decode import encode
from hybrid.evals.spec import EvalSpec, ModuleWeightsEvalSpec, NllEvalSpec, canonical, eval_id
from hybrid.memory import train_memory
from hybrid.spec import ConfigError, ExecSpec, IntraSpec, RunSpec, StdlibSpec
from hybrid.train.place import Place, RankLostError
from sweeps import in_slurm
from sweeps.identity import run_id as identify
from sweeps.provenance import begin as begin_provenance
from sweeps.provenance import command, package_version, provenance
from sweeps.speed import (
    Measured,
    measurements,
    prediction_text,
    processor,
    publish_measurement,
    ranks_of,
    shape_id,
)
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import (
    RECORD_SCHEMA,
    Attempt,
    Attempts,
    Store,
    StoreError,
    now,
    owner_alive,
    publish,
    this_process,
)
from sweeps.triage import classify, find_out
from sweeps.trunks import TrunkJob, branch_step, first_stretch, missing_points, trunk_description, trunk_id

if TYPE_CHECKING:
    import torch

    from hybrid.data import DataSource
    from hybrid.model import LanguageModel
    from hybrid.train.checkpoint import Checkpoint
    from hybrid.train.loop import Origin
    from hybrid.train.parallel import Ranks

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BUSY = 3
EXIT_STOPPED = 75  # sysexits.h EX_TEMPFAIL: run the same again and it goes on

_POLL_S = 0.2
_SOURCES = "mixers.json"


class Busy(Exception):
    """Another copy of the run, or trunk, is alive; nothing is to be done here."""

    def __init__(self, job: Mapping[str, Any] | None, what: str = "run") -> None:
        self.job = job
        where = f"by {job['host']}, process {job['pid']}" if job else "elsewhere"
        if job and job.get("slurm") is not None:
            where = f"by job {in_slurm.name(job['slurm'])} on {job['slurm'].get('node')}"
        super().__init__(f"the {what} is being trained {where}")


class Progress(Protocol):
    """Where a run's progress goes."""

    def __call__(self, step: int, total_steps: int, loss_nats: float | None, tokens_per_s: float) -> None: ...


def take(store: Store, run_id: str, lease_s: float, stop: StopFlag) -> Attempt | None:
    """Claim the run's next attempt; None where it is finished. Waits out a lease that may be dead.

    A lease is dead at once where its process is seen to be gone, else when its counter has stood still for `lease_s`
    (or the owner's own lease, if longer) on this process's monotonic clock. Raises Busy as soon as the counter moves,
    but waits for a copy that this very job left behind when Slurm queued it again: nobody else would train the run.
    Raises Stopped when asked to stop.
    """
    return _take(store.attempts(run_id), "run", store.record_path(run_id).exists, lease_s, stop)


def _take(
    attempts: Attempts, what: str, finished: Callable[[], bool], lease_s: float, stop: StopFlag
) -> Attempt | None:
    """`take`, of a run or of a trunk."""
    while True:
        if finished():
            return None
        number = attempts.last()
        if (
            number
            and not attempts.ended(number)
            and not _lease_is_dead(attempts, number, what, finished, lease_s, stop)
        ):
            continue
        if stop.reason is not None:
            raise Stopped(f"before it began: {stop.reason}")
        attempt = attempts.claim(number)
        if attempt is None:
            continue
        if finished():  # between the two looks at it
            attempt.directory.rmdir()
            return None
        return attempt


def _lease_is_dead(
    attempts: Attempts, number: int, what: str, finished: Callable[[], bool], lease_s: float, stop: StopFlag
) -> bool:
    """Watch attempt `number` until it is dead (True) or has ended (False). Raises Busy where it lives, unless in an
    earlier life of this job."""

    def sign_of_life() -> tuple[str | None, bool]:
        return attempts.heartbeat(number), attempts.job(number) is None

    seen, since = sign_of_life(), time.monotonic()
    while True:
        if finished() or attempts.ended(number):
            return False
        if stop.reason is not None:
            raise Stopped(f"while it waited for another copy: {stop.reason}")
        job = attempts.job(number)
        if job is not None and owner_alive(job) is False:
            return True
        sign = sign_of_life()
        if sign != seen:
            if job is None or not in_slurm.is_earlier_life(job):
                raise Busy(job, what)
            seen, since = sign, time.monotonic()
        if time.monotonic() - since > max(lease_s, float(job["lease_s"]) if job else 0.0):
            return True
        time.sleep(_POLL_S)


_LEASE_LOST = "another copy has taken it over"


class _Heart(threading.Thread):
    """Moves the attempt's counter while it lives, and stops it once it is `lost` to somebody else."""

    def __init__(self, attempt: Attempt, every_s: float, lost: Callable[[], bool], stop: StopFlag) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._every_s, self._lost, self._stop_flag = every_s, lost, stop
        self._ended = threading.Event()
        self._path = attempt.directory / "heartbeat"

    def run(self) -> None:
        count = 0
        while not self._ended.is_set():
            # A disk that fails for a moment must not kill the run; a lease lost that way is noticed below.
            with contextlib.suppress(OSError):
                self._write(f"{count}\n")
            count += 1
            self._ended.wait(self._every_s)
            with contextlib.suppress(OSError):
                if self._lost():
                    self._stop_flag(_LEASE_LOST)

    def _write(self, text: str) -> None:
        """In place: on a disk that is full, what is cut off first could not be written again."""
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(handle, text.encode(), 0)
        finally:
            os.close(handle)

    def __enter__(self) -> "_Heart":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self.join()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def check_there(attempt: Attempt) -> None:
    """Raises StoreError where the attempt's directory is gone: what would be written now, nobody would find."""
    if not attempt.directory.is_dir():
        raise StoreError(f"{attempt.directory}: gone: has the store been moved? Moved back, the run goes on")


class _Observer:
    """What the training loop reports to: metric lines to the attempt, progress to the launcher."""

    def __init__(
        self, attempt: Attempt, lines: TextIO, log: Callable[[str], None], stop: StopFlag, progress: Progress
    ) -> None:
        self._attempt, self._of = attempt, attempt.of
        self._lines, self._log, self._stop_flag, self._progress = lines, log, stop, progress
        self._total_steps = self._start_step = 0
        self.own_steps, self.tokens_per_s = 0, 0.0  # of this attempt

    def start(self, total_steps: int, origin: "Origin | None") -> None:
        self._total_steps, self._start_step = total_steps, origin.step if origin is not None else 0
        if origin is None:
            self._log(f"begins, {total_steps} steps")
        elif origin.owner == self._of:
            self._write({"resumed_at_step": origin.step, "of_attempt": origin.attempt})
            self._log(f"resumed at step {origin.step} of {total_steps}")
        else:
            start = {"branched_at_step": origin.step, "of_attempt": origin.attempt}
            self._write({**start, "trunk": origin.owner, "wall_s": origin.wall_s})
            self._log(f"starts from trunk {origin.owner} at step {origin.step} of {total_steps}")

    def metrics(self, line: Mapping[str, Any]) -> None:
        self._write(line)

    def stop_requested(self) -> str | None:
        return self._stop_flag.reason

    def tick(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        self.own_steps, self.tokens_per_s = step - self._start_step, tokens_per_s
        self._progress(step, self._total_steps, loss, tokens_per_s)

    def sync(self) -> None:
        check_there(self._attempt)
        os.fsync(self._lines.fileno())

    def _write(self, line: Mapping[str, Any]) -> None:
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()


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
    job = _job(execution, submission)
    return _attempt(
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


def _job(execution: ExecSpec, submission: int | None = None) -> dict[str, Any]:
    """Who makes an attempt, and how."""
    return {
        **this_process(),
        "user": _user(),
        "slurm": in_slurm.here(submission),
        "lease_s": execution.lease_s,
        "started_at": now(),
        "command": command(),
        "exec": encode(execution),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may not know the user's name
        return str(os.getuid())


_Log = Callable[[str], None]


def _attempt(
    attempts: Attempts,
    attempt: Attempt,
    what: str,
    job: Mapping[str, Any],
    execution: ExecSpec,
    lost: Callable[[], bool],
    work: Callable[[_Observer, _Log], str],
    stop: StopFlag,
    progress: Progress,
    own_process: bool,
    ranks: "Ranks | None",
) -> str:
    """Do the work with the attempt's lease kept and everything logged; what goes wrong is recorded in the attempt."""
    if ranks is not None:
        ranks.when_stuck(lambda lost: _record_failure(attempt, lost, stop))
    try:
        publish(attempt.directory / "job.json", json.dumps(job) + "\n")
        with (
            _Heart(attempt, execution.heartbeat_s, lost, stop),
            open(attempt.directory / "metrics.jsonl", "a", encoding="utf-8") as lines,
            open(attempt.directory / "log.txt", "a", encoding="utf-8") as log_file,
        ):

            def log(message: str) -> None:
                # A line that cannot be written is not worth a run, least of all one whose record is published.
                with contextlib.suppress(OSError):
                    print(f"{now()} {message}", file=log_file, flush=True)

            if own_process:
                os.dup2(log_file.fileno(), 1)
                os.dup2(log_file.fileno(), 2)
            log(f"{what} {attempt.of}, attempt {attempt.number}, process {os.getpid()} on {platform.node()}")
            _ask_after(attempts, attempt.number - 1)
            try:
                status = work(_Observer(attempt, lines, log, stop, progress), log)
            except (Busy, Stopped) as ending:
                log(f"stops: {ending}")
                raise
            except BaseException as error:
                log("".join(traceback.format_exception(error)))
                raise
            log(f"ends: {status}")
            return status
    except BaseException as error:
        _record_failure(attempt, error, stop)
        raise


def _ask_after(attempts: Attempts, number: int) -> None:
    """Find out, beside the training, how the attempt before this one died, while the scheduler remembers its job."""
    if number > 0 and not attempts.ended(number):
        threading.Thread(target=find_out, args=(attempts, number), daemon=True, name="triage").start()


def _recorded_status(store: Store, run_id: str) -> str:
    record = store.record(run_id)
    assert record is not None
    return str(record["status"])


def _train(
    store: Store,
    run: RunSpec,
    execution: ExecSpec,
    attempt: Attempt,
    observer: _Observer,
    log: _Log,
    job: Mapping[str, Any],
    own_process: bool,
    ranks: "Ranks | None",
) -> str:
    from hybrid.data import open_data
    from hybrid.train.checkpoint import CheckpointStore, save_final_weights
    from hybrid.train.loop import train

    run_id = attempt.of
    outside.load(execution.mixers)  # this process may not be the one that read the configuration
    _keep_to_one_source(store.attempts(run_id), "run", run, attempt)
    data = open_data(run.data, run.seq_len, store.data_root)
    checkpoints = CheckpointStore(store.checkpoints_dir(run_id), attempt=attempt.number, run_id=run_id, log=log)

    def start_from(device: "torch.device") -> "Checkpoint | None":
        return _trunk_checkpoint(store, run, device, log) if execution.trunks else None

    measuring = _Measuring(store, run, execution, own_process)
    with _interruptions(store.attempts(run_id), "run"):
        outcome = train(
            run,
            _begin_together(ranks, run, execution, attempt, log),
            data=data,
            checkpoints=checkpoints,
            observer=observer,
            start_from=start_from,
            ranks=ranks,
        )
    measured = measuring.facts()
    weights = store.weights_path(run_id, attempt.number)
    if outcome.status == "done":
        check_there(attempt)
        save_final_weights(weights, outcome.model)
    record = {
        "schema": RECORD_SCHEMA,
        "run_id": run_id,
        "status": outcome.status,
        "attempt": attempt.number,
        "spec": encode(run),
        "cost": asdict(run_cost(run)),
        "metrics": outcome.metrics,
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


# --- several ranks ------------------------------------------------------------------------------


@contextlib.contextmanager
def ranks_here(execution: ExecSpec) -> "Iterator[Ranks | None]":
    """The ranks that this task of a Slurm step is one of, for `run_one` and `run_trunk`; None in a step of one task.

    Raises ConfigError where they are not as many as `execution` has, RankLostError where they do not come together, or
    later another one fails.
    """
    place = Place.of_slurm()
    if place is None:
        yield None
        return
    place.check(execution)
    from hybrid.train.parallel import joined

    with joined(place, place.execution(execution).device) as ranks:
        yield ranks


def lead(ranks: "Ranks | None", work: Callable[[], str]) -> str:
    """Do the first rank's work. The others, who follow, are told how it ends, so that theirs ends alike.

    What leads to `run_one` or `run_trunk` may be led too, as there may be nothing to train.
    """
    if ranks is None:
        return work()
    try:
        status = work()
    except (Busy, Stopped) as ending:
        if not ranks.have_parted:
            facts = {"job": ending.job} if isinstance(ending, Busy) else {"stopped": str(ending), "step": ending.step}
            ranks.told({"end": None, **facts})
            ranks.part_ways()
        raise
    except BaseException as error:
        ranks.fail(describe_failure(error))
        raise
    if not ranks.have_parted:
        ranks.told({"end": status})
        ranks.part_ways()
    return status


def follow(ranks: "Ranks", what: str = "run", work: Callable[[Mapping[str, Any]], object] = lambda _told: None) -> str:
    """Do another rank's part in every attempt that the first makes, of which `work` is told; ends as that one's does.

    A failure is told to the first, which records it. Raises RankLostError where another rank has failed.
    """
    while "end" not in (told := ranks.told()):
        try:
            work(told)
        except BaseException as error:
            if not isinstance(error, RankLostError):
                ranks.fail(describe_failure(error))
            raise
    ranks.part_ways()
    if "job" in told:
        raise Busy(told["job"], what)
    if "stopped" in told:
        raise Stopped(told["stopped"], told["step"])
    return str(told["end"])


def _begin_together(
    ranks: "Ranks | None",
    run: RunSpec,
    execution: ExecSpec,
    attempt: Attempt,
    log: _Log,
    points: tuple[int, ...] = (),
) -> ExecSpec:
    """Tell the other ranks what is to be trained, now that its data are there; gives how this one does its part."""
    if ranks is None:
        return execution
    log(f"{ranks.world_size} ranks")
    ranks.told({"attempt": attempt.number, "points": points, "mixers": outside.source_hashes(run.model)})
    return ranks.execution(execution)


def _follow_run(
    store: Store, run: RunSpec, execution: ExecSpec, told: Mapping[str, Any], stop: StopFlag, ranks: "Ranks"
) -> None:
    from hybrid.train.checkpoint import CheckpointStore
    from hybrid.train.loop import Interrupted, train

    data = _follow_data(store, run, execution, told)
    run_id = identify(run)
    checkpoints = CheckpointStore(store.checkpoints_dir(run_id), attempt=told["attempt"], run_id=run_id)
    with contextlib.suppress(Interrupted):  # the first says why
        train(
            run, ranks.execution(execution), data=data, checkpoints=checkpoints, observer=_Follower(stop), ranks=ranks
        )


def _follow_trunk(store: Store, job: TrunkJob, told: Mapping[str, Any], stop: StopFlag, ranks: "Ranks") -> None:
    from hybrid.train.checkpoint import CheckpointStore
    from hybrid.train.loop import Interrupted, train_trunk

    data = _follow_data(store, job.run, job.execution, told)
    trunk = job.trunk_id
    checkpoints = CheckpointStore(store.trunk_checkpoints_dir(trunk), attempt=told["attempt"], run_id=trunk)
    with contextlib.suppress(Interrupted):
        train_trunk(
            job.run,
            ranks.execution(job.execution),
            data=data,
            checkpoints=checkpoints,
            observer=_Follower(stop),
            points=tuple(told["points"]),
            saved=lambda _step, _wall_s: None,
            ranks=ranks,
        )


def _follow_data(store: Store, run: RunSpec, execution: ExecSpec, told: Mapping[str, Any]) -> "DataSource":
    from hybrid.data import open_data

    outside.load(execution.mixers)
    _compare_sources(run, told["mixers"], "the first rank has read it")
    return open_data(run.data, run.seq_len, store.data_root)


class _Follower:
    """What the training loop reports to on a rank that reports nothing."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop_flag = stop

    def start(self, total_steps: int, origin: "Origin | None") -> None:
        """The first rank's to tell."""

    def metrics(self, line: Mapping[str, Any]) -> None:
        """The first rank's to write."""

    def stop_requested(self) -> str | None:
        return self._stop_flag.reason

    def tick(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        """The first rank's to tell."""

    def sync(self) -> None:
        """Nothing was written."""


# --- stops and trunks ---------------------------------------------------------------------------


@contextlib.contextmanager
def _interruptions(attempts: Attempts, what: str) -> Iterator[None]:
    """What the loop calls interrupted is busy where the lease was lost, and stopped where it was asked to."""
    from hybrid.train.loop import Interrupted

    try:
        yield
    except Interrupted as interrupted:
        if interrupted.reason == _LEASE_LOST:
            raise Busy(attempts.job(attempts.last()), what) from interrupted
        raise Stopped(str(interrupted), interrupted.step) from interrupted


def _trunk_checkpoint(store: Store, run: RunSpec, device: "torch.device", log: _Log) -> "Checkpoint | None":
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
            _compare_with_attempts(attempts, attempts.last(), "trunk", run)
            return found
    return None


def _trunk_part(store: Store, attempt: Attempt) -> dict[str, Any] | None:
    """What of the run its trunk paid for: `wall_s` is part of the run's metric of that name."""
    start = store.branched_from(attempt.of, attempt.number)
    if start is None:
        return None
    return {"id": start.trunk, "step": start.step, "attempt": start.attempt, "wall_s": start.wall_s}


# --- trunks -------------------------------------------------------------------------------------


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
        attempt = _take(attempts, "trunk", finished, job.execution.lease_s, stop)
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
    return _attempt(
        attempts,
        attempt,
        "trunk",
        _job(job.execution, submission) | {"points": points, "branches": job.branches},
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
    observer: _Observer,
    log: _Log,
    ranks: "Ranks | None",
) -> str:
    from hybrid.data import open_data
    from hybrid.train.checkpoint import CheckpointStore
    from hybrid.train.loop import train_trunk

    trunk, run, attempts = job.trunk_id, job.run, store.trunk_attempts(job.trunk_id)
    outside.load(job.execution.mixers)
    _keep_to_one_source(attempts, "trunk", run, attempt)
    data = open_data(run.data, run.seq_len, store.data_root)
    checkpoints = CheckpointStore(store.trunk_checkpoints_dir(trunk), attempt=attempt.number, run_id=trunk, log=log)

    def saved(step: int, wall_s: float) -> None:
        store.publish_point(trunk, step, {"attempt": attempt.number, "wall_s": wall_s, "at": now()})
        log(f"branches can start at step {step}")

    with _interruptions(attempts, "trunk"):
        outcome = train_trunk(
            run,
            _begin_together(ranks, run, job.execution, attempt, log, points),
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
    publish(attempt.directory / "job.json", json.dumps(_job(execution, submission)) + "\n")
    error = {
        "class": failure["class"],
        "message": f"trunk {trunk}: {failure['message']}",
        "trunk": trunk,
        "traceback": failure.get("traceback"),
        "at": now(),
    }
    publish(attempt.directory / "error.json", json.dumps(error) + "\n")


def give_up(
    attempts: Attempts,
    what: str,
    finished: Callable[[], bool],
    execution: ExecSpec,
    message: str,
    stop: StopFlag,
    submission: int | None = None,
) -> bool:
    """Record an attempt that is not made, of the class of the one before; False where the run is finished.

    Raises as `take`; OSError.
    """
    attempt = _take(attempts, what, finished, execution.lease_s, stop)
    if attempt is None:
        return False
    before = attempts.error(attempt.number - 1) or {}
    publish(attempt.directory / "job.json", json.dumps(_job(execution, submission)) + "\n")
    error = {"class": before.get("class", "unknown"), "message": message, "gave_up": True, "at": now()}
    publish(attempt.directory / "error.json", json.dumps(error) + "\n")
    return True


# --- measuring ----------------------------------------------------------------------------------


_STEPS_TO_MEASURE = 10  # fewer say more about the first of them, which warms up, than about the others


class _Measuring:
    """What a run says of its speed and memory: made before its model is, so that its memory can be told.

    On the CPU it can be told only of a process of its own: another has memory to spare of what it did before.
    """

    def __init__(self, store: Store, run: RunSpec, execution: ExecSpec, own_process: bool) -> None:
        from hybrid.train.preflight import PeakMemory

        self._store, self._run, self._execution = store, run, execution
        self._predicted_bytes = train_memory(run, execution).total_bytes
        self._device_name = device_name(execution)
        self._preflight_tokens_per_s: float | None = None
        with contextlib.suppress(OSError):  # it would be good to know
            for known in measurements(store, shape_id(run, execution)):
                if known.source == "preflight" and known.device_name == self._device_name:
                    self._preflight_tokens_per_s = known.tokens_per_s
        # Ranks have their siblings from srun, and are no other runs.
        self._has_siblings = own_process and ranks_of(execution) == 1
        self._beside = _siblings() if self._has_siblings else None
        self._memory = PeakMemory(execution) if own_process or execution.device != "cpu" else None
        self._peak_bytes: int | None = None

    def facts(self) -> dict[str, Any]:
        """For the record's provenance, once training has ended: what was predicted, and what came of it."""
        self._peak_bytes = None if self._memory is None else self._memory.peak_bytes()
        return {
            "device_name": self._device_name,
            "predicted_memory_bytes": self._predicted_bytes,
            "peak_memory_bytes": self._peak_bytes,
            "preflight_tokens_per_s": self._preflight_tokens_per_s,
        }

    def publish(self, run_id: str, observer: _Observer, log: _Log) -> None:
        """For plans to come, if this attempt made steps enough. A store that is full is no reason to fail: the run has
        its record."""
        if observer.own_steps < _STEPS_TO_MEASURE:
            return
        beside = [n for n in (self._beside, _siblings() if self._has_siblings else None) if n is not None]
        kernels, torch_version = made_with(self._execution)
        measured = Measured(
            device_name=self._device_name,
            tokens_per_s=observer.tokens_per_s,
            peak_memory_bytes=self._peak_bytes,
            predicted_memory_bytes=self._predicted_bytes,
            source="runs",
            run_id=run_id,
            kernels=kernels,
            torch=torch_version,
            beside=max(beside, default=None),
        )
        try:
            publish_measurement(self._store, self._run, self._execution, measured)
        except (OSError, ValueError) as error:
            log(f"its speed is not kept: {error}")


def _siblings() -> int | None:
    """How many other processes this one's parent has, as a pool's runs have one parent; None where nobody tells."""
    found, parent = 0, os.getppid()
    try:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                # After the name, which may hold anything: state, parent.
                state, of = (process / "stat").read_text().rpartition(")")[2].split()[:2]
                found += int(of) == parent and state not in "ZX" and int(process.name) != os.getpid()
    except OSError:
        return None
    return found if Path("/proc/self/stat").exists() else None


def made_with(execution: ExecSpec) -> tuple[str, str | None]:
    """The kernels that a run would take here, in words with their packages' versions, and PyTorch's version.

    Raises ConfigError where the device or the kernels cannot be had.
    """
    if execution.device == "cpu":
        return "torch", package_version("torch")
    import torch

    from hybrid.ops.kernels import select

    taken = select(execution.kernels, torch.device(execution.device))
    packages = {"triton": "mamba_ssm", "causal_conv1d": "causal_conv1d", "flash_attn": "flash_attn"}
    versions = {
        kernels: package_version(packages[kernels]) for kernels in asdict(taken).values() if kernels in packages
    }
    words = (f"{what} {kernels} {versions.get(kernels) or ''}".strip() for what, kernels in asdict(taken).items())
    return ", ".join(words), package_version("torch")


def device_name(execution: ExecSpec) -> str:
    """What torch calls the GPU that a run would use, or the name of the processor.

    Raises ConfigError where there is no such device.
    """
    if execution.device == "cpu":
        return processor()
    import torch

    from hybrid.train.loop import numerics

    with numerics(execution, seed=0):
        return str(torch.cuda.get_device_name(execution.device))


def preflight_one(run: RunSpec, execution: ExecSpec, done: Callable[[str], object]) -> Measured:
    """Three steps of the run on random tokens: see `hybrid.train.preflight`. `done` is told of each, in a line.

    In a process of its own. Raises ConfigError where there is no such device, and whatever goes wrong.
    """
    from hybrid.train.preflight import STEPS, PeakMemory, StepTime, timed_steps, tokens_per_s

    outside.load(execution.mixers)  # this process may not be the one that read the configuration
    predicted = train_memory(run, execution).total_bytes
    name = device_name(execution)
    kernels, torch_version = made_with(execution)
    memory = PeakMemory(execution)

    def tell(step: int, time: StepTime) -> None:
        part = "" if time.sequences == run.batch_size else f" with {time.sequences} of {run.batch_size} sequences"
        done(f"step {step + 1} of {STEPS}{part}: {time.forward_backward_s + time.update_s:.3g} s")

    timed = timed_steps(run, execution, done=tell)
    return Measured(
        device_name=name,
        tokens_per_s=tokens_per_s(run, timed.steps),
        peak_memory_bytes=memory.peak_bytes(),
        predicted_memory_bytes=predicted,
        source="preflight",
        run_id=None,
        kernels=kernels,
        torch=torch_version,
        validation_s=timed.validation_s,
    )


# --- failures -----------------------------------------------------------------------------------


def _record_failure(attempt: Attempt, error: BaseException, stop: StopFlag) -> None:
    if isinstance(error, Busy):
        return  # the attempt that took over speaks for the run now
    described = describe_failure(error)
    if isinstance(error, Stopped):
        described |= _describe_stop(error, stop)
    with contextlib.suppress(OSError):
        publish(attempt.directory / "error.json", json.dumps(described) + "\n")


def describe_failure(error: BaseException) -> dict[str, Any]:
    """What an attempt's error.json says of the exception that ended it; of another rank's failure, what that said."""
    described = {
        "class": classify(error),
        "message": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
        "at": now(),
    }
    if isinstance(error, RankLostError):
        return described | {"class": "unknown", **(error.failure or {}), "message": str(error), "rank": error.rank}
    return described


def _describe_stop(stopped: Stopped, stop: StopFlag) -> dict[str, Any]:
    """What else it says of a run that saved and stopped: why, as the scheduler has it, in a job of the scheduler's."""
    told = {"step": stopped.step, "known": False}
    if in_slurm.here() is None:
        return {"stopped": told}
    ending = in_slurm.ending(stop.signal)
    message = f"{stopped} ({ending.words})"
    return {"class": ending.error_class, "message": message, "stopped": {**told, "known": ending.is_known}}


# --- evaluation ---------------------------------------------------------------------------------


def evaluate_one(store: Store, run: RunSpec, execution: ExecSpec) -> list[dict[str, Any]]:
    """Evaluations of a finished run, each a record of its own: the validation loss over the whole split; of a model
    with gated intra-hybrid blocks, how they weigh their modules, by block and position.

    Asking twice evaluates once. Raises StoreError where the run is not done or its weights are gone.
    """
    return [_evaluate(store, run, execution, spec) for spec in _eval_specs(run)]


def is_evaluated(store: Store, run: RunSpec) -> bool:
    """Whether `evaluate_one` has nothing left to do. Raises StoreError where a record is damaged."""
    return all(store.eval_record(identify(run), eval_id(spec)) is not None for spec in _eval_specs(run))


def _eval_specs(run: RunSpec) -> list[EvalSpec]:
    gated = any(isinstance(block.mixer, IntraSpec) and block.mixer.scalar == "gate" for block in run.model.blocks)
    return [NllEvalSpec(), *([ModuleWeightsEvalSpec()] if gated else [])]


def _evaluate(store: Store, run: RunSpec, execution: ExecSpec, spec: EvalSpec) -> dict[str, Any]:
    run_id, evaluation = identify(run), eval_id(spec)
    store.check_spec(run_id, run)
    known = store.eval_record(run_id, evaluation)
    if known is not None:
        return known
    weights = _final_weights(store, run, "evaluate")
    from hybrid.data import open_data
    from hybrid.train.checkpoint import load_final_weights
    from hybrid.train.loop import build_model, numerics

    data = open_data(run.data, run.seq_len, store.data_root)
    began = time.monotonic()
    with numerics(execution, run.init_seed):
        model = build_model(run, execution)
        load_final_weights(weights, model)
        metrics = _measured(model, data, run, execution, spec)
    store.publish_eval_record(
        run_id,
        evaluation,
        {
            "schema": RECORD_SCHEMA,
            "run_id": run_id,
            "eval": canonical(spec),
            "metrics": metrics,
            "provenance": provenance(store, run, execution)
            | {"user": _user(), "slurm": in_slurm.here(), "wall_s": time.monotonic() - began, "finished_at": now()},
        },
    )
    made = store.eval_record(run_id, evaluation)
    assert made is not None
    return made


def _measured(
    model: "LanguageModel", data: "DataSource", run: RunSpec, execution: ExecSpec, spec: EvalSpec
) -> dict[str, Any]:
    from hybrid.evals.module_weights import mean_module_weights
    from hybrid.evals.nll import evaluate_nll, evaluation_batch_size

    batch_size = evaluation_batch_size(execution, run.seq_len)
    match spec:
        case NllEvalSpec():
            result = evaluate_nll(model, data, max_examples=spec.max_examples, batch_size=batch_size, dtype=run.dtype)
            return asdict(result)
        case ModuleWeightsEvalSpec():
            blocks, mean_KL = mean_module_weights(
                model, data, max_examples=spec.max_examples, batch_size=batch_size, dtype=run.dtype
            )
            return {
                "gated_blocks": list(blocks),
                "attention_weight": [round(float(mean), 6) for mean in mean_KL.mean(1)],
                "attention_weight_by_position": [[round(w, 6) for w in row] for row in mean_KL.tolist()],
            }


def _final_weights(store: Store, run: RunSpec, purpose: str) -> Path:
    """Where a finished run's weights are.

    Raises StoreError where it is not done, they are gone, or a mixer's file is not the one that it was trained with.
    """
    run_id = identify(run)
    record = store.record(run_id)
    if record is None or record["status"] != "done":
        raise StoreError(
            f"run {run_id}: {store.status(run_id)}: expected a finished run to {purpose}; train it first (mode=run)"
        )
    _compare_sources(run, record["provenance"].get("mixers", {}), "this run was trained")
    weights = store.weights_path(run_id, record["attempt"])
    if not weights.exists():
        raise StoreError(
            f"{weights}: missing: the run is done, but its final weights are gone; "
            f"move {store.run_dir(run_id)} away to have it trained again"
        )
    return weights


def _keep_to_one_source(attempts: Attempts, what: str, run: RunSpec, attempt: Attempt) -> None:
    """All attempts at a run with outside mixers use the same files, to the byte; kept beside each attempt's job."""
    hashes = outside.source_hashes(run.model)
    if hashes:
        _compare_with_attempts(attempts, attempt.number - 1, what, run)
        publish(attempt.directory / _SOURCES, json.dumps(hashes) + "\n")


def _compare_with_attempts(attempts: Attempts, last: int, what: str, run: RunSpec) -> None:
    """Raises StoreError where one of the attempts, to the number `last`, used other files for the run's mixers."""
    if not outside.source_hashes(run.model):
        return
    for number in range(1, last + 1):
        earlier = attempts.path(number) / _SOURCES
        if earlier.exists():
            _compare_sources(run, json.loads(earlier.read_text()), f"attempt {number} at this {what} was made")


def _compare_sources(run: RunSpec, earlier: Mapping[str, str], what: str) -> None:
    for mixer, digest_now in outside.source_hashes(run.model).items():
        if earlier.get(mixer, digest_now) != digest_now:
            raise StoreError(
                f"outside mixer {mixer}: its file has changed since {what} (SHA-256 {earlier[mixer][:12]}, now "
                f"{digest_now[:12]}); expected that file, or a raised version for the new one"
            )


# --- generation ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """The `generate` settings. `temperature` 0 takes the likeliest token; `top_k` and `top_p` null keep all of them."""

    prompt: str
    tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int

    def check(self) -> None:
        """Raises ConfigError for values that mean nothing, all of them at once."""
        problems = []
        if self.tokens < 1:
            problems.append(f"generate.tokens = {self.tokens}: expected at least 1")
        if self.temperature < 0:
            problems.append(f"generate.temperature = {self.temperature}: expected 0 (always the likeliest) or more")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"generate.top_k = {self.top_k}: expected at least 1, or null for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"generate.top_p = {self.top_p}: expected above 0 and at most 1, or null for all tokens")
        if not 0 <= self.seed < 2**32:
            problems.append(f"generate.seed = {self.seed}: expected a whole number from 0 to 2**32 - 1")
        if problems:
            raise ConfigError(problems)


def generate_one(
    store: Store, run: RunSpec, execution: ExecSpec, settings: GenerateConfig, write: Callable[[str], object]
) -> None:
    """Have a finished run continue the prompt, and `write` the text in pieces as they come, the prompt first.

    It ends where a document does, or after `settings.tokens`; bytes that are no UTF-8 become U+FFFD. Raises
    ConfigError where the run's data are no text, StoreError where it is not done or its weights are gone.
    """
    if not isinstance(run.data, StdlibSpec):
        raise ConfigError(
            f"mode = generate: data.kind = {run.data.kind}: expected a run on text, whose tokens are bytes: data=stdlib"
        )
    run_id = identify(run)
    store.check_spec(run_id, run)
    weights = _final_weights(store, run, "generate from")
    import torch

    from hybrid.data.shards import BOS, EOS
    from hybrid.evals.nll import autocast
    from hybrid.generate import stream
    from hybrid.train.checkpoint import load_final_weights
    from hybrid.train.loop import build_model, numerics

    # What the command line could not decode is passed on as the bytes that it was.
    prompt = settings.prompt.encode("utf-8", "surrogateescape")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with numerics(execution, run.init_seed):
        model = build_model(run, execution)
        load_final_weights(weights, model)
        device = model.embedding.device
        tokens = stream(
            model,
            torch.tensor([[BOS, *prompt]], device=device),
            settings.tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
            stop_tokens=(BOS, EOS),
            vocab_size=run.data.vocab_size,  # the model may have room for more
            state_dtype=torch.bfloat16 if run.dtype == "bfloat16" else torch.float32,
        )
        write(decoder.decode(prompt))
        with autocast(run.dtype, device):
            for token in map(int, tokens):
                if token not in (BOS, EOS):
                    write(decoder.decode(bytes([token])))
    write(decoder.decode(b"", final=True))
