"""Stores made up for analysis: real files, written by the real store, of runs that nobody trained; and TeX."""

import os
import shutil
from pathlib import Path

import pytest

from sweeps.store import Store
from tests.book import Book, run_spec


@pytest.fixture
def book(tmp_path: Path) -> Book:
    store = Store(tmp_path / "store")
    store.prepare()
    return Book(store)


@pytest.fixture
def demo(book: Book) -> Book:
    """A probe with five rows, some of it unsolved, diverged, failed or not started."""
    book.probe("attention first", "AMM", [340, 360, 420, 380, 400])
    book.probe("attention second", "MAM", [300, 340, 320, 360, 500])
    book.probe("attention last", "MMA", [880, None, 1040, None, None])
    book.probe("no attention", "MMM", [None] * 3, spare=1)
    broken = run_spec("MMM", 5)
    book.cell(broken, "no attention", 5)
    book.record(broken, "diverged", steps=77, reason="loss is nan", solved=False)
    book.probe("attention only", "AAA", [300, 340, 320, 360], spare=1)
    book.fail(run_spec("AAA", 5))
    book.request(
        report={
            "title": "Where to put one attention block: associative recall",
            "caption": "A synthetic analogue of the paper's placement finding, not a test of it.",
            "row_header": "placement",
        }
    )
    return book


@pytest.fixture
def text(book: Book) -> Book:
    """Ordinary runs on bytes: three rows of three seeds, one of them diverged."""
    book.losses("llama", "AAAA", [1.5012, 1.5071, 1.4983])
    book.losses("mamba", "MMM", [1.4876, 1.4912, 1.4893])
    book.losses("inter", "MMAM", [1.4701, 1.4766])
    broken = run_spec("MMAM", 3, probe=False)
    book.cell(broken, "inter", 3)
    book.record(broken, "diverged", steps=400, reason="loss is nan")
    book.request("demo_text", report={"title": "Bytes of the standard library"})
    return book


@pytest.fixture(scope="module")
def pdflatex() -> str:
    """REQUIRE_TEX=1 makes its absence a failure."""
    found = shutil.which("pdflatex")
    if found is None:
        reason = "no pdflatex: apt-get install texlive-latex-base texlive-latex-recommended texlive-latex-extra"
        if os.environ.get("REQUIRE_TEX"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
