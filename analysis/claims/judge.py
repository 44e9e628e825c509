"""Verdicts: every part of every claim against a source, one claim alone, then all together.

To say that a claim holds, it has to hold among all that are judged with it: Holm's adjustment runs over the claims that
noise can decide, so that the probability of any false "holds" is at most (1 - level) / 2. To doubt one of many claims
needs no correction for the others: "fails" and "equivalent" are judged claim by claim, with the same error each, and
corrected for the parts of the claim alone. What is arithmetic needs no correction and enters none.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, assert_never, final

from analysis import decide, stats
from analysis.claims.noise import NoiseFloor
from analysis.claims.parts import (
    All,
    Any_,
    Compare,
    Estimated,
    Exact,
    Leaf,
    Metric,
    Part,
    Quoted,
    Remark,
    Row,
    Unknown,
)
from analysis.claims.source import PrintedSource, Source, Value
from analysis.decide import Decision, Difference, Evidence, Verdict

TRUE: Final = Evidence(holds=0.0, fails=1.0, equivalent=1.0)
FALSE: Final = Evidence(holds=1.0, fails=0.0, equivalent=1.0)
ONE_MODEL: Final = Evidence(holds=1.0, fails=1.0, equivalent=0.0)
_ROUNDING: Final = 1e-9


@final
@dataclass(frozen=True, kw_only=True)
class Used:
    """A number that a verdict rests on, and how it enters."""

    row: Row
    value: float
    n: int
    weight: float


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found of one part.

    `estimate` is signed as the part has it (of logarithms where the metric is compared by ratios), `claimed` how far it
    lies on the claimed side; `verdict` is the part's own, with nothing corrected. `as_claimed` is the sign alone.
    `one_model`: both sides are one model by symmetry, so that they differ by chance alone. `group`: those of one number
    are alternatives, of which one is enough.
    """

    leaf: Leaf
    kind: Literal["comparison", "quoted", "exact", "estimate", "unknown", "remark"]
    text: str
    verdict: Verdict
    evidence: Evidence
    used: tuple[Used, ...] = ()
    metric: Metric | None = None
    unit: str = ""
    estimate: float | None = None
    claimed: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    std_error: float | None = None
    df: int | None = None
    noise: NoiseFloor | None = None
    as_claimed: bool | None = None
    one_model: bool = False
    seeds_needed: int | None = None
    margin: float | None = None
    missing: str | None = None
    needs: str | None = None
    numbers: Mapping[str, object] | None = None
    group: int | None = None

    @property
    def by_chance(self) -> bool:
        """Whether noise decides it: a comparison of different models, with a spread."""
        return self.std_error is not None and not self.one_model


@final
@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim's parts with what was found, their evidence together, and that adjusted for the claims judged with it.

    `alone` is the verdict without that adjustment. `decisive` is the part that the verdict turns on. Of `n_parts` that
    must all be so, `n_as_claimed` point that way.
    """

    found: tuple[Found, ...]
    n_parts: int
    n_as_claimed: int
    evidence: Evidence
    adjusted: Evidence
    verdict: Verdict
    alone: Verdict
    decisive: Found | None
    seeds_needed: int | None
    family: int


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """`margin` in nats replaces that of losses; `level` is of intervals and of the family of claims."""

    level: float = stats.LEVEL
    margin: float | None = None

    def margin_of(self, metric: Metric) -> float:
        return self.margin if self.margin is not None and metric.unit == "nats" else metric.margin


def judge(parts: Mapping[str, Part], source: Source, settings: Settings) -> dict[str, Judged]:
    """Every claim judged with the others."""
    kept = {name: covered(part, source) for name, part in parts.items()}
    found = {name: _find(part, source, settings) for name, part in kept.items() if part is not None}
    evidence = {name: _combine(kept_part, found[name]) for name, kept_part in kept.items() if kept_part is not None}
    family = [name for name, results in found.items() if any(result.by_chance for result in results.values())]
    adjusted = dict(zip(family, decide.adjusted([evidence[name] for name in family]), strict=True))
    judged: dict[str, Judged] = {}
    for name in parts:
        part = kept[name]
        if part is None:
            judged[name] = _left_out(name, len(family))
        else:
            judged[name] = _judged(
                part, found[name], evidence[name], adjusted.get(name, evidence[name]), len(family), settings
            )
    return judged


def _left_out(name: str, family: int) -> Judged:
    none = decide.NO_EVIDENCE
    unknown = Found(
        leaf=Unknown(text=name, missing="its rows are not at this scale", needs="the paper's own scale"),
        kind="unknown",
        text=name,
        verdict="untestable",
        evidence=none,
        missing="none of its rows is at this scale",
        needs="runs at the paper's own scales",
    )
    return Judged(
        found=(unknown,),
        n_parts=0,
        n_as_claimed=0,
        evidence=none,
        adjusted=none,
        verdict="untestable",
        alone="untestable",
        decisive=unknown,
        seeds_needed=None,
        family=family,
    )


def covered(part: Part, source: Source) -> Part | None:
    """The part without comparisons of rows that the source is not about; None if nothing is left."""
    match part:
        case All() | Any_():
            kept = tuple(inner for inner in (covered(p, source) for p in part.parts) if inner is not None)
            return type(part)(kept) if kept else None
        case Compare():
            return part if all(source.covers(row) for row in part.rows) else None
        case Quoted():
            return part if all(source.covers(row) for row in part.compare.rows) else None
        case _:
            return part


# --- one part -------------------------------------------------------------------------------------


def _find(part: Part, source: Source, settings: Settings) -> dict[int, Found]:
    """What is found of every leaf, by its identity."""
    match part:
        case All():
            return {key: found for inner in part.parts for key, found in _find(inner, source, settings).items()}
        case Any_():
            return {
                key: replace(found, group=id(part))
                for inner in part.parts
                for key, found in _find(inner, source, settings).items()
            }
        case Compare():
            return {id(part): compare(part, source, settings)}
        case Quoted():
            return {id(part): _quoted(part, source, settings)}
        case Exact():
            exact = Found(
                leaf=part,
                kind="exact",
                text=part.text,
                verdict="holds" if part.true else "fails",
                evidence=TRUE if part.true else FALSE,
                as_claimed=part.true,
                numbers=part.numbers,
            )
            return {id(part): exact}
        case Estimated():
            return {id(part): _estimated(part, settings)}
        case Unknown():
            unknown = Found(
                leaf=part,
                kind="unknown",
                text=part.text,
                verdict="untestable",
                evidence=decide.NO_EVIDENCE,
                missing=part.missing,
                needs=part.needs,
            )
            return {id(part): unknown}
        case Remark():
            remark = Found(
                leaf=part, kind="remark", text=part.text, verdict="holds", evidence=TRUE, numbers=part.numbers
            )
            return {id(part): remark}
        case _ as never:
            assert_never(never)


def compare(part: Compare, source: Source, settings: Settings) -> Found:
    """One comparison: the contrast of its rows, with the noise of their scale."""
    metric = part.metric
    weights = part.weights()
    values = {row: source.value(row, metric) for row in weights}
    absent = [row for row, value in values.items() if value is None]
    if absent:
        missing, needs = source.missing(absent, metric)
        return Found(
            leaf=part,
            kind="comparison",
            text=part.text,
            verdict="untestable",
            evidence=decide.NO_EVIDENCE,
            metric=metric,
            unit=metric.unit,
            missing=missing,
            needs=needs,
        )
    known = {row: value for row, value in values.items() if value is not None}
    estimate = math.fsum(weight * _scaled(known[row], metric) for row, weight in weights.items())
    scales = {source.rows.entry(row).scale for row in weights}
    noises = [source.noise(scale, metric) for scale in sorted(scales)]
    noise = noises[0] if len(noises) == 1 else None
    std_error = None
    if noise is not None:
        std_error = noise.sd * math.sqrt(math.fsum(weight**2 / known[row].n for row, weight in weights.items()))
    n = min(value.n for value in known.values())
    one_model = one_model_on_both_sides(part, source)
    decision = _decision(part, estimate, std_error, None if noise is None else noise.df, n, settings)
    claimed = (-estimate if metric.better == "less" else estimate) - part.by
    evidence = decision.evidence
    if one_model:
        evidence = TRUE if part.wants != "better" else ONE_MODEL
    return Found(
        leaf=part,
        kind="comparison",
        text=part.text,
        verdict=decide.verdict_of(evidence, level=settings.level) if one_model else decision.verdict,
        evidence=evidence,
        used=tuple(Used(row=row, value=known[row].mean, n=known[row].n, weight=w) for row, w in weights.items()),
        metric=metric,
        unit=metric.unit,
        estimate=estimate,
        claimed=claimed,
        low=decision.low,
        high=decision.high,
        p=decision.p,
        std_error=std_error,
        df=None if noise is None else noise.df,
        noise=noise,
        as_claimed=_points_as_claimed(part, claimed, settings),
        one_model=one_model,
        margin=settings.margin_of(metric),
    )


def _points_as_claimed(part: Compare, claimed: float, settings: Settings) -> bool:
    match part.wants:
        case "better":
            return claimed > _ROUNDING if part.by == 0 else claimed >= -_ROUNDING
        case "not worse":
            return claimed > -settings.margin_of(part.metric) - _ROUNDING
        case "same":
            return abs(claimed) <= settings.margin_of(part.metric) + _ROUNDING
        case _ as never:
            assert_never(never)


def _scaled(value: Value, metric: Metric) -> float:
    return math.log(value.mean) if metric.logarithmic else value.mean


def _decision(
    part: Compare | Estimated, estimate: float, std_error: float | None, df: int | None, n: int, settings: Settings
) -> Decision:
    """By what the part wants: better, not worse than the margin, or the same."""
    if isinstance(part, Compare):
        margin, direction, unit, by = settings.margin_of(part.metric), part.metric.better, part.metric.unit, part.by
    else:
        margin, direction, unit, by = part.margin, "less", part.unit, 0.0
    sign = 1.0 if direction == "less" else -1.0
    difference = Difference(estimate=estimate, std_error=std_error, df=df, n_a=n, n_b=n, unit=unit)
    plain = decide.decide(difference, margin=margin, level=settings.level, direction=direction, seeds=False)
    match part.wants:
        case "better" if by == 0:
            return plain
        case "better" | "not worse":
            shift = by if part.wants == "better" else -margin
            shifted = replace(difference, estimate=estimate + sign * shift)
            evidence = decide.evidence_of(shifted, margin=margin, direction=direction)
            evidence = replace(evidence, equivalent=1.0)
        case "same":
            both = plain.evidence
            evidence = Evidence(holds=both.equivalent, fails=min(1.0, 2 * min(both.holds, both.fails)), equivalent=1.0)
        case _ as never:
            assert_never(never)
    return replace(plain, evidence=evidence, verdict=decide.verdict_of(evidence, level=settings.level))


def one_model_on_both_sides(part: Compare, source: Source) -> bool:
    """Whether the rows of both sides are the same models by symmetry, trained in the same way."""
    sides = [[source.trained(row) for row in rows] for rows in (part.plus, part.minus)]
    return None not in (*sides[0], *sides[1]) and Counter(sides[0]) == Counter(sides[1])


def _quoted(part: Quoted, source: Source, settings: Settings) -> Found:
    half = 0.5 * 10.0**-part.digits
    found = compare(replace(part.compare, by=part.value - half), source, settings)
    if found.claimed is None or found.estimate is None:
        return replace(found, leaf=part, kind="quoted")
    size = found.claimed + part.value - half
    true = size >= part.value - half - _ROUNDING
    if isinstance(source, PrintedSource):
        found = replace(
            found,
            verdict="holds" if true else "fails",
            evidence=TRUE if true else FALSE,
            std_error=None,
            low=None,
            high=None,
            p=None,
        )
    return replace(found, leaf=part, kind="quoted", as_claimed=true)


def _estimated(part: Estimated, settings: Settings) -> Found:
    decision = _decision(part, part.estimate, part.std_error, part.df, 1, settings)
    claimed = -part.estimate
    return Found(
        leaf=part,
        kind="estimate",
        text=part.text,
        verdict=decision.verdict,
        evidence=decision.evidence,
        unit=part.unit,
        estimate=part.estimate,
        claimed=claimed,
        low=decision.low,
        high=decision.high,
        p=decision.p,
        std_error=part.std_error,
        df=part.df,
        as_claimed=claimed > 0 if part.wants == "better" else abs(claimed) <= part.margin,
        margin=part.margin,
        numbers=part.numbers,
    )


# --- a claim --------------------------------------------------------------------------------------


def _combine(part: Part, found: Mapping[int, Found]) -> Evidence:
    match part:
        case All():
            # What is true without noise adds nothing that has to be corrected for.
            parts = [evidence for inner in part.parts if (evidence := _combine(inner, found)) != TRUE]
            return decide.all_of(parts) if parts else TRUE
        case Any_():
            return decide.any_of([_combine(inner, found) for inner in part.parts])
        case _:
            return found[id(part)].evidence


def _judged(
    part: Part,
    found: Mapping[int, Found],
    evidence: Evidence,
    adjusted: Evidence,
    family: int,
    settings: Settings,
) -> Judged:
    incomplete = any(result.missing is not None for result in found.values())
    alone = _with_gaps(decide.verdict_of(evidence, level=settings.level), incomplete)
    among = replace(evidence, holds=adjusted.holds)
    verdict = _with_gaps(decide.verdict_of(among, level=settings.level), incomplete)
    if verdict == "undecided":
        found = {key: _with_seeds(result, len(found), family, settings) for key, result in found.items()}
    inner = part.parts if isinstance(part, All) else (part,)
    signs = [_points(p, found) for p in inner if not isinstance(p, Remark | Unknown)]
    seeds = _seeds(part, found) if verdict == "undecided" else math.inf
    return Judged(
        found=tuple(found.values()),
        n_parts=len(signs),
        n_as_claimed=sum(signs),
        evidence=evidence,
        adjusted=adjusted,
        verdict=verdict,
        alone=alone,
        decisive=_decisive(part, found, verdict),
        seeds_needed=None if math.isinf(seeds) else int(seeds),
        family=family,
    )


def _with_gaps(verdict: Verdict, incomplete: bool) -> Verdict:
    """What is missing may still refute, so that only what is refuted already stands."""
    return "untestable" if incomplete and verdict in ("undecided", "equivalent") else verdict


def _with_seeds(found: Found, parts: int, family: int, settings: Settings) -> Found:
    """How many seeds a row would decide this part, if the difference is what is estimated.

    Among all claims where it points as claimed, among the parts of its own where it does not.
    """
    if not found.by_chance or found.claimed is None or found.margin is None or not isinstance(found.leaf, Compare):
        return found
    n = min(used.n for used in found.used)
    error = (1 - settings.level) / 2
    if found.evidence.holds <= error / family or found.evidence.fails <= error / parts:
        return replace(found, seeds_needed=n)
    # The contrast as if of two rows: the same standard error from so many runs each.
    difference = Difference(
        estimate=found.claimed, std_error=found.std_error, df=found.df, n_a=n, n_b=n, unit=found.unit
    )
    seeds = decide.seeds_to_decide(
        difference,
        margin=found.margin,
        level=settings.level,
        comparisons=max(1, family if found.as_claimed else parts),
    )
    return replace(found, seeds_needed=seeds)


def _points(part: Part, found: Mapping[int, Found]) -> bool:
    """Whether the numbers are as claimed, noise aside."""
    match part:
        case All():
            return all(_points(inner, found) for inner in part.parts)
        case Any_():
            return any(_points(inner, found) for inner in part.parts)
        case _:
            return found[id(part)].as_claimed is not False


def _seeds(part: Part, found: Mapping[int, Found]) -> float:
    """Seeds a row that would decide it if the truth were as estimated: infinite where none would.

    A conjunction needs those of every part, or those of the clearest part that points the other way; a disjunction the
    reverse.
    """
    match part:
        case All() | Any_():
            wanted = isinstance(part, Any_)
            turning = [inner for inner in part.parts if _points(inner, found) is wanted]
            if turning:
                return min(_seeds(inner, found) for inner in turning)
            return max(_seeds(inner, found) for inner in part.parts)
        case _:
            result = found[id(part)]
            if result.kind not in ("comparison", "estimate"):
                return 1.0
            return math.inf if result.seeds_needed is None else float(result.seeds_needed)


def _decisive(part: Part, found: Mapping[int, Found], verdict: Verdict) -> Found | None:
    """The leaf that the verdict turns on: of a conjunction the weakest where it holds, the strongest where it fails."""
    if verdict == "untestable":
        return next(result for result in found.values() if result.missing is not None)
    leaf: Part = part
    while isinstance(leaf, All | Any_):
        inner = [p for p in leaf.parts if not isinstance(p, Remark)]
        weakest = isinstance(leaf, All) is (verdict in ("holds", "undecided"))
        pick = max if weakest else min
        leaf = pick(inner, key=lambda p: _strength(_combine(p, found), verdict))
    return found[id(leaf)]


def _strength(evidence: Evidence, verdict: Verdict) -> float:
    match verdict:
        case "fails":
            return evidence.fails
        case "equivalent":
            return evidence.equivalent
        case _:
            return evidence.holds
