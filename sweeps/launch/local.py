"""Runs in processes of this machine, as many at once as there are cores for them.

Each run has a process of its own, forked from a server that has torch loaded already, so that a run starts at once
and one that fails, or is killed, takes nothing else with it. A run whose parent is gone saves and stops.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from hybrid.spec import ConfigError, ExecSpec, RunSpec
from sweeps.cells import CellRun
from sweeps.launch import End, Launcher
from sweeps.progress import SweepProgress, say
from sweeps.store import Store, is_final
from sweeps.worker import (
    EXIT_BUSY,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    Busy,
    StopFlag,
    Stopped,
    explain_failure,
    run_one,
)

# torch._dynamo is loaded by the first optimiser, torch._meta_registrations by the first model: here once for all runs.
_PRELOADED = ("hybrid.train.loop", "hybrid.train.checkpoint", "torch._dynamo", "torch._meta_registrations")
_BLOCKED = (signal.SIGINT, signal.SIGTERM)
_TICK_EVERY_S = 0.5
_LOOK_AGAIN_S = 1.0
_GRACE_S = 60.0


@dataclass
class _Live:
    cell: CellRun
    process: Any
    pipe: "Connection[Any, Any]"
    began: float
    tick: tuple[int, int, float | None, float] | None = None
    failure: str | None = None


@dataclass
class _Elsewhere:
    """A cell that another process trains, and when its counter was last seen to move."""

    cell: CellRun
    counter: str | None
    since: float


@dataclass
class _State:
    waiting: deque[CellRun]
    elsewhere: list[_Elsewhere] = field(default_factory=list)
    overdue: set[str] = field(default_factory=set)
    live: list[_Live] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)


class LocalProcesses(Launcher):
    """A pool of processes on this machine; `workers: None` takes as many as the cores allow at the runs' threads."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers

    def check(self) -> None:
        if self._workers is not None and (not isinstance(self._workers, int) or self._workers < 1):
            raise ConfigError(
                f"hydra.launcher.workers = {self._workers!r}: expected a whole number of at least 1, "
                "or null for as many as the cores allow"
            )

    def launch(self, cells: Sequence[CellRun], store: Store) -> list[End]:
        if not cells:
            return []
        threads = max(cell.resolved.execution.threads for cell in cells)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(self._workers or max(1, cores // threads), len(cells))
        state = _State(waiting=deque(cells))
        stop = StopFlag()
        # Signals only raise a flag, which is looked at where nothing is half done.
        with stop.on_signals(), SweepProgress(len(cells)) as progress:
            context = _fork_server()
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
                say(f"waiting for {len(state.elsewhere)} runs that another process is training")
            handles = [handle for live in state.live for handle in (live.pipe, live.process.sentinel)]
            wait(handles, timeout=_LOOK_AGAIN_S) if handles else time.sleep(_LOOK_AGAIN_S)
            self._collect(state, store, progress)
            if time.monotonic() - looked > _LOOK_AGAIN_S:
                looked = time.monotonic()
                self._look_elsewhere(state, store, progress)

    def _start(self, state: _State, store: Store, context: Any, progress: SweepProgress) -> None:
        """Start the next waiting cell, or put it aside where somebody else trains it just now."""
        cell = state.waiting.popleft()
        status = store.status(cell.cell.run_id)
        if is_final(status):
            self._end(state, progress, End(cell=cell, status=status), "by another process")
        elif status == "running" and cell.cell.run_id not in state.overdue:
            self._put_aside(state, store, cell)
        else:
            ours, theirs = context.Pipe()
            arguments = (theirs, store, cell.resolved.run, cell.resolved.execution)
            process = context.Process(target=_child, args=arguments, name=f"run {cell.cell.run_id}")
            process.start()
            theirs.close()
            state.live.append(_Live(cell=cell, process=process, pipe=ours, began=time.monotonic()))

    def _put_aside(self, state: _State, store: Store, cell: CellRun) -> None:
        run_id = cell.cell.run_id
        counter = store.heartbeat(run_id, store.last_attempt(run_id))
        state.elsewhere.append(_Elsewhere(cell=cell, counter=counter, since=time.monotonic()))

    def _look_elsewhere(self, state: _State, store: Store, progress: SweepProgress) -> None:
        """What was put aside is either still trained, or ended (then counted), or free again (then ours).

        A counter that has stood still for a lease may be that of a process that died where this host cannot see it:
        a process of ours then waits the lease out, and takes the run over or finds it alive.
        """
        still = []
        for aside in state.elsewhere:
            run_id = aside.cell.cell.run_id
            status = store.status(run_id)
            if is_final(status):
                self._end(state, progress, End(cell=aside.cell, status=status), "by another process")
                continue
            counter = store.heartbeat(run_id, store.last_attempt(run_id))
            if counter != aside.counter:
                aside.counter, aside.since = counter, time.monotonic()
            if status != "running":
                state.waiting.append(aside.cell)
            elif time.monotonic() - aside.since > aside.cell.resolved.execution.lease_s:
                state.overdue.add(run_id)
                state.waiting.append(aside.cell)
            else:
                still.append(aside)
        state.elsewhere = still

    def _collect(self, state: _State, store: Store, progress: SweepProgress) -> None:
        for live in list(state.live):
            exit_code = live.process.exitcode  # before the pipe is drained, so that nothing said on the way out is lost
            with contextlib.suppress(EOFError, OSError):
                while live.pipe.poll():
                    message = live.pipe.recv()
                    if isinstance(message, str):
                        live.failure = message
                    else:
                        live.tick = message
            if exit_code is None:
                continue
            live.process.join()
            live.pipe.close()
            state.live.remove(live)
            if exit_code == EXIT_BUSY:
                state.overdue.discard(live.cell.cell.run_id)
                self._put_aside(state, store, live.cell)
                continue
            end = _end_of(live, store)
            self._end(state, progress, end, f"in {time.monotonic() - live.began:.0f} s")
        progress.running({live.cell.cell.name: live.tick for live in state.live if live.tick is not None})

    def _end(self, state: _State, progress: SweepProgress, end: End, how: str) -> None:
        state.ends.append(end)
        progress.ended(end.cell.cell.name, f"{end.status} {how}" + (f": {end.message}" if end.message else ""))

    def _stop(self, state: _State, store: Store, progress: SweepProgress, stop: StopFlag) -> None:
        """Ask every run to save and stop, and wait for them; a second signal kills them."""
        say(f"{stop.reason}: {len(state.live)} runs save what they have (again to kill them)")
        signals = stop.signals
        deadline = time.monotonic() + _GRACE_S
        for live in state.live:
            live.process.terminate()
        while state.live:
            wait([live.process.sentinel for live in state.live], timeout=_TICK_EVERY_S)
            self._collect(state, store, progress)
            if stop.signals > signals or time.monotonic() > deadline:
                for live in state.live:
                    live.process.kill()
        left = [*state.waiting, *(aside.cell for aside in state.elsewhere)]
        state.ends += [End(cell=cell, status="interrupted", message="not begun") for cell in left]


def _fork_server() -> Any:
    """The context whose server process has torch loaded, and forks the runs.

    It is started with the signals blocked that would kill it, or a run that has no handlers yet; the runs unblock
    them. The resource tracker comes first, as starting it unblocks them again.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *_PRELOADED])
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
    return context


def _end_of(live: _Live, store: Store) -> End:
    cell, exit_code = live.cell, live.process.exitcode
    status = store.status(cell.cell.run_id)
    if is_final(status):
        return End(cell=cell, status=status)
    if exit_code == EXIT_STOPPED:
        return End(cell=cell, status="interrupted", message="saved; goes on when asked for again")
    if live.failure is not None:
        message = live.failure.splitlines()[0]
    elif exit_code < 0:
        message = f"killed by signal {-exit_code}; goes on from its last checkpoint when asked for again"
    else:
        message = f"ended with exit code {exit_code} and no record"
    return End(cell=cell, status="failed", message=message)


def _child(pipe: "Connection[Any, Any]", store: Store, run: RunSpec, execution: ExecSpec) -> None:
    """The whole life of a run's process."""
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
            stop("the process that started the run is gone")

    with stop.on_signals():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
        try:
            run_one(store, run, execution, stop=stop, progress=progress, own_process=True)
            code = EXIT_DONE
        except Busy:
            code = EXIT_BUSY
        except Stopped:
            code = EXIT_STOPPED
        except Exception as error:
            code = EXIT_FAILED  # told in full in the attempt's error.json and log.txt
            with contextlib.suppress(OSError):
                pipe.send(explain_failure(error))
    sys.exit(code)
