"""The compiled optimiser for criteria written in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.callback import Callback
from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.errors import NumericalError

__all__ = ["Derivatives", "Descent", "Function", "Point", "Report", "Search", "descend", "minimise"]

Array = NDArray[np.float64]
Derivatives = Callable[[], tuple[Array, Array, float]]
Function = Callable[[Array], tuple[float, Derivatives]]
Report = Callable[[int, Array, float, float, float], None]

CONVERGED, UNFINISHED, NO_PROGRESS, FAILED = 0, 1, 2, 3
"""Keys of `Newton.messages`."""

ROUNDING = 1e-13
"""Rounding of a criterion's value, relative to its size and one."""

TINY = 1e-7
"""Radius within which a criterion does not change but for its rounding."""

NOISE = 1e-4
"""Rounding of a criterion that is taken for such, and not for a wrong gradient."""

ENDED_BY_ROUNDING = "converged, as far as the criterion's rounding lets it be seen"


class Point(Protocol):
    """A function with its derivatives at one place."""

    @property
    def value(self) -> float:
        """What is minimised."""
        ...

    @property
    def gradient(self) -> Array:
        """(n,)."""
        ...

    @property
    def hessian(self) -> Array:
        """(n, n), exact or a model of it."""
        ...


P = TypeVar("P", bound=Point)


@dataclass
class Search(Generic[P]):
    """What a search found, and one row an evaluation: x (n,), value, gradient norm (NaN where rejected), radius."""

    point: P
    x: Array
    converged: bool
    message: str
    log: list[tuple[Array, float, float, float]] = field(default_factory=list)

    def report(self, on_evaluation: Report | None, to_user: Callable[[Array], Array]) -> None:
        """Tell of each evaluation: its number, x in the user's coordinates, value, gradient norm, radius."""
        if on_evaluation is not None:
            for k, (x, value, size, radius) in enumerate(self.log, 1):
                on_evaluation(k, to_user(x), value, size, radius)


def minimise(
    function: Callable[[Array], P], start: Array, *, exact: bool = True, tol: float = 1e-9, max_evaluations: int = 200
) -> Search[P]:
    """Minimise a function of x (n,) that gives its derivatives with its value.

    Parameters
    ----------
    function : callable
        x -> a point; NumericalError where the function is not defined.
    start : (n,)
    exact : bool
        Whether the Hessian is exact; otherwise a secant correction is added to it after every step.
    tol : float
        Stop when the criterion is expected to be this near its minimum.
    max_evaluations : int

    Raises
    ------
    NumericalError
        The function's own, where it is not defined at ``start``.
    """
    if len(start) == 0:
        here = function(start)
        return Search(here, start, True, Newton.messages[CONVERGED], [(start, here.value, 0.0, 1.0)])
    tried: list[tuple[Array, P]] = []
    accepted: list[tuple[Array, P]] = []
    refused: list[NumericalError] = []

    def value(x: Array) -> float:
        try:
            tried[:] = [(x, function(x))]
        except NumericalError as error:
            refused[:] = [error]
            raise
        return tried[0][1].value

    def derivatives() -> tuple[Array, Array]:
        accepted[:] = tried
        point = tried[0][1]
        return np.ascontiguousarray(point.gradient), np.ascontiguousarray(point.hessian)

    criterion = Callback(len(start), value, derivatives, 1.0, ROUNDING)
    newton = Newton(criterion, max_evaluations, tol, None, rough=not exact, loose=True)
    x, _, status = newton.minimise(np.ascontiguousarray(start))
    criterion.raise_error()
    if status == FAILED:
        raise refused[0]
    point = next(point for at, point in (*tried, *accepted) if np.array_equal(at, x))
    log = [(row[:-3], float(row[-3]), float(row[-2]), float(row[-1])) for row in newton.evaluations()]
    if status == NO_PROGRESS and ended_by_rounding(point, log):
        return Search(point, x, True, ENDED_BY_ROUNDING, log)
    return Search(point, x, status == CONVERGED, Newton.messages[status], log)


def ended_by_rounding(point: Point, log: list[tuple[Array, float, float, float]]) -> bool:
    """Whether a search that ended without a decrease has less to gain than its criterion is rounded by.

    Nearly singular covariances lose digits of the criterion, not of its gradient. Its rounding is how much the values
    of steps too small to matter differ.
    """
    values = [value for _, value, size, radius in log if np.isnan(size) and radius < TINY and np.isfinite(value)]
    if len(values) < 2:
        return False
    noise = max(abs(value - point.value) for value in values)
    sizes, axes = np.linalg.eigh(0.5 * (point.hessian + point.hessian.T))
    along = axes.T @ point.gradient
    if not (noise < NOISE and sizes[0] > 0.0):
        return False
    return bool(0.5 * np.sum(np.square(along) / sizes) <= 10.0 * noise)


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
