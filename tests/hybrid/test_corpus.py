import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.corpus import Document, check_recall, fingerprint, read_stdlib, stdlib_files, stdlib_fingerprint
from hybrid.spec import ConfigError, RecallSpec


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def recall(n_symbols: int = 64, n_pairs: int = 4, power: float = 0.01) -> RecallSpec:
    return RecallSpec(n_symbols=n_symbols, n_pairs=n_pairs, power=power)


def test_corpus_leaves_out_what_depends_on_the_installation(tmp_path: Path) -> None:
    kept = ["abc.py", "unittest/mock.py", "xml/dom/__init__.py"]
    dropped = [
        "_sysconfigdata__linux.py",
        "sitecustomize.py",
        "config-3.11-x86_64/python-config.py",
        "ensurepip/__init__.py",
        "idlelib/idle_test/a.py",
        "lib2to3/tests/a.py",
        "readme.txt",
        "site-packages/numpy/__init__.py",
        "dist-packages/a.py",
        "test/test_abc.py",
        "xml/__pycache__/a.py",
    ]
    write(tmp_path, dict.fromkeys(kept + dropped, b"pass\n"))
    (tmp_path / "directory.py").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert stdlib_files(tmp_path) == kept


def test_fingerprint_follows_paths_and_contents_and_nothing_else(tmp_path: Path) -> None:
    files = {"b/c.py": b"x = 1\n", "a.py": b"\xff\xfe not text\n"}
    original = stdlib_fingerprint(write(tmp_path / "1", files))
    reordered = dict(reversed(list(files.items())))
    assert stdlib_fingerprint(write(tmp_path / "2", {**reordered, "notes.txt": b"other"})) == original
    assert stdlib_fingerprint(write(tmp_path / "3", {**files, "a.py": b"x = 2\n"})) != original
    assert stdlib_fingerprint(write(tmp_path / "4", {"b/d.py": files["b/c.py"], "a.py": files["a.py"]})) != original
    assert stdlib_fingerprint(write(tmp_path / "5", {**files, "empty.py": b""})) != original


def test_fingerprint_is_the_golden_one() -> None:
    documents = [Document(path="a.py", content=b"x = 1\n"), Document(path="b/c.py", content=b"")]
    assert fingerprint(documents) == "014a3f038d0c99e3"


def test_fingerprint_of_an_explicit_root_sees_a_changed_file(tmp_path: Path) -> None:
    before = stdlib_fingerprint(write(tmp_path, {"a.py": b"1"}))
    assert stdlib_fingerprint(write(tmp_path, {"a.py": b"2"})) != before


def test_installed_library_is_a_corpus_of_megabytes_with_one_fingerprint() -> None:
    documents = list(read_stdlib())
    assert sum(len(document.content) for document in documents) > 5e6
    assert [document.path for document in documents] == sorted({document.path for document in documents})
    assert fingerprint(documents) == stdlib_fingerprint()


@pytest.mark.parametrize("files", [{}, {"notes.txt": b"x"}, {"test/test_a.py": b"x"}])
def test_empty_corpus_is_one_message_naming_the_directory(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(ConfigError, match="expected Python sources below") as caught:
        stdlib_fingerprint(write(tmp_path, files))
    assert str(tmp_path) in str(caught.value)
    assert len(caught.value.problems) == 1


def test_unreadable_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: No such file or directory"):
        stdlib_fingerprint(tmp_path / "absent")


def test_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:  # the tests may run as root, whom no mode stops
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, {"a.py": b"x"})
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"a\.py: Permission denied"):
        stdlib_fingerprint(tmp_path)


def test_importing_the_corpus_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, hybrid.corpus; print(sorted({'torch', 'numpy', 'hybrid.data'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_recall_that_just_fits_is_accepted() -> None:
    check_recall(recall(n_symbols=10, n_pairs=4), seq_len=16)
    check_recall(recall(n_symbols=4, n_pairs=1, power=0), seq_len=4)


@pytest.mark.parametrize(
    ("spec", "seq_len", "where"),
    [
        (recall(n_symbols=9, n_pairs=4), 16, ["data.n_pairs = 4: expected at most 3"]),
        (recall(n_symbols=10, n_pairs=4), 15, ["seq_len = 15: expected at least 16"]),
        (recall(n_symbols=3, n_pairs=1), 16, ["data.n_symbols = 3: expected at least 4"]),
        (recall(n_pairs=0), 16, ["data.n_pairs = 0: expected at least 1"]),
        (recall(power=-1), 16, ["data.power = -1: expected a number from 0"]),
        (recall(power=float("nan")), 16, ["data.power = nan: expected a number from 0"]),
        (recall(n_symbols=-8, n_pairs=3, power=11), 11, ["data.n_symbols = -8", "seq_len = 11", "data.power = 11"]),
    ],
)
def test_impossible_recall_says_every_reason(spec: RecallSpec, seq_len: int, where: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_recall(spec, seq_len)
    assert len(caught.value.problems) == len(where)
    assert all(problem.startswith(start) for problem, start in zip(caught.value.problems, where, strict=True))
