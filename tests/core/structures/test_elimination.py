"""A sparse matrix eliminated in part, and the traces of its core by probes, against dense algebra."""

import numpy as np
import pytest
import scipy.sparse as sp

from fastlmm_core.core.structures.elimination import Elimination
from fastlmm_core.core.structures.probed_factor import ProbedFactor
from fastlmm_core.errors import NumericalError

M_ROWS = 120


def example(seed, hubs=0):
    """A positive definite matrix of a random graph, a change on its pattern, and entries of both lower triangles."""
    rng = np.random.default_rng(seed)
    m = M_ROWS
    pairs = rng.integers(0, m, (170, 2))
    graph = sp.coo_array((np.ones(170), (pairs[:, 0], pairs[:, 1])), shape=(m, m)).toarray()
    graph[:hubs] = 1.0
    pattern = (graph + graph.T + np.eye(m)) > 0
    rows, columns = (a.astype(np.int64) for a in np.nonzero(np.tril(pattern)))
    shuffled = rng.permutation(len(rows))
    rows, columns = rows[shuffled], columns[shuffled]
    M, dM = (np.where(pattern, (a := rng.normal(size=(m, m))) + a.T, 0.0) for _ in range(2))
    np.fill_diagonal(M, 0.0)
    np.fill_diagonal(M, 0.8 * np.abs(M).sum(axis=1) + 1.0)
    assert np.linalg.eigvalsh(M)[0] > 0
    return M, dM, rows, columns


@pytest.mark.parametrize("seed", [1, 2])
def test_elimination_solutions_changes_and_inverse_are_dense_algebras(seed):
    M, dM, rows, columns = example(seed)
    plan = Elimination(M_ROWS, rows, columns)
    assert 30 < plan.k < M_ROWS - 30  # both parts are there
    reduced, core = plan.reduce(M[rows, columns]), plan.core
    k = M_ROWS - plan.k
    S, dS = np.zeros((k, k)), np.zeros((k, k))
    S[core.rows, core.idx] = reduced.core
    known, changed = reduced.change(dM[rows, columns])
    dS[core.rows, core.idx] = changed
    inverse, expected = np.linalg.inv(M), np.linalg.slogdet(M)[1]
    np.testing.assert_allclose(reduced.log_det + np.linalg.slogdet(S)[1], expected, rtol=1e-12)
    np.testing.assert_allclose(known + np.trace(np.linalg.solve(S, dS)), np.trace(inverse @ dM), atol=1e-11)
    b = np.random.default_rng(0).normal(size=(M_ROWS, 3))
    x = reduced.down(b[plan.order])
    x[plan.k :] = np.linalg.solve(S, x[plan.k :])
    np.testing.assert_allclose(reduced.up(x)[plan.place], inverse @ b, atol=1e-12)
    found = reduced.inverse(np.linalg.inv(S)[core.rows, core.idx])
    np.testing.assert_allclose(found, inverse[rows, columns], atol=1e-13)


@pytest.mark.parametrize("hubs", [0, 3])
@pytest.mark.parametrize("work", [np.inf, 0.0])
def test_traces_log_determinant_and_inverse_by_probes_are_within_their_errors(monkeypatch, hubs, work):
    monkeypatch.setattr("fastlmm_core.core.structures.probed_factor.WORK", work)
    monkeypatch.setattr("fastlmm_core.core.structures.probed_factor.HUB", 2.0)
    M, dM, rows, columns = example(3, hubs)
    factor = ProbedFactor(M_ROWS, rows, columns, 0, "")
    factor.refactor(M[rows, columns])
    assert (len(factor.hubs) >= 3) == (hubs == 3)
    b = np.random.default_rng(0).normal(size=(M_ROWS, 9))
    np.testing.assert_allclose(factor.solve(b), np.linalg.solve(M, b), atol=1e-10)
    inverse = np.linalg.inv(M)
    values = factor.traces([dM[rows, columns], M[rows, columns]], 16)
    exact = np.array([np.trace(inverse @ dM), M_ROWS])
    assert (np.abs(values.mean(axis=0) - exact) < 4.0 * values.std(axis=0) / np.sqrt(128) + 1e-9).all()
    found, error = factor.log_determinant(8)
    assert abs(found - np.linalg.slogdet(M)[1]) < 4.0 * error + 1e-9
    assert error < 0.2
    estimates, errors = factor.inverse_and_errors()
    assert (np.abs(estimates - inverse[rows, columns]) < 6.0 * errors + 1e-9).all()


def test_controls_have_the_means_that_they_are_said_to_have():
    """A basis of probes takes a trace outright: what control variates add and take away is the same then."""
    M, dM, rows, columns = example(4)
    factor = ProbedFactor(M_ROWS, rows, columns, 0, "")
    factor.refactor(M[rows, columns])
    factor.deflate()
    k, basis = len(factor.scale), []
    for s in range(0, k, 8):
        block = np.zeros((k, 8))
        block[np.arange(s, min(s + 8, k)), np.arange(min(8, k - s))] = 1.0
        basis.append(block)
    factor.deflated = basis
    exact = np.trace(np.linalg.solve(M, dM))
    np.testing.assert_allclose(factor.traces([dM[rows, columns]], 1), exact, atol=1e-4)  # the probes' tolerance
    found, error = factor.log_determinant(1)
    np.testing.assert_allclose(found, np.linalg.slogdet(M)[1], rtol=1e-9)
    assert error < 1e-9


def test_an_indefinite_matrix_is_refused():
    M, _, rows, columns = example(5)
    factor = ProbedFactor(M_ROWS, rows, columns, 0, "")
    with pytest.raises(NumericalError, match="not positive definite"):
        factor.refactor(-M[rows, columns])
    factor.refactor(M[rows, columns])
    factor.T = -factor.T
    with pytest.raises(NumericalError, match="not positive definite"):
        factor.solve(np.ones((M_ROWS, 1)))


def test_a_right_hand_side_of_zero_after_another():
    M, _, rows, columns = example(1)
    factor = ProbedFactor(M_ROWS, rows, columns, 0, "")
    factor.refactor(M[rows, columns])
    b = np.random.default_rng(0).normal(size=(M_ROWS, 2))
    np.testing.assert_allclose(factor.solve(b), np.linalg.solve(M, b), atol=1e-9)
    b[:, 0] = 0.0
    found = factor.solve(b)  # begins from the solutions before
    assert (found[:, 0] == 0.0).all()
    np.testing.assert_allclose(found, np.linalg.solve(M, b), atol=1e-9)
    b[3, 1] = np.nan
    with pytest.raises(NumericalError):
        factor.solve(b)
