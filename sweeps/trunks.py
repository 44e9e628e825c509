"""Trunks: what runs that differ only in their length share, trained once.

Under the trapezoid schedule the learning rate does not depend on the length of the training before the cooldown begins.
Runs that are otherwise equal share every update up to there: they are branches of one trunk, which is an object of the
store with attempts of its own. Where a branch starts, the trunk leaves a checkpoint, a point. A branch that starts from
a point has the same id, and on the CPU the same bits, as the run trained alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from hybrid.decode import canonical_json, digest
from hybrid.spec import ExecSpec, RunSpec
from sweeps.store import Store

if TYPE_CHECKING:  # what asks for a run's trunk has no use for all that cells are made with
    from sweeps.cells import CellRun

REVISION: Final = 1
"""Raised when what a trunk is changes, so that no branch starts from an older one."""


@dataclass(frozen=True, kw_only=True)
class TrunkJob:
    """A trunk to be trained, with the settings of its longest branch.

    `points` are the steps that are missing, ascending; `branches` are the ids of the runs that wait for them.
    """

    trunk_id: str
    run: RunSpec
    execution: ExecSpec
    points: tuple[int, ...]
    branches: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Payment:
    """The updates that each run will make itself, and each trunk for its branches."""

    run_steps: Mapping[str, int]
    trunk_steps: Mapping[str, int]


def trunk_id(run: RunSpec) -> str | None:
    """12 hex digits for what the run is but for its length; None where it has nothing to share.

    That is a run with a stop rule, whose length its validation decides, and one whose cooldown begins in or at the end
    of its warmup.
    """
    if run.stop is not None or _steps_before_cooldown(run) * run.batch_tokens <= run.schedule.warmup_tokens:
        return None
    return None if branch_step(run) < 1 else _identify(_without_length(run))


def trunk_description(run: RunSpec) -> str:
    """The canonical JSON of the run's trunk: the run with lengths of zero, under a kind and a revision of its own."""
    return f'{{"kind":"trunk","revision":{REVISION},"run":{canonical_json(_without_length(run))}}}'


def _without_length(run: RunSpec) -> RunSpec:
    return replace(run, train_tokens=0, schedule=replace(run.schedule, cooldown_tokens=0))


@lru_cache(maxsize=65536)
def _identify(without_length: RunSpec) -> str:
    return digest(trunk_description(without_length))


def branch_step(run: RunSpec) -> int:
    """How many of the run's updates its trunk makes: those before the first of its cooldown, but never the last one.

    The last is always its own, with the validation after it.
    """
    return min(_steps_before_cooldown(run), run.train_steps - 1)


def _steps_before_cooldown(run: RunSpec) -> int:
    return (run.train_steps * run.batch_tokens - run.schedule.cooldown_tokens) // run.batch_tokens


def missing_points(store: Store, trunk: str, points: Iterable[int]) -> tuple[int, ...]:
    """Those of the points that are not there and can be had: a trunk that diverged goes no further."""
    there, diverged_at = set(store.trunk_points(trunk)), store.trunk_diverged_at(trunk)
    return tuple(p for p in sorted(points) if p not in there and (diverged_at is None or p <= diverged_at))


def first_stretch(store: Store, trunk: str, missing: Sequence[int]) -> tuple[int, ...]:
    """The first of the missing points with those after it that are reached without passing one that is there."""
    there = store.trunk_points(trunk)
    return tuple(p for p in missing if not any(missing[0] < q < p for q in there))


def trunk_jobs(cells: Sequence["CellRun"], store: Store) -> tuple[TrunkJob, ...]:
    """The trunks that spare updates if these missing cells are trained, in the order of their first cells.

    A point is worth making where at least two runs go on past the latest one that is there, or where an attempt at the
    trunk has left a checkpoint between that and the run's own, and worth waiting for where another process makes it
    just now. Runs that have begun go on by themselves.
    """
    jobs = []
    for trunk, stretches in _surveyed(cells, _begun(cells, store), store):
        waiting = [branch for stretch in stretches if stretch.pays for branch in stretch.branches]
        if waiting:
            longest = max(waiting, key=lambda branch: (branch.step, branch.cell.resolved.run.train_tokens))
            jobs.append(
                TrunkJob(
                    trunk_id=trunk,
                    run=longest.cell.resolved.run,
                    execution=longest.cell.resolved.execution,
                    points=tuple(sorted({branch.step for branch in waiting})),
                    branches=tuple(b.cell.run_id for b in sorted(waiting, key=lambda branch: branch.order)),
                )
            )
    return tuple(jobs)


def payment(cells: Sequence["CellRun"], store: Store) -> Payment:
    """What training these missing cells takes: each run once, from where it has got to, or from its trunk's point.

    Of a checkpoint only the name is looked at, and a run that would diverge is counted to its end.
    """
    begun = _begun(cells, store)
    run_steps = {cell.run_id: cell.resolved.run.train_steps - begun[cell.run_id] for cell in cells}
    trunk_steps: dict[str, int] = {}
    for trunk, stretches in _surveyed(cells, begun, store):
        for stretch in stretches:
            for branch in stretch.branches:
                start = branch.step if stretch.pays else stretch.base
                run_steps[branch.cell.run_id] = branch.cell.resolved.run.train_steps - start
            if stretch.pays:
                last = max(branch.step for branch in stretch.branches)
                trunk_steps[trunk] = trunk_steps.get(trunk, 0) + last - stretch.begin
    return Payment(run_steps=run_steps, trunk_steps=trunk_steps)


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """A run of a trunk that has not begun; `order` is its cell's place among the cells."""

    cell: "CellRun"
    order: int
    step: int


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """Branches whose latest point, at `base`, is the same; a trunk that makes theirs starts at `begin`.

    `pays`: making their points spares updates. Branches that are at `base` already do not count.
    """

    base: int
    begin: int
    pays: bool
    branches: tuple[_Branch, ...]


def _begun(cells: Sequence["CellRun"], store: Store) -> dict[str, int]:
    """How far each run has got by itself, in steps."""
    return {cell.run_id: store.checkpoint_step(cell.run_id) for cell in cells}


def _surveyed(
    cells: Sequence["CellRun"], begun: Mapping[str, int], store: Store
) -> Iterator[tuple[str, tuple[_Stretch, ...]]]:
    """The trunks of the cells that have not begun, in the order of their first cells, each with its stretches."""
    trunks: dict[str, dict[str, _Branch]] = {}
    for order, cell in enumerate(cells):
        run, run_id = cell.resolved.run, cell.run_id
        trunk = trunk_id(run) if cell.resolved.execution.trunks else None
        if trunk is not None:
            branch = _Branch(cell=cell, order=order, step=branch_step(run))
            trunks.setdefault(trunk, {}).setdefault(run_id, branch)
    for trunk, branches in trunks.items():
        new = [branch for run_id, branch in branches.items() if not begun[run_id]]
        if new:
            yield trunk, tuple(_stretches(new, trunk, store))


def _stretches(branches: Sequence[_Branch], trunk: str, store: Store) -> Iterator[_Stretch]:
    points, on_the_way = store.trunk_points(trunk), store.trunk_checkpoints(trunk)
    under_way = _under_way(store, trunk)
    diverged_at = store.trunk_diverged_at(trunk)
    by_base: dict[int, list[_Branch]] = {}
    for branch in branches:
        base = max((point for point in points if point <= branch.step), default=0)
        by_base.setdefault(base, []).append(branch)
    for base, found in sorted(by_base.items()):
        beyond = [b for b in found if b.step > base and (diverged_at is None or b.step <= diverged_at)]
        first = min((branch.step for branch in beyond), default=base)
        begin = max((step for step in on_the_way if base < step <= first), default=base)
        pays = len(beyond) > 1 or begin > base or any(branch.step in under_way for branch in beyond)
        rest = [branch for branch in found if branch not in beyond] if pays else found
        if pays:
            yield _Stretch(base=base, begin=begin, pays=True, branches=tuple(beyond))
        if rest:
            yield _Stretch(base=base, begin=base, pays=False, branches=tuple(rest))


def _under_way(store: Store, trunk: str) -> set[int]:
    """The points that a process makes just now."""
    attempts = store.trunk_attempts(trunk)
    job = attempts.job(attempts.last()) if attempts.status() == "running" else None
    return set() if job is None else set(job["points"])
