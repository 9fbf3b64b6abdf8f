"""Laplace's approximation for any number of grouping factors, on the linear model's engine with the rows' weights.

    h(u) = |u|^2 - 2 sum l(X beta + Z b + offset),  b = Lambda u       M = Lambda'Z'WZ Lambda + I
    d    = h(u~) + log|M|

With leverages g_i = z_i'Lambda M^-1 Lambda'z_i, c = kappa g, b_c = Lambda M^-1 Lambda'Z'c, tau = Z'(c - WZ b_c) and
t = Z's, the gradient takes one adjoint solve however many parameters there are:

    dd/dgamma    X'(c - WZ b_c - 2 s)
    dd/dL_k      2 G_k L_k,   G_k = sum_j ([Z_k'V^-1 Z_k]_jj - t_j t_j' + (t_j tau_j' + tau_j t_j') / 2)
    dd/drho      sum (-2 l_rho + g w_rho + (Z b_c) s_rho)

The modes are u~ = Lambda't, also where Lambda is singular, so it is t that is predicted at the next parameters: with
f_a = Z v_a, v_a = d(Lambda Lambda')/dtheta_a t, its derivatives are -Z'V^-1 f_a, -Z'V^-1 x_j and Z'r_rho, columns of
the same solve. The model Hessian is the average information (Gilmour, Thompson and Cullis 1995) of the working model
and the exact curvature of Sigma = L L'. Breslow and Clayton (1993), J. Am. Stat. Assoc. 88; Kristensen et al. (2016),
J. Stat. Softw. 70(5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.callback import Callback
from fastlmm_core._native.criterion.row_forms import leverages
from fastlmm_core.core.control import Control
from fastlmm_core.core.curvature import second_derivatives
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.glmm.effects import Effects
from fastlmm_core.core.layout import plan
from fastlmm_core.core.theta import group_factors
from fastlmm_core.core.workspaces import TakenInTurn
from fastlmm_core.errors import NumericalError

__all__ = ["Laplace", "solved"]

Array = NDArray[np.float64]

MAX_STEPS = 100

SMALL = 1e-20
"""Squared Newton decrement expected of the next step at which the modes are found."""

SLOW = ((2.0, 1e-3), (20.0, 0.03), (np.inf, 0.1))
"""A step with an old factor that shrinks the decrement by less calls for a new one: by what a factor costs in steps."""

CROOKED = 0.05
"""Share of a step below which the observed weights are no guide to the next one."""

SURE = 1e-4
"""Squared Newton decrement below which even a factor that costs little is used again."""


def solved(a: Array, b: Array) -> Array:
    """A^-1 b; NumericalError where A is singular."""
    try:
        return np.asarray(np.linalg.solve(a, b))
    except np.linalg.LinAlgError as error:
        raise NumericalError("the fixed effects' information is singular: a coefficient may run to infinity") from error


class Laplace(TakenInTurn):
    """The engine of a design with any number of grouping factors, and of families written in Python.

    Parameters
    ----------
    design : GlmmDesign
    control : Control
    """

    def __init__(self, design: GlmmDesign, control: Control) -> None:
        # 1e-8 in the deviance is 1e-4 standard errors, and evaluations are dear
        self.patience = 100.0 * max(1.0, design.n / 1e5)
        self.design, self.control, self.expected = design, control, control.weights == "expected"
        self.nobody_has_it()
        products = design.products
        self.layout = plan(products, control)
        self.rows = self.layout.rows(products)
        self.evaluator = self.layout.working_evaluator()
        self.evaluator.load(self.rows.values)
        self.threads = self.layout.threads
        self.xt = np.ascontiguousarray(design.columns.T)
        n = design.n
        self.out = np.empty((5 + 3 * design.family.n_extra, n))
        self.criterion = Callback(design.n_free, self.value, self._derivatives, float(n))
        self.own = own = int(self.layout.leads)  # groups beside the tail
        self.size = sum(g.size for g in design.groups[:own]), sum(g.size for g in design.groups[own:])
        self.places = [
            offset[:, None] + np.arange(group.n_columns)
            for group, offset in zip(design.groups[own:], self.layout.offsets, strict=True)
        ]
        self.y = np.zeros(n)
        m = max(1, self.size[1])
        step = 60.0 * n + 4.0 * m * m  # flops, by time
        factor = (self.layout.factor_bytes / 8.0) ** 2 / (3.0 * m)
        self.slow = next(slow for ratio, slow in SLOW if factor < ratio * step)
        self.n_factors = 0
        # rows of several parameters bend more: the square of a step promises less
        self.small = SMALL * 1e-6 if design.family.vector else SMALL
        self._reset()

    @property
    def arguments(self) -> tuple[Any, ...]:
        """See `TakenInTurn`."""
        return self.design, self.control

    def _reset(self) -> None:
        """Modes begin at zero."""
        q, m = self.size
        self.t_at = Effects(np.zeros((1, q)), np.zeros((1, m)))
        self.slopes: Effects | None = None
        self.psi_at = np.zeros(self.design.n_free)
        self.theta_at, self.in_hand = self.psi_at[: self.design.n_theta], False
        self.psi_now: Array | None = None
        self.constants: tuple[Any, tuple[float, Any, Any]] | None = None

    def set_response(self, y: Array) -> None:
        """Replace the response (n,), already checked."""
        self.y, self.holder = y, None
        self._reset()

    def place(self) -> tuple[Array, ...]:
        """T = Z's where derivatives were last taken, of the leading factor (q l,) and the tail (m,), for `begin_at`."""
        return self.t_at.lead[0], self.t_at.tail[0]

    def begin_at(self, place: tuple[Array, ...]) -> None:
        """Look for the next modes from a place."""
        self._reset()
        self.t_at = Effects(*(part[None] for part in place))

    # ------------------------------------------------------------------ Lambda

    def factors(self, theta: Array) -> list[Array]:
        """Conditioned L (l, l) of each group."""
        return group_factors(self.design.theta_map.index, theta, [g.n_columns for g in self.design.groups])

    def by_group(self, x: Effects, k: int = 0) -> list[Array]:
        """The k-th vector as (q, l) of each group."""
        first = [x.lead[k].reshape(group.n_levels, group.n_columns) for group in self.design.groups[: self.own]]
        return [*first, *(x.tail[k][places] for places in self.places)]

    def from_groups(self, parts: list[Array]) -> Effects:
        """One vector from (q, l) of each group."""
        tail = np.zeros((1, self.size[1]))
        for places, part in zip(self.places, parts[self.own :], strict=True):
            tail[0, places] = part
        lead = parts[0].reshape(1, -1) if self.own else np.empty((1, 0))
        return Effects(np.ascontiguousarray(lead), tail)

    def spherical(self, lam: list[Array], t: Effects) -> tuple[Effects, Effects]:
        """U = Lambda't and b = Lambda u."""
        u = [part @ f for part, f in zip(self.by_group(t), lam, strict=True)]
        return self.from_groups(u), self.from_groups([part @ f.T for part, f in zip(u, lam, strict=True)])

    def linear(self, b: Effects) -> Array:
        """Z b, (k, n)."""
        return self.rows.products(b.lead, b.tail)

    def solve(self, theta: Array, d: Array) -> tuple[Effects, Effects, Effects]:
        """Z'D for D (k, n), Lambda M^-1 Lambda'Z'D, and what is left of Z'D: Z'D - Z'WZ b."""
        lead, tail = self.rows.sums(np.ascontiguousarray(d))
        b_lead, b_tail, t_lead, t_tail = self.evaluator.solve(theta, lead, tail)
        return Effects(lead, tail), Effects(b_lead, b_tail), Effects(t_lead, t_tail)

    # ------------------------------------------------------------------ value

    def row_pass(self, eta: Array, rho: Any) -> float:
        """Rows' derivatives into ``out``; the sum of l, those of l_rho and l_rho rho into ``lr`` and ``lrr``."""
        design = self.design
        with np.errstate(all="ignore"):
            total, self.lr, self.lrr = design.family.working(
                self.y, eta, design.m, design.freq, rho, self.out, True, self.threads
            )
        return total

    def constant(self, rho: Any) -> tuple[float, Any, Any]:
        """The part of the log-likelihood that is free of eta, with derivatives in rho; kept for the next call."""
        if self.constants is None or not np.array_equal(self.constants[0], rho):
            self.constants = rho, self.constant_of(rho)
        return self.constants[1]

    def constant_of(self, rho: Any) -> tuple[float, Any, Any]:
        """The same, of any rho."""
        design = self.design
        return design.family.constant(self.y, design.m, design.freq, rho)

    def predicted(self, psi: Array) -> Effects:
        """T at psi, to first order from where derivatives were last taken."""
        if self.slopes is None:
            return self.t_at
        return self.t_at + self.slopes.combined(psi - self.psi_at)

    def value(self, psi: Array) -> float:
        """The deviance at psi.

        Raises
        ------
        NumericalError
            There are no modes: the rows' likelihood is zero, or curved the wrong way.
        """
        design = self.design
        theta, rho = psi[: design.n_theta].copy(), design.rho(psi)
        self.theta, self.psi_now = theta, None
        self.lam = self.factors(theta)
        h, self.b, fresh = self.modes_at(psi, rho)
        self.in_hand = False
        if (self.expected or not fresh) and not self.factored(self.out[2] if self.expected else self.out[1]):
            raise NumericalError("the rows' weights are not those of a minimum")
        value = h + self.logdet - 2.0 * self.constant(rho)[0]
        self.psi_now = psi.copy()
        return value

    def modes_at(self, psi: Array, rho: float) -> tuple[float, Effects, bool]:
        """H, b and whether the factor in hand is theirs, from the predicted modes, else from the last ones or zero.

        Raises
        ------
        NumericalError
            There are none from any of them.
        """
        base = self.design.fixed_part(psi)
        failure = NumericalError("the likelihood is zero at the modes' start")
        for t in (self.predicted(psi), self.t_at, self.t_at * 0.0):
            u, b = self.spherical(self.lam, t)
            zb = self.linear(b)[0]
            h = float(u.dot(u)[0, 0]) - 2.0 * self.row_pass(base + zb, rho)
            if not np.isfinite(h):
                continue
            try:
                there, h, u, b, zb = self.follow_modes(t, base, rho, h, u, b, zb)
                return (h, b, False) if there else self.find_modes(base, rho, h, u, b, zb)
            except NumericalError as error:
                failure = error
        raise failure

    def find_modes(
        self, base: Array, rho: float, h: float, u: Effects, b: Effects, zb: Array
    ) -> tuple[float, Effects, bool]:
        """H and b at the modes, whose rows are in ``out`` then, and whether the factor in hand is theirs.

        Newton's method; near the modes the factor is used again with the gradient refreshed.
        """
        s, w = self.out[0], self.out[1]
        held = np.empty_like(w)
        have, observed, last, guarded = False, True, np.inf, False
        for _ in range(MAX_STEPS):
            if not have:
                held[:] = w
                observed = not guarded and self.factored(held)
                if not observed:
                    np.maximum(w, 0.0 if self.design.family.vector else self.out[2], out=held)
                    if not self.factored(held):
                        raise NumericalError("the rows' weights are not those of a minimum")
                last = np.inf
            sums, b_new, t_new = self.solve(self.theta, np.stack([s, s + held * zb]))
            u_new, _ = self.spherical(self.lam, t_new[1:2])
            slope, _ = self.spherical(self.lam, sums[0:1])
            step, db = u_new - u, b_new[1:2] - b
            decrement = float((slope - u).dot(step)[0, 0])
            if not np.isfinite(decrement):
                raise NumericalError("the modes' search broke down")
            if have and decrement > self.slow * last:
                have = False
                continue
            first = not have
            dz = self.linear(db)[0]
            value, scale = self.walk(base + zb, rho, h, u, step, dz)
            if scale == 0.0 and decrement >= 1e-6:  # more than rounding is left
                if not observed:
                    raise NumericalError("no step towards the modes lowers the penalised deviance")
                guarded, have = True, False  # M all but singular: its direction is none
                continue
            guarded = scale < CROOKED
            h = value
            u, b, zb = u + step * scale, b + db * scale, zb + scale * dz
            # Newton's steps square the error, those of an old factor shrink it at their rate so far
            rate = decrement if first and observed else decrement / last if not first else 1.0
            if decrement * rate < self.small or scale == 0.0:
                return h, b, first and decrement < SMALL
            have = scale == 1.0 and (self.slow > SLOW[0][1] or decrement < SURE)
            last = decrement
        raise NumericalError(f"the modes were not found in {MAX_STEPS} steps")

    def walk(self, eta: Array, rho: float, h: float, u: Effects, step: Effects, dz: Array) -> tuple[float, float]:
        """H along a step from (u, eta), its rows left in ``out``, and the share of it that was taken: 0 for none."""
        scale = 1.0
        while scale >= 1e-10:
            at = u + step * scale
            value = float(at.dot(at)[0, 0]) - 2.0 * self.row_pass(eta + scale * dz, rho)
            if value <= h + 1e-12 * (abs(h) + 1.0):
                return value, scale
            scale *= 0.5
        self.row_pass(eta, rho)
        return h, 0.0

    def follow_modes(
        self, t: Effects, base: Array, rho: float, h: float, u: Effects, b: Effects, zb: Array
    ) -> tuple[bool, float, Effects, Effects, Array]:
        """Towards the modes by the inverse that the last derivatives left: whether they are reached, and h, u, b, Z b.

        The modes are the root of r(t) = Z's - t with b = Lambda Lambda't, and (I + Z'WZ Lambda Lambda')^-1 r is what
        `Evaluator.solve` leaves of r: taken at the last theta and weights it is a chord for the new ones.
        """
        last, size = np.inf, float(sum(self.size))
        for _ in range(MAX_STEPS if self.in_hand else 0):
            lead, tail = self.rows.sums(np.ascontiguousarray(self.out[0:1]))
            rest = Effects(lead, tail) - t
            _, _, d_lead, d_tail = self.evaluator.solve(self.theta_at, rest.lead, rest.tail)
            move = Effects(d_lead, d_tail)
            decrement = abs(float(self.spherical(self.lam, rest)[0].dot(self.spherical(self.lam, move)[0])[0, 0]))
            if not decrement <= min(self.slow * last, size):  # nor where it is not a number
                break
            t = t + move
            u_new, b_new = self.spherical(self.lam, t)
            zb_new = self.linear(b_new)[0]
            value = float(u_new.dot(u_new)[0, 0]) - 2.0 * self.row_pass(base + zb_new, rho)
            if not value <= h + 1e-12 * (abs(h) + 1.0):
                self.row_pass(base + zb, rho)
                break
            h, u, b, zb = value, u_new, b_new, zb_new
            if decrement * (decrement / last if last < np.inf else self.slow) < SMALL:
                return True, h, u, b, zb
            last = decrement
        return False, h, u, b, zb

    def factored(self, w: Array) -> bool:
        """Factor M with other weights; whether it is positive definite."""
        self.rows.refill(w)
        self.n_factors += 1
        self.in_hand = False  # what the last derivatives left is overwritten, wherever the search ends
        try:
            self.logdet = self.evaluator.value(self.theta)
        except NumericalError:
            return False
        return bool(np.isfinite(self.logdet))

    # ------------------------------------------------------------------ derivatives

    def derivatives(self, psi: Array) -> tuple[float, Array, Array]:
        """Deviance, gradient and model Hessian at psi."""
        value = self.value(psi)
        return value, *self._derivatives()

    def _derivatives(self) -> tuple[Array, Array]:
        """Gradient and model Hessian where the value was last taken."""
        design, theta, out = self.design, self.theta, self.out
        if self.psi_now is None:
            raise NumericalError("no value was taken here")
        nt, p, extra = design.n_theta, design.rank, design.family.n_extra
        s, w = out[0], out[1]
        self.evaluator.invert(theta)
        g = leverages(self.evaluator, theta, self.rows)
        traces = self.evaluator.traces(theta)
        c = self.weight_slopes(g)
        if self.expected:
            self.rows.refill(w)
            self.n_factors += 1
        lead, tail = self.rows.sums(s[None].copy())
        t = Effects(lead, tail)
        v = self.directions(t)
        d = np.empty((1 + p + nt + extra, design.n))
        d[0] = c
        np.multiply(w, self.xt, out=d[1 : 1 + p])
        np.multiply(w, self.linear(v), out=d[1 + p : 1 + p + nt])
        if extra:
            d[-extra:] = out[5 : 5 + extra]
        x, f = slice(1, 1 + p), slice(1 + p, 1 + p + nt)
        sums, b, rest = self.solve(theta, d)
        xx = d[x] @ self.xt.T - sums[x].dot(b[x])
        shift = self.fixed_adjoint(xx, self.xt @ c - sums[x].dot(b[0:1])[:, 0])
        adjoint, tau = b[0:1] - b[x].combined(shift), rest[0:1] - rest[x].combined(shift)
        zb = self.linear(adjoint)[0] + shift @ self.xt
        blocks = []
        for trace, tj, tau_j in zip(traces, self.by_group(t), self.by_group(tau), strict=True):
            cross = tj.T @ tau_j
            blocks.append(trace - tj.T @ tj + 0.5 * (cross + cross.T))
        by_theta, curvature = self.evaluator.chain(theta, blocks)
        gradient = np.empty(design.n_free)
        gradient[:nt] = by_theta
        gradient[nt : nt + p] = self.xt @ (c - w * zb - 2.0 * s)
        hessian = np.zeros((design.n_free,) * 2)
        fx = v.dot(rest[x])
        ff = v.dot(rest[f])
        hessian[:nt, :nt] = 0.5 * (ff + ff.T) + curvature
        if p:
            hessian[:nt, :nt] += fx @ solved(xx, fx.T)
        hessian[:nt, nt : nt + p] = 2.0 * fx
        hessian[nt : nt + p, :nt] = 2.0 * fx.T
        hessian[nt : nt + p, nt : nt + p] = xx + xx.T
        slopes = Effects(
            np.concatenate([-rest.lead[f], -rest.lead[x], rest.lead[1 + p + nt :]]),
            np.concatenate([-rest.tail[f], -rest.tail[x], rest.tail[1 + p + nt :]]),
        )
        if extra:
            _, first, second = self.constant(design.rho(self.psi_now))
            last, own = slice(1 + p + nt, None), slice(nt + p, None)
            score_slope, weight_slope = out[5 : 5 + extra], out[5 + extra :][:extra]
            if self.expected:
                weight_slope = out[5 + 2 * extra :]
            gradient[own] = -2.0 * (self.lr + first) + weight_slope @ g + score_slope @ zb
            rows = np.concatenate([v.dot(rest[last]), self.xt @ score_slope.T - sums[x].dot(b[last])])
            hessian[own, : nt + p] = -2.0 * rows.T
            hessian[: nt + p, own] = -2.0 * rows
            hessian[own, own] = -2.0 * (self.lrr + second) - 2.0 * sums[last].dot(b[last])
            idle = design.idle(self.psi_now)
            gradient[idle], hessian[idle], hessian[:, idle] = 0.0, 0.0, 0.0
            hessian[idle, idle] = 1.0
        if not (np.isfinite(gradient).all() and np.isfinite(hessian).all()):
            raise NumericalError("the gradient is not finite")
        self.t_at, self.slopes, self.psi_at = t, slopes, self.psi_now
        self.theta_at, self.in_hand = theta, True
        return self.reduced(gradient, hessian)

    def weight_slopes(self, g: Array) -> Array:
        """C (n,), the slope of log|M| in each row's linear predictor, from the leverages."""
        return np.asarray(g * (self.out[4] if self.expected else self.out[3]))

    def fixed_adjoint(self, xx: Array, right: Array) -> Array:
        """The adjoint's part along X (rank,): none, as gamma is a parameter here and not found with the modes."""
        return np.zeros(len(right))

    def reduced(self, gradient: Array, hessian: Array) -> tuple[Array, Array]:
        """Derivatives as the optimiser has them: all parameters are its own here."""
        return gradient, hessian

    def directions(self, t: Effects) -> Effects:
        """v_a = d(Lambda Lambda')/dtheta_a t of every covariance parameter, (n_theta, .)."""
        index = self.design.theta_map.index.tolist()
        parts, sizes = self.by_group(t), self.size
        out = Effects(np.zeros((len(index), sizes[0])), np.zeros((len(index), sizes[1])))
        for a, (g, r, c) in enumerate(index):
            column = self.lam[g][:, c]
            part = parts[g]
            v = part[:, r : r + 1] * column
            v[:, r] += part @ column
            if g < self.own:
                out.lead[a] = v.ravel()
            else:
                out.tail[a, self.places[g - self.own]] = v
        return out

    # ------------------------------------------------------------------ what is read off

    def locate(self, psi: Array) -> float:
        """The modes at psi, where their deviance is known as well."""
        return self.value(psi)

    def settled(self, psi: Array) -> Array:
        """All of psi is the optimiser's."""
        return psi

    def information(self, psi: Array) -> Array:
        """Second derivatives of the deviance at psi."""
        return second_derivatives(self.derivatives, psi)

    def modes(self) -> list[Array]:
        """Conditioned b (q, l) of each group where the deviance was last taken."""
        return self.by_group(self.b)

    def forms(self, x: Effects) -> Array:
        """X'Hx (k,) with H = Lambda M^-1 Lambda', where the deviance was last taken."""
        lead, tail, *_ = self.evaluator.solve(self.theta, x.lead, x.tail)
        return np.asarray((x.lead * lead).sum(axis=1) + (x.tail * tail).sum(axis=1))

    def leverages(self) -> Array:
        """z_i'Hz_i (n,) of the design's rows, likewise."""
        self.evaluator.invert(self.theta)
        return np.asarray(leverages(self.evaluator, self.theta, self.rows))

    def cond_var(self) -> list[Array]:
        """Conditioned covariances (q, l, l) of b given the data, of each group, where the deviance was last taken."""
        lead, tail = self.evaluator.cond_var(self.theta)
        return [
            *[lead] * self.own,
            *(
                blocks[np.argsort(np.argsort(offset, kind="stable"), kind="stable")]
                for offset, blocks in zip(self.layout.offsets, tail, strict=True)
            ),
        ]
