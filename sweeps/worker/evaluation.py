"""Evaluations of finished runs, each a record of its own."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.evals.spec import EvalSpec, ModuleWeightsEvalSpec, NllEvalSpec, canonical, eval_id
from hybrid.spec import ExecSpec, IntraSpec, RunSpec
from sweeps import in_slurm
from sweeps.identity import run_id as identify
from sweeps.provenance import provenance
from sweeps.store import RECORD_SCHEMA, Store, StoreError, now, user_name
from sweeps.worker.attempts import compare_sources

if TYPE_CHECKING:
    from hybrid.data import DataSource
    from hybrid.model import LanguageModel


def evaluate_one(store: Store, run: RunSpec, execution: ExecSpec) -> list[dict[str, Any]]:
    """Evaluations of a finished run, each a record of its own: the validation loss over the whole split; of a model
    with gated intra-hybrid blocks, how they weigh their modules, by block and position.

    Asking twice evaluates once. Raises StoreError where the run is not done or its weights are gone.
    """
    return [_evaluate(store, run, execution, spec) for spec in _eval_specs(run)]


def is_evaluated(store: Store, run: RunSpec) -> bool:
    """Whether `evaluate_one` has nothing left to do. Raises StoreError where a record is damaged."""
    return all(store.eval_record(identify(run), eval_id(spec)) is not None for spec in _eval_specs(run))


def _eval_specs(run: RunSpec) -> list[EvalSpec]:
    gated = any(isinstance(block.mixer, IntraSpec) and block.mixer.scalar == "gate" for block in run.model.blocks)
    return [NllEvalSpec(), *([ModuleWeightsEvalSpec()] if gated else [])]


def _evaluate(store: Store, run: RunSpec, execution: ExecSpec, spec: EvalSpec) -> dict[str, Any]:
    run_id, evaluation = identify(run), eval_id(spec)
    store.check_spec(run_id, run)
    known = store.eval_record(run_id, evaluation)
    if known is not None:
        return known
    weights = final_weights(store, run, "evaluate")
    from hybrid.data import open_data
    from hybrid.train.checkpoint import load_final_weights
    from hybrid.train.loop import build_model, numerics

    data = open_data(run.data, run.seq_len, store.data_root)
    began = time.monotonic()
    with numerics(execution, run.init_seed):
        model = build_model(run, execution)
        load_final_weights(weights, model)
        metrics = _measured(model, data, run, execution, spec)
    store.publish_eval_record(
        run_id,
        evaluation,
        {
            "schema": RECORD_SCHEMA,
            "run_id": run_id,
            "eval": canonical(spec),
            "metrics": metrics,
            "provenance": provenance(store, run, execution)
            | {"user": user_name(), "slurm": in_slurm.here(), "wall_s": time.monotonic() - began, "finished_at": now()},
        },
    )
    made = store.eval_record(run_id, evaluation)
    assert made is not None
    return made


def _measured(
    model: "LanguageModel", data: "DataSource", run: RunSpec, execution: ExecSpec, spec: EvalSpec
) -> dict[str, Any]:
    from hybrid.evals.module_weights import mean_module_weights
    from hybrid.evals.nll import evaluate_nll, evaluation_batch_size

    batch_size = evaluation_batch_size(execution, run.seq_len)
    match spec:
        case NllEvalSpec():
            result = evaluate_nll(model, data, max_examples=spec.max_examples, batch_size=batch_size, dtype=run.dtype)
            return asdict(result)
        case ModuleWeightsEvalSpec():
            blocks, mean_KL = mean_module_weights(
                model, data, max_examples=spec.max_examples, batch_size=batch_size, dtype=run.dtype
            )
            return {
                "gated_blocks": list(blocks),
                "attention_weight": [round(float(mean), 6) for mean in mean_KL.mean(1)],
                "attention_weight_by_position": [[round(w, 6) for w in row] for row in mean_KL.tolist()],
            }


def final_weights(store: Store, run: RunSpec, purpose: str) -> Path:
    """Where a finished run's weights are.

    Raises StoreError where it is not done, they are gone, or a mixer's file is not the one that it was trained with.
    """
    run_id = identify(run)
    record = store.record(run_id)
    if record is None or record["status"] != "done":
        raise StoreError(
            f"run {run_id}: {store.status(run_id)}: expected a finished run to {purpose}; train it first (mode=run)"
        )
    compare_sources(run, record["provenance"].get("mixers", {}), "this run was trained")
    weights = store.weights_path(run_id, record["attempt"])
    if not weights.exists():
        raise StoreError(
            f"{weights}: missing: the run is done, but its final weights are gone; "
            f"move {store.run_dir(run_id)} away to have it trained again"
        )
    return weights
