"""The sparse engine: orderings, the symbolic phase, and an independent CHOLMOD binding as a second opinion."""

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_array, random_array

from fastlmm_core._tail_sparse import SparseTail, fill_ordering
from kernel_oracle import both, problem


def lower_pattern(m, density, seed):
    """Sorted rows of a random symmetric pattern's lower triangle, its whole diagonal included."""
    rng = np.random.default_rng(seed)
    entries = random_array((m, m), density=density, rng=rng).toarray() != 0
    full = np.tril(entries | entries.T | np.eye(m, dtype=bool))
    rows = csr_array(full)
    rows.sort_indices()
    return rows.indptr.astype(np.int64), rows.indices.astype(np.int64), full


def symbolic_factor(lower):
    """Pattern of L by the definition: eliminating j joins all rows below it that hold it."""
    fill = lower.copy()
    for j in range(len(fill)):
        below = np.flatnonzero(fill[j + 1 :, j]) + j + 1
        fill[np.ix_(below, below)] |= np.tril(np.ones((len(below),) * 2, bool))
    return fill


def permuted(lower, perm):
    full = lower | lower.T
    return np.tril(full[np.ix_(perm, perm)])


@pytest.mark.parametrize("method", ["amd", "metis"])
@pytest.mark.parametrize(("m", "density"), [(1, 0.0), (2, 0.0), (30, 0.05), (60, 0.02), (40, 1.0)])
def test_fill_ordering_is_a_permutation(m, density, method):
    ptr, idx, _ = lower_pattern(m, density, 0)
    perm = fill_ordering(ptr, idx, method)
    assert perm.dtype == np.int64
    np.testing.assert_array_equal(np.sort(perm), np.arange(m))


def test_fill_ordering_puts_the_hub_of_a_star_late():
    """Eliminating the hub first fills everything; an ordering that works leaves no fill at all."""
    m = 50
    lower = np.eye(m, dtype=bool)
    lower[:, 0] = True
    rows = csr_array(lower)
    perm = fill_ordering(rows.indptr.astype(np.int64), rows.indices.astype(np.int64))
    assert symbolic_factor(lower).sum() == m * (m + 1) // 2
    assert symbolic_factor(permuted(lower, perm)).sum() == 2 * m - 1


def test_fill_ordering_does_not_write_to_its_arguments():
    ptr, idx, _ = lower_pattern(30, 0.1, 1)
    ptr.flags.writeable = idx.flags.writeable = False
    fill_ordering(ptr, idx)


def test_unknown_ordering():
    ptr, idx, _ = lower_pattern(3, 0.1, 1)
    with pytest.raises(KeyError):
        fill_ordering(ptr, idx, "best")


@pytest.mark.parametrize(("m", "density", "seed"), [(1, 0.0, 0), (25, 0.05, 0), (60, 0.02, 1), (60, 0.1, 2), (9, 1, 3)])
def test_predict_counts_the_factor(m, density, seed):
    ptr, idx, lower = lower_pattern(m, density, seed)
    lnz, flops = SparseTail.predict(ptr, idx)
    columns = symbolic_factor(lower).sum(axis=0)
    assert lnz == columns.sum()
    assert flops == (columns**2).sum()


@pytest.mark.parametrize(("levels", "widths"), [((30, 11), (1, 1)), ((25, 7, 6), (2, 3, 1))])
def test_prediction_is_that_of_the_engine(levels, widths):
    objective, _ = both(problem(levels, widths, n=40), True, "sparse")
    tail = objective.evaluator.tail
    assert isinstance(tail, SparseTail)
    assert tail.m <= tail.lnz <= tail.m * (tail.m + 1) / 2
    assert tail.flops >= tail.lnz


MODELS = [
    pytest.param((40, 15), (1, 1), id="scalar"),
    pytest.param((40, 9, 7), (2, 1, 3), id="blocks"),
    pytest.param((60, 30, 12), (1, 2, 1), id="slope in the tail"),
]


@pytest.mark.parametrize(("levels", "widths"), MODELS)
@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_cholmod_through_another_binding(levels, widths, engine):
    """log|M| and Lambda M^-1 Lambda' f of the whole M, nothing eliminated beforehand."""
    cholmod = pytest.importorskip("sksparse.cholmod")
    objective, dense = both(problem(levels, widths, n=80, weighted=True), True, engine)
    rng = np.random.default_rng(2)
    for seed in range(3):
        theta = dense.random_theta(seed)
        factor = cholmod.cholesky(csc_matrix(dense.M(theta)))
        objective.evaluator.value(theta)
        np.testing.assert_allclose(objective.evaluator.logdet_m, factor.logdet(), rtol=1e-12)
        rhs = rng.normal(size=(2, dense.Z.shape[1]))
        lam = dense.lam(theta)
        expected = (lam @ factor.solve_A(lam.T @ rhs.T)).T
        lead, tail = rhs[:, : dense.lead_size].copy(), rhs[:, dense.lead_size :].copy()
        got = np.hstack(objective.evaluator.solve(theta, lead, tail)[:2])
        np.testing.assert_allclose(got, expected, atol=1e-11 * np.abs(expected).max())


def test_two_factors_share_nothing():
    """One CHOLMOD workspace each: evaluations of two models may alternate."""
    first, dense1 = both(problem((30, 11), (1, 1), seed=1), True, "sparse")
    second, dense2 = both(problem((25, 7, 6), (2, 3, 1), seed=2), True, "sparse")
    theta1, theta2 = dense1.random_theta(0), dense2.random_theta(0)
    alone = first.evaluator.value(theta1), second.evaluator.value(theta2)
    for _ in range(3):
        assert (first.evaluator.value(theta1), second.evaluator.value(theta2)) == alone
