"""Maps as users give them: which areas are neighbours, from a mapping, a table of pairs, or a matrix of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core.errors import DataError, ModelError
from fastlmm_core.formula.frame import Numeric, Table, as_factor

__all__ = ["edges_of"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Edges = tuple[list[Any], Index, Index, Array, bool]


def edges_of(areas: Any, first: str | None, second: str | None, weight: str | None) -> Edges:
    """Names, ends (m,) of each edge once, weights (m,), and whether names were given; see `neighbours`."""
    if isinstance(areas, Mapping):
        _no_columns(first, second, weight)
        return _of_mapping(areas)
    if first is not None and second is not None:
        return _of_pairs(areas, first, second, weight)
    if first is not None or second is not None:
        raise ModelError("a table of pairs has two columns of areas: neighbours(table, 'a', 'b')")
    if isinstance(areas, pd.DataFrame):
        if [str(v) for v in areas.index] != [str(v) for v in areas.columns]:
            raise DataError(
                "the index and the columns of the matrix have to name the same areas in the same order; of a table of "
                "pairs name the two columns: neighbours(table, 'a', 'b')"
            )
        _no_columns(first, second, weight)
        return _of_matrix(list(areas.index), areas.to_numpy(dtype=float), True)
    if sp.issparse(areas) or isinstance(areas, np.ndarray):
        _no_columns(first, second, weight)
        return _of_matrix(None, areas, False)
    raise ModelError(
        "neighbours takes a mapping of areas to their neighbours, a table of pairs with two columns named, or a matrix "
        f"of weights, not {type(areas).__name__}"
    )


def _no_columns(first: str | None, second: str | None, weight: str | None) -> None:
    if first is not None or second is not None or weight is not None:
        raise ModelError("first, second and weight are columns of a table of pairs; this is none")


def _of_mapping(areas: Mapping[Any, Iterable[Any]]) -> Edges:
    names = list(areas)
    place = {str(v): i for i, v in enumerate(names)}
    if len(place) < len(names):
        raise DataError("two areas of the mapping have the same name")
    found: set[tuple[int, int]] = set()
    for name, others in areas.items():
        if isinstance(others, str) or not isinstance(others, Iterable):
            raise DataError(f"the neighbours of {str(name)!r} have to be a list, not {type(others).__name__}")
        for other in others:
            if str(other) not in place:
                raise DataError(f"{str(other)!r}, a neighbour of {str(name)!r}, is no area of the mapping")
            _no_loop(name, other)
            found.add((place[str(name)], place[str(other)]))
    for i, j in found:
        if (j, i) not in found:
            raise DataError(f"{str(names[j])!r} is a neighbour of {str(names[i])!r}, but not the other way round")
    pairs = np.array(sorted(p for p in found if p[0] < p[1]), np.int64).reshape(-1, 2)
    return names, pairs[:, 0].copy(), pairs[:, 1].copy(), np.ones(len(pairs)), True


def _no_loop(one: Any, other: Any) -> None:
    if str(one) == str(other):
        raise DataError(f"{str(one)!r} is listed as a neighbour of itself")


def _of_pairs(table: Any, first: str, second: str, weight: str | None) -> Edges:
    source = Table(table)
    source.require([first, second] if weight is None else [first, second, weight])
    sides = []
    for name in (first, second):
        factor = as_factor(source[name])
        if (factor.codes < 0).any():
            raise DataError(f"{name} is missing in {int((factor.codes < 0).sum())} rows of the pairs")
        sides.append(factor.levels.astype(str)[factor.codes])
    every = list(dict.fromkeys(str(v) for v in np.concatenate(sides)))
    names = pd.Index(every)
    a, b = (names.get_indexer(pd.Index(side)).astype(np.int64) for side in sides)
    for i in np.flatnonzero(a == b)[:1]:
        _no_loop(every[a[i]], every[a[i]])
    weights = np.ones(len(a)) if weight is None else _numbers(source[weight], weight)
    low, high = np.minimum(a, b), np.maximum(a, b)
    _, index, inverse = np.unique(low * len(every) + high, return_index=True, return_inverse=True)
    _positive(weights)
    differs = weights != weights[index][inverse]
    if differs.any():
        i = int(np.flatnonzero(differs)[0])
        raise DataError(f"the pair {every[a[i]]!r}, {every[b[i]]!r} is listed with two weights")
    return every, low[index], high[index], weights[index], True


def _numbers(variable: Any, name: str) -> Array:
    if not isinstance(variable, Numeric) or variable.values.ndim != 1:
        raise DataError(f"the weights {name} of the pairs have to be numbers")
    return np.asarray(variable.values, np.float64)


def _positive(weights: Array) -> None:
    bad = ~(np.isfinite(weights) & (weights > 0.0))
    if bad.any():
        raise DataError(f"weights of neighbours have to be positive: {int(bad.sum())} of {len(weights)} are not")


def _of_matrix(names: list[Any] | None, matrix: Any, labelled: bool) -> Edges:
    W = sp.coo_array(matrix, dtype=np.float64)
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise DataError(f"the matrix of weights has to be square, not of shape {W.shape}")
    csc = sp.csc_array(W)
    csc.sum_duplicates()
    csc.eliminate_zeros()
    labels = list(range(W.shape[0])) if names is None else names
    if len({str(v) for v in labels}) < len(labels):
        raise DataError("the matrix of weights has an area twice")
    _positive(csc.data)
    loops = np.flatnonzero(csc.diagonal())
    if len(loops):
        _no_loop(labels[loops[0]], labels[loops[0]])
    unlike = sp.coo_array(csc - csc.T)
    if unlike.nnz and np.abs(unlike.data).max() > 0.0:
        k = int(np.abs(unlike.data).argmax())
        i, j = str(labels[unlike.row[k]]), str(labels[unlike.col[k]])
        raise DataError(f"the matrix of weights is not symmetric: {i!r} and {j!r} have two weights")
    lower = sp.tril(csc).tocoo()
    return labels, lower.row.astype(np.int64), lower.col.astype(np.int64), lower.data, labelled
