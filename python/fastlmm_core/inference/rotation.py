"""Cross-products of the same model with the columns of one term in another order, without a look at the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import CrossProducts

__all__ = ["Reordered", "reorder_term"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reordered:
    """A model with the columns of one term in another order, and the way there and back.

    Attributes
    ----------
    cross : CrossProducts
    rotation : (l, l) or None
        Orthogonal R: the term's conditioned effects b are R b' in the new order; None where the order is the same.
    at, row, column : (k,)
        Places of the term's parameters in theta, and in its factor.
    """

    cross: CrossProducts
    rotation: Array | None = None
    at: NDArray[np.int64] | None = None
    row: NDArray[np.int64] | None = None
    column: NDArray[np.int64] | None = None

    def there(self, theta: Array) -> Array:
        """Conditioned theta (n_theta,) of the same covariance in the new order."""
        return theta if self.rotation is None else self._turned(theta, self.rotation.T)

    def back(self, theta: Array) -> Array:
        """Conditioned theta (n_theta,) in the model's own order, of one in the new order."""
        return theta if self.rotation is None else self._turned(theta, self.rotation)

    def _turned(self, theta: Array, rotation: Array) -> Array:
        assert self.at is not None
        factor = np.zeros(rotation.shape)
        factor[self.row, self.column] = theta[self.at]
        turned = np.linalg.qr((rotation @ factor).T)[1].T
        turned = turned * np.where(np.diag(turned) < 0, -1.0, 1.0)
        new = theta.copy()
        new[self.at] = turned[self.row, self.column]
        return new


def reorder_term(cross: CrossProducts, k: int, order: Sequence[int]) -> Reordered:
    """Put the columns of term `k` into `order`.

    The conditioned columns z T become z P T', with T' lower triangular and chosen such that T^-1 P T' = R is orthogonal
    (a QL factorisation of T^-1 P): every cross-product is rotated by R within its level, and stays as well conditioned.

    Parameters
    ----------
    cross : CrossProducts
    k : int
    order : sequence of int
        New column c is the old column order[c].
    """
    t = cross.transforms[k]
    l = len(t)
    if list(order) == list(range(l)):
        return Reordered(cross)
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
    turned = replace(
        cross,
        blocks=tuple(blocks),
        dense=tuple(dense),
        pairs=pairs,
        transforms=tuple(transforms),
        theta_map=replace(cross.theta_map, to_conditioned=mapping),
    )
    return Reordered(turned, rotation, at, row, column)
