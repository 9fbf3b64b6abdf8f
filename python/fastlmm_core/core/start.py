"""Where to start: moment estimates of the covariance parameters, each grouping factor on its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.start import moment_roots
from fastlmm_core.core.products import CrossProducts

__all__ = ["START_RANGE", "moment_start", "start_of"]

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
    return start_of(cross.blocks, cross.dense, float(cross.dtd[-1, -1]), cross.n, cross.theta_index)


def start_of(blocks: Sequence[Array], dense: Sequence[Array], total: float, n: int, index: NDArray[np.int64]) -> Array:
    """`moment_start` from blocks of Z'WZ, sums of which the last column is the response's, and its sum of squares."""
    return moment_roots(tuple(blocks), tuple(dense), n, total, index, RIDGE, *START_RANGE)
