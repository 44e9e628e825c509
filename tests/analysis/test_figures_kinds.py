"""What figures of requests say: every kind, from records made up for it; and what they say where nothing is recorded."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from analysis import stats
from analysis.__main__ import main
from analysis.figures.command import COSTS, FORMATS
from analysis.figures.command import KINDS as NAMED_KINDS
from analysis.figures.draw import FORMATS as DRAWN
from analysis.figures.kinds import KINDS, default_kind
from analysis.figures.numbers import COST_AXES
from analysis.figures.ours import Asked, Ours
from analysis.figures.picture import HeatMap, Intervals, Lines, Picture, Points
from analysis.load import Results, load
from hybrid.spec import ConfigError
from sweeps.identity import run_id
from sweeps.index import Index

LENGTHS = (32, 64, 128, 256)
ROWS = {"Llama": "AAAA", "Mamba": "MMM", "Inter-H 1:1": "MAMA", "Inter-H 1:3": "MMMA"}


def evaluate(book: Any, spec: Any, kind: str, metrics: dict[str, Any]) -> None:
    identity = run_id(spec)
    record = {"schema": 1, "run_id": identity, "eval": {"kind": kind}, "metrics": metrics, "provenance": {}}
    book.store.publish_eval_record(identity, (kind.encode().hex() + "0" * 12)[:12], record)


@pytest.fixture
def evaluated(book: Any) -> Any:
    """Four rows of two seeds, with all that evaluations may record."""
    for i, (row, layout) in enumerate(ROWS.items()):
        for seed in (1, 2):
            spec = book.spec(layout, seed, probe=False)
            book.cell(spec, row, seed)
            speed = 300.0 * (i + 1) + seed
            book.record(spec, val_loss_nats=1.5 - 0.01 * i + 0.001 * seed, tokens_per_s=1000.0 * (i + 1) + seed)
            evaluate(
                book,
                spec,
                "throughput",
                {f"decode_tokens_per_s_at_{n}": speed * (32 / n) ** (0.3 * (3 - i)) for n in LENGTHS}
                | {"decode_tokens_per_s": speed},
            )
            places = [16 * k + 8 for k in range(12)]
            evaluate(
                book,
                spec,
                "position_loss",
                {
                    "positions": places,
                    "loss_nats": [
                        1.4 + 2 / (1 + p) ** 0.5 + (0.002 * (p - 64) * (3 - i) / 3 if p > 64 else 0) + 0.01 * seed
                        for p in places
                    ],
                },
            )
            grid = [
                [max(0.0, 100.0 - abs(d - 50) * 0.2 * i - max(0, n - 64) * (0.5 + 0.1 * i)) for n in range(16, 129, 16)]
                for d in range(0, 101, 10)
            ]
            if (row, seed) == ("Mamba", 1):
                grid[3][2] = math.nan
            evaluate(
                book,
                spec,
                "needle",
                {"lengths": list(range(16, 129, 16)), "depths_percent": list(range(0, 101, 10)), "accuracy_percent": grid},
            )
            if layout == "MAMA":
                weights = {"gated_blocks": [2, 4], "attention_weight": [0.4 + 0.02 * seed, 0.7]}
                evaluate(book, spec, "module_weights", weights)
    book.request("demo_text", report={"title": "Bytes"})
    return book


def test_look(evaluated: Any) -> None:
    pass
