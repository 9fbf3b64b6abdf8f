"""`lmer()`: a formula and a table in, a fitted linear mixed model out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ParamSpec, cast

import pandas as pd

from fastlmm_core.core.arguments import checked_flag, checked_verbose
from fastlmm_core.core.control import checked_control
from fastlmm_core.fitting.fit import fit_design, objective_of
from fastlmm_core.fitting.models import is_structured
from fastlmm_core.fitting.options import FitOptions, checked_start
from fastlmm_core.fitting.spelling import FIT_ARGUMENTS, Fitter, answered
from fastlmm_core.formula import build_design
from fastlmm_core.formula.evaluate import caller_names
from fastlmm_core.formula.sources import is_stream
from fastlmm_core.results.result import LmerResult

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastlmm_core.core import Control
    from fastlmm_core.formula.design import NaAction

__all__ = ["lmer"]

P = ParamSpec("P")

ARGUMENTS = ("subset", "weights", "offset", "contrasts", "residual", "dispersion", "precision", "relmat")
"""What `FitOptions.given` has of a call, na_action aside."""


def relationships(precision: Mapping[str, Any] | None, relmat: Mapping[str, Any] | None) -> Any:
    """Known covariances between levels, of modules that other fits do without."""
    from fastlmm_core.fitting.relationships import relationships as known

    return known(precision, relmat)


def _fits(function: Callable[P, LmerResult]) -> Fitter[P, LmerResult]:
    """The same function, with the type of what ``objective_only=True`` returns and answers to others' spellings."""
    return cast("Fitter[P, LmerResult]", answered(FIT_ARGUMENTS)(function))


@_fits
def lmer(
    formula: str,
    data: Any,
    *,
    reml: bool = True,
    control: Control | None = None,
    start: ArrayLike | None = None,
    verbose: int = 0,
    subset: str | ArrayLike | None = None,
    weights: str | ArrayLike | None = None,
    na_action: NaAction = "drop",
    offset: str | ArrayLike | None = None,
    contrasts: Mapping[str, Any] | None = None,
    objective_only: bool = False,
    env: Mapping[str, Any] | None = None,
    residual: str | None = None,
    dispersion: str | None = None,
    precision: Mapping[str, Any] | None = None,
    relmat: Mapping[str, Any] | None = None,
) -> LmerResult:
    """Fit a linear mixed model.

    Parameters
    ----------
    formula : str
        lme4's notation: ``"y ~ x + (x | g)"``. The fixed part is read by formulaic (transforms, interactions,
        contrasts); random terms are ``(1 | g)``, ``(x | g)``, ``(0 + x | g)``, ``(x || g)``, ``diag(x | g)``,
        ``(1 | a/b)``, ``(1 | a:b)``, ``(1 | factor(id))``, any number of them. A formula is code, as in R: its calls
        run as Python, so read none from a stranger.
    data : table
        pandas, polars, pyarrow, or anything else that narwhals reads. Or rows to be read in batches, none of which is
        kept: a path of Parquet files (a file, a folder, a wildcard, a list), a pyarrow Dataset, an iterator of
        RecordBatches, or `stream(source)`; see the page on scale.
    reml : bool
        Restricted maximum likelihood (default), or maximum likelihood.
    control : Control, optional
        Engine, tolerances, limits.
    start : array_like (n_theta,), optional
        θ at which to start, in the order of the result's `theta`.
    verbose : int
        Above 0: one line an evaluation on standard error, while the fit runs. The same figures are in `fit_log`.
    subset, weights, offset : str or array_like, optional
        An expression over the data's columns, a column's name, or an array with one value a row; a pandas object is
        aligned with the data's index. `subset` keeps rows; `weights` are proportional to inverse residual variances,
        and rows of weight zero are left out; `offset` is added to the linear predictor. These are not code: a text can
        only compute.
    na_action : {"drop", "exclude", "raise"}
        Rows with missing values (in weights and offset, too) are dropped and counted in `n_missing`; dropped, with NaN
        in their place in residuals, fitted values and leverages; or refused.
    contrasts : mapping, optional
        Column name to a formulaic contrast.
    objective_only : bool
        Return the criterion as a function of θ instead of a fit: ``obj(theta)``, ``obj.gradient(theta)``.
    env : mapping, optional
        Where names in the formula that are neither columns nor known transforms are looked up. By default the
        namespace of the function that calls `lmer`, so that a function defined beside the call can be used.
    residual : str, optional
        Covariance of a subject's residuals: ``"us(visit | subject)"``, ``"ar1(visit | arm / subject)"`` for one an arm.
        Names: us, diag, cs, csh, ar1, ar1h, toep, toeph, ad, adh, exp, gau, ou (with coordinates), and their aliases;
        see the page on residual structures. A formula then needs no random term.
    dispersion : str, optional
        One-sided formula in which the log of the residual standard deviation is linear: ``"~ sex"``, ``"~ power(x)"``.
    precision, relmat : mapping, optional
        Known inverse covariance, or covariance, between the levels of a grouping factor: ``{"animal": pedigree(...)}``,
        or a DataFrame whose index names the levels, or an array or scipy.sparse matrix in the order of the factor's
        levels.

    Returns
    -------
    LmerResult, or Objective where `objective_only`

    Raises
    ------
    FormulaError
        The formula cannot be read or has no random term.
    DataError
        The data do not fit the formula: a missing column, infinite values, a wrong length.
    ModelError
        The model cannot be fitted to these data: a group with one level, as many levels as rows.

    Warns
    -----
    ConvergenceWarning
        The optimiser stopped before its criterion was met.
    IdentifiabilityWarning
        The criterion does not depend on some variance: its columns lie in the span of the fixed effects, or two terms
        say the same. It is held at zero, and coefficients whose standard errors depend on it have NaN in their place.
    RankWarning
        Fixed-effects columns depend linearly on others and were dropped.

    Notes
    -----
    A fit on the boundary (a variance of zero, a correlation of one) is no error and raises no warning: `is_singular`
    and the summary say so.

    Examples
    --------
    >>> from fastlmm_core import lmer, load_dataset
    >>> fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    >>> fit.params.round(3)
    Intercept    251.405
    Days          10.467
    dtype: float64
    >>> objective = lmer("Reaction ~ Days + (1 | Subject)", load_dataset("sleepstudy"), objective_only=True)
    >>> round(objective([1.0]), 3)
    1787.399
    """
    env = caller_names(3) if env is None else env
    arguments = (subset, weights, offset, contrasts, residual, dispersion, precision, relmat)
    given = {name: value for name, value in zip(ARGUMENTS, arguments, strict=True) if value is not None}
    if na_action != "drop":
        given["na_action"] = na_action
    verbose = checked_verbose(verbose)
    checked_flag(objective_only, "objective_only")
    options = FitOptions(reml=checked_flag(reml), control=control, verbose=verbose, given=given)
    if not isinstance(data, pd.DataFrame) and isinstance(formula, str) and is_stream(data):
        from fastlmm_core.results.streamed import lmer_streamed, refuse_with_streams

        refuse_with_streams(residual=residual, dispersion=dispersion, precision=precision, relmat=relmat)
        rows = {"weights": weights, "offset": offset, "subset": subset, "na_action": na_action}
        return lmer_streamed(formula, data, options, start, objective_only, contrasts=contrasts, env=env, **rows)
    design = build_design(
        formula,
        data,
        subset=subset,
        weights=weights,
        offset=offset,
        na_action=na_action,
        contrasts=contrasts,
        env=env,
        check_levels=checked_control(control).check_levels,
        residual=residual,
        dispersion=dispersion,
        relationships=None if precision is None and relmat is None else relationships(precision, relmat),
    )
    if is_structured(design):
        from fastlmm_core.results.structured import fit_structured

        structured = fit_structured(design, formula, options, start, objective_only=objective_only)
        structured.keep_data(data)
        return structured
    theta = checked_start(start, design)
    if objective_only:
        return cast("LmerResult", objective_of(design, options))  # `Fitter` has the type that callers see
    if theta is not None:
        options = replace(options, start=theta)
    result = fit_design(LmerResult, design, formula, options)
    result.keep_data(data)
    return result
