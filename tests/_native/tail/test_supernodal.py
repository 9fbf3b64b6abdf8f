"""Factor, log-determinant, solves and selected inverse against dense matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlmm_core._native.symbolic.ordering import fill_ordering
from fastlmm_core._native.tail.supernodal import SupernodalCholesky
from fastlmm_core.errors import NumericalError
from sparse_patterns import PATTERNS, compressed, permuted, random_pattern

patterns = pytest.mark.parametrize("name", PATTERNS)


def positive_definite(lower, seed=0):
    """Full symmetric matrix on a pattern, well conditioned, and its values by sorted rows."""
    rng = np.random.default_rng(seed)
    matrix = np.where(np.tril(lower, -1), rng.normal(size=lower.shape), 0.0)
    matrix += matrix.T
    matrix += np.diag(np.abs(matrix).sum(axis=1) + rng.uniform(0.5, 2.0, len(matrix)))
    return matrix, matrix[np.nonzero(lower)]


def check(lower, threads=1):
    matrix, values = positive_definite(lower)
    cholesky = SupernodalCholesky(*compressed(lower), threads)
    inverse = np.linalg.inv(matrix)
    for _ in range(2):  # the second time over what the inverse left behind
        assert cholesky.refactor(values) == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-12, abs=1e-12)
        rhs = np.random.default_rng(1).normal(size=(9, len(lower)))
        for k in (0, 1, 4, 9):
            expected = rhs[:k] @ inverse
            np.testing.assert_allclose(cholesky.solve(rhs[:k]), expected, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(cholesky.selected_inverse(), inverse[np.nonzero(lower)], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("order", ["given", "amd", "metis"])
@patterns
def test_against_dense_matrices(name, order):
    lower = PATTERNS[name]
    check(lower if order == "given" else permuted(lower, fill_ordering(*compressed(lower), order)))


@given(st.integers(1, 90), st.floats(0.0, 0.3), st.integers(0, 10**6))
def test_any_pattern(m, density, seed):
    check(random_pattern(m, density, seed))


@patterns
def test_threads_do_not_change_a_bit(name):
    ptr, idx = compressed(PATTERNS[name])
    values = positive_definite(PATTERNS[name])[1]
    rhs = np.random.default_rng(2).normal(size=(11, len(ptr) - 1))
    answers = []
    for threads in (1, 2, 3):
        cholesky = SupernodalCholesky(ptr, idx, threads)
        answers.append((cholesky.refactor(values), cholesky.solve(rhs), cholesky.selected_inverse()))
    for answer in answers[1:]:
        for a, b in zip(answer, answers[0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [-1.0, 0.0, np.nan, -np.inf])
@pytest.mark.parametrize("name", [name for name, lower in PATTERNS.items() if len(lower)])
def test_not_positive_definite(name, bad):
    """Whichever pivot fails; the next matrix is none the worse."""
    lower = PATTERNS[name]
    ptr, idx = compressed(lower)
    values = positive_definite(lower)[1]
    cholesky = SupernodalCholesky(ptr, idx)
    before = cholesky.refactor(values)
    for column in {0, len(lower) // 2, len(lower) - 1}:
        wrong = values.copy()
        wrong[ptr[column + 1] - 1] = bad
        with pytest.raises(NumericalError, match="not positive definite"):
            cholesky.refactor(wrong)
        with pytest.raises(ValueError, match="has not been factored"):
            cholesky.solve(np.zeros((1, len(lower))))
        assert cholesky.refactor(values) == before


def test_pivots_of_any_size():
    """The log-determinant is made of products; neither they nor a single pivot run out of range."""
    ptr, idx = compressed(np.eye(6, dtype=bool))
    values = np.array([1e300, 1e300, 1e-300, 1e-300, 1e-300, 1.0])
    assert SupernodalCholesky(ptr, idx).refactor(values) == pytest.approx(np.log(values).sum(), rel=1e-14)


def test_wrong_sizes_and_a_factor_that_is_gone():
    lower = PATTERNS["nested"]
    cholesky = SupernodalCholesky(*compressed(lower))
    values = positive_definite(lower)[1]
    with pytest.raises(ValueError, match="has not been factored"):
        cholesky.selected_inverse()
    with pytest.raises(ValueError, match=f"3 values for a pattern of {len(values)}"):
        cholesky.refactor(values[:3])
    cholesky.refactor(values)
    with pytest.raises(ValueError, match="right-hand sides have 2 entries"):
        cholesky.solve(np.zeros((1, 2)))
    cholesky.selected_inverse()
    with pytest.raises(ValueError, match="its inverse has taken"):
        cholesky.solve(np.zeros((1, len(lower))))
