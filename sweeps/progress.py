"""Progress for people, on stderr: bars on a terminal, plain lines now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sweeps.text import amount, duration

PLAIN_EVERY_S = 15.0


def say(message: str) -> None:
    """One line to stderr; nobody reading it any more is no reason to stop."""
    with suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)


class RunProgress:
    """One run's progress; a context manager, called with step, steps, loss and speed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bars: Any = None
        self._task: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> "RunProgress":
        if sys.stderr.isatty():
            self._bars = _bars()
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, step: int, total_steps: int, loss_nats: float | None, tokens_per_s: float) -> None:
        detail = run_detail(loss_nats, tokens_per_s)
        if self._bars is not None:
            if self._task is None:
                self._task = self._bars.add_task(self._name, total=total_steps, completed=step, detail=detail)
            self._bars.update(self._task, completed=step, detail=detail)
        elif time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            say(f"{self._name}: step {step} of {total_steps}, {detail}")


def run_detail(loss_nats: float | None, tokens_per_s: float) -> str:
    """Loss and speed of a run under way."""
    loss = "" if loss_nats is None else f"loss {loss_nats:.3f}, "
    return f"{loss}{amount(tokens_per_s)} tokens/s"


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    return Progress(*columns, console=Console(stderr=True))


class SweepProgress:
    """Progress of many runs: what has ended, what is under way, what is left."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ended = 0
        self._began = self._said = time.monotonic()
        self._live: dict[str, Any] = {}
        self._bars: Any = None
        self._task: Any = None

    def __enter__(self) -> "SweepProgress":
        if sys.stderr.isatty():
            self._bars = _bars()
            self._task = self._bars.add_task("runs", total=self._total, detail="")
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def running(self, live: Mapping[str, tuple[int, int, float | None, float]]) -> None:
        """Show the runs under way: name to (step, steps, loss, tokens/s)."""
        if self._bars is not None:
            for name in [name for name in self._live if name not in live]:
                self._bars.remove_task(self._live.pop(name))
            for name, (step, steps, loss, speed) in live.items():
                if name not in self._live:
                    self._live[name] = self._bars.add_task(f"  {name}", total=steps, detail="")
                self._bars.update(self._live[name], completed=step, total=steps, detail=run_detail(loss, speed))
        elif live and time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            runs = "; ".join(
                f"{name} {step}/{steps}, {run_detail(loss, speed)}" for name, (step, steps, loss, speed) in live.items()
            )
            say(f"[{self._ended}/{self._total}] under way: {runs}")

    def ended(self, name: str, outcome: str) -> None:
        """One run has ended."""
        self._ended += 1
        self._said = time.monotonic()
        left = self._total - self._ended
        rest = f", about {duration((time.monotonic() - self._began) / self._ended * left)} left" if left else ""
        line = f"[{self._ended}/{self._total}] {name}: {outcome}{rest}"
        if self._bars is not None:
            self._bars.update(self._task, completed=self._ended)
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            say(line)
