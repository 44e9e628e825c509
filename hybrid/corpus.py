"""What planning must know of the data: which files the standard-library corpus has, their fingerprint, and whether a
recall or needle task can exist. Loads neither torch nor numpy; reading, splitting and batching are in `hybrid.data`.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hybrid.spec import ConfigError, NeedleSpec, RecallSpec

# What an installation has or lacks by accident, left out so that two installations of one Python version are likely to
# share a corpus: test suites (19 of 31 MB, and missing from most distributions' packages), what pip put there, and the
# pip that came along.
_SKIPPED_DIRECTORIES = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "lib-dynload", "ensurepip", "test", "tests", "idle_test"}
)
# Generated when Python was built, or written by the administrator.
_SKIPPED_DIRECTORY_PREFIX = "config-"
_SKIPPED_FILES = frozenset({"sitecustomize.py", "usercustomize.py"})
_SKIPPED_FILE_PREFIX = "_sysconfigdata"

_MAX_POWER = 10.0


@dataclass(frozen=True, kw_only=True)
class Document:
    """One source file: its path relative to the corpus, with forward slashes, and its bytes."""

    path: str
    content: bytes


def stdlib_root() -> Path:
    """The directory of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def stdlib_files(root: Path | None = None) -> list[str]:
    """The sorted relative paths of the corpus below `root`, by default the running Python's library.

    Every `.py` file but test suites, installed packages, and what is generated or edited at installation. Links to
    directories are not followed. Raises ConfigError if there is none, or a directory cannot be read.
    """
    base = stdlib_root() if root is None else root
    paths = sorted(_walk(base, ""))
    if not paths:
        raise ConfigError(
            f"data = stdlib: expected Python sources below {base}, found none; "
            "use a Python that has its library's sources, or other data"
        )
    return paths


def read_stdlib(root: Path | None = None) -> Iterator[Document]:
    """The corpus below `root`, in the order of `stdlib_files`. Raises ConfigError naming what cannot be read."""
    base = stdlib_root() if root is None else root
    for path in stdlib_files(base):
        try:
            content = (base / path).read_bytes()
        except OSError as error:
            raise _unreadable(error) from error
        yield Document(path=path, content=content)


def fingerprint(documents: Iterable[Document]) -> str:
    """The first 16 hex digits of a SHA-256 over the (path, SHA-256 of the content) pairs, in the order given."""
    total = hashlib.sha256()
    for document in documents:
        total.update(os.fsencode(document.path) + b"\0" + hashlib.sha256(document.content).digest())
    return total.hexdigest()[:16]


def stdlib_fingerprint(root: Path | None = None) -> str:
    """The fingerprint of the corpus below `root`; that of the running Python's library is worked out once a process.

    Raises ConfigError for an empty corpus and for what cannot be read.
    """
    return _installed_fingerprint() if root is None else fingerprint(read_stdlib(root))


@cache
def _installed_fingerprint() -> str:
    return fingerprint(read_stdlib())


def _walk(directory: Path, prefix: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as listing:
            entries = list(listing)
    except OSError as error:
        raise _unreadable(error) from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_DIRECTORIES and not entry.name.startswith(_SKIPPED_DIRECTORY_PREFIX):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        elif (
            entry.name.endswith(".py")
            and entry.name not in _SKIPPED_FILES
            and not entry.name.startswith(_SKIPPED_FILE_PREFIX)
            and entry.is_file()
        ):
            yield prefix + entry.name


def _unreadable(error: OSError) -> ConfigError:
    return ConfigError(
        f"data = stdlib: expected to read {error.filename}: {error.strerror}; "
        "make it readable, or use another Python or other data"
    )


def check_recall(spec: RecallSpec, seq_len: int) -> None:
    """Raises ConfigError with every reason why `spec` cannot be laid out in `seq_len` positions.

    One symbol is the filler and half of them are values, so there are n_symbols // 2 - 1 keys; a pair takes two
    positions, and so does the slot that a query is put in: 4 * n_pairs positions at least.
    """
    problems = []
    n_keys = spec.n_symbols // 2 - 1
    if n_keys < 1:
        problems.append(
            f"data.n_symbols = {spec.n_symbols}: expected at least 4, of which one is filler, one a key and two values"
        )
    if spec.n_pairs < 1:
        problems.append(f"data.n_pairs = {spec.n_pairs}: expected at least 1")
    elif 1 <= n_keys < spec.n_pairs:
        problems.append(
            f"data.n_pairs = {spec.n_pairs}: expected at most {n_keys}, the keys among n_symbols = {spec.n_symbols} "
            f"(half of them, less the filler); {2 * spec.n_pairs + 2} symbols would do"
        )
    if seq_len < 4 * spec.n_pairs:
        problems.append(
            f"seq_len = {seq_len}: expected at least {4 * spec.n_pairs}, two positions for each of data.n_pairs = "
            f"{spec.n_pairs} pairs and two for each query"
        )
    if not 0 <= spec.power <= _MAX_POWER:
        problems.append(
            f"data.power = {spec.power}: expected a number from 0 to {_MAX_POWER:g}; "
            "0.01 is the published one, 1 draws gaps uniformly"
        )
    if problems:
        raise ConfigError(problems)


_LETTERS = 26
_MAX_DIGITS = 9


def check_needle(spec: NeedleSpec, seq_len: int) -> None:
    """Raises ConfigError with every reason why `spec` cannot be laid out in `seq_len` positions and a last target."""
    problems = []
    if not 1 <= spec.n_needles <= _LETTERS:
        problems.append(f"data.n_needles = {spec.n_needles}: expected 1 to {_LETTERS}, a capital letter for each")
    if not 1 <= spec.n_digits <= _MAX_DIGITS:
        problems.append(f"data.n_digits = {spec.n_digits}: expected 1 to {_MAX_DIGITS}")
    least = 2 * spec.n_needles * (spec.n_digits + 2)
    if not problems and seq_len < least:
        problems.append(
            f"seq_len = {seq_len}: expected at least {least}: {spec.n_digits + 2} bytes for each of data.n_needles = "
            f"{spec.n_needles} needles, and as many for the questions"
        )
    if problems:
        raise ConfigError(problems)
