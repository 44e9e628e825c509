"""How fast and how large runs are taken to be: from measurements where there are any, else from stated assumptions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.config import Resolved
from hybrid.cost import run_cost
from hybrid.decode_cost import A100_80GB_SXM, H100_SXM, H200_SXM
from hybrid.memory import train_memory
from hybrid.spec import ConfigError, StdlibSpec
from sweeps.identity import run_id
from sweeps.speed import (
    Measured,
    PlanDevice,
    Speed,
    device_hours,
    measurement,
    plan_device,
    prediction_text,
    processor,
    publish_measurement,
    shape_id,
    speed_of,
)
from sweeps.store import Store
from sweeps.worker import StopFlag, Stopped, run_one

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
        "exec.microbatch=4",
        "exec.microbatch=100",
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
        "exec.kernels=auto",
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


def test_the_first_measurement_of_a_device_and_sort_stands(store: Store, resolve: Resolve) -> None:
    cell = resolve("scale=1b", "model=llama")
    publish_measurement(store, cell.run, cell.execution, measured(tokens_per_s=1.0))
    publish_measurement(store, cell.run, cell.execution, measured(tokens_per_s=2.0))
    assert known(store, cell, "h100").tokens_per_s == 1.0
    assert len(list(store.speeds_dir(shape(cell)).iterdir())) == 1


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
        assert measurement(store, cell.run, cell.execution, (name,)) == measured(device_name=name)
    names = sorted(path.name for path in store.speeds_dir(shape(cell)).iterdir())
    assert names == ["device-preflight.json", "etc-preflight.json", "intel-r-xeon-r-cpu-2-20ghz-preflight.json"]


# --- what runs leave ----------------------------------------------------------------------------


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
    (path,) = store.speeds_dir(shape(cell)).iterdir()
    before = path.read_bytes()
    train(store, tiny("init_seed=2"))
    assert [path.read_bytes() for path in store.speeds_dir(shape(cell)).iterdir()] == [before]


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
            "predicted_memory_bytes": 2**30,
            "peak_memory_bytes": 3 * 2**29,
            "preflight_tokens_per_s": 40_000.0,
        },
    }
    assert prediction_text(made) == (
        "peak memory 1.5GiB, predicted 1GiB (1.50 of it); 30K tokens/s, by preflight 40K (0.75 of it)"
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
