"""Sandwich covariances of the coefficients of models with independent units.

With V_i = C_i C_i', X~_i = C_i^-1 X_i, e~_i = C_i^-1 (y_i - X_i beta), Phi = (X'V^-1X)^-1, H_i = X~_i Phi X~_i':

    Cov = Phi { sum_i X~_i'A_i e~_i e~_i'A_i'X~_i } Phi,
    A_i = I (CR0; Liang & Zeger 1986), (I - H_i)^-1/2 (CR2; Bell & McCaffrey 2002) or
    (I - H_i)^-1 (CR3; Mancl & DeRouen 2001)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.core.residuals import PatternFit
from fastlmm_core.errors import ModelError

if TYPE_CHECKING:
    from fastlmm_core.formula import Design

__all__ = ["robust_cov", "sandwich"]

Array = NDArray[np.float64]

POWERS = {"CR0": 0.0, "CR2": -0.5, "CR3": -1.0}

LEVERAGE = 1e-10
"""Directions in which a unit determines its own fit this closely are left out of its adjustment."""


def sandwich(fit: PatternFit, kind: str) -> Array:
    """Covariance (rank, rank) of the coefficients kept.

    Parameters
    ----------
    fit : PatternFit
    kind : {"CR0", "CR2", "CR3"}
    """
    if kind not in POWERS:
        raise ModelError(f"robust covariance {kind!r} does not exist: use one of {', '.join(POWERS)}")
    power = POWERS[kind]
    root = 1.0 if fit.model.root is None else fit.model.root[:, None]
    X = fit.model.X[:, fit.model.keep] * root
    e = (fit.response - fit.linear)[:, None] * root
    H = fit.half / fit.working  # Phi = H H'
    meat = np.zeros((fit.rank, fit.rank))
    for part, V in zip(fit.parts, fit.covariances(marginal=True), strict=True):
        whiten = np.linalg.inv(np.linalg.cholesky(V))[part.pattern]
        x, r = whiten @ X[part.units] @ H, whiten @ e[part.units]
        if power:
            values, vectors = np.linalg.eigh(np.eye(x.shape[1]) - x @ x.transpose(0, 2, 1))
            with np.errstate(divide="ignore"):
                scaled = np.where(values > LEVERAGE, np.maximum(values, LEVERAGE) ** power, 0.0)
            r = vectors @ (scaled[:, :, None] * (vectors.transpose(0, 2, 1) @ r))
        scores = (x.transpose(0, 2, 1) @ r)[:, :, 0]
        meat += scores.T @ scores
    return np.asarray(H @ meat @ H.T)


def robust_cov(design: Design, core: PatternFit, kind: str) -> pd.DataFrame:
    """`sandwich` as a labelled table, NaN for columns dropped."""
    names = list(design.x_names)
    out = np.full((len(names), len(names)), np.nan)
    out[np.ix_(core.model.keep, core.model.keep)] = sandwich(core, kind)
    return pd.DataFrame(out, index=names, columns=names)
