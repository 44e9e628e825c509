"""Runs as jobs of a Slurm cluster, through submitit, which writes the scripts.

What is missing and not queued yet is put into job arrays, each an intent of `sweeps.submissions`, written down before
sbatch is called; a task of an array is `sweeps.task`. Nothing here watches the runs: they save, are requeued and go
on by themselves, and `sweeps status` reads what became of them.
"""

import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybrid.decode import encode
from hybrid.eval_spec import usual_evals
from hybrid.spec import ConfigError, ExecSpec
from sweeps.cells import CellRun
from sweeps.launch import Asked, End, Launcher
from sweeps.launch.slurm_check import known, problems_with_runs, refused
from sweeps.launch.slurm_script import Shape, on_one_device, script_text
from sweeps.launch.slurm_settings import SlurmSettings, read_slurm_settings
from sweeps.progress import SweepProgress, say
from sweeps.scheduler import NoAnswerError, SchedulerError, Slurm
from sweeps.snapshot import Snapshot, snapshot_dir, take_snapshot
from sweeps.speed import ranks_of
from sweeps.standing import Standing, Standings
from sweeps.store import Store, is_final, now, this_process, user_name
from sweeps.submissions import Answer, Intent, Item, Submissions
from sweeps.text import count, duration
from sweeps.trunks import TrunkJob, trunk_jobs
from sweeps.wanted import missing

_ROOT = Path(__file__).resolve().parent.parent.parent
_LOOK_EVERY_S = 3.0
_NAME_CHARACTERS = 40


class Refused(SchedulerError):
    """The scheduler did not take a job; the message says which, and what became of the others."""


@dataclass(frozen=True, kw_only=True)
class _Array:
    """A job array that is to be submitted: its tasks, what they run with, and what has to end before."""

    tasks: tuple[tuple[Item, ...], ...]
    execution: ExecSpec
    dependency: str = ""
    trunk_id: str | None = None  # whose job it waits for


class SlurmJobs(Launcher):
    """Submits to the cluster whose sbatch is on the PATH, and returns, or waits for the ends."""

    def __init__(self, settings: object) -> None:
        self._config = settings
        self._settings: SlurmSettings | None = None
        self._slurm: Slurm | None = None

    def check(self, runs: Sequence[CellRun]) -> None:
        slurm = Slurm.find()
        settings, problems = read_slurm_settings(self._config)
        problems += problems_with_runs(settings, runs)
        if slurm is None:
            problems.append(
                "hydra/launcher = slurm: there is no sbatch on the PATH: expected a login node of a Slurm cluster; "
                "hydra/launcher=local runs here"
            )
        else:
            settings, unknown = known(settings, slurm)
            problems += [*unknown, *refused(settings, slurm, runs)]
        if problems:
            raise ConfigError(problems)
        self._settings, self._slurm = settings, slurm

    def launch(self, cells: Sequence[CellRun], store: Store, asked: Asked) -> list[End]:
        if not cells:
            return []
        settings, slurm = self._checked(cells)
        ends = _Submitting(store, slurm, settings, asked).all(cells)
        return _until_ended(ends, store, slurm, asked) if asked.wait else ends

    def _checked(self, cells: Sequence[CellRun]) -> tuple[SlurmSettings, Slurm]:
        if self._settings is None or self._slurm is None:
            self.check(cells)
        assert self._settings is not None
        assert self._slurm is not None
        return self._settings, self._slurm

    def evaluate(self, cells: Sequence[CellRun], store: Store, asked: Asked) -> list[End] | None:
        settings, slurm = self._checked(cells)
        return _Submitting(store, slurm, settings, asked).evaluations(cells)


# --- what is submitted --------------------------------------------------------------------------


class _Submitting:
    """One call of `launch`: intents are published and submitted one after the other.

    Where another process publishes an intent in between, what is left is looked at again.
    """

    def __init__(self, store: Store, slurm: Slurm, settings: SlurmSettings, asked: Asked) -> None:
        self._store, self._slurm, self._settings, self._asked = store, slurm, settings, asked
        self._submissions = Submissions(store)
        self._snapshots: dict[tuple[str, ...], Snapshot] = {}
        self._has_trunks = False
        self._cluster = slurm.facts()
        self._jobs: dict[str, str] = {}  # of this call: run or trunk id to the name of its task's job

    def all(self, cells: Sequence[CellRun]) -> list[End]:
        for cell in cells:
            self._store.publish_spec(cell.resolved.run)
            if self._settings.evaluate and cell.run_id not in self._asked.evals:
                for spec in usual_evals(cell.resolved.run):
                    self._store.want_eval(cell.run_id, spec)
        most = self._settings.array_size or self._cluster.max_array_size
        while True:
            last = self._submissions.last()
            standings = Standings(self._store, self._slurm)
            todo = [cell for cell in cells if self._is_missing(standings.of(cell.run_id))]
            if self._pass_through(todo, standings, last, most):
                break
        standings = Standings(self._store, self._slurm)
        ends = [self._end(cell, standings.of(cell.run_id)) for cell in cells]
        self._say_jobs()
        return ends

    def evaluations(self, cells: Sequence[CellRun]) -> list[End]:
        """Submit the evaluations that finished runs have not had.

        Where two ask at the same moment, a run may be evaluated twice; the first record stands.
        """
        done = [cell for cell in cells if self._store.status(cell.run_id) == "done"]
        standings = Standings(self._store, self._slurm)
        lacking = [cell for cell in done if missing(self._store, cell.resolved.run)]
        queued = [cell for cell in lacking if standings.is_being_evaluated(cell.run_id)]
        todo = [cell for cell in lacking if cell not in queued]
        groups: dict[ExecSpec, list[tuple[Item, ...]]] = {}
        for cell in self._in_order(todo):
            alone = on_one_device(cell.resolved.execution)
            item = Item(kind="eval", run_id=cell.run_id, name=cell.cell.name, row=cell.cell.row, seed=cell.cell.seed)
            groups.setdefault(alone, []).append((item,))
        most = self._settings.array_size or self._cluster.max_array_size
        for execution, tasks in groups.items():
            for begin in range(0, len(tasks), most):
                array = _Array(tasks=tuple(tasks[begin : begin + most]), execution=execution)
                self._submit_next(array)
        self._say_jobs()
        return [
            End(cell=cell, status="submitted", message="its evaluation")
            if cell in lacking
            else End(cell=cell, status="done")
            if cell in done
            else End(cell=cell, status="failed", message="not done, so it cannot be evaluated yet")
            for cell in cells
        ]

    def _is_missing(self, standing: Standing) -> bool:
        return standing.status in ("new", "interrupted", "lost", "failed")

    def _pass_through(self, todo: Sequence[CellRun], standings: Standings, last: int, most: int) -> bool:
        """Submit all of it; False where another process has published an intent meanwhile."""
        number = last
        trunks = trunk_jobs(todo, self._store)
        arrays = [*self._trunk_arrays(trunks, todo, standings, most), *self._run_arrays(trunks, todo, most)]
        for array in arrays:
            number += 1
            job_id = self._submit(number, self._after_trunk(array))
            if job_id is None:
                return False
            if self._is_evaluated(array):
                number += 1
                evaluations = replace(_evaluations(array), dependency=f"aftercorr:{job_id}")
                if self._submit(number, evaluations) is None:
                    # Another pass would not come back to them: their runs are queued now.
                    self._submit_next(evaluations)
                    return False
        return True

    def _is_evaluated(self, array: _Array) -> bool:
        items = [item for items in array.tasks for item in items]
        wanted = self._settings.evaluate or any(item.run_id in self._asked.evals for item in items)
        return wanted and items[0].kind == "run"

    def _after_trunk(self, array: _Array) -> _Array:
        """The array waiting for the job of its trunk, which has been submitted by now."""
        return array if array.trunk_id is None else replace(array, dependency=f"afterany:{self._jobs[array.trunk_id]}")

    def _trunk_arrays(
        self, trunks: Sequence[TrunkJob], todo: Sequence[CellRun], standings: Standings, most: int
    ) -> Iterator[_Array]:
        names = {cell.run_id: cell for cell in todo}
        groups: dict[tuple[ExecSpec, str], list[tuple[Item, ...]]] = {}
        for job in trunks:
            queued = standings.trunk_job_id(job.trunk_id, job.points)
            if queued is not None:
                self._jobs[job.trunk_id] = queued
            if job.trunk_id in self._jobs:
                continue
            longest = next(cell for cell in todo if cell.resolved.run == job.run)
            first = names[job.branches[0]]
            item = Item(
                kind="trunk",
                run_id=longest.run_id,
                name=f"trunk of {first.cell.name}",
                row=first.cell.row,
                seed=first.cell.seed,
                trunk_id=job.trunk_id,
                points=job.points,
                branches=job.branches,
            )
            # Another that makes fewer points of it goes first: one at a time can train a trunk.
            before = standings.trunk_job_id(job.trunk_id)
            groups.setdefault((job.execution, "" if before is None else f"afterany:{before}"), []).append((item,))
        for (execution, dependency), tasks in groups.items():
            for begin in range(0, len(tasks), most):
                yield _Array(tasks=tuple(tasks[begin : begin + most]), execution=execution, dependency=dependency)

    def _run_arrays(self, trunks: Sequence[TrunkJob], todo: Sequence[CellRun], most: int) -> Iterator[_Array]:
        """Cells of one ExecSpec that wait for the same trunk, or for none, in the order in which they should start."""
        trunk_of = {run_id: job.trunk_id for job in trunks for run_id in job.branches}
        k = self._settings.runs_per_gpu
        groups: dict[tuple[ExecSpec, str | None], list[Item]] = {}
        for cell in self._in_order(todo):
            trunk = trunk_of.get(cell.run_id)
            item = Item(
                kind="run",
                run_id=cell.run_id,
                name=cell.cell.name,
                row=cell.cell.row,
                seed=cell.cell.seed,
                predicted_hours=self._asked.predicted_hours.get(cell.run_id),
                trunk_id=trunk,
            )
            groups.setdefault((cell.resolved.execution, trunk), []).append(item)
        for (execution, trunk), items in groups.items():
            tasks = [tuple(items[begin : begin + k]) for begin in range(0, len(items), k)]
            for begin in range(0, len(tasks), most):
                yield _Array(tasks=tuple(tasks[begin : begin + most]), execution=execution, trunk_id=trunk)

    def _in_order(self, cells: Sequence[CellRun]) -> list[CellRun]:
        """Seeds in the order that they came in; within a seed greater priorities first."""
        seeds = {seed: place for place, seed in enumerate(dict.fromkeys(cell.cell.seed for cell in cells))}
        priority = self._settings.priority
        return sorted(cells, key=lambda cell: (seeds[cell.cell.seed], -priority.get(cell.cell.row, 0.0)))

    # --- one job ---

    def _submit_next(self, array: _Array) -> None:
        """Submit what need not be planned again, whatever others have submitted meanwhile."""
        while self._submit(self._submissions.last() + 1, array) is None:
            pass  # another process had that number

    def _submit(self, number: int, array: _Array) -> str | None:
        """Write the intent down, and have the scheduler take it; its job's id, None where the number is taken."""
        intent = self._intent(array)
        if not self._submissions.publish(number, intent):
            return None
        self._snapshot_again(intent, array)
        script = self._submissions.directory(number) / "script.sh"
        try:
            script.write_text(self._script_of(number, intent, array))
            answer = Answer(job_id=self._slurm.submit(script))
        except NoAnswerError as error:
            # It may have taken the job, and only its word was lost. Who asks next finds out, if this cannot.
            answer = Answer(job_id=self._slurm.named(intent.job_name), message=str(error))
        except (SchedulerError, OSError) as error:
            answer = Answer(job_id=None, message=str(error))
        stands = self._submissions.publish_answer(number, answer)
        if stands.job_id != answer.job_id and answer.job_id is not None:
            self._slurm.cancel([answer.job_id])  # somebody took this process for dead, and has said that there is none
        if stands.job_id is None:
            raise Refused(
                f"the scheduler did not take submission {number} ({count(len(array.tasks), 'task')}): "
                f"{stands.message}. {self._so_far()}; the same command submits what is missing"
            )
        for index, items in enumerate(array.tasks):
            for item in items:
                if item.kind == "trunk":
                    self._has_trunks = True
                of = item.trunk_id if item.kind == "trunk" and item.trunk_id is not None else item.run_id
                if item.kind == "eval":
                    of = f"evaluation of {of}"
                self._jobs[of] = f"{stands.job_id}_{index}"
        return stands.job_id

    def _intent(self, array: _Array) -> Intent:
        snapshot = self._snapshot(array.execution)
        execution = encode(array.execution)
        if snapshot is not None:
            execution["mixers"] = [str(path) for path in snapshot.mixers]
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in self._asked.sweep)[:_NAME_CHARACTERS]
        return Intent(
            job_name=f"{name}-{secrets.token_hex(4)}",
            created_at=now(),
            owner={**this_process(), "user": user_name()},
            sweep=self._asked.sweep,
            overrides=tuple(self._asked.overrides),
            tasks=array.tasks,
            execution=execution,
            resources=dict(self._config_of_settings()),
            snapshot=None if snapshot is None else snapshot.digest,
            checkpoints=str(self._store.checkpoints_root.absolute()),
            data=str(self._store.data_root.absolute()),
            dependency=array.dependency,
            command=tuple(sys.argv),
            notify=self._asked.notify,
            cluster=self._cluster.cluster,
        )

    def _config_of_settings(self) -> Mapping[str, Any]:
        return {key: value for key, value in vars(self._settings).items() if value not in (None, (), {})}

    def _snapshot(self, execution: ExecSpec) -> Snapshot | None:
        if not self._settings.snapshot:
            return None
        if execution.mixers not in self._snapshots:
            self._snapshots[execution.mixers] = take_snapshot(self._store, execution.mixers)
        return self._snapshots[execution.mixers]

    def _snapshot_again(self, intent: Intent, array: _Array) -> None:
        """What `sweeps gc` found nobody to need, before the intent said who does, is made again."""
        if intent.snapshot is not None and not snapshot_dir(self._store, intent.snapshot).is_dir():
            take_snapshot(self._store, array.execution.mixers)

    def _so_far(self) -> str:
        return f"{self._what()} submitted before" if self._jobs else "Nothing was submitted"

    def _script_of(self, number: int, intent: Intent, array: _Array) -> str:
        shape = Shape.of(self._settings, array.execution, max(len(items) for items in array.tasks))
        directory = self._submissions.directory(number).absolute()
        waits = {"dependency": intent.dependency, "kill-on-invalid-dep": "yes"} if intent.dependency else {}
        setup, command = self._environment(number, intent), self._command(number, array, shape)
        return script_text(self._settings, shape, intent.job_name, directory, len(array.tasks), waits, setup, command)

    def _environment(self, number: int, intent: Intent) -> list[str]:
        root = _ROOT if intent.snapshot is None else snapshot_dir(self._store, intent.snapshot).absolute()
        return [
            f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export HYBRID_SUBMISSION={number}",
        ]

    def _command(self, number: int, array: _Array, shape: Shape) -> str:
        """srun takes the place of the shell, which a signal would end. -P: not what the working directory holds."""
        python = shlex.quote(sys.executable) if self._settings.python is None else self._settings.python
        # Ranks end each other; what srun would do on the first exit code takes the others' last words away.
        several = " --kill-on-bad-exit=0 --wait=60" if ranks_of(array.execution) > 1 else ""
        store = shlex.quote(str(self._store.root.absolute()))
        # From Slurm 22.05 on, srun does not take it from sbatch.
        cpus = f" --cpus-per-task={shape.cpus_per_rank}"
        return f"exec srun --unbuffered{cpus}{several} {python} -P -u -m sweeps.task {store} {number}"

    # --- what is said ---

    def _end(self, cell: CellRun, standing: Standing) -> End:
        if is_final(standing.status):
            return End(cell=cell, status=standing.status)
        job = self._jobs.get(cell.run_id)
        if job is not None:
            return End(cell=cell, status="submitted", message=f"job {job}")
        where = f"job {standing.job.job_id}" if standing.job is not None else standing.note or "elsewhere"
        return End(cell=cell, status="submitted", message=f"{standing.status} already: {where}")

    def _what(self) -> str:
        """What was submitted, in words."""
        evaluations = sum(name.startswith("evaluation of ") for name in self._jobs)
        trained = len(self._jobs) - evaluations
        parts = [f"{trained} runs and trunks" if self._has_trunks else count(trained, "run")] if trained else []
        return " and ".join([*parts, *([count(evaluations, "evaluation")] if evaluations else [])])

    def _say_jobs(self) -> None:
        ids = list(dict.fromkeys(job.partition("_")[0] for job in self._jobs.values()))
        if ids:
            jobs = f"job {ids[0]}" if len(ids) == 1 else f"jobs {', '.join(ids)}"
            say(f"submitted {self._what()} as {jobs}")


def _evaluations(array: _Array) -> _Array:
    """The evaluations of an array's runs, task by task: submitted with `aftercorr`, each begins when the task that
    trained them has succeeded; where that one fails, the scheduler cancels it."""
    tasks = tuple(tuple(replace(item, kind="eval") for item in items) for items in array.tasks)
    return _Array(tasks=tasks, execution=on_one_device(array.execution))


def _until_ended(ends: Sequence[End], store: Store, slurm: Slurm, asked: Asked) -> list[End]:
    """Wait until no run is queued or running any more, with progress. Ctrl-C stops the waiting, not the runs."""
    waiting = {end.cell.run_id: end for end in ends if end.status == "submitted"}
    ended = [end for end in ends if end.status != "submitted"]
    began, problem = time.monotonic(), ""
    try:
        with SweepProgress(len(waiting)) as progress:
            while waiting:
                standings = Standings(store, slurm)
                try:
                    found = {run_id: standings.of(run_id) for run_id in waiting}
                except SchedulerError as error:  # the runs go on; so does the waiting
                    if str(error) != problem:
                        problem = str(error)
                        say(f"still waiting: {problem}")
                    time.sleep(_LOOK_EVERY_S)
                    continue
                live: dict[str, tuple[int, int, float | None, float]] = {}
                for run_id, standing in found.items():
                    end = waiting[run_id]
                    if standing.status == "running":
                        live[end.cell.cell.name] = _progress(end.cell, store, standing.attempt)
                    if standing.status in ("queued", "running"):
                        continue
                    del waiting[run_id]
                    ended.append(_ended(end.cell, standing))
                    progress.ended(end.cell.cell.name, f"{ended[-1].status} after {duration(time.monotonic() - began)}")
                progress.running(live)
                if waiting:
                    time.sleep(_LOOK_EVERY_S)
    except KeyboardInterrupt:
        say(f"stopped waiting for {count(len(waiting), 'run')} that will go on: python -m sweeps status {asked.sweep}")
        ended += waiting.values()
    return ended


def _ended(cell: CellRun, standing: Standing) -> End:
    if is_final(standing.status):
        return End(cell=cell, status=standing.status)
    message = standing.note
    if standing.error is not None:
        message = f"{standing.error.get('class')}: {str(standing.error.get('message')).splitlines()[0]}"
    return End(cell=cell, status="interrupted" if standing.status == "interrupted" else "failed", message=message)


def _progress(cell: CellRun, store: Store, attempt: int) -> tuple[int, int, float | None, float]:
    start, _, last = store.attempts(cell.run_id).ends(attempt)
    if last is None:
        last = {"step": 0 if start is None else start.step}
    return last["step"], cell.resolved.run.train_steps, last.get("train_loss_nats"), last.get("tokens_per_s", 0.0)
