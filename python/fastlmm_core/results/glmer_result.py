"""A fitted generalised linear mixed model. Each method is one call into the module of its subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from fastlmm_core.fitting import generalised, ranef, var_corr, zero_part
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.spelling import Figure, answering
from fastlmm_core.results import export, glmer_summary
from fastlmm_core.results.methods.generalised import GeneralisedMethods
from fastlmm_core.results.methods.means import MeansMethods
from fastlmm_core.results.methods.pictures import PictureMethods
from fastlmm_core.results.methods.tables import TableMethods

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastlmm_core.inference.generalised.checks import LaplaceCheck
    from fastlmm_core.inference.generalised.predict import Kind
    from fastlmm_core.inference.generalised.rows import ResidualKind
    from fastlmm_core.inference.profile import Profile
    from fastlmm_core.inference.table import Table
    from fastlmm_core.results.summary import Summary

    Seed = int | Sequence[int] | np.random.SeedSequence | None

__all__ = ["GlmerResult"]


@answering
@dataclass(frozen=True, eq=False, repr=False)
class GlmerResult(GeneralisedMethods, MeansMethods, PictureMethods, TableMethods, GeneralisedModel):
    """A fitted generalised linear mixed model, as `glmer` returns it.

    Names are those of `LmerResult` where the thing is the same. `criterion` is minus twice the log-likelihood, all
    constants included; `deviance` is R's, the sum of squared deviance residuals at the modes.

    Attributes
    ----------
    design : Design
        Response (successes, for a binomial one), matrices and codings of the rows that were used; its weights are the
        trials of binomial rows.
    core : GlmmFit
        The array-level fit.
    formula : str
        As the user wrote it.
    options : GlmerOptions
        Family, points of quadrature, control, start.
    remarks : tuple of str
        What the warnings at the fit said.

    Examples
    --------
    >>> from fastlmm_core import glmer, load_dataset
    >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp"), "binomial")
    >>> round(fit.llf, 3), fit.n_groups
    (-92.026, {'herd': 15})
    >>> fit.coef_table()[["estimate", "std_error", "z"]].round(3)
                 estimate  std_error      z
    Intercept      -1.399      0.232 -6.016
    period[T.2]    -0.992      0.307 -3.236
    period[T.3]    -1.129      0.327 -3.455
    period[T.4]    -1.580      0.427 -3.697
    """

    # ------------------------------------------------------------------ figures

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided p-values of `zvalues`, from the normal distribution."""
        return self.coef_table()["p"].rename(None)

    @property
    def resid(self) -> pd.Series:
        """Deviance residuals."""
        return self.residuals()

    @property
    def deviance(self) -> float:
        """Sum of squared deviance residuals at the modes, as R's `deviance`; `criterion` is −2 log L."""
        from fastlmm_core.inference.generalised.rows import deviance

        return Figure(deviance(self))

    @property
    def aicc(self) -> float:
        """AIC with its small-sample term (Hurvich & Tsai 1989)."""
        from fastlmm_core.inference.comparison import aicc

        return aicc(self)

    def __repr__(self) -> str:
        family = self.core.family
        groups = ", ".join(f"{name} {q}" for name, q in self.n_groups.items())
        return (
            f"<GlmerResult: {family.name}({family.link.name}), {self.formula}; -2 log L {self.criterion:.2f}; "
            f"{self.nobs} rows; {groups}>"
        )

    def summary(self) -> Summary:
        """lme4's summary page: `print` it, or let a notebook show it."""
        return glmer_summary.summary(self)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def to_dict(self, *, ranef: bool = False) -> dict[str, Any]:
        """The estimates and figures of a fit as plain Python values that JSON can hold; NaN becomes None."""
        return export.glmer_to_dict(self, ranef=ranef)

    # ------------------------------------------------------------------ random effects

    def var_corr(self, part: str = "mean") -> var_corr.VarCorr:
        """Variances and correlations of the random effects, on the scale of the linear predictor.

        Parameters
        ----------
        part : {"mean", "zero"}
            Of the response's linear predictor, or of the log odds of a zero part (``zero=``).
        """
        return var_corr.var_corr(*zero_part.design_and_fit(self, part))

    def ranef(self, part: str = "mean", *, condsd: bool = True) -> pd.DataFrame:
        """Conditional modes of the random effects, one row an effect of a level; see `LmerResult.ranef`.

        Parameters
        ----------
        part : {"mean", "zero"}
            As in `var_corr`.
        condsd : bool
            With their conditional standard deviations.
        """
        return ranef.ranef(*zero_part.design_and_fit(self, part), condsd=condsd)

    @property
    def random_effects(self) -> dict[str, pd.DataFrame]:
        """Conditional modes, one wide table a grouping factor: rows are levels, columns effects."""
        return ranef.random_effects(self.design, self.core)  # type: ignore[arg-type]

    def coef(self) -> dict[str, pd.DataFrame]:
        """Coefficients of each level: fixed effects plus the level's random effects, a table a grouping factor."""
        return ranef.coef(self.design, self.core)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ coefficients and tests

    def cov_params(self, *, full: bool = False) -> pd.DataFrame:
        """Covariance of `params` from the Hessian of the deviance in all parameters, as lme4's default.

        Parameters
        ----------
        full : bool
            Of (theta, params, rho) jointly, rho the logarithm of the family's parameter (for NB2 of the size 1/alpha),
            or thresholds or the zero part's coefficients with it.
        """
        names = list(self.design.x_names)
        if not full:
            return pd.DataFrame(self.core.cov_beta.copy(), index=names, columns=names)
        family = self.core.family
        own = family.names if family.vector else ["rho"] * family.n_extra
        names = [*var_corr.theta_labels(self.design), *names, *own]
        return pd.DataFrame(self.core.cov.copy(), index=names, columns=names)

    def coef_table(self, *, exp: bool = False, level: float = 0.95) -> pd.DataFrame:
        """Coefficients with standard errors, z statistics and two-sided p-values.

        Normal quantiles know nothing of how few groups there may be: for small samples compare fits by `anova`
        (likelihood ratios), or look at `bootstrap`.

        Parameters
        ----------
        exp : bool
            Odds ratios (logit), rate or mean ratios (log): e to the estimate, its standard error by the delta method,
            and limits lower and upper that are e to those of the coefficient. z and p stay those of the coefficient.
        level : float
            Of the limits.
        """
        from fastlmm_core.inference.generalised.tables import coef_table

        return coef_table(self, exp=exp, level=level)

    def anova(self, type: int | str = 3) -> Table:
        """Wald's chi-squared tests of the terms of the fixed part.

        Parameters
        ----------
        type : {3, 2, 1}, or "III", "II", "I"
            As in `LmerResult.anova`.

        Returns
        -------
        Table
            A row a term: chisq, df, p.
        """
        from fastlmm_core.inference.generalised.tables import chisq_table

        return chisq_table(self, type=type)

    def drop1(self, *, test: str = "chisq") -> Table:
        """Test each term of the fixed part that no other term contains, as if it alone were left out.

        Parameters
        ----------
        test : {"chisq", "wald"}
            Likelihood ratios of fits without the term (npar, aic, deviance, chisq, df, p; deviance is −2 log L, the
            full model in the first row), or Wald's tests.
        """
        from fastlmm_core.inference.generalised.tables import drop1

        return drop1(self, test=test)

    def t_test(self, hypotheses: Any) -> Table:
        """Wald tests of linear hypotheses R β = q, each on its own; see `LmerResult.t_test`. t is standard normal."""
        from fastlmm_core.inference.hypotheses import t_test

        return t_test(self, hypotheses, ddf="normal")

    # ------------------------------------------------------------------ predictions and residuals

    def predict(
        self,
        newdata: Any = None,
        *,
        kind: Kind = "response",
        re_form: str = "all",
        allow_new_levels: bool = False,
        interval: Literal["confidence"] | None = None,
        level: float = 0.95,
    ) -> pd.Series | pd.DataFrame:
        """Predictions, with an interval where one is asked for.

        Parameters
        ----------
        newdata : table, optional
            Rows to predict, with the formula's columns except the response; by default the rows of the fit.
        kind : {"response", "link", "population", "marginal", "conditional", "zprob", "class"}
            "response": the mean at the groups' modes. "link": the linear predictor there. "population": the mean of a
            group whose random effects are zero, g⁻¹(xβ). "marginal": the mean over all groups, E g⁻¹(xβ + z'b); for
            curved links it is another number than that of the average group. For models with a part for zeros
            "conditional" is the counts' mean without it, "zprob" the probability of a zero that is not the counts'.
            Of an ordinal response "response", "population" and "marginal" are the probabilities of all categories, a
            column each, and "class" is the likeliest one.
        re_form, allow_new_levels
            As in `LmerResult.predict`.
        interval : {"confidence"}, optional
            Made on the scale of the linear predictor and transformed. It has the uncertainty of the parameters and of
            the modes given them; a new level adds its variance.
        level : float

        Returns
        -------
        Series, or DataFrame with an interval
            The frame's columns are fit, std_error (of fit, by the delta method), lower, upper.

        Examples
        --------
        >>> from fastlmm_core import glmer, load_dataset
        >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp"), "binomial")
        >>> fit.predict({"period": ["1", "4"]}, kind="marginal", interval="confidence").round(3)
             fit  std_error  lower  upper
        0  0.216      0.036  0.153  0.296
        1  0.057      0.023  0.026  0.123
        """
        from fastlmm_core.inference.generalised.predict import predict

        return predict(
            self,
            newdata,
            kind=kind,
            re_form=re_form,
            allow_new_levels=allow_new_levels,
            interval=interval,
            level=level,
        )

    def residuals(self, kind: ResidualKind = "deviance", *, seed: int | None = 0, n: int = 250) -> pd.Series:
        """Residuals of the rows used.

        Parameters
        ----------
        kind : str
            "deviance", "pearson" (over the root of the variance function, without phi, as R has it), "response",
            "working", all at the modes. "quantile": the normal quantile of the distribution function at the response,
            randomised where that is discrete (Dunn & Smyth 1996). "simulated": the rank among ``n`` responses drawn
            with new random effects, uniform on (0, 1) where the model is right.
        seed, n
            Of "quantile" and "simulated".
        """
        from fastlmm_core.inference.generalised.rows import residuals

        return residuals(self, kind, seed=seed, n=n)

    def simulate(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        re_form: str = "none",
        newdata: Any = None,
        params: Mapping[str, ArrayLike] | None = None,
    ) -> pd.DataFrame:
        """Draw responses from the model, on the scale that `refit` takes: successes for ``cbind`` and ``trials=``.

        Parameters
        ----------
        n, seed, re_form, newdata
            As in `LmerResult.simulate`.
        params : mapping, optional
            "beta", "theta" to use instead of the estimates.
        """
        from fastlmm_core.inference.generalised.simulate import simulate

        return simulate(self, n, seed=seed, re_form=re_form, newdata=newdata, params=params)

    def refit(self, new_y: Any) -> GlmerResult:
        """The same model fitted to another response.

        Parameters
        ----------
        new_y : array_like
            As in `LmerResult.refit`: successes for a binomial response with trials, proportions where the fit's were,
            0 and 1 for two levels.
        """
        return generalised.refit(self, new_y)

    def dispersion(self) -> pd.Series:
        """Is there more variation than the family allows: Pearson's X² over its degrees of freedom.

        These are n less the effective number of parameters, the modes' share included; n − p − n_theta would make the
        ratio too small. About 1 where the model is right; X² is no chi-squared where means are small.

        Returns
        -------
        Series
            pearson_x2, df, ratio, p; for counts also zeros_observed and zeros_expected.
        """
        from fastlmm_core.inference.generalised.checks import dispersion

        return dispersion(self)

    def laplace_check(self) -> LaplaceCheck:
        """How much Laplace's approximation leaves out of the log-likelihood, by its second-order term.

        About the likelihood, not the estimates. Where effects are as fine as the rows the expansion says nothing, and
        neither does the check.

        Returns
        -------
        LaplaceCheck
            `.correction`, `.parts`, `.quadrature` (the same by quadrature, for one grouping factor), `.verdict`.

        Examples
        --------
        >>> from fastlmm_core import glmer, load_dataset
        >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp"), "binomial")
        >>> round(fit.laplace_check().correction, 3)
        0.044
        """
        from fastlmm_core.inference.generalised.checks import laplace_check

        return laplace_check(self)

    def r2(self) -> pd.Series:
        """Nakagawa's R² on the scale of the linear predictor: "marginal" and "conditional" (Nakagawa et al. 2017).

        The rows' own variance is π²/3 for logit, 1 for probit, π²/6 for cloglog, log(1 + Var(y)/E(y)²) at the mean for
        the log link, trigamma(1/phi) for gamma.
        """
        from fastlmm_core.inference.generalised.checks import r2

        return r2(self)

    def icc(self) -> pd.Series:
        """Intraclass correlations on the scale of the linear predictor; see `LmerResult.icc` and `r2`."""
        from fastlmm_core.inference.generalised.checks import icc

        return icc(self)

    # ------------------------------------------------------------------ intervals

    def conf_int(
        self,
        method: Literal["wald", "profile", "boot"] = "wald",
        level: float = 0.95,
        parm: str | Iterable[str] | None = None,
        *,
        exp: bool = False,
        kind: Literal["percentile", "basic", "norm", "bca"] = "percentile",
        n: int = 1000,
        seed: Seed = None,
        draws: pd.DataFrame | None = None,
    ) -> Table:
        """Confidence intervals; rows as in `LmerResult.conf_int`, the family's own parameter in sigma's place.

        Parameters
        ----------
        method : {"wald", "profile", "boot"}
            "wald": coefficients only, NaN for the others, as in lme4.
        level, parm, kind, n, seed, draws
            As in `LmerResult.conf_int`. Of "boot", standard deviations of few groups ask for ``kind="norm"`` or
            "basic", which take the bias off: percentiles of estimates that are biased downwards are biased twice over.
        exp : bool
            Limits of odds, rate or mean ratios.
        """
        from fastlmm_core.inference.generalised.intervals import conf_int

        return conf_int(self, method, level, parm, exp=exp, kind=kind, n=n, seed=seed, draws=draws)

    def profile(self, which: str | Iterable[str] | None = None, *, level: float | None = None) -> Profile:
        """Profile the likelihood of parameters; see `LmerResult.profile`.

        Parameters
        ----------
        which : str or iterable of str, optional
        level : float, optional
            Intervals up to this level can be read off; 0.99 where left out.
        """
        from fastlmm_core.inference.generalised.intervals import profile

        return profile(self, which, level=level)

    def bootstrap(
        self, n: int = 1000, *, statistic: Callable[[GlmerResult], Any] | None = None, seed: Seed = None
    ) -> pd.DataFrame:
        """Fit the model to responses drawn from it, with new random effects; see `LmerResult.bootstrap`."""
        from fastlmm_core.inference.generalised.intervals import bootstrap

        return bootstrap(self, n, statistic=statistic, seed=seed)

    # ------------------------------------------------------------------ plain tables

    def tidy(
        self,
        effects: str | Sequence[str] = ("fixed", "ran_pars"),
        *,
        conf_int: bool = False,
        level: float = 0.95,
        exp: bool = False,
        ddf: str | None = None,
    ) -> pd.DataFrame:
        """One row a parameter, as broom.mixed's `tidy`; see `LmerResult.tidy`.

        Ordinal models and those with a part for zeros have a `component`: "cond"; "alpha" for thresholds, which have
        no p; "zi" for the zero part's coefficients, whose terms may have the names of the others'.

        Parameters
        ----------
        exp : bool
            Fixed effects as odds, rate or mean ratios, those of every component.
        ddf : None
            For the sake of code that asks any model: there are none.
        """
        from fastlmm_core.inference.generalised.tables import tidy

        return tidy(self, effects, conf_int=conf_int, level=level, exp=exp)

    def glance(self) -> pd.DataFrame:
        """One row for the model: nobs, llf, aic, aicc, bic, deviance, df_resid."""
        from fastlmm_core.inference.generalised.tables import glance

        return glance(self)

    def augment(self, data: Any = None) -> pd.DataFrame:
        """One row an observation used: .fitted (mean), .resid, .link (Xβ + Zb + offset), .fixed, ...

        Residuals are those of the deviance; of ordinal models and those with a part for zeros, whose rows have none,
        quantile residuals; Pearson's where prior weights leave such rows without a distribution.

        Parameters
        ----------
        data : table, optional
            The table of the fit, to add the columns to.
        """
        from fastlmm_core.inference.generalised.tables import augment

        return augment(self, data)
