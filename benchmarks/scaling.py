"""Fitting L(N, D) beside two other recipes, interleaved in one run, on one thread.

    python benchmarks/scaling.py [--points 240] [--rounds 3] [--usual-starts 90] [--usual-resamples 6]

Seconds are of the CPU: one thread, whatever else the machine does. All minimise the same sum of Huber functions of log
residuals, delta 1e-3, over (log E, log A, log B, alpha, beta).

usual   the recipe of published fits: 4,500 starts on a grid, each scipy's L-BFGS-B with numeric gradients; a resample
        is fitted by scipy's BFGS, numeric gradients, from the optimum of all points. Measured on every
        `4500 / --usual-starts`-th start and on the first `--usual-resamples` resamples, and scaled to all of them.
strong  the same 4,500 starts with analytic gradients, all at once: a batched L-BFGS (memory 10, backtracking), numpy
        alone, units centred as ours are; resamples likewise, 4,000 at once, from the optimum of all points.
ours    `analysis.scaling.parametric.fit`, and `resample.refit` of 4,000 resamples.

The data are drawn from the law that Besiroglu et al. (2024) found for Chinchilla, with heavy-tailed noise. "above ours"
is how far a recipe's least sum lies above ours, as a share of it; of resamples the median, the least and the greatest
over those compared.
"""

import argparse
import os
import sys
import time
from itertools import product
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy.optimize import minimize  # noqa: E402

from analysis.scaling.law import Data, data_of, objective  # noqa: E402
from analysis.scaling.parametric import DELTA, fit  # noqa: E402
from analysis.scaling.resample import refit  # noqa: E402

Array = NDArray[np.float64]
RESAMPLES = 4000
# Hoffmann et al. (2022), D.3: initial values of log E, log A, log B, alpha and beta; as many as 4,500.
GRID = {
    "e": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}


def made(n: int, seed: int) -> tuple[Array, Array, Array]:
    """Parameters, tokens and losses."""
    rng = np.random.default_rng(seed)
    params = 10 ** rng.uniform(7.7, 10.2, n)
    tokens = params * 10 ** rng.uniform(0.3, 2.2, n)
    noise = rng.normal(0, 0.006, n) * np.where(rng.uniform(size=n) < 0.1, 6, 1)
    return params, tokens, (1.8172 + 482.01 / params**0.3478 + 2085.43 / tokens**0.3658) * np.exp(noise)


def starts() -> Array:
    return np.array(list(product(*GRID.values())))


# --- the usual recipe --------------------------------------------------------------------------------


def usual_sum(theta: Array, log_n: Array, log_d: Array, y: Array) -> float:
    e, a, b, alpha, beta = theta
    terms = np.stack([np.full_like(y, e), a - alpha * log_n, b - beta * log_d])
    top = terms.max(axis=0)
    r = np.abs(y - top - np.log(np.exp(terms - top).sum(axis=0)))
    return float(np.where(r <= DELTA, 0.5 * r * r, DELTA * (r - 0.5 * DELTA)).sum())


def usual_point(points: tuple[Array, Array, Array], every: Array) -> tuple[float, float]:
    """Seconds, and the least sum."""
    log_n, log_d, y = (np.log(values) for values in points)
    begin = time.process_time()
    least = np.inf
    for start in every:
        with np.errstate(all="ignore"):
            found = minimize(usual_sum, start, args=(log_n, log_d, y), method="L-BFGS-B")
        if np.isfinite(found.fun):
            least = min(least, float(found.fun))
    return time.process_time() - begin, least


def usual_resamples(points: tuple[Array, Array, Array], counts: Array, start: Array) -> tuple[float, Array]:
    log_n, log_d, y = (np.log(values) for values in points)
    begin = time.process_time()
    sums = []
    for weights in counts:
        kept = np.repeat(np.arange(len(y)), weights.astype(int))
        with np.errstate(all="ignore"):
            found = minimize(usual_sum, start, args=(log_n[kept], log_d[kept], y[kept]), method="BFGS")
        sums.append(float(found.fun))
    return time.process_time() - begin, np.array(sums)


# --- the strong recipe --------------------------------------------------------------------------------


def strong_gradient(theta: Array, data: Data, weights: Array | None) -> tuple[Array, Array]:
    """Objective (R,) and gradient (R, 5)."""
    with np.errstate(all="ignore"):
        ea = np.exp(theta[:, 1, None] - theta[:, 3, None] * data.x)
        eb = np.exp(theta[:, 2, None] - theta[:, 4, None] * data.z)
        total = np.exp(theta[:, 0, None]) + ea + eb
        r = data.y - np.log(total)
        psi = np.clip(r, -DELTA, DELTA)
        rho = psi * (r - 0.5 * psi)
        if weights is not None:
            rho, psi = rho * weights, psi * weights
        share_a, share_b = psi * ea / total, psi * eb / total
        g = np.stack(
            [
                -(psi.sum(axis=1) - share_a.sum(axis=1) - share_b.sum(axis=1)),
                -share_a.sum(axis=1),
                -share_b.sum(axis=1),
                share_a @ data.x,
                share_b @ data.z,
            ],
            axis=1,
        )
    f = rho.sum(axis=1)
    bad = ~np.isfinite(f) | ~np.isfinite(g).all(axis=1)
    f[bad], g[bad] = np.inf, 0.0
    return f, g


def strong(
    theta: Array, data: Data, weights: Array | None, iterations: int = 300, memory: int = 10
) -> tuple[Array, Array]:
    """Batched L-BFGS: the two-loop recursion, backtracking to a sufficient decrease. Rows that no longer move leave."""
    theta = theta.copy()
    f, g = strong_gradient(theta, data, weights)
    rows = np.flatnonzero(np.isfinite(f))
    s = np.zeros((memory, len(theta), 5))
    y = np.zeros((memory, len(theta), 5))
    rho = np.zeros((memory, len(theta)))
    for step in range(iterations):
        if not len(rows):
            break
        q = g[rows].copy()
        kept = [(step - 1 - j) % memory for j in range(min(step, memory))]
        alphas = []
        for j in kept:
            alpha = rho[j, rows] * (s[j, rows] * q).sum(axis=1)
            q -= alpha[:, None] * y[j, rows]
            alphas.append(alpha)
        if kept:
            j = kept[0]
            yy = (y[j, rows] ** 2).sum(axis=1)
            gamma = np.where(yy > 0, (s[j, rows] * y[j, rows]).sum(axis=1) / np.maximum(yy, 1e-300), 1.0)
            q *= np.maximum(gamma, 1e-12)[:, None]
        else:
            q *= (0.1 / np.maximum(np.abs(g[rows]).max(axis=1), 1e-300))[:, None]
        for j, alpha in zip(reversed(kept), reversed(alphas), strict=True):
            beta = rho[j, rows] * (y[j, rows] * q).sum(axis=1)
            q += (alpha - beta)[:, None] * s[j, rows]
        slope = (q * g[rows]).sum(axis=1)
        uphill = slope <= 0
        q[uphill], slope[uphill] = g[rows][uphill], (g[rows][uphill] ** 2).sum(axis=1)
        length = np.minimum(1.0, 2.0 / np.maximum(np.abs(q).max(axis=1), 1e-300))
        new_f, new_g, new_theta = f[rows].copy(), g[rows].copy(), theta[rows].copy()
        waiting = np.arange(len(rows))
        for _ in range(25):
            trial = theta[rows[waiting]] - length[waiting, None] * q[waiting]
            w = None if weights is None else weights[rows[waiting]]
            there_f, there_g = strong_gradient(trial, data, w)
            good = there_f <= f[rows[waiting]] - 1e-4 * length[waiting] * slope[waiting]
            done = waiting[good]
            new_f[done], new_g[done], new_theta[done] = there_f[good], there_g[good], trial[good]
            waiting = waiting[~good]
            if not len(waiting):
                break
            length[waiting] *= 0.5
        slot = step % memory
        s[slot], y[slot], rho[slot] = 0.0, 0.0, 0.0
        s[slot, rows], y[slot, rows] = new_theta - theta[rows], new_g - g[rows]
        sy = (s[slot, rows] * y[slot, rows]).sum(axis=1)
        rho[slot, rows] = np.where(sy > 1e-18, 1 / np.maximum(sy, 1e-300), 0.0)
        gained = f[rows] - new_f
        theta[rows], f[rows], g[rows] = new_theta, new_f, new_g
        rows = rows[gained > 1e-12 * np.abs(new_f)]
    return theta, f


def centred(theta: Array, data: Data) -> Array:
    """Starts in the units of `data`."""
    found = theta.copy()
    found[:, 1] -= theta[:, 3] * data.x_mean
    found[:, 2] -= theta[:, 4] * data.z_mean
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--usual-starts", type=int, default=90)
    parser.add_argument("--usual-resamples", type=int, default=6)
    args = parser.parse_args()
    grid = starts()
    chosen = grid[:: max(1, len(grid) // args.usual_starts)]
    seconds: dict[str, list[float]] = {}
    above: dict[str, list[float]] = {}
    for seed in range(args.rounds):
        points = made(args.points, seed)
        data = data_of(*points)
        counts = (
            np.random.default_rng(seed)
            .multinomial(args.points, np.full(args.points, 1 / args.points), size=RESAMPLES)
            .astype(float)
        )

        begin = time.process_time()
        ours = fit(*points)
        seconds.setdefault("ours, point", []).append(time.process_time() - begin)

        begin = time.process_time()
        _, f = strong(centred(grid, data), data, None)
        seconds.setdefault("strong, point", []).append(time.process_time() - begin)
        above.setdefault("strong, point", []).append(float(f.min()) / ours.objective - 1)

        took, least = usual_point(points, chosen)
        seconds.setdefault("usual, point", []).append(took * len(grid) / len(chosen))
        above.setdefault("usual, point", []).append(least / ours.objective - 1)

        order = np.lexsort((points[2], points[1], points[0]))
        weights = counts[:, order]
        begin = time.process_time()
        theta = refit(ours, weights)
        seconds.setdefault("ours, resamples", []).append(time.process_time() - begin)
        sums = objective(theta, ours.data, DELTA, weights)

        begin = time.process_time()
        _, f = strong(np.repeat(ours.theta[None], RESAMPLES, axis=0), ours.data, weights)
        seconds.setdefault("strong, resamples", []).append(time.process_time() - begin)
        above.setdefault("strong, resamples", []).extend(f / sums - 1)

        plain = ours.theta.copy()
        plain[1] += plain[3] * ours.data.x_mean
        plain[2] += plain[4] * ours.data.z_mean
        took, found = usual_resamples(points, counts[: args.usual_resamples], plain)
        seconds.setdefault("usual, resamples", []).append(took * RESAMPLES / args.usual_resamples)
        above.setdefault("usual, resamples", []).extend(found / sums[: args.usual_resamples] - 1)
        print(f"round {seed + 1}: load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)

    print(f"{args.points} points, {len(grid):,} starts, {RESAMPLES:,} resamples; medians of {args.rounds} rounds")
    print(f"usual: {len(chosen)} starts and {args.usual_resamples} resamples measured, scaled to all")
    print(f"{'':<20}{'CPU seconds':>12}{'x ours':>10}{'above ours: median':>22}{'least':>12}{'greatest':>12}")
    for what in ("point", "resamples"):
        base = float(np.median(seconds[f"ours, {what}"]))
        for recipe in ("ours", "strong", "usual"):
            key = f"{recipe}, {what}"
            median = float(np.median(seconds[key]))
            line = f"{key:<20}{median:>12.4g}{median / base:>10.4g}"
            if key in above:
                values = np.array(above[key])
                line += f"{np.median(values):>22.1e}{values.min():>12.1e}{values.max():>12.1e}"
            print(line)


if __name__ == "__main__":
    main()
