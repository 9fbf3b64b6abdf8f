"""Dense tails on both sides of the size up to which loops take LAPACK's place."""

import numpy as np
import pytest

from fastlmm_core.core import Model, Term
from kernel_oracle import Dense


@pytest.mark.parametrize("m", [1, 2, 7, 23, 24, 25, 40])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
def test_loops_and_lapack_agree_with_dense_algebra(m, width, reml):
    rng = np.random.default_rng(m)
    n, q = 300, 45
    second = rng.permutation(np.arange(n) % max(2, m // width))
    z = np.column_stack([np.ones(n), rng.normal(size=n)]) if width == 2 else None
    terms = [Term(rng.permutation(np.arange(n) % q), n_levels=q), Term(second, z, n_levels=max(2, m // width))]
    X = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    model, y = Model(X, terms, reml=reml), rng.normal(size=n) + rng.normal(size=q)[terms[0].codes]
    objective = model.objective(y)
    dense = Dense(model, y, objective.plan)
    theta = objective.conditioned_start
    value, gradient, hessian = objective.evaluator.derivatives(theta)
    np.testing.assert_allclose(value, dense.value(theta), rtol=1e-11)
    expected_gradient, expected_hessian = dense.derivatives(theta)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8 * max(1.0, np.abs(expected_gradient).max()))
    np.testing.assert_allclose(hessian, expected_hessian, atol=1e-8 * np.abs(expected_hessian).max())
