"""Who trains a run: attempts are claimed, a lease is kept, and one that is silent is taken over."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sweeps import in_slurm
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Attempt, Attempts, Store, StoreError, owner_alive

_POLL_S = 0.2
LEASE_LOST = "another copy has taken it over"


class Busy(Exception):
    """Another copy of the run, or trunk, is alive; nothing is to be done here."""

    def __init__(self, job: Mapping[str, Any] | None, what: str = "run") -> None:
        self.job = job
        where = f"by {job['host']}, process {job['pid']}" if job else "elsewhere"
        if job and job.get("slurm") is not None:
            where = f"by job {in_slurm.name(job['slurm'])} on {job['slurm'].get('node')}"
        super().__init__(f"the {what} is being trained {where}")


def take(store: Store, run_id: str, lease_s: float, stop: StopFlag) -> Attempt | None:
    """Claim the run's next attempt; None where it is finished. Waits out a lease that may be dead.

    A lease is dead at once where its process is seen to be gone, else when its counter has stood still for `lease_s`
    (or the owner's own lease, if longer) on this process's monotonic clock. Raises Busy as soon as the counter moves,
    but waits for a copy that this very job left behind when Slurm queued it again: nobody else would train the run.
    Raises Stopped when asked to stop.
    """
    return take_next(store.attempts(run_id), "run", store.record_path(run_id).exists, lease_s, stop)


def take_next(
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


class Heart(threading.Thread):
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
                    self._stop_flag(LEASE_LOST)

    def _write(self, text: str) -> None:
        """In place: on a disk that is full, what is cut off first could not be written again."""
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(handle, text.encode(), 0)
        finally:
            os.close(handle)

    def __enter__(self) -> "Heart":
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
