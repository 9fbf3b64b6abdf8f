"""Methods of a result that look at its fit: predictions with their uncertainty, diagnostics, comparisons.

Each is one call of a function of `fastlmm_core.inference`, which is imported when the method is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from fastlmm_core.fitting import coefficients, predict
from fastlmm_core.fitting.fitted import FittedModel
from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from fastlmm_core.core.engines import EngineReport
    from fastlmm_core.inference.diagnostics import ConvergenceReport, ResidualKind
    from fastlmm_core.inference.influence import Influence, Method
    from fastlmm_core.inference.random_cov import Levels

__all__ = ["DiagnosticMethods"]


@answering
class DiagnosticMethods(FittedModel):
    """Base of `LmerResult`: prediction, diagnostics, comparison."""

    # ------------------------------------------------------------------ predictions and covariances

    @overload
    def predict(
        self, newdata: Any = ..., *, re_form: str = ..., allow_new_levels: bool = ..., interval: None = ...
    ) -> pd.Series: ...

    @overload
    def predict(
        self,
        newdata: Any = ...,
        *,
        re_form: str = ...,
        allow_new_levels: bool = ...,
        interval: Literal["confidence", "prediction"],
        level: float = ...,
        ddf: Literal["satterthwaite", "normal"] = ...,
        theta_known: bool = ...,
        weights: ArrayLike | None = ...,
    ) -> pd.DataFrame: ...

    def predict(
        self,
        newdata: Any = None,
        *,
        re_form: str = "all",
        allow_new_levels: bool = False,
        interval: Literal["confidence", "prediction"] | None = None,
        level: float = 0.95,
        ddf: Literal["satterthwaite", "normal"] = "satterthwaite",
        theta_known: bool = True,
        weights: ArrayLike | None = None,
    ) -> pd.Series | pd.DataFrame:
        """Predicted response, with an interval where one is asked for.

        Parameters
        ----------
        newdata : table, optional
            Rows to predict, with the formula's columns except the response; by default the rows of the fit.
        re_form : str
            "all" random effects, "none" of them (the population's mean), or the random terms to include:
            ``"(1 | g)"``, a part of the model's own.
        allow_new_levels : bool
            A level that the fit has not seen, and a missing one, gets random effects of zero; otherwise the first is an
            error and the second has no prediction.
        interval : {"confidence", "prediction"}, optional
            "confidence": for Xβ + the included part of Zb. Its uncertainty is that of β and b jointly; a new level adds
            the variance of its effects. "prediction": for a new observation. The residual variance is added, and the
            variance of the random effects left out, which are drawn anew (``re_form="none"``: of any group).
        level : float
            Of the interval.
        ddf : {"satterthwaite", "normal"}
            Quantiles of a t distribution, with degrees of freedom from the precision of the variance estimates, or
            normal ones.
        theta_known : bool
            Standard errors at the estimated θ; otherwise what its estimation adds is added (Kackar & Harville 1984;
            Prasad & Rao 1990), which matters for the mean of a known group where groups are few or small.
        weights : float or (n,), optional
            Weights of the new observations, for ``interval="prediction"``: 1 by default, the fit's own where newdata is
            not given.

        Returns
        -------
        Series, or DataFrame with an interval
            With newdata's index (row positions where it has none), NaN in rows where something needed is missing. The
            frame's columns are fit, std_error, df, lower, upper. Offsets are evaluated in newdata. Where columns of X
            depend on others, a row that the data do not determine is NaN, which ``.attrs["notes"]`` says; any other has
            its value whatever column was dropped.

        Raises
        ------
        DataError
            A missing column, a new level of a grouping factor (unless allowed) or of a fixed effect.
        ModelError
            `re_form` is None, or names a random term that the model does not have; an option that does not exist.

        Notes
        -----
        Covariances are at the estimated θ, from the inverse of the mixed-model equations (Henderson 1975). Rows that
        join levels which no row of the fit joins may take a solve each where the factor is sparse.

        Examples
        --------
        >>> import pandas as pd
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> new = pd.DataFrame({"Days": [0, 10], "Subject": ["308", "308"]})
        >>> fit.predict(new).round(2)
        0    253.66
        1    450.33
        dtype: float64
        >>> fit.predict(new, re_form="none").round(2)
        0    251.41
        1    356.08
        dtype: float64
        >>> fit.predict(new, interval="confidence").round(1)
             fit  std_error     df  lower  upper
        0  253.7       12.3   59.6  229.1  278.2
        1  450.3       15.9  142.4  419.0  481.7
        >>> fit.predict(new[["Days"]], re_form="none", interval="prediction").round(1)
             fit  std_error    df  lower  upper
        0  251.4       36.2  36.5  177.9  324.9
        1  356.1       72.3  19.5  205.1  507.1
        """
        if interval is None:
            return predict.predict(self.design, self.core, newdata, re_form=re_form, allow_new_levels=allow_new_levels)
        from fastlmm_core.inference.prediction import predict_interval

        return predict_interval(
            self.design,
            self.core,
            newdata,
            re_form=re_form,
            allow_new_levels=allow_new_levels,
            interval=interval,
            level=level,
            ddf=ddf,
            theta_known=theta_known,
            weights=weights,
        )

    def cov_params(
        self, *, full: bool = False, levels: Levels | None = None, cov_type: str = "model", cluster: Any = None
    ) -> pd.DataFrame:
        """Covariance of `params`, σ² (Xᵀ V⁻¹ X)⁻¹ at the estimated θ, or jointly of `params` and random effects.

        Parameters
        ----------
        full : bool
            Include every random effect: the whole inverse of the mixed-model equations, 8 (p + q)² bytes.
        levels : mapping or sequence, optional
            Include the random effects of these levels: ``{"Subject": ["308", "309"]}``, or a list of levels of the
            first grouping factor. Costs one solve an effect.
        cov_type, cluster
            A cluster-robust covariance of the coefficients, as in `coef_table`.

        Returns
        -------
        DataFrame
            Rows and columns named as `params`; NaN for a dropped column. With random effects an index of (group,
            level, effect), the fixed effects first as group "fixed": the covariance of (β̂, b̂ − b).

        Raises
        ------
        DataError
            No such group or level.
        MemoryLimitError
            More effects than memory has room for.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.cov_params().round(2)
                   Intercept  Days
        Intercept      46.57 -1.45
        Days           -1.45  2.39
        >>> fit.cov_params(levels=["308"]).loc["Subject"].round(2).to_numpy()
        array([[-34.  ,  -0.53, 171.62, -19.72],
               [ -0.53,  -1.95, -19.72,   6.97]])
        """
        if cov_type != "model":
            from fastlmm_core.inference.robust import robust_cov

            return robust_cov(self, cov_type, cluster, joint=full or levels is not None)
        if not full and levels is None:
            return coefficients.cov_params(self.design, self.core)
        from fastlmm_core.inference.random_cov import joint_cov

        return joint_cov(self.design, self.core, None if full else levels)

    def ranef_cov(self, *, beta_known: bool = True) -> dict[str, pd.DataFrame]:
        """Conditional covariance of the random effects of every level.

        Parameters
        ----------
        beta_known : bool
            Var(b | y) at the estimated β, as lme4's ``condVar``. Otherwise the prediction variance of b̂ − b, which has
            the uncertainty of β in it.

        Returns
        -------
        dict of DataFrame
            By term (`var_corr`'s names): rows are (level, effect), columns effects, so that ``.loc["308"]`` is one
            level's block.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.ranef_cov()["Subject"].loc["308"].round(2)
                   Intercept   Days
        effect
        Intercept     145.71 -21.44
        Days          -21.44   5.31
        """
        from fastlmm_core.inference.random_cov import ranef_cov

        return ranef_cov(self.design, self.core, beta_known=beta_known)

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

        For distances on the fixed effects, by row or by group, see `influence`.

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
        from fastlmm_core.core.layout import engine_report

        with self.core.workspace() as objective:
            return engine_report(objective.plan)

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
