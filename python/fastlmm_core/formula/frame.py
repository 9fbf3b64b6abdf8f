"""Tables to columns: pandas, polars, pyarrow, whatever else narwhals reads, and dicts of arrays.

Only the columns asked for are read. A column becomes a `Numeric` or a `Factor`; missing values are NaN or code -1.
Dates and times count in days since 1970-01-01, periods by their start; as levels and inside calls they are
themselves.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core._native.rows.columns import extent
from fastlmm_core.errors import DataError, near_names
from fastlmm_core.formula.levels import Factor, code_native, code_values
from fastlmm_core.records import quick

if TYPE_CHECKING:
    import narwhals as nw

__all__ = ["Numeric", "Table", "Variable", "aligned", "as_factor", "from_pandas", "moments", "of_days", "unmasked"]

EXACT = 2**53  # integers beyond it are not all float64 numbers


@quick
@dataclass(frozen=True)
class Numeric:
    """A numeric variable.

    Attributes
    ----------
    values : ndarray (n,) or (n, k)
        Integer or float64; NaN where missing.
    names : tuple of str
        Suffixes of the k columns; empty for a single one.
    native : pandas array or None
        The values as the table holds them, where they are more than these numbers: dates, periods, and integers that
        float64 would round.
    """

    values: NDArray[Any]
    names: tuple[str, ...] = ()
    native: Any = None

    def missing(self) -> NDArray[np.bool_] | None:
        """(n,) mask of missing rows, None where there are none."""
        values = self.values
        if values.dtype.kind != "f" or not values.size:
            return None
        plain = values.ndim == 1 and values.dtype == np.float64
        if not isnan(extent(values)[0] if plain else values.min()):
            return None
        mask = np.isnan(self.values)
        return mask if mask.ndim == 1 else mask.any(axis=1)

    def take(self, rows: NDArray[np.int64] | None) -> Numeric:
        """The rows asked for (None: all)."""
        return self if rows is None else Numeric(self.values[rows], self.names)


Variable = Numeric | Factor


def as_factor(variable: Variable) -> Factor:
    """The variable as a factor: a numeric one's levels are its distinct values in order."""
    if isinstance(variable, Factor):
        return variable
    return code_values(variable.values) if variable.native is None else code_native(variable.native)


def unmasked(values: np.ma.MaskedArray[Any, Any]) -> NDArray[Any]:
    """A masked array as a plain one, in which masked values are NaN or None."""
    if not np.ma.getmaskarray(values).any():
        return values.data
    if values.dtype.kind in "iuf":
        return np.ma.filled(values.astype(np.float64), np.nan)
    out = np.array(values.data, dtype=object)
    out[np.ma.getmaskarray(values)] = None
    return out


def aligned(value: Any, index: pd.Index | None, what: str) -> Any:
    """The values of a pandas object in the order of the data's index; anything else, and data without one, unchanged.

    Masked values of a NumPy array are missing. Raises DataError where the index lacks a label of the data, or labels
    that occur twice stand in another order.
    """
    if isinstance(value, np.ma.MaskedArray):
        return unmasked(value)
    if index is None or not isinstance(value, (pd.Series, pd.DataFrame)) or value.index is index:
        return value
    if value.index.equals(index):
        return value
    if value.index.is_unique and index.is_unique:
        at = value.index.get_indexer(index)
        if (at >= 0).all():
            return value.iloc[at]
        trouble = f"lacks {int((at < 0).sum())} of its {len(index)} labels, such as {index[int(np.argmin(at))]!r}"
    else:
        trouble = "has labels that occur more than once, in another order"
    raise DataError(
        f"the index of {what} differs from the data's: it {trouble}. Give it the data's index, or pass "
        f"{what}.to_numpy() to use it by position"
    )


class Table:
    """Columns of a user's table by name, read once each.

    Parameters
    ----------
    data : object
        A pandas or polars frame, a pyarrow table, another table that narwhals reads (lazy ones are collected once,
        the needed columns only), or a mapping of names to one-dimensional arrays of one length.

    Attributes
    ----------
    names : list of str
    index : pandas.Index or None
        Row labels, where the data are pandas.

    Raises
    ------
    DataError
        Not a table, or two columns of one name.
    """

    def __init__(self, data: Any) -> None:
        self._read: Callable[[str], Variable]
        self._columns: dict[str, Variable] = {}
        self._lazy: nw.LazyFrame[Any] | None = None
        self.index: pd.Index | None = None
        if isinstance(data, pd.DataFrame):
            self._from_pandas(data)
        elif isinstance(data, Mapping):
            self._from_mapping(data)
        else:
            self._from_narwhals(data)

    def _from_pandas(self, data: pd.DataFrame) -> None:
        places = _places(data.columns)
        self.names, self.n, self.index = list(places), len(data), data.index
        self._read = lambda name: _from_frame(data, places[name], name)

    def _from_mapping(self, data: Mapping[str, Any]) -> None:
        _refuse_duplicates(map(str, data))
        arrays = {str(name): _one_dimensional(values, str(name)) for name, values in data.items()}
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) > 1:
            (first, n), *rest = lengths.items()
            other = next(name for name, m in rest if m != n)
            raise DataError(f"columns of different lengths: {first!r} has {n} rows, {other!r} has {lengths[other]}")
        series = [str(name) for name, values in data.items() if isinstance(values, pd.Series)]
        for name in series:
            if not arrays[name].index.equals(arrays[series[0]].index):
                raise DataError(
                    f"the columns {series[0]!r} and {name!r} are pandas Series with different indices: make a "
                    "DataFrame of them, which aligns them, or pass arrays"
                )
        self.index = arrays[series[0]].index if series else None
        self.names, self.n = list(arrays), next(iter(lengths.values()), 0)
        self._read = lambda name: from_pandas(arrays[name], name)

    def _from_narwhals(self, data: Any) -> None:
        import narwhals as nw

        if type(data).__name__ == "RecordBatch" and hasattr(data, "schema"):
            import pyarrow as pa  # type: ignore[import-untyped, import-not-found, unused-ignore]

            data = pa.Table.from_batches([data])
        try:
            frame = nw.from_native(data)
        except TypeError:
            raise DataError(
                f"cannot read a table from {type(data).__name__}: pass a pandas, polars or pyarrow table, "
                "or a dict of arrays"
            ) from None
        except nw.exceptions.DuplicateError as error:
            raise DataError(f"duplicate column names: {error}") from None
        names = frame.collect_schema().names() if isinstance(frame, nw.LazyFrame) else frame.columns
        _refuse_duplicates(names)
        self.names = list(names)
        if isinstance(frame, nw.LazyFrame):
            self._lazy = frame
            self.n = -1  # known once collected
        else:
            self._from_eager(frame)

    def _from_eager(self, frame: nw.DataFrame[Any]) -> None:
        self.n = len(frame)
        if frame.implementation.is_polars():
            native = frame.to_native()
            self._read = lambda name: _from_polars(native[name], name)
        elif frame.implementation.is_pandas_like():
            frame_pandas = frame.to_pandas()
            self.index = frame_pandas.index
            self._read = lambda name: from_pandas(frame_pandas[name], name)
        else:
            arrow = frame.to_arrow()
            self._read = lambda name: _from_arrow(arrow[name], name)

    def mentioned_in(self, arguments: Iterable[Any]) -> list[str]:
        """Columns that expressions among the arguments may read, where the table is lazy and has to know beforehand."""
        if self._lazy is None:
            return []
        texts = [argument for argument in arguments if isinstance(argument, str)]
        return [name for name in self.names if any(name in text for text in texts)]

    def require(self, names: Iterable[str]) -> None:
        """Check that the columns exist, and collect them where the table is lazy.

        Raises DataError with the nearest names for one that does not.
        """
        wanted, there = list(dict.fromkeys(names)), self.names
        absent = [name for name in wanted if name not in there]
        if absent:
            raise DataError("; ".join(self.no_column(name) for name in absent))
        if self._lazy is not None:
            # a query may not return its rows in the same order twice: everything is read from one collection
            frame = self._lazy.select(wanted or self.names[:1]).collect()
            self._lazy = None
            self._from_eager(frame)

    def no_column(self, name: str) -> str:
        """That there is no such column, and what there is instead."""
        near = near_names(name, self.names)
        there = f"the data have {_listed(self.names) or 'none'}"
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else there
        return f"there is no column {name!r}: {hint}"

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Variable:
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name]


def _from_frame(data: pd.DataFrame, k: int, name: str) -> Variable:
    """Column k of a frame, numbers and categories without a Series, whose making takes longer than their reading."""
    values_of = getattr(data._mgr, "iget_values", None) if type(data) is pd.DataFrame else None  # pandas' own
    values = None if values_of is None else values_of(k)
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        values = values.view()
        values.setflags(write=False)  # it is the user's, as a Series' would say
        return Numeric(_wide(values))
    if isinstance(values, pd.Categorical):
        return _from_categorical(values)
    return from_pandas(data.iloc[:, k], name)


def _from_categorical(values: pd.Categorical) -> Factor:
    return Factor(values.codes.astype(np.int32), _objects(values.categories), bool(values.ordered))


class _Once:
    """A function of an Index, made once while that Index lives, since tables are read many times.

    Not of Python objects: those are written to, as in `data.columns.values[2] = "x"`, and are had at once besides.
    """

    def __init__(self, make: Callable[[pd.Index], Any]) -> None:
        self.make = make
        self.made: dict[int, tuple[weakref.ref[pd.Index], Any]] = {}

    def __call__(self, index: pd.Index) -> Any:
        if isinstance(index.dtype, np.dtype) and index.dtype.hasobject:
            return self.make(index)
        key = id(index)
        kept = self.made.get(key)
        if kept is not None and kept[0]() is index:
            return kept[1]
        value = self.make(index)
        self.made[key] = weakref.ref(index, lambda _: self.made.pop(key, None)), value
        return value


@_Once
def _places(columns: pd.Index) -> dict[str, int]:
    """Column of each name, as text."""
    labels = [str(label) for label in columns.tolist()]
    places = {name: k for k, name in enumerate(labels)}
    if len(places) < len(labels):
        _refuse_duplicates(labels)
    return places


@_Once
def _objects(categories: pd.Index) -> NDArray[np.object_]:
    """Levels as Python objects, read-only."""
    out = np.array(categories, dtype=object)
    out.setflags(write=False)
    return out


def from_pandas(series: Any, name: str) -> Variable:
    """Read a pandas Series.

    Raises DataError for complex numbers and other values that are neither numbers, times nor levels.
    """
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _from_categorical(series.array)
    if isinstance(dtype, pd.ArrowDtype):
        import pyarrow as pa  # type: ignore[import-untyped, import-not-found, unused-ignore]

        return _from_arrow(pa.Table.from_pandas(pd.DataFrame({"column": series.array}))["column"], name)
    if isinstance(dtype, np.dtype):
        if dtype.kind in "biuf":
            values = series.to_numpy()
            return code_values(values) if dtype.kind == "b" else Numeric(_wide(values))
        if dtype.kind == "O":
            return _from_objects(series, name)
        if dtype.kind in "mM":
            return _from_times(series)
    elif isinstance(dtype, (pd.DatetimeTZDtype, pd.PeriodDtype)):
        return _from_times(series)
    elif isinstance(dtype, pd.SparseDtype):
        return from_pandas(pd.Series(series.to_numpy(), copy=False), name)
    elif pd.api.types.is_bool_dtype(dtype):
        codes = series.to_numpy(dtype=np.int8, na_value=-1)
        return Factor(codes, np.array([False, True], dtype=object))
    elif pd.api.types.is_numeric_dtype(dtype) and dtype.kind in "iuf":
        if dtype.kind in "iu" and not series.hasnans:
            return Numeric(_wide(series.to_numpy(dtype=f"{dtype.kind}8")))
        return _rounded(series.to_numpy(dtype=np.float64, na_value=np.nan), series.array, dtype.kind)
    elif pd.api.types.is_string_dtype(dtype):
        return code_values(series.array)
    raise _unreadable(name, str(dtype))


def _rounded(values: NDArray[np.float64], native: Any, kind: str = "i") -> Numeric:
    """Integers with missing values as floats; with the integers themselves where some may have been rounded."""
    exact = kind == "f" or not (np.abs(values) > EXACT).any()
    return Numeric(values) if exact else Numeric(values, native=native)


def _from_objects(series: Any, name: str) -> Variable:
    kind = pd.api.types.infer_dtype(series, skipna=True)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal"):
        values = pd.to_numeric(series).to_numpy(dtype=np.float64, na_value=np.nan)
        return _rounded(values, series.to_numpy(), "i" if kind == "integer" else "f")
    if kind == "empty":
        return Numeric(np.full(len(series), np.nan))
    if kind in ("string", "boolean", "mixed-integer", "mixed"):
        try:
            return code_values(series.to_numpy())
        except TypeError:  # not to be compared for equality by a hash
            unhashable = next((v for v in series if isinstance(v, (list, dict, set, np.ndarray))), None)
            raise _unreadable(name, "object" if unhashable is None else type(unhashable).__name__) from None
    if kind in ("date", "datetime", "datetime64"):
        return _from_times(pd.to_datetime(series))
    if kind in ("timedelta", "timedelta64"):
        return _from_times(pd.to_timedelta(series))
    if kind == "period":
        return _from_times(series.astype(next(value for value in series if isinstance(value, pd.Period)).freqstr))
    raise _unreadable(name, kind)


def _from_times(series: Any) -> Numeric:
    """Dates, times, periods and durations: in days (since 1970-01-01), with the values themselves."""
    when = _clock(series.array)
    passed = when - np.datetime64(0, "s") if when.dtype.kind == "M" else when
    return Numeric(passed / np.timedelta64(1, "D"), native=series.array)


def _clock(native: Any) -> NDArray[Any]:
    """Times as NumPy's datetime64 (in UTC) or timedelta64; a period is its start."""
    series = pd.Series(native)
    if isinstance(series.dtype, pd.PeriodDtype):
        series = series.dt.to_timestamp()
    elif isinstance(series.dtype, pd.DatetimeTZDtype):
        series = series.dt.tz_convert(None)
    return series.to_numpy()


def moments(column: Numeric) -> NDArray[Any] | None:
    """A column of dates, times, periods or durations as datetime64 or timedelta64 (n,); None for any other."""
    dtype = getattr(column.native, "dtype", None)
    is_time = isinstance(dtype, (pd.DatetimeTZDtype, pd.PeriodDtype)) or getattr(dtype, "kind", "") in ("M", "m")
    return _clock(column.native) if is_time else None


def of_days(days: NDArray[np.float64], dtype: str) -> pd.Series:
    """Days (since 1970-01-01) as the dates, times, periods or durations of pandas' dtype: what `moments` undoes."""
    kind = pd.api.types.pandas_dtype(dtype)
    passed = (np.asarray(days, dtype=np.float64) * 86_400e9).round().astype("m8[ns]")
    if getattr(kind, "kind", "") == "m":
        return pd.Series(passed)
    when = pd.Series(passed + np.datetime64(0, "ns"))
    if isinstance(kind, pd.PeriodDtype):
        return when.dt.to_period(kind.freq)
    return when.dt.tz_localize("UTC").dt.tz_convert(kind.tz) if isinstance(kind, pd.DatetimeTZDtype) else when


def _from_polars(series: Any, name: str) -> Variable:
    import polars as pl  # type: ignore[import-not-found, unused-ignore]

    dtype = series.dtype
    if dtype == pl.String or dtype == pl.Categorical:
        series = series.cast(pl.String)
        series = series.cast(pl.Enum(series.drop_nulls().unique().sort()))
        dtype = series.dtype
    if dtype == pl.Enum:
        levels = np.array(dtype.categories.to_list(), dtype=object)
        return Factor(series.to_physical().cast(pl.Int64).fill_null(-1).to_numpy(), levels)
    if dtype == pl.Boolean:
        return Factor(series.cast(pl.Int8).fill_null(-1).to_numpy(), np.array([False, True], dtype=object))
    if dtype in (pl.Date, pl.Datetime, pl.Duration):
        return _from_times(pd.Series(series.to_numpy()))
    if dtype in (pl.Int128, getattr(pl, "UInt128", pl.Int128)):  # NumPy has none
        narrow = series.cast(pl.Int64, strict=False)
        series = narrow if narrow.null_count() == series.null_count() else series.cast(pl.Float64)
        dtype = series.dtype
    if dtype.is_decimal():
        series = series.cast(pl.Float64)
    elif dtype == pl.Null:
        return Numeric(np.full(len(series), np.nan))
    elif not dtype.is_numeric():
        raise _unreadable(name, str(dtype))
    if dtype.is_integer() and series.null_count():
        exact = series.to_list() if (series.abs() if dtype.is_signed_integer() else series).max() > EXACT else None
        native = None if exact is None else np.array(exact, dtype=object)
        return Numeric(series.cast(pl.Float64).to_numpy(), native=native)
    return Numeric(_wide(series.to_numpy()))


def _from_arrow(column: Any, name: str) -> Variable:
    import pyarrow as pa  # type: ignore[import-untyped, import-not-found, unused-ignore]

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.unify_dictionaries()
        dictionary = column.chunk(0).dictionary if column.num_chunks else pa.array([], kind.value_type)
        codes = pa.chunked_array([chunk.indices for chunk in column.chunks], type=kind.index_type)
        levels = np.array(dictionary.to_pylist(), dtype=object)
        return Factor(codes.fill_null(-1).to_numpy() if column.null_count else codes.to_numpy(), levels, kind.ordered)
    if pa.types.is_boolean(kind):
        return Factor(column.cast(pa.int8()).fill_null(-1).to_numpy(), np.array([False, True], dtype=object))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return code_values(pd.array(column.cast(pa.string()), dtype=pd.StringDtype("pyarrow")))
    if pa.types.is_temporal(kind) and not pa.types.is_time(kind):
        return _from_times(column.to_pandas(date_as_object=False))
    if pa.types.is_integer(kind) and column.null_count:
        numbers = pd.array(column.to_pylist(), dtype="UInt64" if pa.types.is_unsigned_integer(kind) else "Int64")
        return from_pandas(pd.Series(numbers), name)
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise _unreadable(name, str(kind))
    return Numeric(_wide(column.to_numpy()))


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    """64 bits, signed where the values fit: integers stay integers, to be levels without rounding."""
    kind = values.dtype.kind
    if kind == "u" and (values.dtype.itemsize < 8 or values.max(initial=0) < 2**63):
        kind = "i"
    return values.astype(f"{kind}8", copy=False)


def _unreadable(name: str, kind: str) -> DataError:
    return DataError(f"column {name!r} holds {kind} values: convert it to numbers, strings or categories")


def _one_dimensional(values: Any, name: str) -> Any:
    if isinstance(values, pd.Series):
        return values
    if hasattr(values, "to_pandas"):
        return values.to_pandas()
    if not isinstance(values, pd.api.extensions.ExtensionArray):
        values = unmasked(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
        if values.ndim != 1:
            raise DataError(f"column {name!r} has shape {values.shape}: a column is one-dimensional")
        if values.dtype.kind in "US":
            values = values.astype(object)
    return pd.Series(values, copy=False)


def _refuse_duplicates(names: Iterable[Any]) -> None:
    if twice := [str(name) for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"duplicate column names: {_listed(twice)}")


def _listed(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
