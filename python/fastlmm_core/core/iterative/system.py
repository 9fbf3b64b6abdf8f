"""The reduced system S = I + Lambda'C Lambda at one theta, its preconditioners, and block conjugate gradients.

The leading factor is eliminated level by level (K_i, R_i); what is left is solved without being formed. On the reduced
system its diagonal blocks, a level each, are preconditioner enough for the graphs that ratings, students and teachers,
workers and firms make: the ridge that random effects are leaves few small eigenvalues. Other graphs get a second level,
see `second_level`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH, WIDTHS, RowForm, on_lines
from fastlmm_core.core.iterative.problem import Factors, Levels
from fastlmm_core.errors import NumericalError
from fastlmm_core.lazy import cached_property

__all__ = ["MAX_ITERATIONS", "System", "block_pcg", "in_blocks", "relative_factor", "relative_factors"]

Array = NDArray[np.float64]
Product = Callable[[Array, Array], Array]
P = TypeVar("P", bound=Levels, covariant=True)

MAX_ITERATIONS = 2000
"""Of one solve; a graph that needs more is not one for this engine."""

INDEFINITE = (
    "the random effects' system is not positive definite: the rows' weights are not those of a minimum, or the effects "
    "are so large beside the residuals that no digits are left"
)

PATIENCE = 30
"""Iterations after which, or in expectation of more than which, the solver takes a second level: its matrix costs about
as much."""

LOOK = 8
"""Iteration at which it is asked how many a solve will take, by how fast residuals fell in the latter half of them."""


def block_pcg(
    apply: Product,
    precondition: Product,
    b: Array,
    start: Array | None,
    tol: float,
    limit: int | None = None,
) -> tuple[Array, int, bool]:
    """Solve S x = b for the columns of b, each with its own step lengths, by preconditioned conjugate gradients.

    Parameters
    ----------
    apply, precondition : callable
        (x, out) -> out, both (m, k), the products with S and with M^-1. New arrays of this size are slow to get, so
        that an iteration makes none.
    b : (m, k)
    start : (m, k) or None
    tol : float
        Every column's residual, in the norm of M^-1, relative to its right-hand side's.
    limit : int, optional
        Iterations after which x is returned as it is; so it is after `LOOK` of them if more than these lie ahead.

    Returns
    -------
    x : (m, k)
    iterations : int
    done : bool
        False where the limit came first.

    Raises
    ------
    NumericalError
        `MAX_ITERATIONS` were not enough, or S is not positive definite.
    """
    z = precondition(b, np.empty_like(b))
    size = np.sqrt(np.maximum(dots(b, z), 0.0))
    goal = tol * size
    if start is None:
        x, r = np.zeros_like(b), b.copy()
    else:
        x, r = start.copy(), apply(start, np.empty_like(b))
        np.subtract(b, r, out=r)
        precondition(r, z)
    p, s, scaled = z.copy(), np.empty_like(b), np.empty_like(b)
    rz = dots(r, z)
    half = np.ones_like(rz)
    for iteration in range(MAX_ITERATIONS):
        left = np.sqrt(np.maximum(rz, 0.0))
        active = left > goal
        if not active.any():
            return x, iteration, True
        if iteration == LOOK // 2:
            half = left
        if limit is not None and (
            iteration == limit or (iteration == LOOK and expected(half[active], left[active], goal[active]) > limit)
        ):
            return x, iteration, False
        apply(p, s)
        curvature = dots(p, s)
        if (active & (curvature <= 0.0)).any():
            raise NumericalError(INDEFINITE)
        # a column that has converged stays as it is: its directions would be rounding errors
        step = np.divide(rz, curvature, out=np.zeros_like(rz), where=active)
        x += np.multiply(step, p, out=scaled)
        r -= np.multiply(step, s, out=scaled)
        precondition(r, z)
        new = dots(r, z)
        p *= np.divide(new, rz, out=np.zeros_like(rz), where=active)
        p += z
        rz = new
    raise NumericalError(
        f"a solve did not converge in {MAX_ITERATIONS} iterations: the levels of the grouping factors are too loosely "
        "connected for the iterative engine"
    )


def expected(half: Array, left: Array, goal: Array) -> float:
    """Iterations until every column's residual is at its goal, from those at `LOOK` and at half of it."""
    fall = np.log(half / left) / (LOOK - LOOK // 2)
    ahead = np.log(left / goal)
    return LOOK + float(np.divide(ahead, fall, out=np.full_like(fall, np.inf), where=fall > 0.0).max())


def dots(a: Array, b: Array) -> Array:
    """Inner product of each column (k,)."""
    return np.asarray(np.einsum("jk,jk->k", a, b))


def in_blocks(function: Callable[..., Array], *columns: Array, widths: Sequence[int] = (WIDTH,)) -> Array:
    """Apply a function of blocks (..., 8) to any number of columns (..., k), padding the last block with zeros.

    The last block, or the only one, has the least of the ``widths`` that the function takes.
    """
    k = columns[0].shape[-1]
    out = []
    for s in range(0, max(k, 1), WIDTH):  # no columns at all are one block, whose result has the shape of none
        count = min(WIDTH, k - s)
        width = next(width for width in widths if width >= count)
        blocks = [np.zeros((*of.shape[:-1], width)) for of in columns]
        for block, of in zip(blocks, columns, strict=True):
            block[..., :count] = of[..., s : s + count]
        out.append(function(*blocks)[..., :count])
    return np.concatenate(out, axis=-1)


class System(Generic[P]):
    """S at one theta, and the weights that the rows have now.

    Parameters
    ----------
    problem : Levels
    theta : (n_theta,)
        Conditioned.

    Raises
    ------
    NumericalError
        It is not positive definite, as the weights of some generalised models may be negative; not all such systems
        are found here, others in a solve.

    Attributes
    ----------
    L : (l, l)
        The leading term's relative factor.
    tail_L : list of (l, l)
        Those of the tail factors: Lambda has one a level.
    K, R : (q, l, l)
        L (L'AL + I)^-1 L', and I - A K: Z_1'V_1^-1 = R Z_1'W, V_1 the variance without the tail.
    curvature : list of (q, l, l)
        Blocks of C on its diagonal, one array a tail factor.
    inverse : list of (q, l, l)
        D^-1, D the blocks of S on its diagonal, a level each.
    half : list of (q, l, l)
        G^-1 of D = G G', lower triangular.
    spread : list of (q, l, l, l', l')
        N_j, see `RowForm.diagonals`.
    log_det_lead, log_det_tail : float
        Sums of log det(L'AL + I), and of log det D.
    iterations, longest : int
        Of all solves so far, and of the longest.
    """

    def __init__(self, problem: P, theta: Array) -> None:
        self.problem, self.theta, self.version = problem, theta, problem.rows.version
        l = problem.rows.l
        self.L, *self.tail_L = relative_factors(problem, theta)
        middle = self.L.T @ problem.blocks @ self.L + np.eye(l)
        root = block_roots(middle, "the leading factor")
        # as a square, whose error does not grow with the spread of the elements of L as that of an inverse does
        half = np.linalg.solve(root, np.broadcast_to(self.L.T, middle.shape))
        self.K = np.ascontiguousarray(half.transpose(0, 2, 1) @ half)
        self.R = np.ascontiguousarray(np.eye(l) - problem.blocks @ self.K)
        self.log_det_lead = 2.0 * float(np.log(np.diagonal(root, axis1=1, axis2=2)).sum())
        removed, self.spread = problem.rows.diagonals(self.K, self.R)
        self.curvature = [whole - part for whole, part in zip(problem.tail_blocks, removed, strict=True)]
        self.inverse, self.half, self.log_det_tail = list[Array](), list[Array](), 0.0
        for c, factor in zip(self.curvature, self.tail_L, strict=True):
            root = block_roots(factor.T @ c @ factor + np.eye(len(factor)), "a tail factor")
            self.half.append(np.asarray(1.0 / root if len(factor) == 1 else np.linalg.inv(root)))
            self.inverse.append(self.half[-1].transpose(0, 2, 1) @ self.half[-1])
            self.log_det_tail += 2.0 * float(np.log(np.diagonal(root, axis1=1, axis2=2)).sum())
        self.coarse = problem.second.corrections(self.K, self.tail_L) if problem.second.wanted else []
        self.scratch = dict[int, Array]()
        self.iterations = self.longest = 0

    @property
    def rows(self) -> RowForm:
        """The rows, whose weights are those that this system was made with."""
        if self.problem.rows.version != self.version:
            raise RuntimeError("the rows have other weights by now: make the system anew")
        return self.problem.rows

    def blockwise(self, blocks: Sequence[Array], x: Array, out: Array | None = None) -> Array:
        """Block-diagonal product: blocks (q, l, l), or (l, l) for all levels, one array a tail factor; x (m, k)."""
        out = np.empty_like(x) if out is None else out
        for group, block in zip(self.problem.groups, blocks, strict=True):
            if group.l == 1:
                np.multiply(block.reshape(-1, 1), x[group.columns], out=out[group.columns])
            else:
                out[group.columns] = (block @ group.of_level(x)).reshape(-1, x.shape[1])
        return out

    def lam(self, u: Array, out: Array | None = None) -> Array:
        """Lambda u: effects (m, k) from spherical ones."""
        return self.blockwise(self.tail_L, u, out)

    def lam_t(self, x: Array, out: Array | None = None) -> Array:
        """Lambda'x, (m, k)."""
        return self.blockwise([factor.T for factor in self.tail_L], x, out)

    def jacobi(self, x: Array, out: Array | None = None) -> Array:
        """D^-1 x, (m, k)."""
        return self.blockwise(self.inverse, x, out)

    def split(self, x: Array) -> Array:
        """G^-1 x, (m, k)."""
        return self.blockwise(self.half, x)

    def split_t(self, x: Array) -> Array:
        """G'^-1 x, (m, k)."""
        return self.blockwise([half.transpose(0, 2, 1) for half in self.half], x)

    @cached_property
    def root(self) -> list[Array]:
        """G's blocks (q, l, l), one array a tail factor."""
        return [np.asarray(np.linalg.inv(half)) for half in self.half]

    def joined(self, x: Array) -> Array:
        """G'x, (m, k): what `split_t` undoes."""
        return self.blockwise([root.transpose(0, 2, 1) for root in self.root], x)

    def precondition(self, r: Array, out: Array | None = None) -> Array:
        """D^-1 r, and where solves are long a correction from sums over neighbouring levels."""
        out = self.jacobi(r, out)
        for part in self.coarse:
            out += part(r)
        return out

    def product(self, x: Array) -> Array:
        """C x, for x (m, k)."""
        return in_blocks(lambda block: self.rows.product(self.K, block), x, widths=WIDTHS)

    def apply(self, x: Array, out: Array | None = None) -> Array:
        """S x, for x (m, k), k one of `WIDTHS`."""
        width = x.shape[1]
        if width not in self.scratch:
            self.scratch[width] = on_lines(len(x), width)
        inner = self.lam(x, self.scratch[width])
        self.rows.product(self.K, inner, inner)
        out = self.lam_t(inner, out)
        out += x
        return out

    def lead_sums(self, x: Array) -> Array:
        """B x (q, l, k), for x (m, k)."""
        return in_blocks(self.rows.lead_sums, x, widths=WIDTHS)

    def tail_sums(self, u: Array) -> Array:
        """B'u (m, k), for u (q, l, k)."""
        return in_blocks(self.rows.tail_sums, u, widths=WIDTHS)

    def solve(self, b: Array, start: Array | None, tol: float) -> Array:
        """S^-1 b, for b (m, k), k one of `WIDTHS`.

        A solve that takes more than `PATIENCE` iterations, or falls so slowly that it would, shows the graph to be a
        hard one: from there on, and at each theta to come, the solver has a second level.
        """
        second = self.problem.second
        limit = PATIENCE if not self.coarse and second.possible else None
        x, iterations, done = block_pcg(self.apply, self.precondition, b, start, tol, limit)
        if not done:
            second.wanted = True
            self.coarse = second.corrections(self.K, self.tail_L)
            x, more, _ = block_pcg(self.apply, self.precondition, b, x, tol)
            iterations += more
        self.iterations += iterations
        self.longest = max(self.longest, iterations)
        return x

    def solve_columns(self, b: Array, tol: float, start: Array | None = None) -> Array:
        """S^-1 b, for b (m, k), and ``start`` (m, k) to begin from."""
        if start is None:
            return in_blocks(lambda block: self.solve(block, None, tol), b, widths=WIDTHS)
        return in_blocks(lambda block, near: self.solve(block, near, tol), b, start, widths=WIDTHS)


def block_roots(d: Array, factor: str) -> Array:
    """Cholesky factors (q, l, l) of the blocks of a factor, which is what messages call it.

    Raises
    ------
    NumericalError
        A block is not positive definite.
    """
    if d.shape[1] == 1 and (d > 0).all():
        return np.asarray(np.sqrt(d))
    with suppress(np.linalg.LinAlgError):
        root = np.asarray(np.linalg.cholesky(d), np.float64)
        if np.isfinite(root).all():  # LAPACK may carry what is no number through
            return root
    lowest = np.array([np.linalg.eigvalsh(block)[0] if np.isfinite(block).all() else -np.inf for block in d])
    level = int(lowest.argmin())
    raise NumericalError(
        f"the equations of level {level} of {factor} are not positive definite (eigenvalue "
        f"{lowest[level]:.1g}): effects this large beside the residuals leave the iterative engine no digits"
    )


def relative_factors(levels: Factors, theta: Array) -> list[Array]:
    """L (l, l) of each factor, the leading one first."""
    return [relative_factor(places, theta, l) for places, l in levels.factors]


def relative_factor(parameters: Sequence[tuple[int, int, int]], theta: Array, l: int) -> Array:
    """L (l, l) of a factor from its places in theta."""
    out = np.zeros((l, l))
    for a, i, j in parameters:
        out[i, j] = theta[a]
    return out
