"""Coordinates in which the fit is invariant to the data's units and origins.

The columns of [X y] are replaced by (nearly) orthonormal ones, E = [X y] R^-1, and those of each term's z by z T with T
lower triangular, so that the term's Cholesky factor becomes T^-1 L and stays lower triangular: theta is mapped by a
matrix. Any invertible R and T give the same model; they only have to be well chosen, since the cross-products are then
taken from the transformed columns themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import ModelError

__all__ = ["CHUNK", "Conditioning", "columns_factor", "condition_fixed", "condition_term"]

CHUNK = 1 << 15
"""Rows handled at a time wherever a transformed copy of the columns is formed."""

RANK_TOLERANCE = 1e-10
"""A column is dependent when what earlier columns leave of it is this much smaller than itself."""

GRAM_TOLERANCE = 1e-6
"""Least squared pivot of the scaled Gram matrix for which its Cholesky factor is used instead of a QR."""

SPAN_TOLERANCE = 1e-4
"""A response whose residual on X is this much smaller than itself is replaced by that residual first."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Conditioning:
    """How [X y] was transformed: E = [X[:, keep] y] r^-1, rows weighted by w / weight_scale.

    Attributes
    ----------
    keep : (rank,) int64
        Columns of X that are linearly independent, the earliest ones.
    r : (rank + 1, rank + 1)
        Upper triangular.
    n_columns : int
        Columns of X as given.
    weight_scale : float
        Mean of the weights.
    log_weights : float
        Sum of log(w / weight_scale).
    shift : (rank,)
        Coefficients whose fit was taken off y beforehand; zero unless y is all but in the span of X.
    """

    keep: NDArray[np.int64]
    r: Array
    n_columns: int
    weight_scale: float
    log_weights: float
    shift: Array

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
            value += 2.0 * np.log(np.abs(np.diag(self.r)[:-1])).sum()
        return float(value)


def columns_factor(chunks: Callable[[], Iterator[Array]], width: int) -> Array:
    """Upper triangular R, with R'R the Gram matrix of a tall matrix given as row chunks.

    By Cholesky of the Gram matrix where that is accurate, by a chunked QR (R of [R; next chunk]) where it is not.
    """
    gram = np.zeros((width, width))
    for chunk in chunks():
        gram += chunk.T @ chunk
    norms = np.sqrt(np.diag(gram))
    scale = np.where(norms > 0, norms, 1.0)
    try:
        r = np.linalg.cholesky(gram / np.outer(scale, scale)).T
        if width == 0 or np.diag(r).min() ** 2 > GRAM_TOLERANCE:
            return r * scale
    except np.linalg.LinAlgError:
        pass
    r = np.zeros((0, width))
    for chunk in chunks():
        r = np.linalg.qr(np.vstack([r, chunk / scale]), mode="r")
    r = np.vstack([r, np.zeros((max(0, width - len(r)), width))])
    return r * np.where(np.diag(r) < 0, -1.0, 1.0)[:, None] * scale


def independent_columns(r: Array) -> NDArray[np.int64]:
    """Columns of an upper triangular R that do not depend on earlier ones, by modified Gram-Schmidt."""
    basis = np.zeros((r.shape[0], 0))
    keep = []
    for j in range(r.shape[1]):
        norm = np.linalg.norm(r[:, j])
        if norm == 0.0:
            continue
        v = r[:, j] / norm
        for _ in range(2):  # once more is enough (Kahan, Parlett)
            v = v - basis @ (basis.T @ v)
        left = np.linalg.norm(v)
        if left > RANK_TOLERANCE:
            keep.append(j)
            basis = np.column_stack([basis, v / left])
    return np.array(keep, np.int64)


def condition_fixed(
    y: Array, X: Array, root: Array | None, weight_scale: float, log_weights: float
) -> tuple[Conditioning, Array]:
    """Choose the independent columns of X and R for [X y].

    Parameters
    ----------
    y : (n,)
    X : (n, p)
    root : (n,) or None
        Square roots of the scaled weights.

    Returns
    -------
    Conditioning
    y : (n,)
        The response that R belongs to: as given, or its residual where rounding would eat the residual otherwise.

    Raises
    ------
    ModelError
        As many fixed effects as observations, or nothing left of y beside them.
    """
    n = len(y)
    keep, r = joint_factor(y, X, root)
    rank = len(keep)
    norm = np.linalg.norm(r[:, -1])
    shift = np.zeros(rank)
    if n <= rank:
        raise ModelError(f"{n} observations cannot determine {rank} fixed effects and a residual variance")
    # relative to y, rounding the n products x'beta leaves about this much of a response that X reproduces exactly
    nothing = 1e2 * np.finfo(float).eps * norm
    if nothing < r[-1, -1] < SPAN_TOLERANCE * norm:
        shift = np.linalg.solve(r[:rank, :rank], r[:rank, -1])
        fit = X[:, keep].astype(np.longdouble) @ shift.astype(np.longdouble)
        y = (y.astype(np.longdouble) - fit).astype(np.float64)
        _, r = joint_factor(y, X[:, keep], root)
    if not r[-1, -1] > nothing:
        raise ModelError("the response is constant, or the fixed effects reproduce it exactly: nothing is left to fit")
    return Conditioning(keep, r, X.shape[1], weight_scale, log_weights, shift), y


def joint_factor(y: Array, X: Array, root: Array | None) -> tuple[NDArray[np.int64], Array]:
    """Independent columns of X, and R of those columns with y behind them."""
    p = X.shape[1]

    def chunks() -> Iterator[Array]:
        for s in range(0, len(y), CHUNK):
            block = np.column_stack([X[s : s + CHUNK], y[s : s + CHUNK]])
            yield block if root is None else block * root[s : s + CHUNK, None]

    r = columns_factor(chunks, p + 1)
    norms = np.linalg.norm(r, axis=0)
    if (np.abs(np.diag(r))[:p] > 1e3 * RANK_TOLERANCE * norms[:p]).all():
        return np.arange(p, dtype=np.int64), r
    keep = independent_columns(r[:, :p])
    r = np.linalg.qr(r[:, np.append(keep, p)], mode="r")
    return keep, r * np.where(np.diag(r) < 0, -1.0, 1.0)[:, None]


def condition_term(z: Array, cov: str, root: Array | None) -> Array:
    """T (l, l) lower triangular such that the columns of z T have unit mean square, and are orthogonal under "us"."""
    n, l = z.shape

    def chunks() -> Iterator[Array]:
        for s in range(0, n, CHUNK):
            block = z[s : s + CHUNK, ::-1]
            yield block if root is None else block * root[s : s + CHUNK, None]

    reversed_r = columns_factor(chunks, l) / np.sqrt(n)
    norms = np.linalg.norm(reversed_r, axis=0)
    if cov == "us" and (np.diag(reversed_r) > RANK_TOLERANCE * norms).all():
        return np.linalg.inv(reversed_r)[::-1, ::-1]
    # a dependent or empty column leaves nothing to orthogonalise against: only the units are removed
    return np.diag(1.0 / np.where(norms > 0, norms, 1.0)[::-1])
