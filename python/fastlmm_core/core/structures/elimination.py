"""A sparse symmetric matrix eliminated as far as that is cheap, and its core, which is not.

    M = [D E'; E S_0],      log|M| = log|D| + log|S|,      tr M^-1 dM = tr D^-1 dD + tr S^-1 dS                      (1)

S = S_0 - E D^-1 E' is the core. Rows go in sets that do not touch, those with the fewest neighbours first, until what
is left touches too many others: nearly all workers of firms, half of the animals that mate at random, where a factor of
the core would be dense. `_native/iterative/partial.pyx` has the loops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core._native.iterative import partial
from fastlmm_core.errors import NumericalError

__all__ = ["Core", "Elimination", "Reduced"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

MOST_NEIGHBOURS = 16
"""Rows that touch more others stay in the core: eliminating them would fill more than it saves."""

LEAST_SHARE = 0.05
"""Of the rows at hand, that a set is worth a step for."""

LEAST_CORE = 32
"""Rows that are left at least, for the probes to have something to average."""

FULLEST = 4.0
"""Entries of what is left, relative to those of the matrix, at which elimination ends."""


@dataclass(frozen=True, eq=False)
class Core:
    """Pattern of the core by rows, both triangles.

    Attributes
    ----------
    ptr, idx : (k + 1,), (nnz,)
    rows : (nnz,) int64
        Row of each entry.
    take : (nnz,) int64
        Where each entry is among those of the upper triangle.
    diagonal : (k,) int64
        Places of the diagonal.
    """

    ptr: Index
    idx: NDArray[np.int32]
    rows: Index
    take: Index
    diagonal: Index


class Elimination:
    """The order of one pattern's rows, and the pattern filled.

    Parameters
    ----------
    m : int
    rows, columns : (nnz,) int64
        Entries of the lower triangle, as of `SparseFactor`.

    Attributes
    ----------
    order, place : (m,) int64
        Rows in the order of elimination, and where each went.
    k : int
        How many are eliminated.
    ptr, idx : (m + 1,), (nnz of the fill)
        The upper triangle by rows in that order, fill included.
    entry : (nnz,) int64
        Where the entries given are in it.
    core : Core
    """

    def __init__(self, m: int, rows: Index, columns: Index) -> None:
        off = rows != columns
        self.k, self.order, r, c = independent_sets(m, rows[off], columns[off])
        self.m, self.place = m, np.empty(m, np.int64)
        self.place[self.order] = np.arange(m)
        once = self.place[r] < self.place[c]
        keys = np.sort(np.concatenate([self._keys(r[once], c[once]), np.arange(m) * (m + 1)]))
        self.ptr = np.zeros(m + 1, np.int64)
        np.cumsum(np.bincount(keys // m, minlength=m), out=self.ptr[1:])
        self.idx = (keys % m).astype(np.int32)
        self.entry = np.searchsorted(keys, self._keys(rows, columns))
        self.core = self._core()

    def _keys(self, r: Index, c: Index) -> Index:
        r, c = self.place[r], self.place[c]
        return np.asarray(np.minimum(r, c) * self.m + np.maximum(r, c))

    def _core(self) -> Core:
        at = np.arange(self.ptr[self.k], len(self.idx))
        size = self.m - self.k
        r = np.repeat(np.arange(size), np.diff(self.ptr[self.k :]))
        c = self.idx[at].astype(np.int64) - self.k
        off = r != c
        both = np.concatenate([r * size + c, (c * size + r)[off]])
        sort = np.argsort(both, kind="stable")
        rows, idx = np.divmod(both[sort], size)
        ptr = np.zeros(size + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=size), out=ptr[1:])
        take = np.concatenate([at, at[off]])[sort]
        return Core(ptr, idx.astype(np.int32), rows, take, np.flatnonzero(rows == idx))

    def filled(self, entries: Array) -> Array:
        """Values of the upper triangle from the entries given (nnz,)."""
        out = np.zeros(len(self.idx))
        out[self.entry] = entries
        return out

    def reduce(self, entries: Array) -> Reduced:
        """Equation (1).

        Raises
        ------
        NumericalError
            The matrix is not positive definite.
        """
        values = self.filled(entries)
        done = partial.eliminate(self.ptr, self.idx, self.k, values)
        if done < self.k or not (values[self.ptr[self.k : -1]] > 0.0).all():
            raise NumericalError("the mixed-model equations are not positive definite")
        return Reduced(self, values, float(np.log(values[self.ptr[: self.k]]).sum()))


@dataclass(frozen=True, eq=False)
class Reduced:
    """One value of the matrix, eliminated.

    Attributes
    ----------
    plan : Elimination
    values : (nnz of the fill,)
        D and E', and the core's upper triangle.
    log_det : float
        log|D|.
    """

    plan: Elimination
    values: Array
    log_det: float

    @property
    def core(self) -> Array:
        """Entries of S, both triangles."""
        return self.values[self.plan.core.take]

    def change(self, entries: Array) -> tuple[float, Array]:
        """Tr D^-1 dD, and dS, of a symmetric change of the matrix by its entries (nnz,)."""
        plan, change = self.plan, self.plan.filled(entries)
        known = partial.eliminate_change(plan.ptr, plan.idx, plan.k, self.values, change)
        return known, change[plan.core.take]

    def down(self, b: Array) -> Array:
        """Right-hand sides (m, c), in the order of elimination, brought to the core; a new array."""
        out = np.array(b, np.float64, order="C")
        partial.down(self.plan.ptr, self.plan.idx, self.plan.k, self.values, out)
        return out

    def up(self, x: Array) -> Array:
        """Solutions (m, c), in place, where the core's are in the rows from k on."""
        partial.up(self.plan.ptr, self.plan.idx, self.plan.k, self.values, x)
        return x

    def inverse(self, core: Array) -> Array:
        """Entries (nnz,) of M^-1, as given, from those of S^-1, both triangles on the core's pattern."""
        plan = self.plan
        Z = np.zeros(len(plan.idx))
        Z[plan.core.take] = core
        partial.inverse_above(plan.ptr, plan.idx, plan.k, self.values, Z)
        return np.asarray(Z[plan.entry])


def independent_sets(m: int, rows: Index, columns: Index) -> tuple[int, Index, Index, Index]:
    """How many rows are eliminated, all rows (m,) in their order, and the filled pattern.

    Parameters
    ----------
    m : int
    rows, columns : (nnz,) int64
        Entries off the diagonal, of one triangle.

    Returns
    -------
    k : int
    order : (m,) int64
    r, c : (nnz of the fill,) int64
        Entries off the diagonal; those of the core are there twice.
    """
    ones = np.ones(2 * len(rows))
    A = sp.csr_array((ones, (np.concatenate([rows, columns]), np.concatenate([columns, rows]))), shape=(m, m))
    rng, left = np.random.default_rng(0), np.arange(m)
    order, r, c = list[Index](), list[Index](), list[Index]()
    most = FULLEST * (A.nnz + m)
    while True:
        neighbours = np.diff(A.indptr)
        key = np.where(neighbours <= MOST_NEIGHBOURS, neighbours + rng.random(len(left)), np.inf)
        least = np.full(len(left), np.inf)
        some = np.flatnonzero(neighbours)
        if len(some):
            least[some] = np.minimum.reduceat(key[A.indices], A.indptr[some])
        chosen = key < least
        count = int(chosen.sum())
        end = count < max(1.0, LEAST_SHARE * len(left)) or len(left) - count < LEAST_CORE or A.nnz > most
        rest = np.flatnonzero(~chosen)
        own = A if end else sp.csr_array(A[np.flatnonzero(chosen)])
        r.append(np.repeat(left if end else left[chosen], np.diff(own.indptr)))
        c.append(left[own.indices])
        if end:
            k = sum(len(part) for part in order)
            return k, np.concatenate([*order, left]), np.concatenate(r), np.concatenate(c)
        order.append(left[chosen])
        E = sp.csr_array(own[:, rest])
        A, left = sp.csr_array(A[rest][:, rest] + E.T @ E), left[rest]
        A.setdiag(0.0)
        A.eliminate_zeros()
        A.data[:] = 1.0
