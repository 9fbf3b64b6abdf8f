"""A table with more or fewer levels of a grouping factor, or rows within them: designs of other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.errors import DataError
from fastlmm_core.fitting.spelling import explained

__all__ = ["as_pandas", "expand"]


def as_pandas(data: Any) -> pd.DataFrame:
    """A table as a pandas frame: a copy of its columns' names and values."""
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, Mapping):
        try:
            return pd.DataFrame(dict(data))
        except ValueError as error:
            raise DataError(f"the columns do not make a table: {error}") from None
    try:
        frame = nw.from_native(data)
    except TypeError:
        raise DataError(f"cannot read a table from {type(data).__name__}") from None
    return frame.collect().to_pandas() if isinstance(frame, nw.LazyFrame) else frame.to_pandas()


@explained
def expand(
    data: Any, along: Mapping[str, int] | None = None, *, within: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """A table with another number of levels of some columns, or of rows within each level.

    Parameters
    ----------
    data : table
    along : mapping, optional
        Column to number of levels: existing ones are copied in turn under new names, or some are left out. Levels are
        taken so that columns constant within a level (treatments between subjects) keep their proportions. Levels of
        other columns that occur in one level only (samples of a batch) are copied under new names, too.
    within : mapping, optional
        Column to rows a level: a level's rows are repeated in order until it has so many, or the first are kept.

    Returns
    -------
    DataFrame

    Raises
    ------
    DataError
        No such column, or a number below 1.

    Examples
    --------
    >>> import pandas as pd
    >>> from fastlmm_core import expand
    >>> pilot = pd.DataFrame({"subject": [1, 1, 2, 2], "group": list("aabb"), "time": [0, 1, 0, 1]})
    >>> larger = expand(pilot, {"subject": 6})
    >>> larger.groupby("group")["subject"].nunique().to_dict()
    {'a': 3, 'b': 3}
    """
    frame = as_pandas(data).reset_index(drop=True)
    for name, number in {**(along or {}), **(within or {})}.items():
        if name not in frame:
            raise DataError(f"there is no column {name!r}: the data have {', '.join(map(str, frame.columns[:10]))}")
        if int(number) != number or number < 1:
            raise DataError(f"{name} cannot have {number!r} levels or rows: give a whole number, 1 or more")
    for name, number in (along or {}).items():
        frame = _along(frame, name, int(number))
    for name, number in (within or {}).items():
        rows = frame.groupby(name, sort=False, observed=True).indices
        chosen = np.concatenate([np.resize(at, int(number)) for at in rows.values()])
        frame = frame.iloc[chosen].reset_index(drop=True)
    return frame


def _along(frame: pd.DataFrame, name: str, number: int) -> pd.DataFrame:
    codes, levels = pd.factorize(frame[name])
    q = len(levels)
    order = _balanced_order(frame, name, codes, q)
    rows = [np.flatnonzero(codes == level) for level in range(q)]
    nested = [
        other
        for other in frame
        if other != name
        and not pd.api.types.is_float_dtype(frame[other])
        and (frame.groupby(other, observed=True)[name].nunique() == 1).all()
        and (frame.groupby(name, observed=True)[other].nunique() > 1).any()
    ]
    parts = []
    for k in range(number):
        copy, level = divmod(k, q)
        part = frame.iloc[rows[order[level]]].copy()
        if copy:
            for column in [name, *nested]:
                part[column] = [f"{value}.{copy}" for value in part[column]]
        parts.append(part.astype(dict.fromkeys([name, *nested], object)) if number > q else part)
    out = pd.concat(parts, ignore_index=True)
    for column in [name, *nested]:
        if out[column].dtype == object:
            out[column] = out[column].astype(str)
        elif isinstance(out[column].dtype, pd.CategoricalDtype):
            out[column] = out[column].cat.remove_unused_categories()
    return out


def _balanced_order(frame: pd.DataFrame, name: str, codes: NDArray[np.int64], q: int) -> NDArray[np.int64]:
    """The levels, such that the first of them hold the strata between them in their proportions."""
    by_level = frame.groupby(name, observed=True, sort=False)
    between = [
        other
        for other in frame
        if other != name and not pd.api.types.is_float_dtype(frame[other]) and (by_level[other].nunique() <= 1).all()
    ]
    first = np.array([int(np.argmax(codes == level)) for level in range(q)])
    if not between:
        return np.arange(q)
    stratum = frame.iloc[first].groupby(between, observed=True, sort=False, dropna=False).ngroup().to_numpy()
    if stratum.max() + 1 > q // 2:  # each level its own: nothing to balance
        return np.arange(q)
    size = np.bincount(stratum)
    rank = np.zeros(q)
    for s in range(len(size)):
        rank[stratum == s] = (np.arange(size[s]) + 0.5) / size[s]
    return np.argsort(rank, kind="stable")
