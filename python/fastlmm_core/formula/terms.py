"""One-sided formulas to terms, by formulaic's parser, and R's rule for coding the factors in them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache

from formulaic import Formula, SimpleFormula
from formulaic.errors import FormulaicError
from formulaic.parser.types import Factor

from fastlmm_core.errors import FormulaError
from fastlmm_core.formula.parse import quote_dotted

__all__ = ["Terms", "coding", "parse_terms"]

_LITERAL, _PYTHON = Factor.EvalMethod.LITERAL, Factor.EvalMethod.PYTHON


@dataclass(frozen=True)
class Terms:
    """The terms of a one-sided formula, in R's order: by degree, then as written.

    Attributes
    ----------
    intercept : bool
    terms : tuple of tuple of str
        The expressions multiplied in each term, in the order in which the formula first names them.
    computed : frozenset of str
        The expressions that are Python code; the others are column names.
    """

    intercept: bool
    terms: tuple[tuple[str, ...], ...]
    computed: frozenset[str]

    @property
    def factors(self) -> tuple[str, ...]:
        """Every expression, once."""
        return tuple(dict.fromkeys(expr for term in self.terms for expr in term))


def parse_terms(text: str, columns: Container[str] = ()) -> Terms:
    """Read a one-sided formula such as `"x * f + log(z)"`; the intercept is implicit.

    `columns` are the data's: a name with dots among them means the column, also inside a call (`log(Sepal.Length)`).

    Raises FormulaError where formulaic cannot read the text, or reads something that is not a sum of terms.
    """
    return _read(quote_dotted(text, columns))


@lru_cache(maxsize=256)  # reading a formula takes as long as fitting it to some hundred rows
def _read(text: str) -> Terms:
    """`parse_terms` of a text whose dotted names are quoted."""
    try:
        formula = Formula(text)
    except FormulaicError as error:
        raise FormulaError(f"cannot read {text!r}: {error}") from None
    except SyntaxError as error:
        raise FormulaError(f"cannot read {text!r}: {error.msg} in {(error.text or text).strip()!r}") from None
    if not isinstance(formula, SimpleFormula):
        raise FormulaError(f"cannot read {text!r}: it has to be one sum of terms")
    place: dict[str, int] = {}
    for term in formula:
        for factor in term.factors:
            start = factor.token.source_start if factor.token and factor.token.source_start is not None else 0
            place[factor.expr] = min(start, place.get(factor.expr, start))
    intercept, terms, computed = False, [], set()
    for term in formula:
        if any(factor.eval_method is _LITERAL for factor in term.factors):
            if len(term.factors) > 1:
                raise FormulaError(f"a number cannot multiply a term in {text!r}: write I(2 * x)")
            intercept = True
            continue
        terms.append(tuple(sorted((factor.expr for factor in term.factors), key=place.__getitem__)))
        computed |= {factor.expr for factor in term.factors if factor.eval_method is _PYTHON}
    return Terms(intercept, tuple(terms), frozenset(computed))


def coding(terms: Terms, categorical: Container[str]) -> list[tuple[bool, ...]]:
    """Whether each factor of each term is coded by contrasts (True) or by one dummy a level (False).

    The rule of R's `terms.formula` (Chambers & Hastie 1992, p. 38): contrasts where the term without that factor is
    already within an earlier term (the empty term always is); without an intercept the first factor that appears
    gets dummies all the same.
    """
    seen: list[set[str]] = [set()]
    codes: list[tuple[bool, ...]] = []
    for term in terms.terms:
        codes.append(tuple(any(set(term) - {expr} <= other for other in seen) for expr in term))
        seen.append(set(term))
    if not terms.intercept:
        _first_gets_dummies(terms.terms, codes, categorical)
    return codes


def _first_gets_dummies(
    terms: Sequence[tuple[str, ...]], codes: list[tuple[bool, ...]], categorical: Container[str]
) -> None:
    for k, term in enumerate(terms):
        for j, expr in enumerate(term):
            if expr in categorical:
                codes[k] = (*codes[k][:j], False, *codes[k][j + 1 :])
                return
