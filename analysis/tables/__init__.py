"""Tables as data: columns that read rows, with the words that belong to them; how they look is for `render`.

Two kinds. A *probe* table is for runs that race to a threshold (a stop rule): seeds solved, steps needed, what was
spent, and exact tests between rows. An *estimate* table is for a number measured at the end, such as the
validation loss.
"""

from typing import Any

from analysis.load import Results
from analysis.tables.captions import report_caption, settings_line, title_of
from analysis.tables.differences import difference_table
from analysis.tables.estimates import estimate_table
from analysis.tables.probe import SOLVED, Comparison, comparison_table, probe_table, solved, survival
from analysis.tables.table import Column, Table, Value
from analysis.tables.words import VAL_LOSS, metric_header, show
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

__all__ = [
    "VAL_LOSS",
    "Column",
    "Comparison",
    "Table",
    "Value",
    "build_tables",
    "comparison_table",
    "difference_table",
    "estimate_table",
    "metric_header",
    "metric_of",
    "probe_table",
    "report_caption",
    "settings_line",
    "show",
    "solved",
    "survival",
    "title_of",
]


def build_tables(
    results: Results, metric: str | None = None, *, against: str | None = None, margin: float | None = None
) -> tuple[Table[Any], ...]:
    """The tables of a request: the main one, then the comparisons between its rows.

    `metric` defaults to what the sweep's report asks for, else to `solved` for runs with a stop rule and to the
    validation loss for others. `against` names the row that others are compared with: without it, a probe compares
    every pair, and other runs only with the best. `margin` is what is too small to matter, in the metric's unit.
    Raises ConfigError for a metric that no run has, for a row that there is not, and for a margin of a probe.
    """
    chosen = metric_of(results, metric)
    if chosen == SOLVED:
        if margin is not None:
            raise ConfigError(
                f"--margin {margin:g}: a probe's rows are compared by seeds solved; expected --metric too"
            )
        main = probe_table(results)
        return (main, comparison_table(results, against)) if against or len(results.groups) >= 2 else (main,)
    estimates = estimate_table(results, chosen, margin=margin or 0.0)
    if against is None:
        return (estimates,)
    return estimates, difference_table(results, chosen, against, margin=margin or 0.0)


def metric_of(results: Results, metric: str | None) -> str:
    """The metric that a table or figure of these results is about. Raises ConfigError if no run has it."""
    chosen = metric or results.report.get("metric")
    if chosen is None:
        return SOLVED if results.is_probe else VAL_LOSS
    done = [cell for group in results.groups for cell in group.done]
    valid = dict.fromkeys(name for cell in done for name in cell.metrics if cell.number(name) is not None)
    if results.is_probe:
        valid[SOLVED] = None
    if chosen not in valid and (metric or valid):
        raise ConfigError(f"metric = {chosen}: no run of this request has it{did_you_mean(chosen, valid)}")
    return str(chosen)
