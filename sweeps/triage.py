"""Why an attempt came to no result: one class of failure, from exception, log and scheduler together.

An attempt that could says itself how it ended, in error.json. What died without a word, and what the scheduler knows
better, gets a triage.json beside it from whoever finds out first; error.json stays as it is.
"""

import contextlib
import errno
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, assert_never

from sweeps.scheduler import SchedulerError, Slurm, clean_environment
from sweeps.stopping import Stopped
from sweeps.store import Attempts, StoreError, now, publish, this_process
from sweeps.text import amount

ErrorClass = Literal["oom", "timeout", "node_fail", "preempted", "cancelled", "code", "io", "unknown"]
CLASSES: tuple[ErrorClass, ...] = ("oom", "timeout", "node_fail", "preempted", "cancelled", "code", "io", "unknown")

_SACCT_TIMEOUT_S = 20.0
_LOG_TAIL_BYTES = 8192
_FULL = 0.95  # of the memory asked for: sacct samples it, and never sees the last allocation

# What the C++ and CUDA sides of torch, NCCL, gloo and safetensors say inside a RuntimeError or one of their own.
_SAID: tuple[tuple[ErrorClass, str], ...] = (
    (
        "oom",
        r"out of memory|DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory|std::bad_alloc"
        r"|CUBLAS_STATUS_ALLOC_FAILED|oom[-_ ]kill",
    ),
    (
        "io",
        r"No space left on device|Disk quota exceeded|Read-only file system|Input/output error|Stale file handle"
        r"|PytorchStreamWriter failed writing|os error (5|28|30|116|122)\b",
    ),
    (
        "node_fail",
        r"ECC error|fallen off the bus|Connection (closed|reset) by peer|Socket Timeout|Broken pipe \[.*gloo"
        r"|collective operation timeout|Timed out (after )?.*waiting|wait timeout after|remote process exited"
        r"|DistNetworkError|DistBackendError|DistStoreError|gloo/transport",
    ),
)
_ERRNOS: Mapping[int, ErrorClass] = {errno.ENOMEM: "oom"}


def classify(error: BaseException) -> ErrorClass:
    """The class of a failure, from the exception alone."""
    if isinstance(error, Stopped | KeyboardInterrupt):
        return "cancelled"
    if isinstance(error, MemoryError):
        return "oom"
    said = classify_text(f"{type(error).__name__}: {error}")
    if said is not None:
        return said
    if isinstance(error, OSError):
        return _ERRNOS.get(error.errno or 0, "io")
    return "io" if isinstance(error, StoreError) else "code"


def classify_text(text: str) -> ErrorClass | None:
    """The class that a message or the end of a log speaks of; None where it speaks of none."""
    return next((found for found, pattern in _SAID if re.search(pattern, text, re.IGNORECASE)), None)


# --- what the scheduler knows -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How one life of a job ended; a job that is queued again has several. `state` is the first word of Slurm's.

    `peak_bytes` is the largest of its steps', as sampled, `asked_bytes` the memory that it asked for, on a node.
    """

    state: str
    by: str
    node: str
    exit_code: int | None
    signal: int | None
    peak_bytes: int | None = None
    asked_bytes: int | None = None

    @property
    def is_over(self) -> bool:
        return self.state not in ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "STOPPED")


def job_end(facts: Mapping[str, Any]) -> JobEnd | None:
    """What sacct, or without it the controller, has of the life of a job that an attempt's job.json tells of.

    None where neither knows it, or can be asked.
    """
    columns = "JobIDRaw,State,ExitCode,NodeList,MaxRSS,ReqMem"
    job_id = str(facts["job_id"])
    try:
        done = subprocess.run(
            ["sacct", "--noheader", "--parsable2", "--duplicates", f"--format={columns}", "-j", job_id],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SACCT_TIMEOUT_S,
            check=False,
        )
        lives = read_lives(done.stdout, job_id) if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        lives = []
    life = int(facts.get("restart_count") or 0)
    if life < len(lives):
        return lives[life]
    return _of_controller(facts, life)


def _of_controller(facts: Mapping[str, Any], life: int) -> JobEnd | None:
    from sweeps.in_slurm import name

    shown: dict[str, str] = {}
    slurm = Slurm.find()
    with contextlib.suppress(SchedulerError):
        shown = {} if slurm is None else slurm.show(name(facts))
    if not shown:
        return None
    if int(shown.get("Restarts") or 0) > life:
        return JobEnd(state="REQUEUED", by="", node=str(facts.get("node") or ""), exit_code=None, signal=None)
    code, _, number = shown.get("ExitCode", "").partition(":")
    return JobEnd(
        state=shown.get("JobState", "").partition(" ")[0],
        by="",
        node=shown.get("NodeList", ""),
        exit_code=int(code) if code.isdecimal() else None,
        signal=int(number) if number.isdecimal() else None,
    )


def read_lives(text: str, job_id: str) -> list[JobEnd]:
    """The lives of the job with this raw id, oldest first, from lines of sacct as `job_end` asks for them."""
    lives: list[JobEnd] = []
    for row in text.splitlines():
        raw, state, status, node, peak, asked = row.split("|")
        if raw == job_id:
            word, _, by = state.partition(" by ")
            code, _, number = status.partition(":")
            lives.append(
                JobEnd(
                    state=word.split()[0].rstrip("+"),
                    by=by,
                    node=node,
                    exit_code=int(code) if code.isdecimal() else None,
                    signal=int(number) if number.isdecimal() else None,
                    asked_bytes=_bytes(asked),
                )
            )
        elif raw.startswith(f"{job_id}.") and lives:
            lives[-1] = _with_step(lives[-1], state, status, _bytes(peak))
    return lives


def _with_step(life: JobEnd, state: str, status: str, peak_bytes: int | None) -> JobEnd:
    """A life with what one of its steps adds: memory, and that this ran out where only the step was told so."""
    values = asdict(life)
    values["peak_bytes"] = max((b for b in (life.peak_bytes, peak_bytes) if b is not None), default=None)
    if state.startswith("OUT_OF_ME") and life.is_over:
        values["state"] = "OUT_OF_MEMORY"
    number = status.partition(":")[2]
    if life.state == "FAILED" and not life.signal and number.isdecimal() and int(number):
        values["signal"] = int(number)  # of the process; the script around it only gives its exit code
    return JobEnd(**values)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _bytes(text: str) -> int | None:
    """1234K, 512M, 2.5Gn or 4Gc as sacct has them; None for none."""
    found = re.fullmatch(r"([\d.]+)([KMGT]?)[nc]?", text)
    return None if found is None else int(float(found[1]) * _UNITS[found[2]])


# --- all together -------------------------------------------------------------------------------


def classify_ended(
    end: JobEnd | None, log_tail: str, error: Mapping[str, Any] | None = None
) -> tuple[ErrorClass, str] | None:
    """The class of an attempt that is over, with words; None where the scheduler knows no better than `error` says."""
    if error is not None:
        return None if end is None else _better_known(end, error)
    if end is not None:
        found = _by_state(end)
        if found is not None:
            return found
    said = classify_text(log_tail)
    if said is not None:
        return said, _said_last(log_tail)
    if end is None:
        return "unknown", "it died without a word, and no scheduler knows of it"
    return _by_signal(end)


def _by_state(end: JobEnd) -> tuple[ErrorClass, str] | None:
    """What the state of a job alone makes certain."""
    match end.state:
        case "OUT_OF_MEMORY":
            return "oom", f"out of memory on {end.node}{_memory(end)}"
        case "TIMEOUT" | "DEADLINE":
            return "timeout", "its time limit was reached before it had saved"
        case "NODE_FAIL" | "BOOT_FAIL" | "LAUNCH_FAILED":
            return "node_fail", f"node {end.node} failed"
        case "PREEMPTED":
            return "preempted", "preempted before it had saved"
        case "REQUEUED" | "PENDING":
            return "preempted", f"queued again before it had saved (it was on {end.node or 'a node'})"
        case "CANCELLED" | "REVOKED":
            return "cancelled", f"cancelled{f' by user {end.by}' if end.by else ''}"
        case _:
            return None


def _by_signal(end: JobEnd) -> tuple[ErrorClass, str]:
    """A job that failed by itself, and whose log says nothing."""
    number = end.signal or max((end.exit_code or 0) - 128, 0)
    full = end.peak_bytes is not None and end.asked_bytes is not None and end.peak_bytes >= _FULL * end.asked_bytes
    if number == 9 and full:
        return "oom", f"killed{_memory(end)}"
    where = f"on {end.node}" if end.node else "there"
    if number == 9:
        return (
            "unknown",
            f"killed by signal 9 without a word{_memory(end)}: by a person, or out of memory (dmesg {where})",
        )
    if number == 7:
        return "unknown", f"killed by a bus error: look for a full disk or /dev/shm under a mapped file {where}"
    if number in (4, 6, 8, 11):
        return "code", f"crashed with signal {number}"
    if number:
        return "unknown", f"killed by signal {number} {where}"
    told = f"it ended without a word; Slurm says {end.state}, exit code {end.exit_code}"
    return "unknown", f"{told}: see what its task printed, and whether the store's disk is full"


def _better_known(end: JobEnd, error: Mapping[str, Any]) -> tuple[ErrorClass, str] | None:
    """What the scheduler knows better than the attempt, which told what it saw."""
    own: ErrorClass = error.get("class", "unknown")
    found = _by_state(end)
    if found is None or found[0] == own:
        return None
    match found[0]:
        case "oom" | "node_fail":
            return found  # what else went wrong came of it
        case "timeout" | "preempted" | "cancelled":
            # It was told to stop and could not know why; what it failed of by itself came before.
            return (
                found if own in ("timeout", "preempted", "cancelled", "unknown") and end.state != "REQUEUED" else None
            )
        case "code" | "io" | "unknown":
            return None
        case _ as never:
            assert_never(never)


def _memory(end: JobEnd) -> str:
    if end.peak_bytes is None:
        return ""
    asked = f" of {amount(end.asked_bytes, binary=True)}B asked for" if end.asked_bytes else ""
    return f" (it was last seen with {amount(end.peak_bytes, binary=True)}B{asked})"


def _said_last(log_tail: str) -> str:
    """The line of a log that tells of a class."""
    lines = [line for line in log_tail.splitlines() if classify_text(line) is not None]
    return lines[-1].strip()[:300]


# --- written down -------------------------------------------------------------------------------


def find_out(attempts: Attempts, number: int) -> dict[str, Any] | None:
    """How an attempt ended, the scheduler asked if it was a job's and was not asked before; in words of `error`.

    Only of attempts that are over: whose lease is dead, or which said so. What comes of it is written down beside the
    attempt, once, if the scheduler has the job's end by then. None where the attempt came to a result, or where the
    scheduler says that the job lives.
    """
    error, directory = attempts.error(number), attempts.path(number)
    if (directory / "triage.json").exists() or (error is None and attempts.ended(number)):
        return error
    job = attempts.job(number)
    facts = None if job is None else job.get("slurm")
    if error is not None and (facts is None or error.get("stopped", {}).get("known")):
        return error
    end = None if facts is None else job_end(facts)
    if end is not None and not end.is_over:
        return error
    found = None if error is not None else _host_restarted(job)
    found = found or classify_ended(end, _log_tail(attempts, number), error)
    if end is None and (found is None or found[0] == "unknown"):
        return error or (None if found is None else {"class": found[0], "message": found[1]})  # another time, perhaps
    error_class, message = found or ((error or {}).get("class", "unknown"), "")
    known = {"class": error_class, "message": message, "job": None if end is None else asdict(end), "at": now()}
    with contextlib.suppress(OSError):
        publish(directory / "triage.json", json.dumps(known) + "\n")
    return attempts.error(number) or known


def _host_restarted(job: Mapping[str, Any] | None) -> tuple[ErrorClass, str] | None:
    here = this_process()
    if job is None or job.get("slurm") is not None or job.get("host") != here["host"] or not here["boot_id"]:
        return None
    return ("node_fail", f"{here['host']} was restarted") if job.get("boot_id") not in (None, here["boot_id"]) else None


def _log_tail(attempts: Attempts, number: int) -> str:
    try:
        with open(attempts.path(number) / "log.txt", "rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - _LOG_TAIL_BYTES, 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
