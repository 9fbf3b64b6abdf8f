"""A small trust-region Newton method for criteria put together in Python from the compiled evaluations.

The average information may be far from the true curvature in a nearly flat direction, and Newton's steps then crawl. A
structured secant correction (symmetric rank one, of what the model Hessian misses of the gradient's change) is added to
it, which makes the convergence superlinear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.trust_region import model_step, rank_one
from fastlmm_core.errors import NumericalError

__all__ = ["minimise"]

Array = NDArray[np.float64]
Function = Callable[[Array], tuple[float, Array, Array, float]]


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
        step, predicted, settled = model_step(gradient, hessian + missing, radius, bend=False)
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
