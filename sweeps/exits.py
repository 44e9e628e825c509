"""How commands and workers end: their exit codes, and one clear message for whatever stopped a command."""

import contextlib
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

from hybrid.spec import ConfigError
from sweeps.progress import say
from sweeps.scheduler import SchedulerError
from sweeps.store import StoreError, describe_os_error

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130

# Of a process that trains, or a task of a scheduler's job.
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BUSY = 3
EXIT_STOPPED = 75  # sysexits.h EX_TEMPFAIL: run the same again and it goes on


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake becomes one clear message and exit code 2, a store or disk that fails exit
    code 1. Where whoever read the output has gone, as `head` does, it ends without a word, and that is no failure."""
    try:
        return _with_messages(command)
    finally:
        # What is still buffered would fail at the interpreter's end, where nothing can be caught.
        for stream in _streams():
            try:
                stream.flush()
            except OSError:
                _discard(stream)


def _with_messages(command: Callable[[], int]) -> int:
    try:
        code = command()
        if sys.stdout is not None:
            with contextlib.suppress(BrokenPipeError):  # what the command came to stands, read or not
                sys.stdout.flush()
        return code
    except ConfigError as error:
        message, code = "\n".join(f"error: {line}" for line in error.problems), EXIT_MISTAKE
    except (StoreError, SchedulerError, OSError) as error:
        if isinstance(error, BrokenPipeError) and any(map(_reader_gone, _streams())):
            return EXIT_OK
        message, code = f"error: {explain_failure(error)}", EXIT_SOME_FAILED
    except KeyboardInterrupt:
        message, code = "interrupted; the same command goes on where this one stopped", EXIT_INTERRUPTED
    with contextlib.suppress(BrokenPipeError):
        say(message)
    return code


def _streams() -> list[TextIO]:
    """stdout and stderr; a process may have been started without them."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _reader_gone(stream: TextIO) -> bool:
    """Whether the stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):  # no file, or closed
        return False


def _discard(stream: TextIO) -> None:
    """Let what the stream holds, and all that follows, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def explain_failure(error: BaseException) -> str:
    """One line for people."""
    if isinstance(error, OSError) and error.filename is not None:
        # Of a file that could not be copied, it is the copy's place that is at fault.
        return f"{error.filename2 or error.filename}: {describe_os_error(error)}"
    if isinstance(error, OSError):
        return f"{describe_os_error(error)} (where the store, its checkpoints or its data are)"
    in_our_words = isinstance(error, ConfigError | StoreError | SchedulerError)
    return f"{error}" if in_our_words else f"{type(error).__name__}: {error}"
