"""Intrinsic relationships of maps against their pseudo-inverses."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from fastlmm_core.core import Term
from fastlmm_core.core.structures.constrained import ConstrainedFactor
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.core.structures.equations_fit import EquationsModel
from fastlmm_core.core.structures.neighbours import from_neighbours
from fastlmm_core.core.structures.relationship import from_precision
from fastlmm_core.core.structures.sparse_factor import SparseFactor
from fastlmm_core.errors import ModelError


def edges(rng):
    """A ring of 12, a path of 5, two islands."""
    a = [*range(12), 12, 13, 14, 15, 0]
    b = [*[(i + 1) % 12 for i in range(12)], 13, 14, 15, 16, 6]
    return np.array(a), np.array(b), rng.uniform(0.5, 2.0, len(a))


def laplacian(q, a, b, w):
    Q = np.zeros((q, q))
    for i, j, x in zip(a, b, w, strict=True):
        Q[i, i] += x
        Q[j, j] += x
        Q[i, j] -= x
        Q[j, i] -= x
    return Q


def test_pseudo_inverse_and_determinant():
    a, b, w = edges(np.random.default_rng(0))
    Q = laplacian(19, a, b, w)
    found = from_neighbours(range(19), a, b, w)
    np.testing.assert_allclose(found.precision.toarray(), Q)
    A = np.linalg.pinv(Q, hermitian=True)
    np.testing.assert_allclose(found.times(np.eye(19)), A, atol=1e-12)
    np.testing.assert_allclose(found.variances, np.diag(A), atol=1e-12)
    values = np.linalg.eigvalsh(Q)
    assert found.logdet == pytest.approx(-np.log(values[values > 1e-9]).sum(), abs=1e-11)
    assert np.bincount(found.components).tolist() == [12, 5, 1, 1]
    assert "4 connected parts" in repr(found)
    again = from_precision(None, Q[:17, :17])
    assert again.logdet == pytest.approx(found.logdet, abs=1e-11)


def test_scaled_parts_have_typical_variances_of_one():
    a, b, w = edges(np.random.default_rng(1))
    found = from_neighbours(range(19), a, b, w, scaled=True)
    A = np.linalg.pinv(found.precision.toarray(), hermitian=True)
    for part in (slice(0, 12), slice(12, 17)):
        assert np.exp(np.log(np.diag(A)[part]).mean()) == pytest.approx(1.0, abs=1e-12)


def test_factor_under_constraints():
    rng = np.random.default_rng(2)
    a, b, w = edges(rng)
    found = from_neighbours(range(19), a, b, w)
    data = np.zeros(19)
    data[:3] = 2.0  # one part alone has rows
    M_s = sp.csc_array(found.pinned + sp.diags_array(data))
    factor = ConstrainedFactor(SparseFactor(M_s), found.pins, found.constraints)
    logdet = factor.refactor(M_s)
    B = np.linalg.svd(found.constraints)[0][:, 4:]
    inside = B.T @ (laplacian(19, a, b, w) + np.diag(data)) @ B
    assert logdet == pytest.approx(np.linalg.slogdet(inside)[1], abs=1e-11)
    T = B @ np.linalg.inv(inside) @ B.T
    rhs = rng.normal(size=(19, 3))
    np.testing.assert_allclose(factor.solve(rhs), T @ rhs, atol=1e-11)
    rows, columns = factor.inner.given
    np.testing.assert_allclose(factor.inverse(), T[rows, columns], atol=1e-11)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("slopes", [False, True])
def test_criterion_and_gradient_against_dense_matrices(slopes, absorbed, reml):
    rng = np.random.default_rng(3)
    a, b, w = edges(rng)
    related = from_neighbours(range(19), a, b, w)
    n = 90
    codes, other, firm = (rng.integers(0, k, n).astype(np.int32) for k in (19, 6, 5))
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    y, weights = rng.normal(size=n) + np.sin(codes), rng.uniform(0.5, 2.0, n)
    z = np.column_stack([np.ones(n), X[:, 1]]) if slopes else np.ones((n, 1))
    terms = [Term(codes, z, n_levels=19), Term(other)]
    extra = [Term(np.maximum(firm - 1, 0).astype(np.int32), (firm > 0).astype(float), n_levels=4)] if absorbed else []
    model = EquationsModel(X, terms, [Structure(), Structure()], [related, None], extra, weights=weights, reml=reml)
    full = np.column_stack([X, np.eye(5)[firm][:, 1:]]) if absorbed else X
    A = np.linalg.pinv(laplacian(19, a, b, w), hermitian=True)
    scaled = y * model.root
    equations = model.equations(scaled - model.Q @ (model.Q.T @ scaled))
    constant = model.constant(equations.nu, 1.0)

    def dense(phi):
        V = np.diag(1.0 / weights)
        for term, c, T, where, between in zip(
            terms, model.covariances, model.transforms, model.slices, (A, np.eye(6)), strict=True
        ):
            zt = (np.ones((n, 1)) if term.z is None else term.z) @ T
            V += (zt @ c.sigma(phi[where]) @ zt.T) * between[np.ix_(term.codes, term.codes)]
        inverse = np.linalg.inv(V)
        XVX = full.T @ inverse @ full
        e = y - full @ np.linalg.solve(XVX, full.T @ inverse @ y)
        nu = n - full.shape[1] if reml else n
        value = np.linalg.slogdet(V)[1] + nu * (1 + np.log(2 * np.pi * (e @ inverse @ e) / nu))
        return value + (np.linalg.slogdet(XVX)[1] if reml else 0.0)

    points = [model.start(model.project(y)), 0.3 * rng.normal(size=model.n_parameters), np.zeros(model.n_parameters)]
    for phi in points:
        place = model.at(equations, phi, constant)
        assert place.value == pytest.approx(dense(phi), abs=1e-8)
        h = 1e-5
        differences = [(dense(phi + h * d) - dense(phi - h * d)) / (2 * h) for d in np.eye(len(phi))]
        np.testing.assert_allclose(place.gradient, differences, atol=2e-6)


def test_a_singular_precision_that_is_no_map_is_refused():
    with pytest.raises(ModelError, match="not positive definite; a singular one is a graph's D - W"):
        from_precision(None, np.array([[1.0, 1.0], [1.0, 1.0]]))
    with pytest.raises(ModelError, match="not positive definite"):
        from_precision(None, np.zeros((3, 3)))
