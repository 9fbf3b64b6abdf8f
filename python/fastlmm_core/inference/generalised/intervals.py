"""Bootstrap, profiles and intervals of a generalised fit.

A profile holds a function phi(theta, beta, rho) of the parameters at a value and minimises the deviance over the rest,
by sequential quadratic programming with the exact gradient, in coordinates in which the deviance is round. The slope
of the profile is the multiplier of the constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from fastlmm_core.core.arguments import checked_count
from fastlmm_core.core.curvature import second_derivatives
from fastlmm_core.core.glmm import GlmmObjective
from fastlmm_core.errors import (
    ConvergenceWarning,
    DataError,
    FastLMMError,
    FastLMMWarning,
    NumericalError,
    warn,
)
from fastlmm_core.families import TwoPart
from fastlmm_core.fitting.generalised import glmm_of, kept_glmm, options_of_rows, refit_counts
from fastlmm_core.fitting.models import arrays_of
from fastlmm_core.fitting.unidentified import unidentified_elements
from fastlmm_core.inference.bootstrap import jackknife_rows, named
from fastlmm_core.inference.curves import ProfileCurve, slope_at_estimate
from fastlmm_core.inference.generalised.simulate import draws as drawn
from fastlmm_core.inference.intervals import KINDS, METHODS, bootstrap_limits, option
from fastlmm_core.inference.levels import quantile_of_level
from fastlmm_core.inference.parameters import Parameter, choose, parameter_values, parameters
from fastlmm_core.inference.profile import Profile
from fastlmm_core.inference.profile_walk import BETTER, LOWER
from fastlmm_core.inference.table import Table, table

if TYPE_CHECKING:
    import pandas as pd

    from fastlmm_core.families import Family
    from fastlmm_core.fitting.generalised_model import GeneralisedModel

__all__ = ["bootstrap", "conf_int", "model_parameters", "profile", "values_of"]

Array = NDArray[np.float64]
Side = tuple[list[tuple[float, float, float]], float | None]
"""Points (coordinate, zeta, its derivative) on one side of an estimate, and the bound where it was met first."""

Place = tuple[float, float, Array]
"""Least deviance with a parameter at a value, the multiplier of that, and where in the working coordinates."""

Seed = int | Sequence[int] | np.random.SeedSequence | None

SPACING = 0.5
"""Distance of a profile's points, in units of zeta as the quadratic at the estimate has it."""

MAX_POINTS = 40

ONE = 1.0 - 1e-8
"""Correlations beyond this are one: their arc has no slope there."""

ANGLE = 0.1
"""Radians from there to where it has."""

FLAT = 1e-6
"""Curvature, in units of the parameters' own, below which a direction counts as flat: far steps there end nowhere."""

CHUNK = 256


def model_parameters(result: GeneralisedModel) -> tuple[Parameter, ...]:
    """Standard deviations and correlations, the family's own parameters, coefficients.

    Those of a zero part's random effects are among the family's own, as terms after the counts'.
    """
    family = result.core.family
    spread = zero_spread(family, len(result.design.random))
    logs = family.logs[: len(family.logs) - len(spread)]
    own = [
        Parameter(name, "sigma" if log else "own", row=k)
        for k, (name, log) in enumerate(zip(family.names, logs, strict=False))
    ]
    own += spread
    found = []
    for p in parameters(result.design):
        found += own if p.kind == "sigma" else [p]
    return tuple(found)


def zero_spread(family: Family, first: int) -> list[Parameter]:
    """Standard deviations and correlations of a zero part's random effects, whose terms are numbered from ``first``."""
    if not isinstance(family, TwoPart):
        return []
    names, out = iter(family.effect_names), []
    for k, (_, columns) in enumerate(family.effects):
        for j in range(len(columns)):
            out.append(Parameter(f"zi.{next(names)}", "sd", first + k, j, j))
            out += [Parameter(f"zi.{next(names)}", "cor", first + k, i, j) for i in range(j + 1, len(columns))]
    return out


def values_of(result: GeneralisedModel, theta: Array, beta: Array, rho: Array) -> Array:
    """Values (k, n_parameters) of `model_parameters` for k fits."""
    family = result.core.family
    every = parameter_values(result.design, theta, np.ones(len(theta)), beta)
    at = every.shape[1] - beta.shape[1] - 1
    own = [np.array([family.naturals(r) for r in rho])] if family.n_extra else []
    return np.hstack([every[:, :at], *own, beta])


def bootstrap(
    result: GeneralisedModel, n: int = 1000, *, statistic: Callable[[Any], Any] | None = None, seed: Seed = None
) -> pd.DataFrame:
    """Fit drawn responses; see `GlmerResult.bootstrap`."""
    import pandas as pd

    checked_count(n, "n")
    index = pd.RangeIndex(1, n + 1, name="draw")
    responses = drawn(result, n, seed=seed)
    core, model = result.core, kept_glmm(result)
    if statistic is not None:
        return pd.DataFrame([named(statistic(refit_counts(result, y))) for y in responses], index=index)
    blocks, failed = [], 0
    while batch := list(islice(responses, CHUNK)):
        fits = model.fit_many(np.array(batch), start=core.again)
        blocks.append(values_of(result, fits.theta, fits.beta, fits.rho))
        failed += int(np.count_nonzero(~fits.converged))
    if failed:
        warn(f"{failed} of {n} bootstrap fits did not converge", ConvergenceWarning)
    return pd.DataFrame(np.concatenate(blocks), index=index, columns=[p.name for p in model_parameters(result)])


def jackknife(result: GeneralisedModel) -> Array:
    """Parameters with one level at a time left out, (blocks, n_parameters); see `bootstrap.jackknife`."""
    design, core, found = result.design, result.core, []
    for rows in jackknife_rows(design):
        kept = np.zeros(len(design.y), bool)
        kept[rows] = True
        try:
            model = glmm_of(arrays_of(design).rows(kept), options_of_rows(result.options, kept))
            fit = model.fit(design.y[kept], start=core.again)
        except FastLMMError:  # too little is left without this level
            continue
        found.append(values_of(result, fit.theta[None], fit.beta[None], np.array([fit.rho]))[0])
    return np.array(found).reshape(len(found), len(model_parameters(result)))


def conf_int(
    result: GeneralisedModel,
    method: str = "wald",
    level: float = 0.95,
    parm: str | Iterable[str] | None = None,
    *,
    exp: bool = False,
    kind: str = "percentile",
    n: int = 1000,
    seed: Seed = None,
    draws: pd.DataFrame | None = None,
) -> Table:
    """Intervals; see `GlmerResult.conf_int`."""
    z = quantile_of_level(level)
    way, sort = option("method", method, METHODS), option("kind", kind, KINDS)
    every = model_parameters(result)
    chosen = choose(every, parm)
    names = [p.name for p in chosen]
    core = result.core
    if way == "profile":
        limits = profile(result, names, level=level).conf_int(level).to_numpy()
    elif way == "wald":
        limits = np.full((len(chosen), 2), np.nan)
        for row, p in zip(limits, chosen, strict=True):
            if p.kind == "beta":
                row[:] = core.beta[p.row] + np.array([-z, z]) * core.se[p.row]
            elif p.kind == "own":
                row[:] = core.rho[p.row] + np.array([-z, z]) * core.family_params_se[p.name]
    else:
        draws = bootstrap(result, n, seed=seed) if draws is None else draws
        absent = [name for name in names if name not in draws]
        if absent:
            raise DataError(f"draws has no column {absent[0]!r}: take them from bootstrap() without a statistic")
        estimates = values_of(result, core.theta[None], core.beta[None], np.array([core.rho]))[0]
        at = [every.index(p) for p in chosen]
        left_out = jackknife(result)[:, at] if sort == "bca" else None
        limits = bootstrap_limits(draws[names].to_numpy(dtype=float), estimates[at], level, sort, left_out)
    if exp:
        fixed = np.array([p.kind == "beta" for p in chosen])
        limits[fixed] = np.exp(limits[fixed])
    return table({"lower": limits[:, 0], "upper": limits[:, 1]}, names)


def profile(
    result: GeneralisedModel, which: str | Iterable[str] | None = None, *, level: float | None = None
) -> Profile:
    """Profile parameters of a fit; see `GlmerResult.profile`."""
    chosen = choose(model_parameters(result), which)
    reach = quantile_of_level(0.99 if level is None else level)
    return Profile(tuple(Profiler(result).curve(p, reach) for p in chosen), result.core.criterion)


class Profiler:
    """Profiles around one fit, on a workspace of its own.

    Parameters
    ----------
    result : GeneralisedModel
    """

    def __init__(self, result: GeneralisedModel) -> None:
        self.result, core = result, result.core
        self.kept = np.flatnonzero(~np.isnan(core.beta))
        self.objective: GlmmObjective = glmm_of(result.design, result.options).objective(core.y)
        self.objective.place = core.place
        self.nt = len(core.theta)
        self.best = np.concatenate([core.theta, core.beta[self.kept], core.family.extra(core.rho)])
        self.hessian = self.curvature()
        self.free = self.objective.engine.design.free
        self.unit = self.round(self.free)
        self.blind = unidentified_elements(core)

    def curvature(self) -> Array:
        """Second derivatives of the deviance at the estimates; the model Hessian, which may be indefinite, without."""
        try:
            return second_derivatives(self.objective.derivatives, self.best)
        except NumericalError:
            return self.objective.derivatives(self.best)[2]

    def round(self, free: NDArray[np.intp]) -> Array:
        """Unit (n, k) such that d ~ d-hat + |z|^2 for x = x-hat + unit z, in k of the parameters."""
        hessian = self.hessian[np.ix_(free, free)]
        diagonal = hessian.diagonal()
        scale = np.sqrt(np.maximum(diagonal, 1e-12 * max(diagonal.max(initial=0.0), 1e-300)))
        values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
        unit = np.zeros((len(self.best), len(free)))
        unit[free] = vectors / scale[:, None] * np.sqrt(2.0 / np.maximum(values, FLAT))
        return unit

    def places(self, term: int) -> NDArray[np.intp]:
        """Places (l, l) of a term's lower triangle among the parameters; -1 above it."""
        family = self.result.core.family
        zero = [len(columns) for _, columns in family.effects] if isinstance(family, TwoPart) else []
        widths = [len(other.columns) for other in self.result.design.random]
        at = 0
        if term >= len(widths):  # covariance parameters of a zero part end the vector
            term, widths = term - len(widths), zero
            at = len(self.best) - sum(l * (l + 1) // 2 for l in zero)
        at += sum(l * (l + 1) // 2 for l in widths[:term])
        l = widths[term]
        out = np.full((l, l), -1)
        columns, rows = np.triu_indices(l)
        out[rows, columns] = at + np.arange(len(rows))
        return out

    def without_effect(self, p: Parameter) -> float:
        """Zeta of a correlation, whatever its value, where the standard deviation of one of its effects is zero."""
        rises = []
        for effect in (p.row, p.column):
            zeros = self.places(p.term)[effect]
            zeros = zeros[zeros >= 0]
            start, unit = self.best.copy(), self.round(np.setdiff1d(self.free, zeros))
            start[zeros] = 0.0

            def deviance(z: Array, start: Array = start, unit: Array = unit) -> tuple[float, Array]:
                try:
                    d, gradient, _ = self.objective.derivatives(start + unit @ z)
                except NumericalError:
                    return 1e10, np.zeros_like(z)
                return d - self.result.core.criterion, unit.T @ gradient

            rises.append(float(minimize(deviance, np.zeros(unit.shape[1]), jac=True, method="BFGS").fun))
        return float(np.sqrt(max(min(rises), 0.0)))

    def function(self, p: Parameter) -> Callable[[Array], tuple[float, Array]]:
        """A parameter's coordinate as in `ProfileCurve` (rho with its own sign), and its gradient."""
        n, nt = len(self.best), self.nt
        if p.kind == "beta":
            return linear(n, nt + int(np.flatnonzero(self.kept == p.row)[0]))
        if p.kind in ("sigma", "own"):
            return linear(n, n - self.result.core.family.n_extra + p.row)
        place = self.places(p.term)
        if p.kind == "sd" and p.row == 0:
            return linear(n, int(place[0, 0]))
        first = place[p.row, : p.row + 1]
        if p.kind == "sd":

            def sd(x: Array) -> tuple[float, Array]:
                value = float(np.linalg.norm(x[first]))
                slope = np.zeros(n)
                slope[first] = x[first] / max(value, 1e-300)
                return value, slope

            return sd
        second = place[p.column, : p.column + 1]

        def cor(x: Array) -> tuple[float, Array]:
            a, b = x[first], np.zeros(len(first))
            b[: len(second)] = x[second]
            na, nb = float(np.linalg.norm(a)), float(np.linalg.norm(b))
            r = float(a @ b) / (na * nb)
            slope = np.zeros(n)
            slope[first] = b / (na * nb) - r * a / na**2
            slope[second] = (a / (na * nb) - r * b / nb**2)[: len(second)]
            return float(np.arcsin(r)), slope / np.sqrt(max(1.0 - r**2, 1e-12))

        return cor

    def curve(self, p: Parameter, reach: float) -> ProfileCurve:
        """Walk both ways from the estimate until the deviance has risen by the square of ``reach``."""
        core, family = self.result.core, self.result.core.family
        blind = p.kind in ("sd", "cor") and p.element in self.blind
        if blind or (p.kind == "beta" and p.row not in self.kept):
            empty = np.empty(0)
            return ProfileCurve(p.name, p.kind, np.nan, empty, empty, empty, (None, None))
        phi = self.function(p)
        estimate, gradient = phi(self.best)
        begin = np.zeros(self.unit.shape[1])
        if p.kind == "cor" and abs(np.sin(estimate)) > ONE:  # no slope there: that of a place beside it
            beside = self.opened(p)
            gradient = phi(beside)[1]
            begin = np.linalg.lstsq(self.unit, beside - self.best, rcond=None)[0]
        step = SPACING * float(np.linalg.norm(self.unit.T @ gradient))
        low = {"sd": 0.0, "cor": -0.5 * np.pi}.get(p.kind, -np.inf)
        high = 0.5 * np.pi if p.kind == "cor" else np.inf
        level = self.without_effect(p) if p.kind == "cor" else np.inf
        down, low_end = self.walk(phi, estimate, -step, low, min(reach, level), begin)
        up, high_end = self.walk(phi, estimate, step, high, min(reach, level), begin)
        if p.kind == "cor":
            down, low_end = levelled(down, low_end, level, reach, low)
            up, high_end = levelled(up, high_end, level, reach, high)
        sign = -1.0 if p.kind == "sigma" and family.natural_slopes(core.rho)[p.row] < 0 else 1.0
        sides = ("lower", "upper") if sign > 0 else ("upper", "lower")
        for side, end in zip(sides, (low_end, high_end), strict=True):
            if end is not None and not np.isfinite(end):
                why = (
                    "could not be followed: it is NaN" if np.isnan(end) else "does not rise to the level: there is none"
                )
                warn(f"the profile of {p.name} towards its {side} limit {why}", FastLMMWarning)
        points = [*reversed(down), (estimate, 0.0, 0.0), *up]
        w, zeta, slope = (np.array(column) for column in zip(*points, strict=True))
        slope[len(down)] = slope_at_estimate(w, zeta, slope, len(down))
        kind = p.kind
        if kind == "sigma":  # rho is its logarithm, with a sign
            w, zeta, slope = sign * w, sign * zeta, slope
            low_end, high_end = (None if end is None else float(np.exp(sign * end)) for end in (low_end, high_end))
            if sign < 0:
                w, zeta, slope = w[::-1], zeta[::-1], slope[::-1]
                low_end, high_end = high_end, low_end
            estimate = float(family.naturals(core.rho)[p.row])
        elif kind == "cor":
            estimate = float(np.sin(estimate))
            low_end, high_end = (None if end is None else float(np.sin(end)) for end in (low_end, high_end))
        return ProfileCurve(p.name, kind, estimate, w, zeta, slope, (low_end, high_end))

    def opened(self, p: Parameter) -> Array:
        """Parameters beside the estimate's, where a correlation of one is less: its second row turned by `ANGLE`."""
        place = self.places(p.term)[p.row, : p.row + 1]
        out = self.best.copy()
        row = out[place]  # a multiple of the other row, whose last entries are zero
        size = float(np.linalg.norm(row))
        row = row * np.cos(ANGLE)
        row[-1] = size * np.sin(ANGLE)
        out[place] = row
        return out

    def walk(
        self,
        phi: Callable[[Array], tuple[float, Array]],
        estimate: float,
        step: float,
        bound: float,
        reach: float,
        begin: Array,
    ) -> Side:
        """Points (value, zeta, d zeta / d value) on one side, and the bound where it was met first.

        The first point is looked for from ``begin``, in the working coordinates.
        """
        side, z = float(np.sign(step)), begin
        values: list[float] = []
        places: list[Place] = []
        before, end = z, None
        for k in range(1, MAX_POINTS):
            value = estimate + k * step
            at_bound = side * (value - bound) >= 0.0
            if at_bound:
                if bound != 0.0:  # correlations of one: no place of the parameters' inside
                    end = bound
                    break
                value = bound
            found = self.constrained(phi, value, z + (z - before) if k > 1 else z)
            if found is None:
                end = np.nan
                break
            before, z = z, found[2]
            values.append(value)
            places.append(found)
            beyond = self.zeta(found[0]) > reach
            if beyond or at_bound:
                end = None if beyond else bound
                break
        else:
            end = side * np.inf  # so far away that there is no limit
        self.turned_back(phi, values, places)
        return [self.point(side, value, place) for value, place in zip(values, places, strict=True)], end

    def zeta(self, deviance: float) -> float:
        """The root of what a deviance lies above the fit's."""
        return float(np.sqrt(max(deviance - self.result.core.criterion, 0.0)))

    def point(self, side: float, value: float, place: Place) -> tuple[float, float, float]:
        """Value, zeta and its slope."""
        zeta = self.zeta(place[0])
        return value, side * zeta, abs(place[1] / (2.0 * zeta)) if zeta else 0.0

    def turned_back(
        self, phi: Callable[[Array], tuple[float, Array]], values: Sequence[float], places: list[Place]
    ) -> None:
        """Where the path has come to a lower valley, follow that one back as long as it is lower there too.

        A profiled deviance that falls away from the estimate has met another minimum of the remaining parameters.
        """
        for k in range(len(places) - 2, -1, -1):
            if places[k][0] <= places[k + 1][0] + LOWER:
                continue
            found = self.constrained(phi, values[k], places[k + 1][2])
            if found is not None and found[0] < places[k][0]:
                places[k] = found
        lowest = min((place[0] for place in places), default=np.inf)
        if lowest < self.result.core.criterion - BETTER:
            warn(
                f"the profile has met a deviance {self.result.core.criterion - lowest:.3g} below the fit's, which is "
                "no optimum: fit the model again with another start=",
                ConvergenceWarning,
            )

    def constrained(self, phi: Callable[[Array], tuple[float, Array]], value: float, start: Array) -> Place | None:
        """Least deviance with phi at a value, the constraint's multiplier, and where; None where there is none."""

        def at(z: Array) -> Array:
            return self.best + self.unit @ z

        def deviance(z: Array) -> tuple[float, Array]:
            try:
                d, gradient, _ = self.objective.derivatives(at(z))
            except NumericalError:
                return 1e10, np.zeros_like(z)
            return d - self.result.core.criterion, self.unit.T @ gradient

        def excess(z: Array) -> float:
            return phi(at(z))[0] - value

        constraint = {"type": "eq", "fun": excess, "jac": lambda z: self.unit.T @ phi(at(z))[1]}
        found = minimize(
            deviance, start, jac=True, method="SLSQP", constraints=[constraint], options={"ftol": 1e-10, "maxiter": 100}
        )
        if not np.isfinite(found.fun) or abs(excess(found.x)) > 1e-6 * max(1.0, abs(value)):
            return None
        _, gradient = deviance(found.x)
        normal = self.unit.T @ phi(at(found.x))[1]
        multiplier = float(gradient @ normal) / max(float(normal @ normal), 1e-300)
        return float(found.fun) + self.result.core.criterion, multiplier, found.x


def levelled(
    points: list[tuple[float, float, float]], end: float | None, level: float, reach: float, bound: float
) -> Side:
    """One side of a correlation's profile where its zeta rises to ``level`` at most, whatever its value."""
    if level > reach:
        return points, end
    kept = [point for point in points if abs(point[1]) < level]
    if len(kept) < len(points):
        w, zeta, _ = points[len(kept)]
        kept.append((w, float(np.copysign(level, zeta)), 0.0))
    return kept, bound


def linear(n: int, k: int) -> Callable[[Array], tuple[float, Array]]:
    """The k-th of n parameters with its gradient."""
    unit = np.eye(n)[k]
    return lambda x: (float(x[k]), unit)
