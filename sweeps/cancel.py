"""`python -m sweeps cancel`: the queued and running work of a request is stopped; what ran is saved, and goes on when
asked for again."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hybrid.decode import decode
from hybrid.spec import ConfigError, RunSpec
from sweeps.exits import EXIT_OK, EXIT_SOME_FAILED
from sweeps.progress import say
from sweeps.scheduler import SchedulerError, Slurm
from sweeps.standing import Standings
from sweeps.status import choose_requests
from sweeps.store import FINAL, Attempts, Request, Store, StoreError, owner_alive, request_id
from sweeps.submissions import Item, Submission, Submissions
from sweeps.text import count
from sweeps.trunks import trunk_id
from sweeps.tune import choose, settle

_DESCRIPTION = """Cancels what the scheduler holds of the newest request NAME, and asks its runs in processes of this
machine to stop. Runs save and are interrupted; the same request again goes on with them. What other requests need, too,
is spared, and so is a task that has runs of others beside it."""


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """What a request's cancelling comes to: job ids of tasks, ids of processes here with their runs, and what is not
    touched, with the reason."""

    job_ids: tuple[str, ...] = ()
    processes: Mapping[int, str] = field(default_factory=dict)
    spared: tuple[str, ...] = ()


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `cancel` to the commands of `python -m sweeps`."""
    parser = commands.add_parser(
        "cancel", parents=[common], help="stop what is queued or runs of a request", description=_DESCRIPTION
    )
    parser.add_argument("request", metavar="NAME", help="a sweep's name, or SWEEP/HASH of an older request")
    parser.add_argument("--run", metavar="ID", help="only this run, by its first digits")
    parser.add_argument("--yes", action="store_true", help="do not ask; cancel what others need, too")


def cancel(store: Store, options: argparse.Namespace) -> int:
    """Carry the command out; gives its exit code. Raises ConfigError, StoreError."""
    try:
        return _cancel(store, options)
    except SchedulerError as error:
        raise StoreError(f"{error}; nothing is known to be cancelled") from error


def _cancel(store: Store, options: argparse.Namespace) -> int:
    request = choose_requests(store, options.request)[-1]
    only = None if options.run is None else store.find(options.run)
    slurm = Slurm.find()
    plan = plan_cancellation(store, request, slurm, only, everything=options.yes)
    if slurm is None:
        plan = replace(plan, spared=(*plan.spared, *_out_of_reach(store, request, only, plan)))
    for words in plan.spared:
        say(f"spared: {words}")
    if not plan.job_ids and not plan.processes:
        say(f"{request.sweep}: nothing is queued or running that could be cancelled")
        return EXIT_SOME_FAILED if plan.spared else EXIT_OK
    what = f"{count(len(plan.job_ids), 'task')} of the scheduler's and {count(len(plan.processes), 'process')} here"
    if not options.yes and not _confirmed(what):
        say("nothing was cancelled")
        return EXIT_SOME_FAILED
    if plan.job_ids:
        assert slurm is not None
        slurm.cancel(plan.job_ids)
    for pid in plan.processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    say(f"cancelled {what}; what ran saves and is interrupted; the same request again goes on with it")
    return EXIT_OK


def _out_of_reach(store: Store, request: Request, only: str | None, plan: Cancellation) -> list[str]:
    """Words on the runs that a scheduler has, as far as the store knows, where it cannot be asked."""
    standings = Standings(store, None)
    here = set(plan.processes.values())
    found = []
    for cell in settle(request, choose(request, store)).all_cells:
        if cell.run_id is None or only not in (None, cell.run_id) or cell.name in here:
            continue
        standing = standings.of(cell.run_id)
        if standing.status in ("queued", "running") and standing.submission is not None:
            found.append(f"{cell.name} {cell.run_id}: {standing.status}, and there is no Slurm on the PATH here to ask")
    return found


def _confirmed(what: str) -> bool:
    """Raises ConfigError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise ConfigError(f"cancel: {what}: expected --yes, as there is nobody to ask")
    try:
        return input(f"cancel {what}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def plan_cancellation(
    store: Store, request: Request, slurm: Slurm | None, only: str | None = None, *, everything: bool = False
) -> Cancellation:
    """What there is to cancel of a request. `everything`: what others need, too, and tasks with their runs in them.

    Raises SchedulerError.
    """
    ours = {run_id for run_id in run_ids(store, request) if only in (None, run_id)}
    needed = _needed_by_others(store, request, ours)
    names = {cell.run_id: cell.name for cell in settle(request, choose(request, store)).all_cells}
    spared = [
        f"{names[run_id]} {run_id}: {needed[run_id]} needs it, too"
        for run_id in sorted(ours & needed.keys())
        if not everything and store.status(run_id) not in FINAL
    ]
    doomed = ours if everything else ours - needed.keys()
    job_ids: list[str] = []
    if slurm is not None:
        found, kept = _tasks(store, slurm, doomed, everything)
        job_ids, spared = found, [*spared, *kept]
    return Cancellation(job_ids=tuple(job_ids), processes=_processes(store, doomed, names), spared=tuple(spared))


def run_ids(store: Store, request: Request) -> set[str]:
    """All runs of a request, tuning runs too."""
    return {cell.run_id for cell in settle(request, choose(request, store)).all_cells if cell.run_id is not None}


def _needed_by_others(store: Store, request: Request, ours: Iterable[str]) -> dict[str, str]:
    """Which other request needs a run: of each sweep's name the newest counts."""
    newest = {other.sweep: other for other in store.requests()}
    wanted = set(ours)
    found: dict[str, str] = {}
    for other in newest.values():
        if request_id(other) != request_id(request):
            name = request_id(other) if other.sweep == request.sweep else other.sweep
            for run_id in run_ids(store, other) & wanted:
                found.setdefault(run_id, f"request {name}")
    return found


def _tasks(store: Store, slurm: Slurm, doomed: set[str], everything: bool) -> tuple[list[str], list[str]]:
    """Job ids of the tasks that are not over and have nothing but these runs in them, and words on the others."""
    submissions = [one for one in Submissions(store).all() if one.job_id is not None]
    holding = [one for one in submissions if any(_runs_of(item) & doomed for _, item in one.items())]
    jobs = slurm.jobs(one.job_id for one in holding if one.job_id is not None)
    found: list[str] = []
    kept: list[str] = []
    for submission in holding:
        for index in range(len(submission.intent.tasks)):
            job_id = submission.task_job_id(index)
            if job_id is None or job_id not in jobs or not jobs[job_id].is_active:
                continue
            if jobs[job_id].name != submission.intent.job_name:
                continue  # another cluster's of that number
            verdict = _verdict(store, submission, index, doomed)
            if verdict is None:
                continue
            if verdict and not everything:
                kept.append(f"task {job_id}: {verdict}")
            else:
                found.append(job_id)
    return found, kept


def _verdict(store: Store, submission: Submission, index: int, doomed: set[str]) -> str | None:
    """None where a task has none of the runs; "" where it has no others; else which others it has."""
    items = submission.intent.tasks[index]
    if not any(_runs_of(item) & doomed for item in items):
        return None
    others = {
        run_id: item.name for item in items for run_id in _runs_of(item) - doomed if store.status(run_id) not in FINAL
    }
    if not others:
        return ""
    what = "trains a trunk for" if any(item.kind == "trunk" for item in items) else "has other runs beside it:"
    return f"{what} {', '.join(sorted(others))}"


def _runs_of(item: Item) -> set[str]:
    return set(item.branches) if item.kind == "trunk" else {item.run_id}


def _processes(store: Store, doomed: set[str], names: Mapping[str | None, str]) -> dict[int, str]:
    """Processes of this machine that train one of the runs, outside of any scheduler's job."""
    found: dict[int, str] = {}
    for run_id in doomed:
        if store.record_path(run_id).exists():
            continue
        job = _alive(store.attempts(run_id))
        if job is not None and job.get("slurm") is None:
            found[int(job["pid"])] = names[run_id]
    for trunk in _trunks_of(store, doomed):
        job = _alive(store.trunk_attempts(trunk))
        if job is not None and job.get("slurm") is None and set(job["branches"]) <= doomed:
            found[int(job["pid"])] = f"trunk {trunk}"
    return found


def _trunks_of(store: Store, run_ids: set[str]) -> set[str]:
    found = set()
    for run_id in run_ids:
        with contextlib.suppress(ConfigError):
            found.add(trunk_id(decode(RunSpec, store.spec(run_id))))
    return {trunk for trunk in found if trunk is not None}


def _alive(attempts: Attempts) -> Mapping[str, Any] | None:
    number = attempts.last()
    job = attempts.job(number) if number and not attempts.ended(number) else None
    return job if job is not None and owner_alive(job) else None
