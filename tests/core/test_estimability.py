"""Estimable functions: those whose value is the same for every solution of the normal equations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlmm_core.core import Term, fit


def two_way(rng, empty):
    """Dummies of a 3 x 4 layout, an intercept and all interactions, without the rows of the empty cells."""
    cells = np.array([(a, b) for a in range(3) for b in range(4) if (a, b) not in empty])
    a, b = np.repeat(cells, 3, axis=0).T
    A, B = np.eye(3)[a][:, 1:], np.eye(4)[b][:, 1:]
    return np.column_stack([np.ones(len(a)), A, B, (A[:, :, None] * B[:, None, :]).reshape(len(a), -1)])


def fitted(X, rng, **options):
    g = np.arange(len(X)) % 6
    return fit(rng.normal(size=len(X)) + 0.3 * g, X, [Term(g)], **options)


@given(
    st.integers(0, 2**32 - 1),
    st.sets(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=3),
    st.sampled_from([1.0, 1e-6, 1e7]),
)
def test_a_row_is_estimable_where_it_adds_no_rank(seed, empty, unit):
    rng = np.random.default_rng(seed)
    X = two_way(rng, empty)
    X = np.column_stack([X, X @ rng.integers(-2, 3, X.shape[1])])[:, rng.permutation(X.shape[1] + 1)]
    X = X[:, X.any(axis=0) | (rng.random(X.shape[1]) < 0.5)]
    rows = np.vstack([rng.integers(-2, 3, (6, X.shape[1])), rng.normal(size=(3, len(X))) @ X])
    rank = np.linalg.matrix_rank(X)
    wanted = [np.linalg.matrix_rank(np.vstack([X, row])) == rank for row in rows]
    scale = unit ** rng.choice([0.0, 1.0], X.shape[1])
    weights = rng.uniform(0.5, 2.0, len(X)) if seed % 2 else None
    found = fitted(X * scale, rng, weights=weights)
    assert found.estimable(rows * scale).tolist() == wanted
    assert found.estimable(X * scale).all()


@given(st.integers(0, 2**32 - 1))
def test_the_value_does_not_depend_on_the_columns_set_aside(seed):
    rng = np.random.default_rng(seed)
    X = two_way(rng, {(0, 1), (2, 3)})
    order = rng.permutation(X.shape[1])
    y = rng.normal(size=len(X))
    rows = rng.normal(size=(3, len(X))) @ X
    answers = []
    for columns in (np.arange(X.shape[1]), order):
        one = fit(y, X[:, columns], [Term(np.arange(len(X)) % 6)])
        kept = ~np.isnan(one.beta)
        L = rows[:, columns]
        assert one.estimable(L).all()
        L = L[:, kept]
        answers.append((L @ one.beta[kept], np.einsum("kx,xy,ky->k", L, one.cov_beta[np.ix_(kept, kept)], L)))
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-6, atol=1e-8)


def test_everything_is_estimable_in_a_fit_of_full_rank_and_nothing_that_is_not_finite_elsewhere():
    rng = np.random.default_rng(1)
    X = np.column_stack([np.ones(30), rng.normal(size=30)])
    assert fitted(X, rng).estimable(np.eye(2)).all()
    twice = fitted(np.column_stack([X, 2.0 * X[:, 1]]), rng)
    assert twice.estimable([[0, 1, 2], [0, 0, 1], [np.nan, 1, 2], [0, 0, 0]]).tolist() == [True, False, False, True]
    assert twice.estimable([1.0, 0.0, 0.0]).tolist() == [True]


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_covariate_far_from_zero(offset):
    rng = np.random.default_rng(2)
    x = offset + rng.normal(size=40)
    found = fitted(np.column_stack([np.ones(40), x, 3.0 * x - 1.0]), rng)
    rows = np.array([[1.0, offset + 2.0, 3.0 * (offset + 2.0) - 1.0], [1.0, offset + 2.0, 3.0 * (offset + 2.1) - 1.0]])
    assert found.estimable(rows).tolist() == [True, False]
