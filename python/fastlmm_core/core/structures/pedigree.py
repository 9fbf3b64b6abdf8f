"""Relationships between levels: pedigrees, and known precision or covariance matrices.

For a pedigree A = T diag(d) T' with T^-1 = I - (sires + dams) / 2, so that A^-1 = T^-T diag(1/d) T^-1 has the pattern
of parents and offspring (Henderson 1976; with inbreeding Quaas 1976), log|A| = sum log d. The Mendelian variances d
need the inbreeding coefficients F of the parents (Meuwissen and Luo 1992).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core._native.rows.pedigree import mendelian_variances
from fastlmm_core.core.structures.sparse_factor import SparseFactor
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.lazy import cached_property

__all__ = ["Relationship", "from_covariance", "from_parents", "from_precision"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

SYMMETRY = 1e-8
"""Asymmetry of a matrix, relative to its largest entry, that is taken for rounding."""


@dataclass(frozen=True, eq=False)
class Relationship:
    """Covariance A between the levels of a grouping factor, by its inverse.

    Attributes
    ----------
    levels : (q,) object
        Names of the levels, in the order of the matrices.
    precision : (q, q) sparse
        A^-1.
    logdet : float
        log|A|.
    inbreeding : (q,) or None
        F, for a pedigree: the diagonal of A is 1 + F.
    labelled : bool
        Whether the levels were named; else they are a grouping factor's own, in their order.
    """

    levels: NDArray[np.object_]
    precision: sp.csc_array
    logdet: float
    inbreeding: Array | None = None
    labelled: bool = True

    @property
    def names(self) -> NDArray[np.object_] | None:
        """The levels, where they were named."""
        return self.levels if self.labelled else None

    def __len__(self) -> int:
        return len(self.levels)

    def __repr__(self) -> str:
        return f"<Relationship of {len(self):,} levels, {self.precision.nnz:,} entries of the inverse>"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "factor"}

    @cached_property
    def factor(self) -> SparseFactor:
        """The precision's Cholesky factor."""
        found = SparseFactor(self.precision)
        found.refactor(self.precision)
        return found

    def times(self, columns: Array) -> Array:
        """A times columns (q, c)."""
        return self.factor.solve(columns)

    @cached_property
    def variances(self) -> Array:
        """(q,) diagonal of A."""
        if self.inbreeding is not None:
            return 1.0 + self.inbreeding
        factor = SparseFactor(self.precision)
        factor.refactor(self.precision)
        return factor.inverse_diagonal()


def from_parents(names: Sequence[Any], sire: Index, dam: Index) -> Relationship:
    """The relationship of a pedigree.

    Parameters
    ----------
    names : sequence (q,)
    sire, dam : (q,) int64
        Places of the parents among the names, -1 where unknown.

    Raises
    ------
    DataError
        An animal is its own ancestor.
    """
    order = parents_first(names, sire, dam)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    place = np.append(place, -1)
    s, d = place[sire[order]], place[dam[order]]
    inbreeding, mendelian = mendelian_variances(np.ascontiguousarray(s), np.ascontiguousarray(d))
    n = len(order)
    k = np.arange(n)
    rows, columns, values = [k], [k], [np.ones(n)]
    for parent in (s, d):
        known = np.flatnonzero(parent >= 0)
        rows.append(known)
        columns.append(parent[known])
        values.append(np.full(len(known), -0.5))
    T = sp.csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n)
    )  # a selfing adds up to -1
    precision = sp.csc_array(T.T @ sp.diags_array(1.0 / mendelian) @ T)
    labels = np.empty(n, object)
    labels[:] = [names[i] for i in order]
    return Relationship(labels, precision, float(np.log(mendelian).sum()), inbreeding)


def parents_first(names: Sequence[Any], sire: Index, dam: Index) -> Index:
    """An order (q,) in which parents stand before their offspring, by generations."""
    n = len(sire)
    if (np.arange(n) > np.maximum(sire, dam)).all():
        return np.arange(n)
    waiting, settled = np.ones(n, bool), []
    while waiting.any():
        held = waiting & (np.where(sire >= 0, waiting[sire], False) | np.where(dam >= 0, waiting[dam], False))
        if (held == waiting).all():
            raise DataError(f"the pedigree has a loop: {' → '.join(map(str, _loop(names, sire, dam, waiting)))}")
        settled.append(np.flatnonzero(waiting & ~held))
        waiting = held
    return np.concatenate(settled)


def _loop(names: Sequence[Any], sire: Index, dam: Index, waiting: NDArray[np.bool_]) -> list[Any]:
    """Names along a loop of parents among the animals `waiting`, the first one again at the end."""
    at = int(np.flatnonzero(waiting)[0])
    seen: dict[int, int] = {}
    path: list[int] = []
    while at not in seen:
        seen[at] = len(path)
        path.append(at)
        at = int(sire[at]) if sire[at] >= 0 and waiting[sire[at]] else int(dam[at])
    return [names[i] for i in [*path[seen[at] :], at]]


def from_precision(levels: Sequence[Any] | None, matrix: Any, name: str = "precision") -> Relationship:
    """A known precision matrix, dense or sparse, positive definite; its levels' names, if they have any.

    Raises
    ------
    DataError
        Not square, not symmetric, not finite.
    ModelError
        Not positive definite.
    """
    sparse = sp.csc_array(matrix, dtype=np.float64)
    sparse.sum_duplicates()
    labels = _checked(levels, sparse, name)
    factor = SparseFactor(sparse + sp.diags_array(np.zeros(sparse.shape[0])))
    try:
        logdet = factor.refactor(sparse)
    except ArithmeticError:
        raise ModelError(f"{name} is not positive definite") from None
    return Relationship(labels, sparse, -logdet, labelled=levels is not None)


def from_covariance(levels: Sequence[Any] | None, matrix: Any, name: str = "relmat") -> Relationship:
    """A known covariance matrix, such as a genomic relationship; inverted once.

    Raises
    ------
    DataError
        Not square, not symmetric, not finite.
    ModelError
        Not positive definite.
    """
    if sp.issparse(matrix):
        matrix = matrix.toarray()
    A = np.asarray(matrix, np.float64)
    labels = _checked(levels, A, name)
    values, vectors = np.linalg.eigh(0.5 * (A + A.T))
    if values[0] <= 1e-10 * values[-1]:
        raise ModelError(
            f"{name} is not positive definite (smallest eigenvalue {values[0]:.2g}): bend it, e.g. 0.99 G + 0.01 I"
        )
    inverse = (vectors / values) @ vectors.T
    precision = sp.csc_array(0.5 * (inverse + inverse.T))
    return Relationship(labels, precision, float(np.log(values).sum()), labelled=levels is not None)


def _checked(levels: Sequence[Any] | None, matrix: Any, name: str) -> NDArray[np.object_]:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise DataError(f"{name} has to be a square matrix, not one of shape {matrix.shape}")
    if levels is None:
        levels = range(matrix.shape[0])
    if matrix.shape[0] != len(levels):
        raise DataError(f"{name} has {matrix.shape[0]} rows for {len(levels)} levels")
    data = matrix.data if sp.issparse(matrix) else matrix
    if not np.isfinite(data).all():
        raise DataError(f"{name} has {int((~np.isfinite(data)).sum())} values that are not finite")
    largest = float(np.abs(data).max(initial=0.0))
    if float(abs(matrix - matrix.T).max()) > SYMMETRY * largest:
        raise DataError(f"{name} is not symmetric")
    labels = np.empty(len(levels), object)
    labels[:] = list(levels)
    if len({str(v) for v in labels}) < len(labels):
        raise DataError(f"{name} has a level twice")
    return labels
