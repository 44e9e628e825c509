"""Fair tuning: every row tries the same values, in as many runs on the same seeds, and takes those that came out best.

What is chosen is a function of the tuning runs' records alone. Records are never modified, so a choice stays, and a
request that is written down before anything runs needs to say nothing of it.
"""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import fmean
from typing import Any, Final, Literal

from hybrid.budget import parse_count
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError
from sweeps.identity import cell_name, short_keys, show_value
from sweeps.store import Cell, CellStatus, Records, Request, Status, StoreError, Tuning

UNTUNED: Final = "untuned"
TUNE: Final = "tune"  # what the names of tuning runs have in them
FIRST_SEED: Final = 1001
# What a record says of how well a run went; better is lower, or higher.
METRICS: Final[Mapping[str, Literal["lower", "higher"]]] = {
    "val_loss_nats": "lower",
    "train_loss_nats": "lower",
    "val_bits_per_byte": "lower",
    "val_accuracy": "higher",
    "steps_to_threshold": "lower",
}
TO_THRESHOLD: Final = "steps_to_threshold"
LOSS: Final = "val_loss_nats"
_OWN_KEYS: Final = ("per", "seeds", "metric", "at")


# --- what a sweep asks for ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tune:
    """`sweep.tune`, read: the values to try of each setting, smallest first, and how to choose among them.

    `at` are settings of the tuning runs alone. `metric` None: steps to the threshold where all runs have one, else the
    validation loss.
    """

    settings: Mapping[str, tuple[Any, ...]]
    per: Literal["row", "sweep"]
    seeds: tuple[int, ...]
    metric: str | None
    at: Mapping[str, Any]

    @property
    def candidates(self) -> tuple[Mapping[str, Any], ...]:
        """Every combination of the settings' values."""
        return tuple(
            dict(zip(self.settings, values, strict=True)) for values in itertools.product(*self.settings.values())
        )

    @property
    def middle(self) -> int:
        """Which candidate has the middle value of every setting."""
        index = 0
        for values in self.settings.values():
            index = index * len(values) + len(values) // 2
        return index


def read_tune(given: object, taken: Mapping[str, str]) -> Tune | None:
    """Read `sweep.tune`; None where it is null. `taken` says of settings that are not free who sets them.

    Raises ConfigError with everything that is wrong.
    """
    if given is None:
        return None
    where = "sweep.tune"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} = {given!r}: expected settings with values to try, such as {_EXAMPLE}, or null")
    problems: list[str] = []
    settings: dict[str, tuple[Any, ...]] = {}
    for key, values in given.items():
        if key in _OWN_KEYS:
            continue
        if not isinstance(key, str) or not isinstance(values, list):
            problems.append(
                f"{where}.{key} = {values!r}: expected a setting with a list of at least two values, or one of "
                f"{', '.join(_OWN_KEYS)}{_near(key)}"
            )
            continue
        problems += [f"{where}.{key}: {problem}" for problem in _values_problems(values)]
        if key in taken:
            problems.append(
                f"{where}.{key}: {taken[key]} sets it: expected a setting that nothing else sets, as each row is to "
                "have the value that is best for it"
            )
        settings[key] = tuple(sorted(values, key=lambda v: _magnitude(v) or 0.0)) if _ordered(values) else tuple(values)
    if not settings and not problems:
        problems.append(f"{where} = {dict(given)!r}: expected at least one setting, such as {_EXAMPLE}")
    per, metric, at = given.get("per", "row"), given.get("metric"), given.get("at") or {}
    if per not in ("row", "sweep"):
        problems.append(f"{where}.per = {per!r}: expected row (each its own choice) or sweep (one for all rows)")
    if metric is not None and metric not in METRICS:
        problems.append(f"{where}.metric = {metric!r}: expected one of a record{did_you_mean(metric, METRICS)}")
    if not isinstance(at, Mapping):
        problems.append(f"{where}.at = {at!r}: expected settings of the tuning runs, such as {{budget.tokens: 10B}}")
        at = {}
    problems += [f"{where}.at.{key}: expected a setting that is not tuned" for key in at if key in settings]
    seeds = _seeds(given.get("seeds", 1), problems)
    if problems:
        raise ConfigError(problems)
    return Tune(settings=settings, per=per, seeds=seeds, metric=metric, at=dict(at))


_EXAMPLE = "{optim.lr: [1e-3, 3e-3, 1e-2], per: row}"


def _near(key: object) -> str:
    return did_you_mean(key, _OWN_KEYS) if isinstance(key, str) and "." not in key else ""


def _values_problems(values: Sequence[object]) -> list[str]:
    """What is wrong with the values to try of one setting."""
    if len(values) < 2:
        return [f"{values!r}: expected at least two values to choose from"]
    seen: dict[object, object] = {}
    problems = []
    for value in values:
        size = _magnitude(value)
        key = repr(value) if size is None else size
        if key in seen:
            problems.append(f"{value!r} is repeated" + (f" (as {seen[key]!r})" if seen[key] != value else ""))
        seen.setdefault(key, value)
    return problems


def _seeds(seeds: object, problems: list[str]) -> tuple[int, ...]:
    match seeds:
        case bool():
            pass
        case int() if seeds >= 1:
            return tuple(range(FIRST_SEED, FIRST_SEED + seeds))
        case list() if seeds and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds):
            if len(set(seeds)) == len(seeds):
                return tuple(seeds)
        case _:
            pass
    problems.append(
        f"sweep.tune.seeds = {seeds!r}: expected a number of seeds of at least 1 (counted from {FIRST_SEED}), "
        "or a list of different seeds"
    )
    return ()


def seeds_problem(tuning_seeds: Sequence[int], final_seeds: set[int]) -> str | None:
    """What is wrong where a seed is both tuned on and reported; None where the two are separate."""
    both = [seed for seed in tuning_seeds if seed in final_seeds]
    if not both:
        return None
    free = next(seed for seed in itertools.count(FIRST_SEED) if seed not in final_seeds)
    return (
        f"sweep.tune.seeds = {show_value(list(tuning_seeds))}: {', '.join(map(str, both))} "
        f"{'is a seed' if len(both) == 1 else 'are seeds'} of the sweep itself: expected seeds that nothing is "
        f"reported of, such as [{free}]"
    )


def _magnitude(value: object) -> float | None:
    """How large a value is, however it is written; None where it is no number."""
    match value:
        case bool() | None:
            return None
        case int() | float():
            return float(value)
        case str():
            try:
                return float(value)
            except ValueError:
                pass
            try:
                return float(parse_count(value, ""))
            except ConfigError:
                return None
        case _:
            return None


def _ordered(values: Sequence[object]) -> bool:
    return all(_magnitude(value) is not None for value in values)


# --- what the records say -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What tuning has come to for `of`, a row at one point of the grid or all rows.

    `values` is None where there is no choice, and `reason` says why. `settled`: all tuning runs have ended with a
    result, so that nothing changes any more. `warnings` are whole sentences.
    """

    of: str
    values: Mapping[str, Any] | None
    reason: str | None
    settled: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Every choice of a request, in its order, and which of them a cell takes."""

    all: tuple[Choice, ...] = ()
    _by_place: Mapping[tuple[str, str], Choice] = field(default_factory=dict)

    def of(self, cell: Cell) -> Choice | None:
        """The choice that the cell takes its values from; None where it is not tuned."""
        return self._by_place.get(_place(cell)) if cell.candidates else None

    @property
    def are_made(self) -> bool:
        return all(choice.values is not None for choice in self.all)

    @property
    def made(self) -> list[str]:
        """A line for each choice that is made."""
        return [f"tuned: {choice.of}: {_shown(choice.values)}" for choice in self.all if choice.values is not None]

    @property
    def warnings(self) -> list[str]:
        """What people should know of the choices that were made, and of those that never can be."""
        made = [warning for choice in self.all for warning in choice.warnings]
        return made + [_untuned(choice) for choice in self.all if choice.values is None and choice.settled]

    @property
    def sentences(self) -> list[str]:
        """The warnings, and what the other choices wait for."""
        return self.warnings + [_untuned(choice) for choice in self.all if choice.values is None and not choice.settled]


def _shown(values: Mapping[str, Any]) -> str:
    shorts = short_keys(list(values))
    return ", ".join(f"{shorts[key]} = {show_value(value)}" for key, value in values.items())


def _untuned(choice: Choice) -> str:
    return f"{choice.of}: {UNTUNED}: {choice.reason}"


def _place(cell: Cell) -> tuple[str, str]:
    return cell.row, json.dumps(cell.axes, sort_keys=True)


def choose(request: Request, store: Records) -> Choices:
    """What the records say of every choice that the request waits for."""
    found: list[Choice] = []
    by_place: dict[tuple[str, str], Choice] = {}
    for tuning in request.tuning:
        places: dict[tuple[str, str], list[Cell]] = {}
        for cell in tuning.cells:
            places.setdefault(_place(cell), []).append(cell)
        groups = list(places.values()) if tuning.per == "row" else [list(tuning.cells)]
        for cells in groups:
            choice = _choose(tuning, cells, store)
            found.append(choice)
            by_place |= dict.fromkeys(map(_place, cells), choice)
    return Choices(all=tuple(found), _by_place=by_place)


def settle(request: Request, choices: Choices) -> Request:
    """The request with the run of every cell whose choice is made."""
    return replace(request, cells=tuple(settled_cell(cell, choices) for cell in request.cells))


def settled_cell(cell: Cell, choices: Choices) -> Cell:
    """The cell with its run, if its choice is made."""
    index = chosen_candidate(cell, choices)
    if index is None:
        return cell
    candidate = cell.candidates[index]
    return replace(cell, run_id=candidate.run_id, tuned=candidate.values)


def chosen_candidate(cell: Cell, choices: Choices) -> int | None:
    """Which of the cell's candidates it is; None where it has none or the choice is not made."""
    choice = choices.of(cell)
    if choice is None or choice.values is None:
        return None
    return [_key(candidate.values) for candidate in cell.candidates].index(_key(choice.values))


def status_of(cell: Cell, store: Records) -> CellStatus:
    """What became of the cell's run; "untuned" where it is not known yet which run that is."""
    return UNTUNED if cell.run_id is None else store.status(cell.run_id)


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


@dataclass(frozen=True, kw_only=True, order=True)
class _Score:
    """How well the runs with one candidate went; the least is best.

    A diverged run counts as worse than any other, one without the metric (it did not get to the threshold) as worse
    than any that has it. Ties in all of these go to the validation loss, which tells unsolved runs apart.
    """

    diverged: int
    without: int
    mean: float
    loss_nats: float


def _choose(tuning: Tuning, cells: Sequence[Cell], store: Records) -> Choice:
    of = _called(tuning, cells)
    records: list[tuple[Cell, Mapping[str, Any] | None]] = [(cell, _record(store, cell)) for cell in cells]
    if any(record is None for _, record in records):
        left = [cell for cell, record in records if record is None]
        return Choice(of=of, values=None, reason=_still_missing(left, len(cells), store), settled=False, warnings=())
    groups: dict[str, list[Mapping[str, Any]]] = {}
    values: dict[str, Mapping[str, Any]] = {}
    for cell, record in records:
        assert record is not None
        key = _key(cell.tuned)
        groups.setdefault(key, []).append(record)
        values[key] = cell.tuned
    if all(record is not None and record["status"] != "done" for _, record in records):
        reason = f"all {len(cells)} tuning runs diverged: try other values of {', '.join(tuning.settings)}"
        return Choice(of=of, values=None, reason=reason, settled=True, warnings=())
    scores = {key: _score(records, tuning.metric) for key, records in groups.items()}
    # Candidates come with the smallest values first, and min takes the first of equals.
    ordered = sorted(values, key=lambda key: _rank(tuning, values[key]))
    best = min(ordered, key=scores.__getitem__)
    chosen = values[best]
    warnings = _edges(of, tuning, chosen)
    if scores[best].without + scores[best].diverged == len(groups[best]):
        got = "reached the threshold" if tuning.metric == TO_THRESHOLD else f"has a {tuning.metric}"
        how = "the smallest values were taken" if tuning.metric == LOSS else "chosen by the validation loss"
        warnings.append(f"{of}: no tuning run {got}: {how}")
    return Choice(of=of, values=chosen, reason=None, settled=True, warnings=tuple(warnings))


def _record(store: Records, cell: Cell) -> Mapping[str, Any] | None:
    assert cell.run_id is not None
    try:
        return store.record(cell.run_id)
    except StoreError:
        return None


def _called(tuning: Tuning, cells: Sequence[Cell]) -> str:
    """What a choice's cells are called together."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    if tuning.per == "sweep" and len({_place(cell) for cell in cells}) > 1:
        return f"all {len(rows)} rows" if len(rows) > 1 else rows[0] or "all"
    return cell_name(cells[0].row, cells[0].axes, None, short_keys([*cells[0].axes, *tuning.settings]))


def _still_missing(left: Sequence[Cell], total: int, store: Records) -> str:
    """Which tuning runs have no result yet, and, of those that failed, their names."""
    statuses: dict[str, Status] = {cell.name: store.status(cell.run_id) for cell in left if cell.run_id is not None}
    counts = Counter(statuses.values())
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())
    failed = [name for name, status in statuses.items() if status in ("failed", "damaged")]
    return f"{len(left)} of {total} tuning runs have no result yet: {listed}" + (
        f" ({', '.join(failed[:_MAX_NAMED])}{', ...' if len(failed) > _MAX_NAMED else ''})" if failed else ""
    )


_MAX_NAMED = 3


def _score(records: Sequence[Mapping[str, Any]], metric: str) -> _Score:
    done = [record["metrics"] for record in records if record["status"] == "done"]
    sign = -1 if METRICS[metric] == "higher" else 1
    numbers = _finite(done, metric)
    losses = _finite(done, LOSS)
    return _Score(
        diverged=len(records) - len(done),
        without=len(done) - len(numbers),
        mean=sign * fmean(numbers) if numbers else 0.0,
        loss_nats=fmean(losses) if losses else float("inf"),
    )


def _finite(metrics: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = (entry.get(name) for entry in metrics)
    return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v)]


def _rank(tuning: Tuning, values: Mapping[str, Any]) -> tuple[int, ...]:
    """Where each value stands in the list of its setting."""
    return tuple(list(tried).index(values[key]) for key, tried in tuning.settings.items())


def _edges(of: str, tuning: Tuning, chosen: Mapping[str, Any]) -> list[str]:
    """A sentence for each number that is the least or greatest of those tried: what lies beyond may be better."""
    lines = []
    shorts = short_keys(list(tuning.settings))
    for key, tried in tuning.settings.items():
        if not _ordered(tried) or chosen[key] not in (tried[0], tried[-1]):
            continue
        edge = "smallest" if chosen[key] == tried[0] else "largest"
        lines.append(f"{of}: {shorts[key]} = {show_value(chosen[key])} is the {edge} that was tried: widen the range")
    return lines


# --- tuning runs --------------------------------------------------------------------------------


def tuning_name(row: str, axes: Mapping[str, Any], tuned: Mapping[str, Any], seed: int, keys: Sequence[str]) -> str:
    """What a tuning run is called, such as `Mamba/tune/lr=0.003/s1001`; `keys` are all that names are made of."""
    shorts = short_keys(keys)
    of = [cell_name(row, axes, None, shorts)] if row or axes else []
    return "/".join([*of, TUNE, cell_name("", tuned, seed, shorts)])


def metric_of(tune: Tune, *, all_stop: bool) -> str:
    """What the choice is made by. Raises ConfigError for the threshold of runs that have none."""
    if tune.metric is None:
        return TO_THRESHOLD if all_stop else LOSS
    if tune.metric == TO_THRESHOLD and not all_stop:
        raise ConfigError(
            f"sweep.tune.metric = {TO_THRESHOLD}: there is no threshold: expected runs with a stop rule, or {LOSS}"
        )
    return tune.metric
