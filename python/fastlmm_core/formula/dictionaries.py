"""Levels of grouping factors that are met batch by batch: codes in the order of appearance, sorted in the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError
from fastlmm_core.formula.levels import Factor, Levels, drop_unused

__all__ = ["KeyDictionary", "LevelDictionary", "takeable"]

Codes = NDArray[np.int32]
Longs = NDArray[np.int64]

TABLE = 1 << 22
"""Keys that span less than this, or four times their number, are looked up in a table."""

LEAST = int(np.iinfo(np.int64).min)


class KeyDictionary:
    """Codes of 64-bit keys, in the order in which they are met."""

    def __init__(self) -> None:
        self.keys = np.empty(0, np.int64)  # by code
        self._low = 0
        self._table: Codes | None = None
        self._sorted: tuple[Longs, Codes] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {"keys": self.keys, "_low": 0, "_table": None, "_sorted": None}

    def code(self, keys: Longs) -> Codes:
        """Codes (n,) of keys (n,), new ones added."""
        if len(keys) == 0:
            return np.empty(0, np.int32)
        low, high = int(keys.min()), int(keys.max())
        if len(self.keys):
            low, high = min(low, int(self.keys.min())), max(high, int(self.keys.max()))
        if high - low < max(TABLE, 4 * (len(self.keys) + len(keys))):
            return self._by_table(keys, low, high)
        return self._by_search(keys)

    def _by_table(self, keys: Longs, low: int, high: int) -> Codes:
        table = self._table
        if table is None or low < self._low or high >= self._low + len(table):
            span = high - low + 1
            self._low, table = max(low - span // 4, LEAST), np.full(span + span // 2 + 1, -1, np.int32)
            table[self.keys - self._low] = np.arange(len(self.keys), dtype=np.int32)
            self._table = table
        at = keys - self._low
        codes = table[at]
        if (codes < 0).any():
            new = np.unique(keys[codes < 0])
            table[new - self._low] = self._add(new)
            codes = table[at]
        return codes

    def _by_search(self, keys: Longs) -> Codes:
        self._table = None
        distinct, inverse = np.unique(keys, return_inverse=True)
        if self._sorted is None or len(self._sorted[0]) != len(self.keys):
            order = np.argsort(self.keys, kind="stable")
            self._sorted = self.keys[order], order.astype(np.int32)
        known, codes = self._sorted
        at = np.searchsorted(known, distinct)
        at[at == len(known)] = 0
        found = known[at] == distinct if len(known) else np.zeros(len(distinct), bool)
        out = np.empty(len(distinct), np.int32)
        out[found] = codes[at[found]] if len(known) else 0
        if not found.all():
            out[~found] = self._add(distinct[~found])
        return out[inverse.ravel()]

    def _add(self, new: Longs) -> Codes:
        first = len(self.keys)
        self.keys = np.concatenate([self.keys, new])
        return np.arange(first, len(self.keys), dtype=np.int32)

    def order(self) -> Longs:
        """Rank of each code's key (q,)."""
        return ranks(self.keys)


class LevelDictionary:
    """The levels of one grouping column.

    Parameters
    ----------
    name : str
        The column, for messages.

    Notes
    -----
    Whole numbers are kept as 64-bit keys, floats by their bits, dates, times and durations as counts of the first
    batch's unit, text as an Arrow array, and what an expression gave as Python objects. A column has one of these kinds
    in all batches.
    """

    def __init__(self, name: str) -> None:
        self.name, self.kind = name, ""
        self._keys = KeyDictionary()
        self._texts: Any = None
        self._moment: Any = None  # Arrow's type of dates, times or durations
        self._objects: dict[Any, int] = {}

    def __len__(self) -> int:
        if self.kind == "text":
            return 0 if self._texts is None else len(self._texts)
        return len(self._objects) if self.kind == "values" else len(self._keys)

    def _is(self, kind: str, where: str) -> None:
        if self.kind in ("", kind):
            self.kind = kind
        else:
            raise DataError(f"the grouping column {self.name!r} holds {kind} in {where}, but {self.kind} before")

    def code(self, column: Any, where: str) -> Codes:
        """Codes (n,) of an Arrow array without missing values."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = column.type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values):
            self._is("text", where)
            coded = column if pa.types.is_dictionary(kind) else column.dictionary_encode()
            rows, texts = coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.cast(pa.large_string())
            rows, used = drop_unused(rows, len(texts))  # a dictionary may have texts that no row has
            places = self._place_texts(texts if used is None else texts.take(pa.array(used)))
            return np.asarray(places[rows], np.int32)
        if pa.types.is_dictionary(kind):
            column, kind = column.dictionary_decode(), values
        if pa.types.is_boolean(kind):
            self._is("true and false", where)
            return self._keys.code(column.cast(pa.int8()).to_numpy(zero_copy_only=False).astype(np.int64))
        if pa.types.is_uint64(kind) and len(column) and (pc.max(column).as_py() or 0) >= 2**63:
            raise DataError(f"the grouping column {self.name!r} has whole numbers beyond 2**63 in {where}")
        if pa.types.is_integer(kind):
            self._is("whole numbers", where)
            return self._keys.code(column.to_numpy(zero_copy_only=False).astype(np.int64))
        if pa.types.is_floating(kind):
            self._is("floats", where)
            floats = column.to_numpy(zero_copy_only=False).astype(np.float64) + 0.0  # -0 is 0
            return self._keys.code(floats.view(np.int64))
        if pa.types.is_temporal(kind) and not pa.types.is_time(kind):
            return self._keys.code(self._counts(column, where))
        raise DataError(
            f"the grouping column {self.name!r} holds {kind} values in {where}: group by numbers, text or dates, or "
            "make one of them in the formula"
        )

    def _counts(self, column: Any, where: str) -> Longs:
        """Dates, times or durations (n,) in the unit of the first ones."""
        import pyarrow as pa

        kind = column.type
        if pa.types.is_timestamp(kind):
            self._is("times" if kind.tz is None else "times of a time zone", where)
        else:
            self._is("durations" if pa.types.is_duration(kind) else "dates", where)
        if self._moment is None:
            self._moment = pa.date32() if pa.types.is_date(kind) else kind
        try:
            column = column.cast(self._moment)
        except pa.ArrowInvalid as error:
            raise DataError(f"the grouping column {self.name!r} holds {kind} values in {where}: {error}") from None
        counts = column.cast(pa.int32()) if pa.types.is_date(self._moment) else column
        return np.asarray(counts.cast(pa.int64()).to_numpy(zero_copy_only=False), np.int64)

    def _moments(self) -> Any:
        """The levels as an Arrow array, of dates, times or durations."""
        import pyarrow as pa

        counts = pa.array(self._keys.keys)
        return (counts.cast(pa.int32()) if pa.types.is_date(self._moment) else counts).cast(self._moment)

    def code_factor(self, factor: Factor, where: str) -> Codes:
        """Codes (n,) of what an expression gave, nothing missing."""
        self._is("values", where)
        factor = factor.take(None)
        places = [self._objects.setdefault(level, len(self._objects)) for level in factor.levels.tolist()]
        return np.asarray(np.array(places, np.int32)[factor.codes])

    def _place_texts(self, texts: Any) -> Codes:
        """Codes of distinct texts, new ones added."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._texts is None:
            self._texts = pa.array([], pa.large_string())
        found = pc.index_in(texts, value_set=self._texts)
        codes = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        if (codes < 0).any():
            new = texts.filter(found.is_null())
            codes[codes < 0] = len(self._texts) + np.arange(len(new), dtype=np.int32)
            self._texts = pa.concat_arrays([self._texts, new])
        return codes

    def places_of(self, other: LevelDictionary, where: str) -> Codes:
        """The own code of each of another's levels, new ones added."""
        if other.kind == "":
            return np.empty(0, np.int32)
        self._is(other.kind, where)
        if self.kind == "text":
            return self._place_texts(other._texts)
        if self.kind == "values":
            return np.array([self._objects.setdefault(v, len(self._objects)) for v in other._objects], np.int32)
        if other._moment is not None:
            return self._keys.code(self._counts(other._moments(), where))
        return self._keys.code(other._keys.keys)

    def finish(self) -> tuple[Levels, Longs]:
        """The levels, sorted as a table's in memory are, and the place of each code (q,) among them."""
        labels: NDArray[np.object_]
        if self.kind == "text":
            labels = np.array(self._texts.to_pylist(), dtype=object)
        elif self.kind == "values":
            labels = np.empty(len(self._objects), dtype=object)
            labels[:] = list(self._objects)
        elif self.kind == "floats":
            floats = self._keys.keys.view(np.float64)
            whole = np.array_equal(floats, np.trunc(floats)) and bool(np.abs(floats).max(initial=0.0) < 2.0**53)
            labels = (floats.astype(np.int64) if whole else floats).astype(object)
        elif self.kind == "true and false":
            labels = self._keys.keys.astype(bool).astype(object)
        elif self._moment is not None:
            labels = np.empty(len(self._keys), dtype=object)
            labels[:] = list(self._moments().to_pandas(date_as_object=False))
        else:
            labels = self._keys.keys.astype(object)
        try:
            order = np.argsort(labels, kind="stable")
        except TypeError:  # values of several types: by their text
            order = np.argsort(labels.astype(str), kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return Levels(labels[order]), place


def takeable(column: Any) -> Any:
    """An Arrow array that rows can be taken of, which Arrow does not do for views of text."""
    import pyarrow as pa

    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def ranks(keys: Longs) -> Longs:
    """Place (q,) of each of some distinct numbers among them, sorted."""
    out = np.empty(len(keys), np.int64)
    out[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return out
