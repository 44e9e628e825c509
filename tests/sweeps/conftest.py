"""A run small enough to be trained in a test, and the commands that users give."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Resolved

REPO = Path(__file__).resolve().parent.parent.parent

TINY = (
    "data=recall",
    "data.n_symbols=16",
    "data.n_pairs=2",
    "model.ratio=1:1",
    "model.depth=2",
    "model.d_model=16",
    "model.attention.n_heads=2",
    "model.attention.head_dim=8",
    "model.mamba.d_ssm=32",
    "model.mamba.head_dim=8",
    "model.mamba.d_state=4",
    "model.ffn=null",
    "seq_len=16",
    "batch_tokens=64",
    "budget.tokens=6400",
    "exec.heartbeat_s=0.1",
    "exec.lease_s=1",
)


@pytest.fixture
def tiny(resolve: Callable[..., Resolved]) -> Callable[..., Resolved]:
    """A run of 100 steps of a few milliseconds, with whatever else is asked."""
    return lambda *overrides: resolve(*TINY, *overrides)


@pytest.fixture
def run_py(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start `python run.py ARGUMENTS` with a store of the test's own, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, store: Path | None = None) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, str(REPO / "run.py"), *arguments, f"store.root={store or tmp_path / 'store'}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Wait until something has happened; the timeout only ends a test that would hang."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
