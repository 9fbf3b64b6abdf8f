"""Known relationships between the levels of a grouping factor: by their precision, or by their covariance.

A precision may be intrinsic (Besag 1974): Q = D - W of a graph has rank q - c, c its connected components, and stands
for the covariance A = Q^+, in which the effects of each component sum to zero. With N (q, c) the components' indicators
over the roots of their sizes and E (q, c) one level of each, Q + E E' is positive definite with Q's pattern, and

    Q^+ = (I - N N')(Q + E E')^-1 (I - N N'),     log|Q|_+ = log|Q + E E'| + sum log size                          (1)

since a component's cofactors of Q are all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve_triangular

from fastlmm_core.core.structures.sparse_factor import SparseFactor
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.lazy import cached_property

__all__ = ["Known", "KnownCovariance", "Relationship", "from_covariance", "from_precision"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

SYMMETRY = 1e-8
"""Asymmetry of a matrix, relative to its largest entry, that is taken for rounding."""

ROUNDING = 1e-6
"""Negative eigenvalues of a covariance, relative to the largest, that single precision makes of zeros."""

SINGULAR = 1e-10
"""Smallest eigenvalue of a covariance, relative to the largest, that is inverted."""

BALANCE = 1e-10
"""Sums of an intrinsic precision's rows, relative to their diagonals, that are taken for zero."""


def with_c_ints(matrix: sp.sparray) -> sp.csc_array:
    """A sparse matrix by columns with indices of C's int, which is all that SuperLU takes in SciPy 1.15."""
    m = sp.csc_array(matrix)
    return sp.csc_array((m.data, m.indices.astype(np.intc), m.indptr.astype(np.intc)), shape=m.shape)


@dataclass(frozen=True, eq=False)
class Relationship:
    """Covariance A between the levels of a grouping factor, by its inverse.

    Attributes
    ----------
    levels : (q,) object
        Names of the levels, in the order of the matrices.
    precision : (q, q) sparse
        A^-1; Q of an intrinsic one.
    logdet : float
        log|A|; -log|Q|_+ of an intrinsic one.
    inbreeding : (q,) or None
        F, for a pedigree: the diagonal of A is 1 + F.
    labelled : bool
        Whether the levels were named; else they are a grouping factor's own, in their order.
    components : (q,) int64 or None
        Of an intrinsic precision: number of the connected component of each level.
    root : (q, q) sparse or None
        Of a pedigree: lower triangular, root'root = A^-1.
    """

    levels: NDArray[np.object_]
    precision: sp.csc_array
    logdet: float
    inbreeding: Array | None = None
    labelled: bool = True
    components: Index | None = None
    root: sp.csc_array | None = None

    @property
    def names(self) -> NDArray[np.object_] | None:
        """The levels, where they were named."""
        return self.levels if self.labelled else None

    def __len__(self) -> int:
        return len(self.levels)

    def __repr__(self) -> str:
        parts = "" if self.components is None else f" in {int(self.components.max()) + 1:,} connected parts"
        return f"<Relationship of {len(self):,} levels{parts}, {self.precision.nnz:,} entries of the inverse>"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("factor", "pinned")}

    @property
    def pins(self) -> Index:
        """The first level of each component, (c,)."""
        assert self.components is not None
        return np.unique(self.components, return_index=True)[1].astype(np.int64)

    @property
    def constraints(self) -> Array:
        """N (q, c), orthonormal; no columns unless intrinsic."""
        if self.components is None:
            return np.zeros((len(self), 0))
        return component_indicators(self.components)

    @cached_property
    def pinned(self) -> sp.csc_array:
        """A positive definite matrix on the precision's pattern: itself, or Q + E E'."""
        if self.components is None:
            return self.precision
        extra = np.zeros(len(self))
        extra[self.pins] = 1.0
        return sp.csc_array(self.precision + sp.diags_array(extra))

    @cached_property
    def factor(self) -> SparseFactor:
        """Cholesky factor of `pinned`."""
        found = SparseFactor(self.pinned)
        found.refactor(self.pinned)
        return found

    def times(self, columns: Array) -> Array:
        """A times columns (q, c); of a pedigree by two sweeps over the animals."""
        if self.root is not None:
            lower, upper = with_c_ints(self.root), with_c_ints(self.root.T)
            return np.asarray(spsolve_triangular(lower, spsolve_triangular(upper, columns, lower=False)))
        N = self.constraints
        out = self.factor.solve(columns - N @ (N.T @ columns))
        return np.asarray(out - N @ (N.T @ out))

    @cached_property
    def variances(self) -> Array:
        """(q,) diagonal of A."""
        if self.inbreeding is not None:
            return 1.0 + self.inbreeding
        N, factor = self.constraints, SparseFactor(self.pinned)
        factor.refactor(self.pinned)
        solved = factor.solve(N)
        out = factor.inverse_diagonal()  # not of `self.factor`, which would be gone
        out -= 2.0 * np.einsum("ij,ij->i", N, solved) - np.einsum("ij,jk,ik->i", N, N.T @ solved, N)
        return out if self.components is None else np.maximum(out, 0.0)


@dataclass(frozen=True, eq=False)
class KnownCovariance:
    """A dense covariance A between the levels of a grouping factor, positive semidefinite.

    Attributes
    ----------
    levels : (q,) object
    covariance : (q, q)
    labelled : bool
        As of `Relationship`.
    name : str
        What errors call it.
    """

    levels: NDArray[np.object_]
    covariance: Array
    labelled: bool = True
    name: str = "relmat"
    inbreeding: None = None
    components: None = None

    @property
    def names(self) -> NDArray[np.object_] | None:
        """The levels, where they were named."""
        return self.levels if self.labelled else None

    def __len__(self) -> int:
        return len(self.levels)

    def __repr__(self) -> str:
        return f"<KnownCovariance of {len(self):,} levels>"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "inverse"}

    @cached_property
    def inverse(self) -> Relationship:
        """By its precision, for models in which it cannot be rotated away.

        Raises
        ------
        ModelError
            It is singular.
        """
        with one_blas_thread():
            values, vectors = np.linalg.eigh(self.covariance)
            if values[0] <= SINGULAR * values[-1]:
                raise ModelError(
                    f"{self.name} is not positive definite (smallest eigenvalue {values[0]:.2g}), which only models "
                    "with one random intercept and nothing beside it can do with: bend it, e.g. 0.99 G + 0.01 I"
                )
            inverse = (vectors / values) @ vectors.T
        precision = sp.csc_array(0.5 * (inverse + inverse.T))
        return Relationship(self.levels, precision, float(np.log(values).sum()), labelled=self.labelled)

    def times(self, columns: Array) -> Array:
        """A times columns (q, c)."""
        return self.covariance @ columns

    @property
    def variances(self) -> Array:
        """(q,) diagonal of A."""
        return self.covariance.diagonal()


Known = Relationship | KnownCovariance


def component_indicators(components: Index) -> Array:
    """N (q, c): the components' indicators, over the roots of their sizes."""
    size = np.bincount(components)
    out = np.zeros((len(components), len(size)))
    out[np.arange(len(components)), components] = 1.0 / np.sqrt(size[components])
    return out


def intrinsic(levels: NDArray[np.object_], precision: sp.csc_array, labelled: bool = True) -> Relationship:
    """The relationship of Q = D - W: rows sum to zero, off-diagonal entries are not positive."""
    _, components = connected_components(precision, directed=False)
    out = Relationship(levels, precision, 0.0, None, labelled, components.astype(np.int64))
    logdet = SparseFactor(out.pinned).refactor(out.pinned) + float(np.log(np.bincount(components)).sum())
    return Relationship(levels, precision, -logdet, None, labelled, out.components)


def from_precision(levels: Sequence[Any] | None, matrix: Any, name: str = "precision") -> Relationship:
    """A known precision matrix, dense or sparse, positive definite or intrinsic; its levels' names, if they have any.

    Raises
    ------
    DataError
        Not square, not symmetric, not finite.
    ModelError
        Neither positive definite nor a graph's D - W.
    """
    sparse = sp.csc_array(matrix, dtype=np.float64)
    sparse.sum_duplicates()
    labels = _checked(levels, sparse, name)
    diagonal = sparse.diagonal()
    outside = sparse - sp.diags_array(diagonal)
    balanced = np.abs(np.asarray(sparse.sum(axis=1)).ravel()) <= BALANCE * diagonal
    if balanced.all() and (diagonal > 0.0).all() and (outside.data <= 0.0).all():
        outside = sp.csc_array(outside)
        outside.eliminate_zeros()
        return intrinsic(labels, sp.csc_array(sp.diags_array(diagonal) + outside), levels is not None)
    factor = SparseFactor(sparse + sp.diags_array(np.zeros(sparse.shape[0])))
    try:
        logdet = factor.refactor(sparse)
    except ArithmeticError:
        raise ModelError(
            f"{name} is not positive definite; a singular one is a graph's D - W, whose rows sum to zero, as "
            "neighbours(...) makes it"
        ) from None
    return Relationship(labels, sparse, -logdet, labelled=levels is not None)


def from_covariance(levels: Sequence[Any] | None, matrix: Any, name: str = "relmat") -> Known:
    """A known covariance matrix, such as a genomic relationship; families that are unrelated are inverted apart.

    Raises
    ------
    DataError
        Not square, not symmetric, not finite.
    ModelError
        Not positive semidefinite, or singular where there are several families.
    """
    given: Any = sp.csr_array(matrix, dtype=np.float64) if sp.issparse(matrix) else np.asarray(matrix, np.float64)
    labels = _checked(levels, given, name)
    whole = not sp.issparse(given) and bool(given.all())
    n_families, family = (1, np.zeros(len(labels))) if whole else connected_components(given, directed=False)
    if n_families == 1:
        A = np.asarray(given.toarray() if sp.issparse(given) else given)
        A = 0.5 * (A + A.T)
        if (negative := negative_eigenvalue(A)) is not None:
            raise ModelError(
                f"{name} is not positive definite (smallest eigenvalue {negative:.2g}): bend it, e.g. 0.99 G + 0.01 I"
            )
        return KnownCovariance(labels, A, levels is not None, name)
    return _by_families(
        labels, sp.csr_array(0.5 * (given + given.T)), family.astype(np.int64), name, levels is not None
    )


def _by_families(
    labels: NDArray[np.object_], A: sp.csr_array, family: Index, name: str, labelled: bool
) -> Relationship:
    """The relationship of a covariance whose levels are related within families (q,) only."""
    order = np.argsort(family, kind="stable")
    ends = np.cumsum(np.bincount(family))
    rows, columns, values, logdet = [], [], [], 0.0
    for members in np.split(order, ends[:-1]):
        block = A[members][:, members].toarray()
        found, vectors = np.linalg.eigh(block)
        if found[0] <= SINGULAR * found[-1]:
            raise ModelError(
                f"{name} is not positive definite (smallest eigenvalue {found[0]:.2g} among the {len(members)} levels "
                f"related to {str(labels[members[0]])!r}): bend it, e.g. 0.99 G + 0.01 I"
            )
        inverse = (vectors / found) @ vectors.T
        rows.append(np.repeat(members, len(members)))
        columns.append(np.tile(members, len(members)))
        values.append((0.5 * (inverse + inverse.T)).ravel())
        logdet += float(np.log(found).sum())
    place = np.concatenate(rows), np.concatenate(columns)
    return Relationship(labels, sp.csc_array((np.concatenate(values), place), shape=A.shape), logdet, labelled=labelled)


def negative_eigenvalue(A: Array) -> float | None:
    """The smallest eigenvalue of a symmetric matrix, where it is too negative to be a rounded zero."""
    with one_blas_thread():
        lifted = A.copy()  # a factor takes a fifth of the time of eigenvalues; by no more than the largest's share
        lifted[np.diag_indices(len(A))] += ROUNDING * float(A.diagonal().max(initial=0.0))
        try:
            np.linalg.cholesky(lifted)
        except np.linalg.LinAlgError:
            values = np.linalg.eigvalsh(A)
            return float(values[0]) if values[0] < -ROUNDING * values[-1] else None
    return None


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
