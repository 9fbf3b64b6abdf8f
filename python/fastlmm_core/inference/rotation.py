"""Cross-products of the same model with the columns of one term in another order, without a look at the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import CrossProducts

__all__ = ["reorder_term"]

Array = NDArray[np.float64]


def reorder_term(cross: CrossProducts, theta: Array, k: int, order: Sequence[int]) -> tuple[CrossProducts, Array]:
    """Put the columns of term `k` into `order`.

    The conditioned columns z T become z P T', with T' lower triangular and chosen such that T^-1 P T' = R is orthogonal
    (a QL factorisation of T^-1 P): every cross-product is rotated by R within its level, and stays as well conditioned.

    Parameters
    ----------
    cross : CrossProducts
    theta : (n_theta,)
        Conditioned.
    k : int
    order : sequence of int
        New column c is the old column order[c].

    Returns
    -------
    CrossProducts
    theta : (n_theta,)
        The same covariance in the new coordinates.
    """
    t = cross.transforms[k]
    l = len(t)
    if list(order) == list(range(l)):
        return cross, theta
    g = next(g for g, group in enumerate(cross.groups) if k in group.terms)
    group = cross.groups[g]
    offset = group.offsets[group.terms.index(k)]
    q, r = np.linalg.qr(np.linalg.inv(t)[:, list(order)][:, ::-1])
    sign = np.where(np.diag(r) < 0, -1.0, 1.0)
    rotation, lower = (q * sign)[:, ::-1], (r * sign[:, None])[::-1, ::-1]
    full = np.eye(group.n_columns)
    full[offset : offset + l, offset : offset + l] = rotation

    blocks, dense, pairs = list(cross.blocks), list(cross.dense), dict(cross.pairs)
    blocks[g] = np.ascontiguousarray(full.T @ blocks[g] @ full)
    rows = dense[g].reshape(group.n_levels, group.n_columns, -1)
    dense[g] = np.ascontiguousarray(full.T @ rows).reshape(dense[g].shape)
    for (a, b), (ptr, idx, val) in cross.pairs.items():
        if a == g:
            pairs[a, b] = (ptr, idx, np.ascontiguousarray(full.T @ val))
        elif b == g:
            pairs[a, b] = (ptr, idx, np.ascontiguousarray(val @ full))
    transforms = list(cross.transforms)
    transforms[k] = np.linalg.inv(lower.T).T
    mine = (cross.theta_index[:, 0] == g) & np.isin(cross.theta_index[:, 1], np.arange(offset, offset + l))
    at = np.flatnonzero(mine)
    scale = np.sqrt(cross.conditioning.weight_scale)
    mapping = cross.to_conditioned.copy()
    mapping[np.ix_(at, at)] = 0.0
    row, column = cross.theta_index[at, 1] - offset, cross.theta_index[at, 2] - offset
    for c in range(l):
        inside = at[column == c]
        mapping[np.ix_(inside, inside)] = lower[c:, c:] * scale
    factor = np.zeros((l, l))
    factor[row, column] = theta[at]
    turned = np.linalg.qr((rotation.T @ factor).T)[1].T
    turned *= np.where(np.diag(turned) < 0, -1.0, 1.0)
    new_theta = theta.copy()
    new_theta[at] = turned[row, column]
    return (
        replace(
            cross,
            blocks=tuple(blocks),
            dense=tuple(dense),
            pairs=pairs,
            transforms=tuple(transforms),
            theta_map=replace(cross.theta_map, to_conditioned=mapping),
        ),
        new_theta,
    )
