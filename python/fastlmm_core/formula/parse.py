"""Formula text to terms: splits off the random-effect terms and expands `||` and `/` the way lme4 does.

Nothing here looks at data. The fixed part stays text; formulaic reads it in `terms`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import lru_cache

from fastlmm_core.errors import FormulaError

__all__ = ["ParsedFormula", "RandomTerm", "parse_formula"]

_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_QUOTES = "\"'`"
_QUOTED = 1 << 20  # the depth given to quoted characters: never the depth of an operator
_NAME = re.compile(r"[^\W\d][\w.]*")
_DOTTED = re.compile(r"`[^`]*`|\"[^\"]*\"|'[^']*'|[^\W\d][\w.]*\.[\w.]*\w")
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
    """

    expr: str
    group: tuple[str, ...]

    @property
    def label(self) -> str:
        """The grouping factor's name, `"cask:batch"`."""
        return ":".join(self.group)

    def __str__(self) -> str:
        return f"({self.expr} | {':'.join(quote_name(name) for name in self.group)})"


@dataclass(frozen=True)
class ParsedFormula:
    """A two-sided mixed-model formula, taken apart.

    Attributes
    ----------
    response : str
        Text left of `~`.
    fixed : str
        The fixed part, `"1"` where the formula has none; the intercept stays implicit.
    random : tuple of RandomTerm
        In the order written, after the expansion of `||` and `/`.
    offsets : tuple of str
        The arguments of `offset(...)` terms.
    """

    response: str
    fixed: str
    random: tuple[RandomTerm, ...]
    offsets: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [self.fixed, *(f"offset({text})" for text in self.offsets), *map(str, self.random)]
        return f"{self.response} ~ {' + '.join(parts)}"


def parse_formula(text: str, *, fixed_only: bool = False) -> ParsedFormula:
    """Take a mixed-model formula apart.

    Parameters
    ----------
    text : str
        `"response ~ fixed + (expr | group) + ..."`. Random terms: `(1 | g)`, `(x | g)`, `(0 + x | g)`, `(x || g)`,
        `(1 | a/b)`, `(1 | a:b)`. `^` inside a function call is a power, as in R.
    fixed_only : bool
        Whether a formula without random terms will do.

    Returns
    -------
    ParsedFormula

    Raises
    ------
    FormulaError
        Unbalanced brackets or quotes, a missing side, a bar without parentheses, an empty or computed grouping factor,
        a random term that is not simply added, or no random term at all.

    Examples
    --------
    >>> parse_formula("y ~ x + (x || a/b)").random[0]
    RandomTerm(expr='1', group=('b', 'a'))
    """
    if not isinstance(text, str):
        raise FormulaError(f"the formula must be a string, not {type(text).__name__}")
    parsed = _parse(str(text))
    if not parsed.random and not fixed_only:
        raise FormulaError(f"no random-effect term such as (1 | group) in {text!r}; without one use a linear model")
    return parsed


@lru_cache(maxsize=256)
def _parse(text: str) -> ParsedFormula:
    """`parse_formula`, once a text."""
    depths = _depths(text)
    tildes = [i for i, c in enumerate(text) if c == "~" and depths[i] == 0]
    if len(tildes) != 1:
        found = "no `~`" if not tildes else f"{len(tildes)} `~`"
        raise FormulaError(f"a formula reads `response ~ terms`; {found} found in {text!r}")
    response, rhs = text[: tildes[0]].strip(), text[tildes[0] + 1 :].strip()
    if not response:
        raise FormulaError(f"the response is missing: nothing stands left of `~` in {text!r}")
    if not rhs:
        raise FormulaError(f"nothing stands right of `~` in {text!r}")
    if any(c == "|" and d == 0 for c, d in zip(response, _depths(response), strict=True)):
        raise FormulaError(f"a bar stands left of `~` in {text!r}")
    for side in (response, rhs):
        if _LONE_DOT.search(_blank_quoted(side)):
            raise FormulaError("`.` (all other columns) is not supported: name the columns")

    fixed: list[str] = []
    random: list[RandomTerm] = []
    offsets: list[str] = []
    for sign, summand in _flat_summands(rhs):
        inner = _unwrap(summand)
        if inner is not None and _bars(inner):
            random.extend(_random_terms(inner))
        elif (argument := _offset_argument(summand)) is not None:
            if sign == "-":
                raise FormulaError(f"{summand} cannot be subtracted")
            offsets.append(python_power(argument, everywhere=True))
        else:
            fixed.append(f"{sign} {summand}" if fixed or sign == "-" else summand)
    return ParsedFormula(
        python_power(response, everywhere=True), python_power(" ".join(fixed)) or "1", tuple(random), tuple(offsets)
    )


def quote_name(name: str) -> str:
    """The name as a formula needs it: back-quoted unless it is a plain identifier."""
    return name if _NAME.fullmatch(name) else f"`{name}`"


def unquote_name(text: str) -> str | None:
    """The column that `text` names, plainly or in back-quotes; None where it is an expression."""
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "`" and "`" not in text[1:-1]:
        return text[1:-1]
    return text if _NAME.fullmatch(text) else None


def quote_dotted(text: str, columns: Container[str]) -> str:
    """Back-quote the names with dots that are columns: `log(Sepal.Length)` means no attribute of `Sepal`."""
    return _DOTTED.sub(lambda match: f"`{match[0]}`" if match[0] in columns else match[0], text)


def python_power(text: str, *, everywhere: bool = False) -> str:
    """Write R's `^` as Python's `**` inside function calls (or everywhere), where it is arithmetic.

    Outside a call `^` is the formula operator `(a + b)^2`, which formulaic reads itself.
    """
    if "^" not in text:
        return text
    out: list[str] = []
    calls: list[bool] = [everywhere]
    depths = _depths(text)
    for i, char in enumerate(text):
        if depths[i] == _QUOTED:
            out.append(char)
            continue
        if char in _CLOSERS:
            calls.append(calls[-1] or char == "{" or _is_call(text, i))
        elif char in ")]}":
            calls.pop()
        out.append("**" if char == "^" and calls[-1] else char)
    return "".join(out)


def _depths(text: str) -> list[int]:
    """Bracket depth of every character; an opener and its closer have the depth outside them.

    Raises FormulaError where brackets or quotes do not balance.
    """
    depths: list[int] = []
    stack: list[tuple[str, int]] = []
    quote = ""
    for i, char in enumerate(text):
        if quote:
            depths.append(_QUOTED)
            if char == quote and text[i - 1] != "\\":
                quote = ""
            continue
        if char in _QUOTES:
            quote = char
            depths.append(_QUOTED)
            continue
        if char in ")]}":
            if not stack or _CLOSERS[stack[-1][0]] != char:
                raise FormulaError(f"unbalanced brackets: unexpected {char!r} at position {i} of {text!r}")
            stack.pop()
        depths.append(len(stack))
        if char in _CLOSERS:
            stack.append((char, i))
    if quote:
        raise FormulaError(f"unbalanced quotes: a {quote} is not closed in {text!r}")
    if stack:
        raise FormulaError(
            f"unbalanced brackets: {stack[-1][0]!r} at position {stack[-1][1]} of {text!r} is not closed"
        )
    return depths


def _blank_quoted(text: str) -> str:
    return "".join("q" if d == _QUOTED else c for c, d in zip(text, _depths(text), strict=True))


def _split(text: str, separator: str) -> list[str]:
    """Pieces of `text` between separators outside brackets and quotes, stripped."""
    depths = _depths(text)
    cuts = [i for i, char in enumerate(text) if char == separator and depths[i] == 0]
    return [text[a + 1 : b].strip() for a, b in zip([-1, *cuts], [*cuts, len(text)], strict=True)]


def _bars(text: str) -> list[int]:
    depths = _depths(text)
    return [i for i, char in enumerate(text) if char == "|" and depths[i] == 0]


def _unwrap(text: str) -> str | None:
    """What stands between the parentheses where one pair encloses all of `text`."""
    if not (text.startswith("(") and text.endswith(")")):
        return None
    depths = _depths(text)
    return text[1:-1].strip() if all(depths[1:-1]) else None


def _is_call(text: str, i: int) -> bool:
    """Whether the bracket at `i` follows a name, so that it is a call and not a grouping."""
    before = text[:i].rstrip()
    return bool(before) and (before[-1].isalnum() or before[-1] in "_`)]")


def _hidden_bar(text: str) -> bool:
    """Whether a grouping parenthesis somewhere inside `text` holds a bar."""
    depths = _depths(text)
    for i, char in enumerate(text):
        if char == "(" and depths[i] != _QUOTED and not _is_call(text, i):
            end = next(j for j in range(i + 1, len(text)) if depths[j] == depths[i])
            if _bars(text[i + 1 : end]) or _hidden_bar(text[i + 1 : end]):
                return True
    return False


def _summands(text: str) -> Iterator[tuple[str, str]]:
    depths = _depths(text)
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
    if _bars(text):
        raise FormulaError(
            f"a bar without parentheses in {text!r}: random-effect terms need them, as in `y ~ x + (1 | group)`"
        )
    for sign, summand in _summands(text):
        inner = _unwrap(summand)
        is_random = inner is not None and bool(_bars(inner))
        if sign == "-" and (is_random or _hidden_bar(summand)):
            raise FormulaError(f"a random-effect term cannot be subtracted: - {summand}")
        if is_random or not _hidden_bar(summand):
            yield sign, summand
        elif inner is not None:
            yield from _flat_summands(inner)
        else:
            raise FormulaError(f"a random-effect term can only be added to the others, not combined: {summand}")


def _offset_argument(summand: str) -> str | None:
    match = re.match(r"offset\s*(?=\()", summand)
    return _unwrap(summand[match.end() :]) if match else None


def _random_terms(text: str) -> list[RandomTerm]:
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
    groups = _expand_groups(group, text)
    return [RandomTerm(part, names) for part in (_uncorrelated(expr) if double else [expr]) for names in groups]


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


def _expand_groups(group: str, text: str) -> list[tuple[str, ...]]:
    """`a/b/c` becomes `c:b:a`, `b:a`, `a`: lme4's order."""
    while (inner := _unwrap(group)) is not None:
        group = inner
    parts = [_group_names(part, text) for part in _split(group, "/")]
    expanded: list[tuple[str, ...]] = []
    names: tuple[str, ...] = ()
    for part in parts:
        names = part + names
        if len(set(names)) < len(names):
            raise FormulaError(f"a column occurs twice in one grouping factor: ({text})")
        expanded.insert(0, names)
    return expanded


def _group_names(part: str, text: str) -> tuple[str, ...]:
    while (inner := _unwrap(part)) is not None:
        part = inner
    names = [unquote_name(piece) for piece in _split(part, ":")]
    if any(name is None for name in names):
        raise FormulaError(
            f"cannot read the grouping factor {part!r} in ({text}): it has to be a column, columns joined by `:`, "
            "or nested columns joined by `/`; compute anything else as a column of the data first"
        )
    return tuple(name for name in names if name is not None)
