"""The compiled optimiser for functions written in Python: value first, derivatives where a step is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.callback import Callback
from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.errors import NumericalError

__all__ = ["Descent", "Function", "descend"]

Array = NDArray[np.float64]
Derivatives = Callable[[], tuple[Array, Array, float]]
Function = Callable[[Array], tuple[float, Derivatives]]

UNFINISHED, FAILED = 1, 3
"""Keys of `Newton.messages`."""


@dataclass(frozen=True)
class Descent:
    """A minimum: `value`, the `figure` that the function passes on there, and `x` (k,)."""

    value: float
    figure: float
    x: Array


def descend(
    function: Function, start: Array, *, size: float = 1.0, tol: float = 1e-8, max_evaluations: int = 100
) -> Descent:
    """Minimise a function of x (k,).

    Parameters
    ----------
    function : callable
        x -> value and, to be called for an accepted x, its derivatives: gradient (k,), a model of the Hessian (k, k),
        and a figure that is passed on. NumericalError where the function is not defined.
    start : (k,)
        The function must be defined there.
    size : float
        Differences below 1e-12 of this and of the value itself are rounding.
    tol : float
        Stop where less than this is left to gain.
    max_evaluations : int

    Raises
    ------
    NumericalError
        The function is not defined at ``start``, or has no minimum within ``max_evaluations``.
    """
    last: list[tuple[Array, Derivatives]] = []
    derived: list[tuple[Array, float]] = []

    def value(x: Array) -> float:
        found, later = function(x)
        last[:] = [(x, later)]
        return found

    def derivatives() -> tuple[Array, Array]:
        x, later = last[0]
        gradient, hessian, figure = later()
        derived[:] = [(x, figure)]
        return np.ascontiguousarray(gradient), np.ascontiguousarray(hessian)

    criterion = Callback(len(start), value, derivatives, size)
    newton = Newton(criterion, max_evaluations, tol, None, rough=True)
    x, found, status = newton.minimise(np.ascontiguousarray(start))
    criterion.raise_error()
    if status == FAILED:
        raise NumericalError("the function is not defined where the search was to start")
    if status == UNFINISHED:
        raise NumericalError("a constrained optimum was not found")
    if derived and np.array_equal(derived[0][0], x):
        return Descent(found, derived[0][1], x)
    later = last[0][1] if np.array_equal(last[0][0], x) else function(x)[1]
    return Descent(found, later()[2], x)
