"""`glmer()`: a formula and a table in, a fitted generalised linear mixed model out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from fastlmm_core.core.arguments import checked_flag, checked_verbose
from fastlmm_core.core.control import checked_control
from fastlmm_core.core.glmm.model import checked_points
from fastlmm_core.errors import FastLMMWarning, warn
from fastlmm_core.families import Family, Link
from fastlmm_core.fitting.generalised import GlmerOptions, check_identified, fit_generalised, glmm_of
from fastlmm_core.fitting.generalised_rows import FamilyRequest, RowArguments, read_rows
from fastlmm_core.fitting.models import core_terms
from fastlmm_core.fitting.spelling import GLMER_ARGUMENTS, answered
from fastlmm_core.formula.evaluate import caller_names
from fastlmm_core.results.glmer_result import GlmerResult

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastlmm_core.core import Control
    from fastlmm_core.formula.design import NaAction

__all__ = ["glmer"]


@answered(GLMER_ARGUMENTS)
def glmer(
    formula: str,
    data: Any,
    family: str | Family = "binomial",
    *,
    link: str | Link | None = None,
    n_agq: int = 1,
    weights: str | ArrayLike | None = None,
    trials: str | ArrayLike | None = None,
    freq_weights: str | ArrayLike | None = None,
    offset: str | ArrayLike | None = None,
    zero: str | None = None,
    exposure: str | ArrayLike | None = None,
    control: Control | None = None,
    start: ArrayLike | None = None,
    verbose: int = 0,
    subset: str | ArrayLike | None = None,
    na_action: NaAction = "drop",
    contrasts: Mapping[str, Any] | None = None,
    objective_only: bool = False,
    env: Mapping[str, Any] | None = None,
) -> GlmerResult:
    """Fit a generalised linear mixed model.

    Parameters
    ----------
    formula : str
        As in `lmer`. The left side of a binomial model is a column of 0 and 1 (or true and false); a column with two
        levels, the second of which is success; ``cbind(successes, failures)``; counts of successes with ``trials=``;
        or proportions with ``weights=``.
    data : table
        As in `lmer`.
    family : str or Family
        "binomial", "poisson", "negativebinomial" (NB2), "negativebinomial1", "gamma", "inverse_gaussian", "gaussian",
        "beta"; for counts without zeros "truncated_poisson", "truncated_nbinom2", "truncated_nbinom1"; "ordinal" for an
        ordered categorical response (links logit, probit, cloglog); or an object of `fastlmm_core.families`.
    link : str or Link, optional
        The family's first link when left out.
    n_agq : int
        Quadrature points for each random effect of a level; 1 is Laplace's approximation. More need one grouping
        factor and at most three effects a level. 0 is a fast first look.
    weights : str or array_like, optional
        lme4's meaning: trials of binomial proportions; otherwise the dispersion is divided by them. Rows of weight zero
        are left out.
    trials : str or array_like, optional
        Trials of binomial rows, whose response counts successes.
    freq_weights : str or array_like, optional
        How often each row counts (glmmTMB's `weights`).
    offset : str or array_like, optional
        Added to the linear predictor.
    zero : str, optional
        One-sided formula of the log odds of a part of its own for zeros, "~ 1" or "~ x + (1 | g) + offset(o)"
        (glmmTMB's `ziformula`): zero inflation of Poisson and negative binomial counts, a hurdle with the truncated
        ones. Its random effects are independent of the counts'.
    exposure : str or array_like, optional
        Time or size that counts are proportional to: its logarithm is an offset. For the log link only.
    control, verbose, subset, na_action, contrasts, env
        As in `lmer`.
    start : array_like, optional
        theta, or (theta, beta, rho), at which to start.
    objective_only : bool
        Return the deviance as a function of (theta, beta, rho) instead of a fit.

    Returns
    -------
    GlmerResult
        Where the family is gaussian with the identity link, `lmer(..., reml=False)`'s result.

    Raises
    ------
    FormulaError, DataError, ModelError
        As in `lmer`; responses outside the family's support; a random term as fine as rows that have no trials or
        counts to tell it by; quadrature with several grouping factors.

    Warns
    -----
    SeparationWarning
        Some coefficients have no finite estimate.
    LaplaceWarning
        Binary responses with few rows a level.
    BoundaryWarning
        A negative binomial without overdispersion.
    ConvergenceWarning, RankWarning
        As in `lmer`.

    Examples
    --------
    >>> from fastlmm_core import glmer, load_dataset
    >>> fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", load_dataset("cbpp"), "binomial")
    >>> round(fit.criterion, 4)
    184.0526
    """
    env = caller_names(3) if env is None else env
    asked = FamilyRequest(family, link)
    verbose = checked_verbose(verbose)
    checked_points(n_agq)
    checked_flag(objective_only, "objective_only")
    gaussian = asked.chosen.name == "gaussian" and asked.chosen.link.name == "identity"
    if gaussian and freq_weights is None and exposure is None and trials is None and zero is None:
        common: dict[str, Any] = {"control": control, "start": start, "verbose": verbose, "subset": subset}
        common |= {"weights": weights, "na_action": na_action, "offset": offset, "contrasts": contrasts}
        warn("a gaussian model with the identity link is lmer(..., reml=False), which fits it exactly", FastLMMWarning)
        return cast("GlmerResult", _linear(formula, data, objective_only=objective_only, env=env, **common))
    given = RowArguments(weights, trials, freq_weights, offset, zero, exposure, subset)
    rows = read_rows(
        formula,
        data,
        asked,
        given,
        na_action=na_action,
        contrasts=contrasts,
        env=env,
        check_levels=checked_control(control).check_levels,
    )
    check_identified(rows.design, rows.family)
    arguments = {**vars(given), "link": link, "contrasts": contrasts}
    arguments["na_action"] = None if na_action == "drop" else na_action
    options = GlmerOptions(
        rows.family,
        n_agq=n_agq,
        proportions=rows.proportions,
        trials=rows.trials,
        freq_weights=rows.frequencies,
        zero=rows.zero,
        zero_terms=() if rows.zero is None else tuple(core_terms(rows.zero)),
        control=control,
        start=start,
        verbose=verbose,
        given={name: value for name, value in arguments.items() if value is not None},
    )
    if objective_only:
        return cast("GlmerResult", glmm_of(rows.design, options).objective(rows.design.y))
    result = fit_generalised(GlmerResult, rows.design, formula, options)
    result.keep_data(data)
    return result


def _linear(formula: str, data: Any, **options: Any) -> Any:
    """The same model by `lmer`."""
    from fastlmm_core.results.lmer import lmer

    return lmer(formula, data, reml=False, **options)
