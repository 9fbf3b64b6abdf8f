"""Design → core fit → fitted model, with its warnings: the one path that `lmer`, `refit` and `refit_ml` share."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import (
    ConvergenceWarning,
    DataError,
    FastLMMError,
    IdentifiabilityWarning,
    RankWarning,
    RepeatedValuesError,
    UnitError,
    warn,
)
from fastlmm_core.fitting.coefficients import dropped_columns
from fastlmm_core.fitting.models import arrays_of, core_terms, model_of
from fastlmm_core.fitting.text import listed
from fastlmm_core.fitting.unidentified import unidentified_words
from fastlmm_core.formula.checks import constant_response

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit, Objective
    from fastlmm_core.fitting.fitted import FittedModel
    from fastlmm_core.fitting.models import AnyModel
    from fastlmm_core.fitting.options import FitOptions
    from fastlmm_core.formula import Design

__all__ = ["core_terms", "fit_design", "model_of", "new_response", "objective_of", "refit", "refit_ml", "wrap"]

F = TypeVar("F", bound="FittedModel")

LATER_ROWS = 100_000
"""Fits of more rows make all of their figures at once, which takes little of their time, and let go of the rows."""


def objective_of(design: Design, options: FitOptions) -> Objective:
    """The criterion as a function of θ, without optimising it."""
    return arrays_of(design).objective(design.y, options.reml, options.control)


def fit_design(kind: type[F], design: Design, formula: str, options: FitOptions) -> F:
    """Fit a design and wrap the answer.

    Parameters
    ----------
    kind : type
        Class of the answer.
    design : Design
        From `build_design`.
    formula : str
        The user's text, for display.
    options : FitOptions
        Criterion, control, start, verbosity.

    Returns
    -------
    FittedModel
        Of class ``kind``.

    Warns
    -----
    ConvergenceWarning
        The optimiser stopped before its criterion was met.
    IdentifiabilityWarning
        The criterion does not depend on some variance; see `convergence_report`.
    RankWarning
        Fixed-effects columns depend linearly on others; they are named, and their coefficients are NaN.
    """
    with one_blas_thread():  # once for all that nests in it
        core = core_fit(model_of(design, options), design, options.start, options)
        if core.n > LATER_ROWS:
            core.complete()
    return wrap(kind, design, formula, options, core, {})


def kept_model(result: FittedModel) -> AnyModel:
    """The core's model of a result, which its refits share: made when it is first needed."""
    model: AnyModel | None = result.kept.get("model")
    if model is None:  # of two threads that come here at once the first one's stays
        model = result.kept.setdefault("model", model_of(result.design, result.options))
    return model


def core_fit(model: AnyModel, design: Design, start: NDArray[np.float64] | None, options: FitOptions) -> CoreFit:
    """Fit a design's response, verbosely if the options say so."""
    try:
        return model.fit(design.y, start=start, on_evaluation=write_evaluation if options.verbose > 0 else None)
    except RepeatedValuesError as error:
        raise RepeatedValuesError(error.ratio, error.term, design.random[error.term].group) from None
    except UnitError as error:
        raise UnitError(f"the response {design.formula.response}", error.largest) from None


def wrap(
    kind: type[F],
    design: Design,
    formula: str,
    options: FitOptions,
    core: CoreFit,
    kept: dict[str, Any],
) -> F:
    """The result of a core fit, with its warnings."""
    dropped = dropped_columns(design, core)
    if dropped:
        warn(
            f"the fixed-effects columns depend linearly on one another: {listed(dropped, 10)} "
            f"{'was' if len(dropped) == 1 else 'were'} dropped, with coefficient NaN",
            RankWarning,
        )
    if core.unidentified is not None:
        text = ". ".join(sentence[0].upper() + sentence[1:] for sentence in unidentified_words(design, core))
        warn(text, IdentifiabilityWarning)
    if not core.converged:
        warn(
            f"the fit did not converge: {core.message}. See fit_log; try another start, or raise "
            "Control(max_evaluations=...)",
            ConvergenceWarning,
        )
    return kind(design=design, core=core, formula=formula, options=options, kept=kept)


def write_evaluation(number: int, theta: NDArray[np.float64], criterion: float, norm: float, radius: float) -> None:
    """One evaluation as a line on standard error: number, criterion, gradient norm, trust radius, θ."""
    shown = " ".join(f"{v:.6g}" for v in theta)
    sys.stderr.write(
        f"{number:4d}: criterion {criterion:.10g}  gradient {norm:.3g}  radius {radius:.3g}  theta {shown}\n"
    )


def refit(result: F, new_y: Any) -> F:
    """The same model and options with another response.

    The first refit keeps the core's model, and later ones start from the estimates in hand: they cost little more than
    the evaluations. A singular fit is no place to start from, as every zero is a stationary point.
    """
    y = new_response(new_y, result.design)
    options = result.options
    start = options.start
    if start is None and not result.core.is_singular:
        start = result.core.parameters
    design = result.design.with_response(y)
    core = core_fit(kept_model(result), design, start, options)
    return wrap(type(result), design, result.formula, options, core, result.kept)


def new_response(new_y: Any, design: Design) -> NDArray[np.float64]:
    """Another response for the rows of a fit, (n,): finite and not constant."""
    n = len(design.y)
    try:
        given = np.asarray(design.of_rows(new_y, "new_y"))
        if given.dtype.kind in "cMm":
            raise DataError(f"new_y is not numeric: it holds values of type {given.dtype}")
        y = np.array(given, dtype=float)
    except FastLMMError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"new_y is not numeric: {error}") from None
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]  # one simulated response is a table of one column
    if y.ndim != 1 or len(y) not in (n, design.n_total):
        rows = f"{n} rows" if n == design.n_total else f"{n} rows (of the data's {design.n_total})"
        raise DataError(f"new_y has shape {y.shape}, but the fit used {rows}")
    if len(y) != n:
        y = y[design.row_index]  # a response for the whole table: the rows that the fit used
    spread = float(y.max()) - float(y.min())
    if not 0.0 < spread < np.inf:
        bad = int(np.count_nonzero(~np.isfinite(y)))
        if bad:
            raise DataError(f"new_y has {bad} missing or infinite values among the rows of the fit")
        if spread == 0.0:
            raise constant_response("new_y", y)
    return y


def refit_ml(result: F) -> F:
    """The maximum-likelihood fit of the same model: the result itself where it is one already."""
    if not result.reml:
        return result
    return fit_design(type(result), result.design, result.formula, replace(result.options, reml=False))
