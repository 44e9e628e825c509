"""Which evaluations are wanted of runs: asked for once, seen in `sweeps status` until they are made, made once."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid.config import Resolved
from hybrid.data.stdlib import StdlibData
from hybrid.eval_config import EvalSettings
from hybrid.eval_spec import NllEvalSpec, PositionEvalSpec, RecallEvalSpec, eval_id, usual_evals
from hybrid.spec import ConfigError, StdlibSpec
from sweeps.identity import run_id
from sweeps.index import Index
from sweeps.status import look, requests_text, state_text
from sweeps.store import Cell, Request, Store, StoreError
from sweeps.wanted import missing, missing_names, want
from sweeps.worker.evaluation import evaluate_one

from .conftest import TINY
from .test_generate_command import TEXT, finish

NEEDLE = {"kind": "needle", "lengths": [128], "depths": [0, 100], "trials": 2}
POSITION = {"kind": "position", "length": 24, "bin": 8}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was seen before, and there is no Slurm."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def text(resolve: Callable[..., Resolved]) -> Resolved:
    return resolve(*TEXT)


def ask(store: Store, resolved: Resolved, settings: EvalSettings) -> None:
    want(store, resolved.run, settings.of(resolved.run), settings)


def test_what_is_wanted_is_made_once_and_then_not_missing(
    store: Store, text: Resolved, read: Callable[..., EvalSettings]
) -> None:
    run = finish(store, text)
    for _ in range(2):
        ask(store, text, read("nll", POSITION, NEEDLE))
    assert sorted(missing_names(store, run)) == ["needle", "nll", "position"]
    records = evaluate_one(store, text.run, text.execution)
    assert {record["eval"]["kind"] for record in records} == {"nll", "position", "needle"}
    assert missing(store, text.run) == ()
    assert evaluate_one(store, text.run, text.execution) == []
    before = {path: path.read_bytes() for path in store.run_dir(run).rglob("*") if path.is_file()}
    ask(store, text, read("nll", POSITION, NEEDLE))
    assert evaluate_one(store, text.run, text.execution) == []
    assert {path: path.read_bytes() for path in store.run_dir(run).rglob("*") if path.is_file()} == before


def test_the_records_hold_what_figures_and_tables_read(
    store: Store, text: Resolved, read: Callable[..., EvalSettings]
) -> None:
    finish(store, text)
    ask(store, text, read("nll", POSITION, NEEDLE))
    by_kind = {r["eval"]["kind"]: r["metrics"] for r in evaluate_one(store, text.run, text.execution)}
    nll, position, needle = by_kind["nll"], by_kind["position"], by_kind["needle"]
    assert nll["loss_nats_low"] < nll["loss_nats"] < nll["loss_nats_high"]
    assert nll["bits_per_byte_low"] < nll["bits_per_byte"] < nll["bits_per_byte_high"]
    assert nll["n_documents"] == 10
    assert position["positions"] == [4.5, 12.5, 20.5]
    assert len(position["bin_loss_nats"]) == len(position["bin_loss_nats_low"]) == 3
    assert position["n_documents"] == 10
    assert needle["lengths"] == [128]
    assert needle["depths_percent"] == [0, 100]
    assert [len(row) for row in needle["accuracy_percent"]] == [1, 1]


def test_without_any_wish_the_usual_ones_are_missing(store: Store, text: Resolved) -> None:
    run = finish(store, text)
    assert missing(store, text.run) == usual_evals(text.run) == (NllEvalSpec(),)
    assert missing_names(store, run) == []
    evaluate_one(store, text.run, text.execution)
    assert missing(store, text.run) == ()


def test_a_done_run_without_a_wanted_evaluation_needs_it(
    store: Store, text: Resolved, resolve: Callable[..., Resolved], read: Callable[..., EvalSettings]
) -> None:
    other, unfinished = resolve(*TEXT, "init_seed=2"), resolve(*TEXT, "init_seed=3")
    for resolved in (text, other):
        finish(store, resolved)
    for resolved in (text, unfinished):
        ask(store, resolved, read("nll", NEEDLE))
    cells = tuple(
        Cell(name=name, row=name, axes={}, seed=1, run_id=run_id(resolved.run))
        for name, resolved in (("wanted", text), ("unasked", other), ("unfinished", unfinished))
    )
    request = Request(sweep="s", overrides=(), created_at="2026-01-01T00:00", report={}, cells=cells)
    store.publish_request(request)
    state = look(store, request)
    assert [cell.status for cell in state.cells] == ["needs_eval", "done", "new"]
    text_of_it = state_text(state)
    assert "1 needs_eval" in text_of_it
    assert "wanted: to be evaluated (mode=eval request=s): " in text_of_it
    (line,) = [line for line in requests_text(store, [request]).splitlines() if line.startswith("s ")]
    assert "2/3" in line
    assert "1 needs_eval" in line
    evaluate_one(store, text.run, text.execution)
    assert [cell.status for cell in look(store, request).cells] == ["done", "done", "new"]


def test_a_wish_does_not_change_the_run_nor_its_record(
    store: Store, text: Resolved, read: Callable[..., EvalSettings]
) -> None:
    run = finish(store, text)
    before = store.record_path(run).read_bytes(), store.spec_path(run).read_bytes()
    ask(store, text, read("nll"))
    assert (store.record_path(run).read_bytes(), store.spec_path(run).read_bytes()) == before
    assert store.eval_records(run) == {}
    assert Index(store).eval_records(run) == {}


def test_an_index_sees_a_record_that_comes_after_the_wish(
    store: Store, text: Resolved, read: Callable[..., EvalSettings]
) -> None:
    run = finish(store, text)
    ask(store, text, read("nll"))
    assert Index(store).eval_records(run) == {}
    evaluate_one(store, text.run, text.execution)
    assert list(Index(store).eval_records(run)) == [eval_id(NllEvalSpec())]


def test_what_cannot_be_made_of_the_data_does_not_keep_the_rest(
    store: Store, text: Resolved, read: Callable[..., EvalSettings]
) -> None:
    run = finish(store, text)
    ask(store, text, read({"kind": "position", "length": 200, "bin": 100}, "nll"))
    with pytest.raises(
        ConfigError, match=r"length = 200: expected at most 121, as the longest of 10 documents has 122"
    ):
        evaluate_one(store, text.run, text.execution)
    assert list(store.eval_records(run)) == [eval_id(NllEvalSpec())]
    assert missing_names(store, run) == ["position"]
    store.unwant_eval(run, PositionEvalSpec(length=200, bin=100, documents=30, texts=()))
    assert missing_names(store, run) == []


def test_what_was_made_is_not_forgotten(store: Store, text: Resolved) -> None:
    run = finish(store, text)
    evaluate_one(store, text.run, text.execution)
    store.unwant_eval(run, NllEvalSpec())
    assert list(store.eval_records(run)) == [eval_id(NllEvalSpec())]


def test_a_run_that_is_not_done_or_has_no_weights_is_named(store: Store, text: Resolved) -> None:
    with pytest.raises(StoreError, match="expected a finished run to evaluate"):
        evaluate_one(store, text.run, text.execution, [NllEvalSpec()])
    finish(store, text)
    shutil.rmtree(store.checkpoints_root)
    with pytest.raises(StoreError, match="its final weights are gone"):
        evaluate_one(store, text.run, text.execution, [NllEvalSpec()])


def test_texts_are_kept_by_their_content_whatever_becomes_of_the_files(
    store: Store, text: Resolved, read: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    finish(store, text)
    books = [tmp_path / f"{i}.txt" for i in range(2)]
    for i, book in enumerate(books):
        book.write_text("abcdefgh" * (30 + i))
    needle, position = {**NEEDLE, "text": str(books[0])}, {**POSITION, "texts": [str(book) for book in books]}
    ask(store, text, read(needle, position))
    for book in books:
        book.unlink()
    records = evaluate_one(store, text.run, text.execution)
    assert next(r["metrics"] for r in records if r["eval"]["kind"] == "position")["n_documents"] == 2


def test_a_text_that_was_changed_in_the_store_is_refused(
    store: Store, text: Resolved, read: Callable[..., EvalSettings], tmp_path: Path
) -> None:
    finish(store, text)
    (tmp_path / "book.txt").write_text("abcdefgh" * 30)
    settings = read({**NEEDLE, "text": str(tmp_path / "book.txt")})
    ask(store, text, settings)
    (digest,) = settings.texts.values()
    store.text_path(digest).write_text("another")
    with pytest.raises(ConfigError, match="has changed: expected the text"):
        evaluate_one(store, text.run, text.execution)
    ask(store, text, settings)
    assert len(evaluate_one(store, text.run, text.execution)) == 1


def test_other_data_are_measured_under_their_name_if_they_are_read_alike(
    store: Store, text: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(store, text)
    spec = NllEvalSpec(name="other", data=StdlibSpec(fingerprint="f" * 16, val_percent=4.0))
    (record,) = evaluate_one(store, text.run, text.execution, [spec])
    assert "other_loss_nats" in record["metrics"]
    again = replace(spec, name="again")
    tokenizers = itertools.cycle(["bytes", "theirs"])
    monkeypatch.setattr(StdlibData, "tokenizer", property(lambda _: next(tokenizers)))
    with pytest.raises(ConfigError, match=r"eval.nll.sets.again = tokens of bytes: expected those of theirs"):
        evaluate_one(store, text.run, text.execution, [again])


def test_a_wish_of_another_version_is_named(store: Store, text: Resolved, read: Callable[..., EvalSettings]) -> None:
    run = finish(store, text)
    ask(store, text, read("nll"))
    store.eval_spec_path(run, eval_id(NllEvalSpec())).write_text(json.dumps({"kind": "nll", "revision": 9}))
    with pytest.raises(ConfigError, match=r"evals.78d158c05107.revision = 9: expected revision 1"):
        evaluate_one(store, text.run, text.execution)


def test_on_the_command_line_they_are_made_after_the_training_and_printed(tmp_path: Path, run_py) -> None:
    """A request's wish, in one command; the same command again does nothing."""
    outputs = []
    for _ in range(2):
        process = run_py("-m", *TINY, "init_seed=1,2", "evals=[nll]")
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "2 of 2 cells finished" in err
        outputs.append(out)
    assert outputs[0].count("nll: ") == 2
    assert outputs[0] == outputs[1]
    records = list((tmp_path / "store").glob("runs/*/*/evals/*/record.json"))
    assert len(records) == 2


def test_on_the_command_line_what_means_nothing_is_refused_before_anything_is_spent(tmp_path: Path, run_py) -> None:
    process = run_py("-m", *TINY, "init_seed=1,2", "evals=[nll,position,posiiton]")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "did you mean position?" in err
    process = run_py("-m", *TINY, "init_seed=1,2", "evals=[nll,position]")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "evals = position: data.kind = recall: expected a run on text" in err
    assert not (tmp_path / "store" / "runs").exists()
    process = run_py("-m", *TINY, "mode=eval", "evals=[position]")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert "evals = position: data.kind = recall: expected a run on text" in err


def test_a_stored_request_is_evaluated_by_its_name_also_in_what_was_wanted_before(
    tmp_path: Path, run_py, resolve: Callable[..., Resolved]
) -> None:
    def said(*arguments: str, code: int = 0) -> tuple[str, str]:
        process = run_py(*arguments)
        out, err = process.communicate()
        assert process.returncode == code, err
        return out, err

    said("-m", *TINY, "init_seed=1,2", "budget.tokens=640")
    ids = [run_id(resolve(*TINY, f"init_seed={seed}", "budget.tokens=640").run) for seed in (1, 2)]
    Store(tmp_path / "store").want_eval(ids[0], RecallEvalSpec(examples=8, lengths=(16,), items=()))
    out, _ = said("mode=eval", "request=unnamed")
    assert [line.split()[1:3] for line in out.splitlines()] == [[ids[0], "nll:"], [ids[0], "recall:"], [ids[1], "nll:"]]
    # By Hydra's multirun, the same; what was made is told again.
    out, _ = said("-m", "mode=eval", "request=unnamed", "evals=[nll]")
    assert [line.split()[1] for line in out.splitlines()] == ids
    for arguments, message in (
        (("mode=eval", "request=unnamd"), "unnamd: never asked for in .* did you mean unnamed?"),
        (("request=unnamed",), "request = unnamed: expected mode=eval or mode=generate beside it, not mode=run"),
        (("mode=eval", "request=unnamed", "model=mamba"), "model=mamba: expected nothing of this kind beside request="),
        (("-m", "mode=eval", "request=unnamed", "+sweep=demo"), "sweep=demo: expected nothing of this kind"),
        (("mode=generate", "request=unnamed/00"), "no such request"),
    ):
        _, err = said(*arguments, code=2)
        assert re.search(message, err), err
