"""The command line: `python -m analysis tables | figures | claims | scaling | report | compare | reference`.

What costs time to import is imported when called.
"""

import argparse
import gc
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from analysis import questions
from analysis.claims import command as claims_command
from analysis.figures import command as figures_command
from analysis.report import command as report_command
from analysis.scaling import command as scaling_command
from hybrid.spec import ConfigError

if TYPE_CHECKING:
    from analysis.load import Results
    from analysis.tables import Table
    from sweeps.store import Store

FORMATS: Final = ("markdown", "csv", "latex", "json", "html")
LAYOUTS: Final = ("paper", "plain")
SOURCES: Final = ("store", "paper")
REFERENCE_FORMATS: Final = ("text", "json", "md")
DEFAULT_STORE: Final = "store"
# Most of what is made here lives until the command is over: looked through for cycles seldom.
_MANY_OBJECTS: Final = 100_000

_ABOUT = """\
What the results say. Reads a store, never writes to it, never trains.

A request is a sweep together with the overrides it was started with. Its table has a line for each thing that
differs: missing, running, failed and diverged runs are shown and counted, never dropped.
"""

_EXAMPLES = """\
examples:
  python -m analysis tables demo                        the table of `python run.py -m +sweep=demo`, in Markdown
  python -m analysis tables latest                      of whatever was asked for last
  python -m analysis tables demo sweep.seeds=3          of the request with these overrides, if there are several
  python -m analysis tables demo --out report           also report/table.md .csv .tex .json .html, figure.png .svg
  python -m analysis tables demo_text --against llama   differences from one row, paired on equal seeds, with tests
  python -m analysis tables table4 --reference          the paper's printed numbers below ours, with the difference
  python -m analysis tables table4 --source paper       the printed table alone; needs no store
  python -m analysis tables demo --check report         exit code 1, and a diff, if report/ is not what comes out now
  python -m analysis tables demo --format json | jq .   unrounded numbers for another program
  python -m analysis figures demo --out report          the figure alone
  python -m analysis figures fig1b --source paper       a figure of the paper, of what it prints
  python -m analysis claims                             the paper's claims, judged by its own printed numbers
  python -m analysis scaling isoflop --request isoflop  compute-optimal sizes and their exponents; --help says the rest
  python -m analysis compare fb69 2726                  two runs by the questions of evals=[fewshot], paired
  python -m analysis reference                          the paper's printed costs beside those of our specs

exit codes: 0 done; 2 something asked for does not exist; 1 anything else, such as a damaged store or a failed --check.
"""

_TABLES = """\
Print the table of a request.

A probe (runs that stop at a threshold) gives seeds solved k/n, median steps with unsolved seeds censored, what was
spent, and Fisher's exact test between rows, Holm-adjusted. One whose sweep file names an axis to stand side by side
(report.across), as probes does with its tasks, gives rows by tasks, with log-rank tests over all tasks and in each;
--layout plain has the long table. Other runs give a mean over seeds with its interval. A sweep
that is a table of the paper is shown in the paper's layout.

Bold is the best row where it is told apart from every other: t tests, paired on equal data seeds, Holm over the
comparisons. A row with ? is undecided against the best; with --margin, one with ≈ is shown to be equivalent to it.
"""

_REFERENCE = """\
Set the costs that arXiv 2510.04800 prints beside those of our specs, in the paper's convention.

Every derived column (parameters, layers, tokens, FLOPs, cache) of v1's Tables 2, 3, 4 and 6 and of v3's Tables 9 to 12
and 14 to 21 (but 16, whose numbers are not in the data) is computed from the cell of the sweep in conf/sweep that the
row is. A cell agrees if its computed value lies within half a unit of the last digit that is printed; nothing is fitted
to make one agree. Those that do not are listed with both numbers and, where something is known of it, why.

Beside it, without --table: what the full convention changes. With Tables 18 and 19: the noise in their printed losses.
Needs no store and trains nothing.
"""

_REFERENCE_EXAMPLES = """\
examples:
  python -m analysis reference                          counts of all tables, then every cell that does not agree
  python -m analysis reference --table 2 --table 9      of these two
  python -m analysis reference --table 9 --all          its cells that agree too
  python -m analysis reference --format json | jq '.[] | select(.agrees | not)'

JSON is a list of every compared cell: {table, row, column, printed, computed, digits, agrees, reason}.

exit codes: 0 done, whatever agrees: a disagreement is a finding; 2 there is no such table, or no sweep has a row of it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code. Raises SystemExit for arguments that argparse itself refuses."""
    parser, commands = _parsers()
    args, rest = parser.parse_known_args(arguments)
    # argparse closes a list of positionals at the first option, so overrides behind one arrive here.
    refused = [text for text in rest if text.startswith("-")]
    if refused:
        commands[args.command].error(f"unrecognized arguments: {' '.join(refused)}")
    if args.command in ("compare", "reference"):
        if rest:
            commands[args.command].error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        args.overrides += rest
    from sweeps.store import StoreError

    code = 0
    thresholds = gc.get_threshold()
    gc.set_threshold(_MANY_OBJECTS, *thresholds[1:])
    try:
        if args.command == "tables":
            code = _tables(args)
        elif args.command == "figures":
            _figures(args)
        elif args.command == "claims":
            _claims(args)
        elif args.command == "scaling":
            _scaling(args)
        elif args.command == "report":
            _report(args)
        elif args.command == "compare":
            _compare(args)
        else:
            _reference(args)
        sys.stdout.flush()
    except ConfigError as error:
        return _complain(error, 2)
    except (StoreError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader left, as `head` does; Python must not try to flush once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return _complain(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        gc.set_threshold(*thresholds)
    return code


def _complain(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m analysis", description=_ABOUT, epilog=_EXAMPLES, formatter_class=form, allow_abbrev=False
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tables = subparsers.add_parser(
        "tables", help="print the table of a request", description=_TABLES, formatter_class=form, allow_abbrev=False
    )
    figures = subparsers.add_parser(
        "figures",
        help="draw a figure of a request, or one of the paper's",
        description=figures_command.about(),
        epilog=figures_command.EXAMPLES,
        formatter_class=form,
        allow_abbrev=False,
    )
    figures_command.add_arguments(figures)
    tables.add_argument("request", metavar="REQUEST", help="a sweep's name, or `latest`")
    tables.add_argument(
        "overrides", metavar="OVERRIDE", nargs="*", help="the overrides it was asked for with, in any order"
    )
    tables.add_argument(
        "--store", metavar="DIR", type=Path, help="where the results are (default: $HYBRID_STORE, else ./store)"
    )
    tables.add_argument("--format", choices=FORMATS, default="markdown", help="what to print (default: markdown)")
    tables.add_argument("--out", metavar="DIR", type=Path, help="also write all formats and the figure here")
    _add_table_options(tables)
    tables.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="the paper's columns, or those that differ (default: the paper's for its tables, without --metric)",
    )
    tables.add_argument(
        "--source", choices=SOURCES, default="store", help="paper: the printed numbers, no store (default: store)"
    )
    tables.add_argument(
        "--reference", action="store_true", help="the paper's printed numbers below ours, with the difference"
    )
    tables.add_argument(
        "--check",
        metavar="PATH",
        nargs="+",
        type=Path,
        help="compare with these files, or all tables in a directory, as --out writes them; print what differs",
    )
    tables.add_argument(
        "--figure", action=argparse.BooleanOptionalAction, help="draw the figure too (default: if --out is given)"
    )
    claims = subparsers.add_parser(
        "claims",
        help="judge the paper's claims, by its numbers or by ours",
        description=claims_command.ABOUT,
        epilog=claims_command.EXAMPLES,
        formatter_class=form,
        allow_abbrev=False,
    )
    claims_command.add_arguments(claims)
    scaling = subparsers.add_parser(
        "scaling",
        help="fit compute-optimal scaling laws",
        description=scaling_command.ABOUT,
        epilog=scaling_command.EXAMPLES,
        formatter_class=form,
        allow_abbrev=False,
    )
    scaling_command.add_arguments(scaling)
    report = subparsers.add_parser(
        "report",
        help="write one HTML file of what requests came to",
        description=report_command.ABOUT,
        epilog=report_command.EXAMPLES,
        formatter_class=form,
        allow_abbrev=False,
    )
    report_command.add_arguments(report)
    _add_table_options(report)
    reference = subparsers.add_parser(
        "reference",
        help="set the paper's printed costs beside ours",
        description=_REFERENCE,
        epilog=_REFERENCE_EXAMPLES,
        formatter_class=form,
        allow_abbrev=False,
    )
    reference.add_argument(
        "--table", metavar="NUMBER", action="append", default=[], help="this table alone; may be repeated"
    )
    reference.add_argument("--all", action="store_true", help="list the cells that agree too")
    reference.add_argument("--format", choices=REFERENCE_FORMATS, default="text", help="what to print (default: text)")
    compare = subparsers.add_parser(
        "compare",
        help="compare two runs by the questions that both were asked",
        description=questions.ABOUT,
        epilog=questions.EXAMPLES,
        formatter_class=form,
        allow_abbrev=False,
    )
    questions.add_arguments(compare)
    compare.add_argument("--format", choices=FORMATS, default="markdown", help="what to print (default: markdown)")
    commands = {"tables": tables, "figures": figures, "claims": claims, "scaling": scaling, "compare": compare}
    return parser, {**commands, "report": report, "reference": reference}


def _add_table_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--metric",
        metavar="NAME",
        help="what the table is about (default: the sweep's own, else solved or val_loss_nats)",
    )
    command.add_argument(
        "--against", metavar="ROW", help="also the differences from this row (a probe: these comparisons only)"
    )
    command.add_argument(
        "--margin", metavar="X", type=_margin, help="differences within ±X are too small to matter (default: none are)"
    )


def _tables(args: argparse.Namespace) -> int:
    from analysis.check import differences, table_files
    from analysis.render import render

    if args.figure and args.out is None:
        raise ConfigError("--figure: expected --out DIR with it, to say where the figure goes")
    tables, drawn_from = _made(args)
    if args.check:
        changed = differences(table_files(tables), args.check)
        print(changed, end="")
        return 1 if changed else 0
    # A CSV file is one table; the comparisons have a file of their own under --out.
    text = render(tables[:1] if args.format == "csv" else tables, args.format)
    print(_bold_titles(text) if args.format == "markdown" and _on_terminal() else text, end="")
    if args.format == "csv" and len(tables) > 1 and args.out is None:
        print(f"note: {tables[1].title.lower()} are left out of CSV; --out or --format json has them", file=sys.stderr)
    if args.out is None:
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in table_files(tables).items():
        written.append(args.out / name)
        written[-1].write_text(content, encoding="utf-8")
    if drawn_from is not None and args.figure is not False:
        written += _draw(*drawn_from, args.out, optional=args.figure is None)
    _say_where(written)
    return 0


def _made(args: argparse.Namespace) -> "tuple[tuple[Table[Any], ...], tuple[Results, Store] | None]":
    """The tables that are asked for, and what a figure of them would be drawn from: nothing, if none of it is ours."""
    from analysis.load import open_store
    from analysis.tables import LAYOUTS, build_tables
    from analysis.tables.paper import printed_table, reference_table

    chosen = {"metric": args.metric, "against": args.against, "margin": args.margin}
    given = [f"--{name} {value}" for name, value in chosen.items() if value is not None]
    if args.source == "paper":
        if args.reference or args.layout == "plain" or given:
            other = "--reference" if args.reference else (given or ["--layout plain"])[0]
            raise ConfigError(f"{other}: --source paper has the printed numbers alone, as they are printed")
        return (printed_table(args.request, args.overrides),), None
    path = _store_path(args)
    if args.reference and args.request in LAYOUTS and not given and args.layout != "plain":
        if not path.is_dir():
            return (reference_table(args.request, args.overrides, f"No run of ours: there is no store {path}."),), None
        if not open_store(path).requests(args.request):
            missing = f"No run of ours: {args.request} was never asked for in the store {path}."
            return (reference_table(args.request, args.overrides, missing),), None
    try:
        results, store = _load(path, args.request, args.overrides)
    except ConfigError as error:
        if args.request not in LAYOUTS:
            raise
        hint = f"what the paper prints: python -m analysis tables {args.request} --source paper"
        raise ConfigError([*error.problems, hint]) from None
    tables = build_tables(
        results,
        args.metric,
        against=args.against,
        margin=args.margin,
        layout=args.layout,
        reference=args.reference,
    )
    return tables, (results, store)


def _figures(args: argparse.Namespace) -> None:
    def load(name: str, overrides: Sequence[str]) -> "tuple[Results, Store]":
        return _load(_store_path(args), name, overrides)

    _say_where(figures_command.run(args, load))


def _claims(args: argparse.Namespace) -> None:
    print(claims_command.run(args, _bold if _on_terminal() else str, DEFAULT_STORE), end="")


def _scaling(args: argparse.Namespace) -> None:
    text, written = scaling_command.run(args, _bold if _on_terminal() else str, DEFAULT_STORE)
    print(text, end="")
    _say_where(written)


def _report(args: argparse.Namespace) -> None:
    from analysis.load import open_store

    _say_where([report_command.run(args, open_store(_store_path(args)))])


def _compare(args: argparse.Namespace) -> None:
    from analysis.load import open_store
    from analysis.render import render

    table = questions.comparison(open_store(_store_path(args)), args.first, args.second)
    text = render([table], args.format)
    print(_bold_titles(text) if args.format == "markdown" and _on_terminal() else text, end="")


def _reference(args: argparse.Namespace) -> None:
    from analysis.reference import show
    from analysis.reference.compare import Sweeps
    from analysis.reference.findings import find
    from sweeps.compose import Composer

    with Composer() as composer:
        findings = find(Sweeps(composer), args.table)
    match args.format:
        case "json":
            text = show.as_json(findings)
        case "md":
            text = show.as_markdown(findings, everything=args.all)
        case _:
            bold = _bold if _on_terminal() else str
            text = show.as_text(findings, everything=args.all, bold=bold)
    print(text, end="")


def _load(path: Path, name: str, overrides: Sequence[str]) -> "tuple[Results, Store]":
    from analysis.load import load, open_store, request_of
    from sweeps.index import records_for

    store = open_store(path)
    request = request_of(store, name, overrides)
    return load(records_for(store, len(request.all_cells)), request), store


def _store_path(args: argparse.Namespace) -> Path:
    return args.store or Path(os.environ.get("HYBRID_STORE") or DEFAULT_STORE)


def _margin(text: str) -> float:
    """Raises argparse's own error for what is no positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0, in the metric's unit")
    return value


def _draw(results: "Results", store: "Store", directory: Path, *, optional: bool) -> list[Path]:
    """The figure's files; none, with a word on stderr, if it is optional and there is nothing to draw."""
    from analysis.figures.command import write_figure

    try:
        return list(write_figure(results, store.metrics, directory))
    except ConfigError as error:
        if not optional:
            raise
        print(f"note: no figure: {error}", file=sys.stderr)
        return []


def _say_where(paths: Sequence[Path]) -> None:
    """On stderr, so that stdout holds the table and nothing else."""
    for path in paths:
        print(f"wrote {path}", file=sys.stderr)


def _on_terminal() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _bold(line: str) -> str:
    return f"\033[1m{line}\033[0m"


def _bold_titles(text: str) -> str:
    return "\n".join(_bold(line) if line.startswith("### ") else line for line in text.split("\n"))


if __name__ == "__main__":
    sys.exit(main())
