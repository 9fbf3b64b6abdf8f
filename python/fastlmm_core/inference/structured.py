"""Satterthwaite's information for structured random effects and known relationships.

The parameters are the structures' own, phi, so the chain rule of `core.structured` is applied to what the ordinary fit
knows about entries of L; for the mixed-model equations (`core.equations`)

    dr^2/dL = -2 sum_a (Z'We)_a u_a',    dD/dphi = - sum_a (Y_a'dL U_a + U_a'dL'Y_a),
    Y = Z'V^-1X,    U = M^-1 Lambda'Z'WX                                                        (1)

The profiled Hessian is the observed one: central differences of the exact gradient. A fit without a factor has the
average information in its place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core import CoreFit
from fastlmm_core.core.iterative import IterativeFit
from fastlmm_core.core.residuals import CrossedFit, CrossedModel, PatternFit
from fastlmm_core.core.residuals.equations import ResidualEquations
from fastlmm_core.core.slopes import positive_inverse
from fastlmm_core.core.structures.equations import Equations, Solved
from fastlmm_core.core.structures.equations_fit import EquationsFit, EquationsModel
from fastlmm_core.core.structures.iterative import IterativeEquationsFit
from fastlmm_core.core.structures.structured import StructuredFit, factor_derivatives
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ModelError
from fastlmm_core.inference.information import (
    VarianceInformation,
    iterative_information,
    variance_information,
)
from fastlmm_core.inference.kenward_roger import Adjustment, adjustment
from fastlmm_core.inference.patterns import pattern_adjustment, pattern_information

__all__ = ["adjustment_of", "information_of"]

Array = NDArray[np.float64]

STEP = 1e-4
"""Of the central differences; working parameters are of size one."""


def information_of(core: CoreFit) -> VarianceInformation:
    """Information on the covariance parameters of any fit; kept with it."""
    if isinstance(core, PatternFit):
        return pattern_information(core)
    if isinstance(core, IterativeFit):
        return iterative_information(core)
    if not isinstance(core, StructuredFit | EquationsFit):
        return variance_information(core)
    if "information" not in core.kept:
        with one_blas_thread():
            found = _of_chain(core) if isinstance(core, StructuredFit) else _of_equations(core)
        core.kept["information"] = found
    kept: VarianceInformation = core.kept["information"]
    return kept


def adjustment_of(core: CoreFit, *, linear: bool) -> Adjustment:
    """Kenward and Roger's adjustment of any REML fit.

    Raises
    ------
    ModelError
        For structures beside factors that cross, levels of many rows, and known relationships.
    """
    if isinstance(core, CrossedFit) and core.by_units is not None:
        core = core.by_units
    if isinstance(core, PatternFit):
        return pattern_adjustment(core, linear)
    if isinstance(core, StructuredFit | EquationsFit):
        raise ModelError(
            "Kenward-Roger's method is not available for structured random effects on several grouping factors, known "
            'relationships or sparse fixed effects: use ddf="satterthwaite"'
        )
    return adjustment(core)


def differences(gradient: Callable[[Array], Array], at: Array) -> Array:
    """Symmetric Hessian (r, r) by four-point differences of a gradient."""
    out = np.empty((len(at), len(at)))
    for a, step in enumerate(STEP * np.maximum(1.0, np.abs(at))):
        h = np.zeros(len(at))
        h[a] = step
        near, far = gradient(at + h) - gradient(at - h), gradient(at + 2 * h) - gradient(at - 2 * h)
        out[a] = (8.0 * near - far) / (12.0 * step)
    return 0.5 * (out + out.T)


def _of_chain(core: StructuredFit) -> VarianceInformation:
    """The ordinary fit's information in entries of L, brought to the structures' parameters."""
    info = variance_information(core)
    model, k = core.structured, len(core.theta)
    with core.workspace() as objective:
        to_conditioned = objective.theta_map.to_conditioned
        J = to_conditioned @ model.factors(core.working)[1]
        profiled = differences(lambda phi: model.at(objective, phi).gradient, core.working)
    n = J.shape[1]
    cross, scale = J.T @ info.hessian[:k, k], info.hessian[k, k]
    hessian = np.empty((n + 1, n + 1))
    hessian[:n, :n] = profiled + np.outer(cross, cross) / scale  # profiling sigma took this off
    hessian[n, :n] = hessian[:n, n] = cross
    hessian[n, n] = scale
    slopes = np.concatenate([np.einsum("ea,exy->axy", J, info.slopes[:k]), info.slopes[k:]])
    inverse, dropped = positive_inverse(hessian)
    return VarianceInformation(hessian, 2.0 * inverse, dropped, info.half, slopes)


def r2_slopes(model: EquationsModel, equations: Equations, solved: Solved, phi: Array) -> Array:
    """Derivatives (r,) of r^2 in working parameters, see (1)."""
    out = np.zeros(model.n_parameters)
    if isinstance(model, CrossedModel) and isinstance(equations, ResidualEquations):
        first = model.model.n
        inverses, changes, _ = equations.at_residual(phi[:first])
        out[:first] = -equations.moved(solved, inverses, changes)[2]
    for k, (covariance, where) in enumerate(zip(model.covariances, model.slices, strict=True)):
        e, v = (
            equations.by_level(solved.residual[:, None], k)[:, :, 0],
            equations.by_level(solved.u[:, None], k)[:, :, 0],
        )
        out[where] = -2.0 * np.einsum("aij,ij->a", factor_derivatives(covariance, phi[where])[1], e.T @ v)
    return out


def _of_equations(core: EquationsFit) -> VarianceInformation:
    """Equation (1), in (phi, log sigma^2)."""
    model, equations = core.model, core.equations()
    r, p = model.n_parameters, core.rank
    if isinstance(core, IterativeEquationsFit):
        profiled = core.search.hessian  # average information: its gradients have errors
    else:
        profiled = differences(lambda phi: model.at(equations, phi).gradient, core.working)
    solved = model.solve(equations, core.working)
    Y = equations.ZE[:, :p] - equations.C @ equations.unscaled(solved.factors, solved.U)
    root = np.linalg.inv(np.linalg.cholesky(solved.D)).T if p else np.zeros((0, 0))
    slopes, of_r2 = np.zeros((r + 1, p, p)), r2_slopes(model, equations, solved, core.working)
    slopes[r] = np.eye(p)
    if isinstance(core, CrossedFit) and isinstance(equations, ResidualEquations):
        inverses, changes, _ = equations.at_residual(core.residual_phi)
        products = equations.moved(solved, inverses, changes)[-1]
        slopes[: len(products)] = root.T @ equations.fixed_slopes(solved, products) @ root
    for k, (covariance, where) in enumerate(zip(model.covariances, model.slices, strict=True)):
        y, u = equations.by_level(Y @ root, k), equations.by_level(solved.U @ root, k)
        blocks = np.einsum("qip,qjs->ijps", y, u, optimize=True)
        for at, dL in enumerate(factor_derivatives(covariance, core.working[where])[1], where.start):
            part = np.einsum("ij,ijps->ps", dL, blocks)
            slopes[at] = part + part.T
    hessian = np.empty((r + 1, r + 1))
    hessian[:r, :r] = profiled + equations.nu * np.outer(of_r2, of_r2) / solved.r2**2
    hessian[r, :r] = hessian[:r, r] = -equations.nu / solved.r2 * of_r2
    hessian[r, r] = equations.nu
    inverse, dropped = positive_inverse(hessian)
    return VarianceInformation(hessian, 2.0 * inverse, dropped, core.half, slopes)
