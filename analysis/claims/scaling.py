"""Compute-optimal sizes from runs at equal FLOPs: a first, simple fit, honest about what it leaves open.

At each budget a parabola of the loss in log N through the sizes; its lowest point is the optimum if it curves upwards
and lies among the sizes. The exponent a of N* = C^a is the slope of log N* over log C. Its uncertainty is the jackknife
over budgets (leave one out), with as many degrees of freedom as there are budgets, less one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Final, final

from analysis.claims.parts import DCLM, Estimated, Part, Remark, Row, Unknown, all_of
from analysis.claims.source import Source
from hybrid.cost import run_cost

_MODELS: Final = ("Llama", "Mamba", "Inter-H", "Intra-H")
_FEWEST_BUDGETS: Final = 3
_ABOUT: Final = math.log(1.25)
_TOKENS_A_PARAMETER: Final = 20
_FAR: Final = 10.0


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the scaling tables: log of parameters, tokens and FLOPs, and its loss."""

    row: Row
    log_n: float
    log_d: float
    log_c: float
    loss: float


@final
@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The lowest point of the parabola at one budget; `interior`: it is a minimum, and among the sizes."""

    log_c: float
    log_n: float
    log_d: float
    interior: bool


@final
@dataclass(frozen=True, kw_only=True)
class Jackknifed:
    estimate: float
    std_error: float
    df: int


def compute_optimal(source: Source) -> Part:
    runs = {model: _runs(source, model) for model in _MODELS}
    if any(found is None for found in runs.values()):
        row = next(row for row in source.rows.of("14/15") if source.value(row, DCLM) is None)
        missing, needs = source.missing([row], DCLM)
        return Unknown(text="compute-optimal sizes at five budgets", missing=missing, needs=needs)
    known = {model: found for model, found in runs.items() if found is not None}
    optima = {model: optima_of(found) for model, found in known.items()}
    interior = {model: {o.log_c: o for o in found if o.interior} for model, found in optima.items()}
    if any(len(found) < _FEWEST_BUDGETS for found in interior.values()):
        counts = ", ".join(f"{model} {len(found)}" for model, found in interior.items())
        return Unknown(
            text="compute-optimal sizes",
            missing=f"too few budgets have an optimum among the sizes ({counts})",
            needs="more sizes around the optimum: `python run.py -m +sweep=isoflop` with other scales",
        )
    parts: list[Part] = []
    for low, high in (("Llama", "Inter-H"), ("Llama", "Intra-H"), ("Inter-H", "Mamba"), ("Intra-H", "Mamba")):
        budgets = sorted({*interior[low], *interior[high]})
        parts.append(
            _estimated(
                f"the exponent a of {low} < that of {high}",
                jackknife(budgets, partial(_exponent_gap, interior[low], interior[high])),
                "exponent",
                {model: round(_exponent(interior[model], budgets), 4) for model in (low, high)},
            )
        )
    ratio = {model: {c: o.log_d - o.log_n for c, o in found.items()} for model, found in interior.items()}
    parts.append(
        _estimated(
            f"tokens a parameter at Llama's optima, {math.exp(fmean(ratio['Llama'].values())):.1f} in the mean, are "
            f"about {_TOKENS_A_PARAMETER}, within a quarter",
            _mean([value - math.log(_TOKENS_A_PARAMETER) for value in ratio["Llama"].values()]),
            "log ratio",
            {f"C={math.exp(c):.0e}": round(math.exp(value), 2) for c, value in ratio["Llama"].items()},
            same=True,
        )
    )
    common = sorted(set(ratio["Inter-H"]) & set(ratio["Intra-H"]))
    parts.append(
        _estimated(
            "tokens a parameter at the optima of Inter-H < those of Intra-H",
            _mean([ratio["Inter-H"][c] - ratio["Intra-H"][c] for c in common]),
            "log ratio",
            {
                model: {f"C={math.exp(c):.0e}": round(math.exp(ratio[model][c]), 2) for c in common}
                for model in ("Inter-H", "Intra-H")
            },
        )
    )
    return all_of([*parts, *_dropped(optima), *_outliers(known)])


def _runs(source: Source, model: str) -> tuple[Run, ...] | None:
    """None if a run has no loss."""
    found = []
    for row in source.rows.of("14/15", lambda entry: entry.printed["model"] == model):
        value = source.value(row, DCLM)
        if value is None:
            return None
        run = source.rows.run(row)
        found.append(
            Run(
                row=row,
                log_n=math.log(run_cost(run).paper_non_embedding_params),
                log_d=math.log(run.train_tokens),
                log_c=math.log(float(source.rows.entry(row).printed["flops"])),
                loss=value.mean,
            )
        )
    return tuple(found)


def optima_of(runs: Sequence[Run]) -> tuple[Optimum, ...]:
    """One for each budget with three sizes at least: the paper's parabola through all of them."""
    from analysis.scaling.isoflop import FEWEST_SIZES, Options, fit_isoflop
    from analysis.scaling.noise import SILENT
    from analysis.scaling.points import Point

    points = [
        Point(
            group=_model_of(run),
            n=math.exp(run.log_n),
            d=math.exp(run.log_d),
            c=math.exp(run.log_c),
            loss=run.loss,
            budget=math.exp(run.log_c),
            where=run.row.label,
        )
        for run in runs
    ]
    every = Options(method="quadratic", rule="inside", window=math.inf)
    return tuple(
        Optimum(
            log_c=math.log(optimum.flops),
            log_n=math.log(optimum.n_opt),
            log_d=math.log(optimum.d_opt),
            interior=optimum.interior,
        )
        for optimum in fit_isoflop(points, every, SILENT, draws=0, seed=0).budgets
        if optimum.n_points >= FEWEST_SIZES
    )


def _exponent(optima: dict[float, Optimum], kept: Sequence[float]) -> float:
    import numpy as np

    points = [(log_c, optimum.log_n) for log_c, optimum in optima.items() if log_c in kept]
    return float(np.polyfit([c for c, _ in points], [n for _, n in points], 1)[0])


def _exponent_gap(low: dict[float, Optimum], high: dict[float, Optimum], kept: Sequence[float]) -> float:
    return _exponent(low, kept) - _exponent(high, kept)


def jackknife(budgets: Sequence[float], estimate: Callable[[Sequence[float]], float]) -> Jackknifed:
    """The estimate of all budgets, and its standard error from leaving out one at a time (Tukey 1958)."""
    k = len(budgets)
    left_out = [estimate([c for c in budgets if c != gone]) for gone in budgets]
    mean = fmean(left_out)
    variance = (k - 1) / k * math.fsum((value - mean) ** 2 for value in left_out)
    return Jackknifed(estimate=estimate(budgets), std_error=math.sqrt(variance), df=k - 1)


def _mean(values: Sequence[float]) -> Jackknifed:
    """Of a mean the jackknife gives the usual standard error."""
    mean = fmean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Jackknifed(estimate=mean, std_error=math.sqrt(variance / len(values)), df=len(values) - 1)


def _estimated(text: str, found: Jackknifed, unit: str, numbers: dict[str, object], *, same: bool = False) -> Estimated:
    return Estimated(
        text=text,
        estimate=found.estimate,
        std_error=found.std_error,
        df=found.df,
        unit=unit,
        margin=_ABOUT if same else 0.02,
        numbers=numbers,
        wants="same" if same else "better",
    )


def _dropped(optima: dict[str, tuple[Optimum, ...]]) -> list[Remark]:
    outside = [
        f"{model} at {math.exp(o.log_c):.0e}" for model, found in optima.items() for o in found if not o.interior
    ]
    if not outside:
        return []
    return [Remark(text=f"no optimum among the sizes, and so left out: {', '.join(outside)}")]


def _outliers(runs: dict[str, tuple[Run, ...]]) -> list[Remark]:
    """Losses far from the line between their neighbours in the budget, beside the other architectures at that place."""
    bends: dict[tuple[str, float], dict[str, tuple[Run, float]]] = {}
    for model, found in runs.items():
        for size in {_size(run) for run in found}:
            line = sorted((run for run in found if _size(run) == size), key=lambda run: run.log_c)
            for before, run, after in zip(line, line[1:], line[2:], strict=False):
                share = (run.log_c - before.log_c) / (after.log_c - before.log_c)
                bend = run.loss - (before.loss + share * (after.loss - before.loss))
                bends.setdefault((size, run.log_c), {})[model] = (run, bend)
    apart = [
        (run, bend - median([b for other, (_, b) in at.items() if other != model]))
        for at in bends.values()
        for model, (run, bend) in at.items()
        if len(at) > 2
    ]
    if not apart:
        return []
    usual = median([abs(value) for _, value in apart])
    # A run that is off bends the lines of its neighbours too: of one line the worst alone is named.
    worst: dict[tuple[str, str], tuple[Run, float]] = {}
    for run, value in apart:
        line_of = (_model_of(run), _size(run))
        if abs(value) > _FAR * usual and abs(value) > abs(worst.get(line_of, (run, 0.0))[1]):
            worst[line_of] = (run, value)
    return [
        Remark(
            text=f"{run.row} ({run.loss:.3f}) lies {value:+.3f} nats off the line between its neighbours in the "
            f"budget, beside the other architectures there; {usual:.3f} is usual{_without(run, runs[_model_of(run)])}",
            numbers={"loss": run.loss, "off": round(value, 4), "usual": round(usual, 4)},
        )
        for run, value in worst.values()
    ]


def _without(odd: Run, runs: Sequence[Run]) -> str:
    """What the exponent would be without this run."""
    exponents = []
    for kept in (runs, [run for run in runs if run.row != odd.row]):
        interior = {o.log_c: o for o in optima_of(kept) if o.interior}
        if len(interior) < _FEWEST_BUDGETS:
            return ""
        exponents.append(_exponent(interior, list(interior)))
    return f"; without it the exponent a of {_model_of(odd)} is {exponents[1]:.2f} instead of {exponents[0]:.2f}"


def _model_of(run: Run) -> str:
    return run.row.label.split(" ")[0]


def _size(run: Run) -> str:
    return run.row.label.split(" ")[1]
