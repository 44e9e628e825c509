"""What the results of a request could tell apart: the noise between seeds, the smallest difference that so many seeds
find, and the seeds that two named rows would need."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from hybrid.decode import did_you_mean, encode
from hybrid.spec import ConfigError, RunSpec
from sweeps.plan import Plan, PlannedCell
from sweeps.plan_settings import PlanSettings, read_noise
from sweeps.power import Noise, detectable_nats, noise_of_records, seeds_to_separate
from sweeps.store import Store, StoreError

LOSS = "val_loss_nats"
SEEDS_SHOWN = (1, 3, 5)
_SEEDS = ("init_seed", "data_seed")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells that differ in nothing but their seeds: one line of a table."""

    label: str
    cells: tuple[PlannedCell, ...]

    @property
    def seeds(self) -> int:
        """How many different runs are asked for."""
        return len({cell.run.run_id for cell in self.cells})

    @property
    def model(self) -> tuple[int, int]:
        """Equal for rows whose runs are replicates of each other: one model, or two that are one by symmetry."""
        return self.cells[0].symmetry_key, self.cells[0].settings_key

    @property
    def comparison(self) -> tuple[object, ...]:
        """Equal for rows that are to be compared: those of one sweep that stand at one point of its grid."""
        cell, spec = self.cells[0].run.cell, self.cells[0].spec
        alike = spec.data, spec.stop, spec.batch_tokens, spec.seq_len, spec.dtype
        return cell.row.rpartition("/")[0], tuple(cell.axes.items()), alike

    @property
    def grid_comparison(self) -> tuple[object, ...]:
        """The same where there are no rows but the points of a grid: those of one length on the same data."""
        return tuple(getattr(self.cells[0].spec, name) for name in _COMPARABLE)

    @property
    def given_noise(self) -> Noise | None:
        """The noise that these cells' own settings give. Raises ConfigError for what is none."""
        given = self.cells[0].run.plan.get("noise")
        return None if given is None else read_noise(given)

    @property
    def losses(self) -> dict[str, float]:
        """The validation losses of the runs that are done, by their ids."""
        found = {cell.run.run_id: cell.loss_nats for cell in self.cells}
        return {run_id: loss for run_id, loss in found.items() if loss is not None and math.isfinite(loss)}


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """The smallest true difference in mean loss that `seeds` a row find: between two rows chosen beforehand, and
    between any two of all rows, by Bonferroni. Infinite where nothing could be found."""

    seeds: int
    two_rows_nats: float
    any_pair_nats: float


@dataclass(frozen=True, kw_only=True)
class Separation:
    """What it would take to tell two rows apart.

    `obstacle` says why it cannot be, or cannot be known. `seeds` are those of each row, `runs` those of both that are
    not done yet, `hours` what these cost, None where nobody knows.
    """

    rows: tuple[Row, Row]
    obstacle: str | None = None
    difference_nats: float | None = None
    observed: bool = False
    seeds: int = 0
    runs: int = 0
    hours: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a request's results can show. Where `not_the_loss` or `unknown` says why, no differences are given.

    `rows` are those that it is about. `seeds` are those asked for, of the row that has fewest; `pairs` of rows are
    different models or settings. `is_given` is noise that settings say, wherever it was measured.
    """

    rows: tuple[Row, ...]
    seeds: int
    pairs: int
    not_the_loss: str | None = None
    noise: Noise | None = None
    is_given: bool = False
    unknown: str | None = None
    detectable: tuple[Detectable, ...] = ()
    separation: Separation | None = None


def rows_of(plan: Plan) -> list[Row]:
    """The request's rows in their order. Cells of one label that differ in more than seeds are rows of their own, but
    tuning runs only where they differ in what they cost."""
    groups: dict[tuple[object, ...], list[PlannedCell]] = {}
    for cell in plan.cells:
        alike = (cell.cost, cell.spec.train_tokens, id(cell.shape))
        differing = alike if cell.run.is_tuning else (cell.model_key, cell.settings_key)
        groups.setdefault((cell.label, *differing), []).append(cell)
    return [Row(label=cells[0].label, cells=tuple(cells)) for cells in groups.values()]


def chosen_rows(rows: Sequence[Row], settings: PlanSettings) -> tuple[Row, Row] | None:
    """The two rows of `plan.separate`. Raises ConfigError where there are none of these names."""
    if settings.separate is None:
        return None
    by_label = {row.label: row for row in rows if not row.cells[0].run.is_tuning}
    unknown = [name for name in settings.separate if name not in by_label]
    if unknown:
        raise ConfigError([f"plan.separate: {name}: no such row{did_you_mean(name, by_label)}" for name in unknown])
    first, second = settings.separate
    return by_label[first], by_label[second]


def evidence(plan: Plan, settings: PlanSettings, store: Store, metric: str | None) -> tuple[Evidence, ...]:
    """What the request's seeds can show, of each group of rows that are to be compared; noise is that of the group.

    `metric` is the one that the sweep's report asks for; None is the loss, but for runs with a stop rule. Raises
    ConfigError where `plan.separate` names rows that are not there.
    """
    rows = [row for row in rows_of(plan) if not row.cells[0].run.is_tuning]
    chosen = chosen_rows(rows, settings)
    if len(rows) < 2:
        return ()
    groups: dict[tuple[object, ...], list[Row]] = {}
    has_rows = len({row.cells[0].run.cell.row for row in rows}) > 1
    for row in rows:
        groups.setdefault(row.comparison if has_rows else row.grid_comparison, []).append(row)
    found = [
        _of_group(group, chosen if chosen is not None and chosen[0] in group else None, settings, store, metric)
        for group in groups.values()
        if len(group) > 1 or (chosen is not None and chosen[0] in group)
    ]
    return tuple(found[:1] if found and found[0].not_the_loss is not None else found)


def _of_group(
    rows: Sequence[Row], chosen: tuple[Row, Row] | None, settings: PlanSettings, store: Store, metric: str | None
) -> Evidence:
    different = len({row.model for row in rows})
    base = Evidence(rows=tuple(rows), seeds=min(row.seeds for row in rows), pairs=different * (different - 1) // 2)
    if any(row.cells[0].spec.stop is not None for row in rows):
        return replace(base, not_the_loss="its runs end when the task is solved, and are compared by whether and when")
    if metric not in (None, LOSS):
        return replace(base, not_the_loss=f"its tables compare {metric}")
    # Of rows of several scales the noisiest stands for all.
    given = max((row.given_noise for row in rows if row.given_noise), key=lambda n: n.sd_nats, default=None)
    base = replace(base, is_given=given is not None)
    known = _Known(given, {}) if given else _known_here(rows, store) or _known_elsewhere(rows, store)
    separation = None if chosen is None else _separation(chosen, known, settings)
    if known is None:
        unknown = (
            f"{store.root} has no two finished runs of such data that differ only in their seeds;\n"
            "run two seeds of a row, or give plan.noise.sd_nats and plan.noise.dof"
        )
        return replace(base, unknown=unknown, separation=separation)
    counts = sorted({base.seeds, *SEEDS_SHOWN}) if base.pairs else []
    largest_two = sorted(known.dof_of, key=lambda model: known.dof_of[model])[-2:]
    noise = known.without(largest_two)
    detectable = tuple(_detectable(noise, count, base.pairs, settings) for count in counts)
    return replace(base, noise=known.noise, detectable=detectable, separation=separation)


def _detectable(noise: Noise, seeds: int, pairs: int, settings: PlanSettings) -> Detectable:
    def nats(comparisons: int) -> float:
        return detectable_nats(noise, seeds, alpha=settings.alpha, power=settings.power, comparisons=comparisons)

    return Detectable(seeds=seeds, two_rows_nats=nats(1), any_pair_nats=nats(pairs))


def _separation(rows: tuple[Row, Row], known: "_Known | None", settings: PlanSettings) -> Separation:
    first, second = rows
    base = Separation(rows=rows)
    if first.model == second.model:
        return replace(base, obstacle="never: they are one model by symmetry, and differ by chance alone")
    difference = settings.difference_nats
    if difference is None:
        if not first.losses or not second.losses:
            return replace(
                base,
                obstacle="unknown how far they are apart: give plan.difference_nats, or run a seed of each",
            )
        difference = abs(fmean(first.losses.values()) - fmean(second.losses.values()))
        base = replace(base, observed=True)
    base = replace(base, difference_nats=difference)
    if known is None:
        return replace(base, obstacle="unknown: it takes the noise between seeds")
    noise = known.without([first.model, second.model])
    seeds = seeds_to_separate(noise, difference, alpha=settings.alpha, power=settings.power) if difference else None
    if seeds is None:
        return replace(base, obstacle="too near each other: no number of seeds that could be paid separates them")
    parts = [(row.cells[0], max(0, seeds - len(row.losses))) for row in rows]
    hours = [cell.hours(cell.spec.train_steps) for cell, _ in parts]
    known_hours = [runs * each for (_, runs), each in zip(parts, hours, strict=True) if each is not None]
    return replace(
        base,
        seeds=seeds,
        runs=sum(runs for _, runs in parts),
        hours=math.fsum(known_hours) if len(known_hours) == len(parts) else None,
    )


# --- noise --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """The noise, and how many of its degrees of freedom are from the request's own models: a comparison of two of them
    brings those by itself."""

    noise: Noise
    dof_of: Mapping[tuple[object, ...], int]

    def without(self, compared: Iterable[tuple[object, ...]]) -> Noise:
        """The noise as the other rows know it; its size stays the best guess that there is."""
        return replace(self.noise, dof=self.noise.dof - sum(self.dof_of.get(model, 0) for model in compared))


def _known_here(rows: Sequence[Row], store: Store) -> _Known | None:
    """From the request's own finished runs; rows that are one model are replicates of each other."""
    losses: dict[tuple[object, ...], dict[str, float]] = {}
    for row in rows:
        losses.setdefault(row.model, {}).update(row.losses)
    several = {model: list(found.values()) for model, found in losses.items() if len(found) > 1}
    return _pooled(several, f"the request's own finished runs in {store.root}")


def _known_elsewhere(rows: Sequence[Row], store: Store) -> _Known | None:
    """From other runs in the store with the same data and length as one of the rows; the rows' own models may be among
    them, on other seeds."""
    wanted = {json.dumps([encode(value) for value in row.grid_comparison]) for row in rows}
    own = {_but_for_seeds(_as_recorded(cell.spec)): row.model for row in rows for cell in row.cells[:1]}
    losses: dict[tuple[object, ...], list[float]] = {}
    for run_id in store.run_ids():
        with contextlib.suppress(StoreError):
            record = store.record(run_id)
            spec = None if record is None else record.get("spec")
            if record is None or not isinstance(spec, dict) or _comparable(spec) not in wanted:
                continue
            loss = record["metrics"].get(LOSS)
            if record["status"] == "done" and isinstance(loss, float):
                same = _but_for_seeds(spec)
                losses.setdefault(own.get(same, (same,)), []).append(loss)
    several = {model: found for model, found in losses.items() if len(found) > 1}
    known = _pooled(several, f"other finished runs in {store.root}, of the same data and length")
    if known is None:
        return None
    models = set(own.values())
    return replace(known, dof_of={model: dof for model, dof in known.dof_of.items() if model in models})


def _as_recorded(spec: RunSpec) -> dict[str, Any]:
    encoded: dict[str, Any] = json.loads(json.dumps(encode(spec)))
    return encoded


def _but_for_seeds(spec: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in spec.items() if key not in _SEEDS}, sort_keys=True)


def _pooled(losses: Mapping[tuple[object, ...], Sequence[float]], where: str) -> _Known | None:
    runs = sum(map(len, losses.values()))
    source = f"{where}: {runs} runs of {len(losses)} model{'s' * (len(losses) != 1)}"
    noise = noise_of_records(list(losses.values()), source)
    if noise is None or noise.sd_nats == 0:  # no two runs of different seeds come to the same loss
        return None
    return _Known(noise, {model: len(found) - 1 for model, found in losses.items()})


# What has to be alike for the noise of one run to say something about that of another.
_COMPARABLE = ("data", "stop", "train_tokens", "batch_tokens", "seq_len", "dtype")


def _comparable(spec: Mapping[str, Any]) -> str:
    return json.dumps([spec.get(name) for name in _COMPARABLE])
