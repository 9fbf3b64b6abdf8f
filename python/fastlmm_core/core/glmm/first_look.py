"""A fast first look: the fixed effects are found together with the modes, so that theta alone is searched over.

    d(theta, rho) = h(u~, beta~) + log|M|,   (u~, beta~) the joint minimiser of h

This is lme4's ``nAGQ = 0``. With J the joint penalised matrix of u and gamma the adjoint solve becomes
c~ = c - W [A X] J^-1 [A X]'c, which is the Laplace engine's with beta's share taken off, and the model Hessian is its
Schur complement on gamma. Standard errors are those of beta given theta.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.control import Control
from fastlmm_core.core.curvature import second_derivatives
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.glmm.effects import Effects
from fastlmm_core.core.glmm.laplace import MAX_STEPS, SMALL, Laplace, solved
from fastlmm_core.errors import NumericalError

__all__ = ["FirstLook"]

Array = NDArray[np.float64]


class FirstLook(Laplace):
    """The engine in which gamma, of psi = (theta, gamma, rho), is not the optimiser's: its gradient is zero.

    Parameters
    ----------
    design : GlmmDesign
    control : Control
    """

    def __init__(self, design: GlmmDesign, control: Control) -> None:
        super().__init__(design, control)
        self.gamma = slice(design.n_theta, design.n_theta + design.rank)

    def value(self, psi: Array) -> float:
        """The deviance at psi, whose gamma is only where the search for it begins."""
        start = psi.copy()
        if self.slopes is not None:
            start[self.gamma] = self.psi_at[self.gamma]
        self.found = start[self.gamma]
        out = super().value(start)
        assert self.psi_now is not None
        self.psi_now[self.gamma] = self.found
        return out

    def follow_modes(
        self, t: Effects, base: Array, rho: float, h: float, u: Effects, b: Effects, zb: Array
    ) -> tuple[bool, float, Effects, Effects, Array]:
        """Nowhere: gamma has to move as well."""
        return False, h, u, b, zb

    def find_modes(
        self, base: Array, rho: float, h: float, u: Effects, b: Effects, zb: Array
    ) -> tuple[float, Effects, bool]:
        """Joint Newton steps in u and gamma from a start whose rows are in ``out``."""
        s, w = self.out[0], self.out[1]
        eta = base + zb
        for _ in range(MAX_STEPS):
            held = w.copy()
            observed = self.factored(held)
            if not observed:
                np.maximum(w, self.out[2], out=held)
                if not self.factored(held):
                    raise NumericalError("the rows' weights are not those of a minimum")
            sums, ahead, rest = self.solve(self.theta, np.vstack([s, s + held * zb, held * self.xt]))
            x = slice(2, None)
            xx = (held * self.xt) @ self.xt.T - sums[x].dot(ahead[x])
            right = self.xt @ s - sums[x].dot(ahead[1:2] - b)[:, 0]
            shift = solved(xx, right)
            u_new, b_new = self.spherical(self.lam, rest[1:2] - rest[x].combined(shift))
            slope, _ = self.spherical(self.lam, sums[0:1])
            step, db = u_new - u, b_new - b
            decrement = float((slope - u).dot(step)[0, 0]) + float(self.xt @ s @ shift)
            if not np.isfinite(decrement):
                raise NumericalError("the modes' search broke down")
            scale, dz, dx = 1.0, self.linear(db)[0], shift @ self.xt
            while True:
                value = float((u + step * scale).dot(u + step * scale)[0, 0])
                value -= 2.0 * self.row_pass(eta + scale * (dz + dx), rho)
                if value <= h + 1e-12 * (abs(h) + 1.0) or (decrement < 1e-10 and np.isfinite(value)):
                    break
                scale *= 0.5
                if scale < 1e-10:
                    raise NumericalError("no step towards the modes lowers the penalised deviance")
            h, u, b = value, u + step * scale, b + db * scale
            zb, eta = zb + scale * dz, eta + scale * (dz + dx)
            self.found = self.found + scale * shift
            if decrement * (decrement if observed else 1.0) < SMALL:
                return h, b, False
        raise NumericalError(f"the modes were not found in {MAX_STEPS} steps")

    def fixed_adjoint(self, xx: Array, right: Array) -> Array:
        """The adjoint's part along X: gamma moves with the parameters."""
        return solved(xx, right)

    def reduced(self, gradient: Array, hessian: Array) -> tuple[Array, Array]:
        """Gamma eliminated; in its place a unit curvature without slope, which the optimiser leaves alone."""
        x = self.gamma
        self.fixed_information, self.cross_information = hessian[x, x].copy(), hessian[x].copy()
        hessian = hessian - hessian[:, x] @ solved(self.fixed_information, hessian[x])
        hessian[x], hessian[:, x], gradient[x] = 0.0, 0.0, 0.0
        hessian[x, x] = np.eye(self.design.rank)
        return gradient, hessian

    def settled(self, psi: Array) -> Array:
        """Psi with the gamma of the last value."""
        out = psi.copy()
        if self.psi_now is not None:
            out[self.gamma] = self.psi_now[self.gamma]
        return out

    def information(self, psi: Array) -> Array:
        """That of theta and rho with gamma eliminated; of gamma given them, or with them where rho is an array."""
        out = second_derivatives(self.derivatives, psi)
        self.derivatives(psi)
        x = self.gamma
        out[x], out[:, x] = 0.0, 0.0
        if self.design.family.vector:  # thresholds and coefficients are of one kind
            cross = self.cross_information.copy()
            cross[:, x] = 0.0
            out += cross.T @ solved(self.fixed_information, cross)
            out[x], out[:, x] = cross, cross.T
        out[x, x] = self.fixed_information
        return out
