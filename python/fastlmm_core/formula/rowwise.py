"""`subset`, `weights` and `offset`: an expression over the data's columns, a column name, or an array.

Expressions are interpreted here, node by node, so that a string can only compute. Arithmetic is float64's, so that
integers do not wrap around. Comparisons and `and`, `or`, `not` know three values, as R's do: true, false and missing.
"""

from __future__ import annotations

import ast
import contextlib
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FormulaError
from fastlmm_core.formula.evaluate import Context
from fastlmm_core.formula.frame import Numeric, Table, aligned, from_pandas, moments
from fastlmm_core.formula.names import parse_python
from fastlmm_core.formula.quoting import plain_code, python_power, shown, unquote_name
from fastlmm_core.formula.transforms import ELEMENTWISE

__all__ = ["argument_columns", "numeric_argument", "subset_rows"]

MAX_LENGTH = 65_536
_NUMPY = ["isnan", "isfinite", "arctan2", "hypot", "power", "mod", "isin"]
_CALLABLE: Mapping[str, Any] = {**ELEMENTWISE, **{name: getattr(np, name) for name in _NUMPY}}
_TOKENS = re.compile(r"(`[^`]*`|\"[^\"]*\"|'[^']*'|%in%|&&?|\|\|?|!(?!=))")
_WORDS = {"&": " and ", "&&": " and ", "|": " or ", "||": " or ", "!": " not ", "%in%": " in "}

_ARITHMETIC: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: _among(a, b),
    ast.NotIn: lambda a, b: ~_among(a, b),
}


def _among(left: Any, right: Any) -> NDArray[np.bool_]:
    """Which of the values are in a list; 1 is not among 1.5 where whole numbers are compared with others."""
    values, array = list(right), np.asarray(left)
    if array.dtype.kind in "iu" and not all(isinstance(value, (int, np.integer)) for value in values):
        array = array.astype(np.float64)
    return np.isin(array, np.asarray(values, dtype=array.dtype))


def numeric_argument(value: Any, what: str, table: Table, context: Context) -> NDArray[np.float64]:
    """`weights` or `offset` over all rows of the table, (n,) float64 with NaN where missing.

    Raises DataError where the values are not numbers or have the wrong length, FormulaError for a bad expression.
    """
    result = _value(value, what, table, context)
    if result.dtype.kind not in "biuf":
        raise DataError(f"{what} must be numeric, not {_kind(result)}")
    return result.astype(np.float64, copy=False)


def subset_rows(value: Any, table: Table, context: Context) -> NDArray[np.bool_]:
    """(n,) mask of the rows that `subset` keeps; a missing condition does not keep its row, as in R.

    Raises DataError where the values are not true and false or have the wrong length.
    """
    result = _value(value, "subset", table, context)
    if isinstance(value, str) and result.dtype.kind in "if" and np.isin(result[~np.isnan(result)], (0, 1)).all():
        return result == 1  # conditions with missing values are numbers, NaN where missing; so are 0/1 columns
    if result.dtype.kind == "O":
        with contextlib.suppress(TypeError, ValueError):
            result = pd.array(result, dtype="boolean").to_numpy(dtype=bool, na_value=False)
    if result.dtype.kind != "b":
        raise DataError(f"subset must be true or false for each row, not {_kind(result)}")
    return result


def _value(value: Any, what: str, table: Table, context: Context) -> NDArray[Any]:
    if isinstance(value, str):
        result = _column_or_expression(value, what, table, context)
        if np.ndim(result) == 0:
            result = np.full(table.n, result)
        return np.asarray(result)
    value = aligned(value, table.index, what)
    array = value.to_numpy() if hasattr(value, "to_numpy") else np.asarray(value)
    if array.ndim != 1:
        raise DataError(f"{what} has shape {array.shape}: it has to be one-dimensional")
    if len(array) != table.n:
        raise DataError(f"{what} has {len(array)} values, the data have {table.n} rows")
    if array.dtype.kind == "O":  # numbers beside None, or decimals: as a column's
        variable = from_pandas(pd.Series(array), what)
        return variable.values if isinstance(variable, Numeric) and moments(variable) is None else array
    return array


def argument_columns(value: Any, what: str, table: Table, context: Context) -> list[str]:
    """The columns that an argument reads: the one it names, those of an expression, none for an array."""
    if not isinstance(value, str):
        return []
    name = _named(value, table)
    return [name] if name is not None else _read(value, what, table, context)[1].columns


def _named(text: str, table: Table) -> str | None:
    """The column whose name the text is, plainly or in back-quotes."""
    return next((name for name in (text, unquote_name(text)) if name is not None and name in table), None)


def _read(text: str, what: str, table: Table, context: Context) -> tuple[ast.Expression, _Interpreter]:
    """The syntax tree of an expression and what evaluates it."""
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"{what} has {len(text):,} characters; at most {MAX_LENGTH:,} are read")
    quoted: dict[str, str] = {}

    def rewrite(match: re.Match[str]) -> str:
        if match[0].startswith("`"):
            return quoted.setdefault(match[0][1:-1], f"_quoted_{len(quoted)}_")
        return _WORDS.get(match[0], match[0])

    try:
        tree = _syntax(_TOKENS.sub(rewrite, python_power(plain_code(text, table), everywhere=True)))
    except FormulaError as error:
        raise FormulaError(f"cannot read {what}={shown(text)}: {error}") from None
    return tree, _Interpreter(table, context, {made: name for name, made in quoted.items()}, tree)


@lru_cache(maxsize=256)
def _syntax(code: str) -> ast.Expression:
    """The tree of an expression, which nobody changes."""
    return parse_python(code)


def _column_or_expression(text: str, what: str, table: Table, context: Context) -> Any:
    if (name := _named(text, table)) is not None:
        return _column(name, table)
    tree, interpreter = _read(text, what, table, context)
    table.require(interpreter.columns)
    try:
        with np.errstate(all="ignore"):
            return interpreter(tree.body)
    except (FormulaError, DataError) as error:
        raise type(error)(f"in {what}={shown(text)}: {error}") from None
    except Exception as error:  # numpy's answer to operands that do not fit
        raise DataError(f"cannot evaluate {what}={shown(text)}: {error}") from error


def _column(name: str, table: Table) -> NDArray[Any]:
    """The column's values: numbers, or the levels themselves with None where missing."""
    table.require([name])
    column = table[name]
    if isinstance(column, Numeric):
        times = moments(column)
        return column.values if times is None else times
    missing = column.missing()
    if column.levels.tolist() == [False, True]:
        return column.codes.astype(bool) if missing is None else np.where(missing, np.nan, column.codes)
    values: NDArray[np.object_] = np.append(column.levels, np.array([None]))[column.codes]
    return values


class _Interpreter:
    """Evaluates the arithmetic and logic of an expression, refusing all other Python."""

    def __init__(self, table: Table, context: Context, names: Mapping[str, str], tree: ast.AST) -> None:
        self.table, self.context, self.names = table, context, names
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        read = [names.get(n.id, n.id) for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
        # what nothing else explains has to be a column
        self.columns = [n for n in read if n in table or not (n in _CALLABLE or n == "np" or n in context)]

    def __call__(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self._name(self.names.get(node.id, node.id))
            case ast.List() | ast.Tuple() | ast.Set():
                return [self(element) for element in node.elts]
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](_number(self(node.left)), _number(self(node.right)))
            case ast.UnaryOp(op=ast.USub()):
                return -_number(self(node.operand))
            case ast.UnaryOp(op=ast.UAdd()):
                return _number(self(node.operand))
            case ast.UnaryOp():  # not, ~
                return _not(self(node.operand))
            case ast.BoolOp():
                combine = _and if isinstance(node.op, ast.And) else _or
                result = self(node.values[0])
                for operand in node.values[1:]:
                    result = combine(result, self(operand))
                return result
            case ast.Compare():
                return self._compare(node)
            case ast.Call() if not node.keywords:
                return self._function(node.func)(*map(self, node.args))
        raise FormulaError(f"{ast.unparse(node)!r} is not arithmetic, a comparison or a known function")

    def _name(self, name: str) -> Any:
        if name in self.table:
            return _column(name, self.table)
        if name in self.context:
            value = self.context[name]
            value = aligned(value, self.table.index, name)
            return value.to_numpy() if hasattr(value, "to_numpy") else value
        return _CALLABLE[name]

    def _function(self, node: ast.AST) -> Callable[..., Any]:
        match node:
            case ast.Name(id=name) if callable(_CALLABLE.get(name)):
                return _CALLABLE[name]
            case ast.Attribute(value=ast.Name(id="np"), attr=name) if callable(_CALLABLE.get(name)):
                return _CALLABLE[name]
        known = ", ".join(sorted(name for name, value in _CALLABLE.items() if callable(value)))
        raise FormulaError(f"{ast.unparse(node)!r} is not a known function ({known})")

    def _compare(self, node: ast.Compare) -> Any:
        left, result = self(node.left), None
        for kind, comparator in zip(node.ops, node.comparators, strict=True):
            if type(kind) not in _COMPARISONS:
                raise FormulaError(f"{ast.unparse(node)!r} is not a comparison of values")
            right = self(comparator)
            is_in = isinstance(kind, ast.In | ast.NotIn)
            one = _compared(_COMPARISONS[type(kind)], left, right, right_counts=not is_in)
            result = one if result is None else _and(result, one)
            left = right
        return result


def _compared(compare: Callable[[Any, Any], Any], left: Any, right: Any, *, right_counts: bool) -> Any:
    """A comparison with NaN where an operand is missing; plain booleans where none is."""
    left, right = _as_dates(left, right), _as_dates(right, left)
    missing = _missing(left) | _missing(right) if right_counts else _missing(left)
    if not np.any(missing):
        return np.asarray(compare(left, right))
    safe_left = _filled(left, missing)
    result = np.asarray(compare(safe_left, _filled(right, missing) if right_counts else right), dtype=np.float64)
    return np.where(missing, np.nan, result)


def _missing(value: Any) -> Any:
    array = np.asarray(value)
    return pd.isna(array) if array.dtype.kind in "fOmM" else np.False_


def _as_dates(value: Any, other: Any) -> Any:
    """Text that is compared with dates as dates: `date > '2020-01-31'`."""
    if np.asarray(other).dtype.kind != "M" or np.asarray(value).dtype.kind not in "USO":
        return value
    return np.asarray(pd.to_datetime(value), dtype="M8[ns]")


def _number(value: Any) -> Any:
    """An operand of arithmetic, whole numbers and booleans as float64."""
    array = np.asarray(value)
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    if array.dtype.kind not in "fmM":
        raise DataError(f"arithmetic takes numbers, not {_kind(array)}")
    return array


def _filled(value: Any, missing: Any) -> Any:
    """Strings cannot be compared with None: any level stands in where the answer is thrown away."""
    array = np.asarray(value)
    if array.dtype.kind != "O" or array.ndim == 0 or missing.all():
        return value
    return np.where(missing, array[~missing][0], array)


def _truth(value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "bf":
        raise DataError(f"and, or and not take conditions, not {_kind(array)}")
    return array


def _not(value: Any) -> NDArray[Any]:
    array = _truth(value)
    return ~array if array.dtype.kind == "b" else 1.0 - array


def _and(left: Any, right: Any) -> NDArray[Any]:
    a, b = _truth(left), _truth(right)
    if a.dtype.kind == b.dtype.kind == "b":
        return np.logical_and(a, b)
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def _or(left: Any, right: Any) -> NDArray[Any]:
    return _not(_and(_not(left), _not(right)))


def _kind(array: NDArray[Any]) -> str:
    return "strings or other objects" if array.dtype.kind in "OUS" else f"{array.dtype} values"
