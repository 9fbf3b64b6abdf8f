"""A fit of the iterative engine: from arrays to estimates in the user's units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.control import Control, checked_count, is_real
from fastlmm_core.core.crossprod import DesignProducts, Responses
from fastlmm_core.core.iterative.log_determinant import log_determinant
from fastlmm_core.core.iterative.newton import MAX_PROBES, Found, Search
from fastlmm_core.core.iterative.problem import crossed_problem, refuse_unidentified
from fastlmm_core.core.iterative.projection import Projection, project
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.terms import Term, as_floats, as_response, checked_flag
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ConvergenceWarning, DataError, ModelError, MonteCarloWarning, warn

__all__ = ["IterativeFit", "MonteCarlo", "fit"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MonteCarlo:
    """What is random in a fit, and how much.

    Attributes
    ----------
    seed, probes : int
    theta_se : (n_theta,)
        Monte Carlo standard errors of theta; zero where theta is at zero.
    theta_sd : (n_theta,)
        Sampling standard errors, from the model's information; NaN where theta is at zero.
    max_relative : float
        Largest ratio of the two.
    criterion_se : float
        Monte Carlo standard error of the criterion.
    evaluations, iterations, products : int
        Of the gradient, of conjugate gradients in all solves, and with blocks of eight vectors.
    """

    seed: int
    probes: int
    theta_se: Array
    theta_sd: Array
    max_relative: float
    criterion_se: float
    evaluations: int
    iterations: int
    products: int


@dataclass(frozen=True, eq=False)
class IterativeFit:
    """A fitted model as plain arrays, in the user's units.

    Attributes
    ----------
    theta : (n_theta,)
        As `CoreFit.theta`, with a Monte Carlo error.
    beta, se : (p,)
        Fixed effects and standard errors at that theta, exact to the solver's tolerance; NaN in columns set aside.
    cov_beta : (p, p)
    sigma : float
    criterion : float
        REML criterion or deviance, with a Monte Carlo error.
    reml : bool
    n, rank : int
    is_singular : bool
    b : tuple of (q, l)
        Conditional modes of each term at that theta, exact to the solver's tolerance.
    monte_carlo : MonteCarlo
    converged : bool
    """

    theta: Array
    beta: Array
    se: Array
    cov_beta: Array
    sigma: float
    criterion: float
    reml: bool
    n: int
    rank: int
    is_singular: bool
    b: tuple[Array, ...]
    monte_carlo: MonteCarlo
    converged: bool


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
        As in `Model`. Two or more grouping factors; the one with the most random effects may have any columns, the
        effects of a level of the others must be independent.
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
    reml, control = checked_flag(reml), Control(threads=threads)
    count = checked_count("probes", probes, MAX_PROBES)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ModelError(f"seed must be a whole number from 0, not {seed!r}")
    if not (is_real(mc_error) and 0.0 < float(mc_error) < np.inf):
        raise ModelError(f"mc_error must be positive and finite, not {mc_error!r}")
    response = as_response(y, None)
    fixed = np.empty((len(response), 0)) if X is None else X
    with one_blas_thread():
        design = DesignProducts(fixed, terms, weights=weights, offset=offset)
        found = design.response(response)
        problem = crossed_problem(design, found, control.n_threads)
        refuse_unidentified(design, reml)
        nu = float(design.n - design.rank if reml else design.n)
        search = Search(problem, nu, reml, int(seed), design.theta_map.diagonal)
        end = search.run(checked_start(start, design, problem.start), count, float(mc_error))
        system = System(problem, design.theta_map.canonical(end.theta))
        at = project(system)
        log_det, log_det_se = log_determinant(system, int(seed), -(-count // WIDTH))
        products = problem.rows.products
        out = estimates(design, found, system, at, end, (log_det, log_det_se), nu, reml, int(seed), products)
    if not end.converged:
        warn(
            f"the search over the variance parameters did not end in {end.evaluations} evaluations: give another "
            "start, or fewer parameters",
            ConvergenceWarning,
        )
    elif end.ratio > mc_error:
        warn(
            f"with {end.probes} probes the Monte Carlo error of the variance parameters is still {end.ratio:.2g} "
            f"standard errors, above mc_error={mc_error:g}",
            MonteCarloWarning,
        )
    return out


def checked_start(start: ArrayLike | None, design: DesignProducts, moments: Array) -> Array:
    """Conditioned theta to start from."""
    if start is None:
        return moments
    given = as_floats(start, "start")
    if given.shape != moments.shape:
        raise DataError(f"start has shape {given.shape}, but the model has {len(moments)} covariance parameters")
    return np.asarray(design.theta_map.canonical(design.theta_map.to_conditioned @ given))


def estimates(
    design: DesignProducts,
    found: Responses,
    system: System,
    at: Projection,
    end: Found,
    log_det: tuple[float, float],
    nu: float,
    reml: bool,
    seed: int,
    products: int,
) -> IterativeFit:
    """Everything in the user's units."""
    norm, p = float(found.norms[0]), design.rank
    size = design.X.shape[1]
    beta, cov = np.full(size, np.nan), np.full((size, size), np.nan)
    shift = 0.0 if found.shift is None else found.shift[:, 0]
    beta[design.keep] = design.inverse @ (found.coefficients[:, 0] + norm * at.beta) + shift
    variance = at.r2 / nu * norm**2
    cov[np.ix_(design.keep, design.keep)] = variance * design.inverse @ at.inverse @ design.inverse.T
    criterion = system.log_det_lead + log_det[0] + nu * (1.0 + np.log(2.0 * np.pi * at.r2 / nu))
    criterion += float(design.constant(nu, reml, np.float64(norm)))
    if reml and p:
        criterion += float(np.linalg.slogdet(at.gram)[1])
    b: list[Array] = [np.empty(0)] * len(design.terms)
    for g, group in enumerate(design.groups):
        if g == 0:
            conditioned = at.b_lead
        else:
            conditioned = np.column_stack([at.b_tail[t.columns] for t in system.problem.tail if t.group == g])
        for k, o in zip(group.terms, group.offsets, strict=True):
            transform = design.transforms[k]
            b[k] = norm * conditioned[:, o : o + len(transform)] @ transform.T
    back = design.theta_map.to_user
    errors = MonteCarlo(
        seed,
        end.probes,
        np.sqrt(np.diag(back @ end.monte_carlo @ back.T)),
        user_deviations(end.sampling, back),
        end.ratio,
        log_det[1],
        end.evaluations,
        end.iterations,
        products,
    )
    return IterativeFit(
        back @ system.theta,
        beta,
        np.sqrt(np.diag(cov)),
        cov,
        float(np.sqrt(variance * design.weight_scale)),
        float(criterion),
        reml,
        design.n,
        p,
        design.theta_map.is_singular(system.theta),
        tuple(b),
        errors,
        end.converged,
    )


def user_deviations(sampling: Array, back: Array) -> Array:
    """Square roots of the diagonal of ``back sampling back'`` (n_theta,); NaN where one of those used is at zero."""
    known = np.isfinite(np.diag(sampling))
    variances = np.diag(back @ np.where(np.isfinite(sampling), sampling, 0.0) @ back.T).copy()
    variances[(back[:, ~known] != 0.0).any(axis=1)] = np.nan
    return np.asarray(np.sqrt(variances))
