"""Hypotheses as text and as arrays."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import DataError, FormulaError, LmerResult, ModelError, RankWarning, lmer, load_dataset
from fastlmm_core.inference.hypotheses import read_hypotheses

NAMES = ["Intercept", "x", "x2", "f[T.b]", "f[T.b-1]:x", "poly(x, 2)[1]", "poly(x, 2)[2]", "a.b"]


def row(**weights: float) -> list[float]:
    return [weights.get(name, 0.0) for name in NAMES]


@pytest.mark.parametrize(
    ("text", "expected", "values"),
    [
        ("x = 0", [row(x=1)], [0]),
        ("x", [row(x=1)], [0]),
        ("x = 1, Intercept = 250", [row(x=1), row(Intercept=1)], [1, 250]),
        ("x2 = x", [row(x=-1, x2=1)], [0]),
        ("x = x2 = 3", [row(x=1, x2=-1), row(x2=1)], [0, 3]),
        ("2*x - x2/4 = 1e1", [row(x=2, x2=-0.25)], [10]),
        ("2 * (x + 3) = -(x2 - 1)", [row(x=2, x2=1)], [-5]),
        ("x*2 + .5 = 0", [row(x=2)], [-0.5]),
        ("+x = - -1", [row(x=1)], [1]),
        ("f[T.b] + f[T.b-1]:x = 0", [[0, 0, 0, 1, 1, 0, 0, 0]], [0]),
        ("poly(x, 2)[1] = poly(x, 2)[2]", [[0, 0, 0, 0, 0, 1, -1, 0]], [0]),
        ("a.b", [[0, 0, 0, 0, 0, 0, 0, 1]], [0]),
        (["x = 1", "x2"], [row(x=1), row(x2=1)], [1, 0]),
    ],
)
def test_text(text: str, expected: list[list[float]], values: list[float]) -> None:
    found = read_hypotheses(text, NAMES)
    np.testing.assert_array_equal(found.rows, expected)
    np.testing.assert_array_equal(found.values, values)


@pytest.mark.parametrize(
    ("given", "rows", "values"),
    [
        (([0.0, 1.0], 1.0), [[0, 1]], [1]),
        ((np.array([0.0, 1.0]), [1.0]), [[0, 1]], [1]),
        (([[0, 1], [1, 0]], [1, 2]), [[0, 1], [1, 0]], [1, 2]),
        (([0, 1], [1, 0]), [[0, 1], [1, 0]], [0, 0]),
    ],
)
def test_a_pair_is_rows_and_their_values_unless_both_are_rows(given, rows, values) -> None:
    found = read_hypotheses(given, ["Intercept", "x"])
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.values, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y = 0", "no coefficient 'y'"),
        ("xx = 0", "no coefficient 'xx'"),
        ("x * x2 = 0", "not linear"),
        ("1 / x = 0", "only a number other than zero can divide"),
        ("x / 0 = 1", "only a number"),
        ("x = (1", "not closed"),
        ("x x2", "unexpected coefficient"),
        ("x =", "unexpected end"),
        ("1 = 1", "no coefficient in it"),
        ("x - x = 0", "no coefficient in it"),
        ("", "unexpected end"),
        ("x 2", "unexpected number"),
    ],
)
def test_text_that_is_no_equation(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        read_hypotheses(text, NAMES)


def test_arrays() -> None:
    found = read_hypotheses([0, 1, 0, 0, 0, 0, 0, 0], NAMES)
    assert found.rows.shape == (1, 8)
    assert found.labels == ["x = 0"]
    found = read_hypotheses((np.eye(8)[:2], [1, 2]), NAMES)
    assert found.labels == ["Intercept = 1", "x = 2"]
    assert read_hypotheses([[0, -1, 2.5, 0, 0, 0, 0, 0]], NAMES).labels == ["-x + 2.5 x2 = 0"]
    for wrong in ([1, 2], np.zeros((1, 1, 8)), np.zeros((0, 8)), [np.nan] * 8, [object()] * 8):
        with pytest.raises(DataError, match="hypotheses"):
            read_hypotheses(wrong, NAMES)
    with pytest.raises(DataError, match="1 hypotheses were given 2 values"):
        read_hypotheses((np.eye(8)[:1], [1, 2]), NAMES)


@pytest.fixture(scope="module")
def slopes() -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))


def test_t_tests(slopes: LmerResult) -> None:
    table = slopes.t_test("Days = 10, Intercept + 9*Days = 350")
    assert list(table.index) == ["Days = 10", "Intercept + 9 Days = 350"]
    cov = slopes.cov_params().to_numpy()
    at_nine = np.array([1.0, 9.0])
    np.testing.assert_allclose(table["std_error"], [slopes.bse["Days"], np.sqrt(at_nine @ cov @ at_nine)])
    np.testing.assert_allclose(table["t"], (table["estimate"] - table["value"]) / table["std_error"])
    np.testing.assert_allclose(table["df"], 17.0, rtol=1e-6)


def test_contradictions_are_refused(slopes: LmerResult) -> None:
    assert slopes.f_test("Days = 10, 2*Days = 20").num_df == 1
    with pytest.raises(ModelError, match="contradict"):
        slopes.f_test("Days = 10, Days = 11")


def test_what_a_dropped_coefficient_leaves_undetermined_is_not_a_number() -> None:
    data = load_dataset("sleepstudy").assign(twice=lambda d: 2 * d["Days"])
    with pytest.warns(RankWarning):
        fit = lmer("Reaction ~ Days + twice + (1 | Subject)", data)
    alone = lmer("Reaction ~ Days + (1 | Subject)", data)
    table = fit.t_test("Days, twice, Days + 2 * twice = 3, Intercept")
    assert table["estimate"].isna().tolist() == table["p"].isna().tolist() == [True, True, False, False]
    np.testing.assert_allclose(table.iloc[2:], alone.t_test("Days = 3, Intercept"), rtol=1e-7)
    assert table.attrs["notes"] == ["not estimable: Days = 0 and twice = 0, as twice depends linearly on other columns"]
    found = fit.f_test("Days = 0, Intercept = 0")
    assert np.isnan(found.F)
    assert found.notes == ("not estimable: Days = 0, as twice depends linearly on other columns",)
