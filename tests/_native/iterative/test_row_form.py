"""Products with the reduced operator against dense matrices, and their independence of the threads."""

import numpy as np
import pytest

from fastlmm_core._native.iterative.row_form import MAX_LEADING, WIDTH, RowForm

Q, LEVELS, N = 7, (5, 4), 90


def build(l, factors, weighted, covariates, threads=1, seed=0):
    """A row form, and Z_1, Z_t and w as dense arrays."""
    rng = np.random.default_rng(seed)
    lead = np.sort(rng.integers(0, Q - 1, N))  # the last level has no rows
    ptr = np.searchsorted(lead, np.arange(Q + 1)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(LEVELS[:factors])])
    m = int(starts[-1])
    codes = np.column_stack([s + rng.integers(0, q, N) for s, q in zip(starts, LEVELS[:factors], strict=False)])
    z = None if l == 0 else rng.normal(size=(N, l))
    t = rng.normal(size=codes.shape) if covariates else None
    w = rng.uniform(0.3, 2.0, N) if weighted else None
    rows = RowForm(ptr, np.ascontiguousarray(codes, np.int32), m, z, t, w, threads)
    columns = np.ones((N, 1)) if z is None else z
    z1 = np.zeros((N, Q, columns.shape[1]))
    z1[np.arange(N), lead] = columns
    zt = np.zeros((N, m))
    for f in range(factors):
        zt[np.arange(N), codes[:, f]] = 1.0 if t is None else t[:, f]
    return rows, z1.reshape(N, -1), zt, np.ones(N) if w is None else w


def block_diagonal(K):
    q, l = K.shape[:2]
    out = np.zeros((q * l, q * l))
    for i in range(q):
        out[i * l : (i + 1) * l, i * l : (i + 1) * l] = K[i]
    return out


@pytest.mark.parametrize("l", [0, 1, 3])
@pytest.mark.parametrize("factors", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariates", [False, True])
def test_products_are_those_of_dense_matrices(l, factors, weighted, covariates):
    rows, z1, zt, w = build(l, factors, weighted, covariates)
    rng = np.random.default_rng(1)
    K = rng.normal(size=(Q, rows.l, rows.l))
    K = np.ascontiguousarray(K + K.transpose(0, 2, 1))
    R = rng.normal(size=(Q, rows.l, rows.l))
    x, u = rng.normal(size=(rows.m, WIDTH)), rng.normal(size=(Q, rows.l, WIDTH))
    B = z1.T @ (w[:, None] * zt)
    C = zt.T @ (w[:, None] * zt) - B.T @ block_diagonal(K) @ B
    close = {"rtol": 1e-12, "atol": 1e-12 * np.abs(C).max()}
    np.testing.assert_allclose(rows.product(K, x), C @ x, **close)
    np.testing.assert_allclose(rows.lead_sums(x).reshape(-1, WIDTH), B @ x, **close)
    np.testing.assert_allclose(rows.tail_sums(u), B.T @ u.reshape(-1, WIDTH), **close)
    removed, outer = rows.diagonals(K, R)
    np.testing.assert_allclose(removed, np.diag(B.T @ block_diagonal(K) @ B), **close)
    RB = np.einsum("qab,qbm->qam", R, B.reshape(Q, rows.l, rows.m))
    np.testing.assert_allclose(outer, np.einsum("qam,qbm->mab", RB, RB), **close)


def test_the_bits_do_not_depend_on_the_threads():
    rng = np.random.default_rng(2)
    x = None
    found = []
    for threads in (1, 2, 4):
        rows = build(2, 2, True, True, threads)[0]
        if x is None:
            x, u, K = rng.normal(size=(rows.m, WIDTH)), rng.normal(size=(Q, 2, WIDTH)), rng.normal(size=(Q, 2, 2))
        found.append([rows.product(K, x), rows.lead_sums(x), rows.tail_sums(u)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_does_not_match_is_refused():
    ptr, codes = np.array([0, 2], np.int64), np.array([[0], [1]], np.int32)
    rows = RowForm(ptr, codes, 2, None, None, None, 1)
    with pytest.raises(ValueError, match="shape"):
        rows.product(np.ones((1, 1, 1)), np.ones((3, WIDTH)))
    with pytest.raises(ValueError, match="shape"):
        rows.lead_sums(np.ones((2, WIDTH - 1)))
    with pytest.raises(ValueError, match="codes lie outside 0 to 0"):
        RowForm(ptr, codes, 1, None, None, None, 1)
    with pytest.raises(ValueError, match="ptr"):
        RowForm(np.array([0, 1], np.int64), codes, 2, None, None, None, 1)
    with pytest.raises(ValueError, match=f"{MAX_LEADING + 1} columns"):
        RowForm(ptr, codes, 2, np.ones((2, MAX_LEADING + 1)), None, None, 1)
    with pytest.raises(ValueError, match="rows do not match"):
        RowForm(ptr, codes, 2, None, None, np.ones(3), 1)
    with pytest.raises(ValueError, match="covariates"):
        RowForm(ptr, codes, 2, None, np.ones((2, 2)), None, 1)
    with pytest.raises(ValueError, match="needs rows"):
        RowForm(np.zeros(2, np.int64), np.zeros((0, 1), np.int32), 2, None, None, None, 1)
