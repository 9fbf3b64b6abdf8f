"""Marginal covariance of the observations of one group."""

from __future__ import annotations

from collections.abc import Hashable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlmm_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastlmm_core.core import CoreFit
    from fastlmm_core.formula import Design

__all__ = ["marginal_cov"]


def marginal_cov(design: Design, core: CoreFit, level: Hashable) -> NDArray[np.float64]:
    """σ² (W⁻¹ + Z Λ Λᵀ Zᵀ) restricted to the rows of one level, every random term included.

    Two rows of the group covary through each term in which they share a level. Memory is 8 m² bytes for m rows.
    """
    rows = _rows(design, level)
    weights = np.ones(len(rows)) if design.weights is None else design.weights[rows]
    with np.errstate(divide="ignore"):  # a row of zero weight has infinite residual variance
        cov = np.diag(1.0 / weights)
    for term, L in zip(design.random, core.L, strict=True):
        codes = term.codes[rows]
        z = np.ones((len(rows), 1)) if term.z is None else term.z[rows]
        scaled = z @ L
        cov += (scaled @ scaled.T) * (codes[:, None] == codes[None, :])
    return core.sigma**2 * cov


def _rows(design: Design, level: Hashable) -> NDArray[np.int64]:
    groups = list(dict.fromkeys(t.group for t in design.random))
    if isinstance(level, tuple) and len(level) == 2:
        group, level = level
    else:
        group = groups[0]
    term = next((t for t in design.random if t.group == group), None)
    if term is None:
        raise DataError(f"{group!r} is not a grouping factor of the model; they are {', '.join(groups)}")
    found = np.flatnonzero(np.asarray(term.levels, dtype=object) == level)
    if not found.size:
        raise DataError(f"{group} has no level {level!r}{_nearest(level, term.levels)}")
    return np.flatnonzero(term.codes == found[0])


def _nearest(level: Any, levels: NDArray[Any]) -> str:
    """A hint: levels of that text in another type, or of nearly that text."""
    names = {str(v): v for v in levels[:10_000]}
    close = [names[str(level)]] if str(level) in names else [names[c] for c in get_close_matches(str(level), names)]
    return f"; near it are {', '.join(map(repr, close))}" if close else ""
