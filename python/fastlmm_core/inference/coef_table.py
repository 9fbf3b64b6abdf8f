"""The table of coefficients with degrees of freedom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.inference.ddf import Method, t_pvalues
from fastlmm_core.inference.robust import covariance_method
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["coef_table", "coefficients"]

NAMES = ("estimate", "std_error", "df", "t", "p")
"""Columns of the table."""


def coef_table(
    result: FittedModel,
    *,
    ddf: str = "satterthwaite",
    cov_type: str = "model",
    cluster: Any = None,
) -> Table:
    """Estimates, standard errors, degrees of freedom, t and p; see `LmerResult.coef_table`."""
    with one_blas_thread():  # once for all that nests in it
        method = covariance_method(result, ddf, cov_type=cov_type, cluster=cluster)
        columns = coefficients(result, method)
    return table(columns, result.design.x_names, method.notes, NAMES)


def coefficients(result: FittedModel, method: Method) -> NDArray[np.float64]:
    """The table's columns (p, 5), those of `NAMES`: NaN in the row of a dropped coefficient."""
    p = len(result.core.beta)
    every = np.eye(len(method.beta))
    se = np.sqrt(method.variances(every))
    df = method.df(every)
    if method.determined is not None:
        df = np.where(np.isnan(se), np.nan, df)
    t = method.beta / se
    columns = np.array((method.beta, se, df, t, t_pvalues(t, df)))
    if len(method.beta) < p:
        known, columns = columns, np.full((5, p), np.nan)
        columns[:, ~np.isnan(result.core.beta)] = known
    return columns.T
