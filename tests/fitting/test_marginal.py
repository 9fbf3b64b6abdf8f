from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import DataError, LmerResult


def dense(fit: LmerResult) -> np.ndarray:
    """σ² (W⁻¹ + Z Λ Λᵀ Zᵀ) of every row, from the whole Z."""
    n = fit.nobs
    V = np.diag(np.ones(n) if fit.design.weights is None else 1.0 / fit.design.weights)
    for term, cov in zip(fit.design.random, fit.var_corr(), strict=True):
        l = len(term.columns)
        Z = np.zeros((n, len(term.levels) * l))
        z = np.ones((n, 1)) if term.z is None else term.z
        for j in range(l):
            Z[np.arange(n), term.codes * l + j] = z[:, j]
        V += Z @ np.kron(np.eye(len(term.levels)), cov.cov / fit.sigma**2) @ Z.T
    return fit.sigma**2 * V


def test_equals_the_block_of_the_whole(slopes: LmerResult, weighted: LmerResult, crossed: LmerResult) -> None:
    for fit, level, k in ((slopes, "309", 0), (weighted, "330", 0), (crossed, ("sample", "C"), 1)):
        term = fit.design.random[k]
        name = level[1] if isinstance(level, tuple) else level
        rows = np.flatnonzero(np.asarray(term.levels)[term.codes] == name)
        np.testing.assert_allclose(fit.marginal_cov(level), dense(fit)[np.ix_(rows, rows)], rtol=1e-10)


def test_a_bare_level_belongs_to_the_first_group(crossed: LmerResult) -> None:
    np.testing.assert_array_equal(crossed.marginal_cov("a"), crossed.marginal_cov(("plate", "a")))


def test_what_is_not_there_is_named(slopes: LmerResult) -> None:
    with pytest.raises(DataError, match=r"Subject has no level 308; near it are '308'"):
        slopes.marginal_cov(308)
    with pytest.raises(DataError, match="'Batch' is not a grouping factor"):
        slopes.marginal_cov(("Batch", "A"))
