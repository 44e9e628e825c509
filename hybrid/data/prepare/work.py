"""What the processes of a preparation do, and how they are given it; one that is killed leaves finished pieces."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from hybrid.data.prepare.overlap import GramIndex
from hybrid.data.prepare.pack import overlaps, write_shard
from hybrid.data.prepare.parts import Part, PartSettings, make_part, open_tokens
from hybrid.data.prepare.sources import Unit
from hybrid.data.prepare.tokenizer import TextTokenizer, TokenizerSpec, open_tokenizer
from hybrid.manifest import ShardFile

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class TokenizeTask:
    """A unit to be tokenised into a part below `directory`."""

    unit: Unit
    settings: PartSettings
    directory: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class OverlapTask:
    """Training documents of one part, to be looked through for n-grams of the validation split."""

    key: str
    training: NDArray[Any]
    grams: Path
    counts: NDArray[np.int64]
    tokenizer: TokenizerSpec
    directory: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTask:
    """Documents to be written to one shard."""

    path: Path
    receipt: Path
    directory: Path
    parts: tuple[str, ...]
    documents: NDArray[Any]
    tokenizer: TokenizerSpec


def tokenize(task: TokenizeTask) -> Part:
    return make_part(task.unit, task.settings, _opened(task.settings.tokenizer), task.directory)


def find_overlaps(task: OverlapTask) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    tokens = open_tokens(task.directory, task.key, task.tokenizer)
    return overlaps(_grams(task.grams), task.counts, tokens, task.training)


def write(task: ShardTask) -> ShardFile:
    return write_shard(task.path, task.receipt, task.directory, task.parts, task.documents, task.tokenizer)


@cache
def _opened(spec: TokenizerSpec) -> TextTokenizer:
    return open_tokenizer(spec)


@cache
def _grams(path: Path) -> GramIndex:
    return GramIndex.load(path)


@final
class Workers:
    """Processes that live as long as the preparation; with one, everything is done right here.

    They are forked from a server that has imported what they need: a caller's threads are no danger to them.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def each(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[T, R | Exception]]:
        """Every task with what the function made of it, or raised, as they come to an end.

        Raises ChildProcessError if a process is killed.
        """
        if self._processes == 1 or len(tasks) <= 1:
            for task in tasks:
                yield task, _outcome(function, task)
            return
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["hybrid.data.prepare.work", "tokenizers"])
            self._pool = ProcessPoolExecutor(self._processes, context, _begin)
        try:
            futures = {self._pool.submit(_outcome, function, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "one of the processes was killed, perhaps for want of memory; what was finished is kept: give the same "
                "command again, with fewer --processes if memory is short"
            ) from error


def _outcome(function: Callable[[T], R], task: T) -> R | Exception:
    try:
        return function(task)
    except Exception as error:
        return error


def _begin() -> None:
    """Ctrl-C ends a process at once, and so does the end of the one that it works for, however that came.

    Left alone it would wait for work for ever: processes of a pool hold both ends of the pipe that it comes through.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
