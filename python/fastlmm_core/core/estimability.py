"""Which linear functions of the coefficients the data determine, where columns of X depend on one another.

With N a basis of the null space of X, the coefficients are determined up to N c for any c, so L beta is the same for
all of them if and only if L N = 0 (Searle 1971, section 5.4). Its value is then that of any solution, for one the
solution that has zeros in the place of the columns set aside: neither depends on which columns these were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["TOLERANCE", "NullSpace", "null_space"]

Array = NDArray[np.float64]

TOLERANCE = 1e-8
"""|L N| this much smaller than max(1, |L|) is zero, both in units of the columns' root mean squares."""


@dataclass(frozen=True, eq=False)
class NullSpace:
    """A basis of the null space of X (n, p).

    Attributes
    ----------
    basis : (p, d)
        N, with X N = 0: orthonormal in coordinates in which the columns of X have mean square one.
    scale : (p,)
        Root mean square of each column of X; one for a column of zeros.
    """

    basis: Array
    scale: Array

    def estimable(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Whether each row L (k, p) is a combination of the rows of X, so that L beta is determined.

        Parameters
        ----------
        rows : (k, p) or (p,)
            Over all columns of X, those set aside included.

        Returns
        -------
        (k,) bool
            |L N| <= 1e-8 max(1, |L|); False for a row that is not finite.
        """
        given = np.atleast_2d(np.asarray(rows, dtype=np.float64))
        with np.errstate(invalid="ignore"):
            outside = np.linalg.norm(given @ self.basis, axis=1)
            size = np.linalg.norm(given / self.scale, axis=1)
        return np.asarray(outside <= TOLERANCE * np.maximum(1.0, size)) & np.isfinite(size)


def null_space(r: Array, keep: NDArray[np.int64], n: int) -> NullSpace | None:
    """The null space of X from the factor of its QR; None where its columns are independent.

    Parameters
    ----------
    r : (k, p)
        R of X = Q R, all columns.
    keep : (rank,) int64
        Columns that are linearly independent and span the others.
    n : int
        Rows of X.
    """
    p = r.shape[1]
    if len(keep) == p:
        return None
    norms = np.linalg.norm(r, axis=0)
    scale = np.where(norms > 0.0, norms, np.sqrt(n))
    unit = r / scale
    dropped = np.setdiff1d(np.arange(p), keep)
    basis = np.zeros((p, len(dropped)))
    triangle = np.asarray(np.linalg.qr(unit[:, [*keep, *dropped]], mode="r"))
    rank = len(keep)
    if rank:
        from scipy.linalg import solve_triangular  # which takes longer to import than this package

        basis[keep] = -solve_triangular(triangle[:rank, :rank], triangle[:rank, rank:])
    basis[dropped] = np.eye(len(dropped))
    scale = scale / np.sqrt(n)
    return NullSpace(np.linalg.qr(basis)[0] / scale[:, None], scale)
