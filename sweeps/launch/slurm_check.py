"""What of the launcher's settings cannot be meant, and what the cluster would not take: all of it at once."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid.decode import did_you_mean
from sweeps.cells import CellRun
from sweeps.launch.slurm_script import Shape, on_one_device, script_text
from sweeps.launch.slurm_settings import WHERE, SlurmSettings
from sweeps.scheduler import NoAnswerError, SchedulerError, Slurm
from sweeps.speed import ranks_of


def known(settings: SlurmSettings, slurm: Slurm) -> tuple[SlurmSettings, list[str]]:
    """The settings without what the cluster does not have, and a line for each of these."""
    problems = []
    asks = {"partition": slurm.partitions, "account": slurm.accounts, "qos": slurm.qos}
    for name, ask in asks.items():
        given = getattr(settings, name)
        if given is None:
            continue
        names = ask()
        missing = [] if names is None else [part for part in given.split(",") if part not in names]
        problems += [
            f"{WHERE}.{name} = {part}: not of this cluster{did_you_mean(part, names or ())}" for part in missing
        ]
        if missing:
            settings = _with(settings, {name: None})
    return settings, problems


def _with(settings: SlurmSettings, changes: Mapping[str, Any]) -> SlurmSettings:
    return replace(settings, **changes)


def problems_with_runs(settings: SlurmSettings, runs: Sequence[CellRun]) -> list[str]:
    """What the settings cannot mean for these cells."""
    problems = []
    if not runs:
        return []
    rows = {run.cell.row for run in runs}
    problems += [
        f"{WHERE}.priority.{row} = {number:g}: no such row{did_you_mean(row, rows)}"
        for row, number in settings.priority.items()
        if row not in rows
    ]
    executions = {run.resolved.execution for run in runs}
    if settings.runs_per_gpu > 1 and any(ranks_of(execution) > 1 for execution in executions):
        problems.append(
            f"{WHERE}.runs_per_gpu = {settings.runs_per_gpu}: expected 1, as each run has several ranks (exec.nodes, "
            "exec.gpus_per_node)"
        )
    slowest = max(execution.checkpoint_every_s for execution in executions)
    if settings.time_min is not None and 60 * settings.time_min < slowest + settings.grace_s:
        problems.append(
            f"{WHERE}.time = {settings.time_min} minutes: expected at least one checkpoint interval and the grace "
            f"before the limit, exec.checkpoint_every_s = {slowest:g} and {WHERE}.grace_s = {settings.grace_s}: "
            f"{math.ceil((slowest + settings.grace_s) / 60)} minutes"
        )
    return problems


_OPTIONAL = {
    **{name: name for name in ("partition", "account", "qos", "mem", "cpus_per_task", "constraint")},
    "time_min": "time",
}
"""Settings that are left to Slurm where they are null, by their names for users."""


def refused(settings: SlurmSettings, slurm: Slurm, runs: Sequence[CellRun]) -> list[str]:
    """What the scheduler says of jobs as the settings would make them: of each setting by which it takes none.

    Raises NoAnswerError where it says nothing.
    """
    shapes: dict[Shape, None] = {}
    for execution, count in Counter(run.resolved.execution for run in runs).items():
        side_by_side = min(settings.runs_per_gpu, count)
        shapes[Shape.of(settings, execution, side_by_side)] = None
        if settings.evaluate:
            shapes[Shape.of(settings, on_one_device(execution), side_by_side)] = None
    if not runs:
        shapes[Shape(nodes=1, ranks_per_node=1, cpus_per_rank=settings.cpus_per_task or 1, on_gpu=False)] = None
    problems: list[str] = []
    for shape in shapes:
        said = _said_of(settings, shape, slurm)
        if said is None:
            continue
        bare = _with(settings, {"sbatch": {}, **dict.fromkeys(_OPTIONAL, None)})
        alone = {
            f"{WHERE}.{name} = {getattr(settings, field)}": _with(bare, {field: getattr(settings, field)})
            for field, name in _OPTIONAL.items()
            if getattr(settings, field) is not None
        }
        alone |= {
            f"{WHERE}.sbatch.{option} = {value}": replace(bare, sbatch={option: value})
            for option, value in settings.sbatch.items()
        }
        without = _said_of(bare, shape, slurm)
        found = {what: _said_of(one, shape, slurm) for what, one in alone.items()}
        told = [f"{what}: {why}" for what, why in found.items() if why not in (None, without)]
        problems += told or [f"the scheduler would not take these jobs ({shape.words}): {said}"]
    return list(dict.fromkeys(problems))


def _said_of(settings: SlurmSettings, shape: Shape, slurm: Slurm) -> str | None:
    """Why the scheduler would not take such a job; None where it would."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "script.sh"
        script.write_text(script_text(settings, shape, "check", Path(directory), 1, {}, (), "true"))
        try:
            slurm.check(script)
        except NoAnswerError:
            raise
        except SchedulerError as error:
            return re.sub(r"^sbatch --test-only \S+: ", "", str(error))
    return None
