"""The deviance minimised with one combination of the coefficients held fixed, from cross-products.

With gamma the conditioned coefficients and a'gamma = g0 held, gamma = g0 a / |a|^2 + N eta with N'a = 0: X loses a
column, and y moves along another. So one evaluator of rank - 1 columns serves every g0, on the model's own plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core.core.descent import FAILED, UNFINISHED
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import NumericalError

if TYPE_CHECKING:
    from fastlmm_core.core.criterion import Objective

__all__ = ["HeldContrast"]

Array = NDArray[np.float64]

MAX_EVALUATIONS, TOLERANCE = 200, 1e-9


class HeldContrast:
    """See the module's note.

    Parameters
    ----------
    objective : Objective
        By maximum likelihood. Its tail is shared: one of the two works at a time.
    a : (rank,)
        The combination, in conditioned coordinates.
    """

    def __init__(self, objective: Objective, a: Array) -> None:
        cross = objective.cross
        p, dtd = cross.rank, cross.dtd
        self.objective, self.a, self.n = objective, a, cross.n
        self.length = float(np.linalg.norm(a))
        basis = np.linalg.qr(np.column_stack([a / self.length, np.eye(p)]))[0]
        along, keep = a / self.length, basis[:, 1:p]
        self.constant = cross.conditioning.constant(self.n, False)
        to = np.zeros((p + 1, p))
        to[:p, : p - 1], to[p, p - 1] = keep, 1.0
        layout = objective.plan
        dense, tail = layout.lead_rows(cross.dense), layout.tail_columns(cross.dense).T
        self.reduced = layout.evaluator(False, rank=p - 1)
        self.reduced.load(layout.values(cross).recombined(to), self.constant)
        self.newton = Newton(self.reduced, MAX_EVALUATIONS, TOLERANCE)
        self.lead, self.tail = (dense[:, p], dense[:, :p] @ along), (tail[p], along @ tail[:p])
        self.xty = (keep.T @ dtd[:p, p], keep.T @ dtd[:p, :p] @ along)
        self.norms = (2.0 * float(along @ dtd[:p, p]), float(along @ dtd[:p, :p] @ along))

    def estimate(self, theta: Array) -> float:
        """A'gamma where nothing is held, at conditioned theta."""
        with one_blas_thread():
            gamma = self.objective.evaluator.modes(theta)[0]
        return float(self.a @ gamma)

    def solve(self, g0: float, start: Array) -> tuple[float, float, Array]:
        """The least deviance with a'gamma = g0, its derivative in g0, and its conditioned theta sought from ``start``.

        Raises
        ------
        NumericalError
            It cannot be evaluated or minimised there.
        """
        t = g0 / self.length
        square = 1.0 - t * self.norms[0] + t * t * self.norms[1]  # the evaluator's response has norm one
        norm = float(np.sqrt(square))

        def response(parts: tuple[Array, Array]) -> Array:
            return np.ascontiguousarray((parts[0] - t * parts[1]) / norm)

        with one_blas_thread():
            self.reduced.set_response(
                response(self.lead), response(self.tail), response(self.xty), self.constant + self.n * np.log(square)
            )
            theta, value, status = self.newton.minimise(np.ascontiguousarray(start))
            if status in (UNFINISHED, FAILED):
                raise NumericalError("a constrained optimum was not found")
            gamma, _, _, ld, _ = self.objective.evaluator.modes(theta)
        # r^2(theta) of the constrained problem = least r^2 + (a'gamma^ - g0)^2 / a'(X'V^-1X)^-1 a
        p = len(self.a)
        half = np.linalg.solve(ld[:p, :p], self.a)
        spread, gap = float(half @ half), g0 - float(self.a @ gamma)
        r2 = float(ld[p, p]) ** 2 + gap**2 / spread
        return value, 2.0 * self.n * gap / (spread * r2), theta
