"""The criterion of the compiled core against the dense oracle: every model, theta, engine and both criteria."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import problems
from golden_models import SMALL, golden_problem

ENGINES = ["dense", "sparse"]
RTOL = 1e-10


def relative(value, expected):
    return abs(float(value) - float(expected)) / max(1.0, abs(float(expected)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize("name", list(problems.REGISTRY))
def test_registry(name, reml, engine):
    problem = problems.build(name)
    objective = problem.objective(reml, engine)
    assert objective.n_theta == problem.n_theta
    for at in problems.references(name, reml):
        assert relative(objective(at.theta), at.criterion) < RTOL, at.label


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(20))
def test_random_models(seed, engine):
    problem = problems.random_problem(seed)
    for reml in (True, False):
        objective = problem.objective(reml, engine)
        for at in problems.references(seed, reml):
            assert relative(objective(at.theta), at.criterion) < RTOL, at.label


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", [101, 102, 103])
def test_random_models_of_200_rows(seed, engine):
    problem = problems.random_problem(seed, n_max=200)
    objective = problem.objective(True, engine)
    for label, theta in problems.thetas(problem, seed).items():
        assert relative(objective(theta), oracle.criterion(problem, theta)) < RTOL, label


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluations_leave_no_trace(engine):
    """A value does not depend on what was evaluated before it."""
    problem = problems.build("mixed_weights")
    objective = problem.objective(True, engine)
    points = list(problems.thetas(problem).values())
    first = [objective(theta) for theta in points]
    for theta in reversed(points):
        objective.gradient(theta)
        objective.hessian(theta)
    assert [objective(theta) for theta in points] == first


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
def test_lme4s_criterion_at_lme4s_theta(name, engine):
    problem, _, lme4 = golden_problem(name)
    objective = problem.objective(lme4["REML"], engine)
    assert relative(objective(np.array(lme4["theta"])), lme4["criterion"]) < 1e-11


@pytest.mark.parametrize("engine", ENGINES)
def test_any_sign_of_L_gives_the_same_value(engine):
    """Sigma = LL' does not see the signs of L's columns."""
    problem = problems.build("three_columns")
    objective = problem.objective(True, engine)
    theta = problems.thetas(problem)["ordinary"]
    columns = np.array([j for _, j in oracle.entries(problem.terms[0])])
    for j in range(3):
        assert relative(objective(np.where(columns == j, -theta, theta)), objective(theta)) < 1e-13


def test_start_is_a_valid_theta():
    problem = problems.build("mixed")
    objective = problem.objective()
    assert np.shape(objective.start) == (problem.n_theta,)
    assert np.isfinite(objective(objective.start))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
def test_integer_weights_are_repeated_rows(reml, engine):
    """With y'Wy and Z'WZ the same, r^2 and log|M| are the same; only nu, and log w, tell the two criteria apart."""
    problem = problems.build("integer_weights")
    times = problem.weights.astype(int)
    repeated = problem.but(weights=None).rows(np.repeat(np.arange(len(times)), times))
    weighted, plain = problem.objective(reml, engine), repeated.objective(reml, engine)
    for theta in problems.thetas(problem).values():
        ev = oracle.evaluate(problem, theta, reml=reml)
        n_more = float(len(repeated.y) - len(problem.y))
        nu, more = float(ev.nu), float(ev.nu) + n_more
        profile = [v * (1 + np.log(2 * np.pi * float(ev.r2) / v)) for v in (nu, more)]
        expected = weighted(theta) - profile[0] + profile[1] + np.log(problem.weights).sum()
        assert relative(plain(theta), expected) < RTOL
