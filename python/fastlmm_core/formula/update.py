"""A formula changed the way R's `update` does: `". ~ . - Days"`, `"log(.) ~ ."`, `"~ . + (1 | item)"`."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import replace

from fastlmm_core.errors import FormulaError
from fastlmm_core.formula.parse import ParsedFormula, RandomTerm, parse_formula, summands
from fastlmm_core.formula.quoting import quote_name
from fastlmm_core.formula.terms import Terms, parse_terms

__all__ = ["fixed_text", "random_effects_text", "updated_formula"]

_DOT = re.compile(r"(?<![\w.)\]])\.(?![\w.])")


def updated_formula(old: str, new: str, columns: Container[str] = ()) -> str:
    """The formula `old` with the changes that `new` asks for.

    Parameters
    ----------
    old : str
    new : str
        With "." for the old side; terms that are added or subtracted are compared as sets, so that `- x:a` takes `a:x`
        out. A random term is subtracted by its text, or one effect of it as `- (0 + x | g)`.
    columns : container of str
        The data's, so that a name with dots means one.

    Raises
    ------
    FormulaError
        `new` has not two sides, or takes out a term that is not there.

    Examples
    --------
    >>> updated_formula("y ~ a * b + (x | g)", "log(.) ~ . - b:a - (0 + x | g)")
    'log(y) ~ a + b + (1 | g)'
    """
    if new.count("~") != 1:
        raise FormulaError(f"a change of a formula has two sides, as in '. ~ . - x', not {new!r}")
    was = parse_formula(old, fixed_only=True)
    left, right = (side.strip() for side in new.split("~"))
    response = _DOT.sub(was.response, left) if left else was.response
    change = _Change(was, columns)
    for sign, summand in summands(right):
        change.apply(sign, summand)
    parts = [change.fixed(), *(f"offset({text})" for text in change.offsets), *map(str, change.random)]
    return f"{response} ~ {' + '.join(parts)}"


class _Change:
    """The right-hand side as it grows, summand by summand."""

    def __init__(self, was: ParsedFormula, columns: Container[str]) -> None:
        self.was, self.columns = was, columns
        self.added: list[str] = []
        self.removed: list[str] = []
        self.random: list[RandomTerm] = []
        self.offsets: list[str] = []
        self.had_dot = False

    def apply(self, sign: str, summand: str) -> None:
        """Add a summand or take it out."""
        if _DOT.search(summand):
            if sign == "-":
                raise FormulaError(f"- {summand} would take everything out: name the terms")
            if not self.had_dot:
                self.random += self.was.random
                self.offsets += self.was.offsets
            self.had_dot = True
            text = self.was.fixed
            self.added.append(text if summand == "." else _DOT.sub(f"({text})", summand))
            return
        part = parse_formula(f"y ~ {summand}", fixed_only=True)
        if part.random:
            for term in part.random:
                if sign == "+":
                    self.random.append(term)
                else:
                    self._without(term)
        elif part.offsets:
            for offset in part.offsets:
                if sign == "+":
                    self.offsets.append(offset)
                elif offset in self.offsets:
                    self.offsets.remove(offset)
                else:
                    raise FormulaError(f"- offset({offset}) takes out an offset that is not there")
        elif sign == "+":
            self.added.append(summand)
        else:
            self.removed.append(summand)

    def _without(self, term: RandomTerm) -> None:
        """Take a random term out, or its effects out of a larger one on the same group."""
        group, effects = sorted(term.group), _effects(term.expr, self.columns)
        mine = [t for t in self.random if sorted(t.group) == group]
        for other in mine:
            if _effects(other.expr, self.columns) == effects:
                self.random.remove(other)
                return
        for other in mine:
            left = [e for e in _effects(other.expr, self.columns) if e not in effects]
            if all(e in _effects(other.expr, self.columns) for e in effects):
                at = self.random.index(other)
                self.random[at] = replace(other, expr=random_effects_text([":".join(sorted(e)) for e in left]))
                return
        have = ", ".join(map(str, self.random)) or "none"
        raise FormulaError(f"- {term} takes out a term that is not there: the random-effect terms are {have}")

    def fixed(self) -> str:
        """Text of the fixed part."""
        text = " + ".join(self.added) or "1"
        if not self.removed:
            return text
        terms = parse_terms(text, self.columns)
        intercept, kept = terms.intercept, list(terms.terms)
        for removed in self.removed:
            if removed in ("0", "1"):
                intercept = removed == "0"
                continue
            for out in parse_terms(f"0 + {removed}", self.columns).terms:
                found = [t for t in kept if set(t) == set(out)]
                if not found:
                    have = ", ".join(":".join(t) for t in kept) or "none"
                    raise FormulaError(f"- {':'.join(out)} takes out a term that is not there: the terms are {have}")
                kept.remove(found[0])
        return fixed_text(Terms(intercept, tuple(kept), terms.computed))


def fixed_text(terms: Terms) -> str:
    """Terms as the text of a formula."""
    written = [":".join(e if e in terms.computed else quote_name(e) for e in term) for term in terms.terms]
    return " + ".join([*(["0"] if not terms.intercept else []), *written]) or "1"


def random_effects_text(effects: Sequence[str]) -> str:
    """The left side of a random term; "" or "Intercept" is the intercept."""
    names = [e for e in effects if e not in ("", "Intercept")]
    if len(names) == len(effects):
        return " + ".join(["0", *names])
    return " + ".join(["1", *names])


def _effects(expr: str, columns: Container[str]) -> list[frozenset[str]]:
    """Effects left of a bar, each as the set of what it multiplies; the empty set is the intercept."""
    terms = parse_terms(expr, columns)
    return [frozenset[str]()] * terms.intercept + [frozenset(t) for t in terms.terms]
