from __future__ import annotations

from typing import Any

import formulaic
import numpy as np
import pandas as pd
import pytest
from formulaic.transforms.contrasts import SumContrasts, TreatmentContrasts
from hypothesis import given
from hypothesis import strategies as st

from fastlmm_core.errors import DataError
from fastlmm_core.formula.evaluate import Context, Evaluator
from fastlmm_core.formula.fixed import MatrixSpec, fit_matrix, variables_of
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.terms import parse_terms

RNG = np.random.default_rng(7)
N = 60
DATA = pd.DataFrame(
    {
        "x": RNG.normal(size=N),
        "k": RNG.integers(0, 9, N),
        "f": pd.Categorical(RNG.choice(list("abc"), N), categories=["c", "a", "b"]),
        "g": RNG.choice(["u", "v"], N),
        "h": pd.Categorical(RNG.choice(["p", "q", "r", "s"], N)),
        "flag": RNG.random(N) > 0.5,
        "a b": RNG.uniform(1, 2, N),
        "o": pd.Categorical(RNG.choice(["lo", "mid", "hi"], N), categories=["lo", "mid", "hi"], ordered=True),
    }
)


def fit(text: str, data: Any = DATA, contrasts: Any = None) -> tuple[MatrixSpec, np.ndarray]:
    evaluate = Evaluator(Table(data), Context(), {})
    terms = parse_terms(text)
    variables = {expr: v.take(None) for expr, v in variables_of(terms, evaluate).items()}
    return fit_matrix(terms, variables, evaluate.table.n, contrasts)


# formulaic reads booleans as numbers, R as factors
EXPECTED = DATA.assign(flag=DATA["flag"].astype("category"))

# where formulaic and R agree: every interaction stands beside its margins
AGREED = [
    "1",
    "x",
    "x + k",
    "f",
    "g",
    "x + f + g",
    "0 + x",
    "0 + f",
    "f - 1",
    "0 + f + g",
    "x*f",
    "f*g",
    "f/g",
    "f/x",
    "x:k",
    "f*g*h",
    "(f + g + x)**2",
    "(f + g + h)^2 - f:h",
    "flag",
    "x*flag",
    "log(`a b`)",
    "`a b` + x",
    "poly(x, 3)",
    "poly(x, 2)*f",
    "scale(x) + center(k)",
    "bs(x, df=4)",
    "I(x**2):f + f",
    "C(k)",
    "C(f, contr.sum)",
    "C(f, contr.sum)*g",
    "C(f, contr.helmert) + C(g, contr.poly)",
    "C(f, contr.treatment(base='b'))*x",
    "C(f, levels=['b', 'c', 'a'])",
    "np.exp(x) + x.clip(0, 1)",
]


@pytest.mark.parametrize("text", AGREED)
def test_columns_are_formulaic_s(text: str) -> None:
    spec, X = fit(text)
    expected = formulaic.model_matrix(text, EXPECTED)
    assert list(spec.names) == list(expected.columns)
    np.testing.assert_allclose(X, expected.to_numpy(dtype=float), rtol=1e-12, atol=1e-14)
    assert X.flags.c_contiguous
    assert X.dtype == np.float64


@given(st.data())
def test_any_main_effects_and_interactions_are_formulaic_s(draw: st.DataObject) -> None:
    names = draw.draw(st.lists(st.sampled_from(["x", "k", "f", "g", "flag"]), min_size=1, max_size=3, unique=True))
    text = draw.draw(st.sampled_from([" + ", " * "])).join(names)
    spec, X = fit(text)
    expected = formulaic.model_matrix(text, EXPECTED)
    assert list(spec.names) == list(expected.columns)
    np.testing.assert_allclose(X, expected.to_numpy(dtype=float))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        # R keeps every cell beside the intercept, one column too many, for the fit to drop
        ("f:g", ["Intercept", "f[c]:g[u]", "f[a]:g[u]", "f[b]:g[u]", "f[c]:g[v]", "f[a]:g[v]", "f[b]:g[v]"]),
        ("0 + f:g", ["f[c]:g[u]", "f[a]:g[u]", "f[b]:g[u]", "f[c]:g[v]", "f[a]:g[v]", "f[b]:g[v]"]),
        ("g + f + f:g", ["Intercept", "g[T.v]", "f[T.a]", "f[T.b]", "g[T.v]:f[T.a]", "g[T.v]:f[T.b]"]),
        ("x:f", ["Intercept", "x:f[c]", "x:f[a]", "x:f[b]"]),
        ("0 + x + x:f", ["x", "x:f[c]", "x:f[a]", "x:f[b]"]),
        ("o", ["Intercept", "o[.L]", "o[.Q]"]),
        ("poly(k, 2)", ["Intercept", "poly(k, 2)[1]", "poly(k, 2)[2]"]),
        ("flag", ["Intercept", "flag[T.True]"]),
    ],
)
def test_columns_are_r_s(text: str, names: list[str]) -> None:
    assert list(fit(text)[0].names) == names


def test_ordered_factors_get_polynomial_contrasts() -> None:
    _, X = fit("o")
    # R: contr.poly(3)
    poly = np.array([[-(0.5**0.5), 6**-0.5], [0, -2 * 6**-0.5], [0.5**0.5, 6**-0.5]])
    np.testing.assert_allclose(X[:, 1:], poly[DATA["o"].cat.codes], atol=1e-14)


def test_term_columns() -> None:
    spec, _ = fit("x*f")
    assert spec.term_columns == (
        ("Intercept", slice(0, 1)),
        ("x", slice(1, 2)),
        ("f", slice(2, 4)),
        ("x:f", slice(4, 6)),
    )
    assert fit("0 + x")[0].term_columns == (("x", slice(0, 1)),)


@pytest.mark.parametrize("contrasts", ["sum", "contr.sum", SumContrasts, SumContrasts()])
def test_contrasts_by_name_class_or_object(contrasts: Any) -> None:
    spec, X = fit("f*x", contrasts={"f": contrasts})
    assert spec.names[1:3] == ("f[S.c]", "f[S.a]")
    matrix = np.array([[1, 0], [0, 1], [-1, -1]])[DATA["f"].cat.codes]
    where = dict(spec.term_columns)
    np.testing.assert_array_equal(X[:, where["f"]], matrix)
    np.testing.assert_array_equal(X[:, where["f:x"]], matrix * DATA[["x"]].to_numpy())


def test_contrasts_by_r_s_short_names() -> None:
    for short, name in (("sum", "contr.sum"), ("poly", "contr.poly")):
        np.testing.assert_array_equal(fit(f"C(f, {short})")[1], fit(f"C(f, {name})")[1])


def test_contrasts_that_are_no_numbers() -> None:
    with pytest.raises(DataError, match="not a matrix: could not convert"):
        fit("f", contrasts={"f": [["a", "b"]] * 3})


def test_contrasts_by_matrix() -> None:
    matrix = np.array([[1, 0.5], [0, -1], [-1, 0.5]])
    for given_, names in (
        (matrix, ["f[1]", "f[2]"]),
        (matrix.tolist(), ["f[1]", "f[2]"]),
        (pd.DataFrame(matrix, columns=["one", "two"]), ["f[one]", "f[two]"]),
    ):
        spec, X = fit("f", contrasts={"f": given_})
        assert list(spec.names[1:]) == names
        np.testing.assert_array_equal(X[:, 1:], matrix[DATA["f"].cat.codes])


def test_contrasts_do_not_touch_dummies() -> None:
    np.testing.assert_array_equal(fit("0 + f", contrasts={"f": "sum"})[1], fit("0 + f")[1])


@pytest.mark.parametrize(
    ("text", "contrasts", "message"),
    [
        ("f", {"h": "sum"}, "given for 'h', not a factor of the fixed part"),
        ("x", {"x": "sum"}, "given for 'x', not a factor"),
        ("f", {"f": "summ"}, "unknown contrasts 'summ' for f"),
        ("f", {"f": np.eye(2)}, "do not fit its 3 levels"),
        ("f", {"f": 3}, "neither a matrix nor a name"),
        ("f", {"f": TreatmentContrasts(base="nope")}, "do not fit its 3 levels"),
    ],
)
def test_contrasts_that_do_not_fit(text: str, contrasts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(text, contrasts=contrasts)


def test_one_level() -> None:
    with pytest.raises(DataError, match="factor f has only one level in the rows used, 'a'"):
        fit("f", {"f": ["a", "a"]})
