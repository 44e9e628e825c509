"""Exports written, and read again once they have been looked at from end to end."""

import contextlib
import hashlib
import json
import os
import socket
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from hybrid.durable import sync_dir
from hybrid.spec import ConfigError
from sweeps.progress import say
from sweeps.store import (
    FORMAT,
    Store,
    StoreError,
    now,
)
from sweeps.text import size_text
from sweeps.transfer.members import (
    BLOCK_BYTES,
    FORMAT_FILE,
    Member,
    Progress,
    choose_all,
    choose_named,
    constant_member,
    members,
    parsed,
)

_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")

MANIFEST: Final = "manifest.json"

MANIFEST_SCHEMA: Final = 1


def export_store(
    store: Store, names: Sequence[str], file: Path, *, everything: bool, weights: bool, points: bool
) -> int:
    """`python -m sweeps export`: gives the exit code. Raises ConfigError, StoreError, OSError."""
    problems = []
    if not file.name.endswith(_SUFFIXES):
        problems.append(f"export: FILE = {file}: expected a name that ends in .tar or .tar.gz")
    elif file.exists():
        problems.append(f"export: FILE = {file}: is there already: expected the name of a new file")
    elif not file.absolute().parent.is_dir():
        problems.append(f"export: FILE = {file}: expected a directory that is there")
    if everything == bool(names):
        problems.append("export: expected the names of sweeps or runs, or --all for everything; and not both")
    if problems:
        raise ConfigError(problems)
    if everything:
        choice = choose_all(weights=weights, points=points)
    else:
        choice = choose_named(store, names, weights=weights, points=points)
    left: list[str] = []
    count, size = write_archive(file, members(store, choice, left), source=str(store.root.absolute()))
    for line in left:
        say(f"left out: {line}")
    print(f"{file}: {count:,} files, {size_text(size)}; merge it into another store with: python -m sweeps import")
    return 0


def write_archive(file: Path, found: Iterable[Member], *, source: str) -> tuple[int, int]:
    """Write an archive that appears under its name only when it is whole; gives its number of files and its bytes."""
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    listed: dict[str, tuple[int, str]] = {}
    progress = Progress("exported")
    try:
        with open(temporary, "xb") as raw:
            with _tar_into(raw, compressed=not file.name.endswith(".tar")) as tar:
                for member in found:
                    try:
                        opened = member.open()
                    except FileNotFoundError:
                        continue  # a newer measurement has replaced it, say
                    with opened as content:
                        listed[member.name] = _add(tar, member, content)
                    progress(member.size)
                manifest = {"schema": MANIFEST_SCHEMA, "format": FORMAT, "source": source, "at": now(), "files": listed}
                last = constant_member(MANIFEST, json.dumps(manifest) + "\n")
                with last.open() as content:
                    _add(tar, last, content)
            raw.flush()
            os.fsync(raw.fileno())
        try:
            os.link(temporary, file)
        except FileExistsError:
            raise ConfigError(f"export: FILE = {file}: has come to be there meanwhile: it was left alone") from None
        sync_dir(file.absolute().parent)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return len(listed), file.stat().st_size


def _tar_into(file: BinaryIO, *, compressed: bool) -> tarfile.TarFile:
    # Weights hardly become smaller; the rest does with little effort.
    return (
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=3) if compressed else tarfile.open(fileobj=file, mode="w")
    )


def _add(tar: tarfile.TarFile, member: Member, content: BinaryIO) -> tuple[int, str]:
    """Add a file, as long as it is now; gives its length and digest."""
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    info = tarfile.TarInfo(member.name)
    info.size, info.mtime, info.mode = size, int(member.mtime), 0o644
    if member.name.startswith("requests/"):  # by the fraction of a second, too, are they in order
        info.pax_headers = {"mtime": f"{member.mtime:.9f}"}
    reader = _Hashing(content)
    tar.addfile(info, reader)
    return size, reader.sha256.hexdigest()


class _Hashing:
    """A file to read from that hashes what goes by."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        return content


@dataclass(frozen=True, kw_only=True)
class Archive:
    """What is to be imported: files by name, in the order in which they are best read, and where they are from."""

    members: Mapping[str, Member]
    source: str


@contextlib.contextmanager
def opened(source: Path, *, weights: bool, points: bool, left: list[str]) -> Iterator[Archive]:
    """An export, looked at from end to end before it is given; or a store, of which what is chosen is taken.

    Raises ConfigError for what is neither, or is torn, altered, or not made by `export`; StoreError for a newer format.
    """
    if source.is_dir():
        if not (source / FORMAT_FILE).is_file():
            raise ConfigError(f"import: {source}: no {FORMAT_FILE} in it: expected a store, or a file that export made")
        other = Store(source)
        other.check_format()
        found = {m.name: m for m in members(other, choose_all(weights=weights, points=points), left)}
        yield Archive(members=found, source=str(source.absolute()))
        return
    if not source.is_file():
        raise ConfigError(f"import: {source}: no such file or directory")
    tar = _tar_from(source)
    with tar:
        try:
            archive = _checked(tar, source)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise ConfigError(f"import: {source}: torn or damaged ({error}). Nothing was written") from None
        yield archive


def _tar_from(source: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(source, "r:*")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ConfigError(f"import: {source}: {error}: expected a file that export made. Nothing was written") from None


def _checked(tar: tarfile.TarFile, source: Path) -> Archive:
    def refused(why: str) -> ConfigError:
        return ConfigError(f"import: {source}: {why}: expected a file that export made. Nothing was written")

    found: dict[str, Member] = {}
    seen: dict[str, list[Any]] = {}
    manifest: dict[str, Any] | None = None
    progress = Progress("checked")
    for info in tar:
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
            raise refused(f"{info.name!r} is no plain file")
        if PurePosixPath(info.name).is_absolute() or ".." in info.name.split("/") or parsed(info.name) is None:
            raise refused(f"{info.name!r} is not the name of a file of a store")
        if info.name in seen:
            raise refused(f"{info.name!r} is in it twice")
        if manifest is not None:
            raise refused(f"{info.name!r} comes after the manifest")
        content = tar.extractfile(info)
        assert content is not None
        sha256, kept = hashlib.sha256(), bytearray()
        while block := content.read(BLOCK_BYTES):
            sha256.update(block)
            if info.name in (MANIFEST, FORMAT_FILE):
                kept += block
        seen[info.name] = [info.size, sha256.hexdigest()]
        if info.name == FORMAT_FILE:
            _check_format(bytes(kept), source)
        if info.name == MANIFEST:
            manifest = json_object(bytes(kept))
            if manifest is None:
                raise refused("its manifest is damaged")
        else:
            found[info.name] = Member(name=info.name, size=info.size, mtime=float(info.mtime), open=_opener(tar, info))
        progress(info.size)
    if manifest is None:
        raise refused("it has no manifest at its end, so it is torn, or something else")
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise StoreError(f"{source}: schema {manifest.get('schema')}, this version reads schema {MANIFEST_SCHEMA}")
    if manifest.get("files") != {name: facts for name, facts in seen.items() if name != MANIFEST}:
        raise refused("its files are not those of its manifest")
    if FORMAT_FILE not in found:
        raise refused(f"it has no {FORMAT_FILE}")
    return Archive(members=found, source=str(manifest.get("source")))


def _opener(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], BinaryIO]:
    def open_() -> BinaryIO:
        file = tar.extractfile(info)
        assert file is not None
        return file  # type: ignore[return-value]

    return open_


def _check_format(content: bytes, source: Path) -> None:
    found = (json_object(content) or {}).get("format")
    if found != FORMAT:
        raise StoreError(
            f"{source}: format {found}, this version reads format {FORMAT}: "
            "use the version of hybrid-ablations that wrote it. Nothing was written"
        )


def json_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
