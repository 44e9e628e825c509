"""Why a process should stop what it does: asked to by a signal, by a lost lease, by a launcher that is gone.

Imports nothing that takes time: a task sets its handlers before anything else, so that no signal is lost meanwhile.
"""

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""What asks a run to save and stop. Slurm sends USR2 ahead of a time limit or a preemption, where it is asked to, and
TERM before it kills."""


def ignore_signals() -> None:
    """Nothing asks this process to stop any more, for it has done and said all: what it exits with is decided.

    Python takes its handlers away before it has ended, and a signal in between would kill a process whose run is done.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Stopped(Exception):
    """The run was asked to stop, and has saved what it had, up to `step` where that is known."""

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class StopFlag:
    """Why the run should stop, if it should. The first reason stays; `signal` is the number of the signal that gave
    it, None where none did."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signal: int | None = None
        self.signals = 0
        self._at_once = False

    def __call__(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason

    def install(self) -> None:
        """Signals ask to stop from now on, for as long as the process lives."""
        for number in SIGNALS:
            signal.signal(number, self._signalled)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Signals ask to stop while this lasts."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that has nothing to save: meanwhile a signal raises Stopped wherever the work is.

        Raises Stopped at once where the reason is there already.
        """
        self._at_once = True
        try:
            if self.reason is not None:
                raise Stopped(self.reason)
            yield
        finally:
            self._at_once = False

    def _signalled(self, number: int, _frame: object) -> None:
        self.signals += 1
        if self.reason is None:
            self.signal = number
        self(f"signal {signal.Signals(number).name}")
        if self._at_once:
            raise Stopped(str(self.reason))
