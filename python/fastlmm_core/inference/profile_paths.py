"""The deviance minimised with one parameter held fixed: one class a kind of parameter, all from cross-products.

Each path has a coordinate w in which its parameter is fixed and the deviance is smooth: an sd itself, log(sigma), the
angle arcsin(correlation), a coefficient itself. In conditioned coordinates (relative factors L_c = T^-1 L, T lower
triangular, the term's columns ordered such that the profiled ones come first)

    sd        L_c[0, 0] = s / (T[0, 0] sigma): a variable is given by tau = log(sigma), which becomes a free one
    cor       row 2 of L = r (sin w, cos w): two variables become one; sigma stays profiled out
    sigma     tau is fixed
    beta_j    gamma = g0 a / |a|^2 + N eta with a'gamma = g0, N'a = 0: X loses a column, y moves along another

The deviance at a given sigma, D(theta, tau), is the door's (`Evaluation.given_sigma`), as that with a coefficient held
(`Objective.held`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import CrossProducts, Objective
from fastlmm_core.core.descent import Derivatives, Function, descend
from fastlmm_core.errors import NumericalError
from fastlmm_core.inference.rotation import Reordered

__all__ = ["BetaPath", "CorPath", "OrdinaryPath", "Path", "SdPath", "SigmaPath"]

Array = NDArray[np.float64]


class Path(Protocol):
    """A parameter that can be held fixed.

    Attributes
    ----------
    estimate : float
        Coordinate of the estimate.
    start : (k,)
        The other variables there.
    lower, upper : float
        Bounds of the coordinate.
    step : float
        About one standard error of the coordinate, at most.
    longest : float
        No two points of a profile lie further apart, however level it is.
    """

    estimate: float
    start: Array
    lower: float
    upper: float
    step: float
    longest: float

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """Minimised deviance at coordinate `w`, its derivative in w, and the minimiser, sought from `x`.

        Raises
        ------
        NumericalError
            The deviance cannot be evaluated or minimised there.
        """
        ...

    def theta(self, w: float, x: Array) -> Array:
        """Conditioned theta, in the model's own order of columns, where the coordinate is `w` and the variables `x`."""
        ...


class OrdinaryPath(Path, Protocol):
    """A path of an ordinary linear model, whose boundary faces it may meet."""

    def locate(self, theta: Array) -> tuple[float, Array]:
        """Coordinate and other variables of a model given by conditioned theta, what is profiled out at its optimum."""
        ...


def log_sigma(objective: Objective, theta: Array) -> float:
    """Logarithm of the sigma that is best at conditioned theta, in units of y_scale sqrt(weight_scale)."""
    return 0.5 * (objective.at_conditioned(theta).log_r2 - float(np.log(objective.nu)))


def lowest(function: Function, start: Array, objective: Objective) -> tuple[float, float, Array]:
    """Least value, the figure passed on there, and where; see `descend`."""
    found = descend(function, start, size=objective.nu)
    return found.value, found.figure, found.x


def position(cross: CrossProducts, k: int, row: int, column: int) -> int:
    """Place in theta of an entry of term k's factor."""
    g = next(g for g, group in enumerate(cross.groups) if k in group.terms)
    offset = cross.groups[g].offsets[cross.groups[g].terms.index(k)]
    return int(np.flatnonzero((cross.theta_index == [g, offset + row, offset + column]).all(axis=1))[0])


def levels_of(cross: CrossProducts, k: int) -> int:
    """Levels of term k."""
    return next(group.n_levels for group in cross.groups if k in group.terms)


class SigmaPath:
    """The residual standard deviation; the coordinate is its logarithm, in units of y_scale sqrt(weight_scale)."""

    lower, upper, longest = -np.inf, np.inf, np.inf

    def __init__(self, objective: Objective, theta: Array) -> None:
        self.objective = objective
        self.estimate, self.start = self.locate(theta)
        self.step = float(np.sqrt(0.5 / objective.nu))

    def locate(self, theta: Array) -> tuple[float, Array]:
        """As `Path.locate`."""
        return log_sigma(self.objective, theta), theta

    def theta(self, w: float, x: Array) -> Array:
        """As `Path.theta`."""
        return x

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """As `Path.solve`."""

        def function(theta: Array) -> tuple[float, Derivatives]:
            point = self.objective.at_conditioned(theta).given_sigma(w)

            def derivatives() -> tuple[Array, Array, float]:
                gradient, hessian = point.derivatives()
                return gradient[1:], hessian[1:, 1:], float(gradient[0])

            return point.value, derivatives

        return lowest(function, x, self.objective)


class SdPath:
    """The standard deviation of the first column of term k; the coordinate is in the user's units.

    The variables are theta with tau in the place of L_c[0, 0].
    """

    lower, upper, longest = 0.0, np.inf, np.inf

    def __init__(self, objective: Objective, order: Reordered, theta: Array, k: int) -> None:
        cross = order.cross
        self.objective, self.order, self.at = objective, order, position(cross, k, 0, 0)
        c = cross.conditioning
        # L_c[0, 0] = scale * s * exp(-tau)
        self.scale = float(cross.to_conditioned[self.at, self.at]) / (np.sqrt(c.weight_scale) * c.y_scale)
        self.estimate, self.start = self.locate(theta)
        q, sigma = levels_of(cross, k), np.exp(self.start[self.at])
        self.step = max(self.estimate / np.sqrt(2.0 * q), 0.1 * np.sqrt(q / cross.n) * sigma / self.scale)

    def locate(self, theta: Array) -> tuple[float, Array]:
        """As `Path.locate`."""
        x = self.order.there(theta).copy()
        entry, tau = abs(float(x[self.at])), log_sigma(self.objective, x)
        x[self.at] = tau
        return entry * float(np.exp(tau)) / self.scale, x

    def theta(self, w: float, x: Array) -> Array:
        """As `Path.theta`."""
        theta = x.copy()
        theta[self.at] = self.scale * w * np.exp(-x[self.at])
        return self.order.back(theta)

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """As `Path.solve`."""
        at, full = self.at, self.at + 1

        def function(x: Array) -> tuple[float, Derivatives]:
            theta, tau = x.copy(), float(x[at])
            if abs(tau) > 300.0:
                raise NumericalError("the residual standard deviation overflows")
            rate = self.scale * np.exp(-tau)
            entry = theta[at] = rate * w
            point = self.objective.at_conditioned(theta).given_sigma(tau)

            def derivatives() -> tuple[Array, Array, float]:
                g, h = point.derivatives()
                # d theta[at] / d tau = -entry, d^2 / d tau^2 = entry
                gradient, hessian = g[1:].copy(), h[1:, 1:].copy()
                gradient[at] = g[0] - entry * g[full]
                hessian[at] = hessian[:, at] = h[0, 1:] - entry * h[full, 1:]
                hessian[at, at] = h[0, 0] - 2.0 * entry * h[0, full] + entry**2 * h[full, full] + entry * g[full]
                return gradient, hessian, float(g[full]) * rate

            return point.value, derivatives

        return lowest(function, x, self.objective)


class CorPath:
    """The correlation of the first two columns of term k; the coordinate is its arcsine.

    With r the length of row 2 of L in units of T[1, 1], L_c[1, 0] = r sin(w) + lean L_c[0, 0], L_c[1, 1] = r cos(w).
    Were r or L_c[0, 0] to become negative, the correlation would change its sign: the variables are theta with the
    square root of L_c[0, 0] in its place, and that of r in the place of L_c[1, 0] and L_c[1, 1].
    """

    lower, upper, longest = -np.pi / 2, np.pi / 2, 0.4

    def __init__(self, objective: Objective, order: Reordered, theta: Array, k: int) -> None:
        cross = order.cross
        self.objective, self.order = objective, order
        first, self.below, self.diagonal = (position(cross, k, i, j) for i, j in ((0, 0), (1, 0), (1, 1)))
        m = cross.to_conditioned
        self.lean = float(m[self.below, first] / m[first, first])
        self.others = np.delete(np.arange(len(theta)), self.diagonal)
        self.roots = np.flatnonzero((self.others == first) | (self.others == self.below))
        self.slot, self.first = int(np.searchsorted(self.others, self.below)), int(np.searchsorted(self.others, first))
        self.estimate, self.start = self.locate(theta)
        self.step = float(1.0 / np.sqrt(levels_of(cross, k)))

    def locate(self, theta: Array) -> tuple[float, Array]:
        """As `Path.locate`."""
        turned = self.order.there(theta)
        x = turned[self.others]
        across = float(turned[self.below] - self.lean * x[self.first])
        x[self.slot] = np.hypot(across, turned[self.diagonal])
        w = float(np.arctan2(across, turned[self.diagonal])) if x[self.slot] else 0.0
        x[self.roots] = np.sqrt(np.abs(x[self.roots]))
        return w, x

    def theta(self, w: float, x: Array) -> Array:
        """As `Path.theta`."""
        squared = x.copy()
        squared[self.roots] **= 2
        return self.order.back(self._embedding(w) @ squared)

    def _embedding(self, w: float) -> Array:
        """The matrix (n_theta, n_theta - 1) that takes the variables, roots squared, to theta."""
        embed = np.zeros((len(self.others) + 1, len(self.others)))
        embed[self.others, np.arange(len(self.others))] = 1.0
        embed[self.below, self.slot], embed[self.diagonal, self.slot] = np.sin(w), np.cos(w)
        embed[self.below, self.first] = self.lean
        return embed

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """As `Path.solve`."""
        embed, sine, cosine = self._embedding(w), np.sin(w), np.cos(w)
        roots = self.roots

        def function(x: Array) -> tuple[float, Derivatives]:
            squared, rate = x.copy(), np.ones(len(x))
            squared[roots] **= 2
            rate[roots] = 2.0 * x[roots]
            point = self.objective.at_conditioned(embed @ squared)

            def derivatives() -> tuple[Array, Array, float]:
                _, g, h = point.conditioned
                slope = float(squared[self.slot] * (cosine * g[self.below] - sine * g[self.diagonal]))
                gradient = g @ embed
                hessian = embed.T @ h @ embed * np.outer(rate, rate)
                hessian[roots, roots] += 2.0 * gradient[roots]
                return gradient * rate, hessian, slope

            return point.value, derivatives

        return lowest(function, x, self.objective)


class BetaPath:
    """Coefficient j of those estimated; the coordinate is in the user's units. The variables are theta."""

    lower, upper, longest = -np.inf, np.inf, np.inf

    def __init__(self, objective: Objective, theta: Array, j: int, se: float) -> None:
        cross = objective.cross
        c, p = cross.conditioning, cross.rank
        inverse = np.linalg.inv(c.r[:p, :p])
        # beta_j = origin + y_scale a'gamma
        self.origin, self.y_scale = float(c.shift[j] + inverse[j] @ c.r[:p, p]), c.y_scale
        self.held = objective.held(inverse[j])
        self.step = se
        self.estimate, self.start = self.locate(theta)

    def locate(self, theta: Array) -> tuple[float, Array]:
        """As `Path.locate`."""
        return self.origin + self.y_scale * self.held.estimate(theta), theta

    def theta(self, w: float, x: Array) -> Array:
        """As `Path.theta`."""
        return x

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """As `Path.solve`."""
        value, slope, theta = self.held.solve((w - self.origin) / self.y_scale, x)
        return value, slope / self.y_scale, theta


def column_order(l: int, first: int, second: int | None = None) -> Sequence[int]:
    """An order of a term's columns with those named in front: cyclic where possible, so that orders are shared."""
    cycle = [(first + c) % l for c in range(l)]
    if second is None or l < 2 or cycle[1] == second:
        return cycle
    if (second + 1) % l == first:  # a correlation is symmetric
        return [(second + c) % l for c in range(l)]
    return [first, second, *(c for c in range(l) if c not in (first, second))]
