"""One parameter's profile as a curve: cubic Hermite pieces between points with exact slopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.errors import ModelError

__all__ = ["ProfileCurve", "hermite", "hermite_slope", "slope_at_estimate"]

Array = NDArray[np.float64]

Transform = Callable[..., Array]
_TO_VALUE: dict[str, Transform] = {
    **dict.fromkeys(("sd", "beta", "own"), np.asarray),
    **{"sigma": np.exp, "cor": np.sin},
}
_TO_COORDINATE: dict[str, Transform] = {
    **dict.fromkeys(("sd", "beta", "own"), np.asarray),
    **{"sigma": np.log, "cor": np.arcsin},
}


@dataclass(frozen=True, eq=False)
class ProfileCurve:
    """ζ of one parameter, ζ(v) = sign(v - v̂) √(D(v) - D̂), with D the profile deviance.

    Attributes
    ----------
    name : str
    kind : {"sd", "cor", "sigma", "own", "beta"}
    estimate : float
        Maximum-likelihood estimate.
    coordinate, zeta, slope : ndarray (k,)
        Increasing coordinates, ζ, and its derivative. The coordinate, in which the profile is smooth, is the parameter
        itself, the logarithm of sigma, the arcsine of a correlation.
    ends : (float or None, float or None)
        Limit beyond the first and the last point: a bound of the parameter (the deviance does not rise further), or
        None where the profile merely stops.
    """

    name: str
    kind: str
    estimate: float
    coordinate: Array
    zeta: Array
    slope: Array
    ends: tuple[float | None, float | None]

    @property
    def value(self) -> Array:
        """Values of the parameter (k,) at which it was held."""
        return np.asarray(_TO_VALUE[self.kind](self.coordinate))

    def zeta_at(self, values: ArrayLike) -> Array:
        """ζ at any values of the parameter; NaN outside the profile."""
        w = np.asarray(_TO_COORDINATE[self.kind](np.asarray(values, dtype=float)))
        k = len(self.coordinate)
        if k < 2:
            return np.full(w.shape, np.nan)
        i = np.clip(np.searchsorted(self.coordinate, w, side="right") - 1, 0, k - 2)
        h = self.coordinate[i + 1] - self.coordinate[i]
        t = (w - self.coordinate[i]) / h
        found = hermite(t, self.zeta[i], self.zeta[i + 1], h * self.slope[i], h * self.slope[i + 1])
        return np.where((w >= self.coordinate[0]) & (w <= self.coordinate[-1]), found, np.nan)

    def value_at(self, zeta: float) -> float:
        """The value at which ζ is reached (the furthest one), or the bound of the parameter where it never is.

        Raises
        ------
        ModelError
            The profile stops short of `zeta`.
        """
        z = self.zeta
        if len(z) == 0:
            return float("nan")
        if not z[0] < zeta < z[-1]:
            end = 0 if zeta <= z[0] else -1
            if z[end] == zeta:
                return float(self.value[end])
            bound = self.ends[end]
            if bound is None:
                raise ModelError(f"the profile of {self.name} ends at ζ = {z[end]:.2f}: ask for a higher level")
            return bound
        crossed = np.flatnonzero((z[:-1] <= zeta) & (zeta <= z[1:]))
        i = int(crossed[0] if zeta < 0.0 else crossed[-1])
        h = float(self.coordinate[i + 1] - self.coordinate[i])
        piece = float(z[i]), float(z[i + 1]), h * float(self.slope[i]), h * float(self.slope[i + 1])
        low, high = 0.0, 1.0
        for _ in range(60):  # bisection: a piece may have a level end, and Newton's method none
            middle = 0.5 * (low + high)
            if hermite(middle, *piece) < zeta:
                low = middle
            else:
                high = middle
            if high - low < 1e-12:
                break
        return float(_TO_VALUE[self.kind](float(self.coordinate[i]) + h * high))


def hermite(t: Any, z0: Any, z1: Any, s0: Any, s1: Any) -> Any:
    """Cubic on [0, 1] with values z0, z1 and slopes s0, s1 at its ends."""
    return z0 + t * (s0 + t * (3.0 * (z1 - z0) - 2.0 * s0 - s1 + t * (2.0 * (z0 - z1) + s0 + s1)))


def hermite_slope(t: Any, z0: Any, z1: Any, s0: Any, s1: Any) -> Any:
    """Its derivative in t."""
    return s0 + t * (2.0 * (3.0 * (z1 - z0) - 2.0 * s0 - s1) + 3.0 * t * (2.0 * (z0 - z1) + s0 + s1))


def slope_at_estimate(w: Array, zeta: Array, slope: Array, at: int) -> float:
    """ζ' at the estimate, where D' / (2 ζ) is 0 / 0, from the neighbouring points.

    Between two neighbours: such that ζ'' is continuous. At an end, the estimate on a boundary about which D is even and
    ζ odd: ζ = m w + c w^3.
    """
    last = len(w) - 1
    if last == 0 or (np.diff(w[max(0, at - 1) : at + 2]) == 0.0).any():
        return 0.0  # a parameter at its limit, from which no step was possible
    if 0 < at < last:
        h1, h2 = w[at] - w[at - 1], w[at + 1] - w[at]
        right = 6.0 * zeta[at + 1] / h2**2 - 2.0 * slope[at + 1] / h2
        left = -6.0 * zeta[at - 1] / h1**2 - 2.0 * slope[at - 1] / h1
        return float((left + right) / (4.0 * (1.0 / h1 + 1.0 / h2)))
    other = 1 if at == 0 else last - 1
    return float((3.0 * zeta[other] / (w[other] - w[at]) - slope[other]) / 2.0)
