"""Model matrices with R's columns in R's order, for the fixed part and for the left side of a random-effect term."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError
from fastlmm_core.formula.evaluate import Evaluator
from fastlmm_core.formula.frame import Numeric, Variable, as_factor
from fastlmm_core.formula.levels import Factor, Levels
from fastlmm_core.formula.terms import Terms, coding
from fastlmm_core.formula.transforms import transforms

if TYPE_CHECKING:
    from formulaic.transforms.contrasts import Contrasts

__all__ = ["MatrixSpec", "columns_of", "fit_matrix", "values_of", "variables_of"]


@dataclass(frozen=True)
class _FactorCoding:
    """How one factor's levels become columns: by contrasts, and by one dummy a level."""

    levels: Levels
    contrasts: NDArray[np.float64]
    contrast_names: tuple[str, ...]
    dummy_names: tuple[str, ...]
    numeric: bool = False

    def matrix(self, reduced: bool) -> NDArray[np.float64]:
        return self.contrasts if reduced else np.eye(len(self.levels))

    def names(self, reduced: bool) -> tuple[str, ...]:
        return self.contrast_names if reduced else self.dummy_names


@dataclass(frozen=True)
class MatrixSpec:
    """All that the columns of a model matrix need to be computed for other rows.

    Attributes
    ----------
    terms : Terms
    codes : tuple of tuple of bool
        Per term and factor: contrasts (True) or dummies (False).
    factors : mapping
        The coding of each categorical expression.
    names : tuple of str
        Column names, formulaic's: "Intercept", "f[T.b]", "f[T.b]:x", "poly(x, 2)[1]".
    term_columns : tuple of (str, slice)
        The columns of each term.
    whole : tuple of MatrixSpec and int, or None
        For one column of a term alone: the spec of the whole term, and which of its columns it is.
    """

    terms: Terms
    codes: tuple[tuple[bool, ...], ...]
    factors: Mapping[str, _FactorCoding]
    names: tuple[str, ...]
    term_columns: tuple[tuple[str, slice], ...]
    whole: tuple[MatrixSpec, int] | None = None

    def only(self, j: int) -> MatrixSpec:
        """The spec of one column alone; `term_columns` has it for the term that it is of, nothing for the others."""
        columns = tuple(
            (label, slice(0, 1) if where.start <= j < where.stop else slice(0, 0)) for label, where in self.term_columns
        )
        return replace(self, names=(self.names[j],), term_columns=columns, whole=(self, j))

    def matrix(self, variables: Mapping[str, Variable], n: int) -> NDArray[np.float64]:
        """The (n, p) C-contiguous model matrix of rows whose factors are coded as this spec's levels are."""
        if self.whole is not None:
            spec, j = self.whole
            return np.ascontiguousarray(spec.matrix(variables, n)[:, [j]])
        X = np.empty((n, len(self.names)))
        if self.terms.intercept:
            X[:, 0] = 1.0
        columns = self.term_columns[self.terms.intercept :]
        for term, reduced, (_, where) in zip(self.terms.terms, self.codes, columns, strict=True):
            product: NDArray[np.float64] | None = None
            for expr, r in zip(term, reduced, strict=True):
                block = self._block(variables[expr], expr, r)
                # the first factor varies fastest along the columns
                if product is None:
                    product = block
                else:
                    width = block.shape[1] * product.shape[1]  # not -1: there may be no rows
                    product = (block[:, :, None] * product[:, None, :]).reshape(n, width)
            X[:, where] = product
        return X

    def _block(self, variable: Variable, expr: str, reduced: bool) -> NDArray[np.float64]:
        if isinstance(variable, Factor):
            coded: NDArray[np.float64] = self.factors[expr].matrix(reduced)[variable.codes]
            return coded
        values = variable.values
        return values[:, None] if values.ndim == 1 else values

    def recode(self, variable: Variable, expr: str) -> Variable:
        """The variable with the codes of the levels that the model was fitted to.

        Raises DataError for a level that the model has not seen, and where numbers stand for a factor or the reverse.
        """
        if expr not in self.factors:
            if isinstance(variable, Factor):
                raise DataError(f"{expr} is numeric in the model but not in the new data")
            return variable
        known = self.factors[expr].levels
        if not isinstance(variable, Factor):
            if not self.factors[expr].numeric and variable.values.size:  # without rows, anything
                raise DataError(f"{expr} is categorical in the model but numeric in the new data")
            variable = as_factor(variable)
        codes = known.place([variable])
        if (codes < 0).any():
            new = [str(variable.levels[k]) for k in np.unique(variable.codes[codes < 0])]
            listed = ", ".join(map(repr, new[:10]))
            raise DataError(f"{expr} has levels in the new data that the model was not fitted to: {listed}")
        return Factor(codes, known.labels)


def columns_of(all_terms: Sequence[Terms], evaluate: Evaluator) -> list[str]:
    """Every column that the terms read."""
    names: list[str] = []
    for terms in all_terms:
        for expr in terms.factors:
            names += evaluate.names(expr) if expr in terms.computed else [expr]
    return names


def variables_of(terms: Terms, evaluate: Evaluator) -> dict[str, Variable]:
    """Every variable of a formula over all rows of the table, which may lack its columns."""
    evaluate.table.require(expr for expr in terms.factors if expr not in terms.computed)
    return values_of(terms, evaluate)


def values_of(terms: Terms, evaluate: Evaluator) -> dict[str, Variable]:
    """`variables_of` a table that has their columns."""
    table, computed = evaluate.table, terms.computed
    return {expr: evaluate(expr) if expr in computed else table[expr] for expr in terms.factors}


def fit_matrix(
    terms: Terms, variables: Mapping[str, Variable], n: int, contrasts: Mapping[str, Any] | None = None
) -> tuple[MatrixSpec, NDArray[np.float64]]:
    """The model matrix of the rows given, and how to compute it for others.

    Parameters
    ----------
    terms : Terms
    variables : mapping
        Each expression's values over the n rows, nothing missing, unused levels dropped.
    n : int
    contrasts : mapping, optional
        Contrasts by factor; others get treatment contrasts, ordered ones polynomial contrasts, as in R.

    Returns
    -------
    spec : MatrixSpec
    X : ndarray (n, p)
    """
    if contrasts is not None and not isinstance(contrasts, Mapping):
        raise DataError(
            f"contrasts must be a mapping of factors to contrasts, such as {{'f': 'sum'}}, not {contrasts!r:.80}"
        )
    if not contrasts and all(isinstance(v, Numeric) and v.values.ndim == 1 for v in variables.values()):
        spec = numeric_spec(terms)
        return spec, spec.matrix(variables, n)
    contrasts = contrasts or {}
    unknown = [name for name in contrasts if not isinstance(variables.get(name), Factor)]
    if unknown:
        raise DataError(f"contrasts are given for {', '.join(map(repr, unknown))}, not a factor of the fixed part")
    factors = {
        expr: replace(_coding_of(expr, variable, contrasts.get(expr, variable.contrasts)), numeric=variable.numeric)
        for expr, variable in variables.items()
        if isinstance(variable, Factor)
    }
    codes = tuple(coding(terms, factors))
    names: list[str] = ["Intercept"] if terms.intercept else []
    columns: list[tuple[str, slice]] = [("Intercept", slice(0, 1))] if terms.intercept else []
    for term, reduced in zip(terms.terms, codes, strict=True):
        of_term = [""]
        for k, (expr, r) in enumerate(zip(term, reduced, strict=True)):
            mine = factors[expr].names(r) if expr in factors else _numeric_names(expr, variables[expr])
            of_term = [f"{a}:{b}" if k else b for b in mine for a in of_term]
        columns.append((":".join(term), slice(len(names), len(names) + len(of_term))))
        names += of_term
    spec = MatrixSpec(terms, codes, factors, tuple(names), tuple(columns))
    return spec, spec.matrix(variables, n)


@lru_cache(maxsize=256)
def numeric_spec(terms: Terms) -> MatrixSpec:
    """The spec of terms whose variables are single numeric columns, which depends on no data."""
    names = (["Intercept"] if terms.intercept else []) + [":".join(term) for term in terms.terms]
    columns = tuple((name, slice(j, j + 1)) for j, name in enumerate(names))
    return MatrixSpec(terms, tuple(coding(terms, ())), {}, tuple(names), columns)


def _numeric_names(expr: str, variable: Variable) -> tuple[str, ...]:
    assert isinstance(variable, Numeric)
    if variable.values.ndim == 2 and not variable.values.shape[1]:
        raise DataError(f"{expr} has no columns")
    return tuple(f"{expr}[{name}]" for name in variable.names) or (expr,)


def _coding_of(expr: str, factor: Factor, contrasts: Any) -> _FactorCoding:
    levels = factor.levels.tolist()
    if len(levels) < 2:
        raise DataError(f"the factor {expr} has only one level in the rows used, {levels[0]!r}: leave it out")
    dummies = tuple(f"{expr}[{level}]" for level in levels)
    if contrasts is None and not factor.ordered:
        names = tuple(f"{expr}[T.{level}]" for level in levels[1:])
        return _FactorCoding(Levels(factor.levels), np.eye(len(levels))[:, 1:], names, dummies)
    if contrasts is None:
        matrix, fields, form = _polynomial(len(levels))
    else:
        matrix, fields, form = _coded(_scheme(expr, contrasts), levels, expr)
    names = tuple(form.format(name=expr, field=field) for field in fields)
    return _FactorCoding(Levels(factor.levels), matrix, names, dummies)


def _coded(scheme: Contrasts, levels: list[Any], expr: str) -> tuple[NDArray[np.float64], tuple[str, ...], str]:
    """The columns of some contrasts (q, q - 1), what tells them apart, and how their names are made of that.

    Raises DataError where they do not fit the levels.
    """
    given = getattr(scheme, "contrasts", None)
    if given is not None and len(given) != len(levels):
        n = len(given)
        raise DataError(f"the contrasts given for {expr} do not fit its {len(levels)} levels: they have {n} rows")
    try:
        matrix = np.asarray(scheme.get_coding_matrix(levels, reduced_rank=True), dtype=np.float64)
        fields = tuple(scheme.get_coding_column_names(levels, reduced_rank=True))
    except (ValueError, IndexError) as error:
        raise DataError(f"the contrasts given for {expr} do not fit its {len(levels)} levels: {error}") from None
    if matrix.ndim != 2 or len(matrix) != len(levels):
        raise DataError(f"the contrasts given for {expr} have {len(matrix)} rows, the factor has {len(levels)} levels")
    return matrix, fields, scheme.get_factor_format(levels, reduced_rank=True)


@lru_cache(maxsize=64)
def _polynomial(q: int) -> tuple[NDArray[np.float64], tuple[str, ...], str]:
    """Those of an ordered factor of q levels, which take longer than many a fit."""
    matrix, fields, form = _coded(_scheme("", "poly"), list(range(q)), "")
    matrix.setflags(write=False)
    return matrix, fields, form


def _scheme(expr: str, contrasts: Any) -> Contrasts:
    """Formulaic's contrasts object for a name, a class, an object or a matrix."""
    from formulaic.transforms.contrasts import Contrasts, ContrastsRegistry, CustomContrasts

    if callable(contrasts):  # R's `C(f, sum)`, by whatever is called so
        named = {np.sum: "sum", sum: "sum", transforms()["sum"]: "sum", transforms()["poly"]: "poly"}
        contrasts = named.get(contrasts, contrasts)
    if isinstance(contrasts, str):
        name = contrasts.removeprefix("contr.")
        known = {"treatment", "sum", "helmert", "poly", "diff", "SAS"}
        if name not in known:
            raise DataError(
                f"unknown contrasts {contrasts!r} for {expr}: one of {', '.join(sorted(known))}, or a matrix"
            )
        scheme: Contrasts = getattr(ContrastsRegistry, name)()
        return scheme
    if inspect.isclass(contrasts) and issubclass(contrasts, Contrasts):
        return contrasts()
    if isinstance(contrasts, Contrasts):
        return contrasts
    if isinstance(contrasts, pd.DataFrame):
        return CustomContrasts(contrasts.to_numpy(dtype=float), names=[str(name) for name in contrasts])
    try:
        matrix = np.asarray(contrasts, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"the contrasts given for {expr} are not a matrix: {error}") from None
    if matrix.ndim != 2:
        raise DataError(f"the contrasts given for {expr} are neither a matrix nor a name: {contrasts!r}")
    return CustomContrasts(matrix)
