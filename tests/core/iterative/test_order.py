"""The order of a factor's columns during a search, and covariates whose origin is far from the data."""

from dataclasses import replace

import numpy as np
import pytest

from fastlmm_core.core import Control, Model, Term, iterative, objective
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.iterative.order import better_order, carried, covariance, moved, pivots
from fastlmm_core.core.iterative.problem import crossed_problem


def model(shift, *, lead=False, own_origin=False, seed=5):
    """A correlated slope of one of two factors; with ``own_origin`` intercepts vary where x is zero, however far."""
    rng = np.random.default_rng(seed)
    n, q, m = 12_000, 300, 100
    codes = rng.integers(0, m, n), rng.integers(0, q, n)
    x = rng.normal(size=n)
    slope, other = (1, 0) if lead else (0, 1)
    levels = (m, q)
    b = rng.normal(size=(levels[slope], 2)) @ np.array([[0.8, 0.3], [0.0, 0.5]])
    far = x + shift
    y = 1.0 + b[codes[slope], 0] + b[codes[slope], 1] * (far if own_origin else x)
    y += rng.normal(size=levels[other])[codes[other]] + rng.normal(size=n)
    X = np.column_stack([np.ones(n), far])
    terms = [Term(codes[slope], X, n_levels=levels[slope]), Term(codes[other], n_levels=levels[other])]
    return y, X, terms


def three_columns():
    rng = np.random.default_rng(0)
    n = 3000
    z = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    terms = [Term(rng.integers(0, 60, n), z, n_levels=60), Term(rng.integers(0, 50, n), z[:, :2], n_levels=50)]
    y = rng.normal(size=n)
    design = DesignProducts(z, terms)
    return crossed_problem(design, design.response(y), Control(threads=1))


def test_parameters_are_carried_with_their_derivatives():
    problem = three_columns()
    (lead, _), (tail, _) = problem.factors
    groups = (replace(problem.groups[0], parameters=moved(tail, [1, 0])),)
    other = replace(problem, lead=moved(lead, [2, 0, 1]), groups=groups)
    theta = np.array([1.3, 0.4, -0.2, 0.9, 0.3, 0.7, 0.8, -0.5, 0.6])
    new, jacobian = carried(problem, other, theta)
    for (old, l), (places, _) in zip(problem.factors, other.factors, strict=True):
        np.testing.assert_allclose(covariance(places, new, l), covariance(old, theta, l), rtol=1e-13, atol=1e-14)
    assert not np.allclose(new, theta)
    step, identity = 1e-6, np.eye(9)
    differences = [
        (carried(problem, other, theta + step * e)[0] - carried(problem, other, theta - step * e)[0]) / (2 * step)
        for e in identity
    ]
    np.testing.assert_allclose(jacobian, np.transpose(differences), atol=1e-8)
    back, inverse = carried(other, problem, new)
    np.testing.assert_allclose(back, theta, rtol=1e-12)
    np.testing.assert_allclose(inverse @ jacobian, identity, atol=1e-12)


def test_a_singular_matrix_is_carried():
    problem = three_columns()
    theta = np.array([1.0, 2.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.6])
    other = replace(problem, lead=moved(problem.lead, [2, 1, 0]))
    new, jacobian = carried(problem, other, theta)
    assert np.isfinite(jacobian).all()
    np.testing.assert_allclose(covariance(other.lead, new, 3), covariance(problem.lead, theta, 3), atol=1e-14)


def test_an_order_is_left_where_it_is_good():
    assert pivots(np.diag([1.0, 4.0]), [0, 1]) is None
    assert pivots(np.array([[1e-4, 1e-2], [1e-2, 4.0]]), [0, 1]) == [1, 0]
    assert pivots(np.array([[4.0, 1e-2], [1e-2, 1e-4]]), [0, 1]) is None
    problem = three_columns()
    assert better_order(problem, np.array([1.0, 0.2, 0.1, 1.0, 0.2, 1.0, 1.0, 0.1, 1.0]), np.zeros(9, bool)) is None
    theta = np.array([1.0, 0.2, 0.1, 1.0, 0.2, 1.0, 0.01, 1.0, 1.0])
    found = better_order(problem, theta, np.zeros(9, bool))
    assert found is not None
    assert [i for _, i, j in found.groups[0].parameters if i == j] == [1, 0]
    assert found.lead == problem.lead
    assert better_order(problem, theta, np.arange(9) > 5) is None  # what is held stays


@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize("shift", [10.0, 1000.0])
def test_intercepts_may_vary_at_a_far_origin(lead, shift):
    y, X, terms = model(shift, lead=lead, own_origin=True)
    found = iterative.fit(y, X, terms, threads=1)
    assert found.converged
    assert found.monte_carlo.evaluations < 30
    value = objective(y, X, terms)(found.theta)
    assert abs(value - found.criterion) < 5.0 * found.monte_carlo.criterion_se + 1e-3
    assert value < Model(X, terms).fit(y).criterion + 0.02
    finite = np.isfinite(found.monte_carlo.theta_sd)
    assert (found.monte_carlo.theta_se[finite] <= 0.01 * found.monte_carlo.theta_sd[finite]).all()


@pytest.mark.parametrize("lead", [False, True])
def test_fits_do_not_depend_on_the_origin_of_a_covariate(lead):
    y, X, terms = model(0.0, lead=lead)
    here = iterative.fit(y, X, terms, threads=1)
    y, X, terms = model(1e4, lead=lead)
    there = iterative.fit(y, X, terms, threads=1)
    assert there.converged
    assert there.monte_carlo.evaluations <= here.monte_carlo.evaluations + 3
    to_here = np.array([[1.0, 1e4], [0.0, 1.0]])
    error = 5.0 * np.hypot(here.monte_carlo.max_relative, there.monte_carlo.max_relative) + 1e-5
    a, b = to_here @ there.L[0], here.L[0]
    np.testing.assert_allclose(a @ a.T, b @ b.T, rtol=error, atol=1e-5)
    np.testing.assert_allclose(there.beta[1], here.beta[1], atol=1e-5 * here.se[1])
    np.testing.assert_allclose(there.se[1], here.se[1], rtol=1e-5)
    np.testing.assert_allclose(there.sigma, here.sigma, rtol=1e-6)
