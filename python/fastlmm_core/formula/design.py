"""A formula and a table to the arrays of a model: response, model matrices, grouping codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.errors import ModelError
from fastlmm_core.formula import newdata
from fastlmm_core.formula.checks import (
    Rows,
    check_finite,
    check_sizes,
    reading_notes,
    sound_offset,
    sound_response,
    sound_weights,
    used_rows,
    warn_of_undefined,
)
from fastlmm_core.formula.evaluate import Context
from fastlmm_core.formula.fixed import MatrixSpec, fit_matrix
from fastlmm_core.formula.frame import Variable, aligned, unmasked
from fastlmm_core.formula.grid_info import GridInfo, GridSource
from fastlmm_core.formula.newdata import NewDesign, NewRandom
from fastlmm_core.formula.parse import ParsedFormula, RandomTerm
from fastlmm_core.formula.random_terms import RandomDesign, group_codes, in_order, random_parts
from fastlmm_core.formula.reading import Arguments, Reading, Variables, read_formula
from fastlmm_core.formula.relationships import with_relationships
from fastlmm_core.formula.residual import ResidualDesign
from fastlmm_core.formula.residual_rows import own_residual
from fastlmm_core.formula.sparse import SparseDesign, sparse_designs
from fastlmm_core.formula.structures import check_identifiable
from fastlmm_core.records import quick

__all__ = ["Design", "NaAction", "RandomDesign", "build_design"]

NaAction = Literal["drop", "exclude", "raise"]
NA_ACTIONS = ("drop", "exclude", "raise")
Array = NDArray[np.float64]


@quick
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
        Rows left out because of missing values, weights and offset among them, after `subset`.
    n_zero_weight : int
        Rows left out because their weight is zero.
    row_index : ndarray (n,) of int64
        Positions in the table of the rows used.
    index : pandas.Index or None
        Their labels, where the data were pandas.
    notes : tuple of str
        What a reader of the fit should know about how the data were read.
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
    n_zero_weight: int
    row_index: NDArray[np.int64] = field(repr=False)
    index: pd.Index | None = field(repr=False)
    spec: MatrixSpec = field(repr=False)
    context: Context = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)
    offset_given: str | bool = field(repr=False)  # its expression, True for an array, False for none
    grid_source: GridSource = field(repr=False)
    residual: ResidualDesign | None = None
    sparse: tuple[SparseDesign, ...] = ()
    notes: tuple[str, ...] = ()
    na_action: str = "drop"
    table_index: pd.Index | None = field(repr=False, default=None)  # of all rows, where na_action="exclude" needs it

    streamed: ClassVar[bool] = False
    """Whether its rows are gone."""

    @property
    def grid_info(self) -> GridInfo:
        """Levels, means and joint counts of the fixed part's raw columns over the rows used."""
        return self.grid_source.info()

    @property
    def x_factor(self) -> Array:
        """A matrix (k, p) with the same X'X as X: X itself."""
        return self.X

    def with_response(self, y: Array) -> Design:
        """The same design with another response (n,), which nothing else in it depends on."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, y=y)  # `dataclasses.replace` takes longer than some refits
        return other

    def rebuild(
        self,
        data: Any,
        *,
        fixed: bool = True,
        random: bool | Sequence[int] = True,
        columns_only: Sequence[int] = (),
        coded_anew: Sequence[int] = (),
        allow_new_levels: bool = False,
        new_level_advice: str = "allow_new_levels=True predicts them without its effect",
        residual: Literal["none", "variance", "known"] = "none",
    ) -> NewDesign:
        """The design of new rows, with the coding learnt from the model's own.

        Parameters
        ----------
        data : table
            Needs the columns of the parts asked for; the response is not among them. Rows with a missing value in one
            of them are left out; `NewDesign.by_row` puts NaN in their place.
        fixed : bool
            Whether to compute X and the offset.
        random : bool or sequence of int
            Which random-effect terms to compute.
        columns_only : sequence of int
            Terms of which only z is computed: their codes are -1, and their grouping columns need not be there.
        coded_anew : sequence of int
            Terms whose codes number the levels that the new data have, whether the model has seen them or not.
        allow_new_levels : bool
            Code unseen and missing levels of grouping factors -1 instead of refusing them.
        new_level_advice : str
            What the error about an unseen level ends in.
        residual : {"none", "variance", "known"}
            What to read for a residual structure: nothing, what a residual's variance depends on, or also whose
            residual it is.

        Returns
        -------
        NewDesign

        Raises
        ------
        DataError
            A column is absent or has infinite values, or a level that the model has not seen.
        """
        return newdata.rebuild(
            self,
            data,
            fixed,
            random,
            columns_only,
            coded_anew,
            allow_new_levels=allow_new_levels,
            new_level_advice=new_level_advice,
            residual=residual,
        )

    def of_rows(self, values: Any, what: str) -> Any:
        """A pandas object with a value a row (of the table or of those used), by label; anything else as it is.

        Raises DataError where its labels are not those of the rows used.
        """
        if isinstance(values, np.ma.MaskedArray):
            return unmasked(values)
        if self.index is None or not isinstance(values, (pd.Series, pd.DataFrame)):
            return values
        if len(values) == self.n_total and values.index[self.row_index].equals(self.index):
            return values
        return aligned(values, self.index, what)

    def in_order(self, table: pd.DataFrame, what: str) -> pd.DataFrame:
        """The table of the fit, its rows in the order that they had, by the labels of those used.

        Raises DataError where it lacks one of them, or where labels that occur twice stand in another order.
        """
        if self.index is None or len(table) != self.n_total or table.index[self.row_index].equals(self.index):
            return table
        if self.table_index is not None:
            return aligned(table, self.table_index, what)
        aligned(table, self.index, what)  # raises
        at = table.index.get_indexer(self.index)
        order = np.full(self.n_total, -1, dtype=np.int64)
        order[self.row_index] = at
        order[order < 0] = np.setdiff1d(np.arange(self.n_total), at)
        return table.iloc[order]

    def own_rows(self) -> NewDesign:
        """The model's own rows in the form in which `rebuild` gives others."""
        parts = tuple(NewRandom(term.codes, term.z, len(term.level_set)) for term in self.random)
        within = None if self.residual is None else own_residual(self.residual)
        if self.na_action != "exclude" or self.n_total == len(self.y):
            return NewDesign(self.X, parts, self.offset, None, self.row_labels, within)
        index = pd.RangeIndex(self.n_total) if self.table_index is None else self.table_index
        return NewDesign(self.X, parts, self.offset, self.row_index, index, within)

    def group_of(self, k: int) -> RandomTerm:
        """The formula's term that the k-th random term is (a part of)."""
        label = self.random[k].group
        return next(term for term in self.formula.random if term.label == label)

    @property
    def row_labels(self) -> pd.Index:
        """Labels of the rows used: the data's own where pandas held them, their positions otherwise."""
        return pd.Index(self.row_index) if self.index is None else self.index

    def by_row(self, values: Array) -> pd.Series:
        """One value a row used (n,) as a Series; with ``na_action="exclude"`` one a row of the table, NaN elsewhere."""
        return self.own_rows().by_row(values)


def build_design(
    formula: str | ParsedFormula,
    data: Any,
    *,
    subset: str | ArrayLike | None = None,
    weights: str | ArrayLike | None = None,
    offset: str | ArrayLike | None = None,
    na_action: NaAction = "drop",
    contrasts: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    check_levels: bool = True,
    response: Callable[[Variable, str, Rows], Array] = sound_response,
    observation_level: bool = False,
    residual: str | None = None,
    dispersion: str | None = None,
    relationships: Mapping[str, tuple[str, Any]] | None = None,
) -> Design:
    """Arrays of a mixed model from its formula and a table.

    Parameters
    ----------
    formula : str or ParsedFormula
        Its calls run as Python code, as in R: read no formula from a stranger. `subset`, `weights` and `offset` only
        compute.
    data : table
        pandas, polars, pyarrow, another table that narwhals reads, or a dict of arrays.
    subset, weights, offset : str or array (n,), optional
        An expression over the columns, a column's name, or one value a row of `data`. A pandas object is aligned with
        the data's index. Rows of weight zero are left out.
    na_action : {"drop", "exclude", "raise"}
        What happens to rows with a missing value in a variable of the model, weights and offset included, after
        `subset`: left out; left out, with NaN in their place where a result has a value a row; refused.
    contrasts : mapping, optional
        For factors of the fixed part: "treatment", "sum", "helmert", "poly", "diff", "SAS", a formulaic contrasts
        object, or a matrix with one row a level.
    env : mapping, optional
        Names that the formula's calls may use besides the columns and the built-in transforms.
    check_levels : bool
        Refuse grouping factors with as many levels as rows; weights that differ can identify their variance.
    response : callable
        From the response as a variable, its name and the rows used to its array.
    observation_level : bool
        Whether a term may have as many levels as there are rows, as it may where rows have no residual variance of
        their own to tell it from.
    residual, dispersion : str, optional
        Structure of the residuals, `"ar1(visit | subject)"`, and of their standard deviations, `"~ sex"`.
    relationships : mapping, optional
        Grouping factor -> name of the argument and the core's relationship between its levels.

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
    if na_action not in NA_ACTIONS:
        raise ModelError(
            f'na_action must be "drop" (R\'s na.omit), "exclude" (na.exclude) or "raise" (na.fail), not {na_action!r}'
        )
    given = Arguments(subset, weights, offset)
    reading = read_formula(formula, data, env, given, residual, dispersion)
    parsed, table, context = reading.parsed, reading.evaluate.table, reading.evaluate.context
    found = reading.variables(given)
    rows, n_missing, n_zero = used_rows(found.named(parsed.response), found.kept, found.weights, table.n, na_action)
    if n_missing:
        offsets = [*parsed.offsets, *([offset] if isinstance(offset, str) else [])]
        warn_of_undefined(found.named(parsed.response), table, found.kept, offsets)
    n = table.n if rows is None else len(rows)
    y = response(found.response, parsed.response, rows)
    used = _Used(rows, n)
    spec, X = fit_matrix(reading.fixed, used(found.fixed), n, contrasts)
    check_finite(X, spec.names, "the fixed part")
    designs = used.random_terms(reading, found, None if contrasts else (spec, X))
    if relationships:
        designs = with_relationships(designs, relationships)
    row_weights = None if found.weights is None else sound_weights(found.weights, rows)
    check_identifiable(designs, n)
    ordinary = [term for term in designs if term.structure is None and term.relationship is None]
    structured = reading.residual is not None
    check_sizes(ordinary, n, row_weights, check=check_levels, residual=not observation_level, structured=structured)
    sparse = sparse_designs(used(found.sparse), reading.fixed.intercept) if found.sparse else ()
    within = None if reading.residual is None else reading.residual.design(used(found.residual), n)
    grid_source = reading.grid_source(spec, offset, rows, n)
    context.forget()
    return Design(
        formula=parsed,
        y=y,
        X=X,
        x_names=spec.names,
        x_terms=spec.term_columns,
        random=designs,
        weights=row_weights,
        offset=None if found.offset is None else sound_offset(found.offset, rows),
        n_total=table.n,
        n_missing=n_missing,
        n_zero_weight=n_zero,
        row_index=np.arange(n, dtype=np.int64) if rows is None else rows,
        index=None if table.index is None else (table.index if rows is None else table.index[rows]),
        spec=spec,
        context=context,
        state=reading.evaluate.state,
        offset_given=offset if isinstance(offset, str) else offset is not None,
        residual=within,
        sparse=sparse,
        grid_source=grid_source,
        notes=reading_notes(found.response, parsed.response, n_zero),
        na_action=na_action,
        table_index=table.index if na_action == "exclude" else None,
    )


class _Used:
    """Variables of the rows used, each taken once.

    Parameters
    ----------
    rows : (n,) or None
        Positions in the table; None for all.
    n : int
    """

    def __init__(self, rows: Rows, n: int) -> None:
        self.rows, self.n = rows, n
        self.taken: dict[str, Variable] = {}

    def __call__(self, variables: Mapping[str, Variable]) -> dict[str, Variable]:
        for expr, variable in variables.items():
            if expr not in self.taken:
                self.taken[expr] = variable.take(self.rows)
        return {expr: self.taken[expr] for expr in variables}

    def random_terms(
        self, reading: Reading, found: Variables, fixed: tuple[MatrixSpec, Array] | None
    ) -> tuple[RandomDesign, ...]:
        """Columns and codes of the random terms, in lme4's order.

        ``fixed`` is the fixed part where a term of the same columns would be coded like it.
        """
        terms, parts = reading.parsed.random, []
        for term in terms:
            columns = reading.random[term.expr]
            same = fixed if columns is reading.fixed or columns == reading.fixed else None
            parts += random_parts(term, columns, self(found.random[term.expr]), self.n, same)
        factors = {name: factor.take(self.rows) for name, factor in found.factors.items()}
        return in_order(parts, group_codes(terms, factors))
