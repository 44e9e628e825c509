"""How fast a run trains, and in how much memory: as it was measured on that kind of device, else as it is estimated.

A measurement belongs to a shape, all that decides the time and memory of a step, and to a device by its name. Every
finished run leaves one, and so does `sweeps.preflight`. They are numbered; of each sort the newest few are kept:

    speeds/<shape>/<device>-runs-00000001.json         the mean over the steps of a finished run's last attempt
                   <device>-preflight-00000001.json    three steps on random tokens

Which kernels `exec.kernels=auto` takes depends on what is installed. So a measurement says on which kernels and which
PyTorch it was made, and only those are looked at that were made as the newest of all was.

Where nothing was measured, GPU-hours come from a stated share of the device's published peak (MFU) in the full
convention of `hybrid.cost`. There is no such number for a processor that nobody measured, nor for float32 on a GPU,
whose published peak is for bfloat16: then the speed is unknown.
"""

import contextlib
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hybrid.cost import full_forward_flops
from hybrid.decode import canonical_json, decode, did_you_mean, digest
from hybrid.decode_cost import A100_80GB_SXM, H100_SXM, H200_SXM, DeviceSpec
from hybrid.probes import scored_positions
from hybrid.spec import ConfigError, ExecSpec, ModelSpec, RunSpec
from sweeps.progress import say
from sweeps.store import Store, now
from sweeps.text import amount, size_text

_GPUS = {"a100": A100_80GB_SXM, "h100": H100_SXM, "h200": H200_SXM}
_CPU = "cpu"
_EVALUATION_TOKENS = 16384
_GROUP, _OLD_GROUP = "sys/fs/cgroup", "sys/fs/cgroup/memory"
_CONTROL_GROUPS = (
    (f"{_GROUP}/memory.max", f"{_GROUP}/memory.current", f"{_GROUP}/memory.stat"),
    (f"{_OLD_GROUP}/memory.limit_in_bytes", f"{_OLD_GROUP}/memory.usage_in_bytes", f"{_OLD_GROUP}/memory.stat"),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run, or a preflight, found out. `device_name` is what torch calls a GPU, or the processor's name.

    `peak_memory_bytes` is what torch held at most on a GPU, and on the CPU what the process came to hold beyond what it
    held before the model was built; None where the system does not tell. `run_id` is None of a preflight. `kernels` are
    those that were taken, in words, and `torch` is its version; `validation_s` the seconds of one validation, at most;
    `beside` how many other runs of the same request ran at the same time, at the start or the end, whichever is more.
    All of them are None where nobody said.
    """

    device_name: str
    tokens_per_s: float
    peak_memory_bytes: int | None
    predicted_memory_bytes: int
    source: Literal["runs", "preflight"]
    run_id: str | None
    kernels: str | None = None
    torch: str | None = None
    validation_s: float | None = None
    beside: int | None = None
    measured_at: str = ""

    @property
    def made_with(self) -> tuple[str | None, str | None]:
        """The kernels, and the version of PyTorch."""
        return self.kernels, self.torch


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training tokens a second of a run's ranks together, None where nobody knows; `text` says how it is known.

    `peak_memory_bytes` is of one rank, as measured; None where it was not.
    """

    tokens_per_s: float | None
    peak_memory_bytes: int | None
    source: Literal["runs", "preflight", "mfu", "unknown"]
    text: str


@dataclass(frozen=True, kw_only=True)
class PlanDevice:
    """A kind of device to plan for: a100, h100, h200, or cpu, which is this machine's processor and has no `spec`."""

    kind: str
    spec: DeviceSpec | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which measurements on this kind of device are kept."""
        return (processor(),) if self.spec is None else self.spec.reported_names


def plan_device(name: str | None, execution: ExecSpec) -> PlanDevice:
    """The kind of that name; None: the processor where the run would use it, else the H100.

    Raises ConfigError for a kind that there is not.
    """
    if name is None:
        name = _CPU if execution.device == _CPU else "h100"
    if name != _CPU and name not in _GPUS:
        raise ConfigError(f"plan.device = {name}: expected a kind of device{did_you_mean(name, [*_GPUS, _CPU])}")
    return PlanDevice(kind=name, spec=_GPUS.get(name))


@lru_cache(maxsize=1)
def processor() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "a processor without a name"


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """What new processes can have without swapping: as the kernel estimates it of the machine, and at most what the
    control group of this process has left, its caches of files not counted. None where the system does not tell."""

    def read(path: str) -> str:
        try:
            return (root / path).read_text()
        except OSError:
            return ""

    def field(text: str, name: str) -> int | None:
        found = re.search(rf"^{name}:?\s+(\d+)", text, re.MULTILINE)
        return None if found is None else int(found[1])

    found = []
    kib = field(read("proc/meminfo"), "MemAvailable")
    if kib is not None:
        found.append(1024 * kib)
    for limit, used, caches in _CONTROL_GROUPS:
        if read(limit).strip().isdigit() and read(used).strip().isdigit():
            cached = field(read(caches), "(?:total_)?inactive_file") or 0
            found.append(max(0, int(read(limit)) - max(0, int(read(used)) - cached)))
    return min(found, default=None)


# --- shapes -------------------------------------------------------------------------------------


def shape_id(run: RunSpec, execution: ExecSpec) -> str:
    """12 hex digits for what decides the time and memory of a step.

    That is the model, the batch, that of validation, the dtype, how many positions of a sequence are scored, and how it
    is carried out: a `microbatch` of a rank's whole part of the batch is none, and on the CPU `kernels` auto is torch.
    Not the device, which measurements name, nor the length of the training.
    """
    microbatch, ranks = execution.microbatch, ranks_of(execution)
    whole = microbatch is None or microbatch * ranks >= run.batch_size
    rest = (
        run.seq_len,
        run.batch_tokens,
        run.dtype,
        scored_positions(run.data, run.seq_len),
        None if whole else microbatch,
        evaluation_batch_size(execution, run.seq_len),
        execution.threads,
        "torch" if execution.device == _CPU and execution.kernels == "auto" else execution.kernels,
        execution.activation_checkpointing,
        execution.ssd_chunk,
        *((execution.nodes, execution.gpus_per_node) if ranks > 1 else ()),
    )
    return _shape_id(run.model, rest)


def ranks_of(execution: ExecSpec) -> int:
    """The devices that train a run together; on the CPU, its processes."""
    return execution.nodes * execution.gpus_per_node


@lru_cache(maxsize=65536)
def _shape_id(model: ModelSpec, rest: tuple[object, ...]) -> str:
    return digest(f'{{"model":{canonical_json(model)},"rest":{canonical_json(rest)}}}')


def evaluation_batch_size(execution: ExecSpec, seq_len: int) -> int:
    """Sequences of a forward pass in validation: as `hybrid.evals.nll` has it, which needs torch."""
    return execution.microbatch or max(1, _EVALUATION_TOKENS // seq_len)


# --- what is known ------------------------------------------------------------------------------


def speed_of(store: Store, run: RunSpec, execution: ExecSpec, device: PlanDevice, mfu: float) -> Speed:
    """The run's speed on that kind of device: measured by a finished run, else by preflight, else `mfu` of its peak.

    Reads the one small directory of the run's shape. A measurement that cannot be read is named on stderr and passed
    over.
    """
    found = measurement(store, run, execution, device.names)
    if found is not None:
        return Speed(
            tokens_per_s=found.tokens_per_s,
            peak_memory_bytes=found.peak_memory_bytes,
            source=found.source,
            text=measurement_text(found),
        )
    spec = device.spec
    unmeasured = "not measured: mode=preflight measures it"
    if spec is None:
        return Speed(tokens_per_s=None, peak_memory_bytes=None, source="unknown", text=unmeasured)
    if run.dtype != spec.dtype:
        text = f"{unmeasured} ({spec.name}'s published peak is for {spec.dtype}, the run is in {run.dtype})"
        return Speed(tokens_per_s=None, peak_memory_bytes=None, source="unknown", text=text)
    full_train_flops_per_token = 3 * full_forward_flops(run.model, run.seq_len) / run.seq_len
    ranks = ranks_of(execution)
    several = f"{ranks} times " if ranks > 1 else ""
    return Speed(
        tokens_per_s=ranks * mfu * spec.flops_per_s / full_train_flops_per_token,
        peak_memory_bytes=None,
        source="mfu",
        text=f"{100 * mfu:g}% MFU of {several}{spec.name}'s {spec.flops_per_s / 1e12:.0f} TFLOP/s",
    )


def measurement_text(measured: Measured) -> str:
    """Who measured it, and on what."""
    if measured.source == "runs":
        beside = f" beside {measured.beside} more" if measured.beside else ""
        return f"measured by run {measured.run_id} on {measured.device_name}{beside}"
    return f"three steps on {measured.device_name} (preflight)"


def device_hours(train_tokens: int, speed: Speed, ranks: int = 1) -> float | None:
    """Hours of all devices of a run of so many ranks, added up, for so many tokens of training; None where nobody knows
    the speed.

    Starting, validation and checkpoints are not in it.
    """
    if speed.tokens_per_s is None:
        return None
    return ranks * train_tokens / speed.tokens_per_s / 3600


def measurement(
    store: Store,
    run: RunSpec,
    execution: ExecSpec,
    device_names: tuple[str, ...],
    made_with: tuple[str | None, str | None] | None = None,
) -> Measured | None:
    """The newest measurement of the run's shape on a device of one of these names, a run's before a preflight's.

    Of those that were made with these kernels and PyTorch; None: with those of the newest. One that does not tell them
    is taken for any. Memory and the time of validation are, where the one found does not tell, those of the newest that
    does.
    """
    found = [m for m in measurements(store, shape_id(run, execution)) if m.device_name in device_names]
    found.sort(key=lambda m: (-device_names.index(m.device_name), m.measured_at), reverse=True)
    found = [m for m in found if m.device_name == found[0].device_name]
    if not found:
        return None
    wanted = max(found, key=lambda m: m.measured_at).made_with if made_with is None else made_with
    found = [
        m for m in found if all(a is None or b is None or a == b for a, b in zip(m.made_with, wanted, strict=True))
    ]
    if not found:
        return None
    best = min(found, key=lambda m: m.source != "runs")
    return replace(
        best,
        peak_memory_bytes=next((m.peak_memory_bytes for m in [best, *found] if m.peak_memory_bytes is not None), None),
        validation_s=next((m.validation_s for m in [best, *found] if m.validation_s is not None), None),
    )


def measurements(store: Store, shape: str) -> list[Measured]:
    """All measurements of a shape, those of a sort in the order of their numbers. Those that cannot be read are named
    on stderr."""
    contents, problems = store.speeds(shape)
    found = []
    for path, content in contents:
        try:
            found.append(_read(content))
        except ConfigError as error:
            problems.append(f"{path}: damaged ({error.problems[0]})")
    for problem in problems:
        say(f"warning: passed over: {problem}")
    return found


def _read(content: Mapping[str, Any]) -> Measured:
    known = {field.name for field in fields(Measured)}
    measured = decode(Measured, {key: value for key, value in content.items() if key in known})
    if not measured.tokens_per_s > 0:
        raise ConfigError(f"tokens_per_s = {measured.tokens_per_s}: expected a number above 0")
    return measured


# --- measuring ----------------------------------------------------------------------------------


def publish_measurement(store: Store, run: RunSpec, execution: ExecSpec, measured: Measured) -> None:
    """Write the measurement down beside those before it; of its shape, device and sort the newest few are kept.

    Raises ValueError for a speed that is none, OSError where the store cannot be written to.
    """
    if not (measured.tokens_per_s > 0 and math.isfinite(measured.tokens_per_s)):
        raise ValueError(f"tokens_per_s = {measured.tokens_per_s}: expected a finite number above 0")
    device = re.sub(r"[^a-z0-9]+", "-", measured.device_name.lower()).strip("-") or "device"
    content = {**asdict(measured), "measured_at": measured.measured_at or now()}
    store.publish_speed(shape_id(run, execution), f"{device}-{measured.source}", content)


def prediction_text(record: Mapping[str, Any]) -> str | None:
    """What was predicted of a recorded run beside what came of it; None where nothing was, as in older records."""
    provenance, parts = record["provenance"], []
    predicted, peak = provenance.get("predicted_memory_bytes"), provenance.get("peak_memory_bytes")
    if predicted is not None and peak is not None:
        parts.append(f"peak memory {size_text(peak)}, predicted {size_text(predicted)} ({peak / predicted:.2f} of it)")
    before, after = provenance.get("preflight_tokens_per_s"), record["metrics"].get("tokens_per_s")
    if before is not None and after is not None:
        parts.append(f"{amount(after)} tokens/s, by preflight {amount(before)} ({after / before:.2f} of it)")
    return "; ".join(parts) or None
