"""From the estimate outwards along one parameter, on the least of all optima of the others.

The profiled criterion is a global minimum, which a path followed from the estimate need not stay at. Where a standard
deviation is zero its correlations are free and the data need not be explained by them: so the boundary faces, a term's
standard deviation at zero and all else at its best, are found once. Beyond their own deviance they compete with the
path, which changes to the lower one, with a kink where they cross. A face without the effect is level along a
correlation of that effect; it is the reason why such an interval may end at -1 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from fastlmm_core.errors import NumericalError
from fastlmm_core.inference.curves import hermite, hermite_slope, slope_at_estimate
from fastlmm_core.inference.profile_paths import Path

__all__ = ["BetterOptimumError", "Point", "Rival", "curve_along", "walk"]

Array = NDArray[np.float64]

SPACING = 0.5
"""Distance in ζ between points: interpolation is then off by a thousandth of an interval's width at most."""

MAX_POINTS = 60
"""Points on one side before a limit counts as infinite."""

MAX_FAILURES = 20
"""Steps taken back on one side before a rise counts as a jump, from one branch of optima to another."""

LOWER = 1e-6
"""An optimum has to be this much lower than another to take its place: solutions are that exact."""

BETTER = 1e-4
"""A deviance this much below the fit's, met while profiling, says that the fit is not the optimum."""


class BetterOptimumError(Exception):
    """The fit that is profiled is not the optimum; `theta` (n_theta,), conditioned, has the lower `deviance`."""

    def __init__(self, theta: Array, deviance: float) -> None:
        super().__init__(f"deviance {deviance}")
        self.theta, self.deviance = theta, deviance


class Point(NamedTuple):
    """One point of a profile: coordinate, deviance, its slope, and the other variables (None where they are free)."""

    w: float
    d: float
    slope: float
    x: Array | None


@dataclass(frozen=True, eq=False)
class Rival:
    """An optimum on a boundary face, as one parameter's path sees it.

    Attributes
    ----------
    deviance : float
        The least on the face.
    w : float or None
        The parameter's coordinate there; None where the parameter is free on the face, and the deviance level.
    x : (k,) or None
        The other variables there.
    """

    deviance: float
    w: float | None
    x: Array | None

    def at(self, path: Path, w: float, x: Array | None = None) -> Point:
        """The least deviance at coordinate `w` sought from the face, or from other variables given."""
        if self.w is None:
            return Point(w, self.deviance, 0.0, None)
        start = self.x if x is None else x
        assert start is not None
        return Point(w, *path.solve(w, start))


def curve_along(
    path: Path, rivals: Sequence[Rival], deviance: float, reach: float
) -> tuple[Array, Array, Array, tuple[float | None, float | None]]:
    """Walk both ways from the estimate: coordinates, ζ and its slopes (k,), and the limits where ζ cannot pass `reach`.

    Raises
    ------
    BetterOptimumError
        A deviance below that of the estimate was met.
    """
    down, low_end = walk(path, rivals, deviance, reach, -1.0)
    up, high_end = walk(path, rivals, deviance, reach, 1.0)
    points = [*((p.w, p.d, p.slope) for p in reversed(down)), (path.estimate, deviance, 0.0)]
    points += [(p.w, p.d, p.slope) for p in up]
    w, d, slopes = (np.array(column) for column in zip(*points, strict=True))
    at = len(down)
    zeta = np.sqrt(np.maximum(d - deviance, 0.0)) * np.sign(np.arange(len(w)) - at)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(zeta != 0.0, slopes / (2.0 * zeta), 0.0)
    slope[at] = slope_at_estimate(w, zeta, slope, at)
    return w, zeta, slope, (low_end, high_end)


def walk(
    path: Path, rivals: Sequence[Rival], deviance: float, reach: float, direction: float
) -> tuple[list[Point], float | None]:
    """Points from the estimate until ζ passes `reach` for good, and the limit where it cannot.

    Where the walk has passed `reach` but a rival's optimum within reach lies further out, it goes on from there.

    Raises
    ------
    BetterOptimumError
        A deviance below that of the estimate was met.
    """
    estimate = Point(path.estimate, deviance, 0.0, path.start)
    points, end = _outwards(path, rivals, estimate, deviance, reach, direction)
    while end is None:
        reached = points[-1].w if points else path.estimate
        further = [r for r in rivals if r.w is not None and direction * (r.w - reached) > 0.0]
        if not further:
            break
        nearest = min(further, key=lambda r: direction * (r.w or 0.0))
        assert nearest.w is not None
        island = Point(nearest.w, nearest.deviance, 0.0, nearest.x)
        inner, _ = _outwards(path, (), island, deviance, reach, -direction, stop=reached)
        outer, end = _outwards(path, rivals, island, deviance, reach, direction)
        points += [p for p in reversed(inner) if direction * (p.w - reached) > 0.0]
        points += [island, *outer]
    _look_back(path, points)
    for point in points:
        if point.d < deviance - BETTER and point.x is not None:
            raise BetterOptimumError(path.theta(point.w, point.x), point.d)
    return points, end


def _outwards(
    path: Path,
    rivals: Sequence[Rival],
    start: Point,
    deviance: float,
    reach: float,
    direction: float,
    stop: float | None = None,
) -> tuple[list[Point], float | None]:
    """Points beyond `start` until ζ passes `reach` or w passes `stop`, and the bound where it was met first.

    The size of a step comes from the slope at the last point; the start of a solution from the last two.
    """
    bound = path.upper if direction > 0 else path.lower
    aim = reach / np.ceil(reach / SPACING)
    at, before = start, None
    z = _zeta(start.d, deviance)
    step = aim * path.step
    points: list[Point] = []
    failures = 0
    while len(points) < MAX_POINTS and direction * (bound - at.w) > 1e-9 * abs(at.w):
        step = min(step, path.longest)
        at_bound = direction * (at.w + direction * step - bound) >= 0.0
        w = bound if at_bound else at.w + direction * step
        new = _continued(path, w, at, before)
        rival, other = _lowest(path, rivals, new)
        if rival is not None and rival.w is None:
            return [*points, *_kink(path, rival, at, new, other), Point(bound, rival.deviance, 0.0, None)], bound
        new_z = _zeta(other.d, deviance)
        if new_z - z > 1.75 * aim and (failures < MAX_FAILURES or not np.isfinite(other.d)):
            if failures > 2 * MAX_FAILURES:
                raise NumericalError(f"the deviance could not be minimised beyond {at.w:.6g} on the profile's scale")
            failures += 1
            step = abs(w - at.w) * (0.25 if not np.isfinite(other.d) else max(0.2, aim / (new_z - z)))
            continue
        if rival is not None:
            points += _kink(path, rival, at, new, other)
        points.append(other)
        before, at, z = (at if rival is None else None), other, new_z
        if z >= reach or (stop is not None and direction * (at.w - stop) >= 0.0):
            return points, None
        rise = abs(at.slope) / (2.0 * z) if z > 0.0 else 0.0
        left = reach - z
        target = 1.02 * left if left < 1.5 * aim else min(aim, left)
        step = min(target / rise, 3.0 * step) if rise > 0.0 else 3.0 * step
    return points, bound


def _zeta(d: float, deviance: float) -> float:
    return float(np.sqrt(max(d - deviance, 0.0)))


def _continued(path: Path, w: float, at: Point, before: Point | None) -> Point:
    """The path's own optimum at `w`, started from the last two points; an infinite deviance where there is none."""
    assert at.x is not None
    guess = at.x
    if before is not None and before.x is not None:
        guess = at.x + (at.x - before.x) * ((w - at.w) / (at.w - before.w))
    try:
        return Point(w, *path.solve(w, guess))
    except NumericalError:
        return Point(w, np.inf, 0.0, at.x)


def _lowest(path: Path, rivals: Sequence[Rival], own: Point) -> tuple[Rival | None, Point]:
    """The rival that is lower than the path's own optimum, and the lowest point."""
    found, lowest = None, own
    for rival in rivals:
        if rival.deviance >= lowest.d - LOWER:  # no coordinate makes it lower than it is at its best
            continue
        try:
            point = rival.at(path, own.w)
        except NumericalError:
            continue
        if point.d < lowest.d - LOWER:
            found, lowest = rival, point
    return found, lowest


def _kink(path: Path, rival: Rival, at: Point, own: Point, other: Point) -> list[Point]:
    """Two points a rounding error apart where the path, from `at` to `own`, and the rival, ending at `other`, cross."""
    if not np.isfinite(own.d):
        return []
    try:
        back = rival.at(path, at.w, other.x)
    except NumericalError:
        return []
    if back.d <= at.d + LOWER:  # they part further out
        return []
    h = own.w - at.w
    mine = np.array([at.d, own.d, h * at.slope, h * own.slope])
    theirs = np.array([back.d, other.d, h * back.slope, h * other.slope])

    def gap(t: float) -> float:
        return float(hermite(t, *(mine - theirs)))

    t = float(brentq(gap, 0.0, 1.0, xtol=1e-12))
    w, d = at.w + t * h, float(hermite(t, *mine))
    beyond = np.nextafter(w, own.w)
    slopes = [float(hermite_slope(t, *side)) / h for side in (mine, theirs)]
    return [Point(w, d, slopes[0], None), Point(float(beyond), d, slopes[1], None)]


def _look_back(path: Path, points: list[Point]) -> None:
    """Where the deviance falls from a point to the next one out, solve again from there: its optimum may be lower."""
    for i in range(len(points) - 2, -1, -1):
        outer = points[i + 1].x
        if points[i].d <= points[i + 1].d or outer is None or points[i].x is None:
            continue
        try:
            again = Point(points[i].w, *path.solve(points[i].w, outer))
        except NumericalError:
            continue
        if again.d < points[i].d:
            points[i] = again
