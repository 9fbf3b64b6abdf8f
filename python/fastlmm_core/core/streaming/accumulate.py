"""Cross-products from rows that come in batches, in any order, and are let go of.

    Accumulator.add(batch)    .merge(other)    .finish() -> StreamedProducts, Responses: what `CrossProducts` is made of

Sums are taken of columns less a shift, the means of the first batch, wherever X or a term has a column of ones to take
the shift back: [X y] = D S and z = d S_z with S the identity but for one row, exact algebra. R of the rows of D, and of
each term's d, is updated batch by batch, by Cholesky of [R; batch]'[R; batch] where that is accurate and by QR
elsewhere, as in memory. `finish` has from it what `condition_columns` and `condition_term` have from the rows, and
carries the sums into conditioned coordinates:

    E = [Q e] = D M,  z T = d K,  blocks K'AK,  sums K'(d'WD)M,  cells K_g'P K_h

Cells of two factors come from the rows' codes, which are kept, 4 bytes a row and factor (and 8 a column that varies
within levels), for as long as they are fewer than four times the cells; then the rows collapse into cells and are let
go of. One factor alone keeps nothing a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import as_floats
from fastlmm_core.core.conditioning import CHUNK, GRAM_TOLERANCE, LARGEST, SMALLEST, positive_diagonal, qr_triangle
from fastlmm_core.core.level_sums import LevelSums
from fastlmm_core.core.products import Responses
from fastlmm_core.core.streaming.row_store import RowStore
from fastlmm_core.core.streaming.streamed import StreamedProducts, block_diagonal, conditioned
from fastlmm_core.core.terms import MAX_LEVELS, checked_codes, factor_index
from fastlmm_core.errors import DataError, ModelError, UnitError

__all__ = ["Accumulator", "BatchTerm"]

Array = NDArray[np.float64]
Codes = NDArray[np.int32]


@dataclass(frozen=True)
class BatchTerm:
    """A random-effects term of rows that come in batches.

    Attributes
    ----------
    factor : int
        Which of the batches' codes are its levels.
    n_columns : int
        Columns of its z; a batch has None for a single column of ones.
    ones : bool
        Whether its first column is one in every row; others are centred then while they are added up.
    cov : {"us", "diag"}
    """

    factor: int
    n_columns: int = 1
    ones: bool = True
    cov: str = "us"

    @property
    def n_theta(self) -> int:
        """Number of covariance parameters."""
        return len(self.index())

    def index(self) -> list[tuple[int, int]]:
        """As `Term.index`."""
        return factor_index(self.n_columns, self.cov)


@dataclass(eq=False)
class Origin:
    """What is taken off the columns before they are added up: zeros where there is no column of ones."""

    dense: Array  # (p + 1,) of X and y
    terms: list[Array] = field(default_factory=list)  # (l,) each


class Accumulator:
    """Adds up what a fit needs of rows that come in batches.

    Parameters
    ----------
    terms : sequence of BatchTerm
    n_fixed : int
        Columns p of X.
    intercept : int, optional
        Column of X that is one in every row. Columns and y are centred then while they are added up, so that the
        answer does not depend on their origins; without it they are taken as they are.
    names : sequence of str, optional
        Of the columns of X, for messages.
    keep_rows : bool
        Keep the codes of the rows of several factors however many they are, as the iterative engine needs them.
    memory : int, optional
        Bytes for the rows of several factors, half of which is for their codes and half for a copy in the order that
        the iterative engine takes; what is beyond goes into temporary files. Half of what is free when it is left out.

    Notes
    -----
    Memory: sums, q l (l + p + 1) numbers a factor of q levels and l columns; with several factors also the rows' codes
    or cells, see the module. A fit of rows in files has the bits of one of rows in memory. Pickles have the rows in
    them. Numbers of rows a level and of rows a cell, where there are no weights, are the same to
    the bit for any order and size of batches; everything else is to rounding, as the origin comes from the first batch.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlmm_core.core import Accumulator, BatchTerm, StreamedModel
    >>> rng = np.random.default_rng(1)
    >>> total = Accumulator([BatchTerm(0)], n_fixed=1, intercept=0)
    >>> for _ in range(3):
    ...     g = rng.integers(0, 10, 200)
    ...     total.add(g * 0.1 + rng.normal(size=200), np.ones((200, 1)), [g])
    >>> StreamedModel(total).fit().n
    600
    """

    def __init__(
        self,
        terms: Sequence[BatchTerm],
        n_fixed: int,
        intercept: int | None = None,
        names: Sequence[str] | None = None,
        *,
        keep_rows: bool = False,
        memory: int | None = None,
    ) -> None:
        if not terms:
            raise ModelError("a mixed model needs at least one random-effects term")
        self.terms, self.p, self.intercept = tuple(terms), int(n_fixed), intercept
        self.names = tuple(names) if names is not None else tuple(f"column {j} of X" for j in range(self.p))
        n_factors = 1 + max(t.factor for t in terms)
        self.members = [[k for k, t in enumerate(terms) if t.factor == f] for f in range(n_factors)]
        if not all(self.members):
            raise ModelError("a factor of the batches has no term")
        widths = [sum(terms[k].n_columns for k in member) for member in self.members]
        self.sums = LevelSums(widths, self.p + 1, [0] * n_factors)
        self.store = RowStore(widths, keep_rows, memory) if n_factors > 1 else None
        self.n, self.n_weighted = 0, 0
        self.weight_sum, self.log_weight_sum = 0.0, 0.0
        self.origin: Origin | None = None
        self.r = np.zeros((0, self.p + 1))  # of the weighted rows of D
        self.plain = np.zeros((0, self.p))  # of those of X without weights, where there are any
        self.of_terms = [np.zeros((0, t.n_columns)) for t in terms]

    @property
    def n_levels(self) -> tuple[int, ...]:
        """Levels of each factor so far: the largest code plus one."""
        return tuple(self.sums.levels)

    def add(
        self,
        y: ArrayLike,
        X: ArrayLike,
        codes: Sequence[ArrayLike],
        z: Sequence[ArrayLike | None] | None = None,
        *,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
    ) -> None:
        """Add rows.

        Parameters
        ----------
        y : (n,)
        X : (n, p)
        codes : sequence of (n,) integers
            Level of each row, from zero, one array a factor. A level has one code in all batches.
        z : sequence of (n, l) or None, optional
            Columns of each term; None is one column of ones.
        weights, offset : (n,), optional

        Raises
        ------
        DataError
            Wrong lengths, values that are not finite, weights that are not positive.
        UnitError
            Squares overflow or vanish.
        MemoryLimitError
            Rows go into a temporary file, and its disk is full. Nothing of these rows has been added then.
        """
        if len(np.shape(y)) == 1 and len(np.shape(X)) == 2 and len(y) == len(X) == 0:  # type: ignore[arg-type]
            return
        dense, levels, columns, w = self._checked(y, X, codes, z, weights, offset)
        n = len(dense)
        if self.n and (w is not None) != bool(self.n_weighted):
            raise DataError("some batches have weights and others none")
        origin = self._first(dense, columns) if self.origin is None else self.origin
        dense = dense - origin.dense
        shifted = [None if c is None else c - o for c, o in zip(columns, origin.terms, strict=True)]
        root = None if w is None else np.sqrt(w)[:, None]
        r = updated(self.r, dense if root is None else dense * root, (*self.names, "y"))
        plain = self.plain if w is None else updated(self.plain, dense[:, : self.p], self.names)
        of_terms = list(self.of_terms)
        for k, column in enumerate(shifted):
            if column is not None:
                names = [f"column {j} of z of term {k}" for j in range(column.shape[1])]
                of_terms[k] = updated(of_terms[k], column if root is None else column * root, names)
        grouped = [self._side_by_side(member, shifted, n) for member in self.members]
        # nothing is changed before everything is known to be sound, and rows are kept where they have to be
        if self.store is not None:
            self.store.add(levels, grouped, w)
        self.origin, self.r, self.plain, self.of_terms = origin, r, plain, of_terms
        if w is not None:
            self.weight_sum += float(w.sum())
            self.log_weight_sum += float(np.log(w).sum())
            self.n_weighted += n
        for f, of_factor in enumerate(levels):
            self.sums.grow(f, int(of_factor.max()) + 1)
        self.sums.add(levels, grouped, w, dense)
        self.n += n

    def _checked(
        self, y: Any, X: Any, codes: Any, z: Any, weights: Any, offset: Any
    ) -> tuple[Array, list[Codes], list[Array | None], Array | None]:
        """[X y - offset] (n, p + 1), codes, columns a term and weights, sound."""
        answer, fixed = as_floats(y, "y"), as_floats(X, "X")
        n = len(answer) if answer.ndim == 1 else -1
        if n < 0 or fixed.shape != (n, self.p):
            raise DataError(f"y has shape {answer.shape} and X {fixed.shape}, but X has {self.p} columns")
        dense = np.empty((n, self.p + 1))
        dense[:, : self.p], dense[:, self.p] = fixed, answer
        if self.intercept is not None and not (fixed[:, self.intercept] == 1.0).all():
            raise DataError(f"{self.names[self.intercept]} is not one in every row, as intercept={self.intercept} says")
        if offset is not None:
            dense[:, self.p] -= of_length(as_floats(offset, "offset"), n, "offset")
        w = None
        if weights is not None:
            w = of_length(as_floats(weights, "weights"), n, "weights")
            if (w <= 0.0).any():
                raise DataError(f"weights must be positive: {int((w <= 0.0).sum())} of {n} are not")
        if len(codes) != len(self.members):
            raise DataError(f"{len(codes)} factors, but the terms have {len(self.members)}")
        levels = [of_length(checked_codes(c, MAX_LEVELS)[0], n, f"codes of factor {f}") for f, c in enumerate(codes)]
        given = [None] * len(self.terms) if z is None else list(z)
        if len(given) != len(self.terms):
            raise DataError(f"z has columns of {len(given)} terms, but there are {len(self.terms)}")
        columns: list[Array | None] = []
        for k, (term, value) in enumerate(zip(self.terms, given, strict=True)):
            if value is None and (term.n_columns > 1 or not term.ones):
                raise DataError(f"term {k} has no columns")
            column = None if value is None else as_floats(value, f"z of term {k}").reshape(n, -1)
            if column is not None and column.shape[1] != term.n_columns:
                raise DataError(f"z of term {k} has {column.shape[1]} columns, not {term.n_columns}")
            if column is not None and term.ones and not (column[:, 0] == 1.0).all():
                raise DataError(f"column 0 of z of term {k} is not one in every row, as ones=True says")
            columns.append(None if term.ones and term.n_columns == 1 else column)
        return dense, levels, columns, w

    def _first(self, dense: Array, columns: Sequence[Array | None]) -> Origin:
        """The origin, from the first batch."""
        shift = np.zeros(self.p + 1)
        if self.intercept is not None:
            shift = dense.mean(axis=0)
            shift[self.intercept] = 0.0
        of_terms = []
        for term, column in zip(self.terms, columns, strict=True):
            own = np.zeros(term.n_columns)
            if column is not None and term.ones:
                own = column.mean(axis=0)
                own[0] = 0.0
            of_terms.append(own)
        return Origin(shift, of_terms)

    def _side_by_side(self, member: Sequence[int], columns: Sequence[Array | None], n: int) -> Array | None:
        """Columns of a factor's terms (n, l); None where they are one column of ones."""
        parts = [columns[k] for k in member]
        if len(parts) == 1:
            return None if parts[0] is None else np.ascontiguousarray(parts[0])
        return np.column_stack([np.ones(n) if part is None else part for part in parts])

    def change_of(self, other: Origin) -> tuple[Array, list[Array]]:
        """C and C_z with the own columns D = D_other C, d = d_other C_z."""
        assert self.origin is not None
        dense = unit_row(self.intercept, other.dense - self.origin.dense)
        of_terms = [
            unit_row(0 if term.ones else None, theirs - mine)
            for term, theirs, mine in zip(self.terms, other.terms, self.origin.terms, strict=True)
        ]
        return dense, of_terms

    def merge(self, other: Accumulator, places: Sequence[NDArray[np.integer] | None] | None = None) -> None:
        """Add what another has added up; the other is not changed.

        Parameters
        ----------
        other : Accumulator
            Of the same terms.
        places : sequence of (q,) integers or None, optional
            The own code of each of the other's levels, a factor; None where the codes are the same.

        Raises
        ------
        ModelError
            It is of other terms or columns.
        DataError
            One has weights and the other none.
        MemoryLimitError
            As of `add`: nothing of the other has been added then.
        """
        if (self.terms, self.p, self.intercept) != (other.terms, other.p, other.intercept):
            raise ModelError("accumulators of different terms or columns cannot be merged")
        if other.n == 0:
            return
        if self.n and bool(self.n_weighted) != bool(other.n_weighted):
            raise DataError("some batches have weights and others none")
        assert other.origin is not None
        if self.origin is None:
            self.origin = Origin(other.origin.dense.copy(), [o.copy() for o in other.origin.terms])
        change, of_terms = self.change_of(other.origin)
        maps = []
        for f, q in enumerate(other.n_levels):
            own = None if places is None else places[f]
            place = np.arange(q) if own is None else np.asarray(own, np.int64)
            if len(place) != q:
                raise DataError(f"{len(place)} places for {q} levels of factor {f}")
            maps.append(place)
        r, plain = updated(self.r, other.r @ change, (*self.names, "y")), self.plain
        if other.n_weighted:
            plain = updated(self.plain, other.plain @ change[: self.p, : self.p], self.names)
        columns = [
            updated(mine, theirs @ moved, [f"z of term {k}"] * theirs.shape[1])
            for k, (mine, theirs, moved) in enumerate(zip(self.of_terms, other.of_terms, of_terms, strict=True))
        ]
        grouped = [block_diagonal([of_terms[k] for k in member]) for member in self.members]
        # nothing is changed before everything is known to be sound, and rows are kept where they have to be
        if self.store is not None and other.store is not None:
            store = self.store.snapshot()
            store.merge(other.store, maps, grouped)
            self.store = store
        self.r, self.plain, self.of_terms = r, plain, columns
        for f, (matrix, place) in enumerate(zip(grouped, maps, strict=True)):
            self.sums.grow(f, int(place.max()) + 1)
            blocks, dense = other.sums.raw(f)
            self.sums.add_sums(f, place, matrix.T @ blocks @ matrix, matrix.T @ dense @ change)
        self.n, self.n_weighted = self.n + other.n, self.n_weighted + other.n_weighted
        self.weight_sum += other.weight_sum
        self.log_weight_sum += other.log_weight_sum

    def renumber(self, orders: Sequence[NDArray[np.integer]]) -> None:
        """Give each level the code that its factor's ``orders`` (q,) has for it, in place; batches to come as well."""
        given = [np.asarray(order, np.int32) for order in orders]
        if self.store is not None:
            self.store.renumber(given)
        for f, order in enumerate(given):
            self.sums.renumber(f, order)

    def reordered(self, order: Sequence[int]) -> Accumulator:
        """The same sums, shared, with the terms in another order, of which ``order`` has the places."""
        out = copy(self)
        out.terms = tuple(self.terms[k] for k in order)
        place = {k: new for new, k in enumerate(order)}
        out.members = [[place[k] for k in member] for member in self.members]
        out.of_terms = [self.of_terms[k] for k in order]
        if self.origin is not None:
            out.origin = Origin(self.origin.dense, [self.origin.terms[k] for k in order])
        return out

    def finish(
        self,
        orders: Sequence[NDArray[np.integer]] | None = None,
        *,
        held: Mapping[int, Sequence[int]] | None = None,
    ) -> tuple[StreamedProducts, Responses]:
        """What a fit takes; more batches can be added afterwards.

        Parameters
        ----------
        orders : sequence of (q,) integers, optional
            New code of each level, a factor: so that it does not depend on the order of the batches.
        held : mapping of term to columns, optional
            As in `DesignProducts`.

        Returns
        -------
        products : StreamedProducts
        response : Responses

        Raises
        ------
        ModelError
            No rows, more coefficients than rows, or a response that the fixed effects reproduce.
        NumericalError
            Columns so nearly dependent, or a response so near to their span, that sums have too few digits.
        """
        if self.origin is None:
            raise ModelError("no rows have been added")
        return conditioned(self, orders, held or {})


def of_length(values: Any, n: int, name: str) -> Any:
    """The array, (n,); DataError where it is not."""
    if values.shape != (n,):
        raise DataError(f"{name} has shape {values.shape}, but there are {n} rows")
    return values


def unit_row(row: int | None, values: Array) -> Array:
    """The identity with a row added to row ``row``."""
    out = np.eye(len(values))
    if row is not None:
        out[row] += values
    return out


def updated(r: Array, rows: Array, names: Sequence[str]) -> Array:
    """R of [r; rows], upper triangular (height, width), from an earlier R (height, width) and rows (n, width)."""
    width = rows.shape[1]
    if width == 0:
        return np.zeros((0, 0))
    with np.errstate(over="ignore", invalid="ignore"):  # said below
        gram = r.T @ r + rows.T @ rows
    squares = gram.diagonal()
    bad = (squares > 0.0) & ~((squares > SMALLEST**2) & (squares < LARGEST**2))
    bad |= (squares == 0.0) & (rows != 0.0).any(axis=0) if (squares == 0.0).any() else False
    if bad.any():
        j = int(np.flatnonzero(bad)[0])
        raise UnitError(names[j], float(np.abs(rows[:, j]).max()))
    scale = np.where(squares > 0.0, np.sqrt(squares), 1.0)
    try:
        found = np.linalg.cholesky(gram / np.outer(scale, scale)).T
        if found.diagonal().min() ** 2 > GRAM_TOLERANCE:
            return found * scale
    except np.linalg.LinAlgError:
        pass
    found = r / scale
    for s in range(0, len(rows), CHUNK):
        found = qr_triangle(np.vstack([found, rows[s : s + CHUNK] / scale]))
    return positive_diagonal(found) * scale if len(found) == width else found * scale
