"""A short soak; `make soak` is the long one."""

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.soak import Soak

RUNS = 40
MINUTES = 8.0
FAULT_MINUTES = 2.0


@pytest.mark.slurm(alone=True)
def test_forty_runs_come_out_whole_under_random_faults(slurm: Cluster, tmp_path: Path) -> None:
    soak = Soak(slurm, tmp_path, runs=RUNS, minutes=MINUTES, seed=1, every_s=4, fault_minutes=FAULT_MINUTES)
    problems = soak.run()
    report = soak.report(problems)
    print(report)
    assert problems == [], report
    assert len(soak.faults) >= 5, report
