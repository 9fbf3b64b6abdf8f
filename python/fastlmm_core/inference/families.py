"""Tests and simultaneous limits of `Estimates`, one family a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr

from fastlmm_core.inference.ddf import t_pvalues
from fastlmm_core.inference.largest import Largest
from fastlmm_core.inference.multiplicity import STEPWISE, adjusted_p, critical_values, n_means

if TYPE_CHECKING:
    from fastlmm_core.inference.estimates import Estimates

__all__ = ["SIDES", "family_results", "simulated_p"]

Array = NDArray[np.float64]

SIDES = {
    "two-sided": 0,
    "greater": 1,
    "less": -1,
    "noninferiority": 1,
    "nonsuperiority": -1,
    "equivalence": 2,
}


def statistics(estimates: Estimates, est: Array, se: Array, df: Array) -> tuple[Array, Array, int]:
    """T and p of each row's hypothesis for estimates (..., k), and the side: 1, -1, 0, or 2 for equivalence."""
    side = SIDES[estimates.side] if not (estimates.side == "two-sided" and estimates.delta) else 2
    null = np.broadcast_to(np.asarray(estimates.null, np.float64), est.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        if side == 2:
            t = (np.abs(est - null) - estimates.delta) / se
        else:
            t = (est - null + side * estimates.delta) / se
    return t, t_pvalues(t, df) if side == 0 else _upper(t if side == 1 else -t, df), side


def family_results(estimates: Estimates, adjusted_limits: bool) -> tuple[Array, Array, Array, Array, list[str]]:
    """t, p, limits on the link scale, and what the adjustment came to in words."""
    est, se, df = estimates.estimate, estimates.std_error, estimates.df
    t, p, side = statistics(estimates, est, se, df)
    lower, upper = np.full(len(t), np.nan), np.full(len(t), np.nan)
    words: dict[str, None] = {}
    for group in estimates.groups():
        known = group[~np.isnan(t[group])]
        how, word = _adjustment(estimates, len(group), side)
        words[word] = None
        if not len(known):
            continue
        rows = estimates.functions.rows[known]
        largest, rank = None, 0
        if how == "mvt":
            largest = Largest(rows @ estimates.method.cov @ rows.T, 0 if side == 0 else 1)
            if largest.error:
                words[f"max-t probabilities have a standard error of {largest.error:.1g}"] = None
        if how == "scheffe":
            rank = _rank(estimates, group)
        signed = t[known] if side in (0, 1) else -t[known]
        if how != "none":
            p[group] = adjusted_p(
                p[group], _scattered(signed, group, known), df[group], how, rank=rank, largest=largest
            )
        both = side in (0, 2)
        # an equivalence test's limits are those of two-sided intervals
        how_limits = "none" if not adjusted_limits else _adjustment(estimates, len(group), 0)[0] if both else how
        if side == 2 and how_limits == "mvt":
            largest = Largest(rows @ estimates.method.cov @ rows.T, 0)
        if how_limits == "scheffe":
            rank = _rank(estimates, group)
        c = critical_values(
            estimates.level, df[known], how_limits, len(group), 2 if both else 1, rank=rank, largest=largest
        )
        lower[known] = est[known] - c * se[known] if side != -1 else -np.inf
        upper[known] = est[known] + c * se[known] if side != 1 else np.inf
    return t, p, lower, upper, [word for word in words if word]


def simulated_p(estimates: Estimates, est: Array, se: Array, df: Array) -> Array:
    """Adjusted p-values (k, n) of the n rows for k simulated sets of estimates, standard errors and df.

    The correlations that "mvt" and the rank that "scheffe" need are those of `estimates`.
    """
    t, p, side = statistics(estimates, est, se, df)
    for group in estimates.groups():
        how, _ = _adjustment(estimates, len(group), side)
        if how == "none":
            continue
        rows = estimates.functions.rows[group]
        largest = Largest(rows @ estimates.method.cov @ rows.T, 0 if side == 0 else 1) if how == "mvt" else None
        rank = _rank(estimates, group) if how == "scheffe" else 0
        signed = t[:, group] if side in (0, 1) else -t[:, group]
        p[:, group] = adjusted_p(p[:, group], signed, df[:, group], how, rank=rank, largest=largest)
    return p


def _adjustment(estimates: Estimates, n: int, side: int) -> tuple[str, str]:
    """The adjustment that a family of n tests gets, and a note on it."""
    how = estimates.adjust
    if n <= 1 and how != "scheffe":
        return "none", ""
    reason = ""
    if how == "tukey" and not estimates.pairwise:
        how, reason = "sidak", ": Tukey's is for all pairs of a group's means only"
    elif how in ("tukey", "scheffe") and side != 0:
        how, reason = "sidak", f": {estimates.adjust} is for two-sided tests only"
    if how == "none":
        return how, ""
    words = {"tukey": f"Tukey's method for a family of {n_means(n)} means", "mvt": f"max-t for {n} tests"}
    text = words.get(how, f"{how} for {n} tests")
    if how in STEPWISE and how != "bonferroni":
        text += "; limits " + ("not adjusted" if how == "BH" else "by Bonferroni's")
    return how, f"adjusted: {text}{reason}"


def _rank(estimates: Estimates, group: NDArray[np.int64]) -> int:
    """Linearly independent rows of a family, those without values included."""
    return int(np.linalg.matrix_rank(np.nan_to_num(estimates.functions.L[group])))


def _upper(t: Array, df: Array) -> Array:
    """P(T > t); the normal's where df is infinite."""
    finite = np.isfinite(df)
    return np.asarray(np.where(finite, stdtr(np.where(finite, df, 1.0), -t), ndtr(-t)))


def _scattered(values: Array, group: NDArray[np.int64], known: NDArray[np.int64]) -> Array:
    out = np.full(len(group), np.nan)
    out[np.isin(group, known)] = values
    return out
