"""A sparse factor under constraints: M on the complement of N, where M alone may be singular.

M = M_s - E E', M_s positive definite and sparse, N'N = I. With B = [E N], F = M_s^-1 B and K = diag(I, 0)

    S = K - B'F,     log|M on N's complement| = log|M_s| + log|det S|,     M_N^+ = M_s^-1 + F S^-1 F'                (1)

which are the Schur complement and the inverse of [M_s, E, N; E', I, 0; N', 0, 0]: the first border takes E E' away
again, the second holds N'u = 0 (Rue and Held 2005, section 2.3.3, where M is positive definite itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.structures.probed_factor import ProbedFactor
from fastlmm_core.core.structures.sparse_factor import SparseFactor
from fastlmm_core.errors import NumericalError

__all__ = ["ConstrainedFactor"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]


class ConstrainedFactor:
    """What `SparseFactor` does, for M under constraints; values given are those of M_s.

    Parameters
    ----------
    inner : SparseFactor or ProbedFactor
    pins : (c,) int64
        Rows of the ones of E.
    N : (m, c)
        Orthonormal.
    """

    def __init__(self, inner: SparseFactor | ProbedFactor, pins: Index, N: Array) -> None:
        self.inner, self.c, self.seconds, self.exact = inner, len(pins), inner.seconds, inner.exact
        E = np.zeros_like(N)
        E[pins, np.arange(self.c)] = 1.0
        self.B = np.column_stack([E, N])
        self.F, self.S = np.empty_like(self.B), np.empty((2 * self.c, 2 * self.c))

    def refactor(self, values: Any) -> float:
        """As `SparseFactor.refactor`."""
        logdet = self.inner.refactor(values)
        self.F = self.inner.solve(self.B)
        S = -self.B.T @ self.F
        S[np.arange(self.c), np.arange(self.c)] += 1.0
        self.S = 0.5 * (S + S.T)
        sign, own = np.linalg.slogdet(self.S)
        if sign != (-1.0) ** self.c:
            raise NumericalError("the constrained equations are not positive definite")
        self.own = float(own)
        return logdet + self.own

    def solve(self, rhs: Array, rough: bool = False) -> Array:
        """As `SparseFactor.solve`."""
        free = self.inner.solve(rhs, rough)
        return np.asarray(free + self.F @ np.linalg.solve(self.S, self.B.T @ free))

    def traces(self, changes: Sequence[Array], blocks: int) -> Array:
        """As `ProbedFactor.traces`, of M_N^+; what the constraints add is exact."""
        assert isinstance(self.inner, ProbedFactor)
        (rows, columns), out = self.inner.given, self.inner.traces(changes, blocks)
        off = (rows != columns)[:, None]
        G = self.F @ np.linalg.inv(self.S)
        pairs = G[rows] * self.F[columns] + off * (G[columns] * self.F[rows])
        return np.asarray(out + np.array([float(change @ pairs.sum(axis=1)) for change in changes]))

    def inverse(self) -> Array:
        """As `SparseFactor.inverse`, of M_N^+."""
        rows, columns = self.inner.given
        out = self.inner.inverse()
        for left, right in zip((self.F @ np.linalg.inv(self.S)).T, self.F.T, strict=True):
            out += left[rows] * right[columns]
        return out
