"""The fitted model. Each method is one call into the module of its subject."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastlmm_core.errors import SpellingError
from fastlmm_core.fitting import fit, marginal, ranef, var_corr
from fastlmm_core.fitting.spelling import answering
from fastlmm_core.records import quick
from fastlmm_core.results import export, summary
from fastlmm_core.results.methods.changes import ChangeMethods
from fastlmm_core.results.methods.diagnostics import DiagnosticMethods
from fastlmm_core.results.methods.intervals import IntervalMethods
from fastlmm_core.results.methods.means import MeansMethods
from fastlmm_core.results.methods.pictures import PictureMethods
from fastlmm_core.results.methods.prediction import PredictionMethods
from fastlmm_core.results.methods.tables import TableMethods
from fastlmm_core.results.methods.tests import DdfMethods

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from fastlmm_core.fitting.var_corr import VarCorr
    from fastlmm_core.results.summary import Summary

__all__ = ["LmerResult"]


@answering
@quick
@dataclass(frozen=True, eq=False, repr=False)
class LmerResult(
    DdfMethods,
    PredictionMethods,
    DiagnosticMethods,
    IntervalMethods,
    MeansMethods,
    PictureMethods,
    ChangeMethods,
    TableMethods,
):
    """A fitted linear mixed model, as `lmer` returns it.

    Names are statsmodels' where it has one (`params`, `bse`, `llf`, ...) and lme4's elsewhere (`theta`, `sigma`,
    `ranef()`, ...). Results pickle as plain arrays; a factorisation needed again is rebuilt when it is asked for.

    Attributes
    ----------
    design : Design
        Response, matrices and codings of the rows that were used.
    core : CoreFit
        The array-level fit.
    formula : str
        As the user wrote it.
    options : FitOptions
        Criterion, control, start.

    Examples
    --------
    >>> from fastlmm_core import lmer, load_dataset
    >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    >>> fit
    <LmerResult: Reaction ~ Days + (Days | Subject); REML criterion 1743.63; 180 rows; Subject 18>
    >>> fit.theta.round(4)
    Subject.Intercept         0.9667
    Subject.Days.Intercept    0.0152
    Subject.Days              0.2309
    dtype: float64
    """

    def var_corr(self) -> VarCorr:
        """Standard deviations and correlations of the random effects; `.to_frame()` is the long table.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")).var_corr()
         Groups   Name      Std.Dev.  Corr
         Subject  Intercept  24.7405
                  Days        5.9221 0.066
         Residual            25.5918
        """
        return var_corr.var_corr(self.design, self.core)

    def marginal_cov(self, level: Hashable) -> NDArray[np.float64]:
        """Marginal covariance of the observations of one group: σ² (W⁻¹ + Z Λ Λᵀ Zᵀ) for its rows.

        Parameters
        ----------
        level : level or (group, level)
            A level of the first grouping factor (see `n_groups`), or a pair that names another.

        Returns
        -------
        ndarray (m, m)
            For the level's m rows, in the data's order; 8 m² bytes. Every random term enters, not only the level's own.

        Raises
        ------
        DataError
            No such group or level.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> fit.marginal_cov("A")[:2, :2].round(0)
        array([[4215., 1764.],
               [1764., 4215.]])
        """
        return marginal.marginal_cov(self.design, self.core, level)

    def ranef(self, group: None = None, *, condsd: bool = True) -> pd.DataFrame:
        """Conditional modes of the random effects, one row an effect of a level.

        Parameters
        ----------
        group : None
            Not to be given: the table has every group; `random_effects` has one table a group.
        condsd : bool
            Compute conditional standard deviations, which need blocks of an inverse; otherwise the column is left
            out.

        Returns
        -------
        DataFrame
            Columns grpvar, term, grp (categorical: grouping factor, effect, level), condval, condsd.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).ranef().head(2).round(3)
          grpvar       term grp  condval  condsd
        0  Batch  Intercept   A  -17.607  19.587
        1  Batch  Intercept   B    0.391  19.587
        """
        if group is not None:
            raise SpellingError(f"ranef() is one long table of every group: random_effects[{group!r}] is the one's")
        return ranef.ranef(self.design, self.core, condsd=condsd)

    @property
    def random_effects(self) -> dict[str, pd.DataFrame]:
        """Conditional modes, one wide table a grouping factor: rows are levels, columns effects."""
        return ranef.random_effects(self.design, self.core)

    def coef(self) -> dict[str, pd.DataFrame]:
        """Coefficients of each level: fixed effects plus the level's random effects, one wide table a grouping factor.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")).coef()["Subject"].head(2).round(2)
                 Intercept   Days
        Subject
        308         253.66  19.67
        309         211.01   1.85
        """
        return ranef.coef(self.design, self.core)

    def refit(self, new_y: Any) -> LmerResult:
        """The same model fitted to another response.

        Parameters
        ----------
        new_y : array_like
            One value a row of the fit (or of the whole table, dropped rows included) on the scale of the formula's left
            side: for ``log(y) ~ ...`` the logarithms. A pandas object is aligned with the rows by its index. A table of
            one column, such as `simulate` returns, will do.

        Raises
        ------
        DataError
            Another length, missing or infinite values, or a constant.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> round(fit.refit(fit.design.y / 10).sigma, 4)
        4.951
        """
        return fit.refit(self, new_y)

    def refit_ml(self) -> LmerResult:
        """The same model fitted by maximum likelihood; the result itself where it was.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> round(lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).refit_ml().criterion, 4)
        327.3271
        """
        return fit.refit_ml(self)

    def summary(self, ddf: str = "satterthwaite") -> Summary:
        """The summary page of lme4 and lmerTest: `print` it, or let a notebook show it.

        Parameters
        ----------
        ddf : str
            Degrees of freedom of the coefficients, as in `coef_table`.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> print(lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).summary())
        Linear mixed model fit by REML; t-tests use Satterthwaite's method
        Formula: Yield ~ 1 + (1 | Batch)
        <BLANKLINE>
        REML criterion at convergence: 319.7
        <BLANKLINE>
        Scaled residuals:
            Min      1Q  Median      3Q     Max
        -1.4117 -0.7634  0.1418  0.7792  1.8296
        <BLANKLINE>
        Random effects:
         Groups   Name      Variance Std.Dev.
         Batch    Intercept     1764    42.00
         Residual               2451    49.51
        Number of obs: 30, groups: Batch, 6
        <BLANKLINE>
        Fixed effects:
                  Estimate Std. Error   df t value Pr(>|t|)
        Intercept  1527.50      19.38 5.00  78.804 6.23e-09
        """
        return summary.summary(self, ddf)

    def to_dict(self, *, ranef: bool = False) -> dict[str, Any]:
        """The estimates and figures of the fit as plain values that `json.dumps` takes; NaN becomes None.

        Parameters
        ----------
        ranef : bool
            Include the table of random effects as a list of rows.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).to_dict()["n_groups"]
        {'Batch': 6}
        """
        return export.to_dict(self, ranef=ranef)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()
