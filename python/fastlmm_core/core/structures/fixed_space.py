"""The span of X and of sparse fixed effects: what it leaves of columns, and their coefficients on it.

The sparse effects S are projected out of X first, so that S'S is the only sparse matrix that is factored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.structures.equations import Equations
from fastlmm_core.core.terms import Term
from fastlmm_core.lazy import cached_property

__all__ = ["FixedSpace"]

Array = NDArray[np.float64]


class FixedSpace:
    """Fixed effects of rows times the roots of their weights.

    Parameters
    ----------
    sparse : sequence of Term
        Their columns must be independent.
    root : (n,) or None
        Square roots of the weights.
    X : (n, p)
        With the roots in it; its columns need be independent for all but `rest`.

    Attributes
    ----------
    rest : (n, p)
        What the sparse effects leave of X.
    """

    def __init__(self, sparse: Sequence[Term], root: Array | None, X: Array) -> None:
        self._equations: Equations | None = None
        if sparse:
            self._equations = Equations(sparse, (), len(sparse), root, X, np.ones(len(X)), True)
            self._equations.factor.refactor(self._equations.matrix(()))
        self.X, self.rest = X, self._without(X)

    def _on_sparse(self, columns: Array) -> Array:
        assert self._equations is not None
        return self._equations.factor.solve(np.ascontiguousarray(self._equations.Z.T @ columns))

    def _without(self, columns: Array) -> Array:
        if self._equations is None:
            return columns
        return np.asarray(columns - self._equations.Z @ self._on_sparse(columns))

    @cached_property
    def weights(self) -> Array:
        """(n, p), H with H'y the coefficients of X."""
        return np.asarray(np.linalg.solve(self.rest.T @ self.rest, self.rest.T).T)

    def left(self, columns: Array) -> Array:
        """What all fixed effects leave of columns (n, c)."""
        for _ in range(2):  # once more: rounding of the first pass
            columns = self._without(columns)
            columns = columns - self.rest @ (self.weights.T @ columns)
        return columns

    def sparse_coefficients(self, columns: Array) -> Array:
        """Coefficients (m, c) of the sparse effects' levels for columns (n, c)."""
        return self._on_sparse(columns - self.X @ (self.weights.T @ columns))
