"""The covariance parameters of a fit as the literature prints them, with two derivatives in the working ones.

The working parameters are (phi, log sigma^2): those of the criterion and the scale that was profiled out. The printed
ones are
variances, correlations (or ranges, or covariances), slopes of the log standard deviation, and covariances of the random
effects. A standard error is by the delta method; Kenward and Roger's adjustment is defined by second derivatives in
*these*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.covariances import Covariance, Entries, Scaled

if TYPE_CHECKING:
    from fastlmm_core.core.residuals.crossed import CrossedFit
    from fastlmm_core.core.residuals.fit import PatternFit

__all__ = ["Printed", "printed"]

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


def printed(fit: PatternFit | CrossedFit) -> Printed:
    """The parameters of a fit; see `Printed`."""
    model, phi = fit.model.model, fit.all_phi
    r = len(phi)
    rows: list[Row] = []

    def exponential(kind: str, label: str, value: float, direction: Array) -> None:
        rows.append((kind, label, value, value * direction, value * np.outer(direction, direction)))

    first = r + 1
    scale = np.zeros(first)
    scale[r] = 1.0
    # sigma^2 of the user's units: centred columns move it
    scale[model.of_sd] = -2.0 * fit.model.center / fit.model.unit_of
    for v in range(fit.model.n_variances):
        direction = scale.copy()
        if v:
            direction[v - 1] += 2.0
        exponential(
            "variance", str(v), fit.sigma**2 * float(np.exp(2.0 * fit.theta[v - 1])) if v else fit.sigma**2, direction
        )
    shape = model.shape.natural(phi[model.of_shape])
    for c, name in enumerate(shape.names):
        slope, bend = np.zeros(first), np.zeros((first, first))
        slope[model.of_shape], bend[model.of_shape, model.of_shape] = shape.jacobian[c], shape.second[c]
        rows.append(
            _times_scale("shape", name, float(shape.values[c]), slope, bend, fit.sigma**2, scale, shape.covariance)
        )
    for j in range(fit.model.n_variances - 1, model.log_sd.shape[1]):
        slope = np.zeros(first)
        slope[j] = 1.0 / fit.model.unit_of[j]
        rows.append(
            ("dispersion", str(j - fit.model.n_variances + 1), float(fit.theta[j]), slope, np.zeros((first, first)))
        )
    for k, (covariance, T, where) in enumerate(fit.effects):
        rows += _of_effects(k, covariance, T, phi, where, fit.scale**2)
    kinds, labels, values, slopes, bends = zip(*rows, strict=True)
    return Printed(kinds, labels, np.array(values), np.array(slopes), np.array(bends))


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
