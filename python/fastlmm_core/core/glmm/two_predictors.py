"""Laplace's approximation where rows have two linear predictors, each with random effects: counts and their zero part.

With eta1 the counts' predictor, eta2 the log odds and l(eta1, eta2) a row's log density, a row's observed weights are
w11 = -l_11, w12 = -l_12 and w22 = -l_22, and

    w11 z1 z1' + w12 (z1 z2' + z2 z1') + w22 z2 z2'
        = (w11 - w12) z1 z1' + (w22 - w12) z2 z2' + w12 (z1 + z2)(z1 + z2)'

so that a model of n such rows is one of 3 n rows, those of [Z1 0], [0 Z2] and [Z1 Z2], with weights of one number each:
the scores are (l_1, l_2, 0), and the adjoint's right-hand side is, with leverages g_a, g_b and g_c of the three kinds,

    c_1 = g_a d(w11 - w12)/d eta1 + g_b d(w22 - w12)/d eta1 + g_c d w12/d eta1,    c_2 likewise in eta2,    c_3 = 0

All else is `Laplace`'s. Coefficients of the log odds are fixed effects there; outside they are, with the covariance
parameters of the log odds' random effects, elements of the family's rho.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.callback import Callback
from fastlmm_core.core.control import Control
from fastlmm_core.core.curvature import second_derivatives
from fastlmm_core.core.glmm.design import GlmmDesign
from fastlmm_core.core.glmm.laplace import SMALL, Laplace
from fastlmm_core.core.terms import Term
from fastlmm_core.core.workspaces import TakenInTurn
from fastlmm_core.errors import ModelError
from fastlmm_core.families.two_part import TwoPart

__all__ = ["TwoPredictors", "ZeroPart"]

Array = NDArray[np.float64]


NOTHING = 1e-6
"""Standard deviation, conditioned, that is zero."""


@dataclass(frozen=True, eq=False)
class ZeroPart:
    """The log odds of a fit's zero part, with the attributes of a fit that tables of random effects read.

    Attributes
    ----------
    theta : (n_theta,)
        Covariance parameters term by term.
    L : tuple of (l, l)
    beta : (k,)
        Coefficients of the log odds.
    b : tuple of (q, l)
        Conditional modes.
    sigma : float
        One.
    """

    theta: Array
    L: tuple[Array, ...]
    beta: Array
    b: tuple[Array, ...]
    covariances: tuple[Array, ...]
    sigma: float = 1.0
    unidentified: None = None

    def cond_var(self) -> tuple[Array, ...]:
        """Conditional covariances of each term's effects, tuple of (q, l, l)."""
        return self.covariances

    def estimable(self, rows: Array) -> NDArray[np.bool_]:
        """The columns of a zero part are independent: whatever is asked of them is determined."""
        return np.ones(len(rows), bool)


class StackedLaplace(Laplace):
    """The engine of 3 n rows.

    Parameters
    ----------
    design : GlmmDesign
        Of these rows; its family is the counts' own.
    family : TwoPart
    control : Control
    """

    def __init__(self, design: GlmmDesign, family: TwoPart, control: Control) -> None:
        super().__init__(design, control)
        self.family = family
        self.small = SMALL * 1e-6  # as of families with several parameters

    @property
    def arguments(self) -> tuple[GlmmDesign, TwoPart, Control]:
        """See `TakenInTurn`."""
        return self.design, self.family, self.control

    def row_pass(self, eta: Array, rho: float) -> float:
        """As `Laplace.row_pass`, but that ``out`` has slopes of the weights in eta1 and eta2 where k and ke are."""
        n, m, freq = self.third
        each = m * freq if len(freq) else m
        with np.errstate(all="ignore"):
            rows = self.family.joint_rows(self.y, eta[:n], eta[n : 2 * n], rho, self.threads) * each
            total = float(rows[0].sum())
        _, s, w, we, k, lr, lrr, sr, wr, l_z, l_zz, s_z, w_z, s2_r, v_z, x_z, v_r, x_r = rows
        x, v, out = -l_zz, -s_z, self.out
        _three(out[0], s, l_z, 0.0)
        _three(out[1], w - v, x - v, v)
        _three(out[2], np.maximum(we, 0.0), np.maximum(x, each * 1e-3), 0.0)
        _three(out[3], k - w_z, v_z - w_z, w_z)  # d w12 / d eta1 is d w11 / d eta2, d w22 / d eta1 d w12 / d eta2
        _three(out[4], w_z - v_z, x_z - v_z, v_z)
        if self.design.family.n_extra:
            _three(out[5], sr, s2_r, 0.0)
            _three(out[6], wr - v_r, x_r - v_r, v_r)
        self.lr, self.lrr = float(lr.sum()), float(lrr.sum())
        return total

    def constant_of(self, rho: float) -> tuple[float, float, float]:
        """That of the positive counts."""
        seen, (_, m, freq) = self.y > 0.0, self.third
        return self.design.family.constant(self.y[seen], m[seen], freq[seen] if len(freq) else freq, rho)

    @property
    def third(self) -> tuple[int, Array, Array]:
        """How many responses there are, and their weights and frequencies."""
        n = self.design.n // 3
        return n, self.design.m[:n], self.design.freq[:n]

    def weight_slopes(self, g: Array) -> Array:
        """C of the module's note."""
        c = np.zeros_like(g)
        n = len(g) // 3
        for j in range(2):
            c[j * n : (j + 1) * n] = (g * self.out[3 + j]).reshape(3, n).sum(axis=0)
        return c


def _three(out: Array, first: Array, second: Array, third: Array | float) -> None:
    n = len(first)
    out[:n], out[n : 2 * n], out[2 * n :] = first, second, third


class TwoPredictors(TakenInTurn):
    """The engine of a design whose family has a zero part with random effects.

    Parameters
    ----------
    design : GlmmDesign
        Its family is a `TwoPart` with effects, its `zero_terms` theirs.
    control : Control
    """

    def __init__(self, design: GlmmDesign, control: Control) -> None:
        family = design.family
        assert isinstance(family, TwoPart)
        self.design, self.control, self.family = design, control, family
        n, k = design.n, len(family.columns)
        zero = np.ones((n, 1)) if family.zero is None else family.zero
        known = np.zeros(n) if family.offset is None else family.offset
        none, first = np.zeros((n, k)), np.zeros((n, design.rank))
        X = np.block([[design.columns, none], [first, zero], [design.columns, zero]])
        codes: dict[int, NDArray[np.int32]] = {}
        terms = [_tripled(term, (1.0, 0.0, 1.0), codes) for term in design.terms]
        terms += [_tripled(term, (0.0, 1.0, 1.0), codes) for term in design.zero_terms]
        self.stacked = GlmmDesign(
            X,
            terms,
            family.base,
            weights=np.tile(design.m, 3),
            freq_weights=np.tile(design.freq, 3) if len(design.freq) else None,
            offset=np.concatenate([design.offset, known, design.offset + known]),
        )
        if self.stacked.rank != design.rank + k:
            raise ModelError("the columns of the zero part depend on each other: leave some out")
        self.inner = StackedLaplace(self.stacked, family, control)
        self.patience = self.inner.patience
        self.nobody_has_it()
        self.transform = self.stacked.to_conditioned @ self._arranged()
        self.back = np.linalg.inv(self.transform)
        self.criterion = Callback(design.n_free, self.value, self._derivatives, float(n))

    @property
    def arguments(self) -> tuple[GlmmDesign, Control]:
        """See `TakenInTurn`."""
        return self.design, self.control

    def _arranged(self) -> Array:
        """(n_free, n_free): the stacked design's (theta, beta, rho) from psi = (theta, gamma, zeta, own, theta2).

        Its columns are this design's conditioned ones, so that its beta is (gamma, zeta).
        """
        design, family = self.design, self.family
        nt, p, k, own = design.n_theta, design.rank, len(family.columns), family.base.n_extra
        last = len(family.effect_names)
        out = np.zeros((design.n_free,) * 2)
        out[:nt, :nt] = design.theta_map.to_user
        out[nt : nt + last, design.n_free - last :] = np.eye(last)
        out[nt + last :, nt : nt + p + k + own] = np.eye(p + k + own)
        return out

    # ------------------------------------------------------------------ as `Engine` has it

    def set_response(self, y: Array) -> None:
        """Replace the response (n,), already checked."""
        self.holder = None
        self.inner.set_response(y)

    def place(self) -> tuple[Array, ...]:
        """The modes where derivatives were last taken, for `begin_at`."""
        return self.inner.place()

    def begin_at(self, place: tuple[Array, ...]) -> None:
        """Look for the next modes from a place."""
        self.inner.begin_at(place)

    def value(self, psi: Array) -> float:
        """The deviance at psi."""
        return self.inner.value(self.transform @ psi)

    def locate(self, psi: Array) -> float:
        """The modes at psi, where their deviance is known as well."""
        return self.value(psi)

    def derivatives(self, psi: Array) -> tuple[float, Array, Array]:
        """Deviance, gradient and model Hessian at psi."""
        value = self.value(psi)
        return value, *self._derivatives()

    def _derivatives(self) -> tuple[Array, Array]:
        gradient, hessian = self.inner._derivatives()
        return self.transform.T @ gradient, self.transform.T @ hessian @ self.transform

    def settled(self, psi: Array) -> Array:
        """Psi with the log odds' covariance parameters turned: no diagonal is negative, tiny ones are zero."""
        nt = self.stacked.n_theta
        inner = self.transform @ psi
        turned = self.stacked.theta_map.canonical(inner[:nt]).copy()
        turned[self.stacked.theta_map.diagonal & (np.abs(turned) < NOTHING)] = 0.0  # an error of its square
        if np.array_equal(turned, inner[:nt]):
            return psi
        return np.asarray(self.back @ np.concatenate([turned, inner[nt:]]))

    def is_singular(self, psi: Array) -> bool:
        """Whether some factor, of either part, is (nearly) singular."""
        return self.stacked.theta_map.is_singular((self.transform @ psi)[: self.stacked.n_theta])

    def information(self, psi: Array) -> Array:
        """Second derivatives of the deviance at psi."""
        return second_derivatives(self.derivatives, psi)

    def modes(self) -> list[Array]:
        """Conditioned b (q, l) of each group of the counts' terms, where the deviance was last taken."""
        return self._by_group(self.stacked.user_modes(self.inner.modes()))

    def cond_var(self) -> list[Array]:
        """Their conditioned covariances (q, l, l); zero between the terms of a group."""
        return self._by_group(self.stacked.user_covariances(self.inner.cond_var()), 2)

    def _by_group(self, by_term: Sequence[Array], sides: int = 1) -> list[Array]:
        """Conditioned values of each group of the design from the user's of each of its terms."""
        out = []
        for group in self.design.groups:
            values = np.zeros((group.n_levels, *(group.n_columns,) * sides))
            for k, o in zip(group.terms, group.offsets, strict=True):
                back = np.linalg.inv(self.design.transforms[k])
                l = len(back)
                part = by_term[k] @ back.T
                if sides == 2:
                    values[:, o : o + l, o : o + l] = back @ part
                else:
                    values[:, o : o + l] = part
            out.append(values)
        return out

    # ------------------------------------------------------------------ the zero part

    def zero_part(self, psi: Array) -> ZeroPart:
        """The log odds' coefficients and random effects, where the deviance was last taken: at psi."""
        first, rho = len(self.design.terms), self.design.rho(psi)
        return ZeroPart(
            self.family.zero_theta(rho),
            tuple(self.family.zero_factors(rho)),
            self.family.split(rho)[0],
            self.stacked.user_modes(self.inner.modes())[first:],
            self.stacked.user_covariances(self.inner.cond_var())[first:],
        )

    def family_here(self) -> TwoPart:
        """The family whose offset has the log odds' random effects at their modes, where the deviance was taken."""
        out = np.zeros(self.design.n) if self.family.offset is None else self.family.offset.copy()
        modes = self.stacked.user_modes(self.inner.modes())[len(self.design.terms) :]
        for term, b in zip(self.design.zero_terms, modes, strict=True):
            rows = b[term.codes]
            out += rows[:, 0] if term.z is None else np.einsum("ij,ij->i", term.z, rows)
        return self.family.at(self.family.zero, out)

    def leverages(self) -> Array:
        """z_i'Hz_i (n,) of the counts' predictors, where the deviance was last taken."""
        return self.inner.leverages()[: self.design.n]


def _tripled(term: Term, share: tuple[float, float, float], codes: dict[int, Any]) -> Term:
    """A term of 3 n rows whose columns are multiplied by a share in each third."""
    z = np.ones((len(term.codes), 1)) if term.z is None else term.z
    kept = codes.get(id(term.codes))
    if kept is None:
        kept = codes[id(term.codes)] = np.tile(term.codes, 3)
        kept.setflags(write=False)
    return Term(kept, np.concatenate([part * z for part in share]), term.cov, term.n_levels)
