"""The deviance of a model with a covariance structure as a function of its working parameters, and of sigma.

With r^2(phi) the residual sum of squares at phi and s = sigma^2 in working coordinates (maximum likelihood, n rows)

    D(phi, s) = D(phi) + r^2 / s - n - n log(r^2 / (n s)),      D(phi) the deviance with s = r^2 / n              (1)

so the slopes of log r^2 are all that is needed beside those of D(phi).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.engines import NO_FACTOR
from fastlmm_core.core.residuals import PatternFit
from fastlmm_core.core.structures.equations_fit import EquationsFit
from fastlmm_core.core.structures.iterative import IterativeEquationsFit
from fastlmm_core.core.structures.structured import StructuredFit
from fastlmm_core.errors import ModelError
from fastlmm_core.inference.structured import r2_slopes

__all__ = ["Level", "Surface", "open_surface"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Level:
    """The deviance at one phi.

    Attributes
    ----------
    value : float
        D(phi).
    gradient, hessian : (r,), (r, r)
    log_s : float
        Logarithm of the best sigma^2, in working coordinates.
    log_r2 : (r,)
        Slopes of log r^2.
    """

    value: float
    gradient: Array
    hessian: Array
    log_s: float
    log_r2: Array

    def given(self, n: float, log_s: float) -> tuple[float, Array, Array]:
        """Equation (1) with gradient (r + 1,) and model Hessian in (phi, log s)."""
        kappa = float(np.exp(np.clip(self.log_s - log_s, -700.0, 700.0)))  # r^2 / (n s)
        value = self.value + n * (kappa - 1.0 - (self.log_s - log_s))
        gradient = np.append(self.gradient + n * (kappa - 1.0) * self.log_r2, n * (1.0 - kappa))
        r = len(self.gradient)
        hessian = np.zeros((r + 1, r + 1))
        hessian[:r, :r] = self.hessian
        both = np.append(self.log_r2, -1.0)
        return value, gradient, hessian + n * kappa * np.outer(both, both)


class Surface(ABC):
    """D(phi) of a maximum-likelihood fit; one class a kind of model."""

    n: float
    phi: Array

    @abstractmethod
    def at(self, phi: Array) -> Level:
        """The deviance at phi (r,); NumericalError where it is not defined."""


class PatternSurface(Surface):
    """Of independent units."""

    def __init__(self, core: PatternFit) -> None:
        self.criterion, projected = core.model.prepare(core.response + _offset(core))
        self.n, self.phi = float(core.n), core.point.phi
        self.unit = 2.0 * float(np.log(projected.norm)) - float(np.log(core.n))

    def at(self, phi: Array) -> Level:
        """See `Surface`."""
        p = self.criterion(phi)
        return Level(p.value, p.gradient, p.hessian, self.unit + float(np.log(p.r2)), p.r2_slopes / p.r2)


class EquationsSurface(Surface):
    """Of mixed-model equations."""

    def __init__(self, core: EquationsFit) -> None:
        self.core, self.equations = core, core.equations()
        self.n, self.phi = float(core.n), core.working
        self.unit = 2.0 * float(np.log(core.norm)) - float(np.log(core.n))

    def at(self, phi: Array) -> Level:
        """See `Surface`."""
        model = self.core.model
        p = model.at(self.equations, phi, self.core.constant)
        slopes = r2_slopes(model, self.equations, p.solved, phi)
        return Level(p.value, p.gradient, p.hessian, self.unit + float(np.log(p.solved.r2)), slopes / p.solved.r2)


class ChainSurface(Surface):
    """Of structured effects of several factors."""

    def __init__(self, core: StructuredFit, stack: ExitStack) -> None:
        self.core, self.objective = core, stack.enter_context(core.workspace())
        self.n, self.phi = float(core.n), core.working
        c = core.cross.conditioning
        self.unit = 2.0 * float(np.log(c.y_scale * np.sqrt(c.weight_scale))) - float(np.log(core.n))

    def at(self, phi: Array) -> Level:
        """See `Surface`."""
        model, objective = self.core.structured, self.objective
        place = model.at(objective, phi)
        evaluation = objective.at(place.theta)
        log_r2 = evaluation.log_r2
        # at half the best sigma^2 the slope has n times that of log r^2 more
        half = evaluation.given_sigma(0.5 * (log_r2 - float(np.log(2.0 * self.n)))).derivatives()[0][1:]
        theta = np.asarray(objective.theta_map.to_conditioned.T @ half)
        slopes = place.jacobian.T @ (theta - place.theta_gradient) / self.n
        return Level(place.value, place.gradient, place.hessian, self.unit + log_r2, slopes)


def _offset(core: PatternFit) -> Array | float:
    return 0.0 if core.model.offset is None else core.model.offset


def open_surface(core: PatternFit | EquationsFit | StructuredFit, stack: ExitStack) -> Surface:
    """The surface of a fit; what it borrows goes back when the stack is closed.

    Raises
    ------
    ModelError
        The fit has no factor.
    """
    if isinstance(core, StructuredFit):
        return ChainSurface(core, stack)
    if isinstance(core, IterativeEquationsFit):
        raise ModelError("the criterion as a function is " + NO_FACTOR)
    return EquationsSurface(core) if isinstance(core, EquationsFit) else PatternSurface(core)
