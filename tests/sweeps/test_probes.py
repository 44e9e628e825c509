"""The sweep of synthetic tasks, and the evaluation of its runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.config import Resolved
from hybrid.data import open_data
from hybrid.eval_spec import RecallEvalSpec, eval_id
from hybrid.probes import check_probe
from hybrid.spec import ConfigError, ProbeSpec
from sweeps.cells import expand
from sweeps.compose import Composer
from sweeps.store import Store
from sweeps.worker.evaluation import evaluate_one

from .conftest import TINY
from .test_generate_command import TEXT, finish

SPEC = RecallEvalSpec(examples=20, lengths=(16, 32), items=())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def test_the_sweep_is_every_row_on_every_task_with_equal_seeds(tmp_path: Path) -> None:
    with Composer() as composer:
        runs = expand(["+sweep=probes", "sweep.seeds=[11]"], composer, stdlib_fingerprint=lambda: "0" * 16).runs
    rows = {run.cell.row for run in runs}
    tasks = {run.cell.axes["data"] for run in runs}
    assert len(rows) >= 5
    assert len(tasks) == 7
    assert len(runs) == len(rows) * len(tasks) == len({run.run_id for run in runs})
    by_task: dict[object, set[object]] = {}
    for run in runs:
        spec = run.resolved.run
        assert isinstance(spec.data, ProbeSpec)
        check_probe(spec.data, spec.seq_len)
        assert open_data(spec.data, spec.seq_len, tmp_path).train_batch(0, 2, 1).inputs_BL.shape == (2, spec.seq_len)
        by_task.setdefault(run.cell.axes["data"], set()).add(spec.data)
        assert spec.stop is not None
    assert all(len(specs) == 1 for specs in by_task.values())


@pytest.mark.parametrize("task", ["noisy_recall", "fuzzy_recall", "compression", "memorisation"])
def test_a_run_on_a_task_is_evaluated_once(store: Store, resolve: Callable[..., Resolved], task: str) -> None:
    sizes = ["data.n_compressed=5"] if task == "compression" else []
    resolved = resolve(*(setting for setting in TINY if "data" not in setting), f"data={task}", *sizes)
    finish(store, resolved)
    (record,) = evaluate_one(store, resolved.run, resolved.execution, [SPEC])
    assert record["metrics"]["n_sequences"] == 20
    assert record["metrics"]["lengths"] == [16, 32]
    assert [len(row) for row in record["metrics"]["accuracy_percent"]] == [2]
    path = store.run_dir(record["run_id"]) / "evals" / eval_id(SPEC) / "record.json"
    written_at = path.stat().st_mtime_ns
    assert evaluate_one(store, resolved.run, resolved.execution, [SPEC]) == [record]
    assert path.stat().st_mtime_ns == written_at


def test_a_run_on_text_is_refused_before_its_weights_are_read(store: Store, resolve: Callable[..., Resolved]) -> None:
    resolved = resolve(*TEXT)
    store.publish_spec(resolved.run)
    with pytest.raises(ConfigError, match=r"evals = recall: data\.kind = stdlib"):
        evaluate_one(store, resolved.run, resolved.execution, [SPEC])
