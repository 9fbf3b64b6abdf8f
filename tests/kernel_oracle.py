"""Dense algebra in the kernels' own coordinates: what the compiled objects are asked for, from n x n matrices.

    M = Lambda'Z'WZ Lambda + I        V = W^-1 + Z Lambda Lambda'Z'        Lambda, Z: leading columns, then the tail's

with X, Z and the response conditioned as the core conditions them, and the tail's columns in the plan's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import Control, Layout, Model, Objective, Term

Array = NDArray[np.float64]

__all__ = [
    "Dense",
    "Problem",
    "both",
    "diagonal_blocks",
    "expand",
    "incidence",
    "lower_rows",
    "problem",
    "shuffled_offsets",
]


@dataclass(frozen=True)
class Problem:
    """Data of one model."""

    y: Array
    X: Array
    terms: tuple[Term, ...]
    weights: Array | None

    def model(self, reml: bool = True, engine: str = "auto", **options: object) -> Model:
        return Model(self.X, self.terms, weights=self.weights, reml=reml, control=Control(engine, **options))


def problem(
    levels: Sequence[int], widths: Sequence[int], *, n: int = 90, p: int = 2, weighted: bool = False, seed: int = 0
) -> Problem:
    """Crossed grouping factors with ``levels`` levels and ``widths`` columns each, and effects worth finding."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))]) if p else np.empty((n, 0))
    y = X @ rng.normal(size=p) + rng.normal(size=n)
    terms = []
    for q, l in zip(levels, widths, strict=True):
        codes = rng.permutation(np.arange(n) % q).astype(np.int32)
        z = None if l == 1 else np.column_stack([np.ones(n), rng.normal(size=(n, l - 1))])
        effects = rng.normal(size=(q, l))
        y += effects[codes, 0] if z is None else (z * effects[codes]).sum(axis=1)
        terms.append(Term(codes, z))
    return Problem(y, X, tuple(terms), rng.uniform(0.5, 2.0, n) if weighted else None)


def incidence(codes: NDArray[np.int32], q: int, z: Array | None) -> Array:
    """Z (n, q * l) of one grouping factor, columns by level."""
    columns = np.ones((len(codes), 1)) if z is None else z
    out = np.zeros((len(codes), q, columns.shape[1]))
    out[np.arange(len(codes)), codes] = columns
    return out.reshape(len(codes), -1)


def expand(offset: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Scalar column of every effect of a group, by level."""
    return (offset[:, None] + np.arange(width)).ravel()


class Dense:
    """One model at any conditioned theta.

    Parameters
    ----------
    model : Model
    y : (n,)
    plan : Layout
        Gives the order of the tail.
    """

    def __init__(self, model: Model, y: Array, plan: Layout) -> None:
        products = model.products
        self.cross = products.cross(y)
        self.reml = model.reml
        c = self.cross.conditioning
        everything = slice(0, products.n)
        self.w = np.ones(products.n) if products.weights is None else products.weights
        self.X = np.asarray(products.q(everything))
        rest = products.prepare(y) - products.X[:, c.keep] @ c.shift
        self.e = (rest - self.X @ c.r[:-1, -1]) / c.y_scale
        groups = products.groups
        z = [
            incidence(codes, g.n_levels, columns)
            for codes, g, columns in zip(products.codes, groups, products.columns, strict=True)
        ]
        self.own = own = int(plan.leads)  # groups eliminated beforehand
        self.lead_size = sum(columns.shape[1] for columns in z[:own])
        self.places = [expand(offset, g.n_columns) for offset, g in zip(plan.offsets, groups[own:], strict=True)]
        tail = np.zeros((products.n, sum(len(place) for place in self.places)))
        for place, columns in zip(self.places, z[own:], strict=True):
            tail[:, place] = columns
        self.Z = np.hstack([*z[:own], tail])
        self.groups = groups
        self.nu = products.n - c.rank if self.reml else products.n
        self.constant = c.constant(self.nu, self.reml)

    def spread(self, blocks: Sequence[Array]) -> Array:
        """Block-diagonal matrix in the order of Z from one (l, l) block a group, repeated over its levels."""
        out = np.zeros((self.Z.shape[1],) * 2)
        repeated = [np.kron(np.eye(g.n_levels), block) for g, block in zip(self.groups, blocks, strict=True)]
        if self.own:
            out[: self.lead_size, : self.lead_size] = repeated[0]
        for place, block in zip(self.places, repeated[self.own :], strict=True):
            out[np.ix_(self.lead_size + place, self.lead_size + place)] = block
        return out

    def factor_blocks(self, theta: Array) -> list[Array]:
        blocks = [np.zeros((g.n_columns, g.n_columns)) for g in self.groups]
        for (g, i, j), value in zip(self.cross.theta_index, theta, strict=True):
            blocks[g][i, j] = value
        return blocks

    def lam(self, theta: Array) -> Array:
        return self.spread(self.factor_blocks(theta))

    def M(self, theta: Array) -> Array:
        scaled = self.Z @ self.lam(theta)
        return scaled.T @ (self.w[:, None] * scaled) + np.eye(self.Z.shape[1])

    def V(self, theta: Array) -> Array:
        scaled = self.Z @ self.lam(theta)
        return np.diag(1.0 / self.w) + scaled @ scaled.T

    def ld(self, theta: Array) -> Array:
        """Lower factor of [X e]'V^-1[X e]."""
        D = np.column_stack([self.X, self.e])
        return np.linalg.cholesky(D.T @ np.linalg.solve(self.V(theta), D))

    def value(self, theta: Array) -> float:
        ld = self.ld(theta)
        value = np.linalg.slogdet(self.M(theta))[1] + self.nu * (1 + np.log(2 * np.pi * ld[-1, -1] ** 2 / self.nu))
        return value + self.constant + (2 * np.log(ld.diagonal()[:-1]).sum() if self.reml else 0.0)

    def projection(self, theta: Array) -> tuple[Array, Array]:
        """V^-1 and P."""
        inverse = np.linalg.inv(self.V(theta))
        vx = inverse @ self.X
        return inverse, inverse - vx @ np.linalg.solve(self.X.T @ vx, vx.T)

    def derivatives(self, theta: Array) -> tuple[Array, Array]:
        """Gradient and average-information Hessian."""
        inverse, P = self.projection(theta)
        Q = P if self.reml else inverse
        py = P @ self.e
        r2 = self.e @ py
        blocks = self.factor_blocks(theta)
        dV = []
        for g, i, j in self.cross.theta_index:
            unit = [np.zeros_like(block) for block in blocks]
            unit[g][i] = blocks[g][:, j]
            dV.append(self.Z @ self.spread([u + u.T for u in unit]) @ self.Z.T)
        gradient = np.array([np.sum(Q * v) - self.nu / r2 * py @ v @ py for v in dV])
        F = np.column_stack([v @ py for v in dV])
        s = F.T @ py
        hessian = self.nu * (F.T @ P @ F / r2 - np.outer(s, s) / r2**2)
        for a, (g, i, j) in enumerate(self.cross.theta_index):
            for b, (h, k, c) in enumerate(self.cross.theta_index):
                if (g, j) == (h, c):
                    unit = [np.zeros_like(block) for block in blocks]
                    unit[g][i, k] += 1.0
                    second = self.Z @ self.spread([u + u.T for u in unit]) @ self.Z.T
                    hessian[a, b] += np.sum(Q * second) - self.nu / r2 * py @ second @ py
        return gradient, hessian

    def modes(self, theta: Array) -> tuple[Array, Array, Array]:
        """beta, and the modes of the leading columns and of the tail."""
        inverse, P = self.projection(theta)
        beta = np.linalg.solve(self.X.T @ inverse @ self.X, self.X.T @ inverse @ self.e)
        lam = self.lam(theta)
        b = lam @ (lam.T @ (self.Z.T @ (P @ self.e)))
        return beta, b[: self.lead_size], b[self.lead_size :]

    def covariance(self, theta: Array) -> Array:
        """Lambda M^-1 Lambda'."""
        lam = self.lam(theta)
        return lam @ np.linalg.solve(self.M(theta), lam.T)

    def random_theta(self, seed: int) -> Array:
        """A theta of moderate size, no sign ruled out."""
        rng = np.random.default_rng(seed)
        return rng.normal(scale=0.8, size=len(self.cross.theta_index))


def both(given: Problem, reml: bool = True, engine: str = "auto") -> tuple[Objective, Dense]:
    """The compiled criterion of a problem and its dense counterpart."""
    model = given.model(reml, engine)
    objective = model.objective(given.y)
    return objective, Dense(model, given.y, objective.plan)


def diagonal_blocks(matrix: Array, places: NDArray[np.int64], width: int) -> Array:
    """(q, l, l) blocks of a matrix at groups of ``width`` columns."""
    return np.array([matrix[np.ix_(block, block)] for block in places.reshape(-1, width)])


def lower_rows(ptr: NDArray[np.int64], idx: NDArray[np.integer], val: Array, m: int) -> Array:
    """Dense matrix of compressed rows, repeated entries added."""
    out = np.zeros((m, m))
    np.add.at(out, (np.repeat(np.arange(m), np.diff(ptr)), idx), val)
    return out


def shuffled_offsets(levels: Sequence[int], widths: Sequence[int], seed: int) -> list[NDArray[np.int64]]:
    """Where each level of each group begins when all blocks of the tail are shuffled."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat(widths, levels)
    order = rng.permutation(len(sizes))
    start = np.empty(len(sizes), np.int64)
    start[order] = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
    return np.split(start, np.cumsum(levels)[:-1])
