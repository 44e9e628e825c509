"""Which evaluations are wanted of runs: written down beside each run, until there is a record of the same id.

Who evaluates a run later, a job of a scheduler for one, measures what is missing then, whoever asked for it.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from hybrid.decode import decode
from hybrid.durable import make_dir
from hybrid.eval_config import EvalSettings, text_digest
from hybrid.eval_spec import EvalSpec, eval_id, usual_evals
from hybrid.spec import ConfigError, RunSpec
from sweeps.cells import CellRun
from sweeps.identity import run_id as identify
from sweeps.store import Store


def wanted_of(runs: Iterable[CellRun], settings: EvalSettings) -> dict[str, tuple[EvalSpec, ...]]:
    """By run id what is wanted. Raises ConfigError with what means nothing for some run, and the cells that have it."""
    wanted: dict[str, tuple[EvalSpec, ...]] = {}
    problems: dict[str, list[str]] = {}
    for run in runs:
        try:
            wanted[run.run_id] = settings.of(run.resolved.run)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(run.cell.name)
    if problems:
        raise ConfigError([f"{problem} [in {', '.join(names[:4])}]" for problem, names in problems.items()])
    return wanted


def want(store: Store, run: RunSpec, specs: Sequence[EvalSpec], settings: EvalSettings) -> None:
    """Write down what is wanted of a run, known or not, and keep the texts that it will be read from."""
    run_id = store.publish_spec(run)
    _keep_texts(store, settings)
    for spec in specs:
        store.want_eval(run_id, spec)


def missing(store: Store, run: RunSpec) -> tuple[EvalSpec, ...]:
    """The evaluations of a run that are wanted and were not made; where none was ever asked for, the usual ones.

    Raises ConfigError for one that this version cannot make, StoreError where a record is damaged.
    """
    run_id = identify(run)
    found = store.missing_evals(run_id)
    if found is None:
        return tuple(spec for spec in usual_evals(run) if store.eval_record(run_id, eval_id(spec)) is None)
    return tuple(_read(plain, f"run {run_id}: evals.{id_}") for id_, plain in found.items())


def missing_names(store: Store, run_id: str) -> list[str]:
    """What the missing evaluations are called, each once: their kinds, and of losses on other data the data's name."""
    plain = (store.missing_evals(run_id) or {}).values()
    return list(dict.fromkeys(" on ".join(str(one[k]) for k in ("kind", "name") if k in one) for one in plain))


def _read(plain: dict[str, Any], where: str) -> EvalSpec:
    return cast(EvalSpec, decode(cast(Any, EvalSpec), plain, where))


def _keep_texts(store: Store, settings: EvalSettings) -> None:
    """Copy the texts to where whoever evaluates finds them by their content, whatever becomes of the files."""
    for name, digest in settings.texts.items():
        path = store.text_path(digest)
        if path.exists() and text_digest(path, str(path)) == digest:
            continue
        make_dir(path.parent)
        temporary = path.with_name(f".{digest}.{os.getpid()}")
        temporary.write_bytes(Path(name).read_bytes())
        temporary.replace(path)
