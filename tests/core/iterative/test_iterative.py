"""The iterative engine against the exact ones: what it calls exact is, and what it calls an error is one."""

from functools import cache

import numpy as np
import pytest

from fastlmm_core.core import Control, Model, Term, fit, iterative, objective
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.iterative.derivatives import derivatives
from fastlmm_core.core.iterative.equations import LinearEquations
from fastlmm_core.core.iterative.estimates import estimates
from fastlmm_core.core.iterative.forms import random_forms
from fastlmm_core.core.iterative.log_determinant import log_determinant
from fastlmm_core.core.iterative.newton import Search
from fastlmm_core.core.iterative.problem import crossed_problem
from fastlmm_core.core.iterative.projection import project
from fastlmm_core.core.iterative.system import System, block_pcg
from fastlmm_core.core.iterative.traces import Probes, deflation_basis
from fastlmm_core.errors import ConvergenceWarning, DataError, ModelError, MonteCarloWarning, NumericalError

CASES = {
    "intercepts": {},
    "three factors": {"levels": (90, 70)},
    "slope of the leading factor": {"slope": True},
    "slopes everywhere, weights": {"slope": True, "levels": (80, 20), "tail_slope": "diag", "weighted": True},
    "correlated slopes everywhere": {"slope": True, "levels": (80, 90), "tail_slope": "us"},
    "correlated slopes in the tail, weights": {"tail_slope": "us", "weighted": True},
    "no variance in a tail factor": {"levels": (80, 30), "sd": (1.0, 0.0, 0.5)},
    "no variance in the leading factor": {"sd": (0.0, 1.0)},
    "nested and crossed": {"levels": (80, 20), "nested": True},
}


@cache
def data(name):
    """y, X, terms and weights of a case."""
    return draw(**CASES[name])


def draw(levels=(80,), sd=(1.0, 0.7, 0.5), slope=False, tail_slope=False, weighted=False, nested=False, n=2500, q=200):
    rng = np.random.default_rng(11)
    x = rng.normal(size=n)
    both = np.column_stack([np.ones(n), x])
    codes = [rng.integers(0, k, n) for k in (q, *levels)]
    if nested:
        codes[2] = codes[0] // (q // levels[1])
    y = 1.0 + 0.5 * x
    terms = []
    for f, (code, count) in enumerate(zip(codes, (q, *levels), strict=True)):
        y = y + sd[f] * rng.normal(size=count)[code]
        wide = slope if f == 0 else tail_slope
        if wide:
            y = y + 0.4 * rng.normal(size=count)[code] * x
        terms.append(Term(code, both if wide else None, tail_slope if f and wide else "us", n_levels=count))
    w = rng.uniform(0.5, 2.0, n) if weighted else None
    return y + rng.normal(size=n) / (1.0 if w is None else np.sqrt(w)), both, tuple(terms), w


def parts(name, theta=None, reml=True):
    """Design, problem and system of a case at conditioned theta, and the exact engine's objective."""
    y, X, terms, w = data(name)
    design = DesignProducts(X, terms, weights=w)
    problem = crossed_problem(design, design.response(y), Control(threads=1))
    at = np.linspace(0.4, 0.8, problem.n_theta) if theta is None else theta
    return design, problem, System(problem, at), objective(y, X, terms, weights=w, reml=reml)


def dense_reduced(problem, system):
    """S as a matrix, column by column of unit vectors."""
    eye = np.eye(problem.rows.m)
    return eye + system.lam_t(system.product(system.lam(eye)))


@pytest.mark.parametrize("name", CASES)
def test_system_projection_and_curvature_are_exact(name):
    design, problem, system, _ = parts(name)
    S = dense_reduced(problem, system)
    np.testing.assert_allclose(S, S.T, atol=1e-10)
    for group, blocks in zip(problem.groups, system.inverse, strict=True):
        own = S[group.columns, group.columns].reshape(group.q, group.l, group.q, group.l)
        each = np.einsum("qaqb->qab", own)
        np.testing.assert_allclose(np.linalg.inv(blocks), each, rtol=1e-9, atol=1e-9)
    b = np.random.default_rng(1).normal(size=(problem.rows.m, 2))
    split = np.column_stack([system.split(c[:, None]) for c in np.eye(problem.rows.m)]).T  # G^-1, by columns
    np.testing.assert_allclose(system.split_t(b), split @ b, atol=1e-11)
    np.testing.assert_allclose(system.jacobi(b), split @ system.split(b), atol=1e-11)
    np.testing.assert_allclose(system.split_t(system.joined(b)), b, atol=1e-11)
    assert np.linalg.eigvalsh(S).min() >= 1.0 - 1e-9
    b = np.random.default_rng(0).normal(size=(problem.rows.m, 3))
    np.testing.assert_allclose(system.solve_columns(b, 1e-12), np.linalg.solve(S, b), rtol=1e-8, atol=1e-9)
    y, X, terms, w = data(name)
    theta = design.theta_map.to_user @ system.theta
    expected = Model(X, terms, weights=w).at(y, theta)
    nothing = np.linalg.slogdet(S)[1]
    found = estimates(
        design,
        design.response(y),
        system,
        project(system),
        stopped(system),
        (nothing, 0.0),
        design.n - 2.0,
        True,
        Control(engine="iterative"),
        "",
    )
    np.testing.assert_allclose(found.beta, expected.beta, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.cov_beta, expected.cov_beta, rtol=1e-8, atol=1e-12)
    assert found.sigma == pytest.approx(expected.sigma, rel=1e-10)
    assert found.criterion == pytest.approx(expected.criterion, rel=1e-10)
    for a, b in zip(found.b, expected.b, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("name", ["intercepts", "correlated slopes everywhere", "nested and crossed"])
def test_forms_of_effects_are_those_of_the_whole_inverse(name):
    design, _, system, _ = parts(name)
    rng = np.random.default_rng(3)
    codes, columns, sizes = design.codes, design.columns, [g.size for g in design.groups]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    whole = np.zeros((design.n, starts[-1]))
    L = np.zeros((starts[-1], starts[-1]))
    factors = [system.L, *system.tail_L]
    for g, group in enumerate(design.groups):
        z = np.ones((design.n, 1)) if columns[g] is None else columns[g]
        at = starts[g] + codes[g][:, None] * group.n_columns + np.arange(group.n_columns)
        whole[np.arange(design.n)[:, None], at] = z
        L[starts[g] : starts[g + 1], starts[g] : starts[g + 1]] = np.kron(np.eye(group.n_levels), factors[g])
    H = L @ np.linalg.solve(L.T @ whole.T @ whole @ L + np.eye(len(L)), L.T)
    levels = [rng.integers(-1, g.n_levels, 11) for g in design.groups]
    z = [rng.normal(size=(11, g.n_columns)) for g in design.groups]
    rows = np.zeros((11, len(L)))
    for g, group in enumerate(design.groups):
        met = np.flatnonzero(levels[g] >= 0)
        at = starts[g] + levels[g][met, None] * group.n_columns + np.arange(group.n_columns)
        rows[met[:, None], at] = z[g][met]
    np.testing.assert_allclose(random_forms(system, levels, z), np.einsum("ij,jk,ik->i", rows, H, rows), rtol=1e-8)


def stopped(system):
    """A search that ended where it began."""
    k = len(system.theta)
    return iterative.newton.Found(
        system.theta, np.zeros((k, k)), np.eye(k), np.eye(k), 0.0, 8, 0, 0, 0, True, np.zeros(k), np.eye(k), ()
    )


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_unbiased(name, reml):
    _, problem, system, exact = parts(name, reml=reml)
    nu = problem.n - problem.p * reml
    _, gradient, hessian = exact.evaluator.derivatives(system.theta)
    at = project(system)
    found = []
    for seed in range(12):
        found.append(derivatives(system, at, Probes(problem, seed).traces(system, 2), nu, reml))
    each = np.concatenate([d.gradients for d in found])
    error = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    size = np.sqrt(np.abs(np.diag(hessian)))  # a curvature may be negative here
    assert (np.abs(each.mean(axis=0) - gradient) < 4.0 * error + 1e-6 * size).all()
    average = np.mean([d.hessian for d in found], axis=0)
    np.testing.assert_allclose(average, hessian, atol=2e-2 * size.max() ** 2)


@pytest.mark.parametrize("name", ["intercepts", "three factors", "slope of the leading factor"])
def test_a_complete_basis_makes_the_traces_exact(name):
    """With Q all of a term's directions nothing is left to the probes: control variates and deflation add up."""
    y, X, terms, _ = data(name)
    few = [terms[0], *(Term(t.codes % 8, n_levels=8) for t in terms[1:])]
    design = DesignProducts(X, few)
    problem = crossed_problem(design, design.response(y), Control(threads=1))
    system = System(problem, np.linspace(0.4, 0.8, problem.n_theta))
    _, gradient, _ = objective(y, X, few).evaluator.derivatives(system.theta)
    out = derivatives(system, project(system), Probes(problem, 3).traces(system, 1), problem.n - problem.p, True)
    np.testing.assert_allclose(out.gradients, np.broadcast_to(gradient, out.gradients.shape), rtol=1e-5, atol=1e-4)


def test_the_deflated_directions_are_orthonormal():
    _, _, system, _ = parts("three factors")
    u = deflation_basis(system)
    np.testing.assert_allclose(u.T @ u, np.eye(8), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reml", [True, False])
def test_theta_is_within_its_error(name, reml):
    y, X, terms, w = data(name)
    exact = fit(y, X, terms, weights=w, reml=reml)
    found = iterative.fit(y, X, terms, weights=w, reml=reml)
    mc = found.monte_carlo
    assert found.converged
    assert mc.max_relative <= 0.01
    assert found.is_singular == exact.is_singular
    zero = np.isnan(mc.theta_sd)
    np.testing.assert_array_equal(found.theta[zero], 0.0)
    np.testing.assert_array_equal(mc.theta_se[zero], 0.0)
    np.testing.assert_allclose(exact.theta[zero], 0.0, atol=1e-4)
    error = np.abs(found.theta - exact.theta)[~zero]
    assert (error < 5.0 * mc.theta_se[~zero] + 1e-5 * mc.theta_sd[~zero]).all()
    assert abs(found.criterion - exact.criterion) < 5.0 * mc.criterion_se + 1e-6
    se = np.sqrt(np.diag(exact.cov_beta))
    np.testing.assert_allclose(found.beta, exact.beta, atol=1e-3 * se.min())
    np.testing.assert_allclose(found.se, se, rtol=2e-3)


@pytest.mark.parametrize("name", ["three factors", "slope of the leading factor"])
def test_claimed_errors_are_those_of_seeds(name):
    y, X, terms, w = data(name)
    exact = fit(y, X, terms, weights=w)
    fits = [iterative.fit(y, X, terms, weights=w, seed=seed, probes=16) for seed in range(24)]
    z = np.array([(f.theta - exact.theta) / f.monte_carlo.theta_se for f in fits])
    assert 0.75 < np.sqrt((z**2).mean()) < 1.25
    assert (np.abs(z.mean(axis=0)) < 3.0 / np.sqrt(len(fits))).all()


@pytest.mark.parametrize("name", ["intercepts", "three factors", "slope of the leading factor"])
def test_the_log_determinant_is_within_its_error(name):
    _, problem, system, _ = parts(name)
    exact = np.linalg.slogdet(dense_reduced(problem, system))[1]
    found = np.array([log_determinant(system, seed, 2) for seed in range(12)])
    z = (found[:, 0] - exact) / found[:, 1]
    assert 0.4 < np.sqrt((z**2).mean()) < 1.7
    assert abs(z.mean()) < 1.0


def test_same_seed_same_bits_whatever_the_threads():
    y, X, terms, w = data("slopes everywhere, weights")
    a, b = (iterative.fit(y, X, terms, weights=w, seed=5, mc_error=0.1, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(a.theta, b.theta)
    np.testing.assert_array_equal(a.beta, b.beta)
    np.testing.assert_array_equal(a.monte_carlo.theta_se, b.monte_carlo.theta_se)
    assert a.criterion == b.criterion
    assert (iterative.fit(y, X, terms, weights=w, seed=6, mc_error=0.1).theta != a.theta).any()


def test_units_origins_offset_start_and_dependent_columns():
    y, X, terms, _ = data("three factors")
    base = iterative.fit(y, X, terms)
    wide = np.column_stack([X, X[:, 1] * 2.0])
    other = iterative.fit(1e3 * y + 1e4 + X[:, 1], wide, terms, offset=X[:, 1], start=[0.3, 0.3, 0.3])
    sd = base.monte_carlo.theta_sd
    np.testing.assert_allclose(other.theta, base.theta, atol=1e-3 * sd.min())
    np.testing.assert_allclose(other.sigma, 1e3 * base.sigma, rtol=1e-5)
    np.testing.assert_allclose(other.beta[:2], 1e3 * base.beta + [1e4, 0.0], rtol=1e-5)
    assert np.isnan(other.beta[2])
    assert np.isnan(other.se[2])
    for a, b in zip(other.b, base.b, strict=True):
        np.testing.assert_allclose(a, 1e3 * b, atol=0.3)


def test_no_fixed_effects():
    y, _, terms, _ = data("intercepts")
    exact, found = fit(y - 1.0, None, terms), iterative.fit(y - 1.0, None, terms)
    assert found.beta.shape == (0,)
    assert (np.abs(found.theta - exact.theta) < 5.0 * found.monte_carlo.theta_se + 1e-5).all()


def test_what_it_cannot_do_is_refused():
    y, X, terms, _ = data("intercepts")
    with pytest.raises(ModelError, match="two or more grouping factors"):
        iterative.fit(y, X, [terms[0]])
    z = np.random.default_rng(0).normal(size=(len(y), 17))
    with pytest.raises(ModelError, match="at most 16 random effects a level, not 17"):
        iterative.fit(y, X, [Term(terms[0].codes, z, "diag"), terms[1]])
    dummies = np.eye(80)[terms[1].codes]
    with pytest.raises(ModelError, match=r"does not determine every variance \(terms 1\)"):
        iterative.fit(y, dummies, terms)
    for bad in (0, 129, 2.5, True):
        with pytest.raises(ModelError, match="probes must be"):
            iterative.fit(y, X, terms, probes=bad)
    for bad in (-1, 0.5, None):
        with pytest.raises(ModelError, match="seed must be"):
            iterative.fit(y, X, terms, seed=bad)
    for bad in (0.0, np.inf, "small"):
        with pytest.raises(ModelError, match="mc_error must be"):
            iterative.fit(y, X, terms, mc_error=bad)
    with pytest.raises(DataError, match="start has shape"):
        iterative.fit(y, X, terms, start=[0.5])
    with pytest.raises(DataError, match="not finite"):
        iterative.fit(y, X, terms, start=[0.5, np.nan])
    with pytest.raises(DataError, match="offset has shape"):
        iterative.fit(y, X, terms, offset=[1.0])


def test_an_error_that_stays_large_is_said():
    y, X, terms, _ = data("three factors")
    with pytest.warns(MonteCarloWarning, match="with 128 probes the Monte Carlo error .* above mc_error=1e-07"):
        found = iterative.fit(y, X, terms, mc_error=1e-7)
    assert found.monte_carlo.probes == 128


def test_a_search_that_does_not_end_is_said(monkeypatch):
    monkeypatch.setattr(iterative.newton, "MAX_EVALUATIONS", 1)
    y, X, terms, _ = data("intercepts")
    with pytest.warns(ConvergenceWarning, match="did not end in 1 evaluations"):
        found = iterative.fit(y, X, terms, start=[5.0, 5.0])
    assert not found.converged


def test_a_solve_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(iterative.system, "MAX_ITERATIONS", 2)
    matrix = np.diag(np.arange(1.0, 9.0)) + 0.3

    def apply(x, out):
        return np.matmul(matrix, x, out=out)

    def nothing(r, out):
        np.copyto(out, r)
        return out

    with pytest.raises(NumericalError, match="loosely connected"):
        block_pcg(apply, nothing, np.eye(8), None, 1e-10)
    _, iterations, done = block_pcg(apply, nothing, np.eye(8), None, 1e-10, limit=1)
    assert (iterations, done) == (1, False)


def test_a_far_start_ends_at_the_same_place():
    y, X, terms, _ = data("slope of the leading factor")
    near = iterative.fit(y, X, terms)
    for start in ([5.0, 0.0, 5.0, 5.0], [0.05, 0.0, 0.05, 0.02]):
        far = iterative.fit(y, X, terms, start=start)
        assert far.converged
        np.testing.assert_allclose(far.theta, near.theta, atol=5e-3 * near.monte_carlo.theta_sd.min())


@pytest.mark.parametrize("direction", [(0.05, 1.0), (1.0, 0.05), (-0.03, 1.0), (0.0, 0.0)])
def test_correlated_effects_of_one_dimension(direction):
    """Optima on the boundary of correlated slopes, at and beside the axes."""
    rng = np.random.default_rng(5)
    n = 4000
    g, h, x = rng.integers(0, 150, n), rng.integers(0, 70, n), rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    y = rng.normal(size=150)[g] + rng.normal(size=70)[h] * (X @ direction) + rng.normal(size=n)
    terms = [Term(g), Term(h, X)]
    exact, found = fit(y, X, terms), iterative.fit(y, X, terms)
    assert found.converged
    assert found.criterion == pytest.approx(exact.criterion, abs=4.0 * found.monte_carlo.criterion_se + 1e-2)
    for one, two in zip(found.L, exact.L, strict=True):
        np.testing.assert_allclose(one @ one.T, two @ two.T, atol=2e-3)


def test_a_variance_at_zero_is_left_when_the_others_have_moved():
    """Begun at zero, a factor that has a variance leaves it."""
    y, X, terms, _ = data("three factors")
    design = DesignProducts(X, terms)
    problem = crossed_problem(design, design.response(y), Control(threads=1))
    search = Search(LinearEquations(problem, float(problem.n - problem.p), True, 0))
    end = search.run(np.array([0.5, 0.0, 0.5]), 8, 0.01)
    assert end.converged
    assert (end.theta > 0.1).all()
