"""Adaptive quadrature for one grouping factor and families with several parameters, beside Laplace's approximation.

The deviance and gradient of `_native.criterion.quadrature`, in arrays: with the modes u~ of a level, M = A'WA + I =
C C', nodes u_k = u~ + C^-T z_k and p_k their shares of the level's sum,

    d     = d of Laplace - 2 sum over levels of log sum_k omega_k exp(-(h(u_k) - h(u~)) / 2 + |z_k|^2 / 2)

    q_k = 2 u_k - 2 A's_k,  E = M^-1 - C^-T S C^-1 / 2,  c_i = k_i a_i'E a_i,  v = M^-1 (A'c + sum p_k q_k)

S the symmetric matrix with the lower triangle of (sum p_k z_k q_k') C^-T. Modes, their prediction and the model Hessian
are those of `Laplace`. Cost: a pass over the rows a node for a value, two for a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.glmm.laplace import Laplace
from fastlmm_core.core.glmm.quadrature import gauss_hermite
from fastlmm_core.errors import NumericalError

if TYPE_CHECKING:
    from fastlmm_core.core.control import Control
    from fastlmm_core.core.glmm.design import GlmmDesign

__all__ = ["VectorQuadrature"]

Array = NDArray[np.float64]


class VectorQuadrature(Laplace):
    """The engine of a design with one grouping factor and a `VectorFamily`.

    Parameters
    ----------
    design : GlmmDesign
    n_agq : int
        Points in each dimension.
    control : Control
    """

    def __init__(self, design: GlmmDesign, n_agq: int, control: Control) -> None:
        self.n_agq = n_agq
        self.nodes, weights = gauss_hermite(n_agq, design.groups[0].n_columns)
        self.log_weights = np.log(weights)
        super().__init__(design, control)
        self.codes = design.codes[0]
        self.q, self.l = design.groups[0].n_levels, design.groups[0].n_columns
        self.z = np.ones((design.n, 1)) if design.z[0] is None else design.z[0]

    @property
    def arguments(self) -> tuple[GlmmDesign, int, Control]:
        """See `TakenInTurn`."""
        return self.design, self.n_agq, self.control

    def by_level(self, rows: Array) -> Array:
        """Sums (q, ...) over each level's rows (n, ...)."""
        flat = rows.reshape(len(rows), -1)
        out = np.column_stack([np.bincount(self.codes, column, self.q) for column in flat.T])
        return np.asarray(out.reshape(self.q, *rows.shape[1:]))

    def value(self, psi: Array) -> float:
        """The deviance at psi."""
        value = super().value(psi)
        design, self.rho = self.design, self.design.rho(psi)
        self.m = design.m * design.freq if len(design.freq) else design.m
        self.a = self.z @ self.lam[0]
        self.t = self.by_level(self.out[0][:, None] * self.z)
        self.u = self.t @ self.lam[0]
        self.base = design.fixed_part(psi)
        w = self.out[1]
        self.M = self.by_level(w[:, None, None] * self.a[:, :, None] * self.a[:, None, :]) + np.eye(self.l)
        try:
            self.C = np.linalg.cholesky(self.M)
        except np.linalg.LinAlgError as error:
            raise NumericalError("the rows' weights are not those of a minimum") from error
        at_mode = self.penalised(self.u)
        logs = np.empty((len(self.nodes), self.q))
        for k, node in enumerate(self.nodes):
            u = self.place_of(node)
            logs[k] = self.log_weights[k] + 0.5 * (node @ node) - 0.5 * (self.penalised(u) - at_mode)
        top = logs.max(axis=0)
        if not np.isfinite(top).all():
            raise NumericalError("the likelihood is zero at the nodes")
        shares = np.exp(logs - top)
        sums = shares.sum(axis=0)
        self.shares = shares / sums
        return float(value - 2.0 * (top + np.log(sums)).sum())

    def place_of(self, node: Array) -> Array:
        """U (q, l) of every level at a node."""
        side = np.broadcast_to(node[:, None], (self.q, self.l, 1))
        return np.asarray(self.u + np.linalg.solve(np.swapaxes(self.C, 1, 2), side)[:, :, 0])

    def eta_at(self, u: Array) -> Array:
        """Linear predictors (n,)."""
        return np.asarray(self.base + np.einsum("ij,ij->i", self.a, u[self.codes]))

    def penalised(self, u: Array) -> Array:
        """H (q,) of every level."""
        with np.errstate(all="ignore"):
            l = self.design.family.row(self.y, self.eta_at(u), self.m, self.rho).l
        h = (u**2).sum(axis=1) - 2.0 * self.by_level(l[:, None])[:, 0]
        return np.where(np.isnan(h), np.inf, h)

    def _derivatives(self) -> tuple[Array, Array]:
        """Gradient, and the model Hessian of Laplace's approximation, where the value was last taken."""
        design, out = self.design, self.out
        s_rho = w_rho = np.empty((0, design.n))
        r = design.family.n_extra
        w, kappa = out[1].copy(), out[3].copy()
        if r:
            s_rho, w_rho = out[5 : 5 + r].copy(), out[5 + r : 5 + 2 * r].copy()
        _, hessian = super()._derivatives()
        q_sum, moved = np.zeros((self.q, self.l)), np.zeros((self.q, self.l, self.l))
        s_sum, su, l_rho = np.zeros(design.n), np.zeros((self.l, self.l)), np.zeros(r)
        for node, share in zip(self.nodes, self.shares, strict=True):
            u = self.place_of(node)
            rows = design.family.row(self.y, self.eta_at(u), self.m * share[self.codes], self.rho)
            zs = self.by_level(rows.s[:, None] * self.z)  # its share included
            q = 2.0 * share[:, None] * u - 2.0 * zs @ self.lam[0]
            q_sum += q
            moved += node[:, None] * q[:, None, :]
            s_sum += rows.s
            su += zs.T @ u
            l_rho += rows.lr
        inverse = np.linalg.inv(self.C)  # (q, l, l)
        back = np.swapaxes(inverse, 1, 2)
        lower = np.tril(moved @ back)
        symmetric = lower + np.swapaxes(np.tril(lower, -1), 1, 2)
        E = back @ (np.eye(self.l) - 0.5 * symmetric) @ inverse
        g = np.einsum("ni,nij,nj->n", self.a, E[self.codes], self.a)
        c = kappa * g
        v = np.einsum("qij,qj->qi", back @ inverse, self.by_level(c[:, None] * self.a) + q_sum)
        rest = c - w * np.einsum("ij,ij->i", self.a, v[self.codes])
        nt, p = design.n_theta, design.rank
        wz = self.by_level(w[:, None, None] * self.z[:, :, None] * self.a[:, None, :])  # Z'WZ L
        by_element = self.by_level(rest[:, None] * self.z).T @ self.u + self.t.T @ v
        by_element += 2.0 * np.einsum("qik,qkj->ij", wz, E) - 2.0 * su
        gradient = np.empty(design.n_free)
        gradient[:nt] = by_element[design.theta_map.index[:, 1], design.theta_map.index[:, 2]]
        gradient[nt : nt + p] = self.xt @ (rest - 2.0 * s_sum)
        if r:
            _, first, _ = self.constant(self.rho)
            slope = s_rho @ np.einsum("ij,ij->i", self.a, v[self.codes])
            gradient[nt + p :] = w_rho @ g + slope - 2.0 * (l_rho + first)
            assert self.psi_now is not None
            gradient[design.idle(self.psi_now)] = 0.0
        if not np.isfinite(gradient).all():
            raise NumericalError("the gradient is not finite")
        return gradient, hessian
