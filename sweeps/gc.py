"""What of a store can go: `python -m sweeps gc`, which removes nothing unless told to.

What stays, whatever is asked: descriptions, records, evaluations, requests, submissions, attempts and their histories,
notes, speeds; the index, which the next command that reads many runs would only make again; all that is pinned; all of
a run that somebody trains, as far as can be seen from here; the last two whole checkpoints of an unfinished run; the
final weights of a finished one, and where branches of a trunk start, unless an option or a budget says otherwise.

A file is looked at again just before it goes, with all that speaks for or against it. A run that begins in the meantime
finds what it needs: its last two checkpoints are never up for removal, and it writes under names that nobody has had.
Ages are told by the clock of the file system that a file is on, never by this host's.
"""

import contextlib
import os
import re
import shutil
import socket
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from hybrid.checkpoint_files import is_whole, point_step, step_and_attempt, weights_attempt
from hybrid.decode import decode
from hybrid.spec import ConfigError, RunSpec
from sweeps.notes import NoteBook
from sweeps.progress import say
from sweeps.scheduler import SchedulerError, Slurm
from sweeps.standing import Standings
from sweeps.store import Attempts, Request, Store, StoreError, owner_alive, request_id
from sweeps.submissions import Intent, Submission, Submissions
from sweeps.text import size_text, table
from sweeps.trunks import trunk_id

Kind = Literal[
    "checkpoints",
    "branch points",
    "final weights",
    "temporaries",
    "snapshots",
    "data",
    "attempts",
    "descriptions and records",
    "evaluations",
    "trunks' facts",
    "requests and submissions",
    "index",
    "other",
]
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_KEPT: Final = 2
_DEAD_AFTER_S: Final = 3600.0  # nothing that is being written stands still for so long
_TEMPORARY = re.compile(r"\..+\.\d+\.\d+")  # of `sweeps.store.publish`
_SNAPSHOT = re.compile(r"[0-9a-f]{8,}")
_ID = re.compile(r"[0-9a-f]{12}")
_SHOWN: Final = 40
_SAY_EVERY_S: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class GcSettings:
    """What may go beyond what always may, and how much may stay.

    `unknown`: checkpoints of runs that the store does not know, although they lie outside of it, where another store
    may have put them. `branch_points`: those of trunks that no unfinished run of a request starts from.
    """

    unknown: bool = False
    branch_points: bool = False
    max_bytes: int | None = None
    max_inodes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes as the file system counts them, so in whole blocks, and files with directories."""

    n_bytes: int = 0
    inodes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(n_bytes=self.n_bytes + other.n_bytes, inodes=self.inodes + other.inodes)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(n_bytes=self.n_bytes - other.n_bytes, inodes=self.inodes - other.inodes)


NOTHING: Final = Usage()
OwnerKind = Literal["run", "trunk", "snapshot", "store"]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """To whom a file belongs; `name` is an id, a digest, or empty for the store itself."""

    kind: OwnerKind
    name: str = ""

    def text(self) -> str:
        return f"{self.kind} {self.name}".strip()


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file, or a directory with all in it, that the scan met and that may be up for removal."""

    path: Path
    kind: Kind
    owner: Owner
    usage: Usage
    mtime: float
    device: int


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What would go, and why."""

    found: Found
    why: str


@dataclass(kw_only=True)
class Survey:
    """What is there: by kind, and what of it is somebody's to remove."""

    usage: dict[Kind, Usage]
    found: list[Found]
    problems: list[str] = field(default_factory=list)

    def total(self) -> Usage:
        return sum(self.usage.values(), NOTHING)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What would go: `removals` always, `for_budget` after them and in this order, until the budget is met.

    `shortfall` is what is too much even then; `protected` counts what is left alone, by reason.
    """

    survey: Survey
    removals: tuple[Removal, ...]
    for_budget: tuple[Removal, ...]
    shortfall: Usage
    protected: Mapping[str, int]
    problems: tuple[str, ...]

    def all(self) -> tuple[Removal, ...]:
        return (*self.removals, *self.for_budget)


# --- what is there ------------------------------------------------------------------------------


def survey(store: Store) -> Survey:
    """Go through the store, its checkpoints and its data once. Links are counted, not followed."""
    walk = _Walk(store)
    walk.everything()
    return Survey(usage=dict(walk.usage), found=walk.found, problems=walk.problems)


class _Walk:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.usage: defaultdict[Kind, Usage] = defaultdict(lambda: NOTHING)
        self.found: list[Found] = []
        self.problems: list[str] = []
        self._begun = self._said = time.monotonic()
        self._count = 0

    def everything(self) -> None:
        checkpoints, data = self._store.checkpoints_root, self._store.data_root
        apart = {os.path.abspath(path) for path in (checkpoints, data)}
        self._tree(self._store.root, (), apart)
        self._checkpoints(checkpoints)
        self._whole(data, "data")

    def _entries(self, path: Path) -> Iterator[tuple["os.DirEntry[str]", os.stat_result]]:
        """What is in a directory; what goes away meanwhile is left out."""
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.problems.append(f"{path}: cannot be read ({error.strerror}): what is in it is not counted")
            return
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                self._tell()
                yield entry, status

    def _tell(self) -> None:
        self._count += 1
        if time.monotonic() - self._said > _SAY_EVERY_S:
            self._said = time.monotonic()
            say(f"looked at {self._count:,} files")

    def _add(self, kind: Kind, status: os.stat_result) -> Usage:
        usage = _usage(status)
        self.usage[kind] += usage
        return usage

    def _tree(self, path: Path, parts: tuple[str, ...], apart: set[str]) -> None:
        for entry, status in self._entries(path):
            inside = (*parts, entry.name)
            if os.path.abspath(entry.path) in apart and not stat.S_ISREG(status.st_mode):
                if stat.S_ISLNK(status.st_mode):
                    self._add("other", status)
                continue
            if len(inside) == 2 and inside[0] == "snapshots" and stat.S_ISDIR(status.st_mode):
                self._snapshot(Path(entry.path), status)
                continue
            kind = _kind(inside)
            if stat.S_ISDIR(status.st_mode):
                self._add(kind, status)
                self._tree(Path(entry.path), inside, apart)
            elif _TEMPORARY.fullmatch(entry.name) and stat.S_ISREG(status.st_mode):
                usage = self._add("temporaries", status)
                self._keep(Path(entry.path), "temporaries", _owner_of(inside), usage, status)
            else:
                self._add(kind, status)

    def _snapshot(self, path: Path, status: os.stat_result) -> None:
        kind: Kind = "snapshots" if _SNAPSHOT.fullmatch(path.name) else "temporaries"
        usage = self._whole(path, kind) + self._add(kind, status)
        self._keep(path, kind, Owner(kind="snapshot", name=path.name), usage, status)

    def _whole(self, path: Path, kind: Kind) -> Usage:
        total = NOTHING
        for entry, status in self._entries(path):
            total += self._add(kind, status)
            if stat.S_ISDIR(status.st_mode):
                total += self._whole(Path(entry.path), kind)
        return total

    def _checkpoints(self, root: Path) -> None:
        for entry, status in self._entries(root):
            if not stat.S_ISDIR(status.st_mode):
                self._add("other", status)
            elif entry.name == "trunks":
                self._add("checkpoints", status)
                for shard, shard_status in self._entries(Path(entry.path)):
                    self._shard(shard, shard_status, "trunk")
            else:
                self._shard(entry, status, "run")

    def _shard(self, shard: "os.DirEntry[str]", status: os.stat_result, owner: OwnerKind) -> None:
        self._add("checkpoints", status)
        if not stat.S_ISDIR(status.st_mode):
            return
        for entry, inner in self._entries(Path(shard.path)):
            if stat.S_ISDIR(inner.st_mode) and _ID.fullmatch(entry.name) and entry.name[:2] == shard.name:
                self._owned(Path(entry.path), inner, Owner(kind=owner, name=entry.name))
            else:
                self._add("other", inner)
                if stat.S_ISDIR(inner.st_mode):
                    self._whole(Path(entry.path), "other")

    def _owned(self, directory: Path, status: os.stat_result, owner: Owner) -> None:
        own = self._add("checkpoints", status)
        entries = list(self._entries(directory))
        for entry, inner in entries:
            kind = _checkpoint_kind(entry.name)
            usage = self._add(kind, inner)
            if stat.S_ISDIR(inner.st_mode):
                self._whole(Path(entry.path), "other")
            elif kind != "other":
                self._keep(Path(entry.path), kind, owner, usage, inner)
        if not entries:
            self._keep(directory, "checkpoints", owner, own, status)

    def _keep(self, path: Path, kind: Kind, owner: Owner, usage: Usage, status: os.stat_result) -> None:
        self.found.append(
            Found(path=path, kind=kind, owner=owner, usage=usage, mtime=status.st_mtime, device=status.st_dev)
        )


def _usage(status: os.stat_result) -> Usage:
    return Usage(n_bytes=status.st_blocks * 512, inodes=1)


def _kind(parts: Sequence[str]) -> Kind:
    match parts:
        case ["runs", _, _, "attempts", *_] | ["trunks", _, _, "attempts", *_]:
            return "attempts"
        case ["runs", _, _, "evals", *_]:
            return "evaluations"
        case ["runs" | "diffs", *_]:
            return "descriptions and records"
        case ["trunks", *_]:
            return "trunks' facts"
        case ["requests" | "submissions", *_]:
            return "requests and submissions"
        case ["snapshots"]:
            return "snapshots"
        case ["index.runs"] | ["index.metrics", *_]:
            return "index"
        case _:
            return "other"


def _checkpoint_kind(name: str) -> Kind:
    if step_and_attempt(name) is not None:
        return "checkpoints"
    if point_step(name) is not None:
        return "branch points"
    if weights_attempt(name) is not None:
        return "final weights"
    return "temporaries" if name.startswith(".") and name.endswith(".tmp") else "other"


def _owner_of(parts: Sequence[str]) -> Owner:
    match parts:
        case ["runs", _, name, *_]:
            return Owner(kind="run", name=name)
        case ["trunks", _, name, *_]:
            return Owner(kind="trunk", name=name)
        case _:
            return Owner(kind="store")


# --- what may go --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """Whether a file may go: `why` it may, None where it stays; `protected` says what protects it, if anything does.

    `spare`: only a budget that is not met otherwise takes it, in the order of these keys.
    """

    why: str | None = None
    protected: str | None = None
    spare: tuple[float, ...] | None = None


_STAYS: Final = _Verdict()


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What unfinished requests and submissions may still need.

    `trunks`: those that an unfinished run starts from. `unclear`: how many unfinished runs have not said what they are,
    so that they may start from any. `runs`: those whose weights an evaluation waits for. `snapshots`: those that tasks
    may yet run.
    """

    trunks: frozenset[str]
    unclear: int
    runs: frozenset[str]
    snapshots: frozenset[str]


class Judge:
    """Says of a file whether it may go, by what the store says at that moment.

    `hashed`: checkpoints that are kept have their checksums looked at before older ones may go, not just their lengths.
    """

    def __init__(self, store: Store, settings: GcSettings, *, slurm: Slurm | None, hashed: bool) -> None:
        self._store, self._settings, self._slurm, self._hashed = store, settings, slurm, hashed
        self._notes = NoteBook(store)
        self._submissions = Submissions(store)
        self._clocks: dict[int, float | None] = {}
        self._whole: dict[tuple[str, int, int], bool] = {}
        self._over: set[int] = set()
        self._scheduler_problem: str | None = None
        self._trunk_of: dict[str, str | None] = {}
        self._seen: object = None
        self._standings: Standings | None = None
        self._lost: dict[str, tuple[int, str | None] | None] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look again at what is pinned, asked for and submitted.

        Where nothing came to it, what was wanted before is taken to be wanted still: it can only have become less.
        """
        self._notes.refresh()
        seen = (len(self._notes.events()), self._store.request_files(), self._submissions.last())
        if seen == self._seen:
            return
        self._seen = seen
        requests = self._store.requests()
        self.problems = [
            *(f"{problem}; nothing is removed, as it may be a pin" for problem in self._notes.problems),
            *self._store.damaged_requests(),
        ]
        self._pinned = self._notes.pinned()
        for request in requests:
            id_ = request_id(request)
            if id_ in self._pinned:
                self._pinned |= set(request.run_ids())
        self._wanted = self._survey_wanted(requests)
        if self._scheduler_problem:
            self.problems.append(self._scheduler_problem)

    def verdict(self, found: Found) -> _Verdict:
        """Whether the file may go. Reads what there is now of its owner."""
        if self._notes.problems:
            return _Verdict(protected="notes that cannot be read")
        match found.owner.kind:
            case "run":
                return self._of_run(found)
            case "trunk":
                return self._of_trunk(found)
            case "snapshot":
                return self._of_snapshot(found)
            case "store":
                return self._if_dead(found)

    # --- runs ---

    def _of_run(self, found: Found) -> _Verdict:
        store, run_id = self._store, found.owner.name
        if not store.run_dir(run_id).is_dir():
            return self._of_unknown(found, "run")
        try:
            record = store.record(run_id)
        except StoreError:
            return _Verdict(protected="runs with a damaged record")
        own_attempt = None if record is None else record.get("attempt")
        if self._is_alive(run_id, own_attempt):
            return _Verdict(protected="runs that somebody trains, as far as can be seen from here")
        if found.kind == "temporaries":
            return self._if_dead(found)
        if run_id in self._pinned:
            return _Verdict(protected="pinned runs")
        attempt = weights_attempt(found.path.name)
        if record is None:
            if found.path == store.checkpoints_dir(run_id):
                return _STAYS
            if attempt is not None:
                return self._if_old(found, "weights of an attempt that recorded nothing")
            return self._if_superfluous(found)
        if attempt is None:
            empty = found.path == store.checkpoints_dir(run_id)
            return _Verdict(why="empty, and the run is finished" if empty else "the run is finished")
        if own_attempt is None or attempt == own_attempt:
            return self._spare(found, str(record["status"]))
        return _Verdict(why="not the weights of the run's record")

    def _is_alive(self, run_id: str, of_record: int | None) -> bool:
        """Whether somebody may be at the run; not where scheduler and lease say that the attempt was lost, and its
        counter stands where it stood then."""
        attempts = self._store.attempts(run_id)
        number = attempts.last()
        sign = (number, attempts.heartbeat(number))
        if not may_be_alive(attempts, of_record):
            return False
        if run_id not in self._lost:
            self._standings = self._standings or Standings(self._store, self._slurm, tolerant=True)
            self._lost[run_id] = sign if self._standings.of(run_id).status == "lost" else None
        return self._lost[run_id] != sign

    def _spare(self, found: Found, status: str) -> _Verdict:
        """Final weights, which only a budget takes: those of diverged runs first, then the oldest."""
        if found.owner.name in self._wanted.runs:
            return _Verdict(protected="final weights that an evaluation waits for")
        when = time.strftime("%Y-%m-%d", time.gmtime(found.mtime))
        return _Verdict(why=f"final weights, {status} {when}", spare=(float(status == "done"), found.mtime))

    def _of_unknown(self, found: Found, what: str) -> _Verdict:
        outside = self._store.checkpoints_root.absolute() != (self._store.root / "checkpoints").absolute()
        if outside and not self._settings.unknown:
            return _Verdict(protected=f"of {what}s that only another store may know: --unknown takes them")
        return self._if_old(found, f"of a {what} that the store does not know")

    def _if_superfluous(self, found: Found) -> _Verdict:
        """A checkpoint on the way may go where two later ones are whole."""
        key = step_and_attempt(found.path.name)
        if key is None:
            return _STAYS
        try:
            names = os.listdir(found.path.parent)
        except FileNotFoundError:
            return _STAYS
        later = sorted((k, name) for name in names if (k := step_and_attempt(name)) is not None and k > key)
        whole = 0
        for _, name in reversed(later):
            whole += self._is_whole(found.path.parent / name)
            if whole == _KEPT:
                return _Verdict(why="two later ones are whole")
        return _STAYS

    def _is_whole(self, path: Path) -> bool:
        try:
            status = path.stat()
            key = (str(path), status.st_size, status.st_mtime_ns)
            if key not in self._whole:
                self._whole[key] = is_whole(path, hashed=self._hashed)
            return self._whole[key]
        except OSError:
            return False

    # --- trunks ---

    def _of_trunk(self, found: Found) -> _Verdict:
        store, trunk = self._store, found.owner.name
        if not store.is_trunk(trunk):
            return self._of_unknown(found, "trunk")
        if may_be_alive(store.trunk_attempts(trunk), None):
            return _Verdict(protected="trunks that somebody trains, as far as can be seen from here")
        if found.kind == "temporaries":
            return self._if_dead(found)
        if trunk in self._pinned:
            return _Verdict(protected="pinned trunks")
        if trunk in self._wanted.trunks:
            if _is_point(found):
                return _Verdict(protected="branch points that an unfinished run starts from")
            return self._if_superfluous(found)
        if not self._settings.branch_points:
            return self._if_superfluous(found)
        if self._wanted.unclear:
            if _is_point(found):
                return _Verdict(protected="branch points that runs may start from that have not begun")
            return self._if_superfluous(found)
        return self._if_old(found, "no unfinished run of a request starts from this trunk")

    # --- snapshots ---

    def _of_snapshot(self, found: Found) -> _Verdict:
        if found.kind == "temporaries":
            return self._if_dead(found)
        if found.owner.name in self._wanted.snapshots:
            return _Verdict(protected="snapshots that unfinished submissions run")
        return self._if_old(found, "no unfinished submission runs it")

    # --- ages ---

    def _if_dead(self, found: Found) -> _Verdict:
        return self._if_old(found, "left behind by a writer that was killed")

    def _if_old(self, found: Found, why: str) -> _Verdict:
        now_s = self._clock(found)
        if now_s is None or now_s - found.mtime <= _DEAD_AFTER_S:
            return _Verdict(protected="too young to be sure")
        return _Verdict(why=why)

    def _clock(self, found: Found) -> float | None:
        """The time that a file has that is written just now where the found one is; None where none can be."""
        if found.device not in self._clocks:
            self._clocks[found.device] = _clock(found.path.parent)
        return self._clocks[found.device]

    # --- what is wanted ---

    def _survey_wanted(self, requests: Iterable[Request]) -> _Wanted:
        trunks: set[str] = set()
        unclear = len(self._store.damaged_requests())  # which may ask for anything
        runs = {run_id for request in requests for run_id in request.run_ids()} | {
            id_ for id_ in self._pinned if self._store.spec_path(id_).is_file()
        }
        for run_id in runs:
            if self._store.record_path(run_id).is_file() and run_id not in self._pinned:
                continue
            known, trunk = self._trunk(run_id)
            unclear += not known
            if trunk is not None:
                trunks.add(trunk)
        evaluated: set[str] = set()
        snapshots: set[str] = set()
        for submission in self._unfinished_submissions():
            intent = submission.intent
            trunks |= {item.trunk_id for _, item in submission.items() if item.trunk_id is not None}
            evaluated |= {item.run_id for _, item in submission.items() if item.kind == "eval"}
            snapshots |= {intent.snapshot or "", *_mixer_places(intent)}
        for submission in self._submissions.all():
            wanted = {item.run_id for _, item in submission.items()} & runs
            if any(not self._store.record_path(run_id).is_file() for run_id in wanted):
                snapshots |= _mixer_places(submission.intent)  # a retry would need it
        return _Wanted(
            trunks=frozenset(trunks), unclear=unclear, runs=frozenset(evaluated), snapshots=frozenset(snapshots)
        )

    def _trunk(self, run_id: str) -> tuple[bool, str | None]:
        """Whether the run has said what it is, and the trunk that it starts from, if it does."""
        if run_id not in self._trunk_of:
            try:
                spec = self._store.spec(run_id)
                if spec is None:
                    return False, None
                self._trunk_of[run_id] = trunk_id(decode(RunSpec, spec))
            except (ConfigError, StoreError):
                return False, None  # damaged, or another version's
        return True, self._trunk_of[run_id]

    def _unfinished_submissions(self) -> list[Submission]:
        """Those that may still run something: as the scheduler says, or, where it cannot be asked, by their runs."""
        self._scheduler_problem = None
        try:
            submissions = self._submissions.all()
        except StoreError as error:
            raise StoreError(f"{error}; expected to know what is submitted before anything is removed") from error
        open_ = [s for s in submissions if s.number not in self._over]
        never = {s.number for s in open_ if s.answer is not None and s.answer.job_id is None}
        self._over |= never
        open_ = [s for s in open_ if s.number not in never]
        ids = [s.job_id for s in open_ if s.job_id is not None]
        active: set[str] | None = None
        if ids and self._slurm is not None:
            try:
                jobs = self._slurm.jobs(ids)
                active = {job_id.partition("_")[0] for job_id, job in jobs.items() if job.is_active}
                known = {job_id.partition("_")[0] for job_id in jobs}
                # What the scheduler has forgotten, or another one was asked for, is told by its runs.
                self._over |= {s.number for s in open_ if s.job_id in known - active}
            except SchedulerError as error:
                self._scheduler_problem = f"{error}; submissions are told by what became of their runs"
        return [
            s
            for s in open_
            if s.number not in self._over and ((active is not None and s.job_id in active) or not self._is_done(s))
        ]

    def _is_done(self, submission: Submission) -> bool:
        """Whether all that it was to bring about is there."""
        if submission.answer is None:
            return False
        for _, item in submission.items():
            match item.kind:
                case "run" if self._store.record_path(item.run_id).is_file():
                    continue
                case "trunk" if item.trunk_id is not None:
                    there = self._store.trunk_points(item.trunk_id)
                    diverged = self._store.trunk_diverged_at(item.trunk_id) is not None
                    if diverged or set(item.points) <= set(there):
                        continue
                case "eval" if any((self._store.run_dir(item.run_id) / "evals").glob("*/record.json")):
                    continue
            return False
        return True


def _is_point(found: Found) -> bool:
    return point_step(found.path.name) is not None


def may_be_alive(attempts: Attempts, of_record: int | None) -> bool:
    """Whether somebody may be at the newest attempt; whoever made an earlier one has been taken over from.

    `of_record` is the attempt that the run's record names: its work is done, though its process may be there still.
    """
    number = attempts.last()
    if number == 0 or attempts.ended(number):
        return False
    job = attempts.job(number)
    alive = None if job is None else owner_alive(job)
    if alive is not None:
        return alive
    if number == of_record:
        return False
    # On another host. An attempt that has not said that it ended, and whose counter is gone, has ended all the same.
    return job is None or attempts.heartbeat(number) is not None


def _clock(directory: Path) -> float | None:
    probe = directory / f".gc.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(probe)


# --- proposing ----------------------------------------------------------------------------------


def propose(store: Store, settings: GcSettings, *, slurm: Slurm | None = None) -> Proposal:
    """What would go, without touching it."""
    there = survey(store)
    judge = Judge(store, settings, slurm=slurm, hashed=False)
    removals, spare = [], []
    protected: defaultdict[str, int] = defaultdict(int)
    for found in there.found:
        verdict = judge.verdict(found)
        if verdict.protected is not None:
            protected[verdict.protected] += 1
        if verdict.why is None:
            continue
        if verdict.spare is None:
            removals.append(Removal(found=found, why=verdict.why))
        else:
            spare.append((verdict.spare, Removal(found=found, why=verdict.why)))
    left = there.total() - _sum(removals)
    chosen = []
    for _, removal in sorted(spare, key=lambda item: (item[0], item[1].found.path)):
        over = _over(left, settings)
        gains = removal.found.usage
        if (over.n_bytes > 0 and gains.n_bytes > 0) or (over.inodes > 0 and gains.inodes > 0):
            chosen.append(removal)
            left -= gains
    return Proposal(
        survey=there,
        removals=tuple(removals),
        for_budget=tuple(chosen),
        shortfall=_over(left, settings),
        protected=dict(protected),
        problems=(*there.problems, *judge.problems, *_elsewhere(store)),
    )


def _sum(removals: Iterable[Removal]) -> Usage:
    return sum((removal.found.usage for removal in removals), NOTHING)


def _over(left: Usage, settings: GcSettings) -> Usage:
    return Usage(
        n_bytes=0 if settings.max_bytes is None else max(0, left.n_bytes - settings.max_bytes),
        inodes=0 if settings.max_inodes is None else max(0, left.inodes - settings.max_inodes),
    )


def _elsewhere(store: Store) -> list[str]:
    """Where submissions have put checkpoints that this command was not told of."""
    with contextlib.suppress(StoreError):
        places = {Path(s.intent.checkpoints).absolute() for s in Submissions(store).all()}
        others = sorted(places - {store.checkpoints_root.absolute()})
        return [f"runs were submitted with their checkpoints in {path}: --checkpoints-root {path}" for path in others]
    return []


# --- removing -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What went, what stayed as something had changed, and what could not go."""

    removed: tuple[Removal, ...]
    changed: tuple[Removal, ...]
    problems: tuple[str, ...]


def remove(
    store: Store,
    proposal: Proposal,
    settings: GcSettings,
    *,
    slurm: Slurm | None = None,
    about_to: Callable[[Removal], object] | None = None,
) -> Removed:
    """Remove what was proposed, each thing only if it may still go. `about_to` is told of each before that is asked."""
    judge = Judge(store, settings, slurm=slurm, hashed=True)
    removed: list[Removal] = []
    changed: list[Removal] = []
    problems: list[str] = []
    said = time.monotonic()
    for count, removal in enumerate(proposal.all()):
        if about_to is not None:
            about_to(removal)
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"removed {count:,} of {len(proposal.all()):,}: {size_text(_sum(removed).n_bytes)}")
        found = removal.found
        try:
            done = _remove(found, judge)
        except OSError as error:
            problems.append(f"{found.path}: {error.strerror or error}")
            continue
        (removed if done else changed).append(removal)
    return Removed(removed=tuple(removed), changed=tuple(changed), problems=tuple(problems))


def _remove(found: Found, judge: Judge) -> bool:
    """Look again, then remove. Raises OSError."""
    judge.refresh()
    now_there = _look(found)
    if now_there is None or judge.verdict(now_there).why is None:
        return False
    if found.owner.kind == "snapshot":
        return _remove_snapshot(now_there, judge)
    if found.path.is_dir():
        os.rmdir(found.path)
        return True
    try:
        os.unlink(found.path)
    except FileNotFoundError:
        return False
    if found.owner.kind in ("run", "trunk") and found.kind != "temporaries":
        _remove_empty(found, judge)
    return True


def _look(found: Found) -> Found | None:
    """The same, as it is now; None where it is not there, or has been written again since the scan."""
    try:
        status = found.path.lstat()
    except FileNotFoundError:
        return None
    return found if status.st_mtime == found.mtime else None


def _remove_empty(found: Found, judge: Judge) -> None:
    """The directory whose last file went, if nobody will write there again."""
    directory = found.path.parent
    with contextlib.suppress(OSError):
        if os.listdir(directory):
            return
        mtime = directory.stat().st_mtime
        empty = Found(
            path=directory, kind="checkpoints", owner=found.owner, usage=NOTHING, mtime=mtime, device=found.device
        )
        # The directory is as young as the removal: only what a finished run leaves goes at once.
        if judge.verdict(empty).why is not None:
            os.rmdir(directory)


def _remove_snapshot(found: Found, judge: Judge) -> bool:
    """Put it aside first: who submits in the meantime finds it missing, or is seen, and then it is put back."""
    aside = found.path.with_name(f".{found.path.name}.gone.{os.getpid()}.{time.monotonic_ns()}")
    if found.kind == "snapshots":
        os.rename(found.path, aside)
        judge.refresh()
        if judge.verdict(found).why is None:
            with contextlib.suppress(OSError):  # it has been made again meanwhile
                os.rename(aside, found.path)
                return False
        shutil.rmtree(aside)
    else:
        shutil.rmtree(found.path)
    return True


def _mixer_places(intent: Intent) -> set[str]:
    """Where outside mixers' files are, which are copies in a snapshot, too: all parts of their paths."""
    return {part for path in intent.execution.get("mixers") or () for part in Path(str(path)).parts}


# --- in words -----------------------------------------------------------------------------------


def usage_text(there: Survey) -> str:
    """Bytes, files and directories by kind."""
    total = there.total()
    rows = [(kind, there.usage[kind]) for kind in _KINDS if kind in there.usage]
    return _usage_table([*((str(kind), usage) for kind, usage in rows), ("in all", total)])


def _usage_table(rows: Iterable[tuple[str, Usage]]) -> str:
    return table(
        ["what", "bytes", "inodes"], [[what, size_text(usage.n_bytes), str(usage.inodes)] for what, usage in rows]
    )


def proposal_text(proposal: Proposal, settings: GcSettings, *, every: bool = False) -> str:
    """What would go and why, by kind and one by one, and what stays although a budget asks for more."""
    parts = [usage_text(proposal.survey)]
    removals = proposal.all()
    if removals:
        by_why: defaultdict[str, list[Removal]] = defaultdict(list)
        for place, removal in enumerate(removals):
            why = removal.why if place < len(proposal.removals) else "over the budget: final weights"
            by_why[f"{removal.found.kind}: {why}"].append(removal)
        rows = [(why, _sum(found)) for why, found in by_why.items()]
        parts.append(f"to be removed:\n{_usage_table([*rows, ('in all', _sum(removals))])}")
        shown = removals if every else removals[:_SHOWN]
        lines = [f"  {r.found.path}  ({r.found.owner.text()}: {r.why})" for r in shown]
        if len(removals) > len(shown):
            lines.append(f"  and {len(removals) - len(shown):,} more: --list names them all")
        parts.append("\n".join(lines))
    else:
        parts.append("nothing to remove")
    if proposal.protected:
        parts.append("\n".join(f"left alone: {count} {what}" for what, count in sorted(proposal.protected.items())))
    parts += [_budget_text(proposal, settings)] if settings.max_bytes or settings.max_inodes else []
    return "\n\n".join(parts)


def _budget_text(proposal: Proposal, settings: GcSettings) -> str:
    left = proposal.survey.total() - _sum(proposal.all())
    asked = [f"{size_text(settings.max_bytes)}"] if settings.max_bytes is not None else []
    asked += [f"{settings.max_inodes:,} inodes"] if settings.max_inodes is not None else []
    said = f"budget of {' and '.join(asked)}: {size_text(left.n_bytes)} and {left.inodes:,} inodes would remain"
    over = proposal.shortfall
    beyond = [f"{size_text(over.n_bytes)}"] if over.n_bytes else []
    beyond += [f"{over.inodes:,} inodes"] if over.inodes else []
    if not beyond:
        return said
    return (
        f"{said}: {' and '.join(beyond)} too much, and nothing else may go; "
        "unpin runs, remove branch points (--branch-points), or have more"
    )
