"""Residuals and cross-products of responses against dense least squares."""

import numpy as np
import pytest

from fastlmm_core._native.rows.responses import ResponseProducts
from kernel_oracle import incidence

N = 57


def design(p, weighted, kept, chunk):
    """A kernel, Q, the weights and Z of two factors."""
    rng = np.random.default_rng(p)
    X = rng.normal(size=(N, p + 2))
    w = rng.uniform(0.2, 3.0, N) if weighted else None
    root = np.ones(N) if w is None else np.sqrt(w)
    basis = np.zeros((p + 2, p))  # two columns are set aside
    basis[1 : p + 1] = np.linalg.inv(np.linalg.qr(root[:, None] * X[:, 1 : p + 1])[1])
    q = X @ basis
    metric = np.linalg.inv(q.T @ (root[:, None] ** 2 * q))
    codes = [rng.integers(0, levels, N).astype(np.int32) for levels in (6, 9)]
    columns = [rng.normal(size=(N, 2)), None]
    kernel = ResponseProducts(X, basis, q if kept else None, w, metric, codes, columns, [6, 9], chunk, 1e-4)
    Z = [incidence(c, levels, z) for c, levels, z in zip(codes, (6, 9), columns, strict=True)]
    return kernel, q, np.ones(N) if w is None else w, Z


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("p", [0, 1, 3, 40])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("chunk", [13, 64])
def test_against_least_squares(chunk, k, p, kept, weighted):
    kernel, q, w, Z = design(p, weighted, kept, chunk)
    Y = np.random.default_rng(8).normal(size=(N, k)) + 5.0
    given = Y.copy()
    coefficients, sizes, norms, dense, xty, ordinary = kernel(Y)
    assert ordinary
    np.testing.assert_array_equal(Y, given)
    root = np.sqrt(w)[:, None]
    expected = np.linalg.lstsq(root * q, root * Y, rcond=None)[0] if p else np.zeros((0, k))
    E = Y - q @ expected
    np.testing.assert_allclose(coefficients, expected, atol=1e-11)
    np.testing.assert_allclose(sizes, np.linalg.norm(root * Y, axis=0))
    np.testing.assert_allclose(norms, np.linalg.norm(root * E, axis=0), rtol=1e-12)
    np.testing.assert_allclose(xty, np.zeros((p, k)), atol=1e-14)
    for got, z in zip(dense, Z, strict=True):
        np.testing.assert_allclose(got, z.T @ (root**2 * E) / norms, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_responses_side_by_side_are_those_on_their_own(weighted):
    kernel, *_ = design(3, weighted, True, 20)
    Y = np.random.default_rng(3).normal(size=(N, 4))
    together = kernel(Y)
    for j in range(4):
        alone = kernel(np.ascontiguousarray(Y[:, j : j + 1]))
        for a, b in zip(together[:3] + together[3] + together[4:5], alone[:3] + alone[3] + alone[4:5], strict=True):
            np.testing.assert_array_equal(a[..., j : j + 1], b)


def test_a_response_of_zeros_stays_zero():
    kernel, *_ = design(3, True, True, 20)
    coefficients, sizes, norms, dense, xty, ordinary = kernel(np.zeros((N, 1)))
    assert not ordinary
    for part in (coefficients, sizes, norms, *dense, xty):
        np.testing.assert_array_equal(part, np.zeros_like(part))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_a_response_without_a_finite_norm_is_not_ordinary(value):
    kernel, *_ = design(3, True, True, 20)
    Y = np.random.default_rng(3).normal(size=(N, 2))
    Y[5, 1] = value
    assert not kernel(Y)[-1]
    assert kernel(np.ascontiguousarray(Y[:, :1]))[-1]


def test_a_response_all_but_reproduced_is_not_ordinary():
    kernel, q, *_ = design(3, False, True, 20)
    noise = np.random.default_rng(3).normal(size=(N, 1))
    assert not kernel(q[:, :1] + 1e-6 * noise)[-1]
    assert kernel(q[:, :1] + 1e-2 * noise)[-1]


def test_shapes_that_do_not_match_are_refused():
    kernel, *_ = design(3, True, True, 20)
    with pytest.raises(ValueError, match="5 rows, but the design has 57"):
        kernel(np.zeros((5, 1)))
    with pytest.raises(ValueError, match="grouping factor 0"):
        ResponseProducts(
            np.ones((N, 1)), np.ones((1, 1)), None, None, np.ones((1, 1)), [np.zeros(3, np.int32)], [None], [1], 9, 0.0
        )
