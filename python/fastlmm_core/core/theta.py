"""Covariance parameters: which element of which factor each one is, and the map between users' and conditioned ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.rows.columns import triangle_inverse
from fastlmm_core.core.terms import Group, Shaped, factor_index
from fastlmm_core.lazy import cached_property
from fastlmm_core.records import quick

__all__ = ["SINGULAR", "ThetaMap", "group_factors", "smallest_singular_value", "theta_map"]

Array = NDArray[np.float64]

SINGULAR = 1e-4
"""A diagonal element of a (conditioned) relative factor below this makes a fit singular; lme4's tolerance."""


@quick
@dataclass(frozen=True)
class ThetaMap:
    """The parameters of one design.

    Attributes
    ----------
    index : (n_theta, 3) int64
        Group, row and column of each parameter, in the order of the terms.
    to_conditioned : (n_theta, n_theta)
        Maps the user's theta to the conditioned one.
    held : (k,) int64 or None
        Parameters that stay at zero, since the criterion does not depend on them.
    """

    index: NDArray[np.int64]
    to_conditioned: Array
    held: NDArray[np.int64] | None = None

    @cached_property
    def to_user(self) -> Array:
        """(n_theta, n_theta) the inverse map, lower triangular like the other."""
        return triangle_inverse(self.to_conditioned.T).T

    @cached_property
    def diagonal(self) -> NDArray[np.bool_]:
        """(n_theta,) whether a parameter is a diagonal element."""
        return diagonal_of(self.index.tobytes())

    @cached_property
    def vector_diagonal(self) -> list[int]:
        """Places of the diagonal elements of factors that have others, those held left out."""
        held = () if self.held is None else self.held.tolist()
        return [a for a in vectors_of(self.index.tobytes()) if a not in held]

    @cached_property
    def columns(self) -> list[tuple[int, NDArray[np.int64]]]:
        """For each diagonal element, its place and those of its whole column."""
        same = [(self.index[:, 0] == g) & (self.index[:, 2] == c) for g, _, c in self.index]
        return [(int(a), np.flatnonzero(same[a])) for a in np.flatnonzero(self.diagonal)]

    def canonical(self, theta: Array) -> Array:
        """Signs of the columns (of theta (..., n_theta)) such that diagonals are not negative; same covariance."""
        if theta[..., self.diagonal].min(initial=0.0) >= 0.0:
            return theta
        out = theta.copy()
        for a, column in self.columns:
            out[..., column] *= np.where(theta[..., a] < 0, -1.0, 1.0)[..., None]
        return out

    @cached_property
    def factors(self) -> list[list[list[int]]]:
        """Places of each factor's rows, those that are held left out: a lower triangle a term, or one a column."""
        return factors_of(self.index.tobytes(), () if self.held is None else tuple(self.held.tolist()))

    def is_singular(self, theta: Array) -> bool:
        """Whether the smallest singular value of some factor of conditioned ``theta`` (n_theta,) is below tolerance.

        A term's columns are orthonormal in these coordinates, so singular values depend neither on the covariates'
        units nor on their origins, as single elements do. True for a negative diagonal element too.
        """
        values = theta.tolist()  # a few floats: quicker than through arrays
        for rows in self.factors:
            det = 1.0
            for row in rows:
                if values[row[-1]] < SINGULAR:
                    return True
                det *= values[row[-1]]
            l = len(rows)
            if l > 1:
                size = sum([values[a] * values[a] for row in rows for a in row])
                # det is at most the smallest singular value times the mean square of the others (to the power needed)
                if (
                    det * ((l - 1) / size) ** (0.5 * (l - 1)) < SINGULAR
                    and smallest_singular_value(rows, values) < SINGULAR
                ):
                    return True
        return False


@lru_cache(maxsize=256)  # models of one shape are many
def diagonal_of(index_bytes: bytes) -> NDArray[np.bool_]:
    """`ThetaMap.diagonal`, read-only, of an index (n_theta, 3) as bytes."""
    index = np.frombuffer(index_bytes, np.int64).reshape(-1, 3)
    out: NDArray[np.bool_] = index[:, 1] == index[:, 2]
    out.setflags(write=False)
    return out


@lru_cache(maxsize=256)
def vectors_of(index_bytes: bytes) -> list[int]:
    """Places of the diagonal elements of factors that have others, of an index (n_theta, 3) as bytes."""
    index = np.frombuffer(index_bytes, np.int64).reshape(-1, 3).tolist()
    vectors = {g for g, i, j in index if i != j}
    return [a for a, (g, i, j) in enumerate(index) if i == j and g in vectors]


@lru_cache(maxsize=256)
def factors_of(index_bytes: bytes, held: tuple[int, ...]) -> list[list[list[int]]]:
    """`ThetaMap.factors` of an index (n_theta, 3) as bytes."""
    index = np.frombuffer(index_bytes, np.int64).reshape(-1, 3).tolist()
    out, a = [], 0
    while a < len(index):
        g, r, _ = index[a]
        l = 1
        while a + l < len(index) and index[a + l][0] == g and index[a + l][2] == r:
            l += 1
        place = {(i, j): b for b, (_, i, j) in enumerate(index[a : a + l * (l + 1) // 2], a)}
        kept = [i for i in range(r, r + l) if place[i, i] not in held]
        out.append([[place[i, j] for j in kept if j <= i] for i in kept])
        a += l * (l + 1) // 2
    return [rows for rows in out if rows]


def group_factors(index: NDArray[np.int64], theta: Array, widths: list[int]) -> list[Array]:
    """Relative covariance factor (l, l) of each group, its terms' factors along the diagonal."""
    factors = [np.zeros((l, l)) for l in widths]
    for (g, i, j), value in zip(index.tolist(), theta.tolist(), strict=True):
        factors[g][i, j] = value
    return factors


def smallest_singular_value(rows: list[list[int]], values: list[float]) -> float:
    """Smallest singular value of a lower triangle."""
    factor = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        factor[i, : i + 1] = [values[a] for a in row]
    return float(np.linalg.svd(factor, compute_uv=False)[-1])


def theta_map(
    terms: Sequence[Shaped], groups: Sequence[Group], transforms: Sequence[Array], weight_scale: float
) -> ThetaMap:
    """The parameters of some terms; conditioning makes column c of L into T^-1 L[:, c]."""
    index = index_of(tuple(groups), tuple([(term.n_columns, term.cov) for term in terms]))
    out = np.zeros((len(index), len(index)))
    at, root = 0, sqrt(weight_scale)
    for term, t in zip(terms, transforms, strict=True):
        l = len(t)
        if l == 1:
            out[at, at] = root / t[0, 0]
            at += 1
            continue
        inverse = triangle_inverse(t.T).T * root
        for c in range(l):
            width = 1 if term.cov == "diag" else l - c
            out[at : at + width, at : at + width] = inverse[c : c + width, c : c + width]
            at += width
    return ThetaMap(index, out)


@lru_cache(maxsize=256)
def index_of(groups: tuple[Group, ...], shapes: tuple[tuple[int, str], ...]) -> NDArray[np.int64]:
    """`ThetaMap.index`, read-only, of terms of the given columns and covariances."""
    place = {k: (g, o) for g, group in enumerate(groups) for k, o in zip(group.terms, group.offsets, strict=True)}
    rows = [
        (g, o + i, o + j) for k, shape in enumerate(shapes) for g, o in (place[k],) for i, j in factor_index(*shape)
    ]
    out = np.array(rows, np.int64)
    out.setflags(write=False)
    return out
