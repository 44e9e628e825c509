import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import FORMATS, main
from analysis.render import FORMATS as RENDERED

HEAVY = ("torch", "hydra", "pandas", "numpy", "matplotlib", "scipy", "omegaconf")
FIGURE = ["figure.png", "figure.svg"]


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **env}, timeout=60, check=False
    )


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['analysis', '--help']\nimport analysis\n"
        "try: runpy.run_module('analysis', run_name='__main__')\nexcept SystemExit as end: assert end.code == 0\n"
        f"print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_a_table_needs_neither_torch_nor_hydra_nor_matplotlib(demo: Any) -> None:
    code = (
        "import sys\nfrom analysis.__main__ import main\n"
        f"assert main(['tables', 'demo', '--store', {str(demo.store.root)!r}]) == 0\n"
        "print('loaded', [name for name in ('torch', 'hydra', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    assert run("-c", code).stdout.splitlines()[-1] == "loaded []"


def test_the_formats_of_the_help_are_those_there_are() -> None:
    assert FORMATS == RENDERED


def test_a_table_is_printed_from_the_store_of_the_environment(
    demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYBRID_STORE", str(demo.store.root))
    assert main(["tables", "demo"]) == 0
    printed = capsys.readouterr()
    assert "| attention last " in printed.out
    assert "2/5 [5%, 85%]" in printed.out
    assert "\033" not in printed.out
    assert printed.err == ""


def test_out_writes_every_format_and_the_figure_and_says_where(
    demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert main(["tables", "demo", "--store", str(demo.store.root), "--out", str(out)]) == 0
    names = ["comparisons.csv", *FIGURE, "table.csv", "table.html", "table.json", "table.md", "table.tex"]
    assert sorted(path.name for path in out.iterdir()) == names
    printed = capsys.readouterr()
    assert printed.out == (out / "table.md").read_text()
    assert all(f"wrote {out / name}" in printed.err for name in names)
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "figure.png").stat().st_size > 20_000
    svg = (out / "figure.svg").read_text()
    assert "attention second (5/5 solved)" in svg
    assert "synthetic analogue" in svg


def test_the_same_results_give_the_same_bytes(text: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["tables", "demo_text", "--store", str(text.store.root), "--out", str(tmp_path / name)]) == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_analysis_writes_nothing_into_the_store(demo: Any, tmp_path: Path) -> None:
    def listing() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in demo.store.root.rglob("*"))

    before = listing()
    assert main(["tables", "demo", "--store", str(demo.store.root), "--out", str(tmp_path / "out"), "--no-figure"]) == 0
    assert listing() == before


def test_no_figure_means_none(demo: Any, tmp_path: Path) -> None:
    assert main(["tables", "demo", "--store", str(demo.store.root), "--out", str(tmp_path / "o"), "--no-figure"]) == 0
    assert not list((tmp_path / "o").glob("figure.*"))


def test_figures_draws_loss_curves_of_ordinary_runs(text: Any, tmp_path: Path) -> None:
    assert main(["figures", "demo_text", "--store", str(text.store.root), "--out", str(tmp_path / "o")]) == 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == FIGURE
    svg = (tmp_path / "o" / "figure.svg").read_text()
    assert "validation loss (nats per token)" in svg
    assert "inter (n = 2)" in svg


def test_a_figure_of_nothing_is_a_clear_error_and_no_obstacle_to_the_table(
    book: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book.probe("a", "AM", [], spare=2)
    book.request()
    store = str(book.store.root)
    assert main(["figures", "demo", "--store", store, "--out", str(tmp_path)]) == 2
    assert main(["tables", "demo", "--store", store, "--out", str(tmp_path / "o")]) == 0
    assert "note: no figure" in capsys.readouterr().err


def test_overrides_may_stand_behind_options(book: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("1", "2"):
        book.probe(f"row {value}", "AM" * int(value), [100])
        book.request(overrides=(f"x={value}",))
    assert main(["tables", "demo", "--store", str(book.store.root), "x=2"]) == 0
    assert "row 2" in capsys.readouterr().out
    assert main(["tables", "demo", "--store", str(book.store.root)]) == 2
    assert "  demo x=1\n  demo x=2" in capsys.readouterr().err


def test_json_on_stdout_is_json_alone(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "demo", "--store", str(demo.store.root), "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [table["name"] for table in content["tables"]] == ["table", "comparisons"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tables", "nope"], "no such request"),
        (["tables", "demo", "x=1"], "never asked for"),
        (["tables", "demo", "--metric", "loss"], "no run of this request has it"),
        (["tables", "demo", "--figure"], "expected --out"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    demo: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--store", str(demo.store.root)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_missing_store_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "demo", "--store", str(tmp_path / "none")]) == 2
    assert "expected a directory" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_an_unknown_option_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["tables", "demo", "--fromat", "csv"])
    assert end.value.code == 2
    assert "--fromat" in capsys.readouterr().err


def test_a_store_of_a_newer_version_is_exit_code_1_without_a_traceback(
    demo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (demo.store.root / "format.json").write_text('{"format": 99}')
    assert main(["tables", "demo", "--store", str(demo.store.root)]) == 1
    assert "format 99" in capsys.readouterr().err


def test_ctrl_c_is_clean(demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.load.load", interrupt)
    assert main(["tables", "demo", "--store", str(demo.store.root)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_table_of_many_runs_goes_through_the_index_and_is_the_same(
    demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failed, diverged, running and missing cells too; the index is a file of the store, and the one thing written."""
    arguments = ["tables", "demo", "--store", str(demo.store.root)]
    assert main(arguments) == 0
    directly = capsys.readouterr().out
    assert not (demo.store.root / "index.runs").exists()
    monkeypatch.setattr("sweeps.index.FEWEST_RUNS", 1)
    for _ in range(2):  # made, then read
        assert main(arguments) == 0
        assert capsys.readouterr().out == directly
    assert (demo.store.root / "index.runs").exists()


def test_evaluations_and_unreadable_records_are_the_same_through_the_index(
    text: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (request,) = text.store.requests()
    first, second = (cell.run_id for cell in request.cells[:2])
    record = {"schema": 1, "run_id": first, "eval": {"kind": "pg19"}, "metrics": {"pg19_loss_nats": 2.5}}
    assert text.store.publish_eval_record(first, "a" * 12, record)
    path = text.store.record_path(second)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    arguments = ["tables", "demo_text", "--store", str(text.store.root)]
    printed = []
    for many in (1000, 1):
        monkeypatch.setattr("sweeps.index.FEWEST_RUNS", many)
        for metric in ("val_loss_nats", "pg19_loss_nats", "pg19.pg19_loss_nats"):
            assert main([*arguments, "--metric", metric]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "Unreadable" in printed[0]


@pytest.mark.parametrize("name", ["demo", "no such request"])
def test_the_collector_of_garbage_is_left_as_it_was(demo: Any, name: str) -> None:
    before = gc.get_threshold()
    assert main(["tables", name, "--store", str(demo.store.root)]) == (0 if name == "demo" else 2)
    assert gc.get_threshold() == before
