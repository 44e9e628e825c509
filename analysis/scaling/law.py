"""The law L(N, D) = E + A/N^α + B/D^β, and the robust objective on log loss with its derivatives, many fits at a time.

With x = log N - mean, z = log D - mean and θ = (log E, log A', log B', α, β), the logarithm of the law is
m = log(exp e + exp(a - αx) + exp(b - βz)), whose gradient are the shares of its three terms times their own. A' and B'
are A and B at the mean sizes, so that nothing depends on the units.

Shapes: R fits (or starts, or resamples), n points, P = 5 parameters.
"""

from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

P: Final = 5
E_, A_, B_, ALPHA, BETA = range(P)
# Rows of a block: its temporaries stay in the cache of one core.
_BLOCK_ELEMENTS: Final = 24_000
_BELOW: Final = tuple((i, j) for i in range(P) for j in range(i))


@final
@dataclass(frozen=True, kw_only=True)
class Data:
    """Points in the fit's own units. `y` is log loss, (n,) or one row a fit, (R, n)."""

    x: Array
    z: Array
    y: Array
    x_mean: float
    z_mean: float

    @property
    def n(self) -> int:
        return len(self.x)


def data_of(n: Array, d: Array, loss: Array) -> Data:
    """Parameters, tokens and loss of each point, all above zero, in any units."""
    log_n, log_d = np.log(n), np.log(d)
    x_mean, z_mean = float(log_n.mean()), float(log_d.mean())
    return Data(x=log_n - x_mean, z=log_d - z_mean, y=np.log(loss), x_mean=x_mean, z_mean=z_mean)


def to_plain(theta: Array, data: Data) -> Array:
    """θ (..., 5) as (log E, log A, log B, α, β) in the units that N and D were given in."""
    plain = theta.copy()
    plain[..., A_] += theta[..., ALPHA] * data.x_mean
    plain[..., B_] += theta[..., BETA] * data.z_mean
    return plain


def log_law(theta: Array, x: Array, z: Array) -> Array:
    """m at each point, (R, n), for θ (R, 5)."""
    with np.errstate(over="ignore"):
        ea = np.exp(theta[:, A_, None] - theta[:, ALPHA, None] * x)
        eb = np.exp(theta[:, B_, None] - theta[:, BETA, None] * z)
        return np.asarray(np.log(np.exp(theta[:, E_, None]) + ea + eb))


def gradient_of_law(theta: Array, x: Array, z: Array) -> Array:
    """dm/dθ, (n, 5), for one θ."""
    ea = np.exp(theta[A_] - theta[ALPHA] * x)
    eb = np.exp(theta[B_] - theta[BETA] * z)
    total = np.exp(theta[E_]) + ea + eb
    pa, pb = ea / total, eb / total
    return np.stack([1 - pa - pb, pa, pb, -x * pa, -z * pb], axis=1)


def hessian_of_law(theta: Array, x: Array, z: Array, weights: Array) -> Array:
    """The sum over points of weight times d²m/dθ², (5, 5), for one θ."""
    ea = np.exp(theta[A_] - theta[ALPHA] * x)
    eb = np.exp(theta[B_] - theta[BETA] * z)
    total = np.exp(theta[E_]) + ea + eb
    pa, pb = ea / total, eb / total
    pe = 1 - pa - pb
    zero, one = np.zeros_like(x), np.ones_like(x)
    own = (
        (pe, np.stack([one, zero, zero, zero, zero], axis=1)),
        (pa, np.stack([zero, one, zero, -x, zero], axis=1)),
        (pb, np.stack([zero, zero, one, zero, -z], axis=1)),
    )
    mean = sum(share[:, None] * v for share, v in own)
    second = sum((v.T * (weights * share)) @ v for share, v in own)
    return np.asarray(second - (np.asarray(mean).T * weights) @ np.asarray(mean))


def huber(r: Array, delta: float) -> Array:
    """r²/2 within delta, delta (|r| - delta/2) beyond."""
    psi = np.clip(r, -delta, delta)
    return np.asarray(psi * (r - 0.5 * psi))


def objective(theta: Array, data: Data, delta: float, weights: Array | None = None) -> Array:
    """The sum over points of the weighted Huber function of y - m, for each θ; delta 0 gives that of |y - m|."""
    r = data.y - log_law(theta, data.x, data.z)
    rho = np.abs(r) if delta == 0 else huber(r, delta)
    return np.asarray((rho if weights is None else rho * weights).sum(axis=1))


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Objective (R,), gradient (R, 5) and Hessian (R, 5, 5); where delta is reached the second derivative jumps, and is
    taken from outside."""

    f: Array
    g: Array
    h: Array


@final
class Objective:
    """The objective of R fits to n points. `weights` and `y` may have a row a fit."""

    def __init__(self, data: Data, delta: float, weights: Array | None = None) -> None:
        self.data, self.delta, self.weights = data, delta, weights
        x, z = data.x, data.z
        one = np.ones_like(x)
        self._x2 = np.stack([one, x, x * x], axis=1)
        self._z2 = np.stack([one, z, z * z], axis=1)
        self._xz = np.stack([one, x, z, x * z], axis=1)

    def at(self, theta: Array, rows: Indices) -> Evaluation:
        """At θ (k, 5), of the fits `rows` (k,)."""
        k = len(theta)
        f, g, h = np.empty(k), np.empty((k, P)), np.empty((k, P, P))
        size = max(1, _BLOCK_ELEMENTS // max(1, self.data.n))
        for begin in range(0, k, size):
            block = slice(begin, begin + size)
            f[block], g[block], h[block] = self._block(theta[block], rows[block])
        return Evaluation(f=f, g=g, h=h)

    def _block(self, theta: Array, rows: Indices) -> tuple[Array, Array, Array]:
        x, z, delta = self.data.x, self.data.z, self.delta
        y = self.data.y if self.data.y.ndim == 1 else self.data.y[rows]
        w = self.weights if self.weights is None or self.weights.ndim == 1 else self.weights[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            pa = np.exp(theta[:, A_, None] - theta[:, ALPHA, None] * x)
            pb = np.exp(theta[:, B_, None] - theta[:, BETA, None] * z)
            total = pa + pb
            total += np.exp(theta[:, E_])[:, None]
            r = y - np.log(total)
            pa /= total
            pb /= total
            # c2 is the weighted derivative of the Huber function, c1 that plus its weighted second derivative.
            c2 = np.clip(r, -delta, delta)
            c1 = (np.abs(r) < delta).astype(np.float64)
            r -= 0.5 * c2
            r *= c2
            c1 += c2
            if w is None:
                f = r.sum(axis=1)
            else:
                f = np.einsum("ij,ij->i", r, np.broadcast_to(w, r.shape))
                c1 *= w
                c2 *= w
            s2 = c2.sum(axis=1)
            s1 = c1.sum(axis=1)
            a1, a2, b2 = c1 * pa, c2 * pa, c2 * pb
            c1 *= pb  # from here on c1 times the share of B
            ga, gb = a2 @ self._x2, b2 @ self._z2
            fa, fb = a1 @ self._x2[:, :2], c1 @ self._z2[:, :2]
            a1_b = a1 * pb
            a1 *= pa
            c1 *= pb
            aa, ab, bb = a1 @ self._x2, a1_b @ self._xz, c1 @ self._z2
        g = np.stack([-(s2 - ga[:, 0] - gb[:, 0]), -ga[:, 0], -gb[:, 0], ga[:, 1], gb[:, 1]], axis=1)
        h = np.empty((len(theta), P, P))
        # Products with the share of E, which is one less those of A and B.
        ea, ea_x = fa[:, 0] - aa[:, 0] - ab[:, 0], fa[:, 1] - aa[:, 1] - ab[:, 1]
        eb, eb_z = fb[:, 0] - bb[:, 0] - ab[:, 0], fb[:, 1] - bb[:, 1] - ab[:, 2]
        ee = s1 - fa[:, 0] - fb[:, 0] - ea - eb
        h[:, E_, E_] = ee - (s2 - ga[:, 0] - gb[:, 0])
        h[:, E_, A_], h[:, E_, B_] = ea, eb
        h[:, E_, ALPHA], h[:, E_, BETA] = -ea_x, -eb_z
        h[:, A_, A_] = aa[:, 0] - ga[:, 0]
        h[:, A_, B_] = ab[:, 0]
        h[:, A_, ALPHA] = ga[:, 1] - aa[:, 1]
        h[:, A_, BETA] = -ab[:, 2]
        h[:, B_, B_] = bb[:, 0] - gb[:, 0]
        h[:, B_, ALPHA] = -ab[:, 1]
        h[:, B_, BETA] = gb[:, 1] - bb[:, 1]
        h[:, ALPHA, ALPHA] = aa[:, 2] - ga[:, 2]
        h[:, ALPHA, BETA] = ab[:, 3]
        h[:, BETA, BETA] = bb[:, 2] - gb[:, 2]
        for i, j in _BELOW:
            h[:, i, j] = h[:, j, i]
        return f, g, h
