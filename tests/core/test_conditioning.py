"""Independent columns, found a block at a time: the earliest ones, whatever lies where."""

import numpy as np
import pytest

from fastlmm_core import ModelError
from fastlmm_core.core import Term, fit
from fastlmm_core.core.conditioning import independent_columns, qr_triangle, without_few
from fastlmm_core.formula.transforms import natural_spline


@pytest.mark.parametrize("seed", range(6))
def test_the_earliest_independent_columns_are_kept(seed):
    """Dependent, repeated and empty columns within a block, across blocks, and more columns than rank."""
    random = np.random.default_rng(seed)
    p = int(random.integers(1, 300))
    rank = int(random.integers(1, p + 1))
    X = np.zeros((p + 40, p))
    basis = random.normal(size=(p + 40, rank)) * 10.0 ** random.uniform(-6, 6, rank)
    fresh = np.sort(random.choice(p, rank, replace=False))
    for j in range(p):
        earlier = np.searchsorted(fresh, j, side="right")
        if j in fresh:
            X[:, j] = basis[:, earlier - 1]
        elif earlier and random.random() < 0.8:
            chosen = random.choice(earlier, min(earlier, 3), replace=False)
            X[:, j] = (basis[:, chosen] / np.linalg.norm(basis[:, chosen], axis=0)) @ random.normal(size=len(chosen))
    r = np.linalg.qr(X, mode="r")
    np.testing.assert_array_equal(independent_columns(r), fresh)


def test_no_columns_and_empty_ones():
    assert len(independent_columns(np.zeros((0, 0)))) == 0
    assert len(independent_columns(np.zeros((3, 3)))) == 0


@pytest.mark.parametrize("seed", range(12))
def test_taking_few_columns_out_keeps_the_earliest_too(seed):
    random = np.random.default_rng(seed)
    p = int(random.integers(2, 40))
    X = random.normal(size=(60, p))
    for j in random.integers(0, p, 4):
        weights = random.integers(0, 2, p) * random.normal(size=p)
        weights[j] = 0.0
        X[:, j] = X @ weights
    r = qr_triangle(X)
    keep, kept = without_few(r)
    np.testing.assert_array_equal(keep, independent_columns(r))
    np.testing.assert_allclose(kept.T @ kept, X[:, keep].T @ X[:, keep], atol=1e-10 * np.abs(X).max() ** 2 * 60)
    np.testing.assert_array_equal(np.tril(kept, -1), 0.0)


def test_many_dependent_columns_are_left_to_the_blocks():
    assert without_few(qr_triangle(np.ones((90, 40)))) is None


def test_more_columns_than_rows_are_refused():
    # splines on 300 knots of 240 values: rounding makes more than 240 of their columns look independent
    x = np.random.default_rng(0).normal(size=240)
    columns = np.column_stack([np.ones(240), natural_spline(x, df=300)])
    with pytest.raises(ModelError, match="240 observations cannot determine"):
        fit(x, columns, [Term(np.arange(240) % 20)])
