"""fit(): every figure at theta-hat against the oracle, the optimum against a multi-start search, lme4 and SAS."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize

import oracle
import problems
from golden_models import SMALL, golden_problem

ENGINES = ["dense", "sparse"]
QUICK = [name for name in problems.REGISTRY if len(problems.build(name).y) <= 90]


def close(actual, expected, rtol, atol=0.0):
    np.testing.assert_allclose(np.asarray(actual, dtype=float), np.asarray(expected, dtype=float), rtol=rtol, atol=atol)


def check_against_oracle(problem, fit):
    """Every figure of a CoreFit is the oracle's at the fit's own theta."""
    ev = oracle.evaluate(problem, fit.theta, reml=fit.reml)
    n, p = problem.X.shape
    close(fit.criterion, oracle.profiled(ev), 1e-10, 1e-10)
    close(fit.sigma, oracle.sigma(ev), 1e-10)
    assert (fit.n, fit.rank) == (n, len(ev.kept))
    assert np.shape(fit.beta) == (p,)
    assert np.shape(fit.cov_beta) == (p, p)
    spread = float(oracle.sigma(ev))
    expected = oracle.cov_beta(ev).astype(float)
    se = np.sqrt(np.diag(expected))
    close(fit.beta / se, oracle.beta(ev).astype(float) / se, 1e-8, 1e-8)
    close(fit.cov_beta / np.outer(se, se), expected / np.outer(se, se), 1e-8, 1e-8)
    for L, expected_L in zip(fit.L, ev.L, strict=True):
        close(L, expected_L, 1e-12, 1e-14)
    for b, expected_b, term in zip(fit.b, oracle.cond_modes(ev), problem.terms, strict=True):
        assert np.shape(b) == (oracle.term_levels(term), oracle.term_z(term).shape[1])
        close(b, expected_b, 1e-8, 1e-8 * spread)
    for v, expected_v in zip(fit.cond_var(), oracle.cond_var(ev), strict=True):
        assert np.shape(v) == np.shape(expected_v)
        close(v, expected_v, 1e-8, 1e-9 * spread**2)
    close(fit.fitted, oracle.fitted(ev), 1e-8, 1e-8 * spread)
    return ev


def predicted_gain(ev):
    """What a Newton step from here would still gain, by the oracle's exact derivatives."""
    g = oracle.gradient(ev).astype(float)
    values, vectors = np.linalg.eigh(oracle.exact_hessian(ev).astype(float))
    return float((((vectors.T @ g) ** 2) / np.maximum(np.abs(values), 1e-3)).sum() / 2)


def multi_start(problem, reml, starts=4):
    """The lowest criterion of a few scipy minimisations of the oracle, from identity and from random theta."""
    rng = np.random.default_rng(7)
    first = problems.thetas(problem)["identity"]

    def value_and_slope(theta):
        ev = oracle.evaluate(problem, theta, reml=reml, dtype=float)
        return float(oracle.profiled(ev)), oracle.gradient(ev)

    found = []
    for k in range(starts):
        theta = first if k == 0 else rng.normal(size=len(first)) * (0.3, 1.0, 3.0)[k % 3]
        run = minimize(value_and_slope, theta, jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-8})
        found.append(float(run.fun))
    return min(found)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize("name", list(problems.REGISTRY))
def test_registry(name, reml, engine):
    if name == "wide_X" and not reml:
        pytest.skip("ML with n / 2 free coefficients has no interior optimum worth pinning")
    problem = problems.build(name)
    fit = problem.fit(reml, engine)
    assert fit.converged, fit.message
    ev = check_against_oracle(problem, fit)
    assert predicted_gain(ev) < 1e-7


@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize("name", QUICK)
def test_no_worse_than_a_multi_start_search(name, reml):
    problem = problems.build(name)
    assert problem.fit(reml).criterion <= multi_start(problem, reml) + 1e-7


@pytest.mark.parametrize("seed", range(24))
def test_random_models_no_worse_than_a_multi_start_search(seed):
    problem = problems.random_problem(seed)
    reml = seed % 3 != 0
    fit = problem.fit(reml)
    assert fit.converged, fit.message
    assert predicted_gain(check_against_oracle(problem, fit)) < 1e-7
    assert fit.criterion <= multi_start(problem, reml) + 1e-7


@pytest.mark.parametrize("name", list(problems.REGISTRY))
def test_engines_agree(name):
    problem = problems.build(name)
    dense, sparse = problem.fit(engine="dense"), problem.fit(engine="sparse")
    close(dense.criterion, sparse.criterion, 1e-10, 1e-10)
    close(dense.theta, sparse.theta, 1e-5, 1e-5)


@pytest.mark.parametrize("name", list(problems.REGISTRY))
def test_diagonal_of_L_is_not_negative(name):
    for L in problems.build(name).fit().L:
        assert np.all(np.diag(L) >= 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
def test_lme4s_fits(name, engine):
    problem, _, lme4 = golden_problem(name)
    fit = problem.fit(lme4["REML"], engine)
    assert fit.converged, fit.message
    assert fit.criterion <= lme4["criterion"] + 1e-8 * abs(lme4["criterion"])
    close(fit.criterion, lme4["criterion"], 1e-8)
    close(fit.theta, lme4["theta"], 1e-4, 1e-4)
    close(fit.sigma, lme4["sigma"], 1e-5)
    close(fit.beta, list(lme4["beta"].values()), 1e-5, 1e-6)
    close(np.sqrt(np.diag(fit.cov_beta)), list(lme4["se"].values()), 1e-4)
    close(fit.fitted[:20], lme4["fitted_head"], 1e-4)
    assert fit.is_singular == lme4["singular"]


@pytest.mark.parametrize("engine", ENGINES)
def test_split_plot_reaches_the_published_seven_digits(engine):
    """SAS PROC MIXED's documentation: block 62.3958333, A * block 15.3819444, residual 9.3611111 (REML)."""
    fit = problems.split_plot().fit(engine=engine)
    inner, block = (L[0, 0] ** 2 * fit.sigma**2 for L in fit.L)
    close([block, inner, fit.sigma**2], [62.3958333, 15.3819444, 9.3611111], 1e-7)
    close([block, inner, fit.sigma**2], [62 + 19 / 48, 15 + 55 / 144, 9 + 13 / 36], 1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_zero_variance_is_exactly_zero(engine):
    problem, _, _ = golden_problem("dyestuff2_singular")
    fit = problem.fit(engine=engine)
    assert fit.theta.tolist() == [0.0]
    assert fit.is_singular
    assert not np.any(fit.b[0])
    assert not np.any(fit.cond_var()[0])


def test_dependent_columns_are_nan_and_nothing_else_changes():
    problem = problems.build("deficient_X")
    kept = oracle.independent_columns(problem.X)
    fit, full = problem.fit(), problem.but(X=np.ascontiguousarray(problem.X[:, kept])).fit()
    dropped = np.setdiff1d(np.arange(problem.X.shape[1]), kept)
    assert np.all(np.isnan(fit.beta[dropped]))
    assert np.all(np.isnan(fit.cov_beta[dropped]))
    assert np.all(np.isnan(fit.cov_beta[:, dropped]))
    assert fit.rank == len(kept)
    close(fit.beta[kept], full.beta, 1e-8, 1e-8)
    close(fit.cov_beta[np.ix_(kept, kept)], full.cov_beta, 1e-8, 1e-10)
    close(fit.criterion, full.criterion, 1e-10)


def test_unobserved_levels_have_a_zero_mode_and_their_prior_variance():
    problem = problems.build("unobserved_levels")
    fit = problem.fit()
    for term, b, v, L in zip(problem.terms, fit.b, fit.cond_var(), fit.L, strict=True):
        missing = np.setdiff1d(np.arange(oracle.term_levels(term)), term.codes)
        assert len(missing)
        assert not np.any(b[missing])
        close(v[missing], np.broadcast_to(fit.sigma**2 * L @ L.T, v[missing].shape), 1e-10, 1e-14)


def test_the_log_tells_what_was_evaluated():
    problem = problems.build("slope")
    fit = problem.fit()
    log = fit.log
    k = len(log)
    assert k >= 1
    assert np.shape(log.theta) == (k, problem.n_theta)
    assert np.shape(log.criterion) == np.shape(log.gradient_norm) == np.shape(log.radius) == (k,)
    for theta, criterion in zip(log.theta, log.criterion, strict=True):
        close(criterion, oracle.criterion(problem, theta), 1e-10)
    assert fit.criterion <= np.min(log.criterion) + 1e-9


def test_start_is_used_and_does_not_change_the_answer():
    problem = problems.build("slope")
    fit = problem.fit()
    again = problem.fit(start=fit.theta)
    assert len(again.log) <= 3
    close(again.log.theta[0], fit.theta, 1e-12)
    close(again.criterion, fit.criterion, 1e-12)
    far = problem.fit(start=np.array([20.0, -5.0, 0.01]))
    close(far.criterion, fit.criterion, 1e-10)
    close(far.theta, fit.theta, 1e-5)


def test_a_start_at_the_saddle_is_left():
    """At theta = 0 the gradient vanishes; the negative curvature shows the way out."""
    problem = problems.build("intercept")
    best = problem.fit()
    assert best.theta[0] > 0
    close(problem.fit(start=np.zeros(1)).criterion, best.criterion, 1e-10)


def test_too_few_evaluations_are_admitted():
    from fastlmm_core.errors import ConvergenceWarning

    problem = problems.build("mixed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = problem.fit(max_evaluations=2)
    assert not fit.converged
    assert fit.message
    assert len(fit.log) <= 2
    check_against_oracle(problem, fit)
