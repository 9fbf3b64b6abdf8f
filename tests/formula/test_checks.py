"""Which rows a design uses, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import lmer
from fastlmm_core.errors import DataError, FormulaError, FormulaWarning, ModelError
from small_table import DATA, N, build, with_values


def test_subset_comes_before_missing_rows() -> None:
    data = DATA.assign(x=DATA["x"].where(~np.isin(np.arange(N), [0, 1, 40])))
    design = build(data=data, subset="h != 100")
    kept = [i for i in range(N) if i not in (0, 1) and DATA["h"].iloc[i] != 100]
    assert design.row_index.tolist() == kept
    assert (design.n_total, design.n_missing) == (N, 2)
    assert design.index.tolist() == [f"row{i}" for i in kept]
    np.testing.assert_array_equal(design.y, DATA["y"].iloc[kept])


@pytest.mark.parametrize("column", ["y", "x", "z", "f", "g", "few", "w", "a b"])
def test_a_missing_value_in_any_variable_drops_the_row(column: str) -> None:
    formula = "y ~ x + log(z) + f + (`a b` | g) + (1 | h:few)"
    data = DATA.astype({column: object}) if column in ("g", "few") else DATA.copy()
    data.iloc[7, data.columns.get_loc(column)] = None
    design = build(formula, data, offset="w")
    assert design.n_missing == 1
    assert design.row_index.tolist() == [i for i in range(N) if i != 7]
    with pytest.raises(DataError, match=r"missing values in .*\(1\)"):
        build(formula, data, offset="w", na_action="raise")


def test_missing_values_elsewhere_do_not_matter() -> None:
    assert build(data=DATA.assign(z=np.nan)).n_missing == 0
    design = build(data=DATA.assign(x=DATA["x"].where(DATA["h"] != 100)), subset="h != 100", na_action="raise")
    assert (len(design.y), design.n_missing) == (32, 0)


def test_undefined_values_of_a_transform_are_missing_and_infinite_ones_refused() -> None:
    with pytest.warns(FormulaWarning, match="no value in"):
        assert build("y ~ sqrt(x) + (1 | g)").n_missing == (DATA["x"] < 0).sum()
    with pytest.raises(DataError, match=r"fixed part: log\(q\) \(2 rows\)"):
        build("y ~ log(q) + (1 | g)", DATA.assign(q=np.r_[0.0, 0.0, np.ones(N - 2)]))


def test_na_action_raise_names_columns_and_counts() -> None:
    data = DATA.assign(x=DATA["x"].where(np.arange(N) > 1), y=DATA["y"].where(np.arange(N) > 0))
    with pytest.raises(DataError, match=r"missing values in y \(1\), x \(2\)"):
        build(data=data, na_action="raise")
    with pytest.raises(ModelError, match="na_action must be"):
        build(na_action="omit")


@pytest.mark.parametrize(
    ("formula", "data", "kwargs", "error", "message"),
    [
        ("y ~ x", DATA, {}, FormulaError, "no random-effect term"),
        ("y ~ X + (1 | g)", DATA, {}, DataError, "no column 'X': did you mean 'x'"),
        ("Y ~ x + (1 | g)", DATA, {}, DataError, "no column 'Y': did you mean 'y'"),
        ("y ~ x + (1 | G)", DATA, {}, DataError, "no column 'G': did you mean 'g'"),
        ("y ~ log(zz) + (1 | g)", DATA, {}, DataError, "no column 'zz': did you mean 'z'"),
        ("y ~ x + offset(zz) + (1 | g)", DATA, {}, DataError, "no column 'zz'"),
        ("cbind(y, x) ~ x + (1 | g)", DATA, {}, FormulaError, "calls cbind"),
        ("y ~ x + (1 | g)", DATA.iloc[:0], {}, DataError, "no rows"),
        ("y ~ x + (1 | g)", with_values("y", {3: np.inf}), {}, DataError, "response y is infinite in 1 rows"),
        ("y ~ x + (1 | g)", with_values("x", {3: np.inf, 4: -np.inf}), {}, DataError, r"fixed part: x \(2 rows\)"),
        ("y ~ (x | g)", with_values("x", {3: np.inf}), {}, DataError, r"term \(x \| g\): x \(1 rows\)"),
        ("y ~ x + (1 | g)", DATA.assign(x=np.nan), {}, DataError, r"no row is complete: missing values in x \(48\)"),
        ("y ~ scale(x) + (1 | g)", DATA.assign(x=np.nan), {}, DataError, "no row is complete"),
        ("y ~ x + (1 | g)", DATA, {"subset": "x > 100"}, DataError, "subset keeps none of the 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"subset": [True]}, DataError, "subset has 1 values, the data have 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"weights": [1.0]}, DataError, "weights has 1 values, the data have 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"offset": [1.0]}, DataError, "offset has 1 values, the data have 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"weights": "-w"}, DataError, "weights are negative in 48 rows"),
        ("y ~ x + (1 | g)", DATA, {"weights": "0 * w"}, DataError, "weights are all zero"),
        ("y ~ x + (1 | g)", with_values("w", {3: np.inf}), {"weights": "w"}, DataError, "infinite in 1 rows"),
        ("y ~ x + (1 | g)", with_values("w", {3: np.inf}), {"offset": "w"}, DataError, "offset is infinite in 1 rows"),
        ("y ~ x + (1 | g)", DATA, {"offset": "g"}, DataError, "offset must be numeric"),
        ("y ~ x + offset(g) + (1 | g)", DATA, {}, DataError, r"offset\(g\) must be numeric"),
        ("f ~ x + (1 | g)", DATA, {}, DataError, "response f is categorical, not numeric"),
        ("y ~ x + (1 | g)", DATA, {"na_action": "na.omit"}, ModelError, "R's na.omit"),
        ("y ~ x + (1 | g)", DATA, {"contrasts": "sum"}, DataError, "mapping of factors to contrasts"),
        ("y ~ I(x**k) + (1 | g)", DATA, {}, DataError, r"no column 'k'.*env=\{'k': k\}"),
        ("y ~ bump(x) + (1 | g)", DATA, {}, FormulaError, r"calls bump.*env=\{'bump': bump\}"),
        ("poly(y, 2) ~ x + (1 | g)", DATA, {}, DataError, "has 2 columns"),
        ("y ~ x + (1 | g)", DATA.assign(y=2.5), {}, ModelError, r"constant \(2.5 in all 48 rows\)"),
        ("y ~ x + (1 | g)", DATA, {"subset": "g == 'g1'"}, ModelError, "more than one level: g has only 'g1'"),
        ("y ~ x + (1 | i)", DATA.assign(i=range(N)), {}, ModelError, "i has 48 levels for 48 rows"),
        ("y ~ (x | i)", DATA.assign(i=np.arange(N) // 2), {}, ModelError, r"\(Intercept \+ x \| i\) has 48 random"),
        ("y ~ (0 | g)", DATA, {}, ModelError, "has no columns"),
        ("y ~ q + (1 | g)", DATA.assign(q="only"), {}, DataError, "factor q has only one level"),
        ("y ~ x + (1 | g)", DATA, {"contrasts": {"g": "sum"}}, DataError, "contrasts are given for 'g'"),
    ],
)
def test_errors(formula: str, data: Any, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(formula, data, **kwargs)


def test_missing_weights_are_missing_rows_and_weights_of_zero_leave_rows_out() -> None:
    data = with_values("w", {3: np.nan, 4: 0.0, 5: 0.0})
    design = build(data=data, weights="w")
    assert design.row_index.tolist() == [0, 1, 2, *range(6, N)]
    assert (design.n_missing, design.n_zero_weight) == (1, 2)
    assert design.notes == ("2 rows have weight zero and are left out",)
    few = build(data=data, weights="w", subset=~np.isin(np.arange(N), [3, 4]))
    assert (len(few.weights), few.n_missing, few.n_zero_weight) == (N - 3, 0, 1)
    with pytest.raises(DataError, match=r"the weights \(1\)"):
        build(data=data, weights="w", na_action="raise")


def test_true_and_false_are_a_response_of_ones_and_zeros() -> None:
    design = build("y > 0 ~ x + (1 | g)")
    np.testing.assert_array_equal(design.y, DATA["y"] > 0)
    assert design.notes == ("the response y > 0 is true or false: true counts as 1, false as 0",)


def test_levels_are_as_many_as_rows_only_with_weights_that_differ() -> None:
    data = DATA.assign(i=range(N))
    for formula in ("y ~ x + (1 | i)", "y ~ x + (x | i)"):
        with pytest.raises(ModelError, match="check_levels=False"):
            build(formula, data, weights="w")
        assert len(build(formula, data, weights="w", check_levels=False).random[0].levels) == N
        with pytest.raises(ModelError, match="48 levels for 48 rows"):
            build(formula, data, check_levels=False)


def test_exclude_keeps_a_place_for_every_row_of_the_table() -> None:
    data = with_values("x", {3: np.nan})
    design = build(data=data, na_action="exclude", subset="few == 'p'")
    series = design.by_row(design.y)
    assert series.index.equals(DATA.index)
    np.testing.assert_array_equal(series.isna(), (DATA["few"] != "p") | data["x"].isna())
    assert build(data=data.to_dict("list"), na_action="exclude").by_row(np.arange(47.0)).index.tolist() == list(
        range(N)
    )
    assert len(build(data=data).by_row(np.arange(47.0))) == 47


def test_values_that_a_function_does_not_have_are_not_missing_values() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.uniform(0.1, 2.0, 60), "g": np.repeat(range(6), 10), "y": rng.normal(size=60)})
    data.loc[[3, 4, 7], "x"] = [-1.0, 0.0, np.nan]
    with pytest.warns(FormulaWarning, match=r"sqrt\(x\) has no value in 1 row where x has one: it is left out"):
        fit = lmer("y ~ sqrt(x) + (1 | g)", data)
    assert (fit.nobs, fit.n_missing) == (58, 2)
    with pytest.warns(FormulaWarning, match=r"log\(y\) has no value in \d+ rows where y has one: they are left out"):
        lmer("log(y) ~ 1 + (1 | g)", data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FormulaWarning)
        assert lmer("y ~ sqrt(x) + (1 | g)", data, subset=data.x.ne(-1.0)).nobs == 58
        assert lmer("y ~ poly(x, 2) + (1 | g)", data).nobs == 59
        assert lmer("y ~ x + (1 | factor(g)) + offset(x)", data).nobs == 59
