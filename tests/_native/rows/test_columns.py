from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core._native.rows.columns import (
    all_finite,
    extent,
    gram_factor,
    least,
    present,
    small_inverse,
    triangle_inverse,
)

LIMITS = 1e-6, 1e-290, 1e290


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_factor_of_the_gram_matrix(width: int, weighted: bool) -> None:
    rng = np.random.default_rng(width)
    columns = rng.normal(size=(40, width)) * 10.0 ** rng.integers(-6, 7, width)
    root = rng.uniform(0.5, 2.0, 40) if weighted else None
    r = gram_factor(columns[:, ::-1], root, *LIMITS)
    assert r is not None
    rows = columns[:, ::-1] if root is None else columns[:, ::-1] * root[:, None]
    expected = np.linalg.qr(rows, mode="r")
    expected *= np.sign(expected.diagonal())[:, None]
    scale = np.sqrt(np.square(rows).sum(axis=0))
    assert np.array_equal(r, np.triu(r))
    assert np.abs((r - expected) / scale).max() < 1e-13
    inverse = triangle_inverse(r)
    assert np.array_equal(inverse, np.triu(inverse))
    assert np.abs((scale[:, None] * inverse) @ (r / scale) - np.eye(width)).max() < 1e-13


def test_columns_that_need_a_closer_look_have_none() -> None:
    x = np.linspace(0.0, 1.0, 20)
    assert gram_factor(np.column_stack([x, 2 * x]), None, *LIMITS) is None
    assert gram_factor(np.column_stack([x, np.zeros(20)]), None, *LIMITS) is None
    assert gram_factor(np.column_stack([x, np.full(20, 1e200)]), None, *LIMITS) is None
    assert gram_factor(np.column_stack([np.ones(20), 1e6 + x]), None, *LIMITS) is None


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 8"):
        gram_factor(np.ones((3, 9)), None, *LIMITS)
    with pytest.raises(ValueError, match="2 roots of weights for 3 rows"):
        gram_factor(np.ones((3, 1)), np.ones(2), *LIMITS)
    with pytest.raises(ValueError, match="2 x 3"):
        triangle_inverse(np.ones((2, 3)))
    assert triangle_inverse(np.empty((0, 0))).shape == (0, 0)


@pytest.mark.parametrize("w", [0, 1, 3, 8])
def test_small_inverse(w):
    root = np.random.default_rng(w).normal(size=(w + 2, w))
    matrix = root.T @ root
    np.testing.assert_allclose(small_inverse(matrix), np.linalg.inv(matrix) if w else matrix, rtol=1e-8)


def test_small_inverse_refuses_what_has_none():
    with pytest.raises(ValueError, match="at most 8"):
        small_inverse(np.eye(9))
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        small_inverse(np.zeros((2, 2)))


def test_finite_values_are_told_from_others():
    values = np.array([1.0, -1e308, 1e308, 0.0, 5e-324])
    assert all_finite(values)
    assert all_finite(np.empty(0))
    for bad in (np.nan, np.inf, -np.inf):
        for at in range(len(values)):
            changed = values.copy()
            changed[at] = bad
            assert not all_finite(changed)


def test_least_and_largest_of_a_column() -> None:
    x = np.array([3.0, -1.0, 7.0, 2.0, -5.0, 9.0])
    assert extent(x) == (-5.0, 9.0)
    assert extent(x[::2]) == (-5.0, 7.0)
    assert extent(np.array([np.inf, 1.0, -np.inf])) == (-np.inf, np.inf)
    for at in range(3):  # wherever it is
        x = np.array([1.0, 2.0, 3.0])
        x[at] = np.nan
        assert np.isnan(extent(x)).all()
    with pytest.raises(ValueError, match="no extent"):
        extent(np.empty(0))


def test_codes_that_are_there() -> None:
    codes = np.array([4, 0, 2, 0, 4], np.int32)
    there, count = present(codes, 6)
    assert there.tolist() == [True, False, True, False, True, False]
    assert there.dtype == np.bool_
    assert count == 3
    assert present(codes[::2], 5)[1] == 2
    assert least(codes) == 0
    assert least(np.array([3, -1, 5], np.int32)) == -1
    assert least(np.empty(0, np.int32)) == 0
    assert present(np.array([-1, 1, -1], np.int32), 2)[0].tolist() == [False, True]
    with pytest.raises(IndexError, match="code 6 of row 1"):
        present(np.array([0, 6], np.int32), 6)
