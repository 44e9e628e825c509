"""What a conclusion depends on: the same fit with something left out, by other rules, or in the other convention.

The conclusions are the order of the groups' exponents a (N_opt ~ C^a), and which of them are told apart; with one
group, its exponent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, Literal, final

import numpy as np

from analysis.scaling.isoflop import fit_isoflop
from analysis.scaling.law import ALPHA, BETA, log_law
from analysis.scaling.points import Convention, Point, Points, budgets_of, clusters, si
from analysis.scaling.resample import refit_thoroughly
from analysis.scaling.study import (
    Isoflop,
    Parametric,
    Settings,
    Study,
    isoflop,
    keep,
    parametric,
    parametric_problem,
)

Kind = Literal["isoflop", "parametric"]
_SIZE_ACROSS_GROUPS: Final = math.log(1.25)
_MOST_DROPPED: Final = 5
_FAR_OFF: Final = 6.0
_NORMAL_MAD: Final = 1.4826
_RESAMPLES: Final = 1000
# Exponents that differ by less are one for any purpose.
_TOO_LITTLE: Final = 0.005
_DRAWS: Final = 200


@final
@dataclass(frozen=True, kw_only=True)
class Variant:
    """The exponents of one way to fit, by group; None where it gives none. `intervals` and `apart`, pairs told apart,
    the lower first, only where they were worked out."""

    name: str
    about: str
    slopes: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] | None = None
    apart: frozenset[tuple[str, str]] | None = None


@final
@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The law of the other budgets at the points of the largest: mean and greatest error in nats, predicted less
    measured."""

    group: str
    flops: float
    n_points: int
    mean: float
    worst: float


@final
@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """`base` is the fit that was asked for. `outliers` and `short` are points, each with what is wrong."""

    base: Variant
    variants: tuple[Variant, ...]
    held_out: tuple[HeldOut, ...]
    outliers: tuple[str, ...]
    short: tuple[str, ...]
    changes: tuple[str, ...]


def variant_of(name: str, about: str, study: "Study[Isoflop] | Study[Parametric]") -> Variant:
    """What a study with its intervals says."""
    groups = {group.name: group for group in study.groups}
    intervals = {name: group.slope_interval for name, group in groups.items() if group.slope_interval is not None}
    return Variant(
        name=name,
        about=about,
        slopes={group: groups[group].slope if group in groups else None for group in study.points.groups},
        intervals={name: found for name, found in intervals.items() if found is not None},
        apart=frozenset(_apart(study)),
    )


def differences(
    study: "Study[Isoflop] | Study[Parametric]",
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """b's exponent minus a's, for each pair of groups in the order of their exponents, with its interval: the draws of
    two groups are independent."""
    groups = sorted(
        (group for group in study.groups if group.slope is not None and len(group.slope_draws)),
        key=lambda group: float(group.slope or 0.0),
    )
    found = {}
    for low, high in combinations(groups, 2):
        count = min(len(low.slope_draws), len(high.slope_draws))
        drawn = high.slope_draws[:count] - low.slope_draws[:count]
        middle = float(high.slope or 0.0) - float(low.slope or 0.0)
        # As wide as the intervals of the two are: these may be wider than their draws, for what was estimated from few.
        wide = max(_widened(low), _widened(high))
        centre = float(np.median(drawn))
        tails = np.quantile(drawn, [(1 - study.settings.level) / 2, (1 + study.settings.level) / 2])
        ends = [middle + (float(tail) - centre) * wide for tail in tails]
        found[low.name, high.name] = (middle, ends[0], ends[1])
    return found


def _widened(group: "Isoflop | Parametric") -> float:
    given = group.slope_interval
    if given is None:
        return 1.0
    level = group.settings.level
    plain = np.quantile(group.slope_draws, [(1 - level) / 2, (1 + level) / 2])
    return max(1.0, (given[1] - given[0]) / max(1e-12, float(plain[1] - plain[0])))


def _apart(study: "Study[Isoflop] | Study[Parametric]") -> list[tuple[str, str]]:
    return [pair for pair, (_, low, _) in differences(study).items() if low > 0]


def diagnose(
    study: "Study[Isoflop] | Study[Parametric]",
    others: Mapping[Convention, Points],
    *,
    base_name: str = "as asked for",
) -> Diagnosis:
    """`others` are the same runs with the costs of another convention."""
    kind: Kind = "isoflop" if isinstance(study.groups[0], Isoflop) else "parametric"
    settings, points = study.settings, study.points
    base = variant_of(base_name, points.costs, study)
    fitted = parametric_fits(points, settings)
    outliers = {name: _outliers(group) for name, group in fitted.items()}
    far = {id(point) for found in outliers.values() for point, _ in found}
    variants = [
        _full(f"{convention} convention", other.costs, kind, other, settings) for convention, other in others.items()
    ]
    variants += _other_rules(kind, points, settings)
    left_out: list[tuple[str, str, set[int]]] = []
    for name, gone in _sizes(points):
        left_out.append((f"without {name}", "leave one size out", gone))
    for name, gone in _budgets(points):
        left_out.append((f"without {name}", "leave one budget out", gone))
    if far:
        left_out.append((f"without {len(far)} outlier{'' if len(far) == 1 else 's'}", "far off L(N, D)", far))
    short = [p for p in points.points if p.too_short]
    if short:
        about = "warmup and cooldown are more than 40% of them"
        left_out.append((f"without {len(short)} short runs", about, {id(p) for p in short}))
    for k in range(settings.drop_highest + 1, settings.drop_highest + _MOST_DROPPED + 1):
        dropped = {id(p) for group in points.groups for p in keep(points.of(group), k)[1]}
        name = f"without the {k} highest" if k > 1 else "without the highest"
        left_out.append((name, "losses of each group", dropped))
    variants += _left_out(study, left_out)
    return Diagnosis(
        base=base,
        variants=tuple(variants),
        held_out=tuple(_held_out(points, fitted)),
        outliers=tuple(
            f"{name}: {point.where} ({point.loss:.4g}) is {error:+.3f} nats off L(N, D)"
            for name, found in outliers.items()
            for point, error in found
        ),
        short=tuple(
            f"{p.group}: {p.where}: warmup and cooldown take {p.ramp:.0%}" for p in short if p.ramp is not None
        ),
        changes=tuple(changes(base, variants)),
    )


# --- the ways to fit -------------------------------------------------------------------------------


def _full(name: str, about: str, kind: Kind, points: Points, settings: Settings) -> Variant:
    small = replace(settings, bootstrap=min(settings.bootstrap, _RESAMPLES))
    if kind == "isoflop":
        return variant_of(name, about, isoflop(points, settings))
    return variant_of(name, about, parametric(points, small))


def _other_rules(kind: Kind, points: Points, settings: Settings) -> list[Variant]:
    if kind == "parametric":
        other = replace(settings, estimator="lad" if settings.estimator == "huber" else "huber")
        return [_full(f"by {other.estimator}", "the other estimator", kind, points, other)]
    curve = settings.curve
    method = replace(curve, method="quadratic" if curve.method == "akima" else "akima")
    rule = replace(curve, rule="inside" if curve.rule == "bracketed" else "bracketed")
    every = replace(curve, method="quadratic", rule="inside", window=math.inf)
    return [
        _full(
            "by quadratic of all sizes", "a parabola through every size", kind, points, replace(settings, curve=every)
        ),
        _full(f"by {method.method}", "the other curve", kind, points, replace(settings, curve=method)),
        _full(
            f"minima {rule.rule}", "the other rule for which minima count", kind, points, replace(settings, curve=rule)
        ),
    ]


def parametric_fits(points: Points, settings: Settings) -> dict[str, Parametric]:
    """The law of each group that has one, without a bootstrap."""
    usable = [
        name for name in points.groups if parametric_problem(keep(points.of(name), settings.drop_highest)[0]) is None
    ]
    if not usable:
        return {}
    chosen = points.where(lambda point: point.group in usable)
    return {group.name: group for group in parametric(chosen, replace(settings, bootstrap=0)).groups}


def _left_out(
    study: "Study[Isoflop] | Study[Parametric]",
    left_out: Sequence[tuple[str, str, set[int]]],
) -> list[Variant]:
    """A slope of each group without the points of each `left_out`: what it is called, of what kind, their ids."""
    slopes: list[dict[str, float | None]] = [dict.fromkeys(study.points.groups) for _ in left_out]
    for group in study.groups:
        if isinstance(group, Isoflop):
            for row, (_, _, gone) in zip(slopes, left_out, strict=True):
                rest = [point for point in group.points if id(point) not in gone]
                if rest:
                    again = fit_isoflop(
                        rest,
                        group.settings.curve,
                        group.fit.noise,
                        draws=min(_DRAWS, study.settings.bootstrap),
                        seed=0,
                        law=None if group.smooth is None else group.smooth.law,
                    )
                    row[group.name] = again.a
        else:
            weights = np.array([[float(id(point) not in gone) for point in group.points] for _, _, gone in left_out])
            theta = refit_thoroughly(group.fit, weights)
            for row, one, weight in zip(slopes, theta, weights, strict=True):
                rest = [point for point, w in zip(group.points, weight, strict=True) if w]
                if parametric_problem(rest) is None:
                    row[group.name] = float(one[BETA] / (one[ALPHA] + one[BETA]))
    return [Variant(name=name, about=about, slopes=row) for (name, about, _), row in zip(left_out, slopes, strict=True)]


def _sizes(points: Points) -> list[tuple[str, set[int]]]:
    """Sizes across groups: parameters within a quarter of the next."""
    found = clusters((point.n for point in points.points), _SIZE_ACROSS_GROUPS)
    named = []
    for members in found:
        middle = math.exp(sum(math.log(points.points[i].n) for i in members) / len(members))
        named.append((f"size {si(middle)}", {id(points.points[i]) for i in members}))
    return named if len(named) > 1 else []


def _budgets(points: Points) -> list[tuple[str, set[int]]]:
    every = points.points
    if all(point.budget is not None for point in every):
        values = sorted({float(point.budget or 0) for point in every})
        return [(f"budget {value:.3g}", {id(p) for p in every if p.budget == value}) for value in values]
    found = budgets_of(every)
    return [
        (f"budget {np.mean([every[i].c for i in members]):.3g}", {id(every[i]) for i in members})
        for members in found or ()
    ]


def _outliers(group: Parametric) -> list[tuple[Point, float]]:
    off = group.fit.residuals * np.array([point.loss for point in group.points])
    usual = _NORMAL_MAD * float(np.median(np.abs(off)))
    return [
        (p, float(error)) for p, error in zip(group.points, off, strict=True) if abs(error) > _FAR_OFF * usual + 1e-9
    ]


def _held_out(points: Points, fitted: Mapping[str, Parametric]) -> list[HeldOut]:
    named = _budgets(points)
    if len(named) < 3:
        return []
    found = []
    for name, group in fitted.items():
        largest = next(
            (ids for _, ids in reversed(named) if any(id(point) in ids for point in group.points)), set[int]()
        )
        weight = np.array([float(id(point) not in largest) for point in group.points])
        rest = [point for point, w in zip(group.points, weight, strict=True) if w]
        gone = np.flatnonzero(weight == 0)
        if not len(gone) or parametric_problem(rest) is not None:
            continue
        theta = refit_thoroughly(group.fit, weight[None])
        data = group.fit.data
        # The fit's data are in the order of the points.
        predicted = np.exp(log_law(theta, data.x, data.z)[0])[gone]
        error = predicted - np.array([group.points[i].loss for i in gone])
        found.append(
            HeldOut(
                group=name,
                flops=float(np.mean([group.points[i].c for i in gone])),
                n_points=len(gone),
                mean=float(error.mean()),
                worst=float(error[np.abs(error).argmax()]),
            )
        )
    return found


# --- what changes ------------------------------------------------------------------------------------


def changes(base: Variant, variants: Sequence[Variant]) -> list[str]:
    """The conclusions that another way to fit does not come to, those first that were certain."""
    certain: list[str] = []
    open_: list[str] = []
    named = [name for name, slope in base.slopes.items() if slope is not None]
    for low, high in combinations(sorted(named, key=lambda name: float(base.slopes[name] or 0.0)), 2):
        turned = [v.name for v in variants if _gap(v, low, high) is not None and float(_gap(v, low, high) or 0.0) <= 0]
        told = base.apart is not None and (low, high) in base.apart
        lost = [v.name for v in variants if v.apart is not None and told and (low, high) not in v.apart]
        if turned:
            text = f"a of {low} < a of {high}" + (" is told apart, but" if told else " (not told apart)")
            (certain if told else open_).append(f"{text} turns round {_listed(turned)}")
        elif lost:
            certain.append(f"a of {low} < a of {high} is told apart, but not {_listed(lost)}")
        gained = [v.name for v in variants if v.apart is not None and not told and (low, high) in v.apart]
        if gained:
            open_.append(f"a of {low} < a of {high} is not told apart, but it is {_listed(gained)}")
    for name in named:
        within = (base.intervals or {}).get(name)
        if within is None:
            continue
        outside = [
            f"{v.slopes[name]:.3f} {_listed([v.name])}"
            for v in variants
            if v.slopes.get(name) is not None and _outside(float(v.slopes[name] or 0.0), within)
        ]
        if outside:
            certain.append(
                f"a of {name} = {base.slopes[name]:.3f} leaves its interval [{within[0]:.3f}, {within[1]:.3f}]: "
                + "; ".join(outside)
            )
        none = [v.name for v in variants if v.slopes.get(name) is None]
        if none:
            open_.append(f"a of {name} cannot be had {_listed(none)}")
    return certain + open_


def _outside(slope: float, within: tuple[float, float]) -> bool:
    return slope < within[0] - _TOO_LITTLE or slope > within[1] + _TOO_LITTLE


def _gap(variant: Variant, low: str, high: str) -> float | None:
    a, b = variant.slopes.get(low), variant.slopes.get(high)
    return None if a is None or b is None else b - a


def _listed(names: Sequence[str]) -> str:
    joined = [name if name.startswith(("without", "by ")) else f"with {name}" for name in names]
    return ", ".join(joined)
