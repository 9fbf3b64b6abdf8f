"""A small trust-region Newton method for criteria put together in Python from the compiled evaluations.

The average information may be far from the true curvature in a nearly flat direction, and Newton's steps then crawl. A
structured secant correction (symmetric rank one, of what the model Hessian misses of the gradient's change) is added to
it, which makes the convergence superlinear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import NumericalError

__all__ = ["minimise"]

Array = NDArray[np.float64]
Function = Callable[[Array], tuple[float, Array, Array, float]]

FLAT = 1e-9
"""Curvature this much smaller than the largest one is none: no step is taken along it without a gradient."""


def minimise(
    function: Function, start: Array, *, tol: float = 1e-8, max_evaluations: int = 100
) -> tuple[float, float, Array]:
    """Minimise a function with a gradient and a model of its Hessian.

    Parameters
    ----------
    function : callable
        x (k,) -> value, gradient (k,), model Hessian (k, k), and a figure that is passed on: the derivative of the
        value in what is held fixed. NumericalError where it cannot be evaluated.
    start : (k,)
        The function must be defined there.
    tol : float
        Stop when the next step promises a smaller decrease.
    max_evaluations : int

    Returns
    -------
    value : float
        The promise of the last, untaken step is taken off.
    figure : float
        What the function passed on at `x`.
    x : (k,)

    Raises
    ------
    NumericalError
        No decrease within `max_evaluations`.
    """
    x = start
    value, gradient, hessian, figure = function(x)
    radius = max(1.0, 0.5 * float(np.sqrt(x @ x)))
    missing = np.zeros((len(x), len(x)))
    for _ in range(max_evaluations):
        step, predicted, settled = model_step(gradient, hessian + missing, radius)
        if settled and predicted <= tol:
            return value - predicted, figure, x
        noise = 1e-13 * (abs(value) + 1.0)
        length = float(np.sqrt(step @ step))
        try:
            trial = function(x + step)
            ratio = (value - trial[0]) / max(predicted, noise)
        except NumericalError:
            ratio = -1.0
        if ratio > 1e-4:
            x, change = x + step, trial[1] - gradient
            value, gradient, hessian, figure = trial
            missing = missing + rank_one(change - (hessian + missing) @ step, step)
            if ratio > 0.75:
                radius = max(radius, 3.0 * length)
            elif ratio < 0.25:
                radius = 0.5 * length
        else:
            if predicted <= 1e3 * max(tol, noise) and abs(ratio * predicted) <= 10 * noise:
                break  # rounding hides what is left
            radius = 0.25 * length
            if radius < 1e-12:
                break
    else:
        raise NumericalError("a constrained optimum was not found")
    return value, figure, x


def rank_one(left: Array, step: Array) -> Array:
    """The symmetric rank-one matrix that takes `step` to `left`; zero where that is ill-defined."""
    product = float(left @ step)
    if product == 0.0 or abs(product) < 1e-3 * float(np.sqrt((left @ left) * (step @ step))):
        return np.zeros((len(step), len(step)))
    return np.outer(left, left) / product


def model_step(gradient: Array, hessian: Array, radius: float) -> tuple[Array, float, bool]:
    """Step of at most `radius` along the eigenvectors, its predicted decrease, and whether it is a Newton step.

    Negative curvatures count by their size, so the step leads away from a saddle; where the gradient has no part along
    the most negative one, a part of the radius is gone along it.
    """
    if len(gradient) == 0:
        return gradient, 0.0, True
    eigen, vectors = np.linalg.eigh(hessian)
    rotated = gradient @ vectors
    size = np.abs(eigen)
    largest = max(float(size.max()), 1e-100)
    settled = bool(eigen[0] > -FLAT * largest)
    move = -rotated / np.maximum(size, FLAT * largest)
    move[(size <= FLAT * largest) & (np.abs(rotated) <= 1e-6 * largest)] = 0.0
    if not settled and abs(move[0]) < 0.1 * radius:
        move[0] = -np.copysign(0.3 * radius, rotated[0])
    length = float(np.sqrt(move @ move))
    if length > radius:
        move *= radius / length
        settled = False
    predicted = -float(move @ (rotated + 0.5 * eigen * move))
    return vectors @ move, predicted, settled
