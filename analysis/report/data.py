"""What a report says: of requests, from a store or its index; of the paper's claims."""

import json
import shlex
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

from analysis import stats
from analysis.contrasts import rank
from analysis.figures.numbers import Metrics
from analysis.load import STATUS_WORDS, Group, Results, load
from analysis.report.cost import cost_table
from analysis.report.plots import Plot, plots
from analysis.report.runs import Fact, Failure, code_note, facts, failures, runs_table
from analysis.tables import LAYOUTS, Table, build_tables, metric_header, metric_of, show, solved
from analysis.tables.probe import SOLVED
from analysis.tables.words import NAMES_SHOWN, count, metric_better, show_p
from hybrid.spec import ConfigError
from sweeps.cells import UNNAMED
from sweeps.index import Index, records_for
from sweeps.store import Request, Store, StoreError, request_id

_TITLE: Final = 90
MOST_PARTS: Final = 40


Place = Literal["tables", "figures", "cost", "runs", "all"]


@final
@dataclass(frozen=True, kw_only=True)
class Command:
    """What to type, what it makes, and what on the page that is."""

    place: Place
    makes: str
    text: str


@final
@dataclass(frozen=True, kw_only=True)
class RequestReport:
    """A request: what was asked for, what is there, what it says.

    `findings` are whole sentences. `problem` says why there are no tables, where there are none. `failures` are the
    first of `n_failures`. `commands` make again what is shown.
    """

    id: str
    sweep: str
    overrides: tuple[str, ...]
    title: str
    asked_at: str
    commands: tuple[Command, ...]
    counts: tuple[tuple[str, int], ...] = ()
    findings: tuple[str, ...] = ()
    problem: str = ""
    tables: tuple[Table[Any], ...] = ()
    plots: tuple[Plot, ...] = ()
    cost: Table[Any] | None = None
    runs: Table[Any] | None = None
    failures: tuple[Failure, ...] = ()
    n_failures: int = 0
    facts: tuple[Fact, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class SourceVerdict:
    """A claim judged by one source; `judged` is its object in `python -m analysis claims --json`."""

    source: str
    command: str
    judged: Mapping[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class ClaimReport:
    id: str
    section: str
    statement: str
    comparison: str
    verdicts: tuple[SourceVerdict, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Report:
    """`made_at` is the one thing that is not in the store. `problems` are of the store as a whole."""

    made_at: str
    title: str
    requests: tuple[RequestReport, ...]
    claims: tuple[ClaimReport, ...]
    claims_notes: tuple[str, ...]
    problems: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """What the tables of every request are asked for with; see `analysis.tables.build_tables`. `reference` is for those
    that are tables of the paper."""

    metric: str | None = None
    against: str | None = None
    margin: float | None = None
    reference: bool = False

    def words(self) -> tuple[str, ...]:
        """As they are typed."""
        given = {"--metric": self.metric, "--against": self.against, "--margin": self.margin}
        typed = tuple(
            word
            for name, value in given.items()
            if value is not None
            for word in (name, f"{value:g}" if isinstance(value, float) else value)
        )
        return (*typed, *(["--reference"] if self.reference else []))


def report_of(
    store: Store,
    requests: Sequence[Request],
    *,
    made_at: str,
    options: Options,
    claims: tuple[Sequence[ClaimReport], Sequence[str]] = ((), ()),
) -> Report:
    """The report of these requests, in their order.

    Raises ConfigError where an option of the tables fits none of the requests.
    """
    source = records_for(store, sum(len(request.all_cells) for request in requests))
    reports = tuple(_request(source, store, request, options) for request in requests)
    if options.words() and reports and all(report.problem for report in reports):
        raise ConfigError([f"{report.id}: {report.problem}" for report in reports])
    return Report(
        made_at=made_at,
        title=reports[0].title if len(reports) == 1 else f"{count(len(reports), 'request')} of a store",
        requests=reports,
        claims=tuple(claims[0]),
        claims_notes=tuple(claims[1]),
        problems=tuple(store.damaged_requests()),
    )


def _request(source: "Store | Index", store: Store, request: Request, options: Options) -> RequestReport:
    """What cannot be read of one request does not keep the others from being shown."""
    as_typed = textwrap.shorten(" ".join((request.sweep, *request.overrides)), _TITLE, placeholder=" ...")
    report = RequestReport(
        id=request_id(request),
        sweep=request.sweep,
        overrides=request.overrides,
        title=as_typed,
        asked_at=request.created_at[:19],
        commands=tuple(_commands(request, options)),
    )
    report = replace(report, title=str(request.report.get("title") or as_typed))
    if not request.cells:
        return replace(report, problem="it has no cells")
    try:
        return _filled(report, load(source, request), source, store, options)
    except (ConfigError, StoreError) as error:
        return replace(report, problem=str(error))


def _filled(
    report: RequestReport, results: Results, source: "Store | Index", store: Store, options: Options
) -> RequestReport:
    tables, metric, problem = _tables(results, options)
    shown, n_failures = failures(results, store)
    return replace(
        report,
        counts=tuple(_counts(results)),
        findings=tuple(_findings(results, metric, options.margin or 0.0)),
        problem=problem,
        tables=tables,
        plots=plots(results, metric, _metrics(source)),
        cost=cost_table(results, source, store),
        runs=runs_table(results, None if metric == SOLVED else metric),
        failures=shown,
        n_failures=n_failures,
        facts=facts(results.cells),
    )


def _tables(results: Results, options: Options) -> tuple[tuple[Table[Any], ...], str | None, str]:
    """The tables, the metric that they are about, and why there is none of them."""
    try:
        metric = metric_of(results, options.metric)
        made = build_tables(
            results,
            options.metric,
            against=options.against,
            margin=options.margin,
            reference=options.reference and results.sweep in LAYOUTS,
        )
    except ConfigError as error:
        return (), None, "; ".join(error.problems)
    return made, metric, ""


def _metrics(source: "Store | Index") -> Callable[[Sequence[str]], Metrics]:
    return lambda ids: source.metrics_of(ids) if isinstance(source, Index) else source.metrics


def _counts(results: Results) -> Iterator[tuple[str, int]]:
    counts = Counter(STATUS_WORDS.get(cell.status, cell.status) for cell in results.cells)
    yield from counts.most_common()


# --- what came of it, in words ------------------------------------------------------------------


def _findings(results: Results, metric: str | None, margin: float) -> Iterator[str]:
    """The best rows, how sure that is, and what a reader should know before they believe it."""
    if not any(group.final for group in results.groups):
        yield "No run has a result yet."
        return
    if metric == SOLVED:
        yield from _best_of_probe(results)
    elif metric is not None:
        yield from _best(results, metric, margin)
    missing = sum(not cell.final for cell in results.cells)
    if missing:
        runs = f"{missing} of {count(len(results.cells), 'run')}"
        yield f"{runs} {'has' if missing == 1 else 'have'} no result yet: what is said here may change."
    note = code_note(results.cells)
    if note:
        yield note


def _best(results: Results, metric: str, margin: float) -> Iterator[str]:
    header, better = metric_header(metric), metric_better(metric)
    rows = [group for group in results.groups if group.numbers(metric)]
    if better is None or not rows:
        return
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    ranking = rank(results, metric, better, margin=margin)
    leaders = {id(contrast.first): contrast.first for contrast in ranking.contrasts}
    if not leaders:
        for group in rows[:NAMES_SHOWN]:
            yield f"{group.label}: {header} {_said(group, metric, pooling)}; there is no row to compare it with."
        return
    for leader in list(leaders.values())[:NAMES_SHOWN]:
        mine = [contrast for contrast in ranking.contrasts if contrast.first is leader]
        undecided = [contrast.second.label for contrast in ranking.undecided if contrast.first is leader]
        alike = [contrast.second.label for contrast in mine if contrast.finding == "equivalent"]
        told = [contrast for contrast in mine if contrast.finding == better]
        text = f"Best {header}: {leader.label}, {_said(leader, metric, pooling)}"
        if ranking.spreadless:
            yield f"{text}. One seed a row: nothing can be told apart."
            continue
        parts = []
        if told:
            every = len(told) == len(mine)
            worst = max((contrast.p_holm or 0.0 for contrast in told), default=0.0)
            whom = "every other row" if every else _listed([contrast.second.label for contrast in told])
            parts.append(f"told apart from {whom} (largest p {show_p(worst)}, Holm)")
        if alike:
            parts.append(f"equivalent within ±{margin:g} to {_listed(alike)}")
        if undecided:
            parts.append(f"not told apart from {_listed(undecided)}: these runs cannot tell, which is not to be equal")
        yield f"{text}; {'; '.join(parts)}." if parts else f"{text}."
    if len(leaders) > NAMES_SHOWN:
        yield f"Likewise at {len(leaders) - NAMES_SHOWN} more points of the grid: see the table's marks."


def _said(group: Group, metric: str, pooling: stats.Pooling) -> str:
    values = group.numbers(metric)
    return f"{show(stats.estimate(values, pooling))} ({count(len(values), 'seed')})"


def _best_of_probe(results: Results) -> Iterator[str]:
    found = [(group, share) for group in results.groups if (share := solved(group)) is not None and share.n]
    if not found:
        return
    most = max(share.k / share.n for _, share in found)
    best = [(group, share) for group, share in found if share.k / share.n == most]
    named = [f"{group.label} ({show(share)})" for group, share in best]
    yield f"Solved most often: {_listed(named)}. Which rows are told apart: see the comparisons below their table."


def _listed(names: Sequence[str]) -> str:
    left = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {left} more" if left > 0 else "")


# --- how to make it again -----------------------------------------------------------------------


def _commands(request: Request, options: Options) -> Iterator[Command]:
    named = [request.sweep, *request.overrides]
    asked = [*([f"+sweep={request.sweep}"] if request.sweep != UNNAMED else []), *request.overrides]
    options = options if request.sweep in LAYOUTS else replace(options, reference=False)
    of_tables = ["python", "-m", "analysis", "tables", *named, *options.words()]
    places: tuple[tuple[Place, str, list[str]], ...] = (
        ("tables", "these tables, with numbers in full", [*of_tables, "--format", "json"]),
        ("figures", "the figure for print (PNG, SVG)", ["python", "-m", "analysis", "figures", *named]),
        ("cost", "the plan, with what is left to pay", ["python", "-m", "sweeps", "plan", *asked]),
        ("runs", "every run, the scheduler asked", ["python", "-m", "sweeps", "status", request_id(request)]),
        ("all", "the runs: what is missing is run, nothing is run again", ["python", "run.py", "-m", *asked]),
        ("all", "tables and figure as files", [*of_tables, "--out", "out"]),
        ("all", "this page", ["python", "-m", "analysis", "report", *named, *options.words(), "--out", "report.html"]),
    )
    for place, makes, words in places:
        yield Command(place=place, makes=makes, text=shlex.join(words))


# --- claims -------------------------------------------------------------------------------------


def claim_reports(shown: Mapping[str, tuple[str, str]]) -> tuple[ClaimReport, ...]:
    """Claims with their verdicts by each source: what to type for its claims, and what that prints as JSON."""
    verdicts: dict[str, list[SourceVerdict]] = {}
    heads: dict[str, Mapping[str, Any]] = {}
    for source, (command, text) in shown.items():
        for judged in json.loads(text):
            heads.setdefault(judged["id"], judged)
            verdicts.setdefault(judged["id"], []).append(
                SourceVerdict(source=source, command=f"{command} --claim {judged['id']}", judged=judged)
            )
    return tuple(
        ClaimReport(
            id=id_,
            section=head["section"],
            statement=head["statement"],
            comparison=head["comparison"],
            verdicts=tuple(verdicts[id_]),
        )
        for id_, head in heads.items()
    )
