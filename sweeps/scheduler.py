"""Slurm as its own commands tell it: what became of jobs, and what can be asked of it.

Every command runs without the variables that would change what it does (SQUEUE_FORMAT, SBATCH_PARTITION, those of a job
around it), but for those that say where Slurm is, and in no language but Slurm's own.

Whether a job is over, squeue alone says. sacct adds how those ended that the controller has forgotten (after MinJobAge,
five minutes unless told): it may lag, be missing, or hold jobs for running that ended when nobody listened.
"""

import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

COMMAND_TIMEOUT_S = 60.0
REMEMBERED_DAYS = 30
"""How far back a job is looked for by its name alone."""

_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
_DROPPED = ("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT", "SCANCEL_", "SCONTROL_", "SPRIO_")
_ENDED = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "DEADLINE"),
        *("BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED", "UNKNOWN"),
    }
)
"""UNKNOWN is our own word: the controller has forgotten the job, and sacct does not know its end."""

_UNKNOWN_JOB = re.compile(r"Invalid job id specified|Job \S+ not found", re.IGNORECASE)
_UNCERTAIN = re.compile(r"timed? ?out|Zero Bytes|Unable to contact|Unexpected message|communication|connection", re.I)
_KEY = re.compile(r"(?:^| )([A-Z][\w/:]*)=")
_NOBODY = frozenset({"", "None", "None assigned", "(null)", "N/A", "Unknown"})

# Only the last may hold a "|": the name, which is the user's.
_SQUEUE = "JobArrayID:|,JobID:|,State:|,Reason:|,NodeList:|,TimeLeft:|,RestartCnt:|,exit_code:|,Name:|"
_SACCT = "JobID,JobIDRaw,State,ExitCode,NodeList,JobName"


class SchedulerError(RuntimeError):
    """A command of the scheduler's failed, is missing or did not answer; the message says which, and what would do."""


class NoAnswerError(SchedulerError):
    """It is not known whether the scheduler did what it was asked: it did not answer in time, or not at all."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job, or one element of an array, as it was last known.

    `job_id` is what scancel and scontrol take: 1234_5, or 1234. `raw_id` is the element's SLURM_JOB_ID, "" where it has
    none yet. `state` is the first word of Slurm's. `time_left_s` is None unless it runs within a limit, `exit_code` and
    `signal` unless it has ended.
    """

    job_id: str
    raw_id: str
    name: str
    state: str
    reason: str
    node: str
    time_left_s: float | None
    exit_code: int | None
    signal: int | None
    restarts: int | None

    @property
    def is_active(self) -> bool:
        """Whether it will run, runs, or is ending but not over; requeued and held ones will run."""
        return self.state not in _ENDED

    @property
    def is_pending(self) -> bool:
        """Whether it waits to be started, for the first time or again."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """A cluster's name, "" where it has none. `max_array_size`: an array's largest index is one less; 0: it has no
    arrays. `hides_jobs`: users are not shown those of others."""

    cluster: str
    max_array_size: int
    hides_jobs: bool


_FACTS = ("ClusterName", "MaxArraySize", "PrivateData")


class Slurm:
    """The Slurm cluster that the commands on the PATH speak to. Everything may raise SchedulerError."""

    @classmethod
    def find(cls) -> "Slurm | None":
        """None where there is no sbatch or squeue on the PATH."""
        return cls() if shutil.which("sbatch") and shutil.which("squeue") else None

    def jobs(self, array_ids: Iterable[str]) -> dict[str, Job]:
        """Every element, by its `job_id`, that squeue or sacct knows of these (array) jobs. One call each.

        One that is missing is over: the controller, which answered, has no such element. Where sacct knows no more of
        an array than that it ended (cancelled before it was seen), that stands under the array's own id.
        """
        asked = ",".join(sorted({id_ for id_ in array_ids if id_.isdecimal()}, key=int))
        if not asked:
            return {}
        # Both at once: sacct takes its time.
        history = _started("sacct", "--noheader", "--parsable2", "-D", "-X", f"--format={_SACCT}", "-j", asked)
        try:
            queue = _run(
                "squeue", "--noheader", "-a", "-r", "-t", "all", "-O", _SQUEUE, "-j", asked, unknown_is_empty=True
            )
        except BaseException:
            _stop(history)
            raise
        found = {**read_sacct(_output(history)), **read_squeue(queue)}
        # For a moment after an array was submitted, sacct takes it for a job that is none.
        arrays = {array for array, element, _ in (id_.partition("_") for id_ in found) if element}
        return {id_: job for id_, job in found.items() if id_ not in arrays}

    def named(self, job_name: str) -> str | None:
        """The id of the (array) job of this name, the newest if there are several; None where nobody knows of one."""
        queue = _run("squeue", "--noheader", "-a", "-t", "all", "--name", job_name, "-O", "ArrayJobID:|,JobID:|,Name:|")
        rows = [row.split("|", 2) for row in queue.splitlines()]
        ids = [array if array.isdecimal() else job for array, job, name in rows if _name(name) == job_name]
        if not ids:
            # Whatever their states; but those that never began are not told, and nothing is lost with them.
            wanted = ("-S", f"now-{REMEMBERED_DAYS}days", "--format=JobID,JobName", "--name", job_name)
            records = _output(_started("sacct", "-n", "-P", "-X", "-D", "-a", *wanted)).splitlines()
            ids = [row.partition("|")[0].partition("_")[0] for row in records if row.partition("|")[2] == job_name]
        return max(ids, key=int, default=None)

    def facts(self) -> ClusterFacts:
        """What the controller says of its cluster."""
        config = _run("scontrol", "show", "config")
        found = {name: re.search(rf"^{name}\s*=\s*(.*?)\s*$", config, re.MULTILINE) for name in _FACTS}
        name, size, private = (None if match is None else match[1] for match in found.values())
        if size is None or not size.isdecimal():
            raise SchedulerError("scontrol show config: says no MaxArraySize: expected Slurm 20 or newer")
        return ClusterFacts(cluster=name or "", max_array_size=int(size), hides_jobs="jobs" in (private or ""))

    def show(self, job_id: str) -> dict[str, str]:
        """What the controller holds of a job (of an array: of one element); {} where it has forgotten it."""
        return read_show(_run("scontrol", "show", "job", "-o", job_id, unknown_is_empty=True))

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Those that have ended already stay as they are."""
        if job_ids:
            _run("scancel", *job_ids, unknown_is_empty=True)

    def requeue(self, job_id: str) -> None:
        """Beware: Slurm also requeues what has ended well, for as long as it remembers it."""
        _run("scontrol", "requeue", job_id)

    def submit(self, script: Path) -> str:
        """The id of the job that this script became. Raises NoAnswerError where it may have become one."""
        printed = _run("sbatch", "--parsable", str(script), own_language=True)
        job_id = printed.strip().rpartition("\n")[2].partition(";")[0]
        if not job_id.isdecimal():
            raise NoAnswerError(f"sbatch --parsable {script}: printed {printed.strip()!r}: expected a job id")
        return job_id

    def check(self, script: Path) -> None:
        """Raises SchedulerError where sbatch would refuse the script as it is."""
        _run("sbatch", "--test-only", str(script))

    def partitions(self) -> list[str]:
        """Names of the partitions that this user may know of."""
        return list(dict.fromkeys(_run("sinfo", "--noheader", "-a", "-o", "%R").split()))

    def qos(self) -> list[str] | None:
        """Names of the qualities of service; None where there is no accounting."""
        return _accounting("show", "qos", "format=name")

    def accounts(self) -> list[str] | None:
        """The accounts that this user may charge; None where there is no accounting, or it names none."""
        return _accounting("show", "assoc", f"user={_user()}", "format=account")


# --- commands -----------------------------------------------------------------------------------


def clean_environment() -> dict[str, str]:
    """This process's environment without what changes Slurm's commands, or belongs to a job around this process."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or not name.startswith(_DROPPED)}
    return {**kept, "LC_ALL": "C"}


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _run(*command: str, unknown_is_empty: bool = False, own_language: bool = False) -> str:
    """What a command prints. That it knows no such job is nothing, where that is wanted, and an error elsewhere.

    `own_language`: it passes its environment on to jobs, which speak the user's.
    """
    environment = clean_environment()
    if own_language:
        del environment["LC_ALL"]
        environment |= {name: os.environ[name] for name in ("LC_ALL",) if name in os.environ}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise SchedulerError(f"{command[0]}: not on the PATH: expected a machine that can reach Slurm") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(
            f"{_said(command)}: no answer in {COMMAND_TIMEOUT_S:.0f} s; is the controller up (scontrol ping)?"
        ) from error
    if done.returncode == 0 or (unknown_is_empty and _UNKNOWN_JOB.search(done.stderr)):
        return done.stdout
    told = "; ".join(line for line in done.stderr.splitlines() if line.strip()) or f"exit code {done.returncode}"
    kind = NoAnswerError if _UNCERTAIN.search(told) else SchedulerError
    raise kind(f"{_said(command)}: {told}")


def _said(command: Sequence[str]) -> str:
    text = shlex.join(command)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _started(*command: str) -> "subprocess.Popen[str] | None":
    """A command that is not missed where it does not exist."""
    try:
        return subprocess.Popen(
            command,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        return None


def _stop(process: "subprocess.Popen[str] | None") -> None:
    if process is not None:
        process.kill()
        process.communicate()


def _output(process: "subprocess.Popen[str] | None") -> str:
    """What it prints; nothing where it fails or takes too long."""
    if process is None:
        return ""
    try:
        printed = process.communicate(timeout=COMMAND_TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        _stop(process)
        return ""
    return printed if process.returncode == 0 else ""


def _accounting(*query: str) -> list[str] | None:
    names = _output(_started("sacctmgr", "--noheader", "--parsable2", *query)).split()
    return list(dict.fromkeys(names)) or None


# --- what they print ----------------------------------------------------------------------------


def read_squeue(text: str) -> dict[str, Job]:
    """Jobs by id from lines of `squeue -r -O`, as `Slurm.jobs` asks it."""
    found = {}
    for row in text.splitlines():
        job_id, raw, state, reason, node, left, restarts, status, name = row.split("|", 8)
        job = Job(
            job_id=job_id,
            raw_id=raw,
            name=_name(name),
            state=state,
            reason="" if reason in _NOBODY else reason,
            node="" if node in _NOBODY else node,
            time_left_s=seconds(left),
            exit_code=None,
            signal=None,
            restarts=int(restarts) if restarts.isdecimal() else None,
        )
        if not job.is_active:
            ended = int(status) if status.isdecimal() else None
            codes = (None, None) if ended is None else (ended >> 8, ended & 127)
            job = replace(job, reason="", time_left_s=None, exit_code=codes[0], signal=codes[1])
        elif job.is_pending:
            # Elements that were never started are shown under the array's id, which one of them will have in the end.
            never = raw == job_id.partition("_")[0] != job_id and not job.restarts
            job = replace(job, raw_id="" if never else raw, node="", time_left_s=None)
        else:
            job = replace(job, reason="")
        found[job_id] = job
    return found


def read_sacct(text: str) -> dict[str, Job]:
    """Jobs by id from lines of `sacct -D -X --parsable2`, as `Slurm.jobs` asks it: of each the last that is told.

    Meant for what the controller has forgotten: what is told as not ended is UNKNOWN.
    """
    found: dict[str, Job] = {}
    ranges: dict[str, Job] = {}
    starts: dict[str, int] = {}
    for row in text.splitlines():
        job_id, raw, state, status, node, name = row.split("|", 5)
        state = state.partition(" ")[0].rstrip("+")  # CANCELLED by 1000
        is_over = state in _ENDED
        code, _, number = status.partition(":")
        job = Job(
            job_id=job_id,
            raw_id=raw,
            name=name,
            state=state if is_over else "UNKNOWN",
            reason="" if is_over else f"the controller has forgotten it; sacct has it as {state}",
            node="" if node in _NOBODY else node,
            time_left_s=None,
            exit_code=int(code) if is_over and code.isdecimal() else None,
            signal=int(number) if is_over and number.isdecimal() else None,
            restarts=None,
        )
        array, bracket, indices = job_id.partition("_[")
        if bracket:
            # As it once was: some of these elements may have rows of their own.
            ranges |= {id_: replace(job, job_id=id_, raw_id="") for id_ in _elements(array, indices.rstrip("]"))}
            continue
        found[job_id] = replace(job, restarts=starts.get(job_id, 0))
        starts[job_id] = starts.get(job_id, 0) + 1
    return {**ranges, **found}


def read_show(text: str) -> dict[str, str]:
    """Keys and values of the first line of `scontrol show job -o`."""
    line = text.partition("\n")[0].rstrip()
    keys = list(_KEY.finditer(line))
    ends = [*(key.start() for key in keys), len(line)][1:]
    found: dict[str, str] = {}
    for key, end in zip(keys, ends, strict=True):
        # Names and comments of users come late, or could hold anything: the first of a key stands.
        found.setdefault(key[1], line[key.end() : end].strip())
    return found


def _elements(array: str, indices: str) -> Iterator[str]:
    """Ids of the elements that Slurm writes as 0-2,5,10-30:5%4."""
    for part in indices.partition("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found is None:
            continue  # cut short with "..." where there are very many
        first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
        yield from (f"{array}_{index}" for index in range(first, last + 1, step))


def _name(text: str) -> str:
    return text.removesuffix("|")


def seconds(text: str) -> float | None:
    """A time as Slurm writes it, [days-][[hours:]minutes:]seconds; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text)
    if found is None:
        return None
    total = 0
    for part in found[2].split(":"):
        total = total * 60 + int(part)
    return float(int(found[1] or 0) * 86400 + total)
