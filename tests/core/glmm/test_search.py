"""Searches that the model Hessian does not bring to their end, limits of families, starts that go astray."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastlmm_core.core import Control, Term
from fastlmm_core.core.glmm import Model
from fastlmm_core.core.glmm.search import FEW


def counts(rng, n=160, groups=12, spread=1.0, own=0.7):
    """Counts with an effect of a group and one of each row, and the terms of both."""
    g = rng.integers(0, groups, n)
    eta = 0.8 + spread * rng.normal(size=groups)[g] + own * rng.normal(size=n)
    return rng.poisson(np.exp(eta)).astype(float), [Term(np.arange(n)), Term(g)]


def gradient_in_errors(model, fit, y):
    """Largest derivative in units of the standard errors."""
    x = np.concatenate([fit.theta, fit.beta, [fit.rho] * fit.family.n_extra])
    return np.abs(model.objective(y).gradient(x) * np.sqrt(np.diag(np.nan_to_num(fit.cov)))).max()


@pytest.mark.parametrize("family", ["negativebinomial", "negativebinomial1"])
@pytest.mark.parametrize("seed", range(3))
def test_effects_as_fine_as_the_rows_beside_overdispersion(family, seed):
    """Two models of one thing: the model Hessian has a negative eigenvalue at the minimum."""
    y, terms = counts(np.random.default_rng(seed))
    model = Model(np.ones((len(y), 1)), terms, family)
    fit = model.fit(y)
    assert fit.converged
    assert len(fit.log) < 60
    assert gradient_in_errors(model, fit, y) < 1e-3


def test_differences_lead_on_where_the_model_hessian_does_not():
    """Against the same search that keeps the model Hessian to its end."""
    rng = np.random.default_rng(107)
    inner, outer = np.arange(80) % 20, np.arange(80) % 20 // 4
    X = np.column_stack([np.ones(80), rng.normal(size=80)])
    eta = 0.2 + 0.1 * rng.normal(size=20)[inner]
    y = np.exp(eta) + 0.3 * rng.normal(size=80)
    model = Model(X, [Term(inner), Term(outer)], "gaussian", link="log")
    fit = model.fit(y)
    assert fit.converged
    assert gradient_in_errors(model, fit, y) < 1e-3
    short = Model(X, [Term(inner), Term(outer)], "gaussian", link="log", control=Control(max_evaluations=FEW))
    assert len(short.fit(y).log) <= 2 * FEW
    assert short.fit(y).criterion >= fit.criterion - 1e-9


@pytest.mark.parametrize("most", [1, 5])
def test_a_small_limit_on_evaluations_holds(most):
    y, terms = counts(np.random.default_rng(3))
    fit = Model(np.ones((len(y), 1)), terms[1:], "poisson", control=Control(max_evaluations=most)).fit(y)
    assert not fit.converged
    assert len(fit.log) == most


@pytest.mark.parametrize("family", ["negativebinomial", "negativebinomial1"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("size", [0.5, 3.0])
def test_without_overdispersion_the_fit_is_the_poisson_one(family, several, size):
    rng = np.random.default_rng(5)
    g, h = np.arange(240) % 24, np.arange(240) // 30
    eta = size + 0.8 * rng.normal(size=24)[g]
    y = rng.binomial(400, np.exp(eta) / 400).astype(float)  # less variance than Poisson's
    terms = [Term(g), Term(h)] if several else [Term(g)]
    X = np.ones((240, 1))
    fit, poisson = (Model(X, terms, name).fit(y) for name in (family, "poisson"))
    assert fit.converged
    assert fit.at_limit
    assert len(fit.log) < 45
    assert_allclose(fit.criterion, poisson.criterion, rtol=0, atol=2e-4)
    assert_allclose(fit.beta, poisson.beta, rtol=1e-4)


def test_what_a_failed_search_for_modes_leaves_is_not_used():
    rng = np.random.default_rng(2)
    y, terms = counts(rng, spread=0.5)
    model = Model(np.ones((len(y), 1)), terms, "poisson")
    deviance = model.objective(y)
    engine, x = model.engine, deviance.start
    expected = deviance(x + 1e-3)
    deviance.derivatives(x)
    assert engine.in_hand
    engine.factored(engine.out[1] * 1e6)  # as a trial point does that ends without modes
    assert not engine.in_hand
    assert_allclose(deviance(x + 1e-3), expected, rtol=1e-12)


def test_counts_over_four_orders_of_magnitude():
    """The first step leads to predicted modes at which the weights overflow a factor."""
    rng = np.random.default_rng(11)
    n = 300
    g, x = np.arange(n) % 15, np.arange(n) % 2
    eta = 1.0 + x + 1.2 * rng.normal(size=15)[g] + 1.8 * rng.normal(size=n)
    y = rng.poisson(np.exp(np.minimum(eta, 7.0))).astype(float)
    y[rng.random(n) < 0.3] = 0.0
    model = Model(np.column_stack([np.ones(n), x]), [Term(np.arange(n)), Term(g)], "poisson")
    fit = model.fit(y)
    assert fit.converged
    assert gradient_in_errors(model, fit, y) < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_a_start_that_scoring_leads_astray(seed):
    """Heavy tails and a wide x: coefficients of several hundreds are no start."""
    rng = np.random.default_rng(seed)
    g = np.arange(230) % 30
    X = np.column_stack([np.ones(230), 10.0 * rng.normal(size=230)])
    mu = np.exp(0.5 + 2.0 * rng.normal(size=30)[g])
    y = rng.wald(mu, 4.0 * mu) + 1e-9
    fit = Model(X, [Term(g), Term(np.arange(230) % 7)], "inverse_gaussian", link="log").fit(y)
    assert fit.converged
    assert np.abs(fit.beta).max() < 5.0


@pytest.mark.parametrize("several", [False, True])
def test_an_objective_keeps_its_response_whatever_else_the_model_does(several):
    rng = np.random.default_rng(3)
    y, terms = counts(rng)
    model = Model(np.ones((len(y), 1)), terms if several else terms[1:], "poisson")
    first, second = model.objective(y), model.objective(y[::-1].copy())
    x = first.start
    expected = first(x), second(x)
    assert expected[0] != expected[1]
    model.fit(y[::-1].copy())
    assert_allclose((first(x), second(x)), expected, rtol=1e-12)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: (first, second)[k % 2](x), range(80)))
    assert_allclose(found, np.tile(expected, 40), rtol=1e-12)


def test_fits_of_one_model_answer_from_several_threads():
    rng = np.random.default_rng(4)
    y, terms = counts(rng)
    model = Model(np.ones((len(y), 1)), terms, "poisson")
    responses = [rng.permutation(y) for _ in range(6)]
    alone = [model.fit(r).complete() for r in responses]
    fits = [model.fit(r) for r in responses]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda fit: (fit.eta, fit.cov, fit.b[0]), fits))
    for fit, (eta, cov, b) in zip(alone, found, strict=True):
        assert_allclose(eta, fit.eta, atol=1e-9)
        assert_allclose(cov, fit.cov, rtol=1e-6)
        assert_allclose(b, fit.b[0], atol=1e-9)
