"""InstEval, 73,421 rows: both engines at lme4's optimum, where dense n x n algebra cannot follow."""

from __future__ import annotations

import numpy as np
import pytest

from golden_models import factor, golden, ordered, table
from problems import Problem, ProblemTerm


def insteval(name):
    data, figures = table("InstEval"), golden(name)
    y = data["y"].astype(float)
    one = np.ones((len(y), 1))
    levels = {key: value["levels"] for key, value in figures["columns"].items() if value["type"] == "factor"}
    service = np.array([str(v) for v in data["service"]]) == "1"
    s, d, dept = (ProblemTerm(factor(data[column])[0]) for column in ("s", "d", "dept"))
    if name == "insteval_crossed_ml":
        X, terms = np.column_stack([one, service]), (s, d, ProblemTerm(factor(data["dept"], data["service"])[0]))
    elif name == "insteval_crossed_reml":
        X, terms = one, (s, d, dept)
    elif name == "insteval_fixed":
        studage, lectage = (ordered(data[column], levels[column]) for column in ("studage", "lectage"))
        X, terms = np.column_stack([one, studage, lectage, service]), (s, d)
    else:
        X = np.column_stack([one, service])
        terms = (s, d, ProblemTerm(dept.codes, X.copy()))
    return Problem(y, X, terms, name=name), figures


@pytest.fixture(
    scope="module", params=["insteval_crossed_ml", "insteval_crossed_reml", "insteval_fixed", "insteval_slope"]
)
def model(request):
    return insteval(request.param)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_lme4s_optimum_is_ours(model, engine):
    problem, lme4 = model
    objective = problem.objective(lme4["REML"], engine)
    theta = np.array(lme4["theta"])
    assert abs(objective(theta) - lme4["criterion"]) < 1e-11 * lme4["criterion"]
    # stationary: a Newton step has nothing to gain
    g, H = objective.gradient(theta), objective.hessian(theta)
    assert g @ np.linalg.solve(H, g) / 2 < 1e-6


def test_engines_agree_on_the_derivatives(model):
    problem, lme4 = model
    theta = np.array(lme4["theta"]) * 1.3 + 0.05
    dense, sparse = (problem.objective(lme4["REML"], engine) for engine in ("dense", "sparse"))
    np.testing.assert_allclose(dense(theta), sparse(theta), rtol=1e-12)
    for one, two in ((dense.gradient(theta), sparse.gradient(theta)), (dense.hessian(theta), sparse.hessian(theta))):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-8 * np.abs(two).max())


def test_gradient_against_differences(model):
    problem, lme4 = model
    theta = np.array(lme4["theta"]) * 1.3 + 0.05
    objective = problem.objective(lme4["REML"])
    gradient, h = objective.gradient(theta), 1e-4
    for a, step in enumerate(np.eye(len(theta)) * h):
        difference = (objective(theta + step) - objective(theta - step)) / (2 * h)
        assert abs(gradient[a] - difference) < 1e-5 * max(1.0, np.abs(gradient).max())


def test_fit(model):
    problem, lme4 = model
    fit = problem.fit(lme4["REML"])
    assert fit.converged, fit.message
    # never above lme4, and as near as its own stopping rule came: the criterion is flat in the smallest variances, so
    # the distance between the two thetas is measured by the criterion's own curvature
    assert fit.criterion <= lme4["criterion"] + 1e-12 * lme4["criterion"]
    assert abs(fit.criterion - lme4["criterion"]) < 1e-9 * lme4["criterion"]
    apart = fit.theta - lme4["theta"]
    assert apart @ problem.objective(lme4["REML"]).hessian(fit.theta) @ apart / 2 < 1e-5
    np.testing.assert_allclose(fit.theta, lme4["theta"], atol=1e-4)
    np.testing.assert_allclose(fit.sigma, lme4["sigma"], rtol=1e-6)
    np.testing.assert_allclose(fit.beta, list(lme4["beta"].values()), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.cov_beta)), list(lme4["se"].values()), rtol=1e-4)
    np.testing.assert_allclose(fit.fitted[:20], lme4["fitted_head"], rtol=1e-4)
