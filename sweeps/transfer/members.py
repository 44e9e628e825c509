"""The files of an export: their names, and which are taken along."""

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from hybrid.checkpoint_files import point_step
from hybrid.decode import decode, did_you_mean
from hybrid.spec import ConfigError, RunSpec
from sweeps.gc import may_be_alive
from sweeps.notes import NoteBook, subject_of
from sweeps.progress import say
from sweeps.store import (
    FORMAT,
    Attempts,
    Store,
    StoreError,
    request_id,
)
from sweeps.text import size_text
from sweeps.trunks import trunk_id

FORMAT_FILE: Final = "format.json"
BLOCK_BYTES: Final = 1 << 20
_SAY_EVERY_S: Final = 10.0
HEARTBEAT: Final = "heartbeat"  # of an attempt that is over, it says nothing

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
class MemberName:
    """What a member's name says: whose it is, and which file of an attempt."""

    kind: str
    owner: str
    attempt: int | None
    file: str | None


def parsed(name: str) -> MemberName | None:
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
        return MemberName(
            kind=kind, owner=owner, attempt=None if attempt is None else int(attempt), file=parts.get("file")
        )
    return None


class Progress:
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
    yield constant_member(FORMAT_FILE, json.dumps({"format": FORMAT}) + "\n")
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
    for directory in listed(store.root / "speeds"):
        for path in listed(directory):
            yield from _file(path, path.relative_to(store.root).as_posix(), left)
    for path in listed(store.root / "diffs"):  # by which records say what their code was
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
    for directory in listed(store.run_dir(run_id) / "evals"):
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
    for path in listed(directory / "points"):
        yield from _file(path, f"{base}/points/{path.name}", left)
    if choice.points:
        for path in listed(store.trunk_checkpoints_dir(trunk)):
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
    directories = {number: listed(attempts.path(number)) for number in numbers}
    for first in (True, False):
        for number, paths in directories.items():
            for path in paths:
                if path.name != HEARTBEAT and (path.name == "job.json") == first:
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
    if parsed(name) is None:
        left.append(f"{path}: not the name of a file of a store")
        return
    yield Member(name=name, size=status.st_size, mtime=status.st_mtime, open=partial(open_file, path))


def open_file(path: Path) -> BinaryIO:
    return open(path, "rb")


def constant_member(name: str, text: str) -> Member:
    content = text.encode()
    return Member(name=name, size=len(content), mtime=0.0, open=lambda: io.BytesIO(content))


def listed(directory: Path) -> list[Path]:
    """What is in a directory, but for what is hidden, in order."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in sorted(names) if not name.startswith(".")]


def _ids(root: Path) -> Iterator[str]:
    for shard in listed(root):
        yield from (path.name for path in listed(shard) if re.fullmatch(_ID, path.name))
