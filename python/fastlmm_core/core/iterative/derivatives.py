"""Gradient of the criterion, one estimate a probe, and its curvature by average information.

With G = T - (X part, REML) - (nu / y'Py) t t', t = Z'Py, summed over the levels of a term,

    df/dL = 2 G L,        d2f = nu (F'PF / y'Py - (F'Py)(F'Py)' / (y'Py)^2) + 2 G on equal columns

where column a of F is (dV/dtheta_a) Py (Gilmour, Thompson and Cullis 1995; the profiled criterion's second term). Only
the traces T are estimates; the rest is exact to the solver's tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.iterative.problem import Levels, Problem
from fastlmm_core.core.iterative.projection import Projection
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.iterative.traces import Traces

__all__ = ["Derivatives", "chain", "derivatives", "lead_trace", "studentised"]

Array = NDArray[np.float64]

INFORMATION_TOLERANCE = 1e-6
"""Relative residual of the average information's solves, which decides the speed of the search and an error's scale."""


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Of the criterion, in conditioned coordinates.

    Attributes
    ----------
    gradients : (s, n_theta)
        Unbiased, one a probe; NaN where a tail factor's column has a lambda of zero.
    hessian : (n_theta, n_theta)
        Average information and the curvature of Sigma = LL'.
    """

    gradients: Array
    hessian: Array

    @property
    def gradient(self) -> Array:
        """(n_theta,) their mean."""
        return np.asarray(self.gradients.mean(axis=0))

    @property
    def covariance(self) -> Array:
        """(n_theta, n_theta) of the mean, such that errors over it have the variance one: see `studentised`."""
        s, k = self.gradients.shape
        return np.cov(self.gradients.T).reshape(k, k) / s * studentised(s)


def derivatives(system: System[Problem], at: Projection, traces: Traces, nu: float, reml: bool) -> Derivatives:
    """Gradients and curvature at the system's theta."""
    scale = nu / at.r2
    lead = lead_trace(system, traces) - scale * np.einsum("qa,qb->ab", at.lead_y, at.lead_y)
    if reml:
        lead = lead - np.einsum("qac,cd,qbd->ab", at.lead_x, at.inverse, at.lead_x)
    values = [lead]
    for group, trace in zip(system.problem.groups, traces.tail, strict=True):
        y = group.of_level(at.tail_y[:, None])[:, :, 0]
        value = trace - scale * np.einsum("qa,qb->ab", y, y)
        if reml:
            x = group.of_level(at.tail_x)
            value = value - np.einsum("qac,cd,qbd->ab", x, at.inverse, x)
        values.append(value)
    gradients, curvature = chain(system, values)
    return Derivatives(gradients, average_information(system, at, nu) + curvature)


def lead_trace(system: System[Levels], traces: Traces) -> Array:
    """sum_i (Z_1'V^-1 Z_1)_ii (s, l, l)."""
    return np.asarray(np.einsum("qab,qbc->ac", system.R, system.problem.blocks) - traces.lead)


def chain(system: System[Levels], values: Sequence[Array]) -> tuple[Array, Array]:
    """2 G L at the places of theta (s, n_theta), and its derivative for a G that stays, 2 G on equal columns.

    Parameters
    ----------
    system : System
    values : sequence of (s, l, l)
        G of each factor, the leading one first.
    """
    problem = system.problem
    gradients = np.empty((len(values[0]), problem.n_theta))
    curvature = np.zeros((problem.n_theta,) * 2)
    for (places, _), factor, value in zip(problem.factors, [system.L, *system.tail_L], values, strict=True):
        for a, i, j in places:
            # a trace is NaN beside a lambda of zero: left out where it is multiplied by another zero
            used = np.union1d(np.flatnonzero(factor[:, j]), j)
            gradients[:, a] = 2.0 * (value[:, i, used] @ factor[used, j])
            for b, other, column in places:
                if j == column:
                    curvature[a, b] += 2.0 * value[:, i, other].mean()
    return gradients, curvature


def studentised(s: int) -> float:
    """Variance of a mean over its variance as estimated from s values: that of Student's t, (s - 1) / (s - 3)."""
    return (s - 1.0) / (s - 3.0)


def average_information(system: System[Problem], at: Projection, nu: float) -> Array:
    """Average information, nu (F'PF / y'Py - (F'Py)(F'Py)' / (y'Py)^2) (n_theta, n_theta)."""
    problem, L = system.problem, system.L
    q, l = at.lead_y.shape
    lead, tail = np.zeros((q, l, problem.n_theta)), np.zeros((problem.rows.m, problem.n_theta))
    for a, i, j in problem.lead:
        lead[:, :, a] = at.lead_y @ changed(L, i, j)
    for group, factor in zip(problem.groups, system.tail_L, strict=True):
        y = group.of_level(at.tail_y[:, None])[:, :, 0]
        for a, i, j in group.parameters:
            tail[group.columns, a] = (y @ changed(factor, i, j)).ravel()
    ours = problem.blocks @ lead
    right = system.tail_sums(lead - system.K @ ours) + system.product(tail)  # Z_t'V_1^-1 F
    sums = ours + system.lead_sums(tail)  # Z_1'W F
    b = system.lam(system.solve_columns(system.lam_t(right), INFORMATION_TOLERANCE))
    through_tail = right - system.product(b)
    through_lead = system.R @ (sums - system.lead_sums(b))
    shrunk = system.R @ problem.lead_dense[:, :, : problem.p]
    x = np.einsum("qlc,qlk->ck", shrunk, lead) + at.right[:, : problem.p].T @ (tail - b)  # X'V^-1 F
    fvf = np.einsum("qla,qlb->ab", lead, through_lead) + tail.T @ through_tail
    fpy = np.einsum("qla,ql->a", lead, at.lead_y) + tail.T @ at.tail_y
    out = nu * ((fvf - x.T @ at.inverse @ x) / at.r2 - np.outer(fpy, fpy) / at.r2**2)
    return np.asarray((out + out.T) / 2)


def changed(factor: Array, i: int, j: int) -> Array:
    """Derivative (l, l) of LL' in the element of L at row i and column j."""
    change = np.zeros_like(factor)
    change[i] = factor[:, j]
    return change + change.T
