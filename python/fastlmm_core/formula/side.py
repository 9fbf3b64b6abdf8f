"""Designs without their intercept's column, for responses whose thresholds have its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastlmm_core.errors import ModelError
from fastlmm_core.formula.design import Design

__all__ = ["without_intercept"]


def without_intercept(design: Design) -> Design:
    """The same design without the column of ones, its factors coded as beside it.

    Raises
    ------
    ModelError
        The formula has none: contrasts would have another meaning.
    """
    spec = design.spec
    if not spec.terms.intercept:
        raise ModelError("the thresholds of an ordinal model are its intercept: leave 0 + (or - 1) out of the formula")
    columns = tuple((name, slice(w.start - 1, w.stop - 1)) for name, w in spec.term_columns[1:])
    terms = replace(spec.terms, intercept=False)
    bare = replace(spec, terms=terms, names=spec.names[1:], term_columns=columns)
    return replace(design, X=np.ascontiguousarray(design.X[:, 1:]), x_names=bare.names, x_terms=columns, spec=bare)
