"""Verdicts as text for a terminal, as Markdown, or as JSON."""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from analysis.claims.judge import Found
from analysis.claims.parts import ACCURACY, DCLM, THROUGHPUT
from analysis.claims.source import PAPER_SCALE, PrintedSource, StoreSource
from analysis.claims.verdicts import VERDICTS, ClaimVerdict, Verdicts

_WIDTH: Final = 118


def as_json(verdicts: Verdicts) -> str:
    """A list with an object for each claim; numbers in full, null where there is none."""
    return (
        json.dumps(
            [_object(verdict, verdicts) for verdict in verdicts.claims], indent=1, ensure_ascii=False, allow_nan=False
        )
        + "\n"
    )


def _object(verdict: ClaimVerdict, verdicts: Verdicts) -> dict[str, Any]:
    judged, decisive = verdict.judged, verdict.judged.decisive
    return {
        "id": verdict.claim.id,
        "section": verdict.claim.section,
        "statement": verdict.claim.statement,
        "comparison": verdict.claim.comparison,
        "source": verdicts.source.name,
        "verdict": verdict.verdict,
        "verdict_alone": judged.alone,
        "reason": verdict.reason,
        "parts": judged.n_parts,
        "parts_as_claimed": judged.n_as_claimed,
        "p_holds": judged.evidence.holds,
        "p_holds_adjusted": judged.adjusted.holds,
        "p_fails": judged.evidence.fails,
        "p_fails_adjusted": judged.adjusted.fails,
        "claims_judged_together": judged.family,
        "level": verdicts.settings.level,
        "effect": None if decisive is None else decisive.estimate,
        "interval": None if decisive is None or decisive.low is None else [decisive.low, decisive.high],
        "unit": None if decisive is None else _unit(decisive),
        "n": None if decisive is None or not decisive.used else min(used.n for used in decisive.used),
        "margin": None if decisive is None else decisive.margin,
        "noise": None
        if decisive is None or decisive.noise is None
        else {
            "sd": decisive.noise.sd,
            "df": decisive.noise.df,
            "unit": decisive.noise.unit,
            "source": decisive.noise.source,
        },
        "seeds_needed": judged.seeds_needed,
        "needs": verdict.needs,
        "marks": list(verdict.marks),
        "numbers": [_number(found) for found in judged.found if found.kind != "remark"],
        "findings": [
            {"kind": finding.kind, "text": finding.text, "numbers": [dict(n) for n in finding.numbers]}
            for finding in verdict.findings
        ],
    }


def _number(found: Found) -> dict[str, Any]:
    return {
        "part": found.text,
        "kind": found.kind,
        "verdict": found.verdict,
        "as_claimed": found.as_claimed,
        "one_model": found.one_model,
        "metric": None if found.metric is None else found.metric.name,
        "unit": _unit(found),
        "rows": [
            {
                "table": used.row.table,
                "row": used.row.label,
                "value": used.value,
                "n": used.n,
                "weight": round(used.weight, 6),
            }
            for used in found.used
        ],
        "estimate": found.estimate,
        "interval": None if found.low is None else [found.low, found.high],
        "p": found.p,
        "std_error": found.std_error,
        "df": found.df,
        "seeds_needed": found.seeds_needed,
        "missing": found.missing,
        "needs": found.needs,
        "computed": None if found.numbers is None else dict(found.numbers),
    }


def _unit(found: Found) -> str:
    """Of a ratio the estimate is its logarithm."""
    return f"log {found.unit}" if found.metric is not None and found.metric.logarithmic else found.unit


def as_text(verdicts: Verdicts, *, bold: Callable[[str], str]) -> str:
    """A paragraph for each claim: verdict, statement, reason, findings."""
    parts = ["\n".join(_head(verdicts))]
    for verdict in verdicts.claims:
        claim = verdict.claim
        lines = _wrapped(f"{claim.id}  {verdict.verdict.upper():<11} {claim.statement}", "", " " * 17)
        lines[0] = lines[0].replace(verdict.verdict.upper(), bold(verdict.verdict.upper()), 1)
        lines += _wrapped(verdict.reason, " " * 5, " " * 5)
        for finding in verdict.findings:
            lines += _wrapped(f"{finding.kind}: {finding.text}", " " * 5 + "- ", " " * 7)
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def as_markdown(verdicts: Verdicts) -> str:
    """A table, a line for each claim."""
    first, *others = _head(verdicts)
    lines = [
        first,
        "",
        *(f"- {line}" for line in others),
        "",
        "| claim | statement | verdict | why | beside it |",
        "|:--|:--|:--|:--|:--|",
    ]
    for verdict in verdicts.claims:
        beside = "<br>".join(f"*{finding.kind}*: {_escaped(finding.text)}" for finding in verdict.findings)
        cells = (
            verdict.claim.id,
            _escaped(verdict.claim.statement),
            f"**{verdict.verdict}**",
            _escaped(verdict.reason),
        )
        lines.append(f"| {' | '.join(cells)} | {beside} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Nothing in a cell is markup, but for code between backticks."""
    for character, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), (">", "&gt;"), ("*", "\\*")):
        text = text.replace(character, escaped)
    return text


def _head(verdicts: Verdicts) -> list[str]:
    """How many of each, by what rule, over what noise."""
    counts = Counter(verdict.verdict for verdict in verdicts.claims)
    of = "the paper's own printed numbers" if isinstance(verdicts.source, PrintedSource) else "the store's records"
    error = (1 - verdicts.settings.level) / 2
    names = {
        verdict: [found.claim.id for found in verdicts.claims if found.verdict == verdict]
        for verdict in VERDICTS
        if counts[verdict]
    }
    lines = [
        f"{len(verdicts.claims)} claim{'' if len(verdicts.claims) == 1 else 's'} of arXiv 2510.04800 by {of}: "
        + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        + ".",
        f'Intervals at {verdicts.settings.level:.0%}. The probability of any false "holds" among the {verdicts.family} '
        f'claims that noise can decide is at most {error:.1%} (Holm), that of a false "fails" {error:.1%} a claim.',
        f"Equivalent: within {verdicts.settings.margin_of(DCLM):g} nats, {ACCURACY.margin:g} points of accuracy, "
        f"{THROUGHPUT[2048].margin:.0%} of throughput.",
        *(f"{verdict}: {' '.join(ids)}" for verdict, ids in names.items() if len(verdicts.claims) > 1),
    ]
    read_at = verdicts.source.scale if isinstance(verdicts.source, StoreSource) else None
    if read_at is not None:
        lines.append(
            f"Rows that the paper has at {PAPER_SCALE} are read at scale={read_at}; its other scales are left out."
        )
    for scale in (PAPER_SCALE, "350M"):
        noise = verdicts.source.noise(scale, DCLM)
        if noise is not None:
            from analysis.stats import t_quantile

            least = t_quantile(noise.df, verdicts.settings.level) * noise.sd * math.sqrt(2)
            lines.append(
                f"Noise at {read_at or scale}: standard deviation of a run {noise.sd:.4f} nats, {noise.df} degrees of "
                f"freedom ({noise.source}); two single runs differ by up to {least:.4f} by chance."
            )
    return lines
