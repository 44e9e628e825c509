"""`python -m analysis scaling`: its arguments, and what it prints."""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hybrid.spec import ConfigError

if TYPE_CHECKING:
    from analysis.scaling.points import Convention, Points
    from analysis.scaling.study import Settings, Told

METHODS: Final = ("isoflop", "parametric")
ESTIMATORS: Final = ("huber", "lad")
CURVES: Final = ("akima", "quadratic")
RULES: Final = ("bracketed", "inside")
CONVENTIONS: Final = ("paper", "full")
DEFAULT_RESAMPLES: Final = 4000
_FEWEST_RESAMPLES: Final = 100
_PATIENCE_S: Final = 2.0
_WINDOW: Final = 10.0

ABOUT: Final = """\
Fit how loss depends on parameters N, training tokens D and compute C, for each architecture, with its uncertainty.

  isoflop      At each budget the size of least loss: the lowest point of an Akima spline in log N through the sizes
               (or of a parabola: --curve quadratic). Then N_opt ~ C^a and D_opt ~ C^b through these, weighted by how
               far noise moves each. A minimum counts only if the lowest size has a higher one on both sides.
  parametric   L(N, D) = E + A/N^alpha + B/D^beta over all points. `huber`: the Huber function of log residuals, delta
               1e-3, summed; `lad`: its limit, least absolute deviations. The optimum is shown to be one: gradient,
               Hessian (of lad: multipliers), and how many descents end in it. a = beta / (alpha + beta).

Points come from a request of the store, from a CSV file, or, with --reference, from the 71 runs that arXiv 2510.04800v3
prints, of which everything is asked: both methods, both conventions of cost, without each size.

What the conclusions depend on is printed first: the other convention, the other rule, each size and each budget left
out, the highest losses dropped, outliers and short runs left out.
"""

EXAMPLES: Final = """\
examples:
  python -m analysis scaling isoflop --request isoflop scale=toy        of `python run.py -m +sweep=isoflop scale=toy`
  python -m analysis scaling parametric --request isoflop --convention full
  python -m analysis scaling parametric --points runs.csv --columns n=params,d=tokens,loss=val_loss,group=arch
  python -m analysis scaling parametric --points runs.csv --estimator lad --drop-highest 5
  python -m analysis scaling isoflop --points runs.csv --out figures    also isoflop.png .svg .pdf, and scaling.json
  python -m analysis scaling isoflop --points runs.csv --noise 0.003    a run's spread between seeds, in nats, if known
  python -m analysis scaling parametric --points runs.csv --json | jq '.groups[] | {a, b}'
  python -m analysis scaling --reference                                the paper's own question, by its own numbers

columns of a CSV file, by these names or as --columns says:
  n      parameters (1.2e9, 1.2B and 1200M are one number)
  d, c   training tokens and FLOPs; one of the two will do: C = 6 N D. With both, C is what you count
  loss   nats a token
  group  what is fitted by itself, such as the architecture (default: one group, `all`)
  trunk  what runs share that are cooled down from one long run; they are resampled together
Of a request N, D and C are those of each run's spec (--convention), groups its rows, and trunks known.

JSON of parametric: {"groups": {name: {E, A, B, alpha, beta, objective, n_points, standard_errors, intervals, a, b}}};
of isoflop: {"groups": {name: {a, b, a_interval, budgets: [{flops, n_opt, d_opt, loss, n_points, interior}]}}}; beside
`groups` what the text says too.

exit codes: 0 done; 2 a mistake in what was typed, or points that cannot be fitted; 1 anything else.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("method", metavar="isoflop|parametric", nargs="?", help="how to fit; with --reference both")
    command.add_argument(
        "overrides", metavar="OVERRIDE", nargs="*", help="with --request: those it was asked for with, in any order"
    )
    source = command.add_argument_group("where the points are")
    source.add_argument("--request", metavar="NAME", help="a request of the store, or `latest`")
    source.add_argument("--points", metavar="FILE.csv", type=Path, help="a CSV file with a header")
    source.add_argument("--reference", action="store_true", help="the paper's 71 runs, and its question")
    source.add_argument("--columns", metavar="n=...,loss=...", help="which columns of the CSV file are meant")
    source.add_argument(
        "--store", metavar="DIR", type=Path, help="where requests are (default: $HYBRID_STORE, else ./store)"
    )
    source.add_argument("--metric", metavar="NAME", default=None, help="of a request (default: val_loss_nats)")
    source.add_argument(
        "--convention", choices=CONVENTIONS, default=None, help="how a request's N and C are counted (default: paper)"
    )
    fit = command.add_argument_group("how to fit")
    fit.add_argument("--estimator", choices=ESTIMATORS, default=None, help="of parametric (default: huber)")
    fit.add_argument("--curve", choices=CURVES, default=None, help="of isoflop (default: akima)")
    fit.add_argument("--minimum", choices=RULES, default=None, help="which minima count (default: bracketed)")
    fit.add_argument(
        "--window", metavar="X", default=None, help=f"sizes within X times for a parabola (default: {_WINDOW:g})"
    )
    fit.add_argument(
        "--drop-highest", metavar="K", default="0", help="leave out the K highest losses of each group (default: 0)"
    )
    uncertainty = command.add_argument_group("uncertainty")
    uncertainty.add_argument(
        "--bootstrap", metavar="N", default=None, help=f"resamples; 0: no intervals (default: {DEFAULT_RESAMPLES})"
    )
    uncertainty.add_argument("--seed", metavar="S", default="0", help="of the resamples (default: 0)")
    uncertainty.add_argument(
        "--noise",
        metavar="NATS",
        default=None,
        help="a run's standard deviation between seeds (default: from the points)",
    )
    out = command.add_argument_group("what comes out")
    out.add_argument("--json", action="store_true", help="JSON instead of text")
    out.add_argument("--out", metavar="DIR", type=Path, help="also write figures (PNG, SVG, PDF) and scaling.json here")


def run(args: argparse.Namespace, bold: Callable[[str], str], default_store: str) -> tuple[str, list[Path]]:
    """What to print, and the files written. Raises ConfigError for what cannot be done."""
    settings = _settings(args)
    if args.reference:
        from analysis.scaling import reference

        answer = reference.answer(settings, told=_progress())
        written = [] if args.out is None else reference.write(answer, args.out)
        return (reference.as_json(answer) if args.json else reference.as_text(answer, bold=bold)), written
    from analysis.scaling import show
    from analysis.scaling.diagnostics import diagnose
    from analysis.scaling.study import isoflop, parametric

    convention: Convention = args.convention or "paper"
    points, others = _points(args, convention, default_store)
    told = _progress()
    study = isoflop(points, settings, told) if args.method == "isoflop" else parametric(points, settings, told)
    diagnosis = diagnose(study, others)
    text = show.as_json(study, diagnosis)
    written = []
    if args.out is not None:
        from analysis.scaling.figures import write_figures

        args.out.mkdir(parents=True, exist_ok=True)
        written = [args.out / "scaling.json", *write_figures(study, args.out)]
        written[0].write_text(text, encoding="utf-8")
    return (text if args.json else show.as_text(study, diagnosis, bold=bold)), written


def _settings(args: argparse.Namespace) -> "Settings":
    """Raises ConfigError with all that is wrong."""
    problems: list[str] = []
    given = [name for name in ("request", "points", "reference") if getattr(args, name)]
    if args.reference:
        problems += [
            f"--{name}: expected without --reference, which says it itself"
            for name in ("convention", "estimator", "curve", "minimum", "metric", "columns", "store")
            if getattr(args, name) is not None
        ]
        if args.method is not None:
            problems.append(f"{args.method}: expected without --reference, which asks for both methods")
    elif args.method not in METHODS:
        from hybrid.decode import did_you_mean

        said = "nothing" if args.method is None else args.method
        problems.append(f"method = {said}: expected a way to fit{did_you_mean(str(args.method), METHODS)}")
    if len(given) != 1:
        said = " and ".join(f"--{name}" for name in given) or "none"
        problems.append(f"points = {said}: expected exactly one of --request NAME, --points FILE.csv and --reference")
    if args.overrides and not args.request:
        problems.append(f"{args.overrides[0]}: overrides belong to --request NAME")
    problems += [f"{text}: expected an override such as scale=toy" for text in args.overrides if "=" not in text]
    only = {"columns": "points", "store": "request", "metric": "request", "convention": "request"}
    problems += [
        f"--{name}: expected --{needs} with it"
        for name, needs in only.items()
        if getattr(args, name) is not None and getattr(args, needs) is None and not args.reference
    ]
    if args.method == "isoflop" and args.estimator is not None:
        problems.append(f"--estimator {args.estimator}: only parametric has estimators")
    if args.method == "parametric":
        problems += [
            f"--{name} {getattr(args, name)}: only isoflop has curves"
            for name in ("curve", "minimum", "window")
            if getattr(args, name) is not None
        ]
    window = _number(args.window, "--window", _WINDOW, above=1.0, problems=problems)
    noise = _number(args.noise, "--noise", None, above=0.0, problems=problems)
    resamples = _whole(args.bootstrap, "--bootstrap", DEFAULT_RESAMPLES, problems)
    if 0 < resamples < _FEWEST_RESAMPLES:
        problems.append(f"--bootstrap = {resamples}: expected 0, or {_FEWEST_RESAMPLES} at least for an interval")
    drop = _whole(args.drop_highest, "--drop-highest", 0, problems)
    seed = _whole(args.seed, "--seed", 0, problems)
    if problems:
        raise ConfigError(problems)
    from analysis.scaling.isoflop import Options
    from analysis.scaling.study import Settings

    return Settings(
        estimator=args.estimator or "huber",
        drop_highest=drop,
        bootstrap=resamples,
        seed=seed,
        noise=noise,
        curve=Options(method=args.curve or "akima", rule=args.minimum or "bracketed", window=window or _WINDOW),
    )


def _points(
    args: argparse.Namespace, convention: "Convention", default_store: str
) -> "tuple[Points, dict[Convention, Points]]":
    """The points, and the same by the other convention, where there is one."""
    from analysis.scaling.points import CONVENTIONS as ALL
    from analysis.scaling.points import of_results, parse_columns, read_csv

    if args.points is not None:
        return read_csv(args.points, parse_columns(args.columns)), {}
    from analysis.load import load, open_store, request_of

    store = open_store(args.store or Path(os.environ.get("HYBRID_STORE") or default_store))
    results = load(store, request_of(store, args.request, args.overrides))
    metric = args.metric or "val_loss_nats"
    others = {other: of_results(results, metric, other) for other in ALL if other != convention}
    return of_results(results, metric, convention), others


def _number(text: str | None, name: str, default: float | None, *, above: float, problems: list[str]) -> float | None:
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > above):
        problems.append(f"{name} = {text}: expected a number above {above:g}")
    return value


def _whole(text: str | None, name: str, default: int, problems: list[str]) -> int:
    if text is None:
        return default
    if not text.isdecimal():
        problems.append(f"{name} = {text}: expected a whole number, 0 or more")
        return default
    return int(text)


def _progress() -> "Told | None":
    """A line on stderr that says how far a long bootstrap has got; nothing where nobody looks."""
    if not sys.stderr.isatty():
        return None
    begin = time.monotonic()

    def told(group: str, done: int, of: int) -> None:
        if time.monotonic() - begin > _PATIENCE_S:
            print(
                f"\r\033[K{group}: {done:,} of {of:,} resamples",
                end="" if done < of else "\r\033[K",
                file=sys.stderr,
                flush=True,
            )

    return told
