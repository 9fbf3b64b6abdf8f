"""The sparse engine, with an independent CHOLMOD binding as a second opinion."""

import numpy as np
import pytest
from scipy.sparse import csc_matrix

from kernel_oracle import both, problem

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
    """Each has a workspace of its own: evaluations of two models may alternate."""
    first, dense1 = both(problem((30, 11), (1, 1), seed=1), True, "sparse")
    second, dense2 = both(problem((25, 7, 6), (2, 3, 1), seed=2), True, "sparse")
    theta1, theta2 = dense1.random_theta(0), dense2.random_theta(0)
    alone = first.evaluator.value(theta1), second.evaluator.value(theta2)
    for _ in range(3):
        assert (first.evaluator.value(theta1), second.evaluator.value(theta2)) == alone
