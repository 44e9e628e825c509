"""L(N, D) = E + A/N^α + B/D^β by two robust estimators on log loss, with evidence that the optimum is one.

`huber`: the sum over points of the Huber function of log loss minus log law, delta 1e-3. A sum and not a mean: a mean
of so small numbers lies below the tolerance at which optimisers stop, and they stop where they stand. `lad`: its limit,
least absolute deviations, which is what the Huber function is (times delta) for all residuals beyond delta.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, final

import numpy as np

from analysis.scaling import lad, starts
from analysis.scaling.law import A_, ALPHA, B_, BETA, E_, Array, Data, Objective, data_of, log_law, to_plain
from analysis.scaling.newton import descend, minimise

Estimator = Literal["huber", "lad"]

DELTA: Final = 1e-3
DESCENT: Final = (3e-2, 1e-2, 3e-3, DELTA)
STARTS: Final = 40
_AGREE: Final = 1e-8
# A term that is so small a share of every predicted loss is not told from nothing.
_NO_SHARE: Final = 1e-3
_FLAT: Final = 1e-7


@final
@dataclass(frozen=True, kw_only=True)
class Law:
    """E in nats; A and B are of N and D as they were given. `a` and `b`: N_opt ~ C^a and D_opt ~ C^b where C ~ N D."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        return self.alpha / (self.alpha + self.beta)

    def loss(self, n: Array, d: Array) -> Array:
        """Nats."""
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)

    def n_opt(self, nd: float) -> float:
        """The size of least loss among those with N D = `nd`."""
        return float((self.alpha * self.A / (self.beta * self.B) * nd**self.beta) ** (1 / (self.alpha + self.beta)))


@final
@dataclass(frozen=True, kw_only=True)
class Proof:
    """Why the fit is an optimum: descents from `starts` places, of which `agreeing` ended in the best one.

    `gradient` is the largest component of the objective's gradient, as a share of what a single point can pull with;
    `least_eigenvalue` that of the Hessian over its largest. Of `lad`, whose objective has kinks: the same of its
    Lagrangian on the points that are met exactly (`active`), `multiplier` the largest of theirs, at most 1 at an
    optimum; the eigenvalue is None where they leave nothing free.
    """

    starts: int
    agreeing: int
    gradient: float
    least_eigenvalue: float | None
    active: int = 0
    multiplier: float | None = None

    @property
    def is_optimum(self) -> bool:
        """A local one; of what descents end in, the best."""
        curved = self.least_eigenvalue is None or self.least_eigenvalue > 0
        return self.gradient < 1e-5 and curved and (self.multiplier is None or self.multiplier <= 1 + 1e-9)


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """One group's law. `theta` is in the units of `data` (`analysis.scaling.law`); `residuals` are of log loss."""

    law: Law
    estimator: Estimator
    objective: float
    proof: Proof
    theta: Array
    minima: Array
    data: Data
    residuals: Array

    @property
    def doubts(self) -> tuple[str, ...]:
        """What of the law these points do not determine."""
        found = []
        share = np.exp(self.theta[E_] - log_law(self.theta[None], self.data.x, self.data.z)[0])
        if share.max() < _NO_SHARE:
            found.append("E is not told from zero")
        for name, rate, value in (("A", "alpha", self.theta[ALPHA]), ("B", "beta", self.theta[BETA])):
            if value <= 0:
                found.append(f"{rate} = {value:.3g} is not above zero: {name} and E cannot be told apart")
        if self.proof.least_eigenvalue is not None and self.proof.least_eigenvalue < _FLAT:
            found.append("the objective is flat in some direction: not all five numbers are determined")
        if not self.proof.is_optimum:
            found.append("no descent ended in a point that could be shown to be an optimum")
        return tuple(found)


def law_of(theta: Array, data: Data) -> Law:
    plain = to_plain(theta, data)
    with np.errstate(over="ignore"):
        e, a, b = (float(np.exp(plain[i])) for i in (E_, A_, B_))
    return Law(E=e, A=a, B=b, alpha=float(plain[ALPHA]), beta=float(plain[BETA]))


def fit(n: Array, d: Array, loss: Array, estimator: Estimator = "huber") -> Fit:
    """Fit parameters, tokens and loss of each point. Their order and their units change nothing but A and B's units."""
    # An order of its own: sums in floating point depend on it.
    order = np.lexsort((loss, d, n))
    data = data_of(n[order], d[order], loss[order])
    begin = starts.chosen(data, DELTA, STARTS)
    minima = descend(data, begin, np.zeros(len(begin), dtype=np.int64), DESCENT, last=120)
    f = np.where(np.isfinite(minima.at.f), minima.at.f, np.inf)
    best = int(f.argmin())
    if not minima.converged[best]:
        only = np.array([best])
        end = minimise(Objective(data, DELTA), minima.theta[only], only * 0, iterations=1000)
        minima.theta[only], minima.at.g[only], minima.at.h[only], f[only] = end.theta, end.at.g, end.at.h, end.at.f
    agree = f <= f[best] + _AGREE * f[best] + 1e-24
    theta = minima.theta[best]
    eigenvalues = np.linalg.eigvalsh(minima.at.h[best])
    proof = Proof(
        starts=len(begin),
        agreeing=int(agree.sum()),
        gradient=float(np.abs(minima.at.g[best]).max()) / DELTA,
        least_eigenvalue=float(eigenvalues[0] / max(abs(eigenvalues[-1]), 1e-300)),
    )
    objective = float(f[best])
    kept = _distinct(minima.theta, f)
    if estimator == "lad":
        certified = lad.refine(data, kept, theta)
        theta, objective = certified.theta, certified.objective
        proof = replace(
            proof,
            starts=certified.starts,
            agreeing=certified.agreeing,
            gradient=certified.stationarity,
            least_eigenvalue=certified.least_eigenvalue,
            active=certified.active,
            multiplier=certified.multiplier,
        )
        kept = np.concatenate([theta[None], kept])
    residuals = np.empty(len(n))
    residuals[order] = (data.y - log_law(theta[None], data.x, data.z))[0]
    return Fit(
        law=law_of(theta, data),
        estimator=estimator,
        objective=objective,
        proof=proof,
        theta=theta,
        minima=kept,
        data=data,
        residuals=residuals,
    )


def _distinct(theta: Array, f: Array, most: int = 8) -> Array:
    """The ends of the descents, best first, each once."""
    kept: list[int] = []
    for i in np.argsort(f, kind="stable"):
        if np.isfinite(f[i]) and all(np.abs(theta[i] - theta[j]).max() > 1e-4 for j in kept):
            kept.append(int(i))
        if len(kept) == most:
            break
    return np.asarray(theta[np.array(kept)], dtype=np.float64)
