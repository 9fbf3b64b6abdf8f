"""Results of models with a residual structure or dispersion: `LmerResult`'s names, with what the structure changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import pandas as pd

from fastlmm_core.core.arguments import seed_sequence
from fastlmm_core.core.residuals import CrossedFit, PatternFit
from fastlmm_core.core.structures.equations_fit import EquationsFit
from fastlmm_core.core.structures.iterative import IterativeEquationsFit
from fastlmm_core.core.structures.structured import StructuredFit
from fastlmm_core.errors import ModelError
from fastlmm_core.fitting import residual
from fastlmm_core.fitting.fit import fit_design
from fastlmm_core.fitting.predict import predict
from fastlmm_core.fitting.relationships import relationship_values, sparse_coefficients
from fastlmm_core.fitting.residual import describe, parameter_labels
from fastlmm_core.fitting.residual_prediction import check_residual, predict_conditional
from fastlmm_core.fitting.spelling import answering
from fastlmm_core.fitting.structured_models import structure_labels
from fastlmm_core.fitting.var_corr import theta_labels
from fastlmm_core.formula.residual import ParsedResidual
from fastlmm_core.results.result import LmerResult

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core.engines import EngineReport
    from fastlmm_core.fitting.options import FitOptions
    from fastlmm_core.formula import Design
    from fastlmm_core.inference.diagnostics import ConvergenceReport
    from fastlmm_core.inference.influence import Influence
    from fastlmm_core.inference.profile import Profile
    from fastlmm_core.inference.table import Table
    from fastlmm_core.results.summary import Summary

__all__ = ["StructuredResult", "fit_structured"]


def fit_structured(
    design: Design, formula: str, options: FitOptions, start: ArrayLike | None, *, objective_only: bool
) -> StructuredResult:
    """Fit a design with a residual structure."""
    if objective_only:
        raise ModelError(
            "objective_only is not available for residual structures, structured random effects and known relationships"
        )
    if start is not None:
        from dataclasses import replace

        options = replace(options, start=np.array(start, dtype=float).ravel())
    return fit_design(StructuredResult, design, formula, options)


@answering
@dataclass(frozen=True, eq=False, repr=False)
class StructuredResult(LmerResult):
    """A fitted model with a covariance structure: of the residuals, of random effects, or between their levels.

    Everything of `LmerResult` that does not need the random effects' equations is there; the rest says so in one
    sentence.

    Examples
    --------
    >>> from fastlmm_core import lmer, load_dataset
    >>> fit = lmer("Reaction ~ Days", load_dataset("sleepstudy"), residual="ar1(Days | Subject)")
    >>> fit
    <StructuredResult: Reaction ~ Days; REML criterion 1739.21; 180 rows; Subject 18; AR(1)>
    >>> fit.residual_corr().iloc[:2, :3].round(3)
         0    1     2
    0  1.0  0.8  0.64
    1  0.8  1.0  0.80
    """

    @property
    def _within(self) -> PatternFit | CrossedFit:
        """The core's fit, where residuals have a structure or units are independent."""
        if isinstance(self.core, PatternFit | CrossedFit):
            return self.core
        raise ModelError(
            "this is for models with a residual structure or of independent subjects, not for structured effects of "
            "several grouping factors, known relationships or sparse fixed effects alone"
        )

    @property
    def _units(self) -> PatternFit | None:
        """The core's fit from the covariance matrices of whole units; None where it has none."""
        core = self.core.by_units if isinstance(self.core, CrossedFit) else self.core
        return core if isinstance(core, PatternFit) else None

    def _free(self, what: str) -> PatternFit | CrossedFit:
        """`_within`, where levels are unrelated and fixed effects are not sparse."""
        if self.design.sparse or any(term.relationship is not None for term in self.design.random):
            raise ModelError(f"{what} is not available for known relationships and sparse() effects")
        return self._within

    @property
    def theta(self) -> pd.Series:
        """Covariance parameters as they were optimised; `covariance_parameters` has them as they are printed."""
        return pd.Series(self.core.theta, index=self._theta_labels(), dtype=float, copy=True)

    @property
    def fit_log(self) -> pd.DataFrame:
        """One row an evaluation: criterion, gradient_norm, radius, and the covariance parameters."""
        log = self.core.log
        figures = pd.DataFrame(
            {"criterion": log.criterion, "gradient_norm": log.gradient_norm, "radius": log.radius},
            index=pd.RangeIndex(1, len(log) + 1, name="evaluation"),
        )
        return figures.join(pd.DataFrame(log.theta, columns=self._theta_labels(), index=figures.index))

    def _theta_labels(self) -> list[str]:
        if isinstance(self.core, StructuredFit):
            return theta_labels(self.design)
        return parameter_labels(self.design) + structure_labels(self.design)

    @property
    def n_groups(self) -> dict[str, int]:
        """Levels of each grouping factor, and subjects."""
        out = super().n_groups
        within = self.design.residual
        if within is not None and within.parsed is not None and within.subjects is not None:
            out.setdefault(":".join(within.parsed.subject), len(within.subjects))
        return out

    def residual_cov(self, subject: Hashable = None) -> pd.DataFrame:
        """Covariance of the residuals of one subject, random effects apart, for a row of weight 1.

        Parameters
        ----------
        subject : level, optional
            One subject's rows, in the data's order, with their own dispersion and weights. By default all visits (of
            the first group, and where the dispersion's columns are zero).

        Returns
        -------
        DataFrame
            Visits by visits.
        """
        return residual.residual_cov(self.design, self._within, subject)

    def residual_corr(self, subject: Hashable = None) -> pd.DataFrame:
        """Correlations of `residual_cov`."""
        cov = self.residual_cov(subject)
        sd = np.sqrt(np.diag(cov))
        return cov / sd[:, None] / sd[None, :]

    def covariance_parameters(self, level: float = 0.95) -> pd.DataFrame:
        """Covariance parameters as the literature prints them, with standard errors and Wald intervals.

        Variances and standard deviations have intervals on the log scale, correlations on Fisher's z scale.

        Returns
        -------
        DataFrame
            kind, estimate, std_error, lower, upper; a row a parameter.
        """
        from fastlmm_core.inference.pattern_parameters import covariance_parameters

        assert isinstance(self.core, PatternFit | EquationsFit | StructuredFit)
        return covariance_parameters(self.design, self.core, level)

    def marginal_cov(self, level: Hashable) -> NDArray[np.float64]:
        """Marginal covariance (m, m) of the rows of one subject, or one level of the random effects' factor."""
        if isinstance(self.core, StructuredFit):
            return super().marginal_cov(level)
        return residual.marginal_cov(self.design, self._free("marginal_cov"), level)

    def breeding_values(self, group: str | None = None) -> pd.DataFrame:
        """Predicted effects of the levels of a factor with a known relationship, all of its levels.

        Parameters
        ----------
        group : str, optional
            The grouping factor; the first one with a relationship by default.

        Returns
        -------
        DataFrame
            Indexed by level: effect (where there are several), value, std_error (of prediction, the estimation of the
            fixed effects included), reliability (1 - std_error^2 / variance, the squared correlation with the true
            value), and for a fit by the iterative engine reliability_error, its Monte Carlo standard error.
        """
        return relationship_values(self.design, self.core, group)

    def sparse_coef(self, name: str | None = None, *, se: bool = False) -> pd.DataFrame:
        """Coefficients of the levels of a `sparse()` fixed factor; zero for reference levels.

        Parameters
        ----------
        name : str, optional
            The factor; the first one by default.
        se : bool
            Add standard errors, which need entries of an inverse.

        Returns
        -------
        DataFrame
            Indexed by level: estimate, and std_error.
        """
        return sparse_coefficients(self.design, self.core, name, se)

    def emmeans(self, *args: Any, **options: Any) -> Any:
        """As `LmerResult.emmeans`; refused beside `sparse()` effects, over which it cannot average."""
        if self.design.sparse:
            self._refuse("emmeans beside sparse() effects")
        return super().emmeans(*args, **options)

    def predict(
        self,
        newdata: Any = None,
        *,
        re_form: str = "all",
        allow_new_levels: bool = False,
        residual: Literal["marginal", "conditional"] = "marginal",
        interval: Literal["confidence", "prediction"] | None = None,
        level: float = 0.95,
        ddf: Literal["satterthwaite", "normal"] = "satterthwaite",
        theta_known: bool = True,
        weights: ArrayLike | None = None,
    ) -> pd.Series | pd.DataFrame:
        """As `LmerResult.predict`, with or without what a subject's other rows say about its residual.

        Parameters
        ----------
        newdata, re_form
            As there. Rows need the visit, and the subject where ``residual="conditional"``; a prediction interval
            needs the visit where visits have variances of their own, and the columns of the dispersion.
        allow_new_levels : bool
            As there; of subjects too: an unseen or missing one has a residual of zero with its variance.
        residual : {"marginal", "conditional"}
            "marginal": a residual of mean zero, drawn anew. "conditional": its best linear prediction from the
            subject's residuals in the fit is added, a'(y − Xβ − Zb) with a = R⁻¹r, r its covariances with them
            (kriging where visits are places). A visit that the subject has in the fit gives its response back.
        interval : {"confidence", "prediction"}, optional
            "confidence": for Xβ + Zb, and a'(y − Xβ − Zb) where the residual is conditional, as β and b are uncertain.
            "prediction": for a new observation; the residual's variance is added, what the subject's others leave of
            it where it is conditional.
        level, ddf, theta_known
            As there.
        weights : float or (n,), optional
            Weights of the new observations: 1 by default, the fit's own where newdata is not given.

        Returns
        -------
        Series, or DataFrame with an interval
            As there.

        Raises
        ------
        DataError
            As there; a visit, place or group that the structure was not fitted to, a subject in another group.
        ModelError
            As there; ``residual="conditional"`` in a model whose residuals are independent.

        Notes
        -----
        The predictor is x'β + c'V⁻¹(y − Xβ), c the covariances of y with the row's random part, and its error has the
        variance v − c'V⁻¹c + d'Cov(β)d with d = x − X'V⁻¹c (Goldberger 1962; Harville 1976): what SAS's PROC MIXED
        prints for rows without a response, and mmrm's ``conditional = TRUE``.

        Examples
        --------
        >>> import pandas as pd
        >>> from fastlmm_core import lmer, load_dataset
        >>> sleep = load_dataset("sleepstudy")
        >>> fit = lmer("Reaction ~ Days", sleep[sleep.Days < 9], residual="exp(Days | Subject)")
        >>> day = pd.DataFrame({"Days": [9, 9], "Subject": ["308", "309"]})
        >>> fit.predict(day, residual="conditional", interval="prediction").round(1)
             fit  std_error     df  lower  upper
        0  418.8       29.7  155.3  360.1  477.5
        1  259.3       29.7  155.3  200.5  318.0
        """
        if self.design.sparse and newdata is not None:
            self._refuse("predict of new data beside sparse() effects")
        conditional = check_residual(self.design, residual)
        rows: dict[str, Any] = {"re_form": re_form, "allow_new_levels": allow_new_levels}
        if interval is None:
            if conditional:
                return predict_conditional(self.design, self.core, newdata, **rows, weights=weights)
            return predict(self.design, self.core, newdata, **rows)
        if self.design.sparse:
            self._refuse("predict(interval=...)", "sparse() effects")
        asked = rows | {"interval": interval, "level": level, "ddf": ddf, "theta_known": theta_known}
        asked |= {"weights": weights}
        if isinstance(self.core, StructuredFit):
            return super().predict(newdata, **asked)
        from fastlmm_core.inference.structured_prediction import structured_interval

        assert isinstance(self.core, PatternFit | EquationsFit)
        return structured_interval(self.design, self.core, newdata, residual=residual, **asked)

    def residuals(self, kind: Any = "response") -> pd.Series:
        """Residuals of the rows used.

        Parameters
        ----------
        kind : str
            "response", "conditional": y − Xβ − Zb − offset. "marginal": y − Xβ − offset. "pearson", "scaled": the
            response residual over its own standard deviation. "normalized": all of a subject's, multiplied by the
            inverse of the Cholesky factor of their residual covariance; uncorrelated with variance one under the model.
        """
        if not isinstance(self.core, PatternFit | CrossedFit):
            return super().residuals(kind)
        values = residual.residuals(self.design, self._within, kind)
        return pd.Series(values, index=self.design.row_labels, dtype=float)

    def simulate(self, n: int = 1, seed: Any = None, **options: Any) -> pd.DataFrame:
        """Responses drawn from the fitted model: new random effects and residuals at every draw.

        Parameters
        ----------
        n : int
        seed : int, optional

        Returns
        -------
        DataFrame (n_rows, n)
            Columns sim_1, ..., sim_n.
        """
        if isinstance(self.core, StructuredFit):
            return super().simulate(n, seed=seed, **options)
        if options:
            raise ModelError(
                f"simulate of a model with a residual structure takes n and seed only, not {next(iter(options))}"
            )
        draws = residual.simulate(self.design, self._free("simulate"), n, np.random.default_rng(seed_sequence(seed)))
        names = [f"sim_{k + 1}" for k in range(n)]
        return pd.DataFrame(draws, index=self.design.row_labels, columns=names)

    def summary(self, ddf: str = "satterthwaite") -> Summary:
        """The summary page, with the residual structure below the random effects."""
        from fastlmm_core.results import summary

        return summary.summary(self, ddf, residual=describe(self.design, self.core))

    def __repr__(self) -> str:
        kinds = [f"{term.structure.name} {term.grp}" for term in self.design.random if term.structure is not None]
        kinds += [f"{term.grp} related" for term in self.design.random if term.relationship is not None]
        within = self.design.residual
        if within is not None:
            kinds += [part.title if isinstance(part, ParsedResidual) else part.text for part in within.parts]
        return super().__repr__().replace("LmerResult", "StructuredResult", 1)[:-1] + f"; {', '.join(kinds)}>"

    def _refuse(self, what: str, beside: str = "a residual structure, structured effects or relationships") -> NoReturn:
        raise ModelError(f"{what} is not available for a model with {beside}")

    def profile(
        self, which: str | Iterable[str] | None = None, *, level: float | None = None, progress: bool = False
    ) -> Profile:
        """As `LmerResult.profile`, of the standard deviations and shapes that `covariance_parameters` prints.

        Parameters
        ----------
        which : str or iterable of str, optional
            Parameters by name: "sd Residual", "rho", a coefficient. Covariances, and correlations of several working
            parameters (us, toep), have no profile and are left out.
        level, progress
            As there.
        """
        from fastlmm_core.inference.structured_profile import structured_profile

        return structured_profile(self, which, level=level, progress=progress)

    def bootstrap(self, n: int = 1000, **options: Any) -> pd.DataFrame:
        """As `LmerResult.bootstrap`, parametric; by default of the parameters that `covariance_parameters` prints.

        Every draw is a `refit`. Refused for relationships and `sparse()` effects.
        """
        if not isinstance(self.core, StructuredFit):
            self._free("bootstrap")
        return super().bootstrap(n, **options)

    def ranova(self, *, reduce_terms: bool = False, test: str = "chisq", **options: Any) -> Table:
        """Likelihood-ratio tests of the random effects, each term left out as a whole.

        Parameters
        ----------
        reduce_terms, test
            False and "chisq": structured terms are not reduced, and draws of their null distribution not made.
        """
        from fastlmm_core.inference.ranova import ranova
        from fastlmm_core.inference.structured_refits import structured_reductions

        if reduce_terms or test != "chisq" or options:
            raise ModelError(
                'ranova of a model with a covariance structure leaves whole terms out and has test="chisq" only'
            )
        return ranova(self, structured_reductions(self))

    def influence(self, by: Any = "obs", *, method: Any = "fixed", progress: bool = False) -> Influence:
        """As `LmerResult.influence`, by a fit or an evaluation of the remaining rows a case.

        Parameters
        ----------
        by : str or (n,) labels
            "obs", a grouping factor, the subject of the residual structure, or one label a row.
        method : {"fixed", "refit"}
        progress : bool
        """
        from fastlmm_core.inference.structured_refits import structured_influence

        return structured_influence(self, self._parameter_labels(), by, method, progress=progress)

    def _parameter_labels(self) -> list[str]:
        return parameter_labels(self.design) + structure_labels(self.design)

    def hatvalues(self) -> pd.Series:
        """As `LmerResult.hatvalues`; not of relationships, sparse fixed effects, and effects that cross subjects."""
        from fastlmm_core.inference.structured_refits import leverages

        if isinstance(self.core, StructuredFit):
            return super().hatvalues()
        if (units := self._units) is None:
            self._refuse("hatvalues", "known relationships, sparse() effects or effects that cross subjects")
        return pd.Series(leverages(units), index=self.design.row_labels, dtype=float)

    def cooks_distance(self) -> pd.Series:
        """As `LmerResult.cooks_distance`, for structured effects of several grouping factors."""
        if isinstance(self.core, StructuredFit):
            return super().cooks_distance()
        self._refuse("cooks_distance", 'a residual structure or relationships; influence("obs") has distances')

    def augment(self, data: Any = None) -> pd.DataFrame:
        """As `LmerResult.augment`; .hat and .cooksd only where `hatvalues` and `cooks_distance` are."""
        from fastlmm_core.inference.tidy import with_answers

        if isinstance(self.core, StructuredFit):
            return super().augment(data)
        rows = self.design.own_rows()
        out = {
            "fitted": rows.full(self.core.fitted),
            "resid": rows.full(self.design.y - self.core.fitted),
            "fixed": predict(self.design, self.core, re_form="none"),
        }
        if self._units is not None:
            out["hat"] = rows.full(self.hatvalues().to_numpy())
        if isinstance(self.core, PatternFit | CrossedFit):
            out["std_resid"] = rows.full(self.residuals("pearson").to_numpy())
        return with_answers(self.design, rows, out, data)

    def convergence_report(self) -> ConvergenceReport:
        """As `LmerResult.convergence_report`; gradient and Hessian in working parameters, columns of unit size."""
        from fastlmm_core.inference.structured_report import structured_report

        if isinstance(self.core, PatternFit | EquationsFit | StructuredFit):
            return structured_report(self.design, self.core, self._parameter_labels())
        return super().convergence_report()

    def engine_report(self) -> EngineReport:
        """As `LmerResult.engine_report`; equations of one's own have no other engine to compare with."""
        if isinstance(self.core, StructuredFit):
            return super().engine_report()
        from fastlmm_core.core.engines import EngineReport

        if isinstance(self.core, IterativeEquationsFit):
            return EngineReport("iterative", self.core.reason, len(self.core.solved.u), {})
        if isinstance(self.core, EquationsFit):
            size = sum(len(t.level_set) * len(t.columns) for t in self.design.random)
            reason = "effects that cross subjects, are related or sparse are solved for in one system"
            return EngineReport("equations", reason, size, {})
        return EngineReport("units", "units are independent: the covariance of each pattern is factored whole", 0, {})
