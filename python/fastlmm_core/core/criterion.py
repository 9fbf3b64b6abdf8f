"""The criterion as a function of the user's theta: lme4's devFunOnly, with derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import isfinite
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.core.arguments import checked_flag
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.crossprod import cross_products
from fastlmm_core.core.evaluation import Evaluation
from fastlmm_core.core.held import HeldContrast
from fastlmm_core.core.layout import Layout, kept_plan, plan
from fastlmm_core.core.products import CrossProducts, DesignSums, Responses
from fastlmm_core.core.start import moment_start, start_of
from fastlmm_core.core.terms import Term
from fastlmm_core.core.threads import ForkedLock, one_blas_thread
from fastlmm_core.errors import DataError
from fastlmm_core.lazy import cached_property

__all__ = ["Objective", "objective"]

Array = NDArray[np.float64]


class Objective:
    """The profiled criterion of one model at any theta.

    Parameters
    ----------
    cross : CrossProducts
    reml : bool
        REML criterion, or the deviance (minus twice the log-likelihood).
    control : Control, optional
    layout : Layout, optional
        A plan of the same model, to be used instead of one made here.

    Attributes
    ----------
    n_theta : int
    most_spare : int
        Workspaces of a small pattern and criterion that are kept when nobody has them any more.

    Notes
    -----
    An object owns one workspace. Its methods may be called from several threads, one of which works at a time; a call
    from a report of its own optimiser raises `InUseError`. Threads that shall not wait need an object each.
    """

    most_spare: ClassVar[int] = 2

    _cross: CrossProducts | None
    _later: tuple[DesignSums, Responses] | None  # what `_cross` is made of
    _blocks: Array | None

    def __init__(
        self, cross: CrossProducts, reml: bool = True, control: Control | None = None, *, layout: Layout | None = None
    ) -> None:
        self._make(cross, reml, control, layout)
        self.plan.load(self.evaluator, cross)
        self._cross = cross

    @classmethod
    def of_response(cls, design: DesignSums, found: Responses, reml: bool, control: Control) -> Objective:
        """That of a design with the only one of some responses; of a small one, in a workspace that is spare."""
        kept = kept_plan(design, control)
        if kept is not None and kept.spare is not None:
            with suppress(IndexError):  # there is none
                spare: Objective = kept.spare[reml].pop()
                spare._lock.recover()
                if spare.theta_map.held is not None or design.theta_map.held is not None:
                    spare.__dict__.pop("newton", None)
                return spare._with(design, found)
        out = object.__new__(cls)
        out._make(design, reml, control, None if kept is None else kept.another())
        return out._with(design, found)

    def _with(self, design: DesignSums, found: Responses) -> Objective:
        """The same workspace for a design of its pattern, with the only one of some responses."""
        self.plan.load_response(self.evaluator, design, found)
        self.theta_map, self._blocks = design.theta_map, design.blocks[0]
        self._cross, self._later = None, (design, found)
        return self

    def let_go(self) -> None:
        """Be spare, for a model of the same pattern to come; whoever had it uses it no more."""
        if self.plan.spare is not None and len(self.plan.spare[self.reml]) < self.most_spare:
            self._cross = self._later = self._blocks = None
            self.plan.spare[self.reml].append(self)

    def _make(
        self, products: CrossProducts | DesignSums, reml: bool, control: Control | None, layout: Layout | None
    ) -> None:
        """All but the numbers."""
        self.reml = checked_flag(reml)
        self.control = checked_control(control)
        self.plan = plan(products, self.control) if layout is None else layout
        self.evaluator = self.plan.evaluator(reml)
        self._blocks = products.blocks[0]
        self.theta_map = products.theta_map
        self.n_theta = len(products.theta_map.index)
        self._later = None
        self._lock = ForkedLock(self)

    def __reduce__(self) -> tuple[type[Objective], tuple[CrossProducts, bool, Control]]:
        return Objective, (self.cross, self.reml, self.control)

    def renew(self, lost: bool) -> None:
        """In a child, a workspace of its own in place of one that another thread of the parent was at work on."""
        if lost or self.plan.tail.busy:
            self.plan = plan(self.cross, self.control)
            self.evaluator = self.plan.evaluator(self.reml)
            self.plan.load(self.evaluator, self.cross)
            self.__dict__.pop("newton", None)

    @property
    def cross(self) -> CrossProducts:
        """Cross-products of the design with the response in hand."""
        if self._cross is None:
            assert self._later is not None
            design, found = self._later
            self._cross = design.complete(found)
        return self._cross

    @property
    def start(self) -> Array:
        """Where a fit begins (n_theta,), see `moment_start`."""
        return self.to_user(self.conditioned_start)

    @property
    def conditioned_start(self) -> Array:
        """The same in conditioned coordinates."""
        if self._later is None:
            return moment_start(self.cross)
        design, found = self._later
        return start_of(design.blocks, found.dense, 1.0, design.n, design.theta_map.index)

    @cached_property
    def newton(self) -> Newton:
        """The optimiser."""
        return Newton(self.evaluator, self.control.max_evaluations, self.control.tol, self.theta_map.held)

    def load(self, cross: CrossProducts) -> None:
        """Replace all numbers, weights included; levels have to occur together as before. No plan is made."""
        if cross.blocks[0] is self._blocks:  # of the same design: another response
            p = cross.rank
            constant = cross.conditioning.constant(self.evaluator.nu, self.reml)
            tail = self.plan.tail_columns([dense[:, p] for dense in cross.dense])
            lead, xty = (
                np.ascontiguousarray(self.plan.lead_rows(cross.dense)[:, p]),
                np.ascontiguousarray(cross.dtd[:p, p]),
            )
            self.evaluator.set_response(lead, tail, xty, constant)
        else:
            self.plan.load(self.evaluator, cross)
            self._blocks = cross.blocks[0]
        self.theta_map = cross.theta_map
        self._cross, self._later = cross, None

    def set_response(self, design: DesignSums, found: Responses) -> None:
        """Replace the response by another, the only one of ``found``; the design must be the same."""
        constant = float(design.constant(self.evaluator.nu, self.reml, found.norms[0]))
        tail = self.plan.tail_columns([dense[:, 0] for dense in found.dense])
        lead = np.ascontiguousarray(self.plan.lead_rows(found.dense)[:, 0])
        self.evaluator.set_response(lead, tail, found.xty[:, 0], constant)
        self._cross, self._later = None, (design, found)

    def has(self, found: Responses) -> bool:
        """Whether the response in hand is the one of ``found``."""
        return self._later is not None and self._later[1] is found

    def to_user(self, conditioned: Array) -> Array:
        """The user's theta for conditioned ones, (n_theta,) or (n_theta, k)."""
        return np.asarray(self.theta_map.to_user.dot(conditioned))

    def to_conditioned(self, theta: ArrayLike) -> Array:
        """Conditioned theta for the user's.

        Raises
        ------
        DataError
            The length is not n_theta.
        """
        try:
            given = np.asarray(theta, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(f"theta must hold {self.n_theta} number(s), not {type(theta).__name__}") from None
        if given.ndim == 0:
            given = given[None]
        if given.shape != (self.n_theta,):
            raise DataError(f"theta has shape {given.shape}, but the model has {self.n_theta} covariance parameter(s)")
        if not all(map(isfinite, given.tolist())):
            raise DataError(f"theta must be finite, not {given}")
        return np.asarray(self.theta_map.to_conditioned.dot(given))

    @property
    def nu(self) -> float:
        """Observations, less the columns of X under REML."""
        return self.evaluator.nu

    def at(self, theta: ArrayLike) -> Evaluation:
        """The model at ``theta`` (n_theta,): value, derivatives, modes, solves, variances."""
        return self.at_conditioned(self.to_conditioned(theta))

    def gradients(self, points: Array) -> Array:
        """Exact gradients (k, n_theta) at k conditioned thetas (k, n_theta), in conditioned coordinates."""
        with one_blas_thread(), self._lock:
            return np.array([self.evaluator.derivatives(at)[1] for at in points]).reshape(points.shape)

    def at_conditioned(self, theta: Array) -> Evaluation:
        """The same at conditioned ``theta``."""
        self._lock.recover()
        return Evaluation(self, theta)

    def beside(self, cross: CrossProducts) -> Objective:
        """The criterion of other numbers of the same model, on this one's plan: one of the two works at a time."""
        return Objective(cross, self.reml, self.control, layout=self.plan)

    def held(self, a: Array) -> HeldContrast:
        """The deviance with the combination a'gamma (rank,) of the conditioned coefficients held fixed."""
        self._lock.recover()
        return HeldContrast(self, a)

    def __call__(self, theta: ArrayLike) -> float:
        """The criterion at ``theta`` (n_theta,): lme4's, all constants included."""
        at = self.to_conditioned(theta)
        with one_blas_thread(), self._lock:
            return self.evaluator.value(at)

    def derivatives(self, theta: ArrayLike) -> tuple[float, Array, Array]:
        """Criterion, gradient (n_theta,) and average-information Hessian (n_theta, n_theta) at ``theta``."""
        at = self.to_conditioned(theta)
        with one_blas_thread(), self._lock:
            value, gradient, hessian = self.evaluator.derivatives(at)
        m = self.theta_map.to_conditioned
        return value, m.T @ gradient, m.T @ hessian @ m

    def gradient(self, theta: ArrayLike) -> Array:
        """Exact gradient (n_theta,) of the criterion at ``theta``."""
        return self.derivatives(theta)[1]

    def hessian(self, theta: ArrayLike) -> Array:
        """Average-information model of the Hessian (n_theta, n_theta) at ``theta`` (Gilmour et al. 1995)."""
        return self.derivatives(theta)[2]


def objective(
    y: ArrayLike,
    X: ArrayLike | None,
    terms: Sequence[Term],
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    reml: bool = True,
    control: Control | None = None,
) -> Objective:
    """The criterion of a model given as arrays; parameters as in `fit`."""
    return Objective(cross_products(y, X, terms, weights=weights, offset=offset), reml, control)
