"""`python -m analysis scaling`: what it prints, its JSON, bad input, requests of a store, figures."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.scaling.command import METHODS
from analysis.scaling.parametric import Estimator, Law
from analysis.scaling.points import CONVENTIONS, of_paper
from analysis.scaling.study import Settings, isoflop, parametric
from hybrid.cost import run_cost
from hybrid.spec import StdlibSpec

from .conftest import Book, run_spec

TRUTH = Law(E=1.82, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
ESTIMATORS: tuple[Estimator, ...] = ("huber", "lad")
Row = Sequence[object]
Run = Callable[..., tuple[int, str, str]]


def made(
    groups: Sequence[str] = ("x", "y"), *, sizes: int = 7, budgets: int = 4, noise: float = 0.002
) -> list[list[object]]:
    rng = np.random.default_rng(0)
    rows: list[list[object]] = []
    for i, group in enumerate(groups):
        for n in np.geomspace(2e7, 2e9, sizes) * (1 + 0.3 * i):
            for c in np.geomspace(1e18, 3e19, budgets):
                loss = float(TRUTH.loss(n, c / 6 / n)) + rng.normal(0, noise)
                rows.append([float(n), float(c / 6 / n), float(c), loss, group])
    return rows


def write(path: Path, rows: Sequence[Row], header: str = "n,d,c,loss,group") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def called(*arguments: object) -> tuple[int, str, str]:
        code = main(["scaling", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


def parsed(run: Run, *arguments: object) -> dict[str, Any]:
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    content = json.loads(out)
    assert isinstance(content, dict)
    return content


# --- JSON ---------------------------------------------------------------------------------------------


def test_json_of_parametric_is_as_documented(run: Run, tmp_path: Path) -> None:
    content = parsed(run, "parametric", "--points", write(tmp_path / "p.csv", made()), "--bootstrap", 200)
    assert set(content["groups"]) == {"x", "y"}
    for group in content["groups"].values():
        assert list(group) == [
            *("E", "A", "B", "alpha", "beta", "objective", "n_points", "standard_errors", "intervals", "a", "b")
        ]
        assert group["n_points"] == 28
        assert group["a"] + group["b"] == pytest.approx(1)
        assert group["a"] == pytest.approx(group["beta"] / (group["alpha"] + group["beta"]))
        for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
            low, high = group["intervals"][name]
            assert low < group[name] < high
            assert group["standard_errors"][name] > 0


def test_json_of_isoflop_is_as_documented(run: Run, tmp_path: Path) -> None:
    content = parsed(run, "isoflop", "--points", write(tmp_path / "p.csv", made()), "--bootstrap", 200)
    for group in content["groups"].values():
        assert list(group) == ["a", "b", "a_interval", "budgets"]
        low, high = group["a_interval"]
        assert low < group["a"] < high
        assert len(group["budgets"]) == 4
        for budget in group["budgets"]:
            assert list(budget) == ["flops", "n_opt", "d_opt", "loss", "n_points", "interior"]
            assert budget["n_points"] == 7
            assert 6 * budget["n_opt"] * budget["d_opt"] == pytest.approx(budget["flops"], rel=1e-6)


def test_without_a_group_column_the_group_is_all(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", [row[:4] for row in made(["x"])], "n,d,c,loss")
    assert set(parsed(run, "isoflop", "--points", path, "--bootstrap", 0)["groups"]) == {"all"}


def test_without_a_bootstrap_there_are_no_intervals(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", made())
    group = parsed(run, "parametric", "--points", path, "--bootstrap", 0)["groups"]["x"]
    assert group["intervals"] is None
    assert group["standard_errors"] is None
    assert parsed(run, "isoflop", "--points", path, "--bootstrap", 0)["groups"]["x"]["a_interval"] is None


def test_equal_seeds_give_equal_bytes(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", made(["x"], sizes=5))
    for method in METHODS:
        first, second, other = (
            run(method, "--points", path, "--bootstrap", 100, "--seed", seed, "--json")[1] for seed in (1, 1, 2)
        )
        assert first == second
        assert first != other


# --- columns -----------------------------------------------------------------------------------------


def test_columns_of_other_names_suffixes_and_a_byte_order_mark_are_read(run: Run, tmp_path: Path) -> None:
    rows = [
        [round(float(str(n)) / 1e3) * 1000, round(float(str(d)) / 1e3) * 1000, *rest] for n, d, *rest in made(["x"])
    ]
    plain = write(tmp_path / "p.csv", rows)
    named = tmp_path / "named.csv"
    lines = [f"{n / 1e6:.3f}M,{d / 1e9:.6f}B,{c},{loss},x" for n, d, c, loss, _ in rows]  # type: ignore[operator]
    named.write_text("\ufeff" + "\n".join(["params,seen,spent,val,arch", *lines]), encoding="utf-8")
    columns = "n=params,d=seen,c=spent,loss=val,group=arch"
    first = parsed(run, "parametric", "--points", plain, "--bootstrap", 0)["groups"]["x"]
    second = parsed(run, "parametric", "--points", named, "--columns", columns, "--bootstrap", 0)["groups"]["x"]
    assert second["alpha"] == pytest.approx(first["alpha"], rel=1e-4)
    assert second["objective"] == pytest.approx(first["objective"], rel=1e-6)


@pytest.mark.parametrize(
    ("header", "cut", "said"),
    [
        ("n,d,loss,group", (0, 1, 3, 4), "C = 6 N D, as the file has no c"),
        ("n,c,loss,group", (0, 2, 3, 4), "D = C / (6 N), as the file has no d"),
        ("n,d,c,loss,group", (0, 1, 2, 3, 4), "N, D and C as the file has them"),
    ],
)
def test_what_is_derived_is_said(run: Run, tmp_path: Path, header: str, cut: Sequence[int], said: str) -> None:
    path = write(tmp_path / "p.csv", [[row[i] for i in cut] for row in made(["x"])], header)
    content = parsed(run, "isoflop", "--points", path, "--bootstrap", 0)
    assert content["costs"] == said
    whole = parsed(run, "isoflop", "--points", write(tmp_path / "w.csv", made(["x"])), "--bootstrap", 0)
    assert content["groups"]["x"]["a"] == pytest.approx(whole["groups"]["x"]["a"], rel=1e-6)


# --- bad input ---------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_named_by_their_lines(run: Run, tmp_path: Path) -> None:
    rows: list[Row] = [
        [1e8, 2e9, 3.0],
        [1e8, 2e9, -1],
        [1e8, "nan", 3.0],
        [0, 2e9, 3.0],
        [1e8, 2e9, "abc"],
        [1e8, 2e9, ""],
        [1e8, "inf", 3],
        [1e8, 2e9, 0],
    ]
    code, out, error = run("parametric", "--points", write(tmp_path / "p.csv", rows, "n,d,loss"))
    assert (code, out) == (2, "")
    assert "line 3: loss = -1: expected a number above zero" in error
    assert "line 4: d = nan" in error
    assert "line 5: n = 0" in error
    assert "line 6: loss = abc" in error
    assert "line 7: loss = nothing" in error
    assert "and 2 more rows like these" in error


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("n,d,loss", [[100, 2e9, 3.0], [2e8, 2e9, 3.0], [4e8, 2e9, 2.9]], "n: mixed units? 100 (line 2)"),
        ("n,d,loss", [[1e8, 2, 3.0], [2e8, 2e9, 3.0], [4e8, 2e9, 2.9]], "d: mixed units? 2 (line 2)"),
        ("n,d,c,loss", [[1e8, 2e9, 1.2e18, 3.0], [2e8, 2e9, 2.4e9, 3.0]], "c: mixed units? c / (6 n d)"),
        ("n,d,loss", [[1e8, 2e9, 3.0], [1e8, 4e9, 2.9]], "one size (100M)"),
        ("n,d,loss", [[1e8, 2e9, 3.0], [2e8, 4e9, 2.9]], "2 sizes: E, A and alpha cannot be told apart"),
        ("n,d,loss", [[1e8, 2e9, 3.0], [2e8, 2e9, 2.9], [4e8, 2e9, 2.8]], "1 lengths of training"),
        ("n,d,loss", [[k * 1e8, k * 3e9, 3.0] for k in (1, 2, 4)], "3 points for five numbers; expected 8 at least"),
        ("n,d,loss", [], "expected rows below the header"),
        ("n,loss", [[1e8, 3.0]], "missing d or c"),
        ("a,b", [[1, 2]], "missing n and loss and d or c"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    run: Run, tmp_path: Path, header: str, rows: Sequence[Row], said: str
) -> None:
    code, out, error = run("parametric", "--points", write(tmp_path / "p.csv", rows, header))
    assert (code, out) == (2, "")
    assert said in error


def test_a_group_with_one_size_is_left_out_and_named(run: Run, tmp_path: Path) -> None:
    rows = [row for row in made() if row[4] == "x" or row[0] == pytest.approx(2e7 * 1.3)]
    path = write(tmp_path / "p.csv", rows)
    for method in ("isoflop", "parametric"):
        code, out, _ = run(method, "--points", path, "--bootstrap", 0)
        assert code == 0
        assert "group y is left out: " in out
        assert set(parsed(run, method, "--points", path, "--bootstrap", 0)["refused"]) == {"y"}


def test_rows_that_are_there_twice_count_once_and_are_named(run: Run, tmp_path: Path) -> None:
    rows = made(["x"])
    once = parsed(run, "parametric", "--points", write(tmp_path / "once.csv", rows), "--bootstrap", 0)
    twice = parsed(run, "parametric", "--points", write(tmp_path / "twice.csv", rows + rows[:2]), "--bootstrap", 0)
    assert once["groups"] == twice["groups"]
    assert twice["notes"] == ["2 rows are there twice and count once: line 30 (as line 2), line 31 (as line 3)"]


def test_minima_that_all_lie_at_the_edge_give_no_exponent(run: Run, tmp_path: Path) -> None:
    rows = [row for row in made(["x"], sizes=13) if row[0] > 7e8]  # type: ignore[operator]
    path = write(tmp_path / "p.csv", rows)
    content = parsed(run, "isoflop", "--points", path)
    assert content["groups"]["x"]["a"] is None
    assert not any(budget["interior"] for budget in content["groups"]["x"]["budgets"])
    assert "0 of 4 budgets have a minimum between sizes: all lie at the edge" in content["warnings"]["x"][0]
    assert "sizes smaller are missing" in content["warnings"]["x"][0]
    code, out, _ = run("isoflop", "--points", path, "--out", tmp_path)
    assert (code, "there is no exponent that could change" in out) == (0, True)
    assert "x: no exponent" in (tmp_path / "isoflop.svg").read_text()


def test_an_exponent_from_two_points_is_said_to_be_one(run: Run, tmp_path: Path) -> None:
    out = " ".join(run("isoflop", "--points", write(tmp_path / "p.csv", made(["x"], budgets=2)))[1].split())
    assert "nothing can contradict a line through two" in out
    assert out.index("the line through two points, which nothing can contradict") < out.index("N_opt ~ C^a, D_opt")


def test_units_that_do_not_fit_each_other_are_noted(run: Run, tmp_path: Path) -> None:
    rows = [[n / 1e6, d / 1e9, c, loss, g] for n, d, c, loss, g in made(["x"])]  # type: ignore[operator]
    content = parsed(run, "parametric", "--points", write(tmp_path / "p.csv", rows), "--bootstrap", 0)
    assert "n, d and c are in different units" in content["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "method = nothing: expected a way to fit"),
        (["isoflp", "--points", "p.csv"], "did you mean isoflop?"),
        (["isoflop"], "points = none: expected exactly one of"),
        (["isoflop", "--points", "p.csv", "--request", "x"], "points = --request and --points"),
        (["isoflop", "--points", "p.csv", "--bootstrap", "50"], "expected 0, or 100 at least"),
        (["isoflop", "--points", "p.csv", "--bootstrap", "x"], "--bootstrap = x: expected a whole number"),
        (["isoflop", "--points", "p.csv", "--drop-highest", "-1"], "--drop-highest = -1"),
        (["isoflop", "--points", "p.csv", "--noise", "0"], "--noise = 0: expected a number above 0"),
        (["isoflop", "--points", "p.csv", "--window", "1"], "--window = 1: expected a number above 1"),
        (["isoflop", "--points", "p.csv", "--estimator", "lad"], "only parametric has estimators"),
        (["parametric", "--points", "p.csv", "--curve", "akima"], "--curve akima: only isoflop has curves"),
        (["parametric", "--points", "p.csv", "--columns", "n=a,k=b,loss"], "--columns k=b: k is none of ours"),
        (["parametric", "--points", "p.csv", "--columns", "n=a,loss"], "--columns loss: expected NAME=COLUMN"),
        (["parametric", "--points", "p.csv", "--columns", "n=a,n=b"], "n is given twice"),
        (["parametric", "--points", "p.csv", "--convention", "full"], "--convention: expected --request with it"),
        (["parametric", "--points", "p.csv", "scale=toy"], "scale=toy: overrides belong to --request"),
        (["parametric", "--request", "x", "--columns", "n=a"], "--columns: expected --points with it"),
        (["parametric", "--reference"], "expected without --reference"),
        (["parametric", "--points", "nothere.csv"], "there is no such file"),
        (["parametric", "--request", "x", "--store", "nothere"], "store = nothere: expected a directory"),
    ],
)
def test_a_mistake_in_what_was_typed_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.csv", made(["x"]))
    code, out, error = run(*arguments)
    assert (code, out) == (2, "")
    assert said in error


def test_an_unknown_column_is_said_with_those_there_are(run: Run, tmp_path: Path) -> None:
    _, _, error = run("parametric", "--points", write(tmp_path / "p.csv", made(["x"])), "--columns", "loss=los")
    assert "has no such column; did you mean loss?" in error


# --- what is dropped, what changes ---------------------------------------------------------------------


def test_what_is_dropped_is_listed(run: Run, tmp_path: Path) -> None:
    rows = made(["x"])
    highest = sorted((float(str(row[3])) for row in rows), reverse=True)[:2]
    path = write(tmp_path / "p.csv", rows)
    content = parsed(run, "parametric", "--points", path, "--bootstrap", 0, "--drop-highest", 2)
    assert [point["loss"] for point in content["dropped"]["x"]] == highest
    assert content["groups"]["x"]["n_points"] == len(rows) - 2
    text = run("parametric", "--points", path, "--bootstrap", 0, "--drop-highest", 2)[1]
    assert f"dropped by --drop-highest 2: x: line {2 + [row[3] for row in rows].index(highest[0])}" in text


def test_a_conclusion_that_hangs_on_one_size_is_said_first(run: Run, tmp_path: Path) -> None:
    """Group y's largest size is too good by far: without it the order turns round."""
    rows = made(sizes=5, noise=0.0005)
    largest = max(float(str(row[0])) for row in rows if row[4] == "y")
    moved = [
        [n, d, c, float(str(loss)) - (0.05 * math.log10(float(str(c)) / 1e18) if n == largest else 0.0), g]
        for n, d, c, loss, g in rows
    ]
    path = write(tmp_path / "p.csv", moved)
    text = run("isoflop", "--points", path, "--noise", "0.0005")[1]
    first = text[text.index("what changes with how it is fitted") :].splitlines()[1:4]
    content = parsed(run, "isoflop", "--points", path, "--noise", "0.0005")
    assert content["changes"]
    assert content["changes"][0][:30] in first[0][2:]
    assert "without size" in " ".join(content["changes"])
    assert text.index("what changes") < text.index("N_opt ~ C^a")


def test_an_outlier_is_named_and_tried_without(run: Run, tmp_path: Path) -> None:
    rows = made(["x"])
    rows[10][3] = float(str(rows[10][3])) + 0.2
    content = parsed(run, "parametric", "--points", write(tmp_path / "p.csv", rows), "--bootstrap", 0)
    assert len(content["outliers"]) == 1
    assert content["outliers"][0].startswith("x: line 12 (")
    assert "without 1 outlier" in [variant["name"] for variant in content["variants"]]


# --- figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["isoflop", "parametric"])
def test_figures_come_out_alike_in_three_formats(run: Run, tmp_path: Path, method: str) -> None:
    path = write(tmp_path / "p.csv", made())
    for out in ("a", "b"):
        code, _, error = run(method, "--points", path, "--bootstrap", 100, "--out", tmp_path / out)
        assert code == 0
        assert f"wrote {tmp_path / out / 'scaling.json'}" in error
    for kind in ("png", "svg", "pdf"):
        first, second = ((tmp_path / out / f"{method}.{kind}").read_bytes() for out in ("a", "b"))
        assert first == second
        assert len(first) > 5000
    svg = (tmp_path / "a" / f"{method}.svg").read_text()
    assert "compute-optimal parameters N" in svg
    assert "x: a = " in svg
    assert json.loads((tmp_path / "a" / "scaling.json").read_text())["kind"] == method


# --- requests of a store --------------------------------------------------------------------------------


def study_of(book: Book) -> None:
    """Two rows of sizes and lengths; branches of a size share everything but their length. One run is missing."""
    lengths = (100, 170, 390, 800)
    for row, gain in (("llama", 0.0), ("mamba", 0.05)):
        for layers in (1, 2, 4, 8):
            for steps in lengths:
                spec = run_spec("A" * layers, 1, probe=False)
                assert isinstance(spec.data, StdlibSpec)
                spec = replace(
                    spec,
                    train_tokens=steps * spec.batch_tokens,
                    schedule=replace(
                        spec.schedule, warmup_tokens=20 * spec.batch_tokens, cooldown_tokens=steps // 5 * 4096
                    ),
                    optim=replace(spec.optim, lr=0.002 if row == "llama" else 0.003),
                )
                book.cell(spec, row, 1, {"model.depth": layers, "budget.tokens": spec.train_tokens})
                if (row, layers, steps) == ("mamba", 8, 800):
                    continue
                n = run_cost(spec).paper_non_embedding_params
                loss = 1.2 - gain + 8.0 / n**0.3 + 60.0 / spec.train_tokens**0.35
                book.record(spec, val_loss_nats=loss + 0.001 * math.sin(layers * steps))
    book.request("sizes")


def test_a_request_gives_exact_costs_groups_and_trunks(run: Run, book: Book) -> None:
    study_of(book)
    store = ("--request", "sizes", "--store", book.store.root)
    content = parsed(run, "parametric", *store, "--bootstrap", 100)
    assert set(content["groups"]) == {"llama", "mamba"}
    assert content["groups"]["llama"]["n_points"] == 16
    assert content["groups"]["mamba"]["n_points"] == 15
    assert content["notes"] == ["1 of 32 cells are left out: 1 not started"]
    assert content["costs"].startswith("N and C by the paper's formulas")
    assert "seed noise cannot be identified" in " ".join(content["warnings"]["llama"])
    points = content["details"]["llama"]["residuals"]
    assert len({point["trunk"] for point in points}) == 4
    spec = run_spec("A", 1, probe=False)
    assert points[0]["n"] == run_cost(spec).paper_non_embedding_params
    assert "full convention" in [variant["name"] for variant in content["variants"]]


def test_the_other_convention_counts_the_head(run: Run, book: Book) -> None:
    study_of(book)
    store = ("--request", "sizes", "--store", book.store.root)
    paper, full = (
        parsed(run, "parametric", *store, "--bootstrap", 0, "--convention", convention)["details"]["llama"]["residuals"]
        for convention in ("paper", "full")
    )
    spec = run_spec("A", 1, probe=False)
    assert full[0]["n"] == run_cost(spec).active_params + spec.model.vocab_size * spec.model.d_model
    assert all(one["n"] > other["n"] and one["c"] > other["c"] for one, other in zip(full, paper, strict=True))


def test_isoflop_of_runs_at_no_equal_flops_interpolates_and_says_so(run: Run, book: Book) -> None:
    study_of(book)
    code, out, _ = run("isoflop", "--request", "sizes", "--store", book.store.root, "--bootstrap", 100)
    assert code == 0
    assert "each size's losses are interpolated in log C" in out


def test_a_request_without_a_result_is_refused(run: Run, book: Book) -> None:
    book.cell(run_spec("A", 1, probe=False), "llama", 1)
    book.request("sizes")
    code, _, error = run("parametric", "--request", "sizes", "--store", book.store.root)
    assert code == 2
    assert "no run is done yet" in error


# --- the paper ---------------------------------------------------------------------------------------------


def exponents_of_the_paper() -> dict[str, dict[str, float | None]]:
    """a of each architecture, by method and convention."""
    found: dict[str, dict[str, float | None]] = {}
    for convention in CONVENTIONS:
        points = of_paper(convention)
        curves = isoflop(points, Settings(bootstrap=400, noise=0.0026))
        found[f"isoflop {convention}"] = {group.name: group.slope for group in curves.groups}
        for estimator in ESTIMATORS:
            laws = parametric(points, Settings(bootstrap=0, estimator=estimator))
            found[f"{estimator} {convention}"] = {group.name: group.slope for group in laws.groups}
    return found


def test_the_papers_exponents_are_those_of_the_golden_table() -> None:
    """`exponents_of_the_paper` made it; a change of a rule shows in it."""
    golden = json.loads((Path(__file__).parent / "golden_scaling.json").read_text())
    found = exponents_of_the_paper()
    assert set(found) == set(golden)
    for name, exponents in golden.items():
        assert found[name] == pytest.approx(exponents, abs=1e-5)


def test_help_names_the_columns_and_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["scaling", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in ("--request", "--points", "--reference", "trunk", "standard_errors", "a_interval", "exit codes"):
        assert word in text
