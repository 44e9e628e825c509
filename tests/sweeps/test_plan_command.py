"""`python -m sweeps plan` and `preflight`: the same as run.py's modes, with flags."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sweeps.__main__ import main
from sweeps.commands import run_request
from sweeps.launch.inline import Inline

from .conftest import REPO, TINY

KEYS = {
    "name",
    "run_id",
    "status",
    "layout",
    "non_embedding_params",
    "total_params",
    "active_params",
    "train_tokens",
    "train_flops",
    "full_train_flops",
    "train_flops_per_sample",
    "cache_bytes",
    "peak_memory_bytes",
    "gpu_hours",
}


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


Sweeps = Callable[..., Done]


@pytest.fixture
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sweeps:
    """`python -m sweeps ARGUMENTS` in an empty directory, where `./store` would be the store; in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYBRID_STORE", raising=False)

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 1
        found = capsys.readouterr()
        return Done(returncode=code, stdout=found.out, stderr=found.err)

    return run


def python_m_sweeps(*arguments: str, cwd: Path) -> Done:
    """The same as a process of its own."""
    command = [sys.executable, "-m", "sweeps", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return Done(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def test_plan_is_what_run_py_prints_in_that_mode(sweeps: Sweeps, run_py: Any, tmp_path: Path) -> None:
    arguments = ("+sweep=table2", "sweep.seeds=2", "plan.price=2.5", "plan.max_runs=3", "plan.yes=true")
    process = run_py("-m", *arguments, "mode=plan")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert sweeps("plan", *arguments) == Done(returncode=0, stdout=out, stderr="")
    assert python_m_sweeps("plan", *arguments, cwd=tmp_path) == Done(returncode=0, stdout=out, stderr="")
    assert not list(tmp_path.iterdir())


def test_flags_are_settings(sweeps: Sweeps, tmp_path: Path) -> None:
    for flag, setting in (("--json", "plan.format=json"), ("--yes", "plan.yes=true")):
        arguments = ("+sweep=table4", "plan.max_runs=3")
        assert sweeps("plan", *arguments, flag).stdout == sweeps("plan", *arguments, setting).stdout != ""
    assert not list(tmp_path.iterdir())


def test_json_is_a_list_of_cells_with_the_promised_keys(sweeps: Sweeps) -> None:
    cells = json.loads(sweeps("plan", "+sweep=table2", "--json").stdout)
    assert len(cells) == 9
    for cell in cells:
        assert cell.keys() >= KEYS
        assert isinstance(cell["gpu_hours"], float)
        assert all(isinstance(cell[key], int) for key in KEYS if key.endswith(("bytes", "flops", "tokens", "params")))


def test_flags_may_stand_anywhere(sweeps: Sweeps, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    expected = sweeps("plan", "+sweep=demo", "sweep.seeds=1", "--json").stdout
    assert sweeps("plan", "--json", "+sweep=demo", "--store", "other", "sweep.seeds=1").stdout == expected
    assert sweeps("plan", "+sweep=demo", "--json", "sweep.seeds=1").stdout == expected


def test_the_launchers_settings_change_no_plan_and_are_checked(sweeps: Sweeps) -> None:
    expected = sweeps("plan", "+sweep=demo").stdout
    assert sweeps("plan", "+sweep=demo", "hydra.launcher.workers=2", "hydra/launcher=local").stdout == expected
    wrong = sweeps("plan", "+sweep=demo", "hydra.launcher.worker=2")
    assert wrong.returncode == 2
    assert "hydra.launcher.worker" in wrong.stderr
    meant = sweeps("plan", "+sweep=demo", "hydra/launcher=slurm", "hydra.launcher.throttle=0")
    assert (meant.returncode, meant.stdout) == (0, expected)
    assert "warning: hydra.launcher.throttle = 0: expected" in meant.stderr


def test_plan_reads_the_store_that_it_is_given(sweeps: Sweeps, plan_of: Any, finish: Any, tmp_path: Path) -> None:
    for cell in plan_of(*TINY, "budget.tokens=640").plan.cells:
        finish(cell.run)
    for arguments in (("--store", "store"), ("store.root=store",), ()):
        (cell,) = json.loads(sweeps("plan", *TINY, "budget.tokens=640", "--json", *arguments).stdout)
        assert cell["status"] == "done"
        assert cell["own_steps"] == 0
    (tmp_path / "other").mkdir()
    (cell,) = json.loads(sweeps("plan", *TINY, "budget.tokens=640", "--json", "--store", "other").stdout)
    assert cell["status"] == "new"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+sweep=tabel2"], "sweep=tabel2: no such choice; did you mean table2?"),
        (["+sweep=table2", "mode=run"], "mode=run: python -m sweeps plan says it already"),
        (["+sweep=table2", "--json", "plan.format=text"], "plan.format=text: --json says it already"),
        (["+sweep=table2", "--store", ".", "store.root=x"], "store.root=x: --store says it already"),
        (["+sweep=table2", "plan.separate=[Lama,Mamba]"], "plan.separate: Lama: no such row; did you mean Llama?"),
        (["+sweep=table2", "plan.separate=[Lama,Mamba]", "--json"], "plan.separate: Lama: no such row"),
        (["+sweep=table2", "plan.max_disk=80B", "plan.mfu=2"], "plan.mfu = 2: expected a fraction"),
        (["model.ratioo=1:1"], "did you mean ratio"),
        (["-m", "+sweep=table2"], "unrecognized arguments: -m"),
    ],
)
def test_a_mistake_is_one_clear_message_and_exit_code_2(
    sweeps: Sweeps, arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = sweeps("plan", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_not_there_is_an_empty_one_to_a_plan_and_a_mistake_to_status(
    sweeps: Sweeps, tmp_path: Path
) -> None:
    assert sweeps("plan", *TINY, "--store", "nowhere") == sweeps("plan", *TINY)
    done = sweeps("status", "--store", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--store nowhere: there is no such directory" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_tuned_cell_whose_chosen_run_is_damaged_is_not_finished(
    plan_of: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYBRID_STORE", raising=False)
    short = (*TINY, "budget.tokens=640", "+sweep.rows={a:{}}", "sweep.tune={optim.lr:[1e-3,2e-3]}")
    (untuned,) = (run for run in plan_of(*short).expansion.runs if run.is_untuned)
    store = plan_of.store
    store.prepare()
    for candidate in untuned.candidates:
        store.publish_spec(candidate.resolved.run)
        store.spec_path(candidate.run_id).write_text("{}")
    assert run_request(short, Inline()) == 1
    err = capsys.readouterr().err
    assert "0 of 1 cells finished" in err
    assert re.search(r"^failed: a .*is not the description of the run", err, re.MULTILINE), err


def test_limits_are_said_beside_json_too(sweeps: Sweeps) -> None:
    done = sweeps("plan", *TINY, "plan.max_runs=0", "plan.gpu_memory=1KB", "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)) == 1
    memory, runs = done.stderr.splitlines()
    assert memory.startswith("warning: beyond the limits: 'run' ")
    assert runs.startswith("warning: beyond the limits: plan.max_runs = 0")


def test_other_commands_take_no_stray_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["show", "3f2a", "model=llama"])
    assert caught.value.code == 2
    assert "unrecognized arguments: model=llama" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["--help"], ["plan", "--help"], ["preflight", "--help"]])
def test_help_teaches(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 0
    assert "python -m sweeps plan" in capsys.readouterr().out or command[0] == "preflight"


def test_a_plan_loads_no_torch() -> None:
    code = (
        "import sys; from sweeps.commands import look_at_request; "
        "look_at_request(['+sweep=table2', 'mode=plan', 'store.root=/nonexistent']); "
        "print([name for name in ('torch', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_preflight_measures_what_the_plan_then_knows(sweeps: Sweeps, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    before = sweeps("plan", *TINY)
    assert "CPU-hours: not measured: mode=preflight measures it" in before.stdout
    limited = sweeps("plan", *TINY, "plan.max_gpu_hours=1000")
    assert "mode=preflight does, in three steps of each shape" in limited.stdout
    measured = python_m_sweeps("preflight", *TINY, cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    after = sweeps("plan", *TINY, "plan.max_gpu_hours=1000")
    assert "CPU-hours: as preflight measured it" in after.stdout
    assert "beyond the limits" not in after.stdout
    (cell,) = json.loads(sweeps("plan", *TINY, "--json").stdout)
    assert cell["hours_source"] == "preflight"
    assert cell["gpu_hours"] == pytest.approx(cell["train_tokens"] / cell["tokens_per_s"] / 3600)


def test_at_its_end_a_request_says_what_was_predicted_and_what_came_of_it(sweeps: Sweeps, run_py: Any) -> None:
    def table_of(*learning_rates: str) -> list[list[str]]:
        # In processes of their own: what a run comes to hold shows in one that held nothing before.
        process = run_py("-m", *TINY, f"optim.lr={','.join(learning_rates)}", "hydra/launcher=local")
        _, err = process.communicate()
        assert process.returncode == 0, err
        lines = err.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("done just now"))
        return [re.split(r" {2,}", line) for line in (lines[at], *lines[at + 2 : at + 2 + len(learning_rates)])]

    header, *rows = table_of("1e-3", "2e-3")
    assert header == ["done just now", "peak memory", "predicted"]
    assert [row[0] for row in rows] == ["lr=0.001", "lr=0.002"]
    assert all(text.endswith("MB") for row in rows for text in row[1:])
    # The next one is planned at the speed of these.
    header, row = table_of("3e-3")
    assert header[3:] == ["CPU-hours of a run", "planned"]
    assert all(float(text) > 0 for text in row[3:])
    (cell,) = json.loads(sweeps("plan", *TINY, "optim.lr=3e-3", "--json").stdout)
    assert (cell["status"], cell["hours_source"]) == ("done", "runs")
    assert "as predicted: peak memory" in sweeps("show", cell["run_id"]).stdout
