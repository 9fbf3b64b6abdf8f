"""Models whose family has several parameters: deviance and gradient against dense NumPy, fits, their covariance."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import oracle_glmm as dense
from fastlmm_core.core import Control, Term
from fastlmm_core.core.glmm import Model, Ordinal, ZeroInflated, as_family
from fastlmm_core.errors import ModelError
from fastlmm_core.families import Hurdle, VectorFamily

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
        z = np.column_stack([np.ones(n), rng.normal(size=(n, l - 1))]) if l > 1 else None
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


@pytest.mark.parametrize("l", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_quadrature(name, l):
    family, y, X, terms, x, given = problem(name, (l,))
    deviance = Model(X, terms, family, n_agq=5 if l == 1 else 3, **given).objective(y)
    value, gradient, _ = deviance.derivatives(x)
    assert_allclose(value, oracle_of(family, y, X, terms, given).quadrature(x, 5 if l == 1 else 3), rtol=1e-11)
    expected = dense.differences(deviance, x, 1e-3)
    assert (np.abs(gradient - expected) < 1e-9 * (1 + np.abs(expected)) + 1e-9).all()


def test_quadrature_of_three_effects_and_its_limits():
    family, y, X, terms, x, given = problem("ordinal logit", (3,))
    deviance = Model(X, terms, family, n_agq=3, **given).objective(y)
    value, gradient, _ = deviance.derivatives(x)
    assert_allclose(value, oracle_of(family, y, X, terms, given).quadrature(x, 3), rtol=1e-11)
    expected = dense.differences(deviance, x, 1e-3)
    assert (np.abs(gradient - expected) < 1e-9 * (1 + np.abs(expected)) + 1e-9).all()
    one = Model(X, terms, family, n_agq=1, **given).objective(y)(x)
    assert 0 < abs(value - one) < 5
    family, y, X, terms, x, given = problem("ordinal logit", (1, 1))
    with pytest.raises(ModelError, match="needs one grouping factor"):
        Model(X, terms, family, n_agq=3, **given)


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


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_categories_counted_from_the_other_end(link):
    """A symmetric link: coefficients change their sign, thresholds theirs and their order."""
    family, y, X, terms, _, _ = problem(f"ordinal {link}", (2, 1), n=300)
    first, turned = Model(X, terms, family).fit(y), Model(X, terms, family).fit(3.0 - y)
    assert_allclose(turned.criterion, first.criterion, rtol=1e-9)
    assert_allclose(turned.beta, -first.beta, atol=1e-4)
    assert_allclose(turned.rho, -first.rho[::-1], atol=2e-4)


def test_order_of_rows_and_threads_do_not_matter():
    family, y, X, terms, _, given = problem("zi negativebinomial", (2, 1), n=300)
    first = Model(X, terms, family, **given).fit(y)
    many = Model(X, terms, family, control=Control(threads=3), **given).fit(y)
    assert many.criterion == first.criterion
    order = np.random.default_rng(0).permutation(300)
    moved = [Term(t.codes[order], None if t.z is None else t.z[order]) for t in terms]
    turned = {k: v[order] for k, v in given.items()}
    again = Model(X[order], moved, family.at(family.zero[order], None), **turned).fit(y[order])
    assert_allclose(again.criterion, first.criterion, rtol=1e-10)


@pytest.mark.parametrize("name", ["zi poisson", "hurdle truncated_nbinom2", "ordinal probit"])
def test_first_look(name):
    """Near Laplace's, standard errors too, and its gradient is exact."""
    family, y, X, terms, _, given = problem(name, (1,), n=400)
    quick, full = (Model(X, terms, family, n_agq=n, **given).fit(y) for n in (0, 1))
    assert quick.converged
    # where both have the same theta they are equal but for the rounding of sums of 3,000
    assert -1e-9 <= quick.criterion - full.criterion < 0.5
    assert_allclose(quick.beta, full.beta, atol=0.3 * full.se.max())
    assert_allclose(np.sqrt(np.diag(quick.cov)), np.sqrt(np.diag(full.cov)), rtol=0.1)


class Mixture(VectorFamily):
    """A family of one's own: zero-inflated Poisson, its log odds as -x."""

    name = "own"
    links = ("log",)
    names = ("odds",)
    inner = ZeroInflated(as_family("poisson"))

    def vector_rows(self, y, eta, m, rho, threads=1):
        o = self.inner.vector_rows(y, eta, m, -rho)
        return o._replace(lr=-o.lr, sr=-o.sr, wr=-o.wr)

    def constant(self, y, m, freq, rho):
        return self.inner.constant(y, m, freq, -rho)

    def first_rho(self, y, m):
        return -self.inner.first_rho(y, m)

    def start_rho(self, y, mu, m, rank):
        return -self.inner.start_rho(y, mu, m, rank)

    def variance(self, mu, m, rho):
        return self.inner.variance(mu, m, -rho)

    def simulate(self, rng, mu, m, rho):
        return self.inner.simulate(rng, mu, m, -rho)


def test_a_family_of_ones_own():
    _, y, X, terms, _, _ = problem("zi poisson", (1,), n=200)
    own, built_in = Model(X, terms, Mixture()).fit(y), Model(X, terms, Mixture.inner).fit(y)
    assert_allclose(own.criterion, built_in.criterion, rtol=1e-9)
    assert_allclose(own.rho, -built_in.rho, atol=1e-4)
    assert own.family_params == {"odds": own.rho[0]}


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
    with pytest.raises(ModelError, match="observed weights only"):
        Model(X, terms, family, control=Control(weights="expected"))
