"""log det S, once: stochastic Lanczos quadrature on what the diagonal blocks leave.

    log det S = log det D + tr log T,     T = G^-1 S G'^-1,  D = GG' the blocks of S on its diagonal,    tr(I - T) = 0

Eight directions U of the least eigenvalues are integrated outright, z~ = (I - UU')z are the probes, and z~'(I - T)z~,
of known mean, is the control variate (Ubaru, Chen and Saad 2017 for the quadrature).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.iterative.derivatives import studentised
from fastlmm_core.core.iterative.problem import Levels
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.iterative.traces import deflation_basis, rademacher

__all__ = ["log_determinant"]

Array = NDArray[np.float64]

STEPS = 60
"""Of Lanczos, at most; two to ten are usual."""

QUADRATURE = 1e-9
"""Change of the quadrature, relative to the squared norm, at which it has converged."""


def log_determinant(system: System[Levels], seed: int, blocks: int) -> tuple[float, float]:
    """Estimate of log det S and its standard error, from ``blocks`` blocks of eight probes."""
    u = deflation_basis(system)

    def apply(v: Array) -> Array:
        return system.split(system.apply(system.split_t(v)))

    exact = system.log_det_tail + float(quadrature(apply, u).sum())
    found = []
    for block in range(blocks):
        z = rademacher(seed, 1, block, len(u))
        found.append(quadrature(apply, z - u @ (u.T @ z)))
    values = np.concatenate(found)
    s = len(values)
    return exact + float(values.mean()), float(values.std(ddof=1) * np.sqrt(studentised(s) / s))


def quadrature(apply: Callable[[Array], Array], z: Array) -> Array:
    """Quadratic forms z' log(T) z + z'(I - T)z of each column (8,), by Lanczos with full orthogonalisation."""
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
        w = apply(v)
        a = (w * v).sum(axis=0)
        if step == 0:
            first = np.where(alive, norm**2 * (1.0 - a), 0.0)
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
