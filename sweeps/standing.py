"""What the store and the scheduler together say of runs.

`Store.status` is what the store alone says, as far as this host can see at once. Here what is pending counts too, and a
run is lost only when its task is over, by the scheduler's word, and its lease is dead besides: its process is seen to
be gone, or its counter has stood still for the lease on this host's own monotonic clock. A command that looks once
cannot see that, so what was looked at is kept from one command to the next, in a small file of the user's own that may
be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sweeps.scheduler import ClusterFacts, Job, SchedulerError, Slurm
from sweeps.store import (
    RESUMABLE_CLASSES,
    Attempts,
    Status,
    Store,
    StoreError,
    owner_alive,
    read_json,
    this_process,
    user_name,
)
from sweeps.submissions import Answer, Item, ItemKind, Submission, Submissions
from sweeps.text import duration

_UNSAID_LEASE_S: Final = 60.0
"""Of an attempt whose owner died, or lives, without having said who it is."""

_UNANSWERED_S: Final = 600.0
"""A submission whose owner is on a host that cannot be asked is given up after so long."""

_ASK_AGAIN_S: Final = 1.0
_TRIAGE_S: Final = 2.0
"""How long one command may take to find out why attempts died; the next goes on."""

_KEPT_S: Final = 86400.0
"""How long a counter that nobody looks at any more stays in the file."""

_NO_OUTPUT_SIGNAL: Final = 53
"""What Slurm gives as the signal of a job whose output file it could not open (its error 4021, read as a status)."""

_NO_OUTPUT: Final = "was the store moved, is its disk full or read-only, or not mounted there?"

_CANNOT_ASK: Final = "the scheduler cannot be asked here"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is to be said of one run.

    `status` "queued": a task that holds it is pending, or has not claimed it yet. `attempt` is the newest, 0 for none;
    `submission` the newest with the run whose task is not over, else the newest of all, and `job` that task's.
    `error` is how the newest attempt ended; `owner` its job.json; `note` says what else one should know.
    """

    status: Status
    attempt: int = 0
    submission: int | None = None
    job: Job | None = None
    error: Mapping[str, Any] | None = None
    note: str = ""
    record: Mapping[str, Any] | None = None
    owner: Mapping[str, Any] | None = None
    item: Item | None = None


Evaluation = Literal["", "queued", "running", "done", "failed"]
"""Where a run's evaluation is; "" where none was submitted."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A submission that holds a run, its evaluation, or a trunk: what became of its task, as text, and the file to
    which the task prints, None where there is no job."""

    submission: int
    kind: ItemKind
    text: str
    output: Path | None


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A run's or trunk's place in a submission."""

    submission: Submission
    index: int
    item: Item

    @property
    def job_id(self) -> str | None:
        return self.submission.task_job_id(self.index)

    @property
    def shares(self) -> bool:
        """Whether other items are carried out beside it."""
        return len(self.submission.intent.tasks[self.index]) > 1


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A task with what the scheduler says of it. `known` is False where nobody can say, which `why_not` explains; `job`
    is None then, or where the scheduler has no such job (any more), or not yet: `unanswered`."""

    task: _Task
    job: Job | None
    known: bool
    unanswered: bool
    why_not: str = _CANNOT_ASK

    @property
    def is_active(self) -> bool:
        return self.unanswered or (self.job is not None and self.job.is_active)


class Standings:
    """Statuses of runs by the store and the scheduler together; asks the scheduler once, when first needed.

    Without `slurm`, it is the one on the PATH, if any. `tolerant`: a scheduler that does not answer, or a submission
    that cannot be read, is said in `problems`, and what it would have said stays open; otherwise they raise
    SchedulerError and StoreError.
    """

    def __init__(
        self, store: Store, slurm: Slurm | Literal["found"] | None = "found", *, tolerant: bool = False
    ) -> None:
        self.problems: list[str] = []
        self._store, self._tolerant = store, tolerant
        self._slurm = Slurm.find() if slurm == "found" else slurm
        self._submissions = Submissions(store)
        self._observed = _Observed(store.root)
        self._found: dict[str, Standing] = {}
        self._of_run: dict[str, list[_Task]] | None = None
        self._of_trunk: dict[str, list[_Task]] = {}
        self._evals: dict[str, list[_Task]] = {}
        self._unanswered: set[int] = set()
        self._jobs: dict[str, Job] | None = None
        self._cluster: ClusterFacts | None = None
        self._triage_until = time.monotonic() + _TRIAGE_S
        # However the command ends: nobody has to remember to close it.
        weakref.finalize(self, self._observed.save)

    def of(self, run_id: str) -> Standing:
        """The same for as long as this object lives."""
        if run_id not in self._found:
            self._found[run_id] = self._look(run_id)
        return self._found[run_id]

    def trunk_job_id(self, trunk_id: str, points: tuple[int, ...] = ()) -> str | None:
        """The job of a task that is to make all these points of a trunk and is not over; None where there is none."""
        self._index()
        for task in reversed(self._of_trunk.get(trunk_id, [])):
            place = self._place(task)
            if place.job is not None and place.is_active and set(points) <= set(task.item.points):
                return task.job_id
        return None

    def submitted(self, id_: str) -> list[Submitted]:
        """Every submission of a run or trunk, oldest first."""
        found = [*self._index().get(id_, []), *self._of_trunk.get(id_, []), *self._evals.get(id_, [])]
        return [self._submitted(task) for task in sorted(found, key=lambda task: task.submission.number)]

    def is_being_evaluated(self, run_id: str) -> bool:
        """Whether a task that evaluates the run is queued or running."""
        return self.evaluation(run_id)[0] in ("queued", "running")

    def evaluation(self, run_id: str) -> tuple[Evaluation, str]:
        """What became of the newest task that was to evaluate the run, and what else one should know of that."""
        self._index()
        places = [self._place(task) for task in self._evals.get(run_id, [])]
        if not places:
            return "", ""
        place = next((place for place in reversed(places) if place.is_active), places[-1])
        if place.is_active:
            return ("running", "") if place.job is not None and not place.job.is_pending else ("queued", _waits(place))
        if self._has_evaluation(run_id):
            return "done", ""
        status, note = _not_begun(place)
        return ("queued", note) if status == "queued" else ("failed", note.replace(" before it began it", ""))

    def _has_evaluation(self, run_id: str) -> bool:
        return any((self._store.run_dir(run_id) / "evals").glob("*/record.json"))

    def _submitted(self, task: _Task) -> Submitted:
        place, number, job_id = self._place(task), task.submission.number, task.job_id
        if place.unanswered:
            text = "being submitted"
        elif job_id is None:
            answer = task.submission.answer
            text = f"no job: {answer.message if answer is not None else _CANNOT_ASK}"
        elif place.job is not None:
            job = place.job
            parts = [
                f"job {job_id}",
                job.state,
                f"on {job.node}" if job.node else "",
                f"({job.reason})" if job.reason else "",
            ]
            text = " ".join(part for part in parts if part)
        elif task.submission.intent.job_name in self._observed.finished:
            text = f"job {job_id}, which is over"
        else:
            text = f"job {job_id}, {'which the scheduler has forgotten' if place.known else place.why_not}"
        output = None if job_id is None else task.submission.directory / f"{job_id}.out"
        return Submitted(submission=number, kind=task.item.kind, text=text, output=output)

    # --- submissions and the scheduler ---

    def _index(self) -> dict[str, list[_Task]]:
        """The tasks that hold each run, oldest first."""
        if self._of_run is None:
            self._of_run = {}
            for number in range(1, self._submissions.last() + 1):
                if not self._submissions.directory(number).with_name(f"{number:08d}.json").exists():
                    continue  # cleaned up
                try:
                    submission = self._answered(self._submissions.get(number))
                except StoreError as error:
                    if not self._tolerant:
                        raise
                    self.problems.append(str(error))
                    continue
                for index, item in submission.items():
                    task = _Task(submission=submission, index=index, item=item)
                    if item.kind == "run":
                        self._of_run.setdefault(item.run_id, []).append(task)
                    elif item.kind == "trunk" and item.trunk_id is not None:
                        self._of_trunk.setdefault(item.trunk_id, []).append(task)
                    elif item.kind == "eval":
                        self._evals.setdefault(item.run_id, []).append(task)
        return self._of_run

    def _answered(self, submission: Submission) -> Submission:
        """The submission with its answer. Where whoever submitted it is gone, the scheduler is asked by its name, and
        what it says is written down."""
        if submission.answer is not None:
            return submission
        alive = owner_alive(submission.intent.owner)
        if alive:
            self._unanswered.add(submission.number)
            return submission
        answer = self._asked_by_name(submission, certain=alive is False)
        if answer is None:
            self._unanswered.add(submission.number)
            return submission
        # A store that this user may only read says so to nobody else.
        with contextlib.suppress(OSError):
            answer = self._submissions.publish_answer(submission.number, answer)
        return Submission(
            number=submission.number, directory=submission.directory, intent=submission.intent, answer=answer
        )

    def _asked_by_name(self, submission: Submission, *, certain: bool) -> Answer | None:
        """None where it is not known. `certain`: whoever submitted it is gone."""
        if self._slurm is None or self._elsewhere(submission):
            return None
        name = submission.intent.job_name
        try:
            job_id = self._slurm.named(name)
            if job_id is None and certain:
                time.sleep(_ASK_AGAIN_S)  # its sbatch may have outlived it
                job_id = self._slurm.named(name)
        except SchedulerError as error:
            self._failed(error)
            return None
        if job_id is not None:
            return Answer(job_id=job_id, message="its answer was lost; found by name")
        if certain or self._observed.silent_s(f"submission {submission.number}", None) > _UNANSWERED_S:
            return Answer(job_id=None, message="it never reached the scheduler")
        return None

    def _failed(self, error: SchedulerError) -> None:
        if not self._tolerant:
            raise error
        message = str(error).splitlines()[0]
        if message not in self.problems:
            self.problems.append(message)

    def _place(self, task: _Task) -> _Place:
        if task.submission.answer is None:
            return _Place(task=task, job=None, known=False, unanswered=task.submission.number in self._unanswered)
        job_id = task.job_id
        if job_id is None:
            return _Place(task=task, job=None, known=True, unanswered=False)
        jobs = self._ask()
        elsewhere = self._elsewhere(task.submission)
        if jobs is None or elsewhere:
            return _Place(task=task, job=None, known=False, unanswered=False, why_not=elsewhere or _CANNOT_ASK)
        job = jobs.get(job_id) or jobs.get(task.submission.job_id or "")
        # Ids go round. sacct may not have had the name in time.
        if job is not None and job.name not in (task.submission.intent.job_name, "allocation"):
            return _Place(task=task, job=None, known=False, unanswered=False)
        hidden = self._hidden(task.submission) if job is None else ""
        return _Place(task=task, job=job, known=not hidden, unanswered=False, why_not=hidden or _CANNOT_ASK)

    def _elsewhere(self, submission: Submission) -> str:
        """Which other cluster than the one that can be asked here a submission went to; "" where it is this one."""
        cluster = submission.intent.cluster
        if not cluster or self._slurm is None or cluster in (self._facts().cluster, ""):
            return ""
        return f"it is a job of the cluster {cluster}, which cannot be asked here"

    def _hidden(self, submission: Submission) -> str:
        """Why a job that the scheduler does not show may be there all the same."""
        owner = submission.intent.owner.get("user")
        if owner in (None, user_name()) or not self._facts().hides_jobs:
            return ""
        return f"the scheduler shows nobody but {owner} this job"

    def _facts(self) -> ClusterFacts:
        """What the cluster says of itself; nothing where it does not answer."""
        if self._cluster is None:
            self._cluster = ClusterFacts(cluster="", max_array_size=0, hides_jobs=False)
            if self._slurm is not None:
                try:
                    self._cluster = self._slurm.facts()
                except SchedulerError as error:
                    self._failed(error)
        return self._cluster

    def _ask(self) -> dict[str, Job] | None:
        """All jobs of submissions that are not finished, asked for once; None where the scheduler cannot be asked."""
        if self._jobs is None and self._slurm is not None:
            asked = [task.submission for tasks in self._unfinished() for task in tasks]
            ids = {one.job_id for one in asked if not self._elsewhere(one)}
            try:
                self._jobs = self._slurm.jobs(id_ for id_ in ids if id_ is not None)
            except SchedulerError as error:
                self._slurm = None
                self._failed(error)
        return self._jobs

    def _unfinished(self) -> list[list[_Task]]:
        """The tasks of submissions of which some run has no record yet, or no evaluation; of those with none, nobody
        need ask again."""
        by_name: dict[str, list[_Task]] = {}
        for tasks in (*self._index().values(), *self._of_trunk.values(), *self._evals.values()):
            for task in tasks:
                by_name.setdefault(task.submission.intent.job_name, []).append(task)
        finished = self._observed.finished
        has_record: dict[str, bool] = {}

        def is_recorded(run_id: str) -> bool:
            if run_id not in has_record:
                has_record[run_id] = self._store.record_path(run_id).exists()
            return has_record[run_id]

        def is_finished(item: Item) -> bool:
            if item.kind == "eval":
                return self._has_evaluation(item.run_id)
            return all(map(is_recorded, item.branches if item.kind == "trunk" else (item.run_id,)))

        finished |= {
            name for name in by_name.keys() - finished if all(is_finished(task.item) for task in by_name[name])
        }
        return [tasks for name, tasks in by_name.items() if name not in finished]

    # --- one run ---

    def _look(self, run_id: str) -> Standing:
        try:
            record = self._store.record(run_id)
        except StoreError as damage:
            return Standing(status="damaged", attempt=self._store.last_attempt(run_id), note=str(damage))
        tasks = self._index().get(run_id, [])
        attempts = self._store.attempts(run_id)
        number = attempts.last()
        if record is not None:
            newest = tasks[-1] if tasks else None
            return Standing(
                status="done" if record["status"] == "done" else "diverged",
                attempt=record.get("attempt", number),
                submission=None if newest is None else newest.submission.number,
                record=record,
                item=None if newest is None else newest.item,
            )
        places = [self._place(task) for task in tasks]
        place = next((place for place in reversed(places) if place.is_active), places[-1] if places else None)
        if number == 0:
            return self._standing(*_not_begun(place), 0, place)
        error: Mapping[str, Any] | None = attempts.error(number)
        owner = attempts.job(number)
        status, note = self._unended(attempts, number, owner, place) if error is None else _ended(error, owner, place)
        if status == "lost":
            error = self._triage(attempts, number)
        if error is not None and not (attempts.path(number) / "error.json").exists() and status != "queued":
            status = _status_of_dead(error)
        return self._standing(status, note, number, place, error=error, owner=owner)

    def _standing(
        self,
        status: Status,
        note: str,
        number: int,
        place: _Place | None,
        *,
        error: Mapping[str, Any] | None = None,
        owner: Mapping[str, Any] | None = None,
    ) -> Standing:
        return Standing(
            status=status,
            attempt=number,
            submission=None if place is None else place.task.submission.number,
            job=None if place is None else place.job,
            error=error,
            note=note,
            owner=owner,
            item=None if place is None else place.task.item,
        )

    def _unended(
        self, attempts: Attempts, number: int, owner: Mapping[str, Any] | None, place: _Place | None
    ) -> tuple[Status, str]:
        """Of an attempt that has not said how it ended."""
        alive = None if owner is None else owner_alive(owner)
        if alive:
            return "running", ""
        lease_s = _UNSAID_LEASE_S if owner is None else float(owner["lease_s"])
        moved, silent_s = self._observed.look(f"{attempts.of}/{number}", attempts.heartbeat(number))
        dead = alive is False or silent_s > lease_s
        if place is not None and place.is_active and not _is_life_of(place, owner):
            return ("running", "") if moved and not dead else ("queued", _waits(place))
        silent = f"silent for {duration(silent_s)}, lease {duration(lease_s)}"
        if place is not None and place.job is not None and place.is_active:
            where = f"its task {place.job.job_id} is {place.job.state}"
            return "running", f"its process is gone, but {where}" if alive is False else silent if dead else ""
        if place is not None and not place.known and _in_slurm(owner):
            return "running", f"{place.why_not}; {'its process is gone' if alive is False else silent}"
        if dead:
            return "lost", ""
        if place is not None and _in_slurm(owner) and place.known:
            over = "the scheduler has forgotten its task" if place.job is None else f"its task is {place.job.state}"
            return "running", f"{over}; {silent}"
        return "running", "" if moved or silent_s == 0 else silent

    def _triage(self, attempts: Attempts, number: int) -> Mapping[str, Any] | None:
        """Why an attempt died that did not say so; found out once."""
        from sweeps.triage import find_out

        if time.monotonic() > self._triage_until:
            return {"class": "unknown", "message": "it died without a word; look again to have the scheduler asked why"}
        return find_out(attempts, number)


def _status_of_dead(error: Mapping[str, Any]) -> Status:
    """The status of an attempt that died without a word, by what was found out."""
    match error.get("class"):
        case "oom" | "code" | "io":
            return "failed"
        case "timeout" | "preempted" | "cancelled":
            return "interrupted"
        case _:
            return "lost"


def _in_slurm(owner: Mapping[str, Any] | None) -> bool:
    return owner is None or owner.get("slurm") is not None


def _job_id(owner: Mapping[str, Any] | None) -> str | None:
    """The job, as Slurm's commands call it, that an attempt was made in."""
    facts = (owner or {}).get("slurm")
    if facts is None:
        return None
    if facts.get("array_job_id") is None or facts.get("array_task_id") is None:
        return str(facts.get("job_id"))
    return f"{facts['array_job_id']}_{facts['array_task_id']}"


def _is_life_of(place: _Place, owner: Mapping[str, Any] | None) -> bool:
    """Whether the attempt was made by the task as it is now: not by another job, nor before it was queued again."""
    job = place.job
    if job is None or owner is None or job.is_pending or _job_id(owner) != job.job_id:
        return False
    return job.restarts is None or job.restarts <= int(owner["slurm"].get("restart_count") or 0)


def _waits(place: _Place) -> str:
    """What a task that is to carry out the run waits for."""
    if place.unanswered:
        return "being submitted"
    job = place.job
    assert job is not None
    if job.is_pending:
        return f"pending: {job.reason}" if job.reason else "pending"
    return f"job {job.job_id} is {job.state}, and has not begun it"


def _not_begun(place: _Place | None) -> tuple[Status, str]:
    """Of a run without any attempt."""
    if place is None:
        return "new", ""
    if place.is_active:
        return "queued", _waits(place)
    task = place.task
    if not place.known:
        return "queued", f"{place.why_not}: job {task.job_id}"
    if task.job_id is None:
        answer = task.submission.answer
        return "new", f"submission {task.submission.number}: {answer.message if answer is not None else ''}"
    job = place.job
    match None if job is None else job.state:
        case None | "UNKNOWN":
            return "new", f"job {task.job_id} is gone, and never began it"
        case "CANCELLED" | "REVOKED":
            return "new", f"job {task.job_id} was cancelled before it began it"
        case "COMPLETED":
            return "new", f"job {task.job_id} ended without beginning it"
        case "NODE_FAIL" | "TIMEOUT" | "PREEMPTED" | "BOOT_FAIL" | "DEADLINE" as state:
            return "lost", f"job {task.job_id}: {state} before it began it"
        case state:
            assert job is not None
            how = f"signal {job.signal}" if job.signal else f"exit code {job.exit_code}"
            if job.signal == _NO_OUTPUT_SIGNAL:
                where = f"write to {task.submission.directory} on {job.node or 'its node'}"
                return "failed", f"job {task.job_id}: {state} before it began it: it could not {where}: {_NO_OUTPUT}"
            return "failed", f"job {task.job_id}: {state} ({how}) before it began it; see python -m sweeps logs"


def _ended(error: Mapping[str, Any], owner: Mapping[str, Any] | None, place: _Place | None) -> tuple[Status, str]:
    """Of an attempt that has said how it ended."""
    kind = error.get("class")
    resumable = kind in RESUMABLE_CLASSES
    status: Status = "interrupted" if resumable else "failed"
    if place is None:
        return status, ""
    if place.is_active:
        same_life = _is_life_of(place, owner)
        if same_life and kind in ("timeout", "preempted", "node_fail"):
            return "queued", "saved, and about to be queued again"
        same_job = place.job is not None and _job_id(owner) == place.job.job_id
        # Beside others, what has failed is not tried again when its task is queued again for their sake.
        if same_life or (same_job and place.task.shares and not resumable):
            return status, ""
        return "queued", _waits(place)
    if not place.known and place.task.job_id is not None:
        return status, f"{place.why_not}: job {place.task.job_id}"
    later = (owner or {}).get("slurm") or {}
    if place.job is not None and (later.get("submission") or 0) < place.task.submission.number:
        return status, f"job {place.job.job_id} came after it: {place.job.state}"
    return status, ""


class _Observed:
    """What commands of this user on this host saw of a store: when each counter was first seen to stand where it
    stands, on the clock that runs since the host was started; and which submissions are finished."""

    def __init__(self, root: Path) -> None:
        boot = this_process()["boot_id"]
        key = hashlib.sha256(f"{root.absolute()}\0{boot}".encode()).hexdigest()[:16]
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._path = None if boot is None else base / "hybrid-ablations" / f"{key}.json"
        self._now = time.monotonic()
        self._before: dict[str, tuple[str | None, float]] = {}
        self.finished: set[str] = set()  # by the names of their jobs: another store may come to be at this path
        self._seen: dict[str, tuple[str | None, float]] = {}
        with contextlib.suppress(
            StoreError, TypeError, ValueError, LookupError, AttributeError
        ):  # somebody else's, or half of it
            found = (read_json(self._path) if self._path is not None else None) or {}
            self._before = {key: (seen[0], float(seen[1])) for key, seen in found["counters"].items()}
            self.finished = {name for name in found.get("finished", ()) if isinstance(name, str)}
        self._known = set(self.finished)

    def look(self, key: str, counter: str | None) -> tuple[bool, float]:
        """Whether a counter has moved since it was last looked at, and for how long it was seen standing still."""
        before = self._before.get(key)
        moved, since = False, self._now
        if before is not None:
            moved = before[0] != counter
            since = self._now if moved else min(before[1], self._now)
        self._seen[key] = counter, since
        return moved, self._now - since

    def silent_s(self, key: str, counter: str | None) -> float:
        """For how long a counter was seen standing still."""
        return self.look(key, counter)[1]

    def save(self) -> None:
        """Best effort: without it, each command looks for the first time."""
        if self._path is None or (not self._seen and self.finished == self._known):
            return
        recent = {key: seen for key, seen in self._before.items() if self._now - seen[1] < _KEPT_S}
        content = {"counters": {**recent, **self._seen}, "finished": sorted(self.finished)}
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content))
            temporary.replace(self._path)
