"""The reduced system S = I + Lambda C Lambda at one theta, its Jacobi preconditioner, and block conjugate gradients.

The leading factor is eliminated level by level (K_i, R_i); what is left is solved without being formed. On the reduced
system the diagonal is preconditioner enough for the graphs that ratings, students and teachers, workers and firms make:
the ridge that random effects are leaves few small eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.iterative.problem import Problem
from fastlmm_core.errors import NumericalError

__all__ = ["MAX_ITERATIONS", "System", "block_pcg", "in_blocks"]

Array = NDArray[np.float64]

MAX_ITERATIONS = 2000
"""Of one solve; a graph that needs more is not one for this engine."""


def block_pcg(
    apply: Callable[[Array], Array], diagonal: Array, b: Array, start: Array | None, tol: float
) -> tuple[Array, int]:
    """Solve S x = b for the columns of b, each with its own step lengths, by Jacobi-preconditioned conjugate gradients.

    Parameters
    ----------
    apply : callable
        (m, k) -> (m, k), the product with S.
    diagonal : (m,)
        Of S.
    b : (m, k)
    start : (m, k) or None
    tol : float
        Every column's residual, in the norm of the inverse diagonal, relative to its right-hand side's.

    Returns
    -------
    x : (m, k)
    iterations : int

    Raises
    ------
    NumericalError
        `MAX_ITERATIONS` were not enough.
    """
    inverse = (1.0 / diagonal)[:, None]
    size = np.sqrt((b * b * inverse).sum(axis=0))
    limit = tol * size
    if start is None:
        x, r = np.zeros_like(b), b.copy()
    else:
        x, r = start.copy(), b - apply(start)
    z = r * inverse
    p = z.copy()
    rz = (r * z).sum(axis=0)
    for iteration in range(MAX_ITERATIONS):
        active = np.sqrt(np.maximum(rz, 0.0)) > limit
        if not active.any():
            return x, iteration
        s = apply(p)
        curvature = (p * s).sum(axis=0)
        # a column that has converged stays as it is: its directions would be rounding errors
        step = np.divide(rz, curvature, out=np.zeros_like(rz), where=active & (curvature > 0.0))
        x += step * p
        r -= step * s
        np.multiply(r, inverse, out=z)
        new = (r * z).sum(axis=0)
        p *= np.divide(new, rz, out=np.zeros_like(rz), where=active)
        p += z
        rz = new
    raise NumericalError(
        f"a solve did not converge in {MAX_ITERATIONS} iterations: the levels of the grouping factors are too loosely "
        "connected for the iterative engine"
    )


def in_blocks(function: Callable[[Array], Array], columns: Array) -> Array:
    """Apply a function of blocks (..., 8) to any number of columns (..., k), padding the last block with zeros."""
    k = columns.shape[-1]
    out = []
    for s in range(0, k, WIDTH):
        block = np.zeros((*columns.shape[:-1], WIDTH))
        part = columns[..., s : s + WIDTH]
        block[..., : part.shape[-1]] = part
        out.append(function(block)[..., : part.shape[-1]])
    return np.concatenate(out, axis=-1)


class System:
    """S at one theta.

    Parameters
    ----------
    problem : Problem
    theta : (n_theta,)
        Conditioned.

    Attributes
    ----------
    L : (l, l)
        The leading term's relative factor.
    lam : (m,)
        Lambda's diagonal.
    K, R : (q, l, l)
        L (L'AL + I)^-1 L', and I - A K: Z_1'V_1^-1 = R Z_1'W, V_1 the variance without the tail.
    diagonal : (m,)
        Of S.
    curvature : (m,)
        Diagonal of C.
    spread : (m, l, l)
        N_j, see `RowForm.diagonals`.
    log_det_lead : float
        Sum of log det(L'AL + I).
    iterations : int
        Of all solves so far.
    """

    def __init__(self, problem: Problem, theta: Array) -> None:
        self.problem, self.theta = problem, theta
        l = problem.rows.l
        self.L = np.zeros((l, l))
        for a, i, j in problem.lead:
            self.L[i, j] = theta[a]
        self.lam = np.empty(problem.rows.m)
        for term in problem.tail:
            self.lam[term.columns] = theta[term.parameter]
        middle = self.L.T @ problem.blocks @ self.L + np.eye(l)
        self.K = np.ascontiguousarray(self.L @ np.linalg.inv(middle) @ self.L.T)
        self.R = np.ascontiguousarray(np.eye(l) - problem.blocks @ self.K)
        self.log_det_lead = float(np.linalg.slogdet(middle)[1].sum())
        removed, self.spread = problem.rows.diagonals(self.K, self.R)
        self.curvature = problem.tail_squares - removed
        self.diagonal = 1.0 + self.lam**2 * self.curvature
        self.iterations = 0

    def product(self, x: Array) -> Array:
        """C x, for x (m, k)."""
        return in_blocks(lambda block: self.problem.rows.product(self.K, block), x)

    def apply(self, x: Array) -> Array:
        """S x, for x (m, 8)."""
        lam = self.lam[:, None]
        y = self.problem.rows.product(self.K, np.ascontiguousarray(lam * x))
        y *= lam
        y += x
        return y

    def lead_sums(self, x: Array) -> Array:
        """B x (q, l, k), for x (m, k)."""
        return in_blocks(self.problem.rows.lead_sums, x)

    def tail_sums(self, u: Array) -> Array:
        """B'u (m, k), for u (q, l, k)."""
        return in_blocks(self.problem.rows.tail_sums, u)

    def solve(self, b: Array, start: Array | None, tol: float) -> Array:
        """S^-1 b, for b (m, 8)."""
        x, iterations = block_pcg(self.apply, self.diagonal, b, start, tol)
        self.iterations += iterations
        return x

    def solve_columns(self, b: Array, tol: float) -> Array:
        """S^-1 b, for b (m, k)."""
        return in_blocks(lambda block: self.solve(block, None, tol), b)
