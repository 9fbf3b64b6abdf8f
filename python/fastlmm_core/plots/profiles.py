"""Likelihood profiles, and the criterion itself over two covariance parameters."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import chi2

from fastlmm_core.errors import ModelError
from fastlmm_core.plots.canvas import FIT, MUTED, POINT, canvas, panels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from fastlmm_core.inference.profile import Profile

__all__ = ["pairs", "surface", "zeta"]

LEVELS = (0.5, 0.8, 0.95, 0.99)
"""Confidence regions that contours mark."""

GRID = 41
"""Points along each side of a surface."""


def zeta(profile: Profile, *, levels: Sequence[float] = (0.5, 0.8, 0.95), ax: Any = None) -> Figure:
    """ζ of each parameter against its value; see `Plots.profile`."""
    if len(profile) == 0:
        raise ModelError("the profile has no parameters")
    figure, axes = panels(len(profile), columns=min(len(profile), 3), ax=ax)
    for curve, place in zip(profile, axes, strict=True):
        value = curve.value
        if len(value) == 0:
            place.set_title(f"{curve.name}: no profile", fontsize=9)
            continue
        fine = np.linspace(value[0], value[-1], 200)
        place.plot(fine, curve.zeta_at(fine), color=POINT, linewidth=1.4)
        place.axhline(0.0, color=MUTED, linewidth=0.8)
        place.axvline(curve.estimate, color=MUTED, linewidth=0.8)
        for level in levels:
            z = float(ndtri(0.5 + 0.5 * level))
            ends = [v for s in (-z, z) for v in _reached(curve, s)]
            place.plot(ends, curve.zeta_at(ends), "|", color=FIT, markersize=10)
        place.set_title(curve.name, fontsize=9)
        place.set_ylabel("ζ", fontsize=9, rotation=0)
    return figure


def _reached(curve: Any, z: float) -> list[float]:
    """The value at which ζ is z, where the curve reaches it."""
    return [curve.value_at(z)] if curve.zeta[0] <= z <= curve.zeta[-1] else []


def surface(
    criterion: Callable[[NDArray[np.float64]], float],
    theta: NDArray[np.float64],
    names: Sequence[str],
    a: int,
    b: int,
    *,
    spread: float = 1.0,
    ax: Any = None,
) -> Figure:
    """The criterion over two entries of θ, the others held; see `Plots.surface`."""
    figure, place = canvas(ax)
    x, y = (_range(theta[k], spread, diagonal) for k, diagonal in ((a, _diagonal(names[a])), (b, _diagonal(names[b]))))
    at = theta.copy()
    value = np.empty((GRID, GRID))
    for i, v in enumerate(y):
        for j, u in enumerate(x):
            at[a], at[b] = u, v
            value[i, j] = criterion(at)
    rise = value - criterion(theta)
    cuts = chi2.ppf(LEVELS, 2)
    lines = place.contour(x, y, rise, levels=cuts, colors=POINT, linewidths=1.0)
    place.clabel(lines, fmt=dict(zip(cuts, [f"{level:.0%}" for level in LEVELS], strict=True)), fontsize=7)
    place.plot([theta[a]], [theta[b]], "+", color=FIT, markersize=9)
    place.set_xlabel(names[a])
    place.set_ylabel(names[b])
    return figure


def pairs(
    criterion: Callable[[NDArray[np.float64]], float],
    theta: NDArray[np.float64],
    names: Sequence[str],
    *,
    spread: float = 1.0,
    ax: Any = None,
) -> Figure:
    """Surfaces of all pairs of entries of θ; see `Plots.pairs`."""
    both = list(combinations(range(len(theta)), 2))
    figure, axes = panels(len(both), columns=min(len(both), 3), ax=ax)
    for (i, j), place in zip(both, axes, strict=True):
        surface(criterion, theta, names, i, j, spread=spread, ax=place)
    return figure


def _diagonal(name: str) -> bool:
    """Whether "group.row.column" or "group.column" names a diagonal entry, which is not negative."""
    parts = name.split(".")
    return len(parts) < 3 or parts[-1] == parts[-2]


def _range(value: float, spread: float, diagonal: bool) -> NDArray[np.float64]:
    reach = spread * max(abs(value), 0.1)
    return np.linspace(max(0.0, value - reach) if diagonal else value - reach, value + reach, GRID)
