"""Processes of this machine that start at once, as torch is loaded before they are forked."""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from typing import Any

# torch._dynamo is loaded by the first optimiser, torch._meta_registrations by the first model: here once for all runs.
_PRELOADED = ("hybrid.train.loop", "hybrid.train.checkpoint", "torch._dynamo", "torch._meta_registrations")
_BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def fork_server() -> Any:
    """The context whose server process has torch loaded, and forks the others.

    It is started with the signals blocked that would kill it, or a process that has no handlers yet: those forked call
    `unblock_signals` once they have theirs. The resource tracker comes first, as starting it unblocks them again, all
    but USR2, which Slurm sends to every process of a task.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *_PRELOADED])
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2,))
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
    return context


def unblock_signals() -> None:
    """Let a process that `fork_server` has forked be told to stop."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
