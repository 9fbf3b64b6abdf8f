"""The table of coefficients with degrees of freedom."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.inference.ddf import Method, t_pvalues
from fastlmm_core.inference.robust import covariance_method
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["CoefArrays", "coef_arrays", "coef_table", "coefficients"]


class CoefArrays(NamedTuple):
    """The columns of the table of coefficients, each (p,): NaN for a dropped coefficient.

    Attributes
    ----------
    estimate, std_error, df, t, p : ndarray (p,)
    """

    estimate: NDArray[np.float64]
    std_error: NDArray[np.float64]
    df: NDArray[np.float64]
    t: NDArray[np.float64]
    p: NDArray[np.float64]


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
    return table(columns.T, result.design.x_names, method.notes, CoefArrays._fields)


def coef_arrays(
    result: FittedModel, *, ddf: str = "satterthwaite", cov_type: str = "model", cluster: Any = None
) -> CoefArrays:
    """The same without a table; see `LmerResult.coef_arrays`."""
    method = covariance_method(result, ddf, cov_type=cov_type, cluster=cluster)
    return CoefArrays(*coefficients(result, method))


def coefficients(result: FittedModel, method: Method) -> NDArray[np.float64]:
    """The table's columns (5, p), those of `CoefArrays`: NaN for a dropped coefficient."""
    p, beta = len(result.core.beta), method.beta
    every = identity(len(beta))
    columns = np.empty((5, len(beta)))
    estimate, se, df, t, p_value = columns
    estimate[:], df[:] = beta, method.df(every)
    np.sqrt(method.cov.diagonal() if method.determined is None else method.variances(every), out=se)
    if method.determined is not None:
        df[np.isnan(se)] = np.nan
    np.divide(beta, se, out=t)
    p_value[:] = t_pvalues(t, df)
    if len(beta) < p:
        known, columns = columns, np.full((5, p), np.nan)
        columns[:, ~np.isnan(result.core.beta)] = known
    return columns


@lru_cache(maxsize=16)
def identity(n: int) -> NDArray[np.float64]:
    """The identity (n, n), read-only."""
    out = np.eye(n)
    out.setflags(write=False)
    return out
