"""Tables as LaTeX compile, whatever names hold; with TeX from Debian's packages (texlive-latex-base, -recommended)."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from analysis.load import find_request, load
from analysis.render import render
from analysis.render.latex import _ACCENTED, _MATHS, PACKAGES
from analysis.tables import LAYOUTS, Table, build_tables
from analysis.tables.paper import printed_table

pytestmark = pytest.mark.slow
ASCII = "".join(map(chr, range(32, 127)))


def compiled(pdflatex: str, directory: Path, tables: list[Table[Any]]) -> str:
    """The log of a document that holds the tables."""
    document = [
        r"\documentclass{article}",
        rf"\usepackage{{{','.join(PACKAGES)}}}",
        r"\begin{document}",
        *(f"{render([table], 'latex')}\\clearpage" for table in tables),
        r"\end{document}",
    ]
    (directory / "tables.tex").write_text("\n".join(document), encoding="utf-8")
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "tables.tex"],
        cwd=directory,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert (directory / "tables.pdf").stat().st_size > 1000
    return (directory / "tables.log").read_text(errors="replace")


def test_the_papers_tables_compile(pdflatex: str, tmp_path: Path) -> None:
    log = compiled(pdflatex, tmp_path, [printed_table(sweep) for sweep in LAYOUTS])
    assert "Missing character" not in log
    assert r"Overfull \hbox" not in log


def test_our_tables_compile_whatever_their_names_hold(pdflatex: str, tmp_path: Path, book: Any) -> None:
    names = [
        ASCII,
        r"\input{/etc/passwd} \write18{id} $$ ^^41 % comment",
        "".join(sorted(_ACCENTED)),
        "".join(_MATHS),
        "中文 🙂 \x1b[31m \n line",
        "\\",
    ]
    for i, name in enumerate(names):
        book.losses(name, "A" * (i + 1), [1.5 + i, 1.6 + i, 1.4 + i])
    book.request(report={"title": ASCII, "caption": names})
    results = load(book.store, find_request(book.store.requests(), "demo", ()))
    log = compiled(pdflatex, tmp_path, list(build_tables(results, against=names[0], margin=0.1)))
    assert "Missing character" not in log


def test_a_grid_compiles_with_its_groups(pdflatex: str, tmp_path: Path, book: Any) -> None:
    for row, layout in (("a_1", "A"), ("b", "M")):
        for lr in (0.001, 0.002, 0.003):
            book.losses(row, layout, [1.5 + lr, 1.6], lr=lr, **{"optim.lr": lr})
    book.request()
    tables = build_tables(load(book.store, find_request(book.store.requests(), "demo", ())))
    assert r"\multirow{3}{*}{a\_1}" in render(tables, "latex")
    compiled(pdflatex, tmp_path, list(tables))
