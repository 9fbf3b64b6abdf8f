"""The figures of a generalised fit: everything that reads off the core's answer without a computation of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastlmm_core.fitting.fitted import FittedModel
from fastlmm_core.fitting.spelling import Figure

if TYPE_CHECKING:
    from fastlmm_core.core.glmm import GlmmFit
    from fastlmm_core.fitting.generalised import GlmerOptions

__all__ = ["GeneralisedModel"]


@dataclass(frozen=True, eq=False, repr=False)
class GeneralisedModel(FittedModel):
    """Base of `GlmerResult`, which has its attributes in words."""

    core: GlmmFit  # type: ignore[assignment]
    options: GlmerOptions  # type: ignore[assignment]
    remarks: tuple[str, ...] = ()

    @property
    def reml(self) -> bool:
        """False: generalised models are fitted by maximum likelihood."""
        return False

    @property
    def _criterion_name(self) -> str:
        return "-2 log L"  # the deviance of a generalised model is another number

    @property
    def family(self) -> Any:
        """The family with its link."""
        return self.core.family

    @property
    def df_model(self) -> int:
        """Estimated parameters: coefficients, theta, and the family's own."""
        return int(self.core.rank) + len(self.core.theta) + self.core.family.n_extra

    @property
    def family_params(self) -> pd.DataFrame:
        """The family's own parameters with their standard errors, a row a parameter; none for binomial and Poisson.

        Negative binomial: alpha, as in variance mu + alpha mu^2 (kind 2) or mu (1 + alpha) (kind 1). Gamma, inverse
        Gaussian, Gaussian: phi. Beta: the precision. Ordinal: the thresholds, "low|high". With a part for zeros: the
        coefficients "zi.Intercept", ... of its log odds.
        """
        values, errors = self.core.family_params, self.core.family_params_se
        return pd.DataFrame({"estimate": pd.Series(values, dtype=float), "std_error": pd.Series(errors, dtype=float)})

    @property
    def scale(self) -> float:
        """Dispersion phi: one where the family has none."""
        return Figure(self.core.family.scale(self.core.rho))

    @property
    def sigma(self) -> float:
        """Root of `scale`, as R's `sigma` has it."""
        return Figure(np.sqrt(self.scale))

    @property
    def zvalues(self) -> pd.Series:
        """`params` divided by `bse`: standard normal, approximately, where the coefficient is zero."""
        return self.params / self.bse

    @property
    def fittedvalues(self) -> pd.Series:
        """The response's means at the modes: proportions for binomial rows, counts with their exposure."""
        return self.design.by_row(self.core.fitted)

    @property
    def linear_predictor(self) -> pd.Series:
        """Xβ + Zb + offset of the rows used."""
        return self.design.by_row(self.core.eta)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the fit should know about how the data were read, and about the estimates."""
        return (*self.design.notes, *self.remarks)
