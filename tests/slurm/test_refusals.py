"""Disks, schedulers and stores that say no: a clear message, nothing half-done, and the same command goes on later."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.store import Store
from sweeps.submissions import Submissions
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.sweep import REPO
from tests.slurm.told import PATIENCE_S, ToldSweep

pytestmark = pytest.mark.slurm


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One of 12 MB. Set up before `slurm`, it is there until that has cancelled the test's jobs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave not a byte; gives the file that has them."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    assert os.statvfs(disk).f_bavail == 0
    return ballast


def wait_until_failed(sweep: ToldSweep) -> None:
    for run in range(len(sweep.run_ids)):
        sweep.wait_for_states(sweep.job(run), "FAILED")


def test_runs_whose_disk_fills_up_fail_as_io_and_are_retried_once_there_is_room(
    small_disk: Path, slurm: Cluster, tmp_path: Path
) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=2, store=small_disk / "store")
    sweep.start()
    ballast = fill(small_disk)
    wait_until_failed(sweep)
    status = sweep.sweep.ask("status", sweep.name)
    assert "io: OSError: [Errno 28] No space left on device" in status
    assert sweep.errors() == ["io", "io"]
    refused = sweep.submit(code=1)
    assert "disk is full" in refused
    assert str(small_disk) in refused.rpartition("error:")[2]
    assert "Traceback" not in refused
    ballast.unlink()
    assert len(sweep.sweep.job_ids()) == 1
    sweep.sweep.ask("retry", sweep.name, "--class", "io")
    sweep.finish()
    assert set(sweep.sweep.attempts().values()) == {2}


def test_on_a_store_that_is_read_only_jobs_fail_nothing_is_submitted_and_all_goes_on_later(
    small_disk: Path, slurm: Cluster, tmp_path: Path
) -> None:
    """It is so once they have been submitted, and before they start."""
    sweep = ToldSweep.of(slurm, tmp_path, runs=2, store=small_disk / "store")
    sweep.submit("+hydra.launcher.sbatch.begin=now+3")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    wait_until_failed(sweep)
    status = sweep.sweep.ask("status", sweep.name)
    assert "2 failed" in status
    assert f"could not write to {sweep.store.root}" in status
    assert "read-only" in status
    refused = sweep.submit(code=1)
    assert "read-only" in refused
    assert "Traceback" not in refused
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert len(sweep.sweep.job_ids()) == 1
    sweep.submit()
    sweep.finish()
    assert set(sweep.sweep.attempts().values()) == {1}


def test_jobs_of_a_store_that_was_moved_say_so_and_make_nothing(slurm: Cluster, tmp_path: Path) -> None:
    sweep = ToldSweep.of(slurm, tmp_path, runs=2, steps=10)
    sweep.submit("+hydra.launcher.sbatch.begin=now+3")
    jobs = [sweep.job(run) for run in (0, 1)]
    moved = Store(tmp_path / "moved")
    sweep.store.root.rename(moved.root)
    for job in jobs:
        sweep.wait_for_states(job, "FAILED")
    assert not sweep.store.root.exists()
    found = ToldSweep.of(slurm, tmp_path, runs=2, steps=10, store=moved.root)
    status = found.sweep.ask("status", found.name)
    assert "was the store moved" in status
    found.submit()
    found.finish()
    assert set(found.sweep.attempts().values()) == {1}


def test_what_is_beyond_a_limit_of_the_site_is_refused_and_submitted_later(slurm: Cluster, tmp_path: Path) -> None:
    """Two arrays of a qos that takes four jobs of a user: five runs do not fit."""
    sweep = ToldSweep.of(slurm, tmp_path, runs=5)
    sweep.tell("slow")
    settings = ("hydra.launcher.qos=urgent", "hydra.launcher.array_size=3")
    limit(slurm, 4)
    try:
        refused = sweep.submit(*settings, code=1)
    finally:
        limit(slurm, -1)
    assert "QOSMaxSubmitJobPerUserLimit" in refused
    assert "3 runs submitted before" in refused
    assert "Traceback" not in refused
    first, second = Submissions(sweep.store).all()
    assert first.job_id is not None
    assert second.job_id is None
    assert len(sweep.queue()) == 3
    assert "QOSMaxSubmitJobPerUserLimit" in sweep.sweep.ask("status", sweep.name)
    sweep.submit(*settings)
    assert [len(one.intent.tasks) for one in Submissions(sweep.store).all() if one.job_id] == [3, 2]
    sweep.finish()
    assert set(sweep.sweep.attempts().values()) == {1}


def limit(slurm: Cluster, jobs: int) -> None:
    """How many jobs of the qos `urgent` a user may have; -1 for any number."""
    slurm.run("sacctmgr", "-i", "modify", "qos", "urgent", "set", f"MaxSubmitJobsPerUser={jobs}")
    # The controller hears of it a moment later.
    asked = ["sbatch", "--test-only", "--qos=urgent", "--array=1-9", "--wrap=true"]
    wait_until(lambda: (subprocess.run(asked, capture_output=True).returncode == 0) == (jobs < 0), "a new limit", 20)


@pytest.mark.slurm(alone=True)
def test_while_the_controller_is_down_nothing_is_submitted_and_afterwards_all_is_once(
    slurm: Cluster, tmp_path: Path
) -> None:
    """Once it is down before the command, and once it goes down in the middle: between the check and the submission."""
    sweep = ToldSweep.of(slurm, tmp_path, runs=3)
    slurm.lose_daemon("slurmctld")
    refused = sweep.submit(code=1)
    assert "Unable to contact slurm controller" in refused
    assert "Traceback" not in refused
    assert Submissions(sweep.store).all() == []
    slurm.up()

    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    real, marker = shutil.which("sbatch"), tmp_path / "down"
    sbatch.write_text(
        f'#!/bin/bash\n[[ "$*" == *--test-only* ]] || until [ -e {marker} ]; do touch {marker}.please; sleep 0.1; '
        "done\n"
        f'exec {real} "$@"\n'
    )
    sbatch.chmod(0o755)
    process = subprocess.Popen(
        sweep.sweep.command(*sweep.settings()),
        cwd=REPO,
        env={**os.environ, "PATH": f"{sbatch.parent}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(marker.with_name("down.please").exists, "it to submit", PATIENCE_S)
    slurm.lose_daemon("slurmctld")
    marker.touch()
    _, refused = process.communicate(timeout=120)
    assert process.returncode == 1, refused
    assert "Unable to contact slurm controller" in refused
    assert "Traceback" not in refused
    status = sweep.sweep.ask("status", sweep.name)
    assert "Unable to contact slurm controller" in status
    slurm.up()
    sweep.submit()
    assert len(sweep.sweep.job_ids()) == 1
    sweep.finish()
    assert set(sweep.sweep.attempts().values()) == {1}
