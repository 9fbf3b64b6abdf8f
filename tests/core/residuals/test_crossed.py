"""Residual structures beside any random effects: against dense matrices, differences, and the engine of patterns."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core.core import Term
from fastlmm_core.core.residuals import CrossedModel, PatternModel, Residual
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.core.structures.relationship import from_covariance
from fastlmm_core.inference.structured import information_of


def visits(seed=0, subjects=20, T=4):
    """Subjects (n,) and visits (n,), a fifth of them missing."""
    rng = np.random.default_rng(seed)
    subject, visit = np.repeat(np.arange(subjects), T), np.tile(np.arange(T), subjects)
    keep = rng.random(len(subject)) > 0.2
    return rng, np.unique(subject[keep], return_inverse=True)[1], visit[keep]


def structure(kind, subject, visit, hom, dispersion):
    coordinates = np.arange(4.0)[:, None] if kind in ("exp", "gau") else None
    return Residual(subject, kind, visit, 4, hom, coordinates, dispersion=dispersion)


def dense_V(model, terms, between, phi, weights):
    n = model.n
    V = model.model.values(phi[: model.model.n], model.model.prepare(np.arange(n)[None]))[0][0]
    V = V if weights is None else V / np.sqrt(np.outer(weights, weights))
    for term, c, T, where, A in zip(terms, model.covariances, model.transforms, model.slices, between, strict=True):
        z = (np.ones((n, 1)) if term.z is None else term.z) @ T
        V = V + (z @ c.sigma(phi[where]) @ z.T) * A[np.ix_(term.codes, term.codes)]
    return V


def deviance(V, X, y, reml):
    inverse = np.linalg.inv(V)
    XVX = X.T @ inverse @ X
    e = y - X @ np.linalg.solve(XVX, X.T @ inverse @ y)
    nu = len(y) - X.shape[1] if reml else len(y)
    value = np.linalg.slogdet(V)[1] + nu * (1 + np.log(2 * np.pi * (e @ inverse @ e) / nu))
    return value + (np.linalg.slogdet(XVX)[1] if reml else 0.0)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("kind", ["ar1", "us", "cs", "exp", "none"])
@pytest.mark.parametrize(("plain", "hom"), [(True, True), (False, True), (True, False)])
def test_criterion_and_gradient_against_dense_matrices(kind, plain, hom, reml):
    rng, subject, visit = visits()
    n = len(subject)
    item, site, firm = rng.integers(0, 6, n).astype(np.int32), (subject % 4).astype(np.int32), rng.integers(0, 5, n)
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    weights = None if plain else rng.uniform(0.5, 2.0, n)
    dispersion = None if plain else rng.uniform(size=(n, 1))
    G = np.cov(rng.normal(size=(6, 20))) + np.eye(6)
    related = None if plain else from_covariance(range(6), G)
    terms = [Term(item, None if plain else np.column_stack([np.ones(n), X[:, 1]]), n_levels=6), Term(site, n_levels=4)]
    sparse = [] if plain else [Term(np.maximum(firm - 1, 0).astype(np.int32), (firm > 0).astype(float), n_levels=4)]
    full = X if plain else np.column_stack([X, np.eye(5)[firm][:, 1:]])
    between = [np.eye(6) if plain else G, np.eye(4)]
    y = rng.normal(size=6)[item] + rng.normal(size=n)
    given = structure(kind, subject, visit, hom, dispersion)
    model = CrossedModel(X, given, terms, [Structure("us")] * 2, [related, None], sparse, weights=weights, reml=reml)
    projected = model.project(y)
    equations = model.equations(projected.rest)
    phi = model.start(projected)
    phi = phi + 0.2 * rng.normal(size=len(phi))

    def value(at):
        return deviance(dense_V(model, terms, between, at, weights), full, y, reml)

    found = model.at(equations, phi, model.constant(equations.nu, projected.norm))
    assert found.value == pytest.approx(value(phi), rel=1e-11)
    h = 1e-5
    moved = [(value(phi + s) - value(phi - s)) / (2 * h) for s in h * np.eye(len(phi))]
    np.testing.assert_allclose(found.gradient, moved, atol=2e-7 * (1 + np.abs(moved).max()))


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "hom", "weighted"), [("ar1", True, False), ("us", False, True), ("cs", False, False)])
def test_the_same_fit_as_from_patterns(kind, hom, weighted, reml):
    rng, subject, visit = visits(1, subjects=40)
    n, site = len(subject), (subject % 6).astype(np.int32)
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    weights, dispersion = (rng.uniform(0.5, 2.0, n), 5.0 + rng.uniform(size=(n, 1))) if weighted else (None, None)
    y = X[:, 1] + rng.normal(size=6)[site] + rng.normal(size=40)[subject] + rng.normal(size=n)
    given, terms = structure(kind, subject, visit, hom, dispersion), [Term(site, X, n_levels=6)]
    ours = CrossedModel(X, given, terms, [Structure("us")], [None], weights=weights, reml=reml).fit(y)
    other = PatternModel(X, given, terms, weights=weights, reml=reml).fit(y)
    assert ours.converged
    assert ours.criterion == pytest.approx(other.criterion, abs=1e-6)
    np.testing.assert_allclose(ours.theta, other.theta, atol=2e-3)
    assert ours.sigma == pytest.approx(other.sigma, rel=1e-3)
    np.testing.assert_allclose(ours.beta, other.beta, atol=1e-4)
    np.testing.assert_allclose(ours.cov_beta, other.cov_beta, rtol=2e-3)
    np.testing.assert_allclose(ours.b[0], other.b[0], atol=2e-3)
    np.testing.assert_allclose(ours.cond_var()[0], other.cond_var()[0], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(ours.fitted, other.fitted, atol=2e-3)
    e = y - other.fitted
    for whole in (True, False):
        np.testing.assert_allclose(ours.standardized(e, whole), other.standardized(e, whole), rtol=5e-3, atol=1e-3)
    again = CrossedModel(X, given, terms, [Structure("us")], [None], weights=weights, reml=reml).fit(
        y, start=other.theta
    )
    np.testing.assert_allclose(again.theta, other.theta, atol=1e-4)
    np.testing.assert_allclose(satterthwaite(again), satterthwaite(other), rtol=1e-3)


def satterthwaite(core):
    """Degrees of freedom (p,), which no parametrisation changes."""
    info = information_of(core)
    moved = np.diagonal(info.half @ info.slopes @ info.half.T, axis1=1, axis2=2)
    return 2.0 * np.diag(core.cov_beta) ** 2 / np.einsum("ap,ab,bp->p", moved, info.cov, moved)
