"""What is exact to the solver's tolerance at a given theta: beta, its covariance, sigma, modes, and Z'Py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastlmm_core.core.iterative.problem import Problem
from fastlmm_core.core.iterative.system import System
from fastlmm_core.errors import NumericalError

__all__ = ["EXACT", "Projection", "project"]

Array = NDArray[np.float64]

EXACT = 1e-11
"""Relative residual of the solves with X and y."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Dense columns D = [X y] seen through V^-1, in conditioned coordinates.

    Attributes
    ----------
    beta : (p,)
    gram : (p, p)
        X'V^-1 X.
    inverse : (p, p)
    r2 : float
        y'Py.
    right : (m, p + 1)
        Z_t'V_1^-1 D.
    lead_x, tail_x : (q, l, p), (m, p)
        Z'V^-1 X.
    lead_y, tail_y : (q, l), (m,)
        Z'Py.
    b_lead, b_tail : (q, l), (m,)
        Conditional modes.
    """

    beta: Array
    gram: Array
    inverse: Array
    r2: float
    right: Array
    lead_x: Array
    tail_x: Array
    lead_y: Array
    tail_y: Array
    b_lead: Array
    b_tail: Array


def project(system: System[Problem]) -> Projection:
    """Solve for the dense columns.

    Raises
    ------
    NumericalError
        Nothing is left of y, or X'V^-1X is not positive definite.
    """
    problem, p = system.problem, system.problem.p
    shrunk = system.K @ problem.lead_dense
    right = problem.tail_dense - system.tail_sums(shrunk)
    b = system.lam(system.solve_columns(system.lam_t(right), EXACT))
    gram = problem.dtd - np.einsum("qlc,qld->cd", problem.lead_dense, shrunk) - right.T @ b
    gram = (gram + gram.T) / 2
    tail = right - system.product(b)
    rest = problem.lead_dense - system.lead_sums(b)
    lead = system.R @ rest
    inverse = np.linalg.inv(gram[:p, :p])
    beta = inverse @ gram[:p, p]
    r2 = float(gram[p, p] - gram[:p, p] @ beta)
    if not r2 > 0.0 or (np.diag(inverse) <= 0.0).any():
        raise NumericalError("the weighted residual sum of squares is not positive at these parameters")
    y = np.append(-beta, 1.0)
    return Projection(
        beta,
        gram[:p, :p],
        inverse,
        r2,
        right,
        lead[:, :, :p],
        tail[:, :p],
        lead @ y,
        tail @ y,
        (system.K @ (rest @ y)[:, :, None])[:, :, 0],
        b @ y,
    )
