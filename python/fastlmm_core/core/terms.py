"""Random-effects terms as arrays, and whether they make a design."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from numbers import Integral
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.arguments import as_floats, refuse_masked
from fastlmm_core.errors import DataError, EmptyLevelWarning, ModelError, no_such, warn
from fastlmm_core.records import quick

__all__ = [
    "Group",
    "Shaped",
    "Term",
    "check_design",
    "factor_index",
    "group_terms",
    "ordered_groups",
]

COVARIANCES = ("us", "diag")

MAX_LEVELS = 2**31 - 1
"""Codes are 32-bit numbers."""


@dataclass(frozen=True, eq=False)
class Term:
    """One random-effects term: levels of a grouping factor, the columns that vary between them, their covariance.

    Parameters
    ----------
    codes : (n,) integers
        Level of each row, 0 .. n_levels - 1.
    z : (n,) or (n, l) float, optional
        Columns of the term; None is a random intercept, one column of ones.
    cov : {"us", "diag"}
        Unstructured (l (l + 1) / 2 parameters) or independent columns (l parameters).
    n_levels : int, optional
        Number of levels; the largest code plus one when left out. Levels without rows are allowed.

    Raises
    ------
    DataError
        Codes out of range, a wrong length, a value that is not finite.
    ModelError
        A covariance that does not exist.

    Warns
    -----
    EmptyLevelWarning
        No row has code 0 and `n_levels` is left out, as where codes begin at one.

    Notes
    -----
    A term keeps arrays of its own, which cannot be written to: the caller's may change without harm. An array that is
    read-only and owns its data is kept as it is.
    """

    codes: NDArray[np.int32]
    z: NDArray[np.float64] | None = None
    cov: str = "us"
    n_levels: int | None = None
    n_columns: int = field(init=False)

    def __init__(
        self, codes: ArrayLike, z: ArrayLike | None = None, cov: str = "us", n_levels: int | None = None
    ) -> None:
        given, levels = checked_codes(codes, n_levels)
        if cov not in COVARIANCES:
            raise ModelError(no_such("covariance", cov, COVARIANCES))
        columns = None
        if z is not None:
            columns = as_floats(z, "z")
            columns = columns[:, None] if np.ndim(z) == 1 else columns
            if columns.ndim != 2 or columns.shape[0] != len(given) or columns.shape[1] == 0:
                raise DataError(f"z has shape {np.shape(z)}, but the term has {len(given)} rows")
            columns = frozen(columns, z)
        object.__setattr__(self, "codes", given)
        object.__setattr__(self, "z", columns)
        object.__setattr__(self, "cov", cov)
        object.__setattr__(self, "n_levels", levels)
        object.__setattr__(self, "n_columns", 1 if columns is None else columns.shape[1])

    @classmethod
    def sound(cls, codes: NDArray[np.int32], z: NDArray[np.float64] | None, n_levels: int) -> Term:
        """A term of arrays that have been checked and that nobody else writes to: they are kept, and made read-only.

        Codes (n,) lie below ``n_levels``, z (n, l) is finite. Arrays of other types or layouts are taken as by `Term`.
        """
        codes.setflags(write=False)
        kept = codes.dtype == np.int32 and codes.flags.c_contiguous
        if not kept or not (z is None or (z.ndim == 2 and z.dtype == np.float64 and z.flags.c_contiguous)):
            return cls(codes, z, n_levels=n_levels)
        out = object.__new__(cls)
        if z is not None:
            z.setflags(write=False)
        width = 1 if z is None else z.shape[1]
        out.__dict__.update(codes=codes, z=z, cov="us", n_levels=n_levels, n_columns=width)
        return out

    def __reduce__(self) -> tuple[type[Term], tuple[object, ...]]:
        return Term, (self.codes, self.z, self.cov, self.n_levels)  # copies are checked like any other

    @property
    def n_theta(self) -> int:
        """Number of covariance parameters."""
        return len(self.index())

    def index(self) -> list[tuple[int, int]]:
        """Row and column of the term's Cholesky factor that each parameter stands for: lower triangle by columns."""
        return factor_index(self.n_columns, self.cov)


def factor_index(l: int, cov: str) -> list[tuple[int, int]]:
    """Row and column of a Cholesky factor (l, l) that each parameter stands for: lower triangle by columns."""
    if cov == "diag":
        return [(j, j) for j in range(l)]
    return [(i, j) for j in range(l) for i in range(j, l)]


def frozen(array: NDArray, given: object) -> NDArray:
    """A read-only array: ``array`` itself where it is new or nobody can write to it, a copy where it is ``given``."""
    if not array.flags.writeable and array.base is None:
        return array
    out = array.copy() if np.may_share_memory(array, np.asarray(given)) else array
    out.setflags(write=False)
    return out


def checked_codes(codes: ArrayLike, n_levels: object) -> tuple[NDArray[np.int32], int]:
    """Codes as read-only int32, and the number of levels; see `Term`."""
    refuse_masked(codes, "codes")
    try:
        given = np.asarray(codes)
    except (TypeError, ValueError):
        raise DataError("codes must be a vector of integers, but its entries differ in length") from None
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise DataError(f"codes must be a vector of integers, not {given.dtype} with shape {given.shape}")
    if len(given) == 0:
        raise DataError("codes has no rows")
    low, high = int(given.min()), int(given.max())
    if n_levels is None:
        levels = high + 1
    elif isinstance(n_levels, bool) or not isinstance(n_levels, (Integral, np.integer)):
        raise DataError(f"n_levels must be a whole number, not {n_levels!r}")
    else:
        levels = int(n_levels)
    if low < 0:
        raise DataError(f"codes run from {low} to {high}, outside 0 to {max(levels, 1) - 1}: levels count from zero")
    if high > MAX_LEVELS or levels > MAX_LEVELS:
        raise DataError(
            f"codes run up to {high}, but levels are counted from 0 to at most {MAX_LEVELS - 1}: identifiers have to "
            "be coded first, for example by numpy.unique(ids, return_inverse=True)"
        )
    if high >= levels:
        raise DataError(f"codes run from {low} to {high}, outside 0 to {levels - 1}")
    if n_levels is None and low == 1:
        warn(
            f"no row has code 0: codes count from 0 to the number of levels less one, and these run from 1 to {high}. "
            "Subtract one, or give n_levels where an empty level is meant",
            EmptyLevelWarning,
        )
    return frozen(np.ascontiguousarray(given, dtype=np.int32), codes), levels


class Shaped(Protocol):
    """A term without its rows."""

    @property
    def n_columns(self) -> int:
        """Columns of z."""
        ...

    @property
    def cov(self) -> str:
        """Covariance of the columns."""
        ...

    @property
    def n_theta(self) -> int:
        """Number of covariance parameters."""
        ...

    def index(self) -> list[tuple[int, int]]:
        """As `Term.index`."""
        ...


@quick
@dataclass(frozen=True)
class Group:
    """Terms that share a grouping factor: one block of random effects a level, block-diagonal in the terms."""

    terms: tuple[int, ...]
    offsets: tuple[int, ...]
    n_levels: int
    n_columns: int

    @property
    def size(self) -> int:
        """Number of random effects."""
        return self.n_levels * self.n_columns


def same_levels(a: Term, b: Term) -> bool:
    """Whether two terms have the same grouping factor."""
    return a.n_levels == b.n_levels and (a.codes is b.codes or np.array_equal(a.codes, b.codes))


def group_terms(terms: Sequence[Term]) -> tuple[Group, ...]:
    """Merge terms on one grouping factor; the group with the most random effects (the leading one) comes first."""
    members: list[list[int]] = []
    for k, term in enumerate(terms):
        for group in members:
            if same_levels(terms[group[0]], term):
                group.append(k)
                break
        else:
            members.append([k])
    return ordered_groups([(member, int(terms[member[0]].n_levels or 0)) for member in members], terms)


def ordered_groups(members: Sequence[tuple[Sequence[int], int]], terms: Sequence[Shaped]) -> tuple[Group, ...]:
    """Groups from the terms on each factor and its number of levels, the one with the most random effects first."""
    groups = []
    for member, levels in members:
        *offsets, width = accumulate([terms[k].n_columns for k in member], initial=0)
        groups.append(Group(tuple(member), tuple(offsets), levels, width))
    return tuple(sorted(groups, key=lambda g: -g.size))


def checked_terms(terms: Sequence[Term]) -> None:
    """ModelError where the terms are not a sequence of at least one `Term`."""
    if isinstance(terms, Term) or not isinstance(terms, (Sequence, tuple)):
        raise ModelError(f"terms must be a list of Term, such as [Term(codes)], not {type(terms).__name__}")
    if len(terms) == 0:
        raise ModelError("a mixed model needs at least one random-effects term")
    for k, term in enumerate(terms):
        if not isinstance(term, Term):
            raise ModelError(
                f"terms must be a list of Term, such as [Term(codes)], but entry {k} is a {type(term).__name__}"
            )


def check_design(
    X: ArrayLike | None, terms: Sequence[Term], weights: ArrayLike | None, offset: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """X (n, p), weights (n,) and offset (n,) as float64 arrays of one length.

    Raises
    ------
    DataError
        Wrong lengths, values that are not finite, weights that are not positive.
    ModelError
        No term.
    """
    checked_terms(terms)
    fixed = np.empty((len(terms[0].codes), 0)) if X is None else as_floats(X, "X")
    n = len(fixed) if fixed.ndim else 0
    if fixed.ndim != 2 or (X is not None and np.ndim(X) == 1):
        raise DataError(f"X must be a matrix with a row an observation, not an array of shape {np.asarray(X).shape}")
    for k, term in enumerate(terms):
        if len(term.codes) != n:
            raise DataError(f"term {k} has {len(term.codes)} rows, but there are {n} observations")
    w = None
    if weights is not None:
        w = as_floats(weights, "weights")
        if w.shape != (n,):
            raise DataError(f"weights has shape {w.shape}, but there are {n} observations")
        if (w <= 0).any():
            raise DataError(f"weights must be positive: {int((w <= 0).sum())} of {n} are not")
    shift = None
    if offset is not None:
        shift = as_floats(offset, "offset")
        if shift.shape != (n,):
            raise DataError(f"offset has shape {shift.shape}, but there are {n} observations")
    return fixed, w, shift
