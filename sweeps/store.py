"""The results store: run directories, attempts, leases, records, requests. All paths are in one class.

    runs/ab/<run_id>/spec.json                  the canonical JSON of the RunSpec, published once
                     record.json                if and only if the run is done or diverged; published once by link(2)
                     attempts/001/job.json      who runs it: host, boot, pid and its start time, how
                                  heartbeat     a counter; unlinked when the attempt ends
                                  metrics.jsonl log.txt error.json
                     evals/<hash>/record.json   an evaluation of the finished run
    requests/<sweep>/<hash>.json                sweep, overrides and the cells they asked for
    format.json                                 the layout's version

Many nodes may write at once on a shared file system whose locks cannot be trusted. Two operations are relied on, both
atomic on local disks and on NFS: mkdir, which claims the next attempt, and link, which publishes a
finished file. Nothing that was published is ever modified.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeGuard

from hybrid.decode import canonical_json, digest
from hybrid.durable import inherit_group_write, make_dir, sync_dir
from hybrid.spec import ConfigError, RunSpec
from sweeps.identity import run_id as identify

FORMAT = 1
RECORD_SCHEMA = 1

Status = Literal["new", "running", "interrupted", "lost", "failed", "damaged", "done", "diverged"]
FinalStatus = Literal["done", "diverged"]
FINAL: tuple[FinalStatus, ...] = ("done", "diverged")
RESUMABLE_CLASSES = ("preempted", "cancelled", "timeout", "node_fail")


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message says which file, what is wrong, and what would do."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run that a request asks for, under the name that sets it apart there."""

    name: str
    row: str
    axes: Mapping[str, Any]
    seed: int | None
    run_id: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for: a sweep, the overrides that change its cells, and the cells. `created_at` is UTC, ISO
    8601."""

    sweep: str
    overrides: tuple[str, ...]
    created_at: str
    report: Mapping[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A claimed attempt at a run. Only its owner writes into `directory`."""

    run_id: str
    number: int
    directory: Path


class Store:
    """A results store under `root`; checkpoints and data shards may live elsewhere."""

    def __init__(self, root: Path, *, checkpoints: Path | None = None, data: Path | None = None) -> None:
        self.root = root
        self.checkpoints_root = checkpoints or root / "checkpoints"
        self.data_root = data or root / "data"

    # --- paths ---

    def run_dir(self, run_id: str) -> Path:
        return self.root / "runs" / run_id[:2] / run_id

    def spec_path(self, run_id: str) -> Path:
        return self.run_dir(run_id) / "spec.json"

    def record_path(self, run_id: str) -> Path:
        return self.run_dir(run_id) / "record.json"

    def attempt_dir(self, run_id: str, number: int) -> Path:
        return self.run_dir(run_id) / "attempts" / f"{number:03d}"

    def eval_record_path(self, run_id: str, eval_id: str) -> Path:
        return self.run_dir(run_id) / "evals" / eval_id / "record.json"

    def checkpoints_dir(self, run_id: str) -> Path:
        return self.checkpoints_root / run_id[:2] / run_id

    def weights_path(self, run_id: str, attempt: int) -> Path:
        """The final weights that an attempt wrote; those of the run are its record's `attempt`."""
        return self.checkpoints_dir(run_id) / f"final-a{attempt:03d}.safetensors"

    def requests_dir(self, sweep: str) -> Path:
        return self.root / "requests" / sweep

    # --- opening ---

    def check_format(self) -> None:
        """Raises StoreError if a newer version of this software wrote the store; a missing store is an empty one."""
        path = self.root / "format.json"
        try:
            found = json.loads(path.read_text())["format"]
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f'{path}: unreadable ({error}); expected {{"format": {FORMAT}}}') from error
        if found != FORMAT:
            raise StoreError(
                f"{path} says format {found}, this version reads format {FORMAT}: "
                "use the version of hybrid-ablations that wrote the store, or another store with store.root=DIR. "
                "Nothing was changed"
            )

    def prepare(self) -> None:
        """Make the store ready to be written to. Raises StoreError where it cannot be."""
        self.check_format()
        try:
            make_dir(self.root)
            publish(self.root / "format.json", json.dumps({"format": FORMAT}) + "\n")
        except OSError as error:
            raise StoreError(
                f"{self.root}: the store cannot be written to ({describe_os_error(error)}); {_REMEDY}"
            ) from error

    # --- runs ---

    def publish_spec(self, run: RunSpec) -> str:
        """Write the run's spec down if it is not there yet, compare it whole if it is; gives the run id.

        Raises StoreError where the id is taken by another spec.
        """
        run_id = identify(run)
        make_dir(self.run_dir(run_id))
        if not publish(self.spec_path(run_id), canonical_json(run) + "\n"):
            self.check_spec(run_id, run)
        return run_id

    def check_spec(self, run_id: str, run: RunSpec) -> None:
        """Raises StoreError unless the stored spec, if there is one, is this one to the last character."""
        path = self.spec_path(run_id)
        text = _read_text(path)
        if text is not None and text.strip() != canonical_json(run):
            raise StoreError(
                f"{path}: is not the description of the run with this id, whole and unaltered. Nothing was changed; "
                "move the file away to have it written again"
            )

    def spec(self, run_id: str) -> dict[str, Any] | None:
        """The run's canonical spec as plain data; None where the run is not known."""
        return self._json(self.spec_path(run_id))

    def record(self, run_id: str) -> dict[str, Any] | None:
        """The run's record; None unless it is done or diverged. Raises StoreError where it is damaged or of a newer
        schema."""
        return self._record(self.record_path(run_id), "run_id", "status", "metrics")

    def publish_record(self, run_id: str, record: Mapping[str, Any]) -> bool:
        """Publish the record; False where another copy was first, whose record then stands."""
        return publish(self.record_path(run_id), json.dumps(record, sort_keys=True, indent=1) + "\n")

    def eval_record(self, run_id: str, eval_id: str) -> dict[str, Any] | None:
        """An evaluation's record; None where it was not made."""
        return self._record(self.eval_record_path(run_id, eval_id), "run_id", "metrics")

    def publish_eval_record(self, run_id: str, eval_id: str, record: Mapping[str, Any]) -> bool:
        """Publish an evaluation's record; False where another copy was first."""
        path = self.eval_record_path(run_id, eval_id)
        make_dir(path.parent)
        return publish(path, json.dumps(record, sort_keys=True, indent=1) + "\n")

    def _record(self, path: Path, *needed: str) -> dict[str, Any] | None:
        record = self._json(path)
        if record is None:
            return None
        if record.get("schema") != RECORD_SCHEMA:
            raise StoreError(
                f"{path}: schema {record.get('schema')}, this version reads schema {RECORD_SCHEMA}: "
                "use the version that wrote it"
            )
        missing = [key for key in needed if key not in record]
        if missing:
            raise _damaged(path, f"{', '.join(missing)} missing")
        return record

    def _json(self, path: Path) -> dict[str, Any] | None:
        text = _read_text(path)
        if text is None:
            return None
        try:
            value = json.loads(text)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise _damaged(path, f"{error}; {len(text)} characters") from error
        return value

    def find(self, prefix: str) -> str:
        """The one run id that begins with `prefix`. Raises ConfigError where there is none, or more than one."""
        shard = self.root / "runs" / prefix[:2]
        names = sorted(e.name for e in _entries(shard) if e.name.startswith(prefix)) if len(prefix) >= 2 else []
        if len(names) == 1:
            return names[0]
        if not names:
            raise ConfigError(f"{prefix}: no run of this id in {self.root} (give at least the first 2 digits)")
        raise ConfigError(f"{prefix}: several runs begin so: {', '.join(names[:8])}; give more digits")

    def run_ids(self) -> Iterator[str]:
        """Every run that the store knows, in order."""
        for shard in sorted(_entries(self.root / "runs"), key=lambda e: e.name):
            yield from sorted(e.name for e in _entries(Path(shard.path)))

    # --- attempts ---

    def last_attempt(self, run_id: str) -> int:
        """The number of the newest attempt; 0 where there is none."""
        return max((int(e.name) for e in _entries(self.run_dir(run_id) / "attempts") if e.name.isdigit()), default=0)

    def claim(self, run_id: str, after: int) -> Attempt | None:
        """Claim attempt `after` + 1 by making its directory; None where somebody else was first."""
        directory = self.attempt_dir(run_id, after + 1)
        make_dir(directory.parent)
        try:
            os.mkdir(directory)
        except FileExistsError:
            return None
        inherit_group_write(directory)
        return Attempt(run_id=run_id, number=after + 1, directory=directory)

    def job(self, run_id: str, number: int) -> dict[str, Any] | None:
        """Who runs an attempt, as it wrote when it began; None where it died before, or wrote half of it."""
        try:
            return self._json(self.attempt_dir(run_id, number) / "job.json")
        except StoreError:
            return None

    def error(self, run_id: str, number: int) -> dict[str, Any] | None:
        """How an attempt ended, if it ended without a result."""
        try:
            return self._json(self.attempt_dir(run_id, number) / "error.json")
        except StoreError:
            return {"class": "unknown", "message": "error.json is damaged"}

    def heartbeat(self, run_id: str, number: int) -> str | None:
        """The attempt's counter as last written. Opened and read, never stat-ed: NFS caches attributes."""
        return _read_text(self.attempt_dir(run_id, number) / "heartbeat")

    def status(self, run_id: str) -> Status:
        """What became of the run, as far as this host can see at once.

        A copy on another host counts as running until somebody has watched its counter stand still.
        """
        try:
            record = self.record(run_id)
        except StoreError:
            return "damaged"
        if record is not None:
            return "done" if record["status"] == "done" else "diverged"
        number = self.last_attempt(run_id)
        if number == 0:
            return "new"
        error = self.error(run_id, number)
        if error is not None:
            return "interrupted" if error.get("class") in RESUMABLE_CLASSES else "failed"
        job = self.job(run_id, number)
        if job is None or owner_alive(job) is False:
            return "lost"
        return "running"

    def metrics(self, run_id: str) -> list[dict[str, Any]]:
        """The run's metric lines, its attempts joined: each is cut at the step from which a later one resumed.

        Half a line at the end of a killed attempt is left out.
        """
        lines: list[dict[str, Any]] = []
        for number in range(1, self.last_attempt(run_id) + 1):
            text = _read_text(self.attempt_dir(run_id, number) / "metrics.jsonl")
            if text is None:
                continue
            resumed_at: int | None = None
            fresh: list[dict[str, Any]] = []
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(entry, dict):
                    continue
                if "resumed_at_step" in entry:
                    resumed_at = int(entry["resumed_at_step"])
                else:
                    fresh.append(entry)
            if resumed_at is not None:
                lines = [entry for entry in lines if entry["step"] <= resumed_at]
            elif fresh:
                lines = []
            lines += fresh
        return lines

    # --- requests ---

    def publish_request(self, request: Request) -> Path:
        """Write a request down under the hash of what it asks for; asking for the same again keeps the first."""
        content = asdict(request)
        del content["created_at"]
        name = digest(json.dumps(content, sort_keys=True))
        path = self.requests_dir(request.sweep) / f"{name}.json"
        make_dir(path.parent)
        if not publish(path, json.dumps({"schema": RECORD_SCHEMA, **asdict(request)}, sort_keys=True) + "\n"):
            self._request(path)
            os.utime(path)  # asked for again: the newest now
        return path

    def requests(self, sweep: str | None = None) -> list[Request]:
        """The stored requests of a sweep, or of all, in the order in which each was last asked for.

        Damaged ones are left out; `damaged_requests` names them.
        """
        names = [sweep] if sweep is not None else sorted(e.name for e in _entries(self.root / "requests"))
        entries = [entry for name in names for entry in _entries(self.requests_dir(name))]
        entries = [entry for entry in entries if entry.name.endswith(".json") and not entry.name.startswith(".")]
        found = []
        for entry in sorted(entries, key=lambda entry: (entry.stat().st_mtime_ns, entry.path)):
            with contextlib.suppress(StoreError):
                found.append(self._request(Path(entry.path)))
        return found

    def damaged_requests(self) -> list[str]:
        """What is wrong with each request that cannot be read, and what would do."""
        problems = []
        for directory in _entries(self.root / "requests"):
            for entry in _entries(Path(directory.path)):
                try:
                    if entry.name.endswith(".json") and not entry.name.startswith("."):
                        self._request(Path(entry.path))
                except StoreError as error:
                    problems.append(str(error))
        return problems

    def _request(self, path: Path) -> Request:
        content = self._record(path, "sweep", "overrides", "created_at", "report", "cells")
        if content is None:
            raise _damaged(path, "gone")
        try:
            cells = tuple(Cell(**cell) for cell in content["cells"])
        except TypeError as error:
            raise _damaged(path, str(error)) from error
        return Request(
            sweep=content["sweep"],
            overrides=tuple(content["overrides"]),
            created_at=content["created_at"],
            report=content["report"],
            cells=cells,
        )


_REMEDY = "expected a directory on a disk with room that you may write to; choose another with store.root=DIR"


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path}: damaged ({what}). Nothing was changed; move the file away to have it made again")


def is_final(status: Status) -> TypeGuard[FinalStatus]:
    """Whether a status is a result, that nothing will change any more."""
    return status in FINAL


def now() -> str:
    """The time, UTC, ISO 8601 to the microsecond."""
    return datetime.now(UTC).isoformat()


# --- files --------------------------------------------------------------------------------------


def publish(path: Path, text: str) -> bool:
    """Make `path` appear with this content, whole or not at all; False where it is there already.

    Written and synced under a temporary name, then link(2)-ed: the first of several wins, and what is there
    is never replaced. Raises OSError on a full or read-only disk, leaving nothing behind.
    """
    if path.exists():
        return False
    temporary = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        write_synced(temporary, text)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        sync_dir(path.parent)
        return True
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: unreadable ({error})") from error


def _entries(path: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def describe_os_error(error: OSError) -> str:
    """An OSError in plain words."""
    words = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the quota is used up",
        errno.EROFS: "the file system is read-only",
    }
    return words.get(error.errno or 0) or error.strerror or str(error)


# --- who runs an attempt ------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


@lru_cache(maxsize=1)
def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """A process's start in clock ticks since boot; None where it is gone, a zombie, or the system does not tell."""
    try:
        # The name in parentheses may hold spaces; what follows the last one is fields 3 (state) to 22 (start time).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def this_process() -> dict[str, Any]:
    """What tells this process from every other one, on this host or another, now or after a reboot."""
    return {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid_namespace": _pid_namespace(),
        "pid": os.getpid(),
        "pid_started": _start_time(os.getpid()),
    }


def owner_alive(job: Mapping[str, Any]) -> bool | None:
    """Whether an attempt's process is there: True, False, or None where this host cannot tell."""
    if job.get("host") != socket.gethostname() or job.get("pid_started") is None or _boot_id() is None:
        return None
    if job.get("boot_id") != _boot_id():
        return False  # the host was started again since
    if job.get("pid_namespace") != _pid_namespace():
        return None
    return bool(_start_time(int(job["pid"])) == job["pid_started"])
