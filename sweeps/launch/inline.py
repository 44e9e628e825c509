"""Runs in this very process, one after the other: for a single run, and for debugging."""

from collections.abc import Sequence

from sweeps.cells import CellRun
from sweeps.exits import explain_failure
from sweeps.launch import Asked, End, Launcher, TrunkEnd, announce, blocked, not_begun, refuse_ranks, trunk_ended
from sweeps.progress import RunProgress, say
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Store
from sweeps.trunks import TrunkJob, trunk_jobs
from sweeps.worker.attempts import describe_failure
from sweeps.worker.claims import Busy
from sweeps.worker.runs import run_one
from sweeps.worker.trunks import run_trunk


class Inline(Launcher):
    """Trains in this process, with a progress bar on a terminal and plain lines elsewhere.

    A trunk is trained before the first of its branches; after an interrupt nothing more is begun.
    """

    def launch(self, cells: Sequence[CellRun], store: Store, asked: Asked) -> list[End]:
        refuse_ranks(cells)
        jobs = {run_id: job for job in trunk_jobs(cells, store) for run_id in job.branches}
        trunks: dict[str, TrunkEnd] = {}
        ends: list[End] = []
        interrupted = False
        for cell in cells:
            job = jobs.get(cell.run_id)
            if job is not None and job.trunk_id not in trunks and not interrupted:
                announce([cell for cell in cells if cell.run_id in job.branches], store)
                trunks[job.trunk_id] = self._trunk(job, store)
                interrupted = trunks[job.trunk_id].status == "interrupted"
            end = None if job is None or job.trunk_id not in trunks else blocked(cell, trunks[job.trunk_id], store)
            if interrupted:
                end = not_begun(cell, None if job is None else job.trunk_id, store)
            if end is None:
                end = self._one(cell, store)
                interrupted = end.status == "interrupted"
            ends.append(end)
        return ends

    def _trunk(self, job: TrunkJob, store: Store) -> TrunkEnd:
        stop = StopFlag()
        name = f"trunk {job.trunk_id}"
        try:
            with stop.on_signals(), RunProgress(name) as progress:
                status = run_trunk(store, job, stop=stop, progress=progress)
        except Stopped as stopped:
            end = TrunkEnd(trunk_id=job.trunk_id, status="interrupted", message=str(stopped))
        except Busy as busy:
            end = TrunkEnd(trunk_id=job.trunk_id, status="busy", message=str(busy))
        except Exception as error:
            said, failure = explain_failure(error), describe_failure(error)
            end = TrunkEnd(trunk_id=job.trunk_id, status="failed", message=said, failure=failure)
        else:
            end = TrunkEnd(trunk_id=job.trunk_id, status=status)
        say(f"{name}: {trunk_ended(end)}")
        return end

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
