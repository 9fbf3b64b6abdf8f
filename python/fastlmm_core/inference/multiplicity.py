"""Several tests at once: adjusted p-values and critical values of a family of t statistics.

The studentized range (Tukey 1953; Kramer 1956 for unequal variances) and the largest of correlated t statistics
(Dunnett 1955; Genz and Bretz 2009) have modules of their own; the stepwise methods are as in Wright (1992).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fastlmm_core.errors import ModelError, no_such
from fastlmm_core.inference.studentized_range import range_quantile, range_sf

if TYPE_CHECKING:
    from fastlmm_core.inference.largest import Largest

__all__ = ["ADJUSTMENTS", "STEPWISE", "adjusted_p", "adjustment_name", "critical_values", "n_means", "stepwise"]

Array = NDArray[np.float64]

STEPWISE = ("bonferroni", "holm", "hochberg", "hommel", "BH", "BY")
ADJUSTMENTS = ("none", "sidak", "tukey", "scheffe", "mvt", *STEPWISE)

_ALIASES = {"dunnett": "mvt", "fdr": "BH", "bh": "BH", "by": "BY", "max-t": "mvt"}


def adjustment_name(adjust: str) -> str:
    """The name of an adjustment in its one spelling; ModelError for an unknown one."""
    asked = str(adjust).lower()
    name = _ALIASES.get(asked, asked)
    if name not in ADJUSTMENTS:
        raise ModelError(no_such("adjust", adjust, (*ADJUSTMENTS, "dunnett")))
    return name


def stepwise(p: Array, how: str, counted: bool = False) -> Array:
    """P-values (n,) adjusted by a method that needs nothing but them (Wright 1992).

    NaN are no tests, or where they are `counted` tests without a result: the others are adjusted for all n.
    """
    out = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if counted and not known.all():
        out[known] = stepwise(np.where(known, p, 1.0), how)[known]
        return out
    q = p[known]
    n = len(q)
    order = np.argsort(q, kind="stable")
    rank, back = np.arange(1, n + 1), np.argsort(order, kind="stable")
    s = q[order]
    if how == "bonferroni":
        adjusted = n * s
    elif how == "holm":
        adjusted = np.maximum.accumulate((n - rank + 1) * s)
    elif how == "hochberg":
        adjusted = np.minimum.accumulate(((n - rank + 1) * s)[::-1])[::-1]
    elif how in ("BH", "BY"):
        scale = np.sum(1.0 / rank) if how == "BY" else 1.0
        adjusted = np.minimum.accumulate((scale * n / rank * s)[::-1])[::-1]
    else:
        adjusted = _hommel(s)
    out[known] = np.minimum(1.0, adjusted)[back]
    return out


def _hommel(s: Array) -> Array:
    """Hommel's (1988) closed test of Simes' type, for sorted p-values."""
    n = len(s)
    adjusted = np.full(n, np.min(n * s / np.arange(1, n + 1))) if n else s.copy()
    bound = adjusted.copy()
    for m in range(n - 1, 1, -1):
        first, last = np.arange(n - m + 1), np.arange(n - m + 1, n)
        least = np.min(m * s[last] / np.arange(2, m + 1))
        bound[first] = np.minimum(m * s[first], least)
        bound[last] = bound[n - m]
        adjusted = np.maximum(adjusted, bound)
    return np.maximum(adjusted, s)


def adjusted_p(p: Array, t: Array, df: Array, how: str, *, rank: int = 0, largest: Largest | None = None) -> Array:
    """P-values (..., n) of families of n tests adjusted for each.

    Parameters
    ----------
    p, t, df : (..., n)
        Of each test alone; NaN where it cannot be done, which does not make the family smaller.
    how : str
        One of `ADJUSTMENTS`; "tukey" takes the family to be all pairs of (1 + sqrt(1 + 8 n)) / 2 means.
    rank : int
        Of the family's covariance, for "scheffe".
    largest : Largest
        For "mvt".
    """
    n = p.shape[-1]
    if how == "sidak":
        return np.asarray(-np.expm1(n * np.log1p(-p)))
    if how == "tukey":
        return range_sf(np.sqrt(2.0) * np.abs(t), n_means(n), df)
    if how == "scheffe":
        finite = np.isfinite(df)
        f = np.square(t) / rank
        return np.where(finite, special.fdtrc(rank, np.where(finite, df, 1.0), f), special.chdtrc(rank, rank * f))
    if how == "mvt":
        assert largest is not None
        return largest.sf(t, df)
    if how not in STEPWISE:
        return p
    return stepwise(p, how, True) if p.ndim == 1 else np.array([stepwise(row, how, True) for row in p])


def critical_values(
    level: float, df: Array, how: str, n: int, sides: int, *, rank: int = 0, largest: Largest | None = None
) -> Array:
    """Multiples (len(df),) of the standard errors that simultaneous limits of a family of n lie away.

    `sides` is 2 for intervals, 1 for a single limit. Bonferroni's for the stepwise methods, as nothing sharper
    exists; unadjusted for "BH", as emmeans' users expect of a false discovery rate.
    """
    alpha = 1.0 - level
    if how == "tukey":
        return range_quantile(level, n_means(n), df) / np.sqrt(2.0)
    if how == "scheffe":
        return np.sqrt(
            rank
            * np.where(
                np.isfinite(df),
                special.fdtri(rank, np.where(np.isfinite(df), df, 1.0), level),
                special.chdtri(rank, alpha) / rank,
            )
        )
    if how == "mvt":
        assert largest is not None
        return largest.quantile(level, df)
    if how == "sidak":
        alpha = -np.expm1(np.log(level) / n)
    elif how in STEPWISE and how != "BH":
        alpha /= n
    finite = np.isfinite(df)
    return np.where(
        finite, special.stdtrit(np.where(finite, df, 1.0), 1.0 - alpha / sides), special.ndtri(1.0 - alpha / sides)
    )


def n_means(n_pairs: int) -> int:
    """How many means have this many pairs."""
    return round((1.0 + np.sqrt(1.0 + 8.0 * n_pairs)) / 2.0)
