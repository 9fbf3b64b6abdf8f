"""Relationships of pedigrees.

A = T diag(d) T' with T^-1 = I - (sires + dams) / 2, so that A^-1 = T^-T diag(1/d) T^-1 has the pattern of parents and
offspring (Henderson 1976; with inbreeding Quaas 1976), log|A| = sum log d. The Mendelian variances d need the
inbreeding coefficients F of the parents (Meuwissen and Luo 1992).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core._native.rows.pedigree import mendelian_variances
from fastlmm_core.core.structures.relationship import Relationship
from fastlmm_core.errors import DataError

__all__ = ["from_parents"]

Index = NDArray[np.int64]


def from_parents(names: Sequence[Any], sire: Index, dam: Index) -> Relationship:
    """The relationship of a pedigree.

    Parameters
    ----------
    names : sequence (q,)
    sire, dam : (q,) int64
        Places of the parents among the names, -1 where unknown.

    Raises
    ------
    DataError
        An animal is its own ancestor.
    """
    order = parents_first(names, sire, dam)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    place = np.append(place, -1)
    s, d = place[sire[order]], place[dam[order]]
    inbreeding, mendelian = mendelian_variances(np.ascontiguousarray(s), np.ascontiguousarray(d))
    n = len(order)
    k = np.arange(n)
    rows, columns, values = [k], [k], [np.ones(n)]
    for parent in (s, d):
        known = np.flatnonzero(parent >= 0)
        rows.append(known)
        columns.append(parent[known])
        values.append(np.full(len(known), -0.5))
    T = sp.csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n)
    )  # a selfing adds up to -1
    root = sp.csc_array(sp.diags_array(1.0 / np.sqrt(mendelian)) @ T)
    precision = sp.csc_array(root.T @ root)
    labels = np.empty(n, object)
    labels[:] = [names[i] for i in order]
    return Relationship(labels, precision, float(np.log(mendelian).sum()), inbreeding, root=root)


def parents_first(names: Sequence[Any], sire: Index, dam: Index) -> Index:
    """An order (q,) in which parents stand before their offspring, by generations."""
    n = len(sire)
    if (np.arange(n) > np.maximum(sire, dam)).all():
        return np.arange(n)
    waiting, settled = np.ones(n, bool), []
    while waiting.any():
        held = waiting & (np.where(sire >= 0, waiting[sire], False) | np.where(dam >= 0, waiting[dam], False))
        if (held == waiting).all():
            raise DataError(f"the pedigree has a loop: {' → '.join(map(str, _loop(names, sire, dam, waiting)))}")
        settled.append(np.flatnonzero(waiting & ~held))
        waiting = held
    return np.concatenate(settled)


def _loop(names: Sequence[Any], sire: Index, dam: Index, waiting: NDArray[np.bool_]) -> list[Any]:
    """Names along a loop of parents among the animals `waiting`, the first one again at the end."""
    at = int(np.flatnonzero(waiting)[0])
    seen: dict[int, int] = {}
    path: list[int] = []
    while at not in seen:
        seen[at] = len(path)
        path.append(at)
        at = int(sire[at]) if sire[at] >= 0 and waiting[sire[at]] else int(dam[at])
    return [names[i] for i in [*path[seen[at] :], at]]
