"""`hybrid.load` gives the model that a run ended with, and no other."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hybrid
import hybrid.evals.nll
from hybrid import outside, trained
from hybrid.config import Resolved
from hybrid.decode import encode
from hybrid.spec import ConfigError
from hybrid.train.checkpoint import save_final_weights
from hybrid.train.loop import build_model
from sweeps import store as sweeps_store
from sweeps.identity import run_id
from sweeps.stopping import StopFlag
from sweeps.store import Store
from sweeps.worker.evaluation import evaluate_one
from sweeps.worker.runs import run_one

REPO = Path(__file__).resolve().parent.parent.parent
TINY = (
    "data=recall",
    "data.n_symbols=16",
    "data.n_pairs=2",
    "model.depth=2",
    "model.d_model=16",
    "model.attention.n_heads=2",
    "model.attention.head_dim=8",
    "model.ffn=null",
    "seq_len=16",
    "batch_tokens=64",
    "budget.tokens=640",
)
HYBRID = (
    *TINY,
    "model.ratio=1:1",
    "model.mamba.d_ssm=32",
    "model.mamba.head_dim=8",
    "model.mamba.d_state=4",
    "exec.ssd_chunk=8",
)
OUTSIDE = (
    *TINY,
    "model.mixers=[outside,attention]",
    "model.ratio=1:1",
    "model.outside={name:moving_average,version:1,settings:{d_inner:8}}",
)
TOKENS_BL = torch.arange(48).reshape(3, 16) % 16


@pytest.fixture
def trained_run(tmp_path: Path, resolve: Callable[..., Resolved]) -> Callable[..., tuple[Store, str, Resolved]]:
    """Train a tiny run of ten steps."""

    def train(*overrides: str) -> tuple[Store, str, Resolved]:
        store = Store(tmp_path / "store")
        store.prepare()
        resolved = resolve(*(overrides or HYBRID))
        assert run_one(store, resolved.run, resolved.execution, stop=StopFlag(), progress=lambda *_: None) == "done"
        return store, run_id(resolved.run), resolved

    return train


@pytest.fixture
def finished_run(tmp_path: Path, resolve: Callable[..., Resolved]) -> Callable[..., tuple[Store, str]]:
    """Record a run as done, with the weights that it began with: nothing here depends on their being good."""

    def finish(*overrides: str) -> tuple[Store, str]:
        store = Store(tmp_path / "store")
        store.prepare()
        resolved = resolve(*(overrides or HYBRID))
        run = store.publish_spec(resolved.run)
        save_final_weights(store.weights_path(run, 1), build_model(resolved.run, resolved.execution))
        record = {"schema": 1, "run_id": run, "status": "done", "attempt": 1, "spec": encode(resolved.run)}
        provenance = {"exec": encode(resolved.execution), "mixers": {}}
        assert store.publish_record(run, {**record, "cost": {}, "metrics": {}, "provenance": provenance})
        return store, run

    return finish


def edit(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


def test_logits_equal_those_of_the_model_that_was_evaluated(trained_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, run, resolved = trained_run()
    logits: list[torch.Tensor] = []
    evaluate = hybrid.evals.nll.evaluate_nll_by_document

    def listening(model: Any, *arguments: Any, **settings: Any) -> Any:
        with torch.no_grad():
            logits.append(model.eval()(TOKENS_BL))
        return evaluate(model, *arguments, **settings)

    monkeypatch.setattr(hybrid.evals.nll, "evaluate_nll_by_document", listening)
    evaluate_one(store, resolved.run, resolved.execution)
    expected = hashlib.sha256(store.weights_path(run, 1).read_bytes()).hexdigest()
    assert store.record(run)["weights_sha256"] == expected
    before = torch.random.get_rng_state()
    model = hybrid.load(run, store=store.root)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(TOKENS_BL), logits[0])


def test_the_store_is_that_of_the_environment_unless_given(finished_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, run = finished_run()
    monkeypatch.setenv("HYBRID_STORE", str(store.root))
    assert hybrid.load(run).spec.d_model == 16


def test_weights_may_lie_elsewhere(finished_run: Any, tmp_path: Path) -> None:
    store, run = finished_run()
    (store.root / "checkpoints").rename(tmp_path / "scratch")
    with pytest.raises(ConfigError, match=r"final weights are not at .*checkpoints=DIR"):
        hybrid.load(run, store=store.root)
    hybrid.load(run, store=store.root, checkpoints=tmp_path / "scratch")


def test_weights_that_are_not_those_of_the_record_are_refused(finished_run: Any) -> None:
    store, run = finished_run()
    other_store, other = finished_run(*HYBRID, "init_seed=2")
    path = store.weights_path(run, 1)
    edit(store.record_path(run), weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    hybrid.load(run, store=store.root)
    shutil.copy(other_store.weights_path(other, 1), path)
    with pytest.raises(ConfigError, match="the weights that run"):
        hybrid.load(run, store=store.root)
    edit(store.record_path(run), weights_sha256="")  # as an older record, which says nothing of them
    edit(store.record_path(run), weights_sha256=None)
    hybrid.load(run, store=store.root)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match="expected whole safetensors"):
        hybrid.load(run, store=store.root)


def test_weights_of_another_shape_are_refused(finished_run: Any) -> None:
    store, run = finished_run()
    _, wider = finished_run(*HYBRID, "model.mamba.d_state=8")
    shutil.copy(store.weights_path(wider, 1), store.weights_path(run, 1))
    edit(store.record_path(run), weights_sha256=None)
    with pytest.raises(ConfigError, match="weights of another model"):
        hybrid.load(run, store=store.root)


def test_a_record_of_another_run_is_refused(finished_run: Any) -> None:
    store, run = finished_run()
    spec = json.loads(store.record_path(run).read_text())["spec"]
    edit(store.record_path(run), spec={**spec, "init_seed": 9})
    with pytest.raises(ConfigError, match=f"the record of run .*: expected that of run {run}"):
        hybrid.load(run, store=store.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2: expected schema 1"),
        ({"status": "diverged", "metrics": {"reason": "loss is nan"}}, r"diverged \(loss is nan\): expected a run"),
        ({"schema": None}, "expected the record of a run"),
    ],
)
def test_records_without_weights_to_load_are_refused(finished_run: Any, changes: dict[str, Any], message: str) -> None:
    store, run = finished_run()
    edit(store.record_path(run), **changes)
    with pytest.raises(ConfigError, match=message):
        hybrid.load(run, store=store.root)


def test_what_is_not_there_is_said(finished_run: Any, tmp_path: Path) -> None:
    store, run = finished_run()
    store.record_path(run).unlink()
    with pytest.raises(ConfigError, match="it has no result yet"):
        hybrid.load(run, store=store.root)
    with pytest.raises(ConfigError, match="no such run in"):
        hybrid.load("0" * 12, store=store.root)
    with pytest.raises(ConfigError, match="expected a directory"):
        hybrid.load(run, store=tmp_path / "none")


def test_a_device_that_is_not_there_is_said(finished_run: Any) -> None:
    store, run = finished_run()
    with pytest.raises(ConfigError, match=r"exec\.device = abacus: expected a device of this machine: cpu"):
        hybrid.load(run, store=store.root, device="abacus")


def test_outside_mixers_are_those_that_the_run_was_trained_with(
    trained_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "mixer.py"
    shutil.copy(REPO / "tests" / "outside" / "moving_average.py", source)
    monkeypatch.setattr(outside, "_found", {})
    monkeypatch.setattr(outside, "_sources", {})
    store, run, _ = trained_run(*OUTSIDE, f"exec.mixers=[{source}]")

    def forget() -> None:
        """As in another process."""
        outside._found.clear()
        outside._sources.clear()

    forget()
    model = hybrid.load(run, store=store.root)
    moved = source.rename(tmp_path / "moved.py")
    forget()
    with pytest.raises(ConfigError, match=r"no such file[^$]*mixers=\[FILE\]"):
        hybrid.load(run, store=store.root)
    again = hybrid.load(run, store=store.root, mixers=[moved])
    with torch.no_grad():
        assert torch.equal(again(TOKENS_BL), model(TOKENS_BL))
    moved.write_text(moved.read_text().replace("F.silu", "torch.sigmoid"))
    forget()
    with pytest.raises(ConfigError, match="the one that run"):
        hybrid.load(run, store=store.root, mixers=[moved])


def test_the_record_is_of_the_schema_that_the_store_writes() -> None:
    assert trained._RECORD_SCHEMA == sweeps_store.RECORD_SCHEMA
