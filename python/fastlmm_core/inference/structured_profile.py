"""Likelihood profiles of models with covariance structures: their printed parameters and their coefficients.

The maximum-likelihood deviance is minimised with one parameter held. A parameter of the shape or the dispersion is a
working coordinate (or a function of one); a standard deviation is held by the scale, s = v / h(phi), or, where h is one
working parameter squared, by that parameter, so that it can be zero; a coefficient by taking its column to the
response. Covariances, and correlations of several working parameters at once (us, toep), are left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from fastlmm_core.core.descent import minimise
from fastlmm_core.core.residuals.natural import ParametersAt, parameters_of, printed
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import FastLMMError, ModelError, NumericalError
from fastlmm_core.fitting.models import model_of
from fastlmm_core.inference.curves import ProfileCurve
from fastlmm_core.inference.levels import quantile_of_level
from fastlmm_core.inference.parameters import Parameter, choose
from fastlmm_core.inference.pattern_parameters import Structured, labels
from fastlmm_core.inference.profile import Profile
from fastlmm_core.inference.profile_paths import Path
from fastlmm_core.inference.profile_walk import BetterOptimumError, curve_along
from fastlmm_core.inference.progress import each
from fastlmm_core.inference.refits import ml_fit
from fastlmm_core.inference.structured_surface import Surface, open_surface

if TYPE_CHECKING:
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["structured_profile"]

Array = NDArray[np.float64]

STEP = 1e-3
"""Of the differences that give a coefficient's slope, in standard errors."""


VANISHING = 200.0
"""A standard deviation this many times smaller than its estimate is zero: other variances hold what it leaves."""


@dataclass(frozen=True, eq=False)
class Place:
    """A deviance with a parameter held, for the optimiser."""

    value: float
    gradient: Array
    hessian: Array
    slope: float


class Held(Path):
    """Base of paths on a surface: variables x (k,) that leave the parameter at w."""

    lower, upper, longest = -np.inf, np.inf, np.inf

    def __init__(self, surface: Surface, estimate: float, start: Array) -> None:
        self.surface, self.estimate, self.start, self.step = surface, estimate, start, 0.0
        curvature = self.curvature()
        self.step = 1.0 / np.sqrt(max(0.5 * curvature, 1e-12))

    @abstractmethod
    def at(self, w: float, x: Array) -> Place:
        """The deviance at coordinate w and variables x."""

    def curvature(self) -> float:
        """Second derivative of the deviance in w at the estimate, the variables held: a step is at most one error."""
        h = 1e-3 * max(abs(self.estimate), 1e-2)
        low, high = (self.at(self.estimate + side * h, self.start).slope for side in (-1.0, 1.0))
        return (high - low) / (2.0 * h)

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """See `Path`."""
        found = minimise(lambda at: self.at(w, at), x, exact=False, tol=1e-9, max_evaluations=80)
        if not found.converged:
            raise NumericalError(f"the deviance could not be minimised: {found.message}")
        return found.point.value, found.point.slope, found.x

    def theta(self, w: float, x: Array) -> Array:
        """The variables; a lower optimum is told, not sought."""
        return x


class Coordinate(Held):
    """Working parameter k."""

    def __init__(self, surface: Surface, k: int) -> None:
        self.k, self.others = k, np.delete(np.arange(len(surface.phi)), k)
        super().__init__(surface, float(surface.phi[k]), surface.phi[self.others])

    def at(self, w: float, x: Array) -> Place:
        """See `Held`."""
        level = self.surface.at(np.insert(x, self.k, w))
        o = self.others
        return Place(level.value, level.gradient[o], level.hessian[np.ix_(o, o)], float(level.gradient[self.k]))


class Scale(Held):
    """Log of a standard deviation whose square is s h(phi): the scale s follows phi."""

    def __init__(self, surface: Surface, found: ParametersAt, row: int) -> None:
        self.found, self.row = found, row
        super().__init__(surface, 0.5 * float(np.log(printed(found).values[row])), surface.phi)
        self.lower = self.estimate - float(np.log(VANISHING))

    def at(self, w: float, x: Array) -> Place:
        """See `Held`."""
        rows = printed(self.found.moved(x, 1.0))
        h = float(rows.values[self.row])
        if not h > 0.0:
            raise NumericalError("the variance is zero there")
        bend = rows.jacobian[self.row, :-1] / h
        value, gradient, hessian = self.surface.at(x).given(self.surface.n, 2.0 * w - float(np.log(h)))
        J = np.vstack([np.eye(len(x)), -bend])
        return Place(value, J.T @ gradient, J.T @ hessian @ J, 2.0 * float(gradient[-1]))


class Single(Held):
    """A standard deviation sqrt(s) a |phi_k|: the variables are log s and the other parameters."""

    lower = 0.0

    def __init__(self, surface: Surface, found: ParametersAt, row: int, k: int) -> None:
        self.k, phi = k, surface.phi
        moved = phi.copy()
        moved[k] = 1.0
        self.a = float(np.sqrt(printed(found.moved(moved, 1.0)).values[row]))
        self.sign = -1.0 if phi[k] < 0.0 else 1.0
        log_s = surface.at(phi).log_s
        estimate = self.a * abs(float(phi[k])) * float(np.exp(0.5 * log_s))
        super().__init__(surface, estimate, np.append(np.delete(phi, k), log_s))

    def at(self, w: float, x: Array) -> Place:
        """See `Held`."""
        unit = self.sign * float(np.exp(-0.5 * x[-1])) / self.a
        phi = np.insert(x[:-1], self.k, w * unit)
        value, gradient, hessian = self.surface.at(phi).given(self.surface.n, float(x[-1]))
        J = np.insert(np.eye(len(x)), self.k, 0.0, axis=0)
        J[self.k, -1] = -0.5 * phi[self.k]
        return Place(value, J.T @ gradient, J.T @ hessian @ J, unit * float(gradient[self.k]))


class Coefficient:
    """A coefficient: its column is left out of X, w times it taken from the response."""

    lower, upper, longest = -np.inf, np.inf, np.inf

    def __init__(self, fit: FittedModel, j: int) -> None:
        design, core = fit.design, fit.core
        rest = replace(design, X=np.delete(design.X, j, axis=1))
        self.column, self.y = design.X[:, j], design.y
        self.model = model_of(rest, fit.options)
        control = self.model.control
        self.still = model_of(rest, replace(fit.options, control=replace(control, max_evaluations=1)))
        self.estimate, self.start = float(core.beta[j]), core.parameters
        self.step = float(np.sqrt(core.known_cov[j, j]))

    def solve(self, w: float, x: Array) -> tuple[float, float, Array]:
        """See `Path`; the slope by central differences at the minimiser."""
        try:
            found = self.model.fit(self.y - w * self.column, start=x)
        except FastLMMError as error:
            raise NumericalError(str(error)) from None
        at, h = found.parameters, STEP * self.step
        low, high = (self.still.fit(self.y - (w + side * h) * self.column, start=at).criterion for side in (-1.0, 1.0))
        return found.criterion, (high - low) / (2.0 * h), at

    def theta(self, w: float, x: Array) -> Array:
        """The parameters."""
        return x


@dataclass(frozen=True)
class Known:
    """A printed parameter that can be held: its row, and the working parameters that move it."""

    parameter: Parameter
    row: int
    free: tuple[int, ...]


def _known(design: Any, core: Structured) -> list[Known]:
    """The printed parameters that can be held, standard deviations for variances."""
    rows = printed(parameters_of(core))
    out = []
    for c, name in enumerate(labels(design, rows.kinds, rows.labels)):
        J = rows.jacobian[c]
        scaled = bool(J[-1] != 0.0) or name.startswith("var ")  # a variance of zero has no slopes
        free = tuple(np.flatnonzero(J[:-1]).tolist())
        if scaled and not name.startswith("var "):
            continue
        if not scaled and len(free) != 1:
            continue
        shown = f"sd {name[4:]}" if scaled else name
        out.append(Known(Parameter(shown, "sd" if scaled else "own"), c, free))
    return out


def _path(core: Structured, surface: Surface, known: Known) -> Held:
    found = parameters_of(core)
    if known.parameter.kind == "own":
        return Coordinate(surface, known.free[0])
    kind, label = (part[known.row] for part in (printed(found).kinds, printed(found).labels))
    k = _lone(found, label) if kind == "effects" else None
    return Scale(surface, found, known.row) if k is None else Single(surface, found, known.row, k)


def _lone(found: ParametersAt, label: str) -> int | None:
    """The working parameter whose square a variance of an effect is, up to the scale; None where there are several."""
    term, _, place = label.partition(":")
    covariance, _, where = found.effects[int(term)]
    i = int(place.split(",")[0])
    at = found.phi[where].copy()
    base = covariance.directions(np.ones(len(at)))[:, i, i]
    moved = np.flatnonzero(base)
    return where.start + int(moved[0]) if len(moved) == 1 else None


def structured_profile(
    result: FittedModel, which: str | Iterable[str] | None = None, *, level: float | None = None, progress: bool = False
) -> Profile:
    """Profile parameters of a fit with covariance structures; see `StructuredResult.profile`."""
    fit = ml_fit(result)
    core: Any = fit.core
    known = _known(fit.design, core)
    of_beta = [Parameter(name, "beta", row=j) for j, name in enumerate(fit.design.x_names)]
    every = [k.parameter for k in known] + of_beta
    chosen = choose(every, which)
    reach = float(np.sqrt(chdtri(len(every), 0.01)) if level is None else quantile_of_level(level))
    curves = []
    with ExitStack() as stack, one_blas_thread():
        surface = open_surface(core, stack)
        for parameter in each(chosen, progress, "profile", "parameter"):
            path: Path | None
            if parameter.kind == "beta":
                path = None if np.isnan(core.beta[parameter.row]) else Coefficient(fit, parameter.row)
                curves.append(_curve(parameter, path, core.criterion, reach))
                continue
            mine = next(k for k in known if k.parameter is parameter)
            path = _path(core, surface, mine)
            curve = _curve(parameter, path, core.criterion, reach)
            curves.append(_as_printed(curve, path, parameters_of(core), mine))
    return Profile(tuple(curves), core.criterion)


def _curve(parameter: Parameter, path: Path | None, deviance: float, reach: float) -> ProfileCurve:
    """The profile along one path."""
    if path is None:
        empty = np.empty(0)
        return ProfileCurve(parameter.name, "beta", np.nan, empty, empty, empty, (None, None))
    try:
        w, zeta, slope, ends = curve_along(path, (), deviance, reach)
    except BetterOptimumError as better:
        raise ModelError(
            f"profiling {parameter.name} found a deviance {deviance - better.deviance:.3g} below the fit's, which is "
            "no optimum: fit the model from another start"
        ) from None
    kind = "sigma" if isinstance(path, Scale) else "beta"
    return ProfileCurve(parameter.name, kind, path.estimate, w, zeta, slope, ends)


def _as_printed(curve: ProfileCurve, path: Held, found: ParametersAt, known: Known) -> ProfileCurve:
    """The curve of a working parameter as one of the parameter that is printed, a function of it."""
    if isinstance(path, Single):
        return curve
    if isinstance(path, Scale):
        low, high = curve.ends
        return replace(curve, estimate=float(np.exp(path.estimate)), ends=(None if low is None else 0.0, high))
    assert isinstance(path, Coordinate)
    phi = path.surface.phi.copy()
    values, slopes = np.empty(len(curve.coordinate)), np.empty(len(curve.coordinate))
    for i, w in enumerate(curve.coordinate):
        phi[path.k] = w
        rows = printed(found.moved(phi, 1.0))
        values[i], slopes[i] = rows.values[known.row], rows.jacobian[known.row, path.k]
    sign = -1 if slopes.sum() < 0 else 1
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = sign * curve.slope / slopes
    ends = (curve.ends[1], curve.ends[0]) if sign < 0 else curve.ends
    return ProfileCurve(
        curve.name,
        "beta",
        float(printed(found).values[known.row]),
        values[::sign],
        sign * curve.zeta[::sign],
        slope[::sign],
        ends,
    )
