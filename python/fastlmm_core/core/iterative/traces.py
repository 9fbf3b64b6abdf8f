"""The traces of the gradient that need S^-1, by probes with control variates and deflation.

    T_k = tr Z_k'V^-1Z_k = (q_k - tr_k S^-1) / lambda_k^2                    tail factor k of one column
    T_1 = sum_i (R_i B_i Lambda) S^-1 (R_i B_i Lambda)'                      what the leading factor's loses to the tail
    T_v = sum_r v_r (z_r'K z_r + (e_r'Lambda) S^-1 (e_r'Lambda)')            where the rows' weights change by v

The first of a factor of several columns is the sum over its levels of (I - S^-1)_jj between L^-T and L^-1. With z of
independent signs on one column of one factor, x = S^-1 z, and D the blocks of S on its diagonal, a level's columns
each, the estimates are

    sum_j z_j (x - x_1)_j' + column of sum_j D_j^-1,            x_1 = 2 D^-1 z - D^-1 S D^-1 z
    (RB Lambda z)(RB Lambda (x - D^-1 z))' + sum_j Lambda_j D_j^-1 Lambda_j' o N_j
    sum_r v_r ((e_r'Lambda z)(e_r'Lambda (x - D^-1 z)) + z_r'K z_r + e_r'Lambda D^-1 Lambda'e_r)

(e_r as in `_native/iterative/row_sums.pyx`). Their control variates have exact means, D_j^-1 each (Hutchinson 1989; the
Neumann series of D^-1 S gives x_1), and the exact part (I - D_j^-1) between L^-T and L^-1 is (I + C_j LL')^-1 C_j,
which needs no division. What is left of the variance lies in the few directions that D does not see, the constant
first: Q, orthonormal within columns, holds them, its part of the trace is computed outright and probes see the rest,
tr A = sum_c q_c'A q_c + E z~'A z~, z~ = (I - QQ')z (Meyer, Musco, Musco and Woodruff 2021). Unbiased whatever Q is; for
a factor of few levels Q is all of it.

Signs on one column at a time make the estimate of T_k an even function of lambda_k, so that it has a limit at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative import row_sums
from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.iterative.problem import Levels
from fastlmm_core.core.iterative.system import System

__all__ = ["Probes", "Traces", "deflation_basis", "rademacher"]

Array = NDArray[np.float64]

PROBE_TOLERANCE = 1e-7
"""Relative residual of the probes' solves, a variance's worth."""

FEW = 64
"""Levels of a tail term up to which its traces are taken without probes: few levels leave probes nothing to average."""

SUBSPACE_STEPS = 4
"""Of the iteration that finds the deflated directions."""


@dataclass(frozen=True, eq=False)
class Traces:
    """Estimates, one a probe.

    Attributes
    ----------
    lead : (s, l, l)
        T_1.
    tail : tuple of (s, l, l)
        T_k of each tail factor, of which the places of its parameters are meant; NaN where a column's lambda is zero.
    rows : (s, k)
        T_v of each change of the rows' weights.
    """

    lead: Array
    tail: tuple[Array, ...]
    rows: Array


def rademacher(seed: int, stream: int, block: int, m: int) -> Array:
    """Signs (m, 8) of one block of probes: a function of its arguments only."""
    rng = np.random.default_rng([seed, stream, block])
    return rng.integers(0, 2, (m, WIDTH)).astype(np.float64) * 2.0 - 1.0


def deflation_basis(system: System[Levels]) -> Array:
    """Orthonormal (m, 8): subspace iteration on I - G^-1 S G'^-1, D = GG', begun with indicators of the tail terms."""
    problem = system.problem
    u = np.random.default_rng(0).normal(size=(problem.rows.m, WIDTH))
    for f, term in enumerate(problem.tail[:WIDTH]):
        u[:, f] = 0.0
        u[term.columns, f] = 1.0
    u = padded_basis(system.joined(u))
    for _ in range(SUBSPACE_STEPS):
        u = padded_basis(u - system.split(system.apply(system.split_t(u))))
    return u


def is_complete(columns: slice) -> bool:
    """Whether a term has so few levels that all of its directions are taken outright."""
    return len(range(columns.start, columns.stop, columns.step)) <= FEW


def term_basis(u: Array, columns: slice) -> list[Array]:
    """Orthonormal blocks (m, 8) within a term: all unit vectors where these are few, else the term's part of ``u``."""
    out = []
    if not is_complete(columns):
        block = np.zeros_like(u)
        block[columns] = padded_basis(u[columns])
        return [block]
    places = np.arange(columns.start, columns.stop, columns.step)
    for s in range(0, len(places), WIDTH):
        block = np.zeros_like(u)
        own = places[s : s + WIDTH]
        block[own, np.arange(len(own))] = 1.0
        out.append(block)
    return out


def padded_basis(columns: Array) -> Array:
    """Orthonormal basis of the columns (m, 8), in eight columns, the last of them zero where m is less."""
    q = np.linalg.qr(columns)[0]
    out = np.zeros((len(columns), WIDTH))
    out[:, : q.shape[1]] = q
    return out


class Probes:
    """Blocks of eight probes that stay the same through a fit, and the solutions of the last theta to start from.

    Parameters
    ----------
    problem : Levels
    seed : int
    """

    def __init__(self, problem: Levels, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.deflated: list[list[Array]] | None = None
        self.warm: dict[tuple[int, int], Array] = {}

    def deflate(self, system: System[Levels]) -> None:
        """Choose Q anew at some theta."""
        u = system.split_t(deflation_basis(system))
        self.deflated = []
        for term in self.problem.tail:
            self.deflated.append(term_basis(u, term.columns))
        self.warm = {}

    def traces(self, system: System[Levels], blocks: int, changes: Array | None = None) -> Traces:
        """All traces at a theta, from the first ``blocks`` blocks of eight probes.

        Parameters
        ----------
        system : System
        blocks : int
        changes : (n, k), optional
            Changes v of the weights, of rows in the order of the system's.
        """
        problem, l, s = self.problem, self.problem.rows.l, blocks * WIDTH
        if self.deflated is None:
            self.deflate(system)
        assert self.deflated is not None
        exact_lead, exact_tail = controls(system)
        v = np.empty((problem.rows.n, 0)) if changes is None else changes
        exact_rows = v.T @ controlled_leverages(system) if v.shape[1] else np.zeros(0)
        outright = [np.zeros((group.l, group.l)) for group in problem.groups]  # of S^-1 less its control
        probed = [np.zeros((s, group.l, group.l)) for group in problem.groups]
        for f, term in enumerate(problem.tail):
            for k, q in enumerate(self.deflated[f]):
                values, x = self.values(system, f, q, -1 - k)
                outright[term.group][:, term.column] += values.sum(axis=1)
                exact_lead += self.lead_values(system, q, x).sum(axis=0)
                exact_rows = exact_rows + row_values(system, q, x, v).sum(axis=0)
        lead, of_rows = np.empty((s, l, l)), np.empty((s, v.shape[1]))
        for b in range(blocks):
            rows = slice(b * WIDTH, (b + 1) * WIDTH)
            z = rademacher(self.seed, 0, b, problem.rows.m)
            whole_z, whole_x = np.zeros_like(z), np.zeros_like(z)
            for f, term in enumerate(problem.tail):
                if is_complete(term.columns):
                    continue
                part = np.zeros_like(z)
                part[term.columns] = z[term.columns]
                (q,) = self.deflated[f]
                part -= q @ (q.T @ part)
                values, x = self.values(system, f, part, b)
                probed[term.group][rows, :, term.column] = values.T
                whole_z += part
                whole_x += x
            lead[rows] = exact_lead + self.lead_values(system, whole_z, whole_x)
            of_rows[rows] = exact_rows + row_values(system, whole_z, whole_x, v)
        tail = []
        for g, factor in enumerate(system.tail_L):
            found = outright[g] + probed[g]
            tail.append(exact_tail[g] - between((found + found.transpose(0, 2, 1)) / 2, factor))
        return Traces(lead, tuple(tail), of_rows)

    def values(self, system: System[Levels], f: int, z: Array, block: int) -> tuple[Array, Array]:
        """z_j (x - x_1)_j summed over levels, by column (l, 8), and x = S^-1 z (m, 8), for z on columns of term f."""
        term = self.problem.tail[f]
        group = self.problem.groups[term.group]
        scale = float(system.theta[term.parameter]) ** 2
        if scale == 0.0:
            return np.zeros((group.l, WIDTH)), z.copy()
        near = system.jacobi(z)
        first = 2.0 * near - system.jacobi(system.apply(near))
        rows = float(system.curvature[term.group][:, term.column, term.column].mean())
        share = min(1.0, scale * rows)  # what is left is divided by lambda^2
        x = system.solve(z, self.warm.get((f, block), first), PROBE_TOLERANCE * share)
        self.warm[f, block] = x
        signs = z[term.columns][:, None, :]
        return (signs * group.of_level(x - first)).sum(axis=0), x

    def lead_values(self, system: System[Levels], z: Array, x: Array) -> Array:
        """Symmetric part of (RB Lambda z)(RB Lambda (x - D^-1 z))' (8, l, l)."""
        left = system.R @ system.lead_sums(system.lam(z))
        right = system.R @ system.lead_sums(system.lam(x - system.jacobi(z)))
        out = np.einsum("qak,qbk->kab", left, right)
        return np.asarray((out + out.transpose(0, 2, 1)) / 2)


def controls(system: System[Levels]) -> tuple[Array, list[Array]]:
    """What D alone makes of T_1 (l, l) and of each T_k (l, l)."""
    l = system.problem.rows.l
    lead, tail = np.zeros((l, l)), []
    for c, d, n, factor in zip(system.curvature, system.inverse, system.spread, system.tail_L, strict=True):
        lead += np.einsum("jcd,jcdab->ab", factor @ d @ factor.T, n)
        tail.append(np.linalg.solve(np.eye(len(factor)) + c @ (factor @ factor.T), c).sum(axis=0))
    return lead, tail


def controlled_leverages(system: System[Levels]) -> Array:
    """Leverages (n,) of the rows with D^-1 in the place of S^-1; those of the leading factor are in them exactly."""
    blocks = [factor @ d @ factor.T for d, factor in zip(system.inverse, system.tail_L, strict=True)]
    return row_sums.leverages(system.rows, system.K, blocks)


def row_values(system: System[Levels], z: Array, x: Array, v: Array) -> Array:
    """sum_r v_r (e_r'Lambda z)(e_r'Lambda (x - D^-1 z)) of each change of weights (8, k)."""
    if not v.shape[1]:
        return np.zeros((WIDTH, 0))
    return row_sums.forms(system.rows, system.K, system.lam(z), system.lam(x - system.jacobi(z)), v).T


def between(v: Array, factor: Array) -> Array:
    """L^-T v L^-1 (s, l, l); NaN in rows and columns where L's diagonal is zero."""
    zero = factor.diagonal() == 0.0
    inverse = np.linalg.inv(factor + np.diag(np.where(zero, 1.0, 0.0)))
    out = inverse.T @ v @ inverse
    out[:, zero], out[:, :, zero] = np.nan, np.nan
    return np.asarray(out)
