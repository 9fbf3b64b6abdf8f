"""The studentized range (Tukey 1953): the range of k normal means over an estimate of their standard deviation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fastlmm_core.inference.scaled import NODES, Table, at_distinct, legendre, root, tabulated

__all__ = ["range_quantile", "range_sf"]

Array = NDArray[np.float64]

PANELS = ((-8.5, -2.0), (-2.0, 2.0), (2.0, 9.0))
"""Three panels, so that the integrand stays sharp for many means."""

WIDEST = 16.0
"""The range of a hundred standard normals exceeds this with probability below 1e-25."""

INTERVALS = 48
"""Of the table: within 1e-14."""


def _normal_range_sf(w: Array, k: int) -> Array:
    """P(range of k standard normals > w) = 1 - k int phi(z) [Phi(z) - Phi(z - w)]^(k-1) dz."""
    below, (nodes, weights) = np.zeros_like(w), legendre(NODES)
    for low, high in PANELS:
        half = 0.5 * (high - low)
        z = half * nodes + 0.5 * (high + low)
        inside = special.ndtr(z) - special.ndtr(z - w[:, None])
        below += half * ((inside ** (k - 1)) @ (weights * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)))
    return np.clip(1.0 - k * below, 0.0, 1.0)


@lru_cache(maxsize=64)
def _table(k: int) -> Table:
    return tabulated(lambda w: _normal_range_sf(w, k), 0.0, WIDEST, INTERVALS)


def range_sf(q: Array, k: int, df: Array) -> Array:
    """P(studentized range of k means > q) for each q (n,) and df (n,), infinite ones included."""
    return _table(k).tail(q, df)


def range_quantile(level: float, k: int, df: Array) -> Array:
    """The q (n,) that the studentized range of k means exceeds with probability 1 - level, for each df (n,)."""
    return at_distinct(df, lambda nu: root(lambda q: range_sf(q, k, nu) - (1.0 - level), np.full(len(nu), 4.0)))
