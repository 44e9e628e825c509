"""What is said of runs whose tasks a real cluster has, through what happens to them there."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.scheduler import Slurm
from sweeps.standing import Standing, Standings
from sweeps.status import logs_text
from sweeps.store import Store, publish, this_process
from sweeps.submissions import Answer, Intent, Item, Submissions
from tests.slurm.cluster import Cluster, wait_until

pytestmark = pytest.mark.slurm
PATIENCE_S = 120.0
RUNS = ["a" * 12, "b" * 12]

WAITS = """#!/bin/bash
#SBATCH --array=0-1
while [ ! -e stop ]; do sleep 0.2; done
"""


@pytest.fixture
def store(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    assert slurm.running()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """Stands for a process that trains: it lives until it is killed."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def submit(store: Store, text: str, *, owner: dict[str, Any] | None = None, answered: bool = True) -> str:
    """Two runs, each a task of one array; the array's id."""
    submissions = Submissions(store)
    number, name = submissions.last() + 1, f"s-{secrets.token_hex(4)}"
    intent = Intent(
        job_name=name,
        created_at="",
        owner=owner or this_process(),
        sweep="s",
        overrides=(),
        tasks=tuple((Item(kind="run", run_id=run_id, name=run_id, row="r", seed=1),) for run_id in RUNS),
        execution={},
        resources={},
        snapshot=None,
        checkpoints="",
        data="",
    )
    assert submissions.publish(number, intent)
    script = submissions.directory(number) / "script.sh"
    first, _, rest = text.partition("\n")
    output = f"#SBATCH --output={submissions.directory(number)}/%A_%a.out"
    script.write_text(f"{first}\n#SBATCH --job-name={name}\n{output}\n{rest}")
    job_id = Slurm().submit(script)
    if answered:
        submissions.publish_answer(number, Answer(job_id=job_id))
    return job_id


def begin(store: Store, run_id: str, array: str, index: int, pid: int) -> Path:
    """An attempt of that task's, made by this process."""
    raw = Slurm().show(f"{array}_{index}")["JobId"]
    attempt = store.claim(run_id, store.last_attempt(run_id))
    assert attempt is not None
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    slurm = {"job_id": raw, "array_job_id": array, "array_task_id": index, "restart_count": 0, "node": "n1"}
    job = {**this_process(), "pid": pid, "pid_started": started, "lease_s": 60.0, "slurm": {**slurm, "submission": 1}}
    publish(attempt.directory / "job.json", json.dumps(job))
    return attempt.directory


def standings(store: Store) -> list[Standing]:
    found = Standings(store)
    return [found.of(run_id) for run_id in RUNS]


def statuses(store: Store) -> list[str]:
    return [standing.status for standing in standings(store)]


def wait_for_job(store: Store, index: int, *states: str) -> Standing:
    def reached() -> bool:
        job = standings(store)[index].job
        return job is not None and job.state in states

    wait_until(reached, f"task {index} to be {' or '.join(states)}", PATIENCE_S)
    return standings(store)[index]


def test_held_running_requeued_and_cancelled_tasks_are_told_apart(
    store: Store, process: "subprocess.Popen[bytes]"
) -> None:
    array = submit(store, WAITS.replace("--array=0-1", "--array=0-1 --hold"))
    assert statuses(store) == ["queued", "queued"]
    assert standings(store)[0].note == "pending: JobHeldUser"

    subprocess.run(["scontrol", "release", array], check=True)
    wait_for_job(store, 0, "RUNNING")
    wait_for_job(store, 1, "RUNNING")
    assert statuses(store) == ["queued", "queued"]  # nothing has claimed them yet
    directories = [begin(store, run_id, array, index, process.pid) for index, run_id in enumerate(RUNS)]
    first = standings(store)[0]
    assert (first.status, first.attempt, first.submission) == ("running", 1, 1)
    assert first.job is not None
    assert first.job.node.startswith("n")

    publish(directories[0] / "error.json", json.dumps({"class": "preempted", "message": "saved"}))
    Slurm().requeue(f"{array}_0")
    assert wait_for_job(store, 0, "PENDING").status == "queued"

    process.kill()
    process.wait()
    assert standings(store)[1].status == "running"  # the scheduler has not said that its task is over
    Slurm().cancel([array])
    over = wait_for_job(store, 1, "CANCELLED")
    assert over.status == "interrupted"
    assert over.error is not None
    assert over.error["class"] == "cancelled"
    assert statuses(store) == ["interrupted", "interrupted"]


def test_a_task_that_fails_before_its_run_begins_fails_it_and_its_output_is_shown(store: Store) -> None:
    array = submit(store, '#!/bin/bash\n#SBATCH --array=0-1\necho "no such module: cuda"\nexit 4\n')
    found = wait_for_job(store, 1, "FAILED")
    assert found.status == "failed"
    assert f"job {array}_1: FAILED (exit code 4) before it began it" in found.note
    assert "no such module: cuda" in logs_text(store, RUNS[1], None)


def test_a_job_whose_answer_was_lost_is_found_by_its_name_and_one_that_never_was_is_given_up(store: Store) -> None:
    gone = {**this_process(), "pid_started": "1"}
    array = submit(store, WAITS, owner=gone, answered=False)
    assert statuses(store) == ["queued", "queued"]
    answer = Submissions(store).get(1).answer
    assert answer is not None
    assert answer.job_id == array

    intent = Submissions(store).get(1).intent
    Submissions(store).publish(2, Intent(**{**vars(intent), "job_name": "never"}))
    Slurm().cancel([array])
    wait_until(lambda: statuses(store) == ["new", "new"], "both to be free", PATIENCE_S)
    answer = Submissions(store).get(2).answer
    assert answer is not None
    assert answer.job_id is None
    assert "never reached" in answer.message


def test_a_scheduler_that_cannot_be_asked_leaves_open_what_it_would_say(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, WAITS)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", os.path.dirname(sys.executable))
        found = Standings(store, tolerant=True).of(RUNS[0])
    assert (found.status, found.job) == ("queued", None)
    assert "cannot be asked here" in found.note
