"""A line that says how far an evaluation has come."""

import sys

import pytest

from hybrid.evals import progress as module
from hybrid.evals.progress import progress


def test_on_a_terminal_one_line_is_written_over_itself_and_cleared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "_EVERY_S", 0.0)
    with progress("needle", 2400, "prompts") as told:
        told(1200)
        told(1)
    lines = capsys.readouterr().err.split("\r\x1b[K")
    assert lines == ["", "needle: 1,200 of 2,400 prompts", "needle: 1,201 of 2,400 prompts", ""]


def test_in_a_log_a_short_evaluation_says_nothing_and_a_long_one_whole_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("nll", None, "windows") as told:
        told(64)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "_PLAIN_EVERY_S", 0.0)
    with progress("nll", None, "windows") as told:
        told(64)
    assert capsys.readouterr().err == "nll: 64 windows\n"


def test_the_line_is_cleared_where_the_evaluation_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def interrupted() -> None:
        with progress("needle", 2, "prompts") as told:
            told(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err.endswith("\r\x1b[K")
