"""A report as one HTML file, which asks for nothing from anywhere.

Style and script stand beside this file and are copied into the page, which names them by their hashes in its
Content-Security-Policy: nothing else in it may run, whatever a run is called. What users wrote goes through `escape`,
what the script reads through `json_text`.
"""

import base64
import hashlib
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from analysis.claims.verdicts import VERDICTS
from analysis.render.html import escape
from analysis.render.html import html as table_html
from analysis.report.data import MOST_PARTS, ClaimReport, Place, Report, RequestReport, SourceVerdict
from analysis.report.plots import Plot
from analysis.report.runs import AttemptLine, Fact, Failure
from analysis.tables.words import count

_HERE: Final = Path(__file__).parent
_SOURCES: Final = {"paper": "the paper's numbers", "store": "this store"}


def page(report: Report) -> str:
    """The whole file. The same report gives the same text."""
    style, script = (_HERE / "style.css").read_text("utf-8"), (_HERE / "script.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    title = escape(report.title)
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        '<link rel="icon" href="data:,">',
        f"<title>{title}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        '<a class="skip" href="#main">Skip to the content</a>',
        "<header>",
        f"<h1>{title}</h1>",
        f'<p class="made">Made at <time datetime="{escape(report.made_at)}">{escape(_time(report.made_at))}</time> '
        "by <code>python -m analysis report</code> from the records of a store. Everything is in this file.</p>",
        "</header>",
        *_navigation(report),
        '<main id="main" tabindex="-1">',
        *_overview(report),
    ]
    for number, request in enumerate(report.requests, start=1):
        lines += _request(request, f"r{number}")
    lines += _claims(report)
    lines += [
        "</main>",
        '<p id="said" class="unseen" role="status" aria-live="polite"></p>',
        f"<script>{script}</script>",
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(lines)


def json_text(value: object) -> str:
    """JSON that no HTML parser takes for the end of a script, or for a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _time(iso: str) -> str:
    return f"{iso[:10]} {iso[11:16]} UTC"


# --- the frame ----------------------------------------------------------------------------------


def _navigation(report: Report) -> Iterator[str]:
    entries = [
        (f"#r{i}", textwrap.shorten(_name(request), 60, placeholder=" ..."))
        for i, request in enumerate(report.requests, start=1)
    ]
    entries += [("#claims", "Claims of the paper")] if report.claims else []
    if not entries:
        return
    yield '<nav aria-label="Contents"><ul>'
    yield from (f'<li><a href="{target}">{escape(words)}</a></li>' for target, words in entries)
    yield '</ul><button type="button" class="open-all" hidden>Open all details</button></nav>'


def _name(request: RequestReport) -> str:
    return " ".join((request.sweep, *request.overrides))


def _overview(report: Report) -> Iterator[str]:
    if not report.requests:
        yield "<section><h2>Nothing was asked for yet</h2>"
        yield "<p>The store has no request. Run a sweep first:</p>"
        yield f"{_command('python run.py -m +sweep=demo')}</section>"
    if report.problems:
        yield '<section class="bad"><h2>What could not be read</h2><ul>'
        yield from (f"<li>{escape(problem)}</li>" for problem in report.problems)
        yield "</ul></section>"
    if len(report.requests) < 2:
        return
    yield '<section id="overview"><h2>What was asked for</h2><div class="scroll" tabindex="0"><table>'
    yield '<thead><tr><th scope="col">request</th><th scope="col">overrides</th><th scope="col">asked</th>'
    yield '<th scope="col">runs</th><th scope="col">what is there</th></tr></thead><tbody>'
    for i, request in enumerate(report.requests, start=1):
        cells = (
            f'<a href="#r{i}">{escape(request.id)}</a>',
            escape(" ".join(request.overrides) or "–"),
            f'<span class="time">{escape(request.asked_at.replace("T", " "))}</span>',
            f"{sum(n for _, n in request.counts):,}",
            escape(", ".join(f"{n} {word}" for word, n in request.counts) or "–"),
        )
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</tbody></table></div></section>"


def _command(text: str) -> str:
    return f'<div class="command"><code>{escape(text)}</code></div>'


def _details(summary: str, body: Iterable[str], *, kind: str, attributes: str = "") -> Iterator[str]:
    yield f'<details class="{kind}"{attributes}><summary>{summary}</summary>'
    yield from body
    yield "</details>"


# --- a request ----------------------------------------------------------------------------------


def _request(request: RequestReport, anchor: str) -> Iterator[str]:
    yield f'<section class="request" id="{anchor}" aria-labelledby="{anchor}-title">'
    yield f'<h2 id="{anchor}-title">{escape(request.title)}</h2>'
    asked = f"Asked for as <code>{escape(_name(request))}</code> ({escape(request.id)})"
    yield f'<p class="asked">{asked}, first at {escape(request.asked_at.replace("T", " "))} UTC.</p>'
    yield from _jumps(request, anchor)
    yield from _summary(request)
    if request.problem:
        yield f'<p class="bad">No table: {escape(request.problem)}.</p>'
    # The request's title stands above already.
    titles = (request.title, _name(request))
    named = (replace(t, title="Results") if t.title in titles else t for t in request.tables)
    yield f'<div id="{anchor}-tables">'
    yield from map(table_html, named)
    if request.tables:
        yield from _commands(request, "tables")
    yield "</div>"
    if request.plots:
        yield f'<h3 id="{anchor}-figures">Figures</h3>'
        yield "<noscript><p>The script of this page draws the figures; without it, see the tables.</p></noscript>"
    for number, plot in enumerate(request.plots, start=1):
        yield from _plot(plot, f"{anchor}-f{number}")
    if request.plots:
        yield from _commands(request, "figures")
    if request.cost is not None:
        yield f'<div id="{anchor}-cost">{table_html(request.cost)}'
        yield from _commands(request, "cost")
        yield "</div>"
    yield from _failures(request, anchor)
    if request.runs is not None:
        summary = f"Every run ({sum(n for _, n in request.counts):,})"
        attributes = f' id="{anchor}-runs"'
        yield from _details(
            summary, [table_html(request.runs), *_commands(request, "runs")], kind="folded", attributes=attributes
        )
    yield from _provenance(request.facts, anchor)
    yield f'<h3 id="{anchor}-again">How to make it again</h3>'
    yield "<p>In a clone, with the store in <code>./store</code> or <code>$HYBRID_STORE</code>.</p>"
    yield from _commands(request, "all")
    yield "</section>"


def _commands(request: RequestReport, place: Place) -> Iterator[str]:
    yield '<dl class="commands">'
    for command in request.commands:
        if command.place == place:
            yield f"<dt>{escape(command.makes)}</dt><dd>{_command(command.text)}</dd>"
    yield "</dl>"


def _jumps(request: RequestReport, anchor: str) -> Iterator[str]:
    places = (
        ("tables", "tables", request.tables),
        ("figures", "figures", request.plots),
        ("cost", "plan and cost", request.cost),
        ("failures", f"{request.n_failures} failed or diverged", request.failures),
        ("runs", "every run", request.runs),
        ("origin", "where from", request.facts),
        ("again", "how to make it again", True),
    )
    links = " · ".join(f'<a href="#{anchor}-{place}">{words}</a>' for place, words, there in places if there)
    yield f'<p class="jumps">{links}</p>'


def _summary(request: RequestReport) -> Iterator[str]:
    if request.counts:
        yield '<ul class="counts" aria-label="Runs by status">'
        for word, n in request.counts:
            yield f'<li class="{escape(word.replace(" ", "-"))}"><b>{n:,}</b> {escape(word)}</li>'
        yield "</ul>"
        yield '<p class="hint">As the store alone tells; what is queued, the scheduler knows: '
        yield "<code>python -m sweeps status</code>.</p>"
    yield '<ul class="findings">'
    yield from (f"<li>{escape(finding)}</li>" for finding in request.findings)
    yield "</ul>"


def _plot(plot: Plot, anchor: str) -> Iterator[str]:
    yield f'<figure class="plot" id="{anchor}" data-name="{escape(plot.name)}">'
    notes = escape(" ".join(plot.caption))
    yield f'<figcaption><b>{escape(plot.title)}</b><span class="notes">{notes}</span></figcaption>'
    yield f'<script type="application/json">{json_text(plot.data)}</script>'
    yield "</figure>"


def _failures(request: RequestReport, anchor: str) -> Iterator[str]:
    if not request.failures:
        return
    yield f'<h3 id="{anchor}-failures">Runs that failed, diverged or were interrupted ({request.n_failures})</h3>'
    for failure in request.failures:
        classes = ", ".join(dict.fromkeys(line.failure for line in failure.attempts if line.failure))
        label = f'<span class="badge {escape(failure.status)}">{escape(failure.status)}</span>'
        summary = f"{label} <b>{escape(failure.name)}</b> {escape(classes)} <code>{escape(failure.run_id)}</code>"
        yield from _details(summary, _failure(failure), kind="failure")
    left = request.n_failures - len(request.failures)
    if left > 0:
        yield f"<p>{count(left, 'more run')} like these: see the list of every run.</p>"


def _failure(failure: Failure) -> Iterator[str]:
    if failure.problem:
        yield f"<p>{escape(failure.problem)}</p>"
    if not failure.attempts and not failure.problem:
        yield "<p>Nothing is known of any attempt.</p>"
    for attempt in failure.attempts:
        yield from _attempt(attempt)
    yield _command(f"python -m sweeps logs {failure.run_id}")


def _attempt(attempt: AttemptLine) -> Iterator[str]:
    facts = [f"began {_time(attempt.began)}" if attempt.began else "", attempt.where]
    yield f"<h4>Attempt {attempt.number}</h4>"
    said = ": ".join(filter(None, (attempt.failure, attempt.message)))
    yield f"<p><b>{escape(said)}</b> {escape('; '.join(filter(None, facts)))}</p>"
    if attempt.log:
        yield f"<p>The last lines that it logged:</p>{_preformatted(attempt.log)}"
    else:
        yield "<p>It logged nothing.</p>"
    if attempt.traceback:
        yield from _details("Traceback", [_preformatted(attempt.traceback)], kind="traceback")


def _preformatted(text: str) -> str:
    return f'<pre tabindex="0">{chr(10).join(map(escape_line, text.splitlines()))}</pre>'


def escape_line(line: str) -> str:
    """A line as it stands, its spaces too, without characters that command anything."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in line.expandtabs(4))
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _provenance(facts: Sequence[Fact], anchor: str) -> Iterator[str]:
    if not facts:
        return
    yield f'<h3 id="{anchor}-origin">Where the records come from</h3>'
    yield '<dl class="facts">'
    for fact in facts:
        yield f"<dt>{escape(fact.name)}</dt>"
        several = len(fact.values) > 1
        for text, n in fact.values[:20]:
            runs = f' <span class="n">{count(n, "run")}</span>' if several or fact.name == "code" else ""
            words = _command(text) if fact.name == "command" else escape(text)
            yield f"<dd>{words}{runs}</dd>"
        if len(fact.values) > 20:
            yield f"<dd>and {len(fact.values) - 20} more</dd>"
    yield "</dl>"


# --- claims -------------------------------------------------------------------------------------


def _claims(report: Report) -> Iterator[str]:
    if not report.claims:
        return
    yield '<section id="claims" aria-labelledby="claims-title"><h2 id="claims-title">Claims of the paper</h2>'
    yield '<ul class="notes">'
    yield from (f"<li>{escape(note)}</li>" for note in report.claims_notes)
    yield "</ul>"
    yield from _verdict_counts(report.claims)
    yield '<div class="claims">'
    for claim in report.claims:
        yield from _claim(claim)
    yield "</div></section>"


def _verdict_counts(claims: Sequence[ClaimReport]) -> Iterator[str]:
    sources = list(dict.fromkeys(verdict.source for claim in claims for verdict in claim.verdicts))
    counts = Counter((verdict.source, verdict.judged["verdict"]) for claim in claims for verdict in claim.verdicts)
    yield '<div class="scroll" tabindex="0"><table class="small"><thead><tr><th scope="col">by</th>'
    yield "".join(f'<th scope="col" class="number">{word}</th>' for word in VERDICTS)
    yield "</tr></thead><tbody>"
    for source in sources:
        cells = "".join(f'<td class="number">{counts[source, word]}</td>' for word in VERDICTS)
        yield f'<tr><th scope="row">{escape(_SOURCES[source])}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _claim(claim: ClaimReport) -> Iterator[str]:
    badges = " ".join(
        f'<span class="badge {escape(v.judged["verdict"])}"><span class="by">{escape(v.source)}</span> '
        f"{escape(v.judged['verdict'])}</span>"
        for v in claim.verdicts
    )
    words = " ".join(v.judged["verdict"] for v in claim.verdicts)
    summary = f'<b>{escape(claim.id)}</b> {badges} <span class="statement">{escape(claim.statement)}</span>'
    body = [f'<p class="hint">{escape(claim.section)}; compared: {escape(claim.comparison)}</p>']
    for verdict in claim.verdicts:
        body += _evidence(verdict)
    yield from _details(summary, body, kind="claim", attributes=f' data-verdicts="{escape(words)}"')


def _evidence(verdict: SourceVerdict) -> Iterator[str]:
    judged = verdict.judged
    yield f"<h4>By {escape(_SOURCES[verdict.source])}: {escape(judged['verdict'])}</h4>"
    yield f"<p>{escape(judged['reason'])}</p>"
    if judged["findings"]:
        yield "<ul>"
        for finding in judged["findings"]:
            yield f"<li><i>{escape(finding['kind'])}</i>: {escape(finding['text'])}</li>"
        yield "</ul>"
    parts = [part for part in judged["numbers"] if part["missing"] is None]
    if parts:
        yield '<div class="scroll" tabindex="0"><table class="small evidence"><thead><tr><th scope="col">compared</th>'
        yield '<th scope="col">numbers</th><th scope="col" class="number">estimate</th><th scope="col">interval</th>'
        yield '<th scope="col" class="number">p</th><th scope="col">alone</th></tr></thead><tbody>'
        yield from map(_part, parts[:MOST_PARTS])
        yield "</tbody></table></div>"
        if len(parts) > MOST_PARTS:
            yield f"<p>{len(parts) - MOST_PARTS} more parts: the command below prints them all.</p>"
    yield _command(f"{verdict.command} --json")


def _part(part: Mapping[str, Any]) -> str:
    interval = part["interval"]
    kind = "" if part["kind"] == "comparison" else escape(part["kind"])
    computed = part["computed"]
    numbers = "; ".join(f"{row['row']} {row['value']:g} (n {row['n']})" for row in part["rows"][:4])
    numbers += f" and {len(part['rows']) - 4} more" if len(part["rows"]) > 4 else ""
    if not numbers and computed:
        numbers = ", ".join(f"{key} {_plain(value)}" for key, value in list(computed.items())[:8])
    estimate = "–" if part["estimate"] is None else f"{part['estimate']:.4g} {part['unit'] or ''}".strip()
    cells = (
        ("", escape(part["part"]) + (f' <span class="n">{kind}</span>' if kind else "")),
        ("", escape(numbers or "–")),
        (' class="number"', escape(estimate)),
        ("", "–" if interval is None else escape(f"{interval[0]:.4g} to {interval[1]:.4g}")),
        (' class="number"', "–" if part["p"] is None else f"{part['p']:.2g}"),
        ("", escape(part["verdict"])),
    )
    return f"<tr>{''.join(f'<td{attributes}>{words}</td>' for attributes, words in cells)}</tr>"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
