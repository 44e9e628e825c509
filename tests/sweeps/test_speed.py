"""How fast and how large runs are taken to be: from measurements where there are any, else from stated assumptions."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.config import Resolved
from hybrid.cost import run_cost
from hybrid.decode_cost import A100_80GB_SXM, H100_SXM, H200_SXM
from hybrid.evals import nll
from hybrid.memory import train_memory
from hybrid.spec import ConfigError, StdlibSpec
from sweeps.identity import run_id
from sweeps.speed import (
    Measured,
    PlanDevice,
    Speed,
    device_hours,
    evaluation_batch_size,
    measurement,
    measurement_text,
    plan_device,
    prediction_text,
    processor,
    publish_measurement,
    shape_id,
    speed_of,
)
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Store
from sweeps.worker.runs import run_one

from .conftest import REPO

H100_NAME = "NVIDIA H100 80GB HBM3"
Resolve = Callable[..., Resolved]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def measured(**changes: Any) -> Measured:
    facts = {
        "device_name": H100_NAME,
        "tokens_per_s": 50_000.0,
        "peak_memory_bytes": 40 * 10**9,
        "predicted_memory_bytes": 38 * 10**9,
        "source": "preflight",
        "run_id": None,
    }
    return Measured(**{**facts, **changes})


def known(store: Store, resolved: Resolved, kind: str | None, mfu: float = 0.4) -> Speed:
    return speed_of(store, resolved.run, resolved.execution, plan_device(kind, resolved.execution), mfu)


def shape(resolved: Resolved) -> str:
    return shape_id(resolved.run, resolved.execution)


# --- shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "init_seed=7",
        "data_seed=7",
        "optim.lr=1e-2",
        "budget.tokens=128000",
        "schedule.cooldown_fraction=0.5",
        "exec.device=cuda",
        "exec.log_every_steps=1",
        "exec.kernels=auto",
        "exec.microbatch=1024",
    ],
)
def test_what_does_not_change_a_step_does_not_change_its_shape(tiny: Resolve, override: str) -> None:
    assert tiny().run.batch_size == 4
    assert shape(tiny(override)) == shape(tiny())


@pytest.mark.parametrize(
    "override",
    [
        "model.depth=3",
        "model.placement=[1]",
        "seq_len=32",
        "batch_tokens=128",
        "dtype=bfloat16",
        "data.n_pairs=3",
        "exec.microbatch=2",
        "exec.threads=2",
        "exec.microbatch=100",
        "exec.activation_checkpointing=true",
        "exec.ssd_chunk=32",
    ],
)
def test_what_changes_a_step_changes_its_shape(tiny: Resolve, override: str) -> None:
    assert shape(tiny(override)) != shape(tiny())


def test_where_every_position_is_scored_the_shape_is_another(tiny: Resolve) -> None:
    """Of associative recall few are, and the logits of the others are never made."""
    cell = tiny()
    everywhere = replace(cell.run, data=StdlibSpec(fingerprint="0" * 16, val_percent=1.0))
    assert shape_id(everywhere, cell.execution) != shape(cell)
    elsewhere = replace(everywhere, data=StdlibSpec(fingerprint="1" * 16, val_percent=2.0))
    assert shape_id(elsewhere, cell.execution) == shape_id(everywhere, cell.execution)


# --- what is known ------------------------------------------------------------------------------


def test_a_runs_measurement_goes_before_a_preflights_and_that_before_mfu(store: Store, resolve: Resolve) -> None:
    cell = resolve("scale=1b", "model=llama")
    assert known(store, cell, None).source == "mfu"
    publish_measurement(store, cell.run, cell.execution, measured())
    found = known(store, cell, None)
    assert found == Speed(
        tokens_per_s=50_000.0,
        peak_memory_bytes=40 * 10**9,
        source="preflight",
        text=f"three steps on {H100_NAME} (preflight)",
    )
    publish_measurement(
        store, cell.run, cell.execution, measured(source="runs", run_id="3f2a91bc0d1e", tokens_per_s=45_000.0)
    )
    found = known(store, cell, None)
    assert (found.source, found.tokens_per_s) == ("runs", 45_000.0)
    assert found.text == f"measured by run 3f2a91bc0d1e on {H100_NAME}"


def test_validation_is_planned_in_the_batches_in_which_it_is_made(tiny: Resolve) -> None:
    for overrides in ((), ("exec.microbatch=3",), ("seq_len=32",)):
        cell = tiny(*overrides)
        made = nll.evaluation_batch_size(cell.execution, cell.run.seq_len)
        assert evaluation_batch_size(cell.execution, cell.run.seq_len) == made


def test_on_a_gpu_auto_and_torch_are_two_shapes(tiny: Resolve) -> None:
    """What auto takes depends on what is installed: the measurement says it."""
    assert shape(tiny("exec.device=cuda", "exec.kernels=auto")) != shape(tiny("exec.device=cuda"))


def test_the_newest_measurement_of_a_device_and_sort_is_taken_and_few_are_kept(store: Store, resolve: Resolve) -> None:
    cell = resolve("scale=1b", "model=llama")
    for n in range(1, 6):
        publish_measurement(store, cell.run, cell.execution, measured(tokens_per_s=float(n)))
        assert known(store, cell, "h100").tokens_per_s == n
    names = sorted(path.name for path in store.speeds_dir(shape(cell)).iterdir())
    assert names == [f"nvidia-h100-80gb-hbm3-preflight-{n:08d}.json" for n in (3, 4, 5)]


def test_what_was_made_with_other_kernels_or_another_pytorch_is_not_taken(store: Store, resolve: Resolve) -> None:
    cell = resolve("scale=1b", "model=llama")

    def found(made_with: tuple[str, str] | None = None) -> float | None:
        best = measurement(store, cell.run, cell.execution, (H100_NAME,), made_with)
        return None if best is None else best.tokens_per_s

    def publish(tokens_per_s: float, kernels: str | None, torch: str | None, **more: Any) -> None:
        made = measured(tokens_per_s=tokens_per_s, kernels=kernels, torch=torch, **more)
        publish_measurement(store, cell.run, cell.execution, made)

    publish(1.0, "plain", "2.1", source="runs", run_id="3f2a91bc0d1e")
    assert found() == found(("plain", "2.1")) == 1.0
    assert found(("fused", "2.1")) is found(("plain", "2.2")) is None
    # A preflight in a newer environment goes before runs in an older one, but not before runs in its own.
    publish(2.0, "fused", "2.1")
    assert found() == found(("fused", "2.1")) == 2.0
    assert found(("plain", "2.1")) == 1.0
    publish(3.0, "fused", "2.1", source="runs", run_id="4f2a91bc0d1e")
    publish(4.0, "fused", "2.1")
    assert found() == 3.0
    # What does not say what it was made with is taken for any.
    publish(5.0, None, None, source="runs", run_id="5f2a91bc0d1e")
    assert found() == found(("another", "3.0")) == 5.0


def test_memory_that_the_newest_measurement_does_not_tell_is_that_of_one_before(store: Store, resolve: Resolve) -> None:
    cell = resolve("scale=1b", "model=llama")
    publish_measurement(store, cell.run, cell.execution, measured(peak_memory_bytes=7, validation_s=3.0))
    publish_measurement(store, cell.run, cell.execution, measured(source="runs", run_id="3f", peak_memory_bytes=None))
    best = measurement(store, cell.run, cell.execution, (H100_NAME,))
    assert best is not None
    assert (best.source, best.peak_memory_bytes, best.validation_s) == ("runs", 7, 3.0)


def test_a_measurement_is_of_its_shape_and_its_kind_of_device_alone(store: Store, resolve: Resolve) -> None:
    cell = resolve("scale=1b", "model=llama")
    publish_measurement(store, cell.run, cell.execution, measured())
    assert known(store, cell, "h100").source == "preflight"
    assert known(store, cell, "h200").source == "mfu"
    assert known(store, cell, "a100").source == "mfu"
    assert known(store, cell, "cpu").source == "unknown"
    assert known(store, resolve("scale=1b", "model=mamba"), "h100").source == "mfu"
    assert known(store, resolve("scale=1b", "model=llama", "exec.microbatch=2"), "h100").source == "mfu"
    assert known(store, resolve("scale=1b", "model=llama", "init_seed=5"), "h100").source == "preflight"


def test_other_boards_of_a_chip_are_other_devices(store: Store, resolve: Resolve) -> None:
    cell = resolve("scale=1b", "model=llama")
    publish_measurement(store, cell.run, cell.execution, measured(device_name="NVIDIA H100 PCIe"))
    assert known(store, cell, "h100").source == "mfu"


def test_without_a_measurement_a_gpus_speed_is_the_stated_share_of_its_published_peak(
    store: Store, resolve: Resolve
) -> None:
    cell = resolve("scale=1b", "model=inter")
    found = known(store, cell, "h100", mfu=0.25)
    assert found.tokens_per_s is not None
    assert found.peak_memory_bytes is None
    assert found.text == "25% MFU of H100 SXM's 989 TFLOP/s"
    # A run at that speed spends its FLOPs, in the full convention, at a quarter of the peak.
    seconds = cell.run.train_tokens / found.tokens_per_s
    assert run_cost(cell.run).full_train_flops / seconds == pytest.approx(0.25 * H100_SXM.flops_per_s, rel=1e-12)
    hours = device_hours(cell.run.train_tokens, found)
    assert hours == pytest.approx(run_cost(cell.run).full_train_flops / (0.25 * 989.4e12) / 3600, rel=1e-12)


def test_a_processor_that_nobody_measured_has_no_speed(store: Store, tiny: Resolve) -> None:
    found = known(store, tiny(), None)
    assert found == Speed(
        tokens_per_s=None,
        peak_memory_bytes=None,
        source="unknown",
        text="not measured: mode=preflight measures it",
    )
    assert device_hours(10**9, found) is None


def test_a_published_peak_for_bfloat16_says_nothing_of_float32(store: Store, resolve: Resolve) -> None:
    found = known(store, resolve("scale=1b", "model=llama", "dtype=float32"), "h100")
    assert (found.source, found.tokens_per_s) == ("unknown", None)
    assert "bfloat16" in found.text
    assert "float32" in found.text


def test_a_processors_measurement_is_for_machines_with_that_processor(store: Store, tiny: Resolve) -> None:
    cell = tiny()
    publish_measurement(store, cell.run, cell.execution, measured(device_name=f"{processor()}, another"))
    assert known(store, cell, None).source == "unknown"
    publish_measurement(store, cell.run, cell.execution, measured(device_name=processor(), tokens_per_s=1e4))
    assert known(store, cell, "cpu").tokens_per_s == 1e4
    assert known(store, cell, "cpu").text == f"three steps on {processor()} (preflight)"


@given(tokens=st.integers(1, 10**13), rate=st.floats(1, 1e7), more=st.floats(1.001, 100))
def test_hours_are_in_proportion_to_tokens_and_inverse_to_speed(tokens: int, rate: float, more: float) -> None:
    def hours(tokens: int, rate: float) -> float:
        found = device_hours(
            tokens, Speed(tokens_per_s=rate, peak_memory_bytes=None, source="runs", text="measured by run x on y")
        )
        assert found is not None
        return found

    assert hours(tokens, rate) * 3600 * rate == pytest.approx(tokens)
    assert hours(2 * tokens, rate) == pytest.approx(2 * hours(tokens, rate))
    assert hours(tokens, more * rate) < hours(tokens, rate)


# --- devices ------------------------------------------------------------------------------------


def test_the_kind_is_what_the_run_would_use_unless_another_is_named(tiny: Resolve, resolve: Resolve) -> None:
    cpu, gpu = tiny().execution, resolve("scale=1b").execution
    assert (cpu.device, gpu.device) == ("cpu", "cuda")
    assert plan_device(None, cpu) == PlanDevice(kind="cpu", spec=None)
    assert plan_device(None, gpu) == PlanDevice(kind="h100", spec=H100_SXM)
    assert plan_device(None, replace(gpu, device="cuda:1")) == plan_device("h100", cpu)
    assert plan_device("a100", cpu) == PlanDevice(kind="a100", spec=A100_80GB_SXM)
    assert plan_device("h200", gpu) == PlanDevice(kind="h200", spec=H200_SXM)
    assert plan_device("cpu", gpu) == PlanDevice(kind="cpu", spec=None)


def test_an_unknown_kind_is_refused_with_those_that_there_are(tiny: Resolve) -> None:
    with pytest.raises(ConfigError, match=r"plan.device = h10: .*did you mean h100\? \(valid: a100, cpu, h100, h200\)"):
        plan_device("h10", tiny().execution)


def test_no_two_kinds_share_a_name() -> None:
    names = [name for spec in (A100_80GB_SXM, H100_SXM, H200_SXM) for name in spec.reported_names]
    assert len(names) == len(set(names))


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[1]", "not a JSON object"),
        ('{"schema": 1}', "device_name: missing"),
        ('{"schema": 9}', "schema 9"),
        ("changed:tokens_per_s=0", "tokens_per_s = 0"),
        ("changed:tokens_per_s=-5.0", "tokens_per_s = -5.0"),
        ("changed:tokens_per_s=NaN", "tokens_per_s = nan"),
        ('changed:tokens_per_s="fast"', "tokens_per_s = 'fast'"),
        ('changed:source="guess"', "source = 'guess'"),
        ("changed:peak_memory_bytes=1.5", "peak_memory_bytes = 1.5"),
    ],
)
def test_a_damaged_measurement_is_named_and_passed_over(
    store: Store, resolve: Resolve, capsys: pytest.CaptureFixture[str], damage: str, said: str
) -> None:
    cell = resolve("scale=1b", "model=llama")
    publish_measurement(store, cell.run, cell.execution, measured(source="runs", run_id="3f2a91bc0d1e"))
    (path,) = store.speeds_dir(shape(cell)).iterdir()
    if damage.startswith("changed:"):
        key, _, value = damage.removeprefix("changed:").partition("=")
        path.write_text(json.dumps({**json.loads(path.read_text()), key: json.loads(value)}))
    else:
        path.write_text(damage)
    assert known(store, cell, "h100").source == "mfu"
    warning = capsys.readouterr().err
    assert warning.startswith("warning: passed over: ")
    assert str(path) in warning
    assert said in warning
    assert warning.count("\n") == 1
    # The good one beside it is used.
    publish_measurement(store, cell.run, cell.execution, measured())
    assert known(store, cell, "h100").source == "preflight"


def test_what_is_half_written_or_no_measurement_is_not_looked_at(
    store: Store, resolve: Resolve, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = resolve("scale=1b", "model=llama")
    publish_measurement(store, cell.run, cell.execution, measured())
    directory = store.speeds_dir(shape(cell))
    (directory / ".nvidia-runs.json.host.1.2").write_text("{")
    (directory / "notes.txt").write_text("mine")
    assert known(store, cell, "h100").source == "preflight"
    assert capsys.readouterr().err == ""


def test_a_speed_that_is_none_is_not_published(store: Store, tiny: Resolve) -> None:
    cell = tiny()
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tokens_per_s"):
            publish_measurement(store, cell.run, cell.execution, measured(tokens_per_s=rate))
    assert not store.speeds_dir(shape(cell)).exists()


def test_names_of_devices_are_safe_in_file_names(store: Store, tiny: Resolve) -> None:
    cell = tiny()
    for name in ("Intel(R) Xeon(R) CPU @ 2.20GHz", "../../etc", "???"):
        publish_measurement(store, cell.run, cell.execution, measured(device_name=name))
        found = measurement(store, cell.run, cell.execution, (name,))
        assert found is not None
        assert replace(found, measured_at="") == measured(device_name=name)
    names = sorted(path.name for path in store.speeds_dir(shape(cell)).iterdir())
    devices = ("device", "etc", "intel-r-xeon-r-cpu-2-20ghz")
    assert names == [f"{device}-preflight-00000001.json" for device in devices]


# --- what runs leave ----------------------------------------------------------------------------


STARTS_SLEEPERS = """
sleepers = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
sleepers[0].kill()
sleepers[0].wait()
"""
ENDS_THEM = """
for sleeper in sleepers:
    sleeper.kill()
    sleeper.wait()
"""


def train(store: Store, resolved: Resolved, stop_at: int | None = None) -> None:
    stop = StopFlag()

    def progress(step: int, *_: Any) -> None:
        if step == stop_at:
            stop("the test says so")

    run_one(store, resolved.run, resolved.execution, stop=stop, progress=progress)


def record(store: Store, resolved: Resolved) -> dict[str, Any]:
    found = store.record(run_id(resolved.run))
    assert found is not None
    return found


def test_a_finished_run_leaves_its_speed_for_plans_to_come(store: Store, tiny: Resolve) -> None:
    cell = tiny()
    train(store, cell)
    found = known(store, tiny("init_seed=9", "optim.lr=1e-3", "budget.tokens=12800"), None)
    assert found.source == "runs"
    assert found.text == f"measured by run {run_id(cell.run)} on {processor()}"
    assert found.tokens_per_s == pytest.approx(record(store, cell)["metrics"]["tokens_per_s"], rel=1e-6)
    another = tiny("init_seed=2")
    train(store, another)
    assert known(store, cell, None).text == f"measured by run {run_id(another.run)} on {processor()}"


def test_memory_is_measured_in_a_process_of_the_runs_own_alone(store: Store, tiny: Resolve) -> None:
    """One that has trained before has memory to spare, and would seem to need less."""
    cell = tiny()
    train(store, cell)
    assert record(store, cell)["provenance"]["peak_memory_bytes"] is None
    best = measurement(store, cell.run, cell.execution, (processor(),))
    assert best is not None
    assert best.peak_memory_bytes is None
    assert (best.kernels, best.torch) == ("torch", version("torch"))


def test_what_ran_beside_a_run_is_said() -> None:
    run = measured(source="runs", run_id="3f2a91bc0d1e", beside=3)
    assert measurement_text(run) == f"measured by run 3f2a91bc0d1e on {H100_NAME} beside 3 more"
    assert "beside" not in measurement_text(replace(run, beside=0))


def test_the_processes_beside_are_those_of_the_same_parent() -> None:
    """As many as this test starts more, less those that have ended."""
    count = "from sweeps.worker.measuring import _siblings; print(_siblings())"
    script = (
        f"import subprocess, sys\n{STARTS_SLEEPERS}\nsubprocess.run([sys.executable, '-c', {count!r}])\n{ENDS_THEM}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.split() == ["2"]


def test_a_record_holds_what_was_predicted_beside_what_came_of_it(store: Store, tiny: Resolve) -> None:
    cell = tiny()
    train(store, cell)
    provenance = record(store, cell)["provenance"]
    assert provenance["device_name"] == provenance["processor"] == processor()
    assert provenance["predicted_memory_bytes"] == train_memory(cell.run, cell.execution).total_bytes
    assert "peak_memory_bytes" in provenance
    assert provenance["preflight_tokens_per_s"] is None

    publish_measurement(store, cell.run, cell.execution, measured(device_name=processor(), tokens_per_s=1234.0))
    other = tiny("init_seed=2")
    train(store, other)
    assert record(store, other)["provenance"]["preflight_tokens_per_s"] == 1234.0
    assert "by preflight 1.23K" in (prediction_text(record(store, other)) or "")
    assert "by preflight 1.23K" in (store.attempt_dir(run_id(other.run), 1) / "log.txt").read_text()


def test_prediction_and_measurement_are_reported_side_by_side() -> None:
    made: dict[str, Any] = {
        "metrics": {"tokens_per_s": 30_000.0},
        "provenance": {
            "predicted_memory_bytes": 10**9,
            "peak_memory_bytes": 15 * 10**8,
            "preflight_tokens_per_s": 40_000.0,
        },
    }
    assert prediction_text(made) == (
        "peak memory 1.5GB, predicted 1GB (1.50 of it); 30K tokens/s, by preflight 40K (0.75 of it)"
    )
    assert prediction_text({"metrics": {}, "provenance": {}}) is None


def test_a_run_of_few_steps_leaves_no_speed(store: Store, tiny: Resolve) -> None:
    cell = tiny("budget.tokens=576")
    assert cell.run.train_steps == 9
    train(store, cell)
    assert known(store, cell, None).source == "unknown"


def test_a_resumed_run_speaks_of_the_steps_of_its_last_attempt(store: Store, tiny: Resolve) -> None:
    """The attempts before may have been made on another device."""
    cell = tiny()
    with pytest.raises(Stopped):
        train(store, cell, stop_at=95)
    train(store, cell)
    assert record(store, cell)["metrics"]["steps"] == 100
    assert known(store, cell, None).source == "unknown"

    other = tiny("init_seed=2")
    with pytest.raises(Stopped):
        train(store, other, stop_at=50)
    train(store, other)
    assert known(store, other, None).source == "runs"


def test_a_store_that_takes_no_measurement_costs_the_run_nothing(store: Store, tiny: Resolve) -> None:
    (store.root / "speeds").write_text("a file where a directory should be")
    cell = tiny()
    train(store, cell)
    assert store.status(run_id(cell.run)) == "done"
    assert "its speed is not kept" in (store.attempt_dir(run_id(cell.run), 1) / "log.txt").read_text()
