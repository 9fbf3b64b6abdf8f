"""Trust-region Newton in Python, for criteria with an exact Hessian or a model of it.

Where the Hessian is a model, a structured secant correction (symmetric rank one, of what it misses of the gradient's
change) makes the convergence superlinear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import NumericalError

__all__ = ["Point", "Search", "minimise", "model_step", "rank_one"]

Array = NDArray[np.float64]

FLAT = 1e-9
"""Curvature this much smaller than the largest one is none: no step is taken along it without a gradient."""


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
    """What a search found, and one row an evaluation: x (k, n), value, gradient norm (NaN where rejected), radius."""

    point: P
    x: Array
    converged: bool
    message: str
    log: list[tuple[Array, float, float, float]] = field(default_factory=list)


def minimise(
    function: Callable[[Array], P], start: Array, *, exact: bool = True, tol: float = 1e-9, max_evaluations: int = 200
) -> Search[P]:
    """Minimise a function of x (n,).

    Parameters
    ----------
    function : callable
        x -> a point; NumericalError where the function is not defined.
    start : (n,)
        The function must be defined there.
    exact : bool
        Whether the Hessian is exact; otherwise the secant correction is added to it.
    tol : float
        Stop when the next step promises a smaller decrease; that step is still taken.
    max_evaluations : int
    """
    x = start
    here = function(x)
    radius = max(1.0, 0.5 * float(np.sqrt(x @ x)))
    log = [(x, here.value, float(np.sqrt(here.gradient @ here.gradient)), radius)]
    missing = np.zeros((len(x), len(x)))
    while len(log) < max_evaluations:
        step, predicted, settled = model_step(here.gradient, here.hessian + missing, radius)
        noise = 1e-14 * (abs(here.value) + 1.0)
        last = settled and predicted <= tol
        if last and predicted <= noise:
            return Search(here, x, True, "converged", log)
        length = float(np.sqrt(step @ step))
        trial: P | None = None
        try:
            trial = function(x + step)
            ratio = (here.value - trial.value) / max(predicted, noise)
        except NumericalError:
            ratio = -1.0
        accepted = trial is not None and (ratio > 1e-4 or (last and trial.value <= here.value + 10 * noise))
        norm = float(np.sqrt(trial.gradient @ trial.gradient)) if trial is not None and accepted else np.nan
        log.append((x + step, trial.value if trial is not None else np.inf, norm, radius))
        if trial is not None and accepted:
            if not exact:
                missing = missing + rank_one(trial.gradient - here.gradient - (here.hessian + missing) @ step, step)
            x, here = x + step, trial
            if ratio > 0.75:
                radius = max(radius, 3.0 * length)
            elif ratio < 0.25:
                radius = 0.5 * length
        else:
            radius = 0.25 * length
        if last or (not accepted and predicted <= 1e3 * max(tol, noise) and abs(ratio * predicted) <= 100 * noise):
            return Search(here, x, True, "converged", log)
        if radius < 1e-10:
            return Search(here, x, False, "no step lowers the criterion any more", log)
    return Search(here, x, False, f"{max_evaluations} evaluations were not enough", log)


def rank_one(left: Array, step: Array) -> Array:
    """The symmetric rank-one matrix that takes `step` to `left`; zero where that is ill-defined."""
    product = float(left @ step)
    if product == 0.0 or abs(product) < 1e-3 * float(np.sqrt((left @ left) * (step @ step))):
        return np.zeros((len(step), len(step)))
    return np.outer(left, left) / product


def model_step(gradient: Array, hessian: Array, radius: float) -> tuple[Array, float, bool]:
    """Step of at most `radius`, its predicted decrease, and whether it is a Newton step inside the region.

    Negative curvatures count by their size, so the step leads away from a saddle; where the gradient has no part along
    the most negative one, a part of the radius is gone along it. A Newton step that is too long is bent towards the
    gradient.
    """
    if len(gradient) == 0:
        return gradient, 0.0, True
    eigen, vectors = np.linalg.eigh(hessian)
    rotated = gradient @ vectors
    size = np.abs(eigen)
    largest = max(float(size.max()), 1e-100)
    settled = bool(eigen[0] > -FLAT * largest)
    floor = np.maximum(size, FLAT * largest)
    move = -rotated / floor
    move[(size <= FLAT * largest) & (np.abs(rotated) <= 1e-6 * largest)] = 0.0
    if not settled and abs(move[0]) < 0.1 * radius:
        move[0] = -np.copysign(0.3 * radius, rotated[0])
    length = float(np.sqrt(move @ move))
    if length > radius:
        if settled:
            low, high = 0.0, float(np.sqrt(rotated @ rotated)) / radius
            for _ in range(30):  # the multiplier whose step has the length of the radius
                shift = 0.5 * (low + high)
                inside = float(np.sum(np.square(rotated / (floor + shift)))) <= radius * radius
                low, high = (low, shift) if inside else (shift, high)
            move = -rotated / (floor + high)
        else:
            move *= radius / length
        settled = False
    predicted = -float(move @ (rotated + 0.5 * eigen * move))
    return vectors @ move, predicted, settled
