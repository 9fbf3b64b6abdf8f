"""Laplace's approximation without a factor: modes and directions by conjugate gradients, traces by probes.

    d = h + log det M,      M = Lambda'Z'WZ Lambda + I,      h = |u|^2 - 2 sum l at the modes

With kappa = dw/deta and the modes moving along, eta' = d eta / d psi,

    dd/dpsi = (explicit part of h) + tr M^-1 (d(Lambda'Z'WZ Lambda) at fixed W) + sum_r g_r (kappa eta' + w_rho)_r

g the leverages. Eta' takes one solve a parameter, eight at a time, which the model Hessian and the modes at the next
parameters need as well:

    theta_a   f_a - Z H Z'W f_a,  f_a = Z v_a,  v_a = d(Lambda Lambda')/dtheta_a t, sums of what `Pairs` has
    gamma_j   x_j - Z H Z'W x_j         rho   Z H Z's_rho              H = Lambda M^-1 Lambda'

so that with its changes of the weights known the last trace is one sum over the rows a probe (`Probes.traces`) and no
adjoint solve is needed. The probes stay the same through a search: the equations solved are smooth. They are the exact
ones of `core.glmm.laplace` with estimates in the place of the traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.iterative.row_form import WIDTH
from fastlmm_core.core.control import Control
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.glmm.iterative.modes import Modes, ModesFinder
from fastlmm_core.core.glmm.iterative.rows import Pairs, Vectors, WorkingRows, by_group, solve
from fastlmm_core.core.iterative.conditional import conditional_blocks, conditional_covariances
from fastlmm_core.core.iterative.derivatives import Derivatives, chain, lead_trace
from fastlmm_core.core.iterative.forms import random_forms
from fastlmm_core.core.iterative.log_determinant import log_determinant
from fastlmm_core.core.iterative.problem import Factors, Levels, refuse_unidentified
from fastlmm_core.core.iterative.traces import Probes
from fastlmm_core.core.workspaces import TakenInTurn
from fastlmm_core.errors import ModelError, NumericalError

__all__ = ["IterativeLaplace"]

Array = NDArray[np.float64]

STEP = 0.1
"""Of differences of the gradient, in standard errors."""

DIRECTIONS = 1e-9
"""Relative residual of the directions' solves."""


@dataclass(frozen=True, eq=False)
class Moving:
    """How things move with the parameters: k pairs of columns (`Pairs`), p coefficients, and rho where there is one.

    Attributes
    ----------
    eta : (n, k + p + n_extra)
        Linear predictors of the sorted rows, the modes moving along.
    v : Vectors of n_theta
        d(Lambda Lambda')/dtheta t.
    rest : Vectors of n_free
        Z'V^-1 (f, X) and, minus, Z'r_rho: t moves by minus that.
    fixed : (p, p + n_extra)
        X'V^-1 X and, minus, X'r_rho.
    extra : (n_extra, n_extra)
        a_rho'M^-1 a_rho, a_rho = Lambda'Z's_rho.
    """

    eta: Array
    v: Vectors
    rest: Vectors
    fixed: Array
    extra: Array


class IterativeLaplace(TakenInTurn):
    """The equations of a generalised model with two or more grouping factors, for any response.

    Parameters
    ----------
    design : GlmmDesign
    control : Control
    reason : str
        Why this engine, for its report.

    Raises
    ------
    ModelError, MemoryLimitError
        The model is not one for this engine.
    """

    def __init__(self, design: GlmmDesign, control: Control, reason: str = "it was asked for") -> None:
        check_model(design, control)
        self.design, self.control, self.reason = design, control, reason
        self.nobody_has_it()
        self.rows = WorkingRows(design, control)
        self.finder = ModesFinder(design, self.rows, control.n_threads)
        self.pairs, self.n_free = Pairs(self.rows.levels), design.n_free
        self.blocks = -(-control.probes // WIDTH)
        self.set_response(np.zeros(design.n))

    @property
    def arguments(self) -> tuple[GlmmDesign, Control, str]:
        """See `TakenInTurn`."""
        return self.design, self.control, self.reason

    def _reset(self) -> None:
        self.t_at, self.psi_at = self.rows.nothing(), np.zeros(self.n_free)
        self.slopes: Vectors | None = None
        self.modes_now: Modes | None = None
        self.psi_now: Array | None = None

    @property
    def levels(self) -> Levels:
        """Factors and levels, with blocks of the last weights."""
        return self.rows.levels

    def reorder(self, levels: Factors) -> bool:
        """Columns of factors stay in their order."""
        return False

    def refresh(self) -> None:
        """Choose the probes' deflated directions anew."""
        self.probes.deflated = None

    # ------------------------------------------------------------------ responses and places

    def set_response(self, y: Array) -> None:
        """Replace the response (n,), already checked."""
        self.finder.y, self.holder = self.rows.sorted(y), None
        self.probes = Probes(self.rows.levels, self.control.seed)
        self.iterations = self.longest = 0
        self._reset()

    def place(self) -> tuple[Array, ...]:
        """T = Z's where derivatives were last taken, of the leading factor (q, l, 1) and the tail (m, 1)."""
        return self.t_at.lead, self.t_at.tail

    def begin_at(self, place: tuple[Array, ...]) -> None:
        """Look for the next modes from a place."""
        self._reset()
        self.t_at = Vectors(*place)

    def weigh(self, psi: Array) -> None:
        """Blocks of the levels with the expected weights that rows have at psi without effects."""
        self.rows.reweight(self.finder.expected_weights(psi))

    def settled(self, psi: Array) -> Array:
        """All of psi is searched over."""
        return psi

    # ------------------------------------------------------------------ at some parameters

    def locate(self, psi: Array) -> Modes:
        """The modes at psi, from those predicted to first order, the last ones or zero."""
        if self.modes_now is None or self.psi_now is None or not np.array_equal(psi, self.psi_now):
            self.modes_now, starts = None, [self.t_at, self.rows.nothing()]
            if self.slopes is not None:
                starts.insert(0, self.t_at + self.slopes.combined(psi - self.psi_at))
            found = self.finder.find(psi, starts)
            self.modes_now, self.psi_now = found, psi.copy()
            self.iterations, self.longest = self.iterations + found.iterations, max(self.longest, found.longest)
        return self.modes_now

    def deviance(self, psi: Array, blocks: int) -> tuple[float, float]:
        """The deviance at psi and its Monte Carlo standard error, from ``blocks`` blocks of eight probes."""
        design, at = self.design, self.locate(psi)
        log_det, error = log_determinant(at.system, self.control.seed, blocks)
        constant = design.family.constant(self.finder.y, self.finder.m, self.finder.freq, design.rho(psi))[0]
        return at.h + at.system.log_det_lead + log_det - 2.0 * constant, error

    def derivatives(self, psi: Array, blocks: int) -> Derivatives:
        """Gradients, one a probe, and the model Hessian of the deviance at psi."""
        design, at = self.design, self.locate(psi)
        system, rows = at.system, at.rows
        nt, p, k = design.n_theta, design.rank, self.pairs.n
        before = system.iterations
        moving = self.directions(at)
        kappa = rows[3][:, None]
        changes = kappa * moving.eta
        if design.family.n_extra:
            changes[:, -1] += rows[6]
        traces = self.probes.traces(system, blocks, changes)
        values = [
            trace - t.T @ t + through_modes
            for trace, t, through_modes in zip(
                (lead_trace(system, traces), *traces.tail),
                by_group(self.levels, at.t),
                self.pairs.matrices(traces.rows[:, :k]),
                strict=True,
            )
        ]
        gradients = np.empty((len(traces.rows), self.n_free))
        gradients[:, :nt], curvature = chain(system, values)
        gradients[:, nt:] = traces.rows[:, k:]
        gradients[:, nt : nt + p] -= 2.0 * (rows[0] @ self.finder.x)
        hessian = self.hessian(moving)
        hessian[:nt, :nt] += curvature
        if design.family.n_extra:
            constant = design.family.constant(self.finder.y, self.finder.m, self.finder.freq, design.rho(psi))
            gradients[:, -1] -= 2.0 * (at.lr + constant[1])
            hessian[-1, -1] -= 2.0 * (at.lrr + constant[2])
            idle = design.idle(psi)
            gradients[:, idle], hessian[idle], hessian[:, idle] = 0.0, 0.0, 0.0
            hessian[idle, idle] = 1.0
        self.iterations += system.iterations - before
        self.longest = max(self.longest, system.longest)
        if not (np.isfinite(hessian[nt:, nt:]).all() and np.isfinite(gradients[:, nt:]).all()):
            raise NumericalError("the gradient is not finite")
        self.t_at, self.slopes, self.psi_at = at.t, moving.rest * -1.0, psi.copy()
        return Derivatives(gradients, hessian)

    def directions(self, at: Modes) -> Moving:
        """Where eta and the modes go, from one solve a pair of columns, coefficient and extra parameter."""
        design, system, x, rows = self.design, at.system, self.finder.x, at.rows
        p, k = design.rank, self.pairs.n
        v = self.pairs.vectors(at.t)
        fixed = np.zeros((design.n, k + p + design.family.n_extra))  # of eta, the effects' own movement apart
        fixed[:, :k], fixed[:, k : k + p] = self.rows.products(v), x
        d = rows[1][:, None] * fixed
        if design.family.n_extra:
            d[:, -1] = -rows[5]
        sums = self.rows.sums(d)
        b, rest = solve(system, sums, DIRECTIONS)
        of_theta = self.pairs.by_parameter([system.L, *system.tail_L])
        whole = np.eye(k + p + design.family.n_extra, self.n_free, design.n_theta - k)
        whole[:k] = 0.0
        whole[:k, : design.n_theta] = of_theta
        return Moving(
            fixed - self.rows.products(b),
            v.times(of_theta),
            rest.times(whole),
            x.T @ d[:, k:] - sums[k : k + p].dot(b[k:]),
            sums[k + p :].dot(b[k + p :]),
        )

    def hessian(self, moving: Moving) -> Array:
        """The model Hessian (n_free, n_free), without theta's curvature and the log density's in rho."""
        nt, p = self.design.n_theta, self.design.rank
        out = np.zeros((self.n_free,) * 2)
        cross = moving.v.dot(moving.rest)  # f'V^-1 (f, X) and, minus, f'r_rho
        out[:nt, :nt] = 0.5 * (cross[:, :nt] + cross[:, :nt].T)
        if p:
            out[:nt, :nt] += cross[:, nt : nt + p] @ np.linalg.solve(moving.fixed[:, :p], cross[:, nt : nt + p].T)
        out[:nt, nt:] = 2.0 * cross[:, nt:]
        out[nt : nt + p, nt:] = 2.0 * moving.fixed
        out[nt:, :nt], out[nt + p :, nt : nt + p] = out[:nt, nt:].T, out[nt : nt + p, nt + p :].T
        out[nt + p :, nt + p :] = -2.0 * moving.extra
        return (out + out.T) / 2

    def information(self, psi: Array, free: NDArray[np.intp], sd: Array, blocks: int) -> Array:
        """Second derivatives of the deviance at psi in some of its parameters, the same probes throughout.

        Central differences of the gradient over a tenth of a standard error: probes and modes leave the gradient an
        error of some 1e-6 of one, and third derivatives are left out.

        Parameters
        ----------
        psi : (n_free,)
        free : (k,)
            Places in psi.
        sd : (n_free,)
            Standard errors, about.
        blocks : int
            Of eight probes.
        """
        out = np.empty((len(free),) * 2)
        for k, a in enumerate(free):
            unit = np.zeros(self.n_free)
            unit[a] = STEP * sd[a]
            ends = [self.derivatives(psi + sign * unit, blocks).gradient[free] for sign in (1.0, -1.0)]
            out[k] = (ends[0] - ends[1]) / (2.0 * unit[a])
        return (out + out.T) / 2

    # ------------------------------------------------------------------ what is read off

    def value(self, psi: Array) -> float:
        """The deviance at psi, as its Monte Carlo error leaves it."""
        return self.deviance(psi, self.blocks)[0]

    def modes(self) -> list[Array]:
        """Conditioned b (q, l) of each group where the modes were last taken."""
        return by_group(self.levels, self.here().b)

    def cond_var(self) -> list[Array]:
        """Conditioned covariances (q, l, l) of b given the data, of each group, there: estimates by probes."""
        identity = [np.eye(group.n_columns) for group in self.design.groups]
        return conditional_blocks(self.here().system, self.design.groups, identity, self.control.seed)[0]

    def conditional(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """The same of each term in the user's coordinates, and Monte Carlo errors of its roots."""
        return conditional_covariances(self.here().system, self.design, 1.0, self.control.seed)

    def forms(self, codes: list[NDArray[np.int64]], z: list[Array]) -> Array:
        """Z'Hz (n,) of combinations of conditioned effects, H = Lambda M^-1 Lambda', there: a solve for each.

        Parameters
        ----------
        codes : list of (n,) int64
            Level of each grouping factor; -1 for none.
        z : list of (n, l)
        """
        return random_forms(self.here().system, codes, z)

    def effective(self) -> float:
        """Sum w_i g_i there, the modes' share of the effective number of parameters, from 64 probes."""
        at = self.here()
        w = np.ascontiguousarray(at.rows[1][:, None])
        return float(self.probes.traces(at.system, 64 // WIDTH, w).rows.mean())

    def here(self) -> Modes:
        """The modes last taken."""
        if self.modes_now is None:
            raise NumericalError("no modes were taken here")
        return self.modes_now


def check_model(design: GlmmDesign, control: Control) -> None:
    """Refuse what this engine does not do for generalised models.

    Raises
    ------
    ModelError
        Families with several parameters, expected weights, variances that no data can tell.
    """
    family: Any = design.family
    if family.vector:
        raise ModelError(
            f"the iterative engine takes families with one parameter of their own at most, not {family.name}: use "
            "another engine"
        )
    if control.weights == "expected":
        raise ModelError("the iterative engine has observed weights only: leave Control(weights=) out")
    refuse_unidentified(design.unidentified)
