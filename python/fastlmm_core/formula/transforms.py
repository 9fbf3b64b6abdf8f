"""The functions that a formula's calls may use besides the caller's own: formulaic's, and R's under R's names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.errors import DataError, FormulaError
from fastlmm_core.formula.frame import as_factor, from_pandas
from fastlmm_core.formula.levels import Factor, Levels, combine

__all__ = ["ELEMENTWISE", "FACTOR_MAKERS", "Coded", "transforms"]


class Coded:
    """What `factor(f)` and `C(f, contrasts)` evaluate to; formulaic's own C would encode at once."""

    def __init__(
        self, data: Any, contrasts: Any = None, levels: Any = None, labels: Any = None, ordered: bool | None = None
    ) -> None:
        self.data, self.contrasts, self.levels, self.labels, self.ordered = data, contrasts, levels, labels, ordered

    def factor(self, expr: str) -> Factor:
        """The data as a factor with the levels and contrasts asked for."""
        found = self.data if isinstance(self.data, Factor) else _as_factor(self.data, expr)
        codes, levels = found.codes, found.levels
        if self.levels is not None:
            wanted = np.array(list(self.levels), dtype=object)
            codes, levels = Levels(wanted).place([found]), wanted
            absent = [str(found.levels[k]) for k in np.unique(found.codes[(codes < 0) & (found.codes >= 0)])]
            if absent:
                raise DataError(f"{expr} leaves out levels that occur in the data: {', '.join(absent)}")
        if self.labels is not None:
            labels = np.array(list(self.labels), dtype=object)
            if len(labels) != len(levels):
                raise DataError(f"{expr} gives {len(labels)} labels for {len(levels)} levels")
            levels = labels
        return Factor(codes, levels, found.ordered if self.ordered is None else bool(self.ordered), self.contrasts)


def _as_factor(data: Any, expr: str) -> Factor:
    data = data.factor(expr) if isinstance(data, Coded) else data
    return data if isinstance(data, Factor) else as_factor(from_pandas(pd.Series(data), expr))


def factor(x: Any, levels: Any = None, labels: Any = None, ordered: bool | None = None) -> Coded:
    """R's `factor`."""
    return Coded(x, None, levels, labels, ordered)


def ordered(x: Any, levels: Any = None, labels: Any = None) -> Coded:
    """R's `ordered`: a factor whose order carries meaning, with polynomial contrasts."""
    return Coded(x, None, levels, labels, True)


def interaction(*factors: Any) -> Coded:
    """R's `interaction`: the combinations that occur, named "a.b", the first factor varying fastest."""
    if not factors:
        raise FormulaError("interaction() needs the factors to combine")
    parts = [_as_factor(part, "interaction()").take(None) for part in reversed(factors)]
    codes, levels = np.asarray(parts[0].codes, dtype=np.int32), Levels(parts[0].levels)
    for part in parts[1:]:
        codes, levels = combine(codes, levels, np.asarray(part.codes, dtype=np.int32), Levels(part.levels))
    texts = [".".join(reversed(parts)) for parts in levels.parts()]
    return Coded(Factor(codes, np.array(texts, dtype=object)))


def log(x: ArrayLike, base: float = math.e) -> Any:
    """R's `log`: natural, or to the base given."""
    return np.log(x) if base == math.e else np.log(x) / math.log(base)


def as_numeric(x: Any) -> Any:
    """R's `as.numeric` of numbers, booleans and dates; of a factor its levels where they are numbers, not its codes."""
    variable = from_pandas(pd.Series(x), "as.numeric()")
    if not isinstance(variable, Factor):
        return variable.values.astype(np.float64, copy=False)
    try:
        return np.append(variable.levels.astype(np.float64), np.nan)[variable.codes]
    except (TypeError, ValueError) as error:
        raise DataError(f"as.numeric() takes numbers: {error}") from None


def as_date(x: Any) -> Any:
    """R's `as.Date`."""
    return np.asarray(pd.to_datetime(x), dtype="M8[ns]").astype("M8[D]").astype("M8[ns]")


def natural_spline(
    x: ArrayLike,
    df: int | None = None,
    knots: ArrayLike | None = None,
    intercept: bool = False,
    Boundary_knots: Sequence[float] | None = None,
    _state: dict[str, Any] | None = None,
) -> NDArray[np.float64]:
    """R's `ns`: a basis of the cubic splines that are linear beyond the boundary knots.

    Parameters
    ----------
    x : array (n,)
    df : int, optional
        Number of columns; the inner knots are then quantiles of x.
    knots : array, optional
        The inner knots, instead of `df`.
    intercept : bool
        Whether constants are in the span.
    Boundary_knots : (low, high), optional
        By default the range of x.

    Returns
    -------
    ndarray (n, df)
        The cubic B-splines on the knots, times a basis of the null space of their second derivatives at the two
        boundary knots (de Boor 1978, ch. IX): of the orthogonal factor of those derivatives, all columns but two.
    """
    from scipy.interpolate import BSpline

    state: dict[str, Any] = {} if _state is None else _state
    values = np.asarray(x, dtype=np.float64)
    if not state:
        finite = values[np.isfinite(values)]
        low, high = Boundary_knots if Boundary_knots is not None else (finite.min(), finite.max())
        inner = np.empty(0) if knots is None else np.atleast_1d(np.asarray(knots, dtype=np.float64))
        if knots is None and df is not None:
            n_inner = int(df) - 1 - bool(intercept)
            if n_inner < 0:
                raise FormulaError(f"ns() with df={df}: at least {1 + bool(intercept)} are needed")
            inside = finite[(finite >= low) & (finite <= high)]
            inner = np.quantile(inside, np.arange(1, n_inner + 1) / (n_inner + 1))
        state["knots"] = np.concatenate([[low] * 4, np.sort(inner), [high] * 4])
    t = state["knots"]
    low, high, drop = t[0], t[-1], 0 if intercept else 1
    splines = BSpline(t, np.eye(len(t) - 4), 3)
    curvature = splines([low, high], nu=2)[:, drop:]
    null = np.linalg.qr(curvature.T, mode="complete")[0][:, 2:]
    inside = np.clip(values, low, high)
    basis = splines(inside) + splines(inside, nu=1) * (values - inside)[:, None]
    return np.asarray(basis[:, drop:] @ null)


_UFUNCS = ["sqrt", "cbrt", "sin", "cos", "tan", "sinh", "cosh", "tanh", "log1p", "expm1", "floor", "sign"]
# numpy's elementwise functions under R's names; `subset`, `weights` and `offset` know these too
ELEMENTWISE: Mapping[str, Any] = {
    **{name: getattr(np, name) for name in [*_UFUNCS, "log2", "log10", "exp", "exp2"]},
    **{"abs": np.abs, "ceiling": np.ceil, "ceil": np.ceil, "round": np.round, "trunc": np.trunc, "log": log},
    **{"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "pmin": np.minimum, "pmax": np.maximum},
    **{"minimum": np.minimum, "maximum": np.maximum, "clip": np.clip, "ifelse": np.where, "where": np.where},
    **{"is_na": pd.isna, "as_numeric": as_numeric, "as_integer": lambda x: np.trunc(as_numeric(x)), "as_Date": as_date},
    **{"c": lambda *values: list(values), "exp10": lambda x: np.power(10.0, x)},
    **{"TRUE": True, "FALSE": False, "NULL": None, "pi": math.pi},
}
FACTOR_MAKERS: Mapping[str, Any] = {
    **{"C": Coded, "factor": factor, "as_factor": factor, "ordered": ordered, "as_ordered": ordered},
    **{"interaction": interaction, "as_character": factor, "droplevels": factor},
}
"""Functions whose arguments are levels: they are given whole numbers as they are, others get them as float64."""


@cache
def transforms() -> Mapping[str, Any]:
    """All of them by name; formulaic's own are loaded when a formula first has a call."""
    from formulaic.transforms import TRANSFORMS as FORMULAIC
    from formulaic.utils.stateful_transforms import stateful_transform

    return {**FORMULAIC, **ELEMENTWISE, **FACTOR_MAKERS, "ns": stateful_transform(natural_spline)}
