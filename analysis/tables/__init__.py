"""Tables as data: columns that read rows, with the words that belong to them; how they look is for `render`.

What a table is: `table`. Its words: `words`. Its columns and the lines around it: `columns`, `settings`, `captions`.

Three kinds. A *probe* table is for runs that race to a threshold (a stop rule): seeds solved, steps needed, what was
spent, and exact tests between rows. An *estimate* table is for a number measured at the end, such as the
validation loss. A table in the *paper*'s layout (`layouts`) has its columns, and its printed numbers if asked for.
"""

from typing import Any, Final, Literal

from analysis.load import Results
from analysis.tables.across import across_tables, axis_across
from analysis.tables.captions import report_caption, settings_line, title_of
from analysis.tables.differences import difference_table
from analysis.tables.estimates import estimate_table
from analysis.tables.layouts import LAYOUTS
from analysis.tables.paper import paper_table
from analysis.tables.probe import MOST_COMPARED, SOLVED, Comparison, comparison_table, probe_table, solved, survival
from analysis.tables.table import Column, Table, Value
from analysis.tables.words import VAL_LOSS, metric_header, show
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

__all__ = [
    "LAYOUTS",
    "VAL_LOSS",
    "Column",
    "Comparison",
    "LayoutName",
    "Table",
    "Value",
    "build_tables",
    "comparison_table",
    "difference_table",
    "estimate_table",
    "metric_header",
    "metric_of",
    "paper_table",
    "probe_table",
    "report_caption",
    "settings_line",
    "show",
    "solved",
    "survival",
    "title_of",
]


LayoutName = Literal["paper", "plain"]
PAPER_TABLES: Final = f"a sweep that is a table of the paper ({', '.join(LAYOUTS)}), and no other --metric or --layout"


def build_tables(
    results: Results,
    metric: str | None = None,
    *,
    against: str | None = None,
    margin: float | None = None,
    layout: LayoutName | None = None,
    reference: bool = False,
) -> tuple[Table[Any], ...]:
    """The tables of a request: the main one, then the comparisons between its rows.

    `metric` defaults to what the sweep's report asks for, else to `solved` for runs with a stop rule and to the
    validation loss for others. Of a probe whose report has an axis `across`, its values stand side by side, unless a
    metric or the plain layout is asked for. `against` names the row that others are compared with: without it, a probe
    compares every pair, and other runs only with the best. `margin` is what is too small to matter, in the metric's
    unit. `layout` defaults to the paper's for a sweep that is one of its tables, if no metric is asked for;
    `reference` has the printed numbers beside ours. Raises ConfigError for a metric that no run has, for a row that
    there is not, and for options that do not go together.
    """
    if layout == "paper" and metric is not None:
        raise ConfigError(f"--metric {metric}: the paper's layout has its own columns; expected --layout plain with it")
    if layout == "paper" or (layout is None and metric is None and results.sweep in LAYOUTS and not results.is_probe):
        main: Table[Any] = paper_table(results, reference=reference, margin=margin or 0.0)
        return (main, *_differences(results, VAL_LOSS, against, margin))
    if reference:
        raise ConfigError(f"--reference: {results.sweep} is shown in a layout of its own; expected {PAPER_TABLES}")
    chosen = metric_of(results, metric)
    if chosen == SOLVED:
        if margin is not None:
            raise ConfigError(f"--margin {margin:g}: this table counts seeds solved; expected --metric with it")
        axis = axis_across(results)
        if axis is not None and layout is None and metric is None:
            return across_tables(results, axis, against)
        main = probe_table(results)
        compared = against is not None or 2 <= len(results.groups) <= MOST_COMPARED
        return (main, comparison_table(results, against)) if compared else (main,)
    main = estimate_table(results, chosen, margin=margin or 0.0)
    return (main, *_differences(results, chosen, against, margin))


def _differences(results: Results, metric: str, against: str | None, margin: float | None) -> tuple[Table[Any], ...]:
    return () if against is None else (difference_table(results, metric, against, margin=margin or 0.0),)


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
