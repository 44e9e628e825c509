"""What `sweeps gc` asks the scheduler."""

import os
import time
from pathlib import Path

import pytest

from sweeps.gc import GcSettings, propose
from sweeps.scheduler import Slurm
from sweeps.store import Store
from sweeps.submissions import Answer, Intent, Item, Submissions
from tests.slurm.cluster import Cluster, wait_until

pytestmark = pytest.mark.slurm
WAITS = """#!/bin/bash
#SBATCH --array=0-0
while [ ! -e stop ]; do sleep 0.2; done
"""


def test_a_snapshot_goes_once_the_scheduler_says_that_its_job_is_over_though_its_run_failed(
    slurm: Cluster, tmp_path: Path
) -> None:
    assert slurm.running()
    scheduler = Slurm.find()
    assert scheduler is not None
    store = Store(tmp_path / "store")
    store.prepare()
    snapshot = store.root / "snapshots" / ("ab" * 8)
    snapshot.mkdir(parents=True)
    os.utime(snapshot, (time.time() - 7200,) * 2)
    script = tmp_path / "job.sh"
    script.write_text(WAITS)
    intent = Intent(
        job_name="demo-1",
        created_at="2026-01-01T00:00:00+00:00",
        owner={},
        sweep="demo",
        overrides=(),
        tasks=((Item(kind="run", run_id="0123456789ab", name="a", row="a", seed=1),),),
        execution={},
        resources={},
        snapshot=snapshot.name,
        checkpoints=str(store.checkpoints_root),
        data=str(store.data_root),
    )
    submissions = Submissions(store)
    assert submissions.publish(1, intent)
    job_id = scheduler.submit(script)
    submissions.publish_answer(1, Answer(job_id=job_id))

    def goes(known: Slurm | None) -> bool:
        return snapshot in {removal.found.path for removal in propose(store, GcSettings(), slurm=known).all()}

    wait_until(lambda: scheduler.jobs([job_id])[f"{job_id}_0"].state == "RUNNING", "the job to run", 120)
    assert not goes(scheduler)
    (tmp_path / "stop").touch()
    wait_until(lambda: not scheduler.jobs([job_id])[f"{job_id}_0"].is_active, "the job to end", 120)
    assert goes(scheduler)
    assert not goes(None), "without a scheduler it is told by its run, which has no record"
