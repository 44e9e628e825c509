"""Train one model, or a whole ablation: `python run.py --help`."""

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hybrid.spec import ConfigError
from sweeps.commands import launcher_of, run_single
from sweeps.compose import Composer, diagnose, explain
from sweeps.exits import guarded
from sweeps.launch import Launcher
from sweeps.launch.inline import Inline


@hydra.main(version_base=None, config_path="conf", config_name="config")
def single(config: DictConfig) -> None:
    """One run; multirun goes to the sweeper (hydra_plugins)."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items()}
    hydra_config = HydraConfig.get()
    arguments = list(hydra_config.overrides.task)
    launcher: Launcher = Inline()
    if hydra_config.runtime.choices["hydra/launcher"] == "slurm":
        launcher = launcher_of(list(hydra_config.overrides.hydra))
    sys.exit(guarded(lambda: run_single(settings, arguments, launcher)))


def main() -> int:
    """Compose and go; what Hydra refuses becomes one clear message like every other mistake."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def compose_and_go() -> int:
        try:
            single()
        except Exception as error:
            if wants_traceback or isinstance(error, BrokenPipeError) or not _is_hydras(error):
                raise
            raise _in_our_words(error) from error
        return 0

    return guarded(compose_and_go)


def _in_our_words(error: Exception) -> ConfigError:
    """Hydra stops at the first mistake; ours says all of them, with what would do, where it understands them."""
    try:
        with Composer() as composer:
            diagnose([argument for argument in sys.argv[1:] if not argument.startswith("-")], composer)
    except ConfigError as found:
        return found
    except Exception as other:
        if not _is_hydras(other):
            raise
    return ConfigError(explain(error))


def _is_hydras(error: Exception) -> bool:
    """Whether Hydra could not read what was typed, or a file of conf/: then a traceback would help nobody."""
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError | UnicodeDecodeError):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return os.path.dirname(hydra.__file__) in raised_in or "hydra_plugins" in raised_in


if __name__ == "__main__":
    sys.exit(main())
