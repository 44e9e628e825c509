"""Hydra's sweeper for this project: hands the command line to sweeps, which knows rows, grids, seeds and the store."""

import sys
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.hybrid_ablations.launcher import HandsToSweeps
from sweeps.commands import run_request
from sweeps.exits import guarded


class AblationSweeper(Sweeper):
    """Runs `python run.py -m ARGUMENTS` as a request."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.config = config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Exits with the request's code: Hydra itself would call a sweep with failed cells a success."""
        config = self.config
        assert config is not None
        if not isinstance(self._launcher, HandsToSweeps):
            chosen = OmegaConf.select(config, "hydra.runtime.choices.hydra/launcher")
            print(
                f"error: hydra/launcher = {chosen}: expected local (the others would re-run what is done)",
                file=sys.stderr,
            )
            sys.exit(2)
        launcher = self._launcher.runs
        sys.exit(guarded(lambda: run_request(arguments, launcher)))
