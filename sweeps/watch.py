"""`sweeps status --watch`: the same again and again, until nothing is queued or running any more."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Final

from sweeps.status import RequestState, state_text
from sweeps.store import CellStatus, now

EVERY_S: Final = 5.0

# Home, and erase to the end of the line or screen: what is redrawn does not flicker as after an erased screen.
_HOME, _LINE_END, _SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"
_CLEAR = "\x1b[2J"


def watch(look: Callable[[], RequestState], every_s: float = EVERY_S) -> None:
    """Show what `look` sees: on a terminal in place, elsewhere a block whenever the status of a cell has changed.

    Returns when nothing is queued or running, and on Ctrl-C: to have seen enough is no failure.
    """
    in_place = sys.stdout.isatty()
    before: list[tuple[str, CellStatus, int]] | None = None
    try:
        while True:
            state = look()
            statuses = [(cell.name, cell.status, cell.attempt) for cell in state.cells]
            if in_place:
                _redraw(state, first=before is None, ended=not state.is_active)
            elif statuses != before:
                print(f"{now()[:19]} UTC\n{state_text(state)}\n", flush=True)
            before = statuses
            if not state.is_active:
                return
            time.sleep(every_s)
    except KeyboardInterrupt:
        if in_place:
            print()


def _redraw(state: RequestState, *, first: bool, ended: bool) -> None:
    """The last time all of it, for it stays."""
    size = shutil.get_terminal_size()
    text = state_text(state, lines=None if ended else size.lines - 2)
    if not ended:
        text += f"\n{now()[11:19]} UTC; Ctrl-C ends the watching, not the runs"
        text = "\n".join(line[: size.columns] for line in text.splitlines())
    lines = "".join(f"{line}{_LINE_END}\n" for line in text.splitlines())
    print(f"{_CLEAR if first else ''}{_HOME}{lines}{_SCREEN_END}", end="", flush=True)
