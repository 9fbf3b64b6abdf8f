"""The criterion of a model whose units are independent, with exact gradient and Hessian, from patterns' moments.

With R_g the relative covariance of pattern g (N_g units), A = [X y]'V^-1[X y], r^2 the Schur complement of A_XX, Phi
= A_XX^-1,
beta = Phi A_Xy, c = (-beta, 1), nu = n - p (REML) or n (ML), R_a = dR/dphi_a, W_a = R_g^-1 R_a and K_g as in `moments`:

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

from fastlmm_core.core.residuals.model import ResidualModel
from fastlmm_core.core.residuals.moments import Batch
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

    def inverses(self, phi: Array) -> tuple[list[tuple[Array, Array]], float]:
        """R^-1 (k, m, m) and directions (k, m, r, m) of each batch, and the log-determinant of all units.

        Raises
        ------
        NumericalError
            Some R is not positive definite.
        """
        out, logdet = [], 0.0
        for part, at in zip(self.parts, self.prepared, strict=True):
            R, S = self.model.values(phi, at)
            try:
                L = np.linalg.cholesky(R)
            except np.linalg.LinAlgError:
                raise NumericalError("the residual covariance is not positive definite") from None
            inverse = np.linalg.inv(L)
            logdet += 2.0 * float(part.counts @ np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1))
            out.append((inverse.transpose(0, 2, 1) @ inverse, S))
        return out, logdet

    def __call__(self, phi: Array) -> Evaluation:
        """Evaluate at phi (r,); NumericalError where some covariance is not positive definite."""
        p, nu = self.p, self.nu
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            inverses, logdet = self.inverses(phi)
        A = np.zeros((p + 1, p + 1))
        for part, (P, _) in zip(self.parts, inverses, strict=True):
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
        gradient, hessian, slopes = self._derivatives(phi, inverses, Phi, c, r2)
        Ac = slopes @ c
        return Evaluation(float(value), gradient, hessian, phi, beta, Phi, r2, nu, slopes[:, :p, :p], Ac @ c)

    def _derivatives(
        self, phi: Array, inverses: list[tuple[Array, Array]], Phi: Array, c: Array, r2: float
    ) -> tuple[Array, Array, Array]:
        """Equations (3) and (4), and A_a (r, p + 1, p + 1)."""
        p, nu, r = self.p, self.nu, self.model.n
        F = nu / r2 * np.outer(c, c)
        if self.reml:
            F[:p, :p] += Phi
        gradient, hessian = np.zeros(r), np.zeros((r, r))
        slopes, weights = np.zeros((r, p + 1, p + 1)), []
        for part, (P, S) in zip(self.parts, inverses, strict=True):
            k, m = part.rows.shape
            PK = P @ part.scores(F)
            G = part.counts[:, None, None] * P - PK @ P
            weights.append(G)
            gradient += np.einsum("ksat,kst->a", S, G)
            # W (k, m, r, m) holds R^-1 R_a
            W = (P @ S.reshape(k, m, r * m)).reshape(k, m, r, m)
            by_parameter = np.ascontiguousarray(W.transpose(0, 2, 1, 3))
            WP = (by_parameter.reshape(k, r * m, m) @ P).reshape(k, r, m, m)
            slopes -= part.directional(WP, P, S)
            turned = np.ascontiguousarray(W.transpose(2, 0, 3, 1)).reshape(r, k * m * m)  # W_a' row by row
            flat = np.ascontiguousarray(by_parameter.transpose(1, 0, 2, 3)).reshape(r, k * m * m)
            hessian -= (turned * np.repeat(part.counts, m * m)) @ flat.T
            WPK = (by_parameter.reshape(k, r * m, m) @ PK).reshape(k, r, m, m).transpose(1, 0, 2, 3)
            pairs = turned @ np.ascontiguousarray(WPK).reshape(r, k * m * m).T
            hessian += pairs + pairs.T
        hessian += self.model.curvature(phi, self.prepared, weights)
        if self.reml:
            moved = Phi @ slopes[:, :p, :p]
            hessian -= moved.reshape(r, p * p) @ moved.transpose(0, 2, 1).reshape(r, p * p).T
        Ac = slopes @ c
        quadratic = Ac @ c
        hessian -= 2.0 * nu / r2 * (Ac[:, :p] @ Phi @ Ac[:, :p].T) + nu / r2**2 * np.outer(quadratic, quadratic)
        return gradient, 0.5 * (hessian + hessian.T), slopes
