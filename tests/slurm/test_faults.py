"""Sweeps of several runs under what clusters do to jobs, each driven as a user would: afterwards every run is recorded
once, none is lost, and every loss is that of the undisturbed run."""

import contextlib
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.told import PATIENCE_S, ToldSweep

pytestmark = pytest.mark.slurm


def test_of_an_array_with_a_throttle_of_two_no_more_run_at_once(slurm: Cluster, tmp_path: Path) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=20, steps=3)
    sweep.submit("hydra.launcher.throttle=2")
    (job_id,) = sweep.sweep.job_ids()
    at_once: set[int] = set()

    def is_done() -> bool:
        running = slurm.run("squeue", "-h", "-r", "-t", "RUNNING", "-j", job_id, "-o", "%i").split()
        at_once.add(len(running))
        time.sleep(0.3)
        return sweep.sweep.is_done()

    wait_until(is_done, "20 runs", 300, sweep.sweep.explain)
    assert max(at_once) == 2
    assert set(sweep.sweep.attempts().values()) == {1}
    sweep.assert_whole()


def test_a_run_that_raises_fails_alone_and_is_retried_once_the_cause_is_gone(slurm: Cluster, tmp_path: Path) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=3)
    sweep.start()
    sweep.tell("raise", 1)
    sweep.wait_for_errors([None, "code", None])
    sweep.tell("", 0, 2)
    sweep.wait_for_states(sweep.job(1), "FAILED")
    wait_until(lambda: sweep.sweep.statuses()["done"] == 2, "the others are done", PATIENCE_S, sweep.sweep.explain)
    status = sweep.sweep.ask("status", sweep.name)
    assert "failed" in status
    assert "RuntimeError: as it was told" in status
    sweep.tell("")
    sweep.sweep.ask("retry", sweep.name)
    sweep.finish()
    assert list(sweep.sweep.attempts().values()) == [1, 2, 1]
    assert sweep.starts(1, 2) > 0


def test_killed_processes_and_steps_are_looked_into_and_submitted_again(slurm: Cluster, tmp_path: Path) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=3)
    sweep.start()
    os.kill(sweep.facts(0)["pid"], signal.SIGKILL)
    for pid in sweep.pids(1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for run in (0, 1):
        sweep.wait_for_states(sweep.job(run), "FAILED")
    sweep.wait_until_over(0, 1)
    status = sweep.sweep.ask("status", sweep.name)
    assert "killed by signal 9" in status
    assert "2 lost" in status
    assert sweep.errors() == ["unknown", "unknown", None]
    sweep.submit()
    assert len(sweep.sweep.job_ids()) == 2
    sweep.finish()
    assert list(sweep.sweep.attempts().values()) == [2, 2, 1]


def test_runs_that_need_more_than_a_time_limit_save_and_are_queued_again(slurm: Cluster, tmp_path: Path) -> None:
    """One needs three times its limit, the other two, or more on a machine that is slow to start them."""
    # Slow, 900 steps are over 90 s, more than two lives of at most 40; told to go on, they are 3 s.
    sweep = ToldSweep.of(slurm, tmp_path, runs=2, steps=900)
    sweep.tell("slow")
    sweep.submit("hydra.launcher.time=1", "hydra.launcher.grace_s=20")
    sweep.wait_for_errors(["timeout", "timeout"])
    sweep.tell("", 1)
    wait_until(lambda: sweep.errors(2)[0] == "timeout", "the limit again", PATIENCE_S, sweep.sweep.explain)
    # Of a life, a machine with much else to do leaves seconds for steps: what remains may take several.
    sweep.finish(2 * PATIENCE_S)
    made = list(sweep.sweep.attempts().values())
    assert made[0] >= 3
    assert made[1] >= 2
    for run in (0, 1):
        assert {sweep.errors(attempt)[run] for attempt in range(1, made[run])} == {"timeout"}
        # A life may have been too short for an attempt.
        sweep.wait_for_states(sweep.job(run), *["REQUEUED"] * (made[run] - 1), "COMPLETED", or_more=True)
    starts = [sweep.starts(0, attempt) for attempt in range(1, made[0] + 1)]
    assert starts == sorted(starts)
    assert 0 < starts[1] < starts[-1]


@pytest.mark.slurm(alone=True)
def test_all_runs_make_room_for_more_important_jobs_and_come_back(slurm: Cluster, tmp_path: Path) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=5)
    sweep.start()
    slurm.submit("-p", "high", "--exclusive", "--nodes=3", "--output=/dev/null", "--wrap", "sleep 1")
    sweep.wait_for_errors(["preempted"] * 5)
    assert "5 queued" in sweep.sweep.ask("status", sweep.name)
    sweep.finish()
    assert set(sweep.sweep.attempts().values()) == {2}
    for run in range(5):
        sweep.wait_for_states(sweep.job(run), "REQUEUED", "COMPLETED")


def test_scontrol_requeue_sends_a_run_back_and_does_nothing_to_a_finished_one(slurm: Cluster, tmp_path: Path) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=2)
    sweep.start()
    sweep.tell("", 1)
    wait_until(lambda: sweep.sweep.statuses()["done"] == 1, "one is done", PATIENCE_S, sweep.sweep.explain)
    sweep.wait_for_states(sweep.job(1), "COMPLETED")
    record = sweep.store.record_path(sweep.run_ids[1]).read_bytes()
    for run in (0, 1):
        slurm.run("scontrol", "requeue", sweep.job(run))
    sweep.wait_for_errors(["preempted", None])
    sweep.finish()
    sweep.wait_for_states(sweep.job(0), "REQUEUED", "COMPLETED")
    # Slurm itself may say REQUEUED of what had ended well.
    wait_until(lambda: [end for (end,) in slurm.history(sweep.job(1), "State")][1:] == ["COMPLETED"], "it to end", 60)
    assert list(sweep.sweep.attempts().values()) == [2, 1]
    assert sweep.store.record_path(sweep.run_ids[1]).read_bytes() == record


@pytest.mark.slurm(alone=True)
def test_runs_of_a_crashed_node_go_on_elsewhere(slurm: Cluster, tmp_path: Path) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=5)
    sweep.start()
    nodes = [sweep.node(run) for run in range(5)]
    crashed = Counter(nodes).most_common(1)[0][0]
    hit = [run for run in range(5) if nodes[run] == crashed]
    slurm.crash_node(crashed)
    for run in hit:
        sweep.wait_for_steps(run, 2)
        assert sweep.node(run, 2) != crashed
        assert sweep.starts(run, 2) > 0
    sweep.wait_for_errors(["node_fail" if run in hit else None for run in range(5)])
    sweep.finish()
    assert list(sweep.sweep.attempts().values()) == [2 if run in hit else 1 for run in range(5)]


@pytest.mark.slurm(alone=True)
def test_where_a_node_lost_its_daemon_two_copies_train_a_run_once(slurm: Cluster, tmp_path: Path) -> None:
    """The first copy of one run lives on and finishes, that of the other dies later, and the second goes on for it."""
    sweep = ToldSweep.of(slurm, tmp_path, runs=2, steps=2000)
    sweep.start(f"hydra.launcher.sbatch={{exclude: {slurm.nodes[1]}}}")
    lost = sweep.node(0)
    assert sweep.node(1) == lost
    slurm.lose_daemon(lost)

    def second_copies_wait() -> bool:
        jobs = [slurm.job(sweep.job(run)) for run in (0, 1)]
        return all(job["JobState"] == "RUNNING" and job["Restarts"] == "1" for job in jobs)

    wait_until(second_copies_wait, "both to be started elsewhere", PATIENCE_S, slurm.explain)
    steps = [len(sweep.store.metrics(run_id)) for run_id in sweep.run_ids]
    for run in (0, 1):
        os.kill(sweep.facts(run)["pid"], 0)
        sweep.wait_for_steps(run, 1, steps[run] + 60)
    assert set(sweep.sweep.attempts().values()) == {1}
    os.kill(sweep.facts(1)["pid"], signal.SIGKILL)
    sweep.wait_for_steps(1, 2)
    sweep.finish()
    assert list(sweep.sweep.attempts().values()) == [1, 2]
    assert {slurm.job(sweep.job(run))["JobState"] for run in (0, 1)} == {"COMPLETED"}


def test_cancelled_runs_are_not_queued_again_and_go_on_when_they_are_submitted(slurm: Cluster, tmp_path: Path) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=3)
    sweep.start()
    slurm.run("scancel", sweep.job(0))
    sweep.wait_for_errors(["cancelled", None, None])
    sweep.wait_until_over(0)
    assert "cancelled 2 tasks" in sweep.sweep.ask("cancel", sweep.name, "--yes")
    sweep.wait_for_errors(["cancelled"] * 3)
    sweep.wait_until_over(0, 1, 2)
    for run in range(3):
        sweep.wait_for_states(sweep.job(run), "CANCELLED")
    assert set(sweep.sweep.statuses()) == {"interrupted"}
    assert "interrupted" in sweep.sweep.ask("status", sweep.name)
    assert set(sweep.sweep.attempts().values()) == {1}
    sweep.submit()
    sweep.finish()
    assert set(sweep.sweep.attempts().values()) == {2}
    assert all(sweep.starts(run, 2) > 0 for run in range(3))


def test_submitting_twice_at_once_in_the_middle_of_it_all_adds_what_is_missing_once(
    slurm: Cluster, tmp_path: Path
) -> None:
    """Of eight runs one raises, one is killed, one cancelled, two are done, one runs, and two are pending."""
    sweep = ToldSweep.of(slurm, tmp_path, runs=8)
    sweep.tell("slow")
    sweep.submit("hydra.launcher.throttle=6")
    for run in range(6):
        sweep.wait_for_steps(run, 1)
    # Nothing that is pending may start: it would end what should be pending.
    slurm.run("scontrol", "hold", sweep.job(6), sweep.job(7))
    sweep.tell("raise", 0)
    os.kill(sweep.facts(1)["pid"], signal.SIGKILL)
    slurm.run("scancel", sweep.job(2))
    sweep.tell("", 3, 4)
    for run, state in enumerate(("FAILED", "FAILED", "CANCELLED", "COMPLETED", "COMPLETED")):
        sweep.wait_for_states(sweep.job(run), state)
    sweep.wait_until_over(*range(5))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: sweep.submit(), range(2)))
    assert len(sweep.sweep.job_ids()) == 2
    assert [sweep.job(run, submission=1) for run in (0, 1, 2)] == [f"{sweep.sweep.job_ids()[1]}_{i}" for i in range(3)]
    slurm.run("scontrol", "release", sweep.job(6), sweep.job(7))
    sweep.finish()
    assert list(sweep.sweep.attempts().values()) == [2, 2, 2, 1, 1, 1, 1, 1]
