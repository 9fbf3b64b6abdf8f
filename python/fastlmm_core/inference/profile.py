"""Likelihood profiles of every parameter (Bates, Mächler, Bolker & Walker 2015, section 5.1).

By the envelope theorem the slope ζ' = D' / (2 ζ) comes exact with every point, so a few points make a curve.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtri

from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ConvergenceWarning, ModelError, NumericalError, RankWarning
from fastlmm_core.fitting.fit import refit_ml
from fastlmm_core.inference.curves import ProfileCurve, slope_at_estimate
from fastlmm_core.inference.parameters import Parameter, choose, parameter_values, parameters
from fastlmm_core.inference.profile_paths import (
    BetaPath,
    CorPath,
    Path,
    SdPath,
    SigmaPath,
    SplitCriterion,
    column_order,
)
from fastlmm_core.inference.rotation import reorder_term

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.core import CoreFit
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["Profile", "profile", "quantile_of_level"]

Array = NDArray[np.float64]
Point = tuple[float, float, float, Array]

SPACING = 0.5
"""Distance in ζ between points: interpolation is then off by a thousandth of an interval's width at most."""

MAX_POINTS = 60
"""Points on one side before a limit counts as infinite."""

MAX_FAILURES = 20
"""Steps taken back on one side before a rise counts as a jump, from one branch of optima to another."""

BETTER = 1e-4
"""A deviance this much below the fit's, met while profiling, says that the fit is not the optimum."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Profiles of a model's parameters: index one by name, iterate over them, or take the intervals.

    Attributes
    ----------
    curves : tuple of ProfileCurve
        In the order of `conf_int`.
    deviance : float
        Of the maximum-likelihood fit.

    Examples
    --------
    >>> from fastlmm_core import lmer, load_dataset
    >>> pr = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).profile()
    >>> pr.conf_int(0.95).round(1)
                         lower   upper
    sd_Intercept|Batch    12.2    84.1
    sigma                 38.2    67.7
    Intercept           1486.5  1568.5
    >>> pr["sigma"].zeta_at([40.0, 60.0]).round(2)
    array([-1.59,  1.25])
    """

    curves: tuple[ProfileCurve, ...]
    deviance: float

    def __iter__(self) -> Iterator[ProfileCurve]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)

    def __getitem__(self, name: str) -> ProfileCurve:
        for curve in self.curves:
            if curve.name == name:
                return curve
        raise KeyError(f"no profile of {name!r}; there is {', '.join(c.name for c in self.curves)}")

    def conf_int(self, level: float = 0.95) -> pd.DataFrame:
        """Limits at which ζ is a normal quantile.

        Returns
        -------
        DataFrame
            Columns lower, upper; a row a parameter. 0 and ±1 where an sd's or a correlation's profile meets the bound
            first, infinite where the deviance never rises far enough.

        Raises
        ------
        ModelError
            The profile was made for a lower level.
        """
        import pandas as pd

        z = quantile_of_level(level)
        limits = [(curve.value_at(-z), curve.value_at(z)) for curve in self.curves]
        return pd.DataFrame(limits, index=[c.name for c in self.curves], columns=["lower", "upper"], dtype=float)

    def to_frame(self) -> pd.DataFrame:
        """Columns parameter, value, zeta, deviance: a row a point of a profile."""
        import pandas as pd

        zeta = np.concatenate([c.zeta for c in self.curves])
        return pd.DataFrame(
            {
                "parameter": [c.name for c in self.curves for _ in c.zeta],
                "value": np.concatenate([c.value for c in self.curves]),
                "zeta": zeta,
                "deviance": self.deviance + zeta**2,
            }
        )


def quantile_of_level(level: float) -> float:
    """The normal quantile of a two-sided interval; ModelError unless 0 < level < 1."""
    if not 0.0 < level < 1.0:
        raise ModelError(f"level must lie between 0 and 1, not {level}")
    return float(ndtri(0.5 + 0.5 * level))


def profile(
    result: FittedModel, which: str | Iterable[str] | None = None, *, level: float | None = None, progress: bool = False
) -> Profile:
    """Profile parameters of a fit; see `LmerResult.profile`."""
    every = parameters(result.design)
    chosen = choose(every, which)
    # as lme4: far enough for a joint region of 99 %
    reach = np.sqrt(chdtri(len(every), 0.01)) if level is None else quantile_of_level(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # the fit has said so
        fit = refit_ml(result)
    core = fit.core
    values = parameter_values(fit.design, core.theta[None], np.array([core.sigma]), core.beta[None])[0]
    estimates = {p.name: float(v) for p, v in zip(every, values, strict=True)}
    paths = PathMaker(core)
    better = 0.0
    curves = []
    with one_blas_thread():
        for parameter in _shown(chosen, progress):
            path = paths.make(parameter)
            curve, found = _curve(parameter, estimates[parameter.name], path, core.criterion, float(reach), paths)
            curves.append(curve)
            better = max(better, core.criterion - found)
    if better > BETTER:
        warnings.warn(
            f"profiling found a deviance {better:.3g} below the fit's, which is no optimum: fit it from another start",
            ConvergenceWarning,
            stacklevel=3,
        )
    return Profile(tuple(curves), core.criterion)


def _shown(chosen: list[Parameter], progress: bool) -> Iterable[Parameter]:
    if not progress:
        return chosen
    from tqdm import tqdm

    bar: Iterable[Parameter] = tqdm(chosen, desc="profile", unit="parameter")
    return bar


class PathMaker:
    """Paths of one maximum-likelihood fit; the criterion of an order of columns is made once.

    Parameters
    ----------
    core : CoreFit
        By maximum likelihood.
    """

    def __init__(self, core: CoreFit) -> None:
        self.core = core
        self.theta = np.ascontiguousarray(core.cross.to_conditioned @ core.theta)
        self.criterion = SplitCriterion(core.cross, core.control)
        self._ordered: dict[tuple[int, ...], tuple[SplitCriterion, Array]] = {}
        c = core.cross.conditioning
        self.sigma_unit = float(c.y_scale * np.sqrt(c.weight_scale))

    def make(self, parameter: Parameter) -> Path | None:
        """The path of a parameter; None for a coefficient that was dropped."""
        core = self.core
        if parameter.kind == "sigma":
            return SigmaPath(self.criterion, self.theta)
        if parameter.kind == "beta":
            at = np.flatnonzero(core.cross.conditioning.keep == parameter.row)
            if not at.size:
                return None
            se = float(np.sqrt(core.cov_beta[parameter.row, parameter.row]))
            return BetaPath(self.criterion, self.theta, int(at[0]), float(core.beta[parameter.row]), se)
        k, l = parameter.term, len(core.L[parameter.term])
        if parameter.kind == "sd":
            return SdPath(*self._in_order(k, column_order(l, parameter.row)), k)
        return CorPath(*self._in_order(k, column_order(l, parameter.column, parameter.row)), k)

    def _in_order(self, k: int, order: Iterable[int]) -> tuple[SplitCriterion, Array]:
        order = list(order)
        if order == sorted(order):
            return self.criterion, self.theta
        key = (k, *order)
        if key not in self._ordered:
            cross, theta = reorder_term(self.core.cross, self.theta, k, order)
            self._ordered[key] = SplitCriterion(cross, self.core.control), theta
        return self._ordered[key]


def _curve(
    parameter: Parameter, estimate: float, path: Path | None, deviance: float, reach: float, paths: PathMaker
) -> tuple[ProfileCurve, float]:
    """Walk both ways from the estimate. Also the least deviance met."""
    if path is None:
        empty = np.empty(0)
        return ProfileCurve(parameter.name, parameter.kind, estimate, empty, empty, empty, (None, None)), deviance
    down, low_end = _walk(path, deviance, reach, -1.0)
    up, high_end = _walk(path, deviance, reach, 1.0)
    points = [*reversed(down), (path.estimate, deviance, 0.0), *up]
    w, d, slopes = (np.array(column) for column in zip(*points, strict=True))
    at = len(down)
    zeta = np.sqrt(np.maximum(d - deviance, 0.0)) * np.sign(np.arange(len(w)) - at)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(zeta != 0.0, slopes / (2.0 * zeta), 0.0)
    slope[at] = slope_at_estimate(w, zeta, slope, at)
    ends = (low_end, high_end)
    if parameter.kind == "sigma":
        w = w + np.log(paths.sigma_unit)
    elif parameter.kind == "cor":
        ends = (None if low_end is None else -1.0, None if high_end is None else 1.0)
    curve = ProfileCurve(parameter.name, parameter.kind, estimate, w, zeta, slope, ends)
    return curve, float(d.min())


def _walk(
    path: Path, deviance: float, reach: float, direction: float
) -> tuple[list[tuple[float, float, float]], float | None]:
    """Points (w, deviance, slope) from the estimate until ζ passes `reach`, and the limit where it cannot.

    The size of a step comes from the slope at the last point; the start of a solution from the last two.
    """
    bound = path.upper if direction > 0 else path.lower
    aim = reach / np.ceil(reach / SPACING)
    w, x, z = path.estimate, path.start, 0.0
    before: tuple[float, Array] | None = None
    step = aim * path.step
    points: list[Point] = []
    failures = 0
    end: float | None = bound
    while len(points) < MAX_POINTS and direction * (bound - w) > 1e-9 * abs(w):
        at_bound = direction * (w + direction * step - bound) >= 0.0
        new_w = bound if at_bound else w + direction * step
        guess = x if before is None else x + (x - before[1]) * ((new_w - w) / (w - before[0]))
        try:
            d, slope, new_x = path.solve(new_w, guess)
        except NumericalError:
            d, slope, new_x = np.inf, 0.0, x
        new_z = float(np.sqrt(max(d - deviance, 0.0)))
        if new_z - z > 1.75 * aim and (failures < MAX_FAILURES or not np.isfinite(d)):
            if failures > 2 * MAX_FAILURES:
                raise NumericalError(f"the deviance could not be minimised beyond {w:.6g} on the profile's scale")
            failures += 1
            step = abs(new_w - w) * (0.25 if not np.isfinite(d) else max(0.2, aim / (new_z - z)))
            continue
        points.append((new_w, d, slope, new_x))
        before, w, x, z = (w, x), new_w, new_x, new_z
        if z >= reach:
            end = None
            break
        rise = abs(slope) / (2.0 * z) if z > 0.0 else 0.0
        left = reach - z
        target = 1.02 * left if left < 1.5 * aim else min(aim, left)
        step = min(target / rise, 3.0 * step) if rise > 0.0 else 3.0 * step
    _look_back(path, points)
    return [point[:3] for point in points], end


def _look_back(path: Path, points: list[Point]) -> None:
    """Where the deviance falls from a point to the next one out, solve again from there: its optimum may be lower."""
    for i in range(len(points) - 2, -1, -1):
        w, d, _, _ = points[i]
        if d <= points[i + 1][1]:
            continue
        try:
            again = path.solve(w, points[i + 1][3])
        except NumericalError:
            continue
        if again[0] < d:
            points[i] = (w, *again)
