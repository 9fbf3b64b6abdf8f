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
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.sparse import csr_array

from fastlmm_core._native.criterion.row_forms import explicit_parts, row_forms
from fastlmm_core._native.rows.crossprod import sort_rows
from fastlmm_core._native.tail.tail import DenseTail, EmptyTail
from fastlmm_core.core import CrossProducts, Objective
from fastlmm_core.core.threads import one_blas_thread

__all__ = ["Explicit", "JointInverse", "RowSet", "row_set"]

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


@dataclass(frozen=True)
class Explicit:
    """The random effects' block of the inverse in parts: Z H Z' = V S^-1 V' + Z_1 K Z_1', V = Z_t Lambda - Z_1 U.

    Attributes
    ----------
    inverse : (m, m)
        S^-1.
    k_lead : (q, l, l)
    u : (q l, m) sparse
        K_i B_i Lambda_t.
    factors : list of (l, l)
        Conditioned relative factors by grouping factor.
    offsets : list of (q,)
        Tail column at which each level of each further factor begins.
    """

    inverse: Array
    k_lead: Array
    u: csr_array
    factors: list[Array]
    offsets: list[NDArray[np.int64]]

    def random_covariance(self, rows: RowSet) -> Array:
        """Z H Z' of the rows, (n, n)."""
        n, l = rows.z[0].shape
        codes = rows.codes[0]
        there = codes >= 0
        same = there[:, None] & (codes[:, None] == codes[None, :])
        z = rows.z[0]
        out: Array = np.where(same, np.einsum("ij,ijk->ik", z, self.k_lead[codes]) @ z.T, 0.0)
        if not len(self.inverse):
            return out
        at = np.flatnonzero(there)
        columns = codes[at, None] * l + np.arange(l)
        z_lead = csr_array((-z[at].ravel(), (np.repeat(at, l), columns.ravel())), shape=(n, self.u.shape[0]))
        v = csr_array(z_lead @ self.u)
        for factor, offset, level, z in zip(self.factors[1:], self.offsets, rows.codes[1:], rows.z[1:], strict=True):
            at = np.flatnonzero(level >= 0)
            columns = offset[level[at], None] + np.arange(len(factor))
            data = ((z[at] @ factor).ravel(), (np.repeat(at, len(factor)), columns.ravel()))
            v = v + csr_array(data, shape=v.shape)
        used = np.unique(v.indices)
        if 2 * len(used) < len(self.inverse):
            v = v[:, used]
            return out + v @ (v @ self.inverse[np.ix_(used, used)]).T
        return out + v @ (v @ self.inverse).T


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
        self.theta: Array = objective.to_conditioned(theta)
        cross, plan = objective.cross, objective.plan
        rank = cross.conditioning.rank
        lead = cross.groups[0]
        with one_blas_thread():
            gamma, mode_lead, mode_tail, ld, _ = objective.evaluator.modes(self.theta)
            right = np.ascontiguousarray(cross.dense[0][:, :rank].T)
            tail = np.ascontiguousarray(objective.evaluator.values.dense_tail[:rank], dtype=np.float64)
            b_lead, b_tail, _, _ = objective.evaluator.solve(self.theta, right, tail)
        self.l_x: Array = ld[:rank, :rank]
        residual_ss = (ld[-1, -1] * cross.conditioning.y_scale) ** 2
        self.scale = float(residual_ss / objective.evaluator.nu)
        self.sigma2 = self.scale * cross.conditioning.weight_scale
        blocks = [b_lead.T.reshape(lead.n_levels, lead.n_columns, rank)]
        for group, offset in zip(cross.groups[1:], plan.offsets, strict=True):
            blocks.append(b_tail.T[offset[:, None] + np.arange(group.n_columns)])
        self.n_blocks: tuple[Array, ...] = tuple(blocks)
        self.gamma: Array = gamma
        modes = [
            offset[:, None] + np.arange(g.n_columns) for g, offset in zip(cross.groups[1:], plan.offsets, strict=True)
        ]
        self.modes: tuple[Array, ...] = (mode_lead, *(mode_tail[where] for where in modes))

    def predictions(self, rows: RowSet) -> Array:
        """Predictions x'beta-hat + z'b-hat (n,), user's units, up to a constant of the row that is free of theta."""
        out = rows.x @ self.gamma
        for codes, z, b in zip(rows.codes, rows.z, self.modes, strict=True):
            out += np.where(codes >= 0, np.einsum("ij,ij->i", z, b[codes]), 0.0)
        return self.objective.cross.conditioning.y_scale * out

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
        n, plan, evaluator = len(rows), self.objective.plan, self.objective.evaluator
        groups = self.objective.cross.groups
        with one_blas_thread():
            h_lead, _ = evaluator.cond_var(self.theta)
            lead = np.where(rows.codes[0] < 0, groups[0].n_levels, rows.codes[0]).astype(np.int32)
            ptr, order = sort_rows(lead, groups[0].n_levels + 1)
            starts = np.empty((n, len(groups) - 1), np.int64)
            for h, offset in enumerate(plan.offsets):
                codes = rows.codes[h + 1]
                starts[:, h] = np.where(codes < 0, -1, offset[codes])
            z_tail = np.hstack(rows.z[1:]) if len(groups) > 1 else np.empty((n, 0))
            z_tail = np.ascontiguousarray(z_tail)
            complete = isinstance(plan.tail, DenseTail)
            z_lead = np.ascontiguousarray(rows.z[0])
            out: Array = row_forms(evaluator, h_lead, ptr, order, z_lead, starts, z_tail, complete)
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
            lead, tail = self.functionals(part)
            b_lead, b_tail = self.solve(lead, tail)
            values[s : s + SOLVES] = np.einsum("ij,ij->i", lead, b_lead) + np.einsum("ij,ij->i", tail, b_tail)
        return values[inverse.ravel()]

    def functionals(self, rows: RowSet) -> tuple[Array, Array]:
        """Vectors z of the rows, as dense vectors over the leading factor (n, q l) and the tail (n, m)."""
        plan, groups = self.objective.plan, self.objective.cross.groups
        at = np.arange(len(rows))
        lead = np.zeros((len(rows), groups[0].size))
        tail = np.zeros((len(rows), sum(group.size for group in groups[1:])))
        for h, (group, codes, z) in enumerate(zip(groups, rows.codes, rows.z, strict=True)):
            there = np.flatnonzero(codes >= 0)
            start = codes[there] * group.n_columns if h == 0 else plan.offsets[h - 1][codes[there]]
            columns = start[:, None] + np.arange(group.n_columns)
            (lead if h == 0 else tail)[at[there][:, None], columns] = z[there]
        return lead, tail

    def solve(self, lead: Array, tail: Array) -> tuple[Array, Array]:
        """H times the vectors given, by leading factor and tail."""
        with one_blas_thread():
            b_lead, b_tail, _, _ = self.objective.evaluator.solve(self.theta, lead, tail)
        return b_lead, b_tail

    def covariance(self, rows: RowSet) -> Array:
        """Joint covariance (n, n) of the combinations, over `scale`."""
        half = self.half(rows)
        out: Array = half @ half.T + self.random_covariance(rows)
        return 0.5 * (out + out.T)

    def random_covariance(self, rows: RowSet) -> Array:
        """Z H Z' of the rows, (n, n): from the inverse itself where it can be held, by a solve a row otherwise."""
        if self.explicit is not None:
            return self.explicit.random_covariance(rows)
        n = len(rows)
        out = np.zeros((n, n))
        all_lead, all_tail = self.functionals(rows)
        for s in range(0, n, SOLVES):
            b_lead, b_tail = self.solve(all_lead[s : s + SOLVES], all_tail[s : s + SOLVES])
            out[s : s + SOLVES] = b_lead @ all_lead.T + b_tail @ all_tail.T
        return out

    @cached_property
    def explicit(self) -> Explicit | None:
        """The inverse as arrays, where the tail's is dense and a copy of it fits."""
        plan, evaluator = self.objective.plan, self.objective.evaluator
        if not isinstance(plan.tail, (DenseTail, EmptyTail)) or 16 * plan.tail.m**2 > self.objective.control.n_bytes:
            return None
        groups = self.objective.cross.groups
        with one_blas_thread():
            evaluator.cond_var(self.theta)
            inverse, k_lead, lam = explicit_parts(evaluator)
        q, l, m = groups[0].n_levels, groups[0].n_columns, plan.tail.m
        u = csr_array((q * l, m))
        if m:
            # level i's strips are l rows of one pattern, one after another
            ptr, idx = np.asarray(plan.arrays["ptr"]), np.asarray(plan.arrays["idx"])
            widths = np.repeat(np.diff(ptr), l)
            ends = np.cumsum(widths)
            first = np.repeat(ptr[:-1], l)
            columns = idx[np.arange(ends[-1]) + np.repeat(first - (ends - widths), widths)]
            u = csr_array((evaluator.arrays["u"].copy(), columns, np.append(0, ends)), shape=(q * l, m))
        ends = np.cumsum([0, *(g.n_columns**2 for g in groups)])
        factors = [lam[a:b].reshape(g.n_columns, -1) for a, b, g in zip(ends[:-1], ends[1:], groups, strict=True)]
        return Explicit(inverse, k_lead, u, factors, plan.offsets)
