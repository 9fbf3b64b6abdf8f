"""What the data have to satisfy before a model is fitted to them: complete rows, sound values, enough of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.formula.frame import Variable
from fastlmm_core.formula.levels import Factor, Levels

__all__ = ["check_finite", "check_sizes", "complete_rows", "sound_offset", "sound_response", "sound_weights"]

Array = NDArray[np.float64]
Rows = NDArray[np.int64] | None  # positions of the rows used; None for all of them


class GroupedTerm(Protocol):
    """The sizes of a random-effect term."""

    @property
    def group(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def level_set(self) -> Levels: ...


def complete_rows(
    variables: Mapping[str, Variable], kept: NDArray[np.bool_] | None, n: int, na_action: str
) -> tuple[Rows, int]:
    """Positions of the rows used (None: all), and how many are left out for a missing value."""
    absent: NDArray[np.bool_] | None = None
    counts: dict[str, int] = {}
    for name, variable in variables.items():
        mask = variable.missing()
        if mask is None:
            continue
        if kept is not None:
            mask = mask & kept
        if count := int(mask.sum()):
            counts[name] = count
            absent = mask if absent is None else absent | mask
    where = ", ".join(f"{name} ({count})" for name, count in counts.items())
    if na_action == "raise" and counts:
        raise DataError(f'missing values in {where}; na_action="drop" leaves those rows out')
    if n == 0:
        raise DataError("the data have no rows")
    if kept is not None and not kept.any():
        raise DataError(f"subset keeps none of the {n} rows")
    n_missing = 0 if absent is None else int(absent.sum())
    use = kept
    if absent is not None:
        use = ~absent if kept is None else kept & ~absent
    if use is None or use.all():
        return None, 0
    rows = np.flatnonzero(use)
    if len(rows) == 0:
        raise DataError(f"no row is complete: missing values in {where} of {n_missing} rows")
    return rows, n_missing


def sound_response(variable: Variable, name: str, rows: Rows) -> Array:
    """The response (n,) of the rows used: numeric, finite, not constant."""
    if isinstance(variable, Factor):
        kind = "true/false" if variable.levels.tolist() == [False, True] else "categorical"
        raise DataError(f"the response {name} is {kind}, not numeric")
    if variable.values.ndim != 1:
        raise DataError(f"the response {name} has {variable.values.shape[1]} columns, not one")
    values = variable.values if rows is None else variable.values[rows]
    y = np.array(values, dtype=np.float64)  # a copy: the design must not change with the user's table
    if count := int((~np.isfinite(y)).sum()):
        raise DataError(f"the response {name} is infinite in {count} rows")
    if np.all(y == y[0]):
        raise ModelError(f"the response {name} is constant ({y[0]:g} in all {len(y)} rows)")
    return y


def check_finite(X: Array, names: Sequence[str], part: str) -> None:
    """Refuse infinite or undefined values in a model matrix, by column and count."""
    bad = ~np.isfinite(X)
    if bad.any():
        counts = bad.sum(axis=0)
        where = ", ".join(f"{name} ({count} rows)" for name, count in zip(names, counts, strict=True) if count)
        raise DataError(f"infinite or undefined values in {part}: {where}")


def sound_weights(values: Array, rows: Rows) -> Array:
    """The weights (n,) of the rows used: present, finite, not negative, not all zero."""
    weights = np.array(values if rows is None else values[rows])
    if count := int(np.isnan(weights).sum()):
        raise DataError(f"weights are missing in {count} rows")
    if count := int(np.isinf(weights).sum()):
        raise DataError(f"weights are infinite in {count} rows")
    if count := int((weights < 0).sum()):
        raise DataError(f"weights are negative in {count} rows")
    if not weights.any():
        raise DataError("weights are all zero")
    return weights


def sound_offset(values: Array, rows: Rows) -> Array:
    """The offset (n,) of the rows used: finite."""
    offset = np.array(values if rows is None else values[rows])
    if count := int(np.isinf(offset).sum()):
        raise DataError(f"the offset is infinite in {count} rows")
    return offset


def check_sizes(designs: Sequence[GroupedTerm], n: int, residual: bool = True) -> None:
    """lme4's checks: more than one level and, beside a residual, fewer levels and fewer random effects than rows."""
    for term in designs:
        q, l = len(term.level_set), len(term.columns)
        if q < 2:
            raise ModelError(
                f"grouping factors must have more than one level: {term.group} has only {term.level_set.labels[0]!r} "
                f"in the {n} rows used"
            )
        if q >= n and residual:
            raise ModelError(
                f"the grouping factor {term.group} has {q} levels for {n} rows: fewer levels than rows are needed to "
                "tell its effects from the residuals"
            )
        if q * l >= n and residual:
            raise ModelError(
                f"the term ({' + '.join(term.columns)} | {term.group}) has {q * l} random effects for {n} rows: fewer "
                "than rows are needed to tell them from the residuals"
            )
