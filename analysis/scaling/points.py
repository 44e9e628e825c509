"""The points of a fit, from a CSV file, a request of a store, or the paper: what they are, and what is wrong with them.

Torch-free and light: arrays are made by those who fit.
"""

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, final

from hybrid.budget import parse_count
from hybrid.cost import Cost, run_cost
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError, RunSpec

if TYPE_CHECKING:
    from analysis.load import CellResult, Results

Convention = Literal["paper", "full"]
CONVENTIONS: Final[tuple[Convention, ...]] = ("paper", "full")

COLUMNS: Final = ("n", "d", "c", "loss", "group", "trunk")
ALL: Final = "all"
# Sizes and budgets are what a fit is about; other axes of a sweep make groups.
_SIZES: Final = ("scale", "budget", "model.depth", "model.d_model", "model.reference_depth")
_SHORT: Final = 0.4
_SAME_BUDGET: Final = math.log(1.1)
_SAME_SIZE: Final = math.log(1.02)
_FAR_APART: Final = math.log(1e3)
_SHOWN: Final = 5


@final
@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: parameters, training tokens, training FLOPs, validation loss in nats a token.

    `trunk` names what runs share whose noise is the same: seeds and data of one long run. `budget` is what the FLOPs
    were meant to be. `ramp` is the share of the run's tokens that its warmup and cooldown take; None: unknown.
    """

    group: str
    n: float
    d: float
    c: float
    loss: float
    where: str
    trunk: str | None = None
    budget: float | None = None
    ramp: float | None = None

    @property
    def too_short(self) -> bool:
        """Whether warmup and cooldown take more of the run than `_SHORT`."""
        return self.ramp is not None and self.ramp > _SHORT


@final
@dataclass(frozen=True, kw_only=True)
class Points:
    """All points, groups in the order in which they appear; `costs` says what N and C count, `notes` what was left out
    or looks wrong."""

    points: tuple[Point, ...]
    source: str
    costs: str
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(point.group for point in self.points))

    def of(self, group: str) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.group == group)

    def where(self, kept: Callable[[Point], bool]) -> "Points":
        return replace(self, points=tuple(point for point in self.points if kept(point)))


# --- sizes, budgets, trunks ---------------------------------------------------------------------


def clusters(values: Iterable[float], apart: float) -> list[list[int]]:
    """Indices of positive values that lie within a factor of exp(apart) of the next, ascending."""
    logs = [math.log(value) for value in values]
    found: list[list[int]] = []
    for i in sorted(range(len(logs)), key=logs.__getitem__):
        if found and logs[i] - logs[found[-1][-1]] <= apart:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def sizes_of(points: Sequence[Point]) -> list[list[int]]:
    """Indices of the points of each size, the smallest first: parameters within 2% are one size."""
    return clusters((point.n for point in points), _SAME_SIZE)


def size_name(points: Sequence[Point]) -> str:
    return si(math.exp(math.fsum(math.log(point.n) for point in points) / len(points)))


def budgets_of(points: Sequence[Point]) -> list[list[int]] | None:
    """Indices of the points of each budget, the smallest first: those meant to be one, else FLOPs within 10% of the
    next. None where they form no budgets: a size twice at one without a trunk of its own, or chains of near ones."""
    if all(point.budget is not None for point in points):
        meant: dict[float, list[int]] = defaultdict(list)
        for i, point in enumerate(points):
            meant[float(point.budget or 0.0)].append(i)
        found = [meant[budget] for budget in sorted(meant)]
    else:
        found = clusters((point.c for point in points), _SAME_BUDGET)
    for members in found:
        costs = [points[i].c for i in members]
        if max(costs) > min(costs) * math.exp(_SAME_BUDGET):
            return None
    # As many budgets as points: curves that were never meant to be at equal FLOPs.
    return None if len(found) > len(points) / 2 else found


def trunks_of(points: Sequence[Point]) -> tuple[str, ...] | None:
    """The trunk of each point; None where they are not known."""
    if any(point.trunk is None for point in points):
        return None
    return tuple(str(point.trunk) for point in points)


def trunks_a_size(points: Sequence[Point]) -> int:
    """Of the size that has the fewest; points without one count each for itself."""
    return min(len({points[i].trunk or f"point {i}" for i in members}) for members in sizes_of(points))


# --- from a CSV file ------------------------------------------------------------------------------


def parse_columns(text: str | None) -> dict[str, str]:
    """`n=params,loss=val` as a mapping. Raises ConfigError, with all that is wrong."""
    if text is None:
        return {}
    found: dict[str, str] = {}
    problems = []
    for part in text.split(","):
        name, equals, column = part.partition("=")
        name, column = name.strip(), column.strip()
        if not equals or not column:
            problems.append(f"--columns {part}: expected NAME=COLUMN, NAME one of {', '.join(COLUMNS)}")
        elif name not in COLUMNS:
            problems.append(f"--columns {part}: {name} is none of ours{did_you_mean(name, COLUMNS)}")
        elif name in found:
            problems.append(f"--columns {part}: {name} is given twice")
        else:
            found[name] = column
    if problems:
        raise ConfigError(problems)
    return found


def read_csv(path: Path, columns: Mapping[str, str]) -> Points:
    """The points of a CSV file with a header; `columns` says what a column of another name is.

    Raises ConfigError, with every row that cannot be used, by its line in the file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = [str(name) for name in reader.fieldnames or ()]
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise ConfigError(f"--points {path}: there is no such file") from None
    except (IsADirectoryError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--points {path}: expected a CSV file with a header ({error})") from None
    named = ", ".join(header) or "no header"
    used = {name: columns.get(name, name) for name in COLUMNS if name in columns or name in header}
    problems = [
        f"--columns {name}={column}: {path} has no such column{did_you_mean(column, header)} (it has {named})"
        for name, column in used.items()
        if column not in header
    ]
    lacking = [name for name in ("n", "loss") if name not in used]
    if not {"d", "c"} & set(used):
        lacking.append("d or c")
    if lacking and not problems:
        problems.append(
            f"--points {path}: expected columns n, loss and d or c; missing {' and '.join(lacking)}. Say which are "
            f"meant: --columns {','.join(f'{name.split()[0]}=COLUMN' for name in lacking)} (it has {named})"
        )
    if not rows and not problems:
        problems.append(f"--points {path}: expected rows below the header")
    if problems:
        raise ConfigError(problems)
    found = [_row(line, row, used, problems) for line, row in rows]
    if problems:
        raise ConfigError(_first(problems, "rows"))
    if "c" not in used:
        costs = "C = 6 N D, as the file has no c"
    elif "d" not in used:
        costs = "D = C / (6 N), as the file has no d"
    else:
        costs = "N, D and C as the file has them"
    return checked(Points(points=tuple(p for p in found if p is not None), source=str(path), costs=costs))


def _row(line: int, row: Mapping[str, str | None], used: Mapping[str, str], problems: list[str]) -> Point | None:
    values: dict[str, float] = {}
    good = True
    for name in ("n", "d", "c", "loss"):
        if name not in used:
            continue
        text = (row.get(used[name]) or "").strip()
        value = _number(text)
        if not (math.isfinite(value) and value > 0):
            problems.append(f"line {line}: {used[name]} = {text or 'nothing'}: expected a number above zero")
            good = False
        values[name] = value
    if not good:
        return None
    n = values["n"]
    c = values.get("c") or 6 * n * values["d"]
    trunk = (row.get(used["trunk"]) or "").strip() if "trunk" in used else ""
    group = (row.get(used["group"]) or "").strip() if "group" in used else ALL
    return Point(
        group=group or ALL,
        n=n,
        d=values.get("d") or c / (6 * n),
        c=c,
        loss=values["loss"],
        where=f"line {line}",
        trunk=trunk or None,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(parse_count(text, ""))
    except ConfigError:
        return math.nan


def _first(problems: Sequence[str], what: str) -> list[str]:
    more = len(problems) - _SHOWN
    return [*problems[:_SHOWN], *([f"and {more} more {what} like these"] if more > 0 else [])]


def checked(found: Points) -> Points:
    """Without rows that are there twice, of which the notes tell. Raises ConfigError where units are mixed."""
    kept: dict[tuple[object, ...], Point] = {}
    twice = []
    for point in found.points:
        key = (point.group, point.n, point.d, point.c, point.loss, point.trunk)
        if key in kept:
            twice.append(f"{point.where} (as {kept[key].where})")
        else:
            kept[key] = point
    notes = list(found.notes)
    if twice:
        notes.append(f"{len(twice)} rows are there twice and count once: {', '.join(_first(twice, 'rows'))}")
    points = tuple(kept.values())
    problems = [*_units(points, "n"), *_units(points, "d"), *_ratios(points, notes)]
    if problems:
        raise ConfigError(problems)
    high = [point for point in points if point.loss > 20]
    if high:
        notes.append(f"losses above 20, such as {high[0].loss:g} ({high[0].where}): expected nats a token")
    return replace(found, points=points, notes=tuple(notes))


def _units(points: Sequence[Point], name: Literal["n", "d"]) -> list[str]:
    """Values with a gap between them that no study has: some rows are in millions, others in units."""
    values = [point.n if name == "n" else point.d for point in points]
    parts = clusters(values, _FAR_APART)
    if len(parts) < 2:
        return []
    low, high = parts[0][-1], parts[1][0]
    return [
        f"{name}: mixed units? {values[low]:g} ({points[low].where}) and then nothing up to {values[high]:g} "
        f"({points[high].where}); expected one unit in all rows"
    ]


def _ratios(points: Sequence[Point], notes: list[str]) -> list[str]:
    """What C is to 6 N D, which is between a half and a few times in any unit that fits."""
    ratios = [point.c / (6 * point.n * point.d) for point in points]
    if max(ratios) > 1e3 * min(ratios):
        low, high = ratios.index(min(ratios)), ratios.index(max(ratios))
        return [
            f"c: mixed units? c / (6 n d) is {ratios[low]:.2g} at {points[low].where} and {ratios[high]:.2g} at "
            f"{points[high].where}; expected one unit in all rows"
        ]
    middle = sorted(ratios)[len(ratios) // 2]
    if not 0.1 < middle < 10:
        notes.append(
            f"c is {middle:.2g} times 6 n d: n, d and c are in different units. Exponents do not depend on that; "
            "sizes, tokens and FLOPs are printed in the units given"
        )
    return []


# --- from specs: a store, or the paper -------------------------------------------------------------


def params_of(cost: Cost, convention: Convention) -> int:
    """The parameters that one token is multiplied with. Paper: the blocks' (norms left out); full: the head's too."""
    if convention == "paper":
        return cost.paper_active_params
    head = cost.head_params or cost.embedding_params  # tied: the embedding's matrix is the head's
    return cost.active_params + head


def flops_of(cost: Cost, convention: Convention) -> int:
    """Training FLOPs of the whole run."""
    return cost.paper_train_flops if convention == "paper" else cost.full_train_flops


COSTS: Final[Mapping[Convention, str]] = {
    "paper": "N and C by the paper's formulas, exact for each spec: N without embedding and head, C without the head",
    "full": "N and C as the code executes them, exact for each spec: the head counts in both",
}


def ramp_of(run: RunSpec) -> float:
    """The share of a run that its warmup and cooldown take."""
    return (run.schedule.warmup_tokens + run.schedule.cooldown_tokens) / run.train_tokens


def of_results(results: "Results", metric: str, convention: Convention) -> Points:
    """The done runs of a request. Branches of one trunk, which share seeds and data, have its name.

    Raises ConfigError if none is done.
    """
    notes: list[str] = []
    left_out: Counter[str] = Counter()
    trunks: dict[RunSpec, str] = {}
    found: dict[str, Point] = {}
    for cell in results.cells:
        value = cell.number(metric) if cell.final and not cell.diverged else None
        if cell.spec is None or value is None:
            left_out[_status(cell)] += 1
            continue
        trunk = replace(cell.spec, train_tokens=0, schedule=replace(cell.spec.schedule, cooldown_tokens=0))
        cost = run_cost(cell.spec)
        found[str(cell.run_id)] = Point(
            group=_group(cell, several=results.several_rows),
            n=float(params_of(cost, convention)),
            d=float(cell.spec.train_tokens),
            c=float(flops_of(cost, convention)),
            loss=value,
            where=cell.name,
            trunk=trunks.setdefault(trunk, f"trunk {len(trunks) + 1}"),
            budget=_budget(cell) if convention == "paper" else None,
            ramp=ramp_of(cell.spec),
        )
    if left_out:
        listed = ", ".join(f"{n} {status}" for status, n in left_out.items())
        notes.append(f"{sum(left_out.values())} of {len(results.cells)} cells are left out: {listed}")
    if not found:
        raise ConfigError(
            f"request = {results.sweep}: no run is done yet, so there is nothing to fit; {'; '.join(notes)}"
        )
    points = Points(
        points=tuple(found.values()), source=f"request {results.sweep}", costs=COSTS[convention], notes=tuple(notes)
    )
    return checked(points)


def _status(cell: "CellResult") -> str:
    if cell.final and not cell.diverged:
        return "without the metric"
    return {"new": "not started"}.get(cell.status, cell.status)


def _group(cell: "CellResult", *, several: bool) -> str:
    axes = [f"{name.rpartition('.')[2]}={value}" for name, value in cell.axes.items() if not name.startswith(_SIZES)]
    return " ".join([*([cell.row] if several or not axes else []), *axes]) or ALL


def _budget(cell: "CellResult") -> float | None:
    given = cell.axes.get("budget.flops")
    return None if given is None else float(parse_count(given, "budget.flops"))


def of_paper(convention: Convention) -> Points:
    """The 71 runs of v3's Tables 14 and 15, with the exact costs of the specs that they are."""
    from analysis.reference.compare import Sweeps, places
    from analysis.reference.printed import read_printed
    from sweeps.compose import Composer

    table = read_printed().tables["14/15"]
    found = []
    with Composer() as composer:
        sweeps = Sweeps(composer)
        for place, row in zip(places(table), table.rows, strict=True):
            run = sweeps.run(place)
            cost = run_cost(run)
            found.append(
                Point(
                    group=str(row["model"]),
                    n=float(params_of(cost, convention)),
                    d=float(run.train_tokens),
                    c=float(flops_of(cost, convention)),
                    loss=float(row["dclm_nll"]),
                    where=place.label,
                    trunk=f"{row['model']} {row['size']}",
                    budget=float(row["flops"]) if convention == "paper" else None,
                    ramp=ramp_of(run),
                )
            )
    return Points(points=tuple(found), source="arXiv 2510.04800v3, Tables 14 and 15", costs=COSTS[convention])


# --- numbers as text --------------------------------------------------------------------------------


def si(value: float) -> str:
    """Three digits with a suffix: 972M, 20.4B."""
    if not math.isfinite(value):
        return "?"
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"
