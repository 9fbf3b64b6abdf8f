"""One-sided formulas to terms, by formulaic's parser, and R's rule for coding the factors in them."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from operator import mul
from typing import TYPE_CHECKING, Any

from fastlmm_core.errors import FormulaError
from fastlmm_core.formula.quoting import quote_dotted, r_operator, shown
from fastlmm_core.lazy import cached_property

if TYPE_CHECKING:
    from formulaic.errors import FormulaicError
    from formulaic.parser import DefaultFormulaParser

__all__ = ["Terms", "coding", "parse_terms"]

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
MOST_TERMS = 100_000  # products written out; more is a slip of the pen, and would take for ever
MOST_POWER = 16


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

    @cached_property
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
    return _sum_of_columns(text) or _of_formulaic(text)


_COLUMN = r"[A-Za-z_][A-Za-z0-9_]*"
_SUM = re.compile(rf"\s*(?:[01]|{_COLUMN})(?:\s*\+\s*{_COLUMN})*\s*")


def _sum_of_columns(text: str) -> Terms | None:
    """The terms of `x + y`, `0 + x`, `1`: most formulas, for which formulaic need not be loaded; None for another."""
    if _SUM.fullmatch(text) is None:
        return None
    names = [name.strip() for name in text.split("+")]
    intercept = names[0] != "0"
    names = names[1:] if names[0] in ("0", "1") else names
    if any(keyword.iskeyword(name) for name in names):
        return None
    return Terms(intercept, tuple((name,) for name in dict.fromkeys(names)), frozenset())


@cache
def _parser_of_r() -> DefaultFormulaParser:
    """Formulaic's parser with R's `a %in% b`, which is a:b; formulaic's adds b."""
    from formulaic.parser import DefaultFormulaParser
    from formulaic.parser.parser import DefaultOperatorResolver
    from formulaic.parser.types import Operator, OrderedSet

    def inside(nested: OrderedSet, parents: OrderedSet) -> OrderedSet:
        return OrderedSet(reduce(mul, parents, term) for term in nested)

    class Resolver(DefaultOperatorResolver):  # type: ignore[misc]
        @property
        def operators(self) -> list[Operator]:
            own = Operator("in", arity=2, precedence=200, associativity="left", to_terms=inside)
            return [own if operator.symbol == "in" else operator for operator in super().operators]

    return DefaultFormulaParser(operator_resolver=Resolver())


def _of_formulaic(text: str) -> Terms:
    """The terms of any other text."""
    from formulaic import Formula, SimpleFormula
    from formulaic.errors import FormulaicError
    from formulaic.parser.types import Factor

    try:
        readable, aliases = _readable(text)
        if any(symbol in text for symbol in "*:^/"):
            _check_size(readable)
        formula = Formula(readable, _parser=_parser_of_r()) if "%in%" in readable else Formula(readable)
    except FormulaError:
        raise
    except FormulaicError as error:
        raise FormulaError(f"cannot read {shown(text)}: {_plain_message(error, text)}{r_operator(text)}") from None
    except SyntaxError as error:
        where = shown((error.text or text).strip())
        raise FormulaError(f"cannot read {shown(text)}: {error.msg} in {where}{r_operator(text)}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise FormulaError(f"cannot read {shown(text)}: {type(error).__name__}: {error}") from None
    if not isinstance(formula, SimpleFormula):
        raise FormulaError(f"cannot read {shown(text)}: it has to be one sum of terms")
    place: dict[str, int] = {}
    written: dict[str, str] = {}
    for term in formula:
        for factor in term.factors:
            start = factor.token.source_start if factor.token and factor.token.source_start is not None else 0
            place[factor.expr] = min(start, place.get(factor.expr, start))
            written[factor.expr] = _as_written(factor.expr, aliases)
    intercept, terms, computed = False, [], set()
    for term in formula:
        if any(factor.eval_method is Factor.EvalMethod.LITERAL for factor in term.factors):
            if len(term.factors) > 1:
                raise FormulaError(f"a number cannot multiply a term in {shown(text)}: write I(2 * x)")
            intercept = True
            continue
        exprs = sorted((factor.expr for factor in term.factors), key=place.__getitem__)
        terms.append(tuple(written[expr] for expr in exprs))
        computed |= {written[factor.expr] for factor in term.factors if factor.eval_method is Factor.EvalMethod.PYTHON}
    return Terms(intercept, tuple(terms), frozenset(computed))


_ODD = re.compile(
    r"`([^`]*)`|\"[^\"]*\"|'[^']*'|(?<![\w.])((?:as|is)\.\w+)(?=\s*\()|([A-Za-z]+\.[A-Za-z]+)(?=\s*=(?!=))"
)


def _readable(text: str) -> tuple[str, dict[str, str]]:
    """The text with names that formulaic takes for something else under aliases, and what these stand for.

    These are quoted columns that are called like numbers or Python's names and keywords (formulaic would quote `p`
    within `poly`, too), and R's functions and arguments with dots.
    """
    aliases: dict[str, str] = {}
    made: dict[str, str] = {}

    def alias(match: re.Match[str]) -> str:
        quoted, call, argument = match.groups()
        if call or argument or (quoted and (quoted.isidentifier() or quoted.replace(".", "").isnumeric())):
            own = made.setdefault(match[0], f"_alias_{len(made)}_")
            aliases[own] = match[0]
            return own
        return match[0]

    return (_ODD.sub(alias, text), aliases) if "`" in text or "." in text else (text, aliases)


def _as_written(expr: str, aliases: dict[str, str]) -> str:
    if expr in aliases:
        return aliases[expr].strip("`")
    for made, name in aliases.items():
        expr = expr.replace(made, name)
    return expr


def _plain_message(error: FormulaicError, text: str) -> str:
    """Formulaic's message in plain characters, and what to write where Python's arithmetic was meant."""
    # the lines after the first repeat the text with marks in it
    message = _COLOURS.sub("", str(error)).strip().splitlines()[0].rstrip(".")
    if re.search(r"[<>=!]=?|\d\s*\*(?!\*)|\*\s*\d", text):
        message += ". Arithmetic and comparisons go inside I(), as in I(2 * x) or I(x > 3)"
    return message


def _check_size(text: str) -> None:
    """Refuse what would be written out to more than `MOST_TERMS` products, before it is."""
    from formulaic.parser import DefaultFormulaParser
    from formulaic.parser.types import ASTNode

    node = DefaultFormulaParser().parse(text, target="ast")
    if not isinstance(node, ASTNode):
        return
    counts: dict[int, int] = {}
    waiting: list[tuple[Any, bool]] = [(node, False)]
    while waiting:  # not recursive: a sum of a thousand terms is a thousand nodes deep
        node, ready = waiting.pop()
        below = [arg for arg in node.args if isinstance(arg, ASTNode)]
        if not ready:
            waiting += [(node, True), *((arg, False) for arg in below)]
            continue
        sizes = [counts[id(arg)] if isinstance(arg, ASTNode) else 1 for arg in node.args]
        counts[id(node)] = size = _n_products(node.operator.symbol, sizes, node.args, text)
        if size > MOST_TERMS:
            raise FormulaError(f"{shown(text)} stands for more than {MOST_TERMS:,} terms")


def _n_products(symbol: str, sizes: Sequence[int], args: Sequence[Any], text: str) -> int:
    """At most how many products an operator of a formula makes of its arguments' terms."""
    if symbol == ":":
        return math.prod(sizes)
    if symbol == "*":
        return sum(sizes) + math.prod(sizes)
    if symbol in ("**", "^"):
        power = str(args[1])
        if power.isdigit() and (len(power) > 2 or int(power) > MOST_POWER):
            raise FormulaError(
                f"the power {power[:20]} in {shown(text)} asks for interactions of as many variables: at most "
                f"{MOST_POWER} is read; arithmetic goes inside I(), as in I(x**2)"
            )
        return sizes[0] ** int(power) if power.isdigit() else 1
    return sum(sizes) if sizes else 1


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
