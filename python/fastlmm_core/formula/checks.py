"""What the data have to satisfy before a model is fitted to them: complete rows, sound values, enough of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core._native.rows.columns import all_finite, extent
from fastlmm_core.errors import DataError, FormulaError, FormulaWarning, ModelError, warn
from fastlmm_core.formula.frame import Numeric, Table, Variable
from fastlmm_core.formula.levels import Factor, Levels
from fastlmm_core.formula.names import names_in

__all__ = [
    "Rows",
    "check_finite",
    "check_sizes",
    "constant_response",
    "reading_notes",
    "refuse_undefined",
    "response_values",
    "sound_offset",
    "sound_response",
    "sound_weights",
    "sources_of",
    "used_rows",
    "warn_of_undefined",
]

Array = NDArray[np.float64]
Rows = NDArray[np.int64] | None  # positions of the rows used; None for all of them

FEW_NUMBERS = 1 << 12
"""Numbers up to which a loop takes less time than arrays of masks."""

OFFSET = "the offset"
"""What messages call the sum of all offsets."""


class GroupedTerm(Protocol):
    """The sizes of a random-effect term."""

    @property
    def group(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def level_set(self) -> Levels: ...


def used_rows(
    variables: Mapping[str, Variable], kept: NDArray[np.bool_] | None, weights: Array | None, n: int, na_action: str
) -> tuple[Rows, int, int]:
    """Positions of the rows used (None: all), how many are left out for a missing value, how many for a weight of 0."""
    if n == 0:
        raise DataError("the data have no rows")
    if kept is not None and not kept.any():
        raise DataError(f"subset keeps none of the {n} rows")
    n_zero, use = 0, kept
    if weights is not None and (zero := weights == 0.0).any():
        n_zero = int((zero if kept is None else zero & kept).sum())
        use = ~zero if kept is None else kept & ~zero
        if not use.any():
            raise DataError("weights are all zero")
    absent: NDArray[np.bool_] | None = None
    counts: dict[str, int] = {}
    for name, variable in variables.items():
        mask = variable.missing()
        if mask is None:
            continue
        if use is not None:
            mask = mask & use
        if count := int(mask.sum()):
            counts[name] = count
            absent = mask if absent is None else absent | mask
    where = ", ".join(f"{name} ({count})" for name, count in counts.items())
    if na_action == "raise" and counts:
        raise DataError(f'missing values in {where}; na_action="drop" leaves those rows out')
    n_missing = 0 if absent is None else int(absent.sum())
    if absent is not None:
        use = ~absent if use is None else use & ~absent
    if use is None or use.all():
        return None, 0, 0
    rows = np.flatnonzero(use)
    if len(rows) == 0:
        raise DataError(f"no row is complete: missing values in {where} of {n_missing} rows")
    return rows, n_missing, n_zero


def warn_of_undefined(
    variables: Mapping[str, Variable],
    table: Table,
    kept: NDArray[np.bool_] | None,
    offsets: Sequence[str] = (),
    outcome: str = "left out",
) -> None:
    """Say which computed variables have no value where their columns do, such as the logarithm of a negative number.

    Parameters
    ----------
    variables : mapping
        By what they are called: an expression, "the offset" where it is a sum of several.
    offsets : sequence of str
        The expressions of these.
    outcome : str
        What becomes of such rows.
    """
    for expr, variable in variables.items():
        texts = offsets if expr == OFFSET else [expr]
        sources = list(dict.fromkeys(name for text in texts for name in sources_of(text, table)))
        if n := undefined_rows(variable.missing(), sources, table, kept):
            rows, these = ("row", "it is") if n == 1 else ("rows", "they are")
            what = " and ".join(sorted(sources))
            warn(f"{expr} has no value in {n} {rows} where {what} has one: {these} {outcome}", FormulaWarning)


def refuse_undefined(
    expr: str, missing: NDArray[np.bool_], sources: Sequence[str], table: Table, kept: NDArray[np.bool_]
) -> None:
    """DataError where something computed has no value in rows that have its columns, ``sources``."""
    if n := undefined_rows(missing, sources, table, kept):
        rows, what = "row" if n == 1 else "rows", " and ".join(sorted(sources))
        raise DataError(
            f"{expr}: no value in {n} {rows} where {what} has one; leave such rows out with subset=, or make {what} "
            "missing there"
        )


def sources_of(expr: str, table: Table) -> list[str]:
    """Columns that a computed variable reads; none for a column itself."""
    if expr in table:
        return []
    try:
        return [name for name in names_in(expr, table.names) if name in table]
    except FormulaError:  # the offset, a group of several columns: no expression
        return []


def undefined_rows(
    missing: NDArray[np.bool_] | None, sources: Sequence[str], table: Table, kept: NDArray[np.bool_] | None
) -> int:
    """Rows in which something computed is missing, and none of the columns that it is computed from."""
    if missing is None or not sources or not missing.any():
        return 0
    mask = missing.copy() if kept is None else missing & kept
    for name in sources:
        own = table[name].missing()
        mask &= True if own is None else ~own
    return int(mask.sum())


def _is_boolean(variable: Variable) -> bool:
    return isinstance(variable, Factor) and all(isinstance(level, (bool, np.bool_)) for level in variable.levels)


def reading_notes(response: Variable, name: str, n_zero: int) -> tuple[str, ...]:
    """What a reader of the fit should know about how the data were read."""
    notes = []
    if _is_boolean(response):
        notes.append(f"the response {name} is true or false: true counts as 1, false as 0")
    if n_zero:
        notes.append(f"{n_zero} rows have weight zero and are left out")
    return tuple(notes)


def sound_response(variable: Variable, name: str, rows: Rows) -> Array:
    """The response (n,) of the rows used: numeric (or true and false, as 1 and 0), finite, not constant."""
    if isinstance(variable, Numeric) and variable.values.ndim == 1:
        y = np.array(variable.values if rows is None else variable.values[rows], dtype=np.float64)
        low, high = extent(y)
        if 0.0 < high - low < np.inf:
            return y
    y = response_values(variable, name, rows)
    if np.all(y == y[0]):
        raise constant_response(name, y)
    return y


def response_values(variable: Variable, name: str, rows: Rows) -> Array:
    """The response (n,) of the rows used: numeric (or true and false, as 1 and 0), finite."""
    if isinstance(variable, Factor):
        if not _is_boolean(variable):
            raise DataError(f"the response {name} is categorical, not numeric: it has {_no_number(variable)}")
        values = np.append(variable.levels.astype(np.float64), np.nan)[variable.codes]
    else:
        values = variable.values
    if values.ndim != 1:
        raise DataError(f"the response {name} has {values.shape[1]} columns, not one")
    values = values if rows is None else values[rows]
    y = np.array(values, dtype=np.float64)  # a copy: the design must not change with the user's table
    if count := int((~np.isfinite(y)).sum()):
        raise DataError(f"the response {name} is infinite in {count} rows")
    return y


def _no_number(factor: Factor) -> str:
    """A level that is no number; texts of numbers are told apart from what keeps a column from being numbers."""
    texts = [level for level in factor.levels if pd.isna(pd.to_numeric(level, errors="coerce"))]
    return repr((texts or factor.levels.tolist())[0])


def constant_response(name: str, y: Array) -> ModelError:
    """The error about a response without variation."""
    return ModelError(f"the response {name} is constant ({y[0]:g} in all {len(y)} rows)")


def check_finite(X: Array, names: Sequence[str], part: str) -> None:
    """Refuse infinite or undefined values in a model matrix, by column and count."""
    if X.size < FEW_NUMBERS and X.flags.c_contiguous and all_finite(X.reshape(-1)):
        return
    sound = np.isfinite(X)
    if not sound.all():
        counts = (~sound).sum(axis=0)
        where = ", ".join(f"{name} ({count} rows)" for name, count in zip(names, counts, strict=True) if count)
        raise DataError(f"infinite or undefined values in {part}: {where}")


def sound_weights(values: Array, rows: Rows) -> Array:
    """The weights (n,) of the rows used: finite and not negative."""
    weights = np.array(values if rows is None else values[rows])
    if count := int(np.isinf(weights).sum()):
        raise DataError(f"weights are infinite in {count} rows")
    if count := int((weights < 0).sum()):
        raise DataError(f"weights are negative in {count} rows")
    return weights


def sound_offset(values: Array, rows: Rows) -> Array:
    """The offset (n,) of the rows used: finite."""
    offset = np.array(values if rows is None else values[rows])
    if count := int(np.isinf(offset).sum()):
        raise DataError(f"the offset is infinite in {count} rows")
    return offset


def check_sizes(
    designs: Sequence[GroupedTerm],
    n: int,
    weights: Array | None = None,
    *,
    check: bool = True,
    residual: bool = True,
    structured: bool = False,
) -> None:
    """lme4's checks: more than one level and, beside a residual, fewer levels and fewer random effects than rows.

    Weights that differ tell the effect of a row from its residual; the last two are not made then unless `check`.
    Beside a `structured` residual counting effects tells nothing: what cannot be told is looked for in the model.
    """
    differ = weights is not None and bool(np.any(weights != weights[0]))
    advice = "; as the weights differ, Control(check_levels=False) fits it nevertheless" if differ else ""
    for term in designs:
        q, l = len(term.level_set), len(term.columns)
        if q < 2:
            raise ModelError(
                f"grouping factors must have more than one level: {term.group} has only {term.level_set.labels[0]!r} "
                f"in the {n} rows used"
            )
        if not residual or (differ and not check):
            continue
        if q >= n:
            raise ModelError(
                f"the grouping factor {term.group} has {q} levels for {n} rows: fewer levels than rows are needed to "
                f"tell its effects from the residuals{advice}"
            )
        if q * l >= n and not structured:
            raise ModelError(
                f"the term ({' + '.join(term.columns)} | {term.group}) has {q * l} random effects for {n} rows: fewer "
                f"than rows are needed to tell them from the residuals{advice}"
            )
