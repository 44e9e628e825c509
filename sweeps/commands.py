"""What `python run.py` does once Hydra has read the command line; each function gives an exit code.

stdout is for what was asked for (tables, JSON); everything said on the way goes to stderr.
"""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from hybrid.config import Resolved, read_config
from hybrid.cost import layout_of
from hybrid.decode import decode
from hybrid.eval_config import EvalSettings, read_evals
from hybrid.layout import compact
from hybrid.manifest import find_corpus
from hybrid.spec import ConfigError, CorpusSpec, ExecSpec, HubSpec
from sweeps.cells import OF_THE_COMMAND, UNNAMED, CellRun, Expansion, expand, reference_models
from sweeps.compose import Composer
from sweeps.evidence import chosen_rows, evidence, rows_of
from sweeps.exits import EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_FAILED
from sweeps.guards import check_limits, limits_text
from sweeps.identity import run_id
from sweeps.launch import Asked, End, EndStatus, Launcher
from sweeps.notify import NotifySettings, after_run, read_notify_settings
from sweeps.outcome import outcome_text
from sweeps.plan import Plan, make_plan
from sweeps.plan_json import as_json
from sweeps.plan_settings import PlanSettings, read_plan_settings
from sweeps.plan_text import as_text
from sweeps.preflight import preflight
from sweeps.progress import say
from sweeps.retry import after_oom
from sweeps.scheduler import SchedulerError
from sweeps.standing import Standings
from sweeps.status import choose_requests
from sweeps.store import Cell, Store, StoreError, is_final
from sweeps.submissions import Submissions
from sweeps.text import count
from sweeps.tune import Choices, choose, settle
from sweeps.wanted import missing, want, wanted_of
from sweeps.worker.evaluation import evaluate_one
from sweeps.worker.generation import GenerateConfig, generate_one

R = TypeVar("R")

_LISTED = 20
_UNTUNED = "expected a cell that is tuned: its tuning runs come first"


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """The `store` settings; relative paths are taken from where the command was given."""

    root: str | None
    checkpoints: str | None
    data: str | None


Mode = Literal["run", "plan", "preflight", "eval", "generate"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a configuration says of how its cells are carried out, read."""

    mode: Mode
    request: str | None
    evals: EvalSettings
    plan: PlanSettings
    generation: GenerateConfig
    store: Store
    wait: bool
    notify: NotifySettings


def open_store(config: Mapping[str, Any]) -> Store:
    """The store that the configuration names. Raises StoreError where a newer version wrote it."""
    chosen = decode(StoreConfig, config["store"], "store")
    if "" in (chosen.root, chosen.checkpoints, chosen.data):
        raise ConfigError("store: a directory is empty text: expected a path, or null for the default")
    store = Store(
        Path(chosen.root or os.environ.get("HYBRID_STORE", "store")),
        checkpoints=Path(chosen.checkpoints) if chosen.checkpoints else None,
        data=Path(chosen.data) if chosen.data else None,
    )
    store.check_format()
    return store


def run_request(arguments: Sequence[str], launcher: Launcher) -> int:
    """`python run.py -m ARGUMENTS`: plan the request's cells, and run, evaluate or generate from them."""
    try:
        expansion = _expansion(arguments)
        around = _surroundings(expansion.config)
    except ConfigError as error:
        raise ConfigError([*error.problems, *_launcher_problems(launcher, ())]) from None
    if around.request is not None:
        return _of_stored(around.request, arguments, around, expansion.runs[0].resolved.execution, launcher)
    if around.mode in ("run", "eval"):
        launcher.check(expansion.runs)
    elif around.mode == "plan":
        _warn_of(launcher, expansion.runs)
    if around.mode == "run":
        return _run(expansion, around, launcher)
    return _look(expansion, around, launcher)


def _launcher_problems(launcher: Launcher, runs: Sequence[CellRun]) -> tuple[str, ...]:
    """What is wrong with the launcher's settings, a line each."""
    try:
        launcher.check(runs)
    except ConfigError as error:
        return tuple(error.problems)
    except SchedulerError as error:
        return (str(error),)
    return ()


def _warn_of(launcher: Launcher, runs: Sequence[CellRun]) -> None:
    for problem in _launcher_problems(launcher, runs):
        say(f"warning: {problem}")


def look_at_request(arguments: Sequence[str]) -> int:
    """`python -m sweeps plan ARGUMENTS` and the like: what `run_request` does where the mode trains nothing.

    Hydra's own settings, such as the launcher's, are checked and then of no consequence.
    """
    of_hydra, arguments = _apart(arguments)
    launcher = launcher_of(of_hydra) if of_hydra else None
    expansion = _expansion(arguments)
    around = _surroundings(expansion.config)
    assert around.mode != "run"
    if launcher is not None and around.mode == "plan":
        _warn_of(launcher, expansion.runs)
    return _look(expansion, around)


def submit_request(arguments: Sequence[str], on: str | None) -> int:
    """`python -m sweeps submit ARGUMENTS --on LAUNCHER`: what `run_request` does with that launcher."""
    of_hydra, arguments = _apart(arguments)
    if on is not None:
        again = [text for text in of_hydra if text.startswith("hydra/launcher=")]
        if again:
            raise ConfigError(f"{again[0]}: --on says it already")
        of_hydra.append(f"hydra/launcher={on}")
    return run_request(arguments, launcher_of(of_hydra))


def launcher_of(of_hydra: Sequence[str]) -> Launcher:
    """The launcher that Hydra's own settings choose, as the plugins would make it. Raises ConfigError."""
    with Composer() as composer:
        choice, settings = composer.launcher(of_hydra)
    match choice:
        case "local":
            from sweeps.launch.local import LocalProcesses

            return LocalProcesses(**settings)
        case "slurm":
            from sweeps.launch.slurm import SlurmJobs

            return SlurmJobs(settings)
        case _:
            raise ConfigError(f"hydra/launcher = {choice}: expected local or slurm")


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's own settings, and the others."""
    of_hydra = [text for text in arguments if _section(text) == "hydra"]
    if any("." not in text and "/" not in text for text in of_hydra):
        raise ConfigError(f"{of_hydra[0]}: expected one of its settings, such as hydra.launcher.workers=4")
    return of_hydra, [text for text in arguments if text not in of_hydra]


def _section(argument: str) -> str:
    """What an override is of: model of +model.depth=2, hydra of hydra/launcher=slurm."""
    return re.split(r"[./=@]", argument.lstrip("+~"))[0]


def _expansion(arguments: Sequence[str]) -> Expansion:
    with Composer() as composer:
        return expand(arguments, composer, stdlib_fingerprint=_fingerprint)


def _look(expansion: Expansion, around: Surroundings, launcher: Launcher | None = None) -> int:
    choices = choose(expansion.request, around.store)
    settled = expansion.settled(choices)
    if around.mode == "plan":
        plan = replace(_plan_of(settled.runs, around), warnings=tuple(choices.warnings))
        return _print_plan(plan, around, _title(expansion), expansion.request.report.get("metric"))
    if around.mode == "preflight":
        return _of_cells(settled.runs, around)
    for cell in settled.request.cells:
        if cell.run_id is None:
            say(f"error: {cell.name}: {_UNTUNED}")
    asked = Asked(sweep=expansion.request.sweep, overrides=expansion.request.overrides)
    code = _look_at_runs(_reported(settled.runs), around, launcher, asked)
    return max(code, EXIT_OK if choices.are_made else EXIT_SOME_FAILED)


def _of_stored(
    name: str, arguments: Sequence[str], around: Surroundings, execution: ExecSpec, launcher: Launcher
) -> int:
    """What mode=eval and mode=generate do with the runs of a stored request, from the specs that are stored with it."""
    # What else is said of a run would be of another one.
    problems = [
        f"{text}: expected nothing of this kind beside request={name}, whose runs are what they are"
        for text in arguments
        if _section(text) not in OF_THE_COMMAND
    ]
    if problems:
        raise ConfigError(problems)
    store, code = around.store, EXIT_OK
    runs: dict[str, CellRun] = {}
    for request in choose_requests(store, name):
        for cell in settle(request, choose(request, store)).cells:
            spec = None if cell.run_id is None else store.run_spec(cell.run_id)
            if cell.run_id is None or spec is None:
                lacking = _UNTUNED if cell.run_id is None else "expected a run that was begun"
                say(f"error: {cell.name}: {lacking}")
                code = EXIT_SOME_FAILED
                continue
            resolved = Resolved(run=spec, execution=execution, param_mismatch=None, matched_sizes=(), budget=None)
            runs.setdefault(cell.run_id, CellRun(cell=cell, resolved=resolved, arguments=()))
    launcher.check(list(runs.values()))
    return max(code, _look_at_runs(list(runs.values()), around, launcher, Asked(sweep=name, overrides=())))


def _look_at_runs(runs: Sequence[CellRun], around: Surroundings, launcher: Launcher | None, asked: Asked) -> int:
    """Evaluation, where the launcher has it done, and generation."""
    ends = None
    if launcher is not None and around.mode == "eval":
        _want(_finished(runs, around.store), around)
        ends = launcher.evaluate(runs, around.store, asked)
    return _of_cells(runs, around) if ends is None else _report_evaluations(ends)


def _of_cells(runs: Sequence[CellRun], around: Surroundings) -> int:
    """Preflight, evaluation and generation: they need runs, whatever request these are of."""
    around.store.prepare()
    if around.mode == "preflight":
        return preflight(runs, around.store, as_json=around.plan.format == "json")
    if around.mode == "eval":
        return _evaluate(runs, around)
    return _generate(runs, around.generation, around.store)


def _run(expansion: Expansion, around: Surroundings, launcher: Launcher) -> int:
    store = around.store
    if around.evals.asked is not None:
        wanted_of(_reported(expansion.runs), around.evals)
    choices = choose(expansion.request, store)
    plan = _plan_of(expansion.settled(choices).runs, around)
    _check_trainable(plan, store)
    chosen_rows(rows_of(plan), around.plan)
    check_limits(plan, around.plan)
    store.prepare()
    path = store.publish_request(expansion.request)
    say(as_text(plan, around.plan, title=_title(expansion), brief=True))
    if around.evals.asked is not None:
        _want([cell.run for cell in plan.cells if cell.status != "damaged"], around)
    queue = sorted((cell.run for cell in plan.startable), key=_seed_order(expansion))
    if queue:
        say("")
    asked = _asked(expansion.request.sweep, expansion.request.overrides, plan, around)
    ends = _launch(launcher, queue, store, asked)
    as_planned = plan
    submitted = [end for end in ends if end.status == "submitted"]
    if expansion.request.tuning and not submitted and not _is_interrupted(ends):
        made, choices = choices.made, choose(expansion.request, store)
        plan = _plan_of(expansion.settled(choices).runs, around)
        waited = {cell.run.cell.name for cell in as_planned.cells if cell.run.is_untuned}
        tuned = {cell.run.cell.name: cell for cell in plan.startable if cell.run.cell.name in waited}
        as_planned = replace(plan, cells=tuple(tuned.get(cell.run.cell.name, cell) for cell in as_planned.cells))
        for line in choices.made:
            if line not in made:
                say(line)
        queue = sorted((cell.run for cell in tuned.values()), key=_seed_order(expansion))
        if around.evals.asked is not None:
            _want(queue, around)
        ends += _launch(
            launcher, queue, store, _asked(expansion.request.sweep, expansion.request.overrides, plan, around)
        )
    known = {end.cell.run_id for end in ends}
    damaged = [cell.run for cell in plan.cells if cell.status == "damaged" and cell.run.run_id not in known]
    ends += [End(cell=run, status="failed", message=_damage(store, run)) for run in damaged]
    code, finished = _report_ends(ends, plan)
    if submitted and not choices.are_made:
        untuned = sum(cell.run.is_untuned for cell in plan.cells)
        say(f"waiting for their tuning runs: {count(untuned, 'cell')}; give the same command again when these are done")
    elif code != EXIT_INTERRUPTED:
        code = max(code, _report_choices(choices))
    _report_outcome(ends, as_planned, store)
    if around.evals.asked is not None and code != EXIT_INTERRUPTED:
        code = max(code, _evaluate_finished([cell.run for cell in plan.cells], around, launcher, asked))
    for end in ends:
        if end.status in ("done", "diverged", "failed"):
            after_run(store, asked.sweep, asked.overrides, end.cell.run_id, around.notify, say)
    cells = sum(not cell.run.is_tuning for cell in plan.cells)
    say(f"\n{finished} of {cells} cells finished; request: {path}")
    if submitted:
        say(f"progress: {_status_command(expansion, store)}")
    say(f"table: {_table_command(expansion, store)}")
    return code


def _launch(launcher: Launcher, runs: Sequence[CellRun], store: Store, asked: Asked) -> list[End]:
    """Have the runs carried out; what ran out of memory before, with half the microbatch."""
    return launcher.launch(after_oom(runs, store), store, asked)


def _plan_of(runs: Sequence[CellRun], around: Surroundings) -> Plan:
    """The plan, with what the scheduler knows of runs that were ever submitted to it."""
    if not Submissions(around.store).last():
        return make_plan(runs, around.store, around.plan)
    standings = Standings(around.store, tolerant=True)
    plan = make_plan(runs, around.store, around.plan, lambda run_id: standings.of(run_id).status)
    for problem in standings.problems:
        say(f"warning: {problem}")
    return plan


def _asked(sweep: str, overrides: Sequence[str], plan: Plan, around: Surroundings) -> Asked:
    """What a launcher is told beside the cells."""
    hours = {cell.run.run_id: cell.hours(cell.own_steps) for cell in plan.startable}
    known = {run_id: hour for run_id, hour in hours.items() if hour is not None}
    return Asked(
        sweep=sweep,
        overrides=tuple(overrides),
        predicted_hours=known,
        notify=asdict(around.notify),
        wait=around.wait,
        evals={}
        if around.evals.asked is None
        else wanted_of(_reported([cell.run for cell in plan.startable]), around.evals),
    )


def _is_interrupted(ends: Sequence[End]) -> bool:
    return any(end.status == "interrupted" for end in ends)


def _report_choices(choices: Choices) -> int:
    """Say what there is to know of the choices that tuning made, and which it could not make; gives the exit code."""
    for sentence in choices.sentences:
        say(f"warning: {sentence}")
    return EXIT_OK if choices.are_made else EXIT_SOME_FAILED


def run_single(config: Mapping[str, Any], arguments: Sequence[str], launcher: Launcher) -> int:
    """`python run.py ARGUMENTS`: one run into the same store, or its plan, its evaluation, or a text that it makes."""
    around = _surroundings(config)
    store = around.store
    _check_no_sweep(config)
    if around.request is not None:
        execution = read_config(config, stdlib_fingerprint=_fingerprint).execution
        return _of_stored(around.request, arguments, around, execution, launcher)
    with Composer() as composer:
        reference = reference_models(arguments, composer) if config["budget"]["match"] else None
        resolved = read_config(config, stdlib_fingerprint=_fingerprint, reference=reference)
    name = compact(layout_of(resolved.run.model))
    cell = Cell(name=name, row=name, axes={}, seed=None, run_id=run_id(resolved.run))
    run = CellRun(cell=cell, resolved=resolved, arguments=(), plan=config["plan"])
    title = f"run {cell.run_id}"
    if around.mode not in ("run", "plan"):
        return _of_cells([run], around)
    plan = _plan_of([run], around)
    if around.mode == "plan":
        return _print_plan(plan, around, title, None)
    _check_trainable(plan, store)
    chosen_rows(rows_of(plan), around.plan)
    check_limits(plan, around.plan)
    store.prepare()
    if plan.cells[0].status == "damaged":
        raise StoreError(_damage(store, run))
    say(as_text(plan, around.plan, title=title, brief=True))
    if around.evals.asked is not None:
        _want([run], around)
    asked = _asked(UNNAMED, arguments, plan, around)
    ends = _launch(launcher, [planned.run for planned in plan.startable], store, asked)
    code, finished = _report_ends(ends, plan)
    _report_outcome(ends, plan, store)
    if finished:
        _print_result(store, run)
    if around.evals.asked is not None and code == EXIT_OK:
        code = _evaluate_finished([run], around, launcher, asked)
    return code


def _fingerprint() -> str:
    from hybrid.corpus import stdlib_fingerprint

    return stdlib_fingerprint()


def _surroundings(config: Mapping[str, Any]) -> Surroundings:
    """Raises ConfigError with everything that is wrong in these sections."""
    problems: list[str] = []

    def keep(read: Callable[[], R]) -> R | None:
        try:
            return read()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    mode = keep(lambda: decode(cast(Any, Mode), config["mode"], "mode"))
    request = keep(lambda: decode(cast(Any, str | None), config["request"], "request"))
    if request is not None and mode is not None and mode not in ("eval", "generate"):
        problems.append(f"request = {request}: expected mode=eval or mode=generate beside it, not mode={mode}")
    evals = keep(lambda: _read_evals(config))
    generation = keep(lambda: _generation(config["generate"]))
    plan = keep(lambda: read_plan_settings(config["plan"]))
    store = keep(lambda: open_store(config))
    wait = keep(lambda: decode(bool, config["exec"]["wait"], "exec.wait"))
    notify = keep(lambda: read_notify_settings(config["notify"]))
    if problems or None in (mode, evals, generation, plan, store, wait, notify):
        raise ConfigError(problems)
    return Surroundings(
        mode=cast(Mode, mode),
        request=request,
        evals=cast(EvalSettings, evals),
        plan=cast(PlanSettings, plan),
        generation=cast(GenerateConfig, generation),
        store=cast(Store, store),
        wait=cast(bool, wait),
        notify=cast(NotifySettings, notify),
    )


def _read_evals(config: Mapping[str, Any]) -> EvalSettings:
    device = config["exec"]["device"]
    return read_evals(config["evals"], config["eval"], stdlib_fingerprint=_fingerprint, device=str(device))


def _generation(config: Mapping[str, Any]) -> GenerateConfig:
    generation = decode(GenerateConfig, config, "generate")
    generation.check()
    return generation


def _check_trainable(plan: Plan, store: Store) -> None:
    """Raises ConfigError, before anything is spent, for corpora whose shards are not where new runs will look."""
    problems: list[str] = []
    for spec in dict.fromkeys(cell.run.resolved.run.data for cell in plan.startable):
        if isinstance(spec, CorpusSpec | HubSpec):
            try:
                find_corpus(store.data_root, spec)
            except ConfigError as error:
                problems += [f"{problem}; mode=plan plans and costs without them" for problem in error.problems]
    if problems:
        raise ConfigError(problems)


def _title(expansion: Expansion) -> str:
    overrides = " ".join(expansion.request.overrides)
    return f"request {expansion.request.sweep}{f' ({overrides})' if overrides else ''}"


def _print_plan(plan: Plan, around: Surroundings, title: str, metric: str | None) -> int:
    settings = around.plan
    if settings.format == "json":
        chosen_rows(rows_of(plan), settings)
        print(as_json(plan, settings))
        for warning in (*plan.warnings, *limits_text(plan, settings)):
            say(f"warning: {warning}")
    else:
        print(as_text(plan, settings, evidence(plan, settings, around.store, metric), title=title))
    return EXIT_OK


def _seed_order(expansion: Expansion) -> Callable[[CellRun], int]:
    """Seed 1 of every row before seed 2 of any: half a sweep is then a whole comparison at fewer seeds."""
    seeds = list(dict.fromkeys(run.cell.seed for run in expansion.runs))
    return lambda run: seeds.index(run.cell.seed)


def _damage(store: Store, run: CellRun) -> str:
    try:
        store.check_spec(run.run_id, run.resolved.run)
        store.record(run.run_id)
    except StoreError as error:
        return str(error)
    return "damaged"


def _check_no_sweep(config: Mapping[str, Any]) -> None:
    """A single run has no rows and seeds of its own: they would be ignored."""
    given = [f"sweep.{key} = {value!r}" for key, value in config["sweep"].items() if value]
    if given:
        raise ConfigError([f"{setting}: expected -m (python run.py -m ...), as this is one run" for setting in given])


def _report_ends(ends: Sequence[End], plan: Plan) -> tuple[int, int]:
    """Say how every cell without a result ended, by name; gives the exit code and the number of finished cells, tuning
    runs not counted."""
    by_run = {end.cell.run_id: end for end in ends}
    bad: list[EndStatus] = []
    unfinished = 0
    at_work = [end for end in ends if end.status == "submitted"]
    for planned in plan.cells:
        cell, end = planned.run.cell, by_run.get(planned.run.run_id)
        good = is_final(planned.status) if end is None else end.status in ("done", "diverged")
        unfinished += not planned.run.is_tuning and (planned.run.is_untuned or not good)
        if end is None or planned.run.is_untuned:
            continue
        if end.status == "diverged":
            say(f"diverged (recorded as a result): {cell.name} {cell.run_id}")
        elif end.status == "submitted":
            if len(at_work) <= _LISTED:
                say(f"{cell.name} {cell.run_id}: {end.message}")
        elif end.status != "done":
            bad.append(end.status)
            say(f"{end.status}: {cell.name} {cell.run_id}: {end.message}")
    if at_work:
        say(f"with the scheduler: {count(len(at_work), 'run')}")
    only_interrupted = all(status == "interrupted" for status in bad)
    code = EXIT_OK if not bad else EXIT_INTERRUPTED if only_interrupted else EXIT_SOME_FAILED
    return code, sum(not cell.run.is_tuning for cell in plan.cells) - unfinished


def _report_outcome(ends: Sequence[End], plan: Plan, store: Store) -> None:
    """Say what was predicted of the runs that have just been done, beside what was measured."""
    text = outcome_text(plan, {end.cell.run_id for end in ends if end.status == "done"}, store)
    if text is not None:
        say(f"\n{text}")


def _table_command(expansion: Expansion, store: Store) -> str:
    """The command that prints this request's table, as it can be pasted."""
    request = expansion.request
    overrides = [override for override in request.overrides if not override.lstrip("+").startswith("sweep=")]
    root = [] if expansion.config["store"]["root"] is None else ["--store", str(store.root)]
    name = request.sweep if request.sweep != UNNAMED else "latest"
    return shlex.join(["python", "-m", "analysis", "tables", name, *(overrides if name != "latest" else []), *root])


def _status_command(expansion: Expansion, store: Store) -> str:
    """The command that says where the request's runs are, as it can be pasted."""
    root = [] if expansion.config["store"]["root"] is None else ["--store", str(store.root)]
    return shlex.join(["python", "-m", "sweeps", "status", expansion.request.sweep, *root])


def _print_result(store: Store, run: CellRun) -> None:
    record = store.record(run.run_id)
    assert record is not None
    print(f"{run.cell.run_id} {record['status']}: {_metrics_text(record['metrics'])}")


# A model may say anything, and a terminal obeys control characters: all but tabs and ends of lines are shown as U+FFFD.
_NOT_FOR_TERMINALS = dict.fromkeys(
    [*(code for code in range(32) if chr(code) not in "\t\n\r"), *range(127, 160)], 0xFFFD
)
_FIRST = ("steps", "tokens", "train_loss_nats", "val_loss_nats", "val_accuracy")


def _metrics_text(metrics: Mapping[str, Any]) -> str:
    """Metrics on one line, those that matter first; what was not measured and long lists are left out."""
    keys = [*(key for key in _FIRST if key in metrics), *(key for key in metrics if key not in _FIRST)]
    bounds = {f"{key}{end}" for key in keys for end in ("_low", "_high") if f"{key}_low" in metrics}
    return ", ".join(
        _metric_text(key, metrics)
        for key in keys
        if metrics[key] is not None and key not in bounds and not _is_long(metrics[key])
    )


def _metric_text(key: str, metrics: Mapping[str, Any]) -> str:
    value, low, high = metrics[key], metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    text = f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
    numbers = isinstance(low, int | float) and isinstance(high, int | float)
    return f"{text} [{low:.6g}, {high:.6g}]" if numbers else text


def _is_long(value: object) -> bool:
    if isinstance(value, dict):
        return True
    return isinstance(value, list) and (len(value) > _LISTED or any(isinstance(inner, list) for inner in value))


def _reported(runs: Sequence[CellRun]) -> list[CellRun]:
    """Those that are known by now, and of which more is reported than what they chose."""
    return [run for run in runs if not run.is_tuning and not run.is_untuned]


def _finished(runs: Sequence[CellRun], store: Store) -> list[CellRun]:
    return [run for run in _reported(runs) if store.status(run.run_id) == "done"]


def _want(runs: Sequence[CellRun], around: Surroundings) -> None:
    """Write down which evaluations are wanted of these runs. Raises ConfigError where one means nothing for a run."""
    reported = _reported(runs)
    wanted = wanted_of(reported, around.evals)
    for run in reported:
        want(around.store, run.resolved.run, wanted[run.run_id], around.evals)


def _evaluate_finished(runs: Sequence[CellRun], around: Surroundings, launcher: Launcher, asked: Asked) -> int:
    """Have those runs evaluated that are done, here or where the launcher has it done; gives the exit code."""
    finished = _finished(runs, around.store)
    if not finished:
        return EXIT_OK
    ends = launcher.evaluate(finished, around.store, asked)
    return _evaluate(finished, around) if ends is None else _report_evaluations(ends)


def _evaluate(runs: Sequence[CellRun], around: Surroundings) -> int:
    """Measure, one after the other, what is asked for of each run, and print it; gives the exit code.

    Where nothing is named, that is the usual, and what was wanted of a run before and is not made. Raises ConfigError,
    before anything is measured, where an evaluation means nothing for a run.
    """
    failed, store = False, around.store
    distinct = {run.run_id: run for run in runs}.values()
    wanted = wanted_of(distinct, around.evals)
    for run in distinct:
        specs = wanted[run.run_id]
        try:
            if store.status(run.run_id) == "done":
                if around.evals.asked is None:
                    specs = tuple(dict.fromkeys((*specs, *missing(store, run.resolved.run))))
                want(store, run.resolved.run, specs, around.evals)
        except (StoreError, ConfigError) as error:
            failed = True
            say(f"error: {run.cell.name}: {error}")
            continue
        for spec in specs:
            try:
                (record,) = evaluate_one(store, run.resolved.run, run.resolved.execution, [spec])
            except (StoreError, ConfigError) as error:
                failed = True
                say(f"error: {run.cell.name}: {error}")
                if isinstance(error, ConfigError):  # it cannot be made, so that nobody need wait for it
                    store.unwant_eval(run.run_id, spec)
                    continue
                break
            print(f"{run.cell.name} {run.cell.run_id} {spec.kind}: {_metrics_text(record['metrics'])}")
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _report_evaluations(ends: Sequence[End]) -> int:
    """Say what becomes of evaluations elsewhere; gives the exit code."""
    failed = [end for end in ends if end.status == "failed"]
    for end in failed:
        say(f"error: {end.cell.cell.name}: {end.message}")
    counts = {status: sum(end.status == status for end in ends) for status in ("submitted", "done")}
    say(f"with the scheduler: {count(counts['submitted'], 'evaluation')}; there already: {counts['done']}")
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _generate(runs: Sequence[CellRun], settings: GenerateConfig, store: Store) -> int:
    """Text to stdout, as it is made; which run it is of, where there are several, to stderr. Ctrl-C is an end too."""
    on_terminal = sys.stdout.isatty()
    encoding = sys.stdout.encoding or "utf-8"

    def write(piece: str) -> None:
        if on_terminal:
            piece = piece.translate(_NOT_FOR_TERMINALS)
        print(piece.encode(encoding, "replace").decode(encoding), end="", flush=True)

    failed = False
    distinct = {run.run_id: run for run in runs}.values()
    for run in distinct:
        if len(distinct) > 1:
            say(f"--- {run.cell.name} {run.cell.run_id}")
        try:
            generate_one(store, run.resolved.run, run.resolved.execution, settings, write)
            print(flush=True)
        except KeyboardInterrupt:
            # What comes next on the terminal begins a line; Ctrl-C may have ended the reader as well.
            with contextlib.suppress(BrokenPipeError):
                print(flush=True)
            return EXIT_INTERRUPTED
        except (StoreError, ConfigError) as error:
            failed = True
            say(f"error: {run.cell.name}: {error}")
    return EXIT_SOME_FAILED if failed else EXIT_OK
