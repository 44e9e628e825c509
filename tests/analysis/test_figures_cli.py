"""`python -m analysis figures`: names, sources, kinds, formats, and what is said of what cannot be drawn."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main


def figures(*arguments: object) -> int:
    return main(["figures", *map(str, arguments)])


def written(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_figure_of_the_paper_needs_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert figures("Figure 3a", "--source", "paper", "--format", "svg", "pdf") == 0
    assert written(tmp_path) == ["fig3a.pdf", "fig3a.svg"]
    assert ">Inter-H 1:5<" in (tmp_path / "fig3a.svg").read_text()


def test_all_draws_what_is_printed_and_says_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures("all", "--source", "paper", "--format", "json", "--out", tmp_path) == 0
    drawn = ["dimensions", "fig1b", "fig2", "fig3a", "fig3b", "intra-positions", "positions", "window-positions"]
    assert written(tmp_path) == [f"{name}.json" for name in drawn]
    errors = capsys.readouterr().err
    for name in ("fig3c", "fig4", "fig8"):
        assert f"note: {name}: paper: not printed" in errors
    content = json.loads((tmp_path / "fig1b.json").read_text())
    assert len(content["panels"][0]["points"]) == 16


def test_all_of_a_store_without_any_of_them_is_an_error(text: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures("all", "--store", text.store.root) == 2
    assert capsys.readouterr().err.count("no such request") == 11


def test_list_names_every_figure_and_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert figures("list") == 0
    printed = capsys.readouterr().out
    assert "fig4" in printed
    assert "not printed" in printed
    assert "\npareto " in printed
    assert all(len(line) <= 120 for line in printed.splitlines())


def test_a_kind_is_asked_of_any_request_and_names_the_files(text: Any, tmp_path: Path) -> None:
    for kind in ("final", "pareto", "cache"):
        assert figures("demo_text", "--store", text.store.root, "--kind", kind, "--out", tmp_path / "o") == 0
    assert written(tmp_path / "o") == [
        f"{kind}.{form}" for kind in ("cache", "final", "pareto") for form in ("png", "svg")
    ]


def test_a_figure_of_the_paper_is_drawn_of_the_request_that_its_overrides_name(
    book: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for lr, overrides in ((0.001, ("scale=350m",)), (0.002, ("scale=toy",))):
        for row, layout in (("Llama", "AAAA"), ("Mamba", "MMM"), ("Mamba equal FLOPs", "MM"), ("other", "M")):
            book.losses(row, layout, [1.5], lr=lr)
        book.request("table2", overrides=overrides)
    there = ["--store", book.store.root, "--out", tmp_path, "--format", "json"]
    assert figures("fig3b", *there) == 2
    assert "2 requests of this name are stored" in capsys.readouterr().err
    # The override stands behind --format here.
    assert figures("fig3b", *there, "scale=toy") == 0
    content = json.loads((tmp_path / "fig3b.json").read_text())
    assert [line["label"] for line in content["panels"][0]["lines"]] == ["Llama", "Mamba"]
    assert content["title"] == "Decoding cache against the length (Figure 3b)"
    assert content["caption"][0] == "Of our own runs: request table2 scale=toy."
    assert figures("fig3b", *there, "scale=toy", "--rows", "*") == 0
    content = json.loads((tmp_path / "fig3b.json").read_text())
    assert len(content["panels"][0]["lines"]) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fig4"], ["no such request", "+sweep=table2", "then mode=eval evals=[needle] would"]),
        (["fig1b"], ["+sweep=table9", "what the paper prints: python -m analysis figures fig1b --source paper"]),
        (["fig4", "--source", "paper"], ["fig4: paper: not printed", "mode=eval evals=[needle] would"]),
        (["neddle"], ["no such request in the store", "did you mean needle?"]),
        (["fig9", "--source", "paper"], ["the paper has no such figure", "did you mean"]),
        (["demo_txt"], ["did you mean demo_text?"]),
        (["demo_text", "--kind", "curvs"], ["--kind curvs", "did you mean curves?"]),
        (["demo_text", "--kind", "pareto", "--cost", "flps"], ["did you mean flops?"]),
        (["demo_text", "--kind", "pareto", "--cost", "decode-speed"], ["rows do not differ in it"]),
        (["demo_text", "--cost", "flops"], ["expected --kind pareto with it"]),
        (["demo_text", "--kind", "final", "--metric", "loss"], ["no run of this request has it"]),
        (["demo_text", "--rows", "x*"], ["--rows x*: no row is called so"]),
        (["demo_text", "--format", "gif"], ["--format gif: no such format"]),
        (["demo_text", "--width", "0.5", "--format", "bmp"], ["expected 2 to 20 inches", "--format bmp"]),
        (["fig1b", "scale=toy", "--source", "paper"], ["expected --source store with overrides"]),
        (["fig1b", "--source", "paper", "--kind", "pareto"], ["expected a figure of the paper by its name"]),
        (["demo_text", "x=1"], ["never asked for"]),
    ],
)
def test_a_users_mistake_is_one_message_exit_code_2_and_no_file(
    text: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    store = [] if "paper" in arguments else ["--store", text.store.root]
    out = tmp_path / "out"
    assert figures(*arguments, *store, "--out", out) == 2
    printed = capsys.readouterr()
    assert all(words in printed.err for words in said), printed.err
    assert "Traceback" not in printed.err
    assert not out.exists()


def test_an_empty_store_and_none_are_said_so(tmp_path: Path, book: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures("demo", "--store", book.store.root) == 2
    assert "no request yet" in capsys.readouterr().err
    assert figures("fig3a", "--store", tmp_path / "nowhere") == 2
    printed = capsys.readouterr().err
    assert "expected a directory" in printed
    assert "--source paper" in printed


def test_nothing_is_written_into_the_store(text: Any, tmp_path: Path) -> None:
    def tree() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in text.store.root.rglob("*"))

    before = tree()
    assert figures("demo_text", "--store", text.store.root, "--out", tmp_path / "o", "--format", "svg") == 0
    assert tree() == before
