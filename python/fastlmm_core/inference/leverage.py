"""Leverages: the diagonal of the matrix that takes the response to the fitted values.

With C the inverse of the mixed-model equations and r_i = (x_i, z_i) a row of [X Z], at the estimated theta
    y-hat = [X Z] C [X Z]'W y,        h_i = w_i r_i'C r_i = w_i (z_i'H z_i + |L_X^-1 (x_i - N'z_i)|^2)
(Demidenko & Stukel 2005; lme4's `hatvalues`). Their sum is the fit's effective number of coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastlmm_core.core.threads import bounded
from fastlmm_core.inference.joint_inverse import JointInverse, RowSet, row_set

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit, Objective
    from fastlmm_core.formula import Design

__all__ = ["FittedRows", "fitted_rows", "leverages", "rows_of_fit"]


@dataclass(frozen=True)
class FittedRows:
    """What deletion formulas need of the rows of a fit.

    Attributes
    ----------
    inverse : JointInverse
    rows : RowSet
    weights : (n,)
        Relative to their mean, as the conditioned fit has them.
    half : (n, rank)
        L_X^-1 g_i.
    leverage : (n,)
    """

    inverse: JointInverse
    rows: RowSet
    weights: NDArray[np.float64]
    half: NDArray[np.float64]
    leverage: NDArray[np.float64]


def rows_of_fit(design: Design, core: CoreFit) -> RowSet:
    """The rows of a fit in its conditioned coordinates."""
    return row_set(core.cross, design.X, [(t.codes, t.z) for t in design.random])


def fitted_rows(design: Design, core: CoreFit, objective: Objective) -> FittedRows:
    """Leverages and their parts; one factorisation and its inverse, never n x n.

    ``objective`` is the fit's, and the answer's own workspace from then on.
    """
    inverse = JointInverse(objective, core.theta)
    rows = rows_of_fit(design, core)
    half = inverse.half(rows)
    weights = np.ones(len(rows)) if design.weights is None else design.weights / core.cross.conditioning.weight_scale
    leverage = weights * (inverse.random_forms(rows) + np.einsum("ij,ij->i", half, half))
    return FittedRows(inverse, rows, weights, half, leverage)


@bounded
def leverages(design: Design, core: CoreFit) -> NDArray[np.float64]:
    """Diagonal of the hat matrix, (n,); computed once a fit."""
    if "leverages" not in core.kept:
        with core.workspace() as objective:
            core.kept["leverages"] = fitted_rows(design, core, objective).leverage
    leverage: NDArray[np.float64] = core.kept["leverages"]
    return leverage
