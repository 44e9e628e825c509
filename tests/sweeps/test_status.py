"""The tables of `sweeps status`, and watching them; what is said of one run is in test_standing.py."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sweeps import status
from sweeps.standing import Standings
from sweeps.status import (
    CellState,
    RequestState,
    cells_text,
    look,
    requests_text,
    show_text,
    state_json,
    state_text,
    view,
)
from sweeps.store import Cell, Request, Store, publish, this_process
from sweeps.watch import watch

NAMES = ("a", "b", "c", "d")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was seen before, and there is no Slurm."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def run_of(name: str) -> str:
    return name * 12


def request(*names: str) -> Request:
    cells = tuple(Cell(name=name, row=name[0], axes={}, seed=1, run_id=run_of(name[0])) for name in names or NAMES)
    return Request(sweep="s", overrides=(), created_at="2026-01-01T00:00", report={}, cells=cells)


def attempt(
    store: Store, name: str, *lines: Mapping[str, Any], owner: Mapping[str, Any] | None = None, **files: Any
) -> Path:
    """An attempt with these metric lines, by this process unless told otherwise."""
    run_id = run_of(name)
    claimed = store.claim(run_id, store.last_attempt(run_id))
    assert claimed is not None
    job = {**this_process(), "lease_s": 60.0, "user": "ada", "started_at": "2026-01-01T00:00:00+00:00", **(owner or {})}
    publish(claimed.directory / "job.json", json.dumps(job))
    (claimed.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file, content in files.items():
        publish(claimed.directory / f"{file}.json", json.dumps(content))
    return claimed.directory


def metric(step: int, loss: float, wall_s: float | None = None) -> dict[str, Any]:
    wall_s = step / 10 if wall_s is None else wall_s
    line = {"step": step, "tokens": step * 64, "train_loss_nats": loss, "tokens_per_s": 640.0, "wall_s": wall_s}
    return {**line, "grad_norm": 1.0, "lr": 1e-3}


def describe(store: Store, name: str, steps: int) -> None:
    store.run_dir(run_of(name)).mkdir(parents=True, exist_ok=True)
    publish(store.spec_path(run_of(name)), json.dumps({"train_tokens": steps * 64, "batch_tokens": 64}))


def finish(store: Store, name: str, **provenance: Any) -> None:
    store.run_dir(run_of(name)).mkdir(parents=True, exist_ok=True)
    metrics = {"steps": 100, "tokens": 6400, "train_loss_nats": 1.25, "wall_s": 7.0}
    record = {"schema": 1, "run_id": run_of(name), "status": "done", "metrics": metrics, "provenance": provenance}
    store.publish_record(run_of(name), {**record, "attempt": store.last_attempt(run_of(name))})


def cells(store: Store, *names: str) -> dict[str, CellState]:
    return {cell.name: cell for cell in look(store, request(*names)).cells}


def test_a_running_cell_says_where_it_is_and_what_the_rest_will_take(store: Store) -> None:
    describe(store, "a", 1000)
    attempt(store, "a", metric(10, 3.0), metric(200, 2.5), owner={"host": this_process()["host"]})
    cell = cells(store)["a"]
    assert (cell.status, cell.attempt, cell.step, cell.steps, cell.loss_nats) == ("running", 1, 200, 1000, 2.5)
    assert (cell.tokens_per_s, cell.left_s, cell.owner) == (640.0, 80.0, "ada")
    text = cells_text(store, request())
    assert "s: 4 cells: 1 running, 3 new" in text
    assert re.search(r"a +a{12} +running +1 +200/1000 +2.5000 +640 +1 min 20 s +\S+ +ada", text)


def test_a_resumed_attempt_without_a_line_yet_shows_where_the_last_one_was_left(store: Store) -> None:
    error = {"class": "preempted", "message": "m"}
    attempt(store, "a", metric(10, 3.0), metric(20, 2.9), metric(30, 2.8), error=error)
    attempt(store, "a", {"resumed_at_step": 20, "of_attempt": 1})
    cell = cells(store)["a"]
    assert (cell.attempt, cell.step, cell.loss_nats) == (2, 20, 2.9)


def test_hours_are_those_of_all_attempts_with_what_they_lost_and_all_devices(store: Store) -> None:
    ranks = {"exec": {"device": "cuda", "nodes": 2, "gpus_per_node": 4}}
    error = {"class": "oom", "message": "m", "at": "2026-01-01T00:30:00+00:00"}
    attempt(store, "a", metric(10, 3.0), owner=ranks, error=error)  # half an hour, by what it said
    attempt(store, "a", {"resumed_at_step": 10, "of_attempt": 1}, metric(20, 3.0, 1.0), metric(36010, 2.0, 3600.0))
    assert cells(store)["a"].hours == pytest.approx((8 * 1800 + 3599 + 1) / 3600)  # each says on what
    finish(
        store,
        "a",
        exec=ranks["exec"],
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T01:00:00+00:00",
        preflight_tokens_per_s=6400 / 3600,
    )
    cell = cells(store)["a"]
    assert cell.hours == pytest.approx(8 * 1.5)
    assert cell.predicted_hours == pytest.approx(1.0)
    assert "GPU-h" in cells_text(store, request())


def test_columns_without_anything_are_left_out(store: Store) -> None:
    assert cells_text(store, request()).splitlines()[2].split() == ["cell", "run", "state"]
    finish(store, "a")
    assert cells_text(store, request()).splitlines()[2].split() == ["cell", "run", "state", "step", "loss", "CPU-h"]


def test_the_bad_ones_say_why_those_with_one_reason_together(store: Store) -> None:
    for name in ("a", "b"):
        attempt(store, name, error={"class": "oom", "message": "CUDA out of memory\nmore"})
    attempt(store, "c", error={"class": "io", "message": "the disk is full"})
    attempt(store, "d", owner={"pid_started": "1"})
    lines = cells_text(store, request()).splitlines()
    assert "2 cells: oom: CUDA out of memory (a, b)" in lines
    assert "c: io: the disk is full" in lines
    assert any(line.startswith("d: unknown: it died without a word") for line in lines)
    assert lines[0] == "s: 4 cells: 3 failed, 1 lost"


def one(**facts: Any) -> str:
    """The text of a request with cells of these facts, a list for each."""
    n = len(next(iter(facts.values())))
    found = tuple(
        CellState(name=f"c{i}", row="r", run_id=f"{i:012d}", **{key: values[i] for key, values in facts.items()})
        for i in range(n)
    )
    return state_text(RequestState(sweep="s", cells=found, sentences=(), problems=()))


def test_reasons_that_differ_in_their_jobs_alone_are_one_and_alone_they_name_it() -> None:
    notes = [f"job 7_{i}: FAILED (exit code 1) before it began it" for i in range(2)]
    assert "2 cells: its job: FAILED (exit code 1) before it began it (c0, c1)" in one(
        status=["failed"] * 2, note=notes
    )
    assert f"c0: {notes[0]}" in one(status=["failed"], note=notes[:1])


def test_of_pending_jobs_only_unusual_reasons_are_told() -> None:
    text = one(status=["queued"] * 2, note=["pending: Priority", "pending: JobHeldUser"])
    assert "Priority" not in text
    assert "c1: pending: JobHeldUser" in text


def test_evaluations_are_counted_shown_and_explained_and_keep_the_watching_going() -> None:
    def cell(i: int, evaluation: Any, note: str = "") -> CellState:
        facts = {"row": "r", "run_id": f"{i:012d}", "evaluation": evaluation, "evaluation_note": note}
        return CellState(name=f"c{i}", status="done", **facts)

    found = RequestState(sweep="s", cells=(cell(0, "queued"), cell(1, "done")), sentences=(), problems=())
    assert state_text(found).startswith("s: 2 cells: 2 done; evaluations: 1 done, 1 queued")
    assert "evaluation" in state_text(found).splitlines()[2]
    assert found.is_active
    failed = RequestState(sweep="s", cells=(cell(0, "failed", "job 7_0: FAILED"),), sentences=(), problems=())
    assert "c0: its evaluation came to nothing: job 7_0: FAILED" in state_text(failed)
    assert not failed.is_active
    assert "evaluation" not in state_text(state("done"))


@pytest.mark.parametrize(
    ("left_s", "limit_s", "text"),
    [
        (90.0, None, "1 min 30 s"),
        (90.0, 3600.0, "1 min 30 s"),
        (90.0, 40.0, "1 min 30 s (limit 40 s)"),
        (None, 40.0, "limit 40 s"),
    ],
)
def test_the_limit_of_a_job_is_told_where_it_is_nearer(left_s: float | None, limit_s: float | None, text: str) -> None:
    lines = one(status=["running"], left_s=[left_s], limit_s=[limit_s]).splitlines()
    assert lines[-1].endswith(f"running  {text}")


def test_a_table_of_long_names_is_cut_to_160_columns_and_names_keep_both_ends(store: Store) -> None:
    describe(store, "a", 10**9)
    attempt(store, "a", metric(10**6, 3.0), owner={"slurm": {"node": "gpu-node-0123456789"}, "host": "h" * 20})
    name = "a" + "x" * 200 + "/seed=17"
    text = cells_text(store, request(name))
    assert max(map(len, text.splitlines())) <= 160
    assert re.search(r"^axxxxx+\.\.\.x+/seed=17 ", text, re.MULTILINE)


def test_json_says_all_of_it_in_full_precision(store: Store) -> None:
    describe(store, "a", 1000)
    attempt(store, "a", metric(10, 1 / 3))
    said = json.loads(state_json(look(store, request())))
    assert said["counts"] == {"running": 1, "new": 3}
    assert said["cells"][0]["loss_nats"] == 1 / 3
    assert said["cells"][1]["status"] == "new"


def test_requests_are_told_with_how_many_wait_and_run(store: Store) -> None:
    attempt(store, "a")
    finish(store, "b")
    rows = [re.split(r" {2,}", row.strip()) for row in requests_text(store, [request()]).splitlines()]
    assert rows[0] == ["request", "overrides", "first asked", "finished", "queued", "running", "not done"]
    assert rows[2] == ["s", "-", "2026-01-01T00:00", "1/4", "-", "1", "2 new"]


def test_a_run_is_looked_at_once_however_many_cells_and_requests_have_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    record = Store.record

    def noted(self: Store, run_id: str) -> dict[str, Any] | None:
        reads.append(run_id)
        return record(self, run_id)

    monkeypatch.setattr(Store, "record", noted)
    standings = Standings(store, None)
    requests_text(store, [request(), request("a", "a2")], standings)
    look(store, request("a", "a2", "b"), standings)
    assert len(reads) == len(set(reads)) == 4


def test_the_job_of_an_attempt_is_named_where_it_is_shown(store: Store) -> None:
    slurm = {"job_id": "9", "array_job_id": "7", "array_task_id": 2, "node": "n1"}
    attempt(store, "a", owner={"slurm": slurm})
    assert "attempt 1: job 7_2 on n1" in show_text(store, run_of("a"))


# --- the ends of a metrics file -----------------------------------------------------------------


@pytest.mark.parametrize("n_lines", [0, 1, 2, 30, 500])
@pytest.mark.parametrize("torn", ["", '{"step": 99'])
@pytest.mark.parametrize("without_loss", [0, 1, 100])
def test_the_ends_of_an_attempt_are_those_of_all_its_lines(
    n_lines: int, torn: str, without_loss: int, store: Store
) -> None:
    lines = [metric(step, 1.0) for step in range(11, 11 + n_lines)]
    rest = [{"step": 10**6, "tokens": 1, "val_loss_nats": 2.0}] * without_loss
    directory = attempt(store, "a", {"resumed_at_step": 10, "of_attempt": 1}, *lines, *rest)
    with open(directory / "metrics.jsonl", "a") as file:
        file.write(torn)
    attempts = store.attempts(run_of("a"))
    start, all_lines = attempts.metrics(1)
    with_loss = [line for line in all_lines if "train_loss_nats" in line]
    assert attempts.ends(1) == (start, *((with_loss[0], with_loss[-1]) if with_loss else (None, None)))
    assert attempts.ends(2) == (None, None, None)


# --- watching -----------------------------------------------------------------------------------


def state(*statuses: Any) -> RequestState:
    found = tuple(
        CellState(name=f"c{i}", row="r", run_id=f"{i:012d}", status=s, step=7) for i, s in enumerate(statuses)
    )
    return RequestState(sweep="s", cells=found, sentences=(), problems=())


def test_watching_without_a_terminal_prints_a_block_each_time_a_status_changes_and_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = iter([state("queued", "new"), state("queued", "new"), state("running", "new"), state("done", "new")])
    watch(lambda: view(next(seen)), 0.001)
    assert re.findall(r"^s: 2 cells: .*$", capsys.readouterr().out, re.MULTILINE) == [
        "s: 2 cells: 1 queued, 1 new",
        "s: 2 cells: 1 running, 1 new",
        "s: 2 cells: 1 new, 1 done",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_watching_on_a_terminal_redraws_within_it_and_leaves_the_whole_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("LINES", "20")
    monkeypatch.setenv("COLUMNS", "80")
    many = ["done"] * 90
    seen = iter([state(*many, "running"), state(*many, "running"), state(*many, "done")])
    watch(lambda: view(next(seen)), 0.001)
    first, second, last = terminal.getvalue().split("\x1b[H")[1:]
    assert "c90 " in first  # what runs comes first
    assert "more" in first
    assert first.count("\n") == second.count("\n") < 20
    assert last.count("done") > 90
    assert terminal.getvalue().count("\x1b[2J") == 1


def test_ctrl_c_ends_the_watching_with_success(store: Store, repo: Path) -> None:
    store.publish_request(request())
    attempt(store, "a")
    command = [sys.executable, "-m", "sweeps", "status", "s", "--watch", "0.1", "--store", str(store.root)]
    process = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "running" not in process.stdout.readline():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--watch"], "expected a request's name"),
        (["s", "--watch", "0"], "expected seconds above 0"),
        (["s", "--watch", "nan"], "expected seconds above 0"),
        (["s", "--watch", "--json"], "expected one of them"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    arguments: list[str], message: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps.__main__ import main

    store.publish_request(request())
    assert main(["status", *arguments, "--store", str(store.root)]) == 2
    assert message in capsys.readouterr().err


def test_reasons_are_many_only_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_REASONS", 2)
    found = tuple(
        CellState(name=f"c{i}", row="r", run_id=str(i), status="failed", error_class="code", message=f"m{i}")
        for i in range(5)
    )
    text = state_text(RequestState(sweep="s", cells=found, sentences=(), problems=()))
    assert text.endswith("c0: code: m0\nc1: code: m1\n... and 3 other reasons")
