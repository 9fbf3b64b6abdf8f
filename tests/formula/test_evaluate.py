from __future__ import annotations

import math
import pickle
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core.errors import DataError, FormulaError, FormulaWarning
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


NEW = pd.DataFrame({"x": [9.0, 2.0], "gap": [np.nan, 1.0], "k": [1, 1], "day": pd.to_datetime(["2020-01-09"] * 2)})


@pytest.mark.parametrize(
    ("expr", "values"),
    [
        ("I(x - np.mean(x))", [5.0, -2.0]),
        ("I(x - x.mean())", [5.0, -2.0]),
        ("I(x / max(x))", [1.0, 2.0 / 9.0]),
        ("I((x - mean(x)) / sd(x))", [5.0 / np.std([1, 2, 4, 9], ddof=1), -2.0 / np.std([1, 2, 4, 9], ddof=1)]),
        ("I(x - x.iloc[1])", [7.0, 0.0]),
        ("I(gap - gap.min())", [np.nan, 0.0]),
        ("I((day - day.min()).dt.days)", [8.0, 8.0]),
        ("scale(x - x.mean(), scale=False)", [5.0, -2.0]),
        ("I(2 * x.clip(0, 4))", [8.0, 4.0]),
    ],
)
def test_what_is_taken_of_whole_columns_is_remembered(expr: str, values: Any) -> None:
    state: dict[str, Any] = {}
    data = DATA.assign(day=pd.to_datetime(["2020-01-01", "2020-01-05", "2020-01-02", "2020-01-03"]))
    first = Evaluator(Table(data), Context({"np": np}), state)(expr)
    again = Evaluator(Table(data), Context({"np": np}), pickle.loads(pickle.dumps(state)))(expr)
    assert isinstance(first, Numeric)
    assert isinstance(again, Numeric)
    np.testing.assert_array_equal(first.values, again.values)
    new = Evaluator(Table(NEW), Context({"np": np}), state)(expr)
    assert isinstance(new, Numeric)
    np.testing.assert_allclose(new.values, values, rtol=1e-14)


@pytest.mark.parametrize("expr", ["I(x.rank())", "I(np.cumsum(x))", "pd.qcut(x, 2).astype(str)"])
def test_what_looks_at_several_rows_is_said_of_new_data(expr: str) -> None:
    state: dict[str, Any] = {}
    context = Context({"np": np, "pd": pd})
    Evaluator(Table(DATA), context, state)(expr)
    with pytest.warns(FormulaWarning, match="looks at several rows at once"):
        Evaluator(Table(NEW), context, state)(expr)


def test_what_is_a_row_s_own_goes_without_a_word() -> None:
    state: dict[str, Any] = {}
    context = Context({"np": np, "pd": pd, "shout": shout})
    for expr in ("np.log(x)", "shout(k)", "x.clip(2, 4)", "pd.cut(x, [0, 3, 10]).astype(str)"):
        Evaluator(Table(DATA), context, state)(expr)
        Evaluator(Table(NEW), context, state)(expr)  # warnings are errors here


@pytest.mark.parametrize(
    ("expr", "values"),
    [
        ("is.na(gap)", [False, True, False, False]),
        ("ifelse(is.na(gap), 0, gap)", [1.0, 0.0, 3.0, 8.0]),
        ("I(gap.fillna(-1))", [1.0, -1.0, 3.0, 8.0]),
    ],
)
def test_an_expression_that_knows_of_missing_values_sees_them(expr: str, values: list[Any]) -> None:
    variable = evaluate(expr)
    got = variable.levels[variable.codes] if isinstance(variable, Factor) else variable.values
    assert list(got) == values


@pytest.mark.parametrize(
    ("expr", "values"),
    [
        ("I(gap - mean(gap, na.rm=TRUE))", [-3.0, None, -1.0, 4.0]),
        ("I(x - mean(gap, na.rm=T))", [-3.0, -2.0, 0.0, 5.0]),  # as in R, gap is not wanted for in each row
        ("I(gap - mean(x, na.rm=FALSE))", [-3.0, None, -1.0, 4.0]),  # of all rows, gap or no gap
        ("I(x - mean(ifelse(gap > 2, gap, 0), na.rm=TRUE))", [1 - 11 / 3, 2 - 11 / 3, 4 - 11 / 3, 9 - 11 / 3]),
        ("I(x - mean(is.na(gap)))", [0.75, 1.75, 3.75, 8.75]),
        ("I(gap > median(gap, na.rm = TRUE))", [False, None, False, True]),
        ("ifelse(is.na(gap), max(gap, x, na.rm=TRUE), gap)", [1.0, 9.0, 3.0, 8.0]),
        ("I(x / var(gap, na.rm=TRUE))", [1 / 13, 2 / 13, 4 / 13, 9 / 13]),
        ("I(x * quantile(gap, 0.25, na.rm=TRUE))", [2.0, 4.0, 8.0, 18.0]),
    ],
)
def test_summaries_leave_missing_values_out(expr: str, values: list[Any]) -> None:
    state: dict[str, Any] = {}
    variable = Evaluator(Table(DATA), Context({}), state)(expr)
    missing = variable.missing()
    raw = variable.levels[variable.codes] if isinstance(variable, Factor) else variable.values
    np.testing.assert_array_equal(np.zeros(4, bool) if missing is None else missing, [v is None for v in values])
    kept = [k for k in range(4) if values[k] is not None]
    np.testing.assert_allclose(raw[kept].astype(float), [values[k] for k in kept], rtol=1e-14)
    row = Evaluator(Table(DATA.iloc[3:]), Context({}), state)(expr)
    raw = row.levels[row.codes] if isinstance(row, Factor) else row.values
    assert raw[0] == pytest.approx(values[3])  # the model's own value, not the new rows'


# R 4.2: table(cut(c(1, 2, 4, 9), ...)), levels and codes from 1
CUTS = [
    ("cut(x, 3)", ["(0.992,3.67]", "(3.67,6.33]", "(6.33,9.01]"], [1, 1, 2, 3]),
    ("cut(x, c(1, 4, 9))", ["(1,4]", "(4,9]"], [0, 1, 1, 2]),
    ("cut(x, c(9, 1, 4), include.lowest=TRUE)", ["[1,4]", "(4,9]"], [1, 1, 1, 2]),
    ("cut(x, c(1, 4, 9), right=FALSE)", ["[1,4)", "[4,9)"], [1, 1, 2, 0]),
    ("cut(x, c(1, 4, 9), right=FALSE, include.lowest=TRUE)", ["[1,4)", "[4,9]"], [1, 1, 2, 2]),
    ("cut(x, c(0, 1.23456, 1.23457, 10))", ["(0,1.23456]", "(1.23456,1.23457]", "(1.23457,10]"], [1, 3, 3, 3]),
    ("cut(x, c(0, 3, Inf), labels=['low', 'high'])", ["low", "high"], [1, 1, 2, 2]),
]


@pytest.mark.parametrize(("expr", "levels", "codes"), CUTS)
def test_cut_is_r_s(expr: str, levels: list[str], codes: list[int]) -> None:
    variable = evaluate(expr, {"Inf": np.inf})
    assert isinstance(variable, Factor)
    assert variable.levels.tolist() == levels
    assert (variable.codes + 1).tolist() == codes


def test_cut_remembers_its_intervals_and_counts_them() -> None:
    state: dict[str, Any] = {}
    assert Evaluator(Table(DATA), Context({}), state)("cut(x, 3)").levels[0] == "(0.992,3.67]"  # type: ignore[union-attr]
    new = Evaluator(Table(NEW), Context({}), state)("cut(x, 3)")
    assert isinstance(new, Factor)
    assert new.levels[new.codes].tolist() == ["(6.33,9.01]", "(0.992,3.67]"]
    np.testing.assert_array_equal(evaluate("cut(x, c(1, 4, 9), labels=FALSE)").values, [np.nan, 1, 1, 2])
    for wrong in ("cut(x, 1)", "cut(x, c(1, 1, 2))", "cut(x, 2, labels=['a'])"):
        with pytest.raises(DataError, match=r"cut\(\)"):
            evaluate(wrong)


def test_relevel_and_base() -> None:
    assert evaluate("relevel(f, ref='v')").levels.tolist() == ["v", "u", "w"]
    assert evaluate("relevel(factor(k), 3)").levels.tolist() == [3, 1, 2]
    with pytest.raises(DataError, match="no level: u, v, w"):
        evaluate("relevel(f, 'z')")
    with pytest.raises(DataError, match="unordered"):
        evaluate("relevel(ordered(k), 3)")
    assert evaluate("C(f, contr.treatment, base=2)").contrasts.base == "v"
    with pytest.raises(DataError, match="counted from 1"):
        evaluate("C(f, contr.treatment, base=0)")
    np.testing.assert_array_equal(evaluate("as.numeric(factor(k))").values, DATA["k"])
    with pytest.raises(DataError, match="whose levels are numbers"):
        evaluate("as.numeric(factor(f))")


def test_relevel_and_base_code_tables_that_have_few_of_the_levels() -> None:
    state: dict[str, Any] = {}
    exprs = ("relevel(f, 'v')", "C(f, base=3)", "C(relevel(f, 'w'), contr.sum)", "I(relevel(f, 'w') == f.iloc[0])")
    for expr in exprs:
        Evaluator(Table(DATA), Context({}), state)(expr)
    new = Table({"f": ["u", "u"]})
    found = [Evaluator(new, Context({}), pickle.loads(pickle.dumps(state)))(expr) for expr in exprs]
    assert [variable.levels.tolist() for variable in found[:3]] == [["u"]] * 3  # type: ignore[union-attr]


def test_summaries_of_several_columns_are_of_all_their_values() -> None:
    np.testing.assert_array_equal(evaluate("x - max(x, 100)").values, evaluate("x - 100").values)
    np.testing.assert_array_equal(evaluate("x - min(x, -3, k)").values, evaluate("x + 3").values)
    np.testing.assert_array_equal(evaluate("x / sum(x, 2)").values, evaluate("x / (x.sum() + 2)").values)
    with pytest.raises(FormulaError, match="a summary takes one column"):
        evaluate("x - mean(x, 0)")


def test_functions_of_r() -> None:
    half = pd.DataFrame({"x": [0.15, 2.25, 2.675, -0.35], "k": ["u", "w", "v", "u"]})  # R 4.2: round(x, 1)
    np.testing.assert_array_equal(evaluate("round(x, 1)", data=half).values, [0.1, 2.2, 2.7, -0.3])
    np.testing.assert_array_equal(evaluate("round(x, 2)", data=half).values, [0.15, 2.25, 2.67, -0.35])
    np.testing.assert_allclose(evaluate("qlogis(plogis(x)) - qnorm(pnorm(-x))").values, 2 * DATA["x"], rtol=1e-7)
    np.testing.assert_array_equal(evaluate("c(scale(x))").values, evaluate("as.vector(scale(x))").values)
    np.testing.assert_array_equal(evaluate("dummy(k, 'v')", data=half).values, [0, 0, 1, 0])
    several = evaluate("dummy(k)", data=half)
    assert several.names == ("v", "w")
    np.testing.assert_array_equal(several.values, [[0, 0], [0, 1], [1, 0], [0, 0]])
    assert evaluate("interaction(k, k, sep='_')", data=half).levels.tolist() == ["u_u", "v_v", "w_w"]
    with pytest.raises(DataError, match=r"dummy\(\) asks for \['z'\]; there are u, v, w"):
        evaluate("dummy(k, 'z')", data=half)


def test_dummy_remembers_its_levels() -> None:
    state: dict[str, Any] = {}
    Evaluator(Table(pd.DataFrame({"k": ["u", "w", "v"]})), Context({}), state)("dummy(k)")
    new = Evaluator(Table(pd.DataFrame({"k": ["w", "v"]})), Context({}), state)("dummy(k)")
    assert isinstance(new, Numeric)
    np.testing.assert_array_equal(new.values, [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("I(x %% 2)", "R's %% is (x % m) here"),
        ("I(k %in% c('u'))", "R's %in% is x.isin"),
        ("I(!x)", "R's ! is ~(...) here"),
        ("scale(x)[,1]", "R's [, is no index"),
        ("I(x > 1 & gap > 2)", "write (x > 0) & (z > 3)"),
        ("I(x > 0 | (x > 2))", "write (x > 0) & (z > 3)"),
    ],
)
def test_operators_of_r_are_answered(expr: str, message: str) -> None:
    with pytest.raises(FormulaError, match=re.escape(message)):
        evaluate(expr)


def test_logic_in_brackets_is_python_s() -> None:
    assert evaluate("I((x > 1) & (x < 9))").codes.tolist() == [0, 1, 1, 0]
    assert evaluate("I(((x > 1) | (x < 0)) == (x > 1))").codes.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("label", ["it's", 'a "b"', "back\\slash", "two\nlines"])
def test_labels_with_quotes(label: str) -> None:
    state: dict[str, Any] = {}
    expr = f"cut(x, 2, labels=['low', {label!r}])"
    for data in (DATA, pickle.loads(pickle.dumps(DATA)).iloc[3:]):
        found = Evaluator(Table(data), Context({}), state)(expr)
        assert isinstance(found, Factor)
        assert found.levels[found.codes[-1]] == label
