"""A fit of the iterative engine: from arrays to estimates in the user's units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.arguments import as_floats, as_response, checked_flag
from fastlmm_core.core.control import Control
from fastlmm_core.core.crossprod import identified_products
from fastlmm_core.core.iterative.equations import LinearEquations
from fastlmm_core.core.iterative.iterative_fit import IterativeFit, MonteCarlo
from fastlmm_core.core.iterative.log_determinant import log_determinant
from fastlmm_core.core.iterative.newton import Found, Search
from fastlmm_core.core.iterative.problem import crossed_problem, refuse_unidentified
from fastlmm_core.core.iterative.projection import Projection, project
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.products import DesignSums, Responses
from fastlmm_core.core.square_root import NEAR_PERFECT
from fastlmm_core.core.terms import Term
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ConvergenceWarning, DataError, MonteCarloWarning, NumericalError, warn

__all__ = ["fit", "iterate"]

Array = NDArray[np.float64]


def fit(
    y: ArrayLike,
    X: ArrayLike | None,
    terms: Sequence[Term],
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    reml: bool = True,
    seed: int = 0,
    probes: int = 8,
    mc_error: float = 0.01,
    start: ArrayLike | None = None,
    threads: int | None = None,
) -> IterativeFit:
    """Fit a model of crossed factors without a factorisation: memory and time grow with the rows only.

    Parameters
    ----------
    y : (n,)
        Response.
    X, terms, weights, offset, reml
        As in `Model`. Two or more grouping factors, with up to 16 columns each.
    seed : int
        Of the probes. The same seed gives the same bits, whatever the number of threads.
    probes : int
        To begin with; rounded up to eights.
    mc_error : float
        Monte Carlo error of theta to reach, in sampling standard errors; probes are added, up to 128.
    start : (n_theta,), optional
        Where to start, as `CoreFit.theta`.
    threads : int, optional
        As in `Control`.

    Returns
    -------
    IterativeFit

    Raises
    ------
    DataError, ModelError
        The input cannot support the model, or the model is not one for this engine.
    MemoryLimitError
        Its rows and vectors do not fit into memory.
    NumericalError
        A solve did not converge: the levels are too loosely connected.

    Warns
    -----
    MonteCarloWarning
        The error asked for was not reached with 128 probes.
    ConvergenceWarning
        The search did not end.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlmm_core.core import Term, iterative
    >>> rng = np.random.default_rng(1)
    >>> g, h = rng.integers(0, 60, 2000), rng.integers(0, 40, 2000)
    >>> y = 3 + rng.normal(size=60)[g] + rng.normal(size=40)[h] + rng.normal(size=2000)
    >>> found = iterative.fit(y, np.ones((2000, 1)), [Term(g), Term(h)])
    >>> found.monte_carlo.max_relative < 0.01
    True
    """
    control = Control(engine="iterative", threads=threads, seed=seed, probes=probes, mc_error=mc_error)
    response = as_response(y, None)
    fixed = np.empty((len(response), 0)) if X is None else X
    reml = checked_flag(reml)
    with one_blas_thread():
        design = identified_products(fixed, terms, weights, offset, reml)
        out = iterate(design, design.response(response), reml=reml, control=control, start=start)
    if not out.converged:
        warn(f"{out.message}: give another start, or fewer parameters", ConvergenceWarning)
    return out


def iterate(
    design: DesignSums,
    found: Responses,
    *,
    reml: bool,
    control: Control,
    start: ArrayLike | None = None,
    on_evaluation: Callable[[int, Array, float, float, float], None] | None = None,
    reason: str = "it was asked for",
) -> IterativeFit:
    """Fit one response of a design whose rows are at hand; see `fit`.

    Parameters
    ----------
    design, found
        From `DesignProducts`, or of rows that a stream has kept.
    reml, control, start
        As in `Model` and `Model.fit`.
    on_evaluation : callable, optional
        As in `Model.fit`; the criterion and the radius it gets are NaN.
    reason : str
        Why this engine, for its report.
    """
    problem = crossed_problem(design, found, control)
    refuse_unidentified(design.unidentified)
    nu = float(design.n - design.rank if reml else design.n)
    back = design.theta_map.to_user
    report = None
    if on_evaluation is not None:

        def report(k: int, theta: Array, norm: float) -> None:
            on_evaluation(k, back @ theta, np.nan, norm, np.nan)

    equations = LinearEquations(problem, nu, reml, control.seed)
    search = Search(equations, report, control.max_evaluations)
    end = search.run(checked_start(start, design, problem.start), control.probes, control.mc_error)
    system = System(problem, design.theta_map.canonical(end.theta))
    end = replace(end, theta=system.theta)
    at = project(system, equations.solution if equations.levels is problem else None)
    if at.r2 < NEAR_PERFECT**2:
        raise NumericalError(
            "residuals are too small beside the random effects for the iterative engine: the cross-products have too "
            "few digits for them"
        )
    log_det = log_determinant(system, control.seed, -(-control.probes // WIDTH))
    out = estimates(design, found, system, at, end, log_det, nu, reml, control, reason)
    if end.converged and end.ratio > control.mc_error:
        warn(
            f"with {end.probes} probes the Monte Carlo error of the variance parameters is still {end.ratio:.2g} "
            f"standard errors, above mc_error={control.mc_error:g}",
            MonteCarloWarning,
        )
    return out


def checked_start(start: ArrayLike | None, design: DesignSums, moments: Array) -> Array:
    """Conditioned theta to start from."""
    if start is None:
        return moments
    given = as_floats(start, "start")
    if given.shape != moments.shape:
        raise DataError(f"start has shape {given.shape}, but the model has {len(moments)} covariance parameters")
    return np.asarray(design.theta_map.canonical(design.theta_map.to_conditioned @ given))


def estimates(
    design: DesignSums,
    found: Responses,
    system: System,
    at: Projection,
    end: Found,
    log_det: tuple[float, float],
    nu: float,
    reml: bool,
    control: Control,
    reason: str,
) -> IterativeFit:
    """Everything in the user's units."""
    norm = float(found.norms[0])
    beta = np.full(design.n_columns, np.nan)
    shift = 0.0 if found.shift is None else found.shift[:, 0]
    beta[design.keep] = design.inverse @ (found.coefficients[:, 0] + norm * at.beta) + shift
    criterion = system.log_det_lead + log_det[0] + nu * (1.0 + np.log(2.0 * np.pi * at.r2 / nu))
    criterion += float(design.constant(nu, reml, np.float64(norm)))
    if reml and design.rank:
        criterion += float(np.linalg.slogdet(at.gram)[1])
    back = design.theta_map.to_user
    errors = MonteCarlo(
        control.seed,
        end.probes,
        np.sqrt(np.diag(back @ end.monte_carlo @ back.T)),
        user_deviations(end.sampling, back),
        end.ratio,
        log_det[1],
        end.evaluations,
        end.iterations,
        system.problem.rows.products,
        max(end.longest, system.longest),
    )
    message = "converged"
    if not end.converged:
        message = f"the search over the variance parameters did not end in {end.evaluations} evaluations"
    return IterativeFit(
        theta=back @ system.theta,
        beta=beta,
        sigma=norm * float(np.sqrt(at.r2 / nu * design.weight_scale)),
        criterion=float(criterion),
        reml=reml,
        n=design.n,
        rank=design.rank,
        is_singular=design.theta_map.is_singular(system.theta),
        converged=end.converged,
        message=message,
        control=control,
        _solution=None,
        monte_carlo=errors,
        design=design,
        found=found,
        at=at,
        search=end,
        reason=reason,
    )


def user_deviations(sampling: Array, back: Array) -> Array:
    """Square roots of the diagonal of ``back sampling back'`` (n_theta,); NaN where one of those used is at zero."""
    known = np.isfinite(np.diag(sampling))
    variances = np.diag(back @ np.where(np.isfinite(sampling), sampling, 0.0) @ back.T).copy()
    variances[(back[:, ~known] != 0.0).any(axis=1)] = np.nan
    return np.asarray(np.sqrt(variances))
