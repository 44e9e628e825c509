"""The table of a number measured at the end of a run, such as the validation loss: a mean over seeds."""

from statistics import fmean

from analysis import stats
from analysis.claims.unequal import fraction_of, fractions_of, implementation_bound
from analysis.contrasts import rank
from analysis.load import Group, Results
from analysis.tables.captions import flops_line, interval_lines, missing_notes, request_table
from analysis.tables.columns import (
    architecture_columns,
    mean_column,
    notes_columns,
    row_columns,
    setting_columns,
    tuned_columns,
)
from analysis.tables.differences import mark_notes, mark_of
from analysis.tables.table import Column, Table, Value
from analysis.tables.words import (
    VAL_LOSS,
    four_digits,
    metric_better,
    metric_header,
    number,
    show,
    si,
    three_digits,
)
from hybrid.spec import StdlibSpec


def estimate_table(results: Results, metric: str, *, margin: float = 0.0) -> Table[Group]:
    """The mean of a metric over seeds with its interval, a line a row; the best in bold where it can be told apart.

    Rows shown to lie within `margin` of the best are marked as equivalent to it.
    """
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    ranking = rank(results, metric, metric_better(metric), margin=margin)
    header = metric_header(metric)
    columns = [
        *row_columns(results),
        *tuned_columns(results),
        *setting_columns(results),
        *architecture_columns(results, run_flops=True),
        Column[Group](
            key=metric,
            header=header,
            value=lambda group: stats.estimate(group.numbers(metric), pooling),
            fmt=show,
            better=metric_better(metric),
            mark=mark_of(results, ranking),
        ),
        Column[Group](key="n", header="n", value=lambda group: len(group.numbers(metric)), fmt=str),
    ]
    shares = fractions_of(results.groups, metric)
    if shares:
        columns.append(
            Column[Group](
                key=str(fraction_of(metric)),
                header="of roofline",
                value=lambda group: shares.get(group.label),
                fmt=_percent,
            )
        )
    footnotes = [*mark_notes(results, ranking, header, margin=margin), *missing_notes(results, metric, header)]
    bound = implementation_bound(f"in {header}", shares)
    if bound is not None:
        footnotes.append(f"These speeds compare implementations, not architectures; they are {bound}.")
    specs = results.specs
    if metric == VAL_LOSS and specs and all(isinstance(spec.data, StdlibSpec) for spec in specs):
        columns.append(
            Column[Group](
                key="val_bits_per_byte", header="bits per byte", value=_bits_per_byte, fmt=four_digits, better="lower"
            )
        )
        footnotes.append(
            "Bits per byte: the loss of all tokens, document borders included, over the number of bytes among them."
        )
    if metric != "wall_s":
        columns.append(
            mean_column("wall_s", "wall s", lambda cell: cell.number("wall_s"), fmt=three_digits, diverged=False)
        )
    if metric != "tokens_per_s":
        columns.append(
            mean_column("tokens_per_s", "tokens/s", lambda cell: cell.number("tokens_per_s"), fmt=si, diverged=False)
        )
    columns.extend(notes_columns(results))
    if any(cell.diverged for cell in results.cells):
        footnotes.append("Diverged runs are counted in the notes and enter no mean; n says how many runs did.")
    if any(not cell.final for cell in results.cells):
        footnotes.append("Not all runs have a result yet.")
    caption = ["" if results.is_probe else flops_line(results), *interval_lines(results, metric, pooling, header)]
    return request_table(results, tuple(columns), caption=caption, footnotes=footnotes)


def _percent(value: Value) -> str:
    return f"{100 * number(value):.2g}%"


def _bits_per_byte(group: Group) -> Value:
    values = group.numbers("val_bits_per_byte")
    return fmean(values) if values else None
