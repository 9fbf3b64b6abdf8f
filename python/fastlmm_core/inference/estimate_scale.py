"""Estimates on other scales: back-transformed means, ratios of contrasts, means regridded onto the response's scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.inference.functions import Functions
from fastlmm_core.inference.transformations import TRANSFORMATIONS, Transformation

if TYPE_CHECKING:
    from fastlmm_core.inference.estimates import Estimates

__all__ = ["on_scale", "regridded", "transformed"]

Array = NDArray[np.float64]
Pair = tuple[Callable[[Array], Array], Callable[[Array], Array]]


def on_scale(given: Estimates, lower: Array, upper: Array) -> tuple[str, Array, Array, Array, Array]:
    """The name of the estimates' column, and estimates, standard errors and limits on the scale asked for."""
    eta, se = given.estimate, given.std_error
    if given.scale == "link" or given.response is None:
        return "estimate", eta, se, lower, upper
    h = given.response
    name = (h.ratio or "estimate") if given.kind == "contrasts" else "estimate"
    value, slope = h.back(eta, given.sigma), h.slope(eta, given.sigma)
    ends = np.array([h.back(h.within(eta, end), given.sigma) for end in (lower, upper)])
    low, high = np.where(slope < 0.0, ends[::-1], ends)  # h may fall
    return name, value, np.abs(slope) * se, low, high


def transformed(given: Estimates, to: str | Transformation | Pair, bias_adjust: bool, sigma: float | None) -> Estimates:
    """See `Estimates.transform`."""
    if isinstance(to, str) and to == "link":
        return replace(given, scale="link", sigma=0.0)
    if isinstance(to, tuple) and len(to) == 2 and all(map(callable, to)):
        h = Transformation("given", to[0], to[1])
    elif isinstance(to, Transformation):
        h = to
    elif to == "response":
        if given.response is None:
            raise ModelError("the response's transformation is not known: pass a pair (inverse, its derivative)")
        h = given.response
    else:
        raise ModelError(f'transform takes "response", "link" or a pair of functions, not {to!r}')
    if given.kind == "slopes" and h.name != "identity":
        raise ModelError(f"slopes are on the {h.name} scale: there is no one slope on the response's")
    if given.kind == "contrasts":
        return ratios(given, h)
    size = 0.0
    if bias_adjust:
        if h.second is None:
            raise ModelError("bias_adjust needs the second derivative, which is known for named transformations")
        size = given.total_sd if sigma is None else float(sigma)
        if not np.isfinite(size) or size < 0.0:
            raise DataError("bias_adjust needs sigma, the total standard deviation of a response")
    return replace(given, response=h, scale="response", sigma=size)


def ratios(given: Estimates, h: Transformation) -> Estimates:
    """Contrasts back-transformed: ratios where they are differences of logarithms."""
    if h.name == "identity":
        return given
    if not h.ratio:
        note = f"contrasts stay on the {h.name} scale, where they are differences; regrid() means first for others"
        return replace(given, response=h, notes=(*given.notes, note))
    labels = given.labels.copy()
    for column in labels:
        if column not in given.by:
            labels[column] = [str(text).replace(" - ", " / ") for text in labels[column]]
    if h.ratio == "odds_ratio":
        h = replace(TRANSFORMATIONS["log"], name=h.name, ratio="odds_ratio")
    return replace(given, labels=labels, response=replace(h, shift=0.0), scale="response")


def regridded(given: Estimates) -> Estimates:
    """See `Estimates.regrid`."""
    if given.response is None or given.kind == "slopes":
        raise ModelError("regrid needs means of a transformed response")
    eta = np.where(given.estimable, given.estimate, 0.0)
    slope = given.response.slope(eta, given.sigma)
    f = given.functions
    L = np.where(f.estimable[:, None], f.L * slope[:, None], np.nan)
    known = np.where(f.estimable[:, None], L, 0.0)[:, f.kept] @ given.method.beta
    functions = Functions(L, given.response.back(eta, given.sigma) - known, f.kept, f.space)
    note = f"regridded from the {given.response.name} scale"
    return replace(given, functions=functions, response=None, scale="link", sigma=0.0, notes=(*given.notes, note))
