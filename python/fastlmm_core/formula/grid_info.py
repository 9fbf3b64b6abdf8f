"""What a reference grid has to know of the fixed part's raw columns, after the table itself is gone.

X does not hold raw x under `log(x)` or `poly(x, 2)`, so means "at the average x" need the columns as they were: levels
and joint counts of the factors, mean, median and few distinct values of the covariates, over the rows used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.formula.frame import Numeric, Variable, moments
from fastlmm_core.formula.levels import Factor
from fastlmm_core.formula.names import coded_columns

__all__ = ["ColumnInfo", "GridInfo", "grid_info", "set_apart"]

KEPT_ROWS = 100_000
"""Columns of more rows are summarised at once rather than copied."""

LATER_ROWS = 10_000
"""The median of longer columns is not looked for, nor are the distinct values of one that has many at once."""

FEW_VALUES = 200
"""Distinct values of a covariate are kept up to this many."""

LOOK_AHEAD = 2_000
"""A long covariate with more than `FEW_VALUES` values among its first rows is not searched any further."""


@dataclass(frozen=True)
class ColumnInfo:
    """One raw column over the rows used.

    Attributes
    ----------
    name : str
    kind : {"factor", "number"}
        A number is a factor where the formula says `C(x)`.
    levels : tuple
        A factor's levels that occur, in order; a covariate's distinct values where they are few, else empty.
    ordered : bool
    n_distinct : int
        0 where a covariate has too many to count.
    mean, median, low, high : float
        NaN for text; the median also for long columns.
    moment : str
        The dtype of dates, times, periods and durations, which are numbers of days here; else empty.
    gaps : bool
        Whether it is missing in rows of the fit, as where the formula has `is.na(x)`; the figures are of the others.
    """

    name: str
    kind: str
    levels: tuple[Any, ...]
    ordered: bool = False
    n_distinct: int = 0
    mean: float = np.nan
    median: float = np.nan
    low: float = np.nan
    high: float = np.nan
    moment: str = ""
    gaps: bool = False


@dataclass(frozen=True)
class GridInfo:
    """The columns of the fixed part and the offsets, and how often the factors' levels occur together.

    Attributes
    ----------
    columns : dict of ColumnInfo
        In the formula's order; those of offsets last.
    offset_only : frozenset of str
        Columns that enter by an offset alone.
    counted : tuple of str
        Columns that `cells` has: the factors, and covariates with two distinct values.
    cells : (m, len(counted)) int64
        Combinations of their levels that occur, by position in `levels`.
    counts : (m,) int64
        Rows of each.
    """

    columns: Mapping[str, ColumnInfo]
    offset_only: frozenset[str]
    counted: tuple[str, ...]
    cells: NDArray[np.int64]
    counts: NDArray[np.int64]


def set_apart(variables: Mapping[str, Variable], rows: NDArray[np.int64] | None) -> dict[str, Variable]:
    """The rows used of each column, as copies: what the caller does to the table later does not reach them."""
    out: dict[str, Variable] = {}
    for name, variable in variables.items():
        own = _with_gaps(variable, rows) if isinstance(variable, Factor) else variable.take(rows)
        if isinstance(own, Factor):
            out[name] = Factor(np.array(own.codes), own.levels, own.ordered)
        else:
            # of dates only the dtype is asked for afterwards
            native = None if isinstance(variable, Factor) or moments(variable) is None else variable.native[:0]
            out[name] = Numeric(own.values if rows is not None else own.values.copy(), own.names, native)
    return out


def _with_gaps(factor: Factor, rows: NDArray[np.int64] | None) -> Factor:
    """`Factor.take` of rows some of which may be missing."""
    codes = factor.codes if rows is None else factor.codes[rows]
    there = np.flatnonzero(codes >= 0)
    if len(there) == len(codes):
        return factor.take(rows)
    own = factor.take(there if rows is None else rows[there])
    out = np.full(len(codes), -1, np.int32)
    out[there] = own.codes
    return Factor(out, own.levels, own.ordered)


def grid_info(
    variables: Mapping[str, Variable], categorical_calls: Iterable[str], offset_only: frozenset[str]
) -> GridInfo:
    """Summarise columns over the rows used.

    Parameters
    ----------
    variables : mapping
        The raw columns, unused levels dropped.
    categorical_calls : iterable of str
        Expressions of the fixed part that are factors, such as "C(x)".
    offset_only : frozenset of str
    """
    coded = {name for expr in categorical_calls for name in coded_columns(expr, variables)}
    columns: dict[str, ColumnInfo] = {}
    codes: dict[str, NDArray[np.integer[Any]]] = {}
    for name, variable in variables.items():
        if isinstance(variable, Factor):
            levels = tuple(variable.levels.tolist())
            gaps = bool((variable.codes < 0).any())
            columns[name] = ColumnInfo(name, "factor", levels, variable.ordered, len(levels), gaps=gaps)
            codes[name] = variable.codes
        else:
            info, its_codes = _number(name, variable.values, name in coded)
            columns[name] = info if variable.native is None else replace(info, moment=str(variable.native.dtype))
            if its_codes is not None and name not in offset_only:
                codes[name] = its_codes
    counted = tuple(codes)
    if any(columns[c].gaps for c in counted):
        whole = np.logical_and.reduce([codes[c] >= 0 for c in counted])
        codes = {name: of[whole] for name, of in codes.items()}
    cells, counts = _joint_counts([codes[c] for c in counted], [len(columns[c].levels) for c in counted])
    return GridInfo(columns, offset_only, counted, cells, counts)


def _number(name: str, values: NDArray[Any], coded: bool) -> tuple[ColumnInfo, NDArray[np.integer[Any]] | None]:
    """A numeric column's figures, and the codes of its values where it acts as a factor."""
    every, missing = values, np.isnan(values)
    gaps = bool(missing.any())
    values = values[~missing] if gaps and not missing.all() else values
    n = len(values)
    many = n > LATER_ROWS and not coded and len(pd.unique(values[:LOOK_AHEAD])) > FEW_VALUES
    distinct: NDArray[Any] = np.empty(0)
    codes = None
    if not many:
        distinct = np.sort(pd.unique(values))
        if coded or len(distinct) == 2:
            codes = np.where(missing, -1, np.searchsorted(distinct, every))
    few = coded or len(distinct) <= FEW_VALUES
    info = ColumnInfo(
        name,
        "factor" if coded else "number",
        tuple(distinct.tolist()) if few else (),
        False,
        len(distinct),
        float(values.mean()),
        float(np.median(values)) if n <= LATER_ROWS else np.nan,
        float(values.min()),
        float(values.max()),
        gaps=gaps,
    )
    return info, codes


def _joint_counts(
    codes: list[NDArray[np.integer[Any]]], sizes: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Combinations of codes that occur, (m, k), and the rows of each."""
    if not codes:
        return np.empty((1, 0), np.int64), np.ones(1, np.int64)
    key = np.zeros(len(codes[0]), np.int64)
    occur = np.zeros((1, 0), np.int64)
    for of_column, size in zip(codes, sizes, strict=True):
        key = key * size + of_column  # renumbered after each column, so the product of many sizes cannot overflow
        span = len(occur) * size
        if span <= 4 * len(key) + 1024:
            found = np.flatnonzero(np.bincount(key, minlength=span))
            place = np.zeros(span, np.int64)
            place[found] = np.arange(len(found))
            key = place[key]
        else:
            found, key = np.unique(key, return_inverse=True)
        first, second = np.divmod(found, size)
        occur = np.column_stack([occur[first], second])
    return occur, np.bincount(key, minlength=len(occur)).astype(np.int64)


class GridSource:
    """The `GridInfo` of a design: made at once from long columns, when asked for from short ones; pickles as itself."""

    def __init__(
        self,
        variables: Mapping[str, Variable],
        rows: NDArray[np.int64] | None,
        n: int,
        calls: list[str],
        offset_only: frozenset[str],
    ) -> None:
        self._info: GridInfo | None = None
        self._given = (set_apart(variables, rows), calls, offset_only)
        if n > KEPT_ROWS:
            self.info()

    def info(self) -> GridInfo:
        """The summary, made once."""
        if self._info is None:
            self._info = grid_info(*self._given)
            self._given = ({}, [], frozenset())
        return self._info

    def __getstate__(self) -> dict[str, Any]:
        return {"_info": self.info(), "_given": ({}, [], frozenset())}
