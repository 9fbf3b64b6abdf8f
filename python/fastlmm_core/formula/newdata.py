"""A model's design for other rows: the columns and codes that were learnt from its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.errors import DataError
from fastlmm_core.formula.checks import OFFSET, check_finite, warn_of_undefined
from fastlmm_core.formula.evaluate import Evaluator
from fastlmm_core.formula.fixed import MatrixSpec, columns_of, variables_of
from fastlmm_core.formula.frame import Numeric, Table, Variable, aligned, as_factor, moments
from fastlmm_core.formula.levels import Factor
from fastlmm_core.formula.quoting import unquote_name
from fastlmm_core.formula.residual_rows import NewResidual, NewResidualRows
from fastlmm_core.formula.rowwise import argument_columns, numeric_argument

if TYPE_CHECKING:
    from fastlmm_core.formula.design import Design, RandomDesign

__all__ = ["NewDesign", "NewRandom", "grouping_factor", "offset_columns", "offset_values", "rebuild"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NewRandom:
    """A random-effect term for other rows.

    Attributes
    ----------
    codes : ndarray (n,) of int
        Level of each row, -1 for a new one.
    z : ndarray (n, l) or None
        None stands for a column of ones.
    n_levels : int
        Levels that the codes are of: the model's, or those of the new data where these are coded anew.
    """

    codes: NDArray[np.integer[Any]]
    z: Array | None
    n_levels: int


@dataclass(frozen=True)
class NewDesign:
    """A model's design for the rows of a table, of which those with a missing value are left out.

    Attributes
    ----------
    X : ndarray (n, p) or None
    random : tuple of NewRandom or None
        One a random term of the model; None for those not asked for.
    offset : ndarray (n,) or None
    rows : ndarray (n,) of int64, or None
        Positions in the table of the rows that are complete; None where all are.
    index : pandas.Index
        Of all rows: the table's own, or positions.
    residual : NewResidual or None
        What the residual structure sees of them, where it was asked for.
    """

    X: Array | None
    random: tuple[NewRandom | None, ...]
    offset: Array | None
    rows: NDArray[np.int64] | None
    index: pd.Index
    residual: NewResidual | None = None

    def full(self, values: Array) -> Array:
        """One value (or k) a complete row for all rows, NaN in the others."""
        if self.rows is None:
            return values
        out = np.full((len(self.index), *np.shape(values)[1:]), np.nan)
        out[self.rows] = values
        return out

    def by_row(self, values: Array) -> pd.Series:
        """One value a complete row as a Series over all rows, NaN in the others."""
        return pd.Series(self.full(values), index=self.index, dtype=float, copy=True)

    def taken(self, values: ArrayLike, what: str) -> NDArray[np.float64]:
        """One value a row of the new data, or one for all, for the complete rows (n,)."""
        array = np.asarray(aligned(values, self.index, what), dtype=np.float64)
        if array.ndim and array.shape != (len(self.index),):
            raise DataError(f"{what} has shape {array.shape}, but there are {len(self.index)} rows")
        full = np.broadcast_to(array, len(self.index))
        return full if self.rows is None else full[self.rows]


def rebuild(
    design: Design,
    data: Any,
    fixed: bool,
    random: bool | Sequence[int],
    columns_only: Sequence[int],
    coded_anew: Sequence[int],
    *,
    allow_new_levels: bool,
    new_level_advice: str,
    residual: str,
) -> NewDesign:
    """See `Design.rebuild`."""
    table = Table(data)
    wanted = range(len(design.random)) if random is True else ([] if random is False else list(random))
    evaluate = Evaluator(table, design.context, dict(design.state))
    specs: dict[Any, MatrixSpec] = {"fixed": design.spec} if fixed else {}
    specs |= {k: spec for k in [*wanted, *columns_only, *coded_anew] if (spec := design.random[k].spec) is not None}
    _require(design, [*wanted, *coded_anew], list(specs.values()), evaluate)

    variables = {key: variables_of(spec.terms, evaluate) for key, spec in specs.items()}
    for of in variables.values():
        _refuse_other_times(design, of)
    factors = {
        k: [grouping_factor(name, evaluate) for name in design.group_of(k).group] for k in [*wanted, *coded_anew]
    }
    offset = offset_values(design.formula.offsets, _known_offset(design), evaluate) if fixed else None
    computed: dict[str, Variable] = {expr: v for of in variables.values() for expr, v in of.items()}
    if offset is not None:
        computed[OFFSET] = Numeric(offset)
    offsets = [*design.formula.offsets, *([design.offset_given] if isinstance(design.offset_given, str) else [])]
    warn_of_undefined(computed, table, None, offsets, "predicted as NaN")
    within = None
    if residual != "none" and design.residual is not None:
        within = NewResidualRows(design.residual, table, known=residual == "known", allow_new=allow_new_levels)
    masks = [mask for of in variables.values() for v in of.values() if (mask := v.missing()) is not None]
    if not allow_new_levels:
        masks += [mask for k in wanted for factor in factors[k] if (mask := factor.missing()) is not None]
    if offset is not None:
        masks.append(np.isnan(offset))
    masks += [] if within is None else within.masks()
    missing = np.logical_or.reduce(masks) if masks else np.zeros(0, dtype=bool)
    rows = np.flatnonzero(~missing) if missing.any() else None
    n = table.n if rows is None else len(rows)

    matrices: dict[Any, Array] = {}
    for key, spec in specs.items():
        where = "the fixed part" if key == "fixed" else f"the term on {design.random[key].group}"
        matrices[key] = _matrix(spec, variables[key], rows, n, where)
    parts: list[NewRandom | None] = [None] * len(design.random)
    for k in [*wanted, *columns_only, *coded_anew]:
        codes, q = np.full(n, -1, np.int64), len(design.random[k].level_set)
        if k in coded_anew:
            codes, q = _codes_anew(factors[k], rows)
        elif k in factors:
            codes = _codes(design.random[k], factors[k], rows, allow_new_levels, new_level_advice)
        parts[k] = NewRandom(codes, matrices.get(k), q)
    if offset is not None:
        offset = offset if rows is None else offset[rows]
        if count := int(np.isinf(offset).sum()):
            raise DataError(f"the offset is infinite in {count} rows of the new data")
    index = pd.RangeIndex(table.n) if table.index is None else table.index
    seen = None if within is None else within.taken(rows, n)
    return NewDesign(matrices.get("fixed"), tuple(parts), offset, rows, index, seen)


def _require(design: Design, wanted: Sequence[int], specs: Sequence[MatrixSpec], evaluate: Evaluator) -> None:
    """Check that the new data have the columns that are needed."""
    table = evaluate.table
    names: list[str] = []
    for k in wanted:
        term = design.group_of(k)
        for name in term.group:
            columns = evaluate.names(name) if name in term.computed else [name]
            for column in columns:
                if column not in table:
                    raise DataError(
                        f'{table.no_column(column)}. It is in the grouping factor {term.label}: re_form="none" leaves '
                        "the random effects out"
                    )
            names += columns
    names += columns_of([spec.terms for spec in specs], evaluate)
    table.require(names + table.mentioned_in([design.offset_given, *design.formula.offsets]))


def _refuse_other_times(design: Design, variables: Mapping[str, Variable]) -> None:
    """DataError for a column of dates or durations where the fit had numbers, or the other of the two.

    A streamed design does not know what its columns held.
    """
    if design.streamed:
        return
    for name, variable in variables.items():
        if not isinstance(variable, Numeric) or (when := moments(variable)) is None:
            continue
        if name not in design.grid_info.columns:
            continue
        of_fit = design.grid_info.columns[name].moment
        if not of_fit or of_fit.startswith("timedelta") != (when.dtype.kind == "m"):
            held = of_fit or "numbers"
            raise DataError(f"{name} holds {held} in the model but {variable.native.dtype} in the new data")


def _known_offset(design: Design) -> str | None:
    """The offset's expression beside the formula's own."""
    if design.offset_given is True:
        raise DataError("the model's offset was an array: for new rows give it as a column's name or an expression")
    return design.offset_given if isinstance(design.offset_given, str) else None


def _matrix(spec: MatrixSpec, variables: dict[str, Variable], rows: Any, n: int, part: str) -> Array:
    taken = {expr: spec.recode(variable.take(rows), expr) for expr, variable in variables.items()}
    X = spec.matrix(taken, n)
    check_finite(X, spec.names, f"{part} of the new data")
    return X


def _codes(term: RandomDesign, factors: list[Factor], rows: Any, allow_new: bool, advice: str) -> NDArray[np.int64]:
    codes = term.level_set.place(factors)
    codes = codes if rows is None else codes[rows]
    if not allow_new and (codes < 0).any():
        row = int(np.argmax(codes < 0))
        row = row if rows is None else int(rows[row])
        level = ":".join(str(factor.levels[factor.codes[row]]) for factor in factors)
        raise DataError(
            f"the new data have a level of {term.group} that the model was not fitted to: {level!r} "
            f"({int((codes < 0).sum())} rows have such levels); {advice}"
        )
    return codes


def _codes_anew(factors: list[Factor], rows: Any) -> tuple[NDArray[np.int64], int]:
    """Codes and number of the levels that occur in the new data; a row whose level is missing has one of its own."""
    codes = np.zeros(len(factors[0].codes), dtype=np.int64)
    missing = np.zeros(len(codes), dtype=bool)
    for factor in factors:
        missing |= factor.codes < 0
        codes = np.unique(codes * (len(factor.levels) + 1) + factor.codes, return_inverse=True)[1]
    codes[missing] = len(codes) + np.arange(missing.sum())
    codes = np.unique(codes if rows is None else codes[rows], return_inverse=True)[1]
    return codes, int(codes.max(initial=-1)) + 1


def grouping_factor(name: str, evaluate: Evaluator) -> Factor:
    """The column of that name, or the value of the expression, as a factor."""
    return as_factor(evaluate.table[name] if name in evaluate.table else evaluate(name))


def offset_values(expressions: Sequence[str], given: str | ArrayLike | None, evaluate: Evaluator) -> Array | None:
    """The sum of a formula's `offset()` terms and of the offset given beside it, over all rows; None without any."""
    parts = [_numeric(evaluate, expr, f"offset({expr})") for expr in expressions]
    if given is not None:
        parts.append(numeric_argument(given, "offset", evaluate.table, evaluate.context))
    if not parts:
        return None
    total: Array = np.sum(parts, axis=0)
    return total


def offset_columns(expressions: Sequence[str], given: str | ArrayLike | None, evaluate: Evaluator) -> list[str]:
    """The columns that a formula's `offset()` terms, and an offset given as a text beside it, read."""
    columns = argument_columns(given, "offset", evaluate.table, evaluate.context)
    for expr in expressions:
        name = unquote_name(expr)
        columns += evaluate.names(expr) if name is None else [name]
    return columns


def _numeric(evaluate: Evaluator, expr: str, what: str) -> Array:
    name = unquote_name(expr)
    if name is not None:
        evaluate.table.require([name])
    variable = evaluate.table[name] if name is not None else evaluate(expr)
    if isinstance(variable, Factor) or variable.values.ndim != 1:
        raise DataError(f"{what} must be numeric, one value a row")
    return variable.values.astype(np.float64, copy=False)
