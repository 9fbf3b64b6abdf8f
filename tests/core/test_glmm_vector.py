"""Models whose family has several parameters: deviance and gradient against dense NumPy, fits, their covariance."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import oracle_glmm as dense
from fastlmm_core.core import Control, Term
from fastlmm_core.core.glmm import Model, Ordinal, ZeroInflated, as_family
from fastlmm_core.errors import ModelError
from fastlmm_core.families import Hurdle

OWN = {"negativebinomial": [0.3], "negativebinomial1": [-0.2], "truncated_nbinom2": [0.3], "truncated_nbinom1": [-0.2]}
NAMES = [
    *(f"zi {name}" for name in ("poisson", "negativebinomial", "negativebinomial1")),
    *(f"hurdle {name}" for name in ("truncated_poisson", "truncated_nbinom2", "truncated_nbinom1")),
    *(f"ordinal {link}" for link in Ordinal.links),
]


def problem(name, widths=(2, 1), n=80, seed=0):
    """Arrays, x = (theta, beta, rho) and what the model takes beside them."""
    rng = np.random.default_rng([seed, *map(ord, name)])
    x = rng.normal(size=n)
    kind, of = name.split()
    if kind == "ordinal":
        family, rho = Ordinal(of, levels=4), [1.2, 2.1, 3.3]
        X, beta = np.column_stack([x + 5.0]), [0.4]
    else:
        zero = np.column_stack([np.ones(n), rng.normal(size=n)])
        family, rho = (ZeroInflated if kind == "zi" else Hurdle)(as_family(of), zero), [-0.7, 0.5, *OWN.get(of, [])]
        X, beta = np.column_stack([np.ones(n), x]), [0.6, 0.4]
    terms, theta, eta = [], [], X @ beta
    for k, l in enumerate(widths):
        q = 6 - k
        z = np.column_stack([np.ones(n), rng.normal(size=n)]) if l > 1 else None
        term = Term(rng.permutation(np.arange(n) % q), z)
        factor = 0.5 * np.eye(l)
        factor[np.tril_indices(l, -1)] = 0.15
        theta += [factor[r, c] for r, c in term.index()]
        b = (np.clip(rng.normal(size=(q, l)), -1, 1) @ factor.T)[term.codes]
        eta = eta + (b[:, 0] if z is None else (z * b).sum(1))
        terms.append(term)
    given = {"freq_weights": rng.integers(1, 4, n).astype(float), "weights": rng.integers(1, 3, n).astype(float)}
    given["offset"] = 0.02 * rng.normal(size=n)
    y = family.simulate(rng, family.mean(eta + given["offset"]), np.ones(n), np.array(rho))
    return family, y, X, terms, np.concatenate([theta, beta, rho]), given


def oracle_of(family, y, X, terms, given):
    """The dense problem."""
    return dense.Dense(y, X, terms, family, given["weights"], given["freq_weights"], given["offset"])


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("widths", [(2,), (2, 1, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_deviance_and_gradient(name, widths, engine):
    family, y, X, terms, x, given = problem(name, widths)
    deviance = Model(X, terms, family, control=Control(engine=engine), **given).objective(y)
    value, gradient, hessian = deviance.derivatives(x)
    assert_allclose(value, oracle_of(family, y, X, terms, given).laplace(x), rtol=1e-11)
    expected = dense.differences(deviance, x, 1e-3)
    assert (np.abs(gradient - expected) < 1e-9 * (1 + np.abs(expected)) + 1e-9).all()
    assert_allclose(hessian, hessian.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_optimum_is_stationary_and_has_its_covariance(name):
    family, y, X, terms, _, given = problem(name, (1,), n=300)
    model = Model(X, terms, family, **given)
    fit = model.fit(y)
    assert fit.converged
    assert len(fit.log.criterion) < 25
    x = np.concatenate([fit.theta, fit.beta, fit.rho])
    deviance = model.objective(y)
    assert_allclose(fit.criterion, deviance(x), rtol=1e-11)
    assert np.abs(deviance.gradient(x) * np.sqrt(np.diag(fit.cov))).max() < 1e-3
    second = np.array([dense.differences(lambda v, j=j: deviance.gradient(v)[j], x) for j in range(len(x))])
    assert_allclose(fit.cov, 2 * np.linalg.inv(second), rtol=1e-4, atol=1e-7)
    b = np.concatenate([part.ravel() for part in fit.b])
    assert_allclose(fit.eta, X @ fit.beta + dense.dense_z(terms) @ b + given["offset"], rtol=1e-9, atol=1e-9)
    again = model.fit(y, start=x)
    assert_allclose(again.criterion, fit.criterion, rtol=1e-10)


def test_a_hurdle_is_two_likelihoods():
    """The zeros' logistic regression, and the counts above them."""
    family, y, X, terms, _, _ = problem("hurdle truncated_nbinom2", (1,), n=400)
    fit = Model(X, terms, family).fit(y)
    seen = y > 0
    counts = Model(X[seen], [Term(terms[0].codes[seen])], "truncated_nbinom2").fit(y[seen])
    assert_allclose(fit.theta, counts.theta, rtol=1e-3)
    assert_allclose(fit.beta, counts.beta, rtol=1e-4)
    assert_allclose(fit.se, counts.se, rtol=1e-3)
    p = family.zero_probability(fit.rho)
    assert_allclose(family.zero.T @ (~seen - p), 0.0, atol=1e-3)
    zeros = np.log(np.where(seen, 1 - p, p)).sum()
    assert_allclose(fit.criterion, counts.criterion - 2 * zeros, rtol=1e-8)
    information = (family.zero.T * (p * (1 - p))) @ family.zero
    assert_allclose(fit.cov[-3:-1, -3:-1], np.linalg.inv(information), rtol=1e-3)


def test_three_ordered_categories_collapse_to_a_binary_response():
    """With the middle category nearly empty the thresholds bracket the binary model's intercept."""
    rng = np.random.default_rng(2)
    g, x = np.repeat(np.arange(30), 20), rng.normal(size=600)
    eta = 0.8 * x + 0.7 * rng.normal(size=30)[g]
    y = np.where(rng.random(600) < 1 / (1 + np.exp(-eta)), 2.0, 0.0)
    binary = Model(np.column_stack([np.ones(600), x]), [Term(g)], "binomial").fit(y / 2)
    y[7] = 1.0
    fit = Model(x[:, None], [Term(g)], Ordinal(levels=3)).fit(y)
    assert_allclose(fit.beta[0], binary.beta[1], rtol=0.02)
    assert_allclose(fit.theta, binary.theta, rtol=0.02)
    assert fit.rho[0] < -binary.beta[0] + 0.01
    assert fit.rho[1] > -binary.beta[0] - 0.01


def test_origin_and_intercept_of_an_ordinal_model_do_not_matter():
    family, y, X, terms, _, _ = problem("ordinal logit", (1,), n=300)
    first = Model(X, terms, family).fit(y)
    moved = Model(X + 1e5, terms, family).fit(y)
    assert_allclose(moved.criterion, first.criterion, rtol=1e-9)
    assert_allclose(moved.rho - first.rho, 1e5 * first.beta[0], rtol=1e-5)
    constant = Model(np.column_stack([np.ones(300), X]), terms, family).fit(y)
    assert np.isnan(constant.beta[0])
    assert_allclose(constant.criterion, first.criterion, rtol=1e-11)
    none = Model(None, terms, family).fit(y)
    assert none.criterion > first.criterion


def test_many_responses():
    family, y, X, terms, _, _ = problem("zi poisson", (1,), n=200)
    model = Model(X, terms, family)
    other = np.where(np.arange(200) % 5 == 0, 0.0, y)
    many = model.fit_many(np.array([y, other, np.ones(200)]))
    assert_allclose(many.rho[1], model.fit(other).rho, rtol=1e-6)
    assert many.rho.shape == (3, 2)
    assert np.isnan(many.rho[2]).all()


def test_refusals():
    family, _, X, terms, _, _ = problem("zi poisson", (1,))
    with pytest.raises(ModelError, match="n_agq=5 is for the families with compiled rows"):
        Model(X, terms, family, n_agq=5)
    with pytest.raises(ModelError, match="observed weights only"):
        Model(X, terms, family, control=Control(weights="expected"))
