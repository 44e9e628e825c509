"""Whether a request may start: the limits of `plan`, what goes beyond them, and what would do."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from hybrid.memory import train_memory
from hybrid.spec import ConfigError, ExecSpec, RunSpec
from sweeps.plan import Ledger, Plan, PlannedCell, ledger
from sweeps.plan_settings import PlanSettings
from sweeps.text import hours_text, size_text

_ALL_THE_SAME = "plan.yes=true starts all the same"
_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class MemoryLimit:
    """How much memory a run may take, and whose that is. One that does not bind is only said."""

    n_bytes: int
    name: str
    binds: bool


@dataclass(frozen=True, kw_only=True)
class TooLarge:
    """Missing cells that do not fit into one limit, the largest first."""

    limit: MemoryLimit
    cells: tuple[PlannedCell, ...]


def memory_limit(cell: PlannedCell, settings: PlanSettings) -> MemoryLimit | None:
    """What the cell's run has to fit into: `plan.gpu_memory`, else what its device has.

    A kind of GPU that nobody named is a guess, and does not bind. None where nobody knows.
    """
    if settings.gpu_memory_bytes is not None:
        return MemoryLimit(n_bytes=settings.gpu_memory_bytes, name="plan.gpu_memory", binds=True)
    device = cell.shape.device
    if device.spec is not None:
        named = settings.device is not None
        name = device.spec.name + ("" if named else ", which is assumed")
        return MemoryLimit(n_bytes=device.spec.memory_bytes, name=name, binds=named)
    here = machine_memory_bytes()
    runs_here = cell.run.resolved.execution.device == "cpu"
    return None if here is None else MemoryLimit(n_bytes=here, name="this machine's memory", binds=runs_here)


@lru_cache(maxsize=1)
def machine_memory_bytes() -> int | None:
    """What this machine has, or the control group that this process is in is allowed; None where it does not tell."""
    found = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            found.append(int(text))
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            found.append(1024 * int(line.split()[1]))
    return min(found, default=None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@dataclass(frozen=True, kw_only=True)
class NeededMemory:
    """The memory that a cell needs, and the run that needs it."""

    n_bytes: int
    run: RunSpec
    execution: ExecSpec


def needed_memory(cell: PlannedCell) -> NeededMemory:
    """What the cell's run needs, as measured or as predicted; of an untuned cell, the most that it may come to need."""
    mine, resolved = cell.shape.peak_memory_bytes, cell.run.resolved
    worst = NeededMemory(n_bytes=mine, run=resolved.run, execution=resolved.execution)
    if not cell.run.is_untuned:
        return worst
    known: set[tuple[object, ...]] = set()
    for candidate in cell.run.candidates:
        run, execution = candidate.resolved.run, candidate.resolved.execution
        shape = id(run.model), run.data, run.batch_tokens, run.seq_len, run.dtype, execution
        if shape not in known:
            known.add(shape)
            n_bytes = train_memory(run, execution).total_bytes
            if n_bytes > worst.n_bytes:
                worst = NeededMemory(n_bytes=n_bytes, run=run, execution=execution)
    return worst


def too_large(plan: Plan, settings: PlanSettings) -> list[TooLarge]:
    """The missing cells that need more memory than there is, as predicted or as measured."""
    found: dict[MemoryLimit, list[PlannedCell]] = {}
    for cell in plan.missing:
        limit = memory_limit(cell, settings)
        if limit is not None and needed_memory(cell).n_bytes > limit.n_bytes:
            found.setdefault(limit, []).append(cell)
    return [TooLarge(limit=limit, cells=tuple(sorted(cells, key=_largest_first))) for limit, cells in found.items()]


def _largest_first(cell: PlannedCell) -> int:
    return -needed_memory(cell).n_bytes


def too_large_text(found: TooLarge) -> str:
    """Who does not fit where, with both numbers, and what would fit."""
    sizes = {cell.label: size_text(needed_memory(cell).n_bytes) for cell in reversed(found.cells)}
    named = [f"'{label}' {size}" for label, size in reversed(sizes.items())]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return (
        f"{', '.join(named[:_MAX_NAMED])}{more}: peak memory, expected at most "
        f"{size_text(found.limit.n_bytes)} ({found.limit.name}); {_what_fits(found.cells[0], found.limit.n_bytes)}"
    )


def _what_fits(cell: PlannedCell, limit_bytes: int) -> str:
    """The settings of `exec` that change least and make the run fit."""
    needed = needed_memory(cell)
    run, execution, smallest = needed.run, needed.execution, needed.n_bytes
    # What a measurement showed to be predicted too low is so of other settings as well.
    beyond = max(1.0, cell.shape.peak_memory_bytes / cell.shape.memory.total_bytes)
    for candidate in _smaller(run.batch_size, execution):
        n_bytes = math.ceil(beyond * train_memory(run, candidate).total_bytes)
        if n_bytes <= limit_bytes:
            return f"{size_text(n_bytes)} with {_settings_text(execution, candidate)}"
        smallest = min(smallest, n_bytes)
    return f"exec can make it no smaller than {size_text(smallest)}: it takes a larger device, or a smaller model"


def _smaller(batch_size: int, execution: ExecSpec) -> list[ExecSpec]:
    """Fewer sequences a forward pass, then activation checkpointing, which costs a third more time."""
    now = execution.microbatch
    halves = [batch_size // 2**k for k in range(batch_size.bit_length())]
    # To say the whole batch is not the same as to say nothing: validation then keeps to it as well.
    halves = [size for size in halves if now is None or size < now]
    found = [replace(execution, microbatch=size) for size in halves]
    if execution.activation_checkpointing:
        return found
    checkpointed = replace(execution, activation_checkpointing=True)
    return [*found, checkpointed, *(replace(checkpointed, microbatch=size) for size in halves)]


def _settings_text(before: ExecSpec, after: ExecSpec) -> str:
    changed = [f"exec.microbatch={after.microbatch}"] if after.microbatch != before.microbatch else []
    if after.activation_checkpointing != before.activation_checkpointing:
        changed.append("exec.activation_checkpointing=true")
    return " ".join(changed)


def beyond_limits(plan: Plan, settings: PlanSettings, totals: Ledger) -> list[str]:
    """Every limit that the request goes beyond, those of memory first."""
    problems = [too_large_text(found) for found in too_large(plan, settings) if found.limit.binds]
    runs = totals.to_pay.runs
    if settings.max_runs is not None and runs > settings.max_runs:
        problems.append(
            f"plan.max_runs = {settings.max_runs}: to be trained: {runs}; ask for fewer (sweep.only, sweep.seeds), or "
            "allow as many"
        )
    if settings.max_gpu_hours is not None and runs:
        problems += _beyond_hours(settings.max_gpu_hours, plan, totals)
    disk = totals.disk_bytes
    if settings.max_disk_bytes is not None and disk > settings.max_disk_bytes:
        problems.append(
            f"plan.max_disk = {size_text(settings.max_disk_bytes)}: checkpoints and weights take up to "
            f"{size_text(disk)}, of which {size_text(totals.kept_bytes)} stay; ask for fewer runs, or allow as much"
        )
    return problems


def limits_text(plan: Plan, settings: PlanSettings) -> list[str]:
    """What goes beyond the limits, and what does not fit where nobody said that it has to: a line each."""
    notes = [too_large_text(found) for found in too_large(plan, settings) if not found.limit.binds]
    return [*notes, *(f"beyond the limits: {problem}" for problem in beyond_limits(plan, settings, ledger(plan)))]


def _beyond_hours(limit: float, plan: Plan, totals: Ledger) -> list[str]:
    problems = []
    known = math.fsum(hours.known for hours in totals.to_pay.hours.values())
    unknown = sum(cell.shape.speed.tokens_per_s is None for cell in plan.missing)
    unit = next(iter(totals.to_pay.hours)) if len(totals.to_pay.hours) == 1 else "device-hours"
    if known > limit:
        problems.append(
            f"plan.max_gpu_hours = {limit:g}: to be paid: {hours_text(known)} {unit}; ask for fewer or shorter runs, "
            "or allow as many"
        )
    if unknown:
        problems.append(
            f"plan.max_gpu_hours = {limit:g}: nobody has measured how long {unknown} of {totals.to_pay.runs} runs "
            "take; mode=preflight does, in three steps of each shape"
        )
    return problems


def check_limits(plan: Plan, settings: PlanSettings) -> None:
    """Raises ConfigError where the request goes beyond a limit, unless `plan.yes` lets it."""
    problems = [] if settings.yes else beyond_limits(plan, settings, ledger(plan))
    if problems:
        raise ConfigError([*problems, f"nothing was started; {_ALL_THE_SAME}"])
