"""A run small enough to be trained in a test, and the commands that users give."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybrid.data
from hybrid.config import Resolved
from hybrid.data.shards import Shards
from hybrid.data.stdlib import StdlibData
from hybrid.decode import encode
from hybrid.eval_config import EvalSettings, read_evals
from sweeps.cells import CellRun, Expansion
from sweeps.plan import Plan, make_plan
from sweeps.plan_settings import PlanSettings, read_plan_settings
from sweeps.store import RECORD_SCHEMA, Store

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


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan with what it was made of."""

    plan: Plan
    settings: PlanSettings
    expansion: Expansion


class Planner:
    """Plans command lines against one store, which is empty until something is put there."""

    def __init__(self, store: Store, expand_request: Callable[..., Expansion]) -> None:
        self.store = store
        self._expand_request = expand_request

    def __call__(self, *arguments: str) -> Planned:
        expansion = self._expand_request(*arguments)
        settings = read_plan_settings(expansion.config["plan"])
        return Planned(plan=make_plan(expansion.runs, self.store, settings), settings=settings, expansion=expansion)


@pytest.fixture
def plan_of(tmp_path: Path, expand_request: Callable[..., Expansion]) -> Planner:
    """The plan of a command line against the store `plan_of.store`."""
    return Planner(Store(tmp_path / "store"), expand_request)


@pytest.fixture
def finish(plan_of: Planner) -> Callable[..., None]:
    """Record a run as finished, with these metrics, without training it."""

    def record(run: CellRun, status: str = "done", **metrics: float) -> None:
        store, spec = plan_of.store, run.resolved.run
        store.prepare()
        run_id = store.publish_spec(spec)
        content = {
            "schema": RECORD_SCHEMA,
            "run_id": run_id,
            "status": status,
            "spec": encode(spec),
            "cost": {},
            "metrics": {"steps": spec.train_steps, "tokens": spec.train_tokens, "wall_s": 1.0, **metrics},
            "provenance": {},
        }
        assert store.publish_record(run_id, content)

    return record


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store, beside a corpus of ten documents, of 30 to 120 bytes."""
    random = np.random.default_rng(0)
    documents = [[256, *random.integers(97, 123, size=20 + 10 * i), 257] for i in range(1, 11)]
    tokens = np.concatenate(documents).astype(np.uint16)
    shards = Shards(directory=tmp_path, training=tokens, validation=tokens)
    monkeypatch.setattr(hybrid.data, "open_data", lambda _, seq_len, __: StdlibData(shards, seq_len))
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def read(config: dict[str, Any]) -> Callable[..., EvalSettings]:
    """Settings of evaluations, by kind or as `evals` has them, as they are configured."""
    return lambda *evals: read_evals(list(evals), config["eval"], stdlib_fingerprint=lambda: "0" * 16)
