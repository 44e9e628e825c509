"""The cells that a request expects, joined with what the store knows of each.

The cells come from the stored request and are never composed again, so that a cell without a record is still a
cell: no row disappears.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

from hybrid.cost import layout_of, run_cost
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError, RunSpec
from sweeps.store import Cell, Records, Request, Store, StoreError, Tuning, is_final
from sweeps.tune import Choices, choose, settle, status_of

LATEST: Final = "latest"
STATUS_WORDS: Final = {"new": "not started"}
_LARGEST: Final = 1e150  # whose square is finite
_JSON: Final = json.JSONEncoder(sort_keys=True, default=str)


@final
@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One expected run: what it is called, how it stands, and its record if it has one.

    `run_id` is None before it is tuned. `spec` is None before the run is first tried, or if this code cannot read it
    (another revision); `metrics` are empty without a record, and hold what evaluations measured too. `tuned` are the
    values that tuning chose, or tries. `problem` says what is wrong with a record that cannot be read.
    """

    name: str
    row: str
    axes: Mapping[str, object]
    seed: int | None
    run_id: str | None
    tuned: Mapping[str, object]
    status: str
    spec: RunSpec | None
    cost: Mapping[str, float]
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    problem: str | None = None

    @property
    def final(self) -> bool:
        """Whether there is a result: done or diverged."""
        return self.status in ("done", "diverged")

    @property
    def diverged(self) -> bool:
        return self.status == "diverged"

    def number(self, metric: str) -> float | None:
        """The metric if it is a number that can be reckoned with, else None."""
        value = self.metrics.get(metric)
        if not isinstance(value, int | float) or isinstance(value, bool) or not -_LARGEST < value < _LARGEST:
            return None
        return float(value)


@final
@dataclass(frozen=True, kw_only=True)
class Group:
    """One line of a table: the cells that differ in their seeds only."""

    row: str
    axes: Mapping[str, object]
    label: str
    cells: tuple[CellResult, ...]

    @cached_property
    def final(self) -> tuple[CellResult, ...]:
        """The cells with a result, each run once: two cells may ask for the same run."""
        return tuple({cell.run_id: cell for cell in self.cells if cell.final}.values())

    @cached_property
    def done(self) -> tuple[CellResult, ...]:
        return tuple(cell for cell in self.final if not cell.diverged)

    @cached_property
    def specs(self) -> tuple[RunSpec, ...]:
        return tuple(cell.spec for cell in self.cells if cell.spec is not None)

    @property
    def tuned(self) -> Mapping[str, object]:
        """The values that tuning chose for the row; empty before it has, and where nothing is tuned."""
        return self.cells[0].tuned

    def layout(self) -> str | None:
        return self._layout

    @cached_property
    def _layout(self) -> str | None:
        return next((layout_of(spec.model) for spec in self.specs), None)

    def cost(self, key: str) -> float | None:
        """A cost of the group's runs, which their seeds do not change; None where it is not known yet."""
        return next((cell.cost[key] for cell in self.cells if cell.cost.get(key) is not None), None)

    def numbers(self, metric: str) -> list[float]:
        """The metric of the runs that are done; diverged runs are never averaged."""
        if metric not in self._numbers:
            values = (cell.number(metric) for cell in self.done)
            self._numbers[metric] = [value for value in values if value is not None]
        return list(self._numbers[metric])

    @cached_property
    def _numbers(self) -> dict[str, list[float]]:
        """Those that were asked for already."""
        return {}

    def without(self, metric: str) -> tuple[CellResult, ...]:
        """The runs that are done and have no finite value of the metric."""
        return tuple(cell for cell in self.done if cell.number(metric) is None)

    def notes(self) -> str:
        """What is not done, counted: "1 diverged, 2 not started"; empty if all is."""
        counts = Counter(STATUS_WORDS.get(cell.status, cell.status) for cell in self.cells if cell.status != "done")
        notes = [f"{n} {word}" for word, n in sorted(counts.items())]
        shared = sum(cell.final for cell in self.cells) - len(self.final)
        return ", ".join(notes + ([f"{shared} asked for twice"] if shared else []))


@final
@dataclass(frozen=True, kw_only=True)
class TuningRuns:
    """How values of `settings` were chosen: by `metric`, among runs that enter nothing else. `rows` counts those that
    have as many of `cells` each, a row at each point of the grid."""

    settings: Mapping[str, tuple[object, ...]]
    per: str
    metric: str
    rows: int
    cells: tuple[CellResult, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Results:
    """A request with its results, grouped into the lines of a table, in the order of the request."""

    sweep: str
    overrides: tuple[str, ...]
    report: Mapping[str, Any]
    groups: tuple[Group, ...]
    axes: tuple[str, ...]
    several_rows: bool
    tuning: tuple[TuningRuns, ...]
    choices: Choices

    @cached_property
    def cells(self) -> tuple[CellResult, ...]:
        return tuple(cell for group in self.groups for cell in group.cells)

    @cached_property
    def specs(self) -> tuple[RunSpec, ...]:
        return tuple(spec for group in self.groups for spec in group.specs)

    @property
    def is_probe(self) -> bool:
        """Whether the runs race to a threshold: every readable one has a stop rule."""
        specs = self.specs or [cell.spec for one in self.tuning for cell in one.cells if cell.spec is not None]
        return bool(specs) and all(spec.stop is not None for spec in specs)


def find_request(requests: Sequence[Request], name: str, overrides: Sequence[str]) -> Request:
    """The stored request that a user means by a sweep's name (or `latest`) and overrides, in any order.

    `requests` come in the order in which they were last asked for. Raises ConfigError, listing what there is, if none
    or several fit.
    """
    if not requests:
        raise ConfigError("store: no request yet; run a sweep first, such as `python run.py -m +sweep=demo`")
    named = [request for request in requests if name in (LATEST, request.sweep)]
    if not named:
        known = {request.sweep for request in requests} | {LATEST}
        raise ConfigError(f"request = {name}: no such request in the store{did_you_mean(name, known)}")
    if name == LATEST and not overrides:
        return named[-1]
    newest = {tuple(sorted(request.overrides)): request for request in named}
    exact = newest.get(tuple(sorted(overrides)))
    if exact is not None:
        return exact
    if not overrides and len(newest) == 1:
        return named[-1]
    listing = [f"  {request.sweep} {' '.join(request.overrides)}".rstrip() for request in newest.values()]
    if overrides:
        problem = f"overrides = {' '.join(overrides)}: {name} was never asked for with these; expected those of one of"
    else:
        problem = f"request = {name}: {len(newest)} requests of this name are stored; repeat the overrides of one"
    raise ConfigError("\n".join([problem, *listing]))


def request_of(store: Store, name: str, overrides: Sequence[str]) -> Request:
    """The request that a user means, as `find_request` says; where none fits, the damaged ones are named too.

    Raises ConfigError for a damaged one, as far as it can be told that it is meant: the newest, or all of a name.
    """
    if name == LATEST and not overrides:
        try:
            newest = store.newest_request()
        except StoreError as error:
            raise ConfigError(str(error)) from None
        return newest or find_request((), name, overrides)
    # Those of other sweeps may be large, and are read where it must be said what there is.
    found = store.requests_by_file(name if name in store.sweeps() else None)
    damaged = [str(one) for one in found.values() if isinstance(one, StoreError)]
    there = [one for one in found.values() if isinstance(one, Request)]
    if damaged and not there and name in store.sweeps():
        raise ConfigError(damaged)
    try:
        return find_request(there, name, overrides)
    except ConfigError as error:
        raise ConfigError([*error.problems, *damaged]) from None


def load(store: Records, request: Request) -> Results:
    """Join the cells of `request` with their records, which an index of the store has sooner, where they are many.

    Raises ConfigError if the request has no cells.
    """
    if not request.cells:
        raise ConfigError(f"request = {request.sweep}: it has no cells")
    choices = choose(request, store)
    members: dict[tuple[str, str], list[CellResult]] = {}
    texts: dict[str, str] = {}  # seeds have them in common, and a repr is cheap
    for cell in settle(request, choices).cells:
        written = repr(cell.axes)
        point = texts.get(written) or texts.setdefault(written, _as_text(cell.axes))
        members.setdefault((cell.row, point), []).append(_result(store, cell))
    firsts = [cells[0] for cells in members.values()]
    several_rows = len({cell.row for cell in firsts}) > 1
    axes = _differing_axes(firsts)
    return Results(
        sweep=request.sweep,
        overrides=tuple(request.overrides),
        report=request.report,
        groups=tuple(
            Group(row=cells[0].row, axes=cells[0].axes, label=_label(cells[0], several_rows, axes), cells=tuple(cells))
            for cells in members.values()
        ),
        axes=axes,
        several_rows=several_rows,
        tuning=tuple(_tuning_runs(store, tuning) for tuning in request.tuning),
        choices=choices,
    )


def open_store(path: Path) -> Store:
    """Raises ConfigError if there is no directory at `path`, StoreError if a newer version wrote it."""
    if not path.is_dir():
        raise ConfigError(f"store = {path}: expected a directory; give --store DIR or set HYBRID_STORE")
    store = Store(path)
    store.check_format()
    return store


def axis_text(value: object) -> str:
    """An axis value as a person would type it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else _as_text(value)


def _as_text(value: object) -> str:
    return _JSON.encode(value)


def _tuning_runs(store: Records, tuning: Tuning) -> TuningRuns:
    return TuningRuns(
        settings=tuning.settings,
        per=tuning.per,
        metric=tuning.metric,
        rows=len({(cell.row, _as_text(cell.axes)) for cell in tuning.cells}),
        cells=tuple(_result(store, cell) for cell in tuning.cells),
    )


def _result(store: Records, cell: Cell) -> CellResult:
    status = status_of(cell, store)
    record: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = {}
    problem = None
    if cell.run_id is not None and is_final(status):
        record = store.record(cell.run_id)
    if cell.run_id is not None and record is not None:
        metrics = _with_evaluations(record.get("metrics", {}), store.eval_records(cell.run_id).values())
    elif cell.run_id is not None and status == "damaged":
        problem = _problem(store, cell.run_id)
    spec = None if cell.run_id is None else _read_spec(store, cell.run_id)
    return CellResult(
        name=cell.name,
        row=cell.row,
        axes=cell.axes,
        seed=cell.seed,
        run_id=cell.run_id,
        tuned=cell.tuned,
        status=status,
        spec=spec,
        cost=(None if record is None else record.get("cost")) or _predicted_cost(spec),
        metrics=metrics,
        provenance={} if record is None else record.get("provenance", {}),
        problem=problem,
    )


def _problem(store: Records, run_id: str) -> str | None:
    try:
        store.record(run_id)
    except StoreError as error:
        return str(error)
    return None


def _with_evaluations(metrics: Mapping[str, Any], records: Collection[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The metrics of a run and of its evaluations, these under `kind.name` too, as in `nll.loss_nats`.

    The run's own come first. A name to which two evaluations give different values says nothing, so it is left out.
    """
    if not records:
        return metrics
    found: dict[str, Any] = {}
    disputed: set[str] = set()
    for record in records:
        kind = record.get("eval", {}).get("kind", "eval")
        for name, value in record["metrics"].items():
            for key in (name, f"{kind}.{name}"):
                if key in found and found[key] != value:
                    disputed.add(key)
                found[key] = value
    return {key: value for key, value in found.items() if key not in disputed} | dict(metrics)


def _predicted_cost(spec: RunSpec | None) -> dict[str, Any]:
    """What a run without a record will cost; nothing where that is in a user's own file, which is not read here."""
    try:
        return {} if spec is None else asdict(run_cost(spec))
    except ConfigError:
        return {}


def _read_spec(store: Records, run_id: str) -> RunSpec | None:
    try:
        return store.run_spec(run_id)
    except (ConfigError, StoreError):
        return None


def _differing_axes(cells: Sequence[CellResult]) -> tuple[str, ...]:
    names = dict.fromkeys(name for cell in cells for name in cell.axes)
    return tuple(name for name in names if len({_as_text(cell.axes.get(name)) for cell in cells}) > 1)


def _label(cell: CellResult, several_rows: bool, axes: Sequence[str]) -> str:
    parts = [cell.row] if several_rows or not axes else []
    parts += [f"{name.rpartition('.')[2]}={axis_text(cell.axes.get(name))}" for name in axes]
    return " ".join(part for part in parts if part) or "all"
