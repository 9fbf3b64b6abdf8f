"""What a search solves: the gradient of a criterion, estimated from probes that stay the same, set to zero."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.iterative.derivatives import Derivatives, derivatives
from fastlmm_core.core.iterative.problem import Factors, Problem
from fastlmm_core.core.iterative.projection import project
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.iterative.traces import Probes

__all__ = ["Equations", "LinearEquations"]

Array = NDArray[np.float64]


class Equations(Protocol):
    """Of parameters whose first `levels.n_theta` are those of the covariances, conditioned.

    Attributes
    ----------
    n_free : int
    iterations, longest : int
        Of all solves so far, and of the longest.
    """

    n_free: int
    iterations: int
    longest: int

    @property
    def levels(self) -> Factors:
        """Factors and their levels, with blocks of the size that matters."""

    def reorder(self, levels: Factors) -> bool:
        """Have parameters in other places of the factors from here on, those of ``levels``; False if that cannot be."""

    def refresh(self) -> None:
        """Choose anew what makes the probes' errors small."""

    def derivatives(self, x: Array, blocks: int) -> Derivatives:
        """At x (n_free,), from the first ``blocks`` blocks of eight probes.

        Raises
        ------
        NumericalError
            There are none: x is too far away.
        """


class LinearEquations:
    """Of a linear model, in theta alone.

    Parameters
    ----------
    problem : Problem
    nu : float
        n - p, or n for maximum likelihood.
    reml : bool
    seed : int
    """

    def __init__(self, problem: Problem, nu: float, reml: bool, seed: int) -> None:
        self.levels, self.nu, self.reml, self.n_free = problem, nu, reml, problem.n_theta
        self.probes = Probes(problem, seed)
        self.iterations = self.longest = 0
        self.solution: Array | None = None

    def reorder(self, levels: Factors) -> bool:
        """Have parameters in other places; the probes' directions are chosen anew."""
        assert isinstance(levels, Problem)
        self.levels = self.probes.problem = levels
        self.probes.deflated = self.solution = None
        return True

    def refresh(self) -> None:
        """Choose the probes' deflated directions anew."""
        self.probes.deflated = None

    def derivatives(self, x: Array, blocks: int) -> Derivatives:
        """At theta."""
        system = System(self.levels, x)
        traces = self.probes.traces(system, blocks)
        at = project(system, self.solution)
        self.solution = at.solution
        out = derivatives(system, at, traces, self.nu, self.reml)
        self.iterations, self.longest = self.iterations + system.iterations, max(self.longest, system.longest)
        return out
