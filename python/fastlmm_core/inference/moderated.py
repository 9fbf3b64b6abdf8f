"""Moderated t statistics: variances of many responses shrunk towards a common one (Smyth 2004)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

from fastlmm_core.inference.ddf import t_pvalues
from fastlmm_core.inference.multiplicity import stepwise

__all__ = ["moderated_table", "squeeze"]

Array = NDArray[np.float64]


def squeeze(variance: Array, df: Array) -> tuple[Array, float, float]:
    """Posterior variances, and the prior's degrees of freedom and variance (Smyth 2004, section 6.2).

    Parameters
    ----------
    variance, df : (k,)
        Estimated variances, each on its degrees of freedom; NaN are left out.

    Returns
    -------
    posterior : (k,)
    prior_df : float
        Infinite where the variances differ no more than their degrees of freedom let them.
    prior_variance : float
    """
    known = np.isfinite(variance) & np.isfinite(df) & (variance > 0.0) & (df > 0.0)
    if known.sum() < 2:
        return variance.copy(), 0.0, np.nan
    half = 0.5 * df[known]
    e = np.log(variance[known]) - digamma(half) + np.log(half)
    mean = float(e.mean())
    excess = float(np.sum((e - mean) ** 2) / (len(e) - 1) - np.mean(polygamma(1, half)))
    if excess <= 0.0:
        prior = float(np.exp(mean))
        return np.where(known, prior, np.nan), np.inf, prior
    half_prior = _inverse_trigamma(excess)
    prior_df = 2.0 * half_prior
    prior = float(np.exp(mean + digamma(half_prior) - np.log(half_prior)))
    return np.where(known, (prior_df * prior + df * variance) / (prior_df + df), np.nan), prior_df, prior


def _inverse_trigamma(x: float) -> float:
    """The y with trigamma(y) = x, by Newton's method on 1 / trigamma, which is nearly linear."""
    y = 0.5 + 1.0 / x
    for _ in range(50):
        tri = float(polygamma(1, y))
        step = tri * (1.0 - tri / x) / float(polygamma(2, y))
        y += step
        if abs(step) < 1e-10 * y:
            break
    return y


def moderated_table(
    estimate: Array,
    std_error: Array,
    df: Array,
    n: NDArray[np.int64],
    is_singular: NDArray[np.bool_],
    message: NDArray[np.object_],
    names: Sequence[str],
    moderated: bool,
) -> pd.DataFrame:
    """Tests of one contrast in many responses, see `LmerMany.table`.

    What is shrunk is the variance of the estimate itself, which is comparable where the responses share a design.
    """
    notes = []
    if moderated:
        posterior, prior_df, prior = squeeze(std_error**2, df)
        std_error, df = np.sqrt(posterior), df + prior_df
        notes.append(f"variances shrunk towards {prior:.4g} with {prior_df:.4g} prior degrees of freedom (Smyth 2004)")
    with np.errstate(divide="ignore", invalid="ignore"):
        t = estimate / std_error
    p = t_pvalues(t, df)
    frame = pd.DataFrame(
        {
            "estimate": estimate,
            "std_error": std_error,
            "df": df,
            "t": t,
            "p": p,
            "p_adjusted": stepwise(p, "BH"),
            "n": n,
            "is_singular": is_singular,
            "message": message,
        },
        index=pd.Index(list(names), name="response"),
    )
    frame.attrs["notes"] = notes
    return frame
