"""The settings of `hydra/launcher=slurm`, read: all that is wrong is said at once."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from hybrid.decode import decode
from hybrid.spec import ConfigError

WHERE = "hydra.launcher"
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_MEMORY = re.compile(r"\d+(\.\d+)?\s*[KMGT]?B?", re.IGNORECASE)
# What the launcher says itself, with the setting that changes it.
_OURS = {
    "array": "array_size or throttle",
    "job-name": "nothing: a job is found again by its name",
    "output": "nothing: it is beside the submission, in the store",
    "error": "nothing: it goes where the output goes",
    "open-mode": "nothing: a requeued task appends",
    "signal": "grace_s",
    "requeue": "nothing: tasks are requeued",
    "no-requeue": "nothing: tasks are requeued",
    "dependency": "nothing: the launcher has its own",
    "kill-on-invalid-dep": "nothing: the launcher has its own",
    "export": "setup",
    "wait": "exec.wait",
    "test-only": "mode=plan",
    "parsable": "nothing: the launcher reads the answer",
    "wrap": "nothing: the launcher has its own script",
    "clusters": "nothing: the cluster is that of the commands on the PATH",
    "nodes": "exec.nodes",
    "ntasks": "exec.nodes and exec.gpus_per_node",
    "ntasks-per-node": "exec.gpus_per_node",
    "gpus-per-node": "exec.gpus_per_node",
    **{name: name for name in ("partition", "account", "qos", "time", "mem", "constraint")},
    "cpus-per-task": "cpus_per_task",
}


@dataclass(frozen=True, kw_only=True)
class _Config:
    """As users write them."""

    partition: str | None
    account: str | None
    qos: str | None
    time: Any
    mem: Any
    cpus_per_task: int | None
    constraint: str | None
    setup: tuple[str, ...]
    sbatch: Any
    throttle: int | None
    runs_per_gpu: int
    priority: Any
    grace_s: int
    array_size: int | None
    evaluate: bool
    snapshot: bool
    python: str | None


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """The launcher's settings. None leaves it to Slurm, of `cpus_per_task` to exec.threads, of `python` to the
    interpreter that submits; `sbatch` are more options by their long names, None a flag without a value."""

    partition: str | None
    account: str | None
    qos: str | None
    time_min: int | None
    mem: str | None
    cpus_per_task: int | None
    constraint: str | None
    setup: tuple[str, ...]
    sbatch: Mapping[str, str | None]
    throttle: int | None
    runs_per_gpu: int
    priority: Mapping[str, float]
    grace_s: int
    array_size: int | None
    evaluate: bool
    snapshot: bool
    python: str | None


def read_slurm_settings(config: object) -> tuple[SlurmSettings, list[str]]:
    """The settings, and a line for each thing wrong with them; of those that are wrong the default stands.

    Raises ConfigError where they are no settings of this launcher at all.
    """
    given, problems = _decoded(config)

    def refuse(name: str, value: object, expected: str) -> None:
        problems.append(f"{WHERE}.{name} = {value!r}: expected {expected}")

    for name in ("cpus_per_task", "throttle", "runs_per_gpu", "grace_s", "array_size"):
        value = getattr(given, name)
        if value is not None and value < 1:
            refuse(name, value, "a whole number of at least 1")
            given = replace(given, **{name: _NEUTRAL[name]})
    for name in ("partition", "account", "qos", "constraint", "python"):
        value = getattr(given, name)
        if value is not None and (not value.strip() or "\n" in value):
            refuse(name, value, "a text on one line, or null for Slurm's default")
            given = replace(given, **{name: _NEUTRAL[name]})
    time_min = None
    if given.time is not None:
        time_min = minutes_of(given.time)
        if time_min is None:
            refuse(
                "time", given.time, 'minutes (90), or "2:30:00" or "1-12:00:00" (in quotes where it stands in a file)'
            )
    if given.mem is not None and not _MEMORY.fullmatch(str(given.mem)):
        refuse("mem", given.mem, "memory of a node such as 64GB")
        given = replace(given, mem=None)
    options: dict[str, str | None] = {}
    if not isinstance(given.sbatch, Mapping | None):
        refuse("sbatch", given.sbatch, "options of sbatch, such as {reservation: paper}")
    else:
        for key, value in (given.sbatch or {}).items():
            option = str(key).lstrip("-").replace("_", "-")
            if option in _OURS:
                refuse(f"sbatch.{key}", value, f"an option that the launcher does not set itself; use {_OURS[option]}")
            elif (
                not re.fullmatch(r"[a-z][a-z0-9-]*", option) or "\n" in str(value) or isinstance(value, list | Mapping)
            ):
                refuse(f"sbatch.{key}", value, "a long option of sbatch with a value on one line, or null for a flag")
            else:
                options[option] = None if value is None or value is True else str(value)
    priority: dict[str, float] = {}
    if not isinstance(given.priority, Mapping | None):
        refuse("priority", given.priority, "rows and numbers, such as {Llama: 1}")
    else:
        for row, number in (given.priority or {}).items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                refuse(f"priority.{row}", number, "a number: rows with greater ones first")
            else:
                priority[str(row)] = float(number)
    if any("\n" in line for line in given.setup):
        refuse("setup", list(given.setup), "a list of lines")
        given = replace(given, setup=())
    settings = SlurmSettings(
        partition=given.partition,
        account=given.account,
        qos=given.qos,
        time_min=time_min,
        mem=None if given.mem is None else _mem(str(given.mem)),
        cpus_per_task=given.cpus_per_task,
        constraint=given.constraint,
        setup=given.setup,
        sbatch=options,
        throttle=given.throttle,
        runs_per_gpu=given.runs_per_gpu,
        priority=priority,
        grace_s=given.grace_s,
        array_size=given.array_size,
        evaluate=given.evaluate,
        snapshot=given.snapshot,
        python=given.python,
    )
    return settings, problems


_NEUTRAL: Mapping[str, Any] = {
    **dict.fromkeys(("partition", "account", "qos", "time", "mem", "cpus_per_task", "constraint", "sbatch"), None),
    **dict.fromkeys(("throttle", "priority", "array_size", "python"), None),
    "setup": (),
    "runs_per_gpu": 1,
    "grace_s": 1,
    "evaluate": False,
    "snapshot": False,
}
"""What takes the place of a wrong setting while others are looked at, so that all is said at once."""


def _decoded(config: object) -> tuple[_Config, list[str]]:
    try:
        return decode(_Config, config, WHERE), []
    except ConfigError as error:
        if not isinstance(config, Mapping):
            raise
        problems = list(error.problems)
    hints = get_type_hints(_Config)
    read = {name: _alone(hints[name], config.get(name), neutral) for name, neutral in _NEUTRAL.items()}
    return _Config(**read), problems


def _alone(kind: Any, value: object, neutral: object) -> Any:
    try:
        return decode(kind, value)
    except ConfigError:
        return neutral


def minutes_of(given: object) -> int | None:
    """Whole minutes of what --time takes: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on.

    None for anything else, and for no time at all. Seconds are rounded up.
    """
    if isinstance(given, bool):
        return None
    if isinstance(given, int | float):
        return math.ceil(given) if math.isfinite(given) and given > 0 else None
    found = _TIME.fullmatch(str(given).strip())
    if found is None:
        return None
    parts = [int(found[name]) for name in ("first", "second", "third") if found[name] is not None]
    if found["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        seconds += 60 * (minutes + 60 * (hours + 24 * int(found["days"])))
    elif len(parts) == 3:
        seconds = 3600 * parts[0] + 60 * parts[1] + parts[2]
    else:
        seconds = 60 * parts[0] + sum(parts[1:])
    return math.ceil(seconds / 60) or None


def _mem(text: str) -> str:
    """As --mem takes it: 64GB is 64G."""
    return re.sub(r"[\sB]", "", text.upper())
