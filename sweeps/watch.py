"""`--watch`: what a command shows again and again, until nothing is queued or running any more."""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sweeps.store import now

EVERY_S: Final = 5.0

# Home, and erase to the end of the line or screen: what is redrawn does not flicker as after an erased screen.
_HOME, _LINE_END, _SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"
_CLEAR = "\x1b[2J"


@dataclass(frozen=True, kw_only=True)
class View:
    """What there is to see: the text within so many lines (None: all of it), what must have changed for it to be worth
    showing again where it cannot be redrawn, and whether anything is still to come."""

    text: Callable[[int | None], str]
    essence: object
    is_active: bool


def watch(look: Callable[[], View], every_s: float = EVERY_S) -> None:
    """Show what `look` sees: on a terminal in place, elsewhere a block whenever its essence has changed.

    Returns when nothing is queued or running, and on Ctrl-C: to have seen enough is no failure.
    """
    in_place = sys.stdout.isatty()
    before: View | None = None
    try:
        while True:
            view = look()
            if in_place:
                _redraw(view, first=before is None)
            elif before is None or view.essence != before.essence:
                print(f"{now()[:19]} UTC\n{view.text(None)}\n", flush=True)
            before = view
            if not view.is_active:
                return
            time.sleep(every_s)
    except KeyboardInterrupt:
        if in_place:
            print()


def _redraw(view: View, *, first: bool) -> None:
    """The last time all of it, for it stays."""
    size = shutil.get_terminal_size()
    text = view.text(size.lines - 2 if view.is_active else None)
    if view.is_active:
        text += f"\n{now()[11:19]} UTC; Ctrl-C ends the watching, not the runs"
        text = "\n".join(line[: size.columns] for line in text.splitlines())
    lines = "".join(f"{line}{_LINE_END}\n" for line in text.splitlines())
    print(f"{_CLEAR if first else ''}{_HOME}{lines}{_SCREEN_END}", end="", flush=True)
