"""How the covariance of the fixed effects moves with the covariance parameters, and inverses of what says little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.information import assembled, contrast_df, group_slopes, pseudo_inverse
from fastlmm_core._native.rows.columns import triangle_inverse
from fastlmm_core.core.theta import group_factors

__all__ = ["DROPPED", "assembled", "contrast_df", "positive_inverse", "slopes_of", "upper_inverse"]

Array = NDArray[np.float64]

DROPPED = 1e-8
"""Eigenvalues of the scaled Hessian below this are left out of its inverse: the data say nothing in their direction."""


def slopes_of(
    index: NDArray[np.int64], theta: Array, levels: Sequence[tuple[Array, Array]], fixed_factor: Array
) -> tuple[Array, Array]:
    """F'(I x dSigma/dtheta_a)F (k, rank, rank), F = Z'V^-1X L^-T, and dr^2/dtheta (k,), in conditioned coordinates.

    Parameters
    ----------
    index : (k, 3)
        As `ThetaMap.index`.
    theta : (k,)
    levels : sequence of ((q * l, rank), (q, l))
        Z'V^-1X and Z'Py of each group.
    fixed_factor : (rank, rank)
        L of X'V^-1X = L L'.
    """
    factors = group_factors(index, theta, [t.shape[1] for _, t in levels])
    slopes, of_r2 = np.zeros((len(theta), *fixed_factor.shape)), np.zeros(len(theta))
    factor = np.ascontiguousarray(fixed_factor)
    for g, (x, t) in enumerate(levels):
        mine = np.flatnonzero(index[:, 0] == g)
        row, column = index[mine, 1], index[mine, 2]
        slopes[mine], of_r2[mine] = group_slopes(x, np.ascontiguousarray(t), factor, factors[g], row, column)
    return slopes, of_r2


def positive_inverse(matrix: Array) -> tuple[Array, int]:
    """Inverse of a symmetric matrix over its positive eigenvalues, and how many were left out.

    The diagonal is scaled to one first, so that the units of a parameter decide nothing.
    """
    return pseudo_inverse(matrix, DROPPED)


def upper_inverse(triangle: Array) -> Array:
    """Inverse of an upper triangle without zeros on its diagonal."""
    return triangle_inverse(triangle)
