"""Python expressions inside a formula (`log(x)`, `poly(x, 2)`, `C(f, contr.sum)`) over the columns of a table.

formulaic evaluates them, so that stateful transforms (scale, center, poly, bs) remember what they learnt. As in R a
transform sees every row of the table, before `subset` and before rows with missing values are dropped; rows whose
own inputs are missing are left out of it.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import pickle
import re
import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FastLMMError, FormulaError, FormulaWarning, warn
from fastlmm_core.formula.frame import Numeric, Table, Variable, aligned, from_pandas, moments
from fastlmm_core.formula.held import HELD, Holder, holds_of, knows_missing, looks_across
from fastlmm_core.formula.levels import Factor
from fastlmm_core.formula.names import Names
from fastlmm_core.formula.transforms import OF_OTHER_TABLES, SUMMARIES, Coded, transforms

__all__ = [
    "Context",
    "Evaluator",
    "caller_names",
    "column_series",
]

FLAGS: Mapping[str, Any] = {"T": True, "F": False}
"""What R's short names mean as the value of an argument, `raw=T`, where nothing else has that name."""


def caller_names(depth: int) -> Mapping[str, Any]:
    """The names that code ``depth`` frames up sees, its locals as they are now."""
    caller = sys._getframe(depth)
    if caller.f_locals is caller.f_globals:
        return caller.f_globals
    return ChainMap(dict(caller.f_locals), caller.f_globals)


class Context(Mapping[str, Any]):
    """The names of the caller's namespace that the formula used; picklable.

    Modules are stored by name. What cannot be pickled is left behind: using it again then is an error that says so.
    A name that is not callable does not hide a function (`scale = 3` leaves `scale(x)` alone, as in R), and the
    functions of `math`, which take no arrays, do not hide numpy's.
    """

    def __init__(self, env: Mapping[str, Any] | None = None) -> None:
        if env is not None and not isinstance(env, Mapping):
            raise FormulaError(
                f"env maps names to what they stand for, such as env={{'f': f}}; it is no {type(env).__name__}"
            )
        self._env: Mapping[str, Any] = env or {}
        self._used: dict[str, Any] = {}
        self._lost: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        if name in self._used:
            return self._used[name]
        if name in self._lost:
            raise FormulaError(f"{name!r}, which the formula uses, could not be stored with the model")
        value = self._env[name]
        if name in transforms() and (not callable(value) or getattr(value, "__module__", "") == "math"):
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


@dataclass
class Learnt:
    """What an expression came to mean on the model's own data, for use on other tables.

    Attributes
    ----------
    columns : tuple of str
        The names in it that are columns; a table may have others that are called like its functions.
    transforms : dict
        What its stateful transforms learnt, by call; filled when it is first evaluated.
    evaluated : bool
        Whether it has been.
    """

    columns: tuple[str, ...]
    transforms: dict[str, Any] = field(default_factory=dict)
    evaluated: bool = False


class Evaluator:
    """Values of column names and expressions over one table; each computed once.

    Parameters
    ----------
    table : Table
    context : Context
        The caller's names.
    state : dict of Learnt
        By expression; filled on first use.
    """

    def __init__(self, table: Table, context: Context, state: dict[str, Any]) -> None:
        self.table, self.context, self.state = table, context, state
        self._values: dict[str, Variable] = {}

    def names(self, expr: str) -> list[str]:
        """The columns that an expression reads.

        A name that is called is a function, as in R: a column of that name does not hide it. A name that nothing else
        explains is reported as an absent column. Raises FormulaError for a syntax error or an unknown function.
        """
        if expr not in self.state:
            self.state[expr] = Learnt(tuple(dict.fromkeys(self._columns_of(expr))))
        return list(self.state[expr].columns)

    def _columns_of(self, expr: str) -> Iterator[str]:
        for name, role in Names(expr, self.table).roles():
            if role == "call":
                if not (name in self.context or name in transforms() or hasattr(builtins, name)):
                    raise FormulaError(
                        f"{expr} calls {name}, which is neither a built-in transform nor a name known to the caller; "
                        f"functions of other scopes are given as env={{{name!r}: {name}}}"
                    )
            elif role == "root" and isinstance(self.context.get(name, transforms().get(name)), ModuleType):
                continue  # np.log(x), whatever the data call np
            elif name in self.table:
                yield name
            elif role == "keyword" and name in FLAGS:
                continue
            elif role == "quoted" or not (name in self.context or name in transforms() or hasattr(builtins, name)):
                raise DataError(
                    f"{self.table.no_column(name)}. Where {name} is a name of the calling code that the formula cannot "
                    f"see (an enclosing function's), give it as env={{{name!r}: {name}}}"
                )

    def __call__(self, expr: str) -> Variable:
        """Value of an expression over all rows of the table.

        Raises FormulaError where Python cannot evaluate it.
        """
        if expr not in self._values:
            self._values[expr] = self._evaluate(expr)
        return self._values[expr]

    def _evaluate(self, expr: str) -> Variable:
        names = self.names(expr)
        learnt: Learnt = self.state[expr]
        self.table.require(names)
        read = Names(expr, self.table)
        code = read.with_aliases(learnt.columns, self._is_summary)
        whole = None if knows_missing(read.calls()) else self._complete(read.wanted)
        n = self.table.n if whole is None else int(whole.sum())
        if n == 0:
            return Numeric(np.full(self.table.n, np.nan))
        index, beside = None, [self.context.get(name) for name, _ in read.roles() if name not in learnt.columns]
        if self.table.index is not None and any(isinstance(value, pd.Series) for value in beside):
            # pandas aligns the caller's Series with the columns, if these have the table's labels
            index = self.table.index
        series = {
            alias: column_series(
                self.table[of.column],
                whole if of.summary is None else self._complete(of.summary),
                index,
                exact=of.exact,
            )
            for alias, of in read.aliases.items()
        }
        held = None if read.is_plain(self._built_in) else holds_of(code, series, self._built_in)
        try:
            if held is None:
                value = self._run(code, series, learnt)
            else:
                rowwise = [alias for alias, of in read.aliases.items() if of.summary is None]
                apart = n if all(map(_one_for_all, beside)) else 0
                value = self._run_held(held, series, learnt, expr, rowwise, apart)
            if isinstance(value, pd.Series) and len(value) == n:  # otherwise labels did not meet: refused below
                value = aligned(value, _rows_of(index, whole), f"the value of {expr}")
        except FastLMMError:
            raise
        except Exception as error:  # the expression is the user's code: anything may come out of it
            message = re.sub(r"_column_\d+_", lambda match: read.aliases[match[0]].column, str(error))
            raise FormulaError(f"cannot evaluate {expr[:200]}: {type(error).__name__}: {message}") from error
        learnt.evaluated = True
        return _scatter(_variable(value, expr, n), whole)

    def _complete(self, names: Iterable[str]) -> NDArray[np.bool_] | None:
        """The rows (n,) in which none of these columns is missing; None where they are all rows."""
        masks = [mask for name in names if (mask := self.table[name].missing()) is not None]
        return ~np.logical_or.reduce(masks) if masks else None

    def _is_summary(self, name: str) -> bool:
        """Whether a call means one of R's summaries, a single value of whole columns."""
        return name in SUMMARIES and name not in self.context

    def _built_in(self, name: str) -> bool:
        """Whether a call means one of the built-in transforms that are elementwise or remember by themselves."""
        return name in transforms() and name not in SUMMARIES and name not in self.context

    def _run(self, code: str, series: Mapping[str, Any], learnt: Learnt, **more: Any) -> Any:
        """The value of an expression whose columns are given under its aliases."""
        from formulaic.utils.layered_mapping import LayeredMapping
        from formulaic.utils.stateful_transforms import stateful_eval

        with np.errstate(all="ignore"):  # log(0) is reported as the infinite value that it is, log(-1) as missing
            others = OF_OTHER_TABLES if learnt.evaluated else {}
            code, texts = _texts_apart(code)
            env = LayeredMapping({**series, **more, **texts}, self.context, others, transforms(), FLAGS)
            return stateful_eval(code, env, {}, learnt.transforms, None)

    def _run_held(
        self, code: str, series: dict[str, pd.Series], learnt: Learnt, expr: str, rowwise: list[str], n: int
    ) -> Any:
        """The value of an expression, with what it took of whole columns when it was first evaluated.

        Whether a row's value depends on other rows of the `rowwise` series is looked for among n; not where n is 0.
        """
        hold = Holder(learnt.transforms.get(HELD))
        value = self._run(code, series, learnt, **{HELD: hold})
        if not hold.first:
            if hold.kept.get("across"):
                warn(
                    f"{expr} looks at several rows at once: of new data it sees the new rows alone, not those that the "
                    "model was fitted to. Make it a column of both tables instead",
                    FormulaWarning,
                )
            return value
        learnt.transforms[HELD] = hold.kept
        learnt = replace(learnt, evaluated=True)

        def again(rows: NDArray[np.int64]) -> Any:
            some = {alias: series[alias].iloc[rows] for alias in rowwise}
            return self._run(code, {**series, **some}, learnt, **{HELD: Holder(hold.kept)})

        if looks_across(value, again, n):
            hold.kept["across"] = True
        return value


class _Texts(ast.NodeTransformer):
    """Texts that a call's name cannot have in it, under names."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if not isinstance(node.value, str) or (repr(node.value) == f"'{node.value}'" and '"' not in node.value):
            return node
        name = f"_text_{len(self.found)}_"
        self.found[name] = node.value
        return ast.Name(name, ast.Load())


def _texts_apart(code: str) -> tuple[str, dict[str, str]]:
    """The expression with quotes and backslashes of its texts set apart: formulaic writes calls into texts."""
    if '"' not in code and "\\" not in code:
        return code, {}
    texts = _Texts()
    return ast.unparse(texts.visit(ast.parse(code, mode="eval"))), texts.found


def _one_for_all(value: Any) -> bool:
    """Whether a name of the caller's stands for one thing, and not for a value a row."""
    return value is None or callable(value) or isinstance(value, (ModuleType, str)) or np.ndim(value) == 0


def column_series(
    column: Variable, whole: NDArray[np.bool_] | None, index: pd.Index | None = None, *, exact: bool = False
) -> pd.Series:
    """The column, or its rows where `whole`, as the pandas Series that transforms expect, with the rows' labels.

    Whole numbers are float64, in which arithmetic does not wrap around, unless they are asked for `exact`; dates and
    periods are pandas'.
    """
    index = _rows_of(index, whole)
    if isinstance(column, Factor):
        codes = column.codes if whole is None else column.codes[whole]
        if column.levels.tolist() == [False, True] and codes.min(initial=0) >= 0:
            return pd.Series(codes.astype(bool), index=index)
        categories = pd.Categorical.from_codes(codes, categories=column.levels, ordered=column.ordered)
        return pd.Series(categories, index=index)
    if column.native is not None and (exact or moments(column) is not None):
        values = column.native
    else:
        values = column.values if exact else column.values.astype(np.float64, copy=False)
    return pd.Series(values if whole is None else values[whole], index=index, copy=False)


def _rows_of(index: pd.Index | None, whole: NDArray[np.bool_] | None) -> pd.Index | None:
    """The labels of the rows where `whole`."""
    return index if index is None or whole is None else index[whole]


def _variable(value: Any, expr: str, n: int) -> Variable:
    """What an expression came to, as a variable of n rows."""
    if isinstance(value, Coded):
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
