"""Methods of a generalised fit that `LmerResult` has too: diagnostics, tests, changes, and what there is none of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from fastlmm_core.errors import ModelError, SpellingError
from fastlmm_core.fitting.generalised_model import GeneralisedModel
from fastlmm_core.fitting.spelling import answering

if TYPE_CHECKING:
    from typing import Self

    import pandas as pd
    from numpy.typing import ArrayLike

    from fastlmm_core.core.engines import EngineReport
    from fastlmm_core.inference.ddf import FTest
    from fastlmm_core.inference.diagnostics import ConvergenceReport
    from fastlmm_core.inference.influence import Influence
    from fastlmm_core.inference.table import Table
    from fastlmm_core.results.glmer_result import GlmerResult

__all__ = ["GeneralisedMethods"]

NOT_THERE: Mapping[str, str] = {
    "marginal_cov": "the covariance of its responses has no closed form: simulate() draws them",
    "step": "take terms out by hand with update(), going by drop1() and ranova()",
}
"""Methods of `LmerResult` that a generalised fit cannot have, and why."""


@answering
class GeneralisedMethods(GeneralisedModel):
    """Base of `GlmerResult`."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in NOT_THERE:
                raise SpellingError(f"a generalised fit has no {name}(): {NOT_THERE[name]}")
            return super().__getattr__(name)

    # ------------------------------------------------------------------ leverages, influence

    def hatvalues(self) -> pd.Series:
        """Leverages: the diagonal of the matrix W^1/2 (Z C Z' + M I⁻¹ M') W^1/2 of the working model at the modes.

        Their sum is the effective number of parameters, which `dispersion` takes off the rows. lme4's `hatvalues` warns
        that its numbers may not make sense for such models; these are below one.

        Examples
        --------
        >>> from fastlmm_core import glmer, load_dataset
        >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp"), "binomial")
        >>> float(fit.hatvalues().sum().round(2))
        13.29
        """
        from fastlmm_core.inference.generalised.influence import hatvalues

        return hatvalues(self)

    def cooks_distance(self) -> pd.Series:
        """Cook's distance of every row on its mean, r² h / ((1 − h)² φ p) with Pearson residuals r; see `influence`."""
        from fastlmm_core.inference.generalised.influence import cooks_distance

        return cooks_distance(self)

    def influence(self, by: str | ArrayLike = "obs", *, method: str = "one-step", progress: bool = False) -> Influence:
        """Estimates without each observation, or without each group.

        Parameters
        ----------
        by : str or (n,) labels
            "obs" for single rows, a grouping factor, or one label a row.
        method : {"one-step", "refit"}
            "one-step": all parameters move by one Newton step on the deviance of the remaining rows. "refit": a fit of
            the remaining rows, as lme4's `influence`. Deletion at fixed θ, `LmerResult`'s "fixed", has no exact formula
            here.
        progress : bool
            Show a bar.

        Returns
        -------
        Influence
            As `LmerResult.influence`; sigma is the root of the dispersion.

        Examples
        --------
        >>> from fastlmm_core import glmer, load_dataset
        >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp"), "binomial")
        >>> fit.influence("herd", method="refit").dfbetas.head(2).round(2)
              Intercept  period[T.2]  period[T.3]  period[T.4]
        herd
        1          0.10        -0.52        -0.94        -0.01
        2          0.13         0.01         0.03        -0.02
        """
        from fastlmm_core.inference.generalised.influence import influence

        return influence(self, by, method, progress=progress)

    # ------------------------------------------------------------------ is the fit sound

    def convergence_report(self) -> ConvergenceReport:
        """How sure the optimum is, in words; see `LmerResult.convergence_report`. All parameters take part here."""
        from fastlmm_core.inference.generalised.convergence import convergence_report

        return convergence_report(self)

    def engine_report(self) -> EngineReport:
        """Which engine fitted the random effects, and why; one grouping factor needs none, its levels go one by one.

        Raises
        ------
        ModelError
            There is one grouping factor, and `Control(engine="cholmod")` was not asked for.
        """
        from fastlmm_core.core.glmm.iterative.fitted import IterativeGlmmFit
        from fastlmm_core.core.glmm.laplace import Laplace
        from fastlmm_core.core.glmm.two_predictors import TwoPredictors
        from fastlmm_core.core.layout import engine_report
        from fastlmm_core.fitting.generalised import kept_glmm

        if isinstance(self.core, IterativeGlmmFit):
            return self.core.engine_report()
        engine = kept_glmm(self).engine
        if isinstance(engine, TwoPredictors):
            engine = engine.inner
        if not isinstance(engine, Laplace):
            raise ModelError("a model with one grouping factor has no engine to report: its levels go one by one")
        return engine_report(engine.layout)

    def re_pca(self) -> dict[str, pd.DataFrame]:
        """Principal components of the random effects of each grouping factor; see `LmerResult.re_pca`."""
        from fastlmm_core.inference.diagnostics import re_pca

        return re_pca(self.design, self.core)  # type: ignore[arg-type]

    def ranef_cov(self, *, beta_known: bool = True) -> dict[str, pd.DataFrame]:
        """Conditional covariance of every level's random effects, the parameters given; see `LmerResult.ranef_cov`.

        Parameters
        ----------
        beta_known : bool
            True: intervals of `predict` have the uncertainty of the parameters.
        """
        from fastlmm_core.inference.random_cov import ranef_cov

        if not beta_known:
            raise ModelError("covariances of modes are given the parameters here: predict(interval=) has theirs too")
        return ranef_cov(self.design, self.core)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ tests

    def f_test(self, hypotheses: Any) -> FTest:
        """Wald's test of linear hypotheses R β = q all at once; see `LmerResult.f_test`.

        Its F is chi-squared over its degrees of freedom: the denominator's are infinite.

        Examples
        --------
        >>> from fastlmm_core import glmer, load_dataset
        >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp"), "binomial")
        >>> fit.f_test("period[T.2] = period[T.3]")
        <FTest: F = 0.1283 on 1 and inf df, p = 0.7203>
        """
        from fastlmm_core.inference.hypotheses import f_test

        return f_test(self, hypotheses, ddf="normal")

    def ranova(self, *, reduce_terms: bool = True, test: str = "chisq") -> Table:
        """Likelihood-ratio tests of the random effects, and of those of a zero part; see `LmerResult.ranova`.

        Parameters
        ----------
        reduce_terms : bool
            Terms of several effects lose one at a time (the intercept stays); otherwise whole terms go.
        test : {"chisq"}

        Examples
        --------
        >>> from fastlmm_core import glmer, load_dataset
        >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp"), "binomial")
        >>> fit.ranova()[["npar", "lrt", "df"]].round(2)
                    npar    lrt   df
        term
        <none>         5    NaN  NaN
        (1 | herd)     4  14.01  1.0
        """
        from fastlmm_core.inference.generalised.tables import reduced_criteria
        from fastlmm_core.inference.ranova import ranova

        if test != "chisq":
            raise ModelError(f"the random effects of a generalised fit are tested by test='chisq' alone, not {test!r}")
        return ranova(self, reduced_criteria(self, reduce_terms))

    # ------------------------------------------------------------------ other fits

    def refit_ml(self) -> Self:
        """The fit itself, which is by maximum likelihood."""
        return self

    def update(self, formula: str | None = None, data: Any = None, **changes: Any) -> GlmerResult:
        """Fit again with changes; see `LmerResult.update`.

        Parameters
        ----------
        formula, data
            As in `LmerResult.update`.
        **changes
            Arguments of `glmer`; `n_agq`, `control` and `start` alone need no table.

        Examples
        --------
        >>> from fastlmm_core import glmer, load_dataset
        >>> data = load_dataset("cbpp")
        >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", data, "binomial")
        >>> fit.update(". ~ . - period").formula
        'cbind(incidence, size - incidence) ~ 1 + (1 | herd)'
        >>> round(float(fit.update(n_agq=15).params["Intercept"]), 2)
        -1.4
        """
        from fastlmm_core.results.update import update_generalised

        return update_generalised(cast("GlmerResult", self), formula, data, **changes)
