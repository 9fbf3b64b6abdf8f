"""Which covariance parameters the criterion cannot see, found from the cross-products before a fit.

With V = sigma^2 W^-1 + sum_k Z_k (I x D_k) Z_k' the REML criterion depends on V through M V M only, M the projection
that takes the fixed effects out (Harville 1974; for maximum likelihood M = I). The map from the symmetric matrices D_k
and sigma^2 to M V M is linear, so a direction in which nothing changes is one in its null space, whatever y and theta
are: one term whose columns lie in the span of X (or are zero, or repeat one another), or several terms whose
contributions cancel.

1. Counting shows most models to be sound. sum_k M Z_k N_k Z_k' M = 0 with N_k = I x D_k has rank(M Z_k N_k Z_k' M) at
   least rank(N_k) - 2 dim null(M Z_k), and at least q_k levels where D_k is not zero; so a factor with more levels
   than that loss and all effects of the other factors together has D_k = 0.
2. Directions c within a term with M Z_j c = 0 for each level j: small eigenvalues of sum_j Z_j'M Z_j, confirmed from
   the rows. As many columns of the term are *held*: their variances stay at zero, which costs nothing, since
   those of the columns kept span what the criterion can see.
3. The null space of the Gram matrix tr(M V_a M V_b) of what is left. A term whose contributions are those of positive
   semidefinite matrices of another one (or of the residual variance) is held at zero; other directions stay free.

The estimate and the variance of L beta do not depend on such a direction Delta if L (X'WX)^-1 X'W Delta = 0, up to
parts that cancel: these L are the rows orthogonal to `Unidentified.basis`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.rows.crossprod import level_ranks
from fastlmm_core.core.parameter_gram import Parameter, gram_of_parameters, null_directions, touched_by

if TYPE_CHECKING:
    from fastlmm_core.core.crossprod import DesignProducts
    from fastlmm_core.core.products import DesignSums

__all__ = ["Unidentified", "identify", "is_spanned", "orthonormal", "seems_identified", "spanned_columns"]

Array = NDArray[np.float64]

PIVOT = 1e-10
"""Squared part of a level's column that the earlier ones leave, relative, below which it counts as dependent."""

SUSPECT = 1e-9
"""Mean square that the fixed effects leave of a column, relative, below which the rows are asked."""

SPANNED = 1e-8
"""Norm that the fixed effects leave of a column, relative, below which it lies in their span."""

TOUCHED = 1e-7
"""Size of L on the basis, relative to L, above which the variance of L beta depends on what is not identified."""


@dataclass(frozen=True, eq=False)
class Unidentified:
    """What the criterion does not depend on.

    Attributes
    ----------
    spanned : tuple of (term, columns)
        Columns of terms that are held since the fixed effects span them, or since they depend on the term's others.
    aliased : tuple of (term, other)
        Terms held at zero since their contribution is one of another term's, or of the residual's (None).
    flat : tuple of (term, row, column)
        Elements of relative covariance matrices that take part in other directions; these stay free.
    held : (n_theta,) bool
        Parameters held at zero.
    basis : (rank, d)
        Orthonormal, in coordinates of the conditioned coefficients: variances of rows not orthogonal to it depend on
        what is not identified.
    reml : bool
    residual : bool
        Whether the residual variance takes part in `flat` directions.
    moves : tuple of (1 + n_theta,)
        Changes of the residual variance and of the (conditioned, symmetric) matrices D_k, the elements in the order of
        theta, that leave the criterion as it is.
    """

    spanned: tuple[tuple[int, tuple[int, ...]], ...]
    aliased: tuple[tuple[int, int | None], ...]
    flat: tuple[Parameter, ...]
    held: NDArray[np.bool_]
    basis: Array
    reml: bool
    residual: bool = field(default=False)
    moves: tuple[Array, ...] = field(default=())

    @property
    def terms(self) -> tuple[int, ...]:
        """Places of the terms concerned."""
        found = {k for k, _ in self.spanned} | {k for k, _ in self.aliased} | {k for k, _, _ in self.flat}
        return tuple(sorted(found))

    def determined(self, rows: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether the variance of each row (k, rank) times the conditioned coefficients is determined."""
        size = np.linalg.norm(rows, axis=1)
        return np.asarray(np.linalg.norm(rows @ self.basis, axis=1) <= TOUCHED * size)


def seems_identified(products: DesignSums, reml: bool) -> bool:
    """Whether counting levels proves that every covariance parameter is identified (step 1)."""
    rank = products.rank if reml else 0
    sizes, losses, effects = [], [], []
    for group, blocks in zip(products.groups, products.blocks, strict=True):
        levels, lacking = level_ranks(blocks, PIVOT)
        l = group.n_columns
        sizes.append(levels)
        losses.append(rank if l == 1 else 2 * (rank + lacking))
        effects.append(levels * l)
    if products.n - products.rank <= sum(effects):
        return False
    if counted_out(sizes, losses, effects):
        return True
    if not rank or all(group.n_columns > 1 for group in products.groups):
        return False
    for g, group in enumerate(products.groups):
        if group.n_columns == 1:
            losses[g] = min(losses[g], shared_dimensions(products, g))
    return counted_out(sizes, losses, effects)


def counted_out(sizes: list[int], losses: list[int], effects: list[int]) -> bool:
    """Whether all factors can be taken out one by one, each with more levels left than the others have effects."""
    total, left = sum(effects), list(range(len(sizes)))
    while left:
        for k in left:
            if sizes[k] - losses[k] > total - effects[k]:
                break
        else:
            return False
        left.remove(k)
        total -= effects[k]
    return True


def shared_dimensions(products: DesignSums, g: int) -> int:
    """At least the dimension of what X spans within the span of a factor with one column a level."""
    if products.groups[g].n_levels > 8 * products.rank:
        return products.rank  # good enough
    sizes = products.blocks[g][:, 0, 0]
    squares = np.square(products.dense[g]).sum(axis=1)
    return int(np.divide(squares, sizes, out=np.zeros_like(sizes), where=sizes > 0).sum() + 1e-6)


def spanned_columns(products: DesignSums, reml: bool) -> dict[int, Array]:
    """Directions (l, d) of each term, in its conditioned columns, that the criterion does not see (step 2)."""
    out = {}
    for g, group in enumerate(products.groups):
        dense = products.dense[g].reshape(group.n_levels, group.n_columns, products.rank)
        for k, o in zip(group.terms, group.offsets, strict=True):
            width = products.terms[k].n_columns
            total = products.blocks[g][:, o : o + width, o : o + width].sum(axis=0)
            e = dense[:, o : o + width]
            left = total - np.einsum("jrx,jsx->rs", e, e) if reml else total
            size = max(float(total.diagonal().max()), np.finfo(float).tiny)
            values, vectors = np.linalg.eigh(left)
            if products.terms[k].cov == "diag":  # without covariances there are no combinations
                values, vectors = left.diagonal(), np.eye(width)
            suspects = [(value, v) for value, v in zip(values, vectors.T, strict=True) if value <= SUSPECT * size]
            found = [v for value, v in suspects if products.spans(g, o, v, size, float(value), reml)]
            if found:
                out[k] = np.column_stack(found)
    return out


def is_spanned(products: DesignProducts, g: int, o: int, direction: Array, size: float, reml: bool) -> bool:
    """Whether the columns Z_j c of a term, c a ``direction``, lie in the span of X, from the rows."""
    codes, z = products.codes[g], products.columns[g]
    column = np.ones(products.n) if z is None else z[:, o : o + len(direction)] @ direction
    root = None if products.weights is None else np.sqrt(products.weights)
    column = column if root is None else column * root
    if float(column @ column) <= SPANNED**2 * size:
        return True
    if not reml:
        return False
    levels = np.unique(codes[column != 0.0])
    if len(levels) > products.rank:  # columns of different levels are independent
        return False
    q = np.vstack([products.q(part) for part in products.parts()])
    q = q if root is None else q * root[:, None]
    q = np.linalg.qr(q)[0]
    left = 0.0
    for j in levels:
        part = np.where(codes == j, column, 0.0)
        for _ in range(2):
            part = part - q @ (q.T @ part)
        left += float(part @ part)
    return left <= SPANNED**2 * float(column @ column)


def columns_to_hold(directions: Array) -> tuple[int, ...]:
    """Columns, the latest ones, whose variances may be held: those kept span the complement of the directions."""
    l = len(directions)
    basis = np.linalg.qr(directions)[0]
    complement = np.eye(l) - basis @ basis.T
    kept = np.zeros((l, 0))
    held = []
    for r in range(l):
        v = complement[:, r]
        size = float(np.linalg.norm(v))
        for _ in range(2):
            v = v - kept @ (kept.T @ v)
        if size > 1e-7 and np.linalg.norm(v) > 1e-7 * size:
            kept = np.column_stack([kept, v / np.linalg.norm(v)])
        else:
            held.append(r)
    return tuple(held)


def identify(products: DesignSums, reml: bool, noise: bool = True) -> Unidentified | None:
    """What the criterion of a design does not see; None where everything is identified.

    Parameters
    ----------
    products : DesignSums
    reml : bool
    noise : bool
        Whether V has a residual variance, which a term of one level a row repeats. The linear predictors of a
        generalised model have none.

    Returns
    -------
    Unidentified or None
    """
    if seems_identified(products, reml):
        return None
    theta = products.theta_map
    place = {
        k: (g, o) for g, group in enumerate(products.groups) for k, o in zip(group.terms, group.offsets, strict=True)
    }
    spanned, touched, hold = [], [], set()
    rows = [(int(g), int(i), int(j)) for g, i, j in theta.index]
    moves: list[Array] = []
    for k, directions in spanned_columns(products, reml).items():
        user = products.transforms[k] @ directions
        columns = columns_to_hold(user / np.linalg.norm(user, axis=0))
        spanned.append((k, columns))
        g, o = place[k]
        hold |= {(g, o + c) for c in columns}
        moves += [
            np.array([0.0, *(v[i - o] * v[j - o] if h == g and o <= j <= i < o + len(v) else 0.0 for h, i, j in rows)])
            for v in directions.T
        ]
        if reml:
            group = products.groups[g]
            e = products.dense[g].reshape(group.n_levels, group.n_columns, products.rank)
            part = np.einsum("jrx,rd->xjd", e[:, o : o + len(user)], directions).reshape(products.rank, -1)
            touched.append(part / np.sqrt(products.n))  # the columns have mean square one
    held = np.array([(g, i) in hold or (g, j) in hold for g, i, j in rows], dtype=np.bool_)
    aliased: list[tuple[int, int | None]] = []
    owner = {(g, o + c): k for k, (g, o) in place.items() for c in range(products.terms[k].n_columns)}
    while True:
        free = [a for a in range(len(rows)) if not held[a]]
        index = [rows[a] for a in free]
        gram, plain = gram_of_parameters(products, index, reml)
        if not noise:  # nothing is left of it, so that `null_directions` passes it over
            gram[0], gram[:, 0] = 0.0, 0.0
        null = null_directions(gram, plain, index)
        if not null.shape[1]:
            break
        members = [None, *(owner[g, i] for g, i, _ in index)]
        found = contained_term(products, index, members, null)
        if found is None:
            break
        pair, ways = found
        aliased.append(pair)
        moves += [spread(way, free, len(rows)) for way in ways.T]
        if reml:
            touched += touched_by(products, index, [v for v in null.T if involves(v, members, pair[0])])
        held |= np.array([owner[g, i] == pair[0] for g, i, _ in rows])
    flat: tuple[Parameter, ...] = ()
    residual = False
    if null.shape[1]:
        members_of = {k: [a for a, m in enumerate(members) if m == k] for k in dict.fromkeys(members)}
        flat, residual = flat_parameters(products, index, members_of, place, null)
        moves += [spread(way, free, len(rows)) for way in null.T]
        if reml:
            touched += touched_by(products, index, list(null.T))
    if not spanned and not aliased and not flat:
        return None
    basis = orthonormal(touched, products.rank)
    return Unidentified(tuple(spanned), tuple(aliased), flat, held, basis, reml, residual, tuple(moves))


def spread(way: Array, free: Sequence[int], n_theta: int) -> Array:
    """A direction over the residual variance and the parameters that are free, over all of them; largest element 1."""
    out = np.zeros(1 + n_theta)
    out[[0, *(1 + a for a in free)]] = way / np.abs(way).max()
    return out


def flat_parameters(
    products: DesignSums,
    index: Sequence[Parameter],
    members: dict[int | None, list[int]],
    place: dict[int, tuple[int, int]],
    null: Array,
) -> tuple[tuple[Parameter, ...], bool]:
    """The covariances, in the user's coordinates, that take part in null directions, and whether sigma does."""
    found: list[Parameter] = []
    null = null / np.abs(null).max(axis=0)
    for k, own in members.items():
        if k is None:
            continue
        t, o = products.transforms[k], place[k][1]
        norms = np.linalg.norm(np.linalg.inv(t), axis=0)  # root mean squares of the user's columns
        size = np.zeros(t.shape)
        for direction in null.T:
            d = np.zeros(t.shape)
            for a in own:
                _, i, j = index[a - 1]
                d[i - o, j - o] = d[j - o, i - o] = direction[a]
            size = np.maximum(size, np.abs(t @ d @ t.T) * np.outer(norms, norms))
        found += [(k, i, j) for j in range(len(t)) for i in range(j, len(t)) if size[i, j] > 1e-6]
    return tuple(sorted(found)), bool(np.abs(null[0]).max() > 1e-6)


def involves(direction: Array, members: Sequence[int | None], term: int | None) -> bool:
    """Whether a direction has a part in a term."""
    size = np.abs(direction).max()
    return any(abs(value) > 1e-6 * size for value, k in zip(direction, members, strict=True) if k == term)


def orthonormal(parts: Sequence[Array], rank: int) -> Array:
    """Orthonormal basis (rank, d) of the columns of several matrices of size one; smaller ones are rounding errors."""
    columns = np.column_stack([np.zeros((rank, 0)), *parts])
    if not columns.size:
        return np.zeros((rank, 0))
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > SPANNED])


def contained_term(
    products: DesignSums, index: Sequence[Parameter], members: Sequence[int | None], null: Array
) -> tuple[tuple[int, int | None], Array] | None:
    """A term all of whose contributions are positive semidefinite ones of another term, or of the residual.

    Tried from the narrowest and latest term on. With it the directions that its variances stand for, a column each.
    """
    place = {k: o for group in products.groups for k, o in zip(group.terms, group.offsets, strict=True)}
    terms = sorted({k for k in members if k is not None}, key=lambda k: (products.terms[k].n_columns, -k))
    for k in terms:
        own = [a for a, m in enumerate(members) if m == k]
        for other in [None, *(h for h in sorted(terms, key=lambda h: h) if h != k)]:
            target = [a for a, m in enumerate(members) if m == other]
            rest = [a for a in range(len(members)) if a not in own and a not in target]
            # directions without a part in third terms: combinations with null[rest] = 0
            if rest:
                _, sizes, right = np.linalg.svd(null[rest])
                free = right[np.sum(sizes > 1e-7 * max(1e-300, np.abs(null).max())) :].T
            else:
                free = np.eye(null.shape[1])
            ways = null @ free
            if ways.shape[1] < len(own):
                continue
            solve, _, order, _ = np.linalg.lstsq(ways[own], np.eye(len(own)), rcond=1e-9)
            if order < len(own):
                continue
            image = -(ways @ solve)[target]  # (target, own): D_k = E_a is the same as D_other = image[:, a]
            if preserves(products, index, own, target, other, image, place):
                variances = [n for n, a in enumerate(own) if index[a - 1][1] == index[a - 1][2]]
                return (k, other), (ways @ solve)[:, variances]
    return None


def preserves(
    products: DesignSums,
    index: Sequence[Parameter],
    own: Sequence[int],
    target: Sequence[int],
    other: int | None,
    image: Array,
    place: dict[int, int],
) -> bool:
    """Whether positive semidefinite matrices of a term map to such ones, by the extreme rays and random others."""
    rng = np.random.default_rng(0)
    offset = min(index[a - 1][1] for a in own)
    width = max(index[a - 1][1] for a in own) - offset + 1
    for trial in range(width + 8):
        v = np.eye(width)[trial] if trial < width else rng.normal(size=width)
        given = np.array([v[index[a - 1][1] - offset] * v[index[a - 1][2] - offset] for a in own])
        diag = np.array([index[a - 1][1] == index[a - 1][2] for a in own])
        if len(own) == width and width > 1:  # independent columns
            given = np.where(diag, given, 0.0)
        values = image @ given
        if other is None:
            if values[0] < -1e-9:
                return False
            continue
        l = products.terms[other].n_columns
        d = np.zeros((l, l))
        for a, value in zip(target, values, strict=True):
            _, i, j = index[a - 1]
            d[i - place[other], j - place[other]] = d[j - place[other], i - place[other]] = value
        eigen = np.linalg.eigvalsh(d)
        if eigen[0] < -1e-7 * max(float(np.abs(eigen).max()), 1e-300):
            return False
    return True
