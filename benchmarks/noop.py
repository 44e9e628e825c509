"""A Hydra job that does nothing, over this project's configs: the peer of benchmarks/planning.py."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path="../conf", config_name="config")
def main(config: DictConfig) -> None:
    """Compose and leave."""


if __name__ == "__main__":
    main()
