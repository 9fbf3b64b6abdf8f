"""The mixed-model equations as one sparse matrix: known relationships between levels, sparse fixed effects.

    b_k ~ N(0, sigma^2 A_k x Sigma_k),   Sigma_k = L_k L_k',   Lambda = blockdiag(I x L_k),   C = [Z X y]'W[Z X y]
    M = Lambda'C_ZZ Lambda + blockdiag(A_k^-1 x I)         A_k^-1 = 0, L_k = 1 for sparse fixed effects           (1)
                                                           Q_k and constraints for intrinsic precisions (`constrained`)
    D = C_XX - C_XZ Lambda M^-1 Lambda'C_ZX                r^2: what is left of y in D
    f = sum_k l_k log|A_k| + log|M| + [REML] log|D_XX| + nu (1 + log(2 pi r^2 / nu))
    df/dL_k = 2 sum over the term's levels a of { sum_b C_ab L_b T_ba + C_aX T_Xa - (nu / r^2) (Z'We)_a u_a' }     (2)

T is the inverse of the joint equations of Z and X (REML) or of M (ML), wanted on the pattern of M only: the selected
inverse. Nothing is divided by L: (2) is exact where a variance is zero. For an ML fit with sparse fixed effects
log|M| is that of the random part alone, factored apart. Henderson (1976) for (1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core.core.structures.constrained import ConstrainedFactor
from fastlmm_core.core.structures.probed_factor import ProbedFactor
from fastlmm_core.core.structures.relationship import Known, KnownCovariance
from fastlmm_core.core.structures.sparse_factor import SparseFactor
from fastlmm_core.core.terms import Term
from fastlmm_core.errors import FastLMMWarning, NumericalError, warn
from fastlmm_core.lazy import cached_property

__all__ = ["Blocks", "Equations", "Solved", "covariates", "level_columns"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]


Factor = SparseFactor | ProbedFactor

LONG = 15.0
"""Predicted seconds of an evaluation that are told."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """C between two terms, as dense blocks of the pairs of levels that meet; where they are one term, rows >= columns.

    Attributes
    ----------
    k, other : int
        The terms, other <= k.
    a, b : (nb,) int64
        Levels.
    C : (nb, l_k, l_other)
    P : (nb,) or None
        Entries of the precision; None between different terms.
    entries : (nnz, 2) int64
        Block and place in it, flattened, of each entry of M's lower triangle.
    """

    k: int
    other: int
    a: Index
    b: Index
    C: Array
    P: Array | None
    entries: Index

    @cached_property
    def times(self) -> Array:
        """How often a block (nb,) stands in the whole matrix."""
        same = self.k == self.other
        return np.where(self.a == self.b, 1.0, 2.0) if same else np.full(len(self.a), 2.0)


@dataclass(frozen=True, eq=False)
class Solved:
    """The equations at one value of the factors; `Equations.factor` is theirs until the next one or `gradients`.

    Attributes
    ----------
    value : float
    factors : sequence of (l, l)
    beta : (p,)
    u : (m,)
        Solutions, Lambda^-1 of the conditional modes.
    U : (m, p)
        M^-1 Lambda'C_ZX.
    D : (p, p)
        X'V^-1X.
    r2 : float
    residual : (m,)
        Z'W(y - X beta - Z Lambda u).
    """

    value: float
    factors: tuple[Array, ...]
    beta: Array
    u: Array
    U: Array
    D: Array
    r2: float
    residual: Array


class Equations:
    """Cross-products of one model, and (1) and (2) at any factors.

    Parameters
    ----------
    terms : sequence of Term
        Columns as conditioned; the sparse fixed effects come last.
    relationships : sequence of Relationship, KnownCovariance or None
        One a random term.
    n_fixed : int
        How many of the terms are sparse fixed effects.
    root : (n,) or None
        Square roots of the weights.
    Q, e : (n, p), (n,)
        Conditioned X and y, weights included.
    reml : bool
    make_factor : callable, optional
        (m, rows, columns) -> the factor of a pattern; `SparseFactor` on one thread unless given.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        relationships: Sequence[Known | None],
        n_fixed: int,
        root: Array | None,
        Q: Array,
        e: Array,
        reml: bool,
        make_factor: Callable[[int, Index, Index], Factor] = SparseFactor,
    ) -> None:
        self.terms, self.reml = tuple(terms), reml
        self.relationships = tuple(r.inverse if isinstance(r, KnownCovariance) else r for r in relationships)
        self.n, self.p = Q.shape
        self.n_random = len(terms) - n_fixed
        self.widths = [t.n_columns for t in terms]
        self.levels = [int(t.n_levels or 0) for t in terms]
        ends = np.cumsum([0, *(q * l for q, l in zip(self.levels, self.widths, strict=True))])
        self.slices = [slice(int(i), int(j)) for i, j in pairwise(ends)]
        self.m = int(ends[-1])
        n_absorbed = sum(self.levels[self.n_random :])
        self.nu = float(self.n - self.p - n_absorbed if reml else self.n)
        matrices = self._products(root, np.column_stack([Q, e]))
        self.blocks = [self._pair(k, other, matrices) for k in range(len(terms)) for other in range(k + 1)]
        self.blocks = [b for b in self.blocks if len(b.a)]
        rows, columns = self._places()
        self.factor = self._constrained(make_factor(self.m, rows, columns))
        if self.factor.seconds > LONG:
            warn(
                f"each evaluation of the criterion is predicted to take {in_words(self.factor.seconds)} of one core, "
                "and a fit has five to ten of them: levels meet too widely to be eliminated cheaply",
                FastLMMWarning,
            )
        self.random_factor: Factor | ConstrainedFactor | None = None
        if n_fixed and not reml:
            inside = rows < ends[self.n_random]
            self.random_entries = inside
            inner = make_factor(int(ends[self.n_random]), rows[inside], columns[inside])
            self.random_factor = self._constrained(inner)
        self.log_a = sum(r.logdet * l for r, l in zip(self.relationships, self.widths, strict=False) if r is not None)

    def _products(self, root: Array | None, E: Array) -> Sequence[sp.csr_array]:
        """Make Z, Z'E, E'E and C = Z'Z of rows E (n, p + 1); matrices, one a term, whose levels meet where Z's do."""
        matrices = [level_columns(t, root) for t in self.terms]
        self.Z = sp.csr_array(sp.hstack(matrices, format="csr")) if matrices else sp.csr_array((self.n, 0))
        self.ZE, self.EE = np.asarray(self.Z.T @ E), E.T @ E
        self.C = sp.csr_array(self.Z.T @ self.Z)
        return matrices

    def _pair(self, k: int, other: int, matrices: Sequence[sp.csr_array]) -> Blocks:
        """Blocks of two terms, with those of the precision's pattern."""
        l, w = self.widths[k], self.widths[other]
        found = sp.bsr_array(sp.csr_array(matrices[k].T @ matrices[other]), blocksize=(l, w))
        a = np.repeat(np.arange(self.levels[k]), np.diff(found.indptr)).astype(np.int64)
        b, C, P = found.indices.astype(np.int64), found.data, None
        if k == other:
            lower = a >= b
            a, b, C = a[lower], b[lower], C[lower]
            q = self.levels[k]
            if k >= self.n_random:
                precision = sp.coo_array((q, q))
            elif (relationship := self.relationships[k]) is None:
                precision = sp.eye_array(q, format="coo")
            else:
                precision = sp.tril(relationship.pinned).tocoo()
            mine = a * q + b
            theirs = precision.row.astype(np.int64) * q + precision.col
            diagonal = np.arange(q, dtype=np.int64) * (q + 1)
            every = np.sort(np.concatenate([mine, theirs, diagonal]))
            every = every[np.concatenate([[True], every[1:] != every[:-1]])]
            full = np.zeros((len(every), l, l))
            full[np.searchsorted(every, mine)] = C
            P = np.zeros(len(every))
            P[np.searchsorted(every, theirs)] = precision.data
            a, b = np.divmod(every, q)
            C = full
        inside = np.arange(l)[:, None] >= np.arange(w)
        keep = np.ones((len(a), l, w), bool)
        if k == other:
            keep[a == b] = inside
        return Blocks(k, other, a, b, C, P, np.argwhere(keep.reshape(len(a), l * w)).astype(np.int64))

    def _constrained(self, factor: Factor) -> Factor | ConstrainedFactor:
        """The factor under the constraints of intrinsic precisions, if there are any."""
        pins, N = [], []
        for k, relationship in enumerate(self.relationships):
            if relationship is None or relationship.components is None:
                continue
            l, at = self.widths[k], self.slices[k].start
            pins.append((at + relationship.pins[:, None] * l + np.arange(l)).ravel())
            own = np.zeros((factor.m, len(pins[-1])))
            own[self.slices[k]] = np.kron(relationship.constraints, np.eye(l))
            N.append(own)
        return ConstrainedFactor(factor, np.concatenate(pins), np.column_stack(N)) if pins else factor

    def _places(self) -> tuple[Index, Index]:
        """Rows and columns of M's lower triangle, block list by block list."""
        rows, columns = [], []
        for block in self.blocks:
            l, w = block.C.shape[1:]
            at, inner = block.entries.T
            rows.append(self.slices[block.k].start + block.a[at] * l + inner // w)
            columns.append(self.slices[block.other].start + block.b[at] * w + inner % w)
        return np.concatenate(rows), np.concatenate(columns)

    def scaled(self, factors: Sequence[Array], columns: Array) -> Array:
        """Lambda' times columns (m, c)."""
        out = columns.copy()
        for L, q, l, where in zip(factors, self.levels, self.widths, self.slices, strict=False):
            out[where] = (L.T @ columns[where].reshape(q, l, -1)).reshape(q * l, -1)
        return out

    def unscaled(self, factors: Sequence[Array], u: Array) -> Array:
        """Lambda times columns (m, c)."""
        return self.scaled([L.T for L in factors], u)

    def matrix(self, factors: Sequence[Array]) -> Array:
        """Values of M's lower triangle; sparse fixed effects have no factor."""
        every = [*factors, *(np.eye(1) for _ in range(len(self.terms) - len(factors)))]
        values = []
        for block in self.blocks:
            M = every[block.k].T @ block.C @ every[block.other]
            if block.P is not None:
                i = np.arange(M.shape[1])
                M[:, i, i] += block.P[:, None]
            at, inner = block.entries.T
            values.append(M.reshape(len(M), -1)[at, inner])
        return np.concatenate(values)

    def matrix_change(self, factors: Sequence[Array], k: int, dL: Array) -> Array:
        """The change of `matrix` with a change dL (l, l) of a random term's factor."""
        every = [*factors, *(np.eye(1) for _ in range(len(self.terms) - len(factors)))]
        values = []
        for block in self.blocks:
            M = np.zeros_like(block.C)
            if block.k == k:
                M += dL.T @ block.C @ every[block.other]
            if block.other == k:
                M += every[block.k].T @ block.C @ dL
            at, inner = block.entries.T
            values.append(M.reshape(len(M), -1)[at, inner])
        return np.concatenate(values)

    def solve(self, factors: Sequence[Array]) -> Solved:
        """Equations (1) at factors L (l, l), one a random term.

        Raises
        ------
        NumericalError
            The equations are not positive definite.
        """
        p = self.p
        values = self.matrix(factors)
        logdet = self.factor.refactor(values)
        ZE = self.scaled(factors, self.ZE)
        U = self.factor.solve(ZE)
        D = self.EE - ZE.T @ U
        try:
            L = np.linalg.cholesky(0.5 * (D + D.T))
        except np.linalg.LinAlgError:
            raise NumericalError("X'V^-1X is not positive definite") from None
        r2 = float(L[p, p] ** 2)
        beta = np.linalg.solve(L[:p, :p].T, L[p, :p]) if p else np.zeros(0)
        u = U[:, p] - U[:, :p] @ beta
        if self.random_factor is not None:
            logdet = self.random_factor.refactor(values[self.random_entries])
        value = logdet + self.beside(D[:p, :p], r2)
        residual = self.ZE[:, p] - self.ZE[:, :p] @ beta - self.C @ self.unscaled(factors, u[:, None])[:, 0]
        return Solved(float(value), tuple(factors), beta, u, U[:, :p], D[:p, :p], r2, residual)

    def beside(self, D: Array, r2: float) -> float:
        """The criterion less log|M|, from X'V^-1X (p, p) and r^2."""
        value = self.log_a + self.nu * (1.0 + np.log(2.0 * np.pi * r2 / self.nu))
        return float(value + (np.linalg.slogdet(D)[1] if self.reml and self.p else 0.0))

    def inverse_on_blocks(self, at: Solved) -> list[Array]:
        """T (nb, l, l') of each list of blocks, without those of absorbed effects by ML; the factor is gone then."""
        selected = (self.factor if self.random_factor is None else self.random_factor).inverse()
        G = at.U @ np.linalg.cholesky(np.linalg.inv(at.D)) if self.p else at.U  # U D^-1 U' = G G'
        out, place = [], 0
        for block in self.blocks:
            if self.random_factor is not None and block.k >= self.n_random:
                continue
            T = self._block_inverse(block, selected[place : place + len(block.entries)])
            place += len(block.entries)
            if self.reml and self.p:
                T += self.by_level(G, block.k)[block.a] @ self.by_level(G, block.other)[block.b].transpose(0, 2, 1)
            out.append(T)
        return out

    def inverse_blocks(self, factors: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Of each term, blocks (q, l, l) of the inverse equations' diagonal: beta known, and estimated with it."""
        at = self.solve(factors)
        known, D = self.on_diagonal(self.factor.inverse()), np.linalg.inv(at.D)
        by_level = [self.by_level(at.U, k) for k in range(len(self.terms))]
        return known, [T + rows @ D @ rows.transpose(0, 2, 1) for T, rows in zip(known, by_level, strict=True)]

    def on_diagonal(self, selected: Array) -> list[Array]:
        """Blocks (q, l, l) of each term's levels from a matrix's entries on the pattern of M."""
        out, place = [], 0
        for block in self.blocks:
            values = selected[place : place + len(block.entries)]
            place += len(block.entries)
            if block.k == block.other:
                out.append(self._block_inverse(block, values)[block.a == block.b])
        return out

    def images_of_rows(self, k: int, directions: Array, columns: Array) -> list[Array]:
        """Z_k (A_k x E) Z_k' times columns (n, c) for each direction E (r, l, l)."""
        q, l, Z = self.levels[k], self.widths[k], self.Z[:, self.slices[k]]
        inner = Z.T @ columns
        relationship = self.relationships[k]
        if relationship is not None:
            inner = relationship.times(inner.reshape(q, -1))
        inner = inner.reshape(q, l, -1)
        return [np.asarray(Z @ (E @ inner).reshape(q * l, -1)) for E in directions]

    def of_levels(self, z: sp.csr_array) -> tuple[sp.csr_array, Array]:
        """Rows z (n, levels and columns of all terms) of effects as rows (n, m) of Lambda u, and what u does not know.

        The latter (n,) is the variance of the first term's effects that no row bears on, over sigma^2 L^2.
        """
        return z, np.zeros(z.shape[0])

    @property
    def of_effects(self) -> list[slice]:
        """Place of each term among the columns of `of_levels`."""
        return self.slices

    def every_factor(self, at: Solved) -> list[Array]:
        """L (l, l) of each term, one for sparse fixed effects."""
        return [*at.factors, *(np.eye(1) for _ in range(len(self.terms) - self.n_random))]

    def gradients(self, at: Solved, inverse: Sequence[Array] | None = None) -> tuple[Array, ...]:
        """Equation (2), whole matrices (l, l), one a random term; `inverse` is `inverse_on_blocks`."""
        every = self.every_factor(at)
        out = [np.zeros((l, l)) for l in self.widths]
        inverse = self.inverse_on_blocks(at) if inverse is None else inverse
        D_inverse = np.linalg.inv(at.D)
        for block, T in zip(self.blocks, inverse, strict=False):
            CT = block.times[:, None, None] * block.C
            out[block.k] += np.einsum("nij,jk,nlk->il", CT, every[block.other], T, optimize=True)
            out[block.other] += np.einsum("nij,ik,nkl->jl", CT, every[block.k], T, optimize=True)
        for k in range(self.n_random):
            if self.reml and self.p:
                fixed = self.by_level(self.ZE[:, : self.p] @ D_inverse, k)
                out[k] -= 2.0 * np.einsum("qip,qjp->ij", fixed, self.by_level(at.U, k))
            e, v = self.by_level(at.residual[:, None], k)[:, :, 0], self.by_level(at.u[:, None], k)[:, :, 0]
            out[k] -= 2.0 * self.nu / at.r2 * e.T @ v
        return tuple(out[: self.n_random])

    def _block_inverse(self, block: Blocks, values: Array) -> Array:
        """T (nb, l, l') of a block list from its entries of the inverse."""
        nb, l, w = block.C.shape
        flat = np.zeros((nb, l * w))
        flat[block.entries[:, 0], block.entries[:, 1]] = values
        T = flat.reshape(nb, l, w)
        if block.k == block.other and l > 1:
            on = block.a == block.b
            lower = T[on]
            T[on] = lower + np.tril(lower, -1).transpose(0, 2, 1)
        return T

    def by_level(self, columns: Array, k: int) -> Array:
        """(q, l, c) rows of a term."""
        return columns[self.slices[k]].reshape(self.levels[k], self.widths[k], columns.shape[1])

    def information(self, at: Solved, directions: Sequence[tuple[int, Array]]) -> Array:
        """Average information (r, r) of changes dL, each (term, (l, l)); before `gradients`.

        f_a = (dV/da) P y = Z g_a with g_a = dL u + L (A x dL') t, t = Z'Py; A t by a solve with the precision.
        """
        g = self.images(at, directions)
        Cg = self.C @ g
        return self.average(at, g.T @ Cg, Cg, self.ZE[:, : self.p].T @ g, g.T @ at.residual)

    def images(self, at: Solved, directions: Sequence[tuple[int, Array]]) -> Array:
        """The g (m, r) of `information`."""
        g = np.zeros((self.m, len(directions)))
        for a, (k, dL) in enumerate(directions):
            u = self.by_level(at.u[:, None], k)[:, :, 0]
            if self.widths[k] == 1:  # L A dL't = dL u
                g[self.slices[k], a] = (2.0 * dL[0, 0]) * u[:, 0]
                continue
            t = self.by_level(at.residual[:, None], k)[:, :, 0]
            relationship = self.relationships[k]
            At = t if relationship is None else relationship.times(t)
            g[self.slices[k], a] = (u @ dL.T + At @ dL @ at.factors[k].T).ravel()
        return g

    def average(self, at: Solved, within: Array, Zf: Array, Xf: Array, along: Array) -> Array:
        """Average information (r, r) from products of f_a with R^-1: f'f, Z'f (m, r), X'f (p, r), y'P f (r,)."""
        scaled = self.scaled(at.factors, Zf)
        F = Xf - at.U.T @ scaled  # the fixed effects' share, less what M explains
        inner = within - scaled.T @ self.factor.solve(scaled, rough=True) - F.T @ np.linalg.solve(at.D, F)
        return np.asarray(self.nu * (inner / at.r2 - np.outer(along, along) / at.r2**2))


def in_words(seconds: float) -> str:
    """A time, in its unit."""
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2.0 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"


def covariates(term: Term, root: Array | None) -> Array:
    """Columns (n, l) of a term, ones for an intercept, weights' roots in the rows."""
    z = np.ones((len(term.codes), 1)) if term.z is None else term.z
    return z if root is None else z * root[:, None]


def level_columns(term: Term, root: Array | None) -> sp.csr_array:
    """Z of a term (n, q l), levels slowest, weights' roots in the rows."""
    n, l, z = len(term.codes), term.n_columns, covariates(term, root)
    columns = term.codes.astype(np.int64)[:, None] * l + np.arange(l)
    return sp.csr_array(
        (z.ravel(), columns.ravel(), np.arange(0, n * l + 1, l)), shape=(n, int(term.n_levels or 0) * l)
    )
