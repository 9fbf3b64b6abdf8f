"""Searches whose residuals vanish beside the effects: at the optimum sigma is zero, the relative effects infinite.

The criterion of phi, effects relative to sigma, nears its limit as c + a / |phi|^2. Long before that is rounding its
slope and curvature along phi are too small beside those of other parameters for a search to follow them. Effects a
hundred times larger, and a search in units of that size, are as near the limit as double precision goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.descent import Point, Search, minimise
from fastlmm_core.core.structures.covariances import Covariance
from fastlmm_core.errors import NumericalError

__all__ = ["MOST_OF_PATTERNS", "MOST_OF_PRODUCTS", "Limits", "larger", "scaled_search", "without_residuals"]

Array = NDArray[np.float64]
Terms = Sequence[tuple[Covariance, slice]]
P = TypeVar("P", bound=Point)

OVERWHELMING = 30.0
"""Standard deviation of an effect, relative to the residuals', beside which these may vanish: it is looked then."""

STRETCH, LEAST_STRETCH = 100.0, 3.0
"""How much larger effects are tried then, and what is not worth while."""

MOST_OF_PRODUCTS = 3e3
"""How large effects may be beside residuals where the criterion is made of cross-products, which hold its square."""

MOST_OF_PATTERNS = 1e6
"""The same where it is made of the rows' covariance matrices."""


class Limits(TypedDict):
    """Arguments of a search."""

    tol: float
    max_evaluations: int


class Scaled(Generic[P]):
    """A point as a function of parameters (r,) over their sizes."""

    def __init__(self, plain: P, size: Array) -> None:
        self.plain, self.value = plain, plain.value
        self.gradient, self.hessian = plain.gradient * size, plain.hessian * np.outer(size, size)


def larger(phi: Array, terms: Terms, factor: float) -> Array:
    """Parameters (r,) with all effects a factor larger."""
    out = phi.copy()
    for covariance, where in terms:
        out[where] = covariance.rescaled(phi[where], factor * np.eye(covariance.l))
    return out


def scaled_search(
    function: Callable[[Array], P], phi: Array, terms: Terms, *, exact: bool, tol: float, max_evaluations: int
) -> Search[P]:
    """Search from phi (r,) in units of the effects' sizes there."""
    size = np.ones(len(phi))
    for _, where in terms:
        size[where] = np.maximum(1.0, np.abs(phi[where]).max(initial=0.0))
    found = minimise(
        lambda x: Scaled(function(x * size), size), phi / size, exact=exact, tol=tol, max_evaluations=max_evaluations
    )
    log = [(x * size, value, norm, radius) for x, value, norm, radius in found.log]
    return Search(found.point.plain, found.x * size, found.converged, found.message, log)


def without_residuals(
    function: Callable[[Array], P],
    found: Search[P],
    terms: Terms,
    *,
    most: float,
    exact: bool,
    tol: float,
    max_evaluations: int,
) -> Search[P]:
    """What a search found, or the limit of vanishing residuals where that is lower.

    Effects are at most ``most`` times as large as residuals: beyond, the function has lost its digits.
    """
    size = max((float(np.diag(c.sigma(found.x[where])).max(initial=0.0)) for c, where in terms), default=0.0) ** 0.5
    factor = min(STRETCH, most / max(size, 1e-300))
    if size < OVERWHELMING or factor < LEAST_STRETCH:
        return found
    phi = larger(found.x, terms, factor)
    try:
        if not function(phi).value < found.point.value - max(tol, 1e-11 * abs(found.point.value)):
            return found
        further = scaled_search(function, phi, terms, exact=exact, tol=tol, max_evaluations=max_evaluations)
    except NumericalError:
        return found
    return Search(further.point, further.x, found.converged, found.message, [*found.log, *further.log])
