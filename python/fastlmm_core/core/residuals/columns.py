"""Columns in which the residuals' log standard deviation is linear, and which rows they tell apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.arguments import as_floats
from fastlmm_core.core.residuals.residual import Residual
from fastlmm_core.core.residuals.units import combine
from fastlmm_core.errors import ModelError

__all__ = ["ResidualColumns", "residual_columns", "sigma_ratio"]

Array = NDArray[np.float64]

FAR = 300.0
"""Logarithm of a ratio of standard deviations whose square is still a number."""


@dataclass(frozen=True, eq=False)
class ResidualColumns:
    """Working columns: dummies of the variances but the first, then those of the dispersion, centred, of unit size.

    Attributes
    ----------
    n_variances : int
    log_sd : (n, e)
    center, unit_of : (e,)
        Of the columns as given.
    cell : (n,) int64
        Rows of equal cells have equal covariances with everything.
    size : int
        Number of cells.
    """

    n_variances: int
    log_sd: Array
    center: Array
    unit_of: Array
    cell: NDArray[np.int64]
    size: int


def residual_columns(residual: Residual) -> ResidualColumns:
    """The columns of a structure; DataError where the dispersion's are not finite."""
    n = len(residual.subject)
    variance, n_variances = residual.variance_of()
    columns = [(variance == v).astype(np.float64) for v in range(1, n_variances)]
    center, unit_of = np.zeros(len(columns)), np.ones(len(columns))
    cell, size = residual.cells.astype(np.int64), residual.n_positions * residual.n_groups
    if residual.dispersion is not None:
        given = as_floats(residual.dispersion, "dispersion")
        middle = np.zeros(given.shape[1])
        for j in range(given.shape[1]):
            cell, size = combine(cell, size, given[:, j])
            if not np.isin(given[:, j], (0.0, 1.0)).all():
                middle[j] = given[:, j].mean()
        spread = np.sqrt(np.mean(np.square(given - middle), axis=0))
        spread = np.where(spread > 0, spread, 1.0)
        columns += list(((given - middle) / spread).T)
        center, unit_of = np.append(center, middle), np.append(unit_of, spread)
    log_sd = np.column_stack(columns) if columns else np.zeros((n, 0))
    return ResidualColumns(n_variances, log_sd, center, unit_of, cell, size)


def sigma_ratio(center: Array, eta: Array) -> float:
    """The data's standard deviation over the user's sigma, which belongs to rows whose columns are zero.

    Parameters
    ----------
    center, eta : (e,)
        What was taken from the columns, and their coefficients.

    Raises
    ------
    ModelError
        It is no number.
    """
    logarithm = float(center @ eta)
    if abs(logarithm) > FAR:
        raise ModelError(
            "sigma is the residual standard deviation where the dispersion's columns are zero, which lies so far from "
            f"the data that it would be e^{-logarithm:.0f} times theirs: centre the columns"
        )
    return float(np.exp(logarithm))
