"""Refits to thousands of resamples at once: weights instead of copies, warm starts, and a look around afterwards."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from analysis.scaling import lad, starts
from analysis.scaling.law import Array, Data, P, huber, log_law
from analysis.scaling.newton import descend
from analysis.scaling.parametric import DELTA, DESCENT, STARTS, Fit

# Of a chunk the few that take long are descended together.
_CHUNK_ELEMENTS: Final = 400_000
_FEWEST: Final = 250
_SHARPER: Final = (3e-4, 1e-4, 3e-5, lad.SHARPEST)
_POOL: Final = 250
_ROUNDS: Final = 2
_BETTER: Final = 1e-9

Told = Callable[[int, int], None]


def refit(fit: Fit, weights: Array, *, y: Array | None = None, told: Told | None = None) -> Array:
    """θ (R, 5) of the objective with a row of `weights` (R, n) each, and log losses `y` (R, n) instead of the data's.

    Points are in the order of `fit.data`. Each begins at that one of the fit's optima which suits its weights best. A
    second round begins at the optimum of another resample wherever that one is better than its own, so that a resample
    is not left in a valley that has become the higher one. Of `lad` the delta ends at 1e-5.
    """
    theta = np.empty((len(weights), P))
    sharp = fit.estimator == "lad"
    size = max(_FEWEST, _CHUNK_ELEMENTS // fit.data.n)
    for begin in range(0, len(weights), size):
        block = slice(begin, begin + size)
        data = fit.data if y is None else replace(fit.data, y=y[block])
        theta[block] = _refit(data, weights[block], fit.minima, sharp=sharp)
        if told is not None:
            told(min(begin + size, len(weights)), len(weights))
    return theta


def _refit(data: Data, weights: Array, candidates: Array, *, sharp: bool) -> Array:
    rows = np.arange(len(weights))
    first = _values(data, weights, candidates).argmin(axis=1)
    ladder = DESCENT + _SHARPER if sharp else DESCENT
    # Near the optimum a wide delta is a detour.
    found = descend(data, candidates[first], rows, ladder if sharp else ladder[-1:], weights=weights, between=12)
    theta, f = found.theta, found.at.f
    stuck = np.flatnonzero(~found.converged)
    if len(stuck):
        again = descend(data, candidates[first[stuck]], stuck, ladder, weights=weights)
        lower = again.at.f < f[stuck]
        theta[stuck[lower]], f[stuck[lower]] = again.theta[lower], again.at.f[lower]
    for _ in range(_ROUNDS):
        others = theta[np.linspace(0, len(theta) - 1, min(_POOL, len(theta))).astype(int)]
        values = _values(data, weights, others, ladder[-1])
        better = np.flatnonzero(values.min(axis=1) < f * (1 - _BETTER))
        if not len(better):
            break
        begin = others[values[better].argmin(axis=1)]
        again = descend(data, begin, better, ladder[-1:], weights=weights)
        lower = again.at.f < f[better]
        theta[better[lower]], f[better[lower]] = again.theta[lower], again.at.f[lower]
    return theta


def _values(data: Data, weights: Array, candidates: Array, delta: float = DELTA) -> Array:
    """The objective of each resample at each candidate, (R, K)."""
    predicted = log_law(candidates, data.x, data.z)
    if data.y.ndim == 1:
        return np.asarray(weights @ huber(data.y - predicted, delta).T)
    return np.stack([(weights * huber(data.y - one, delta)).sum(axis=1) for one in predicted], axis=1)


def refit_thoroughly(fit: Fit, weights: Array) -> Array:
    """θ (V, 5) of a few sets of weights, each descended to from as many places as the fit itself."""
    begin = np.concatenate([fit.minima, starts.chosen(fit.data, DELTA, STARTS)])
    v, k = len(weights), len(begin)
    rows = np.repeat(np.arange(v), k)
    deltas = DESCENT + (_SHARPER if fit.estimator == "lad" else ())
    found = descend(fit.data, np.tile(begin, (v, 1)), rows, deltas, weights=weights)
    f = np.where(np.isfinite(found.at.f), found.at.f, np.inf).reshape(v, k)
    return np.asarray(found.theta.reshape(v, k, P)[np.arange(v), f.argmin(axis=1)])
