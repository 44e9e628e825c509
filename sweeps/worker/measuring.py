"""What a run says of its speed and memory, and the few steps that measure them beforehand."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybrid import outside
from hybrid.memory import train_memory
from hybrid.spec import ExecSpec, RunSpec
from sweeps.provenance import package_version
from sweeps.speed import Measured, measurements, processor, publish_measurement, ranks_of, shape_id
from sweeps.store import Store
from sweeps.worker.attempts import Log, Observer

_STEPS_TO_MEASURE = 10  # fewer say more about the first of them, which warms up, than about the others


class Measuring:
    """What a run says of its speed and memory: made before its model is, so that its memory can be told.

    On the CPU it can be told only of a process of its own: another has memory to spare of what it did before.
    """

    def __init__(self, store: Store, run: RunSpec, execution: ExecSpec, own_process: bool) -> None:
        from hybrid.train.preflight import PeakMemory

        self._store, self._run, self._execution = store, run, execution
        self._predicted_bytes = train_memory(run, execution).total_bytes
        self._device_name = device_name(execution)
        self._preflight_tokens_per_s: float | None = None
        with contextlib.suppress(OSError):  # it would be good to know
            for known in measurements(store, shape_id(run, execution)):
                if known.source == "preflight" and known.device_name == self._device_name:
                    self._preflight_tokens_per_s = known.tokens_per_s
        # Ranks have their siblings from srun, and are no other runs.
        self._has_siblings = own_process and ranks_of(execution) == 1
        self._beside = _siblings() if self._has_siblings else None
        self._memory = PeakMemory(execution) if own_process or execution.device != "cpu" else None
        self._peak_bytes: int | None = None

    def facts(self) -> dict[str, Any]:
        """For the record's provenance, once training has ended: what was predicted, and what came of it."""
        self._peak_bytes = None if self._memory is None else self._memory.peak_bytes()
        return {
            "device_name": self._device_name,
            "predicted_memory_bytes": self._predicted_bytes,
            "peak_memory_bytes": self._peak_bytes,
            "preflight_tokens_per_s": self._preflight_tokens_per_s,
        }

    def publish(self, run_id: str, observer: Observer, log: Log) -> None:
        """For plans to come, if this attempt made steps enough. A store that is full is no reason to fail: the run has
        its record."""
        if observer.own_steps < _STEPS_TO_MEASURE:
            return
        beside = [n for n in (self._beside, _siblings() if self._has_siblings else None) if n is not None]
        kernels, torch_version = made_with(self._execution)
        measured = Measured(
            device_name=self._device_name,
            tokens_per_s=observer.tokens_per_s,
            peak_memory_bytes=self._peak_bytes,
            predicted_memory_bytes=self._predicted_bytes,
            source="runs",
            run_id=run_id,
            kernels=kernels,
            torch=torch_version,
            beside=max(beside, default=None),
        )
        try:
            publish_measurement(self._store, self._run, self._execution, measured)
        except (OSError, ValueError) as error:
            log(f"its speed is not kept: {error}")


def _siblings() -> int | None:
    """How many other processes this one's parent has, as a pool's runs have one parent; None where nobody tells."""
    found, parent = 0, os.getppid()
    try:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                # After the name, which may hold anything: state, parent.
                state, of = (process / "stat").read_text().rpartition(")")[2].split()[:2]
                found += int(of) == parent and state not in "ZX" and int(process.name) != os.getpid()
    except OSError:
        return None
    return found if Path("/proc/self/stat").exists() else None


def made_with(execution: ExecSpec) -> tuple[str, str | None]:
    """The kernels that a run would take here, in words with their packages' versions, and PyTorch's version.

    Raises ConfigError where the device or the kernels cannot be had.
    """
    if execution.device == "cpu":
        return "torch", package_version("torch")
    import torch

    from hybrid.ops.kernels import select

    taken = select(execution.kernels, torch.device(execution.device))
    packages = {"triton": "mamba_ssm", "causal_conv1d": "causal_conv1d", "flash_attn": "flash_attn"}
    versions = {
        kernels: package_version(packages[kernels]) for kernels in asdict(taken).values() if kernels in packages
    }
    words = (f"{what} {kernels} {versions.get(kernels) or ''}".strip() for what, kernels in asdict(taken).items())
    return ", ".join(words), package_version("torch")


def device_name(execution: ExecSpec) -> str:
    """What torch calls the GPU that a run would use, or the name of the processor.

    Raises ConfigError where there is no such device.
    """
    if execution.device == "cpu":
        return processor()
    import torch

    from hybrid.train.loop import numerics

    with numerics(execution, seed=0):
        return str(torch.cuda.get_device_name(execution.device))


def preflight_one(run: RunSpec, execution: ExecSpec, done: Callable[[str], object]) -> Measured:
    """Three steps of the run on random tokens: see `hybrid.train.preflight`. `done` is told of each, in a line.

    In a process of its own. Raises ConfigError where there is no such device, and whatever goes wrong.
    """
    from hybrid.train.preflight import STEPS, PeakMemory, StepTime, timed_steps, tokens_per_s

    outside.load(execution.mixers)  # this process may not be the one that read the configuration
    predicted = train_memory(run, execution).total_bytes
    name = device_name(execution)
    kernels, torch_version = made_with(execution)
    memory = PeakMemory(execution)

    def tell(step: int, time: StepTime) -> None:
        part = "" if time.sequences == run.batch_size else f" with {time.sequences} of {run.batch_size} sequences"
        done(f"step {step + 1} of {STEPS}{part}: {time.forward_backward_s + time.update_s:.3g} s")

    timed = timed_steps(run, execution, done=tell)
    return Measured(
        device_name=name,
        tokens_per_s=tokens_per_s(run, timed.steps),
        peak_memory_bytes=memory.peak_bytes(),
        predicted_memory_bytes=predicted,
        source="preflight",
        run_id=None,
        kernels=kernels,
        torch=torch_version,
        validation_s=timed.validation_s,
    )
