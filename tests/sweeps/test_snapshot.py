"""The code as it was: whole, under its content's name, and what is imported from it."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sweeps.snapshot import snapshot_dir, take_snapshot
from sweeps.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def test_the_same_code_is_kept_once_however_many_take_it_at_once(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: take_snapshot(store, ()), range(4)))
    assert len({snapshot.digest for snapshot in taken}) == 1
    assert [path.name for path in (store.root / "snapshots").iterdir()] == [taken[0].digest]


def test_what_a_job_imports_is_the_snapshot_not_the_working_tree(store: Store, repo: Path) -> None:
    snapshot = take_snapshot(store, ())
    code = "import sweeps.task, hybrid.spec; print(sweeps.task.__file__); print(hybrid.spec.__file__)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, cwd=repo, env={"PYTHONPATH": str(snapshot.directory)}, capture_output=True, text=True, check=True
    )
    assert [Path(line).parents[1] for line in done.stdout.split()] == [snapshot.directory] * 2


def test_other_files_make_another_snapshot_and_are_in_it(store: Store, tmp_path: Path) -> None:
    mixer = tmp_path / "mine.py"
    mixer.write_text("first = 1\n")
    plain, first = take_snapshot(store, ()), take_snapshot(store, (str(mixer),))
    mixer.write_text("second = 2\n")
    second = take_snapshot(store, (str(mixer),))
    assert len({plain.digest, first.digest, second.digest}) == 3
    assert [path.read_text() for path in (*first.mixers, *second.mixers)] == ["first = 1\n", "second = 2\n"]


def test_a_snapshot_says_which_commit_it_was(store: Store) -> None:
    snapshot = take_snapshot(store, ())
    facts = json.loads((snapshot_dir(store, snapshot.digest) / "snapshot.json").read_text())
    assert facts["digest"] == snapshot.digest
    assert {"git_commit", "git_diff_sha", "made_at"} <= facts.keys()


def test_a_full_or_missing_disk_leaves_no_half_of_one(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(OSError, match="store"):
        take_snapshot(Store(tmp_path / "store"), ())
