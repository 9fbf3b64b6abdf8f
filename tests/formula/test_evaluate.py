from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core.errors import DataError, FormulaError
from fastlmm_core.formula.evaluate import Context, Evaluator
from fastlmm_core.formula.frame import Numeric, Table
from fastlmm_core.formula.levels import Factor

DATA = pd.DataFrame(
    {
        "x": [1.0, 2.0, 4.0, 9.0],
        "gap": [1.0, np.nan, 3.0, 8.0],
        "k": [3, 1, 2, 1],
        "f": pd.Categorical(["u", "v", "u", "w"]),
        "a b": [1, 2, 3, 4],
        "flag": [True, False, False, True],
        "log": [1.0, 1.0, 1.0, 1.0],
    }
)


def shout(x: Any) -> Any:
    return 10 * np.asarray(x)


def evaluate(expr: str, env: dict[str, Any] | None = None, data: Any = DATA) -> Any:
    return Evaluator(Table(data), Context(env), {})(expr)


@pytest.mark.parametrize(
    ("expr", "values"),
    [
        ("np.log(x)", np.log(DATA["x"])),
        ("sqrt(x) + 1", np.sqrt(DATA["x"]) + 1),
        ("I(x ** 2)", DATA["x"] ** 2),
        ("abs(-x)", DATA["x"]),
        ("log10(`a b`)", np.log10(DATA["a b"])),
        ("gap + x", [2, np.nan, 7, 17]),
        ("shout(k)", [30, 10, 20, 10]),
        ("math.pi * x", math.pi * DATA["x"]),
        ("I(3)", [3, 3, 3, 3]),
        ("ifelse(flag, x, 0)", [1, 0, 0, 9]),
        ("x.clip(2, 4)", [2, 2, 4, 4]),
        # R's scale and center leave missing values out
        ("center(gap)", [-3, np.nan, -1, 4]),
        ("scale(gap)", np.array([-3, np.nan, -1, 4]) / np.sqrt(13)),
    ],
)
def test_numeric_expressions(expr: str, values: Any) -> None:
    variable = evaluate(expr, {"shout": shout, "math": math})
    assert isinstance(variable, Numeric)
    np.testing.assert_allclose(variable.values, values)


def test_scale_is_r_s() -> None:
    np.testing.assert_allclose(evaluate("scale(x)").values, (DATA["x"] - 4) / DATA["x"].std(ddof=1))


def test_poly_is_r_s() -> None:
    # R: poly(c(1, 2, 4, 9), 2): columns orthonormal, orthogonal to 1, leading coefficients positive
    variable = evaluate("poly(x, 2)")
    P, x = variable.values, DATA["x"].to_numpy()
    assert variable.names == ("1", "2")
    np.testing.assert_allclose(P.T @ P, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(P.sum(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(P[:, 0], (x - 4) / np.sqrt(np.sum((x - 4) ** 2)))
    assert np.polyfit(x, P[:, 1], 2)[0] > 0
    np.testing.assert_allclose(evaluate("poly(gap, 1)").values[:, 0], [-3 / 26**0.5, np.nan, -1 / 26**0.5, 4 / 26**0.5])


def test_several_columns() -> None:
    assert evaluate("bs(x, df=4)").names == ("1", "2", "3", "4")
    assert evaluate("poly(x, 2, raw=TRUE)").values[:, 1].tolist() == [1, 4, 16, 81]
    assert evaluate("both(x)", {"both": lambda x: np.column_stack([x, x])}).names == ("1", "2")
    assert evaluate("both(x)", {"both": lambda x: pd.DataFrame({"p": x, "q": x})}).names == ("p", "q")


@pytest.mark.parametrize(
    ("expr", "levels", "codes"),
    [
        ("C(k)", [1, 2, 3], [2, 0, 1, 0]),
        ("factor(k)", [1, 2, 3], [2, 0, 1, 0]),
        ("C(f)", ["u", "v", "w"], [0, 1, 0, 2]),
        ("C(f, levels=['w', 'v', 'u'])", ["w", "v", "u"], [2, 1, 2, 0]),
        ("x > 3", [False, True], [0, 0, 1, 1]),
        ("I(flag)", [False, True], [1, 0, 0, 1]),
        ("gap > 2", [False, True], [0, -1, 1, 1]),
        ("f.astype(str) + '!'", ["u!", "v!", "w!"], [0, 1, 0, 2]),
        ("C(gap)", [1, 3, 8], [0, -1, 1, 2]),
    ],
)
def test_categorical_expressions(expr: str, levels: list[Any], codes: list[int]) -> None:
    variable = evaluate(expr)
    assert isinstance(variable, Factor)
    assert variable.levels.tolist() == levels
    assert variable.codes.tolist() == codes


def test_contrasts_travel_with_the_factor() -> None:
    contrasts = evaluate("C(f, contr.treatment(base='v'))").contrasts
    assert contrasts.base == "v"


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("nope(x)", "calls nope, which is neither"),
        ("np.nope(x)", "cannot evaluate np.nope"),
        ("sqrt(f)", "cannot evaluate"),
        ("x[:2]", "2 values for 4 rows"),
        ("x +", "cannot read"),
        ("hashed(f, levels=3)", "not supported"),
    ],
)
def test_formula_errors(expr: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        evaluate(expr)


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("sqrt(X)", "no column 'X': did you mean 'x'"),
        ("C(f, levels=['u', 'v'])", "leaves out levels that occur in the data: w"),
    ],
)
def test_data_errors(expr: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(expr)


def test_state_is_kept_for_other_rows() -> None:
    state: dict[str, Any] = {}
    Evaluator(Table(DATA), Context(), state)("scale(x)")
    new = Evaluator(Table({"x": [4.0]}), Context(), state)("scale(x)")
    np.testing.assert_allclose(new.values, [0.0], atol=1e-15)


def test_columns_come_before_the_callers_names() -> None:
    assert evaluate("k + 0", {"k": 100}).values.tolist() == [3, 1, 2, 1]


def test_callers_functions_hide_built_in_ones_but_other_values_do_not() -> None:
    assert evaluate("sqrt(x)", {"sqrt": shout}).values.tolist() == [10, 20, 40, 90]
    np.testing.assert_allclose(evaluate("sqrt(x)", {"sqrt": 3}).values, np.sqrt(DATA["x"]))
    np.testing.assert_allclose(evaluate("exp(x)", {"exp": math.exp}).values, np.exp(DATA["x"]))


def test_names_that_are_called_are_functions_and_the_others_columns() -> None:
    table = {name: [1.0, 2.0] for name in ("x", "a b", "z", "log", "np", "class")}
    evaluate = Evaluator(Table(table), Context({"g": 3}), {})
    assert evaluate.names("log(x, base=`a b`) + np.log(z) + len('q') + g") == ["x", "z", "a b"]
    assert evaluate.names("log(log) + I(np)") == ["log", "np"]
    np.testing.assert_allclose(evaluate("exp(log) + np").values, np.add(np.exp([1, 2]), [1, 2]))
    np.testing.assert_allclose(evaluate("log(`class`)").values, np.log([1, 2]))


def test_context_keeps_only_what_was_used_and_pickles() -> None:
    context = Context({"shout": shout, "math": math, "inner": lambda x: x, "other": 1})
    evaluate = Evaluator(Table(DATA), context, {})
    evaluate("shout(x) * math.pi + inner(x)")
    context.forget()
    assert sorted(context) == ["inner", "math", "shout"]
    assert len(context) == 3
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(context))))
    assert again["math"] is math
    assert sorted(again) == ["math", "shout"]
    with pytest.raises(FormulaError, match="'inner', which the formula uses, could not be stored"):
        Evaluator(Table(DATA), again, {})("inner(x)")
