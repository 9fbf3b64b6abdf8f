"""A linear mixed model's data but for the response, as one value that can be cut by rows, by terms or by columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.control import Control
from fastlmm_core.core.criterion import Objective
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.model import Model
from fastlmm_core.core.products import CrossProducts
from fastlmm_core.core.terms import Term

__all__ = ["ModelArrays"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModelArrays:
    """Fixed-effects columns, random terms, weights and offset of the same rows.

    Attributes
    ----------
    X : (n, p)
    terms : tuple of Term
    weights, offset : (n,) or None
        As in `Model`, where all of it is checked.
    """

    X: Array
    terms: tuple[Term, ...]
    weights: Array | None = None
    offset: Array | None = None

    def rows(self, keep: NDArray[np.bool_] | NDArray[np.int64], *, all_levels: bool = True) -> ModelArrays:
        """The same model of some rows. Levels keep their numbers, terms on one grouping factor their common codes.

        Parameters
        ----------
        keep : (n,) bool or (k,) int
        all_levels : bool
            Without, levels that have none of these rows go, and those left are numbered anew in their order.
        """
        shared: dict[int, NDArray[np.int32]] = {}
        terms = []
        for term in self.terms:
            codes = shared.get(id(term.codes))
            if codes is None:
                codes = term.codes[keep]
                if not all_levels:
                    codes = np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int32)
                codes.setflags(write=False)  # a term keeps such an array as it is
                shared[id(term.codes)] = codes
            z = None if term.z is None else term.z[keep]
            terms.append(Term(codes, z, term.cov, term.n_levels if all_levels else None))
        weights, offset = (None if a is None else a[keep] for a in (self.weights, self.offset))
        return ModelArrays(self.X[keep], tuple(terms), weights, offset)

    def with_terms(self, terms: Sequence[Term]) -> ModelArrays:
        """The same rows with other random terms."""
        return replace(self, terms=tuple(terms))

    def with_weights(self, weights: Array | None) -> ModelArrays:
        """The same rows with other weights (n,)."""
        return replace(self, weights=weights)

    def with_columns(self, X: Array) -> ModelArrays:
        """The same rows with other fixed-effects columns (n, k)."""
        return replace(self, X=X)

    def without_columns(self, columns: slice | NDArray[np.int64]) -> ModelArrays:
        """The same rows without some of the fixed-effects columns."""
        return replace(self, X=np.delete(self.X, np.arange(self.X.shape[1])[columns], axis=1))

    def model(self, reml: bool = True, control: Control | None = None) -> Model:
        """The model, ready for any response."""
        return Model(self.X, self.terms, weights=self.weights, offset=self.offset, reml=reml, control=control)

    def design(self) -> DesignProducts:
        """The products of everything but the response, ready for any."""
        return DesignProducts(self.X, self.terms, weights=self.weights, offset=self.offset)

    def products(self, y: ArrayLike) -> CrossProducts:
        """The cross-products with a response (n,), whose offset is subtracted here."""
        return self.design().cross(y)

    def objective(self, y: ArrayLike, reml: bool = True, control: Control | None = None) -> Objective:
        """The criterion with a response (n,)."""
        return Objective(self.products(y), reml, control)
