"""Minimise the criterion and bring the estimates back to the user's coordinates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import wraps
from math import sqrt
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core._native.rows.columns import triangle_inverse
from fastlmm_core.core.control import Control
from fastlmm_core.core.criterion import Objective
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.engines import EngineReport
from fastlmm_core.core.figures import conditional_variances, relative_factors
from fastlmm_core.core.identifiability import Unidentified
from fastlmm_core.core.layout import engine_report
from fastlmm_core.core.products import CrossProducts, DesignSums, Responses
from fastlmm_core.core.saved import read_state, saved_state
from fastlmm_core.core.square_root import TOO_SMALL, RowsEvaluator, SquareRoot, accurate_estimates
from fastlmm_core.core.theta import SINGULAR
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.core.workspaces import Workspaces
from fastlmm_core.errors import NumericalError
from fastlmm_core.lazy import cached_property
from fastlmm_core.records import quick

__all__ = ["CoreFit", "FitLog", "estimates", "minimise"]

Array = NDArray[np.float64]

FAILED = 3
"""The optimiser's status, of `Newton.messages`, where the criterion could not be evaluated at the start."""


@dataclass(frozen=True)
class FitLog:
    """What the optimiser did, one row an evaluation.

    Attributes
    ----------
    theta : (k, n_theta)
    criterion : (k,)
    gradient_norm : (k,)
        NaN at points that were rejected and at the last one.
    radius : (k,)
        Trust radius, in conditioned coordinates.
    """

    theta: Array
    criterion: Array
    gradient_norm: Array
    radius: Array

    def __len__(self) -> int:
        return len(self.criterion)


@dataclass(eq=False, slots=True)
class Solution:
    """The optimum in conditioned coordinates, and the rows that bring it to the user's.

    Attributes
    ----------
    design : DesignSums
    response : Responses
        Of one response.
    offsets : list of (q,)
        As in `Layout`.
    b_lead, b_tail : (q, l), (m,)
        Conditional modes of the leading factor and of the tail.
    ld : (rank + 1, rank + 1)
        Lower factor of the dense columns [X y].
    evaluations : (k, n_theta + 3)
        `Newton.evaluations`.
    """

    design: DesignSums
    response: Responses
    offsets: list[NDArray[np.int64]]
    b_lead: Array
    b_tail: Array
    ld: Array
    evaluations: Array


T = TypeVar("T")


def later(make: Callable[[CoreFit], T]) -> cached_property[T]:
    """A figure of a fit that is made when it is first asked for, under the bound on BLAS that fits have."""

    @wraps(make)
    def bounded(fit: CoreFit) -> T:
        try:
            with one_blas_thread():
                return make(fit)
        except AttributeError:
            if make.__name__ not in fit.__dict__:
                raise
            made: T = fit.__dict__[make.__name__]  # another thread has completed the fit meanwhile
            return made

    return cached_property(bounded)


@quick
@dataclass(frozen=True, eq=False)
class CoreFit:
    """A fitted model as plain arrays, in the user's units.

    What takes longer than a refit of a small model (L, cov_beta, b, fitted, log, cross) is made when it is first asked
    for, from the model's arrays, which must not change until then; `core.fit` makes all of it at once.

    Attributes
    ----------
    theta : (n_theta,)
        Covariance parameters term by term: the lower triangle of each relative factor, column by column.
    L : tuple of (l, l)
        Relative covariance factor of each term.
    beta : (p,)
        Fixed effects; NaN where a column depends on earlier ones and was set aside.
    cov_beta : (p, p)
        sigma^2 (X'V^-1 X)^-1, NaN in the rows and columns set aside.
    sigma : float
        Residual standard deviation.
    criterion : float
        REML criterion or deviance.
    reml : bool
    n, rank : int
        Observations; independent columns of X.
    is_singular : bool
        Some relative factor is (nearly) singular.
    b : tuple of (q, l)
        Conditional modes of each term.
    fitted : (n,)
        X beta + Z b + offset.
    log : FitLog
    converged : bool
    message : str
    cross : CrossProducts
    control : Control
    unidentified : Unidentified or None
        What the criterion does not depend on.
    kept : dict
        What was made of this fit since, by name; not saved.
    """

    theta: Array
    beta: Array
    sigma: float
    criterion: float
    reml: bool
    n: int
    rank: int
    is_singular: bool
    converged: bool
    message: str
    control: Control = field(repr=False)
    _solution: Solution | None = field(repr=False)
    _workspaces: Workspaces | None = field(default=None, repr=False)
    unidentified: Unidentified | None = field(default=None, repr=False)
    _rows: SquareRoot | None = field(default=None, repr=False)
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        self.make_all()
        return saved_state({**self.__dict__, "_solution": None, "kept": {}})

    def __setstate__(self, state: object) -> None:
        self.__dict__.update(read_state(state, "fit"))

    @property
    def parameters(self) -> Array:
        """The covariance parameters as a fit of the model takes them for a start."""
        return self.theta

    @property
    def n_parameters(self) -> int:
        """Covariance parameters estimated, sigma apart."""
        return len(self.parameters)

    def complete(self) -> CoreFit:
        """Make all that was left for later, and let go of the model's arrays; returns the fit itself."""
        self.make_all()
        object.__setattr__(self, "_solution", None)
        return self

    def make_all(self) -> None:
        """Make all that was left for later."""
        if self._solution is not None:
            for name in dir(type(self)):
                if isinstance(getattr(type(self), name), cached_property):
                    getattr(self, name)

    @property
    def residual_ratio(self) -> float:
        """Root of the penalised sum of squares, relative to the response's on X; of a fit that is not completed."""
        return float(self.solution.ld[-1, -1])

    @property
    def solution(self) -> Solution:
        """What is not made yet is made from this."""
        if self._solution is None:
            raise AttributeError("a copy of a fit with other values has no figures of its own to be made later")
        return self._solution

    @later
    def L(self) -> tuple[Array, ...]:
        """Relative covariance factor of each term, tuple of (l, l)."""
        return relative_factors(self.solution.design.terms, self.theta)

    @later
    def cov_beta(self) -> Array:
        """Covariance (p, p) of the fixed effects, NaN in rows and columns set aside or not determined."""
        cov = self.cov_held
        if self.unidentified is not None:
            unknown = np.zeros(len(self.beta), dtype=bool)
            kept = ~np.isnan(self.beta)
            unknown[kept] = ~self.determined(np.eye(self.rank))
            cov = np.where(unknown | unknown[:, None], np.nan, cov)
        return cov

    @property
    def known_cov(self) -> Array:
        """`cov_beta` as if variances that the criterion does not depend on were known, at the values held."""
        return self.cov_beta if self.unidentified is None else self.cov_held

    @later
    def cov_held(self) -> Array:
        """`known_cov`, where `cov_beta` is made of it."""
        design, rank, p = self.solution.design, self.rank, len(self.beta)
        # X'V^-1 X = weight_scale r'(L L')r, so its inverse is H H' / weight_scale with H = r^-1 L^-T
        half = design.inverse.dot(triangle_inverse(self.solution.ld[:rank, :rank].T))
        known = half.dot(half.T)
        known *= self.sigma**2 / design.weight_scale
        if rank == p:
            return np.asarray(known)
        cov = np.full((p, p), np.nan)
        cov[design.keep[:, None], design.keep] = known
        return cov

    @property
    def fixed_root(self) -> tuple[Array, float]:
        """R (rank, rank) of the kept columns of X, X = Q r, and the mean weight that Q'WQ = I is relative to."""
        if self._solution is not None:
            return self._solution.design.r, self._solution.design.weight_scale
        conditioning = self.cross.conditioning
        return conditioning.r[: self.rank, : self.rank], conditioning.weight_scale

    @later
    def b(self) -> tuple[Array, ...]:
        """Conditional modes of each term, tuple of (q, l)."""
        found, design = self.solution, self.solution.design
        own = len(design.groups) - len(found.offsets)  # nothing leads where all groups are in the tail
        by_group = [found.b_lead] * own
        for group, offset in zip(design.groups[own:], found.offsets, strict=True):
            by_group.append(found.b_tail[offset[:, None] + np.arange(group.n_columns)])
        b: list[Array] = [np.empty(0)] * len(design.terms)
        for group, modes in zip(design.groups, by_group, strict=True):
            for k, o in zip(group.terms, group.offsets, strict=True):
                t = design.transforms[k]
                b[k] = found.response.norms[0] * modes[:, o : o + len(t)] @ t.T
        return tuple(b)

    @later
    def fitted(self) -> Array:
        """X beta + Z b + offset, (n,)."""
        return self.solution.design.fitted(self.beta, self.b)

    @later
    def log(self) -> FitLog:
        """What the optimiser did."""
        theta, criterion, norm, radius = np.split(self.solution.evaluations, np.arange(-3, 0), axis=1)
        to_user = self.solution.design.theta_map.to_user
        return FitLog(theta @ to_user.T, criterion[:, 0], norm[:, 0], radius[:, 0])

    @later
    def cross(self) -> CrossProducts:
        """Cross-products of the design with the response."""
        return self.solution.design.complete(self.solution.response)

    def estimable(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Whether the data determine each linear function L beta of the coefficients.

        Where columns of X depend on others, some functions are the same whichever columns are set aside; the value of
        such a one is L[kept] beta[kept], and its variance L[kept] cov_beta[kept, kept] L[kept]'.

        Parameters
        ----------
        rows : (k, p) or (p,)
            L, over all p columns of X, those set aside included.

        Returns
        -------
        (k,) bool
            See `NullSpace.estimable`.
        """
        if self.rank == len(self.beta):
            return np.ones(len(np.atleast_2d(rows)), dtype=bool)
        space = self.cross.conditioning.null_space
        assert space is not None
        return space.estimable(rows)

    def determined(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Whether the variance of each linear function of the coefficients depends on identified parameters only.

        Parameters
        ----------
        rows : (k, rank)
            Over the coefficients that have estimates.

        Returns
        -------
        (k,) bool
        """
        given = np.atleast_2d(np.asarray(rows, dtype=np.float64))
        if self.unidentified is None:
            return np.ones(len(given), dtype=bool)
        r = self.cross.conditioning.r[: self.rank, : self.rank]
        return self.unidentified.determined(np.linalg.solve(r.T, given.T).T)

    def objective(self) -> Objective:
        """The model's criterion, in a workspace of its own: planned and factored from the cross-products."""
        out = Objective(self.cross, self.reml, self.control)
        if self._rows is not None:  # the cross-products have too few digits
            out.evaluator = RowsEvaluator(self._rows, out.plan.offsets)  # type: ignore[assignment]
        return out

    def require_products(self) -> None:
        """NumericalError where the cross-products have too few digits for what is asked next."""
        if self._rows is not None:
            raise NumericalError(TOO_SMALL)

    def workspace(self) -> AbstractContextManager[Objective]:
        """The model's criterion inside a `with` block: a workspace that is idle, or one that is planned.

        It is the block's alone. Fits of one model to other responses use the same workspaces.
        """
        if self._rows is not None:
            return nullcontext(self.objective())
        pool = self._workspaces if self._workspaces is not None else Workspaces(self.reml, self.control)
        if self._solution is not None:
            return pool.lent_with(self._solution.design, self._solution.response)
        return pool.lent(self.cross)

    def engine_report(self) -> EngineReport:
        """Which engine factored the random effects, why, and what the others would cost."""
        with self.workspace() as model:
            return engine_report(model.plan)

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariance Var(b | y) of each level of each term, sigma^2 included.

        Returns
        -------
        tuple of (q, l, l)
        """
        if "cond_var" not in self.kept:
            with self.workspace() as model:
                self.kept["cond_var"] = conditional_variances(model, self.theta, self.sigma)
        return self.kept["cond_var"]


def minimise(
    model: Objective,
    start: ArrayLike | None = None,
    on_evaluation: Callable[[int, Array, float, float, float], None] | None = None,
) -> tuple[Array, Array, str]:
    """Minimise a criterion.

    Returns
    -------
    theta : (n_theta,) in conditioned coordinates, canonical signs
    evaluations : (k, n_theta + 3), see `Newton.evaluations`
    message : str
    """
    first = model.conditioned_start if start is None else model.to_conditioned(start)
    newton, parameters = model.newton, model.theta_map
    report = None
    if on_evaluation is not None:

        def report(k: int, theta: Array, value: float, norm: float, radius: float) -> None:
            on_evaluation(k, model.to_user(theta), value, norm, radius)

    theta, value, status = newton.minimise(first, report)
    if status == FAILED:
        raise NumericalError(f"{newton.messages[status]} theta = {model.to_user(first)}")
    evaluations = newton.evaluations()
    if parameters.is_singular(theta):  # or a sign to turn
        theta = parameters.canonical(theta)
        if start is None and any(theta[a] < SINGULAR for a in parameters.vector_diagonal):
            # covariance matrices of lower rank can be local minima: look once more from a place of full rank
            other, other_value, other_status = newton.minimise(parameters.diagonal.astype(float), report)
            evaluations = np.concatenate([evaluations, newton.evaluations()])
            if other_status != FAILED and other_value < value - 1e-9:
                theta, value, status = parameters.canonical(other), other_value, other_status
        theta = snap(model, theta, value)
    return theta, evaluations, newton.messages[status]


def snap(model: Objective, theta: Array, value: float) -> Array:
    """Set diagonal elements that are all but zero to zero, where the criterion does not rise."""
    diagonal = model.theta_map.diagonal.tolist()
    for a, value_there in enumerate(theta.tolist()):
        if not (diagonal[a] and 0.0 < abs(value_there) < SINGULAR):
            continue
        trial = theta.copy()
        trial[a] = 0.0
        at_zero = model.evaluator.value(trial)
        if at_zero <= value + 1e-12 * abs(value) + 1e-9:
            theta, value = trial, at_zero
    return theta


def estimates(
    model: Objective,
    theta: Array,
    evaluations: Array,
    message: str,
    design: DesignSums,
    response: Responses,
    workspaces: Workspaces,
) -> CoreFit:
    """The fit at conditioned ``theta``, in the user's units."""
    return finished(model, theta, model.evaluator.modes(theta), evaluations, message, design, response, workspaces)


def near_perfect(
    model: Objective, y: Array, ratio: float, design: DesignProducts, response: Responses, workspaces: Workspaces
) -> CoreFit | None:
    """The fit from the rows themselves, where residuals are too small for cross-products; see `square_root`.

    ``y`` (n,) has the offset subtracted; None where the cross-products do.
    """
    found = accurate_estimates(design, response, y, model.reml, model.control, ratio)
    if found is None:
        return None
    rows, theta, evaluations, status = found
    figures = RowsEvaluator(rows, model.plan.offsets).modes(theta)
    fit = finished(model, theta, figures, evaluations, Newton.messages[status], design, response, workspaces)
    return replace(fit, _rows=rows)


def finished(
    model: Objective,
    theta: Array,
    figures: tuple[Array, Array, Array, Array, float],
    evaluations: Array,
    message: str,
    design: DesignSums,
    response: Responses,
    workspaces: Workspaces,
) -> CoreFit:
    """A fit from the optimum's ``figures``, as `Evaluator.modes` has them."""
    gamma, b_lead, b_tail, ld, value = figures
    norm = float(response.norms[0])
    gamma *= norm
    gamma += response.coefficients[:, 0]
    beta = design.inverse.dot(gamma)
    if response.shift is not None:
        beta += response.shift[:, 0]
    if design.rank < design.n_columns:
        kept, beta = beta, np.full(design.n_columns, np.nan)
        beta[design.keep] = kept
    return CoreFit(
        theta=model.to_user(theta),
        beta=beta,
        sigma=float(ld[-1, -1]) * norm * sqrt(design.weight_scale / model.evaluator.nu),
        criterion=value,
        reml=model.reml,
        n=design.n,
        rank=design.rank,
        is_singular=design.theta_map.is_singular(theta),
        converged=message == Newton.messages[0],
        message=message,
        control=model.control,
        unidentified=design.unidentified,
        _solution=Solution(design, response, model.plan.offsets, b_lead, b_tail, ld, evaluations),
        _workspaces=workspaces,
    )
