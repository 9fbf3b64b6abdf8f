from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from fastlmm_core.errors import DataError, FormulaError
from fastlmm_core.formula.evaluate import Context
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.rowwise import numeric_argument, subset_rows

DATA = pd.DataFrame(
    {
        "x": [0.0, 1.0, 2.0, 3.0, np.nan],
        "k": [0, 1, 2, 3, 4],
        "f": pd.Categorical(["a", "b", None, "a", "c"], categories=["c", "b", "a"]),
        "flag": [True, False, True, False, True],
        "maybe": pd.array([True, None, False, True, True], dtype="boolean"),
        "the weight": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)
ENV = {"limit": 2, "levels": ["a", "c"], "open": open}


def subset(value: Any) -> list[int]:
    return np.flatnonzero(subset_rows(value, Table(DATA), Context(ENV))).tolist()


def number(value: Any) -> list[float]:
    return numeric_argument(value, "weights", Table(DATA), Context(ENV)).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("x >= 2", [2, 3]),
        ("k >= limit", [2, 3, 4]),
        ("1 <= k < 3", [1, 2]),
        ("k > 0 & k < 3", [1, 2]),
        ("(k > 0) & (k < 3)", [1, 2]),
        ("k > 0 && k < 3", [1, 2]),
        ("k == 0 | k == 4", [0, 4]),
        ("k == 0 or not k < 4", [0, 4]),
        ("~(k < 4)", [4]),
        ("!(k < 4)", [4]),
        ("k != 2", [0, 1, 3, 4]),
        ("k in [1.5, 3]", [3]),
        ("k not in [1.5, 3]", [0, 1, 2, 4]),
        ("f == 'a'", [0, 3]),
        # a missing value is not different from anything, as in R
        ("f != 'a'", [1, 4]),
        ("x != 1", [0, 2, 3]),
        ("not (x > 1)", [0, 1]),
        ("x > 1 | k == 4", [2, 3, 4]),
        ("not (x > 1 and k == 4)", [0, 1, 2, 3]),
        ("f in ['a', 'c']", [0, 3, 4]),
        ("f %in% levels", [0, 3, 4]),
        ("f not in ('a', 'c')", [1]),
        ("k in [1, 3]", [1, 3]),
        ("flag", [0, 2, 4]),
        ("not flag", [1, 3]),
        ("maybe", [0, 3, 4]),
        ("maybe and k > 0", [3, 4]),
        ("sqrt(k) > 1.5", [3, 4]),
        ("np.log(k + 1) > 1 & k^2 < 10", [2, 3]),
        ("`the weight` > 3", [3, 4]),
        ("k % 2 == 1", [1, 3]),
        ("k > -limit + 3", [2, 3, 4]),
        ("TRUE", [0, 1, 2, 3, 4]),
    ],
)
def test_subset_expressions(text: str, rows: list[int]) -> None:
    assert subset(text) == rows


def test_subset_arrays() -> None:
    mask = [False, True, True, False, False]
    for array in (mask, np.array(mask), pd.Series(mask), pd.Series(mask)[::-1], pl.Series(mask)):
        assert subset(array) == [1, 2]
    with pytest.raises(DataError, match="the index of subset differs"):
        subset(pd.Series(mask, index=list("edcba")))
    assert subset(pd.array([True, None, None, False, True], dtype="boolean")) == [0, 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("k + 1", "true or false for each row, not float64"),
        ("x", "true or false"),
        ("f", "true or false for each row, not strings"),
        ([1, 2, 3, 4, 0], "true or false"),
        ([True, False], "subset has 2 values, the data have 5 rows"),
        (np.ones((5, 2), dtype=bool), "one-dimensional"),
        ("X > 2", "no column 'X': did you mean 'x'"),
        ("f > 1", "cannot evaluate"),
        ("k and flag", "take conditions"),
    ],
)
def test_bad_subsets(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        subset(value)


@pytest.mark.parametrize(
    "text",
    [
        "k >",
        "open('file')",
        "__import__('os')",
        "k.__class__",
        "(lambda: 1)()",
        "[k for k in f]",
        "np.load('file')",
        "k[0] > 1",
        "k if flag else x",
        "k is x",
        "f'{k}'",
        "k := 1",
    ],
)
def test_only_arithmetic_and_logic(text: str) -> None:
    with pytest.raises(FormulaError):
        subset(text)


def test_numbers() -> None:
    assert number("the weight") == [1, 2, 3, 4, 5]
    assert number("`the weight` * 2") == [2, 4, 6, 8, 10]
    assert number("1 / (1 + k)^2") == [1, 1 / 4, 1 / 9, 1 / 16, 1 / 25]
    assert number("flag") == [1, 0, 1, 0, 1]
    assert number("2") == [2, 2, 2, 2, 2]
    assert number(np.arange(5)) == [0, 1, 2, 3, 4]
    assert number(pl.Series([1.0, None, 3.0, 4.0, 5.0]))[:1] == [1.0]
    np.testing.assert_array_equal(number("x + 1"), [1, 2, 3, 4, np.nan])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("f", "weights must be numeric, not strings"),
        (list("abcde"), "weights must be numeric"),
        ([1.0] * 4, "weights has 4 values, the data have 5 rows"),
        ("the_weight", "no column 'the_weight': did you mean 'the weight'"),
    ],
)
def test_bad_numbers(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        number(value)


def test_numbers_held_as_objects_are_numbers() -> None:
    for value in (
        [1, None, 3, 4, 5],
        np.array([1.0, None, 3.0, 4.0, 5.0], dtype=object),
        pd.Series([1, None, 3, 4, 5]),
    ):
        np.testing.assert_array_equal(number(value), [1, np.nan, 3, 4, 5])
    with pytest.raises(DataError, match="weights must be numeric"):
        number([1, None, "3", 4, 5])
