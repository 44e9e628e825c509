"""What Slurm printed, as it is understood; where there is a cluster, tests/slurm/test_scheduler.py asks it."""

from pathlib import Path

import pytest

from sweeps.scheduler import Job, SchedulerError, Slurm, clean_environment, read_sacct, read_show, read_squeue

# As Slurm 22.05.8 printed them, of jobs that were requeued (3, 0), cancelled (4, 9), killed (2) and raised (1).
QUEUE = """\
41034503_9|41034503|CANCELLED|JobArrayTaskLimit||10:00|0|0|x-abc|
41034503_4|41034509|CANCELLED|None|n1|9:57|0|15|x-abc|
41034503_1|41034506|FAILED|NonZeroExitCode|n1|10:00|0|768|x-abc|
41034503_2|41034507|FAILED|JobLaunchFailure|n1|10:00|0|9|x-abc|
41034503_3|41034508|PENDING|JobArrayTaskLimit||10:00|1|0|x-abc|
41034514_8|41034514|PENDING|JobHeldUser||1-00:00:00|0|0|pend|
41034504|41034504|RUNNING|None|n2|23:58:44|0|0|a|b|
"""
HISTORY = """\
41034503_0|41034505|COMPLETED|0:0|n1|x-abc
41034503_1|41034506|FAILED|3:0|n1|x-abc
41034503_2|41034507|FAILED|0:9|n1|x-abc
41034503_3|41034508|REQUEUED|0:0|n1|x-abc
41034503_4|41034509|CANCELLED by 0|0:0|n1|x-abc
41034503_7|41034512|RUNNING|0:0|n2|x-abc
41034503_[7-9%4]|41034503|CANCELLED by 0|0:0|None assigned|x-abc
41034503_3|41034508|PENDING|0:0|None assigned|x-abc
41034514_[0-2,4-9]|41034514|PENDING|0:0|None assigned|pend
41034515_[0-30:3%2]|41034515|CANCELLED by 0|0:0|None assigned|gone
"""
SHOWN = (
    "JobId=41034508 ArrayJobId=41034503 ArrayTaskId=3 ArrayTaskThrottle=4 JobName=x abc UserId=root(0) "
    "JobState=PENDING Reason=JobArrayTaskLimit Dependency=(null) Requeue=1 Restarts=1 ReqB:S:C:T=0:0:*:* "
    "TRES=cpu=1,mem=512M,node=1,billing=1 Command=/tmp/a play/job.sh --x=1 JobState=DONE WorkDir=/tmp Power= \n"
    "JobId=41034507 JobState=FAILED\n"
)


def test_the_queue_tells_of_every_element_where_it_is_and_how_it_ended() -> None:
    jobs = read_squeue(QUEUE)
    assert len(jobs) == 7
    assert jobs["41034504"] == Job(
        job_id="41034504",
        raw_id="41034504",
        name="a|b",
        state="RUNNING",
        reason="",
        node="n2",
        time_left_s=86324.0,
        exit_code=None,
        signal=None,
        restarts=0,
    )
    assert {id_: (job.exit_code, job.signal) for id_, job in jobs.items() if not job.is_active} == {
        "41034503_9": (0, 0),
        "41034503_4": (0, 15),
        "41034503_1": (3, 0),
        "41034503_2": (0, 9),
    }
    again, held = jobs["41034503_3"], jobs["41034514_8"]
    assert (again.is_active, again.is_pending, again.raw_id, again.restarts) == (True, True, "41034508", 1)
    assert (held.is_active, held.raw_id, held.reason, held.time_left_s) == (True, "", "JobHeldUser", None)


def test_of_a_requeued_job_sacct_s_last_row_counts_and_of_pending_ranges_each_element() -> None:
    jobs = read_sacct(HISTORY)
    assert {id_: job.state for id_, job in jobs.items() if id_.startswith("41034503")} == {
        "41034503_0": "COMPLETED",
        "41034503_1": "FAILED",
        "41034503_2": "FAILED",
        "41034503_3": "UNKNOWN",
        "41034503_4": "CANCELLED",
        "41034503_7": "UNKNOWN",  # it ran, and the range is of before: its own row stands
        "41034503_8": "CANCELLED",
        "41034503_9": "CANCELLED",
    }
    assert jobs["41034503_3"].restarts == 1
    assert "PENDING" in jobs["41034503_3"].reason
    assert {id_.partition("_")[2] for id_ in jobs if id_.startswith("41034514")} == set("012456789")
    assert [id_ for id_ in jobs if id_.startswith("41034515")] == [f"41034515_{i}" for i in range(0, 31, 3)]
    assert (jobs["41034503_2"].exit_code, jobs["41034503_2"].signal, jobs["41034503_2"].node) == (0, 9, "n1")
    assert (jobs["41034503_9"].node, jobs["41034503_9"].raw_id) == ("", "")
    assert not any(job.is_active for job in jobs.values())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:07", 7), ("10:00", 600), ("1:02:03", 3723), ("2-00:00:01", 172801), ("UNLIMITED", None), ("INVALID", None)],
)
def test_time_left_is_read_in_every_form(text: str, seconds: float | None) -> None:
    job = read_squeue(f"7|7|RUNNING|None|n1|{text}|0|0|x|\n")["7"]
    assert job.time_left_s == seconds


@pytest.mark.parametrize("state", ["CONFIGURING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "REQUEUE_HOLD", "SIGNALING"])
def test_whatever_is_no_known_end_is_active(state: str) -> None:
    assert read_squeue(f"7|7|{state}|None|n1|1:00|0|0|x|\n")["7"].is_active


def test_what_scontrol_shows_is_read_by_key_and_the_first_of_a_key_stands() -> None:
    shown = read_show(SHOWN)
    assert (shown["JobName"], shown["JobState"], shown["Restarts"]) == ("x abc", "PENDING", "1")
    assert (shown["TRES"], shown["WorkDir"]) == ("cpu=1,mem=512M,node=1,billing=1", "/tmp")
    assert (shown["ReqB:S:C:T"], shown["Power"]) == ("0:0:*:*", "")
    assert read_show("") == {}


def test_commands_get_no_variables_of_slurm_but_those_that_say_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SQUEUE_FORMAT", "SACCT_FORMAT", "SLURMD_NODENAME", "SRUN_DEBUG"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    environment = clean_environment()
    assert {name for name in environment if name.startswith(("S", "SLURM"))} & {
        "SLURM_JOB_ID",
        "SBATCH_PARTITION",
        "SQUEUE_FORMAT",
        "SACCT_FORMAT",
        "SLURMD_NODENAME",
        "SRUN_DEBUG",
    } == set()
    assert (environment["SLURM_CONF"], environment["LC_ALL"]) == ("/etc/slurm.conf", "C")
    assert "PATH" in environment


def test_without_slurm_there_is_none_and_its_commands_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Slurm.find() is None
    with pytest.raises(SchedulerError, match="squeue: not on the PATH"):
        Slurm().jobs(["7"])
    assert Slurm().qos() is None
