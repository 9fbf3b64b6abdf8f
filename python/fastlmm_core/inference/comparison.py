"""How well a model does, and how several compare: information criteria, R2, intraclass correlations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from fastlmm_core.errors import FastLMMError, FastLMMWarning, ModelError, warn
from fastlmm_core.fitting.predict import sparse_part
from fastlmm_core.fitting.spelling import METHOD_ARGUMENTS, answered
from fastlmm_core.inference.monte_carlo import check_pair
from fastlmm_core.inference.refits import ml_fit
from fastlmm_core.inference.same_data import same_columns, same_criterion, same_data
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.core.glmm import GlmmFit
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.formula import Design

__all__ = ["aicc", "compare", "icc", "r2", "shares_of", "variance_shares"]


def aicc(fit: FittedModel) -> float:
    """AIC with the small-sample term 2k(k + 1)/(n - k - 1) (Hurvich & Tsai 1989); infinite where n <= k + 1."""
    k, n = fit.df_model, fit.nobs
    return fit.aic + 2.0 * k * (k + 1) / (n - k - 1) if n > k + 1 else float("inf")


def variance_shares(design: Design, core: CoreFit | GlmmFit) -> tuple[float, pd.Series, float]:
    """Variances of the fixed part, of each random term, and of the residual, for an observation of these data.

    Returns
    -------
    fixed : float
        Sample variance of X beta and sparse fixed effects (denominator n - 1).
    random : Series
        By term: mean over the rows of z'Cov(b)z, which is a term's variance where it is an intercept (Johnson 2014).
    residual : float
        sigma^2, times the mean of 1/w where there are weights; the mean of the rows' variances where these differ.
    """
    from fastlmm_core.core.residuals import CrossedFit, PatternFit

    known = design.X @ np.nan_to_num(core.beta) + sparse_part(design, core)
    fixed = float(np.var(known, ddof=1)) if core.rank or design.sparse else 0.0
    random = {}
    for term, L in zip(design.random, core.L, strict=True):
        if term.z is None:
            share = float(L[0, 0] ** 2)
        else:
            share = float(np.sum((term.z.T @ term.z / len(term.z)) * (L @ L.T)))
        random[term.grp] = core.sigma**2 * share
    residual = core.sigma**2 * (1.0 if design.weights is None else float(np.mean(1.0 / design.weights)))
    if isinstance(core, PatternFit | CrossedFit):  # a variance for each row
        residual = float(np.mean(np.square(1.0 / core.standardized(np.ones(core.n), whole=False))))
    return fixed, pd.Series(random, dtype=float), residual


def r2(design: Design, core: CoreFit) -> pd.Series:
    """Marginal and conditional R2; see `LmerResult.r2`."""
    return shares_of(*variance_shares(design, core))[0]


def icc(design: Design, core: CoreFit) -> pd.Series:
    """Intraclass correlations; see `LmerResult.icc`."""
    return shares_of(*variance_shares(design, core))[1]


def shares_of(fixed: float, random: pd.Series, residual: float) -> tuple[pd.Series, pd.Series]:
    """R2 and intraclass correlations from the three kinds of variance."""
    within = random.sum() + residual
    total = fixed + within
    explained = pd.Series({"marginal": fixed / total, "conditional": (fixed + random.sum()) / total})
    shares = {"adjusted": random.sum() / within, "conditional": random.sum() / total, **random / within}
    return explained, pd.Series(shares)


def _explained(fit: FittedModel) -> pd.Series:
    """The fit's own R2; NaN where there is none, or no rows to tell it from."""
    try:
        return cast("pd.Series", cast("Any", fit).r2())
    except FastLMMError:
        return pd.Series({"marginal": np.nan, "conditional": np.nan})


@answered(METHOD_ARGUMENTS)
def compare(*fits: FittedModel, refit: bool = True) -> Table:
    """Models of one response side by side.

    Parameters
    ----------
    *fits : FittedModel
        On the same rows with the same response, weights and offset.
    refit : bool
        Refit REML fits by maximum likelihood where their fixed parts differ (their criteria are not comparable); a
        warning says so once. Otherwise such a comparison is refused.

    Returns
    -------
    Table
        One row a model, best AIC first, indexed by its formula: method, df, llf, aic, aicc, bic, delta_aic, weight
        (Akaike's), r2_marginal, r2_conditional, sigma, is_singular. R2 is the fit's own `r2`, NaN where it has none.

    Raises
    ------
    DataError
        Different rows, responses, weights or offsets.
    ModelError
        No model, REML beside ML fits, or REML fits of different fixed parts with ``refit=False``; likelihoods that are
        approximated in different ways.

    Examples
    --------
    >>> from fastlmm_core import compare, lmer, load_dataset
    >>> data = load_dataset("sleepstudy")
    >>> full = lmer("Reaction ~ Days + (Days | Subject)", data, reml=False)
    >>> less = lmer("Reaction ~ Days + (1 | Subject)", data, reml=False)
    >>> compare(less, full)[["df", "aic", "delta_aic", "weight"]].round(2)
                                        df      aic  delta_aic  weight
    Reaction ~ Days + (Days | Subject)   6  1763.94       0.00     1.0
    Reaction ~ Days + (1 | Subject)      4  1802.08      38.14     0.0
    """
    if not fits:
        raise ModelError("compare needs at least one model")
    same_data(fits)
    same_criterion(fits)
    methods = {fit.reml for fit in fits}
    if True in methods and (len(methods) > 1 or not same_columns(fits)):
        if not refit:
            raise ModelError(
                "REML fits compare only with REML fits of the same fixed part: fit with reml=False, or allow refit=True"
            )
        warn("REML fits were refitted by maximum likelihood to be compared", FastLMMWarning)
        fits = tuple(ml_fit(fit) for fit in fits)
    best = min(fits, key=lambda fit: fit.aic)
    rows = []
    for fit in fits:
        if fit is not best:
            check_pair(fit, best)
        explained = _explained(fit)
        rows.append(
            {
                "method": "REML" if fit.reml else "ML",
                "df": fit.df_model,
                "llf": fit.llf,
                "aic": fit.aic,
                "aicc": aicc(fit),
                "bic": fit.bic,
                "r2_marginal": explained["marginal"],
                "r2_conditional": explained["conditional"],
                "sigma": fit.sigma,
                "is_singular": fit.is_singular,
            }
        )
    frame = pd.DataFrame(rows, index=[fit.formula for fit in fits])
    delta = frame["aic"] - frame["aic"].min()
    likelihood = np.exp(-0.5 * delta)
    frame.insert(6, "delta_aic", delta)
    frame.insert(7, "weight", likelihood / likelihood.sum())
    return table(frame.sort_values("aic", kind="stable"))
