"""Responses whose likelihood has walls, several modes or weights of the wrong sign."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastlmm_core.core import Term
from fastlmm_core.core.glmm import Hurdle, Model, ZeroInflated
from fastlmm_core.errors import ConvergenceWarning
from fastlmm_core.families import NegativeBinomial1, TruncatedNegativeBinomial1, TruncatedPoisson


def gradient_in_errors(fit):
    """Largest derivative where the fit ended, in units of the standard errors."""
    with fit.engine() as engine:
        _, gradient, _ = engine.derivatives(fit.psi)
    x = np.sqrt(np.diag(np.nan_to_num(fit.cov)))
    return np.abs(np.linalg.solve(fit.design.to_user.T, gradient) * x[~np.isnan(fit.cov.diagonal())]).max()


@pytest.mark.parametrize("seed", range(4))
def test_means_that_lines_would_leave(seed):
    """Least squares of identity-link counts has negative means: the search begins at a constant one."""
    rng = np.random.default_rng(seed)
    g, x = rng.integers(0, 12, 300), rng.exponential(1.0, 300) ** 2
    mean = np.maximum(1.5 - 0.8 * x + 0.2 * rng.normal(size=12)[g], 0.05)
    y = rng.poisson(mean).astype(float)
    fit = Model(np.column_stack([np.ones(300), x]), [Term(g)], "poisson", link="identity").fit(y)
    assert np.isfinite(fit.criterion)
    assert (fit.mu > 0).all()


def heavy(seed, truncated):
    """Counts far more dispersed than their means, whose observed weights are negative in places."""
    rng = np.random.default_rng(seed)
    n, q = 240, 15
    g, x = rng.integers(0, q, n), rng.normal(size=n)
    mean = np.exp(0.8 + 0.4 * x + (1.2 * rng.normal(size=q))[g] + (0.6 * rng.normal(size=q))[g] * x)
    y = rng.poisson(rng.gamma(mean / 0.7, 0.7))
    if truncated:
        y = np.maximum(y, 1)
    y = np.where(rng.random(n) < 0.3, 0, y).astype(float)
    family = Hurdle(TruncatedNegativeBinomial1()) if truncated else ZeroInflated(NegativeBinomial1())
    terms = [Term(g, np.column_stack([np.ones(n), x]), cov="diag")]
    return y, Model(np.column_stack([np.ones(n), x]), terms, family)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_modes_are_found_from_nothing(seed, truncated):
    """The deviance at the estimates is the same from the modes that the search came with and from none."""
    y, model = heavy(seed, truncated)
    fit = model.fit(y)
    assert fit.converged
    assert gradient_in_errors(fit) < 1e-3
    x = np.concatenate([fit.theta, fit.beta, fit.rho])
    assert_allclose(model.objective(y)(x), fit.criterion, rtol=1e-11)


def test_modes_go_on_where_the_search_left_them():
    """Of two modes it is that of the search which variances, effects and means are of."""
    y, model = heavy(0, False)
    fit = model.fit(y)
    with fit.engine() as engine:
        assert_allclose(engine.value(fit.psi), fit.criterion, rtol=1e-11)
    one = Model(np.ones((30, 1)), [Term(np.arange(30) % 6)], "poisson").fit(np.arange(30.0) % 7)
    (modes,) = one.place
    assert modes.shape == (6, 1)
    with one.engine() as engine:
        engine.begin_at((modes + 0.5,))
        assert_allclose(engine.value(one.psi), one.criterion, rtol=1e-12)
        with pytest.raises(ValueError, match="do not belong"):
            engine.begin_at((np.zeros((5, 1)),))


def test_estimates_on_the_edge_have_no_errors():
    """Nothing to differentiate at a wall: NaN, and a warning that says so."""
    y, model = heavy(1, False)
    fit = model.fit(y)
    fit.psi[-1] = np.inf  # as a search that has run away
    with pytest.warns(ConvergenceWarning, match="there are no standard errors"):
        assert np.isnan(fit.se).all()


@pytest.mark.parametrize("seed", [9, 69, 71])
def test_a_minimum_close_to_a_limit_is_found(seed):
    """Hardly any overdispersion: Poisson's deviance is lower than where the search has come, yet not the lowest."""
    rng = np.random.default_rng(seed)
    n, q = 80, 15
    g, x = rng.integers(0, q, n), rng.normal(size=n)
    mean = np.exp(0.3 * rng.normal(size=q)[g] + 0.3 * x)
    y = np.maximum(rng.poisson(rng.gamma(mean / 0.2, 0.2)), 1.0)
    y = np.where(rng.random(n) < 0.4, 0, y)
    X = np.column_stack([np.ones(n), x])
    fit = Model(X, [Term(g)], Hurdle(TruncatedNegativeBinomial1())).fit(y)
    assert fit.converged
    assert not fit.at_limit
    assert fit.criterion < Model(X, [Term(g)], Hurdle(TruncatedPoisson())).fit(y).criterion - 5e-4
    assert gradient_in_errors(fit) < 1e-3
