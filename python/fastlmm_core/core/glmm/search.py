"""Minimise the marginal deviance of a generalised mixed model.

The model Hessian costs nothing beside the gradient, but it is only a model: far from normal responses, with effects as
fine as the rows, or at covariance matrices of lower rank, it can be indefinite at the minimum, and steps by it then
shrink the error slowly or not at all. A search that has not come to its end after `FEW` evaluations goes on with
differences of the exact gradient in its place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.callback import Callback
from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.core.curvature import forward_differences
from fastlmm_core.core.estimates import FAILED
from fastlmm_core.core.glmm.fitted import ExactEngine, Place, Report
from fastlmm_core.core.theta import SINGULAR
from fastlmm_core.errors import NumericalError

__all__ = ["FEW", "Searcher"]

Array = NDArray[np.float64]


class Found(NamedTuple):
    """Where a search has ended: psi, the deviance, a key of `Newton.messages`, and the engine's place of the modes."""

    psi: Array
    value: float
    status: int
    place: Place


FEW = 16
"""Evaluations with the model Hessian before differences of the gradient take its place."""

NEARER = 0.1
"""What a start of theta that cannot be evaluated is multiplied with."""

HARD = 60
"""Evaluations after which a minimum is not trusted to be the only one."""

MANY = 8
"""Evaluations after which the end of a search is looked at once more."""

AGAIN = 3
"""How often a search that stopped on a slope goes on from there."""

LEFT = 1e-7
"""Decrease of the deviance that the end of a search may still promise."""

BESIDE = 7.0
"""Size of a parameter's logarithm beside its limit, where the deviance tells on which side it falls."""

ELSEWHERE = 40
"""Evaluations with differences of the gradient in each search that is made because the first one came to no end."""


class Searcher:
    """Searches for the minimum of an engine's deviance.

    Parameters
    ----------
    engine : ExactEngine
    max_evaluations : int
    tol : float
        Stop when the deviance is expected to be this near its minimum.

    Attributes
    ----------
    place : tuple of arrays
        The engine's place of the modes at the last search's end.
    """

    messages = Newton.messages

    def __init__(self, engine: ExactEngine, max_evaluations: int, tol: float) -> None:
        self.engine, self.tol = engine, tol
        self.held = engine.design.theta_map.held
        self.newton = Newton(engine.criterion, min(FEW, max_evaluations), tol, self.held)
        self.more = max_evaluations - FEW
        self.place: Place | None = None
        self.evaluations = np.empty((0, engine.design.n_free + 3))

    def __reduce__(self) -> tuple[type[Searcher], tuple[ExactEngine, int, float]]:
        return Searcher, (self.engine, self.more + FEW, self.tol)

    def search(self, psi: Array, given: bool, on_evaluation: Report | None = None) -> tuple[Array, float, Array, int]:
        """Minimise the deviance from psi.

        Parameters
        ----------
        psi : (n_free,)
        given : bool
            The start is the user's: no second search.

        Returns
        -------
        psi : (n_free,), canonical signs
        value : float
        evaluations : (k, n_free + 3), see `Newton.evaluations`
        status : int
            Key of `messages`.

        Raises
        ------
        NumericalError
            The deviance cannot be evaluated at the start.
        """
        engine, design = self.engine, self.engine.design
        if self.newton.criterion is not engine.criterion:  # made again after a fork
            self.newton = Newton(engine.criterion, self.newton.max_evaluations, self.tol, self.held)
        parameters, nt = design.theta_map, design.n_theta
        report = None
        if on_evaluation is not None:

            def report(k: int, x: Array, value: float, norm: float, radius: float) -> None:
                on_evaluation(k, parameters.to_user @ x[:nt], value, norm, radius)

        self.evaluations = self.evaluations[:0]
        end = self.minimise(psi, report)
        # one that so small a limit has stopped was not a hard one
        unfinished = self.more > 0 and (end.status != 0 or len(self.evaluations) > HARD)
        if not given and (end.status == FAILED or unfinished):
            end = self.elsewhere(psi, end, report)
        found, value, status, self.place = end
        if status == FAILED:
            raise NumericalError(
                f"{self.messages[status]}, theta = {parameters.to_user @ psi[:nt]}, beta = "
                f"{design.to_beta @ psi[nt : nt + design.rank]}: give start="
            )
        if parameters.is_singular(found[:nt]):  # or a sign to turn
            found = np.concatenate([parameters.canonical(found[:nt]), found[nt:]])
            for again in () if given else self.other_places(found):
                other = self.minimise(again, report)
                if other.status != FAILED and other.value < value - 1e-9:
                    found = np.concatenate([parameters.canonical(other.psi[:nt]), other.psi[nt:]])
                    _, value, status, self.place = other
            found, value = self.snapped(found, value)
        if not np.array_equal(engine.settled(found), found):
            engine.value(found)
            found = engine.settled(found)
        return found, value, self.evaluations, status

    def other_places(self, found: Array) -> list[Array]:
        """Where to look once more after a singular optimum, which may be a local one.

        Covariance matrices of lower rank can be: from a place of full rank. So can overdispersion in place of effects:
        from the family's limit, where there is none.
        """
        parameters, design = self.engine.design.theta_map, self.engine.design
        full = np.concatenate([parameters.diagonal.astype(float), found[design.n_theta :]])
        if self.held is not None:
            full[self.held] = 0.0
        out = [full] if (found[: design.n_theta][parameters.vector_diagonal] < SINGULAR).any() else []
        if design.family.n_extra:
            low, high = (np.broadcast_to(end, design.family.n_extra)[-1] for end in design.family.rho_range)
            for end in (low, high):
                if np.isfinite(end):
                    out.append(np.concatenate([full[:-1], [end]]))
        return out

    def snapped(self, found: Array, value: float) -> tuple[Array, float]:
        """The point with standard deviations that are all but zero set to it, where that costs nothing."""
        parameters, nt = self.engine.design.theta_map, self.engine.design.n_theta
        for a in np.flatnonzero(parameters.diagonal & (np.abs(found[:nt]) < SINGULAR) & (found[:nt] != 0)):
            trial = found.copy()
            trial[a] = 0.0
            at_zero = self.engine.value(trial)
            if at_zero <= value + 1e-12 * abs(value) + 1e-9:
                found, value = trial, at_zero
        return found, value

    def minimise(self, psi: Array, report: Report | None, more: int | None = None) -> Found:
        """The minimum from psi: by the model Hessian, at a limit of the family, by the exact Hessian."""
        more = self.more if more is None else min(more, self.more)
        before = len(self.evaluations)
        found = self.run(self.newton, psi, report)
        if found.status == 0 and len(self.evaluations) - before > MANY:
            found = self.finished(found, report)
        if found.status in (0, FAILED) or more <= 0:
            return found
        found = self.at_limit(found, report)
        if found.status == 0:
            return found
        exact = Newton(self.exact_criterion(), more, self.tol, self.held)
        better = self.run(exact, found.psi, report)
        return found if better.status == FAILED else better

    def elsewhere(self, psi: Array, found: Found, report: Report | None) -> Found:
        """The best of searches from smaller effects and from ones of size one, where that from psi had a hard time."""
        parameters, nt = self.engine.design.theta_map, self.engine.design.n_theta
        whole = parameters.diagonal.astype(float)
        for theta in (psi[:nt] * NEARER, whole, whole * NEARER):
            other = self.minimise(np.concatenate([theta, psi[nt:]]), report, ELSEWHERE)
            if other.status == FAILED or (found.status == 0 and other.status != 0):
                continue
            margin = self.tol if other.status == 0 and found.status != 0 else -1e-9
            if found.status == FAILED or other.value <= found.value + margin:
                found = other
        return found

    def without_effects(self, psi: Array) -> float:
        """The minimum with theta held at zero, from the rest of psi."""
        held = np.arange(self.engine.design.n_theta)
        newton = Newton(self.engine.criterion, FEW + max(self.more, 0), self.tol, held)
        start = psi.copy()
        start[held] = 0.0
        found = self.run(newton, start, None)
        if found.status == FAILED:
            raise NumericalError(f"the model without random effects: {self.messages[found.status]}")
        return found.value

    def run(self, newton: Newton, psi: Array, report: Report | None) -> Found:
        """`Newton.minimise`, its log, and whatever the engine raised meanwhile."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # steps that led too far are halved
            found = Found(*newton.minimise(psi, report), self.engine.place())
        if self.held is not None:  # rounding errors of a step
            found.psi[self.held] = 0.0
        self.evaluations = np.concatenate([self.evaluations, newton.evaluations()])
        if isinstance(newton.criterion, Callback):
            newton.criterion.raise_error()
        return found

    def at_limit(self, found: Found, report: Report | None) -> Found:
        """What was found, or the minimum where an extra parameter of the family has its limit if that is no higher.

        The deviance approaches such a limit exponentially, and Newton's steps in the logarithm by one at a time.
        """
        family = self.engine.design.family
        low, high = (np.broadcast_to(end, family.n_extra) for end in family.rho_range)
        first = len(found.psi) - family.n_extra
        for k in range(family.n_extra):
            ends = [end for end in (low[k], high[k]) if np.isfinite(end)]
            if not ends:
                continue
            start = found.psi.copy()
            start[first + k] = min(ends, key=lambda end: abs(end - start[first + k]))
            limit = self.run(self.newton, start, report)
            if limit.status != FAILED and limit.value <= found.value + self.tol:
                found = self.left(limit, first + k, report)
        return found

    def left(self, limit: Found, at: int, report: Report | None) -> Found:
        """What was found at a limit of parameter ``at``, or from beside it if the deviance falls on the way there."""
        beside = limit.psi.copy()
        beside[at] = np.copysign(BESIDE, beside[at])
        try:
            if self.engine.value(beside) >= limit.value - self.tol:
                return limit
        except NumericalError:
            return limit
        found = self.run(self.newton, beside, report)
        return limit if found.status == FAILED or found.value > limit.value else found

    def finished(self, found: Found, report: Report | None) -> Found:
        """A minimum after many evaluations; the search goes on if secant corrections have hidden a slope there."""
        for _ in range(AGAIN):
            if found.status != 0:
                break
            try:
                _, gradient, hessian = self.engine.derivatives(found.psi)
            except NumericalError:
                break
            if self.held is not None:
                gradient[self.held] = 0.0
            values, vectors = np.linalg.eigh(hessian)
            steep = values > 1e-8 * values[-1]
            promise = 0.5 * float(((vectors.T @ gradient)[steep] ** 2 / values[steep]).sum())
            if not promise > max(10.0 * self.tol, LEFT):
                break
            other = self.run(self.newton, found.psi, report)
            if other.status != 0 or other.value > found.value:
                break
            found = other
        return found

    def exact_criterion(self) -> Callback:
        """The deviance with differences of its gradient for the Hessian."""
        engine, design = self.engine, self.engine.design
        last = np.zeros(design.n_free)

        def value(psi: Array) -> float:
            last[:] = psi
            return engine.value(psi)

        def derivatives() -> tuple[Array, Array]:
            return forward_differences(engine.derivatives, last.copy())

        return Callback(design.n_free, value, derivatives, float(design.n))
