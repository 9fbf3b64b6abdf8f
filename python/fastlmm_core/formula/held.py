"""What a formula's call takes of a whole column (`x.mean()` in `I(x - x.mean())`), kept for tables of other rows.

The means of new rows are not those that the model was fitted with. Single values that come of columns are therefore
remembered, as what `scale` and `poly` learn is; R keeps the latter only. What gives one value a row but looks at other
rows for it (ranks, running sums) cannot be kept: it is found here, and said when it meets new rows.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Container, Iterator
from datetime import date, timedelta
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["HELD", "Holder", "holds_of", "knows_missing", "looks_across"]

HELD = "_held_"
"""What the function is called that remembers, and where a `Learnt.transforms` keeps what it has."""

_ROWS = 64
"""Rows on which it is seen whether an expression looks at other rows."""

_KNOW_MISSING = frozenset({"is_na", "isna", "isnull", "notna", "notnull", "fillna", "nan_to_num", "combine_first"})
_SINGLE = (Number, np.generic, str, date, timedelta)


class Holder:
    """The function that stands around each part of an expression that may be a single value of whole columns."""

    def __init__(self, kept: dict[str, Any] | None) -> None:
        self.first = kept is None
        self.kept: dict[str, Any] = {} if kept is None else kept

    def __call__(self, key: int, value: Any) -> Any:
        """The value, or the one remembered."""
        if str(key) in self.kept:
            return self.kept[str(key)]
        if self.first and isinstance(value, _SINGLE):
            self.kept[str(key)] = value
        return value


def holds_of(code: str, columns: Container[str], known: Callable[[str], bool]) -> str | None:
    """The expression with `HELD` around what may take a single value of whole columns; None where nothing may.

    Parameters
    ----------
    code : str
        Its columns under the aliases that it is evaluated with.
    columns : container of str
        The aliases.
    known : callable
        Whether a name is one of the built-in transforms, which are elementwise or remember by themselves.
    """
    tree = ast.parse(code, mode="eval")
    around = _Around(columns, known)
    tree = around.visit(tree)
    return ast.unparse(ast.fix_missing_locations(tree)) if around.n else None


class _Around(ast.NodeTransformer):
    def __init__(self, columns: Container[str], known: Callable[[str], bool]) -> None:
        self.columns, self.known, self.n = columns, known, 0

    def _reads(self, node: ast.AST) -> bool:
        return any(isinstance(part, ast.Name) and part.id in self.columns for part in ast.walk(node))

    def _held(self, node: ast.expr) -> ast.expr:
        self.n += 1
        return ast.Call(ast.Name(HELD, ast.Load()), [ast.Constant(self.n), node], [])

    def visit_Call(self, node: ast.Call) -> ast.expr:
        reads = self._reads(node)
        if isinstance(node.func, ast.Attribute):
            node.func.value = self.visit(node.func.value)
        node.args = [self.visit(argument) for argument in node.args]
        for keyword in node.keywords:
            keyword.value = self.visit(keyword.value)
        is_known = isinstance(node.func, ast.Name) and self.known(node.func.id)
        return self._held(node) if reads and not is_known else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        reads = self._reads(node)
        node.value = self.visit(node.value)
        return self._held(node) if reads else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        reads = self._reads(node)
        if isinstance(node.value, ast.Attribute):  # the accessor of x.iloc[0] is no value
            node.value.value = self.visit(node.value.value)
        else:
            node.value = self.visit(node.value)
        return self._held(node) if reads else node

    def _own(self, node: ast.expr) -> ast.expr:
        """What binds names of its own stays as it is within."""
        return node

    visit_Lambda = visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _own


def knows_missing(called: Iterator[str]) -> bool:
    """Whether an expression says itself what becomes of missing values: its rows are not left out beforehand."""
    return not _KNOW_MISSING.isdisjoint(called)


def looks_across(value: Any, again: Callable[[NDArray[np.int64]], Any], n: int) -> bool:
    """Whether the value of a row depends on the other rows, by the values of some rows alone, in another order.

    Parameters
    ----------
    value : object
        Of all n rows.
    again : callable
        The expression's value over the rows asked for.
    """
    if n < 2 or not isinstance(value, (np.ndarray, pd.Series, pd.Categorical, pd.api.extensions.ExtensionArray)):
        return False
    rows = np.arange(n, dtype=np.int64)[:: -max(2, n // _ROWS)]
    try:
        some = again(rows)
    except Exception:  # it is the user's code, and fails on few rows: it looks at how many there are
        return True
    whole = np.asarray(value, dtype=object)
    part = np.asarray(some, dtype=object)
    if len(whole) != n or len(part) != len(rows):
        return len(whole) == n
    return not all(_same(a, b) for a, b in zip(whole[rows].ravel(), part.ravel(), strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-9 * max(abs(a), abs(b)) or (a != a and b != b) or a == b
    return bool(pd.isna(a) and pd.isna(b)) or bool(a == b)
