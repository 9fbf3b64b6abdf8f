"""The independent units of a model: what holds whole subjects and whole levels of every random-effects term.

Unit, subject and level of a row are integer codes. A unit is a level of the coarsest of them; any arrangement inside
it, nested or crossed, is part of its covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGE_UNIT", "combine", "holds", "outermost", "places"]

Index = NDArray[np.int64]

LARGE_UNIT = 400
"""Rows of a unit whose covariance matrix is factored as a whole."""


def combine(code: Index, size: int, values: NDArray[Any]) -> tuple[Index, int]:
    """Codes of the pairs (code, value) that occur, and how many there are."""
    distinct, inverse = np.unique(values, return_inverse=True)
    code = code * len(distinct) + inverse.reshape(-1)
    size *= len(distinct)
    if size > len(code):
        distinct, inverse = np.unique(code, return_inverse=True)
        return inverse.reshape(-1).astype(np.int64), len(distinct)
    return code, size


def holds(unit: NDArray[np.integer[Any]], code: NDArray[np.integer[Any]]) -> bool:
    """Whether all rows of a code are in one unit."""
    if code is unit:
        return True
    owner = np.empty(int(code.max()) + 1, np.int64)
    owner[code] = unit
    return bool((owner[code] == unit).all())


def outermost(codes: Sequence[NDArray[np.integer[Any]]]) -> int | None:
    """Which of several codes holds all others; the first of equals, None where there is none."""
    sizes = [int(code.max()) for code in codes]
    first = int(np.argmin(sizes))
    return first if all(holds(codes[first], code) for code in codes) else None


def places(unit: Index, code: NDArray[np.integer[Any]]) -> tuple[Index, int] | None:
    """Number of each row's code among those of its unit, in their order, and how many the fullest unit has.

    None where each unit has one.
    """
    owner = np.full(int(code.max()) + 1, -1, np.int64)
    owner[code] = unit
    order = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[order], owner)
    number = np.empty(len(owner), np.int64)
    number[order] = np.arange(len(owner))
    within = (number - first)[code]
    largest = int(within.max())
    return (within, largest + 1) if largest else None
