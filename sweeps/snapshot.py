"""The code as it was at submission: jobs that begin days later run that, not what the working tree has become.

snapshots/<digest>/hybrid/ sweeps/     what a job needs, named by its content; made whole under another name first
                   mixers/             files of outside mixers
                   snapshot.json       which commit it was, and how it differed from that
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid.durable import inherit_group_write, make_dir
from sweeps.provenance import code_state
from sweeps.store import RECORD_SCHEMA, Store, now

_PACKAGES = ("hybrid", "sweeps")
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where the code is; `mixers` are the copies of the files that were given, in their order."""

    digest: str
    directory: Path
    mixers: tuple[Path, ...]


def snapshot_dir(store: Store, digest: str) -> Path:
    """Where a snapshot is."""
    return store.root / "snapshots" / digest


def take_snapshot(store: Store, mixers: Sequence[str]) -> Snapshot:
    """Copy this very code, and the files of outside mixers, into the store, unless they are there already.

    Compiled files come along where they are there, as jobs then start sooner. Raises OSError.
    """
    files = {str(path.relative_to(_ROOT)): path for path in _sources()}
    copies = {path: f"mixers/{i}/{Path(path).name}" for i, path in enumerate(mixers)}
    files |= {copy: Path(path) for path, copy in copies.items()}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
    digest = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]
    directory = snapshot_dir(store, digest)
    if not directory.is_dir():
        _make(store, digest, files)
    return Snapshot(
        digest=digest, directory=directory, mixers=tuple(directory.absolute() / copies[path] for path in mixers)
    )


def _sources() -> Iterator[Path]:
    for package in _PACKAGES:
        yield from (path for path in (_ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc")


def _make(store: Store, digest: str, files: dict[str, Path]) -> None:
    final = snapshot_dir(store, digest)
    make_dir(final.parent)
    made = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=final.parent))
    try:
        made.chmod(0o777 & ~_umask())
        inherit_group_write(made)
        for name, path in files.items():
            make_dir((made / name).parent)
            _copy(path, made / name)
            compiled = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
            if path.suffix == ".py" and compiled.is_file():
                make_dir((made / name).parent / "__pycache__")
                _copy(compiled, (made / name).parent / "__pycache__" / compiled.name)
        facts = {"schema": RECORD_SCHEMA, "digest": digest, **code_state(store), "made_at": now()}
        (made / "snapshot.json").write_text(json.dumps(facts, sort_keys=True) + "\n")
        try:
            os.rename(made, final)
        except OSError:
            if not final.is_dir():
                raise  # else another made the same meanwhile
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _copy(path: Path, copy: Path) -> None:
    """With its time, by which Python tells whether a compiled file is of it; with the rights of a new file."""
    shutil.copy2(path, copy)
    copy.chmod((path.stat().st_mode | 0o666) & ~_umask())


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before
