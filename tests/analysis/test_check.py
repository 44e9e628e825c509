"""Committed tables are those that come out: `--check`, and the small store in tests/data that CI checks."""

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main

ARGUMENTS = {
    "losses": ["--against", "attention", "--margin", "0.01"],
    "race": [],
    "table4": ["--reference"],
}


@pytest.fixture
def data(repo: Path, tmp_path: Path) -> Path:
    """A copy of the committed store and its tables."""
    for name in ("results", "tables"):
        shutil.copytree(repo / "tests" / "data" / name, tmp_path / name, ignore=shutil.ignore_patterns("index.*"))
    return tmp_path


def make(repo: Path) -> Any:
    spec = importlib.util.spec_from_file_location("make", repo / "tests" / "data" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def check(data: Path, sweep: str, *paths: Path) -> int:
    checked = [str(path) for path in paths or (data / "tables" / sweep,)]
    return main(["tables", sweep, "--store", str(data / "results"), *ARGUMENTS[sweep], "--check", *checked])


def test_the_committed_store_and_tables_are_what_the_script_makes(repo: Path, data: Path, tmp_path: Path) -> None:
    """Where this fails and the change is meant: python tests/data/make.py, and look at what git says."""
    made = tmp_path / "made"
    made.mkdir()
    make(repo).make(made)
    assert files(made / "results") == files(data / "results")
    assert list(files(made / "tables")) == list(files(data / "tables"))
    for sweep in ARGUMENTS:
        assert check(data, sweep, made / "tables" / sweep) == 0


@pytest.mark.parametrize("sweep", ARGUMENTS)
def test_the_committed_tables_are_those_that_come_out(
    data: Path, sweep: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(data, sweep) == 0
    assert capsys.readouterr().out == ""


def test_a_changed_record_is_exit_code_1_and_a_diff(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = next(path for path in (data / "results").rglob("record.json") if "1.5012" in path.read_text())
    record.write_text(record.read_text().replace("1.5012", "1.6012"))
    assert check(data, "losses") == 1
    out = capsys.readouterr().out
    assert f"--- {data / 'tables' / 'losses' / 'table.md'}" in out
    assert "\n-| attention " in out
    assert "\n+| attention " in out


def test_a_table_edited_by_hand_is_found(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "tables" / "race" / "table.tex"
    path.write_text(path.read_text().replace("4.7M", "4.8M").rstrip("\n"))
    assert check(data, "race", path) == 1
    assert "-Mamba" in capsys.readouterr().out
    assert check(data, "race", path.with_suffix(".md")) == 0


def test_a_table_that_does_not_come_out_any_more_is_a_difference(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = data / "tables" / "race"
    shutil.copy(data / "tables" / "losses" / "differences.csv", directory)
    assert check(data, "race") == 1
    assert f"--- {directory / 'differences.csv'}" in capsys.readouterr().out


def test_the_last_digits_of_another_machine_are_no_difference(data: Path) -> None:
    path = data / "tables" / "losses" / "table.json"
    text = path.read_text()
    long = max(re.findall(r"\d\.\d{12,}", text), key=len)
    path.write_text(text.replace(long, f"{float(long) * (1 + 1e-13):.17g}"))
    assert check(data, "losses") == 0
    path.write_text(text.replace(long, f"{float(long) * (1 + 1e-6):.17g}"))
    assert check(data, "losses") == 1


def test_figures_beside_the_tables_are_left_alone(data: Path) -> None:
    (data / "tables" / "race" / "figure.svg").write_text("<svg/>")
    assert check(data, "race") == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/table.md", "no such file"),
        ("tables/race/tabel.md", "did you mean table.md"),
        ("results", "holds no table"),
    ],
)
def test_nothing_to_compare_with_is_exit_code_2(
    data: Path, path: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(data, "race", data / path) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_text_is_said_to_be_none(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "tables" / "race" / "table.md"
    path.write_bytes(b"\xff\xfe")
    assert check(data, "race", path) == 2
    assert "UTF-8" in capsys.readouterr().err
