"""Methods of a result that predict: responses with their uncertainty, covariances of coefficients and random effects.

What `fastlmm_core.inference` does is imported when a method first needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from fastlmm_core.fitting import coefficients, predict
from fastlmm_core.fitting.fitted import FittedModel
from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from fastlmm_core.inference.random_cov import Levels

__all__ = ["PredictionMethods"]


@answering
class PredictionMethods(FittedModel):
    """Base of `LmerResult`: predictions, covariances of what they are made of."""

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
