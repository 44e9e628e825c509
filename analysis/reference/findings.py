"""All that `python -m analysis reference` says: compared cells, what the full convention changes, and printed noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from analysis import stats
from analysis.reference.compare import Comparison, Place, Sweeps, chosen_tables, compare, places
from analysis.reference.printed import PrintedTable, read_printed, read_reasons
from hybrid.cost import run_cost
from hybrid.equivalence import EquivalenceClass, equivalence_classes
from hybrid.spec import RunSpec

SCALES: Final = ("100m", "350m", "1b", "3b")
MODELS: Final = ("Llama", "Mamba", "Inter-H", "Intra-H")
# Printed losses whose rows are partly one model, and the scale that they are of.
NOISE_TABLES: Final[Mapping[str, str]] = {"18": "1B", "19": "350M"}


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """Training FLOPs of a token in both conventions, and those of the head alone, which only the full one counts."""

    scale: str
    model: str
    paper_train_flops_per_token: Fraction
    full_train_flops_per_token: Fraction
    head_train_flops_per_token: int

    @property
    def full_to_paper(self) -> float:
        return float(self.full_train_flops_per_token / self.paper_train_flops_per_token)

    @property
    def head_to_paper(self) -> float:
        """The head's FLOPs as a share of those that the paper counts."""
        return float(self.head_train_flops_per_token / self.paper_train_flops_per_token)


@dataclass(frozen=True, kw_only=True)
class PrintedNoise:
    """The spread of printed losses among rows that are one model by symmetry, pooled over such models."""

    table: str
    scale: str
    sd_nats: float
    dof: int
    models: tuple[EquivalenceClass, ...]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A printed table with its compared cells."""

    table: PrintedTable
    cells: tuple[Comparison, ...]

    @property
    def n_agreeing(self) -> int:
        return sum(cell.agrees for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Tables in printed order; conventions and noise only where they were asked for."""

    source: str
    compared: tuple[Compared, ...]
    not_here: Mapping[str, str]
    conventions: tuple[Conventions, ...]
    noise: tuple[PrintedNoise, ...]


def find(sweeps: Sweeps, asked: Sequence[str] = ()) -> Findings:
    """Compare the tables that are asked for; none: all, with the conventions and the noise beside them.

    Raises ConfigError for a table that there is not, and for printed rows that no sweep has.
    """
    printed = read_printed()
    tables, not_here = chosen_tables(printed, asked)
    reasons = {cell: reason.text for reason in read_reasons() for cell in reason.cells}
    return Findings(
        source=printed.source,
        compared=tuple(Compared(table=table, cells=compare(table, sweeps, reasons)) for table in tables),
        not_here=not_here,
        conventions=() if asked else conventions(sweeps),
        noise=tuple(printed_noise(table, sweeps) for table in tables if table.number in NOISE_TABLES),
    )


def conventions(sweeps: Sweeps) -> tuple[Conventions, ...]:
    """Both conventions for the architectures of the scaling runs, at their context length."""
    return tuple(
        _conventions(scale, model, sweeps.run(Place(label=model, sweep="isoflop", row=model, axes=(("scale", scale),))))
        for scale in SCALES
        for model in MODELS
    )


def _conventions(scale: str, model: str, run: RunSpec) -> Conventions:
    cost = run_cost(run)
    return Conventions(
        scale=scale.upper(),
        model=model,
        paper_train_flops_per_token=Fraction(cost.paper_train_flops_per_sample, run.seq_len),
        full_train_flops_per_token=Fraction(cost.full_train_flops_per_sample, run.seq_len),
        # One multiply-add with each element of the head, forward; twice that backward.
        head_train_flops_per_token=6 * run.model.d_model * run.model.vocab_size,
    )


def printed_noise(table: PrintedTable, sweeps: Sweeps) -> PrintedNoise:
    """What the printed validation losses (DCLM, one run a row) say of the noise between replicates."""
    names = places(table)
    losses = {place.label: float(row["dclm"]) for place, row in zip(names, table.rows, strict=True)}
    models = equivalence_classes({place.label: sweeps.run(place).model for place in names})
    pooled = stats.pool([[losses[name] for name in model.names] for model in models])
    if pooled.sd is None:
        raise ValueError(f"table {table.number}: expected rows that are one model by symmetry")
    return PrintedNoise(
        table=table.number, scale=NOISE_TABLES[table.number], sd_nats=pooled.sd, dof=pooled.df, models=models
    )
