"""What stands in for a Cholesky factor where that would fill: solves by conjugate gradients, traces by random probes.

The matrix is eliminated as far as that is cheap (`elimination`). Of the core S, with G^2 its diagonal, T = G^-1 S G^-1
and N = T - I, the traces of a gradient and the log-determinant are estimated by signs z, less a polynomial of N whose
trace is known,

    tr S^-1 dS = tr B p(N) + E z'B (T^-1 - p(N)) z,      B = G^-1 dS G^-1                                            (1)
    log|S| = log|G^2| + tr q(N) + E z'(log T - q(N)) z                                                               (2)

(Hutchinson 1989; Ubaru, Chen and Saad 2017 for the quadrature of (2)), p and q least-squares fits to 1 / (1 + x) and
log(1 + x) on the spectrum that a few Lanczos steps from a vector of their own show. Directions Q of the least
eigenvalues, and rows that touch very many others, are taken outright, and the probes are orthogonal to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative import partial
from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.iterative.derivatives import studentised
from fastlmm_core.core.iterative.system import INDEFINITE, MAX_ITERATIONS, in_blocks
from fastlmm_core.core.iterative.traces import padded_basis, rademacher
from fastlmm_core.core.structures.elimination import Elimination, Reduced
from fastlmm_core.errors import NumericalError
from fastlmm_core.lazy import cached_property

__all__ = ["ProbedFactor"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

EXACT = 1e-11
"""Relative residual of solves that are reported."""

PROBES = 1e-5
"""Relative residual of the probes' solves, whose errors enter by their squares, all but."""

STEPS, QUADRATURE_STEPS = 16, 30
"""Lanczos steps from which the polynomials are fitted, and of the quadrature of (2)."""

SUBSPACE_STEPS = 6
"""Products with the filter that finds Q."""

WORK = 1e9
"""Multiplications up to which the powers of N are taken, so that p has degree three and q four; one and two else."""

MOST_HUBS, HUB = 64, 4.0
"""Rows of the core that are taken outright, at most: those with this many times the neighbours of an average one."""

BLOCKS = 8
"""Of eight probes each, for entries of the inverse: each block is one estimate of them."""


class ProbedFactor:
    """Does what `SparseFactor` does; log-determinant, traces and entries of the inverse have Monte Carlo errors.

    Parameters
    ----------
    m, rows, columns
        As of `SparseFactor`.
    seed : int
    reason : str
        Why there is no factor.
    """

    exact = False
    seconds = 0.0

    def __init__(self, m: int, rows: Index, columns: Index, seed: int, reason: str) -> None:
        self.m, self.given, self.seed, self.reason = m, (rows, columns), seed, reason
        self.elimination = Elimination(m, rows, columns)
        self.deflated: list[Array] | None = None
        self.warm: dict[int, Array] = {}
        self.near: Array | None = None  # the core's solutions of the last exact solve, to begin from
        self.iterations = self.longest = self.products = 0

    def refactor(self, values: Array) -> float:
        """Eliminate other values (nnz,); the log-determinant is NaN, since nobody wants it at every step."""
        self.reduced: Reduced = self.elimination.reduce(values)
        core = self.elimination.core
        S = self.reduced.core
        self.scale = 1.0 / np.sqrt(S[core.diagonal])
        self.T = self._scaled(S)
        self.__dict__.pop("powers", None)
        return float("nan")

    def _scaled(self, values: Array) -> Array:
        """G^-1 S G^-1 of a matrix on the core's pattern."""
        core = self.elimination.core
        return np.asarray(values * self.scale[core.idx] * self.scale[core.rows])

    def _times(self, values: Array, x: Array) -> Array:
        """A matrix on the core's pattern times x (k, 8)."""
        core = self.elimination.core
        return partial.product(core.ptr, core.idx, values, x)

    @cached_property
    def powers(self) -> tuple[Array, list[Array], float]:
        """N, its powers on the core's pattern from the first on as far as they are cheap, and tr N^4 (or NaN)."""
        core = self.elimination.core
        N = self.T.copy()
        N[core.diagonal] = 0.0
        if np.square(np.diff(core.ptr).astype(np.float64)).sum() > WORK:
            return N, [N], float("nan")
        second, third, fourth = partial.powers(core.ptr, core.idx, N)
        return N, [N, second, third], fourth

    def _solve_core(self, b: Array, tol: float, start: Array | None = None) -> Array:
        """T^-1 b, for b (k, 8)."""
        core = self.elimination.core
        x = np.zeros_like(b) if start is None else start.copy()
        iterations = partial.gradients(core.ptr, core.idx, self.T, b, x, tol, MAX_ITERATIONS)
        if iterations < 0:
            raise NumericalError(INDEFINITE)
        if iterations == MAX_ITERATIONS:
            raise NumericalError(
                f"a solve did not converge in {iterations} iterations: the levels are too loosely connected for the "
                "iterative engine"
            )
        self.iterations += iterations
        self.products += iterations + 1
        self.longest = max(self.longest, iterations)
        return x

    def solve(self, rhs: Array, rough: bool = False) -> Array:
        """Solutions (m, c) of right-hand sides (m, c), exact to the solver's tolerance, or ``rough``ly so."""
        k, scale = self.elimination.k, self.scale[:, None]
        x = self.reduced.down(rhs[self.elimination.order])
        if rough:
            found = in_blocks(lambda b: self._solve_core(b, PROBES), scale * x[k:])
        else:
            if self.near is None or self.near.shape[1] != rhs.shape[1]:
                self.near = np.zeros((len(scale), rhs.shape[1]))
            found = in_blocks(lambda b, near: self._solve_core(b, EXACT, near), scale * x[k:], self.near / scale)
            self.near = scale * found
        x[k:] = scale * found
        return np.asarray(self.reduced.up(x)[self.elimination.place])

    def deflate(self) -> None:
        """Choose Q and the polynomials, which stay until `deflated` is None again; any do, these make errors small."""
        k = len(self.scale)
        nodes, weights = self._lanczos(np.random.default_rng(0).normal(size=(k, WIDTH)), STEPS)
        degree = len(self.powers[1])
        self.p = fitted(nodes, weights, lambda x: 1.0 / x, degree)
        self.q = fitted(nodes, weights, np.log, degree + 1)
        middle = 0.6 * float(nodes.max())
        u = padded_basis(np.random.default_rng(1).normal(size=(k, WIDTH)))
        for _ in range(SUBSPACE_STEPS):
            u = padded_basis(middle * u - self._times(self.T, u))
        hubs = self.hubs
        u[hubs] = 0.0
        self.deflated, self.warm = [padded_basis(u)], {}
        for s in range(0, len(hubs), WIDTH):
            unit = np.zeros((k, WIDTH))
            own = hubs[s : s + WIDTH]
            unit[own, np.arange(len(own))] = 1.0
            self.deflated.append(unit)

    @cached_property
    def hubs(self) -> Index:
        """Rows of the core that touch far more others than most do, as the levels of a herd or a year."""
        neighbours = np.diff(self.elimination.core.ptr)
        most = np.argsort(-neighbours, kind="stable")[:MOST_HUBS]
        return np.asarray(most[neighbours[most] > HUB * neighbours.mean()])

    def probe(self, stream: int, block: int) -> Array:
        """One block of probes (k, 8), orthogonal to Q."""
        z = rademacher(self.seed, stream, block, len(self.scale))
        for q in self.deflated or ():
            z -= q @ (q.T @ z)
        return z

    def _near(self, z: Array) -> Array:
        """p(N) z by Horner's rule."""
        out = self.p[-1] * z
        for c in self.p[-2::-1]:
            out = self._times(self.powers[0], out) + c * z
        return np.asarray(out)

    def traces(self, changes: Sequence[Array], blocks: int) -> Array:
        """Tr M^-1 dM (s, c) of changes dM, entries (nnz,) of the lower triangle, one estimate a probe."""
        if self.deflated is None:
            self.deflate()
        assert self.deflated is not None
        found, B = np.zeros(len(changes)), []
        for a, values in enumerate(changes):
            known, dS = self.reduced.change(values)
            B.append(self._scaled(dS))
            found[a] = known + self.p[0] * B[-1][self.elimination.core.diagonal].sum()
            for c, power in zip(self.p[1:], self.powers[1], strict=True):
                found[a] += c * (B[-1] @ power)

        def values_of(z: Array, block: int) -> Array:
            near = self._near(z)
            x = self._solve_core(z, PROBES, self.warm.get(block, near))
            self.warm[block] = x
            left = [np.einsum("jk,jk->k", self._times(b, z), x - near) for b in B]
            return np.array(left).reshape(len(B), WIDTH).T

        for block, q in enumerate(self.deflated):
            found += values_of(q, -1 - block).sum(axis=0)
        return np.concatenate([found + values_of(self.probe(0, block), block) for block in range(blocks)])

    def log_determinant(self, blocks: int) -> tuple[float, float]:
        """Estimate of the log-determinant and its standard error, from ``blocks`` blocks of eight probes."""
        if self.deflated is None:
            self.deflate()
        assert self.deflated is not None
        _, powers, fourth = self.powers
        known = self.reduced.log_det - 2.0 * float(np.log(self.scale).sum()) + self.q[0] * len(self.scale)
        known += self.q[2] * float(powers[0] @ powers[0])
        if len(powers) > 1:
            known += self.q[3] * float(powers[0] @ powers[1]) + self.q[4] * fourth

        def values_of(z: Array) -> Array:
            nodes, weights = self._lanczos(z, QUADRATURE_STEPS)
            left = np.log(nodes) - np.polynomial.polynomial.polyval(nodes - 1.0, self.q)
            return np.asarray(np.square(z).sum(axis=0) * (weights * left).sum(axis=1))

        known += float(sum(values_of(q).sum() for q in self.deflated))
        found = np.concatenate([values_of(self.probe(1, block)) for block in range(blocks)])
        s = len(found)
        return known + float(found.mean()), float(found.std(ddof=1) * np.sqrt(studentised(s) / s))

    def inverse(self) -> Array:
        """Entries (nnz,) of the inverse on the pattern; estimates from 64 probes."""
        return self.inverse_and_errors()[0]

    def inverse_and_errors(self) -> tuple[Array, Array]:
        """The same, and their Monte Carlo standard errors.

        Estimates are those of the core's entries; the others follow by recurrence, which is linear in them.
        """
        if self.deflated is None:
            self.deflate()
        core, scale = self.elimination.core, self.scale[:, None]
        known = np.zeros(len(self.T))
        known[core.diagonal] = self.p[0]
        for c, power in zip(self.p[1:], self.powers[1], strict=True):
            known += c * power
        known = self._scaled(known)
        found = []
        for block in range(BLOCKS):
            z = rademacher(self.seed, 2, block, len(self.scale))
            near = self._near(z)
            left, right = scale * z, scale * (self._solve_core(z, PROBES, near) - near)
            products = np.einsum("ek,ek->e", left[core.rows], right[core.idx])
            products += np.einsum("ek,ek->e", right[core.rows], left[core.idx])
            found.append(self.reduced.inverse(known + products / (2.0 * WIDTH)))
        estimates = np.array(found)
        error = estimates.std(axis=0, ddof=1) * np.sqrt(studentised(BLOCKS) / BLOCKS)
        return estimates.mean(axis=0), error

    def _lanczos(self, z: Array, steps: int) -> tuple[Array, Array]:
        """Nodes and weights (8, steps) of the quadrature that each column of z (k, 8) makes of T's spectrum."""
        steps = min(steps, len(z))
        norm = np.linalg.norm(z, axis=0)
        v = np.divide(z, norm, out=np.zeros_like(z), where=norm > 0.0)
        before, b = np.zeros_like(v), np.zeros(WIDTH)
        alpha, beta = np.ones((2, WIDTH, steps))
        for j in range(steps):
            w = self._times(self.T, v) - b * before
            a = np.einsum("jk,jk->k", w, v)
            w -= a * v
            b = np.linalg.norm(w, axis=0)
            b = np.where(b > 1e-10, b, 0.0)
            alpha[:, j], beta[:, j] = np.where(a > 0.0, a, 1.0), b  # a column that has come to its end has no weight
            before, v = v, np.divide(w, b, out=np.zeros_like(w), where=b > 0.0)
        matrices = np.zeros((WIDTH, steps, steps))
        i = np.arange(steps)
        matrices[:, i, i] = alpha
        matrices[:, i[:-1], i[1:]] = matrices[:, i[1:], i[:-1]] = beta[:, :-1]
        nodes, vectors = np.linalg.eigh(matrices)
        return nodes, np.square(vectors[:, 0])


def fitted(nodes: Array, weights: Array, function: Callable[[Array], Array], degree: int) -> Array:
    """Coefficients (degree + 1,) in x - 1 of the least-squares polynomial on a spectrum."""
    x, root = nodes.ravel(), np.sqrt(weights.ravel())
    powers = np.vander(x - 1.0, degree + 1, increasing=True)
    return np.asarray(np.linalg.lstsq(powers * root[:, None], root * function(x), rcond=None)[0])
