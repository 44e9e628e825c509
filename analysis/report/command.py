"""`python -m analysis report`: its arguments, and the file that it writes."""

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hybrid.spec import ConfigError

if TYPE_CHECKING:
    from analysis.report.data import ClaimReport
    from sweeps.store import Request, Store

CLAIMS: Final = ("both", "paper", "store", "none")

ABOUT: Final = """\
Write one HTML file of what requests came to: tables to sort and filter, figures, plan and cost, failed runs with what
they logged last, where records come from, the paper's claims with their evidence, and the commands that make each
number again.

The file holds all it shows and asks nothing of any network; what runs are called cannot run in it. Overrides belong to
the request before them. Without a request it is of all that the store has, the newest first.
"""

EXAMPLES: Final = """\
examples:
  python -m analysis report                             all requests of ./store, to report.html
  python -m analysis report demo --out demo.html        of one request
  python -m analysis report demo sweep.seeds=3 table4   of two, the first with its override
  python -m analysis report latest --against llama      with differences from a row, paired on equal seeds
  python -m analysis report demo --claims none          without the paper's claims

The time at the top is $SOURCE_DATE_EPOCH where that is set: then the same store gives the same bytes.

exit codes: 0 done; 2 something asked for does not exist; 1 anything else, such as a store of a newer version.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """All but --metric, --against and --margin, which are those of the tables."""
    command.add_argument(
        "overrides",
        metavar="REQUEST",
        nargs="*",
        help="a sweep's name, or `latest`, and after it the overrides it was asked for with (default: every request)",
    )
    command.add_argument(
        "--store", metavar="DIR", type=Path, help="where the results are (default: $HYBRID_STORE, else ./store)"
    )
    command.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("report.html"), help="what to write (default: report.html)"
    )
    command.add_argument(
        "--reference", action="store_true", help="in tables of the paper its printed numbers below ours"
    )
    command.add_argument(
        "--claims",
        choices=CLAIMS,
        default="both",
        help="judge the paper's claims by its numbers, by the store's records, or not at all (default: both)",
    )


def run(args: argparse.Namespace, store: "Store") -> Path:
    """Write the report; gives where it is. Raises ConfigError for what does not exist."""
    from analysis.report.data import Options, report_of
    from analysis.report.page import page

    requests = list(chosen(store, args.overrides))
    options = Options(metric=args.metric, against=args.against, margin=args.margin, reference=args.reference)
    claims = _claims(args.claims, store, requests)
    report = report_of(store, requests, made_at=_now(), options=options, claims=claims)
    out: Path = args.out
    out.parent.mkdir(parents=True, exist_ok=True)
    # A name may hold half a character; it stays readable as a number.
    out.write_text(page(report), encoding="utf-8", errors="xmlcharrefreplace")
    return out


def chosen(store: "Store", words: Sequence[str]) -> "Iterator[Request]":
    """The requests that are meant: names, each with the overrides that follow it; all, the newest first, if none is
    given. Raises ConfigError, with all that is wrong."""
    from analysis.load import request_of

    if not words:
        yield from reversed(store.requests())
        return
    asked: list[tuple[str, list[str]]] = []
    problems = []
    for word in words:
        is_override = "=" in word or word.startswith("~")
        if not is_override:
            asked.append((word, []))
        elif asked:
            asked[-1][1].append(word)
        else:
            problems.append(f"{word}: expected a request before its overrides, such as `latest {word}`")
    found = []
    for name, overrides in asked:
        try:
            found.append(request_of(store, name, overrides))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    yield from {id(request): request for request in found}.values()


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        at = datetime.now(UTC) if not epoch else datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"SOURCE_DATE_EPOCH = {epoch}: expected seconds since 1970") from None
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _claims(
    which: str, store: "Store", requests: "Sequence[Request]"
) -> "tuple[tuple[ClaimReport, ...], tuple[str, ...]]":
    """The claims, and what there is to say of how they were judged."""
    if which == "none":
        return (), ()
    from analysis.claims import show
    from analysis.claims.judge import Settings
    from analysis.claims.source import PaperRows, PrintedSource, Source, StoreSource
    from analysis.claims.verdicts import judge_claims
    from analysis.reference.compare import Sweeps
    from analysis.reference.printed import read_printed
    from analysis.report.data import claim_reports
    from sweeps.compose import Composer

    # Those that all requests of the report were asked for with: a claim is of several sweeps, all of one scale.
    given = [set(request.overrides) for request in requests]
    shared = sorted(set.intersection(*given)) if given else []
    shown: dict[str, tuple[str, str]] = {}
    notes = []
    with Composer() as composer:
        rows = PaperRows(read_printed(), Sweeps(composer))
        sources: dict[str, Source] = {}
        if which in ("both", "paper"):
            sources["paper"] = PrintedSource(rows)
        if which in ("both", "store"):
            sources["store"] = StoreSource(rows, store, shared)
        for name, source in sources.items():
            typed = ["python", "-m", "analysis", "claims", "--source", name, *(shared if name == "store" else ())]
            try:
                shown[name] = (shlex.join(typed), show.as_json(judge_claims(source, Settings())))
            except ConfigError as error:
                notes.append(f"Not judged by the {name}: {'; '.join(error.problems)}.")
    settings = Settings()
    notes.append(
        f'Intervals at {settings.level:.0%}; "holds" is corrected for all claims that are judged together (Holm), '
        "undecided is not equal. Click on a claim for the numbers that its verdicts rest on."
    )
    if "store" in shown:
        of = f"asked for with {' '.join(shared)}" if shared else "asked for without overrides"
        notes.append(f"By this store: records of the paper's sweeps, {of}.")
    return claim_reports(shown), tuple(notes)
