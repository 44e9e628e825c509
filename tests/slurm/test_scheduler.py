"""What Slurm tells of real jobs, as `sweeps.scheduler` understands it."""

import os
import time
from pathlib import Path

import pytest

from sweeps.scheduler import Job, NoAnswerError, SchedulerError, Slurm
from tests.slurm.cluster import Cluster, wait_until

pytestmark = pytest.mark.slurm
PATIENCE_S = 120.0

ENDINGS = """#!/bin/bash
#SBATCH --array=0-3
case $SLURM_ARRAY_TASK_ID in
    0) exit 0 ;;
    1) exit 3 ;;
    2) kill -9 $$ ;;
    *) while [ ! -e stop ]; do sleep 0.2; done ;;
esac
"""

WAITS = """#!/bin/bash
while [ ! -e stop ]; do sleep 0.2; done
"""


def script(text: str) -> Path:
    path = Path("job.sh").absolute()
    path.write_text(text)
    return path


def wait_for_state(scheduler: Slurm, array_id: str, job_id: str, *states: str) -> Job:
    def reached() -> bool:
        job = scheduler.jobs([array_id]).get(job_id)
        return job is not None and job.state in states

    wait_until(reached, f"{job_id} to be {' or '.join(states)}", PATIENCE_S)
    return scheduler.jobs([array_id])[job_id]


@pytest.fixture
def scheduler(slurm: Cluster) -> Slurm:
    assert slurm.running()
    found = Slurm.find()
    assert found is not None
    return found


def test_every_element_of_an_array_is_told_with_how_it_ended(scheduler: Slurm) -> None:
    array = scheduler.submit(script(ENDINGS))
    for index, state in enumerate(("COMPLETED", "FAILED", "FAILED", "RUNNING")):
        wait_for_state(scheduler, array, f"{array}_{index}", state)
    jobs = scheduler.jobs([array, "1"])
    assert jobs.keys() == {f"{array}_{index}" for index in range(4)}
    ended = [(jobs[f"{array}_{i}"].exit_code, jobs[f"{array}_{i}"].signal) for i in range(4)]
    assert ended == [(0, 0), (3, 0), (0, 9), (None, None)]
    assert [jobs[f"{array}_{i}"].is_active for i in range(4)] == [False, False, False, True]
    assert len({job.raw_id for job in jobs.values()}) == 4
    running = jobs[f"{array}_3"]
    assert running.node in {"n1", "n2", "n3"}
    assert running.time_left_s is not None
    assert scheduler.show(running.raw_id)["ArrayTaskId"] == "3"
    Path("stop").touch()


def test_what_the_controller_has_forgotten_is_told_by_sacct(
    scheduler: Slurm, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = scheduler.submit(script(ENDINGS))
    Path("stop").touch()
    for index in range(4):
        wait_for_state(scheduler, array, f"{array}_{index}", "COMPLETED", "FAILED")
    wait_until(lambda: len(slurm.history(array, "State")) == 4, "sacct to know all", PATIENCE_S)
    # Other tests use the cluster meanwhile: squeue is made to forget it by asking one that knows no job but by another
    # id, as it would after MinJobAge.
    before = scheduler.jobs([array])
    monkeypatch.setenv("PATH", f"{deaf_squeue(array)}:{os.environ['PATH']}")
    after = scheduler.jobs([array])
    assert {id_: (job.state, job.exit_code, job.signal) for id_, job in after.items()} == {
        id_: (job.state, job.exit_code, job.signal) for id_, job in before.items()
    }
    assert {job.raw_id for job in after.values()} == {job.raw_id for job in before.values()}


def deaf_squeue(job_id: str) -> Path:
    """A folder with a squeue that asks for job 1 where it is asked for this one."""
    directory = Path("deaf").absolute()
    directory.mkdir()
    (directory / "squeue").write_text(f'#!/bin/bash\nexec /usr/bin/squeue "${{@/#{job_id}/1}}"\n')
    (directory / "squeue").chmod(0o755)
    return directory


def test_a_requeued_element_keeps_its_raw_id_and_counts_its_starts(scheduler: Slurm) -> None:
    array = scheduler.submit(script(WAITS.replace("\n", "\n#SBATCH --array=0-1\n", 1)))
    first = wait_for_state(scheduler, array, f"{array}_0", "RUNNING")
    wait_for_state(scheduler, array, f"{array}_1", "RUNNING")
    scheduler.requeue(first.job_id)
    again = wait_for_state(scheduler, array, first.job_id, "PENDING")
    assert again.is_active
    assert (again.raw_id, again.restarts, again.node, again.time_left_s) == (first.raw_id, 1, "", None)
    Path("stop").touch()
    wait_for_state(scheduler, array, first.job_id, "COMPLETED")


def test_pending_and_held_elements_are_told_one_by_one_and_have_no_raw_id_yet(scheduler: Slurm) -> None:
    array = scheduler.submit(script("#!/bin/bash\n#SBATCH --hold --array=3,5-6%1\n"))
    jobs = scheduler.jobs([array])
    assert jobs.keys() == {f"{array}_{i}" for i in (3, 5, 6)}
    assert {(job.state, job.raw_id, job.reason, job.is_active) for job in jobs.values()} == {
        ("PENDING", "", "JobHeldUser", True)
    }
    scheduler.cancel([f"{array}_5"])
    assert not is_active(scheduler, array, f"{array}_5")
    assert is_active(scheduler, array, f"{array}_3")
    scheduler.cancel([array, f"{array}_3"])
    assert not any(job.is_active for job in scheduler.jobs([array]).values())


def is_active(scheduler: Slurm, array: str, job_id: str) -> bool:
    job = scheduler.jobs([array]).get(job_id)
    return job is not None and job.is_active


def test_a_job_is_found_by_its_name_while_it_waits_and_after_it_ran(
    scheduler: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"sweep-{time.time_ns():x}"
    assert scheduler.named(name) is None
    array = scheduler.submit(script(f"#!/bin/bash\n#SBATCH --array=0-1 -J {name}\n"))
    assert scheduler.named(name) == array
    wait_for_state(scheduler, array, f"{array}_0", "COMPLETED")
    wait_for_state(scheduler, array, f"{array}_1", "COMPLETED")
    monkeypatch.setenv("PATH", f"{deaf_squeue(name)}:{os.environ['PATH']}")
    wait_until(lambda: scheduler.named(name) == array, "sacct to know the name", PATIENCE_S)


def test_jobs_nobody_knows_are_missing_and_cannot_be_requeued(scheduler: Slurm) -> None:
    assert scheduler.jobs(["1"]) == {}
    assert scheduler.jobs([]) == {}
    assert scheduler.show("1") == {}
    scheduler.cancel(["1"])
    with pytest.raises(SchedulerError, match="scontrol requeue 1: Invalid job id"):
        scheduler.requeue("1")


def test_what_the_cluster_has_is_named_and_a_refused_script_says_why(scheduler: Slurm, slurm: Cluster) -> None:
    assert scheduler.facts().max_array_size == slurm.settings.max_array_size
    assert scheduler.partitions() == ["main", "high"]
    assert scheduler.qos() == ["normal", "urgent"]
    assert "lab" in (scheduler.accounts() or [])
    good, bad = script("#!/bin/bash\n"), Path("bad.sh")
    bad.write_text("#!/bin/bash\n#SBATCH --partition=nowhere\n")
    scheduler.check(good)
    for ask in (scheduler.check, scheduler.submit):
        with pytest.raises(SchedulerError, match=r"sbatch .*bad.sh: .*nvalid partition .*nowhere") as caught:
            ask(bad)
        assert not isinstance(caught.value, NoAnswerError)


def test_inherited_variables_change_nothing(scheduler: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    array = scheduler.submit(script("#!/bin/bash\n#SBATCH --hold --array=0-1\n"))
    before = scheduler.jobs([array])
    for name, value in {
        "SQUEUE_FORMAT": "%i",
        "SQUEUE_STATES": "RUNNING",
        "SACCT_FORMAT": "JobID",
        "SBATCH_PARTITION": "nowhere",
        "SLURM_TIME_FORMAT": "relative",
        "SLURM_JOB_ID": "1",
        "SINFO_PARTITION": "high",
        "SCANCEL_STATE": "RUNNING",
    }.items():
        monkeypatch.setenv(name, value)
    assert scheduler.jobs([array]) == before
    assert scheduler.partitions() == ["main", "high"]
    scheduler.check(script("#!/bin/bash\n"))
    scheduler.cancel([array])
    assert not any(job.is_active for job in scheduler.jobs([array]).values())


def test_a_controller_that_does_not_answer_is_named_and_takes_no_patience(
    scheduler: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "slurm.conf"
    text = Path(os.environ["SLURM_CONF"]).read_text()
    port = next(line for line in text.splitlines() if line.startswith("SlurmctldPort="))
    conf.write_text(text.replace(port, "SlurmctldPort=1") + "MessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setattr("sweeps.scheduler.COMMAND_TIMEOUT_S", 2.0)
    with pytest.raises(NoAnswerError, match=r"squeue .*: (no answer in 2 s|.*[Uu]nable to contact)"):
        scheduler.jobs(["7"])
    with pytest.raises(NoAnswerError, match="sbatch"):
        scheduler.submit(script("#!/bin/bash\n"))
