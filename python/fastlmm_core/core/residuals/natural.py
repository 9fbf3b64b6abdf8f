"""The covariance parameters of a fit as the literature prints them, with two derivatives in the working ones.

The working parameters are (phi, log sigma^2): those of the criterion and the scale that was profiled out. The printed
ones are variances, correlations (or ranges, or covariances), slopes of the log standard deviation, and covariances of
the random effects. A standard error is by the delta method; Kenward and Roger's adjustment is defined by second
derivatives in *these*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.residuals.model import ResidualModel
from fastlmm_core.core.structures.covariances import Covariance, Entries, Scaled

if TYPE_CHECKING:
    from fastlmm_core.core.residuals.fit import PatternFit
    from fastlmm_core.core.structures.equations_fit import EquationsFit
    from fastlmm_core.core.structures.structured import StructuredFit

__all__ = ["ParametersAt", "Printed", "parameters_of", "printed"]

Array = NDArray[np.float64]
Row = tuple[str, str, float, Array, Array]


@dataclass(frozen=True)
class Printed:
    """Printed parameters of a fit.

    Attributes
    ----------
    kinds : tuple of str
        "variance", "shape", "dispersion" or "effects", one a parameter.
    labels : tuple of str
    values : (c,)
    jacobian : (c, r + 1)
        In (phi, log sigma^2), working coordinates.
    second : (c, r + 1, r + 1)
    """

    kinds: tuple[str, ...]
    labels: tuple[str, ...]
    values: Array
    jacobian: Array
    second: Array


@dataclass(frozen=True, eq=False)
class ParametersAt:
    """Covariance parameters of a model, wherever they are: what `printed` reads.

    Attributes
    ----------
    model : ResidualModel or None
        None where residuals have no structure.
    columns : (center, unit_of), each (e,)
        Of the columns of log standard deviations; see `core.residuals.columns`.
    n_variances : int
    phi : (r,)
        Working coordinates, the residuals' first.
    effects : sequence of (covariance, transform, place)
        Of each random-effects term.
    scale : float
        Sigma in working coordinates.
    """

    model: ResidualModel | None
    columns: tuple[Array, Array]
    n_variances: int
    phi: Array
    effects: Sequence[tuple[Covariance, Array, slice]]
    scale: float

    def moved(self, phi: Array, scale: float) -> ParametersAt:
        """The same model at other parameters."""
        return replace(self, phi=phi, scale=scale)


def parameters_of(fit: PatternFit | EquationsFit | StructuredFit) -> ParametersAt:
    """The parameters of a fit."""
    from fastlmm_core.core.structures.structured import StructuredFit

    if isinstance(fit, StructuredFit):
        structured = fit.structured
        effects = zip(structured.covariances, structured.transforms, structured.slices, strict=True)
        return ParametersAt(None, (np.zeros(0), np.zeros(0)), 1, fit.working, list(effects), fit.sigma)
    of_residual = getattr(fit.model, "model", None)
    if of_residual is None:
        return ParametersAt(None, (np.zeros(0), np.zeros(0)), 1, fit.all_phi, fit.effects, fit.scale)
    model: Any = fit.model  # of patterns, or crossed
    columns = model.center, model.unit_of
    return ParametersAt(of_residual, columns, model.n_variances, fit.all_phi, fit.effects, fit.scale)


def printed(at: ParametersAt) -> Printed:
    """The parameters as they are printed; see `Printed`."""
    model, phi = at.model, at.phi
    r = len(phi)
    center, unit_of = at.columns
    rows: list[Row] = []
    first = r + 1
    scale = np.zeros(first)
    scale[r] = 1.0
    eta = np.zeros(0) if model is None else phi[model.of_sd] / unit_of
    sigma2 = at.scale**2 * float(np.exp(-2.0 * center @ eta))
    if model is not None:  # sigma^2 of the user's units: centred columns move it
        scale[model.of_sd] = -2.0 * center / unit_of
    for v in range(at.n_variances):
        direction, value = scale.copy(), sigma2
        if v:
            direction[v - 1] += 2.0
            value = sigma2 * float(np.exp(2.0 * eta[v - 1]))
        rows.append(("variance", str(v), value, value * direction, value * np.outer(direction, direction)))
    if model is not None:
        rows += _of_residual(at, model, eta, sigma2, scale)
    for k, (covariance, T, where) in enumerate(at.effects):
        rows += _of_effects(k, covariance, T, phi, where, at.scale**2)
    kinds, labels, values, slopes, bends = zip(*rows, strict=True)
    return Printed(kinds, labels, np.array(values), np.array(slopes), np.array(bends))


def _of_residual(at: ParametersAt, model: ResidualModel, eta: Array, sigma2: float, scale: Array) -> list[Row]:
    """Rows of the residuals' shape and dispersion."""
    first, rows = len(at.phi) + 1, []
    shape = model.shape.natural(at.phi[model.of_shape])
    for c, name in enumerate(shape.names):
        slope, bend = np.zeros(first), np.zeros((first, first))
        slope[model.of_shape], bend[model.of_shape, model.of_shape] = shape.jacobian[c], shape.second[c]
        rows.append(_times_scale("shape", name, float(shape.values[c]), slope, bend, sigma2, scale, shape.covariance))
    for j in range(at.n_variances - 1, len(eta)):
        slope = np.zeros(first)
        slope[j] = 1.0 / at.columns[1][j]
        rows.append(("dispersion", str(j - at.n_variances + 1), float(eta[j]), slope, np.zeros((first, first))))
    return rows


def _of_effects(k: int, covariance: Covariance, T: Array, phi: Array, where: slice, variance: float) -> list[Row]:
    """Variances and covariances of a term whose parameters are a factor's entries; else variances and correlations."""
    r, theta, rows = len(phi), phi[where], []
    scale = np.zeros(r + 1)
    scale[r] = 1.0  # working sigma^2 times the working factor, whatever the centre
    places: list[tuple[int, int]] = []
    if isinstance(covariance, Entries):
        kept = set(covariance.columns[covariance.rows == covariance.columns].tolist())
        places = [(i, j) for i, j in covariance.entries if j in kept]
    elif isinstance(covariance, Scaled):
        places = [(i, i) for i in range(covariance.k)]
    S, directions = T @ covariance.sigma(theta) @ T.T, T @ covariance.directions(theta) @ T.T
    for i, j in places:
        slope, bend = np.zeros(r + 1), np.zeros((r + 1, r + 1))
        slope[where] = directions[:, i, j]
        g = 0.5 * (np.outer(T[i], T[j]) + np.outer(T[j], T[i]))
        bend[where, where] = covariance.curvature(theta, g)
        rows.append(_times_scale("effects", f"{k}:{i},{j}", float(S[i, j]), slope, bend, variance, scale, True))
    if isinstance(covariance, Scaled):
        natural = covariance.shape.natural(theta[covariance.k :])
        at = slice(where.start + covariance.k, where.stop)
        for c, name in enumerate(natural.names):
            slope, bend = np.zeros(r + 1), np.zeros((r + 1, r + 1))
            slope[at], bend[at, at] = natural.jacobian[c], natural.second[c]
            rows.append(("effects", f"{k}:{name}", float(natural.values[c]), slope, bend))
    return rows


def _times_scale(
    kind: str, label: str, value: float, slope: Array, bend: Array, variance: float, scale: Array, wanted: bool
) -> Row:
    """A parameter, or its product with sigma^2."""
    if not wanted:
        return kind, label, value, slope, bend
    cross = np.outer(slope, scale)
    bend = variance * (bend + cross + cross.T + value * np.outer(scale, scale))
    return kind, label, variance * value, variance * (slope + value * scale), bend
