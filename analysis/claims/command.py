"""`python -m analysis claims`: its arguments, and what it prints."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from analysis import stats
from hybrid.spec import ConfigError

FORMATS: Final = ("text", "md", "json")
SOURCES: Final = ("paper", "store")

ABOUT: Final = """\
Judge the claims of arXiv 2510.04800 by numbers: those that the paper prints, or the records of a store.

Each of its 39 claims is a predicate: comparisons of rows, or facts that follow from our specs, which have no noise. One
claim is one of

  holds        shown, at the level, among all claims that are judged together (Holm)
  fails        the contrary is shown, or arithmetic says otherwise
  equivalent   shown to differ by less than the margin, or the same model in two spellings
  undecided    the numbers cannot tell; says how many seeds a row would, if the differences are what they are
  untestable   numbers are missing; says what would give them

The paper has one run a row. Its noise is taken from printed rows that are one model by symmetry (Tables 18 and 19). In
a store the noise is the spread between seeds, pooled over all rows of a scale. Beside each verdict is what general
checks find: printed numbers that point the other way, replicates compared with each other, orders that turn round with
the training recipe, the length or the budget, throughputs of unequal implementations, quoted sizes not reached.
"""

EXAMPLES: Final = """\
examples:
  python -m analysis claims                             every claim by the paper's own numbers
  python -m analysis claims --claim C22 --claim C39     of these two
  python -m analysis claims --json | jq '.[] | select(.verdict == "fails") | .reason'
  python -m analysis claims --source store              by the records of ./store, rows by the names of our sweeps
  python -m analysis claims --source store scale=toy    of requests asked for with scale=toy
  python -m analysis claims --calibrate 20000           how often the rule errs, and what it finds, by simulation

JSON is a list of objects: {id, statement, verdict, reason, numbers, effect, interval, n, noise, seeds_needed, findings,
...}. numbers has an object for each part: what is compared, its rows with their values, estimate and interval.

exit codes: 0 done, whatever the verdicts; 2 there is no such claim, store or setting.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "overrides",
        metavar="OVERRIDE",
        nargs="*",
        help="with --source store: overrides that the requests were asked for with, such as scale=toy",
    )
    command.add_argument("--source", choices=SOURCES, default="paper", help="whose numbers (default: paper)")
    command.add_argument(
        "--store", metavar="DIR", type=Path, help="where the results are (default: $HYBRID_STORE, else ./store)"
    )
    command.add_argument("--claim", metavar="ID", action="append", default=[], help="this claim alone; may be repeated")
    command.add_argument("--format", choices=FORMATS, default=None, help="what to print (default: text)")
    command.add_argument("--json", action="store_true", help="the same as --format json")
    command.add_argument(
        "--margin", metavar="NATS", default=None, help="losses nearer than this are equivalent (default: 0.005)"
    )
    command.add_argument(
        "--level", metavar="P", default=str(stats.LEVEL), help=f"of intervals and verdicts (default: {stats.LEVEL})"
    )
    command.add_argument(
        "--calibrate", metavar="N", default=None, help="judge N simulated papers instead, of which nothing is true"
    )


def run(args: argparse.Namespace, bold: Callable[[str], str], default_store: str) -> str:
    """What to print. Raises ConfigError for what does not exist."""
    from analysis.claims.judge import Settings
    from analysis.claims.source import PaperRows, PrintedSource, Source, StoreSource
    from analysis.claims.verdicts import chosen, judge_claims
    from analysis.reference.compare import Sweeps
    from analysis.reference.printed import read_printed
    from sweeps.compose import Composer

    problems: list[str] = []
    settings = Settings(
        level=_number(args.level, "--level", 0.5, 1.0, problems),
        margin=None if args.margin is None else _number(args.margin, "--margin", 0.0, 10.0, problems),
    )
    simulations = None if args.calibrate is None else round(_number(args.calibrate, "--calibrate", 99, 1e7, problems))
    form = args.format or ("json" if args.json else "text")
    if args.json and form != "json":
        problems.append(f"--json with --format {form}: expected one of the two")
    if args.source == "paper" and (args.overrides or args.store):
        given = args.overrides[0] if args.overrides else "--store"
        problems.append(f"{given}: expected --source store with it")
    problems += [f"{text}: expected an override such as scale=toy" for text in args.overrides if "=" not in text]
    try:
        chosen(args.claim)
    except ConfigError as error:
        problems += error.problems
    if simulations is not None and args.claim:
        problems.append("--calibrate with --claim: expected one of the two; all claims are judged together")
    if problems:
        raise ConfigError(problems)
    with Composer() as composer:
        rows = PaperRows(read_printed(), Sweeps(composer))
        source: Source = PrintedSource(rows)
        if args.source == "store":
            from analysis.load import open_store

            store = open_store(args.store or Path(os.environ.get("HYBRID_STORE") or default_store))
            source = StoreSource(rows, store, args.overrides)
        if simulations is not None:
            from analysis.claims.calibrate import calibrate, show

            return show(calibrate(source, settings, simulations), form)
        verdicts = judge_claims(source, settings, args.claim)
        from analysis.claims import show as shown

        match form:
            case "json":
                return shown.as_json(verdicts)
            case "md":
                return shown.as_markdown(verdicts)
            case _:
                return shown.as_text(verdicts, bold=bold)


def _number(text: Any, name: str, above: float, below: float, problems: list[str]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not above < value < below:
        problems.append(f"{name} = {text}: expected a number above {above:g} and below {below:g}")
    return value
