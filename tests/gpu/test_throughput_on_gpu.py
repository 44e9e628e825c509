"""Speed as an evaluation on a GPU: the device's own peaks and memory, and a record as on the CPU."""

from collections.abc import Callable

import pytest
import torch

from hybrid.config import Resolved
from hybrid.evals.throughput import KNOWN_DEVICES, Repeats, evaluate_throughput, free_memory_bytes, peaks_of
from hybrid.spec import ConfigError
from hybrid.train.loop import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]


@pytest.mark.parametrize("model", ["llama", "swa", "mamba", "inter", "intra"])
def test_every_architecture_is_measured_in_bfloat16(model: str, resolve: Callable[..., Resolved]) -> None:
    resolved = resolve(f"model={model}", "exec.device=cuda", "dtype=bfloat16", "batch_tokens=2048")
    metrics = evaluate_throughput(
        build_model(resolved.run, resolved.execution),
        resolved.run,
        resolved.execution,
        lengths=(128, 256),
        batch=4,
        prompt=16,
        repeats=Repeats(warmup=2, counted=5),
        max_batch=16,
        memory_bytes=None,
    )
    known = [one for one in KNOWN_DEVICES if torch.cuda.get_device_name() in one.reported_names]
    assert metrics["peaks_source"].startswith("published" if known else "measured here")
    assert metrics["largest_batches"] == [16, 16]
    assert metrics["train_peak_memory_bytes"] > 0
    for what in ("prefill", "decode", "largest_batch_decode"):
        assert all(0 < share < 2 for _, share in metrics[f"{what}_roofline_fraction_by_length"])


def test_a_batch_that_the_free_memory_does_not_hold_is_refused(resolve: Callable[..., Resolved]) -> None:
    resolved = resolve("model=llama", "exec.device=cuda")
    free = free_memory_bytes(torch.device("cuda"))
    assert free is not None
    with pytest.raises(ConfigError, match=r"eval.throughput.batch = .*: expected at most"):
        evaluate_throughput(
            build_model(resolved.run, resolved.execution),
            resolved.run,
            resolved.execution,
            lengths=(1 << 20,),
            batch=1 << 16,
            prompt=16,
            repeats=Repeats(warmup=1, counted=1),
            max_batch=None,
            memory_bytes=None,
        )


def test_measured_peaks_are_near_the_datasheets() -> None:
    name = torch.cuda.get_device_name()
    known = next((one for one in KNOWN_DEVICES if name in one.reported_names), None)
    if known is None:
        pytest.skip(f"no datasheet of {name}")
    from hybrid.evals.throughput import measured_peaks

    published, measured = (of(torch.device("cuda"), "bfloat16") for of in (peaks_of, measured_peaks))
    assert 0.3 < measured.flops_per_s / published.flops_per_s <= 1.05
    assert 0.3 < measured.bytes_per_s / published.bytes_per_s <= 1.05
