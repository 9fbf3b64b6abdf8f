"""The largest of correlated t statistics (Dunnett 1955; Genz and Bretz 2009).

With u ~ N(0, R) of rank r, u = rho A omega, the direction omega uniform on the sphere and rho^2 / r over the estimated
variance ~ F(r, df), so

    P(max |T_i| >= t) = E_omega P(F(r, df) >= t^2 / (r m(omega)^2)),      m(omega) = max_i |A_i omega|.        (1)

Only the direction is sampled, by scrambled Sobol points; the radius is integrated exactly, R may be singular, df need
not be whole, and every p-value and quantile of a family comes from one sample, which depends on R alone.

Where R_ij = l_i l_j for i != j, as in comparisons of independent means with a control, u_i = l_i z + s_i e_i with
s_i^2 = 1 - l_i^2, and nothing is sampled (Dunnett 1955):

    P(max |u_i| <= w) = int phi(z) prod_i [Phi((w - l_i z) / s_i) - Phi((-w - l_i z) / s_i)] dz.               (2)

Other R are close to such an R1 as a rule. (1) is then sampled for the difference between R and R1, from the same
directions, and (2) added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fastlmm_core.inference.scaled import at_distinct, legendre, root, tabulated

__all__ = ["Largest"]

Array = NDArray[np.float64]

DIRECTIONS = (1 << 13, 1 << 20)
"""Directions sampled: to begin with, and at most."""

SHIFTS = 8
"""Independent scramblings, for the error."""

AT = np.arange(1.0, 4.1, 0.25)
"""Statistics at which the error of the probability is looked at."""

ERROR = 1e-4
"""Standard error of a probability at which sampling stops."""

BINS = 512
"""Lengths m(omega) are gathered into bins; within one, (1) is linear to about 1e-7."""

FARTHEST = 9.0
"""A standard normal exceeds this with probability 1e-19."""

INTERVALS_EACH = 3
"""Intervals of the table of (2) on a unit of w."""

EXACT = 1e-10
"""A correlation that differs from the product of its loadings by no more is that product."""

SMALLEST = 0.02
"""s_i below which the integrand of (2) is too steep for its nodes."""

PANEL = 48
"""Nodes of each panel of the integral over z."""


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
        Standard error of the probabilities, at most; 0 where nothing is sampled: a rank of at most 2, or one factor.
    """

    def __init__(self, cov: Array, side: int = 0) -> None:
        scale = np.sqrt(np.diag(cov))
        correlation = cov / np.outer(scale, scale)
        values, vectors = np.linalg.eigh(correlation)
        kept = values > 1e-10 * values[-1]
        self.rank, self.side = int(kept.sum()), side
        self.error, self._lengths, self._table = 0.0, _Lengths(self.rank, side), None
        self._beside: _Lengths | None = None
        scaled = vectors[:, kept] * np.sqrt(values[kept])
        if self.rank <= 2:
            angles = (np.arange(1 << 16) + 0.5) * (2.0 * np.pi / (1 << 16))
            circle = np.column_stack([np.cos(angles), np.sin(angles)])
            self._lengths.gather([self._lengths.of(circle if self.rank == 2 else np.array([[1.0], [-1.0]]), scaled)])
            return
        loadings = one_factor(correlation) if self.rank == len(cov) else None
        if loadings is None:
            self._sample(scaled, None)
            return
        low = -FARTHEST if side else 0.0
        self._table = tabulated(
            lambda w: _one_factor_sf(w, loadings, side), low, FARTHEST, round((FARTHEST - low) * INTERVALS_EACH)
        )
        near = np.outer(loadings, loadings)
        np.fill_diagonal(near, 1.0)
        if np.abs(near - correlation).max() > EXACT:
            values, other = np.linalg.eigh(near)
            self._beside = _Lengths(self.rank, side)
            self._sample(scaled @ vectors.T, (other * np.sqrt(values)) @ other.T)

    def _sample(self, scaled: Array, near: Array | None) -> None:
        """Draw directions until the error of (1), or of its difference from the one with the root `near`, is small."""
        sobol = [self._sobol(seed) for seed in range(SHIFTS)]
        lengths: list[list[Array]] = [[] for _ in range(SHIFTS)]
        beside: list[list[Array]] = [[] for _ in range(SHIFTS)]
        drawn = 0
        while drawn < DIRECTIONS[1]:
            more = max(DIRECTIONS[0], drawn) // SHIFTS
            for shift, points in enumerate(sobol):
                z = special.ndtri(np.clip(points(more), 1e-15, 1.0 - 1e-15))
                z /= np.linalg.norm(z, axis=1, keepdims=True)
                lengths[shift].append(self._lengths.of(z, scaled))
                if near is not None:
                    beside[shift].append(self._lengths.of(z, near))
            drawn += more * SHIFTS
            self._lengths.gather([np.concatenate(one) for one in lengths])
            if self._beside is not None:
                self._beside.gather([np.concatenate(one) for one in beside])
            tails = self._sampled(AT, np.full(len(AT), np.inf))
            self.error = float(np.std(tails, axis=0).max() / np.sqrt(SHIFTS - 1))
            if self.error <= ERROR:
                break

    def _sobol(self, seed: int) -> Callable[[int], Array]:
        from scipy.stats import qmc  # scipy.stats takes longer to import than everything else here

        return qmc.Sobol(self.rank, scramble=True, seed=np.random.default_rng(seed)).random

    def _sampled(self, t: Array, df: Array) -> Array:
        """What is sampled (shifts, n) of the upper tails at each t (n,) with its df (n,)."""
        tails = self._lengths.tail(t, df)
        return tails if self._beside is None else tails - self._beside.tail(t, df)

    def _tail(self, t: Array, df: Array) -> Array:
        """Upper tails (n,)."""
        if self._table is None:
            return np.asarray(self._sampled(t, df).mean(axis=0))
        exact = self._table.tail(t, df)
        return exact if self._beside is None else exact + self._sampled(t, df).mean(axis=0)

    def sf(self, t: Array, df: Array) -> Array:
        """P(the largest statistic >= t), for each t (n,) with its df (n,)."""
        t = np.asarray(t, np.float64)
        known = ~np.isnan(t)
        out = np.full(t.shape, np.nan)
        out[known] = self._tail(np.abs(t[known]) if self.side == 0 else t[known], df[known])
        return np.clip(out, 0.0, 1.0)

    def quantile(self, level: float, df: Array) -> Array:
        """The t (n,) that the largest statistic exceeds with probability 1 - level, for each df (n,)."""
        return at_distinct(df, lambda nu: root(lambda t: self._tail(t, nu) - (1.0 - level), np.full(len(nu), 3.0)))


@dataclass(eq=False)
class _Lengths:
    """The distribution of m(omega) over directions, in bins: their means, and each shift's share of them."""

    rank: int
    side: int
    length: Array | None = None
    share: Array | None = None

    def of(self, directions: Array, scaled: Array) -> Array:
        """m(omega), below zero where no statistic of a one-sided family is positive."""
        projected = directions @ scaled.T
        return np.asarray(np.abs(projected).max(axis=1) if self.side == 0 else projected.max(axis=1))

    def gather(self, shifts: list[Array]) -> None:
        """Fill the bins with the lengths of each shift."""
        every = np.concatenate(shifts)
        low, high = float(every.min()), float(every.max())
        step = max(high - low, 1e-300) / BINS
        place = [np.minimum(((lengths - low) / step).astype(np.int64), BINS - 1) for lengths in shifts]
        all_places = np.concatenate(place)
        number = np.bincount(all_places, minlength=BINS)
        used = number > 0
        self.length = (np.bincount(all_places, every, BINS)[used]) / number[used]
        self.share = np.array([np.bincount(p, minlength=BINS)[used] / len(p) for p in place])

    def tail(self, t: Array, df: Array) -> Array:
        """Upper tails (shifts, n) of each t (n,) with its df (n,)."""
        assert self.length is not None
        assert self.share is not None
        t, df = t[:, None], df[:, None]
        positive = self.length > 0
        ratio = np.square(t / np.where(self.length == 0, 1.0, self.length)) / self.rank
        finite = np.isfinite(df)
        beyond = np.where(
            finite,
            special.fdtrc(self.rank, np.where(finite, df, 1.0), ratio),
            special.chdtrc(self.rank, self.rank * ratio),
        )
        # a ray along omega enters the region at t / m where both are positive, and leaves it there where both are not
        chance = np.where(t >= 0, np.where(positive, beyond, 0.0), np.where(positive, 1.0, 1.0 - beyond))
        return np.asarray(self.share @ chance.T)


def one_factor(correlation: Array) -> Array | None:
    """Loadings l (k,) of the correlations R_ij ~ l_i l_j that are nearest to a matrix's; None where one is too near 1.

    Alternating least squares with halved steps, then Gauss and Newton's.
    """
    off = correlation - np.diag(np.diag(correlation))
    values, vectors = np.linalg.eigh(off)
    loadings = vectors[:, -1] * np.sqrt(max(0.0, values[-1]))
    for sweep in range(50):
        squares = np.square(loadings)
        rest = squares.sum() - squares
        ahead = off @ loadings - rest * loadings
        if sweep < 40:
            step = 0.5 * np.divide(ahead, rest, out=np.zeros_like(rest), where=rest > 1e-300)
        else:
            step = np.linalg.lstsq(np.outer(loadings, loadings) + np.diag(rest - squares), ahead, rcond=1e-8)[0]
        loadings = np.clip(loadings + step, -1.0, 1.0)
        if np.abs(step).max() < 1e-14:
            break
    loadings[np.abs(loadings) < 1e-12] = 0.0
    return loadings if np.all(1.0 - np.square(loadings) >= SMALLEST**2) else None


def _one_factor_sf(w: Array, loadings: Array, side: int) -> Array:
    """One minus (2) for each w (n,), or its one-sided form."""
    signed = loadings if side else np.abs(loadings)
    distinct, number = np.unique(np.round(signed, 13), return_counts=True)
    s = np.sqrt(1.0 - np.square(distinct))
    steepest = np.min(s / np.maximum(np.abs(distinct), 1e-3))
    low = -8.5 if side else 0.0  # (2) is even in z
    panels = int(np.ceil((8.5 - low) / np.clip(4.25 * steepest, 0.1, 4.25)))
    edges = np.linspace(low, 8.5, panels + 1)
    half = 0.5 * (edges[1] - edges[0])
    nodes, weights = legendre(PANEL)
    z = (half * nodes + 0.5 * (edges[:-1] + edges[1:])[:, None]).ravel()
    density = np.tile(half * weights, panels) * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    inside = np.ones((len(w), len(z)))
    for loading, size, times in zip(distinct, s, number, strict=True):
        below = special.ndtr((w[:, None] - loading * z) / size)
        if side == 0:
            below -= special.ndtr((-w[:, None] - loading * z) / size)
        inside *= below**times
    return np.clip(1.0 - (1.0 if side else 2.0) * (inside @ density), 0.0, 1.0)
