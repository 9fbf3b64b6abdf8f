"""A generalised fit's model fitted to responses drawn from it, one after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.glmm.fitted import exact
from fastlmm_core.errors import FastLMMWarning, ModelError, NumericalError
from fastlmm_core.fitting.generalised import kept_glmm, refit_counts
from fastlmm_core.inference.generalised.simulate import drawer
from fastlmm_core.inference.robust import covariance_method

if TYPE_CHECKING:
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.inference.ddf import Method
    from fastlmm_core.inference.simulate import Recipe

__all__ = ["Refit", "criteria", "refitted", "responses"]

Array = NDArray[np.float64]


class Refit(NamedTuple):
    """What a fit to a drawn response says."""

    method: Method
    converged: bool
    is_singular: bool


def responses(
    result: GeneralisedModel, source: Recipe | None = None
) -> Callable[[Sequence[np.random.Generator]], Array]:
    """What makes responses (k, n) of k streams; of the fit's own parameters where no others are given."""
    draw = drawer(result, source)
    return lambda batch: np.array([draw(stream) for stream in batch])


def criteria(result: GeneralisedModel) -> Callable[[Array], tuple[Array, NDArray[np.bool_]]]:
    """The deviance of a model fitted to each of many responses, and which fits converged."""
    model, core = kept_glmm(result), result.core
    exact(model.engine)  # refused by the iterative one: its Monte Carlo error is no part of a statistic
    start = None
    if not core.is_singular and np.isfinite(core.beta).all():
        start = np.concatenate([core.theta, core.beta, core.family.extra(core.rho)])

    def fitted(Y: Array) -> tuple[Array, NDArray[np.bool_]]:
        fits = model.fit_many(Y, start=start)
        return fits.criterion, fits.converged

    return fitted


def refitted(result: GeneralisedModel, y: Array) -> Refit | None:
    """The fit of a drawn response; None where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastLMMWarning)  # fits that do not converge are counted
        try:
            again = refit_counts(result, y)
            return Refit(covariance_method(again, "normal"), again.converged, again.is_singular)
        except (NumericalError, ModelError):
            return None
