"""A formula over a table before any row is chosen: its terms, and the variables that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.formula.checks import OFFSET, Rows
from fastlmm_core.formula.evaluate import Context, Evaluator
from fastlmm_core.formula.fixed import MatrixSpec, columns_of, values_of
from fastlmm_core.formula.frame import Numeric, Table, Variable
from fastlmm_core.formula.grid_info import GridSource
from fastlmm_core.formula.levels import Factor
from fastlmm_core.formula.newdata import grouping_factor, offset_columns, offset_values
from fastlmm_core.formula.parse import ParsedFormula, expand_dot, parse_formula
from fastlmm_core.formula.quoting import unquote_name
from fastlmm_core.formula.residual import ResidualRequest
from fastlmm_core.formula.rowwise import numeric_argument, subset_rows
from fastlmm_core.formula.terms import Terms, parse_terms
from fastlmm_core.records import quick

__all__ = ["Arguments", "Reading", "Variables", "read_formula"]

Array = NDArray[np.float64]


@quick
@dataclass(frozen=True)
class Arguments:
    """Which rows, with which weights and what added to their predictor: a text or one value a row, or None."""

    subset: str | ArrayLike | None = None
    weights: str | ArrayLike | None = None
    offset: str | ArrayLike | None = None


@quick
@dataclass(frozen=True)
class Variables:
    """What a model reads of all rows of a table.

    Attributes
    ----------
    response : Variable
    fixed, factors, sparse, residual : mapping of Variable
        By the text that computes them: of the fixed part, grouping factors, sparse effects, the residuals' structure.
    random : mapping of mapping
        The same of each random term, by the term's text.
    offset, weights : (N,) or None
    kept : (N,) bool or None
        Rows that `subset` keeps.
    """

    response: Variable
    fixed: Mapping[str, Variable]
    random: Mapping[str, Mapping[str, Variable]]
    factors: Mapping[str, Factor]
    sparse: Mapping[str, Variable]
    residual: Mapping[str, Variable]
    offset: Array | None
    weights: Array | None
    kept: NDArray[np.bool_] | None

    def named(self, response: str) -> dict[str, Variable]:
        """All of them by the names that messages use; a row that lacks one of them cannot be used."""
        found: dict[str, Variable] = {response: self.response, **self.fixed}
        for of_term in self.random.values():
            found.update(of_term)
        found.update(self.factors)
        found.update(self.sparse)
        found.update(self.residual)
        if self.offset is not None:
            found[OFFSET] = Numeric(self.offset)
        if self.weights is not None:
            found["the weights"] = Numeric(self.weights)
        return found


@quick
@dataclass(frozen=True)
class Reading:
    """A formula's terms over a table that has the columns they need.

    Attributes
    ----------
    parsed : ParsedFormula
        With a `.` spelled out.
    evaluate : Evaluator
    residual : ResidualRequest or None
    answer : str or None
        The response's column; None where it is computed.
    fixed : Terms
    random : mapping of Terms
        By the term's text.
    groups : sequence of str
        Columns and expressions of the grouping factors.
    """

    parsed: ParsedFormula
    evaluate: Evaluator
    residual: ResidualRequest | None
    answer: str | None
    fixed: Terms
    random: Mapping[str, Terms]
    groups: Sequence[str]

    def variables(self, given: Arguments) -> Variables:
        """Every variable of the model and its arguments, over all rows of the table."""
        parsed, evaluate, table = self.parsed, self.evaluate, self.evaluate.table
        weights, subset = given.weights, given.subset
        return Variables(
            response=evaluate(parsed.response) if self.answer is None else table[self.answer],
            fixed=values_of(self.fixed, evaluate),
            random={expr: values_of(terms, evaluate) for expr, terms in self.random.items()},
            factors={name: grouping_factor(name, evaluate) for name in self.groups},
            sparse={name: table[name] for name in parsed.sparse},
            residual={} if self.residual is None else self.residual.variables(),
            offset=offset_values(parsed.offsets, given.offset, evaluate),
            weights=None if weights is None else numeric_argument(weights, "weights", table, evaluate.context),
            kept=None if subset is None else subset_rows(subset, table, evaluate.context),
        )

    def grid_source(self, spec: MatrixSpec, offset: str | ArrayLike | None, rows: Rows, n: int) -> GridSource:
        """The raw columns of the fixed part and the offset, of which grids of new rows are made."""
        table, fixed = self.evaluate.table, dict.fromkeys(columns_of([self.fixed], self.evaluate))
        calls = [expr for expr in spec.factors if expr in self.fixed.computed]
        names = dict.fromkeys([*fixed, *offset_columns([*self.parsed.offsets], offset, self.evaluate)])
        return GridSource({name: table[name] for name in names}, rows, n, calls, frozenset(names) - frozenset(fixed))


def read_formula(
    formula: str | ParsedFormula,
    data: Any,
    env: Mapping[str, Any] | None,
    given: Arguments,
    residual: str | None,
    dispersion: str | None,
) -> Reading:
    """The terms of a formula, and the table with the columns that it and its arguments read.

    Parameters and errors are those of `build_design`.
    """
    structured = residual is not None or dispersion is not None
    parsed = formula if isinstance(formula, ParsedFormula) else parse_formula(formula, fixed_only=structured)
    table = Table(data)
    request = ResidualRequest(residual, dispersion, table, env) if structured else None
    evaluate = Evaluator(table, Context(env), {})
    plain = of_columns(formula) if isinstance(formula, str) and not structured else None
    if plain is not None:
        table.require([*plain[-1], *table.mentioned_in([given.subset, given.weights, given.offset])])
        return Reading(parsed, evaluate, None, *plain[:-1])
    answer = unquote_name(parsed.response)
    needed = [answer] if answer is not None else evaluate.names(parsed.response)
    groups = {name: name in term.computed for term in parsed.random for name in term.group}
    for name, computed in groups.items():
        needed += evaluate.names(name) if computed and name not in table else [name]
    if "." in parsed.fixed:
        others = {*needed, *offset_columns(parsed.offsets, given.offset, evaluate)}
        parsed = expand_dot(parsed, table.names, others)
    fixed = parse_terms(parsed.fixed, table.names)
    random = {term.expr: parse_terms(term.expr, table.names) for term in parsed.random}
    needed += columns_of([fixed, *random.values()], evaluate)
    needed += parsed.sparse
    needed += request.needed if request is not None else []
    table.require(needed + table.mentioned_in([given.subset, given.weights, given.offset, *parsed.offsets]))
    return Reading(parsed, evaluate, request, answer, fixed, random, list(groups))


@lru_cache(maxsize=256)  # it takes longer than the table's columns do
def of_columns(formula: str) -> tuple[str, Terms, Mapping[str, Terms], list[str], list[str]] | None:
    """Response, terms of the fixed part and of each random one, grouping factors and columns of a formula.

    None of one that says more than names of columns: what it needs is the table's to tell.
    """
    parsed = parse_formula(formula)
    answer = unquote_name(parsed.response)
    if answer is None or "." in formula or parsed.offsets or parsed.sparse:
        return None
    fixed, random = parse_terms(parsed.fixed), {term.expr: parse_terms(term.expr) for term in parsed.random}
    if any(terms.computed for terms in (fixed, *random.values())) or any(term.computed for term in parsed.random):
        return None
    groups = list(dict.fromkeys(name for term in parsed.random for name in term.group))
    columns = [name for terms in (fixed, *random.values()) for name in terms.factors]
    return answer, fixed, random, groups, list(dict.fromkeys([answer, *groups, *columns]))
