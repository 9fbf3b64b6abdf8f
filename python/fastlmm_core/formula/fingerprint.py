"""A number that tells rows apart, the same for any order and any cut of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fingerprint", "fingerprint_of_columns"]

Array = NDArray[np.float64]
Hashes = NDArray[np.uint64]


def mixed(bits: Hashes) -> Hashes:
    """Each 64-bit number scrambled (the finaliser of splitmix64: Steele, Lea & Flood 2014)."""
    x = bits + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _bits(values: Array) -> Hashes:
    return (np.ascontiguousarray(values) + 0.0).view(np.uint64)  # -0 is 0


def _sum(rows: Hashes, values: Array | None, neutral: float) -> int:
    """Sum of the scrambles of rows with a value each; those of the neutral value, or None for all, count nothing."""
    if values is None:
        return 0
    counts = values != neutral
    if not counts.any():
        return 0
    if not counts.all():
        rows, values = rows[counts], values[counts]
    return int(mixed(rows ^ mixed(_bits(values))).sum(dtype=np.uint64))


def fingerprint(y: Array, weights: Array | None, offset: Array | None) -> tuple[int, int, int]:
    """Sums over rows of a scramble of the response, and of it with the weights and with the offset, modulo 2^64.

    Weights None are ones, an offset None is zero.
    """
    rows = mixed(_bits(y))
    return int(rows.sum(dtype=np.uint64)), _sum(rows, weights, 1.0), _sum(rows, offset, 0.0)


def fingerprint_of_columns(y: Array, X: Array) -> NDArray[np.uint64]:
    """The same of the response with each column of X, (p,)."""
    rows = mixed(_bits(y))
    return np.array([_sum(rows, column, 1.0) for column in X.T], np.uint64)
