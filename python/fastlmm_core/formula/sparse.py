"""`sparse(firm)`: a fixed factor with so many levels that its columns are not formed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.errors import FastLMMWarning, ModelError, warn
from fastlmm_core.formula.frame import Variable, as_factor
from fastlmm_core.formula.levels import Levels

__all__ = ["SparseDesign", "sparse_designs"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SparseDesign:
    """One sparse fixed factor.

    Attributes
    ----------
    name : str
    level_set : Levels
    codes : (n,) int32
        Column of each row; 0 where its level is a reference.
    z : (n, 1)
        One, and zero where the level is a reference.
    n_columns : int
        Levels that have a coefficient.
    column_of : (q,) int64
        Column of each level, -1 for a reference.
    """

    name: str
    level_set: Levels = field(repr=False)
    codes: NDArray[np.int32] = field(repr=False)
    z: Array = field(repr=False)
    n_columns: int
    column_of: NDArray[np.int64] = field(repr=False)


def sparse_designs(factors: Mapping[str, Variable], intercept: bool) -> tuple[SparseDesign, ...]:
    """The factors of the rows used, one level of each connected part being the reference.

    The first factor has a reference where the model has an intercept; of two factors, levels that meet in some row are
    connected, and each further part has a reference of its own.

    Raises
    ------
    ModelError
        More than two factors.
    """
    if len(factors) > 2:
        raise ModelError(f"at most two sparse() factors are supported, not {len(factors)}: {', '.join(factors)}")
    out = []
    coded = {name: as_factor(variable) for name, variable in factors.items()}
    first = next(iter(coded.values()), None)
    for k, (name, factor) in enumerate(coded.items()):
        q = len(factor.levels)
        codes = np.asarray(factor.codes, np.int64)
        if k == 0:
            references = np.zeros(int(intercept), np.int64)
        else:
            assert first is not None
            references = part_representatives(np.asarray(first.codes, np.int64), len(first.levels), codes, q)
            if len(references) > 1:
                warn(
                    f"sparse({name}): {len(references)} disconnected parts; one level of each is the reference",
                    FastLMMWarning,
                )
        kept = np.ones(q, bool)
        kept[references] = False
        column_of = np.where(kept, np.cumsum(kept) - 1, -1)
        column = column_of[codes]
        out.append(
            SparseDesign(
                name,
                Levels(factor.levels),
                np.maximum(column, 0).astype(np.int32),
                (column >= 0).astype(np.float64)[:, None],
                int(kept.sum()),
                column_of,
            )
        )
    return tuple(out)


def part_representatives(a: NDArray[np.int64], q: int, b: NDArray[np.int64], r: int) -> NDArray[np.int64]:
    """A level of the second factor in each connected part of the graph in which levels of one row are joined."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(a), np.int8), (a, q + b)), shape=(q + r, q + r))
    _, part = connected_components(graph, directed=False)
    _, first = np.unique(part[q:], return_index=True)
    return first.astype(np.int64)
