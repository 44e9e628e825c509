"""Whole sweeps as users give them: python run.py -m, real processes, a real store."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.store import Store, publish, this_process

from .conftest import REPO, TINY, wait_for

AXES = ("optim.lr=1e-3,2e-3", "init_seed=1,2")


def python_m(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def attempts(store: Store) -> dict[str, int]:
    return {run: store.last_attempt(run) for run in store.run_ids()}


def test_a_request_trains_what_is_missing_and_the_second_time_nothing(tmp_path: Path, run_py) -> None:
    store = Store(tmp_path / "store")
    first = run_py("-m", *TINY, *AXES)
    out, err = first.communicate()
    assert first.returncode == 0, err
    assert out == ""
    assert "4 of 4 cells finished" in err
    assert list(attempts(store).values()) == [1, 1, 1, 1]
    again = run_py("-m", *TINY, *AXES)
    _, err = again.communicate()
    assert again.returncode == 0
    assert "4 finished; to be run: 0" in err
    assert list(attempts(store).values()) == [1, 1, 1, 1]
    more = run_py("-m", *TINY, "optim.lr=1e-3,2e-3", "init_seed=1,2,3")
    _, err = more.communicate()
    assert "6 cells asked for: 6 runs" in err
    assert "4 finished; to be run: 2" in err
    assert list(attempts(store).values()) == [1] * 6
    table = python_m("analysis", "tables", "latest", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    status = python_m("sweeps", "status", cwd=tmp_path)
    assert "6/6" in status.stdout


def test_plan_prints_nothing_but_json_and_leaves_no_trace(tmp_path: Path, run_py) -> None:
    process = run_py("-m", "+sweep=table4", "mode=plan", "plan.format=json")
    out, _ = process.communicate()
    assert process.returncode == 0
    cells = json.loads(out)
    assert len(cells) == 6
    wanted = {"name", "run_id", "status", "layout", "non_embedding_params", "train_tokens", "train_flops"}
    for cell in cells:
        assert wanted <= cell.keys()
        assert set(cell["layout"]) <= {"A", "M"}
        assert cell["status"] == "new"
    assert not (tmp_path / "store").exists()
    assert not list(tmp_path.iterdir())


def test_a_plan_never_differs_from_what_is_then_run(tmp_path: Path, run_py) -> None:
    plan = run_py("-m", *TINY, *AXES, "mode=plan", "plan.format=json")
    cells = json.loads(plan.communicate()[0])
    run_py("-m", *TINY, *AXES).communicate()
    store = Store(tmp_path / "store")
    assert sorted(cell["run_id"] for cell in cells) == sorted(store.run_ids())
    for cell in cells:
        record = store.record(cell["run_id"])
        assert record is not None
        assert record["metrics"]["tokens"] == cell["train_tokens"]
        assert record["cost"]["paper_train_flops"] == cell["train_flops"]


def test_one_cell_that_fails_is_named_and_does_not_stop_the_others(run_py) -> None:
    rows = "+sweep.rows={bad:{init_seed:1,exec.device:'cuda:99'},good:{init_seed:2}}"
    process = run_py("-m", *TINY, rows, "sweep.name=mixed")
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert "failed: bad" in err
    assert "cuda:99" in err
    assert "1 of 2 cells finished" in err
    assert "Traceback" not in err


def test_sigkill_to_everything_at_any_moment_then_the_same_command_again(tmp_path: Path, run_py) -> None:
    """Killed over and over at random moments, a sweep ends like one left alone, and repeats nothing recorded."""
    arguments = (
        "-m",
        *TINY,
        "budget.tokens=32000",
        "exec.checkpoint_every_s=0.1",
        "optim.lr=1e-3,2e-3,3e-3",
        "init_seed=1,2",
    )
    quiet = Store(tmp_path / "quiet")
    process = run_py(*arguments, store=quiet.root)
    process.communicate()
    assert process.returncode == 0
    killed = Store(tmp_path / "killed")
    moments = random.Random(7)
    recorded: dict[str, bytes] = {}
    for _ in range(6):
        process = run_py(*arguments, store=killed.root)
        time.sleep(moments.uniform(0.5, 5.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for run, content in recorded.items():
            assert killed.record_path(run).read_bytes() == content
        finished = [run for run in killed.run_ids() if killed.record_path(run).exists()]
        recorded = {run: killed.record_path(run).read_bytes() for run in finished}
    process = run_py(*arguments, store=killed.root)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert set(killed.run_ids()) == set(quiet.run_ids())
    for run in quiet.run_ids():
        a, b = quiet.record(run), killed.record(run)
        assert a is not None
        assert b is not None
        for key in ("train_loss_nats", "val_loss_nats", "steps", "tokens"):
            assert a["metrics"][key] == b["metrics"][key]
        if run in recorded:
            assert killed.record_path(run).read_bytes() == recorded[run]


@pytest.mark.slow
def test_two_sweeps_of_the_same_cells_in_the_same_second_do_no_harm(tmp_path: Path, run_py) -> None:
    both = [run_py("-m", *TINY, *AXES, "budget.tokens=32000") for _ in range(2)]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert "4 of 4 cells finished" in err
    store = Store(tmp_path / "store")
    assert list(attempts(store).values()) == [1, 1, 1, 1]
    assert len(store.requests()) == 1


def test_a_sweep_takes_over_what_died_where_it_cannot_be_seen(tmp_path: Path, run_py, tiny) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    run = store.publish_spec(tiny().run)
    attempt = store.claim(run, 0)
    assert attempt is not None
    publish(attempt.directory / "job.json", json.dumps({**this_process(), "host": "elsewhere", "lease_s": 1}))
    (attempt.directory / "heartbeat").write_text("5\n")
    process = run_py("-m", *TINY, "init_seed=1,2")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "2 of 2 cells finished" in err
    assert store.last_attempt(run) == 2


def test_ctrl_c_saves_everything_and_says_how_to_go_on(tmp_path: Path, run_py) -> None:
    store = Store(tmp_path / "store")
    process = run_py("-m", *TINY, *AXES, "budget.tokens=6400000")
    wait_for(lambda: sum(bool(store.metrics(run)) for run in store.run_ids()) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    begun = [run for run in store.run_ids() if store.last_attempt(run)]
    assert begun
    for run in begun:
        assert store.status(run) == "interrupted"
        assert list(store.checkpoints_dir(run).glob("*.ckpt"))


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.8, 1.5, 2.5])
def test_ctrl_c_while_it_starts_claims_nothing_that_did_not_happen(tmp_path: Path, run_py, after_s: float) -> None:
    store = Store(tmp_path / "store")
    process = run_py("-m", *TINY, *AXES, "budget.tokens=6400000")
    while "cells asked for" not in process.stderr.readline():  # the plan is printed; the fork server starts now
        assert process.poll() is None
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "4 of 4 cells finished" not in err
    assert not [run for run in store.run_ids() if store.status(run) in ("running", "done", "failed")]


def test_runs_whose_parent_is_killed_save_and_stop(tmp_path: Path, run_py) -> None:
    store = Store(tmp_path / "store")
    process = run_py("-m", *TINY, *AXES, "budget.tokens=6400000")
    wait_for(lambda: sum(bool(store.metrics(run)) for run in store.run_ids()) >= 2)
    process.kill()  # the parent alone
    process.wait()
    begun = [run for run in store.run_ids() if store.last_attempt(run)]
    wait_for(lambda: all(store.status(run) == "interrupted" for run in begun))


def test_cells_that_share_a_run_are_all_named_when_it_fails(run_py) -> None:
    same = "init_seed:1,exec.device:'cuda:99'"
    process = run_py("-m", *TINY, f"+sweep.rows={{a:{{{same}}},b:{{{same}}},c:{{init_seed:2}}}}", "sweep.name=twins")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "failed: a" in err
    assert "failed: b" in err
    assert "1 of 3 cells finished" in err


@pytest.mark.slow
def test_latest_is_what_was_last_asked_for(tmp_path: Path, run_py) -> None:
    for seeds in ("1,2", "1,3", "1,2"):
        run_py("-m", *TINY, f"init_seed={seeds}").communicate()
    requests = Store(tmp_path / "store").requests()
    assert len(requests) == 2
    assert "init_seed=1,2" in requests[-1].overrides


def test_a_record_cut_in_half_is_named_and_the_rest_is_run(tmp_path: Path, run_py) -> None:
    store = Store(tmp_path / "store")
    run_py("-m", *TINY, "init_seed=1,2").communicate()
    victim = next(iter(store.run_ids()))
    text = store.record_path(victim).read_text()
    store.record_path(victim).write_text(text[: len(text) // 2])
    process = run_py("-m", *TINY, "init_seed=1,2,3")
    _, err = process.communicate()
    assert process.returncode == 1
    assert str(store.record_path(victim)) in err
    assert "2 of 3 cells finished" in err
    assert "Traceback" not in err
    assert store.record_path(victim).read_text() == text[: len(text) // 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=intr"], "intr"),
        (["model.ratioo=1:1"], "ratioo"),
        (["-m", "+sweep=dmeo"], "dmeo"),
        (["optim.lr=fast"], "optim.lr = 'fast': expected a finite number"),
        (["mode=trian"], "mode = 'trian': expected one of run, plan, preflight"),
        (["-m", "+sweep=demo", "hydra/launcher=basic"], "hydra/launcher = basic: expected local"),
        (["mode=eval"], "expected a finished run to evaluate"),
        (["sweep.seeds=3"], "sweep.seeds = 3: expected -m"),
        (["model.rato=1:1", "modle=inter"], "model.rato = '1:1': unknown setting"),
        (["model=[1,2]"], "error: "),
        (["=3"], "=3: expected key=value"),
        (["-m", "--cfg", "job", "+sweep=demo"], "error: "),
        (["-m", "+sweep=demo", "hydra.launcher.workers=-1"], "hydra.launcher.workers = -1: expected a whole number"),
        (["-m", "+sweep=demo", "hydra/sweeper=basic"], "leave hydra/sweeper=ablation"),
        (["data=dclm", "model.vocab_size=null"], "data.name = mlfoundations/dclm-baseline-1.0: expected the shards of"),
        (["store.checkpoints="], "empty text"),
    ],
)
def test_a_mistake_is_one_message_on_stderr_and_a_code(run_py, arguments: list[str], message: str) -> None:
    process = run_py(*arguments)
    out, err = process.communicate()
    assert process.returncode in (1, 2), err
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_sweeps_commands_read_a_store_that_was_trained_into(tmp_path: Path, run_py) -> None:
    run_py("-m", *TINY, "init_seed=1,2").communicate()
    first, second = Store(tmp_path / "store").run_ids()
    shown = python_m("sweeps", "show", first[:5], cwd=tmp_path)
    assert "status: done" in shown.stdout
    assert "asked for by: unnamed: init_seed=" in shown.stdout
    diff = python_m("sweeps", "diff", first, second, cwd=tmp_path)
    assert "spec.init_seed" in diff.stdout
    assert "spec.data_seed" not in diff.stdout
    logs = python_m("sweeps", "logs", first, cwd=tmp_path)
    assert "ends: done" in logs.stdout
    missing = python_m("sweeps", "status", "dmeo", cwd=tmp_path)
    assert missing.returncode == 2
    assert "never asked for" in missing.stderr
    evaluated = run_py("-m", *TINY, "init_seed=1,2", "mode=eval")
    out, err = evaluated.communicate()
    assert evaluated.returncode == 0, err
    assert out.count("loss_nats") == 2
