"""Runs in this very process, one after the other: for a single run, and for debugging."""

from collections.abc import Sequence

from sweeps.cells import CellRun
from sweeps.launch import End, Launcher
from sweeps.progress import RunProgress
from sweeps.store import Store
from sweeps.worker import Busy, StopFlag, Stopped, explain_failure, run_one


class Inline(Launcher):
    """Trains in this process, with a progress bar on a terminal and plain lines elsewhere."""

    def launch(self, cells: Sequence[CellRun], store: Store) -> list[End]:
        return [self._one(cell, store) for cell in cells]

    def _one(self, cell: CellRun, store: Store) -> End:
        stop = StopFlag()
        resolved = cell.resolved
        try:
            with stop.on_signals(), RunProgress(cell.cell.name) as progress:
                status = run_one(store, resolved.run, resolved.execution, stop=stop, progress=progress)
        except Stopped as stopped:
            return End(cell=cell, status="interrupted", message=str(stopped))
        except Busy as busy:
            return End(cell=cell, status="busy", message=str(busy))
        except Exception as error:
            return End(cell=cell, status="failed", message=explain_failure(error))
        return End(cell=cell, status="done" if status == "done" else "diverged")
