"""The results store: run directories, attempts, leases, records, requests. All paths are in one class.

    runs/ab/<run_id>/spec.json                  the canonical JSON of the RunSpec, published once
                     record.json                if and only if the run is done or diverged; published once by link(2)
                     attempts/001/job.json      who runs it: host, boot, pid and its start time, how
                                  heartbeat     a counter; unlinked when the attempt ends
                                  metrics.jsonl log.txt error.json
                                  triage.json   how it ended, where others had to find out (`sweeps.triage`)
                     evals/<hash>/{spec.json, record.json}   an evaluation that is wanted of the run, and made
    trunks/ab/<trunk_id>/spec.json              what the runs that share it have in common
                     attempts/001/...           as a run's, and end.json where the attempt came to its end
                     points/step00000120.json   there is a checkpoint from which branches start; published once
                     diverged.json              it goes on no further; published once
    requests/<sweep>/<hash>.json                sweep, overrides and the cells they asked for
    submissions/00000001.json                   what was handed to a scheduler (`sweeps.submissions`)
    snapshots/<digest>/                         the code as it was then (`sweeps.snapshot`)
    notes/00000001.json                         what people say of runs and requests (`sweeps.notes`)
    speeds/<shape>/<device>-runs-00000001.json  how fast runs of a shape were (`sweeps.speed`); the newest few stay
    format.json                                 the layout's version

Many nodes may write at once on a shared file system whose locks cannot be trusted. Two operations are relied on, both
atomic on local disks and on NFS: mkdir, which claims the next attempt, and link, which publishes a
finished file. Nothing that was published is ever modified.
"""

import contextlib
import errno
import getpass
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard

from hybrid.checkpoint_files import RUN_RECORD, RUNS, point_steps, run_place, saved_steps, weights_file
from hybrid.decode import canonical_json, decode, digest
from hybrid.durable import inherit_group_write, let_group_write, make_dir, sync_dir
from hybrid.eval_spec import EvalSpec, eval_id
from hybrid.spec import ConfigError, RunSpec
from sweeps.identity import run_id as identify

FORMAT = 1
RECORD_SCHEMA = 1

Status = Literal["new", "queued", "running", "interrupted", "lost", "failed", "damaged", "done", "diverged"]
CellStatus = Literal[Status, "untuned", "needs_eval"]
"""Of a cell: "untuned", it is not known yet which run it is; "needs_eval", done, and an evaluation is wanted of it."""
FinalStatus = Literal["done", "diverged"]
FINAL: tuple[FinalStatus, ...] = ("done", "diverged")
RESUMABLE_CLASSES = ("preempted", "cancelled", "timeout", "node_fail")
_POINT = re.compile(r"step(\d{8,})\.json")
_ID = re.compile(r"[0-9a-f]{12}")


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message says which file, what is wrong, and what would do."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Values that tuning may choose for a cell, and the run that the cell then is."""

    values: Mapping[str, Any]
    run_id: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run that a request asks for, under the name that sets it apart there.

    A cell of a tuned sweep has `candidates`. Which of them is its run, `sweeps.tune` reads off its tuning records;
    until then `run_id` is None. `tuned` are the values chosen, or those that a tuning run tries.
    """

    name: str
    row: str
    axes: Mapping[str, Any]
    seed: int | None
    run_id: str | None
    tuned: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the rows of `cells` come to their values of `settings`: by the tuning runs that come out best in `metric`.

    `cells` are those tuning runs. They are chosen among for each row at each point of the grid, or for all at once.
    """

    settings: Mapping[str, tuple[Any, ...]]
    per: Literal["row", "sweep"]
    metric: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for: a sweep, the overrides that change its cells, the cells, and the tuning that they wait for.

    It is written down before anything runs and says nothing of results: what tuning chose is read off the records.
    `created_at` is UTC, ISO 8601.
    """

    sweep: str
    overrides: tuple[str, ...]
    created_at: str
    report: Mapping[str, Any]
    cells: tuple[Cell, ...]
    tuning: tuple[Tuning, ...] = ()

    @property
    def all_cells(self) -> tuple[Cell, ...]:
        """Those of its tuning runs, and its own."""
        return (*(cell for tuning in self.tuning for cell in tuning.cells), *self.cells)

    def run_ids(self) -> Iterator[str]:
        """Every run that it asks for, or may come to ask for."""
        for cell in self.all_cells:
            if cell.run_id is not None:
                yield cell.run_id
            yield from (candidate.run_id for candidate in cell.candidates)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A claimed attempt at the run or trunk `of`. Only its owner writes into `directory`."""

    of: str
    number: int
    directory: Path


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where an attempt's metrics go on: after `step` updates of the attempt `attempt` at the run itself, or at `trunk`.

    `attempt` is None where the attempt did not say; `wall_s` is the time that it took to get there, 0 if not said.
    """

    step: int
    attempt: int | None
    trunk: str | None
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The attempts at one run or trunk, `of`: numbered directories, each claimed by one process."""

    of: str
    directory: Path

    def path(self, number: int) -> Path:
        return self.directory / f"{number:03d}"

    def last(self) -> int:
        """The number of the newest attempt; 0 where there is none."""
        return max((int(e.name) for e in _entries(self.directory) if e.name.isdigit()), default=0)

    def claim(self, after: int) -> Attempt | None:
        """Claim attempt `after` + 1 by making its directory; None where somebody else was first."""
        directory = self.path(after + 1)
        make_dir(directory.parent)
        try:
            os.mkdir(directory)
        except FileExistsError:
            return None
        inherit_group_write(directory)
        let_group_write(directory)
        return Attempt(of=self.of, number=after + 1, directory=directory)

    def job(self, number: int) -> dict[str, Any] | None:
        """Who makes an attempt, as it wrote when it began; None where it died before, or wrote half of it."""
        try:
            return read_json(self.path(number) / "job.json")
        except StoreError:
            return None

    def error(self, number: int) -> dict[str, Any] | None:
        """How an attempt ended, if it ended without a result: as it said itself, or as `sweeps.triage` found out."""
        try:
            said = read_json(self.path(number) / "error.json")
        except StoreError:
            said = {"class": "unknown", "message": "error.json is damaged"}
        try:
            found = read_json(self.path(number) / "triage.json")
        except StoreError:
            found = None
        if said is None or found is None:
            return found if said is None else said
        if found["class"] == said["class"]:
            return said
        return {**said, "class": found["class"], "message": f"{found['message']}; it said {said['message']}"}

    def ended(self, number: int) -> bool:
        """Whether an attempt has said that it is over, however it went."""
        return self.error(number) is not None or (self.path(number) / "end.json").exists()

    def heartbeat(self, number: int) -> str | None:
        """The attempt's counter as last written. Opened and read, never stat-ed: NFS caches attributes."""
        return _read_text(self.path(number) / "heartbeat")

    def status(self) -> Literal["new", "running", "interrupted", "lost", "failed", "done"]:
        """What became of the newest attempt, as far as this host can see at once; "new" where there is none."""
        number = self.last()
        if number == 0:
            return "new"
        error = self.error(number)
        if error is not None:
            return "interrupted" if error.get("class") in RESUMABLE_CLASSES else "failed"
        if self.ended(number):
            return "done"
        job = self.job(number)
        if job is None or owner_alive(job) is False:
            return "lost"
        return "running"

    def metrics(self, number: int) -> tuple[Start | None, list[dict[str, Any]]]:
        """Where an attempt went on, None at the beginning, and its metric lines. Half a line at the end is left out."""
        start: Start | None = None
        lines: list[dict[str, Any]] = []
        for entry in _entries_of((_read_text(self.path(number) / "metrics.jsonl") or "").splitlines()):
            found = _start(entry)
            if found is None:
                lines.append(entry)
            else:
                start = found
        return start, lines

    def ends(self, number: int) -> tuple[Start | None, dict[str, Any] | None, dict[str, Any] | None]:
        """Where an attempt went on, and its first and last line with a training loss, None where there are none.

        Reads the beginning and the end of the file alone.
        """
        try:
            with open(self.path(number) / "metrics.jsonl", "rb") as file:
                size, piece = file.seek(0, os.SEEK_END), _PIECE_BYTES
                file.seek(0)
                head = file.read(piece if size > 2 * piece else size).decode(errors="replace").splitlines()
                start, first = None, None
                for entry in _entries_of(head):
                    start = _start(entry) or start
                    if "train_loss_nats" in entry:
                        first = entry
                        break
                if size <= 2 * piece:
                    return start, first, _with_loss(reversed(head))
                while True:
                    file.seek(max(size - piece, 0))
                    # The first line of a piece is but the end of one.
                    tail = file.read(piece).decode(errors="replace").splitlines()[0 if piece >= size else 1 :]
                    last = _with_loss(reversed(tail))
                    if last is not None or piece >= size:
                        return start, first or _with_loss(tail), last
                    piece *= 4
        except (FileNotFoundError, NotADirectoryError):
            return None, None, None


_PIECE_BYTES = 2048


def _with_loss(lines: Iterable[str]) -> dict[str, Any] | None:
    """The first of these lines that has a training loss."""
    return next((entry for entry in _entries_of(lines) if "train_loss_nats" in entry), None)


def _entries_of(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What is no whole line is left out."""
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def _start(entry: Mapping[str, Any]) -> Start | None:
    """Where an attempt went on, if the line says that."""
    if "resumed_at_step" in entry:
        return Start(step=entry["resumed_at_step"], attempt=entry.get("of_attempt"), trunk=None, wall_s=0.0)
    if "branched_at_step" in entry:
        return Start(
            step=entry["branched_at_step"],
            attempt=entry["of_attempt"],
            trunk=entry["trunk"],
            wall_s=entry["wall_s"],
        )
    return None


class Records(Protocol):
    """What tells of runs: a store, or its index (`sweeps.index`), which knows those that are final by heart.

    What it returns is not to be changed.
    """

    def status(self, run_id: str) -> Status: ...

    def record(self, run_id: str) -> Mapping[str, Any] | None: ...

    def eval_records(self, run_id: str) -> Mapping[str, Mapping[str, Any]]: ...

    def spec(self, run_id: str) -> Mapping[str, Any] | None: ...

    def run_spec(self, run_id: str) -> RunSpec | None: ...

    def metrics(self, run_id: str) -> list[dict[str, Any]]: ...


class Store:
    """A results store under `root`; checkpoints and data shards may live elsewhere."""

    def __init__(self, root: Path, *, checkpoints: Path | None = None, data: Path | None = None) -> None:
        self.root = root
        self.checkpoints_root = checkpoints or root / "checkpoints"
        self.data_root = data or root / "data"

    # --- paths ---

    def run_dir(self, run_id: str) -> Path:
        return run_place(self.root / RUNS, run_id)

    def spec_path(self, run_id: str) -> Path:
        return self.run_dir(run_id) / "spec.json"

    def record_path(self, run_id: str) -> Path:
        return self.run_dir(run_id) / RUN_RECORD

    def attempts(self, run_id: str) -> Attempts:
        return Attempts(of=run_id, directory=self.run_dir(run_id) / "attempts")

    def attempt_dir(self, run_id: str, number: int) -> Path:
        return self.attempts(run_id).path(number)

    def eval_record_path(self, run_id: str, eval_id: str) -> Path:
        return self.run_dir(run_id) / "evals" / eval_id / "record.json"

    def eval_spec_path(self, run_id: str, eval_id: str) -> Path:
        return self.eval_record_path(run_id, eval_id).with_name("spec.json")

    def text_path(self, digest: str) -> Path:
        """A text that evaluations read, by the first 16 hex digits of its SHA-256."""
        return self.data_root / "texts" / digest

    def checkpoints_dir(self, run_id: str) -> Path:
        return run_place(self.checkpoints_root, run_id)

    def weights_path(self, run_id: str, attempt: int) -> Path:
        """The final weights that an attempt wrote; those of the run are its record's `attempt`."""
        return self.checkpoints_dir(run_id) / weights_file(attempt)

    def trunk_dir(self, trunk_id: str) -> Path:
        return self.root / "trunks" / trunk_id[:2] / trunk_id

    def trunk_attempts(self, trunk_id: str) -> Attempts:
        return Attempts(of=trunk_id, directory=self.trunk_dir(trunk_id) / "attempts")

    def trunk_checkpoints_dir(self, trunk_id: str) -> Path:
        return self.checkpoints_root / "trunks" / trunk_id[:2] / trunk_id

    def requests_dir(self, sweep: str) -> Path:
        return self.root / "requests" / sweep

    def speeds_dir(self, shape_id: str) -> Path:
        return self.root / "speeds" / shape_id

    # --- opening ---

    def check_format(self) -> None:
        """Raises StoreError if a newer version of this software wrote the store; a missing store is an empty one.

        From now on what this process writes is the team's, where the store is: commands that only look write, too.
        """
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
        let_group_write(self.root)

    def prepare(self) -> None:
        """Make the store ready to be written to. Raises StoreError where it cannot be."""
        self.check_format()
        try:
            make_dir(self.root)
            let_group_write(self.root)
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
        return read_json(self.spec_path(run_id))

    def run_spec(self, run_id: str) -> RunSpec | None:
        """The run's spec, of its record if it has one; None where the run is not known.

        Raises ConfigError where this code cannot read it, StoreError where it is damaged.
        """
        plain = None
        with contextlib.suppress(StoreError):
            plain = (self.record(run_id) or {}).get("spec")
        plain = plain or self.spec(run_id)
        return None if plain is None else decode(RunSpec, plain, "spec")

    def record(self, run_id: str) -> dict[str, Any] | None:
        """The run's record; None unless it is done or diverged. Raises StoreError where it is damaged or of a newer
        schema."""
        return self._checked(self.record_path(run_id), _check_record, run_id, "run_id", "status", "metrics")

    def publish_record(self, run_id: str, record: Mapping[str, Any]) -> bool:
        """Publish the record; False where another copy was first, whose record then stands."""
        return publish(self.record_path(run_id), json.dumps(record, sort_keys=True, indent=1) + "\n")

    def eval_record(self, run_id: str, eval_id: str) -> dict[str, Any] | None:
        """An evaluation's record; None where it was not made."""
        return self._checked(self.eval_record_path(run_id, eval_id), _check_eval_record, run_id, "run_id", "metrics")

    def eval_records(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The records of the run's evaluations by their ids, in order; those that cannot be read are left out."""
        found: dict[str, dict[str, Any]] = {}
        for entry in sorted(_entries(self.run_dir(run_id) / "evals"), key=lambda entry: entry.name):
            with contextlib.suppress(StoreError):
                record = self.eval_record(run_id, entry.name)
                found |= {} if record is None else {entry.name: record}
        return found

    def publish_eval_record(self, run_id: str, eval_id: str, record: Mapping[str, Any]) -> bool:
        """Publish an evaluation's record; False where another copy was first."""
        path = self.eval_record_path(run_id, eval_id)
        make_dir(path.parent)
        return publish(path, json.dumps(record, sort_keys=True, indent=1) + "\n")

    def want_eval(self, run_id: str, spec: EvalSpec) -> None:
        """Write down that an evaluation of the run is wanted, unless it was made."""
        path = self.eval_spec_path(run_id, eval_id(spec))
        if self.eval_record(run_id, eval_id(spec)) is not None:
            return
        make_dir(path.parent)
        publish(path, canonical_json(spec) + "\n")

    def unwant_eval(self, run_id: str, spec: EvalSpec) -> None:
        """Forget that an evaluation is wanted that was not made."""
        path = self.eval_spec_path(run_id, eval_id(spec))
        with contextlib.suppress(FileNotFoundError):
            if self.eval_record(run_id, eval_id(spec)) is None:
                path.unlink()
                path.parent.rmdir()

    def missing_evals(self, run_id: str) -> dict[str, dict[str, Any]] | None:
        """The evaluations of the run that are wanted and were not made, as plain data, by their ids, in order.

        None where none was ever wanted.
        """
        wanted: dict[str, dict[str, Any]] = {}
        for entry in sorted(_entries(self.run_dir(run_id) / "evals"), key=lambda entry: entry.name):
            with contextlib.suppress(StoreError):
                spec = read_json(self.eval_spec_path(run_id, entry.name))
                wanted |= {} if spec is None else {entry.name: spec}
        missing = {id_: spec for id_, spec in wanted.items() if not self.eval_record_path(run_id, id_).exists()}
        return missing if wanted else None

    def _record(self, path: Path, *needed: str) -> dict[str, Any] | None:
        record = read_json(path)
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

    def _checked(
        self, path: Path, check: Callable[[Mapping[str, Any], str], None], run_id: str, *needed: str
    ) -> dict[str, Any] | None:
        record = self._record(path, *needed)
        if record is not None:
            try:
                check(record, run_id)
            except TypeError as error:
                raise _damaged(path, str(error)) from error
        return record

    def find(self, prefix: str) -> str:
        """The one id of a run or trunk that begins with `prefix`. Raises ConfigError where there is none, or more than
        one."""
        shards = [self.root / kind / prefix[:2] for kind in ("runs", "trunks")] if len(prefix) >= 2 else []
        names = sorted(e.name for shard in shards for e in _entries(shard) if e.name.startswith(prefix))
        if len(names) == 1:
            return names[0]
        if not names:
            raise ConfigError(f"{prefix}: no run or trunk of this id in {self.root} (give at least the first 2 digits)")
        raise ConfigError(f"{prefix}: several ids begin so: {', '.join(names[:8])}; give more digits")

    def run_ids(self) -> Iterator[str]:
        """Every run that the store knows, in order."""
        for shard in sorted(_entries(self.root / "runs"), key=lambda e: e.name):
            yield from sorted(e.name for e in _entries(Path(shard.path)))

    # --- attempts ---

    def last_attempt(self, run_id: str) -> int:
        """The number of the run's newest attempt; 0 where there is none."""
        return self.attempts(run_id).last()

    def claim(self, run_id: str, after: int) -> Attempt | None:
        """Claim the run's attempt `after` + 1; None where somebody else was first."""
        return self.attempts(run_id).claim(after)

    def job(self, run_id: str, number: int) -> dict[str, Any] | None:
        """Who makes an attempt at the run; None where it died before it could say."""
        return self.attempts(run_id).job(number)

    def error(self, run_id: str, number: int) -> dict[str, Any] | None:
        """How an attempt at the run ended, if it ended without a result."""
        return self.attempts(run_id).error(number)

    def heartbeat(self, run_id: str, number: int) -> str | None:
        """The counter of an attempt at the run, as last written."""
        return self.attempts(run_id).heartbeat(number)

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
        return self.attempts(run_id).status()

    def metrics(self, run_id: str, number: int | None = None) -> list[dict[str, Any]]:
        """The run's metric lines from its beginning, as its attempt `number` (that of its record, else the newest) has
        them: those of its trunk up to where it starts, then its own.

        Attempts are joined: each is cut at the step from which a later one went on. Half a line at the end of a killed
        attempt is left out.
        """
        number = self._telling_attempt(run_id) if number is None else number
        pieces = [lines for _, lines in self._backwards(self.attempts(run_id), number)]
        return [line for lines in reversed(pieces) for line in lines]

    def branched_from(self, run_id: str, number: int | None = None) -> Start | None:
        """Where the run, as its attempt `number` (that of its record, else the newest) has it, left its trunk; None
        where it did not."""
        number = self._telling_attempt(run_id) if number is None else number
        starts = [start for start, _ in self._backwards(self.attempts(run_id), number)]
        return next((start for start in starts if start is not None and start.trunk is not None), None)

    def _telling_attempt(self, run_id: str) -> int:
        """The attempt whose metrics are the run's: that of its record; later ones may be another store's."""
        with contextlib.suppress(StoreError):
            record = self.record(run_id)
            if record is not None and record.get("attempt") is not None:
                return int(record["attempt"])
        return self.last_attempt(run_id)

    def _backwards(self, attempts: Attempts, number: int) -> Iterator[tuple[Start | None, list[dict[str, Any]]]]:
        """An attempt's lines with where it went on, then those of the attempt that it went on from, and so on."""
        through: float = math.inf
        while number:
            start, lines = attempts.metrics(number)
            if start is None and not lines:
                number -= 1  # it came to nothing
                continue
            yield start, [line for line in lines if line["step"] <= through]
            if start is None:
                return
            through = min(through, start.step)
            if start.trunk is not None:
                attempts = self.trunk_attempts(start.trunk)
            number = number - 1 if start.attempt is None else start.attempt

    def checkpoint_step(self, run_id: str) -> int:
        """The step of the run's newest checkpoint, by its name; 0 where there is none."""
        return max(saved_steps(entry.name for entry in _entries(self.checkpoints_dir(run_id))), default=0)

    # --- trunks ---

    def publish_trunk(self, trunk_id: str, description: str) -> None:
        """Write down what the trunk is, if that is not there yet. Raises StoreError where the id is taken."""
        path = self.trunk_dir(trunk_id) / "spec.json"
        make_dir(path.parent)
        if not publish(path, description + "\n") and (_read_text(path) or "").strip() != description:
            raise StoreError(
                f"{path}: is not the description of the trunk with this id, whole and unaltered. Nothing was changed; "
                "move the file away to have it written again"
            )

    def is_trunk(self, id_: str) -> bool:
        """Whether the store has a trunk of this id."""
        return self.trunk_dir(id_).is_dir()

    def trunk_spec(self, trunk_id: str) -> dict[str, Any] | None:
        """What the trunk is, as `publish_trunk` wrote it, as plain data; None where it is not known."""
        return read_json(self.trunk_dir(trunk_id) / "spec.json")

    def trunk_status(self, trunk_id: str) -> Status:
        """What became of the trunk's newest attempt; "done": its points are there, and it can go on to others."""
        status = self.trunk_attempts(trunk_id).status()
        return "diverged" if status == "done" and self.trunk_diverged_at(trunk_id) is not None else status

    def publish_point(self, trunk_id: str, step: int, facts: Mapping[str, Any]) -> None:
        """Say that the checkpoint from which branches at `step` start is on the disk. Saying it again changes
        nothing."""
        path = self.trunk_dir(trunk_id) / "points" / f"step{step:08d}.json"
        make_dir(path.parent)
        publish(path, json.dumps({"schema": RECORD_SCHEMA, "step": step, **facts}, sort_keys=True) + "\n")

    def trunk_points(self, trunk_id: str) -> tuple[int, ...]:
        """The steps at which branches can start, ascending: published, and with a checkpoint that is still there."""
        names = (_POINT.fullmatch(entry.name) for entry in _entries(self.trunk_dir(trunk_id) / "points"))
        published = {int(name[1]) for name in names if name is not None}
        there = point_steps(entry.name for entry in _entries(self.trunk_checkpoints_dir(trunk_id)))
        return tuple(step for step in there if step in published)

    def trunk_checkpoints(self, trunk_id: str) -> tuple[int, ...]:
        """The steps of the trunk's checkpoints on the way, ascending, by their names."""
        return tuple(saved_steps(entry.name for entry in _entries(self.trunk_checkpoints_dir(trunk_id))))

    def trunk_saved_step(self, trunk_id: str, at_most: float = math.inf) -> int:
        """The last step, `at_most` or before, from which the trunk or a branch can go on; 0 where there is none."""
        saved = (*self.trunk_points(trunk_id), *self.trunk_checkpoints(trunk_id))
        return max((step for step in saved if step <= at_most), default=0)

    def publish_divergence(self, trunk_id: str, step: int, facts: Mapping[str, Any]) -> None:
        """Say that the trunk makes no update after `step`; the first to say so stands."""
        path = self.trunk_dir(trunk_id) / "diverged.json"
        publish(path, json.dumps({"schema": RECORD_SCHEMA, "step": step, **facts}, sort_keys=True) + "\n")

    def trunk_diverged_at(self, trunk_id: str) -> int | None:
        """The step after which the trunk diverged; None where it has not."""
        found = self._record(self.trunk_dir(trunk_id) / "diverged.json", "step")
        return None if found is None else int(found["step"])

    # --- measured speeds ---

    def publish_speed(self, shape_id: str, name: str, measurement: Mapping[str, Any]) -> None:
        """Publish what was measured of a shape under the name's next number; of those before it the newest two stay."""
        directory = self.speeds_dir(shape_id)
        make_dir(directory)
        text = json.dumps({"schema": RECORD_SCHEMA, **measurement}, sort_keys=True) + "\n"
        pattern = re.compile(re.escape(name) + r"(-(\d{8}))?\.json")  # those without a number are from older versions
        before = sorted((int(m[2] or 0), m[0]) for e in _entries(directory) if (m := pattern.fullmatch(e.name)))
        number = before[-1][0] + 1 if before else 1
        while not publish(directory / f"{name}-{number:08d}.json", text):
            number += 1
        for _, old in before[:-2]:
            (directory / old).unlink(missing_ok=True)

    def speeds(self, shape_id: str) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
        """What was measured of a shape, by file in the order of their names, and what is wrong with those that cannot
        be read."""
        found, problems = [], []
        for entry in sorted(_entries(self.speeds_dir(shape_id)), key=lambda entry: entry.name):
            if not entry.name.endswith(".json") or entry.name.startswith("."):
                continue
            try:
                content = self._record(Path(entry.path))
            except StoreError as error:
                problems.append(str(error))
                continue
            if content is not None:
                found.append((Path(entry.path), content))
        return found, problems

    # --- requests ---

    def publish_request(self, request: Request) -> Path:
        """Write a request down under the hash of what it asks for; asking for the same again keeps the first."""
        content = _as_written(request)
        path = self.root / "requests" / f"{request_id(request)}.json"
        make_dir(path.parent)
        if not publish(path, json.dumps({"schema": RECORD_SCHEMA, **content}, sort_keys=True) + "\n"):
            self._request(path)
            with contextlib.suppress(PermissionError):  # somebody else's, of before files were the group's too
                os.utime(path)  # asked for again: the newest now
        return path

    def requests(self, sweep: str | None = None) -> list[Request]:
        """The stored requests of a sweep, or of all, in the order in which each was last asked for.

        Damaged ones are left out; `damaged_requests` names them.
        """
        return [found for found in self.requests_by_file(sweep).values() if isinstance(found, Request)]

    def damaged_requests(self) -> list[str]:
        """What is wrong with each request that cannot be read, and what would do."""
        return [str(found) for found in self.requests_by_file().values() if isinstance(found, StoreError)]

    def sweeps(self) -> list[str]:
        """The sweeps that were asked for, by name."""
        return sorted(entry.name for entry in _entries(self.root / "requests"))

    def newest_request(self) -> Request | None:
        """The request that was last asked for; None where there is none. Raises StoreError where it is damaged."""
        newest = max(self._request_entries(None), key=_when_asked, default=None)
        return None if newest is None else self._request(Path(newest.path))

    def requests_by_file(self, sweep: str | None = None) -> dict[Path, Request | StoreError]:
        """As `requests`, with what is wrong with the damaged ones in their places."""
        found: dict[Path, Request | StoreError] = {}
        for entry in sorted(self._request_entries(sweep), key=_when_asked):
            path = Path(entry.path)
            try:
                found[path] = self._request(path)
            except StoreError as error:
                found[path] = error
        return found

    def request_files(self) -> list[str]:
        """The paths of the stored requests, damaged ones too, in order."""
        return sorted(entry.path for entry in self._request_entries(None))

    def _request_entries(self, sweep: str | None) -> Iterator["os.DirEntry[str]"]:
        for name in self.sweeps() if sweep is None else [sweep]:
            for entry in _entries(self.requests_dir(name)):
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    yield entry

    def _request(self, path: Path) -> Request:
        content = self._record(path, "sweep", "overrides", "created_at", "report", "cells")
        if content is None:
            raise _damaged(path, "gone")
        try:
            return _request(content)
        except (TypeError, KeyError, AttributeError) as error:
            raise _damaged(path, str(error)) from error


def request_id(request: Request) -> str:
    """What a request is called in its store: `sweep/hash`, the hash of what it asks for."""
    asked = {key: value for key, value in _as_written(request).items() if key != "created_at"}
    return f"{request.sweep}/{digest(json.dumps(asked, sort_keys=True))}"


def _when_asked(entry: "os.DirEntry[str]") -> tuple[int, str]:
    return entry.stat().st_mtime_ns, entry.path


def _as_written(request: Request) -> dict[str, Any]:
    """A request as plain data. What came later than the first stores is left out where there is none of it, so that the
    same request keeps its name."""
    content: dict[str, Any] = {
        "sweep": request.sweep,
        "overrides": request.overrides,
        "created_at": request.created_at,
        "report": request.report,
        "cells": [_cell_as_written(cell) for cell in request.cells],
    }
    if request.tuning:
        content["tuning"] = [
            {
                "settings": tuning.settings,
                "per": tuning.per,
                "metric": tuning.metric,
                "cells": [_cell_as_written(cell) for cell in tuning.cells],
            }
            for tuning in request.tuning
        ]
    return content


def _cell_as_written(cell: Cell) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": cell.name,
        "row": cell.row,
        "axes": cell.axes,
        "seed": cell.seed,
        "run_id": cell.run_id,
    }
    if cell.tuned:
        content["tuned"] = cell.tuned
    if cell.candidates:
        content["candidates"] = [{"values": one.values, "run_id": one.run_id} for one in cell.candidates]
    return content


def _check_record(record: Mapping[str, Any], run_id: str) -> None:
    """Raises TypeError where a record of a run is not what those who read it count on."""
    _expect(record["run_id"] == run_id, "run_id", record["run_id"], f"{run_id}, as its directory is called")
    _expect(record["status"] in FINAL, "status", record["status"], " or ".join(FINAL))
    _expect(isinstance(record["metrics"], dict), "metrics", record["metrics"], "metrics by name")
    attempt, cost = record.get("attempt", 1), record.get("cost", {})
    _expect(type(attempt) is int, "attempt", attempt, "a number")
    _expect(isinstance(cost, dict), "cost", cost, "numbers by name")
    for name, value in cost.items():
        _expect(type(value) in (int, float), f"cost.{name}", value, "a number")
    provenance = record.get("provenance", {})
    _expect(isinstance(provenance, dict), "provenance", provenance, "facts by name")
    for name in ("exec", "trunk"):
        part = provenance.get(name)
        _expect(part is None or isinstance(part, dict), f"provenance.{name}", part, "facts by name")
    for name in ("host", "device", "device_name", "processor"):
        word = provenance.get(name)
        _expect(word is None or isinstance(word, str), f"provenance.{name}", word, "a text")


def _check_eval_record(record: Mapping[str, Any], run_id: str) -> None:
    """Raises TypeError where a record of an evaluation is not what those who read it count on."""
    _expect(record["run_id"] == run_id, "run_id", record["run_id"], f"{run_id}, as its directory is called")
    _expect(isinstance(record["metrics"], dict), "metrics", record["metrics"], "metrics by name")
    of = record.get("eval", {})
    _expect(isinstance(of, dict), "eval", of, "settings")
    _expect(isinstance(of.get("kind", ""), str), "eval.kind", of.get("kind"), "a text")


def _request(content: Mapping[str, Any]) -> Request:
    """A request as it was written. Raises TypeError, KeyError and AttributeError for what is none."""
    for key in ("sweep", "created_at"):
        _expect(isinstance(content[key], str), key, content[key], "a text")
    _expect(_are_texts(content["overrides"]), "overrides", content["overrides"], "a list of texts")
    report = content["report"]
    _expect(isinstance(report, dict), "report", report, "settings, such as a title")
    for key, value in report.items():
        _expect(isinstance(value, str) or _are_texts(value), f"report.{key}", value, "a text, or a list of them")
    return Request(
        sweep=content["sweep"],
        overrides=tuple(content["overrides"]),
        created_at=content["created_at"],
        report=report,
        cells=tuple(_cells(content["cells"], "cells")),
        tuning=tuple(_tuning(tuning, f"tuning[{i}]") for i, tuning in enumerate(content.get("tuning", ()))),
    )


def _cells(contents: Iterable[Mapping[str, Any]], where: str) -> Iterator[Cell]:
    for i, content in enumerate(contents):
        try:
            yield _cell(content)
        except (TypeError, KeyError, AttributeError) as error:
            raise TypeError(f"{where}[{i}]: {error}") from error


def _cell(content: Mapping[str, Any]) -> Cell:
    candidates = tuple(Candidate(**candidate) for candidate in content.get("candidates", ()))
    cell = Cell(**{**content, "candidates": candidates})
    _expect(isinstance(cell.name, str), "name", cell.name, "a text")
    _expect(isinstance(cell.row, str), "row", cell.row, "a text")
    _expect(isinstance(cell.axes, dict), "axes", cell.axes, "settings")
    _expect(isinstance(cell.tuned, dict), "tuned", cell.tuned, "settings")
    _expect(cell.seed is None or isinstance(cell.seed, int), "seed", cell.seed, "a whole number")
    for run_id in (cell.run_id, *(candidate.run_id for candidate in candidates)):
        _expect(run_id is None or _is_id(run_id), "run_id", run_id, "12 hexadecimal digits")
    return cell


def _tuning(content: Mapping[str, Any], where: str) -> Tuning:
    settings = {key: tuple(values) for key, values in content["settings"].items()}
    return Tuning(**{**content, "settings": settings, "cells": tuple(_cells(content["cells"], f"{where}.cells"))})


def _expect(fits: bool, where: str, got: object, expected: str) -> None:
    if not fits:
        raise TypeError(f"{where} = {got!r}: expected {expected}")


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


_REMEDY = "expected a directory on a disk with room that you may write to; choose another with store.root=DIR"


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path}: damaged ({what}). Nothing was changed; move the file away to have it made again")


def is_final(status: CellStatus) -> TypeGuard[FinalStatus]:
    """Whether a status is a result, that nothing will change any more."""
    return status in FINAL


def now() -> str:
    """The time, UTC, ISO 8601 to the microsecond."""
    return datetime.now(UTC).isoformat()


# --- files --------------------------------------------------------------------------------------


def publish(path: Path, content: str | bytes, *, mtime: float | None = None) -> bool:
    """Make `path` appear with this content, whole or not at all; False where it is there already.

    `mtime`: what it says of when it was modified, where that is not now.

    Written and synced under a temporary name, then link(2)-ed: the first of several wins, and what is there
    is never replaced. Raises OSError on a full or read-only disk, leaving nothing behind.
    """
    if path.exists():
        return False
    temporary = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        write_synced(temporary, content)
        if mtime is not None:
            os.utime(temporary, (mtime, mtime))
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


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: unreadable ({error})") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of the store that holds a JSON object; None where there is none. Raises StoreError where it is damaged."""
    text = _read_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{error}; {len(text)} characters") from error
    return value


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


def user_name() -> str:
    """Who is at work here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return f"uid {os.getuid()}"


def owner_alive(job: Mapping[str, Any]) -> bool | None:
    """Whether an attempt's process is there: True, False, or None where this host cannot tell."""
    if job.get("host") != socket.gethostname() or job.get("pid_started") is None or _boot_id() is None:
        return None
    if job.get("boot_id") != _boot_id():
        return False  # the host was started again since
    if job.get("pid_namespace") != _pid_namespace():
        return None
    return bool(_start_time(int(job["pid"])) == job["pid_started"])
