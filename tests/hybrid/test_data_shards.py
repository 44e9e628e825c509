import errno
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hybrid.corpus import read_stdlib, stdlib_fingerprint
from hybrid.data import shards as under_test
from hybrid.data.shards import BOS, EOS, open_shards, shards_directory
from hybrid.spec import ConfigError, StdlibSpec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "library"
    (base / "package").mkdir(parents=True)
    for at in range(40):
        words = [f"word{random.Random(f'{at}:{i}').randrange(1000)}" for i in range(60)]
        (base / ("package" if at % 2 else ".") / f"m{at}.py").write_text(" ".join(words))
    (base / "bytes.py").write_bytes(bytes(range(256)))
    return base


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "caches" / "data"


@pytest.fixture
def spec(root: Path) -> StdlibSpec:
    return StdlibSpec(fingerprint=stdlib_fingerprint(root), val_percent=20)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refuse_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> dict[str, bytes]:
        raise AssertionError("built again")

    monkeypatch.setattr(under_test, "_build", build)


def test_every_document_is_in_one_split_between_bos_and_eos(spec: StdlibSpec, cache: Path, root: Path) -> None:
    opened = open_shards(spec, cache, root=root)
    found = []
    for tokens in (opened.training, opened.validation):
        assert tokens[0] == BOS
        assert tokens[-1] == EOS
        starts, ends = np.flatnonzero(tokens == BOS), np.flatnonzero(tokens == EOS)
        assert np.array_equal(starts[1:], ends[:-1] + 1)
        found += [tokens[a + 1 : b].astype(np.uint8).tobytes() for a, b in zip(starts, ends, strict=True)]
    assert sorted(found) == sorted(document.content for document in read_stdlib(root))
    assert not opened.training.flags.writeable


def test_manifest_says_what_the_files_are(spec: StdlibSpec, cache: Path, root: Path) -> None:
    directory = open_shards(spec, cache, root=root).directory
    files = files_of(directory)
    manifest = json.loads(files.pop("manifest.json"))
    assert (manifest["format"], manifest["fingerprint"], manifest["clusters"]) == (1, spec.fingerprint, 41)
    assert len(manifest["validation_documents"]) == manifest["files"]["validation.bin"]["documents"]
    assert set(files) == set(manifest["files"])
    for name, content in files.items():
        said = manifest["files"][name]
        assert (said["bytes"], said["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_packed_corpus_is_the_golden_one(spec: StdlibSpec, cache: Path, root: Path) -> None:
    """A change here changes every curve on the library: raise `StdlibSpec.revision` with it."""
    opened = open_shards(spec, cache, root=root)
    content = opened.training.tobytes() + b"|" + opened.validation.tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "2666a11ab0274e28"


def test_second_opening_builds_nothing(
    spec: StdlibSpec, cache: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_shards(spec, cache, root=root)
    refuse_to_build(monkeypatch)
    second = open_shards(spec, cache, root=root)
    assert np.array_equal(first.training, second.training)
    assert list(cache.iterdir()) == [first.directory]


def test_shards_are_used_where_the_library_is_another(spec: StdlibSpec, cache: Path, root: Path) -> None:
    open_shards(spec, cache, root=root)
    assert open_shards(spec, cache, root=root / "absent").directory == shards_directory(spec, cache)


def test_other_splits_have_other_directories(spec: StdlibSpec, cache: Path, root: Path) -> None:
    other = StdlibSpec(fingerprint=spec.fingerprint, val_percent=30)
    assert open_shards(spec, cache, root=root).directory != open_shards(other, cache, root=root).directory
    assert len(list(cache.iterdir())) == 2


def test_another_library_is_refused_naming_both_fingerprints(spec: StdlibSpec, cache: Path, root: Path) -> None:
    asked = StdlibSpec(fingerprint="0123456789abcdef", val_percent=20)
    with pytest.raises(ConfigError, match=r"data\.fingerprint = 0123456789abcdef") as caught:
        open_shards(asked, cache, root=root)
    assert f"use data.fingerprint={spec.fingerprint}" in str(caught.value)
    assert not cache.exists()


def flip_a_token(directory: Path) -> None:
    content = bytearray((directory / "train.bin").read_bytes())
    content[100] ^= 1
    (directory / "train.bin").write_bytes(content)


def cut_the_end(directory: Path) -> None:
    os.truncate(directory / "validation.bin", 10)


def tear_the_manifest(directory: Path) -> None:
    os.truncate(directory / "manifest.json", 40)


def swap_the_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"format": 1, "files": []}')


def lose(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


DAMAGES = {
    "flipped": flip_a_token,
    "cut": cut_the_end,
    "torn manifest": tear_the_manifest,
    "other manifest": swap_the_manifest,
    "no manifest": lose("manifest.json"),
    "no shard": lose("train.bin"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_shards_are_built_again(
    spec: StdlibSpec, cache: Path, root: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    directory = open_shards(spec, cache, root=root).directory
    whole = files_of(directory)
    damage(directory)
    open_shards(spec, cache, root=root)
    assert files_of(directory) == whole
    assert list(cache.iterdir()) == [directory]
    assert "is damaged" in caplog.text


def test_damaged_shards_of_another_library_are_an_error_that_says_so(spec: StdlibSpec, cache: Path, root: Path) -> None:
    cut_the_end(open_shards(spec, cache, root=root).directory)
    (root / "m0.py").write_text("changed")
    with pytest.raises(ConfigError, match=r"is damaged \(validation\.bin has 10 bytes instead of"):
        open_shards(spec, cache, root=root)


def test_loser_of_a_race_uses_the_winners_shards(
    spec: StdlibSpec, cache: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = under_test._build
    inodes = []

    def lose_the_race(*arguments: object) -> dict[str, bytes]:
        monkeypatch.setattr(under_test, "_build", build)
        winner = open_shards(spec, cache, root=root)
        inodes.append((winner.directory / "train.bin").stat().st_ino)
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(under_test, "_build", lose_the_race)
    opened = open_shards(spec, cache, root=root)
    assert [(opened.directory / "train.bin").stat().st_ino] == inodes
    assert list(cache.iterdir()) == [opened.directory]


def test_processes_that_build_at_once_all_succeed(spec: StdlibSpec, cache: Path, root: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from hybrid.data.shards import open_shards; from hybrid.spec import StdlibSpec\n"
        "spec = StdlibSpec(fingerprint=sys.argv[1], val_percent=20)\n"
        "print(len(open_shards(spec, Path(sys.argv[2]), root=Path(sys.argv[3])).training))"
    )
    command = [sys.executable, "-c", code, spec.fingerprint, str(cache), str(root)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert printed == {f"{len(open_shards(spec, cache, root=root).training)}\n"}
    assert list(cache.iterdir()) == [shards_directory(spec, cache)]


def test_full_disk_leaves_nothing_and_names_the_directory(
    spec: StdlibSpec, cache: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write the shards") as caught:
        open_shards(spec, cache, root=root)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(shards_directory(spec, cache))
    assert list(cache.iterdir()) == []
    monkeypatch.undo()
    open_shards(spec, cache, root=root)


def test_cache_that_is_a_file_is_an_error_with_its_path(spec: StdlibSpec, cache: Path, root: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("")
    with pytest.raises(NotADirectoryError) as caught:
        open_shards(spec, cache, root=root)
    assert caught.value.filename == str(shards_directory(spec, cache))


def test_leftovers_of_a_killed_build_are_removed_only_when_old(spec: StdlibSpec, cache: Path, root: Path) -> None:
    old, young = cache / ".stdlib-a-b.1.tmp", cache / ".stdlib-a-b.2.tmp"
    for leftover in (old, young):
        leftover.mkdir(parents=True)
        (leftover / "train.bin").write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    directory = open_shards(spec, cache, root=root).directory
    assert sorted(cache.iterdir()) == sorted([young, directory])


def test_shards_get_the_usual_permissions(spec: StdlibSpec, cache: Path, root: Path) -> None:
    cache.mkdir(parents=True)
    directory = open_shards(spec, cache, root=root).directory
    assert directory.stat().st_mode == cache.stat().st_mode
