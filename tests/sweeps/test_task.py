"""A task of a Slurm job, as its batch script calls it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.exits import EXIT_FAILED
from sweeps.stopping import SIGNALS

# What lies in `builtins` is deleted last, after Python has taken its handlers away.
SIGNALLED_AT_THE_END = """
import builtins, os, runpy, sys

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number={number}):
        kill(pid, number)

builtins.late = Late()
sys.argv = ["sweeps.task", {store!r}, "1"]
runpy.run_module("sweeps.task", run_name="__main__")
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_that_comes_when_all_is_done_changes_no_exit_code(tmp_path: Path, number: int) -> None:
    """Slurm calls a job that a signal has killed failed, whatever became of its run."""
    code = SIGNALLED_AT_THE_END.format(number=int(number), store=str(tmp_path / "no store"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: "), done.stderr
    assert done.returncode == EXIT_FAILED
