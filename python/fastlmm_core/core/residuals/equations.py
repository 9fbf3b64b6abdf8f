"""Mixed-model equations beside a residual structure: any random effects, relationships, sparse fixed effects.

    V = W^-1/2 R(phi) W^-1/2 + sum_k Z_k (A_k x Sigma_k) Z_k',    C(phi) = E'R^-1E,    E = W^1/2 [Z X y]
    f = log|R| + f_equations(C, L)                                                  (`core.equations`, (1))       (1)
    F = df/dC = [Lambda T Lambda', -Lambda U D^-1, 0; ., D^-1, 0; 0, 0, 0] + (nu / r^2) c c',  c = (-b, -beta, 1) (2)
    df/dphi_a = sum_g <N_g P_g - P_g K_g P_g, R_a>                K = adjoint of F (`folded`)                     (3)

T, U and D as in `core.equations`; by maximum likelihood D^-1 is left out and T = M^-1 alone. Average information of
phi_a with f_a = R_a R^-1 e, e = y - X beta - Z b and K^c the adjoint of cc':

    f_a'R^-1 f_b = sum_g <P R_a P R_b P, K^c>,    E'R^-1 f_a = -(dC/dphi_a) c                                     (4)

None of it touches the rows where levels do not change within subjects. See Gilmour, Thompson and Cullis (1995) for (4).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fastlmm_core._native.criterion.patterns import factor
from fastlmm_core.core.residuals.folded import Folded
from fastlmm_core.core.residuals.model import ResidualModel
from fastlmm_core.core.residuals.moments import Batch
from fastlmm_core.core.structures.equations import Blocks, Equations, Solved, level_columns
from fastlmm_core.core.structures.relationship import Known
from fastlmm_core.core.structures.sparse_factor import SparseFactor
from fastlmm_core.core.terms import Term

__all__ = ["ResidualEquations"]

Array = NDArray[np.float64]


class ResidualEquations(Equations):
    """Equations (1) to (4); C, ZE and EE are those of the last `at_residual`.

    Parameters
    ----------
    model : ResidualModel
        R of a subject, without random effects.
    parts : sequence of Batch
        Of the rows [Q, e]; a unit is a subject.
    terms, relationships, n_fixed, root, Q, e, reml, threads, n_bytes
        As of `Equations`.
    """

    def __init__(
        self,
        model: ResidualModel,
        parts: Sequence[Batch],
        terms: Sequence[Term],
        relationships: Sequence[Known | None],
        n_fixed: int,
        root: Array | None,
        Q: Array,
        e: Array,
        reml: bool,
        threads: int = 1,
        n_bytes: int | None = None,
    ) -> None:
        self.fold = Folded(parts, terms, root, np.column_stack([Q, e]))
        make_factor = partial(SparseFactor, threads=threads, n_bytes=n_bytes)
        super().__init__(terms, relationships, n_fixed, root, Q, e, reml, make_factor)
        self.fold.follow(self.blocks, n_bytes)
        self.model = model
        self.prepared = [model.prepare(part.rows) for part in parts]
        self._whole = self._symmetric()

    def _products(self, root: Array | None, E: Array) -> Sequence[sp.csr_array]:
        """Z, and levels that meet in a unit; the products are `at_residual`'s."""
        matrices = [level_columns(t, root) for t in self.terms]
        self.Z = sp.csr_array(sp.hstack(matrices, format="csr")) if matrices else sp.csr_array((self.n, 0))
        return [self.fold.meetings(t) for t in self.terms]

    def _symmetric(self) -> tuple[sp.csr_array, NDArray[np.int64]]:
        """Z'R^-1Z as a matrix, and which of the blocks' entries each of its values is."""
        rows, columns, where, at = [], [], [], 0
        for block in self.blocks:
            nb, l, w = block.C.shape
            i, j = np.divmod(np.arange(l * w), w)
            r = self.slices[block.k].start + block.a[:, None] * l + i
            c = self.slices[block.other].start + block.b[:, None] * w + j
            own = np.arange(at, at + nb * l * w).reshape(nb, l * w)
            at += nb * l * w
            twice = (block.a != block.b) if block.k == block.other else np.ones(nb, bool)
            rows += [r.ravel(), c[twice].ravel()]
            columns += [c.ravel(), r[twice].ravel()]
            where += [own.ravel(), own[twice].ravel()]
        place = np.concatenate(where) + 1.0
        matrix = sp.csr_array((place, (np.concatenate(rows), np.concatenate(columns))), shape=(self.m, self.m))
        return matrix, matrix.data.astype(np.int64) - 1

    def _assembled(self, C: Sequence[Array]) -> sp.csr_array:
        """Z'R^-1Z, or what is linear in it, from its entries on each list of blocks."""
        matrix, where = self._whole
        return sp.csr_array((np.concatenate(C)[where], matrix.indices, matrix.indptr), shape=matrix.shape)

    def _outer(self, b: Array, block: Blocks, weight: float | Array) -> Array:
        """Weight b b' (nb, l, l') on a list of blocks, b (m,)."""
        left, right = self.by_level(b[:, None], block.k)[block.a], self.by_level(b[:, None], block.other)[block.b]
        return np.asarray(weight * left @ right.transpose(0, 2, 1))

    def at_residual(self, phi: Array) -> tuple[list[Array], list[Array], float]:
        """Take the residual parameters phi (r,): inverses P (k, m, m) and directions (k, m, r, m) a batch, log|R|.

        Raises
        ------
        NumericalError
            Some R is not positive definite.
        """
        inverses, directions, logdet = [], [], 0.0
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for part, at in zip(self.fold.parts, self.prepared, strict=True):
                R, S = self.model.values(phi, at)
                _, P, own = factor(np.ascontiguousarray(R), part.counts)
                inverses.append(P)
                directions.append(S)
                logdet += own
        C, self.ZE, self.EE = self.fold.forward(inverses)
        for block, values in zip(self.blocks, C, strict=True):
            block.C[...] = values.reshape(block.C.shape)
        self.C = self._assembled(C)
        return inverses, directions, logdet

    def contrast(self, at: Solved) -> tuple[Array, Array]:
        """-b (m,) and (-beta, 1) (p + 1,), c of (2)."""
        return -self.unscaled(at.factors, at.u[:, None])[:, 0] if self.m else at.u, np.append(-at.beta, 1.0)

    def products_adjoint(self, at: Solved, inverse: Sequence[Array]) -> list[Array]:
        """K (k, m, m) of each batch for F of (2); `inverse` is `inverse_on_blocks`."""
        p, every, scale = self.p, self.every_factor(at), self.nu / at.r2
        b, c = self.contrast(at)
        F = []
        for number, block in enumerate(self.blocks):
            f = self._outer(b, block, scale)
            if number < len(inverse):
                f = f + every[block.k] @ inverse[number] @ every[block.other].T
            F.append((block.times[:, None, None] * f).ravel())
        FZ, FE = scale * np.outer(b, c), scale * np.outer(c, c)
        if self.reml and p:
            D = np.linalg.inv(at.D)
            FZ[:, :p] -= self.unscaled(every, at.U) @ D
            FE[:p, :p] += D
        return self.fold.adjoint(F, FZ, FE)

    def residuals_adjoint(self, at: Solved) -> list[Array]:
        """K^c (k, m, m) of each batch, of (4): sums over units of e e'."""
        b, c = self.contrast(at)
        F = [self._outer(b, block, block.times[:, None, None]).ravel() for block in self.blocks]
        return self.fold.adjoint(F, np.outer(b, c), np.outer(c, c))

    def moved(
        self, at: Solved, inverses: Sequence[Array], directions: Sequence[Array]
    ) -> tuple[Array, Array, Array, list[list[Array]]]:
        """Of each residual parameter -(dC/dphi_a) c as Z'f (m, r), X'f (p, r), y'P f (r,); P R_a P of each batch."""
        b, c = self.contrast(at)
        r, p = self.model.n, self.p
        Zf, Xf, along, products = np.empty((self.m, r)), np.empty((p, r)), np.empty(r), []
        for a in range(r):
            turned = [P @ S[:, :, a] @ P for P, S in zip(inverses, directions, strict=True)]
            C, ZE, EE = self.fold.forward(turned)
            Zf[:, a] = self._assembled(C) @ b + ZE @ c  # dC = -sum of P R_a P
            of_dense = ZE.T @ b + EE @ c
            Xf[:, a] = of_dense[:p]
            along[a] = b @ Zf[:, a] + c @ of_dense
            products.append(turned)
        return Zf, Xf, along, products

    def fixed_slopes(self, at: Solved, products: Sequence[Sequence[Array]]) -> Array:
        """-dD/dphi_a (r, p, p), D = X'V^-1X, from P R_a P of each batch."""
        p, out = self.p, []
        G = -self.unscaled(self.every_factor(at), at.U)
        for turned in products:
            C, ZE, EE = self.fold.forward(turned)
            cross = G.T @ ZE[:, :p]
            out.append(G.T @ (self._assembled(C) @ G) + cross + cross.T + EE[:p, :p])
        return np.array(out).reshape(len(products), p, p)
