"""What prepared shards say of themselves: their manifest, read and found without numpy, so that planning can.

Made by `hybrid.data.prepare`, trained on through `hybrid.data.corpora`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hybrid.spec import ConfigError, CorpusSpec, HubSpec

MANIFEST: Final = "manifest.json"
MANIFEST_FORMAT: Final = 1
TOKENIZER: Final = "tokenizer.json"
PREPARE: Final = "python -m hybrid.data prepare"


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


def corpus_settings(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a corpus with what its directory says where they are null; the directory is no part of them.

    Raises ConfigError where neither says it, or both and not the same.
    """
    settings = {key: given for key, given in value.items() if key != "directory"}
    directory = value.get("directory")
    if set(settings) - {"kind", "revision", "fingerprint", "vocab_size"}:
        return settings  # decoding says which are unknown
    if directory is None:
        missing = [name for name in ("fingerprint", "vocab_size") if settings.get(name, "") is None]
        if missing:
            raise ConfigError(
                f"{where}.{missing[0]} = null: expected {where}.directory=DIR, where {PREPARE} put "
                f"the shards, or both {where}.fingerprint and {where}.vocab_size, as python -m hybrid.data show "
                "prints them"
            )
        return settings
    if not isinstance(directory, str) or not directory:
        raise ConfigError(f"{where}.directory = {directory!r}: expected a directory of shards, or null")
    manifest = read_manifest(Path(directory))
    problems = []
    for name, found in (("fingerprint", manifest.fingerprint), ("vocab_size", manifest.vocab_size)):
        if settings.get(name) not in (None, found):
            problems.append(f"{where}.{name} = {settings[name]}: expected {found}, that of {directory}, or null")
        settings[name] = found
    if problems:
        raise ConfigError(problems)
    return settings


def check_corpus(spec: CorpusSpec | HubSpec) -> None:
    """Raises ConfigError for what no shards can have."""
    if isinstance(spec, CorpusSpec) and not re.fullmatch(r"[0-9a-f]{16}", spec.fingerprint):
        raise ConfigError(
            f"data.fingerprint = {spec.fingerprint!r}: expected 16 hex digits, as python -m hybrid.data show "
            "prints them"
        )
    if spec.vocab_size < 1:
        raise ConfigError(f"data.vocab_size = {spec.vocab_size}: expected at least 1")
