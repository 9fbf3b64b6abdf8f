"""What the criterion does not see of the parameters of structured covariances, whatever the response.

The REML criterion depends on V(phi) through M V M only, M the projection that takes the fixed effects out (M = I for
maximum likelihood). Where V is not linear in its parameters a direction that changes nothing is one in the null space
of

    G_ab = tr(M V_a M V_b),     V_a = dV / dphi_a (a = 0: the scale, V itself)                                     (1)

at a point in general position: the start, moved at random. The estimate and the variance of L beta do not depend on
such a direction Delta if L (X'X)^-1 X'Delta = 0, as in `core.identifiability`.

Where levels are related, V_a = Z (A x E) Z' has no small blocks. Then (1) is replaced by its estimate from a few random
vectors, <M V_a M w, M V_b M w>, in which the same directions are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.identifiability import TOUCHED, Unidentified, orthonormal
from fastlmm_core.core.parameter_gram import NULL, VISIBLE, gram_of_parameters, touched_by
from fastlmm_core.core.structures.fixed_space import FixedSpace

if TYPE_CHECKING:
    from fastlmm_core.core.residuals.criterion import PatternCriterion
    from fastlmm_core.core.structures.equations import Equations
    from fastlmm_core.core.structures.equations_fit import EquationsModel
    from fastlmm_core.core.structures.structured import StructuredModel

__all__ = ["unseen_by_equations", "unseen_by_patterns", "unseen_by_products"]

Array = NDArray[np.float64]

PARTS = 1e-5
"""Part of a parameter in a direction, in units of what it does to V, above which it takes part."""

WIDEST = 40
"""Effects a level beyond which crossed structures are not searched: the products grow with the fourth power."""

MOST = 400
"""Parameters beyond which a structure is not searched."""

PROBES = 16
"""Random vectors, besides one a column of the widest term."""

LONG = 100_000
"""Rows from which on one random vector says more than `PROBES` of them do elsewhere."""

FEW_PROBES = 2
"""Random vectors, besides one a column of the widest term, from `LONG` on."""

KEPT = 1 << 22
"""Numbers of one chunk of random vectors' images."""


def general(start: Array) -> Array:
    """A point in general position near a start."""
    return np.asarray(start + 0.2 * np.random.default_rng(0).normal(size=len(start)))


def null_space(gram: Array, plain: Array) -> Array:
    """Null space (r, d) of a Gram matrix; ``plain`` (r,) is its diagonal before anything was taken from it."""
    size = np.sqrt(np.where(plain > 0.0, plain, 1.0))
    left = gram.diagonal() > NULL * plain  # of the others the projection leaves nothing but rounding
    scale = np.where(left, 1.0 / np.sqrt(np.where(left, gram.diagonal(), 1.0)), 0.0)
    values, vectors = np.linalg.eigh(gram * np.outer(scale, scale) + np.diag(np.where(left, 0.0, 1.0)))
    unseen = np.diag(1.0 / size)[:, ~left]
    out = np.column_stack([unseen, vectors[:, values < NULL] * scale[:, None]])
    return np.asarray(out / np.maximum(np.abs(out * size[:, None]).max(axis=0, initial=0.0), 1e-300))


def summed_up(
    null: Array, plain: Array, owners: Sequence[tuple[int, int] | None], basis: Array, reml: bool
) -> Unidentified:
    """The directions as `Unidentified`; ``owners`` (r,) has a parameter's term and that one's width, None elsewhere."""
    size = np.sqrt(np.where(plain > 0.0, plain, 1.0))
    part = np.abs(null * size[:, None]).max(axis=1) > PARTS
    terms = sorted({owner for owner, p in zip(owners, part, strict=True) if p and owner is not None})
    flat = tuple((k, i, j) for k, l in terms for j in range(l) for i in range(j, l))
    residual = any(p and owner is None for owner, p in zip(owners, part, strict=True))
    return Unidentified((), (), flat, np.zeros(0, np.bool_), basis, reml, residual)


def unseen_by_patterns(criterion: PatternCriterion) -> Unidentified | None:
    """Search a model of independent units, from the moments of its patterns."""
    model, p = criterion.model, criterion.p if criterion.reml else 0
    r = model.n
    if r > MOST:
        return None
    phi = general(model.start())
    gram, plain = np.zeros((r + 1, r + 1)), np.zeros(r + 1)
    fixed = np.zeros((r + 1, p, p))
    first = np.zeros((criterion.p + 1,) * 2)
    first[:p, :p] = np.eye(p)
    directions = []
    for part, at in zip(criterion.parts, criterion.prepared, strict=True):
        R, S = model.values(phi, at)
        V = np.concatenate([R[None], np.moveaxis(S, 2, 0)])  # (r + 1, k, m, m)
        directions.append(V)
        flat = V.reshape(r + 1, -1)
        weighted = (V * part.counts[:, None, None]).reshape(r + 1, -1)
        gram += flat @ weighted.T
        plain += np.einsum("ax,ax->a", flat, weighted)
        if p:
            K = part.scores(first)
            gram -= 2.0 * (V @ K).reshape(r + 1, -1) @ flat.T
            fixed += [part.products(v)[:p, :p] for v in V]
    gram += np.einsum("aij,bij->ab", fixed, fixed)
    null = null_space(0.5 * (gram + gram.T), plain)
    if not null.shape[1]:
        return None
    touched = []
    for c in null.T if p else ():
        square = np.zeros((p, p))
        for part, V in zip(criterion.parts, directions, strict=True):
            delta = np.tensordot(c, V, axes=1)
            square += part.products(delta @ delta)[:p, :p]
        sizes, vectors = np.linalg.eigh(square)
        keep = sizes > VISIBLE * max(float(sizes[-1]), 1.0 / criterion.nu)
        touched.append(vectors[:, keep])
    owners: list[tuple[int, int] | None] = [None] * (r + 1)
    for k, (term, where) in enumerate(zip(model.effects, model.of_effects, strict=True)):
        owners[where.start + 1 : where.stop + 1] = [(k, term.covariance.l)] * term.n
    return summed_up(null, plain, owners, orthonormal(touched, criterion.p), criterion.reml)


def unseen_by_products(model: StructuredModel) -> Unidentified | None:
    """Search a model of structured effects on any factors, from its cross-products."""
    products = model.products
    if max(g.n_columns for g in products.groups) > WIDEST or model.n_parameters > MOST:
        return None
    phi = general(model.start())
    place = {
        k: (g, o) for g, group in enumerate(products.groups) for k, o in zip(group.terms, group.offsets, strict=True)
    }
    index, blocks = [], []
    owners: list[tuple[int, int] | None] = [None]
    for k, (covariance, T, where) in enumerate(zip(model.covariances, model.transforms, model.slices, strict=True)):
        g, o = place[k]
        rows, columns = np.tril_indices(covariance.l)
        index += [(g, o + int(i), o + int(j)) for i, j in zip(rows, columns, strict=True)]
        back = np.linalg.solve(products.transforms[k], T)
        moved = back @ covariance.directions(phi[where]) @ back.T
        block = np.zeros((len(rows), model.n_parameters))
        block[:, where] = moved[:, rows, columns].T
        blocks.append(block)
        owners += [(k, covariance.l)] * covariance.n
    chain = np.zeros((len(index) + 1, model.n_parameters + 1))
    chain[0, 0] = 1.0
    chain[1:, 1:] = np.concatenate(blocks)
    gram, _ = gram_of_parameters(products, index, model.reml)
    whole, _ = gram_of_parameters(products, index, False) if model.reml else (gram, None)
    plain = np.asarray((chain.T @ whole @ chain).diagonal())
    null = null_space(chain.T @ gram @ chain, plain)
    if not null.shape[1]:
        return None
    touched = touched_by(products, index, list((chain @ null).T)) if model.reml else []
    return summed_up(null, plain, owners, orthonormal(touched, products.rank), model.reml)


class Images:
    """What the scale's V_0 and the derivatives V_a make of columns, rows times the roots of weights.

    V_0 = I and no others before those of the terms, V_a = Z (A x E_a) Z', unless residuals have a structure.
    """

    def __init__(self, model: EquationsModel, equations: Equations) -> None:
        self.model, self.equations = model, equations
        phi = general(model.general_start())
        self.of_residual = model.residual_images(phi)
        self.directions = [c.directions(phi[where]) for c, where in zip(model.covariances, model.slices, strict=True)]

    def chunks(self, columns: int) -> list[slice]:
        """Columns that are handled at once."""
        step = max(1, KEPT // (self.model.n * (self.model.n_parameters + 1)))
        return [slice(i, i + step) for i in range(0, columns, step)]

    def __call__(self, columns: Array) -> Array:
        """(r + 1, n, c) of columns (n, c)."""
        out = np.empty((self.model.n_parameters + 1, *columns.shape))
        first = self.of_residual(columns)
        at = len(first)
        out[:at] = first
        for k, directions in enumerate(self.directions):
            out[at : at + len(directions)] = self.equations.images_of_rows(k, directions, columns)
            at += len(directions)
        return out

    def along(self, direction: Array, columns: Array) -> Array:
        """The direction's combination (n, c) of them."""
        parts = [np.tensordot(direction, self(columns[:, part]), axes=1) for part in self.chunks(columns.shape[1])]
        return np.column_stack([np.zeros((self.model.n, 0)), *parts])


def unseen_by_equations(
    model: EquationsModel, equations: Equations
) -> tuple[Unidentified | None, tuple[NDArray[np.bool_], ...]]:
    """Search a model of known relationships and sparse fixed effects.

    Besides what is found: of each sparse factor, the levels (q,) whose variances depend on it.
    """
    r = model.n_parameters
    ends = np.cumsum([0, *(int(t.n_levels or 0) for t in model.sparse)])
    depends = np.zeros(int(ends[-1]), np.bool_)
    if not 0 < r <= MOST:
        return None, tuple(np.split(depends, ends[1:-1]))
    images, fixed = Images(model, equations), FixedSpace(model.sparse, model.root, model.Q)
    probes = PROBES if model.n < LONG else FEW_PROBES
    noise = np.random.default_rng(0).normal(size=(model.n, probes + max(equations.widths)))
    gram, plain = np.zeros((r + 1, r + 1)), np.zeros(r + 1)
    for part in images.chunks(noise.shape[1]):
        w = noise[:, part]
        whole = images(w)
        plain += np.square(whole).sum(axis=(1, 2))
        seen = np.stack([fixed.left(v) for v in images(fixed.left(w))]) if model.reml else whole
        gram += np.tensordot(seen, seen, axes=([1, 2], [1, 2]))
    plain, gram = plain / noise.shape[1], gram / noise.shape[1]
    null = null_space(gram, plain)
    if not null.shape[1]:
        return None, tuple(np.split(depends, ends[1:-1]))
    touched = []
    for c in null.T if model.reml else ():
        T = images.along(c, fixed.weights)
        sizes, vectors = np.linalg.eigh(T.T @ T)
        keep = sizes > VISIBLE * max(float(sizes.max(initial=0.0)), 1.0 / equations.nu)
        touched.append(vectors[:, keep])
        if model.sparse:
            moved = np.linalg.norm(fixed.sparse_coefficients(images.along(c, noise)), axis=1)
            depends |= moved > TOUCHED * np.linalg.norm(fixed.sparse_coefficients(noise), axis=1) / np.sqrt(model.n)
    owners: list[tuple[int, int] | None] = [None] * (1 + r - sum(c.n for c in model.covariances))
    for k, covariance in enumerate(model.covariances):
        owners += [(k, covariance.l)] * covariance.n
    found = summed_up(null, plain, owners, orthonormal(touched, model.rank), model.reml)
    return found, tuple(np.split(depends, ends[1:-1]))
