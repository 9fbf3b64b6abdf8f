"""The functions that a formula's calls may use besides the caller's own: formulaic's, and R's under R's names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.errors import DataError, FormulaError
from fastlmm_core.formula.frame import as_factor, from_pandas
from fastlmm_core.formula.levels import Factor, Levels, combine

__all__ = ["ELEMENTWISE", "FACTOR_MAKERS", "OF_OTHER_TABLES", "SUMMARIES", "Coded", "transforms"]


class Coded:
    """What `factor(f)` and `C(f, contrasts)` evaluate to; formulaic's own C would encode at once."""

    def __init__(
        self,
        data: Any,
        contrasts: Any = None,
        levels: Any = None,
        labels: Any = None,
        ordered: bool | None = None,
        base: int | None = None,
        of_fit: bool = True,
    ) -> None:
        self.data, self.contrasts, self.levels, self.labels, self.ordered = data, contrasts, levels, labels, ordered
        self.base = base if of_fit else None  # R's: the place, from 1, of the level that contrasts compare with

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
        contrasts = self.contrasts if self.base is None else self._compared_with(self.base, levels, expr)
        return Factor(codes, levels, found.ordered if self.ordered is None else bool(self.ordered), contrasts)

    def _compared_with(self, base: int, levels: NDArray[np.object_], expr: str) -> Any:
        from formulaic.transforms.contrasts import TreatmentContrasts

        if self.contrasts not in (TreatmentContrasts, "treatment", "contr.treatment", None):
            raise DataError(f"{expr}: base is for treatment contrasts")
        if base not in range(1, len(levels) + 1):
            raise DataError(f"{expr} has base={base!r}, but its {len(levels)} levels are counted from 1")
        return TreatmentContrasts(base=levels[base - 1])


def _as_factor(data: Any, expr: str) -> Factor:
    data = data.factor(expr) if isinstance(data, Coded) else data
    return data if isinstance(data, Factor) else as_factor(from_pandas(pd.Series(data), expr))


def factor(x: Any, levels: Any = None, labels: Any = None, ordered: bool | None = None) -> Coded:
    """R's `factor`."""
    return Coded(x, None, levels, labels, ordered)


def ordered(x: Any, levels: Any = None, labels: Any = None) -> Coded:
    """R's `ordered`: a factor whose order carries meaning, with polynomial contrasts."""
    return Coded(x, None, levels, labels, True)


def relevel(x: Any, ref: Any, of_fit: bool = True) -> Coded:
    """R's `relevel`: the factor with the level `ref` first, so that others are compared with it.

    Tables that are not `of_fit` may have fewer levels, and are coded as the fit was.
    """
    found = _as_factor(x, "relevel()")
    if found.ordered:
        raise DataError("relevel() is for unordered factors: the order of an ordered one has a meaning")
    at = Levels(found.levels).place([Factor(np.zeros(1, np.int8), np.array([ref], dtype=object))])[0]
    if at < 0 and not of_fit:
        return Coded(found, found.contrasts)
    if at < 0:
        raise DataError(f"relevel() has ref={ref!r}, which is no level: {', '.join(map(str, found.levels[:10]))}")
    return Coded(found, found.contrasts, [found.levels[at], *np.delete(found.levels, at)])


def cut(
    x: ArrayLike,
    breaks: Any,
    labels: Any = None,
    include_lowest: bool = False,
    right: bool = True,
    dig_lab: int = 3,
    ordered_result: bool = False,
    _state: dict[str, Any] | None = None,
) -> Any:
    """R's `cut`: intervals of a numeric column as a factor.

    Parameters
    ----------
    x : array (n,)
    breaks : int or array
        How many intervals, of equal width over the range of the model's own x; or where they end.
    labels : list of str, or False
        Names of the intervals instead of "(a,b]"; False for their numbers, counted from 1.
    include_lowest : bool
        Whether the outermost end belongs to its interval.
    right : bool
        Intervals (a, b], or [a, b).
    dig_lab : int
        Digits of the ends in the names, more where these would be alike.
    ordered_result : bool

    Returns
    -------
    Coded, or array (n,) where `labels` is False
        Missing outside of the intervals.
    """
    state: dict[str, Any] = {} if _state is None else _state
    values = np.asarray(x, dtype=np.float64)
    if "ends" not in state:
        state["ends"] = _ends(values, breaks)
    ends = state["ends"]
    side: Any = "left" if right else "right"
    codes = np.searchsorted(ends, values, side=side) - 1
    if include_lowest:
        outermost = ends[0] if right else ends[-1]
        codes[values == outermost] = 0 if right else len(ends) - 2
    codes[(codes < 0) | (codes >= len(ends) - 1) | np.isnan(values)] = -1
    if labels is False:
        return np.where(codes < 0, np.nan, codes + 1.0)
    names = _interval_names(ends, right, include_lowest, int(dig_lab)) if labels is None else [*labels]
    if len(names) != len(ends) - 1:
        raise DataError(f"cut() has {len(names)} labels for {len(ends) - 1} intervals")
    return Coded(Factor(codes, np.array(names, dtype=object), bool(ordered_result)))


def _ends(values: NDArray[np.float64], breaks: Any) -> NDArray[np.float64]:
    """The sorted ends of the intervals of `cut`, R's where their number is given."""
    if np.ndim(breaks) == 0:
        if int(breaks) < 2:
            raise DataError(f"cut() needs two intervals or more, or their ends, not breaks={breaks!r}")
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        wide = high - low
        if wide == 0.0:
            return np.linspace(low - abs(low) / 1000, high + abs(low) / 1000, int(breaks) + 1)
        ends = np.linspace(low, high, int(breaks) + 1)
        ends[0], ends[-1] = low - wide / 1000, high + wide / 1000
        return ends
    ends = np.sort(np.asarray(breaks, dtype=np.float64))
    if len(ends) < 2 or (np.diff(ends) <= 0.0).any() or np.isnan(ends).any():
        raise DataError(f"cut() needs two or more different ends, not {ends.tolist()}")
    return ends


def _interval_names(ends: NDArray[np.float64], right: bool, include_lowest: bool, digits: int) -> list[str]:
    """Names such as "(0.5,1.5]", with as many digits as tell the ends apart."""
    texts = [f"{end:.{digits}g}" for end in ends]
    while digits < 12 and len(set(texts)) < len(texts):
        digits += 1
        texts = [f"{end:.{digits}g}" for end in ends]
    texts = [text.replace("inf", "Inf") for text in texts]
    opening, closing = ("(", "]") if right else ("[", ")")
    names = [f"{opening}{a},{b}{closing}" for a, b in pairwise(texts)]
    if include_lowest and right:
        names[0] = "[" + names[0][1:]
    elif include_lowest:
        names[-1] = names[-1][:-1] + "]"
    return names


def interaction(*factors: Any, sep: str = ".", drop: bool = True) -> Coded:
    """R's `interaction`: the combinations that occur, named "a.b", the first factor varying fastest.

    Those that do not occur are left out whatever `drop` says: a model has no use for them.
    """
    if not factors:
        raise FormulaError("interaction() needs the factors to combine")
    parts = [_as_factor(part, "interaction()").take(None) for part in reversed(factors)]
    codes, levels = np.asarray(parts[0].codes, dtype=np.int32), Levels(parts[0].levels)
    for part in parts[1:]:
        codes, levels = combine(codes, levels, np.asarray(part.codes, dtype=np.int32), Levels(part.levels))
    texts = [sep.join(reversed(parts)) for parts in levels.parts()]
    return Coded(Factor(codes, np.array(texts, dtype=object)))


def dummy(f: Any, levels: Any = None, _state: dict[str, Any] | None = None) -> Any:
    """lme4's `dummy`: whether a row is at a level, 1 or 0; a column for each of `levels`, all but the first by default.

    Raises DataError where a level does not occur.
    """
    state: dict[str, Any] = {} if _state is None else _state
    found = _as_factor(f, "dummy()")
    if "levels" not in state:
        kept = found.levels[1:] if levels is None else np.array(levels, dtype=object, ndmin=1)
        absent = Levels(found.levels).place([Factor(np.arange(len(kept)), kept)]) < 0
        if absent.any() or not len(kept):
            there = ", ".join(map(str, found.levels[:10]))
            raise DataError(f"dummy() asks for {kept[absent].tolist() or 'no level'}; there are {there}")
        state["levels"] = [found.levels[k] for k in Levels(found.levels).place([Factor(np.arange(len(kept)), kept)])]
    kept = np.array(state["levels"], dtype=object)
    at = Levels(kept).place([found])
    columns = {str(level): (at == k).astype(np.float64) for k, level in enumerate(kept)}
    return columns if len(kept) > 1 else columns[str(kept[0])]


def rounded(x: ArrayLike, digits: int = 0) -> Any:
    """R's `round`: to the nearer of the two neighbours with so many digits, to the even one between them."""
    values = np.asarray(x, dtype=np.float64)
    if digits == 0:
        return np.round(values)
    scale = 10.0 ** int(digits)
    below = np.floor(values * scale)
    low, high = below / scale, np.ceil(values * scale) / scale
    further = (high - values) - (values - low)
    return np.where((further < 0.0) | ((further == 0.0) & (below % 2 == 1)), high, low)


def pnorm(x: ArrayLike) -> Any:
    """R's `pnorm`, of the standard normal distribution."""
    from scipy.special import ndtr

    return ndtr(np.asarray(x, dtype=np.float64))


def qnorm(p: ArrayLike) -> Any:
    """R's `qnorm`, of the standard normal distribution."""
    from scipy.special import ndtri

    return ndtri(np.asarray(p, dtype=np.float64))


def log(x: ArrayLike, base: float = math.e) -> Any:
    """R's `log`: natural, or to the base given."""
    return np.log(x) if base == math.e else np.log(x) / math.log(base)


def as_numeric(x: Any) -> Any:
    """R's `as.numeric` of numbers, booleans and dates; of a factor its levels where they are numbers, not its codes."""
    variable = x.factor("as.numeric()") if isinstance(x, Coded) else from_pandas(pd.Series(x), "as.numeric()")
    if not isinstance(variable, Factor):
        return variable.values.astype(np.float64, copy=False)
    try:
        return np.append(variable.levels.astype(np.float64), np.nan)[variable.codes]
    except (TypeError, ValueError) as error:
        raise DataError(f"as.numeric() takes numbers, or a factor whose levels are numbers: {error}") from None


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


def _combined(*values: Any) -> Any:
    """R's `c`: the values as a list; a column by itself stays one, as in `c(scale(x))`."""
    return values[0] if len(values) == 1 and np.ndim(values[0]) else list(values)


_UFUNCS = ["sqrt", "cbrt", "sin", "cos", "tan", "sinh", "cosh", "tanh", "log1p", "expm1", "floor", "sign"]
# numpy's elementwise functions under R's names; `subset`, `weights` and `offset` know these too
ELEMENTWISE: Mapping[str, Any] = {
    **{name: getattr(np, name) for name in [*_UFUNCS, "log2", "log10", "exp", "exp2"]},
    **{"abs": np.abs, "ceiling": np.ceil, "ceil": np.ceil, "round": rounded, "trunc": np.trunc, "log": log},
    **{"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "pmin": np.minimum, "pmax": np.maximum},
    **{"minimum": np.minimum, "maximum": np.maximum, "clip": np.clip, "ifelse": np.where, "where": np.where},
    **{"is_na": pd.isna, "as_numeric": as_numeric, "as_integer": lambda x: np.trunc(as_numeric(x)), "as_Date": as_date},
    **{"plogis": lambda x: 1.0 / (1.0 + np.exp(-x)), "qlogis": lambda p: np.log(p) - np.log1p(-p)},
    **{"pnorm": pnorm, "qnorm": qnorm, "as_vector": lambda x: x, "as_logical": lambda x: as_numeric(x) != 0},
    **{"c": _combined, "exp10": lambda x: np.power(10.0, x)},
    **{"TRUE": True, "FALSE": False, "NULL": None, "pi": math.pi, "Inf": math.inf},
}
FACTOR_MAKERS: Mapping[str, Any] = {
    **{"C": Coded, "factor": factor, "as_factor": factor, "ordered": ordered, "as_ordered": ordered},
    **{"interaction": interaction, "relevel": relevel, "as_character": factor, "droplevels": factor},
    "dummy": dummy,
}
"""Functions whose arguments are levels: they are given whole numbers as they are, others get them as float64."""

OF_OTHER_TABLES: Mapping[str, Any] = {
    "C": partial(Coded, of_fit=False),
    "relevel": partial(relevel, of_fit=False),
}
"""What stands for those that look at which levels there are, once the fit has its own."""


def _summary(of: Callable[[Any], Any], over: Callable[[Iterable[Any]], Any] | None = None) -> Callable[..., Any]:
    """R's summary of a column, or of several that are put `over` one another.

    It never sees the missing values that `na.rm` is about: the evaluator leaves them out.
    """

    def summary(*x: Any, na_rm: bool = False) -> Any:
        if not x or (over is None and len(x) > 1):
            raise FormulaError(f"a summary takes one column, and na.rm=TRUE by name; it got {len(x)} arguments")
        return of(x[0]) if over is None else over(map(of, x))

    return summary


def quantile(x: ArrayLike, probs: float, na_rm: bool = False, names: bool = False) -> float:
    """R's `quantile`, its type 7, at one probability."""
    if np.ndim(probs) or not 0.0 <= float(probs) <= 1.0:
        raise FormulaError(f"quantile() in a formula takes one probability between 0 and 1, not {probs!r}")
    return float(np.quantile(np.asarray(x, dtype=np.float64), probs))


SUMMARIES: Mapping[str, Any] = {
    **{"mean": _summary(np.mean), "median": _summary(np.median), "quantile": quantile},
    **{"min": _summary(np.min, min), "max": _summary(np.max, max), "sum": _summary(np.sum, sum)},
    **{"sd": _summary(lambda x: np.std(x, ddof=1)), "var": _summary(lambda x: np.var(x, ddof=1))},
}
"""Single values of a whole column, which the model remembers."""


@cache
def transforms() -> Mapping[str, Any]:
    """All of them by name; formulaic's own are loaded when a formula first has a call."""
    from formulaic.transforms import TRANSFORMS as FORMULAIC
    from formulaic.utils.stateful_transforms import stateful_transform

    own = {"ns": natural_spline, "cut": cut, "dummy": dummy}
    learning = {name: stateful_transform(function) for name, function in own.items()}
    return {**FORMULAIC, **ELEMENTWISE, **FACTOR_MAKERS, **SUMMARIES, **learning}
