"""What people say of runs, trunks and requests: notes, tags and pins.

    notes/00000001.json     an event: who said what of which runs, trunks or requests; published once

Events are numbered by an exclusive link and never modified. What holds is their fold. A tag or a pin is taken off by an
event that names the events it undoes, those that its writer saw: so the fold does not depend on the order, and two
stores that are merged agree, whichever is merged into the other. What one takes off while the other puts it on again
stays on.

A run or trunk is named by its id, a request by `sweep/hash`, as its file is.
"""

import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from hybrid.durable import make_dir
from hybrid.spec import ConfigError
from sweeps.store import (
    RECORD_SCHEMA,
    Request,
    Store,
    StoreError,
    describe_os_error,
    now,
    publish,
    read_json,
    request_id,
    user_name,
)

PIN: Final = "pin"
_TAG: Final = "tag:"
_EVENT = re.compile(r"(\d{8,})\.json")
_TAG_NAME = re.compile(r"[^\s+,-][^\s,]*")


@dataclass(frozen=True, kw_only=True)
class Undone:
    """A mark that an event put on, and that holds no more."""

    mark: str
    event: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """Said once by `user` of all `subjects`: a note (`text`), marks put on, marks taken off.

    A mark is `pin` or `tag:NAME`. `id` is unlike that of any other event, in whatever store; `at` is UTC, ISO 8601.
    """

    id: str
    user: str
    at: str
    subjects: tuple[str, ...]
    text: str | None = None
    adds: tuple[str, ...] = ()
    undoes: tuple[Undone, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Note:
    """A text, who wrote it, and when (UTC, ISO 8601)."""

    text: str
    user: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What holds of one run, trunk or request: `pinned_by` is None where it is not pinned."""

    notes: tuple[Note, ...] = ()
    tags: tuple[str, ...] = ()
    pinned_by: str | None = None

    def brief(self) -> str:
        """On one line, for a column: tags with +, `pinned`, and how many notes; empty where there is nothing."""
        parts = [f"+{tag}" for tag in self.tags] + (["pinned"] if self.pinned_by is not None else [])
        count = len(self.notes)
        return " ".join([*parts, *([f"{count} note{'s' if count > 1 else ''}"] if count else [])])

    def lines(self) -> list[str]:
        """In full."""
        return [
            *([f"tags: {', '.join(self.tags)}"] if self.tags else []),
            *([f"pinned by {self.pinned_by}"] if self.pinned_by is not None else []),
            *(f"note of {note.at[:16]}, {note.user}: {note.text}" for note in self.notes),
        ]


NOTHING: Final = Notes()


@dataclass
class _Folded:
    notes: list[Note] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)  # the mark to who put it on first
    marked_by: dict[str, set[str]] = field(default_factory=dict)  # the mark to the events that put it on


class NoteBook:
    """All that is said in a store, read once. `problems` names the events that could not be read.

    Whatever was read of events stays: `refresh` reads only what is new.
    """

    def __init__(self, store: Store) -> None:
        self._root = store.root / "notes"
        self._events: dict[str, Event] = {}
        self._known: dict[str, Notes] = {}
        self._marked_by: dict[str, dict[str, set[str]]] = {}
        self.problems: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the events that came since."""
        names = _names(self._root)
        new = [name for name in names if name not in self._events]
        self.problems = []
        for name in new:
            try:
                self._events[name] = _read(self._root / name)
            except StoreError as error:
                self.problems.append(str(error))
        if new:
            self._fold([self._events[name] for name in names if name in self._events])

    def of(self, subject: str) -> Notes:
        """What holds of a run, a trunk or a request."""
        return self._known.get(subject, NOTHING)

    def subjects(self) -> Iterable[str]:
        """Whatever anything holds of."""
        return self._known.keys()

    def events(self) -> list[Event]:
        """Every event that could be read, in the order of their numbers."""
        return [event for _, event in self.named_events()]

    def named_events(self) -> list[tuple[str, Event]]:
        """Likewise, each with the name of its file."""
        return sorted(self._events.items(), key=lambda item: _number(item[0]))

    def pinned(self) -> set[str]:
        """The runs, trunks and requests that are pinned."""
        return {subject for subject, notes in self._known.items() if notes.pinned_by is not None}

    def putting_on(self, subject: str, mark: str) -> set[str]:
        """The events that put the mark on, those undone left out."""
        return self._marked_by.get(subject, {}).get(mark, set())

    def _fold(self, events: Sequence[Event]) -> None:
        undone = {(subject, u.mark, u.event) for e in events for subject in e.subjects for u in e.undoes}
        folded: dict[str, _Folded] = {}
        for event in events:
            for subject in event.subjects:
                found = folded.setdefault(subject, _Folded())
                if event.text is not None:
                    found.notes.append(Note(text=event.text, user=event.user, at=event.at))
                for mark in event.adds:
                    if (subject, mark, event.id) not in undone:
                        found.marks.setdefault(mark, event.user)
                        found.marked_by.setdefault(mark, set()).add(event.id)
        self._marked_by = {subject: found.marked_by for subject, found in folded.items()}
        self._known = {
            subject: Notes(
                notes=tuple(found.notes),
                tags=tuple(sorted(mark.removeprefix(_TAG) for mark in found.marks if mark.startswith(_TAG))),
                pinned_by=found.marks.get(PIN),
            )
            for subject, found in folded.items()
            if found.notes or found.marks
        }


def notes_of(store: Store, run_id: str) -> Notes:
    """What is said of a run or trunk. For many, ask one `NoteBook`."""
    return NoteBook(store).of(run_id)


def notes_of_request(store: Store, request: Request) -> Notes:
    """What is said of a request. For many, ask one `NoteBook`."""
    return NoteBook(store).of(request_id(request))


def add_note(store: Store, subjects: Sequence[str], text: str) -> None:
    """Raises ConfigError for a text that is none, StoreError where it cannot be written."""
    if not text.strip():
        raise ConfigError("note = '': expected a text")
    _say(store, subjects, text=text.strip())


def pin(store: Store, subjects: Sequence[str]) -> list[str]:
    """Pin what is not yet; gives these. Raises StoreError."""
    book = NoteBook(store)
    new = [subject for subject in subjects if book.of(subject).pinned_by is None]
    if new:
        _say(store, new, adds=(PIN,))
    return new


def unpin(store: Store, subjects: Sequence[str]) -> list[str]:
    """Take the pins off; gives those that had one. Raises StoreError."""
    book = NoteBook(store)
    pinned = [subject for subject in subjects if book.putting_on(subject, PIN)]
    undoes = sorted({event for subject in pinned for event in book.putting_on(subject, PIN)})
    if undoes:
        _say(store, pinned, undoes=tuple(Undone(mark=PIN, event=event) for event in undoes))
    return pinned


def change_tags(store: Store, subject: str, changes: Sequence[str]) -> None:
    """Put tags on and take them off: `+name`, `-name`. Raises ConfigError for anything else, StoreError."""
    problems = []
    for change in changes:
        if change[:1] not in ("+", "-"):
            problems.append(f"tag = {change}: expected +{change} to put it on, or -{change} to take it off")
        elif not _TAG_NAME.fullmatch(change[1:]):
            problems.append(f"tag = {change}: expected a sign and a name without spaces and commas, such as +baseline")
        elif f"{'-' if change[0] == '+' else '+'}{change[1:]}" in changes:
            problems.append(f"tag = {change}: expected either to put it on or to take it off")
    book = NoteBook(store)
    on, off = ([c[1:] for c in dict.fromkeys(changes) if c[:1] == sign] for sign in "+-")
    there = book.of(subject).tags
    # One that is not there may be a slip of the pen for one that is.
    missing = [] if problems else [tag for tag in off if tag not in there]
    problems += [f"tag = -{tag}: expected one of its tags: {', '.join(there) or 'it has none'}" for tag in missing]
    if problems:
        raise ConfigError(problems)
    adds = tuple(f"{_TAG}{tag}" for tag in on if tag not in there)
    undoes = tuple(
        Undone(mark=f"{_TAG}{tag}", event=event)
        for tag in off
        for event in sorted(book.putting_on(subject, f"{_TAG}{tag}"))
    )
    if adds or undoes:
        _say(store, [subject], adds=adds, undoes=undoes)


def publish_event(store: Store, event: Event) -> Path:
    """Publish an event under the next number that is free. Raises StoreError where the store cannot be written to."""
    root = store.root / "notes"
    text = json.dumps({"schema": RECORD_SCHEMA, **asdict(event)}, sort_keys=True) + "\n"
    store.prepare()
    try:
        make_dir(root)
        number = max((_number(name) for name in _names(root)), default=0) + 1
        while not publish(root / f"{number:08d}.json", text):
            number += 1
    except OSError as error:
        raise StoreError(f"{root}: cannot be written to ({describe_os_error(error)}); nothing was noted") from error
    return root / f"{number:08d}.json"


def decode_event(content: Mapping[str, Any], where: str) -> Event:
    """An event as it was written. Raises StoreError for one of another version, or damaged."""
    if content.get("schema") != RECORD_SCHEMA:
        raise StoreError(
            f"{where}: schema {content.get('schema')}, this version reads schema {RECORD_SCHEMA}: "
            "use the version that wrote it"
        )
    given = {key: value for key, value in content.items() if key != "schema"}
    try:
        undoes = tuple(Undone(**undone) for undone in given.get("undoes", ()))
        event = Event(
            **{**given, "subjects": tuple(given["subjects"]), "adds": tuple(given.get("adds", ())), "undoes": undoes}
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{where}: damaged ({error}). Nothing was changed") from error
    texts = (event.id, event.user, event.at, *event.subjects, *event.adds, *([event.text] if event.text else []))
    if not all(isinstance(text, str) for text in texts):
        raise StoreError(f"{where}: damaged (what should be text is not). Nothing was changed")
    return event


def subject_of(store: Store, name: str) -> tuple[str, str]:
    """A run, trunk or request as a user names it: the subject, and what to call it.

    A request by its sweep's name (the newest of that name) or `sweep/hash`, a run or trunk by the first digits of its
    id. Raises ConfigError where there is none, or several.
    """
    sweep, _, hash_ = name.rpartition("/")
    if sweep and store.requests_dir(sweep).is_dir():
        found = [request_id(request) for request in store.requests(sweep)]
        found = [subject for subject in found if hash_ and subject.startswith(name)]
        if len(found) == 1:
            return found[0], f"request {found[0]}"
        raise ConfigError(f"{name}: {'several requests begin so' if found else 'no such request'} in {store.root}")
    requests = store.requests(name) if name and "/" not in name and not name.startswith(".") else []
    if requests:
        subject = request_id(requests[-1])
        return subject, f"request {subject}"
    try:
        id_ = store.find(name)
    except ConfigError as error:
        raise ConfigError([*error.problems, f"{name}: nor is there a request of this name"]) from None
    return id_, f"{'trunk' if store.is_trunk(id_) else 'run'} {id_}"


def _say(
    store: Store,
    subjects: Sequence[str],
    *,
    text: str | None = None,
    adds: tuple[str, ...] = (),
    undoes: tuple[Undone, ...] = (),
) -> None:
    event = Event(
        id=secrets.token_hex(8),
        user=user_name(),
        at=now(),
        subjects=tuple(dict.fromkeys(subjects)),
        text=text,
        adds=adds,
        undoes=undoes,
    )
    publish_event(store, event)


def _read(path: Path) -> Event:
    content = read_json(path)
    if content is None:
        raise StoreError(f"{path}: missing: notes are never removed")
    return decode_event(content, str(path))


def _names(root: Path) -> list[str]:
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((name for name in names if _EVENT.fullmatch(name)), key=_number)


def _number(name: str) -> int:
    return int(name.partition(".")[0])
