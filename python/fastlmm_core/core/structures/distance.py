"""Covariance that fades with the distance between places, a `core.shapes.Shape`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.structures.shapes import Natural, separate

__all__ = ["Distance"]

Array = NDArray[np.float64]
Index = NDArray[np.integer[Any]]
Keys = Any


class Distance:
    """exp(-h / range) or exp(-(h / range)^2) of the distance h between coordinates, in the log of the range.

    With a nugget all correlations are 1 - nu times that, nu = sin^2(alpha): no nugget is an ordinary point.

    Parameters
    ----------
    coordinates : (T, d)
        Of each position.
    power : {1, 2}
        Exponential or Gaussian.
    nugget : bool
        Part of the variance is of the place alone.
    """

    scaled, linear, definite = True, False, False

    def __init__(self, coordinates: Array, power: int, nugget: bool = False) -> None:
        self.coordinates, self.power, self.nugget = coordinates, power, nugget
        self.n = 2 if nugget else 1

    def start(self) -> Array:
        """A range of three tenths of the places' spread, a nugget of a quarter."""
        spread = np.ptp(self.coordinates, axis=0)
        return np.array([np.log(0.3 * float(np.sqrt(spread @ spread))), 0.5][: self.n])

    def nearer(self, psi: Array) -> Array:
        """Half the range."""
        out = psi.copy()
        out[0] -= np.log(2.0)
        return out

    def keys(self, a: Index, b: Index) -> Keys:
        """Distances."""
        apart = self.coordinates[a] - self.coordinates[b]
        return np.sqrt(np.square(apart).sum(axis=-1))

    def _parts(self, psi: Array, keys: Keys) -> tuple[Array, Array, Any]:
        """For u = (h / range)^power: u, exp(-u), and what is shared of a pair: 1 - nu, and 1 of a place with itself."""
        u = (keys / np.exp(psi[0])) ** self.power
        return u, np.exp(-u), np.where(keys > 0, np.cos(psi[1]) ** 2, 1.0) if self.nugget else 1.0

    def values(self, psi: Array, keys: Keys) -> tuple[Array, Array]:
        """As `Shape.values`."""
        u, c, kept = self._parts(psi, keys)
        first = [kept * c * u * self.power]
        if self.nugget:
            first.append(np.where(keys > 0, -np.sin(2.0 * psi[1]) * c, 0.0))
        return kept * c, np.array(first)

    def curvature(self, psi: Array, keys: Keys, g: Array) -> Array:
        """As `Shape.curvature`."""
        u, c, kept = self._parts(psi, keys)
        out = np.zeros((self.n, self.n))
        out[0, 0] = np.sum(g * kept * c * (u * u - u)) * self.power**2
        if self.nugget:
            out[0, 1] = out[1, 0] = -np.sin(2.0 * psi[1]) * np.sum(g * c * u) * self.power
            out[1, 1] = -2.0 * np.cos(2.0 * psi[1]) * np.sum((g * c)[keys > 0])
        return out

    def natural(self, psi: Array) -> Natural:
        """Range, and nugget as a part of the variance."""
        r = np.exp(psi[0])
        if not self.nugget:
            return separate(("range",), np.array([r]), np.array([r]), np.array([r]))
        nu, slope, bend = np.sin(psi[1]) ** 2, np.sin(2.0 * psi[1]), 2.0 * np.cos(2.0 * psi[1])
        return separate(("range", "nugget"), np.array([r, nu]), np.array([r, slope]), np.array([r, bend]))
