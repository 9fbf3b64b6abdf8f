"""Likelihood-ratio comparison of fitted models: `fastlmm_core.anova`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc

from fastlmm_core.errors import DataError, FastLMMWarning, ModelError, warn
from fastlmm_core.fitting.spelling import METHOD_ARGUMENTS, answered
from fastlmm_core.inference.monte_carlo import check_pair
from fastlmm_core.inference.nested_tests import bootstrap_test
from fastlmm_core.inference.refits import ml_fit
from fastlmm_core.inference.same_data import check_nested_families, same_columns, same_criterion, same_data
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["anova"]


@answered(METHOD_ARGUMENTS)
def anova(
    *models: FittedModel,
    refit: bool = True,
    names: Sequence[str] | None = None,
    test: str = "chisq",
    n: int = 1000,
    seed: int | Sequence[int] | np.random.SeedSequence | None = None,
) -> Table:
    """Compare nested models by likelihood-ratio tests, each with the next smaller one.

    Parameters
    ----------
    *models : FittedModel
        At least two fits of the same rows, response, weights and offset, in any order.
    refit : bool
        Refit REML fits by maximum likelihood first: restricted likelihoods of models with different fixed effects
        cannot be compared. False uses them as they are, which is right where only the random terms differ.
    names : sequence of str, optional
        Labels of the rows, in the order of `models`; the formulas by default.
    test : {"chisq", "bootstrap"}
        "bootstrap" adds the column p_bootstrap: see `bootstrap_test`, which it calls with `n` draws and `seed`.

    Returns
    -------
    Table
        One row a model, by number of parameters: npar, aic, bic, llf, deviance, chisq, df, p.

    Raises
    ------
    DataError
        The models were fitted to different rows, responses, weights or offsets.
    ModelError
        Fewer than two models, REML fits that `refit=False` cannot compare; generalised fits whose likelihoods are
        approximated in different ways (`n_agq`, `Control(weights=...)`), or an exact fit and one of the iterative
        engine whose criteria differ by less than four Monte Carlo errors.

    Warns
    -----
    FastLMMWarning
        Once, when REML fits were refitted by ML.

    Notes
    -----
    Where the larger model adds a variance, the smaller one lies on the boundary of its parameters, and the p-value is
    too large, by up to a factor of two for one variance; see `LmerResult.ranova`.

    Examples
    --------
    >>> from fastlmm_core import anova, lmer, load_dataset
    >>> data = load_dataset("sleepstudy")
    >>> m0 = lmer("Reaction ~ 1 + (Days | Subject)", data, reml=False)
    >>> m1 = lmer("Reaction ~ Days + (Days | Subject)", data, reml=False)
    >>> anova(m0, m1, names=["no trend", "trend"])[["npar", "deviance", "chisq", "df", "p"]].round(4)
              npar   deviance    chisq   df    p
    no trend     5  1775.4759      NaN  NaN  NaN
    trend        6  1751.9393  23.5365  1.0  0.0
    """
    if len(models) < 2:
        raise ModelError("anova compares at least two models; for the terms of one, use its method anova()")
    check_nested_families(models)
    if isinstance(names, str):
        raise DataError(f"names must be a list of texts or None, not {names!r}")
    labels = [m.formula for m in models] if names is None else [str(name) for name in names]
    if len(labels) != len(models):
        raise DataError(f"{len(labels)} names were given for {len(models)} models")
    same_data(models, labels)
    same_criterion(models)
    fits = list(models)
    if refit and any(m.reml for m in fits):
        fits = [ml_fit(m) for m in fits]
        warn(
            "REML fits were refitted by maximum likelihood, which likelihood ratios need; anova(..., refit=False) "
            "compares restricted likelihoods where only the random terms differ",
            FastLMMWarning,
        )
    elif any(m.reml for m in fits):
        if not all(m.reml for m in fits):
            raise ModelError("some models were fitted by REML and some by maximum likelihood: leave refit=True")
        if not same_columns(fits):
            raise ModelError("restricted likelihoods of models with different fixed effects cannot be compared")
    order = sorted(range(len(fits)), key=lambda k: (fits[k].df_model, -fits[k].criterion))
    if test not in ("chisq", "bootstrap"):
        raise ModelError(f'test must be "chisq" or "bootstrap", not {test!r}')
    rows, simulated = [], []
    for at, k in enumerate(order):
        m = fits[k]
        chisq = df = p = p_bootstrap = np.nan
        if at:
            smaller = fits[order[at - 1]]
            check_pair(smaller, m)
            df = float(m.df_model - smaller.df_model)
            chisq = max(0.0, smaller.criterion - m.criterion)
            p = float(chdtrc(df, chisq)) if df else np.nan
            if test == "bootstrap":
                p_bootstrap = bootstrap_test(smaller, m, n, seed=seed).p
        simulated.append(p_bootstrap)
        rows.append((m.df_model, m.aic, m.bic, m.llf, m.criterion, chisq, df, p))
    columns = ["npar", "aic", "bic", "llf", "deviance", "chisq", "df", "p"]
    made = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    if test == "bootstrap":
        made["p_bootstrap"] = simulated
    return table(made, [labels[k] for k in order])
