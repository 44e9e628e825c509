"""Train one model, or a whole ablation: `python run.py --help`."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hybrid.spec import ConfigError
from sweeps.commands import guarded, run_single
from sweeps.compose import explain
from sweeps.launch.inline import Inline


@hydra.main(version_base=None, config_path="conf", config_name="config")
def single(config: DictConfig) -> None:
    """One run; multirun goes to the sweeper (hydra_plugins)."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items()}
    sys.exit(guarded(lambda: run_single(settings, Inline())))


def main() -> int:
    """Compose and go; what Hydra refuses becomes one clear message like every other mistake."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def compose_and_go() -> int:
        try:
            single()
        except (HydraException, OmegaConfBaseException) as error:
            if wants_traceback:
                raise
            raise ConfigError(explain(error)) from error
        return 0

    return guarded(compose_and_go)


if __name__ == "__main__":
    sys.exit(main())
