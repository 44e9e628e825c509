"""Least absolute deviations of log loss: the Huber estimator's limit, with a certificate that it has been reached.

From the Huber optima the delta is made smaller. Then the law is replaced by its tangent, for which the least sum is
found exactly (a linear program, solved by exchanging one of the points that are met at a time: Bloomfield & Steiger
1983), until no tangent promises less. Last, the points that are met are met exactly, by Newton's method on the
conditions of Karush, Kuhn and Tucker: for residuals r, signs s and multipliers λ of the points met, the sum of s ∇m
over the others plus that of λ ∇m is zero. With every |λ| <= 1, and curvature along what the points met leave free, no
small change of the law lowers the sum.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Final, final

import numpy as np

from analysis.scaling.law import (
    Array,
    Data,
    Indices,
    Objective,
    P,
    gradient_of_law,
    hessian_of_law,
    log_law,
)
from analysis.scaling.newton import minimise

SHARPEST: Final = 1e-5  # of resamples, whose last digits nobody needs
_SHARPER: Final = (3e-4, 1e-4, 3e-5, SHARPEST)
_STARTS: Final = 40
_FINISHED: Final = 10
_NOTHING: Final = 1e-12
_AGREE: Final = 1e-9
_SLACK: Final = 1e-9
_STATIONARY: Final = 1e-7
_CANDIDATES: Final = 7


@final
@dataclass(frozen=True, kw_only=True)
class Certified:
    """The best end of the descents. `least_eigenvalue` is that of the Lagrangian's Hessian along what the `active`
    points leave free, over that of Σ ∇m ∇mᵀ; None where they leave nothing free. `stationarity` is the largest
    component of its gradient over the largest of a single ∇m. Of `starts`, the best different ends at a delta of 1e-5,
    `agreeing` led to the least sum."""

    theta: Array
    objective: float
    starts: int
    agreeing: int
    stationarity: float
    least_eigenvalue: float | None
    active: int
    multiplier: float

    @property
    def holds(self) -> bool:
        curved = self.least_eigenvalue is None or self.least_eigenvalue > 0
        return self.multiplier <= 1 + _SLACK and self.stationarity < _STATIONARY and curved


def refine(data: Data, minima: Array, theta: Array) -> Certified:
    """From the Huber optima `minima`, and from those of randomly weighted points around the best, `theta`."""
    rng = np.random.default_rng(20)
    weights = np.ones((_STARTS, data.n))
    weights[len(minima) :] = rng.exponential(size=(_STARTS - len(minima), data.n))
    if np.abs(_residuals(data, theta)).max() < _NOTHING:
        return _certificate(data, theta, np.zeros(0, dtype=np.int64))
    begin = np.concatenate([minima, np.repeat(theta[None], _STARTS - len(minima), axis=0)])
    rows = np.arange(_STARTS)
    at = minimise(Objective(data, 1e-3, weights), begin, rows, iterations=12).theta
    for delta in _SHARPER:
        at = minimise(Objective(data, delta), at, rows, iterations=8).theta
    with np.errstate(invalid="ignore"):
        sums = np.abs(data.y - log_law(at, data.x, data.z)).sum(axis=1)
    sums = np.where(np.isfinite(sums), sums, np.inf)
    order = np.argsort(sums, kind="stable")
    picked: list[int] = []
    for i in order:
        if len(picked) < _FINISHED and all(np.abs(at[i] - at[j]).max() > 1e-7 for j in picked):
            picked.append(int(i))
    ends = sorted((finish(data, at[i]) for i in picked), key=lambda one: one.objective)
    best = next((one for one in ends if one.holds and one.objective <= ends[0].objective * (1 + _AGREE)), None)
    best = best or _otherwise_met(data, ends[0])
    return Certified(
        theta=best.theta,
        objective=best.objective,
        starts=len(ends),
        agreeing=sum(one.objective <= best.objective * (1 + _AGREE) + _NOTHING for one in ends),
        stationarity=best.stationarity,
        least_eigenvalue=best.least_eigenvalue,
        active=best.active,
        multiplier=best.multiplier,
    )


def finish(data: Data, theta: Array) -> Certified:
    """Down from θ to a point where no small change is better, as far as that can be certified."""
    basis: Indices = np.zeros(0, dtype=np.int64)
    total = float(np.abs(_residuals(data, theta)).sum())
    for _ in range(40):
        step, basis = least_of_tangent(_residuals(data, theta), gradient_of_law(theta, data.x, data.z))
        step /= max(1.0, float(np.abs(step).max()) / 0.5)
        for _ in range(12):
            with np.errstate(over="ignore"):
                there = float(np.abs(_residuals(data, theta + step)).sum())
            if there < total:
                break
            step = step / 2
        else:
            break
        gained, theta, total = total - there, theta + step, there
        if gained <= 1e-15 * total:
            break
    found = met_exactly(data, theta, basis)
    return found if found.objective <= total * (1 + _AGREE) else _certificate(data, theta, basis)


def _otherwise_met(data: Data, end: Certified) -> Certified:
    """An optimum near `end` that meets fewer points than five, where the law's own curvature holds it; else `end`."""
    gradient = gradient_of_law(end.theta, data.x, data.z)
    r = _residuals(data, end.theta)
    candidates = np.argsort(np.abs(r), kind="stable")[:_CANDIDATES]
    met = candidates[: end.active]
    signs = np.sign(r)
    signs[met] = 0.0
    # On which side a point that is met falls, once it is let go, its multiplier says.
    signs[met] = np.sign(np.linalg.lstsq(gradient[met].T, -(gradient.T @ signs), rcond=None)[0])
    best = end
    for k in range(min(P, len(candidates)), -1, -1):
        for kept in combinations(candidates, k):
            other = met_exactly(data, end.theta, np.array(kept, dtype=np.int64), signs)
            if other.holds and other.objective <= end.objective * (1 + _AGREE):
                best = other if not best.holds or other.objective < best.objective else best
    return best


def least_of_tangent(r: Array, gradient: Array) -> tuple[Array, Indices]:
    """The d with the least Σ |r - G d|, exactly, and the points that it meets."""
    n = len(r)
    basis = _independent(r, gradient)
    if len(basis) < P:
        return np.zeros(P), basis
    for _ in range(20 * P + n):
        inverse = np.linalg.inv(gradient[basis])
        d = inverse @ r[basis]
        left = r - gradient @ d
        left[basis] = 0.0
        signs = np.sign(left)
        multipliers = -(inverse.T @ (gradient.T @ signs))
        worst = int(np.abs(multipliers).argmax())
        if abs(multipliers[worst]) <= 1 + 1e-12:
            break
        # Leave point `worst`: along the line on which the other four stay met, to the weighted median of crossings.
        along = inverse[:, worst] * -np.sign(multipliers[worst])
        slope = gradient @ along
        slope[np.delete(basis, worst)] = 0.0
        moving = np.flatnonzero(np.abs(slope) > 1e-13)
        moving = moving[moving != basis[worst]]
        crossing = left[moving] / slope[moving]
        ahead = crossing > 0
        moving, crossing = moving[ahead], crossing[ahead]
        order = np.argsort(crossing, kind="stable")
        descent = abs(multipliers[worst]) - 1
        gained = 2 * np.cumsum(np.abs(slope[moving[order]]))
        stop = int(np.searchsorted(gained, descent))
        if stop >= len(order):
            break
        basis[worst] = moving[order[stop]]
    return np.asarray(np.linalg.solve(gradient[basis], r[basis]), dtype=np.float64), basis


def _independent(r: Array, gradient: Array) -> Indices:
    """Points with the smallest residuals whose gradients are independent, five if there are so many."""
    chosen: list[int] = []
    directions: list[Array] = []
    scale = np.abs(gradient).max() + 1e-300
    for i in np.argsort(np.abs(r), kind="stable"):
        rest = gradient[i] / scale
        for q in directions:
            rest = rest - (rest @ q) * q
        length = float(np.linalg.norm(rest))
        if length > 1e-4:
            chosen.append(int(i))
            directions.append(rest / length)
        if len(chosen) == P:
            break
    return np.array(chosen, dtype=np.int64)


def met_exactly(data: Data, theta: Array, active: Indices, signs: Array | None = None) -> Certified:
    """Newton's method from θ to where the `active` points are met and the rest is stationary; with its certificate.

    `signs` are those that the others' residuals will have, where they are known better than from θ.
    """
    k = len(active)
    for _ in range(12):
        gradient = gradient_of_law(theta, data.x, data.z)
        r = _residuals(data, theta)
        pull = np.sign(r) if signs is None else signs.copy()
        pull[active] = 0.0
        pulled = gradient.T @ pull
        if k:
            pull[active] = np.linalg.lstsq(gradient[active].T, -pulled, rcond=None)[0]
        system = np.zeros((P + k, P + k))
        system[:P, :P] = -hessian_of_law(theta, data.x, data.z, pull)
        system[:P, P:] = -gradient[active].T
        system[P:, :P] = -gradient[active]
        right = np.concatenate([pulled, -r[active]])
        step = np.linalg.lstsq(system, right, rcond=1e-14)[0][:P]
        if not np.isfinite(step).all() or np.abs(step).max() > 1:
            break
        theta = theta + step
        if np.abs(step).max() < 1e-14:
            break
    return _certificate(data, theta, active)


def _certificate(data: Data, theta: Array, active: Indices) -> Certified:
    gradient = gradient_of_law(theta, data.x, data.z)
    r = _residuals(data, theta)
    total = float(np.abs(r).sum())
    pull = np.sign(r)
    pull[active] = 0.0
    pulled = gradient.T @ pull
    multipliers = np.linalg.lstsq(gradient[active].T, -pulled, rcond=None)[0] if len(active) else np.zeros(0)
    left = pulled + gradient[active].T @ multipliers
    if np.abs(r).max() < _NOTHING:  # every point is met, and nothing is less than zero
        return Certified(
            theta=theta,
            objective=total,
            starts=1,
            agreeing=1,
            stationarity=0.0,
            least_eigenvalue=None,
            active=data.n,
            multiplier=0.0,
        )
    pull[active] = multipliers
    free = np.eye(P)
    if len(active):
        _, singular, rows = np.linalg.svd(gradient[active], full_matrices=True)
        free = rows[int((singular > 1e-9).sum()) :]
    least: float | None = None
    if len(free):
        curvature = free @ -hessian_of_law(theta, data.x, data.z, pull) @ free.T
        least = float(np.linalg.eigvalsh(curvature)[0] / np.linalg.eigvalsh(gradient.T @ gradient)[-1])
    met = float(np.abs(r[active]).max()) if len(active) else 0.0
    return Certified(
        theta=theta,
        objective=total,
        starts=1,
        agreeing=1,
        stationarity=max(met, float(np.abs(left).max() / max(1e-300, np.abs(gradient).max()))),
        least_eigenvalue=least,
        active=len(active),
        multiplier=float(np.abs(multipliers).max()) if len(multipliers) else 0.0,
    )


def _residuals(data: Data, theta: Array) -> Array:
    return np.asarray((data.y - log_law(theta[None], data.x, data.z))[0])
