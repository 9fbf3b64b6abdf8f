"""From sums of rows that are gone to a fit: conditioned cross-products, the model, what it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import checked_flag
from fastlmm_core.core.conditioning import RANK_TOLERANCE, independent_columns, positive_diagonal, qr_triangle
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.criterion import Objective
from fastlmm_core.core.crossprod import SPAN_TOLERANCE, identified
from fastlmm_core.core.estimability import null_space
from fastlmm_core.core.estimates import CoreFit, estimates, minimise
from fastlmm_core.core.iterative import factored, iterate
from fastlmm_core.core.products import DesignSums, Responses
from fastlmm_core.core.square_root import NEAR_PERFECT
from fastlmm_core.core.terms import ordered_groups
from fastlmm_core.core.theta import theta_map
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.core.workspaces import Workspaces
from fastlmm_core.errors import ModelError, NumericalError, StreamedError
from fastlmm_core.lazy import cached_property

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastlmm_core.core.products import Cells
    from fastlmm_core.core.rows_at_hand import Piece, RowsAtHand
    from fastlmm_core.core.streaming.accumulate import Accumulator
    from fastlmm_core.core.streaming.row_store import RowStore

__all__ = ["StreamedFit", "StreamedModel", "StreamedProducts", "conditioned"]

Array = NDArray[np.float64]

LEAST_PIVOT = 1e-6
"""What earlier columns leave of a column of X, relative to its spread, below which sums have too few digits."""

SPANNED = 1e-13
"""Mean square that the fixed effects leave of a column, relative, below which sums say that it lies in their span."""


@dataclass(frozen=True)
class StreamedRows:
    """`RowsAtHand` of a store, in the order of a model's groups and in conditioned columns."""

    store: RowStore
    factors: Sequence[int]
    orders: Sequence[NDArray[np.int32]]
    moved: Sequence[bool]
    matrices: Sequence[Array]
    scale: float

    @property
    def n(self) -> int:
        """Rows, or cells."""
        return self.store.n_kept

    @property
    def varying(self) -> list[bool]:
        """See `RowsAtHand`."""
        kept = self.store.rows.varying
        return [not self.store.collapsed and kept[f] for f in self.factors]

    @property
    def weighted(self) -> bool:
        """See `RowsAtHand`."""
        return self.store.weighted

    @property
    def room(self) -> int:
        """See `RowsAtHand`."""
        return self.store.room

    def pieces(self) -> Iterator[Piece]:
        """See `RowsAtHand`."""
        for codes, columns, w in self.store.pieces():
            own = [self.orders[f][codes[f]] if self.moved[f] else codes[f] for f in self.factors]
            z = [None if (of := columns[f]) is None else of @ self.matrices[f] for f in self.factors]
            yield own, z, None if w is None else w / self.scale


class StreamedProducts(DesignSums):
    """`DesignSums` of rows that are gone; `conditioned` makes them.

    Attributes
    ----------
    plain : (p, p)
        R of X, without weights.
    """

    plain: Array

    def __init__(
        self,
        store: RowStore | None,
        factors: Sequence[int],
        orders: Sequence[NDArray[np.int64]],
        matrices: Sequence[Array],
    ) -> None:
        self._store, self._factors, self._matrices = store, tuple(factors), matrices
        self._orders = [np.asarray(order, np.int32) for order in orders]
        self._moved = [not np.array_equal(order, np.arange(len(order))) for order in orders]

    @property
    def has_rows(self) -> bool:
        """Whether codes are kept, which products by the row need."""
        return self._store is not None and self._store.has_rows

    @cached_property
    def pairs(self) -> dict[tuple[int, int], Cells]:
        """Cells of Z_g'WZ_h, g < h, as in `CrossProducts`."""
        out: dict[tuple[int, int], Cells] = {}
        sizes = [len(order) for order in self._orders]
        for a, g in enumerate(self._factors):
            for b, h in enumerate(self._factors[a + 1 :], a + 1):
                assert self._store is not None
                ptr, idx, val = self._store.pair(g, h, self._orders, sizes)
                left, right = self._matrices[g], self._matrices[h]
                out[a, b] = ptr, idx, np.ascontiguousarray(left.T @ val @ right) / self.weight_scale
        return out

    @property
    def at_hand(self) -> RowsAtHand:
        """Rows that a model of several factors has kept, or the cells that stand for them."""
        if not self.has_rows:
            raise StreamedError()
        assert self._store is not None
        return StreamedRows(self._store, self._factors, self._orders, self._moved, self._matrices, self.weight_scale)

    def spans(self, g: int, o: int, direction: Array, size: float, left: float, reml: bool) -> bool:
        """See `DesignSums.spans`: from the sums alone."""
        return left <= SPANNED * size

    def fitted(self, beta: Array, b: Sequence[Array]) -> NoReturn:
        """Not to be had."""
        raise StreamedError()


def conditioned(
    total: Accumulator, orders: Sequence[NDArray[np.integer]] | None, held: Mapping[int, Sequence[int]]
) -> tuple[StreamedProducts, Responses]:
    """Products and response of what an accumulator has; see `Accumulator.finish`."""
    assert total.origin is not None
    n, p = total.n, total.p
    scale = total.weight_sum / n if total.n_weighted else 1.0
    new_codes = [
        np.arange(q) if orders is None else np.asarray(orders[f], np.int64) for f, q in enumerate(total.n_levels)
    ]
    s = np.eye(p + 1)
    if total.intercept is not None:
        s[total.intercept] += total.origin.dense
    back, of_terms = s, []
    for term, own in zip(total.terms, total.origin.terms, strict=True):
        matrix = np.eye(term.n_columns)
        if term.ones:
            matrix[0] += own
        of_terms.append(matrix)
    keep, r, coefficients, norm, whole = fixed_part(total, back, scale)
    transforms = tuple(
        transform(total.of_terms[k] @ matrix, n * scale, term.cov, held.get(k, ()))
        if total.of_terms[k].size
        else np.eye(1)
        for k, (term, matrix) in enumerate(zip(total.terms, of_terms, strict=True))
    )
    groups = ordered_groups([(m, q) for m, q in zip(total.members, total.n_levels, strict=True)], total.terms)
    factors = [total.terms[group.terms[0]].factor for group in groups]
    matrices = [block_diagonal([of_terms[k] @ transforms[k] for k in member]) for member in total.members]
    out = StreamedProducts(None if total.store is None else total.store.snapshot(), factors, new_codes, matrices)
    out.n, out.n_columns, out.terms, out.groups, out.transforms = n, p, total.terms, groups, transforms
    out.keep, out.r, out.null_space = keep, r, null_space(whole, keep, n)
    out.inverse = np.asarray(np.linalg.inv(r))
    out.log_det = 2.0 * float(np.log(r.diagonal()).sum())
    out.weight_scale, out.weighted = scale, bool(total.n_weighted)
    out.log_weights = total.log_weight_sum - n * float(np.log(scale)) if total.n_weighted else 0.0
    out.theta_map = theta_map(total.terms, groups, transforms, scale)
    out.xtx = np.eye(len(keep))
    unweighted = total.plain if total.n_weighted else total.r[:, :p]
    out.plain = padded(qr_triangle(unweighted @ back[:p, :p]), p)
    # [X y] = D back, so [Q e] = D m
    to_q = np.zeros((p + 1, len(keep) + 1))
    to_q[:, :-1] = back[:, keep] @ out.inverse
    to_q[:, -1] = (back[:, p] - to_q[:, :-1] @ coefficients) / norm
    blocks, dense = [], []
    for group, f in zip(groups, factors, strict=True):
        a, sums = total.sums.raw(f)
        k = matrices[f]
        own = np.empty_like(a)
        own[new_codes[f]] = k.T @ a @ k / scale
        both = np.empty((len(sums), group.n_columns, len(keep) + 1))
        both[new_codes[f]] = k.T @ sums @ to_q / scale
        blocks.append(own)
        dense.append(both.reshape(group.size, -1))
    out.blocks = tuple(blocks)
    out.dense = tuple(np.ascontiguousarray(d[:, :-1]) for d in dense)
    response = Responses(
        coefficients[:, None],
        None,
        np.array([norm]),
        tuple(np.ascontiguousarray(d[:, -1:]) for d in dense),
        np.zeros((len(keep), 1)),
    )
    return out, response


def fixed_part(total: Accumulator, back: Array, scale: float) -> tuple[NDArray[np.int64], Array, Array, float, Array]:
    """Columns of X kept, their R, coefficients and norm of y's residual, R of all columns; for weights of mean one.

    Raises
    ------
    ModelError, NumericalError
        See `Accumulator.finish`.
    """
    p = total.p
    both = padded(qr_triangle(total.r @ back / np.sqrt(scale)), p + 1)
    whole = positive_diagonal(both[:p, :p])
    independent = (whole.diagonal() > 1e3 * RANK_TOLERANCE * np.linalg.norm(whole, axis=0)).all()
    keep = np.arange(p, dtype=np.int64) if independent else independent_columns(padded(total.r, p + 1)[:, :p])
    if total.n <= len(keep):
        raise ModelError(f"{total.n} observations cannot determine {len(keep)} fixed effects and a residual variance")
    spread = padded(qr_triangle(total.r[:, keep]), len(keep))
    left = np.abs(spread.diagonal()) / np.linalg.norm(spread, axis=0)
    if len(keep) and left.min() < LEAST_PIVOT:
        name = total.names[keep[int(np.argmin(left))]]
        raise NumericalError(
            f"{name} differs from a combination of other columns by {left.min():.1g} of itself, which sums over "
            "batches have too few digits for: leave it out, or fit a table that is in memory"
        )
    triangle = positive_diagonal(padded(qr_triangle(both[:, [*keep, p]]), len(keep) + 1))
    r, coefficients, norm = triangle[:-1, :-1], triangle[:-1, -1], float(triangle[-1, -1])
    size = float(np.linalg.norm(total.r[:, p])) / np.sqrt(scale)  # about the mean where X has a column of ones
    if not norm > 1e2 * np.finfo(float).eps * float(np.linalg.norm(triangle[:, -1])):
        raise ModelError("the response is constant, or the fixed effects reproduce it exactly: nothing is left to fit")
    if norm <= SPAN_TOLERANCE * size:
        raise NumericalError(
            f"the fixed effects leave {norm / size:.1g} of the response, which sums over batches have too few digits "
            "for: fit a table that is in memory"
        )
    return keep, r, coefficients, norm, whole


def padded(r: Array, width: int) -> Array:
    """An upper triangular R with rows of zeros up to a square."""
    return r if len(r) == width else np.vstack([r, np.zeros((width - len(r), r.shape[1]))])


def transform(r: Array, total: float, cov: str, held: Sequence[int]) -> Array:
    """`condition_term` from R of the columns, in their order; ``total`` is n times the weights' mean."""
    if len(held):
        kept = np.setdiff1d(np.arange(r.shape[1]), held)
        t = transform(r, total, "diag", ())
        t[np.ix_(kept, kept)] = transform(r[:, kept], total, cov, ())
        return t
    l = r.shape[1]
    reversed_r = positive_diagonal(padded(qr_triangle(r[:, ::-1]), l)) / np.sqrt(total)
    norms = np.linalg.norm(reversed_r, axis=0)
    if cov == "us" and (reversed_r.diagonal() > RANK_TOLERANCE * norms).all():
        return np.asarray(np.linalg.inv(reversed_r)[::-1, ::-1])
    return np.diag(1.0 / np.where(norms > 0, norms, 1.0)[::-1])


def block_diagonal(parts: Sequence[Array]) -> Array:
    """Square matrices along the diagonal."""
    size = sum(len(part) for part in parts)
    out, at = np.zeros((size, size)), 0
    for part in parts:
        out[at : at + len(part), at : at + len(part)] = part
        at += len(part)
    return out


class StreamedFit(CoreFit):
    """A fit of rows that are gone."""

    @property
    def fitted(self) -> NoReturn:
        """Not to be had."""
        raise StreamedError()


class StreamedModel:
    """A linear mixed model of rows that have been added up.

    Parameters
    ----------
    total : Accumulator
    orders : sequence of (q,) integers, optional
        As in `Accumulator.finish`.
    reml, control
        As in `Model`.

    Raises
    ------
    ModelError, NumericalError
        See `Accumulator.finish`.
    """

    def __init__(
        self,
        total: Accumulator,
        orders: Sequence[NDArray[np.integer]] | None = None,
        *,
        reml: bool = True,
        control: Control | None = None,
    ) -> None:
        self.control, self.reml = checked_control(control), checked_flag(reml)
        responses = []

        def make(held: Mapping[int, Sequence[int]]) -> StreamedProducts:
            products, response = total.finish(orders, held=held)
            responses.append(response)
            return products

        with one_blas_thread():
            self.products = identified(make, self.reml)
        self.response: Responses = responses[-1]
        self._workspaces = Workspaces(self.reml, self.control)

    def objective(self) -> Objective:
        """The criterion, in a workspace of its own."""
        return Objective(self.products.complete(self.response), self.reml, self.control)

    def fit(
        self,
        y: object = None,
        *,
        start: ArrayLike | None = None,
        on_evaluation: Callable[[int, Array, float, float, float], None] | None = None,
    ) -> CoreFit:
        """Fit the model.

        Parameters
        ----------
        y : object
            Not used: the response has been added up with the rows. It is here as the other models take one.
        start, on_evaluation
            As of `Model.fit`.

        Raises
        ------
        ModelError, MemoryLimitError
            The model, or the machine cannot support the fit.
        NumericalError
            The criterion cannot be evaluated at the start, or the residuals are so much smaller than the random effects
            that only the rows themselves have enough digits.
        """
        with one_blas_thread():
            objective, reason = factored(self.products, self.response, self._workspaces, self.control)
            if objective is None:
                return iterate(
                    self.products,
                    self.response,
                    reml=self.reml,
                    control=self.control,
                    start=start,
                    on_evaluation=on_evaluation,
                    reason=reason,
                )
            try:
                minimum = minimise(objective, start, on_evaluation)
                found = estimates(objective, *minimum, self.products, self.response, self._workspaces)
            finally:
                self._workspaces.give_back(objective)
            if found.residual_ratio < NEAR_PERFECT:
                raise NumericalError(
                    f"the residuals are {found.residual_ratio:.1g} of the response, which sums over batches have too "
                    "few digits for: fit a table that is in memory"
                )
            return StreamedFit(**{f.name: getattr(found, f.name) for f in fields(found)}).complete()
