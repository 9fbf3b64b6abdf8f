"""What Satterthwaite's method needs of many fits with one design, from a few evaluations about each estimate.

With H(theta) the matrix of X'V^-1X = L(theta) L(theta)' at the estimate, Cov(beta) / sigma^2 = H H', H = L^-T, and its
derivative along theta_a is H D_a H' with

    D_a = d/dtheta_a  L0' (L(theta) L(theta)')^-1 L0,     L0 = L at the estimate.                                  (1)

L and the gradient at the points of a difference give D, the profiled Hessian and the derivative of r^2 at once; the
Hessian with sigma follows as for a single fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastlmm_core._native.criterion.probes import probe_many

if TYPE_CHECKING:
    from fastlmm_core._native.criterion.evaluator import Evaluator
    from fastlmm_core.core.crossprod import DesignProducts
    from fastlmm_core.core.products import Responses

__all__ = ["ManyInformation", "Probes", "empty_information", "fill_information", "probe"]

Array = NDArray[np.float64]

STEP, WEIGHTS = 8e-4, ((1, 8.0 / 12.0), (2, -1.0 / 12.0))
"""Step of the differences, relative to a parameter's own scale, and the weights of its multiples."""

WIDE_STEP, WIDE_WEIGHTS = 1e-3, ((1, 0.5),)
"""The same for long tails: 1e-6 of the Hessian for half the price."""

WIDE_TAIL = 400

DROPPED = 1e-8
"""Eigenvalues of the scaled Hessian below this are left out of its inverse."""


@dataclass(frozen=True, eq=False)
class ManyInformation:
    """Curvature and slopes of k fits.

    Attributes
    ----------
    half : (k, rank, rank)
        H in the user's units: Cov(beta) = H H' for the columns kept.
    slopes : (k, n_theta + 1, rank, rank)
        Derivative of Cov(beta) along parameter a is H slopes[a] H'; the last one is log sigma.
    cov : (k, n_theta + 1, n_theta + 1)
        Asymptotic covariance of (conditioned theta, log sigma).
    """

    half: Array
    slopes: Array
    cov: Array

    def some(self, which: NDArray[np.int64]) -> ManyInformation:
        """That of some of the fits."""
        return ManyInformation(self.half[which], self.slopes[which], self.cov[which])

    def df(self, rows: Array) -> tuple[Array, Array]:
        """Variances and Satterthwaite's degrees of freedom (k, c) of rows (c, rank), or (k, c, rank) of each fit's own.

        Giesbrecht and Burns (1985).
        """
        h = rows @ self.half
        gradient = np.sum((h[:, None] @ self.slopes) * h[:, None], axis=3).transpose(0, 2, 1)
        spread = np.sum((gradient @ self.cov) * gradient, axis=2)
        variance = np.einsum("kcx,kcx->kc", h, h)
        with np.errstate(divide="ignore", invalid="ignore"):
            return variance, np.where(spread > 0, 2.0 * variance**2 / spread, np.inf)


def empty_information(k: int, n_theta: int, rank: int) -> ManyInformation:
    """Arrays to fill in."""
    return ManyInformation(
        np.full((k, rank, rank), np.nan),
        np.full((k, n_theta + 1, rank, rank), np.nan),
        np.full((k, n_theta + 1, n_theta + 1), np.nan),
    )


@dataclass(frozen=True, eq=False)
class Probes:
    """Evaluations about the estimates of k fits, before they are made into differences.

    Attributes
    ----------
    steps : (k, n_theta)
        Step of each parameter.
    gradient, factors : (k, m, n_theta), (k, m, p + 1, p + 1)
        At the points of the differences, see `_moves`.
    ok : (k,) bool
    ld : (k, p + 1, p + 1)
        Factor at the estimates.
    half : (k, p, p)
        H in the user's units.
    nu : float
    wide : bool
    """

    steps: Array
    gradient: Array
    factors: Array
    ok: NDArray[np.bool_]
    ld: Array
    half: Array
    nu: float
    wide: bool

    @classmethod
    def joined(cls, parts: list[Probes]) -> Probes:
        """Several batches of one layout as one."""
        steps, gradient, factors, ok, ld, half = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("steps", "gradient", "factors", "ok", "ld", "half")
        )
        return cls(steps, gradient, factors, ok, ld, half, parts[0].nu, parts[0].wide)


def _moves(n_theta: int, wide: bool) -> list[tuple[int, float, float]]:
    """Parameter, multiple of its step, and weight of each point of the differences."""
    steps = [(sign * multiple, sign * w) for multiple, w in (WIDE_WEIGHTS if wide else WEIGHTS) for sign in (1.0, -1.0)]
    return [(a, *move) for a in range(n_theta) for move in steps]


def probe(
    evaluator: Evaluator,
    products: DesignProducts,
    found: Responses,
    lead: Array,
    tail: Array,
    constants: Array,
    theta: Array,
    ld: Array,
    half: Array,
) -> Probes:
    """Evaluate a batch of fits at the points of their differences.

    Parameters
    ----------
    theta : (k, n_theta)
        Conditioned estimates.
    ld : (k, p + 1, p + 1)
        Lower factors of the dense columns there.
    half : (k, p, p)
        H in the user's units.
    """
    k, nt = theta.shape
    p = ld.shape[1] - 1
    wide = sum(group.size for group in products.groups[1:]) > WIDE_TAIL
    step = WIDE_STEP if wide else STEP
    ok = np.isfinite(theta).all(axis=1) & np.isfinite(ld[:, -1, -1])
    steps = np.where(ok[:, None], step * _scales(products, theta), step)
    moves = _moves(nt, wide)
    points = np.repeat(np.where(ok[:, None], theta, 1.0)[:, None], len(moves), axis=1)
    for s, (a, multiple, _) in enumerate(moves):
        points[:, s, a] += multiple * steps[:, a]
    gradient, factors = np.zeros((k, len(moves), nt)), np.zeros((k, len(moves), p + 1, p + 1))
    outcome = np.zeros(k, np.int32)
    probe_many(evaluator, lead, tail, found.xty, constants, points, gradient, factors, outcome)
    return Probes(steps, gradient, factors, np.asarray(ok & (outcome == 0)), ld, half, evaluator.nu, wide)


def fill_information(out: ManyInformation, rows: slice | NDArray[np.int64], probes: Probes) -> None:
    """Information from the evaluations about a batch of fits, written into rows of ``out``."""
    ok, h, nu = probes.ok, probes.steps, probes.nu
    k, nt = h.shape
    p = probes.ld.shape[1] - 1
    factors = np.where(ok[:, None, None, None], probes.factors, np.eye(p + 1))
    at = np.where(ok[:, None, None], np.tril(probes.ld), np.eye(p + 1))
    lower = at[:, :p, :p]
    relative = np.linalg.solve(np.tril(factors[:, :, :p, :p]), lower[:, None])
    relative = relative.transpose(0, 1, 3, 2) @ relative  # L0'(L L')^-1 L0
    r2 = at[:, p, p] ** 2
    slopes, hessian, of_r2 = np.zeros((k, nt + 1, p, p)), np.zeros((k, nt + 1, nt + 1)), np.zeros((k, nt))
    for s, (a, _, weight) in enumerate(_moves(nt, probes.wide)):
        scaled = weight / h[:, a]
        slopes[:, a] += scaled[:, None, None] * relative[:, s]
        hessian[:, a, :nt] += scaled[:, None] * probes.gradient[:, s]
        of_r2[:, a] += scaled * factors[:, s, p, p] ** 2
    slopes[:, nt] = 2.0 * np.eye(p)
    profiled = hessian[:, :nt, :nt]
    outer = of_r2[:, :, None] * of_r2[:, None, :]
    hessian[:, :nt, :nt] = 0.5 * (profiled + profiled.transpose(0, 2, 1)) + (nu / r2**2)[:, None, None] * outer
    hessian[:, nt, :nt] = hessian[:, :nt, nt] = -2.0 * (nu / r2)[:, None] * of_r2
    hessian[:, nt, nt] = 4.0 * nu
    cov = 2.0 * _pseudo_inverse(hessian)
    for target, value in ((out.half, probes.half), (out.slopes, slopes), (out.cov, cov)):
        target[rows] = np.where(ok.reshape(-1, *([1] * (value.ndim - 1))), value, np.nan)


def _scales(products: DesignProducts, theta: Array) -> Array:
    """A parameter's own scale: a level's conditional standard deviation where theta is small, theta where large."""
    index = products.theta_map.index
    floors = np.array([g.n_levels / products.n for g in products.groups])
    place = {(g, i): a for a, (g, i, j) in enumerate(index) if i == j}
    diagonal = theta[:, [place[g, i] for g, i, _ in index]]
    return np.asarray(np.hypot(diagonal, np.sqrt(floors[index[:, 0]])))


def _pseudo_inverse(matrices: Array) -> Array:
    """Inverses of symmetric matrices (k, m, m) over their positive eigenvalues, diagonals scaled to one first."""
    scale = 1.0 / np.sqrt(np.maximum(np.abs(np.einsum("kii->ki", matrices)), DROPPED))
    values, vectors = np.linalg.eigh(matrices * (scale[:, :, None] * scale[:, None, :]))
    kept = np.where(values > DROPPED, 1.0, 0.0) / np.where(values > DROPPED, values, 1.0)
    turned = vectors * scale[:, :, None]
    return np.asarray((turned * kept[:, None, :]) @ turned.transpose(0, 2, 1))
