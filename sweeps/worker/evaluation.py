"""Evaluations of finished runs, each a record of its own."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from hybrid.decode_cost import A100_80GB_SXM, H100_SXM, H200_SXM
from hybrid.eval_config import text_digest
from hybrid.eval_spec import (
    EvalSpec,
    FewShotEvalSpec,
    ModuleWeightsEvalSpec,
    NeedleEvalSpec,
    NllEvalSpec,
    PositionEvalSpec,
    RecallEvalSpec,
    ThroughputEvalSpec,
    canonical,
    eval_id,
    problems_of,
)
from hybrid.spec import ConfigError, ExecSpec, ProbeSpec, RunSpec
from sweeps import in_slurm
from sweeps.identity import run_id as identify
from sweeps.provenance import provenance
from sweeps.speed import available_memory_bytes
from sweeps.store import RECORD_SCHEMA, Store, StoreError, now, user_name
from sweeps.wanted import missing
from sweeps.worker.attempts import compare_sources
from sweeps.worker.measuring import device_name, made_with

if TYPE_CHECKING:
    from hybrid.data import DataSource, DocumentSource
    from hybrid.evals.needle import Needles
    from hybrid.model import LanguageModel

_NEEDLE_BATCH_TOKENS = 1 << 15


def evaluate_one(
    store: Store, run: RunSpec, execution: ExecSpec, specs: Sequence[EvalSpec] | None = None
) -> list[dict[str, Any]]:
    """Evaluations of a finished run, each a record of its own: `specs`, or what is missing of it (`sweeps.wanted`).

    Asking twice evaluates once. One that cannot be made does not keep the others from being made. Raises StoreError
    where the run is not done or its weights are gone, ConfigError with what could not be made of its data.
    """
    records, problems = [], []
    for spec in missing(store, run) if specs is None else specs:
        try:
            records.append(_evaluate(store, run, execution, spec))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return records


def _evaluate(store: Store, run: RunSpec, execution: ExecSpec, spec: EvalSpec) -> dict[str, Any]:
    run_id, evaluation = identify(run), eval_id(spec)
    store.check_spec(run_id, run)
    known = store.eval_record(run_id, evaluation)
    if known is not None:
        return known
    problems = problems_of(spec, run)
    if problems:
        raise ConfigError(problems)
    weights = final_weights(store, run, "evaluate")
    from hybrid.data import open_data
    from hybrid.train.checkpoint import load_final_weights
    from hybrid.train.loop import build_model, numerics

    data = open_data(run.data, run.seq_len, store.data_root)
    if isinstance(spec, NllEvalSpec) and spec.data is not None:
        data = _read_alike(open_data(spec.data, run.seq_len, store.data_root), data, f"eval.nll.sets.{spec.name}")
    began = time.monotonic()
    with numerics(execution, run.init_seed):
        model = build_model(run, execution)
        load_final_weights(weights, model)
        metrics = _measured(model, data, store, run, execution, spec)
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
    model: "LanguageModel", data: "DataSource", store: Store, run: RunSpec, execution: ExecSpec, spec: EvalSpec
) -> dict[str, Any]:
    from hybrid.data import DocumentSource
    from hybrid.evals.few_shot import evaluate_few_shot
    from hybrid.evals.module_weights import mean_module_weights
    from hybrid.evals.needle import evaluate_needle
    from hybrid.evals.nll import evaluate_nll_by_document, evaluation_batch_size
    from hybrid.evals.position import evaluate_positions, position_batch_size
    from hybrid.evals.recall import evaluate_recall

    batch_size = evaluation_batch_size(execution, run.seq_len)
    match spec:
        case NllEvalSpec():
            found = evaluate_nll_by_document(
                model, data, max_examples=spec.max_examples, batch_size=batch_size, dtype=run.dtype
            )
            return found.metrics(spec.name)
        case PositionEvalSpec():
            assert isinstance(data, DocumentSource)
            documents = (
                (_as_document(data, _text(store, digest)) for digest in spec.texts)
                if spec.texts
                else data.validation_documents()
            )
            return evaluate_positions(
                model,
                documents,
                length=spec.length,
                bin_width=spec.bin,
                max_documents=spec.documents,
                training_length=run.seq_len,
                batch_size=position_batch_size(model, spec.length),
                dtype=run.dtype,
            ).metrics()
        case NeedleEvalSpec():
            return evaluate_needle(
                model,
                _needles(data, store, spec),
                lengths=spec.lengths,
                depths_percent=spec.depths_percent,
                trials=spec.trials,
                new_tokens=spec.new_tokens,
                batch_tokens=_NEEDLE_BATCH_TOKENS,
                dtype=run.dtype,
            ).metrics()
        case RecallEvalSpec():
            assert isinstance(run.data, ProbeSpec)
            return evaluate_recall(
                model,
                run.data,
                run.seq_len,
                lengths=spec.lengths,
                items=spec.items,
                examples=spec.examples,
                batch_tokens=batch_size * run.seq_len,
                dtype=run.dtype,
            ).metrics()
        case FewShotEvalSpec():
            assert isinstance(data, DocumentSource)
            return evaluate_few_shot(
                model,
                data,
                spec,
                read_file=lambda digest: _text(store, digest),
                max_length=run.seq_len,
                batch_tokens=batch_size * run.seq_len,
                dtype=run.dtype,
            ).metrics()
        case ThroughputEvalSpec():
            return _throughput(model, run, execution, spec)
        case ModuleWeightsEvalSpec():
            blocks, mean_KL = mean_module_weights(
                model, data, max_examples=spec.max_examples, batch_size=batch_size, dtype=run.dtype
            )
            return {
                "gated_blocks": list(blocks),
                "attention_weight": [round(float(mean), 6) for mean in mean_KL.mean(1)],
                "attention_weight_by_position": [[round(w, 6) for w in row] for row in mean_KL.tolist()],
            }
        case _ as never:
            assert_never(never)


def _throughput(model: "LanguageModel", run: RunSpec, execution: ExecSpec, spec: ThroughputEvalSpec) -> dict[str, Any]:
    """Raises ConfigError where this is not the device that was asked for."""
    from hybrid.evals.throughput import Repeats, evaluate_throughput

    name = device_name(execution)
    check_device(spec.device, execution, name)
    kernels, torch_version = made_with(execution)
    metrics = evaluate_throughput(
        model,
        run,
        execution,
        lengths=spec.lengths,
        batch=spec.batch,
        prompt=spec.prompt,
        repeats=Repeats(warmup=spec.warmup, counted=spec.repeats),
        max_batch=spec.max_batch,
        memory_bytes=available_memory_bytes(),
    )
    return {"device_name": name, "kernels": kernels, "torch": torch_version, "load": os.getloadavg()[0], **metrics}


def check_device(asked: str, execution: ExecSpec, name: str) -> None:
    """Raises ConfigError where speed was asked for on a kind of device that this is not."""
    kind = execution.device.partition(":")[0]
    known = {"a100": A100_80GB_SXM, "h100": H100_SXM, "h200": H200_SXM}.get(asked)
    if (known is not None and name not in known.reported_names) or (asked in ("cpu", "cuda") and asked != kind):
        raise ConfigError(
            f"eval.throughput.device = {asked}: this is {name} (exec.device = {execution.device}): expected to be "
            "asked on such a device, or under another name"
        )


def _needles(data: "DataSource", store: Store, spec: NeedleEvalSpec) -> "Needles":
    from hybrid.data import DocumentSource
    from hybrid.data.needle import NeedleData
    from hybrid.evals.needle import LetterNeedles, TextNeedles

    if isinstance(data, NeedleData):
        return LetterNeedles(data, spec.seed)
    assert isinstance(data, DocumentSource)
    text = data.validation_text() if spec.text is None else data.encode(_text(store, spec.text))
    return TextNeedles(data, text, spec.seed)


def _read_alike(other: "DataSource", own: "DataSource", where: str) -> "DataSource":
    """Raises ConfigError where the other data are not read as the run's own are: its tokens would mean nothing."""
    from hybrid.data import DocumentSource

    assert isinstance(other, DocumentSource)
    assert isinstance(own, DocumentSource)
    if other.tokenizer != own.tokenizer:
        raise ConfigError(f"{where} = tokens of {other.tokenizer}: expected those of {own.tokenizer}, as the run has")
    return other


def _text(store: Store, digest: str) -> bytes:
    """The text of this digest that was kept when it was asked for. Raises ConfigError where it is not there whole."""
    path = store.text_path(digest)
    if text_digest(path, "a text to evaluate with") != digest:
        raise ConfigError(f"{path}: has changed: expected the text that its name is the hash of; give the file again")
    return path.read_bytes()


def _as_document(data: "DocumentSource", text: bytes) -> Any:
    import numpy as np

    return np.concatenate(([data.bos], data.encode(text)))


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
