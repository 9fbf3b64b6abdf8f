"""Python expressions inside a formula (`log(x)`, `poly(x, 2)`, `C(f, contr.sum)`) over the columns of a table.

formulaic evaluates them, so that stateful transforms (scale, center, poly, bs) remember what they learnt. As in R a
transform sees every row of the table, before `subset` and before rows with missing values are dropped; rows whose
own inputs are missing are left out of it.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from formulaic.transforms import TRANSFORMS
from formulaic.utils.layered_mapping import LayeredMapping
from formulaic.utils.stateful_transforms import stateful_eval
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FastLMMError, FormulaError
from fastlmm_core.formula.frame import Numeric, Table, Variable, as_factor, from_pandas
from fastlmm_core.formula.levels import Factor
from fastlmm_core.formula.parse import quote_dotted

__all__ = ["FUNCTIONS", "Context", "Evaluator", "column_series", "names_in"]

_BACKQUOTED = re.compile(r"`([^`]*)`|\"[^\"]*\"|'[^']*'")


class _Coded:
    """What `C(f, contrasts)` evaluates to; formulaic's own C would encode at once."""

    def __init__(self, data: Any, contrasts: Any = None, levels: Any = None) -> None:
        self.data, self.contrasts, self.levels = data, contrasts, levels

    def factor(self, expr: str) -> Factor:
        """The data as a factor with the levels and contrasts asked for."""
        found = as_factor(from_pandas(pd.Series(self.data), expr))
        codes, levels = found.codes, found.levels
        if self.levels is not None:
            wanted = np.array(list(self.levels), dtype=object)
            place = np.append(pd.Index(wanted).get_indexer(pd.Index(levels)), -1)
            absent = [str(levels[k]) for k in np.unique(codes[codes >= 0]) if place[k] < 0]
            if absent:
                raise DataError(f"{expr} leaves out levels that occur in the data: {', '.join(absent)}")
            codes, levels = place[codes], wanted
        return Factor(codes, levels, found.ordered, self.contrasts)


_UFUNCS = ["sqrt", "cbrt", "sin", "cos", "tan", "sinh", "cosh", "tanh", "log1p", "expm1", "floor", "sign"]
# numpy's elementwise functions under R's names; formulaic has log, log2, log10, exp, poly, scale, center, bs, cr, ...
FUNCTIONS: Mapping[str, Any] = {
    **{name: getattr(np, name) for name in _UFUNCS},
    **{"abs": np.abs, "ceiling": np.ceil, "ceil": np.ceil, "round": np.round, "trunc": np.trunc},
    **{"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "pmin": np.minimum, "pmax": np.maximum},
    **{"minimum": np.minimum, "maximum": np.maximum, "clip": np.clip, "ifelse": np.where, "where": np.where},
    **{"TRUE": True, "FALSE": False, "NULL": None, "pi": math.pi},
}
_TRANSFORMS: Mapping[str, Any] = {**TRANSFORMS, **FUNCTIONS, "C": _Coded, "factor": _Coded}


class Context(Mapping[str, Any]):
    """The names of the caller's namespace that the formula used; picklable.

    Modules are stored by name. What cannot be pickled is left behind: using it again then is an error that says so.
    A name that is not callable does not hide a function (`scale = 3` leaves `scale(x)` alone, as in R), and the
    functions of `math`, which take no arrays, do not hide numpy's.
    """

    def __init__(self, env: Mapping[str, Any] | None = None) -> None:
        self._env: Mapping[str, Any] = env or {}
        self._used: dict[str, Any] = {}
        self._lost: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        if name in self._used:
            return self._used[name]
        if name in self._lost:
            raise FormulaError(f"{name!r}, which the formula uses, could not be stored with the model")
        value = self._env[name]
        if name in _TRANSFORMS and (not callable(value) or getattr(value, "__module__", "") == "math"):
            raise KeyError(name)
        self._used[name] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter({**self._env, **self._used})

    def __len__(self) -> int:
        return len({**self._env, **self._used})

    def __contains__(self, name: object) -> bool:
        try:
            self[name]  # type: ignore[index]
        except KeyError:
            return False
        return True

    def forget(self) -> None:
        """Let go of the caller's namespace, keeping the names used."""
        self._env = {}

    def __getstate__(self) -> dict[str, Any]:
        kept, lost = {}, set(self._lost)
        for name, value in self._used.items():
            stored = value.__name__ if isinstance(value, ModuleType) else value
            try:
                pickle.dumps(stored)
            except Exception:  # pickling runs the object's own code, which may raise anything
                lost.add(name)
            else:
                kept[name] = (isinstance(value, ModuleType), stored)
        return {"kept": kept, "lost": frozenset(lost)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._env, self._lost = {}, state["lost"]
        self._used = {
            name: importlib.import_module(stored) if is_module else stored
            for name, (is_module, stored) in state["kept"].items()
        }


class Evaluator:
    """Values of column names and expressions over one table; each computed once.

    Parameters
    ----------
    table : Table
    context : Context
        The caller's names.
    state : dict
        What stateful transforms learnt, by expression; filled on first use.
    """

    def __init__(self, table: Table, context: Context, state: dict[str, Any]) -> None:
        self.table, self.context, self.state = table, context, state
        self._values: dict[str, Variable] = {}

    def names(self, expr: str) -> list[str]:
        """The columns that an expression reads.

        A name that nothing else explains is taken for a column, which `Table.require` then reports as absent.
        Raises FormulaError for a syntax error or an unknown function.
        """
        columns = []
        for name, called in names_in(quote_dotted(expr, self.table)).items():
            if name in self.table:
                columns.append(name)
            elif not (name in self.context or name in _TRANSFORMS or hasattr(builtins, name)):
                if called:
                    raise FormulaError(
                        f"{expr} calls {name}, which is neither a built-in transform nor a name known to the caller"
                    )
                columns.append(name)
        return columns

    def __call__(self, expr: str) -> Variable:
        """Value of an expression over all rows of the table.

        Raises FormulaError where Python cannot evaluate it.
        """
        if expr not in self._values:
            self._values[expr] = self._evaluate(expr)
        return self._values[expr]

    def _evaluate(self, expr: str) -> Variable:
        names = self.names(expr)
        self.table.require(names)
        columns = {name: self.table[name] for name in names}
        masks = [mask for column in columns.values() if (mask := column.missing()) is not None]
        whole = ~np.logical_or.reduce(masks) if masks else None
        series = {name: column_series(column, whole) for name, column in columns.items()}
        env = LayeredMapping(series, self.context, _TRANSFORMS)
        n = self.table.n if whole is None else int(whole.sum())
        if n == 0:
            return Numeric(np.full(self.table.n, np.nan))
        try:
            with np.errstate(all="ignore"):  # log(0) is reported as the infinite value that it is, log(-1) as missing
                value = stateful_eval(quote_dotted(expr, self.table), env, {}, self.state.setdefault(expr, {}), None)
        except FastLMMError:
            raise
        except Exception as error:  # the expression is the user's code: anything may come out of it
            raise FormulaError(f"cannot evaluate {expr}: {type(error).__name__}: {error}") from error
        return _scatter(_variable(value, expr, n), whole)


def names_in(expr: str) -> dict[str, bool]:
    """Names that a Python expression with back-quoted columns reads, and whether each is only called.

    Raises FormulaError for a syntax error.
    """
    quoted: dict[str, str] = {}

    def alias(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        return quoted.setdefault(match[1], f"_quoted_{len(quoted)}_")

    code = _BACKQUOTED.sub(alias, expr)
    try:
        tree = ast.parse(code.strip(), mode="eval")
    except SyntaxError as error:
        raise FormulaError(f"cannot read {expr!r}: {error.msg}") from None
    back = {made: name for name, made in quoted.items()}
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            name = back.get(node.id, node.id)
            found[name] = found.get(name, True) and id(node) in functions
    return found


def column_series(column: Variable, whole: NDArray[np.bool_] | None) -> pd.Series:
    """The column, or its rows where `whole`, as the pandas Series that transforms expect."""
    if isinstance(column, Factor):
        codes = column.codes if whole is None else column.codes[whole]
        if column.levels.tolist() == [False, True]:
            return pd.Series(codes.astype(bool))
        return pd.Series(pd.Categorical.from_codes(codes, categories=column.levels, ordered=column.ordered))
    return pd.Series(column.values if whole is None else column.values[whole], copy=False)


def _variable(value: Any, expr: str, n: int) -> Variable:
    """What an expression came to, as a variable of n rows."""
    if isinstance(value, _Coded):
        variable: Variable = value.factor(expr)
    else:
        metadata = getattr(value, "__formulaic_metadata__", None)
        if metadata is not None:
            if metadata.encoder is not None:
                raise FormulaError(f"{expr} is not supported: use C(f, contrasts)")
            value = value.__wrapped__
        if hasattr(value, "toarray"):
            value = value.toarray()
        variable = _uncoded(value, expr, n, getattr(metadata, "column_names", None))
    rows = len(variable.codes if isinstance(variable, Factor) else variable.values)
    if rows != n:
        raise FormulaError(f"{expr} has {rows} values for {n} rows")
    return variable


def _uncoded(value: Any, expr: str, n: int, names: Any) -> Variable:
    if isinstance(value, pd.DataFrame):
        value = {str(name): value[name] for name in value}
    if isinstance(value, Mapping):
        parts = {str(key): np.asarray(part, float) for key, part in value.items() if not str(key).startswith("__")}
        return Numeric(np.column_stack(list(parts.values())), tuple(parts))
    if np.ndim(value) == 0:
        value = np.full(n, value)
    if np.ndim(value) == 2:
        array = np.asarray(value, dtype=np.float64)
        return Numeric(array, tuple(str(k) for k in names or range(1, array.shape[1] + 1)))
    return from_pandas(value if isinstance(value, pd.Series) else pd.Series(value, copy=False), expr)


def _scatter(variable: Variable, whole: NDArray[np.bool_] | None) -> Variable:
    """Put values computed on the rows without missing inputs back among all rows."""
    if whole is None:
        return variable
    if isinstance(variable, Factor):
        codes = np.full(len(whole), -1, dtype=np.int64)
        codes[whole] = variable.codes
        return Factor(codes, variable.levels, variable.ordered, variable.contrasts)
    values = np.full((len(whole), *variable.values.shape[1:]), np.nan)
    values[whole] = variable.values
    return Numeric(values, variable.names)
