"""The same claims by the records of a store."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.claims.calibrate import calibrate
from analysis.claims.judge import Settings
from analysis.claims.parts import DCLM, LENGTHS
from analysis.claims.source import PaperRows, StoreSource
from analysis.claims.verdicts import ClaimVerdict, judge_claims
from analysis.reference.compare import Sweeps
from analysis.reference.printed import read_printed
from hybrid.spec import ConfigError
from sweeps.compose import Composer
from tests.book import Book

LAYOUTS = {"1:0": "AAAA", "0:1": "MMMM", "1:1": "MAMA", "1:3": "MMAM", "1:5": "MMMAMM", "1:12": "MMMMMMAMMMMMM"}
AS_CLAIMED = {"1:0": 1.60, "0:1": 1.58, "1:1": 1.40, "1:3": 1.44, "1:5": 1.48, "1:12": 1.52}
SPREAD = (-0.003, 0.0, 0.003)


@pytest.fixture(scope="module")
def rows() -> Iterator[PaperRows]:
    with Composer() as composer:
        yield PaperRows(read_printed(), Sweeps(composer))


def table4(
    book: Book,
    losses: Mapping[str, float],
    spread: Sequence[float] = SPREAD,
    overrides: tuple[str, ...] = ("scale=toy", "sweep.seeds=3"),
    lr: float = 0.002,
) -> None:
    for ratio, layout in LAYOUTS.items():
        if ratio in losses:
            book.losses(ratio, layout, [losses[ratio] + shift for shift in spread], lr=lr)
    book.request("table4", overrides=overrides)


def judged(book: Book, rows: PaperRows, claim: str, overrides: Sequence[str] = ("scale=toy",)) -> ClaimVerdict:
    source = StoreSource(rows, book.store, overrides)
    return judge_claims(source, Settings(), [claim]).claims[0]


def test_seeds_decide_what_single_runs_could_not(book: Book, rows: PaperRows) -> None:
    table4(book, AS_CLAIMED)
    for claim in ("C22", "C23", "C24"):
        verdict = judged(book, rows, claim)
        assert verdict.verdict == "holds", verdict.reason
        assert verdict.judged.decisive is not None
        assert {used.n for used in verdict.judged.decisive.used} == {3}


def test_records_that_say_otherwise_make_a_claim_fail(book: Book, rows: PaperRows) -> None:
    table4(book, {**AS_CLAIMED, "1:3": 1.30})
    assert judged(book, rows, "C22").verdict == "fails"
    assert judged(book, rows, "C24").verdict == "fails"
    assert judged(book, rows, "C23").verdict == "holds"


def test_the_noise_is_the_spread_between_seeds_pooled_over_rows(book: Book, rows: PaperRows) -> None:
    table4(book, AS_CLAIMED)
    noise = StoreSource(rows, book.store, ("scale=toy",)).noise("1B", DCLM)
    assert noise is not None
    assert noise.sd == pytest.approx(0.003)
    assert noise.df == 12
    assert "6 rows" in noise.source


def test_one_seed_a_row_decides_nothing(book: Book, rows: PaperRows) -> None:
    table4(book, AS_CLAIMED, spread=(0.0,), overrides=("scale=toy",))
    verdict = judged(book, rows, "C22")
    assert verdict.verdict == "undecided"
    assert "one seed a row" in verdict.reason
    assert verdict.judged.seeds_needed is None


def test_missing_rows_make_a_claim_untestable_and_name_the_command(book: Book, rows: PaperRows) -> None:
    table4(book, {ratio: loss for ratio, loss in AS_CLAIMED.items() if ratio != "1:12"})
    verdict = judged(book, rows, "C24")
    assert verdict.verdict == "untestable"
    assert "row '1:12' of table4" in verdict.reason
    assert verdict.needs == "python run.py -m +sweep=table4 scale=toy sweep.seeds=3"
    # What is there may be enough to refute.
    table4(book, {"1:1": 1.5, "1:3": 1.3, "1:5": 1.4}, overrides=("scale=toy", "optim.lr=0.5"), lr=0.5)
    assert judged(book, rows, "C24", ("scale=toy", "optim.lr=0.5")).verdict == "fails"


def test_a_metric_that_nobody_recorded_is_named(book: Book, rows: PaperRows) -> None:
    losses = {"Llama": 1.6, "Mamba": 1.6, "SWA": 1.5, "Inter-H": 1.4, "Intra-H": 1.3}
    for (row, loss), layout in zip(losses.items(), ("AAAA", "MMMM", "AMAM", "MAMM", "MAAM"), strict=True):
        book.losses(row, layout, [loss + shift for shift in SPREAD])
    book.request("table2", overrides=("scale=toy",))
    verdict = judged(book, rows, "C05")
    assert verdict.verdict == "untestable"
    assert "average accuracy" in verdict.reason


def test_other_overrides_are_other_runs(book: Book, rows: PaperRows) -> None:
    table4(book, AS_CLAIMED, overrides=("optim.lr=0.001", "scale=toy", "sweep.seeds=3"))
    assert judged(book, rows, "C22").verdict == "untestable"
    assert judged(book, rows, "C22", ("scale=toy", "optim.lr=0.001")).verdict == "holds"
    unasked = judged(book, rows, "C22", ())
    assert unasked.verdict == "untestable"
    assert "asked for with optim.lr=0.001 scale=toy" in unasked.reason


def test_the_newest_request_counts(book: Book, rows: PaperRows) -> None:
    table4(book, {**AS_CLAIMED, "1:3": 1.30}, overrides=("scale=toy", "sweep.seeds=2"))
    book.cells = []
    for ratio, layout in LAYOUTS.items():
        book.losses(ratio, layout, [AS_CLAIMED[ratio] + shift for shift in SPREAD], lr=0.001)
    book.request("table4", overrides=("scale=toy",), created_at="2026-11-21T10:00:00+00:00")
    assert judged(book, rows, "C22").verdict == "holds"


def test_training_speed_and_memory_are_compared_where_they_are_recorded(book: Book, rows: PaperRows) -> None:
    speeds = {"Llama": 1000.0, "Inter-H": 1400.0, "Intra-H": 1300.0}
    for row, layout in zip(speeds, ("AAAA", "MAMM", "MAAM"), strict=True):
        for seed, shift in enumerate((0.99, 1.0, 1.01), start=1):
            spec = book.spec(layout, seed, probe=False)
            book.cell(spec, row, seed)
            book.record(spec, tokens_per_s=speeds[row] * shift, peak_memory_bytes=2e9 * shift * (1 + (row != "Llama")))
    book.request("table2", overrides=("scale=toy",))
    verdict = judged(book, rows, "C12")
    assert verdict.verdict == "holds", verdict.reason


def test_costs_are_the_same_whatever_the_store_has(book: Book, rows: PaperRows) -> None:
    assert judged(book, rows, "C07", ()).verdict == "fails"
    assert judged(book, rows, "C08", ()).verdict == "holds"


def test_an_empty_store_leaves_every_comparison_untestable(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--source", "store", "--store", str(book.store.root), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    compared = [item for item in found if any(number["kind"] == "comparison" for number in item["numbers"])]
    assert len(compared) == 23
    assert {item["verdict"] for item in compared} == {"untestable"}
    assert all("+sweep=" in item["needs"] for item in compared)


def test_no_store_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--source", "store", "--store", str(tmp_path / "nowhere")]) == 2
    assert "expected a directory" in capsys.readouterr().err


def test_a_store_cannot_be_simulated(book: Book, rows: PaperRows) -> None:
    with pytest.raises(ConfigError, match="expected --source paper"):
        calibrate(StoreSource(rows, book.store), Settings(), 100)


def test_rows_of_unequal_spread_are_not_pooled(book: Book, rows: PaperRows) -> None:
    for (ratio, layout), spread in zip(LAYOUTS.items(), (0.05, 0.001, 0.001, 0.001, 0.001, 0.001), strict=True):
        book.losses(ratio, layout, [AS_CLAIMED[ratio] + shift for shift in (-spread, 0.0, spread)])
    book.request("table4", overrides=("scale=toy",))
    noise = StoreSource(rows, book.store, ("scale=toy",)).noise("1B", DCLM)
    assert noise is not None
    assert (noise.sd, noise.df) == (pytest.approx(0.05), 2)
    assert "not pooled" in noise.source


def test_numbers_that_are_not_finite_are_no_seeds(book: Book, rows: PaperRows) -> None:
    table4(book, AS_CLAIMED)
    book.losses("1:1", "MAMA", [float("nan")], lr=0.5)
    book.request("table4", overrides=("scale=toy", "optim.lr=0.5"))
    verdict = judged(book, rows, "C22", ("scale=toy", "optim.lr=0.5"))
    assert verdict.verdict == "untestable"
    assert "has recorded validation loss" in verdict.reason


@pytest.mark.parametrize(("shares", "marked"), [((0.05, 0.12), True), ((0.05, 0.09), False)])
def test_speeds_at_unlike_shares_of_the_roofline_are_bound_to_implementations(
    book: Book, rows: PaperRows, shares: tuple[float, float], marked: bool
) -> None:
    """Of records with shares these decide, and not what an H200 would allow."""
    for name, layout, share, speed in (
        ("Inter-H 1:5", "MMMA", shares[0], 100.0),
        ("Intra-H 1:5", "MMAM", shares[1], 900.0),
    ):
        for seed in (1, 2):
            spec = book.spec(layout, seed, probe=False)
            book.cell(spec, name, seed)
            identity = book.record(spec, val_loss_nats=1.0)
            metrics = {f"decode_tokens_per_s_at_{n}": speed + seed for n in LENGTHS}
            metrics |= {f"decode_roofline_fraction_at_{n}": share for n in LENGTHS}
            record = {"schema": 1, "run_id": identity, "eval": {"kind": "throughput"}, "metrics": metrics}
            book.store.publish_eval_record(identity, "0" * 12, record | {"provenance": {}})
    book.request("table9", overrides=("scale=toy",))
    verdict = judged(book, rows, "C15")
    assert verdict.verdict == "holds", verdict.reason
    found = [finding.text for finding in verdict.findings if finding.kind == "implementation"]
    assert len(found) == marked
    assert ("It is bound to the implementations that were measured" in verdict.reason) is marked
    if marked:
        assert (
            "would allow on the device measured, Inter-H 1:5 at 2K reaches 5.00% and Intra-H 1:5 at 2K 12.0%"
            in found[0]
        )
