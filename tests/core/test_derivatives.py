"""Gradient and average-information Hessian of the compiled core against the oracle and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import problems
from fastlmm_core.errors import ModelError, NumericalError

ENGINES = ["dense", "sparse"]
DIFFERENCED = ["intercept", "slope", "slope_diag", "levels_shorter_than_columns", "nested", "crossed_weights", "no_X"]
DIFFERENCED += ["shared_codes", "unobserved_levels", "factor_slope", "mixed_weights", "deficient_X", "wide_X"]


def worst(value, expected):
    """Largest disagreement relative to the largest entry (or to one, where the whole is smaller)."""
    expected = np.asarray(expected, dtype=float)
    assert np.shape(value) == expected.shape
    assert np.all(np.isfinite(value))
    return float(np.abs(value - expected).max() / max(1.0, np.abs(expected).max()))


def stencil(function, theta, h):
    """(n_theta, ...): fourth-order central differences of a function of theta."""
    rows = []
    for a in range(len(theta)):
        step = np.zeros(len(theta))
        step[a] = h
        one = np.asarray(function(theta + step)) - np.asarray(function(theta - step))
        two = np.asarray(function(theta + 2 * step)) - np.asarray(function(theta - 2 * step))
        rows.append((8 * one - two) / (12 * h))
    return np.array(rows)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize("name", list(problems.REGISTRY))
def test_registry(name, reml, engine):
    objective = problems.build(name).objective(reml, engine)
    for at in problems.references(name, reml):
        assert worst(objective.gradient(at.theta), at.gradient) < 1e-8, at.label
        assert worst(objective.hessian(at.theta), at.hessian) < 1e-7, at.label


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(20))
def test_random_models(seed, engine):
    problem = problems.random_problem(seed)
    for reml in (True, False):
        objective = problem.objective(reml, engine)
        for at in problems.references(seed, reml):
            assert worst(objective.gradient(at.theta), at.gradient) < 1e-8, at.label
            assert worst(objective.hessian(at.theta), at.hessian) < 1e-7, at.label


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize("name", DIFFERENCED)
def test_gradient_against_differences_of_the_criterion(name, reml, engine):
    problem = problems.build(name)
    objective = problem.objective(reml, engine)
    for label in ("identity", "ordinary", "zero", "singular", "first_zero", "term_zero"):
        theta = problems.thetas(problem)[label]
        assert worst(objective.gradient(theta), stencil(objective, theta, 1e-3)) < 1e-6, label


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", DIFFERENCED)
def test_exact_hessian_is_the_average_information_and_what_it_leaves_out(name, engine):
    """`H_exact = AI + nu f_a'P f_b / r^2 - tr(Q V_a Q V_b)`, and H_exact is the gradient's derivative."""
    problem = problems.build(name)
    for reml in (True, False):
        objective = problem.objective(reml, engine)
        for label in ("ordinary", "zero", "singular"):
            theta = problems.thetas(problem)[label]
            ev = oracle.evaluate(problem, theta, reml=reml)
            left_out = (oracle.exact_hessian(ev) - oracle.ai_hessian(ev)).astype(float)
            differenced = stencil(objective.gradient, theta, 1e-3)
            assert worst(objective.hessian(theta) + left_out, differenced) < 1e-6, label


@pytest.mark.parametrize("engine", ENGINES)
def test_hessian_is_symmetric(engine):
    problem = problems.build("mixed_weights")
    objective = problem.objective(True, engine)
    for theta in problems.thetas(problem).values():
        H = objective.hessian(theta)
        np.testing.assert_allclose(H, H.T, rtol=1e-12, atol=1e-12 * np.abs(H).max())


@pytest.mark.parametrize("name", ["intercept", "crossed", "nested", "mixed", "shared_codes"])
def test_gradient_at_exactly_zero_is_exactly_zero(name):
    """The criterion is even in each column of L: at L = 0 there is no slope, whatever the rounding."""
    problem = problems.build(name)
    for engine in ENGINES:
        assert not np.any(problem.objective(True, engine).gradient(np.zeros(problem.n_theta)))


GIVEN_SIGMA = ["intercept", "slope", "nested", "crossed_weights", "no_X", "mixed_weights", "wide_X"]


@pytest.mark.parametrize("engine", [*ENGINES, "cholmod"])
@pytest.mark.parametrize("name", GIVEN_SIGMA)
def test_the_deviance_at_a_given_sigma(name, engine):
    """Its least value is the profiled one; its gradient is that of its differences, its Hessian the information."""
    problem = problems.build(name)
    objective = problem.objective(False, engine)
    for label, user in problems.thetas(problem).items():
        theta = objective.to_conditioned(user)
        at = objective.at_conditioned(theta)
        best = 0.5 * (at.log_r2 - np.log(objective.nu))
        assert abs(at.given_sigma(best).value - at.value) < 1e-10 * max(1.0, abs(at.value)), label
        for tau in (best - 0.3, best + 0.2):

            def deviance(x):
                return objective.at_conditioned(x[1:]).given_sigma(x[0]).value

            def gradient(x):
                return objective.at_conditioned(x[1:]).given_sigma(x[0]).derivatives()[0]

            x = np.append(tau, theta)
            slope, hessian = at.given_sigma(tau).derivatives()
            np.testing.assert_array_equal(gradient(x), slope)
            assert worst(slope, stencil(deviance, x, 1e-3)) < 1e-6, label
            differenced = stencil(gradient, x, 1e-3)
            assert worst(hessian[0], differenced[0]) < 1e-6, label  # along sigma it is exact
            np.testing.assert_allclose(hessian, hessian.T, rtol=1e-13)


def test_a_given_sigma_is_for_the_deviance_and_finite():
    problem = problems.build("slope")
    theta = np.zeros(problem.n_theta)
    with pytest.raises(ModelError, match="REML"):
        problem.objective(True).at(theta).given_sigma(0.0)
    with pytest.raises(NumericalError, match="overflows"):
        problem.objective(False).at(theta).given_sigma(-400.0)
