"""The deviance minimised with one parameter held fixed: one class a kind of parameter, all from cross-products.

Each path has a coordinate w in which its parameter is fixed and the deviance is smooth: an sd itself, log(sigma), the
angle arcsin(correlation), a coefficient itself. In conditioned coordinates (relative factors L_c = T^-1 L, T lower
triangular, the term's columns ordered such that the profiled ones come first)

    sd        L_c[0, 0] = s / (T[0, 0] sigma): a variable is given by tau = log(sigma), which becomes a free one
    cor       row 2 of L = r (sin w, cos w): two variables become one; sigma stays profiled out
    sigma     tau is fixed
    beta_j    gamma = g0 a / |a|^2 + N eta with a'gamma = g0, N'a = 0: X loses a column, y moves along another

With n the observations and r^2(theta) the penalised residual sum of squares, the deviance at a given sigma is

    D(theta, tau) = value(theta) + kappa - n - n log(kappa / n),      kappa = r^2 exp(-2 tau)

Two evaluators that differ in n tell log|M| and log r^2 apart in value, gradient and average information, for all three
are affine in n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.core import Control, CrossProducts, Layout, plan
from fastlmm_core.errors import NumericalError
from fastlmm_core.inference.rotation import Reordered
from fastlmm_core.inference.trust_region import minimise

__all__ = ["BetaPath", "CorPath", "Path", "SdPath", "SigmaPath", "SplitCriterion"]

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

    def locate(self, theta: Array) -> tuple[float, Array]:
        """Coordinate and other variables of a model given by conditioned theta, what is profiled out at its optimum."""
        ...

    def theta(self, w: float, x: Array) -> Array:
        """Conditioned theta, in the model's own order of columns, where the coordinate is `w` and the variables `x`."""
        ...


class SplitCriterion:
    """log|M| and log r^2 with their derivatives, at any conditioned theta.

    Parameters
    ----------
    cross : CrossProducts
    control : Control
    """

    def __init__(self, cross: CrossProducts, control: Control) -> None:
        self.cross = cross
        self.plan: Layout = plan(cross, control)
        self.n = cross.n
        self.evaluator = self.plan.evaluator(False)
        self._one = self.plan.evaluator(False, n=1)
        self.plan.load(self.evaluator, cross)
        self._one.load(self.evaluator.values)
        n = self.n
        self._constant = cross.conditioning.constant(n, False) + n * (1 + np.log(2 * np.pi / n)) - 1 - np.log(2 * np.pi)

    def log_r2(self, theta: Array) -> float:
        """Logarithm of r^2 at conditioned theta."""
        return float((self.evaluator.value(theta) - self._one.value(theta) - self._constant) / (self.n - 1))

    def log_sigma(self, theta: Array) -> float:
        """Logarithm of the sigma that is best at conditioned theta, in units of y_scale sqrt(weight_scale)."""
        return 0.5 * (self.log_r2(theta) - float(np.log(self.n)))

    def at(self, theta: Array, tau: float) -> tuple[float, Array, Array]:
        """D(theta, tau), its gradient and model Hessian in (tau, theta): 1 + n_theta variables."""
        n = self.n
        value, g_n, h_n = self.evaluator.derivatives(theta)
        value_1, g_1, h_1 = self._one.derivatives(theta)
        log_r2 = (value - value_1 - self._constant) / (n - 1)
        if log_r2 - 2.0 * tau > 700.0:
            raise NumericalError("the deviance overflows")
        kappa = float(np.exp(log_r2 - 2.0 * tau))
        slope = (g_n - g_1) / (n - 1)  # of log r^2
        size = len(theta) + 1
        gradient, hessian = np.empty(size), np.empty((size, size))
        gradient[0] = 2.0 * (n - kappa)
        gradient[1:] = g_1 + (kappa - 1.0) * slope
        hessian[0, 0] = 4.0 * kappa
        hessian[0, 1:] = hessian[1:, 0] = -2.0 * kappa * slope
        # information at fixed sigma: the term that profiling sigma out takes away is put back
        hessian[1:, 1:] = h_1 + (h_n - h_1) * ((kappa - 1.0) / (n - 1)) + kappa * np.outer(slope, slope)
        return value + kappa - n - n * (log_r2 - 2.0 * tau - np.log(n)), gradient, hessian


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

    def __init__(self, criterion: SplitCriterion, theta: Array) -> None:
        self.criterion = criterion
        self.estimate, self.start = self.locate(theta)
        self.step = float(np.sqrt(0.5 / criterion.n))

    def locate(self, theta: Array) -> tuple[float, Array]:
        """As `Path.locate`."""
        return self.criterion.log_sigma(theta), theta

    def theta(self, w: float, x: Array) -> Array:
        """As `Path.theta`."""
        return x

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """As `Path.solve`."""

        def function(theta: Array) -> tuple[float, Array, Array, float]:
            value, gradient, hessian = self.criterion.at(theta, w)
            return value, gradient[1:], hessian[1:, 1:], float(gradient[0])

        return minimise(function, x)


class SdPath:
    """The standard deviation of the first column of term k; the coordinate is in the user's units.

    The variables are theta with tau in the place of L_c[0, 0].
    """

    lower, upper, longest = 0.0, np.inf, np.inf

    def __init__(self, criterion: SplitCriterion, order: Reordered, theta: Array, k: int) -> None:
        cross = order.cross
        self.criterion, self.order, self.at = criterion, order, position(cross, k, 0, 0)
        c = cross.conditioning
        # L_c[0, 0] = scale * s * exp(-tau)
        self.scale = float(cross.to_conditioned[self.at, self.at]) / (np.sqrt(c.weight_scale) * c.y_scale)
        self.estimate, self.start = self.locate(theta)
        q, sigma = levels_of(cross, k), np.exp(self.start[self.at])
        self.step = max(self.estimate / np.sqrt(2.0 * q), 0.1 * np.sqrt(q / cross.n) * sigma / self.scale)

    def locate(self, theta: Array) -> tuple[float, Array]:
        """As `Path.locate`."""
        x = self.order.there(theta).copy()
        entry, tau = abs(float(x[self.at])), self.criterion.log_sigma(x)
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

        def function(x: Array) -> tuple[float, Array, Array, float]:
            theta, tau = x.copy(), float(x[at])
            if abs(tau) > 300.0:
                raise NumericalError("the residual standard deviation overflows")
            rate = self.scale * np.exp(-tau)
            entry = theta[at] = rate * w
            value, g, h = self.criterion.at(theta, tau)
            # d theta[at] / d tau = -entry, d^2 / d tau^2 = entry
            slope = float(g[full]) * rate
            gradient, hessian = g[1:].copy(), h[1:, 1:].copy()
            gradient[at] = g[0] - entry * g[full]
            hessian[at] = hessian[:, at] = h[0, 1:] - entry * h[full, 1:]
            hessian[at, at] = h[0, 0] - 2.0 * entry * h[0, full] + entry**2 * h[full, full] + entry * g[full]
            return value, gradient, hessian, slope

        return minimise(function, x)


class CorPath:
    """The correlation of the first two columns of term k; the coordinate is its arcsine.

    With r the length of row 2 of L in units of T[1, 1], L_c[1, 0] = r sin(w) + lean L_c[0, 0], L_c[1, 1] = r cos(w).
    Were r or L_c[0, 0] to become negative, the correlation would change its sign: the variables are theta with the
    square root of L_c[0, 0] in its place, and that of r in the place of L_c[1, 0] and L_c[1, 1].
    """

    lower, upper, longest = -np.pi / 2, np.pi / 2, 0.4

    def __init__(self, criterion: SplitCriterion, order: Reordered, theta: Array, k: int) -> None:
        cross = order.cross
        self.evaluator, self.order = criterion.evaluator, order
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

        def function(x: Array) -> tuple[float, Array, Array, float]:
            squared, rate = x.copy(), np.ones(len(x))
            squared[roots] **= 2
            rate[roots] = 2.0 * x[roots]
            value, g, h = self.evaluator.derivatives(embed @ squared)
            slope = float(squared[self.slot] * (cosine * g[self.below] - sine * g[self.diagonal]))
            gradient = g @ embed
            hessian = embed.T @ h @ embed * np.outer(rate, rate)
            hessian[roots, roots] += 2.0 * gradient[roots]
            return value, gradient * rate, hessian, slope

        return minimise(function, x)


class BetaPath:
    """Coefficient j of those estimated; the coordinate is in the user's units. The variables are theta."""

    lower, upper, longest = -np.inf, np.inf, np.inf

    def __init__(self, criterion: SplitCriterion, theta: Array, j: int, se: float) -> None:
        cross = criterion.cross
        c, p = cross.conditioning, cross.conditioning.rank
        self.full, self.n = criterion.evaluator, criterion.n
        inverse = np.linalg.inv(c.r[:p, :p])
        self.a = inverse[j]
        # beta_j = origin + y_scale a'gamma
        self.origin, self.y_scale = float(c.shift[j] + inverse[j] @ c.r[:p, p]), c.y_scale
        length = float(np.linalg.norm(self.a))
        self.length = length
        basis = np.linalg.qr(np.column_stack([self.a / length, np.eye(p)]))[0]
        self.along, keep = self.a / length, basis[:, 1:p]
        self.constant = c.constant(self.n, False)

        to = np.zeros((p + 1, p))
        to[:p, : p - 1], to[p, p - 1] = keep, 1.0
        values = criterion.evaluator.values
        dense, tail = values.dense_lead, values.dense_tail
        self.reduced = criterion.plan.evaluator(False, rank=p - 1)
        self.reduced.load(values.recombined(to), self.constant)
        self.newton = Newton(self.reduced, 100, 1e-9)
        self.lead, self.tail = (dense[:, p], dense[:, :p] @ self.along), (tail[p], self.along @ tail[:p])
        xtx = cross.dtd[:p, :p]
        self.xty = (keep.T @ cross.dtd[:p, p], keep.T @ xtx @ self.along)
        self.norms = (2.0 * float(self.along @ cross.dtd[:p, p]), float(self.along @ xtx @ self.along))
        self.step = se
        self.estimate, self.start = self.locate(theta)

    def locate(self, theta: Array) -> tuple[float, Array]:
        """As `Path.locate`."""
        self.full.value(theta)
        gamma = self.full.modes(theta)[0]
        return self.origin + self.y_scale * float(self.a @ gamma), theta

    def theta(self, w: float, x: Array) -> Array:
        """As `Path.theta`."""
        return x

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """As `Path.solve`."""
        p, n = len(self.a), self.n
        g0 = (w - self.origin) / self.y_scale
        t = g0 / self.length
        square = 1.0 - t * self.norms[0] + t * t * self.norms[1]  # the evaluator's response has norm one
        norm = float(np.sqrt(square))

        def response(parts: tuple[Array, Array]) -> Array:
            return np.ascontiguousarray((parts[0] - t * parts[1]) / norm)

        self.reduced.set_response(
            response(self.lead), response(self.tail), response(self.xty), self.constant + n * np.log(square)
        )
        theta, value, status = self.newton.minimise(np.ascontiguousarray(x))
        if status != 0:  # slow, in a nearly flat direction
            value, _, theta = minimise(lambda theta: (*self.reduced.derivatives(theta), 0.0), x)
        # r^2(theta) of the constrained problem = least r^2 + (a'gamma^ - g0)^2 / a'(X'V^-1X)^-1 a
        self.full.value(theta)  # the tail is shared: its factor must be this theta's
        gamma, _, _, ld, _ = self.full.modes(theta)
        half = np.linalg.solve(ld[:p, :p], self.a)
        spread, gap = float(half @ half), g0 - float(self.a @ gamma)
        r2 = float(ld[p, p]) ** 2 + gap**2 / spread
        return float(value), 2.0 * n * gap / (spread * r2 * self.y_scale), theta


def column_order(l: int, first: int, second: int | None = None) -> Sequence[int]:
    """An order of a term's columns with those named in front: cyclic where possible, so that orders are shared."""
    cycle = [(first + c) % l for c in range(l)]
    if second is None or l < 2 or cycle[1] == second:
        return cycle
    if (second + 1) % l == first:  # a correlation is symmetric
        return [(second + c) % l for c in range(l)]
    return [first, second, *(c for c in range(l) if c not in (first, second))]
