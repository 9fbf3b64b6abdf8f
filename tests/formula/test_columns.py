"""One column in every type a table can hold: the model is the same; nothing wraps, merges or goes by position."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlmm_core.errors import DataError, FormulaError
from fastlmm_core.formula import build_design
from fastlmm_core.formula.evaluate import Context, Evaluator
from fastlmm_core.formula.frame import Table, as_factor

N = 24
RNG = np.random.default_rng(5)
Y = RNG.normal(size=N)
G = np.tile(list("abcdef"), 4)
SMALL = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]
NULLABLE = ["Int8", "Int64", "UInt8", "UInt32", "UInt64", "Float32", "Float64"]
ARROW = ["int8[pyarrow]", "uint16[pyarrow]", "uint64[pyarrow]", "double[pyarrow]"]
FORMULA = "y ~ I(x - 7) + I(-x) + x:z + I(x**9) + factor(x) + (1 | x) + (I(2 - x) | g)"


def table(x: Any, kind: str) -> Any:
    data = pd.DataFrame({"y": Y, "z": np.arange(N) / N, "g": G, "x": x})
    return {"pandas": data, "polars": pl.from_pandas(data), "pyarrow": pa.Table.from_pandas(data)}[kind]


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.integers(0, 100), min_size=N, max_size=N).filter(lambda v: len(set(v)) > 2),
    dtype=st.sampled_from(SMALL + NULLABLE + ARROW),
    kind=st.sampled_from(["pandas", "polars", "pyarrow"]),
)
def test_a_column_of_whole_numbers_has_one_design_in_every_type(values: list[int], dtype: str, kind: str) -> None:
    if len(set(values)) >= N - 1:
        values[: N // 2] = [values[0]] * (N // 2)
    x = pd.Series(values, dtype="int64")
    options: dict[str, Any] = {"subset": "x - 200 < 0", "weights": "x - 3 + 200", "offset": "-x"}
    expected = build_design(FORMULA, table(x, "pandas"), **options)
    found = build_design(FORMULA, table(x.astype(dtype), kind), **options)
    np.testing.assert_array_equal(found.X, expected.X)
    assert found.x_names == expected.x_names
    np.testing.assert_array_equal(found.weights, np.array(values) + 197.0)
    np.testing.assert_array_equal(found.offset, -np.array(values, dtype=float))
    for mine, theirs in zip(found.random, expected.random, strict=True):
        np.testing.assert_array_equal(mine.codes, theirs.codes)
        assert mine.levels.astype(str).tolist() == theirs.levels.astype(str).tolist()


@pytest.mark.parametrize("start", [2**53, 2**63 - 40, 2**63, 2**64 - 100])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_ids_that_float64_cannot_tell_apart_stay_apart(start: int, missing: bool, kind: str) -> None:
    ids: list[int | None] = [start + k for k in np.tile(np.arange(6), 4).tolist()]
    if missing:
        ids[3] = None
    data = table(pd.array(ids, dtype="UInt64"), kind)
    design = build_design("y ~ z + (1 | x)", data)
    assert design.random[0].levels.tolist() == [start + k for k in range(6)]
    new = design.rebuild(data)
    np.testing.assert_array_equal(new.random[0].codes, design.random[0].codes)
    assert design.rebuild({"z": [0.0], "x": np.array([start + 2], dtype=np.uint64)}).random[0].codes.tolist() == [2]


DAYS = pd.date_range("2020-01-01", periods=6)
WHEN = {
    "datetime": pd.Series(np.tile(DAYS, 4)),
    "seconds": pd.Series(np.tile(DAYS, 4).astype("M8[s]")),
    "zone": pd.Series(np.tile(DAYS, 4)).dt.tz_localize("UTC"),
    "period": pd.Series(np.tile(DAYS, 4)).dt.to_period("D"),
    "date": pd.Series(np.tile(DAYS, 4)).dt.date,
    "polars": pl.Series(np.tile(DAYS, 4)).cast(pl.Date),
    "arrow": pa.array(np.tile(DAYS, 4).astype("M8[D]")),
    "arrow in pandas": pd.Series(np.tile(DAYS, 4)).astype("timestamp[ns][pyarrow]"),
}


@pytest.mark.parametrize("kind", WHEN)
def test_dates_are_days_as_predictors_and_themselves_as_levels(kind: str) -> None:
    when = WHEN[kind]
    columns = {"y": Y, "g": G, "when": when}
    data: Any = pl.DataFrame(columns) if kind == "polars" else pa.table(columns) if kind == "arrow" else columns
    design = build_design("y ~ when + (1 | when) + (1 | g)", data)
    days = np.tile(np.arange(18262.0, 18268.0), 4)
    np.testing.assert_array_equal(design.X[:, 1], days)
    groups = {term.group: term for term in design.random}
    np.testing.assert_array_equal(groups["when"].codes, np.tile(np.arange(6), 4))
    if kind == "zone":
        return
    assert groups["when"].level_set.text.tolist()[:2] == ["2020-01-01", "2020-01-02"]
    new = design.rebuild({"when": ["2020-01-03", "2020-01-01"], "g": ["a", "b"]}, fixed=False)
    assert dict(zip(groups, new.random, strict=True))["when"].codes.tolist() == [2, 0]
    if kind != "period":
        inside = build_design("y ~ I((when - when.min()).dt.days) + (1 | g)", data, subset="when > '2020-01-02'")
        np.testing.assert_array_equal(inside.X[:, 1], days[days > 18263] - 18262)


def test_times_of_day_are_no_dates() -> None:
    with pytest.raises(DataError, match="column 'x' holds time"):
        build_design("y ~ x + (1 | g)", {"y": Y, "g": G, "x": [datetime.time(12, 1)] * N})


def test_columns_may_be_called_like_anything() -> None:
    names = ["C", "log", "np", "I", "0", "1", "class", "2nd", "a.b", "c", "factor"]
    values = {name: RNG.uniform(1, 2, N) for name in names}
    data = pd.DataFrame({"y": Y, "g": G, "f": np.tile([*"uv"], 12), **values})
    terms = "C(f) + np.log(log) + I(I) + `1`:`class` + scale(a.b) + exp(`2nd`) + c + log(`0`, 2) + (1 | factor(g))"
    design = build_design(f"log(y + 9) ~ {terms}", data, env={"np": np})
    plain = build_design(
        "v ~ f + a + b + c:d + scale(e) + h + i + j + (1 | g)",
        {
            **{"v": np.log(Y + 9), "f": data.f, "g": G, "a": np.log(data["log"]), "b": data.I, "c": data["1"]},
            **{"d": data["class"], "e": data["a.b"], "h": np.exp(data["2nd"]), "i": data["c"], "j": np.log2(data["0"])},
        },
    )
    order = np.argsort(plain.X[0])
    np.testing.assert_allclose(design.X[:, np.argsort(design.X[0])], plain.X[:, order])
    by_number = pd.DataFrame({0: Y, 1: values["C"], 2: G})
    np.testing.assert_array_equal(build_design("`0` ~ `1` + (1 | `2`)", by_number).X[:, 1], values["C"])
    with pytest.raises(DataError, match="duplicate column names: '1'"):
        build_design("`0` ~ `1` + (1 | `2`)", by_number.assign(**{"1": 1.0}))


def test_a_series_of_the_caller_is_aligned_inside_calls_too() -> None:
    index = pd.Index([f"r{k}" for k in range(N)])
    data = pd.DataFrame({"y": Y, "g": G, "x": np.arange(N)}, index=index)
    other = pd.Series(np.arange(N) ** 2.0, index=index)
    expected = build_design("y ~ I(x + other) + (1 | g)", data, env={"other": other})
    found = build_design("y ~ I(x + other) + (1 | g)", data, env={"other": other.sample(frac=1, random_state=1)})
    np.testing.assert_array_equal(found.X, expected.X)
    with pytest.raises(FormulaError, match="values for"):
        build_design("y ~ I(x + other) + (1 | g)", data, env={"other": other.reset_index(drop=True)})


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(N)), st.sampled_from(["weights", "offset", "subset"]))
def test_series_beside_the_data_are_aligned_by_label(order: list[int], what: str) -> None:
    data = pd.DataFrame({"y": Y, "g": G}, index=[f"r{k}" for k in range(N)])
    values = pd.Series(np.arange(1.0, N + 1), index=data.index)
    values = values > 6 if what == "subset" else values
    expected = build_design("y ~ 1 + (1 | g)", data, **{what: values.to_numpy()})
    found = build_design("y ~ 1 + (1 | g)", data, **{what: values.iloc[order]})
    for name in ("weights", "offset", "row_index"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    with pytest.raises(DataError, match=f"the index of {what} differs from the data's: it lacks 1 of its 24 labels"):
        build_design("y ~ 1 + (1 | g)", data, **{what: values.iloc[1:]})


def test_columns_that_are_series_of_different_indices_are_refused() -> None:
    with pytest.raises(DataError, match="'y' and 'x' are pandas Series with different indices"):
        build_design("y ~ x + (1 | g)", {"y": pd.Series(Y), "x": pd.Series(Y)[::-1], "g": G})


@pytest.mark.parametrize("expr", ["'a' * 10**10 == g", "[1] * 10**10 == x", "(" * 5000 + "x" + ")" * 5000])
def test_a_text_that_is_no_code_cannot_run_away(expr: str) -> None:
    with pytest.raises((DataError, FormulaError)):
        build_design("y ~ 1 + (1 | g)", {"y": Y, "g": G, "x": Y}, subset=expr)
    assert len(build_design("y ~ 1 + (1 | g)", {"y": Y, "g": G}, subset="9**9**9**9 > 1").y) == N


# R 4.2, splines::ns
NS = {
    1: [-0.0756533021308, 0.245478424911, -0.163652283274],
    4: [0.19747916583, 0.518673613620, -0.339609569574],
    9: [-0.142857142857, 0.428571428571, 0.714285714286],
}
BEYOND = {-1.0: [0.08451542547, -0.2535462764, 0.1690308509], 11.0: [-0.85714285714, 0.5714285714, 1.2857142857]}


def test_natural_splines_are_r_s_and_linear_beyond_the_boundary() -> None:
    state: dict[str, Any] = {}
    basis = Evaluator(Table({"x": np.arange(10)}), Context(), state)("ns(x, 3)").values
    np.testing.assert_allclose(basis[list(NS)], list(NS.values()), atol=1e-11)
    new = Evaluator(Table({"x": list(BEYOND)}), Context(), state)("ns(x, 3)").values
    np.testing.assert_allclose(new, list(BEYOND.values()), atol=1e-10)
    with_knots = Evaluator(Table({"x": np.arange(10)}), Context(), {})(
        "ns(x, knots=[3, 6], Boundary.knots=(0, 9))"
    ).values
    np.testing.assert_allclose(with_knots, basis, atol=1e-14)


@pytest.mark.parametrize("text", ["as.factor(x)", "factor(x)", "ordered(x)", "C(x)", "as.character(x)"])
def test_factors_by_any_name(text: str) -> None:
    evaluate = Evaluator(Table({"x": [3, 1, 2, 1]}), Context(), {})
    factor = as_factor(evaluate(text))
    assert (factor.codes.tolist(), factor.levels.tolist(), factor.ordered) == ([2, 0, 1, 0], [1, 2, 3], text[0] == "o")
    labelled = as_factor(evaluate("factor(x, levels=[3, 2, 1], labels=c('hi', 'mid', 'lo'))"))
    assert labelled.levels[labelled.codes].tolist() == ["hi", "lo", "mid", "lo"]
