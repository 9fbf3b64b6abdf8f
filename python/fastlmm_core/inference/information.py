"""Information on the variance parameters, and how the covariance of the fixed effects moves with them.

In conditioned coordinates, with V = W^-1 + Z Sigma Z', X'V^-1X = L L' and F = Z'V^-1X L^-T (one row an effect of a
level):

    d Cov(beta) / d theta_a = sigma^2 H [F'(I x dSigma/dtheta_a) F] H',    Cov(beta) = sigma^2 H H'            (1)

    deviance(theta, sigma) = log-determinants + nu log(2 pi sigma^2) + r^2(theta) / sigma^2                    (2)

whose Hessian is the profiled criterion's plus the outer product that profiling sigma took off, with
dr^2/dtheta_a = -t'(I x dSigma/dtheta_a) t, t = Z'Py. The profiled Hessian is the observed one: exact where one grouping
factor is all there is (`_native/criterion/information.pyx`) or several have few effects (`joint_information` there),
central differences of the exact gradient elsewhere. Nothing here has n rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import Evaluation, Objective
from fastlmm_core.core.slopes import DROPPED, slopes_of, upper_inverse
from fastlmm_core.core.slopes import assembled as slopes_and_hessian
from fastlmm_core.core.threads import bounded
from fastlmm_core.records import quick

if TYPE_CHECKING:
    from fastlmm_core.core import CoreFit
    from fastlmm_core.core.iterative import IterativeFit

__all__ = [
    "VarianceInformation",
    "covariance_root",
    "dense_products",
    "iterative_information",
    "observed_hessian",
    "variance_information",
]

Array = NDArray[np.float64]

WIDE_TAIL = 400
"""Tails longer than this get two-point differences (1e-6 of the Hessian) for half the price of four-point ones."""

DIFFERENCES = 8e-4, np.array([1.0, -1.0, 2.0, -2.0]), np.array([8.0, -8.0, -1.0, 1.0]) / 12.0
WIDE_DIFFERENCES = 1e-3, np.array([1.0, -1.0]), np.array([0.5, -0.5])
"""Step relative to a parameter's own scale, multiples of it, and their weights."""


@quick
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
    if "variance_information" not in core.kept:
        with core.workspace() as model:
            core.kept["variance_information"] = _variance_information(core, model)
    found: VarianceInformation = core.kept["variance_information"]
    return found


def _variance_information(core: CoreFit, model: Objective) -> VarianceInformation:
    at = model.at(core.theta)
    exact = at.information()
    if exact is not None:
        hessian, slopes, of_r2, factor, r2 = exact
        return assembled(core, slopes, of_r2, factor, without(hessian, model.theta_map.held), model.nu, r2)
    cross = model.cross
    rank = cross.conditioning.rank
    theta, gamma, ld = at.theta, at.modes.gamma, at.modes.ld
    levels = []
    for group, products in zip(cross.groups, dense_products(at), strict=True):
        t = products[:, rank] - products[:, :rank] @ gamma
        levels.append((products[:, :rank], t.reshape(group.n_levels, group.n_columns)))
    factor = ld[:rank, :rank]
    slopes, of_r2 = slopes_of(cross.theta_index, theta, levels, factor)
    return assembled(core, slopes, of_r2, factor, observed_hessian(model, theta), model.nu, ld[-1, -1] ** 2)


def iterative_information(core: IterativeFit) -> VarianceInformation:
    """Equations (1) and (2) with the average information for the profiled Hessian, and no factor; kept with the fit."""
    if "variance_information" not in core.kept:
        at, design = core.at, core.design
        levels = [(at.lead_x.reshape(-1, design.rank), at.lead_y)]
        start = 0
        for group in design.groups[1:]:
            part = slice(start, start + group.size)
            levels.append((at.tail_x[part], at.tail_y[part].reshape(group.n_levels, group.n_columns)))
            start += group.size
        profiled = np.where(np.isfinite(core.search.sampling), core.search.hessian, 0.0)
        nu = float(core.n - core.rank if core.reml else core.n)
        factor = np.asarray(np.linalg.cholesky(at.gram), np.float64)
        slopes, of_r2 = slopes_of(design.theta_map.index, core.search.theta, levels, factor)
        core.kept["variance_information"] = assembled(core, slopes, of_r2, factor, profiled, nu, at.r2)
    found: VarianceInformation = core.kept["variance_information"]
    return found


def assembled(
    core: CoreFit, slopes: Array, of_r2: Array, fixed_factor: Array, profiled: Array, nu: float, r2: float
) -> VarianceInformation:
    """Equations (1) and (2) from the slopes and derivatives of `slopes_of`, and the profiled Hessian (k, k)."""
    r, weight_scale = core.fixed_root
    unit = core.sigma / sqrt(weight_scale)
    return VarianceInformation(*slopes_and_hessian(profiled, slopes, of_r2, fixed_factor, r, nu, r2, unit, DROPPED))


def covariance_root(core: CoreFit, fixed_factor: Array) -> Array:
    """H (rank, rank) with Cov(beta) = H H' in the user's units, from L of the conditioned X'V^-1X = L L'."""
    r, weight_scale = core.fixed_root
    return upper_inverse(fixed_factor.T @ r) * (core.sigma / sqrt(weight_scale))


def dense_products(at: Evaluation) -> tuple[Array, ...]:
    """Z'V^-1[X y] of each group, (q * l, rank + 1), levels in the order of their codes."""
    return at.dense_products()


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
    return without(0.5 * (hessian + hessian.T), model.theta_map.held)


def without(hessian: Array, held: NDArray[np.int64] | None) -> Array:
    """A Hessian with no information on parameters that are held, rather than rounding errors."""
    if held is not None:
        hessian[held], hessian[:, held] = 0.0, 0.0
    return hessian
