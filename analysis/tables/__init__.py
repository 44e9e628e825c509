"""Tables as data: columns that read rows, with the words that belong to them; how they look is for `render`.

Two kinds. A *probe* table is for runs that race to a threshold (a stop rule): seeds solved, steps needed, what was
spent, and exact tests between rows. An *estimate* table is for a number measured at the end, such as the
validation loss.
"""

from analysis.load import Group, Results
from analysis.tables.captions import report_caption, settings_line, title_of
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


def build_tables(results: Results, metric: str | None = None) -> tuple[Table[Group] | Table[Comparison], ...]:
    """The tables of a request: the main one, and for a probe the comparisons between its rows.

    `metric` defaults to what the sweep's report asks for, else to `solved` for runs with a stop rule and to the
    validation loss for others. Raises ConfigError for a metric that no run has.
    """
    chosen = metric_of(results, metric)
    if chosen != SOLVED:
        return (estimate_table(results, chosen),)
    if len(results.groups) < 2:
        return (probe_table(results),)
    return probe_table(results), comparison_table(results)


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
