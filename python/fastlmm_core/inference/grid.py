"""The reference grid: the combinations of predictors at which marginal means stand, and the rows of X there.

A marginal mean is the average of the linear predictor over some of a grid's rows (Searle, Speed and Milliken 1980), a
marginal slope the average of its derivative: both are rows L with L beta the estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb, factorial, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FormulaError, ModelError
from fastlmm_core.formula.evaluate import Evaluator, column_series
from fastlmm_core.formula.frame import Numeric, Table, from_pandas, of_days
from fastlmm_core.formula.levels import Factor
from fastlmm_core.formula.names import names_in
from fastlmm_core.formula.quoting import unquote_name
from fastlmm_core.inference.specs import check_known
from fastlmm_core.lazy import cached_property

if TYPE_CHECKING:
    from fastlmm_core.formula import Design
    from fastlmm_core.formula.grid_info import ColumnInfo, GridInfo

__all__ = ["WEIGHTS", "ReferenceGrid", "mentions", "reference_grid"]

Array = NDArray[np.float64]
Columns = dict[str, Any]
CovReduce = str | bool | Callable[[Any], Any]

WEIGHTS = ("equal", "proportional", "outer", "cells", "flat")

MOST_ROWS = 100_000
"""A grid of more rows is refused: it is averaged over nearly all of them, and `at` would make it small."""

EPSILON = float(np.finfo(np.float64).eps)

STEP = 1e-5
"""Half the width of the central difference of a slope, relative to the covariate's range; relative error below 1e-9."""


@dataclass(frozen=True, eq=False)
class ReferenceGrid:
    """A grid over the raw columns of the fixed part; the first column varies fastest.

    Attributes
    ----------
    design : Design
    levels : dict
        Values of each column: those of `at`, a factor's levels, a covariate's mean.
    given : frozenset of str
        Columns that `at` named.
    """

    design: Design
    levels: Mapping[str, tuple[Any, ...]]
    given: frozenset[str]

    @property
    def info(self) -> GridInfo:
        """Figures of the columns."""
        return self.design.grid_info

    @property
    def n(self) -> int:
        """Rows of the grid."""
        return prod(len(v) for v in self.levels.values())

    def positions(self) -> dict[str, NDArray[np.int64]]:
        """Place of each row's value among its column's `levels`."""
        sizes = [len(v) for v in self.levels.values()]
        index = np.arange(self.n)
        out = {}
        for name, size in zip(self.levels, sizes, strict=True):
            index, out[name] = np.divmod(index, size)
        return out

    def column(self, name: str, place: NDArray[np.int64]) -> Any:
        """Values of a column, in the form in which the model's table had it."""
        if self.info.columns[name].moment:
            return self.in_form(name, np.array(self.levels[name])[place])
        return _values(self.info.columns[name], self.levels[name], place)

    def in_form(self, name: str, values: Array) -> Any:
        """A covariate's numbers as the model reads them: dates where a call does, which has methods of theirs."""
        info = self.info.columns[name]
        calls = [*self.design.spec.terms.computed, *self.design.formula.offsets]
        return of_days(values, info.moment) if info.moment and mentions(calls, name, self.info.columns) else values

    def columns(self) -> Columns:
        """The grid as a table."""
        return {name: self.column(name, place) for name, place in self.positions().items()}

    def label(self, name: str, place: NDArray[np.int64]) -> Any:
        """Values of a column as tables show them: factors as categories in their order."""
        values, info = self.levels[name], self.info.columns[name]
        if info.kind == "factor":
            names = list(of_days(np.array(values), info.moment)) if info.moment else list(values)
            return pd.Categorical.from_codes(place, categories=names)
        numbers = np.array(values)[place]
        return of_days(numbers, info.moment) if info.moment else numbers

    def matrix(self, columns: Columns) -> tuple[Array, Array]:
        """X (m, p) and the offset (m,) of rows of a table."""
        design, constant = self.design, 0.0
        if design.offset_given is True:  # an array: there is nothing to compute it from
            constant = float(np.mean(design.offset)) if design.offset is not None else 0.0
            design = replace(design, offset_given=False, formula=replace(design.formula, offsets=()))
        if not columns:
            columns = {"row": np.zeros(1)}
        new = design.rebuild(columns, random=False)
        assert new.X is not None
        return new.X, np.full(len(new.X), constant) if new.offset is None else new.offset

    def rows(self) -> tuple[Array, Array]:
        """X (n, p) and the offset (n,) of the grid's rows: the fit's mean offset, unless `at` or a level sets it.

        The mean of `log(t)`, not the logarithm of the mean, as emmeans has it.
        """
        X, offset = self.matrix(self.columns())
        given = self.design.offset_given
        offsets = [*self.design.formula.offsets, *([given] if isinstance(given, str) else [])]
        if self.design.offset is None or any(
            mentions(offsets, name, self.info.columns)
            for name, values in self.levels.items()
            if name in self.given or len(values) > 1
        ):
            return X, offset
        return X, np.full(len(X), np.mean(self.design.offset))

    def slopes(self, variable: str, columns: Columns) -> tuple[Array, Array]:
        """Derivatives of X and of the offset by `variable`, a covariate or an expression of one, in rows of a table."""
        name = self.covariate_of(variable)
        info = self.info.columns[name]
        x = numbers_of(columns[name])
        h = STEP * (info.high - info.low)
        (above, offset_above), (below, offset_below) = (
            self.matrix({**columns, name: self.in_form(name, x + step)}) for step in (h, -h)
        )
        dx, doffset = (above - below) / (2.0 * h), (offset_above - offset_below) / (2.0 * h)
        if info.moment and (not dx.any() or isinstance(getattr(self.in_form(name, x), "dtype", None), pd.PeriodDtype)):
            raise DataError(f"what the model makes of {name} goes in steps, such as whole days: no slope by it exists")
        if self.column_named(variable) is not None:
            return dx, doffset
        chain = (self._expression(variable, name, x + h) - self._expression(variable, name, x - h)) / (2.0 * h)
        if not np.isfinite(chain).all() or (chain == 0.0).any():
            raise DataError(
                f"{variable} does not change with {name} at some of its values: no slope by it exists there"
            )
        return dx / chain[:, None], doffset / chain

    def curvatures(self, name: str, columns: Columns, degree: int) -> tuple[Array, Array]:
        """Coefficients of x**degree in Taylor's series of X and of the offset in a covariate, in rows of a table.

        Central differences, whose step balances truncation and rounding; what is rounding alone is zero.
        """
        info = self.info.columns[name]
        x = numbers_of(columns[name])
        h = EPSILON ** (1.0 / (degree + 2)) * (info.high - info.low)
        scale = factorial(degree) * h**degree
        weights = [(-1) ** (degree - i) * comb(degree, i) / scale for i in range(degree + 1)]
        shifts = [x + (i - 0.5 * degree) * h for i in range(degree + 1)]
        each = [self.matrix({**columns, name: self.in_form(name, at)}) for at in shifts]

        def difference(values: Array) -> Array:
            """Of values (degree + 1, n, ...) at the shifts; what a column's largest value can round to is zero."""
            out = np.tensordot(weights, values, 1)
            noise = 16.0 * 2.0**degree * EPSILON / scale * np.max(np.abs(values), axis=(0, 1))
            return np.where(np.abs(out) > noise, out, 0.0)

        return difference(np.array([X for X, _ in each])), difference(np.array([offset for _, offset in each]))

    def column_named(self, variable: str) -> str | None:
        """The column that a text names, as it is or quoted; None where it is an expression."""
        return variable if variable in self.info.columns else unquote_name(variable)

    def covariate_of(self, variable: str) -> str:
        """The numeric column that a slope's variable is, or is a function of."""
        single = self.column_named(variable)
        if single is None:
            names = [name for name in names_in(variable, self.info.columns) if name in self.info.columns]
            if len(names) != 1:
                raise FormulaError(
                    f"slopes are by one covariate or an expression of one, and {variable!r} has {len(names)} of the "
                    f"fixed part's columns: {', '.join(self.info.columns)}"
                )
            single = names[0]
        check_known(single, self.design)
        info = self.info.columns[single]
        if info.kind == "factor":
            raise DataError(f"{single} is a factor, so there is no slope by it: emmeans compares its levels")
        if not info.high > info.low:
            raise DataError(f"{single} has only one value in the rows of the fit: no slope by it can be estimated")
        return single

    def _expression(self, text: str, name: str, x: Array) -> Array:
        table = Table({name: of_days(x, info.moment) if (info := self.info.columns[name]).moment else x})
        value = Evaluator(table, self.design.context, dict(self.design.state))(text)
        if isinstance(value, Factor) or value.values.ndim != 1:
            raise FormulaError(f"{text!r} is not one number a row: no slope by it exists")
        return np.asarray(value.values, dtype=np.float64)

    def averaging(self, keep: Sequence[str], weights: str) -> Array:
        """Weights (groups, n) of the grid's rows in the mean of each combination of the columns in `keep`.

        Groups are in the order of `combinations`. A group without weight is NaN: there is nothing to average.
        """
        if weights not in WEIGHTS:
            raise ModelError(f"weights {weights!r} do not exist: use one of {', '.join(map(repr, WEIGHTS))}")
        place = self.positions()
        group, size = np.zeros(self.n, np.int64), 1
        for name in keep:
            group = group + size * place[name]
            size *= len(self.levels[name])
        w = self._weights(place, keep, weights)
        total = np.bincount(group, w, size)
        out = np.zeros((size, self.n))
        with np.errstate(divide="ignore", invalid="ignore"):
            out[group, np.arange(self.n)] = w / total[group]
        out[total == 0.0] = np.nan
        return out

    def combinations(self, keep: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Positions of the levels of `keep` in each group, the first name fastest."""
        sizes = [len(self.levels[name]) for name in keep]
        index = np.arange(prod(sizes))
        out = {}
        for name, size in zip(keep, sizes, strict=True):
            index, out[name] = np.divmod(index, size)
        return out

    def averaged(self, keep: Sequence[str]) -> list[str]:
        """Columns of several values that are averaged over."""
        return [name for name, values in self.levels.items() if name not in keep and len(values) > 1]

    @cached_property
    def nests(self) -> dict[str, tuple[str, ...]]:
        """Factors whose levels each occur within one level of others, and the others, where the model says so too.

        The model does if every term with the factor has the others: `a / b`, not `a + b`.
        """
        info, found = self.info, {}
        terms = self.design.spec.terms.terms
        for k, name in enumerate(info.counted):
            within = [
                other
                for j, other in enumerate(info.counted)
                if other != name
                and len(np.unique(info.cells[:, j])) > 1
                and len(np.unique(info.cells[:, [k, j]], axis=0)) == len(np.unique(info.cells[:, k]))
                and all(mentions(term, other, info.columns) for term in terms if mentions(term, name, info.columns))
                and not all(mentions(term, name, info.columns) for term in terms if mentions(term, other, info.columns))
            ]
            if within:
                found[name] = tuple(within)
        return found

    def _weights(self, place: Mapping[str, NDArray[np.int64]], keep: Sequence[str], how: str) -> Array:
        w = self._of_factors(place, keep, how)
        for name, within in self.nests.items():
            if not any(self._is_fixed_number(n) for n in (name, *within)):
                w = np.where(self._counts(place, [name, *within]) > 0, w, 0.0)
        return w

    def _of_factors(self, place: Mapping[str, NDArray[np.int64]], keep: Sequence[str], how: str) -> Array:
        """Weights as if no factor were nested in others."""
        counted = [name for name in self.info.counted if not self._is_fixed_number(name)]
        over = [name for name in counted if name not in keep]
        if how == "equal" or not over:
            return np.ones(self.n)
        if how == "proportional":
            return self._counts(place, over)
        if how == "outer":
            return np.asarray(np.prod([self._counts(place, [name]) for name in over], axis=0))
        counts = self._counts(place, counted)
        return counts if how == "cells" else np.where(counts > 0, 1.0, 0.0)

    def _is_fixed_number(self, name: str) -> bool:
        return name in self.given and self.info.columns[name].kind == "number"

    def _counts(self, place: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> Array:
        """Rows of the fit at each grid row's levels of `names`."""
        info = self.info
        key, cell, size = np.zeros(self.n, np.int64), np.zeros(len(info.cells), np.int64), 1
        for name in names:
            every = info.columns[name].levels
            at = np.array([every.index(value) for value in self.levels[name]])
            key += size * at[place[name]]
            cell += size * info.cells[:, info.counted.index(name)]
            size *= len(every)
        found, where = np.unique(cell, return_inverse=True)
        total = np.bincount(where, info.counts)
        slot = np.minimum(np.searchsorted(found, key), len(found) - 1)
        return np.where(found[slot] == key, total[slot], 0.0)


def mentions(term: Sequence[str], name: str, columns: Container[str]) -> bool:
    """Whether a column is among a term's factors, or inside of one."""
    return any(expr == name if expr in columns else name in names_in(expr, columns) for expr in term)


def reference_grid(
    design: Design, at: Mapping[str, Any] | None = None, cov_reduce: CovReduce = "mean", data: Any = None
) -> ReferenceGrid:
    """The grid of a design: factors at all their levels, covariates at one value or at both of two.

    Parameters
    ----------
    design : Design
    at : mapping, optional
        Column to value or values, instead.
    cov_reduce : {"mean", "median"}, callable, or False
        What stands for a covariate of more than two values: a figure of its column (a callable needs `data`), or all
        of its values.
    data : table, optional
        The table of the fit.

    Raises
    ------
    DataError
        A name in `at` is no predictor, or a level is not the model's.
    ModelError
        More than 100,000 rows.
    """
    info = design.grid_info
    given = {str(name): value for name, value in (at or {}).items()}
    for name in given:
        check_known(name, design)
    levels: dict[str, tuple[Any, ...]] = {}
    for name, column in info.columns.items():
        if name in given:
            levels[name] = _asked(column, given[name])
        elif column.kind == "factor" or (column.n_distinct == 2 and name not in info.offset_only):
            levels[name] = column.levels
        else:
            levels[name] = _reduced(column, cov_reduce, design, data)
    grid = ReferenceGrid(design, levels, frozenset(given))
    if grid.n > MOST_ROWS:
        many = ", ".join(f"{name} {len(v)}" for name, v in levels.items() if len(v) > 1)
        raise ModelError(
            f"the reference grid has {grid.n:,} rows, more than {MOST_ROWS:,} ({many}): fix some of them by at="
        )
    return grid


def _asked(column: ColumnInfo, value: Any) -> tuple[Any, ...]:
    """The values that `at` has for a column."""
    single = isinstance(value, (str, bytes)) or np.ndim(value) == 0
    values = [value] if single else list(value)
    if not values:
        raise DataError(f"at has no value for {column.name}")
    if column.kind == "number":
        try:
            numbers = numbers_of(pd.to_datetime(values)) if _are_dates(column, values) else np.array(values, np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{column.name} is numeric, and at has {values!r} for it") from None
        if not np.isfinite(numbers).all():
            raise DataError(f"at has values of {column.name} that are not finite")
        return tuple(numbers.tolist())
    if column.moment:
        values = list(numbers_of(pd.to_datetime(values))) if _are_dates(column, values) else values
    by_text = {str(level): level for level in column.levels}
    for level in column.levels:  # 10.0 and 10 are one level
        if isinstance(level, (int, float)) and not isinstance(level, bool):
            by_text.setdefault(f"{level:.15g}", level)
    found = []
    for asked in values:
        text = f"{asked:.15g}" if isinstance(asked, (float, np.floating)) else str(asked)
        if text not in by_text:
            listed = ", ".join(map(str, column.levels[:20]))
            raise DataError(f"at has {asked!r} for {column.name}, whose levels are {listed}")
        found.append(by_text[text])
    if len(set(found)) < len(found):
        raise DataError(f"at names a level of {column.name} twice: {values!r}")
    return tuple(found)


def _reduced(column: ColumnInfo, how: CovReduce, design: Design, data: Any) -> tuple[Any, ...]:
    """What stands for a covariate in the grid."""
    if how is False:
        if not column.levels:
            raise DataError(f"{column.name} has too many distinct values for cov_reduce=False: give some by at=")
        return column.levels
    if how is True or how == "mean":
        return (column.mean,)
    if how == "median" and np.isfinite(column.median):
        return (column.median,)
    if how != "median" and not callable(how):
        raise ModelError(f'cov_reduce must be "mean", "median", a callable or False, not {how!r}')
    if data is None:
        raise DataError(f"cov_reduce={how!r} needs the values of {column.name}: pass data=, the table of the fit")
    values = observed(design, data, [column.name])[column.name]
    values = pd.Series(numbers_of(values)) if column.moment else values
    value = np.median(values) if how == "median" else how(values)  # type: ignore[operator]
    if np.ndim(value) != 0 or not np.isfinite(np.asarray(value, dtype=np.float64)):
        raise DataError(f"cov_reduce has to make one finite number of {column.name}, not {value!r:.60}")
    return (float(value),)


def observed(design: Design, data: Any, names: Sequence[str]) -> Columns:
    """Columns of the fit's table over the rows used, as its expressions see them."""
    table = Table(design.in_order(data, "data") if isinstance(data, pd.DataFrame) else data)
    table.require(names)
    out = {}
    for name in names:
        variable = table[name]
        if table.n != design.n_total:
            raise DataError(f"data has {table.n} rows, but the model was fitted to a table of {design.n_total}")
        series = column_series(variable, None)
        out[name] = series.iloc[design.row_index].reset_index(drop=True)
        if out[name].isna().any() and not design.grid_info.columns[name].gaps:
            raise DataError(f"data has missing values of {name} in rows that the fit used: pass the table of the fit")
    return out


def _are_dates(column: ColumnInfo, values: Sequence[Any]) -> bool:
    return column.moment != "" and not all(isinstance(value, (int, float, np.number)) for value in values)


def numbers_of(values: Any) -> Array:
    """A covariate's values as numbers; dates as days since 1970-01-01."""
    variable = from_pandas(pd.Series(values), "a covariate")
    assert isinstance(variable, Numeric)
    return variable.values.astype(np.float64)


def _values(column: ColumnInfo, levels: Sequence[Any], place: NDArray[np.int64]) -> Any:
    if column.kind == "number" or all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in levels):
        return np.array(levels)[place]
    if set(column.levels) <= {False, True}:
        return np.array(levels, dtype=bool)[place]
    where = np.array([column.levels.index(value) for value in levels])[place]
    return pd.Categorical.from_codes(where, categories=list(column.levels), ordered=column.ordered)


def over_data(grid: ReferenceGrid, data: Any, keep: Sequence[str]) -> Iterator[Columns]:
    """The rows of the fit with the columns in `keep` set to each of their combinations, and those of `at` to theirs."""
    fixed = [name for name in grid.levels if name in grid.given and name not in keep]
    several = [name for name in fixed if len(grid.levels[name]) > 1]
    if several:
        raise DataError(f'over="data" takes one value of {several[0]} in at=, or it among the means')
    base = observed(grid.design, data, [name for name in grid.levels if name not in keep and name not in fixed])
    n = len(grid.design.y)
    zero = np.zeros(n, np.int64)
    base.update({name: grid.column(name, zero) for name in fixed})
    places = grid.combinations(keep)
    for k in range(prod(len(grid.levels[name]) for name in keep)):
        yield base | {name: grid.column(name, zero + places[name][k]) for name in keep}
