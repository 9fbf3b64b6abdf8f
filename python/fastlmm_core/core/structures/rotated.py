"""One random intercept of a dense covariance between its levels: rotated, so that no evaluation sees a matrix.

With A_oo the covariance of the levels that have rows, D their sums of w z^2, H the rows' orthonormal level indicators
(W^1/2 Z = H D^1/2)

    W^1/2 Z A Z'W^1/2 = H K H',   K = D^1/2 A_oo D^1/2 = U diag(s) U'                                          (1)

so that with b = A_.o D^1/2 U diag(s)^-1/2 L u the mixed-model equations are those of independent effects u with
Z'WZ = diag(s): n^3 once, and O(n) an evaluation (Kang et al. 2008, EMMA; Lippert et al. 2011; Zhou and Stephens 2012).
Rows of one level are summed by H'; A may be singular, and levels without rows follow from A_.o. With
B = A_.o D^1/2 U diag(s)^-1/2 and T an inverse of the rotated equations

    Var(b^ - b) = sigma^2 L^2 (A - B (I - T) B')                                                                 (2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core.core.structures.equations import Equations, level_columns
from fastlmm_core.core.structures.relationship import KnownCovariance
from fastlmm_core.core.terms import Term

__all__ = ["RotatedEquations", "Rotation"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

NOTHING = 1e-12
"""Eigenvalues of K, relative to the largest, that are zero."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """Equation (1).

    Attributes
    ----------
    covariance : (q, q)
    observed : (k,) int64
        Levels that have rows.
    size : (k,)
        Roots of D.
    s, U : (m,), (k, m)
        Eigenvalues of K that are not zero, largest last, and their vectors.
    """

    covariance: Array
    observed: Index
    size: Array
    s: Array
    U: Array

    @classmethod
    def of(cls, Z: sp.csr_array, known: KnownCovariance) -> Rotation:
        """Of the columns (n, q) of the levels, the weights' roots in the rows."""
        squares = np.asarray(Z.multiply(Z).sum(axis=0)).ravel()
        observed = np.flatnonzero(squares)
        size = np.sqrt(squares[observed])
        K = known.covariance[np.ix_(observed, observed)] * size[:, None] * size
        s, U = sl.eigh(K, overwrite_a=True, check_finite=False, driver="evd")
        keep = s > NOTHING * max(s[-1], 0.0) if len(s) else np.zeros(0, bool)
        return cls(known.covariance, observed, size, s[keep], U[:, keep])

    def turned(self, columns: Array) -> Array:
        """B'Z'W^1/2 times columns, from Z'W^1/2 times them (q, c): (m, c)."""
        return np.asarray(np.sqrt(self.s)[:, None] * (self.U.T @ (columns[self.observed] / self.size[:, None])))

    def to_levels(self, u: Array) -> Array:
        """B u (q, c)."""
        inner = self.U @ (u / np.sqrt(self.s)[:, None])
        return np.asarray(self.covariance[:, self.observed] @ (self.size[:, None] * inner))

    def variances(self, T: Array) -> Array:
        """Diagonal (q,) of A - B (I - diag(T)) B'."""
        out = self.covariance.diagonal().copy()
        others = np.setdiff1d(np.arange(len(out)), self.observed)
        lost = (1.0 - T) * self.s
        out[self.observed] -= np.square(self.U) @ lost / np.square(self.size)
        if len(others):
            B = self.covariance[np.ix_(others, self.observed)] @ (self.size[:, None] * self.U)
            out[others] -= np.square(B) @ ((1.0 - T) / self.s)
        return np.maximum(out, 0.0)


class RotatedEquations(Equations):
    """`Equations` in the coordinates of a rotation.

    Parameters
    ----------
    rotation : Rotation
    term : Term
        The random intercept, or slope, as conditioned.
    root, Q, e, reml
        As of `Equations`.
    """

    def __init__(self, rotation: Rotation, term: Term, root: Array | None, Q: Array, e: Array, reml: bool) -> None:
        self.rotation, self.term = rotation, term
        stand_in = Term(np.zeros(len(Q), np.int32), n_levels=len(rotation.s))  # as many levels as the rotation has
        super().__init__([stand_in], [None], 0, root, Q, e, reml)

    def _products(self, root: Array | None, E: Array) -> Sequence[sp.csr_array]:
        self.Z, rotation = level_columns(self.term, root), self.rotation
        self.ZE, self.EE = rotation.turned(np.asarray(self.Z.T @ E)), E.T @ E
        self.C = sp.csr_array(sp.diags_array(rotation.s))
        return [sp.csr_array(sp.diags_array(np.sqrt(rotation.s)))]

    def images_of_rows(self, k: int, directions: Array, columns: Array) -> list[Array]:
        """As `Equations.images_of_rows`."""
        image = self.Z @ (self.rotation.covariance @ (self.Z.T @ columns))
        return [np.asarray(E[0, 0] * image) for E in directions]

    @property
    def of_effects(self) -> list[slice]:
        """As `Equations.of_effects`."""
        return [slice(0, len(self.rotation.covariance))]

    def of_levels(self, z: sp.csr_array) -> tuple[sp.csr_array, Array]:
        """As `Equations.of_levels`: z B, and the diagonal of z (A - B B') z'."""
        rotation = self.rotation
        near = z @ rotation.covariance
        zB = (near[:, rotation.observed] * rotation.size) @ rotation.U / np.sqrt(rotation.s)
        whole = np.asarray(z.multiply(near).sum(axis=1)).ravel()
        return sp.csr_array(zB), np.maximum(whole - np.square(zB).sum(axis=1), 0.0)

    def inverse_blocks(self, factors: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """As `Equations.inverse_blocks`, by (2)."""
        at = self.solve(factors)
        known = self.rotation.variances(self.factor.inverse())  # of a diagonal matrix
        BU = self.rotation.to_levels(at.U)
        joint = known + np.einsum("ij,jk,ik->i", BU, np.linalg.inv(at.D), BU)
        return [known[:, None, None]], [joint[:, None, None]]
