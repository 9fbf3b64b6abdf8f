"""Methods of a result that look at its fit: diagnostics, figures to compare models by, plain tables.

Each is one call of a function of `fastlmm_core.inference`, which is imported when the method is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastlmm_core.fitting.fitted import FittedModel
from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from fastlmm_core.core.engines import EngineReport
    from fastlmm_core.inference.diagnostics import ConvergenceReport, ResidualKind
    from fastlmm_core.inference.influence import Influence, Method

__all__ = ["DiagnosticMethods"]


@answering
class DiagnosticMethods(FittedModel):
    """Base of `LmerResult`: diagnostics, comparison, tables."""

    # ------------------------------------------------------------------ residuals, leverages, influence

    def residuals(self, kind: ResidualKind = "response") -> pd.Series:
        """Residuals of the rows used (with ``na_action="exclude"`` of all rows, NaN where one was left out).

        Parameters
        ----------
        kind : str
            "response", "conditional" or "working": y − Xβ − Zb − offset. "marginal": y − Xβ − offset. "pearson" or
            "deviance": √w times the response residual. "scaled": that over σ. "studentized": the
            scaled one over √(1 − h), lme4's `rstudent`. "deleted": the studentized one with σ from the other rows (at
            fixed θ).

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> fit.residuals("marginal").head(2)
        0    17.5
        1   -87.5
        dtype: float64
        """
        from fastlmm_core.inference.diagnostics import residuals

        return residuals(self.design, self.core, kind)

    def hatvalues(self) -> pd.Series:
        """Leverages: the diagonal of the matrix that takes the response to the fitted values (at the estimated θ).

        Exact, from one inverse on the pattern of the factor; their sum is the effective number of coefficients.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> float(fit.hatvalues().sum().round(3))
        4.913
        """
        from fastlmm_core.inference.diagnostics import hatvalues

        return hatvalues(self.design, self.core)

    def cooks_distance(self) -> pd.Series:
        """Cook's distance of every row on the fitted values, r² h / ((1 − h)² σ² p), as lme4's `cooks.distance`.

        For distances on the fixed effects, by row or by group, see `influence`. NaN, like studentized residuals, for a
        row of leverage one, which nothing but itself could contradict.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.cooks_distance().nlargest(1).round(3)
        59    4.332
        dtype: float64
        """
        from fastlmm_core.inference.diagnostics import cooks_distance

        return cooks_distance(self.design, self.core)

    def influence(self, by: str | ArrayLike = "obs", *, method: Method = "fixed", progress: bool = False) -> Influence:
        """Estimates without each observation, or without each group.

        Parameters
        ----------
        by : str or (n,) labels
            "obs" for single rows, a grouping factor, or one label a row.
        method : {"fixed", "one-step", "refit"}
            What becomes of the covariance parameters when a case is left out. "fixed": they keep the full data's
            estimates; exact for β and σ then, by deletion formulas. "one-step": they move by one Newton step on the
            remaining data. "refit": a fit of the remaining data, as lme4's `influence`.
        progress : bool
            Show a bar; for the methods that go case by case.

        Returns
        -------
        Influence
            Tables with a row a case: params, dfbeta, dfbetas, std_errors, sigma, theta, cooks_distance, cov_ratio,
            n_rows, converged.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.influence("Subject", method="refit").dfbetas.head(2).round(3)
                 Intercept   Days
        Subject
        308          0.059 -0.449
        309          0.411  0.310
        >>> fit.influence()
        <Influence: 180 cases by obs, method 'fixed'; largest Cook's distance 0.0454 at 59>
        """
        from fastlmm_core.inference.influence import influence

        return influence(self.design, self.core, by, method, progress=progress)

    # ------------------------------------------------------------------ is the fit sound

    def re_pca(self) -> dict[str, pd.DataFrame]:
        """Principal components of the random effects of each grouping factor, relative to σ, as lme4's `rePCA`.

        A standard deviation of (nearly) zero means that the data support fewer dimensions than the model has.

        Returns
        -------
        dict of DataFrame
            By grouping factor, a row a component: sd, proportion and cumulative proportion of the variance, and the
            loading of each effect.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.re_pca()["Subject"].round(3)
                    sd  proportion  cumulative  Intercept   Days
        Subject
        PC1      0.967       0.946       0.946      1.000  0.017
        PC2      0.231       0.054       1.000     -0.017  1.000
        """
        from fastlmm_core.inference.diagnostics import re_pca

        return re_pca(self.design, self.core)

    def convergence_report(self) -> ConvergenceReport:
        """How sure the optimum is, in words: gradient, Hessian, parameters on the boundary, what to try.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> report = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2")).convergence_report()
        >>> report.boundary
        ('Batch.Intercept',)
        >>> print(str(report).splitlines()[-1])
        Try: the model without the term, or accept a variance of zero: the estimates are the same
        """
        from fastlmm_core.inference.diagnostics import convergence_report

        return convergence_report(self.design, self.core)

    def engine_report(self) -> EngineReport:
        """Which engine factored the random effects, why, and what the others would have cost; printable.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> report = lmer("diameter ~ 1 + (1|plate) + (1|sample)", load_dataset("Penicillin")).engine_report()
        >>> print(str(report).splitlines()[0])
        Engine: dense (6 random effects in its tail), since they are too few for a look at their pattern to pay.
        """
        return self.core.engine_report()

    # ------------------------------------------------------------------ figures to compare models by

    @property
    def aicc(self) -> float:
        """`aic` with the small-sample term 2k(k + 1)/(n − k − 1) (Hurvich & Tsai 1989)."""
        from fastlmm_core.inference.comparison import aicc

        return aicc(self)

    def r2(self) -> pd.Series:
        """R² of the fixed effects ("marginal") and of fixed and random effects together ("conditional").

        Nakagawa & Schielzeth (2013), Nakagawa et al. (2017); random slopes by Johnson (2014): a term's variance is the
        mean over the rows of z'Cov(b)z. With weights the residual variance is σ² times the mean of 1/w.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")).r2().round(4)
        marginal       0.2787
        conditional    0.7992
        dtype: float64
        """
        from fastlmm_core.inference.comparison import r2

        return r2(self.design, self.core)

    def icc(self) -> pd.Series:
        """Intraclass correlations: shares of the random effects in the variance.

        Returns
        -------
        Series
            "adjusted" (of random and residual variance), "conditional" (of all variance, the fixed effects' included),
            and the adjusted share of each random term (Nakagawa et al. 2017).

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).icc().round(4)
        adjusted       0.4185
        conditional    0.4185
        Batch          0.4185
        dtype: float64
        """
        from fastlmm_core.inference.comparison import icc

        return icc(self.design, self.core)

    # ------------------------------------------------------------------ plain tables

    def tidy(
        self,
        effects: str | Sequence[str] = ("fixed", "ran_pars"),
        *,
        conf_int: bool = False,
        level: float = 0.95,
        ddf: str | None = "satterthwaite",
    ) -> pd.DataFrame:
        """One row a parameter, as broom.mixed's `tidy`.

        Parameters
        ----------
        effects : str or sequence of str
            "fixed" effects, "ran_pars" (standard deviations and correlations), "ran_vals" (conditional modes).
        conf_int : bool
            Add Wald intervals conf_low and conf_high where there is a standard error.
        level : float
            Of the intervals.
        ddf : str, optional
            Degrees of freedom of the fixed effects as in `coef_table`; None leaves df and p_value out.

        Returns
        -------
        DataFrame
            Columns effect, group, (level,) term, estimate, std_error, statistic, and with fixed effects df and p_value.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> fit.tidy("ran_pars")[["group", "term", "estimate"]].round(2)
              group             term  estimate
        0     Batch    sd__Intercept     42.00
        1  Residual  sd__Observation     49.51
        """
        from fastlmm_core.inference.tidy import tidy

        return tidy(self, effects, conf_int=conf_int, level=level, ddf=ddf)

    def glance(self) -> pd.DataFrame:
        """One row for the model, as broom.mixed's `glance`: nobs, sigma, llf, aic, aicc, bic, criterion, df_resid.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> fit.glance()[["nobs", "remlcrit", "df_resid"]].round(2)
           nobs  remlcrit  df_resid
        0    30    319.65        27
        """
        from fastlmm_core.inference.tidy import glance

        return glance(self)

    def augment(self, data: Any = None) -> pd.DataFrame:
        """One row an observation used, as broom.mixed's `augment`.

        Parameters
        ----------
        data : table, optional
            The table of the fit, to add the columns to; otherwise the model's own columns are given.

        Returns
        -------
        DataFrame
            Columns .fitted, .resid, .fixed (Xβ + offset), .hat, .cooksd, .std_resid, and .offset and .weights where
            there are any.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> fit.augment()[["Batch", "Yield", ".fitted", ".resid", ".hat"]].head(2).round(3)
          Batch   Yield   .fitted  .resid   .hat
        0     A  1545.0  1509.893  35.107  0.164
        1     A  1440.0  1509.893 -69.893  0.164
        """
        from fastlmm_core.inference.tidy import augment

        return augment(self, data)
