"""Limits: what goes beyond one does not start, says by how much, and leaves no trace."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hybrid.decode_cost import H100_SXM
from hybrid.memory import train_memory
from hybrid.spec import ConfigError
from sweeps import guards
from sweeps.guards import beyond_limits, check_limits, too_large
from sweeps.plan import ledger
from sweeps.plan_json import as_json
from sweeps.plan_settings import parse_size, read_plan_settings
from sweeps.plan_text import as_text
from sweeps.speed import Measured, processor, publish_measurement
from sweeps.text import size_text

from .conftest import TINY, Planned, Planner


def problems(planned: Planned) -> list[str]:
    return beyond_limits(planned.plan, planned.settings, ledger(planned.plan))


def refused(planned: Planned) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_limits(planned.plan, planned.settings)
    assert caught.value.problems[-1] == "nothing was started; plan.yes=true starts all the same"
    return caught.value.problems[:-1]


def measure(
    plan_of: Planner, arguments: tuple[str, ...], tokens_per_s: float, peak_memory_bytes: int | None = None
) -> None:
    """Say that preflight measured every shape of the request on this processor."""
    plan_of.store.prepare()
    for cell in plan_of(*arguments).plan.cells:
        measured = Measured(
            device_name=processor(),
            tokens_per_s=tokens_per_s,
            peak_memory_bytes=peak_memory_bytes,
            predicted_memory_bytes=1,
            source="preflight",
            run_id=None,
        )
        publish_measurement(plan_of.store, cell.spec, cell.run.resolved.execution, measured)


# --- each limit ---------------------------------------------------------------------------------


def test_as_many_as_allowed_may_start_and_one_more_may_not(plan_of: Planner) -> None:
    arguments = (*TINY, "optim.lr=1e-3,2e-3", "sweep.seeds=2")
    totals = ledger(plan_of(*arguments).plan)
    memory = max(cell.shape.memory.total_bytes for cell in plan_of(*arguments).plan.cells)
    for name, most in (("max_runs", 4), ("max_disk", totals.disk_bytes), ("gpu_memory", memory)):
        assert problems(plan_of(*arguments, f"plan.{name}={most}")) == []
        (problem,) = refused(plan_of(*arguments, f"plan.{name}={most - 1}"))
        assert f"plan.{name}" in problem
    assert problems(plan_of(*arguments, "plan.max_runs=0", "plan.yes=true"))
    yes = plan_of(*arguments, "plan.max_runs=0", "plan.yes=true")
    check_limits(yes.plan, yes.settings)


def test_hours_are_limited_where_they_are_known_and_refused_where_not(plan_of: Planner) -> None:
    arguments = (*TINY, "optim.lr=1e-3,2e-3")
    (unknown,) = refused(plan_of(*arguments, "plan.max_gpu_hours=1000"))
    assert re.match(r"plan.max_gpu_hours = 1000: .* 2 of 2 runs take; mode=preflight", unknown)
    assert problems(plan_of(*arguments)) == []
    measure(plan_of, arguments, tokens_per_s=6400 / 3600)
    assert problems(plan_of(*arguments, "plan.max_gpu_hours=2")) == []
    (beyond,) = refused(plan_of(*arguments, "plan.max_gpu_hours=1.9"))
    assert beyond.startswith("plan.max_gpu_hours = 1.9: to be paid: 2 CPU-hours")


def test_what_is_finished_or_shared_does_not_count(plan_of: Planner, finish: Any) -> None:
    rows = "+sweep.rows={a:{optim.lr:1e-3},b:{optim.lr:2e-3},c:{optim.lr:0.001}}"
    limited = (*TINY, rows, "plan.max_runs=1", "plan.max_disk=1MB")
    assert problems(plan_of(*TINY, rows, "plan.max_runs=2")) == []
    assert len(refused(plan_of(*limited))) == 1
    for cell in plan_of(*limited).plan.missing:
        assert problems(plan_of(*TINY, rows, "plan.max_runs=2")) == []
        finish(cell.run)
    done = (*TINY, rows, "plan.max_runs=0", "plan.max_gpu_hours=0", "plan.max_disk=1", "plan.gpu_memory=1")
    assert problems(plan_of(*done)) == []


def test_every_limit_says_both_numbers_and_memory_comes_first(plan_of: Planner) -> None:
    limits = ("plan.max_runs=1", "plan.max_gpu_hours=100", "plan.max_disk=50GB", "plan.gpu_memory=30GB")
    planned = plan_of("+sweep=table4", "sweep.only=[1:0,0:1]", *limits)
    memory, runs, hours, disk = refused(planned)
    totals = ledger(planned.plan)
    llama, mamba = (size_text(cell.shape.memory.total_bytes) for cell in planned.plan.cells)
    assert f"'1:0' {llama}" in memory
    assert f"'0:1' {mamba}" in memory
    assert "at most 30GB (plan.gpu_memory)" in memory
    assert runs.startswith("plan.max_runs = 1: to be trained: 2;")
    assert hours.startswith(f"plan.max_gpu_hours = 100: to be paid: {totals.to_pay.hours['GPU-hours'].known:.0f} GPU-")
    assert disk.startswith("plan.max_disk = 50GB: ")
    assert size_text(totals.disk_bytes) in disk


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        (("scale=1b", "exec.activation_checkpointing=false"), "40GB"),
        (("scale=1b", "exec.microbatch=64"), "60GB"),
        (("scale=1b", "exec.microbatch=64", "exec.activation_checkpointing=false"), "40GB"),
        (("scale=toy",), "100MB"),
    ],
)
def test_what_is_said_to_fit_fits(plan_of: Planner, arguments: tuple[str, ...], limit: str) -> None:
    (problem,) = refused(plan_of(*arguments, f"plan.gpu_memory={limit}"))
    said = re.search(r"; (\S+) with (exec\..*)$", problem)
    assert said, problem
    changed = plan_of(*arguments, *said[2].split(), f"plan.gpu_memory={limit}")
    assert problems(changed) == []
    assert said[1] == size_text(changed.plan.cells[0].shape.memory.total_bytes)


@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_measurement_counts_and_not_the_prediction_and_one_number_is_shown(plan_of: Planner, factor: float) -> None:
    predicted = plan_of(*TINY).plan.cells[0].shape.memory.total_bytes
    measured = int(factor * predicted)
    measure(plan_of, TINY, 1.0, peak_memory_bytes=measured)
    assert problems(plan_of(*TINY, f"plan.gpu_memory={measured}")) == []
    beyond = plan_of(*TINY, f"plan.gpu_memory={measured - 1}")
    (problem,) = refused(beyond)
    assert f"'run' {size_text(measured)}" in problem
    assert f" {size_text(measured)}! " in as_text(beyond.plan, beyond.settings, title="")
    (entry,) = json.loads(as_json(beyond.plan, beyond.settings))
    assert (entry["peak_memory_bytes"], entry["predicted_memory_bytes"]) == (measured, predicted)


def test_the_largest_of_the_values_to_be_tuned_has_to_fit(plan_of: Planner) -> None:
    alone = (*(setting for setting in TINY if "batch_tokens" not in setting), "budget.tokens=1M")
    small, large = (plan_of(*alone, f"batch_tokens={n}").plan.cells[0].shape.memory.total_bytes for n in (128, 262144))
    assert large > small
    tuned = (*alone, "+sweep.rows={a:{}}", "sweep.tune={batch_tokens:[64,128,262144]}")
    assert problems(plan_of(*tuned, f"plan.gpu_memory={large}")) == []
    planned = plan_of(*tuned, f"plan.gpu_memory={large - 1}")
    (problem,) = refused(planned)
    assert f"{size_text(large)}" in problem
    assert f"{size_text(small)}!" not in as_text(planned.plan, planned.settings, title="")


def test_what_exec_cannot_make_fit_is_said(plan_of: Planner) -> None:
    (problem,) = refused(plan_of("scale=3b", "plan.gpu_memory=40GB"))
    least = train_memory(
        plan_of("scale=3b").plan.cells[0].spec, plan_of("scale=3b").plan.cells[0].run.resolved.execution
    )
    assert f"exec can make it no smaller than {size_text(least.total_bytes)}" in problem


def test_a_gpu_that_is_only_assumed_stops_nothing_and_one_that_is_named_does(plan_of: Planner) -> None:
    large = ("scale=3b", "exec.activation_checkpointing=false", "exec.microbatch=8")
    assumed, named = plan_of(*large), plan_of(*large, "plan.device=h100")
    assert problems(assumed) == []
    (found,) = too_large(assumed.plan, assumed.settings)
    assert found.limit.n_bytes == H100_SXM.memory_bytes
    text = as_text(assumed.plan, assumed.settings, title="")
    assert re.search(r"^note: 'run' .* \(H100 SXM, which is assumed\)", text, re.MULTILINE)
    assert re.search(r"\d+GB!", text)
    assert "at most 80GB (H100 SXM)" in refused(named)[0]


def test_a_run_on_this_processor_has_to_fit_into_this_machine(
    plan_of: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guards.machine_memory_bytes() is not None
    assert problems(plan_of(*TINY)) == []
    monkeypatch.setattr(guards, "machine_memory_bytes", lambda: 1_000_000)
    (problem,) = refused(plan_of(*TINY))
    assert "at most 1MB (this machine's memory)" in problem
    elsewhere = plan_of(*TINY, "exec.device=cuda", "plan.device=cpu")
    assert problems(elsewhere) == []
    assert too_large(elsewhere.plan, elsewhere.settings)
    assert problems(plan_of(*TINY, "exec.device=cuda")) == []


def test_a_plan_beyond_its_limits_is_printed_and_says_so(plan_of: Planner) -> None:
    beyond, yes = (plan_of(*TINY, "plan.max_runs=0", f"plan.yes={yes}") for yes in ("false", "true"))
    text = as_text(beyond.plan, beyond.settings, title="")
    assert "beyond the limits; mode=run does not start it, unless plan.yes=true:\n  plan.max_runs = 0" in text
    assert "beyond the limits, and started all the same" in as_text(yes.plan, yes.settings, title="")
    assert "beyond" not in as_text(plan_of(*TINY).plan, plan_of(*TINY).settings, title="")


# --- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80 * 10**9),
        ("80 gb", 80 * 10**9),
        ("80G", 80 * 10**9),
        ("80GiB", 80 * 2**30),
        ("1.5TB", 15 * 10**11),
        ("2_000MB", 2 * 10**9),
        ("80e9", 80 * 10**9),
        (80e9, 80 * 10**9),
        (1, 1),
        ("1e3 KiB", 1000 * 1024),
    ],
)
def test_sizes_are_read(text: object, size: int) -> None:
    assert parse_size(text, "plan.max_disk") == size


@pytest.mark.parametrize(
    "text",
    ["80B", "", "GB", "-1GB", "0", 0, -5, "1e999GB", "80GBs", True, None, "80 G B", float("nan"), float("inf"), []],
)
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match=r"^plan.max_disk = .*: expected a size in bytes, such as 80GB"):
        parse_size(text, "plan.max_disk")


def test_all_bad_settings_are_said_at_once(config: dict[str, Any]) -> None:
    bad = {
        "format": "yaml",
        "max_runs": 1.5,
        "max_gpu_hours": "many",
        "max_disk": "80B",
        "gpu_memory": -1,
        "yes": "yes",
        "device": "v100",
        "mfu": 40,
        "price": -1,
        "alpha": 0,
        "power": 1,
        "separate": ["a"],
        "difference_nats": 0,
        "noise": {"sd_nats": 0.01, "dof": 0, "source": None},
        "tokens": 1,
    }
    with pytest.raises(ConfigError) as caught:
        read_plan_settings({**config["plan"], **bad})
    said = "\n".join(caught.value.problems)
    for key in bad:
        assert f"plan.{key}" in said, key
    assert "did you mean" in said or "valid:" in said
    assert read_plan_settings(config["plan"]).max_runs is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.5, "power": 0.4}, "plan.power = 0.4: expected more than plan.alpha = 0.5"),
        ({"difference_nats": 0.01}, "plan.difference_nats = 0.01: expected two rows in plan.separate"),
        ({"separate": ["a", "a"]}, "expected the names of two rows"),
        ({"separate": "a"}, "expected the names of two rows"),
        ({"mfu": None}, "plan.mfu = None: expected a fraction"),
        ({"noise": {"sd_nats": 0.1, "dof": None, "source": None}}, "plan.noise.dof = None: expected the degrees"),
        ({"noise": 0.1}, "plan.noise = 0.1: expected settings"),
    ],
)
def test_settings_that_cannot_be_meant_are_one_clear_error(
    config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_plan_settings({**config["plan"], **changes})
    (problem,) = caught.value.problems
    assert message in problem


# --- from the command line ----------------------------------------------------------------------


@pytest.mark.parametrize("multirun", [True, False])
def test_beyond_a_limit_nothing_is_started_and_nothing_written(tmp_path: Path, run_py: Any, multirun: bool) -> None:
    first = ["-m", "init_seed=1,2"] if multirun else []
    process = run_py(*first, *TINY, "plan.max_runs=0", "plan.gpu_memory=1KB")
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert "at most 1KB (plan.gpu_memory)" in lines[0]
    assert "plan.max_runs = 0" in lines[1]
    assert lines[2] == "error: nothing was started; plan.yes=true starts all the same"
    assert not list(tmp_path.iterdir())


def test_yes_starts_it_all_the_same(tmp_path: Path, run_py: Any) -> None:
    process = run_py(*TINY, "budget.tokens=640", "plan.max_runs=0", "plan.yes=true")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "done" in out
    assert "started all the same" in err
    assert (tmp_path / "store").is_dir()
