"""Units and origins do not matter: a change of y, of a covariate or of its origin changes the fit by what it must.

The plain models have covariates and responses on a dyadic grid, so that the transformed data hold exactly the same
information and every difference is the package's own rounding.
"""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import problems
from golden_models import golden_problem
from problems import Problem, ProblemTerm

ENGINES = ["dense", "sparse"]


def dyadic(v, bits=10):
    return np.round(np.asarray(v) * 2**bits) / 2**bits


def plain(name):
    """A model with an intercept and a slope in X, and random slopes of that covariate."""
    if name == "sleepstudy":
        problem, _, _ = golden_problem("sleepstudy_slope_reml")
        return problem.but(y=dyadic(problem.y))
    rng = np.random.default_rng(42)
    n = 120
    x = dyadic(rng.normal(size=n) + 1)
    line = np.column_stack([np.ones(n), x])
    terms = [ProblemTerm(problems.all_levels(rng, n, 14), line.copy())]
    weights = None
    if name == "crossed":
        terms.append(ProblemTerm(problems.all_levels(rng, n, 9)))
        weights = rng.uniform(0.5, 2, n)
    if name == "two_slopes":
        terms.append(ProblemTerm(problems.all_levels(rng, n, 11), line.copy()))
    y = dyadic(problems.simulate(rng, line, tuple(terms), weights))
    return Problem(y, line, tuple(terms), weights, None, name)


MODELS = ["sleepstudy", "slope", "crossed", "two_slopes"]


def map_covariate(problem, shift=0.0, scale=1.0):
    """The model in `x' = scale * x + shift`, and T with `[1, x'] = [1, x] T`."""
    T = np.array([[1.0, shift], [0.0, scale]])

    def mapped(columns):
        return np.column_stack([columns[:, 0], columns[:, 1] * scale + shift])

    terms = tuple(
        t if t.z is None or t.z.shape[1] != 2 else ProblemTerm(t.codes, mapped(t.z), t.cov) for t in problem.terms
    )
    return problem.but(X=mapped(problem.X), terms=terms), T


def mapped_theta(problem, fit, T):
    """theta-hat of the plain fit, in the units of the transformed one: the lower factor of `T^-1 Sigma T^-T`."""
    out = []
    for term, L in zip(problem.terms, fit.L, strict=True):
        L = np.asarray(L)
        if L.shape[0] == 2:
            # with T^-1 L = (Q R)' the lower factor is R', its diagonal made positive
            R = np.linalg.qr(np.linalg.solve(T, L).T, mode="r")
            L = R.T * np.where(np.diag(R) < 0, -1.0, 1.0)
        out += [L[i, j] for i, j in oracle.entries(term)]
    return np.array(out)


def check(problem, changed, plain_fit, fit, T, shift_of_criterion):
    assert fit.converged, fit.message
    np.testing.assert_allclose(fit.theta, mapped_theta(problem, plain_fit, T), rtol=1e-5)
    expected = plain_fit.criterion + shift_of_criterion
    assert abs(fit.criterion - expected) < 1e-9 * max(1.0, abs(expected))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize("name", MODELS)
class TestInvariance:
    def test_origin_of_y(self, name, reml, engine):
        problem = plain(name)
        base = problem.fit(reml, engine)
        changed = problem.but(y=problem.y + 1e9)
        fit = changed.fit(reml, engine)
        check(problem, changed, base, fit, np.eye(2), 0.0)
        np.testing.assert_allclose(fit.sigma, base.sigma, rtol=1e-7)
        np.testing.assert_allclose(fit.beta[0] - 1e9, base.beta[0], atol=1e-5 * float(np.std(problem.y)))
        np.testing.assert_allclose(fit.beta[1], base.beta[1], rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e100, 1e-100])
    def test_units_of_y(self, name, reml, engine, scale):
        problem = plain(name)
        base = problem.fit(reml, engine)
        changed = problem.but(y=problem.y * scale)
        fit = changed.fit(reml, engine)
        nu = fit.n - fit.rank if reml else fit.n
        check(problem, changed, base, fit, np.eye(2), 2 * nu * np.log(scale))
        np.testing.assert_allclose(fit.sigma, base.sigma * scale, rtol=1e-7)
        np.testing.assert_allclose(fit.beta, base.beta * scale, rtol=1e-6)
        np.testing.assert_allclose(fit.cov_beta / scale / scale, base.cov_beta, rtol=1e-5)

    def test_origin_of_a_covariate(self, name, reml, engine):
        problem = plain(name)
        base = problem.fit(reml, engine)
        changed, T = map_covariate(problem, shift=1e6)
        fit = changed.fit(reml, engine)
        check(problem, changed, base, fit, T, 0.0)
        np.testing.assert_allclose(fit.beta[1], base.beta[1], rtol=1e-5)
        np.testing.assert_allclose(fit.fitted, base.fitted, rtol=1e-5, atol=1e-5 * float(np.std(problem.y)))

    @pytest.mark.parametrize("scale", [1e8, 1e-8])
    def test_units_of_a_covariate(self, name, reml, engine, scale):
        problem = plain(name)
        base = problem.fit(reml, engine)
        changed, T = map_covariate(problem, scale=scale)
        fit = changed.fit(reml, engine)
        check(problem, changed, base, fit, T, 2 * np.log(scale) if reml else 0.0)
        np.testing.assert_allclose(fit.beta * [1, scale], base.beta, rtol=1e-6)
        np.testing.assert_allclose(fit.fitted, base.fitted, rtol=1e-5, atol=1e-5 * float(np.std(problem.y)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [1e8, 1e-8])
def test_units_of_a_diagonal_terms_covariate(scale, engine):
    problem = problems.build("slope_diag")
    base = problem.fit(engine=engine)
    term = problem.terms[0]
    fit = problem.but(terms=(ProblemTerm(term.codes, term.z * [1, scale], "diag"),)).fit(engine=engine)
    np.testing.assert_allclose(fit.theta * [1, scale], base.theta, rtol=1e-5)
    np.testing.assert_allclose(fit.criterion, base.criterion, rtol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [1e80, 1e-80])
def test_units_of_a_fixed_covariate(scale, engine):
    problem = problems.build("intercept")
    base = problem.fit(engine=engine)
    units = np.array([1.0, scale, 1.0])
    fit = problem.but(X=problem.X * units).fit(engine=engine)
    assert fit.rank == 3
    np.testing.assert_allclose(fit.theta, base.theta, rtol=1e-6)
    np.testing.assert_allclose(fit.beta * units, base.beta, rtol=1e-7)
    np.testing.assert_allclose(fit.criterion, base.criterion + 2 * np.log(scale), rtol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_units_of_the_weights(scale, engine):
    """w -> c w: sigma^2 takes the unit, Sigma is relative and changes by 1 / c."""
    problem = problems.build("crossed_weights")
    base = problem.fit(engine=engine)
    fit = problem.but(weights=problem.weights * scale).fit(engine=engine)
    np.testing.assert_allclose(fit.theta * np.sqrt(scale), base.theta, rtol=1e-5)
    np.testing.assert_allclose(fit.sigma / np.sqrt(scale), base.sigma, rtol=1e-7)
    # -log|W| gains n log c; nu log r^2 gains nu log c; log|X'V^-1X| gains p log c: they cancel
    np.testing.assert_allclose(fit.criterion, base.criterion, rtol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_criterion_of_a_far_covariate_at_a_given_theta(engine):
    """The criterion itself, not only the optimum, in the transformed units and against the untransformed oracle."""
    problem = plain("slope")
    theta = np.array([0.9, -0.2, 0.5])
    for options in ({"scale": 1e8}, {"scale": 1e-8}, {"shift": 1e3}):
        changed, T = map_covariate(problem, **options)
        L = np.array([[theta[0], 0], [theta[1], theta[2]]])
        R = np.linalg.qr(np.linalg.solve(T, L).T, mode="r")
        value = changed.objective(False, engine)(np.array([R[0, 0], R[0, 1], R[1, 1]]))
        expected = float(oracle.criterion(problem, theta, reml=False))
        np.testing.assert_allclose(value, expected, rtol=1e-8)
