"""What a task of a Slurm job does: `python -m sweeps.task STORE NUMBER`, of that submission the task that it is.

Its items are carried out side by side, each in a process of its own where there are several, so that one that fails, or
is killed, takes no other with it. The exit code is the worst of theirs. On USR2 or TERM they save; then the task asks
to be requeued, if it is to go on.

Imports are inside functions: they take a while, and signals come when they come.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.stopping import StopFlag, ignore_signals

if TYPE_CHECKING:
    from hybrid.spec import ExecSpec
    from sweeps.store import Store
    from sweeps.submissions import Item, Submission

_POLL_S = 0.5


def main(arguments: Sequence[str]) -> int:
    """Carry out the task; gives its exit code."""
    stop = StopFlag()
    stop.install()
    import os
    from pathlib import Path

    from hybrid.decode import decode
    from hybrid.spec import ConfigError, ExecSpec
    from sweeps import in_slurm
    from sweeps.exits import EXIT_FAILED, EXIT_STOPPED
    from sweeps.items import carry_out
    from sweeps.store import Store, StoreError
    from sweeps.submissions import Submissions

    root, number = Path(arguments[0]), int(arguments[1])
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        Store(root).check_format()
        submission = Submissions(Store(root)).get(number)
        intent = submission.intent
        store = Store(root, checkpoints=Path(intent.checkpoints), data=Path(intent.data))
        execution = decode(ExecSpec, intent.execution, f"submission {number}: execution")
    except (StoreError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    own = os.environ.get("SLURM_ARRAY_JOB_ID")
    if own is not None and submission.answer is not None and submission.job_id != own:
        # It was given up for lost, and its runs may have been submitted again.
        print(f"job {own}: not the job of submission {number}, {submission.answer}: nothing to do", flush=True)
        return 0
    items = intent.tasks[index]
    if len(items) == 1:
        code = carry_out(store, items[0], execution, stop=stop, submission=number)
        _tell(store, submission, items[0], code)
    else:
        code = _side_by_side(store, submission, index, execution, stop)
    if code == EXIT_STOPPED:
        in_slurm.ask_for_requeue(stop, number)
    return code


def _side_by_side(store: "Store", submission: "Submission", index: int, execution: "ExecSpec", stop: StopFlag) -> int:
    """Every item in a process of its own, signals passed on; the worst of their codes.

    What was stopped goes on after a requeue, and what has failed stays so, and is told again at the end.
    """
    import os
    from multiprocessing.connection import wait

    from sweeps.exits import EXIT_FAILED, EXIT_STOPPED
    from sweeps.launch.processes import fork_server

    context = fork_server()
    processes = [
        context.Process(target=_child, args=(store, submission.number, index, place, execution), name=item.name)
        for place, item in enumerate(submission.intent.tasks[index])
    ]
    for process in processes:
        process.start()
    passed_on = 0
    while alive := [process.sentinel for process in processes if process.exitcode is None]:
        wait(alive, timeout=_POLL_S)
        if passed_on < stop.signals and stop.signal is not None:
            passed_on = stop.signals
            for process in processes:
                if process.exitcode is None:
                    os.kill(process.pid, stop.signal)
    codes = [process.exitcode or 0 for process in processes]
    for process, code in zip(processes, codes, strict=True):
        if code < 0:
            print(f"{process.name}: killed by signal {-code}", file=sys.stderr, flush=True)
    if EXIT_STOPPED in codes:
        return EXIT_STOPPED
    return EXIT_FAILED if any(codes) else 0


def _child(store: "Store", number: int, index: int, place: int, execution: "ExecSpec") -> None:
    stop = StopFlag()
    stop.install()
    from sweeps.items import carry_out
    from sweeps.launch.processes import unblock_signals
    from sweeps.submissions import Submissions

    unblock_signals()
    submission = Submissions(store).get(number)
    item = submission.intent.tasks[index][place]
    code = carry_out(store, item, execution, stop=stop, submission=number, again=False)
    _tell(store, submission, item, code)
    sys.exit(code)


def _tell(store: "Store", submission: "Submission", item: "Item", code: int) -> None:
    """Let those know who asked to, if a run has ended, and with it perhaps its request; the first rank does."""
    import os

    from sweeps.exits import EXIT_FAILED
    from sweeps.notify import after_evaluation, after_run
    from sweeps.progress import say

    if os.environ.get("SLURM_PROCID", "0") != "0":
        return
    intent = submission.intent
    if item.kind == "run":
        after_run(store, intent.sweep, intent.overrides, item.run_id, intent.notify, say)
    elif item.kind == "eval" and code == EXIT_FAILED:
        where = f"python -m sweeps logs {item.run_id} shows what its job printed"
        after_evaluation(store, intent.sweep, intent.overrides, item.run_id, where, intent.notify, say)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    ignore_signals()
    sys.exit(exit_code)
