"""Structures of random effects: derivatives, invariances, and fits on one and on several grouping factors."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core.core import Term, fit
from fastlmm_core.core.residuals import PatternModel, Residual
from fastlmm_core.core.structures.covariances import Structure, lower_factor
from fastlmm_core.core.structures.structured import StructuredModel, factor_derivatives
from fastlmm_core.errors import ModelError

L = 4
POINTS = tuple((x,) for x in (0.0, 0.5, 1.3, 2.0))
STRUCTURES = {
    "us": Structure("us"),
    "diag": Structure("diag"),
    "homdiag": Structure("diag", hom=True),
    "cs": Structure("cs"),
    "homcs": Structure("cs", hom=True),
    "ar1": Structure("ar1", hom=True),
    "hetar1": Structure("ar1"),
    "toep": Structure("toep"),
    "homtoep": Structure("toep", hom=True),
    "ad": Structure("ad", hom=True),
    "hetad": Structure("ad"),
    "exp": Structure("exp", hom=True, coordinates=POINTS),
    "gau": Structure("gau", hom=True, coordinates=POINTS),
    "rr": Structure("rr", rank=2),
}


def place(covariance, seed=1):
    return covariance.start() + 0.2 * np.random.default_rng(seed).normal(size=covariance.n)


@pytest.mark.parametrize("name", STRUCTURES)
def test_derivatives_of_sigma_and_of_its_factor(name):
    c = STRUCTURES[name].covariance(L)
    phi, h = place(c), 1e-5
    g = np.random.default_rng(2).normal(size=(L, L))
    g = g + g.T
    factor, first, contract = factor_derivatives(c, phi)
    np.testing.assert_allclose(factor @ factor.T, c.sigma(phi), atol=1e-12)
    for a, step in enumerate(h * np.eye(c.n)):
        moved = (c.sigma(phi + step) - c.sigma(phi - step)) / (2 * h)
        np.testing.assert_allclose(c.directions(phi)[a], moved, atol=1e-9)
        bent = np.sum(g * (c.directions(phi + step) - c.directions(phi - step)), axis=(1, 2)) / (2 * h)
        np.testing.assert_allclose(c.curvature(phi, g)[a], bent, atol=1e-8)
        up, down = factor_derivatives(c, phi + step), factor_derivatives(c, phi - step)
        np.testing.assert_allclose(first[a], (up[0] - down[0]) / (2 * h), atol=1e-8)
        lower = np.tril(g)
        bent = np.sum(lower * (up[1] - down[1]), axis=(1, 2)) / (2 * h)
        np.testing.assert_allclose(contract(lower)[a], bent, atol=1e-6)


@pytest.mark.parametrize("name", STRUCTURES)
def test_maps_of_the_columns_that_keep_the_structure(name):
    c = STRUCTURES[name].covariance(L)
    rng = np.random.default_rng(3)
    T = {
        "lower": np.tril(rng.normal(size=(L, L))),
        "diagonal": np.diag(rng.uniform(0.5, 2.0, L)),
        "scalar": 1.7 * np.eye(L),
    }[c.keeps]
    phi = place(c)
    np.testing.assert_allclose(c.sigma(c.rescaled(phi, T)), T @ c.sigma(phi) @ T.T, atol=1e-12)
    turned = c.canonical(-phi if c.keeps == "lower" else phi, 0.0)
    if c.keeps == "lower":
        np.testing.assert_allclose(c.sigma(turned), c.sigma(-phi))
    assert len(c.labels([f"c{i}" for i in range(L)])) == c.n


def test_a_correlation_of_one_is_an_ordinary_place():
    for name in ("ar1", "homcs", "hetar1"):
        c = STRUCTURES[name].covariance(L)
        phi = c.start()
        phi[-1] = np.pi / 2
        assert c.is_singular(phi, 1e-4)
        np.testing.assert_allclose(c.sigma(phi), np.ones((L, L)), atol=1e-12)
        np.testing.assert_allclose(c.directions(phi)[-1], 0.0, atol=1e-12)
        lower = lower_factor(c.sigma(phi))
        np.testing.assert_allclose(lower @ lower.T, np.ones((L, L)), atol=1e-12)


def data(seed=0, groups=40, crossed=9):
    rng = np.random.default_rng(seed)
    g, t = np.divmod(rng.permutation(groups * L * 2)[: int(1.7 * groups * L)], L * 2)
    t = t % L
    h = rng.integers(0, crossed, len(g))
    x = rng.normal(size=len(g))
    effects = np.cumsum(rng.normal(size=(groups, L)), axis=1)
    slopes = rng.normal(size=(crossed, 2)) * [1.0, 0.5]
    y = 1.0 + 0.5 * x + effects[g, t] + slopes[h, 0] + slopes[h, 1] * x + rng.normal(size=len(g))
    return y, np.column_stack([np.ones(len(g)), x]), g.astype(np.int32), np.eye(L)[t], h.astype(np.int32)


@pytest.mark.parametrize("name", STRUCTURES)
def test_one_factor_by_patterns_and_by_the_chain_rule(name):
    y, X, g, z, _ = data()
    ours = PatternModel(X, Residual(np.arange(len(y))), [Term(g, z)], structures=[STRUCTURES[name]]).fit(y)
    chain = StructuredModel(X, [Term(g, z)], [STRUCTURES[name]]).fit(y)
    assert ours.converged
    assert chain.criterion == pytest.approx(ours.criterion, abs=2e-6)
    assert chain.n_parameters == ours.n_parameters
    np.testing.assert_allclose(chain.beta, ours.beta, atol=1e-3)
    cov = [f.sigma**2 * f.L[0] @ f.L[0].T for f in (chain, ours)]
    np.testing.assert_allclose(*cov, atol=5e-2)


@pytest.mark.parametrize("name", ["ar1", "homcs", "toep", "exp", "hetad", "homdiag", "rr"])
@pytest.mark.parametrize("reml", [True, False])
def test_crossed_factors_against_dense_matrices(name, reml):
    y, X, g, z, h = data(1)
    slope = np.column_stack([np.ones(len(y)), X[:, 1]])
    terms, structures = [Term(g, z), Term(h, slope)], [STRUCTURES[name], Structure("diag", hom=True)]
    model = StructuredModel(X, terms, structures, reml=reml)
    objective = model.objective(y)
    phi = model.start() + 0.1 * np.random.default_rng(5).normal(size=model.n_parameters)
    found = model.at(objective, phi)
    V = np.eye(len(y))
    for term, c, T, where in zip(terms, model.covariances, model.transforms, model.slices, strict=True):
        zt = term.z @ T
        V += (zt @ c.sigma(phi[where]) @ zt.T) * (term.codes[:, None] == term.codes)
    inverse = np.linalg.inv(V)
    A = X.T @ inverse @ X
    e = y - X @ np.linalg.solve(A, X.T @ inverse @ y)
    nu = len(y) - 2 if reml else len(y)
    value = np.linalg.slogdet(V)[1] + nu * (1 + np.log(2 * np.pi * (e @ inverse @ e) / nu))
    value += np.linalg.slogdet(A)[1] if reml else 0.0
    assert found.value == pytest.approx(value, rel=1e-10)
    h_ = 1e-5
    steps = h_ * np.eye(len(phi))
    moved = [(model.at(objective, phi + s).value - model.at(objective, phi - s).value) / (2 * h_) for s in steps]
    np.testing.assert_allclose(found.gradient, moved, atol=1e-6 * (1 + np.abs(moved).max()))


def test_a_structured_fit_on_several_factors_has_everything_of_a_fit():
    y, X, g, z, h = data(2)
    found = StructuredModel(X, [Term(g, z), Term(h)], [STRUCTURES["ar1"], Structure("us")]).fit(y)
    assert found.converged
    assert found.n_parameters == 3
    assert [b.shape for b in found.b] == [(40, 4), (9, 1)]
    assert len(found.theta) == 11
    assert found.cond_var()[0].shape == (40, 4, 4)
    other = fit(y, X, [Term(g, z), Term(h)])
    assert other.criterion < found.criterion


def test_wrong_structures_are_refused():
    with pytest.raises(ModelError, match="d has to lie between 1 and 4"):
        Structure("rr", rank=5).covariance(L)
    with pytest.raises(ModelError, match="does not exist"):
        Structure("arma").covariance(L)
