"""What is said of each claim: its verdict, why in a sentence, the numbers it rests on, what they show beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from analysis.claims.checks import Checks, Finding
from analysis.claims.judge import Found, Judged, Settings, judge
from analysis.claims.parts import Estimated, Exact, Metric, Quoted
from analysis.claims.registry import Claim, read_claims
from analysis.claims.source import PrintedSource, Source
from analysis.decide import POWER, Verdict
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError
from sweeps.power import MAX_SEEDS

_FEW_ROWS: Final = 4
VERDICTS: Final[tuple[Verdict, ...]] = ("holds", "fails", "equivalent", "undecided", "untestable")


@final
@dataclass(frozen=True, kw_only=True)
class ClaimVerdict:
    claim: Claim
    verdict: Verdict
    reason: str
    judged: Judged
    findings: tuple[Finding, ...]

    @property
    def marks(self) -> tuple[str, ...]:
        """The kinds of its findings, each once."""
        return tuple(dict.fromkeys(finding.kind for finding in self.findings))

    @property
    def needs(self) -> str | None:
        """What would make it testable."""
        return None if self.judged.decisive is None else self.judged.decisive.needs


@final
@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Claims judged together, of which those that were asked for are here."""

    source: Source
    settings: Settings
    claims: tuple[ClaimVerdict, ...]
    family: int


def chosen(asked: Sequence[str]) -> tuple[str, ...]:
    """The ids that are asked for; none: all. Raises ConfigError for one that there is not."""
    known = [claim.id for claim in read_claims()]
    unknown = [name for name in asked if name.upper() not in known]
    if unknown:
        raise ConfigError(
            [
                f"--claim {name}: expected one of {known[0]} to {known[-1]}{did_you_mean(name, known)}"
                for name in unknown
            ]
        )
    wanted = {name.upper() for name in asked} or set(known)
    return tuple(name for name in known if name in wanted)


def judge_claims(source: Source, settings: Settings, asked: Sequence[str] = ()) -> Verdicts:
    """All claims are judged, and the correction is for all, whichever are asked for."""
    wanted = chosen(asked)
    claims = {claim.id: claim for claim in read_claims()}
    judged = judge({name: claim.predicate(source) for name, claim in claims.items()}, source, settings)
    checks = Checks(source)
    found = {name: checks.findings(judged[name]) for name in wanted}
    return Verdicts(
        source=source,
        settings=settings,
        claims=tuple(
            ClaimVerdict(
                claim=claims[name],
                verdict=judged[name].verdict,
                reason=reason(judged[name], source) + _bound(found[name]) + _whatever_the_store(judged[name], source),
                judged=judged[name],
                findings=found[name],
            )
            for name in wanted
        ),
        family=next(iter(judged.values())).family,
    )


def _bound(findings: Sequence[Finding]) -> str:
    """What is measured of implementations says nothing of architectures."""
    if any(finding.kind == "implementation" for finding in findings):
        return " It is bound to the implementations that were measured, which are unequal: see below."
    return ""


def _whatever_the_store(judged: Judged, source: Source) -> str:
    if not isinstance(source, PrintedSource) and all(found.kind in ("exact", "remark") for found in judged.found):
        return " Our specs and what is printed decide this, whatever the store has."
    return ""


# --- sentences ------------------------------------------------------------------------------------


def reason(judged: Judged, source: Source) -> str:
    """Why the verdict is what it is, in a sentence or two."""
    decisive = judged.decisive
    if decisive is None:
        return "Nothing is claimed that could be compared."
    match judged.verdict:
        case "untestable":
            lacking = [found for found in judged.found if found.missing is not None]
            compared = [found for found in judged.found if found.kind != "remark"]
            several = (
                f"{len(lacking)} of {len(compared)} parts lack numbers; of the first, " if len(compared) > 1 else ""
            )
            return _sentence(f"{several}{decisive.missing}; needs {decisive.needs}")
        case "holds":
            return _holds(judged, decisive)
        case "fails":
            return _fails(judged, decisive, source)
        case "equivalent":
            if decisive.one_model:
                text = f"{described(decisive)}: both are one model by symmetry, so that chance alone tells them apart"
            else:
                text = f"{described(decisive)}: within the margin of {_size(decisive.margin, decisive.metric)}"
            return _sentence(text)
        case _:
            return _undecided(judged, decisive)


def _holds(judged: Judged, decisive: Found) -> str:
    if not any(found.by_chance for found in judged.found):
        exact = [found for found in judged.found if isinstance(found.leaf, Exact)]
        return _sentence("; ".join(f"{found.text}: {_exact(found)}" for found in exact))
    return _sentence(
        f"all {judged.n_parts} parts hold (Holm-adjusted p {_p(judged.adjusted.holds)}, one-sided); the weakest: "
        f"{described(decisive)}"
    )


def _fails(judged: Judged, decisive: Found, source: Source) -> str:
    if isinstance(decisive.leaf, Exact):
        return _sentence(f"{decisive.text}: no, {_exact(decisive)}")
    if isinstance(decisive.leaf, Quoted) and isinstance(source, PrintedSource):
        short = [found for found in judged.found if isinstance(found.leaf, Quoted) and not found.as_claimed]
        least = min(short, key=lambda found: found.claimed or 0.0)
        quoted = f"{decisive.leaf.value:.{decisive.leaf.digits}f} {decisive.unit}"
        return _sentence(
            f"{len(short)} of the printed differences that are said to be {quoted} are less; the least: "
            f"{described(least)}"
        )
    return _sentence(
        f"{judged.n_parts - judged.n_as_claimed} of {judged.n_parts} parts point the other way (p "
        f"{_p(judged.evidence.fails)}, one-sided, corrected for the parts); the clearest: {described(decisive)}"
    )


def _undecided(judged: Judged, decisive: Found) -> str:
    texts = [f"{judged.n_as_claimed} of {judged.n_parts} parts point as claimed; the weakest: {described(decisive)}"]
    if isinstance(decisive.leaf, Estimated):
        return _sentence(f"{texts[0]}; the spread is that of the fit over budgets, which more sizes and budgets narrow")
    if decisive.std_error is None and decisive.p is None:
        return _sentence(f"{texts[0]}; with one seed a row nothing is known of the spread")
    if judged.alone == "holds":
        texts.append(
            f"alone it would hold (p {_p(judged.evidence.holds)}, one-sided), but not among the {judged.family} claims "
            f"that are judged together (Holm-adjusted {_p(judged.adjusted.holds)})"
        )
    if judged.seeds_needed is not None:
        texts.append(
            f"{judged.seeds_needed} seeds a row would decide at {POWER:.0%} power, if the differences are what they "
            "are here"
        )
    elif any(found.by_chance and found.noise is not None for found in judged.found):
        texts.append(f"{MAX_SEEDS} seeds a row would not decide if the differences are what they are here")
    return _sentence("; ".join(texts))


def described(found: Found) -> str:
    """A comparison with its numbers, its estimate and interval."""
    if isinstance(found.leaf, Exact):
        return f"{found.text}: {_exact(found)}"
    if found.estimate is None:
        return found.text
    estimate = _estimate(found.estimate, found)
    numbers = ""
    if found.metric is not None and len(found.used) == 2:
        digits = found.metric.digits
        numbers = f" ({' against '.join(f'{used.value:.{digits}f}' for used in found.used)})"
    elif found.metric is not None and 2 < len(found.used) <= _FEW_ROWS:
        numbers = f" ({', '.join(f'{used.row} {used.value:.{found.metric.digits}f}' for used in found.used)})"
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f", interval {_estimate(found.low, found)} to {_estimate(found.high, found)}"
    unit = "times" if _ratio(found) else found.unit
    return f"{found.text}: {estimate} {unit}{numbers}{interval}"


def _ratio(found: Found) -> bool:
    return found.metric is not None and found.metric.logarithmic


def _estimate(value: float, found: Found) -> str:
    if _ratio(found):
        return f"{math.exp(value):.2f}"
    digits = found.metric.digits + 1 if found.metric is not None else 3
    return f"{value:+.{digits}f}"


def _size(value: float | None, metric: Metric | None) -> str:
    return f"{value:g} {metric.unit if metric is not None else ''}".strip()


def _exact(found: Found) -> str:
    return found.leaf.found if isinstance(found.leaf, Exact) else ""


def _p(p: float) -> str:
    return "below 1e-6" if p < 1e-6 else f"{p:.2g}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
