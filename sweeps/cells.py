"""A request's cells: named rows x grid x seeds, each read into a run."""

import contextlib
import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

from hybrid.config import SURROUNDINGS, Resolved, read_config
from hybrid.decode import decode, did_you_mean
from hybrid.layout import parse_ratio
from hybrid.spec import ConfigError
from sweeps.compose import Composer, Setting, as_override
from sweeps.identity import cell_name, run_id, short_keys, show_value
from sweeps.store import Candidate, Cell, Request, Tuning, now
from sweeps.tune import Choices, Tune, chosen_candidate, metric_of, read_tune, seeds_problem, settle, tuning_name

UNNAMED = "unnamed"
OF_THE_COMMAND = (*(section for section in SURROUNDINGS if section != "sweep"), "exec")
"""Settings that change how a request is carried out, not which cells it has."""
_SEEDS = ("init_seed", "data_seed")
_MAX_CELLS_NAMED = 4
_MAX_CELLS = 100_000
_EVERY_ROW = "*"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a sweep file says for its tables: see `python -m analysis tables --help`.

    `across` is a setting of the grid whose values stand side by side, where runs race to a threshold.
    """

    title: str | None = None
    caption: str | tuple[str, ...] | None = None
    metric: str | None = None
    figure: Literal["survival", "curves"] | None = None
    row_header: str | None = None
    across: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The `sweep` section of a configuration."""

    name: str | None
    seeds: Any
    only: Any
    rows: Any
    grid: Any
    at: Any
    of: tuple[str, ...]
    tune: Any
    report: ReportConfig


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """A cell with the run that it stands for, and the overrides that plain Hydra composes to the same configuration.

    An untuned cell has `candidates` and no run yet: the candidate with the middle values stands in for it where only
    costs are asked for. `plan` is the `plan` section of this very cell, which its scale may have a say in.
    """

    cell: Cell
    resolved: Resolved
    arguments: tuple[str, ...]
    candidates: "tuple[CellRun, ...]" = ()
    plan: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_untuned(self) -> bool:
        """Whether it is not known yet which of the candidates this cell is."""
        return self.cell.run_id is None

    @property
    def is_tuning(self) -> bool:
        """Whether this is a tuning run, of which nothing is reported but what it chose."""
        return bool(self.cell.tuned) and not self.cell.candidates

    @cached_property
    def run_id(self) -> str:
        """The id of `resolved.run`: the cell's, or of an untuned cell that of its stand-in."""
        return run_id(self.resolved.run) if self.cell.run_id is None else self.cell.run_id


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """A request with its cells' runs, in the order of rows, grid, seeds, after its tuning runs; `config` is what all
    cells share."""

    request: Request
    runs: tuple[CellRun, ...]
    config: Mapping[str, Any]

    def settled(self, choices: Choices) -> "Expansion":
        """The expansion with the run of every cell whose choice is made."""
        if not self.request.tuning:
            return self
        return replace(self, request=settle(self.request, choices), runs=tuple(_settled(r, choices) for r in self.runs))


def _settled(run: CellRun, choices: Choices) -> CellRun:
    index = chosen_candidate(run.cell, choices) if run.is_untuned else None
    return run if index is None else run.candidates[index]


def expand(arguments: Sequence[str], composer: Composer, *, stdlib_fingerprint: Callable[[], str]) -> Expansion:
    """Everything that `python run.py -m ARGUMENTS` asks for.

    Raises ConfigError with the problems of all cells at once, each said once with the cells that have it.
    """
    settings = [_plain_if_there(setting, composer) for setting in composer.parse(arguments)]
    base = [s.text for s in settings if s.structural and not s.swept]
    config = composer.merge(base, [(s.key, s.values[0]) for s in settings if not s.structural and not s.swept])
    sweep = decode(SweepConfig, config["sweep"], "sweep")
    name = _name(sweep, settings)
    if sweep.of:
        return _expand_all(sweep, name, config, arguments, settings, composer, stdlib_fingerprint)
    rows = _rows(sweep, name)
    seeds = _seeds(sweep.seeds)
    axes = _axes(sweep, settings, rows, seeds)
    count = len(rows) * len(seeds) * math.prod(map(len, axes.values()))
    if count > _MAX_CELLS:
        raise ConfigError(f"sweep {name}: {count:,} cells: expected at most {_MAX_CELLS:,}; fewer seeds or values")
    tune = _tune(sweep, settings, rows, axes, composer)
    plain = [(s.key, s.values[0]) for s in settings if not s.structural and not s.swept and s.key not in axes]
    reader = _Reader(composer=composer, base=base, sweep=sweep, plain=plain, stdlib_fingerprint=stdlib_fingerprint)
    shorts = short_keys([*axes, *(tune.settings if tune else ())])
    runs: list[CellRun] = []
    tuning_runs: list[CellRun] = []
    for (row_name, row), *values in itertools.product(rows.items(), *axes.values()):
        place = _Place(row_name=row_name, row=row, axes=dict(zip(axes, values, strict=True)))
        if tune is not None:
            if not reader.knows(place, tune):
                continue
            tuning_runs += reader.tuning_runs(place, tune, list(shorts))
        for seed in seeds:
            label = cell_name(row_name, place.axes, seed, shorts)
            found = reader.run(place, label, seed) if tune is None else reader.untuned(place, label, seed, tune)
            runs += [found] if found is not None else []
    tuning = () if tune is None else _tuning(tune, runs, tuning_runs, reader)
    reader.raise_problems()
    if not runs:
        raise ConfigError(f"sweep {name}: no cells are left: sweep.at leaves every row out here")
    request = _request(sweep, name, settings, runs, tuning)
    return Expansion(request=request, runs=(*tuning_runs, *runs), config=config)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A row at one point of the grid."""

    row_name: str
    row: Row
    axes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Reads cells one after the other, and keeps what is wrong: a problem once, with the cells that have it."""

    composer: Composer
    base: Sequence[str]
    sweep: SweepConfig
    plain: Sequence[tuple[str, Any]]
    stdlib_fingerprint: Callable[[], str]
    problems: dict[str, list[str]] = field(default_factory=dict)

    def run(
        self,
        place: _Place,
        label: str,
        seed: int | None,
        tuned: Mapping[str, Any] | None = None,
        at: Mapping[str, Any] | None = None,
    ) -> CellRun | None:
        """The cell with these tuned values and settings of tuning runs alone; None where it is left out or wrong."""
        try:
            chosen = _settings(self.composer, self.base, place, self.sweep, seed, self.plain, at or {}, tuned or {})
            if chosen is None:
                return None
            config = self.composer.merge(chosen.structural, chosen.values)
            resolved = read_config(
                config,
                stdlib_fingerprint=self.stdlib_fingerprint,
                reference=partial(_reference, self.composer, chosen.structural, chosen.shared_values),
            )
        except ConfigError as error:
            for problem in error.problems:
                self.problem(problem, label)
            return None
        cell = Cell(
            name=label,
            row=place.row_name,
            axes=place.axes,
            seed=seed,
            run_id=run_id(resolved.run),
            tuned=dict(tuned or {}),
        )
        return CellRun(cell=cell, resolved=resolved, arguments=_alone(chosen), plan=config["plan"])

    def untuned(self, place: _Place, label: str, seed: int | None, tune: Tune) -> CellRun | None:
        """The cell before its tuning, with every run that it may turn out to be."""
        found = [self.run(place, label, seed, tuned) for tuned in tune.candidates]
        runs = [run for run in found if run is not None]
        if len(runs) < len(found):
            return None
        self._check_different(runs, label, tune)
        candidates = tuple(Candidate(values=run.cell.tuned, run_id=run.run_id) for run in runs)
        middle = runs[tune.middle]
        return CellRun(
            cell=replace(middle.cell, run_id=None, tuned={}, candidates=candidates),
            resolved=middle.resolved,
            arguments=middle.arguments,
            plan=middle.plan,
            candidates=tuple(replace(run, cell=replace(run.cell, candidates=candidates)) for run in runs),
        )

    def tuning_runs(self, place: _Place, tune: Tune, keys: Sequence[str]) -> list[CellRun]:
        """The tuning runs of a row at one point of the grid: every candidate on every tuning seed."""
        runs = []
        for seed in tune.seeds:
            found = []
            at = {**tune.at, **dict.fromkeys(_SEEDS, seed)}
            for tuned in tune.candidates:
                label = tuning_name(place.row_name, place.axes, tuned, seed, keys)
                run = self.run(place, label, seed, tuned, at)
                found += [run] if run is not None else []
            self._check_different(found, tuning_name(place.row_name, place.axes, {}, seed, keys), tune)
            runs += found
        return runs

    def knows(self, place: _Place, tune: Tune) -> bool:
        """Whether what is tuned is a setting here: said of a row once, and not of every value and seed."""
        structural, values = _split(self.composer, [*place.row.items(), *place.axes.items()])
        firsts = {key: tried[0] for key, tried in tune.settings.items()}
        known = True
        with contextlib.suppress(ConfigError):
            self.composer.merge([*self.base, *structural], values)
            for where, settings in (("sweep.tune", firsts), ("sweep.tune.at", tune.at)):
                own_structural, own_values = _split(self.composer, settings.items())
                try:
                    self.composer.merge([*self.base, *structural, *own_structural], [*values, *own_values])
                except ConfigError as error:
                    known = False
                    for problem in error.problems:
                        self.problem(f"{where}.{problem}", place.row_name or "every cell")
        return known  # what is wrong with the row itself, its cells say

    def problem(self, problem: str, label: str) -> None:
        self.problems.setdefault(problem, []).append(label)

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigError([_with_cells(problem, names) for problem, names in self.problems.items()])

    def _check_different(self, runs: Sequence[CellRun], label: str, tune: Tune) -> None:
        if len({run.run_id for run in runs}) < len(runs):
            tried = ", ".join(tune.settings)
            self.problem(f"sweep.tune: {tried}: expected values that make a difference: two give the same run", label)


def _tuning(tune: Tune, runs: Sequence[CellRun], tuning_runs: Sequence[CellRun], reader: _Reader) -> tuple[Tuning, ...]:
    """How these runs are tuned, once it is sure that they are not tuned on what they are to report."""
    seeds = {seed for run in runs for seed in (run.resolved.run.init_seed, run.resolved.run.data_seed)}
    try:
        metric = metric_of(tune, all_stop=all(run.resolved.run.stop is not None for run in tuning_runs))
    except ConfigError as error:
        reader.problems.update({problem: [] for problem in error.problems})
        return ()
    overlap = seeds_problem(tune.seeds, seeds)
    if overlap is not None:
        reader.problems[overlap] = []
    return (
        Tuning(
            settings=tune.settings,
            per=tune.per,
            metric=metric,
            cells=tuple(run.cell for run in tuning_runs),
        ),
    )


def _tune(
    sweep: SweepConfig,
    settings: Sequence[Setting],
    rows: Mapping[str, Row],
    axes: Mapping[str, Any],
    composer: Composer,
) -> Tune | None:
    """What `sweep.tune` asks for; None where it is null. Raises ConfigError with all that is wrong with it."""
    given = sweep.tune if isinstance(sweep.tune, Mapping) else {}
    at = given.get("at")
    problems: list[str] = []
    for where, of_cells in (("sweep.tune", given), ("sweep.tune.at", at if isinstance(at, Mapping) else {})):
        try:
            _check_settings(where, of_cells)
        except ConfigError as error:
            problems += error.problems
        problems += [f"{where}.{key}: expected sweep.tune.seeds instead" for key in _SEEDS if key in of_cells]
    problems += [
        f"sweep.tune.{key}: expected a setting at equal cost: of two budgets the larger one would win"
        for key in given
        if str(key).split(".")[0] == "budget"
    ]
    try:
        tune = read_tune(sweep.tune, _taken(given, sweep, settings, rows, axes, composer))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tune


def _taken(
    tuned: Mapping[str, Any],
    sweep: SweepConfig,
    settings: Sequence[Setting],
    rows: Mapping[str, Row],
    axes: Mapping[str, Any],
    composer: Composer,
) -> dict[str, str]:
    """Who sets each setting that is to be tuned, of those that something else sets."""
    given = [(s.key, f"{s.text} on the command line") for s in settings if not s.key.startswith("sweep.")]
    given += [(f"{key}", f"row {label}") for label, row in rows.items() for key in row]
    given += [(key, "the grid") for key in axes]
    for condition, by_row in (sweep.at or {}).items():
        if isinstance(by_row, Mapping):
            given += [(f"{key}", f"sweep.at.{condition}") for row in by_row.values() for key in row or ()]
    taken: dict[str, str] = {}
    for key in map(str, tuned):
        for other, by in given:
            if _overlap(key, other.lstrip("+~"), composer):
                taken.setdefault(key, by)
    return taken


def _overlap(key: str, other: str, composer: Composer) -> bool:
    """Whether two settings are one, or one a part of the other; a group's choice leaves its settings free."""
    if key == other:
        return True
    longer, shorter = (key, other) if len(key) > len(other) else (other, key)
    return longer.startswith(f"{shorter}.") and not composer.is_group(shorter)


def _request(
    sweep: SweepConfig, name: str, settings: Sequence[Setting], runs: Sequence[CellRun], tuning: tuple[Tuning, ...]
) -> Request:
    return Request(
        sweep=name,
        overrides=tuple(s.text for s in settings if not _is_surrounding(s)),
        created_at=now(),
        report={key: value for key, value in asdict(sweep.report).items() if value is not None},
        cells=tuple(run.cell for run in runs),
        tuning=tuning,
    )


def _expand_all(
    sweep: SweepConfig,
    name: str,
    config: Mapping[str, Any],
    arguments: Sequence[str],
    settings: Sequence[Setting],
    composer: Composer,
    stdlib_fingerprint: Callable[[], str],
) -> Expansion:
    """A sweep of sweeps: the cells of each, their rows named after it; what is given besides holds for all of them."""
    own = [f"sweep.{key}" for key in ("rows", "grid", "at", "only") if getattr(sweep, key)]
    if own:
        raise ConfigError(f"sweep {name}: {', '.join(own)} beside sweep.of: expected none: its sweeps have their own")
    others = [text for text in arguments if text.partition("=")[0].lstrip("+") not in ("sweep", "sweep.of")]
    for_all = [
        as_override(f"sweep.{key}", getattr(sweep, key)) for key in ("seeds", "tune") if getattr(sweep, key) is not None
    ]
    tuning_runs: list[CellRun] = []
    runs: list[CellRun] = []
    tuning: list[Tuning] = []
    problems = [f"sweep.of: {text} is there twice" for text, times in Counter(sweep.of).items() if times > 1]
    keys = {other.partition("=")[0]: other for other in others}
    for text in sweep.of:
        first, *overrides = shlex.split(text)
        twice = [keys[key] for key in (override.partition("=")[0] for override in overrides) if key in keys]
        if twice:
            problems.append(f"{', '.join(twice)}: sweep.of sets this itself for {text}: ask for its sweeps one by one")
            continue
        try:
            expansion = expand(
                [f"+sweep={first}", *for_all, *overrides, *others], composer, stdlib_fingerprint=stdlib_fingerprint
            )
        except ConfigError as error:
            problems += [f"{text}: {problem}" for problem in error.problems]
            continue
        for run in expansion.runs:
            (tuning_runs if run.is_tuning else runs).append(_run_under(text, run))
        for one in expansion.request.tuning:
            tuning.append(replace(one, cells=tuple(_cell_under(text, cell) for cell in one.cells)))
    if problems:
        raise ConfigError(problems)
    request = _request(sweep, name, settings, runs, tuple(tuning))
    return Expansion(request=request, runs=(*tuning_runs, *runs), config=config)


def _run_under(text: str, run: CellRun) -> CellRun:
    candidates = tuple(_run_under(text, candidate) for candidate in run.candidates)
    return replace(run, cell=_cell_under(text, run.cell), candidates=candidates)


def _cell_under(text: str, cell: Cell) -> Cell:
    return replace(cell, name=f"{text}/{cell.name}", row=f"{text}/{cell.row}")


# What a scale says of every model of it; the rest of `model` says which model that is.
_DIMENSIONS = (
    "reference_depth",
    "d_model",
    "vocab_size",
    "tie_embeddings",
    "norm_eps",
    "init_std",
    "attention",
    "mamba",
    "intra",
    "window",
    "ffn",
)


def _reference(
    composer: Composer, structural: Sequence[str], shared_values: Sequence[tuple[str, Any]], name: str
) -> dict[str, Any]:
    """The configuration of a cell with another model: dimensions that are set for every row hold for it too."""
    others = [text for text in structural if re.split(r"[=@./]", text.lstrip("+~"))[0] != "model"]
    kept = [(key, value) for key, value in shared_values if _holds_for_all_models(key)]
    return composer.merge([*others, as_override("model", name)], kept)


def _holds_for_all_models(key: str) -> bool:
    first, *rest = key.split(".")
    return first != "model" or bool(rest and rest[0] in _DIMENSIONS)


def reference_models(arguments: Sequence[str], composer: Composer) -> Callable[[str], Mapping[str, Any]]:
    """What `budget.match` can name, for the single run of these arguments."""
    settings = [_plain_if_there(setting, composer) for setting in composer.parse(arguments)]
    structural = [s.text for s in settings if s.structural]
    values = [(s.key, s.values[0]) for s in settings if not s.structural]
    return partial(_reference, composer, structural, values)


def _plain_if_there(setting: Setting, composer: Composer) -> Setting:
    """`++key=value` of a key that is there means `key=value`, and is checked like it."""
    if not setting.key.startswith("++") or composer.is_group(setting.key[2:]):
        return setting
    node: Any = composer.compose([])
    for part in setting.key[2:].split("."):
        if not isinstance(node, Mapping) or part not in node:
            return setting
        node = node[part]
    return replace(setting, key=setting.key[2:], structural=False)


def _is_surrounding(setting: Setting) -> bool:
    key = setting.key.lstrip("+~")
    return key == "sweep" or key.replace("/", ".").split(".")[0] in OF_THE_COMMAND


def _alone(chosen: "_Chosen") -> tuple[str, ...]:
    values = [(key, value) for key, value in chosen.values if key.split(".")[0] != "sweep"]
    return *chosen.structural, *(as_override(key, value) for key, value in values)


def _with_cells(problem: str, names: list[str]) -> str:
    if not names:
        return problem
    listed = ", ".join(names[:_MAX_CELLS_NAMED])
    more = len(names) - _MAX_CELLS_NAMED
    return f"{problem} [in {listed}{f' and {more} more' if more > 0 else ''}]"


def _name(sweep: SweepConfig, settings: Sequence[Setting]) -> str:
    chosen = [s for s in settings if s.key.lstrip("+") == "sweep"]
    if len(chosen) > 1 or any(s.swept or not isinstance(s.values[0], str) for s in chosen):
        raise ConfigError(f"{chosen[0].text}: expected one sweep; ask for each on its own")
    if sweep.name is None:
        if chosen:
            raise ConfigError(
                f"{chosen[0].text}: its file says no sweep.name; expected one, such as {chosen[0].values[0]}"
            )
        return UNNAMED
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", sweep.name):
        raise ConfigError(f"sweep.name = {sweep.name!r}: expected letters, digits, '_', '-' and '.'")
    return sweep.name


def _check_settings(where: str, settings: object) -> None:
    """Raises ConfigError for what cannot be the settings of a row."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where} = {settings!r}: expected settings, such as {{model.ratio: 1:12}}")
    problems = []
    for key in settings:
        if not isinstance(key, str) or not key:
            problems.append(f"{where}: {key!r}: expected the name of a setting")
        elif key.replace("/", ".").split(".")[0] in SURROUNDINGS:
            problems.append(f"{where}.{key}: not a setting of a cell: give it on the command line, for all of them")
    if problems:
        raise ConfigError(problems)


def _rows(sweep: SweepConfig, name: str) -> dict[str, Row]:
    rows = sweep.rows or {}
    where = f"sweep {name}"
    if not isinstance(rows, Mapping):
        raise ConfigError(f"{where}: rows = {rows!r}: expected names, each with its settings")
    for label, row in rows.items():
        if not isinstance(label, str):
            raise ConfigError(f"{where}: row {label!r}: expected a name in quotes (YAML reads a bare 1:12 as 72)")
        _check_settings(f"{where}: row {label}", {} if row is None else row)
    named = {label: row or {} for label, row in rows.items()}
    if sweep.name is not None and not named:
        raise ConfigError(f"{where}: rows is empty: expected at least one named row")
    if sweep.only is None:
        return named or {"": {}}
    only = [show_value(label) for label in (sweep.only if isinstance(sweep.only, list) else [sweep.only])]
    unknown = [label for label in only if label not in named]
    if unknown or not only:
        nearest = did_you_mean(unknown[0] if unknown else "", named)
        raise ConfigError(f"sweep.only = {sweep.only!r}: expected names of rows of {where}{nearest}")
    return {label: row for label, row in named.items() if label in only}


def _seeds(seeds: object) -> list[int | None]:
    match seeds:
        case None:
            return [None]
        case bool():
            pass
        case int() if 1 <= seeds <= _MAX_CELLS:
            return list(range(1, seeds + 1))
        case list() if seeds and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
            if len(set(seeds)) == len(seeds):
                return list(seeds)
        case _:
            pass
    raise ConfigError(
        f"sweep.seeds = {seeds!r}: expected a number of seeds from 1 to {_MAX_CELLS}, or a list of different seeds"
    )


def _axes(
    sweep: SweepConfig, settings: Sequence[Setting], rows: Mapping[str, Row], seeds: Sequence[int | None]
) -> dict[str, tuple[Any, ...]]:
    """The grid, its values replaced where the command line sets the same key, and the command line's own axes."""
    grid = sweep.grid or {}
    _check_settings("sweep.grid", grid)
    if not all(isinstance(values, list) and values for values in grid.values()):
        raise ConfigError(f"sweep.grid = {grid!r}: expected settings, each with a list of at least one value")
    axes = {str(key): tuple(values) for key, values in grid.items()}
    row_keys = {key for row in rows.values() for key in row}
    problems = []
    for setting in settings:
        if setting.key in row_keys:
            problems.append(
                f"{setting.text}: the rows of sweep {sweep.name} set {setting.key} themselves; "
                f"choose among them with sweep.only=[...] (rows: {', '.join(rows)})"
            )
        elif setting.key in _SEEDS and seeds != [None]:
            problems.append(
                f"{setting.text}: the sweep sets the seeds itself; give sweep.seeds, as a number or as a list"
            )
        elif setting.swept or setting.key in axes:
            axes[setting.key] = setting.values
        if setting.swept and setting.key.startswith("sweep."):
            listed = setting.text.partition("=")[2]
            problems.append(f"{setting.text}: expected one value; for several write {setting.key}=[{listed}]")
        elif setting.swept and _is_surrounding(setting):
            problems.append(f"{setting.text}: expected one value: it does not change what a run is")
    axes = {key: tuple(_readable(key, value) for value in values) for key, values in axes.items()}
    for key, values in axes.items():
        if len({repr(value) for value in values}) < len(values):
            problems.append(f"{key} = {list(values)}: a value is repeated")
    if problems:
        raise ConfigError(problems)
    return axes


def _readable(key: str, value: Any) -> Any:
    """A ratio as people write it, whatever YAML made of it; other values as they are."""
    if key.rpartition(".")[2] == "ratio":
        with contextlib.suppress(ConfigError):
            return str(parse_ratio(value))
    return value


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """One cell's structural overrides and values, later ones winning; `shared_values` are those that are not its row's
    own."""

    structural: list[str]
    values: list[tuple[str, Any]]
    shared_values: list[tuple[str, Any]]


def _settings(
    composer: Composer,
    base: Sequence[str],
    place: _Place,
    sweep: SweepConfig,
    seed: int | None,
    plain: Sequence[tuple[str, Any]],
    tuning_at: Mapping[str, Any],
    tuned: Mapping[str, Any],
) -> _Chosen | None:
    """What makes a cell: row, `sweep.at`, grid, seeds, command line, then what is set for tuning runs and tuned.

    None where `sweep.at` leaves the row out.
    """
    seeds = [] if seed is None else [(key, seed) for key in _SEEDS]
    structural, values = _split(composer, place.row.items())
    axis_structural, axis_values = _split(composer, place.axes.items())
    tuning_structural, tuning_values = _split(composer, tuning_at.items())
    tuned_structural, tuned_values = _split(composer, tuned.items())
    structural = [*base, *structural, *axis_structural]
    last_structural = [*tuning_structural, *tuned_structural]
    shared = [*axis_values, *seeds, *plain, *tuning_values]
    if sweep.at:
        config = composer.merge([*structural, *last_structural], [*values, *shared, *tuned_values])
        conditional = _conditional(sweep, place.row_name, config)
        if conditional is None:
            return None
        at_structural, at_values = _split(composer, conditional.of_the_row)
        every_structural, every_values = _split(composer, conditional.of_every_row)
        structural = [*structural, *every_structural, *at_structural]
        values = [*values, *every_values, *at_values]
        shared_values = [*every_values, *shared]
    else:
        shared_values = shared
    return _Chosen(
        structural=[*structural, *last_structural],
        values=[*values, *shared, *tuned_values],
        shared_values=shared_values,
    )


@dataclass(frozen=True, kw_only=True)
class _Conditional:
    """What `sweep.at` sets for a cell: of every row, and of its own, which wins."""

    of_every_row: list[tuple[str, Any]]
    of_the_row: list[tuple[str, Any]]


def _conditional(sweep: SweepConfig, row_name: str, config: Mapping[str, Any]) -> _Conditional | None:
    """The settings of `at` whose condition this configuration meets; None where one of them leaves the row out."""
    row_names = [show_value(name) for name in sweep.rows]
    found = _Conditional(of_every_row=[], of_the_row=[])
    for condition, by_row in sweep.at.items():
        if not isinstance(by_row, Mapping):
            raise ConfigError(f"sweep.at.{condition}: expected rows with their settings")
        labels = [label for label in map(show_value, by_row) if label != _EVERY_ROW]
        unknown = [label for label in labels if label not in row_names]
        if unknown:
            raise ConfigError(f"sweep.at.{condition}.{unknown[0]}: no such row{did_you_mean(unknown[0], row_names)}")
        if not _holds(str(condition), config):
            continue
        for label, settings in by_row.items():
            if show_value(label) in (row_name, _EVERY_ROW):
                if settings is None:
                    return None
                _check_settings(f"sweep.at.{condition}.{row_name}", settings)
                into = found.of_every_row if show_value(label) == _EVERY_ROW else found.of_the_row
                into += settings.items()
    return found


def _holds(condition: str, config: Mapping[str, Any]) -> bool:
    """Whether a configuration meets `setting=value`, or several of them with commas between."""
    for one in condition.split(","):
        key, equals, wanted = one.strip().partition("=")
        value: Any = config
        for part in key.split("."):
            if not equals or not isinstance(value, Mapping) or part not in value:
                raise ConfigError(
                    f"sweep.at.{condition}: there is no setting {key}; expected setting=value, or several with commas"
                )
            value = value[part]
        if show_value(value) != wanted and not _same_number(value, wanted):
            return False
    return True


def _same_number(value: object, wanted: str) -> bool:
    """Whether a number is the one that is wanted, however each is written: 2e20, 2.0e+20."""
    try:
        return not isinstance(value, bool) and float(str(value)) == float(wanted)
    except ValueError:
        return False


def _split(composer: Composer, settings: Iterable[tuple[str, Any]]) -> tuple[list[str], list[tuple[str, Any]]]:
    structural, values = [], []
    for key, value in settings:
        if key[0] in "+~" or composer.is_group(key):
            structural.append(as_override(key, value))
        else:
            values.append((key, value))
    return structural, values
