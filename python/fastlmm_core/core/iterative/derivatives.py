"""Gradient of the criterion, one estimate a probe, and its curvature by average information.

With G = T - (X part, REML) - (nu / y'Py) t t', t = Z'Py, summed over the levels of a term,

    df/dL = 2 G L,        d2f = nu (F'PF / y'Py - (F'Py)(F'Py)' / (y'Py)^2) + 2 G on equal columns

where column a of F is (dV/dtheta_a) Py (Gilmour, Thompson and Cullis 1995; the profiled criterion's second term). Only
the traces T are estimates; the rest is exact to the solver's tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.iterative.projection import Projection
from fastlmm_core.core.iterative.system import System
from fastlmm_core.core.iterative.traces import Traces

__all__ = ["Derivatives", "derivatives", "studentised"]

Array = NDArray[np.float64]

INFORMATION_TOLERANCE = 1e-6
"""Relative residual of the average information's solves, which decides the speed of the search and an error's scale."""


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Of the criterion, in conditioned coordinates.

    Attributes
    ----------
    gradients : (s, n_theta)
        Unbiased, one a probe; NaN where a tail term's lambda is zero.
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


def derivatives(system: System, at: Projection, traces: Traces, nu: float, reml: bool) -> Derivatives:
    """Gradients and curvature at the system's theta."""
    problem, theta, scale = system.problem, system.theta, nu / at.r2
    gradients = np.empty((len(traces.lead), problem.n_theta))
    lead = np.einsum("qab,qbc->ac", system.R, problem.blocks) - traces.lead
    lead = lead - scale * np.einsum("qa,qb->ab", at.lead_y, at.lead_y)
    if reml:
        lead = lead - np.einsum("qac,cd,qbd->ab", at.lead_x, at.inverse, at.lead_x)
    slope = 2.0 * (lead @ system.L)
    for a, i, j in problem.lead:
        gradients[:, a] = slope[:, i, j]
    hessian = average_information(system, at, nu)
    for a, i, j in problem.lead:
        for b, other, column in problem.lead:
            if j == column:
                hessian[a, b] += 2.0 * lead[:, i, other].mean()
    for f, term in enumerate(problem.tail):
        x, y, k = at.tail_x[term.columns], at.tail_y[term.columns], term.parameter
        value = traces.tail[:, f] - scale * float(y @ y)
        if reml:
            value = value - float(np.einsum("jc,cd,jd->", x, at.inverse, x))
        gradients[:, k] = 2.0 * value * theta[k]
        hessian[k, k] += 2.0 * value.mean()
    return Derivatives(gradients, hessian)


def studentised(s: int) -> float:
    """Variance of a mean over its variance as estimated from s values: that of Student's t, (s - 1) / (s - 3)."""
    return (s - 1.0) / (s - 3.0)


def average_information(system: System, at: Projection, nu: float) -> Array:
    """Average information, nu (F'PF / y'Py - (F'Py)(F'Py)' / (y'Py)^2) (n_theta, n_theta)."""
    problem, L = system.problem, system.L
    q, l = at.lead_y.shape
    lead, tail = np.zeros((q, l, problem.n_theta)), np.zeros((problem.rows.m, problem.n_theta))
    for a, i, j in problem.lead:
        change = np.zeros((l, l))
        change[i] = L[:, j]
        lead[:, :, a] = at.lead_y @ (change + change.T)
    for term in problem.tail:
        k = term.parameter
        tail[term.columns, k] = 2.0 * system.theta[k] * at.tail_y[term.columns]
    ours = problem.blocks @ lead
    right = system.tail_sums(lead - system.K @ ours) + system.product(tail)  # Z_t'V_1^-1 F
    sums = ours + system.lead_sums(tail)  # Z_1'W F
    lam = system.lam[:, None]
    b = lam * system.solve_columns(lam * right, INFORMATION_TOLERANCE)
    through_tail = right - system.product(b)
    through_lead = system.R @ (sums - system.lead_sums(b))
    shrunk = system.R @ problem.lead_dense[:, :, : problem.p]
    x = np.einsum("qlc,qlk->ck", shrunk, lead) + at.right[:, : problem.p].T @ (tail - b)  # X'V^-1 F
    fvf = np.einsum("qla,qlb->ab", lead, through_lead) + tail.T @ through_tail
    fpy = np.einsum("qla,ql->a", lead, at.lead_y) + tail.T @ at.tail_y
    out = nu * ((fvf - x.T @ at.inverse @ x) / at.r2 - np.outer(fpy, fpy) / at.r2**2)
    return np.asarray((out + out.T) / 2)
