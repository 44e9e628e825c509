"""The trained model of a finished run, from the files that `sweeps` keeps of it.

What is relied on of a store is where a run's record and final weights lie (`hybrid.checkpoint_files`), and what a
record says: `schema`, `status`, `attempt`, `spec`, `weights_sha256` (younger than the first stores), and of its
provenance how the run was carried out and which files its outside mixers came from.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from hybrid import outside
from hybrid.checkpoint_files import RUN_RECORD, RUNS, run_place, weights_file
from hybrid.decode import canonical_json, decode, digest
from hybrid.model import LanguageModel
from hybrid.spec import ConfigError, ExecSpec, RunSpec
from hybrid.train.checkpoint import load_final_weights
from hybrid.train.loop import build_model

_RECORD_SCHEMA: Final = 1
_BLOCK_BYTES: Final = 1 << 20
_SSD_CHUNK: Final = 64


def load(
    run_id: str,
    *,
    store: str | Path | None = None,
    checkpoints: str | Path | None = None,
    device: str = "cpu",
    mixers: Sequence[str | Path] | None = None,
) -> LanguageModel:
    """As `hybrid.load`, which says what it raises."""
    return load_run(run_id, store=store, checkpoints=checkpoints, device=device, mixers=mixers)[1]


def load_run(
    run_id: str,
    *,
    store: str | Path | None = None,
    checkpoints: str | Path | None = None,
    device: str = "cpu",
    mixers: Sequence[str | Path] | None = None,
) -> tuple[RunSpec, LanguageModel]:
    """The run's spec, and its model as `load` gives it."""
    root = Path(store or os.environ.get("HYBRID_STORE") or "store")
    path = run_place(root / RUNS, run_id) / RUN_RECORD
    record = _record(root, run_id, path)
    run = _checked_spec(record, run_id, path)
    made_with = record.get("provenance", {}).get("exec", {})
    _check_sources(run, run_id, record, made_with.get("mixers", ()) if mixers is None else mixers)
    weights = run_place(Path(checkpoints or root / "checkpoints"), run_id) / weights_file(record["attempt"])
    _check_weights(weights, run_id, record)
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        model = build_model(run, _execution(device, made_with))
    load_final_weights(weights, model)
    return run, model.eval()


def _record(root: Path, run_id: str, path: Path) -> dict[str, Any]:
    """The record of a run that is done."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        status, schema = record["status"], record["schema"]
    except (FileNotFoundError, NotADirectoryError):
        if not root.is_dir():
            raise ConfigError(f"store = {root}: expected a directory; give store=DIR or set HYBRID_STORE") from None
        known = path.parent.is_dir()
        what = "it has no result yet: expected a finished run" if known else f"no such run in {root}"
        raise ConfigError(f"run = {run_id}: {what}; python -m sweeps status lists them") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} = {error}: expected the record of a run") from error
    if schema != _RECORD_SCHEMA:
        raise ConfigError(
            f"{path} = schema {schema}: expected schema {_RECORD_SCHEMA}, which is what this version reads; "
            "use the version that wrote it"
        )
    if status != "done":
        reason = record.get("metrics", {}).get("reason")
        raise ConfigError(
            f"run = {run_id}: {status}{f' ({reason})' if reason else ''}: expected a run that is done: "
            "of others no final weights are kept"
        )
    found: dict[str, Any] = record
    return found


def _checked_spec(record: Mapping[str, Any], run_id: str, path: Path) -> RunSpec:
    """The run's spec, which is what its id says."""
    run = decode(RunSpec, record.get("spec"), "spec")
    found = digest(canonical_json(run))
    if found != run_id or record.get("run_id") != run_id:
        raise ConfigError(f"{path} = the record of run {found}: expected that of run {run_id}")
    return run


def _check_sources(run: RunSpec, run_id: str, record: Mapping[str, Any], mixers: Sequence[str | Path]) -> None:
    """Read the files of the run's outside mixers: they are those that it was trained with, to the byte."""
    if not any(block.mixer.kind == "outside" for block in run.model.blocks):
        return
    try:
        outside.load([str(path) for path in mixers])
        hashes = outside.source_hashes(run.model)
    except ConfigError as error:
        raise ConfigError([*error.problems, "if the file is elsewhere now, say where: mixers=[FILE]"]) from error
    trained_with = record.get("provenance", {}).get("mixers", {})
    problems = [
        f"outside mixer {mixer} = a file with SHA-256 {found[:12]}: expected {str(trained_with.get(mixer))[:12]}, "
        f"the one that run {run_id} was trained with; say where it is: mixers=[FILE]"
        for mixer, found in hashes.items()
        if trained_with.get(mixer) != found
    ]
    if problems:
        raise ConfigError(problems)


def _check_weights(path: Path, run_id: str, record: Mapping[str, Any]) -> None:
    """The weights are there, and are those of which the record was made, where it says which."""
    expected = record.get("weights_sha256")
    sha256 = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while expected is not None and (block := file.read(_BLOCK_BYTES)):
                sha256.update(block)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"run = {run_id}: its final weights are not at {path}; if store.checkpoints was set, "
            "say where they are: checkpoints=DIR"
        ) from None
    if expected is not None and sha256.hexdigest() != expected:
        raise ConfigError(
            f"{path} = SHA-256 {sha256.hexdigest()[:12]}: expected {expected[:12]}, the weights that "
            f"run {run_id} ended with; they were damaged or replaced since"
        )


def _execution(device: str, made_with: Mapping[str, Any]) -> ExecSpec:
    """The device, and of how the run was carried out what may show in a logit's last digits."""
    return ExecSpec(
        device=device,
        microbatch=None,
        threads=torch.get_num_threads(),
        ssd_chunk=made_with.get("ssd_chunk", _SSD_CHUNK),
        checkpoint_every_s=0.0,
        log_every_steps=1,
        eval_every_tokens=None,
        heartbeat_s=1.0,
        lease_s=1.0,
        activation_checkpointing=False,
        kernels="torch" if made_with.get("kernels") == "torch" else "auto",
        mixers=(),
        trunks=False,
        nodes=1,
        gpus_per_node=1,
    )
