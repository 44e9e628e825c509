"""Where runs are carried out: here, in local processes, (later) on a cluster; one interface."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.cells import CellRun
from sweeps.store import Store

EndStatus = Literal["done", "diverged", "failed", "interrupted", "busy"]


@dataclass(frozen=True, kw_only=True)
class End:
    """What became of one cell's run; `message` says why where it did not come to a result.

    "busy": another process is training it, and it was left alone.
    """

    cell: CellRun
    status: EndStatus
    message: str = ""


class Launcher(ABC):
    """Carries out runs that are missing from a store."""

    def check(self) -> None:
        """Raises ConfigError where the launcher's own settings cannot be meant."""
        return

    @abstractmethod
    def launch(self, cells: Sequence[CellRun], store: Store) -> list[End]:
        """Run the cells, in this order where there is room for one at a time; one that fails does not stop the others.

        Returns when all have ended. On an interrupt (Ctrl-C) every run saves what it has, and the ends say so.
        """
