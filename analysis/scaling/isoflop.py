"""Compute-optimal sizes from runs at equal FLOPs: the lowest point of each curve, and power laws through them.

At each budget the loss is a curve over log N: an Akima spline through the sizes (Akima 1970), which a far point does
not bend, or a parabola through those in a window around the lowest. A minimum counts if it is *bracketed*: the lowest
size that was trained has a higher one on both sides. A curve through points that still fall at the largest size has a
lowest point too, but it rests on how the curve was continued. The laws N_opt ~ C^a and D_opt ~ C^b are lines through
the logarithms, weighted by what noise does to each minimum, as simulated (`analysis.scaling.noise`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, final

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from analysis.scaling.law import Array, Indices
from analysis.scaling.noise import Noise
from analysis.scaling.parametric import Law
from analysis.scaling.points import Point, budgets_of, sizes_of

Method = Literal["akima", "quadratic"]
Rule = Literal["bracketed", "inside"]

METHODS: Final[tuple[Method, ...]] = ("akima", "quadratic")
RULES: Final[tuple[Rule, ...]] = ("bracketed", "inside")
WINDOW: Final = 10.0
FEWEST_SIZES: Final = 3
FEWEST_BUDGETS: Final = 3
_LEAST_SD: Final = 1e-3
_NEIGHBOURS: Final = 4


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """`window`: the parabola goes through sizes within this factor of the lowest one; three at least."""

    method: Method = "akima"
    rule: Rule = "bracketed"
    window: float = WINDOW


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """One budget: sizes ascending, their tokens, and their losses as sums of the points' (`mix` @ loss), for a size's
    trunks are averaged, or its losses at other FLOPs interpolated."""

    flops: float
    log_n: Array
    log_d: Array
    mix: Array


@final
@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The lowest point of one curve. `n_points` are the sizes on it. `interior`: it counts by the rule; else `why_not`.

    `log_sd` is the standard deviation of log N_opt in simulated noise; `edge_share` how often that drove the minimum to
    the smallest or largest size. None without noise.
    """

    flops: float
    n_opt: float
    d_opt: float
    loss: float
    n_points: int
    interior: bool
    why_not: str | None
    log_sd: float | None
    edge_share: float | None


@final
@dataclass(frozen=True, kw_only=True)
class Line:
    """log y = `at` + `slope` (log C - `centre`); draws are those of simulated noise, centred on the estimate."""

    slope: float
    at: float
    centre: float
    slopes: Array
    ats: Array

    def value(self, c: Array) -> Array:
        return np.asarray(np.exp(self.at + self.slope * (np.log(c) - self.centre)))

    def band(self, c: Array, level: float) -> tuple[Array, Array]:
        x = np.log(c) - self.centre
        low, high = np.quantile(
            self.ats[:, None] + self.slopes[:, None] * x, [(1 - level) / 2, (1 + level) / 2], axis=0
        )
        return np.exp(low), np.exp(high)

    def interval(self, level: float) -> tuple[float, float] | None:
        if not len(self.slopes):
            return None
        low, high = np.quantile(self.slopes, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


@final
@dataclass(frozen=True, kw_only=True)
class IsoFlop:
    """One group's optima and, with two budgets at least whose minimum counts, their lines."""

    budgets: tuple[Optimum, ...]
    curves: tuple[Curve, ...]
    losses: tuple[Array, ...]
    measured: bool
    options: Options
    noise: Noise
    n: Line | None
    d: Line | None
    shared_noise: bool

    @cached_property
    def used(self) -> tuple[Optimum, ...]:
        return tuple(budget for budget in self.budgets if budget.interior)

    @property
    def a(self) -> float | None:
        return None if self.n is None else self.n.slope

    @property
    def b(self) -> float | None:
        return None if self.d is None else self.d.slope


# --- curves ---------------------------------------------------------------------------------------


def curves_of(points: Sequence[Point]) -> tuple[tuple[Curve, ...], bool]:
    """A curve for each budget; whether the losses are measured there. Where FLOPs are not equal, as in another
    convention than the runs were planned in, each size's losses are interpolated in log C to budgets in common."""
    budgets = budgets_of(points)
    if budgets is None:
        return _interpolated(points), False
    return tuple(_measured(points, members) for members in budgets), True


def _measured(points: Sequence[Point], members: Sequence[int]) -> Curve:
    here = [points[i] for i in members]
    sizes = sizes_of(here)
    mix = np.zeros((len(sizes), len(points)))
    for row, size in enumerate(sizes):
        mix[row, [members[j] for j in size]] = 1 / len(size)
    log_n, log_d, log_c = (
        np.array([np.mean([math.log(getattr(here[j], name)) for j in size]) for size in sizes]) for name in "ndc"
    )
    flops = here[0].budget
    return Curve(flops=float(np.exp(log_c.mean())) if flops is None else flops, log_n=log_n, log_d=log_d, mix=mix)


def _interpolated(points: Sequence[Point]) -> tuple[Curve, ...]:
    sizes = [np.array(size) for size in sizes_of(points)]
    log_c = np.log([point.c for point in points])
    spans = [(log_c[size].min(), log_c[size].max()) for size in sizes if len(set(log_c[size])) > 1]
    if len(spans) < FEWEST_SIZES:
        return ()
    begin = sorted(low for low, _ in spans)[FEWEST_SIZES - 1]
    end = sorted((high for _, high in spans), reverse=True)[FEWEST_SIZES - 1]
    count = max(len(_lengths(log_c[size])) for size in sizes)
    if end <= begin or count < 2:
        return ()
    found = []
    for target in np.linspace(begin, end, count):
        rows, log_n, log_d = [], [], []
        for size in sizes:
            at = _lengths(log_c[size])
            if len(at) < 2 or not at[0] - 1e-9 <= target <= at[-1] + 1e-9:
                continue
            row = np.zeros(len(points))
            for weight, value in zip(_lagrange(at, target), at, strict=False):
                same = size[np.abs(log_c[size] - value) < 1e-6]
                row[same] = weight / len(same)
            rows.append(row)
            per_token = np.mean([math.log(points[i].c / points[i].d) for i in size])
            log_n.append(np.mean([math.log(points[i].n) for i in size]))
            log_d.append(target - per_token)
        found.append(
            Curve(flops=float(np.exp(target)), log_n=np.array(log_n), log_d=np.array(log_d), mix=np.array(rows))
        )
    return tuple(found)


def _lengths(log_c: Array) -> Array:
    ordered = np.sort(log_c)
    return np.asarray(ordered[np.concatenate([[True], np.diff(ordered) > 1e-6])])


def _lagrange(at: Array, target: float) -> Array:
    """Weights of the values at `at` in the polynomial through the four nearest to the target."""
    weights = np.zeros(len(at))
    near = np.sort(np.argsort(np.abs(at - target), kind="stable")[:_NEIGHBOURS])
    for i in near:
        others = at[near[near != i]]
        weights[i] = np.prod((target - others) / (at[i] - others))
    return weights


# --- minima ----------------------------------------------------------------------------------------


def lowest(log_n: Array, losses: Array, options: Options, chosen: Indices) -> tuple[Array, Array]:
    """log N and loss of the lowest point of each column of `losses` (k, R), within the sizes. The parabola goes through
    the sizes `chosen`."""
    if options.method == "quadratic":
        return _parabola(log_n[chosen], losses[chosen])
    return _akima(log_n, losses)


def _akima(log_n: Array, losses: Array) -> tuple[Array, Array]:
    c3, c2, c1, c0 = Akima1DInterpolator(log_n, losses).c
    width = np.diff(log_n)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.maximum(c2 * c2 - 3 * c3 * c1, 0.0))
        # The root of the derivative at which it rises, in the form that is stable for a small cubic term.
        inner = np.where(c2 + root > 0, -c1 / (c2 + root), (-c2 + root) / (3 * c3))
    inner = np.clip(np.nan_to_num(inner, nan=0.0, posinf=0.0, neginf=0.0), 0.0, width)
    at = np.concatenate([log_n[:-1, None] + inner, np.broadcast_to(log_n[:, None], losses.shape)])
    value = np.concatenate([((c3 * inner + c2) * inner + c1) * inner + c0, losses])
    best = value.argmin(axis=0)
    columns = np.arange(losses.shape[1])
    return at[best, columns], value[best, columns]


def _parabola(log_n: Array, losses: Array) -> tuple[Array, Array]:
    centre = log_n.mean()
    x = log_n - centre
    c2, c1, c0 = np.linalg.pinv(np.stack([x * x, x, np.ones_like(x)], axis=1)) @ losses
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.where(c2 > 0, -c1 / (2 * c2), np.nan)
    ends = np.stack([np.full(len(c2), x[0]), np.full(len(c2), x[-1])])
    falling = (c2 * ends + c1) * ends + c0
    end = np.where(falling[0] <= falling[1], x[0], x[-1])
    at = np.where(np.isfinite(vertex), np.clip(vertex, x[0], x[-1]), end)
    return at + centre, (c2 * at + c1) * at + c0


def _judge(curve: Curve, losses: Array, log_n: float, options: Options) -> str | None:
    """Why the minimum does not count; None where it does."""
    k = len(losses)
    if k < FEWEST_SIZES:
        return f"{k} size{'' if k == 1 else 's'}, {FEWEST_SIZES} at least are needed"
    first, last = int(losses.argmin()) == 0, int(losses.argmin()) == k - 1
    if options.rule == "bracketed" and (first or last):
        return f"the {'smallest' if first else 'largest'} size is the lowest: no minimum between sizes"
    if not curve.log_n[0] + 1e-9 < log_n < curve.log_n[-1] - 1e-9:
        return "the curve has no minimum between the sizes"
    return None


def _window(curve: Curve, losses: Array, options: Options) -> Indices:
    """The sizes that the parabola goes through: those in the window, and the nearest until they are three."""
    apart = np.abs(curve.log_n - curve.log_n[int(losses.argmin())])
    count = max(min(FEWEST_SIZES, len(losses)), int((apart <= math.log(options.window) + 1e-9).sum()))
    return np.sort(np.argsort(apart, kind="stable")[:count])


# --- the whole -------------------------------------------------------------------------------------


def fit_isoflop(
    points: Sequence[Point], options: Options, noise: Noise, *, draws: int, seed: int, law: Law | None = None
) -> IsoFlop:
    """Optima and lines of one group. `draws` simulated sets of losses give the weights and the intervals.

    They are drawn around the smooth `law` where there is one: around the losses themselves, a curve that noise has made
    look sharp would be taken for certain.
    """
    points = sorted(points, key=lambda p: (p.n, p.c, p.loss, p.trunk or ""))
    curves, measured = curves_of(points)
    loss = np.array([point.loss for point in points])
    smooth = loss if law is None else law.loss(np.array([p.n for p in points]), np.array([p.d for p in points]))
    found = [_optimum(curve, curve.mix @ loss, options) for curve in curves]
    shared = _drawn(points, noise, draws, seed, shared=True)
    own = shared if noise.split else _drawn(points, noise, draws, seed, shared=False)
    fits = [
        _simulated(curves, found, smooth, simulated, options)
        for simulated in ([shared] if noise.split else [own, shared])
    ]
    # Where it is not known how much of the noise branches share, the wider of the two counts.
    widest = max(range(len(fits)), key=lambda i: fits[i].spread)
    chosen = fits[widest]
    return IsoFlop(
        budgets=chosen.budgets,
        curves=curves,
        losses=tuple(curve.mix @ loss for curve in curves),
        measured=measured,
        options=options,
        noise=noise,
        n=chosen.n,
        d=chosen.d,
        shared_noise=noise.split or widest == 1,
    )


@final
@dataclass(frozen=True, kw_only=True)
class _Fitted:
    budgets: tuple[Optimum, ...]
    n: Line | None
    d: Line | None

    @property
    def spread(self) -> float:
        return 0.0 if self.n is None or not len(self.n.slopes) else float(self.n.slopes.std())


def _optimum(curve: Curve, losses: Array, options: Options) -> Optimum:
    if len(losses) < FEWEST_SIZES:
        i = int(losses.argmin()) if len(losses) else 0
        log_n, log_d, value = curve.log_n[i], curve.log_d[i], losses[i]
    else:
        at, values = lowest(curve.log_n, losses[:, None], options, _window(curve, losses, options))
        log_n, value = float(at[0]), float(values[0])
        log_d = float(np.interp(log_n, curve.log_n, curve.log_d))
    why_not = _judge(curve, losses, log_n, options)
    return Optimum(
        flops=curve.flops,
        n_opt=math.exp(log_n),
        d_opt=math.exp(log_d),
        loss=float(value),
        n_points=len(losses),
        interior=why_not is None,
        why_not=why_not,
        log_sd=None,
        edge_share=None,
    )


def _drawn(points: Sequence[Point], noise: Noise, draws: int, seed: int, *, shared: bool) -> Array:
    """What noise adds to the losses, (n, draws). The spread itself is drawn, as far as it is not known."""
    rng = np.random.default_rng([seed, int(shared)])
    trunks = {name: i for i, name in enumerate(dict.fromkeys(p.trunk or f"point {i}" for i, p in enumerate(points)))}
    index = np.array([trunks[p.trunk or f"point {i}"] for i, p in enumerate(points)])
    common = rng.standard_normal((len(trunks), draws))[index]
    each = rng.standard_normal((len(points), draws))
    drawn = noise.shared * common + noise.own * each if noise.split else noise.own * (common if shared else each)
    if noise.df is not None:
        drawn = drawn * np.sqrt(noise.df / rng.chisquare(noise.df, draws))
    return np.asarray(drawn)


def _simulated(
    curves: Sequence[Curve], found: Sequence[Optimum], smooth: Array, drawn: Array, options: Options
) -> _Fitted:
    used = [i for i, optimum in enumerate(found) if optimum.interior]
    noisy = bool(drawn.size) and bool(np.any(drawn))
    budgets = list(found)
    log_n, log_d = [], []
    for i in used:
        curve, base = curves[i], curves[i].mix @ smooth
        at = np.array([math.log(found[i].n_opt)])
        if noisy:
            moved = base[:, None] + curve.mix @ drawn
            at = np.concatenate([at, lowest(curve.log_n, moved, options, _window(curve, base, options))[0]])
            at_edge = (at[1:] <= curve.log_n[0] + 1e-9) | (at[1:] >= curve.log_n[-1] - 1e-9)
            budgets[i] = replace(found[i], log_sd=float(at[1:].std()), edge_share=float(at_edge.mean()))
        log_n.append(at)
        log_d.append(np.interp(at, curve.log_n, curve.log_d))
    if len(used) < 2:
        return _Fitted(budgets=tuple(budgets), n=None, d=None)
    sd = np.array([max(_LEAST_SD, budgets[i].log_sd or 0.0) for i in used]) if noisy else np.ones(len(used))
    log_c = np.log([found[i].flops for i in used])
    weights = 1 / sd**2
    return _Fitted(
        budgets=tuple(budgets), n=_line(log_c, np.stack(log_n), weights), d=_line(log_c, np.stack(log_d), weights)
    )


def _line(log_c: Array, values: Array, weights: Array) -> Line:
    """Weighted least squares of each column of `values` (k, 1 + R): the estimate, then the draws."""
    share = weights / weights.sum()
    centre = float(share @ log_c)
    x = log_c - centre
    at = share @ values
    slope = (share * x) @ values / float((share * x) @ x)
    # The draws are of another curve's minima: their spread is what is meant.
    slopes, ats = slope[1:], at[1:]
    if len(slopes):
        slopes, ats = slopes - np.median(slopes) + slope[0], ats - np.median(ats) + at[0]
    return Line(slope=float(slope[0]), at=float(at[0]), centre=centre, slopes=slopes, ats=ats)
