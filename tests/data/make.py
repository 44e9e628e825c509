"""Makes the small store `results/` and the tables of it in `tables/`, both committed, for `--check` in CI.

    python tests/data/make.py            after a change that is meant to change tables or what a store holds
    python tests/data/make.py DIR        the same in another directory, to compare

Nobody trained these runs: their numbers are made up, so that every kind of line is there: done, diverged, failed, not
started, without its metric, evaluated, and with names that no format may trip over. Records are short: neither spec nor
cost, which are in spec.json or follow from it.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from analysis.check import table_files
from analysis.load import load, request_of
from analysis.tables import build_tables
from hybrid.spec import RunSpec, StdlibSpec
from sweeps.identity import run_id
from sweeps.store import Store
from tests import book
from tests.book import Book

NASTY = "50% & <b>x_1</b> {a} #2"
OPTIONS: dict[str, dict[str, Any]] = {
    "losses": {"against": "attention", "margin": 0.01},
    "race": {},
    "table4": {"reference": True},
}


def run_spec(layout: str, seed: int, *, race: bool = False) -> RunSpec:
    corpus = StdlibSpec(fingerprint="0" * 16, val_percent=4)
    return book.run_spec(layout, seed, probe=race, corpus=corpus, d_ffn=None)


def record(made: Book, row: str, spec: RunSpec, status: str = "done", **metrics: float | None) -> None:
    made.cell(spec, row, spec.data_seed)
    made.record(spec, status, **{"wall_s": 24.0, "tokens_per_s": 204_800.0, **metrics})


def record_losses(made: Book, row: str, layout: str, losses: list[float]) -> None:
    for seed, loss in enumerate(losses, start=1):
        record(made, row, run_spec(layout, seed), val_loss_nats=loss)


def ask(made: Book, sweep: str, title: str, overrides: tuple[str, ...] = ()) -> None:
    made.request(sweep, overrides=overrides, created_at="2026-11-21", report={"title": title})


def make_results(root: Path) -> None:
    store = Store(root)
    store.prepare()
    made = Book(store, host="nowhere", in_full=False)
    record_losses(made, "attention", "AA", [1.5012, 1.5171, 1.4983])
    record_losses(made, "Mamba", "MM", [1.4876, 1.5012, 1.4843])
    record_losses(made, "attention first", "AM", [1.4701, 1.4866, 1.4672])
    record_losses(made, "Mamba first", "MA", [1.4699, 1.4869, 1.4680])
    record_losses(made, NASTY, "AMA", [1.6])
    record(made, NASTY, run_spec("AMA", 2), val_loss_nats=float("nan"))
    record(made, NASTY, run_spec("AMA", 3), "diverged", val_loss_nats=None)
    for seed in (1, 2):
        made.cell(run_spec("MAM", seed), "nobody's", seed)
    made.fail(run_spec("MAM", 1))
    ask(made, "losses", "Losses that are made up & <i>escaped</i>")

    races: dict[str, tuple[str, list[int | None]]] = {
        "attention first": ("AM", [340, 360, 420]),
        "Mamba": ("MM", [None, 1040, None]),
    }
    for row, (layout, steps) in races.items():
        for seed, reached in enumerate(steps, start=1):
            spec = run_spec(layout, seed, race=True)
            tokens = (reached or spec.train_steps) * spec.batch_tokens
            record(made, row, spec, steps=reached or spec.train_steps, steps_to_threshold=reached, tokens=tokens)
    ask(made, "race", "A race that nobody ran")

    # The same runs by other names.
    for row, layout in (("1:0", "AA"), ("0:1", "MM"), ("1:1", "AM")):
        for seed in (1, 2, 3):
            made.cell(run_spec(layout, seed), row, seed)
    first = run_id(run_spec("AA", 1))
    metrics = {"pg19_loss_nats": 2.5, "few_shot_accuracy_percent": 31.25}
    evaluation = {"schema": 1, "run_id": first, "eval": {"kind": "made_up"}, "metrics": metrics}
    store.publish_eval_record(first, "0" * 12, evaluation)
    ask(made, "table4", "Inter-layer block ratio (Table 4)", ("scale=toy", "sweep.seeds=3"))


def make_tables(store: Store, directory: Path) -> None:
    for sweep, options in OPTIONS.items():
        files = table_files(build_tables(load(store, request_of(store, sweep, ())), **options))
        (directory / sweep).mkdir(parents=True)
        for name, text in files.items():
            (directory / sweep / name).write_text(text, encoding="utf-8")


def make(directory: Path) -> None:
    for name in ("results", "tables"):
        shutil.rmtree(directory / name, ignore_errors=True)
    make_results(directory / "results")
    make_tables(Store(directory / "results"), directory / "tables")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
    print(json.dumps(sorted(OPTIONS)))
