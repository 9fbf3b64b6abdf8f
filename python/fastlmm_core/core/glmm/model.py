"""`Model`: a generalised mixed model of one design, its marginal deviance as a function, fits of many responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.glmm.engine import make_engine
from fastlmm_core.core.glmm.fitted import ExactEngine, GlmmFit, Place, Report, conditioned, exact, is_exact, resume
from fastlmm_core.core.glmm.search import Searcher
from fastlmm_core.core.glmm.start import glmm_start
from fastlmm_core.core.glmm.two_predictors import TwoPredictors
from fastlmm_core.core.terms import Term
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import DataError, ModelError, NumericalError
from fastlmm_core.families import Family, Link, as_family

if TYPE_CHECKING:
    from fastlmm_core.core.glmm.iterative.laplace import IterativeLaplace

__all__ = ["GlmmObjective", "ManyGlmmFits", "Model", "checked_points", "fit", "fit_many", "objective"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ManyGlmmFits:
    """Estimates of k responses with one design, in the user's units.

    Attributes
    ----------
    theta : (k, n_theta)
    beta : (k, p)
        NaN in columns set aside.
    rho : (k,) or (k, n_extra)
    criterion : (k,)
    converged : (k,) bool
    n_evaluations : (k,) int32
    """

    theta: Array
    beta: Array
    rho: Array
    criterion: Array
    converged: NDArray[np.bool_]
    n_evaluations: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.criterion)


class GlmmObjective:
    """The marginal deviance of one response at any parameters, with its exact gradient.

    Parameters are the user's x = (theta, beta, rho): beta without the columns set aside, rho where it is estimated.

    Attributes
    ----------
    n_free : int
    start : (n_free,)
        Where a fit begins.
    place : tuple of arrays, optional
        Of the modes, to look for the first ones from; zero when left out.
    """

    def __init__(self, engine: ExactEngine, y: Array, place: Place | None = None) -> None:
        self.engine, self.y, self.place = engine, y, place
        self.n_free = engine.design.n_free

    @property
    def start(self) -> Array:
        """Where a fit begins (n_free,)."""
        return np.asarray(self.engine.design.to_user @ glmm_start(self.engine.design, self.y))

    def _psi(self, x: ArrayLike) -> Array:
        given = np.atleast_1d(np.asarray(x, np.float64))
        if given.shape != (self.n_free,):
            raise DataError(f"x has shape {given.shape}, but the model has {self.n_free} parameters")
        if not np.isfinite(given).all():
            raise DataError(f"x must be finite, not {given}")
        return np.asarray(self.engine.design.to_conditioned @ given)

    def __call__(self, x: ArrayLike) -> float:
        """The deviance at x (n_free,), all constants included."""
        psi = self._psi(x)
        with self._at_work():
            return self.engine.value(psi)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The engine with this response: fits and other objectives of the model may have used it meanwhile."""
        with one_blas_thread(), self.engine.turn.reading():
            if self.engine.holder is not self:
                resume(self.engine, self.y, self.place)
                self.engine.holder = self
            yield

    def derivatives(self, x: ArrayLike) -> tuple[float, Array, Array]:
        """Deviance, exact gradient (n_free,) and model Hessian (n_free, n_free) at x."""
        psi = self._psi(x)
        with self._at_work():
            value, gradient, hessian = self.engine.derivatives(psi)
        m = self.engine.design.to_conditioned
        return value, m.T @ gradient, m.T @ hessian @ m

    def gradient(self, x: ArrayLike) -> Array:
        """Exact gradient (n_free,) at x."""
        return self.derivatives(x)[1]


class Model:
    """A generalised linear mixed model without its response.

    Parameters
    ----------
    X : (n, p) or None
        Fixed-effects columns, the intercept included if there is one.
    terms : sequence of Term
        Random-effects terms; those with the same codes share a grouping factor.
    family : str or Family
    link : str or Link, optional
        The family's first link when left out.
    weights : (n,), optional
        Prior weights, positive: they divide the dispersion of gaussian, gamma and inverse gaussian rows, are the number
        of trials of binomial ones, and multiply the log density of the others.
    trials : (n,), optional
        Trials of binomial rows; y counts successes. One each when left out.
    freq_weights : (n,), optional
        How often each row counts.
    offset : (n,), optional
        Known part of the linear predictor.
    n_agq : int
        Points of adaptive Gauss-Hermite quadrature in each dimension of a level's effects; 1 is Laplace's
        approximation. More need one grouping factor and at most three columns. 0 is a fast first look, whose beta is
        found with the modes at each theta, as if the approximation's log-determinant did not depend on it.
    control : Control, optional
    zero_terms : sequence of Term
        Random effects of the log odds of a family's zero part, which names their covariance parameters (``effects=``).

    Raises
    ------
    DataError, ModelError
        The input cannot support a model.

    Notes
    -----
    A model owns one workspace: fits from several threads take turns, and one from a fit's own report is refused.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlmm_core.core import Term
    >>> from fastlmm_core.core.glmm import Model
    >>> g = np.repeat(np.arange(8), 6)
    >>> y = np.array([2, 1, 3, 0, 2, 4, 7, 5, 6, 9, 4, 8] * 4)
    >>> fit = Model(np.ones((48, 1)), [Term(g)], "poisson").fit(y)
    >>> fit.beta.round(3)
    array([1.305])
    """

    def __init__(
        self,
        X: ArrayLike | None,
        terms: Sequence[Term],
        family: str | Family,
        *,
        link: str | Link | None = None,
        weights: ArrayLike | None = None,
        trials: ArrayLike | None = None,
        freq_weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        n_agq: int = 1,
        control: Control | None = None,
        zero_terms: Sequence[Term] = (),
    ) -> None:
        self.control = checked_control(control)
        self.n_agq = checked_points(n_agq)
        self.family = as_family(family, link)
        with one_blas_thread():
            self.design = GlmmDesign(
                X,
                terms,
                self.family,
                weights=weights,
                trials=trials,
                freq_weights=freq_weights,
                offset=offset,
                zero_terms=zero_terms,
            )
            self.engine = make_engine(self.design, self.n_agq, self.control)
            self.searcher: Searcher | None = None  # none for the iterative engine, which has its own
            if is_exact(self.engine):
                tol = self.control.tol * self.engine.patience
                self.searcher = Searcher(self.engine, self.control.max_evaluations, tol)

    def objective(self, y: ArrayLike) -> GlmmObjective:
        """The marginal deviance with response ``y`` (n,). Its calls take turns with all else that this model does.

        Raises
        ------
        ModelError
            The iterative engine has no factor to evaluate it with.
        """
        return GlmmObjective(exact(self.engine), self.design.response(y))

    def fit(
        self,
        y: ArrayLike,
        *,
        start: ArrayLike | None = None,
        on_evaluation: Report | None = None,
        place: Place | None = None,
    ) -> GlmmFit:
        """Fit one response.

        Parameters
        ----------
        y : (n,)
            Successes for the binomial family.
        start : (n_theta,) or (n_theta + p + n_extra,), optional
            theta, or (theta, beta, rho), to start from.
        on_evaluation : callable, optional
            Called with (number, theta, criterion, gradient norm, radius) after each evaluation.
        place : tuple of arrays, optional
            Of the modes, another fit's by a model of this shape, to look for the first ones from; zero when left out.

        Returns
        -------
        GlmmFit

        Raises
        ------
        DataError, ModelError
            The response does not suit the family.
        NumericalError
            The deviance cannot be evaluated at the start.
        """
        with one_blas_thread(), self.engine.turn:
            response = self.design.response(y)
            return self._fit(response, self._start(response, start), start is not None, on_evaluation, place)

    def _start(self, y: Array, start: ArrayLike | None) -> Array:
        """Psi to start from."""
        design = self.design
        if start is None:
            return glmm_start(design, y)
        given = np.atleast_1d(np.asarray(start, np.float64))
        p = design.X.shape[1]
        if given.shape == (design.n_theta + p + self.family.n_extra,):
            rho = self.family.rho_of(given[design.n_theta + p :])
            return conditioned(design, given[: design.n_theta], given[design.n_theta : design.n_theta + p], rho)
        psi = glmm_start(design, y)
        if given.shape != (design.n_theta,) or not np.isfinite(given).all():
            raise DataError(
                f"start must be {design.n_theta} finite covariance parameters, or those with {p} coefficients"
                f"{' and rho' if self.family.n_extra else ''}, not an array of shape {given.shape}"
            )
        psi[: design.n_theta] = design.theta_map.to_conditioned @ given
        return psi

    def _fit(
        self, y: Array, psi: Array, given: bool, on_evaluation: Report | None = None, place: Place | None = None
    ) -> GlmmFit:
        if self.searcher is None:
            from fastlmm_core.core.glmm.iterative.fitted import iterate_glmm

            return iterate_glmm(cast("IterativeLaplace", self.engine), y, psi, on_evaluation, place)
        resume(self.engine, y, place)
        psi, value, evaluations, status = self.searcher.search(psi, given, on_evaluation)
        message = self.searcher.messages[status]
        return self._found(y, psi, value, evaluations, status == 0, message, self.searcher.place)

    def revive(
        self,
        y: ArrayLike,
        psi: Array,
        criterion: float,
        evaluations: Array,
        converged: bool,
        message: str,
        place: Place | None = None,
    ) -> GlmmFit:
        """The fit that once had these figures: psi, criterion, _evaluations, converged, message and place of it."""
        return self._found(self.design.response(y), psi, criterion, evaluations, converged, message, place)

    def _found(
        self,
        y: Array,
        psi: Array,
        value: float,
        evaluations: Array,
        converged: bool,
        message: str,
        place: Place | None = None,
    ) -> GlmmFit:
        design = self.design
        nt = design.n_theta
        beta = np.full(design.X.shape[1], np.nan)
        beta[design.keep] = design.to_beta @ psi[nt : nt + design.rank]
        family, singular = self.family, design.theta_map.is_singular(psi[:nt])
        if isinstance(self.engine, TwoPredictors):
            family, singular = self._zero_part_at(y, psi, place), self.engine.is_singular(psi)
        return GlmmFit(
            theta=design.theta_map.to_user @ psi[:nt],
            beta=beta,
            rho=design.user_rho(psi),
            criterion=value,
            n=design.n,
            rank=design.rank,
            n_agq=self.n_agq,
            is_singular=singular,
            converged=converged,
            message=message,
            family=family,
            control=self.control,
            psi=psi,
            y=y,
            _engine=self.engine,
            _evaluations=evaluations,
            place=place,
        )

    def _zero_part_at(self, y: Array, psi: Array, place: Place | None) -> Family:
        """The family with the log odds' random effects at their modes."""
        assert isinstance(self.engine, TwoPredictors)
        self.engine.set_response(y)
        if place is not None:
            self.engine.begin_at(place)
        self.engine.value(psi)
        return self.engine.family_here()

    def fixed_criterion(self, y: ArrayLike) -> float:
        """The deviance of the model without random effects, minimised over (beta, rho): theta is held at zero."""
        engine = exact(self.engine)
        assert self.searcher is not None
        with one_blas_thread(), engine.turn:
            response = self.design.response(y)
            engine.set_response(response)
            return self.searcher.without_effects(glmm_start(self.design, response))

    def fit_many(self, Y: ArrayLike, *, start: ArrayLike | None = None) -> ManyGlmmFits:
        """Fit each row of ``Y`` (k, n).

        Parameters
        ----------
        start : optional
            As in `fit`, for every response.

        Returns
        -------
        ManyGlmmFits
            A response that cannot be fitted leaves NaN.
        """
        responses = np.atleast_2d(np.asarray(Y, np.float64))
        k, design = len(responses), self.design
        out = ManyGlmmFits(
            np.full((k, design.n_theta), np.nan),
            np.full((k, design.X.shape[1]), np.nan),
            np.full((k, self.family.n_extra) if self.family.vector else k, np.nan),
            np.full(k, np.nan),
            np.zeros(k, bool),
            np.zeros(k, np.int32),
        )
        with one_blas_thread(), self.engine.turn:
            for i, y in enumerate(responses):
                try:
                    response = design.response(y)
                    found = self._fit(response, self._start(response, start), start is not None)
                except (NumericalError, ModelError):
                    continue
                out.theta[i], out.beta[i], out.rho[i], out.criterion[i] = (
                    found.theta, found.beta, found.rho, found.criterion,
                )  # fmt: skip
                out.converged[i], out.n_evaluations[i] = found.converged, len(found._evaluations)
        return out


def checked_points(n_agq: object) -> int:
    """Points of quadrature; ModelError for anything but a whole number that is not negative."""
    whole = isinstance(n_agq, (int, float, np.number)) and not isinstance(n_agq, bool) and float(n_agq).is_integer()
    if not whole or float(cast("float", n_agq)) < 0.0:
        raise ModelError(f"n_agq must be a whole number, not negative, not {n_agq!r}")
    return int(cast("float", n_agq))


def objective(
    y: ArrayLike, X: ArrayLike | None, terms: Sequence[Term], family: str | Family, **options: object
) -> GlmmObjective:
    """The marginal deviance of a model given as arrays; ``options`` as in `Model`."""
    return Model(X, terms, family, **options).objective(y)  # type: ignore[arg-type]


def fit(y: ArrayLike, X: ArrayLike | None, terms: Sequence[Term], family: str | Family, **options: object) -> GlmmFit:
    """Fit a generalised mixed model given as arrays; ``options`` as in `Model`."""
    return Model(X, terms, family, **options).fit(y)  # type: ignore[arg-type]


def fit_many(
    Y: ArrayLike, X: ArrayLike | None, terms: Sequence[Term], family: str | Family, **options: object
) -> ManyGlmmFits:
    """Fit one design to each row of ``Y`` (k, n); ``options`` as in `Model`."""
    return Model(X, terms, family, **options).fit_many(Y)  # type: ignore[arg-type]
