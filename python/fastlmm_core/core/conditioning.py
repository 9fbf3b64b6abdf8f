"""Coordinates in which the fit is invariant to the data's units and origins.

The independent columns of X are replaced by (nearly) orthonormal ones, Q = X r^-1, y by its residual on X, scaled to
norm one, and the columns of each term's z by z T with T lower triangular, so that the term's Cholesky factor becomes
T^-1 L and stays lower triangular: theta is mapped by a matrix. Any invertible r and T give the same model; they only
have to be well chosen, since the cross-products are then taken from the transformed columns themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.rows.columns import gram_factor, triangle_inverse
from fastlmm_core.core.estimability import NullSpace, null_space
from fastlmm_core.errors import ModelError, UnitError
from fastlmm_core.records import quick

__all__ = ["CHUNK", "Conditioning", "condition_columns", "condition_term", "independent_columns", "qr_triangle"]

CHUNK = 1 << 15
"""Rows handled at a time wherever a transformed copy of the columns is formed."""

LARGEST, SMALLEST = 1e145, 1e-145
"""Values beyond these have squares whose sums overflow, or vanish, in double precision."""

RANK_TOLERANCE = 1e-10
"""A column is dependent when what earlier columns leave of it is this much smaller than itself."""

FEW = 16
"""Dependent columns that are taken out one by one."""

BLOCK = 64
"""Columns that are freed together of those kept before them."""

FEW_COLUMNS, FEW_NUMBERS = 8, 2_000
"""Columns, and numbers in them, up to which a plain loop sums their Gram matrix quicker than BLAS is called."""

GRAM_TOLERANCE = 1e-6
"""Least squared pivot of the scaled Gram matrix for which its Cholesky factor is used instead of a QR."""

Array = NDArray[np.float64]


@quick
@dataclass(frozen=True)
class Conditioning:
    """How [X y] was transformed: [X[:, keep], y - X[:, keep] shift] = E r, rows weighted by w / weight_scale.

    Attributes
    ----------
    keep : (rank,) int64
        Columns of X that are linearly independent, the earliest ones.
    r : (rank + 1, rank + 1)
        Upper triangular; its last column holds the response's coefficients and the norm of its residual.
    n_columns : int
        Columns of X as given.
    weight_scale : float
        Mean of the weights.
    log_weights : float
        Sum of log(w / weight_scale).
    shift : (rank,)
        Coefficients whose fit was taken off y beforehand; zero unless y is all but in the span of X.
    null_space : NullSpace or None
        Of X; None where its columns are independent.
    """

    keep: NDArray[np.int64]
    r: Array
    n_columns: int
    weight_scale: float
    log_weights: float
    shift: Array
    null_space: NullSpace | None = None

    @property
    def rank(self) -> int:
        """Columns of X kept."""
        return len(self.keep)

    @property
    def y_scale(self) -> float:
        """Norm of the response's residual on X."""
        return float(self.r[-1, -1])

    def constant(self, nu: float, reml: bool) -> float:
        """What the conditioned criterion lacks of the user's."""
        value = 2.0 * nu * np.log(self.y_scale) - self.log_weights
        if reml:
            value += 2.0 * np.log(np.diag(self.r)[:-1]).sum()
        return float(value)


def columns_factor(chunks: Callable[[], Iterator[Array]], width: int, term: int | None) -> Array:
    """Upper triangular R, its diagonal not negative, with R'R the Gram matrix of a tall matrix given as row chunks.

    By Cholesky of the Gram matrix where that is accurate, by a chunked QR (R of [R; next chunk]) where it is not.
    ``term`` is the random term that the columns belong to, its last one first: -1 unknown; None for X.
    """
    gram = np.zeros((width, width))
    with np.errstate(over="ignore", invalid="ignore"):  # `check_units` says it
        for chunk in chunks():
            gram += chunk.T @ chunk
    squares = gram.diagonal()
    if width and not (squares.min() > SMALLEST**2 and squares.max() < LARGEST**2):
        check_units(chunks, term)
    norms = np.sqrt(squares)
    scale = np.where(norms > 0, norms, 1.0)
    try:
        r = np.linalg.cholesky(gram / np.outer(scale, scale)).T
        if width == 0 or r.diagonal().min() ** 2 > GRAM_TOLERANCE:
            return r * scale
    except np.linalg.LinAlgError:
        pass
    r = np.zeros((0, width))
    for chunk in chunks():
        r = qr_triangle(np.vstack([r, chunk / scale]))
    r = np.vstack([r, np.zeros((max(0, width - len(r)), width))])
    return positive_diagonal(r) * scale


def check_units(chunks: Callable[[], Iterator[Array]], term: int | None) -> None:
    """UnitError for a column whose squares overflow or vanish; one of zeros is fine."""
    largest = np.max([np.abs(chunk).max(axis=0) for chunk in chunks()], axis=0)
    for j in np.flatnonzero((largest > LARGEST) | ((largest < SMALLEST) & (largest > 0.0))):
        column = int(j) if term is None else len(largest) - 1 - int(j)
        known = term is None or term >= 0
        what = "X" if term is None else f"z of term {term}" if known else "z"
        raise UnitError(f"column {column} of {what}", float(largest[j]), (term, column) if known else None)


def qr_triangle(columns: Array) -> Array:
    """R of a QR factorisation."""
    return np.asarray(np.linalg.qr(columns, mode="r"))  # NumPy's types promise Q as well


def positive_diagonal(r: Array) -> Array:
    """R with the signs of its rows chosen so that the diagonal is not negative."""
    return r * np.where(r.diagonal() < 0, -1.0, 1.0)[:, None]


def independent_columns(r: Array) -> NDArray[np.int64]:
    """Columns of an upper triangular R that do not depend on earlier ones, by Gram-Schmidt in blocks of columns.

    A block is freed of what lies in the span of the columns kept before it by products of matrices, its columns of what
    lies in the span of one another one by one: 4 p^3 flops for p columns, nearly all in products.
    """
    height, p = r.shape
    basis, count = np.empty((min(height, p), height)), 0  # rows, so that the first ``count`` are contiguous
    keep: list[int] = []
    for start in range(0, p, BLOCK):
        norms = np.linalg.norm(r[:, start : start + BLOCK], axis=0)
        block = (r[:, start : start + BLOCK] / np.where(norms > 0.0, norms, 1.0)).T
        first = count
        for _ in range(2):  # once more is enough (Kahan, Parlett)
            block = block - (block @ basis[:first].T) @ basis[:first]
        for j in np.flatnonzero(norms > 0.0):
            v = block[j]
            for _ in range(2):
                v = v - (basis[first:count] @ v) @ basis[first:count]
            left = np.linalg.norm(v)
            if left > RANK_TOLERANCE and count < len(basis):
                basis[count] = v / left
                count += 1
                keep.append(start + int(j))
    return np.array(keep, np.int64)


def easy_factor(columns: Array, root: Array | None) -> Array | None:
    """As `columns_factor`, of a few columns that are far from dependent; None where it has to look."""
    if not 0 < columns.shape[1] <= FEW_COLUMNS or columns.size > FEW_NUMBERS:
        return None
    return gram_factor(columns, root, GRAM_TOLERANCE, SMALLEST**2, LARGEST**2)


def without_few(r: Array) -> tuple[NDArray[np.int64], Array] | None:
    """Columns of a square upper triangular R that do not depend on earlier ones, and their R; None where many do.

    A diagonal element is what earlier columns leave of its own. The first one that is nothing is taken out, and Givens
    rotations bring back the triangle: p^2 flops each.
    """
    from scipy.linalg import qr_delete  # which takes longer to import than this package

    keep = np.arange(len(r))
    identity = np.eye(len(r))
    norms = np.linalg.norm(r, axis=0)
    for _ in range(FEW + 1):
        nothing = np.flatnonzero(np.abs(r.diagonal()[: len(keep)]) <= RANK_TOLERANCE * norms[keep])
        if not len(nothing):
            return keep, np.asarray(r[: len(keep)], np.float64)
        _, r = qr_delete(identity, r, int(nothing[0]), which="col", check_finite=False)
        keep = np.delete(keep, nothing[0])
    return None


def row_chunks(columns: Array, root: Array | None) -> Callable[[], Iterator[Array]]:
    """Iterators over chunks of rows, scaled by ``root`` (n,) where it is given."""

    def chunks() -> Iterator[Array]:
        for s in range(0, len(columns), CHUNK):
            block = columns[s : s + CHUNK]
            yield block if root is None else block * root[s : s + CHUNK, None]

    return chunks


def condition_columns(X: Array, root: Array | None) -> tuple[NDArray[np.int64], Array, NullSpace | None]:
    """Independent columns of X and their R, and the null space of X.

    Parameters
    ----------
    X : (n, p)
    root : (n,) or None
        Square roots of the scaled weights.

    Returns
    -------
    keep : (rank,) int64
    r : (rank, rank) upper triangular, positive diagonal
    null_space : NullSpace or None
        None where all columns are independent.
    """
    p = X.shape[1]
    easy = easy_factor(X, root)
    if easy is not None:
        return np.arange(p, dtype=np.int64), easy, None
    r = columns_factor(row_chunks(X, root), p, None)
    if (r.diagonal() > 1e3 * RANK_TOLERANCE * np.linalg.norm(r, axis=0)).all():
        return np.arange(p, dtype=np.int64), r, None
    few = without_few(r)
    keep = independent_columns(r) if few is None else few[0]
    if len(keep) > len(X):  # rounding alone can tell so many apart
        raise ModelError(f"{len(X)} observations cannot determine the coefficients of {p} fixed-effects columns")
    if few is not None:
        keep, kept = few
        return keep, positive_diagonal(kept), null_space(r, keep, len(X))
    return keep, positive_diagonal(qr_triangle(r[:, keep])), null_space(r, keep, len(X))


def condition_term(z: Array, cov: str, root: Array | None, held: Sequence[int] = (), number: int = -1) -> Array:
    """T (l, l) lower triangular such that the columns of z T have unit mean square, and are orthogonal under "us".

    Columns ``held`` out of the model stay apart from the others, so that theirs are zeros in both coordinates.
    """
    if held:
        kept = np.setdiff1d(np.arange(z.shape[1]), held)
        t = condition_term(z, "diag", root, (), number)
        t[np.ix_(kept, kept)] = condition_term(np.ascontiguousarray(z[:, kept]), cov, root, (), number)
        return t
    easy = easy_factor(z[:, ::-1], root) if cov == "us" else None
    if easy is not None:
        return triangle_inverse(easy)[::-1, ::-1] * sqrt(len(z))
    reversed_r = columns_factor(row_chunks(z[:, ::-1], root), z.shape[1], number) / np.sqrt(len(z))
    norms = np.linalg.norm(reversed_r, axis=0)
    if cov == "us" and (reversed_r.diagonal() > RANK_TOLERANCE * norms).all():
        return np.linalg.inv(reversed_r)[::-1, ::-1]
    # a dependent or empty column leaves nothing to orthogonalise against: only the units are removed
    return np.diag(1.0 / np.where(norms > 0, norms, 1.0)[::-1])
