"""Every derived cell of the printed tables beside what the cost of our specs gives in the paper's convention.

A printed row is a cell of a sweep of `conf/sweep`, so that what is checked is what would be run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from analysis.reference.printed import CellName, Printed, PrintedRow, PrintedTable
from hybrid.budget import parse_count
from hybrid.cost import Cost, layout_of, run_cost
from hybrid.decode import did_you_mean
from hybrid.spec import AttentionSpec, ConfigError, IntraSpec, Mamba2Spec, RunSpec
from sweeps.cells import CellRun, expand
from sweeps.compose import Composer
from sweeps.identity import show_value

NO_REASON: Final = "no reason known"
EQUAL_FLOPS: Final = " equal FLOPs"


# --- what a column is ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Column:
    """A derived column: what it is called, with its unit, and how many digits after the point are printed."""

    header: str
    digits: int


# By their names in printed.json.
COLUMNS: Final[Mapping[str, Column]] = {
    "n_emb": Column(header="N-emb, 1e9", digits=2),
    "act": Column(header="active, 1e9", digits=2),
    "total": Column(header="total, 1e9", digits=2),
    "emb": Column(header="emb, 1e9", digits=2),
    "n_l": Column(header="layers", digits=0),
    "n_attn": Column(header="attention", digits=0),
    "n_swa": Column(header="windows", digits=0),
    "n_ssm": Column(header="Mamba", digits=0),
    "n_mix": Column(header="intra", digits=0),
    "n_hyb": Column(header="intra", digits=0),
    "d_trans": Column(header="d_qk", digits=0),
    "d_mamba": Column(header="d_ssm / 2", digits=0),
    "tok": Column(header="tokens, 1e9", digits=0),
    "tok_B": Column(header="tokens, 1e9", digits=0),
    "steps_K": Column(header="steps, 1e3", digits=0),
    "flops": Column(header="FLOPs, 1e20", digits=1),
    "cache": Column(header="cache, MiB", digits=0),
}


def value_of(column: str, run: RunSpec, cost: Cost) -> Fraction:
    """The exact value of a derived column, in the unit that is printed. Raises ConfigError for another column."""
    match column:
        case "n_emb" | "total":
            return Fraction(cost.paper_non_embedding_params, 10**9)
        case "act":
            return Fraction(cost.paper_active_params, 10**9)
        case "emb":
            return Fraction(cost.embedding_params, 10**9)
        case "n_l":
            return Fraction(len(run.model.blocks))
        case "n_attn":
            return Fraction(layout_of(run.model).count("A"))
        case "n_swa":
            return Fraction(layout_of(run.model).count("W"))
        case "n_ssm":
            return Fraction(layout_of(run.model).count("M"))
        case "n_mix" | "n_hyb":
            return Fraction(layout_of(run.model).count("I"))
        case "d_trans":
            attention, _ = _modules(run)
            return Fraction(0 if attention is None else attention.n_heads * attention.head_dim)
        case "d_mamba":
            _, mamba = _modules(run)
            return Fraction(0 if mamba is None else mamba.d_ssm, 2)  # before its expansion by two
        case "tok" | "tok_B":
            return Fraction(run.train_tokens, 10**9)
        case "steps_K":
            return Fraction(run.train_steps, 1000)
        case "flops":
            return Fraction(cost.paper_train_flops, 10**20)
        case "cache":
            return Fraction(cost.paper_cache_bytes, 2**20)
        case _:
            raise ConfigError(f"column {column}: expected one of {', '.join(COLUMNS)}")


def _modules(run: RunSpec) -> tuple[AttentionSpec | None, Mamba2Spec | None]:
    """The modules of the first block: attention, Mamba, or both."""
    mixer = run.model.blocks[0].mixer
    match mixer:
        case IntraSpec():
            return mixer.attention, mixer.mamba
        case AttentionSpec():
            return mixer, None
        case Mamba2Spec():
            return None, mixer
        case _:
            raise ConfigError(f"{mixer.kind}: expected attention, Mamba or both in one block")


# The tables whose columns follow from a spec, and those columns. `flops` of the scaling runs is their budget, given.
_KINDS: Final = ("n_attn", "n_swa", "n_ssm", "n_mix", "n_hyb")
DERIVED: Final[Mapping[str, tuple[str, ...]]] = {
    "2": ("n_emb", *_KINDS, "tok", "flops", "cache"),
    "3": ("act", "total", *_KINDS, "flops"),
    "4": ("n_emb", *_KINDS),
    "6": ("n_emb", "emb", "n_l"),
    "9": ("n_emb", *_KINDS, "tok", "flops", "cache"),
    "10": ("n_emb", *_KINDS, "tok", "flops", "cache"),
    "11": (*_KINDS, "flops", "cache"),
    "12": ("tok", "flops", "cache"),
    "14/15": ("n_emb", *_KINDS, "tok_B", "steps_K"),
    "17": _KINDS,
    "18": ("n_emb", "n_l"),
    "19": ("n_emb", "n_l"),
    "20": ("n_emb", "d_trans", "d_mamba", "flops", "cache"),
    "21": (*_KINDS, "flops", "cache"),
}


def agrees(printed: Decimal | int, digits: int, computed: Fraction) -> bool:
    """Whether the computed value rounds to the printed one: it lies within half a unit of the last printed digit.

    Exactly half a unit away agrees, as nobody knows which way the paper rounds a half. Exact arithmetic throughout.
    """
    return abs(Fraction(printed) - computed) <= Fraction(1, 2 * 10**digits)


# --- which cell of which sweep a printed row is --------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cell of a sweep, and what its printed row is called here. Table, `label` and column name a printed cell."""

    label: str
    sweep: str
    row: str
    overrides: tuple[str, ...] = ()
    axes: tuple[tuple[str, object], ...] = ()


# In Tables 9 and 10 a row says its ratio only by its layers, one of them misprinted: here they are by order.
_RATIOS: Final = ("1:1", "1:3", "1:5", "1:12")
_MIXED: Final = ("", *_RATIOS, "1:0", *_RATIOS)  # Mamba, Inter-H, Intra-H
_RATIOS_IN_ORDER: Final[Mapping[str, tuple[str, ...]]] = {
    "9": ("", "1:1", "1:3", "1:5", *_MIXED, "1:1", "1:3", "1:5", "1:15", "0:1", *_MIXED),
    "10": ("", "", *_MIXED, "", *_MIXED),
}


def places(table: PrintedTable) -> tuple[Place, ...]:
    """The cell of each printed row, in order. Raises ConfigError for a table that has no derived column."""
    if table.number not in DERIVED:
        raise ConfigError(f"table {table.number}: no column of it follows from a spec")
    return tuple(_place(table, i, row) for i, row in enumerate(table.rows))


def _place(table: PrintedTable, index: int, row: PrintedRow) -> Place:
    size = str(row.get("sizes", row.get("size", "1B")))
    at_size = () if size == "1B" else (f"scale={size.lower()}",)
    budget = EQUAL_FLOPS if row.get("budget") == "equal_flops" else ""
    match table.number:
        case "2":
            return _named("table2", f"{row['models']}{budget}")
        case "3":
            return _named("table3", f"{row['models']}{' MoE' if row['moe_num'] else ''}")
        case "4":
            return _named("table4", row["ratio"], size, at_size)
        case "6":
            # Of the scaling runs, which are at all of its sizes, any one has the model.
            label = _spaced(size, row["models"])
            return Place(label=label, sweep="isoflop", row=row["models"], axes=(("scale", size.lower()),))
        case "9":
            return _named("table9", _spaced(row["models"], _RATIOS_IN_ORDER["9"][index]) + budget)
        case "10":
            return _named("table10", _spaced(row["models"], _RATIOS_IN_ORDER["10"][index]) + budget)
        case "11":
            return _named("swa", _spaced(row["ratio"], row["pattern"].lower()))
        case "12":
            name = row["models"] if row["models"] == "Llama" else row["models"] + EQUAL_FLOPS
            label = _spaced(row["models"], f"{row['len'] // 1024}K")
            return Place(label=label, sweep="table12", row=name, axes=(("seq_len", row["len"]),))
        case "14/15":
            axes = (("scale", size.lower()), ("budget.flops", int(row["flops"])))
            label = _spaced(row["model"], size, f"{row['flops']:.0e}".replace("+", ""))
            return Place(label=label, sweep="isoflop", row=row["model"], axes=axes)
        case "17":
            where = f"at {row['attn_idx']}" if row["pattern"] == "Single" else row["pattern"].lower()
            return _named("placement", _spaced(row["ratio"], where), size, at_size)
        case "18" | "19":
            return _named("variants", _variant(row), overrides=at_size)
        case "20":
            return _named("dims", row["ratio"], size, at_size)
        case "21":
            return _named("intra_placement", _spaced(row["ratio"], row["pattern"].lower()))
        case _:
            raise ConfigError(f"table {table.number}: it is not said which sweep has its rows")


def _named(sweep: str, row: str, size: str = "", overrides: tuple[str, ...] = ()) -> Place:
    return Place(label=_spaced(size, row), sweep=sweep, row=row, overrides=overrides)


def _variant(row: PrintedRow) -> str:
    """The row of sweep `variants` that has these printed properties."""
    if row["models"] != "Variants":
        return str(row["models"])
    if row["module"] == "T/T":
        return _spaced(row["scalar"], row["fusion"].lower())
    fusion = {"Add": "add", "Diff": "diff", "Conc": "concat"}[row["fusion"]]
    scalar = {None: "", "Scale": "scale", "Diff-T": "diff_t"}[row["scalar"]]
    value = "shared" if row["value"] == "Joint" else ""
    output = {"Joint": "joint", "Sep": "separate"}[row["out"]]
    return _spaced("group" if row["norm"] else "", scalar, fusion, value, output)


def _spaced(*words: str) -> str:
    return " ".join(word for word in words if word)


# --- the sweeps ---------------------------------------------------------------------------------


class Sweeps:
    """The cells of sweeps, each sweep expanded once."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._runs: dict[tuple[str, ...], tuple[CellRun, ...] | ConfigError] = {}

    def runs(self, sweep: str, overrides: Sequence[str] = ()) -> tuple[CellRun, ...]:
        """Every cell of the sweep. Raises ConfigError where it cannot be composed."""
        arguments = (f"+sweep={sweep}", *overrides)
        if arguments not in self._runs:
            try:
                self._runs[arguments] = expand(arguments, self._composer, stdlib_fingerprint=_no_stdlib).runs
            except ConfigError as error:
                self._runs[arguments] = error
        found = self._runs[arguments]
        if isinstance(found, ConfigError):
            raise found
        return found

    def run(self, place: Place) -> RunSpec:
        """The run of a printed row. Raises ConfigError where the sweep has no such cell."""
        runs = self.runs(place.sweep, place.overrides)
        for run in runs:
            if run.cell.row == place.row and all(
                same_setting(run.cell.axes.get(key), value) for key, value in place.axes
            ):
                return run.resolved.run
        where = " ".join((f"+sweep={place.sweep}", *place.overrides))
        rows = list(dict.fromkeys(run.cell.row for run in runs))
        if place.row not in rows:
            raise ConfigError(f"{where}: has no row {place.row!r}{did_you_mean(place.row, rows)}")
        wanted = ", ".join(f"{key}={value}" for key, value in place.axes)
        raise ConfigError(f"{where}: row {place.row!r} has no cell with {wanted}")


def _no_stdlib() -> str:
    raise ConfigError("data=stdlib: expected the paper's corpus in a sweep of the paper's tables")


def same_setting(value: object, wanted: object) -> bool:
    """Whether two settings are one, however a number is written: 2e19, 20000000000000000000."""
    try:
        return parse_count(value, "") == parse_count(wanted, "")
    except ConfigError:
        return show_value(value) == show_value(wanted)


# --- side by side -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One printed cell and what is computed for it, in the printed unit; the reason only where they disagree."""

    table: str
    row: str
    column: str
    printed: Decimal | int
    computed: Fraction
    digits: int
    reason: str | None

    @property
    def agrees(self) -> bool:
        return agrees(self.printed, self.digits, self.computed)

    @property
    def reason_known(self) -> bool:
        return self.reason is not None and self.reason != NO_REASON


def compare(
    table: PrintedTable,
    sweeps: Sweeps,
    reasons: Mapping[CellName, str],
    cost_of: Callable[[RunSpec], Cost] = run_cost,
) -> tuple[Comparison, ...]:
    """Every derived cell of the table that has a number, in printed order.

    Raises ConfigError with every printed row that no sweep has.
    """
    found: list[Comparison] = []
    problems: dict[str, list[str]] = {}
    for place, row in zip(places(table), table.rows, strict=True):
        try:
            run = sweeps.run(place)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(place.label)
            continue
        cost = cost_of(run)
        for name in DERIVED[table.number]:
            printed = row.get(name)
            if printed is None:
                continue
            digits = COLUMNS[name].digits
            computed = value_of(name, run, cost)
            agreed = agrees(printed, digits, computed)
            found.append(
                Comparison(
                    table=table.number,
                    row=place.label,
                    column=name,
                    printed=printed,
                    computed=computed,
                    digits=digits,
                    reason=None if agreed else reasons.get((table.number, place.label, name), NO_REASON),
                )
            )
    if problems:
        raise ConfigError(
            [
                f"table {table.number}, row {rows[0]}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''}: {problem}"
                for problem, rows in problems.items()
            ]
        )
    return tuple(found)


def chosen_tables(printed: Printed, asked: Sequence[str]) -> tuple[tuple[PrintedTable, ...], dict[str, str]]:
    """The tables to compare, in order, and those that are not in the data; `asked` empty: all.

    Raises ConfigError for a number that is neither.
    """
    numbers = {part: number for number in DERIVED for part in (number, *number.split("/"))}
    known = [*numbers, *printed.not_here]
    unknown = [number for number in asked if number not in known]
    if unknown:
        valid = ", ".join([*DERIVED, *printed.not_here])
        raise ConfigError([f"--table {number}: expected one of {valid}" for number in unknown])
    wanted = {numbers.get(number, number) for number in asked} or {*DERIVED, *printed.not_here}
    tables = tuple(printed.tables[number] for number in DERIVED if number in wanted)
    return tables, {number: why for number, why in printed.not_here.items() if number in wanted}
