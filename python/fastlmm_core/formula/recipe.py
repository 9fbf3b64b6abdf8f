"""A formula over rows that come in batches: what is learnt once, and the arrays of each batch.

Whatever a row's columns depend on beside the row itself has to be known before the rows are added up: the levels of the
fixed part's factors, what `scale` or `poly` learn. `Recipe.needs` names these parts, a first pass over the source finds
them (`Survey`). Everything else must be elementwise, which is checked on the first rows.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FormulaError, ModelError
from fastlmm_core.formula.checks import (
    check_finite,
    refuse_undefined,
    response_values,
    sound_offset,
    sound_weights,
    sources_of,
)
from fastlmm_core.formula.dictionaries import takeable
from fastlmm_core.formula.evaluate import Context, Evaluator
from fastlmm_core.formula.fixed import MatrixSpec, columns_of, fit_matrix
from fastlmm_core.formula.frame import Numeric, Table, Variable
from fastlmm_core.formula.held import HELD
from fastlmm_core.formula.levels import Factor
from fastlmm_core.formula.names import syntax
from fastlmm_core.formula.newdata import grouping_factor, offset_columns, offset_values
from fastlmm_core.formula.parse import ParsedFormula, expand_dot, parse_formula
from fastlmm_core.formula.quoting import unquote_name
from fastlmm_core.formula.random_terms import RandomPart, random_parts
from fastlmm_core.formula.rowwise import argument_columns, numeric_argument, subset_rows
from fastlmm_core.formula.terms import Terms, parse_terms
from fastlmm_core.formula.transforms import transforms

__all__ = ["BatchArrays", "Recipe", "Survey"]

Array = NDArray[np.float64]

OFFSET, WEIGHTS = "the offset", "the weights"
"""What these are called among what may be missing in a row."""

LEVELS_AT = {"C": 2, "factor": 1, "as_factor": 1, "ordered": 1, "as_ordered": 1, "as_character": 1, "droplevels": 1}
"""Which argument of these functions the levels are."""

CHECKED_ROWS = 512
"""Rows on which it is checked that an expression is elementwise."""


@dataclass(frozen=True, eq=False)
class BatchArrays:
    """One batch as arrays; rows with a missing value, of weight zero or outside of `subset` are left out.

    Attributes
    ----------
    y, X : (n,), (n, p)
    z : list of (n, l) or None
        One a random term.
    groups : dict
        For each grouping column its values (an Arrow array) or, where it is computed, a Factor.
    weights, offset : (n,) or None
    n_total, n_missing, n_zero : int
        Rows of the batch; those left out for a missing value, and for a weight of zero.
    """

    y: Array
    X: Array
    z: list[Array | None]
    groups: dict[str, Any]
    weights: Array | None
    offset: Array | None
    n_total: int
    n_missing: int
    n_zero: int


class Survey:
    """What a first pass finds: levels of factors, and columns that transforms learn from."""

    def __init__(self) -> None:
        self.levels: dict[str, dict[Any, None]] = {}
        self.factors: dict[str, Factor] = {}
        self.columns: dict[str, list[Any]] = {}

    def merge(self, other: Survey) -> None:
        """Add what another has found."""
        for expr, levels in other.levels.items():
            self.levels.setdefault(expr, {}).update(levels)
        self.factors = {**other.factors, **self.factors}
        for name, chunks in other.columns.items():
            self.columns.setdefault(name, []).extend(chunks)

    @property
    def nbytes(self) -> int:
        """Size of the columns kept."""
        return sum(chunk.nbytes for chunks in self.columns.values() for chunk in chunks)


class Recipe:
    """A model's formula and arguments, ready for any batch.

    Parameters
    ----------
    formula : str
    names : sequence of str
        Columns of the source.
    weights, offset, subset : str, optional
        Expressions over the columns.
    contrasts : mapping, optional
    env : mapping, optional
    na_action : {"drop", "raise"}

    Raises
    ------
    FormulaError, ModelError, DataError
        The formula cannot be read, needs columns that are not there, or something that rows in batches do not have.
    """

    def __init__(
        self,
        formula: str,
        names: Sequence[str],
        *,
        weights: str | None = None,
        offset: str | None = None,
        subset: str | None = None,
        contrasts: Mapping[str, Any] | None = None,
        env: Mapping[str, Any] | None = None,
        na_action: str = "drop",
    ) -> None:
        if na_action not in ("drop", "raise"):
            raise ModelError(
                f'na_action must be "drop" or "raise" where rows are streamed, not {na_action!r}: none is kept'
            )
        for what, value in (("weights", weights), ("offset", offset), ("subset", subset)):
            if value is not None and not isinstance(value, str):
                raise DataError(f"{what} must be the name of a column or an expression where rows are streamed")
        self.formula, self.names, self.na_action, self.contrasts = formula, tuple(names), na_action, contrasts
        self.weights, self.offset, self.subset = weights, offset, subset
        self.context, self.state = Context(env), dict[str, Any]()
        head = Table({name: np.empty(0) for name in names})
        evaluate = Evaluator(head, self.context, self.state)
        parsed = parse_formula(formula)
        if parsed.sparse:
            raise ModelError(f"sparse({', '.join(parsed.sparse)}) is not available where rows are streamed")
        for term in parsed.random:
            if term.structure.name not in ("us", "diag") or (term.structure.name == "diag" and term.structure.hom):
                raise ModelError(f"the structure of {term} is not available where rows are streamed: us and diag are")
        answer = unquote_name(parsed.response)
        needed = [answer] if answer is not None else evaluate.names(parsed.response)
        self.groups = {name: name in term.computed for term in parsed.random for name in term.group}
        for name, computed in self.groups.items():
            needed += evaluate.names(name) if computed and name not in head else [name]
        if "." in parsed.fixed:
            used = {*needed, *offset_columns(parsed.offsets, offset, evaluate)}
            parsed = expand_dot(parsed, list(names), used)
        self.parsed: ParsedFormula = parsed
        self.fixed_terms = parse_terms(parsed.fixed, names)
        self.random_terms: dict[str, Terms] = {t.expr: parse_terms(t.expr, names) for t in parsed.random}
        needed += columns_of([self.fixed_terms, *self.random_terms.values()], evaluate)
        needed += offset_columns(parsed.offsets, offset, evaluate)
        needed += argument_columns(weights, "weights", head, self.context)
        needed += argument_columns(subset, "subset", head, self.context)
        head.require(needed)
        self.needed = tuple(dict.fromkeys(needed))
        self.spec: MatrixSpec | None = None
        self.parts: list[RandomPart] = []
        self.levels: dict[str, Factor] = {}
        self._learnt: dict[str, tuple[str, ...]] = {}  # names of the columns of what learns
        self.learns = [expr for expr in self._computed() if _stateful(expr, self.context)]

    @property
    def said(self) -> str:
        """What was asked for, as a text: two recipes that say the same add up the same columns."""
        levels = [(expr, of.levels.tolist()) for expr, of in sorted(self.levels.items())]
        asked = (self.weights, self.offset, self.subset, self.na_action, self.contrasts)
        return repr((self.parsed, self.needed, asked, levels, self.spec and self.spec.names))

    def _computed(self) -> list[str]:
        """Every expression that is Python code."""
        out = [expr for terms in (self.fixed_terms, *self.random_terms.values()) for expr in terms.computed]
        out += [name for name, computed in self.groups.items() if computed]
        if unquote_name(self.parsed.response) is None:
            out.append(self.parsed.response)
        return list(dict.fromkeys(out))

    def look(self, batch: Any) -> None:
        """Look at the first batch: which expressions are factors, and whether the others are elementwise.

        Raises
        ------
        FormulaError
            An expression takes values of several rows.
        """
        table = Table(_table(batch))
        few = _table(batch.slice(0, CHECKED_ROWS))
        for expr in self._in_matrices():
            if expr in self._computed() and _orders_levels(expr, self.names):
                raise FormulaError(
                    f"{expr} orders levels, which come in batches here: give them by name, as in "
                    "factor(f, levels=['b', 'a', 'c']) or C(f, contr.treatment(base='b'))"
                )
        for expr in self._computed():
            if expr not in self.learns:
                self._check_elementwise(expr, few)
        evaluate = Evaluator(table, self.context, self.state)
        for expr in self._in_matrices():
            if expr in self.learns:
                continue
            variable = evaluate(expr) if expr in self._computed() else table[expr]
            if isinstance(variable, Factor):
                self.levels[expr] = variable
        self._rows(table, evaluate, batch, levels_only=True)  # the caller's names that the arguments use are kept

    def _in_matrices(self) -> list[str]:
        return list(
            dict.fromkeys(expr for terms in (self.fixed_terms, *self.random_terms.values()) for expr in terms.factors)
        )

    def _check_elementwise(self, expr: str, few: Any) -> None:
        n = few.num_rows
        if n < 2:
            return
        whole, *halves = [
            Evaluator(Table(part), self.context, dict(self.state))(expr)
            for part in (few, few.slice(0, n // 2), few.slice(n // 2))
        ]
        one, two = (np.concatenate([_plain(part) for part in parts]) for parts in ([whole], halves))
        same = one.shape == two.shape and bool(((one == two) | (pd.isna(one) & pd.isna(two))).all())
        if not same or self.state[expr].transforms.get(HELD):
            raise FormulaError(
                f"{expr} takes values of several rows, which come in batches here: compute it as a column beforehand, "
                "or fit a table that is in memory"
            )

    @property
    def unknown_levels(self) -> list[str]:
        """Factors of X and z whose levels only the rows can tell."""
        return [
            expr
            for expr, variable in self.levels.items()
            if variable.levels.tolist() != [False, True] and not _gives_levels(expr, self.names)
        ]

    @property
    def needs(self) -> list[str]:
        """What needs a first pass over the rows."""
        return [*self.unknown_levels, *self.learns]

    @property
    def survey_columns(self) -> tuple[str, ...]:
        """Columns that the first pass reads: those of rows' completeness, too, where levels are looked for."""
        if self.unknown_levels:
            return self.needed
        names = [name for expr in self.learns for name in self.state[expr].columns]
        return tuple(dict.fromkeys(names))

    def survey(self, batch: Any, found: Survey) -> None:
        """Add what a batch of the first pass has."""
        for name in dict.fromkeys(name for expr in self.learns for name in self.state[expr].columns):
            found.columns.setdefault(name, []).append(batch.column(name))
        if not self.unknown_levels:
            return
        table = Table(_table(batch))
        evaluate = Evaluator(table, self.context, dict(self.state))
        rows = self._rows(table, evaluate, batch, levels_only=True)[0]
        for expr in self.unknown_levels:
            variable = evaluate(expr) if expr in self._computed() else table[expr]
            if not isinstance(variable, Factor):
                raise DataError(f"{expr} is categorical in some batches and numeric in others")
            own = variable.take(np.arange(table.n) if rows is None else rows)
            found.levels.setdefault(expr, {}).update(dict.fromkeys(own.levels.tolist()))
            found.factors.setdefault(expr, own)

    def settle(self, found: Survey | None) -> None:
        """Fix the columns of X and z, with what the first pass has found.

        Raises
        ------
        DataError, FormulaError
            A factor has one level; a transform cannot be evaluated.
        """
        if found is not None and self.learns:
            self._learn(found)
        for expr in self.unknown_levels:
            assert found is not None
            labels = np.empty(len(found.levels[expr]), dtype=object)
            labels[:] = list(found.levels[expr])
            try:
                labels = labels[np.argsort(labels, kind="stable")]
            except TypeError:
                labels = labels[np.argsort(labels.astype(str), kind="stable")]
            of = found.factors[expr]
            codes = np.zeros(1, np.int32)
            self.levels[expr] = Factor(codes, labels, of.ordered, of.contrasts, of.numeric)
        self.context.forget()
        one = {expr: self._sample(expr) for expr in self._in_matrices()}
        fixed = {expr: one[expr] for expr in self.fixed_terms.factors}
        self.spec = fit_matrix(self.fixed_terms, fixed, 1, self.contrasts)[0]
        self.parts = []
        for term in self.parsed.random:
            terms = self.random_terms[term.expr]
            self.parts += random_parts(term, terms, {expr: one[expr] for expr in terms.factors}, 1)

    def _learn(self, found: Survey) -> None:
        """Evaluate the transforms that learn on all of their columns at once."""
        import pyarrow as pa

        columns = {name: pa.chunked_array(chunks) for name, chunks in found.columns.items()}
        for expr in self.learns:
            names = self.state[expr].columns
            table = Table(pa.table({name: columns[name] for name in names}))
            variable = Evaluator(table, self.context, self.state)(expr)
            if isinstance(variable, Factor):
                raise FormulaError(f"{expr} learns levels from the rows, which come in batches here: make it a column")
            self._learnt[expr] = variable.names

    def _sample(self, expr: str) -> Variable:
        """A variable of one row, which has the names and levels of all."""
        if expr in self.levels:
            of = self.levels[expr]
            return Factor(np.zeros(1, np.int32), of.levels, of.ordered, of.contrasts, of.numeric)
        names = self._learnt.get(expr)
        if names is None:
            return Numeric(np.ones(1))
        return Numeric(np.ones((1, len(names))) if names else np.ones(1), names)

    def _rows(
        self, table: Table, evaluate: Evaluator, batch: Any, levels_only: bool = False
    ) -> tuple[NDArray[np.int64] | None, int, int, dict[str, Any]]:
        """Rows used (None: all), how many are left out for a missing value and for a weight of zero; values."""
        answer = unquote_name(self.parsed.response)
        learns = set(self.learns) if levels_only else set()
        variables: dict[str, Variable] = {}
        for terms in (self.fixed_terms, *self.random_terms.values()):
            for expr in terms.factors:
                if expr not in learns:
                    variables[expr] = evaluate(expr) if expr in terms.computed else table[expr]
        if self.parsed.response not in learns:
            variables[self.parsed.response] = evaluate(self.parsed.response) if answer is None else table[answer]
        missing: dict[str, NDArray[np.bool_]] = {
            expr: mask for expr, variable in variables.items() if (mask := variable.missing()) is not None
        }
        for expr in learns:
            for name in self.state[expr].columns:
                if (mask := table[name].missing()) is not None:
                    missing[name] = mask
        groups: dict[str, Any] = {}
        for name, computed in self.groups.items():
            if computed and name not in table:
                factor = grouping_factor(name, evaluate)
                groups[name], mask = factor, factor.missing()
            else:
                groups[name] = takeable(batch.column(name))
                mask = _missing(groups[name])
            if mask is not None:
                missing[name] = mask
        offset = offset_values(self.parsed.offsets, self.offset, evaluate)
        if offset is not None and np.isnan(offset).any():
            missing[OFFSET] = np.isnan(offset)
        prior = None if self.weights is None else numeric_argument(self.weights, "weights", table, self.context)
        if prior is not None and np.isnan(prior).any():
            missing[WEIGHTS] = np.isnan(prior)
        use = np.ones(table.n, bool) if self.subset is None else subset_rows(self.subset, table, self.context)
        n_zero = 0
        if prior is not None:
            n_zero = int(((prior == 0.0) & use).sum())
            use = use & (prior != 0.0)
        counts = {name: count for name, mask in missing.items() if (count := int((mask & use).sum()))}
        if counts and self.na_action == "raise":
            where = ", ".join(f"{name} ({count})" for name, count in counts.items())
            raise DataError(f'missing values in {where}; na_action="drop" leaves those rows out')
        for name, mask in missing.items():
            refuse_undefined(name, mask, self._sources(name, table, evaluate), table, use)
        absent = np.logical_or.reduce(list(missing.values())) if missing else np.zeros(table.n, bool)
        n_missing = int((absent & use).sum())
        use = use & ~absent
        rows = None if use.all() else np.flatnonzero(use)
        return rows, n_missing, n_zero, {"variables": variables, "groups": groups, "offset": offset, "weights": prior}

    def _sources(self, name: str, table: Table, evaluate: Evaluator) -> list[str]:
        """Columns of what may be missing in a row."""
        if name == OFFSET:
            return offset_columns(self.parsed.offsets, self.offset, evaluate)
        if name == WEIGHTS:
            return argument_columns(self.weights, "weights", table, self.context)
        return sources_of(name, table)

    def read(self, batch: Any) -> BatchArrays:
        """The arrays of a batch.

        Raises
        ------
        DataError, FormulaError
            Values are infinite or not numeric, a level was not known, an expression cannot be evaluated.
        """
        assert self.spec is not None
        table = Table(_table(batch))
        evaluate = Evaluator(table, self.context, dict(self.state))
        rows, n_missing, n_zero, of = self._rows(table, evaluate, batch)
        n = table.n if rows is None else len(rows)
        y = response_values(of["variables"][self.parsed.response], self.parsed.response, rows)
        taken: dict[str, Variable] = {}

        def matrix(spec: MatrixSpec, part: str) -> Array:
            for expr in spec.terms.factors:
                if expr not in taken:
                    taken[expr] = spec.recode(of["variables"][expr].take(rows), expr)
            out = spec.matrix(taken, n)
            check_finite(out, spec.names, part)
            return out

        z: list[Array | None] = []
        for part in self.parts:
            z.append(None if part.spec is None else matrix(part.spec, f"the random-effect term {part.term}"))
        groups = {name: _taken(value, rows) for name, value in of["groups"].items()}
        prior, offset = of["weights"], of["offset"]
        return BatchArrays(
            y,
            matrix(self.spec, "the fixed part"),
            z,
            groups,
            None if prior is None else sound_weights(prior, rows),
            None if offset is None else sound_offset(offset, rows),
            table.n,
            n_missing,
            n_zero,
        )


def _table(batch: Any) -> Any:
    import pyarrow as pa

    return batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])


def _plain(variable: Variable) -> NDArray[Any]:
    """A variable's values row by row, to be compared."""
    if isinstance(variable, Factor):
        return np.append(variable.levels, np.array([None]))[variable.codes]
    return variable.values


def _stateful(expr: str, context: Context) -> bool:
    """Whether an expression calls a transform that learns from the rows."""
    try:
        tree = ast.parse(expr.strip(), mode="eval")
    except SyntaxError:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            function = context[node.func.id] if node.func.id in context else transforms().get(node.func.id)
            if getattr(function, "__is_stateful_transform__", False):
                return True
    return False


def _gives_levels(expr: str, columns: Sequence[str]) -> bool:
    """Whether a call such as ``C(f, levels=[...])`` says what the levels are."""
    node = syntax(expr, columns)
    return isinstance(node, ast.Call) and any(k.arg in ("levels", "labels") for k in node.keywords)


def _orders_levels(expr: str, columns: Sequence[str]) -> bool:
    """Whether levels have an order, or one of them is named by its place, that `_gives_levels` does not see."""
    calls = [node for node in ast.walk(syntax(expr, columns)) if isinstance(node, ast.Call)]
    given = [(node.func.id, node) for node in calls if isinstance(node.func, ast.Name)]
    if any(name == "relevel" or (name == "C" and any(k.arg == "base" for k in call.keywords)) for name, call in given):
        return True
    positional = any(len(call.args) > LEVELS_AT.get(name, len(call.args)) for name, call in given)
    named = any(k.arg in ("levels", "labels") for _, call in given for k in call.keywords)
    return (positional or named) and not _gives_levels(expr, columns)


def _missing(column: Any) -> NDArray[np.bool_] | None:
    """(n,) mask of an Arrow array's nulls and NaN; None where there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return np.ones(len(column), bool)
    if pa.types.is_floating(column.type) or column.null_count:
        mask = np.asarray(pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False), bool)
        return mask if mask.any() else None
    return None


def _taken(value: Any, rows: NDArray[np.int64] | None) -> Any:
    if isinstance(value, Factor):
        return value.take(np.arange(len(value.codes)) if rows is None else rows)
    return value if rows is None else value.take(rows)
