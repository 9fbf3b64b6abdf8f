"""Cross-products: everything a fit needs of the data, in one pass over the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import block_diag

from fastlmm_core._crossprod import level_blocks, level_sums, pair_cells, sort_rows
from fastlmm_core.core.conditioning import CHUNK, Conditioning, condition_fixed, condition_term
from fastlmm_core.core.terms import Group, Term, check_response, group_terms, theta_index

__all__ = ["CrossProducts", "cross_products"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CrossProducts:
    """Z'WZ, Z'W[X y] and [X y]'W[X y] in conditioned coordinates, and the way back.

    Attributes
    ----------
    n : int
        Observations.
    groups : tuple of Group
        Grouping factors, the leading one first.
    blocks : tuple of (q, l, l) arrays
        Diagonal blocks of Z'WZ, one array a group.
    pairs : dict (g, h) -> (ptr, idx, val)
        Cells of Z_g'WZ_h, g < h, as block compressed rows.
    dense : tuple of (q * l, rank + 1) arrays
        Z'W[X y], one array a group.
    dtd : (rank + 1, rank + 1)
        [X y]'W[X y].
    conditioning : Conditioning
    transforms : tuple of (l, l) arrays
        T of each term.
    theta_index : (n_theta, 3) int64
        Group, row and column of each parameter.
    to_conditioned : (n_theta, n_theta)
        Maps the user's theta to the conditioned one.
    """

    n: int
    groups: tuple[Group, ...]
    blocks: tuple[Array, ...]
    pairs: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int32], Array]]
    dense: tuple[Array, ...]
    dtd: Array
    conditioning: Conditioning
    transforms: tuple[Array, ...]
    theta_index: NDArray[np.int64]
    to_conditioned: Array


def cross_products(
    y: ArrayLike,
    X: ArrayLike | None,
    terms: Sequence[Term],
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
) -> CrossProducts:
    """Condition the problem and accumulate its cross-products.

    Parameters
    ----------
    y : (n,)
        Response.
    X : (n, p) or None
        Fixed-effects columns; dependent ones are set aside.
    terms : sequence of Term
    weights : (n,), optional
        Positive; the residual variance of row i is sigma^2 / weights[i].
    offset : (n,), optional
        Subtracted from y.

    Returns
    -------
    CrossProducts

    Raises
    ------
    DataError, ModelError
        See `check_response` and `condition_fixed`.
    """
    response, fixed, w = check_response(y, X, terms, weights, offset)
    n = len(response)
    weight_scale, log_weights, root = 1.0, 0.0, None
    if w is not None:
        weight_scale = float(w.mean())
        w = w / weight_scale
        log_weights, root = float(np.log(w).sum()), np.sqrt(w)
    conditioning, response = condition_fixed(response, fixed, root, weight_scale, log_weights)
    groups = group_terms(terms)
    transforms = tuple(
        np.eye(1) if term.z is None else condition_term(term.z, term.cov, root) for term in terms
    )
    codes = [terms[group.terms[0]].codes for group in groups]
    columns = [group_columns(group, terms, transforms, n) for group in groups]

    blocks = tuple(level_blocks(c, g.n_levels, z, w) for c, g, z in zip(codes, groups, columns, strict=True))
    pairs = {}
    for g, group in enumerate(groups[:-1]):
        ptr, rows = sort_rows(codes[g], group.n_levels)
        for h in range(g + 1, len(groups)):
            pairs[g, h] = pair_cells(ptr, rows, columns[g], codes[h], groups[h].n_levels, columns[h], w)
    d = conditioning.rank + 1
    dense = tuple(np.zeros((group.size, d)) for group in groups)
    dtd = np.zeros((d, d))
    inverse = np.linalg.inv(conditioning.r)
    for s in range(0, n, CHUNK):
        part = slice(s, s + CHUNK)
        e = np.column_stack([fixed[part][:, conditioning.keep], response[part]]) @ inverse
        weights_part = None if w is None else w[part]
        dtd += e.T @ (e if weights_part is None else e * weights_part[:, None])
        for c, z, out in zip(codes, columns, dense, strict=True):
            level_sums(c[part], None if z is None else z[part], weights_part, e, out)
    return CrossProducts(
        n,
        groups,
        blocks,
        pairs,
        dense,
        dtd,
        conditioning,
        transforms,
        theta_index(terms, groups),
        theta_map(terms, transforms, weight_scale),
    )


def group_columns(group: Group, terms: Sequence[Term], transforms: Sequence[Array], n: int) -> Array | None:
    """Conditioned columns of a group, its terms side by side; None where they are one column of ones."""
    if group.n_columns == 1 and terms[group.terms[0]].z is None:
        return None
    out = np.empty((n, group.n_columns))
    for k, o in zip(group.terms, group.offsets, strict=True):
        z = terms[k].z
        if z is None:
            out[:, o] = 1.0
        else:
            np.matmul(z, transforms[k], out=out[:, o : o + z.shape[1]])
    return out


def theta_map(terms: Sequence[Term], transforms: Sequence[Array], weight_scale: float) -> Array:
    """The matrix that takes the user's theta to the conditioned one: column c of L becomes T^-1 L[:, c]."""
    parts = []
    for term, t in zip(terms, transforms, strict=True):
        inverse = np.linalg.inv(t.T).T * np.sqrt(weight_scale)  # upper triangular: no pivoting
        if term.cov == "diag":
            parts.append(np.diag(np.diag(inverse)))
        else:
            parts.extend(inverse[c:, c:] for c in range(len(t)))
    return np.asarray(block_diag(*parts))
