"""What was handed to a scheduler: the intent, written down before it is asked, and its answer.

    submissions/00000012.json              the intent: which runs, as which tasks, with which resources; published once
    submissions/00000012/answer.json       the job's id, or why there is none; published once
                         script.sh         what sbatch was given
                         1234_0.out        what the job's tasks printed, but for what runs log themselves

Intents are numbered without gaps, and each is published under its number by an exclusive link: whoever plans by the
intents up to one number, and is first to publish the next, has planned by all there are. So of two that submit the
same at once, the second sees the first's runs as queued.

The name of an intent's job is unlike any other's. Where a connection is lost after the scheduler has taken the job and
before its answer is written down, the scheduler is asked for the job of that name.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hybrid.durable import make_dir
from sweeps.store import RECORD_SCHEMA, Store, StoreError, publish, read_json

_INTENT = re.compile(r"(\d{8,})\.json")

ItemKind = Literal["run", "trunk", "eval"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A run to be trained or evaluated, or a trunk: its id, the name of its (first) cell and that one's row and seed.

    Of a trunk `run_id` is the longest of `branches`, whose spec it is trained with, up to the steps `points`. A run
    with a `trunk_id` waits for that trunk, and fails with it.
    """

    kind: ItemKind
    run_id: str
    name: str
    row: str
    seed: int | None
    predicted_hours: float | None = None
    trunk_id: str | None = None
    points: tuple[int, ...] = ()
    branches: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One job to be submitted: a task for each entry of `tasks`, which carries out that entry's items side by side.

    `job_name` is the name of its job; `owner` the process that submits it, as `sweeps.store.this_process` tells it, and
    the user. `execution`, an ExecSpec as plain data, holds for every item; `resources` are the launcher's settings as
    they were resolved, for people and for whoever submits again; `snapshot` is the code that its tasks run, None for
    the code as it is by then. `dependency` is sbatch's, and `cluster` the name of the cluster that is asked, both empty
    for none. `checkpoints` and `data` are those of the store.
    """

    job_name: str
    created_at: str
    owner: Mapping[str, Any]
    sweep: str
    overrides: tuple[str, ...]
    tasks: tuple[tuple[Item, ...], ...]
    execution: Mapping[str, Any]
    resources: Mapping[str, Any]
    snapshot: str | None
    checkpoints: str
    data: str
    dependency: str = ""
    command: tuple[str, ...] = ()
    notify: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the scheduler said: the job's id, None where it has none, with the reason."""

    job_id: str | None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An intent under its number, in its directory; `answer` is None until it is known."""

    number: int
    directory: Path
    intent: Intent
    answer: Answer | None

    @property
    def job_id(self) -> str | None:
        return None if self.answer is None else self.answer.job_id

    def task_job_id(self, index: int) -> str | None:
        """The scheduler's name for one task."""
        return None if self.job_id is None else f"{self.job_id}_{index}"

    def items(self) -> Iterator[tuple[int, Item]]:
        """Every item with the index of its task."""
        for index, items in enumerate(self.intent.tasks):
            for item in items:
                yield index, item


class Submissions:
    """The submissions of a store. What was read once is kept: intents and answers never change."""

    def __init__(self, store: Store) -> None:
        self._root = store.root / "submissions"
        self._intents: dict[int, Intent] = {}
        self._answers: dict[int, Answer] = {}

    def directory(self, number: int) -> Path:
        return self._root / f"{number:08d}"

    def last(self) -> int:
        """The number of the newest intent; 0 where there is none."""
        return max(self._numbers(), default=0)

    def all(self) -> list[Submission]:
        """Every submission, oldest first. Raises StoreError where one is damaged."""
        return [self.get(number) for number in sorted(self._numbers())]

    def get(self, number: int) -> Submission:
        """Raises StoreError where there is none of that number, or it is damaged."""
        if number not in self._intents:
            path = self._root / f"{number:08d}.json"
            content = read_json(path)
            if content is None:
                raise StoreError(f"{path}: missing: expected a submission; has the store been moved, or cleaned up?")
            self._intents[number] = _decoded(content, path)
        if number not in self._answers:
            path = self.directory(number) / "answer.json"
            content = read_json(path)
            if content is not None:
                self._answers[number] = Answer(job_id=content["job_id"], message=content["message"])
        return Submission(
            number=number,
            directory=self.directory(number),
            intent=self._intents[number],
            answer=self._answers.get(number),
        )

    def publish(self, number: int, intent: Intent) -> bool:
        """Publish the intent under a number; False where another has it. Raises OSError."""
        make_dir(self.directory(number))
        content = json.dumps({"schema": RECORD_SCHEMA, **asdict(intent)}, sort_keys=True)
        return publish(self._root / f"{number:08d}.json", content + "\n")

    def publish_answer(self, number: int, answer: Answer) -> Answer:
        """Publish what the scheduler said; gives the answer that stands, which may be another's. Raises OSError."""
        publish(self.directory(number) / "answer.json", json.dumps(asdict(answer), sort_keys=True) + "\n")
        found = self.get(number).answer
        assert found is not None
        return found

    def _numbers(self) -> list[int]:
        try:
            names = [path.name for path in self._root.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [int(name[1]) for name in map(_INTENT.fullmatch, names) if name is not None]


def _decoded(content: Mapping[str, Any], path: Path) -> Intent:
    if content.get("schema") != RECORD_SCHEMA:
        raise StoreError(
            f"{path}: schema {content.get('schema')}, this version reads schema {RECORD_SCHEMA}: "
            "use the version that wrote it"
        )
    try:
        given = {key: value for key, value in content.items() if key != "schema"}
        tasks = tuple(tuple(map(_item, items)) for items in given["tasks"])
        texts = {key: tuple(given[key]) for key in ("overrides", "command")}
        return Intent(**{**given, **texts, "tasks": tasks})
    except (TypeError, KeyError) as error:
        raise StoreError(f"{path}: damaged ({error}). Nothing was changed") from error


def _item(content: Mapping[str, Any]) -> Item:
    return Item(**{**content, "points": tuple(content["points"]), "branches": tuple(content["branches"])})
