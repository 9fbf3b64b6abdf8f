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

if TYPE_CHECKING:
    from fastlmm_core.core.residuals.fit import PatternFit

__all__ = ["Printed", "printed"]

Array = NDArray[np.float64]


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


def printed(fit: PatternFit) -> Printed:
    """The parameters of a fit; see `Printed`."""
    model, phi = fit.model.model, fit.point.phi
    r = model.n
    rows: list[tuple[str, str, float, Array, Array]] = []

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
    for k, (term, T, where) in enumerate(zip(model.effects, fit.model.transforms, model.of_effects, strict=True)):
        L = term.factor(phi[where])
        entries = term.entries
        for i, j in entries:
            if (j, j) not in entries:
                continue
            slope, bend = np.zeros(first), np.zeros((first, first))
            S = T @ L @ L.T @ T.T
            for a, (p, q) in enumerate(entries, where.start):
                slope[a] = T[i, p] * (T @ L)[j, q] + T[j, p] * (T @ L)[i, q]
                for b, (s, t) in enumerate(entries, where.start):
                    if q == t:
                        bend[a, b] = T[i, p] * T[j, s] + T[j, p] * T[i, s]
            only_sigma = np.zeros(first)
            only_sigma[r] = 1.0  # working sigma^2 times the working factor, whatever the centre
            row = _times_scale("effects", f"{k}:{i},{j}", float(S[i, j]), slope, bend, fit.working**2, only_sigma, True)
            rows.append(row)
    kinds, labels, values, slopes, bends = zip(*rows, strict=True)
    return Printed(kinds, labels, np.array(values), np.array(slopes), np.array(bends))


def _times_scale(
    kind: str, label: str, value: float, slope: Array, bend: Array, variance: float, scale: Array, wanted: bool
) -> tuple[str, str, float, Array, Array]:
    """A parameter, or its product with sigma^2."""
    if not wanted:
        return kind, label, value, slope, bend
    cross = np.outer(slope, scale)
    bend = variance * (bend + cross + cross.T + value * np.outer(scale, scale))
    return kind, label, variance * value, variance * (slope + value * scale), bend
