"""`python -m sweeps retry` and `cancel`, with processes of this machine; tests/slurm has them on a cluster."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Resolved
from hybrid.decode import encode
from hybrid.spec import ConfigError
from sweeps.__main__ import _read
from sweeps.cancel import plan_cancellation
from sweeps.cells import CellRun
from sweeps.identity import run_id
from sweeps.retry import after_oom, find_failed, halved, read_classes
from sweeps.standing import Standings
from sweeps.status import choose_requests
from sweeps.store import Cell, Request, Store, publish, request_id, this_process
from sweeps.submissions import Answer, Intent, Item, Submissions

from .conftest import REPO, TINY, wait_for

MIXER = REPO / "tests" / "slurm" / "told_mixer.py"
TOLD = (
    *(words for words in TINY if "mamba" not in words and "ratio" not in words),
    "model.mixers=[outside,attention]",
    "model.ratio=1:1",
    "model.outside={name: told, version: 1, settings: {}}",
    f"exec.mixers=[{MIXER}]",
    "exec.log_every_steps=1",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def sweeps(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start `python -m sweeps WORDS` on the test's store; what its runs are told is in the file `told`."""

    def start(command: str, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "sweeps", command, "--store", str(tmp_path / "store"), *words],
            cwd=REPO,
            env={**os.environ, "TOLD": str(tmp_path / "told")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def said(process: "subprocess.Popen[str]", code: int) -> str:
    text = process.communicate(timeout=120)[0]
    assert process.returncode == code, text
    return text


def test_what_ran_out_of_memory_goes_on_with_half_the_microbatch_until_there_is_nothing_to_halve(
    store: Store, tmp_path: Path, sweeps
) -> None:
    (tmp_path / "told").write_text("oom")
    said(sweeps("submit", "--on", "local", *TOLD), 1)
    (run,) = store.run_ids()
    assert "microbatch 2" in said(sweeps("retry", "unnamed", "--class", "oom"), 1)
    assert "nothing to try again" in said(sweeps("retry", "unnamed", "--class", "node_fail,io"), 0)
    assert "microbatch 1" in said(sweeps("retry", "unnamed"), 1)
    text = said(sweeps("retry", "unnamed"), 1)
    assert "left as it is" in text
    assert "activation_checkpointing" in text
    assert store.last_attempt(run) == 3
    assert [(store.job(run, n) or {})["exec"]["microbatch"] for n in (1, 2, 3)] == [None, 2, 1]
    assert {(store.error(run, n) or {})["class"] for n in (1, 2, 3)} == {"oom"}


def test_a_retry_that_succeeds_is_the_same_run(store: Store, tmp_path: Path, sweeps) -> None:
    (tmp_path / "told").write_text("oom")
    said(sweeps("submit", "--on", "local", *TOLD), 1)
    (run,) = store.run_ids()
    (tmp_path / "told").write_text("")
    assert f"{run}: done" in said(sweeps("retry", "unnamed", "--run", run[:4]), 0)
    assert store.status(run) == "done"
    record = store.record(run)
    assert record is not None
    assert record["provenance"]["exec"]["microbatch"] == 2
    assert "nothing to try again" in said(sweeps("retry", "unnamed"), 0)


def test_a_cancelled_run_saves_and_a_retry_goes_on_with_it(store: Store, tmp_path: Path, sweeps) -> None:
    (tmp_path / "told").write_text("slow")
    running = sweeps("submit", "--on", "local", *TOLD)
    wait_for(lambda: any(store.metrics(run) for run in store.run_ids()))
    (run,) = store.run_ids()
    assert "expected --yes" in said(sweeps("cancel", "unnamed"), 2)
    assert "1 process here" in said(sweeps("cancel", "unnamed", "--yes"), 0)
    said(running, 130)
    error = store.error(run, 1)
    assert error is not None
    assert error["class"] == "cancelled"
    assert "nothing is queued or running" in said(sweeps("cancel", "unnamed", "--yes"), 0)
    (tmp_path / "told").write_text("")
    said(sweeps("retry", "unnamed", "--class", "cancelled"), 0)
    start, _ = store.attempts(run).metrics(2)
    assert start is not None
    assert start.step == error["stopped"]["step"]


# --- which --------------------------------------------------------------------------------------


def request_of(store: Store, name: str, *resolved: Resolved) -> Request:
    cells = tuple(
        Cell(name=f"{name} {place}", row="row", axes={}, seed=1, run_id=store.publish_spec(one.run))
        for place, one in enumerate(resolved)
    )
    request = Request(sweep=name, overrides=(), created_at="2026-11-21", report={}, cells=cells)
    store.publish_request(request)
    return request


def attempt(store: Store, resolved: Resolved, error_class: str | None, **job: Any) -> None:
    run = store.publish_spec(resolved.run)
    made = store.claim(run, store.last_attempt(run))
    assert made is not None
    facts = {**this_process(), "lease_s": 1, "slurm": None, "exec": encode(resolved.execution), **job}
    publish(made.directory / "job.json", json.dumps(facts))
    if error_class is not None:
        publish(made.directory / "error.json", json.dumps({"class": error_class, "message": "as it said"}))


def test_what_failed_was_interrupted_or_lost_is_tried_again_and_nothing_else(store: Store, tiny) -> None:
    runs = [tiny(f"init_seed={seed}") for seed in range(1, 6)]
    request = request_of(store, "demo", *runs)
    attempt(store, runs[0], "code")
    attempt(store, runs[1], "preempted")
    attempt(store, runs[2], None, pid_started="0")  # lost
    attempt(store, runs[3], None)  # this process: running; the fifth was never begun
    found = find_failed(store, request, Standings(store, None), None)
    assert [(one.cell.name, one.error_class) for one in found] == [
        ("demo 0", "code"),
        ("demo 1", "preempted"),
        ("demo 2", "unknown"),
    ]
    assert [one.run for one in found] == [run.run for run in runs[:3]]
    only = find_failed(store, request, Standings(store, None), request.cells[1].run_id)
    assert [one.cell.name for one in only] == ["demo 1"]


def test_a_microbatch_that_did_not_fit_is_not_forgotten_after_another_end(store: Store, tiny) -> None:
    small, whole = tiny("exec.microbatch=2"), tiny()
    request = request_of(store, "demo", whole)
    attempt(store, whole, "oom")
    attempt(store, small, "preempted")
    (found,) = find_failed(store, request, Standings(store, None), None)
    assert found.error_class == "preempted"
    assert found.oom_microbatch == 4
    assert halved(found.oom_microbatch, found.execution.microbatch) == 2
    attempt(store, small, "oom")
    attempt(store, whole, "oom")  # somebody asked for it as the first time
    (found,) = find_failed(store, request, Standings(store, None), None)
    assert found.oom_microbatch == 2


def test_a_run_whose_job_never_began_it_is_tried_again_and_one_that_was_never_submitted_is_not(
    store: Store, tiny
) -> None:
    runs = [tiny(f"init_seed={seed}") for seed in (1, 2)]
    request = request_of(store, "demo", *runs)
    item = Item(kind="run", run_id=run_id(runs[0].run), name="demo 0", row="row", seed=1)
    intent = Intent(
        job_name="demo-1",
        created_at="",
        owner=this_process(),
        sweep="demo",
        overrides=(),
        tasks=((item,),),
        execution=encode(runs[0].execution),
        resources={},
        snapshot=None,
        checkpoints="",
        data="",
    )
    Submissions(store).publish(1, intent)
    Submissions(store).publish_answer(1, Answer(job_id=None, message="it was refused"))
    (found,) = find_failed(store, request, Standings(store, None), None)
    assert (found.cell.name, found.submission, found.execution) == ("demo 0", 1, runs[0].execution)


def test_submitting_again_halves_a_microbatch_that_did_not_fit_too(
    store: Store, tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tiny("init_seed=1"), tiny("init_seed=2"), tiny("init_seed=3", "exec.microbatch=1")]
    attempt(store, runs[0], "oom")
    attempt(store, runs[1], "code")
    attempt(store, runs[2], "oom")
    cells = [
        CellRun(cell=cell, resolved=run, arguments=())
        for cell, run in zip(request_of(store, "demo", *runs).cells, runs, strict=True)
    ]
    assert [one.resolved.execution.microbatch for one in after_oom(cells, store)] == [2, None, 1]
    lines = capsys.readouterr().err
    assert "demo 0" in lines
    assert "ran out of memory with microbatch 4: tried with microbatch 2" in lines
    assert "demo 1" not in lines
    assert "nothing is left to halve" in lines


@pytest.mark.parametrize(
    ("failed", "given", "expected"),
    [(8, None, 4), (8, 8, 4), (5, None, 2), (8, 2, 2), (1, None, None), (1, 1, None)],
)
def test_half_of_what_did_not_fit_or_what_is_smaller_already(
    failed: int, given: int | None, expected: int | None
) -> None:
    assert halved(failed, given) == expected


def test_a_class_that_is_none_is_refused_with_those_that_are() -> None:
    assert read_classes(" oom,io") == {"oom", "io"}
    with pytest.raises(ConfigError, match=r"--class node_fial.*did you mean node_fail"):
        read_classes("oom,node_fial")


def test_settings_that_would_make_other_runs_are_refused(store: Store, tiny, sweeps) -> None:
    request_of(store, "demo", tiny())
    text = said(sweeps("retry", "demo", "optim.lr=1", "hydra.verbose=true"), 2)
    assert "optim.lr=1: expected one of exec." in text
    assert "hydra.verbose=true" in text


def test_a_run_that_another_request_needs_is_spared_unless_all_is_to_go(store: Store, tiny) -> None:
    shared, own = tiny("init_seed=1"), tiny("init_seed=2")
    request = request_of(store, "demo", shared, own)
    request_of(store, "other", shared)
    for run in (shared, own):
        attempt(store, run, None)
    plan = plan_cancellation(store, request, None)
    assert plan.processes == {os.getpid(): "demo 1"}
    assert len(plan.spared) == 1
    assert "request other needs it, too" in plan.spared[0]
    everything = plan_cancellation(store, request, None, everything=True)
    assert set(everything.processes) == {os.getpid()}
    assert not everything.spared


def test_an_older_request_of_a_name_is_cancelled_by_its_hash_and_spares_what_the_newest_needs(
    store: Store, tiny
) -> None:
    shared, own = tiny("init_seed=1"), tiny("init_seed=2")
    older = request_of(store, "demo", shared, own)
    newest = request_of(store, "demo", shared)
    os.utime(store.requests_dir("demo") / f"{request_id(newest).partition('/')[2]}.json", (4e9, 4e9))
    assert choose_requests(store, "demo")[-1] == newest
    assert choose_requests(store, request_id(older)[:9]) == [older]
    for run in (shared, own):
        attempt(store, run, None)
    plan = plan_cancellation(store, older, None)
    assert plan.processes == {os.getpid(): "demo 1"}
    assert f"{request_id(newest)} needs it, too" in plan.spared[0]
    with pytest.raises(ConfigError, match="no such request"):
        choose_requests(store, "demo/0000000000000")
    with pytest.raises(ConfigError, match="SWEEP/HASH"):
        choose_requests(store, "demo/x")


def test_cancelling_without_a_scheduler_names_what_it_cannot_reach(store: Store, tiny, sweeps, monkeypatch) -> None:
    request = request_of(store, "demo", tiny())
    run_id = request.cells[0].run_id
    assert run_id is not None
    item = Item(kind="run", run_id=run_id, name="demo 0", row="row", seed=1)
    intent = Intent(
        job_name="demo-1",
        created_at="2026-11-21",
        owner={**this_process(), "user": "me"},
        sweep="demo",
        overrides=(),
        tasks=((item,),),
        execution={},
        resources={},
        snapshot=None,
        checkpoints="",
        data="",
    )
    submissions = Submissions(store)
    assert submissions.publish(1, intent)
    submissions.publish_answer(1, Answer(job_id="4711"))
    monkeypatch.setenv("PATH", "/nonexistent")
    text = said(sweeps("cancel", "demo", "--yes"), 1)
    assert "demo 0" in text
    assert "queued, and there is no Slurm on the PATH here to ask" in text


def test_settings_of_a_retry_may_stand_before_and_after_its_flags() -> None:
    options = _read(["retry", "demo", "exec.threads=1", "--on", "local", "exec.microbatch=1"])
    assert options.overrides == ["exec.threads=1", "exec.microbatch=1"]


def test_status_of_every_request_has_no_json_and_says_so(store: Store, tiny, sweeps) -> None:
    request_of(store, "demo", tiny())
    assert "--json: expected a request's name" in said(sweeps("status", "--json"), 2)
