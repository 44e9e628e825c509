"""The two entries: fits of every group with their uncertainty.

from analysis.scaling.points import read_csv
from analysis.scaling.study import Settings, isoflop, parametric

study = parametric(read_csv(Path("runs.csv"), {"n": "params"}), Settings(bootstrap=4000))
study.groups[0].fit.law.alpha
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Generic, TypeVar, final

import numpy as np

from analysis.scaling.bootstrap import Plan, interval, plan_of, shared_noise, standard_error, weights_of
from analysis.scaling.isoflop import FEWEST_BUDGETS, IsoFlop, Options, fit_isoflop
from analysis.scaling.law import A_, ALPHA, B_, BETA, E_, Array, to_plain
from analysis.scaling.noise import noise_of
from analysis.scaling.parametric import Estimator, Fit, fit
from analysis.scaling.points import Point, Points, si, sizes_of, trunks_a_size, trunks_of
from analysis.scaling.resample import refit
from hybrid.spec import ConfigError

LEVEL: Final = 0.95
RESAMPLES: Final = 4000
FEWEST_POINTS: Final = 8
FEWEST_SIZES: Final = 3
NAMES: Final = ("E", "A", "B", "alpha", "beta", "a", "b")

Told = Callable[[str, int, int], None]
G = TypeVar("G")


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The words of the command line. `noise` is a run's standard deviation in nats, where it is known, with the degrees
    of freedom that it is known by (None: for certain)."""

    estimator: Estimator = "huber"
    drop_highest: int = 0
    bootstrap: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL
    noise: float | None = None
    noise_df: float | None = None
    curve: Options = field(default_factory=Options)


@final
@dataclass(frozen=True, kw_only=True)
class Parametric:
    """One group's law. `draws` has a column for each of `NAMES`, `weights` one for each point; none without a
    bootstrap."""

    name: str
    points: tuple[Point, ...]
    dropped: tuple[Point, ...]
    fit: Fit
    plan: Plan
    draws: Array
    weights: Array
    settings: Settings
    warnings: tuple[str, ...]

    @property
    def values(self) -> dict[str, float]:
        law = self.fit.law
        return {name: float(getattr(law, name)) for name in NAMES}

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]] | None:
        if not len(self.draws):
            return None
        found = {}
        for i, name in enumerate(NAMES):
            # Of what is above zero the logarithm is nearer to normal.
            draws = np.log(self.draws[:, i]) if name in "EAB" else self.draws[:, i]
            low, high = interval(draws, self.weights, self.plan, self.settings.level)
            found[name] = (math.exp(low), math.exp(high)) if name in "EAB" else (low, high)
        return found

    @cached_property
    def standard_errors(self) -> dict[str, float] | None:
        if not len(self.draws):
            return None
        return {name: standard_error(self.draws[:, i]) for i, name in enumerate(NAMES)}

    @property
    def slope(self) -> float:
        return self.fit.law.a

    @property
    def slope_interval(self) -> tuple[float, float] | None:
        return None if self.intervals is None else self.intervals["a"]

    @property
    def slope_draws(self) -> Array:
        return self.draws[:, NAMES.index("a")] if len(self.draws) else np.zeros(0)


@final
@dataclass(frozen=True, kw_only=True)
class Isoflop:
    """One group's optima and lines."""

    name: str
    points: tuple[Point, ...]
    dropped: tuple[Point, ...]
    fit: IsoFlop
    smooth: Fit | None
    settings: Settings
    warnings: tuple[str, ...]

    @property
    def slope(self) -> float | None:
        return self.fit.a

    @property
    def slope_interval(self) -> tuple[float, float] | None:
        return None if self.fit.n is None else self.fit.n.interval(self.settings.level)

    @property
    def slope_draws(self) -> Array:
        return np.zeros(0) if self.fit.n is None else self.fit.n.slopes


@final
@dataclass(frozen=True, kw_only=True)
class Study(Generic[G]):
    """All groups, fitted alike; `refused` says why others could not be."""

    points: Points
    settings: Settings
    groups: tuple[G, ...]
    refused: Mapping[str, str]


def keep(points: Sequence[Point], drop_highest: int) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """The points without those of the highest losses, and these."""
    order = sorted(range(len(points)), key=lambda i: (-points[i].loss, points[i].n, points[i].d))
    gone = set(order[:drop_highest])
    return (
        tuple(point for i, point in enumerate(points) if i not in gone),
        tuple(points[i] for i in order[:drop_highest]),
    )


def parametric(points: Points, settings: Settings, told: Told | None = None) -> "Study[Parametric]":
    """E + A/N^α + B/D^β of each group. Raises ConfigError where no group can be fitted."""
    found, refused = [], {}
    for number, name in enumerate(points.groups):
        kept, dropped = keep(points.of(name), settings.drop_highest)
        problem = parametric_problem(kept)
        if problem is not None:
            refused[name] = problem
            continue
        found.append(_parametric(name, number, kept, dropped, settings, told))
    return Study(points=points, settings=settings, groups=_some(found, refused), refused=refused)


def parametric_problem(points: Sequence[Point]) -> str | None:
    """Why five numbers cannot be had from these points; None where they can."""
    sizes = len(sizes_of(points)) if points else 0
    if sizes == 1:
        return f"one size ({si(points[0].n)}): how loss depends on it cannot be seen; expected {FEWEST_SIZES} sizes"
    if sizes < FEWEST_SIZES:
        return f"{sizes} sizes: E, A and alpha cannot be told apart; expected {FEWEST_SIZES} at least"
    lengths = len({round(math.log(point.d), 2) for point in points})
    if lengths < 3:
        return f"{lengths} lengths of training: E, B and beta cannot be told apart; expected 3 at least"
    if len(points) < FEWEST_POINTS:
        return f"{len(points)} points for five numbers; expected {FEWEST_POINTS} at least"
    return None


def _parametric(
    name: str, number: int, points: Sequence[Point], dropped: Sequence[Point], settings: Settings, told: Told | None
) -> Parametric:
    # An order of their own, that of the fit's data, so that resamples do not depend on the rows' order.
    points = sorted(points, key=lambda p: (p.n, p.d, p.loss))
    n, d, loss = arrays(points)
    fitted = fit(n, d, loss, settings.estimator)
    plan = plan_of(points)
    warnings = [*_of_trunks(points, plan, settings), *fitted.doubts]
    draws, weights = np.zeros((0, len(NAMES))), np.zeros((0, len(points)))
    if settings.bootstrap:
        seed = settings.seed * 1000 + number
        weights = weights_of(plan, len(points), settings.bootstrap, seed)
        y = None
        if settings.noise is not None and not plan.identified:
            y = fitted.data.y + shared_noise(plan, settings.noise, settings.bootstrap, seed) / loss
        say = None if told is None else lambda done, of: told(name, done, of)
        draws = _named(refit(fitted, weights, y=y, told=say), fitted)
        good = np.isfinite(draws).all(axis=1) & (draws[:, :3] > 0).all(axis=1)
        draws, weights, lost = draws[good], weights[good], int((~good).sum())
        if lost:
            warnings.append(f"{lost} of {settings.bootstrap} resamples do not determine the law and are left out")
    return Parametric(
        name=name,
        points=tuple(points),
        dropped=tuple(dropped),
        fit=fitted,
        plan=plan,
        draws=draws,
        weights=weights,
        settings=settings,
        warnings=tuple(warnings),
    )


def _named(theta: Array, fitted: Fit) -> Array:
    plain = to_plain(theta, fitted.data)
    with np.errstate(over="ignore"):
        e, a, b = np.exp(plain[:, E_]), np.exp(plain[:, A_]), np.exp(plain[:, B_])
    alpha, beta = plain[:, ALPHA], plain[:, BETA]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([e, a, b, alpha, beta, beta / (alpha + beta), alpha / (alpha + beta)], axis=1)


def _of_trunks(points: Sequence[Point], plan: Plan, settings: Settings) -> list[str]:
    if plan.identified:
        return []
    alone = "one trunk a size" if trunks_a_size(points) == 1 and not plan.text[0].isdigit() else "a size with one trunk"
    told = (
        f"; noise of {settings.noise:g} nats is shared by its branches, as given"
        if settings.noise is not None
        else ("; the intervals leave out what its branches share (--noise NATS puts it in)")
    )
    return [f"{alone}: seed noise cannot be identified{told}"]


def isoflop(points: Points, settings: Settings, told: Told | None = None) -> "Study[Isoflop]":
    """The optima of each group and the laws through them. Raises ConfigError where no group has a curve."""
    found, refused = [], {}
    for number, name in enumerate(points.groups):
        kept, dropped = keep(points.of(name), settings.drop_highest)
        if len(sizes_of(kept)) < FEWEST_SIZES if kept else True:
            sizes = len(sizes_of(kept)) if kept else 0
            refused[name] = f"{sizes} size{'' if sizes == 1 else 's'}: expected {FEWEST_SIZES} at least at each budget"
            continue
        smooth = fit(*arrays(kept)) if parametric_problem(kept) is None else None
        noise = noise_of(kept, smooth, given=settings.noise, df=settings.noise_df)
        fitted = fit_isoflop(
            kept,
            settings.curve,
            noise,
            draws=settings.bootstrap,
            seed=settings.seed * 1000 + number,
            law=None if smooth is None else smooth.law,
        )
        if told is not None:
            told(name, settings.bootstrap, settings.bootstrap)
        if not fitted.budgets:
            refused[name] = "its runs form no budgets: no FLOPs at which three sizes were trained, or lie around"
            continue
        found.append(
            Isoflop(
                name=name,
                points=kept,
                dropped=dropped,
                fit=fitted,
                smooth=smooth,
                settings=settings,
                warnings=tuple(_isoflop_warnings(kept, fitted)),
            )
        )
    return Study(points=points, settings=settings, groups=_some(found, refused), refused=refused)


def _isoflop_warnings(points: Sequence[Point], fitted: IsoFlop) -> list[str]:
    found = []
    k, n = len(fitted.used), len(fitted.budgets)
    of = f"{k} of {n} budgets have a minimum between sizes"
    if k == 0:
        found.append(f"{of}: all lie at the edge, so there is no exponent; sizes {_beyond(fitted)} are missing")
    elif k == 1:
        found.append(f"{of}: one point has no slope")
    elif k < FEWEST_BUDGETS:
        found.append(f"{of}: the exponents are the line through two points, which nothing can contradict")
    elif k < n:
        found.append(f"{of}")
    trunks = trunks_of(points)
    if trunks is not None and not fitted.noise.split:
        found.append(
            f"one trunk a size: seed noise cannot be identified; noise is {fitted.noise.text}, drawn as "
            + ("shared by a trunk's branches" if fitted.shared_noise else "each run's own")
            + ", the wider of the two"
        )
    if not fitted.measured:
        found.append("FLOPs are not equal: each size's losses are interpolated in log C to budgets in common")
    return found


def _beyond(fitted: IsoFlop) -> str:
    smaller = any("smallest" in str(budget.why_not) for budget in fitted.budgets)
    larger = any("largest" in str(budget.why_not) for budget in fitted.budgets)
    return " and ".join([*(["smaller"] if smaller else []), *(["larger"] if larger else [])]) or "around the minimum"


def _some(found: list[G], refused: Mapping[str, str]) -> tuple[G, ...]:
    if not found:
        raise ConfigError([f"group {name}: {why}" for name, why in refused.items()] or ["no points"])
    return tuple(found)


def arrays(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    """Parameters, tokens and losses."""
    n, d, loss = (np.array([getattr(point, name) for point in points], dtype=np.float64) for name in ("n", "d", "loss"))
    return n, d, loss
