"""What `python run.py` does once Hydra has read the command line; each function gives an exit code.

stdout is for what was asked for (tables, JSON); everything said on the way goes to stderr.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from hybrid.config import Resolved, read_config
from hybrid.cost import layout_of
from hybrid.decode import decode
from hybrid.layout import compact
from hybrid.spec import ConfigError
from sweeps.cells import UNNAMED, CellRun, Expansion, expand
from sweeps.compose import Composer
from sweeps.identity import run_id
from sweeps.launch import End, Launcher
from sweeps.plan import as_json, as_text, make_plan, missing
from sweeps.progress import say
from sweeps.store import FINAL, Cell, Store, StoreError
from sweeps.worker import evaluate_one, explain_failure

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
_REPO = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """The `plan` settings."""

    format: Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """The `store` settings; relative paths are taken from where the command was given."""

    root: str
    checkpoints: str | None
    data: str | None


Mode = Literal["run", "plan", "eval"]


def open_store(config: Mapping[str, Any]) -> Store:
    """The store that the configuration names. Raises StoreError where a newer version wrote it."""
    chosen = decode(StoreConfig, config["store"], "store")
    store = Store(
        Path(chosen.root),
        checkpoints=Path(chosen.checkpoints) if chosen.checkpoints else None,
        data=Path(chosen.data) if chosen.data else None,
    )
    store.check_format()
    return store


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake becomes one clear message and exit code 2, a store or disk that fails exit
    code 1."""
    try:
        return command()
    except ConfigError as error:
        say("\n".join(f"error: {line}" for line in error.problems))
        return EXIT_MISTAKE
    except (StoreError, OSError) as error:
        say(f"error: {explain_failure(error)}")
        return EXIT_SOME_FAILED
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where this one stopped")
        return EXIT_INTERRUPTED


def run_request(arguments: Sequence[str], launcher: Launcher) -> int:
    """`python run.py -m ARGUMENTS`: plan the request's cells, and run or evaluate what is missing."""
    with Composer() as composer:
        expansion = expand(arguments, composer, stdlib_fingerprint=_fingerprint)
    mode, plan_format, store = _surroundings(expansion.config)
    if mode == "plan":
        return _print_plan(expansion, store, plan_format)
    store.prepare()
    if mode == "eval":
        return _evaluate(expansion.runs, store)
    path = store.publish_request(expansion.request)
    plan = make_plan(expansion.runs, store)
    say(as_text(plan, title=_title(expansion)))
    damaged = [cell for cell in plan if cell.status == "damaged"]
    queue = sorted((cell.run for cell in missing(plan) if cell.status != "damaged"), key=_seed_order(expansion))
    if queue:
        say("")
    ends = launcher.launch(queue, store)
    ends += [End(cell=cell.run, status="failed", message=_damage(store, cell.run)) for cell in damaged]
    return _report_ends(ends, asked=len(plan), request=expansion.request.sweep, stored=path)


def run_single(config: Mapping[str, Any], launcher: Launcher) -> int:
    """`python run.py ARGUMENTS`: one run into the same store, or its plan, or its evaluation."""
    mode, plan_format, store = _surroundings(config)
    resolved = read_config(config, stdlib_fingerprint=_fingerprint)
    name = _single_name(resolved)
    cell = Cell(name=name, row=name, axes={}, seed=None, run_id=run_id(resolved.run))
    run = CellRun(cell=cell, resolved=resolved, arguments=())
    plan = make_plan([run], store)
    if mode == "plan":
        print(as_json(plan) if plan_format == "json" else as_text(plan, title=f"run {cell.run_id}"))
        return EXIT_OK
    store.prepare()
    if mode == "eval":
        return _evaluate([run], store)
    if plan[0].status == "damaged":
        raise StoreError(_damage(store, run))
    say(as_text(plan, title=f"run {cell.run_id}"))
    ends = launcher.launch([planned.run for planned in missing(plan)], store)
    code = _report_ends(ends, asked=1, request=None, stored=None)
    if code == EXIT_OK:
        _print_result(store, run)
    return code


def _fingerprint() -> str:
    from hybrid.corpus import stdlib_fingerprint

    return stdlib_fingerprint()


def _surroundings(config: Mapping[str, Any]) -> tuple[Mode, str, Store]:
    mode = decode(cast(Any, Mode), config["mode"], "mode")
    return mode, decode(PlanConfig, config["plan"], "plan").format, open_store(config)


def _title(expansion: Expansion) -> str:
    overrides = " ".join(expansion.request.overrides)
    return f"request {expansion.request.sweep}{f' ({overrides})' if overrides else ''}"


def _single_name(resolved: Resolved) -> str:
    return compact(layout_of(resolved.run.model))


def _print_plan(expansion: Expansion, store: Store, plan_format: str) -> int:
    plan = make_plan(expansion.runs, store)
    print(as_json(plan) if plan_format == "json" else as_text(plan, title=_title(expansion)))
    return EXIT_OK


def _seed_order(expansion: Expansion) -> Callable[[CellRun], int]:
    """Seed 1 of every row before seed 2 of any: half a sweep is then a whole comparison at fewer seeds."""
    seeds = list(dict.fromkeys(run.cell.seed for run in expansion.runs))
    return lambda run: seeds.index(run.cell.seed)


def _damage(store: Store, run: CellRun) -> str:
    try:
        store.record(run.cell.run_id)
    except StoreError as error:
        return str(error)
    return "damaged"


def _report_ends(ends: Sequence[End], *, asked: int, request: str | None, stored: Path | None) -> int:
    bad = [end for end in ends if end.status not in FINAL]
    for end in ends:
        if end.status == "diverged":
            say(f"diverged (recorded as a result): {end.cell.cell.name} {end.cell.cell.run_id}")
    for end in bad:
        say(f"{end.status}: {end.cell.cell.name} {end.cell.cell.run_id}: {end.message}")
    if request is not None:
        said = f"{asked - len(bad)} of {asked} cells finished"
        hint = (
            f"table: python -m analysis tables {request}"
            if request != UNNAMED
            else "table: python -m analysis tables latest"
        )
        say(f"\n{said}; {hint}" + (f"; request: {stored}" if stored else ""))
    if bad and all(end.status == "interrupted" for end in bad):
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if bad else EXIT_OK


def _print_result(store: Store, run: CellRun) -> None:
    record = store.record(run.cell.run_id)
    assert record is not None
    print(f"{run.cell.run_id} {record['status']}: {_metrics_text(record['metrics'])}")


_FIRST = ("steps", "tokens", "train_loss_nats", "val_loss_nats", "val_accuracy")


def _metrics_text(metrics: Mapping[str, Any]) -> str:
    """Metrics on one line, those that matter first; what was not measured is left out."""
    keys = [*(key for key in _FIRST if key in metrics), *(key for key in metrics if key not in _FIRST)]
    shown = {key: metrics[key] for key in keys if metrics[key] is not None}
    return ", ".join(
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
    )


def _evaluate(runs: Sequence[CellRun], store: Store) -> int:
    failed = False
    for run in {run.cell.run_id: run for run in runs}.values():
        try:
            metrics = evaluate_one(store, run.resolved.run, run.resolved.execution)["metrics"]
        except (StoreError, ConfigError) as error:
            failed = True
            say(f"error: {run.cell.name}: {error}")
            continue
        print(f"{run.cell.name} {run.cell.run_id}: {_metrics_text(metrics)}")
    return EXIT_SOME_FAILED if failed else EXIT_OK
