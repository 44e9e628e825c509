"""Damped Newton with the exact Hessian, many fits at a time.

The Hessian is raised by a damping that falls where a step lowers the objective and rises where it does not (Levenberg
1944, Marquardt 1963); where that leaves it not positive definite its eigenvalues are first made positive, so that
saddle points are left. Every step taken descends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from analysis.scaling.law import Array, Data, Evaluation, Indices, Mask, Objective, P

_FIRST_DAMPING: Final = 1e-5
_LEAST_DAMPING: Final = 1e-13
_MOST_DAMPING: Final = 1e6
_LONGEST_STEP: Final = 1.0
_TOLERANCE: Final = 1e-13
_SINGULAR: Final = 1e-14


@final
@dataclass(frozen=True, kw_only=True)
class Minima:
    """Where the fits ended: θ (R, 5) with objective, gradient and Hessian; `converged` where no step promised more."""

    theta: Array
    at: Evaluation
    converged: Mask


def minimise(objective: Objective, starts: Array, rows: Indices, *, iterations: int) -> Minima:
    """Descend from each of `starts` (k, 5); `rows` (k,) says whose weights and targets each one has."""
    theta = starts.copy()
    now = objective.at(theta, rows)
    f, g, h = now.f.copy(), now.g.copy(), now.h.copy()
    damping = np.full(len(theta), _FIRST_DAMPING)
    converged = ~np.isfinite(f)
    floor = objective.data.n * 1e-28
    for _ in range(iterations):
        left = np.flatnonzero(~converged)
        if not len(left):
            break
        step, promised = _steps(h[left], g[left], damping[left])
        longest = np.abs(step).max(axis=1)
        step /= np.maximum(1.0, longest / _LONGEST_STEP)[:, None]
        trial = theta[left] + step
        there = objective.at(trial, rows[left])
        better = there.f < f[left]
        taken, refused = left[better], left[~better]
        enough = promised <= _TOLERANCE * f[left] + floor
        theta[taken], f[taken], g[taken], h[taken] = trial[better], there.f[better], there.g[better], there.h[better]
        damping[taken] = np.maximum(_LEAST_DAMPING, damping[taken] / 8)
        damping[refused] *= 6
        # A refused step that promised nothing, or with all the damping there is, ends the descent.
        converged[left] = enough | (~better & (damping[left] > _MOST_DAMPING))
    return Minima(theta=theta, at=Evaluation(f=f, g=g, h=h), converged=converged)


def _steps(h: Array, g: Array, damping: Array) -> tuple[Array, Array]:
    """The damped step of each fit, (k, 5), and by how much a parabola would fall on its way, (k,)."""
    step, promised, definite = _by_elimination(h, g, damping)
    other = np.flatnonzero(~definite)
    if len(other):
        step[other], promised[other] = _by_eigenvalues(h[other], g[other], damping[other])
    return step, promised


def _by_elimination(h: Array, g: Array, damping: Array) -> tuple[Array, Array, Mask]:
    """By LDL^T of all fits at a time; what is said of a fit holds where its raised Hessian is positive definite."""
    a, y = h.transpose(1, 2, 0).copy(), g.T.copy()
    raised_by = (damping + _SINGULAR) * np.abs(a[np.arange(P), np.arange(P)]).sum(axis=0)
    definite = np.ones(len(h), dtype=np.bool_)
    with np.errstate(all="ignore"):
        for j in range(P):
            a[j, j] += raised_by
            definite &= a[j, j] > 0
            for i in range(j + 1, P):
                factor = a[i, j] / a[j, j]
                a[i, j + 1 : i + 1] -= factor * a[j + 1 : i + 1, j]
                y[i] -= factor * y[j]
        diagonal = a[np.arange(P), np.arange(P)]
        promised = 0.5 * (y * y / diagonal).sum(axis=0)
        for j in reversed(range(P)):
            # Below the diagonal stands a column of L times its pivot.
            y[j] -= (a[j + 1 :, j] * y[j + 1 :]).sum(axis=0)
            y[j] /= a[j, j]
    return -y.T, promised, definite


def _by_eigenvalues(h: Array, g: Array, damping: Array) -> tuple[Array, Array]:
    eigenvalues, vectors = np.linalg.eigh(h)
    scale = np.abs(eigenvalues).max(axis=1, keepdims=True) + 1e-300
    raised = np.abs(eigenvalues) + (damping[:, None] + _SINGULAR) * scale
    along = np.einsum("kij,ki->kj", vectors, g)
    step = -np.einsum("kij,kj->ki", vectors, along / raised)
    return step, 0.5 * (along * along / raised).sum(axis=1)


def descend(
    data: Data,
    starts: Array,
    rows: Indices,
    deltas: Sequence[float],
    *,
    weights: Array | None = None,
    between: int = 6,
    last: int = 400,
) -> Minima:
    """Through a falling sequence of deltas, each from where the one before ended: far from the optimum a small delta
    has next to no curvature. Only the last is carried to the end, within `last` steps; the others take `between`."""
    theta = starts
    for delta in deltas[:-1]:
        theta = minimise(Objective(data, delta, weights), theta, rows, iterations=between).theta
    return minimise(Objective(data, deltas[-1], weights), theta, rows, iterations=last)
