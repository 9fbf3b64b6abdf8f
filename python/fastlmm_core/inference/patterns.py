"""Satterthwaite's and Kenward and Roger's methods for models fitted from patterns (`core.residuals`).

The covariance parameters are (phi, log sigma^2), their covariance the inverse of the observed information, as SAS's
PROC MIXED and mmrm have it. With Cov(beta) = H H', V_a = dV/dphi_a and, in coordinates where Cov(beta) is the identity,

    P_a = -X'V^-1 V_a V^-1 X,   Q_ab = X'V^-1 V_a V^-1 V_b V^-1 X,   R_ab = X'V^-1 V_ab V^-1 X    (Kenward & Roger 1997)
    Cov_A = H (1 + 2 U) H',     U = sum_ab W_ab (Q_ab - P_a P_b - R_ab / 4)

W:Q and W:P P do not depend on the parametrisation and are contracted before any sum over rows; W:R does: R_ab is taken
in the parameters that SAS prints (variances and correlations; covariances where V is linear in them, R_ab = 0 then).
The linear form leaves R_ab out (Kenward & Roger 2009 discuss both).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.residuals import PatternFit
from fastlmm_core.core.residuals.criterion import PatternCriterion
from fastlmm_core.core.residuals.moments import Batch
from fastlmm_core.core.residuals.natural import parameters_of, printed
from fastlmm_core.core.slopes import positive_inverse
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.inference.information import VarianceInformation
from fastlmm_core.inference.kenward_roger import Adjustment

__all__ = ["pattern_adjustment", "pattern_information"]

Array = NDArray[np.float64]


def pattern_information(fit: PatternFit) -> VarianceInformation:
    """Observed information in (phi, log sigma^2) and how Cov(beta) moves with them; kept with the fit."""
    if "information" not in fit.kept:
        fit.kept["information"] = _information(fit)
    found: VarianceInformation = fit.kept["information"]
    return found


def _information(fit: PatternFit) -> VarianceInformation:
    point, r = fit.point, len(fit.theta)
    hessian = np.empty((r + 1, r + 1))
    # profiling sigma^2 took off the outer product
    hessian[:r, :r] = point.hessian + point.nu * np.outer(point.r2_slopes, point.r2_slopes) / point.r2**2
    hessian[:r, r] = hessian[r, :r] = -point.nu / point.r2 * point.r2_slopes
    hessian[r, r] = point.nu
    inverse, dropped = positive_inverse(hessian)
    slopes = np.empty((r + 1, fit.rank, fit.rank))
    slopes[:r] = -whitened(fit, point.slopes)
    slopes[r] = np.eye(fit.rank)
    return VarianceInformation(hessian, 2.0 * inverse, dropped, fit.half, slopes)


def whitened(fit: PatternFit, matrices: Array) -> Array:
    """C'(.)C for (..., p, p) matrices of the moments' coordinates, Phi = C C'."""
    root = np.linalg.cholesky(fit.point.Phi) if fit.rank else np.zeros((0, 0))
    return np.asarray(root.T @ matrices @ root)


def pattern_adjustment(fit: PatternFit, linear: bool = False) -> Adjustment:
    """Kenward and Roger's adjustment of a REML fit; kept with the fit.

    Parameters
    ----------
    fit : PatternFit
    linear : bool
        Leave the second derivatives of V out.
    """
    name = "kenward-roger-linear" if linear else "kenward-roger"
    if name not in fit.kept:
        with one_blas_thread():
            fit.kept[name] = _adjustment(fit, linear)
    found: Adjustment = fit.kept[name]
    return found


def _adjustment(fit: PatternFit, linear: bool) -> Adjustment:
    info = pattern_information(fit)
    r, p = len(fit.theta), fit.rank
    model = fit.model.model
    criterion = PatternCriterion(model, fit.parts, fit.n, p, fit.reml, 0.0)
    inverses, _ = criterion.inverses(fit.point.phi)
    W = info.cov
    total = np.zeros((p + 1, p + 1))
    for part, (P, S) in zip(fit.parts, inverses, strict=True):
        total += part.products(_contracted(P, S, W[:r, :r]))
    slopes = -info.slopes  # P_a; of V itself, minus one
    u = whitened(fit, total[:p, :p])
    moved = np.tensordot(W[:r, :r], slopes[:r], 1) if r else np.zeros((0, p, p))
    u = u - np.einsum("axz,azy->xy", slopes[:r], moved)
    if not linear and not is_linear(fit):
        u = u - 0.25 * _second(fit, criterion, inverses, W, slopes)
    u = 0.5 * (u + u.T)
    half = fit.half
    return Adjustment(half, half @ (np.eye(p) + 2.0 * u) @ half.T, slopes, W)


def _contracted(P: Array, S: Array, W: Array) -> Array:
    """(k, m, m) sum over a, b of W_ab R^-1 R_a R^-1 R_b R^-1."""
    k, m, r, _ = S.shape
    left = (P @ S.reshape(k, m, r * m)).reshape(k, m, r, m)  # R^-1 R_a
    weighted = np.einsum("ab,ksbt->ksat", W, left, optimize=True)
    # rows s of R^-1 R_a against columns of sum_b W_ab R^-1 R_b R^-1
    right = (weighted.transpose(0, 2, 1, 3).reshape(k, r * m, m) @ P).reshape(k, r * m, m)
    out = left.reshape(k, m, r * m) @ right
    return np.asarray(0.5 * (out + out.transpose(0, 2, 1)))


def is_linear(fit: PatternFit) -> bool:
    """Whether V is linear in the printed parameters: covariances of random effects, us, and homogeneous cs and toep."""
    model = fit.model
    return model.model.shape.linear and model.residual.dispersion is None and not model.residual.heterogeneous


def _second(
    fit: PatternFit,
    criterion: PatternCriterion,
    inverses: list[tuple[Array, Array]],
    W: Array,
    slopes: Array,
) -> Array:
    """Sum over a, b of W_ab R_ab in the printed parameters, (p, p) in coordinates where Cov(beta) is the identity.

    By the chain rule it is the sum in working parameters less that of each printed parameter's own second derivatives
    times its direction.
    """
    r, p = len(fit.theta), fit.rank
    model = fit.model.model
    rows, columns = np.triu_indices(p)
    packed = np.empty(len(rows))
    for at, (i, j) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        weights = [_moved_moments(part, P, i, j) for part, (P, _) in zip(fit.parts, inverses, strict=True)]
        packed[at] = np.sum(W[:r, :r] * model.curvature(fit.point.phi, criterion.prepared, weights))
    second = np.empty((p, p))
    second[rows, columns] = second[columns, rows] = packed
    second = whitened(fit, second)
    # V_a,log s = V_a and V_log s,log s = V
    second -= 2.0 * np.einsum("a,axy->xy", W[:r, r], slopes[:r]) + W[r, r] * slopes[r]
    natural = printed(parameters_of(fit))
    bends = np.einsum("ab,cab->c", W, natural.second)
    directions = np.linalg.lstsq(natural.jacobian.T, np.eye(r + 1), rcond=None)[0].T  # (r + 1, c): dphi / d printed
    return np.asarray(second + np.tensordot(directions @ bends, slopes, 1))


def _moved_moments(part: Batch, P: Array, i: int, j: int) -> Array:
    """(k, m, m) sums over units of R^-1 x_i x_j'R^-1, symmetrised."""
    d = part.order.d
    F = np.zeros((d, d))
    F[i, j] += 0.5
    F[j, i] += 0.5
    return np.asarray(P @ part.scores(F) @ P)
