"""The two traces of the gradient that need S^-1, by probes with control variates and deflation.

    T_k = tr Z_k'V^-1Z_k = (q_k - tr_k S^-1) / lambda_k^2                    tail term k
    T_1 = sum_i (R_i B_i Lambda) S^-1 (R_i B_i Lambda)'                      what the leading factor's loses to the tail

With z of independent signs on the columns of one term, x = S^-1 z and D the diagonal of S, the estimates are

    z_k'(x - x_1) + sum_k 1 / D_jj,            x_1 = 2 z/D - D^-1 S D^-1 z
    (RB Lambda z)(RB Lambda (x - z/D))' + sum_j lambda_j^2 N_j / D_jj

whose control variates have exact means (Hutchinson 1989; the Neumann series of D^-1 S gives x_1). What is left of the
variance lies in the few directions that the diagonal does not see, the constant first: Q, orthonormal within terms,
holds them, its part of the trace is computed outright and probes see the rest, tr A = sum_c q_c'A q_c + E z~'A z~,
z~ = (I - QQ')z (Meyer, Musco, Musco and Woodruff 2021). Unbiased whatever Q is;
for a term of few levels Q is all of it.

Signs on one term at a time make the estimate of T_k an even function of lambda_k, so that it has a limit at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.iterative.problem import Problem
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
    tail : (s, number of tail terms)
        T_k; NaN where lambda_k is zero.
    """

    lead: Array
    tail: Array


def rademacher(seed: int, stream: int, block: int, m: int) -> Array:
    """Signs (m, 8) of one block of probes: a function of its arguments only."""
    rng = np.random.default_rng([seed, stream, block])
    return rng.integers(0, 2, (m, WIDTH)).astype(np.float64) * 2.0 - 1.0


def deflation_basis(system: System) -> Array:
    """Orthonormal (m, 8): subspace iteration on I - D^-1/2 S D^-1/2, begun with the indicators of the tail terms."""
    problem = system.problem
    root = np.sqrt(system.diagonal)[:, None]
    u = np.random.default_rng(0).normal(size=(problem.rows.m, WIDTH))
    for f, term in enumerate(problem.tail[:WIDTH]):
        u[:, f] = 0.0
        u[term.columns, f] = 1.0
    u = padded_basis(u * root)
    for _ in range(SUBSPACE_STEPS):
        u = padded_basis(u - system.apply(np.ascontiguousarray(u / root)) / root)
    return u


def is_complete(columns: slice) -> bool:
    """Whether a term has so few levels that all of its directions are taken outright."""
    return bool(columns.stop - columns.start <= FEW)


def term_basis(u: Array, columns: slice) -> list[Array]:
    """Orthonormal blocks (m, 8) within a term: all unit vectors where these are few, else the term's part of ``u``."""
    out = []
    if not is_complete(columns):
        block = np.zeros_like(u)
        block[columns] = padded_basis(u[columns])
        return [block]
    for s in range(columns.start, columns.stop, WIDTH):
        block = np.zeros_like(u)
        places = np.arange(s, min(s + WIDTH, columns.stop))
        block[places, places - s] = 1.0
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
    problem : Problem
    seed : int
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.deflated: list[list[Array]] | None = None
        self.warm: dict[tuple[int, int], Array] = {}

    def deflate(self, system: System) -> None:
        """Choose Q anew at some theta."""
        u = deflation_basis(system) / np.sqrt(system.diagonal)[:, None]
        self.deflated = []
        for term in self.problem.tail:
            self.deflated.append(term_basis(u, term.columns))
        self.warm = {}

    def traces(self, system: System, blocks: int) -> Traces:
        """Both traces at a theta, from the first ``blocks`` blocks of eight probes."""
        problem, l = self.problem, self.problem.rows.l
        if self.deflated is None:
            self.deflate(system)
        assert self.deflated is not None
        lead, tail = np.empty((blocks * WIDTH, l, l)), np.empty((blocks * WIDTH, len(problem.tail)))
        exact_lead = np.einsum("j,jab->ab", system.lam**2 / system.diagonal, system.spread)
        exact_tail = np.empty(len(problem.tail))
        for f, term in enumerate(problem.tail):
            j = term.columns
            exact_tail[f] = (system.curvature[j] / system.diagonal[j]).sum()
            for k, q in enumerate(self.deflated[f]):
                values, x = self.values(system, f, q, -1 - k)
                exact_tail[f] -= values.sum()
                exact_lead += self.lead_values(system, q, x).sum(axis=0)
        for b in range(blocks):
            rows = slice(b * WIDTH, (b + 1) * WIDTH)
            z = rademacher(self.seed, 0, b, problem.rows.m)
            whole_z, whole_x = np.zeros_like(z), np.zeros_like(z)
            for f, term in enumerate(problem.tail):
                tail[rows, f] = exact_tail[f]
                if is_complete(term.columns):
                    continue
                part = np.zeros_like(z)
                part[term.columns] = z[term.columns]
                (q,) = self.deflated[f]
                part -= q @ (q.T @ part)
                values, x = self.values(system, f, part, b)
                tail[rows, f] -= values
                whole_z += part
                whole_x += x
            lead[rows] = exact_lead + self.lead_values(system, whole_z, whole_x)
        return Traces(lead, tail)

    def values(self, system: System, f: int, z: Array, block: int) -> tuple[Array, Array]:
        """z_k'(x - x_1) / lambda_k^2 of each column (8,), and x = S^-1 z (m, 8), for z on the columns of term f."""
        j = self.problem.tail[f].columns
        scale = float(system.theta[self.problem.tail[f].parameter]) ** 2
        if scale == 0.0:
            return np.full(WIDTH, np.nan), z.copy()
        inverse = (1.0 / system.diagonal)[:, None]
        first = 2.0 * z * inverse - system.apply(np.ascontiguousarray(z * inverse)) * inverse
        share = min(1.0, scale * float(system.curvature[j].mean()))  # what is left is divided by lambda^2
        x = system.solve(z, self.warm.get((f, block), first), PROBE_TOLERANCE * share)
        self.warm[f, block] = x
        return (z[j] * (x - first)[j]).sum(axis=0) / scale, x

    def lead_values(self, system: System, z: Array, x: Array) -> Array:
        """Symmetric part of (RB Lambda z)(RB Lambda (x - z/D))' (8, l, l)."""
        lam, inverse = system.lam[:, None], (1.0 / system.diagonal)[:, None]
        left = system.R @ system.lead_sums(lam * z)
        right = system.R @ system.lead_sums(lam * (x - z * inverse))
        out = np.einsum("qak,qbk->kab", left, right)
        return np.asarray((out + out.transpose(0, 2, 1)) / 2)
