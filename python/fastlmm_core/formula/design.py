"""A formula and a table to the arrays of a model: response, model matrices, grouping codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.formula.checks import (
    check_finite,
    check_sizes,
    complete_rows,
    sound_offset,
    sound_response,
    sound_weights,
)
from fastlmm_core.formula.evaluate import Context, Evaluator
from fastlmm_core.formula.fixed import MatrixSpec, fit_matrix, variables_of
from fastlmm_core.formula.frame import Numeric, Table, Variable, as_factor
from fastlmm_core.formula.grid_info import GridInfo, GridSource
from fastlmm_core.formula.levels import Factor, Levels, combine
from fastlmm_core.formula.parse import ParsedFormula, RandomTerm, parse_formula, unquote_name
from fastlmm_core.formula.residual import ResidualDesign, ResidualRequest
from fastlmm_core.formula.rowwise import numeric_argument, subset_rows
from fastlmm_core.formula.terms import Terms, parse_terms

__all__ = ["Design", "NewDesign", "NewRandom", "RandomDesign", "build_design"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RandomDesign:
    """One random-effect term as arrays.

    Attributes
    ----------
    group : str
        The grouping factor, "cask:batch".
    grp : str
        The same made unique over the model's terms: a second term on Subject is "Subject.1".
    columns : tuple of str
        Names of the l columns of `z`, ("Intercept", "Days").
    codes : ndarray (n,) of int32
        Level of each row, 0..q-1, every one present. Terms on one group share the array.
    z : ndarray (n, l) of float64, or None
        None stands for a single column of ones.
    level_set : Levels
        The levels and their lookup.
    spec : MatrixSpec or None
        How `z` is computed for other rows; None where `z` is None.
    """

    group: str
    grp: str
    columns: tuple[str, ...]
    codes: NDArray[np.int32]
    z: Array | None
    level_set: Levels = field(repr=False)
    spec: MatrixSpec | None = field(repr=False, default=None)

    @property
    def levels(self) -> NDArray[np.object_]:
        """(q,) the levels in order, "a:A" for an interaction."""
        return self.level_set.labels


@dataclass(frozen=True)
class NewRandom:
    """A random-effect term for new rows: `codes` (n,) of int64, -1 for a new level, and `z` (n, l) or None."""

    codes: NDArray[np.int64]
    z: Array | None

    def __iter__(self) -> Any:
        return iter((self.codes, self.z))


@dataclass(frozen=True)
class NewDesign:
    """A model's design for new rows, coded as the model was.

    Attributes
    ----------
    X : ndarray (n, p) or None
        None where the fixed part was not asked for.
    random : tuple of (NewRandom or None)
        One entry a term of the model, None where it was not asked for.
    offset : ndarray (n,) or None
    index : pandas.Index
        The new data's own, or positions.
    """

    X: Array | None
    random: tuple[NewRandom | None, ...]
    offset: Array | None
    index: pd.Index


@dataclass(frozen=True)
class Design:
    """A model as arrays, without reference to the table they came from; picklable.

    Attributes
    ----------
    formula : ParsedFormula
    y : ndarray (n,) of float64
    X : ndarray (n, p) of float64, C-contiguous
    x_names : tuple of str
        formulaic's names: "Intercept", "service[T.1]".
    x_terms : tuple of (str, slice)
        The columns of each term of the fixed part.
    random : tuple of RandomDesign
        In lme4's order: by decreasing number of levels.
    weights, offset : ndarray (n,) or None
    n_total : int
        Rows of the table.
    n_missing : int
        Rows left out because of missing values, after `subset`.
    row_index : ndarray (n,) of int64
        Positions in the table of the rows used.
    index : pandas.Index or None
        Their labels, where the data were pandas.
    """

    formula: ParsedFormula
    y: Array
    X: Array
    x_names: tuple[str, ...]
    x_terms: tuple[tuple[str, slice], ...]
    random: tuple[RandomDesign, ...]
    weights: Array | None
    offset: Array | None
    n_total: int
    n_missing: int
    row_index: NDArray[np.int64] = field(repr=False)
    index: pd.Index | None = field(repr=False)
    spec: MatrixSpec = field(repr=False)
    context: Context = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)
    offset_given: str | bool = field(repr=False)  # its expression, True for an array, False for none
    grid_source: GridSource = field(repr=False)
    residual: ResidualDesign | None = None

    @property
    def grid_info(self) -> GridInfo:
        """Levels, means and joint counts of the fixed part's raw columns over the rows used."""
        return self.grid_source.info()

    def with_response(self, y: Array) -> Design:
        """The same design with another response (n,), which nothing else in it depends on."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, y=y)  # `dataclasses.replace` takes longer than some refits
        return other

    def rebuild(
        self,
        newdata: Any,
        *,
        fixed: bool = True,
        random: bool | Sequence[int] = True,
        columns_only: Sequence[int] = (),
        allow_new_levels: bool = False,
    ) -> NewDesign:
        """The design of new rows, with the coding learnt from the model's own.

        Parameters
        ----------
        newdata : table
            Needs the columns of the parts asked for; the response is not among them.
        fixed : bool
            Whether to compute X and the offset.
        random : bool or sequence of int
            Which random-effect terms to compute.
        columns_only : sequence of int
            Terms of which only z is computed: their codes are -1, and their grouping columns need not be there.
        allow_new_levels : bool
            Code unseen levels of grouping factors -1 instead of refusing them.

        Returns
        -------
        NewDesign

        Raises
        ------
        DataError
            A column is absent or has missing or infinite values, or a level that the model has not seen.
        """
        table = Table(newdata)
        wanted = range(len(self.random)) if random is True else ([] if random is False else list(random))
        state = dict(self.state)
        evaluate = Evaluator(table, self.context, state)
        names = [name for k in wanted for name in self._group_of(k)]
        specs = [self.spec] if fixed else []
        specs += [spec for k in [*wanted, *columns_only] if (spec := self.random[k].spec) is not None]
        names += _columns_of([spec.terms for spec in specs], evaluate)
        table.require(names + table.mentioned_in([self.offset_given, *self.formula.offsets]))
        X = _rebuilt(self.spec, evaluate, "the fixed part") if fixed else None
        parts: list[NewRandom | None] = [None] * len(self.random)
        for k in [*wanted, *columns_only]:
            term = self.random[k]
            if k in wanted:
                codes = _new_codes(term, self._group_of(k), table, allow_new_levels)
            else:
                codes = np.full(table.n, -1, np.int64)
            z = None if term.spec is None else _rebuilt(term.spec, evaluate, f"the term on {term.group}")
            parts[k] = NewRandom(codes, z)
        index = pd.RangeIndex(table.n) if table.index is None else table.index
        return NewDesign(X, tuple(parts), self._new_offset(evaluate) if fixed else None, index)

    def _group_of(self, k: int) -> tuple[str, ...]:
        label = self.random[k].group
        return next(term.group for term in self.formula.random if term.label == label)

    def _new_offset(self, evaluate: Evaluator) -> Array | None:
        if self.offset_given is True:
            raise DataError("the model's offset was an array: for new rows give it as a column's name or an expression")
        parts = [_numeric(evaluate, expr, f"offset({expr})") for expr in self.formula.offsets]
        if isinstance(self.offset_given, str):
            parts.append(numeric_argument(self.offset_given, "offset", evaluate.table, self.context))
        if not parts:
            return None
        total: Array = np.sum(parts, axis=0)
        if not np.isfinite(total).all():
            count = int((~np.isfinite(total)).sum())
            raise DataError(f"the offset is missing or infinite in {count} rows of the new data")
        return total


def build_design(
    formula: str | ParsedFormula,
    data: Any,
    *,
    subset: str | ArrayLike | None = None,
    weights: str | ArrayLike | None = None,
    offset: str | ArrayLike | None = None,
    na_action: Literal["drop", "raise"] = "drop",
    contrasts: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    observation_level: bool = False,
    residual: str | None = None,
    dispersion: str | None = None,
) -> Design:
    """Arrays of a mixed model from its formula and a table.

    Parameters
    ----------
    formula : str or ParsedFormula
    data : table
        pandas, polars, pyarrow, another table that narwhals reads, or a dict of arrays.
    subset, weights, offset : str or array (n,), optional
        An expression over the columns, a column's name, or one value a row of `data`.
    na_action : {"drop", "raise"}
        What happens to rows with a missing value in a variable of the model, after `subset`.
    contrasts : mapping, optional
        For factors of the fixed part: "treatment", "sum", "helmert", "poly", "diff", "SAS", a formulaic contrasts
        object, or a matrix with one row a level.
    env : mapping, optional
        Names that the formula's calls may use besides the columns and the built-in transforms.
    observation_level : bool
        Whether a term may have as many levels as there are rows, as it may where rows have no residual variance of
        their own to tell it from.
    residual, dispersion : str, optional
        Structure of the residuals, `"ar1(visit | subject)"`, and of their standard deviations, `"~ sex"`.

    Returns
    -------
    Design

    Raises
    ------
    FormulaError
        The formula cannot be read or evaluated.
    DataError
        A column is absent; values are infinite, not numeric, or missing where that is refused; no row is left.
    ModelError
        The response is constant; a grouping factor has one level, or as many as rows; a term has as many random
        effects as there are rows; an unknown `na_action`.
    """
    if na_action not in ("drop", "raise"):
        raise ModelError(f'na_action must be "drop" or "raise", not {na_action!r}')
    structured = residual is not None or dispersion is not None
    parsed = parse_formula(formula, fixed_only=structured) if isinstance(formula, str) else formula
    table, context = Table(data), Context(env)
    request = ResidualRequest(residual, dispersion, table, env) if structured else None
    state: dict[str, Any] = {}
    evaluate = Evaluator(table, context, state)
    fixed_terms = parse_terms(parsed.fixed, table.names)
    random_terms = {term.expr: parse_terms(term.expr, table.names) for term in parsed.random}
    response = unquote_name(parsed.response)
    groups = list(dict.fromkeys(name for term in parsed.random for name in term.group))
    needed = [response] if response is not None else evaluate.names(parsed.response)
    needed += _columns_of([fixed_terms, *random_terms.values()], evaluate) + groups
    needed += request.needed if request is not None else []
    table.require(needed + table.mentioned_in([subset, weights, offset, *parsed.offsets]))

    answer = evaluate(parsed.response) if response is None else table[response]
    fixed_variables = variables_of(fixed_terms, evaluate)
    random_variables = {expr: variables_of(terms, evaluate) for expr, terms in random_terms.items()}
    factors = {name: as_factor(table[name]) for name in groups}
    variables: dict[str, Variable] = {parsed.response: answer, **fixed_variables}
    for of_term in random_variables.values():
        variables.update(of_term)
    variables.update(factors)
    of_residual = request.variables() if request is not None else {}
    variables.update(of_residual)
    offsets = [_numeric(evaluate, expr, f"offset({expr})") for expr in parsed.offsets]
    if offset is not None:
        offsets.append(numeric_argument(offset, "offset", table, context))
    total = np.sum(offsets, axis=0) if offsets else None
    if total is not None:
        variables["the offset"] = Numeric(total)
    prior = None if weights is None else numeric_argument(weights, "weights", table, context)
    kept = None if subset is None else subset_rows(subset, table, context)

    rows, n_missing = complete_rows(variables, kept, table.n, na_action)
    n = table.n if rows is None else len(rows)
    y = sound_response(answer, parsed.response, rows)
    taken: dict[str, Variable] = {}

    def take(of: Mapping[str, Variable]) -> dict[str, Variable]:
        for expr, variable in of.items():
            if expr not in taken:
                taken[expr] = variable.take(rows)
        return {expr: taken[expr] for expr in of}

    spec, X = fit_matrix(fixed_terms, take(fixed_variables), n, contrasts)
    check_finite(X, spec.names, "the fixed part")
    coded = {name: factor.take(rows) for name, factor in factors.items()}
    random = [
        _random_design(term, random_terms[term.expr], take(random_variables[term.expr]), n) for term in parsed.random
    ]
    codes = _group_codes(parsed.random, coded)
    designs = _in_order(parsed.random, random, codes)
    check_sizes(designs, n, not observation_level)
    within = None if request is None else request.design(take(of_residual), n)
    offset_names = [
        name
        for expr in [*parsed.offsets, *([offset] if isinstance(offset, str) else [])]
        for name in _names_of(expr, evaluate)
    ]
    grid_source = _grid_source(fixed_terms, spec, offset_names, evaluate, rows, n)
    context.forget()
    return Design(
        formula=parsed,
        y=y,
        X=X,
        x_names=spec.names,
        x_terms=spec.term_columns,
        random=designs,
        weights=None if prior is None else sound_weights(prior, rows),
        offset=None if total is None else sound_offset(total, rows),
        n_total=table.n,
        n_missing=n_missing,
        row_index=np.arange(n, dtype=np.int64) if rows is None else rows,
        index=None if table.index is None else (table.index if rows is None else table.index[rows]),
        spec=spec,
        context=context,
        state=state,
        offset_given=offset if isinstance(offset, str) else offset is not None,
        residual=within,
        grid_source=grid_source,
    )


def _names_of(expr: str, evaluate: Evaluator) -> list[str]:
    """Columns that an offset reads: one named, or those of an expression."""
    name = unquote_name(expr)
    return [name] if name is not None else evaluate.names(expr)


def _grid_source(
    terms: Terms,
    spec: MatrixSpec,
    offset_names: Sequence[str],
    evaluate: Evaluator,
    rows: NDArray[np.int64] | None,
    n: int,
) -> GridSource:
    fixed = dict.fromkeys(_columns_of([terms], evaluate))
    calls = [expr for expr in spec.factors if expr in terms.computed]
    names = dict.fromkeys([*fixed, *offset_names])
    return GridSource(
        {name: evaluate.table[name] for name in names}, rows, n, calls, frozenset(names) - frozenset(fixed)
    )


def _columns_of(all_terms: Sequence[Terms], evaluate: Evaluator) -> list[str]:
    names: list[str] = []
    for terms in all_terms:
        for expr in terms.factors:
            names += evaluate.names(expr) if expr in terms.computed else [expr]
    return names


def _numeric(evaluate: Evaluator, expr: str, what: str) -> Array:
    name = unquote_name(expr)
    if name is not None:
        evaluate.table.require([name])
    variable = evaluate.table[name] if name is not None else evaluate(expr)
    if isinstance(variable, Factor) or variable.values.ndim != 1:
        raise DataError(f"{what} must be numeric, one value a row")
    return variable.values.astype(np.float64, copy=False)


def _random_design(
    term: RandomTerm, terms: Terms, variables: Mapping[str, Variable], n: int
) -> tuple[tuple[str, ...], Array | None, MatrixSpec | None]:
    """Column names, z and how z came about, for the left side of one term."""
    if terms.intercept and not terms.terms:
        return ("Intercept",), None, None
    if not terms.intercept and not terms.terms:
        raise ModelError(f"the random-effect term {term} has no columns")
    spec, z = fit_matrix(terms, variables, n)
    check_finite(z, spec.names, f"the random-effect term {term}")
    return spec.names, z, spec


def _group_codes(
    terms: Sequence[RandomTerm], factors: Mapping[str, Factor]
) -> dict[tuple[str, ...], tuple[NDArray[np.int32], Levels]]:
    """Codes and levels of every grouping factor, interactions combined part by part."""
    coded: dict[tuple[str, ...], tuple[NDArray[np.int32], Levels]] = {}
    for term in terms:
        for k in range(1, len(term.group) + 1):
            group = term.group[:k]
            if group in coded:
                continue
            factor = factors[group[-1]]
            # a copy: the codes of a pandas Categorical are the user's own array
            single = np.array(factor.codes, dtype=np.int32), Levels(factor.levels)
            coded[group] = single if k == 1 else combine(*coded[group[:-1]], *single)
    return coded


def _in_order(
    terms: Sequence[RandomTerm],
    columns: Sequence[tuple[tuple[str, ...], Array | None, MatrixSpec | None]],
    coded: Mapping[tuple[str, ...], tuple[NDArray[np.int32], Levels]],
) -> tuple[RandomDesign, ...]:
    """The terms in lme4's order, which reverses an ascending sort: among equals the last written comes first.

    Where the terms stand in non-increasing order already, lme4 leaves them as they are.
    """
    sizes = np.array([len(coded[term.group][1]) for term in terms])
    order = list(range(len(terms)))
    if np.any(np.diff(sizes) > 0):
        order = np.argsort(sizes, kind="stable")[::-1].tolist()
    seen: dict[str, int] = {}
    designs = []
    for k in order:
        label, (codes, levels) = terms[k].label, coded[terms[k].group]
        repeat = seen[label] = seen.get(label, -1) + 1
        names, z, spec = columns[k]
        designs.append(RandomDesign(label, f"{label}.{repeat}" if repeat else label, names, codes, z, levels, spec))
    return tuple(designs)


def _rebuilt(spec: MatrixSpec, evaluate: Evaluator, part: str) -> Array:
    variables = variables_of(spec.terms, evaluate)
    for expr, variable in variables.items():
        mask = variable.missing()
        if mask is not None:
            raise DataError(f"missing values in the new data: {expr} ({int(mask.sum())} rows)")
        variables[expr] = spec.recode(variable, expr)
    X = spec.matrix(variables, evaluate.table.n)
    check_finite(X, spec.names, f"{part} of the new data")
    return X


def _new_codes(term: RandomDesign, names: Sequence[str], table: Table, allow_new: bool) -> NDArray[np.int64]:
    factors = [as_factor(table[name]) for name in names]
    for name, factor in zip(names, factors, strict=True):
        if (mask := factor.missing()) is not None:
            raise DataError(f"missing values in the new data: {name}, a grouping column ({int(mask.sum())} rows)")
    codes = term.level_set.place(factors)
    if not allow_new and (codes < 0).any():
        row = int(np.argmax(codes < 0))
        level = ":".join(str(factor.levels[factor.codes[row]]) for factor in factors)
        raise DataError(
            f"the new data have a level of {term.group} that the model was not fitted to: {level!r} "
            f"({int((codes < 0).sum())} rows have such levels); allow_new_levels=True predicts them without its effect"
        )
    return codes
