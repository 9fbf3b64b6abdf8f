"""Products with the reduced operator against dense matrices, and their independence of the threads."""

import numpy as np
import pytest

from fastlmm_core._native.iterative.row_form import MAX_LEADING, WIDTH, WIDTHS, RowForm

Q, LEVELS, N = 7, (5, 4), 90


def build(l, factors, weighted, widths=None, threads=1, seed=0):
    """A row form, and Z_1, Z_t and w as dense arrays; ``widths`` of the tail factors, None for ones."""
    rng = np.random.default_rng(seed)
    lead = np.sort(rng.integers(0, Q - 1, N))  # the last level has no rows
    ptr = np.searchsorted(lead, np.arange(Q + 1)).astype(np.int64)
    columns = np.ones(factors, np.int64) if widths is None else np.array(widths[:factors], np.int64)
    levels = np.array(LEVELS[:factors], np.int64)
    starts = np.concatenate([[0], np.cumsum(levels * columns)])
    codes = np.column_stack([s + k * rng.integers(0, q, N) for s, k, q in zip(starts, columns, levels, strict=False)])
    z = None if l == 0 else rng.normal(size=(N, l))
    t = rng.normal(size=(N, columns.sum())) if widths is not None else None
    w = rng.uniform(0.3, 2.0, N) if weighted else None
    rows = RowForm(ptr, np.ascontiguousarray(codes, np.int32), levels, columns, z, t, w, threads)
    z1, zt = np.zeros((N, Q, max(l, 1))), np.zeros((N, starts[-1]))
    z1[np.arange(N), lead] = 1.0 if z is None else z
    at = 0
    for f in range(factors):
        for c in range(columns[f]):
            zt[np.arange(N), codes[:, f] + c] = 1.0 if t is None else t[:, at]
            at += 1
    return rows, z1.reshape(N, -1), zt, np.ones(N) if w is None else w, levels, columns


def block_diagonal(K):
    q, l = K.shape[:2]
    out = np.zeros((q * l, q * l))
    for i in range(q):
        out[i * l : (i + 1) * l, i * l : (i + 1) * l] = K[i]
    return out


@pytest.mark.parametrize("l", [0, 1, 3])
@pytest.mark.parametrize("factors", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("widths", [None, (1, 1), (2, 1), (3, 2)])
def test_products_are_those_of_dense_matrices(l, factors, weighted, widths):
    rows, z1, zt, w, levels, columns = build(l, factors, weighted, widths)
    rng = np.random.default_rng(1)
    K = rng.normal(size=(Q, rows.l, rows.l))
    K = np.ascontiguousarray(K + K.transpose(0, 2, 1))
    R = rng.normal(size=(Q, rows.l, rows.l))
    B = z1.T @ (w[:, None] * zt)
    C = zt.T @ (w[:, None] * zt) - B.T @ block_diagonal(K) @ B
    close = {"rtol": 1e-12, "atol": 1e-12 * np.abs(C).max()}
    x, u = rng.normal(size=(rows.m, WIDTH)), rng.normal(size=(Q, rows.l, WIDTH))
    whole = rows.product(K, x), rows.lead_sums(x), rows.tail_sums(u)
    np.testing.assert_allclose(whole[0], C @ x, **close)
    np.testing.assert_allclose(whole[1].reshape(-1, WIDTH), B @ x, **close)
    np.testing.assert_allclose(whole[2], B.T @ u.reshape(-1, WIDTH), **close)
    for k in WIDTHS:  # a vector has the same bits whatever stands beside it
        few = np.ascontiguousarray(x[:, :k])
        part = rows.product(K, few), rows.lead_sums(few), rows.tail_sums(np.ascontiguousarray(u[:, :, :k]))
        for mine, all_of_them in zip(part, whole, strict=True):
            np.testing.assert_array_equal(mine, all_of_them[..., :k])
    BKB = B.T @ block_diagonal(K) @ B
    RB = np.einsum("qab,qbm->qam", R, B.reshape(Q, rows.l, rows.m))
    outer = np.einsum("qam,qbn->mnab", RB, RB)
    start = 0
    for removed, spread, q, k in zip(*rows.diagonals(K, R), levels, columns, strict=True):
        for j in range(q):
            own = slice(start + j * k, start + (j + 1) * k)
            np.testing.assert_allclose(removed[j], BKB[own, own], **close)
            np.testing.assert_allclose(spread[j], outer[own, own], **close)
        start += q * k
    labels = rng.integers(-1, 4, rows.m).astype(np.int32)
    P = np.zeros((rows.m, 4))
    P[labels >= 0, labels[labels >= 0]] = 1.0
    np.testing.assert_allclose(rows.aggregated(K, labels, 4), P.T @ C @ P, rtol=1e-11, atol=1e-11 * np.abs(C).max())


def test_the_bits_do_not_depend_on_the_threads():
    rng = np.random.default_rng(2)
    x = None
    found = []
    for threads in (1, 2, 4):
        rows = build(2, 2, True, (2, 1), threads)[0]
        if x is None:
            x, u, K = rng.normal(size=(rows.m, WIDTH)), rng.normal(size=(Q, 2, WIDTH)), rng.normal(size=(Q, 2, 2))
        found.append([rows.product(K, x), rows.lead_sums(x), rows.tail_sums(u)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_does_not_match_is_refused():
    ptr, codes, two, one = np.array([0, 2], np.int64), np.array([[0], [1]], np.int32), np.array([2]), np.array([1])
    rows = RowForm(ptr, codes, two, one, None, None, None, 1)
    with pytest.raises(ValueError, match="shape"):
        rows.product(np.ones((1, 1, 1)), np.ones((3, WIDTH)))
    with pytest.raises(ValueError, match="7 vectors where one of"):
        rows.lead_sums(np.ones((2, WIDTH - 1)))
    with pytest.raises(ValueError, match="labels beyond 1"):
        rows.aggregated(np.ones((1, 1, 1)), np.array([0, 2], np.int32), 2)
    with pytest.raises(ValueError, match="codes lie outside 0 to 0"):
        RowForm(ptr, codes, one, one, None, None, None, 1)
    with pytest.raises(ValueError, match="ptr"):
        RowForm(np.array([0, 1], np.int64), codes, two, one, None, None, None, 1)
    with pytest.raises(ValueError, match=f"{MAX_LEADING + 1} columns"):
        RowForm(ptr, codes, two, one, np.ones((2, MAX_LEADING + 1)), None, None, 1)
    with pytest.raises(ValueError, match="rows do not match"):
        RowForm(ptr, codes, two, one, None, None, np.ones(3), 1)
    with pytest.raises(ValueError, match="covariates"):
        RowForm(ptr, codes, two, one, None, np.ones((2, 2)), None, 1)
    with pytest.raises(ValueError, match="covariates"):
        RowForm(ptr, np.zeros((2, 1), np.int32), two, two, None, None, None, 1)
    with pytest.raises(ValueError, match="factors"):
        RowForm(ptr, codes, np.array([2, 2]), one, None, None, None, 1)
    with pytest.raises(ValueError, match="needs rows"):
        RowForm(np.zeros(2, np.int64), np.zeros((0, 1), np.int32), two, one, None, None, None, 1)
