"""A process and the Slurm job that it is part of: which one, why it was told to stop, and asking to be queued again.

A signal alone says little. What `scontrol show job` said when one came (Slurm 22.05, as tests/slurm/cluster.py sets it
up; Restarts counted from that of the process asked, +0 its own):

    USR2  ahead of the time limit          RUNNING                         +0   no PreemptTime
    USR2  preempted, in its grace time     RUNNING                         +0   PreemptTime
    TERM  preempted, had its USR2 before   RUNNING                         +0   PreemptTime
    TERM  preempted, grace time is over    COMPLETING                      +1
    TERM  scontrol requeue                 COMPLETING                      +1
    TERM  time limit reached               COMPLETING, Reason=TimeLimit    +0
    TERM  scancel (of an element, an array)  COMPLETING or CANCELLED       +0
    TERM, INT, USR2  scancel --signal      RUNNING                         +0   no PreemptTime

Nothing comes when a node is drained. Once the state is COMPLETING there is KillWait until SIGKILL, and srun and the
script around it do not end before the process does. A process that ends in its grace time ends its job: that is not
queued again unless it asked for it. It may ask while RUNNING, and at its time limit; to ask twice does no harm. Asking
makes Slurm send TERM at once, and to every process of the job: commands that it has running die with it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sweeps.scheduler import SchedulerError, Slurm, seconds
from sweeps.stopping import StopFlag
from sweeps.triage import ErrorClass

T = TypeVar("T")

ANSWER_WITHIN_S = 10.0
"""KillWait is 30 s unless a site has changed it, and the run is saved before the scheduler is asked."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why a job was told to stop, as `words` for people, and whether it should be queued again by its own wish.

    Not `is_known`: the scheduler did not say, and it is a guess.
    """

    error_class: ErrorClass
    requeue: bool
    words: str
    is_known: bool = True


def here(submission: int | None = None) -> dict[str, Any] | None:
    """Which job, element and node this process is part of, as an attempt's job.json has it; None outside of Slurm."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None:
        return None
    number = os.environ.get("HYBRID_SUBMISSION", "") if submission is None else str(submission)
    return {
        "job_id": job_id,
        "array_job_id": os.environ.get("SLURM_ARRAY_JOB_ID"),
        "array_task_id": _number(os.environ.get("SLURM_ARRAY_TASK_ID")),
        "restart_count": _number(os.environ.get("SLURM_RESTART_COUNT")) or 0,
        "node": os.environ.get("SLURMD_NODENAME"),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "submission": _number(number),
    }


def name(facts: Mapping[str, Any]) -> str:
    """What Slurm's commands call the job of these facts: an element's raw id may mean its whole array."""
    if facts["array_job_id"] is not None and facts["array_task_id"] is not None:
        return f"{facts['array_job_id']}_{facts['array_task_id']}"
    return str(facts["job_id"])


def is_earlier_life(job: Mapping[str, Any]) -> bool:
    """Whether whoever wrote this job.json ran in the job of this process, before that was queued again."""
    ours, theirs = here(), job.get("slurm")
    return (
        ours is not None and theirs is not None and all(ours[key] == theirs.get(key) for key in ("job_id", "cluster"))
    )


def ending(number: int | None) -> Ending:
    """Why this process was sent the signal `number` (None: it was told in another way), the scheduler asked."""
    facts = here()
    assert facts is not None
    said = "" if number is None else signal.Signals(number).name
    shown, problem = _patiently(lambda: Slurm().show(name(facts)))
    if not shown:
        words = f"{said}; the scheduler did not say why ({problem or 'it has forgotten the job'})"
        return Ending(error_class="preempted", requeue=number not in (None, signal.SIGINT), words=words, is_known=False)
    return read_ending(shown, number, facts["restart_count"])


def read_ending(shown: Mapping[str, str], number: int | None, restart_count: int) -> Ending:
    """`ending`, from what `scontrol show job` printed."""
    state, reason = shown.get("JobState", ""), shown.get("Reason", "")
    preempted = shown.get("PreemptTime", "None") not in ("None", "")
    if int(shown.get("Restarts") or 0) > restart_count:
        return Ending(error_class="preempted", requeue=False, words="the job was queued again")
    if state != "RUNNING":
        if reason == "TimeLimit" or state in ("TIMEOUT", "DEADLINE"):
            return Ending(error_class="timeout", requeue=True, words="its time limit was reached")
        if preempted or state in ("PREEMPTED", "PENDING", "REQUEUED"):
            return Ending(error_class="preempted", requeue=False, words="preempted")
        if state == "NODE_FAIL":
            return Ending(error_class="node_fail", requeue=False, words="its node failed")
        return Ending(error_class="cancelled", requeue=False, words=f"the job is {state}: cancelled")
    if preempted:
        return Ending(error_class="preempted", requeue=True, words="preempted")
    if number in (None, signal.SIGINT, signal.SIGHUP):
        return Ending(error_class="cancelled", requeue=False, words="interrupted by hand")
    limit, ran = seconds(shown.get("TimeLimit", "")), seconds(shown.get("RunTime", ""))
    if limit is not None and ran is not None and limit - ran < 0.1 * limit + 180:
        return Ending(error_class="timeout", requeue=True, words=f"{limit - ran:.0f} s before its time limit")
    return Ending(error_class="preempted", requeue=True, words="asked to make room")


def ask_for_requeue(stop: StopFlag, submission: int | None = None) -> bool:
    """Ask Slurm to queue this job again, if that is right after what stopped it; whether it was asked.

    The last thing that a job does: Slurm ends it for that. Of a job's processes only the first asks.
    """
    facts = here(submission)
    if facts is None or os.environ.get("SLURM_PROCID", "0") != "0" or not ending(stop.signal).requeue:
        return False

    def ask() -> bool:
        try:
            Slurm().requeue(name(facts))
        except SchedulerError:  # the answer may have been lost to the signal that came of it
            if int(Slurm().show(name(facts)).get("Restarts") or 0) <= facts["restart_count"]:
                raise
        return True

    return _patiently(ask)[0] is True


def _patiently(ask: Callable[[], T]) -> tuple[T | None, str | None]:
    """What the scheduler answers, else why it does not, in good time.

    It is asked again where a command fails: a signal to the job is one to the command too.
    """
    answers: list[T] = []
    problems: list[str] = []
    end = time.monotonic() + ANSWER_WITHIN_S

    def keep_asking() -> None:
        while time.monotonic() < end:
            try:
                answers.append(ask())
                return
            except SchedulerError as error:
                problems.append(str(error))
            time.sleep(0.5)

    thread = threading.Thread(target=keep_asking, daemon=True, name="asks the scheduler")
    thread.start()
    thread.join(ANSWER_WITHIN_S)
    if answers:
        return answers[0], None
    return None, problems[-1] if problems else f"no answer in {ANSWER_WITHIN_S:.0f} s"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
