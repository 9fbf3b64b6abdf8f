"""One theta of one model: whatever is asked about it, in the order of groups and levels, whichever engine answers.

This is the door to a model's workspace. BLAS runs on one thread behind it, and factors are made when they are needed
and used while they last: a handle stays right when another theta has been looked at since, it only works again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.evaluator import Evaluator
from fastlmm_core._native.criterion.information import level_information
from fastlmm_core._native.criterion.joint_information import joint_information
from fastlmm_core._native.criterion.row_forms import explicit_parts, row_forms
from fastlmm_core._native.rows.crossprod import sort_rows
from fastlmm_core.core.square_root import RowsEvaluator
from fastlmm_core.core.threads import one_blas_thread
from fastlmm_core.errors import ModelError, NumericalError
from fastlmm_core.lazy import cached_property

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from fastlmm_core.core.criterion import Objective

__all__ = ["Evaluation", "ExplicitInverse", "GivenSigma", "Modes"]

Array = NDArray[np.float64]
Longs = NDArray[np.int64]

FEW_EFFECTS = 160
"""Random effects up to which the exact Hessian of several factors takes less time than differences of gradients."""


@dataclass(frozen=True)
class Modes:
    """Estimates at one theta, in conditioned coordinates.

    Attributes
    ----------
    gamma : (rank,)
        Fixed effects of the response's residual on X, over its norm.
    b : tuple of (q, l)
        Conditional modes of each group, likewise.
    ld : (rank + 1, rank + 1)
        Lower factor of [X y]'V^-1[X y].
    value : float
        The criterion.
    """

    gamma: Array
    b: tuple[Array, ...]
    ld: Array
    value: float


@dataclass(frozen=True)
class ExplicitInverse:
    """The random effects' block of the inverse in parts: Z H Z' = V S^-1 V' + Z_1 K Z_1', V = Z_t Lambda - Z_1 U.

    Attributes
    ----------
    inverse : (m, m)
        S^-1.
    k_lead : (q, l, l)
    u : (q l, m) sparse
        K_i B_i Lambda_t.
    factors : list of (l, l)
        Conditioned relative factors by grouping factor.
    starts : list of (q,)
        Tail column at which each level of each further group begins.
    """

    inverse: Array
    k_lead: Array
    u: csr_array
    factors: list[Array]
    starts: list[Longs]


@dataclass(frozen=True)
class GivenSigma:
    """The deviance at one theta and one sigma, in conditioned coordinates; from `Evaluation.given_sigma`.

    Attributes
    ----------
    at : Evaluation
    log_sigma : float
        In units of y_scale sqrt(weight_scale).
    value : float
    """

    at: Evaluation
    log_sigma: float
    value: float

    def derivatives(self) -> tuple[Array, Array]:
        """Gradient (1 + n_theta,) and model Hessian in (log sigma, theta)."""
        with one_blas_thread():
            return self.at._evaluator.given_sigma(self.at.theta, self.log_sigma)


class Evaluation:
    """A model at one theta; from `Objective.at`.

    Parameters
    ----------
    objective : Objective
        Whose workspace is used.
    theta : (n_theta,)
        Conditioned coordinates.
    """

    def __init__(self, objective: Objective, theta: Array) -> None:
        self.objective, self.theta = objective, theta
        self._evaluator, self._layout = objective.evaluator, objective.plan

    def __reduce__(self) -> tuple[type[Evaluation], tuple[Objective, Array]]:
        return Evaluation, (self.objective, self.theta)

    @cached_property
    def value(self) -> float:
        """The criterion."""
        with one_blas_thread():
            return self._evaluator.value(self.theta)

    @cached_property
    def conditioned(self) -> tuple[float, Array, Array]:
        """Criterion, gradient (n_theta,) and model Hessian (n_theta, n_theta) in conditioned coordinates."""
        with one_blas_thread():
            return self._evaluator.derivatives(self.theta)

    @property
    def gradient(self) -> Array:
        """Exact gradient (n_theta,) in the user's coordinates."""
        return np.asarray(self.objective.theta_map.to_conditioned.T @ self.conditioned[1])

    @property
    def hessian(self) -> Array:
        """Average-information model of the Hessian (n_theta, n_theta) in the user's coordinates."""
        m = self.objective.theta_map.to_conditioned
        return np.asarray(m.T @ self.conditioned[2] @ m)

    @cached_property
    def modes(self) -> Modes:
        """Fixed effects and conditional modes."""
        with one_blas_thread():
            gamma, b_lead, b_tail, ld, value = self._evaluator.modes(self.theta)
        parts = self._layout.split(b_lead.reshape(1, -1), b_tail[None])
        shapes = [(group.n_levels, group.n_columns) for group in self._layout.groups]
        b = tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        return Modes(gamma, b, ld, value)

    @property
    def log_r2(self) -> float:
        """Logarithm of the penalised residual sum of squares r^2, the response's norm on X being one."""
        return 2.0 * log(float(self.modes.ld[-1, -1]))

    def given_sigma(self, log_sigma: float) -> GivenSigma:
        """The deviance at a sigma that need not be the best one; by maximum likelihood only.

        With r^2 the penalised residual sum of squares and kappa = r^2 / sigma^2

            D(theta, sigma) = value(theta) + kappa - n - n log(kappa / n)

        Raises
        ------
        NumericalError
            It overflows.
        ModelError
            The criterion is REML's.
        """
        if self.objective.reml:
            raise ModelError("the deviance at a given sigma is maximum likelihood's; this criterion is REML's")
        n, log_kappa = self.objective.nu, self.log_r2 - 2.0 * log_sigma
        if log_kappa > 700.0:
            raise NumericalError("the deviance overflows")
        return GivenSigma(self, log_sigma, self.modes.value + exp(log_kappa) - n - n * (log_kappa - log(n)))

    def solve(self, parts: Sequence[Array]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Solve the mixed-model equations without fixed effects.

        Parameters
        ----------
        parts : sequence of (q * l, k), one a group
            Z'Wf for k vectors f.

        Returns
        -------
        b : tuple of (q * l, k)
            H Z'Wf with H = Lambda M^-1 Lambda', the best linear predictor of b from f.
        t : tuple of (q * l, k)
            Z'V^-1 f.
        """
        with one_blas_thread():
            b_lead, b_tail, t_lead, t_tail = self._evaluator.solve(self.theta, *self._layout.join(parts))
        return self._layout.split(b_lead, b_tail), self._layout.split(t_lead, t_tail)

    def dense_products(self) -> tuple[Array, ...]:
        """Z'V^-1[X y] of each group, (q * l, rank + 1)."""
        if isinstance(self._evaluator, RowsEvaluator):
            return tuple(self._evaluator.dense_products(self.theta))
        return self.solve(self.objective.cross.dense)[1]

    def information(self) -> tuple[Array, Array, Array, Array, float] | None:
        """Exact Hessian (k, k) of the profiled criterion, and what else `inference.information` needs.

        None where several grouping factors have more than `FEW_EFFECTS` random effects, or none is eliminated
        beforehand, or the model is evaluated from its rows.
        """
        layout = self._layout
        if not layout.leads or not isinstance(self._evaluator, Evaluator):
            return None
        m = layout.tail.m
        if m and m + layout.groups[0].size > FEW_EFFECTS:
            return None
        with one_blas_thread():
            return (joint_information if m else level_information)(self._evaluator, self.theta)

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariance (q, l, l) of the effects of each group, over sigma^2."""
        with one_blas_thread():
            lead, tail = self._evaluator.cond_var(self.theta)
        by_group = [lead] if self._layout.leads else []
        for offset, blocks in zip(self._layout.offsets, tail, strict=True):  # from the tail's order to the levels'
            by_group.append(blocks[np.argsort(np.argsort(offset, kind="stable"), kind="stable")])
        return tuple(by_group)

    def random_forms(self, codes: Sequence[NDArray[np.integer]], z: Sequence[Array]) -> Array:
        """Forms z'Hz of rows, (n,): the variance of z'b at known beta, over sigma^2.

        Parameters
        ----------
        codes : sequence of (n,), one a group
            Level of each row; -1 where none is met.
        z : sequence of (n, l)
            Conditioned columns.

        Returns
        -------
        (n,)
            NaN where the engine's inverse does not hold what is needed: `solve` for those.
        """
        layout = self._layout
        n, first = len(codes[0]), layout.groups[0]
        q, l = (first.n_levels, first.n_columns) if layout.leads else (0, 1)
        own = int(layout.leads)
        starts = np.empty((n, len(layout.offsets)), np.int64)
        for h, (offset, level) in enumerate(zip(layout.offsets, codes[own:], strict=True)):
            starts[:, h] = np.where(level < 0, -1, offset[level])
        lead = np.where(codes[0] < 0, q, codes[0]).astype(np.int32) if own else np.zeros(n, np.int32)
        z_lead = np.ascontiguousarray(z[0]) if own else np.zeros((n, l))
        z_tail = np.hstack(z[own:]) if len(z) > own else np.empty((n, 0))
        with one_blas_thread():
            h_lead, _ = self._evaluator.cond_var(self.theta)
            h_lead = h_lead if q else np.zeros((1, l, l))
            ptr, order = sort_rows(lead, q + 1)
            return row_forms(self._evaluator, h_lead, ptr, order, z_lead, starts, np.ascontiguousarray(z_tail))

    def explicit(self, available: int) -> ExplicitInverse | None:
        """The inverse as arrays, where the engine has all of it and a copy fits into ``available`` bytes."""
        layout = self._layout
        m = layout.tail.m
        if layout.tail.entries != "all" or 16 * m**2 > available:
            return None
        with one_blas_thread():
            self._evaluator.cond_var(self.theta)
            inverse, k_lead, lam = explicit_parts(self._evaluator)
        groups = layout.groups
        q, l = groups[0].n_levels, groups[0].n_columns
        from scipy.sparse import csr_array

        u = csr_array((q * l, m))
        if m:
            # level i's strips are l rows of one pattern, one after another
            ptr, idx = np.asarray(layout.arrays["ptr"]), np.asarray(layout.arrays["idx"])
            widths = np.repeat(np.diff(ptr), l)
            ends = np.cumsum(widths)
            first = np.repeat(ptr[:-1], l)
            columns = idx[np.arange(ends[-1]) + np.repeat(first - (ends - widths), widths)]
            u = csr_array((self._evaluator.arrays["u"].copy(), columns, np.append(0, ends)), shape=(q * l, m))
        ends = np.cumsum([0, *(g.n_columns**2 for g in groups)])
        factors = [lam[a:b].reshape(g.n_columns, -1) for a, b, g in zip(ends[:-1], ends[1:], groups, strict=True)]
        return ExplicitInverse(inverse, k_lead, u, factors, layout.offsets)
