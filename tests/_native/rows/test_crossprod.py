"""Cross-products against products of dense incidence matrices."""

import numpy as np
import pytest

from fastlmm_core._native.rows.crossprod import level_blocks, level_sums, nested_cells, pair_cells, sort_rows
from kernel_oracle import incidence

N = 57


def factor(seed, q, l, n=N):
    """Codes in which some levels may have no row, and columns (None for an intercept)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, q, n).astype(np.int32)
    return codes, None if l == 0 else rng.normal(size=(n, l))


def weights(weighted):
    return np.random.default_rng(5).uniform(0.2, 3.0, N) if weighted else None


@pytest.mark.parametrize("q", [1, 4, 90])
def test_sort_rows_is_a_stable_sort(q):
    codes, _ = factor(1, q, 0)
    ptr, rows = sort_rows(codes, q)
    assert ptr.dtype == rows.dtype == np.int64
    np.testing.assert_array_equal(rows, np.argsort(codes, kind="stable"))
    np.testing.assert_array_equal(np.diff(ptr), np.bincount(codes, minlength=q))


def test_sort_rows_of_nothing():
    ptr, rows = sort_rows(np.empty(0, np.int32), 3)
    np.testing.assert_array_equal(ptr, np.zeros(4))
    assert len(rows) == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l", [0, 1, 2, 3])
@pytest.mark.parametrize("q", [1, 6, 80])
def test_level_blocks(q, l, weighted):
    codes, z = factor(2, q, l)
    w = weights(weighted)
    got = level_blocks(codes, q, z, w)
    Z = incidence(codes, q, z)
    product = Z.T @ (Z if w is None else w[:, None] * Z)
    width = max(l, 1)
    assert got.shape == (q, width, width)
    for j in range(q):
        s = slice(j * width, (j + 1) * width)
        np.testing.assert_allclose(got[j], product[s, s], atol=1e-13)
    np.testing.assert_array_equal(got, got.transpose(0, 2, 1))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l", [0, 1, 3])
@pytest.mark.parametrize("k", [1, 4])
def test_level_sums_chunk_by_chunk(k, l, weighted):
    codes, z = factor(3, 7, l)
    w = weights(weighted)
    d = np.random.default_rng(4).normal(size=(N, k))
    out = np.zeros((7 * max(l, 1), k))
    for rows in (slice(0, 20), slice(20, 20), slice(20, N)):
        level_sums(codes[rows], None if z is None else z[rows], None if w is None else w[rows], d[rows], out)
    np.testing.assert_allclose(out, incidence(codes, 7, z).T @ (d if w is None else w[:, None] * d), atol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("lg", "lh"), [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 3), (2, 3), (3, 3)])
def test_pair_cells(lg, lh, weighted):
    qg, qh = 6, 9
    (codes_g, zg), (codes_h, zh) = factor(6, qg, lg), factor(7, qh, lh)
    w = weights(weighted)
    ptr, idx, val = pair_cells(*sort_rows(codes_g, qg), zg, codes_h, qh, zh, w)
    a, b = max(lg, 1), max(lh, 1)
    assert (ptr.dtype, idx.dtype, val.shape) == (np.int64, np.int32, (len(idx), a, b))
    dense = np.zeros((qg, a, qh, b))
    for g in range(qg):
        cells = idx[ptr[g] : ptr[g + 1]]
        assert len(set(cells)) == len(cells)
        met = codes_h[codes_g == g]
        first = [h for i, h in enumerate(met) if h not in met[:i]]
        np.testing.assert_array_equal(cells, first)  # in order of first occurrence
        dense[g][:, cells] = val[ptr[g] : ptr[g + 1]].transpose(1, 0, 2)
    Zg, Zh = incidence(codes_g, qg, zg), incidence(codes_h, qh, zh)
    product = Zg.T @ (Zh if w is None else w[:, None] * Zh)
    np.testing.assert_allclose(dense.reshape(qg * a, qh * b), product, atol=1e-13)


def test_pair_cells_keep_pairs_whose_product_is_zero():
    """Patterns come from which levels occur together, never from values."""
    codes = np.array([0, 0, 1], np.int32)
    z = np.array([[1.0], [-1.0], [0.0]])
    ptr, idx, val = pair_cells(*sort_rows(codes, 2), None, np.zeros(3, np.int32), 1, z, None)
    np.testing.assert_array_equal(ptr, [0, 1, 2])
    np.testing.assert_array_equal(idx, [0, 0])
    np.testing.assert_array_equal(val.ravel(), [0.0, 0.0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("lg", "lh"), [(0, 0), (2, 0), (0, 3), (2, 3)])
@pytest.mark.parametrize("q", [9, 90], ids=["every level", "levels without rows"])
def test_nested_cells_are_pair_cells(q, lg, lh, weighted):
    codes, zg = factor(6, q, lg)
    outer, zh = (codes // 3).astype(np.int32), factor(7, 4, lh)[1]
    w = weights(weighted)
    found = nested_cells(codes, q, zg, outer, zh, w)
    assert found is not None
    for got, expected in zip(found, pair_cells(*sort_rows(codes, q), zg, outer, q, zh, w), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_nested_cells_of_crossed_factors():
    """Also where the last row alone says so."""
    codes = np.array([0, 1, 2, 0], np.int32)
    assert nested_cells(codes, 3, None, np.array([0, 0, 1, 1], np.int32), None, None) is None
    assert nested_cells(codes, 3, None, np.array([0, 0, 1, 0], np.int32), None, None) is not None
    with pytest.raises(ValueError, match="4 and 2 codes"):
        nested_cells(codes, 3, None, np.zeros(2, np.int32), None, None)
