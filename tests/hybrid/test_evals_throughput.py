"""Speed as an evaluation: how it is timed, what a record of it has, what is refused. Nothing here says how fast."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hybrid.config import Resolved
from hybrid.cost import full_train_flops_per_sample
from hybrid.decode_cost import A100_80GB_SXM, H200_SXM
from hybrid.evals import throughput
from hybrid.evals.throughput import (
    Measured,
    Repeats,
    Times,
    evaluate_throughput,
    inference_bytes,
    largest_batch,
    measure_decoding,
    measure_inference,
    measured_peaks,
    peaks_of,
)
from hybrid.mixers import state_bytes
from hybrid.model import LanguageModel
from hybrid.roofline import Peaks, Work, decode_work
from hybrid.spec import ConfigError
from hybrid.train.loop import build_model

TINY = (
    "model=inter",
    "model.depth=2",
    "model.ratio=1:1",
    "model.d_model=32",
    "model.ffn.d_ffn=64",
    "model.attention.n_heads=2",
    "model.attention.n_kv_heads=1",
    "model.attention.head_dim=16",
    "model.mamba.d_ssm=64",
    "model.mamba.head_dim=16",
    "model.mamba.d_state=8",
    "seq_len=64",
    "batch_tokens=256",
    "budget.tokens=2560",
)
PEAKS = Peaks(flops_per_s=1e12, bytes_per_s=1e11, source="made up")


@pytest.fixture(autouse=True)
def _small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What peaks are measured with: their size is not what is tested."""
    monkeypatch.setattr(throughput, "_CPU_MATRIX", 64)
    monkeypatch.setattr(throughput, "_CPU_COPY_BYTES", 1 << 16)


@pytest.fixture
def tiny(resolve: Callable[..., Resolved]) -> Resolved:
    return resolve(*TINY)


@pytest.fixture
def model(tiny: Resolved) -> LanguageModel:
    return build_model(tiny.run, tiny.execution)


def clock_of(*seconds: float) -> Callable[[], float]:
    """Tasks that take these times, one after the other, with an hour between them."""

    def told() -> Iterator[float]:
        now = 0.0
        for one in seconds:
            now += 3600.0
            yield now
            now += one
            yield now

    times = told()
    return lambda: next(times)


# --- timing -------------------------------------------------------------------------------------


def test_what_warms_up_does_not_count_and_the_rest_has_a_median_and_quartiles() -> None:
    done: list[str] = []
    repeats = Repeats(warmup=2, counted=5, clock=clock_of(90.0, 80.0, 5.0, 1.0, 4.0, 2.0, 3.0))
    times = repeats.times(lambda: done.append("task"), lambda: done.append("wait"))
    assert times == Times(median_s=3.0, low_s=2.0, high_s=4.0, n=5)
    # The device has done what came before when the clock starts, and all of the task when it stops.
    assert done == 7 * ["wait", "task", "wait"]


def test_one_repeat_is_its_own_spread() -> None:
    assert Repeats(warmup=0, counted=1, clock=clock_of(7.0)).times(lambda: None) == Times(
        median_s=7.0, low_s=7.0, high_s=7.0, n=1
    )


def test_a_share_of_the_roofline_is_its_time_over_the_measured_one() -> None:
    measured = Measured(
        tokens=12,
        times=Times(median_s=4.0, low_s=3.0, high_s=6.0, n=9),
        roofline=Work(full_flops=10**12, moved_bytes=5).roofline(PEAKS),
    )
    assert measured.tokens_per_s == 3.0
    assert measured.roofline_fraction == 0.25
    assert measured.metrics() == {
        "tokens_per_s": 3.0,
        "s": 4.0,
        "s_low": 3.0,
        "s_high": 6.0,
        "roofline_s": 1.0,
        "roofline_fraction": 0.25,
    }


def test_decoding_is_timed_in_the_middle_of_the_generation(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    step = LanguageModel.step

    def noted(self: LanguageModel, tokens_BL: torch.Tensor, state: Any, **last: Any) -> Any:
        seen.append(tuple(tokens_BL.shape))
        return step(self, tokens_BL, state, **last)

    monkeypatch.setattr(LanguageModel, "step", noted)
    clock = clock_of(9.0, *(float(i) for i in range(1, 6)))
    repeats = Repeats(warmup=1, counted=5, clock=clock)
    measured = measure_decoding(model, batch=3, prompt=20, length=60, repeats=repeats, peaks=PEAKS)
    assert seen == [(3, 37), *(6 * [(3, 1)])]  # positions 37 to 42: 40 is in the middle
    assert measured.tokens == 3
    assert measured.tokens_per_s == 3 / 3.0
    expected = decode_work(model.spec, batch=3, length=40, element_bytes=4).roofline(PEAKS)
    assert measured.roofline == expected


# --- peaks --------------------------------------------------------------------------------------


def test_measured_peaks_are_the_best_of_what_was_timed() -> None:
    slow_and_fast = [2.0, 0.5, *([1.0] * 13)]
    peaks = measured_peaks(torch.device("cpu"), "float32", clock_of(*slow_and_fast, *slow_and_fast))
    assert peaks.flops_per_s == 2 * 64**3 / 0.5
    assert peaks.bytes_per_s == 2 * (1 << 16) / 0.5
    assert peaks.source.startswith("measured here: a float32 product")


def test_a_gpu_that_is_known_has_its_datasheets_peaks_in_its_dtype_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(throughput, "measured_peaks", lambda *_: PEAKS)
    device = torch.device("cuda")
    assert peaks_of(device, "bfloat16") == Peaks.published(H200_SXM)
    assert peaks_of(device, "float32") == PEAKS
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100-SXM4-80GB")
    assert peaks_of(device, "bfloat16") == Peaks.published(A100_80GB_SXM)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 4090")
    assert peaks_of(device, "bfloat16") == PEAKS


# --- what fits ----------------------------------------------------------------------------------


def test_what_decoding_holds_is_weights_states_and_logits(model: LanguageModel) -> None:
    weights = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        states = state_bytes(model.init_state(3, 40))
    expected = 4 * weights + states + 4 * 3 * model.spec.vocab_size
    assert inference_bytes(model.spec, batch=3, length=40, element_bytes=4) == expected


def test_the_largest_batch_is_a_power_of_two_that_fits(model: LanguageModel) -> None:
    def largest(memory_bytes: int, at_most: int = 64) -> int:
        return largest_batch(model.spec, length=40, element_bytes=4, memory_bytes=memory_bytes, at_most=at_most)

    def for_batch(n: int) -> int:
        return round(inference_bytes(model.spec, batch=n, length=40, element_bytes=4) / throughput.MEMORY_SHARE) + 1

    assert largest(for_batch(8)) == 8
    assert largest(for_batch(15)) == 8
    assert largest(for_batch(1) - 10) == 0
    assert largest(10**12) == 64
    assert largest(10**12, at_most=48) == 32


def test_a_batch_that_does_not_fit_is_refused_with_the_one_that_does(model: LanguageModel) -> None:
    memory_bytes = round(inference_bytes(model.spec, batch=2, length=60, element_bytes=4) / throughput.MEMORY_SHARE) + 1
    with pytest.raises(
        ConfigError, match=r"eval.throughput.batch = 4: expected at most 2, as weights and states of 60"
    ):
        inferred(model, memory_bytes=memory_bytes)


def test_a_prompt_as_long_as_the_total_length_is_refused(model: LanguageModel, tiny: Resolved) -> None:
    with pytest.raises(ConfigError, match="prompt = 60: expected fewer than the total length, 60"):
        measure_decoding(model, batch=1, prompt=60, length=60, repeats=Repeats(warmup=1, counted=1), peaks=PEAKS)
    with pytest.raises(ConfigError, match=r"eval.throughput.prompt = 30: expected fewer tokens than .*, 30"):
        evaluate_throughput(
            model,
            tiny.run,
            tiny.execution,
            lengths=(30, 60),
            batch=1,
            prompt=30,
            repeats=Repeats(warmup=1, counted=1),
            max_batch=None,
            memory_bytes=None,
        )


# --- a record -----------------------------------------------------------------------------------


def inferred(model: LanguageModel, *, memory_bytes: int | None = None, max_batch: int | None = None) -> Any:
    return measure_inference(
        model,
        lengths=(30, 60),
        batch=4,
        prompt=8,
        repeats=Repeats(warmup=1, counted=3),
        peaks=PEAKS,
        max_batch=max_batch,
        memory_bytes=memory_bytes,
    )


def test_the_largest_batch_is_measured_where_it_is_larger(model: LanguageModel) -> None:
    model.train()
    assert {at.largest for at in inferred(model, max_batch=4).values()} == {None}
    assert model.training
    assert [at.largest.tokens for at in inferred(model, max_batch=8).values()] == [8, 8]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_record_has_speeds_rooflines_and_what_they_were_measured_on(
    resolve: Callable[..., Resolved], dtype: str
) -> None:
    tiny = resolve(*TINY, f"dtype={dtype}")
    model = build_model(tiny.run, tiny.execution)
    metrics = evaluate_throughput(
        model,
        tiny.run,
        tiny.execution,
        lengths=(30, 60),
        batch=4,
        prompt=8,
        repeats=Repeats(warmup=1, counted=3),
        max_batch=8,
        memory_bytes=None,
    )
    assert model.embedding.dtype == torch.float32
    assert (metrics["dtype"], metrics["repeats"], metrics["warmup"]) == (dtype, 3, 1)
    assert (metrics["lengths"], metrics["prompt"], metrics["batch"]) == ([30, 60], 8, 4)
    assert metrics["largest_batches"] == [8, 8]
    assert metrics["peaks_source"].startswith(f"measured here: a {dtype} product")

    def by_length(name: str) -> list[float]:
        pairs = metrics[f"{name}_by_length"]
        assert [length for length, _ in pairs] == [30, 60]
        return [value for _, value in pairs]

    for what in ("prefill", "decode", "largest_batch_decode"):
        lists = {name: by_length(f"{what}_{name}") for name in ("tokens_per_s", "roofline_fraction", "s")}
        assert all(len(one) == 2 and min(one) > 0 for one in lists.values())
        assert metrics[f"{what}_tokens_per_s"] == statistics.fmean(lists["tokens_per_s"])
        spread = [by_length(f"{what}_{name}") for name in ("s_low", "s", "s_high")]
        assert all(low <= middle <= high for low, middle, high in zip(*spread, strict=True))
    for i, length in enumerate((30, 60)):
        assert metrics[f"decode_tokens_per_s_at_{length}"] == by_length("decode_tokens_per_s")[i]
        assert metrics[f"decode_roofline_fraction_at_{length}"] == by_length("decode_roofline_fraction")[i]
    assert metrics["train_tokens_per_s"] == pytest.approx(256 / metrics["train_step_s"])
    assert metrics["train_step_s_low"] <= metrics["train_step_s"] <= metrics["train_step_s_high"]
    full_flops = 4 * full_train_flops_per_sample(tiny.run.model, 64)
    achieved = metrics["train_mfu_percent"] / 100 * metrics["peak_flops_per_s"] * metrics["train_step_s"]
    assert achieved == pytest.approx(full_flops)
    assert metrics["train_roofline_fraction"] >= 0.999 * metrics["train_mfu_percent"] / 100
    assert metrics["train_predicted_memory_bytes"] > 0
    assert metrics["train_peak_memory_bytes"] is None  # of a process that did other things too it would say nothing


@pytest.mark.slow
def test_no_measurement_is_faster_than_its_roofline(
    resolve: Callable[..., Resolved], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond twice of it, what is counted is wrong; less may be that something else kept the machine from its peak."""
    monkeypatch.setattr(throughput, "_CPU_MATRIX", 1024)
    monkeypatch.setattr(throughput, "_CPU_COPY_BYTES", 1 << 27)
    tiny = resolve("model=mamba", "seq_len=256", "batch_tokens=2048")
    model = build_model(tiny.run, tiny.execution)
    peaks = peaks_of(torch.device("cpu"), "float32")
    found = measure_inference(
        model,
        lengths=(256,),
        batch=4,
        prompt=16,
        repeats=Repeats(warmup=1, counted=5),
        peaks=peaks,
        max_batch=None,
        memory_bytes=None,
    )[256]
    assert found.decode.roofline_fraction < 2
    assert found.prefill.roofline_fraction < 2
