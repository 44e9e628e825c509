"""Hydra's launchers for this project: each names the place in sweeps.launch where runs are carried out."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sweeps.launch import Launcher as Runs
from sweeps.launch.local import LocalProcesses


class HandsToSweeps(Launcher):
    """A Hydra launcher whose work is done by sweeps; `runs` is asked by our own sweeper."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise RuntimeError(
            "this launcher takes its runs from the sweeper of this project: leave hydra/sweeper=ablation as it is"
        )


class LocalLauncher(HandsToSweeps):
    """Processes of this machine."""

    def __init__(self, workers: int | None) -> None:
        super().__init__(LocalProcesses(workers))


class SlurmLauncher(HandsToSweeps):
    """Jobs of a Slurm cluster."""

    def __init__(self, **settings: Any) -> None:
        from sweeps.launch.slurm import SlurmJobs

        super().__init__(SlurmJobs(OmegaConf.to_container(OmegaConf.create(settings))))
