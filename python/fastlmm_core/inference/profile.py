"""Likelihood profiles of every parameter (Bates, Mächler, Bolker & Walker 2015, section 5.1).

By the envelope theorem the slope ζ' = D' / (2 ζ) comes exact with every point, so a few points make a curve.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ConvergenceWarning, NumericalError, warn
from fastlmm_core.fitting.fit import model_of
from fastlmm_core.inference.curves import ProfileCurve
from fastlmm_core.inference.levels import quantile_of_level
from fastlmm_core.inference.parameters import Parameter, choose, parameter_values, parameters
from fastlmm_core.inference.profile_paths import (
    BetaPath,
    CorPath,
    OrdinaryPath,
    SdPath,
    SigmaPath,
    column_order,
)
from fastlmm_core.inference.profile_walk import BETTER, BetterOptimumError, Rival, curve_along
from fastlmm_core.inference.progress import each
from fastlmm_core.inference.refits import ml_fit
from fastlmm_core.inference.rotation import Reordered, reorder_term
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.core import CoreFit, Objective
    from fastlmm_core.fitting.fitted import FittedModel

__all__ = ["Profile", "profile"]

Array = NDArray[np.float64]

CERTAIN = 4.0
"""A standard deviation this many times as many standard errors as the profile reaches is far from zero."""

MAX_RESTARTS = 5
"""Times that a profile starts again from a lower optimum than the one in hand."""


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

    def conf_int(self, level: float = 0.95) -> Table:
        """Limits at which ζ is a normal quantile.

        Returns
        -------
        Table
            Columns lower, upper; a row a parameter. 0 and ±1 where an sd's or a correlation's profile meets the bound
            first, infinite where the deviance never rises far enough.

        Raises
        ------
        ModelError
            The profile was made for a lower level.
        """
        z = quantile_of_level(level)
        limits = np.array([(curve.value_at(-z), curve.value_at(z)) for curve in self.curves]).reshape(-1, 2)
        return table({"lower": limits[:, 0], "upper": limits[:, 1]}, [c.name for c in self.curves])

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


def profile(
    result: FittedModel, which: str | Iterable[str] | None = None, *, level: float | None = None, progress: bool = False
) -> Profile:
    """Profile parameters of a fit; see `LmerResult.profile`."""
    every = parameters(result.design)
    chosen = choose(every, which)
    # as lme4: far enough for a joint region of 99 %
    reach = float(np.sqrt(chdtri(len(every), 0.01)) if level is None else quantile_of_level(level))
    fit = ml_fit(result)
    first, core = fit.core.criterion, fit.core
    found = None
    for _ in range(MAX_RESTARTS):
        try:
            with one_blas_thread():
                found = _profile(fit, core, every, chosen, reach, progress)
            break
        except BetterOptimumError as better:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                core = _from(fit, core.cross.theta_map.to_user @ better.theta)
    if first - core.criterion > BETTER:
        warn(
            f"profiling found a deviance {first - core.criterion:.3g} below the fit's, which is no optimum: these are "
            f"profiles of the lower one. Fit it from there, start={[float(f'{t:.4g}') for t in core.theta]}",
            ConvergenceWarning,
        )
    if found is None:
        raise NumericalError(
            f"the deviance has no lowest point within reach: {MAX_RESTARTS} restarts each found a lower one"
        )
    return found


def _from(fit: FittedModel, theta: Array) -> CoreFit:
    """The maximum-likelihood fit started from theta."""
    return model_of(fit.design, replace(fit.options, reml=False)).fit(fit.design.y, start=theta)


def _profile(
    fit: FittedModel,
    core: CoreFit,
    every: tuple[Parameter, ...],
    chosen: list[Parameter],
    reach: float,
    progress: bool,
) -> Profile:
    """Profiles around one optimum; BetterOptimumError where it is not the lowest one."""
    values = parameter_values(fit.design, core.theta[None], np.array([core.sigma]), core.beta[None])[0]
    estimates = {p.name: float(v) for p, v in zip(every, values, strict=True)}
    core.require_products()
    curves = []
    with core.workspace() as objective:
        paths = PathMaker(core, objective)
        faces = paths.faces([p for p in every if p.kind == "sd"], reach)
        for parameter in each(chosen, progress, "profile", "parameter"):
            path = paths.make(parameter)
            rivals = []
            if path is not None:
                rivals = [rival for face in faces if (rival := face.rival(parameter, path))]
                if any(len(L) > 1 for L in core.L):  # the other variables at the estimate: a path may leave a lower one
                    rivals.append(Rival(core.criterion, path.estimate, path.start))
            curves.append(_curve(parameter, estimates[parameter.name], path, rivals, paths, reach))
    return Profile(tuple(curves), core.criterion)


@dataclass(frozen=True, eq=False)
class Face:
    """The optimum with one standard deviation at zero.

    Attributes
    ----------
    parameter : Parameter
        The standard deviation.
    deviance : float
    theta : (n_theta,)
        Conditioned.
    """

    parameter: Parameter
    deviance: float
    theta: Array

    def rival(self, profiled: Parameter, path: OrdinaryPath) -> Rival | None:
        """What it is beside the path of another parameter; None where that path itself ends on the face."""
        mine = self.parameter
        if profiled.kind == "sd" and (profiled.term, profiled.row) == (mine.term, mine.row):
            return None
        if profiled.kind == "cor" and profiled.term == mine.term and mine.row in (profiled.row, profiled.column):
            return Rival(self.deviance, None, None)
        return Rival(self.deviance, *path.locate(self.theta))


class PathMaker:
    """Paths of one maximum-likelihood fit; the criterion of an order of columns is made once.

    Parameters
    ----------
    core : CoreFit
        By maximum likelihood.
    objective : Objective
        Its criterion; those of other orders of columns are made beside it, on its plan.
    """

    def __init__(self, core: CoreFit, objective: Objective) -> None:
        self.core, self.objective = core, objective
        self.theta = np.ascontiguousarray(core.cross.to_conditioned @ core.theta)
        self._ordered: dict[tuple[int, ...], tuple[Objective, Reordered]] = {}
        c = core.cross.conditioning
        self.sigma_unit = float(c.y_scale * np.sqrt(c.weight_scale))

    def make(self, parameter: Parameter) -> OrdinaryPath | None:
        """The path of a parameter; None for a coefficient that was dropped."""
        core = self.core
        if parameter.kind == "sigma":
            return SigmaPath(self.objective, self.theta)
        if parameter.kind == "beta":
            at = np.flatnonzero(core.cross.conditioning.keep == parameter.row)
            if not at.size:
                return None
            se = float(np.sqrt(core.known_cov[parameter.row, parameter.row]))
            return BetaPath(self.objective, self.theta, int(at[0]), se)
        if parameter.kind == "sd":
            return self._sd(parameter)
        k, l = parameter.term, len(core.L[parameter.term])
        return CorPath(*self._in_order(k, column_order(l, parameter.column, parameter.row)), self.theta, k)

    def _sd(self, parameter: Parameter) -> SdPath:
        k, l = parameter.term, len(self.core.L[parameter.term])
        return SdPath(*self._in_order(k, column_order(l, parameter.row)), self.theta, k)

    def _in_order(self, k: int, order: Iterable[int]) -> tuple[Objective, Reordered]:
        order = list(order)
        if order == sorted(order):
            return self.objective, Reordered(self.core.cross)
        key = (k, *order)
        if key not in self._ordered:
            found = reorder_term(self.core.cross, k, order)
            self._ordered[key] = self.objective.beside(found.cross), found
        return self._ordered[key]

    def faces(self, sds: Iterable[Parameter], reach: float) -> list[Face]:
        """The optima with one standard deviation at zero whose ζ is within `reach`.

        Each is sought from the estimate without that effect, and from unit relative variances of the others.

        Raises
        ------
        BetterOptimumError
            One is below the estimate.
        """
        found = []
        for parameter in sds:
            path = self._sd(parameter)
            if path.estimate > CERTAIN * reach * path.step:
                continue
            unit = self.core.cross.theta_map.diagonal.astype(float)
            unit[path.at] = path.start[path.at]
            optima = []
            for start in (path.start, unit):
                try:
                    d, _, x = path.solve(0.0, start)
                except NumericalError:
                    continue
                optima.append((d, path.theta(0.0, x)))
            if not optima:
                continue
            d, theta = min(optima, key=lambda optimum: optimum[0])
            if d < self.core.criterion - BETTER:
                raise BetterOptimumError(theta, d)
            if d < self.core.criterion + reach**2:
                found.append(Face(parameter, d, theta))
        return found


def _curve(
    parameter: Parameter,
    estimate: float,
    path: OrdinaryPath | None,
    rivals: list[Rival],
    paths: PathMaker,
    reach: float,
) -> ProfileCurve:
    """The profile along one path, in the coordinate of its kind."""
    if path is None:
        empty = np.empty(0)
        return ProfileCurve(parameter.name, parameter.kind, estimate, empty, empty, empty, (None, None))
    w, zeta, slope, ends = curve_along(path, rivals, paths.core.criterion, reach)
    if parameter.kind == "sigma":
        w = w + np.log(paths.sigma_unit)
    elif parameter.kind == "cor":
        ends = (None if ends[0] is None else -1.0, None if ends[1] is None else 1.0)
    return ProfileCurve(parameter.name, parameter.kind, estimate, w, zeta, slope, ends)
