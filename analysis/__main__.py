"""The command line: `python -m analysis tables | figures`. What costs time to import is imported when called."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hybrid.spec import ConfigError

if TYPE_CHECKING:
    from analysis.load import Results
    from sweeps.store import Store

FORMATS: Final = ("markdown", "csv", "latex", "json")
DEFAULT_STORE: Final = "store"

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
  python -m analysis tables demo --out report           also table.md .csv .tex .json and figure.png .svg in report/
  python -m analysis tables demo --format json | jq .   unrounded numbers for another program
  python -m analysis figures demo --out report          the figure alone

exit codes: 0 done; 2 something asked for does not exist; 1 anything else, such as a damaged store.
"""

_TABLES = """\
Print the table of a request.

A probe (runs that stop at a threshold) gives seeds solved k/n, median steps with unsolved seeds censored, what was
spent, and Fisher's exact test between rows, Holm-adjusted. Other runs give a mean over seeds with its interval.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code. Raises SystemExit for arguments that argparse itself refuses."""
    parser, commands = _parsers()
    args, rest = parser.parse_known_args(arguments)
    # argparse closes a list of positionals at the first option, so overrides behind one arrive here.
    refused = [text for text in rest if text.startswith("-")]
    if refused:
        commands[args.command].error(f"unrecognized arguments: {' '.join(refused)}")
    args.overrides += rest
    from sweeps.store import StoreError

    try:
        if args.command == "tables":
            _tables(args)
        else:
            _figures(args)
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
    return 0


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
        help="draw the figure of a request",
        description="Draw survival curves for a probe, else loss curves with a band over seeds.",
        formatter_class=form,
        allow_abbrev=False,
    )
    for command in (tables, figures):
        command.add_argument("request", metavar="REQUEST", help="a sweep's name, or `latest`")
        command.add_argument(
            "overrides", metavar="OVERRIDE", nargs="*", help="the overrides it was asked for with, in any order"
        )
        command.add_argument(
            "--store", metavar="DIR", type=Path, help="where the results are (default: $HYBRID_STORE, else ./store)"
        )
    tables.add_argument("--format", choices=FORMATS, default="markdown", help="what to print (default: markdown)")
    tables.add_argument("--out", metavar="DIR", type=Path, help="also write all formats and the figure here")
    tables.add_argument(
        "--metric",
        metavar="NAME",
        help="what the table is about (default: the sweep's own, else solved or val_loss_nats)",
    )
    tables.add_argument(
        "--figure", action=argparse.BooleanOptionalAction, help="draw the figure too (default: if --out is given)"
    )
    figures.add_argument("--out", metavar="DIR", type=Path, default=Path(), help="where to write (default: here)")
    return parser, {"tables": tables, "figures": figures}


def _tables(args: argparse.Namespace) -> None:
    from analysis.render import FORMATS as FORMS
    from analysis.render import SUFFIXES, render
    from analysis.tables import build_tables

    if args.figure and args.out is None:
        raise ConfigError("--figure: expected --out DIR with it, to say where the figure goes")
    results, store = _load(args)
    tables = build_tables(results, args.metric)
    # A CSV file is one table; the comparisons have a file of their own under --out.
    text = render(tables[:1] if args.format == "csv" else tables, args.format)
    print(_bold_titles(text) if args.format == "markdown" and _on_terminal() else text, end="")
    if args.format == "csv" and len(tables) > 1 and args.out is None:
        print(f"note: {tables[1].title.lower()} are left out of CSV; --out or --format json has them", file=sys.stderr)
    if args.out is None:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    written = []
    for form in FORMS:
        for batch in [(table,) for table in tables] if form == "csv" else [tables]:
            path = args.out / f"{batch[0].name}{SUFFIXES[form]}"
            path.write_text(render(batch, form), encoding="utf-8")
            written.append(path)
    if args.figure is not False:
        written += _draw(results, store, args.out, optional=args.figure is None)
    _say_where(written)


def _figures(args: argparse.Namespace) -> None:
    results, store = _load(args)
    _say_where(_draw(results, store, args.out, optional=False))


def _load(args: argparse.Namespace) -> "tuple[Results, Store]":
    from analysis.load import find_request, load, open_store

    store = open_store(args.store or Path(os.environ.get("HYBRID_STORE") or DEFAULT_STORE))
    return load(store, find_request(store.requests(), args.request, args.overrides)), store


def _draw(results: "Results", store: "Store", directory: Path, *, optional: bool) -> list[Path]:
    """The figure's files; none, with a word on stderr, if it is optional and there is nothing to draw."""
    from analysis.figures import write_figure

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


def _bold_titles(text: str) -> str:
    return "\n".join(f"\033[1m{line}\033[0m" if line.startswith("### ") else line for line in text.split("\n"))


if __name__ == "__main__":
    sys.exit(main())
