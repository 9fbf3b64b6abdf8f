"""A fitted generalised mixed model as arrays: its estimates in the user's coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.criterion.criterion import Criterion
from fastlmm_core.core.control import Control
from fastlmm_core.core.engines import NO_FACTOR
from fastlmm_core.core.estimability import NullSpace, null_space
from fastlmm_core.core.estimates import FitLog
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.glmm.two_predictors import TwoPredictors, ZeroPart
from fastlmm_core.core.identifiability import Unidentified
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.core.workspaces import Turn
from fastlmm_core.errors import ConvergenceWarning, DataError, ModelError, NumericalError, warn
from fastlmm_core.families import Family
from fastlmm_core.lazy import cached_property

__all__ = [
    *("Engine", "ExactEngine", "GlmmFit", "Place", "Report"),
    *("conditioned", "covariance", "exact", "is_exact", "resume"),
]

Array = NDArray[np.float64]
Place = tuple[Array, ...]
Report = Callable[[int, Array, float, float, float], None]

FLAT = 1e-10
"""Curvature, relative to the parameters' own, below which a direction counts as flat."""


class Engine(Protocol):
    """What finds the modes of a generalised model, and all that is read off them."""

    design: GlmmDesign
    turn: Turn
    """Whoever uses the workspace holds it meanwhile."""
    holder: object
    """Whose response was set last, where that was an objective's or is a fit's."""

    def set_response(self, y: Array) -> None:
        """Replace the response (n,), already checked."""

    def place(self) -> Place:
        """The modes where derivatives were last taken, for `begin_at`."""

    def begin_at(self, place: Place) -> None:
        """Look for the next modes from there, not from zero: rows may have several."""

    def locate(self, psi: Array) -> object:
        """Find the modes at psi, for what is read off them."""

    def modes(self) -> list[Array]:
        """Conditioned b (q, l) of each group at the modes last found."""

    def cond_var(self) -> list[Array]:
        """Conditioned Var(b | y) (q, l, l) of each group, there."""


class ExactEngine(Engine, Protocol):
    """One whose deviance is a function: level by level for one factor, the linear model's engine for more."""

    patience: float
    """Multiple of the optimiser's tolerance that suits what an evaluation costs."""

    @property
    def criterion(self) -> Criterion:
        """What the optimiser minimises."""

    def value(self, psi: Array) -> float:
        """The deviance at psi."""

    def derivatives(self, psi: Array) -> tuple[float, Array, Array]:
        """Deviance, gradient and model Hessian at psi."""

    def settled(self, psi: Array) -> Array:
        """Psi with whatever was found along with the modes."""

    def information(self, psi: Array) -> Array:
        """Second derivatives of the deviance at psi, whose inverse is half the covariance of the estimates."""


def resume(engine: Engine, y: Array, place: Place | None) -> None:
    """Set a fit's response, its modes to be looked for from the fit's own place, if that is one of this engine's."""
    engine.set_response(y)
    if place is not None and [part.shape for part in place] == [part.shape for part in engine.place()]:
        engine.begin_at(place)


def exact(engine: Engine) -> ExactEngine:
    """The engine, for what needs the deviance as a function.

    Raises
    ------
    ModelError
        It has none: it is the iterative one.
    """
    if not is_exact(engine):
        raise ModelError(NO_FACTOR)
    return engine


def is_exact(engine: Engine) -> TypeGuard[ExactEngine]:
    """Whether an engine's deviance is a function; by one name, as looking at all of a protocol's takes 20 µs."""
    return hasattr(engine, "patience")


@dataclass(frozen=True, eq=False)
class GlmmFit:
    """A fitted generalised mixed model as plain arrays, in the user's units.

    What takes longer than a refit of a small model (L, cov, b, eta, mu, log) is made when it is first asked for;
    `complete` makes all of it at once.

    Attributes
    ----------
    theta : (n_theta,)
        Covariance parameters term by term, on the scale of the linear predictor: the lower triangle of each factor of
        Var(b), column by column.
    L : tuple of (l, l)
        Covariance factor of each term.
    beta : (p,)
        Fixed effects; NaN where a column depends on earlier ones and was set aside.
    rho : float or (n_extra,)
        Logarithm of the family's extra parameter; 0 where there is none; an array for families with several.
    family_params : dict
        The extra parameters by their names, as users know them; empty where there is none.
    criterion : float
        Minus twice the marginal log-likelihood, all constants included.
    cov : (n_theta + p + n_extra,) * 2
        Covariance of (theta, beta, rho) from the deviance's Hessian; NaN in columns set aside.
    se : (p,)
        Standard errors of beta.
    b : tuple of (q, l)
        Conditional modes of each term.
    cov_beta : (p, p)
        The fixed effects' part of cov.
    eta, mu : (n,)
        Linear predictor and mean at the modes, of a binomial response the proportion, of counts without zeros that of
        the counts with them.
    fitted : (n,)
        Mean of the response at the modes.
    n, rank : int
        Observations; independent columns of X.
    n_agq : int
        Quadrature points; 1 is Laplace.
    is_singular : bool
        Some covariance factor is (nearly) singular.
    converged : bool
    message : str
    log : FitLog
    family : Family
    control : Control
    y : (n,)
        The response.
    place : tuple of arrays or None
        Where the engine's modes ended, to go on from.
    kept : dict
        What was made of this fit since, by name; not saved.
    """

    theta: Array
    beta: Array
    rho: Any
    criterion: float
    n: int
    rank: int
    n_agq: int
    is_singular: bool
    converged: bool
    message: str
    family: Family
    control: Control = field(repr=False)
    psi: Array = field(repr=False)
    y: Array = field(repr=False)
    _engine: Engine | None = field(repr=False)
    _evaluations: Array = field(repr=False)
    place: Place | None = field(default=None, repr=False)
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.complete().__dict__, "kept": {}}

    def complete(self) -> GlmmFit:
        """Make all that was left for later, and let go of the model's arrays; returns the fit itself."""
        if self._engine is not None:
            for kind in type(self).__mro__:
                for name, value in vars(kind).items():
                    if isinstance(value, cached_property):
                        getattr(self, name)
            object.__setattr__(self, "_engine", None)
        return self

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """The engine with this fit's response, at its estimates, nobody else's inside a `with` block."""
        if self._engine is None:
            raise AttributeError("a completed fit has no engine: fit the model again")
        with one_blas_thread(), self._engine.turn.reading():
            resume(self._engine, self.y, self.place)
            self._engine.locate(self.psi)
            yield self._engine

    @property
    def again(self) -> Array | None:
        """Where searches for much the same model begin, (theta, beta, rho); None where they begin as any fit does.

        That is where estimates are at a limit or not known, and where rows may have several modes: which ones a search
        ends at depends on its path, and a refit's are to be those of a new fit.
        """
        if self.is_singular or not self.family.one_mode or not np.isfinite(self.beta).all():
            return None
        return np.concatenate([self.theta, self.beta, self.family.extra(self.rho)])

    @property
    def design(self) -> GlmmDesign:
        """The design the fit was made from."""
        if self._engine is None:
            raise AttributeError("a completed fit has no design: fit the model again")
        return self._engine.design

    @property
    def family_params(self) -> dict[str, float]:
        """The extra parameters by their names."""
        return dict(zip(self.family.names, self.family.naturals(self.rho).tolist(), strict=True))

    @property
    def at_limit(self) -> bool:
        """Whether the extra parameter was estimated at a limit, such as no overdispersion of a negative binomial."""
        return bool(self.family.n_extra) and self.family.at_limit(self.rho)

    @property
    def family_params_se(self) -> dict[str, float]:
        """Their standard errors, by the delta method; NaN where one was given."""
        family = self.family
        if not family.n_extra:
            return dict.fromkeys(family.names, float("nan"))
        jacobian, own = family.natural_jacobian(self.rho), slice(len(self.cov) - family.n_extra, None)
        errors = np.sqrt(np.einsum("ij,jk,ik->i", jacobian, np.nan_to_num(self.cov[own, own]), jacobian))
        errors[np.isnan(self.cov.diagonal()[own])] = np.nan
        return dict(zip(family.names, errors.tolist(), strict=True))

    @property
    def se(self) -> Array:
        """Standard errors of beta (p,)."""
        nt, p = len(self.theta), len(self.beta)
        return np.asarray(np.sqrt(self.cov.diagonal()[nt : nt + p]))

    @cached_property
    def L(self) -> tuple[Array, ...]:
        """Covariance factor of each term, tuple of (l, l)."""
        factors, at = [], 0
        for term in self.design.terms:
            factor = np.zeros((term.n_columns, term.n_columns))
            rows, columns = zip(*term.index(), strict=True)
            factor[rows, columns] = self.theta[at : at + term.n_theta]
            at += term.n_theta
            factors.append(factor)
        return tuple(factors)

    @cached_property
    def cov(self) -> Array:
        """Covariance of (theta, beta, rho) from the deviance's Hessian; NaN where there is no Hessian."""
        design = self.design
        try:
            free, second = self._second()
            conditioned = covariance(second, design.n_theta - design.n_free + len(free))
            if len(free) < design.n_free:
                found, conditioned = conditioned, np.full((design.n_free,) * 2, np.nan)
                conditioned[np.ix_(free, free)] = found
        except NumericalError as error:
            conditioned = np.full((design.n_free,) * 2, np.nan)
            warn(f"there are no standard errors: {error} beside the estimates", ConvergenceWarning)
        unknown = np.isnan(conditioned)
        if unknown.any():  # all of theta, or what is held of it
            conditioned[unknown] = 0.0
        small = design.to_user @ conditioned @ design.to_user.T
        small[unknown] = np.nan
        nt, p = design.n_theta, len(self.beta)
        if design.rank == p:
            return np.asarray(small)
        places = np.concatenate([np.arange(nt), nt + design.keep, nt + p + np.arange(self.family.n_extra)])
        out = np.full((nt + p + self.family.n_extra,) * 2, np.nan)
        out[np.ix_(places, places)] = small
        return out

    def _second(self) -> tuple[NDArray[np.intp], Array]:
        """Places of psi that are estimated, and the deviance's second derivatives in them."""
        free = self.design.free
        with self.engine() as engine:
            second = exact(engine).information(self.psi)
        return free, second if len(free) == len(second) else second[np.ix_(free, free)]

    @cached_property
    def b(self) -> tuple[Array, ...]:
        """Conditional modes of each term, tuple of (q, l)."""
        with self.engine() as engine:
            return self.design.user_modes(engine.modes())

    @cached_property
    def _cond_var(self) -> tuple[Array, ...]:
        with self.engine() as engine:
            return self.design.user_covariances(engine.cond_var())

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariance Var(b | y) of each level of each term, given the parameters.

        Returns
        -------
        tuple of (q, l, l)
        """
        return self._cond_var

    @cached_property
    def zero_part(self) -> ZeroPart | None:
        """The log odds of a family's zero part, where they have random effects."""
        with self.engine() as engine:
            return engine.zero_part(self.psi) if isinstance(engine, TwoPredictors) else None

    @property
    def cov_beta(self) -> Array:
        """Covariance (p, p) of the fixed effects, NaN in rows and columns set aside."""
        nt, p = len(self.theta), len(self.beta)
        return self.cov[nt : nt + p, nt : nt + p]

    @cached_property
    def eta(self) -> Array:
        """Linear predictor at the modes, (n,)."""
        design = self.design
        with self.engine() as engine:
            return design.fixed_part(self.psi) + design.random_part(engine.modes()) + design.user_shift(self.psi)

    @cached_property
    def mu(self) -> Array:
        """Mean at the modes, (n,)."""
        return self.family.mean(self.eta)

    @cached_property
    def log(self) -> FitLog:
        """What the optimiser did."""
        theta, _, criterion, norm, radius = np.split(
            self._evaluations, [len(self.theta), len(self.psi), len(self.psi) + 1, len(self.psi) + 2], axis=1
        )
        to_user = self.design.theta_map.to_user
        return FitLog(theta @ to_user.T, criterion[:, 0], norm[:, 0], radius[:, 0])

    @cached_property
    def unidentified(self) -> Unidentified | None:
        """What the linear predictor's covariance does not depend on: no response can tell it."""
        return self.design.unidentified

    @property
    def sigma(self) -> float:
        """One: theta is on the scale of the linear predictor, and no residual variance multiplies it."""
        return 1.0

    @cached_property
    def _null_space(self) -> NullSpace | None:
        X = self.design.X
        return null_space(np.asarray(np.linalg.qr(X, mode="r")), self.design.keep, len(X))

    def estimable(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """Whether the data determine each linear function (k, p) of the coefficients, see `NullSpace.estimable`."""
        if self.rank == len(self.beta):
            return np.ones(len(np.atleast_2d(rows)), dtype=bool)
        assert self._null_space is not None
        return self._null_space.estimable(rows)

    @property
    def fitted(self) -> Array:
        """The response's means, (n,); of an ordinal response the probabilities of what was seen."""
        return self.family.fitted(self.y, self.eta, self.rho)

    def pirls_modes(self, theta: ArrayLike, beta: ArrayLike, y: ArrayLike | None = None) -> tuple[Array, ...]:
        """Conditional modes of each term at other parameters, or for another response.

        Parameters
        ----------
        theta : (n_theta,)
        beta : (p,)
        y : (n,), optional

        Returns
        -------
        tuple of (q, l)
        """
        design = self.design
        psi = conditioned(design, theta, beta, self.rho)
        with self.engine() as engine:
            if y is not None:
                engine.set_response(design.response(y))
            engine.locate(psi)
            return design.user_modes(engine.modes())


def conditioned(design: GlmmDesign, theta: ArrayLike, beta: ArrayLike, rho: Any) -> Array:
    """Psi (n_free,) for the user's parameters.

    Raises
    ------
    DataError
        A wrong length, or a value that is not finite.
    """
    t, b = np.atleast_1d(np.asarray(theta, np.float64)), np.atleast_1d(np.asarray(beta, np.float64))
    if t.shape != (design.n_theta,):
        raise DataError(f"theta has shape {t.shape}, but the model has {design.n_theta} covariance parameter(s)")
    if b.shape != (design.X.shape[1],):
        raise DataError(f"beta has shape {b.shape}, but the model has {design.X.shape[1]} coefficient(s)")
    user = np.concatenate([t, b[design.keep], design.family.extra(rho)])
    if not np.isfinite(user).all():
        raise DataError("parameters must be finite")
    return np.asarray(design.to_conditioned @ user)


def covariance(second: Array, n_theta: int) -> Array:
    """Covariance of the estimates from the deviance's Hessian, twice its inverse.

    Where the Hessian is not positive definite for theta's sake (a flat or boundary direction), the covariance of beta
    and rho given theta, and NaN for theta. A direction of beta and rho in which the likelihood is flat, as where the
    responses are separated, has a variance without bound: it comes out very large.
    """
    out = np.full(second.shape, np.nan)
    if not np.isfinite(second).all():
        return out
    diagonal = second.diagonal()
    scale = np.sqrt(np.maximum(diagonal, 1e-12 * max(diagonal.max(initial=0.0), 1e-300)))
    scaled = second / (scale[:, None] * scale)
    values, vectors = np.linalg.eigh(scaled)
    first = 0
    if values[0] <= FLAT:  # a principal block's smallest eigenvalue is not below it
        fixed = scaled[n_theta:, n_theta:]
        of_fixed = np.linalg.eigh(fixed)
        if not (len(fixed) > 0 and of_fixed[0][0] <= FLAT):
            first = n_theta
            values, vectors = of_fixed
    half = vectors / np.sqrt(np.maximum(values, FLAT)) / scale[first:, None]
    out[first:, first:] = 2.0 * half @ half.T
    return out
