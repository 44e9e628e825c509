"""`python -m analysis figures`: its arguments, and the files that it writes."""

import argparse
import fnmatch
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from analysis.figures.catalogue import ALL, FIGURES, LIST, figure_called, listing, names, title_of_figure
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

if TYPE_CHECKING:
    from analysis.figures.numbers import Metrics
    from analysis.figures.ours import Asked
    from analysis.figures.picture import Picture
    from analysis.load import Results
    from sweeps.store import Store

# As `analysis.figures.kinds` and `draw` have them, which are imported when called.
KINDS: Final = (
    *("curves", "survival", "final", "pareto", "quality-throughput", "training-cost", "throughput", "cache"),
    *("position-loss", "needle", "weights", "positions", "dimensions"),
)
COSTS: Final = ("flops", "train-speed", "time", "params", "cache", "decode-speed")
FORMATS: Final = ("png", "svg", "pdf", "json")
SOURCES: Final = ("store", "paper")
_WIDTHS_IN: Final = (2.0, 20.0)

ABOUT: Final = f"""\
Draw a figure: of a request, or one of the paper's from our runs or from what it prints.

A request is drawn as its data allow: survival curves for a probe, else loss curves with a band over seeds and the final
losses with their intervals. --kind asks for another: {", ".join(KINDS[:5])},
{", ".join(KINDS[5:])}.
`figures list` says what each is. What no run has recorded is named, with what would record it, and not drawn.

The paper's figures, from the request of their sweep (overrides such as scale=toy say which) or, with --source paper,
from printed numbers:

{{listing}}
Intervals, n and pooling are those of the tables. Colours are told apart by the colour-blind, and in grey by dashes and
markers. The same results give the same bytes.
"""
EXAMPLES: Final = """\
examples:
  python -m analysis figures demo                       figure.png and figure.svg of `python run.py -m +sweep=demo`
  python -m analysis figures demo_text --kind final     final losses with intervals, the best row first
  python -m analysis figures table4 scale=toy --kind pareto --cost cache --format pdf
  python -m analysis figures fig1b --source paper       quality against throughput, as the paper prints it
  python -m analysis figures fig3b scale=toy --rows Llama --rows '*-H'
  python -m analysis figures all --source paper --out figures --format pdf --width 3.3 --no-caption
  python -m analysis figures fig3a --source paper --format json     the numbers that are drawn

With --no-caption title and caption are left to LaTeX: NAME.tex is a figure environment that has them.

exit codes: 0 done; 2 something asked for does not exist, or was never recorded; 1 anything else.
"""


def about() -> str:
    return ABOUT.format(listing="".join(f"  {line}\n" for line in listing().splitlines()))


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "request", metavar="WHAT", help=f"a sweep's name or `latest`; a figure of the paper; `{ALL}` of them; `{LIST}`"
    )
    command.add_argument(
        "overrides", metavar="OVERRIDE", nargs="*", help="the overrides it was asked for with, in any order"
    )
    command.add_argument(
        "--store", metavar="DIR", type=Path, help="where the results are (default: $HYBRID_STORE, else ./store)"
    )
    command.add_argument(
        "--source", choices=SOURCES, default="store", help="paper: what it prints, no store (default: store)"
    )
    command.add_argument("--kind", metavar="KIND", help="what to draw of a request (default: by its data)")
    command.add_argument("--metric", metavar="NAME", help="the measure of quality (default: as in the table)")
    command.add_argument("--cost", metavar="NAME", help=f"what --kind pareto sets it against: {', '.join(COSTS)}")
    command.add_argument(
        "--rows",
        metavar="PATTERN",
        action="append",
        default=[],
        help="draw these rows alone, such as 'Inter-H *'; may be repeated",
    )
    command.add_argument("--out", metavar="DIR", type=Path, default=Path(), help="where to write (default: here)")
    command.add_argument(
        "--format",
        metavar="FORMAT",
        nargs="+",
        default=["png", "svg"],
        help=f"any of {', '.join(FORMATS)} (default: png svg)",
    )
    command.add_argument("--width", metavar="INCHES", type=float, default=7.0, help="of the picture (default: 7)")
    command.add_argument(
        "--caption",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="title and caption in the picture (default), or in NAME.tex",
    )


Loader = Callable[[str, Sequence[str]], "tuple[Results, Store]"]


def run(args: argparse.Namespace, load: Loader) -> list[Path]:
    """Draw what is asked for; gives the files. `load` gives the results of a request by name and overrides.

    Raises ConfigError for what does not exist and for what nobody has recorded.
    """
    _check(args)
    if args.request == LIST:
        from analysis.figures.kinds import KINDS as MAKERS

        kinds = [f"{name:<{max(map(len, MAKERS))}}  {kind.what}\n" for name, kind in MAKERS.items()]
        sys.stdout.write("".join([listing(), "\nkinds of figure of any request (--kind):\n", *kinds]))
        return []
    from analysis.figures.ours import Asked

    asked = Asked(metric=args.metric, cost=args.cost, rows=tuple(args.rows))
    if args.request == ALL and args.kind is None:
        return _every(args, asked, load)
    called = figure_called(args.request) if args.kind is None else None
    if called is None:
        if args.source == "paper":
            raise ConfigError(
                f"figure = {args.request}: the paper has no such figure here{did_you_mean(args.request, names())}"
            )
        return _write(args, _of_request(args, asked, load), args.kind or "figure")
    if args.source == "store":
        return _write(args, _of_figure(called, args.overrides, asked, load), called)
    from analysis.figures.paper import Paper
    from sweeps.compose import Composer

    with Composer() as composer:
        return _write(args, Paper(composer).picture(called, asked), called)


def write_figure(results: "Results", metrics: "Metrics", directory: Path) -> tuple[Path, ...]:
    """Draw the request's figure into `directory` as figure.png and figure.svg.

    `metrics` gives the metric lines of a run id. Raises ConfigError if there is nothing to draw yet.
    """
    from analysis.figures.draw import write
    from analysis.figures.kinds import picture_of
    from analysis.figures.ours import Asked, Ours

    ours = Ours(results=results, read=lambda _: metrics, asked=Asked())
    return write(picture_of(ours, None), directory, name="figure")


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError with all that is wrong by itself. An override that stands behind --format is one again."""
    # argparse gives a list of values all that follows.
    args.overrides += [word for word in args.format if "=" in word]
    args.format = [word for word in args.format if "=" not in word] or ["png", "svg"]
    problems = [
        f"--format {word}: no such format{did_you_mean(word, FORMATS)}" for word in args.format if word not in FORMATS
    ]
    low, high = _WIDTHS_IN
    if not (math.isfinite(args.width) and low <= args.width <= high):
        problems.append(f"--width {args.width:g}: expected {low:g} to {high:g} inches")
    if args.kind is not None and args.kind not in KINDS:
        problems.append(f"--kind {args.kind}: no such kind of figure{did_you_mean(args.kind, KINDS)}")
    if args.cost is not None and args.cost not in COSTS:
        problems.append(f"--cost {args.cost}: no such measure of cost{did_you_mean(args.cost, COSTS)}")
    if args.cost is not None and args.kind != "pareto":
        problems.append(f"--cost {args.cost}: expected --kind pareto with it")
    if args.source == "paper" and args.kind is not None:
        problems.append(f"--kind {args.kind} with --source paper: expected a figure of the paper by its name")
    if args.source == "paper" and args.store is not None:
        problems.append(f"--store {args.store}: expected --source store with it")
    if args.source == "paper" and args.overrides:
        problems.append(
            f"{args.overrides[0]}: expected --source store with overrides; --rows chooses among printed rows"
        )
    if problems:
        raise ConfigError(problems)


def _write(args: argparse.Namespace, picture: "Picture", name: str) -> list[Path]:
    from analysis.figures.draw import write

    formats = list(dict.fromkeys(args.format))
    return list(write(picture, args.out, name=name, formats=formats, width_in=args.width, captioned=args.caption))


def _of_request(args: argparse.Namespace, asked: "Asked", load: Loader) -> "Picture":
    from analysis.figures.kinds import picture_of
    from analysis.figures.ours import Ours

    try:
        results, store = load(args.request, args.overrides)
    except ConfigError as error:
        near = did_you_mean(args.request, names())
        hint = f"figure = {args.request}: the paper has none of that name{near}"
        raise ConfigError([*error.problems, *([hint] if "did you mean" in near else [])]) from None
    return picture_of(Ours(results=results, read=lambda _: store.metrics, asked=asked), args.kind)


def _of_figure(name: str, overrides: Sequence[str], asked: "Asked", load: Loader) -> "Picture":
    """A figure of the paper, of our own runs."""
    from analysis.figures.kinds import picture_of
    from analysis.figures.ours import Ours
    from analysis.figures.recorded import GIVEN_BY, NEEDED

    figure = FIGURES[name]
    hints = [f"what the paper prints: python -m analysis figures {name} --source paper"] if figure.printed else []
    try:
        results, store = load(figure.sweep, overrides)
    except ConfigError as error:
        wanted = (
            f"{name}: it is of the runs of `{' '.join(('python run.py -m', f'+sweep={figure.sweep}', *overrides))}`"
        )
        needed = [f"then {GIVEN_BY[NEEDED[figure.kind]]}"] if figure.kind in NEEDED else []
        raise ConfigError([*error.problems, wanted, *needed, *hints]) from None
    labels = [group.label for group in results.groups]
    usual = tuple(p for p in figure.rows if any(fnmatch.fnmatchcase(label, p) for label in labels))
    ours = Ours(
        results=results, read=lambda _: store.metrics, asked=asked if asked.rows else replace(asked, rows=usual)
    )
    try:
        made = picture_of(ours, figure.kind)
    except ConfigError as error:
        raise ConfigError([*(f"{name}: {problem}" for problem in error.problems), *hints]) from None
    request = " ".join((results.sweep, *results.overrides))
    return replace(
        made, name=name, title=title_of_figure(name), caption=(f"Of our own runs: request {request}.", *made.caption)
    )


def _every(args: argparse.Namespace, asked: "Asked", load: Loader) -> list[Path]:
    """Every figure of the paper that can be drawn; a word on stderr on each that cannot. Raises ConfigError if none."""
    from contextlib import ExitStack

    from analysis.figures.paper import Paper
    from sweeps.compose import Composer

    written, problems = [], []
    with ExitStack() as stack:
        paper = Paper(stack.enter_context(Composer())) if args.source == "paper" else None
        for name in FIGURES:
            try:
                made = paper.picture(name, asked) if paper else _of_figure(name, args.overrides, asked, load)
            except ConfigError as error:
                problems.append(
                    error.problems[0] if error.problems[0].startswith(name) else f"{name}: {error.problems[0]}"
                )
                continue
            written += _write(args, made, name)
    if not written:
        raise ConfigError(problems)
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)
    return written
