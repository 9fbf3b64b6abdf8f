"""The modes of a generalised model's random effects by Newton's method, each step a solve by conjugate gradients.

They are b = Lambda Lambda't with t the root of r(t) = Z's - t, s the rows' scores at X beta + Z b + offset, so that
they are found where Lambda is singular as well; Newton's step is (I + Z'WZ Lambda Lambda')^-1 r, which is what
`working.solve` leaves of r. A step need be no more exact than the next one can mend, and near the modes the weights of
the step before do: the rows' blocks are then not made anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.glmm.iterative.rows import Vectors, WorkingRows, covariance_times, solve
from fastlmm_core.core.iterative.problem import Levels
from fastlmm_core.core.iterative.system import INDEFINITE, System, relative_factors
from fastlmm_core.errors import NumericalError

__all__ = ["Modes", "ModesFinder"]

Array = NDArray[np.float64]

MAX_STEPS = 60

SMALL = 1e-16
"""Squared Newton decrement expected of the next step at which the modes are found: 1e-8 standard errors, all in all."""

INEXACT = 1e-3
"""Relative residual of a step's solve."""

NEAR = 1e-3
"""Squared decrement, an effect, below which the weights of the step before are near enough for another one."""

SLOW = 0.25
"""Share of the decrement that such a step may leave."""


@dataclass(frozen=True, eq=False)
class Modes:
    """The modes at some parameters.

    Attributes
    ----------
    t, b : Vectors
        Z's, and the modes Lambda Lambda't.
    h : float
        The penalised deviance |u|^2 - 2 sum l there.
    rows : (5 + 3 n_extra, n)
        Derivatives of the sorted rows, as `Family.working` has them.
    lr, lrr : float
        Sums of l_rho and of its derivative.
    system : System
        With the observed weights there.
    iterations, longest : int
        Of conjugate gradients on the way.
    """

    t: Vectors
    b: Vectors
    h: float
    rows: Array
    lr: Any
    lrr: Any
    system: System[Levels]
    iterations: int
    longest: int


class ModesFinder:
    """Rows of a design and a response, to look for modes in.

    Parameters
    ----------
    design : GlmmDesign
    rows : WorkingRows
    threads : int
    """

    def __init__(self, design: GlmmDesign, rows: WorkingRows, threads: int) -> None:
        self.design, self.rows, self.threads = design, rows, threads
        self.x, self.offset, self.m = rows.sorted(design.columns), rows.sorted(design.offset), rows.sorted(design.m)
        self.freq = rows.sorted(design.freq) if len(design.freq) else design.freq
        self.y = np.zeros(design.n)
        self.out = np.empty((5 + 3 * design.family.n_extra, design.n))
        self.lr: Any = 0.0
        self.lrr: Any = 0.0
        self.iterations = self.longest = 0

    def find(self, psi: Array, starts: list[Vectors]) -> Modes:
        """The modes at psi, from the first of some t that leads to them.

        Raises
        ------
        NumericalError
            None does.
        """
        design = self.design
        theta, gamma = psi[: design.n_theta], psi[design.n_theta : design.n_theta + design.rank]
        base = self.x @ gamma + self.offset
        self.theta, self.rho, self.base = theta, design.rho(psi), base
        self.factors = relative_factors(self.rows.levels, theta)
        self.iterations = self.longest = 0
        failure = NumericalError("the likelihood is zero at the modes' start")
        for t in starts:
            try:
                return self.follow(t)
            except NumericalError as error:
                failure = error
        raise failure

    def expected_weights(self, psi: Array) -> Array:
        """Of the sorted rows (n,) at psi without effects, none of them negative."""
        design = self.design
        base = self.x @ psi[design.n_theta : design.n_theta + design.rank] + self.offset
        with np.errstate(all="ignore"):
            design.family.working(self.y, base, self.m, self.freq, design.rho(psi), self.out, True, self.threads)
        return np.asarray(np.nan_to_num(np.maximum(self.out[2], 0.0)))

    def passed(self, t: Vectors) -> tuple[Vectors, float]:
        """B and the penalised deviance at t, the rows' derivatives left in ``out``."""
        b = covariance_times(self.rows.levels, self.factors, t)
        eta = self.base + self.rows.products(b)[:, 0]
        with np.errstate(all="ignore"):
            total, self.lr, self.lrr = self.design.family.working(
                self.y, eta, self.m, self.freq, self.rho, self.out, True, self.threads
            )
        return b, float(t.dot(b)[0, 0]) - 2.0 * total

    def follow(self, t: Vectors) -> Modes:
        """The modes from one start."""
        b, h = self.passed(t)
        if not np.isfinite(h):
            raise NumericalError("the likelihood is zero at the modes' start")
        size = float(t.lead.size + t.tail.size)
        system, fresh, last, guarded = self.system(False), True, np.inf, False
        for _ in range(MAX_STEPS):
            rest = self.rows.sums(self.out[0][:, None]) - t
            db, dt = solve(system, rest, INEXACT)
            decrement = float(rest.dot(db)[0, 0])
            if not np.isfinite(decrement):
                raise NumericalError("the modes' search broke down")
            if not fresh and not decrement <= SLOW * last:
                system, fresh = self.renewed(system, guarded), True
                continue
            t_new, b, h_new, scale = self.walk(t, dt, b, h)
            if scale == 0.0 and decrement >= 1e-6:  # more than rounding is left
                if guarded:
                    raise NumericalError("no step towards the modes lowers the penalised deviance")
                guarded = True
                system, fresh = self.renewed(system, guarded), True
                continue
            t, h = t_new, h_new
            rate = max(min(decrement, 1.0), INEXACT**2) if fresh and not guarded else min(1.0, decrement / last)
            if decrement * rate < SMALL or scale == 0.0:
                return self.ended(t, b, h, system)
            guarded = guarded and scale < 0.05
            again = scale == 1.0 and decrement < NEAR * size
            fresh = not again
            if not again:
                system = self.renewed(system, guarded)
            last = decrement
        raise NumericalError(f"the modes were not found in {MAX_STEPS} steps")

    def walk(self, t: Vectors, dt: Vectors, b: Vectors, h: float) -> tuple[Vectors, Vectors, float, float]:
        """T, b and h along a step, the rows there left in ``out``, and the share of it that was taken: 0 for none."""
        scale = 1.0
        while scale >= 1e-10:
            new = t + dt * scale
            b_new, value = self.passed(new)
            if value <= h + 1e-12 * (abs(h) + 1.0):
                return new, b_new, value, scale
            scale *= 0.5
        b, h = self.passed(t)
        return t, b, h, 0.0

    def system(self, guarded: bool) -> System[Levels]:
        """The system with the weights in ``out``; with none that are negative or too small for a step, ``guarded``."""
        w = self.out[1]
        if not guarded:
            try:
                return self.rows.system(self.theta, w)
            except NumericalError:
                pass
        return self.rows.system(self.theta, np.maximum(w, self.out[2]))

    def renewed(self, system: System[Levels], guarded: bool) -> System[Levels]:
        """`system` in the place of another one, whose solves are counted."""
        self.count(system)
        return self.system(guarded)

    def count(self, system: System[Levels]) -> None:
        """Add up what a system's solves have taken."""
        self.iterations, self.longest = self.iterations + system.iterations, max(self.longest, system.longest)

    def ended(self, t: Vectors, b: Vectors, h: float, system: System[Levels]) -> Modes:
        """What is known at the modes."""
        self.count(system)
        try:
            there = self.rows.system(self.theta, self.out[1])
        except NumericalError as error:
            raise NumericalError(INDEFINITE) from error
        return Modes(t, b, h, self.out.copy(), self.lr, self.lrr, there, self.iterations, self.longest)
