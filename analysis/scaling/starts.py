"""Where descents start: for fixed (α, β) the law is linear in (E, A, B), so that a grid over two numbers covers five.

Variable projection (Golub & Pereyra 1973): at each node the least squares of relative errors give E, A and B at once;
all nodes share their sums, which are products of two small matrices. The nodes are ranked by the exact objective.
"""

from itertools import combinations
from typing import Final

import numpy as np

from analysis.scaling.law import A_, ALPHA, B_, BETA, E_, Array, Data, P, objective

EXPONENTS: Final = tuple(float(v) for v in np.geomspace(0.02, 3.0, 40))
_SMALLEST: Final = 1e-6


def grid(data: Data, exponents: tuple[float, ...] = EXPONENTS) -> Array:
    """θ at each node (α, β) of the grid, (G * G, 5), for y of one row."""
    rates = np.array(exponents)
    inverse = np.exp(-data.y)
    one = inverse[None, :]
    a = np.exp(-rates[:, None] * data.x) * inverse
    b = np.exp(-rates[:, None] * data.z) * inverse
    g = len(rates)
    gram = np.empty((g, g, 3, 3))
    gram[..., 0, 0] = one @ one.T
    gram[..., 0, 1] = gram[..., 1, 0] = a @ one.T
    gram[..., 0, 2] = gram[..., 2, 0] = (b @ one.T).T
    gram[..., 1, 1] = (a * a).sum(axis=1)[:, None]
    gram[..., 2, 2] = (b * b).sum(axis=1)[None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = a @ b.T
    right = np.empty((g, g, 3))
    right[..., 0] = inverse.sum()
    right[..., 1] = a.sum(axis=1)[:, None]
    right[..., 2] = b.sum(axis=1)[None, :]
    found = _non_negative(gram.reshape(-1, 3, 3), right.reshape(-1, 3))
    theta = np.empty((g * g, P))
    theta[:, [E_, A_, B_]] = np.log(np.maximum(found, _SMALLEST))
    theta[:, ALPHA] = np.repeat(rates, g)
    theta[:, BETA] = np.tile(rates, g)
    return theta


def _non_negative(gram: Array, right: Array) -> Array:
    """The least squares with no coefficient below zero: of all subsets of the three, the best that has none."""
    best = np.zeros_like(right)
    value = np.zeros(len(right))
    for size in (1, 2, 3):
        for kept in combinations(range(3), size):
            pick = np.array(kept)
            part = gram[:, pick[:, None], pick]
            ridge = 1e-12 * np.trace(part, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            solved = np.linalg.solve(part + ridge, right[:, pick][..., None])[..., 0]
            explained = (solved * right[:, pick]).sum(axis=1)
            better = (solved > 0).all(axis=1) & (explained > value)
            value[better] = explained[better]
            best[better] = 0.0
            best[np.flatnonzero(better)[:, None], pick] = solved[better]
    return best


def chosen(data: Data, delta: float, most: int) -> Array:
    """The nodes to start from: every valley of the grid, deepest first, then the best nodes; `most` at most."""
    theta = grid(data)
    f = objective(theta, data, delta)
    g = len(EXPONENTS)
    padded = np.pad(f.reshape(g, g), 1, constant_values=np.inf)
    around = np.stack([padded[1 + i : 1 + i + g, 1 + j : 1 + j + g] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j])
    valley = (f.reshape(g, g) <= around.min(axis=0)).ravel()
    order = np.argsort(f, kind="stable")
    # Neighbours start alike: of the rest every third.
    ranked = [*order[valley[order]][: most // 2], *order[~valley[order]][::3]]
    return np.asarray(theta[np.array(ranked[:most])], dtype=np.float64)
