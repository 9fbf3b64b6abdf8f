"""The inverse of the mixed-model equations, as far as it is asked for: the joint covariance of beta-hat and b-hat - b.

With H = Lambda (Lambda'Z'WZ Lambda + I)^-1 Lambda' (finite at a singular Lambda), N = H Z'WX and
G = (X'V^-1X)^-1 = (L_X L_X')^-1:

    Cov(beta-hat)           = sigma^2 G                     Cov(b-hat - b) = sigma^2 (H + N G N')
    Cov(beta-hat, b-hat - b) = -sigma^2 G N'                  (Henderson 1975; Robinson 1991, section 7.5)

so that a combination x'beta + z'b has prediction variance  sigma^2 (z'Hz + |L_X^-1 g|^2),  g = x - N'z.  The covariance
of the parameters is that of the estimate at known theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.sparse import csr_array

from fastlmm_core.core import CrossProducts, ExplicitInverse, Objective
from fastlmm_core.lazy import cached_property

__all__ = ["JointInverse", "RowSet", "row_set"]

Array = NDArray[np.float64]
Part = tuple[NDArray[np.integer], Array | None] | None

CHUNK = 1 << 16
"""Rows handled at a time where (n, rank) matrices are formed."""

SOLVES = 64
"""Right-hand sides solved at once."""


@dataclass(frozen=True)
class RowSet:
    """Combinations x'beta + z'b, one a row, in the fit's conditioned coordinates.

    Attributes
    ----------
    x : (n, rank)
    codes : tuple of (n,) int64
        Level of each grouping factor (the core's groups, the leading one first), -1 where none is met.
    z : tuple of (n, l)
    """

    x: Array
    codes: tuple[NDArray[np.int64], ...]
    z: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[np.integer]) -> RowSet:
        """Some of the rows."""
        return RowSet(self.x[rows], tuple(c[rows] for c in self.codes), tuple(z[rows] for z in self.z))


def row_set(cross: CrossProducts, X: Array | None, parts: Sequence[Part], n: int | None = None) -> RowSet:
    """Rows in the user's coordinates to those of the fit.

    Parameters
    ----------
    cross : CrossProducts
    X : (n, p) or None
        None leaves the fixed effects out.
    parts : sequence, one a term
        None to leave the term out, or (codes, z): codes (n,), -1 for no level, and z (n, l) or None for ones.
    n : int, optional
        Number of rows, where X is None.

    Returns
    -------
    RowSet
    """
    c = cross.conditioning
    n = len(X) if X is not None else int(n or 0)
    x = np.zeros((n, c.rank)) if X is None else solve_triangular(c.r[:-1, :-1], X[:, c.keep].T, trans="T").T
    all_codes, all_z = [], []
    for group in cross.groups:
        codes, z = np.full(n, -1, np.int64), np.zeros((n, group.n_columns))
        for k, o in zip(group.terms, group.offsets, strict=True):
            part = parts[k]
            if part is None:
                continue
            transform = cross.transforms[k]
            there = part[0] >= 0
            codes[there] = part[0][there]
            columns = np.ones((n, 1)) if part[1] is None else part[1]
            z[:, o : o + len(transform)] = np.where(there[:, None], columns @ transform, 0.0)
        all_codes.append(codes)
        all_z.append(z)
    return RowSet(x, tuple(all_codes), tuple(all_z))


def explicit_covariance(explicit: ExplicitInverse, rows: RowSet) -> Array:
    """Z H Z' of the rows, (n, n), from the inverse itself."""
    n, l = rows.z[0].shape
    codes = rows.codes[0]
    there = codes >= 0
    same = there[:, None] & (codes[:, None] == codes[None, :])
    z = rows.z[0]
    out: Array = np.where(same, np.einsum("ij,ijk->ik", z, explicit.k_lead[codes]) @ z.T, 0.0)
    if not len(explicit.inverse):
        return out
    at = np.flatnonzero(there)
    columns = codes[at, None] * l + np.arange(l)
    z_lead = csr_array((-z[at].ravel(), (np.repeat(at, l), columns.ravel())), shape=(n, explicit.u.shape[0]))
    v = csr_array(z_lead @ explicit.u)
    for factor, offset, level, z in zip(explicit.factors[1:], explicit.starts, rows.codes[1:], rows.z[1:], strict=True):
        at = np.flatnonzero(level >= 0)
        columns = offset[level[at], None] + np.arange(len(factor))
        data = ((z[at] @ factor).ravel(), (np.repeat(at, len(factor)), columns.ravel()))
        v = v + csr_array(data, shape=v.shape)
    used = np.unique(v.indices)
    if 2 * len(used) < len(explicit.inverse):
        v = v[:, used]
        return out + v @ (v @ explicit.inverse[np.ix_(used, used)]).T
    return out + v @ (v @ explicit.inverse).T


class JointInverse:
    """Quadratic and bilinear forms in the inverse of the mixed-model equations at one theta.

    Parameters
    ----------
    objective : Objective
        Its workspace is used, and must be this object's alone.
    theta : (n_theta,)
        In the user's coordinates.

    Attributes
    ----------
    sigma2 : float
        Residual variance at theta, in the user's units.
    scale : float
        Forms in conditioned coordinates times this are variances in the user's units.
    n_blocks : tuple of (q, l, rank)
        N by grouping factor.
    l_x : (rank, rank)
        Lower factor of X'V^-1X.
    gamma : (rank,)
        Fixed effects of the response's residual on X, over its norm.
    modes : tuple of (q, l)
        Conditional modes by grouping factor, likewise.
    """

    def __init__(self, objective: Objective, theta: Array) -> None:
        self.objective = objective
        self.at = objective.at(theta)
        cross = self.cross = objective.cross
        rank = cross.conditioning.rank
        modes = self.at.modes
        blocks, _ = self.at.solve([dense[:, :rank] for dense in cross.dense])
        self.l_x: Array = modes.ld[:rank, :rank]
        residual_ss = (modes.ld[-1, -1] * cross.conditioning.y_scale) ** 2
        self.scale = float(residual_ss / objective.nu)
        self.sigma2 = self.scale * cross.conditioning.weight_scale
        self.n_blocks: tuple[Array, ...] = tuple(
            block.reshape(group.n_levels, group.n_columns, rank)
            for block, group in zip(blocks, cross.groups, strict=True)
        )
        self.gamma: Array = modes.gamma
        self.modes: tuple[Array, ...] = modes.b

    def predictions(self, rows: RowSet) -> Array:
        """Predictions x'beta-hat + z'b-hat (n,), user's units, up to a constant of the row that is free of theta."""
        out = rows.x @ self.gamma
        for codes, z, b in zip(rows.codes, rows.z, self.modes, strict=True):
            out += np.where(codes >= 0, np.einsum("ij,ij->i", z, b[codes]), 0.0)
        return self.cross.conditioning.y_scale * out

    def g(self, rows: RowSet) -> Array:
        """X'V^-1-weighted part x - N'z of each row, (n, rank)."""
        out = np.array(rows.x)
        for codes, z, block in zip(rows.codes, rows.z, self.n_blocks, strict=True):
            for s in range(0, len(out), CHUNK):
                part = slice(s, s + CHUNK)
                there = codes[part] >= 0
                out[part] -= np.einsum("ij,ijk->ik", z[part] * there[:, None], block[codes[part]])
        return out

    def half(self, rows: RowSet) -> Array:
        """L_X^-1 g of each row, (n, rank): its squared norm is the fixed effects' share of the variance."""
        return solve_triangular(self.l_x, self.g(rows).T, lower=True).T

    def random_forms(self, rows: RowSet) -> Array:
        """Forms z'Hz of the rows, (n,): the variance of z'b at known beta, over sigma^2."""
        out = self.at.random_forms(rows.codes, rows.z)
        off = np.flatnonzero(np.isnan(out))
        if len(off):  # levels that no row joins: the inverse's entry has to be solved for
            out[off] = self.solved_forms(rows.take(off))
        return out

    def forms(self, rows: RowSet) -> Array:
        """Prediction variance of x'beta + z'b over `scale`, (n,)."""
        out: Array = self.random_forms(rows) + np.einsum("ij,ij->i", *[self.half(rows)] * 2)
        return out

    def solved_forms(self, rows: RowSet) -> Array:
        """Forms z'Hz by a solve for each distinct row."""
        stacked = np.column_stack([*rows.codes, *rows.z])
        _, first, inverse = np.unique(stacked, axis=0, return_index=True, return_inverse=True)
        values = np.empty(len(first))
        for s in range(0, len(first), SOLVES):
            part = rows.take(first[s : s + SOLVES])
            vectors = self.functionals(part)
            values[s : s + SOLVES] = sum(
                np.einsum("ij,ij->j", v, b) for v, b in zip(vectors, self.solve(vectors), strict=True)
            )
        return values[inverse.ravel()]

    def functionals(self, rows: RowSet) -> tuple[Array, ...]:
        """Vectors z of the rows, as dense vectors (q l, n) over the effects of each group."""
        out = []
        for group, codes, z in zip(self.objective.cross.groups, rows.codes, rows.z, strict=True):
            vectors = np.zeros((group.size, len(rows)))
            there = np.flatnonzero(codes >= 0)
            columns = codes[there, None] * group.n_columns + np.arange(group.n_columns)
            vectors[columns, there[:, None]] = z[there]
            out.append(vectors)
        return tuple(out)

    def solve(self, vectors: Sequence[Array]) -> tuple[Array, ...]:
        """H times the vectors given, (q l, n) by group."""
        return self.at.solve(vectors)[0]

    def covariance(self, rows: RowSet) -> Array:
        """Joint covariance (n, n) of the combinations, over `scale`."""
        half = self.half(rows)
        out: Array = half @ half.T + self.random_covariance(rows)
        return 0.5 * (out + out.T)

    def random_covariance(self, rows: RowSet) -> Array:
        """Z H Z' of the rows, (n, n): from the inverse itself where it can be held, by a solve a row otherwise."""
        if self.explicit is not None:
            return explicit_covariance(self.explicit, rows)
        n = len(rows)
        out = np.zeros((n, n))
        vectors = self.functionals(rows)
        for s in range(0, n, SOLVES):
            for part, b in zip(vectors, self.solve([v[:, s : s + SOLVES] for v in vectors]), strict=True):
                out[s : s + SOLVES] += b.T @ part
        return out

    @cached_property
    def explicit(self) -> ExplicitInverse | None:
        """The inverse as arrays, where the engine has all of it and a copy fits."""
        return self.at.explicit(self.objective.control.n_bytes)
