"""Studies as text and as JSON."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from analysis.scaling.diagnostics import Diagnosis, Variant, differences
from analysis.scaling.points import Point, budgets_of, si
from analysis.scaling.study import NAMES, Isoflop, Parametric, Study

_WIDTH: Final = 118

AnyStudy = Study[Isoflop] | Study[Parametric]


# --- JSON -------------------------------------------------------------------------------------------


def as_json(study: AnyStudy, diagnosis: Diagnosis) -> str:
    """`groups` as documented; beside them what the text says."""
    groups = {group.name: _object(group) for group in study.groups}
    content = {
        "groups": groups,
        "kind": "isoflop" if isinstance(study.groups[0], Isoflop) else "parametric",
        "source": study.points.source,
        "costs": study.points.costs,
        "level": study.settings.level,
        "bootstrap": study.settings.bootstrap,
        "seed": study.settings.seed,
        "changes": list(diagnosis.changes),
        "warnings": {group.name: list(group.warnings) for group in study.groups},
        "notes": list(study.points.notes),
        "refused": dict(study.refused),
        "dropped": {group.name: [_point(point) for point in group.dropped] for group in study.groups},
        "differences": [
            {"lower": low, "higher": high, "a": middle, "interval": [begin, end], "told_apart": begin > 0}
            for (low, high), (middle, begin, end) in differences(study).items()
        ],
        "variants": [_variant(diagnosis.base), *(_variant(variant) for variant in diagnosis.variants)],
        "held_out": [vars(one) for one in diagnosis.held_out],
        "outliers": list(diagnosis.outliers),
        "short_runs": list(diagnosis.short),
        "details": {group.name: _details(group) for group in study.groups},
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _object(group: Isoflop | Parametric) -> dict[str, Any]:
    if isinstance(group, Parametric):
        return {
            **{name: group.values[name] for name in ("E", "A", "B", "alpha", "beta")},
            "objective": group.fit.objective,
            "n_points": len(group.points),
            "standard_errors": group.standard_errors,
            "intervals": group.intervals,
            "a": group.values["a"],
            "b": group.values["b"],
        }
    return {
        "a": group.fit.a,
        "b": group.fit.b,
        "a_interval": group.slope_interval,
        "budgets": [
            {
                "flops": budget.flops,
                "n_opt": budget.n_opt,
                "d_opt": budget.d_opt,
                "loss": budget.loss,
                "n_points": budget.n_points,
                "interior": budget.interior,
            }
            for budget in group.fit.budgets
        ],
    }


def _details(group: Isoflop | Parametric) -> dict[str, Any]:
    if isinstance(group, Parametric):
        proof = group.fit.proof
        return {
            "estimator": group.fit.estimator,
            "resampled": group.plan.text,
            "seed_noise_identified": group.plan.identified,
            "is_optimum": proof.is_optimum,
            "starts": proof.starts,
            "starts_agreeing": proof.agreeing,
            "gradient": proof.gradient,
            "least_eigenvalue": proof.least_eigenvalue,
            "points_met": proof.active,
            "largest_multiplier": proof.multiplier,
            "residuals": [
                {**_point(point), "log_residual": float(r)}
                for point, r in zip(group.points, group.fit.residuals, strict=True)
            ],
        }
    fit = group.fit
    return {
        "method": fit.options.method,
        "rule": fit.options.rule,
        "window": fit.options.window if fit.options.method == "quadratic" else None,
        "measured": fit.measured,
        "noise": {
            "text": fit.noise.text,
            "source": fit.noise.source,
            "shared_nats": fit.noise.shared,
            "own_nats": fit.noise.own,
            "drawn_as_shared": fit.shared_noise,
        },
        "b_interval": None if fit.d is None else fit.d.interval(group.settings.level),
        "budgets": [
            {"flops": b.flops, "why_not": b.why_not, "log_n_sd": b.log_sd, "edge_share": b.edge_share}
            for b in fit.budgets
        ],
    }


def _point(point: Point) -> dict[str, Any]:
    return {"where": point.where, "n": point.n, "d": point.d, "c": point.c, "loss": point.loss, "trunk": point.trunk}


def _variant(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "about": variant.about,
        "a": dict(variant.slopes),
        "intervals": None if variant.intervals is None else {k: list(v) for k, v in variant.intervals.items()},
        "told_apart": None if variant.apart is None else sorted(map(list, variant.apart)),
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity: null stands for what is not a finite number."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


# --- text --------------------------------------------------------------------------------------------


def as_text(study: AnyStudy, diagnosis: Diagnosis, *, bold: Callable[[str], str]) -> str:
    """What changes first, then the exponents, then what they rest on."""
    isoflop = isinstance(study.groups[0], Isoflop)
    what = (
        "compute-optimal sizes at equal FLOPs"
        if isoflop
        else f"L(N, D) = E + A/N^alpha + B/D^beta by {study.settings.estimator}"
    )
    lines = [bold(f"{study.points.source}: {what}"), f"{study.points.costs}; nats a token"]
    lines += study.points.notes
    lines += [f"group {name} is left out: {why}" for name, why in study.refused.items()]
    lines += ["", bold("what changes with how it is fitted")]
    for change in diagnosis.changes:
        lines += wrapped(change, "- ", "  ")
    if not diagnosis.changes:
        some = any(slope is not None for slope in diagnosis.base.slopes.values())
        lines.append("- nothing that was tried below" if some else "- there is no exponent that could change")
    lines += _warned(study, bold)
    lines += ["", *_exponents(study, bold)]
    lines += ["", *(_budgets(study, bold) if isoflop else _laws(study, bold))]
    lines += ["", *_variants(diagnosis, bold)]
    lines += _rest(study, diagnosis, bold)
    return "\n".join(lines) + "\n"


def _exponents(study: AnyStudy, bold: Callable[[str], str]) -> list[str]:
    settings = study.settings
    level = f"{settings.level:.0%}"
    rows = [["group", "points", "a", f"{level} interval", "b", f"{level} interval"]]
    isoflop = isinstance(study.groups[0], Isoflop)
    if isoflop:
        rows[0] += ["D/N at the largest", "D/N ~ C^", "minima that count"]
    for group in study.groups:
        if isinstance(group, Parametric):
            b: float | None = group.values["b"]
            b_interval = None if group.intervals is None else group.intervals["b"]
            more = []
        else:
            b, b_interval = group.fit.b, None if group.fit.d is None else group.fit.d.interval(settings.level)
            more = _ratio(group)
        rows.append(
            [
                group.name,
                str(len(group.points)),
                number(group.slope),
                between(group.slope_interval),
                number(b),
                between(b_interval),
                *more,
            ]
        )
    how = f"{settings.bootstrap:,} {'simulated' if isoflop else 'resampled'} sets, seed {settings.seed}"
    lines = [bold(f"N_opt ~ C^a, D_opt ~ C^b ({how if settings.bootstrap else 'no intervals: --bootstrap 0'})")]
    if not isoflop:
        lines.append("a = beta / (alpha + beta) and b = 1 - a hold where C ~ N D")
    lines += table(rows)
    pairs = differences(study)
    if pairs:
        said = [
            f"{low} < {high} ({middle:+.3f} [{begin:.3f}, {end:.3f}])"
            for (low, high), (middle, begin, end) in pairs.items()
            if begin > 0
        ]
        open_ = [
            f"{low}, {high} ({middle:+.3f} [{begin:.3f}, {end:.3f}])"
            for (low, high), (middle, begin, end) in pairs.items()
            if begin <= 0
        ]
        lines += wrapped("a told apart: " + ("; ".join(said) or "no pair"))
        lines += wrapped("a not told apart: " + ("; ".join(open_) or "no pair"))
    return lines


def _ratio(group: Isoflop) -> list[str]:
    """Tokens a parameter on the lines, the exponent of that ratio, and how many minima that rests on."""
    fit = group.fit
    if fit.n is None or fit.d is None:
        return ["-", "-", _counted(group)]
    c = np.array([max(budget.flops for budget in fit.used)])
    low = high = None
    if len(fit.n.slopes):
        x = math.log(c[0]) - fit.n.centre
        drawn = np.exp(fit.d.ats - fit.n.ats + (fit.d.slopes - fit.n.slopes) * x)
        low, high = np.quantile(drawn, [(1 - group.settings.level) / 2, (1 + group.settings.level) / 2])
    ratio = float(fit.d.value(c)[0] / fit.n.value(c)[0])
    interval = "" if low is None else f" [{low:.3g}, {high:.3g}]"
    return [f"{ratio:.3g}{interval}", number(fit.d.slope - fit.n.slope), _counted(group)]


def _counted(group: Isoflop) -> str:
    k, n = len(group.fit.used), len(group.fit.budgets)
    return f"{k} of {n}" + ("; nothing can contradict a line through two" if k == 2 else "")


def _budgets(study: AnyStudy, bold: Callable[[str], str]) -> list[str]:
    rows = [["group", "FLOPs", "sizes", "N_opt", "± log", "D_opt", "D/N", "loss", "counts"]]
    for group in study.groups:
        if not isinstance(group, Isoflop):
            continue
        for budget in group.fit.budgets:
            counts = "yes" if budget.why_not is None else f"no: {budget.why_not}"
            if budget.edge_share is not None and budget.edge_share > 0.01:
                counts += f"; noise drives it to an edge in {budget.edge_share:.0%}"
            rows.append(
                [
                    group.name,
                    f"{budget.flops:.3g}",
                    str(budget.n_points),
                    si(budget.n_opt),
                    "-" if budget.log_sd is None else f"{budget.log_sd:.3f}",
                    si(budget.d_opt),
                    f"{budget.d_opt / budget.n_opt:.3g}",
                    f"{budget.loss:.4f}",
                    counts,
                ]
            )
    curve = study.settings.curve
    how = (
        "Akima splines in log N"
        if curve.method == "akima"
        else f"parabolas in log N, sizes within {curve.window:g} times"
    )
    rule = (
        "a minimum counts if the lowest size has a higher one on both sides"
        if curve.rule == "bracketed"
        else "a minimum counts if it lies between the sizes"
    )
    return [bold(f"minima by {how}; {rule}"), *table(rows)]


def _laws(study: AnyStudy, bold: Callable[[str], str]) -> list[str]:
    rows = [["group", *NAMES[:5], "objective", "largest residual"]]
    proofs, missed = [], []
    for group in study.groups:
        if not isinstance(group, Parametric):
            continue
        values, off = group.values, group.fit.residuals
        worst = int(np.abs(off).argmax())
        rows.append(
            [
                group.name,
                *(f"{values[name]:.4g}" for name in NAMES[:5]),
                f"{group.fit.objective:.6g}",
                f"{off[worst]:+.4f} at {group.points[worst].where}",
            ]
        )
        if group.intervals is not None and group.standard_errors is not None:
            errors, intervals = group.standard_errors, group.intervals
            rows.append(["  s.e.", *(f"{errors[name]:.2g}" for name in NAMES[:5]), "", ""])
            rows.append(["  interval", *(between(intervals[name], 3) for name in NAMES[:5]), "", ""])
        missed += _missed(group)
        proof = group.fit.proof
        flat = (
            "none is left free"
            if proof.least_eigenvalue is None
            else f"least eigenvalue {proof.least_eigenvalue:.1e} of the largest"
        )
        met = (
            ""
            if proof.multiplier is None
            else f"; meets {proof.active} points, largest multiplier {proof.multiplier:.2f}"
        )
        proofs.append(
            f"- {group.name}: {'an optimum' if proof.is_optimum else 'NOT SHOWN TO BE AN OPTIMUM'}: gradient "
            f"{proof.gradient:.0e}, {flat}{met}; "
            f"{proof.agreeing} of {proof.starts} descents end there"
        )
    lines = [bold("the laws, log residuals, and why they are optima"), *table(rows), *proofs]
    if missed:
        lines += [
            "",
            bold("mean residual of each budget (measured less law, nats): a trend is what the law misses"),
        ]
    return lines + missed


def _missed(group: Parametric) -> list[str]:
    """A line of the mean residual at each budget, where there are budgets."""
    budgets = budgets_of(group.points)
    if budgets is None:
        return []
    off = group.fit.residuals * np.array([point.loss for point in group.points])
    means = [f"{np.mean([group.points[i].c for i in members]):.2g}: {off[members].mean():+.4f}" for members in budgets]
    return wrapped(f"{group.name}: {'; '.join(means)}", "- ", "  ")


def _warned(study: AnyStudy, bold: Callable[[str], str]) -> list[str]:
    by_text: dict[str, list[str]] = {}
    for group in study.groups:
        for warning in group.warnings:
            by_text.setdefault(warning, []).append(group.name)
        if isinstance(group, Parametric):
            by_text.setdefault(group.plan.text, []).append(group.name)
    if not by_text:
        return []
    every = len(study.groups)
    lines = ["", bold("what to know")]
    for text, names in by_text.items():
        lines += wrapped(f"{text}{'' if len(names) == every else ' (' + ', '.join(names) + ')'}", "- ", "  ")
    return lines


def _variants(diagnosis: Diagnosis, bold: Callable[[str], str]) -> list[str]:
    groups = list(diagnosis.base.slopes)
    rows = [["a", *groups]]
    for variant in (diagnosis.base, *diagnosis.variants):
        cells = []
        for group in groups:
            text = number(variant.slopes.get(group))
            within = (variant.intervals or {}).get(group)
            cells.append(text if within is None else f"{text} {between(within)}")
        rows.append([variant.name, *cells])
    return [bold("what a depends on"), *table(rows)]


def _rest(study: AnyStudy, diagnosis: Diagnosis, bold: Callable[[str], str]) -> list[str]:
    lines = []
    if diagnosis.held_out:
        lines += ["", bold("the largest budget, predicted by L(N, D) of the others (predicted less measured, nats)")]
        lines += [
            f"- {one.group}: mean {one.mean:+.4f}, largest {one.worst:+.4f}, at {one.n_points} points of "
            f"{one.flops:.3g} FLOPs"
            for one in diagnosis.held_out
        ]
    lines += ["", bold("outliers")]
    lines += [f"- {text}" for text in diagnosis.outliers] or [
        "- none is more than six times the usual distance off L(N, D)"
    ]
    k = study.settings.drop_highest
    dropped = [
        f"{group.name}: {', '.join(f'{p.where} ({p.loss:.4g})' for p in group.dropped)}"
        for group in study.groups
        if group.dropped
    ]
    lines.append(f"- dropped by --drop-highest {k}: {'; '.join(dropped) if dropped else 'nothing'}")
    if diagnosis.short:
        lines += ["", bold("short runs (warmup and cooldown are more than 40% of them)")]
        lines += wrapped("; ".join(diagnosis.short), "- ", "  ")
    return lines


# --- pieces -------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def between(interval: Sequence[float] | None, digits: int | None = None) -> str:
    if interval is None:
        return "-"
    if digits is not None:
        return f"[{interval[0]:.{digits}g}, {interval[1]:.{digits}g}]"
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; the first and the last to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i == 0 or i == len(row) - 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def wrapped(text: str, first: str = "", others: str = "  ") -> list[str]:
    import textwrap

    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
