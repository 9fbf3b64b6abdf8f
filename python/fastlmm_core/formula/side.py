"""A second model matrix for the rows of a design: `zero="~ x"`; and designs without their intercept's column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FormulaError, ModelError
from fastlmm_core.formula.checks import check_finite
from fastlmm_core.formula.design import Design
from fastlmm_core.formula.evaluate import Context, Evaluator
from fastlmm_core.formula.fixed import MatrixSpec, columns_of, fit_matrix, variables_of
from fastlmm_core.formula.frame import Table
from fastlmm_core.formula.terms import parse_terms

__all__ = ["SideMatrix", "SideRequest", "without_intercept"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SideMatrix:
    """Columns of a part of the model beside its mean, and how to compute them for other rows.

    Attributes
    ----------
    text : str
        As written, "~ x".
    X : (n, k)
        Of the rows of the fit.
    spec : MatrixSpec
    context, state
        As a `Design` has them.
    """

    text: str
    X: Array = field(repr=False)
    spec: MatrixSpec = field(repr=False)
    context: Context = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)

    def rebuild(self, data: Any) -> Array:
        """(N, k) of all rows of new data, NaN where something is missing."""
        table = Table(data)
        evaluate = Evaluator(table, self.context, dict(self.state))
        table.require(columns_of([self.spec.terms], evaluate))
        variables = variables_of(self.spec.terms, evaluate)
        missing = np.zeros(table.n, dtype=bool)
        for variable in variables.values():
            mask = variable.missing()
            missing |= False if mask is None else mask
        rows = np.flatnonzero(~missing)
        taken = {expr: self.spec.recode(v.take(rows), expr) for expr, v in variables.items()}
        X = self.spec.matrix(taken, len(rows))
        check_finite(X, self.spec.names, f"{self.text} of the new data")
        out = np.full((table.n, X.shape[1]), np.nan)
        out[rows] = X
        return out


class SideRequest:
    """What a one-sided formula asks for, before rows are chosen.

    Parameters
    ----------
    text : str
        "~ x + f".
    what : str
        The argument's name, for the messages.
    data : table
    env : mapping, optional

    Raises
    ------
    FormulaError, ModelError
        Not a one-sided formula; random effects or an offset in it.
    DataError
        A column is absent.

    Attributes
    ----------
    missing : (N,) bool
        Rows of the table that lack one of the variables.
    """

    def __init__(self, text: str, what: str, data: Any, env: Mapping[str, Any] | None) -> None:
        if not isinstance(text, str) or not text.strip().startswith("~"):
            raise FormulaError(f'{what} must be a one-sided formula such as "~ x", not {text!r}')
        self.text, inside = text.strip(), text.strip()[1:].strip()
        if "|" in inside:
            raise ModelError(f"{what} has fixed effects only: random effects in {self.text!r} are not available")
        if inside == "." or "offset(" in inside:
            raise ModelError(f"{what} takes named terms only, no '.' and no offset(): {self.text!r}")
        self.table, self.context, self.state = Table(data), Context(env), dict[str, Any]()
        evaluate = Evaluator(self.table, self.context, self.state)
        self.terms = parse_terms(inside, self.table.names)
        self.table.require(columns_of([self.terms], evaluate))
        self.variables = variables_of(self.terms, evaluate)
        masks = {name: mask for name, v in self.variables.items() if (mask := v.missing()) is not None}
        self.missing = np.zeros(self.table.n, dtype=bool)
        for mask in masks.values():
            self.missing |= mask
        self.what = what
        self.absent = ", ".join(f"{name} ({int(mask.sum())})" for name, mask in masks.items())

    def check_missing(self, na_action: str) -> None:
        """DataError for missing values where these are refused."""
        if self.absent and na_action == "raise":
            raise DataError(f'missing values in {self.absent}; na_action="drop" leaves those rows out')

    def matrix(self, rows: NDArray[np.int64]) -> SideMatrix:
        """The columns of the rows used."""
        taken = {name: variable.take(rows) for name, variable in self.variables.items()}
        spec, X = fit_matrix(self.terms, taken, len(rows))
        check_finite(X, spec.names, f"{self.what}={self.text!r}")
        self.context.forget()
        return SideMatrix(self.text, X, spec, self.context, self.state)


def without_intercept(design: Design) -> Design:
    """The same design without the column of ones, its factors coded as beside it.

    Raises
    ------
    ModelError
        The formula has none: contrasts would have another meaning.
    """
    spec = design.spec
    if not spec.terms.intercept:
        raise ModelError("the thresholds of an ordinal model are its intercept: leave 0 + (or - 1) out of the formula")
    columns = tuple((name, slice(w.start - 1, w.stop - 1)) for name, w in spec.term_columns[1:])
    terms = replace(spec.terms, intercept=False)
    bare = replace(spec, terms=terms, names=spec.names[1:], term_columns=columns)
    return replace(design, X=np.ascontiguousarray(design.X[:, 1:]), x_names=bare.names, x_terms=columns, spec=bare)
