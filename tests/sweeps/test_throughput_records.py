"""Records that real evaluations make of speed, losses by position and needles: what figures and tables read there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.figures.kinds import KINDS
from analysis.figures.ours import Asked, Ours
from analysis.figures.picture import HeatMap, Lines
from analysis.load import load
from analysis.render import render
from analysis.tables import build_tables
from hybrid.config import Resolved
from hybrid.decode_cost import H100_SXM
from hybrid.eval_config import EvalSettings
from hybrid.eval_spec import ThroughputEvalSpec
from hybrid.evals import throughput
from hybrid.spec import ConfigError
from sweeps.identity import run_id
from sweeps.store import Cell, Request, Store
from sweeps.wanted import want
from sweeps.worker.evaluation import check_device, evaluate_one

from .test_generate_command import TEXT, finish

THROUGHPUT = {"kind": "throughput", "lengths": [12, 24], "prompt": 4, "batch": 2, "max_batch": 4, "repeats": 3}
POSITION = {"kind": "position", "length": 24, "bin": 8}
NEEDLE = {"kind": "needle", "lengths": [128, 160], "depths": [0, 100], "trials": 2}
ROWS = {"Inter": "model.ratio=1:1", "Mamba": "model.ratio=0:1"}


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(throughput, "_CPU_MATRIX", 64)
    monkeypatch.setattr(throughput, "_CPU_COPY_BYTES", 1 << 16)


def measured(
    store: Store, resolve: Callable[..., Resolved], settings: EvalSettings
) -> dict[str, dict[str, dict[str, Any]]]:
    """Two rows with all their records; by row and kind the metrics."""
    found, cells = {}, []
    for row, override in ROWS.items():
        resolved = resolve(*TEXT, override)
        finish(store, resolved)
        want(store, resolved.run, settings.of(resolved.run), settings)
        records = evaluate_one(store, resolved.run, resolved.execution)
        found[row] = {record["eval"]["kind"]: record["metrics"] for record in records}
        cells.append(Cell(name=row, row=row, axes={}, seed=1, run_id=run_id(resolved.run)))
    store.publish_request(
        Request(sweep="demo_text", overrides=(), created_at="2026-01-01T00:00", report={}, cells=tuple(cells))
    )
    return found


def test_what_evaluations_record_is_drawn_and_tabled(
    store: Store, resolve: Callable[..., Resolved], read: Callable[..., EvalSettings]
) -> None:
    metrics = measured(store, resolve, read(THROUGHPUT, POSITION, NEEDLE))
    results = load(store, store.requests()[-1])

    def panels(kind: str) -> Any:
        return KINDS[kind].make(Ours(results=results, read=lambda _: store.metrics, asked=Asked())).panels

    (lines,) = panels("throughput")
    assert isinstance(lines, Lines)
    for line in lines.lines:
        speeds = [metrics[line.label]["throughput"][f"decode_tokens_per_s_at_{n}"] for n in (12, 24)]
        assert (line.x, line.y) == ((12.0, 24.0), tuple(speeds))
    (lines,) = panels("position-loss")
    for line in lines.lines:
        position = metrics[line.label]["position"]
        assert (list(line.x), list(line.y)) == (position["positions"], position["bin_loss_nats"])
        assert (list(line.low), list(line.high)) == (position["bin_loss_nats_low"], position["bin_loss_nats_high"])
    for panel in panels("needle"):
        assert isinstance(panel, HeatMap)
        needle = metrics[panel.title.split()[0]]["needle"]
        assert [list(row) for row in panel.values] == needle["accuracy_percent"]
    table = render(build_tables(results, "decode_tokens_per_s"), "markdown")
    assert "decoding tokens/s" in table
    assert "of roofline" in table


def test_a_record_says_on_what_it_was_measured_and_is_made_once(
    store: Store, resolve: Callable[..., Resolved], read: Callable[..., EvalSettings]
) -> None:
    resolved = resolve(*TEXT)
    finish(store, resolved)
    (spec,) = read(THROUGHPUT).of(resolved.run)
    assert isinstance(spec, ThroughputEvalSpec)
    (record,) = evaluate_one(store, resolved.run, resolved.execution, [spec])
    assert record["eval"]["device"] == "cpu"
    told = record["metrics"]
    assert all(told[name] for name in ("device_name", "torch", "kernels", "dtype", "threads", "peaks_source"))
    assert evaluate_one(store, resolved.run, resolved.execution, [spec]) == [record]
    # On another machine it is asked for under another name, and has a record of its own.
    (other,) = read({**THROUGHPUT, "device": "new_node"}).of(resolved.run)
    (again,) = evaluate_one(store, resolved.run, resolved.execution, [other])
    assert again["eval"] == record["eval"] | {"device": "new_node"}
    assert len(store.eval_records(run_id(resolved.run))) == 2
    assert json.loads(json.dumps(again)) == again


def test_a_device_that_is_not_there_is_refused(
    store: Store, resolve: Callable[..., Resolved], read: Callable[..., EvalSettings]
) -> None:
    resolved = resolve(*TEXT)
    finish(store, resolved)
    for device in ("h100", "cuda"):
        (spec,) = read({**THROUGHPUT, "device": device}).of(resolved.run)
        with pytest.raises(ConfigError, match=f"eval.throughput.device = {device}: this is .*exec.device = cpu"):
            evaluate_one(store, resolved.run, resolved.execution, [spec])
    check_device("new_node", resolved.execution, "any processor")
    check_device("h100", resolved.execution, H100_SXM.reported_names[0])
