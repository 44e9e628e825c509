"""Makes the small store `results/` and the tables of it in `tables/`, both committed, for `--check` in CI.

    python tests/data/make.py            after a change that is meant to change tables or what a store holds
    python tests/data/make.py DIR        the same in another directory, to compare

Nobody trained these runs: their numbers are made up, so that every kind of line is there: done, diverged, failed, not
started, without its metric, evaluated, and with names that no format may trip over.
"""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from analysis.check import table_files
from analysis.load import load, request_of
from analysis.tables import build_tables
from hybrid.spec import (
    AdamWSpec,
    AttentionSpec,
    BlockSpec,
    Mamba2Spec,
    ModelSpec,
    RecallSpec,
    RunSpec,
    StdlibSpec,
    StopSpec,
    TrapezoidSpec,
)
from sweeps.identity import run_id
from sweeps.store import Cell, Request, Store, make_dir

NASTY = "50% & <b>x_1</b> {a} #2"
OPTIONS: dict[str, dict[str, Any]] = {
    "losses": {"against": "attention", "margin": 0.01},
    "race": {},
    "table4": {"reference": True},
}


def run_spec(layout: str, seed: int, *, race: bool = False) -> RunSpec:
    mixers = {
        "A": AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=16, rope=None),
        "M": Mamba2Spec(
            d_ssm=128,
            head_dim=32,
            d_state=16,
            n_groups=1,
            d_conv=4,
            a_init_min=0.01,
            a_init_max=2.0,
            dt_init_min=0.001,
            dt_init_max=0.1,
        ),
    }
    data = RecallSpec(n_symbols=64, n_pairs=8, power=0.01) if race else StdlibSpec(fingerprint="0" * 16, val_percent=4)
    return RunSpec(
        model=ModelSpec(
            d_model=64,
            vocab_size=data.vocab_size,
            tie_embeddings=True,
            norm_eps=1e-5,
            init_std=0.02,
            blocks=tuple(BlockSpec(mixer=mixers[letter], ffn=None) for letter in layout),
        ),
        data=data,
        optim=AdamWSpec(lr=0.002, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=1.0),
        schedule=TrapezoidSpec(warmup_tokens=81920, cooldown_tokens=0),
        stop=StopSpec(metric="accuracy", threshold=0.9, every_tokens=81920, examples=256) if race else None,
        train_tokens=4_915_200,
        batch_tokens=4096,
        seq_len=64,
        dtype="float32",
        init_seed=seed,
        data_seed=seed,
    )


class Writer:
    """Runs and requests as the worker and the planner write them; but records repeat neither spec nor cost, which are
    in spec.json or follow from it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.prepare()
        self.cells: list[Cell] = []

    def cell(self, row: str, spec: RunSpec) -> str:
        seed = spec.data_seed
        identity = run_id(spec)
        self.cells.append(Cell(name=f"{row}/s{seed}", row=row, axes={}, seed=seed, run_id=identity))
        return identity

    def done(self, row: str, spec: RunSpec, status: str = "done", **metrics: float | None) -> str:
        identity = self.cell(row, spec)
        self.store.publish_spec(spec)
        if metrics.get("val_loss_nats"):
            metrics["val_bits_per_byte"] = (metrics["val_loss_nats"] or 0.0) / math.log(2)
        record = {
            "schema": 1,
            "run_id": identity,
            "status": status,
            "metrics": {"tokens": spec.train_tokens, "wall_s": 24.0, "tokens_per_s": 204_800.0, **metrics},
            "provenance": {"host": "nowhere", "device": "cpu"},
        }
        self.store.publish_record(identity, record)
        return identity

    def losses(self, row: str, layout: str, losses: list[float]) -> list[str]:
        return [self.done(row, run_spec(layout, seed), val_loss_nats=loss) for seed, loss in enumerate(losses, start=1)]

    def failed(self, row: str, spec: RunSpec) -> None:
        attempt = self.store.attempt_dir(self.cell(row, spec), 1)
        self.store.publish_spec(spec)
        make_dir(attempt)
        (attempt / "error.json").write_text('{"class": "oom", "message": "out of memory"}\n')

    def request(self, sweep: str, overrides: tuple[str, ...] = (), **report: str) -> None:
        request = Request(
            sweep=sweep, overrides=overrides, created_at="2026-11-21", report=report, cells=tuple(self.cells)
        )
        self.store.publish_request(request)
        self.cells = []


def make_results(root: Path) -> None:
    writer = Writer(root)
    writer.losses("attention", "AA", [1.5012, 1.5171, 1.4983])
    writer.losses("Mamba", "MM", [1.4876, 1.5012, 1.4843])
    writer.losses("attention first", "AM", [1.4701, 1.4866, 1.4672])
    writer.losses("Mamba first", "MA", [1.4699, 1.4869, 1.4680])
    writer.losses(NASTY, "AMA", [1.6])
    writer.done(NASTY, run_spec("AMA", 2), val_loss_nats=float("nan"))
    writer.done(NASTY, run_spec("AMA", 3), "diverged", val_loss_nats=None)
    writer.failed("nobody's", run_spec("MAM", 1))
    writer.cell("nobody's", run_spec("MAM", 2))
    writer.request("losses", title="Losses that are made up & <i>escaped</i>")

    races: dict[str, tuple[str, list[int | None]]] = {
        "attention first": ("AM", [340, 360, 420]),
        "Mamba": ("MM", [None, 1040, None]),
    }
    for row, (layout, steps) in races.items():
        for seed, reached in enumerate(steps, start=1):
            spec = run_spec(layout, seed, race=True)
            tokens = (reached or spec.train_steps) * spec.batch_tokens
            writer.done(row, spec, steps=reached or spec.train_steps, steps_to_threshold=reached, tokens=tokens)
    writer.request("race", title="A race that nobody ran")

    # The same runs by other names.
    for row, layout in (("1:0", "AA"), ("0:1", "MM"), ("1:1", "AM")):
        for seed in (1, 2, 3):
            writer.cell(row, run_spec(layout, seed))
    first = run_id(run_spec("AA", 1))
    metrics = {"pg19_loss_nats": 2.5, "few_shot_accuracy_percent": 31.25}
    evaluation = {"schema": 1, "run_id": first, "eval": {"kind": "made_up"}, "metrics": metrics}
    writer.store.publish_eval_record(first, "0" * 12, evaluation)
    writer.request("table4", ("scale=toy", "sweep.seeds=3"), title="Inter-layer block ratio (Table 4)")


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
