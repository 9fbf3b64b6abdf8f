"""Kenward and Roger's (1997) adjusted covariance and denominator degrees of freedom.

The variance parameters are the entries of sigma^2 Sigma_k and the residual variance: V is linear in them, so the
adjustment has no second derivatives, and it does not change when the parameters are replaced by other linear
combinations of themselves. The basis used here is G_i = dV/dsigma_i of every entry, and V itself in place of the
residual's W^-1: every sum that involves V is then known without computation and nothing is subtracted.

In coordinates where Phi = Cov(beta) is the identity (F = Z'V^-1X L^-T, X'V^-1X = L L'):

    P_i = -F'(I x E_i)F        Q_ij = F'(I x E_i) Z'V^-1Z (I x E_j)F          (Kenward & Roger, section 3)
    information  I_ij = tr(V^-1G_iV^-1G_j) - 2 tr(Q_ij) + tr(P_iP_j)         = tr(P G_i P G_j);  W = 2 I^-1
    Phi_A = H (1 + 2 U) H',    U = sum_ij W_ij (Q_ij - P_iP_j)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.slopes import positive_inverse
from fastlmm_core.core.threads import bounded, one_blas_thread
from fastlmm_core.inference.information import covariance_root, dense_products
from fastlmm_core.inference.marginal_products import MarginalProducts

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit

__all__ = ["Adjustment", "adjustment", "scaled_f"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What Kenward and Roger's method needs of a REML fit.

    Attributes
    ----------
    half : (rank, rank)
        H, in the user's units: Cov(beta) = H H' for the columns kept.
    cov : (rank, rank)
        Phi_A, the adjusted covariance.
    slopes : (k + 1, rank, rank)
        P_i in coordinates where Cov(beta) is the identity; the last one belongs to V itself.
    weights : (k + 1, k + 1)
        W, the covariance of the variance parameters, in the same basis, for sigma = 1.
    """

    half: Array
    cov: Array
    slopes: Array
    weights: Array


@bounded
def adjustment(core: CoreFit) -> Adjustment:
    """Compute the adjustment of a REML fit; once, kept with the fit.

    Parameters
    ----------
    core : CoreFit

    Raises
    ------
    ModelError
        The square matrices of the tail exceed the memory at hand.
    """
    if "kenward_roger" not in core.kept:
        core.kept["kenward_roger"] = _adjustment(core)
    found: Adjustment = core.kept["kenward_roger"]
    return found


def _adjustment(core: CoreFit) -> Adjustment:
    core.require_products()
    cross = core.cross
    rank, k = cross.conditioning.rank, len(core.theta)
    if rank == 0:
        return Adjustment(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((k + 1, 0, 0)), np.zeros((k + 1, k + 1)))
    with one_blas_thread():
        with core.workspace() as model:
            at = model.at(core.theta)
            theta, ld = at.theta, at.modes.ld
            cells = dense_products(at)
        memory = core.control.n_bytes
        del model, at  # its tail, where it is not kept, is as large as one of the matrices to come
        products = MarginalProducts(cross, theta, memory)
        fixed_factor = ld[:rank, :rank]
        whiten = np.linalg.inv(fixed_factor).T
        f = [c[:, :rank] @ whiten for c in cells]

        # (I x E_i) F for every parameter, side by side
        moved = [np.zeros((group.n_levels, group.n_columns, k, rank)) for group in cross.groups]
        slopes = np.empty((k + 1, rank, rank))
        slopes[k] = -np.eye(rank)
        for a, (g, i, j) in enumerate(cross.theta_index):
            rows = f[g].reshape(*moved[g].shape[:2], rank)
            moved[g][:, i, a] = rows[:, j]
            moved[g][:, j, a] = rows[:, i]
            slopes[a] = -f[g].T @ moved[g][:, :, a].reshape(-1, rank)
        lead, *tail = (u.reshape(*u.shape[:2], k * rank) for u in moved)
        stacked = np.concatenate([u.reshape(-1, k * rank) for u in tail]) if tail else np.zeros((0, k * rank))
        q = products.quadratic(lead, stacked).reshape(k, rank, k, rank).transpose(0, 2, 1, 3)
        pairs, single = products.traces()

    information = np.empty((k + 1, k + 1))
    pieces = [(g, _direction(i, j, cross.groups[g].n_columns)) for g, i, j in cross.theta_index]
    for a, (g, e) in enumerate(pieces):
        for b, (h, other) in enumerate(pieces):
            sums = pairs[g, h] if g <= h else pairs[h, g].transpose(2, 3, 0, 1)
            trace = np.einsum("rs,uv,rsuv->", e, other, sums)
            information[a, b] = trace - 2.0 * np.trace(q[a, b]) + np.sum(slopes[a] * slopes[b])
        information[a, k] = information[k, a] = np.sum(e * single[g]) + np.trace(slopes[a])
    information[k, k] = cross.n - rank
    weights = 2.0 * positive_inverse(0.5 * (information + information.T))[0]

    # V's own share vanishes: Q_iV = -P_i = P_iP_V
    u = np.einsum("ab,abxy->xy", weights[:k, :k], q)
    u -= np.einsum("ab,axz,bzy->xy", weights[:k, :k], slopes[:k], slopes[:k])
    half = covariance_root(core, fixed_factor)
    return Adjustment(half, half @ (np.eye(rank) + u + u.T) @ half.T, slopes, weights)


def _direction(i: int, j: int, l: int) -> Array:
    """Derivative of Sigma (l, l) in the entry (i, j) of a symmetric matrix."""
    e = np.zeros((l, l))
    e[i, j] = e[j, i] = 1.0
    return e


def scaled_f(adjusted: Adjustment, hypothesis: Array) -> tuple[float, float]:
    """Denominator degrees of freedom and scale of the F statistic of a hypothesis.

    Parameters
    ----------
    adjusted : Adjustment
    hypothesis : (l, rank)
        Linearly independent rows.

    Returns
    -------
    df : float
        Infinite where the variance parameters do not move the hypothesis' covariance.
    scale : float
        Multiplies the Wald statistic over l; 1 for a single row.
    """
    l = len(hypothesis)
    basis = np.linalg.qr((hypothesis @ adjusted.half).T)[0]
    parts = np.einsum("xr,axy,ys->ars", basis, adjusted.slopes, basis)
    single = np.einsum("arr->a", parts)
    a1 = float(single @ adjusted.weights @ single)
    a2 = float(np.einsum("ab,ars,bsr->", adjusted.weights, parts, parts))
    if not a2 > 0.0:
        return np.inf, 1.0
    if l == 1:
        return 2.0 / a2, 1.0  # the general formulas come to this when A_1 = A_2
    b = (a1 + 6.0 * a2) / (2.0 * l)
    g = ((l + 1) * a1 - (l + 4) * a2) / ((l + 2) * a2)
    below = 3.0 * l + 2.0 * (1.0 - g)
    c1, c2, c3 = g / below, (l - g) / below, (l + 2.0 - g) / below
    expected = 1.0 - a2 / l  # 1 / E*
    variance = (1.0 + c1 * b) / ((1.0 - c2 * b) ** 2 * (1.0 - c3 * b))  # l / 2 times V*
    rho = variance * expected**2 / l  # V* / (2 E*^2)
    df = 4.0 + (l + 2.0) / (l * rho - 1.0)
    # pbkrtest leaves the statistic alone where the formula divides by zero
    return df, 1.0 if abs(df - 2.0) < 1e-2 else df * expected / (df - 2.0)
