"""Few-shot evaluation of runs in a store: asked for, kept, made, compared; with all sockets closed."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main as analyse
from hybrid.answers import unpacked
from hybrid.config import Resolved
from hybrid.eval_config import EvalSettings, read_evals
from hybrid.spec import ConfigError
from sweeps.index import Index
from sweeps.store import Store
from sweeps.wanted import missing, missing_names, want
from sweeps.worker.evaluation import evaluate_one

from .conftest import REPO, TINY
from .test_generate_command import TEXT, finish

pytest.importorskip("lm_eval", reason="the extra `fewshot` is not installed")

TASKS = REPO / "tests" / "data" / "fewshot"
LINES = {"task": str(TASKS / "python_lines.yaml"), "shots": 1, "metric": "acc_bytes"}
ENDINGS = {"task": str(TASKS / "python_endings.yaml"), "shots": 0, "metric": "acc", "benchmark": "endings"}


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def closed(*_: object, **__: object) -> None:
        raise OSError("sockets are closed")

    for name in ("socket", "create_connection", "getaddrinfo", "socketpair"):
        monkeypatch.setattr(socket, name, closed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def text(resolve: Callable[..., Resolved]) -> Callable[[int], Resolved]:
    """A run on text by its seed, in sequences that these questions fit into."""
    settings = [setting for setting in TEXT if not setting.startswith(("seq_len", "batch_tokens", "budget"))]
    long = ("seq_len=512", "batch_tokens=512", "budget.tokens=5120")
    return lambda seed: resolve(*settings, *long, f"init_seed={seed}")


@pytest.fixture
def read(config: dict[str, Any]) -> Callable[..., EvalSettings]:
    return lambda *tasks, **settings: read_evals(
        [{"kind": "fewshot", "tasks": list(tasks), **settings}], config["eval"], stdlib_fingerprint=lambda: "0" * 16
    )


def test_what_is_wanted_is_made_from_the_files_as_they_were(
    store: Store, text: Callable[[int], Resolved], read: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    resolved = text(1)
    run = finish(store, resolved)
    copies = tmp_path / "copies"
    copies.mkdir()
    for file in TASKS.glob("python_lines*"):
        (copies / file.name).write_bytes(file.read_bytes())
    settings = read({**LINES, "task": str(copies / "python_lines.yaml")})
    want(store, resolved.run, settings.of(resolved.run), settings)
    for file in copies.iterdir():
        file.unlink()
    assert missing_names(store, run) == ["fewshot"]
    (record,) = evaluate_one(store, resolved.run, resolved.execution)
    task = record["metrics"]["tasks"]["python_lines"]
    right = unpacked(task["right"]["acc_bytes"], task["n"])
    assert (task["n"], task["shots"], task["metric"]) == (30, 1, "acc_bytes")
    assert record["metrics"]["python_lines_accuracy_percent"] == pytest.approx(100 * sum(right) / 30)
    assert task["accuracy_percent_low"] <= task["accuracy_percent"] <= task["accuracy_percent_high"]
    assert missing(store, resolved.run) == ()
    assert next(iter(Index(store).eval_records(run).values()))["metrics"] == record["metrics"]


def test_a_file_that_was_changed_in_the_store_is_refused(
    store: Store, text: Callable[[int], Resolved], read: Callable[..., EvalSettings]
) -> None:
    resolved = text(1)
    finish(store, resolved)
    settings = read(ENDINGS)
    want(store, resolved.run, settings.of(resolved.run), settings)
    store.text_path(next(iter(settings.texts.values()))).write_text("task: another")
    with pytest.raises(ConfigError, match="has changed: expected the text"):
        evaluate_one(store, resolved.run, resolved.execution)


def test_two_runs_are_compared_by_the_questions_that_both_were_asked(
    store: Store,
    text: Callable[[int], Resolved],
    read: Callable[..., EvalSettings],
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = []
    for seed, tasks in ((1, (LINES, ENDINGS)), (2, (LINES, ENDINGS)), (3, ({**LINES, "shots": 0},))):
        resolved, settings = text(seed), read(*tasks)
        runs.append(finish(store, resolved))
        want(store, resolved.run, settings.of(resolved.run), settings)
        evaluate_one(store, resolved.run, resolved.execution)
    root = ["--store", str(store.root)]
    assert analyse(["compare", runs[0], runs[1], *root]) == 0
    out = capsys.readouterr().out
    for part in (
        "| python_lines ",
        "| python_endings ",
        "| mean of 2 benchmarks ",
        f"1st: {runs[0]} (",
        "what other seeds",
    ):
        assert part in out
    assert analyse(["compare", runs[0], runs[2], *root]) == 2
    assert "no task was asked of both with the same questions" in capsys.readouterr().err
    other = finish(store, text(4))
    assert analyse(["compare", runs[0], other, *root]) == 2
    assert f"run {other}: no few-shot evaluation is recorded" in capsys.readouterr().err
    assert analyse(["compare", runs[0], runs[0], *root]) == 2
    assert "expected two runs" in capsys.readouterr().err


CLOSED = """
import socket

def closed(*arguments, **settings):
    raise OSError("sockets are closed")

class Closed(socket.socket):
    __init__ = closed

socket.socket = Closed
socket.create_connection = socket.getaddrinfo = socket.socketpair = closed
"""


@pytest.mark.slow
def test_the_whole_command_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is trained and asked, in processes that can open no socket, with caches of their own that stay empty."""
    (tmp_path / "sitecustomize.py").write_text(CLOSED)
    monkeypatch.undo()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}", "HF_HOME": str(tmp_path / "hf")}
    small = [setting for setting in TINY if not setting.startswith(("data", "seq_len", "batch_tokens", "budget"))]
    tasks = ", ".join(
        f"{{task: {TASKS / name}.yaml, shots: {shots}, metric: {metric}}}"
        for name, shots, metric in (("python_lines", 2, "acc_bytes"), ("python_words", 0, "exact_match"))
    )
    command = [
        *(sys.executable, "-W", "error", str(REPO / "run.py"), "data=stdlib", "seq_len=512", "batch_tokens=1024"),
        *(
            "budget.tokens=10K",
            *small,
            f"store.root={tmp_path / 'store'}",
            f"evals=[{{kind: fewshot, tasks: [{tasks}]}}]",
        ),
    ]
    for mode in ("run", "eval"):
        done = subprocess.run([*command, f"mode={mode}"], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "python_lines_accuracy_percent" in done.stdout
    assert "python_words_accuracy_percent" in done.stdout
    assert done.stderr == ""
    assert not (tmp_path / "hf").exists() or not [path for path in (tmp_path / "hf").rglob("*") if path.is_file()]
