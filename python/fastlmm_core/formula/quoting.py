"""Names and brackets in formula text: which characters are quoted, which names are columns, what R spells otherwise."""

from __future__ import annotations

import re
from collections.abc import Container

from fastlmm_core.errors import FormulaError

__all__ = [
    "QUOTED",
    "blank_quoted",
    "depths_of",
    "is_call",
    "places",
    "plain_code",
    "python_power",
    "quote_dotted",
    "quote_name",
    "r_operator",
    "shown",
    "split",
    "unquote_name",
    "unwrap",
]

_CLOSERS = {"(": ")", "[": "]", "{": "}"}
QUOTED = 1 << 20  # the depth given to quoted characters: never the depth of an operator
MAX_DEPTH = 100  # brackets within brackets; Python's own parser gives up at two hundred
_QUOTES = "\"'`"
_NAME = re.compile(r"[^\W\d][\w.]*")
_DOTTED = re.compile(r"`[^`]*`|\"[^\"]*\"|'[^']*'|[^\W\d][\w.]*\.[\w.]*\w")
_STRINGS = r"`[^`]*`|\"[^\"]*\"|'[^']*'"
# names with dots that only R has: functions, and arguments of calls
_R_NAMES = re.compile(rf"{_STRINGS}|(?<![\w.])(?:as|is)\.\w+(?=\s*\()|(?<![\w.])[A-Za-z]+\.[A-Za-z]+(?=\s*=(?!=))")


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
    if "." not in text:
        return text
    return _DOTTED.sub(lambda match: f"`{match[0]}`" if match[0] in columns else match[0], text)


def plain_code(text: str, columns: Container[str]) -> str:
    """An expression as Python reads it: R's dotted names (`as.factor(`, `Boundary.knots=`) get underscores."""
    if "." not in text:
        return text
    text = quote_dotted(text, columns)
    return _R_NAMES.sub(lambda match: match[0] if match[0][0] in _QUOTES else match[0].replace(".", "_"), text)


def python_power(text: str, *, everywhere: bool = False) -> str:
    """Write R's `^` as Python's `**` inside function calls (or everywhere), where it is arithmetic.

    Outside a call `^` is the formula operator `(a + b)^2`, which formulaic reads itself.
    """
    if "^" not in text:
        return text
    out: list[str] = []
    calls: list[bool] = [everywhere]
    depths = depths_of(text)
    for i, char in enumerate(text):
        if depths[i] == QUOTED:
            out.append(char)
            continue
        if char in _CLOSERS:
            calls.append(calls[-1] or char == "{" or is_call(text, i))
        elif char in ")]}":
            calls.pop()
        out.append("**" if char == "^" and calls[-1] else char)
    return "".join(out)


def depths_of(text: str) -> list[int]:
    """Bracket depth of every character; an opener and its closer have the depth outside them.

    Raises FormulaError where brackets or quotes do not balance, or are nested absurdly.
    """
    depths: list[int] = []
    stack: list[tuple[str, int]] = []
    quote = ""
    for i, char in enumerate(text):
        if quote:
            depths.append(QUOTED)
            if char == quote and text[i - 1] != "\\":
                quote = ""
            continue
        if char in _QUOTES:
            quote = char
            depths.append(QUOTED)
            continue
        if char in ")]}":
            if not stack or _CLOSERS[stack[-1][0]] != char:
                raise FormulaError(f"unbalanced brackets: unexpected {char!r} at position {i} of {shown(text)}")
            stack.pop()
        depths.append(len(stack))
        if char in _CLOSERS:
            stack.append((char, i))
            if len(stack) > MAX_DEPTH:
                raise FormulaError(f"brackets are nested more than {MAX_DEPTH} deep in {shown(text)}")
    if quote:
        raise FormulaError(f"unbalanced quotes: a {quote} is not closed in {shown(text)}")
    if stack:
        raise FormulaError(
            f"unbalanced brackets: {stack[-1][0]!r} at position {stack[-1][1]} of {shown(text)} is not closed"
        )
    return depths


def shown(text: str, most: int = 200) -> str:
    """The text as a message quotes it: not a page of it."""
    return repr(text if len(text) <= most else f"{text[:most]}...")


_OF_R = {
    **{"%in%": "x.isin(['a', 'b'])", "%%": "(x % m)", "%/%": "(x // m)", "&&": "(a) & (b)", "||": "(a) | (b)"},
    **{"$": "the column's name alone", "::": "the function's name alone", "[,": "no index: scale(x) is one column"},
    **{"!": "~(...)", "<-": "="},
}


def r_operator(text: str) -> str:
    """What stands here for the first operator of R's that Python has not, after a semicolon; empty for none."""
    plain = re.sub(_STRINGS, lambda match: "q" * len(match[0]), text).replace("!=", "  ")
    return next((f"; R's {theirs} is {ours} here" for theirs, ours in _OF_R.items() if theirs in plain), "")


def blank_quoted(text: str) -> str:
    """The text with quoted characters replaced by letters."""
    return "".join("q" if d == QUOTED else c for c, d in zip(text, depths_of(text), strict=True))


def places(text: str, symbol: str) -> list[int]:
    """Where `symbol` stands outside brackets and quotes."""
    if symbol not in text:
        return []
    depths = depths_of(text)
    return [i for i, char in enumerate(text) if char == symbol and depths[i] == 0]


def split(text: str, separator: str) -> list[str]:
    """Pieces of `text` between separators outside brackets and quotes, stripped."""
    cuts = places(text, separator)
    return [text[a + 1 : b].strip() for a, b in zip([-1, *cuts], [*cuts, len(text)], strict=True)]


def unwrap(text: str) -> str | None:
    """What stands between the parentheses where one pair encloses all of `text`."""
    if not (text.startswith("(") and text.endswith(")")):
        return None
    depths = depths_of(text)
    return text[1:-1].strip() if all(depths[1:-1]) else None


def is_call(text: str, i: int) -> bool:
    """Whether the bracket at `i` follows a name, so that it is a call and not a grouping."""
    while i > 0 and text[i - 1].isspace():
        i -= 1
    return i > 0 and (text[i - 1].isalnum() or text[i - 1] in "_`)]")
