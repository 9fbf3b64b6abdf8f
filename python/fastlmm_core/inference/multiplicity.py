"""Several tests at once: adjusted p-values and critical values of a family of t statistics.

The studentized range (Tukey 1953; Kramer 1956 for unequal variances) and the largest of correlated t statistics
(Dunnett 1955; Genz and Bretz 2009) are integrated here; the stepwise methods are as in Wright (1992).

Largest |t|: with u ~ N(0, R) of rank r, u = rho A omega, the direction omega uniform on the sphere and rho^2 / r over
the estimated variance ~ F(r, df), so

    P(max |T_i| >= t) = E_omega P(F(r, df) >= t^2 / (r m(omega)^2)),      m(omega) = max_i |A_i omega|.        (1)

Only the direction is sampled, by scrambled Sobol points; the radius is integrated exactly, R may be singular, df need
not be whole, and every p-value and quantile of a family comes from one sample, which depends on R alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fastlmm_core.errors import ModelError

__all__ = ["ADJUSTMENTS", "Largest", "adjusted_p", "adjustment_name", "range_quantile", "range_sf", "stepwise"]

Array = NDArray[np.float64]

STEPWISE = ("bonferroni", "holm", "hochberg", "hommel", "BH", "BY")
ADJUSTMENTS = ("none", "sidak", "tukey", "scheffe", "mvt", *STEPWISE)

_ALIASES = {"dunnett": "mvt", "fdr": "BH", "bh": "BH", "by": "BY", "max-t": "mvt"}

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)

PANELS = ((-8.5, -2.0), (-2.0, 2.0), (2.0, 9.0))
"""Three panels, so that the integrand stays sharp for many means."""

WIDEST = 16.0
"""The range of a hundred standard normals exceeds this with probability below 1e-25."""

DIRECTIONS = (1 << 13, 1 << 20)
"""Directions sampled: to begin with, and at most."""

SHIFTS = 8
"""Independent scramblings, for the error."""

AT = np.arange(1.0, 4.1, 0.25)
"""Statistics at which the error of the probability is looked at."""

ERROR = 1e-4
"""Standard error of a probability at which sampling stops."""

POINTS = 16
"""Degrees of freedom at which a quantile is found, where a family has more different ones."""

BINS = 512
"""Lengths m(omega) are gathered into bins; within one, (1) is linear to about 1e-7."""


def adjustment_name(adjust: str) -> str:
    """The name of an adjustment in its one spelling; ModelError for an unknown one."""
    name = _ALIASES.get(str(adjust).lower(), str(adjust))
    if name not in ADJUSTMENTS:
        listed = ", ".join(map(repr, (*ADJUSTMENTS, "dunnett")))
        raise ModelError(f"adjust {adjust!r} does not exist: use one of {listed}")
    return name


def stepwise(p: Array, how: str) -> Array:
    """P-values (n,) adjusted by a method that needs nothing but them (Wright 1992); NaN are no tests."""
    out = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    q = p[known]
    n = len(q)
    order = np.argsort(q, kind="stable")
    rank, back = np.arange(1, n + 1), np.argsort(order, kind="stable")
    s = q[order]
    if how == "bonferroni":
        adjusted = n * s
    elif how == "holm":
        adjusted = np.maximum.accumulate((n - rank + 1) * s)
    elif how == "hochberg":
        adjusted = np.minimum.accumulate(((n - rank + 1) * s)[::-1])[::-1]
    elif how in ("BH", "BY"):
        scale = np.sum(1.0 / rank) if how == "BY" else 1.0
        adjusted = np.minimum.accumulate((scale * n / rank * s)[::-1])[::-1]
    else:
        adjusted = _hommel(s)
    out[known] = np.minimum(1.0, adjusted)[back]
    return out


def _hommel(s: Array) -> Array:
    """Hommel's (1988) closed test of Simes' type, for sorted p-values."""
    n = len(s)
    adjusted = np.full(n, np.min(n * s / np.arange(1, n + 1))) if n else s.copy()
    bound = adjusted.copy()
    for m in range(n - 1, 1, -1):
        first, last = np.arange(n - m + 1), np.arange(n - m + 1, n)
        least = np.min(m * s[last] / np.arange(2, m + 1))
        bound[first] = np.minimum(m * s[first], least)
        bound[last] = bound[n - m]
        adjusted = np.maximum(adjusted, bound)
    return np.maximum(adjusted, s)


# --- the studentized range ---------------------------------------------------------------------------------------


def _normal_range_sf(w: Array, k: int) -> Array:
    """P(range of k standard normals > w) = 1 - k int phi(z) [Phi(z) - Phi(z - w)]^(k-1) dz."""
    below = np.zeros_like(w)
    for low, high in PANELS:
        half = 0.5 * (high - low)
        z = half * _NODES + 0.5 * (high + low)
        inside = special.ndtr(z) - special.ndtr(z - w[:, None])
        below += half * ((inside ** (k - 1)) @ (_WEIGHTS * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)))
    return np.clip(1.0 - k * below, 0.0, 1.0)


INTERVALS, DEGREE = 48, 12
"""Of the table of `_normal_range_sf`: within 1e-14."""


@lru_cache(maxsize=64)
def _range_table(k: int) -> Array:
    """`_normal_range_sf` on [0, WIDEST] by intervals: coefficients (DEGREE + 1, INTERVALS) of powers in [-1, 1]."""
    edges, width = np.linspace(0.0, WIDEST, INTERVALS + 1)[:-1], WIDEST / INTERVALS
    x = -np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
    values = _normal_range_sf((edges[:, None] + 0.5 * width * (x + 1.0)).ravel(), k).reshape(-1, DEGREE + 1)
    chebyshev = np.linalg.solve(np.polynomial.chebyshev.chebvander(x, DEGREE), values.T)
    powers = np.zeros((DEGREE + 1, DEGREE + 1))
    for j, basis in enumerate(np.eye(DEGREE + 1)):
        power = np.polynomial.chebyshev.cheb2poly(basis)
        powers[: len(power), j] = power
    return np.asarray(powers @ chebyshev)


def _table_value(table: Array, w: Array) -> Array:
    """Interpolated `_normal_range_sf` at w, beyond WIDEST its value there."""
    scaled = np.minimum(w, WIDEST) * (INTERVALS / WIDEST)
    place = np.minimum(scaled.astype(np.int64), INTERVALS - 1)
    x = 2.0 * (scaled - place) - 1.0
    out = table[DEGREE][place]
    for degree in range(DEGREE - 1, -1, -1):
        out *= x
        out += table[degree][place]
    return out


def range_sf(q: Array, k: int, df: Array) -> Array:
    """P(studentized range of k means > q) for each q (n,) and df (n,), infinite ones included."""
    table = _range_table(k)
    q, df = np.broadcast_arrays(np.asarray(q, np.float64), np.asarray(df, np.float64))
    out = np.full(q.shape, np.nan)
    known = ~np.isnan(q) & ~np.isnan(df)
    limit = known & ~(df < 1e6)
    out[limit] = _table_value(table, q[limit])
    rest = known & (df < 1e6)
    if rest.any():
        s, weight = _scale_nodes(df[rest])
        out[rest] = np.sum(_table_value(table, q[rest][:, None] * s) * weight, axis=1)
    return np.clip(out, 0.0, 1.0)


def _scale_nodes(df: Array) -> tuple[Array, Array]:
    """Nodes and weights (n, 96) of the distribution of s = sqrt(chi2_df / df), between its extreme quantiles."""
    nu = df[:, None]
    low = (special.chdtri(nu, 1.0 - 1e-14) / nu) ** 0.125
    high = (special.chdtri(nu, 1e-15) / nu) ** 0.125
    root = 0.5 * (high - low) * _NODES + 0.5 * (high + low)
    s = root**4  # s^(df - 1) has no second derivative at zero where df is small and not whole
    log_density = np.log(2.0) + 0.5 * nu * np.log(0.5 * nu) - special.gammaln(0.5 * nu) + (nu - 1.0) * np.log(s)
    return s, 2.0 * (high - low) * root**3 * _WEIGHTS * np.exp(log_density - 0.5 * nu * s * s)


def range_quantile(level: float, k: int, df: Array) -> Array:
    """The q (n,) that the studentized range of k means exceeds with probability 1 - level, for each df (n,)."""
    return _at_distinct(df, lambda nu: _root(lambda q: range_sf(q, k, nu) - (1.0 - level), np.full(len(nu), 4.0)))


def _at_distinct(df: Array, function: Callable[[Array], Array]) -> Array:
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


def _root(function: Callable[[Array], Array], start: Array) -> Array:
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


# --- the largest of correlated t statistics ----------------------------------------------------------------------


class Largest:
    """The distribution of the largest of correlated t statistics.

    Parameters
    ----------
    cov : (k, k)
        Covariance of what is tested, up to a factor; may be singular.
    side : {0, 1}
        0: the largest absolute value; 1: the largest value.

    Attributes
    ----------
    error : float
        Standard error of the probabilities, at most; 0 where the rank is at most 2, which needs no sampling.
    """

    def __init__(self, cov: Array, side: int = 0) -> None:
        scale = np.sqrt(np.diag(cov))
        values, vectors = np.linalg.eigh(cov / np.outer(scale, scale))
        kept = values > 1e-10 * values[-1]
        self.rank, self.side = int(kept.sum()), side
        root = vectors[:, kept] * np.sqrt(values[kept])
        if self.rank <= 2:
            self.error = 0.0
            angles = (np.arange(1 << 16) + 0.5) * (2.0 * np.pi / (1 << 16))
            circle = np.column_stack([np.cos(angles), np.sin(angles)])
            self._gather([self._lengths(circle if self.rank == 2 else np.array([[1.0], [-1.0]]), root)])
            return
        shifts: list[list[Array]] = [[] for _ in range(SHIFTS)]
        sobol = [self._sobol(seed) for seed in range(SHIFTS)]
        drawn = 0
        while drawn < DIRECTIONS[1]:
            more = max(DIRECTIONS[0], drawn) // SHIFTS
            for lengths, points in zip(shifts, sobol, strict=True):
                z = special.ndtri(np.clip(points(more), 1e-15, 1.0 - 1e-15))
                z /= np.linalg.norm(z, axis=1, keepdims=True)
                lengths.append(self._lengths(z, root))
            drawn += more * SHIFTS
            self._gather([np.concatenate(lengths) for lengths in shifts])
            tails = self._tail(AT, np.full(len(AT), np.inf))
            self.error = float(np.std(tails, axis=0).max() / np.sqrt(SHIFTS - 1))
            if self.error <= ERROR:
                break

    def _sobol(self, seed: int) -> Callable[[int], Array]:
        from scipy.stats import qmc  # scipy.stats takes longer to import than everything else here

        return qmc.Sobol(self.rank, scramble=True, seed=np.random.default_rng(seed)).random

    def _lengths(self, directions: Array, root: Array) -> Array:
        """m(omega), below zero where no statistic of a one-sided family is positive."""
        projected = directions @ root.T
        return np.asarray(np.abs(projected).max(axis=1) if self.side == 0 else projected.max(axis=1))

    def _gather(self, shifts: list[Array]) -> None:
        """Bins of lengths: their means, and the share (shifts, bins) of each shift's directions in them."""
        every = np.concatenate(shifts)
        low, high = float(every.min()), float(every.max())
        step = max(high - low, 1e-300) / BINS
        place = [np.minimum(((lengths - low) / step).astype(np.int64), BINS - 1) for lengths in shifts]
        all_places = np.concatenate(place)
        number = np.bincount(all_places, minlength=BINS)
        used = number > 0
        self._length = (np.bincount(all_places, every, BINS)[used]) / number[used]
        self._share = np.array([np.bincount(p, minlength=BINS)[used] / len(p) for p in place])

    def _tail(self, t: Array, df: Array) -> Array:
        """Upper tails (shifts, n) of each t (n,) with its df (n,)."""
        t, df = t[:, None], df[:, None]
        positive = self._length > 0
        ratio = np.square(t / np.where(self._length == 0, 1.0, self._length)) / self.rank
        finite = np.isfinite(df)
        beyond = np.where(
            finite,
            special.fdtrc(self.rank, np.where(finite, df, 1.0), ratio),
            special.chdtrc(self.rank, self.rank * ratio),
        )
        # a ray along omega enters the region at t / m where both are positive, and leaves it there where both are not
        chance = np.where(t >= 0, np.where(positive, beyond, 0.0), np.where(positive, 1.0, 1.0 - beyond))
        return np.asarray(self._share @ chance.T)

    def sf(self, t: Array, df: Array) -> Array:
        """P(the largest statistic >= t), for each t (n,) with its df (n,)."""
        t = np.asarray(t, np.float64)
        known = ~np.isnan(t)
        out = np.full(t.shape, np.nan)
        out[known] = self._tail(np.abs(t[known]) if self.side == 0 else t[known], df[known]).mean(axis=0)
        return np.clip(out, 0.0, 1.0)

    def quantile(self, level: float, df: Array) -> Array:
        """The t (n,) that the largest statistic exceeds with probability 1 - level, for each df (n,)."""
        return _at_distinct(df, lambda nu: self._quantile_at(level, nu))

    def _quantile_at(self, level: float, df: Array) -> Array:
        return _root(lambda t: self._tail(t, df).mean(axis=0) - (1.0 - level), np.full(len(df), 3.0))


def adjusted_p(p: Array, t: Array, df: Array, how: str, *, rank: int = 0, largest: Largest | None = None) -> Array:
    """P-values (..., n) of families of n tests adjusted for each.

    Parameters
    ----------
    p, t, df : (..., n)
        Of each test alone; NaN where it cannot be done.
    how : str
        One of `ADJUSTMENTS`; "tukey" takes the family to be all pairs of (1 + sqrt(1 + 8 n)) / 2 means.
    rank : int
        Of the family's covariance, for "scheffe".
    largest : Largest
        For "mvt".
    """
    n = p.shape[-1]
    if how == "sidak":
        return np.asarray(-np.expm1(n * np.log1p(-p)))
    if how == "tukey":
        return range_sf(np.sqrt(2.0) * np.abs(t), n_means(n), df)
    if how == "scheffe":
        finite = np.isfinite(df)
        f = np.square(t) / rank
        return np.where(finite, special.fdtrc(rank, np.where(finite, df, 1.0), f), special.chdtrc(rank, rank * f))
    if how == "mvt":
        assert largest is not None
        return largest.sf(t, df)
    if how not in STEPWISE:
        return p
    return stepwise(p, how) if p.ndim == 1 else np.array([stepwise(row, how) for row in p])


def critical_values(
    level: float, df: Array, how: str, n: int, sides: int, *, rank: int = 0, largest: Largest | None = None
) -> Array:
    """Multiples (len(df),) of the standard errors that simultaneous limits of a family of n lie away.

    `sides` is 2 for intervals, 1 for a single limit. Bonferroni's for the stepwise methods, as nothing sharper
    exists; unadjusted for "BH", as emmeans' users expect of a false discovery rate.
    """
    alpha = 1.0 - level
    if how == "tukey":
        return range_quantile(level, n_means(n), df) / np.sqrt(2.0)
    if how == "scheffe":
        return np.sqrt(
            rank
            * np.where(
                np.isfinite(df),
                special.fdtri(rank, np.where(np.isfinite(df), df, 1.0), level),
                special.chdtri(rank, alpha) / rank,
            )
        )
    if how == "mvt":
        assert largest is not None
        return largest.quantile(level, df)
    if how == "sidak":
        alpha = -np.expm1(np.log(level) / n)
    elif how in STEPWISE and how != "BH":
        alpha /= n
    finite = np.isfinite(df)
    return np.where(
        finite, special.stdtrit(np.where(finite, df, 1.0), 1.0 - alpha / sides), special.ndtri(1.0 - alpha / sides)
    )


def n_means(n_pairs: int) -> int:
    """How many means have this many pairs."""
    return round((1.0 + np.sqrt(1.0 + 8.0 * n_pairs)) / 2.0)
