"""The script that sbatch is given, by submitit, and what of the cluster its tasks take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybrid.spec import ExecSpec
from sweeps.launch.slurm_settings import SlurmSettings


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a task of a job takes of the cluster."""

    nodes: int
    ranks_per_node: int
    cpus_per_rank: int
    on_gpu: bool

    @classmethod
    def of(cls, settings: SlurmSettings, execution: ExecSpec, side_by_side: int) -> "Shape":
        """A core for each thread of the runs that a task carries out side by side, unless it is said how many."""
        return cls(
            nodes=execution.nodes,
            ranks_per_node=execution.gpus_per_node,
            cpus_per_rank=settings.cpus_per_task or execution.threads * side_by_side,
            on_gpu=execution.device.startswith("cuda"),
        )

    @property
    def words(self) -> str:
        gpus = f", {self.ranks_per_node} GPUs on each" if self.on_gpu else ""
        return f"nodes: {self.nodes}, cores on each: {self.ranks_per_node * self.cpus_per_rank}{gpus}"


def script_text(
    settings: SlurmSettings,
    shape: Shape,
    name: str,
    directory: Path,
    tasks: int,
    options: Mapping[str, Any],
    setup: Sequence[str],
    command: str,
) -> str:
    """What sbatch is given, by submitit, to have `command` in an array of so many tasks that print to `directory`."""
    import submitit

    executor = submitit.SlurmExecutor(folder=directory)
    plain = str(directory).replace("%", "%%")  # which stands for itself in the names that Slurm makes
    more: dict[str, Any] = {"output": f"{plain}/%A_%a.out", "requeue": True, **options}
    more |= {key: True if value is None else value for key, value in settings.sbatch.items()}
    parameters: dict[str, Any] = {
        "job_name": name,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "time": settings.time_min,
        "mem": settings.mem,
        "constraint": settings.constraint,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.ranks_per_node,
        "cpus_per_task": shape.cpus_per_rank,
        "gpus_per_node": shape.ranks_per_node if shape.on_gpu else None,
        "signal_delay_s": settings.grace_s,
        "setup": ["set -e", *settings.setup, *setup],
        "stderr_to_stdout": True,
        "wckey": None,
        "use_srun": False,  # of our own, for the output is one file
        "additional_parameters": more,
    }
    executor.update_parameters(**parameters)
    executor.parameters["map_count"] = tasks
    executor.parameters["array_parallelism"] = settings.throttle or tasks
    return executor._make_submission_file_text(command, "") + "\n"


def on_one_device(execution: ExecSpec) -> ExecSpec:
    """As evaluations are carried out."""
    return replace(execution, nodes=1, gpus_per_node=1)
