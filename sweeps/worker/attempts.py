"""An attempt from its claim to its end: what it says of itself, its log and metrics, and how it failed."""

import contextlib
import json
import os
import platform
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from hybrid import outside
from hybrid.decode import encode
from hybrid.spec import ExecSpec, RunSpec
from hybrid.train.place import RankLostError
from sweeps import in_slurm
from sweeps.provenance import command
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Attempt, Attempts, StoreError, now, publish, this_process, user_name
from sweeps.triage import classify, find_out
from sweeps.worker.claims import LEASE_LOST, Busy, Heart, check_there, take_next

if TYPE_CHECKING:
    from hybrid.train.loop import Origin
    from hybrid.train.parallel import Ranks

_SOURCES = "mixers.json"
Log = Callable[[str], None]


class Progress(Protocol):
    """Where a run's progress goes."""

    def __call__(self, step: int, total_steps: int, loss_nats: float | None, tokens_per_s: float) -> None: ...


class Observer:
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


def describe_job(execution: ExecSpec, submission: int | None = None) -> dict[str, Any]:
    """Who makes an attempt, and how."""
    return {
        **this_process(),
        "user": user_name(),
        "slurm": in_slurm.here(submission),
        "lease_s": execution.lease_s,
        "started_at": now(),
        "command": command(),
        "exec": encode(execution),
    }


def make_attempt(
    attempts: Attempts,
    attempt: Attempt,
    what: str,
    job: Mapping[str, Any],
    execution: ExecSpec,
    lost: Callable[[], bool],
    work: Callable[[Observer, Log], str],
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
            Heart(attempt, execution.heartbeat_s, lost, stop),
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
                status = work(Observer(attempt, lines, log, stop, progress), log)
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


@contextlib.contextmanager
def interruptions(attempts: Attempts, what: str) -> Iterator[None]:
    """What the loop calls interrupted is busy where the lease was lost, and stopped where it was asked to."""
    from hybrid.train.loop import Interrupted

    try:
        yield
    except Interrupted as interrupted:
        if interrupted.reason == LEASE_LOST:
            raise Busy(attempts.job(attempts.last()), what) from interrupted
        raise Stopped(str(interrupted), interrupted.step) from interrupted


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
    attempt = take_next(attempts, what, finished, execution.lease_s, stop)
    if attempt is None:
        return False
    before = attempts.error(attempt.number - 1) or {}
    publish(attempt.directory / "job.json", json.dumps(describe_job(execution, submission)) + "\n")
    error = {"class": before.get("class", "unknown"), "message": message, "gave_up": True, "at": now()}
    publish(attempt.directory / "error.json", json.dumps(error) + "\n")
    return True


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


def keep_to_one_source(attempts: Attempts, what: str, run: RunSpec, attempt: Attempt) -> None:
    """All attempts at a run with outside mixers use the same files, to the byte; kept beside each attempt's job."""
    hashes = outside.source_hashes(run.model)
    if hashes:
        compare_with_attempts(attempts, attempt.number - 1, what, run)
        publish(attempt.directory / _SOURCES, json.dumps(hashes) + "\n")


def compare_with_attempts(attempts: Attempts, last: int, what: str, run: RunSpec) -> None:
    """Raises StoreError where one of the attempts, to the number `last`, used other files for the run's mixers."""
    if not outside.source_hashes(run.model):
        return
    for number in range(1, last + 1):
        earlier = attempts.path(number) / _SOURCES
        if earlier.exists():
            compare_sources(run, json.loads(earlier.read_text()), f"attempt {number} at this {what} was made")


def compare_sources(run: RunSpec, earlier: Mapping[str, str], what: str) -> None:
    for mixer, digest_now in outside.source_hashes(run.model).items():
        if earlier.get(mixer, digest_now) != digest_now:
            raise StoreError(
                f"outside mixer {mixer}: its file has changed since {what} (SHA-256 {earlier[mixer][:12]}, now "
                f"{digest_now[:12]}); expected that file, or a raised version for the new one"
            )
