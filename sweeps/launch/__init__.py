"""Where runs are carried out: here, in local processes, (later) on a cluster; one interface."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hybrid.eval_spec import EvalSpec
from hybrid.spec import ConfigError
from sweeps.cells import CellRun
from sweeps.store import Store, StoreError
from sweeps.trunks import branch_step
from sweeps.worker.runs import fail_branch

EndStatus = Literal["done", "diverged", "failed", "interrupted", "busy", "submitted"]


@dataclass(frozen=True, kw_only=True)
class End:
    """What became of one cell's run; `message` says why where it did not come to a result.

    "busy": another process is training it, and it was left alone; "submitted": a scheduler has it.
    """

    cell: CellRun
    status: EndStatus
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class TrunkEnd:
    """What became of a trunk; "done" and "diverged" both leave its branches to run.

    `failure`: what the process that failed said of it, as in an attempt's error.json; None where it could say nothing.
    """

    trunk_id: str
    status: EndStatus
    message: str = ""
    failure: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a launcher is told beside the cells: for which request they are, and how it should go about it.

    `predicted_hours` are device-hours by run id, where they are known; `wait` is for launchers that would return before
    the runs have ended. `evals` are the evaluations wanted of runs, by their ids: none is made unless they are.
    """

    sweep: str
    overrides: tuple[str, ...] = ()
    predicted_hours: Mapping[str, float] = field(default_factory=dict)
    notify: Mapping[str, Any] = field(default_factory=dict)
    wait: bool = False
    evals: Mapping[str, tuple[EvalSpec, ...]] = field(default_factory=dict)


class Launcher(ABC):
    """Carries out runs that are missing from a store."""

    def check(self, runs: Sequence[CellRun]) -> None:
        """Raises ConfigError where the launcher's settings cannot be meant, with all that is wrong with them.

        `runs` are all cells of a request, also those that are finished; none where it is not known yet which. What a
        launcher can learn of its cluster without leaving anything behind, it has asked by then.
        """
        return

    @abstractmethod
    def launch(self, cells: Sequence[CellRun], store: Store, asked: Asked) -> list[End]:
        """Run the cells, in this order where there is room for one at a time; one that fails does not stop the others.

        What several of them share is trained once, as a trunk, before the first of its branches; where that fails,
        those of its branches fail that it was to bring to where they start.

        Returns when all have ended, or a scheduler has them. On an interrupt (Ctrl-C) every run saves what it has, and
        the ends say so.
        """

    def evaluate(self, cells: Sequence[CellRun], store: Store, asked: Asked) -> list[End] | None:
        """Evaluate the cells' finished runs elsewhere; None where that is for this process to do."""
        return None


def refuse_ranks(cells: Sequence[CellRun]) -> None:
    """Raises ConfigError, before anything is begun, where a run is to have several ranks: these launchers start one."""
    given = {(cell.resolved.execution.nodes, cell.resolved.execution.gpus_per_node) for cell in cells} - {(1, 1)}
    if given:
        nodes, gpus_per_node = min(given)
        raise ConfigError(
            f"exec.nodes, exec.gpus_per_node = {nodes}, {gpus_per_node}: expected 1, 1 to run here; "
            "several ranks of a run are started by hydra/launcher=slurm"
        )


def announce(branches: Sequence[CellRun], store: Store) -> None:
    """Write down which runs wait for their trunk, so that `sweeps status` can say so. Where it fails, it cannot."""
    with contextlib.suppress(OSError, StoreError):
        for cell in branches:
            store.publish_spec(cell.resolved.run)


def blocked(cell: CellRun, trunk: TrunkEnd, store: Store) -> End | None:
    """How a branch ends that cannot begin because of how its trunk ended; None where it can.

    A failure is recorded as an attempt at the branch.
    """
    if trunk.status in ("done", "diverged") or branch_step(cell.resolved.run) in store.trunk_points(trunk.trunk_id):
        return None
    if trunk.status == "failed":
        # The end that is returned says it too: a disk that is full must not hide it.
        with contextlib.suppress(OSError, StoreError):
            failure = trunk.failure or {"class": "unknown", "message": trunk.message}
            fail_branch(store, cell.resolved.run, cell.resolved.execution, trunk.trunk_id, failure)
    return End(cell=cell, status=trunk.status, message=f"its trunk {trunk.trunk_id} {trunk_ended(trunk)}")


def not_begun(cell: CellRun, trunk: str | None, store: Store) -> End:
    """How a cell ends that an interrupt keeps from beginning; `trunk` is the one that it waits for, if it does."""
    saved = store.trunk_saved_step(trunk) if trunk is not None else 0
    message = f"not begun; its trunk {trunk} has saved step {saved}" if saved else "not begun"
    return End(cell=cell, status="interrupted", message=message)


def trunk_ended(trunk: TrunkEnd) -> str:
    """How a trunk ended, for people."""
    words = {"failed": "failed", "interrupted": "was interrupted", "busy": "is busy"}
    return words.get(trunk.status, trunk.status) + (f": {trunk.message}" if trunk.message else "")
