"""Linear hypotheses on the coefficients: as arrays, or as text the way statsmodels reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, FormulaError, near_names
from fastlmm_core.fitting.coefficients import why_undetermined
from fastlmm_core.fitting.text import listed
from fastlmm_core.inference.ddf import FTest, t_pvalues
from fastlmm_core.inference.robust import covariance_method
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["Hypotheses", "f_test", "read_hypotheses", "t_test"]

Array = NDArray[np.float64]

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Hypotheses:
    """Rows R (k, p) and values q (k,) of the hypotheses R beta = q, and a label for each."""

    def __init__(self, rows: Array, values: Array, labels: Sequence[str]) -> None:
        self.rows, self.values, self.labels = rows, values, list(labels)


def read_hypotheses(given: Any, names: Sequence[str]) -> Hypotheses:
    """Hypotheses in any of the forms `t_test` and `f_test` take.

    Parameters
    ----------
    given : str, sequence of str, array (p,) or (k, p), or a pair of such an array and values
    names : sequence of str
        The p coefficients.

    Raises
    ------
    FormulaError
        Text that is not a linear equation in the coefficients.
    DataError
        An array of another width.
    """
    if isinstance(given, str):
        given = [given]
    if isinstance(given, (list, tuple)) and len(given) and all(isinstance(g, str) for g in given):
        found = [row for text in given for row in _Parser(text, names).equations()]
        rows = np.array([row for row, _ in found])
        return Hypotheses(rows, np.array([value for _, value in found]), [_label(*f, names) for f in found])
    values: Any = None
    try:
        if isinstance(given, tuple) and len(given) == 2 and np.shape(given[0]) != np.shape(given[1]):
            given, values = given
        rows = np.atleast_2d(np.array(given, dtype=np.float64))
        q = np.zeros(len(rows)) if values is None else np.atleast_1d(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise DataError(f"the hypotheses are not numbers: {error}") from None
    if rows.ndim != 2 or rows.shape[1] != len(names) or not len(rows):
        raise DataError(f"the hypotheses have shape {np.shape(given)}, but there are {len(names)} coefficients")
    if q.shape != (len(rows),):
        raise DataError(f"{len(rows)} hypotheses were given {len(q)} values")
    if not (np.isfinite(rows).all() and np.isfinite(q).all()):
        raise DataError("the hypotheses have values that are not finite")
    return Hypotheses(rows, q, [_label(row, value, names) for row, value in zip(rows, q, strict=True)])


def _label(row: Array, value: float, names: Sequence[str]) -> str:
    """The equation in words: "Days - 2 service[T.1] = 0"."""
    text = ""
    for weight, name in zip(row, names, strict=True):
        if weight == 0.0:
            continue
        size = "" if abs(weight) == 1.0 else f"{abs(weight):.6g} "
        sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        text += f"{sign}{size}{name}"
    return f"{text or '0'} = {value:.6g}"


class _Parser:
    """Linear equations separated by commas; coefficient names are tried before anything else, the longest first."""

    def __init__(self, text: str, names: Sequence[str]) -> None:
        self.text, self.names = text.replace("`", ""), [name.replace("`", "") for name in names]
        if len(set(self.names)) < len(self.names):  # a column is called like a call
            self.text, self.names = text, list(names)
        self.by_length = sorted(self.names, key=len, reverse=True)
        self.at = 0
        self.token: tuple[str, Any] = ("", None)
        self.advance()

    def fail(self, what: str) -> FormulaError:
        listed = ", ".join(self.names[:20])
        return FormulaError(f"cannot read the hypothesis {self.text!r}: {what}; the coefficients are {listed}")

    def advance(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        rest = self.text[self.at :]
        if not rest:
            self.token = ("end", None)
            return
        for name in self.by_length:
            after = rest[len(name) : len(name) + 1]
            if rest.startswith(name) and not (name[-1:].isalnum() and (after.isalnum() or after in ("_", "["))):
                self.token, self.at = ("name", self.names.index(name)), self.at + len(name)
                return
        number = _NUMBER.match(rest)
        if number:
            self.token, self.at = ("number", float(number[0])), self.at + number.end()
        elif rest[0] in "+-*/()=,":
            self.token, self.at = (rest[0], None), self.at + 1
        else:
            word = re.split(r"[\s+*/()=,-]", rest, maxsplit=1)[0]
            near = near_names(word, self.names) if word else []
            meant = f", but {' and '.join(map(repr, near))}" if near else ""
            raise self.fail(f"there is no coefficient {word or rest[0]!r}{meant}")

    def equations(self) -> list[tuple[Array, float]]:
        """A row and a value each; an expression without "=" is set to zero, a chain a = b = c gives two."""
        out = []
        while True:
            sides = [self.sum()]
            while self.token[0] == "=":
                self.advance()
                sides.append(self.sum())
            if len(sides) == 1:
                sides.append(np.zeros_like(sides[0]))
            for left, right in pairwise(sides):
                difference = left - right
                if not difference[:-1].any():
                    raise self.fail("an equation has no coefficient in it")
                out.append((difference[:-1], float(-difference[-1]) + 0.0))
            if self.token[0] == "end":
                return out
            if self.token[0] != ",":
                raise self.fail(f"unexpected {self.describe()}")
            self.advance()

    def describe(self) -> str:
        kind, value = self.token
        return {"end": "end", "name": "coefficient", "number": f"number {value}"}.get(kind, repr(kind))

    def sum(self) -> Array:
        total = self.product()
        while self.token[0] in ("+", "-"):
            sign = 1.0 if self.token[0] == "+" else -1.0
            self.advance()
            total = total + sign * self.product()
        return total

    def product(self) -> Array:
        value = self.unary()
        while self.token[0] in ("*", "/"):
            kind = self.token[0]
            self.advance()
            other = self.unary()
            if kind == "/":
                if other[:-1].any() or other[-1] == 0.0:
                    raise self.fail("only a number other than zero can divide")
                value = value / other[-1]
            elif other[:-1].any() and value[:-1].any():
                raise self.fail("a product of coefficients is not linear")
            else:
                value = other * value[-1] if other[:-1].any() else value * other[-1]
        return value

    def unary(self) -> Array:
        kind, content = self.token
        if kind in ("+", "-"):
            self.advance()
            return self.unary() if kind == "+" else -self.unary()
        value = np.zeros(len(self.names) + 1)
        if kind == "(":
            self.advance()
            value = self.sum()
            if self.token[0] != ")":
                raise self.fail("a parenthesis is not closed")
        elif kind == "name":
            value[content] = 1.0
        elif kind == "number":
            value[-1] = content
        else:
            raise self.fail(f"unexpected {self.describe()}")
        self.advance()
        return value


def determined(result: FittedModel, hypotheses: Hypotheses) -> tuple[Array, NDArray[np.bool_], tuple[str, ...]]:
    """The rows over the estimated coefficients, which of them are estimable, and a note on those that are not."""
    core = result.core
    kept = ~np.isnan(core.beta)
    estimable = core.estimable(hypotheses.rows)
    notes: tuple[str, ...] = ()
    if not estimable.all():
        which = [label for label, fine in zip(hypotheses.labels, estimable, strict=True) if not fine]
        notes = (f"not estimable: {listed(which)}, {why_undetermined(result.design, core)}",)
    return np.ascontiguousarray(hypotheses.rows[:, kept]), estimable, notes


def t_test(result: FittedModel, given: Any, *, ddf: str = "satterthwaite", **covariance: Any) -> Table:
    """Test each hypothesis R beta = q on its own; see `LmerResult.t_test`."""
    hypotheses = read_hypotheses(given, result.design.x_names)
    rows, estimable, notes = determined(result, hypotheses)
    method = covariance_method(result, ddf, **covariance)
    estimate, se, df = np.full((3, len(rows)), np.nan)
    used = rows[estimable]
    estimate[estimable] = used @ method.beta
    se[estimable] = np.sqrt(method.variances(used))
    df[estimable] = np.where(np.isnan(se[estimable]), np.nan, method.df(used))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (estimate - hypotheses.values) / se
    columns = {
        "estimate": estimate,
        "value": hypotheses.values,
        "std_error": se,
        "df": df,
        "t": t,
        "p": np.where(estimable, t_pvalues(t, df), np.nan),
    }
    return table(columns, pd.Index(hypotheses.labels, name="hypothesis"), (*notes, *method.notes))


def f_test(result: FittedModel, given: Any, *, ddf: str = "satterthwaite", **covariance: Any) -> FTest:
    """Test all hypotheses R beta = q at once; see `LmerResult.f_test`."""
    hypotheses = read_hypotheses(given, result.design.x_names)
    rows, estimable, notes = determined(result, hypotheses)
    if not estimable.all():
        return FTest.impossible(0, *notes)
    return covariance_method(result, ddf, **covariance).f_test(rows, hypotheses.values)
