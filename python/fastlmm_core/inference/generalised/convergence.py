"""How sure the optimum of a generalised fit is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.core.glmm.fitted import exact
from fastlmm_core.core.glmm.iterative.fitted import IterativeGlmmFit
from fastlmm_core.errors import NumericalError
from fastlmm_core.fitting.generalised import engine_at
from fastlmm_core.fitting.var_corr import theta_labels
from fastlmm_core.inference.diagnostics import ConvergenceReport, advice

if TYPE_CHECKING:
    from fastlmm_core.fitting.generalised_model import GeneralisedModel

__all__ = ["convergence_report"]

Array = NDArray[np.float64]


def curvatures(gradient: Array, hessian: Array) -> tuple[Array, float]:
    """Eigenvalues of a Hessian in units of its diagonal, and what a Newton step promises."""
    size = np.sqrt(np.maximum(np.abs(hessian.diagonal()), 1e-300))
    values, vectors = np.linalg.eigh(hessian / np.outer(size, size))
    along = vectors.T @ (gradient / size)
    floor = 1e-10 * max(float(np.abs(values).max()), 1e-300)
    return values, float((along**2 / (2.0 * np.maximum(np.abs(values), floor))).sum())


def convergence_report(result: GeneralisedModel) -> ConvergenceReport:
    """Gradient, curvature and boundary at the optimum; see `GlmerResult.convergence_report`."""
    core, design = result.core, result.design
    message = core.message
    with engine_at(result) as engine:
        plan = engine.design
        gradient, values, promise = (np.full(plan.n_free, np.nan),) * 2 + (np.nan,)
        try:
            if isinstance(core, IterativeGlmmFit):  # the search's last estimates
                free = np.isfinite(core.found.sampling.diagonal())
                gradient = np.where(free, core.found.gradient, 0.0)
                values, promise = curvatures(gradient[free], core.found.hessian[np.ix_(free, free)])
                message = f"{message}; {core.monte_carlo}"
            else:
                _, gradient, _ = exact(engine).derivatives(core.psi)
                values, promise = curvatures(gradient, exact(engine).information(core.psi))
        except NumericalError:  # said on the page
            pass
    labels = list(theta_labels(design))
    nt = plan.n_theta
    diagonal = plan.theta_map.diagonal
    zero = np.flatnonzero(diagonal & (np.abs(core.psi[:nt]) < 1e-4))
    own = core.family.names if core.family.vector else ["rho"] * core.family.n_extra
    names = [*labels, *(design.x_names[k] for k in plan.keep), *own]
    report = ConvergenceReport(
        converged=core.converged,
        message=message,
        n_evaluations=len(core.log),
        gradient=pd.Series(plan.to_conditioned.T @ gradient, index=names),
        promise=promise,
        eigenvalues=values,
        boundary=tuple(labels[a] for a in zero),
        unidentified=(),
        negative=bool(values[0] < -1e-6),
        advice=(),
    )
    return replace(report, advice=tuple(advice(report, design)))
