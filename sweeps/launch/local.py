"""Runs in processes of this machine, as many at once as there are cores for them.

Each run, and each trunk, has a process of its own, forked from a server that has torch loaded already, so that it
starts at once and one that fails, or is killed, takes nothing else with it. One whose parent is gone saves and stops.
"""

import contextlib
import heapq
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, assert_never

from hybrid.config import Resolved
from hybrid.spec import ConfigError
from sweeps.cells import CellRun
from sweeps.exits import EXIT_BUSY, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, explain_failure
from sweeps.launch import Asked, End, Launcher, TrunkEnd, announce, blocked, not_begun, refuse_ranks, trunk_ended
from sweeps.launch.processes import fork_server, unblock_signals
from sweeps.progress import SweepProgress, say
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Attempts, Status, Store, is_final
from sweeps.text import count
from sweeps.trunks import TrunkJob, branch_step, trunk_jobs
from sweeps.worker.attempts import describe_failure
from sweeps.worker.claims import Busy
from sweeps.worker.runs import run_one
from sweeps.worker.trunks import run_trunk

_TICK_EVERY_S = 0.5
_LOOK_AGAIN_S = 1.0
_GRACE_S = 60.0


@dataclass
class _Run:
    """A cell to be run."""

    cell: CellRun

    @property
    def name(self) -> str:
        return self.cell.cell.name

    @property
    def lease_s(self) -> float:
        return self.cell.resolved.execution.lease_s

    def attempts(self, store: Store) -> Attempts:
        return store.attempts(self.cell.run_id)

    def status(self, store: Store) -> Status:
        return store.status(self.cell.run_id)


@dataclass
class _Trunk:
    """A trunk to be trained, and the cells that wait until it has brought them to where they start."""

    job: TrunkJob
    cells: list[CellRun]

    @property
    def name(self) -> str:
        return f"trunk {self.job.trunk_id}"

    @property
    def lease_s(self) -> float:
        return self.job.execution.lease_s

    def attempts(self, store: Store) -> Attempts:
        return store.trunk_attempts(self.job.trunk_id)

    def status(self, store: Store) -> Status:
        return store.trunk_status(self.job.trunk_id)


_Work = _Run | _Trunk


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """What a process says of its failure: in a line, and as in an attempt's error.json."""

    text: str
    error: dict[str, Any]


@dataclass
class _Live:
    work: _Work
    process: Any
    pipe: "Connection[Any, Any]"
    began: float
    tick: tuple[int, int, float | None, float] | None = None
    failure: _Failure | None = None


@dataclass
class _Elsewhere:
    """What another process trains, and when its counter was last seen to move."""

    work: _Work
    counter: str | None
    since: float


@dataclass
class _State:
    """`order` gives the cells, by name, their places; a trunk stands just before the first of its branches.

    `waiting` is a heap of what can begin; `trunks` have not ended, and hold the cells that cannot begin yet.
    """

    order: dict[str, int]
    waiting: list[tuple[int, int, int, _Work]] = field(default_factory=list)
    queued: int = 0
    trunks: list[_Trunk] = field(default_factory=list)
    elsewhere: list[_Elsewhere] = field(default_factory=list)
    overdue: set[str] = field(default_factory=set)
    live: list[_Live] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)

    def put(self, work: _Work) -> None:
        """Let it begin when its turn has come."""
        match work:
            case _Run():
                place = self.order[work.name], 1
            case _Trunk():
                place = min((self.order[cell.cell.name] for cell in work.cells), default=0), 0
        self.queued += 1
        heapq.heappush(self.waiting, (*place, self.queued, work))

    def next(self) -> _Work:
        return heapq.heappop(self.waiting)[-1]


class LocalProcesses(Launcher):
    """A pool of processes on this machine; `workers: None` takes as many as the cores allow at the runs' threads."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers

    def check(self, runs: Sequence[CellRun]) -> None:
        if runs:
            refuse_ranks(runs)
        if self._workers is not None and (not isinstance(self._workers, int) or self._workers < 1):
            raise ConfigError(
                f"hydra.launcher.workers = {self._workers!r}: expected a whole number of at least 1, "
                "or null for as many as the cores allow"
            )

    def launch(self, cells: Sequence[CellRun], store: Store, asked: Asked) -> list[End]:
        if not cells:
            return []
        refuse_ranks(cells)
        threads = max(cell.resolved.execution.threads for cell in cells)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(self._workers or max(1, cores // threads), len(cells))
        state = _State(order={cell.cell.name: place for place, cell in enumerate(cells)})
        jobs = {run_id: job for job in trunk_jobs(cells, store) for run_id in job.branches}
        held: dict[str, _Trunk] = {}
        for cell in cells:
            job = jobs.get(cell.run_id)
            if job is None:
                state.put(_Run(cell=cell))
            else:
                held.setdefault(job.trunk_id, _Trunk(job=job, cells=[])).cells.append(cell)
        for trunk in held.values():
            state.trunks.append(trunk)
            state.put(trunk)
        stop = StopFlag()
        # Signals only raise a flag, which is looked at where nothing is half done.
        with stop.on_signals(), SweepProgress(len(cells) + len(held)) as progress:
            context = fork_server()
            self._until_all_ended(state, store, workers, context, progress, stop)
            if stop.reason is not None:
                self._stop(state, store, progress, stop)
        assert sorted(end.cell.cell.name for end in state.ends) == sorted(cell.cell.name for cell in cells)
        return state.ends

    def _until_all_ended(
        self, state: _State, store: Store, workers: int, context: Any, progress: SweepProgress, stop: StopFlag
    ) -> None:
        looked = time.monotonic()
        told = False
        while (state.waiting or state.live or state.elsewhere) and stop.reason is None:
            while state.waiting and len(state.live) < workers and stop.reason is None:
                self._start(state, store, context, progress)
            if state.elsewhere and not state.live and not told:
                told = True
                trunks = sum(isinstance(aside.work, _Trunk) for aside in state.elsewhere)
                counts = {"runs": len(state.elsewhere) - trunks, "trunks": trunks}
                listed = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
                say(f"waiting for {listed} that another process is training")
            handles = [handle for live in state.live for handle in (live.pipe, live.process.sentinel)]
            wait(handles, timeout=_LOOK_AGAIN_S) if handles else time.sleep(_LOOK_AGAIN_S)
            self._collect(state, store, progress, stop)
            if time.monotonic() - looked > _LOOK_AGAIN_S:
                looked = time.monotonic()
                self._look_elsewhere(state, store, progress)
                for work in [*(live.work for live in state.live), *(aside.work for aside in state.elsewhere)]:
                    if isinstance(work, _Trunk):
                        self._release(state, store, work)

    def _start(self, state: _State, store: Store, context: Any, progress: SweepProgress) -> None:
        """Start what comes next, or put it aside where somebody else trains it just now."""
        work = state.next()
        status = work.status(store)
        if isinstance(work, _Run) and is_final(status):
            self._end(state, progress, End(cell=work.cell, status=status), "by another process")
        elif isinstance(work, _Trunk) and not self._still_pays(state, store, work, progress):
            pass
        elif status == "running" and work.attempts(store).of not in state.overdue:
            self._put_aside(state, store, work)
        else:
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, store, _task(work)), name=work.name)
            process.start()
            theirs.close()
            state.live.append(_Live(work=work, process=process, pipe=ours, began=time.monotonic()))

    def _put_aside(self, state: _State, store: Store, work: _Work) -> None:
        attempts = work.attempts(store)
        counter = attempts.heartbeat(attempts.last())
        state.elsewhere.append(_Elsewhere(work=work, counter=counter, since=time.monotonic()))

    def _look_elsewhere(self, state: _State, store: Store, progress: SweepProgress) -> None:
        """What was put aside is either still trained, or ended (then counted), or free again (then ours).

        A counter that has stood still for a lease may be that of a process that died where this host cannot see it:
        a process of ours then waits the lease out, and takes the run over or finds it alive.
        """
        still = []
        for aside in state.elsewhere:
            work = aside.work
            status, attempts = work.status(store), work.attempts(store)
            if isinstance(work, _Run) and is_final(status):
                self._end(state, progress, End(cell=work.cell, status=status), "by another process")
                continue
            counter = attempts.heartbeat(attempts.last())
            if counter != aside.counter:
                aside.counter, aside.since = counter, time.monotonic()
            if status != "running":
                state.put(work)
            elif time.monotonic() - aside.since > work.lease_s:
                state.overdue.add(attempts.of)
                state.put(work)
            else:
                still.append(aside)
        state.elsewhere = still

    # --- trunks ---

    def _release(self, state: _State, store: Store, trunk: _Trunk) -> None:
        """Let the branches begin that the trunk has brought to where they start."""
        points = store.trunk_points(trunk.job.trunk_id)
        ready = [cell for cell in trunk.cells if branch_step(cell.resolved.run) in points]
        trunk.cells = [cell for cell in trunk.cells if cell not in ready]
        for cell in ready:
            state.put(_Run(cell=cell))

    def _still_pays(self, state: _State, store: Store, trunk: _Trunk, progress: SweepProgress) -> bool:
        """Plan the trunk again, as another process may have trained it or its branches; end it if nothing is left."""
        self._release(state, store, trunk)
        missing = [cell for cell in trunk.cells if not is_final(store.status(cell.run_id))]
        jobs = trunk_jobs(missing, store)
        if jobs:
            trunk.job = jobs[0]
            waiting = [cell for cell in trunk.cells if cell.run_id in trunk.job.branches]
            for cell in [cell for cell in trunk.cells if cell not in waiting]:
                state.put(_Run(cell=cell))
            trunk.cells = waiting
            announce(waiting, store)
            return True
        self._end_trunk(
            state, store, progress, trunk, TrunkEnd(trunk_id=trunk.job.trunk_id, status="done"), "elsewhere"
        )
        return False

    def _end_trunk(
        self, state: _State, store: Store, progress: SweepProgress, trunk: _Trunk, end: TrunkEnd, how: str
    ) -> None:
        """Let the branches begin, or end those that cannot."""
        state.trunks.remove(trunk)
        progress.ended(trunk.name, f"{trunk_ended(end)} {how}")
        for cell in trunk.cells:
            failed = blocked(cell, end, store)
            if failed is None:
                state.put(_Run(cell=cell))
            else:
                self._end(state, progress, failed, "with its trunk")

    def _collect(self, state: _State, store: Store, progress: SweepProgress, stop: StopFlag) -> None:
        for live in list(state.live):
            exit_code = live.process.exitcode  # before the pipe is drained, so that nothing said on the way out is lost
            with contextlib.suppress(EOFError, OSError):
                while live.pipe.poll():
                    message = live.pipe.recv()
                    if isinstance(message, _Failure):
                        live.failure = message
                    else:
                        live.tick = message
            if exit_code is None:
                continue
            live.process.join()
            live.pipe.close()
            state.live.remove(live)
            if exit_code == EXIT_BUSY:
                state.overdue.discard(live.work.attempts(store).of)
                self._put_aside(state, store, live.work)
                continue
            how = f"in {time.monotonic() - live.began:.0f} s"
            match live.work:
                case _Run(cell=cell):
                    self._end(state, progress, _end_of(live, cell, store), how)
                case _Trunk() as trunk if stop.reason is None:
                    self._end_trunk(state, store, progress, trunk, _end_of_trunk(live, trunk, store), how)
                case _Trunk() as trunk:  # its branches stay with it, and end with all that have not begun
                    progress.ended(trunk.name, f"{trunk_ended(_end_of_trunk(live, trunk, store))} {how}")
        progress.running({live.work.name: live.tick for live in state.live if live.tick is not None})

    def _end(self, state: _State, progress: SweepProgress, end: End, how: str) -> None:
        state.ends.append(end)
        progress.ended(end.cell.cell.name, f"{end.status} {how}" + (f": {end.message}" if end.message else ""))

    def _stop(self, state: _State, store: Store, progress: SweepProgress, stop: StopFlag) -> None:
        """Ask every run to save and stop, and wait for them; a second signal kills them."""
        say(f"{stop.reason}: {count(len(state.live), 'process')} told to save (again to kill)")
        signals = stop.signals
        deadline = time.monotonic() + _GRACE_S
        for live in state.live:
            live.process.terminate()
        while state.live:
            wait([live.process.sentinel for live in state.live], timeout=_TICK_EVERY_S)
            self._collect(state, store, progress, stop)
            if stop.signals > signals or time.monotonic() > deadline:
                for live in state.live:
                    live.process.kill()
        left = [work for *_, work in state.waiting] + [aside.work for aside in state.elsewhere]
        state.ends += [not_begun(work.cell, None, store) for work in left if isinstance(work, _Run)]
        state.ends += [not_begun(cell, trunk.job.trunk_id, store) for trunk in state.trunks for cell in trunk.cells]


def _end_of(live: _Live, cell: CellRun, store: Store) -> End:
    status = store.status(cell.run_id)
    if is_final(status):
        return End(cell=cell, status=status)
    if live.process.exitcode == EXIT_STOPPED:
        return End(cell=cell, status="interrupted", message="saved; goes on when asked for again")
    return End(cell=cell, status="failed", message=_failure(live, "no record"))


def _end_of_trunk(live: _Live, trunk: _Trunk, store: Store) -> TrunkEnd:
    trunk_id = trunk.job.trunk_id
    if live.process.exitcode == EXIT_DONE:
        return TrunkEnd(trunk_id=trunk_id, status="diverged" if trunk.status(store) == "diverged" else "done")
    if live.process.exitcode == EXIT_STOPPED:
        message = f"saved step {store.trunk_saved_step(trunk_id)}; goes on when asked for again"
        return TrunkEnd(trunk_id=trunk_id, status="interrupted", message=message)
    failure = None if live.failure is None else live.failure.error
    return TrunkEnd(trunk_id=trunk_id, status="failed", message=_failure(live, "no word"), failure=failure)


def _failure(live: _Live, nothing: str) -> str:
    """Why a process ended without a result."""
    if live.failure is not None:
        return live.failure.text.splitlines()[0]
    if live.process.exitcode < 0:
        return f"killed by signal {-live.process.exitcode}; goes on from its last checkpoint when asked for again"
    return f"ended with exit code {live.process.exitcode} and {nothing}"


def _task(work: _Work) -> TrunkJob | Resolved:
    """What of a piece of work its process is to know."""
    match work:
        case _Run():
            return work.cell.resolved
        case _Trunk():
            return work.job
        case _ as never:
            assert_never(never)


def _child(pipe: "Connection[Any, Any]", store: Store, task: TrunkJob | Resolved) -> None:
    """The whole life of a process that trains a run or a trunk."""
    stop = StopFlag()
    reported = 0.0

    def progress(step: int, total_steps: int, loss_nats: float | None, tokens_per_s: float) -> None:
        nonlocal reported
        if time.monotonic() - reported < _TICK_EVERY_S:
            return
        reported = time.monotonic()
        try:
            pipe.send((step, total_steps, loss_nats, tokens_per_s))
        except OSError:
            stop("the process that started it is gone")

    with stop.on_signals():
        unblock_signals()
        try:
            match task:
                case TrunkJob():
                    run_trunk(store, task, stop=stop, progress=progress, own_process=True)
                case Resolved():
                    run_one(store, task.run, task.execution, stop=stop, progress=progress, own_process=True)
            code = EXIT_DONE
        except Busy:
            code = EXIT_BUSY
        except Stopped:
            code = EXIT_STOPPED
        except Exception as error:
            code = EXIT_FAILED  # told in full in the attempt's error.json and log.txt
            with contextlib.suppress(OSError):
                pipe.send(_Failure(text=explain_failure(error), error=describe_failure(error)))
    sys.exit(code)
