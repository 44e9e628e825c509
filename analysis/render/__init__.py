"""A table as text: Markdown, LaTeX, HTML, CSV, JSON. All from the same `Table`; only the spelling differs.

Markdown, LaTeX and HTML show what a person reads; CSV and JSON carry the unrounded numbers, intervals in columns of
their own. The output depends on the table alone: no dates, no paths.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, assert_never

from analysis.render.html import html
from analysis.render.latex import latex, latex_text
from analysis.render.machine import as_csv, as_json
from analysis.render.markdown import markdown
from analysis.tables.table import Table

__all__ = ["FORMATS", "SUFFIXES", "Format", "as_csv", "as_json", "html", "latex", "latex_text", "markdown", "render"]

Format = Literal["markdown", "csv", "latex", "json", "html"]
FORMATS: Final[tuple[Format, ...]] = ("markdown", "csv", "latex", "json", "html")
SUFFIXES: Final[dict[Format, str]] = {
    "markdown": ".md",
    "csv": ".csv",
    "latex": ".tex",
    "json": ".json",
    "html": ".html",
}


def render(tables: Sequence[Table[Any]], form: Format) -> str:
    """The tables in one of the formats, ending in a newline; CSV holds the tables one after another."""
    match form:
        case "markdown":
            return "\n".join(markdown(table) for table in tables)
        case "latex":
            return "\n".join(latex(table) for table in tables)
        case "html":
            return "\n".join(html(table) for table in tables)
        case "csv":
            return "\n".join(as_csv(table) for table in tables)
        case "json":
            return as_json(tables)
        case _ as never:
            assert_never(never)
