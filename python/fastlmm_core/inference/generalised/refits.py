"""A generalised fit's model fitted to responses drawn from it, one after another."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import FastLMMWarning, ModelError, NumericalError
from fastlmm_core.fitting.generalised import refit_counts
from fastlmm_core.inference.robust import covariance_method

if TYPE_CHECKING:
    from fastlmm_core.fitting.generalised_model import GeneralisedModel
    from fastlmm_core.inference.ddf import Method

__all__ = ["Refit", "refitted"]

Array = NDArray[np.float64]


class Refit(NamedTuple):
    """What a fit to a drawn response says."""

    method: Method
    criterion: float
    converged: bool
    is_singular: bool


def refitted(result: GeneralisedModel, y: Array) -> Refit | None:
    """The fit of a drawn response; None where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastLMMWarning)  # fits that do not converge are counted
        try:
            again = refit_counts(result, y)
            return Refit(covariance_method(again, "normal"), again.criterion, again.converged, again.is_singular)
        except (NumericalError, ModelError):
            return None
