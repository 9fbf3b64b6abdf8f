"""The criterion of a model whose units are independent, with exact gradient and Hessian, from patterns' moments.

With R_g the relative covariance of pattern g (N_g units), A = [X y]'V^-1[X y], r^2 the Schur complement of A_XX, Phi =
A_XX^-1, beta = Phi A_Xy, c = (-beta, 1), nu = n - p (REML) or n (ML), R_a = dR/dphi_a, W_a = R_g^-1 R_a and K_g as in
`moments`:

    f    = sum_g N_g log|R_g| + [REML] log|A_XX| + nu (1 + log(2 pi r^2 / nu))                                   (1)
    F    = df/dA = [REML] Phi + (nu / r^2) cc',      G_g = N_g R_g^-1 - R_g^-1 K_g R_g^-1                          (2)
    f_a  = sum_g <G_g, R_a>                                                                                       (3)
    f_ab = sum_g { <G_g, R_ab> - N_g tr(W_a W_b) + <W_a W_b R_g^-1 + W_b W_a R_g^-1, K_g> }
           - [REML] tr(Phi A_a Phi A_b) - (2 nu / r^2) (A_a c)_X'Phi(A_b c)_X - nu (c'A_a c)(c'A_b c) / r^4        (4)

with A_a = dA/dphi_a. n does not enter but through the moments. See Jennrich and Schluchter (1986) for (1) to (3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from fastlmm_core._native.criterion.patterns import add_derivatives, factor
from fastlmm_core.core.residuals.model import ResidualModel
from fastlmm_core.core.residuals.moments import Batch, Symmetric
from fastlmm_core.errors import NumericalError

__all__ = ["Evaluation", "PatternCriterion"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Criterion and derivatives at one phi, in the coordinates of the moments (X orthonormal, y scaled).

    Attributes
    ----------
    value : float
    gradient, hessian : (r,), (r, r)
    phi : (r,)
    beta, Phi : (p,), (p, p)
    r2, nu : float
    slopes : (r, p, p)
        X'V^-1X differentiated, A_a.
    r2_slopes : (r,)
        r^2 differentiated.
    """

    value: float
    gradient: Array
    hessian: Array
    phi: Array
    beta: Array
    Phi: Array
    r2: float
    nu: float
    slopes: Array
    r2_slopes: Array


class PatternCriterion:
    """Equation (1) as a function of phi.

    Parameters
    ----------
    model : ResidualModel
    parts : sequence of Batch
    n, p : int
    reml : bool
    constant : float
        What does not depend on phi: of scaling y and X, and of weights.
    """

    def __init__(self, model: ResidualModel, parts: list[Batch], n: int, p: int, reml: bool, constant: float) -> None:
        self.model, self.parts, self.p, self.reml, self.constant = model, parts, p, reml, constant
        self.nu = float(n - p if reml else n)
        self.prepared = [model.prepare(part.rows) for part in parts]

    def factors(self, phi: Array) -> tuple[list[tuple[Array, Array, Array]], float]:
        """C with R^-1 = C'C, R^-1 and the directions (k, m, r, m) of each batch; all units' log-determinant.

        Raises
        ------
        NumericalError
            Some R is not positive definite.
        """
        out, logdet = [], 0.0
        for part, at in zip(self.parts, self.prepared, strict=True):
            R, S = self.model.values(phi, at)
            C, P, own = factor(np.ascontiguousarray(R), part.counts)
            logdet += own
            out.append((C, P, S))
        return out, logdet

    def inverses(self, phi: Array) -> tuple[list[tuple[Array, Array]], float]:
        """As `factors`, without C."""
        found, logdet = self.factors(phi)
        return [(P, S) for _, P, S in found], logdet

    def share_left(self, phi: Array) -> float:
        """The least part of a row's variance that the unit's other rows do not explain."""
        worst = 1.0
        for part, at in zip(self.parts, self.prepared, strict=True):
            R = np.ascontiguousarray(self.model.values(phi, at)[0])
            _, P, _ = factor(R, part.counts)
            inflation = np.diagonal(R, axis1=1, axis2=2) * np.diagonal(P, axis1=1, axis2=2)
            worst = max(worst, float(inflation.max(initial=1.0)))
        return 1.0 / worst

    def __call__(self, phi: Array) -> Evaluation:
        """Evaluate at phi (r,); NumericalError where some covariance is not positive definite."""
        p, nu = self.p, self.nu
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            factors, logdet = self.factors(phi)
        A = np.zeros((p + 1, p + 1))
        for part, (_, P, _) in zip(self.parts, factors, strict=True):
            A += part.products(P)
        try:
            L = np.linalg.cholesky(0.5 * (A + A.T))
        except np.linalg.LinAlgError:
            raise NumericalError("X'V^-1X is not positive definite") from None
        r2 = float(L[p, p] ** 2)
        half = solve_triangular(L[:p, :p], np.eye(p), lower=True) if p else np.zeros((0, 0))
        Phi = half.T @ half
        beta = half.T @ L[p, :p]
        value = logdet + nu * (1.0 + np.log(2.0 * np.pi * r2 / nu)) + self.constant
        if self.reml:
            value += 2.0 * float(np.log(np.diag(L)[:p]).sum())
        if not np.isfinite(value):
            raise NumericalError("the criterion is not finite")
        c = np.append(-beta, 1.0)
        gradient, hessian, slopes = self._derivatives(phi, factors, Phi, c, r2)
        Ac = slopes @ c
        return Evaluation(float(value), gradient, hessian, phi, beta, Phi, r2, nu, slopes[:, :p, :p], Ac @ c)

    def _derivatives(
        self, phi: Array, factors: list[tuple[Array, Array, Array]], Phi: Array, c: Array, r2: float
    ) -> tuple[Array, Array, Array]:
        """Equations (3) and (4), and A_a (r, p + 1, p + 1)."""
        p, nu, r = self.p, self.nu, self.model.n
        F = nu / r2 * np.outer(c, c)
        if self.reml:
            F[:p, :p] += Phi
        gradient, hessian = np.zeros(r), np.zeros((r, r))
        order = Symmetric(p + 1)
        packed, weights = np.zeros((r, len(order.rows))), []
        for part, (C, _, S) in zip(self.parts, factors, strict=True):
            weights.append(add_derivatives(C, S, part.counts, part.moments, part.E, F, gradient, hessian, packed))
        slopes = order.unpack(packed)
        hessian += self.model.curvature(phi, self.prepared, weights)
        if self.reml:
            moved = Phi @ slopes[:, :p, :p]
            hessian -= moved.reshape(r, p * p) @ moved.transpose(0, 2, 1).reshape(r, p * p).T
        Ac = slopes @ c
        quadratic = Ac @ c
        hessian -= 2.0 * nu / r2 * (Ac[:, :p] @ Phi @ Ac[:, :p].T) + nu / r2**2 * np.outer(quadratic, quadratic)
        return gradient, 0.5 * (hessian + hessian.T), slopes
