"""The standard-library corpus as two memory-mapped arrays of tokens, built once and then only read.

    <cache_dir>/stdlib-<fingerprint>-<hash of how it is split and packed>/train.bin  validation.bin  manifest.json

Each document is bos, its bytes, eos; tokens are little-endian 16-bit numbers. A build goes into a hidden sibling that
is renamed when complete, so a directory of the final name is whole or was damaged later; of processes that build at
once, all but the first to rename discard their own and use the first one's.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hybrid.corpus import Document, fingerprint, read_stdlib
from hybrid.data.split import MIN_SIMILARITY, SHINGLE_WORDS, near_duplicate_clusters, split
from hybrid.durable import make_dir, sync_dir
from hybrid.spec import ConfigError, StdlibSpec

BOS: Final = 256
EOS: Final = 257

_FORMAT: Final = 1
_TOKEN: Final = np.dtype("<u2")
_MANIFEST: Final = "manifest.json"
_TRAINING: Final = "train.bin"
_VALIDATION: Final = "validation.bin"
_SPLIT_FILES: Final = (_TRAINING, _VALIDATION)
_ABANDONED_AFTER_S: Final = 24 * 3600.0  # a build takes seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards:
    """The tokens of both splits, read-only."""

    directory: Path
    training: NDArray[np.uint16]
    validation: NDArray[np.uint16]


class _DamagedError(Exception):
    """What is wrong with shards that are there."""


def shards_directory(spec: StdlibSpec, cache_dir: Path) -> Path:
    """Where the shards of `spec` are, or would be."""
    recipe = [_FORMAT, spec.revision, spec.val_percent, SHINGLE_WORDS, MIN_SIMILARITY]
    return cache_dir / f"stdlib-{spec.fingerprint}-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]}"


def open_shards(spec: StdlibSpec, cache_dir: Path, *, root: Path | None = None) -> Shards:
    """The shards of `spec`, checked against their checksums; built from the library below `root` if missing or damaged.

    Raises ConfigError if they must be built and the library has another fingerprint, cannot be read or cannot be split;
    OSError, naming the directory, if they cannot be written: nothing half-built stays behind.
    """
    directory = shards_directory(spec, cache_dir)
    try:
        return _load(directory, spec)
    except FileNotFoundError:
        missing = f"{directory} does not exist"
    except _DamagedError as damage:
        missing = f"{directory} is damaged ({damage})"
        _log.warning("%s: building it again", missing)

    documents = list(read_stdlib(root))
    found = fingerprint(documents)
    if found != spec.fingerprint:
        raise ConfigError(
            f"data.fingerprint = {spec.fingerprint}: expected {found}, that of the library of this Python "
            f"{platform.python_version()}, as {missing}; use data.fingerprint={found} for a run of its own, the Python "
            f"that has {spec.fingerprint}, or a copy of its shards"
        )
    _publish(directory, spec, _build(spec, documents))
    try:
        return _load(directory, spec)
    except _DamagedError as damage:
        raise OSError(errno.EIO, f"shards damaged as soon as they were written ({damage})", str(directory)) from damage


def _build(spec: StdlibSpec, documents: Sequence[Document]) -> dict[str, bytes]:
    """The files of the shards by name."""
    clusters = near_duplicate_clusters([document.content for document in documents])
    training, validation = split(documents, clusters, spec.val_percent)
    files: dict[str, bytes] = {}
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "fingerprint": spec.fingerprint,
        "val_percent": spec.val_percent,
        "clusters": len(clusters),
        "near_duplicates": [[documents[index].path for index in cluster] for cluster in clusters if len(cluster) > 1],
        "validation_documents": sorted(documents[index].path for index in validation),
        "files": {},
    }
    for name, chosen in zip(_SPLIT_FILES, (training, validation), strict=True):
        content = _pack([documents[index].content for index in chosen]).tobytes()
        files[name] = content
        manifest["files"][name] = {
            "documents": len(chosen),
            "tokens": len(content) // _TOKEN.itemsize,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    files[_MANIFEST] = json.dumps(manifest, indent=1).encode()
    return files


def _pack(contents: Sequence[bytes]) -> NDArray[np.uint16]:
    tokens = np.empty(sum(map(len, contents)) + 2 * len(contents), dtype=_TOKEN)
    at = 0
    for content in contents:
        end = at + 1 + len(content)
        tokens[at] = BOS
        tokens[at + 1 : end] = np.frombuffer(content, dtype=np.uint8)
        tokens[end] = EOS
        at = end + 1
    return tokens


def _load(directory: Path, spec: StdlibSpec) -> Shards:
    """Raises FileNotFoundError if there is no such directory, _DamagedError if it is not what its manifest says."""
    os.stat(directory)
    try:
        manifest = json.loads((directory / _MANIFEST).read_bytes())
        said = {name: (manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]) for name in _SPLIT_FILES}
        if (manifest["format"], manifest["fingerprint"]) != (_FORMAT, spec.fingerprint):
            raise _DamagedError(f"{_MANIFEST} is of other shards")
    except FileNotFoundError as error:
        raise _DamagedError(f"{_MANIFEST} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{_MANIFEST} cannot be understood") from error
    training, validation = (_map(directory / name, *said[name]) for name in _SPLIT_FILES)
    return Shards(directory=directory, training=training, validation=validation)


def _map(path: Path, size: int, sha256: str) -> NDArray[np.uint16]:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise _DamagedError(f"{path.name} is missing") from error
    if found != size or not size:
        raise _DamagedError(f"{path.name} has {found} bytes instead of {size}")
    tokens = np.memmap(path, dtype=_TOKEN, mode="r")
    # Some 20 ms for the whole library: little beside a run that would learn from altered data.
    if hashlib.sha256(tokens.data).hexdigest() != sha256:
        raise _DamagedError(f"{path.name} does not have its checksum")
    return tokens


def _publish(directory: Path, spec: StdlibSpec, files: dict[str, bytes]) -> None:
    """Puts `files` in place as `directory`, whole or not at all, unless another process was first."""
    temporary = _hidden_sibling(directory)
    try:
        make_dir(directory.parent)
        make_dir(temporary)
        _remove_abandoned(temporary)
        for name, content in files.items():
            with open(temporary / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_dir(temporary)
        _put_in_place(temporary, directory, spec)
        sync_dir(directory.parent)
    except OSError as error:
        size = sum(map(len, files.values())) / 1e6
        raise OSError(
            error.errno, f"cannot write the shards of the corpus ({size:.1f} MB): {error.strerror}", str(directory)
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, directory: Path, spec: StdlibSpec) -> None:
    while True:
        try:
            os.rename(temporary, directory)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with contextlib.suppress(_DamagedError, FileNotFoundError):
            _load(directory, spec)
            return  # another process was first
        # Renamed, not emptied: who has the damaged files open keeps them, and no reader meets a directory half removed.
        aside = _hidden_sibling(directory)
        with contextlib.suppress(FileNotFoundError):
            os.rename(directory, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _hidden_sibling(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.{secrets.token_hex(8)}.tmp")


def _remove_abandoned(own: Path) -> None:
    """Removes what killed builds left; ages are counted from `own`, made just now, by one file system's clock."""
    now = own.stat().st_mtime
    for path in own.parent.glob(".stdlib-*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if now - path.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)
