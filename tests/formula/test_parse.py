import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlmm_core.errors import FormulaError
from fastlmm_core.formula import ParsedFormula, RandomTerm, parse_formula
from fastlmm_core.formula.parse import expand_dot
from fastlmm_core.formula.quoting import python_power, quote_name, unquote_name


def random(text: str) -> list[tuple[str, str]]:
    return [(term.expr, term.label) for term in parse_formula(f"y ~ x + {text}").random]


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("y ~ (1 | g)", "1"),
        ("y ~ 1 + (1 | g)", "1"),
        ("y ~ x + (1 | g)", "x"),
        ("y ~ (1 | g) + x", "x"),
        ("y ~ 0 + x + (1 | g)", "0 + x"),
        ("y ~ x + (1 | g) - 1", "x - 1"),
        ("y ~ (1 | g) - 1", "- 1"),
        ("y ~ -1 + x + (1 | g)", "- 1 + x"),
        ("y ~ x + -1 + (1 | g)", "x - 1"),
        ("y ~ a*b - a:b + (1 | g)", "a*b - a:b"),
        ("y ~ (a + b)^2 + I(x^2) + (1 | g)", "(a + b)^2 + I(x**2)"),
        ("y ~ I((a + b)^2) + (1 | g)", "I((a + b)**2)"),
        ("y ~ `a | b` + (1 | g)", "`a | b`"),
        ("y ~ I(a | b) + (1 | g)", "I(a | b)"),
        ("y ~ x\n  + (1 | g)", "x"),
        ("y ~ (x + (1 | g))", "x"),
        ("y ~ x + ((1 | g) + (1 | h))", "x"),
        ('y ~ C(f, levels=["+ (1 | g)"]) + (1 | g)', 'C(f, levels=["+ (1 | g)"])'),
    ],
)
def test_fixed_part(text: str, fixed: str) -> None:
    parsed = parse_formula(text)
    assert parsed.response == "y"
    assert parsed.fixed == fixed
    assert parsed.random[0] == RandomTerm("1", ("g",))


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("(1|g)", [("1", "g")]),
        ("(x | g)", [("x", "g")]),
        ("(0 + x | g)", [("0 + x", "g")]),
        ("(x - 1 | g)", [("x - 1", "g")]),
        ("((x | g))", [("x", "g")]),
        ("(1 | a:b)", [("1", "a:b")]),
        ("(1 | (a:b))", [("1", "a:b")]),
        ("(1 | a/b)", [("1", "b:a"), ("1", "a")]),
        ("(1 | a/b/c)", [("1", "c:b:a"), ("1", "b:a"), ("1", "a")]),
        ("(1 | a:b/c)", [("1", "c:a:b"), ("1", "a:b")]),
        ("(x || g)", [("1", "g"), ("0 + x", "g")]),
        ("(0 + x || g)", [("0 + x", "g")]),
        ("(1 || g)", [("1", "g")]),
        ("(x + z || g)", [("1", "g"), ("0 + x", "g"), ("0 + z", "g")]),
        ("(x * z || g)", [("1", "g"), ("0 + x", "g"), ("0 + z", "g"), ("0 + x:z", "g")]),
        ("(x || a/b)", [("1", "b:a"), ("1", "a"), ("0 + x", "b:a"), ("0 + x", "a")]),
        ("(z:log(x) || g)", [("1", "g"), ("0 + z:log(x)", "g")]),
        ("(I(x^2) + `a b` || g)", [("1", "g"), ("0 + I(x ** 2)", "g"), ("0 + `a b`", "g")]),
        ("({x + 1} || g)", [("1", "g"), ("0 + {x + 1}", "g")]),
        ("(log(x) | g) + (poly(x, 2) | g)", [("log(x)", "g"), ("poly(x, 2)", "g")]),
        ("(1 | `my group`)", [("1", "my group")]),
        ("us(x | g)", [("x", "g")]),
        ("(1 | factor(g))", [("1", "factor(g)")]),
        ("(1 | interaction(a, b)/c)", [("1", "c:interaction(a, b)"), ("1", "interaction(a, b)")]),
        ("(x | g) + (1 | h) - (x | g)", [("1", "h")]),
        ("((x | g) + (1 | h)) - (x | g)", [("1", "h")]),
        ("(1 | école.x)", [("1", "école.x")]),
    ],
)
def test_random_terms(text: str, terms: list[tuple[str, str]]) -> None:
    assert random(text) == terms


@pytest.mark.parametrize("bare", ["1 | g", "x || g", "x:z | a/b", "poly(x, 2) | factor(g)"])
def test_a_lone_term_needs_no_parentheses(bare: str) -> None:
    assert parse_formula(f"y ~ {bare}") == parse_formula(f"y ~ 1 + ({bare})")


def test_response_and_offset() -> None:
    parsed = parse_formula("log(Reaction)^2 ~ x + offset(log(n)^2) + (1 | g)")
    assert parsed == ParsedFormula("log(Reaction)**2", "x", (RandomTerm("1", ("g",)),), ("log(n)**2",))
    assert parse_formula("`the answer` ~ offset_x + (1 | g)") == ParsedFormula(
        "`the answer`", "offset_x", (RandomTerm("1", ("g",)),)
    )


def test_text_reads_back() -> None:
    parsed = parse_formula("log(y) ~ 0 + x + offset(z) + (x || a/b) + (1 | `my group`:c)")
    assert parse_formula(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y ~ x + 1 | g", "without parentheses"),
        ("y ~ 1 | g + x", "without parentheses"),
        ("y ~ -1 | g", "without parentheses"),
        ("y ~ x", "no random-effect term"),
        ("y ~ I(a | b)", "no random-effect term"),
        (
            "y ~ foo(x | g)",
            r"no random-effect term .*; foo is none of the .*\(us, .* and 'foo\(x \| g\)' is read as a fun",
        ),
        ("y ~ x + np.foo(1 | g) - 1", "; np.foo is none of the covariance structures"),
        ("y ~ x + foo(bar(x | g))", "; without one use a linear model"),
        ("y", "no `~`"),
        ("~ x + (1 | g)", "response is missing"),
        ("y ~ ", "nothing stands right"),
        ("y ~ x ~ (1 | g)", "2 `~`"),
        ("y | z ~ x + (1 | g)", "left of `~`"),
        ("y ~ x + (1 | g", "not closed"),
        ("y ~ x + 1 | g)", "unexpected '\\)'"),
        ("y ~ x + (1 | g]", "unexpected"),
        ("y ~ `x + (1 | g)", "not closed"),
        ("y ~ x + (1 | )", "grouping factor is missing"),
        ("y ~ x + ( | g)", "nothing stands left of the bar"),
        ("y ~ x + (1 | g | h)", "more than one bar"),
        ("y ~ x + (1 | g) | h", "without parentheses"),
        ("y ~ x + (1 | a + b)", "has to be a column"),
        ("y ~ x + (1 | a*b)", "has to be a column"),
        ("y ~ x + (1 | 1)", "has to be a column"),
        ("y ~ x + (1 | a/)", "has to be a column"),
        ("y ~ x + (1 | a:a)", "twice"),
        ("y ~ x + (1 | a/b/a)", "twice"),
        ("y ~ x - (1 | g)", "not there"),
        ("y ~ x - (x + (1 | g))", "not there"),
        ("y ~ x + (x | g) - (1 | g)", r"not there: the random-effect terms are \(x \| g\)"),
        ("y ~ x + (1 | g) - (1 | g)", "no random-effect term"),
        ("y ~ arma(x | g)", "arma is not a covariance structure .* us, rr, diag, cs, toep, ar1"),
        ("y ~ zerocorr(x | g)", r"zerocorr\(x \| g\) is diag\(x \| g\) here"),
        ("y ~ x * diag(1 | g)", "only be added"),
        ("y ~ (. | g)", "random-effect term"),
        ("log(.) ~ x + (1 | g)", "only stand right"),
        ("y ~ x - offset(z) + (1 | g)", "cannot be subtracted"),
        ("y ~ x * (1 | g)", "only be added"),
        ("y ~ (x + (1 | g))^2", "only be added"),
        ("y ~ x + (1 | g) +", "last operator"),
        ("y ~ x + (x + + * z || g)", "cannot read"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        parse_formula(text)


@pytest.mark.parametrize(
    "text",
    ["y ~ " + "x + " * 300_000 + "(1 | g)", "y ~ " + "(" * 1000 + "x" + ")" * 1000 + " + (1 | g)", "y ~ (" * 20_000],
)
def test_absurd_formulas_are_refused_at_once(text: str) -> None:
    start = time.process_time()
    with pytest.raises(FormulaError) as caught:
        parse_formula(text)
    assert time.process_time() - start < 1.0
    assert len(str(caught.value)) < 400


def test_structures_read_and_write() -> None:
    (term,) = parse_formula("y ~ diag(x + f | a:b)").random
    assert (term.expr, term.structure.name, str(term)) == ("x + f", "diag", "diag(x + f | a:b)")
    parsed = parse_formula("y ~ x + diag(f | g) + (1 | factor(id))")
    assert parse_formula(str(parsed)) == parsed


def test_dot_stands_for_the_other_columns() -> None:
    names = ["y", "x", "a b", "g"]
    for text, fixed in ((".", "(x + `a b`)"), (".^2 - x", "(x + `a b`)^2 - x"), ("`.` + log(x.y)", "`.` + log(x.y)")):
        assert expand_dot(parse_formula(f"y ~ {text} + (1 | g)"), names, {"y", "g"}).fixed == fixed
    for text, message in (("log(.)", "inside a call"), (".", "no other")):
        with pytest.raises(FormulaError, match=message):
            expand_dot(parse_formula(f"y ~ {text} + (1 | g)"), ["y", "g"], {"y", "g"})


def test_only_text() -> None:
    with pytest.raises(FormulaError, match="string"):
        parse_formula(3)  # type: ignore[arg-type]


def test_python_power() -> None:
    assert python_power("(a + b)^2 + log(x^2)[1^2] + {z^2} + `a^b`") == "(a + b)^2 + log(x**2)[1**2] + {z**2} + `a^b`"
    assert python_power("x^2 + f('^')", everywhere=True) == "x**2 + f('^')"


def test_names() -> None:
    assert [quote_name(n) for n in ("x", "x.1", "a b", "1a")] == ["x", "x.1", "`a b`", "`1a`"]
    assert [unquote_name(t) for t in (" x ", "`a b`", "a b", "log(x)", "`a`:`b`")] == ["x", "a b", None, None, None]


@given(st.text(alphabet="y~x+-(1|g):/`^. ", max_size=25))
def test_any_text_parses_or_is_a_formula_error(text: str) -> None:
    try:
        parsed = parse_formula(text)
    except FormulaError:
        return
    assert parsed.random
    assert all(term.expr and all(term.group) for term in parsed.random)
