"""How often 95% intervals of `python -m analysis scaling` hold the truth, on simulated studies of a known law.

    python benchmarks/scaling_coverage.py [--studies 1000] [--resamples 1000] [--only NAME ...]

Each study draws its noise anew, normal in nats, around L(N, D) = 1.82 + 482 / N^0.348 + 2085 / D^0.366, whose a is
0.513. Coverage is given with its own 95% interval (Clopper & Pearson), and the median width of the intervals.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402

from analysis.scaling.points import Point, Points  # noqa: E402
from analysis.scaling.study import Settings, isoflop, parametric  # noqa: E402
from analysis.stats import clopper_pearson  # noqa: E402

LAW = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}
TRUTH = {**LAW, "a": LAW["beta"] / (LAW["alpha"] + LAW["beta"]), "b": LAW["alpha"] / (LAW["alpha"] + LAW["beta"])}


@dataclass(frozen=True, kw_only=True)
class Design:
    """Sizes around the optimum of each budget, `trunks` of each size, noise in nats."""

    about: str
    kind: str = "parametric"
    n_sizes: int
    n_budgets: int = 5
    trunks: int = 1
    shared: float = 0.0
    own: float
    known_trunks: bool = True
    settings: dict[str, object] = field(default_factory=dict)


PARAMETRIC = Design(
    about="8 sizes x 6 budgets, every run its own", kind="parametric", n_sizes=8, n_budgets=6, own=0.004
)
TRUNKS = Design(
    about="6 sizes x 4 trunks x 5 branches, noise mostly shared", n_sizes=6, trunks=4, shared=0.004, own=0.001
)
CURVES = Design(about="8 sizes x 5 budgets, every run its own", kind="isoflop", n_sizes=8, own=0.004)
ALONE = replace(CURVES, about="8 sizes x one trunk x 5 branches, noise mostly shared", shared=0.004, own=0.001)
DESIGNS = {
    "points": replace(PARAMETRIC, known_trunks=False),
    "points, lad": replace(PARAMETRIC, known_trunks=False, settings={"estimator": "lad"}),
    "few points": replace(PARAMETRIC, about="5 sizes x 4 budgets", n_sizes=5, n_budgets=4, known_trunks=False),
    "trunks": TRUNKS,
    "two trunks": replace(TRUNKS, about="6 sizes x 2 trunks x 5 branches", trunks=2),
    "trunks as points": replace(TRUNKS, about="the first of these, its trunks not told", known_trunks=False),
    "one trunk, noise given": replace(TRUNKS, about="6 sizes x one trunk", trunks=1, settings={"noise": 0.004}),
    "one trunk": replace(TRUNKS, about="the same, noise not given (the output warns)", trunks=1),
    "curves, noise given": replace(CURVES, known_trunks=False, settings={"noise": 0.004}),
    "curves": replace(CURVES, about="the same, noise from residuals", known_trunks=False),
    "curves of trunks": replace(ALONE, about="8 sizes x 3 trunks x 5 branches, noise mostly shared", trunks=3),
    "curves of one trunk, noise given": replace(ALONE, settings={"noise": 0.0041}),
    "curves of one trunk": replace(ALONE, about="the same, noise from residuals (the output warns)"),
}


def simulated(design: Design, rng: np.random.Generator) -> Points:
    """One study: sizes a constant factor apart that lie around the optima of all its budgets."""
    budgets = np.geomspace(1e18, 1e20, design.n_budgets)
    alpha, beta = LAW["alpha"], LAW["beta"]
    optimum = (alpha * LAW["A"] / (beta * LAW["B"])) ** (1 / (alpha + beta)) * (budgets / 6) ** TRUTH["a"]
    sizes = np.geomspace(optimum[0] / 3, optimum[-1] * 3, design.n_sizes)
    points = []
    for i, n in enumerate(sizes):
        for t in range(design.trunks):
            common = rng.normal(0, design.shared) if design.shared else 0.0
            for c in budgets:
                d = c / (6 * n)
                loss = LAW["E"] + LAW["A"] / n**alpha + LAW["B"] / d**beta + common + rng.normal(0, design.own)
                trunk = f"{i} {t}" if design.known_trunks else None
                points.append(Point(group="all", n=n, d=d, c=c, loss=loss, where="", trunk=trunk))
    return Points(points=tuple(points), source="simulated", costs="")


def intervals(design: Design, seed: int, resamples: int) -> dict[str, tuple[float, float] | None]:
    """What one study says."""
    points = simulated(design, np.random.default_rng([seed, 1]))
    settings = Settings(bootstrap=resamples, seed=seed, **design.settings)  # type: ignore[arg-type]
    if design.kind == "isoflop":
        group = isoflop(points, settings).groups[0]
        return {"a": group.slope_interval}
    found = parametric(points, settings).groups[0].intervals or {}
    return dict(found)


def coverage(design: Design, studies: int, resamples: int, first: int = 0) -> dict[str, tuple[int, int, float]]:
    """Of each number: how many intervals hold the truth, of how many, and their median width."""
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for seed in range(first, first + studies):
        for name, found in intervals(design, seed, resamples).items():
            if found is None:
                continue
            held.setdefault(name, []).append(found[0] <= TRUTH[name] <= found[1])
            widths.setdefault(name, []).append(found[1] - found[0])
    return {name: (sum(hits), len(hits), statistics.median(widths[name])) for name, hits in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    args = parser.parse_args()
    print(f"{args.studies} studies, {args.resamples} resamples each; coverage of 95% intervals")
    for name in args.only:
        design = DESIGNS[name]
        begin = time.perf_counter()
        found = coverage(design, args.studies, args.resamples)
        seconds = time.perf_counter() - begin
        noise = f"noise of {design.shared:g} nats shared, {design.own:g} own"
        print(f"\n{name}: {design.kind}, {design.about}; {noise} ({seconds:.0f} s)")
        for number, (held, of, width) in found.items():
            exact = clopper_pearson(held, of)
            low, high = f"{exact.low:.1%}", f"{exact.high:.1%}"
            print(f"  {number:<6} {held / of:6.1%} [{low}, {high}] of {of}, median width {width:.3g}", flush=True)


if __name__ == "__main__":
    main()
