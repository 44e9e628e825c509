"""One item of a task of a scheduler's job, carried out in this process: a run, a trunk, or the evaluation of a run."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hybrid.decode import decode
from hybrid.spec import ExecSpec, RunSpec
from sweeps import in_slurm
from sweeps.exits import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, explain_failure
from sweeps.progress import say
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import RESUMABLE_CLASSES, Attempts, Store, StoreError, is_final
from sweeps.submissions import Item
from sweeps.trunks import TrunkJob, branch_step, missing_points
from sweeps.worker.attempts import give_up
from sweeps.worker.claims import Busy
from sweeps.worker.evaluation import evaluate_one
from sweeps.worker.ranks import lead, ranks_here
from sweeps.worker.runs import fail_branch, run_one
from sweeps.worker.trunks import run_trunk

if TYPE_CHECKING:
    from hybrid.train.parallel import Ranks

RESTARTS_IN_VAIN = 5
"""A job that is queued again so often in a row without a new checkpoint would be so for ever."""


class GaveUp(Exception):
    """The run is left as it is; the message says why."""


def carry_out(
    store: Store,
    item: Item,
    execution: ExecSpec,
    *,
    stop: StopFlag,
    submission: int | None = None,
    own_process: bool = True,
    again: bool = True,
) -> int:
    """Carry the item out, or go on with it; gives the exit code, which says what became of it.

    0 done, diverged, or nothing to do, as where another job has it; 1 failed, which the attempt tells in full, or given
    up; 75 stopped after saving. `again`: what failed in an earlier life of this very job is tried again. Says in a line
    how it ended; what the run itself prints goes to the attempt's log, in a process of its own.
    """
    with _own_output():
        try:
            ending = _carry_out(store, item, execution, stop, submission, own_process, again)
            code = EXIT_DONE
        except Busy as busy:
            ending, code = f"{busy}; left to it", EXIT_DONE
        except Stopped as stopped:
            ending, code = str(stopped), EXIT_STOPPED
        except GaveUp as given_up:
            ending, code = str(given_up), EXIT_FAILED
        except Exception as error:
            ending, code = f"failed: {explain_failure(error)}", EXIT_FAILED
            if item.kind == "eval":  # it has no attempt that would tell
                traceback.print_exc()
    say(f"{item.kind} {item.name} {item.trunk_id if item.kind == 'trunk' else item.run_id}: {ending}")
    return code


def _carry_out(
    store: Store,
    item: Item,
    execution: ExecSpec,
    stop: StopFlag,
    submission: int | None,
    own_process: bool,
    again: bool,
) -> str:
    run = _spec(store, item.run_id)
    if item.kind == "eval":
        return _evaluate(store, run, item.run_id, execution, stop)
    with ranks_here(execution) as ranks:

        def train() -> str:
            return _train(store, item, run, execution, stop, submission, own_process, ranks)

        def look_and_train() -> str:
            status = store.status(item.run_id)
            if item.kind == "run" and is_final(status):
                return f"{status} before this"
            _check(store, item, run, execution, stop, submission, again)
            return train()

        # The other ranks do as the first does, whatever that finds in the store.
        return train() if ranks is not None and not ranks.is_first else lead(ranks, look_and_train)


def _train(
    store: Store,
    item: Item,
    run: RunSpec,
    execution: ExecSpec,
    stop: StopFlag,
    submission: int | None,
    own_process: bool,
    ranks: "Ranks | None",
) -> str:
    if item.kind == "run":
        return run_one(
            store,
            run,
            execution,
            stop=stop,
            progress=_nobody,
            own_process=own_process,
            submission=submission,
            ranks=ranks,
        )
    assert item.trunk_id is not None
    return run_trunk(
        store,
        TrunkJob(trunk_id=item.trunk_id, run=run, execution=execution, points=item.points, branches=item.branches),
        stop=stop,
        progress=_nobody,
        own_process=own_process,
        submission=submission,
        ranks=ranks,
    )


def _check(
    store: Store,
    item: Item,
    run: RunSpec,
    execution: ExecSpec,
    stop: StopFlag,
    submission: int | None,
    again: bool,
) -> None:
    """Raises GaveUp where the item is not to be tried. Nothing is wrong with one that is finished."""
    trunk = item.trunk_id
    if item.kind == "trunk":
        assert trunk is not None
        attempts, saved_step = store.trunk_attempts(trunk), store.trunk_saved_step(trunk)
    else:
        attempts, saved_step = store.attempts(item.run_id), store.checkpoint_step(item.run_id)

    def finished() -> bool:
        if item.kind == "trunk" and trunk is not None:
            return not missing_points(store, trunk, item.points)
        return is_final(store.status(item.run_id))

    if finished():
        return
    _check_tries(attempts, again)
    if item.kind == "run":
        _check_trunk(store, run, item, execution, submission)
    if restarts_in_vain(attempts, saved_step) >= RESTARTS_IN_VAIN:
        message = (
            f"given up: this job was queued again {RESTARTS_IN_VAIN} times in a row, and came to no new checkpoint"
        )
        if give_up(attempts, item.kind, finished, execution, message, stop, submission):
            raise GaveUp(message)


def _spec(store: Store, run_id: str) -> RunSpec:
    """Raises StoreError, ConfigError where the store does not have it, or not in this version's words."""
    content = store.spec(run_id)
    if content is None:
        raise StoreError(
            f"{store.spec_path(run_id)}: missing: expected the description of a run that was submitted; "
            "has the store been moved, or cleaned up?"
        )
    return decode(RunSpec, content, f"run {run_id}")


def _nobody(step: int, total_steps: int, loss_nats: float | None, tokens_per_s: float) -> None:
    """A job's progress is in its metrics; nobody watches what it prints."""


@contextlib.contextmanager
def _own_output() -> Iterator[None]:
    """What is printed afterwards goes where it went before, whatever log it was turned to meanwhile."""
    kept = [os.dup(number) for number in (1, 2)]
    try:
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            (sys.stdout, sys.stderr)[number - 1].flush()
            os.dup2(copy, number)
            os.close(copy)


def _evaluate(store: Store, run: RunSpec, run_id: str, execution: ExecSpec, stop: StopFlag) -> str:
    if store.status(run_id) == "diverged":
        return "diverged: there is nothing to evaluate"
    with stop.at_once():
        evaluate_one(store, run, execution)
    return "evaluated"


def _check_tries(attempts: Attempts, again: bool) -> None:
    """Raises GaveUp where the newest attempt failed in an earlier life of this job, and is not to be tried again."""
    number = attempts.last()
    error, job = attempts.error(number) if number else None, attempts.job(number) or {}
    if again or error is None or error.get("class") in RESUMABLE_CLASSES or not in_slurm.is_earlier_life(job):
        return
    raise GaveUp(f"failed before this job was queued again: {error.get('class')}: {error.get('message')}")


def _check_trunk(store: Store, run: RunSpec, item: Item, execution: ExecSpec, submission: int | None) -> None:
    """Raises GaveUp, and records it, where the trunk failed that the run was submitted to wait for.

    Where that only stopped, or is gone, the run trains by itself what the trunk has not.
    """
    trunk = item.trunk_id
    if trunk is None or not execution.trunks or store.checkpoint_step(item.run_id):
        return
    attempts = store.trunk_attempts(trunk)
    if branch_step(run) in store.trunk_points(trunk) or attempts.status() != "failed":
        return
    failure = attempts.error(attempts.last()) or {"class": "unknown", "message": "it did not say why"}
    fail_branch(store, run, execution, trunk, failure, submission)
    raise GaveUp(f"its trunk {trunk} failed: {failure['message']}")


def restarts_in_vain(attempts: Attempts, saved_step: int) -> int:
    """How often in a row this job has been queued again since its newest checkpoint, at `saved_step`, was made."""
    facts = in_slurm.here()
    if facts is None:
        return 0
    for number in range(attempts.last(), 0, -1):
        job = attempts.job(number)
        if job is None or not in_slurm.is_earlier_life(job):
            continue
        start, lines = attempts.metrics(number)
        if start is None and not lines:
            continue  # it did not get as far as to begin
        began = start.step if start is not None and start.trunk is None else 0
        if began != saved_step:
            return int(facts["restart_count"]) - int(job["slurm"]["restart_count"]) - 1
    return int(facts["restart_count"])
