import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlmm_core.errors import FormulaError
from fastlmm_core.formula import terms as module
from fastlmm_core.formula.terms import Terms, coding, parse_terms


def test_order_is_by_degree_then_as_written() -> None:
    terms = parse_terms("b:a + log(x) + b + a")
    assert terms == Terms(True, (("log(x)",), ("b",), ("a",), ("b", "a")), frozenset({"log(x)"}))
    assert terms.factors == ("log(x)", "b", "a")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("a*b - a", (("b",), ("a", "b"))),
        # R orders the factors of a term as the formula first names them
        ("b + a + a:b", (("b",), ("a",), ("b", "a"))),
        ("(a + b + c)^2", (("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"))),
        ("a/b", (("a",), ("a", "b"))),
        # what R's terms() gives
        ("a %in% b", (("a", "b"),)),
        ("b + a %in% b", (("b",), ("b", "a"))),
        ("(a + x) %in% b", (("a", "b"), ("x", "b"))),
        ("a %in% (b + x)", (("a", "b", "x"),)),
        ("b + x %in% b + a %in% b %in% u", (("b",), ("b", "x"), ("b", "a", "u"))),
        ("`a b`:x.1", (("a b", "x.1"),)),
    ],
)
def test_terms(text: str, terms: tuple[tuple[str, ...], ...]) -> None:
    assert parse_terms(text).terms == terms


@pytest.mark.parametrize(("text", "intercept"), [("1", True), ("x", True), ("0", False), ("x - 1", False)])
def test_intercept(text: str, intercept: bool) -> None:
    assert parse_terms(text).intercept is intercept


def test_dotted_column_inside_a_call() -> None:
    assert parse_terms("log(Sepal.Length) + np.log(x.1)", ["Sepal.Length", "x.1"]).factors == (
        "log(`Sepal.Length`)",
        "np.log(`x.1`)",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a + b)**99999", "power 99999"),
        ("x^99999", "power 99999"),
        ("(a + b + c + d + e + f + g + h)**16", "more than 100,000 terms"),
        ("*".join(f"v{k}" for k in range(40)), "more than 100,000 terms"),
        ("(x > 3)", r"inside I\(\)"),
        ("2 * x", r"inside I\(\)"),
    ],
)
def test_what_cannot_be_written_out_is_refused_at_once(text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(FormulaError, match=message) as caught:
        parse_terms(text)
    assert time.process_time() - start < 1.0
    assert "\x1b" not in str(caught.value)


def test_powers_that_are_meant() -> None:
    assert len(parse_terms("(a + b + c + d)**4").terms) == 15


@pytest.mark.parametrize("text", ["x +* z", "log(x", "x ~ z", "2 * x", "2:x", "log(x y)", "'a'"])
def test_errors(text: str) -> None:
    with pytest.raises(FormulaError):
        parse_terms(text)


# what R's model.matrix does, from attr(terms(~ ...), "factors"): 1 contrasts, 2 dummies
@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("f + g", [(1,), (1,)]),
        ("f * g", [(1,), (1,), (1, 1)]),
        ("f:g", [(2, 2)]),
        ("f + f:g", [(1,), (2, 1)]),
        ("f / g", [(1,), (2, 1)]),
        ("0 + f", [(2,)]),
        ("0 + f + g", [(2,), (1,)]),
        ("0 + f*g", [(2,), (1,), (1, 1)]),
        # numeric variables have a code too, without effect
        ("x + x:f", [(1,), (2, 1)]),
        ("0 + x + x:f", [(1,), (2, 2)]),
        ("x:f", [(2, 2)]),
        ("f:g + f:h", [(2, 2), (2, 1)]),
    ],
)
def test_contrasts_or_dummies(text: str, codes: list[tuple[int, ...]]) -> None:
    reduced = coding(parse_terms(text), {"f", "g", "h"})
    assert [tuple(1 if r else 2 for r in term) for term in reduced] == codes


@given(
    st.sampled_from(["", "0", "1"]), st.lists(st.sampled_from(["x", "y1", "_z", "Days", "if_"]), max_size=4), st.data()
)
def test_a_sum_of_columns_is_read_as_formulaic_reads_it(first: str, names: list[str], data: st.DataObject) -> None:
    parts = [first, *names] if first else names or ["1"]
    plus = data.draw(st.sampled_from(["+", " + ", "  +"]))
    text = plus.join(parts)
    assert module._sum_of_columns(text) == module._of_formulaic(text)


@pytest.mark.parametrize(
    "text", ["x - 1", "x + 0", "x + 1", "a:b", "a*b", "log(x)", "`a b`", "x.1", "2", "x + if", "x +", "é"]
)
def test_any_other_text_is_formulaic_s(text: str) -> None:
    assert module._sum_of_columns(text) is None
