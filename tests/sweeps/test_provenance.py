"""Which code a record says it comes from."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sweeps import provenance
from sweeps.provenance import begin, code_state, command
from sweeps.store import Store


def git(directory: Path, *arguments: str) -> str:
    name = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    done = subprocess.run(["git", *name, *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that is this code, to the functions under test."""
    root = tmp_path / "code"
    (root / "sweeps").mkdir(parents=True)
    (root / "sweeps" / "a.py").write_text("one\n")
    (root / "notes.txt").write_text("nothing that runs\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "_ROOT", root)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_code_as_it_was_committed_has_no_difference(code: Path, store: Store) -> None:
    (code / "notes.txt").write_text("changed\n")
    state = code_state(store)
    assert state == {"git_commit": git(code, "rev-parse", "HEAD"), "git_diff_sha": None, "snapshot": None}
    assert not store.root.exists()


def test_the_difference_is_kept_once_and_makes_the_code_again(code: Path, store: Store, tmp_path: Path) -> None:
    (code / "sweeps" / "a.py").write_bytes(b"one\r\ntwo \xc3\xa4\n")
    (code / "sweeps" / "new.py").write_text("new\n")
    (code / "sweeps" / "blob").write_bytes(bytes(range(256)))
    before = git(code, "status", "--porcelain")
    state = code_state(store)
    assert code_state(store) == state
    (patch,) = (store.root / "diffs").iterdir()
    assert patch.name == f"{state['git_diff_sha']}.patch"
    assert git(code, "status", "--porcelain") == before
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(code), str(again))
    git(again, "apply", str(patch))
    for name in ("a.py", "new.py", "blob"):
        assert (again / "sweeps" / name).read_bytes() == (code / "sweeps" / name).read_bytes()


def test_a_store_that_cannot_be_written_to_loses_the_patch_and_no_more(code: Path, tmp_path: Path) -> None:
    (code / "sweeps" / "a.py").write_text("two\n")
    (tmp_path / "store").write_text("a file")
    assert code_state(Store(tmp_path / "store"))["git_diff_sha"] is not None


def test_a_repository_around_an_installation_is_not_its_own(
    code: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_ROOT", code / "sweeps")
    assert code_state(store)["git_commit"] is None


def test_code_of_a_snapshot_says_what_the_snapshot_does(code: Path, store: Store) -> None:
    (code / "snapshot.json").write_text('{"git_commit": "abc", "git_diff_sha": null, "digest": "d1", "schema": 1}')
    assert code_state(store) == {"git_commit": "abc", "git_diff_sha": None, "snapshot": "d1"}


def test_without_git_there_is_no_commit(code: Path, store: Store) -> None:
    shutil.rmtree(code / ".git")
    assert code_state(store)["git_commit"] is None


def test_what_is_the_same_for_a_process_is_gathered_once(
    code: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = begin(store).facts()
    monkeypatch.setattr(provenance, "code_state", lambda _: pytest.fail("asked again"))
    assert begin(store).facts() is facts
    assert facts["git_commit"] == git(code, "rev-parse", "HEAD")
    assert facts["versions"]["torch"]


def test_the_command_is_what_was_typed() -> None:
    told = command()
    assert "python" in Path(told[0]).name
    assert len(told) > 1
