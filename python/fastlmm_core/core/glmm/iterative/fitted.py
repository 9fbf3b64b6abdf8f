"""A generalised fit of the iterative engine: estimates in the user's units, with their Monte Carlo errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.glmm.fitted import GlmmFit, Place, Report, covariance, resume
from fastlmm_core.core.glmm.iterative.laplace import IterativeLaplace
from fastlmm_core.core.iterative.iterative_fit import MonteCarlo
from fastlmm_core.core.iterative.newton import Found, Search
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import MonteCarloWarning, NumericalError, warn
from fastlmm_core.lazy import cached_property

if TYPE_CHECKING:
    from fastlmm_core.core.engines import EngineReport

__all__ = ["GlmmMonteCarlo", "IterativeGlmmFit", "iterate_glmm"]

Array = NDArray[np.float64]

MARGIN = 1.5
"""How much larger a Monte Carlo error may be than the search's model of the Hessian makes it."""


@dataclass(frozen=True, eq=False)
class GlmmMonteCarlo(MonteCarlo):
    """What is random in a generalised fit: all parameters, as the traces are in the equations of each.

    Attributes
    ----------
    beta_se : (p,)
        Monte Carlo standard errors of beta; NaN in columns set aside.
    rho_se : (n_extra,)
        Those of the logarithm of the family's own parameter.
    """

    beta_se: Array
    rho_se: Array

    def __str__(self) -> str:
        return (
            f"parameters have a Monte Carlo error of at most {self.max_relative:.2g} of their standard errors "
            f"({self.probes} probes, seed {self.seed}), the criterion one of {self.criterion_se:.2g}"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class IterativeGlmmFit(GlmmFit):
    """A fitted generalised model, as a `GlmmFit` that was made without a factor.

    At its parameters, which have a Monte Carlo error, the modes are exact to the solver's tolerance. `cov` is from
    differences of the estimated gradient, the probes unchanged; conditional variances are estimates by probes.

    Attributes
    ----------
    monte_carlo : GlmmMonteCarlo
        As `cov`, made when it is first asked for.
    found : Found
    criterion_se : float
        Monte Carlo standard error of the criterion.
    reason : str
        Why this engine.
    tail : int
        Random effects beside the leading factor's.
    """

    found: Found = field(repr=False)
    criterion_se: float = field(repr=False)
    products: int = field(repr=False)
    reason: str = field(repr=False)
    tail: int = field(repr=False)

    @contextmanager
    def engine(self) -> Iterator[IterativeLaplace]:
        """The engine with this fit's response and its modes, nobody else's inside a `with` block."""
        engine = self._engine
        if engine is None:
            raise AttributeError("a completed fit has no engine: fit the model again")
        assert isinstance(engine, IterativeLaplace)
        with one_blas_thread(), engine.turn.reading():
            if engine.holder is not self:
                engine.set_response(self.y)
                if self.place is not None:
                    engine.begin_at(self.place)
                engine.holder = self
            engine.locate(self.psi)
            yield engine

    def _second(self) -> tuple[NDArray[np.intp], Array]:
        """All places but those of a theta at its bound of zero."""
        return self._differences

    @cached_property
    def _differences(self) -> tuple[NDArray[np.intp], Array]:
        free = np.flatnonzero(np.isfinite(np.diag(self.found.sampling)))
        with self.engine() as engine:
            sd = np.sqrt(np.diag(self.found.sampling))
            return free, engine.information(self.psi, free, sd, self.found.probes // WIDTH)

    @cached_property
    def monte_carlo(self) -> GlmmMonteCarlo:
        """What is random in the fit, and how much.

        Errors are those of the equations' solution by the Hessian that `cov` has: the search's own is a model of it.
        """
        design, found, nt, rank = self.design, self.found, len(self.theta), self.rank
        errors, sampling = found.monte_carlo.copy(), found.sampling.copy()
        with suppress(NumericalError):  # which `cov` says
            free, second = self._differences
            own = covariance(second, int((free < nt).sum()))
            if np.isfinite(own).all():
                both = np.ix_(free, free)
                sampling[both] = own
                errors[both] = 0.25 * own @ found.spread[both] @ own
        sd, known = np.sqrt(np.diag(sampling)), np.isfinite(np.diag(sampling))
        ratio = float((np.sqrt(np.diag(errors))[known] / sd[known]).max(initial=0.0))
        own_errors = np.sqrt(np.diag(design.to_user @ errors @ design.to_user.T))
        spread = np.diag(design.to_user @ np.where(np.isfinite(sampling), sampling, 0.0) @ design.to_user.T).copy()
        spread[(design.to_user[:, ~known] != 0.0).any(axis=1)] = np.nan
        beta = np.full(len(self.beta), np.nan)
        beta[design.keep] = own_errors[nt : nt + rank]
        return GlmmMonteCarlo(
            self.control.seed, found.probes, own_errors[:nt], np.sqrt(spread[:nt]), ratio, self.criterion_se,
            found.evaluations, found.iterations, self.products, found.longest, beta, own_errors[nt + rank :],
        )  # fmt: skip

    @cached_property
    def _cond_both(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        with self.engine() as engine:
            return engine.conditional()

    @property
    def _cond_var(self) -> tuple[Array, ...]:
        return self._cond_both[0]

    def cond_sd_error(self) -> tuple[Array, ...]:
        """Monte Carlo standard errors of the square roots of `cond_var`'s diagonals, tuple of (q, l)."""
        return self._cond_both[1]

    def engine_report(self) -> EngineReport:
        """Why there is no factor, and what a dense one would have cost."""
        from fastlmm_core.core.engines import EngineReport, dense_cost

        return EngineReport("iterative", self.reason, self.tail, {"dense": dense_cost(self.tail)})


def iterate_glmm(
    engine: IterativeLaplace,
    y: Array,
    psi: Array,
    on_evaluation: Report | None = None,
    place: Place | None = None,
) -> IterativeGlmmFit:
    """Fit one response; see `Model.fit`.

    Parameters
    ----------
    engine : IterativeLaplace
    y : (n,)
        Already checked.
    psi : (n_free,)
        Where to start.
    on_evaluation : callable, optional
        As in `Model.fit`; the criterion and the radius it gets are NaN.
    place : tuple of arrays, optional
        As there.

    Warns
    -----
    MonteCarloWarning
        The error asked for was not reached with 128 probes.
    """
    design, control = engine.design, engine.control
    nt, parameters = design.n_theta, design.theta_map
    report = None
    if on_evaluation is not None:

        def report(k: int, x: Array, norm: float) -> None:
            on_evaluation(k, parameters.to_user @ x[:nt], np.nan, norm, np.nan)

    resume(engine, y, place)
    engine.weigh(psi)
    end = Search(engine, report, control.max_evaluations).run(psi, control.probes, control.mc_error / MARGIN)
    found = np.concatenate([parameters.canonical(end.theta[:nt]), end.theta[nt:]])
    turned = np.where(found * end.theta < 0.0, -1.0, 1.0)
    if (turned < 0.0).any():
        engine.begin_at(engine.place())  # nothing is predicted across a change of signs
    criterion, error = engine.deviance(found, -(-control.probes // WIDTH))
    if end.converged and end.ratio > control.mc_error:
        warn(
            f"with {end.probes} probes the Monte Carlo error of the parameters is still {end.ratio:.2g} standard "
            f"errors, above mc_error={control.mc_error:g}",
            MonteCarloWarning,
        )
    signs = np.outer(turned, turned)
    end = replace(
        end,
        theta=found,
        monte_carlo=signs * end.monte_carlo,
        sampling=signs * end.sampling,
        spread=signs * end.spread,
        gradient=turned * end.gradient,
        hessian=signs * end.hessian,
        iterations=engine.iterations,
        longest=engine.longest,
    )
    out = estimates(engine, y, criterion, error, end)
    engine.holder = out
    return out


def estimates(engine: IterativeLaplace, y: Array, criterion: float, error: float, end: Found) -> IterativeGlmmFit:
    """Everything in the user's units."""
    design, family, psi = engine.design, engine.design.family, end.theta
    nt, rank = design.n_theta, design.rank
    beta = np.full(design.X.shape[1], np.nan)
    beta[design.keep] = design.to_beta @ psi[nt : nt + rank]
    log = np.full((len(end.trace), design.n_free + 3), np.nan)
    for row, (x, norm) in zip(log, end.trace, strict=True):
        row[: design.n_free], row[design.n_free + 1] = x, norm
    log[-1:, design.n_free] = criterion
    message = "converged" if end.converged else f"the search did not end in {end.evaluations} evaluations"
    more: dict[str, Any] = {"y": y, "_engine": engine, "_evaluations": log, "place": engine.place()}
    return IterativeGlmmFit(
        theta=design.theta_map.to_user @ psi[:nt],
        beta=beta,
        rho=design.user_rho(psi),
        criterion=criterion,
        n=design.n,
        rank=rank,
        n_agq=1,
        is_singular=design.theta_map.is_singular(psi[:nt]),
        converged=end.converged,
        message=message,
        family=family,
        control=engine.control,
        psi=psi,
        found=end,
        criterion_se=error,
        products=engine.levels.rows.products,
        reason=engine.reason,
        tail=engine.levels.rows.m,
        **more,
    )  # fmt: skip
