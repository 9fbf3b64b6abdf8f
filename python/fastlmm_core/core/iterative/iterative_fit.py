"""A fit of the iterative engine as the rest of the package sees it: a `CoreFit` without a factor."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.engines import NO_FACTOR
from fastlmm_core.core.estimates import CoreFit, FitLog
from fastlmm_core.core.figures import relative_factors
from fastlmm_core.core.iterative.conditional import conditional_covariances
from fastlmm_core.core.iterative.newton import Found
from fastlmm_core.core.iterative.problem import crossed_problem
from fastlmm_core.core.iterative.projection import Projection
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.products import CrossProducts, DesignSums, Responses
from fastlmm_core.core.saved import saved_state
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ModelError
from fastlmm_core.lazy import cached_property

if TYPE_CHECKING:
    from fastlmm_core.core.criterion import Objective
    from fastlmm_core.core.engines import EngineReport

__all__ = ["IterativeFit", "MonteCarlo"]

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
    longest : int
        Iterations of the longest solve.
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
    longest: int

    def __str__(self) -> str:
        return (
            f"variance parameters have a Monte Carlo error of at most {self.max_relative:.2g} of their standard errors "
            f"({self.probes} probes, seed {self.seed}), the criterion one of {self.criterion_se:.2g}"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class IterativeFit(CoreFit):
    """A fitted model, as a `CoreFit` that was made without a factor.

    At `theta`, which has a Monte Carlo error, `beta`, its covariance, `sigma` and the modes are exact to the solver's
    tolerance. Conditional variances are estimates by probes. What needs the criterion or a factor of all random
    effects is refused.

    Attributes
    ----------
    monte_carlo : MonteCarlo
    design : DesignSums
    found : Responses
    at : Projection
        What is exact at `theta`, in conditioned coordinates.
    search : Found
    """

    monte_carlo: MonteCarlo
    design: DesignSums = field(repr=False)
    found: Responses = field(repr=False)
    at: Projection = field(repr=False)
    search: Found = field(repr=False)
    reason: str = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return saved_state({**self.__dict__, "kept": {}})

    @cached_property
    def L(self) -> tuple[Array, ...]:
        """Relative covariance factor of each term, tuple of (l, l)."""
        return relative_factors(self.design.terms, self.theta)

    @cached_property
    def cov_beta(self) -> Array:
        """Covariance (p, p) of the fixed effects, NaN in rows and columns set aside."""
        design = self.design
        out = np.full((design.n_columns, design.n_columns), np.nan)
        unit = self.sigma**2 / design.weight_scale
        out[np.ix_(design.keep, design.keep)] = unit * (design.inverse @ self.at.inverse @ design.inverse.T)
        return out

    @property
    def se(self) -> Array:
        """Standard errors (p,) of beta; NaN in columns set aside."""
        return np.sqrt(np.diag(self.cov_beta))

    @cached_property
    def b(self) -> tuple[Array, ...]:
        """Conditional modes of each term, tuple of (q, l)."""
        norm, design = float(self.found.norms[0]), self.design
        tail = np.split(self.at.b_tail, np.cumsum([g.size for g in design.groups[1:]])[:-1])
        out: list[Array] = [np.empty(0)] * len(design.terms)
        modes = [self.at.b_lead, *(t.reshape(-1, g.n_columns) for t, g in zip(tail, design.groups[1:], strict=True))]
        for group, own in zip(design.groups, modes, strict=True):
            for k, o in zip(group.terms, group.offsets, strict=True):
                t = design.transforms[k]
                out[k] = norm * own[:, o : o + len(t)] @ t.T
        return tuple(out)

    @cached_property
    def fitted(self) -> Array:
        """X beta + Z b + offset, (n,)."""
        return self.design.fitted(self.beta, self.b)

    @cached_property
    def log(self) -> FitLog:
        """Where the search went: the criterion is known at its end only."""
        back, trace = self.design.theta_map.to_user, self.search.trace
        theta = np.array([theta for theta, _ in trace]).reshape(-1, len(self.theta)) @ back.T
        criterion, nothing = np.full((2, len(trace)), np.nan)
        criterion[-1:] = self.criterion
        return FitLog(theta, criterion, np.array([norm for _, norm in trace]), nothing)

    @property
    def cross(self) -> CrossProducts:
        """Cross-products of the design with the response, but for the cells of two factors."""
        return self.design.complete(self.found, pairs=False)

    def complete(self) -> IterativeFit:
        """As `CoreFit.complete`; everything there is has been made."""
        return self

    def objective(self) -> NoReturn:
        """Refused: there is no factor."""
        raise ModelError(NO_FACTOR)

    def workspace(self) -> AbstractContextManager[Objective]:
        """Refused, as `objective`."""
        self.objective()

    def engine_report(self) -> EngineReport:
        """Why there is no factor, and what a dense one would have cost."""
        from fastlmm_core.core.engines import EngineReport, dense_cost

        m = sum(g.size for g in self.design.groups[1:])
        return EngineReport("iterative", self.reason, m, {"dense": dense_cost(m)})

    def system(self) -> System:
        """The equations at `theta`, made again from the rows."""
        problem = crossed_problem(self.design, self.found, self.control)
        return System(problem, self.search.theta)

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariance Var(b | y) of each level of each term, sigma^2 included: estimates by probes.

        Returns
        -------
        tuple of (q, l, l)
        """
        return self._conditional()[0]

    def cond_sd_error(self) -> tuple[Array, ...]:
        """Monte Carlo standard errors of the square roots of `cond_var`'s diagonals, tuple of (q, l)."""
        return self._conditional()[1]

    def _conditional(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        if "conditional" not in self.kept:
            unit = self.sigma**2 / self.design.weight_scale
            with one_blas_thread():
                self.kept["conditional"] = conditional_covariances(
                    self.system(), self.design, unit, self.monte_carlo.seed
                )
        kept: tuple[tuple[Array, ...], tuple[Array, ...]] = self.kept["conditional"]
        return kept
