"""The paper's tables as data: the columns of each, in the paper's order, and the printed rows that our sweeps have.

What a column is, is said once for all tables: derived from a spec (`analysis.reference.compare`), measured (a metric of
the runs or of their evaluations), or words that the paper prints of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, final

from analysis.contrasts import Better
from analysis.load import Group
from analysis.reference.compare import Place, places, same_setting
from analysis.reference.printed import PrintedRow, PrintedTable, read_printed
from analysis.tables.words import VAL_LOSS
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

# --- what the columns are -----------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured column: its words, the digits that are printed, and the metric that runs or evaluations record."""

    header: str
    digits: int
    better: Better
    metric: str


MEASURED: Final[Mapping[str, Measured]] = {
    "dclm": Measured(header="DCLM NLL", digits=3, better="lower", metric=VAL_LOSS),
    "pg19": Measured(header="PG19 NLL", digits=3, better="lower", metric="pg19_loss_nats"),
    "ld": Measured(header="LAMBADA %", digits=1, better="higher", metric="lambada_accuracy_percent"),
    "hs": Measured(header="HellaSwag %", digits=1, better="higher", metric="hellaswag_accuracy_percent"),
    "pq": Measured(header="PIQA %", digits=1, better="higher", metric="piqa_accuracy_percent"),
    "arc": Measured(header="ARC %", digits=1, better="higher", metric="arc_accuracy_percent"),
    "ob": Measured(header="OBQA %", digits=1, better="higher", metric="openbookqa_accuracy_percent"),
    "avg": Measured(header="Avg %", digits=1, better="higher", metric="few_shot_accuracy_percent"),
}
# Printed under another name in some tables.
_PRINTED_AS: Final[Mapping[str, tuple[str, ...]]] = {"dclm": ("dclm", "dclm_nll"), "avg": ("avg", "acc")}

# What is printed of a row in words; of our own runs a position is read off the layout.
WORDS: Final[Mapping[str, str]] = {
    "attn_idx": "attention at",
    "idx": "intra at",
    "module": "modules",
    "norm": "norm",
    "scalar": "scalar",
    "fusion": "fusion",
    "value": "value",
    "out": "output",
    "moe_num": "experts",
    "moe_act": "active",
}
POSITIONS: Final[Mapping[str, str]] = {"attn_idx": "A", "idx": "I"}


# --- the layouts --------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """A sweep that is a table of the paper: its numbers there, its columns, and the scale that the sweep has by itself.

    `rows` are those of the sweep in printed order, where `analysis.reference.compare` does not say which is which.
    """

    printed: tuple[str, ...]
    columns: tuple[str, ...]
    scale: str = "1b"
    row_header: str = "model"
    rows: tuple[str, ...] = ()


_LAYERS: Final = ("n_attn", "n_swa", "n_ssm")
_SPENT: Final = ("tok", "flops", "cache")
_LOSSES: Final = ("dclm", "pg19")
_QUALITY: Final = (*_LOSSES, "ld", "hs", "pq", "arc", "ob", "avg")
_DESIGN: Final = ("module", "norm", "scalar", "fusion")

LAYOUTS: Final[Mapping[str, Layout]] = {
    "table2": Layout(printed=("2",), columns=("n_emb", *_LAYERS, "n_mix", *_SPENT, *_QUALITY)),
    "table3": Layout(
        printed=("3",),
        columns=("act", "total", "n_attn", "n_ssm", "n_mix", "flops", "moe_num", "moe_act", *_LOSSES, "avg"),
    ),
    "table4": Layout(printed=("4",), columns=("n_emb", "n_attn", "n_ssm", *_LOSSES, "avg"), row_header="ratio"),
    "table5": Layout(
        printed=("5",),
        columns=(*_DESIGN, "out", *_LOSSES, "avg"),
        rows=(
            "Llama",
            "Mamba",
            "Diff-T",
            "Diff-M",
            "Hymba",
            "scale add joint",
            "group add joint",
            "group gate add joint",
            "group diff joint",
            "group concat joint",
            "group add separate",
            "group diff separate",
        ),
    ),
    "variants": Layout(printed=("18", "19"), columns=("n_emb", "n_l", *_DESIGN, "value", "out", *_QUALITY)),
    "dims": Layout(
        printed=("20",), columns=("n_emb", "d_trans", "d_mamba", "flops", "cache", *_QUALITY), row_header="ratio"
    ),
    "placement": Layout(printed=("17",), columns=("n_attn", "n_ssm", "attn_idx", *_QUALITY), row_header="ratio"),
    "intra_placement": Layout(
        printed=("21",), columns=("n_ssm", "n_hyb", "idx", "flops", "cache", *_LOSSES, "avg"), row_header="ratio"
    ),
    "swa": Layout(
        printed=("11",), columns=("n_attn", "n_swa", "attn_idx", "flops", "cache", *_LOSSES, "avg"), row_header="ratio"
    ),
    "table9": Layout(printed=("9",), columns=("n_emb", *_LAYERS, "n_hyb", *_SPENT, *_QUALITY)),
    "table10": Layout(printed=("10",), columns=("n_emb", *_LAYERS, "n_hyb", *_SPENT, *_QUALITY), scale="350m"),
    "table12": Layout(printed=("12",), columns=(*_SPENT, *_QUALITY)),
    "isoflop": Layout(printed=("14/15",), columns=("n_emb", "n_attn", "n_ssm", "n_hyb", "tok_B", "steps_K", "dclm")),
}


def layout_named(sweep: str) -> Layout:
    """Raises ConfigError for a sweep that is no table of the paper."""
    if sweep not in LAYOUTS:
        raise ConfigError(f"{sweep}: expected a sweep that is a table of the paper{did_you_mean(sweep, LAYOUTS)}")
    return LAYOUTS[sweep]


# --- printed rows -------------------------------------------------------------------------------


@final
@dataclass(frozen=True, kw_only=True)
class Printed:
    """A printed row: where it stands, the cell of which sweep it is, and its scale."""

    table: PrintedTable
    place: Place
    scale: str
    row: PrintedRow

    def number(self, key: str) -> Decimal | int | None:
        """What is printed in a column; None where that is a dash, or there is no such column."""
        names = _PRINTED_AS.get(key, (key,))
        return next((self.row[name] for name in names if self.row.get(name) is not None), None)

    def fits(self, group: Group, given: Mapping[str, str], scale: str) -> bool:
        """Whether a line of a request is this row; `given` are the overrides that it was asked for with."""
        settings = {**given, **group.axes}
        return (group.row, scale) == (self.place.row, self.scale) and all(
            key not in settings or same_setting(settings[key], value) for key, value in self.place.axes
        )


def printed_rows(sweep: str) -> tuple[Printed, ...]:
    """Every printed row that is a cell of the sweep, in printed order. Raises ConfigError for another sweep."""
    layout = layout_named(sweep)
    tables = read_printed().tables
    return tuple(
        Printed(table=tables[number], place=place, scale=_scale_of(layout, row), row=row)
        for number in layout.printed
        for place, row in zip(_places(sweep, layout, tables[number]), tables[number].rows, strict=True)
    )


def _places(sweep: str, layout: Layout, table: PrintedTable) -> Sequence[Place]:
    return [Place(label=row, sweep=sweep, row=row) for row in layout.rows] if layout.rows else places(table)


def _scale_of(layout: Layout, row: PrintedRow) -> str:
    return str(row.get("sizes", row.get("size", layout.scale))).lower()
