"""Which of a run's processes this one is, and where they meet. Imports no torch."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, final

from hybrid.spec import ConfigError, ExecSpec

_PORTS: Final = range(20000, 32000)  # below those that the kernel gives to clients
_N_PORTS: Final = 8


class RankLostError(RuntimeError):
    """Another rank failed, or is gone, and this one cannot go on.

    `rank` is that one's number, None where nobody knows; `failure` is what it said of its end: None if nothing.
    """

    def __init__(self, message: str, *, rank: int | None = None, failure: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        self.failure = failure


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of a run's processes this one is, and where the first one is to be met.

    `job` is a name that no other job, and no other life of this one, has; ports are derived from it.
    """

    rank: int
    world_size: int
    local_rank: int
    hosts: tuple[str, ...]
    job: str

    @classmethod
    def of_slurm(cls, environment: Mapping[str, str] = os.environ) -> "Place | None":
        """What srun says of this task; None for a step of one task, and outside Slurm."""
        if "SLURM_PROCID" not in environment or int(environment.get("SLURM_NTASKS", "1")) < 2:
            return None
        # The first task is on the step's first node, which is mostly the one that called srun. A name may have to be
        # looked up for long.
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        hosts = (environment.get("SLURM_LAUNCH_NODE_IPADDR", ""), first_host(nodes))
        names = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return cls(
            rank=int(environment["SLURM_PROCID"]),
            world_size=int(environment["SLURM_NTASKS"]),
            local_rank=int(environment.get("SLURM_LOCALID", "0")),
            hosts=tuple(dict.fromkeys(host for host in hosts if host)) or ("127.0.0.1",),
            job=".".join(environment.get(name, "0") for name in names),
        )

    def ports(self) -> list[int]:
        """Where the first rank listens: at the first of these that is free there."""
        drawn = hashlib.sha256(self.job.encode()).digest()
        places = (int.from_bytes(drawn[2 * i : 2 * i + 2]) for i in range(_N_PORTS))
        return list(dict.fromkeys(_PORTS[place % len(_PORTS)] for place in places))

    def check(self, execution: ExecSpec) -> None:
        """Raises ConfigError where there are not as many processes as `exec` says."""
        if self.world_size != execution.nodes * execution.gpus_per_node:
            raise ConfigError(
                f"exec.nodes, exec.gpus_per_node = {execution.nodes}, {execution.gpus_per_node}: expected as many "
                f"ranks as there are tasks in this step, {self.world_size}"
            )

    def execution(self, execution: ExecSpec) -> ExecSpec:
        """How this rank carries out its part: with `cuda`, the GPU of its own, whether it can see the others or not.

        Raises ConfigError for one GPU for all.
        """
        if execution.device == "cpu":
            return execution
        import torch

        if execution.device != "cuda":
            raise ConfigError(f"exec.device = {execution.device}: expected cuda or cpu, for ranks that share no GPU")
        seen = torch.cuda.device_count()
        return replace(execution, device=f"cuda:{self.local_rank if seen > 1 else 0}") if seen else execution


def first_host(node_list: str) -> str:
    """The first of a Slurm node list: `gpu03` of `gpu[03-05,9],old1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", node_list)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", "" if first is None else first[0])
