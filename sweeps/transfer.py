"""Stores in files, and stores merged: `python -m sweeps export` and `import`.

An export is a tar file of a store's files under their own names, `manifest.json` the last of them:

    format.json  runs/...  trunks/...  requests/...  speeds/...  diffs/...  notes/...
    checkpoints/ab/<run_id>/final-a001.safetensors     with --weights
    checkpoints/trunks/ab/<trunk_id>/point00000120.ckpt  with --checkpoints
    manifest.json                                      the length and SHA-256 of all of them

Importing publishes what is not there yet, and replaces nothing. Where both stores have a record of a run, or describe
it differently, this one's stands and the other is told of. Attempts keep their numbers where these are free; where both
stores tried a run, those of the other follow the ones that are here, and what names them by number is told the new one:
the metrics that go on from them, the record, the weights. Which of them came with an earlier import is told by who made
them, so that importing again changes nothing.

    attempts/003/imported.json    the attempt was made in another store, under what number there

Neither an import nor an export takes along an attempt that somebody is at just now.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import socket
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from hybrid.checkpoint_files import point_step, weights_attempt
from hybrid.decode import decode, did_you_mean, digest
from hybrid.durable import make_dir, sync_dir
from hybrid.spec import ConfigError, RunSpec
from sweeps.gc import may_be_alive
from sweeps.notes import NoteBook, decode_event, publish_event, subject_of
from sweeps.progress import say
from sweeps.store import (
    FINAL,
    FORMAT,
    RECORD_SCHEMA,
    Attempts,
    Store,
    StoreError,
    now,
    owner_alive,
    publish,
    read_json,
    request_id,
)
from sweeps.text import size_text
from sweeps.trunks import trunk_id

_SCHEMA: Final = 1
_MANIFEST: Final = "manifest.json"
_FORMAT_FILE: Final = "format.json"
_BLOCK_BYTES: Final = 1 << 20
_SAY_EVERY_S: Final = 10.0
_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
_SMALL_BYTES: Final = 1 << 20
_HEARTBEAT: Final = "heartbeat"  # of an attempt that is over, it says nothing
_IMPORTED: Final = "imported.json"
_ENDINGS: Final = ("error.json", "end.json", "triage.json")

_ID = "[0-9a-f]{12}"
_PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_OWNED = rf"(?P<shard>[0-9a-f]{{2}})/(?P<id>{_ID})"
_IN_ATTEMPT = rf"attempts/(?P<attempt>\d{{3,9}})/(?P<file>{_PLAIN})"
_NAMES: Final = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("run", rf"runs/{_OWNED}/(?:spec\.json|record\.json|evals/(?P<eval>[0-9a-f]+)/record\.json|{_IN_ATTEMPT})"),
        ("run", rf"checkpoints/{_OWNED}/final-a\d{{3,9}}\.safetensors"),
        ("trunk", rf"trunks/{_OWNED}/(?:spec\.json|diverged\.json|points/step\d{{8,16}}\.json|{_IN_ATTEMPT})"),
        ("trunk", rf"checkpoints/trunks/{_OWNED}/point\d{{8,16}}\.ckpt"),
        ("request", r"requests/(?P<sweep>[^/.\0][^/\0]*)/(?P<hash>[0-9a-f]{8,64})\.json"),
        ("speed", rf"speeds/{_ID}/{_PLAIN}\.json"),
        ("diff", r"diffs/[0-9a-f]+\.patch"),
        ("note", r"notes/\d{8,16}\.json"),
        ("store", r"format\.json|manifest\.json"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file of an archive: its name as in a store, its length, when it was last modified, and how it is opened."""

    name: str
    size: int
    mtime: float
    open: Callable[[], BinaryIO]

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()


@dataclass(frozen=True, kw_only=True)
class _Name:
    """What a member's name says: whose it is, and which file of an attempt."""

    kind: str
    owner: str
    attempt: int | None
    file: str | None


def _parsed(name: str) -> _Name | None:
    """None for a name that no file of an export has."""
    for kind, pattern in _NAMES:
        found = pattern.fullmatch(name)
        if found is None:
            continue
        parts = found.groupdict()
        if parts.get("shard") is not None and parts["shard"] != parts["id"][:2]:
            return None
        owner = parts.get("id") or (f"{parts['sweep']}/{parts['hash']}" if kind == "request" else "")
        attempt = parts.get("attempt")
        return _Name(kind=kind, owner=owner, attempt=None if attempt is None else int(attempt), file=parts.get("file"))
    return None


class _Progress:
    """A line now and then where it takes long."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = time.monotonic()
        self._files = self._bytes = 0

    def __call__(self, size: int) -> None:
        self._files += 1
        self._bytes += size
        if time.monotonic() - self._said > _SAY_EVERY_S:
            self._said = time.monotonic()
            say(f"{self._what} {self._files:,} files, {size_text(self._bytes)}")


# --- what is taken along ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What of a store is exported; None of `runs`, `trunks` and `requests` stands for all."""

    runs: frozenset[str] | None
    trunks: frozenset[str] | None
    requests: frozenset[str] | None
    weights: bool
    points: bool


def choose_all(*, weights: bool, points: bool) -> Choice:
    """Everything."""
    return Choice(runs=None, trunks=None, requests=None, weights=weights, points=points)


def choose_named(store: Store, names: Sequence[str], *, weights: bool, points: bool) -> Choice:
    """The requests of these sweeps with all their runs, and these runs, with the trunks they start from.

    Raises ConfigError for names that are neither, all of them at once.
    """
    problems: list[str] = []
    runs: set[str] = set()
    trunks: set[str] = set()
    requests: set[str] = set()
    known = store.requests()
    for name in names:
        found = [request for request in known if request.sweep == name]
        if found:
            requests |= {request_id(request) for request in found}
            runs |= {run for request in found for run in request.run_ids()}
            continue
        try:
            subject, _ = subject_of(store, name)
        except ConfigError as error:
            problems.append(error.problems[0] + did_you_mean(name, {request.sweep for request in known}))
            continue
        if "/" in subject:
            requests.add(subject)
            runs |= {run for request in known if request_id(request) == subject for run in request.run_ids()}
        else:
            (trunks if store.is_trunk(subject) else runs).add(subject)
    if problems:
        raise ConfigError(problems)
    trunks |= {trunk for run in runs if (trunk := _trunk_of(store, run)) is not None}
    return Choice(
        runs=frozenset(runs),
        trunks=frozenset(trunks),
        requests=frozenset(requests),
        weights=weights,
        points=points,
    )


def _trunk_of(store: Store, run_id: str) -> str | None:
    with contextlib.suppress(StoreError):
        record = store.record(run_id) or {}
        part = record.get("provenance", {}).get("trunk")
        if part is not None:
            return str(part["id"])
        spec = store.spec(run_id)
        with contextlib.suppress(ConfigError):  # another version's
            return None if spec is None else trunk_id(decode(RunSpec, spec))
    return None


def members(store: Store, choice: Choice, left: list[str]) -> Iterator[Member]:
    """The files of a store that are chosen, trunks before runs; `left` is told what is left out, and why."""
    yield _constant(_FORMAT_FILE, json.dumps({"format": FORMAT}) + "\n")
    for trunk in sorted(_ids(store.root / "trunks")):
        if choice.trunks is None or trunk in choice.trunks:
            yield from _members_of_trunk(store, trunk, choice, left)
    for run_id in store.run_ids():
        if re.fullmatch(_ID, run_id) and (choice.runs is None or run_id in choice.runs):
            yield from _members_of_run(store, run_id, choice, left)
    for path in map(Path, store.request_files()):
        name = path.relative_to(store.root).as_posix()
        if choice.requests is None or name.removeprefix("requests/").removesuffix(".json") in choice.requests:
            yield from _file(path, name, left)
    for directory in _listed(store.root / "speeds"):
        for path in _listed(directory):
            yield from _file(path, path.relative_to(store.root).as_posix(), left)
    for path in _listed(store.root / "diffs"):  # by which records say what their code was
        yield from _file(path, f"diffs/{path.name}", left)
    yield from _members_of_notes(store, choice, left)


def _members_of_run(store: Store, run_id: str, choice: Choice, left: list[str]) -> Iterator[Member]:
    base = f"runs/{run_id[:2]}/{run_id}"
    try:
        record = store.record(run_id)
    except StoreError as error:
        left.append(f"run {run_id}: {error}")
        return
    if not store.spec_path(run_id).is_file():
        return
    yield from _file(store.spec_path(run_id), f"{base}/spec.json", left)
    yield from _file(store.record_path(run_id), f"{base}/record.json", left)
    own = None if record is None else record.get("attempt")
    yield from _members_of_attempts(store.attempts(run_id), f"{base}/attempts", own, f"run {run_id}", left)
    for directory in _listed(store.run_dir(run_id) / "evals"):
        yield from _file(directory / "record.json", f"{base}/evals/{directory.name}/record.json", left)
    if choice.weights and record is not None and record["status"] == "done" and own is not None:
        path = store.weights_path(run_id, own)
        if not path.is_file():
            left.append(f"run {run_id}: its final weights are not in {path.parent}")
        yield from _file(path, f"checkpoints/{run_id[:2]}/{run_id}/{path.name}", left)


def _members_of_trunk(store: Store, trunk: str, choice: Choice, left: list[str]) -> Iterator[Member]:
    base, directory = f"trunks/{trunk[:2]}/{trunk}", store.trunk_dir(trunk)
    yield from _file(directory / "spec.json", f"{base}/spec.json", left)
    yield from _members_of_attempts(store.trunk_attempts(trunk), f"{base}/attempts", None, f"trunk {trunk}", left)
    yield from _file(directory / "diverged.json", f"{base}/diverged.json", left)
    for path in _listed(directory / "points"):
        yield from _file(path, f"{base}/points/{path.name}", left)
    if choice.points:
        for path in _listed(store.trunk_checkpoints_dir(trunk)):
            if point_step(path.name) is not None:
                yield from _file(path, f"checkpoints/trunks/{trunk[:2]}/{trunk}/{path.name}", left)


def _members_of_attempts(
    attempts: Attempts, base: str, of_record: int | None, what: str, left: list[str]
) -> Iterator[Member]:
    """The attempts that are over; who makes them first, as an import needs to know that first."""
    last = attempts.last()
    numbers = range(1, last + 1)
    if last and may_be_alive(attempts, of_record):
        left.append(f"{what}: its attempt {last}, which somebody may be at just now")
        numbers = range(1, last)
    directories = {number: _listed(attempts.path(number)) for number in numbers}
    for first in (True, False):
        for number, paths in directories.items():
            for path in paths:
                if path.name != _HEARTBEAT and (path.name == "job.json") == first:
                    yield from _file(path, f"{base}/{attempts.path(number).name}/{path.name}", left)


def _members_of_notes(store: Store, choice: Choice, left: list[str]) -> Iterator[Member]:
    """The events that are about anything that is chosen."""
    book = NoteBook(store)
    left += book.problems
    chosen: frozenset[str] | None = None
    if choice.runs is not None and choice.trunks is not None and choice.requests is not None:
        chosen = choice.runs | choice.trunks | choice.requests
    for name, event in book.named_events():
        if chosen is None or chosen & set(event.subjects):
            yield from _file(store.root / "notes" / name, f"notes/{name}", left)


def _file(path: Path, name: str, left: list[str]) -> Iterator[Member]:
    """The file, if it is one and is there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if not path.is_file() or path.is_symlink():
        return
    if _parsed(name) is None:
        left.append(f"{path}: not the name of a file of a store")
        return
    yield Member(name=name, size=status.st_size, mtime=status.st_mtime, open=partial(_opened, path))


def _opened(path: Path) -> BinaryIO:
    return open(path, "rb")


def _constant(name: str, text: str) -> Member:
    content = text.encode()
    return Member(name=name, size=len(content), mtime=0.0, open=lambda: io.BytesIO(content))


def _listed(directory: Path) -> list[Path]:
    """What is in a directory, but for what is hidden, in order."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in sorted(names) if not name.startswith(".")]


def _ids(root: Path) -> Iterator[str]:
    for shard in _listed(root):
        yield from (path.name for path in _listed(shard) if re.fullmatch(_ID, path.name))


# --- export -------------------------------------------------------------------------------------


def export_store(
    store: Store, names: Sequence[str], file: Path, *, everything: bool, weights: bool, points: bool
) -> int:
    """`python -m sweeps export`: gives the exit code. Raises ConfigError, StoreError, OSError."""
    problems = []
    if not file.name.endswith(_SUFFIXES):
        problems.append(f"export: FILE = {file}: expected a name that ends in .tar or .tar.gz")
    elif file.exists():
        problems.append(f"export: FILE = {file}: is there already: expected the name of a new file")
    elif not file.absolute().parent.is_dir():
        problems.append(f"export: FILE = {file}: expected a directory that is there")
    if everything == bool(names):
        problems.append("export: expected the names of sweeps or runs, or --all for everything; and not both")
    if problems:
        raise ConfigError(problems)
    if everything:
        choice = choose_all(weights=weights, points=points)
    else:
        choice = choose_named(store, names, weights=weights, points=points)
    left: list[str] = []
    count, size = write_archive(file, members(store, choice, left), source=str(store.root.absolute()))
    for line in left:
        say(f"left out: {line}")
    print(f"{file}: {count:,} files, {size_text(size)}; merge it into another store with: python -m sweeps import")
    return 0


def write_archive(file: Path, found: Iterable[Member], *, source: str) -> tuple[int, int]:
    """Write an archive that appears under its name only when it is whole; gives its number of files and its bytes."""
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    listed: dict[str, tuple[int, str]] = {}
    progress = _Progress("exported")
    try:
        with open(temporary, "xb") as raw:
            with _tar_into(raw, compressed=not file.name.endswith(".tar")) as tar:
                for member in found:
                    try:
                        opened = member.open()
                    except FileNotFoundError:
                        continue  # a newer measurement has replaced it, say
                    with opened as content:
                        listed[member.name] = _add(tar, member, content)
                    progress(member.size)
                manifest = {"schema": _SCHEMA, "format": FORMAT, "source": source, "at": now(), "files": listed}
                last = _constant(_MANIFEST, json.dumps(manifest) + "\n")
                with last.open() as content:
                    _add(tar, last, content)
            raw.flush()
            os.fsync(raw.fileno())
        try:
            os.link(temporary, file)
        except FileExistsError:
            raise ConfigError(f"export: FILE = {file}: has come to be there meanwhile: it was left alone") from None
        sync_dir(file.absolute().parent)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return len(listed), file.stat().st_size


def _tar_into(file: BinaryIO, *, compressed: bool) -> tarfile.TarFile:
    # Weights hardly become smaller; the rest does with little effort.
    return (
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=3) if compressed else tarfile.open(fileobj=file, mode="w")
    )


def _add(tar: tarfile.TarFile, member: Member, content: BinaryIO) -> tuple[int, str]:
    """Add a file, as long as it is now; gives its length and digest."""
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    info = tarfile.TarInfo(member.name)
    info.size, info.mtime, info.mode = size, int(member.mtime), 0o644
    if member.name.startswith("requests/"):  # by the fraction of a second, too, are they in order
        info.pax_headers = {"mtime": f"{member.mtime:.9f}"}
    reader = _Hashing(content)
    tar.addfile(info, reader)
    return size, reader.sha256.hexdigest()


class _Hashing:
    """A file to read from that hashes what goes by."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        return content


# --- archives -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Archive:
    """What is to be imported: files by name, in the order in which they are best read, and where they are from."""

    members: Mapping[str, Member]
    source: str


@contextlib.contextmanager
def opened(source: Path, *, weights: bool, points: bool, left: list[str]) -> Iterator[Archive]:
    """An export, looked at from end to end before it is given; or a store, of which what is chosen is taken.

    Raises ConfigError for what is neither, or is torn, altered, or not made by `export`; StoreError for a newer format.
    """
    if source.is_dir():
        if not (source / _FORMAT_FILE).is_file():
            raise ConfigError(
                f"import: {source}: no {_FORMAT_FILE} in it: expected a store, or a file that export made"
            )
        other = Store(source)
        other.check_format()
        found = {m.name: m for m in members(other, choose_all(weights=weights, points=points), left)}
        yield Archive(members=found, source=str(source.absolute()))
        return
    if not source.is_file():
        raise ConfigError(f"import: {source}: no such file or directory")
    tar = _tar_from(source)
    with tar:
        try:
            archive = _checked(tar, source)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise ConfigError(f"import: {source}: torn or damaged ({error}). Nothing was written") from None
        yield archive


def _tar_from(source: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(source, "r:*")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ConfigError(f"import: {source}: {error}: expected a file that export made. Nothing was written") from None


def _checked(tar: tarfile.TarFile, source: Path) -> Archive:
    def refused(why: str) -> ConfigError:
        return ConfigError(f"import: {source}: {why}: expected a file that export made. Nothing was written")

    found: dict[str, Member] = {}
    seen: dict[str, list[Any]] = {}
    manifest: dict[str, Any] | None = None
    progress = _Progress("checked")
    for info in tar:
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
            raise refused(f"{info.name!r} is no plain file")
        if PurePosixPath(info.name).is_absolute() or ".." in info.name.split("/") or _parsed(info.name) is None:
            raise refused(f"{info.name!r} is not the name of a file of a store")
        if info.name in seen:
            raise refused(f"{info.name!r} is in it twice")
        if manifest is not None:
            raise refused(f"{info.name!r} comes after the manifest")
        content = tar.extractfile(info)
        assert content is not None
        sha256, kept = hashlib.sha256(), bytearray()
        while block := content.read(_BLOCK_BYTES):
            sha256.update(block)
            if info.name in (_MANIFEST, _FORMAT_FILE):
                kept += block
        seen[info.name] = [info.size, sha256.hexdigest()]
        if info.name == _FORMAT_FILE:
            _check_format(bytes(kept), source)
        if info.name == _MANIFEST:
            manifest = _object(bytes(kept))
            if manifest is None:
                raise refused("its manifest is damaged")
        else:
            found[info.name] = Member(name=info.name, size=info.size, mtime=float(info.mtime), open=_opener(tar, info))
        progress(info.size)
    if manifest is None:
        raise refused("it has no manifest at its end, so it is torn, or something else")
    if manifest.get("schema") != _SCHEMA:
        raise StoreError(f"{source}: schema {manifest.get('schema')}, this version reads schema {_SCHEMA}")
    if manifest.get("files") != {name: facts for name, facts in seen.items() if name != _MANIFEST}:
        raise refused("its files are not those of its manifest")
    if _FORMAT_FILE not in found:
        raise refused(f"it has no {_FORMAT_FILE}")
    return Archive(members=found, source=str(manifest.get("source")))


def _opener(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], BinaryIO]:
    def open_() -> BinaryIO:
        file = tar.extractfile(info)
        assert file is not None
        return file  # type: ignore[return-value]

    return open_


def _check_format(content: bytes, source: Path) -> None:
    found = (_object(content) or {}).get("format")
    if found != FORMAT:
        raise StoreError(
            f"{source}: format {found}, this version reads format {FORMAT}: "
            "use the version of hybrid-ablations that wrote it. Nothing was written"
        )


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


# --- import -------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Merged:
    """What an import came to: how many things were new, by what they are, and what was not taken."""

    new: dict[str, int] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def count(self, what: str) -> None:
        self.new[what] = self.new.get(what, 0) + 1


def import_store(store: Store, source: Path, *, weights: bool, points: bool) -> int:
    """`python -m sweeps import`: gives the exit code, 1 where something conflicts. Raises as `opened`, and OSError."""
    left: list[str] = []
    with opened(source, weights=weights, points=points, left=left) as archive:
        merged = merge(store, archive)
    for line in (*left, *merged.left):
        say(f"left alone: {line}")
    for line in merged.conflicts:
        say(f"conflict: {line}")
    said = ", ".join(f"{n:,} {what}" for what, n in sorted(merged.new.items()))
    print(f"{store.root}: new from {source}: {said or 'nothing'}")
    return 1 if merged.conflicts else 0


def merge(store: Store, archive: Archive) -> Merged:
    """Publish what the store has not. Raises OSError where it cannot be written to; asking again then goes on."""
    store.prepare()
    merging = _Merging(store, archive)
    merging.everything()
    return merging.merged


class _UnderWay(Exception):
    """Somebody is at the run, or trunk, in this store."""


class _Merging:
    def __init__(self, store: Store, archive: Archive) -> None:
        self._store, self._archive = store, archive
        self._trunk_numbers: dict[str, dict[int, int]] = {}
        self._trunks_left: set[str] = set()
        self._progress = _Progress("imported")
        self.merged = Merged()

    def everything(self) -> None:
        groups: dict[tuple[str, str], list[Member]] = {}
        for member in self._archive.members.values():
            name = _parsed(member.name)
            assert name is not None
            groups.setdefault((name.kind, name.owner), []).append(member)
        # Runs' metrics name attempts at trunks.
        for kind, work in (("trunk", self._trunk), ("run", self._run)):
            for (of, owner), found in groups.items():
                if of == kind:
                    try:
                        work(owner, {m.name.rpartition(f"{owner}/")[2]: _fetched(m) for m in found})
                    except _UnderWay as under_way:
                        self.merged.left.append(f"{kind} {owner}: {under_way}; import again once it has ended")
                        if kind == "trunk":
                            self._trunks_left.add(owner)
        for (kind, owner), found in groups.items():
            if kind == "request":
                self._request(owner, found[0])
            elif kind == "diff":
                self._diffs(found)
        self._speeds([member for (kind, _), found in groups.items() if kind == "speed" for member in found])
        self._notes([member for (kind, _), found in groups.items() if kind == "note" for member in found])

    # --- runs ---

    def _run(self, run_id: str, found: Mapping[str, Member]) -> None:
        store = self._store
        if not self._described(store.spec_path(run_id), found.get("spec.json"), run_id, "run"):
            return
        self._check_trunks(found)
        record = self._their_record(run_id, found.get("record.json"))
        try:
            own = store.record(run_id)
        except StoreError as error:
            self.merged.conflicts.append(f"run {run_id}: {error}; nothing of it was taken")
            return
        numbers = self._attempts(
            store.attempts(run_id),
            found,
            None if record is None else record.get("attempt"),
            of_own_record=None if own is None else own.get("attempt"),
            finished=own is not None,
        )
        if record is None:
            return
        record = self._renumbered_record(record, numbers)
        if own is None:
            self._weights(run_id, found, numbers)
            if store.publish_record(run_id, record):
                self.merged.count("records")
            own = store.record(run_id)
        if not _same(own, record):
            self.merged.conflicts.append(
                f"run {run_id}: both stores have a record; this one's stands ({_differences(own or {}, record)})"
            )
            directory = store.attempt_dir(run_id, record.get("attempt") or 0)
            if (directory / _IMPORTED).exists() and not any((directory / name).exists() for name in _ENDINGS):
                self._publish_ending(directory, "it finished there, but another record stands here")
            return
        self._weights(run_id, found, numbers)
        for name, member in found.items():
            parts = name.split("/")
            if parts[0] == "evals":
                self._evaluation(run_id, parts[1], member)

    def _check_trunks(self, found: Mapping[str, Member]) -> None:
        """A run's metrics name an attempt at its trunk, whose number here is not known before that one is taken."""
        for name, member in found.items() if self._trunks_left else ():
            start = member.read().partition(b"\n")[0] if name.endswith("/metrics.jsonl") else b""
            if (_object(start) or {}).get("trunk") in self._trunks_left:
                raise _UnderWay("its trunk is under way here")

    def _described(self, path: Path, member: Member | None, id_: str, what: str) -> bool:
        """Publish what describes a run or trunk; False where there is none, or it is not what the id says."""
        if member is None:
            self.merged.left.append(f"{what} {id_}: nothing in it says what it is")
            return False
        text = member.read().decode(errors="replace")
        if digest(text.strip()) != id_:
            self.merged.conflicts.append(f"{what} {id_}: the description of another; nothing of it was taken")
            return False
        make_dir(path.parent)
        if publish(path, text):
            self.merged.count(f"{what}s")
        elif path.read_text(encoding="utf-8").strip() != text.strip():
            self.merged.conflicts.append(f"{what} {id_}: described differently here ({path}); nothing of it was taken")
            return False
        return True

    def _their_record(self, run_id: str, member: Member | None) -> dict[str, Any] | None:
        if member is None:
            return None
        record = _object(member.read())
        if record is None or not _is_record(record, run_id):
            self.merged.conflicts.append(f"run {run_id}: its record is damaged, or of another version: not taken")
            return None
        return record

    def _renumbered_record(self, record: dict[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
        """The record with its attempts, and those of its trunk, as they are numbered here."""
        if record.get("attempt") is not None:
            record = {**record, "attempt": numbers.get(record["attempt"], record["attempt"])}
        part = (record.get("provenance") or {}).get("trunk")
        if part is not None and part.get("attempt") is not None:
            of_trunk = self._trunk_numbers.get(part["id"], {})
            part = {**part, "attempt": of_trunk.get(part["attempt"], part["attempt"])}
            record = {**record, "provenance": {**record["provenance"], "trunk": part}}
        return record

    def _weights(self, run_id: str, found: Mapping[str, Member], numbers: Mapping[int, int]) -> None:
        for name, member in found.items():
            attempt = weights_attempt(name)
            if attempt is not None and attempt in numbers:
                self._copy(member, self._store.weights_path(run_id, numbers[attempt]), "final weights")

    def _evaluation(self, run_id: str, eval_id: str, member: Member) -> None:
        record = _object(member.read())
        if record is None or record.get("schema") != RECORD_SCHEMA:
            self.merged.conflicts.append(f"run {run_id}: evaluation {eval_id} is damaged, or of another version")
            return
        if self._store.publish_eval_record(run_id, eval_id, record):
            self.merged.count("evaluations")
            return
        own = self._store.eval_record(run_id, eval_id)
        if not _same(own, record):
            self.merged.conflicts.append(
                f"run {run_id}: both stores have evaluation {eval_id}; this one's stands "
                f"({_differences(own or {}, record)})"
            )

    # --- trunks ---

    def _trunk(self, trunk: str, found: Mapping[str, Member]) -> None:
        store, directory = self._store, self._store.trunk_dir(trunk)
        if not self._described(directory / "spec.json", found.get("spec.json"), trunk, "trunk"):
            return
        numbers = self._attempts(store.trunk_attempts(trunk), found, None, of_own_record=None, finished=False)
        self._trunk_numbers[trunk] = numbers
        for name, member in found.items():
            facts = _object(member.read()) if name.startswith("points/") or name == "diverged.json" else None
            if facts is None or facts.get("schema") != RECORD_SCHEMA:
                continue
            attempt = facts["attempt"] if isinstance(facts.get("attempt"), int) else 0
            if name == "diverged.json":
                self._publish(directory / name, {**facts, "attempt": numbers.get(attempt, attempt)}, "trunks' facts")
                continue
            if numbers.get(attempt, attempt) != attempt:
                # Its checkpoint names the attempt by the number that it had.
                self.merged.left.append(f"trunk {trunk}: {name}: both stores have tried it; this one's points stand")
                continue
            point = f"point{name.removeprefix('points/step').removesuffix('.json')}.ckpt"
            if point in found:
                self._copy(found[point], store.trunk_checkpoints_dir(trunk) / point, "branch points")
            self._publish(directory / name, facts, "trunks' facts")

    # --- attempts ---

    def _attempts(
        self,
        attempts: Attempts,
        found: Mapping[str, Member],
        of_record: int | None,
        *,
        of_own_record: int | None,
        finished: bool,
    ) -> dict[int, int]:
        """Take over the attempts that are not here; gives their numbers here by those that they had.

        `of_record` and `of_own_record` are the attempts that the records name. Raises _UnderWay where somebody is at
        the run here.
        """
        theirs = _by_attempt(found)
        if of_record is not None:
            theirs.setdefault(of_record, {})  # its history is gone, but a record names it: it keeps a number
        identities = {number: _identity(files) for number, files in theirs.items()}
        if not finished and _under_way(attempts, set(identities.values())):
            raise _UnderWay("is under way here")
        here: dict[str, int] = {}
        for number in range(attempts.last(), 0, -1):
            identity = _own_identity(attempts, number)
            if identity is not None:
                here[identity] = number
            elif number == of_own_record:
                here[_identity({})] = number
        if of_own_record is not None and of_own_record not in here.values():
            here.setdefault(_identity({}), of_own_record)
        numbers = {number: here[identity] for number, identity in identities.items() if identity in here}
        for number in sorted(theirs):
            new = number not in numbers
            if new:
                numbers[number] = self._claimed(attempts, number, identities[number])
            directory = attempts.path(numbers[number])
            if (directory / _IMPORTED).exists():
                self._fill(directory, theirs[number], numbers, ended_well=number == of_record)
            if new:
                self.merged.count("attempts")
        return numbers

    def _claimed(self, attempts: Attempts, number: int, identity: str) -> int:
        """Claim a number for an attempt that had `number` elsewhere: that one if it comes after all that are here."""
        number_here = max(attempts.last() + 1, number)
        attempt = attempts.claim(number_here - 1)
        if attempt is None:
            raise _UnderWay("has just begun here")
        facts = {"identity": identity, "number": number, "source": self._archive.source, "at": now()}
        try:
            publish(attempt.directory / _IMPORTED, json.dumps(facts) + "\n")
        except BaseException:
            with contextlib.suppress(OSError):
                attempt.directory.rmdir()
            raise
        return number_here

    def _fill(
        self, directory: Path, files: Mapping[str, Member], numbers: Mapping[int, int], *, ended_well: bool
    ) -> None:
        for name, member in files.items():
            if name == _IMPORTED:
                continue
            content = member.read()
            if name == "metrics.jsonl":
                content = self._renumbered_metrics(content, numbers)
            publish(directory / name, content)
            self._progress(len(content))
        if not ended_well and not any(name in files for name in _ENDINGS):
            self._publish_ending(directory, "it did not say how it ended")

    def _publish_ending(self, directory: Path, how: str) -> None:
        """Say of an attempt from another store that it is over: nobody here can tell otherwise."""
        facts = {"class": "unknown", "message": f"taken over from {self._archive.source}: {how}", "at": now()}
        publish(directory / "triage.json", json.dumps(facts) + "\n")

    def _renumbered_metrics(self, content: bytes, numbers: Mapping[int, int]) -> bytes:
        lines = content.splitlines(keepends=True)
        for i, line in enumerate(lines):
            if b"of_attempt" not in line:
                continue
            entry = _object(line)
            if entry is None or not isinstance(entry.get("of_attempt"), int):
                continue
            of = numbers if "resumed_at_step" in entry else self._trunk_numbers.get(str(entry.get("trunk")), {})
            before = entry["of_attempt"]
            # One that did not come along must not become one of another's here: 0 is none.
            after = of.get(before, before if all(old == new for old, new in of.items()) else 0)
            if after != before:
                lines[i] = (json.dumps({**entry, "of_attempt": after}) + "\n").encode()
        return b"".join(lines)

    # --- the rest ---

    def _request(self, name: str, member: Member) -> None:
        path = self._store.root / "requests" / f"{name}.json"
        content = member.read()
        theirs = _object(content)
        if theirs is None or theirs.get("schema") != RECORD_SCHEMA or theirs.get("sweep") != name.rpartition("/")[0]:
            self.merged.conflicts.append(f"request {name}: damaged, or of another version; it was not taken")
            return
        make_dir(path.parent)
        # When it was last asked for there, by which requests are in order.
        if publish(path, content, mtime=member.mtime):
            self.merged.count("requests")
            return
        own = read_json(path) or {}
        if {**own, "created_at": None} != {**theirs, "created_at": None}:
            self.merged.conflicts.append(f"request {name}: both stores have one, and they differ; this one's stands")

    def _diffs(self, found: Sequence[Member]) -> None:
        for member in found:
            path = self._store.root / member.name
            make_dir(path.parent)
            publish(path, member.read())

    def _speeds(self, found: Sequence[Member]) -> None:
        """Measurements of a sort that there are none of here, but for those that came with an earlier import."""
        sorts: dict[tuple[str, str], list[Member]] = {}
        for member in found:
            directory, _, name = member.name.rpartition("/")
            sorts.setdefault((directory, re.sub(r"(-\d{8,})?\.json", "", name)), []).append(member)
        for (directory, sort), members_ in sorts.items():
            pattern = re.compile(rf"{re.escape(sort)}(-\d{{8,}})?\.json")
            here = {p.name: p for p in _listed(self._store.root / directory) if pattern.fullmatch(p.name)}
            theirs = {Path(member.name).name: member.read() for member in members_}
            if any(name not in theirs or path.read_bytes() != theirs[name] for name, path in here.items()):
                continue
            make_dir(self._store.root / directory)
            for name, content in theirs.items():
                if publish(self._store.root / directory / name, content):
                    self.merged.count("measured speeds")

    def _notes(self, found: Sequence[Member]) -> None:
        known = {event.id for event in NoteBook(self._store).events()}
        for member in sorted(found, key=lambda member: member.name):
            try:
                event = decode_event(_object(member.read()) or {}, member.name)
            except StoreError as error:
                self.merged.left.append(str(error))
                continue
            if event.id not in known:
                known.add(event.id)
                publish_event(self._store, event)
                self.merged.count("notes")

    def _publish(self, path: Path, content: Mapping[str, Any], what: str) -> None:
        make_dir(path.parent)
        if publish(path, json.dumps(content, sort_keys=True) + "\n"):
            self.merged.count(what)

    def _copy(self, member: Member, path: Path, what: str) -> None:
        """Copy a big file, whole under its name or not there; one that is there stays."""
        if path.exists():
            if path.stat().st_size != member.size:
                self.merged.left.append(f"{path}: {what} of another length are here already")
            return
        make_dir(path.parent)
        temporary = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}.tmp")
        try:
            with member.open() as source, open(temporary, "wb") as file:
                while block := source.read(_BLOCK_BYTES):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
                self.merged.count(what)
            sync_dir(path.parent)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        self._progress(member.size)


def _fetched(member: Member) -> Member:
    """A small file is read at once: what is compressed is best read from its beginning to its end."""
    if member.size > _SMALL_BYTES:
        return member
    return replace(member, open=partial(io.BytesIO, member.read()))


def _is_record(record: Mapping[str, Any], run_id: str) -> bool:
    """Whether it is a run's record, as far as is looked at here."""
    provenance = record.get("provenance") or {}
    parts = (provenance, record.get("metrics"), provenance.get("trunk") or {} if isinstance(provenance, dict) else {})
    return (
        (record.get("schema"), record.get("run_id")) == (RECORD_SCHEMA, run_id)
        and record.get("status") in FINAL
        and isinstance(record.get("attempt"), int | None)
        and all(isinstance(part, dict) for part in parts)
        and isinstance(parts[2].get("attempt"), int | None)
    )


def _same(own: Mapping[str, Any] | None, theirs: Mapping[str, Any]) -> bool:
    """Whether records say the same; a NaN is one, too."""
    return json.dumps(own, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def _by_attempt(found: Mapping[str, Member]) -> dict[int, dict[str, Member]]:
    """The files of each attempt, who makes it first, how it ended next; attempts without any are none."""
    attempts: dict[int, dict[str, Member]] = {}
    for name, member in found.items():
        parts = name.split("/")
        if parts[0] == "attempts" and parts[2] != _HEARTBEAT:
            attempts.setdefault(int(parts[1]), {})[parts[2]] = member
    first = ("job.json", *_ENDINGS)
    return {
        number: dict(sorted(files.items(), key=lambda item: (item[0] not in first, item[0] != "job.json", item[0])))
        for number, files in attempts.items()
    }


def _identity(files: Mapping[str, Member]) -> str:
    """What tells an attempt from every other one, in whatever store: who made it and when, or else all that it left."""
    if _IMPORTED in files:
        return str((_object(files[_IMPORTED].read()) or {}).get("identity"))
    if "job.json" in files:
        return hashlib.sha256(files["job.json"].read()).hexdigest()
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(name.encode() + b"\0" + hashlib.sha256(files[name].read()).digest())
    return total.hexdigest()


def _own_identity(attempts: Attempts, number: int) -> str | None:
    """Likewise of an attempt that is here; None where it left nothing."""
    paths = [path for path in _listed(attempts.path(number)) if path.name != _HEARTBEAT and path.is_file()]
    return _identity({p.name: m for p in paths for m in _any_file(p)}) if paths else None


def _any_file(path: Path) -> Iterator[Member]:
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        yield Member(name=path.name, size=status.st_size, mtime=status.st_mtime, open=partial(_opened, path))


def _under_way(attempts: Attempts, theirs: set[str]) -> bool:
    """Whether somebody may be at the newest attempt here; not if it is one of theirs, which are over."""
    number = attempts.last()
    if number == 0 or (attempts.path(number) / _IMPORTED).exists() or not may_be_alive(attempts, None):
        return False
    job = attempts.job(number)
    if job is not None and owner_alive(job):
        return True
    return _own_identity(attempts, number) not in theirs


def _differences(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What two records differ in, for people: their metrics above all."""
    here, there = own.get("metrics") or {}, theirs.get("metrics") or {}
    for key in ("val_loss_nats", "val_accuracy", "train_loss_nats", "loss_nats"):
        if here.get(key) is not None or there.get(key) is not None:
            return f"{key} {here.get(key)} here, {there.get(key)} there"
    keys = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    return f"they differ in {', '.join(keys)}"
