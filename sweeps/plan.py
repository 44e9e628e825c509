"""Cells against the store: what is done, what is missing, and what it costs, in whole numbers.

`sweeps.plan_text` and `sweeps.plan_json` show a plan, `sweeps.guards` says whether it may start, `sweeps.evidence` what
its results could tell apart.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybrid.cost import Cost, layout_of, run_cost
from hybrid.equivalence import EquivalenceClass, canonical_model, equivalence_classes
from hybrid.memory import Memory, checkpoint_bytes, final_weights_bytes, train_memory
from hybrid.spec import ExecSpec, ModelSpec, RunSpec
from sweeps.cells import CellRun
from sweeps.plan_settings import PlanSettings
from sweeps.speed import PlanDevice, Speed, device_hours, plan_device, ranks_of, speed_of
from sweeps.store import CellStatus, Status, Store, StoreError, is_final
from sweeps.trunks import payment, trunk_id, trunk_jobs
from sweeps.tune import TUNE, UNTUNED

# Two are kept, and the next one is written whole before the older of them goes.
_MOST_CHECKPOINTS = 3


@dataclass(frozen=True, kw_only=True)
class ShapeCost:
    """What all runs of one shape under one ExecSpec need: see `hybrid.memory` and `sweeps.speed`.

    `memory_switched` is the prediction with activation checkpointing the other way round. `disk_bytes` is what a run
    holds at most: its checkpoints, and the final weights, which stay.
    """

    memory: Memory
    memory_switched: Memory
    checkpoint_bytes: int
    weights_bytes: int
    device: PlanDevice
    speed: Speed

    @property
    def peak_memory_bytes(self) -> int:
        """What it has to be given: as measured where it was, else as predicted."""
        measured = self.speed.peak_memory_bytes
        return self.memory.total_bytes if measured is None else measured

    @property
    def working_bytes(self) -> int:
        """The checkpoints that are there at most while it trains."""
        return _MOST_CHECKPOINTS * self.checkpoint_bytes

    @property
    def disk_bytes(self) -> int:
        return self.working_bytes + self.weights_bytes


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell with its status and its cost.

    `same_as` names the first cell of the request with the same run. `own_steps` are still to be trained for this cell:
    none where it is final, damaged or another cell's run, and fewer than the run has where a trunk gives the first of
    them, or where it has begun: `begun_steps` are in its checkpoint. `trunk` is the one that its run will start from.
    `loss_nats` is a finished run's validation loss. Of an untuned cell all this is that of its stand-in. Cells with one
    `model_key` have equal models, with one `symmetry_key` models that are one by symmetry, with one `settings_key` runs
    that differ in nothing but their models and seeds.
    """

    run: CellRun
    status: CellStatus
    same_as: str | None
    layout: str
    cost: Cost
    shape: ShapeCost
    own_steps: int
    begun_steps: int
    trunk: str | None
    loss_nats: float | None
    model_key: int
    symmetry_key: int
    settings_key: int

    @property
    def spec(self) -> RunSpec:
        return self.run.resolved.run

    @property
    def label(self) -> str:
        """What cells that differ in nothing but their seed are called together, or all tuning runs of a row."""
        name = self.run.cell.name
        if self.run.is_tuning:
            return name[: f"/{name}".rindex(f"/{TUNE}/") + len(TUNE)]
        return (name.rpartition("/")[0] if self.run.cell.seed is not None else name) or "run"

    @property
    def is_missing(self) -> bool:
        """Whether this cell's run is to be trained: not final nor damaged, and the first of the cells that have it."""
        return self.same_as is None and _is_unfinished(self.status)

    def hours(self, steps: int) -> float | None:
        """Device-hours of so many steps; None where nobody knows the speed."""
        ranks = ranks_of(self.run.resolved.execution)
        return device_hours(steps * self.spec.batch_tokens, self.shape.speed, ranks)


_COMPARED = ("data", "optim", "schedule", "stop", "train_tokens", "batch_tokens", "seq_len", "dtype")


@dataclass(frozen=True, kw_only=True)
class PlannedTrunk:
    """A phase that several missing runs share: the steps that are still to be trained, and the checkpoints that will
    be kept for its branches; `branch` is one of the cells that start from it."""

    trunk_id: str
    branch: PlannedCell
    steps: int
    points: int

    @property
    def points_bytes(self) -> int:
        return self.points * self.branch.shape.checkpoint_bytes


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Device-hours of several runs: the sum of those that are known, and of how many runs they are not."""

    known: float
    unknown: int


@dataclass(frozen=True, kw_only=True)
class Total:
    """What several runs, or parts of them, come to. `hours` are by kind of device, as `device_unit` names it."""

    runs: int
    paper_train_flops: int
    full_train_flops: int
    train_tokens: int
    hours: Mapping[str, Hours]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """From what was asked for to what is to be paid: asked = shared + finished + damaged + begun + in_trunks + trunks
    + to_pay.

    `shared` are cells whose run another cell of the request has; `begun` are steps that checkpoints of unfinished runs
    hold, `in_trunks` those that trunks in the store have made already; `trunks` is what is saved as several new runs
    share the steps of one trunk.
    `tuning` is the part of `asked` that tuning runs are, `tuning_to_pay` that of `to_pay`.
    `disk_bytes` is held at most, were all that is missing to run at once; `kept_bytes` of it stay: final weights, and
    the checkpoints that branches start from.
    """

    asked: Total
    shared: Total
    finished: Total
    damaged: Total
    begun: Total
    in_trunks: Total
    trunks: Total
    to_pay: Total
    tuning: Total
    tuning_to_pay: Total
    disk_bytes: int
    kept_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request's cells in their order, and the trunks that its missing runs would share. `warnings` are of tuning."""

    cells: tuple[PlannedCell, ...]
    trunks: tuple[PlannedTrunk, ...]
    warnings: tuple[str, ...] = ()

    @property
    def missing(self) -> list[PlannedCell]:
        """The cells to be run, each run once; untuned ones too."""
        return [cell for cell in self.cells if cell.is_missing]

    @property
    def startable(self) -> list[PlannedCell]:
        """Those of the missing ones whose run is known."""
        return [cell for cell in self.missing if cell.status != UNTUNED]


def _is_unfinished(status: CellStatus) -> bool:
    return not is_final(status) and status != "damaged"


def make_plan(
    runs: Sequence[CellRun], store: Store, settings: PlanSettings, status_of: Callable[[str], Status] | None = None
) -> Plan:
    """Look every cell up in the store, and work out what it costs; one whose stored spec is not its own counts as
    damaged.

    `status_of` an unfinished run, by its id, is what the store says of it unless somebody knows more.
    """
    look = status_of or (lambda run_id: store.attempts(run_id).status())
    costing = _Costing(store, settings)
    first: dict[str, tuple[int, str]] = {}  # by place: two cells may have one name
    cells = []
    for place, run in enumerate(runs):
        status, loss = _look_up(store, run, look)
        first_place, name = first.setdefault(run.run_id, (place, run.cell.name))
        cells.append(costing.cell(run, status, loss, None if first_place == place else name))
    missing = [cell.run for cell in cells if cell.is_missing]
    paid = payment(missing, store)
    cells = [_to_be_paid(cell, paid.run_steps[cell.run.run_id], store) if cell.is_missing else cell for cell in cells]
    return Plan(cells=tuple(cells), trunks=_trunks(cells, missing, paid.trunk_steps, store))


def _to_be_paid(cell: PlannedCell, own_steps: int, store: Store) -> PlannedCell:
    """The cell with what is left to train for it: a run that has begun goes on by itself, another one from a trunk."""
    if own_steps == cell.own_steps:
        return cell
    begun = store.checkpoint_step(cell.run.run_id)
    trunk = None if begun else trunk_id(cell.spec)
    return replace(cell, own_steps=own_steps, begun_steps=begun, trunk=trunk)


def _trunks(
    cells: Sequence[PlannedCell], missing: Sequence[CellRun], trunk_steps: Mapping[str, int], store: Store
) -> tuple[PlannedTrunk, ...]:
    if not trunk_steps:
        return ()
    branches: dict[str, PlannedCell] = {}
    for cell in cells:
        if cell.trunk is not None:
            branches.setdefault(cell.trunk, cell)
    points = {job.trunk_id: len(job.points) for job in trunk_jobs(missing, store)}
    return tuple(
        PlannedTrunk(trunk_id=trunk, branch=branches[trunk], steps=steps, points=points.get(trunk, 0))
        for trunk, steps in trunk_steps.items()
    )


def _look_up(store: Store, run: CellRun, look: Callable[[str], Status]) -> tuple[CellStatus, float | None]:
    """The status of a cell's run, and its validation loss where it is done and has one."""
    if run.is_untuned:
        return UNTUNED, None
    run_id = run.run_id
    try:
        store.check_spec(run_id, run.resolved.run)
        record = store.record(run_id)
    except StoreError:
        return "damaged", None
    if record is None:
        return look(run_id), None
    if record["status"] != "done":
        return "diverged", None
    loss = record["metrics"].get("val_loss_nats")
    return "done", loss if isinstance(loss, float) else None


class _Costing:
    """Puts cells and costs together; what several cells share is worked out once."""

    def __init__(self, store: Store, settings: PlanSettings) -> None:
        self._store, self._settings = store, settings
        self._models = _Numbered()
        self._symmetries = _Numbered()
        self._symmetry: dict[int, int] = {}
        self._layouts: dict[int, str] = {}
        self._costs: dict[tuple[int, int, int], Cost] = {}
        self._shapes: dict[tuple[Any, ...], ShapeCost] = {}
        self._settings_keys: dict[tuple[Any, ...], int] = {}

    def cell(self, run: CellRun, status: CellStatus, loss: float | None, same_as: str | None) -> PlannedCell:
        spec = run.resolved.run
        model = self._models.number(spec.model)
        if model not in self._layouts:
            self._layouts[model] = layout_of(spec.model)
            self._symmetry[model] = self._symmetries.number(canonical_model(spec.model))
        cost_key = (model, spec.train_tokens, spec.seq_len)
        if cost_key not in self._costs:
            self._costs[cost_key] = run_cost(spec)
        shape_key = (model, spec.data, spec.batch_tokens, spec.seq_len, spec.dtype, run.resolved.execution)
        if shape_key not in self._shapes:
            self._shapes[shape_key] = self._shape(spec, run.resolved.execution)
        trained = same_as is None and _is_unfinished(status)
        settings = tuple(getattr(spec, name) for name in _COMPARED)
        return PlannedCell(
            run=run,
            status=status,
            same_as=same_as,
            layout=self._layouts[model],
            cost=self._costs[cost_key],
            shape=self._shapes[shape_key],
            own_steps=spec.train_steps if trained else 0,
            begun_steps=0,
            trunk=None,
            loss_nats=loss,
            model_key=model,
            symmetry_key=self._symmetry[model],
            settings_key=self._settings_keys.setdefault(settings, len(self._settings_keys)),
        )

    def _shape(self, spec: RunSpec, execution: ExecSpec) -> ShapeCost:
        device = plan_device(self._settings.device, execution)
        switched = replace(execution, activation_checkpointing=not execution.activation_checkpointing)
        return ShapeCost(
            memory=train_memory(spec, execution),
            memory_switched=train_memory(spec, switched),
            checkpoint_bytes=checkpoint_bytes(spec),
            weights_bytes=final_weights_bytes(spec),
            device=device,
            speed=speed_of(self._store, spec, execution, device, self._settings.mfu),
        )


class _Numbered:
    """Numbers for models, equal ones for equal models. To compare a model is slow, and most cells have the very same
    object as another: that is looked for first."""

    def __init__(self) -> None:
        self._by_object: dict[int, tuple[ModelSpec, int]] = {}  # with the object, so that its id stays its own
        self._by_value: dict[ModelSpec, int] = {}

    def number(self, model: ModelSpec) -> int:
        known = self._by_object.get(id(model))
        if known is None:
            known = model, self._by_value.setdefault(model, len(self._by_value))
            self._by_object[id(model)] = known
        return known[1]


# --- totals -------------------------------------------------------------------------------------


def device_unit(device: PlanDevice) -> str:
    """What an hour of the device is called."""
    return "CPU-hours" if device.kind == "cpu" else "GPU-hours"


def total(parts: Iterable[tuple[PlannedCell, int]], runs: int | None = None) -> Total:
    """The sum over cells with so many steps of each; `runs` are counted, one a part, unless given."""
    paper = full = tokens = count = 0
    known: dict[str, float] = {}
    unknown: dict[str, int] = {}
    for cell, steps in parts:
        samples = steps * cell.spec.batch_size
        paper += samples * cell.cost.paper_train_flops_per_sample
        full += samples * cell.cost.full_train_flops_per_sample
        tokens += steps * cell.spec.batch_tokens
        count += 1
        unit, hours = device_unit(cell.shape.device), cell.hours(steps)
        known[unit] = known.get(unit, 0.0) + (hours or 0.0)
        unknown[unit] = unknown.get(unit, 0) + (hours is None)
    return Total(
        runs=count if runs is None else runs,
        paper_train_flops=paper,
        full_train_flops=full,
        train_tokens=tokens,
        hours={unit: Hours(known=known[unit], unknown=unknown[unit]) for unit in known},
    )


def ledger(plan: Plan) -> Ledger:
    """What the request comes to, and how little of it is left to be paid."""

    def whole(cells: Iterable[PlannedCell]) -> Total:
        return total((cell, cell.spec.train_steps) for cell in cells)

    todo = plan.missing
    own = [(cell, cell.own_steps) for cell in todo]
    paid = [*own, *((trunk.branch, trunk.steps) for trunk in plan.trunks)]
    in_trunks, trunks = _spared(todo, plan.trunks)
    first = [cell for cell in plan.cells if cell.same_as is None]
    kept = sum(cell.shape.weights_bytes for cell in todo) + sum(trunk.points_bytes for trunk in plan.trunks)
    working = [*(cell.shape for cell in todo), *(trunk.branch.shape for trunk in plan.trunks)]
    return Ledger(
        asked=whole(plan.cells),
        shared=whole(cell for cell in plan.cells if cell.same_as is not None),
        finished=whole(cell for cell in first if is_final(cell.status)),
        damaged=whole(cell for cell in first if cell.status == "damaged"),
        begun=total([(cell, cell.begun_steps) for cell in todo if cell.begun_steps], runs=0),
        in_trunks=in_trunks,
        trunks=trunks,
        to_pay=total(paid, runs=len(todo)),
        tuning=whole(cell for cell in plan.cells if cell.run.is_tuning),
        tuning_to_pay=total(
            [(cell, steps) for cell, steps in paid if cell.run.is_tuning],
            runs=sum(cell.run.is_tuning for cell in todo),
        ),
        disk_bytes=kept + sum(shape.working_bytes for shape in working),
        kept_bytes=kept,
    )


def _spared(todo: Sequence[PlannedCell], trunks: Sequence[PlannedTrunk]) -> tuple[Total, Total]:
    """What new runs do not train themselves: what trunks have made already, and what is saved as runs share the rest.

    The branch that leaves its trunk last stands for the whole of the trunk, the other ones share that.
    """
    still_to_make = {trunk.trunk_id: trunk.steps for trunk in trunks}
    branches: dict[str, list[tuple[PlannedCell, int]]] = {}
    for cell in todo:
        if cell.trunk is not None:
            steps = cell.spec.train_steps - cell.begun_steps - cell.own_steps
            branches.setdefault(cell.trunk, []).append((cell, steps))
    made, shared = [], []
    for trunk, parts in branches.items():
        (last, steps), *others = sorted(parts, key=lambda part: -part[1])
        made.append((last, steps - still_to_make.get(trunk, 0)))
        shared += others
    in_trunks, by_sharing = (total([part for part in parts if part[1]], runs=0) for parts in (made, shared))
    return in_trunks, by_sharing


# --- rows ---------------------------------------------------------------------------------------


def one_models(plan: Plan) -> tuple[EquivalenceClass, ...]:
    """Labels of cells whose runs differ in nothing but their seeds and a symmetry of their models.

    Of cells with one and the same model the first one's label stands for all.
    """
    alike: dict[tuple[int, int], dict[int, PlannedCell]] = {}
    for cell in (cell for cell in plan.cells if not cell.run.is_tuning):
        alike.setdefault((cell.symmetry_key, cell.settings_key), {}).setdefault(cell.model_key, cell)
    return tuple(
        found
        for cells in alike.values()
        if len(cells) > 1
        for found in equivalence_classes({cell.label: cell.spec.model for cell in cells.values()})
    )
