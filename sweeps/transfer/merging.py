"""An archive, or another store, merged into a store."""

import contextlib
import hashlib
import io
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from hybrid.checkpoint_files import weights_attempt
from hybrid.decode import digest
from hybrid.durable import make_dir, sync_dir
from sweeps.gc import may_be_alive
from sweeps.notes import NoteBook, decode_event, publish_event
from sweeps.progress import say
from sweeps.store import (
    FINAL,
    RECORD_SCHEMA,
    Attempts,
    Store,
    StoreError,
    now,
    owner_alive,
    publish,
    read_json,
)
from sweeps.transfer.archives import Archive, json_object, opened
from sweeps.transfer.members import BLOCK_BYTES, HEARTBEAT, Member, Progress, listed, open_file, parsed

ENDINGS: Final = ("error.json", "end.json", "triage.json")

IMPORTED: Final = "imported.json"

SMALL_BYTES: Final = 1 << 20


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
        self._progress = Progress("imported")
        self.merged = Merged()

    def everything(self) -> None:
        groups: dict[tuple[str, str], list[Member]] = {}
        for member in self._archive.members.values():
            name = parsed(member.name)
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
            if (directory / IMPORTED).exists() and not any((directory / name).exists() for name in ENDINGS):
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
            if (json_object(start) or {}).get("trunk") in self._trunks_left:
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
        record = json_object(member.read())
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
        record = json_object(member.read())
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
            facts = json_object(member.read()) if name.startswith("points/") or name == "diverged.json" else None
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
            if (directory / IMPORTED).exists():
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
            publish(attempt.directory / IMPORTED, json.dumps(facts) + "\n")
        except BaseException:
            with contextlib.suppress(OSError):
                attempt.directory.rmdir()
            raise
        return number_here

    def _fill(
        self, directory: Path, files: Mapping[str, Member], numbers: Mapping[int, int], *, ended_well: bool
    ) -> None:
        for name, member in files.items():
            if name == IMPORTED:
                continue
            content = member.read()
            if name == "metrics.jsonl":
                content = self._renumbered_metrics(content, numbers)
            publish(directory / name, content)
            self._progress(len(content))
        if not ended_well and not any(name in files for name in ENDINGS):
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
            entry = json_object(line)
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
        theirs = json_object(content)
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
            here = {p.name: p for p in listed(self._store.root / directory) if pattern.fullmatch(p.name)}
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
                event = decode_event(json_object(member.read()) or {}, member.name)
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
                while block := source.read(BLOCK_BYTES):
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
    if member.size > SMALL_BYTES:
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
        if parts[0] == "attempts" and parts[2] != HEARTBEAT:
            attempts.setdefault(int(parts[1]), {})[parts[2]] = member
    first = ("job.json", *ENDINGS)
    return {
        number: dict(sorted(files.items(), key=lambda item: (item[0] not in first, item[0] != "job.json", item[0])))
        for number, files in attempts.items()
    }


def _identity(files: Mapping[str, Member]) -> str:
    """What tells an attempt from every other one, in whatever store: who made it and when, or else all that it left."""
    if IMPORTED in files:
        return str((json_object(files[IMPORTED].read()) or {}).get("identity"))
    if "job.json" in files:
        return hashlib.sha256(files["job.json"].read()).hexdigest()
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(name.encode() + b"\0" + hashlib.sha256(files[name].read()).digest())
    return total.hexdigest()


def _own_identity(attempts: Attempts, number: int) -> str | None:
    """Likewise of an attempt that is here; None where it left nothing."""
    paths = [path for path in listed(attempts.path(number)) if path.name != HEARTBEAT and path.is_file()]
    return _identity({p.name: m for p in paths for m in _any_file(p)}) if paths else None


def _any_file(path: Path) -> Iterator[Member]:
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        yield Member(name=path.name, size=status.st_size, mtime=status.st_mtime, open=partial(open_file, path))


def _under_way(attempts: Attempts, theirs: set[str]) -> bool:
    """Whether somebody may be at the newest attempt here; not if it is one of theirs, which are over."""
    number = attempts.last()
    if number == 0 or (attempts.path(number) / IMPORTED).exists() or not may_be_alive(attempts, None):
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
