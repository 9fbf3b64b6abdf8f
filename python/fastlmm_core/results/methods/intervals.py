"""Methods of a result about intervals: profiles, bootstrap, simulation.

Each is one call of a function of `fastlmm_core.inference`, which is imported when the method is first used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from fastlmm_core.fitting.fitted import FittedModel
from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import ArrayLike

    from fastlmm_core.inference.bootstrap import Statistic
    from fastlmm_core.inference.intervals import Ddf, Kind
    from fastlmm_core.inference.profile import Profile
    from fastlmm_core.inference.table import Table
    from fastlmm_core.results.result import LmerResult

    Seed = int | Sequence[int] | np.random.SeedSequence | None

__all__ = ["IntervalMethods"]


@answering
class IntervalMethods(FittedModel):
    """Base of `LmerResult`: confidence intervals and what they are made of."""

    def conf_int(
        self,
        method: Literal["wald", "profile", "boot"] | float = "wald",
        level: float = 0.95,
        parm: str | Iterable[str] | None = None,
        *,
        ddf: Ddf = "satterthwaite",
        kind: Kind = "percentile",
        n: int = 1000,
        seed: Seed = None,
        draws: pd.DataFrame | None = None,
        progress: bool = False,
        cov_type: str = "model",
        cluster: Any = None,
        alpha: float | None = None,
    ) -> Table:
        """Confidence intervals of every parameter.

        Parameters
        ----------
        method : {"wald", "profile", "boot"}
            "wald": estimate and standard error, coefficients only (NaN for the others, as in lme4). "profile": where
            the likelihood-ratio statistic of the maximum-likelihood fit reaches its quantile; a REML fit is refitted.
            "boot": from a parametric bootstrap of this fit. A number is `alpha`.
        level : float
        parm : str or iterable of str, optional
            Parameters by name; ``"beta_"`` is all coefficients, ``"theta_"`` all others. Every one by default.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            Of "wald": quantiles of t with the degrees of freedom of `coef_table`, so that an interval excludes zero
            where the summary's p-value is below 1 − level; "normal" for lme4's.
        kind : {"percentile", "basic", "norm", "bca"}
            Of "boot". "norm": the estimate less its bias, ± normal quantiles of the standard deviation of the draws.
            "bca" corrects for bias and skewness, and refits the model without each level of the grouping factor that
            has fewest.
        n, seed, progress
            Of "boot", as in `bootstrap`; `progress` is of "profile", too.
        draws : DataFrame, optional
            Of "boot": what `bootstrap` returned, in place of a new one.
        cov_type, cluster
            Of "wald": a cluster-robust covariance, as in `coef_table`; best with ``ddf="satterthwaite"``.
        alpha : float, optional
            statsmodels' way to ask: the intervals of the coefficients alone, at level 1 − alpha.

        Returns
        -------
        Table
            Columns lower, upper. Rows as in lme4: standard deviations and correlations term by term
            (``sd_Intercept|Subject``, ``cor_Days.Intercept|Subject``, ``sd_Days|Subject``), ``sigma``, coefficients.
            A profile that meets a bound first has 0 for a standard deviation, ±1 for a correlation.

        Raises
        ------
        ModelError
            An unknown parameter, method or kind.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> fit.conf_int("profile").round(3)
                                        lower    upper
        sd_Intercept|Subject           14.381   37.716
        cor_Days.Intercept|Subject     -0.481    0.685
        sd_Days|Subject                 3.801    8.753
        sigma                          22.898   28.858
        Intercept                     237.681  265.130
        Days                            7.359   13.576
        >>> fit.conf_int(parm="beta_").round(2)
                    lower   upper
        Intercept  237.01  265.80
        Days         7.21   13.73
        """
        from fastlmm_core.inference.intervals import conf_int

        if isinstance(method, (int, float)):
            method, alpha = "wald", float(method)
        if alpha is not None:
            level, parm = 1.0 - alpha, "beta_" if parm is None else parm
        return conf_int(
            cast("LmerResult", self),
            method,
            level,
            parm,
            ddf=ddf,
            kind=kind,
            n=n,
            seed=seed,
            draws=draws,
            progress=progress,
            cov_type=cov_type,
            cluster=cluster,
        )

    def profile(
        self, which: str | Iterable[str] | None = None, *, level: float | None = None, progress: bool = False
    ) -> Profile:
        """Profile the likelihood of parameters: ζ(v), the signed root of the deviance's rise when one is held at v.

        Parameters
        ----------
        which : str or iterable of str, optional
            Parameters by name, as in `conf_int`.
        level : float, optional
            Intervals up to this level can be read off. By default as far as lme4: the 99 % region of all parameters
            jointly.
        progress : bool
            Show a bar.

        Returns
        -------
        Profile
            Index it by name for a parameter's curve; `.conf_int(level)`, `.to_frame()`.

        Warns
        -----
        ConvergenceWarning
            A deviance below the fit's was met.

        Notes
        -----
        Of the maximum-likelihood fit, to which a REML fit is refitted, as in lme4.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
        >>> pr = fit.profile("Days")
        >>> pr["Days"].zeta_at([7.5, 10.467286, 13.5]).round(2)
        array([-1.88,  0.  ,  1.92])
        """
        from fastlmm_core.inference.profile import profile

        return profile(cast("LmerResult", self), which, level=level, progress=progress)

    def bootstrap(
        self,
        n: int = 1000,
        *,
        kind: Literal["parametric", "residual"] = "parametric",
        statistic: Statistic | None = None,
        seed: Seed = None,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Fit the model to responses drawn from it.

        Parameters
        ----------
        n : int
            Draws.
        kind : {"parametric", "residual"}
            Random effects and residuals drawn from their normal distributions, or resampled from the fit's own, scaled
            to the estimated covariances (Carpenter, Goldstein & Rasbash 2003).
        statistic : callable, optional
            Called with each refitted result; returns a number, an array, or a mapping or Series of named values. By
            default the parameters, which takes a small part of the time.
        seed : int, sequence of int, SeedSequence, optional
            Generators are spawned from this for every few draws: the numbers do not depend on threads or on `n`.
        progress : bool
            Show a bar.

        Returns
        -------
        DataFrame
            A row a draw; a column a parameter, named as in `conf_int`, or a column a value of `statistic`. The
            correlation with an effect that does not vary is NaN.

        Warns
        -----
        ConvergenceWarning
            Some fits did not converge; says how many.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> draws = fit.bootstrap(200, seed=1)
        >>> list(draws.columns)
        ['sd_Intercept|Batch', 'sigma', 'Intercept']
        >>> bool((draws["sd_Intercept|Batch"] < 1e-4).any())  # some draws have no variation between batches
        True
        """
        from fastlmm_core.inference.bootstrap import bootstrap

        return bootstrap(cast("LmerResult", self), n, kind=kind, statistic=statistic, seed=seed, progress=progress)

    def simulate(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        re_form: str = "none",
        newdata: Any = None,
        params: Mapping[str, ArrayLike] | None = None,
    ) -> pd.DataFrame:
        """Draw responses from the model.

        Parameters
        ----------
        n : int
            Draws.
        seed : int, sequence of int, SeedSequence, optional
            As in `bootstrap`: the first draws are the same for every `n`.
        re_form : str
            Random effects held at their conditional modes: "all", "none", or random terms such as "(1 | g)". The
            others are drawn anew.
        newdata : table, optional
            Rows to draw for. Levels that the fit has not seen may occur among effects that are drawn; a row counts with
            weight one.
        params : mapping, optional
            "beta", "theta", "sigma" to use instead of the estimates.

        Returns
        -------
        DataFrame
            Columns sim_1, ..., a row an observation, on the scale of the formula's left side; NaN in rows of newdata
            where something needed is missing.

        Examples
        --------
        >>> from fastlmm_core import lmer, load_dataset
        >>> fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
        >>> fit.simulate(3, seed=1).shape
        (30, 3)
        """
        from fastlmm_core.inference.simulate import simulate

        return simulate(cast("LmerResult", self), n, seed=seed, re_form=re_form, newdata=newdata, params=params)
