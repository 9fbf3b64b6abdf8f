"""log det S, once: stochastic Lanczos quadrature on what the diagonal blocks, and a second level, leave.

    log det S = log det D + tr log T,     T = G^-1 S G'^-1,  D = GG' the blocks of S on its diagonal,    tr(I - T) = 0

Eight directions U of the least eigenvalues are integrated outright, z~ = (I - UU')z are the probes, and z~'(I - T)z~,
of known mean, is the control variate (Ubaru, Chen and Saad 2017 for the quadrature).

Where solves have a second level, of sums P'x over aggregates, slow directions are many, and eight of them are few.
Then with E = P'SP, M = P'DP and Q orthonormal and orthogonal to G'P, by the determinant of a block matrix,

    log det T = log det E - log det M + tr log Q'T_d Q,     T_d = T - G^-1 SP E^-1 P'S G'^-1

and what is said above is done in the span of Q, where T_d is close to the identity: tr Q'(I - T)Q = tr M^-1 E - c.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.iterative.derivatives import studentised
from fastlmm_core.core.iterative.problem import Levels
from fastlmm_core.core.iterative.second_level import Coarse
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.iterative.traces import SUBSPACE_STEPS, deflation_basis, padded_basis, rademacher

__all__ = ["log_determinant"]

Array = NDArray[np.float64]

STEPS = 60
"""Of Lanczos, at most; two to ten are usual."""

QUADRATURE = 1e-9
"""Change of the quadrature, relative to the squared norm, at which it has converged."""


def log_determinant(system: System[Levels], seed: int, blocks: int) -> tuple[float, float]:
    """Estimate of log det S and its standard error, from ``blocks`` blocks of eight probes."""
    space: Space = BesideCoarse(system, system.coarse[0]) if system.coarse else Space(system)
    u = space.basis()
    exact = system.log_det_tail + space.known + float(quadrature(space, u).sum())
    found = []
    for block in range(blocks):
        z = space.project(rademacher(seed, 1, block, len(u)))
        found.append(quadrature(space, z - u @ (u.T @ z)))
    values = np.concatenate(found)
    s = len(values)
    return exact + float(values.mean()), float(values.std(ddof=1) * np.sqrt(studentised(s) / s))


class Space:
    """T in all directions.

    Attributes
    ----------
    known : float
        log det T less the trace of log T + I - T.
    """

    known = 0.0

    def __init__(self, system: System[Levels]) -> None:
        self.system = system

    def apply(self, v: Array) -> tuple[Array, Array]:
        """T_d v, whose logarithm is taken, and T v, which has the control's known mean."""
        out = self.system.split(self.system.apply(self.system.split_t(v)))
        return out, out

    def project(self, v: Array) -> Array:
        """The part of v within the space."""
        return v

    def basis(self) -> Array:
        """Orthonormal (m, 8) within the space, of its least eigenvalues."""
        return deflation_basis(self.system)


class BesideCoarse(Space):
    """T_d in the span of Q."""

    def __init__(self, system: System[Levels], coarse: Coarse) -> None:
        super().__init__(system)
        self.coarse, self.inverse, at = coarse, list[Array](), 0
        self.known = coarse.log_det
        for group, root, count in zip(system.problem.groups, system.root, coarse.partition.sizes, strict=True):
            place = (coarse.partition.labels[group.columns].reshape(group.q, group.l)[:, 0] - at) // group.l
            own, used = np.zeros((count, group.l, group.l)), place >= 0
            np.add.at(own, place[used], (root @ root.transpose(0, 2, 1))[used])
            self.inverse.append(np.asarray(np.linalg.inv(own), np.float64))
            columns = at + np.arange(count * group.l).reshape(count, group.l)
            self.known -= float(np.linalg.slogdet(own)[1].sum())
            self.known -= float((self.inverse[-1] * coarse.E[columns[:, :, None], columns[:, None, :]]).sum())
            at += count * group.l
        self.known += len(coarse.E)

    def apply(self, v: Array) -> tuple[Array, Array]:
        system = self.system
        s = system.apply(system.split_t(v))
        # outside of the space T_d is zero, which a logarithm of what rounding leaves there would not bear
        return self.project(system.split(s - system.apply(self.coarse(s)))), system.split(s)

    def project(self, v: Array) -> Array:
        """The part of v within the space, v - G'P M^-1 P'G v."""
        system, at = self.system, 0
        sums = self.coarse.P @ system.blockwise(system.root, v)
        for group, inverse in zip(system.problem.groups, self.inverse, strict=True):
            own = slice(at, at + len(inverse) * group.l)
            sums[own] = (inverse @ sums[own].reshape(len(inverse), group.l, -1)).reshape(own.stop - at, -1)
            at = own.stop
        return np.asarray(v - system.joined(self.coarse.back @ sums))

    def basis(self) -> Array:
        u = padded_basis(self.project(np.random.default_rng(0).normal(size=(self.system.problem.rows.m, WIDTH))))
        for _ in range(SUBSPACE_STEPS):
            u = padded_basis(self.project(u - self.apply(u)[0]))
        # what a space of fewer directions has been filled up with lies outside of it
        return np.asarray(u * (np.linalg.norm(self.project(u), axis=0) > 1.0 - 1e-6))


def quadrature(space: Space, z: Array) -> Array:
    """Quadratic forms z' log(T_d) z + z'(I - T)z of each column (8,), by Lanczos with full orthogonalisation."""
    norm = np.sqrt((z * z).sum(axis=0))
    alive = norm > 1e-10 * np.sqrt(len(z))
    v = np.divide(z, norm, out=np.zeros_like(z), where=alive)
    basis: list[Array] = []
    alpha: list[Array] = []
    beta: list[Array] = []
    first = np.zeros(WIDTH)
    value = np.full(WIDTH, np.inf)
    for step in range(min(STEPS, len(z))):
        basis.append(v)
        w, plain = space.apply(v)
        a = (w * v).sum(axis=0)
        if step == 0:
            first = np.where(alive, norm**2 * (1.0 - (plain * v).sum(axis=0)), 0.0)
        for _ in range(2):
            for old in basis:
                w = w - (w * old).sum(axis=0) * old
        alpha.append(np.where(alive, a, 1.0))  # a dead direction has no weight, and log 1 = 0
        last, value = value, np.array([norm[c] ** 2 * tridiagonal_log(alpha, beta, c) for c in range(WIDTH)])
        if (np.abs(value - last) <= QUADRATURE * np.maximum(norm**2, 1e-300)).all():
            break
        b = np.sqrt((w * w).sum(axis=0))
        alive = alive & (b > 1e-12)
        beta.append(np.where(alive, b, 0.0))
        v = np.divide(w, b, out=np.zeros_like(w), where=alive)
    return value + first


def tridiagonal_log(alpha: list[Array], beta: list[Array], c: int) -> float:
    """First element of the logarithm of column c's tridiagonal matrix."""
    matrix = np.diag([a[c] for a in alpha])
    for i, b in enumerate(beta):
        matrix[i, i + 1] = matrix[i + 1, i] = b[c]
    values, vectors = np.linalg.eigh(matrix)
    return float(vectors[0] ** 2 @ np.log(values))
