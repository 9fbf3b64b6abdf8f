from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from fastlmm_core import lmer, load_dataset
from fastlmm_core.errors import DataError
from fastlmm_core.formula.frame import Numeric, Table, Variable, as_factor
from fastlmm_core.formula.levels import Factor

COLUMNS: dict[str, list[Any]] = {
    "x": [1.5, None, 3.0, -2.0],
    "k": [3, 1, 2, 1],
    "k_missing": [3, None, 2, 1],
    "s": ["b", "a", None, "b"],
    "b": [True, False, True, True],
    "b_missing": [True, None, False, True],
    "nothing": [None] * 4,
}


def arrays() -> dict[str, Any]:
    data = {name: np.array(values, dtype=object) for name, values in COLUMNS.items()}
    return data | {"k": np.array(COLUMNS["k"], dtype=np.int16), "b": np.array(COLUMNS["b"])}


def arrow_chunks() -> pa.Table:
    table = pa.table(COLUMNS)
    return pa.concat_tables([table.slice(0, 1), table.slice(1)])


MAKERS: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "pandas nullable": lambda: pd.DataFrame(COLUMNS).convert_dtypes(),
    "pandas arrow": lambda: pd.DataFrame(COLUMNS).convert_dtypes(dtype_backend="pyarrow"),
    "pandas object": lambda: pd.DataFrame(COLUMNS, dtype=object),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "polars lazy": lambda: pl.LazyFrame(COLUMNS),
    "pyarrow": lambda: pa.table(COLUMNS),
    "pyarrow chunks": arrow_chunks,
    "dict of arrays": arrays,
    "dict of lists": lambda: COLUMNS,
    "dict of series": lambda: {name: pd.Series(values) for name, values in COLUMNS.items()},
    "dict of polars": lambda: {name: pl.Series(values) for name, values in COLUMNS.items()},
}


def plain(variable: Variable) -> list[Any]:
    if isinstance(variable, Factor):
        return [None if c < 0 else variable.levels[c] for c in variable.codes]
    return [None if np.isnan(v) else v for v in variable.values]


@pytest.mark.parametrize("maker", MAKERS)
def test_every_kind_of_table_reads_the_same(maker: str) -> None:
    table = Table(MAKERS[maker]())
    table.require(COLUMNS)
    assert table.n == 4
    assert table.names == list(COLUMNS)
    for name, values in COLUMNS.items():
        assert plain(table[name]) == values, name
        assert isinstance(table[name], Factor) == (name[0] in "sb"), name
        missing = table[name].missing()
        assert (missing is None) == (None not in values)
    assert as_factor(table["k"]).levels.tolist() == [1, 2, 3]
    assert as_factor(table["k_missing"]).levels.tolist() == [1, 2, 3]
    assert table["s"].levels.tolist() == ["a", "b"]


LEVELS = ["z", "b", "a"]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(pd.Categorical(["b", "a", None, "b"], categories=LEVELS)),
        pl.Series(["b", "a", None, "b"], dtype=pl.Enum(LEVELS)),
        pa.DictionaryArray.from_arrays(pa.array([1, 2, None, 1], pa.int8()), LEVELS),
    ],
)
def test_categories_keep_their_order(column: Any) -> None:
    frame = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}[type(column).__module__.split(".")[0]]
    factor = Table(frame({"f": column}))["f"]
    assert isinstance(factor, Factor)
    assert factor.levels.tolist() == LEVELS
    assert factor.codes.tolist() == [1, 2, -1, 1]
    assert not factor.ordered


def test_ordered_categories() -> None:
    data = pd.DataFrame({"f": pd.Categorical(["b", "a"], categories=["b", "a"], ordered=True)})
    assert Table(data)["f"].ordered
    assert Table(pa.Table.from_pandas(data))["f"].ordered


def test_polars_categorical_is_sorted() -> None:
    factor = Table(pl.DataFrame({"f": pl.Series(["b", "a", None], dtype=pl.Categorical)}))["f"]
    assert factor.levels.tolist() == ["a", "b"]
    assert factor.codes.tolist() == [1, 0, -1]


def test_dictionaries_that_differ_between_chunks() -> None:
    chunks = [pa.array(["b", "c"]).dictionary_encode(), pa.array(["a", "b"]).dictionary_encode()]
    factor = Table(pa.table({"f": pa.chunked_array(chunks)}))["f"]
    assert plain(factor) == ["b", "c", "a", "b"]


def test_decimals_and_small_types_are_wide_numbers() -> None:
    decimals = [decimal.Decimal("1.5"), None]
    for data in (pd.DataFrame({"x": decimals}), pa.table({"x": decimals}), pl.DataFrame({"x": decimals})):
        np.testing.assert_array_equal(Table(data)["x"].values, [1.5, np.nan])
    for dtype, wide in (("uint8", "int64"), ("int16", "int64"), ("float32", "float64")):
        assert Table({"x": np.array([200], dtype=dtype) // 2})["x"].values.dtype == wide


def test_polars_integers_of_128_bits() -> None:
    for values in ([1, 2, None], [1, 2, 3]):
        read = Table(pl.DataFrame({"x": pl.Series(values, dtype=pl.Int128)}))["x"].values
        np.testing.assert_array_equal(read, np.array(values, dtype=float))
    wide = Table(pl.DataFrame({"x": pl.Series([10**30, 1], dtype=pl.Int128)}))["x"].values
    np.testing.assert_array_equal(wide, [1e30, 1.0])


def test_pandas_keeps_its_index_and_other_tables_have_none() -> None:
    assert Table(pd.DataFrame({"x": [1, 2]}, index=["p", "q"])).index.tolist() == ["p", "q"]
    assert Table({"x": [1]}).index is None
    assert Table(pl.DataFrame({"x": [1]})).index is None


def test_only_the_columns_asked_for_are_read() -> None:
    data = pd.DataFrame({"x": [1.0], "when": [1j]})
    table = Table(data)
    table.require(["x"])
    assert isinstance(table["x"], Numeric)
    with pytest.raises(DataError, match="'when' holds complex"):
        table["when"]


def test_a_lazy_table_collects_once_and_only_what_is_needed() -> None:
    calls: list[int] = []
    lazy = pl.LazyFrame({"x": [1.0, 2.0], "y": [1, 2]}).with_columns(
        z=pl.col("x").map_batches(lambda s: calls.append(1) or s, return_dtype=pl.Float64)
    )
    table = Table(lazy)
    assert table.mentioned_in(["log(y) + 1", np.ones(2), None]) == ["y"]
    table.require(["x", "y"])
    assert table.mentioned_in(["y"]) == []
    assert table.n == 2
    assert table["y"].values.tolist() == [1, 2]
    assert not calls


@pytest.mark.parametrize("data", [pl.DataFrame({"t": [datetime.time(12, 1)]}), pa.table({"t": [[1]]})])
def test_unreadable_columns(data: Any) -> None:
    with pytest.raises(DataError, match="'t' holds"):
        Table(data)["t"]


def test_complex_numbers_are_unreadable() -> None:
    with pytest.raises(DataError, match="complex"):
        Table({"x": np.array([1j])})["x"]


def test_no_such_column_names_the_nearest() -> None:
    table = Table({"Reaction": [1], "Days": [2], "Subject": [3]})
    with pytest.raises(DataError, match=r"no column 'days': did you mean 'Days'\?"):
        table.require(["days"])
    with pytest.raises(DataError, match=r"'Reactoin'.*'Reaction'.*; there is no column 'Sbject'.*'Subject'"):
        table.require(["Reactoin", "Sbject"])
    with pytest.raises(DataError, match="the data have 'Reaction', 'Days', 'Subject'"):
        table.require(["zzz"])


def test_duplicate_columns() -> None:
    with pytest.raises(DataError, match="duplicate column names: 'a'"):
        Table(pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"]))
    with pytest.raises(DataError, match="duplicate column names"):
        Table(pa.table([[1], [2]], names=["a", "a"]))


def test_columns_whose_labels_are_written_to_are_read_by_their_new_names() -> None:
    labels = np.array(["y", "x", "z"], dtype=object)
    data = pd.DataFrame([[0.0, 1.0, 2.0]])
    data.columns = pd.Index(labels, dtype=object, copy=False)
    before = Table(data)["x"]
    labels[[1, 2]] = ["z", "x"]
    after = Table(data)["x"]
    assert isinstance(before, Numeric)
    assert isinstance(after, Numeric)
    assert (before.values[0], after.values[0]) == (1.0, 2.0)


def test_not_a_table() -> None:
    with pytest.raises(DataError, match="cannot read a table from list"):
        Table([1, 2])


def test_dict_of_unequal_lengths() -> None:
    with pytest.raises(DataError, match="'a' has 2 rows, 'c' has 3"):
        Table({"a": [1, 2], "b": [1, 2], "c": [1, 2, 3]})
    with pytest.raises(DataError, match="shape"):
        Table({"a": np.zeros((2, 2))})


def test_masked_values_are_missing() -> None:
    mask = np.array([False, True, False])
    table = Table(
        {
            "x": np.ma.MaskedArray([1.5, 9.0, 2.5], mask),
            "k": np.ma.MaskedArray([1, 9, 2], mask),
            "f": np.ma.MaskedArray(["a", "z", "b"], mask),
            "whole": np.ma.MaskedArray([1, 2, 3], False),
        }
    )
    for name in "xkf":
        missing = table[name].missing()
        assert missing is not None
        np.testing.assert_array_equal(missing, mask)
    assert table["whole"].missing() is None
    assert table["f"].levels.tolist() == ["a", "b"]  # type: ignore[union-attr]


def test_masked_arguments_are_missing() -> None:
    data = load_dataset("sleepstudy")
    mask = np.arange(180) < 5
    formula = "Reaction ~ Days + (1 | Subject)"
    kept = lmer(formula, data[~mask])
    for argument in ("weights", "offset"):
        given = np.ma.MaskedArray(np.full(180, 1.0 if argument == "weights" else 0.0), mask)
        assert lmer(formula, data, **{argument: given}).criterion == pytest.approx(kept.criterion, rel=1e-9)
    assert lmer(formula, data, subset=np.ma.MaskedArray(np.ones(180, bool), mask)).nobs == 175
    with pytest.raises(DataError, match="5 missing"):
        lmer(formula, data).refit(np.ma.MaskedArray(data["Reaction"], mask))
