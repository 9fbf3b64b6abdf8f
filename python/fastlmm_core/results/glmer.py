"""`glmer()`: a formula and a table in, a fitted generalised linear mixed model out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastlmm_core.core.control import checked_control
from fastlmm_core.errors import DataError, FastLMMWarning, ModelError, warn
from fastlmm_core.families import Family, Hurdle, Link, Ordinal, TwoPart, ZeroInflated, as_family
from fastlmm_core.fitting.generalised import GlmerOptions, check_identified, fit_generalised, glmm_of
from fastlmm_core.fitting.models import is_structured
from fastlmm_core.fitting.spelling import GLMER_ARGUMENTS, answered
from fastlmm_core.formula import build_design, parse_formula
from fastlmm_core.formula.evaluate import Context, caller_names
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.left_side import Categories, Outcome, successes, without_pair
from fastlmm_core.formula.rowwise import numeric_argument, subset_rows
from fastlmm_core.formula.side import SideRequest, without_intercept
from fastlmm_core.results.glmer_result import GlmerResult

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastlmm_core.core import Control
    from fastlmm_core.formula import Design
    from fastlmm_core.formula.design import NaAction
    from fastlmm_core.formula.side import SideMatrix

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
        One-sided formula of the log odds of a part of its own for zeros, "~ 1" or "~ x" (glmmTMB's `ziformula`): zero
        inflation of Poisson and negative binomial counts, a hurdle with the truncated ones. Fixed effects only.
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
    given = family if isinstance(family, Ordinal) else None
    ordered = Categories() if family == Ordinal.name or given is not None else None
    if ordered is None or given is not None:
        chosen = as_family(family, link)
    else:
        chosen = Ordinal(link, levels=3)
    if not isinstance(verbose, (int, np.integer)):
        raise ModelError(f"verbose must be a whole number, not {verbose!r}")
    if chosen.name == "gaussian" and chosen.link.name == "identity" and freq_weights is None and exposure is None:
        common: dict[str, Any] = {"control": control, "start": start, "verbose": verbose, "subset": subset}
        common |= {"weights": weights, "na_action": na_action, "offset": offset, "contrasts": contrasts}
        warn("a gaussian model with the identity link is lmer(..., reml=False), which fits it exactly", FastLMMWarning)
        return cast("GlmerResult", _linear(formula, data, objective_only=objective_only, env=env, **common))
    parsed, pair = without_pair(parse_formula(formula))
    binomial = chosen.name == "binomial"
    known = _known_trials(pair, trials, weights, chosen)
    request = None
    if zero is not None and zero.replace(" ", "") != "~0":
        two_part(chosen, None)
        request = SideRequest(zero, "zero", data, env)
        request.check_missing(na_action)
        if request.absent:
            used = np.ones(len(request.missing), bool) if subset is None else _subset(subset, data, env)
            lost, subset = int((used & request.missing).sum()), used & ~request.missing
    if exposure is not None:
        offset = _with_exposure(exposure, offset, chosen, data, subset, env)
    counted = None
    if freq_weights is not None:
        counted, subset = _frequencies(freq_weights, data, subset, env)
    outcome = Outcome(binary=binomial)
    design = build_design(
        parsed,
        data,
        subset=subset,
        weights=known,
        offset=offset,
        na_action=na_action,
        contrasts=contrasts,
        env=env,
        response=outcome if ordered is None else ordered,
        observation_level=True,
        check_levels=checked_control(control).check_levels,
    )
    if is_structured(design):
        raise ModelError("generalised models have unstructured random effects only: (x | g) or (x || g)")
    side = None
    if request is not None:
        side = request.matrix(design.row_index)
        chosen = two_part(chosen, side)
        if request.absent:
            design = replace(design, n_missing=design.n_missing + lost)
    if ordered is not None:
        if given is not None and given.levels != ordered.levels:
            raise DataError(
                f"the response {design.formula.response} has the levels {', '.join(ordered.levels)}, the family given "
                f"has {', '.join(given.levels)}"
            )
        chosen = Ordinal(chosen.link, levels=ordered.levels)
        design = without_intercept(design)
        if ordered.note:
            design = replace(design, notes=(ordered.note, *design.notes))
    proportions = binomial and weights is not None
    if binomial:
        name = parsed.response
        y = successes(design.y, design.weights, name, design.row_index, proportions=proportions)
        design = design.with_response(y)
    else:
        _check_varying(design, chosen)
    if outcome.note:
        design = replace(design, notes=(outcome.note, *design.notes))
    check_identified(design, chosen)
    arguments = {
        **{"link": link, "weights": weights, "trials": trials, "freq_weights": freq_weights, "exposure": exposure},
        **{"subset": subset, "offset": offset, "contrasts": contrasts, "zero": zero},
    }
    options = GlmerOptions(
        chosen,
        n_agq=n_agq,
        proportions=proportions,
        trials=known if binomial and isinstance(known, str) else None,
        freq_weights=None if counted is None else counted[design.row_index],
        zero=side,
        control=control,
        start=start,
        verbose=int(verbose),
        given={name: value for name, value in arguments.items() if value is not None},
    )
    if objective_only:
        return cast("GlmerResult", glmm_of(design, options).objective(design.y))
    result = fit_generalised(GlmerResult, design, formula, options)
    result.keep_data(data)
    return result


def _linear(formula: str, data: Any, **options: Any) -> Any:
    """The same model by `lmer`."""
    from fastlmm_core.results.lmer import lmer

    return lmer(formula, data, reml=False, **options)


def _known_trials(
    pair: str | None, trials: str | ArrayLike | None, weights: str | ArrayLike | None, family: Family
) -> str | ArrayLike | None:
    """What says how many trials a row has, or the weights; ModelError where several do, or the family has none."""
    binomial = family.name == "binomial"
    if pair is not None and not binomial:
        raise ModelError(f"cbind(successes, failures) belongs to the binomial family, not to {family.name}")
    if (pair is not None) + (trials is not None) + (binomial and weights is not None) > 1:
        raise ModelError("give one of cbind(successes, failures), trials= and weights=: each says how many trials")
    if trials is not None and not binomial:
        raise ModelError(f"trials belong to the binomial family, not to {family.name}")
    return pair if pair is not None else trials if trials is not None else weights


def two_part(base: Family, side: SideMatrix | None) -> Family:
    """Counts with a part of their own for zeros: a hurdle where they begin at one, zero inflation elsewhere.

    Raises
    ------
    ModelError
        Not a family of counts.
    """
    if isinstance(
        base, TwoPart
    ):  # of an object, or of a fit that is updated: the formula's columns take its own's place
        base = base.base
    kind: type[TwoPart] = Hurdle if base.name.startswith("truncated") else ZeroInflated
    return kind(base) if side is None else kind(base, side.X, side.spec.names)


def _subset(subset: str | ArrayLike, data: Any, env: Mapping[str, Any]) -> NDArray[np.bool_]:
    return np.asarray(subset_rows(subset, Table(data), Context(env)))


def _check_varying(design: Design, family: Family) -> None:
    """ModelError for a constant response of a family in which that leaves nothing to model."""
    y, name = design.y, design.formula.response
    if family.name == "ordinal":
        return
    if isinstance(family, TwoPart) and not (y == 0.0).any():
        raise ModelError(f"the response {name} is zero in none of {len(y)} rows: leave zero= out")
    if family.name.startswith("truncated") and (zeros := y == 0.0).any():
        raise DataError(
            f"the response {name} is zero in {int(zeros.sum())} of {len(y)} rows, first in row "
            f"{design.row_index[int(zeros.argmax())]}: {family.name} counts begin at one"
        )
    if y.max() == y.min() and (family.name in ("gaussian", "gamma", "inverse_gaussian", "beta") or y[0] == 0.0):
        raise ModelError(f"the response {name} is constant ({y[0]:g} in all {len(y)} rows)")


def _with_exposure(
    exposure: str | ArrayLike,
    offset: str | ArrayLike | None,
    family: Family,
    data: Any,
    subset: str | ArrayLike | None,
    env: Mapping[str, Any],
) -> str | ArrayLike:
    """The offset with the logarithm of the exposure in it.

    Raises
    ------
    ModelError
        Another link than the log.
    DataError
        Exposures that are not positive; an offset given in another way.
    """
    if family.link.name != "log":
        raise ModelError(f"exposure= multiplies means, which needs the log link, not {family.link.name}: use offset=")
    table, context = Table(data), Context(env)
    values = numeric_argument(exposure, "exposure", table, context)
    used = np.ones(len(values), dtype=bool) if subset is None else subset_rows(subset, table, context)
    bad = (values <= 0.0) & used
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"exposure must be positive, which it is not in {int(bad.sum())} of {len(values)} rows, first in row {row} "
            f"({values[row]:g})"
        )
    if isinstance(exposure, str) and (offset is None or isinstance(offset, str)):
        return f"log({exposure})" if offset is None else f"({offset}) + log({exposure})"
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where(values > 0.0, np.log(values), np.nan)
    if offset is None:
        return logs
    return np.asarray(logs + numeric_argument(offset, "offset", table, context))


def _frequencies(
    freq_weights: str | ArrayLike, data: Any, subset: str | ArrayLike | None, env: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How often each row of the table counts, and the rows that count at all.

    Raises
    ------
    DataError
        Missing, negative or infinite numbers.
    """
    table, context = Table(data), Context(env)
    values = numeric_argument(freq_weights, "freq_weights", table, context)
    used = np.ones(len(values), dtype=bool) if subset is None else subset_rows(subset, table, context)
    bad = ~(np.isfinite(values) & (values >= 0.0)) & used
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"freq_weights must be finite and not negative, which {int(bad.sum())} of {len(values)} are not, first in "
            f"row {row} ({values[row]:g})"
        )
    if not (used & (values > 0.0)).any():
        raise DataError("freq_weights are zero in every row used")
    return values, used & (values > 0.0)
