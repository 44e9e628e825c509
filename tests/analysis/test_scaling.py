"""Scaling fits: derivatives, known laws found again, what changes nothing, optima that are optima, trunks, minima."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator
from scipy.optimize import linprog

from analysis.scaling import lad, law, starts
from analysis.scaling.bootstrap import interval, plan_of, weights_of
from analysis.scaling.isoflop import Options, curves_of, fit_isoflop, lowest
from analysis.scaling.law import Array, Objective, data_of, gradient_of_law, log_law, objective
from analysis.scaling.newton import _by_eigenvalues, _by_elimination, descend
from analysis.scaling.noise import SILENT, noise_of
from analysis.scaling.parametric import DELTA, DESCENT, Estimator, Law, fit
from analysis.scaling.points import Convention, Point, Points, budgets_of, of_paper, sizes_of
from analysis.scaling.resample import refit
from analysis.scaling.study import Settings, isoflop, parametric

TRUTH = Law(E=1.82, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
QUIET = SILENT


def points_of(
    *,
    sizes: int = 7,
    budgets: int = 5,
    trunks: int = 1,
    shared: float = 0.0,
    own: float = 0.0,
    seed: int = 0,
    group: str = "all",
) -> tuple[Point, ...]:
    """Sizes around the optima of budgets, C = 6 N D, on the law `TRUTH`."""
    rng = np.random.default_rng(seed)
    costs = np.geomspace(1e18, 1e20, budgets)
    at = np.geomspace(TRUTH.n_opt(costs[0] / 6) / 4, TRUTH.n_opt(costs[-1] / 6) * 4, sizes)
    found = []
    for i, n in enumerate(at):
        for t in range(trunks):
            common = rng.normal(0, shared) if shared else 0.0
            for c in costs:
                d = c / (6 * n)
                loss = float(TRUTH.loss(n, d)) + common + (rng.normal(0, own) if own else 0.0)
                found.append(Point(group=group, n=n, d=d, c=c, loss=loss, where=f"{i}.{t}", trunk=f"{group} {i} {t}"))
    return tuple(found)


def scattered(n: int = 120, noise: float = 0.01, seed: int = 0) -> tuple[Array, Array, Array]:
    """Parameters, tokens, losses, a tenth of them far off."""
    rng = np.random.default_rng(seed)
    params = 10 ** rng.uniform(7.7, 10.2, n)
    tokens = params * 10 ** rng.uniform(0.3, 2.2, n)
    error = rng.normal(0, noise, n) * np.where(rng.uniform(size=n) < 0.1, 6, 1)
    return params, tokens, np.asarray(TRUTH.loss(params, tokens) * np.exp(error))


def points(found: tuple[Point, ...]) -> Points:
    return Points(points=found, source="made up", costs="C = 6 N D")


# --- derivatives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 10.0])
def test_gradient_and_hessian_are_those_of_finite_differences(delta: float) -> None:
    data = data_of(*scattered(60))
    weights = np.random.default_rng(1).uniform(0.2, 2, (2, 60))
    theta = np.array([[0.47, -1.0, -1.2, 0.3, 0.4], [0.4, -2.0, -1.2, 0.3, 0.35]])
    rows = np.arange(2)
    at = Objective(data, delta, weights).at(theta, rows)
    np.testing.assert_allclose(at.f, objective(theta, data, delta, weights), rtol=1e-12)
    step = 1e-6
    for i in range(law.P):
        up, down = theta.copy(), theta.copy()
        up[:, i] += step
        down[:, i] -= step
        above, below = Objective(data, delta, weights).at(up, rows), Objective(data, delta, weights).at(down, rows)
        np.testing.assert_allclose((above.f - below.f) / (2 * step), at.g[:, i], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose((above.g - below.g) / (2 * step), at.h[:, :, i], rtol=1e-6, atol=1e-7)


def test_the_huber_function_with_no_delta_is_the_sum_of_absolute_residuals() -> None:
    data, theta = data_of(*scattered(40)), np.array([[0.5, -1.0, -1.0, 0.3, 0.3]])
    assert objective(theta, data, 0.0)[0] == pytest.approx(np.abs(data.y - log_law(theta, data.x, data.z)).sum())
    # For all residuals far beyond delta the Huber function is delta times that, less a constant.
    delta = 1e-7
    assert objective(theta, data, delta)[0] / delta == pytest.approx(objective(theta, data, 0.0)[0], abs=40 * delta)


def test_a_step_by_elimination_is_that_of_the_raised_hessian_where_it_is_positive_definite() -> None:
    rng = np.random.default_rng(0)
    root, g = rng.normal(size=(200, 5, 5)), rng.normal(size=(200, 5))
    h = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(5)
    step, promised, definite = _by_elimination(h, g, np.zeros(200))
    assert definite.all()
    np.testing.assert_allclose(step, -np.linalg.solve(h, g[..., None])[..., 0], rtol=1e-9)
    np.testing.assert_allclose(promised, -0.5 * (step * g).sum(axis=1), rtol=1e-9)
    indefinite = root + root.transpose(0, 2, 1)
    assert (
        _by_elimination(indefinite, g, np.zeros(200))[2].tolist() == (np.linalg.eigvalsh(indefinite)[:, 0] > 0).tolist()
    )
    assert ((_by_eigenvalues(indefinite, g, np.zeros(200))[0] * g).sum(axis=1) < 0).all()


def test_a_node_of_the_grid_has_the_least_squares_of_relative_errors() -> None:
    """Variable projection by another way: non-negative least squares, node by node."""
    from scipy.optimize import nnls

    n, d, loss = scattered(40)
    data = data_of(n, d, loss)
    rates = (0.2, 0.5, 1.1)
    for theta in starts.grid(data, rates):
        columns = np.stack([np.ones(40), np.exp(-theta[3] * data.x), np.exp(-theta[4] * data.z)], axis=1)
        expected, _ = nnls(columns / loss[:, None], np.ones(40))
        np.testing.assert_allclose(np.exp(theta[:3]), np.maximum(expected, 1e-6), rtol=1e-6, atol=2e-6)


# --- known laws, and what changes nothing ------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["huber", "lad"])
def test_a_law_without_noise_is_found_exactly(estimator: Estimator) -> None:
    found = fit(*scattered(noise=0.0), estimator=estimator)
    for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
        assert getattr(found.law, name) == pytest.approx(getattr(TRUTH, name), rel=1e-6)
    assert found.proof.is_optimum
    assert not found.doubts


@pytest.mark.parametrize("estimator", ["huber", "lad"])
def test_a_law_is_found_through_noise_and_outliers(estimator: Estimator) -> None:
    found = fit(*scattered(noise=0.003), estimator=estimator)
    assert found.law.alpha == pytest.approx(TRUTH.alpha, abs=0.02)
    assert found.law.beta == pytest.approx(TRUTH.beta, abs=0.02)
    assert found.law.a == pytest.approx(TRUTH.a, abs=0.02)


@pytest.mark.parametrize("estimator", ["huber", "lad"])
def test_units_change_a_and_b_alone_and_the_order_of_rows_nothing(estimator: Estimator) -> None:
    n, d, loss = scattered()
    base = fit(n, d, loss, estimator)
    other = fit(n / 1e6, d / 1e9, loss, estimator)
    assert other.objective == pytest.approx(base.objective, rel=1e-9)
    for name in ("E", "alpha", "beta", "a", "b"):
        assert getattr(other.law, name) == pytest.approx(getattr(base.law, name), rel=1e-6)
    assert pytest.approx(base.law.A / 1e6**base.law.alpha, rel=1e-5) == other.law.A
    assert pytest.approx(base.law.B / 1e9**base.law.beta, rel=1e-5) == other.law.B
    mixed = np.random.default_rng(3).permutation(len(n))
    shuffled = fit(n[mixed], d[mixed], loss[mixed], estimator)
    assert shuffled.law == base.law
    np.testing.assert_array_equal(shuffled.residuals, base.residuals[mixed])


def test_intervals_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    made = points_of(own=0.003, trunks=2)
    settings = Settings(bootstrap=200)
    first, again = (parametric(points(p), settings).groups[0] for p in (made, made[::-1]))
    assert first.intervals == again.intervals
    assert first.intervals != parametric(points(made), replace(settings, seed=1)).groups[0].intervals
    curves, turned = (isoflop(points(p), settings).groups[0] for p in (made, made[::-1]))
    assert (curves.slope, curves.slope_interval) == (turned.slope, turned.slope_interval)


# --- optima -------------------------------------------------------------------------------------------


def test_the_optimum_is_shown_to_be_one() -> None:
    found = fit(*scattered())
    assert found.proof.gradient < 1e-6
    assert found.proof.least_eigenvalue is not None
    assert found.proof.least_eigenvalue > 0
    assert found.proof.agreeing >= found.proof.starts / 2


@pytest.mark.parametrize("seed", range(6))
def test_no_linear_program_around_a_lad_fit_promises_less(seed: int) -> None:
    """An independent certificate: the tangent's least sum in a small box, by scipy, is that of the fit."""
    found = fit(*scattered(60, seed=seed), estimator="lad")
    assert found.proof.is_optimum
    assert found.proof.multiplier is not None
    assert found.proof.multiplier <= 1
    g = gradient_of_law(found.theta, found.data.x, found.data.z)
    r = (found.data.y - log_law(found.theta[None], found.data.x, found.data.z))[0]
    n = len(r)
    cost = np.concatenate([np.zeros(5), np.ones(n)])
    above = np.block([[-g, -np.eye(n)], [g, -np.eye(n)]])
    solved = linprog(cost, A_ub=above, b_ub=np.concatenate([-r, r]), bounds=[(-1e-4, 1e-4)] * 5 + [(0, None)] * n)
    assert solved.fun == pytest.approx(found.objective, rel=1e-8)


def test_lad_is_the_limit_of_huber() -> None:
    found = fit(*scattered(60), estimator="lad")
    sums = []
    for delta in (1e-3, 1e-4, 1e-5):
        ladder = [d for d in (*DESCENT, 3e-4, 1e-4, 3e-5, 1e-5) if d >= delta]
        ends = descend(found.data, found.minima, np.zeros(len(found.minima), dtype=np.int64), ladder, between=30)
        sums.append(float(objective(ends.theta, found.data, 0.0).min()))
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(sums))
    assert sums[-1] == pytest.approx(found.objective, rel=1e-4)
    assert sums[-1] >= found.objective * (1 - 1e-12)


def test_least_of_tangent_is_the_linear_program() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        r, g = rng.normal(size=30), rng.normal(size=(30, 5))
        d, basis = lad.least_of_tangent(r, g)
        cost = np.concatenate([np.zeros(5), np.ones(30)])
        above = np.block([[-g, -np.eye(30)], [g, -np.eye(30)]])
        best = linprog(cost, A_ub=above, b_ub=np.concatenate([-r, r]), bounds=[(None, None)] * 5 + [(0, None)] * 30)
        assert np.abs(r - g @ d).sum() == pytest.approx(best.fun, rel=1e-9)
        np.testing.assert_allclose((r - g @ d)[basis], 0, atol=1e-10)


def test_a_law_that_the_points_do_not_determine_is_doubted() -> None:
    """All points at one ratio of tokens to parameters: with equal exponents their terms cannot be told apart."""
    n = np.geomspace(1e8, 1e10, 12)
    found = fit(n, 20 * n, 1.8 + 900 / n**0.35)
    assert found.doubts


def test_refits_to_weights_are_refits_to_copies() -> None:
    n, d, loss = scattered(40)
    whole = fit(n, d, loss)
    order = np.lexsort((loss, d, n))
    counts = np.random.default_rng(2).multinomial(40, np.full(40, 1 / 40), size=5)
    theta = refit(whole, counts.astype(float))
    found = law.to_plain(theta, whole.data)
    for weights, one in zip(counts, found, strict=True):
        kept = np.repeat(order, weights)
        alone = fit(n[kept], d[kept], loss[kept])
        assert one[law.ALPHA] == pytest.approx(alone.law.alpha, abs=1e-5)
        assert one[law.BETA] == pytest.approx(alone.law.beta, abs=1e-5)


def test_no_resample_is_left_above_another_ones_optimum() -> None:
    whole = fit(*scattered(30, noise=0.02, seed=4))
    weights = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=300).astype(float)
    theta = refit(whole, weights)
    own = objective(theta, whole.data, DELTA, weights)
    for one in theta[::10]:
        others = objective(one[None], whole.data, DELTA, weights)
        assert (own <= others * (1 + 1e-6) + 1e-12).all()


# --- trunks ---------------------------------------------------------------------------------------------


def test_branches_of_one_trunk_count_together() -> None:
    made = points_of(trunks=3)
    plan = plan_of(made)
    assert plan.identified
    assert plan.text == "21 trunks are resampled within their sizes"
    weights = weights_of(plan, len(made), 500, 0)
    for name in {point.trunk for point in made}:
        members = [i for i, point in enumerate(made) if point.trunk == name]
        assert (weights[:, members] == weights[:, members[:1]]).all()
    for members in sizes_of(made):
        np.testing.assert_allclose(weights[:, members].sum(axis=1), len(members))
    # Two of three are drawn, so that the variance of a mean of three comes out right.
    assert weights.var(axis=0) == pytest.approx(np.full(len(made), 1.0), abs=0.2)


def test_one_trunk_a_size_leaves_seed_noise_unknown_and_says_so() -> None:
    made = points(points_of(own=0.002))
    settings = Settings(bootstrap=200)
    assert "seed noise cannot be identified" in " ".join(parametric(made, settings).groups[0].warnings)
    assert "seed noise cannot be identified" in " ".join(isoflop(made, settings).groups[0].warnings)
    several = points(points_of(own=0.002, trunks=2))
    assert "cannot be identified" not in " ".join(parametric(several, settings).groups[0].warnings)
    assert "cannot be identified" not in " ".join(isoflop(several, settings).groups[0].warnings)


def test_trunks_taken_for_points_make_intervals_too_narrow() -> None:
    made = points_of(trunks=4, shared=0.004, own=0.0005, seed=2)
    alone = tuple(replace(point, trunk=None) for point in made)
    settings = Settings(bootstrap=400)
    by_trunk, by_point = (parametric(points(p), settings).groups[0].standard_errors for p in (made, alone))
    assert by_trunk is not None
    assert by_point is not None
    assert by_trunk["a"] > 1.5 * by_point["a"]


def test_given_noise_of_a_trunk_widens_the_interval() -> None:
    made = points(points_of(own=0.0005))
    narrow, wide = (
        parametric(made, Settings(bootstrap=400, noise=noise)).groups[0].standard_errors for noise in (None, 0.005)
    )
    assert narrow is not None
    assert wide is not None
    assert wide["a"] > 2 * narrow["a"]


def test_noise_between_seeds_is_split_into_shared_and_own() -> None:
    made = points_of(sizes=40, trunks=6, shared=0.004, own=0.001)
    found = noise_of(made, None, given=None)
    assert found.split
    assert found.shared == pytest.approx(0.004, rel=0.15)
    assert found.own == pytest.approx(0.001, rel=0.1)
    assert found.df == 200


def test_an_interval_of_few_trunks_is_students() -> None:
    """Two trunks a size, four sizes that matter alike: t with four degrees of freedom, not the normal's 1.96."""
    made = points_of(sizes=4, trunks=2)
    plan = plan_of(made)
    weights = weights_of(plan, len(made), 4000, 0)
    which = [members[0] for members in sizes_of(made)]
    draws = (weights[:, which] - 1).sum(axis=1) + 1e-3 * np.random.default_rng(0).normal(size=4000)
    low, high = interval(draws, weights, plan, 0.95)
    plain_low, plain_high = np.quantile(draws, [0.025, 0.975])
    assert (high - low) / (plain_high - plain_low) == pytest.approx(2.776 / 1.960, rel=0.02)


# --- curves at equal FLOPs ------------------------------------------------------------------------------


def test_minima_of_akima_splines_are_those_of_scipy_on_a_fine_grid() -> None:
    rng = np.random.default_rng(0)
    at = np.sort(rng.uniform(0, 5, 6))
    losses = 0.1 * (at[:, None] - 2.4) ** 2 + rng.normal(0, 0.02, (6, 50))
    found, values = lowest(at, losses, Options(), np.arange(6))
    fine = np.linspace(at[0], at[-1], 20_001)
    on_grid = Akima1DInterpolator(at, losses)(fine)
    np.testing.assert_allclose(values, on_grid.min(axis=0), atol=1e-7)
    np.testing.assert_allclose(found, fine[on_grid.argmin(axis=0)], atol=2e-3)


def test_a_parabola_is_found_by_both_curves_and_its_law_exactly_by_the_parabola() -> None:
    made = []
    for c in np.geomspace(1e18, 1e21, 6):
        best = 0.55 * math.log(c) - 3.0
        for log_n in np.arange(-6, 7) * 0.4 + best:
            n = math.exp(log_n)
            made.append(Point(group="all", n=n, d=c / (6 * n), c=c, loss=3 + 0.05 * (log_n - best) ** 2, where=""))
    for options in (Options(method="quadratic"), Options(method="quadratic", window=3.0), Options()):
        found = fit_isoflop(made, options, QUIET, draws=0, seed=0)
        assert found.a == pytest.approx(0.55, abs=1e-6)
        assert found.b == pytest.approx(0.45, abs=1e-6)


def test_the_exponent_of_a_known_law_comes_out() -> None:
    found = fit_isoflop(points_of(sizes=15), Options(), QUIET, draws=0, seed=0)
    assert found.a == pytest.approx(TRUTH.a, abs=0.01)
    assert all(budget.interior for budget in found.budgets)
    for budget in found.budgets:
        assert budget.n_opt == pytest.approx(TRUTH.n_opt(budget.flops / 6), rel=0.05)
        assert 6 * budget.n_opt * budget.d_opt == pytest.approx(budget.flops, rel=1e-9)


def test_units_of_flops_do_not_change_the_exponent() -> None:
    made = points_of(own=0.002)
    scaled = tuple(replace(point, n=point.n / 1e6, d=point.d / 1e9, c=point.c / 1e15) for point in made)
    noise = replace(QUIET, own=0.002)
    first, second = (fit_isoflop(p, Options(), noise, draws=200, seed=0) for p in (made, scaled))
    assert first.a == pytest.approx(second.a, rel=1e-6)
    assert first.n is not None
    assert second.n is not None
    np.testing.assert_allclose(first.n.slopes, second.n.slopes, atol=1e-6)


def test_a_minimum_at_the_edge_does_not_count() -> None:
    made = tuple(p for p in points_of(sizes=13) if p.n < TRUTH.n_opt(1e20 / 6) * 0.9)
    found = fit_isoflop(made, Options(), QUIET, draws=0, seed=0)
    assert [budget.interior for budget in found.budgets] == [True, True, True, True, False]
    assert found.budgets[-1].why_not == "the largest size is the lowest: no minimum between sizes"
    assert len(found.used) == 4


def test_a_curve_that_falls_to_the_largest_size_counts_inside_but_not_bracketed() -> None:
    losses = (2.855, 2.712, 2.691)
    made = [
        Point(group="all", n=n, d=c / n, c=c, loss=loss + shift, where="")
        for c, shift in ((1e19, 0.0), (4e19, -0.2))
        for n, loss in zip((0.34e9, 0.99e9, 2.81e9), losses, strict=True)
    ]
    assert not fit_isoflop(made, Options(), QUIET, draws=0, seed=0).used
    assert len(fit_isoflop(made, Options(rule="inside"), QUIET, draws=0, seed=0).used) == 2


def test_two_minima_give_an_exponent_with_a_warning_and_one_gives_none() -> None:
    made = points_of(budgets=5)
    costs = sorted({point.c for point in made})
    settings = Settings(bootstrap=0)
    two = isoflop(points(tuple(p for p in made if p.c in costs[:2])), settings).groups[0]
    assert two.slope is not None
    assert "the line through two points, which nothing can contradict" in two.warnings[0]
    one = isoflop(points(tuple(p for p in made if p.c == costs[0])), settings).groups[0]
    assert one.slope is None
    assert "one point has no slope" in one.warnings[0]


def test_budgets_are_told_by_their_flops_and_curves_between_them_are_interpolated() -> None:
    made = points_of(sizes=8)
    assert len(budgets_of(made) or []) == 5
    # As if another 20% to 200% were counted, the more the smaller: what the head does.
    other = tuple(replace(p, c=p.c * (1 + 0.2 * (made[-1].n / p.n) ** 0.4)) for p in made)
    assert budgets_of(other) is None
    curves, measured = curves_of(sorted(other, key=lambda p: (p.n, p.c)))
    assert not measured
    ordered = sorted(other, key=lambda p: (p.n, p.c))
    losses = np.array([p.loss for p in ordered])
    for curve in curves:
        np.testing.assert_allclose(curve.mix.sum(axis=1), 1.0)
        tokens, params = np.exp(curve.log_d), np.exp(curve.log_n)
        np.testing.assert_allclose(curve.mix @ losses, TRUTH.loss(params, tokens), atol=2e-3)


def test_draws_of_noise_widen_with_it() -> None:
    made = points_of(own=0.001)
    widths = []
    for sd in (0.001, 0.004):
        found = fit_isoflop(made, Options(), replace(QUIET, own=sd), draws=400, seed=0)
        assert found.n is not None
        low, high = found.n.interval(0.95) or (0.0, 0.0)
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


# --- the paper's runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper() -> dict[Convention, Points]:
    return {convention: of_paper(convention) for convention in ("paper", "full")}


def test_the_paper_has_71_runs_of_16_trunks(paper: dict[Convention, Points]) -> None:
    for found in paper.values():
        assert len(found.points) == 71
        assert found.groups == ("Llama", "Mamba", "Inter-H", "Intra-H")
        assert len({point.trunk for point in found.points}) == 16
        for group in found.groups:
            assert len(sizes_of(found.of(group))) == 4
    assert all(budgets_of(paper["paper"].of(group)) is not None for group in paper["paper"].groups)
    assert all(budgets_of(paper["full"].of(group)) is None for group in paper["full"].groups)


def test_the_head_is_counted_in_the_full_convention_alone(paper: dict[Convention, Points]) -> None:
    """What it adds falls with the size, from more than 80% of the smallest Llama's FLOPs to about a ninth."""
    ratios = [
        full.c / base.c
        for base, full in zip(paper["paper"].of("Llama"), paper["full"].of("Llama"), strict=True)
        if base.c == pytest.approx(2e19, rel=0.01)
    ]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 1.8
    assert 1.1 < ratios[-1] < 1.4
    for base, full in zip(paper["paper"].points, paper["full"].points, strict=True):
        assert full.n > base.n
        assert (full.d, full.loss) == (base.d, base.loss)


@pytest.mark.parametrize("estimator", ["huber", "lad"])
def test_every_fit_of_the_paper_is_an_optimum(paper: dict[Convention, Points], estimator: Estimator) -> None:
    for found in paper.values():
        study = parametric(found, Settings(estimator=estimator, bootstrap=0))
        assert all(group.fit.proof.is_optimum for group in study.groups)
