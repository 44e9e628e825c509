"""What is said of runs by store and scheduler together; tests/slurm/test_standing.py asks a real one."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.scheduler import ClusterFacts, Job, SchedulerError, Slurm, read_squeue
from sweeps.standing import Standing, Standings
from sweeps.store import Store, StoreError, publish, this_process
from sweeps.submissions import Answer, Intent, Item, Submissions

LEASE_S = 60.0
TAKEN = Answer(job_id="7")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was seen before, and there is no Slurm but what a test makes up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def run_ids() -> list[str]:
    """Of runs whose specs nobody looks at."""
    return ["a" * 12, "b" * 12]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("sweeps.standing.time.monotonic", made)
    return made


class Told(Slurm):
    """A cluster whose squeue has printed these lines, as the real one does."""

    def __init__(self, *lines: str, cluster: str = "here", hides_jobs: bool = False) -> None:
        self.lines, self.asked = lines, 0
        self.said = ClusterFacts(cluster=cluster, max_array_size=1001, hides_jobs=hides_jobs)

    def facts(self) -> ClusterFacts:
        return self.said

    def jobs(self, array_ids: Iterable[str]) -> dict[str, Job]:
        self.asked += 1
        known = set(array_ids)
        return {id_: job for id_, job in read_squeue("\n".join(self.lines)).items() if id_.partition("_")[0] in known}

    def named(self, job_name: str) -> str | None:
        return next((line.partition("_")[0] for line in self.lines if line.endswith(f"|{job_name}|")), None)


class Silent(Slurm):
    """One that does not answer."""

    def jobs(self, array_ids: Iterable[str]) -> dict[str, Job]:
        raise SchedulerError(f"squeue: unable to contact the controller for {len(set(array_ids))} jobs")

    named = None  # type: ignore[assignment]


def line(
    state: str, index: int = 0, *, reason: str = "None", restarts: int = 0, status: int = 0, name: str = "s"
) -> str:
    return f"7_{index}|{8 + index}|{state}|{reason}|n1|10:00|{restarts}|{status}|{name}|"


def elsewhere() -> dict[str, Any]:
    return {**this_process(), "host": "another"}


def gone() -> dict[str, Any]:
    return {**this_process(), "pid_started": "1"}


def submit(
    store: Store,
    *tasks: list[str],
    answer: Answer | None = TAKEN,
    owner: Mapping[str, Any] | None = None,
    name: str = "s",
    cluster: str = "",
) -> int:
    submissions = Submissions(store)
    number = submissions.last() + 1
    items = tuple(tuple(Item(kind="run", run_id=id_, name=id_, row="r", seed=1) for id_ in task) for task in tasks)
    intent = Intent(
        job_name=name,
        created_at="",
        owner=this_process() if owner is None else owner,
        sweep="s",
        overrides=(),
        tasks=items,
        execution={},
        resources={},
        snapshot=None,
        checkpoints="",
        data="",
        cluster=cluster,
    )
    assert submissions.publish(number, intent)
    if answer is not None:
        submissions.publish_answer(number, answer)
    return number


def begin(
    store: Store,
    run_id: str,
    owner: Mapping[str, Any],
    *,
    element: int | None = None,
    restarts: int = 0,
    submission: int = 1,
) -> Path:
    attempt = store.claim(run_id, store.last_attempt(run_id))
    assert attempt is not None
    slurm = None
    if element is not None:
        slurm = {"job_id": "8", "array_job_id": "7", "array_task_id": element, "restart_count": restarts, "node": "n1"}
        slurm["submission"] = submission
    job = {**owner, "lease_s": LEASE_S, "slurm": slurm}
    publish(attempt.directory / "job.json", json.dumps(job))
    (attempt.directory / "heartbeat").write_text("1\n")
    return attempt.directory


def end(directory: Path, kind: str) -> None:
    publish(directory / "error.json", json.dumps({"class": kind, "message": f"it was {kind}"}))


def standing(store: Store, run_id: str, slurm: Slurm | None = None) -> Standing:
    return Standings(store, slurm, tolerant=True).of(run_id)


# --- without a scheduler ------------------------------------------------------------------------


def test_a_result_needs_no_scheduler_and_damage_is_named(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids)
    slurm = Told(line("RUNNING"))
    for run_id, status in zip(run_ids, ("done", "diverged"), strict=True):
        record = {"schema": 1, "run_id": run_id, "status": status, "metrics": {}, "attempt": 3}
        store.run_dir(run_id).mkdir(parents=True)
        store.publish_record(run_id, record)
        found = standing(store, run_id, slurm)
        assert (found.status, found.attempt, found.submission) == (status, 3, 1)
        assert found.record == record
    assert slurm.asked == 0
    store.record_path(run_ids[0]).write_text("half")
    assert standing(store, run_ids[0]).status == "damaged"


def test_a_process_of_this_host_is_running_or_lost_at_once(store: Store, run_ids: list[str]) -> None:
    begin(store, run_ids[0], this_process())
    begin(store, run_ids[1], gone())
    assert [standing(store, run_id).status for run_id in run_ids] == ["running", "lost"]
    assert standing(store, "0" * 12).status == "new"


def test_elsewhere_it_is_lost_once_its_counter_was_seen_standing_still_for_its_lease(
    store: Store, run_ids: list[str], clock: Clock
) -> None:
    directory = begin(store, run_ids[0], elsewhere())

    def at(now_s: float) -> Standing:
        clock.now_s = now_s
        return standing(store, run_ids[0])

    assert at(1000).status == "running"
    assert "silent for 59 s, lease 1 min 00 s" in at(1059).note
    (directory / "heartbeat").write_text("2\n")
    assert (at(1070).status, at(1070).note) == ("running", "")
    assert at(1129).status == "running"
    assert at(1131).status == "lost"
    error = at(1132).error
    assert error is not None
    assert error["class"] == "unknown"


def test_without_a_place_for_what_was_seen_every_look_is_the_first(
    store: Store, run_ids: list[str], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    begin(store, run_ids[0], elsewhere())
    for clock.now_s in (1000.0, 2000.0):
        assert standing(store, run_ids[0]).status == "running"


@pytest.mark.parametrize("text", ["", "[]", '{"counters": {"a": 1}}', '{"counters": {}, "finished": ["x"]}'])
def test_a_spoilt_file_of_what_was_seen_is_written_anew(
    text: str, store: Store, run_ids: list[str], clock: Clock, tmp_path: Path
) -> None:
    begin(store, run_ids[0], elsewhere())
    standing(store, run_ids[0])
    (path,) = (tmp_path / "cache" / "hybrid-ablations").iterdir()
    path.write_text(text)
    standing(store, run_ids[0])
    clock.now_s += LEASE_S + 1
    assert standing(store, run_ids[0]).status == "lost"


def test_where_the_scheduler_cannot_be_asked_nothing_submitted_is_new_or_lost(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids[:1], run_ids[1:])
    begin(store, run_ids[1], gone(), element=1)
    for slurm in (None, Silent()):
        assert [standing(store, run_id, slurm).status for run_id in run_ids] == ["queued", "running"]
        assert "cannot be asked here" in standing(store, run_ids[0], slurm).note
    standings = Standings(store, Silent(), tolerant=True)
    standings.of(run_ids[0])
    assert standings.problems == ["squeue: unable to contact the controller for 1 jobs"]
    with pytest.raises(SchedulerError):
        Standings(store, Silent()).of(run_ids[0])


def test_a_submission_that_cannot_be_read_is_said_or_raised(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids)
    (store.root / "submissions" / "00000001.json").write_text("half")
    standings = Standings(store, None, tolerant=True)
    assert standings.of(run_ids[0]).status == "new"
    assert "damaged" in standings.problems[0]
    with pytest.raises(StoreError, match="damaged"):
        Standings(store, None).of(run_ids[0])


# --- with what a scheduler says -----------------------------------------------------------------


def test_the_scheduler_is_asked_once_and_not_of_what_is_finished(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids[:1])
    submit(store, run_ids[1:], answer=Answer(job_id="9"))
    slurm = Told(line("PENDING", reason="Priority"))
    standings = Standings(store, slurm)
    assert (standings.of(run_ids[0]).status, standings.of(run_ids[1]).status) == ("queued", "new")
    assert standings.of(run_ids[0]).note == "pending: Priority"
    assert "9_0 is gone" in standings.of(run_ids[1]).note
    assert slurm.asked == 1


def test_what_was_finished_in_a_store_says_nothing_of_another_at_its_place(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids[:1], name="before")
    submit(store, run_ids[1:])
    store.run_dir(run_ids[0]).mkdir(parents=True)
    record = {"schema": 1, "run_id": run_ids[0], "status": "done", "metrics": {}}
    assert store.publish_record(run_ids[0], record)
    assert standing(store, run_ids[1], Told(line("PENDING"))).status == "queued"
    shutil.rmtree(store.root)
    store.prepare()
    submit(store, run_ids[1:])
    assert standing(store, run_ids[1], Told(line("PENDING"))).status == "queued"


def test_an_evaluation_of_a_finished_run_is_asked_after(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids[:1], answer=Answer(job_id="6"))
    intent = Submissions(store).get(1).intent
    evaluation = tuple(tuple(replace(item, kind="eval") for item in items) for items in intent.tasks)
    Submissions(store).publish(2, replace(intent, job_name="two", tasks=evaluation))
    Submissions(store).publish_answer(2, TAKEN)
    store.run_dir(run_ids[0]).mkdir(parents=True)
    record = {"schema": 1, "run_id": run_ids[0], "status": "done", "metrics": {}}
    assert store.publish_record(run_ids[0], record)

    def found(*lines: str) -> Standings:
        return Standings(store, Told(*lines))

    pending = line("PENDING", reason="Dependency", name="two")
    assert [(one.kind, one.text) for one in found(pending).submitted(run_ids[0])] == [
        ("run", "job 6_0, which is over"),
        ("eval", "job 7_0 PENDING (Dependency)"),
    ]
    assert found(pending).evaluation(run_ids[0]) == ("queued", "pending: Dependency")
    assert found(line("RUNNING", name="two")).evaluation(run_ids[0]) == ("running", "")
    status, note = found(line("FAILED", status=256, name="two")).evaluation(run_ids[0])
    assert (status, note.partition(";")[0]) == ("failed", "job 7_0: FAILED (exit code 1)")
    assert found(pending).evaluation(run_ids[1]) == ("", "")
    made = store.run_dir(run_ids[0]) / "evals" / ("0" * 12) / "record.json"
    made.parent.mkdir(parents=True)
    made.write_text("{}")
    assert found().evaluation(run_ids[0]) == ("done", "")


def test_a_job_of_another_cluster_is_not_taken_for_gone(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids[:1], cluster="there")
    slurm = Told(line("PENDING", name="of somebody else"))
    found = Standings(store, slurm).of(run_ids[0])
    assert found.status == "queued"
    assert "a job of the cluster there, which cannot be asked here" in found.note
    assert Standings(store, Told(cluster="there")).of(run_ids[0]).status == "new"


def test_a_job_of_another_user_that_the_scheduler_does_not_show_is_not_taken_for_gone(
    store: Store, run_ids: list[str]
) -> None:
    submit(store, run_ids[:1], owner={**this_process(), "user": "ada"})
    found = Standings(store, Told(hides_jobs=True)).of(run_ids[0])
    assert found.status == "queued"
    assert "the scheduler shows nobody but ada this job" in found.note
    assert Standings(store, Told()).of(run_ids[0]).status == "new"


@pytest.mark.parametrize(
    ("state", "status", "note"),
    [
        ("RUNNING", "queued", "has not begun it"),
        ("CONFIGURING", "queued", "has not begun it"),
        ("CANCELLED", "new", "cancelled before it began"),
        ("COMPLETED", "new", "without beginning it"),
        ("FAILED", "failed", "exit code 3"),
        ("NODE_FAIL", "lost", "NODE_FAIL before it began"),
    ],
)
def test_of_a_run_without_attempts_its_task_tells(
    state: str, status: str, note: str, store: Store, run_ids: list[str]
) -> None:
    submit(store, run_ids[:1])
    found = standing(store, run_ids[0], Told(line(state, status=768 if state == "FAILED" else 0)))
    assert found.status == status
    assert note in found.note
    assert found.job is not None
    assert (found.submission, found.job.job_id) == (1, "7_0")


def test_lost_takes_both_the_end_of_the_task_and_a_dead_lease(store: Store, run_ids: list[str], clock: Clock) -> None:
    submit(store, run_ids[:1], run_ids[1:])
    begin(store, run_ids[0], elsewhere(), element=0)
    begin(store, run_ids[1], gone(), element=1)
    alive, over = Told(line("RUNNING"), line("RUNNING", 1)), Told(line("FAILED"), line("FAILED", 1))
    assert [standing(store, run_id, alive).status for run_id in run_ids] == ["running", "running"]
    assert "its process is gone, but its task 7_1 is RUNNING" in standing(store, run_ids[1], alive).note
    assert [standing(store, run_id, over).status for run_id in run_ids] == ["running", "lost"]
    assert "its task is FAILED; silent for" in standing(store, run_ids[0], over).note
    clock.now_s += LEASE_S + 1
    assert standing(store, run_ids[0], alive).status == "running"
    assert standing(store, run_ids[0], over).status == "lost"


def test_a_requeued_task_makes_a_run_queued_until_a_copy_of_it_is_seen_alive(
    store: Store, run_ids: list[str], clock: Clock
) -> None:
    submit(store, run_ids[:1])
    directory = begin(store, run_ids[0], elsewhere(), element=0)
    for again in (line("PENDING", restarts=1), line("RUNNING", restarts=1)):
        assert standing(store, run_ids[0], Told(again)).status == "queued"
    (directory / "heartbeat").write_text("2\n")
    assert standing(store, run_ids[0], Told(line("PENDING", restarts=1))).status == "running"
    assert standing(store, run_ids[0], Told(line("RUNNING", restarts=0))).status == "running"
    clock.now_s += LEASE_S + 1
    assert standing(store, run_ids[0], Told(line("PENDING", restarts=1))).status == "queued"


@pytest.mark.parametrize(
    ("kind", "state", "restarts", "status"),
    [
        ("preempted", "PENDING", 1, "queued"),
        ("preempted", "RUNNING", 0, "queued"),  # has saved, and asks to be queued again
        ("preempted", "COMPLETED", 0, "interrupted"),
        ("cancelled", "COMPLETING", 0, "interrupted"),
        ("cancelled", "CANCELLED", 0, "interrupted"),
        ("code", "COMPLETING", 0, "failed"),
        ("code", "FAILED", 0, "failed"),
        ("code", "PENDING", 1, "queued"),  # somebody had it requeued
        ("oom", "RUNNING", 1, "queued"),
    ],
)
def test_an_ended_attempt_is_queued_where_its_task_will_go_on(
    kind: str, state: str, restarts: int, status: str, store: Store, run_ids: list[str]
) -> None:
    submit(store, run_ids[:1])
    end(begin(store, run_ids[0], gone(), element=0), kind)
    assert standing(store, run_ids[0], Told(line(state, restarts=restarts))).status == status


def test_beside_others_what_has_failed_stays_so_when_its_task_is_requeued(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids)
    end(begin(store, run_ids[0], gone(), element=0), "code")
    end(begin(store, run_ids[1], gone(), element=0), "preempted")
    again = Told(line("PENDING", restarts=1))
    assert [standing(store, run_id, again).status for run_id in run_ids] == ["failed", "queued"]
    submit(store, run_ids[:1], answer=Answer(job_id="6"))
    later = Told(line("FAILED"), "6_0|20|PENDING|None||1:00|0|0|s|")
    found = standing(store, run_ids[0], later)
    assert (found.status, found.submission) == ("queued", 2)


def test_a_job_of_the_same_number_but_another_name_says_nothing(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids[:1])
    found = standing(store, run_ids[0], Told(line("RUNNING", name="somebody-elses")))
    assert (found.status, found.job) == ("queued", None)
    assert "cannot be asked here" in found.note


# --- submissions without an answer --------------------------------------------------------------


def test_a_submission_under_way_counts_as_queued(store: Store, run_ids: list[str]) -> None:
    submit(store, run_ids, answer=None)
    assert standing(store, run_ids[0], Told()).status == "queued"
    assert Submissions(store).get(1).answer is None


def test_where_its_owner_is_gone_the_scheduler_is_asked_by_name_and_the_answer_kept(
    store: Store, run_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.standing._ASK_AGAIN_S", 0.0)
    submit(store, run_ids[:1], answer=None, owner=gone())
    submit(store, run_ids[1:], answer=None, owner=gone(), name="t")
    standings = Standings(store, Told(line("PENDING")))
    assert [standings.of(run_id).status for run_id in run_ids] == ["queued", "new"]
    assert "never reached the scheduler" in standings.of(run_ids[1]).note
    assert [submission.job_id for submission in Submissions(store).all()] == ["7", None]
    assert all(submission.answer is not None for submission in Submissions(store).all())


def test_of_an_owner_elsewhere_one_waits_before_giving_its_submission_up(
    store: Store, run_ids: list[str], clock: Clock
) -> None:
    submit(store, run_ids[:1], answer=None, owner=elsewhere())
    for clock.now_s, status in ((1000.0, "queued"), (1599.0, "queued"), (1601.0, "new")):
        assert standing(store, run_ids[0], Told()).status == status


def test_a_trunk_s_job_is_told_while_it_is_to_make_all_that_is_wanted(store: Store, run_ids: list[str]) -> None:
    submissions = Submissions(store)
    submit(store, run_ids[:1])
    intent = submissions.get(1).intent
    item = Item(kind="trunk", run_id=run_ids[0], name="t", row="r", seed=1, trunk_id="abc", points=(4, 8))
    content = {**vars(intent), "tasks": ((item,),)}
    submissions.publish(2, Intent(**content))
    submissions.publish_answer(2, Answer(job_id="7"))
    assert Standings(store, Told(line("PENDING"))).trunk_job_id("abc", (8,)) == "7_0"
    assert Standings(store, Told(line("PENDING"))).trunk_job_id("abc", (8, 16)) is None
    assert Standings(store, Told(line("COMPLETED"))).trunk_job_id("abc", (8,)) is None
    assert Standings(store, Told(line("PENDING"))).trunk_job_id("xyz", ()) is None


def test_a_time_that_has_not_come_yet_is_not_believed(
    store: Store, run_ids: list[str], clock: Clock, tmp_path: Path
) -> None:
    begin(store, run_ids[0], elsewhere())
    standing(store, run_ids[0])
    (path,) = (tmp_path / "cache" / "hybrid-ablations").iterdir()
    path.write_text(json.dumps({"counters": {f"{run_ids[0]}/1": ["1\n", 9e9]}, "finished": []}))
    clock.now_s += 1
    assert standing(store, run_ids[0]).status == "running"
    clock.now_s += LEASE_S
    assert standing(store, run_ids[0]).status == "running"
    clock.now_s += 2
    assert standing(store, run_ids[0]).status == "lost"
