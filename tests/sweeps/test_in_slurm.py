"""Why a signal came, by what `scontrol show job` said on a real cluster (22.05) when it did."""

import signal

import pytest

from sweeps import in_slurm
from sweeps.in_slurm import here, is_earlier_life, name, read_ending

RUNNING = "JobState=RUNNING Reason=None Requeue=1 Restarts=1 RunTime=00:00:23 TimeLimit=00:01:00 PreemptTime=None"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-11-21T11:03:02")
LONG = RUNNING.replace("TimeLimit=00:01:00", "TimeLimit=2-00:00:00")
ENDLESS = RUNNING.replace("TimeLimit=00:01:00", "TimeLimit=UNLIMITED")
CANCELLED = RUNNING.replace("RUNNING", "COMPLETING")
LIMIT = CANCELLED.replace("Reason=None", "Reason=TimeLimit")
REQUEUED = CANCELLED.replace("Restarts=1", "Restarts=2")


@pytest.mark.parametrize(
    ("shown", "number", "error_class", "requeue"),
    [
        (RUNNING, signal.SIGUSR2, "timeout", True),
        (PREEMPTED, signal.SIGUSR2, "preempted", True),
        (PREEMPTED, signal.SIGTERM, "preempted", True),
        (LONG, signal.SIGUSR2, "preempted", True),
        (ENDLESS, signal.SIGTERM, "preempted", True),
        (RUNNING, signal.SIGINT, "cancelled", False),
        (REQUEUED, signal.SIGTERM, "preempted", False),
        (LIMIT, signal.SIGTERM, "timeout", True),
        (CANCELLED, signal.SIGTERM, "cancelled", False),
        (CANCELLED.replace("COMPLETING", "CANCELLED"), signal.SIGTERM, "cancelled", False),
        (CANCELLED.replace("COMPLETING", "NODE_FAIL"), signal.SIGTERM, "node_fail", False),
        (RUNNING, None, "cancelled", False),
    ],
)
def test_the_scheduler_says_why_a_signal_came_and_whether_to_go_on(
    shown: str, number: int | None, error_class: str, requeue: bool
) -> None:
    found = read_ending(dict(word.split("=") for word in shown.split()), number, restart_count=1)
    assert (found.error_class, found.requeue, found.is_known) == (error_class, requeue, True)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An element of an array, in its third life."""
    values = {
        "SLURM_JOB_ID": "41034501",
        "SLURM_ARRAY_JOB_ID": "41034497",
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_RESTART_COUNT": "2",
        "SLURMD_NODENAME": "n1",
        "SLURM_CLUSTER_NAME": "local",
    }
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("HYBRID_SUBMISSION", raising=False)
    return monkeypatch


def test_a_process_knows_its_job(job: pytest.MonkeyPatch) -> None:
    assert here(3) == {
        "job_id": "41034501",
        "array_job_id": "41034497",
        "array_task_id": 0,
        "restart_count": 2,
        "node": "n1",
        "cluster": "local",
        "submission": 3,
    }
    job.setenv("HYBRID_SUBMISSION", "12")
    assert (here() or {})["submission"] == 12
    assert name(here() or {}) == "41034497_0"
    job.delenv("SLURM_ARRAY_JOB_ID")
    assert name(here() or {}) == "41034501"
    job.delenv("SLURM_JOB_ID")
    assert here() is None


@pytest.mark.usefixtures("job")
def test_only_the_same_job_of_the_same_cluster_is_an_earlier_life() -> None:
    ours = here() or {}
    assert is_earlier_life({"slurm": {**ours, "restart_count": 0, "node": "n2"}})
    assert not is_earlier_life({"slurm": {**ours, "job_id": "41034502"}})
    assert not is_earlier_life({"slurm": {**ours, "cluster": "other"}})
    assert not is_earlier_life({"slurm": None})
    assert not is_earlier_life({})


@pytest.mark.usefixtures("job")
def test_a_scheduler_that_does_not_answer_is_not_waited_for_and_the_run_is_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(in_slurm, "ANSWER_WITHIN_S", 0.3)
    found = in_slurm.ending(signal.SIGTERM)
    assert (found.error_class, found.requeue, found.is_known) == ("preempted", True, False)
    assert "scontrol" in found.words
