"""Cross-products: all that a fit needs of the data, from one pass over the rows for the design and one for y."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.rows.columns import FEW, small_inverse, triangle_inverse
from fastlmm_core._native.rows.crossprod import nested_cells, pair_cells, sort_rows
from fastlmm_core._native.rows.responses import ResponseProducts
from fastlmm_core.core.arguments import as_response, check_finite
from fastlmm_core.core.conditioning import (
    CHUNK,
    LARGEST,
    SMALLEST,
    condition_columns,
    condition_term,
)
from fastlmm_core.core.identifiability import identify, is_spanned
from fastlmm_core.core.level_sums import LevelSums
from fastlmm_core.core.products import Cells, CrossProducts, DesignSums, Responses
from fastlmm_core.core.rows_at_hand import TableRows
from fastlmm_core.core.terms import Group, Term, check_design, group_terms
from fastlmm_core.core.theta import theta_map
from fastlmm_core.errors import ModelError, UnitError
from fastlmm_core.lazy import cached_property

__all__ = [
    "DesignProducts",
    "cross_products",
    "identified",
    "identified_products",
]

Array = NDArray[np.float64]

SPAN_TOLERANCE = 1e-4
"""A response whose residual on X is this much smaller than itself is residualised in extended precision."""

ONE = np.eye(1)
ONE.setflags(write=False)
"""T of a term that is a column of ones."""

KEEP_COLUMNS = 1 << 24
"""Conditioned fixed-effects columns are kept between responses up to this many numbers, else formed anew."""


class DesignProducts(DesignSums):
    """`DesignSums` of rows at hand: made once, completed by any response.

    Parameters
    ----------
    X : (n, p) or None
        Fixed-effects columns; dependent ones are set aside.
    terms : sequence of Term
    weights : (n,), optional
        Positive; the residual variance of row i is sigma^2 / weights[i].
    offset : (n,), optional
        Subtracted from every response.
    held : mapping of term to columns, optional
        Columns of terms that are to stay apart from the others; see `condition_term`.

    Raises
    ------
    DataError, ModelError
        See `check_design`.
    """

    def __init__(
        self,
        X: ArrayLike | None,
        terms: Sequence[Term],
        *,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        held: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        held = held or {}
        self.X, w, self.offset = check_design(X, terms, weights, offset)
        self.terms: tuple[Term, ...] = tuple(terms)
        self.n, self.n_columns = self.X.shape
        self.weight_scale, self.log_weights, root = 1.0, 0.0, None
        if w is not None:
            self.weight_scale = float(w.mean())
            if not SMALLEST < self.weight_scale < LARGEST:
                raise UnitError("weights", float(w.max()))
            w = w / self.weight_scale
            self.log_weights, root = float(np.log(w).sum()), np.sqrt(w)
        self.weights, self.weighted = w, w is not None
        self.keep, self.r, self.null_space = condition_columns(self.X, root)
        if self.n <= self.rank:
            raise ModelError(
                f"{self.n} observations cannot determine {self.rank} fixed effects and a residual variance"
            )
        self.inverse = triangle_inverse(self.r)
        self.log_det = 2.0 * sum(map(log, self.r.diagonal().tolist()))
        self.groups = group_terms(terms)
        self.transforms = tuple(
            ONE if term.z is None else condition_term(term.z, term.cov, root, held.get(k, ()), k)
            for k, term in enumerate(terms)
        )
        self.codes = [terms[group.terms[0]].codes for group in self.groups]
        self.columns = [group_columns(group, terms, self.transforms, self.n) for group in self.groups]
        self.theta_map = theta_map(terms, self.groups, self.transforms, self.weight_scale)
        self._kept_q: Array | None = None
        if self.n * self.rank <= KEEP_COLUMNS:
            self._kept_q = (self.X if self.rank == self.n_columns else self.X[:, self.keep]).dot(self.inverse)

        sums = LevelSums([g.n_columns for g in self.groups], self.rank, [g.n_levels for g in self.groups])
        self.xtx = np.zeros((self.rank, self.rank))
        for part in self.parts():
            q, v = self.q(part), None if w is None else w[part]
            self.xtx += q.T.dot(q if v is None else q * v[:, None])
            columns = [None if z is None else z[part] for z in self.columns]
            sums.add([codes[part] for codes in self.codes], columns, v, q)
        self.blocks, self.dense = sums.finish()
        basis = self.inverse
        if self.rank < self.n_columns:
            basis = np.zeros((self.n_columns, self.rank))
            basis[self.keep] = self.inverse
        levels = [group.n_levels for group in self.groups]
        metric = small_inverse(self.xtx) if self.rank <= FEW else np.asarray(np.linalg.inv(self.xtx), np.float64)
        self.rows = ResponseProducts(
            self.X, basis, self._kept_q, w, metric, self.codes, self.columns, levels, CHUNK, SPAN_TOLERANCE
        )

    @cached_property
    def pairs(self) -> dict[tuple[int, int], Cells]:
        """Cells of Z_g'WZ_h, g < h, as in `CrossProducts`: made when first asked for, since some engines need none."""
        out: dict[tuple[int, int], Cells] = {}
        w = self.weights
        for g, group in enumerate(self.groups[:-1]):
            order = None
            for h in range(g + 1, len(self.groups)):
                cells = nested_cells(self.codes[g], group.n_levels, self.columns[g], self.codes[h], self.columns[h], w)
                if cells is None:
                    order = sort_rows(self.codes[g], group.n_levels) if order is None else order
                    cells = pair_cells(
                        *order, self.columns[g], self.codes[h], self.groups[h].n_levels, self.columns[h], w
                    )
                out[g, h] = cells
        return out

    @property
    def at_hand(self) -> TableRows:
        """The rows."""
        return TableRows(self.codes, self.columns, self.weights)

    def parts(self) -> list[slice]:
        """Chunks of rows."""
        return [slice(s, min(s + CHUNK, self.n)) for s in range(0, self.n, CHUNK)]

    def q(self, part: slice) -> Array:
        """Conditioned fixed-effects columns of some rows."""
        if self._kept_q is not None:
            return self._kept_q[part]
        return self.X[part][:, self.keep] @ self.inverse

    def spans(self, g: int, o: int, direction: Array, size: float, left: float, reml: bool) -> bool:
        """See `DesignSums.spans`: from the rows."""
        return is_spanned(self, g, o, direction, size, reml)

    def fitted(self, beta: Array, b: Sequence[Array]) -> Array:
        """X beta + Z b + offset, (n,)."""
        out = self.X @ np.nan_to_num(beta)
        if self.offset is not None:
            out += self.offset
        for term, modes in zip(self.terms, b, strict=True):
            rows = modes[term.codes]
            out += rows[:, 0] if term.z is None else np.einsum("ij,ij->i", term.z, rows)
        return np.asarray(out)

    def responses(self, Y: Array, tolerant: bool = False) -> Responses:
        """Residualise responses on X, scale the residuals to norm one and take their cross-products.

        Parameters
        ----------
        Y : (n, k)
            The offset already subtracted.
        tolerant : bool
            Responses that cannot be fitted have a norm of NaN and products of zero, instead of an error.

        Raises
        ------
        DataError
            A value is not finite.
        UnitError
            Squares overflow or vanish.
        ModelError
            Nothing is left of a response beside X.
        """
        coefficients, sizes, norms, dense, xty, ordinary = self.rows(Y)
        shift = None
        if not ordinary:
            shift = np.zeros(coefficients.shape)
            check_finite(Y[:, 0] if Y.shape[1] == 1 else Y, "y")
            largest = np.abs(Y).max(axis=0)
            bad = (largest > LARGEST) | ((largest < SMALLEST) & (largest > 0.0))
            if bad.any() and not tolerant:
                raise UnitError("y", float(largest[bad][0]))
            near = ~bad & (norms <= SPAN_TOLERANCE * sizes)
            nothing = 1e2 * np.finfo(float).eps * sizes
            bad |= ~(norms > nothing)
            near &= ~bad
            if near.any() and (tolerant or not bad.any()):
                shift[:, near] = self.inverse @ coefficients[:, near]
                fit = self.X[:, self.keep].astype(np.longdouble) @ shift[:, near].astype(np.longdouble)
                rest = np.ascontiguousarray((Y[:, near].astype(np.longdouble) - fit).astype(np.float64))
                coefficients[:, near], _, norms[near], found, xty[:, near], _ = self.rows(rest)
                for target, part in zip(dense, found, strict=True):
                    target[:, near] = part
            bad |= ~(norms > nothing)
            if bad.any():
                if not tolerant:
                    raise ModelError(
                        "the response is constant, or the fixed effects reproduce it exactly: nothing is left to fit"
                    )
                norms[bad] = np.nan
                for target in (coefficients, xty, *dense):
                    target[:, bad] = 0.0
        return Responses(coefficients, shift, norms, dense, xty)

    def cross(self, y: ArrayLike) -> CrossProducts:
        """Cross-products of the design with a response (n,), whose offset is subtracted here."""
        return self.complete(self.response(y))

    def response(self, y: ArrayLike) -> Responses:
        """Conditioned cross-products of one response (n,), whose offset is subtracted here."""
        return self.responses(self.prepare(y)[:, None])

    def prepare(self, y: ArrayLike) -> Array:
        """A checked response less the offset."""
        response = as_response(y, self.n)
        return response if self.offset is None else response - self.offset


def identified_products(
    X: ArrayLike | None, terms: Sequence[Term], weights: ArrayLike | None, offset: ArrayLike | None, reml: bool
) -> DesignProducts:
    """A design's products, with what its criterion does not depend on held at zero."""

    def make(held: Mapping[int, Sequence[int]]) -> DesignProducts:
        return DesignProducts(X, terms, weights=weights, offset=offset, held=held)

    return identified(make, reml)


S = TypeVar("S", bound=DesignSums)


def identified(make: Callable[[Mapping[int, Sequence[int]]], S], reml: bool, noise: bool = True) -> S:
    """What ``make`` makes of the columns to be held, with what the criterion does not depend on held at zero."""
    products = make({})
    found = identify(products, reml, noise)
    if found is None:
        return products
    if any(products.terms[k].n_columns > 1 for k, _ in found.spanned):
        products = make(dict(found.spanned))
    products.unidentified = found
    products.theta_map = replace(products.theta_map, held=np.flatnonzero(found.held))
    return products


def cross_products(
    y: ArrayLike,
    X: ArrayLike | None,
    terms: Sequence[Term],
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
) -> CrossProducts:
    """Condition the problem and accumulate its cross-products.

    Parameters
    ----------
    y : (n,)
        Response.
    X, terms, weights, offset
        As in `DesignProducts`.

    Returns
    -------
    CrossProducts

    Raises
    ------
    DataError, ModelError
        See `check_design`, `as_response` and `DesignProducts.responses`.
    """
    response = as_response(y, None)
    fixed = np.empty((len(response), 0)) if X is None else X
    return DesignProducts(fixed, terms, weights=weights, offset=offset).cross(response)


def group_columns(group: Group, terms: Sequence[Term], transforms: Sequence[Array], n: int) -> Array | None:
    """Conditioned columns of a group, its terms side by side; None where they are one column of ones."""
    if group.n_columns == 1 and terms[group.terms[0]].z is None:
        return None
    out = np.empty((n, group.n_columns))
    for k, o in zip(group.terms, group.offsets, strict=True):
        z = terms[k].z
        if z is None:
            out[:, o] = 1.0
        else:
            np.matmul(z, transforms[k], out=out[:, o : o + z.shape[1]])
    return out
