"""Categorical columns as integer codes: level coding, unused levels dropped, interactions, lookup of new rows.

No step loops over rows or levels in Python. Codes come from counting where the values span a small range, from
hashing elsewhere; an interaction combines the codes of its parts into one integer key and codes the keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core._native.rows.columns import least, present
from fastlmm_core.lazy import cached_property
from fastlmm_core.records import quick

__all__ = ["Factor", "Interaction", "Levels", "code_integers", "code_native", "code_values", "level_text"]

_SPREAD = 4  # counting beats hashing while the values span less than this many times the rows


@quick
@dataclass(frozen=True)
class Factor:
    """A categorical variable.

    Attributes
    ----------
    codes : ndarray (n,) of int
        Place of each row's level in `levels`, -1 where missing.
    levels : ndarray (q,) of object
        The levels in order; some may be unused.
    ordered : bool
        Whether the order carries meaning: such a factor gets polynomial contrasts, as in R.
    contrasts : object or None
        What `C(f, contrasts)` asked for.
    numeric : bool
        Whether the levels are a numeric column's values, which new rows have as numbers too.
    """

    codes: NDArray[np.integer[Any]]
    levels: NDArray[np.object_]
    ordered: bool = False
    contrasts: Any = None
    numeric: bool = False

    def missing(self) -> NDArray[np.bool_] | None:
        """(n,) mask of missing rows, None where there are none."""
        return self.codes < 0 if _least(self.codes) < 0 else None

    def take(self, rows: NDArray[np.int64] | None) -> Factor:
        """The rows asked for (None: all), unused levels dropped; no code may be missing among them."""
        codes = self.codes if rows is None else self.codes[rows]
        codes, used = drop_unused(codes, len(self.levels))
        levels = self.levels if used is None else self.levels[used]
        return Factor(codes, levels, self.ordered, self.contrasts, self.numeric)


def drop_unused(codes: NDArray[np.integer[Any]], q: int) -> tuple[NDArray[np.int32], NDArray[np.int64] | None]:
    """Renumber codes in 0..q-1 so that every number occurs; also the old numbers kept (None where all are).

    Missing codes, -1, stay.
    """
    own = codes.astype(np.int32, copy=False)
    there, count = present(own, q)
    if count == q:
        return own, None
    place = np.full(q + 1, -1, dtype=np.int32)
    np.cumsum(there, out=place[:q])
    place[:q] -= 1
    return place[own], np.flatnonzero(there)


def _least(codes: NDArray[np.integer[Any]]) -> int:
    """The least code; 0 of none."""
    if codes.dtype == np.int32:
        return least(cast("NDArray[np.int32]", codes))
    return int(codes.min(initial=0))


def code_integers(values: NDArray[np.integer[Any]], low: int, high: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Codes (n,) in the order of the values, and the distinct values; every value lies in low..high."""
    distinct: NDArray[Any]
    span = high - low + 1
    if span <= _SPREAD * len(values) + 1024:
        shifted = values - np.asarray(low, dtype=values.dtype) if low else values
        codes, used = drop_unused(shifted, span)
        distinct = np.arange(span) if used is None else used
        return codes, distinct.astype(values.dtype, copy=False) + np.asarray(low, dtype=values.dtype)
    codes, distinct = pd.factorize(values, sort=True)
    return codes, np.asarray(distinct)


def code_values(values: Any) -> Factor:
    """Factor of numbers, strings or other sortable values, levels sorted; NaN and None are missing.

    Floats that are all whole numbers become integer levels, as R labels them.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "b":
        return Factor(values.view(np.int8), np.array([False, True], dtype=object))
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu" and len(values):
        codes, distinct = code_integers(values, int(values.min()), int(values.max()))
        return Factor(codes, distinct.astype(object))
    codes, distinct = pd.factorize(values, sort=False)
    levels = np.asarray(distinct)
    if levels.dtype.kind == "f" and np.array_equal(levels, np.trunc(levels)) and np.abs(levels).max(initial=0) < 2**53:
        levels = levels.astype(np.int64)
    levels = levels.astype(object)
    try:
        order = np.argsort(levels, kind="stable")
    except TypeError:  # values of several types: by their text
        order = np.argsort(levels.astype(str), kind="stable")
    place = np.empty(len(order) + 1, dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    place[-1] = -1  # pandas codes a missing value -1, which indexes the last entry
    return Factor(place[codes], levels[order])


def code_native(values: Any) -> Factor:
    """Factor of dates, periods, or integers that float64 would round, levels sorted; missing values have code -1."""
    codes, distinct = pd.factorize(values, sort=True)
    levels = np.empty(len(distinct), dtype=object)
    levels[:] = list(distinct)
    return Factor(codes, levels)


def level_text(labels: NDArray[np.object_]) -> NDArray[np.object_]:
    """The levels as strings; dates without a time of day as "2020-01-31"."""
    if len(labels) and isinstance(labels[0], pd.Timestamp):
        return np.asarray(pd.Index(list(labels)).astype(str), dtype=object)
    return labels.astype(str).astype(object)


class Levels:
    """The levels of one grouping column, in order, and the lookup of other rows among them."""

    def __init__(self, labels: NDArray[np.object_]) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> NDArray[np.object_]:
        """(q,) the levels as the data have them."""
        return self._labels

    @cached_property
    def text(self) -> NDArray[np.object_]:
        """(q,) the levels as strings; days without a time of day have none."""
        return level_text(self._labels)

    def parts(self) -> list[tuple[str, ...]]:
        """(q,) the levels' texts by factor: one each here."""
        return [(text,) for text in self.text]

    def place(self, factors: list[Factor]) -> NDArray[np.int64]:
        """Code of each row of `factors` (one) among these levels, -1 where its level is not one of them."""
        (factor,) = factors
        # as objects: pandas would compare integers above 2^63 with others as floats
        found = pd.Index(self._labels, dtype=object).get_indexer(pd.Index(factor.levels, dtype=object))
        if (found < 0).any():
            # 308 and "308" are one level, as in R
            by_text = pd.Index(self.text).get_indexer(pd.Index(level_text(factor.levels)))
            found = np.where(found < 0, by_text, found)
        return np.append(found, -1)[factor.codes].astype(np.int64, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key in ("_labels", "left", "right", "keys")}


class Interaction(Levels):
    """Levels of `left:right`: the combinations that occur, ordered by the left level, then the right.

    Labels are written when first asked for: there may be millions that nobody reads.
    """

    def __init__(self, left: Levels, right: Levels, keys: NDArray[np.int64]) -> None:
        self.left, self.right, self.keys = left, right, keys

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def labels(self) -> NDArray[np.object_]:
        """(q,) such as "a:A"."""
        return self.text

    @cached_property
    def text(self) -> NDArray[np.object_]:
        """(q,) such as "a:A"."""
        first, second = np.divmod(self.keys, len(self.right))
        text: NDArray[np.object_] = self.left.text[first] + ":" + self.right.text[second]
        return text

    def parts(self) -> list[tuple[str, ...]]:
        """(q,) the levels' texts by factor."""
        first, second = np.divmod(self.keys, len(self.right))
        left, right = self.left.parts(), self.right.parts()
        return [left[i] + right[j] for i, j in zip(first, second, strict=True)]

    def place(self, factors: list[Factor]) -> NDArray[np.int64]:
        """Code of each row among these levels, -1 where its combination is not one of them."""
        first, second = self.left.place(factors[:-1]), self.right.place(factors[-1:])
        key = first * len(self.right) + second
        at = np.searchsorted(self.keys, key)
        at[at == len(self.keys)] = 0
        return np.where((first >= 0) & (second >= 0) & (self.keys[at] == key), at, -1)


def combine(
    left: NDArray[np.int32], left_levels: Levels, right: NDArray[np.int32], right_levels: Levels
) -> tuple[NDArray[np.int32], Interaction]:
    """Codes (n,) and levels of an interaction from those of its parts."""
    q = len(right_levels)
    span = len(left_levels) * q
    key = left.astype(np.int64)
    key *= q
    key += right
    codes, distinct = code_integers(key, 0, span - 1)
    return codes.astype(np.int32, copy=False), Interaction(left_levels, right_levels, distinct.astype(np.int64))
