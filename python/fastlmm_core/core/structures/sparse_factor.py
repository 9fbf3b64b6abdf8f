"""Cholesky factor of a sparse symmetric matrix whose pattern stays: ordered once, refactored with other values.

A thin layer over the supernodal kernel, which wants sorted rows of the lower triangle in a fill-reducing order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core._native.symbolic.ordering import elimination_tree, fill_ordering
from fastlmm_core._native.tail.supernodal import SupernodalCholesky
from fastlmm_core.errors import MemoryLimitError

__all__ = ["OutOfReach", "SparseFactor"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

SMALL = 5_000
"""Rows up to which nobody asks what a factor takes."""

LARGE = 1e10
"""Multiplications of a factorisation that are worth a second ordering."""

PER_MULTIPLICATION = 8e-11
"""Seconds of a factor and an inverse on one core, about, before its supernodes are known."""


class OutOfReach(Exception):
    """A factor would take too long; the message says how long."""


def lower_rows(m: int, rows: Index, columns: Index) -> tuple[Index, Index, Index]:
    """Pointers, columns and the order of entries (rows >= columns) as sorted rows."""
    order = np.argsort(rows * m + columns, kind="stable")
    ptr = np.zeros(m + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=m), out=ptr[1:])
    return ptr, np.ascontiguousarray(columns[order]), order


def cheapest_ordering(ptr: Index, idx: Index, most: float = np.inf) -> tuple[Index, Array]:
    """Minimum degree; where that means much work, nested dissection if it is less. With the factor's column counts.

    Nested dissection is not tried where it would have to save nine tenths to come below ``most`` multiplications.

    Long pedigrees of small generations take a third of the work by nested dissection, those with few sires five times
    as much.
    """
    perm = fill_ordering(ptr, idx, "amd")
    assert perm is not None
    counts = elimination_tree(ptr, idx, perm)[1].astype(np.float64)
    if not LARGE <= multiplications(counts) <= 10.0 * most or (other := fill_ordering(ptr, idx, "metis")) is None:
        return perm, counts
    of_other = elimination_tree(ptr, idx, other)[1].astype(np.float64)
    return (other, of_other) if multiplications(of_other) < multiplications(counts) else (perm, counts)


def multiplications(counts: Array) -> float:
    """Of a factorisation, from its column counts (m,)."""
    return float(np.square(counts).sum())


class SparseFactor:
    """Workspace of one pattern.

    Parameters
    ----------
    m : int
        Rows, or a symmetric sparse matrix whose lower triangle is the pattern.
    rows, columns : (nnz,) int64
        Entries of the lower triangle (rows >= columns), each once, the diagonal among them.
    threads : int
    n_bytes : int, optional
        What the factor may take.
    reach : float, optional
        Predicted seconds that it may take.

    Attributes
    ----------
    seconds : float
        Predicted, of a factor and the inverse on one core.

    Raises
    ------
    MemoryLimitError
        The factor takes more than `n_bytes`.
    OutOfReach
        It takes more than `reach`.
    """

    exact = True

    def __init__(
        self,
        m: int | Any,
        rows: Index | None = None,
        columns: Index | None = None,
        threads: int = 1,
        n_bytes: int | None = None,
        reach: float = np.inf,
    ) -> None:
        if rows is None or columns is None:
            lower = sp.tril(m).tocoo()
            m, rows, columns = lower.shape[0], lower.row.astype(np.int64), lower.col.astype(np.int64)
        self.m = int(m)
        self.given = rows, columns
        ptr, idx, _ = lower_rows(self.m, rows, columns)
        self.perm, counts = cheapest_ordering(ptr, idx, reach / PER_MULTIPLICATION)
        perm = self.perm
        needed = 16.0 * float(counts.sum())  # the inverse beside it
        if n_bytes is not None and self.m > SMALL and needed > n_bytes:
            raise MemoryLimitError(
                f"the factor of {self.m:,} equations would take {needed / 2**30:.1f} GiB, but "
                f"{n_bytes / 2**30:.1f} GiB can be used: levels of different factors meet too widely to be "
                "eliminated one after another. Raise Control(memory_limit=...) if the machine has more, or fit a "
                "part of the levels"
            )
        if (seconds := PER_MULTIPLICATION * multiplications(counts)) > reach:
            raise OutOfReach(f"an evaluation by a sparse factor would take {seconds:.2g} s")
        place = np.empty(self.m, np.int64)
        place[perm] = np.arange(self.m)
        self.place = place
        r, c = place[rows], place[columns]
        ptr, idx, self.order = lower_rows(self.m, np.maximum(r, c), np.minimum(r, c))
        self.kernel = SupernodalCholesky(ptr, idx, threads)
        self.seconds = float(self.kernel.tree.seconds)

    def refactor(self, values: Any) -> float:
        """Factor other values (nnz,), in the order of the entries given, or a symmetric sparse matrix of the pattern.

        Returns
        -------
        float
            The log-determinant.

        Raises
        ------
        NumericalError
            Not positive definite.
        """
        if sp.issparse(values):
            values = sp.tril(values).tocoo().data
        return self.kernel.refactor(np.ascontiguousarray(values[self.order]))

    def solve(self, rhs: Array, rough: bool = False) -> Array:
        """Solutions (m, k) of right-hand sides (m, k); those that may be ``rough`` are exact as well."""
        out = self.kernel.solve(np.ascontiguousarray(rhs[self.perm].T)).T
        return np.ascontiguousarray(out[self.place])

    def inverse(self) -> Array:
        """Entries (nnz,) of the inverse on the pattern, in the order given; the factor is gone afterwards."""
        out = np.empty(len(self.order))
        out[self.order] = self.kernel.selected_inverse()
        return out

    def inverse_diagonal(self) -> Array:
        """(m,) diagonal of the inverse; the factor is gone afterwards."""
        rows, columns = self.given
        on = rows == columns
        out = np.empty(self.m)
        out[rows[on]] = self.inverse()[on]
        return out
