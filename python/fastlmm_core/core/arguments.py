"""What callers pass, checked: arrays of numbers, counts, flags and seeds."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.rows.columns import all_finite
from fastlmm_core.errors import DataError, ModelError

__all__ = [
    "as_doubles",
    "as_floats",
    "as_response",
    "check_finite",
    "checked_count",
    "checked_flag",
    "checked_verbose",
    "is_real",
    "refuse_masked",
    "seed_sequence",
]

FEW_NUMBERS = 1 << 12
"""Numbers up to which a loop of our own takes less time than arrays of masks."""


def check_finite(values: NDArray[np.float64], name: str) -> None:
    """Refuse NaN and infinity, naming how many and the first place."""
    if values.size < FEW_NUMBERS and values.dtype == np.float64 and all_finite(values.ravel()):
        return
    bad = ~np.isfinite(values)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        place = f"row {where[0]}" + (f", column {where[1]}" if len(where) > 1 else "")
        raise DataError(f"{name} has {int(bad.sum())} value(s) that are not finite, the first at {place}")


def as_floats(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """A C-contiguous float64 array of finite numbers.

    Raises
    ------
    DataError
        The values are not numbers, or not finite.
    """
    out = as_doubles(values, name)
    check_finite(out, name)
    return out


def as_doubles(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """A C-contiguous float64 array; DataError where the values are not real numbers."""
    if type(values) is np.ndarray and values.dtype == np.float64:
        return np.ascontiguousarray(values)
    refuse_masked(values, name)
    try:
        given = np.asarray(values)
    except (TypeError, ValueError):
        raise DataError(f"{name} must be an array of numbers, but its rows differ in length") from None
    kind = given.dtype.kind
    wrong = [v for v in given.flat if not isinstance(v, Real)] if kind == "O" else []
    if kind not in "biufO" or wrong:
        what = f"{type(wrong[0]).__name__}, such as {wrong[0]!r}" if wrong else str(given.dtype)
        raise DataError(f"{name} must hold real numbers, not {what}")
    try:
        return np.ascontiguousarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{name} must hold real numbers, not {given.dtype}") from None


def refuse_masked(values: object, name: str) -> None:
    """DataError where a masked array has masked values, which `numpy.asarray` would bring back."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        count = int(np.ma.getmaskarray(values).sum())
        raise DataError(f"{name} has {count} masked value(s): leave out their rows, here and everywhere else")


def as_response(y: ArrayLike, n: int | None) -> NDArray[np.float64]:
    """Response as (n,) float64; `DesignProducts.responses` sees to it that the values are finite.

    Raises
    ------
    DataError
        Not a vector of n numbers.
    """
    response = as_doubles(y, "y")
    if response.ndim != 1 or np.ndim(y) != 1:
        raise DataError(f"y must be a vector, not an array of shape {np.shape(y)}")
    if n is not None and len(response) != n:
        raise DataError(f"y has {len(response)} rows, but the design has {n}")
    return response


def is_real(value: object) -> bool:
    """Whether a value is a number, true and false aside."""
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_count(value: object, name: str, most: int | None = None) -> int:
    """A whole number from 1, to ``most`` where there is such; ModelError for anything else."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ModelError(f"{name} must be a whole number, not {value!r}")
    count = int(value)
    if count < 1:
        raise ModelError(f"{name} must be at least 1, not {count}")
    if most is not None and count > most:
        raise ModelError(f"{name} must be at most {most}, not {count}")
    return count


def checked_flag(value: object, name: str = "reml") -> bool:
    """A bool; ModelError where a text such as "ML" or "FALSE" was given, which would be true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ModelError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def checked_verbose(value: object) -> int:
    """How much to write, from 0; ModelError for anything else."""
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise ModelError(f"verbose must be a whole number from 0, not {value!r}")
    return int(value)


def seed_sequence(seed: object) -> np.random.SeedSequence:
    """Where draws come from: a SeedSequence as it is, or one of a seed.

    Raises
    ------
    DataError
    """
    if isinstance(seed, np.random.SeedSequence):
        return seed
    try:
        return np.random.SeedSequence(seed)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DataError(f"seed must be a non-negative integer, a SeedSequence or None, not {seed!r}") from error
