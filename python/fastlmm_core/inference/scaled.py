"""Distributions of statistics divided by an estimated standard deviation, from those with a known one.

Where P(W > w) belongs to normal variables, P(W / s > t) is its mean over s = sqrt(chi2_df / df). The former is
tabulated once, by polynomials on intervals, so that each value and each step towards a quantile costs a weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fastlmm_core.core.threads import bounded

__all__ = ["NODES", "Table", "at_distinct", "legendre", "root", "tabulated"]

Array = NDArray[np.float64]

NODES = 96
"""Of an integral over s, and of one over a normal variable."""

POINTS = 16
"""Degrees of freedom at which a quantile is found, where a family has more different ones."""

DEGREE = 12
"""Of the polynomial on each interval; intervals of a third leave 1e-14."""


@cache
@bounded
def legendre(k: int) -> tuple[Array, Array]:
    """Nodes and weights (k,) of Gauss and Legendre's rule on [-1, 1]; they are eigenvalues, and cost BLAS a moment."""
    nodes, weights = np.polynomial.legendre.leggauss(k)
    return nodes, weights


@dataclass(frozen=True, eq=False)
class Table:
    """A function on [low, high] by intervals of one width: coefficients (DEGREE + 1, intervals) of powers in [-1, 1].

    Beyond its ends it keeps the values there.
    """

    low: float
    high: float
    powers: Array

    def value(self, w: Array) -> Array:
        """The function at w, interpolated."""
        n = self.powers.shape[1]
        scaled = (np.clip(w, self.low, self.high) - self.low) * (n / (self.high - self.low))
        place = np.minimum(scaled.astype(np.int64), n - 1)
        x = 2.0 * (scaled - place) - 1.0
        out = self.powers[DEGREE][place]
        for degree in range(DEGREE - 1, -1, -1):
            out *= x
            out += self.powers[degree][place]
        return out

    def tail(self, t: Array, df: Array) -> Array:
        """P(W / s > t) for each t and df (n,), infinite ones included; NaN where either is."""
        t, df = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(df, np.float64))
        out = np.full(t.shape, np.nan)
        known = ~np.isnan(t) & ~np.isnan(df)
        limit = known & ~(df < 1e6)
        out[limit] = self.value(t[limit])
        rest = known & (df < 1e6)
        if rest.any():
            s, weight = _scale_nodes(df[rest])
            out[rest] = np.sum(self.value(t[rest][:, None] * s) * weight, axis=1)
        return np.clip(out, 0.0, 1.0)


def tabulated(function: Callable[[Array], Array], low: float, high: float, intervals: int) -> Table:
    """The table of a function of an array."""
    edges, width = np.linspace(low, high, intervals + 1)[:-1], (high - low) / intervals
    x = -np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
    values = function((edges[:, None] + 0.5 * width * (x + 1.0)).ravel()).reshape(-1, DEGREE + 1)
    chebyshev = np.linalg.solve(np.polynomial.chebyshev.chebvander(x, DEGREE), values.T)
    powers = np.zeros((DEGREE + 1, DEGREE + 1))
    for j, basis in enumerate(np.eye(DEGREE + 1)):
        power = np.polynomial.chebyshev.cheb2poly(basis)
        powers[: len(power), j] = power
    return Table(low, high, np.asarray(powers @ chebyshev))


def _scale_nodes(df: Array) -> tuple[Array, Array]:
    """Nodes and weights (n, 96) of the distribution of s = sqrt(chi2_df / df), between its extreme quantiles."""
    nu = df[:, None]
    low = (special.chdtri(nu, 1.0 - 1e-14) / nu) ** 0.125
    high = (special.chdtri(nu, 1e-15) / nu) ** 0.125
    nodes, weights = legendre(NODES)
    fourth_root = 0.5 * (high - low) * nodes + 0.5 * (high + low)
    s = fourth_root**4  # s^(df - 1) has no second derivative at zero where df is small and not whole
    log_density = np.log(2.0) + 0.5 * nu * np.log(0.5 * nu) - special.gammaln(0.5 * nu) + (nu - 1.0) * np.log(s)
    return s, 2.0 * (high - low) * fourth_root**3 * weights * np.exp(log_density - 0.5 * nu * s * s)


def at_distinct(df: Array, function: Callable[[Array], Array]) -> Array:
    """`function` of an array, evaluated once a distinct value, or on Chebyshev points of 1 / df where they are many.

    Quantiles are smooth in 1 / df: a polynomial of degree 15 is within 1e-9 where df is above 3.
    """
    distinct, place = np.unique(np.round(df, 9), return_inverse=True)
    finite = distinct[np.isfinite(distinct)]
    if len(finite) <= POINTS or finite[0] < 3.0:
        return function(distinct)[place]
    low, high = 1.0 / finite[-1], 1.0 / finite[0]
    x = np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)
    at_points = function(np.r_[2.0 / ((high - low) * x + high + low), np.inf])
    fitted = np.polynomial.chebyshev.chebfit(x, at_points[:-1], POINTS - 1)
    reciprocal = (2.0 / distinct - high - low) / (high - low)
    values = np.polynomial.chebyshev.chebval(np.clip(reciprocal, -1.0, 1.0), fitted)
    return np.where(np.isfinite(distinct), values, at_points[-1])[place]


def root(function: Callable[[Array], Array], start: Array) -> Array:
    """Roots of a decreasing function of positive numbers, elementwise: bracketed, then the Illinois method."""
    low, high = np.zeros_like(start), start.copy()
    f_low, f_high = function(low), function(high)
    for _ in range(60):
        out = f_high > 0
        if not out.any():
            break
        low, f_low = np.where(out, high, low), np.where(out, f_high, f_low)
        high = np.where(out, 2.0 * high, high)
        f_high = np.where(out, function(high), f_high)
    side = np.zeros(len(start))
    middle = high
    for _ in range(100):
        gap = f_low - f_high
        middle = np.where(gap > 0, low + (high - low) * f_low / np.where(gap > 0, gap, 1.0), 0.5 * (low + high))
        value = function(middle)
        above = value > 0
        f_high = np.where(above & (side == 1), 0.5 * f_high, f_high)
        f_low = np.where(~above & (side == -1), 0.5 * f_low, f_low)
        low, f_low = np.where(above, middle, low), np.where(above, value, f_low)
        high, f_high = np.where(above, high, middle), np.where(above, f_high, value)
        side = np.where(above, 1.0, -1.0)
        if np.all((np.abs(value) < 1e-13) | (high - low < 1e-11 * (1.0 + high))):
            break
    return middle
