"""What planning must know of the data: which files the standard-library corpus has, their fingerprint, what the
manifest of prepared shards says, and whether a recall task can exist. Loads neither torch nor numpy; reading, splitting
and batching are in `hybrid.data`.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from hybrid.spec import ConfigError, CorpusSpec, HubSpec, RecallSpec

MANIFEST: Final = "manifest.json"
MANIFEST_FORMAT: Final = 1
TOKENIZER: Final = "tokenizer.json"
PREPARE: Final = "python -m hybrid.data prepare"

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


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A file of tokens: little-endian numbers, whole documents."""

    name: str
    documents: int
    tokens: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardSplit:
    """The shards of a split, in order; `text_bytes` is the UTF-8 text that its tokens stand for."""

    text_bytes: int
    files: tuple[ShardFile, ...]

    @property
    def tokens(self) -> int:
        return sum(file.tokens for file in self.files)

    @property
    def documents(self) -> int:
        return sum(file.documents for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a directory of prepared shards says of itself, as far as training needs it.

    `declared` is what a `HubSpec` identifies a remote corpus by: its name, its revision, and the tokenizer's name;
    `tokenizer_sha256` that of the tokenizer's JSON file, which lies beside the shards, and "" where tokens are bytes.
    """

    fingerprint: str
    vocab_size: int
    bos: int
    eos: int
    token_bytes: int
    tokenizer_name: str
    tokenizer_sha256: str
    bos_token: str
    eos_token: str
    declared: tuple[str, str, str] | None
    training: ShardSplit
    validation: ShardSplit


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """16 hex digits of a SHA-256 over the tokens of both splits and what is needed to read them, nothing else."""
    identity = {
        "format": manifest["format"],
        **{name: manifest["tokenizer"][name] for name in ("vocab_size", "bos", "eos", "token_bytes")},
        **{split: [file["sha256"] for file in manifest[split]["files"]] for split in ("training", "validation")},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(directory: Path) -> Manifest:
    """What the manifest in `directory` says. Raises ConfigError if there is none, or it contradicts itself."""
    path = directory / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        begun = (directory / ".work").is_dir()
        raise ConfigError(
            f"{path}: expected the manifest of prepared shards; "
            + (f"{PREPARE} was not finished there: give the same command again" if begun else f"{PREPARE} makes them")
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} = {error}: expected the manifest of prepared shards; prepare them again") from error
    try:
        if data["format"] != MANIFEST_FORMAT:
            raise ConfigError(f"{path} = format {data['format']}: expected {MANIFEST_FORMAT}; prepare the shards again")
        tokenizer, declared = data["tokenizer"], data["declared"]
        manifest = Manifest(
            fingerprint=data["fingerprint"],
            **{name: int(tokenizer[name]) for name in ("vocab_size", "bos", "eos", "token_bytes")},
            tokenizer_name=tokenizer["name"],
            tokenizer_sha256=tokenizer["sha256"],
            bos_token=tokenizer["bos_token"],
            eos_token=tokenizer["eos_token"],
            declared=None if declared is None else (declared["name"], declared["corpus_revision"], tokenizer["name"]),
            training=_split(data["training"]),
            validation=_split(data["validation"]),
        )
        found = manifest_fingerprint(data)
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path}: expected the manifest of prepared shards, which has {error}; prepare the shards again"
        ) from error
    if found != manifest.fingerprint:
        raise ConfigError(
            f"{path} = fingerprint {manifest.fingerprint}: expected {found}, as its checksums say; it was edited: "
            "prepare the shards again, or restore it"
        )
    return manifest


def _split(data: dict[str, Any]) -> ShardSplit:
    names = ("name", "documents", "tokens", "size_bytes", "sha256")
    files = tuple(ShardFile(**{name: file[name] for name in names}) for file in data["files"])
    return ShardSplit(text_bytes=int(data["text_bytes"]), files=files)


def find_corpus(data_root: Path, spec: CorpusSpec | HubSpec) -> tuple[Path, Manifest]:
    """The directory right below `data_root` whose shards are those of `spec`, and its manifest.

    Raises ConfigError where there is none, saying what is there and how to make them; for a remote corpus also where
    two of one name, revision and tokenizer are different.
    """
    found: list[tuple[Path, Manifest]] = []
    problems: list[str] = []
    others: list[str] = []
    directories = sorted(path.parent for path in data_root.glob(f"*/{MANIFEST}")) if data_root.is_dir() else []
    for directory in directories:
        if directory.name.startswith("stdlib-"):
            continue
        try:
            manifest = read_manifest(directory)
        except ConfigError as error:
            problems += error.problems
            continue
        same = (
            manifest.fingerprint == spec.fingerprint
            if isinstance(spec, CorpusSpec)
            else manifest.declared == (spec.name, spec.corpus_revision, spec.tokenizer)
        )
        if same:
            found.append((directory, manifest))
        else:
            others.append(directory.name)
    if not found:
        there = f"there are {', '.join(others)}" if others else "there are none"
        raise ConfigError([_not_there(spec, data_root, there), *problems])
    if len({manifest.fingerprint for _, manifest in found}) > 1:
        names = ", ".join(f"{directory.name} ({manifest.fingerprint})" for directory, manifest in found)
        raise ConfigError(
            f"{data_root}: {names} say that they are {_called(spec)}, and are different; leave one there, or "
            "name one: data=corpus data.directory=DIR"
        )
    directory, manifest = found[0]
    if manifest.vocab_size != spec.vocab_size:
        raise ConfigError(
            f"data.vocab_size = {spec.vocab_size}: expected {manifest.vocab_size}, the tokens of {directory / MANIFEST}"
        )
    return directory, manifest


def _called(spec: CorpusSpec | HubSpec) -> str:
    if isinstance(spec, CorpusSpec):
        return f"the corpus {spec.fingerprint}"
    return f"{spec.name} at {spec.corpus_revision} through {spec.tokenizer}"


def _not_there(spec: CorpusSpec | HubSpec, data_root: Path, there: str) -> str:
    if isinstance(spec, CorpusSpec):
        return (
            f"data.fingerprint = {spec.fingerprint}: expected its shards below {data_root}: {there}; copy or link the "
            f"directory there, or make it again: {PREPARE}"
        )
    return (
        f"data.name = {spec.name}: expected the shards of {_called(spec)} below {data_root}: {there}; make them: "
        f"{PREPARE} NAME hf://datasets/{spec.name}@{spec.corpus_revision}/FILES --tokenizer {spec.tokenizer}, or "
        f"from local copies of its files, with --of {spec.name}@{spec.corpus_revision}"
    )
