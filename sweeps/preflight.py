"""Three steps of every distinct shape of a request, on the device that its runs would use, before anything is queued.

Each shape has a process of its own, so that one that runs out of memory takes nothing else with it. What is measured is
published at once (`sweeps.speed`): a shape that is known already, from a run or an earlier preflight on the same
device with the same kernels and PyTorch, is not measured again, and after an interrupt what was measured stays.
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hybrid.memory import train_memory
from hybrid.spec import ConfigError, ExecSpec, RunSpec
from sweeps.cells import CellRun
from sweeps.exits import explain_failure
from sweeps.launch.processes import fork_server, unblock_signals
from sweeps.progress import PLAIN_EVERY_S, say
from sweeps.speed import (
    Measured,
    available_memory_bytes,
    measurement,
    measurement_text,
    processor,
    publish_measurement,
    ranks_of,
    shape_id,
)
from sweeps.stopping import StopFlag
from sweeps.store import Store, describe_os_error
from sweeps.text import amount, duration, size_text, table
from sweeps.worker.measuring import device_name, made_with, preflight_one

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_INTERRUPTED = 130

MARGIN = 1.25
START_S = 300
"""Of a time limit: Python and torch are loaded, data are opened, a checkpoint is read, kernels are compiled."""

VALIDATION_TOKENS = 65536
"""As in `hybrid.train.loop`, which needs torch."""

_LOOK_AGAIN_S = 0.5


@dataclass(kw_only=True)
class _Shape:
    """Runs of one shape on one device, and what is known of them: a measurement, or why there is none.

    `names` are the cells', by the length of their training in tokens and the validations made in it.
    """

    run: RunSpec
    execution: ExecSpec
    device_name: str
    made_with: tuple[str, str | None]
    predicted_bytes: int
    names: dict[tuple[int, float], list[str]] = field(default_factory=dict)
    measured: Measured | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The first cell's, and how many more there are."""
        return _with_more([name for names in self.names.values() for name in names])


def preflight(runs: Sequence[CellRun], store: Store, *, as_json: bool = False, again: bool = False) -> int:
    """Measure what is not known of these runs' shapes, or all of it `again`, and print it for all; gives the exit code.

    A table, or a JSON list of its lines in full precision. Raises ConfigError where this machine does not have the
    device or the kernels, before anything is measured.
    """
    if any(ranks_of(run.resolved.execution) > 1 for run in runs):
        raise ConfigError(
            "mode = preflight: expected exec.nodes=1 and exec.gpus_per_node=1: it measures one rank here; several are "
            "started by hydra/launcher=slurm, and measured by the first run"
        )
    store.prepare()
    stop = StopFlag()
    with stop.on_signals():
        context = fork_server()
        shapes = _shapes(runs, context, stop)
        if stop.reason is None:
            _measure_missing(shapes, store, context, stop, again)
    print(json.dumps(_as_json(shapes), indent=1) if as_json else _table(shapes))
    failed = [shape.name for shape in shapes if shape.problem is not None]
    if failed:
        say(f"not measured, of {len(shapes)} shape{'s' * (len(shapes) != 1)}: {', '.join(failed)}")
    if stop.reason is not None:
        say(f"{stop.reason}: what was measured is kept; the same command goes on with the rest")
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if failed else EXIT_OK


def time_limit_s(train_tokens: int, tokens_per_s: float, *, validations: float, validation_s: float | None) -> int:
    """What to ask a scheduler for, in whole minutes: the start, and a quarter more than steps and validations take.

    The quarter is for checkpoints, and nodes that are slower than this one. A validation of unknown time is taken to be
    no faster than training.
    """
    if validation_s is None:
        validation_s = VALIDATION_TOKENS / tokens_per_s
    return 60 * math.ceil((START_S + MARGIN * (train_tokens / tokens_per_s + validations * validation_s)) / 60)


def n_validations(run: RunSpec, execution: ExecSpec) -> float:
    """How many validations a run makes, the one at its end and those on the way; a stop rule's by their sequences."""
    if run.stop is not None:
        rounds = run.train_tokens // run.stop.every_tokens
        return 1 + rounds * run.stop.examples / max(1, VALIDATION_TOKENS // run.seq_len)
    return 1 + (run.train_tokens // execution.eval_every_tokens if execution.eval_every_tokens else 0)


def _shapes(runs: Sequence[CellRun], context: Any, stop: StopFlag) -> list[_Shape]:
    """The distinct shapes, in the order of their first cells. Of an untuned cell those of all that it may become."""
    found: dict[tuple[str, str], tuple[str, tuple[str, str | None]]] = {}
    shapes: dict[tuple[str, str], _Shape] = {}
    for cell in (candidate for run in runs for candidate in (run.candidates or (run,))):
        run, execution = cell.resolved.run, cell.resolved.execution
        asked = execution.device, execution.kernels
        if asked not in found:
            found[asked] = _surroundings(execution, context, stop)
        device, made_with = found[asked]
        key = (shape_id(run, execution), device)
        if key not in shapes:
            predicted = train_memory(run, execution).total_bytes
            shapes[key] = _Shape(
                run=run, execution=execution, device_name=device, made_with=made_with, predicted_bytes=predicted
            )
        names = shapes[key].names.setdefault((run.train_tokens, n_validations(run, execution)), [])
        if cell.cell.name not in names:
            names.append(cell.cell.name)
    return list(shapes.values())


def _surroundings(execution: ExecSpec, context: Any, stop: StopFlag) -> tuple[str, tuple[str, str | None]]:
    """The device's name, and kernels and PyTorch; of a GPU asked of a process of its own, as this one has no torch."""
    if execution.device == "cpu":
        return processor(), made_with(execution)
    found = _in_a_process(context, _look_around, (execution,), "a look at the device", stop)
    if isinstance(found, _Failure):
        raise KeyboardInterrupt if stop.reason is not None else ConfigError(found.message)
    name, kernels, torch_version = found
    return name, (kernels, torch_version)


def _measure_missing(shapes: Sequence[_Shape], store: Store, context: Any, stop: StopFlag, again: bool) -> None:
    for number, shape in enumerate(shapes, start=1):
        if stop.reason is not None:
            return
        place = f"[{number}/{len(shapes)}] {shape.name}"
        if not again:
            shape.measured = measurement(store, shape.run, shape.execution, (shape.device_name,), shape.made_with)
        if shape.measured is not None:
            say(f"{place}: known already: {measurement_text(shape.measured)}")
            continue
        shape.problem = _too_large(shape)
        if shape.problem is None:
            say(f"{place}: three steps on {shape.device_name}")
            arguments = (shape.run, shape.execution)
            found = _in_a_process(context, _measure, arguments, place, stop)
            if isinstance(found, _Failure):
                # What an interrupt ended has not failed.
                shape.problem = found.message if stop.reason is None else None
            else:
                shape.measured = found
                say(f"{place}: {amount(found.tokens_per_s)} tokens/s")
                _keep(shape, found, store)
        if shape.problem is not None:
            say(f"{place}: {shape.problem}")


def _keep(shape: _Shape, found: Measured, store: Store) -> None:
    """A store that cannot be written to costs the measurement its place there, not in this table."""
    try:
        publish_measurement(store, shape.run, shape.execution, found)
    except OSError as error:
        say(f"warning: {shape.name}: the measurement is not kept: {describe_os_error(error)}")


def _too_large(shape: _Shape) -> str | None:
    """Why the shape is not even tried; only the CPU's memory is everybody's, a GPU says by itself when it is full."""
    available = available_memory_bytes()
    if shape.execution.device != "cpu" or available is None or shape.predicted_bytes <= available:
        return None
    return (
        f"not started: predicted to need {size_text(shape.predicted_bytes)} of memory, of which this machine has "
        f"{size_text(available)} available; a smaller exec.microbatch or exec.activation_checkpointing=true needs less"
    )


# --- processes ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """Why a process came to nothing."""

    message: str


def _in_a_process(context: Any, work: Any, arguments: tuple[Any, ...], place: str, stop: StopFlag) -> Any:
    """What `work` comes to, its progress said on the way; a _Failure where it fails, dies, or is stopped."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, work, arguments), name=place)
    process.start()
    theirs.close()
    results: list[Any] = []
    said = time.monotonic()

    def listen() -> None:
        nonlocal said
        with contextlib.suppress(EOFError, OSError):
            while ours.poll():
                message = ours.recv()
                if not isinstance(message, _Said):
                    results.append(message)
                elif time.monotonic() - said > PLAIN_EVERY_S:
                    said = time.monotonic()
                    say(f"{place}: {message.line}")

    while process.exitcode is None:
        wait([process.sentinel] if results else [ours, process.sentinel], timeout=_LOOK_AGAIN_S)
        listen()
        if stop.reason is not None:
            process.kill()
            break
    process.join()
    listen()
    ours.close()
    return results[-1] if results else _Failure(message=_died(process.exitcode or 0))


def _died(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed by signal 9: most likely it ran out of memory"
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code} and no result"


@dataclass(frozen=True, kw_only=True)
class _Said:
    line: str


def _child(pipe: "Connection[Any, Any]", work: Any, arguments: tuple[Any, ...]) -> None:
    """The whole life of a process; an interrupt of the terminal is for the parent, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    unblock_signals()
    os.dup2(2, 1)  # stdout is for the table
    with contextlib.suppress(OSError):
        # Where memory runs out, this process is to go, and not the one that tells the tale.
        Path("/proc/self/oom_score_adj").write_text("1000")

    def tell(line: str) -> None:
        try:
            pipe.send(_Said(line=line))
        except OSError:
            sys.exit(EXIT_INTERRUPTED)  # nobody waits any more

    try:
        result = work(*arguments, tell)
    except Exception as error:
        result = _Failure(message=" ".join(explain_failure(error).split()))
    with contextlib.suppress(OSError):
        pipe.send(result)


def _look_around(execution: ExecSpec, _tell: Any) -> tuple[str, str, str | None]:
    return device_name(execution), *made_with(execution)


def _measure(run: RunSpec, execution: ExecSpec, tell: Any) -> Measured:
    return preflight_one(run, execution, tell)


# --- the table ----------------------------------------------------------------------------------


_SMALL_PRINT = (
    "tokens/s: the median of two steps after one that warms up, of at most 4 microbatches; forward and backward of the "
    "whole batch in proportion, one update. Memory: predicted, and as measured (on a GPU what PyTorch held at most; on "
    "the CPU by how much the process grew, of which the C library's allocator keeps a part). "
    "hours: of training alone; time limit: a quarter more than training and validation take, and 5 minutes to start."
)


def _table(shapes: Sequence[_Shape]) -> str:
    header = ["cells", "tokens", "tokens/s", "predicted", "measured", "ratio", "hours", "time limit", "known from"]
    rows = [_line(shape, names, *length) for shape in shapes for length, names in sorted(shape.names.items())]
    return "\n".join([table(header, rows), "", _SMALL_PRINT])


def _as_json(shapes: Sequence[_Shape]) -> list[dict[str, Any]]:
    """The table's lines as data: bytes, seconds, tokens a second; null where it was not measured, and why in
    `problem`."""
    return [
        {
            "cells": names,
            "train_tokens": train_tokens,
            "validations": validations,
            "device": shape.device_name,
            "tokens_per_s": None if measured is None else measured.tokens_per_s,
            "predicted_memory_bytes": shape.predicted_bytes,
            "measured_memory_bytes": None if measured is None else measured.peak_memory_bytes,
            "training_s": None if measured is None else train_tokens / measured.tokens_per_s,
            "validation_s": None if measured is None else measured.validation_s,
            "time_limit_s": None if measured is None else _time_limit_s(measured, train_tokens, validations),
            "source": None if measured is None else measured.source,
            "known_from": None if measured is None else measurement_text(measured),
            "kernels": None if measured is None else measured.kernels,
            "torch": None if measured is None else measured.torch,
            "problem": shape.problem,
        }
        for shape in shapes
        for measured in (shape.measured,)
        for (train_tokens, validations), names in sorted(shape.names.items())
    ]


def _time_limit_s(measured: Measured, train_tokens: int, validations: float) -> int:
    return time_limit_s(
        train_tokens, measured.tokens_per_s, validations=validations, validation_s=measured.validation_s
    )


def _line(shape: _Shape, names: Sequence[str], train_tokens: int, validations: float) -> list[str]:
    """A line for the runs of one shape and one length."""
    measured = shape.measured
    start = [_with_more(names), amount(train_tokens)]
    if measured is None:
        why = "not measured" if shape.problem is None else shape.problem.partition(":")[0]
        return [*start, "-", size_text(shape.predicted_bytes), "-", "-", "-", "-", why]
    peak, seconds = measured.peak_memory_bytes, train_tokens / measured.tokens_per_s
    return [
        *start,
        amount(measured.tokens_per_s),
        size_text(shape.predicted_bytes),
        "-" if peak is None else size_text(peak),
        "-" if peak is None else f"{peak / shape.predicted_bytes:.2f}",
        f"{seconds / 3600:.3g}",
        duration(_time_limit_s(measured, train_tokens, validations)),
        measurement_text(measured),
    ]


def _with_more(names: Sequence[str]) -> str:
    return names[0] + (f" (+{len(names) - 1})" if len(names) > 1 else "")
