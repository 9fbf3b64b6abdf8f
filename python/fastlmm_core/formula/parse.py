"""Formula text to terms: splits off the random-effect terms and expands `||` and `/` the way lme4 does.

Nothing here looks at data. The fixed part stays text; formulaic reads it in `terms`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from fastlmm_core.errors import FormulaError
from fastlmm_core.formula.quoting import (
    QUOTED,
    blank_quoted,
    depths_of,
    is_call,
    places,
    python_power,
    quote_name,
    r_operator,
    shown,
    split,
    unquote_name,
    unwrap,
)
from fastlmm_core.formula.structures import STRUCTURES, UNSTRUCTURED, TermStructure, read_structure

__all__ = ["ParsedFormula", "RandomTerm", "expand_dot", "parse_formula", "summands"]

MAX_LENGTH = 65_536  # a thousand columns by name have fifteen thousand characters
_FOREIGN = frozenset(("mat", "propto", "equalto", "unstr", "cosy", "arma", "mm", "gr", "zerocorr"))
_CALL = re.compile(r"([A-Za-z_]\w*)\s*(?=\()")
_LONE_DOT = re.compile(r"(?<![\w.)\]])\.(?![\w.])")


@dataclass(frozen=True)
class RandomTerm:
    """One random-effect term, `(expr | group)`.

    Attributes
    ----------
    expr : str
        The part left of the bar, a one-sided formula with R's implicit intercept: `"1"`, `"Days"`, `"0 + Days"`.
    group : tuple of str
        Columns whose interaction is the grouping factor; the first varies slowest in the order of the levels.
    computed : frozenset of str
        Those of them that are expressions, such as `factor(id)`.
    structure : TermStructure
        Covariance of the columns within a level.
    split : bool
        Whether the term is one of several that `||` was written for.
    """

    expr: str
    group: tuple[str, ...]
    computed: frozenset[str] = field(default=frozenset(), repr=False)
    structure: TermStructure = field(default=UNSTRUCTURED, repr=False)
    split: bool = field(default=False, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The grouping factor's name, `"cask:batch"`."""
        return ":".join(self.group)

    def __str__(self) -> str:
        names = (name if name in self.computed else quote_name(name) for name in self.group)
        return f"{self.structure.call}({self.expr} | {':'.join(names)}{self.structure.arguments})"


@dataclass(frozen=True)
class ParsedFormula:
    """A two-sided mixed-model formula, taken apart.

    Attributes
    ----------
    response : str
        Text left of `~`.
    fixed : str
        The fixed part, `"1"` where the formula has none; the intercept stays implicit. A `.` in it stands for the
        columns that `expand_dot` writes out.
    random : tuple of RandomTerm
        In the order written, after the expansion of `||` and `/`.
    offsets : tuple of str
        The arguments of `offset(...)` terms.
    sparse : tuple of str
        The columns of `sparse(...)` terms: fixed factors of many levels.
    """

    response: str
    fixed: str
    random: tuple[RandomTerm, ...]
    offsets: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()

    def __str__(self) -> str:
        calls = [f"offset({text})" for text in self.offsets] + [f"sparse({quote_name(name)})" for name in self.sparse]
        parts = [self.fixed, *calls, *map(str, self.random)]
        return f"{self.response} ~ {' + '.join(parts)}"


def parse_formula(text: str, *, fixed_only: bool = False) -> ParsedFormula:
    """Take a mixed-model formula apart.

    Parameters
    ----------
    text : str
        `"response ~ fixed + (expr | group) + ..."`. Random terms: `(1 | g)`, `(x | g)`, `(0 + x | g)`, `(x || g)`,
        `(1 | a/b)`, `(1 | a:b)`, `(1 | factor(id))`, `us(x | g)`, `diag(x | g)`,
        `ar1(0 + f | g)` and the other structures; a lone one needs no parentheses
        (`y ~ 1 | g`), and `- (1 | g)` takes one out again. `.` stands for all other columns. `^` inside a function
        call is a power, as in R.
    fixed_only : bool
        Whether a formula without random terms will do.

    Returns
    -------
    ParsedFormula

    Raises
    ------
    FormulaError
        Unbalanced brackets or quotes, a missing side, a bar without parentheses, an empty or computed grouping factor,
        a random term that is not simply added, or no random term at all; a text of absurd length or depth.

    Examples
    --------
    >>> parse_formula("y ~ x + (x || a/b)").random[0]
    RandomTerm(expr='1', group=('b', 'a'))
    """
    if not isinstance(text, str):
        raise FormulaError(
            f"the formula must be a string such as 'y ~ x + (1 | g)', not {type(text).__name__}; it comes first, "
            "the data second"
        )
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"the formula has {len(text):,} characters; at most {MAX_LENGTH:,} are read")
    parsed = _parse(str(text))
    if not parsed.random and not fixed_only:
        raise FormulaError(
            f"no random-effect term such as (1 | group) in {shown(text)}; "
            f"{_called_with_a_bar(parsed.fixed) or 'without one use a linear model'}"
        )
    return parsed


def _called_with_a_bar(fixed: str) -> str:
    """What became of `foo(x | g)`, the first such call of the fixed part, in words; empty where there is none."""
    for _, summand in summands(fixed):
        match = re.match(r"([A-Za-z_][\w.]*)\s*(?=\()", summand)
        inner = unwrap(summand[match.end() :]) if match else None
        if match and inner is not None and _bars(inner):
            return (
                f"{match[1]} is none of the covariance structures ({', '.join(STRUCTURES)}), and {shown(summand)} is "
                "read as a function of columns"
            )
    return ""


@lru_cache(maxsize=256)
def _parse(text: str) -> ParsedFormula:
    """`parse_formula`, once a text."""
    tildes = places(text, "~") if "~" in text else []
    if len(tildes) != 1:
        depths_of(text)
        found = "no `~`" if not tildes else f"{len(tildes)} `~`"
        raise FormulaError(f"a formula reads `response ~ terms`; {found} found in {shown(text)}")
    response, rhs = text[: tildes[0]].strip(), text[tildes[0] + 1 :].strip()
    if not response:
        raise FormulaError(f"the response is missing: nothing stands left of `~` in {shown(text)}")
    if not rhs:
        raise FormulaError(f"nothing stands right of `~` in {shown(text)}")
    if places(response, "|"):
        raise FormulaError(f"a bar stands left of `~` in {shown(text)}")
    if _LONE_DOT.search(blank_quoted(response)):
        raise FormulaError("`.` (all other columns) can only stand right of `~`")

    fixed: list[str] = []
    random: list[RandomTerm] = []
    offsets: list[str] = []
    sparse: list[str] = []
    for sign, summand in _flat_summands(rhs):
        if (terms := _bar_terms(summand)) is not None:
            random = [*random, *terms] if sign == "+" else _without(random, terms, summand)
        elif (argument := _argument(summand, "offset")) is not None:
            if sign == "-":
                raise FormulaError(f"{summand} cannot be subtracted")
            offsets.append(python_power(argument, everywhere=True))
        elif (argument := _argument(summand, "sparse")) is not None:
            name = unquote_name(argument)
            if name is None or sign == "-":
                raise FormulaError(f"{summand}: sparse() takes the name of a column, and is only added")
            sparse.append(name)
        else:
            fixed.append(f"{sign} {summand}" if fixed or sign == "-" else summand)
    return ParsedFormula(
        python_power(response, everywhere=True),
        python_power(" ".join(fixed)) or "1",
        tuple(random),
        tuple(offsets),
        tuple(dict.fromkeys(sparse)),
    )


def expand_dot(parsed: ParsedFormula, columns: Sequence[str], used: Container[str]) -> ParsedFormula:
    """The formula with `.` in its fixed part written out: every column that is not among those `used` elsewhere.

    R's `.` is every column but the response. Here the grouping columns and those of an offset are left out as well: as
    fixed effects they would leave nothing for their random ones.

    Raises FormulaError where `.` stands inside a call, or no column is left for it.
    """
    found = [match.start() for match in _LONE_DOT.finditer(blank_quoted(parsed.fixed))] if "." in parsed.fixed else []
    if not found:
        return parsed
    if _inside_calls(parsed.fixed, found):
        raise FormulaError("`.` (all other columns) cannot stand inside a call: name the columns")
    others = [quote_name(name) for name in columns if name not in used]
    if not others:
        raise FormulaError("`.` stands for all other columns, and the data have no other")
    text, written = parsed.fixed, f"({' + '.join(others)})"
    for at in reversed(found):
        text = text[:at] + written + text[at + 1 :]
    return replace(parsed, fixed=text)


def _inside_calls(text: str, at: Sequence[int]) -> bool:
    """Whether any of the places lies between the brackets of a call."""
    depths = depths_of(text)
    for i in at:
        depth = depths[i]
        for j in range(i, -1, -1):
            if depths[j] < depth and depths[j] != QUOTED:
                depth = depths[j]
                if text[j] != "(" or is_call(text, j):
                    return True
    return False


def _bars(text: str) -> list[int]:
    return places(text, "|")


def _hidden_bar(text: str) -> bool:
    """Whether a grouping parenthesis somewhere inside `text` holds a bar, or a call that names a structure."""
    if "|" not in text:
        return False
    depths = depths_of(text)
    for i, char in enumerate(text):
        if char == "(" and depths[i] != QUOTED:
            end = next(j for j in range(i + 1, len(text)) if depths[j] == depths[i])
            inner = text[i + 1 : end]
            if not is_call(text, i):
                if _bars(inner) or _hidden_bar(inner):
                    return True
            elif _bars(inner) and re.search(rf"(?<![\w.])(?:{'|'.join(STRUCTURES)})\s*$", text[:i]):
                return True
    return False


def summands(text: str) -> Iterator[tuple[str, str]]:
    """The sign and the text of each summand outside brackets."""
    depths = depths_of(text)
    sign, start = "+", 0
    for i in range(len(text) + 1):
        if i < len(text) and not (text[i] in "+-" and depths[i] == 0):
            continue
        piece = text[start:i].strip()
        if piece:
            yield sign, piece
            sign = "+"
        elif i == len(text):
            raise FormulaError(f"nothing follows the last operator of {text!r}")
        if i < len(text):
            # signs in a row multiply: `+ -1` subtracts
            sign = "+" if (sign == "-") == (text[i] == "-") else "-"
            start = i + 1


def _flat_summands(text: str) -> Iterator[tuple[str, str]]:
    """Signed summands of the right-hand side, with parentheses around sums of random terms opened."""
    if bars := _bars(text):
        left, right = text[: bars[0]], text[bars[-1] + 1 :]
        if any(places(side.strip(), sign) for side in (left, right) for sign in "+-") or _hidden_bar(text):
            raise FormulaError(
                f"a bar without parentheses in {shown(text)}: random-effect terms need them where anything stands "
                "beside them, as in `y ~ x + (1 | group)`"
            )
        yield "+", f"({text})"
        return
    for sign, summand in summands(text):
        if _bar_terms(summand) is not None or not _hidden_bar(summand):
            yield sign, summand
        elif (inner := unwrap(summand)) is not None:
            for inner_sign, part in _flat_summands(inner):
                yield ("+" if inner_sign == sign else "-"), part
        else:
            raise FormulaError(f"a random-effect term can only be added to the others, not combined: {summand}")


def _bar_terms(summand: str) -> list[RandomTerm] | None:
    """The random terms that a summand stands for: `(x | g)`, `diag(x | g)`; None where it is something else."""
    if "|" not in summand:
        return None
    match = _CALL.match(summand)
    inner = unwrap(summand[match.end() :] if match else summand)
    if inner is None or not _bars(inner):
        return None
    if match is None:
        return _random_terms(inner)
    if match[1] in STRUCTURES:
        body, *options = split(inner, ",")
        return _random_terms(body, read_structure(match[1], options, summand))
    if match[1] in _FOREIGN:
        instead = "; zerocorr(x | g) is diag(x | g) here" if match[1] == "zerocorr" else ""
        raise FormulaError(
            f"{match[1]} is not a covariance structure that can be fitted: {summand}. There are {', '.join(STRUCTURES)}"
            f"{instead}"
        )
    return None


def _without(random: list[RandomTerm], terms: list[RandomTerm], summand: str) -> list[RandomTerm]:
    """The random terms so far less those that are subtracted."""
    rest = list(random)
    for term in terms:
        if term not in rest:
            have = ", ".join(map(str, rest)) or "none before it"
            raise FormulaError(f"- {summand} takes out a term that is not there: the random-effect terms are {have}")
        rest.remove(term)
    return rest


def _argument(summand: str, name: str) -> str | None:
    """What stands in the brackets of `offset(...)`; None where the summand is no call of that name."""
    match = re.match(rf"{name}\s*(?=\()", summand)
    return unwrap(summand[match.end() :]) if match else None


def _random_terms(text: str, structure: TermStructure = UNSTRUCTURED) -> list[RandomTerm]:
    """Expand the inside of one parenthesised bar term."""
    bars = _bars(text)
    double = len(bars) == 2 and bars[1] == bars[0] + 1
    if len(bars) != 1 and not double:
        raise FormulaError(f"more than one bar in ({text}); write one term per grouping factor")
    expr, group = python_power(text[: bars[0]].strip()), text[bars[-1] + 1 :].strip()
    if not expr:
        raise FormulaError(f"nothing stands left of the bar in ({text}); for a random intercept write (1 | {group})")
    if not group:
        raise FormulaError(f"the grouping factor is missing in ({text})")
    if _LONE_DOT.search(blank_quoted(text)):
        raise FormulaError(f"`.` (all other columns) cannot stand in a random-effect term: ({text})")
    groups = _expand_groups(group, text)
    apart = double and structure.name == "us"
    parts = _uncorrelated(expr) if apart else [expr]
    return [RandomTerm(part, names, computed, structure, apart) for part in parts for names, computed in groups]


def _uncorrelated(expr: str) -> list[str]:
    """The additive parts of `(expr || g)`: the intercept, then each term on its own without one."""
    from fastlmm_core.formula.terms import parse_terms

    terms = parse_terms(expr)
    parts = ["1"] if terms.intercept or not terms.terms else []
    for term in terms.terms:
        texts = (_code(expr) if expr in terms.computed else quote_name(expr) for expr in term)
        parts.append(f"0 + {':'.join(texts)}")
    return parts


def _code(expr: str) -> str:
    """Python code as formula text; formulaic takes the braces off what is not a call."""
    return expr if re.match(r"[\w.]+\(", expr) and expr.endswith(")") else f"{{{expr}}}"


def _expand_groups(group: str, text: str) -> list[tuple[tuple[str, ...], frozenset[str]]]:
    """`a/b/c` becomes `c:b:a`, `b:a`, `a`: lme4's order. With each, which of its parts are expressions."""
    while (inner := unwrap(group)) is not None:
        group = inner
    expanded: list[tuple[tuple[str, ...], frozenset[str]]] = []
    names: tuple[str, ...] = ()
    computed: frozenset[str] = frozenset()
    for part in split(group, "/"):
        more, expressions = _group_names(part, text)
        names, computed = more + names, computed | expressions
        if len(set(names)) < len(names):
            raise FormulaError(f"a column occurs twice in one grouping factor: ({text})")
        expanded.insert(0, (names, computed))
    return expanded


def _group_names(part: str, text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    while (inner := unwrap(part)) is not None:
        part = inner
    names, computed = [], set()
    for piece in split(part, ":"):
        name = unquote_name(piece)
        if name is None:
            match = re.match(r"[A-Za-z_][\w.]*\s*(?=\()", piece)
            if match is None or unwrap(piece[match.end() :]) is None:
                raise FormulaError(
                    f"cannot read the grouping factor {part!r} in ({text}): it has to be a column, a call such as "
                    f"factor(id), columns joined by `:`, or nested columns joined by `/`{r_operator(part)}"
                )
            name = python_power(piece, everywhere=True)
            computed.add(name)
        names.append(name)
    return tuple(names), frozenset(computed)
