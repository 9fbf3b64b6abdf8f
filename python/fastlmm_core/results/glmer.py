"""`glmer()`: a formula and a table in, a fitted generalised linear mixed model out."""

from __future__ import annotations

import re
import sys
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastlmm_core.core import glmm
from fastlmm_core.families import Family, Link, as_family
from fastlmm_core.fitting import coefficients, ranef, var_corr
from fastlmm_core.fitting.fit import core_terms
from fastlmm_core.fitting.spelling import answering
from fastlmm_core.formula import build_design
from fastlmm_core.results.methods.means import MeansMethods

if TYPE_CHECKING:
    from fastlmm_core.core import Control
    from fastlmm_core.formula import Design

__all__ = ["GlmerResult", "glmer"]


@answering
@dataclass(frozen=True, eq=False, repr=False)
class GlmerResult(MeansMethods):
    """A fitted generalised linear mixed model.

    Attributes
    ----------
    design : Design
    core : GlmmFit
    formula : str
    """

    design: Design
    core: glmm.GlmmFit
    formula: str

    @property
    def params(self) -> pd.Series:
        """Fixed-effects estimates (p,)."""
        return coefficients.labelled(self.design, self.core.beta)

    @property
    def bse(self) -> pd.Series:
        """Standard errors of `params`."""
        return coefficients.labelled(self.design, self.core.se)

    @property
    def criterion(self) -> float:
        """Minus twice the log-likelihood."""
        return float(self.core.criterion)

    @property
    def llf(self) -> float:
        """Log-likelihood."""
        return -0.5 * self.criterion

    @property
    def df_model(self) -> int:
        """Estimated parameters: coefficients, theta, and the family's own."""
        return int(self.core.rank) + len(self.core.theta) + self.core.family.n_extra

    @property
    def aic(self) -> float:
        """Criterion + 2 df_model."""
        return self.criterion + 2.0 * self.df_model

    @property
    def bic(self) -> float:
        """Criterion + log(nobs) df_model."""
        return self.criterion + float(np.log(self.core.n)) * self.df_model

    @property
    def converged(self) -> bool:
        """Whether the optimiser met its criterion."""
        return bool(self.core.converged)

    @property
    def is_singular(self) -> bool:
        """Whether the fit lies on the boundary."""
        return bool(self.core.is_singular)

    @property
    def theta(self) -> pd.Series:
        """Covariance parameters."""
        return pd.Series(self.core.theta, index=var_corr.theta_labels(self.design), dtype=float)

    @property
    def fittedvalues(self) -> pd.Series:
        """Means of the rows used."""
        return pd.Series(self.core.mu)

    def var_corr(self) -> var_corr.VarCorr:
        """Variances and correlations of the random effects, on the scale of the linear predictor."""
        return var_corr.VarCorr(
            tuple(
                var_corr.TermCov(term.grp, term.group, tuple(term.columns), L @ L.T)
                for term, L in zip(self.design.random, self.core.L, strict=True)
            ),
            float("nan"),
        )

    def ranef(self, *, condsd: bool = True) -> pd.DataFrame:
        """Conditional modes, a row an effect of a level."""
        return ranef.ranef(self.design, self.core, condsd=condsd)  # type: ignore[arg-type]


def glmer(
    formula: str,
    data: Any,
    family: str | Family = "binomial",
    *,
    link: str | Link | None = None,
    n_agq: int = 1,
    weights: Any = None,
    trials: Any = None,
    freq_weights: Any = None,
    offset: Any = None,
    control: Control | None = None,
    start: Any = None,
    subset: Any = None,
    env: Mapping[str, Any] | None = None,
) -> GlmerResult:
    """Fit a generalised linear mixed model.

    Parameters
    ----------
    formula : str
        As in `lmer`; a binomial response is 0/1, a column with two values, the second one a success, or
        ``cbind(successes, failures)``.
    data : table
    family : str or Family
    link : str or Link, optional
    n_agq : int
        Quadrature points; 1 is Laplace's approximation.
    weights, trials, freq_weights, offset : str or array_like, optional
    control : Control, optional
    start : array_like, optional
    subset : optional
    env : mapping, optional

    Returns
    -------
    GlmerResult
    """
    if env is None:
        caller = sys._getframe(1)
        env = ChainMap(dict(caller.f_locals), caller.f_globals)
    chosen = as_family(family, link)
    left, _, right = formula.partition("~")
    pair = re.fullmatch(r"\s*cbind\((.*?),(.*)\)\s*", left)
    text = formula
    if pair:
        text, trials = f"{pair[1]} ~ {right}", f"({pair[1]}) + ({pair[2]})"
    elif isinstance(data, pd.DataFrame) and not pd.api.types.is_numeric_dtype(data.get(left.strip(), 0.0)):
        data = data.assign(**{left.strip(): pd.Categorical(data[left.strip()]).codes.astype(float)})
    given = trials if trials is not None else weights
    design = build_design(text, data, subset=subset, weights=given, offset=offset, env=env, observation_level=True)
    known: dict[str, Any] = {"trials" if trials is not None else "weights": design.weights}
    model = glmm.Model(
        design.X,
        core_terms(design),
        chosen,
        freq_weights=freq_weights,
        offset=design.offset,
        n_agq=n_agq,
        control=control,
        **known,
    )
    return GlmerResult(design, model.fit(design.y, start=start), formula)
