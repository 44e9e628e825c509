"""A request's cells: named rows x grid x seeds, each read into a run."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from hybrid.config import Resolved, read_config
from hybrid.decode import decode, did_you_mean
from hybrid.layout import parse_ratio
from hybrid.spec import ConfigError
from sweeps.compose import Composer, Setting, as_override
from sweeps.identity import cell_name, run_id, short_keys, show_value
from sweeps.store import Cell, Request, now

UNNAMED = "unnamed"
# Settings that change how a request is carried out, not which cells it has.
_NOT_OF_A_CELL = ("mode", "generate", "plan", "store", "hydra")
_SURROUNDINGS = (*_NOT_OF_A_CELL, "exec")
_SEEDS = ("init_seed", "data_seed")
_MAX_CELLS_NAMED = 4
_EVERY_ROW = "*"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a sweep file says for its tables: see `python -m analysis tables --help`."""

    title: str | None = None
    caption: Any = None
    metric: str | None = None
    figure: Literal["survival", "curves"] | None = None
    row_header: str | None = None


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
    report: ReportConfig


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """A cell with the run that it stands for, and the overrides that plain Hydra composes to the same configuration."""

    cell: Cell
    resolved: Resolved
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """A request with its cells' runs, in the order of rows, grid, seeds; `config` is what all cells share."""

    request: Request
    runs: tuple[CellRun, ...]
    config: Mapping[str, Any]


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
    shorts = short_keys(list(axes))
    plain = [(s.key, s.values[0]) for s in settings if not s.structural and not s.swept and s.key not in axes]
    runs: list[CellRun] = []
    problems: dict[str, list[str]] = {}
    for (row_name, row), *values in itertools.product(rows.items(), *axes.values()):
        for seed in seeds:
            at_axes = dict(zip(axes, values, strict=True))
            label = cell_name(row_name, at_axes, seed, shorts)
            try:
                chosen = _settings(composer, base, row, row_name, sweep, at_axes, seed, plain)
                if chosen is None:
                    continue
                resolved = read_config(
                    composer.merge(*chosen),
                    stdlib_fingerprint=stdlib_fingerprint,
                    reference=partial(_reference, composer, *chosen, frozenset(row)),
                )
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(label)
                continue
            cell = Cell(name=label, row=row_name, axes=at_axes, seed=seed, run_id=run_id(resolved.run))
            runs.append(CellRun(cell=cell, resolved=resolved, arguments=_alone(chosen)))
    if problems:
        raise ConfigError([_with_cells(problem, names) for problem, names in problems.items()])
    if not runs:
        raise ConfigError(f"sweep {name}: no cells are left: sweep.at leaves every row out here")
    return Expansion(request=_request(sweep, name, settings, runs), runs=tuple(runs), config=config)


def _request(sweep: SweepConfig, name: str, settings: Sequence[Setting], runs: Sequence[CellRun]) -> Request:
    return Request(
        sweep=name,
        overrides=tuple(s.text for s in settings if not _is_surrounding(s)),
        created_at=now(),
        report={key: value for key, value in asdict(sweep.report).items() if value is not None},
        cells=tuple(run.cell for run in runs),
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
    others = [argument for argument in arguments if argument.partition("=")[0].lstrip("+") != "sweep"]
    runs: list[CellRun] = []
    problems: list[str] = []
    for text in sweep.of:
        first, *overrides = text.split()
        try:
            expansion = expand(
                [f"+sweep={first}", *overrides, *others], composer, stdlib_fingerprint=stdlib_fingerprint
            )
        except ConfigError as error:
            problems += [f"{text}: {problem}" for problem in error.problems]
            continue
        for run in expansion.runs:
            cell = replace(run.cell, name=f"{text}/{run.cell.name}", row=f"{text}/{run.cell.row}")
            runs.append(replace(run, cell=cell))
    if problems:
        raise ConfigError(problems)
    return Expansion(request=_request(sweep, name, settings, runs), runs=tuple(runs), config=config)


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
    composer: Composer,
    structural: Sequence[str],
    values: Sequence[tuple[str, Any]],
    of_the_row: frozenset[str],
    name: str,
) -> dict[str, Any]:
    """The configuration of a cell with another model: dimensions that are set for every cell hold for it too."""
    others = [text for text in structural if re.split(r"[=@./]", text.lstrip("+~"))[0] != "model"]
    kept = [(key, value) for key, value in values if key not in of_the_row and _holds_for_all_models(key)]
    return composer.merge([*others, as_override("model", name)], kept)


def _holds_for_all_models(key: str) -> bool:
    first, *rest = key.split(".")
    return first != "model" or bool(rest and rest[0] in _DIMENSIONS)


def reference_models(arguments: Sequence[str], composer: Composer) -> Callable[[str], Mapping[str, Any]]:
    """What `budget.match` can name, for the single run of these arguments."""
    settings = [_plain_if_there(setting, composer) for setting in composer.parse(arguments)]
    structural = [s.text for s in settings if s.structural]
    values = [(s.key, s.values[0]) for s in settings if not s.structural]
    return partial(_reference, composer, structural, values, frozenset())


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
    return key == "sweep" or key.replace("/", ".").split(".")[0] in _SURROUNDINGS


def _alone(chosen: tuple[list[str], list[tuple[str, Any]]]) -> tuple[str, ...]:
    structural, values = chosen
    return *structural, *(as_override(key, value) for key, value in values if key.split(".")[0] != "sweep")


def _with_cells(problem: str, names: list[str]) -> str:
    listed = ", ".join(names[:_MAX_CELLS_NAMED])
    more = len(names) - _MAX_CELLS_NAMED
    return f"{problem} [in {listed}{f' and {more} more' if more > 0 else ''}]"


def _name(sweep: SweepConfig, settings: Sequence[Setting]) -> str:
    chosen = [s for s in settings if s.key.lstrip("+") == "sweep"]
    if any(s.swept or not isinstance(s.values[0], str) for s in chosen):
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
        elif key.replace("/", ".").split(".")[0] in (*_NOT_OF_A_CELL, "sweep"):
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
        case int() if seeds >= 1:
            return list(range(1, seeds + 1))
        case list() if seeds and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
            if len(set(seeds)) == len(seeds):
                return list(seeds)
        case _:
            pass
    raise ConfigError(
        f"sweep.seeds = {seeds!r}: expected a number of seeds of at least 1, or a list of different seeds"
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


def _settings(
    composer: Composer,
    base: Sequence[str],
    row: Row,
    row_name: str,
    sweep: SweepConfig,
    axes: Mapping[str, Any],
    seed: int | None,
    plain: Sequence[tuple[str, Any]],
) -> tuple[list[str], list[tuple[str, Any]]] | None:
    """One cell's structural overrides and values, later ones winning: row, `at`, grid, seeds, command line.

    None where `at` leaves the row out.
    """
    seeds = [] if seed is None else [(key, seed) for key in _SEEDS]
    structural, values = _split(composer, row.items())
    axis_structural, axis_values = _split(composer, axes.items())
    structural = [*base, *structural, *axis_structural]
    after = [*axis_values, *seeds, *plain]
    if sweep.at:
        conditional = _conditional(sweep, row_name, composer.merge(structural, [*values, *after]))
        if conditional is None:
            return None
        at_structural, at_values = _split(composer, conditional)
        structural, values = [*structural, *at_structural], [*values, *at_values]
    return structural, [*values, *after]


def _conditional(sweep: SweepConfig, row_name: str, config: Mapping[str, Any]) -> list[tuple[str, Any]] | None:
    """The settings of `at` whose condition this configuration meets; None where one of them leaves the row out."""
    row_names = [show_value(name) for name in sweep.rows]
    found: list[tuple[str, Any]] = []
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
                found += settings.items()
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
