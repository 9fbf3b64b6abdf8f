"""One dense relationship, rotated: against dense matrices, and against the same covariance by its precision."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastlmm_core.core import Term
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.core.structures.equations_fit import EquationsModel
from fastlmm_core.core.structures.relationship import KnownCovariance, Relationship, from_covariance
from fastlmm_core.core.structures.rotated import RotatedEquations
from fastlmm_core.errors import ModelError


def genomic(rng, q=40, markers=200):
    M = rng.binomial(2, 0.3, (q, markers)).astype(float)
    M -= M.mean(axis=0)
    return M @ M.T / markers  # singular: rows sum to zero


def problem(seed=0, repeated=True, slope=False, weighted=True):
    rng = np.random.default_rng(seed)
    G = genomic(rng)
    n = 90 if repeated else 30
    codes = rng.integers(0, 30, n).astype(np.int32) if repeated else np.arange(30, dtype=np.int32)[::-1].copy()
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    z = rng.normal(size=(n, 1)) if slope else None
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    b = np.linalg.cholesky(G + 1e-9 * np.eye(40)) @ rng.normal(size=40)
    y = X @ [1.0, 0.5] + b[codes] * (1.0 if z is None else z[:, 0]) + 0.5 * rng.normal(size=n)
    return G, y, X, Term(codes, z, n_levels=40), weights


def dense_parts(G, X, term, weights, theta):
    w = np.ones(len(X)) if weights is None else weights
    Z = np.zeros((len(X), 40))
    Z[np.arange(len(X)), term.codes] = 1.0 if term.z is None else term.z[:, 0]
    V = np.diag(1.0 / w) + theta**2 * Z @ G @ Z.T
    inverse = np.linalg.inv(V)
    return Z, V, inverse, X.T @ inverse @ X


def dense(G, y, X, term, weights, theta, reml):
    _, V, inverse, XVX = dense_parts(G, X, term, weights, theta)
    e = y - X @ np.linalg.solve(XVX, X.T @ inverse @ y)
    nu = len(y) - X.shape[1] if reml else len(y)
    value = np.linalg.slogdet(V)[1] + nu * (1 + np.log(2 * np.pi * (e @ inverse @ e) / nu))
    return value + (np.linalg.slogdet(XVX)[1] if reml else 0.0)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    "kind", [{}, {"repeated": False}, {"slope": True}, {"weighted": False}, {"repeated": False, "weighted": False}]
)
def test_criterion_and_gradient_against_dense_matrices(kind, reml):
    G, y, X, term, weights = problem(**kind)
    model = EquationsModel(X, [term], [Structure()], [from_covariance(None, G)], weights=weights, reml=reml)
    projected = model.project(y)
    equations = model.equations(projected.rest)
    assert isinstance(equations, RotatedEquations)
    constant = model.constant(equations.nu, projected.norm)
    for phi in (0.0, 0.4, -1.3, 20.0):
        place = model.at(equations, np.array([phi]), constant)
        theta = float(model.to_user(np.array([phi]))[0])
        assert place.value == pytest.approx(dense(G, y, X, term, weights, theta, reml), abs=1e-9)
        h = 1e-5
        values = [model.at(equations, np.array([phi + s]), constant).value for s in (-h, h)]
        assert place.gradient[0] == pytest.approx((values[1] - values[0]) / (2 * h), abs=1e-6)


def test_effects_of_all_levels_and_their_errors():
    G, y, X, term, weights = problem(seed=1)
    model = EquationsModel(X, [term], [Structure()], [from_covariance(None, G)], weights=weights)
    fit = model.fit(y)
    assert fit.converged
    theta, sigma = abs(fit.L[0][0, 0]), fit.sigma
    Z, _, inverse, XVX = dense_parts(G, X, term, weights, theta)
    beta = np.linalg.solve(XVX, X.T @ inverse @ y)
    C = theta**2 * G @ Z.T
    np.testing.assert_allclose(fit.b[0][:, 0], C @ inverse @ (y - X @ beta), atol=1e-9)
    known = theta**2 * G - C @ inverse @ C.T
    np.testing.assert_allclose(fit.cond_var()[0][:, 0, 0], sigma**2 * known.diagonal(), atol=1e-10)
    P = inverse - inverse @ X @ np.linalg.solve(XVX, X.T @ inverse)
    joint = theta**2 * G - C @ P @ C.T
    np.testing.assert_allclose(fit.prediction_var()[0][:, 0, 0], sigma**2 * joint.diagonal(), atol=1e-10)
    np.testing.assert_allclose(fit.cov_beta, sigma**2 * np.linalg.inv(XVX), rtol=1e-9)
    again = pickle.loads(pickle.dumps(fit))
    np.testing.assert_allclose(again.prediction_var()[0], fit.prediction_var()[0])


def test_the_same_fit_by_the_precision():
    G, y, X, term, weights = problem(seed=2)
    G = 0.95 * G + 0.05 * np.eye(40)
    related = from_covariance(None, G)
    assert isinstance(related, KnownCovariance)
    fits = [EquationsModel(X, [term], [Structure()], [r], weights=weights).fit(y) for r in (related, related.inverse)]
    assert fits[0].criterion == pytest.approx(fits[1].criterion, abs=1e-8)
    np.testing.assert_allclose(fits[0].b[0], fits[1].b[0], atol=1e-5)
    np.testing.assert_allclose(fits[0].prediction_var()[0], fits[1].prediction_var()[0], rtol=1e-5)


def test_what_is_no_covariance_is_told_from_a_singular_one():
    G = genomic(np.random.default_rng(3))
    related = from_covariance(None, G)
    with pytest.raises(ModelError, match=r"only models with one random intercept.*bend it"):
        _ = related.inverse
    with pytest.raises(ModelError, match=r"not positive definite \(smallest eigenvalue -0\.[0-9]+\): bend it"):
        from_covariance(None, G - 0.1 * np.eye(40))


def test_families_are_inverted_apart():
    rng = np.random.default_rng(4)
    blocks = [0.5 * np.ones((k, k)) + 0.5 * np.eye(k) for k in (3, 1, 4)]
    A = np.zeros((8, 8))
    at = 0
    for block in blocks:
        A[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    turn = rng.permutation(8)
    A = A[np.ix_(turn, turn)]
    found = from_covariance(None, A)
    assert isinstance(found, Relationship)
    assert found.precision.nnz == 9 + 1 + 16
    np.testing.assert_allclose(found.precision.toarray(), np.linalg.inv(A), atol=1e-12)
    assert found.logdet == pytest.approx(np.linalg.slogdet(A)[1])
