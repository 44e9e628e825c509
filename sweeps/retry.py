"""`python -m sweeps retry`: what failed of a request is handed to a launcher again, what ran out of memory in smaller
pieces."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.decode import decode, did_you_mean
from hybrid.spec import ConfigError, ExecSpec, RunSpec
from sweeps.exits import EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_FAILED
from sweeps.progress import say
from sweeps.speed import ranks_of
from sweeps.standing import Standings
from sweeps.status import choose_requests
from sweeps.store import Attempts, Cell, Request, Store
from sweeps.submissions import Submissions
from sweeps.triage import CLASSES, find_out
from sweeps.tune import choose, settle

if TYPE_CHECKING:
    from sweeps.cells import CellRun
    from sweeps.launch import End

_DESCRIPTION = """Hands those runs of the newest request NAME to a launcher again whose newest attempt failed, was lost
or was interrupted, or whose job never began them, and that are not queued. They are the same runs, as the store
describes them. What ran out of memory goes on with half the microbatch; the batch stays what it is. How they are
carried out, and by which launcher, is as it was before, but for the settings that are given."""

_EPILOG = """examples:
  python -m sweeps retry table2                              all that failed, was lost, interrupted or cancelled
  python -m sweeps retry table2 --class oom,node_fail        only what failed of that
  python -m sweeps retry table2 --run 3f2a --on local        one run, here
  python -m sweeps retry table2 hydra.launcher.partition=big exec.activation_checkpointing=true
"""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A cell whose run may be tried again: how its newest attempt ended, and how it was carried out.

    `oom_microbatch` is the smallest microbatch with which any of its attempts ran out of memory, None where none did.
    """

    cell: Cell
    run: RunSpec
    error_class: str
    message: str
    submission: int | None
    execution: ExecSpec
    oom_microbatch: int | None


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `retry` to the commands of `python -m sweeps`."""
    parser = commands.add_parser(
        "retry",
        parents=[common],
        help="try again what failed of a request",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("request", metavar="NAME", help="a sweep's name, or SWEEP/HASH of an older request")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="SETTING",
        help="exec.*, hydra.launcher.*, store.checkpoints and store.data, as for run.py",
    )
    parser.add_argument("--class", dest="classes", metavar="CLASS,...", help=f"only these: {', '.join(CLASSES)}")
    parser.add_argument("--run", metavar="ID", help="only this run, by its first digits")
    parser.add_argument("--on", choices=("slurm", "local"), help="the launcher (default: where they were)")
    parser.add_argument("--wait", action="store_true", help="return when the runs have ended")


def retry(store: Store, options: argparse.Namespace) -> int:
    """Carry the command out; gives its exit code. Raises ConfigError, StoreError."""
    from sweeps.commands import launcher_of
    from sweeps.launch import Asked

    request = choose_requests(store, options.request)[-1]
    classes = read_classes(options.classes)
    only = None if options.run is None else store.find(options.run)
    change = _change_of_execution(options.overrides)
    failed = [one for one in find_failed(store, request, Standings(store), only) if one.error_class in classes]
    cells, left = [], 0
    for one in failed:
        execution, words = change(one.execution), ""
        if one.oom_microbatch is not None:
            smaller = halved(one.oom_microbatch, execution.microbatch)
            words = f"; microbatch {smaller}" if smaller else ""
            execution = replace(execution, microbatch=smaller)
        name = f"{one.cell.name} {one.cell.run_id}"
        if one.oom_microbatch is not None and execution.microbatch is None:
            left += 1
            say(
                f"{name}: {one.message}: left as it is: with one sequence at a time nothing is left to halve. "
                "Try exec.activation_checkpointing=true, or a device with more memory"
            )
            continue
        say(f"{name}: {one.error_class}{words}")
        cells.append(_cell_run(one, execution))
    if not cells:
        say(f"{request.sweep}: {'nothing else' if left else 'nothing'} to try again")
        return EXIT_SOME_FAILED if left else EXIT_OK
    store.prepare()
    submitted = [one.submission for one in failed if one.submission is not None]
    on = options.on or ("slurm" if submitted else "local")
    launcher = launcher_of([f"hydra/launcher={on}", *_launcher_settings(store, on, submitted, options.overrides)])
    launcher.check(cells)
    asked = Asked(
        sweep=request.sweep,
        overrides=request.overrides,
        predicted_hours=_predicted_hours(store, submitted),
        notify=Submissions(store).get(max(submitted)).intent.notify if submitted else {},
        wait=options.wait,
    )
    return max(
        _report(launcher.launch(cells, _as_before(store, submitted, options.overrides), asked)),
        EXIT_SOME_FAILED if left else EXIT_OK,
    )


def after_oom(cells: Sequence["CellRun"], store: Store) -> list["CellRun"]:
    """The cells as they are to be tried: of those that ran out of memory before, with half the microbatch that did.

    Says of which, and of those with nothing left to halve.
    """
    found = []
    for cell in cells:
        failed = _oom_microbatch(store.attempts(cell.run_id), cell.resolved.run)
        if failed is not None:
            execution = cell.resolved.execution
            smaller = halved(failed, execution.microbatch)
            said = f"tried with microbatch {smaller}" if smaller else "nothing is left to halve; tried as it is"
            say(f"{cell.cell.name} {cell.run_id}: ran out of memory with microbatch {failed}: {said}")
            if smaller:
                cell = replace(cell, resolved=replace(cell.resolved, execution=replace(execution, microbatch=smaller)))
        found.append(cell)
    return found


# --- which ----------------------------------------------------------------------------------------


def find_failed(store: Store, request: Request, standings: Standings, only: str | None) -> list[Failed]:
    """The runs of the request, each once, that failed, were lost or interrupted, or were submitted and never begun, and
    that nobody is to go on with.

    Of those that died without a word, and of those whose scheduler was not asked yet, it is found out why.
    """
    executions = _submitted_executions(store)
    found: dict[str, Failed] = {}
    for cell in settle(request, choose(request, store)).all_cells:
        if cell.run_id is None or cell.run_id in found or only not in (None, cell.run_id):
            continue
        standing = standings.of(cell.run_id)
        never_began = standing.status == "new" and standing.submission is not None
        if standing.status not in ("failed", "lost", "interrupted") and not never_began:
            continue
        attempts = store.attempts(cell.run_id)
        error = (find_out(attempts, standing.attempt) if standing.attempt else None) or standing.error or {}
        if never_began and standing.job is not None and standing.job.state == "CANCELLED":
            error = {"class": "cancelled"}
        run = decode(RunSpec, store.spec(cell.run_id), f"run {cell.run_id}")
        job = attempts.job(standing.attempt) if standing.attempt else None
        execution = _execution(job) or executions.get(cell.run_id)
        if execution is None:
            raise ConfigError(
                f"{cell.name} {cell.run_id}: nothing says how it was carried out: start it as the first time"
            )
        found[cell.run_id] = Failed(
            cell=cell,
            run=run,
            error_class=str(error.get("class", "unknown")),
            message=str(error.get("message", standing.note)).splitlines()[0],
            submission=standing.submission,
            execution=execution,
            oom_microbatch=_oom_microbatch(attempts, run),
        )
    return list(found.values())


def _submitted_executions(store: Store) -> dict[str, ExecSpec]:
    """How each run was to be carried out by the newest submission with it."""
    found: dict[str, ExecSpec] = {}
    for submission in Submissions(store).all():
        execution = _execution({"exec": submission.intent.execution})
        if execution is not None:
            found |= {item.run_id: execution for _, item in submission.items() if item.kind == "run"}
    return found


def _execution(job: Mapping[str, Any] | None) -> ExecSpec | None:
    """How an attempt was carried out; None where it did not say, or another version of this software wrote it."""
    try:
        return None if job is None else decode(ExecSpec, job.get("exec"))
    except ConfigError:
        return None


def _oom_microbatch(attempts: Attempts, run: RunSpec) -> int | None:
    """The fewest sequences at a time with which an attempt at the run, or its trunk for it, ran out of memory."""
    sizes = []
    for number in range(1, attempts.last() + 1):
        error = attempts.error(number)
        execution = _execution(attempts.job(number)) if error is not None and error.get("class") == "oom" else None
        if execution is not None:
            part = -(-run.batch_size // ranks_of(execution))
            sizes.append(min(execution.microbatch or part, part))
    return min(sizes, default=None)


def read_classes(text: str | None) -> frozenset[str]:
    """The classes of failure that are named, all where none is. Raises ConfigError for what is none."""
    given = CLASSES if text is None else [part.strip() for part in text.split(",")]
    wrong = [part for part in given if part not in CLASSES]
    if wrong:
        raise ConfigError(
            [f"--class {part}: expected a class of failure{did_you_mean(part, CLASSES)}" for part in wrong]
        )
    return frozenset(given)


# --- how ------------------------------------------------------------------------------------------


def halved(failed: int, given: int | None) -> int | None:
    """Half of the microbatch that did not fit, or what is given if that is smaller; None where it cannot be smaller."""
    if given is not None and given < failed:
        return given
    return failed // 2 or None


def _change_of_execution(overrides: Sequence[str]) -> Callable[[ExecSpec], ExecSpec]:
    """What the settings that are given make of an execution. Raises ConfigError, also for those that would make other
    runs of these."""
    keys = {text: text.lstrip("+~").partition("=")[0] for text in overrides}
    of_exec = [text for text, key in keys.items() if key.startswith("exec.")]
    good = ("exec.", "hydra.launcher.", "store.checkpoints", "store.data")
    wrong = [text for text, key in keys.items() if not key.startswith(good)]
    if wrong:
        raise ConfigError(
            [f"{text}: expected one of {', '.join(good)}: with others these would be other runs" for text in wrong]
        )
    if not of_exec:
        return lambda execution: execution
    from hybrid.config import read_config
    from sweeps.compose import Composer

    names = {keys[text].split(".")[1] for text in of_exec}
    with Composer() as composer:
        given = read_config(composer.compose(of_exec), stdlib_fingerprint=lambda: "0").execution
    changes = {field.name: getattr(given, field.name) for field in fields(ExecSpec) if field.name in names}
    return lambda execution: replace(execution, **changes)


def _predicted_hours(store: Store, submitted: Sequence[int]) -> dict[str, float]:
    """By run, as these submissions had them."""
    items = (item for number in sorted(set(submitted)) for _, item in Submissions(store).get(number).items())
    return {item.run_id: item.predicted_hours for item in items if item.predicted_hours is not None}


def _launcher_settings(store: Store, on: str, submitted: Sequence[int], overrides: Sequence[str]) -> list[str]:
    """The launcher's settings: those of the newest of these submissions, and over them those that are given."""
    given = [text for text in overrides if text.startswith("hydra.")]
    if on != "slurm" or not submitted:
        return given
    from sweeps.compose import as_override

    before = Submissions(store).get(max(submitted)).intent.resources
    names = {text.partition("=")[0] for text in given}
    words = {f"hydra.launcher.{'time' if key == 'time_min' else key}": value for key, value in before.items()}
    return [*(as_override(key, value) for key, value in words.items() if key not in names), *given]


def _as_before(store: Store, submitted: Sequence[int], overrides: Sequence[str]) -> Store:
    """The store, with checkpoints and data where they are said to be, else where the newest of these submissions had
    them."""
    given = {key: value for key, _, value in (text.lstrip("+").partition("=") for text in overrides)}
    intent = Submissions(store).get(max(submitted)).intent if submitted else None
    checkpoints = given.get("store.checkpoints") or (None if intent is None else intent.checkpoints)
    data = given.get("store.data") or (None if intent is None else intent.data)
    return Store(
        store.root,
        checkpoints=None if checkpoints is None else Path(checkpoints),
        data=None if data is None else Path(data),
    )


def _cell_run(failed: Failed, execution: ExecSpec) -> "CellRun":
    from hybrid.config import Resolved
    from sweeps.cells import CellRun

    resolved = Resolved(run=failed.run, execution=execution, param_mismatch=None, matched_sizes=(), budget=None)
    return CellRun(cell=failed.cell, resolved=resolved, arguments=())


def _report(ends: Sequence["End"]) -> int:
    """Say what became of the runs; gives the exit code."""
    for end in ends:
        say(f"{end.cell.cell.name} {end.cell.run_id}: {end.status}{f': {end.message}' if end.message else ''}")
    bad = [end.status for end in ends if end.status not in ("done", "diverged", "submitted")]
    if not bad:
        return EXIT_OK
    return EXIT_INTERRUPTED if all(status == "interrupted" for status in bad) else EXIT_SOME_FAILED
