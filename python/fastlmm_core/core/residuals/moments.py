"""Rows of all units, sorted into patterns: n is paid once.

Units with the same rows but for [x y] (the same visits, strata, z) share a *pattern*. With rows d = [x y],
x orthonormal and y the residual scaled to norm one, a pattern's units enter the criterion only through their moments

    M[s, a, t, b] = sum_i d_is[a] d_it[b]

of which the entries with s <= t, symmetrised in (a, b), are kept as a matrix (pairs, q), q = d (d + 1) / 2. Then

    [X y]'V^-1[X y] = sum over pairs of (R^-1)_st M_st         one product with a vector
    its derivatives = minus the same with R^-1 R_a R^-1        one product with a matrix (`_native.criterion.patterns`)
    K_st = <F, M_st>                                           one product with a vector

Units that hardly share patterns are kept as rows: the same three sums are then made from E_i (m, d).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.patterns import unit_moments
from fastlmm_core.lazy import cached_property

__all__ = ["Batch", "Symmetric", "batches", "patterns"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

FEW = 1 << 16
"""Moments of a batch below this number are kept whatever they cost."""


class Symmetric:
    """The order of a symmetric matrix's entries in a row of moments."""

    def __init__(self, d: int) -> None:
        self.d = d
        self.rows, self.columns = np.triu_indices(d)
        self.twice = np.where(self.rows == self.columns, 1.0, 2.0)

    def unpack(self, packed: Array) -> Array:
        """(..., q) to (..., d, d)."""
        out = np.empty((*packed.shape[:-1], self.d, self.d))
        out[..., self.rows, self.columns] = packed
        out[..., self.columns, self.rows] = packed
        return out

    def pack(self, matrix: Array) -> Array:
        """(..., d, d), symmetric, to (..., q)."""
        return matrix[..., self.rows, self.columns]


@dataclass(frozen=True, eq=False)
class Batch:
    """Patterns of m rows.

    Attributes
    ----------
    rows : (k, m) int64
        Rows of the first unit of each pattern: what R depends on.
    counts : (k,)
        Units of each pattern.
    moments : (k * pairs, q) or None
    E : (k, m, d) or None
        Rows themselves, one unit a pattern, where there are no moments.
    units : (u, m) int64
        Rows of every unit.
    pattern : (u,)
        Pattern of every unit.
    """

    rows: Index
    counts: Array
    order: Symmetric
    moments: Array | None
    E: Array | None
    units: Index
    pattern: Index

    @cached_property
    def pairs(self) -> tuple[Index, Index]:
        """Rows and columns s <= t of the pairs."""
        s, t = np.triu_indices(self.rows.shape[1])
        return s, t

    def products(self, P: Array) -> Array:
        """(d, d) sum over units of E'PE for symmetric P (k, m, m)."""
        if self.moments is None:
            assert self.E is not None
            k, m, d = self.E.shape
            return np.asarray((P @ self.E).reshape(k * m, d).T @ self.E.reshape(k * m, d))
        s, t = self.pairs
        return self.order.unpack(P[:, s, t].ravel() @ self.moments)

    def scores(self, F: Array) -> Array:
        """K (k, m, m) = sum over a pattern's units of E F E' for symmetric F (d, d)."""
        k, m = self.rows.shape
        if self.moments is None:
            assert self.E is not None
            return np.asarray(self.E @ F @ self.E.transpose(0, 2, 1))
        s, t = self.pairs
        packed = (self.moments @ (self.order.pack(F) * self.order.twice)).reshape(k, -1)
        packed = np.where(s == t, packed, 0.5 * packed)  # a pair's moments hold (s, t) and (t, s)
        K = np.empty((k, m, m))
        K[:, s, t] = packed
        K[:, t, s] = packed
        return K


def patterns(unit: Index, cell: Index, n_cells: int) -> Iterator[tuple[Index, Index, Index]]:
    """Sort rows by unit and cell and group units by what cells they have.

    Parameters
    ----------
    unit : (n,) integers
    cell : (n,) integers
        Rows with equal cells have equal covariances with everything.
    n_cells : int

    Yields
    ------
    rows : (u, m) int64
        All units of m rows, their rows in the order of the cells.
    pattern : (u,)
        Pattern of each unit, 0 .. k - 1.
    first : (k,)
        A unit of each pattern.
    """
    key = unit.astype(np.int64) * n_cells + cell
    order = np.arange(len(key)) if (np.diff(key) >= 0).all() else np.argsort(key, kind="stable")
    owner = unit[order]
    start = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    size = np.diff(np.r_[start, len(owner)])
    for m in np.unique(size).tolist():  # Python's integers: a power of NumPy's wraps around
        rows = order[start[size == m][:, None] + np.arange(m)]
        cells = cell[rows]
        if n_cells**m < 1 << 62:
            code = np.zeros(len(cells), np.int64)
            for j in range(m):
                code = code * n_cells + cells[:, j]
            _, first, pattern = np.unique(code, return_index=True, return_inverse=True)
        else:
            _, first, pattern = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        yield rows, pattern.reshape(-1), first


def batches(unit: Index, cell: Index, n_cells: int, D: Array) -> list[Batch]:
    """Patterns by size, with moments of the rows D (n, d) or the rows themselves, whichever are less work."""
    d = D.shape[1]
    order = Symmetric(d)
    out = []
    for rows, pattern, first in patterns(unit, cell, n_cells):
        m, k = rows.shape[1], len(first)
        pairs, q = m * (m + 1) // 2, len(order.rows)
        counts = np.bincount(pattern, minlength=k).astype(np.float64)
        # multiplications of a direction in `add_derivatives`
        of_unit, of_pattern = m * (3 * m * m + m * d + d * d), 5 * m**3 + pairs * q
        frequent = counts * of_unit >= of_pattern if k * pairs * q > FEW else np.ones(k, bool)
        chosen = np.flatnonzero(frequent)
        if len(chosen):
            by_pattern = np.argsort(pattern, kind="stable")
            ends = np.cumsum(counts).astype(np.int64)
            moments = np.empty((len(chosen), pairs, q))
            for at, g in enumerate(chosen):
                unit_moments(D, rows[by_pattern[ends[g] - int(counts[g]) : ends[g]]], moments[at])
            place = np.cumsum(frequent) - 1
            mine = frequent[pattern]
            which = rows[first[chosen]], counts[chosen]
            out.append(Batch(*which, order, moments.reshape(-1, q), None, rows[mine], place[pattern[mine]]))
        rest = rows[~frequent[pattern]]
        if len(rest):
            out.append(Batch(rest, np.ones(len(rest)), order, None, D[rest], rest, np.arange(len(rest))))
    return out
