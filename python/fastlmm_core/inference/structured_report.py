"""How sure the optimum of a model with a covariance structure is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fastlmm_core.core.residuals import PatternFit
from fastlmm_core.core.structures.iterative import IterativeEquationsFit
from fastlmm_core.core.structures.structured import StructuredFit
from fastlmm_core.core.theta import SINGULAR
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ModelError
from fastlmm_core.inference.diagnostics import ConvergenceReport, report_of
from fastlmm_core.inference.pattern_parameters import Structured
from fastlmm_core.inference.structured import differences

if TYPE_CHECKING:
    from fastlmm_core.formula import Design

__all__ = ["structured_report"]


def structured_report(design: Design, core: Structured, labels: Sequence[str]) -> ConvergenceReport:
    """Gradient, curvature and boundary in working parameters; see `LmerResult.convergence_report`.

    Raises
    ------
    ModelError
        There is no parameter to search for.
    """
    if not labels:
        raise ModelError("convergence_report needs a covariance parameter beside sigma, and this model has none")
    if isinstance(core, PatternFit):
        gradient, hessian = core.point.gradient, core.point.hessian
        model = core.model.model
        terms = [(e.covariance, where) for e, where in zip(model.effects, model.of_effects, strict=True)]
        phi = core.point.phi
    elif isinstance(core, StructuredFit):
        structured, phi = core.structured, core.working
        with core.workspace() as objective, one_blas_thread():
            hessian = differences(lambda x: structured.at(objective, x).gradient, phi)
            gradient = structured.at(objective, phi).gradient
        terms = list(zip(structured.covariances, structured.slices, strict=True))
    elif isinstance(core, IterativeEquationsFit):
        gradient, hessian, phi = core.search.gradient, core.search.hessian, core.working
        terms = list(zip(core.model.covariances, core.model.slices, strict=True))
    else:
        equations, phi = core.equations(), core.working
        with one_blas_thread():
            hessian = differences(lambda x: core.model.at(equations, x).gradient, phi)
            gradient = core.model.at(equations, phi).gradient
        terms = list(zip(core.model.covariances, core.model.slices, strict=True))
    boundary = tuple(
        term.grp
        for term, (covariance, where) in zip(design.random, terms, strict=True)
        if covariance.is_singular(phi[where], SINGULAR)
    )
    shown = pd.Series(np.asarray(gradient), index=list(labels))
    report = report_of(design, core, gradient, hessian, shown, boundary)
    if isinstance(core, IterativeEquationsFit):
        report = replace(report, message=f"{report.message}; {core.monte_carlo}")
    return report
