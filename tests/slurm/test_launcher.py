"""The contract of launchers, tests/contract/launchers.py, on a real cluster."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sweeps.launch.slurm import SlurmJobs
from sweeps.store import Store
from tests.contract.launchers import CONTRACT, Launched

REPO = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("fact", CONTRACT, ids=lambda fact: fact.__name__)
def test_the_slurm_launcher_keeps_the_contract_of_launchers(fact: Callable[[Launched], None], tmp_path: Path) -> None:
    settings = yaml.safe_load((REPO / "conf" / "hydra" / "launcher" / "slurm.yaml").read_text())
    del settings["_target_"]
    fact(Launched(new=lambda: SlurmJobs(settings), store=Store(tmp_path / "store")))
