"""Kernels of patterns against sums over units written out with dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core._native.criterion.patterns import add_derivatives, factor, unit_moments
from fastlmm_core.core.residuals.moments import Symmetric
from fastlmm_core.errors import NumericalError


def definite(rng, k, m):
    root = rng.normal(size=(k, m, m)) + 2.0 * np.eye(m)
    return root @ root.transpose(0, 2, 1)


@pytest.mark.parametrize("m", [1, 3, 8, 9, 20])
def test_factors(m):
    rng = np.random.default_rng(m)
    R, counts = definite(rng, 4, m), np.array([1.0, 5.0, 2.0, 3.0])
    C, P, logdet = factor(R, counts)
    np.testing.assert_allclose(P @ R, np.broadcast_to(np.eye(m), R.shape), atol=1e-9)
    np.testing.assert_allclose(C.transpose(0, 2, 1) @ C, P, rtol=1e-12)
    np.testing.assert_array_equal(C, np.tril(C))
    assert logdet == pytest.approx(counts @ np.linalg.slogdet(R)[1], rel=1e-12)


@pytest.mark.parametrize("m", [2, 9])
def test_a_covariance_that_is_not_positive_definite_is_an_error(m):
    R = np.eye(m)[None].repeat(2, axis=0)
    R[1, 0, 0] = -1.0
    with pytest.raises(NumericalError, match="not positive definite"):
        factor(R, np.ones(2))
    R[1, 0, 0] = np.nan
    with pytest.raises(NumericalError, match="not positive definite"):
        factor(R, np.ones(2))


@pytest.mark.parametrize(("m", "d"), [(1, 1), (3, 2), (4, 12)])
def test_moments_are_sums_over_units(m, d):
    rng = np.random.default_rng(8)
    D, units = rng.normal(size=(9 * m, d)), rng.permutation(9 * m).reshape(9, m)
    order = Symmetric(d)
    packed = np.empty((m * (m + 1) // 2, d * (d + 1) // 2))
    unit_moments(D, units, packed)
    full = np.einsum("usa,utb->satb", D[units], D[units])
    for at, (s, t) in enumerate(zip(*np.triu_indices(m), strict=True)):
        expected = full[s, :, t] if s == t else full[s, :, t] + full[t, :, s]
        np.testing.assert_allclose(order.unpack(packed[at]), 0.5 * (expected + expected.T), atol=1e-12)


def test_units_need_rows_that_exist():
    with pytest.raises(ValueError, match=r"rows outside of 0 \.\. 3"):
        unit_moments(np.ones((4, 1)), np.array([[0, 4]]), np.empty((3, 1)))
    with pytest.raises(ValueError, match="do not belong"):
        unit_moments(np.ones((4, 1)), np.array([[0, 1]]), np.empty((2, 1)))


@pytest.mark.parametrize("kept", ["moments", "rows"])
@pytest.mark.parametrize(("m", "r", "d"), [(1, 1, 1), (3, 2, 4), (6, 21, 5), (12, 30, 9), (4, 0, 3)])
def test_derivatives_are_the_sums_of_the_equations(m, r, d, kept):
    rng = np.random.default_rng(m + r)
    counts = np.array([1.0, 1.0, 1.0]) if kept == "rows" else np.array([3.0, 1.0, 2.0])
    k, n = len(counts), int(counts.sum())
    of_pattern = np.repeat(np.arange(k), counts.astype(int))
    E = rng.normal(size=(n, m, d))
    R = definite(rng, k, m)
    first = rng.normal(size=(k, r, m, m))
    first = first + first.transpose(0, 1, 3, 2)
    F = rng.normal(size=(d, d))
    F = F + F.T
    order = Symmetric(d)
    moments = None
    if kept == "moments":
        moments = np.empty((k, m * (m + 1) // 2, d * (d + 1) // 2))
        for g in range(k):
            own = np.flatnonzero(of_pattern == g)
            unit_moments(E[own].reshape(-1, d), np.arange(len(own) * m).reshape(-1, m), moments[g])
        moments = moments.reshape(-1, moments.shape[-1])
    C, P, _ = factor(R, counts)
    gradient, hessian, slopes = np.zeros(r), np.zeros((r, r)), np.zeros((r, len(order.rows)))
    directions = np.ascontiguousarray(first.transpose(0, 2, 1, 3))
    G = add_derivatives(C, directions, counts, moments, E if kept == "rows" else None, F, gradient, hessian, slopes)
    want_g, want_h, want_s = np.zeros(r), np.zeros((r, r)), np.zeros((r, d, d))
    for g in range(k):
        K = sum(E[i] @ F @ E[i].T for i in np.flatnonzero(of_pattern == g))
        weight = counts[g] * P[g] - P[g] @ K @ P[g]
        np.testing.assert_allclose(G[g], weight, atol=1e-9 * np.abs(weight).max())
        W = P[g] @ first[g]
        want_g += np.einsum("ast,st->a", first[g], weight)
        both = np.einsum("aij,bjk,kl,li->ab", W, W, P[g], K, optimize=True)
        want_h += both + both.T - counts[g] * np.einsum("aij,bji->ab", W, W)
        for i in np.flatnonzero(of_pattern == g):
            want_s -= E[i].T @ (W @ P[g]) @ E[i]
    if r:
        np.testing.assert_allclose(gradient, want_g, atol=1e-9 * np.abs(want_g).max())
        np.testing.assert_allclose(0.5 * (hessian + hessian.T), want_h, atol=1e-9 * np.abs(want_h).max())
        np.testing.assert_allclose(order.unpack(slopes), want_s, atol=1e-9 * np.abs(want_s).max())


def test_shapes_are_checked():
    C = np.eye(2)[None]
    with pytest.raises(ValueError, match="do not match"):
        add_derivatives(
            C,
            np.zeros((1, 2, 1, 2)),
            np.ones(1),
            np.zeros((2, 1)),
            None,
            np.eye(1),
            np.zeros(1),
            np.zeros((1, 1)),
            np.zeros((1, 1)),
        )
    with pytest.raises(ValueError, match="rows do not match"):
        add_derivatives(
            C,
            np.zeros((1, 2, 1, 2)),
            np.ones(1),
            None,
            None,
            np.eye(1),
            np.zeros(1),
            np.zeros((1, 1)),
            np.zeros((1, 1)),
        )
