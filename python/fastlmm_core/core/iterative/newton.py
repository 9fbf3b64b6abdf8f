"""The search: Newton's method on one sample of probes, and more probes until their error is small.

The probes stay the same from step to step, so that the equations solved are smooth and Newton's method converges as
usual; there is no criterion to compare, hence steps are bounded and an overshoot is seen by the slope along the step.
With H the curvature and Cov(g) the covariance of the mean gradient over probes, Monte Carlo errors of the solution are
H^-1 Cov(g) H^-1, to be compared with the sampling covariance 2 H^-1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.control import MAX_PROBES
from fastlmm_core.core.iterative.derivatives import Derivatives
from fastlmm_core.core.iterative.equations import Equations
from fastlmm_core.core.iterative.order import better_order, carried
from fastlmm_core.core.iterative.problem import Factors
from fastlmm_core.errors import NumericalError

__all__ = ["Found", "Search"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Report = Callable[[int, Array, float], None]

MAX_EVALUATIONS = 60
STEP = 1e-3
"""A step of fewer standard errors may be the last one, where it is also small beside the Monte Carlo error."""

SETTLED = 5
"""Steps in a row of less than `STEP` standard errors after which smaller ones are not to be had."""

SHARE, LEAST = 0.3, 1e-6
"""Of the Monte Carlo error that the last step may be, and the step in standard errors that is small beside any."""

FLOOR = 1e-5
"""Reliability of a level's mean at which a variance counts as zero: the sign of its gradient there decides."""

LONG = 2.0
"""Size of what is no covariance parameter: a step of seven tenths of it in a linear predictor may be taken."""

SHORTER = 6
"""Times that a step is made a quarter of itself because it led too far."""

TURNS = 8
"""Changes of the order of factors' columns, at most: see `order`."""

REFRESH = 2
"""Evaluation after which the deflated directions are chosen anew: those of the start are a little off."""


@dataclass(frozen=True, eq=False)
class Found:
    """Where a search ended, in conditioned coordinates.

    Attributes
    ----------
    theta : (n_free,)
        The parameters, those of the covariances first; a linear model has no others.
    monte_carlo : (n_free, n_free)
        Covariance of theta over probes; zero where theta is at its bound of zero.
    sampling : (n_free, n_free)
        Covariance of theta over data; NaN where theta is at its bound.
    spread : (n_free, n_free)
        Covariance of the gradient over probes.
    ratio : float
        Largest Monte Carlo error in sampling errors.
    probes, evaluations, iterations, longest : int
        The last is the iterations of the longest solve.
    converged : bool
    gradient, hessian : (n_free,), (n_free, n_free)
        Gradient, and average information and curvature, of the last evaluation; of parameters at their bound as well.
    trace : tuple of (theta, gradient norm)
        Of each evaluation.
    """

    theta: Array
    monte_carlo: Array
    sampling: Array
    spread: Array
    ratio: float
    probes: int
    evaluations: int
    iterations: int
    longest: int
    converged: bool
    gradient: Array
    hessian: Array
    trace: tuple[tuple[Array, float], ...]


class Search:
    """One search.

    Parameters
    ----------
    equations : Equations
    report : callable, optional
        Called with (number, x, gradient norm) after each evaluation.
    most : int
        Evaluations at which it gives up, if that is before `MAX_EVALUATIONS`.
    """

    def __init__(self, equations: Equations, report: Report | None = None, most: int = MAX_EVALUATIONS) -> None:
        self.report, self.trace, self.most = report, list[tuple[Array, float]](), min(most, MAX_EVALUATIONS)
        self.equations, self.evaluations, self.turns = equations, 0, 0
        self.given = equations.levels
        self.measure()

    def measure(self) -> None:
        """Bounds of the parameters, in the order of the factors' columns that the search is in."""
        n, levels = self.equations.n_free, self.equations.levels
        self.floor, self.bottom = np.zeros(n), np.zeros(n)
        for term in levels.tail:
            rows = float(levels.tail_blocks[term.group][:, term.column, term.column].mean())
            self.floor[term.parameter] = np.sqrt(FLOOR / rows)
            if levels.groups[term.group].correlated:  # L has to have an inverse until the search is over
                self.bottom[term.parameter] = self.floor[term.parameter]
        self.below = columns_below(levels)

    def evaluate(self, x: Array, blocks: int) -> Derivatives:
        """Derivatives at x."""
        if self.evaluations == REFRESH:
            self.equations.refresh()
        out = self.equations.derivatives(x, blocks)
        self.evaluations += 1
        self.trace.append((self.as_given(x), float(np.linalg.norm(np.nan_to_num(out.gradient)))))
        if self.report is not None:
            self.report(self.evaluations, *self.trace[-1])
        return out

    def reached(
        self, x: Array, blocks: int, came: tuple[Array, Array] | None, pinned: Mask
    ) -> tuple[Array, Derivatives]:
        """Derivatives at x, or nearer to where a step came from (that point and the step) if it led too far."""
        for _ in range(SHORTER):
            try:
                return x, self.evaluate(x, blocks)
            except NumericalError:
                if came is None:
                    raise
                came = came[0], 0.25 * came[1]
                x = self.moved(*came, pinned)
        return x, self.evaluate(x, blocks)

    def run(self, start: Array, probes: int, error: float) -> Found:
        """Search from ``start`` (n_free,) until step and Monte Carlo error are small."""
        theta, blocks = self.raised(start), -(-probes // WIDTH)
        pinned, released = np.zeros(len(theta), bool), False
        last: tuple[Array, Array, float] | None = None  # theta, step and slope of the last point
        came: tuple[Array, Array] | None = None
        near = 0
        while True:
            if (turned := self.turned(theta, pinned)) is not None:
                theta, last, came = turned, None, None
            theta, at = self.reached(theta, blocks, came, pinned)
            g, spent = at.gradient, self.evaluations >= self.most
            zero = self.at_zero(theta, g) & ~pinned
            if zero.any() and not spent:
                pinned |= zero
                theta, last = np.where(pinned, self.bottom, theta), None
                continue
            free = ~pinned
            if last is not None and not spent:
                slope = float(g[free] @ last[1][free])
                if slope > 0.5 * abs(last[2]):
                    came, last = (last[0], last[1] * max(0.1, last[2] / (last[2] - slope))), None
                    theta = self.moved(*came, pinned)
                    continue
            step, inverse = newton_step(g, at.hessian, free)
            error_now = inverse @ np.where(np.outer(free, free), at.covariance, 0.0) @ inverse
            sampling = 2.0 * inverse
            sd = np.sqrt(np.diag(sampling)[free])
            ratio = float((np.sqrt(np.diag(error_now)[free]) / sd).max(initial=0.0))
            size = float((np.abs(step[free]) / sd).max(initial=0.0))
            near = near + 1 if size < STEP else 0
            small = size < max(LEAST, min(STEP, SHARE * ratio))
            if near > SETTLED and not small:  # rounding is what is left of the steps, and an error of theta
                small, ratio = True, max(ratio, size)
            if small or spent:
                theta = self.moved(theta, step if small else step * self.bound(theta, step), pinned)
                if small and not spent and pinned.any() and not released:
                    released, freed = True, self.release(theta, pinned, blocks)
                    if freed.any():
                        pinned, last = pinned & ~freed, None
                        theta = np.where(freed, self.floor, theta)
                        continue
                if small and not spent and ratio > error and blocks * WIDTH < MAX_PROBES:
                    wanted = int(np.ceil(1.2 * blocks * (ratio / error) ** 2))
                    blocks, last = min(max(wanted, blocks + 1), MAX_PROBES // WIDTH), None
                    continue
                counts = blocks * WIDTH, self.evaluations, self.equations.iterations, self.equations.longest
                theta = np.where(pinned, 0.0, theta)
                slopes = self.slopes(theta, at)
                return Found(
                    *self.result(theta, error_now, sampling), slopes[0], ratio, *counts, small, *slopes[1:],
                    tuple(self.trace),
                )  # fmt: skip
            step = step * self.bound(theta, step)
            last = None if self.evaluations == REFRESH else (theta, step, float(g[free] @ step[free]))
            came, theta = (theta, step), self.moved(theta, step, pinned)

    def turned(self, theta: Array, pinned: Mask) -> Array | None:
        """Theta in a better order of factors' columns, which the search is in from there on; None where it stays."""
        levels = self.equations.levels
        better = better_order(levels, theta, pinned) if self.turns < TURNS else None
        if better is None or not self.equations.reorder(better):
            return None
        theta, self.turns = carried(levels, better, theta)[0], self.turns + 1
        self.measure()
        return np.where(pinned, theta, self.raised(theta))

    def raised(self, theta: Array) -> Array:
        """Tail parameters no lower than their floor."""
        return np.maximum(theta, np.where(self.floor > 0.0, self.floor, theta))

    def as_given(self, theta: Array) -> Array:
        """A point in the parameters of the order that was given, a copy."""
        return carried(self.equations.levels, self.given, theta)[0]

    def result(self, theta: Array, error: Array, sampling: Array) -> tuple[Array, Array, Array]:
        """Theta and its covariances in the parameters that were given; the second is NaN where theta is at its bound.

        ``theta`` has zeros where it is at its bound, and so have the covariances.
        """
        out, jacobian = carried(self.equations.levels, self.given, theta)
        sampling = jacobian @ sampling @ jacobian.T
        bound = np.zeros(len(out), bool)
        for places, _ in self.given.factors[1:]:
            zero = [j for a, i, j in places if i == j and out[a] == 0.0]
            bound[[a for a, _, j in places if j in zero]] = True
        sampling[bound], sampling[:, bound] = np.nan, np.nan
        return out, jacobian @ error @ jacobian.T, sampling

    def slopes(self, theta: Array, at: Derivatives) -> tuple[Array, Array, Array]:
        """Covariance of the gradient over probes, gradient, and curvature, in the parameters that were given."""
        if self.turns == 0:
            return at.covariance, at.gradient, at.hessian
        back = carried(self.given, self.equations.levels, self.as_given(theta))[1]
        spread, gradient = np.nan_to_num(at.covariance), np.nan_to_num(at.gradient)
        return back.T @ spread @ back, back.T @ gradient, back.T @ at.hessian @ back

    def release(self, theta: Array, pinned: Mask, blocks: int) -> Mask:
        """Which of the parameters at zero the criterion falls away from, now that the others have moved."""
        g = self.evaluate(np.where(pinned, self.floor, theta), blocks).gradient
        freed = np.asarray(pinned & (self.floor > 0.0) & (g < 0.0))
        for a, others in self.below.items():
            freed[others] = freed[a]
        return freed

    def at_zero(self, theta: Array, g: Array) -> Mask:
        """Parameters that the criterion pushes against their bound of zero.

        A deviation that covariances depend on is one only if these are at zero too, and they go with it: elsewhere it
        passes through zero and changes its column's sign.
        """
        out = (self.floor > 0.0) & (theta <= self.floor) & (g > 0.0)
        for a, others in self.below.items():
            out[a] &= bool((np.abs(theta[others]) <= self.floor[a]).all())
            out[others] = out[a]
        return np.asarray(out)

    def moved(self, theta: Array, step: Array, pinned: Mask) -> Array:
        """The point a step leads to, tail parameters no lower than their floor."""
        new = theta + np.where(pinned, 0.0, step)
        for a, others in self.below.items():
            if new[a] < 0.0:
                new[others] = -new[others]
        tail = (self.floor > 0.0) & ~pinned
        return np.where(tail, np.maximum(np.abs(new), self.floor), new)

    def bound(self, theta: Array, step: Array) -> float:
        """Factor that keeps a step within seven tenths of what it changes."""
        levels = self.equations.levels
        size = np.full(len(theta), LONG)
        size[: levels.n_theta] = np.maximum(np.abs(theta[: levels.n_theta]), 0.05)
        for places, _ in levels.factors:
            own = {(i, j): a for a, i, j in places}
            for (i, j), a in own.items():
                if i != j:  # a covariance may pass through zero: the deviations are its measure
                    size[a] = max(size[a], abs(theta[own[i, i]]), abs(theta[own[j, j]]))
        return float(min(1.0, 0.7 / np.max(np.abs(step) / size)))


def columns_below(levels: Factors) -> dict[int, list[int]]:
    """Parameters below each diagonal element of a correlated tail factor's L, by that element's place in theta."""
    out = {}
    for group in levels.groups:
        for a, i, j in group.parameters:
            others = [b for b, row, column in group.parameters if column == j and row != j]
            if i == j and others:
                out[a] = others
    return out


def newton_step(g: Array, hessian: Array, free: Mask) -> tuple[Array, Array]:
    """Step and inverse of |H| in the free parameters, zero elsewhere: eigenvalues enter by their size."""
    step, inverse = np.zeros(len(g)), np.zeros((len(g), len(g)))
    if not free.any():
        return step, inverse
    both = np.ix_(free, free)
    values, vectors = np.linalg.eigh(hessian[both])
    values = np.maximum(np.abs(values), 1e-8 * np.abs(values).max())
    inverse[both] = (vectors / values) @ vectors.T
    step[free] = -inverse[both] @ g[free]
    return step, inverse
