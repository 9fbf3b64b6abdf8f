"""Where to start: moment estimates of the covariance parameters, each grouping factor on its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.start import ridge_sums
from fastlmm_core.core.crossprod import CrossProducts

__all__ = ["moment_start"]

Array = NDArray[np.float64]

START_RANGE = (0.1, 10.0)
"""Smallest and largest relative standard deviation to start from."""

RIDGE = 1.0
"""Prior precision, in rows' worth, that keeps the estimates of small levels finite."""


def moment_start(cross: CrossProducts) -> Array:
    """Conditioned theta to start from (n_theta,).

    With s_j a level's cross-products with the residual on X and A_j its block of Z'WZ, the ridge estimates
    b_j = (A_j + I)^-1 s_j have E[b b'] = H Sigma H' + sigma^2 (A + I)^-1 H', H = (A + I)^-1 A, if no other factor
    contributes. Sigma is read off the averages over levels, made positive definite and scaled by what the factors leave
    of the residual's mean square.
    """
    n, total = cross.n, float(cross.dtd[-1, -1])
    estimates = [
        group_moment(blocks, dense[:, -1], n, total) for blocks, dense in zip(cross.blocks, cross.dense, strict=True)
    ]
    explained = sum(float(np.trace(e)) for e in estimates)
    residual = max(total / n - explained, 0.1 * total / n)
    low, high = START_RANGE
    factors = []
    for g, estimate in enumerate(estimates):
        if estimate.size == 1:
            factors.append(np.sqrt(np.clip(estimate / residual, low**2, high**2)))
            continue
        free = np.zeros(estimate.shape, bool)
        index = cross.theta_index[cross.theta_index[:, 0] == g]
        free[index[:, 1], index[:, 2]] = True
        values, vectors = np.linalg.eigh(np.where(free | free.T, estimate, 0.0) / residual)
        factors.append(np.linalg.cholesky((vectors * np.clip(values, low**2, high**2)) @ vectors.T))
    return np.array([factors[g][i, j] for g, i, j in cross.theta_index.tolist()])


def group_moment(blocks: Array, s: Array, n: int, total: float) -> Array:
    """Sigma (l, l) times sigma^2 of one grouping factor, not necessarily positive definite."""
    q = len(blocks)
    bb, spread, kept, fitted, freedom = ridge_sums(blocks, s, RIDGE)
    noise = max(total - fitted, 0.0) / max(n - freedom, 1.0)
    root = np.sqrt(np.maximum(kept / q, 1e-8))
    return np.asarray((bb - noise * spread) / (q * np.outer(root, root)))
