"""Forms in the inverse of the mixed-model equations against dense algebra on V."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import prediction_oracle
import problems
from fastlmm_core.inference.joint_inverse import JointInverse, row_set

ENGINES = ["dense", "sparse"]
LABELS = ["identity", "ordinary", "small", "zero", "term_zero", "singular", "first_zero"]


def worst(value, expected):
    expected = np.asarray(expected, dtype=float)
    assert np.all(np.isfinite(value))
    return float(np.abs(value - expected).max() / max(1.0, np.abs(expected).max()))


def check(problem, seed, engine):
    objective = problem.objective(True, engine)
    x, parts = prediction_oracle.random_combinations(problem, 25, seed)
    fitted = [(np.asarray(t.codes), oracle.term_z(t)) for t in problem.terms]
    for label, theta in problems.thetas(problem, seed).items():
        if label not in LABELS:
            continue
        ev = oracle.evaluate(problem, theta, dtype=float)
        inverse = JointInverse(objective, theta)
        assert inverse.sigma2 == pytest.approx(float(oracle.sigma(ev)) ** 2, rel=1e-9)
        # levels in any combination
        rows = row_set(objective.cross, x, parts)
        covariance = prediction_oracle.prediction_covariance(ev, x, parts)
        assert worst(inverse.scale * inverse.forms(rows), np.diag(covariance)) < 1e-8, label
        assert worst(inverse.scale * inverse.covariance(rows), covariance) < 1e-8, label
        # the rows of the fit
        rows = row_set(objective.cross, problem.X, fitted)
        hat = np.diag(prediction_oracle.prediction_covariance(ev, problem.X, fitted))
        assert worst(inverse.scale * inverse.forms(rows), hat) < 1e-8, label
        w = 1.0 if problem.weights is None else problem.weights
        leverage = w * inverse.scale * inverse.forms(rows) / inverse.sigma2
        assert worst(leverage, np.diag(prediction_oracle.hat_matrix(ev))) < 1e-8, label


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", list(problems.REGISTRY))
def test_registry(name, engine):
    check(problems.build(name), 3, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(12))
def test_random_models(seed, engine):
    check(problems.random_problem(seed), seed, engine)


def test_rows_that_were_fitted_need_no_solve(monkeypatch):
    problem = problems.build("crossed_three")
    objective = problem.objective(True, "sparse")
    inverse = JointInverse(objective, problems.thetas(problem)["ordinary"])
    monkeypatch.setattr(JointInverse, "solved_forms", None)
    rows = row_set(objective.cross, problem.X, [(np.asarray(t.codes), t.z) for t in problem.terms])
    assert np.isfinite(inverse.forms(rows)).all()


def test_no_rows():
    problem = problems.build("crossed")
    objective = problem.objective()
    inverse = JointInverse(objective, objective.start)
    rows = row_set(objective.cross, problem.X[:0], [(np.asarray(t.codes)[:0], None) for t in problem.terms])
    assert inverse.forms(rows).shape == (0,)
    assert inverse.covariance(rows).shape == (0, 0)
