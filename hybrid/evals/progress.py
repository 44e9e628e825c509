"""How far an evaluation has come, for people: a line on a terminal, elsewhere one now and then; on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

Progress = Callable[[int], None]
"""Called with how many more are done."""

_EVERY_S: Final = 0.2
_PLAIN_EVERY_S: Final = 30.0


@contextmanager
def progress(name: str, total: int | None, unit: str) -> Iterator[Progress]:
    """`name: 12 of 40 prompts`, written over itself on a terminal and cleared at the end; None: nobody knows the total.

    What is over sooner than half a minute says nothing in a log.
    """
    done, on_terminal = 0, sys.stderr.isatty()
    every_s = _EVERY_S if on_terminal else _PLAIN_EVERY_S
    told = 0.0 if on_terminal else time.monotonic()

    def add(n: int) -> None:
        nonlocal done, told
        done += n
        if time.monotonic() - told < every_s:
            return
        told = time.monotonic()
        line = f"{name}: {done:,}{'' if total is None else f' of {total:,}'} {unit}"
        print(f"\r\x1b[K{line}" if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)

    try:
        yield add
    finally:
        if on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
