"""Information on the variance parameters, and how the covariance of the fixed effects moves with them.

In conditioned coordinates, with V = W^-1 + Z Sigma Z', X'V^-1X = L L' and F = Z'V^-1X L^-T (one row an effect of a
level):

    d Cov(beta) / d theta_a = sigma^2 H [F'(I x dSigma/dtheta_a) F] H',    Cov(beta) = sigma^2 H H'            (1)

    deviance(theta, sigma) = log-determinants + nu log(2 pi sigma^2) + r^2(theta) / sigma^2                    (2)

whose Hessian is the profiled criterion's plus the outer product that profiling sigma took off, with
dr^2/dtheta_a = -t'(I x dSigma/dtheta_a) t, t = Z'Py. The profiled Hessian is the observed one: central differences of
the exact gradient. Nothing here has n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import Evaluation, Objective
from fastlmm_core.core.threads import bounded

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.core.iterative import IterativeFit

__all__ = [
    "VarianceInformation",
    "covariance_root",
    "dense_products",
    "group_factors",
    "iterative_information",
    "observed_hessian",
    "pseudo_inverse",
    "variance_information",
]

Array = NDArray[np.float64]

WIDE_TAIL = 400
"""Tails longer than this get two-point differences (1e-6 of the Hessian) for half the price of four-point ones."""

DIFFERENCES = 8e-4, np.array([1.0, -1.0, 2.0, -2.0]), np.array([8.0, -8.0, -1.0, 1.0]) / 12.0
WIDE_DIFFERENCES = 1e-3, np.array([1.0, -1.0]), np.array([0.5, -0.5])
"""Step relative to a parameter's own scale, multiples of it, and their weights."""

DROPPED = 1e-8
"""Eigenvalues of the scaled Hessian below this are left out of its inverse: the data say nothing in their direction."""


@dataclass(frozen=True, eq=False)
class VarianceInformation:
    """What Satterthwaite's method needs of a fit.

    Attributes
    ----------
    hessian : (k + 1, k + 1)
        Second derivatives of the criterion, sigma not profiled out, in (conditioned theta, log sigma).
    cov : (k + 1, k + 1)
        Asymptotic covariance of the parameters: twice the inverse of `hessian` over its positive eigenvalues.
    n_dropped : int
        Eigenvalues left out of that inverse.
    half : (rank, rank)
        H, in the user's units: Cov(beta) = H H' for the columns kept.
    slopes : (k + 1, rank, rank)
        Derivative of Cov(beta) along parameter a is H slopes[a] H'.
    """

    hessian: Array
    cov: Array
    n_dropped: int
    half: Array
    slopes: Array


@bounded
def variance_information(core: CoreFit) -> VarianceInformation:
    """Equations (1) and (2) at a fit; computed once and kept with the fit.

    Parameters
    ----------
    core : CoreFit

    Returns
    -------
    VarianceInformation
    """
    if "variance_information" not in core._cache:
        with core.workspace() as model:
            core._cache["variance_information"] = _variance_information(core, model)
    found: VarianceInformation = core._cache["variance_information"]
    return found


def _variance_information(core: CoreFit, model: Objective) -> VarianceInformation:
    cross = model.cross
    rank = cross.conditioning.rank
    at = model.at(core.theta)
    theta, gamma, ld = at.theta, at.modes.gamma, at.modes.ld
    levels = []
    for group, products in zip(cross.groups, dense_products(at), strict=True):
        t = products[:, rank] - products[:, :rank] @ gamma
        levels.append((products[:, :rank], t.reshape(group.n_levels, group.n_columns)))
    profiled = observed_hessian(model, theta)
    return assembled(core, theta, levels, ld[:rank, :rank], profiled, model.nu, ld[-1, -1] ** 2)


def iterative_information(core: IterativeFit) -> VarianceInformation:
    """Equations (1) and (2) with the average information for the profiled Hessian, and no factor; kept with the fit."""
    if "variance_information" not in core._cache:
        at, design = core.at, core.design
        levels = [(at.lead_x.reshape(-1, design.rank), at.lead_y)]
        start = 0
        for group in design.groups[1:]:  # there, all levels of a column come first
            part, l = slice(start, start + group.size), group.n_columns
            x = at.tail_x[part].reshape(l, group.n_levels, design.rank).transpose(1, 0, 2)
            levels.append((x.reshape(-1, design.rank), at.tail_y[part].reshape(l, -1).T))
            start += group.size
        profiled = np.where(np.isfinite(core.search.sampling), core.search.hessian, 0.0)
        nu = float(core.n - core.rank if core.reml else core.n)
        factor = np.asarray(np.linalg.cholesky(at.gram), np.float64)
        core._cache["variance_information"] = assembled(core, core.search.theta, levels, factor, profiled, nu, at.r2)
    found: VarianceInformation = core._cache["variance_information"]
    return found


def assembled(
    core: CoreFit,
    theta: Array,
    levels: Sequence[tuple[Array, Array]],
    fixed_factor: Array,
    profiled: Array,
    nu: float,
    r2: float,
) -> VarianceInformation:
    """Equations (1) and (2) from Z'V^-1X (q * l, rank) and Z'Py (q, l) of each group, conditioned.

    ``fixed_factor`` (rank, rank) is L of X'V^-1X = L L', ``profiled`` (k, k) the Hessian with sigma profiled out.
    """
    cross, k, rank = core.cross, len(theta), len(fixed_factor)
    half = covariance_root(core, fixed_factor)
    index = cross.theta_index.tolist()
    factors = group_factors(cross.theta_index, theta, [g.n_columns for g in cross.groups])
    slopes = np.zeros((k + 1, rank, rank))
    slopes[k] = 2.0 * np.eye(rank)  # the derivative along log sigma is 2 Cov(beta)
    of_r2 = np.zeros(k)
    whiten = np.linalg.inv(fixed_factor).T
    for g, (group, (x, t)) in enumerate(zip(cross.groups, levels, strict=True)):
        l = group.n_columns
        f = (x @ whiten).reshape(group.n_levels, l * rank)
        gram = (f.T @ f).reshape(l, rank, l, rank)
        tt = t.T @ t
        gram = gram.transpose(0, 1, 3, 2)
        for a, (of, i, j) in enumerate(index):
            if of == g:
                column = factors[g][:, j]
                part = gram[i] @ column
                slopes[a] = part + part.T
                of_r2[a] = -2.0 * (tt[i] @ column)
    hessian = np.empty((k + 1, k + 1))
    hessian[:k, :k] = profiled + nu / r2**2 * (of_r2[:, None] * of_r2)
    hessian[k, :k] = hessian[:k, k] = -2.0 * nu / r2 * of_r2
    hessian[k, k] = 4.0 * nu
    inverse, dropped = pseudo_inverse(hessian)
    return VarianceInformation(hessian, 2.0 * inverse, dropped, half, slopes)


def covariance_root(core: CoreFit, fixed_factor: Array) -> Array:
    """H (rank, rank) with Cov(beta) = H H' in the user's units, from L of the conditioned X'V^-1X = L L'."""
    c = core.cross.conditioning
    root = np.linalg.inv(fixed_factor.T @ c.r[: c.rank, : c.rank])
    return np.asarray(core.sigma / np.sqrt(c.weight_scale) * root)


def dense_products(at: Evaluation) -> tuple[Array, ...]:
    """Z'V^-1[X y] of each group, (q * l, rank + 1), levels in the order of their codes."""
    return at.dense_products()


def group_factors(index: NDArray[np.int64], theta: Array, widths: list[int]) -> list[Array]:
    """Relative covariance factor (l, l) of each group, its terms' factors along the diagonal."""
    factors = [np.zeros((l, l)) for l in widths]
    for (g, i, j), value in zip(index.tolist(), theta.tolist(), strict=True):
        factors[g][i, j] = value
    return factors


def observed_hessian(model: Objective, theta: Array) -> Array:
    """Second derivatives (k, k) of the profiled criterion in conditioned theta, from its exact gradient.

    Steps are a fraction of the parameter's own scale: a level's conditional standard deviation when theta is small,
    theta itself when it is large.
    """
    groups, n, k = model.cross.groups, model.cross.n, len(theta)
    index, values = model.cross.theta_index.tolist(), theta.tolist()
    diagonal = {(g, i): values[a] for a, (g, i, j) in enumerate(index) if i == j}
    scales = np.array([hypot(diagonal[g, i], sqrt(groups[g].n_levels / n)) for g, i, _ in index])
    wide = sum(g.size for g in groups[1:]) > WIDE_TAIL
    step, moves, weights = WIDE_DIFFERENCES if wide else DIFFERENCES
    steps = step * scales
    points = np.empty((k, len(moves), k))
    points[:] = theta
    for a in range(k):
        points[a, :, a] += steps[a] * moves
    gradients = model.gradients(points.reshape(-1, k)).reshape(points.shape)
    hessian = (weights @ gradients) / steps[:, None]
    hessian = 0.5 * (hessian + hessian.T)
    held = model.theta_map.held
    if held is not None:  # no information, rather than its rounding errors
        hessian[held], hessian[:, held] = 0.0, 0.0
    return hessian


def pseudo_inverse(matrix: Array) -> tuple[Array, int]:
    """Inverse of a symmetric matrix over its positive eigenvalues, and how many were left out.

    The diagonal is scaled to one first, so that the units of a parameter decide nothing.
    """
    scale = 1.0 / np.sqrt(np.maximum(np.abs(np.diag(matrix)), DROPPED))
    values, vectors = np.linalg.eigh(matrix * (scale[:, None] * scale))
    keep = values > DROPPED
    kept = vectors[:, keep] * scale[:, None]
    return (kept / values[keep]) @ kept.T, int((~keep).sum())
