"""The same model by the other criterion, which some questions need; fitted once and kept with the fit."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TypeVar

from fastlmm_core.errors import IdentifiabilityWarning, RankWarning
from fastlmm_core.fitting.fit import fit_design
from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["ml_fit", "reml_fit"]

F = TypeVar("F", bound=FittedModel)


def ml_fit(result: F) -> F:
    """The maximum-likelihood fit of the same model: the result itself where it is one."""
    return _by(result, False)


def reml_fit(result: F) -> F:
    """The REML fit of the same model: the result itself where it is one."""
    return _by(result, True)


def _by(result: F, reml: bool) -> F:
    if result.reml == reml:
        return result
    cache, key = result.core.kept, "reml_fit" if reml else "ml_fit"
    if key not in cache:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RankWarning)  # the fit has said so
            if result.core.unidentified is not None:  # and this
                warnings.simplefilter("ignore", IdentifiabilityWarning)
            options = replace(result.options, reml=reml, start=None, verbose=0)
            cache[key] = fit_design(type(result), result.design, result.formula, options)
    found: F = cache[key]
    return found
