"""Where the numbers of a claim are read: the paper's printed tables, or the records of a store.

A claim names rows of printed tables. Each is a cell of a sweep of `conf/sweep` (`analysis.reference.compare.places`),
so that the same names find the records of that sweep.
"""

import math
import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Final, final

from analysis import stats
from analysis.claims.noise import NoiseFloor, SteadyRow, replicate_noise, steady_noise
from analysis.claims.parts import LENGTHS, THROUGHPUT, Metric, Row
from analysis.load import CellResult, Group, Results, load
from analysis.reference.compare import DERIVED, Place, Sweeps, places, same_setting
from analysis.reference.findings import NOISE_TABLES
from analysis.reference.printed import Printed, PrintedRow
from hybrid.decode import did_you_mean
from hybrid.equivalence import canonical_model
from hybrid.spec import ConfigError, ModelSpec, RunSpec
from sweeps.store import Request, Store

# Tables whose columns follow from no spec, or that say less of a row than others: which cells their rows are.
_TABLE_5: Final = (
    *("Llama", "Mamba", "Diff-T", "Diff-M", "Hymba", "scale add joint", "group add joint", "group gate add joint"),
    *("group diff joint", "group concat joint", "group add separate", "group diff separate"),
)
_RATIOS: Final = ("1:1", "1:3", "1:5", "1:12")
_TABLE_13: Final = (
    "Llama",
    *("SWA 1:1", "SWA 1:3", "SWA 1:5", "SWA 1:15", "SWA 0:1", "Mamba"),
    *(f"Inter-H {ratio}" for ratio in _RATIOS),
    *(f"Intra-H {ratio}" for ratio in ("1:0", *_RATIOS)),
)
_ONLY_AT_EQUAL_FLOPS: Final = ("SWA 1:15", "SWA 0:1")
PAPER_SCALE: Final = "1B"


@final
@dataclass(frozen=True, kw_only=True)
class Entry:
    """A printed row: which cell of which sweep it is, at which scale, and what is printed."""

    place: Place
    scale: str
    printed: PrintedRow

    @property
    def budget(self) -> str:
        """What its tokens are matched by: rows of one table and budget compare like with like."""
        return str(self.printed.get("budget") or self.printed.get("matched_by") or "equal_data")


@final
class PaperRows:
    """The printed rows by name, and the runs that they are."""

    def __init__(self, printed: Printed, sweeps: Sweeps) -> None:
        self.printed = printed
        self.sweeps = sweeps
        self._entries = dict(_entries(printed))
        self._canonical: dict[Row, ModelSpec] = {}

    def entry(self, row: Row) -> Entry:
        """Raises ConfigError for a row that there is not: an error of a claim, not of a user."""
        if row not in self._entries:
            labels = [known.label for known in self._entries if known.table == row.table]
            raise ConfigError(f"table {row.table}: has no row {row.label!r}{did_you_mean(row.label, labels)}")
        return self._entries[row]

    def of(self, table: str, wanted: Callable[[Entry], bool] | None = None) -> tuple[Row, ...]:
        """The rows of a table, in printed order; those of which `wanted` is true."""
        rows = ((row, entry) for row, entry in self._entries.items() if row.table == table)
        return tuple(row for row, entry in rows if wanted is None or wanted(entry))

    def __iter__(self) -> Iterator[Row]:
        return iter(self._entries)

    def run(self, row: Row) -> RunSpec:
        return self.sweeps.run(self.entry(row).place)

    def model(self, row: Row) -> ModelSpec:
        """The row's model as everyone would write it: equal for rows that are one model by symmetry."""
        if row not in self._canonical:
            self._canonical[row] = canonical_model(self.run(row).model)
        return self._canonical[row]

    def number(self, row: Row, metric: Metric) -> float | None:
        """What is printed."""
        printed = self.entry(row).printed
        found = [float(printed[name]) for name in metric.columns if printed.get(name) is not None]
        if metric.average:
            return fmean(found) if len(found) == len(metric.columns) else None
        return found[0] if found else None


def _entries(printed: Printed) -> Iterator[tuple[Row, Entry]]:
    for number in (*DERIVED, "5", "13"):
        table = printed.tables[number]
        if number in DERIVED:
            found: Sequence[Place] = places(table)
        elif number == "5":
            found = [Place(label=label, sweep="table5", row=label) for label in _TABLE_5]
        else:
            found = [
                Place(
                    label=label, sweep="table9", row=f"{label} equal FLOPs" if label in _ONLY_AT_EQUAL_FLOPS else label
                )
                for label in _TABLE_13
            ]
        for place, row in zip(found, table.rows, strict=True):
            if number in ("12", "14/15"):
                row = {**row, "matched_by": "equal_flops" if number == "12" else f"{float(row['flops']):g} FLOPs"}
            scale = str(row.get("sizes") or row.get("size") or ("350M" if number == "10" else PAPER_SCALE))
            yield Row(number, place.label), Entry(place=place, scale=scale, printed=row)


# --- sources --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Value:
    """The metric of a row: the mean of `n` runs."""

    mean: float
    n: int


class Source(ABC):
    """Gives the number of a row, and how far runs of one row lie apart."""

    def __init__(self, name: str, rows: PaperRows) -> None:
        self.name = name
        self.rows = rows
        self._trained: dict[Row, RunSpec | None] = {}

    @abstractmethod
    def value(self, row: Row, metric: Metric) -> Value | None:
        """None where it is not printed, or not recorded."""

    @abstractmethod
    def noise(self, scale: str, metric: Metric) -> NoiseFloor | None:
        """None where nothing is known of it."""

    @abstractmethod
    def run(self, row: Row) -> RunSpec | None:
        """What was run; None where that is not known yet."""

    def trained(self, row: Row) -> RunSpec | None:
        """What was run, its model as everyone would write it, whatever the seeds: equal for replicates."""
        if row not in self._trained:
            run = self.run(row)
            self._trained[row] = (
                None if run is None else replace(run, model=canonical_model(run.model), init_seed=0, data_seed=0)
            )
        return self._trained[row]

    def covers(self, row: Row) -> bool:
        """Whether this source is about that row at all."""
        return True

    @abstractmethod
    def missing(self, rows: Sequence[Row], metric: Metric) -> tuple[str, str]:
        """What is missing of these rows, and what would give it."""

    @cached_property
    def replicas(self) -> Mapping[str, tuple[tuple[Row, ...], ...]]:
        """By scale, the printed rows that are one model by symmetry, as the tables of variants have them."""
        found: dict[str, tuple[tuple[Row, ...], ...]] = {}
        for table, scale in NOISE_TABLES.items():
            classes: dict[ModelSpec, list[Row]] = {}
            for row in self.rows.of(table):
                classes.setdefault(self.rows.model(row), []).append(row)
            found[scale] = tuple(tuple(rows) for rows in classes.values() if len(rows) > 1)
        return found

    @cached_property
    def steady(self) -> tuple[Row, ...]:
        """Rows with printed throughput whose decoding costs the same at every length of `LENGTHS`."""
        return tuple(row for row in self.rows.of("13") if _is_steady(self.rows.run(row).model))


def _is_steady(model: ModelSpec) -> bool:
    from hybrid.decode_cost import decode_cost

    costs = {decode_cost(model, batch=1, length=length, element_bytes=2) for length in LENGTHS}
    return len(costs) == 1


@final
class PrintedSource(Source):
    """The numbers that the paper prints: one run a row, so that the noise has to come from replicates among them.

    `numbers` replaces printed ones: for tests and simulations.
    """

    def __init__(self, rows: PaperRows, numbers: Mapping[tuple[Row, Metric], float] | None = None) -> None:
        super().__init__("paper", rows)
        self._numbers = numbers or {}
        self._noise: dict[tuple[str, str], NoiseFloor | None] = {}

    def value(self, row: Row, metric: Metric) -> Value | None:
        number = self._numbers.get((row, metric))
        if number is None:
            number = self.rows.number(row, metric)
        return None if number is None else Value(mean=number, n=1)

    def noise(self, scale: str, metric: Metric) -> NoiseFloor | None:
        key = (scale, "throughput" if metric.logarithmic else metric.name)
        if key not in self._noise:
            self._noise[key] = self._find_noise(scale, metric)
        return self._noise[key]

    def _find_noise(self, scale: str, metric: Metric) -> NoiseFloor | None:
        if metric.logarithmic:
            steady = [
                SteadyRow(
                    row=row,
                    points=tuple(
                        (length, value.mean) for length in LENGTHS if (value := self.value(row, THROUGHPUT[length]))
                    ),
                )
                for row in self.steady
            ]
            return steady_noise(steady)
        if scale not in self.replicas:
            return None
        samples = {
            row: value.mean
            for rows in self.replicas[scale]
            for row in rows
            if (value := self.value(row, metric)) is not None
        }
        return replicate_noise(scale, metric, self.replicas[scale], samples)

    def run(self, row: Row) -> RunSpec | None:
        return self.rows.run(row)

    def missing(self, rows: Sequence[Row], metric: Metric) -> tuple[str, str]:
        command = _command(self.rows.entry(rows[0]).place, ())
        what = f"the paper prints no {metric.label} of {rows[0].label}"
        return what, f"{command}{' on one kind of device' if metric.of_device else ''}"


@final
class StoreSource(Source):
    """Records of requests in a store: the mean over seeds, and the spread between them pooled over all rows of a scale.

    Where rows do not have the same spread, the widest stands for all. Rows are not paired on data seeds: where runs
    on the same data go up and down together, their differences are more certain than they look here.

    `overrides` are those that the requests were asked for with, beside a row's own. With `scale=` among them, rows
    that the paper has at 1B are read at that scale, and its other scales are left out.
    """

    def __init__(self, rows: PaperRows, store: Store, overrides: Sequence[str] = ()) -> None:
        super().__init__("store", rows)
        self._store = store
        self._overrides = tuple(sorted(overrides))
        self.scale = next((text.removeprefix("scale=") for text in overrides if text.startswith("scale=")), None)
        self._requests = tuple(store.requests())
        self._results: dict[tuple[str, tuple[str, ...]], tuple[Results, ...]] = {}
        self._noise: dict[tuple[str, str], NoiseFloor | None] = {}

    @property
    def empty(self) -> bool:
        return not self._requests

    def covers(self, row: Row) -> bool:
        return self.scale is None or self.rows.entry(row).scale == PAPER_SCALE

    def value(self, row: Row, metric: Metric) -> Value | None:
        numbers = self._numbers(row, metric)
        return Value(mean=fmean(numbers), n=len(numbers)) if numbers else None

    def noise(self, scale: str, metric: Metric) -> NoiseFloor | None:
        key = (scale, metric.name)
        if key not in self._noise:
            self._noise[key] = self._find_noise(scale, metric)
        return self._noise[key]

    def _find_noise(self, scale: str, metric: Metric) -> NoiseFloor | None:
        """Each run once: rows of several tables may be the same runs."""
        seen: set[str] = set()
        samples: list[list[float]] = []
        rows = 0
        for row in self.rows:
            if self.rows.entry(row).scale != scale or (group := self._group(row)) is None:
                continue
            fresh = [cell for cell in group.done if cell.run_id not in seen]
            seen |= {cell.run_id for cell in fresh if cell.run_id is not None}
            numbers = self._recorded(fresh, metric)
            if metric.logarithmic:
                numbers = [math.log(number) for number in numbers]
            if len(numbers) > 1:
                samples.append(numbers)
                rows += 1
        pooled = stats.pool(samples)
        if pooled.sd is None:
            return None
        unit = "log" if metric.logarithmic else metric.unit
        if not pooled.used:
            widest = max(samples, key=lambda sample: stats.standard_deviation(sample) or 0.0)
            return NoiseFloor(
                sd=stats.standard_deviation(widest) or 0.0,
                df=len(widest) - 1,
                unit=unit,
                source=f"the widest spread between seeds of any row in the store, not pooled: {pooled.reason}",
            )
        return NoiseFloor(
            sd=pooled.sd, df=pooled.df, unit=unit, source=f"seeds of {rows} rows in the store, pooled; {pooled.reason}"
        )

    def run(self, row: Row) -> RunSpec | None:
        group = self._group(row)
        return next(iter(group.specs), None) if group is not None else None

    def missing(self, rows: Sequence[Row], metric: Metric) -> tuple[str, str]:
        place = self.rows.entry(rows[0]).place
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        done = self._group(rows[0])
        if done is not None and done.done:
            return (
                f"no run of row {place.row!r}{others} has recorded {metric.label}",
                f"an evaluation of {metric.label}",
            )
        what = f"the store has no finished run of row {place.row!r}{others} of {place.sweep}"
        elsewhere = self._asked_otherwise(place)
        if elsewhere:
            what += f" (it has been asked for with {'; or with '.join(elsewhere)})"
        return what, _command(place, self._overrides)

    def _asked_otherwise(self, place: Place) -> list[str]:
        """Other overrides with which the sweep was asked for."""
        own = () if self.scale else place.overrides
        here = tuple(sorted((*own, *self._overrides)))
        asked = {_of_the_runs(request) for request in self._requests if request.sweep == place.sweep} - {here}
        return [" ".join(overrides) or "none" for overrides in sorted(asked)]

    def _numbers(self, row: Row, metric: Metric) -> list[float]:
        group = self._group(row)
        if group is None:
            return []
        return self._recorded(group.done, metric)

    def _recorded(self, cells: Iterable[CellResult], metric: Metric) -> list[float]:
        """What depends on the device is read of the device alone on which most runs of the store were made."""
        if metric.recorded is None:
            return []
        if not metric.of_device:
            numbers = [number for cell in cells if (number := cell.number(metric.recorded)) is not None]
            return [number for number in numbers if number > 0] if metric.logarithmic else numbers
        found = []
        for cell in cells:
            number = cell.metrics.get(metric.recorded, cell.provenance.get(metric.recorded))
            if isinstance(number, int | float) and 0 < number < math.inf and device_of(cell) == self._device:
                found.append(float(number))
        return found

    @cached_property
    def _device(self) -> object:
        cells = [cell for row in self.rows if (group := self._group(row)) is not None for cell in group.done]
        counts = Counter(device_of(cell) for cell in {cell.run_id: cell for cell in cells}.values())
        return counts.most_common(1)[0][0] if counts else None

    def _group(self, row: Row) -> Group | None:
        """The row's runs, in the newest request that has any."""
        if not self.covers(row):
            return None
        place = self.rows.entry(row).place
        own = () if self.scale else place.overrides
        for results in self._asked(place.sweep, tuple(sorted((*own, *self._overrides)))):
            for group in results.groups:
                if group.row == place.row and all(same_setting(group.axes.get(key), v) for key, v in place.axes):
                    return group
        return None

    def _asked(self, sweep: str, overrides: tuple[str, ...]) -> tuple[Results, ...]:
        key = (sweep, overrides)
        if key not in self._results:
            fitting = [request for request in self._requests if _fits(request, sweep, overrides)]
            self._results[key] = tuple(load(self._store, request) for request in reversed(fitting) if request.cells)
        return self._results[key]


_NOT_THE_RUNS: Final = ("sweep.seeds=", "sweep.only=", "plan.", "exec.", "store.", "notify.", "hydra")


def _fits(request: Request, sweep: str, overrides: tuple[str, ...]) -> bool:
    """Whether a request is of these runs, whatever its seeds and wherever it ran."""
    return request.sweep == sweep and _of_the_runs(request) == overrides


def _of_the_runs(request: Request) -> tuple[str, ...]:
    return tuple(sorted(text for text in request.overrides if not text.startswith(_NOT_THE_RUNS)))


def device_of(cell: CellResult) -> object:
    """What a run was made on, as well as its record says."""
    return cell.provenance.get("device_name") or cell.provenance.get("processor") or cell.provenance.get("device")


def _command(place: Place, overrides: Sequence[str]) -> str:
    own = () if any(text.startswith("scale=") for text in overrides) else place.overrides
    return shlex.join(["python", "run.py", "-m", f"+sweep={place.sweep}", *own, *overrides, "sweep.seeds=3"])
