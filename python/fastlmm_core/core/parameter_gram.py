"""Products of covariance parameters' contributions to V, and their null space, from the cross-products.

With V_a = Z_k (I x E_a) Z_k' and M the projection that takes the fixed effects out,

    tr(M V_a M V_b) = sum over pairs of levels of tr(E_a C_ij E_b C_ij'),    C = Z'MZ = Z'WZ - Z'WQ Q'WZ

where a cell that holds no rows has the second part only: these are summed through (Z'WQ)'(Z'WQ), a matrix of the size
of the fixed effects, so the cost is that of the cells. Memory: a chunk of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.machine import require_memory

if TYPE_CHECKING:
    from fastlmm_core.core.products import DesignSums

__all__ = ["Parameter", "gram_of_parameters", "null_directions", "touched_by"]

Array = NDArray[np.float64]
Levels = NDArray[np.integer]
Parameter = tuple[int, int, int]
"""Group, row and column."""

NULL = 1e-10
"""Eigenvalues of the scaled Gram matrix below this belong to its null space."""

NOISE = 1e-4
"""What M leaves of a parameter's squared contribution, relative, below which its rounding errors pass `NULL`."""

VISIBLE = 1e-10
"""Part of the fixed effects' products with a direction, relative to their terms, above which it is not rounding."""

CELLS = 1 << 16
"""Cells whose products are formed at a time."""


def symmetric_basis(index: Sequence[Parameter]) -> list[tuple[int, Array]]:
    """For parameters (group, row, column) of L the symmetric matrices they stand for, as (group, places and factor)."""
    return [(g, np.array([[i, j]] if i == j else [[i, j], [j, i]])) for g, i, j in index]


def gram_of_parameters(products: DesignSums, index: Sequence[Parameter], reml: bool) -> tuple[Array, Array]:
    """tr(M V_a M V_b) for the residual variance and parameters (group, row, column) of symmetric matrices.

    Returns
    -------
    gram : (k + 1, k + 1)
        The residual variance first.
    plain : (k + 1,)
        tr(V_a V_a), which nothing was taken from.
    """
    tensors, plain_tensors, traces = {}, [], []
    groups = products.groups
    dense = [d.reshape(g.n_levels, g.n_columns, products.rank) for g, d in zip(groups, products.dense, strict=True)]
    grams = [gram_of_effects(e) for e in dense]
    for g in range(len(groups)):
        blocks = products.blocks[g]
        left = blocks.sum(axis=0)
        traces.append(left - np.trace(grams[g], axis1=2, axis2=3) if reml else left)
        for h in range(g, len(groups)):
            shape = (groups[g].n_columns, groups[h].n_columns)
            require_memory(32 * (shape[0] * shape[1]) ** 2, f"products of {shape[0]} by {shape[1]} effects a level")
            total = np.zeros((shape[0] * shape[1],) * 2)
            for i, j, values in cells_of(products, g, h):
                flat = values.reshape(len(values), -1)
                if reml and products.rank:
                    here, there = dense[g].take(i, axis=0), dense[h].take(j, axis=0)
                    fixed = np.einsum("irx,itx->irt", here, there).reshape(flat.shape)
                    # (s - f)(s - f)' - f f', so that a cell's own difference is formed before it is squared
                    flat = flat - fixed
                    total -= fixed.T @ fixed
                total += flat.T @ flat
            tensor = total.reshape(*shape, *shape)
            if reml and products.rank:
                one, other = (grams[f].reshape(n * n, -1) for f, n in zip((g, h), shape, strict=True))
                both = (one @ other.T).reshape(shape[0], shape[0], shape[1], shape[1])
                tensor = tensor + both.transpose(0, 2, 1, 3)
            tensors[g, h] = tensor
        own = blocks.reshape(len(blocks), -1)
        plain_tensors.append((own.T @ own).reshape(blocks.shape[1:] * 2))
    basis = symmetric_basis(index)
    k = len(basis)
    gram, plain_diagonal = np.zeros((k + 1, k + 1)), np.zeros(k + 1)
    gram[0, 0] = plain_diagonal[0] = products.n - (products.rank if reml else 0)
    for a, (g, places) in enumerate(basis, 1):
        gram[0, a] = gram[a, 0] = sum(traces[g][r, s] for r, s in places)
        for b, (h, others) in enumerate(basis, 1):
            if g > h:
                continue
            value = sum(tensors[g, h][r, t, s, u] for r, s in places for t, u in others)
            gram[a, b] = gram[b, a] = value
            if a == b:
                plain_diagonal[a] = sum(plain_tensors[g][r, t, s, u] for r, s in places for t, u in others)
    return gram, plain_diagonal


def gram_of_effects(dense: Array) -> Array:
    """Sums over levels of products of Z'WQ (q, l, p): (l, l, p, p), by rows and columns of effects first."""
    _, l, p = dense.shape
    flat = dense.reshape(len(dense), l * p)
    return np.ascontiguousarray((flat.T @ flat).reshape(l, p, l, p).transpose(0, 2, 1, 3))


def cells_of(products: DesignSums, g: int, h: int) -> Iterator[tuple[Levels, Levels, Array]]:
    """Chunks (levels of g, levels of h, values (k, l_g, l_h)) of the cells of Z_g'WZ_h."""
    if g == h:
        levels: Levels = np.arange(products.groups[g].n_levels)
        for s in range(0, len(levels), CELLS):
            yield levels[s : s + CELLS], levels[s : s + CELLS], products.blocks[g][s : s + CELLS]
        return
    ptr, idx, val = products.pairs[g, h]
    rows = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    val = val.reshape(len(idx), products.groups[g].n_columns, products.groups[h].n_columns)
    for s in range(0, len(idx), CELLS):
        yield rows[s : s + CELLS], idx[s : s + CELLS], val[s : s + CELLS]


def null_directions(gram: Array, plain: Array, index: Sequence[Parameter]) -> Array:
    """Null space (k + 1, d) of the Gram matrix; parameters of which rounding leaves nothing sure are left out.

    Covariances are scaled by their columns' variances: they may have no effect themselves.
    """
    squares = gram.diagonal()
    sure = squares > NOISE * plain
    place = {(g, i): a for a, (g, i, j) in enumerate(index, 1) if i == j}
    own = [0, *(place[g, i] for g, i, _ in index)]
    other = [0, *(place[g, j] for g, _, j in index)]
    sure = sure[own] & sure[other]
    sizes = np.sqrt(squares[own] * squares[other])
    scale = np.where(sure, 1.0 / np.sqrt(np.where(sure, sizes, 1.0)), 0.0)
    values, vectors = np.linalg.eigh(gram * np.outer(scale, scale) + np.diag(np.where(sure, 0.0, 1.0)))
    return np.asarray(vectors[:, values < NULL] * scale[:, None])


def touched_by(products: DesignSums, index: Sequence[Parameter], directions: Sequence[Array]) -> list[Array]:
    """What the fixed effects see of directions Delta: Q'W Delta W Q, and the root of Q'W Delta M Delta W Q."""
    rank, out = products.rank, []
    groups = products.groups
    for direction in directions:
        factors = [np.zeros((g.n_columns, g.n_columns)) for g in groups]
        for value, (g, i, j) in zip(direction[1:], index, strict=True):
            factors[g][i, j] = factors[g][j, i] = value
        spread = [
            np.einsum("rs,jsx->jrx", f, d.reshape(g.n_levels, g.n_columns, rank))
            for f, g, d in zip(factors, groups, products.dense, strict=True)
        ]
        inner = direction[0] * np.eye(rank)
        for d, h in zip(products.dense, spread, strict=True):
            inner = inner + d.T @ h.reshape(len(d), rank)
        square = (2.0 * direction[0]) * inner - direction[0] ** 2 * np.eye(rank)
        # what the sums would be if nothing cancelled
        weights = [float(np.abs(f).max(initial=0.0)) for f in factors]
        norms = [float(np.square(d).sum()) for d in products.dense]
        extent = abs(float(direction[0])) + sum(w * v for w, v in zip(weights, norms, strict=True))
        size = direction[0] ** 2 + sum(
            w * w * v * float(np.abs(b).max(initial=0.0))
            for w, v, b in zip(weights, norms, products.blocks, strict=True)
        )
        for g in range(len(groups)):
            for h in range(g, len(groups)):
                for rows, others, cells in cells_of(products, g, h):
                    part = np.einsum("cru,crt,ctv->uv", spread[g][rows], cells, spread[h][others], optimize=True)
                    square = square + (part if g == h else part + part.T)
        sizes, vectors = np.linalg.eigh(square - inner @ inner)
        keep = sizes > VISIBLE * float(size)
        out.append(vectors[:, keep] * np.sqrt(sizes[keep] / float(size)))
        if np.abs(inner).max(initial=0.0) > VISIBLE * extent:
            out.append(inner / extent)
    return out
