"""The criterion of a linear mixed model whose weights change: products and a factor each time, one plan for all.

The rows' conditioned columns Q and residual e stay those of the design without weights, and every product is taken anew
with the weights given: Z'WZ into the layout's places, Z'W[Q e] and [Q e]'W[Q e]. No scale is taken out of the weights,
so the criterion's constant is the design's less sum(log w).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlmm_core._native.criterion.values import Values
from fastlmm_core.core.control import Control, checked_control
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.layout import plan
from fastlmm_core.core.terms import as_floats, checked_flag
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import DataError

__all__ = ["Reweighting"]

Array = NDArray[np.float64]


class Reweighting:
    """See the module's note.

    Parameters
    ----------
    design : DesignProducts
        Made without weights.
    y : (n,)
        Response; the design's offset is subtracted here.
    reml : bool
    control : Control, optional

    Notes
    -----
    One workspace: a second thread's call while one is at work raises `InUseError`.
    """

    def __init__(self, design: DesignProducts, y: ArrayLike, reml: bool = True, control: Control | None = None) -> None:
        if design.weights is not None:
            raise DataError("weights are given one set at a time here: make the design without them")
        self.design, self.reml = design, checked_flag(reml)
        cross = design.cross(y)
        c, p = cross.conditioning, design.rank
        self.layout = plan(design, checked_control(control))
        self.rows = self.layout.rows(design)
        self.evaluator = self.layout.evaluator(self.reml)
        self.columns = np.empty((p + 1, design.n))
        self.columns[:p] = design.q(slice(0, design.n)).T
        rest = design.prepare(y) - design.X[:, c.keep] @ c.shift
        self.columns[p] = (rest - c.r[:p, p] @ self.columns[:p]) / c.y_scale
        self.constant = c.constant(self.evaluator.nu, self.reml)
        self.theta_map = design.theta_map
        self.reweight(np.ones(design.n))

    def reweight(self, weights: ArrayLike) -> None:
        """Take other weights (n,).

        Raises
        ------
        DataError
            Another length, or weights that are not positive and finite.
        """
        w = as_floats(weights, "weights")
        if w.shape != (self.design.n,):
            raise DataError(f"weights has shape {w.shape}, but there are {self.design.n} observations")
        if not w.min() > 0.0:
            raise DataError(f"weights must be positive: {int((w <= 0.0).sum())} of {len(w)} are not")
        with one_blas_thread():
            scaled = self.columns * w
            lead, tail = self.rows.sums(scaled)
            made = self.rows.refill(w)
            dense = np.ascontiguousarray(lead.T) if lead.size else np.zeros((1, len(self.columns)))
            dtd = scaled @ self.columns.T
            values = Values(made.blocks, made.cells, made.tail, dense, tail, dtd, made.total_weight)
            self.evaluator.load(values, self.constant - float(np.log(w).sum()))

    def __call__(self, theta: ArrayLike) -> float:
        """The criterion at ``theta`` (n_theta,) with the weights in hand."""
        with one_blas_thread():
            return self.evaluator.value(self._conditioned(theta))

    def derivatives(self, theta: ArrayLike) -> tuple[float, Array, Array]:
        """Criterion, gradient (n_theta,) and average-information Hessian (n_theta, n_theta) at ``theta``."""
        m = self.theta_map.to_conditioned
        with one_blas_thread():
            value, gradient, hessian = self.evaluator.derivatives(self._conditioned(theta))
        return value, m.T @ gradient, m.T @ hessian @ m

    def _conditioned(self, theta: ArrayLike) -> Array:
        given, n = as_floats(theta, "theta"), len(self.theta_map.index)
        if given.shape != (n,):
            raise DataError(f"theta has shape {given.shape}, but the model has {n} covariance parameter(s)")
        return np.asarray(self.theta_map.to_conditioned @ given)
