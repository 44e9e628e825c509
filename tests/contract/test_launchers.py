"""The contract of launchers over those that need no cluster; tests/slurm/test_launcher.py has the other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.launch import Launcher
from sweeps.launch.inline import Inline
from sweeps.launch.local import LocalProcesses
from sweeps.store import Store
from tests.contract.launchers import CONTRACT, Launched


@pytest.mark.parametrize("new", [Inline, lambda: LocalProcesses(2)], ids=["inline", "local"])
@pytest.mark.parametrize("fact", CONTRACT, ids=lambda fact: fact.__name__)
def test_launchers_keep_their_contract(
    fact: Callable[[Launched], None], new: Callable[[], Launcher], tmp_path: Path
) -> None:
    fact(Launched(new=new, store=Store(tmp_path / "store")))
