"""The figures of a fitted model: everything that reads off the core's answer without a computation of its own."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastlmm_core.core.saved import read_state, saved_state
from fastlmm_core.errors import DataError, SpellingError
from fastlmm_core.fitting import coefficients, ranef, var_corr
from fastlmm_core.fitting.spelling import Count, Figure, no_attribute
from fastlmm_core.records import quick

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.core.iterative import MonteCarlo
    from fastlmm_core.fitting.options import FitOptions
    from fastlmm_core.formula import Design

__all__ = ["FittedModel"]


class FixedEffects(pd.Series):  # type: ignore[misc]
    """The fixed effects, which answer an attempt to call them, as R's `fixef` is called."""

    @property
    def _constructor(self) -> type[pd.Series]:
        return pd.Series

    def __call__(self) -> None:
        raise SpellingError("fixef is no method here: leave out the parentheses (params is the same)")


@quick
@dataclass(frozen=True, eq=False, repr=False)
class FittedModel:
    """Base of the results: holds the design and the core's fit, and shows them as labelled figures.

    `LmerResult` has its attributes in words.
    """

    design: Design
    core: CoreFit
    formula: str
    options: FitOptions
    kept: dict[str, Any] = field(default_factory=dict)  # workspaces to use again, shared by refits; never pickled

    if not TYPE_CHECKING:  # to a type checker it would mean that every attribute exists

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(type(self), name)

    def __getstate__(self) -> dict[str, Any]:
        return saved_state({**self.__dict__, "kept": {}})

    def __setstate__(self, state: object) -> None:
        self.__dict__.update(read_state(state, "result"))

    def keep_data(self, data: Any) -> None:
        """Remember the table of the fit for as long as somebody else holds it."""
        try:
            self.kept["data"] = weakref.ref(data)
        except TypeError:  # a dict of arrays cannot be referred to weakly
            return

    def kept_data(self) -> Any:
        """The table of the fit.

        Raises
        ------
        DataError
            Nobody holds it any more, or it could not be remembered.
        """
        reference = self.kept.get("data")
        data = None if reference is None else reference()
        if data is None:
            raise DataError("the table of the fit is not kept: pass data=")
        return data

    def rows_kept(self) -> Any:
        """`kept_data` in the order that its rows had, where it has been sorted since."""
        data = self.kept_data()
        return self.design.in_order(data, "the table of the fit") if isinstance(data, pd.DataFrame) else data

    @property
    def params(self) -> pd.Series:
        """Fixed-effects estimates (p,); NaN for a column dropped as linearly dependent."""
        return coefficients.labelled(self.design, self.core.beta)

    @property
    def fixef(self) -> pd.Series:
        """lme4's name for `params`."""
        return FixedEffects(self.params)

    @property
    def bse(self) -> pd.Series:
        """Standard errors of `params`."""
        return coefficients.labelled(self.design, coefficients.bse(self.core))

    @property
    def tvalues(self) -> pd.Series:
        """`params` divided by `bse`."""
        return self.params / self.bse

    @property
    def reml(self) -> bool:
        """Whether the fit maximises the restricted likelihood."""
        return bool(self.core.reml)

    @property
    def criterion(self) -> float:
        """Criterion at the optimum: the REML criterion, or the deviance −2 log L of an ML fit."""
        return float(self.core.criterion)

    @property
    def _criterion_name(self) -> str:
        return "REML criterion" if self.reml else "deviance"

    @property
    def llf(self) -> float:
        """Log-likelihood (restricted for a REML fit): −criterion / 2."""
        return Figure(-0.5 * self.criterion)

    @property
    def nobs(self) -> int:
        """Rows used."""
        return Count(self.core.n)

    @property
    def n_missing(self) -> int:
        """Rows dropped for missing values."""
        return int(self.design.n_missing)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the fit should know about how the data were read."""
        return self.design.notes

    @property
    def df_model(self) -> int:
        """Parameters as lme4 counts them: estimated coefficients, those of the covariances, and σ."""
        return int(self.core.rank) + self.core.n_parameters + 1

    @property
    def df_resid(self) -> int:
        """`nobs` less `df_model`."""
        return self.nobs - self.df_model

    @property
    def aic(self) -> float:
        """Criterion + 2 df_model, as lme4 has it for ML and REML fits."""
        return Figure(self.criterion + 2.0 * self.df_model)

    @property
    def bic(self) -> float:
        """Criterion + log(nobs) df_model, as lme4 has it for ML and REML fits."""
        return Figure(self.criterion + np.log(self.nobs) * self.df_model)

    @property
    def converged(self) -> bool:
        """Whether the optimiser met its criterion."""
        return bool(self.core.converged)

    @property
    def message(self) -> str:
        """How the optimiser ended, in words."""
        return str(self.core.message)

    @property
    def fit_log(self) -> pd.DataFrame:
        """One row an evaluation: criterion, gradient_norm, radius, and θ under its labels."""
        log = self.core.log
        figures = pd.DataFrame(
            {"criterion": log.criterion, "gradient_norm": log.gradient_norm, "radius": log.radius},
            index=pd.RangeIndex(1, len(log) + 1, name="evaluation"),
        )
        return figures.join(pd.DataFrame(log.theta, columns=var_corr.theta_labels(self.design), index=figures.index))

    @property
    def theta(self) -> pd.Series:
        """Entries of the relative covariance factors, labelled "group.row.column", in lme4's order."""
        return pd.Series(self.core.theta, index=var_corr.theta_labels(self.design), dtype=float, copy=True)

    @property
    def sigma(self) -> float:
        """Residual standard deviation (of a row of weight 1)."""
        return Figure(self.core.sigma)

    @property
    def is_singular(self) -> bool:
        """Whether the fit lies on the boundary: a variance of zero or a correlation of one."""
        return bool(self.core.is_singular)

    @property
    def monte_carlo(self) -> MonteCarlo | None:
        """What is random in a fit by the iterative engine, and how much; None for the exact engines."""
        found: MonteCarlo | None = getattr(self.core, "monte_carlo", None)
        return found

    @property
    def n_groups(self) -> dict[str, int]:
        """Levels of each grouping factor."""
        return ranef.n_groups(self.design)

    @property
    def fittedvalues(self) -> pd.Series:
        """Xβ + Zb + offset of the rows used, indexed as the data (by row position where the data have no index).

        With ``na_action="exclude"`` of all rows of the table, NaN where a row was left out.
        """
        return self.design.by_row(self.core.fitted)

    @property
    def resid(self) -> pd.Series:
        """Response less `fittedvalues`."""
        return self.design.by_row(self.design.y - self.core.fitted)

    def __repr__(self) -> str:
        groups = ", ".join(f"{name} {q}" for name, q in self.n_groups.items())
        criterion = f"{self._criterion_name} {self.criterion:.2f}"
        return f"<{type(self).__name__}: {self.formula}; {criterion}; {self.nobs} rows; {groups}>"
